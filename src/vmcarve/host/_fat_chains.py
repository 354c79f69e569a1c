"""FAT12/16/32 and exFAT: the allocation table as runs, chains through it, and guesses for chains that are gone.

Sources: Microsoft's FAT specification 1.03 and exFAT specification; Linux fs/fat, fs/exfat; exfat-fuse.
A cluster number c (from 2) is heap byte (c - 2) * cluster. A table of 2**28 entries is never held as such: neighbours
that follow each other are one segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import RUN_DATA, Reader
from ._blocks import NO_RUNS, merge
from ._space import NO_ROWS, PIECE, Runs, clipped, equal_runs, inverted, joined_rows

FIRST = 2  # number of the first cluster
LEAST_PIECE = 1024  # entries that are asked for by themselves where some of a table are lost
END, BAD = -1, -2  # a segment's end: the chain's end; anything that is no cluster
OUR_MAX_SEGMENTS = 1 << 22  # of one table (96 MiB); the clusters behind them count as lost

Entries = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Heap:
    """Where clusters lie. start: image offset of cluster 2; cluster: bytes; count: clusters."""

    start: int
    cluster: int
    count: int

    def holds(self, cluster: int) -> bool:
        return FIRST <= cluster < FIRST + self.count

    def rows(self, runs: Runs) -> Runs:
        """HostFile rows of a file that lies in `runs` (int64[n, 2]: cluster, count), from its byte 0 on."""
        if not len(runs):
            return NO_ROWS
        length = runs[:, 1] * self.cluster
        image = self.start + (runs[:, 0] - FIRST) * self.cluster
        return joined_rows(np.stack((np.cumsum(length) - length, image, length, np.full_like(image, RUN_DATA)), axis=1))

    def image(self, runs: Runs) -> Runs:
        """Runs of clusters as merged runs of image bytes."""
        if not len(runs):
            return NO_RUNS
        return merge(np.stack((self.start + (runs[:, 0] - FIRST) * self.cluster, runs[:, 1] * self.cluster), axis=1))


class Table:
    """One allocation table. pieces: (number of the first entry, entries uint32[n] or None when unreadable), rising.

    end: the smallest value that ends a chain. A table's chains never share an entry, so what all walks together may
    step over is bounded by the table.
    """

    def __init__(self, heap: Heap, pieces: Iterable[tuple[int, Entries | None]], end: int) -> None:
        self._heap = heap
        parts: list[Runs] = []
        free: list[Runs] = []
        told: list[tuple[int, int]] = []
        held = 0
        for first, entries in pieces:
            if entries is None or held > OUR_MAX_SEGMENTS:
                continue
            told.append((first, len(entries)))
            segments, gaps = _segments(first, entries, heap, end)
            parts.append(segments)
            free.append(gaps)
            held += len(segments) + len(gaps)
        self.free = merge(np.concatenate([NO_RUNS, *free]))  # clusters whose entry is 0: int64[n, 2]
        self.lost = inverted(_pairs(told), FIRST, FIRST + heap.count)  # clusters whose entry is nowhere: int64[n, 2]
        segments = _joined(np.concatenate([np.zeros((0, 3), np.int64), *parts]))
        self._first, self._count, self._next = (np.ascontiguousarray(segments[:, i]) for i in range(3))
        self._steps = 4 * len(segments) + 1024

    def chain(self, first: int, most: int) -> tuple[Runs, bool]:
        """The clusters from `first` on, at most `most`: int64[n, 2], and whether the chain held that far or ended."""
        found: list[tuple[int, int]] = []
        at, left = first, most
        while left > 0:
            i = int(np.searchsorted(self._first, at, "right")) - 1
            self._steps -= 1
            if i < 0 or at >= int(self._first[i] + self._count[i]) or self._steps < 0:
                return _pairs(found), False
            count = min(int(self._first[i] + self._count[i]) - at, left)
            found.append((at, count))
            left -= count
            at = int(self._next[i])
            if left and at == END:
                return _pairs(found), True
            if left and at == BAD:
                return _pairs(found), False
        return _pairs(found), True

    def following(self, cluster: int) -> int:
        """The cluster that the entry of `cluster` names, END or BAD; BAD where the entry is lost or names none."""
        i = int(np.searchsorted(self._first, cluster, "right")) - 1
        if i < 0 or cluster >= int(self._first[i] + self._count[i]):
            return BAD
        return cluster + 1 if cluster + 1 < int(self._first[i] + self._count[i]) else int(self._next[i])

    def heads(self) -> list[int]:
        """Clusters that begin a chain, as far as the table tells: none names them, nor is the entry before lost."""
        before = np.searchsorted(self.lost[:, 0], self._first - 1, "right") - 1
        lost = before >= 0
        lost[lost] = self._first[lost] - 1 < self.lost[before[lost]].sum(axis=1)
        return self._first[~lost & ~np.isin(self._first, self._next)].tolist()

    def is_lost(self, cluster: int) -> bool:
        """Whether the cluster's entry is nowhere."""
        i = int(np.searchsorted(self.lost[:, 0], cluster, "right")) - 1
        return i >= 0 and cluster < int(self.lost[i].sum())

    def in_one_run(self, first: int, most: int) -> Runs:
        """The clusters of a chain from one on whose entry is lost, as if they followed each other, as most do:
        int64[n, 2].

        Behind the lost entries those that are left must go on with it. None where the first entry is there.
        """
        if not self.is_lost(first):
            return NO_RUNS
        end = int(self.lost[int(np.searchsorted(self.lost[:, 0], first, "right")) - 1].sum())
        count = min(end - first, most)
        rest, _ = self.chain(end, most - count) if most > count and self._heap.holds(end) else (NO_RUNS, False)
        runs = np.concatenate((_pairs([(first, count)]), rest))
        return runs if int(runs[:, 1].sum()) == most else NO_RUNS


