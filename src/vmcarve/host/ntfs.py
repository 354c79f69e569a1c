"""NTFS as a host: free clusters from $Bitmap, live and deleted files from $MFT, maps from FILE records found loose.

Layout: see _ntfs_record. A deleted file's record keeps its run lists until the record is used again (lowest number
first), so its map is exact even where its clusters have been given to others since: compare with `free`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from ..model import RUN_DATA, HostFile, HostKind, HostVolume, Reader
from ._blocks import merge
from ._first_look import named
from ._ntfs_carve import carve
from ._ntfs_files import Files, quiet_since
from ._ntfs_mft import Mft, find_mft, list_value, to_rows, unnamed_data
from ._ntfs_names import Names, logged_names
from ._ntfs_placer import placer
from ._ntfs_record import DATA, IN_USE, VOLUME_NAME, Boot, Record, decode_runs, listed, parse_boot
from ._ntfs_record import field as column
from ._space import PIECE, RunCollector, Runs, Stream, clipped, inverted, zero_bits

LOG, VOLUME, BITMAP = 2, 3, 6  # records of the volume's own files
EMPTY_LOG = 0xFF  # the byte that mkntfs and Windows fill $LogFile with, and drivers that empty it
BOOT_BYTES = 512
OUR_MAX_CLAIMS = 1 << 23  # runs of files in use that we hold while $Bitmap is lost (128 MiB)
BACKUP_SEARCH = 64 << 10  # bytes at the volume's end in which the backup boot sector is looked for


class NtfsVolume:
    """An NTFS volume. size: bytes without the backup boot sector; block_size: a cluster."""

    name = "ntfs"

    def __init__(self, reader: Reader, offset: int, boot: Boot, mft: Mft) -> None:
        self._reader, self._boot, self._mft = reader, boot, mft
        self.offset = offset
        self.size = boot.sectors * boot.sector
        self.block_size = boot.cluster
        self.uuid = f"{boot.serial:016x}"
        self.derived = False  # what is free, without the bitmap
        self.label = self._label()
        self._names: Names | None = None

    def _label(self) -> str:
        record = self._mft.record(VOLUME)
        for attribute in record.attributes if record is not None else ():
            if record is not None and attribute.kind == VOLUME_NAME and attribute.resident:
                return record.value(attribute)[:256].decode("utf-16-le", "replace")
        return ""

    def free(self) -> Runs:
        """Clusters whose bit in $Bitmap is clear. Where the bitmap is lost: those that no file in use claims."""
        cluster, end = self._boot.cluster, self._end()
        collected = RunCollector()
        lost: list[tuple[int, int]] = []
        bitmap = self._bitmap()
        count = max(-(-(end - self.offset) // cluster), 0)
        for at in range(0, -(-count // 8), PIECE):
            length = min(PIECE, -(-count // 8) - at)
            if bitmap is None or bitmap.missing(at, length):
                lost.append((at * 8, min(length * 8, count - at * 8)))
            else:
                runs = zero_bits(bitmap.read(at, length), at * 8, count - at * 8)
                collected.add(clipped(runs * cluster + [self.offset, 0], self.offset, end))
        self.derived = bool(lost)
        claimed = self._claimed() if lost else None
        if claimed is not None:
            for start, length in merge(np.array(lost, np.int64)).tolist():
                low, high = self.offset + start * cluster, self.offset + (start + length) * cluster
                collected.add(inverted(claimed, low, min(high, end)))
        return collected.result()

    def quiet_since(self) -> float:
        """When the last file was born in a record that may have been another deleted one's."""
        return quiet_since(self._mft)

    def _end(self) -> int:
        return min(self.offset + self._boot.clusters * self._boot.cluster, self._reader.size)

    def log(self) -> Runs:
        """HostFile rows of $LogFile."""
        return self._own(LOG)

    def _own(self, number: int) -> Runs:
        """HostFile rows of one of the volume's own files."""
        record = self._mft.record(number)
        if record is None or not record.in_use:
            return to_rows(np.zeros((0, 3), np.int64), self._boot, self.offset)
        records = [record]
        for kind, _, other, _ in listed(list_value(self._reader, record, self._boot, self.offset)):
            part = self._mft.record(other) if kind == DATA and other != number else None
            if part is not None and part.base == number and part.in_use:
                records.append(part)
        return self._rows(records)

    def _rows(self, records: list[Record]) -> Runs:
        parts = {a.first: decode_runs(r, a, self._boot.clusters)[0]
                 for r in records for a in unnamed_data(r) if not a.resident}  # fmt: skip
        runs = [parts[first] for first in sorted(parts)]
        return to_rows(np.concatenate([np.zeros((0, 3), np.int64), *runs]), self._boot, self.offset)

    def _bitmap(self) -> Stream | None:
        rows = self._own(BITMAP)
        if not len(rows):
            return None
        return Stream(self._reader, rows, int(rows[-1, 0] + rows[-1, 2]))

    def _claimed(self) -> Runs | None:
        """Image bytes that records in use claim: int64[n, 2]; None when there are more than we hold."""
        claimed = RunCollector(OUR_MAX_CLAIMS)
        claimed.add(np.array([[self.offset, self._boot.cluster]], np.int64))
        for batch in self._mft.batches():
            in_use = (column(batch.records, 22, "<u2") & IN_USE) != 0
            found: list[Runs] = []
            for row in np.flatnonzero((batch.usable > 0) & in_use).tolist():
                record = batch.record(row)
                found += [decode_runs(record, a, self._boot.clusters)[0] for a in record.attributes if not a.resident]
            if found:
                runs = np.concatenate(found)
                runs = runs[runs[:, 1] >= 0][:, 1:] * self._boot.cluster
                claimed.add(runs + [self.offset, 0])
        taken = claimed.result()
        return None if claimed.dropped else taken

    def files(self) -> Iterator[HostFile]:
        """Live files of at least one unnamed $DATA, then deleted ones. Named streams are not files here."""
        return iter(Files(self._reader, self._boot, self.offset, self._mft, "ntfs", logged=self._logged))

    def _logged(self) -> Names:
        if self._names is None:
            self._names = logged_names(self._reader, self._boot, self.offset, self._mft, self.log())
        return self._names

    def live(self) -> Iterator[HostFile]:
        """Live files without their names."""
        files = Files(self._reader, self._boot, self.offset, self._mft, "ntfs", named=False)
        return itertools.takewhile(lambda file: not file.deleted, files)


