"""GPT: a header that states its own LBA under a CRC, once behind the MBR and once at the disk's end.

Source: UEFI specification 2.10, section 5.3 (little-endian; CRC-32 as in zlib). Seen: sgdisk 1.0.9 with 512-byte
sectors, sfdisk 2.38 with 4096-byte sectors.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from ..model import Evidence, GuestKind, Reader, Signature, Volume
from ._fields import guid, label, le32, le64

MAGIC, REVISION = b"EFI PART", b"\0\0\x01\0"
SIGNATURES = (Signature(MAGIC + REVISION, "gpt.header", also=(12, b"\0\xfc\xff\xff", bytes(4))),)  # at most 512 bytes
SECTOR_SIZES = (512, 4096)
HEADER_MIN = 92

OUR_MAX_ENTRIES = 1024  # 128 in all known writers
OUR_MAX_ENTRY = 4096  # bytes; 128 in all known writers
OUR_MAX_LBA = 1 << 50

TYPES = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "Windows LDM metadata",
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "Windows LDM data",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux data",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux boot",
    "48465300-0000-11aa-aa11-00306543ecac": "Apple HFS+",
    "7c3457ef-0000-11aa-aa11-00306543ecac": "Apple APFS",
    "516e7cb6-6ecf-11d6-8ff8-00022d09712b": "FreeBSD UFS",
    "516e7cba-6ecf-11d6-8ff8-00022d09712b": "FreeBSD ZFS",
    "aa31e02a-400f-11db-9590-000c2911d1b8": "VMware VMFS",
    "9d275380-40ad-11db-bf97-000c2911d1b8": "VMware diagnostic",
}


@dataclass(frozen=True, slots=True)
class _Header:
    lba: int
    alternate: int
    first_usable: int
    last_usable: int
    disk: str
    entries: int  # LBA of the array
    count: int
    size: int  # bytes of one entry
    crc: int

    @property
    def backup(self) -> bool:
        return self.lba > self.alternate

    @property
    def last(self) -> int:
        """The disk's last LBA: the backup lies there."""
        return max(self.lba, self.alternate)


def _parse(data: bytes) -> _Header | None:
    """The header in `data` when its CRC and its numbers agree."""
    if len(data) < 512 or data[:12] != MAGIC + REVISION:
        return None
    size = le32(data, 12)
    if not HEADER_MIN <= size <= 512 or zlib.crc32(data[:16] + bytes(4) + data[20:size]) != le32(data, 16):
        return None
    h = _Header(le64(data, 24), le64(data, 32), le64(data, 40), le64(data, 48), guid(data[56:72]), le64(data, 72),
                le32(data, 80), le32(data, 84), le32(data, 88))
    if not 0 < h.last <= OUR_MAX_LBA or h.lba == h.alternate or h.first_usable > h.last_usable + 1:
        return None
    if not 0 < h.count <= OUR_MAX_ENTRIES or not 128 <= h.size <= OUR_MAX_ENTRY or h.entries > h.last:
        return None
    return h


def _array(reader: Reader, base: int, h: _Header, sector: int) -> bytes | None:
    """The entries when their CRC agrees; `base` is the reader's offset of LBA 0.

    What is not there reads as zeros, as most entries are (a hole of a sparse host file): the CRC tells.
    """
    data = reader.read(base + h.entries * sector, h.count * h.size)
    return data if len(data) == h.count * h.size and zlib.crc32(data) == h.crc else None


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A header under its CRC. Its place on the disk is my_lba sectors: proven by the entries' CRC at one sector size,
    by the MBR right before a primary header, or by the room that it leaves for the backup's entries; else none is
    claimed."""
    h = _parse(reader.read(offset, 512))
    if h is None:
        return None
    sector = next((s for s in SECTOR_SIZES if _array(reader, offset - h.lba * s, h, s) is not None), 0)
    if not sector and not h.backup and h.lba == 1:
        near = [s for s in SECTOR_SIZES if reader.read(offset - s + 510, 2) == b"\x55\xaa"]
        sector = near[0] if len(near) == 1 else 0
    # behind what is usable lie the backup's entries, then the backup (seen: sfdisk, sgdisk, parted)
    room = h.last - 1 - h.last_usable
    sector = sector or next((s for s in SECTOR_SIZES if h.count * h.size == room * s), 0)
    kind = "gpt.backup" if h.backup else signature.kind
    if not sector:
        return Evidence(kind, offset, 512, identity=h.disk, confidence=0.5)
    return Evidence(kind, offset, 512, guest_offset=h.lba * sector, identity=h.disk, value=(h.last + 1) * sector)


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The table of the disk that starts at `offset`: from the primary header, else from the backup at its end."""
    for sector in SECTOR_SIZES:
        primary = _parse(reader.read(offset + sector, 512)) if limit >= 2 * sector else None
        if primary is not None and primary.lba == 1:
            return _volume(reader, offset, limit, sector, primary, True)
    for sector in SECTOR_SIZES:
        last = limit // sector - 1
        backup = _parse(reader.read(offset + last * sector, 512)) if last > 1 else None
        if backup is not None and backup.lba == last and backup.backup:
            return _volume(reader, offset, limit, sector, backup, False)
    return None


def _volume(reader: Reader, offset: int, limit: int, sector: int, h: _Header, primary: bool) -> Volume | None:
    size = (h.last + 1) * sector
    notes: list[str] = []
    entries = _array(reader, offset, h, sector)
    other = _parse(reader.read(offset + h.alternate * sector, 512)) if h.alternate * sector < limit else None
    if other is not None and (other.disk, other.lba, other.alternate) != (h.disk, h.alternate, h.lba):
        other = None
    if not primary:
        notes.append("primary header lost")
    elif other is None:
        notes.append("backup header lost" if size <= limit else "disk is cut off before the backup header")
    elif other.crc != h.crc:
        notes.append("backup names other partitions")
    if entries is None and other is not None:
        entries = _array(reader, offset, other, sector)
        notes.append("partition entries read from the backup" if primary else "partition entries from the primary")
    if entries is None:
        notes.append("partition entries lost")
    out = Volume("gpt", offset, size, uuid=h.disk, consistent=not notes, detail="; ".join(notes))
    wrong = 0
    taken: list[tuple[int, int]] = []
    for at in range(0, len(entries or b""), h.size):
        entry = (entries or b"")[at : at + h.size]
        first, last = le64(entry, 32), le64(entry, 40)
        if not any(entry[:16]):
            continue
        if not h.first_usable <= first <= last <= h.last_usable or any(first <= b and a <= last for a, b in taken):
            wrong += 1
            continue
        taken.append((first, last))
        kind = TYPES.get(guid(entry[:16]), guid(entry[:16]))
        name = label(entry[56:128], "utf-16-le")
        told = f"{kind} {name!r}" if name else kind
        out.partitions.append((offset + first * sector, (last - first + 1) * sector, told))
    if wrong:
        out.consistent = False
        out.detail = "; ".join([*notes, f"{wrong} partitions outside the disk or on top of each other"])
    out.partitions.sort()
    return out


GUEST = GuestKind("gpt", SIGNATURES, probe, confirm)
