"""NTFS on disk: boot sector, FILE records with their fixups, attributes, run lists, names.

Sources: the NTFS documentation of the Linux-NTFS project (layout.h of ntfs-3g), checked against volumes of
mkfs.ntfs / ntfs-3g 2022.10. All numbers little-endian; VCN and LCN count clusters, of a file and of the volume.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._space import Runs

STRIDE = 512  # bytes that one fixup protects, whatever the sector size (layout.h: NTFS_BLOCK_SIZE)
STANDARD, LIST, NAME, VOLUME_NAME, DATA, INDEX, BITMAP = 0x10, 0x20, 0x30, 0x60, 0x80, 0xA0, 0xB0
END = 0xFFFFFFFF
IN_USE, DIRECTORY = 1, 2  # record flags
COMPRESSED, ENCRYPTED = 0x00FF, 0x4000  # attribute flags; the low byte is the compression method
REFERENCE = (1 << 48) - 1  # low 48 bits of a reference: the record's number; high 16: its sequence number
FORMAT_MAX_CLUSTER = 2 << 20  # bytes; Windows 10 1709 and later format up to 2 MiB
MIN_RECORD, MAX_RECORD = 512, 65536  # bytes; 1024 and 4096 are what formatters make
FILETIME_EPOCH = 11644473600  # seconds from 1601-01-01 to 1970-01-01
OUR_MAX_VCN = 1 << 41  # clusters of one file: bytes stay below 2**62 with the largest cluster
NUMBERED_FROM = 0x30  # update sequences at or after this byte leave room for the record number (NTFS 3.1)
NAME_RANK = {1: 0, 3: 0, 0: 1, 2: 2}  # Win32 and Win32+DOS, then POSIX, then DOS


@dataclass(frozen=True, slots=True)
class Boot:
    """sector, cluster, record_size: bytes; sectors: of the volume, without the backup boot sector behind it."""

    sector: int
    cluster: int
    sectors: int
    mft_lcn: int
    mirror_lcn: int
    record_size: int
    serial: int

    @property
    def clusters(self) -> int:
        return self.sectors * self.sector // self.cluster


def parse_boot(block: bytes) -> Boot | None:
    """The boot sector, or None when it is none or contradicts itself."""
    if len(block) < 512 or block[3:11] != b"NTFS    " or block[510:512] != b"\x55\xaa":
        return None
    sector, per_cluster = struct.unpack_from("<HB", block, 11)
    sectors, mft, mirror = struct.unpack_from("<QQQ", block, 0x28)
    (size,) = struct.unpack_from("<b", block, 0x40)
    (serial,) = struct.unpack_from("<Q", block, 0x48)
    if sector not in (256, 512, 1024, 2048, 4096):
        return None
    if per_cluster > 0x80:  # 2**(256 - x) sectors
        per_cluster = 1 << min(256 - per_cluster, 31)
    cluster = sector * per_cluster
    record = 1 << -size if -31 < size < 0 else size * cluster
    if cluster & (cluster - 1) or not 0 < cluster <= FORMAT_MAX_CLUSTER:
        return None
    if record & (record - 1) or not MIN_RECORD <= record <= MAX_RECORD:
        return None
    boot = Boot(sector, cluster, sectors, mft, mirror, record, serial)
    if not 0 < sectors * sector < 1 << 62 or not 0 < mft < boot.clusters or not 0 < mirror < boot.clusters:
        return None
    return boot


def undo_fixups(records: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Undoes the fixups of uint8[n, size] in place. Returns int64[n]: bytes of each record that may be believed.

    0: no FILE record; less than `size`: the record is torn, from the first sector on that another write reached.
    """
    n, size = records.shape
    strides = size // STRIDE
    usable = np.zeros(n, np.int64)
    at = field(records, 4, "<u2").astype(np.int64)
    count = field(records, 6, "<u2").astype(np.int64)
    good = (field(records, 0, "<u4") == 0x454C4946) & (count == strides + 1) & (at % 2 == 0)  # "FILE"
    good &= (at >= 0x28) & (at + 2 * count <= STRIDE - 2)
    rows = np.flatnonzero(good)
    if not len(rows):
        return usable
    at = at[rows]
    believed = np.full(len(rows), size, np.int64)
    for k in reversed(range(strides)):
        tail = k * STRIDE + STRIDE - 2
        torn = (records[rows, tail] != records[rows, at]) | (records[rows, tail + 1] != records[rows, at + 1])
        whole, places = rows[~torn], at[~torn] + 2 + 2 * k
        records[whole, tail] = records[whole, places]
        records[whole, tail + 1] = records[whole, places + 1]
        believed[torn] = k * STRIDE
    usable[rows] = believed
    return usable


