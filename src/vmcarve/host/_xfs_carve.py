"""XFS inodes and extent btree leaves found by the sweep: maps of files when the volume's superblocks are gone.

A version 5 leaf states its own place in the volume and its owner under a checksum, and names its neighbours as fsblocks
(group in the high bits); an inode states its number, which is its fsblock and its slot in there. From leaves whose
neighbours are known, and from inodes in other groups than the first, follows how fsblocks count.
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
from ._blocks import I64, U8, candidates, to_runs
from ._xfs_inode import BMBT_CHECKSUM, BmbtBlock
from ._xfs_super import NULL64, Super

KIND, INODES = "xfs.bmbt-leaf", "xfs.inode"
BLOCK_SIZES = (4096, 1024, 2048)  # mkfs.xfs makes 4096 unless told otherwise
SIGNATURE = Signature(b"BMA3", KIND, dense=True, size=4096, also=(4, b"\xff\xff", b"\0\0"))  # level 0: a leaf
HEAD = 72  # bytes before the first record
OUR_MAX_LEAVES = 1 << 18
OUR_MAX_INODES = 1 << 21
OUR_MAX_GEOMETRIES = 256  # divisions into groups that are compared
OUR_MAX_PAIRS = 1 << 12  # inodes that vote on the geometry
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
    volumes: dict[str, tuple[list[int], list[Evidence]]] = {}
    for e in evidence:
        leaves, inode_rows = volumes.setdefault((e.identity or "").replace("-", ""), ([], []))
        if e.kind == INODES and offset <= e.image_offset < offset + limit:
            inode_rows.append(e)
        elif e.kind == KIND and e.volume_offset is not None and e.image_offset - e.volume_offset == offset:
            if 0 <= e.volume_offset < limit and len(leaves) < OUR_MAX_LEAVES:
                leaves.append(e.image_offset)
    for identity, (places, inode_rows) in sorted(volumes.items()):
        if places or inode_rows:
            yield from _volume(reader, bytes.fromhex(identity), places, inode_rows, offset, limit)


def _volume(reader: Reader, uuid: bytes, places: list[int], rows: list[Evidence], offset: int, limit: int
            ) -> Iterator[HostFile]:
    """The files of one volume, for the block size at which most of what was found agrees with its own place."""
    best: tuple[int, Super, list[BmbtBlock], list[tuple[int, int]]] | None = None
    for size in BLOCK_SIZES:
        flat = _flat(offset, limit, size, rows[0].length // max(rows[0].count, 1) if rows else 512, uuid)
        leaves = [leaf for p in places if (leaf := _leaf(reader, flat, p)) is not None]
        numbered = _numbered(rows, flat)
        sb = _geometry(reader, leaves, flat, _pairs(numbered, flat))
        ours = [(ino, place) for ino, place in numbered if sb.inode_place(ino) == place]
        groups = {ino >> (sb.group_log + sb.inode_log) for ino, _ in ours}
        if not leaves and 0 not in groups and len(groups) < 2:
            continue  # the inodes of a volume inside a file lie so, as far as one group tells
        if (leaves or ours) and (best is None or len(leaves) + len(ours) > best[0]):
            best = len(leaves) + len(ours), sb, leaves, ours
    if best is not None:
        _, sb, leaves, ours = best
        told = {-1}
        for ino, place in ours:
            file = _by_inode(reader, sb, ino, place)
            if file is not None:
                if file.complete:
                    told.add(ino)
                yield file
        yield from _files(reader, sb, [leaf.block for leaf in leaves if leaf.owner not in told])


def _numbered(rows: list[Evidence], flat: Super) -> list[tuple[int, int]]:
    """(inode number, image offset) of inodes whose place in a block fits their number."""
    out: list[tuple[int, int]] = []
    mask = (1 << flat.inode_log) - 1
    for row in rows:
        for k in range(min(row.count, OUR_MAX_INODES - len(out))):
            ino, place = (row.value or 0) + k, row.image_offset + k * flat.inode_size
            if (place - flat.offset) % flat.block_size == (ino & mask) * flat.inode_size:
                out.append((ino, place))
    return out


def _pairs(numbered: list[tuple[int, int]], flat: Super) -> list[tuple[int, int]]:
    """(fsblock, linear block) of some inodes, spread over all."""
    some = numbered[:: max(len(numbered) // OUR_MAX_PAIRS, 1)]
    return [(ino >> flat.inode_log, (place - flat.offset) // flat.block_size) for ino, place in some]


def _by_inode(reader: Reader, sb: Super, ino: int, place: int) -> HostFile | None:
    """A regular file by its inode in use, or by what its freed inode keeps; None without any map."""
    inode = inodes.parse_inode(reader.read(place, sb.inode_size), ino)
    if inode is None or (inode.mode and not inode.regular):
        return None
    if inode.mode == 0 or inode.extents == 0:
        rows, whole = inodes.remnant_rows(inode.fork, sb), False
    elif inode.format == inodes.FORMAT_EXTENTS:
        rows, whole = inodes.good_rows(inode.fork, min(inode.extents, 1 << 16), sb)
    elif inode.format == inodes.FORMAT_BTREE:
        level, children = inodes.root_children(inode.fork, sb)
        leaves, all_there = inodes.walk_bmbt(level, children, lambda block: _block(reader, sb, sb.place(block)))
        rows, agree = inodes.rows_of(leaves)
        whole = all_there and agree and len(rows) == inode.extents
    else:
        return None
    runs = to_runs(rows, sb.block_size, sb.offset)
    if not len(runs):
        return None
    size = inode.size if inode.size and inode.mode else -1
    return HostFile(f"inode {ino}", "", size, inode.mode == 0 or inode.extents == 0, runs, "xfs.carved-inode", whole,
                    inode.times, number=ino)


def _flat(offset: int, limit: int, block_size: int, inode_size: int, uuid: bytes) -> Super:
    """A volume of one group: fsblocks are linear in it."""
    blocks = max(limit // block_size, 1)
    inode_size = min(inode_size, block_size)
    return Super(
        offset, block_size, blocks, blocks, 1, MAX_GROUP_LOG, inode_size, (block_size // inode_size).bit_length() - 1,
        512, 0, 0, 0, 5, uuid, uuid, "", block_size, True, True, frozenset(),
    )  # fmt: skip


def _leaf(reader: Reader, sb: Super, place: int) -> BmbtBlock | None:
    block = _block(reader, sb, place)
    return block if block is not None and block.level == 0 else None


def _block(reader: Reader, sb: Super, place: int) -> BmbtBlock | None:
    if (place - sb.offset) % sb.block_size:
        return None
    data = reader.read(place, sb.block_size)
    if len(data) < sb.block_size or not inodes.bmbt_checksum_ok(data):
        return None
    return inodes.parse_bmbt(data, sb, (place - sb.offset) // sb.block_size)


def _first_logical(reader: Reader, leaf: BmbtBlock, sb: Super) -> int:
    """First logical block of a leaf, from the bits of a record that need no geometry."""
    return int.from_bytes(reader.read(sb.place(leaf.block) + HEAD, 8), "big") >> 9 & (1 << 54) - 1


def _geometry(reader: Reader, leaves: list[BmbtBlock], flat: Super, pairs: list[tuple[int, int]]) -> Super:
    """How fsblocks count: by what neighbours call each other, else as mkfs.xfs divides a volume of this size.

    pairs: (fsblock, linear block) that are known already.

    Where every leaf lies in the first group and nothing else fits, the volume is taken as one group: then extents in
    other groups leave it and are lost.
    """
    order = sorted(leaves, key=lambda leaf: (leaf.owner, _first_logical(reader, leaf, flat), leaf.lsn))
    pairs = list(pairs)
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
        told = np.array(pairs, np.int64)
        # groups of a power of two make fsblocks linear, so that all smaller powers fit as well: the largest counts
        log, size = max((c for c, _ in votes.most_common(OUR_MAX_GEOMETRIES)), key=lambda c: (_agreeing(told, *c), c))
        return replace(flat, group_log=log, group_blocks=size, groups=-(-flat.blocks // size))
    for count in super_.USUAL_GROUPS:
        size = -(-flat.blocks // count)
        usual = replace(flat, group_log=(size - 1).bit_length(), group_blocks=size, groups=count)
        usual_rows, flat_rows = (_whole_leaves(reader, sb, leaves) for sb in (usual, flat))
        if usual_rows > flat_rows and usual_rows == len(leaves):
            return usual
    return flat


def _agreeing(pairs: I64, log: int, size: int) -> int:
    """How many of the pairs (fsblock, linear block) a division into groups of `size` blocks explains."""
    group, inside = pairs[:, 0] >> log, pairs[:, 0] & ((1 << log) - 1)
    return int(((group * size + inside == pairs[:, 1]) & (inside < size)).sum())


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
