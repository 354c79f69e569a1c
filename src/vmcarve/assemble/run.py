"""Assembling one image, strongest evidence first: host files, headers, orphans, then guests without container.

Each step takes only what the steps before left: no byte of the image is given twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ..errors import Damaged
from ..filemap import FileMap, FileView
from ..model import (
    LOST,
    MISSING,
    RUN_DATA,
    SECTOR,
    Container,
    Evidence,
    Format,
    GuestDisk,
    GuestMap,
    HostFile,
    Member,
    Reader,
)
from ..registry import formats, guests
from ..tables import pc
from .breaks import Places
from .chains import base_name
from .headers import lead
from .hosts import open_hosts
from .orphans import rebuilt
from .raw import raw_container, raw_disks
from .state import Assembled, Claims, HostView

MAX_SPARSE = 2_000_000  # ours: rows of the sparse kinds that are looked at one by one


def assemble_image(image: Reader, source: int, evidence: pa.Table) -> tuple[list[Assembled], list[HostView], list[str]]:
    """The containers of one image, its host file systems, and what went wrong with them (one sentence each).

    evidence: rows of the EVIDENCE schema for this source.
    """
    rows = _format_rows(evidence)
    views, troubles = open_hosts(image, evidence)
    state = _State(image, source, views)
    _from_host_files(state, rows, _guest_places(evidence))
    _named_members(state)
    _archived(state, rows)
    archives = {(i.container.format, i.header_offset) for i in state.done if not i.container.guests}
    left = [(m, e) for m, e in rows if not state.claims.holds(e.image_offset)
            and (m, e.image_offset - (e.container_offset or 0)) not in archives]
    for item in lead(image, left, Places.of(evidence), state.claims, state.free):
        state.accept(item.container, item.map, deleted=state.deleted_at(item.map), host=None)
    for fmt in formats().values():
        if fmt.salvage is None:
            continue
        own = [e for m, e in rows if m == fmt.name and not state.claims.holds(e.image_offset)]
        if not own:
            continue
        for orphan in fmt.salvage(image, own):
            file_map = FileMap.from_runs(orphan.runs, orphan.container.size, orphan.evidence)
            if not _taken(state.claims, file_map):
                state.accept(orphan.container, file_map, deleted=state.deleted_at(file_map), host=None)
    for orphan in rebuilt(image, Places.of(evidence), state.claims, state.free):
        file_map = FileMap.from_runs(orphan.runs, orphan.container.size, orphan.evidence)
        state.accept(orphan.container, file_map, deleted=state.deleted_at(file_map), host=None)
    hosts_at = {v.volume.offset for v in views} | {0}
    for container, file_map in raw_disks(image, evidence, state.claims, hosts_at):
        if not _taken(state.claims, file_map):
            state.accept(container, file_map, deleted=state.deleted_at(file_map), host=None)
    return state.done, views, troubles


class _State:
    """The claims so far and the disks accepted, with stable ids."""

    def __init__(self, image: Reader, source: int, views: list[HostView]) -> None:
        self.image = image
        self.source = source
        self.views = views
        self.claims = Claims()
        self.done: list[Assembled] = []
        self._ids: set[str] = set()
        free = [v.free for v in views if len(v.free)]
        self.free = np.concatenate(free) if free else None
        if self.free is not None:
            self.free = self.free[np.argsort(self.free[:, 0], kind="stable")]

    def accept(self, container: Container, file_map: FileMap, *, deleted: bool | None, host: str | None,
               names: Sequence[str] = ()) -> None:
        if container.guests:  # an archive leaves its bytes to the disks inside it
            self.claims.add(file_map)
        first = next((p for _, _, p, _, _ in file_map.rows() if p >= 0), 0)
        base = f"{container.format}-{first:x}" if self.source == 0 else f"{container.format}-{self.source}-{first:x}"
        disk_id, n = base, 2
        while disk_id in self._ids:
            disk_id, n = f"{base}-{n}", n + 1
        self._ids.add(disk_id)
        all_names = list(dict.fromkeys([*(n for n in names if n), *container.names]))
        self.done.append(Assembled(disk_id, self.source, container, file_map, deleted, all_names, host))

    def deleted_at(self, file_map: FileMap) -> bool | None:
        """Whether a container without a host file lies in free space: None when no host tells."""
        if self.free is None or len(self.free) == 0:
            return None
        p = int(file_map.image_offset[0]) if len(file_map) else -1
        if p < 0:
            return None
        inside = any(v.volume.offset <= p < v.volume.offset + v.volume.size for v in self.views)
        if not inside:
            return None
        i = int(np.searchsorted(self.free[:, 0], p, side="right")) - 1
        return True if i >= 0 and p < int(self.free[i].sum()) else None


def _format_rows(evidence: pa.Table) -> list[tuple[str, Evidence]]:
    """(module, Evidence) of the kinds that belong to container formats, in image order."""
    names = formats()
    mask = pc.is_in(evidence["module"], value_set=pa.array(list(names), pa.string()))
    table = evidence.filter(mask).slice(0, MAX_SPARSE).sort_by("image_offset")
    return [(str(r["module"]), _evidence(r)) for r in table.to_pylist()]


def _guest_places(evidence: pa.Table) -> np.ndarray:
    """Image offsets of structures that begin a guest volume or disk, rising.

    The last byte of each: a volume may begin with a hole (the first 64 KiB of Btrfs).
    """
    names = list(guests())
    mask = pc.is_in(evidence["module"], value_set=pa.array(names, pa.string()))
    start = pc.or_(pc.equal(evidence["volume_offset"], 0), pc.is_valid(evidence["guest_offset"]))
    table = evidence.filter(pc.and_(mask, pc.fill_null(start, False)))
    return np.sort(table["image_offset"].to_numpy() + table["length"].to_numpy() - 1)


def _evidence(row: dict[str, object]) -> Evidence:
    fields = {k: v for k, v in row.items() if k not in ("source", "module")}
    return Evidence(**fields)  # type: ignore[arg-type]


# --- host files ----------------------------------------------------------------------------------------------------
def _from_host_files(state: _State, rows: list[tuple[str, Evidence]], guest_places: np.ndarray) -> None:
    """Containers whose map the host's metadata, or its remnants, give.

    Live files first: they own their blocks. Deleted files may name the same blocks (an older file's stale map, several
    remnants of one file): all are opened, and the soundest takes them.
    """
    by_offset: dict[int, list[tuple[str, Evidence]]] = defaultdict(list)
    for module, e in rows:
        by_offset[e.image_offset].append((module, e))
    places = np.array(sorted(by_offset), np.int64)
    found: list[tuple[tuple[int, int, int, int], HostView, HostFile, Container, FileMap]] = []
    for view in state.views:
        for file in view.files:
            if len(file.runs) == 0:
                continue
            modules = _modules_in(file, places, by_offset, sure_only=view.carved)
            has_guest = not view.carved and _any_inside(file, guest_places)
            opened = _open_host_file(state, file, modules, has_guest) if modules or has_guest else None
            if opened is not None:
                found.append((_doubt(file, *opened, len(found)), view, file, *opened))
    solved: set[tuple[str, str]] = set()
    for _, view, file, container, file_map in sorted(found, key=lambda f: (f[2].deleted, f[1].carved, f[0])):
        if (view.label, file.identity) in solved:
            continue
        if file.deleted or view.carved:
            rest = _unclaimed(state.claims, file_map)
            if rest is None:
                continue
            file_map = rest
        solved.add((view.label, file.identity))
        state.accept(container, file_map, deleted=None if view.carved else file.deleted,
                     host=f"{view.label}: {file.origin}", names=[file.name])


def _doubt(file: HostFile, container: Container, file_map: FileMap, order: int) -> tuple[int, int, int, int]:
    """What speaks against a container read through a file's map, least first: failed checks, lost and missing bytes."""
    lost = sum(int(g.map.length[g.map.state == LOST].sum()) for g in container.guests)
    missing = sum(n for _, n, _, grade, _ in file_map.rows() if grade == MISSING)
    return sum(not c.ok for c in container.checks), lost + missing, 0 if file.complete else 1, order


