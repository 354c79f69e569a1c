"""Units whose size is no multiple of a block, laid so that the solver can ask them by blocks: Parallels' 63 sectors.

Where such a unit begins on the guest's disk, counted from the begin of a block, follows from its place; there are as
many cases as sectors in a block. So the image that the solver looks at holds every unit once for each case: a row of
slots of whole blocks, in slot `unit` of row `case` it begins so far behind the slot's begin. A block of the guest that
lies in one unit then is a block of one of the rows, and which unit and place these are follows from the two numbers.
Memory: the units once (`unit_lay.MAX_CELLS` bounds them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..filemap import FileMap
from ..model import Reader
from .begins import Appended, Begun
from .places import Places
from .segments import BLOCK

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Grid:
    """unit: bytes of one; count: how many there are. Of whole blocks there is one row, in which they touch."""

    unit: int
    count: int

    @property
    def step(self) -> int:
        """Bytes by which the cases differ."""
        return math.gcd(self.unit, BLOCK)

    @property
    def rows(self) -> int:
        return BLOCK // self.step

    @property
    def slot(self) -> int:
        """Bytes of a slot."""
        return -(-(self.unit + BLOCK - self.step) // BLOCK) * BLOCK

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.count * self.slot

    def at(self, unit: int, place: int) -> int:
        """The image offset at which a unit begins as it would lie at a place of the guest."""
        case = place * self.unit % BLOCK
        return (case // self.step * self.count + unit) * self.slot + case

    def pairs(self, image_block: Int64s, guest_block: Int64s) -> tuple[Int64s, Int64s, Bools]:
        """The unit that each block of the image is of, its place were that the guest's block, and whether it can be."""
        slot, inside = np.divmod(image_block, self.slot // BLOCK)
        row, unit = np.divmod(slot, self.count)
        place, rest = np.divmod((guest_block - inside) * BLOCK + row * self.step, self.unit)
        return unit, place, (rest == 0) & (image_block >= 0) & (row < self.rows)

    def unit_at(self, image_offset: int) -> int:
        return image_offset // self.slot % self.count

    def in_row(self, file_map: FileMap) -> FileMap:
        """A map to the units as they follow each other, by one to the slots; what lies behind all slots lies behind all
        units.
        """
        if self.rows == 1:
            return file_map

        def moved(p: int) -> int:
            if p < 0 or p >= self.size:
                return p if p < 0 else p - self.size + self.count * self.unit
            case = p // self.slot // self.count * self.step
            return self.unit_at(p) * self.unit + p % self.slot - case

        return FileMap.build((f, n, moved(p), grade, why) for f, n, p, grade, why in file_map.rows())


class Slots:
    """The image of all rows. What no unit fills of a slot is missing."""

    def __init__(self, units: Reader, grid: Grid) -> None:
        self._units, self._grid = units, grid
        self._data = units.read(0, units.size)
        self.size = grid.size

    def read(self, offset: int, length: int) -> bytes:
        out = bytearray(max(0, min(length, self.size - offset))) if offset >= 0 else bytearray()
        for low, high, at in self._parts(offset, offset + len(out)):
            data = self._data[at : at + high - low]
            out[low - offset : low - offset + len(data)] = data
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        if offset < 0 or offset + length > self.size:
            return True
        parts = self._parts(offset, offset + length)
        return (sum(high - low for low, high, _ in parts) < length
                or any(self._units.missing(at, high - low) for low, high, at in parts))

    def _parts(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """(first, end, offset among the units) of the parts of units in a range."""
        g = self._grid
        out: list[tuple[int, int, int]] = []
        for slot in range(start // g.slot, -(-end // g.slot)):
            row, unit = divmod(slot, g.count)
            begin = slot * g.slot + row * g.step
            low, high = max(start, begin), min(end, begin + g.unit)
            if low < high:
                out.append((low, high, unit * g.unit + low - begin))
        return out


def in_slots(found: Begun, units: Reader, grid: Grid) -> Begun:
    """What is known of volumes where units lie in slots: of what states its place only what has one in its unit."""
    if grid.rows == 1:
        return found
    behind = grid.count * grid.unit
    shift = np.array([0, grid.size - behind, 0], np.int64)
    tail = found.reader.read(behind, max(0, found.reader.size - behind))
    reader = Appended(Slots(units, grid), grid.size, tail)
    return replace(found, reader=reader, places=_places(found, grid, behind), begins=found.begins + shift,
                   parts=found.parts + shift)


def _places(found: Begun, grid: Grid, behind: int) -> Places:
    """The places of `found`, with the slot of each unit as which it lies there."""
    places = found.places
    p, guest = places.image_offset, places.guest_offset.copy()
    for start, _ in found.table[1]:
        fits = (guest < 0) & (places.volume_offset >= 0) & ((start + places.volume_offset - p) % grid.unit == 0)
        guest[fits] = start + places.volume_offset[fits]
    made = p >= behind
    keep = np.flatnonzero(made | (guest >= 0) & ((guest - p) % grid.unit == 0))
    new = np.array([p[i] + grid.size - behind if made[i] else
                    grid.at(int(p[i]) // grid.unit, (int(guest[i]) - int(p[i]) % grid.unit) // grid.unit)
                    + int(p[i]) % grid.unit for i in keep.tolist()], np.int64)
    order = np.argsort(new, kind="stable")
    keep = keep[order]
    return Places(new[order], places.guest_offset[keep], places.volume_offset[keep], places.first[keep],
                  places.length[keep], places.value[keep], [places.module[i] for i in keep.tolist()],
                  [places.identity[i] for i in keep.tolist()])


def cells(image: Reader, grid: Grid) -> tuple[Bools, Bools, npt.NDArray[np.uint8]]:
    """Of each part of the units of `grid.step` bytes whether it holds anything, whether it is there, and the byte that
    it holds over and over (0: none, or zeros).
    """
    data = np.frombuffer(b"".join(image.read(grid.at(i, 0), grid.unit).ljust(grid.unit, b"\0")
                                  for i in range(grid.count)), np.uint8).reshape(-1, grid.step)
    full: Bools = (data != 0).max(axis=1)
    known = full.copy()
    per = grid.unit // grid.step
    for k in np.flatnonzero(~full).tolist():
        known[k] = not image.missing(grid.at(k // per, 0) + k % per * grid.step, grid.step)
    return full, known, np.where((data == data[:, :1]).all(axis=1), data[:, 0], 0).astype(np.uint8)
