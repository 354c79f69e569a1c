"""Where FILE records lie: inside $MFT, or (when it is lost) at the places where a sweep found them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..model import RUN_DATA, RUN_HOLE, Reader
from ._blocks import merge
from ._ntfs_record import (
    BITMAP,
    DATA,
    LIST,
    Attribute,
    Boot,
    Record,
    best_name,
    decode_runs,
    field,
    listed,
    parse_record,
    undo_fixups,
)
from ._space import NO_ROWS, Runs, Stream, joined_rows

BATCH_BYTES = 4 << 20  # records read at once in a pass over the table
WINDOW_BYTES = 64 << 10  # records read around one that is wanted by its number
WINDOWS = 64  # such windows that are kept
FORMAT_MAX_LIST = 256 << 10  # bytes of an $ATTRIBUTE_LIST (ntfs-3g and Windows agree)
OUR_MAX_BLIND_RECORDS = 1 << 24  # of a table whose record 0 is lost: followed from its first cluster on
MIRRORED = 4  # records that $MFTMirr repeats, at least: $MFT, $MFTMirr, $LogFile, $Volume

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Batch:
    """Records read together, fixups undone. numbers int64[n], usable int64[n] (see undo_fixups); slot: the first's."""

    slot: int
    numbers: Runs
    records: Bytes
    usable: Runs

    def record(self, row: int) -> Record:
        return parse_record(self.records[row].tobytes(), int(self.usable[row]), int(self.numbers[row]))


class Table(Protocol):
    """FILE records by number."""

    def batches(self, wanted: npt.NDArray[np.bool_] | None = None) -> Iterator[Batch]:
        """All records in order, some MiB at a time. `wanted`, by slot: batches without any such slot are skipped."""
        ...

    def record(self, number: int) -> Record | None: ...

    @property
    def slots(self) -> int:
        """One more than the last slot that a batch may hold."""
        ...


