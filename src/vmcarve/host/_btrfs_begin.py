"""Btrfs whose superblock is lost: what it would have said, made again from the nodes that are left.

The superblock has one copy at 64 KiB and, on larger volumes, one at 64 MiB; a small volume whose first part is
overwritten has none. The newest node of the root tree says where all trees are. Where logical addresses lie on the
device, the chunk tree says; it is small and lies near the volume's begin, but the tree of device extents says the same
the other way round. All chunks go into the superblock's own array, so that the chunk tree is not needed. Where no root
is left, trees cannot be read from it, but nodes still say where they lie, and leaves of checksums what data are.
Source: Btrfs documentation "On-disk format" (superblock, CHUNK_ITEM, DEV_EXTENT, BLOCK_GROUP_ITEM).
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Sequence

import numpy as np

from ..model import Begin, Cut, Evidence, Reader
from . import _btrfs_disk as disk
from ._btrfs_carve import KIND
from ._btrfs_scan import CHUNK_TREE

ROOT_TREE, EXTENT_TREE, DEVICE_TREE, GROUP_TREE = 1, 2, 4, 11
GROUP_ITEM, DEVICE_EXTENT, DEVICE_ITEM = 192, 204, 216
FIRST_CHUNK_TREE, ROOT_DIRECTORY = 256, 6
MIXED_GROUPS, DEFAULT_FEATURES = 1 << 2, 0x341  # mixed back references, big metadata, extent references, no holes
ARRAY_AT, ARRAY_BYTES = 0x32B, 2048
PROFILES = ~(disk.DATA | disk.SYSTEM | disk.METADATA)  # how a chunk is spread over devices, or doubled
DISK_KEY = struct.Struct("<QBQ")
SECTOR = 4096  # of data: what mkfs.btrfs makes unless told otherwise
OUR_MAX_NODES = 1 << 14  # nodes of one volume that are read
MAX_STATED = 256  # ours: nodes that are said to lie where they do


def begins(reader: Reader, evidence: Sequence[Evidence], _: Cut | None = None) -> Iterator[Begin]:
    """What volumes begin with of which nodes are left. Of each only what lies on one device."""
    volumes: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for e in evidence:
        size = e.length // max(e.count, 1)
        if e.kind == KIND and e.identity:
            volumes.setdefault((e.identity, size), []).extend((e.image_offset + k * size, e.value or 0)
                                                              for k in range(e.count))
    for (identity, size), places in sorted(volumes.items()):
        found = _begin(reader, bytes.fromhex(identity), size, places)
        if found is not None:
            yield found


def _begin(reader: Reader, identity: bytes, size: int, places: list[tuple[int, int]]) -> Begin | None:
    wanted = (ROOT_TREE, EXTENT_TREE, CHUNK_TREE, DEVICE_TREE, GROUP_TREE)
    read = [disk.parse_node(reader.read(at, size).ljust(size, b"\0"))
            for at, owner in places if owner in wanted][:OUR_MAX_NODES]  # fmt: skip
    nodes = sorted((n for n in read if n is not None), key=lambda n: (-n.generation, -n.level))
    device, chunks = _chunks([n for n in nodes if n.level == 0])
    # one that no chunk has may be older than they are, or they are not the volume's: then there is nothing to begin
    placed = [n for n in nodes if chunks.copies(n.block, size)]
    root = next((n for n in nodes if n.owner == ROOT_TREE), None)
    if not placed or root is not None and root not in placed:
        return None
    # without the device's own item: up to the last chunk, behind which nothing is held
    total = max([_device_size(nodes, device), *(at + c.length for c in chunks.all for at in c.copies)])
    data = bytes(disk.SUPER_AT[0]) + _super(identity, placed[0], root, device, chunks, total)
    stated: list[tuple[int, int]] = []
    for at, _ in places[:: 1 + len(places) // MAX_STATED]:
        copies = chunks.copies(int.from_bytes(reader.read(at + 48, 8), "little"), size)
        stated += [(at, copies[0])] if len(copies) == 1 else []  # of two nobody knows which one this is
    return Begin(data, size=total, identity=str(uuid.UUID(bytes=identity)), stated=tuple(stated))


def _chunks(leaves: list[disk.Node]) -> tuple[int, disk.Chunks]:
    """(device, chunks) by the leaves of the chunk tree and of the tree of device extents, newest first."""
    groups = _groups(leaves)
    kinds = {logical: kind for logical, (_, kind) in groups.items()}
    rows: dict[int, tuple[int, int, int]] = {}  # physical address -> device, logical address, length
    for leaf in leaves:
        for i in np.flatnonzero(leaf.items["type"] == DEVICE_EXTENT).tolist() if leaf.owner == DEVICE_TREE else ():
            logical, length = struct.unpack("<QQ", leaf.item(i)[16:32].ljust(16, b"\0"))
            rows.setdefault(int(leaf.items["offset"][i]), (int(leaf.items["id"][i]), logical, length))
    told = [(int(leaf.items["offset"][i]), leaf.item(i)) for leaf in leaves if leaf.owner == CHUNK_TREE
            for i in np.flatnonzero(leaf.items["type"] == disk.CHUNK_ITEM).tolist()]
    devices = [d for d, _, _ in rows.values()] + [int.from_bytes(item[48:56], "little") for _, item in told]
    device = max(set(devices), key=devices.count) if devices else 0
    copies: dict[tuple[int, int], list[int]] = {}
    for at, (owner, logical, length) in sorted(rows.items()):
        if owner == device and 0 < length < 1 << 56 and at + length < 1 << 62 and logical + length < 1 << 62:
            copies.setdefault((logical, length), []).append(at)
    split = disk.SPLIT_PROFILES
    usual = disk.DATA | disk.METADATA
    extents = [disk.Chunk(logical, length, kind := kinds.get(logical, usual), () if kind & split else tuple(at))
               for (logical, length), at in copies.items()]
    items = [c for logical, item in told if (c := disk.parse_chunk(logical, item, device, 1 << 62)) is not None]
    known = [*items, *extents]
    if all(c.copies == (c.logical,) for c in known) and not any(kind & PROFILES for kind in kinds.values()):
        # a guess that the guest's own trees have to bear out: one device, and chunks where mkfs.btrfs puts the first.
        # What is left of the tables may be older than some of the chunks
        extents += [disk.Chunk(logical, length, kind, (logical,)) for logical, (length, kind) in groups.items()]
        device = device or 1
    return device, disk.Chunks().with_more([*items, *extents])[0]


def _groups(leaves: list[disk.Node]) -> dict[int, tuple[int, int]]:
    """Block groups by logical address: length, and what they hold and how; of the newest leaf that tells of each."""
    out: dict[int, tuple[int, int]] = {}
    for leaf in leaves:
        for i in np.flatnonzero(leaf.items["type"] == GROUP_ITEM).tolist():
            logical, length = int(leaf.items["id"][i]), int(leaf.items["offset"][i])
            if logical < 1 << 62 and 0 < length < 1 << 56:
                out.setdefault(logical, (length, int.from_bytes(leaf.item(i)[16:24], "little")))
    return out


def _device_size(nodes: list[disk.Node], device: int) -> int:
    """Bytes of the device by the newest leaf of the chunk tree that tells of it, else 0."""
    for leaf in (n for n in nodes if n.owner == CHUNK_TREE and n.level == 0):
        for i in np.flatnonzero((leaf.items["type"] == DEVICE_ITEM) & (leaf.items["offset"] == device)).tolist():
            return int.from_bytes(leaf.item(i)[8:16], "little")
    return 0


def _super(identity: bytes, any_node: disk.Node, root: disk.Node | None, device: int, chunks: disk.Chunks, total: int
           ) -> bytes:
    out = bytearray(disk.SUPER_BYTES)
    node = len(any_node.data)
    row = np.frombuffer(any_node.data, np.uint8).reshape(1, -1)
    kinds = (disk.CRC32C, disk.XXHASH, disk.SHA256, disk.BLAKE2)
    kind = next((k for k in kinds if disk.sound_rows(k, row)[0]), disk.CRC32C)
    array = _array(device, chunks)
    struct.pack_into("<16sQQ8sQQQQQQQQQ", out, 0x20, identity, disk.SUPER_AT[0], 1, disk.MAGIC, any_node.generation,
                     root.block if root is not None else 0, 0, 0, 0, total, 0, ROOT_DIRECTORY, 1)  # fmt: skip
    struct.pack_into("<IIIII", out, 0x90, SECTOR, node, node, SECTOR, len(array))
    struct.pack_into("<QHBBBQQ", out, 0xBC, DEFAULT_FEATURES | MIXED_GROUPS, kind,
                     root.level if root is not None else 0, 0, 0, device, total)
    out[ARRAY_AT : ARRAY_AT + len(array)] = array
    check = disk.checksum(kind, memoryview(out)[32:])
    out[: len(check)] = check
    return bytes(out)


def _array(device: int, chunks: disk.Chunks) -> bytes:
    """Chunks as the superblock keeps them, those with metadata first: there is room for some twenty."""
    out = b""
    for chunk in sorted(chunks.all, key=lambda c: (not c.kind & (disk.METADATA | disk.SYSTEM), c.logical)):
        item = DISK_KEY.pack(FIRST_CHUNK_TREE, disk.CHUNK_ITEM, chunk.logical)
        item += struct.pack("<QQQQIIIHH", chunk.length, EXTENT_TREE, 1 << 16, chunk.kind, SECTOR, SECTOR, SECTOR,
                            len(chunk.copies), 1)  # fmt: skip
        item += b"".join(struct.pack("<QQ16s", device, at, bytes(16)) for at in chunk.copies)
        if chunk.copies and len(out) + len(item) <= ARRAY_BYTES:
            out += item
    return out
