"""Grain directories and grain tables of hosted sparse extents: two copies become one answer, and damage is told apart.

A directory names the tables, a table names the grains (32-bit sector numbers). Most writers keep both twice (GD and
RGD). A copy is believed entry by entry: sectors of a table that are missing, emptied, or filled with foreign bytes are
taken from the twin, and the written container gets them back. Where both copies are sound but differ, the primary one
wins, as in every reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..model import DATA, LOST, PLAIN, SECTOR, SUPPORTED, GuestMap, Patch, Reader, Region
from ._blocks import missing_entries, table_patch
from ._vmdk_header import Header

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

READ_BYTES = 4 << 20
CHUNK_ENTRIES = 1 << 19  # entries merged at once: some 40 MiB of working arrays
UNFINISHED_WRITES = 8  # entries of a table that two sound copies may have differently
PER_SECTOR = SECTOR // 4
OUR_MAX_PATCH = 64 << 20  # bytes of restored tables that we hold
OUR_MAX_RUNS = 1 << 23  # runs of one guest map
OUR_MAX_CUTS = 1 << 16  # runs that are cut one by one where two claim the same bytes
OUR_MAX_REGIONS = 1 << 16


class Rules(NamedTuple):
    """What a table entry may be. floor <= grain's first sector < limit; grain in sectors; zero: 1 means zeros."""

    floor: int
    limit: int
    grain: int
    zero: bool


@dataclass(slots=True)
class Directory:
    """Where the tables are: sector numbers, 0 = the directory says there is none, -1 = not known.

    regular: the tables lie one behind the other behind their directory, as QEMU and VirtualBox place them. told: tables
    whose two copies say the same, and something: merging sets it.
    """

    primary: Int64s
    twin: Int64s
    has_twin: bool
    regular: bool
    told: Bools
    damaged: int = 0
    patches: list[Patch] = field(default_factory=list[Patch])


@dataclass(slots=True)
class Tally:
    """What merging the tables told: entries by what was wrong with them, and the bytes that restore a copy."""

    primary_bad: int = 0
    twin_bad: int = 0
    differ: int = 0
    lost: int = 0
    refused: int = 0  # of the lost ones, those that are there and wrong: others beside them may be wrong too
    beyond: int = 0
    zeroed: int = 0
    rest: int = 0
    patches: list[Patch] = field(default_factory=list[Patch])
    patched: int = 0


def read_array(reader: Reader, offset: int, count: int, dtype: str) -> tuple[npt.NDArray[Any], Bools]:
    """`count` numbers from `offset`, and which of them could not be read (those are 0). The caller bounds `count`."""
    width = np.dtype(dtype).itemsize
    out = np.zeros(count, dtype)
    view = out.view(np.uint8)
    for at in range(0, count * width, READ_BYTES):
        data = reader.read(offset + at, min(READ_BYTES, count * width - at))
        view[at : at + len(data)] = np.frombuffer(data, np.uint8)
    lost = missing_entries(reader, offset, count, width)
    out[lost] = 0
    return out, lost


