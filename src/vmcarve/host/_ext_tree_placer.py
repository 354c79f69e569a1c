"""Loose blocks of extent trees of an ext4 volume: whose they are tells their checksum, and where they belong its inode.

Under metadata_csum a block of a tree ends in a CRC-32C over the volume's seed, the inode's number and generation, and
the block. CRC is linear: the sum of the block from register 0, taken from the stored one, leaves what the register
before the block becomes through as many zeros, which is known for every inode that has such blocks. The inode's root
(or a block above, once that is placed) names the block by the first file block that it tells of.

Source: Linux fs/ext4/extents.c (ext4_extent_block_csum, struct ext4_extent_tail).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..blocks import Blocks
from ..checksums import crc32c, crc32c_rows
from ..model import Reader
from . import _ext_super as super_

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
EXTENTS = 0x80000  # i_flags
EXTENT_MAGIC = 0xF30A
HEAD, ENTRY = 12, 12  # bytes of the header and of an entry
ROOT_ENTRIES = 4
SECTOR = 512
TABLE_BYTES = 1 << 20
OUR_MAX_TREES = 1 << 18  # inodes with blocks of extents, 24 bytes each
_ALL = 0xFFFF_FFFF


class TreeBlocks:
    """The blocks of extents that the inodes and placed blocks of a volume name: read when made.

    known: what changes when more of them is known.
    """

    def __init__(self, reader: Reader, sb: super_.Super, groups: super_.Groups) -> None:
        self._block = sb.block_size
        self._tail = HEAD + (sb.block_size - HEAD) // ENTRY * ENTRY
        rows: list[tuple[int, int, int]] = []  # register behind zeros, first file block, block where it belongs
        for number, raw in _with_trees(reader, sb, groups):
            register = _raw(number.to_bytes(4, "little") + raw[0x64:0x68], sb.seed_state)
            key = _raw(bytes(self._tail), register)
            pending = _named(raw[0x28:0x64], ROOT_ENTRIES)
            for first, block, depth in pending:
                rows.append((key, first, block))
                data = reader.read(sb.offset + block * sb.block_size, sb.block_size) if depth else b""
                if depth and len(data) == sb.block_size and self._key(np.frombuffer(data, np.uint8)[None])[0] == key:
                    pending += _named(data, (sb.block_size - HEAD) // ENTRY)
            if len(rows) >= OUR_MAX_TREES:
                break
        self._rows = np.array(sorted(rows), np.int64).reshape(-1, 3)
        self.known = self._rows.tobytes()

    def _key(self, blocks: U8) -> I64:
        """What the register before each of the blocks would be behind as many zeros."""
        stored = np.ascontiguousarray(blocks[:, self._tail : self._tail + 4]).view("<u4")[:, 0]
        return (stored ^ crc32c_rows(np.ascontiguousarray(blocks), _ALL, length=self._tail) ^ np.uint32(_ALL)).astype(
            np.int64)

    def find(self, data: U8) -> tuple[I64, I64]:
        """(position, volume offset) of the blocks in `data` that are wanted; at multiples of 512 bytes."""
        none = np.empty(0, np.int64)
        last = len(data) - self._block
        if not len(self._rows) or last < 0:
            return none, none
        head = data[: len(data) // SECTOR * SECTOR].view("<u2")[:: SECTOR // 2]
        at = np.flatnonzero(head == EXTENT_MAGIC).astype(np.int64) * SECTOR
        at = at[at <= last]
        blocks = Blocks(data, at, self._block)
        most, depth = blocks[:, 4:6].copy().view("<u2")[:, 0], blocks[:, 6:8].copy().view("<u2")[:, 0]
        keep = (most == (self._block - HEAD) // ENTRY) & (depth < 5)
        at, rows = at[keep], blocks[keep, 0 : self._block]
        if not len(at):
            return none, none
        key, first = self._key(rows), rows[:, HEAD : HEAD + 4].copy().view("<u4")[:, 0].astype(np.int64)
        # the last of an inode's blocks that begins at or before the first file block of this one
        i = np.searchsorted(_both(self._rows[:, 0], self._rows[:, 1]), _both(key, first), side="right") - 1
        good = (i >= 0) & (self._rows[i, 0] == key)
        return at[good], self._rows[i[good], 2] * self._block


def _with_trees(reader: Reader, sb: super_.Super, groups: super_.Groups) -> list[tuple[int, bytes]]:
    """(number, slot) of the inodes whose extents do not fit in them."""
    out: list[tuple[int, bytes]] = []
    step = TABLE_BYTES // sb.inode_size
    for group, used in enumerate(groups.used_inodes(sb).tolist()):
        start = sb.offset + int(groups.inode_table[group]) * sb.block_size
        for i in range(0, used, step):
            data = np.frombuffer(reader.read(start + i * sb.inode_size, min(step, used - i) * sb.inode_size), np.uint8)
            slots = data[: len(data) // sb.inode_size * sb.inode_size].reshape(-1, sb.inode_size)
            half = slots.view("<u2")
            tree = (half[:, 0x28 // 2] == EXTENT_MAGIC) & (half[:, 0x2E // 2] > 0) & (half[:, 0x2E // 2] <= 5)
            tree &= slots.view("<u4")[:, 0x20 // 4] & EXTENTS != 0
            first = group * sb.inodes_per_group + i + 1
            out += [(first + k, slots[k].tobytes()) for k in np.flatnonzero(tree).tolist()]
            if len(out) >= OUR_MAX_TREES:
                return out
    return out


def _named(block: bytes, most: int) -> list[tuple[int, int, int]]:
    """(first file block, block, depth of that block) of the children that a root or an index block names."""
    count, depth = int.from_bytes(block[2:4], "little"), int.from_bytes(block[6:8], "little")
    if int.from_bytes(block[:2], "little") != EXTENT_MAGIC or not 0 < depth <= 5 or count > most:
        return []
    entries = [[int.from_bytes(block[at + a : at + b], "little") for a, b in ((0, 4), (4, 8), (8, 10))]
               for at in range(HEAD, HEAD + ENTRY * count, ENTRY)]
    return [(first, low | high << 32, depth - 1) for first, low, high in entries]


def _both(high: I64, low: I64) -> npt.NDArray[np.uint64]:
    """Two numbers of 32 bits as one."""
    return high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)


def _raw(data: bytes, register: int) -> int:
    """The register of CRC-32C behind `data`, without the inversions."""
    return crc32c(data, register ^ _ALL) ^ _ALL
