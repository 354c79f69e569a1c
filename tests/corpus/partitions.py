"""Partition tables around one volume: none, MBR or GPT, the volume at 1 MiB."""

from __future__ import annotations

import random
import uuid
from pathlib import Path

from .tools import run

MIB = 1 << 20
SECTOR = 512
START = MIB  # bytes; where the volume begins under a table
TAIL = {"none": 0, "mbr": 0, "gpt": MIB}  # bytes kept free behind the volume (backup GPT)
MBR_TYPES = {"ntfs": "7", "exfat": "7", "fat32": "c"}


def volume_offset(table: str) -> int:
    """First byte of the volume on a disk with this table."""
    return 0 if table == "none" else START


def volume_size(table: str, disk_size: int) -> int:
    """Bytes of the volume on a disk of `disk_size` bytes."""
    return disk_size - volume_offset(table) - TAIL[table]


def write_table(disk: Path, table: str, kind: str, key: str) -> None:
    """Write the table into the existing file `disk`; its identifiers follow from `key`."""
    if table == "none":
        return
    rng = random.Random(f"table {key}")
    sectors = volume_size(table, disk.stat().st_size) // SECTOR
    place = f"start={START // SECTOR}, size={sectors}"
    if table == "gpt":
        script = f"label: gpt\nlabel-id: {seeded_uuid(rng)}\n{place}, uuid={seeded_uuid(rng)}\n"
    else:
        identity = f"0x{rng.getrandbits(32):08x}"
        script = f"label: dos\nlabel-id: {identity}\n{place}, type={MBR_TYPES.get(kind, '83')}\n"
    run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", disk, stdin=script)


def seeded_uuid(rng: random.Random) -> uuid.UUID:
    """A random (version 4) UUID from `rng`."""
    return uuid.UUID(int=rng.getrandbits(128), version=4)
