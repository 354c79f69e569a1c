"""What Btrfs leaves say of files: inodes, names, extents, as arrays; and HostFile rows out of extents.

Source: Linux include/uapi/linux/btrfs_tree.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import RUN_DATA, RUN_HOLE, RUN_INLINE, RUN_UNWRITTEN
from ._blocks import NO_RUNS
from ._btrfs_disk import Chunks, Node
from ._space import Runs, inverted, joined_rows, newest_wins

INODE_ITEM, INODE_REF, INODE_EXTREF, DIR_INDEX, EXTENT_DATA, ROOT_ITEM, ROOT_BACKREF = 1, 12, 13, 96, 108, 132, 144
EXTENT_ITEM, METADATA_ITEM = 168, 169
EXTENT_TREE, FS_TREE = 2, 5
FIRST_ID, LAST_ID = 256, (1 << 64) - 257  # of inodes and of subvolumes; 256 is also a subvolume's root directory
S_IFMT, S_IFDIR, S_IFREG = 0xF000, 0x4000, 0x8000
OUR_MAX_BYTES = 1 << 62
OUR_MAX_INLINE = 64 << 10  # bytes: no more than a node holds
OUR_MAX_DEPTH = 256  # directories in one path
UNKNOWN = "?"  # stands for the part of a path that is gone

# kinds of pieces: the RUN_* that have a place or are zeros, and what cannot be read as it lies
PACKED, LOST = 8, 9  # compressed or encrypted; contradicts itself

EXTENT = np.dtype([("generation", "<u8"), ("bytes", "<u8"), ("compression", "u1"), ("encryption", "u1"),
                   ("other", "<u2"), ("type", "u1"), ("disk", "<u8"), ("disk_bytes", "<u8"), ("offset", "<u8"),
                   ("length", "<u8")])  # fmt: skip
INODE = np.dtype({"names": ["size", "nbytes", "links", "mode", "accessed", "changed", "modified", "created"],
                  "formats": ["<u8", "<u8", "<u4", "<u4", "<i8", "<i8", "<i8", "<i8"],
                  "offsets": [16, 24, 40, 52, 112, 124, 136, 148], "itemsize": 160})  # fmt: skip
INLINE_AT = 21  # bytes before the content of an inline extent


@dataclass(frozen=True, slots=True)
class Extents:
    """EXTENT_DATA items of one leaf. row int64[n]: item numbers, rising; id uint64[n].

    piece int64[n, 4]: start, end (file offsets), kind, logical address of the start (-1: none). made int64[n]: the
    generation in which the extent was written.
    """

    row: npt.NDArray[np.int64]
    id: npt.NDArray[np.uint64]
    piece: Runs
    made: npt.NDArray[np.int64]


def extents(leaf: Node) -> Extents:
    """All file extents of a leaf; those whose offsets make no sense are left out."""
    row = np.flatnonzero((leaf.items["type"] == EXTENT_DATA) & (leaf.items["size"] >= INLINE_AT))
    told = leaf.gather(row, EXTENT.itemsize).view(EXTENT)[:, 0]
    start, inline = leaf.items["offset"][row], told["type"] == 0
    length = np.where(inline, told["bytes"], told["length"])
    good = (start < OUR_MAX_BYTES) & (length > 0) & (length < OUR_MAX_BYTES) & (told["type"] <= 2)
    good &= inline | (leaf.items["size"][row] >= EXTENT.itemsize)
    row, told, start, length, inline = row[good], told[good], start[good], length[good], inline[good]
    packed = (told["compression"] | told["encryption"] | told["other"]) != 0
    limit = np.uint64(OUR_MAX_BYTES)
    lost = (told["disk"] >= limit) | (told["offset"] >= limit) | (told["offset"] + length > told["disk_bytes"])
    kind = np.select([inline, told["disk"] == 0, packed, lost, told["type"] == 2],
                     [np.where(packed, PACKED, RUN_INLINE), RUN_HOLE, PACKED, LOST, RUN_UNWRITTEN],
                     RUN_DATA)  # fmt: skip
    placed = (kind == RUN_DATA) | (kind == RUN_UNWRITTEN)
    logical = np.where(placed, told["disk"] + told["offset"], 0).astype(np.int64)
    first = start.astype(np.int64)
    piece = np.stack((first, first + length.astype(np.int64), kind, np.where(placed, logical, -1)), axis=1)
    return Extents(row, leaf.items["id"][row], piece, (told["generation"] & limit - np.uint64(1)).astype(np.int64))


def inodes(leaf: Node) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]:
    """(item numbers, INODE records) of the inode items of a leaf."""
    row = np.flatnonzero((leaf.items["type"] == INODE_ITEM) & (leaf.items["size"] >= INODE.itemsize))
    return row, leaf.gather(row, INODE.itemsize).view(INODE)[:, 0]


def names(leaf: Node, i: int) -> Iterator[tuple[int, str]]:
    """(parent inode, name) of an INODE_REF or INODE_EXTREF item."""
    data = leaf.item(i)
    if int(leaf.items["type"][i]) == INODE_REF:
        if len(data) >= 10:
            (length,) = struct.unpack_from("<H", data, 8)
            yield int(leaf.items["offset"][i]), data[10 : 10 + length].decode("utf-8", "replace")
    elif len(data) >= 18:
        parent, _, length = struct.unpack_from("<QQH", data, 0)
        yield parent, data[18 : 18 + length].decode("utf-8", "replace")


def times(inode: np.void) -> dict[str, float]:
    """An INODE's times as Unix seconds; the fractions are not told."""
    return {k: float(inode[k]) for k in ("created", "modified", "changed", "accessed") if 0 < inode[k] < 1 << 40}


