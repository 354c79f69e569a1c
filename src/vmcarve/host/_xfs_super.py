"""XFS geometry: superblock, allocation groups, their free space and inode btrees.

Sources: XFS Algorithms & Data Structures (3rd edition), checked against xfsprogs 6.1 / Linux 6.18. All big-endian.
A "block" is a linear block number from the volume's start; an "fsblock" has the group in its high bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt

from ..checksums import crc32c_zeroed
from ..model import Reader
from ._blocks import I64, NO_RUNS, merge

SUPER_SIZE = 512
DADDR = 512  # the unit in which blocks state their own place
OUR_MAX_GROUPS = 1 << 16
OUR_MAX_BTREE_BLOCKS = 1 << 20  # of one allocation group's btree
NULL32, NULL64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF

INCOMPAT_FTYPE, INCOMPAT_SPINODES, INCOMPAT_META_UUID = 0x1, 0x2, 0x4
FEATURES2_FTYPE = 0x200
# the copies of the superblock begin each group: agcount as mkfs.xfs chooses it for plain disks and for stripes
USUAL_GROUPS = (4, 2, 8, 16, 32)

BNO_MAGIC, CNT_MAGIC, INO_MAGIC = (b"AB3B", b"ABTB"), (b"AB3C", b"ABTC"), (b"IAB3", b"IABT")


@dataclass(frozen=True, slots=True)
class Super:
    """What one superblock says, bounded. offset: image offset of the volume."""

    offset: int
    block_size: int
    blocks: int
    group_blocks: int
    groups: int
    group_log: int
    inode_size: int
    inode_log: int  # log2 of inodes per block
    sector: int
    root: int
    log_start: int  # fsblock, 0 when the log is on another device
    log_blocks: int
    version: int
    uuid: bytes
    meta_uuid: bytes
    label: str
    dir_block: int
    ftype: bool
    sparse_inodes: bool
    internal: frozenset[int]  # inodes of realtime bitmap and summary, and of quotas: in no directory

    @property
    def crc(self) -> bool:
        return self.version == 5

    def block_of(self, fsblock: int) -> int | None:
        """Linear block of an fsblock, None when it lies outside the volume."""
        group, inside = fsblock >> self.group_log, fsblock & ((1 << self.group_log) - 1)
        if group >= self.groups or inside >= self.group_blocks:
            return None
        block = group * self.group_blocks + inside
        return block if block < self.blocks else None

    def fsblock_of(self, block: int) -> int:
        group, inside = divmod(block, self.group_blocks)
        return group << self.group_log | inside

    def place(self, block: int) -> int:
        """Image offset of a linear block."""
        return self.offset + block * self.block_size

    def inode_place(self, ino: int) -> int | None:
        """Image offset of an inode, None when its number names no place."""
        block = self.block_of(ino >> self.inode_log)
        slot = ino & ((1 << self.inode_log) - 1)
        return None if block is None else self.place(block) + slot * self.inode_size

    def group_size(self, group: int) -> int:
        """Blocks of one group; the last is shorter."""
        return min(self.group_blocks, self.blocks - group * self.group_blocks)


def parse(data: bytes, offset: int, limit: int) -> Super | None:
    """The superblock at the start of `data`, or None when its fields do not agree."""
    if len(data) < SUPER_SIZE or data[:4] != b"XFSB":
        return None
    block_size, blocks = struct.unpack_from(">IQ", data, 4)
    log_start, root = struct.unpack_from(">QQ", data, 48)
    group_blocks, groups, _, log_blocks, version, sector, inode_size, per_block = struct.unpack_from(
        ">IIIIHHHH", data, 84)  # fmt: skip
    block_log, sector_log, inode_log, per_block_log, group_log = data[120:125]
    version &= 0xF
    if version not in (4, 5) or not 9 <= block_log <= 16 or block_size != 1 << block_log:
        return None
    if not 9 <= sector_log <= 15 or sector != 1 << sector_log:
        return None
    if not 8 <= inode_log <= 11 or inode_size != 1 << inode_log or inode_size > block_size:
        return None
    if per_block != block_size // inode_size or 1 << per_block_log != per_block:
        return None
    if not 0 < groups <= OUR_MAX_GROUPS or not 0 < group_blocks <= 1 << group_log or group_log > 31:
        return None
    if not (groups - 1) * group_blocks < blocks <= groups * group_blocks or 2 * group_blocks <= 1 << group_log:
        return None
    if log_blocks == 0 or log_blocks > blocks or data[192] > 16 - block_log:
        return None
    if blocks * block_size > limit:  # an image cut short
        blocks = max(limit // block_size, 1)
        groups = -(-blocks // group_blocks)
    features2, incompat = struct.unpack_from(">I", data, 200)[0], struct.unpack_from(">I", data, 216)[0]
    incompat = incompat if version == 5 else 0
    uuid = data[32:48]
    return Super(
        offset, block_size, blocks, group_blocks, groups, group_log, inode_size, per_block_log, sector, root,
        log_start, log_blocks, version, uuid, data[248:264] if incompat & INCOMPAT_META_UUID else uuid,
        data[108:120].split(b"\0")[0].decode("utf-8", "replace"), block_size << data[192],
        bool(incompat & INCOMPAT_FTYPE) if version == 5 else bool(features2 & FEATURES2_FTYPE),
        bool(incompat & INCOMPAT_SPINODES),
        frozenset(struct.unpack_from(">Q", data, at)[0] for at in (64, 72, 152, 160, *([232] if version == 5 else []))),
    )  # fmt: skip


def _sound(data: bytes, sb: Super) -> bool:
    return not sb.crc or crc32c_zeroed(data[: sb.sector], 224) == int.from_bytes(data[224:228], "little")


def find(reader: Reader, offset: int, limit: int) -> Super | None:
    """The volume's superblock; when the primary is gone, a copy at the start of group 1 in the usual geometries."""
    limit = min(limit, reader.size - offset)
    data = reader.read(offset, 32768)
    primary = parse(data, offset, limit)
    if primary is not None and _sound(data, primary):
        return primary
    if primary is None and data[:512].strip(b"\0") and not reader.missing(offset, 512) and data[3:7] != b"B":
        # somebody else's sector: copies outlive a new mkfs, and then tell of the past
        if any(data[a : a + len(m)] == m for a, m in ((3, b"NTFS"), (3, b"EXFAT"), (1080, b"\x53\xef"))):
            return None
    for groups in USUAL_GROUPS:
        for block_size in (4096, 512, 1024, 2048):
            blocks = limit // block_size
            size = -(-blocks // groups)
            for group_blocks in {size, blocks // groups}:
                at = offset + group_blocks * block_size
                data = reader.read(at, 32768) if 0 < at - offset < limit else b""
                copy = parse(data, offset, limit)
                if copy is not None and copy.group_blocks * copy.block_size == at - offset and _sound(data, copy):
                    return copy
    return primary


@dataclass(frozen=True, slots=True)
class Group:
    """One allocation group's headers. Roots are (block in group, levels) or None when the header is damaged."""

    number: int
    bno: tuple[int, int] | None
    cnt: tuple[int, int] | None
    inodes: tuple[int, int] | None
    free_list: list[int]  # blocks in group that are kept for the btrees' growth


def read_group(reader: Reader, sb: Super, number: int) -> Group:
    """AGF, AGI and AGFL of a group, each judged by its magic, its own number and its length."""
    start = sb.offset + number * sb.group_blocks * sb.block_size
    data = reader.read(start, 4 * sb.sector).ljust(4 * sb.sector, b"\0")
    agf, agi, agfl = (data[i * sb.sector : (i + 1) * sb.sector] for i in (1, 2, 3))
    bno = cnt = inodes = None
    free_list: list[int] = []
    if agf[:4] == b"XAGF" and struct.unpack_from(">I", agf, 8)[0] == number:
        bno_root, cnt_root, _, bno_level, cnt_level, _, first, last, count = struct.unpack_from(">9I", agf, 16)
        bno, cnt = (bno_root, bno_level), (cnt_root, cnt_level)
        free_list = _free_list(agfl, sb, number, first, last, count)
    if agi[:4] == b"XAGI" and struct.unpack_from(">I", agi, 8)[0] == number:
        inodes = struct.unpack_from(">II", agi, 20)
    return Group(number, bno, cnt, inodes, free_list)


def _free_list(agfl: bytes, sb: Super, number: int, first: int, last: int, count: int) -> list[int]:
    """The ring of free-list blocks between first and last."""
    if sb.crc and (agfl[:4] != b"XAFL" or struct.unpack_from(">I", agfl, 4)[0] != number):
        return []
    head = 36 if sb.crc else 0
    slots = np.frombuffer(agfl, ">u4", (len(agfl) - head) // 4, head)
    if count == 0 or count > len(slots) or first >= len(slots) or last >= len(slots):
        return []
    ring = slots[(first + np.arange(count)) % len(slots)].astype(np.int64)
    return ring[ring < sb.group_size(number)].tolist()


def short_btree(
    reader: Reader, sb: Super, group: int, root: tuple[int, int], magics: tuple[bytes, bytes], record: int, key: int
) -> tuple[list[npt.NDArray[np.uint8]], bool]:
    """Leaf records of a btree inside one group, as uint8[n, record] pieces, and whether nothing was lost.

    key: bytes of a key. Every block is read once, so that loops end.
    """
    magic = magics[0] if sb.crc else magics[1]
    head = 56 if sb.crc else 16
    limit = (sb.block_size - head) // (key + 4)
    parts: list[npt.NDArray[np.uint8]] = []
    seen: set[int] = set()
    whole = True
    todo = [(root[0], root[1] - 1)]
    while todo:
        block, level = todo.pop()
        ok = 0 < block < sb.group_size(group) and block not in seen and 0 <= level <= 16
        if not ok or len(seen) >= OUR_MAX_BTREE_BLOCKS:
            whole = False
            continue
        seen.add(block)
        at = sb.place(group * sb.group_blocks + block)
        data = reader.read(at, sb.block_size)
        if len(data) < sb.block_size or reader.missing(at, sb.block_size) or data[:4] != magic:
            whole = False
            continue
        depth, count = struct.unpack_from(">HH", data, 4)
        most = (sb.block_size - head) // record if level == 0 else limit
        if depth != level or count > most:
            whole = False
            continue
        if level == 0:
            parts.append(np.frombuffer(data, np.uint8, count * record, head).reshape(-1, record))
        elif len(todo) < OUR_MAX_BTREE_BLOCKS:
            children = np.frombuffer(data, ">u4", count, head + limit * key).tolist()
            todo += [(child, level - 1) for child in children]
    return parts, whole


def free_runs(reader: Reader, sb: Super) -> tuple[I64, list[int]]:
    """(runs of free linear blocks, groups whose free space is not wholly known)."""
    runs: list[I64] = [NO_RUNS]
    broken: list[int] = []
    for number in range(sb.groups):
        group = read_group(reader, sb, number)
        whole = False
        for root, magics in ((group.bno, BNO_MAGIC), (group.cnt, CNT_MAGIC)):
            if root is None or whole:
                continue
            # the second tree holds the same records in another order
            parts, whole = short_btree(reader, sb, number, root, magics, 8, 8)
            rows = np.concatenate([np.zeros((0, 8), np.uint8), *parts]).copy().view(">u4").astype(np.int64)
            rows = rows[(rows[:, 1] > 0) & (rows[:, 0] > 0) & (rows.sum(axis=1) <= sb.group_size(number))]
            runs.append(rows + (number * sb.group_blocks, 0))
        if not whole:
            broken.append(number)
        if group.free_list:
            single = np.array(group.free_list, np.int64) + number * sb.group_blocks
            runs.append(np.stack((single, np.ones(len(single), np.int64)), axis=1))
    return merge(np.concatenate(runs)), broken


@dataclass(frozen=True, slots=True)
class Chunk:
    """64 inodes that lie together. first: number of the first; free: bit i set when inode first + i is not in use;
    absent: bit i set when the chunk is sparse and inode i has no place."""

    first: int
    free: int
    absent: int


def inode_chunks(reader: Reader, sb: Super) -> Iterator[Chunk | int]:
    """Every inode chunk; a group's number instead where its inode btree is (partly) lost."""
    for number in range(sb.groups):
        group = read_group(reader, sb, number)
        if group.inodes is None:
            yield number
            continue
        parts, whole = short_btree(reader, sb, number, group.inodes, INO_MAGIC, 16, 4)
        for part in parts:
            for row in part:
                first, mask = struct.unpack_from(">IH", row)
                absent = 0
                if sb.sparse_inodes:
                    for bit in range(16):
                        if mask >> bit & 1:
                            absent |= 0xF << (4 * bit)
                free = int.from_bytes(row[8:].tobytes(), "big")
                if first >> sb.inode_log < sb.group_size(number):
                    yield Chunk((number << (sb.group_log + sb.inode_log)) | first, free, absent)
        if not whole:
            yield number


def uuid_text(sb: Super) -> str:
    return str(UUID(bytes=sb.uuid))
