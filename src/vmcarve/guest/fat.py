"""FAT12, FAT16, FAT32 and exFAT: boot sectors whose numbers must fit, checked against the table that they point at.

Source: Microsoft "FAT: General Overview of On-Disk Format" 1.03; Microsoft exFAT specification. Seen: mkfs.vfat 4.2,
mkfs.exfat 1.2. Little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model import Begin, Evidence, GuestKind, Reader, Signature, Volume
from ._fields import label, le16, le32, le64, power_of_two, whole

BOOT, EXFAT_BOOT = "fat.boot", "fat.exfat-boot"
SIGNATURES = (
    *(Signature(magic, BOOT, at=at, also=(510, b"\xff\xff", b"\x55\xaa"))
      for magic, at in ((b"FAT12   ", 54), (b"FAT16   ", 54), (b"FAT32   ", 82))),
    Signature(b"EXFAT   ", EXFAT_BOOT, at=3, also=(11, b"\xff" * 16, bytes(16))),  # where FAT has its fields
)
EXFAT_REGION = 12  # sectors of the boot region; its copy follows

FREE_SPACE = b"RRaA"  # what begins the sector that says how much of a FAT32 is free

OUR_MAX_COMPARED = 4 << 20  # bytes of a table that are compared with its copy


@dataclass(frozen=True, slots=True)
class _Boot:
    """bits: 12, 16 or 32. sector and cluster in bytes, the rest in sectors."""

    bits: int
    sector: int
    cluster: int
    reserved: int
    tables: int
    table: int
    total: int
    media: int
    backup: int
    serial: int
    name: str

    @property
    def size(self) -> int:
        return self.total * self.sector


def _parse(data: bytes) -> _Boot | None:
    """The boot sector in `data` when its arithmetic gives the kind of FAT that it names."""
    if len(data) < 512 or data[510:512] != b"\x55\xaa" or data[0] not in (0xEB, 0xE9):
        return None
    sector, per_cluster, reserved, tables = le16(data, 11), data[13], le16(data, 14), data[16]
    entries, media = le16(data, 17), data[21]
    if not power_of_two(sector, 512, 4096) or not power_of_two(per_cluster, 1, 128) or not reserved:
        return None
    if tables not in (1, 2) or not (media == 0xF0 or media >= 0xF8):
        return None
    total = le16(data, 19) or le32(data, 32)
    table = le16(data, 22) or le32(data, 36)
    first = reserved + tables * table + -(-entries * 32 // sector)
    if not table or total <= first:
        return None
    clusters = (total - first) // per_cluster
    wide = le16(data, 22) == 0
    bits = 32 if wide else 12 if clusters < 4085 else 16
    if data[82:90] != b"FAT32   " if wide else data[54:59] not in (b"FAT12", b"FAT16"):
        return None
    if wide != (entries == 0) or (not wide and clusters >= 65525) or table * sector * 8 < (clusters + 2) * bits:
        return None
    at = 67 if wide else 39
    backup = le16(data, 50) if wide else 0
    return _Boot(bits, sector, per_cluster * sector, reserved, tables, table, total, media,
                 backup if 0 < backup < reserved else 0, le32(data, at), label(data[at + 4 : at + 15], "cp437"))


def _table_begins(reader: Reader, offset: int, b: _Boot) -> bool:
    """Whether the table where `b` says it is begins with the media byte and the end mark."""
    start = reader.read(offset + b.reserved * b.sector, 4)
    if len(start) < 4 or start[0] != b.media or start[1] != 0xFF:
        return False
    return start[2] == 0xFF and (b.bits != 32 or start[3] & 0x0F == 0x0F)


def _confirm_fat(reader: Reader, offset: int) -> Evidence | None:
    """The table behind it tells a primary from the copy six sectors on; a boot sector with neither is a template."""
    data = reader.read(offset, 512)
    b = _parse(data)
    if b is None:
        return None
    identity = f"{b.serial:08x}"
    if _table_begins(reader, offset, b):
        return Evidence(BOOT, offset, 512, volume_offset=0, identity=identity, value=b.size)
    back = b.backup * b.sector
    if not back:
        return None
    if _table_begins(reader, offset - back, b) or reader.read(offset - back, 512) == data:
        return Evidence(BOOT, offset, 512, volume_offset=back, identity=identity, value=b.size)
    if reader.read(offset + back, 512) == data or _beside(reader, offset, b, data, 1):
        return Evidence(BOOT, offset, 512, volume_offset=0, identity=identity, value=b.size, confidence=0.8)
    if _beside(reader, offset, b, data, -1):
        return Evidence(BOOT, offset, 512, volume_offset=back, identity=identity, value=b.size, confidence=0.8)
    return None


def _beside(reader: Reader, offset: int, b: _Boot, data: bytes, way: int) -> bool:
    """Whether the other one of a boot sector and its copy lies nearer than they do in the volume, behind (way 1) or
    before (-1): a container that stores sectors one by one leaves out those of zeros between them. Both have the sector
    of free space behind them."""
    if reader.read(offset + 512, 4) != FREE_SPACE:
        return False
    return any(reader.read(offset + way * k * 512, 512) == data for k in range(2, b.backup * b.sector // 512))


# --- exFAT ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _ExBoot:
    sector: int
    total: int
    table: int
    heap: int
    clusters: int
    per_cluster: int
    root: int
    serial: int
    flags: int

    @property
    def size(self) -> int:
        return self.total * self.sector


def _parse_exfat(reader: Reader, offset: int) -> _ExBoot | None:
    """The boot region at `offset` when its checksum sector agrees: twelve sectors, the last repeats the sum."""
    data = reader.read(offset, 512)
    if len(data) < 512 or data[3:11] != b"EXFAT   " or data[510:512] != b"\x55\xaa" or any(data[11:64]):
        return None
    if not 9 <= data[108] <= 12 or data[109] > 25 - data[108] or data[110] not in (1, 2):
        return None
    sector = 1 << data[108]
    region = whole(reader, offset, EXFAT_REGION * sector)
    if region is None:
        return None
    total = 0
    for i, byte in enumerate(region[: (EXFAT_REGION - 1) * sector]):
        if i not in (106, 107, 112):  # flags and percent in use change without a new sum
            total = ((total << 31 | total >> 1) + byte) & 0xFFFF_FFFF
    if region[(EXFAT_REGION - 1) * sector :] != total.to_bytes(4, "little") * (sector // 4):
        return None
    b = _ExBoot(sector, le64(data, 72), le32(data, 80), le32(data, 88), le32(data, 92), 1 << data[109],
                le32(data, 96), le32(data, 100), le16(data, 106))
    if not 24 <= b.table < b.heap < b.total or b.heap + b.clusters * b.per_cluster > b.total:
        return None
    return b if 2 <= b.root < b.clusters + 2 else None


def _exfat_table_begins(reader: Reader, offset: int, b: _ExBoot) -> bool:
    start = reader.read(offset + b.table * b.sector, 8)
    return start[1:] == b"\xff" * 7 and start[0] in (0xF8, 0xF0)


def _confirm_exfat(reader: Reader, offset: int) -> Evidence | None:
    b = _parse_exfat(reader, offset)
    if b is None:
        return None
    back = EXFAT_REGION * b.sector
    identity = f"{b.serial:08x}"
    if _exfat_table_begins(reader, offset, b):
        return Evidence(EXFAT_BOOT, offset, back, volume_offset=0, identity=identity, value=b.size)
    if _exfat_table_begins(reader, offset - back, b):
        return Evidence(EXFAT_BOOT, offset, back, volume_offset=back, identity=identity, value=b.size)
    return Evidence(EXFAT_BOOT, offset, back, identity=identity, value=b.size, confidence=0.5)


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A boot sector with what it points at; see the two kinds."""
    return _confirm_exfat(reader, offset) if signature.kind == EXFAT_BOOT else _confirm_fat(reader, offset)


