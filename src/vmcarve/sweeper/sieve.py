"""Blocks that may hold a piece of an allocation table: told while the sweep has them in the cache, so that who looks
for such pieces later (`Format.shapes`) reads these blocks only, and not the image again."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from .._ext.table_blocks import BlockSieve, table_blocks
from ..model import RowRule, SectorBegin
from ..registry import formats

BLOCK = 4096
GAP = 64 << 10  # bytes between two runs that are read with them: to begin another run takes as long
MAX_RUNS = 1 << 20  # ours: 16 MiB of them; an image with more is looked through wholly

TableRuns = npt.NDArray[np.int64]
"""int64[n, 2]: image offset and length of runs of blocks, rising, with more than GAP between them."""


@cache
def block_sieve() -> BlockSieve:
    """The rules of all formats in one."""
    rules = [r for fmt in formats().values() for r in fmt.rows]
    begins = [r for r in rules if isinstance(r, SectorBegin)]
    rows = [r for r in rules if isinstance(r, RowRule)]
    return BlockSieve([(r.width, r.size, r.swap, r.illegal, r.low, r.high, r.unused, r.steps) for r in rows],
                      [(np.frombuffer(b.mask, np.uint8), np.frombuffer(b.value, np.uint8)) for b in begins])


class RangeBlocks:
    """The blocks of the image range [start, end) that a rule fits. Blocks begin at multiples of their size in the
    image; one of which not all was in one look may hold anything."""

    def __init__(self, sieve: BlockSieve, start: int, end: int) -> None:
        self._sieve = sieve
        self._first = start // BLOCK
        self._told = np.zeros(-(-end // BLOCK) - self._first, np.uint8)

    def look(self, data: npt.NDArray[np.uint8], at: int) -> None:
        """data uint8[n]: the bytes from image offset `at` on."""
        end = at + len(data)
        first, last = -(-at // BLOCK), end // BLOCK  # of the whole blocks
        if first * BLOCK != at:
            self._told[first - 1 - self._first] = 1
        if last * BLOCK != end:
            self._told[last - self._first] = 1
        if last > first:
            whole = data[first * BLOCK - at : last * BLOCK - at]
            table_blocks(self._sieve, whole, self._told[first - self._first : last - self._first])

    def told(self) -> TableRuns:
        edge = np.flatnonzero(np.diff(self._told, prepend=0, append=0)) + self._first
        return _joined(edge[::2] * BLOCK, edge[1::2] * BLOCK)


class TableBlocks:
    """The runs of a whole image, gathered in image order. Memory: MAX_RUNS."""

    def __init__(self) -> None:
        self._parts: list[TableRuns] = []
        self._held = 0

    def add(self, runs: TableRuns) -> None:
        """Runs behind those so far, or (one block cut in two) at their end."""
        self._held += len(runs)
        if self._held <= MAX_RUNS and len(runs):
            self._parts.append(runs)

    def told(self) -> TableRuns | None:
        """All of them, merged; None where there were too many."""
        if self._held > MAX_RUNS:
            return None
        start, length = np.concatenate([np.empty((0, 2), np.int64), *self._parts]).T
        return _joined(start, np.maximum.accumulate(start + length))


def _joined(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> TableRuns:
    """Ranges, both ends rising, those with GAP or less between them as one."""
    first = np.ones(len(start), bool)
    first[1:] = start[1:] > end[:-1] + GAP
    begins = np.flatnonzero(first)
    return np.stack((start[begins], end[np.append(begins[1:], len(end))[: len(begins)] - 1] - start[begins]), axis=1)
