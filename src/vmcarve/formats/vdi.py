"""VirtualBox VDI: a header, a block map, blocks in order of first write. No checksums; a full map proves itself.

Little endian; UUIDs in Windows GUID byte order. Source: VirtualBox VDICore.h and VDI.cpp, QEMU block/vdi.c; "Seen"
means checked on files of qemu-img 7.2. The permutation law: both writers give a new block the number of blocks
allocated so far and discard by moving the last block into the hole, so the allocated entries are always a permutation
of 0..allocated-1, and the file ends with the last block.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

import numpy as np

from ..errors import Damaged
from ..model import (
    DATA,
    HOLE,
    LOST,
    PROVEN,
    SUPPORTED,
    UNALLOCATED,
    Check,
    Container,
    Evidence,
    Format,
    GuestDisk,
    ParentLink,
    Reader,
    Signature,
    Want,
)
from ._qcow2_tables import I64, U8, Bools, named_twice, read_words, regions, show_name, spread, unit_map
from ._vdi_shapes import ROWS, shapes, stow
from ._vdi_shapes import rebuild as rebuild_container
from ._vdi_wants import wants as map_wants

KIND = "vdi.header"
MAGIC = b"\x7f\x10\xda\xbe"
MAGIC_AT = 64
VERSION_0, VERSION_1 = 2, 0x0001_0001  # minor in the low half
SIGNATURES = (
    # the type, 1 to 4
    Signature(MAGIC + VERSION_1.to_bytes(4, "little"), KIND, at=MAGIC_AT, also=(76, b"\xf8\xff\xff\xff", bytes(4))),
    Signature(MAGIC + VERSION_0.to_bytes(4, "little"), KIND, at=MAGIC_AT, also=(72, b"\xf8\xff\xff\xff", bytes(4))),
)

HEADER_BYTES = 512  # all fields lie in the first sector
V0_END, V1_START, V1_LEAST = 420, 72, 384  # 384: QEMU (seen), 400: VirtualBox
FREE, ZERO = 0xFFFF_FFFF, 0xFFFF_FFFE  # map entries that are not block numbers
TYPES = {1: "dynamic", 2: "fixed", 3: "undo", 4: "differencing"}
FIXED, WITH_PARENT = 2, (3, 4)
MIN_BLOCK, MAX_BLOCK = 128 << 10, 128 << 20  # VDICore.h
OUR_MAX_HEADER = 4096
OUR_MAX_MAP = 64 << 20  # bytes of map that we hold: 16 TiB of disk at 1 MiB blocks


@dataclass(frozen=True, slots=True)
class Header:
    """Offsets and sizes in bytes; blocks and allocated count blocks; end: behind the header's last field."""

    text: bytes
    version: int
    kind: int
    map_offset: int
    data_offset: int
    sector: int
    size: int
    block: int
    extra: int
    blocks: int
    allocated: int
    created: uuid.UUID
    modified: uuid.UUID
    linkage: uuid.UUID
    parent_modified: uuid.UUID
    end: int

    @property
    def stride(self) -> int:
        """Bytes of a stored block with its extra data, which comes first."""
        return self.block + self.extra


def _guid(block: bytes, at: int) -> uuid.UUID:
    return uuid.UUID(bytes_le=block[at : at + 16])


def _parse_v1(block: bytes) -> Header:
    length, kind = struct.unpack_from("<II", block, V1_START)
    map_offset, data_offset = struct.unpack_from("<II", block, 340)
    size, unit, extra, blocks, allocated = struct.unpack_from("<QIIII", block, 368)
    sector = struct.unpack_from("<I", block, 360)[0]
    return Header(block[:MAGIC_AT], VERSION_1, kind, map_offset, data_offset, sector, size, unit, extra, blocks,
                  allocated, _guid(block, 392), _guid(block, 408), _guid(block, 424), _guid(block, 440),
                  V1_START + length)


def _parse_v0(block: bytes) -> Header:
    """The header before 1.1: the map follows at once, then the data, at no sector boundary (VDICore.h, VDIHEADER0)."""
    kind = struct.unpack_from("<I", block, 72)[0]
    sector = struct.unpack_from("<I", block, 348)[0]
    size, unit, blocks, allocated = struct.unpack_from("<QIII", block, 352)
    return Header(block[:MAGIC_AT], VERSION_0, kind, V0_END, V0_END + 4 * blocks, sector, size, unit, 0, blocks,
                  allocated, _guid(block, 372), _guid(block, 388), _guid(block, 404), uuid.UUID(int=0), V0_END)


