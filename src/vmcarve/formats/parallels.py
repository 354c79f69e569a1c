"""Parallels expanding disk (.hds): a header, a block allocation table, clusters in order of first write.

Little endian. Source: QEMU docs/interop/parallels.txt and block/parallels.c; "Seen" means checked on files of
qemu-img 7.2. The old magic counts the table's entries in sectors, the new one in clusters. A disk does not name its
parent: only the bundle's DiskDescriptor.xml does.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ..errors import Damaged
from ..model import (
    DATA,
    LOST,
    PROVEN,
    SECTOR,
    SUPPORTED,
    UNALLOCATED,
    Check,
    Container,
    Evidence,
    Format,
    GuestDisk,
    Reader,
    Region,
    Signature,
    Stowed,
)
from ._parallels_shapes import ROWS, shapes
from ._parallels_shapes import rebuild as rebuild_container
from ._qcow2_tables import (
    I64,
    U8,
    Bools,
    Ranges,
    in_host_blocks,
    named_twice,
    over_host_blocks,
    read_words,
    regions,
    spread,
    unit_map,
)
from ._stowed import in_row

USUAL_CLUSTER = 1 << 20
OLD_CLUSTER = 63 * SECTOR  # of a track, under the old magic

KIND = "parallels.header"
OLD, NEW = b"WithoutFreeSpace", b"WithouFreSpacExt"
SIGNATURES = tuple(Signature(magic, KIND, also=(16, b"\xff" * 4, b"\2\0\0\0")) for magic in (OLD, NEW))  # version

HEADER_LENGTH = 64  # the table follows at once
VERSION = 2
IN_USE_OPEN = 0x746F_6E59
IN_USE = (0, IN_USE_OPEN, 0x312E_3276)  # never told (QEMU 7.2, seen), open, closed
FLAGS = 0b11  # bit 0: empty image
EXTENSION_MAGIC = 0xAB23_4CEF_23DC_EA87
BITMAP_MAGIC = 0x2038_5FAE_252C_B34A
OUR_MAX_TRACKS = 1 << 17  # sectors of a cluster: 64 MiB; Parallels writes 63 to 2048
OUR_MAX_TABLE = 64 << 20  # bytes of table: 16 TiB of disk at 1 MiB clusters
OUR_MAX_SECTIONS = 1024  # of a format extension cluster
OUR_MAX_HEADS = 65535


@dataclass(frozen=True, slots=True)
class Header:
    """cluster and data_offset in bytes, size in bytes of the disk; unit: bytes that a table entry counts by."""

    old: bool
    cluster: int
    entries: int
    size: int
    in_use: int
    data_offset: int
    extension: int

    @property
    def unit(self) -> int:
        return SECTOR if self.old else self.cluster

    @property
    def first(self) -> int:
        """Where the first cluster can lie: new entries count clusters from the file's start."""
        return self.data_offset if self.old else -(-self.data_offset // self.cluster) * self.cluster


def read_header(reader: Reader, offset: int) -> Header:
    """The header at `offset` of the reader, or Damaged with the first value that cannot be."""
    block = reader.read(offset, HEADER_LENGTH)
    if len(block) < HEADER_LENGTH or reader.missing(offset, HEADER_LENGTH):
        raise Damaged("Parallels header is not there", offset=offset)
    magic, version, heads, _, tracks, entries, sectors, in_use, data, flags, extension = struct.unpack(
        "<16sIIIIIQIIIQ", block
    )
    if magic not in (OLD, NEW):
        raise Damaged("not a Parallels header", offset=offset)
    old = magic == OLD
    sectors &= 0xFFFF_FFFF if old else 0xFFFF_FFFF_FFFF_FFFF
    table_end = HEADER_LENGTH + 4 * entries
    rules = [
        ("version", version, version == VERSION, "2"),
        ("heads", heads, 0 < heads <= OUR_MAX_HEADS, "1 to 65535"),
        ("tracks", tracks, 0 < tracks <= OUR_MAX_TRACKS, f"1 to {OUR_MAX_TRACKS}"),
        ("bat_entries", entries, 0 < entries * 4 <= OUR_MAX_TABLE, "within 64 MiB of table"),
        ("nb_sectors", sectors, 0 < sectors <= entries * tracks, "what the entries hold"),
        ("in_use", in_use, in_use in IN_USE, "0, open or closed"),
        ("data_off", data, data * SECTOR >= table_end or (old and data == 0), "behind the table"),
        ("flags", flags, flags & ~FLAGS == 0, "bits 0 and 1"),
        ("ext_off", extension, extension == 0 or data <= extension < 1 << 53, "0 or behind data_off"),
    ]
    for name, value, ok, bound in rules:
        if not ok:
            raise Damaged("Parallels header", offset=offset, field=name, value=value, bound=bound)
    start = data * SECTOR or -(-table_end // SECTOR) * SECTOR
    return Header(old, tracks * SECTOR, entries, sectors * SECTOR, in_use, start, extension * SECTOR)


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A header whose every field is in bounds."""
    try:
        h = read_header(reader, offset)
    except Damaged:
        return None
    return Evidence(KIND, offset, HEADER_LENGTH, container_offset=0, value=h.size)


@dataclass(slots=True)
class _Extension:
    """The format extension cluster: ok when its MD5 holds; bitmaps: file offsets of the dirty bitmaps' clusters."""

    ok: bool = False
    bitmaps: I64 = field(default_factory=lambda: np.zeros(0, np.int64))


def _read_extension(reader: Reader, h: Header) -> _Extension:
    """Source: parallels.txt, "Format Extension": magic u64, MD5 of the rest of the cluster, then sections."""
    if reader.missing(h.extension, h.cluster):
        return _Extension()
    block = reader.read(h.extension, h.cluster)
    magic, digest = struct.unpack_from("<Q16s", block)
    if magic != EXTENSION_MAGIC or hashlib.md5(block[24:], usedforsecurity=False).digest() != digest:
        return _Extension()
    found: list[I64] = []
    at = 24
    for _ in range(OUR_MAX_SECTIONS):
        if at + 24 > len(block):
            break
        kind, _, length = struct.unpack_from("<QQI", block, at)
        if kind == 0 or length > len(block) - at - 24:
            break
        if kind == BITMAP_MAGIC and length >= 32:
            count = struct.unpack_from("<I", block, at + 24 + 28)[0]
            table = np.frombuffer(block, "<u8", min(count, (length - 32) // 8), at + 56)
            found.append(table[(table > 1) & (table < 1 << 53)].astype(np.int64) * SECTOR)
        at += 24 + -(-length // 8) * 8
    return _Extension(True, np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64))


def _resolve(h: Header, entry: I64, known: Bools, taken: Ranges, size: int) -> tuple[U8, I64, list[Check]]:
    """State and file offset of each cluster. Impossible entries spoil the host block of table that they lie in."""
    used = known & (entry > 0)
    host = np.where(used, entry * h.unit, -1)
    full = np.full(len(host), h.cluster)
    reach = max(size, h.first + (int(used.sum()) + 1) * h.cluster + int((taken.end - taken.start).sum()))
    illegal = used & ((host < h.data_offset) | ((host - h.first) % h.cluster != 0))
    outside = used & ~illegal & ((host > reach - h.cluster) | taken.hit(host, full))
    bad = illegal | outside
    twice = named_twice(np.where(bad, -1, host))
    bad |= spread((bad | twice)[None, :], used[None, :], 4, HEADER_LENGTH)[0]
    bad |= named_twice(np.where(bad, -1, host))
    place = np.sort(host[used & ~bad])
    gaps = (int(place[-1]) - h.first) // h.cluster + 1 - len(place) if len(place) else 0
    gaps -= int(((taken.end - taken.start) // h.cluster)[taken.start >= h.first].sum()) if len(place) else 0
    if gaps > int((bad | ~known).sum()):  # more clusters are unclaimed than the entries that we know to be lost
        bad |= _bare(used)
    lost = bad | ~known
    state = np.where(lost, LOST, np.where(used, DATA, UNALLOCATED)).astype(np.uint8)
    return state, np.where(state == DATA, host, -1), [
        Check("parallels.table-read", bool(known.all()),
              f"{int((~known).sum())} of {h.entries} entries are missing", False),
        Check("parallels.entries-legal", not illegal.any(), f"{int(illegal.sum())} entries at no cluster"),
        Check("parallels.entries-inside", not outside.any(), f"{int(outside.sum())} entries outside or in metadata"),
        Check("parallels.entries-unique", not twice.any(), f"{int(twice.sum())} entries name a cluster twice"),
        Check("parallels.consecutive", gaps <= 0, f"{max(gaps, 0)} clusters inside the file that nothing names",
              gaps > int(lost.sum())),
    ]


def _bare(used: Bools) -> Bools:
    """Entries in a host block of table without one used entry: overwritten with zeros, when clusters are unclaimed."""
    row = used[None, :]
    return over_host_blocks(~np.any(in_host_blocks(row, 4, HEADER_LENGTH), axis=2), row, 4, HEADER_LENGTH)[0]


def open_container(reader: Reader) -> Container:
    """Reads the table; entries that are missing, repeated or outside become LOST."""
    h = read_header(reader, 0)
    raw, known = read_words(reader, HEADER_LENGTH, h.entries, "<u4")
    extension = _read_extension(reader, h) if h.extension else _Extension(True)
    taken_at = [*([h.extension] if h.extension else []), *extension.bitmaps.tolist()]
    taken = Ranges.of(taken_at, [h.cluster] * len(taken_at))
    state, host, checks = _resolve(h, raw.astype(np.int64), known, taken, reader.size)
    if h.extension:
        checks.append(Check("parallels.extension-md5", extension.ok, grave=False))
    checks.append(Check("parallels.closed", h.in_use != IN_USE_OPEN, grave=False))
    size = max(h.data_offset, int(host.max(initial=-h.cluster)) + h.cluster, int(taken.end.max(initial=0)))
    whole = all(c.ok for c in checks)
    grade = PROVEN if whole else SUPPORTED
    return Container(
        "parallels", "WithoutFreeSpace" if h.old else "WithouFreSpacExt", size,
        [GuestDisk(h.size, unit_map(h.size, h.cluster, state, host))], system="Parallels", cluster=h.cluster,
        size_exact=whole, checks=checks,  # while open, the file is grown ahead and trimmed on closing
        regions=[*regions("parallels.header", [0], [HEADER_LENGTH], SUPPORTED),
                 *regions("parallels.bat", [HEADER_LENGTH], [4 * h.entries], grade), *_extension_regions(h, extension)],
    )


def _extension_regions(h: Header, extension: _Extension) -> list[Region]:
    if not h.extension:
        return []
    bitmaps = extension.bitmaps
    return [*regions("parallels.extension", [h.extension], [h.cluster], PROVEN if extension.ok else SUPPORTED),
            *regions("parallels.bitmap", bitmaps, np.full(len(bitmaps), h.cluster), SUPPORTED)]


def stow(reader: Reader) -> Iterable[Stowed]:
    """Clusters of the two usual sizes up to the file's end; files of the larger ones are a number of those."""
    yield from in_row(USUAL_CLUSTER, reader.size, USUAL_CLUSTER)
    if reader.size % USUAL_CLUSTER and reader.size % SECTOR == 0:
        yield from in_row(reader.size % OLD_CLUSTER or OLD_CLUSTER, reader.size, OLD_CLUSTER)


FORMAT = Format(name="parallels", extension="hds", signatures=SIGNATURES, open=open_container, confirm=confirm,
                qemu_name="parallels", shapes=shapes, rows=ROWS,
                rebuild=lambda reader, clue: rebuild_container(reader, clue, open_container),
                stow=stow)