# --- probe ---------------------------------------------------------------------------------------------------------
def _probe_fat(reader: Reader, offset: int, limit: int) -> Volume | None:
    bad: list[str] = []
    b = _parse(reader.read(offset, 512))
    if b is None:
        b = _parse(reader.read(offset + 6 * 512, 512))
        if b is None or b.backup != 6 or b.sector != 512:
            return None
        bad.append("boot sector lost, read from its copy")
    elif b.backup and _parse(reader.read(offset + b.backup * b.sector, 512)) != b:
        bad.append("copy of the boot sector lost")
    if b.size > limit:
        bad.append("larger than the space it has")
    if not _table_begins(reader, offset, b):
        if bad and not _table_begins(reader, offset + b.table * b.sector, b):
            return None
        bad.append("first file allocation table damaged")
    length = min(b.table * b.sector, OUR_MAX_COMPARED)
    start = offset + b.reserved * b.sector
    if b.tables == 2 and reader.read(start, length) != reader.read(start + b.table * b.sector, length):
        bad.append("file allocation tables differ")
    name = _root_label(reader, offset, b) or b.name
    return Volume(f"fat{b.bits}", offset, b.size, "" if name == "NO NAME" else name, f"{b.serial:08x}", not bad,
                  "; ".join(bad))


def _root_label(reader: Reader, offset: int, b: _Boot) -> str:
    """The label that the root directory's first entries hold (what systems show; the boot sector's may be stale)."""
    at = b.reserved + b.tables * b.table
    if b.bits == 32:
        cluster = le32(reader.read(offset, 64), 44)
        if cluster < 2:
            return ""
        start = offset + at * b.sector + (cluster - 2) * b.cluster
    else:
        start = offset + at * b.sector
    data = reader.read(start, 512)
    for i in range(0, len(data) - 31, 32):
        if data[i + 11] & 0x3F == 0x08 and data[i] not in (0, 0xE5):
            return label(data[i : i + 11], "cp437")
    return ""


