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
        want = _want(h, sets, block * BLOCK)
        data = reader.read(block * BLOCK, BLOCK)
        if block and (len(data) < BLOCK or want.fits(data) <= 0):
            out.append(want)
    return out


def _want(h: Header, sets: list[int], file_offset: int) -> Want:
    """What the block of the file at `file_offset` must hold of directories and tables."""
    stated = np.zeros(BLOCK // 4, np.uint32)  # words that the layout fixes
    fixed, entries = np.zeros(BLOCK // 4, bool), np.zeros(BLOCK // 4, bool)
    for at in sets:
        first = at + h.directory_sectors
        for i in range(h.tables):
            _mark(fixed, stated, at * SECTOR + 4 * i - file_offset, first + i * h.table_sectors)
        low, high = first * SECTOR - file_offset, (first + h.tables * h.table_sectors) * SECTOR - file_offset
        entries[max(0, low // 4) : max(0, min(high // 4, BLOCK // 4))] = True
    most = h.capacity + h.capacity // 8 + OUR_SLACK

    def fits(block: bytes) -> float:
        words = np.frombuffer(block, "<u4")
        if (words[fixed] != stated[fixed]).any():
            return 0.0
        there = words[entries & (words > 1)]
        if (there < h.overhead).any() or (there >= most).any():
            return 0.0
        if not h.compressed and ((there - h.overhead) % h.grain).any():
            return 0.0
        return min(MAX_BITS, BITS * (int(fixed.sum()) + len(there)))

    def begins(at: npt.NDArray[np.uint16], word: Words) -> npt.NDArray[np.bool_]:
        halves = np.stack((word & np.uint64(0xFFFF_FFFF), word >> np.uint64(32)), axis=1).astype(np.int64)
        place = at.astype(np.int64)[:, None] * 2 + np.arange(2)
        right = np.where(fixed[place], halves == stated[place], True)
        grain = (halves <= 1) | ((halves >= h.overhead) & (halves < most))
        text = halves & 0x80808080 == 0  # the descriptor before the tables, and zeros
        return np.asarray((right & np.where(entries[place], grain, fixed[place] | text)).all(axis=1))

    return Want(file_offset, "vmdk.tables", begins, fits)


def _mark(fixed: npt.NDArray[np.bool_], stated: npt.NDArray[np.uint32], at: int, value: int) -> None:
    if 0 <= at < BLOCK:
        fixed[at // 4], stated[at // 4] = True, value
