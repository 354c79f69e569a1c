"""Space as runs: merging, inverting, bit maps, and files that are read through their runs. All numbers are bytes.

Shared by the hosts whose volumes can be terabytes: what would be a bit or a number per cluster is kept as runs, and
what is read from evidence is read in pieces of bounded size.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..model import RUN_CHECKED, RUN_DATA, RUN_REUSED, RUN_UNWRITTEN, Reader
from ._blocks import NO_RUNS, clear_bits, merge

Runs = npt.NDArray[np.int64]

PIECE = 1 << 20  # bytes of a table read at once: 8 Mi bits are 8 MiB when unpacked
OUR_MAX_RUNS = 1 << 22  # runs of free space that we hold (64 MiB); above it, the shortest are let go
NO_ROWS: Runs = np.zeros((0, 4), np.int64)


def clipped(runs: Runs, start: int, end: int) -> Runs:
    """The parts of `runs` (int64[n, 2]) inside [start, end)."""
    low = np.maximum(runs[:, 0], start)
    high = np.minimum(runs[:, 0] + runs[:, 1], end)
    keep = high > low
    return np.stack((low[keep], high[keep] - low[keep]), axis=1)


def inverted(runs: Runs, start: int, end: int) -> Runs:
    """What [start, end) has outside `runs` (int64[n, 2], any order)."""
    if end <= start:
        return NO_RUNS
    used = merge(clipped(runs, start, end))
    low = np.concatenate(([start], used[:, 0] + used[:, 1]))
    high = np.concatenate((used[:, 0], [end]))
    return merge(np.stack((low, high - low), axis=1))


class RunCollector:
    """Gathers runs piece by piece in bounded memory; beyond `most` the shortest runs are let go (`dropped`)."""

    def __init__(self, most: int = OUR_MAX_RUNS) -> None:
        self.dropped = False
        self._most = most
        self._parts: list[Runs] = []
        self._count = 0
        self._compact_at = most

    def add(self, runs: Runs) -> None:
        if len(runs):
            self._parts.append(runs)
            self._count += len(runs)
            if self._count > self._compact_at:
                self._compact()

    def _compact(self) -> None:
        whole = merge(np.concatenate(self._parts))
        if len(whole) > self._most:
            self.dropped = True
            keep = np.argpartition(whole[:, 1], len(whole) - self._most)[-self._most :]
            whole = whole[np.sort(keep)]
        self._parts = [whole]
        self._count = len(whole)
        self._compact_at = self._count + max(self._most // 2, 1024)  # so that a full collector is not sorted each time

    def result(self) -> Runs:
        """int64[n, 2], rising, merged."""
        if not self._parts:
            return NO_RUNS
        self._compact()
        return self._parts[0]


def zero_bits(piece: bytes, first: int, count: int) -> Runs:
    """Runs of zero bits, least significant bit first: int64[n, 2] of (number, bits); bit 0 of `piece` is `first`.

    At most `count` bits are looked at.
    """
    data = np.frombuffer(piece, np.uint8)[: -(-count // 8)]
    count = min(count, 8 * len(data))
    if count <= 0 or bool((data == 0xFF).all()):
        return NO_RUNS
    runs = clear_bits(data, count)
    runs[:, 0] += first
    return runs


def equal_runs(flags: npt.NDArray[np.bool_], first: int = 0) -> Runs:
    """Runs of True: int64[n, 2] of (index + first, count)."""
    edge = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).view(np.int8)))
    start, end = edge[::2], edge[1::2]
    return np.stack((start + first, end - start), axis=1).astype(np.int64, copy=False)


def newest_wins(start: Runs, end: Runs, rank: Runs) -> tuple[Runs, Runs, Runs]:
    """Which of several overlapping intervals holds each part: the one of the highest rank (ties: the later row).

    start, end, rank: int64[n], start < end. Returns (start, end, row): int64[m] each, rising, no overlap.
    """
    order = np.argsort(start, kind="stable")
    if len(order) < 2 or bool((start[order][1:] >= end[order][:-1]).all()):
        return start[order], end[order], order.astype(np.int64)
    edges = np.unique(np.concatenate((start, end))).tolist()
    starts, ends, ranks, rows = start[order].tolist(), end.tolist(), rank.tolist(), order.tolist()
    heap: list[tuple[int, int]] = []
    low: list[int] = []
    high: list[int] = []
    owner: list[int] = []
    following = 0
    for i in range(len(edges) - 1):
        here, there = edges[i], edges[i + 1]
        while following < len(rows) and starts[following] <= here:
            row = rows[following]
            heapq.heappush(heap, (-ranks[row], -row))
            following += 1
        while heap and ends[-heap[0][1]] <= here:
            heapq.heappop(heap)
        if not heap:
            continue
        row = -heap[0][1]
        if owner and owner[-1] == row and high[-1] == here:
            high[-1] = there
        else:
            low.append(here)
            high.append(there)
            owner.append(row)
    return np.array(low, np.int64), np.array(high, np.int64), np.array(owner, np.int64)


def joined_rows(rows: Runs) -> Runs:
    """HostFile rows (int64[n, 4], rising): neighbours that continue each other in both spaces are made one."""
    if len(rows) < 2:
        return rows
    end = rows[:, 0] + rows[:, 2]
    placed = np.isin(rows[:, 3], (RUN_DATA, RUN_UNWRITTEN, RUN_REUSED, RUN_CHECKED))
    follows = np.where(placed[1:] & (rows[1:, 1] >= 0), rows[1:, 1] == rows[:-1, 1] + rows[:-1, 2], rows[:-1, 1] < 0)
    first = np.concatenate(([True], ~((rows[1:, 0] == end[:-1]) & (rows[1:, 3] == rows[:-1, 3]) & follows)))
    start = np.flatnonzero(first)
    out = rows[start].copy()
    out[:, 2] = np.add.reduceat(rows[:, 2], start)
    return out


def claimed_once(rows: Runs) -> tuple[Runs, bool]:
    """HostFile rows without those whose image bytes another row of the same file claims too, and whether all stayed.

    For file systems that never share a block: of two such claims at least one is false, and nothing tells which.
    """
    placed = np.flatnonzero(rows[:, 1] >= 0)
    if len(placed) < 2:
        return rows, True
    order = placed[np.argsort(rows[placed, 1], kind="stable")]
    start, end = rows[order, 1], rows[order, 1] + rows[order, 2]
    reach = np.maximum.accumulate(end)
    touches_before = np.concatenate(([False], start[1:] < reach[:-1]))
    if not touches_before.any():
        return rows, True
    next_start = np.minimum.accumulate(start[::-1])[::-1]
    touches_after = np.concatenate((end[:-1] > next_start[1:], [False]))
    keep = np.ones(len(rows), np.bool_)
    keep[order[touches_before | touches_after]] = False
    return rows[keep], False


def cut_rows(rows: Runs, size: int, valid: int) -> Runs:
    """HostFile rows cut at `size` bytes; what lies at or beyond `valid` was never written. -1: no such bound."""
    if size >= 0:
        rows = rows[rows[:, 0] < size].copy()
        rows[:, 2] = np.minimum(rows[:, 2], size - rows[:, 0])
    if valid < 0 or not len(rows) or valid >= int(rows[-1, 0] + rows[-1, 2]):
        return rows
    before = rows[rows[:, 0] < valid].copy()
    before[:, 2] = np.minimum(before[:, 2], valid - before[:, 0])
    after = rows[rows[:, 0] + rows[:, 2] > valid].copy()
    step = np.maximum(valid - after[:, 0], 0)
    after[:, 0] += step
    after[:, 2] -= step
    data = after[:, 3] == RUN_DATA
    after[data, 1] += step[data]
    after[data, 3] = RUN_UNWRITTEN
    return np.concatenate((before, after))


class Stream:
    """A Reader over a file of the volume through its HostFile rows (int64[n, 4], rising in file_offset).

    Holes and unwritten parts read as zeros; bytes that no row tells of are missing.
    """

    def __init__(self, reader: Reader, rows: Runs, size: int) -> None:
        self._reader = reader
        self._rows = rows
        self._start = rows[:, 0].copy()
        self._size = max(size, 0)

    @property
    def size(self) -> int:
        return self._size

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(offset inside the answer, image_offset or -1, length) of the rows in [offset, offset + length)."""
        i = max(int(np.searchsorted(self._start, offset, "right")) - 1, 0)
        while i < len(self._rows):
            at, image_offset, count, kind = (int(v) for v in self._rows[i])
            if at >= offset + length:
                return
            low, high = max(at, offset), min(at + count, offset + length)
            if low < high:
                yield low - offset, image_offset + low - at if kind == RUN_DATA else -1, high - low
            i += 1

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length <= 0 or offset >= self._size:
            return b""
        length = min(length, self._size - offset)
        out = bytearray(length)
        for at, image_offset, count in self._parts(offset, length):
            if image_offset >= 0:
                data = self._reader.read(image_offset, count)
                out[at : at + len(data)] = data
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        if offset < 0 or offset + length > self._size:
            return True
        told = 0
        for _, image_offset, count in self._parts(offset, length):
            if image_offset >= 0 and self._reader.missing(image_offset, count):
                return True
            told += count
        return told < length
