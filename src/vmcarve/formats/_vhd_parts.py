"""The structures of a VHD, parsed from bytes and bounded, and its block table, judged. See vhd.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import SECTOR, Reader
from ._blocks import Bools, Int64s, clashes, missing_entries

# --- the format's limits
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
VARIANTS = {FIXED: "fixed", DYNAMIC: "dynamic", DIFFERENCING: "differencing"}
VERSION = 0x0001_0000
UNUSED = 0xFFFF_FFFF  # a BAT entry that names no block
FORMAT_MAX_BLOCK_DISK = 1 << 41  # bytes: BAT entries are u32 sector numbers
FORMAT_MAX_FIXED = 1 << 46  # bytes: nothing in a fixed file counts sectors in 32 bits; Azure goes to 32 TiB
FORMAT_MAX_BLOCK = 1 << 28  # bytes; 2 MiB and 512 KiB are what is written
FORMAT_MAX_LOCATOR = 1 << 16  # bytes of one parent locator. Seen: Windows 10 gives each 64 KiB or less
BATMAP_VERSION = 0x0001_0002  # the newest (libvhd)
HEADER_AT = 512  # data_offset in every file seen
TABLE_AT = 1536  # QEMU, VirtualBox, tapdisk, Windows dynamic; Windows differencing: 8192 (seen)
MAX_LOCATORS = 8
PAGE = 4096  # Windows 8+ and tapdisk place a block's data on it
# --- ours
OUR_MAX_ENTRIES = 1 << 22  # 16 MiB of table: 8 TiB of 2 MiB blocks, 2 TiB of 512 KiB blocks
FIRST_ENTRIES = 4096  # of a BAT that are judged before the rest: of so many random ones some clash
SLACK_BLOCKS = 8  # blocks that a resize may have moved from the front to the end


# --- structures ----------------------------------------------------------------------------------------------------
FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
HEADER = struct.Struct(">8sQQIIII16sII512s")
LOCATOR = struct.Struct(">4sIIIQ")
BATMAP = struct.Struct(">8sQIIIB")


@dataclass(frozen=True, slots=True)
class Footer:
    """Footer of 512 bytes; 511 when Virtual PC before 2004 wrote it (the last byte is not in the file)."""

    raw: bytes
    length: int
    data_offset: int  # file_offset of the dynamic header, bytes; a multiple of 512
    timestamp: int  # seconds since 2000-01-01 UTC
    app: bytes
    app_version: int
    os: bytes
    size: int  # current_size, bytes: the guest disk. CHS is never used: it is rounded down
    geometry: tuple[int, int, int]
    kind: int
    uuid: bytes
    hidden: bool

    @property
    def identity(self) -> str:
        return f"vhd-uuid:{self.uuid.hex()}"


@dataclass(frozen=True, slots=True)
class Locator:
    """Where a path of the parent is stored. space, length: bytes (all makers write bytes; below 512 means sectors)."""

    code: bytes
    space: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """Dynamic header, 1024 bytes at file_offset `place`. table_offset, block_size in bytes."""

    raw: bytes
    place: int
    table_offset: int
    entries: int
    block_size: int
    parent_uuid: bytes = bytes(16)
    parent_name: str = ""
    locators: tuple[Locator, ...] = ()
    sum_ok: bool = True
    found: bool = True  # False: rebuilt by us

    @property
    def table_end(self) -> int:
        return up(self.table_offset + 4 * self.entries, SECTOR)

    @property
    def bitmap_size(self) -> int:
        return up(-(-self.block_size // SECTOR // 8), SECTOR)

    @property
    def span(self) -> int:
        """Bytes of a block with its bitmap."""
        return self.bitmap_size + self.block_size


@dataclass(frozen=True, slots=True)
class Batmap:
    """tapdisk's map of full blocks: header of 512 bytes at `place`, then the map. It states its own place."""

    place: int
    size: int
    full: Bools  # one per block

    @property
    def end(self) -> int:
        return self.place + SECTOR + self.size