def _pairs(found: list[tuple[int, int]]) -> Runs:
    return np.array(found, np.int64).reshape(-1, 2)


def _segments(first: int, entries: Entries, heap: Heap, end: int) -> tuple[Runs, Runs]:
    """Of one piece: int64[n, 3] (first, count, next) of entries that follow each other, and runs of free entries."""
    skip = max(FIRST - first, 0)
    entries = entries[skip : max(FIRST + heap.count - first, skip)]
    first += skip
    value = entries.astype(np.int64)
    used = np.flatnonzero(value)
    gaps = equal_runs(value == 0, first)
    if not len(used):
        return np.zeros((0, 3), np.int64), gaps
    number, value = used + first, value[used]
    goes_on = value[:-1] == number[1:]  # the next entry that is in use is the one that this one names ...
    goes_on &= number[1:] == number[:-1] + 1  # ... and its neighbour
    start = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    last = np.concatenate((start[1:] - 1, [len(number) - 1]))
    following = value[last]
    following = np.where(following >= end, END, np.where((following < FIRST) | (following >= FIRST + heap.count),
                                                         BAD, following))  # fmt: skip
    return np.stack((number[start], last - start + 1, following), axis=1), gaps


def _joined(segments: Runs) -> Runs:
    """Segments that one piece ended and the next goes on with are made one."""
    if len(segments) < 2:
        return segments
    goes_on = (segments[:-1, 2] == segments[1:, 0]) & (segments[:-1, 0] + segments[:-1, 1] == segments[1:, 0])
    start = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    last = np.concatenate((start[1:] - 1, [len(segments) - 1]))
    return np.stack((segments[start, 0], np.add.reduceat(segments[:, 1], start), segments[last, 2]), axis=1)


