"""Where the journal of an ext4 volume begins, its own superblock says: it bears the volume's UUID.

The volume's superblock keeps a copy of the map of the journal's inode (s_jnl_blocks), so that its first block is known
when no inode is. What follows in the log lies behind it, old copies of the volume's metadata among it.

Source: Linux Documentation/filesystems/ext4/journal (superblock), super (s_jnl_blocks). Seen: mke2fs 1.47 gives a
journal its volume's UUID.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from . import _ext_super as super_
from ._ext_journal import MAGIC, SUPER_V1, SUPER_V2

I64 = npt.NDArray[np.int64]
SECTOR = 512
EXTENT_MAGIC = 0xF30A
UUID_AT = 0x30


class LogHead:
    """The journal's superblock of one volume."""

    def __init__(self, sb: super_.Super) -> None:
        self._block, self._uuid, self._first = sb.block_size, sb.uuid, _first_block(sb.journal_blocks)

    def find(self, data: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
        """(position, volume offset) of it in data uint8[n]; at multiples of 512 bytes."""
        words = data[: len(data) // SECTOR * SECTOR].view(">u4").reshape(-1, SECTOR // 4)
        at = np.flatnonzero(words[:, 0] == MAGIC) if self._first else np.empty(0, np.int64)
        head = words[at]
        kind = (head[:, 1] == SUPER_V1) | (head[:, 1] == SUPER_V2)
        at = at[kind & (head[:, 3] == self._block)].astype(np.int64) * SECTOR
        own = [p for p in at.tolist() if data[p + UUID_AT : p + UUID_AT + 16].tobytes() == self._uuid]
        return np.array(own, np.int64), np.full(len(own), self._first * self._block, np.int64)


def _first_block(root: bytes) -> int:
    """The first block of a file by its i_block (extents, or pointers), 0 where that does not tell."""
    magic, count, _, depth = struct.unpack_from("<4H", root)
    if magic != EXTENT_MAGIC:
        return int(struct.unpack_from("<I", root)[0])
    first, _, high, low = struct.unpack_from("<IHHI", root, 12)
    return low | high << 32 if depth == 0 and count and first == 0 else 0
