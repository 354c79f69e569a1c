"""A round of the solver for a container whose tables are lost: its units are laid as wholes, in the likeliest order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..disk import VirtualDisk
from ..filemap import FileMap, FileView
from ..model import GUESSED, MISSING, SECTOR, Reader
from ..registry import hosts
from .align import COSTS, FREE, UNKNOWN, USED
from .breaks import Expectation
from .candidate import Candidate
from .host_units import Unit
from .places import free_space
from .segments import BLOCK, Points
from .unit_ends import OpenEnds, Shown
from .unit_grid import Grid, cells
from .unit_joins import Borders, Zeros, joined
from .unit_order import NEVER, order_units

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

COUNTED = 16  # blocks of a unit whose use counts: they are not independent
# nats for a copy leaving a unit out, by its use: what is used can be empty (journals, tables of inodes)
LEFT_OUT = {USED: -2.8, UNKNOWN: 0.0, FREE: 0.85}
KEPT = 0.9  # share of what spoke for the places of a round that a later one may not lose
RULE = "units"
BEGIN = "volume-begin"  # not the disk's own: from a copy
STEP = 4 << 20
MOST_WRONG = 0.02  # share of what the files of a volume take that its map may have free
LEAST_ALONE = 20.0  # nats that speak for a unit's place whatever the others do: a structure that states its place
LEAST_SHARED = 0.5  # share of the bytes of two states of a block of metadata that are the same
LOGGED = 1 << 10  # bytes of the smallest block of a log
UNTOLD, NO_UNIT = -1, -2


@dataclass(frozen=True, slots=True)
class Open:
    """Units whose place no table tells, and the places that are left for them; beside both the units that are told next
    to them, which hold the order.

    units, places int64, rising: their numbers. told int64: of each of `units` the index in `places`, or -1.
    """

    units: Int64s
    places: Int64s
    told: Int64s

    @classmethod
    def parts(cls, told: Int64s, count: int) -> list[Open]:
        """What can be laid each for itself: where all that is told rises, what lies between two units that are.

        told int64[n]: the place of each unit, UNTOLD, or NO_UNIT: one that is none. count: of places.
        """
        unit = np.flatnonzero((told != NO_UNIT) & (told < count))
        place = told[unit]
        kept = np.flatnonzero(place >= 0)
        if not (np.diff(place[kept]) > 0).all():
            return [cls._all(unit, place, count)]
        edge = np.concatenate(([-1], kept, [len(unit)]))
        bound = np.concatenate(([-1], place[kept], [count]))
        out: list[Open] = []
        for k in np.flatnonzero((np.diff(edge) > 1) & (np.diff(bound) > 1)).tolist():
            first, last = max(int(edge[k]), 0), min(int(edge[k + 1]), len(unit) - 1)
            low, high = max(int(bound[k]), 0), min(int(bound[k + 1]), count - 1)
            mine = place[first : last + 1]
            out.append(cls(unit[first : last + 1], np.arange(low, high + 1), np.where(mine >= 0, mine - low, -1)))
        return out

    @classmethod
    def _all(cls, unit: Int64s, place: Int64s, count: int) -> Open:
        untold = place < 0
        beside = np.append(untold[1:], False) | np.append(False, untold[:-1])
        some = np.flatnonzero(untold | beside)
        left = np.ones(count, np.bool_)
        left[place[~untold]] = False
        mine = place[some]
        left[mine[mine >= 0]] = True
        places = np.flatnonzero(left)
        return cls(unit[some], places, np.where(mine >= 0, np.searchsorted(places, np.maximum(mine, 0)), -1))

    @property
    def cells(self) -> int:
        return len(self.units) * len(self.places)

    @property
    def untold(self) -> npt.NDArray[np.bool_]:
        return self.told < 0

    def only(self, units: npt.NDArray[np.bool_], places: npt.NDArray[np.bool_]) -> Open:
        """The part with some of its units and places; no place of a unit that is told goes."""
        number = np.cumsum(places) - 1
        told = self.told[units]
        return Open(self.units[units], self.places[places], np.where(told >= 0, number[np.maximum(told, 0)], -1))

    def hold(self, weight: Floats) -> None:
        """Leaves the units that are told, and their places, nothing else."""
        fixed = np.flatnonzero(self.told >= 0)
        weight[fixed] = NEVER
        weight[:, self.told[fixed]] = NEVER
        weight[fixed, self.told[fixed]] = 0.0


@dataclass(slots=True)
class UnitRound:
    """A round of the solver in which whole units are laid: one candidate, whose image is its units in file order."""

    unit: int
    count: int  # of them; what is behind them in the image begins volumes, or is metadata of theirs
    begins: Int64s  # int64[k, 3], rising: byte of the guest, of the image, length of what begins volumes
    parts: Int64s  # int64[k, 3]: and of what stands for metadata that is lost
    told: Int64s = field(default_factory=lambda: np.empty(0, np.int64))  # see Open; empty: nothing is told
    full: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    known: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    links: Int64s | None = None  # see model.Stowed
    joined: Floats | None = None  # see order_units
    borders: tuple[bytes, Borders] | None = None  # of the units with these numbers
    in_phase: float = 0.0  # share of the points that lie at one place in both units
    copies: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))  # in logs, of other blocks
    filled: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))  # see _blocks
    shown: Shown | None = None  # what looks like ends in the units, where it was asked for
    sure: float = 0.0  # nats that speak for the places of the last round
    spoken: int = 0  # units of it for whose place something speaks, beside the order
    alone: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))  # units: LEAST_ALONE speaks so
    best: tuple[float, int, npt.NDArray[np.bool_], float, FileMap] | None = None  # of the round for which most spoke

    @property
    def grid(self) -> Grid:
        """How the units lie in the candidate's image."""
        return Grid(self.unit, self.count)

    def __call__(self, image: Reader, c: Candidate, points: Points, _: Expectation
                 ) -> list[tuple[int, int, int, int]]:
        """Sets the candidate's map; returns its runs: (0, first block, last block, delta in blocks)."""
        grid = self.grid
        per = self.unit // grid.step
        n, m = self.count, -(-c.container.size // self.unit)
        if not len(self.full):
            self.full, self.known, self.copies, self.filled = _blocks(image, grid.size // BLOCK)
            if grid.rows > 1:
                self.full, self.known, self.filled = cells(image, grid)
        if self.joined is None:
            self.joined = joined(image, grid)
        self.in_phase = in_phase(points, c.start // BLOCK, grid, self.copies)
        blocks = -(-m * self.unit // BLOCK)
        use = np.repeat(used(image, c, blocks), BLOCK // grid.step)[: m * per]
        place = np.maximum(self.told, -1) if len(self.told) else np.full(n, -1, np.int64)
        self.sure, self.spoken, self.alone = 0.0, 0, np.zeros(n, np.bool_)
        for part in Open.parts(self.told if len(self.told) else np.full(n, UNTOLD), m):
            told = spoken(points, c.start // BLOCK, grid, part, self.copies)
            self._lay(image, part, place, told, use.reshape(m, per), c.open_ends)
        rows = self.rows(place, c.container.size)
        last = c.container.size // BLOCK * BLOCK
        runs = [(0, -(-f // BLOCK), ((f + length) // BLOCK if f + length <= last else -(-(f + length) // BLOCK)) - 1,
                 (p - f - c.start) // BLOCK) for f, length, p, *_ in rows if p >= 0]
        c.map = FileMap.build(rows).resized(c.container.size)
        if self.best is None or self.sure > self.best[0]:
            self.best = self.sure, self.spoken, self.alone, self.in_phase, self.with_begins(image, c.map)
        if grid.rows == 1:
            c.unit = Unit(per, by_order=True)  # what nothing places by itself is looked at by what lies around it
        c.sure = np.array([(first, last + 1, delta) for _, first, last, delta in runs], np.int64).reshape(-1, 3)
        return runs

    def _lay(self, image: Reader, part: Open, place: Int64s, told: Floats, use: npt.NDArray[np.uint8],
             ends: OpenEnds) -> None:
        """Sets the places of the units of a part."""
        part, told = self._lay_filled(part, place, told)
        if not len(part.units) or not len(part.places):
            return
        n, per = self.count, self.unit // self.grid.step
        full, known = (_shaped(blocks, n, per)[part.units] for blocks in (self.full, self.known))
        weight = told + fitting(use[part.places], full, known)
        if len(ends.at):
            self.shown = self.shown or Shown.of(image, self.grid)
            by_ends = self.shown.fitting(ends, part.units, part.places) if self.shown is not None else None
            weight += by_ends if by_ends is not None else 0.0
        part.hold(weight)
        follow = np.diff(part.units) == 1
        goes_on = np.where(follow, self.joined[part.units[:-1]], 0.0) if self.joined is not None else None
        order = order_units(weight, left_out(use)[part.places], goes_on, np.diff(part.places) == 1,
                            lambda: self._borders(image, part.units, full, known), part.units)
        placed = np.flatnonzero((order.place >= 0) & part.untold)
        speaks = told[placed, order.place[placed]]
        self.sure += float(speaks.sum())
        self.spoken += int(np.count_nonzero(speaks))
        self.alone[part.units[placed[speaks >= LEAST_ALONE]]] = True
        place[part.units[placed]] = part.places[order.place[placed]]

    def _borders(self, image: Reader, units: Int64s, full: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]
                 ) -> Borders:
        """What speaks for each of the units being the next behind each; asked once, for no round changes it."""
        key = units.tobytes()
        if self.borders is None or self.borders[0] != key:
            links = np.full((self.count, 2), -2) if self.links is None else self.links
            self.borders = key, Borders.of(image, self.grid, units, Zeros.of(full, known), links)
        return self.borders[1]

    def _lay_filled(self, part: Open, place: Int64s, told: Floats) -> tuple[Open, Floats]:
        """Sets the places of units that hold one byte over and over, where something says that this lies there; returns
        the rest of the part.

        They are all alike: which of them is which says nothing of the order of the others.
        """
        per = self.unit // self.grid.step
        byte = _shaped(self.filled, self.count, per)[part.units]
        alike = (byte[:, 0] > 0) & (byte == byte[:, :1]).all(axis=1) & part.untold & (told.max(axis=1) >= LEAST_ALONE)
        row = np.flatnonzero(alike)
        column, first = np.unique(told[row].argmax(axis=1), return_index=True)
        row = row[first]
        if not len(row):
            return part, told
        place[part.units[row]] = part.places[column]
        self.alone[part.units[row]] = True
        units, places = np.ones(len(part.units), np.bool_), np.ones(len(part.places), np.bool_)
        units[row], places[column] = False, False
        return part.only(units, places), told[units][:, places]

    def take_best(self, c: Candidate) -> None:
        """Takes the round for which most spoke where the last has lost much of that: what it laid has hidden what told
        of the guest before."""
        if self.best is not None and self.sure < KEPT * self.best[0]:
            self.sure, self.spoken, self.alone, self.in_phase, c.map = self.best

    def only_alone(self, file_map: FileMap) -> FileMap:
        """The map without the units that the others placed."""
        rows: list[tuple[int, int, int, str, str]] = []
        for f, n, p, grade, why in file_map.rows():
            for at in range(0, n, self.unit) if p >= 0 and why == RULE else ():
                kept = self.alone[self.grid.unit_at(p + at)]
                rows.append((f + at, min(self.unit, n - at), p + at if kept else -1, grade if kept else MISSING, why))
            if p < 0 or why != RULE:
                rows.append((f, n, p, grade, why))
        return FileMap.build(rows)

    def rows(self, place: Int64s, size: int) -> list[tuple[int, int, int, str, str]]:
        """Rows of a FileMap. place int64[n]: of each unit, below 0 none."""
        rows: list[tuple[int, int, int, str, str]] = []
        at = 0
        for i in sorted(np.flatnonzero(place >= 0).tolist(), key=lambda i: int(place[i])):
            f, p = int(place[i]) * self.unit, self.grid.at(i, int(place[i]))
            length = min(self.unit, size - f)
            rows += [(at, f - at, -1, MISSING, "not-found"), (f, length, p, GUESSED, RULE)]
            at = f + length
        return rows

    def with_begins(self, image: Reader, file_map: FileMap) -> FileMap:
        """The map with what begins volumes in its place, and with their metadata where nothing like it lies: a log has
        the newest copy of a block, and its home that or what it was before.
        """
        lost: list[tuple[int, int, int]] = []
        for guest, image_offset, length in self.parts.tolist():
            for f, n, p, *_ in file_map.cut(guest, length):
                at = image_offset + f - guest
                if p < 0 or image.missing(p, n) or not _alike(image.read(p, n), image.read(at, n)):
                    lost.append((f, at, n))
        return _laid_over(_laid_over(file_map, lost), self.begins.tolist())


def _alike(block: bytes, newer: bytes) -> bool:
    """Whether one block may be an older state of another: they share most of the bytes that are not zero."""
    a, b = np.frombuffer(block, np.uint8), np.frombuffer(newer, np.uint8)
    full = (a > 0) | (b > 0)
    return len(a) == len(b) and bool(np.count_nonzero((a == b) & full) >= LEAST_SHARED * np.count_nonzero(full))


def _laid_over(file_map: FileMap, begins: list[tuple[int, int, int]]) -> FileMap:
    """begins: (byte of the guest, of the image, length), rising."""
    rows: list[tuple[int, int, int, str, str]] = []
    at = 0
    for f, p, n in begins:
        low, high = max(f, at), min(f + n, file_map.size)
        if low < high:
            rows += [*file_map.cut(at, low - at), (low, high - low, p + low - f, GUESSED, BEGIN)]
            at = high
    return FileMap.build([*rows, *file_map.cut(at, file_map.size - at)]) if rows else file_map


class _Filled:
    """A reader whose missing bytes have all bits set; it tells whether any were read."""

    def __init__(self, inner: Reader) -> None:
        self._inner = inner
        self.met = False

    @property
    def size(self) -> int:
        return self._inner.size

    def read(self, offset: int, length: int) -> bytes:
        data = self._inner.read(offset, length)
        if not data or not self._inner.missing(offset, len(data)):
            return data
        self.met = True
        out = bytearray(data)
        for at in range(0, len(out), SECTOR):
            if self._inner.missing(offset + at, min(SECTOR, len(out) - at)):
                out[at : at + SECTOR] = b"\xff" * len(out[at : at + SECTOR])
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        return offset < 0 or offset + length > self.size  # or the volume would find what is free another way


def used(image: Reader, c: Candidate, blocks: int) -> npt.NDArray[np.uint8]:
    """uint8[blocks]: what the guest's volumes say of the use of each block of the disk; UNKNOWN where they cannot.

    Where a part of a map is missing, only that is free which would be free were it full of ones, and only that is used
    which would be used were it zeros. Where that makes no difference, the volume found another way; where files lie in
    what the map has free, it is none. Then only the files tell what is used.
    """
    out = np.full(blocks, UNKNOWN, np.uint8)
    named = np.zeros(blocks, np.bool_)
    _mark(named, 0, c.files.run[:, 2:])
    disk = VirtualDisk(FileView(image, c.map), c.container.guests[0].map)
    for o in c.owned:
        free, _ = free_space(disk, o.guest_offset, o.size) or (None, 0)
        if free is None:
            continue
        filled = _Filled(disk)
        sure, _ = free_space(filled, o.guest_offset, o.size, own=True) or (None, 0)
        first, last = -(-o.guest_offset // BLOCK), min((o.guest_offset + o.size) // BLOCK, blocks)
        part = out[first:last]
        if sure is None or filled.met and np.array_equal(free, sure):
            continue
        could, whole = np.zeros(len(part), np.bool_), np.zeros(len(part), np.bool_)
        _mark(could, first, free, outside=True)
        _mark(whole, first, sure)
        listed = named[first:last]
        if np.count_nonzero(listed & whole) > MOST_WRONG * np.count_nonzero(listed):
            continue  # what is read as the map is something else
        part[~could] = USED
        part[whole] = FREE
    out[named & (out == UNKNOWN)] = USED
    return out


def _mark(blocks: npt.NDArray[np.bool_], first: int, runs: Int64s, *, outside: bool = False) -> None:
    """Sets the blocks, counted from `first`, that lie in runs int64[n, 2] as wholes, or (outside) with any byte."""
    for start, length in runs.tolist():
        low = start // BLOCK if outside else -(-start // BLOCK)
        high = -(-(start + length) // BLOCK) if outside else (start + length) // BLOCK
        blocks[max(0, low - first) : max(0, high - first)] = True


def spoken(points: Points, start: int, grid: Grid, todo: Open, copies: npt.NDArray[np.bool_]) -> Floats:
    """float64[n, m], nats, for the units and places that are open: the points that lie at one place in both. start: see
    Candidate. copies bool[blocks of all units]: which say nothing of where they lie.

    A block that has fewer places in such a pair than on the whole image is worth the more.
    """
    weight = np.zeros((len(todo.units), len(todo.places)))
    p = points.file_block + points.delta + start
    unit, place, good = grid.pairs(p, points.file_block)
    row, there = _among(todo.units, unit)
    column, wanted = _among(todo.places, place)
    good &= there & wanted
    good[good] = ~copies[p[good]]
    block = points.file_block[good]
    most = int(points.file_block.max(initial=0)) + 1
    every = np.bincount(points.file_block, minlength=most)[block]
    here = np.bincount(block, minlength=most)[block]
    bits = np.minimum(points.bits[good], 40.0) + np.log2(every / np.maximum(here, 1)) - np.log2(grid.unit / grid.step)
    np.add.at(weight, (row[good], column[good]), np.maximum(bits, 0.0) * np.log(2.0))
    return weight


def _among(rising: Int64s, number: Int64s) -> tuple[Int64s, npt.NDArray[np.bool_]]:
    """The index of each number in `rising`, and whether it is there."""
    if not len(rising):
        return np.zeros(len(number), np.int64), np.zeros(len(number), np.bool_)
    i = np.minimum(np.searchsorted(rising, number), len(rising) - 1)
    return i, rising[i] == number


def in_phase(points: Points, start: int, grid: Grid, copies: npt.NDArray[np.bool_]) -> float:
    """The share of the points that lie at one place in both units, as in `spoken`: of units of another size few do."""
    p = points.file_block + points.delta + start
    inside = (p >= 0) & (p < len(copies))
    inside[inside] = ~copies[p[inside]]
    _, _, good = grid.pairs(p[inside], points.file_block[inside])
    return float(good.sum()) / max(1, np.count_nonzero(inside))


def fitting(use: npt.NDArray[np.uint8], full: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> Floats:
    """float64[n, m], nats: how blocks that hold something (full, known bool[n, per]) fit the use uint8[m, per]."""
    counted = min(1.0, COUNTED / use.shape[1])
    empty = (known & ~full).astype(np.float32) @ (use == USED).astype(np.float32).T
    extra = (known & full).astype(np.float32) @ (use == FREE).astype(np.float32).T
    return counted * (COSTS["zero but used"] * empty + COSTS["full but free"] * extra).astype(np.float64)


def left_out(use: npt.NDArray[np.uint8]) -> Floats:
    """float64[m], nats: what speaks for a copy from front to back leaving a unit out, as the guest uses its blocks."""
    return np.where((use == USED).any(axis=1), LEFT_OUT[USED],
                    np.where((use == FREE).all(axis=1), LEFT_OUT[FREE], LEFT_OUT[UNKNOWN]))


def _shaped(blocks: npt.NDArray[Any], n: int, per: int) -> npt.NDArray[Any]:
    out = np.zeros(n * per, blocks.dtype)
    out[: len(blocks)] = blocks[: n * per]
    return out.reshape(n, per)


def _blocks(image: Reader, count: int
            ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.uint8]]:
    """Of the first `count` blocks: whether each holds anything, whether it is there, whether a log has it, and the byte
    that it holds over and over (0: none, or zeros).
    """
    full, known, copies = np.zeros(count, np.bool_), np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    filled = np.zeros(count, np.uint8)
    logs = [kind.logged for kind in hosts().values() if kind.logged is not None]
    for at in range(0, count * BLOCK, STEP):
        data = np.frombuffer(image.read(at, min(STEP, count * BLOCK - at)), np.uint8)
        data = np.pad(data, (0, -len(data) % BLOCK))
        rows = data.reshape(-1, BLOCK)
        full[at // BLOCK :][: len(rows)] = rows.any(axis=1)
        even = np.flatnonzero((rows[:, 0] == rows[:, -1]) & (rows[:, 0] > 0))
        even = even[(rows[even] == rows[even, :1]).all(axis=1)]
        filled[at // BLOCK + even] = rows[even, 0]
        places = np.arange(0, len(data), LOGGED)
        for logged in logs:
            copies[at // BLOCK :][: len(rows)] |= logged(data, places).reshape(len(rows), -1).any(axis=1)
    for i in range(len(known)):
        known[i] = full[i] or not image.missing(i * BLOCK, BLOCK)
    return full, known, copies, filled
