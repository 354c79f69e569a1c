"""The map of a VDI in pieces: numbers of blocks, none twice, as many as the header counts.

Source: VirtualBox VDICore.h.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..model import Reader, Want
from ._wants import BITS, BLOCK, MAX_BITS, OUR_MAX_WANTS, Words, missing

ZERO = 0xFFFF_FFFE  # from here on entries are no numbers of blocks: a block of zeros, and none


def wants(reader: Reader, map_offset: int, blocks: int, allocated: int) -> list[Want]:
    """The blocks of the map that are not in their place. allocated: how many of its blocks the file stores."""
    end = map_offset + 4 * blocks
    last = min(end, map_offset + BLOCK * OUR_MAX_WANTS)
    rows = [_want(at, max(0, map_offset - at), min(BLOCK, end - at), allocated, map_offset >= at and end <= at + BLOCK)
            for at in range(map_offset // BLOCK * BLOCK, last, BLOCK) if at]  # the header's own block lies with it
    return [row for row in rows if missing(reader, row)]


def _want(file_offset: int, low: int, high: int, allocated: int, whole: bool) -> Want:
    """A block whose bytes [low, high) are entries; whole: all entries of the map are in it."""
    def fits(block: bytes) -> float:
        words = np.frombuffer(block[low:high], "<u4")
        number = words[words < ZERO]
        if len(number) and int(number.max()) >= allocated or len(np.unique(number)) < len(number):
            return 0.0
        if whole and len(number) != allocated:
            return 0.0
        return min(MAX_BITS, BITS * len(words)) if len(words) > 1 else BITS

    def begins(at: npt.NDArray[np.uint16], word: Words) -> npt.NDArray[np.bool_]:
        first = at.astype(np.int64) * 8
        halves = np.stack((word & np.uint64(0xFFFF_FFFF), word >> np.uint64(32)), axis=1)
        entry = (first[:, None] + np.array([0, 4]) >= low) & (first[:, None] + np.array([0, 4]) < high)
        good = np.where(entry, (halves < allocated) | (halves >= ZERO), True).all(axis=1)
        return good & (first <= low + 8)  # none is zero but the one of block 0

    return Want(file_offset, "vdi.map", begins, fits)
