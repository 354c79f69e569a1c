"""What the block formats with sector bitmaps share (VHD, VHDX): judging a table, and maps finer than a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..model import DATA, LOST, UNALLOCATED, GuestMap, Patch, Reader

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NOISE = 4  # a bitmap with a change at more than each NOISE-th bit was overwritten: guests write 4 KiB and more at once
BATCH_BITS = 1 << 19  # bitmap bits unpacked at once: some 20 MiB of working arrays where every bit is a run


def clashes(start: Int64s, length: Int64s, reserved: Sequence[tuple[int, int]] = ()) -> Bools:
    """Which of the ranges [start, start + length) share a byte with another one or a (start, end) of `reserved`."""
    bad = np.zeros(len(start), bool)
    end = start + length
    for low, high in reserved:
        bad |= (start < high) & (end > low)
    if len(start) > 1:
        order = np.argsort(start, kind="stable")
        s, e = start[order], end[order]
        # Two ranges overlap: the left one reaches over its next neighbour's start, the right one starts before the
        # greatest end so far. So both sides are found, however many ranges lie between.
        reach = np.maximum.accumulate(e)
        hit = np.zeros(len(s), bool)
        hit[:-1] |= s[1:] < e[:-1]
        hit[1:] |= s[1:] < reach[:-1]
        bad[order] |= hit
    return bad


class Bitmaps(NamedTuple):
    """Sector bitmaps of some units: rows uint8[n, bytes]; known bool[n] is False where a bitmap could not be read."""

    rows: npt.NDArray[np.uint8]
    known: Bools


class Partial(NamedTuple):
    """Units whose sectors are partly here, partly in the parent.

    units int64[k], rising; read: bitmaps of the given units (at least sectors / 8 bytes a row); order: the place of
    the first sector's bit in its byte ("big": most significant); limit: runs that we hold at most.
    """

    units: Int64s
    read: Callable[[Int64s], Bitmaps]
    sector: int
    order: str
    limit: int


def split_map(
    size: int, unit: int, state: npt.NDArray[np.uint8], file_offset: Int64s, partial: Partial
) -> tuple[GuestMap, int, int]:
    """One entry per unit, with the units of `partial` split by their bitmaps: 1 here (DATA), 0 the parent's.

    Returns the map, the number of partial units whose bitmap is lost, and how many were given up at the limit; both
    become LOST. A bitmap that no writer leaves is lost too: a unit that is here has a sector that is (a crash between
    allocating and writing looks the same, and tells nothing either), and bits change seldom.
    """
    state, sectors = state.copy(), max(1, unit // partial.sector)
    width, step = -(-sectors // 8), max(1, BATCH_BITS // sectors)
    parts: list[tuple[Int64s, Int64s, npt.NDArray[np.uint8], Int64s]] = []
    held = lost = given_up = 0
    split = np.zeros(len(state), bool)
    for at in range(0, len(partial.units), step):
        index = partial.units[at : at + step]
        if held > partial.limit:
            given_up = len(partial.units) - at
            state[partial.units[at:]] = LOST
            break
        rows, known = partial.read(index)
        known &= _plausible(rows[:, :width], sectors, partial.order)
        state[index[~known]] = LOST
        lost += int((~known).sum())
        index, rows = index[known], rows[known]
        split[index] = True
        g, n, bit = _bit_runs(rows[:, :width], sectors, partial.order)
        which = index[g // sectors]
        inside = g % sectors * partial.sector
        here = bit.astype(bool)
        parts.append(
            (
                which * unit + inside,
                n * partial.sector,
                np.where(here, DATA, UNALLOCATED).astype(np.uint8),
                np.where(here, file_offset[which] + inside, -1),
            )
        )
        held += len(g)
    whole = np.flatnonzero(~split).astype(np.int64)
    parts.append((whole * unit, np.full(len(whole), unit, np.int64), state[whole],
                  np.where(state[whole] == DATA, file_offset[whole], -1)))
    g, n, s, f = (np.concatenate([p[i] for p in parts]) for i in range(4))
    order = np.argsort(g, kind="stable")
    g, n, s, f = g[order], n[order], s[order], f[order]
    return GuestMap.build(g, np.minimum(n, size - g), s, f), lost, given_up


def _bits(rows: npt.NDArray[np.uint8], sectors: int, order: str) -> npt.NDArray[np.uint8]:
    """One bit a column, in sector order."""
    return np.unpackbits(rows, axis=1, bitorder="little" if order == "little" else "big")[:, :sectors]


def _plausible(rows: npt.NDArray[np.uint8], sectors: int, order: str) -> Bools:
    """Which bitmaps a writer could have left."""
    bits = _bits(rows, sectors, order)
    changes = (bits[:, 1:] != bits[:, :-1]).sum(axis=1)
    return bits.any(axis=1) & (changes <= 8 + sectors // NOISE)


def _bit_runs(rows: npt.NDArray[np.uint8], sectors: int, order: str) -> tuple[Int64s, Int64s, npt.NDArray[np.uint8]]:
    """Runs of equal bits that end with their row: (row * sectors + first sector, sectors, bit)."""
    bits = _bits(rows, sectors, order)
    edge = np.ones(bits.shape, bool)
    np.not_equal(bits[:, 1:], bits[:, :-1], out=edge[:, 1:])
    start = np.flatnonzero(edge).astype(np.int64)
    length = np.diff(np.append(start, bits.size))
    return start, length, bits.reshape(-1)[start]


def missing_entries(reader: Reader, offset: int, count: int, width: int) -> Bools:
    """Which of `count` table entries of `width` bytes from `offset` lie in a sector that is not there."""
    lost = np.zeros(count, bool)
    if not reader.missing(offset, count * width):
        return lost
    # halve down to 4 KiB, then by sectors: a table of MiB with one bad sector takes some tens of questions
    stack = [(offset, offset + count * width)]
    while stack:
        low, high = stack.pop()
        if not reader.missing(low, high - low):
            continue
        if high - low <= 512 or low >= reader.size:
            lost[max(0, (low - offset) // width) : -(-(high - offset) // width)] = True
            continue
        middle = low + max(512, (high - low) // 2 // 512 * 512)
        stack += [(low, middle), (middle, high)]
    return lost


def table_patch(offset: int, table: npt.NDArray[np.uint8], changed: Bools, width: int, reason: str,
                grade: str) -> list[Patch]:
    """Patches for the 512-byte sectors of a table (bytes, entries of `width`) that hold a changed entry.

    Neighbouring sectors go into one patch. `offset` is the table's place.
    """
    per = 512 // width
    sectors = np.unique(np.flatnonzero(changed) // per)
    if not len(sectors):
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(sectors) > 1) + 1, [len(sectors)]))
    return [
        Patch(offset + int(sectors[a]) * 512, table[int(sectors[a]) * 512 : int(sectors[b - 1] + 1) * 512].tobytes(),
              reason, grade)
        for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
