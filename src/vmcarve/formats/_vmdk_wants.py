"""Grain directories and tables of a hosted sparse VMDK in pieces. Source: VMware Virtual Disk Format 5.0."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import SECTOR, Reader, Want
from ._vmdk_header import Header, check, parse
from ._wants import BITS, BLOCK, MAX_BITS, OUR_MAX_WANTS, Words

OUR_SLACK = 64 << 20 >> 9  # sectors that a container may have beyond its disk


def wants(reader: Reader) -> list[Want]:
    """The blocks of both sets of tables that are not in place, where the tables lie as every known writer lays them:
    each set's tables right behind its directory.
    """
    h = parse(reader.read(0, SECTOR))
    if h is None or h.directory_at >= h.overhead:  # a stream's tables that lie behind its grains
        return []
    try:
        check(h)
    except Damaged:
        return []
    out: list[Want] = []
    sets = [h.directory_at, *([h.redundant_at] if h.redundant else [])]
    spans = sorted((at, at + h.directory_sectors + h.tables * h.table_sectors) for at in sets)
    blocks = sorted({b for a, e in spans for b in range(a * SECTOR // BLOCK, -(-e * SECTOR // BLOCK))})
    for block in blocks[:OUR_MAX_WANTS]:
        bare = _want(h, sets, block * BLOCK)
        data = reader.read(block * BLOCK, BLOCK)
        if not block or (len(data) == BLOCK and bare.fits(data) > 0):
            continue
        twin = _twin(reader, h, sets, block * BLOCK)
        want = bare if twin is None else _want(h, sets, block * BLOCK, twin)
        if len(data) < BLOCK or want.fits(data) <= 0:
            out.append(want)
    return out


def _twin(reader: Reader, h: Header, sets: list[int], file_offset: int) -> npt.NDArray[np.int64] | None:
    """int64[1024]: what the other set has for each word of the block, -1 where the block has no entry.

    None where the other set is not there for all of it. Zeros count: most of a large disk's tables are empty, and
    another's table is not to be taken for one of those.
    """
    if len(sets) < 2:
        return None
    out = np.full(BLOCK // 4, -1, np.int64)
    length = h.tables * h.table_sectors * SECTOR
    for at, other in (sets, sets[::-1]):
        first, there = (at + h.directory_sectors) * SECTOR, (other + h.directory_sectors) * SECTOR
        low, high = max(first, file_offset), min(first + length, file_offset + BLOCK)
        if low >= high:
            continue
        place = low - first + there
        start = place // BLOCK * BLOCK
        blocks = range(start, place + high - low, BLOCK)
        data = b"".join(reader.read(b, BLOCK).ljust(BLOCK, b"\0") for b in blocks)
        known = all(not reader.missing(b, BLOCK)
                    and (_want(h, sets, b).fits(data[b - start : b - start + BLOCK]) > 0
                         or not any(data[b - start : b - start + BLOCK]))
                    for b in blocks)
        if not known:
            return None
        words = np.frombuffer(data[place - start : place - start + high - low], "<u4")
        out[(low - file_offset) // 4 : (high - file_offset) // 4] = words
    return out


def _want(h: Header, sets: list[int], file_offset: int, twin: npt.NDArray[np.int64] | None = None) -> Want:
    """What the block of the file at `file_offset` must hold of directories and tables. twin: `_twin`."""
    stated = np.zeros(BLOCK // 4, np.uint32)  # words that the layout fixes
    fixed, entries = np.zeros(BLOCK // 4, bool), np.zeros(BLOCK // 4, bool)
    for at in sets:
        first = at + h.directory_sectors
        word = (at * SECTOR - file_offset) // 4  # of the directory's first entry, counted in the block
        i = np.arange(max(0, -word), min(h.tables, BLOCK // 4 - word))
        fixed[word + i], stated[word + i] = True, first + i * h.table_sectors
        low, high = first * SECTOR - file_offset, (first + h.tables * h.table_sectors) * SECTOR - file_offset
        entries[max(0, low // 4) : max(0, min(high // 4, BLOCK // 4))] = True
    most = h.capacity + h.capacity // 8 + OUR_SLACK
    twin = np.full(BLOCK // 4, -1, np.int64) if twin is None else twin
    copied = twin >= 0

    def fits(block: bytes) -> float:
        words = np.frombuffer(block, "<u4")
        if (words[fixed] != stated[fixed]).any():
            return 0.0
        there = words[entries & (words > 1)]
        if (there < h.overhead).any() or (there >= most).any():
            return 0.0
        if not h.compressed and ((there - h.overhead) % h.grain).any():
            return 0.0
        if copied.any():
            return MAX_BITS if (words[copied] == twin[copied]).all() else 0.0
        return min(MAX_BITS, BITS * (int(fixed.sum()) + len(there)))

    def begins(at: npt.NDArray[np.uint16], word: Words) -> npt.NDArray[np.bool_]:
        halves = np.stack((word & np.uint64(0xFFFF_FFFF), word >> np.uint64(32)), axis=1).astype(np.int64)
        place = at.astype(np.int64)[:, None] * 2 + np.arange(2)
        right = np.where(fixed[place], halves == stated[place], True)
        grain = (halves <= 1) | ((halves >= h.overhead) & (halves < most))
        text = halves & 0x80808080 == 0  # the descriptor before the tables, and zeros
        return np.asarray((right & np.where(entries[place], grain, fixed[place] | text)).all(axis=1))

    empty = bool(copied.any()) and not (fixed.any() or (twin > 0).any())
    return Want(file_offset, "vmdk.tables", begins, fits, empty)
