"""First-level tables without a header: what is left of one, and entries for the rest from tables that place themselves.

Knows no format: qcow, qcow2 and QED share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ..model import Clue, RowRule, TablePieces
from ._qcow2_tables import I64, U64, Bools, read_words
from ._rebuilt import Laid
from ._shapes import Numbers, distinct, pieces, power_of_two, rows_of

PIECE = 4096
PER_SECTOR = 64  # entries
MAX_OFFSET = 1 << 45  # ours: 32 TiB; a number with more bits is something else
MIN_UNIT, MAX_UNIT = 1 << 12, 1 << 21  # clusters of the formats without flags in their entries
OFFSETS = Numbers(illegal=MIN_UNIT - 2, ranges=((0, MAX_OFFSET - 1),))  # 1: a cluster of zeros (QED)


def plain_rows(dtype: str) -> tuple[RowRule, ...]:
    """What `plain_tables` finds something in."""
    return (OFFSETS.rule(dtype, PIECE),)


def plain_tables(blocks: npt.NDArray[np.uint8], image_offset: I64, dtype: str, kind: str) -> Iterable[TablePieces]:
    """Blocks of second-level tables whose entries are file offsets of clusters and nothing else (qcow 1, QED)."""
    words, where = rows_of(blocks, image_offset, dtype, PIECE)
    low = np.uint64(MIN_UNIT - 1)
    row = OFFSETS.sieve(words)
    if not len(row):
        return
    value = words[row].astype(np.uint64)
    place = (value & ~low).astype(np.int64)
    used = place > 0
    good = ((value & low == 0) | (value == 1)).all(axis=1) & used.any(axis=1)
    good &= distinct(place, used)
    row, place, used = row[good], place[good], used[good]
    step = np.minimum(power_of_two(place, used), MAX_UNIT)
    for unit in np.unique(np.concatenate([step, np.minimum(step, 1 << 16), np.minimum(step, MIN_UNIT)])).tolist():
        own = step >= unit
        if unit and own.any():
            yield pieces(kind, unit, where[row[own]], np.where(used[own], place[own], -1))


def remains(view: Laid, at: int, count: int, dtype: str, legal: Callable[[U64], Bools]) -> tuple[U64, Bools]:
    """The entries of a first-level table at `at`, and which can be believed: sectors of legal, different ones."""
    raw, known = read_words(view, at, count, dtype)
    words = raw.astype(np.uint64)
    bad = ~legal(words) | ~known
    value, index, times = np.unique(words, return_inverse=True, return_counts=True)
    bad |= (times[index] > 1) & (value[index] > 0)
    edge = (at % 512) // 8
    rows = (np.arange(count) + edge) // PER_SECTOR
    spoilt = np.bincount(rows[bad], minlength=int(rows[-1]) + 1 if count else 0) > 0
    return words, ~spoilt[rows] if count else known


def numbered(clue: Clue, kind: str, entries: int, cluster: int, count: int) -> tuple[I64, I64]:
    """(number, file offset) of second-level tables whose number a guest structure proves; two claims void both."""
    none = np.zeros(0, np.int64)
    if clue.pieces.kind != kind:
        return none, none
    known = np.flatnonzero(clue.first >= 0)
    own = clue.pieces.image_offset[known] - clue.origin - clue.first[known] % entries * 8
    number = clue.first[known] // entries
    good = (own > 0) & (own % cluster == 0) & (number < count)
    pairs = np.unique(np.stack([number[good], own[good]], 1), axis=0)
    for column in (0, 1):
        value, times = np.unique(pairs[:, column], return_counts=True)
        pairs = pairs[np.isin(pairs[:, column], value[times == 1])]
    return pairs[:, 0], pairs[:, 1]


def completed(view: Laid, at: int, dtype: str, legal: Callable[[U64], Bools], number: I64, own: I64, count: int,
              flag: int = 0) -> tuple[U64, Bools]:
    """The table with what is left of it and, for the rest, the numbered ones (`flag`: bits that entries carry); and
    which entries are told."""
    words, told = remains(view, at, count, dtype, legal)
    words[~told] = 0
    words[number[~told[number]]] = own[~told[number]].astype(np.uint64) | np.uint64(flag)
    told = told.copy()
    told[number] = True
    return words, told
