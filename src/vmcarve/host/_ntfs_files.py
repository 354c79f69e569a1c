"""NTFS files out of FILE records: live ones, deleted ones, and maps whose base record is gone.

On deletion ntfs-3g and Windows clear a record's in-use bit and raise its sequence number by one; run lists, names and
sizes stay (seen: ntfs-3g 2022.10). References made before (extension -> base, child -> parent) thus hold a sequence
number that is one behind.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import HostFile, Reader
from ._ntfs_mft import Mft, Table, list_value, to_rows, unnamed_data
from ._ntfs_names import Names
from ._ntfs_record import (
    COMPRESSED,
    DATA,
    DIRECTORY,
    ENCRYPTED,
    END,
    IN_USE,
    REFERENCE,
    STANDARD,
    Attribute,
    Boot,
    FileName,
    Record,
    best_name,
    decode_runs,
    listed,
    times,
    unix,
)
from ._ntfs_record import field as column
from ._space import NO_ROWS, Runs, claimed_once, cut_rows

RESERVED = 24  # records below are the volume's own, and number their lives otherwise
FIRST_USER_RECORD = 16  # 0 to 15 are the volume's own files and their reserve
ROOT = 5
OUR_MAX_EXTENSIONS = 1 << 22  # extension records of a volume that we remember (24 bytes each)
OUR_MAX_PARTS = 1 << 14  # extension records of one file: an attribute list of 256 KiB names about 8000
OUR_MAX_DEPTH = 256  # directories in one path
OUR_MAX_FOLDERS = 1 << 18  # paths of directories that are kept for the next file
UNKNOWN = "?"  # stands for the part of a path that is gone


@dataclass(slots=True)
class Extensions:
    """Extension records of a table, by the record that they extend: int64[n] each, rising by base."""

    number: Runs
    base: Runs
    sequence: Runs  # the base's, when the reference was made
    in_use: npt.NDArray[np.bool_]
    taken: npt.NDArray[np.bool_]

    def of(self, base: int) -> npt.NDArray[np.int64]:
        """Rows that extend record `base` in any of its lives."""
        low, high = np.searchsorted(self.base, (base, base + 1))
        return np.arange(low, min(high, low + OUR_MAX_PARTS))


@dataclass(slots=True)
class Survey:
    """What the first pass over a table learnt. live, deleted: bool by slot; base records of files only."""

    live: npt.NDArray[np.bool_]
    deleted: npt.NDArray[np.bool_]
    extensions: Extensions


def survey(table: Table) -> Survey:
    """One pass in arrays: which slots hold files, which are extension records."""
    live = np.zeros(table.slots, np.bool_)
    deleted = np.zeros(table.slots, np.bool_)
    parts: list[tuple[Runs, ...]] = []
    kept = 0
    for batch in table.batches():
        records, good = batch.records, batch.usable > 0
        n = len(records)
        base = column(records, 32, "<u8")
        flags = column(records, 22, "<u2")
        in_use = (flags & IN_USE) != 0
        # a slot that never held a file has no attribute: its first one is the end mark
        first = column(records, 20, "<u2").astype(np.int64)
        first = np.where(first + 4 <= records.shape[1], first, 0)
        kind = records[np.arange(n)[:, None], first[:, None] + np.arange(4)].view("<u4")[:, 0]
        file = good & (base == 0) & ((flags & DIRECTORY) == 0) & (kind != END) & (batch.numbers >= FIRST_USER_RECORD)
        live[batch.slot : batch.slot + n] = file & in_use
        deleted[batch.slot : batch.slot + n] = file & ~in_use
        rows = np.flatnonzero(good & (base != 0))[: max(OUR_MAX_EXTENSIONS - kept, 0)]
        kept += len(rows)
        if len(rows):
            parts.append((batch.numbers[rows], (base[rows] & REFERENCE).astype(np.int64),
                          (base[rows] >> 48).astype(np.int64), in_use[rows]))  # fmt: skip
    return Survey(live, deleted, _extensions(parts))


def _extensions(parts: list[tuple[Runs, ...]]) -> Extensions:
    if not parts:
        none = np.zeros(0, np.int64)
        return Extensions(none, none, none, none.astype(np.bool_), none.astype(np.bool_))
    number, base, sequence, in_use = (np.concatenate([p[i] for p in parts]) for i in range(4))
    order = np.lexsort((number, sequence, base))
    return Extensions(number[order], base[order], sequence[order], in_use[order].astype(np.bool_),
                      np.zeros(len(order), np.bool_))  # fmt: skip


def quiet_since(table: Mft) -> float:
    """When the last file was born in a record that had been another's, of which nothing is left (Unix seconds).

    A record's sequence number counts its lives: one in use that says 1, or a deleted one that says 2, hides none.
    """
    created = np.zeros(table.slots)
    hides = np.zeros(table.slots, np.bool_)
    owner = np.arange(table.slots)
    for batch in table.batches():
        records, good = batch.records, batch.usable > 0
        n = np.arange(len(records))
        first = column(records, 20, "<u2").astype(np.int64)
        first = np.where(first + 24 <= records.shape[1], first, 0)
        kind = records[n[:, None], first[:, None] + np.arange(4)].view("<u4")[:, 0]
        value = first + records[n[:, None], first[:, None] + np.arange(20, 22)].view("<u2")[:, 0]
        told = good & (kind == STANDARD) & (records[n, first + 8] == 0) & (value + 8 <= records.shape[1])
        value = np.where(told, value, 0)
        ticks = records[n[:, None], value[:, None] + np.arange(8)].view("<u8")[:, 0]
        slots = slice(batch.slot, batch.slot + len(records))
        created[slots] = np.where(told, unix(ticks), 0.0)
        in_use = (column(records, 22, "<u2") & IN_USE) != 0
        hides[slots] = good & (column(records, 16, "<u2") > np.where(in_use, 1, 2)) & (batch.numbers >= RESERVED)
        base = (column(records, 32, "<u8") & REFERENCE).astype(np.int64)
        owner[slots] = np.where((base > 0) & (base < table.slots), base, batch.numbers)
    return float(created[owner[hides]].max(initial=-math.inf))


def following(sequence: int) -> int:
    """The sequence number after deletion: 16 bits, never 0."""
    return sequence + 1 if sequence < 0xFFFF else 1


def preceding(sequence: int) -> int:
    return sequence - 1 if sequence > 1 else 0xFFFF


class Paths:
    """Paths of files through their parents' records; deleted parents hold as long as their record was not reused, and
    then as long as a log has their names.
    """

    def __init__(self, table: Table, logged: Callable[[], Names] | None) -> None:
        self._table, self._logged = table, logged
        self._folders: dict[tuple[int, int], str] = {}

    def of(self, name: FileName | None) -> str:
        """The path without a leading slash; a part that is gone shows as "?"; "" without a name."""
        if name is None:
            return ""
        above = self._folder(name.parent, name.parent_sequence)
        return f"{above}/{name.name}" if above else name.name

    def _folder(self, number: int, sequence: int) -> str:
        chain: list[tuple[tuple[int, int], str]] = []
        path = UNKNOWN
        met: set[int] = set()
        while len(chain) < OUR_MAX_DEPTH and number not in met:
            if number == ROOT:
                path = ""
                break
            known = self._folders.get((number, sequence))
            if known is not None:
                path = known
                break
            met.add(number)
            name = self._name(number, sequence)
            if name is None:
                break
            chain.append(((number, sequence), name.name))
            number, sequence = name.parent, name.parent_sequence
        if len(self._folders) > OUR_MAX_FOLDERS:
            self._folders.clear()
        for key, part in reversed(chain):
            path = f"{path}/{part}" if path else part
            self._folders[key] = path
        return path

    def _name(self, number: int, sequence: int) -> FileName | None:
        record = self._table.record(number)
        own = record is not None and record.directory and not record.base and (
            record.sequence == sequence or not record.in_use and record.sequence == following(sequence))
        name = best_name(record) if record is not None and own else None
        return name or (self._logged().of(number, sequence) if self._logged is not None else None)


@dataclass(slots=True)
class _Part:
    """One piece of a file's $DATA. rank: the smaller, the more it is believed."""

    record: Record
    attribute: Attribute
    rank: tuple[int, int]


