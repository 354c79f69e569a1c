"""Which file system the first bytes of a volume name: so that copies left over from an earlier format are not believed.

Formatters write their own first sectors and wipe little else: NTFS's boot sector copy in the last sector, FAT32's in
sector 6, exFAT's in sector 12 and Btrfs's superblocks at 64 KiB and behind outlive a quick format by another program.
"""

from __future__ import annotations

from ..model import Reader

LOOK_BYTES = 2048
EXT_MAGIC_AT, EXT_MAGIC = 1024 + 56, b"\x53\xef"


def named(reader: Reader, offset: int) -> str:
    """ntfs, exfat, fat, xfs or ext, by the magic at the volume's start; "" for anything else."""
    head = reader.read(offset, LOOK_BYTES)
    if head[:4] == b"XFSB":
        return "xfs"
    if head[3:11] == b"NTFS    ":
        return "ntfs"
    if head[3:11] == b"EXFAT   ":
        return "exfat"
    if head[510:512] == b"\x55\xaa" and b"FAT" in (head[54:57], head[82:85]):
        return "fat"
    if head[EXT_MAGIC_AT : EXT_MAGIC_AT + 2] == EXT_MAGIC:
        return "ext"
    return ""
