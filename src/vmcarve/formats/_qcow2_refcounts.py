"""qcow2 refcounts: what the container itself says of every cluster, compared with a walk of its maps.

Source: QEMU docs/interop/qcow2.txt, "Host cluster management". A block of one cluster holds 8 * cluster / bits counts;
widths below a byte fill the least significant bits first (seen: qemu-img 7.2, refcount_bits 1, 2, 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..model import SUPPORTED, Patch, Reader
from ._qcow2_header import FORMAT_MAX_OFFSET, Header
from ._qcow2_tables import I32, I64, U8, U64, named_twice, read_words

OUR_MAX_BLOCK_BYTES = 64 << 20  # of refcount blocks read: a 2 TiB container at 64 KiB clusters and 16 bits
OUR_MAX_SLOTS = 1 << 27  # counts unpacked in all
ABSENT, READ, UNREAD = 0, 1, 2


@dataclass(slots=True)
class Refcounts:
    """block int64[n]: file offset of the block of each window (0: none), state uint8[n]: ABSENT, READ or UNREAD.

    per_block: clusters that one block counts. end: behind the last counted cluster (bytes). reach: the same if every
    UNREAD block were full. complete: the table and all of its blocks were read.
    """

    block: I64
    state: U8
    per_block: int
    end: int
    reach: int
    complete: bool
    table_known: bool


@dataclass(slots=True)
class Comparison:
    """below: references with too small a count; above: with too large a one; leaked: counted, never referred to.

    free int64[k]: clusters that are referred to and counted as free, rising.
    """

    free: I64
    below: int = 0
    above: int = 0
    leaked: int = 0
    compared: int = 0
    unread: int = 0  # references in windows without a readable block

    @property
    def agrees(self) -> bool:
        return self.below == self.above == self.leaked == self.unread == 0 and self.compared > 0


def unpack(block: bytes, order: int) -> U64:
    """The counts of a block, `1 << order` bits each."""
    if order >= 3:
        return np.frombuffer(block, f">u{1 << (order - 3)}").astype(np.uint64)
    width = 1 << order
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    parts = np.frombuffer(block, np.uint8)[:, None] >> shifts & np.uint8((1 << width) - 1)
    return parts.reshape(-1).astype(np.uint64)


def pack(counts: I64, order: int) -> bytes:
    """The inverse of `unpack`; counts above the width are cut to its largest."""
    width = 1 << order
    counts = np.minimum(counts, (1 << min(width, 62)) - 1)
    if order >= 3:
        return counts.astype(f">u{width // 8}").tobytes()
    parts = counts.reshape(-1, 8 // width).astype(np.uint8) << np.arange(0, 8, width, dtype=np.uint8)
    return np.bitwise_or.reduce(parts, axis=1).astype(np.uint8).tobytes()


def read_refcounts(reader: Reader, h: Header) -> Refcounts:
    """Reads the table and every block once; what is not there is UNREAD."""
    count = h.reftable_clusters * h.cluster // 8
    words, known = read_words(reader, h.reftable_offset, count, ">u8")
    words = words.astype(np.uint64)
    legal = (words & np.uint64(h.cluster - 1) == 0) & (words < np.uint64(FORMAT_MAX_OFFSET))
    block = np.where(legal, words, 0).astype(np.int64)
    state = np.where(block > 0, UNREAD, ABSENT).astype(np.uint8)
    state[~legal | ~known] = UNREAD
    block[named_twice(np.where(block > 0, block, -1))] = 0  # nobody's: stays UNREAD
    per_block = h.cluster * 8 >> h.refcount_order
    end = reach = slots = bytes_read = 0
    for i in np.flatnonzero(block > 0).tolist():
        at = int(block[i])
        reach = max(reach, (i + 1) * per_block * h.cluster)
        slots, bytes_read = slots + per_block, bytes_read + h.cluster
        if slots > OUR_MAX_SLOTS or bytes_read > OUR_MAX_BLOCK_BYTES or reader.missing(at, h.cluster):
            continue
        if at > reader.size - h.cluster:
            continue  # a table read from a wrong place names any offset, and some readers miss nothing
        state[i] = READ
        used = np.flatnonzero(unpack(reader.read(at, h.cluster), h.refcount_order))
        if len(used):
            end = max(end, (i * per_block + int(used[-1]) + 1) * h.cluster)
    unread = np.flatnonzero((state == UNREAD) & (block > 0))
    reach = max(end, (int(unread[-1]) + 1) * per_block * h.cluster if len(unread) else 0)
    complete = bool((state != UNREAD).all()) and end > 0
    return Refcounts(block, state, per_block, end, min(reach, FORMAT_MAX_OFFSET), complete, bool(known.all()))


def count_references(index: list[I64], weight: list[I64 | I32]) -> tuple[I64, I64]:
    """Distinct cluster numbers, rising, and how often each is referred to."""
    if not index:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    numbers, times = np.concatenate(index), np.concatenate(weight)
    if (times == 1).all():  # no snapshots: half the memory of the general way
        return np.unique(numbers, return_counts=True)
    clusters, inverse = np.unique(numbers, return_inverse=True)
    return clusters, np.bincount(inverse, times, len(clusters)).astype(np.int64)


def compare(reader: Reader, h: Header, rc: Refcounts, index: I64, times: I64) -> Comparison:
    """Counts against references, window by window; cluster numbers `index` rise."""
    window = index // rc.per_block
    state = np.where(window < len(rc.state), rc.state[np.minimum(window, len(rc.state) - 1)], ABSENT)
    absent = index[state == ABSENT]
    free = [absent]
    result = Comparison(absent, below=len(absent), compared=int((state != UNREAD).sum()),
                        unread=int((state == UNREAD).sum()))
    for i in np.flatnonzero(rc.state == READ).tolist():
        counts = unpack(reader.read(int(rc.block[i]), h.cluster), h.refcount_order)
        base = i * rc.per_block
        low, high = np.searchsorted(index, (base, base + rc.per_block)).tolist()
        told = counts[index[low:high] - base]
        want = times[low:high].astype(np.uint64)
        result.below += int((told < want).sum())
        result.above += int((told > want).sum())
        result.leaked += int(np.count_nonzero(counts)) - int(np.count_nonzero(told))
        free.append(index[low:high][told == 0])
    result.free = np.sort(np.concatenate(free))
    return result


def rebuild(reader: Reader, h: Header, rc: Refcounts, index: I64, times: I64) -> list[Patch]:
    """Lost refcount structures written again from a complete walk of the maps; [] when their place is not certain.

    A table that is there names the places of lost blocks. A lost table: the clusters below the file's end that nothing
    refers to are its blocks, when there is one in each window. Seen: byte-identical for files of qemu-img 7.2.
    """
    if rc.complete or not len(index):
        return []
    patches: list[Patch] = []
    block = rc.block.copy()
    if not rc.table_known:
        clusters = int(index[-1]) + 1
        windows = -(-clusters // rc.per_block)
        if rc.block.any() or windows * 8 > h.reftable_clusters * h.cluster or clusters > 4 * len(index):
            return []
        free = np.setdiff1d(np.arange(clusters), index)
        if not np.array_equal(free // rc.per_block, np.arange(windows)):
            return []
        block[:windows] = free * h.cluster
        patches.append(Patch(h.reftable_offset, block.astype(">u8").tobytes(), "rebuilt", SUPPORTED))
    own = block[block > 0] // h.cluster
    own = np.setdiff1d(own, index)
    everything, counts = count_references([index, own], [times, np.ones(len(own), np.int64)])
    lost = np.flatnonzero((block > 0) & (rc.state != READ)).tolist()
    if len(lost) * h.cluster > OUR_MAX_BLOCK_BYTES:
        return []
    for i in lost:
        if not reader.missing(int(block[i]), h.cluster):
            continue
        base = i * rc.per_block
        low, high = np.searchsorted(everything, (base, base + rc.per_block)).tolist()
        full = np.zeros(rc.per_block, np.int64)
        full[everything[low:high] - base] = counts[low:high]
        patches.append(Patch(int(block[i]), pack(full, h.refcount_order), "rebuilt", SUPPORTED))
    return patches
