"""Tables and back map of an SESparse extent in pieces tell each other's places.

A table's entry names a grain of the file, the back map's entry of that grain names the entry. So wherever two blocks
lie, an entry of the one whose place inside its block is what the other names there, and the other way round, says where
both belong. By chance that is so for one pair of entries in 2^18; each block's place is what most of its entries say.
Where two extents' blocks lie on an image, a place that two blocks have is nobody's.

Source: QEMU block/vmdk.c for the tables' entries; the back map's are as one file of ESXi has them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..model import Reader, Tied
from ._sesparse_wants import BLOCK, HALF, KINDS, TABLE_BYTES, USED, Words, grain_of

Int64s = npt.NDArray[np.int64]
Blocks = npt.NDArray[np.uint8]
ENTRIES = BLOCK // 8
TABLE_BLOCKS = TABLE_BYTES // BLOCK
NAMED, BACK = KINDS[-1], 1  # top nibbles: a table's entry that names a grain; the back map's that names an entry
LEAST = 4  # entries that say where a block belongs,
TIMES = 4  # and how many times as many as say so of the next best place
OUR_MAX_PAIRS = 1 << 24  # pairs of entries that are compared


def tied(reader: Reader, directory: tuple[int, int], tables: int, back_map: tuple[int, int], grains: int) -> Tied:
    """directory: file offset, and entries; tables: file offset of the first; back_map: file offset, and bytes; grains:
    that the disk has.
    """
    def begins(at: npt.NDArray[np.uint16], word: Words) -> npt.NDArray[np.bool_]:
        kind = word >> np.uint64(60)
        return np.isin(kind, KINDS) & (grain_of(word) < 2 * grains + ENTRIES)

    def place(blocks: Blocks) -> Int64s:
        words = blocks.view("<u8").reshape(-1, ENTRIES).astype(np.uint64)
        table, back = _places(words, grains)
        out = np.full(len(words), -1, np.int64)
        good = (back >= 0) & (back * BLOCK < back_map[1])
        out[good] = back_map[0] + back[good] * BLOCK
        rows = np.frombuffer(reader.read(directory[0], directory[1] * 8).ljust(directory[1] * 8, b"\0"), "<u8")
        rows = rows.astype(np.uint64)
        number = np.where(rows >> np.uint64(32) == USED, (rows & HALF).astype(np.int64), -1)
        good = (table >= 0) & (table // TABLE_BLOCKS < len(number))
        named = number[table[good] // TABLE_BLOCKS]
        at = tables + named * TABLE_BYTES + table[good] % TABLE_BLOCKS * BLOCK
        out[good] = np.where(named >= 0, at, -1)
        return out

    return Tied(begins, place)


def _places(words: Words, grains: int) -> tuple[Int64s, Int64s]:
    """Which block of all the disk's tables, and which of the back map, each of words uint64[n, 512] is; -1 neither."""
    grain = grain_of(words).astype(np.int64)
    kind = words >> np.uint64(60)
    whole = ((words == 0) | np.isin(kind, KINDS) & (grain < 2 * grains + ENTRIES)).all(axis=1)
    t_row, t_at = np.nonzero((kind == NAMED) & whole[:, None])
    b_row, b_at = np.nonzero((kind == BACK) & (grain < grains) & whole[:, None])
    t_grain, b_grain = grain[t_row, t_at], grain[b_row, b_at]
    t_key, b_key = t_at * ENTRIES + t_grain % ENTRIES, b_grain % ENTRIES * ENTRIES + b_at
    order = np.argsort(b_key, kind="stable")
    low = np.searchsorted(b_key[order], t_key)
    count = np.searchsorted(b_key[order], t_key, side="right") - low
    upto = int(np.searchsorted(np.cumsum(count), OUR_MAX_PAIRS, side="right"))
    count = count[:upto]
    t = np.repeat(np.arange(upto), count)
    b = order[np.arange(len(t)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low[:upto], count)]
    # a pair of entries says where both blocks belong: it counts for both
    return (_most(len(words), t_row[t], b_grain[b] // ENTRIES), _most(len(words), b_row[b], t_grain[t] // ENTRIES))


def _most(n: int, row: Int64s, place: Int64s) -> Int64s:
    """For each of n rows the place that is said of it by far most often, -1 none; one said of two rows is none's."""
    out = np.full(n, -1, np.int64)
    if not len(row):
        return out
    pair, votes = np.unique(np.column_stack((row, place)), axis=0, return_counts=True)
    order = np.lexsort((-votes, pair[:, 0]))
    pair, votes = pair[order], votes[order]
    first = np.flatnonzero(np.diff(pair[:, 0], prepend=-1))
    after = np.append(votes[1:], 0)
    after[np.append(first[1:], len(votes)) - 1] = 0
    clear = (votes[first] >= LEAST) & (votes[first] >= TIMES * after[first])
    chosen = pair[first[clear]]
    _, which, often = np.unique(chosen[:, 1], return_inverse=True, return_counts=True)
    chosen = chosen[often[which] == 1]
    out[chosen[:, 0]] = chosen[:, 1]
    return out
