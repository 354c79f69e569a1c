"""Btrfs on disk: superblock copies, the chunk map from logical to physical addresses, nodes and walks over trees.

Source: the on-disk format page of the Btrfs documentation and Linux include/uapi/linux/btrfs_tree.h, checked against
mkfs.btrfs 6.2 / Linux 6.18. All numbers little-endian. Logical addresses are the file system's own; physical ones
count from the start of the device, which is the volume's start.
"""

from __future__ import annotations

import bisect
import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from ..blocks import Blocks
from ..checksums import crc32c, crc32c_rows
from ..model import Reader
from ._space import Runs

SUPER_BYTES = 4096
SUPER_AT = (64 << 10, 64 << 20, 256 << 30)  # physical addresses of the copies
SUPER_ROOM = 64 << 10  # bytes that the allocator keeps off around each copy
RESERVED = 1 << 20  # bytes at the start of a device in which no chunk lies
MAGIC = b"_BHRfS_M"
METADATA_UUID = 1 << 10  # incompat flag: nodes carry another id than the superblock's fsid
HEADER_BYTES = 101
MAX_LEVEL = 8
CRC32C, XXHASH, SHA256, BLAKE2 = range(4)  # csum_type
DATA, SYSTEM, METADATA = 1, 2, 4  # chunk types
SPLIT_PROFILES = 1 << 3 | 1 << 6 | 1 << 7 | 1 << 8  # RAID0, RAID10, RAID5, RAID6: one device holds strips only
CHUNK_ITEM = 228
OUR_MAX_CHUNKS = 1 << 18  # 256 TiB of chunks of 1 GiB
OUR_MAX_SPLITS = 64  # chunks that one extent may reach through; sound ones lie in one
READ_AHEAD = 32  # children of one node that are read together
WALKS = 64  # how often all metadata may be walked over before a volume counts as hostile

U8s = npt.NDArray[np.uint8]
# objectid, type, key offset, data offset behind the header, data bytes
ITEM = np.dtype([("id", "<u8"), ("type", "u1"), ("offset", "<u8"), ("at", "<u4"), ("size", "<u4")])
POINTER = np.dtype([("id", "<u8"), ("type", "u1"), ("offset", "<u8"), ("block", "<u8"), ("generation", "<u8")])


def checksum(kind: int, data: bytes | memoryview) -> bytes:
    """The checksum of csum_type `kind`, as the 32-byte field begins; b"" for an unknown type."""
    if kind == CRC32C:
        return struct.pack("<I", crc32c(data))
    if kind == XXHASH:
        return struct.pack("<Q", xxhash.xxh64_intdigest(data))
    if kind == SHA256:
        return hashlib.sha256(data).digest()
    if kind == BLAKE2:
        return hashlib.blake2b(data, digest_size=32).digest()
    return b""


def sound_rows(kind: int, nodes: U8s | Blocks) -> npt.NDArray[np.bool_]:
    """Which rows of uint8[n, nodesize] keep their checksum. Of C-contiguous ones none is copied for a CRC-32C."""
    rows = Blocks.of(nodes)
    if kind == CRC32C:
        return rows.field(0, "<u4") == crc32c_rows(rows.part(32, rows.size - 32))
    sums = ((checksum(kind, row[32:].tobytes()), row) for row in (rows[i] for i in range(len(rows))))
    return np.array([bool(s) and row[: len(s)].tobytes() == s for s, row in sums], np.bool_)


@dataclass(frozen=True, slots=True)
class Super:
    """One superblock copy. total: bytes of this device; node_id: what nodes carry as their fsid."""

    fsid: bytes
    node_id: bytes
    generation: int
    root: int
    root_level: int
    chunk_root: int
    chunk_level: int
    total: int
    device: int
    sector: int
    node: int
    csum: int
    label: str
    system_chunks: bytes
    log: int = 0  # logical address of the tree of log trees, 0: none
    log_level: int = 0


