"""Proxmox VMA: a header with device sizes and configurations, then extents that each say where their blocks belong.

    header (12288 bytes and the blobs) | extent header 512 | up to 59 * 16 blocks of 4096 | extent header | ...

Source: pve-qemu `vma_spec.txt`, `vma.h`, `vma-writer.c`. Integers are big-endian, the lengths of blobs little-endian.
Header and extent headers carry an MD5 over themselves; the payload has none. So the map follows from extents alone, and
an extent that is not followed by the next one hides a break somewhere inside its payload: its blocks are lost, not
guessed. Checked with dissect.archive 1.8 on archives of our own writer.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import (
    DATA,
    HOLE,
    LOST,
    PROVEN,
    SECTOR,
    UNALLOCATED,
    Check,
    Container,
    Evidence,
    Format,
    Gathered,
    GuestDisk,
    GuestMap,
    Marks,
    Orphan,
    Reader,
    Region,
    Signature,
)
from ._vma_gather import Extent, lay_out
from ._vma_stowed import stow

MAGIC, EXTENT_MAGIC = b"VMA\0\0\0\0\x01", b"VMAE\0\0"  # the header's with its version
HEADER_KIND, EXTENT_KIND = "vma.header", "vma.extent"
SIGNATURES = (
    Signature(MAGIC, HEADER_KIND, also=(56, b"\xfe\0\x01\xff", bytes(4))),  # a size of whole sectors, at most 16 MiB
    Signature(EXTENT_MAGIC, EXTENT_KIND, also=(42, b"\xff\0\0\0\0\0\0\0\xff", bytes(9))),  # reserved in two infos
)

HEADER_MIN = 12288  # bytes before the blobs: vma.h, sizeof(VmaHeader)
EXTENT_HEADER = 512
ROWS = 59  # block infos in an extent header
BLOCK, CLUSTER = 4096, 65536
BITS = CLUSTER // BLOCK
EXTENT_MAX = EXTENT_HEADER + ROWS * CLUSTER
RAM_DEVICE = "vmstate"
ROW = np.dtype([("mask", ">u2"), ("zero", "u1"), ("device", "u1"), ("cluster", ">u4")])

OUR_MAX_HEADER = 16 << 20  # bytes; 512 blobs of at most 64 KiB would be 32 MiB, real ones have a few KiB
OUR_MAX_EXTENTS = 1 << 19  # of 3.7 MiB at most: 1.9 TiB
OUR_MAX_RUNS = 1 << 24
OUR_MAX_DEVICE = 1 << 48  # bytes: all that 32 bits of cluster numbers reach
OUR_MAX_SEARCH = 256 << 20  # bytes searched for the next extent behind all breaks together
OUR_RESYNC = 16 << 20  # bytes searched behind one break
OUR_MAX_BREAKS = 256

Int64s = npt.NDArray[np.int64]
_ONES = np.array([i.bit_count() for i in range(1 << BITS)], np.int64)


def _sum_agrees(data: bytes, at: int) -> bool:
    """MD5 at byte `at` over `data` with the sum itself zero."""
    return hashlib.md5(data[:at] + bytes(16) + data[at + 16 :], usedforsecurity=False).digest() == data[at : at + 16]


# --- header --------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Header:
    """What the header tells; devices: id -> (name, size in bytes)."""

    uuid: str
    size: int
    sound: bool
    created: int = 0
    devices: dict[int, tuple[str, int]] = field(default_factory=dict[int, tuple[str, int]])
    configs: list[str] = field(default_factory=list[str])


def _read_header(reader: Reader, offset: int) -> _Header | None:
    """The header at `offset`; `sound` is False (and only uuid and size are given) when its MD5 does not agree."""
    fixed = reader.read(offset, 64)
    if len(fixed) < 64 or fixed[:8] != MAGIC:
        return None
    (size,) = struct.unpack_from(">I", fixed, 56)
    if not HEADER_MIN <= size <= OUR_MAX_HEADER or size % SECTOR:
        return None
    uuid = str(UUID(bytes=fixed[8:24]))
    data = reader.read(offset, size)
    if len(data) < size or not _sum_agrees(data, 32):
        return _Header(uuid, size, False)
    created, _, blob_offset, blob_size = struct.unpack_from(">q16sII", data, 24)
    header = _Header(uuid, size, True, created)
    blobs = data[blob_offset : blob_offset + blob_size]
    names, contents = np.frombuffer(data, ">u4", 256, 2044).tolist(), np.frombuffer(data, ">u4", 256, 3068).tolist()
    header.configs = [name for n, c in zip(names, contents, strict=True) if n and c and (name := _text(blobs, n))]
    for device in range(1, 255):
        name, _, length = struct.unpack_from(">IIQ", data, 4096 + 32 * device)
        if name and 0 < length <= OUR_MAX_DEVICE:
            header.devices[device] = (_text(blobs, name) or f"device {device}", length)
    return header


def _text(blobs: bytes, offset: int) -> str:
    """A blob's text up to its NUL, as it may be shown; "" when the blob is not inside the buffer."""
    length = int.from_bytes(blobs[offset : offset + 2], "little")
    data = blobs[offset + 2 : offset + 2 + min(length, 256)]
    text = data.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


