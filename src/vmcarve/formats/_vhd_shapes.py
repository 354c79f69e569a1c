"""A VHD without its front: the block table's entries are congruent to the stride of the blocks (fact: see vhd.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import GUESSED, SECTOR, Clue, Container, GuestMap, Orphan, Patch, Reader, Stowed, TablePieces
from ._rebuilt import Laid, lose_untold, opened, orphan
from ._shapes import I64, Numbers, distinct, one_remainder, padding, pieces, rows_of
from ._stowed import in_row
from ._vhd_parts import FOOTER, HEADER_AT, TABLE_AT, UNUSED, VERSION, make_header, summed, up

# block size: sectors from one block to the next, back to back and with data on 4 KiB
STRIDES = {1 << 21: (4097, 4104), 1 << 19: (1025, 1032)}
PAGE = 4096
PAGE_SECTORS = PAGE // SECTOR
FLOOR = 4  # no block begins before this sector
FIXED = 2  # disk type
MAX_SECTOR = 1 << 29  # ours, of 2^32: text would pass as sectors behind 256 GiB
BITMAP = SECTOR  # of both block sizes
MAX_TABLE_AT = 1 << 20  # ours: bytes before the table; Windows puts it at 8192 (seen)
SECTORS = Numbers(ranges=((FLOOR, MAX_SECTOR - 1),), unused=((0, 0), (UNUSED, UNUSED)),
                  steps=tuple(stride for strides in STRIDES.values() for stride in strides))
ROWS = (SECTORS.rule(">u4"),)


def shapes(blocks: npt.NDArray[np.uint8], image_offset: I64) -> Iterable[TablePieces]:
    """Sectors of block tables: sector numbers with one remainder by the stride, all different, else unused."""
    words, where = rows_of(blocks, image_offset, ">u4")
    row = SECTORS.sieve(words)
    if not len(row):
        return
    value = words[row].astype(np.int64)
    used = (value != UNUSED) & ~padding(value)  # zeros behind the table: tapdisk, VirtualBox (source)
    good = (~used | (value > 0)).all(axis=1) & used.any(axis=1) & distinct(value, used)
    for block, strides in STRIDES.items():
        fits = good & _in_step(value, strides)
        yield pieces("vhd.bat", block, where[row[fits]], np.where(used, value * SECTOR + BITMAP, -1)[fits])


def _legal(words: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return (words == UNUSED) | (words == 0) | (words >= FLOOR) & (words < MAX_SECTOR)


def _in_step(words: npt.NDArray[Any], strides: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    used = (words != UNUSED) & (words != 0)
    return np.logical_or.reduce([one_remainder(words, used, stride) for stride in strides])


def rebuild(reader: Reader, clue: Clue, open_vhd: Callable[[Reader], Container]) -> Orphan | None:
    """The file at the clue's origin, its table where guest structures put it; a tail footer that is left counts."""
    known = np.flatnonzero(clue.first >= 0)
    own = clue.pieces.image_offset[known] - clue.origin - 4 * clue.first[known]
    places, votes = np.unique(own, return_counts=True)
    if not len(places) or not clue.size:
        return None
    table_at = int(places[int(votes.argmax())])
    if not TABLE_AT <= table_at <= MAX_TABLE_AT or table_at % SECTOR:
        return None
    entries = -(-clue.size // clue.pieces.unit)
    head = make_header(table_at, entries, clue.pieces.unit)
    patches = [Patch(HEADER_AT, head.raw, "rebuilt", GUESSED)]
    c = opened(open_vhd, Laid(reader, clue.origin, patches), "rebuilt from the block table")
    if c is None:
        return None
    if c.uuid is None:  # no footer is left at all: ours has the size that the guest states
        raw = FOOTER.pack(b"conectix", 2, VERSION, HEADER_AT, 0, b"vmcv", 0, b"Wi2k", clue.size, clue.size, 65535, 16,
                          255, 3, 0, b"\xff" * 16, 0).ljust(SECTOR, b"\0")
        patches.append(Patch(0, summed(raw, 64), "rebuilt", GUESSED))
        c = opened(open_vhd, Laid(reader, clue.origin, patches), "rebuilt from the block table, size from the guest")
        if c is None:
            return None
    told = _told(reader, clue, table_at, entries)
    lose_untold(c, told * clue.pieces.unit, clue.pieces.unit)
    return orphan(c, clue.origin, "vhd.bat", reader.size)


def stow(reader: Reader) -> Iterable[Stowed]:
    """Blocks back from the footer at the end, which says how large the disk is, and whether there are any."""
    for length in (SECTOR, SECTOR - 1):  # of a footer; before Virtual PC 2004 one byte less
        raw = reader.read(reader.size - length, length)
        if raw[:8] == b"conectix":
            end, size, kind = reader.size - length, int.from_bytes(raw[48:56], "big"), int.from_bytes(raw[60:64], "big")
            break
    else:
        end, size, kind = reader.size - SECTOR, 0, 0
    if kind in (0, FIXED):
        yield Stowed(1 << 20, GuestMap.flat(end), end, linear=kind == FIXED)
    for block, strides in STRIDES.items() if kind != FIXED else ():
        for stride in strides:
            # who begins data at pages may also end the footer at one
            last = end if stride % PAGE_SECTORS else end // PAGE * PAGE
            count = (last - FLOOR * SECTOR - block) // (stride * SECTOR)
            yield from in_row(last - block - count * stride * SECTOR, last, block, step=stride * SECTOR, size=size)


def _told(reader: Reader, clue: Clue, table_at: int, entries: int) -> I64:
    """Entries in sectors that are there and read as a table: the others, used or not, say nothing."""
    size = up(4 * entries, SECTOR)
    view = Laid(reader, clue.origin)
    data = view.read(table_at, size).ljust(size, b"\0")
    value = np.frombuffer(data, ">u4").astype(np.int64).reshape(-1, SECTOR // 4)
    inside = np.arange(value.size).reshape(value.shape) < entries
    used = (value != UNUSED) & inside
    good = (_legal(value) & (value != 0) | ~inside).all(axis=1) & distinct(value, used)
    good &= ~np.array([view.missing(table_at + at, SECTOR) for at in range(0, size, SECTOR)])
    return np.flatnonzero(np.repeat(good, SECTOR // 4)[:entries]).astype(np.int64)
