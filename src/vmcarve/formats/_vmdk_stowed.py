"""Grains of a stream-optimized VMDK whose file is known but for parts that are overwritten: each says which it is.

A grain follows a marker of 12 bytes, its sector and its size, at a sector of the file; its Adler-32 proves it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..codec import decode_counted
from ..model import DATA, LOST, PLAIN, SECTOR, ZLIB, GuestMap, Reader, Stowed

GRAIN = 64 << 10  # bytes of all writers that are known
MARKER = 12
STEP = 1 << 20
LEAST = 4  # grains
LEAST_SHARE = 0.2  # of the file that they take: others are a file's on the guest
MAX_GRAINS = 1 << 24  # ours: 1 TiB


def stow_stream(reader: Reader) -> Iterable[Stowed]:
    """The grains that are left, in the guest's order."""
    found = {number: (at, size) for number, at, size in _grains(reader)}
    if len(found) < LEAST or sum(size for _, size in found.values()) < LEAST_SHARE * reader.size:
        return
    count = max(found) + 1
    state, place = np.full(count, LOST, np.uint8), np.full(count, -1, np.int64)
    encoding, stored = np.full(count, PLAIN, np.uint8), np.full(count, GRAIN, np.int64)
    for number, (at, size) in found.items():
        state[number], place[number], encoding[number], stored[number] = DATA, at, ZLIB, size
    begin = np.arange(count, dtype=np.int64) * GRAIN
    yield Stowed(GRAIN, GuestMap.build(begin, np.full(count, GRAIN), state, place, encoding, stored), count * GRAIN,
                 in_order=True)


def _grains(reader: Reader) -> Iterator[tuple[int, int, int]]:
    """(number of the grain, file offset of its stream, stored bytes) of all that decode."""
    for start in range(0, reader.size, STEP):
        data = np.frombuffer(reader.read(start, STEP), np.uint8)
        sectors = data[: len(data) // SECTOR * SECTOR].reshape(-1, SECTOR)
        head = np.ascontiguousarray(sectors[:, :16])
        sector, size = head[:, :8].view("<u8")[:, 0], head[:, 8:12].view("<u4")[:, 0]
        good = (sector % np.uint64(GRAIN // SECTOR) == 0) & (sector < np.uint64(MAX_GRAINS * (GRAIN // SECTOR)))
        good &= (size > 0) & (size <= 2 * GRAIN) & (head[:, 12] == 0x78) & (head[:, 13] % 31 == -(0x7800) % 31)
        for i in np.flatnonzero(good).tolist():
            at, n = start + i * SECTOR + MARKER, int(size[i])
            if decode_counted(reader.read(at, n), ZLIB, GRAIN)[1]:
                yield int(sector[i]) * SECTOR // GRAIN, at, n
