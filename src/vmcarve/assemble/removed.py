"""Files of a guest that were deleted: where nobody has written since, their content lies where their maps say.

What is left of a deleted file's map (`HostVolume.files`) may be older than what lies there now. Blocks of files that
live are theirs, and of two deleted files the one that was born later had them last. What remains is looked for like the
content of a file that lives, and counts as a place that the guest may have in use, though its allocation map says free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..model import RUN_DATA, HostFile
from .state import Claims

Int64s = npt.NDArray[np.int64]
MAX_REMOVED = 4096  # ours: deleted files of one volume that are looked at


def removed(gone: Iterable[HostFile], live: Iterable[HostFile]) -> list[HostFile]:
    """The deleted files of a volume of which some data is still there, their runs cut to that.

    live: its files that are not.
    """
    gone = list(itertools.islice((f for f in gone if f.size > 0 and len(f.runs)), MAX_REMOVED))
    if not gone:
        return []
    taken = _data(live)
    out: list[HostFile] = []
    for file in sorted(gone, key=lambda f: -f.born):
        runs = np.array(list(_left(file.runs, taken)), np.int64).reshape(-1, 4)
        if len(runs):
            out.append(replace(file, runs=runs))
            for _, at, length, _ in runs.tolist():
                taken.add_range(at, at + length)
    return out


def _data(files: Iterable[HostFile]) -> Claims:
    out = Claims()
    for file in files:
        for at, length in file.runs[file.runs[:, 1] >= 0][:, 1:3].tolist():
            out.add_range(at, at + length)
    return out


def _left(runs: Int64s, taken: Claims) -> Iterator[tuple[int, int, int, int]]:
    """Rows of HostFile.runs: the data of which nobody has the place."""
    for f, at, length, kind in runs.tolist():
        if kind == RUN_DATA and at >= 0:
            for start, n in taken.free_of(np.array([[at, length]], np.int64)).tolist():
                yield f + start - at, start, n, RUN_DATA
