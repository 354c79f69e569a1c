"""Compressed grains without header and tables: each names its place on the disk, and proves itself when it decodes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import (
    GUESSED,
    SECTOR,
    ZLIB,
    Clue,
    Container,
    Marks,
    Orphan,
    Patch,
    Reader,
    SectorBegin,
    TablePieces,
    Units,
)
from . import _vmdk_header as header
from . import _vmdk_stream as stream
from . import _vmdk_text as text
from ._rebuilt import Laid, opened
from ._shapes import I64, rows_of
from ._vmdk_gather import TABLE
from ._vmdk_tables import Rules, Tally, merge_tables, read_directory

KIND = "vmdk.grain"
GRAIN = 128  # sectors, of every known writer
UNIT = GRAIN * SECTOR
MAX_LBA = 1 << 36  # ours: 32 TiB
# what the first words of a grain have no bits of: its sector is a multiple of 128, its size small, zlib's first byte
# has method 8 and a window of 32 KiB at most (RFC 1950)
ROWS = (SectorBegin(struct.pack("<4I", GRAIN - 1, ~0x1F & 0xFFFF_FFFF, ~0x3_FFFF & 0xFFFF_FFFF, 0x8F),
                    struct.pack("<4I", 0, 0, 0, 8)),)


def shapes(blocks: npt.NDArray[np.uint8], image_offset: I64) -> Iterable[TablePieces]:
    """Sectors that begin like a grain and do not follow another one: each may begin a stream."""
    words, where = rows_of(blocks, image_offset, "<u4")
    row = np.flatnonzero(words[:, 1] <= MAX_LBA >> 32)  # of anything else next to nothing is left
    size, zlib = words[row, 2].astype(np.int64), (words[row, 3] & 0xFFFF).astype(np.int64)
    likely = (words[row, 0] % GRAIN == 0) & (size > 0) & (size <= stream.FORMAT_MAX_STORED * UNIT)
    likely &= (zlib & 0x0F == 8) & (zlib >> 4 & 0x0F <= 7) & (((zlib & 0xFF) * 256 + (zlib >> 8)) % 31 == 0)
    row, size = row[likely], size[likely]
    if not len(row):
        return
    at = where[row]
    head = at[~np.isin(at, at + -(-(stream.GRAIN_HEAD + size) // SECTOR) * SECTOR)]
    # the grain's own place in the file is not known: the file as we lay it out begins with this grain
    yield TablePieces(KIND, UNIT, head, np.full((len(head), 1), -1, np.int64), np.zeros(len(head), np.int64))


def marks(sectors: npt.NDArray[np.uint8], image_offset: I64) -> Marks:
    """Sectors that begin like a grain, by its first sector on the disk, or are the marker of a grain table."""
    words = np.ascontiguousarray(sectors[:, :16]).view("<u4")
    row = np.flatnonzero((words[:, 0] % GRAIN == 0) & (words[:, 1] <= MAX_LBA >> 32) & (words[:, 2] > 0)
                         & (words[:, 2] <= stream.FORMAT_MAX_STORED * UNIT) & (words[:, 3] & 0x0F == 8))
    zlib = words[row, 3].astype(np.int64)
    row = row[((zlib >> 4 & 0x0F) <= 7) & (((zlib & 0xFF) * 256 + (zlib >> 8 & 0xFF)) % 31 == 0)]
    key = words[row, 0].astype(np.int64) | words[row, 1].astype(np.int64) << 32
    span = -(-(stream.GRAIN_HEAD + words[row, 2].astype(np.int64)) // SECTOR) * SECTOR
    size = 4 * header.ENTRIES // SECTOR
    tables = np.flatnonzero((words[:, 0] == size) & (words[:, 1] == 0) & (words[:, 2] == 0)
                            & (words[:, 3] == stream.GRAIN_TABLE))
    tables = tables[~sectors[tables, 16:].any(axis=1)]
    both = np.concatenate((row, tables))
    order = np.argsort(both, kind="stable")
    return Marks(image_offset[both[order]], np.concatenate((key, np.full(len(tables), TABLE)))[order],
                 np.concatenate((span, np.full(len(tables), (1 + size) * SECTOR)))[order])


def units(reader: Reader, container: Container) -> Units | None:
    """The grains that tables at the front of a stream name, by their first sectors on the disk."""
    h = header.parse(reader.read(0, SECTOR))
    if h is None or not h.compressed or h.directory_at >= h.overhead:
        return None
    try:
        header.check(h)
    except Damaged:
        return None
    parts: list[tuple[I64, I64]] = []
    most = -(-(stream.GRAIN_HEAD + stream.FORMAT_MAX_STORED * h.grain_bytes) // SECTOR)
    rules = Rules(h.overhead, h.overhead + h.grains * most, 0, h.zero_grains)
    held = 0
    for first, value, lost in merge_tables(reader, h, read_directory(reader, h), rules, Tally()):
        used = np.flatnonzero((value > 1) & ~lost)
        held += len(used)
        if held > stream.OUR_MAX_GRAINS:
            break
        parts.append((first + used, value[used]))
    if not held:
        return None
    number, sector = (np.concatenate(c).astype(np.int64) for c in zip(*parts, strict=True))
    sector, once = np.unique(sector, return_index=True)
    number = number[once]
    stored = np.minimum(np.append(np.diff(sector), most), most) * SECTOR
    length = np.minimum(h.grain, h.capacity - number * h.grain) * SECTOR
    return Units(sector * SECTOR, stored, np.zeros(len(number), np.int64), length,
                 np.full(len(number), ZLIB, np.uint8), number * h.grain, stream.GRAIN_HEAD)


def rebuild(reader: Reader, clue: Clue, open_extent: Callable[[Reader], Container]) -> Orphan | None:
    """The stream whose first grain that is left lies at the clue's origin, under header and tables of ours.

    Places in the file are ours too: what lay before is not known. The grains' places on the disk are their own.
    """
    top = header.layout(header.OUR_MAX_TABLES * header.ENTRIES * GRAIN, stream=True)
    plain = Laid(reader, clue.origin)
    if not stream.inflates(plain, top, 0):
        return None
    seen = stream.walk(plain, top, 0, "grains")
    if len(seen.grains.number) < 2:
        return None
    capacity = (int(seen.grains.number.max()) + 1) * GRAIN  # at least so much; the last grain may be a short one
    h = header.layout(capacity, stream=True)
    start = h.overhead * SECTOR
    new = text.plain_text(capacity, "streamOptimized").ljust(header.DESCRIPTOR_SECTORS * SECTOR, b"\0")
    patches = [Patch(0, h.pack() + new, "rebuilt", GUESSED)]
    base = clue.origin - start
    c = opened(open_extent, Laid(_Until(reader, clue.origin + seen.end * SECTOR), base, patches,
                                 [(SECTOR + len(new), start)]),
               "rebuilt from the grains that are left, disk at least as large as the last of them says")
    if c is None:
        return None
    length = min(c.size, reader.size - base) - start
    return Orphan(c, np.array([[start, clue.origin, max(0, length)]], np.int64), "vmdk.grains")


class _Until:
    """A reader that ends earlier."""

    def __init__(self, inner: Reader, size: int) -> None:
        self._inner = inner
        self.size = min(size, inner.size)

    def read(self, offset: int, length: int) -> bytes:
        return self._inner.read(offset, max(0, min(length, self.size - offset)))

    def missing(self, offset: int, length: int) -> bool:
        return offset + length > self.size or self._inner.missing(offset, length)
