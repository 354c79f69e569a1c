"""The 512-byte header of a hosted sparse extent (KDMV), its limits, and the layout that follows from a capacity.

Sources: VMware "Virtual Disk Format 1.1" (SparseExtentHeader), QEMU block/vmdk.c, VirtualBox VMDK.cpp. Offsets in the
header are in 512-byte sectors from the start of the extent file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from ..errors import Damaged
from ..model import SECTOR

MAGIC = b"KDMV"
UNFINISHED = b"kdmv"  # open-vmdk writes it first and corrects it last: an export aborted in its last step
LINE_TEST = b"\n \r\n"
NO_OFFSET = 0xFFFF_FFFF_FFFF_FFFF  # gdOffset: "look in the footer"

FLAG_LINE_TEST, FLAG_REDUNDANT, FLAG_ZERO_GRAIN = 1, 2, 4
FLAG_COMPRESSED, FLAG_MARKERS = 1 << 16, 1 << 17
FLAGS_INCOMPATIBLE = 0xFFFF_0000  # unknown bits here: the layout is another one
DESCRIPTOR_SECTORS = 20  # QEMU, VirtualBox, open-vmdk
REDUNDANT_AT = 21  # rgdOffset behind an embedded descriptor (QEMU, VirtualBox)
ENTRIES = 512  # numGTEsPerGT of every known writer

FORMAT_MAX_VERSION = 3
FORMAT_MAX_PLAIN_CAPACITY = 1 << 32  # sectors: table entries are 32-bit sector numbers
OUR_MAX_CAPACITY = 1 << 41  # sectors, 1 PiB
OUR_MAX_GRAIN = 2048  # sectors; QEMU takes 1 GiB, no writer makes more than 64 KiB
OUR_MAX_DESCRIPTOR = 20480  # sectors; VirtualBox refuses more
OUR_MAX_SLACK = 1 << 16  # sectors between the structures before the first grain
OUR_MAX_TABLES = 1 << 20  # grain tables: 32 TiB of disk at 64 KiB grains
SPLIT_SECTORS = 4194304  # largest extent of a split disk; seen: qemu-img 7.2 cuts here, VMware at 4192256

_STRUCT = struct.Struct("<4sIIQQQQIQQQB4sH")


@dataclass(frozen=True, slots=True)
class Header:
    """The fields in their order. capacity, grain and every offset are in sectors."""

    magic: bytes
    version: int
    flags: int
    capacity: int
    grain: int
    descriptor_at: int
    descriptor_size: int
    entries: int
    redundant_at: int
    directory_at: int
    overhead: int
    unclean: int
    line_test: bytes
    algorithm: int
    pad_clean: bool = True

    @property
    def grains(self) -> int:
        return -(-self.capacity // self.grain)

    @property
    def tables(self) -> int:
        return -(-self.grains // self.entries)

    @property
    def directory_sectors(self) -> int:
        return -(-4 * self.tables // SECTOR)

    @property
    def table_sectors(self) -> int:
        return self.entries * 4 // SECTOR

    @property
    def zero_grains(self) -> bool:
        """A table entry of 1 means zeros, not sector 1."""
        return bool(self.flags & FLAG_ZERO_GRAIN)

    @property
    def compressed(self) -> bool:
        return bool(self.flags & FLAG_COMPRESSED)

    @property
    def redundant(self) -> bool:
        return bool(self.flags & FLAG_REDUNDANT) and 0 < self.redundant_at < self.overhead

    @property
    def grain_bytes(self) -> int:
        return self.grain * SECTOR

    def pack(self) -> bytes:
        return _STRUCT.pack(
            self.magic, self.version, self.flags, self.capacity, self.grain, self.descriptor_at, self.descriptor_size,
            self.entries, self.redundant_at, self.directory_at, self.overhead, self.unclean, self.line_test,
            self.algorithm,
        ).ljust(SECTOR, b"\0")  # fmt: skip


def parse(sector: bytes) -> Header | None:
    """The fields of a header sector, believed or not; None when the magic is not there."""
    if len(sector) < SECTOR or sector[:4] not in (MAGIC, UNFINISHED):
        return None
    return Header(*_STRUCT.unpack_from(sector), pad_clean=not any(sector[_STRUCT.size : SECTOR]))


def check(h: Header) -> None:
    """Raises Damaged with the first field that no writer would have written so."""

    def need(ok: bool, field: str, value: object, bound: object, offset: int) -> None:
        if not ok:
            raise Damaged("VMDK header is not valid", offset=offset, field=field, value=value, bound=bound)

    known = FLAG_COMPRESSED | FLAG_MARKERS
    need(h.version <= FORMAT_MAX_VERSION, "version", h.version, "at most 3", 4)
    need(not h.flags & FLAGS_INCOMPATIBLE & ~known, "flags", h.flags, "no unknown incompatible bit", 8)
    need(not h.flags & FLAG_MARKERS or h.compressed, "flags", h.flags, "markers only with compression", 8)
    need(not h.flags & FLAG_LINE_TEST or h.line_test == LINE_TEST, "newline test", h.line_test, LINE_TEST, 73)
    need(0 < h.grain <= OUR_MAX_GRAIN and not h.grain & (h.grain - 1), "grainSize", h.grain, "1..2048, power of 2", 20)
    need(h.entries in (128, 256, 512, 1024, 2048, 4096), "numGTEsPerGT", h.entries, "128..4096, a power of 2", 44)
    most = OUR_MAX_CAPACITY if h.compressed else FORMAT_MAX_PLAIN_CAPACITY
    need(0 < h.capacity <= most, "capacity", h.capacity, most, 12)
    need(h.tables <= OUR_MAX_TABLES, "capacity", h.capacity, f"{OUR_MAX_TABLES} grain tables", 12)
    need(h.algorithm in (0, 1), "compressAlgorithm", h.algorithm, "0 or 1", 77)
    in_footer = h.directory_at == NO_OFFSET
    need(0 < h.directory_at < OUR_MAX_CAPACITY or (in_footer and h.compressed), "gdOffset", h.directory_at,
         "a sector inside the file", 56)  # fmt: skip
    tables = 2 * (h.directory_sectors + h.tables * h.table_sectors)
    most = OUR_MAX_DESCRIPTOR + tables + OUR_MAX_SLACK
    need(0 < h.overhead <= most, "overHead", h.overhead, f"1..{most}", 64)
    need(h.compressed or h.directory_at < h.overhead, "gdOffset", h.directory_at, h.overhead, 56)
    if h.directory_at < h.overhead:
        least = h.directory_at + h.directory_sectors
        need(least <= h.overhead, "overHead", h.overhead, f"at least {least}, for a directory of this capacity", 64)


def layout(capacity: int, *, stream: bool = False, zero_grains: bool = False,
           redundant_at: int = REDUNDANT_AT) -> Header:  # fmt: skip
    """The header that QEMU writes for a new extent with an embedded descriptor, from the capacity (sectors) alone.

    Seen: qemu-img 7.2, byte for byte (monolithicSparse and streamOptimized); VirtualBox has the same formulas.
    """
    flags = FLAG_LINE_TEST | FLAG_REDUNDANT
    flags |= FLAG_COMPRESSED | FLAG_MARKERS if stream else 0
    flags |= FLAG_ZERO_GRAIN if zero_grains else 0
    version = 3 if stream else 2 if zero_grains else 1
    h = Header(MAGIC, version, flags, capacity, 128, 1, DESCRIPTOR_SECTORS, ENTRIES, redundant_at, 0, 0, 0, LINE_TEST,
               int(stream))  # fmt: skip
    step = h.directory_sectors + h.table_sectors * h.tables
    end = redundant_at + 2 * step
    return replace(h, directory_at=redundant_at + step, overhead=-(-end // h.grain) * h.grain)


def marker_layout(capacity: int) -> Header:
    """The header of a stream whose tables follow its grains (VMware, VirtualBox)."""
    h = layout(capacity, stream=True)
    return replace(h, flags=h.flags & ~FLAG_REDUNDANT, redundant_at=0, directory_at=NO_OFFSET, overhead=128)


def front_layout(capacity: int) -> Header:
    """The header of a stream with one set of tables at its front (open-vmdk, govmomi)."""
    h = layout(capacity, stream=True)
    end = REDUNDANT_AT + h.directory_sectors + h.table_sectors * h.tables
    return replace(h, flags=h.flags & ~FLAG_REDUNDANT, redundant_at=0, directory_at=REDUNDANT_AT, overhead=end)