def _named_members(state: _State) -> None:
    """Host files that an assembled container names as holding its bytes, but that show nothing of their own."""
    known = {(item.host or "").split(":")[0] + "|" + base_name(n) for item in state.done for n in item.names[:1]}
    wanted: dict[str, dict[str, Member]] = defaultdict(dict)
    for item in state.done:
        for member in item.container.members if item.host else []:
            if member.length > 0 and member.kind not in ("zero", "tar"):
                wanted[item.host.split(":")[0]][base_name(member.name)] = member  # type: ignore[union-attr]
    for view in state.views:
        for file in view.files:
            name = base_name(file.name) if file.name else ""
            member = wanted[view.label].get(name)
            if member is None or f"{view.label}|{name}" in known or file.size < member.file_offset + member.length:
                continue
            file_map = FileMap.from_host_file(file, file.size)
            if file.deleted:
                file_map = _without_reused(state, file_map)
            if _taken(state.claims, file_map):
                continue
            known.add(f"{view.label}|{name}")
            container = Container("raw", "flat extent", file.size, [GuestDisk(file.size, GuestMap.flat(file.size))],
                                  extension="raw")
            state.accept(container, file_map, deleted=file.deleted, host=f"{view.label}: {file.origin}",
                         names=[file.name])


def _archived(state: _State, rows: list[tuple[str, Evidence]]) -> None:
    """Disks inside archives whose map a host gave: each is read through the archive's map."""
    begins = {e.image_offset: m for m, e in rows if e.container_offset == 0}
    for item in [i for i in state.done if not i.container.guests]:
        for member in item.container.members:
            parts = item.map.cut(member.file_offset, member.length)
            module = begins.get(parts[0][2]) if parts else None
            if module is None or state.claims.holds(parts[0][2]):
                continue
            shift = member.file_offset
            file_map = FileMap.build((f - shift, n, p, grade, rule) for f, n, p, grade, rule in parts)
            container = try_open(formats()[module], FileView(state.image, file_map))
            if container is not None and container.guests:
                container.size = member.length
                state.accept(container, file_map, deleted=item.deleted, host=item.host, names=[member.name])


