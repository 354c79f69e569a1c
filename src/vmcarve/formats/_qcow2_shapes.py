"""qcow2 without its header: the refcount table names the cluster behind itself, L2 tables name nothing but clusters.

QEMU lays a new file out in clusters: header, refcount table, first refcount block, L1, then L2s among the data (seen:
qemu-img 7.2, every cluster size). So the table's first entry is two clusters, which gives cluster size and begin at
once. An L1 that is lost is made again from the L2s that a guest structure gives a number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from ..model import GUESSED, LOST, PLAIN, ZSTD, Clue, Container, Orphan, Patch, Reader, Stowed, TablePieces
from ._first_level import completed, numbered, remains
from ._qcow2_header import (
    EXTENDED_MIN_CLUSTER_BITS,
    FORMAT_MAX_L1_BYTES,
    MAGIC,
    MAX_CLUSTER_BITS,
    MIN_CLUSTER_BITS,
)
from ._qcow2_tables import U64, Bools
from ._rebuilt import Laid, lose_untold, opened, orphan
from ._shapes import I64, Numbers, distinct, pieces, power_of_two, rows_of
from ._stowed import by_tables, in_row
from ._stowed_streams import by_streams

REFCOUNTS, L2 = "qcow2.refcount-table", "qcow2.l2"
PIECE = 4096
COPIED, STREAM = np.uint64(1 << 63), np.uint64(1 << 62)
OFFSET = np.uint64(0x00FF_FFFF_FFFF_FE00)
ENTRIES = Numbers(illegal=int(~(OFFSET | COPIED | np.uint64(1))))
MAX_OFFSET = 1 << 45  # ours: 32 TiB; a number with more bits is something else
PLACES = Numbers(ranges=((0, MAX_OFFSET - 1),))  # of a refcount table
ROWS = (ENTRIES.rule(">u8", PIECE), PLACES.rule(">u8", PIECE))
USUAL_CLUSTER = 1 << 16
EXTENDED_CLUSTER = 1 << 17  # what QEMU's documents advise for extended L2 entries
SUBCLUSTERS = 32  # of a cluster, with extended L2 entries
EXTENDED, COMPRESSION = 16, 8  # incompatible features
VARIANTS = ((0, 0), (COMPRESSION, 1), (EXTENDED, 0), (EXTENDED | COMPRESSION, 1))  # features, compression type
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
STREAMS = 16  # that are looked at


def shapes(blocks: npt.NDArray[np.uint8], image_offset: I64) -> Iterable[TablePieces]:
    """First blocks of refcount tables, and blocks of L2 tables with plain clusters."""
    words, where = rows_of(blocks, image_offset, ">u8", PIECE)
    first = words[:, 0].astype(np.uint64)
    likely = (first & (first - np.uint64(1)) == 0) & (first >= 2 << MIN_CLUSTER_BITS) & (first <= 2 << MAX_CLUSTER_BITS)
    for i in np.flatnonzero(likely).tolist():
        cluster = int(first[i]) // 2
        if int(words[i, 1]) % cluster:
            continue
        used = np.count_nonzero(words[i])
        if not words[i][used:].any() and (words[i][1:used] < MAX_OFFSET).all():
            none = np.full((1, 1), -1, np.int64)
            yield TablePieces(REFCOUNTS, cluster, where[np.array([i])], none, np.array([cluster]))
    row = ENTRIES.sieve(words)
    if not len(row):
        return
    value = words[row].astype(np.uint64)
    place = (value & OFFSET).astype(np.int64)
    used = place > 0
    good = used.any(axis=1) & (place < MAX_OFFSET).all(axis=1)
    good &= distinct(place, used) & (value & COPIED != 0).any(axis=1)
    row, place, used = row[good], place[good], used[good]
    step = np.minimum(power_of_two(place, used), 1 << MAX_CLUSTER_BITS)
    for unit in np.unique(np.concatenate([step, np.minimum(step, USUAL_CLUSTER)])).tolist():
        own = (step == unit) | (step > unit) & (unit == USUAL_CLUSTER)
        if unit >= 1 << MIN_CLUSTER_BITS and own.any():
            yield pieces(L2, unit, where[row[own]], np.where(used[own], place[own], -1))


def stow(reader: Reader) -> Iterable[Stowed]:
    """Streams, spans of the L2 tables that are left, and clusters of the usual sizes, in their order."""

    def places(words: U64) -> I64:
        return np.where(words & ~(OFFSET | COPIED | np.uint64(1)), np.uint64(1), words & OFFSET).astype(np.int64)

    def entries(words: npt.NDArray[np.uint64], cluster: int) -> tuple[I64, Bools]:
        packed = words >> np.uint64(62) == 1  # a stream's place is as wide as its number of sectors leaves room
        wide = np.uint64((1 << 62 - (cluster.bit_length() - 9)) - 1)
        return np.where(packed, (words & wide).astype(np.int64), places(words)), packed

    yield from by_streams(reader, entries)
    sizes = [1 << bits for bits in range(MIN_CLUSTER_BITS, MAX_CLUSTER_BITS + 1)]
    yield from by_tables(reader, sizes, ">u8", places, spare=_refcounts)
    yield from by_tables(reader, [n for n in sizes if n >= 1 << EXTENDED_MIN_CLUSTER_BITS], ">u8",
                         lambda words: _extended(words, places(words[:, :, 0])), parts=_subclusters)
    for cluster in (USUAL_CLUSTER, EXTENDED_CLUSTER, PIECE):
        yield from in_row(0, reader.size, cluster)


def _refcounts(cluster: bytes) -> bool:
    """Whether a cluster is one of refcounts as QEMU writes them unless it is told otherwise: ones of 16 bits, and zeros
    behind them."""
    return cluster[:4] == 2 * b"\0\1" and set(cluster[1::2]) <= {0, 1} and not any(cluster[::2])


def _extended(words: U64, place: I64) -> I64:
    """The places of extended entries, uint64[n, k, 2]; -1 where the second word is no map of subclusters.

    Its low half: which are stored; its high half: which are zeros. No one is both, and of an entry in use some are.
    """
    stored, zero = words[:, :, 1] & np.uint64(0xFFFF_FFFF), words[:, :, 1] >> np.uint64(32)
    bad = (stored & zero != 0) | (place > 0) & (words[:, :, 1] == 0) | (place == 0) & (stored != 0)
    return np.where(bad, -1, place)


def _subclusters(words: U64) -> Bools:
    """bool[n, k, 32]: which subclusters of extended entries are stored."""
    return (words[:, :, 1, None] >> np.arange(SUBCLUSTERS, dtype=np.uint64) & np.uint64(1)).astype(np.bool_)


def rebuild(reader: Reader, clue: Clue, open_qcow2: Callable[[Reader], Container]) -> Orphan | None:
    """The container at the clue's origin, by the header that reads its tables best."""
    best: tuple[tuple[int, int], Orphan] | None = None
    for cluster in _clusters(reader, clue):
        for view, told, span in _views(reader, clue, cluster):
            c = opened(open_qcow2, view, "rebuilt for QEMU's usual layout" + ("" if clue.size else ", size rounded up"))
            if c is None or not (c.guests[0].map.file_offset >= 0).any():
                continue
            lose_untold(c, told, span)
            score = sum(not x.ok for x in c.checks) + _foreign_streams(view, c), _unknown(c)
            if best is None or score < best[0]:
                best = score, orphan(c, clue.origin, "qcow2.tables", reader.size)
    return None if best is None else best[1]