def read_header(reader: Reader, offset: int) -> Header:
    """The header at `offset` of the reader, or Damaged with the first value that cannot be."""
    block = reader.read(offset, HEADER_BYTES)
    if len(block) < HEADER_BYTES or reader.missing(offset, HEADER_BYTES):
        raise Damaged("VDI header is not there", offset=offset)
    version = int.from_bytes(block[MAGIC_AT + 4 : MAGIC_AT + 8], "little")
    if block[MAGIC_AT : MAGIC_AT + 4] != MAGIC or version not in (VERSION_0, VERSION_1):
        raise Damaged("not a VDI header", offset=offset)
    h = _parse_v1(block) if version == VERSION_1 else _parse_v0(block)
    rules = [
        ("cbHeader", h.end - V1_START, version == VERSION_0 or V1_LEAST <= h.end - V1_START <= OUR_MAX_HEADER,
         "384 to 4096"),
        ("u32Type", h.kind, h.kind in TYPES, "1 to 4"),
        ("cbSector", h.sector, h.sector in (0, 512), "512"),
        ("cbBlock", h.block, MIN_BLOCK <= h.block <= MAX_BLOCK and h.block & (h.block - 1) == 0,
         "a power of two, 128 KiB to 128 MiB"),
        ("cbBlockExtra", h.extra, h.extra & (h.extra - 1) == 0 and h.extra <= h.block, "0 or a power of two"),
        ("cBlocks", h.blocks, 0 < h.blocks * 4 <= OUR_MAX_MAP, "within 64 MiB of map"),
        ("cbDisk", h.size, 0 < h.size <= h.blocks * h.block, "1 byte to what the blocks hold"),
        ("cBlocksAllocated", h.allocated, h.allocated <= h.blocks, f"at most {h.blocks}"),
        ("offBlocks", h.map_offset, h.map_offset >= h.end, "behind the header"),
        ("offData", h.data_offset, h.data_offset >= h.map_offset + 4 * h.blocks, "behind the map"),
        ("uuidCreate", str(h.created), h.created.int != 0, "not nil"),
        ("uuidModify", str(h.modified), h.modified.int != 0, "not nil"),
    ]
    for name, value, ok, bound in rules:
        if not ok:
            raise Damaged("VDI header", offset=offset, field=name, value=value, bound=bound)
    return h


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A header whose every field is in bounds."""
    try:
        h = read_header(reader, offset)
    except Damaged:
        return None
    return Evidence(KIND, offset, h.end, container_offset=0, identity=_identity(h.created), value=h.size)


def _identity(guid: uuid.UUID) -> str:
    return f"vdi-uuid:{guid}"


def _system(text: bytes) -> str:
    """The writer, from the free text before the magic (older VirtualBox: innotek, Sun; QEMU: seen)."""
    if b"QEMU" in text:
        return "QEMU"
    vendors = (b"VirtualBox", b"innotek", b"Sun", b"Oracle")
    return "VirtualBox" if any(word in text for word in vendors) else ""


def _resolve(h: Header, entry: I64, known: Bools) -> tuple[U8, I64, list[Check]]:
    """State and file offset of each block. Impossible entries spoil the host block of map that they lie in."""
    number = np.where(known & (entry < ZERO), entry, -1)
    outside = number >= h.allocated
    bad = outside | named_twice(np.where(outside, -1, number))
    spoilt = spread((bad & known)[None, :], (known & (entry != FREE))[None, :], 4, h.map_offset)[0] & ~bad
    bad = outside | spoilt
    bad |= named_twice(np.where(bad, -1, number))
    lost = bad | ~known
    if h.kind == FIXED and not (number[known] != np.flatnonzero(known)).any():
        number = np.arange(h.blocks, dtype=np.int64)  # identity wherever the map can be read, so it was elsewhere too
        lost = number >= h.allocated
    state = np.where(entry == ZERO, HOLE, np.where(entry == FREE, UNALLOCATED, DATA))
    if h.kind == FIXED:
        state = np.where(known, state, DATA)
    state = np.where(lost, LOST, state).astype(np.uint8)
    data = state == DATA
    host = np.where(data, h.data_offset + number * h.stride + h.extra, -1)
    checks = [
        Check("vdi.map-read", bool(known.all()), f"{int((~known).sum())} of {h.blocks} map entries are missing", False),
        Check("vdi.entries-inside", not outside.any(), f"{int(outside.sum())} entries beyond the last block"),
        Check("vdi.entries-unique", not (bad & ~outside).any(), f"{int((bad & ~outside).sum())} entries in doubt"),
        Check("vdi.permutation", int(data.sum()) == h.allocated,
              f"{int(data.sum())} blocks placed, {h.allocated} allocated",
              int(data.sum()) + int(lost.sum()) < h.allocated),  # else the lost entries account for it
    ]
    return state, host, checks


def open_container(reader: Reader) -> Container:
    """Reads the map; entries that are missing, repeated or beyond the last block become LOST."""
    h = read_header(reader, 0)
    raw, known = read_words(reader, h.map_offset, h.blocks, "<u4")
    state, host, checks = _resolve(h, raw.astype(np.int64), known)
    full = all(c.ok for c in checks)
    old = "-v0" if h.version == VERSION_0 else ""
    container = Container(
        "vdi", TYPES[h.kind] + old, h.data_offset + h.allocated * h.stride,
        [GuestDisk(h.size, unit_map(h.size, h.block, state, host))], system=_system(h.text), cluster=h.block,
        size_exact=checks[-1].ok, uuid=str(h.created), identities=[_identity(h.created)], checks=checks,
        regions=[*regions("vdi.header", [0], [h.end], SUPPORTED),
                 *regions("vdi.map", [h.map_offset], [4 * h.blocks], PROVEN if full else SUPPORTED)],
        detail={"writer": show_name(h.text).strip(), "uuid-modify": str(h.modified)},
    )
    if h.kind in WITH_PARENT:
        linked = h.linkage.int != 0
        container.checks.append(Check("vdi.parent-named", linked, "" if linked else "the parent's UUID is nil", False))
        if linked:
            # the parent was not written since when its own modify UUID is this one
            container.parent = ParentLink(_identity(h.linkage), None, {"uuid-modify": str(h.parent_modified)})
    return container


def wants(reader: Reader) -> list[Want]:
    """What of the map is not in its place."""
    try:
        h = read_header(reader, 0)
    except Damaged:
        return []
    return [] if h.map_offset % 4 else map_wants(reader, h.map_offset, h.blocks, h.allocated)


FORMAT = Format(name="vdi", extension="vdi", signatures=SIGNATURES, open=open_container, confirm=confirm,
                qemu_name="vdi", wants=wants, shapes=shapes, rows=ROWS,
                rebuild=lambda reader, clue: rebuild_container(reader, clue, open_container), stow=stow)