def _probe_exfat(reader: Reader, offset: int, limit: int) -> Volume | None:
    bad: list[str] = []
    b = _parse_exfat(reader, offset)
    if b is None:
        copies = (_parse_exfat(reader, offset + EXFAT_REGION * s) for s in (512, 4096))
        b = next((c for c, s in zip(copies, (512, 4096), strict=True) if c is not None and c.sector == s), None)
        if b is None:
            return None
        bad.append("boot region lost, read from its copy")
    elif _parse_exfat(reader, offset + EXFAT_REGION * b.sector) is None:
        bad.append("copy of the boot region lost")
    if b.size > limit:
        bad.append("larger than the space it has")
    if not _exfat_table_begins(reader, offset, b):
        bad.append("file allocation table damaged")
    name = ""
    root = reader.read(offset + (b.heap + (b.root - 2) * b.per_cluster) * b.sector, 512)
    for i in range(0, len(root) - 31, 32):
        if root[i] == 0x83 and root[i + 1] <= 11:
            name = label(root[i + 2 : i + 2 + 2 * root[i + 1]], "utf-16-le")
    if not root or not root[0] & 0x80:
        bad.append("root directory lost")
    notes = ["marked dirty"] if b.flags & 0x2 else []
    return Volume("exfat", offset, b.size, name, f"{b.serial:08x}", not bad, "; ".join(bad + notes))


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The FAT or exFAT volume at `offset`, from its boot sector or the copy of it."""
    return _probe_fat(reader, offset, limit) or _probe_exfat(reader, offset, limit)


def begin(reader: Reader, offset: int) -> Begin | None:
    """A FAT32 boot sector is the same in its copy; it states how many sectors are hidden before the volume."""
    data = reader.read(offset, 512)
    b = _parse(data)
    return None if b is None else Begin(data, le32(data, 0x1C) * b.sector)


GUEST = GuestKind("fat", SIGNATURES, probe, confirm, begin=begin,
                  types=frozenset(("FAT12", "FAT16", "FAT32", "NTFS / exFAT", "EFI system")))
