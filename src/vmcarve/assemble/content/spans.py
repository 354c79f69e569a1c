"""The gaps of a guest's files, in the file's order: blocks that no sure run has, between two that one has.

A file lies in several extents of its guest; what it holds goes on from the end of one to the begin of the next, and a
piece of the image does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .want import BLOCK, Guest, Int64s

NEAR = 256  # blocks over which a run is taken to go on to the gap's edge
MAX_BLOCKS = 1 << 13  # ours: of one gap
MAX_GAPS = 1 << 12  # ours: of one guest
LEAST = 8  # blocks that are free beside each other
FREED = -1


@dataclass(frozen=True, slots=True)
class Span:
    """blocks int64[n]: of the container, as they follow in the file. borders: their numbers where another extent
    begins, and how many bytes of the file lie between, in blocks that are not the file's alone. left, right: the deltas
    of the sure runs before the first and behind the last, where they are near; inside: whether those have the blocks of
    the file beside it. before, behind: the image blocks of the file beside it that lie in another extent, -1 where none
    is known, and the bytes between. tail: the bytes of the file's last block where the gap reaches to it. file: its
    number; FREED of blocks that the guest holds free: what lies there was some file's once.
    """

    blocks: Int64s
    borders: tuple[tuple[int, int], ...]
    left: int | None
    right: int | None
    inside_left: bool
    inside_right: bool
    before: tuple[int, int]
    behind: tuple[int, int]
    tail: int
    file: int


def gaps(guest: Guest, run: Int64s) -> list[Span]:
    """All of a guest, but those around which one run goes on. run: see Files.in_container."""
    sure = guest.sure
    f = run[:, 2]
    last = f + run[:, 3] - 1
    size = guest.files.size[run[:, 0]]
    begins = np.sort(f)
    low, high = -(-f // BLOCK), (last + 1) // BLOCK  # of blocks that are the file's alone
    data = f + size - run[:, 1]  # where the file ends, if this is its last run
    shared = np.searchsorted(begins, data) != np.searchsorted(begins, -(-data // BLOCK) * BLOCK)
    whole = (data <= last + 1) & ~shared
    high = np.where(whole, -(-data // BLOCK), high)
    there = high > low
    upto = np.concatenate(([0], np.cumsum(sure[:, 1] - sure[:, 0])))

    def held(block: Int64s) -> Int64s:
        """How many blocks before each are sure."""
        i = np.searchsorted(sure[:, 0], block)
        over = np.maximum(sure[np.maximum(i - 1, 0), 1] - block, 0) if len(sure) else 0
        return upto[i] - np.where(i > 0, over, 0)

    open_ = there & (held(high) - held(low) < high - low)
    rows = np.flatnonzero(there & np.isin(run[:, 0], run[open_, 0]))
    out: list[Span] = []
    none = np.empty(0, np.int64)
    for a, b in guest.vacant.tolist():
        if b - a >= LEAST and len(out) < MAX_GAPS:
            out += _of(guest, np.arange(a, b), none, none, -1, FREED)
    if not len(rows):
        return out
    # parts of a file that follow each other: by what lies between their blocks
    between = (run[:, 1] + low * BLOCK - f)[rows[1:]] - (run[:, 1] + high * BLOCK - f)[rows[:-1]]
    new = (np.diff(run[rows, 0]) > 0) | (between < 0) | (between > BLOCK)
    chains = np.split(rows, np.flatnonzero(new) + 1)
    for chain in chains:
        links = np.concatenate((np.zeros(1, np.int64), between[np.searchsorted(rows, chain[1:]) - 1]))
        blocks = np.concatenate([np.arange(int(low[r]), int(high[r])) for r in chain.tolist()])
        begin = np.concatenate(([0], np.cumsum(high[chain] - low[chain])[:-1]))
        # else one extent in two rows
        apart = np.concatenate(([False], np.diff(blocks)[begin[1:] - 1] != 1)) | (links > 0)
        r = int(chain[-1])
        tail = (int(data[r]) - 1) % BLOCK + 1 if whole[r] else -1
        out += _of(guest, blocks, begin[apart], links[apart], tail, int(run[r, 0]))
        if len(out) >= MAX_GAPS:
            break
    return out[:MAX_GAPS]


def _of(guest: Guest, blocks: Int64s, border: Int64s, apart: Int64s, tail: int, file: int) -> Iterator[Span]:
    """The gaps of one row of blocks. border, apart: see Span.borders."""
    sure = guest.sure
    i = np.searchsorted(sure[:, 1], blocks, side="right")
    row = np.minimum(i, max(len(sure) - 1, 0))
    known = (i < len(sure)) & (sure[row, 0] <= blocks) if len(sure) else np.zeros(len(blocks), np.bool_)
    cut = np.flatnonzero(np.diff(np.concatenate(([False], ~known, [False]))))
    for a, b in cut.reshape(-1, 2).tolist():
        k = int(i[a])
        run = sure[k - 1] if k else None
        left = int(run[2]) if run is not None and blocks[a] - run[1] <= NEAR else None
        k = int(i[b - 1])
        run = sure[k] if k < len(sure) else None
        right = int(run[2]) if run is not None and run[0] - blocks[b - 1] - 1 <= NEAR else None
        inner = (border > a) & (border < b)
        one = not inner.any() and left is not None and left == right
        if b - a > MAX_BLOCKS or one:
            continue
        beside: list[tuple[int, int]] = []  # before and behind
        for at, x in ((a, a - 1), (b, b)):
            edge = np.flatnonzero(border == at) if 0 <= x < len(blocks) else border[:0]
            p = int(blocks[x] + sure[row[x], 2]) + guest.start // BLOCK if len(edge) else -1
            beside.append((p, int(apart[edge[0]]) if len(edge) else 0))
        borders = tuple(zip((border[inner] - a).tolist(), apart[inner].tolist(), strict=True))
        before, behind = beside
        yield Span(blocks[a:b], borders, left, right, a > 0 and before[0] < 0, b < len(blocks) and behind[0] < 0,
                   before, behind, tail if b == len(blocks) else -1, file)
