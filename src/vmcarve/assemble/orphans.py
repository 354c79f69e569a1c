"""Containers whose header is lost and whose tables have no magic: shapes, guest structures, and a new header.

Space that nothing else explains is looked through for pieces of allocation tables (`Format.shapes`). Such a piece says
which unit of a guest lies where in its file, but neither which file, nor where that begins. A guest structure that
states its own place says the rest: it lies at p in the image and at g on its disk, the piece names a place f for g, so
the file would begin at p - f. Where several structures agree on one begin, it is believed, and the format writes what
is lost (`Format.rebuild`).

Of these only containers in one piece are put together here; `find` and `Found.votes` are what a solver needs for more.
Streams without header and tables tie their pieces by what decodes across a break (`Format.loose`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ext.first_words import first_words
from ..disk import VirtualDisk
from ..filemap import FileMap, FileView
from ..model import DATA, PLAIN, Clue, Format, GuestMap, Orphan, Reader, TablePieces, Volume
from ..registry import formats
from ..verify.guest import describe
from .places import USUAL_STARTS, Places, allocated_space, common, stated_tables, used_space
from .state import Claims, common_runs
from .streams import look
from .tails import open_volumes
from .window import read_into, steps

BLOCK = 4096
READ = 4 << 20
PART = 64 << 20  # bytes that a thread looks through before the next part
LOOKERS = max(1, min(4, os.cpu_count() or 1))  # threads: reads and kernels let go of the interpreter's lock
MAX_PIECES = 1 << 16  # ours: of one kind and unit in an image
MAX_PINS = 1024  # ours
MAX_VOTES = 1 << 22  # ours: pins times pieces
MAX_CANDIDATES = 48  # ours: begins of files that are tried, of one kind and unit
MAX_BEFORE = 64 << 20  # ours: bytes of a container that may lie before the image's begin
MOST = 0.5  # share of a volume's used space that its container must store
LEAST = 2  # guest units that must agree on where a file begins

Int64s = npt.NDArray[np.int64]
Rows = tuple[int, npt.NDArray[np.int32], npt.NDArray[np.uint16], Int64s]
"""Of a batch of pieces how many there are, and by row the piece, the entry and the place."""


@dataclass(frozen=True, slots=True)
class Named:
    """What the entries of pieces name, entry by entry: most name nothing, and an image can be full of pieces.

    pieces: how many. first int64[k + 1]: entry e has the rows from first[e] up to first[e + 1]. piece int32, rising
    within an entry; place int64: where the unit that it names lies, from the container's origin.
    """

    pieces: int
    first: Int64s
    piece: npt.NDArray[np.int32]
    place: Int64s

    @classmethod
    def of(cls, parts: list[Rows], width: int) -> Named:
        """parts: of batches that follow each other."""
        before = np.cumsum([0, *(count for count, *_ in parts)])
        piece = np.concatenate([p + start for (_, p, _, _), start in zip(parts, before.tolist(), strict=False)])
        entry = np.concatenate([e for _, _, e, _ in parts])
        some = np.flatnonzero(piece < MAX_PIECES)
        order = some[np.argsort(entry[some], kind="stable")]
        first = np.searchsorted(entry[order], np.arange(width + 1))
        place = np.concatenate([at for _, _, _, at in parts])[order]
        return cls(min(int(before[-1]), MAX_PIECES), first, piece[order].astype(np.int32), place)

    def told(self, entry: int) -> tuple[npt.NDArray[np.int32], Int64s]:
        """The pieces in which that entry names something, rising, and what."""
        rows = slice(int(self.first[entry]), int(self.first[entry + 1]))
        return self.piece[rows], self.place[rows]

    def column(self, entry: int) -> Int64s:
        """int64[pieces]: what that entry of each names, -1 nothing."""
        out = np.full(self.pieces, -1, np.int64)
        piece, place = self.told(entry)
        out[piece] = place
        return out


@dataclass(frozen=True, slots=True)
class Found:
    """Pieces of one format's tables, of one kind and unit, over the whole image. What they name is in `names` alone."""

    format: Format
    pieces: TablePieces
    names: Named

    def votes(self, pins: Int64s) -> tuple[Int64s, Int64s]:
        """Where files would begin (image offsets), and how many guest units say so; most first.

        pins int64[n, 2]: image offset and guest offset of one byte each.
        """
        pins = pins[:: 1 + len(pins) * len(self.pieces.own) // MAX_VOTES]
        by_unit: dict[int, list[Int64s]] = {}
        for p, g in pins.tolist():
            at = self.named(g)
            by_unit.setdefault(g // self.pieces.unit, []).append(p - at[at >= 0])
        stated = self.pieces.own >= 0
        told = [np.unique(self.pieces.image_offset[stated] - self.pieces.own[stated])] * LEAST
        told += [np.unique(np.concatenate(of_unit)) for of_unit in by_unit.values()]
        origin, count = np.unique(np.concatenate(told), return_counts=True)
        order = np.argsort(-count, kind="stable")
        return origin[order], count[order]

    def stating(self, origin: int) -> Int64s:
        """Image offsets of the pieces that state this origin by themselves."""
        p = self.pieces
        return p.image_offset[(p.own >= 0) & (p.image_offset - p.own == origin)]

    def inside(self, origin: int, orphans: list[Orphan]) -> bool:
        """Whether pieces that state this origin all lie in containers that were put together already."""
        at = self.stating(origin).tolist()
        return bool(at) and all(any(p <= a < p + n for o in orphans for _, p, n in o.runs.tolist()) for a in at)

    def named(self, g: int) -> Int64s:
        """int64[m]: where each piece would have the guest byte `g`, from its origin; -1 where it names none."""
        unit = self.pieces.unit
        at = self.names.column(int(self._column(g)))
        return np.where(at >= 0, at + g % unit, -1)

    def _column(self, g: Any) -> Any:
        """The entry of a piece that tells of a guest byte (or of each of int64[n])."""
        return (g // self.pieces.unit - self.pieces.phase) % (len(self.names.first) - 1)

    def agreeing(self, origins: Int64s, pins: Int64s) -> list[tuple[Int64s, Int64s]]:
        """(pins, pieces) of each origin, by their numbers: where a piece names the place of a pin, if the file begins
        there. Pins rise."""
        if not len(origins):
            return []
        order = np.argsort(origins, kind="stable")
        rising = origins[order]
        rows: list[tuple[Int64s, Int64s, Int64s]] = []
        for j, (p, g) in enumerate(pins.tolist()):
            pieces, place = self.names.told(int(self._column(g)))
            origin = p - place - g % self.pieces.unit
            i = np.minimum(np.searchsorted(rising, origin), len(rising) - 1)
            same = np.flatnonzero(rising[i] == origin)
            rows.append((order[i[same]], np.full(len(same), j), pieces[same].astype(np.int64)))
        if not rows:
            return [(np.empty(0, np.int64), np.empty(0, np.int64)) for _ in origins]
        origin, pin, piece = (np.concatenate([row[column] for row in rows]) for column in range(3))
        return [(pin[origin == k], piece[origin == k]) for k in range(len(origins))]

    def first(self, pins: Int64s, agreeing: tuple[Int64s, Int64s]) -> Int64s:
        """int64[m]: the unit number of each piece's first entry, where the pins prove it under an origin, else -1."""
        out = np.full(len(self.pieces.image_offset), -1, np.int64)
        pin, piece = agreeing
        g = pins[pin, 1]
        out[piece] = g // self.pieces.unit - self._column(g)
        return out


def find(image: Reader, space: Int64s, tables: Int64s | None = None) -> list[Found]:
    """Pieces of tables in `space` int64[n, 2] (offset, length, rising) of the image. Threads look, a part each.

    tables int64[k, 2]: runs of blocks outside which a sweep found none, where one looked.
    """
    if tables is not None:
        space = common_runs(space, tables)
    parts: dict[tuple[str, str, int, int, int], list[tuple[TablePieces, Rows]]] = {}
    with ThreadPoolExecutor(LOOKERS, thread_name_prefix="shapes") as pool:
        for found in pool.map(lambda part: list(_pieces(image, part)), _shared_out(space)):
            for name, p, names in found:
                parts.setdefault((name, p.kind, p.unit, p.place.shape[1], p.phase), []).append((p, names))
    out: list[Found] = []
    for (name, kind, unit, width, phase), same in sorted(parts.items(), key=lambda part: part[0]):
        at, own = (np.concatenate([getattr(p, c) for p, _ in same])[:MAX_PIECES] for c in ("image_offset", "own"))
        bare = TablePieces(kind, unit, at, np.empty((0, width), np.int64), own, phase)
        out.append(Found(formats()[name], bare, Named.of([names for _, names in same], width)))
    return out


def _shared_out(space: Int64s) -> list[Int64s]:
    """The space in parts of about PART bytes, each int64[k, 2], rising."""
    out: list[list[tuple[int, int]]] = [[]]
    room = PART
    for start, length in space.tolist():
        at, end = start, start + length
        while at < end:
            # cut where blocks begin: what lies across a cut would be in neither part
            upto = min(end, (at + room) // BLOCK * BLOCK)
            out[-1].append((at, upto - at))
            room -= upto - at
            at = upto
            if room < BLOCK:
                out.append([])
                room = PART
    return [np.array(part, np.int64) for part in out if part]


def _pieces(image: Reader, space: Int64s) -> Iterator[tuple[str, TablePieces, Rows]]:
    """(format, pieces of its tables, what they name) of a part of the space."""
    for blocks, where in _blocks(image, space):
        for fmt in formats().values():
            for p in fmt.shapes(blocks, where) if fmt.shapes is not None else ():
                if len(p.image_offset):
                    row, entry = np.nonzero(p.place >= 0)
                    names = len(p.place), row.astype(np.int32), entry.astype(np.uint16), p.place[row, entry]
                    yield fmt.name, replace(p, place=np.empty((0, p.place.shape[1]), np.int64)), names


def _blocks(image: Reader, space: Int64s) -> Iterator[tuple[npt.NDArray[np.uint8], Int64s]]:
    """Blocks of the space that hold something: uint8[n, 4096] and their image offsets; short runs go together.

    They are the caller's until the next are asked for.
    """
    buffer = np.empty((READ // BLOCK, BLOCK), np.uint8)
    places: list[Int64s] = []
    filled = 0
    for start, length in space.tolist():
        end = start + length
        for at in steps(image, -(-start // BLOCK) * BLOCK, end - BLOCK + 1, READ):
            n = min(READ, end - at) // BLOCK
            if filled + n > len(buffer):
                yield buffer[:filled], np.concatenate(places)
                places, filled = [], 0
            room = buffer[filled : filled + n]
            n = read_into(image, at, room.reshape(-1)) // BLOCK
            index, word = np.empty(n, np.uint16), np.empty(n, np.uint64)
            first_words(room[:n].reshape(-1), index, word)
            full = np.flatnonzero(word)
            if len(full) < n:
                room[: len(full)] = room[full]
            places.append(at + full * BLOCK)
            filled += len(full)
    if filled:
        yield buffer[:filled], np.concatenate(places)


def pins_of(image: Reader, places: Places) -> tuple[Int64s, Int64s]:
    """Guest structures that state their place: pins int64[n, 2] (image offset, guest offset), and bytes of the disk
    that each of them tells of (0 none).

    A file system states places in its volume; where volumes begin, the partition tables of the same image say, or the
    usual places stand in.
    """
    direct = np.flatnonzero(places.guest_offset >= 0)
    rows = [(int(places.image_offset[i]), int(places.guest_offset[i]), int(places.value[i])) for i in direct.tolist()]
    starts = {offset for _, parts in stated_tables(image, places) for offset, _ in parts}
    inside = np.flatnonzero((places.guest_offset < 0) & (places.volume_offset >= 0))
    for i in inside[:: max(1, len(inside) // MAX_PINS)].tolist():
        rows += [(int(places.image_offset[i]), int(places.volume_offset[i]) + start, 0)
                 for start in sorted(starts or USUAL_STARTS)]
    table = np.array(rows[: 4 * MAX_PINS], np.int64).reshape(-1, 3)
    return table[:, :2], np.maximum(table[:, 2], 0)


def rebuilt(image: Reader, places: Places, claims: Claims, free: Int64s | None, size: int = 0,
            tables: Int64s | None = None) -> Iterator[Orphan]:
    """Containers that are put together from table shapes, outside `claims`; the caller claims each one.

    free: the host's free runs int64[n, 2], or None. size: bytes that a disk may have of which nothing in place tells.
    tables: see `find`.
    """
    pins, sizes = pins_of(image, places)
    space = claims.free_of(np.array([[0, image.size]], np.int64) if free is None or not len(free) else free)
    outside = np.array([not claims.holds(int(p)) for p, _ in pins], bool)
    pins, sizes = pins[outside], sizes[outside]
    for found in find(image, space, tables):
        if found.format.loose is not None and not len(found.names.place):
            # pieces that name nothing begin streams, whose units may lie in several parts
            marks = look(image, space, found.format, 0)
            yield from (Orphan(g.container, g.pins, f"{found.format.name}.units")
                        for g in found.format.loose(image, marks) if g.container is not None)
        if found.format.rebuild is None:
            continue
        origins, _ = found.votes(pins)
        origins = origins[(origins > -MAX_BEFORE) & (origins < image.size)]
        best: list[tuple[int, Orphan]] = []
        origins = origins[:MAX_CANDIDATES]
        for origin, agreeing in zip(origins.tolist(), found.agreeing(origins, pins), strict=True):
            if found.inside(origin, [orphan for _, orphan in best]):
                continue
            told = _disk_size(sizes, agreeing[0])
            first = found.first(pins, agreeing)
            made = [found.format.rebuild(image, Clue(origin, k, found.pieces, first))
                    for k in dict.fromkeys([told or size, told])]
            # tables that name nothing agree with any zeros
            orphan = max((o for o in made if o is not None and o.container.holds_data), key=_stored, default=None)
            if orphan is not None:
                stated = len(found.stating(origin)) > 0
                best.append((_agreeing(image, orphan, pins, stated), orphan))
        for count, orphan in sorted(best, key=lambda b: -b[0]):
            if count >= LEAST and not any(claims.overlap(p, p + n) for _, p, n in orphan.runs.tolist()):
                yield orphan


def _stored(orphan: Orphan) -> int:
    """Guest bytes that lie in the container."""
    m = orphan.container.guests[0].map
    return int(m.length[m.state == DATA].sum())


def _disk_size(sizes: Int64s, agreeing: Int64s) -> int:
    """Bytes of the disk as its own partition table says, when that lies where the pieces have it; 0 unknown.

    agreeing: the pins that lie so, rising.
    """
    told = sizes[agreeing]
    if told.any():
        return int(told[told > 0][0])
    return int(sizes.max(initial=0)) if np.count_nonzero(np.unique(sizes)) == 1 else 0


def _agreeing(image: Reader, orphan: Orphan, pins: Int64s, stated: bool) -> int:
    """How many guest structures lie where the container has them, in different units.

    Units that follow each other on the disk and in the file count once: any table that rises agrees with them. A guest
    that agrees with itself counts for several, unless much of what it uses has no place in the file; so do, where a
    table stated its own place, tables that hold.
    """
    guest = orphan.container.guests[0].map
    units: set[int] = set()
    for p, g in pins.tolist():
        f = _file_offset(guest, g)
        if f >= 0 and any(low <= f < low + n and f - low + at == p for low, at, n in orphan.runs.tolist()):
            units.add(g - f)
    disk = VirtualDisk(FileView(image, FileMap.from_runs(orphan.runs, orphan.container.size, orphan.evidence),
                                [(x.file_offset, x.data) for x in orphan.container.patches]), guest)
    failed = [c for c in orphan.container.checks if c.grave and not c.ok]
    # a partition table agrees with itself wherever its volumes lie
    sound = units and any(_holds(disk, v) for v in describe(disk) if not v.partitions)
    sound = sound or stated and len(failed) <= 1  # the header is ours
    return len(units) + (LEAST if sound else 0)


def _holds(disk: VirtualDisk, volume: Volume) -> bool:
    """Whether a volume agrees with itself, and its maps, where we can read its kind, with what is allocated."""
    if not volume.consistent:
        return False
    used = used_space(disk, volume.offset)
    if used is None:
        return not open_volumes(disk, [(volume.offset, volume.size)])
    there = allocated_space(disk.map, volume.offset, volume.size)
    return common(used, there) >= MOST * int(used[:, 1].sum())


def _file_offset(guest: GuestMap, g: int) -> int:
    i = int(np.searchsorted(guest.guest_offset, g, "right")) - 1
    inside = g - int(guest.guest_offset[i]) if i >= 0 else -1
    if not 0 <= inside < int(guest.length[i]) or guest.state[i] != DATA or guest.encoding[i] != PLAIN:
        return -1
    return int(guest.file_offset[i]) + inside
