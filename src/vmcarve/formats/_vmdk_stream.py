"""streamOptimized extents: compressed grains that state their own guest sector, and the tables before or after them.

A grain is `lba u64, size u32, zlib data`, padded to a sector. Other markers are `val u64, 0 u32, type u32`. Two
layouts: marker style (VMware, VirtualBox, vmdkstream: each grain table behind its grains, then the directory, a footer
that repeats the header, an empty sector) and front style (QEMU, open-vmdk: tables at the front, then only grains).
Whatever tables survive, a grain counts only where its own marker names its place on the disk.
Sources: VMware "Virtual Disk Format 1.1" (Stream-Optimized), QEMU block/vmdk.c, VirtualBox VMDK.cpp. Seen: both
layouts, from qemu-img 7.2 and vmdkstream 0.2.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..codec import decode_counted
from ..model import DATA, GUESSED, LOST, PLAIN, SECTOR, SUPPORTED, UNALLOCATED, ZLIB, GuestMap, Patch, Reader
from . import _vmdk_header as header
from ._vmdk_header import NO_OFFSET, Header
from ._vmdk_tables import (
    PER_SECTOR,
    Bools,
    Int64s,
    Rules,
    Tally,
    merge_tables,
    read_array,
    read_directory,
    read_tables,
)

END_OF_STREAM, GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER, PROGRESS = 0, 1, 2, 3, 4  # marker types
GRAIN_HEAD = 12  # bytes before a grain's data
FORMAT_MAX_STORED = 2  # grains: compressed data of one grain at most (QEMU's bound)
OUR_MAX_GRAINS = 1 << 23  # grains that we hold: 512 GiB stored at 64 KiB
OUR_MAX_BREAKS = 64  # times that a walk looks for the next grain behind damage
OUR_MAX_SEARCH = 64 << 20  # bytes that one walk searches behind damage
OUR_MAX_REBUILT = 4096  # tables that are written again: 128 GiB of disk
SEARCH_BYTES = 1 << 20


class Grains(NamedTuple):
    """Grains whose markers were read: number on the disk, first sector in the file, bytes of compressed data."""

    number: Int64s
    sector: Int64s
    size: Int64s

    @property
    def end(self) -> Int64s:
        """The sector behind each grain."""
        return self.sector + -(-(GRAIN_HEAD + self.size) // SECTOR)


@dataclass(slots=True)
class Walk:
    """What lies in the file from one sector on, as far as each element leads to the next.

    tables, directory, footer: sectors of their content (behind the marker), 0 = not met. end: sector behind the last
    element. gaps: [low, high) grain numbers that damage may have hidden. finished: the stream's own end was met.
    """

    grains: Grains
    tables: list[int] = field(default_factory=list[int])
    directory: int = 0
    footer: int = 0
    end: int = 0
    finished: bool = False
    gaps: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


@dataclass(slots=True)
class Stream:
    """A stream as its markers and tables tell it. end: sector behind the last element that is named.

    named_lost: grains that a table names and no marker confirms; unknown: [low, high) grain numbers nobody speaks of.
    table_at: sector of each grain table's content, 0 = none, -1 = not known. style: "markers" or "front".
    """

    header: Header
    style: str
    grains: Grains
    named_lost: Int64s
    unknown: npt.NDArray[np.int64]
    table_at: Int64s
    twin_at: Int64s
    end: int = 0
    finished: bool = False
    directory: int = 0
    footer: int = 0
    lost_entries: int = 0
    unnamed: int = 0  # grains that no table names
    damaged_tables: int = 0
    breaks: int = 0
    patches: list[Patch] = field(default_factory=list[Patch])


def marker(value: int, kind: int) -> bytes:
    """A marker sector that is not a grain."""
    return struct.pack("<QII", value, 0, kind).ljust(SECTOR, b"\0")


def grain_head(h: Header, data: bytes) -> tuple[int, int] | None:
    """(grain number, bytes of data) when `data` begins like a grain of this extent."""
    if len(data) < GRAIN_HEAD + 2:
        return None
    lba, size = struct.unpack_from("<QI", data)
    sane = 0 < size <= FORMAT_MAX_STORED * h.grain_bytes and lba < h.capacity and lba % h.grain == 0
    zlib = data[12] & 0x0F == 8 and data[12] >> 4 <= 7 and (data[12] << 8 | data[13]) % 31 == 0
    return (lba // h.grain, size) if sane and zlib else None


def inflates(reader: Reader, h: Header, sector: int) -> bool:
    """True when a whole grain of this extent can be decoded at `sector`: proof by Adler-32."""
    head = grain_head(h, reader.read(sector * SECTOR, 16))
    if head is None:
        return False
    data = reader.read(sector * SECTOR + GRAIN_HEAD, head[1])
    full, used = decode_counted(data, ZLIB, h.grain_bytes)
    if full is None:  # the last grain may be cut at the capacity
        full, used = decode_counted(data, ZLIB, min(h.grain, h.capacity - head[0] * h.grain) * SECTOR)
    return full is not None and used == head[1]


def walk(reader: Reader, h: Header, start: int, style: str, until: int = 0) -> Walk:
    """Follows the elements from sector `start`; behind damage it looks for the next grain that decodes.

    until: the stream is known to reach to this sector, so an empty sector before it is damage.
    """
    index, sector, size = array("q"), array("q"), array("q")
    out = Walk(Grains(*(np.zeros(0, np.int64),) * 3), end=start)
    searched = 0
    s = start
    for _ in range(OUR_MAX_GRAINS):
        data = reader.read(s * SECTOR, 16)
        head = grain_head(h, data)
        if head is not None:
            index.append(head[0])
            sector.append(s)
            size.append(head[1])
            s += -(-(GRAIN_HEAD + head[1]) // SECTOR)
            out.end = s
            continue
        step = _element(reader, h, s, data, style if s >= until else "", out)
        if out.finished:
            break
        if step:
            s += step
            out.end = s
            continue
        found = 0
        if len(out.gaps) < OUR_MAX_BREAKS:
            found, cost = _search(reader, h, s, OUR_MAX_SEARCH - searched)
            searched += cost
        low = index[-1] + 1 if index else 0
        nearby = grain_head(h, reader.read(found * SECTOR, 16)) if found else None
        out.gaps.append((low, nearby[0] if nearby else h.grains))
        if not found:
            break
        s = found
    out.grains, cut = _there(reader, Grains(np.array(index, np.int64), np.array(sector, np.int64),
                                            np.array(size, np.int64)))
    out.gaps += [(n, n + 1) for n in cut.tolist()]
    if len(index) > 1 and (np.diff(out.grains.number) <= 0).any() and out.gaps:
        out.gaps = [(0, h.grains)]  # not in disk order: what damage hid can be anything
    return out


def _there(reader: Reader, grains: Grains) -> tuple[Grains, Int64s]:
    """Those of which no byte is missing, and the numbers of the others."""
    if not len(grains.number) or not reader.missing(0, int(grains.end.max()) * SECTOR):
        return grains, grains.number[:0]
    kept = np.array([not reader.missing(s * SECTOR, GRAIN_HEAD + n)
                     for s, n in zip(grains.sector.tolist(), grains.size.tolist(), strict=True)], bool)
    return Grains(*(column[kept] for column in grains)), grains.number[~kept]


def _element(reader: Reader, h: Header, s: int, data: bytes, style: str, out: Walk) -> int:
    """Takes the marker at sector `s` into `out`; returns the sectors up to the next element, 0 if this is none."""
    if len(data) < 16 or reader.missing(s * SECTOR, SECTOR):
        return 0
    value, zero, kind = struct.unpack("<QII", data)
    if zero:
        return 0
    if kind == GRAIN_TABLE and value in (0, h.table_sectors):
        out.tables.append(s + 1)
        return 1 + h.table_sectors
    if kind == GRAIN_DIRECTORY and value in (0, h.directory_sectors):
        out.directory = s + 1
        return 1 + h.directory_sectors
    if kind == FOOTER and value in (0, 1):
        footer = header.parse(reader.read((s + 1) * SECTOR, SECTOR))
        if footer is not None and footer.capacity == h.capacity:
            out.footer, out.finished = s + 1, True
            out.end = s + 3
        return 0
    if kind == PROGRESS:
        return 1
    if kind == END_OF_STREAM and value == 0 and style == "front" and _empty(reader, s):
        out.finished = True
        out.end = s + (0 if h.redundant else 1)  # open-vmdk ends with an empty sector, QEMU with nothing
    return 0


def _empty(reader: Reader, s: int) -> int:
    """1 when sector `s` is there and empty."""
    return int(reader.read(s * SECTOR, SECTOR) == bytes(SECTOR) and not reader.missing(s * SECTOR, SECTOR))


def _search(reader: Reader, h: Header, after: int, budget: int) -> tuple[int, int]:
    """(sector, bytes searched): the next sector behind `after` with a grain that decodes or the footer's marker."""
    at = (after + 1) * SECTOR
    done = 0
    while done < budget:
        data = reader.read(at, SEARCH_BYTES)
        usable = len(data) // SECTOR * SECTOR
        if not usable:
            break
        block = np.frombuffer(data, np.uint8, usable).reshape(-1, SECTOR)
        lba, kind = block[:, :8].copy().view("<u8")[:, 0], block[:, 12:16].copy().view("<u4")[:, 0]
        size = block[:, 8:12].copy().view("<u4")[:, 0]
        check = block[:, 12].astype(np.int32) * 256 + block[:, 13]
        grain = (size > 0) & (size <= FORMAT_MAX_STORED * h.grain_bytes) & (lba < h.capacity) & (lba % h.grain == 0)
        grain &= (check % 31 == 0) & (block[:, 12] & 0x0F == 8)
        tail = (size == 0) & ((kind == FOOTER) & (lba <= 1) | (kind == GRAIN_DIRECTORY) & (lba == h.directory_sectors))
        for i in np.flatnonzero(grain | tail).tolist():
            s = at // SECTOR + i
            if tail[i] and not block[i, 16:].any() or grain[i] and inflates(reader, h, s):
                return s, done + i * SECTOR
        at += usable
        done += usable
    return 0, done


