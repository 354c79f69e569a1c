"""Assembling one image, strongest evidence first: host files, headers, orphans, then guests without container.

Each step takes only what the steps before left: no byte of the image is given twice. Space that a host holds and
space that none does are never mixed in one disk: what lies in the first is live.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..disk import VirtualDisk
from ..filemap import FileMap
from ..model import DATA, GUESSED, Evidence, Reader
from ..registry import formats, guests
from ..tables import pc
from .boot_sectors import BootSectors
from .candidate import Candidate
from .headers import lead
from .host_files import host_files
from .hosts import Spot, find_hosts, read_hosts, unallocated
from .loose import Loose
from .orphans import rebuilt
from .places import Places
from .raw import names_of, raw_disks, rivals
from .state import Assembled, HostView, State

MAX_SPARSE = 2_000_000  # ours: rows of the sparse kinds that are looked at one by one


def assemble_image(image: Reader, source: int, evidence: pa.Table, spots: list[Spot] | None = None, *,
                   unallocated_only: bool = False, files_only: bool = False,
                   tables: npt.NDArray[np.int64] | None = None) -> tuple[list[Assembled], list[HostView], list[str]]:
    """The containers of one image, its host file systems, and what went wrong with them (one sentence each).

    evidence: rows of the EVIDENCE schema for this source. spots: what find_hosts gave, where that was asked already.
    unallocated_only: what a host holds is not looked at. files_only: only what host files hold is.
    tables: runs of blocks that may hold pieces of allocation tables, where the sweep looked for them (`Sweep.tables`).
    """
    rows = _format_rows(evidence)
    troubles: list[str] = []
    if spots is None:
        spots, troubles = find_hosts(image)
    views, more = read_hosts(image, spots, evidence)
    told = any(s.free is not None for s in spots)
    state = State(image, source, views, unallocated(image.size, spots) if told else None)
    starts = _guest_places(evidence)
    if state.free is not None and state.held is not None:
        others = state.claims
        if not unallocated_only:
            host_files(state, rows, starts, evidence, deleted=False)
            others = state.claims
            state.claims = others.with_runs(state.free, image.size)
            if not files_only:
                _without_host_files(state, rows, evidence, state.held, tables)
        state.claims = others.with_runs(state.held, image.size)
    host_files(state, rows, starts, evidence, deleted=True)
    if not files_only:
        _without_host_files(state, rows, evidence, state.free, tables)
    return without_copies(state.done), views, [*troubles, *more]


def _without_host_files(state: State, rows: list[tuple[str, Evidence]], evidence: pa.Table,
                        room: npt.NDArray[np.int64] | None, tables: npt.NDArray[np.int64] | None) -> None:
    """What headers, then orphans, then guests alone tell of, outside the claims. room int64[n, 2]: where that is."""
    image = state.image
    archives = {(i.container.format, i.header_offset) for i in state.done if not i.container.guests}
    left = [(m, e) for m, e in rows if not state.claims.holds(e.image_offset)
            and (m, e.image_offset - (e.container_offset or 0)) not in archives]
    places = Places.of(evidence)
    hosts_at = {v.volume.offset for v in state.views} | {0}
    space = np.array([[0, image.size]], np.int64) if room is None or len(room) == 0 else room
    boot, loose = BootSectors(image, space), Loose(image)

    def alone(containers: list[Candidate]) -> list[Candidate]:
        return rivals(image, evidence, state.claims, hosts_at, places, boot, containers, loose)

    for item in lead(image, left, places, state.claims, room, alone, loose):
        state.accept(item.container, item.map, deleted=state.deleted_at(item.map), host=None)
    for fmt in formats().values():
        if fmt.salvage is None:
            continue
        own = [e for m, e in rows if m == fmt.name and not state.claims.holds(e.image_offset)]
        if not own:
            continue
        for orphan in fmt.salvage(image, own):
            # no header says where the file begins: on a host that breaks files a part may be missing before all of it
            file_map = FileMap.from_runs(orphan.runs, orphan.container.size, orphan.evidence, GUESSED)
            if not state.taken(file_map):
                state.accept(orphan.container, file_map, deleted=state.deleted_at(file_map), host=None)
    for orphan in rebuilt(image, places, state.claims, room, tables=tables):
        file_map = FileMap.from_runs(orphan.runs, orphan.container.size, orphan.evidence, GUESSED)
        state.accept(orphan.container, file_map, deleted=state.deleted_at(file_map), host=None)
    known = _names(state)
    for container, file_map in raw_disks(image, evidence, state.claims, hosts_at, places, space, boot, known,
                                           loose):
        if not state.taken(file_map):
            state.accept(container, file_map, deleted=state.deleted_at(file_map), host=None)


def without_copies(items: list[Assembled]) -> list[Assembled]:
    """The items, of each text that only names other files the host's, or the first: older copies of a tree's blocks, in
    which hosts keep small files, have it too."""
    def says(item: Assembled) -> tuple[object, ...] | None:
        c = item.container
        bare = c.members and not any((g.map.state == DATA).any() for g in c.guests)
        return (c.format, *c.identities, *c.members) if bare else None

    of_hosts = {says(i) for i in items if i.host is not None}
    out: list[Assembled] = []
    seen: set[tuple[object, ...]] = set()
    for item in items:
        text = says(item)
        if text is None or item.host is not None or (text not in of_hosts and text not in seen):
            out.append(item)
        if text is not None:
            seen.add(text)
    return out


def _names(state: State) -> set[str]:
    """The names of the volumes and partition tables of all disks that were found."""
    return {name for item in state.done for g in item.container.guests[:1]
            for name in names_of(VirtualDisk(item.view(state.image), g.map))}


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


