"""Btrfs: deleted files, out of leaves of old generations that still lie in metadata chunks.

Every change writes new copies of the nodes that it touches, and the old ones stay until their room is used again. All
sound leaves of subvolumes are looked at: what they say of inodes that are not live any more is put together per file
range, the newest generation first. A leaf also says where its file has holes: between two of its extents. The map is
whole when its extents sum up to what the inode's newest state counted (nbytes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..model import HostFile, Reader
from ._btrfs_batch import OUR_MAX_ROWS, Batch, positions
from ._btrfs_disk import METADATA, SYSTEM, Chunks, Node, Super, parse_node
from ._btrfs_items import (
    DIR_INDEX,
    EXTENT_DATA,
    FIRST_ID,
    INODE_EXTREF,
    INODE_ITEM,
    INODE_REF,
    LAST_ID,
    S_IFDIR,
    S_IFMT,
    Names,
    inodes,
    names,
    to_rows,
)
from ._btrfs_live import Live, is_subvolume
from ._btrfs_scan import sound_leaves, with_old_chunks
from ._btrfs_sums import Sums
from ._space import Runs

OUR_MAX_NAMES = 1 << 20  # names of deleted files and directories
OUR_MAX_FILES = 1 << 22  # deleted inodes of one volume
REGULAR = 1  # type of a directory's entry

Keys = npt.NDArray[np.uint64]
Told = dict[tuple[int, int], tuple[int, int, str]]  # (subvolume, inode) -> generation, parent, name


@dataclass(slots=True)
class Scan:
    """Leaves that tell of deleted inodes: physical addresses; (subvolume, lowest inode, highest inode) of each.

    files uint64[m, 2]: (subvolume, inode), rising; counts int64[m]: extents that all leaves together tell of each.
    entries: (subvolume, inode) -> (generation, parent, name) as directories told it.
    """

    place: list[int] = field(default_factory=list[int])
    span: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    files: Keys = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    entries: Told = field(default_factory=dict)


class Deleted:
    """Deleted files of one volume. live tells what is not deleted; folders takes the names of deleted directories.

    A live file whose current leaf is lost looks the same, and is told as deleted.
    """

    def __init__(self, reader: Reader, base: int, sb: Super, chunks: Chunks, live: Live, folders: Names) -> None:
        self._reader, self._base, self._super = reader, base, sb
        self._live, self._folders = live, folders
        self._chunks, gone = with_old_chunks(reader, base, sb, chunks)
        # Current chunks first: each physical byte is looked at once, as what it is now.
        self._space = [c for c in (*chunks.all, *gone) if c.kind & (METADATA | SYSTEM)]
        self._sums = Sums(reader, base, sb, self._chunks, self._space)

    def __iter__(self) -> Iterator[HostFile]:
        scan = self._scan()
        counts = np.cumsum(scan.counts)
        at = 0
        while at < len(counts):
            before = int(counts[at - 1]) if at else 0
            end = max(int(np.searchsorted(counts, before + OUR_MAX_ROWS, "right")), at + 1)
            yield from self._batch(scan, scan.files[at:end])
            at = end

    def _batch(self, scan: Scan, keys: Keys) -> Iterator[HostFile]:
        """Second pass: the leaves that tell of these files are read again, in the order in which they lie."""
        batch = Batch(keys)
        first, last = keys[0].tolist(), keys[-1].tolist()
        for place, (root, low, high) in zip(scan.place, scan.span, strict=True):
            if [root, high] < first or [root, low] > last:
                continue
            data = self._reader.read(self._base + place, self._super.node)
            leaf = parse_node(data) if len(data) == self._super.node else None
            if leaf is not None:
                batch.take(leaf)
        yield from batch.files(self._finish, self._sums.tested, self._folders.path, self._super.sector, scan.entries)

    def _finish(self, pieces: Runs) -> tuple[Runs, bool]:
        return to_rows(pieces, self._chunks, self._base)

    # --- first pass: which files, which leaves -----------------------------------------------------------------------
    def _scan(self) -> Scan:
        scan = Scan()
        parts: list[tuple[Keys, npt.NDArray[np.int64]]] = []
        held = 0
        for nodes, places in sound_leaves(self._reader, self._base, self._super, self._space):
            for data, place in zip(nodes, places.tolist(), strict=True):
                leaf = parse_node(data.tobytes())
                if leaf is None or not is_subvolume(leaf.owner):
                    continue
                gone = self.gone(leaf)
                if gone is None:
                    continue
                self._entries(leaf, scan)
                if not gone.any():
                    continue
                self._note_folders(leaf, gone)
                ids, counts = np.unique(leaf.items["id"][gone], return_counts=True)
                scan.place.append(place)
                scan.span.append((leaf.owner, int(ids[0]), int(ids[-1])))
                parts.append((np.stack((np.full_like(ids, leaf.owner), ids), axis=1), counts.astype(np.int64)))
                held += len(ids)
                if held > 2 * OUR_MAX_ROWS:
                    parts = [_summed(parts)]
                    held = len(parts[0][0]) // 2  # so that a full list is not sorted for each leaf
        if parts:
            scan.files, scan.counts = _summed(parts)
        return scan

    def gone(self, leaf: Node) -> npt.NDArray[np.bool_] | None:
        """Which items of a leaf tell of inodes that are not live; None: the leaf is in use by a tree of another id."""
        live = self._live.inodes.get(leaf.owner)
        ids = leaf.items["id"]
        if live is None:
            i = int(np.searchsorted(self._live.leaves, leaf.block))
            if i < len(self._live.leaves) and int(self._live.leaves[i]) == leaf.block:
                return None
            live = np.zeros(0, np.uint64)
        wanted = np.isin(leaf.items["type"], (INODE_ITEM, INODE_REF, INODE_EXTREF, EXTENT_DATA))
        wanted &= (ids > FIRST_ID) & (ids <= LAST_ID)
        wanted[wanted] = positions(ids[wanted], live) < 0
        return wanted

    def _note_folders(self, leaf: Node, gone: npt.NDArray[np.bool_]) -> None:
        """Names of deleted directories, for the paths of what was in them."""
        row, inode = inodes(leaf)
        folder = row[gone[row] & ((inode["mode"] & S_IFMT) == S_IFDIR)]
        for i in folder.tolist():
            if i + 1 < len(leaf.items) and leaf.items["type"][i + 1] == INODE_REF:
                key = leaf.owner, int(leaf.items["id"][i])
                if int(leaf.items["id"][i + 1]) == key[1]:
                    _newest(self._folders.gone, key, leaf, next(names(leaf, i + 1), None))

    def _entries(self, leaf: Node, scan: Scan) -> None:
        """Names by which directories knew deleted files (the file's own record of its name may be lost)."""
        row = np.flatnonzero((leaf.items["type"] == DIR_INDEX) & (leaf.items["size"] > 30))
        if not len(row):
            return
        head = leaf.gather(row, 30)
        target = np.ascontiguousarray(head[:, :8]).view("<u8")[:, 0]
        live = self._live.inodes.get(leaf.owner, np.zeros(0, np.uint64))
        file = (head[:, 29] == REGULAR) & (head[:, 8] == 1) & (positions(target, live) < 0)
        for i, number in zip(row[file].tolist(), target[file].tolist(), strict=True):
            data = leaf.item(i)
            length = int.from_bytes(data[27:29], "little")
            name = int(leaf.items["id"][i]), data[30 : 30 + length].decode("utf-8", "replace")
            _newest(scan.entries, (leaf.owner, number), leaf, name)


def _newest(known: Told, key: tuple[int, int], leaf: Node, name: tuple[int, str] | None) -> None:
    if name is None or (key not in known and len(known) >= OUR_MAX_NAMES):
        return
    if key not in known or known[key][0] < leaf.generation:
        known[key] = leaf.generation, *name


def _summed(parts: list[tuple[Keys, npt.NDArray[np.int64]]]) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Equal keys made one, their counts added; keys rising."""
    keys, counts = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, counts = keys[order], counts[order]
    start = np.flatnonzero(np.concatenate(([True], (keys[1:] != keys[:-1]).any(axis=1))))
    return keys[start][:OUR_MAX_FILES], np.add.reduceat(counts, start)[:OUR_MAX_FILES]