def parse_super(block: bytes, physical: int) -> Super | None:
    """A superblock copy that belongs at `physical`, or None when it is none or its checksum fails."""
    if len(block) < SUPER_BYTES or block[0x40:0x48] != MAGIC:
        return None
    (at,), (kind,) = struct.unpack_from("<Q", block, 0x30), struct.unpack_from("<H", block, 0xC4)
    csum = checksum(kind, block[32:SUPER_BYTES])
    if at != physical or not csum or block[: len(csum)] != csum:
        return None
    generation, root, chunk_root = struct.unpack_from("<QQQ", block, 0x48)
    sector, node, _, _, system = struct.unpack_from("<IIIII", block, 0x90)
    (incompat,) = struct.unpack_from("<Q", block, 0xBC)
    device, total = struct.unpack_from("<QQ", block, 0xC9)
    if node & (node - 1) or not 4096 <= node <= 65536 or sector & (sector - 1) or not 512 <= sector <= 65536:
        return None
    if system > 2048 or block[0xC6] >= MAX_LEVEL or block[0xC7] >= MAX_LEVEL or not 0 < total < 1 << 62:
        return None
    fsid = block[0x20:0x30]
    label = block[0x12B:0x22B].split(b"\0")[0].decode("utf-8", "replace")
    return Super(fsid, block[0x23B:0x24B] if incompat & METADATA_UUID else fsid, generation, root, block[0xC6],
                 chunk_root, block[0xC7], total, device, sector, node, kind, label,
                 block[0x32B : 0x32B + system], int.from_bytes(block[0x60:0x68], "little"),
                 min(block[0xC8], MAX_LEVEL - 1))  # fmt: skip