# --- extents -------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Extents:
    """Extent headers in archive order; offsets are the reader's. whole: the payload is followed by what must follow."""

    uuid: str
    offset: list[int] = field(default_factory=list[int])
    rows: list[bytes] = field(default_factory=list[bytes])
    blocks: list[int] = field(default_factory=list[int])
    whole: list[bool] = field(default_factory=list[bool])
    breaks: list[int] = field(default_factory=list[int])

    def add(self, offset: int, data: bytes) -> int:
        """Takes an extent; returns where the next one must begin."""
        (blocks,) = struct.unpack_from(">H", data, 6)
        self.offset.append(offset)
        self.rows.append(data[40:EXTENT_HEADER])
        self.blocks.append(blocks)
        self.whole.append(True)
        return offset + EXTENT_HEADER + BLOCK * blocks


def _extent_at(reader: Reader, offset: int) -> bytes | None:
    """The extent header at `offset` when magic, MD5 and block count agree."""
    return _extent(reader.read(offset, EXTENT_HEADER))


def _extent(data: bytes) -> bytes | None:
    """The same of its bytes."""
    if len(data) < EXTENT_HEADER or data[:6] != EXTENT_MAGIC or not _sum_agrees(data, 24):
        return None
    rows = np.frombuffer(data, ROW, ROWS, 40)
    (blocks,) = struct.unpack_from(">H", data, 6)
    if int(_ONES[rows["mask"]].sum()) != blocks or rows["zero"].any():
        return None
    return data


def _uuid_of(data: bytes) -> str:
    return str(UUID(bytes=data[8:24]))


def _walk(reader: Reader, start: int, uuid: str | None) -> tuple[_Extents, int]:
    """Extents of one archive from `start` on, and where the last one ends. uuid None: that of the first one found."""
    found = _Extents(uuid or "")
    at, budget = start, OUR_MAX_SEARCH
    while len(found.offset) < OUR_MAX_EXTENTS and at < reader.size:
        data = _extent_at(reader, at)
        if data is not None and (not found.uuid or _uuid_of(data) == found.uuid):
            found.uuid = _uuid_of(data)
            at = found.add(at, data)
            continue
        if len(found.breaks) >= OUR_MAX_BREAKS or budget <= 0:
            break
        # an extent header damaged where it must be says nothing against the payload before it
        trace = reader.read(at, 24)
        in_place = reader.missing(at, EXTENT_HEADER) or trace[:4] == EXTENT_MAGIC[:4] or (
            bool(found.uuid) and trace[8:24] == UUID(found.uuid).bytes)
        low = at + SECTOR if in_place or not found.offset else found.offset[-1] + EXTENT_HEADER
        again, used = _search(reader, low, min(at + OUR_RESYNC, reader.size, low + budget), found.uuid)
        budget -= used
        if again is None:
            break
        if found.offset and not in_place:
            found.whole[-1] = False
        found.breaks.append(at)
        at = again
    return found, at