def _foreign_streams(view: Laid, c: Container) -> int:
    """Of some streams, how many begin as those of the other compression (fact: see qcow2.py)."""
    m = c.guests[0].map
    some = np.flatnonzero(m.encoding != PLAIN)[:STREAMS]
    return sum((view.read(int(m.file_offset[i]), 4) == ZSTD_MAGIC) != (m.encoding[i] == ZSTD) for i in some.tolist())


def _unknown(c: Container) -> int:
    return int(c.guests[0].map.length[c.guests[0].map.state == LOST].sum())


def _clusters(reader: Reader, clue: Clue) -> list[int]:
    """Cluster sizes to try: what the refcount table says, else the unit that the pieces count by."""
    view = Laid(reader, clue.origin)
    said = [1 << bits for bits in range(MIN_CLUSTER_BITS, MAX_CLUSTER_BITS + 1)
            if view.read(1 << bits, 8) == (2 << bits).to_bytes(8, "big")]
    return said or [clue.pieces.unit]


def _views(reader: Reader, clue: Clue, cluster: int) -> Iterator[tuple[Laid, I64, int]]:
    """The file under each header that could have been there; the guest spans (begins, bytes) that its L1 tells of."""
    plain = Laid(reader, clue.origin)
    table = plain.read(cluster, 8) == (2 * cluster).to_bytes(8, "big")
    lost = [(0, cluster)] if table else [(0, 3 * cluster)]
    order = _refcount_order(plain.read(2 * cluster, 64)) if table else 4
    at = 3 * cluster

    def legal(words: U64) -> Bools:
        place = words & OFFSET
        return (words & ~(OFFSET | COPIED) == 0) & (place % np.uint64(cluster) == 0) & (
            (place > at) & (place < np.uint64(MAX_OFFSET)) | (words == 0))

    for features, kind in VARIANTS:
        entries = cluster // (16 if features & EXTENDED else 8)
        span = cluster * entries
        count = -(-clue.size // span) if clue.size else _entries(plain, at, cluster, legal)
        if not 0 < 8 * count <= FORMAT_MAX_L1_BYTES:
            continue
        number, own = numbered(clue, L2, entries, cluster, count)
        l1, told = completed(plain, at, ">u8", legal, number, own, count, int(COPIED))
        if not l1.any():
            continue
        size = clue.size or count * span
        patches = [] if told.all() else [Patch(at, l1.astype(">u8").tobytes(), "rebuilt", GUESSED)]
        head = struct.pack(">4sIQIIQIIQQIIQQQQII", MAGIC, 3, 0, 0, cluster.bit_length() - 1, size, 0, count, at,
                           cluster, 1, 0, 0, features, 0, 0, order, 112) + bytes([kind]) + bytes(7)
        patches.insert(0, Patch(0, head.ljust(min(cluster, 512), b"\0"), "rebuilt", GUESSED))
        yield Laid(reader, clue.origin, patches, lost), np.flatnonzero(told) * span, span


def _refcount_order(block: bytes) -> int:
    """Width of the counts, from the ones at a block's begin (fact of the format: see _qcow2_refcounts)."""
    fills = {b"\xff": 0, b"\x55": 1, b"\x11": 2, b"\x01\x01": 3, b"\x00\x01": 4, b"\x00\x00\x00\x01": 5,
             b"\x00\x00\x00\x00\x00\x00\x00\x01": 6}
    return next((order for fill, order in fills.items() if block[: 2 * len(fill)] == 2 * fill), 4)


def _entries(view: Laid, at: int, cluster: int, legal: Callable[[U64], Bools]) -> int:
    """Entries of an L1 that begins with legal ones: up to the last that names a table, in its first cluster."""
    words, told = remains(view, at, cluster // 8, ">u8", legal)
    used = np.flatnonzero(words)
    return int(used[-1]) + 1 if len(used) and told[: used[-1] + 1].all() else 0
