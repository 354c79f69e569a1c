"""XFS extent btree leaves found by the sweep: maps of long files when the volume's superblocks are gone.

A version 5 leaf states its own place in the volume and its owner under a checksum, and names its neighbours as fsblocks
(group in the high bits). From leaves whose neighbours are known follows how fsblocks count.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..blocks import Blocks, distinct
from ..checksums import crc32c_rows
from ..model import Evidence, EvidenceBatch, HostFile, Reader, Signature
from . import _xfs_inode as inodes
from . import _xfs_remains as remains
from . import _xfs_super as super_
from ._blocks import I64, U8, candidates
from ._xfs_inode import BMBT_CHECKSUM, BmbtBlock
from ._xfs_super import NULL64, Super

KIND = "xfs.bmbt-leaf"
BLOCK_SIZES = (4096, 1024, 2048)  # mkfs.xfs makes 4096 unless told otherwise
SIGNATURE = Signature(b"BMA3", KIND, dense=True, size=4096, also=(4, b"\xff\xff", b"\0\0"))  # level 0: a leaf
HEAD = 72  # bytes before the first record
OUR_MAX_LEAVES = 1 << 18
MIN_GROUP_LOG, MAX_GROUP_LOG = 6, 31


def confirm_batch(blocks: U8 | Blocks, image_offset: I64, signature: Signature) -> EvidenceBatch | None:
    """Leaves whose checksum holds for a usual block size. volume_offset: the place that they state; value: owner."""
    rows = Blocks.of(blocks)
    numbers = rows.bytes(24, 40).view(">u8")
    leaves = (rows.field(4, ">u2") == 0) & (numbers[:, 0] < 1 << 54) & (numbers[:, 4] < 1 << 63)
    stored = rows.field(BMBT_CHECKSUM, "<u4")
    keep = np.zeros(len(rows), np.bool_)
    for size in BLOCK_SIZES:
        keep |= crc32c_rows(rows, length=size, zeroed=(BMBT_CHECKSUM, 4)) == stored
    keep &= leaves
    if not keep.any():
        return None
    place, owner = numbers[keep, 0].astype(np.int64), numbers[keep, 4].astype(np.int64)
    names, which = distinct(rows[keep].bytes(40, 16))
    return EvidenceBatch(KIND, image_offset[keep], 1024, value=owner, volume_offset=place * super_.DADDR,
                         identity=[name.hex() for name in names], which=which)


def carve(reader: Reader, evidence: Sequence[Evidence], offset: int, limit: int) -> Iterator[HostFile]:
    """Maps from leaves that state that their volume begins at image offset `offset`."""
    limit = min(limit, reader.size - offset)
    volumes: dict[str, list[int]] = {}
    for e in evidence[:OUR_MAX_LEAVES]:
        if e.kind == KIND and e.volume_offset is not None and e.image_offset - e.volume_offset == offset:
            if 0 <= e.volume_offset < limit:
                volumes.setdefault(e.identity or "", []).append(e.image_offset)
    for identity, places in sorted(volumes.items()):
        for size in BLOCK_SIZES:
            flat = _flat(offset, limit, size, bytes.fromhex(identity))
            leaves = [leaf for p in places if (leaf := _leaf(reader, flat, p)) is not None]
            if leaves:
                yield from _files(reader, _geometry(reader, leaves, flat), [leaf.block for leaf in leaves])


def _flat(offset: int, limit: int, block_size: int, uuid: bytes) -> Super:
    """A volume of one group: fsblocks are linear in it."""
    blocks = max(limit // block_size, 1)
    return Super(
        offset, block_size, blocks, blocks, 1, MAX_GROUP_LOG, 512, 3, 512, 0, 0, 0, 5, uuid, uuid, "", block_size,
        True, True, frozenset(),
    )  # fmt: skip


def _leaf(reader: Reader, sb: Super, place: int) -> BmbtBlock | None:
    if (place - sb.offset) % sb.block_size:
        return None
    data = reader.read(place, sb.block_size)
    if len(data) < sb.block_size or not inodes.bmbt_checksum_ok(data):
        return None
    block = inodes.parse_bmbt(data, sb, (place - sb.offset) // sb.block_size)
    return block if block is not None and block.level == 0 else None


def _first_logical(reader: Reader, leaf: BmbtBlock, sb: Super) -> int:
    """First logical block of a leaf, from the bits of a record that need no geometry."""
    return int.from_bytes(reader.read(sb.place(leaf.block) + HEAD, 8), "big") >> 9 & (1 << 54) - 1


def _geometry(reader: Reader, leaves: list[BmbtBlock], flat: Super) -> Super:
    """How fsblocks count: by what neighbours call each other, else as mkfs.xfs divides a volume of this size.

    Where every leaf lies in the first group and nothing else fits, the volume is taken as one group: then extents in
    other groups leave it and are lost.
    """
    order = sorted(leaves, key=lambda leaf: (leaf.owner, _first_logical(reader, leaf, flat), leaf.lsn))
    pairs: list[tuple[int, int]] = []  # fsblock, linear block
    for a, b in itertools.pairwise(order):
        if a.owner == b.owner and a.right != NULL64 and b.left != NULL64:
            pairs += [(a.right, b.block), (b.left, a.block)]
    votes: Counter[tuple[int, int]] = Counter()
    for fsblock, block in pairs:
        for log in range(MIN_GROUP_LOG, MAX_GROUP_LOG + 1):
            group, inside = fsblock >> log, fsblock & ((1 << log) - 1)
            if group and (block - inside) % group == 0 and 1 << log - 1 < (block - inside) // group <= 1 << log:
                votes[log, (block - inside) // group] += 1
    if votes:
        (log, size), _ = votes.most_common(1)[0]
        return replace(flat, group_log=log, group_blocks=size, groups=-(-flat.blocks // size))
    for count in super_.USUAL_GROUPS:
        size = -(-flat.blocks // count)
        usual = replace(flat, group_log=(size - 1).bit_length(), group_blocks=size, groups=count)
        usual_rows, flat_rows = (_whole_leaves(reader, sb, leaves) for sb in (usual, flat))
        if usual_rows > flat_rows and usual_rows == len(leaves):
            return usual
    return flat


def _whole_leaves(reader: Reader, sb: Super, leaves: list[BmbtBlock]) -> int:
    """Leaves all of whose extents lie in the volume when it is divided as `sb` says."""
    return sum(1 for leaf in leaves if (again := _leaf(reader, sb, sb.place(leaf.block))) is not None and again.whole)


def _files(reader: Reader, sb: Super, blocks: list[int]) -> Iterator[HostFile]:
    owners: dict[int, list[BmbtBlock]] = {}
    for block in blocks:
        leaf = _leaf(reader, sb, sb.place(block))
        if leaf is not None and len(leaf.rows):
            owners.setdefault(leaf.owner, []).append(leaf)
    for owner, leaves in sorted(owners.items()):
        maps = [(KIND, rows, whole) for rows, whole in remains.leaf_maps(leaves, sb)]
        yield from candidates(f"inode {owner}", maps, sb.block_size, sb.offset)


__all__ = ["KIND", "SIGNATURE", "carve", "confirm_batch"]
