"""Tables smaller than a block, or between sectors of data: each states its place by the first thing that it names.

A table is allocated when the first of its units is written, and that unit right behind it, or behind what other writes
allocate meanwhile. So the lowest place that it names, less its own length, is its own, or one of the few before that
is; which places there are the level above names. Knows no format.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..model import SECTOR, Placer

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
LOOKED_AT = 4  # words of a sector by which most sectors are turned down
BITS = 40.0
NOTHING = np.iinfo(np.int64).max


def placer(tables: I64, table_bytes: int, dtype: str, places: Callable[[npt.NDArray[np.generic]], I64],
           between: int = 0) -> Placer | None:
    """How such tables place themselves; None where the level above names none.

    tables: file offsets that the level above names. table_bytes: of one, whole sectors.
    places(words) -> the file offsets that words of `dtype` name, 0 for nothing, -1 where a word is no entry.
    between: bytes that may be allocated between a table and the first that it names, by writes that were in flight
    with that one. Then a table states every place of a table that lies so near, and that right before it twice.
    """
    known = np.unique(tables[tables > 0])
    width = SECTOR // np.dtype(dtype).itemsize
    sectors = table_bytes // SECTOR
    columns = np.linspace(0, width - 1, LOOKED_AT).astype(np.int64)

    def find(data: U8) -> tuple[I64, I64]:
        words = data[: len(data) // SECTOR * SECTOR].view(dtype).reshape(-1, width)
        legal = np.asarray((places(words[:, columns]) >= 0).all(axis=1))
        rows = np.flatnonzero(legal)
        rows = rows[words[rows].any(axis=1)]
        named = places(words[rows])
        ordered = np.sort(named, axis=1)
        once = ((ordered[:, 1:] != ordered[:, :-1]) | (ordered[:, 1:] == 0)).all(axis=1)
        legal[rows] = (named >= 0).all(axis=1) & once & ~np.isin(named, known).any(axis=1)  # else it is the level above
        lowest = np.full(len(words) + 1, NOTHING)
        lowest[rows] = np.where(named > 0, named, NOTHING).min(axis=1, initial=NOTHING)
        if len(words) < sectors:
            return rows[:0].astype(np.int64), rows[:0].astype(np.int64)
        illegal = np.concatenate(([0], np.cumsum(~legal)))
        whole = illegal[sectors:] == illegal[:-sectors]  # of each sector: it and those that follow may be a table
        at = np.flatnonzero(whole)
        place = np.lib.stride_tricks.sliding_window_view(lowest[:-1], sectors)[at].min(axis=1) - table_bytes
        first, last = np.searchsorted(known, place - between), np.searchsorted(known, place, side="right")
        behind = (known[np.maximum(last, 1) - 1] == place).astype(np.int64)
        many = last - first + (behind if between else 0)
        which = np.repeat(np.arange(len(at)), many)
        index = first[which] + np.arange(len(which)) - np.repeat(np.cumsum(many) - many, many)
        return at[which].astype(np.int64) * SECTOR, known[np.minimum(index, last[which] - 1)]

    return Placer(f"{len(known)} tables", find, BITS, table_bytes) if len(known) else None
