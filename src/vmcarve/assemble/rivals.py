"""Deleted files that claim the same blocks: which of them held a block last, and what nobody can tell.

Two maps that name one block are of different times: the file that got the block later wrote over the other's bytes.
A map shows its file as it was last, so all that a file held, it held when it was deleted. Hence of two files the one
that was born after the other allocated its last block is the later one, and the block is its own. Where their times
do not tell, the bytes stay with both, as a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

from ..filemap import FileMap
from ..model import GUESSED, PROVEN, RUN_CHECKED, RUN_DATA, SUPPORTED, HostFile
from .state import Claims

REUSED = "reused"  # the rule of bytes that somebody else wrote over
CONTESTED = "contested"  # and of those that somebody may have written over
SAME = 0.9  # share of a map that must lie at equal distances for two remnants without numbers to be of one file


class Rivals:
    """The maps of all deleted files of one volume, whether they are disks or not."""

    def __init__(self, files: Iterable[HostFile], quiet_since: Callable[[], float] = lambda: -math.inf) -> None:
        self._quiet = cache(quiet_since)
        self._files = [f for f in files if f.deleted and len(f.runs)]
        parts = [f.runs[np.isin(f.runs[:, 3], (RUN_DATA, RUN_CHECKED)) & (f.runs[:, 1] >= 0)] for f in self._files]
        rows = np.concatenate([np.empty((0, 4), np.int64), *parts])
        self._owner = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
        self._start, self._end, self._file = rows[:, 1], rows[:, 1] + rows[:, 2], rows[:, 0]

    def settle(self, file: HostFile, file_map: FileMap) -> FileMap:
        """A deleted file's map without what later files wrote over; what the order is not known of is a guess.

        So is all of it, when files may have come and gone since, of which nothing is left.
        """
        if not len(file_map) or file.settled:
            return file_map
        if file.last == math.inf or file.last <= self._quiet():
            file_map = FileMap.build((f, n, p, GUESSED if grade == SUPPORTED else grade, why)
                                     for f, n, p, grade, why in file_map.rows())
        if not len(self._start):
            return file_map
        doubted = np.array([grade != PROVEN for grade in file_map.grade], np.bool_)
        placed = np.flatnonzero((file_map.image_offset >= 0) & doubted)
        placed = placed[np.argsort(file_map.image_offset[placed], kind="stable")]
        low = file_map.image_offset[placed]
        delta = file_map.file_offset[placed] - low
        reach = np.maximum.accumulate(low + file_map.length[placed]) if len(placed) else low
        first = np.searchsorted(reach, self._start, side="right")
        last = np.searchsorted(low, self._end, side="left")
        touching: dict[int, list[int]] = {}
        for k in np.flatnonzero(last > first).tolist():
            touching.setdefault(int(self._owner[k]), []).append(k)
        proven, later, unknown = Claims(), Claims(), Claims()
        for _, n, p, grade, _ in file_map.rows():
            if p >= 0 and grade == PROVEN:
                proven.add_range(p, p + n)
        for owner, runs in touching.items():
            other = self._files[owner]
            if other is file or other.identity == file.identity or before(other, file):
                continue
            if self._is_same(other, owner, runs, file, low, first, delta):
                continue
            claims = later if before(file, other) and other.certain else unknown
            theirs = np.stack((self._start[runs], self._end[runs] - self._start[runs]), axis=1)
            for a, n in proven.free_of(theirs).tolist():
                claims.add_range(a, a + n)
        return unknown.regraded(later.rest_of(file_map, REUSED), GUESSED, CONTESTED)

    def _is_same(self, other: HostFile, owner: int, runs: list[int], file: HostFile, low: npt.NDArray[np.int64],
                 first: npt.NDArray[np.int64], delta: npt.NDArray[np.int64]) -> bool:
        """Whether two remnants are of one file: no different number, and nearly all in the same places of it."""
        if other.number >= 0 and file.number >= 0 and other.number != file.number:
            return False
        equal = sum(int(self._end[k] - self._start[k]) for k in runs
                    if int(self._file[k] - self._start[k]) == int(delta[min(int(first[k]), len(low) - 1)]))
        mine = self._owner == owner
        return equal >= SAME * int((self._end[mine] - self._start[mine]).sum())


def before(a: HostFile, b: HostFile) -> bool:
    """Whether `a` had allocated its last block before `b` was born."""
    return a.last < b.born