def _boots(reader: Reader, offset: int, limit: int) -> Iterator[Boot]:
    """The boot sector, then its backup: in the sector behind the volume's last one, which is the partition's last."""
    boot = parse_boot(reader.read(offset, BOOT_BYTES))
    if boot is not None:
        yield boot
    if named(reader, offset) in ("", "ntfs"):  # else formatted anew: the copy is the old volume's
        yield from _copies(reader, offset, limit)


def _copies(reader: Reader, offset: int, limit: int) -> Iterator[Boot]:
    start = max(offset, offset + limit - BACKUP_SEARCH)
    tail = reader.read(start, offset + limit - start)
    at = tail.rfind(b"NTFS    ")
    while at >= 0:
        boot = parse_boot(tail[max(at - 3, 0) : at - 3 + BOOT_BYTES])
        if boot is not None and offset + boot.sectors * boot.sector == start + at - 3:
            yield boot
        at = tail.rfind(b"NTFS    ", 0, at)


def open_volume(reader: Reader, offset: int, limit: int) -> HostVolume | None:
    """The volume whose first byte is image offset `offset`; `limit`: bytes up to its partition's end."""
    if offset < 0 or limit <= 0:
        return None
    for boot in _boots(reader, offset, limit):
        mft = find_mft(reader, boot, offset)
        if mft is not None:
            return NtfsVolume(reader, offset, boot, mft)
    return None


def former_volume(reader: Reader, offset: int, limit: int) -> HostVolume | None:
    """The volume that was here before something else began at `offset`, by its backup boot sector."""
    for boot in _copies(reader, offset, limit):
        mft = find_mft(reader, boot, offset)
        if mft is not None:
            return NtfsVolume(reader, offset, boot, mft)
    return None


def fills(reader: Reader, offset: int, limit: int) -> np.ndarray:
    """See HostKind: $LogFile."""
    volume = open_volume(reader, offset, limit)
    rows = volume.log() if isinstance(volume, NtfsVolume) else np.empty((0, 4), np.int64)
    rows = rows[(rows[:, 3] == RUN_DATA) & (rows[:, 1] >= 0)]
    return np.column_stack((rows[:, 1:3], np.full(len(rows), EMPTY_LOG)))


HOST = HostKind("ntfs", open_volume, carve, former_volume, placer=placer, fills=fills)
