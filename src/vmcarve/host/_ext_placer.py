"""Loose inodes of an ext4 volume place themselves: under metadata_csum an inode's checksum gives its number back.

Blocks of the inodes' extent trees do so too (`_ext_tree_placer`), and the first of the journal (`_ext_log_placer`).

The checksum of an inode is CRC-32C over the volume's seed, the inode's number, its generation and its bytes. CRC can
be run backwards: from the stored sum through the bytes that are there to the state behind the number, and the four
bytes that lead from the seed to that state are the number. A number beyond the volume's last inode is no inode of it.

Source: Linux fs/ext4/inode.c (ext4_inode_csum); for the reversal, any text on CRC ("four bytes reach any state").
"""

from __future__ import annotations

import hashlib
import weakref

import numpy as np
import numpy.typing as npt

from ..model import Placer, Reader
from . import _ext_super as super_
from ._blocks import state_before_rows
from ._ext_log_placer import LogHead
from ._ext_tree_placer import TreeBlocks

I64 = npt.NDArray[np.int64]
EXTENTS = 0x80000  # i_flags
EXTENT_MAGIC = 0xF30A
WIDE = 256  # the inode size that holds all 32 bits of the sum; 128 holds half of it
MODES = (0x4, 0x8)  # directories and regular files: what has extents


def _tables() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """The byte-wise table of CRC-32C (reflected 0x82F63B78), and which entry has a given top byte."""
    value = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        value = np.where(value & 1, value >> 1 ^ np.uint32(0x82F63B78), value >> 1).astype(np.uint32)
    by_top = np.zeros(256, np.uint32)
    by_top[value >> 24] = np.arange(256, dtype=np.uint32)
    return value, by_top


TABLE, BY_TOP = _tables()


def _between(before: int, after: npt.NDArray[np.uint32]) -> I64:
    """The little-endian numbers whose four bytes lead from the state `before` to `after`."""
    steps: list[npt.NDArray[np.uint32]] = []
    state = after
    for _ in range(4):
        index = BY_TOP[state >> 24]
        steps.append(index)
        state = (state ^ TABLE[index]) << np.uint32(8)
    number = np.zeros(len(after), np.int64)
    state = np.full(len(after), before, np.uint32)
    for i, index in enumerate(reversed(steps)):
        byte = (index ^ state) & np.uint32(0xFF)
        number |= byte.astype(np.int64) << (8 * i)
        state = TABLE[index] ^ state >> np.uint32(8)
    return number


_recent: tuple[weakref.ref[npt.NDArray[np.uint8]], int, tuple[I64, npt.NDArray[np.uint32]]] | None = None


def _inodes(data: npt.NDArray[np.uint8], size: int) -> tuple[I64, npt.NDArray[np.uint32]]:
    """Which slots of `size` bytes in data uint8[n] look like inodes, and the CRC state behind the number of each.

    The volumes of an image are asked one after the other about the same data, and differ in the seed only.
    """
    global _recent
    recent = _recent
    if recent is not None and recent[0]() is data and recent[1] == size:
        return recent[2]
    slots = data[: len(data) // size * size].reshape(-1, size)
    half = slots.view("<u2")
    picked = np.flatnonzero(half[:, 0x28 // 2] == EXTENT_MAGIC)
    picked = picked[np.isin(half[picked, 0] >> 12, MODES)].astype(np.int64)
    rows = slots[picked].copy()
    words, half = rows.view("<u4"), rows.view("<u2")
    stored = half[:, 0x7C // 2].astype(np.uint32) | half[:, 0x82 // 2].astype(np.uint32) << np.uint32(16)
    keep = (words[:, 0x20 // 4] & EXTENTS != 0) & (half[:, 0x80 // 2] >= 4)
    half[:, 0x7C // 2] = 0
    half[:, 0x82 // 2] = 0
    picked, rows, stored = picked[keep], rows[keep], stored[keep]
    found = picked, state_before_rows(rows[:, 0x64:0x68], state_before_rows(rows, stored))
    if not data.flags.writeable:  # else it may hold something else the next time
        _recent = weakref.ref(data), size, found
    return found


def placer(reader: Reader, offset: int, limit: int) -> Placer | None:
    """How loose inodes of the volume at `offset` place themselves; None without 256-byte inodes under checksums."""
    sb = super_.find(reader, offset, limit)
    if sb is None or not sb.checksums or sb.inode_size < WIDE:
        return None
    groups = super_.Groups(reader, sb)
    if not groups.good.any():
        return None
    size, tables, good = sb.inode_size, groups.inode_table, groups.good
    trees, log = TreeBlocks(reader, sb, groups), LogHead(sb)

    def find(data: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
        found = find_slots(data), trees.find(data), log.find(data)
        return np.concatenate([at for at, _ in found]), np.concatenate([place for _, place in found])

    def find_slots(data: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
        picked, state = _inodes(data, size)
        number = _between(sb.seed_state, state)
        keep = (number >= 1) & (number <= min(sb.inodes, len(good) * sb.inodes_per_group))  # a volume may be cut short
        number, picked = number[keep] - 1, picked[keep]
        group = number // sb.inodes_per_group
        there = good[group]
        place = tables[group] * sb.block_size + number % sb.inodes_per_group * size
        return picked[there] * size, place[there]

    key = hashlib.blake2b(tables[good].tobytes() + trees.known + sb.uuid, digest_size=8).hexdigest()
    return Placer(key, find)
