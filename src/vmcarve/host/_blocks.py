"""Shared by the ext and XFS hosts: run arithmetic on numpy arrays, a CRC-32C over rows, a reader with blocks laid over.

Runs are int64[n, 2] (start, length) in one unit; maps of files are int64[n, 4] as in model.HostFile.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
import numpy.typing as npt

from ..checksums import crc32c_rows
from ..model import HostFile, Reader

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]

SWEEP_BYTES = 4 << 20  # read at once while looking for remnants: large enough for a disk, small beside the budget
NO_RUNS = np.zeros((0, 2), np.int64)


# --- runs ----------------------------------------------------------------------------------------------------------
def merge(runs: I64) -> I64:
    """(start, length) rows in any order, overlapping or not, as rising rows that neither touch nor overlap."""
    runs = runs[runs[:, 1] > 0]
    if len(runs) == 0:
        return NO_RUNS
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    end = np.maximum.accumulate(runs[:, 0] + runs[:, 1])
    first = np.flatnonzero(np.concatenate(([True], runs[1:, 0] > end[:-1])))
    last = np.concatenate((first[1:] - 1, [len(runs) - 1]))
    return np.stack((runs[first, 0], end[last] - runs[first, 0]), axis=1)


def subtract(runs: I64, holes: I64) -> I64:
    """The parts of `runs` that no row of `holes` covers, merged."""
    runs, holes = merge(runs), merge(holes)
    if len(runs) == 0 or len(holes) == 0:
        return runs
    # +1 where a run is open, -2 where a hole is: the sum is 1 exactly where only a run is
    at = np.concatenate((runs[:, 0], runs.sum(axis=1), holes[:, 0], holes.sum(axis=1)))
    step = np.repeat((1, -1, -2, 2), (len(runs), len(runs), len(holes), len(holes)))
    order = np.argsort(at, kind="stable")
    at, level = at[order], np.cumsum(step[order])
    only = np.flatnonzero(level[:-1] == 1)
    return merge(np.stack((at[only], at[only + 1] - at[only]), axis=1))


def clear_bits(bitmap: U8, count: int) -> I64:
    """(first, length) of the runs of 0 bits among the first `count` bits; bit 0 is the lowest of byte 0."""
    bits = np.unpackbits(bitmap, count=count, bitorder="little")
    edge = np.flatnonzero(np.diff(np.concatenate(([1], bits, [1])).astype(np.int8)))
    return np.stack((edge[::2], edge[1::2] - edge[::2]), axis=1).astype(np.int64)


def inside(runs: I64, starts: I64) -> npt.NDArray[np.bool_]:
    """Which of `starts` lie in one of the merged `runs`."""
    if len(runs) == 0:
        return np.zeros(len(starts), np.bool_)
    i = np.searchsorted(runs[:, 0], starts, "right") - 1
    return (i >= 0) & (starts < runs[i, 0] + runs[i, 1])


# --- maps of files -------------------------------------------------------------------------------------------------
def no_overlap(extents: I64) -> I64:
    """Extent rows (logical, physical, length, kind) sorted by logical; a row that begins inside an earlier one goes."""
    extents = extents[extents[:, 2] > 0]
    if len(extents) < 2:
        return extents
    extents = extents[np.argsort(extents[:, 0], kind="stable")]
    reach = np.maximum.accumulate(extents[:, 0] + extents[:, 2])
    return extents[np.concatenate(([True], extents[1:, 0] >= reach[:-1]))]


def fill_in(extents: I64, more: I64) -> I64:
    """`extents` and those rows of `more` that touch none of them, sorted by logical. Both without inner overlap."""
    if len(extents) and len(more):
        i = np.searchsorted(extents[:, 0], more[:, 0], "right") - 1
        before = np.where(i >= 0, extents[i, 0] + extents[i, 2], 0)
        after = np.where(i + 1 < len(extents), extents[np.minimum(i + 1, len(extents) - 1), 0], 1 << 62)
        more = more[(before <= more[:, 0]) & (more[:, 0] + more[:, 2] <= after)]
    both = np.concatenate((extents, more))
    return both[np.argsort(both[:, 0], kind="stable")]


def to_runs(extents: I64, unit: int, base: int) -> I64:
    """HostFile.runs of extent rows (logical, physical, length, kind) counted in `unit` bytes from image offset `base`.

    Rows that continue each other in both spaces are one run; holes have no row (HostFile: gaps are holes).
    """
    if len(extents) < 2:
        return extents * (unit, unit, unit, 1) + (0, base, 0, 0)
    same = (extents[1:, 3] == extents[:-1, 3]) & (extents[1:, 0] == extents[:-1, 0] + extents[:-1, 2])
    same &= extents[1:, 1] == extents[:-1, 1] + extents[:-1, 2]
    first = np.flatnonzero(np.concatenate(([True], ~same)))
    length = np.add.reduceat(extents[:, 2], first)
    e = extents[first]
    return np.stack((e[:, 0] * unit, e[:, 1] * unit + base, length * unit, e[:, 3]), axis=1)


INFERRED = ("-slack", "-guess")  # origins of maps that no record states as they are


def candidates(
    identity: str, maps: Iterable[tuple[str, I64, bool]], block_size: int, base: int, name: str = "", size: int = -1,
    times: dict[str, float] | None = None, number: int = -1, born: float = -math.inf, last: float = math.inf,
    settled: bool = False,
) -> Iterator[HostFile]:  # fmt: skip
    """HostFiles of one deleted file, best first: (origin, extent rows, complete); equal maps are given once."""
    seen: list[I64] = []
    for origin, rows, complete in maps:
        runs = to_runs(rows, block_size, base)
        if len(runs) == 0 or any(np.array_equal(runs, old) for old in seen):
            continue
        seen.append(runs)
        yield HostFile(identity, name, size, True, runs, origin, complete, dict(times or {}),
                       certain=not origin.endswith(INFERRED), settled=settled, number=number, born=born,
                       last=last)


# --- CRC-32C over rows ---------------------------------------------------------------------------------------------
ALL = np.uint32(0xFFFFFFFF)


def crc_rows(rows: U8, state: int = 0xFFFFFFFF) -> U32:
    """CRC-32C state (no final inversion) after each row of uint8[n, length], all started from `state`."""
    return crc32c_rows(np.ascontiguousarray(rows), state ^ 0xFFFFFFFF) ^ ALL


def state_before_rows(rows: U8, state: U32) -> U32:
    """The CRC-32C state that each row must have started from to end in `state`: the CRC run backwards.

    A checksum seeded with an owner is thereby turned into a key of the owner, whoever that is. The CRC is linear:
    what the start contributes is what is left when the row's own contribution (started from 0) is taken out.
    """
    return _undo_zeros(state ^ crc_rows(rows, 0), rows.shape[1])


def _undo_zeros(state: U32, length: int) -> U32:
    """The states from which `length` zero bytes lead to `state`."""
    out = np.zeros(len(state), np.uint32)
    for bit, column in enumerate(_undo_columns(length)):
        out ^= np.where(state >> np.uint32(bit) & np.uint32(1), np.uint32(column), np.uint32(0))
    return out


@cache
def _undo_columns(length: int) -> tuple[int, ...]:
    """What `_undo_zeros` does to each single bit."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    top = np.zeros(256, np.uint32)
    top[table >> 24] = np.arange(256, dtype=np.uint32)  # the table's top bytes are a permutation: a step can be undone
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    index = top[bits >> 24]
    step, out = ((bits ^ table[index]) << np.uint32(8)) | index, bits  # what one zero byte undone does; nothing yet
    while length:  # by squaring: both are linear, and go with each other in any order
        if length & 1:
            out = _applied(step, out)
        step = _applied(step, step)
        length >>= 1
    return tuple(out.tolist())


