"""Whether stretches of a file are of one kind, by how often each byte is in them.

Borders say little of a unit that holds one large file: what is a base64 mailbox, a database, a log or a program shows
in the counts of its bytes, and they hardly change within a file. Two counts are compared by their Hellinger distance;
what a distance is worth depends on how many others of the image are as near (films and archives are all alike, and
much prose is).
Memory: 1 KiB for each CELL of the stretches that are asked.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CELL, COUNTED = 64 << 10, 16 << 10  # bytes of a stretch of which the first ones are counted
MOST_CELLS = 64  # ours: of what is placed of one file
LEAST = COUNTED  # bytes counted on each side, for anything to be said
STEPS = (0.05, 0.1, 0.15, 0.3, 0.4)
WITHIN = np.array([0.6, 0.15, 0.1, 0.1, 0.04, 0.01])
"""share of the pairs of units of one file by their distance; of 323 units that one file fills (corpus of five images)
it was 0.84, 0.06, 0.04, 0.05, 0.01 and 0.001: files of real users change more within"""


def counts(data: bytes | memoryview) -> npt.NDArray[np.uint32]:
    """uint32[n + 1, 256]: how often each byte is counted in the cells before each of them, and in all."""
    array = np.frombuffer(data, np.uint8)
    out = np.zeros((-(-len(array) // CELL) + 1, 256), np.uint32)
    for k in range(len(out) - 1):
        out[k + 1] = out[k] + np.bincount(array[k * CELL : k * CELL + COUNTED], minlength=256).astype(np.uint32)
    return out


def within(size: int, low: int, high: int) -> tuple[int, int]:
    """The first of the cells of a stretch of so many bytes that are counted inside bytes [low, high) of it, and the one
    behind the last."""
    first = -(-low // CELL)
    return first, max(first, (high - min(size, COUNTED)) // CELL + 1)


def distances(one: Floats, others: Floats) -> Floats:
    """Hellinger distances (0 to 1) of counts float64[256] from each of float64[n, 256]; nan where one has too few."""
    a, b = one.sum(), others.sum(axis=1)
    same = np.sqrt(others * one).sum(axis=1) / np.sqrt(np.maximum(a * b, 1))
    return np.where((b >= LEAST) & (a >= LEAST), np.sqrt(np.maximum(0, 1 - same)), np.nan)


def worth(distance: Floats, kind: npt.NDArray[np.int64]) -> Floats:
    """Bits that speak against each of all that may lie there being of the file, more than against any of its `kind`
    (which is weighed elsewhere, `joins`); 0 where nothing is known, or does. What is as near may be of a file alike:
    where that counted for a place, whole files of text went where others belong.
    """
    known = ~np.isnan(distance)
    step = np.searchsorted(STEPS, distance[known], side="right")
    _, which = np.unique(kind[known], return_inverse=True)
    count = np.zeros((which.max(initial=-1) + 1, len(WITHIN)))
    np.add.at(count, (which, step), 1.0)
    out = np.zeros(len(distance))
    out[known] = np.minimum(0.0, np.log2(WITHIN[step] * count.sum(axis=1)[which] / count[which, step]))
    return out
