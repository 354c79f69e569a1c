"""Allocation tables as arrays: what qcow, qcow2, QED, VDI and Parallels share. Knows no format.

A table entry names a place in the container (file offset, bytes). Nothing here trusts one: what lies outside the
container, inside its metadata or in two guest clusters at once becomes LOST, and `Tally` counts it for a Check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..model import DATA, EXTERNAL, HOLE, LOST, PLAIN, SECTOR, UNALLOCATED, Check, GuestMap, Reader, Region

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

OUR_MAX_TABLE_BYTES = 256 << 20  # second-level tables held per container: 2 TiB of full disk at 64 KiB clusters
OUR_MAX_DISK = 1 << 62  # bytes of a guest disk: sums of guest offsets stay inside an int64
PIECE = 4096  # a host block: the unit in which a freed table is overwritten
CHUNK_ENTRIES = 1 << 18  # entries handled at once; bounds the temporary arrays to some 20 MiB


def known_bytes(reader: Reader, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts of [0, length) after `offset` that are there, to the sector, rising."""
    stack = [(0, length)]
    while stack:
        low, high = stack.pop()
        if low >= high or offset + low >= reader.size:
            continue
        if not reader.missing(offset + low, high - low):
            yield low, high
            continue
        middle = (offset + (low + high) // 2) // SECTOR * SECTOR - offset  # sectors of the file, not of the table
        if middle <= low:
            middle = (offset + low) // SECTOR * SECTOR + SECTOR - offset
        if middle < high:
            stack += [(middle, high), (low, middle)]


def read_words(reader: Reader, offset: int, count: int, dtype: str) -> tuple[npt.NDArray[np.generic], Bools]:
    """`count` words of `dtype` in host order, and which of them were there. The caller has bounded `count`."""
    size = np.dtype(dtype).itemsize
    data = bytearray(count * size)
    part = reader.read(offset, len(data))
    data[: len(part)] = part
    known = np.ones(count, np.bool_)
    if count and reader.missing(offset, len(data)):
        known[:] = False
        for low, high in known_bytes(reader, offset, len(data)):
            known[-(-low // size) : high // size] = True
    words = np.frombuffer(data, dtype)
    return words.astype(words.dtype.newbyteorder("=")), known


@dataclass(slots=True)
class Ranges:
    """Disjoint byte ranges of the container, merged and rising. overlap: bytes that were given more than once."""

    start: I64
    end: I64
    overlap: int

    @classmethod
    def of(cls, start: Iterable[int] | I64, length: Iterable[int] | I64) -> Ranges:
        s = np.asarray(start if isinstance(start, np.ndarray) else list(start), np.int64)
        n = np.asarray(length if isinstance(length, np.ndarray) else list(length), np.int64)
        keep = n > 0
        s, n = s[keep], n[keep]
        order = np.argsort(s, kind="stable")
        s, e = s[order], s[order] + n[order]
        reach = np.maximum.accumulate(e) if len(e) else e
        first = np.concatenate(([True], s[1:] > reach[:-1])) if len(s) else np.zeros(0, np.bool_)
        at = np.flatnonzero(first)
        ends = np.maximum.reduceat(e, at) if len(at) else e
        return cls(s[at], ends, int(n.sum() - (ends - s[at]).sum()))

    def hit(self, start: I64, length: I64) -> Bools:
        """Which of [start, start + length) touch a range."""
        if not len(self.start):
            return np.zeros(start.shape, np.bool_)
        i = np.searchsorted(self.start, start + length, "left") - 1
        return (i >= 0) & (self.end[np.maximum(i, 0)] > start) & (length > 0)

    def joined(self, start: I64, length: I64) -> Ranges:
        """These and further ranges; `overlap` counts this join only."""
        return Ranges.of(np.concatenate((self.start, start)), np.concatenate((self.end - self.start, length)))


@dataclass(slots=True)
class Tally:
    """How many table entries were refused, and why."""

    illegal: int = 0  # bits that the format keeps zero, or no cluster boundary
    outside: int = 0  # beyond the end of the container, or inside its metadata
    twice: int = 0  # named by two guest clusters
    unread: int = 0  # tables that are not there (or over our limit)
    empty: int = 0  # tables without one entry, which the format does not write

    def checks(self, name: str) -> list[Check]:
        return [
            Check(f"{name}.entries-legal", self.illegal == 0, f"{self.illegal} entries with bits no writer sets"),
            Check(f"{name}.entries-inside", self.outside == 0, f"{self.outside} entries outside or inside metadata"),
            Check(f"{name}.entries-unique", self.twice == 0, f"{self.twice} entries name a cluster twice"),
            Check(f"{name}.tables-read", self.unread + self.empty == 0,
                  f"{self.unread} tables missing, {self.empty} empty", False),
        ]


@dataclass(slots=True)
class Cells:
    """Parsed entries, arrays of one shape [tables, entries].

    state: as in GuestMap. host int64: file offset that the entry names, -1 for none (a HOLE may keep a cluster).
    stored int64: bytes there. encoding: as in GuestMap. halves: per-entry subcluster bits (qcow2 extended L2) or None.
    illegal: the entry breaks the format.
    """

    state: U8
    host: I64
    stored: I64
    encoding: U8
    illegal: Bools
    halves: U64 | None = None


@dataclass(slots=True)
class Tables:
    """Second-level tables, each read once: offset int64[k] rising, words uint64[k, n], known bool[k, n] (None: all)."""

    offset: I64
    words: U64
    known: Bools | None

    def rows(self, offset: I64) -> I64:
        """The row of each table by its file offset, -1 where it was not read."""
        if not len(self.offset):
            return np.full(len(offset), -1, np.int64)
        i = np.minimum(np.searchsorted(self.offset, offset), len(self.offset) - 1)
        return np.where(self.offset[i] == offset, i, -1)


def load_tables(reader: Reader, offset: I64, words: int, dtype: str, limit: int = OUR_MAX_TABLE_BYTES) -> Tables:
    """Reads tables of `words` 64-bit words at each offset (rising, unique), as many as `limit` bytes hold."""
    size = 8 * words
    offset = offset[: limit // size]
    block = np.zeros((len(offset), words), np.uint64)
    lost: dict[int, Bools] = {}
    kept: list[int] = []
    for at in offset.tolist():
        values, known = read_words(reader, at, words, dtype)
        if not known.any():
            continue
        block[len(kept)] = values
        if not known.all():
            lost[len(kept)] = known
        kept.append(at)
    mask: Bools | None = None
    if lost:
        mask = np.ones((len(kept), words), np.bool_)
        for row, known in lost.items():
            mask[row] = known
    return Tables(np.asarray(kept, np.int64), block[: len(kept)], mask)


@dataclass(slots=True)
class FirstLevel:
    """A first-level table: table int64[n] file offset of each second-level table (-1 none).

    absent uint8[n]: the state where there is none. known bool[n]: the entry was there.
    """

    table: I64
    absent: U8
    known: Bools

    @property
    def named(self) -> I64:
        return self.table[self.table >= 0]


def first_level(table: I64, illegal: Bools, known: Bools, size: int, fixed: Ranges, limit: int,
                tally: Tally) -> FirstLevel:
    """Refuses entries (0: none) whose table of `size` bytes cannot be there: outside, inside `fixed`, named twice."""
    illegal = illegal & known
    named = known & ~illegal & (table > 0)
    outside = named & ((table > limit - size) | fixed.hit(table, np.full(len(table), size)))
    twice = named_twice(np.where(named & ~outside, table, -1))
    tally.illegal += int(illegal.sum())
    tally.outside += int(outside.sum())
    tally.twice += int(twice.sum())
    good = named & ~outside & ~twice
    absent = np.where(known & ~illegal & (table == 0), UNALLOCATED, LOST).astype(np.uint8)
    return FirstLevel(np.where(good, table, -1), absent, known)


@dataclass(slots=True)
class Layout:
    """How a format's second-level tables are to be read.

    cluster: bytes per entry. entries: per table. parse: words uint64[k, n] -> Cells [k, entries].
    limit: no cluster may reach beyond it (file offset). metadata: what no cluster may touch.
    empty_is_lost: a table without one entry was overwritten with zeros, because the format writes none such.
    """

    cluster: int
    entries: int
    parse: Callable[[U64], Cells]
    limit: int
    metadata: Ranges
    empty_is_lost: bool = True
    tally: Tally = field(default_factory=Tally)


def parse_rows(layout: Layout, tables: Tables, rows: I64, tally: Tally | None = None) -> Cells:
    """The entries of some tables with everything LOST that cannot be true of each entry by itself."""
    words = tables.words[rows]
    cells = layout.parse(words)
    named = (cells.host >= 0) & (cells.state != EXTERNAL)
    stream = cells.encoding != PLAIN
    beyond = np.where(stream, cells.host >= layout.limit, cells.host > layout.limit - cells.stored)
    outside = named & (beyond | layout.metadata.hit(cells.host, cells.stored))
    np.minimum(cells.stored, layout.limit - cells.host, out=cells.stored, where=named & stream & ~outside)
    k, n = cells.state.shape
    used: Bools = np.any(words.reshape(k, n, -1) != 0, axis=2)
    if tally is not None:
        tally.illegal += int(cells.illegal.sum())
        tally.outside += int(outside.sum())
    bad = spread(cells.illegal | outside, used, 8 * words.shape[1] // n)
    if layout.empty_is_lost:
        empty = ~np.any(used, axis=1)
        bad[empty] = True
        if tally is not None:
            tally.empty += int(empty.sum())
    if tables.known is not None:
        bad |= ~np.all(tables.known[rows].reshape(k, n, -1), axis=2)
    lose(cells, bad)
    return cells


def lose(cells: Cells, bad: Bools) -> None:
    """Marks entries LOST."""
    cells.state[bad] = LOST
    cells.host[bad] = -1
    cells.encoding[bad] = PLAIN
    if cells.halves is not None:
        cells.halves[bad] = 0


def in_host_blocks(flags: Bools, size: int, offset: int = 0) -> Bools:
    """Flags [k, n] of entries of `size` bytes as [k, blocks, entries]; the tables start at file offset `offset`.

    Padded with False where a table does not fill its first or last host block.
    """
    width = min(flags.shape[1], PIECE // size)
    lead = offset % PIECE // size % width
    padded = np.pad(flags, ((0, 0), (lead, -(lead + flags.shape[1]) % width)))
    return padded.reshape(flags.shape[0], -1, width)


def over_host_blocks(blocks: Bools, like: Bools, size: int, offset: int = 0) -> Bools:
    """One flag per host block [k, blocks] spread to its entries; the inverse of `in_host_blocks` for flags `like`."""
    width = min(like.shape[1], PIECE // size)
    lead = offset % PIECE // size % width
    return np.repeat(blocks, width, axis=1)[:, lead : lead + like.shape[1]]


def spread(bad: Bools, used: Bools, size: int, offset: int = 0) -> Bools:
    """A host block of table in which over one in 16 used entries is impossible was overwritten: all of it is bad."""
    count = in_host_blocks(bad, size, offset).sum(axis=2)
    filled = in_host_blocks(used, size, offset).sum(axis=2)
    return bad | over_host_blocks(count > np.maximum(1, filled // 16), bad, size, offset)


@dataclass(slots=True)
class Conflicts:
    """File offsets (rising) of plain clusters and of streams that two guest clusters name."""

    plain: I64
    streams: I64


@dataclass(slots=True)
class Claims:
    """What tables name: plain int64: cluster offsets; start, length int64: encoded streams. Weights: times each."""

    plain: I64
    plain_weight: I32
    start: I64
    length: I64
    stream_weight: I32


def chunks(layout: Layout, count: int, units: int = 1) -> Iterator[slice]:
    """Slices of `count` tables that keep the temporary arrays small; `units` per entry."""
    step = max(1, CHUNK_ENTRIES // (layout.entries * units))
    for at in range(0, count, step):
        yield slice(at, at + step)


def claims(layout: Layout, tables: Tables, rows: I64, weight: I64 | None = None, tally: Tally | None = None) -> Claims:
    """Every cluster that the tables in `rows` name; `weight`: how often each table is referred to."""
    each: I32 = np.ones(len(rows), np.int32) if weight is None else weight.astype(np.int32)
    found: list[tuple[I64, I32, I64, I64, I32]] = []
    for part in chunks(layout, len(rows)):
        cells = parse_rows(layout, tables, rows[part], tally)
        times = np.broadcast_to(each[part][:, None], cells.host.shape)
        plain = (cells.host >= 0) & (cells.encoding == PLAIN)
        stream = (cells.host >= 0) & (cells.encoding != PLAIN)
        found.append((cells.host[plain], times[plain], cells.host[stream], cells.stored[stream], times[stream]))
    if not found:
        none = np.zeros(0, np.int64)
        return Claims(none, none.astype(np.int32), none, none, none.astype(np.int32))
    return Claims(*(np.concatenate(column) for column in zip(*found, strict=True)))


def find_conflicts(found: Claims, cluster: int) -> Conflicts:
    """Clusters named twice, streams that start at one byte twice, and streams that reach into a plain cluster."""
    plain = np.sort(found.plain)
    order = np.argsort(found.start, kind="stable")
    start, end = found.start[order], found.start[order] + found.length[order]
    twice = np.unique(plain[1:][plain[1:] == plain[:-1]])
    again = np.unique(start[1:][start[1:] == start[:-1]])
    if len(plain) and len(start):
        reach = np.maximum.accumulate(end)
        i = np.searchsorted(start, plain + cluster, "left") - 1
        over = (i >= 0) & (reach[np.maximum(i, 0)] > plain)
        j = np.searchsorted(plain, end, "left") - 1
        under = (j >= 0) & (plain[np.maximum(j, 0)] + cluster > start)
        twice, again = np.union1d(twice, plain[over]), np.union1d(again, start[under])
    return Conflicts(twice, again)


def lose_conflicts(cells: Cells, conflicts: Conflicts) -> int:
    """Marks what two guest clusters name LOST; returns how many entries."""
    stream = cells.encoding != PLAIN
    bad = ~stream & (cells.host >= 0) & np.isin(cells.host, conflicts.plain)
    bad |= stream & np.isin(cells.host, conflicts.streams)
    lose(cells, bad)
    return int(bad.sum())


def build_map(size: int, layout: Layout, tables: Tables, rows: I64, absent: U8) -> GuestMap:
    """The map of a disk of `size` bytes: per first-level entry the row of its table, or -1 and the state `absent`."""
    span = layout.cluster * layout.entries
    need = min(len(rows), -(-size // span))
    rows, absent = rows[:need], absent[:need]
    conflicts = find_conflicts(claims(layout, tables, rows[rows >= 0], tally=layout.tally), layout.cluster)
    bare = np.flatnonzero(rows < 0)
    minus = np.full(len(bare), -1, np.int64)
    parts = [GuestMap.build(bare * span, np.full(len(bare), span), absent[bare], minus)]
    full = np.flatnonzero(rows >= 0)
    for part in chunks(layout, len(full), units=33):
        index = full[part]
        cells = parse_rows(layout, tables, rows[index])
        layout.tally.twice += lose_conflicts(cells, conflicts)
        parts.append(_table_runs(cells, index * span, layout.cluster))
    if need * span < size:
        parts.append(GuestMap.build([need * span], [size - need * span], [LOST], [-1]))
    return _join(parts, size)


def _table_runs(cells: Cells, base: I64, cluster: int) -> GuestMap:
    """The runs of some tables whose first guest byte is base int64[k], rising."""
    guest = base[:, None] + np.arange(cells.state.shape[1], dtype=np.int64) * cluster
    at = np.where((cells.state == DATA) | (cells.state == EXTERNAL), cells.host, -1)
    length = np.full(guest.shape, cluster, np.int64)
    if cells.halves is None:
        stored = np.where(cells.encoding == PLAIN, length, cells.stored)
        flat = (guest, length, cells.state, at, cells.encoding, stored)
        return GuestMap.build(*(a.reshape(-1) for a in flat))
    return _subcluster_runs(cells, guest, at, cluster)


def _subcluster_runs(cells: Cells, guest: I64, at: I64, cluster: int) -> GuestMap:
    """As _table_runs, with each plain cluster cut into its 32 subclusters (qcow2 spec, extended L2 entries)."""
    assert cells.halves is not None
    whole = (cells.encoding != PLAIN) | (cells.state == LOST)
    bits = cells.halves[:, :, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
    allocated, zero = bits[:, :, :32] == 1, bits[:, :, 32:] == 1
    state = np.where(zero, HOLE, np.where(allocated, cells.state[:, :, None], UNALLOCATED)).astype(np.uint8)
    state = np.where(whole[:, :, None], cells.state[:, :, None], state)
    step = cluster // 32
    sub = np.arange(32, dtype=np.int64) * step
    live = (state == DATA) | (state == EXTERNAL)
    offset = np.where(live, at[:, :, None] + sub, -1)
    length = np.full(state.shape, step, np.int64)
    # an encoded cluster is one run: its first subcluster takes all of it, the others have no length
    length[whole] = 0
    length[whole, 0] = cluster
    encoding = np.broadcast_to(cells.encoding[:, :, None], state.shape)
    stored = np.where(encoding == PLAIN, length, cells.stored[:, :, None])
    flat = (guest[:, :, None] + sub, length, state, offset, encoding, stored)
    return GuestMap.build(*(a.reshape(-1) for a in flat))


def _join(parts: Sequence[GuestMap], size: int) -> GuestMap:
    """One map from parts that do not overlap, cut at `size`."""
    guest = np.concatenate([p.guest_offset for p in parts])
    order = np.argsort(guest, kind="stable")
    guest = guest[order]
    length = np.concatenate([p.length for p in parts])[order]
    encoding = np.concatenate([p.encoding for p in parts])[order]
    stored = np.concatenate([p.stored for p in parts])[order]
    length = np.clip(size - guest, 0, length)
    stored = np.where(encoding == PLAIN, length, stored)
    state = np.concatenate([p.state for p in parts])[order]
    offset = np.concatenate([p.file_offset for p in parts])[order]
    return GuestMap.build(guest, length, state, offset, encoding, stored)


def without_missing(reader: Reader, m: GuestMap) -> tuple[GuestMap, I64]:
    """The map without the streams of which bytes are not there, and the guest offsets of those, rising.

    A program that meets an entry whose stream does not decode reads no further: such entries are to be emptied.
    """
    pick = np.flatnonzero((m.state == DATA) & (m.encoding != PLAIN))
    if not len(pick) or not reader.missing(0, reader.size):
        return m, np.zeros(0, np.int64)
    pick = pick[np.argsort(m.file_offset[pick], kind="stable")]
    start = m.file_offset[pick]
    # an entry counts sectors, and the next stream begins in the last of them
    stored = np.minimum(m.stored[pick] - (SECTOR - 1), np.append(np.diff(start), m.stored[pick[-1]]))
    gone = [i for i, f, n in zip(pick.tolist(), start.tolist(), stored.tolist(), strict=True)
            if reader.missing(f, max(1, n))]
    if not gone:
        return m, np.zeros(0, np.int64)
    state, place, encoding = m.state.copy(), m.file_offset.copy(), m.encoding.copy()
    size = m.stored.copy()
    state[gone], place[gone], encoding[gone], size[gone] = LOST, -1, PLAIN, m.length[gone]
    return GuestMap.build(m.guest_offset, m.length, state, place, encoding, size), np.sort(m.guest_offset[gone])


def unit_map(size: int, unit: int, state: U8, host: I64) -> GuestMap:
    """The map of a one-level table (VDI, Parallels): one entry per allocation unit."""
    need = -(-size // unit)
    return GuestMap.from_units(size, unit, state[:need], np.where(state[:need] == DATA, host[:need], -1))


def named_twice(host: I64) -> Bools:
    """Which of the non-negative values occur more than once."""
    order = np.argsort(host, kind="stable")
    same = np.zeros(len(host), np.bool_)
    if len(host) > 1:
        equal = host[order][1:] == host[order][:-1]
        same[order[1:]] |= equal
        same[order[:-1]] |= equal
    return same & (host >= 0)


def regions(kind: str, start: Iterable[int] | I64, length: Iterable[int] | I64, grade: str) -> list[Region]:
    """Coalesced regions of one kind."""
    merged = Ranges.of(start, length)
    pairs = zip(merged.start.tolist(), merged.end.tolist(), strict=True)
    return [Region(low, high - low, kind, grade) for low, high in pairs]


def show_name(raw: bytes) -> str:
    """A name from evidence as text, up to its first NUL; it is shown, never opened."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
