"""Run lists out of an NTFS volume, read from the image itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from .tools import CorpusError
from .truth import Extent

_DATA, _INDEX, _LIST_END = 0x80, 0xA0, 0xFFFFFFFF
MFT, MIRROR, LOG, BITMAP, BOOT = 0, 1, 2, 6, 7  # record numbers of the volume's own files
FIRST_USER_RECORD = 24

Run = tuple[int, int, int]  # first VCN, LCN or -1 for a hole, clusters


class Ntfs:
    """An NTFS volume at byte `start` of an image. The MFT is read once, when it is first asked for."""

    def __init__(self, image: Path, start: int) -> None:
        self.image, self.start = image, start
        self._table = b""
        boot = self._read(0, 512)
        if boot[3:11] != b"NTFS    ":
            raise CorpusError(f"{image.name}: no NTFS boot sector at {start}")
        sector, per_cluster = struct.unpack_from("<HB", boot, 11)
        self.cluster = sector * per_cluster
        self.sectors: int = struct.unpack_from("<Q", boot, 0x28)[0]
        self.sector_size = sector
        mft_cluster = struct.unpack_from("<Q", boot, 0x30)[0]
        size = struct.unpack_from("<b", boot, 0x40)[0]
        self.record_size = 1 << -size if size < 0 else size * self.cluster
        first = self._fixed(self._read(mft_cluster * self.cluster, self.record_size))
        self.mft: list[Run] = sorted(run for runs, _ in self._data_of(first) for run in runs)

    def _read(self, offset: int, length: int) -> bytes:
        with self.image.open("rb") as file:
            file.seek(self.start + offset)
            return file.read(length)

    def record(self, number: int) -> bytes:
        """One FILE record with its fixups undone."""
        if not self._table:  # read once: a host that has aged has thousands of records
            self._table = b"".join(self._read(lcn * self.cluster, count * self.cluster) for _, lcn, count in self.mft)
        at = number * self.record_size
        if at + self.record_size > len(self._table):
            raise CorpusError(f"{self.image.name}: no MFT record {number}")
        return self._fixed(self._table[at : at + self.record_size])

    def _fixed(self, record: bytes) -> bytes:
        if record[:4] != b"FILE":
            raise CorpusError(f"{self.image.name}: not a FILE record")
        fixed = bytearray(record)
        at, count = struct.unpack_from("<HH", record, 4)
        for number in range(1, count):
            fixed[number * 512 - 2 : number * 512] = record[at + 2 * number : at + 2 * number + 2]
        return bytes(fixed)

    def _data_of(self, record: bytes, wanted: int = _DATA) -> list[tuple[list[Run], int]]:
        """(runs, real size or 0) of the non-resident attributes `wanted` in one record; of $DATA the unnamed ones."""
        found: list[tuple[list[Run], int]] = []
        at = struct.unpack_from("<H", record, 0x14)[0]
        while at + 8 <= len(record):
            kind, length = struct.unpack_from("<II", record, at)
            if kind == _LIST_END or length == 0:
                break
            if kind == wanted and record[at + 8] == 1 and (wanted != _DATA or record[at + 9] == 0):
                vcn = struct.unpack_from("<Q", record, at + 16)[0]
                runs_at = struct.unpack_from("<H", record, at + 32)[0]
                size = struct.unpack_from("<Q", record, at + 48)[0] if vcn == 0 else 0
                found.append((self._runs(record[at + runs_at : at + length], vcn), size))
            at += length
        return found

    @staticmethod
    def _runs(packed: bytes, vcn: int) -> list[Run]:
        runs: list[Run] = []
        at, lcn = 0, 0
        while at < len(packed) and packed[at]:
            sizes, at = packed[at], at + 1
            count = int.from_bytes(packed[at : at + (sizes & 15)], "little")
            at += sizes & 15
            step = packed[at : at + (sizes >> 4)]
            at += sizes >> 4
            lcn += int.from_bytes(step, "little", signed=True)
            runs.append((vcn, lcn if step else -1, count))
            vcn += count
        return runs

    def runs(self, number: int) -> list[Run]:
        """All runs of file `number`, its extension records included, by VCN."""
        found: list[Run] = []
        total = sum(count for _, _, count in self.mft) * self.cluster // self.record_size
        for other in range(total):
            try:
                record = self.record(other)
            except CorpusError:
                continue
            base = struct.unpack_from("<Q", record, 0x20)[0] & 0xFFFFFFFFFFFF
            if (other == number or base == number) and struct.unpack_from("<H", record, 0x16)[0] & 1:
                if other == number or base:
                    found += [run for runs, _ in self._data_of(record) for run in runs]
        return sorted(found)

    def extents(self, number: int, size: int) -> list[Extent]:
        """Extents of file `number` in bytes of the image; empty for a resident file."""
        found: list[Extent] = []
        for vcn, lcn, count in self.runs(number):
            length = min(count * self.cluster, size - vcn * self.cluster)
            if lcn >= 0 and length > 0:
                found.append((vcn * self.cluster, self.start + lcn * self.cluster, length, ""))
        return found

    def _records(self) -> Iterator[tuple[int, bytes]]:
        """(number, bytes) of every record that is in use."""
        for number in range(sum(count for _, _, count in self.mft) * self.cluster // self.record_size):
            try:
                record = self.record(number)
            except CorpusError:
                continue
            if struct.unpack_from("<H", record, 0x16)[0] & 1:
                yield number, record

    def _areas(self, record: bytes, wanted: int) -> list[tuple[int, int]]:
        runs = [run for found, _ in self._data_of(record, wanted) for run in found]
        return [(self.start + lcn * self.cluster, count * self.cluster) for _, lcn, count in runs if lcn >= 0]

    def contents(self) -> list[tuple[int, int]]:
        """(image_offset, length) of the content of every file but the volume's own."""
        own = range(FIRST_USER_RECORD)
        return sorted(area for number, record in self._records() if number not in own
                      for area in self._areas(record, _DATA))  # fmt: skip

    def index_areas(self) -> list[tuple[int, int]]:
        """(image_offset, length) of the index blocks of all directories."""
        return [area for _, record in self._records() for area in self._areas(record, _INDEX)]

    def own_areas(self) -> list[tuple[int, int]]:
        """(image_offset, length) of boot sectors, $MFT, its mirror, $LogFile and $Bitmap."""
        areas = [(self.start, 16 * self.sector_size), (self.start + self.sectors * self.sector_size, self.sector_size)]
        for number in (MFT, MIRROR, LOG, BITMAP):
            runs = self.mft if number == MFT else self.runs(number)
            areas += [(self.start + lcn * self.cluster, count * self.cluster) for _, lcn, count in runs if lcn >= 0]
        return areas
