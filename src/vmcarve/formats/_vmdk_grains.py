"""Compressed grains without header and tables: each names its place on the disk, and proves itself when it decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ..model import GUESSED, SECTOR, Clue, Container, Orphan, Patch, Reader, TablePieces
from . import _vmdk_header as header
from . import _vmdk_stream as stream
from . import _vmdk_text as text
from ._rebuilt import Laid, opened
from ._shapes import I64, rows_of

KIND = "vmdk.grain"
GRAIN = 128  # sectors, of every known writer
UNIT = GRAIN * SECTOR
MAX_LBA = 1 << 36  # ours: 32 TiB


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