def without_overlap(pieces: Runs, rank: Runs) -> Runs:
    """Pieces (int64[n, 4 or more]) rising and without overlap: of two, the one of higher rank; ties: the later row."""
    start, end, row = newest_wins(pieces[:, 0], pieces[:, 1], rank)
    out = pieces[row]
    moved = np.where(out[:, 3] >= 0, out[:, 3] + start - out[:, 0], -1)
    return np.concatenate((start[:, None], end[:, None], out[:, 2:3], moved[:, None], out[:, 4:]), axis=1)


def to_rows(pieces: Runs, chunks: Chunks, base: int) -> tuple[Runs, bool]:
    """HostFile rows of pieces (rising, no overlap), and whether all of them could be told.

    base: image offset of the volume.
    """
    told = (pieces[:, 2] == RUN_DATA) | (pieces[:, 2] == RUN_UNWRITTEN)
    hole = pieces[pieces[:, 2] == RUN_HOLE]
    parts = [np.stack((hole[:, 0], np.full(len(hole), -1), hole[:, 1] - hole[:, 0], hole[:, 2]), axis=1)]
    whole = bool((told | (pieces[:, 2] == RUN_HOLE)).all())
    for kind in (RUN_DATA, RUN_UNWRITTEN):
        some = pieces[pieces[:, 2] == kind]
        rows, placed = chunks.split(np.stack((some[:, 0], some[:, 3], some[:, 1] - some[:, 0]), axis=1))
        whole &= placed
        parts.append(np.stack((rows[:, 0], rows[:, 1] + base, rows[:, 2], np.full(len(rows), kind)), axis=1))
    out = np.concatenate(parts)
    return joined_rows(out[np.argsort(out[:, 0], kind="stable")]), whole


def gaps(pieces: Runs, size: int) -> Runs:
    """Holes (as pieces) where [0, size) has no piece."""
    spans = np.stack((pieces[:, 0], pieces[:, 1] - pieces[:, 0]), axis=1) if len(pieces) else NO_RUNS
    free = inverted(spans, 0, size)
    return np.stack((free[:, 0], free.sum(axis=1), np.full(len(free), RUN_HOLE), np.full(len(free), -1)), axis=1)


class Names:
    """Paths of one volume. Directories by (subvolume, inode), subvolumes by id; loops and gaps are expected."""

    def __init__(self) -> None:
        self.folders: dict[tuple[int, int], tuple[int, str]] = {}
        self.gone: dict[tuple[int, int], tuple[int, int, str]] = {}  # deleted: generation, parent, name
        self.subvolumes: dict[int, tuple[int, int, str]] = {}  # parent subvolume, directory in it, name

    def path(self, root: int, parent: int, name: str) -> str:
        """The path from the top subvolume, without a leading slash; what is gone above shows as "?"."""
        parts = [name]
        while len(parts) < OUR_MAX_DEPTH:
            key = root, parent
            if parent == FIRST_ID and root == FS_TREE:
                break
            if parent == FIRST_ID and root in self.subvolumes:
                root, parent, part = self.subvolumes[root]
            elif key in self.folders:
                parent, part = self.folders[key]
            elif key in self.gone:
                _, parent, part = self.gone[key]
            else:
                parts.append(UNKNOWN)
                break
            parts.append(part)
        return "/".join(reversed(parts))
