"""Tables without a magic, told by the numbers in them: what the tests of several formats share.

A row is a piece of a table: a sector of 32-bit numbers, or a block of 64-bit ones. First a few numbers of each row are
looked at, then all of those that could be one; what remains is a guess until a guest structure or the layout agrees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import SECTOR, TablePieces

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[Any]

SAMPLE = 8  # numbers of a row that are looked at first


def rows_of(blocks: npt.NDArray[np.uint8], image_offset: I64, dtype: str, row: int = SECTOR) -> tuple[Words, I64]:
    """The numbers of each row of `row` bytes, and where the rows lie. Shares the blocks' bytes."""
    per = blocks.shape[1] // row
    words = np.ascontiguousarray(blocks).reshape(-1, row).view(dtype)
    return words, np.repeat(image_offset, per) + np.tile(np.arange(per, dtype=np.int64) * row, len(image_offset))


def sieve(words: Words, legal: Callable[[Words], Bools], alike: Callable[[Words], Bools] | None = None) -> I64:
    """Rows, not empty, in which every number is `legal`; `alike`, if given, holds of them and of parts of them.

    The first numbers of a row share a cache line, so they go first; most rows end there.
    """
    row = np.flatnonzero(legal(words[:, 0]) & legal(words[:, 1]))
    row = row[words[row].any(axis=1)]
    for columns in (slice(None, SAMPLE), slice(None, None, max(1, words.shape[1] // SAMPLE)), slice(None)):
        part = words[row, columns]
        good = np.flatnonzero(legal(part).all(axis=1))
        row = row[good if alike is None else good[alike(part[good])]]
    return row


def one_remainder(values: Words, used: Bools, step: int) -> Bools:
    """Rows whose used numbers leave one remainder by `step`."""
    rest = np.where(used, values % step, 0)
    most = rest.max(axis=1, initial=0)
    return ((rest == most[:, None]) | ~used).all(axis=1)


def padding(words: Words) -> Bools:
    """The zeros at the end of each row, two or more: what is written behind a table's last entry."""
    behind = np.cumsum((words != 0)[:, ::-1], axis=1)[:, ::-1] == 0
    return behind & (behind.sum(axis=1) > 1)[:, None]


def distinct(values: I64, used: Bools) -> Bools:
    """Rows in which no used number stands twice."""
    filler = -1 - np.arange(values.shape[1], dtype=np.int64)  # all different, and none a used one
    ordered = np.sort(np.where(used, values, filler), axis=1)
    return (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)


def pieces(kind: str, unit: int, where: I64, place: I64, phase: int = 0, own: I64 | None = None) -> TablePieces:
    """A batch; own: -1 throughout unless given."""
    return TablePieces(kind, unit, where, place, np.full(len(where), -1, np.int64) if own is None else own, phase)


def power_of_two(values: I64, used: Bools) -> I64:
    """The largest power of two that divides every used number of a row (0 where none is used)."""
    bits = np.bitwise_or.reduce(np.where(used, values, 0), axis=1)
    return bits & -bits
