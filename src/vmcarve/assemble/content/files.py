"""The files of a guest as arrays: what the mechanisms that know kinds of files need of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...model import RUN_DATA, GuestMap, HostFile
from ..tails import Listed, to_file

Int64s = npt.NDArray[np.int64]
MAX_FILES = 2_000_000  # ours: files of one guest, some 100 bytes each
MAX_RUNS = 1 << 20  # ours: runs of one guest that are kept
MAX_PIECES = 1 << 22  # ours: that those of one guest are cut into


@dataclass(frozen=True, slots=True)
class Files:
    """size int64[n] of each file; run int64[r, 4]: (number of the file, offset in it, guest_offset, length), by file
    and rising. Only what lies plain on the disk.
    """

    size: Int64s
    run: Int64s

    @classmethod
    def none(cls) -> Files:
        return cls(np.empty(0, np.int64), np.empty((0, 4), np.int64))

    @classmethod
    def of(cls, opened: Iterable[Listed], gone: Iterable[HostFile] = ()) -> Files:
        """The live files of volumes, and behind them deleted ones (see `removed`)."""
        sizes: list[int] = []
        runs: list[Int64s] = []
        held = 0
        for file in itertools.chain(*(volume.live() for volume in opened), gone):
            if len(sizes) >= MAX_FILES or held >= MAX_RUNS:
                break
            if file.size <= 0 or not len(file.runs):
                continue
            plain = file.runs[(file.runs[:, 3] == RUN_DATA) & (file.runs[:, 1] >= 0)]
            rows = np.empty((len(plain), 4), np.int64)
            rows[:, 0], rows[:, 1:] = len(sizes), plain[:, :3]
            sizes.append(file.size)
            runs.append(rows)
            held += len(rows)
        return cls(np.array(sizes, np.int64), np.concatenate(runs) if runs else np.empty((0, 4), np.int64))

    def begins(self) -> tuple[Int64s, Int64s]:
        """(guest_offset of the first byte, number) of the files whose begin is there."""
        first = self.run[self.run[:, 1] == 0]
        return first[:, 2], first[:, 0]

    def place(self, number: Int64s, offset: Int64s) -> Int64s:
        """The guest offsets of bytes of files, -1 where no run has them. number, offset int64[m]."""
        out = np.full(len(number), -1, np.int64)
        if not len(self.run):
            return out
        # runs rise by file and offset: one key for both
        width = int(max(self.run[:, 1].max(), offset.max(initial=0))) + 1
        key = self.run[:, 0] * width + self.run[:, 1]
        i = np.searchsorted(key, number * width + offset, side="right") - 1
        good = (i >= 0) & (self.run[i, 0] == number) & (offset < self.run[i, 1] + self.run[i, 3])
        out[good] = (self.run[i, 2] + offset - self.run[i, 1])[good]
        return out

    def in_container(self, table: GuestMap) -> Int64s:
        """int64[n, 4] of the runs as the container has them, cut where its map is: number of the file, offset in it,
        file_offset of the container, length; by file and rising."""
        run = self.run[self.run[:, 3] > 0]
        if not len(table) or not len(run):
            return np.empty((0, 4), np.int64)
        low = np.maximum(np.searchsorted(table.guest_offset, run[:, 2], side="right") - 1, 0)
        which, row = spread(low, np.searchsorted(table.guest_offset, run[:, 2] + run[:, 3]))
        begin = np.maximum(run[which, 2], table.guest_offset[row])
        end = np.minimum(run[which, 2] + run[which, 3], table.guest_offset[row] + table.length[row])
        f = to_file(table, begin)
        keep = (f >= 0) & (end > begin)
        which, begin, end, f = which[keep], begin[keep], end[keep], f[keep]
        return np.column_stack((run[which, 0], run[which, 1] + begin - run[which, 2], f, end - begin))


def spread(low: Int64s, high: Int64s) -> tuple[Int64s, Int64s]:
    """(index, number) of all numbers in [low, high) of each index; none beyond MAX_PIECES."""
    count = np.maximum(high - low, 0)
    count[np.cumsum(count) > MAX_PIECES] = 0
    which = np.repeat(np.arange(len(low)), count)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
