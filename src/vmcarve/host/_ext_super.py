"""ext2/3/4: superblock, group descriptors, and which blocks are free.

Sources: Linux Documentation/filesystems/ext4 (super, group_descr, bitmaps, blockgroup), checked against mke2fs 1.47.
All integers little-endian. Block numbers count from the volume start, also with 1 KiB blocks (first data block 1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

import numpy as np
import numpy.typing as npt

from ..model import Reader
from ._blocks import I64, NO_RUNS, U8, clear_bits, crc_rows, merge, subtract

MAGIC = 0xEF53
SUPER_AT, SUPER_SIZE = 1024, 1024
MAX_LOG_BLOCK = 6  # 64 KiB blocks (s_log_block_size, format limit)
OUR_MAX_GROUPS = 1 << 20  # 128 TiB at 4 KiB blocks: 64 MiB of descriptors
OUR_MAX_BATCH = 8 << 20  # bytes of bitmaps read at once

COMPAT_SPARSE2 = 0x200
INCOMPAT_FILETYPE, INCOMPAT_RECOVER, INCOMPAT_JOURNAL_DEV, INCOMPAT_META_BG = 0x2, 0x4, 0x8, 0x10
INCOMPAT_EXTENTS, INCOMPAT_64BIT, INCOMPAT_CSUM_SEED, INCOMPAT_INLINE = 0x40, 0x80, 0x2000, 0x8000
RO_SPARSE, RO_GDT_CSUM, RO_BIGALLOC, RO_METADATA_CSUM, RO_ORPHANS = 0x1, 0x10, 0x200, 0x400, 0x10000
BG_INODE_UNINIT, BG_BLOCK_UNINIT = 0x1, 0x2


@dataclass(frozen=True)
class Super:
    """What one superblock says, bounded. offset: image offset of the volume; counts are in blocks by default."""

    offset: int
    block_size: int
    blocks: int
    first_block: int
    blocks_per_group: int
    cluster_blocks: int
    inodes: int
    inodes_per_group: int
    inode_size: int
    desc_size: int
    compat: int
    incompat: int
    ro_compat: int
    uuid: bytes
    label: str
    seed: int
    journal_inum: int
    journal_blocks: bytes  # s_jnl_blocks: a copy of the journal inode's i_block
    journal_size: int
    first_meta_bg: int
    reserved_gdt: int
    backup_groups: tuple[int, int]
    group: int  # s_block_group_nr: 0 in the primary
    orphan: bool  # inodes were unlinked and still open

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first_block) // self.blocks_per_group)

    @property
    def checksums(self) -> bool:
        return bool(self.ro_compat & RO_METADATA_CSUM)

    @cached_property
    def seed_state(self) -> int:
        """CRC-32C state after the file system's seed; every metadata checksum goes on from here."""
        if self.incompat & INCOMPAT_CSUM_SEED:
            return self.seed
        return int(crc_rows(np.frombuffer(self.uuid, np.uint8).reshape(1, 16))[0])

    def owner_state(self, ino: npt.NDArray[np.uint32], generation: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """CRC-32C state after seed, inode number and generation: the key that a file's metadata blocks start from."""
        rows = np.stack((ino.astype("<u4"), generation.astype("<u4")), axis=1).view(np.uint8).reshape(-1, 8)
        return crc_rows(rows, self.seed_state)

    def group_start(self, group: int) -> int:
        return self.first_block + group * self.blocks_per_group

    def has_super(self, group: int) -> bool:
        """Whether a copy of superblock and descriptors begins this group (sparse_super: 0, 1, powers of 3, 5, 7)."""
        if group == 0:
            return True
        if self.compat & COMPAT_SPARSE2:
            return group in self.backup_groups
        if group == 1 or not self.ro_compat & RO_SPARSE:
            return True
        for base in (3, 5, 7):
            power = base
            while power < group:
                power *= base
            if power == group:
                return True
        return False


def parse(data: bytes, offset: int, limit: int) -> Super | None:
    """The superblock in 1024 bytes, or None when its fields do not agree. `limit`: bytes from the volume's start."""
    if len(data) < SUPER_SIZE or struct.unpack_from("<H", data, 0x38)[0] != MAGIC:
        return None
    inodes, blocks = struct.unpack_from("<II", data, 0)
    first_block, log_block, log_cluster, bpg, cpg, ipg = struct.unpack_from("<IIIIII", data, 0x14)
    revision = struct.unpack_from("<I", data, 0x4C)[0]
    inode_size, group, compat, incompat, ro_compat = struct.unpack_from("<HHIII", data, 0x58)
    if revision == 0:
        inode_size, compat, incompat, ro_compat = 128, 0, 0, 0
    if log_block > MAX_LOG_BLOCK or incompat & INCOMPAT_JOURNAL_DEV:
        return None
    bs = 1024 << log_block
    if incompat & INCOMPAT_64BIT:
        blocks |= struct.unpack_from("<I", data, 0x150)[0] << 32
    desc_size = max(struct.unpack_from("<H", data, 0xFE)[0], 32) if incompat & INCOMPAT_64BIT else 32
    ratio = 1
    if ro_compat & RO_BIGALLOC:
        if not log_block <= log_cluster <= log_block + 16:
            return None
        ratio = 1 << (log_cluster - log_block)
    else:
        cpg = bpg
    if not (8 <= cpg <= 8 * bs and bpg == cpg * ratio and 1 <= ipg <= 8 * bs and first_block <= (bs == 1024)):
        return None
    if inode_size < 128 or inode_size > bs or inode_size & (inode_size - 1):
        return None
    if desc_size > bs or desc_size & (desc_size - 1) or blocks <= first_block:
        return None
    groups = -(-(blocks - first_block) // bpg)
    if groups > OUR_MAX_GROUPS or inodes != groups * ipg:
        return None
    # an image cut short: what lies behind its end is not looked for
    if blocks * bs > limit:
        blocks = max(limit // bs, first_block + 1)
    return Super(
        offset, bs, blocks, first_block, bpg, ratio, inodes, ipg, inode_size, desc_size, compat, incompat, ro_compat,
        data[0x68:0x78], data[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace"),
        struct.unpack_from("<I", data, 0x270)[0], struct.unpack_from("<I", data, 0xE0)[0] or 8, data[0x10C:0x148],
        struct.unpack_from("<I", data, 0x14C)[0] | struct.unpack_from("<I", data, 0x148)[0] << 32,
        struct.unpack_from("<I", data, 0x104)[0], struct.unpack_from("<H", data, 0xCE)[0],
        struct.unpack_from("<II", data, 0x24C), group,
        bool(struct.unpack_from("<I", data, 0xE8)[0] or ro_compat & RO_ORPHANS),
    )  # fmt: skip


def checksum_ok(data: bytes) -> bool:
    """Whether a superblock's own checksum holds, True where it has none."""
    if not struct.unpack_from("<I", data, 0x64)[0] & RO_METADATA_CSUM:
        return True
    state = crc_rows(np.frombuffer(data, np.uint8, 0x3FC).reshape(1, -1))[0]
    return int(state) == struct.unpack_from("<I", data, 0x3FC)[0]


def find(reader: Reader, offset: int, limit: int) -> Super | None:
    """The volume's superblock: the primary, or a backup at its place in group 1, 3 or 5 when the primary is gone."""
    limit = min(limit, reader.size - offset)
    data = reader.read(offset + SUPER_AT, SUPER_SIZE)
    primary = parse(data, offset, limit)
    if primary is not None and primary.group == 0 and checksum_ok(data):
        return primary
    backup = find_copy(reader, offset, limit) if not _is_other(reader, offset) else None
    if backup is not None:
        return backup
    # a primary whose checksum is wrong but whose fields agree is better than nothing
    return primary if primary is not None and primary.group == 0 else None


def find_copy(reader: Reader, offset: int, limit: int) -> Super | None:
    """A backup at its place in group 1, 3, 5, 7 or 9, whatever the volume begins with."""
    limit = min(limit, reader.size - offset)
    for bs in (4096, 1024, 2048):
        for group in (1, 3, 5, 7, 9):
            backup = _backup(reader, offset, limit, bs, group)
            if backup is not None:
                return backup
    return None


def _is_other(reader: Reader, offset: int) -> bool:
    """Whether another file system begins here: backups outlive a new mkfs, and then tell of the past."""
    first = reader.read(offset, 11)
    return first[:4] == b"XFSB" or first[3:11] in (b"NTFS    ", b"EXFAT   ") \
        or reader.read(offset + 0x10040, 8) == b"_BHRfS_M"  # fmt: skip


def _backup(reader: Reader, offset: int, limit: int, block_size: int, group: int) -> Super | None:
    """The superblock copy of `group` in the usual geometry, where one bitmap block describes a group."""
    at = (group * 8 * block_size + (block_size == 1024)) * block_size
    data = reader.read(offset + at, SUPER_SIZE) if at + SUPER_SIZE <= limit else b""
    backup = parse(data, offset, limit)
    if backup is None or backup.group != group or backup.block_size != block_size or not checksum_ok(data):
        return None
    return backup if backup.group_start(group) * block_size == at else None


class Groups:
    """Group descriptors as arrays, one element a group: from the primary table, or a backup where that is damaged.

    block_bitmap, inode_bitmap, inode_table int64[g] (0: lost); flags uint16[g]; unused int64[g] inodes never used at
    the table's end; bitmap_csum uint32[g].
    """

    def __init__(self, reader: Reader, sb: Super) -> None:
        n = sb.groups
        raw = np.zeros((n, sb.desc_size), np.uint8)
        good = np.zeros(n, np.bool_)
        first_good: npt.NDArray[np.bool_] | None = None
        for copy in [0, *(g for g in (1, 3, 5, 7, 9, 25) if g < n and sb.has_super(g))]:
            candidate = _read_table(reader, sb, copy)
            valid = _valid(sb, candidate) & ~good
            raw[valid] = candidate[valid]
            good |= valid
            first_good = good.copy() if first_good is None else first_good
            if good.all():
                break
        wide = sb.desc_size >= 64
        self.good = good
        self.block_bitmap = _number(raw, 0x0, 0x20, wide)
        self.inode_bitmap = _number(raw, 0x4, 0x24, wide)
        self.inode_table = _number(raw, 0x8, 0x28, wide)
        self.flags = raw[:, 0x12:0x14].copy().view("<u2")[:, 0].copy()
        low = raw[:, 0x1C:0x1E].copy().view("<u2")[:, 0].astype(np.int64)
        self.unused = low | (raw[:, 0x32:0x34].copy().view("<u2")[:, 0].astype(np.int64) << 16 if wide else 0)
        self.bitmap_csum = raw[:, 0x18:0x1A].copy().view("<u2")[:, 0].astype(np.uint32)
        if wide:
            self.bitmap_csum |= raw[:, 0x38:0x3A].copy().view("<u2")[:, 0].astype(np.uint32) << np.uint32(16)
        self.wide = wide
        # backups are written by mke2fs and resize only: their flags and counts tell nothing of today
        backup = ~first_good if first_good is not None else ~good
        uses_counts = bool(sb.ro_compat & (RO_GDT_CSUM | RO_METADATA_CSUM))
        stale = backup if uses_counts else np.ones(n, np.bool_)
        self.flags[stale], self.unused[stale] = 0, 0
        self.backup = backup

    def used_inodes(self, sb: Super) -> I64:
        """How many slots of each group's inode table were ever used (0 where the table is lost)."""
        used = np.clip(sb.inodes_per_group - self.unused, 0, sb.inodes_per_group)
        used[(self.flags & BG_INODE_UNINIT).astype(np.bool_)] = 0
        used[~self.good] = 0
        return used


def _number(raw: U8, low: int, high: int, wide: bool) -> I64:
    out = raw[:, low : low + 4].copy().view("<u4")[:, 0].astype(np.int64)
    if wide:
        out |= raw[:, high : high + 4].copy().view("<u4")[:, 0].astype(np.int64) << 32
    return out


def _read_table(reader: Reader, sb: Super, copy: int) -> U8:
    """The descriptor table behind the superblock of group `copy`, as uint8[groups, desc_size] (zeros where absent)."""
    per_block = sb.block_size // sb.desc_size
    count = -(-sb.groups // per_block)
    old = min(count, sb.first_meta_bg) if sb.incompat & INCOMPAT_META_BG else count
    bs = sb.block_size
    # in a 1 KiB file system block 1 is the superblock; in others it lies inside block 0
    first = sb.group_start(copy) + 1
    parts = [reader.read(sb.offset + first * bs, old * bs).ljust(old * bs, b"\0")] if old else []
    for i in range(old, count):
        group = i * per_block + (1 if copy else 0)
        at = sb.group_start(group) + sb.has_super(group)
        parts.append(reader.read(sb.offset + at * bs, bs).ljust(bs, b"\0"))
    table = np.frombuffer(b"".join(parts), np.uint8)
    return table[: count * per_block * sb.desc_size].reshape(-1, sb.desc_size)[: sb.groups]


def _valid(sb: Super, raw: U8) -> npt.NDArray[np.bool_]:
    wide = sb.desc_size >= 64
    table_blocks = -(-sb.inodes_per_group * sb.inode_size // sb.block_size)
    total = sb.first_block + sb.groups * sb.blocks_per_group
    ok = np.ones(len(raw), np.bool_)
    for low, size in ((0x0, 1), (0x4, 1), (0x8, table_blocks)):
        at = _number(raw, low, low + 0x20, wide)
        ok &= (at > sb.first_block) & (at + size <= total)
    if sb.checksums and len(raw):
        number = np.arange(len(raw), dtype="<u4").view(np.uint8).reshape(-1, 4)
        body = raw.copy()
        stored = body[:, 0x1E:0x20].copy().view("<u2")[:, 0]
        body[:, 0x1E:0x20] = 0
        ok &= (crc_rows(np.concatenate((number, body), axis=1), sb.seed_state) & 0xFFFF) == stored
    return ok


def metadata_runs(sb: Super, groups: Groups) -> I64:
    """Blocks that the layout itself takes: superblock and descriptor copies, bitmaps, inode tables."""
    per_block = sb.block_size // sb.desc_size
    count = -(-sb.groups // per_block)
    meta_bg = bool(sb.incompat & INCOMPAT_META_BG)
    old = min(count, sb.first_meta_bg) if meta_bg else count
    rows: list[tuple[int, int]] = [(0, sb.first_block + 1)]
    # sparse_super's groups are few; without it every group has a copy, which is as many rows as there are groups
    for g in range(sb.groups):
        if sb.has_super(g):
            rows.append((sb.group_start(g), 1 + old + (0 if meta_bg else sb.reserved_gdt)))
    for i in range(old, count):
        for group in {i * per_block, i * per_block + 1, i * per_block + per_block - 1}:
            if group < sb.groups:
                rows.append((sb.group_start(group), 1 + sb.has_super(group)))
    table_blocks = -(-sb.inodes_per_group * sb.inode_size // sb.block_size)
    parts = [np.array(rows, np.int64)]
    for at, size in ((groups.block_bitmap, 1), (groups.inode_bitmap, 1), (groups.inode_table, table_blocks)):
        known = at[groups.good]
        parts.append(np.stack((known, np.full(len(known), size, np.int64)), axis=1))
    runs = np.concatenate(parts)
    # bigalloc: a cluster that holds any of it is taken whole
    start = runs[:, 0] // sb.cluster_blocks * sb.cluster_blocks
    end = -(-runs.sum(axis=1) // sb.cluster_blocks) * sb.cluster_blocks
    return merge(np.stack((start, end - start), axis=1))


def free_blocks(reader: Reader, sb: Super, groups: Groups) -> tuple[I64, npt.NDArray[np.bool_]]:
    """(runs of free blocks, known bool[g]): a group whose bitmap is lost or fails its checksum is not known."""
    bs, n = sb.block_size, sb.groups
    known = np.zeros(n, np.bool_)
    parts: list[I64] = []
    clusters = sb.blocks_per_group // sb.cluster_blocks
    sizes = np.minimum(sb.blocks_per_group, sb.blocks - sb.first_block - np.arange(n) * sb.blocks_per_group)
    uninit = ((groups.flags & BG_BLOCK_UNINIT) != 0) & groups.good
    known |= uninit
    for g in np.flatnonzero(uninit).tolist():
        parts.append(np.array([(sb.group_start(g), sizes[g])], np.int64))
    batch = max(OUR_MAX_BATCH // bs, 1)
    todo = np.flatnonzero(groups.good & ~uninit)
    for i in range(0, len(todo), batch):
        part = todo[i : i + batch]
        rows = _gather(reader, sb, groups.block_bitmap[part])
        there = np.array([not reader.missing(sb.offset + int(b) * bs, bs) for b in groups.block_bitmap[part]], np.bool_)
        if sb.checksums:
            crc = crc_rows(rows[:, : clusters // 8], sb.seed_state)
            # a backup descriptor's checksum is that of an older bitmap; one that was made from it has none
            stated = groups.bitmap_csum[part]
            there &= groups.backup[part] | (stated == 0) | ((crc if groups.wide else crc & 0xFFFF) == stated)
        known[part] = there
        for g, row in zip(part[there].tolist(), rows[there], strict=True):
            run = clear_bits(row, -(-int(sizes[g]) // sb.cluster_blocks)) * sb.cluster_blocks
            run[:, 0] += sb.group_start(g)
            parts.append(run)
    runs = subtract(np.concatenate(parts), metadata_runs(sb, groups)) if parts else NO_RUNS
    keep = runs[:, 0] < sb.blocks
    runs = runs[keep]
    runs[:, 1] = np.minimum(runs[:, 1], sb.blocks - runs[:, 0])
    return runs, known


def _gather(reader: Reader, sb: Super, blocks: I64) -> U8:
    """The contents of `blocks`; neighbours are read in one piece (flex_bg puts the bitmaps of 16 groups together)."""
    bs = sb.block_size
    out = np.zeros((len(blocks), bs), np.uint8)
    cut = np.flatnonzero(np.diff(blocks) != 1) + 1
    for first, last in zip([0, *cut.tolist()], [*cut.tolist(), len(blocks)], strict=True):
        data = reader.read(sb.offset + int(blocks[first]) * bs, (last - first) * bs).ljust((last - first) * bs, b"\0")
        out[first:last] = np.frombuffer(data, np.uint8).reshape(-1, bs)
    return out


def uuid_text(sb: Super) -> str:
    return str(UUID(bytes=sb.uuid))
