"""Containers that a host's metadata, or what is left of it, gives the map of.

A map alone is no container: a structure that the sweep confirmed has to state the very place where the map puts it (or
lie inside it, where it states none), and the format has to open what the map gives.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import Damaged
from ..filemap import FileMap, FileView
from ..model import (
    GUESSED,
    LOST,
    MISSING,
    RUN_CHECKED,
    RUN_DATA,
    SECTOR,
    Container,
    Evidence,
    Format,
    GuestDisk,
    GuestMap,
    HostFile,
    Member,
    Patch,
    Reader,
)
from ..registry import formats
from ..source.bytes_reader import BytesReader
from .chains import base_name
from .cipher import Strides, without_ciphertext
from .doubt import ahead, contradicted, doubted
from .headless import guessed, headless, relaid
from .partly import added, completed, lost
from .raw import raw_container
from .rivals import CONTESTED, REUSED, Rivals
from .state import HostView, State
from .unit_round import RULE


def host_files(state: State, rows: list[tuple[str, Evidence]], guest_places: npt.NDArray[np.int64],
               evidence: pa.Table, *, deleted: bool) -> None:
    """Takes the disks of live files, or of deleted ones (those of carved hosts, of which nobody tells, among them).

    What `state.claims` holds is not a deleted file's any more: live files and other deleted ones, and what hosts hold.
    guest_places: image offsets where guest volumes or disks begin, rising.
    """
    rivals = {view.label: Rivals(view.files, _quiet_since(view)) for view in state.views} if deleted else {}
    strides = Strides()
    _whole(state, rows, guest_places, rivals, strides, deleted=deleted)
    _named_members(state, rivals, deleted=deleted)
    _archived(state, rows)
    files = ((view, file) for view, file in _files(state, deleted) if file.size > 0 and not view.carved)
    headless(state, files, lambda view, file: _map_of(state, file, file.size, rivals.get(view.label)), evidence,
             strides)


def _quiet_since(view: HostView) -> Callable[[], float]:
    """Since when nothing came and went unseen on a volume; never where only remains are known."""
    return (lambda: math.inf) if view.carved else view.volume.quiet_since


def _whole(state: State, rows: list[tuple[str, Evidence]], guest_places: npt.NDArray[np.int64],
           rivals: dict[str, Rivals], strides: Strides, *, deleted: bool) -> None:
    """Containers in host files by their own structures.

    Deleted files may name the same blocks (an older file's stale map, several remnants of one file): all are opened,
    and the soundest takes them; the others keep what it leaves.
    """
    by_offset: dict[int, list[tuple[str, Evidence]]] = defaultdict(list)
    for module, e in rows:
        by_offset[e.image_offset].append((module, e))
    places = np.array(sorted(by_offset), np.int64)
    _in_metadata(state, deleted=deleted)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        _take_whole(state, _opened(state, by_offset, places, guest_places, rivals, strides, pool, deleted=deleted),
                    deleted=deleted)


@dataclass(slots=True)
class _Opened:
    """A container in a host file, what speaks against it, and its streams, which are being decoded."""

    doubt: tuple[int, int, int, int]
    view: HostView
    file: HostFile
    container: Container
    map: FileMap
    encrypted: bool
    streams: Future[object] | None


def _opened(state: State, by_offset: dict[int, list[tuple[str, Evidence]]], places: npt.NDArray[np.int64],
            guest_places: npt.NDArray[np.int64], rivals: dict[str, Rivals], strides: Strides, pool: Executor, *,
            deleted: bool) -> list[_Opened]:
    """Every host file that a format opens."""
    found: list[_Opened] = []
    first: set[tuple[str, str]] = set()
    asked: list[tuple[HostView, HostFile, list[str], bool, FileMap]] = []
    for view, file in _files(state, deleted):
        modules = _modules_in(file, places, by_offset, sure_only=view.carved)
        has_guest = not view.carved and len(_within(file, guest_places)) > 0
        if modules or has_guest:
            end = int((file.runs[:, 0] + file.runs[:, 2]).max())
            file_map = _map_of(state, file, file.size if file.size > 0 else end, rivals.get(view.label))
            strides.look(state.image, file_map)
            asked.append((view, file, modules, has_guest, file_map))
    for view, file, modules, has_guest, whole in asked:
        opened = _open_host_file(state, file, modules, has_guest, whole, strides)
        # a loose record of a small file, perhaps a guest's own, can happen to name a header's place, and no more of it
        if opened is not None and not (view.carved and opened[0].guests and not opened[0].holds_data):
            likely = (view.label, file.identity) not in first  # the best remnant of a file comes first
            first.add((view.label, file.identity))
            streams = ahead(pool, state.image, *opened[:2]) if deleted and likely and not opened[2] else None
            found.append(_Opened(_doubt(file, *opened[:2], len(found)), view, file, *opened, streams))
    return found


def _take_whole(state: State, found: list[_Opened], *, deleted: bool) -> None:
    """Takes the soundest of those that claim the same blocks."""
    solved: set[tuple[str, str]] = set()
    for one in sorted(found, key=lambda f: (f.view.carved, f.doubt)):
        view, file, container, file_map = one.view, one.file, one.container, one.map
        if one.streams is not None:
            one.streams.result()
        if (view.label, file.identity) in solved:
            continue
        if deleted:
            rest = _unclaimed(state, file_map)
            if rest is None:
                continue
            file_map = rest
        solved.add((view.label, file.identity))
        if one.encrypted or deleted and contradicted(state.image, container, file_map):
            file_map = doubted(file_map)
        if deleted and file.complete and file.certain:
            container, file_map = _with_lost(state, file, container, file_map)
        state.accept(container, file_map, deleted=state.deleted_at(file_map) if view.carved else file.deleted,
                     host=f"{view.label}: {file.origin}", names=[file.name])


def _with_lost(state: State, file: HostFile, container: Container, file_map: FileMap) -> tuple[Container, FileMap]:
    """A container and its map; what its own tables do not tell is looked for, where that is much."""
    if not container.guests or not lost(container.guests[0].map):
        return container, file_map
    view = FileView(state.image, file_map)
    anew = relaid(view, file, container)
    if anew is not None:
        container, file_map = anew[0], guessed(file_map, anew[1], anew[0].size)
        view = FileView(state.image, file_map)
    whole = completed(view, container)
    if whole is None:
        return container, file_map
    ranges = added(container.guests[0].map, whole.guests[0].map)
    return whole, file_map.graded((f, n, GUESSED, RULE) for f, n in ranges)


def _in_metadata(state: State, *, deleted: bool) -> None:
    """Small containers that the host keeps inside its own metadata (texts that only name other files).

    No sector starts with them, so the sweep has not seen them. Their bytes are the host's word, and claim nothing.
    """
    known: set[bytes] = set()
    for view in state.views:
        for file in view.files:
            content = file.inline
            if not content or (file.deleted or view.carved) != deleted or content in known:
                continue
            opened = (try_open(formats()[name], BytesReader(content)) for name in _begun_by(content))
            container = next((c for c in opened if c is not None), None)
            if container is None or not container.members:
                continue
            known.add(content)
            plain = bytearray(content)
            for patch in container.patches:
                plain[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
            container.size, container.patches = len(plain), [Patch(0, bytes(plain), "inline")]
            file_map = FileMap.build([(0, len(plain), -1, MISSING, "host.inline")])
            state.accept(container, file_map, deleted=None if view.carved else file.deleted,
                         host=f"{view.label}: {file.origin}", names=[file.name])


def _begun_by(content: bytes) -> list[str]:
    """The formats one of whose magics stands where it should in the content of a file."""
    return [name for name, fmt in formats().items()
            if any(content.startswith(s.magic, s.at) for s in fmt.signatures)]  # fmt: skip


def _files(state: State, deleted: bool) -> Iterator[tuple[HostView, HostFile]]:
    """The files with a map that are live, or those that are not known to be."""
    for view in state.views:
        for file in view.files:
            if len(file.runs) and (file.deleted or view.carved) == deleted:
                yield view, file


def _map_of(state: State, file: HostFile, size: int, rivals: Rivals | None) -> FileMap:
    """A file's map. A deleted one's (rivals) without the blocks that others have, or wrote to, since."""
    if file.check is not None:
        file.runs, file.check = file.check(), None
    file_map = FileMap.from_host_file(file, size)
    return file_map if rivals is None else rivals.settle(file, state.claims.rest_of(file_map, REUSED))


def _unclaimed(state: State, file_map: FileMap) -> FileMap | None:
    """A map without what sounder files took meanwhile. None when its first byte, or most of it, is theirs."""
    found = state.claims.rest_of(file_map, REUSED)
    kept, whole = (sum(n for _, n, p, _, _ in m.rows() if p >= 0) for m in (found, file_map))
    if kept == whole:
        return file_map
    return None if kept * 2 < whole or len(found) == 0 or found.rule[0] == REUSED else found


def _doubt(file: HostFile, container: Container, file_map: FileMap, order: int) -> tuple[int, int, int, int]:
    """What speaks against a container read through a file's map, least first: failed checks, lost and missing bytes."""
    lost = sum(int(g.map.length[g.map.state == LOST].sum()) for g in container.guests)
    missing = sum(n for _, n, _, grade, _ in file_map.rows() if grade == MISSING)
    return sum(not c.ok for c in container.checks), lost + missing, 0 if file.complete else 1, order


def _named_members(state: State, rivals: dict[str, Rivals], *, deleted: bool) -> None:
    """Host files that an assembled container names as holding its bytes, but that show nothing of their own."""
    known = {(item.host or "").split(":")[0] + "|" + base_name(n) for item in state.done for n in item.names[:1]}
    wanted: dict[str, dict[str, Member]] = defaultdict(dict)
    for item in state.done:
        for member in item.container.members if item.host else []:
            if member.length > 0 and member.kind not in ("zero", "tar"):
                wanted[item.host.split(":")[0]][base_name(member.name)] = member  # type: ignore[union-attr]
    for view, file in _files(state, deleted):
        name = base_name(file.name) if file.name else ""
        member = wanted[view.label].get(name)
        if member is None or f"{view.label}|{name}" in known or file.size < member.file_offset + member.length:
            continue
        file_map = _map_of(state, file, file.size, rivals.get(view.label))
        if state.taken(file_map):
            continue
        known.add(f"{view.label}|{name}")
        container = Container("raw", "flat extent", file.size, [GuestDisk(file.size, GuestMap.flat(file.size))],
                              extension="raw")
        state.accept(container, file_map, deleted=file.deleted, host=f"{view.label}: {file.origin}",
                     names=[file.name])


def _archived(state: State, rows: list[tuple[str, Evidence]]) -> None:
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


def _open_host_file(state: State, file: HostFile, modules: list[str], has_guest: bool, whole: FileMap, strides: Strides
                    ) -> tuple[Container, FileMap, bool] | None:
    """The container in a file (with its map), its map without what is ciphertext, and whether there was any."""
    size = whole.size
    file_map, encrypted = without_ciphertext(state.image, whole, strides)
    view = FileView(state.image, file_map)
    opened = _first_that_opens(modules, file, size, view)
    if opened is None and has_guest:
        opened = raw_container(view)
        if opened is not None:
            return opened, file_map, encrypted
        if file_map.grade[0] == MISSING or file_map.rule[0] == CONTESTED:  # its header may be gone
            opened = _first_that_opens([m for m in _by_name(file) if m not in modules], file, size, view)
    if opened is None:
        return None
    if file.size > 0:
        opened.size = size
    return opened, file_map if file.size > 0 else file_map.resized(max(opened.size, SECTOR)), encrypted


def _first_that_opens(modules: list[str], file: HostFile, size: int, view: FileView) -> Container | None:
    for name in modules:
        container = try_open(formats()[name], view)
        if container is not None and _agrees(container, size, file.size > 0):
            return container
    return None


def _by_name(file: HostFile) -> list[str]:
    """The formats that a file's name speaks of; all, where it has none that does."""
    extension = base_name(file.name).rpartition(".")[2].lower()
    named = [name for name, fmt in formats().items() if fmt.extension == extension]
    return named or list(formats())


def _agrees(container: Container, size: int, known: bool) -> bool:
    """A container that needs far more bytes than its file has is somebody else's (a stale map, or a nested disk)."""
    return not known or container.size <= size + 64 * 1024 or container.size <= size * 1.05


def try_open(fmt: Format, view: Reader) -> Container | None:
    """The container that `view` begins, or None when it is none of this format."""
    try:
        return fmt.open(view)
    except Damaged:
        return None


def _modules_in(file: HostFile, places: npt.NDArray[np.int64], by_offset: dict[int, list[tuple[str, Evidence]]],
                *, sure_only: bool = False) -> list[str]:
    """Formats to try on a file: those whose evidence states the very place where it lies, then the others inside it."""
    sure: list[str] = []
    maybe: list[str] = []
    for here, at in _within(file, places):
        for module, e in by_offset[at]:
            if e.container_offset == here:
                sure.append(module)
            elif e.container_offset is None:
                maybe.append(module)
    return list(dict.fromkeys(sure if sure_only else [*sure, *maybe]))


def _within(file: HostFile, places: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """(file_offset, image_offset) of those of `places` (rising image offsets) that lie in a file's runs."""
    begin, end = file.runs[:, 1], file.runs[:, 1] + file.runs[:, 2]
    low, high = places.searchsorted(begin), places.searchsorted(end)
    out: list[tuple[int, int]] = []
    for i in (high > low).nonzero()[0].tolist():  # of most files none: the rest is asked of these only
        at, kind = int(begin[i]), int(file.runs[i, 3])
        if at >= 0 and kind in (RUN_DATA, RUN_CHECKED):
            out += [(p + int(file.runs[i, 0]) - at, p) for p in places[low[i] : high[i]].tolist()]
    return out