def read_super(reader: Reader, offset: int, limit: int) -> Super | None:
    """The newest sound superblock copy of the volume at image offset `offset`."""
    found = [parse_super(reader.read(offset + at, SUPER_BYTES), at) for at in SUPER_AT if at + SUPER_BYTES <= limit]
    return max((s for s in found if s is not None), key=lambda s: s.generation, default=None)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of logical addresses. copies: physical addresses on this device ((): not readable here)."""

    logical: int
    length: int
    kind: int
    copies: tuple[int, ...]


def parse_chunk(logical: int, item: bytes, device: int, total: int) -> Chunk | None:
    """A CHUNK_ITEM; None when it makes no sense or reaches out of this device of `total` bytes."""
    if len(item) < 80:
        return None
    length, _, _, kind = struct.unpack_from("<QQQQ", item, 0)
    (stripes,) = struct.unpack_from("<H", item, 44)
    if not 0 < length < 1 << 56 or logical + length >= 1 << 62 or logical % 512 or not stripes:
        return None
    if len(item) < 48 + 32 * stripes:
        return None
    places = [struct.unpack_from("<QQ", item, 48 + 32 * i) for i in range(stripes)]
    if kind & SPLIT_PROFILES:
        return Chunk(logical, length, kind, ())
    copies = tuple(at for where, at in places if where == device)
    if any(at + length > total for at in copies):
        return None
    return Chunk(logical, length, kind, copies)


class Chunks:
    """Chunks by logical address, without overlap; of two that overlap the one added first stays."""

    def __init__(self, chunks: Iterable[Chunk] = ()) -> None:
        kept: list[Chunk] = []
        end = 0
        for chunk in sorted(chunks, key=lambda c: c.logical)[:OUR_MAX_CHUNKS]:
            if chunk.logical >= end:
                kept.append(chunk)
                end = chunk.logical + chunk.length
        self.all = kept
        self._start = np.array([c.logical for c in kept], np.int64)
        self._length = np.array([c.length for c in kept], np.int64)
        self._copy = np.array([c.copies[0] if c.copies else -1 for c in kept], np.int64)

    def with_more(self, chunks: Iterable[Chunk]) -> tuple[Chunks, list[Chunk]]:
        """These and those of `chunks` that overlap none of them, nor an earlier one; and which those are."""
        starts = [c.logical for c in self.all]
        ends = [c.logical + c.length for c in self.all]
        added: list[Chunk] = []
        for chunk in chunks:
            i = bisect.bisect_left(starts, chunk.logical + chunk.length)
            if (i and ends[i - 1] > chunk.logical) or len(starts) >= OUR_MAX_CHUNKS:
                continue
            starts.insert(i, chunk.logical)
            ends.insert(i, chunk.logical + chunk.length)
            added.append(chunk)
        return Chunks([*self.all, *added]), added

    def copies(self, logical: int, length: int) -> list[int]:
        """Physical addresses of [logical, logical + length) if it lies inside one chunk."""
        i = int(np.searchsorted(self._start, logical, "right")) - 1 if 0 <= logical < 1 << 62 else -1
        if i < 0 or logical + length > int(self._start[i] + self._length[i]):
            return []
        return [at + logical - int(self._start[i]) for at in self.all[i].copies]

    def split(self, rows: Runs) -> tuple[Runs, bool]:
        """Logical ranges as physical ones, split where chunks end, and whether every byte has a place here.

        rows: int64[n, 3] of (file_offset, logical, length); returns the same with physical addresses, rising.
        """
        parts = [np.zeros((0, 3), np.int64)]
        whole = True
        for _ in range(OUR_MAX_SPLITS):
            if not len(rows) or not self.all:
                break
            i = np.searchsorted(self._start, rows[:, 1], "right") - 1
            inside = (i >= 0) & (rows[:, 1] < (self._start + self._length)[i])
            whole &= bool(inside.all())
            rows, i = rows[inside], i[inside]
            part = np.minimum(rows[:, 2], self._start[i] + self._length[i] - rows[:, 1])
            placed = self._copy[i] >= 0
            whole &= bool(placed.all())
            physical = self._copy[i] + rows[:, 1] - self._start[i]
            parts.append(np.stack((rows[:, 0], physical, part), axis=1)[placed])
            rows = rows + np.stack((part, part, -part), axis=1)
            rows = rows[rows[:, 2] > 0]
        out = np.concatenate(parts)
        return out[np.argsort(out[:, 0], kind="stable")], whole and not len(rows)


@dataclass(frozen=True, slots=True)
class Node:
    """A sound tree node. items: ITEM rows of a leaf (level 0), whose data lie at HEADER_BYTES + at; else pointers."""

    block: int
    generation: int
    owner: int
    level: int
    data: bytes
    items: npt.NDArray[np.void]

    def item(self, i: int) -> bytes:
        """The data of item i of a leaf (as much as lies inside the node)."""
        at = HEADER_BYTES + int(self.items["at"][i])
        return self.data[at : at + int(self.items["size"][i])]

    def gather(self, rows: npt.NDArray[np.int64], length: int) -> U8s:
        """The first `length` bytes of the data of some items, uint8[n, length]; zeros beyond the node's end."""
        padded = np.frombuffer(self.data.ljust(len(self.data) + length, b"\0"), np.uint8)
        at = np.minimum(self.items["at"][rows].astype(np.int64) + HEADER_BYTES, len(self.data))
        return padded[at[:, None] + np.arange(length)]


def parse_node(data: bytes) -> Node | None:
    """A node whose checksum has been checked; None when its counts make no sense."""
    block, _ = struct.unpack_from("<QQ", data, 48)
    generation, owner, count, level = struct.unpack_from("<QQIB", data, 80)
    dtype = POINTER if level else ITEM
    if level >= MAX_LEVEL or count > (len(data) - HEADER_BYTES) // dtype.itemsize:
        return None
    return Node(block, generation, owner, level, data, np.frombuffer(data, dtype, count, HEADER_BYTES))


