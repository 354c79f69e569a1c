"""ext2/3/4: inode slots, extent trees, indirect blocks, and the extent blocks that a deleted file leaves behind.

Sources: Linux Documentation/filesystems/ext4 (inodes, ifork), checked against e2fsprogs 1.47 / Linux 6.18.
Extent rows are int64[n, 4]: logical block, physical block, blocks, RUN_DATA or RUN_UNWRITTEN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

from .._ext.extent_blocks import extent_blocks
from ..blocks import Blocks
from ..model import RUN_DATA, RUN_UNWRITTEN
from ._blocks import I64, U8, no_overlap

EXTENT_MAGIC = 0xF30A
MAX_DEPTH = 5  # format limit: 2**32 blocks need no more levels
UNWRITTEN_FROM = 32768  # ee_len above it: unwritten, ee_len - 32768 blocks
OUR_MAX_TREE_BLOCKS = 1 << 20  # extent or indirect blocks of one file: 4 TiB of ext3 file at 4 KiB

FLAG_EXTENTS, FLAG_INLINE, FLAG_HUGE = 0x80000, 0x10000000, 0x40000
S_IFMT, S_IFREG, S_IFDIR = 0xF000, 0x8000, 0x4000

EXTENT = np.dtype([("block", "<u4"), ("length", "<u2"), ("high", "<u2"), ("low", "<u4")])
INDEX = np.dtype([("block", "<u4"), ("low", "<u4"), ("high", "<u2"), ("unused", "<u2")])
TIMES = {"atime": "accessed", "ctime": "changed", "mtime": "modified", "crtime": "created"}
NO_EXTENTS = np.zeros((0, 4), np.int64)

# (physical block, depth expected) -> its bytes, or None when it is not the block that it should be
Fetch = Callable[[int, int], bytes | None]


@cache
def inode_dtype(size: int) -> np.dtype:
    """One slot of `size` bytes of an inode table; times are Unix seconds, sizes bytes."""
    fields = [
        ("mode", "<u2", 0x0), ("size_low", "<u4", 0x4), ("atime", "<i4", 0x8), ("ctime", "<i4", 0xC),
        ("mtime", "<i4", 0x10), ("dtime", "<u4", 0x14), ("links", "<u2", 0x1A), ("sectors_low", "<u4", 0x1C),
        ("flags", "<u4", 0x20), ("sectors_high", "<u2", 0x74),
        ("block", "V60", 0x28), ("generation", "<u4", 0x64), ("acl", "<u4", 0x68), ("size_high", "<u4", 0x6C),
    ]  # fmt: skip
    if size >= 160:
        fields += [("crtime", "<i4", 0x90), ("ctime_extra", "<u4", 0x84), ("mtime_extra", "<u4", 0x88),
                   ("atime_extra", "<u4", 0x8C), ("crtime_extra", "<u4", 0x94)]
    return np.dtype({"names": [f[0] for f in fields], "formats": [f[1] for f in fields],
                     "offsets": [f[2] for f in fields], "itemsize": size})  # fmt: skip


@dataclass(slots=True)
class Slot:
    """One inode slot, copied out of its table. size: bytes; root: the 60 bytes of i_block.

    sectors: 512-byte units (or blocks, with FLAG_HUGE) of content, tree and attribute block together.
    """

    ino: int
    mode: int
    size: int
    flags: int
    generation: int
    links: int
    dtime: int
    root: bytes
    sectors: int = 0
    acl: int = 0
    times: dict[str, float] = field(default_factory=dict[str, float])
    raw: bytes = b""  # the whole slot, kept for inline data only

    @property
    def extents(self) -> bool:
        return bool(self.flags & FLAG_EXTENTS)

    @property
    def inline(self) -> bool:
        return bool(self.flags & FLAG_INLINE)

    @property
    def has_map(self) -> bool:
        """Whether i_block names any block."""
        if self.inline:
            return False
        if self.extents:
            return header(self.root, 4) is not None and self.root[2] > 0
        return any(self.root)


def slot_of(record: np.void, ino: int) -> Slot:
    """A Slot of one element of an inode_dtype array."""
    return next(slots_of(record.reshape(1), np.array([ino])))


def slots_of(some: npt.NDArray[np.void], number: I64) -> Iterator[Slot]:
    """Slots of the elements of an inode_dtype array, which are the inodes of these numbers.

    Fields of all of them at once: one by one they take ten times as long, and every inode of a host is asked.
    """
    names = some.dtype.names or ()
    fields = [some[name].tolist() for name in ("mode", "size_low", "size_high", "flags", "generation", "links", "dtime",
                                               "acl", "sectors_low", "sectors_high")]  # fmt: skip
    times = zip(*(_seconds(some, name).tolist() for name in TIMES if name in names), strict=True)
    born = some["crtime"].tolist() if "crtime" in names else [0] * len(some)
    roots = some["block"].tobytes()
    rows = zip(number.tolist(), times, born, zip(*fields, strict=True), strict=True)
    for n, (ino, told, created, row) in enumerate(rows):
        mode, size, high, flags, generation, links, dtime, acl, sectors, more = row
        when = dict(zip(TIMES.values(), told if created else told[:3], strict=False))
        if links == 0 and dtime > 1 << 24:  # smaller: the next inode of the orphan list, not a time
            when["deleted"] = float(dtime)
        size |= high << 32 if mode & S_IFMT == S_IFREG else 0
        yield Slot(ino, mode, size, flags, generation, links, dtime, roots[60 * n : 60 * n + 60],
                   sectors | more << 32, acl, when, some[n].tobytes() if flags & FLAG_INLINE else b"")  # fmt: skip


def births(table: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """When the inodes of an array were made, in Unix seconds; their last change where that is not told."""
    names = table.dtype.names or ()
    if "crtime" not in names:
        return table["ctime"].astype(np.float64)
    return np.where(table["crtime"] != 0, _seconds(table, "crtime"), _seconds(table, "ctime"))


def changes(table: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """When the inodes of an array were changed last, in Unix seconds."""
    return _seconds(table, "ctime")


def _seconds(table: npt.NDArray[np.void], name: str) -> npt.NDArray[np.float64]:
    """Unix seconds. The extra word of large inodes: 2 bits above the seconds' 32, and 30 of nanoseconds."""
    whole = table[name].astype(np.float64)
    if f"{name}_extra" not in (table.dtype.names or ()):
        return whole
    extra = table[f"{name}_extra"]
    return whole + ((extra & 3).astype(np.int64) << 32) + np.minimum(extra >> 2, 999_999_999) / 1e9


