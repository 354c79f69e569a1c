"""Parallels disks that QEMU only reads: the old magic (table in sectors) and the format extension with a bitmap."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path

from . import Maker

SECTOR = 512
OLD, NEW = b"WithoutFreeSpace", b"WithouFreSpacExt"
CLOSED = 0x312E3276


def header(magic: bytes, tracks: int, entries: int, sectors: int, data: int, extension: int = 0) -> bytes:
    """64 bytes; `data` and `extension` in sectors."""
    return struct.pack("<16sIIIIIQIIIQ", magic, 2, 16, sectors // 512, tracks, entries, sectors, CLOSED, data, 0,
                       extension)


def extension_cluster(size: int, disk_sectors: int, bitmap_sector: int) -> bytes:
    """The format extension: one dirty bitmap, a bit per sector, all ones but the last cluster, which is stored."""
    count = -(-disk_sectors // (8 * size))
    table = struct.pack(f"<{count}Q", *[1] * (count - 1), bitmap_sector)
    bitmap = struct.pack("<Q16sII", disk_sectors, bytes(range(16)), 1, count) + table
    body = struct.pack("<QQII", 0x20385FAE252CB34A, 0, len(bitmap), 0) + bitmap.ljust(-(-len(bitmap) // 8) * 8, b"\0")
    body = body.ljust(size - 24, b"\0")
    return struct.pack("<Q", 0xAB234CEF23DCEA87) + hashlib.md5(body, usedforsecurity=False).digest() + body


def write(raw_path: Path, out_path: Path, seed: int, magic: bytes, tracks: int, extended: bool = False) -> None:
    """Clusters that are not all zero, in an order that the seed gives; old disks have no data_off."""
    raw = raw_path.read_bytes()
    cluster = tracks * SECTOR
    entries = -(-len(raw) // cluster)
    used = [i for i in range(entries) if any(raw[i * cluster : (i + 1) * cluster])]
    random.Random(seed).shuffle(used)
    if magic == OLD:
        start = -(-(64 + 4 * entries) // SECTOR) * SECTOR
    else:
        start = -(-(64 + 4 * entries) // cluster) * cluster
    unit = SECTOR if magic == OLD else cluster
    table = [0] * entries
    first = start + (2 * cluster if extended else 0)  # the extension and its bitmap come before the data here
    for place, number in enumerate(used):
        table[number] = (first + place * cluster) // unit
    with out_path.open("wb") as out:
        out.write(header(magic, tracks, entries, len(raw) // SECTOR, 0 if magic == OLD else start // SECTOR,
                         start // SECTOR if extended else 0))
        out.write(struct.pack(f"<{entries}I", *table))
        out.truncate(start)
        if extended:
            out.seek(start)
            out.write(extension_cluster(cluster, len(raw) // SECTOR, (start + cluster) // SECTOR))
            out.write(b"\x5a" * cluster)
        for place, number in enumerate(used):
            out.seek(first + place * cluster)
            out.write(raw[number * cluster : (number + 1) * cluster].ljust(cluster, b"\0"))


def old_63(raw_path: Path, out_path: Path, seed: int) -> None:
    write(raw_path, out_path, seed, OLD, 63)


def old_504(raw_path: Path, out_path: Path, seed: int) -> None:
    write(raw_path, out_path, seed, OLD, 504)


def old_2048(raw_path: Path, out_path: Path, seed: int) -> None:
    write(raw_path, out_path, seed, OLD, 2048)


def with_bitmap(raw_path: Path, out_path: Path, seed: int) -> None:
    write(raw_path, out_path, seed, NEW, 8, extended=True)


MAKERS: dict[str, Maker] = {
    "parallels-old-63": Maker("parallels", "WithoutFreeSpace", ".hds", old_63),
    "parallels-old-504": Maker("parallels", "WithoutFreeSpace", ".hds", old_504),
    "parallels-old-2048": Maker("parallels", "WithoutFreeSpace", ".hds", old_2048),
    "parallels-bitmap": Maker("parallels", "WithouFreSpacExt", ".hds", with_bitmap),
}