def _open_host_file(state: _State, file: HostFile, modules: list[str], has_guest: bool
                    ) -> tuple[Container, FileMap] | None:
    end = int((file.runs[:, 0] + file.runs[:, 2]).max())
    size = file.size if file.size > 0 else end
    file_map = FileMap.from_host_file(file, size)
    if file.deleted:
        file_map = _without_reused(state, file_map)
    view = FileView(state.image, file_map)
    for name in modules:
        container = try_open(formats()[name], view)
        if container is not None and _agrees(container, size, file.size > 0):
            if file.size <= 0:
                file_map = file_map.resized(max(container.size, SECTOR))
            else:
                container.size = size
            return container, file_map
    if has_guest:
        container = raw_container(view)
        if container is not None:
            return container, file_map
    return None


def _agrees(container: Container, size: int, known: bool) -> bool:
    """A container that needs far more bytes than its file has is somebody else's (a stale map, or a nested disk)."""
    return not known or container.size <= size + 64 * 1024 or container.size <= size * 1.05


def try_open(fmt: Format, view: Reader) -> Container | None:
    """The container that `view` begins, or None when it is none of this format."""
    try:
        return fmt.open(view)
    except Damaged:
        return None


def _modules_in(file: HostFile, places: np.ndarray, by_offset: dict[int, list[tuple[str, Evidence]]],
                *, sure_only: bool = False) -> list[str]:
    """Formats to try on a file: those whose evidence states the very place where it lies, then the others inside it."""
    sure: list[str] = []
    maybe: list[str] = []
    for f, p, n, kind in file.runs.tolist():
        if kind != RUN_DATA or p < 0:
            continue
        low, high = np.searchsorted(places, [p, p + n])
        for at in places[low:high].tolist():
            for module, e in by_offset[at]:
                here = f + (at - p)
                if e.container_offset == here:
                    sure.append(module)
                elif e.container_offset is None:
                    maybe.append(module)
    return list(dict.fromkeys(sure if sure_only else [*sure, *maybe]))


def _any_inside(file: HostFile, places: np.ndarray) -> bool:
    for _, p, n, kind in file.runs.tolist():
        if kind == RUN_DATA and p >= 0:
            low, high = np.searchsorted(places, [p, p + n])
            if high > low:
                return True
    return False


def _without_reused(state: _State, file_map: FileMap) -> FileMap:
    """A deleted file's blocks that the host has since given to others are missing, not ours."""
    free = state.free
    if free is None or len(free) == 0:
        return file_map
    out: list[tuple[int, int, int, str, str]] = []
    for f, n, p, grade, rule in file_map.rows():
        if p < 0:
            out.append((f, n, p, grade, rule))
            continue
        at, end = p, p + n
        i = max(0, int(np.searchsorted(free[:, 0], at, side="right")) - 1)
        while at < end:
            while i < len(free) and int(free[i].sum()) <= at:
                i += 1
            start = int(free[i, 0]) if i < len(free) else end
            if start > at:
                upto = min(start, end)
                out.append((f + at - p, upto - at, -1, MISSING, "reused"))
                at = upto
            if at < end and i < len(free):
                upto = min(int(free[i].sum()), end)
                out.append((f + at - p, upto - at, at, grade, rule))
                at = upto
    return FileMap.build(out)


def _unclaimed(claims: Claims, file_map: FileMap) -> FileMap | None:
    """A map without the blocks that sounder files own. None when its first byte, or most of it, is theirs."""
    found = claims.rest_of(file_map, "reused")
    kept, whole = (sum(n for _, n, p, _, _ in m.rows() if p >= 0) for m in (found, file_map))
    if kept == whole:
        return file_map
    return None if kept * 2 < whole or len(found) == 0 or found.rule[0] == "reused" else found


def _taken(claims: Claims, file_map: FileMap) -> bool:
    """Whether somebody owns a byte that the map would claim."""
    return any(p >= 0 and claims.overlap(p, p + n) for _, n, p, _, _ in file_map.rows())
