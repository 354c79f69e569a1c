"""Btrfs: what the checksum tree of the current generation states of each sector of data.

Source: Btrfs documentation "On-disk format" (EXTENT_CSUM items of tree 7: key offset = logical address, data = one
checksum a sector). Every node is checked under its own checksum, so a part of the tree that lies elsewhere is lost, not
wrong. Only CRC-32C; with the other kinds nothing is stated. Seen: mkfs.btrfs 6.2, Linux 6.18.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..model import DataSums, Reader
from . import _btrfs_disk as disk
from ._btrfs_live import read_roots
from ._btrfs_scan import sound_leaves
from ._btrfs_sums import EXTENT_SUM, SUM_TREE

OUR_MAX_SUMS = 1 << 28  # sectors of one volume: 1 TiB of data, 3 GiB of memory
CRC_BYTES = 4


def data_sums(reader: Reader, offset: int, limit: int) -> DataSums | None:
    """What the volume at `offset` states of its data, as far as its trees can be read; of sectors that the current tree
    does not know, what the newest old leaf says that lies where it belongs.
    """
    sb = disk.read_super(reader, offset, limit)
    if sb is None or sb.csum != disk.CRC32C:
        return None
    chunks, _ = disk.load_chunks(reader, offset, sb)
    trees = disk.Trees(reader, offset, sb, chunks)
    roots, _ = read_roots(trees, sb)
    root = roots.get(SUM_TREE)
    now = [leaf for leaf in (trees.leaves(root.block, root.level, root.generation) if root is not None else ())
           if leaf is not None]
    crc, place = _stated(now, chunks, sb)
    space = [c for c in chunks.all if c.kind & disk.METADATA]
    old = [leaf for nodes, _ in sound_leaves(reader, offset, sb, space) for node in nodes
           if (leaf := disk.parse_node(node.tobytes())) is not None and leaf.owner == SUM_TREE]
    old.sort(key=lambda leaf: -leaf.generation)
    crc_once, place_once = _stated(old, chunks, sb)
    place_all, first = np.unique(np.concatenate((place, place_once)), return_index=True)
    return DataSums(sb.sector, place_all, np.concatenate((crc, crc_once))[first], first < len(place))


def _stated(leaves: list[disk.Node], chunks: disk.Chunks, sb: disk.Super
            ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """(checksum, physical address) of the sectors that leaves of the checksum tree tell of."""
    sums, places = [np.empty(0, np.uint32)], [np.empty(0, np.int64)]
    held = 0
    for leaf in leaves:
        for i in np.flatnonzero((leaf.items["type"] == EXTENT_SUM) & (leaf.items["offset"] < 1 << 62)).tolist():
            data = leaf.item(i)
            stated = np.frombuffer(data, "<u4", len(data) // CRC_BYTES)
            rows = np.array([[0, int(leaf.items["offset"][i]), len(stated) * sb.sector]], np.int64)
            for at, physical, length in chunks.split(rows)[0].tolist():
                first, count = at // sb.sector, length // sb.sector
                sums.append(stated[first : first + count].astype(np.uint32))
                places.append(physical + np.arange(count, dtype=np.int64) * sb.sector)
                held += count
        if held > OUR_MAX_SUMS:
            break
    return np.concatenate(sums), np.concatenate(places)
