"""APFS: a container superblock in block 0 and in a ring of checkpoints, and objects that state their own block.

Source: "Apple File System Reference" (2020-06-22). Seen: macOS and mkapfs 0.2. Little-endian. Every object begins with
a Fletcher-64 over what follows. A physical object's identifier is the number of the block in which it lies; virtual and
ephemeral ones (most of a volume's trees) state no place. Only containers with blocks of 4096 bytes are looked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..model import Begin, Evidence, GuestKind, Reader, Signature, Volume
from ._fields import label, le16, le32, le64, uuid, whole

SUPER, OBJECT = "apfs.superblock", "apfs.object"
BLOCK = 4096
TYPE_AT, MAGIC_AT = 24, 32
BLOCK_HEAD, TREE_INFO = 56, 40  # bytes of a node before its table of contents; behind the values of a tree's root
VOLUMES = 100  # that a container can have
PHYSICAL = 0x4000_0000
NX_SUPER, TREE, NODE, CHUNKS, OBJECT_MAP, CHECKPOINT_MAP, FS_SUPER = 0x1, 0x2, 0x3, 0x7, 0xB, 0xC, 0xD
STATED = (TREE, NODE, CHUNKS, OBJECT_MAP, CHECKPOINT_MAP)  # types of physical objects that are looked for
SIGNATURES = (
    Signature(b"NXSB" + BLOCK.to_bytes(4, "little"), SUPER, at=MAGIC_AT),
    # the flag, for types and subtypes below 16 and 32: one magic costs the sweep less than one a type
    Signature(b"\0\x40", OBJECT, at=TYPE_AT + 2, size=BLOCK,
              also=(TYPE_AT, b"\xf0\xff\xff\xff\xe0\xff\xff\xff", b"\0\0\0\x40\0\0\0\0")),
)

OUR_MAX_BLOCKS = 1 << 48
OUR_MAX_RING = 1 << 16  # blocks of the ring of checkpoints
OUR_MAX_READ = 256  # blocks of it that a probe reads
OUR_MAX_KEYS = 100


@dataclass(frozen=True, slots=True)
class _Super:
    """transaction: of the checkpoint. ring: (first block, blocks) of checkpoints; last: this one's block in it."""

    transaction: int
    blocks: int
    uuid: str
    ring: tuple[int, int]
    last: int
    object_map: int
    volumes: int

    @property
    def size(self) -> int:
        return self.blocks * BLOCK


def fletcher64(data: bytes) -> int:
    """The sum of an object, over its bytes from 8 on ("Object checksums"): whole words, at most BLOCK bytes."""
    words = np.frombuffer(data, "<u4").astype(np.uint64)
    modulus = 0xFFFF_FFFF
    first = int(words.sum()) % modulus
    second = int((words * np.arange(len(words), 0, -1, dtype=np.uint64)).sum()) % modulus
    low = modulus - (first + second) % modulus
    return low | (modulus - (first + low) % modulus) << 32


def _object(reader: Reader, offset: int) -> bytes | None:
    """The block at `offset` where its sum agrees."""
    data = whole(reader, offset, BLOCK)
    return data if data is not None and any(data[:8]) and fletcher64(data[8:]) == le64(data, 0) else None


def _parse(data: bytes | None) -> _Super | None:
    """A container superblock with a ring of checkpoints inside the container."""
    if data is None or le32(data, TYPE_AT) & 0xFFFF != NX_SUPER or data[MAGIC_AT : MAGIC_AT + 4] != b"NXSB":
        return None
    blocks, count, first, index, length = le64(data, 40), le32(data, 104), le64(data, 112), le32(data, 136), \
        le32(data, 140)
    if le32(data, 36) != BLOCK or not 0 < blocks <= OUR_MAX_BLOCKS or not 0 < count <= OUR_MAX_RING:
        return None
    if not 0 < first < blocks or first + count > blocks or index >= count or not 0 < length <= count:
        return None
    names = np.frombuffer(data, "<u8", VOLUMES, 184)
    return _Super(le64(data, 16), blocks, uuid(data[72:88]), (first, count), first + (index + length - 1) % count,
                  le64(data, 160), int(np.count_nonzero(names)))


def _is_map(data: bytes | None, block: int) -> bool:
    """Whether that is a checkpoint's map, and says that it lies in this block."""
    return data is not None and le32(data, TYPE_AT) == PHYSICAL | CHECKPOINT_MAP and le64(data, 8) == block


