"""MBR: four entries that must make sense together, and the chain of EBRs behind an extended one.

There is no signature for the sweep: 55 AA ends every boot sector of any kind. A disk with an MBR is found from the file
systems behind it, and this table is believed only when it is strict.
Source: Microsoft and IBM practice as in sfdisk and The Sleuth Kit (`tsk/vs/dos.c`). Seen: sfdisk 2.38.
"""

from __future__ import annotations

from ..model import GuestKind, Reader, Volume
from ._fields import le16, le32, power_of_two

SECTOR = 512
EXTENDED = frozenset((0x05, 0x0F, 0x85))
PROTECTIVE = 0xEE
OUR_MAX_LOGICAL = 128
TYPES = {
    0x01: "FAT12", 0x04: "FAT16", 0x06: "FAT16", 0x07: "NTFS / exFAT", 0x0B: "FAT32", 0x0C: "FAT32", 0x0E: "FAT16",
    0x27: "Windows recovery", 0x42: "Windows LDM", 0x82: "Linux swap", 0x83: "Linux", 0x8E: "Linux LVM",
    0xA5: "FreeBSD", 0xA6: "OpenBSD", 0xA9: "NetBSD", 0xAF: "Apple HFS+", 0xBE: "Solaris boot", 0xBF: "Solaris",
    0xEF: "EFI system", 0xFB: "VMware VMFS", 0xFC: "VMware swap", 0xFD: "Linux RAID",
}  # fmt: skip

Entry = tuple[int, int, int]
"""type, first sector, sectors; as the entry states them"""


def _entries(data: bytes) -> list[Entry] | None:
    """The used entries of a boot sector, or None when they are not partition entries at all."""
    if len(data) < SECTOR or data[510:512] != b"\x55\xaa":
        return None
    out: list[Entry] = []
    for at in range(446, 510, 16):
        entry = data[at : at + 16]
        if entry[0] not in (0x00, 0x80):
            return None
        first, count = le32(entry, 8), le32(entry, 12)
        if entry[4] == 0 and count == 0:
            continue  # empty; some writers leave old numbers elsewhere in it
        if entry[4] == 0 or first == 0 or count == 0:
            return None
        out.append((entry[4], first, count))
    return out


def _is_volume(data: bytes) -> bool:
    """True for a file system's boot sector, whose bytes at the table's place are code or text."""
    if data[3:11] in (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-"):
        return True
    jump = (data[0] == 0xEB and data[2] == 0x90) or data[0] == 0xE9
    return (jump and power_of_two(le16(data, 11), 512, 4096) and power_of_two(data[13], 1, 128)
            and data[16] in (1, 2) and (data[21] == 0xF0 or data[21] >= 0xF8))


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The table of the disk at `offset`, when all its entries are sane and none overlaps another."""
    data = reader.read(offset, SECTOR)
    entries = _entries(data)
    if not entries or _is_volume(data):
        return None
    if any(kind == PROTECTIVE for kind, _, _ in entries):
        return _protective(reader, offset, limit, entries)
    spans = sorted((first, first + count) for _, first, count in entries)
    if any(a[1] > b[0] for a, b in zip(spans, spans[1:], strict=False)):
        return None
    if spans[0][0] * SECTOR >= limit:
        return None
    notes: list[str] = []
    found = list(entries)
    for kind, first, count in entries:
        if kind in EXTENDED:
            logical, trouble = _logical(reader, offset, first, count)
            found += logical
            notes += trouble
    end = spans[-1][1] * SECTOR
    if end > limit:
        notes.append("disk is cut off before its last partition ends")
    out = Volume("mbr", offset, end, uuid=f"{le32(data, 440):08x}" if any(data[440:444]) else "",
                 consistent=not notes, detail="; ".join(notes))
    out.partitions = sorted((offset + first * SECTOR, count * SECTOR, TYPES.get(kind, f"type {kind:#04x}"))
                            for kind, first, count in found if kind not in EXTENDED)
    return out


def _protective(reader: Reader, offset: int, limit: int, entries: list[Entry]) -> Volume | None:
    """A GPT's MBR tells something only where no GPT is left."""
    ends = [limit // s * s - s for s in (512, 4096)]
    if any(reader.read(offset + at, 8) == b"EFI PART" for at in (512, 4096, *ends)):
        return None
    if len(entries) != 1 or entries[0][1] != 1:
        return None
    return Volume("mbr", offset, min(limit, (entries[0][1] + entries[0][2]) * SECTOR), consistent=False,
                  detail="protective MBR whose GPT is lost")


def _logical(reader: Reader, offset: int, start: int, count: int) -> tuple[list[Entry], list[str]]:
    """Logical partitions of the extended one at sector `start`, absolute, and what is wrong with the chain.

    An EBR's first entry counts from that EBR, its second from the extended partition; the chain only goes forward.
    """
    out: list[Entry] = []
    at = start
    for _ in range(OUR_MAX_LOGICAL):
        entries = _entries(reader.read(offset + at * SECTOR, SECTOR))
        if entries is None or len(entries) > 2:
            return out, [f"no valid EBR at sector {at}"]
        following = 0
        for kind, first, length in entries:
            if kind in EXTENDED:
                following = start + first
            elif at + first + length <= start + count:
                out.append((kind, at + first, length))
            else:
                return out, [f"EBR at sector {at} leads out of the extended partition"]
        if not following:
            return out, []
        if not at < following < start + count:
            return out, [f"EBR at sector {at} leads back or out"]
        at = following
    return out, [f"more than {OUR_MAX_LOGICAL} logical partitions"]


GUEST = GuestKind("mbr", (), probe)