def field(records: npt.NDArray[np.uint8], at: int, dtype: str) -> npt.NDArray[Any]:
    """One little-endian field at byte `at` of each row of uint8[n, size]."""
    width = np.dtype(dtype).itemsize
    return np.ascontiguousarray(records[:, at : at + width]).view(dtype)[:, 0]


@dataclass(frozen=True, slots=True)
class Attribute:
    """at, length: bytes inside the record. first, last: VCN (0, -1 when resident)."""

    kind: int
    at: int
    length: int
    resident: bool
    named: bool
    flags: int
    first: int = 0
    last: int = -1
    allocated: int = -1
    size: int = -1
    valid: int = -1


@dataclass(frozen=True, slots=True)
class Record:
    """A FILE record, fixups undone. whole: False when it is torn or its attributes do not end as they should.

    base, base_sequence: the record that this one extends (0, 0: none).
    """

    number: int
    data: bytes
    sequence: int
    flags: int
    base: int
    base_sequence: int
    attributes: tuple[Attribute, ...]
    whole: bool

    @property
    def in_use(self) -> bool:
        return bool(self.flags & IN_USE)

    @property
    def directory(self) -> bool:
        return bool(self.flags & DIRECTORY)

    def value(self, attribute: Attribute) -> bytes:
        """A resident attribute's value (as much as lies inside the attribute)."""
        length, start = struct.unpack_from("<IH", self.data, attribute.at + 16)
        return self.data[attribute.at + start : attribute.at + min(start + length, attribute.length)]

    def label(self, attribute: Attribute) -> str:
        """An attribute's name, "" without one."""
        letters, start = struct.unpack_from("<BH", self.data, attribute.at + 9)
        end = min(start + 2 * letters, attribute.length)
        return self.data[attribute.at + start : attribute.at + end].decode("utf-16-le", "replace") if letters else ""


def parse_record(data: bytes, usable: int, number: int) -> Record:
    """A record whose first `usable` bytes are believed, fixups undone."""
    sequence, _, first, flags, used = struct.unpack_from("<HHHHI", data, 16)
    (base,) = struct.unpack_from("<Q", data, 0x20)
    end = min(used, usable)
    attributes: list[Attribute] = []
    at, ended = first, False
    while at + 8 <= end:
        kind, length = struct.unpack_from("<II", data, at)
        if kind == END:
            ended = True
            break
        if length < 24 or length % 8 or at + length > end:
            break
        attribute = _attribute(data, at, kind, length)
        if attribute is None:
            break
        attributes.append(attribute)
        at += length
    # a record's last attribute is its end mark, whose four bytes of length may lie beyond `used`
    ended = ended or (at + 4 <= end and data[at : at + 4] == b"\xff\xff\xff\xff")
    return Record(number, data, sequence, flags, base & REFERENCE, base >> 48, tuple(attributes),
                  ended and usable >= used)  # fmt: skip


def _attribute(data: bytes, at: int, kind: int, length: int) -> Attribute | None:
    outside, named = data[at + 8], data[at + 9] != 0
    (flags,) = struct.unpack_from("<H", data, at + 12)
    if not outside:
        count, start = struct.unpack_from("<IH", data, at + 16)
        if start + count > length:
            return None
        return Attribute(kind, at, length, True, named, flags, size=count)
    if outside != 1 or length < 64:
        return None
    first, last = struct.unpack_from("<Qq", data, at + 16)
    allocated, size, valid = struct.unpack_from("<QQQ", data, at + 40)
    if last < first - 1 or last >= OUR_MAX_VCN:
        return None
    if first:  # sizes stand in the attribute's first piece only
        return Attribute(kind, at, length, False, named, flags, first, last)
    if max(allocated, size, valid) >= 1 << 63:
        return None
    return Attribute(kind, at, length, False, named, flags, first, last, allocated, size, valid)


