"""The structures of a VHDX, parsed from bytes and bounded. Little-endian, CRC-32C. See vhdx.py.

Source of every field: [MS-VHDX] 2.2 (headers, region table), 2.5 (BAT), 2.6 (metadata).
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from ..checksums import crc32c_zeroed
from ..model import Reader

KIB64, MIB = 1 << 16, 1 << 20
# --- the format's limits
HEADER_AT = (1 * KIB64, 2 * KIB64)
REGIONS_AT = (3 * KIB64, 4 * KIB64)
HEADER_SIZE = 4096
FORMAT_MAX_DISK = 1 << 46  # bytes: 64 TiB
FORMAT_MIN_BLOCK, FORMAT_MAX_BLOCK = 1 << 20, 1 << 28  # bytes, powers of two
FORMAT_MAX_TABLE = 2047  # entries of the region and of the metadata table
FORMAT_MAX_ITEM = 1 << 20  # bytes of one metadata item
FORMAT_MAX_OFFSET = 1 << 47  # bytes: twice the largest disk; regions lie before the blocks
CHUNK_SECTORS = 1 << 23  # sectors that one bitmap block (1 MiB) describes

_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGION = struct.Struct("<16sQII")
_ITEM = struct.Struct("<16sIII4x")


def _guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


BAT_REGION = _guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_REGION = _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
PARAMETERS = _guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE = _guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_ID = _guid("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL = _guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL = _guid("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = _guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
VHDX_LOCATOR = _guid("b04aefb7-d19e-4a81-b789-25b8e9445913")

# where QEMU 7.2 puts the items (seen), with the flags that [MS-VHDX] 2.6.1.2 gives them
USUAL_ITEMS = (
    (PARAMETERS, 0x10000, 8, 4), (DISK_SIZE, 0x10008, 8, 6), (DISK_ID, 0x10010, 16, 6), (LOGICAL, 0x10020, 4, 6),
    (PHYSICAL, 0x10024, 4, 6),
)


def guid_text(raw: bytes) -> str:
    return str(uuid.UUID(bytes_le=raw))


def clean_text(raw: bytes) -> str:
    """UTF-16LE up to the first NUL; what cannot be shown is replaced."""
    text = raw.decode("utf-16-le", "replace").split("\0", 1)[0]
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


# --- headers -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Header:
    """One of the two headers; the valid one with the greater sequence is current. log_offset, log_length: bytes."""

    raw: bytes
    sequence: int
    data_write: bytes
    log_guid: bytes
    log_length: int
    log_offset: int

    @property
    def log_end(self) -> int:
        return self.log_offset + self.log_length


def parse_header(raw: bytes) -> Header | None:
    """The header in 4096 bytes, or None unless its CRC and its fields are right."""
    if len(raw) < HEADER_SIZE or raw[:4] != b"head":
        return None
    raw = raw[:HEADER_SIZE]
    _, crc, sequence, _, data_write, log_guid, log_version, version, log_length, log_offset = _HEADER.unpack_from(raw)
    if version != 1 or log_version != 0 or crc32c_zeroed(raw, 4) != crc:
        return None
    if log_length % MIB or log_offset % MIB or not MIB <= log_offset < FORMAT_MAX_OFFSET:
        return None
    return Header(raw, sequence, data_write, log_guid, log_length, log_offset)


def make_header(like: Header | None, sequence: int, clear_log: bool = True, data_write: bytes = bytes(16)) -> Header:
    """A header as `like` says (or a first one, with a log of 1 MiB at 1 MiB) under another sequence number."""
    raw = bytearray(like.raw if like else _HEADER.pack(b"head", 0, 0, data_write, data_write, bytes(16), 0, 1, MIB, MIB)
                    .ljust(HEADER_SIZE, b"\0"))
    raw[8:16] = (sequence & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little")
    if clear_log:
        raw[48:64] = bytes(16)
    raw[4:8] = crc32c_zeroed(raw, 4).to_bytes(4, "little")
    made = parse_header(bytes(raw))
    assert made is not None
    return made


# --- regions -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Regions:
    """The region table: places of BAT, metadata and regions that we do not know, as (file_offset, length) in bytes."""

    raw: bytes
    bat: tuple[int, int]
    metadata: tuple[int, int]
    others: tuple[tuple[int, int], ...] = ()


def parse_regions(raw: bytes) -> Regions | None:
    """The region table in 65536 bytes, or None unless its CRC holds and it names both regions apart from each other."""
    if len(raw) < KIB64 or raw[:4] != b"regi" or raw[12:16] != bytes(4):
        return None
    raw = raw[:KIB64]
    crc, count = struct.unpack_from("<II", raw, 4)
    if not 0 < count <= FORMAT_MAX_TABLE or crc32c_zeroed(raw, 4) != crc:
        return None
    known: dict[bytes, tuple[int, int]] = {}
    others: list[tuple[int, int]] = []
    for i in range(count):
        name, offset, length, _ = _REGION.unpack_from(raw, 16 + 32 * i)
        if offset % MIB or length % MIB or not MIB <= offset < FORMAT_MAX_OFFSET or not length:
            return None
        if name in (BAT_REGION, METADATA_REGION) and name not in known:
            known[name] = (offset, length)
        else:
            others.append((offset, length))
    if len(known) < 2:
        return None
    bat, metadata = known[BAT_REGION], known[METADATA_REGION]
    if bat[0] < metadata[0] + metadata[1] and metadata[0] < bat[0] + bat[1]:
        return None
    return Regions(raw, bat, metadata, tuple(others))


def make_regions(bat: tuple[int, int], metadata: tuple[int, int]) -> Regions:
    """A region table that names these two."""
    raw = bytearray(struct.pack("<4sIII", b"regi", 0, 2, 0) + _REGION.pack(BAT_REGION, *bat, 1)
                    + _REGION.pack(METADATA_REGION, *metadata, 1))
    raw = raw.ljust(KIB64, b"\0")
    raw[4:8] = crc32c_zeroed(raw, 4).to_bytes(4, "little")
    return Regions(bytes(raw), bat, metadata)


# --- metadata ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Metadata:
    """What the metadata region says. block, size, logical, physical: bytes. locator: place of the parent locator
    (offset in the region, length); table: a metadata table that we rebuilt, or None."""

    block: int
    size: int
    logical: int
    physical: int
    disk_id: bytes
    fixed: bool
    has_parent: bool
    locator: tuple[int, int] | None
    table: bytes | None = None

    @property
    def blocks(self) -> int:
        return -(-self.size // self.block)

    @property
    def ratio(self) -> int:
        """Payload blocks per bitmap block."""
        return CHUNK_SECTORS * self.logical // self.block

    @property
    def entries(self) -> int:
        """BAT entries that the disk takes."""
        if self.has_parent:
            return -(-self.blocks // self.ratio) * (self.ratio + 1)
        return self.blocks + (self.blocks - 1) // self.ratio


def read_metadata(reader: Reader, place: int, length: int) -> Metadata | None:
    """The metadata region at file_offset `place`. It has no checksum: GUIDs and bounds are what it is known by.

    Where the table is lost, the items are looked for where QEMU puts them.
    """
    items = read_items(reader, place, length)
    if items is None:
        rebuilt = struct.pack("<8sHH20x", b"metadata", 0, len(USUAL_ITEMS)) + b"".join(
            _ITEM.pack(*item) for item in USUAL_ITEMS)
        usual = {name: (offset, size) for name, offset, size, _ in USUAL_ITEMS}
        found = _from_items(reader, place, usual, rebuilt)
        return None if found is None or found.has_parent else found
    return _from_items(reader, place, items, None)


def read_items(reader: Reader, place: int, length: int) -> dict[bytes, tuple[int, int]] | None:
    """(offset in the region, length) of the items that the table at file_offset `place` names, None without one."""
    raw = reader.read(place, KIB64)
    if len(raw) < KIB64 or raw[:8] != b"metadata":
        return None
    count = int.from_bytes(raw[10:12], "little")
    if not 0 < count <= FORMAT_MAX_TABLE:
        return None
    items: dict[bytes, tuple[int, int]] = {}
    for i in range(count):
        name, offset, size, _ = _ITEM.unpack_from(raw, 32 + 32 * i)
        if KIB64 <= offset and offset + size <= length and size <= FORMAT_MAX_ITEM:
            items.setdefault(name, (offset, size))
    return items


def _from_items(reader: Reader, place: int, items: Mapping[bytes, tuple[int, int]],
                table: bytes | None) -> Metadata | None:
    def item(name: bytes, size: int) -> bytes | None:
        at = items.get(name)
        if at is None or at[1] < size or reader.missing(place + at[0], size):
            return None
        return reader.read(place + at[0], size)

    parameters, size_raw, logical_raw = item(PARAMETERS, 8), item(DISK_SIZE, 8), item(LOGICAL, 4)
    if parameters is None or size_raw is None or logical_raw is None:
        return None
    block, flags = struct.unpack("<II", parameters)
    size, logical = int.from_bytes(size_raw, "little"), int.from_bytes(logical_raw, "little")
    physical = int.from_bytes(item(PHYSICAL, 4) or logical_raw, "little")
    if block & (block - 1) or not FORMAT_MIN_BLOCK <= block <= FORMAT_MAX_BLOCK or flags & ~3:
        return None
    if logical not in (512, 4096) or physical not in (512, 4096):
        return None
    if not 0 < size <= FORMAT_MAX_DISK or size % logical:
        return None
    return Metadata(block, size, logical, physical, item(DISK_ID, 16) or bytes(16), bool(flags & 1), bool(flags & 2),
                    items.get(PARENT_LOCATOR), table)


# --- parent locator ------------------------------------------------------------------------------------------------
LINKS = ("parent_linkage", "parent_linkage2")


def parse_locator(raw: bytes) -> dict[str, str]:
    """Key and value texts of a parent locator ([MS-VHDX] 2.6.2.6); empty when it is none."""
    out: dict[str, str] = {}
    if len(raw) < 20 or raw[:16] != VHDX_LOCATOR:
        return out
    count = int.from_bytes(raw[18:20], "little")
    for i in range(min(count, (len(raw) - 20) // 12, FORMAT_MAX_TABLE)):
        key_at, value_at, key_size, value_size = struct.unpack_from("<IIHH", raw, 20 + 12 * i)
        key = clean_text(raw[key_at : key_at + key_size])
        if key:
            out.setdefault(key, clean_text(raw[value_at : value_at + value_size]))
    return out


def safe_locator(entries: Mapping[str, str], length: int) -> bytes:
    """The locator with its linkage GUIDs and no path, padded to `length` bytes."""
    texts = [(key.encode("utf-16-le"), entries[key].encode("utf-16-le")) for key in LINKS if key in entries]
    head, tail = VHDX_LOCATOR + struct.pack("<HH", 0, len(texts)), b""
    for key, value in texts:
        at = 20 + 12 * len(texts) + len(tail)
        head += struct.pack("<IIHH", at, at + len(key), len(key), len(value))
        tail += key + value
    out = head + tail
    return out.ljust(length, b"\0") if len(out) <= length else bytes(length)


def linkage(entries: Mapping[str, str], key: str) -> str | None:
    """A linkage value "{GUID}" as plain lower-case text."""
    try:
        return str(uuid.UUID(entries[key]))
    except (KeyError, ValueError):
        return None
