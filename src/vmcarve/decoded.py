"""Which streams of a guest's map decode where they lie: decoded once, on threads, for all who ask of the same bytes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from .codec import decode_counted
from .filemap import FileMap, FileView
from .model import DATA, PLAIN, GuestMap, Streams

DECODERS = max(1, min(4, os.cpu_count() or 1))  # threads: zlib and zstd let go of the interpreter's lock
AT_ONCE = 16  # clusters that a thread decodes before it hands them on

Int64s = npt.NDArray[np.int64]


def encoded_rows(m: GuestMap) -> Int64s:
    """The rows of a map that are streams of this container."""
    return np.flatnonzero((m.state == DATA) & (m.encoding != PLAIN))


def taken(view: FileView, m: GuestMap) -> Int64s:
    """Per row of `encoded_rows` the stored bytes that its stream took, -1 where it does not decode.

    What was told before of a stream whose bytes lay in one run of the image, and lie there still, holds.
    """
    rows = encoded_rows(m)
    place = _places(view, m.file_offset[rows], m.stored[rows])
    out = np.full(len(rows), -1, np.int64)
    new = np.ones(len(rows), bool)
    if m.streams is not None and len(m.streams.place) == len(rows):
        new = (place < 0) | (place != m.streams.place)
        out[~new] = m.streams.taken[~new]
    if new.any():
        out[new] = _decoded(view, m, rows[new])
    m.streams = Streams(place, out)
    return out


def sound(view: FileView, m: GuestMap) -> npt.NDArray[np.bool_]:
    """Per row of the map whether it decodes; True for what is no stream."""
    out = np.ones(len(m), bool)
    out[encoded_rows(m)] = taken(view, m) >= 0
    return out


def _places(view: FileView, file_offset: Int64s, stored: Int64s) -> Int64s:
    """The image offsets of file ranges that lie in one row of the view's map and under no patch, else -1."""
    m: FileMap = view.map
    if len(m) == 0:
        return np.full(len(file_offset), -1, np.int64)
    i = np.maximum(np.searchsorted(m.file_offset, file_offset, side="right") - 1, 0)
    p = m.image_offset[i] + file_offset - m.file_offset[i]
    whole = (m.image_offset[i] >= 0) & (file_offset + stored <= m.file_offset[i] + m.length[i])
    for at, data in view.patches:
        whole &= (file_offset + stored <= at) | (file_offset >= at + len(data))
    return np.where(whole, p, -1)


def _decoded(view: FileView, m: GuestMap, rows: Int64s) -> Int64s:
    """`taken` of some rows. Threads decode, some at a time."""
    def some(part: Int64s) -> list[int]:
        out = []
        for i in part.tolist():
            stored = view.read(int(m.file_offset[i]), int(m.stored[i]))
            data, used = decode_counted(stored, int(m.encoding[i]), int(m.length[i]))
            out.append(-1 if data is None else used)
        return out

    parts = np.array_split(rows, -(-len(rows) // AT_ONCE))
    if len(parts) == 1 or DECODERS == 1:
        return np.array([used for part in parts for used in some(part)], np.int64)
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        return np.array([used for part in pool.map(some, parts) for used in part], np.int64)