class Trees:
    """Walks over the trees of one volume. Every node is checked: checksum, address, id, level, generation."""

    def __init__(self, reader: Reader, offset: int, sb: Super, chunks: Chunks) -> None:
        self._reader, self._offset, self._super = reader, offset, sb
        self.chunks = chunks
        held = sum(c.length for c in chunks.all if c.kind & (METADATA | SYSTEM))
        self._budget = WALKS * (min(held, reader.size) // sb.node + 1)

    def _sound(self, data: bytes, block: int, level: int, generation: int | None) -> Node | None:
        sb = self._super
        if len(data) < sb.node or data[32:48] != sb.node_id or int.from_bytes(data[48:56], "little") != block:
            return None
        csum = checksum(sb.csum, memoryview(data)[32:])
        if not csum or data[: len(csum)] != csum:
            return None
        node = parse_node(data)
        if node is None or node.level != level or generation not in (None, node.generation):
            return None
        return node

    def read(self, block: int, level: int, generation: int | None = None) -> Node | None:
        """The node at logical address `block`, from the first copy that is sound."""
        for at in self.chunks.copies(block, self._super.node):
            data = self._reader.read(self._offset + at, self._super.node)
            node = self._sound(data, block, level, generation)
            if node is not None:
                return node
        return None

    def _read_some(self, blocks: list[int], level: int, generations: list[int]) -> list[Node | None]:
        """Some nodes; those that lie behind each other are read together."""
        size = self._super.node
        places = [next(iter(self.chunks.copies(b, size)), -1) for b in blocks]
        data: dict[int, bytes] = {}
        run: list[int] = []
        for at in [*sorted({p for p in places if p >= 0}), -1]:
            if run and at != run[-1] + size:
                whole = self._reader.read(self._offset + run[0], len(run) * size)
                data |= {p: whole[k * size : (k + 1) * size] for k, p in enumerate(run)}
                run = []
            run.append(at)
        return [self._sound(data.get(at, b""), block, level, generation) or self.read(block, level, generation)
                for at, block, generation in zip(places, blocks, generations, strict=True)]  # fmt: skip

    def leaves(self, root: int, level: int, generation: int | None = None) -> Iterator[Node | None]:
        """All leaves of a tree in key order; None stands for a part of the tree that is lost."""
        pending: list[tuple[int, int, int | None]] = [(root, level, generation)]
        while pending:
            node = self.read(*pending.pop())
            self._budget -= 1
            if node is None or self._budget < 0:
                yield None
                if self._budget < 0:
                    return
                continue
            if node.level == 0:
                yield node
                continue
            blocks = [b & ((1 << 63) - 1) for b in node.items["block"].tolist()]
            generations = node.items["generation"].tolist()
            if node.level == 1:
                for k in range(0, len(blocks), READ_AHEAD):
                    self._budget -= READ_AHEAD
                    yield from self._read_some(blocks[k : k + READ_AHEAD], 0, generations[k : k + READ_AHEAD])
            else:
                pending += [(b, node.level - 1, g) for b, g in zip(blocks[::-1], generations[::-1], strict=True)]


def load_chunks(reader: Reader, offset: int, sb: Super) -> tuple[Chunks, bool]:
    """The chunk map, and whether it is whole: from the superblock the system chunks, from those the chunk tree."""
    found: list[Chunk] = []
    at, array = 0, sb.system_chunks
    while at + 17 + 80 <= len(array):
        (logical,) = struct.unpack_from("<Q", array, at + 9)
        (stripes,) = struct.unpack_from("<H", array, at + 17 + 44)
        end = at + 17 + 48 + 32 * stripes
        chunk = parse_chunk(logical, array[at + 17 : end], sb.device, sb.total)
        if chunk is not None:
            found.append(chunk)
        at = end
    system = Chunks(found)
    whole, found = True, []
    for leaf in Trees(reader, offset, sb, system).leaves(sb.chunk_root, sb.chunk_level):
        if leaf is None or len(found) > OUR_MAX_CHUNKS:
            whole = False
        else:
            found += chunks_in(leaf, sb)
    return Chunks(found).with_more(system.all)[0], whole


def chunks_in(leaf: Node, sb: Super) -> list[Chunk]:
    """The chunks that a leaf of the chunk tree tells of."""
    rows = np.flatnonzero(leaf.items["type"] == CHUNK_ITEM).tolist()
    found = [parse_chunk(int(leaf.items["offset"][i]), leaf.item(i), sb.device, sb.total) for i in rows]
    return [c for c in found if c is not None]
