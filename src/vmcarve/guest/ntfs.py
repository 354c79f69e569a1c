"""NTFS: the boot sector and its copy in the last sector, $MFT records that know their number, and $MFTMirr.

Source: libfsntfs "NTFS format" (Metz); linux-ntfs documentation. Seen: mkntfs 2022.10.3. Little-endian.
Multi-sector records carry fixups: the last two bytes of every 512 hold the update sequence number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..blocks import Blocks
from ..model import Begin, Evidence, EvidenceBatch, GuestKind, Reader, Signature, Volume
from ._fields import label, le16, le32, le64, power_of_two, whole

BOOT, RECORD = "ntfs.boot", "ntfs.record"
SMALL, LARGE = 1024, 4096  # bytes of a record; the latter on disks with 4096-byte sectors
SIGNATURES = (
    Signature(b"NTFS    ", BOOT, at=3, also=(14, b"\xff" * 7, bytes(7))),  # fields of FAT that NTFS keeps zero
    # fixups at an even place in the first sector, 3 or 9 of them
    Signature(b"FILE", RECORD, dense=True, size=SMALL, also=(4, b"\x01\xfe\xf5\xff", b"\0\0\1\0")),
)
STRIDE = 512  # of the fixups, whatever the sector size
MIRRORED = 4  # records that $MFTMirr holds at least
VOLUME_RECORD = 3
VOLUME_NAME, VOLUME_INFORMATION, END = 0x60, 0x70, 0xFFFF_FFFF
DIRTY = 0x1
IN_USE = 0x1  # record flags
NUMBERED = 0x30  # update sequences begin here or later since NTFS 3.1, whose records hold their number

OUR_MAX_SECTORS = 1 << 50


@dataclass(frozen=True, slots=True)
class _Boot:
    """sector, cluster, record in bytes; mft, mirror in clusters; sectors: of the volume, the boot copy not counted."""

    sector: int
    cluster: int
    sectors: int
    mft: int
    mirror: int
    record: int
    serial: int

    @property
    def size(self) -> int:
        """Bytes of the partition: the sector behind the volume holds the copy of the boot sector."""
        return (self.sectors + 1) * self.sector


def _parse(data: bytes) -> _Boot | None:
    if len(data) < 512 or data[3:11] != b"NTFS    " or data[510:512] != b"\x55\xaa" or data[0] not in (0xEB, 0xE9):
        return None
    sector, per_cluster, per_record = le16(data, 11), data[13], data[0x40]
    if not power_of_two(sector, 512, 4096):
        return None
    cluster = sector * per_cluster if per_cluster <= 0x80 else sector << (256 - per_cluster)
    # fields of FAT that NTFS keeps zero: reserved sectors, FATs, root entries, small sizes
    if not power_of_two(cluster, 512, 2 << 20) or any(data[14:21]) or any(data[22:24]) or any(data[32:36]):
        return None
    record = cluster * per_record if per_record < 0x80 else 1 << (256 - per_record) if per_record > 0xE0 else 0
    b = _Boot(sector, cluster, le64(data, 0x28), le64(data, 0x30), le64(data, 0x38), record, le64(data, 0x48))
    if record not in (SMALL, LARGE) or not 0 < b.sectors <= OUR_MAX_SECTORS:
        return None
    clusters = b.sectors * sector // cluster
    return b if 0 < b.mft < clusters and 0 < b.mirror < clusters and b.mft != b.mirror else None


def _unfixed(data: bytes) -> bytes | None:
    """A record with its fixups checked and taken out, or None when they do not agree (a torn or foreign record)."""
    if data[:4] != b"FILE":
        return None
    at, count = le16(data, 4), le16(data, 6)
    if count != len(data) // STRIDE + 1 or at < 0x2A or at % 2 or at + 2 * count > STRIDE - 2:
        return None
    out = bytearray(data)
    for i in range(1, count):
        end = i * STRIDE - 2
        if out[end : end + 2] != data[at : at + 2]:
            return None
        out[end : end + 2] = data[at + 2 * i : at + 2 * i + 2]
    return bytes(out) if 0x38 <= le32(data, 0x18) <= le32(data, 0x1C) == len(data) else None


def _record(reader: Reader, offset: int, size: int) -> bytes | None:
    data = whole(reader, offset, size)
    return None if data is None else _unfixed(data)


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A boot sector. The copy at the volume's end has the same bytes: $MFT at its place tells the first from the copy.

    Where neither place shows $MFT (cut off, fragmented) no place is claimed.
    """
    b = _parse(reader.read(offset, 512))
    if b is None:
        return None
    identity, size = f"{b.serial:016x}", b.size
    if any(_record(reader, offset + lcn * b.cluster, b.record) for lcn in (b.mft, b.mirror)):
        return Evidence(BOOT, offset, 512, volume_offset=0, identity=identity, value=size)
    start = offset - b.sectors * b.sector
    if _record(reader, start + b.mft * b.cluster, b.record) or reader.read(start, 512) == reader.read(offset, 512):
        return Evidence(BOOT, offset, 512, volume_offset=offset - start, identity=identity, value=size)
    return Evidence(BOOT, offset, 512, identity=identity, value=size, confidence=0.5)