def confirm_entries(reader: Reader, h: Header, index: Int64s, sector: Int64s) -> tuple[Grains, Int64s]:
    """The grains that are where a table says, by their own markers, and the numbers of those that are not."""
    order = np.argsort(sector, kind="stable")
    index, sector = index[order], sector[order]
    size = np.zeros(len(index), np.int64)
    for i, (number, s) in enumerate(zip(index.tolist(), sector.tolist(), strict=True)):
        if i >= OUR_MAX_GRAINS:
            break
        head = grain_head(h, reader.read(s * SECTOR, 16))
        if head is not None and head[0] == number and not reader.missing(s * SECTOR, GRAIN_HEAD + head[1]):
            size[i] = head[1]
    good = size > 0
    return Grains(index[good], sector[good], size[good]), index[~good]


def join(parts: Iterable[Grains]) -> tuple[Grains, Int64s]:
    """All grains in disk order, and the numbers that two different places claim (those are in neither)."""
    columns = [np.concatenate(c) if c else np.zeros(0, np.int64) for c in zip(*parts, strict=True)]
    order = np.lexsort((columns[1], columns[0]))
    index, sector, size = (c[order] for c in columns)
    if not len(index):
        return Grains(index, sector, size), index
    new = np.concatenate(([True], (np.diff(index) != 0) | (np.diff(sector) != 0)))
    index, sector, size = index[new], sector[new], size[new]  # the same grain found twice is one grain
    same = np.diff(index) == 0
    twice = np.concatenate((same, [False])) | np.concatenate(([False], same))
    return Grains(index[~twice], sector[~twice], size[~twice]), np.unique(index[twice])


