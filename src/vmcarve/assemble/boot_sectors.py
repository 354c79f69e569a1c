"""Blocks that may be a master boot record: looked for once, and asked for again as containers take what is theirs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..model import Reader
from .segments import BLOCK
from .state import Claims
from .window import read_into, steps

Int64s = npt.NDArray[np.int64]
STEP = 4 << 20
ENTRY = np.dtype([("active", "u1"), ("chs", "u1", 3), ("type", "u1"), ("chs_end", "u1", 3), ("first", "<u4"),
                  ("count", "<u4")])  # a partition entry, at byte 446 of the sector (see guest/mbr.py)
OUR_MAX_FOUND = 1 << 20  # of one image: 8 MiB


class BootSectors:
    """The blocks of an image that end their first sector as an MBR does, with entries that may be a partition's."""

    def __init__(self, image: Reader, room: Int64s) -> None:
        """room int64[k, 2]: the image ranges (offset, length; rising) that are looked at when first asked."""
        self._image = image
        self._room = room
        self._found: list[int] | None = None

    def outside(self, claims: Claims) -> Iterator[int]:
        """Their image offsets, rising, where nobody claims a byte of the block. Claims only grow from call to call."""
        if self._found is None:
            self._found = _look(self._image, claims.free_of(self._room))
        return (p for p in self._found if not claims.overlap(p, p + BLOCK))


def _look(image: Reader, room: Int64s) -> list[int]:
    found: list[int] = []
    buffer = np.empty(STEP, np.uint8)
    for start, length in room.tolist():
        first = -(-start // BLOCK) * BLOCK
        for at in steps(image, first, start + length - BLOCK + 1, STEP):
            n = min(STEP, start + length - at) // BLOCK
            n = read_into(image, at, buffer[: n * BLOCK]) // BLOCK
            blocks = buffer[: n * BLOCK].reshape(-1, BLOCK)
            ends = np.flatnonzero((blocks[:, 510] == 0x55) & (blocks[:, 511] == 0xAA))
            if not len(ends):
                continue
            entries = blocks[ends, 446:510].copy().view(ENTRY).reshape(-1, 4)
            legal = ((entries["active"] == 0) | (entries["active"] == 0x80)).all(axis=1)
            used = (entries["type"] != 0) & (entries["type"] != 0xEE) & (entries["first"] > 0) & (entries["count"] > 0)
            found += (ends[legal & used.any(axis=1)] * BLOCK + at).tolist()
            if len(found) >= OUR_MAX_FOUND:
                return found[:OUR_MAX_FOUND]
    return found