def _place(reader: Reader, offset: int, s: _Super) -> int | None:
    """The block of the superblock at `offset`: in the ring, behind its checkpoint's map, or 0, if anything tells."""
    if offset >= BLOCK and _is_map(_object(reader, offset - BLOCK), s.last - 1):
        return s.last
    first = _object(reader, offset + s.ring[0] * BLOCK)
    named = _parse(first)
    return 0 if _is_map(first, s.ring[0]) or named is not None and named.uuid == s.uuid else None


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A physical object states its block, under its sum; a superblock is told from its copies by what is beside it."""
    stated = signature.kind == OBJECT
    if stated and le32(reader.read(offset + TYPE_AT, 4), 0) & ~PHYSICAL not in STATED:
        return None
    data = _object(reader, offset)
    if data is None:
        return None
    if stated:
        number = le64(data, 8)
        if not 0 < number <= OUR_MAX_BLOCKS:
            return None
        return Evidence(OBJECT, offset, BLOCK, volume_offset=number * BLOCK)
    s = _parse(data)
    if s is None:
        return None
    place = _place(reader, offset, s)
    if place is None:
        return Evidence(SUPER, offset, BLOCK, identity=s.uuid, value=s.size, confidence=0.5)
    return Evidence(SUPER, offset, BLOCK, volume_offset=place * BLOCK, identity=s.uuid, value=s.size)


def begin(reader: Reader, offset: int) -> Begin | None:
    """What the container begins with: any checkpoint's superblock is, or was, the copy in block 0."""
    data = _object(reader, offset)
    s = _parse(data)
    return Begin(data, size=s.size) if data is not None and s is not None else None


def _newest(reader: Reader, offset: int, s: _Super) -> tuple[_Super, bool]:
    """The newest superblock of the ring, `s` if none is newer; and whether the ring has any."""
    first, count = s.ring
    best, found = s, False
    for block in range(first, first + min(count, OUR_MAX_READ)):
        other = _parse(_object(reader, offset + block * BLOCK))
        if other is not None and other.uuid == s.uuid:
            best, found = max(best, other, key=lambda one: one.transaction), True
    return best, found


def _leaf(node: bytes) -> dict[int, int]:
    """Object identifier -> block, of the newest transaction, in an object map of one node."""
    count, start, end = le32(node, 36), BLOCK_HEAD + le16(node, 40), BLOCK - TREE_INFO
    newest: dict[int, tuple[int, int]] = {}
    for at in range(start, start + 4 * min(count, OUR_MAX_KEYS), 4):
        key, value = start + le16(node, 42) + le16(node, at), end - le16(node, at + 2)
        if key + 16 <= end and BLOCK_HEAD <= value <= end - 16:
            found = le64(node, key + 8), le64(node, value + 8)
            newest[le64(node, key)] = max(found, newest.get(le64(node, key), found))
    return {number: block for number, (_, block) in newest.items()}


def _names(reader: Reader, offset: int, s: _Super) -> list[str]:
    """The volumes' names, where the object map has one node: each of its objects is a superblock of a volume."""
    top = _object(reader, offset + s.object_map * BLOCK) if s.object_map < s.blocks else None
    if top is None or le32(top, TYPE_AT) & 0xFFFF != OBJECT_MAP or not 0 < le64(top, 48) < s.blocks:
        return []
    node = _object(reader, offset + le64(top, 48) * BLOCK)
    if node is None or le16(node, 34):
        return []
    names: list[str] = []
    for _, block in sorted(_leaf(node).items()):
        data = _object(reader, offset + block * BLOCK) if 0 < block < s.blocks else None
        if data is not None and le32(data, TYPE_AT) & 0xFFFF == FS_SUPER and data[MAGIC_AT : MAGIC_AT + 4] == b"APSB":
            names.append(label(data[704:960]))
    return names


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The container at `offset`, in the state of its newest checkpoint."""
    s = _parse(_object(reader, offset)) if limit >= BLOCK else None
    if s is None:
        return None
    s, found = _newest(reader, offset, s)
    troubles = [] if found else ["no checkpoint in the ring"]
    if s.size > limit:
        troubles.append("larger than the space it has")
    top = _object(reader, offset + s.object_map * BLOCK) if s.object_map < s.blocks else None
    if top is None or le64(top, 8) != s.object_map:
        troubles.append("no object map where the superblock says")
    detail = "; ".join(troubles) or f"{s.volumes} volume{'' if s.volumes == 1 else 's'}"
    return Volume("apfs", offset, s.size, ", ".join(_names(reader, offset, s)), s.uuid, not troubles, detail)


GUEST = GuestKind("apfs", SIGNATURES, probe, confirm, begin=begin, types=frozenset(("Apple APFS",)))
