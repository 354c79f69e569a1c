"""Grain directories and grain tables without a header: directories state their own sector, tables the grains' places.

The layout follows from the number of tables (see _vmdk_header.layout), so a directory that says where its first table
is has said where itself is, and a capacity says where everything is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import GUESSED, SECTOR, Clue, Container, Orphan, Patch, Reader, TablePieces
from . import _vmdk_header as header
from . import _vmdk_text as text
from ._rebuilt import Laid, opened, orphan
from ._shapes import I64, Numbers, Where, distinct, pieces, rows_of
from ._vmdk_header import Header
from ._vmdk_rebuild import SPLIT_REDUNDANT_AT, with_zero_grains
from ._vmdk_tables import read_array, read_directory

GRAIN = 128  # sectors, of every known writer
UNIT = GRAIN * SECTOR
FLOOR = 22  # no table or grain lies before this sector
DIRECTORY, TABLE = "vmdk.gd", "vmdk.gt"
MAX_SECTOR = 1 << 31
FRONTS = (header.REDUNDANT_AT, SPLIT_REDUNDANT_AT)
GRAINS = Numbers(ranges=((FLOOR, MAX_SECTOR - 1),), unused=((0, 1),), steps=(GRAIN,))
MAX_FIRST = 1 << 24  # ours: sectors before the first table
RISING = Numbers(ranges=((0, MAX_FIRST + SECTOR),))  # of a directory: each entry is 4 more than the one before
ROWS = (GRAINS.rule("<u4"), RISING.rule("<u4"))


def shapes(blocks: npt.NDArray[np.uint8], image_offset: I64) -> Iterable[TablePieces]:
    """Sectors of grain tables, and first sectors of directories."""
    words, where = rows_of(blocks, image_offset, "<u4")
    yield _directories(words, where)
    row = GRAINS.sieve(words)
    if not len(row):
        return
    value = words[row].astype(np.int64)
    used = value > 1
    good = used.any(axis=1) & distinct(value, used)
    yield pieces(TABLE, UNIT, where[row[good]], np.where(used, value * SECTOR, -1)[good])


def _directories(words: npt.NDArray[np.uint32], where: Where) -> TablePieces:
    """Entries rise by the 4 sectors of a table, and the first one says how far behind the file's begin they lie."""
    row = np.flatnonzero(words[:, 0] < MAX_FIRST)  # of anything else little is left
    first, second = words[row, 0].astype(np.int64), words[row, 1].astype(np.int64)
    alone = (second == 0) & (first <= 4 * FRONTS[0])  # a single table: its directory lies right behind a front
    row = row[(first >= FRONTS[1]) & ((second == first + 4) | alone)]
    at: list[int] = []
    own: list[int] = []
    for i in row.tolist():
        value = words[i].astype(np.int64)
        rising = np.flatnonzero(value != value[0] + 4 * np.arange(len(value)))
        n = int(rising[0]) if len(rising) else len(value)
        if not value[n:].any() and (place := _place(int(value[0]), n)) is not None:
            at.append(i)
            own.append(place * SECTOR)
    none = np.full((len(at), 1), -1, np.int64)
    return TablePieces(DIRECTORY, UNIT, where[np.array(at, np.int64)], none, np.array(own, np.int64))


