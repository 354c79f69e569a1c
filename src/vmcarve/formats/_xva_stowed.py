"""Chunks of an XVA whose file is known but for parts that are overwritten, so that some or all hashes do not agree.

Each header states its chunk's number, and so does that of the hash behind it: one of the two that is left says what
the chunk is. Between two that are left lie as many chunks as there is room for; where that is as many as numbers, none
was left out for being zeros, and each has its number.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ..model import DATA, LOST, GuestMap, Marks, Reader, Stowed
from ._tar import BLOCK
from ._xva_gather import HASH, REF_BITS, SPAN, marks
from ._xva_walk import CHUNK

Int64s = npt.NDArray[np.int64]

STEP = 1 << 20
LEAST = 4  # headers
MOST_BEFORE = 1 << 20  # bytes of ova.xml


def stow(reader: Reader) -> Iterable[Stowed]:
    """The disk of which most headers are left: its chunks, each in the guest's order."""
    found = _marks(reader)
    ref = (found.key & ((1 << 62) - 1)) >> REF_BITS
    if not len(ref):
        return
    names, count = np.unique(ref, return_counts=True)
    mine = ref == names[int(count.argmax())]
    hashes = found.key[mine] >= 1 << 62
    number = found.key[mine] & ((1 << REF_BITS) - 1)
    place = np.where(hashes, found.image_offset[mine] - SPAN + HASH, found.image_offset[mine])  # of the chunk's header
    size = np.where(hashes, CHUNK, found.span[mine] - BLOCK - HASH)
    empty = np.unique(number[~hashes & (size == 0)])  # takes a number, and holds nothing
    keep = (place >= 0) & (size == CHUNK) & ~np.isin(number, empty)
    rows = np.unique(np.stack((number[keep], place[keep]), axis=1), axis=0)
    rows = rows[np.concatenate(([True], np.diff(rows[:, 0]) > 0))] if len(rows) else rows
    if len(rows) < LEAST:
        return
    at = _between(_shifted(rows, empty))
    n = int(at[-1, 0]) + 1
    state, data = np.full(n, LOST, np.uint8), np.full(n, -1, np.int64)
    inside = at[:, 1] + BLOCK + CHUNK <= reader.size
    state[at[inside, 0]], data[at[inside, 0]] = DATA, at[inside, 1] + BLOCK
    yield Stowed(CHUNK, GuestMap.from_units(n * CHUNK, CHUNK, state, data), n * CHUNK, in_order=True)


def _shifted(rows: Int64s, empty: Int64s) -> Int64s:
    """The chunks by their place on the disk: members of length 0 take numbers, and what they take of the file tells of
    those that are lost too. Cut where the room between two chunks is none that members have.
    """
    step = np.diff(rows, axis=0)
    none, odd = np.divmod(step[:, 1] % SPAN, BLOCK + HASH)
    fits = (odd == 0) & (step[:, 1] > 0) & (none + step[:, 1] // SPAN <= step[:, 0])
    end = int(np.argmin(fits)) + 1 if not fits.all() else len(rows)
    before = int(np.searchsorted(empty, rows[0, 0]))
    out = rows[:end].copy()
    out[:, 0] -= before + np.concatenate(([0], np.cumsum(none[: end - 1])))
    return out


def _between(rows: Int64s) -> Int64s:
    """int64[n, 2]: number and place of the chunks that are known, and of those that can only be where they are."""
    out = [rows]
    first = int(rows[0, 0])
    if 0 <= int(rows[0, 1]) - first * SPAN <= MOST_BEFORE:
        out.append(np.stack((np.arange(first), rows[0, 1] - (first - np.arange(first)) * SPAN), axis=1))
    for (a, p), (b, q) in zip(rows[:-1].tolist(), rows[1:].tolist(), strict=True):
        if q - p == (b - a) * SPAN:
            more = np.arange(1, b - a)
            out.append(np.stack((a + more, p + more * SPAN), axis=1))
    every = np.concatenate(out)
    return every[np.argsort(every[:, 0], kind="stable")]


def _marks(reader: Reader) -> Marks:
    parts = [Marks(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64))]
    for at in range(0, reader.size, STEP):
        data = np.frombuffer(reader.read(at, STEP), np.uint8)
        sectors = data[: len(data) // BLOCK * BLOCK].reshape(-1, BLOCK)
        parts.append(marks(sectors, at + np.arange(len(sectors), dtype=np.int64) * BLOCK))
    return Marks(*(np.concatenate([getattr(p, c) for p in parts]) for c in ("image_offset", "key", "span")))
