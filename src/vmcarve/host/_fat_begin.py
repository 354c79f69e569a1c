"""What a FAT volume begins with of which the boot sector, its copy and both tables are lost: directories are left.

The first cluster of a directory states its own number. In units of a container each lies at some multiple of the unit
from where it lies on the disk, so directories with several numbers tell the size of a cluster, and where cluster 2 lies
within a unit. Before that lie the tables, and they are as long as the volume has clusters: a table that is longer by so
much that cluster 2 lies a whole unit later makes a larger volume. Which of these it is, the rest of the disk tells (a
partition that one of them fills, the order of the units), or that all others were much larger than what they hold.

Source: Microsoft FAT specification 1.03; mkfs.vfat 4.2 (reserved sectors, lengths of tables).
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import SECTOR, Begin, Cut, Evidence, Reader
from ._fat_boot import ENTRY
from ._fat_chains import FIRST
from ._fat_directory import DELETED, KIND, LONG_NAME, OTHER, own_numbers
from ._fat_placer import of_table

I64 = npt.NDArray[np.int64]

MIB = 1 << 20
CLUSTERS = [SECTOR << k for k in range(8)]  # FORMAT_MAX of FAT32: 64 KiB
LEAST_FAT16, LEAST_FAT32 = 4085, 65525  # clusters
MAX_CLUSTERS = 0x0FFFFFF5  # of FAT32
MAX_SECTORS = 1 << 32  # of a volume
RESERVED_SECTORS = 32  # of FAT32, as mkfs.vfat makes it
ROOT_SECTORS = 32  # of FAT16: 512 entries
ALIGNED = MIB  # Windows and fat32format reserve so many sectors that cluster 2 lies at 4 MiB or at some MiB
COPY = 6  # sector of FAT32's second boot sector
MOST_DIRECTORIES = 1 << 14  # ours: that are read
MOST_LOOKED, STEP = 1 << 30, 4 << 20  # ours: bytes that are looked through for tables, and at once
MOST_SHAPES = 1 << 12  # ours: of one kind that are tried; what is larger is not likely
MAX_STATED = 256  # ours: directories that are said to lie where they do
LEAST, AGREE, NEXT = 3, 0.9, 0.5  # directories; the share of them that must agree, and that may with another cluster
LEAST_STEPS, LEAST_BEHIND = 5, 2  # steps from unit to unit that show the disk's order; directories of one place
ORDERED_UNIT = MIB  # smaller units are mixed with the container's own blocks
# How likely each is, by itself: where volumes begin; that one is as long as some MiB; that one of n sectors is there at
# all, of all that would hold what is known, 1 / n, and filled just so far, 1 / n again; that it is as long as people
# choose, some 8 or 10 MiB, or that the disk is, with a MiB before it and perhaps one behind; that it has the clusters
# that formatters make of its size
BEFORE = {MIB: 0.85, 0: 0.10, 63 * SECTOR: 0.05}
EVEN = 0.9
ROUND, ROUND_OF_ALL = 0.8, 0.55  # of the volumes that are some MiB, and of all numbers of MiB
USUAL = 0.9
ZEROS = 0.1  # share of the MiBs in use that are left out, for files of zeros fill them: smaller units are oftener
LEAST_TABLE, TABLES_ELSEWHERE = 8, 1e-3  # sectors that tell where tables lie; how likely it is that they are of none
LEAST_SHARE = 0.75  # of all that is likely
# Up to how many MiB a volume gets clusters of how many sectors where nobody says otherwise, by bits of an entry
FORMATTED = {
    32: (((260, 1), (8 << 10, 8), (16 << 10, 16), (32 << 10, 32), (2 << 20, 64)),  # the specification, mkfs.vfat
         ((64, 1), (128, 2), (256, 4), (8 << 10, 8), (16 << 10, 16), (32 << 10, 32))),  # Windows
    16: (((16, 2), (128, 4), (256, 8), (512, 16), (1 << 10, 32), (2 << 10, 64), (4 << 10, 128)),  # the specification
         ((128, 4), (256, 8), (512, 16), (1 << 10, 32), (2 << 10, 64))),  # mkfs.vfat
}


@dataclass(frozen=True, slots=True)
class Found:
    """Directories of one volume: offset among the units and number int64[n], by offset; bytes of a cluster; where
    cluster 2 lies modulo the unit; the highest cluster that is in use."""

    at: I64
    number: I64
    cluster: int
    heap: int
    last: int

    @property
    def behind(self) -> I64:
        """Where cluster 2 would lie if the units were in their place."""
        return self.at - (self.number - FIRST) * self.cluster


@dataclass(frozen=True, slots=True)
class Shape:
    """A volume: bytes of the disk before it, bits of an entry, sectors of a cluster, before the tables, of a table."""

    before: int
    bits: int
    cluster: int
    reserved: int
    table: int

    @property
    def heap(self) -> int:
        """Sectors before cluster 2."""
        return self.reserved + 2 * self.table + (ROOT_SECTORS if self.bits == 16 else 0)

    @property
    def place(self) -> int:
        """Where cluster 2 lies on the disk."""
        return self.before + self.heap * SECTOR

    @property
    def sizes(self) -> tuple[int, int]:
        """Sectors at least and at most of a volume with tables of that length."""
        each = SECTOR * 8 // self.bits
        return (self.heap + ((self.table - 1) * each - 1) * self.cluster,
                self.heap + (self.table * each - 1) * self.cluster - 1)  # fmt: skip

    @property
    def even(self) -> int:
        """The largest of these that is some MiB, 0 where none is."""
        low, high = self.sizes
        size = high // (MIB // SECTOR) * (MIB // SECTOR)
        return size if size >= low else 0

    @property
    def size(self) -> int:
        return self.even or self.sizes[1]

    @property
    def weight(self) -> float:
        low, high = self.sizes
        chance = min(1.0, (high - low) / (MIB // SECTOR))  # of tables of any length that an even volume has them
        size = 1 - EVEN
        if self.even:
            mib = self.even * SECTOR // MIB
            is_round = any((mib + more) % step == 0 for more in range(3) for step in (8, 10))
            size += EVEN / chance * (ROUND / ROUND_OF_ALL if is_round else (1 - ROUND) / (1 - ROUND_OF_ALL))
        usual = USUAL if self.is_usual else 1 - USUAL
        return BEFORE.get(self.before, 1.0) * size * usual / float(self.size) ** 2

    @property
    def is_usual(self) -> bool:
        """Whether some formatter makes clusters of this size for a volume of that one."""
        return any(self.cluster == next((n for most, n in table if self.size * SECTOR <= most * MIB), 0)
                   for table in FORMATTED[self.bits])


def begins(reader: Reader, evidence: Sequence[Evidence], cut: Cut) -> Iterator[Begin]:
    """What a volume begins with of which directories are left, if all likely ones have its clusters at one place."""
    found = _agreeing(reader, evidence, cut.unit)
    tables = _Tables.of(reader, found, cut.unit) if found is not None else None
    shape = None if found is None else _likeliest(_shapes(found, cut), found, cut, -(-reader.size // cut.unit), tables)
    if found is None or shape is None:
        return
    heap = shape.heap * SECTOR
    some = slice(None, None, 1 + len(found.at) // MAX_STATED)
    stated = zip(found.at[some].tolist(), (heap + (found.number[some] - FIRST) * found.cluster).tolist(), strict=True)
    yield Begin(_boot(shape), shape.before, size=shape.size * SECTOR, stated=tuple(stated))


# --- what directories say ---------------------------------------------------------------------------------------------
def _agreeing(reader: Reader, evidence: Sequence[Evidence], unit: int) -> Found | None:
    """The directories that agree, where most do, and on one size of a cluster."""
    stated = ((e.image_offset + k * SECTOR, (e.value or 0) + k) for e in evidence if e.kind == KIND
              for k in range(e.count))
    at, number = np.array(sorted(itertools.islice(stated, MOST_DIRECTORIES)), np.int64).reshape(-1, 2).T
    votes: list[tuple[int, int, npt.NDArray[np.bool_]]] = []
    for cluster in CLUSTERS:
        mine = _in_step(at, number, cluster, unit)
        if mine.any():
            votes.append((len(np.unique(number[mine])), cluster, mine))  # each once: directories are copied too
    votes.sort(key=lambda vote: -vote[0])
    every = len(np.unique(number))
    if not votes or votes[0][0] < max(LEAST, AGREE * every) or len(votes) > 1 and votes[1][0] > NEXT * every:
        return None
    _, cluster, mine = votes[0]
    at, number = at[mine], number[mine]
    heap = int(at[0] - (number[0] - FIRST) * cluster) % unit
    return Found(at, number, cluster, heap, max(int(number.max()), _named(reader, at, cluster)))


def _in_step(at: I64, number: I64, cluster: int, unit: int) -> npt.NDArray[np.bool_]:
    """bool[n]: the directories that clusters of this size have where they lie: one place of cluster 2 within the units
    for all, and one place of the unit for all that lie in one.

    Without the latter any size would do that differs by whole units (64 sectors from one, in units of 63).
    """
    behind = at - (number - FIRST) * cluster
    places, each = np.unique(np.unique(np.stack((behind % unit, number), axis=1), axis=0)[:, 0], return_counts=True)
    if not len(each):
        return np.zeros(0, np.bool_)
    mine = behind % unit == places[each.argmax()]
    here = np.unique(np.stack((at // unit, behind // unit), axis=1)[mine], axis=0, return_counts=True)
    order = np.lexsort((-here[1], here[0][:, 0]))
    units, first = np.unique(here[0][order, 0], return_index=True)
    most = here[0][order, 1][first]  # how far most of each unit's lie from their place
    mine[mine] = behind[mine] // unit == most[np.searchsorted(units, at[mine] // unit)]
    return mine


def _named(reader: Reader, at: I64, cluster: int) -> int:
    """The highest cluster of the files and directories that entries in the first clusters of directories name."""
    last = 0
    for p in at.tolist():
        data = np.frombuffer(reader.read(p, cluster), np.uint8)
        entries = data[: len(data) // ENTRY * ENTRY].reshape(-1, ENTRY)[2:]
        end = np.flatnonzero(entries[:, 0] == 0)
        entries = entries[: int(end[0])] if len(end) else entries
        entries = entries[(entries[:, 0] != DELETED) & (entries[:, 11] & 0x3F != LONG_NAME)
                          & (entries[:, 11] & OTHER == 0)]
        size = np.ascontiguousarray(entries[:, 28:32]).view("<u4").reshape(-1).astype(np.int64)
        first = own_numbers(entries)
        there = first >= FIRST
        last = max(last, int((first + np.maximum(-(-size // cluster), 1) - 1)[there].max(initial=0)))
    return last


# --- which volume it is -----------------------------------------------------------------------------------------------
def _shapes(found: Found, cut: Cut) -> Iterator[Shape]:
    """All volumes that have the clusters where they lie within the units, and that many."""
    cluster = found.cluster // SECTOR
    step = cut.unit // math.gcd(cut.unit, 2 * SECTOR)
    starts = sorted({offset for offset, _ in cut.rooms}) or list(BEFORE)
    if any((found.heap - before) % min(cut.unit, ALIGNED) == 0 for before in starts):
        return  # how much is reserved nobody knows
    kinds = [(32, RESERVED_SECTORS), *((16, reserved) for reserved in sorted({1, cluster}))]
    for before, (bits, reserved) in itertools.product(starts, kinds):
        rest = (found.heap - Shape(before, bits, cluster, reserved, 0).place) % cut.unit
        rest += cut.unit if rest % (2 * SECTOR) else 0
        if rest % (2 * SECTOR):
            continue
        fewest, most = (LEAST_FAT32, MAX_CLUSTERS) if bits == 32 else (LEAST_FAT16, LEAST_FAT32 - 1)
        shortest, longest = (-(-(n + FIRST) * bits // (8 * SECTOR)) for n in (max(fewest, found.last - 1), most))
        table = rest // (2 * SECTOR)
        table += max(0, -(-(shortest - table) // step)) * step
        for length in range(table, longest + 1, step)[:MOST_SHAPES]:
            shape = Shape(before, bits, cluster, reserved, length)
            if shape.size < MAX_SECTORS and (not cut.rooms or any(_fills(shape, *room) for room in cut.rooms)):
                yield shape


def _fills(shape: Shape, offset: int, length: int) -> bool:
    """Whether a volume of this shape is what a partition was made for: it is rounded, not more."""
    low, high = (size * SECTOR for size in shape.sizes)
    return offset == shape.before and low <= length <= high + (high >> 5) + 2 * MIB


def _likeliest(shapes: Iterable[Shape], found: Found, cut: Cut, units: int, tables: _Tables | None) -> Shape | None:
    """The likeliest volume, where others that have their clusters elsewhere are not likely enough together. units: that
    there are.
    """
    order = _Order.of(found, cut)
    weight: dict[int, float] = {}
    best: dict[int, tuple[float, Shape]] = {}
    for s in shapes:
        odds = s.weight * (_room(s, found, cut, units) if order is None else order.odds(s, found, cut))
        odds *= tables.odds(s) if tables is not None else 1.0
        weight[s.place] = weight.get(s.place, 0.0) + odds
        best[s.place] = max(best.get(s.place, (-1.0, s)), (odds, s), key=lambda b: b[0])
    place = max(weight, key=lambda p: weight[p], default=0)
    if not weight or weight[place] < LEAST_SHARE * sum(weight.values()) or not weight[place]:
        return None
    return best[place][1]


@dataclass(frozen=True, slots=True)
class _Tables:
    """Where sectors of FAT32's two tables lie in their units: begin int64[n], as each tells where a table would begin
    modulo a unit, by its number. That of the second one tells how long the first is.
    """

    unit: int
    begin: I64

    @classmethod
    def of(cls, reader: Reader, found: Found, unit: int) -> _Tables | None:
        """None where too few are left."""
        parts: list[I64] = []
        for at in range(0, min(reader.size, MOST_LOOKED), STEP):
            data = np.frombuffer(reader.read(at, STEP), np.uint8)
            row, first = of_table(data[: len(data) // SECTOR * SECTOR].reshape(-1, SECTOR), 28, found.last)
            parts.append((at + row * SECTOR - first * 4) % unit)
        begin = np.concatenate([np.empty(0, np.int64), *parts])
        return cls(unit, begin) if len(begin) >= LEAST_TABLE else None

    def odds(self, shape: Shape) -> float:
        """How likely it is that they lie there in a volume."""
        begins = [shape.before + (shape.reserved + k * shape.table) * SECTOR for k in range(2)]
        right = np.isin(self.begin, [at % self.unit for at in begins]).mean() if shape.bits == 32 else 0.0
        return 1.0 if right >= AGREE else TABLES_ELSEWHERE


@dataclass(frozen=True, slots=True)
class _Order:
    """What it tells that the units lie from front to back: units of zeros are left out, and nothing in them lies
    farther behind than on the disk.

    low: where cluster 2 lies at least. first: the number of the first directory. empty: share of the units with
    clusters that is left out.
    """

    low: int
    first: int
    empty: float

    @classmethod
    def of(cls, found: Found, cut: Cut) -> _Order | None:
        """None where any unit lies out of order, or units are so small that blocks of the container are among them."""
        _, first = np.unique(found.at // cut.unit, return_index=True)
        rising = np.diff(found.number[first]) > 0
        behind, count = np.unique(found.behind, return_counts=True)
        behind = behind[count >= LEAST_BEHIND]
        if cut.unit < ORDERED_UNIT or len(rising) < LEAST_STEPS or not rising.all() or not len(behind):
            return None
        low = int(behind[-1])
        mine = found.behind <= low
        at, number = found.at[mine], found.number[mine]
        units = int(number[-1] - number[0]) * found.cluster // cut.unit
        left_out = (low - int(found.behind[mine][-1])) // cut.unit
        return cls(low, int(number[0]), (max(left_out, 0) + 1) / (max(units, left_out, 0) + 2) if len(at) else 0.5)

    def odds(self, shape: Shape, found: Found, cut: Cut) -> float:
        """How likely it is that so many units are left out before the first directory."""
        left_out = (shape.place - self.low) // cut.unit
        if left_out < 0 or not cut.gapless:
            return float(left_out >= 0)
        more = left_out - _empty(shape, found, cut)  # than the tables have empty units
        behind = (self.first - FIRST) * found.cluster // cut.unit
        return 0.0 if more > behind else self.empty ** max(more, 0)


def _empty(shape: Shape, found: Found, cut: Cut) -> int:
    """Units before that with cluster 2 in which nothing is."""
    tables = [shape.before + (shape.reserved + k * shape.table) * SECTOR for k in range(2)]
    full = [(0, SECTOR), (shape.before, SECTOR), *((at, (found.last + 1) * shape.bits // 8) for at in tables)]
    heap = shape.place // cut.unit
    return heap - len({k for at, n in full for k in range(at // cut.unit, min((at + n - 1) // cut.unit + 1, heap))})


def _room(shape: Shape, found: Found, cut: Cut, units: int) -> float:
    """How likely it is that a file has no more units than these, in whatever order: of what the volume uses the others
    would hold zeros.
    """
    end = shape.place + (found.last - 1) * found.cluster
    more = -(-end // cut.unit) - _empty(shape, found, cut) - units
    return ZEROS ** (max(more, 0) * cut.unit / MIB) if cut.gapless else 1.0


def _boot(shape: Shape) -> bytes:
    """The boot sector, and where there is one its copy."""
    out = bytearray(SECTOR)
    wide = shape.bits == 32
    struct.pack_into("<3s8sHBHBHHBHHHII", out, 0, b"\xeb\x58\x90", b"MSWIN4.1", SECTOR, shape.cluster, shape.reserved,
                     2, 0 if wide else ROOT_SECTORS * SECTOR // ENTRY, 0, 0xF8, 0 if wide else shape.table, 63, 255,
                     shape.before // SECTOR, shape.size)  # fmt: skip
    if wide:
        struct.pack_into("<IHHIHH", out, 36, shape.table, 0, 0, FIRST, 1, COPY)
    struct.pack_into("<BBBI11s8s", out, 64 if wide else 36, 0x80, 0, 0x29, 0, b"NO NAME    ",
                     b"FAT32   " if wide else b"FAT16   ")  # fmt: skip
    out[510:] = b"\x55\xaa"
    return bytes(out) + bytes((COPY - 1) * SECTOR) + bytes(out) if wide else bytes(out)
