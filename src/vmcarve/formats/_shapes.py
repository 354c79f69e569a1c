"""Tables without a magic, told by the numbers in them: what the tests of several formats share.

A row is a piece of a table: a sector of 32-bit numbers, or a block of 64-bit ones. A kernel drops the rows whose
numbers cannot stand in such a table; what remains is a guess until a guest structure or the layout agrees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .._ext.legal_rows import legal_rows
from ..model import SECTOR, RowRule, TablePieces

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Where:
    """Where rows of `row` bytes lie, `per` of them in a block; block int64[n]: image offsets of the blocks."""

    block: I64
    per: int
    row: int

    def __getitem__(self, rows: I64) -> I64:
        """Image offsets of the rows of these numbers: few are asked for."""
        return self.block[rows // self.per] + rows % self.per * self.row


def rows_of(blocks: npt.NDArray[np.uint8], image_offset: I64, dtype: str, row: int = SECTOR) -> tuple[Words, Where]:
    """The numbers of each row of `row` bytes, and where the rows lie. Shares the blocks' bytes."""
    words = np.ascontiguousarray(blocks).reshape(-1, row).view(dtype)
    return words, Where(image_offset, blocks.shape[1] // row, row)


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the numbers of a table's row can be: none has an `illegal` bit, each lies in one of `ranges` (low, high) or
    `unused` (ends counted), and where `steps` are given all but the unused ones leave one remainder by one of these.
    """

    illegal: int = 0
    ranges: tuple[tuple[int, int], ...] = ((0, (1 << 64) - 1),)
    unused: tuple[tuple[int, int], ...] = ()
    steps: tuple[int, ...] = ()
    _ends: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.uint8], npt.NDArray[np.uint32]] = field(
        init=False, repr=False)

    def __post_init__(self) -> None:
        both = [*self.unused, *self.ranges]  # a number of an unused range is none of the others
        ends = (np.array([low for low, _ in both], np.uint64), np.array([high for _, high in both], np.uint64),
                np.arange(len(both)) < len(self.unused), np.array(self.steps, np.uint32))
        object.__setattr__(self, "_ends", (ends[0], ends[1], ends[2].view(np.uint8), ends[3]))

    def rule(self, dtype: str, row: int = SECTOR) -> RowRule:
        """The same for who looks for such rows of `row` bytes, numbers of `dtype`, before they are asked one by one."""
        kind = np.dtype(dtype)
        return RowRule(row, kind.itemsize, not kind.isnative, self.illegal, *self._ends)

    def sieve(self, words: Words) -> I64:
        """The rows of words [n, k] (contiguous, 4 or 8 bytes a number) that fit and are not all zeros, rising."""
        out = np.empty(len(words), np.int64)
        size = words.dtype.itemsize
        n = legal_rows(words.view(np.uint8).reshape(-1), words.shape[1] * size, size, not words.dtype.isnative,
                       self.illegal, *self._ends, out)
        return out[:n]


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
