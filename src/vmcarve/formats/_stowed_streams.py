"""Compressed clusters in the order of a file, for formats that pack them back to back: qcow, qcow2.

Where the tables are lost, a stream still says by itself where it ends: there the next one begins, or (qcow, whose
clusters begin where the file ended, which is counted in sectors) at the sector behind. Behind what is lost,
or a table, the next place is looked for at which one decodes to a cluster. Whole clusters that no stream touches may be
such as are stored plain. Where a second-level table is left, the streams that it names prove it, and what it covers is
one unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..codec import MAX_CLUSTER, decode_counted, likely, stream_at
from ..model import DATA, DEFLATE, HOLE, LOST, PLAIN, SECTOR, ZSTD, GuestMap, Reader, Stowed

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
Entries = Callable[[U64, int], tuple[I64, Bools]]
"""(words of a table, bytes of a cluster) -> file offsets that entries name, 0 for none, -1 for what is no entry; and
which are of streams"""

PAGE = 4096  # bytes: clusters that are no multiple of it are not looked for
USUAL = 256 << 10  # bytes of the file within which the first stream ends
HEAD = 16  # bytes of a stream that tell whether it may be one
STEP = 1 << 20
LEAST = 8  # streams
MAX_STREAMS = 1 << 20  # ours: of one file
MAX_TRIED = 1 << 20  # ours: places at which a stream might begin and none does
MAX_PIECES = 1 << 14  # ours: of tables
MOST_FIRST = 4096  # ours: places that are tried before it is said that there are no streams


def by_streams(reader: Reader, entries: Entries, encodings: Sequence[int] = (ZSTD, DEFLATE)) -> list[Stowed]:
    """The streams that are left, by the encoding that most of the file is of, with the plain clusters between them: as
    the tables that are left name them, and one by one.
    """
    for encoding in encodings:
        cluster = _cluster(reader, encoding)
        found = list(_streams(reader, encoding, cluster)) if cluster else []
        if len(found) >= LEAST:
            streams = np.array(found, np.int64)
            return [*_by_tables(reader, encoding, cluster, streams, entries),
                    _stowed(reader, encoding, cluster, streams)]
    return []


def _by_tables(reader: Reader, encoding: int, cluster: int, streams: I64, entries: Entries) -> Iterator[Stowed]:
    """What pieces of tables that name the streams (file offset, stored bytes) cover."""
    rows: list[tuple[I64, Bools]] = []
    for at in range(0, reader.size, STEP):
        data = reader.read(at, STEP)
        words = np.frombuffer(data, ">u8", len(data) // PAGE * (PAGE // 8)).reshape(-1, PAGE // 8)
        words = words[words.any(axis=1)].astype(np.uint64)
        place, packed = entries(words, cluster)
        inside = (place >= 0) & (place < reader.size) & (packed | (place % cluster == 0))
        row = np.flatnonzero(inside.all(axis=1))
        named = packed[row] & np.isin(place[row], streams[:, 0])  # not one is hit by chance
        rows += [(place[i], packed[i]) for i in row[named.any(axis=1)].tolist()]
    if not rows:
        return
    place, packed = (np.concatenate(part) for part in zip(*rows[:MAX_PIECES], strict=True))
    which = np.minimum(np.searchsorted(streams[:, 0], place), len(streams) - 1)
    whole = packed & (streams[which, 0] == place)
    there = whole | ~packed & (place + cluster <= reader.size)
    state = np.select([place == 0, there], [HOLE, DATA], LOST).astype(np.uint8)
    n = len(place)
    yield Stowed(PAGE // 8 * cluster, GuestMap.build(
        np.arange(n, dtype=np.int64) * cluster, np.full(n, cluster), state, np.where(state == DATA, place, -1),
        np.where(whole, encoding, PLAIN).astype(np.uint8), np.where(whole, streams[which, 1], cluster)))


def _stowed(reader: Reader, encoding: int, cluster: int, streams: I64) -> Stowed:
    plain = np.arange(reader.size // cluster, dtype=np.int64) * cluster
    ends = np.concatenate(([0], streams.sum(axis=1)))  # of the streams that begin before a cluster's end
    plain = plain[ends[np.searchsorted(streams[:, 0], plain + cluster)] <= plain]
    place = np.concatenate((streams[:, 0], plain))
    stored = np.concatenate((streams[:, 1], np.full(len(plain), cluster)))
    kind = np.concatenate((np.full(len(streams), encoding), np.full(len(plain), PLAIN))).astype(np.uint8)
    order = np.argsort(place, kind="stable")
    n = len(order)
    return Stowed(cluster, GuestMap.build(np.arange(n, dtype=np.int64) * cluster, np.full(n, cluster),
                                          np.full(n, DATA, np.uint8), place[order], kind[order], stored[order]))


def _cluster(reader: Reader, encoding: int) -> int:
    """Bytes of a cluster: what two streams that follow each other decode to; 0 where there are none."""
    for at in itertools.islice(_begins(reader, encoding), MOST_FIRST):
        out, used = stream_at(reader.read(at, USUAL), encoding, MAX_CLUSTER)
        if not used or len(out) % PAGE or len(out).bit_count() != 1:
            continue
        if _next(reader, at + used, encoding, len(out))[1]:
            return len(out)
    return 0


def _streams(reader: Reader, encoding: int, cluster: int) -> Iterator[tuple[int, int]]:
    """(file offset, stored bytes) of the streams, rising."""
    at, count, tried = 0, 0, 0
    for place in _begins(reader, encoding):
        if place < at:
            continue
        alone = True
        at, used = place, _decoded(reader, place, encoding, cluster)
        while used and count < MAX_STREAMS:
            yield at, used
            count, alone = count + 1, False
            at, used = _next(reader, at + used, encoding, cluster)
        tried += alone
        if count == MAX_STREAMS or tried == MAX_TRIED:
            return


def _next(reader: Reader, end: int, encoding: int, cluster: int) -> tuple[int, int]:
    """Where behind a stream that ends at `end` another one begins, and its bytes; `end` and 0 where none does."""
    for at in sorted({end, -(-end // SECTOR) * SECTOR}):
        used = _decoded(reader, at, encoding, cluster)
        if used:
            return at, used
    return end, 0


def _decoded(reader: Reader, at: int, encoding: int, cluster: int) -> int:
    """Bytes of the stream at `at` that decodes to a cluster; 0 where there is none."""
    # a cluster is compressed only where that makes it smaller
    return decode_counted(reader.read(at, cluster), encoding, cluster)[1]


def _begins(reader: Reader, encoding: int) -> Iterator[int]:
    """File offsets at which a stream may begin, rising. Of deflate only such as have codes of their own."""
    for at in range(0, reader.size, STEP):
        data = np.frombuffer(reader.read(at, STEP + HEAD), np.uint8)
        if len(data) <= HEAD:
            return
        rows = np.lib.stride_tricks.sliding_window_view(data, HEAD)[:STEP]
        if encoding == DEFLATE:
            some = np.flatnonzero(data[: len(rows)] & 6 == 4)
        else:
            some = np.flatnonzero(data[: len(rows)] == 0x28)
        yield from (at + some[likely(encoding, rows[some])]).tolist()