def _applied(columns: U32, state: U32) -> U32:
    """A linear map, told by what it does to each single bit, of some states."""
    set_ = (state[:, None] >> np.arange(32, dtype=np.uint32) & np.uint32(1)).astype(np.bool_)
    return np.bitwise_xor.reduce(np.where(set_, columns, np.uint32(0)), axis=1)


# --- reading -------------------------------------------------------------------------------------------------------
class Overlay:
    """A Reader with newer contents laid over some blocks, as a journal's replay would write them (nothing is written).

    unit: bytes of one block; blocks lie at base + k * unit. Their content is bytes, or the image offset of a copy.
    """

    def __init__(self, reader: Reader, base: int, unit: int, blocks: dict[int, bytes | int]) -> None:
        self._reader, self._base, self._unit, self._blocks = reader, base, unit, blocks
        self._keys = sorted(blocks)

    @property
    def size(self) -> int:
        return self._reader.size

    def _touched(self, offset: int, length: int) -> list[int]:
        first, last = (offset - self._base) // self._unit, (offset + length - 1 - self._base) // self._unit
        return self._keys[bisect.bisect_left(self._keys, first) : bisect.bisect_right(self._keys, last)]

    def read(self, offset: int, length: int) -> bytes:
        data = self._reader.read(offset, length)
        touched = self._touched(offset, len(data)) if data else []
        if not touched:
            return data
        out = bytearray(data)
        for key in touched:
            content = self._blocks[key]
            new = content if isinstance(content, bytes) else self._reader.read(content, self._unit)
            at = self._base + key * self._unit - offset
            low, high = max(at, 0), min(at + len(new), len(out))
            out[low:high] = new[low - at : high - at]
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        if length > 0 and (touched := self._touched(offset, length)):
            at = offset
            for key in touched:
                start, content = self._base + key * self._unit, self._blocks[key]
                if at < start and self._reader.missing(at, start - at):
                    return True
                if isinstance(content, int) and self._reader.missing(content, self._unit):
                    return True
                at = start + self._unit
            return at < offset + length and self._reader.missing(at, offset + length - at)
        return self._reader.missing(offset, length)


def sweep_runs(reader: Reader, runs: I64, unit: int) -> Iterator[tuple[int, U8]]:
    """Reads merged runs of image offsets in pieces: (image_offset, uint8[k, unit]) of whole units, rising."""
    step = max(SWEEP_BYTES // unit, 1) * unit
    for start, length in runs.tolist():
        end = min(start + length, reader.size)
        for at in range(start, end - unit + 1, step):
            data = reader.read(at, min(step, (end - at) // unit * unit))
            whole = len(data) // unit * unit
            if whole:
                yield at, np.frombuffer(data, np.uint8, whole).reshape(-1, unit)
