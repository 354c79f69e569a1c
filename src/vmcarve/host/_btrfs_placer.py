"""Loose metadata of a Btrfs volume places itself: every node states its logical address under the volume's id.

Source: Btrfs documentation "On-disk format" (header: checksum, fsid, bytenr). The chunk tree, or what the superblock
has of it, leads from logical to physical addresses.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from ..model import Placer, Reader
from . import _btrfs_disk as disk

I64 = npt.NDArray[np.int64]
SECTOR = 512
FSID, BYTENR = 32, 48


def placer(reader: Reader, offset: int, limit: int) -> Placer | None:
    """How loose nodes of the volume at `offset` place themselves."""
    sb = disk.read_super(reader, offset, limit)
    if sb is None:
        return None
    chunks, _ = disk.load_chunks(reader, offset, sb)
    low, high = (int.from_bytes(sb.node_id[i : i + 8], "little") for i in (0, 8))

    def find(data: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
        words = data[: len(data) // SECTOR * SECTOR].view("<u8").reshape(-1, SECTOR // 8)
        rows = np.flatnonzero((words[:, FSID // 8] == low) & (words[:, FSID // 8 + 1] == high))
        at = rows.astype(np.int64) * SECTOR
        at = at[at + sb.node <= len(data)]
        nodes = data[at[:, None] + np.arange(sb.node)] if len(at) else np.empty((0, sb.node), np.uint8)
        good = disk.sound_rows(sb.csum, nodes)
        at = at[good]
        block = np.ascontiguousarray(nodes[good][:, BYTENR : BYTENR + 8]).view("<u8")[:, 0]
        positions: list[int] = []
        places: list[int] = []
        for p, logical in zip(at.tolist(), block.tolist(), strict=True):
            for copy in chunks.copies(logical, sb.node):  # of two (DUP) nobody knows which one this is: rivals
                positions.append(p)
                places.append(copy)
        return np.array(positions, np.int64), np.array(places, np.int64)

    known = repr([(c.logical, c.length, c.copies) for c in chunks.all])
    return Placer(hashlib.blake2b(known.encode() + sb.node_id, digest_size=8).hexdigest(), find,
                  length=sb.node)
