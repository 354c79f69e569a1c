"""Btrfs without any superblock: tree nodes that the sweep found, and the chunk map out of those of the chunk tree.

A node has no magic, but its flags ("written", and the revision of back references) are the same eight bytes in every
file system made since 2009; its checksum proves it. Nodes carry the file system's id. Which device a chunk's stripe
lies on, and where the volume begins, follows from a chunk tree's leaf: the chunk that holds it puts it where it is.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..blocks import Blocks, distinct
from ..model import Evidence, EvidenceBatch, HostFile, Reader, Signature
from ._btrfs_deleted import Deleted
from ._btrfs_disk import (
    BLAKE2,
    CHUNK_ITEM,
    CRC32C,
    HEADER_BYTES,
    ITEM,
    MAX_LEVEL,
    SHA256,
    XXHASH,
    Chunk,
    Chunks,
    Node,
    Super,
    parse_chunk,
    parse_node,
    sound_rows,
)
from ._btrfs_items import Names
from ._btrfs_live import Live
from ._btrfs_scan import CHUNK_TREE

KIND = "btrfs.node"
NODE_SIZES = (16384, 4096, 8192)  # mkfs.btrfs makes 16384; larger ones are not looked for
SECTOR_SIZE = 4096  # of data: what mkfs.btrfs makes unless told otherwise
SIGNATURE = Signature(struct.pack("<Q", 1 | 1 << 56), KIND, at=56, dense=True, size=NODE_SIZES[0])
OUR_MAX_NODES = 1 << 14  # leaves of the chunk tree that carving reads


def confirm_batch(blocks: npt.NDArray[np.uint8] | Blocks, image_offset: npt.NDArray[np.int64], signature: Signature
                  ) -> EvidenceBatch | None:
    """Nodes whose checksum holds. value: the tree's id; identity: the file system's."""
    nodes = Blocks.of(blocks)
    words = nodes.bytes(48, 48).view("<u8")  # place, flags, chunk tree (16), generation, owner
    count, level = nodes.field(96, "<u4"), nodes[:, 100]
    sane = np.flatnonzero((words[:, 0] % 4096 == 0) & (words[:, 4] < 1 << 48) & (level < MAX_LEVEL) & (count > 0)
                          & (count <= (NODE_SIZES[0] - HEADER_BYTES) // ITEM.itemsize))  # fmt: skip
    for size in NODE_SIZES:
        for kind in (CRC32C, XXHASH, SHA256, BLAKE2):
            found = sane[sound_rows(kind, nodes[sane].part(0, size))]
            if len(found):
                names, which = distinct(nodes[found].bytes(32, 16))
                return EvidenceBatch(KIND, image_offset[found], size, value=words[found, 5].view(np.int64),
                                     identity=[name.hex() for name in names], which=which)
    return None


def carve(reader: Reader, evidence: Sequence[Evidence], offset: int, limit: int) -> Iterator[HostFile]:
    """All files that leaves of any generation tell of, of volumes that begin at image offset `offset`."""
    volumes: dict[tuple[str, int], list[int]] = {}
    for e in evidence:
        if e.kind == KIND and e.value == CHUNK_TREE and offset <= e.image_offset < offset + limit:
            volumes.setdefault((e.identity or "", e.length // max(e.count, 1)), []).append(e.image_offset)
    for (identity, size), places in sorted(volumes.items()):
        found = _volume(reader, bytes.fromhex(identity), size, places[:OUR_MAX_NODES], offset, limit)
        if found is not None:
            sb, chunks = found
            yield from Deleted(reader, offset, sb, chunks, Live(), Names())


def _volume(reader: Reader, identity: bytes, size: int, places: list[int], offset: int, limit: int
            ) -> tuple[Super, Chunks] | None:
    """What its superblock would have said, and the chunk map, newest leaves first."""
    leaves: list[tuple[Node, int]] = []
    for place in places:
        node = parse_node(reader.read(place, size).ljust(size, b"\0"))
        if node is not None and node.level == 0:
            leaves.append((node, place))
    if not leaves:
        return None
    leaves.sort(key=lambda leaf: -leaf[0].generation)
    device = _device(leaves, offset)
    if device is None:
        return None
    data = np.frombuffer(leaves[0][0].data, np.uint8).reshape(1, -1)
    csum = next((k for k in (CRC32C, XXHASH, SHA256, BLAKE2) if sound_rows(k, data)[0]), CRC32C)
    sb = Super(identity, identity, leaves[0][0].generation, 0, 0, 0, 0, limit, device, SECTOR_SIZE, size, csum, "", b"")
    newest: dict[int, Chunk] = {}
    for leaf, _ in leaves:
        for logical, item in _items(leaf):
            chunk = parse_chunk(logical, item, device, limit)
            if chunk is not None:
                newest.setdefault(chunk.logical, chunk)
    return sb, Chunks().with_more(newest.values())[0]


def _items(leaf: Node) -> Iterator[tuple[int, bytes]]:
    """(logical address, CHUNK_ITEM) of a leaf of the chunk tree."""
    for i in np.flatnonzero(leaf.items["type"] == CHUNK_ITEM).tolist():
        yield int(leaf.items["offset"][i]), leaf.item(i)


def _device(leaves: list[tuple[Node, int]], offset: int) -> int | None:
    """The id of the device that begins at `offset`: on it, the chunks that hold these leaves put them here."""
    votes: Counter[int] = Counter()
    for leaf, place in leaves:
        for logical, item in _items(leaf):
            length, stripes = int.from_bytes(item[:8], "little"), int.from_bytes(item[44:46], "little")
            if not logical <= leaf.block < logical + length or len(item) < 48 + 32 * stripes:
                continue
            for k in range(stripes):
                number, physical = struct.unpack_from("<QQ", item, 48 + 32 * k)
                if offset + physical + leaf.block - logical == place:
                    votes[number] += 1
    return votes.most_common(1)[0][0] if votes else None


__all__ = ["KIND", "SIGNATURE", "carve", "confirm_batch"]
