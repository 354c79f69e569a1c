"""XFS inodes and the maps of files: extent lists in the inode, extent btrees, and their blocks found loose.

Sources: XFS Algorithms & Data Structures (3rd edition), fs/xfs/libxfs/xfs_format.h and xfs_log_format.h, checked
against Linux 6.18. Extent rows are int64[n, 4]: logical block, linear physical block, blocks, RUN_*.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..checksums import crc32c_zeroed
from ..model import RUN_DATA, RUN_UNWRITTEN
from ._blocks import I64, fill_in, no_overlap
from ._xfs_super import Super

S_IFMT, S_IFREG, S_IFDIR = 0xF000, 0x8000, 0x4000
FORMAT_LOCAL, FORMAT_EXTENTS, FORMAT_BTREE = 1, 2, 3
FLAG_REALTIME = 0x1
FLAG2_BIGTIME, FLAG2_NREXT64 = 0x8, 0x10
BIGTIME_EPOCH = 1 << 31  # seconds before 1970 at which bigtime begins
OUR_MAX_FILE = 1 << 48  # bytes: offsets beyond are taken for garbage when a map is read from remnants
OUR_MAX_BMBT_BLOCKS = 1 << 16  # btree blocks of one file
BMBT_CHECKSUM = 64  # offset of the CRC-32C (little-endian) in a version 5 btree block
NO_EXTENTS = np.zeros((0, 4), np.int64)


@dataclass(slots=True)
class Inode:
    """An inode as found: on the disk or in the log. fork: bytes of its data fork; size: bytes."""

    ino: int
    mode: int
    format: int
    size: int
    extents: int
    generation: int
    links: int
    flags: int
    fork: bytes
    times: dict[str, float]
    lsn: int = 0

    @property
    def regular(self) -> bool:
        return self.mode & S_IFMT == S_IFREG

    @property
    def directory(self) -> bool:
        return self.mode & S_IFMT == S_IFDIR


def core_size(version: int) -> int:
    """Bytes of the inode before its data fork."""
    return 176 if version == 3 else 100


def parse_core(data: bytes, ino: int, order: str) -> Inode | None:
    """An inode core; order ">" on the disk, "<" or ">" in the log (the byte order of the machine that wrote it)."""
    if len(data) < 100 or struct.unpack_from(order + "H", data)[0] != 0x494E:
        return None
    mode, version, form = struct.unpack_from(order + "HBB", data, 2)
    links = struct.unpack_from(order + "I", data, 16)[0]
    size = struct.unpack_from(order + "Q", data, 56)[0]
    extents = struct.unpack_from(order + "I", data, 76)[0]
    flags, generation = struct.unpack_from(order + "HI", data, 90)
    flags2 = lsn = 0
    if version == 3:
        if len(data) < 176 or struct.unpack_from(order + "Q", data, 152)[0] != ino:
            return None
        lsn, flags2 = struct.unpack_from(order + "QQ", data, 112)
        if flags2 & FLAG2_NREXT64:
            extents = struct.unpack_from(order + "Q", data, 24)[0]
    elif version not in (1, 2):
        return None
    if size >> 63:
        return None
    names = [("accessed", 32), ("modified", 40), ("changed", 48)] + ([("created", 144)] if version == 3 else [])
    times = {name: _time(data, at, order, bool(flags2 & FLAG2_BIGTIME)) for name, at in names}
    return Inode(ino, mode, form, size, extents, generation, links, flags, b"", times, lsn)


def _time(data: bytes, at: int, order: str, big: bool) -> float:
    if big:
        return struct.unpack_from(order + "Q", data, at)[0] / 1e9 - BIGTIME_EPOCH
    seconds, nanoseconds = struct.unpack_from(order + "iI", data, at)
    return seconds + min(nanoseconds, 999_999_999) / 1e9


def births(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """When inodes of version 3 (uint8[n, inode size]) were made, in Unix seconds; those never used are left out."""
    big = np.ascontiguousarray(raw[:, 120:128]).view(">u8")[:, 0] & FLAG2_BIGTIME > 0
    stamp = np.ascontiguousarray(raw[:, 144:152])
    whole, parts = stamp.view(">u8")[:, 0], stamp.view(">u4").astype(np.int64)
    seconds = parts[:, 0] - (parts[:, 0] >> 31 << 32) + np.minimum(parts[:, 1], 999_999_999) / 1e9
    return np.where(big, whole / 1e9 - BIGTIME_EPOCH, seconds)[(raw[:, 4] == 3) & (whole > 0)]


def parse_inode(data: bytes, ino: int) -> Inode | None:
    """An inode of the disk with its data fork; where forkoff was reset on deletion, all that follows the core."""
    inode = parse_core(data, ino, ">")
    if inode is None:
        return None
    start = core_size(data[4])
    fork = data[82] * 8
    inode.fork = data[start : start + fork] if 0 < fork < len(data) - start else data[start:]
    return inode


# --- extent lists --------------------------------------------------------------------------------------------------
def extent_rows(data: bytes, count: int, sb: Super) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Up to `count` records of 16 bytes as extent rows, and which of them lie inside one group of the volume."""
    count = max(min(count, len(data) // 16), 0)
    if count == 0:
        return NO_EXTENTS, np.zeros(0, np.bool_)
    words = np.frombuffer(data, ">u8", 2 * count).astype(np.uint64).reshape(-1, 2)
    high, low = words[:, 0], words[:, 1]
    start = ((high & np.uint64(0x1FF)) << np.uint64(43) | low >> np.uint64(21)).astype(np.int64)
    rows = np.empty((count, 4), np.int64)
    rows[:, 0] = (high >> np.uint64(9) & np.uint64((1 << 54) - 1)).astype(np.int64)
    rows[:, 2] = (low & np.uint64((1 << 21) - 1)).astype(np.int64)
    rows[:, 3] = np.where(high >> np.uint64(63), RUN_UNWRITTEN, RUN_DATA)
    group, inside = start >> sb.group_log, start & ((1 << sb.group_log) - 1)
    rows[:, 1] = group * sb.group_blocks + inside
    ok = (rows[:, 2] > 0) & (group < sb.groups) & (inside > 0) & (inside + rows[:, 2] <= sb.group_blocks)
    ok &= (rows[:, 0] + rows[:, 2] <= OUR_MAX_FILE // sb.block_size) & (rows[:, 1] + rows[:, 2] <= sb.blocks)
    return rows, ok


def good_rows(data: bytes, count: int, sb: Super) -> tuple[I64, bool]:
    """Valid records, sorted, without overlap; and whether all `count` were."""
    rows, ok = extent_rows(data, count, sb)
    good = no_overlap(rows[ok])
    return good, len(good) == count


def remnant_rows(fork: bytes, sb: Super) -> I64:
    """Records of a fork whose count was reset: as many from its start as are valid and in order."""
    rows, ok = extent_rows(fork, len(fork) // 16, sb)
    ok[1:] &= rows[1:, 0] >= rows[:-1, 0] + rows[:-1, 2]
    bad = np.flatnonzero(~ok)
    rows = rows[: bad[0]] if len(bad) else rows
    return rows[: _first_repetition(rows)]


def _first_repetition(rows: I64) -> int:
    """Index of the first row whose blocks an earlier row has: no block is twice in one file."""
    order = np.argsort(rows[:, 1], kind="stable")
    start, end = rows[order, 1], rows[order, 1] + rows[order, 2]
    clash = np.flatnonzero(start[1:] < end[:-1])
    return int(np.maximum(order[clash], order[clash + 1]).min()) if len(clash) else len(rows)


# --- extent btrees -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class BmbtBlock:
    """A block of an extent btree. block: its linear number; siblings are fsblocks; owner -1 in version 4."""

    block: int
    level: int
    left: int
    right: int
    owner: int
    lsn: int
    rows: I64
    children: list[int]  # linear blocks; -1 where the pointer leaves the volume
    whole: bool  # every record is valid
    slack: I64  # records behind those in use: what a leaf held before it was cut


def bmbt_checksum_ok(data: bytes) -> bool:
    """Whether a version 5 btree block's own checksum holds."""
    return crc32c_zeroed(data, BMBT_CHECKSUM) == int.from_bytes(data[BMBT_CHECKSUM : BMBT_CHECKSUM + 4], "little")


def parse_bmbt(data: bytes, sb: Super, block: int) -> BmbtBlock | None:
    """The btree block in `data`, which lies at linear `block`; version 5 states its own place and owner."""
    head = 72 if sb.crc else 24
    if len(data) < sb.block_size or data[:4] != (b"BMA3" if sb.crc else b"BMAP"):
        return None
    level, count, left, right = struct.unpack_from(">HHQQ", data, 4)
    owner, lsn = -1, 0
    if sb.crc:
        place, lsn, uuid, owner = struct.unpack_from(">QQ16sQ", data, 24)
        if place * 512 != block * sb.block_size or uuid != sb.meta_uuid or owner >> 63:
            return None
    most = (sb.block_size - head) // 16
    if level > 16 or count > most:
        return None
    if level == 0:
        rows, whole = good_rows(data[head:], count, sb)
        slack = remnant_rows(data[head + 16 * count : head + 16 * most], sb)
        return BmbtBlock(block, level, left, right, owner, lsn, rows, [], whole, slack)
    pointers = np.frombuffer(data, ">u8", count, head + 8 * most).tolist()
    children = [-1 if (child := sb.block_of(p)) is None else child for p in pointers]
    return BmbtBlock(block, level, left, right, owner, lsn, NO_EXTENTS, children, -1 not in children, NO_EXTENTS)


def root_children(fork: bytes, sb: Super) -> tuple[int, list[int]]:
    """(level, linear blocks) of a btree root in an inode on the disk."""
    level, count = struct.unpack_from(">HH", fork.ljust(4, b"\0"))
    most = (len(fork) - 4) // 16
    if not 0 < level <= 16 or not 0 < count <= most:
        return 0, []
    return level, _children(fork, 4 + 8 * most, count, sb)


def log_root_children(root: bytes, sb: Super) -> tuple[int, list[int]]:
    """(level, linear blocks) of a btree root as the log holds it: a whole block header before keys and pointers."""
    head = 72 if sb.crc else 24
    if len(root) < head + 16:
        return 0, []
    level, count = struct.unpack_from(">HH", root, 4)
    most = (len(root) - head) // 16
    if not 0 < level <= 16 or not 0 < count <= most:
        return 0, []
    return level, _children(root, head + 8 * most, count, sb)


def _children(data: bytes, at: int, count: int, sb: Super) -> list[int]:
    pointers = np.frombuffer(data, ">u8", count, at).tolist()
    return [-1 if (block := sb.block_of(p)) is None else block for p in pointers]


def walk_bmbt(
    level: int, children: list[int], fetch: Callable[[int], BmbtBlock | None]
) -> tuple[list[BmbtBlock], bool]:
    """(leaves, complete) of the tree below a root; every block once."""
    leaves: list[BmbtBlock] = []
    seen: dict[int, None] = {}
    whole = level > 0
    todo = [(child, level - 1) for child in children]
    while todo:
        block, depth = todo.pop()
        found = fetch(block) if block > 0 and block not in seen and len(seen) < OUR_MAX_BMBT_BLOCKS else None
        if found is None or found.level != depth:
            whole = False
            continue
        seen[block] = None
        whole &= found.whole
        if depth == 0:
            leaves.append(found)
        elif len(todo) < OUR_MAX_BMBT_BLOCKS:
            todo += [(child, depth - 1) for child in found.children]
    return leaves, whole


def rows_of(leaves: list[BmbtBlock]) -> tuple[I64, bool]:
    """Extent rows of leaves in any order, and whether none contradicts another."""
    rows = np.concatenate([NO_EXTENTS, *(leaf.rows for leaf in leaves)])
    good = no_overlap(rows)
    return good, len(good) == len(rows)


def with_slack(rows: I64, leaves: list[BmbtBlock]) -> I64:
    """`rows` with what the leaves still show of records that were cut off."""
    for leaf in leaves:
        if len(leaf.slack):
            rows = fill_in(rows, leaf.slack)
    return rows