def up(value: int, step: int) -> int:
    return -(-value // step) * step


def checksum_of(raw: bytes, at: int) -> int:
    """One's complement of the sum of all bytes, the u32 at `at` taken as zero."""
    return ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFF_FFFF


def summed(raw: bytes, at: int) -> bytes:
    return raw[:at] + checksum_of(raw, at).to_bytes(4, "big") + raw[at + 4 :]


def parse_footer(raw: bytes, trust_sum: bool = True) -> Footer | None:
    """The footer in 512 (or 511) bytes, or None. trust_sum=False also takes one whose checksum is wrong."""
    if len(raw) < 511 or raw[:8] != b"conectix":
        return None
    length = min(len(raw), SECTOR)
    raw = raw[:SECTOR].ljust(SECTOR, b"\0")
    (_, features, version, data_offset, timestamp, app, app_version, os, _, size, cylinders, heads, spt, kind, checksum,
     uuid, saved) = FOOTER.unpack_from(raw)
    if version != VERSION or features & ~3 or kind not in VARIANTS or saved > 1 or size <= 0 or size % SECTOR:
        return None
    if kind == FIXED:
        data_offset = 0
        if size > FORMAT_MAX_FIXED:
            return None
    elif size > FORMAT_MAX_BLOCK_DISK or data_offset % SECTOR or not SECTOR <= data_offset < FORMAT_MAX_BLOCK_DISK:
        return None
    if checksum_of(raw, 64) != checksum:
        short = raw[:511] + b"\0"
        # tapdisk 0.1 and 1.1 set `hidden` (byte 85) without a new sum (libvhd)
        unhidden = raw[:85] + b"\0" + raw[86:]
        if checksum_of(short, 64) == checksum:
            raw, length = short, 511
        elif trust_sum and not (app == b"tap\0" and checksum_of(unhidden, 64) == checksum):
            return None
    return Footer(raw, length, data_offset, timestamp, app, app_version, os, size, (cylinders, heads, spt), kind, uuid,
                  raw[85] == 1)


def parse_header(raw: bytes, place: int) -> Header | None:
    """The dynamic header in 1024 bytes, or None when a field is out of the format's bounds; see `sum_ok`."""
    if len(raw) != 1024 or raw[:8] != b"cxsparse":
        return None
    _, data_offset, table, version, entries, block, checksum, parent, _, _, name = HEADER.unpack_from(raw)
    if version != VERSION or data_offset != (1 << 64) - 1 or not 0 < entries <= OUR_MAX_ENTRIES:
        return None
    if table % SECTOR or not TABLE_AT <= table < FORMAT_MAX_BLOCK_DISK:
        return None
    if block & (block - 1) or not SECTOR <= block <= FORMAT_MAX_BLOCK:
        return None
    locators = []
    for i in range(MAX_LOCATORS):
        code, space, length, _, offset = LOCATOR.unpack_from(raw, 576 + 24 * i)
        if code != bytes(4):
            locators.append(Locator(code, space * SECTOR if space < SECTOR else space, length, offset))
    return Header(raw, place, table, entries, block, parent, text_of(name, "utf-16-be"), tuple(locators),
                  checksum_of(raw, 36) == checksum)


def make_header(table_offset: int, entries: int, block_size: int) -> Header:
    """A dynamic header without a parent, as every writer makes it."""
    raw = HEADER.pack(b"cxsparse", (1 << 64) - 1, table_offset, VERSION, entries, block_size, 0, bytes(16), 0, 0, b"")
    return Header(summed(raw.ljust(1024, b"\0"), 36), HEADER_AT, table_offset, entries, block_size, found=False)


def text_of(raw: bytes, encoding: str) -> str:
    text = raw.decode(encoding, "replace").split("\0", 1)[0]
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def footer_at(reader: Reader, place: int) -> Footer | None:
    return parse_footer(reader.read(place, SECTOR)) if place >= 0 else None


def header_at(reader: Reader, place: int) -> Header | None:
    return parse_header(reader.read(place, 1024), place)


def batmap_at(reader: Reader, place: int) -> Batmap | None:
    """The batmap whose header is at file_offset `place`, if it says so itself."""
    raw = reader.read(place, SECTOR)
    offset = batmap_states(raw)
    if offset is None or offset - SECTOR != place:
        return None
    size = int.from_bytes(raw[16:20], "big") * SECTOR
    bits = np.unpackbits(np.frombuffer(reader.read(offset, size), np.uint8))
    return Batmap(place, size, bits.astype(bool))


def batmap_states(raw: bytes) -> int | None:
    """The file_offset of the map that this batmap header leads, or None if it is none. Source: blktap vhd.h."""
    if len(raw) < SECTOR or raw[:8] != b"tdbatmap":
        return None
    _, offset, sectors, version, _, marker = BATMAP.unpack_from(raw)
    if version > BATMAP_VERSION or marker > 1 or not 0 < sectors * SECTOR <= OUR_MAX_ENTRIES // 8 + SECTOR:
        return None
    if offset % SECTOR or not TABLE_AT + 2 * SECTOR <= offset < FORMAT_MAX_BLOCK_DISK or any(raw[94:]):
        return None
    return offset


# --- the table -----------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Table:
    """The BAT, judged. raw: big-endian u32 entries; lost: entries whose sectors are not there. index, start: used
    entries and the file_offset in bytes of the bitmap that each names; bad: those that cannot be."""

    raw: npt.NDArray[np.uint32]
    lost: Bools
    index: Int64s
    start: Int64s
    bad: Bools
    first: int  # file_offset behind header, table and batmap
    stride: int  # bytes from one block to the next, by the class that most entries share
    odd: bool  # some sound entry is out of step

    @property
    def good(self) -> Int64s:
        """Places of the sound blocks, rising."""
        return np.sort(self.start[~self.bad])

    @property
    def unknown(self) -> int:
        """Entries that may name further blocks."""
        return int(self.lost.sum()) + int(self.bad.sum())

    @property
    def regular(self) -> bool:
        """Every entry is known and sound, and the blocks follow each other without a gap."""
        good = self.good
        gapless = len(good) < 2 or int(good[-1] - good[0]) == (len(good) - 1) * self.stride
        return not self.odd and not self.unknown and gapless


def may_be_regular(reader: Reader, header: Header) -> bool:
    """Whether a BAT may be regular by its first entries: all are there, and no two name the same bytes.

    What is no BAT mostly shows it there, before a table of a million entries is judged.
    """
    if reader.missing(header.table_offset, 4 * header.entries):
        return False
    raw = np.frombuffer(reader.read(header.table_offset, 4 * min(header.entries, FIRST_ENTRIES)), ">u4")
    start = raw[raw != UNUSED].astype(np.int64) * SECTOR
    return not clashes(start, np.full(len(start), header.span, np.int64), [(0, HEADER_AT)]).any()


def read_table(reader: Reader, header: Header, batmap: Batmap | None) -> Table:
    """Reads and judges the BAT: blocks must lie apart from each other and from the metadata, and near to the front.

    Limit: blocks leave no gap, so none ends further out than all used and lost entries together reach.
    """
    data = reader.read(header.table_offset, 4 * header.entries).ljust(4 * header.entries, b"\xff")
    raw = np.frombuffer(data, ">u4")
    lost = missing_entries(reader, header.table_offset, header.entries, 4)
    index = np.flatnonzero((raw != UNUSED) & ~lost).astype(np.int64)
    start = raw[index].astype(np.int64) * SECTOR
    span, wide = header.span, up(header.span, PAGE)
    reserved = [(0, HEADER_AT), (header.place, header.place + 1024), (header.table_offset, header.table_end)]
    if batmap:
        reserved.append((batmap.place, batmap.end))
    first = max(end for _, end in reserved)
    limit = first + MAX_LOCATORS * FORMAT_MAX_LOCATOR + (len(index) + int(lost.sum()) + SLACK_BLOCKS) * wide
    bad = start + span > limit
    for low, high in reserved:
        bad |= (start < high) & (start + span > low)
    inside = np.flatnonzero(~bad)
    odd, stride = _out_of_step(start[inside], span, wide)
    hit = clashes(start[inside], np.full(len(inside), span, np.int64))
    if (hit & odd).any():  # where two collide, the one that is out of step with all others is the wrong one
        bad[inside[hit & odd]] = True
        inside, odd = inside[~(hit & odd)], odd[~(hit & odd)]
        hit = clashes(start[inside], np.full(len(inside), span, np.int64))
    bad[inside[hit]] = True
    return Table(raw, lost, index, start, bad, first, stride, bool((odd & ~hit).any()))


def _out_of_step(start: Int64s, span: int, wide: int) -> tuple[Bools, int]:
    """Which blocks are not in step with most, and the step: blocks back to back (span), or data on 4 KiB (wide)."""
    best, step, rest = 0, span, 0
    for stride in (span, wide):
        classes, counts = np.unique(start % stride, return_counts=True)
        if len(counts) and int(counts.max()) > best:
            best, step, rest = int(counts.max()), stride, int(classes[counts.argmax()])
    return start % step != rest, step


def locators_of(header: Header, table: Table) -> list[Locator]:
    """The locators that can be: bounded, in the neighbourhood of the table, apart from it and from every block."""
    taken = [(0, header.place + 1024), (header.table_offset, header.table_end)]
    far = table.first + MAX_LOCATORS * FORMAT_MAX_LOCATOR
    return [
        at
        for at in header.locators
        if 0 < at.length <= min(at.space, FORMAT_MAX_LOCATOR)
        and at.offset + at.length <= far
        and all(at.offset >= end or at.offset + at.length <= start for start, end in taken)
        and not ((table.start < at.offset + at.length) & (table.start + header.span > at.offset)).any()
    ]