def slots(data: bytes, size: int) -> npt.NDArray[np.void]:
    """The whole slots in `data` as an array of inode_dtype(size)."""
    return np.frombuffer(data, inode_dtype(size), len(data) // size)


# --- extent trees --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Header:
    entries: int
    maximum: int
    depth: int


def header(block: bytes, maximum: int) -> Header | None:
    """The extent header of a block that holds at most `maximum` entries (4 in an inode), or None."""
    if len(block) < 12 or int.from_bytes(block[:2], "little") != EXTENT_MAGIC:
        return None
    entries, most, depth = (int.from_bytes(block[i : i + 2], "little") for i in (2, 4, 6))
    if most != maximum or entries > most or depth > MAX_DEPTH:
        return None
    return Header(entries, most, depth)


def entry_limit(block_size: int) -> int:
    """eh_max of an extent block: the checksum tail takes part of the room that division leaves over."""
    return (block_size - 12) // 12


def leaf_rows(block: bytes, first: int, count: int) -> I64:
    """Slots [first, first + count) of a leaf as extent rows, unchecked."""
    e = np.frombuffer(block, EXTENT, count, 12 + 12 * first)
    out = np.empty((count, 4), np.int64)
    unwritten = e["length"] > UNWRITTEN_FROM
    out[:, 0] = e["block"]
    out[:, 1] = e["low"].astype(np.int64) | e["high"].astype(np.int64) << 32
    out[:, 2] = np.where(unwritten, e["length"].astype(np.int64) - UNWRITTEN_FROM, e["length"])
    out[:, 3] = np.where(unwritten, RUN_UNWRITTEN, RUN_DATA)
    return out


def single_extents(table: npt.NDArray[np.void], blocks: int) -> tuple[I64, I64]:
    """int64[n, 4] the one extent of each regular file whose inode holds it, as `read_tree` gives it, and int64[n] its
    size in bytes; -1 where there is another map than that. blocks: of the volume."""
    roots = np.ascontiguousarray(table["block"]).view(np.uint8).reshape(len(table), 60)
    head = np.ascontiguousarray(roots[:, :8]).view("<u2")  # magic, entries, maximum, depth
    one = (head == (EXTENT_MAGIC, 1, 4, 0)).all(axis=1)
    one &= table["flags"] & (FLAG_EXTENTS | FLAG_INLINE) == FLAG_EXTENTS
    e = np.ascontiguousarray(roots[:, 12:24]).view(EXTENT)[:, 0]
    start = e["low"].astype(np.int64) | e["high"].astype(np.int64) << 32
    unwritten = e["length"] > UNWRITTEN_FROM
    length = np.where(unwritten, e["length"].astype(np.int64) - UNWRITTEN_FROM, e["length"])
    one &= (length > 0) & (start > 0) & (start + length <= blocks)
    rows = np.stack((e["block"].astype(np.int64), start, length, np.where(unwritten, RUN_UNWRITTEN, RUN_DATA)), axis=1)
    size = table["size_low"].astype(np.int64) | table["size_high"].astype(np.int64) << 32
    return rows, np.where(one & (size >= 0), size, -1)


def index_rows(block: bytes, count: int) -> list[tuple[int, int]]:
    """(first logical block, child's physical block) of an index block's entries."""
    e = np.frombuffer(block, INDEX, count, 12)
    child = e["low"].astype(np.int64) | e["high"].astype(np.int64) << 32
    return list(zip(e["block"].tolist(), child.tolist(), strict=True))


def bounded(rows: I64, blocks: int) -> I64:
    """The rows that lie inside a volume of `blocks` blocks, sorted, without overlap in the file."""
    ok = (rows[:, 2] > 0) & (rows[:, 1] > 0) & (rows[:, 1] + rows[:, 2] <= blocks)
    return no_overlap(rows[ok])


def stale_rows(block: bytes, head: Header, blocks: int) -> I64:
    """Slots above eh_entries of a leaf, up to the first that is no extent or breaks the order.

    A split moves the upper entries to a new leaf and leaves them here, so that they may describe an older state.
    """
    rows = leaf_rows(block, head.entries, head.maximum - head.entries)
    ok = (rows[:, 2] > 0) & (rows[:, 1] > 0) & (rows[:, 1] + rows[:, 2] <= blocks)
    ok[1:] &= rows[1:, 0] >= rows[:-1, 0] + rows[:-1, 2]
    bad = np.flatnonzero(~ok)
    return rows[: bad[0]] if len(bad) else rows


@dataclass(slots=True)
class Tree:
    """A file's map. blocks: the tree's own blocks; complete: no part of the tree was lost or refused."""

    rows: I64
    blocks: list[int]
    complete: bool


def read_tree(root: bytes, fetch: Fetch, block_size: int, volume_blocks: int) -> Tree:
    """Follows an extent tree from its root in the inode; each block once, so that loops end."""
    top = header(root, 4)
    if top is None:
        return Tree(NO_EXTENTS, [], False)
    if top.depth == 0 and top.entries == 1:  # most files
        rows = leaf_rows(root, 0, 1)
        good = rows[(rows[:, 2] > 0) & (rows[:, 1] > 0) & (rows[:, 1] + rows[:, 2] <= volume_blocks)]
        return Tree(good, [], len(good) == 1)
    parts: list[I64] = []
    seen: dict[int, None] = {}
    complete = True
    todo: list[tuple[bytes, Header]] = [(root, top)]
    while todo:
        block, head = todo.pop()
        if head.depth == 0:
            rows = leaf_rows(block, 0, head.entries)
            good = bounded(rows, volume_blocks)
            complete &= len(good) == len(rows)
            parts.append(good)
            continue
        for _, child in index_rows(block, head.entries):
            if child in seen or len(seen) >= OUR_MAX_TREE_BLOCKS or not 0 < child < volume_blocks:
                complete = False
                continue
            data = fetch(child, head.depth - 1)
            below = header(data, entry_limit(block_size)) if data is not None else None
            if data is None or below is None or below.depth != head.depth - 1:
                complete = False
                continue
            seen[child] = None
            todo.append((data, below))
    rows = np.concatenate(parts) if parts else NO_EXTENTS
    good = no_overlap(rows)
    return Tree(good, list(seen), complete and len(good) == len(rows))


# --- indirect blocks -----------------------------------------------------------------------------------------------
def pointer_rows(pointers: npt.NDArray[np.uint32], first: int) -> I64:
    """Extent rows of consecutive block pointers, the first of them for logical block `first`; 0 is a hole."""
    p = pointers.astype(np.int64)
    if len(p) == 0:
        return NO_EXTENTS
    start = np.flatnonzero(np.concatenate(([True], (p[1:] != p[:-1] + 1) | (p[:-1] == 0))))
    length = np.diff(np.concatenate((start, [len(p)])))
    rows = np.stack((start + first, p[start], length, np.zeros(len(start), np.int64)), axis=1)
    return rows[rows[:, 1] > 0]


def read_indirect(root: bytes, fetch: Fetch, block_size: int, volume_blocks: int) -> Tree:
    """Follows the 12 direct and 3 indirect pointers of i_block (ext2, ext3)."""
    pointers = np.frombuffer(root, "<u4", 15)
    per = block_size // 4
    parts = [pointer_rows(pointers[:12], 0)]
    blocks: dict[int, None] = {}
    complete = True
    first, budget = 12, OUR_MAX_TREE_BLOCKS
    for level in range(3):
        span = per ** (level + 1)
        todo = [(int(pointers[12 + level]), level, first)]
        first += span
        while todo and budget > 0:
            budget -= 1
            block, depth, at = todo.pop()
            if block == 0:
                continue
            data = None
            if block not in blocks and block < volume_blocks:
                data = fetch(block, depth)
            if data is None or len(data) < block_size:
                complete = False
                continue
            blocks[block] = None
            table = np.frombuffer(data, "<u4", per)
            if depth == 0:
                parts.append(pointer_rows(table, at))
                continue
            step = per**depth
            used = np.flatnonzero(table)
            todo += [(int(table[i]), depth - 1, at + i * step) for i in used[::-1].tolist()]
        complete &= not todo
    rows = np.concatenate(parts)
    good = bounded(rows, volume_blocks)
    return Tree(good, list(blocks), complete and len(good) == len(rows))


def accounts_for(slot: Slot, tree: Tree, block_size: int) -> bool:
    """Whether the blocks of a tree are as many as the inode counts: else some were taken away already, or added."""
    unit = block_size if slot.flags & FLAG_HUGE else 512
    return int(tree.rows[:, 2].sum()) + len(tree.blocks) + (slot.acl > 0) == slot.sectors * unit // block_size


# --- inline data ---------------------------------------------------------------------------------------------------
def inline_content(slot: Slot) -> bytes:
    """The content of a file that lies in its inode: i_block, then the value of the xattr system.data."""
    raw = slot.raw
    out = raw[0x28:0x64]
    if len(raw) <= 0x84:
        return out[: slot.size]
    at = 0x80 + int.from_bytes(raw[0x80:0x82], "little")
    if raw[at : at + 4] == b"\x00\x00\x02\xea":  # h_magic 0xEA020000
        base = at = at + 4
        while at + 16 <= len(raw) and any(raw[at : at + 4]):
            name_len, index = raw[at], raw[at + 1]
            where = int.from_bytes(raw[at + 2 : at + 4], "little")
            length = int.from_bytes(raw[at + 8 : at + 12], "little")
            if index == 7 and raw[at + 16 : at + 16 + name_len] == b"data":
                out += raw[base + where : base + where + min(length, len(raw))]
                break
            at += 16 + (name_len + 3) // 4 * 4
    return out[: slot.size]


# --- extent blocks found by sweep ----------------------------------------------------------------------------------
def plausible_extent_blocks(blocks: U8 | Blocks, *block_sizes: int) -> npt.NDArray[np.bool_]:
    """Which rows of uint8[n, >= 12] are extent blocks: magic, eh_max for one of these block sizes, order of entries.

    Rows shorter than the block are judged by the entries that they hold.
    """
    rows = Blocks.of(blocks)
    good = np.empty(len(rows), np.uint8)
    limits = np.array([entry_limit(size) for size in block_sizes], np.uint16)
    extent_blocks(rows.buffer, rows.at, rows.size, limits, good)
    return good.view(np.bool_)