def _search(reader: Reader, low: int, high: int, uuid: str) -> tuple[int | None, int]:
    """The first extent of archive `uuid` ("": any) that starts at a sector of [low, high), and the bytes read."""
    mark = int.from_bytes(EXTENT_MAGIC[:4], "little")
    used = 0
    for start in range(low, high, 1 << 20):
        data = reader.read(start, min(1 << 20, high - start))
        used += len(data)
        words = np.frombuffer(data[: len(data) // SECTOR * SECTOR], "<u4")[:: SECTOR // 4]
        for i in np.flatnonzero(words == mark).tolist():
            header = _extent_at(reader, start + i * SECTOR)
            if header is not None and (not uuid or _uuid_of(header) == uuid):
                return start + i * SECTOR, used
    return None, used


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """Only what its MD5 covers: the header pins the archive's start, an extent names its archive.

    An extent header is not on the guest's disk itself, so it claims no guest_offset. value: bytes of the header, or the
    number of 4 KiB blocks that follow an extent header.
    """
    if signature.kind == HEADER_KIND:
        header = _read_header(reader, offset)
        if header is None or not header.sound:
            return None
        return Evidence(HEADER_KIND, offset, header.size, container_offset=0, identity=header.uuid, value=header.size)
    data = _extent_at(reader, offset)
    if data is None:
        return None
    (blocks,) = struct.unpack_from(">H", data, 6)
    return Evidence(EXTENT_KIND, offset, EXTENT_HEADER, identity=_uuid_of(data), value=blocks)


# --- maps ----------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Table:
    """One row per cluster of all extents: device, cluster, mask, reader offset of its first stored block, whole."""

    device: Int64s
    cluster: Int64s
    mask: Int64s
    offset: Int64s
    whole: npt.NDArray[np.bool_]


def _table(extents: _Extents) -> _Table:
    rows = np.frombuffer(b"".join(extents.rows), ROW).reshape(-1, ROWS)
    count = _ONES[rows["mask"]]
    first = np.array(extents.offset, np.int64)[:, None] + EXTENT_HEADER
    offset = first + BLOCK * (np.cumsum(count, axis=1) - count)
    used = rows["device"] != 0
    whole = np.broadcast_to(np.array(extents.whole, bool)[:, None], rows.shape)
    return _Table(rows["device"][used].astype(np.int64), rows["cluster"][used].astype(np.int64),
                  rows["mask"][used].astype(np.int64), offset[used], whole[used])


def _device_map(table: _Table, device: int, size: int, ram: bool, limit: int) -> tuple[GuestMap, str]:
    """The map of one device (reader offsets, none at or beyond `limit`), and what is wrong with it ("" if nothing)."""
    mine = table.device == device
    order = np.argsort(table.cluster[mine], kind="stable")
    cluster, mask = table.cluster[mine][order], table.mask[mine][order]
    offset, whole = table.offset[mine][order], table.whole[mine][order]
    inside = cluster * CLUSTER < size
    trouble = [] if inside.all() else [f"{int((~inside).sum())} clusters beyond its end"]
    cluster, mask, offset, whole = cluster[inside], mask[inside], offset[inside], whole[inside]
    _, first, count = np.unique(cluster, return_index=True, return_counts=True)
    if (count > 1).any():
        trouble.append(f"{int((count > 1).sum())} clusters claimed twice")
    if len(cluster) and not whole.all():
        trouble.append(f"{int((~whole).sum())} clusters in extents that break off")
    bad = (count > 1) | (~whole[first] & (mask[first] != 0))
    cluster, mask, offset = cluster[first], mask[first], offset[first]
    part = ~bad & (mask != 0) & (mask != 0xFFFF)
    if len(cluster) + int(part.sum()) * BITS > OUR_MAX_RUNS:
        raise Damaged("VMA: not supported: the map is too large", field="runs", value=len(cluster), bound=OUR_MAX_RUNS)
    state = np.where(bad, LOST, np.where(mask == 0, HOLE, DATA))[~part]
    # clusters of which only some blocks are stored: one entry per block
    bit = np.arange(BITS, dtype=np.int64)
    stored = (mask[part][:, None] >> bit) & 1
    block = offset[part][:, None] + BLOCK * (np.cumsum(stored, axis=1) - stored)
    g = np.concatenate((cluster[~part] * CLUSTER, (cluster[part][:, None] * CLUSTER + bit * BLOCK).ravel()))
    n = np.concatenate((np.full(len(state), CLUSTER), np.full(stored.size, BLOCK)))
    s = np.concatenate((state, np.where(stored.ravel() != 0, DATA, HOLE)))
    f = np.concatenate((offset[~part], block.ravel()))
    # clusters that no extent names, as one run each
    edge = np.concatenate(([-1], cluster, [-(-size // CLUSTER)]))
    gap = np.flatnonzero(np.diff(edge) > 1)
    gap_state = np.full(len(gap), LOST)
    if len(gap) and ram and gap[-1] == len(edge) - 2:
        gap_state[-1] = UNALLOCATED  # RAM is written until its end, which lies before the device's
    if (gap_state == LOST).any():
        trouble.append(f"{int((np.diff(edge)[gap] - 1)[gap_state == LOST].sum())} clusters in no extent")
    g = np.concatenate((g, (edge[gap] + 1) * CLUSTER))
    n = np.concatenate((n, (np.diff(edge)[gap] - 1) * CLUSTER))
    s = np.concatenate((s, gap_state))
    f = np.concatenate((f, np.full(len(gap), -1)))
    order = np.argsort(g, kind="stable")
    g, n, s, f = g[order], np.minimum(n, size - g)[order], s[order], f[order]
    beyond = (s == DATA) & (f + n > limit)
    if beyond.any():
        trouble.append(f"{int(n[beyond].sum())} bytes beyond the end of the archive")
        s = np.where(beyond, LOST, s)
    return GuestMap.build(g, n, s, np.where(s == DATA, f, -1)), "; ".join(trouble)


def _last_extent(extents: _Extents, header: _Header | None) -> None:
    """The last extent, which nothing follows that could confirm it: it breaks off too if clusters are still to come."""
    if header is None or not header.sound:
        extents.whole[-1] = not extents.breaks
        return
    table = _table(extents)
    for device, (name, size) in header.devices.items():
        seen = np.unique(table.cluster[(table.device == device) & (table.cluster * CLUSTER < size)])
        if len(seen) < -(-size // CLUSTER) and name != RAM_DEVICE:
            extents.whole[-1] = False


def _guests(out: Container, extents: _Extents, header: _Header | None, limit: int) -> None:
    """Adds one guest per device to `out`, with what is wrong with each as checks."""
    table = _table(extents)
    devices = dict(header.devices) if header is not None and header.sound else {}
    for device in np.unique(table.device).tolist():
        if device not in devices:
            top = int(table.cluster[table.device == device].max()) + 1
            devices[device] = (f"device {device}", top * CLUSTER)
    for device, (name, size) in sorted(devices.items()):
        ram = name == RAM_DEVICE
        guest_map, trouble = _device_map(table, device, size, ram, limit)
        created = float(header.created) if header is not None and header.sound and header.created > 0 else None
        out.guests.append(GuestDisk(size, guest_map, "member", name, created))
        out.checks.append(Check("vma.device", not trouble, f"{name}: {trouble}" if trouble else ""))
        out.detail[name] = f"{size} bytes" + (", RAM of the machine, not a disk" if ram else "")
    out.regions += [Region(at, EXTENT_HEADER, EXTENT_KIND, PROVEN) for at in extents.offset]
    gaps = f"{len(extents.breaks)} breaks, the first at {extents.breaks[0]:#x}" if extents.breaks else ""
    out.checks.append(Check("vma.extents", not gaps, gaps, False))


def _container(uuid: str, size: int) -> Container:
    return Container("vma", "1", size, [], system="Proxmox VE", cluster=CLUSTER, uuid=uuid, identities=[uuid],
                     rebuild=False)


def open_vma(reader: Reader) -> Container:
    """Header, then every extent header; the payload is not read. A damaged header costs names and sizes only."""
    header = _read_header(reader, 0)
    if header is None and not reader.missing(0, 64):
        raise Damaged("no VMA: magic, version or header size", offset=0)
    start = header.size if header is not None and header.sound else HEADER_MIN
    extents, end = _walk(reader, start, header.uuid if header is not None else None)
    if not extents.offset and (header is None or not header.sound):
        raise Damaged("no VMA: the header's MD5 does not agree, and no extent follows", offset=32)
    sound = header is not None and header.sound
    if extents.offset and end < reader.size and not reader.missing(end, EXTENT_HEADER):
        _last_extent(extents, header)
    end = min(end, reader.size)
    out = _container(extents.uuid, max(end, start if sound else 0))
    out.checks.append(Check("vma.header", sound, "" if sound else "MD5 does not agree: device sizes from extents",
                            False))
    if header is not None and sound:
        out.names = list(header.configs)
        out.regions.append(Region(0, header.size, HEADER_KIND, PROVEN))
    _guests(out, extents, header, end)
    return out


# --- without header or in pieces -----------------------------------------------------------------------------------
def salvage(reader: Reader, evidence: Sequence[Evidence]) -> Iterable[Orphan]:
    """Extents grouped by the archive's UUID, wherever they lie; a header of that UUID gives names and sizes."""
    groups: dict[str, list[int]] = {}
    headers: dict[str, _Header] = {}
    for e in evidence:
        if e.kind == HEADER_KIND and e.identity is not None:
            header = _read_header(reader, e.image_offset)
            if header is not None and header.sound:
                headers[header.uuid] = header
        elif e.kind == EXTENT_KIND and e.identity is not None:
            groups.setdefault(e.identity, []).append(e.image_offset)
    for uuid, offsets in groups.items():
        orphan = _orphan(reader, uuid, sorted(set(offsets)), headers.get(uuid))
        if orphan is not None:
            yield orphan


def _orphan(reader: Reader, uuid: str, offsets: list[int], header: _Header | None) -> Orphan | None:
    """One archive from extents at these image offsets. File offsets are made up: the runs in image order, one behind
    the other."""
    extents = _Extents(uuid)
    runs = list(_runs(reader, offsets, extents))
    if not extents.offset:
        return None
    _last_extent(extents, header)
    length = np.array([n for _, n in runs], np.int64)
    image = np.array([p for p, _ in runs], np.int64)
    start = np.cumsum(length) - length
    out = _container(uuid, int(length.sum()))
    out.size_exact = False
    known = header is not None
    out.checks.append(Check("vma.header", known, "" if known else "no header: device sizes from the last cluster seen",
                            False))
    if header is not None:
        out.names = list(header.configs)
    _guests(out, extents, header, reader.size)
    for offset in [g.map.file_offset for g in out.guests]:
        used = offset >= 0
        i = np.searchsorted(image, offset[used], side="right") - 1
        offset[used] = offset[used] - image[i] + start[i]
    for region in out.regions:
        i = int(np.searchsorted(image, region.file_offset, side="right")) - 1
        region.file_offset = int(region.file_offset - image[i] + start[i])
    return Orphan(out, np.stack((start, image, length), axis=1), "vma.extents")


def _runs(reader: Reader, offsets: list[int], extents: _Extents) -> Iterator[tuple[int, int]]:
    """(image_offset, length) of the parts that hold extents and payload; extents that break off are marked."""
    start = at = -1
    for offset in offsets:
        data = _extent_at(reader, offset)
        if data is None or len(extents.offset) >= OUR_MAX_EXTENTS:
            continue
        if offset < at:  # it lies inside the extent before: foreign bytes were let in, or it is a guest's own archive
            extents.whole[-1] = False
            yield start, offset - start
            start = offset
            extents.breaks.append(offset)
        elif offset > at >= 0:
            extents.whole[-1] = reader.missing(at, EXTENT_HEADER) or reader.read(at, 4) == EXTENT_MAGIC[:4]
            yield start, at - start
            start = offset
            extents.breaks.append(at)
        elif start < 0:
            start = offset
        at = min(extents.add(offset, data), reader.size)
    if start >= 0:
        yield start, at - start


def marks(sectors: npt.NDArray[np.uint8], image_offset: Int64s) -> Marks:
    """Extent headers whose MD5 agrees; the key is the archive's."""
    first = np.ascontiguousarray(sectors[:, :4]).view("<u4")[:, 0]
    rows: list[tuple[int, int, int]] = []
    for i in np.flatnonzero(first == int.from_bytes(EXTENT_MAGIC[:4], "little")).tolist():
        data = _extent(sectors[i].tobytes())
        if data is not None:
            (blocks,) = struct.unpack_from(">H", data, 6)
            rows.append((int(image_offset[i]), _key(data[8:24]), EXTENT_HEADER + BLOCK * blocks))
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Marks(table[:, 0], table[:, 1], table[:, 2])


def _key(uuid: bytes) -> int:
    return int.from_bytes(uuid[:8], "big") >> 1


def gather(image: Reader, start: int, reader: Reader, found: Marks) -> Gathered | None:
    """The archive whose header lies at image offset `start`, its extents anywhere."""
    header = _read_header(reader, 0)
    if header is None or not header.sound:
        return None
    members, headers = _members(image, found, _key(UUID(header.uuid).bytes))
    members = [e for e in members if _uuid_of(headers[e.image_offset]) == header.uuid]
    if not members:
        return None
    order, size = lay_out(start, header.size, members)
    return _gathered(start, header.uuid, header, order, headers, size)


def loose(image: Reader, found: Marks) -> Iterator[Gathered]:
    """Archives without their header: device sizes are those of the clusters that are seen."""
    for key in np.unique(found.key).tolist():
        members, headers = _members(image, found, key)
        if not members:
            continue
        first = min(e.image_offset for e in members)
        inside = first % BLOCK  # as far as a header of whole blocks would have it
        start = first - inside - HEADER_MIN
        if start < 0:
            continue
        order, size = lay_out(start, HEADER_MIN + inside, members)
        yield _gathered(start, _uuid_of(headers[first]), None, order, headers, size)


def _members(image: Reader, found: Marks, key: int) -> tuple[list[Extent], dict[int, bytes]]:
    """The extents of one key, and their headers by image offset."""
    members: list[Extent] = []
    headers: dict[int, bytes] = {}
    mine = found.key == key
    for p, span in zip(found.image_offset[mine].tolist(), found.span[mine].tolist(), strict=True):
        data = _extent_at(image, p)
        if data is None or len(members) >= OUR_MAX_EXTENTS:
            continue
        rows = np.frombuffer(data, ROW, ROWS, 40)
        used = rows[rows["device"] != 0]
        ends = [(int(r["device"]), int(r["cluster"])) for r in (used[[0, -1]] if len(used) else ())]
        members.append(Extent(p, span, ends[0] if ends else (0, -1), ends[1] if ends else (0, -1)))
        headers[p] = data
    return members, headers


def _gathered(start: int, uuid: str, header: _Header | None, order: list[tuple[int, Extent]], headers: dict[int, bytes],
              size: int) -> Gathered:
    extents = _Extents(uuid)
    for f, e in order:
        extents.add(f, headers[e.image_offset])
    out = _container(uuid, size)
    out.size_exact = False
    pins = [(f, e.image_offset, EXTENT_HEADER) for f, e in order]
    if header is not None:
        out.names = list(header.configs)
        out.regions.append(Region(0, header.size, HEADER_KIND, PROVEN))
        pins.insert(0, (0, start, header.size))
    else:
        out.checks.append(Check("vma.header", False, "no header: device sizes from the last cluster seen", False))
    _guests(out, extents, header, size)
    return Gathered(out, None, np.array(pins, np.int64), start)


def _rows(data: bytes) -> npt.NDArray[np.void] | None:
    return None if _extent(data) is None else np.frombuffer(data, ROW, ROWS, 40)


FORMAT = Format("vma", "vma", SIGNATURES, open_vma, confirm, salvage=salvage, marks=marks, gather=gather,
                loose=loose, stow=lambda reader: stow(reader, _rows))