def decode_runs(record: Record, attribute: Attribute, clusters: int) -> tuple[Runs, bool]:
    """int64[n, 3] of (VCN, LCN or -1 for a hole, clusters), and whether the list reaches its last VCN unharmed.

    A step that leads out of the volume's `clusters`, or a run beyond the last VCN, ends the list: each LCN counts from
    the one before it.
    """
    (start,) = struct.unpack_from("<H", record.data, attribute.at + 32)
    packed = record.data[attribute.at + start : attribute.at + attribute.length]
    rows: list[tuple[int, int, int]] = []
    at, lcn, vcn, end = 0, 0, attribute.first, attribute.last + 1
    while at < len(packed) and packed[at]:
        count_bytes, step_bytes = packed[at] & 15, packed[at] >> 4
        following = at + 1 + count_bytes + step_bytes
        if not 0 < count_bytes <= 8 or step_bytes > 8 or following > len(packed):
            return _rows(rows), False
        count = int.from_bytes(packed[at + 1 : at + 1 + count_bytes], "little", signed=True)
        if count <= 0 or vcn + count > end:
            return _rows(rows), False
        if step_bytes:
            lcn += int.from_bytes(packed[at + 1 + count_bytes : following], "little", signed=True)
            if lcn < 0 or lcn + count > clusters:
                return _rows(rows), False
            rows.append((vcn, lcn, count))
        else:
            rows.append((vcn, -1, count))
        vcn += count
        at = following
    return _rows(rows), vcn == end


def _rows(rows: list[tuple[int, int, int]]) -> Runs:
    return np.array(rows, np.int64).reshape(-1, 3)


@dataclass(frozen=True, slots=True)
class FileName:
    parent: int
    parent_sequence: int
    name: str
    rank: int


def best_name(record: Record) -> FileName | None:
    """The $FILE_NAME that a user saw: Win32 before POSIX before DOS; of several hard links, the first."""
    best: FileName | None = None
    for attribute in record.attributes:
        if attribute.kind != NAME or not attribute.resident:
            continue
        value = record.value(attribute)
        if len(value) < 66 or len(value) < 66 + 2 * value[64]:
            continue
        rank = NAME_RANK.get(value[65], 3)
        if best is None or rank < best.rank:
            parent = int.from_bytes(value[:8], "little")
            name = value[66 : 66 + 2 * value[64]].decode("utf-16-le", "replace")
            best = FileName(parent & REFERENCE, parent >> 48, name, rank)
    return best


def unix(ticks: Any) -> Any:
    """Unix seconds of NTFS times: 100 ns since 1601, one or an array."""
    return ticks / 10**7 - FILETIME_EPOCH


def times(record: Record) -> dict[str, float]:
    """$STANDARD_INFORMATION's times as Unix seconds."""
    for attribute in record.attributes:
        if attribute.kind == STANDARD and attribute.resident and attribute.size >= 32:
            ticks = struct.unpack_from("<4Q", record.value(attribute))
            names = ("created", "modified", "changed", "accessed")
            return {k: float(unix(v)) for k, v in zip(names, ticks, strict=True) if 0 < v < 1 << 62}
    return {}


def listed(value: bytes, *, named: bool = False) -> Iterator[tuple[int, int, int, int]]:
    """$ATTRIBUTE_LIST entries of attributes without a name, or with one: (type, first VCN, record number, its sequence
    number)."""
    at = 0
    while at + 26 <= len(value):
        kind, length, letters = struct.unpack_from("<IHB", value, at)
        vcn, reference = struct.unpack_from("<QQ", value, at + 8)
        if length < 26 or at + length > len(value):
            return
        if named == (letters > 0):
            yield kind, vcn, reference & REFERENCE, reference >> 48
        at += length