def read_stream(reader: Reader, h: Header) -> Stream:
    """Opens the stream behind a header that was believed."""
    if h.directory_at >= h.overhead:
        return _marker_style(reader, h)
    return _front_style(reader, h)


def _front_style(reader: Reader, h: Header) -> Stream:
    directory, tally = read_directory(reader, h), Tally()
    rules = Rules(h.overhead, max(h.overhead, -(-reader.size // SECTOR)), 0, h.zero_grains)
    index: list[Int64s] = []
    sector: list[Int64s] = []
    lost: list[Int64s] = []
    empty: list[Int64s] = []  # parts of tables that name nothing
    held = 0
    for first, value, gone in merge_tables(reader, h, directory, rules, tally):
        used = np.flatnonzero(value > 1)
        held += len(used)
        if held > OUR_MAX_GRAINS:
            gone, used = np.ones(len(gone), bool), used[:0]
        index.append(first + used)
        sector.append(value[used])
        lost.append(_runs(first + np.flatnonzero(gone)))
        parts = np.add.reduceat(value, np.arange(0, len(value), PER_SECTOR)) == 0
        empty.append(first + _runs(np.flatnonzero(parts)) * PER_SECTOR)
    lost.append(np.array([[tally.rest, h.grains]])[: tally.rest < h.grains])
    none = np.zeros(0, np.int64)
    found, named = confirm_entries(reader, h, np.concatenate([none, *index]), np.concatenate([none, *sector]))
    unknown = np.concatenate(lost).reshape(-1, 2)
    out = Stream(h, "front", found, named, unknown, directory.primary, directory.twin, finished=True,
                 directory=h.directory_at, lost_entries=tally.lost, damaged_tables=directory.damaged,
                 patches=directory.patches + tally.patches)  # fmt: skip
    doubtful = bool(len(unknown) or len(named) or directory.damaged)
    if doubtful or not _tiled(h, found):
        until = int(found.end.max(initial=h.overhead + 1 if doubtful else 0))
        seen = walk(reader, h, h.overhead, "front", until)
        out.grains, twice = join([found, seen.grains])
        out.named_lost = np.setdiff1d(np.concatenate([named, twice]), out.grains.number)
        out.breaks = len(seen.gaps)
        new = np.setdiff1d(out.grains.number, found.number)
        out.unnamed = len(new)
        hurt = bool(directory.damaged or tally.primary_bad or out.unnamed)
        if seen.finished and not seen.gaps and not len(out.named_lost):
            out.unknown = unknown[:0]
        elif not directory.has_twin and hurt and not (_tiled(h, out.grains) and len(out.grains.number)):
            # something lies where no table points, and no second table tells: an empty part may have been emptied
            out.unknown = np.concatenate([unknown, *empty])
        out.patches += _missing_tables(reader, h, out, np.concatenate([unknown, _runs(new), _runs(out.named_lost)]))
    ends = out.grains.end
    last = int(ends.max()) if len(ends) else h.overhead
    out.end = last + (0 if h.redundant else _empty(reader, last))
    return out


def _tiled(h: Header, grains: Grains) -> bool:
    """True when the grains lie one behind the other from the first grain's place on: then no table entry is lost."""
    order = np.argsort(grains.sector, kind="stable")
    start, end = grains.sector[order], grains.end[order]
    return not len(start) or bool(start[0] == h.overhead and (start[1:] == end[:-1]).all())


def _missing_tables(reader: Reader, h: Header, out: Stream, lost: npt.NDArray[np.int64]) -> list[Patch]:
    """Tables with entries that were lost, or that lead to lost grains, from the grains that were found.

    An entry to a grain that is gone becomes empty: other programs stop at one that leads nowhere.
    """
    hurt = np.unique(out.named_lost // h.entries)
    held = np.union1d(out.grains.number // h.entries, hurt)
    first, end = lost[:, 0] // h.entries, -(-lost[:, 1] // h.entries)
    touched = np.zeros(h.tables + 1, np.int64)
    np.add.at(touched, first, 1)
    np.add.at(touched, end, -1)
    patches: list[Patch] = []
    for k in held[np.cumsum(touched)[held] > 0][:OUR_MAX_REBUILT].tolist():
        row = table_row(h, out.grains, k)
        grade = GUESSED if out.breaks or k in hurt else SUPPORTED
        for place in (int(out.table_at[k]), int(out.twin_at[k])):
            if place > 0 and reader.read(place * SECTOR, len(row)) != row:
                patches.append(Patch(place * SECTOR, row, "rebuilt", grade))
    return patches


def table_row(h: Header, grains: Grains, k: int) -> bytes:
    """Grain table `k` as the grains that were found make it; `grains` in disk order."""
    a, b = np.searchsorted(grains.number, [k * h.entries, (k + 1) * h.entries])
    row = np.zeros(h.entries, "<u4")
    row[grains.number[a:b] - k * h.entries] = grains.sector[a:b]
    return row.tobytes()


def _marker_style(reader: Reader, h: Header) -> Stream:
    seen = walk(reader, h, h.overhead, "markers")
    grains, twice = join([seen.grains])
    directory, footer = seen.directory, seen.footer
    end = seen.end
    if not footer:
        for at_end in (reader.size // SECTOR - 2, reader.size // SECTOR - 1):
            tail = header.parse(reader.read(at_end * SECTOR, SECTOR)) if at_end > h.overhead else None
            behind = tail.directory_at + tail.directory_sectors + 1 if tail is not None else 0
            if tail is not None and tail.capacity == h.capacity and behind == at_end:
                footer, directory, end = at_end, tail.directory_at, at_end + 2
                break
    if footer and not directory:
        told = header.parse(reader.read(footer * SECTOR, SECTOR))
        directory = told.directory_at if told is not None and h.overhead <= told.directory_at < footer else 0
    table_at = _tables_behind(reader, h, directory, seen.tables, grains)
    out = Stream(h, "markers", grains, twice, np.zeros((0, 2), np.int64), table_at, np.zeros(h.tables, np.int64),
                 end, bool(footer), directory, footer, breaks=len(seen.gaps))  # fmt: skip
    complete = seen.finished and not seen.gaps
    known = _consult(reader, out)
    if not complete:
        gaps = seen.gaps or [(int(grains.number.max()) + 1 if len(grains.number) else 0, h.grains)]
        out.unknown = _unknown(h, known, gaps)
    out.patches = _rebuilt_tables(reader, out, known)
    out.patches += _ending(reader, out)
    return out


def _ending(reader: Reader, out: Stream) -> list[Patch]:
    """What is lost of the stream's end: all of it, or the empty sector behind the footer."""
    if not out.footer:
        return _rebuilt_tail(out)
    if _empty(reader, out.footer + 1):
        return []
    return [Patch((out.footer + 1) * SECTOR, bytes(SECTOR), "rebuilt", SUPPORTED)]


def _tables_behind(reader: Reader, h: Header, directory: int, met: list[int], grains: Grains) -> Int64s:
    """Sector of each grain table: from the directory, else by what each table met on the walk names."""
    at = np.full(h.tables, -1, np.int64)
    if directory:
        raw, lost = read_array(reader, directory * SECTOR, h.tables, "<u4")
        at = raw.astype(np.int64)
        at[lost | (at > 0) & ((at < h.overhead) | (at >= directory))] = -1
        held = np.unique(grains.number // h.entries)
        if (at[held] == 0).any() or int((at > 0).sum()) < len(met):
            at[at == 0] = -1  # entries were lost: then an empty one says nothing
    if (at < 0).any() and len(grains.number):
        by_place = np.argsort(grains.sector, kind="stable")
        sorted_grains = Grains(*(c[by_place] for c in grains))
        for sector in met:
            k = _which_table(reader, h, sector, sorted_grains)
            if k is not None and at[k] < 0:
                at[k] = sector
    return at


def _which_table(reader: Reader, h: Header, sector: int, grains: Grains) -> int | None:
    """The number of a grain table: where its first entries' grains say they belong. `grains` in file order."""
    row, _ = read_array(reader, sector * SECTOR, h.entries, "<u4")
    used = np.flatnonzero(row)[:8]
    places = np.minimum(np.searchsorted(grains.sector, row[used]), len(grains.sector) - 1)
    for i, place in zip(used.tolist(), places.tolist(), strict=True):
        if grains.sector[place] == row[i]:
            number = int(grains.number[place])
            return number // h.entries if number % h.entries == i else None
    return None


def _consult(reader: Reader, out: Stream) -> Bools:
    """Adds what the tables name and the walk did not meet; returns which tables are known entry by entry."""
    h = out.header
    known = out.table_at == 0
    parts, named = [out.grains], [out.named_lost]
    rows = np.flatnonzero(out.table_at > 0)
    for at in range(0, len(rows), 1024):
        k = rows[at : at + 1024]
        values, missing = read_tables(reader, out.table_at[k], h.entries)
        number = k[:, None] * h.entries + np.arange(h.entries)
        table = values.astype(np.int64)
        used = (table != 0) & ~missing
        place = np.minimum(np.searchsorted(out.grains.number, number), max(0, len(out.grains.number) - 1))
        met = out.grains.number[place] == number if len(out.grains.number) else np.zeros(number.shape, bool)
        agrees = met & (out.grains.sector[place] == table) if len(out.grains.number) else met
        wrong = (used & ((table < h.overhead) | (number >= h.grains) | met & ~agrees)).sum(1)
        sound = wrong * 2 <= used.sum(1)
        # a grain that was met and is not named: part of the table was emptied, so its zeros say nothing
        known[k] = sound & ~(missing | met & ~used).any(1)
        new = used & ~met & sound[:, None] & (table >= h.overhead) & (number < h.grains)
        more, absent = confirm_entries(reader, h, number[new], table[new])
        parts.append(more)
        named.append(absent)
    out.grains, twice = join(parts)
    out.named_lost = np.setdiff1d(np.concatenate([*named, twice]), out.grains.number)
    out.damaged_tables = int((~known[np.flatnonzero(out.table_at != 0)]).sum())
    return known


def _unknown(h: Header, known: Bools, gaps: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Grain ranges that lie in a gap of the walk and in a table that is not known."""
    runs = _runs(np.flatnonzero(~known)) * h.entries
    parts = [np.stack([np.maximum(runs[:, 0], low), np.minimum(runs[:, 1], high)], 1) for low, high in gaps]
    every = np.concatenate(parts)
    every[:, 1] = np.minimum(every[:, 1], h.grains)
    every = every[every[:, 0] < every[:, 1]]
    return every[np.argsort(every[:, 0], kind="stable")]


def _runs(numbers: Int64s) -> npt.NDArray[np.int64]:
    """[first, end) of the runs of consecutive numbers in a rising array."""
    if not len(numbers):
        return np.zeros((0, 2), np.int64)
    cut = np.flatnonzero(np.diff(numbers) != 1)
    first = np.concatenate(([0], cut + 1))
    last = np.concatenate((cut, [len(numbers) - 1]))
    return np.stack([numbers[first], numbers[last] + 1], 1)


def _rebuilt_tables(reader: Reader, out: Stream, known: Bools) -> list[Patch]:
    """Tables whose place is known and whose content is lost, or leads to lost grains, from the grains found."""
    h = out.header
    hurt = np.zeros(len(known), bool)
    hurt[out.named_lost // h.entries] = True
    patches: list[Patch] = []
    for k in np.flatnonzero((out.table_at > 0) & (~known | hurt))[:OUR_MAX_REBUILT].tolist():
        grade = GUESSED if out.breaks or hurt[k] else SUPPORTED
        place = int(out.table_at[k])
        patches.append(Patch((place - 1) * SECTOR, marker(h.table_sectors, GRAIN_TABLE) + table_row(h, out.grains, k),
                             "rebuilt", grade))  # fmt: skip
    return patches


def _rebuilt_tail(out: Stream) -> list[Patch]:
    """Grain tables that were never met, directory, footer and end, written behind the last element.

    For a stream whose end is lost right there, these are the bytes that its writer wrote. Moves `out.end`.
    """
    h = out.header
    grade = GUESSED if out.breaks > 1 or len(out.named_lost) else SUPPORTED
    data = bytearray()
    at = out.end
    used = np.unique(out.grains.number // h.entries)
    entries = np.where(out.table_at > 0, out.table_at, 0)
    if not out.directory:
        for k in used[out.table_at[used] <= 0].tolist():
            entries[k] = at + len(data) // SECTOR + 1
            data += marker(h.table_sectors, GRAIN_TABLE) + table_row(h, out.grains, k)
            out.table_at[k] = entries[k]
        data += marker(h.directory_sectors, GRAIN_DIRECTORY)
        out.directory = at + len(data) // SECTOR
        data += entries.astype("<u4").tobytes().ljust(h.directory_sectors * SECTOR, b"\0")
    data += marker(1, FOOTER) + replace(h, directory_at=out.directory).pack() + bytes(SECTOR)
    out.end = at + len(data) // SECTOR
    out.footer = out.end - 2
    return [Patch(at * SECTOR, bytes(data), "rebuilt", grade)]


def stream_map(out: Stream) -> GuestMap:
    """The guest map: grains that were found, LOST where a table names one or nobody knows, else unallocated."""
    h = out.header
    size = h.capacity * SECTOR
    lost = np.concatenate([out.unknown, np.stack([out.named_lost, out.named_lost + 1], 1)])
    edges = np.unique(np.concatenate(
        [np.array([0, h.grains]), out.grains.number, out.grains.number + 1, lost[:, 0], lost[:, 1]]))  # fmt: skip
    first, end = edges[:-1], edges[1:]
    change = np.zeros(len(edges), np.int64)
    np.add.at(change, np.searchsorted(edges, lost[:, 0]), 1)
    np.add.at(change, np.searchsorted(edges, lost[:, 1]), -1)
    state = np.where(np.cumsum(change)[:-1] > 0, LOST, UNALLOCATED).astype(np.uint8)
    offset = np.full(len(first), -1, np.int64)
    encoding = np.full(len(first), PLAIN, np.uint8)
    g = first * h.grain_bytes
    length = np.minimum(end * h.grain_bytes, size) - g
    stored = length.copy()
    at = np.searchsorted(first, out.grains.number)
    state[at], encoding[at] = DATA, ZLIB
    offset[at] = out.grains.sector * SECTOR + GRAIN_HEAD
    stored[at] = out.grains.size
    return GuestMap.build(g, length, state, offset, encoding, stored)


def marker_header(h: Header) -> Header:
    """The header at the front of a stream whose footer is `h`."""
    return replace(h, magic=header.MAGIC, directory_at=NO_OFFSET)


def from_tables(reader: Reader, h: Header, footer: int, met: list[tuple[int, int]]) -> Stream:
    """A stream without its front: from the footer's directory (`footer`: its sector, or 0) and tables that were met.

    met: (number of a table, sector of its content).
    """
    empty = Grains(*(np.zeros(0, np.int64),) * 3)
    directory = h.directory_at if footer else 0
    at = _tables_behind(reader, h, directory, [], empty)
    for k, sector in met:
        if 0 <= k < h.tables and at[k] < 0:
            at[k] = sector
    out = Stream(h, "markers", empty, np.zeros(0, np.int64), np.zeros((0, 2), np.int64), at,
                 np.zeros(h.tables, np.int64), 0, bool(footer), directory, footer)  # fmt: skip
    known = _consult(reader, out)
    out.unknown = _unknown(h, known, [(0, h.grains)])
    out.end = footer + 2 if footer else max((s + h.table_sectors for _, s in met), default=0)
    out.patches = _rebuilt_tables(reader, out, known)
    out.patches += _ending(reader, out)
    return out


def found_runs(out: Stream, base: int) -> npt.NDArray[np.int64]:
    """(file_offset, image_offset, length) of what was met in a contiguous file that begins at image_offset `base`."""
    h = out.header
    tables = out.table_at[out.table_at > 0] - 1
    start = np.concatenate([out.grains.sector, tables])
    end = np.concatenate([out.grains.end, tables + 1 + h.table_sectors])
    if out.finished:
        start = np.append(start, out.directory - 1)
        end = np.append(end, out.end)
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    cut = np.flatnonzero(start[1:] > end[:-1])
    first, last = start[np.concatenate(([0], cut + 1))], end[np.concatenate((cut, [len(end) - 1]))]
    return np.stack([first * SECTOR, first * SECTOR + base, (last - first) * SECTOR], 1)