def confirm_batch(blocks: npt.NDArray[np.uint8] | Blocks, image_offset: npt.NDArray[np.int64],
                  signature: Signature) -> EvidenceBatch | None:
    """Records whose fixups and sizes agree; value: the number that they state (-1 when they state none).

    Of records of two sizes in one batch the more frequent size is kept: two such volumes side by side are not met.
    """
    records = Blocks.of(blocks)
    head = records.bytes(0, 0x30)
    half, words = head.view("<u2"), head.view("<u4")
    at, count, first = half[:, 2].astype(np.int64), half[:, 3], half[:, 10].astype(np.int64)  # first attribute
    used, size = words[:, 6], words[:, 7]
    good = words[:, 0] == int.from_bytes(b"FILE", "little")
    good &= (size == SMALL) & (count == SMALL // STRIDE + 1) | (size == LARGE) & (count == LARGE // STRIDE + 1)
    good &= (at >= 0x2A) & (at + 2 * count.astype(np.int64) <= STRIDE - 2) & (at & 1 == 0)
    good &= (used >= 0x38) & (used <= size) & (used & 7 == 0)
    good &= (first >= 0x30) & (first < used) & (first + 8 <= SMALL) & (first & 7 == 0)
    rows = np.flatnonzero(good)
    if len(rows) == 0:
        return None
    some = records[rows]
    number = some.field(at[rows], "<u2")
    fixed = (some.field(STRIDE - 2, "<u2") == number) & (some.field(2 * STRIDE - 2, "<u2") == number)
    kind = some.field(first[rows], "<u4")
    fixed &= (kind == END) | ((kind >= 0x10) & (kind <= 0x100) & (kind % 16 == 0))
    rows = rows[fixed]
    if len(rows) == 0:
        return None
    large = size[rows] == LARGE
    many = LARGE if large.sum() * 2 > len(rows) else SMALL
    rows = rows[size[rows] == many]
    value = words[rows, 0x2C // 4].astype(np.int64)
    # Seen: mkntfs states 0 in the reserved records 16 to 23, which are not in use; the real record 0 always is
    value[(at[rows] < NUMBERED) | ((value == 0) & (half[rows, 0x16 // 2] & IN_USE == 0))] = -1
    return EvidenceBatch(RECORD, image_offset[rows], many, value)


def _volume_record(record: bytes) -> tuple[str, int]:
    """Label and flags from $Volume's resident attributes."""
    name, flags, at = "", 0, le16(record, 0x14)
    for _ in range(64):
        kind, length = le32(record, at), le32(record, at + 4)
        if kind == END or not 24 <= length <= len(record) - at:
            break
        if record[at + 8] == 0:
            start, size = at + le16(record, at + 20), le32(record, at + 16)
            content = record[start : min(start + size, at + length)]
            if kind == VOLUME_NAME:
                name = label(content, "utf-16-le")
            elif kind == VOLUME_INFORMATION:
                flags = le16(content, 10)
        at += length
    return name, flags


def _mirror_agrees(reader: Reader, offset: int, b: _Boot) -> bool | None:
    """Whether the first records of $MFT and $MFTMirr are equal but for their fixups. None: one is not readable."""
    for i in range(MIRRORED):
        places = [offset + lcn * b.cluster + i * b.record for lcn in (b.mft, b.mirror)]
        raw = [whole(reader, p, b.record) for p in places]
        if raw[0] is None or raw[1] is None:
            return None
        one, two = (_unfixed(r) for r in (raw[0], raw[1]))
        if one is None or two is None:
            return False
        at = le16(one, 4)
        if one[:at] + one[at + 8 :] != two[:at] + two[at + 8 :]:
            return False
    return True


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The volume at `offset`, from its boot sector or from the copy in the partition's last sector."""
    bad: list[str] = []
    primary = reader.read(offset, 512)
    b = _parse(primary)
    if b is None:
        for sector in (512, 4096):
            last = limit // sector * sector - sector
            copy = _parse(reader.read(offset + last, 512)) if last > 0 else None
            if copy is not None and copy.sectors * copy.sector == last:
                b = copy
                bad.append("boot sector lost, read from its copy")
                break
        if b is None:
            return None
    elif b.size <= limit and reader.read(offset + b.sectors * b.sector, 512) != primary:
        bad.append("copy of the boot sector lost")
    if b.size > limit:
        bad.append("larger than the space it has")
    if _record(reader, offset + b.mft * b.cluster, b.record) is None:
        bad.append("$MFT lost")
    mirror = _mirror_agrees(reader, offset, b)
    if not mirror:
        bad.append("$MFTMirr lost" if mirror is None else "$MFTMirr differs from $MFT")
    name, flags = "", 0
    for lcn in (b.mft, b.mirror):
        record = _record(reader, offset + lcn * b.cluster + VOLUME_RECORD * b.record, b.record)
        if record is not None:
            name, flags = _volume_record(record)
            break
    notes = ["marked dirty"] if flags & DIRTY else []
    return Volume("ntfs", offset, b.size, name, f"{b.serial:016x}", not bad, "; ".join(bad + notes))


def begin(reader: Reader, offset: int) -> Begin | None:
    """The boot sector is the same at the volume's end; it states how many sectors are hidden before the volume.

    It names the places of $MFT and of its mirror; record 0 begins both.
    """
    data = reader.read(offset, 512)
    b = _parse(data)
    if b is None:
        return None
    records = (RECORD, 0, (b.mft * b.cluster, b.mirror * b.cluster))
    return Begin(data, le32(data, 0x1C) * b.sector, b.sectors * b.sector, (records,))


GUEST = GuestKind("ntfs", SIGNATURES, probe, confirm, confirm_batch, begin,
                  types=frozenset(("NTFS / exFAT", "Windows recovery")))