def read_tables(
    reader: Reader, sector: Int64s, entries: int, dtype: str = "<u4"
) -> tuple[npt.NDArray[Any], Bools]:
    """The tables at `sector` (<= 0: none) as rows of `entries` numbers, and which numbers could not be read."""
    values = np.zeros((len(sector), entries), dtype)
    lost = np.zeros((len(sector), entries), bool)
    lost[sector <= 0] = True
    size = entries * np.dtype(dtype).itemsize
    there = np.flatnonzero(sector > 0)
    if not len(there):
        return values, lost
    follows = (np.diff(there) == 1) & (np.diff(sector[there]) * SECTOR == size)
    for run in np.split(there, np.flatnonzero(~follows) + 1):
        for at in range(0, len(run), max(1, READ_BYTES // size)):
            part = run[at : at + max(1, READ_BYTES // size)]
            first, end = int(part[0]), int(part[-1]) + 1
            flat, gone = read_array(reader, int(sector[first]) * SECTOR, (end - first) * entries, dtype)
            values[first:end] = flat.reshape(-1, entries)
            lost[first:end] = gone.reshape(-1, entries)
    return values, lost


def read_directory(reader: Reader, h: Header) -> Directory:
    """Both directories of an extent whose tables are at its front, repaired from each other and from the layout."""
    n, step = h.tables, h.table_sectors
    order = np.arange(n, dtype=np.int64) * step
    places = [h.directory_at] + ([h.redundant_at] if h.redundant and h.redundant_at != h.directory_at else [])
    copies: list[Int64s] = []
    expected: list[Int64s] = []
    bad: list[Bools] = []
    fit = told = other = 0
    for place in places:
        raw, lost = read_array(reader, place * SECTOR, n, "<u4")
        copy, formula = raw.astype(np.int64), place + h.directory_sectors + order
        copies.append(copy)
        expected.append(formula)
        bad.append(lost)
        fit += int((copy == formula).sum())
        told += int((~lost).sum())
        other += int(((copy != formula) & (copy > 0) & (copy < h.overhead)).sum())
    twin = len(places) == 2
    span = h.directory_sectors + n * step
    by_layout = h.directory_at - h.redundant_at == span if twin else (
        -(-(h.directory_at + span) // h.grain) * h.grain == h.overhead or h.directory_at + span == h.overhead)
    regular = 2 * fit > told or (by_layout and 2 * other <= told)
    out = Directory(copies[0], copies[1] if twin else np.zeros(n, np.int64), twin, regular, np.zeros(n, bool))
    for i, place in enumerate(places):
        if regular:
            wrong = copies[i] != expected[i]
            table = np.zeros(h.directory_sectors * SECTOR, np.uint8)
            table[: 4 * n] = expected[i].astype("<u4").view(np.uint8)
            out.patches += table_patch(place * SECTOR, table, wrong, 4, "rebuilt", SUPPORTED)
            copies[i] = expected[i]
        else:
            wrong = bad[i] | _clashing(copies[i], step)
            copies[i] = np.where(wrong, -1, copies[i])
        out.damaged += int(wrong.sum())
    out.primary = copies[0]
    if twin:
        out.twin = copies[1]
    return out


def _clashing(sector: Int64s, step: int) -> Bools:
    """Directory entries whose tables of `step` sectors share a sector."""
    used = np.flatnonzero(sector > 0)
    wrong = np.zeros(len(sector), bool)
    order = used[np.argsort(sector[used], kind="stable")]
    close = np.diff(sector[order]) < step
    wrong[order[1:][close]] = True
    wrong[order[:-1][close]] = True
    return wrong


def merge_tables(
    reader: Reader, h: Header, directory: Directory, rules: Rules, tally: Tally
) -> Iterator[tuple[int, Int64s, Bools]]:
    """(first grain, entries, lost) of the disk, in chunks. An entry is 0, 1 (zeros: `rules.zero`) or a sector.

    Ends before the first table behind which all lie outside the file; `tally.rest` is the first grain not spoken of.
    """
    rows = max(1, CHUNK_ENTRIES // h.entries)
    here = (directory.primary >= 0) & (directory.primary * SECTOR < reader.size)
    if directory.has_twin:
        here |= (directory.twin >= 0) & (directory.twin * SECTOR < reader.size)
    tables = int(np.flatnonzero(here)[-1]) + 1 if here.any() else 0
    tally.rest = min(tables * h.entries, h.grains)
    tally.lost += h.grains - tally.rest
    for k in range(0, tables, rows):
        end = min(k + rows, tables)
        primary, twin = directory.primary[k:end], directory.twin[k:end]
        a, bad_a = read_tables(reader, primary, h.entries)
        b, bad_b = read_tables(reader, twin, h.entries) if directory.has_twin else (a, np.ones(a.shape, bool))
        if directory.has_twin:
            directory.told[k:end] = (a == b).all(1) & a.any(1) & ~(bad_a | bad_b).any(1)
        none = (primary == 0) & (twin <= 0) | (primary < 0) & (twin == 0) & directory.has_twin
        bad_a[none] = False
        value, lost = _merge(a, bad_a, b, bad_b, rules, tally)
        _restore(tally, a, bad_a, primary, value, lost)
        if directory.has_twin:
            _restore(tally, b, bad_b, twin, value, lost)
        first = k * h.entries
        count = min(value.size, h.grains - first)
        tally.beyond += int((value.reshape(-1)[count:] > 0).sum())
        yield first, value.reshape(-1)[:count], lost.reshape(-1)[:count]


def _merge(
    a: npt.NDArray[Any], bad_a: Bools, b: npt.NDArray[Any], bad_b: Bools, rules: Rules, tally: Tally
) -> tuple[Int64s, Bools]:
    """One answer from two copies (rows of tables); `bad_a` and `bad_b` come with what is missing and get the rest."""
    if not (a.any() or b.any() or bad_a.any()):
        tally.twin_bad += int(bad_b.sum()) if not bad_b.all() else 0
        return a.astype(np.int64), np.zeros(a.shape, bool)
    gone = bad_a & bad_b
    judge(a, bad_a, rules)
    if not bad_b.all():
        judge(b, bad_b, rules)
        _emptied(a, bad_a, b, bad_b, 1)
        _emptied(b, bad_b, a, bad_a, 2)
        _whole_sectors(bad_a, bad_b)
        _contradictions(a, bad_a, b, bad_b)
        tally.differ += int(((a != b) & ~bad_a & ~bad_b).sum())
        tally.twin_bad += int(bad_b.sum())
    value = np.where(bad_a, np.where(bad_b, 0, b), a).astype(np.int64)
    lost = bad_a & bad_b
    tally.primary_bad += int(bad_a.sum())
    tally.lost += int(lost.sum())
    tally.refused += int((lost & ~gone).sum())
    tally.zeroed += int((value == 1).sum()) if rules.zero else 0
    return value, lost


def judge(table: npt.NDArray[Any], bad: Bools, rules: Rules) -> None:
    """Marks in `bad` the entries of `table` (rows) that name no grain: outside, off the grain raster, or named twice.

    Grains have one residue modulo the grain size (every known writer appends whole grains). A sector of a table
    in which a quarter of the entries fail holds foreign bytes: then all of it is marked, its zeros too.
    """
    rows = np.flatnonzero(((table != 0) & ~bad).any(1))
    if not len(rows):
        return
    t, known = table[rows].astype(np.int64), ~bad[rows]
    named = known & (t > (1 if rules.zero else 0))
    off = named & ((t < rules.floor) | (t >= rules.limit))
    if rules.grain > 1:
        inside = named & ~off
        residue = np.where(inside, t % rules.grain, rules.grain).astype(np.int16)
        count = inside.sum(1)
        # the median is the residue of the majority, if there is a majority
        common = np.sort(residue, 1)[np.arange(len(rows)), np.maximum(count - 1, 0) // 2]
        astray = inside & (residue != common[:, None])
        off |= astray & (count >= 3)[:, None]
        off[(count >= 3) & (2 * astray.sum(1) >= count)] = True
    width = min(PER_SECTOR, t.shape[1])
    in_sector = off.reshape(len(rows), -1, width).sum(2)
    foreign = (in_sector >= 2) & (4 * in_sector >= named.reshape(len(rows), -1, width).sum(2))
    off |= np.repeat(foreign, width, axis=1)
    where = np.flatnonzero(named & ~off)
    values = t.reshape(-1)[where]
    order = np.argsort(values, kind="stable")
    again = np.diff(values[order]) == 0
    flat = off.reshape(-1)
    flat[where[order[1:][again]]] = True
    flat[where[order[:-1][again]]] = True
    bad[rows] |= off


def _emptied(a: npt.NDArray[Any], bad_a: Bools, b: npt.NDArray[Any], bad_b: Bools, least: int) -> None:
    """Marks sectors of `a` that are all zero while the twin has `least` sound entries there: writers never do that."""
    width = min(PER_SECTOR, a.shape[1])
    empty = ~(a != 0).reshape(len(a), -1, width).any(2)
    full = ((b != 0) & ~bad_b).reshape(len(a), -1, width).sum(2) >= least
    bad_a |= np.repeat(empty & full, width, axis=1)


def _whole_sectors(bad_a: Bools, bad_b: Bools) -> None:
    """Where one copy of a sector has a bad entry and the other has none, the first is not believed in any entry."""
    width = min(PER_SECTOR, bad_a.shape[1])
    a, b = (x.reshape(len(x), -1, width).any(2) for x in (bad_a, bad_b))
    bad_a |= np.repeat(a & ~b, width, axis=1)
    bad_b |= np.repeat(b & ~a, width, axis=1)


def _contradictions(a: npt.NDArray[Any], bad_a: Bools, b: npt.NDArray[Any], bad_b: Bools) -> None:
    """Marks entries in both copies of a table that differ otherwise than by writes that were cut short.

    An entry that only the primary copy has is a write that the twin missed. Two different places for one grain, or
    many entries that only the twin has, mean that one of the copies is not what it was.
    """
    against = (a != b) & (b != 0) & ~(bad_a | bad_b)
    against &= ((a > 1) & (b > 1)) | (against.sum(1) > UNFINISHED_WRITES)[:, None]
    bad_a |= against
    bad_b |= against


def _restore(tally: Tally, stored: npt.NDArray[Any], bad: Bools, sector: Int64s, value: Int64s, lost: Bools) -> None:
    """Adds the patches that put `value` into the damaged sectors of one copy."""
    changed = bad & ~lost
    for row in np.flatnonzero(changed.any(1) & (sector > 0)).tolist():
        if tally.patched > OUR_MAX_PATCH:
            return
        table = np.where(lost[row], stored[row], value[row]).astype("<u4").view(np.uint8)
        new = table_patch(int(sector[row]) * SECTOR, table, changed[row], 4, "rebuilt", SUPPORTED)
        tally.patched += sum(len(p.data) for p in new)
        tally.patches += new


class RunList:
    """Runs of a guest map, collected in guest order and bounded."""

    def __init__(self) -> None:
        self._parts: list[GuestMap] = []
        self._held = 0
        self.given_up = 0  # guest bytes that became LOST because there were too many runs

    def add(self, part: GuestMap) -> None:
        """Appends runs; beyond our limit they are held as one LOST run each part."""
        if self._held > OUR_MAX_RUNS and len(part):
            size = int(part.length.sum())
            self.given_up += size
            part = GuestMap.build([int(part.guest_offset[0])], [size], [LOST], [-1])
        self._held += len(part)
        self._parts.append(part)

    def finish(self) -> GuestMap:
        if not self._parts:
            return GuestMap.build([], [], [], [])
        columns = ("guest_offset", "length", "state", "file_offset", "encoding", "stored")
        joined = [np.concatenate([getattr(p, c) for p in self._parts]) for c in columns]
        self._parts.clear()
        return GuestMap.build(*joined)


def table_runs(tables: range, k: Int64s, rest: npt.NDArray[np.uint8], unit: int, size: int,
               state: npt.NDArray[np.uint8], place: Int64s) -> GuestMap:  # fmt: skip
    """The map of the disk's part that `tables` speak of, for formats that allocate tables on demand.

    k: the tables that were read, with state and file offset of each entry (rows); rest: the state of all others.
    unit: bytes of an entry; size: bytes of the disk.
    """
    entries = state.shape[1]
    others = np.setdiff1d(np.arange(tables.start, tables.stop, dtype=np.int64), k)
    g = np.concatenate([(k[:, None] * entries + np.arange(entries)).reshape(-1), others * entries]) * unit
    n = np.concatenate([np.full(state.size, unit), np.full(len(others), unit * entries)])
    s = np.concatenate([state.reshape(-1), rest[others]])
    f = np.concatenate([place.reshape(-1), np.full(len(others), -1)])
    order = np.argsort(g, kind="stable")
    g = g[order]
    return GuestMap.build(g, np.clip(size - g, 0, n[order]), s[order], f[order])


def rest_runs(first: int, rest: npt.NDArray[np.uint8], span: int, size: int) -> GuestMap:
    """The map from table `first` to the disk's end when no table there was read. span: bytes of disk of a table."""
    g = np.arange(first, len(rest), dtype=np.int64) * span
    return GuestMap.build(g, np.clip(size - g, 0, span), rest[first:], np.full(len(g), -1, np.int64))


def drop_double_claims(m: GuestMap, reserved: Sequence[tuple[int, int]]) -> tuple[GuestMap, int]:
    """The map without bytes of the file that two runs, or a run and a (offset, length) of `reserved`, claim.

    Plain runs lose only the disputed bytes, encoded ones go as a whole. Returns the guest bytes that became LOST.
    """
    data = np.flatnonzero(m.state == DATA)
    held = np.array([r for r in reserved if r[1] > 0], np.int64).reshape(-1, 2)
    start = np.concatenate([m.file_offset[data], held[:, 0]])
    end = start + np.concatenate([m.stored[data], held[:, 1]])
    order = np.argsort(start, kind="stable")
    if not (start[order][1:] < np.maximum.accumulate(end[order])[:-1]).any():
        return m, 0
    low, high = _disputed(start, end)
    f, size = m.file_offset[data], m.stored[data]
    first, last = np.searchsorted(high, f, "right"), np.searchsorted(low, f + size, "left")
    hit = np.flatnonzero(first < last)
    state = m.state.copy()
    whole = hit[m.encoding[data[hit]] != PLAIN]
    plain = hit[m.encoding[data[hit]] == PLAIN]
    if int((last[plain] - first[plain]).sum()) > OUR_MAX_CUTS:
        whole, plain = hit, plain[:0]
    state[data[whole]] = LOST
    lost = int(m.length[data[whole]].sum())
    extra: list[tuple[int, int, int, int]] = []
    for i in plain.tolist():
        g, at, stop = int(m.guest_offset[data[i]]), int(f[i]), int(f[i] + size[i])
        delta = g - at
        for cut in range(int(first[i]), int(last[i])):
            a, b = max(at, int(low[cut])), min(stop, int(high[cut]))
            extra += [(at + delta, a - at, DATA, at), (a + delta, b - a, LOST, -1)]
            lost += b - a
            at = b
        extra.append((at + delta, stop - at, DATA, at))
    return _replaced(m, state, data[plain], extra), lost


def _disputed(start: Int64s, end: Int64s) -> tuple[Int64s, Int64s]:
    """The file ranges [low, high) that at least two of the intervals cover, rising and apart."""
    points = np.concatenate([start, end])
    change = np.concatenate([np.ones(len(start), np.int64), -np.ones(len(end), np.int64)])
    order = np.lexsort((change, points))
    at, depth = points[order], np.cumsum(change[order])
    many = np.flatnonzero((depth[:-1] >= 2) & (at[1:] > at[:-1]))
    low, high = at[many], at[many + 1]
    joined = np.flatnonzero(low[1:] > high[:-1])
    return low[np.concatenate(([0], joined + 1))], high[np.concatenate((joined, [len(low) - 1]))]


def _replaced(m: GuestMap, state: npt.NDArray[np.uint8], gone: Int64s,
              extra: list[tuple[int, int, int, int]]) -> GuestMap:
    """The map with other states, and with the runs `gone` replaced by `extra` (guest, length, state, file)."""
    keep = np.ones(len(m), bool)
    keep[gone] = False
    new = np.array(extra, np.int64).reshape(-1, 4)
    f = np.where(state == LOST, -1, m.file_offset)
    encoding = np.where(state == LOST, PLAIN, m.encoding)
    stored = np.where(state == LOST, m.length, m.stored)
    g = np.concatenate([m.guest_offset[keep], new[:, 0]])
    order = np.argsort(g, kind="stable")
    order = order[np.concatenate([m.length[keep], new[:, 1]])[order] > 0]
    return GuestMap.build(
        g[order],
        np.concatenate([m.length[keep], new[:, 1]])[order],
        np.concatenate([state[keep], new[:, 2].astype(np.uint8)])[order],
        np.concatenate([f[keep], new[:, 3]])[order],
        np.concatenate([encoding[keep], np.zeros(len(new), np.uint8)])[order],
        np.concatenate([stored[keep], new[:, 1]])[order],
    )


def table_regions(sector: Int64s, size: int, kind: str, grade: str) -> list[Region]:
    """Regions of the tables of `size` bytes at `sector` (<= 0: none); neighbours are one region."""
    at = np.sort(sector[sector > 0]) * SECTOR
    if not len(at):
        return []
    parts = np.flatnonzero(np.diff(at) != size) + 1
    first = np.concatenate(([0], parts))
    last = np.concatenate((parts, [len(at)])) - 1
    ends = at[last] + size
    return [Region(int(a), int(b - a), kind, grade)
            for a, b in zip(at[first][:OUR_MAX_REGIONS], ends[:OUR_MAX_REGIONS], strict=True)]  # fmt: skip
