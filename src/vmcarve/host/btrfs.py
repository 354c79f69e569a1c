"""Btrfs as a host: free space from the extent tree, live files from the subvolumes, deleted ones from old leaves.

One device of a volume is read: chunks whose bytes are split over several devices (RAID0, 10, 5, 6) cannot be, and
files in them are told without those parts. Compressed extents are not raw bytes of a file and have no rows.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator

import numpy as np

from ..model import RUN_HOLE, HostFile, HostKind, HostVolume, Reader
from ._blocks import NO_RUNS, merge, subtract
from ._btrfs_begin import begins
from ._btrfs_carve import SIGNATURE, carve, confirm_batch
from ._btrfs_deleted import Deleted
from ._btrfs_disk import (
    DATA,
    RESERVED,
    SUPER_AT,
    SUPER_ROOM,
    Chunks,
    Super,
    Trees,
    load_chunks,
    read_super,
)
from ._btrfs_items import EXTENT_ITEM, EXTENT_TREE, METADATA_ITEM, OUR_MAX_BYTES, Names
from ._btrfs_live import Root, is_subvolume, live_files, logged_space, read_logs, read_roots, survey
from ._btrfs_placer import placer
from ._btrfs_scan import with_old_chunks
from ._btrfs_stated import data_sums
from ._first_look import named
from ._space import RunCollector, Runs, clipped, inverted

OUR_MAX_USED = 1 << 23  # runs of used data space that we hold (128 MiB)


class BtrfsVolume:
    """A Btrfs volume's device. size: bytes of this device; block_size: a sector, the unit of data extents."""

    name = "btrfs"
    derived = False

    def __init__(self, reader: Reader, offset: int, sb: Super, chunks: Chunks, whole: bool) -> None:
        self._reader, self._super, self._chunks, self._whole = reader, sb, chunks, whole
        self.offset, self.size, self.block_size = offset, sb.total, sb.sector
        self.uuid = str(uuid.UUID(bytes=sb.fsid))
        self.label = sb.label

    def _trees(self) -> Trees:
        return Trees(self._reader, self.offset, self._super, self._chunks)

    def free(self) -> Runs:
        """Data chunks less what the extent tree names, and space of the device that no chunk has.

        Where a part of the extent tree is lost, what live files claim counts as used as well.
        """
        free = [self._unchunked() if self._whole else NO_RUNS]  # a chunk that we do not know is not free
        used = self._used()
        if used is not None:
            for chunk in self._chunks.all:
                if chunk.kind & DATA:
                    gaps = inverted(clipped(used, chunk.logical, chunk.logical + chunk.length), chunk.logical,
                                    chunk.logical + chunk.length)  # fmt: skip
                    free += [gaps + [at - chunk.logical, 0] for at in chunk.copies]
        supers = np.array([(at, SUPER_ROOM) for at in SUPER_AT], np.int64)
        runs = subtract(np.concatenate(free), supers) + [self.offset, 0]
        return merge(clipped(runs, self.offset, min(self.offset + self.size, self._reader.size)))

    def _unchunked(self) -> Runs:
        stripes = [(at, c.length) for c in self._chunks.all for at in c.copies]
        return inverted(np.array(stripes, np.int64).reshape(-1, 2), RESERVED, self.size)

    def _used(self) -> Runs | None:
        """Logical addresses that are allocated: int64[n, 2]; None when that cannot be told."""
        trees = self._trees()
        roots, _ = read_roots(trees, self._super)
        used = RunCollector(OUR_MAX_USED)
        lost = EXTENT_TREE not in roots
        if not lost:
            root = roots[EXTENT_TREE]
            for leaf in trees.leaves(root.block, root.level, root.generation):
                if leaf is None:
                    lost = True
                    continue
                items = leaf.items
                items = items[np.isin(items["type"], (EXTENT_ITEM, METADATA_ITEM)) & (items["id"] < OUR_MAX_BYTES)]
                length = np.where(items["type"] == EXTENT_ITEM, items["offset"], self._super.node)
                sane = length < OUR_MAX_BYTES
                used.add(np.stack((items["id"][sane], length[sane]), axis=1).astype(np.int64))
        used.add(logged_space(trees, read_logs(trees, self._super)))
        physical = self._claimed() if lost else NO_RUNS
        for chunk in self._chunks.all if len(physical) else ():
            for at in chunk.copies:
                used.add(clipped(physical, at, at + chunk.length) + [chunk.logical - at, 0])
        runs = used.result()
        return None if used.dropped or (lost and not len(physical)) else runs

    def _claimed(self) -> Runs:
        """Physical addresses of live files' extents."""
        claimed = RunCollector(OUR_MAX_USED)
        for file in self.live():
            rows = file.runs[file.runs[:, 3] != RUN_HOLE]
            claimed.add(rows[:, [1, 2]] - [self.offset, 0])
        return claimed.result()

    def quiet_since(self) -> float:
        """Never: leaves of all generations but the last may be gone. Checksums of data tell (HostFile.check)."""
        return math.inf

    def _subvolumes(self, trees: Trees) -> tuple[list[Root], Names]:
        roots, links = read_roots(trees, self._super)
        folders = Names()
        folders.subvolumes = links
        return [roots[n] for n in sorted(roots) if is_subvolume(n) and roots[n].refs], folders

    def live(self) -> Iterator[HostFile]:
        """Live files of all subvolumes."""
        trees = self._trees()
        roots, folders = self._subvolumes(trees)
        survey(trees, roots, folders)
        yield from live_files(trees, roots, folders, self.offset, read_logs(trees, self._super))

    def files(self) -> Iterator[HostFile]:
        """Live files of all subvolumes, then files that only old leaves tell of."""
        trees = self._trees()
        roots, folders = self._subvolumes(trees)
        live = survey(trees, roots, folders)
        yield from live_files(trees, roots, folders, self.offset, read_logs(trees, self._super))
        yield from Deleted(self._reader, self.offset, self._super, self._chunks, live, folders)


def open_volume(reader: Reader, offset: int, limit: int) -> HostVolume | None:
    """The volume at image offset `offset` (`limit`: bytes to its end), by its newest sound superblock copy."""
    if offset < 0 or limit <= 0:
        return None
    sb = read_super(reader, offset, limit)
    if sb is None or named(reader, offset):  # mkfs.btrfs clears the first MiB: another's magic there is newer
        return None
    chunks, whole = load_chunks(reader, offset, sb)
    if not whole:
        chunks, _ = with_old_chunks(reader, offset, sb, chunks)
    return BtrfsVolume(reader, offset, sb, chunks, whole) if chunks.all else None


HOST = HostKind("btrfs", open_volume, carve, signatures=(SIGNATURE,), confirm_batch=confirm_batch, placer=placer,
                sums=data_sums, begins=begins)