class Files:
    """The files of one volume, through a table of records. base: the volume's image offset; named: with paths; logged:
    the names that the volume logged, asked where a record has none.
    """

    def __init__(self, reader: Reader, boot: Boot, base: int, table: Table, origin: str, *, named: bool = True,
                 logged: Callable[[], Names] | None = None) -> None:
        self._reader, self._boot, self._base, self._table, self._origin = reader, boot, base, table, origin
        self._named, self._logged = named, logged
        self._paths = Paths(table, logged)

    def __iter__(self) -> Iterator[HostFile]:
        found = survey(self._table)
        for wanted, deleted in ((found.live, False), (found.deleted, True)):
            for batch in self._table.batches(wanted):
                rows = np.flatnonzero(wanted[batch.slot : batch.slot + len(batch.records)] & (batch.usable > 0))
                for row in rows.tolist():
                    file = self._file(batch.record(row), deleted, found.extensions)
                    if file is not None:
                        yield file
        yield from self._orphans(found.extensions)

    def _file(self, record: Record, deleted: bool, extensions: Extensions) -> HostFile | None:
        records = [record]
        rows = extensions.of(record.number)
        if len(rows):
            wanted = [record.sequence, preceding(record.sequence)] if deleted else [record.sequence]
            rows = rows[np.isin(extensions.sequence[rows], wanted) & (extensions.in_use[rows] != deleted)]
            extensions.taken[rows] = True
            records += self._records(extensions.number[rows].tolist(), record.number, wanted)
        return self._build(records, f"mft {record.number}-{record.sequence}", deleted)

    def _records(self, numbers: list[int], base: int, sequences: list[int]) -> Iterator[Record]:
        """Extension records, looked at again: another record of this number may be the one that is found."""
        for number in numbers:
            record = self._table.record(number)
            if record is not None and record.base == base and record.base_sequence in sequences:
                yield record

    def _orphans(self, extensions: Extensions) -> Iterator[HostFile]:
        """Maps in extension records whose base record is lost or holds another file now."""
        left = np.flatnonzero(~extensions.taken)
        if not len(left):
            return
        base, sequence = extensions.base[left], extensions.sequence[left]
        start = np.flatnonzero(np.concatenate(([True], (np.diff(base) != 0) | (np.diff(sequence) != 0))))
        for low, high in zip(start.tolist(), [*start[1:].tolist(), len(left)], strict=True):
            number, life = int(base[low]), int(sequence[low])
            owner = self._table.record(number)
            if number < FIRST_USER_RECORD or (owner is not None and owner.in_use and owner.sequence == life):
                continue  # given back by a file that still lives: an older state of its map
            rows = left[low : min(high, low + OUR_MAX_PARTS)]
            in_use = bool(extensions.in_use[rows].any())
            records = list(self._records(extensions.number[rows].tolist(), number, [life]))
            file = self._build(records, f"mft {number}-{life}", not in_use, ".extension")
            if file is not None:
                yield file

    def _build(self, records: list[Record], identity: str, deleted: bool, suffix: str = ".record") -> HostFile | None:
        """One file out of its records (base first, when there is one); None without any unnamed $DATA."""
        listing = self._listing(records[0]) if records else frozenset[tuple[int, int]]()
        parts: list[_Part] = []
        for record in records:
            lsn = int.from_bytes(record.data[8:16], "little")
            for attribute in unnamed_data(record):
                known = record is records[0] or (attribute.first, record.number) in listing
                parts.append(_Part(record, attribute, (0 if known else 1, -lsn)))
        if not parts:
            return None
        names = [n for n in map(best_name, records) if n is not None] if self._named else []
        when = next(filter(None, map(times, records)), {})
        if deleted and self._named and self._logged is not None:
            number, life = _life(records[0])
            lost = None if names else self._logged().of(number, life)
            names += [lost] if lost is not None else []
            gone = self._logged().deletion(number, life)
            when = when if gone is None else {**when, "deleted": gone}
        name = self._paths.of(min(names, key=lambda n: n.rank) if names else None)
        origin = self._origin + suffix
        for part in parts:
            if part.attribute.resident:
                value = part.record.value(part.attribute)
                return HostFile(identity, name, len(value), deleted, NO_ROWS, origin, True, when, value)
        rows, size, complete = self._map(parts, deleted)
        number = records[0].base or records[0].number
        last = max((v for k, v in when.items() if k != "accessed"), default=math.inf)
        return HostFile(identity, name, size, deleted, rows, origin, complete, when, number=number,
                        born=when.get("created", -math.inf), last=last)

    def _listing(self, record: Record) -> frozenset[tuple[int, int]]:
        """(first VCN, record number) of the pieces of $DATA that the record's attribute list names."""
        value = list_value(self._reader, record, self._boot, self._base)
        return frozenset((vcn, number) for kind, vcn, number, _ in listed(value) if kind == DATA)

    def _map(self, parts: list[_Part], deleted: bool) -> tuple[Runs, int, bool]:
        """HostFile rows, size (-1: lost) and whether the map is whole."""
        chosen = _without_rivals(parts)
        head = next((p.attribute for p in chosen if p.attribute.first == 0), None)
        size = head.size if head is not None else -1
        if any(p.attribute.flags & (COMPRESSED | ENCRYPTED) for p in chosen):
            return NO_ROWS, size, False
        decoded: list[Runs] = []
        covered, complete = 0, head is not None
        for part in chosen:
            runs, whole = decode_runs(part.record, part.attribute, self._boot.clusters)
            decoded.append(runs)
            complete &= whole and part.attribute.first == covered
            covered = part.attribute.last + 1
        rows, once = claimed_once(to_rows(np.concatenate(decoded), self._boot, self._base))
        complete &= once and covered * self._boot.cluster >= size
        if deleted and size == 0 and len(rows):
            return rows, -1, False  # a deletion that was carried out in steps: the size went first
        return cut_rows(rows, size, head.valid if head is not None else -1), size, complete


def _life(record: Record) -> tuple[int, int]:
    """The number of a deleted file's base record, and the sequence number that it had while the file lived."""
    if record.base:
        return record.base, record.base_sequence
    return record.number, record.sequence if record.in_use else preceding(record.sequence)


def _without_rivals(parts: list[_Part]) -> list[_Part]:
    """Pieces by first VCN; of pieces that overlap, the one that the attribute list names, else the newest."""
    chosen: list[_Part] = []
    starts: list[int] = []
    for part in sorted(parts, key=lambda p: (p.rank, p.attribute.first)):
        attribute = part.attribute
        if attribute.last < attribute.first:  # an empty stream
            if attribute.first == 0 and 0 not in starts:
                starts.insert(0, 0)
                chosen.insert(0, part)
            continue
        i = bisect.bisect_right(starts, attribute.first)
        if i and chosen[i - 1].attribute.last >= attribute.first:
            continue
        if i < len(starts) and starts[i] <= attribute.last:
            continue
        starts.insert(i, attribute.first)
        chosen.insert(i, part)
    return chosen
