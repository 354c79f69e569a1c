"""The boot sector of FAT12, FAT16 and FAT32. Source: Microsoft FAT specification 1.03."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ._fat_chains import FIRST

ENTRY = 32  # bytes of a directory entry


@dataclass(frozen=True, slots=True)
class Boot:
    """Offsets and lengths in bytes from the volume's start. bits: 12, 16 or 28 (the used bits of FAT32's 32)."""

    sector: int
    cluster: int
    reserved: int
    copies: int
    table: int
    root_bytes: int  # of the fixed root directory of FAT12/16
    root_cluster: int
    total: int
    clusters: int
    bits: int
    active: int  # the one copy that is kept up to date, -1: all
    serial: int
    label: str

    @property
    def heap(self) -> int:
        return self.reserved + self.copies * self.table + self.root_bytes


def parse_boot(block: bytes) -> Boot | None:
    """The BIOS parameter block, or None when it is none or contradicts itself."""
    if len(block) < 512 or block[0] not in (0xEB, 0xE9) or block[3:8] in (b"NTFS ", b"EXFAT"):
        return None
    sector, per_cluster, reserved, copies, root, total16, media, size16 = struct.unpack_from("<HBHBHHBH", block, 11)
    total32, size32, flags = struct.unpack_from("<I", block, 32)[0], *struct.unpack_from("<IH", block, 36)
    if sector not in (512, 1024, 2048, 4096) or per_cluster == 0 or per_cluster & (per_cluster - 1):
        return None
    table, total = size16 or size32, total16 or total32
    root_sectors = -(-root * ENTRY // sector)
    heap = reserved + copies * table + root_sectors
    if not reserved or not 1 <= copies <= 4 or not table or media < 0xF0 or total <= heap:
        return None
    clusters = (total - heap) // per_cluster
    bits = 28 if size16 == 0 else 12 if clusters < 4085 else 16
    clusters = min(clusters, table * sector * 8 // (32 if bits == 28 else bits) - FIRST)
    if clusters < 1 or (bits == 28) != (root == 0) or clusters > 0x0FFFFFF5:
        return None
    extended = 64 if bits == 28 else 36
    (serial,) = struct.unpack_from("<I", block, extended + 3)
    label = block[extended + 7 : extended + 18].decode("cp437").rstrip() if block[extended + 2] == 0x29 else ""
    (root_cluster,) = struct.unpack_from("<I", block, 44) if bits == 28 else (0,)
    active = flags & 15 if bits == 28 and flags & 0x80 and flags & 15 < copies else -1
    label = "" if label == "NO NAME" else label
    return Boot(sector, per_cluster * sector, reserved * sector, copies, table * sector, root_sectors * sector,
                root_cluster, total * sector, clusters, bits, active, serial, label)  # fmt: skip