def _place(first: int, n: int) -> int | None:
    """The sector of a directory whose first table is at sector `first`, with `n` entries in its first sector."""
    if n < SECTOR // 4:
        sizes = [1]
    else:  # more sectors follow: those numbers of sectors that would put the directory where one can be
        sizes = sorted({(first - front) // (GRAIN * 4 + 2) + d for front in FRONTS for d in (0, 1)}
                       | {first - front for front in FRONTS if first - front < 1 << 12})
    for size in sizes:
        for front in FRONTS:
            if size < 1:
                continue
            if first == front + size:
                return front
            tables, rest = divmod(first - front - 2 * size, 4)
            if rest == 0 and tables > 0 and -(-4 * tables // SECTOR) == size and (n == SECTOR // 4 or tables == n):
                return first - size
    return None


def rebuild(reader: Reader, clue: Clue, open_extent: Callable[[Reader], Container]) -> Orphan | None:
    """The extent at the clue's origin: as many tables as its directory has, or as its disk takes."""
    found = _layouts(reader, clue)
    best: Orphan | None = None
    for h, rounded in found:
        try:
            header.check(h)
        except Damaged:
            continue
        orphaned = _opened(reader, clue, h, rounded, open_extent)
        if orphaned is not None and (best is None or _named(orphaned) > _named(best)):
            best = orphaned
    return best


def _layouts(reader: Reader, clue: Clue) -> list[tuple[Header, bool]]:
    """Headers that could have been there; True where the capacity is rounded up to whole tables."""
    tables: set[int] = set()
    for front in FRONTS:
        for at in (clue.pieces.image_offset[clue.pieces.own >= 0] if clue.pieces.kind == DIRECTORY else ()):
            own = (int(at) - clue.origin) // SECTOR
            first = int.from_bytes(reader.read(int(at), 4), "little")
            size = first - own
            n = (own - front - size) // 4 if own != front else _count(reader, int(at), size)
            if 0 < size <= 512 and 0 < n <= header.OUR_MAX_TABLES and -(-4 * n // SECTOR) == size:
                tables.add(n)
    out: list[tuple[Header, bool]] = []
    capacities = [(clue.size // SECTOR, False)] if clue.size else []
    capacities += [(n * header.ENTRIES * GRAIN, True) for n in sorted(tables)
                   if -(-clue.size // (header.ENTRIES * UNIT)) != n]
    for capacity, rounded in capacities:
        if tables and -(-capacity // (header.ENTRIES * GRAIN)) not in tables:
            continue
        for front in FRONTS:
            h = header.layout(capacity, redundant_at=front)
            if front == SPLIT_REDUNDANT_AT:
                h = replace(h, descriptor_at=0, descriptor_size=0)
            out.append((h, rounded))
    return out


def _count(reader: Reader, at: int, sectors: int) -> int:
    """Entries of the directory at image_offset `at` that rise by a table each."""
    if not 0 < sectors <= 512:
        return 0
    row = read_array(reader, at, sectors * SECTOR // 4, "<u4")[0].astype(np.int64)
    rising = np.flatnonzero(row != row[0] + 4 * np.arange(len(row)))
    return int(rising[0]) if len(rising) else len(row)


def _opened(reader: Reader, clue: Clue, h: Header, rounded: bool,
            open_extent: Callable[[Reader], Container]) -> Orphan | None:
    plain = Laid(reader, clue.origin)
    if not read_directory(plain, h).regular:
        return None
    if clue.pieces.kind == TABLE and not _in_place(clue, h):
        return None
    if h.descriptor_at:
        h = with_zero_grains(plain, h)
    patches = [Patch(0, h.pack(), "rebuilt", GUESSED)]
    if h.descriptor_at:
        new = text.plain_text(h.capacity, "monolithicSparse").ljust(header.DESCRIPTOR_SECTORS * SECTOR, b"\0")
        patches.append(Patch(SECTOR, new, "rebuilt", GUESSED))
    why = "rebuilt from grain tables" + (", capacity rounded up" if rounded else "")
    c = opened(open_extent, Laid(reader, clue.origin, patches), why)
    return None if c is None else orphan(c, clue.origin, "vmdk.tables", reader.size)


def _in_place(clue: Clue, h: Header) -> bool:
    """Whether the pieces that guest structures place lie where this layout has their tables."""
    known = np.flatnonzero(clue.first >= 0)
    own = (clue.pieces.image_offset[known] - clue.origin) // SECTOR
    table, part = np.divmod(clue.first[known], header.ENTRIES)
    right = np.zeros(len(known), bool)
    for at in (h.directory_at, h.redundant_at):
        right |= own == at + h.directory_sectors + table * h.table_sectors + part // (SECTOR // 4)
    return bool(len(known)) and 2 * int(right.sum()) >= len(known)


def _named(found: Orphan) -> int:
    """Guest bytes that the tables place."""
    guest = found.container.guests[0].map
    return int(guest.length[guest.file_offset >= 0].sum())