class Mft:
    """$MFT, read through its own runs. mirror: where $MFTMirr lies, whose records stand for those that are lost; -1:
    nowhere.
    """

    def __init__(self, reader: Reader, runs: Runs, record_size: int, mirror: int = -1) -> None:
        # $MFT has no holes: what lies behind the image's end, or at file offsets beyond its size, is a lie or is lost.
        there = np.minimum(runs[:, 2], reader.size - np.maximum(runs[:, 0], runs[:, 1]))
        keep = (there > 0) & (runs[:, 3] == RUN_DATA)
        runs = np.concatenate((runs[:, :2], there[:, None], runs[:, 3:]), axis=1)[keep]
        self.runs = runs
        size = int(runs[-1, 0] + runs[-1, 2]) if len(runs) else 0
        self._stream = Stream(reader, runs, size)
        self._size = record_size
        self.slots = size // record_size
        self._per_window = max(WINDOW_BYTES // record_size, 1)
        self._windows: OrderedDict[int, Batch] = OrderedDict()
        self._copies = np.empty((0, record_size), np.uint8)
        if mirror >= 0:
            copies = bytearray(reader.read(mirror, min(MIRRORED, self.slots) * record_size))
            self._copies = np.frombuffer(copies, np.uint8)[: len(copies) // record_size * record_size].reshape(
                -1, record_size)
        self._copied = undo_fixups(self._copies)

    def _read(self, first: int, count: int) -> Batch:
        data = bytearray(self._stream.read(first * self._size, count * self._size))
        n = len(data) // self._size
        records = np.frombuffer(data, np.uint8)[: n * self._size].reshape(n, self._size)
        usable = undo_fixups(records)
        for row in range(first, min(len(self._copied), first + n)):
            if not usable[row - first] and self._copied[row]:
                records[row - first], usable[row - first] = self._copies[row], self._copied[row]
        return Batch(first, np.arange(first, first + n, dtype=np.int64), records, usable)

    def batches(self, wanted: npt.NDArray[np.bool_] | None = None) -> Iterator[Batch]:
        step = max(BATCH_BYTES // self._size, 1)
        told = merge(self.runs[:, [0, 2]])
        done = 0
        for start, length in told.tolist():
            first = max(-(-start // self._size), done)
            end = min((start + length) // self._size, self.slots)
            for at in range(first, end, step):
                count = min(step, end - at)
                if wanted is None or bool(wanted[at : at + count].any()):
                    yield self._read(at, count)
            done = max(done, end)

    def record(self, number: int) -> Record | None:
        if not 0 <= number < self.slots:
            return None
        key = number // self._per_window
        batch = self._windows.get(key)
        if batch is None:
            batch = self._windows[key] = self._read(key * self._per_window, self._per_window)
            if len(self._windows) > WINDOWS:
                self._windows.popitem(last=False)
        else:
            self._windows.move_to_end(key)
        row = number - key * self._per_window
        if row >= len(batch.usable) or batch.usable[row] == 0:
            return None
        return batch.record(row)


class Scattered:
    """Records at the places where they were found: positions int64[n] (image offsets, rising), numbers int64[n]."""

    def __init__(self, reader: Reader, positions: Runs, numbers: Runs, record_size: int) -> None:
        self._reader, self._size = reader, record_size
        self.positions, self.numbers = positions, numbers
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]
        self.slots = len(positions)

    def batches(self, wanted: npt.NDArray[np.bool_] | None = None) -> Iterator[Batch]:
        at = 0
        while at < len(self.positions):
            first = int(self.positions[at])
            end = int(np.searchsorted(self.positions, first + BATCH_BYTES - self._size, "right"))
            if wanted is None or bool(wanted[at:end].any()):
                yield self._read(at, end)
            at = end

    def _read(self, first: int, end: int) -> Batch:
        places = self.positions[first:end]
        start = int(places[0])
        length = int(places[-1]) - start + self._size
        data = np.frombuffer(self._reader.read(start, length).ljust(length, b"\0"), np.uint8)
        records = data[(places - start)[:, None] + np.arange(self._size)]
        return Batch(first, self.numbers[first:end], records, undo_fixups(records))

    def record(self, number: int) -> Record | None:
        i = int(np.searchsorted(self._sorted, number))
        if i >= len(self._sorted) or int(self._sorted[i]) != number:
            return None
        return self.at_slot(int(self._order[i]))

    def at_slot(self, slot: int) -> Record | None:
        """The record at positions[slot]."""
        batch = self._read(slot, slot + 1)
        return batch.record(0) if batch.usable[0] else None


def to_rows(runs: Runs, boot: Boot, base: int) -> Runs:
    """Runs of clusters (VCN, LCN or -1, count) as HostFile rows of a volume that begins at image offset `base`."""
    if not len(runs):
        return NO_ROWS
    hole = runs[:, 1] < 0
    image = np.where(hole, -1, runs[:, 1] * boot.cluster + base)
    kind = np.where(hole, RUN_HOLE, RUN_DATA)
    return joined_rows(np.stack((runs[:, 0] * boot.cluster, image, runs[:, 2] * boot.cluster, kind), axis=1))


def unnamed_data(record: Record) -> list[Attribute]:
    return [a for a in record.attributes if a.kind == DATA and not a.named]


def list_value(reader: Reader, record: Record, boot: Boot, base: int) -> bytes:
    """The $ATTRIBUTE_LIST of a record, from the record itself or from its clusters; b"" without one."""
    for attribute in record.attributes:
        if attribute.kind != LIST:
            continue
        if attribute.resident:
            return record.value(attribute)
        runs, _ = decode_runs(record, attribute, boot.clusters)
        size = min(max(attribute.size, 0), FORMAT_MAX_LIST)
        return Stream(reader, to_rows(runs, boot, base), size).read(0, size)
    return b""


def _single(reader: Reader, at: int, number: int, size: int) -> Record | None:
    data = bytearray(reader.read(at, size))
    if len(data) < size:
        return None
    records = np.frombuffer(data, np.uint8).reshape(1, size)
    usable = int(undo_fixups(records)[0])
    return parse_record(bytes(data), usable, number) if usable else None


def is_mft(record: Record | None) -> bool:
    """Whether this is record 0, which describes the table itself."""
    if record is None or not record.in_use or record.base:
        return False
    name, kinds = best_name(record), {a.kind for a in record.attributes}
    # Seen: when $MFT itself is badly fragmented, its name moves to an extension record.
    named = name.name == "$MFT" if name is not None else kinds >= {LIST, BITMAP}
    return named and any(not a.resident and a.first == 0 for a in unnamed_data(record))


def find_mft(reader: Reader, boot: Boot, base: int) -> Mft | None:
    """The table by its record 0, by record 0's copy in $MFTMirr, or blindly from its first cluster on."""
    home = base + boot.mft_lcn * boot.cluster
    for at in (home, base + boot.mirror_lcn * boot.cluster):
        record = _single(reader, at, 0, boot.record_size)
        if record is not None and is_mft(record):
            mft = from_record_0(reader, record, boot, base, base + boot.mirror_lcn * boot.cluster)
            if mft is not None:
                return mft
    count = _blind_length(reader, home, boot, base)
    if not count:
        return None
    rows = np.array([[0, home, count * boot.record_size, RUN_DATA]], np.int64)
    return Mft(reader, rows, boot.record_size)


def from_record_0(reader: Reader, record: Record, boot: Boot, base: int, mirror: int = -1) -> Mft | None:
    """The table's runs: those in record 0, then those in its extension records, which lie in what is known so far.

    mirror: see Mft.
    """
    parts = {a.first: decode_runs(record, a, boot.clusters)[0] for a in unnamed_data(record) if not a.resident}
    if 0 not in parts or not len(parts[0]):
        return None
    wanted = [(vcn, number) for kind, vcn, number, _ in listed(list_value(reader, record, boot, base))
              if kind == DATA and number != 0]  # fmt: skip
    mft = Mft(reader, _ordered(parts, boot, base), boot.record_size)
    known = len(parts)
    for vcn, number in sorted(wanted):
        if number >= mft.slots and len(parts) > known:
            mft, known = Mft(reader, _ordered(parts, boot, base), boot.record_size), len(parts)
        extension = mft.record(number) if vcn not in parts else None
        if extension is None or extension.base != 0 or not extension.in_use:
            continue
        for attribute in unnamed_data(extension):
            if not attribute.resident and attribute.first == vcn:
                parts[vcn] = decode_runs(extension, attribute, boot.clusters)[0]
    return Mft(reader, _ordered(parts, boot, base), boot.record_size, mirror)


def _ordered(parts: dict[int, Runs], boot: Boot, base: int) -> Runs:
    """Pieces of one run list by their first VCN; a piece that begins inside the one before it is left out."""
    kept: list[Runs] = []
    end = 0
    for first in sorted(parts):
        if first >= end and len(parts[first]):
            kept.append(parts[first])
            end = int(parts[first][-1, 0] + parts[first][-1, 2])
    runs = np.concatenate(kept)
    # More clusters than the volume has: some are claimed twice, and a pass over them might never end.
    held = np.cumsum(np.where(runs[:, 1] < 0, 0, runs[:, 2]))
    return to_rows(runs[held <= boot.clusters], boot, base)


def _blind_length(reader: Reader, home: int, boot: Boot, base: int) -> int:
    """How many records follow each other from the table's first cluster on (record 0 itself may be lost)."""
    end = base + boot.clusters * boot.cluster
    most = min((end - home) // boot.record_size, OUR_MAX_BLIND_RECORDS)
    step = max(BATCH_BYTES // boot.record_size, 1)
    count = 0
    for first in range(0, most, step):
        data = reader.read(home + first * boot.record_size, min(step, most - first) * boot.record_size)
        n = len(data) // boot.record_size
        records = np.frombuffer(data, np.uint8)[: n * boot.record_size].reshape(n, boot.record_size)
        found = np.flatnonzero(field(records, 0, "<u4") == 0x454C4946)
        if len(found):
            count = first + int(found[-1]) + 1
        if n < step or not len(found):
            break
    return count