def read_table(reader: Reader, copies: list[int], bits: int, heap: Heap) -> Iterator[tuple[int, Entries | None]]:
    """The entries in pieces, from the first copy (image offsets); where that is unreadable or nonsense, the next one.

    A piece that is whole in no copy is asked for in halves. bits: 12, 16, 28 (FAT32, four bytes each) or 32 (exFAT).
    """
    total = FIRST + heap.count
    width = 32 if bits == 28 else bits
    step = total if bits == 12 else PIECE * 8 // width
    waiting = [(first, min(step, total - first)) for first in range(0, total, step)][::-1]
    while waiting:
        first, count = waiting.pop()
        best: Entries | None = None
        fewest = count + 1
        for copy in copies:
            at, length = copy + first * width // 8, -(-count * width // 8)
            if reader.missing(at, length):
                continue
            entries = _decoded(reader.read(at, length), bits, count)
            # no cluster, and none of the special values, which are the 16 largest of their width
            wrong = int(((entries >= total) & (entries < (1 << bits) - 16)).sum())
            if wrong < fewest:
                best, fewest = entries, wrong
            if not wrong:
                break
        half = count // 2 // LEAST_PIECE * LEAST_PIECE
        if fewest and half and bits != 12:
            waiting += [(first + half, count - half), (first, half)]
        else:
            yield first, best


def _decoded(data: bytes, bits: int, count: int) -> Entries:
    if bits == 32:
        return np.frombuffer(data, "<u4", count)
    if bits == 28:
        return (np.frombuffer(data, "<u4", count) & 0x0FFFFFFF).astype(np.uint32)
    if bits == 16:
        return np.frombuffer(data, "<u2", count).astype(np.uint32)
    raw = np.frombuffer(data.ljust(-(-len(data) // 3) * 3, b"\0"), np.uint8).reshape(-1, 3).astype(np.uint32)
    even, odd = raw[:, 0] | (raw[:, 1] & 15) << 8, raw[:, 1] >> 4 | raw[:, 2] << 4
    return np.stack((even, odd), axis=1).reshape(-1)[:count].astype(np.uint32)


class Guess:
    """Where a deleted file may lie of which only the first cluster and the size are left. free: runs of clusters."""

    def __init__(self, heap: Heap, free: Runs) -> None:
        self._heap, self._free = heap, free
        self._before = np.cumsum(free[:, 1]) - free[:, 1]

    def is_free(self, cluster: int) -> bool:
        return self._run(cluster) >= 0

    def _run(self, cluster: int) -> int:
        i = int(np.searchsorted(self._free[:, 0], cluster, "right")) - 1
        return i if i >= 0 and cluster < int(self._free[i].sum()) else -1

    def maps(self, first: int, size: int) -> Iterator[tuple[Runs, bool]]:
        """HostFile rows and whether they cover the file, the likelier map first.

        Through free clusters only, as if those in use had been so before the file was written; then in one piece, as
        if they were given away after it was deleted.
        """
        count = min(-(-size // self._heap.cluster), self._heap.count)
        flow = self._flow(first, count)
        if len(flow):
            yield self._heap.rows(flow), int(flow[:, 1].sum()) * self._heap.cluster >= size
        if len(flow) != 1:
            kept = clipped(self._free, first, first + count)
            if len(kept):
                whole = np.stack(((kept[:, 0] - first) * self._heap.cluster, self._heap.image(kept)[:, 0],
                                  kept[:, 1] * self._heap.cluster, np.full(len(kept), RUN_DATA)), axis=1)  # fmt: skip
                yield whole, False

    def _flow(self, first: int, count: int) -> Runs:
        i = self._run(first)
        if i < 0 or count <= 0:
            return NO_RUNS
        skipped = first - int(self._free[i, 0])
        end = int(np.searchsorted(self._before, int(self._before[i]) + skipped + count))
        runs = self._free[i:end].copy()
        runs[0] += (skipped, -skipped)
        over = int(runs[:, 1].sum()) - count
        runs[-1, 1] -= max(over, 0)
        return runs
