"""Checksums that a guest keeps of its data: each sector is known again wherever it lies.

Btrfs has a CRC-32C for every sector of data. A sector of the image that has a wanted one is, but for a chance of its
number of sectors in 2^32, equal to the one that is looked for. Equal sectors (in logs, databases, copies) have equal
checksums: of those the neighbours tell which is which, and what has too many is not looked for.
Memory: 16 bytes a sector of the guests' data, and 16 for each that is found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from ...checksums import crc32c, crc32c_rows
from ...filemap import FileMap
from ...model import MISSING, Reader
from ...registry import hosts
from ..asked import asked
from ..tails import to_file
from .want import BLOCK, Guest, Int64s, Kept, Told

U32s = npt.NDArray[np.uint32]
CRC_BITS = 32.0
MAX_RIVALS = 60  # ours: sectors of one checksum, in a guest or in the image, beyond which it says nothing
MAX_PHASES = 8  # ours: places in a block at which sectors of the containers begin
RULE = "checksum"  # of what is not given out because the guest's own checksum speaks against it


@dataclass(frozen=True, slots=True)
class Stated:
    """What a guest states of its container's file: sectors at file_offset int64[n], rising, with crc uint32[n].

    current bool[n]: False where the guest stated it once, of what is free now: that bears witness for what agrees, but
    against nothing.
    """

    sector: int
    file_offset: Int64s
    crc: U32s
    current: npt.NDArray[np.bool_]

    @classmethod
    def nothing(cls) -> Stated:
        return cls(BLOCK, np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.bool_))

    def only(self, keep: npt.NDArray[np.bool_] | Int64s | slice) -> Stated:
        """Some of the sectors."""
        return Stated(self.sector, self.file_offset[keep], self.crc[keep], self.current[keep])

    def __len__(self) -> int:
        return len(self.file_offset)

    def between(self, low: int, high: int) -> Stated:
        """The sectors that lie wholly in file bytes [low, high)."""
        a, b = np.searchsorted(self.file_offset, [low, high - self.sector + 1])
        return self.only(slice(a, max(a, b)))

    def differ(self, data: npt.NDArray[np.uint8], low: int) -> npt.NDArray[np.bool_]:
        """bool[n]: which sectors are not what `data` (the file's bytes from `low` on) holds for them."""
        at = self.file_offset - low
        rows = data[at[:, None] + np.arange(self.sector)] if len(at) else np.empty((0, self.sector), np.uint8)
        return (crc32c_rows(rows) != self.crc) & self.current


@dataclass(slots=True)
class Sums:
    """Mechanism: see the package."""

    stated: list[Stated] = field(default_factory=list[Stated])
    _kept: Kept[Stated] = field(default_factory=Kept[Stated])
    _starts: list[int] = field(default_factory=list[int])
    _wanted: list[Stated] = field(default_factory=list[Stated])  # without what has too many rivals
    _keys: U32s = field(default_factory=lambda: np.empty(0, np.uint32))
    _looks: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # place in a block, sector
    _found: list[tuple[Int64s, U32s]] = field(default_factory=list[tuple[Int64s, U32s]])  # image offsets, checksums

    def want(self, guests: list[Guest]) -> bool:
        stated = [self._kept.of(k, g, _stated) for k, g in enumerate(guests)]
        same = len(stated) == len(self.stated) and all(
            a is b or np.array_equal(a.file_offset, b.file_offset) and np.array_equal(a.crc, b.crc)
            for a, b in zip(stated, self.stated, strict=True))
        if same:
            return False
        self.stated, self._starts = stated, [g.start for g in guests]
        self._wanted = [_telling(s) for s in stated]
        self._keys = np.unique(np.concatenate([s.crc for s in self._wanted]))
        looks = {(int(phase), s.sector) for s, start in zip(self._wanted, self._starts, strict=True)
                 for phase in np.unique((s.file_offset + start) % BLOCK)[:MAX_PHASES]}
        self._looks = sorted(looks)[:MAX_PHASES]
        self._found = []
        return len(self._keys) > 0

    def see(self, data: npt.NDArray[np.uint8], at: int, length: int) -> None:
        for phase, sector in self._looks:
            first = (phase - at) % BLOCK
            begins = np.arange(first, min(length, len(data) - sector + 1), BLOCK, dtype=np.int64)
            if not len(begins):
                continue
            step = np.lib.stride_tricks.as_strided(data[first:], (len(begins), sector), (BLOCK, 1))
            crc = crc32c_rows(np.ascontiguousarray(step))
            i = np.minimum(np.searchsorted(self._keys, crc), len(self._keys) - 1)
            hit = self._keys[i] == crc
            self._found.append((begins[hit] + at, crc[hit]))

    def points(self, number: int) -> Told:
        wanted = self._wanted[number] if number < len(self._wanted) else Stated.nothing()
        if not len(wanted) or not self._found:
            return Told.nothing()
        image_offset = np.concatenate([p for p, _ in self._found])
        crc = np.concatenate([c for _, c in self._found])
        order = np.argsort(crc, kind="stable")
        image_offset, crc = image_offset[order], crc[order]
        low, high = np.searchsorted(crc, wanted.crc), np.searchsorted(crc, wanted.crc, side="right")
        count = high - low
        tells = count <= MAX_RIVALS
        count = np.where(tells, count, 0)
        which = np.repeat(np.arange(len(wanted)), count)
        first = np.cumsum(count) - count
        index = np.arange(len(which)) - np.repeat(first, count) + np.repeat(low, count)
        _, inverse, copies = np.unique(wanted.crc, return_inverse=True, return_counts=True)
        rivals = count * copies[inverse]
        f, p = wanted.file_offset[which], image_offset[index]
        step = p - f - self._starts[number]
        whole = step % BLOCK == 0
        return Told(f[whole] // BLOCK, step[whole] // BLOCK, (CRC_BITS - np.log2(rivals[which]))[whole],
                    np.unique(wanted.file_offset[tells & wanted.current] // BLOCK))


def _stated(guest: Guest) -> Stated:
    parts: list[Stated] = []
    for offset, size in guest.volumes:
        for kind in hosts().values():
            found = None if kind.sums is None else asked(partial(kind.sums, guest.disk, offset, size), None)
            if found is None or not len(found.crc):
                continue
            g = offset + found.volume_offset
            f, last = to_file(guest.disk.map, g), to_file(guest.disk.map, g + found.sector - 1)
            keep = (f >= 0) & (last - f == found.sector - 1) & (found.crc != crc32c(bytes(found.sector)))
            parts.append(Stated(found.sector, f[keep], found.crc[keep], found.current[keep]))
            break
    parts = [p for p in parts if p.sector == parts[0].sector]
    if not parts:
        return Stated.nothing()
    f, first = np.unique(np.concatenate([p.file_offset for p in parts]), return_index=True)
    crc, current = np.concatenate([p.crc for p in parts]), np.concatenate([p.current for p in parts])
    return Stated(parts[0].sector, f, crc[first], current[first])


def _telling(stated: Stated) -> Stated:
    """Without the checksums that too many sectors of the guest have."""
    _, inverse, copies = np.unique(stated.crc, return_inverse=True, return_counts=True)
    return stated.only(copies[inverse] <= MAX_RIVALS)


def without_wrong(image: Reader, file_map: FileMap, stated: Stated) -> FileMap:
    """The map without the sectors whose stated checksum is not that of the image's bytes: those are missing."""
    if not len(stated):
        return file_map
    out: list[tuple[int, int, int, str, str]] = []
    step = 4 << 20
    for f, n, p, grade, rule in file_map.rows():
        if p < 0:
            out.append((f, n, p, grade, rule))
            continue
        at = f
        for low in range(f, f + n, step):
            high = min(low + step, f + n)
            part = stated.between(low, high)
            data = np.frombuffer(image.read(p + low - f, high - low).ljust(high - low, b"\0"), np.uint8)
            for wrong in part.file_offset[part.differ(data, low)].tolist():
                out += [(at, wrong - at, p + at - f, grade, rule), (wrong, stated.sector, -1, MISSING, RULE)]
                at = wrong + stated.sector
        out.append((at, f + n - at, p + at - f, grade, rule))
    return FileMap.build(r for r in out if r[1] > 0)
