"""Blocks of a VMA whose file is known but for parts that are overwritten: each extent that is left tells of its own.

A backup runs through a disk in order. So an extent whose header is lost holds the clusters between those of its
neighbours; where there is just the room for all of these, each has its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from ..model import DATA, HOLE, LOST, GuestMap, Reader, Stowed

Int64s = npt.NDArray[np.int64]

BLOCK, CLUSTER, HEAD, ROWS = 4096, 65536, 512, 59
BITS = CLUSTER // BLOCK
BEFORE = 12288  # bytes of the archive's header without its blobs, which take less than a block
STEP = 1 << 20
MAX_CLUSTERS = 1 << 24  # ours: of a disk (1 TiB)


def stow(reader: Reader, extent: Callable[[bytes], npt.NDArray[np.void] | None]) -> Iterable[Stowed]:
    """The disk of which most clusters are told. extent(512 bytes) -> its rows, None where it is no extent's header."""
    heads = list(_heads(reader, extent))
    if not heads:
        return
    devices, count = np.unique(np.concatenate([r["device"][r["mask"] != 0] for _, r in heads]), return_counts=True)
    if not len(devices):
        return
    device = int(devices[int(count.argmax())])
    last = max(int(r["cluster"][r["device"] == device].max(initial=0)) for _, r in heads)
    if last >= MAX_CLUSTERS:
        return
    place = np.full((last + 1) * BITS, -1, np.int64)  # of each block, -2 for zeros
    end, before = BEFORE, -1  # of what is known in the file, and the last cluster there
    for at, rows in heads:
        mine = rows[rows["device"] == device]
        if len(mine) == np.count_nonzero(rows["device"]) and len(mine):
            _between(place, end, at, before, int(mine["cluster"][0]))
            before = int(mine["cluster"].max())
        bits = (rows["mask"].astype(np.int64)[:, None] >> np.arange(BITS)) & 1
        number = np.cumsum(bits).reshape(bits.shape) - bits
        where = np.where(bits > 0, at + HEAD + BLOCK * number, -2)
        own = rows["device"] == device
        block = rows["cluster"].astype(np.int64)[own][:, None] * BITS + np.arange(BITS)
        place[block.ravel()] = where[own].ravel()
        end = at + HEAD + BLOCK * int(bits.sum())
    place[place + BLOCK > reader.size] = -1
    state = np.where(place >= 0, DATA, np.where(place == -2, HOLE, LOST)).astype(np.uint8)
    size = len(place) * BLOCK
    yield Stowed(BLOCK, GuestMap.from_units(size, BLOCK, state, np.where(place >= 0, place, -1)), size, in_order=True)


def _between(place: Int64s, end: int, at: int, before: int, then: int) -> None:
    """Places the clusters between `before` and `then`, where the file has just the room for them from `end` to `at`."""
    clusters = then - before - 1
    extents = -(-clusters // ROWS)
    spare = at - end - extents * HEAD - clusters * CLUSTER
    if clusters <= 0 or not (0 <= spare < BLOCK if before < 0 else spare == 0):
        return
    number = np.arange(clusters)
    first = end + spare + (number // ROWS + 1) * HEAD + number * CLUSTER
    blocks = (first[:, None] + np.arange(BITS) * BLOCK).ravel()
    place[(before + 1) * BITS : then * BITS] = blocks


def _heads(reader: Reader, extent: Callable[[bytes], npt.NDArray[np.void] | None]
           ) -> Iterator[tuple[int, npt.NDArray[np.void]]]:
    """(file offset, rows) of the extents that are left, rising; none in the payload of another."""
    end = 0
    for start in range(0, reader.size, STEP):
        data = reader.read(start, STEP)
        words = np.frombuffer(data[: len(data) // HEAD * HEAD], "<u4")[:: HEAD // 4]
        for i in np.flatnonzero(words == int.from_bytes(b"VMAE", "little")).tolist():
            at = start + i * HEAD
            rows = extent(data[i * HEAD : (i + 1) * HEAD]) if at >= end else None
            if rows is not None:
                bits = (rows["mask"].astype(np.int64)[:, None] >> np.arange(BITS)) & 1
                end = at + HEAD + BLOCK * int(bits.sum())
                yield at, rows
