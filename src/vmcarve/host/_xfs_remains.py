"""What is left of deleted files on XFS: in the log, and in blocks of free space.

A deleted inode keeps its number; its fork keeps the bytes of its extent list, its count is reset. Blocks of extent
btrees state their owner's number, their place and their age (LSN). The log holds older inodes, blocks and directories.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ..model import Reader
from . import _xfs_dir as dirs
from . import _xfs_inode as inodes
from ._blocks import I64, fill_in, sweep_runs
from ._xfs_inode import BmbtBlock, Inode
from ._xfs_log import CHUNK, FIELD_EXTENTS, FIELD_LOCAL, FIELD_ROOT, BufferItem, InodeItem, Log
from ._xfs_super import NULL64, Super

BMBT_MAGICS = (b"BMA3", b"BMAP")
OUR_MAX_BUFFERS = 128 << 20  # bytes of logged blocks that we follow
OUR_MAX_REPLAY = 64 << 20  # bytes of blocks laid over an unclean volume
OUR_MAX_NAMES = 1 << 20
OUR_MAX_FOUND = 1 << 20  # loose blocks of one kind


@dataclass(slots=True)
class Logged:
    """A block as the log gives it: bytes and which 128-byte chunks of them are known."""

    data: bytearray
    known: np.ndarray
    lsn: int
    cancelled: bool = False

    def whole(self, length: int) -> bool:
        """Whether the first `length` bytes are known."""
        return bool(self.known[: -(-length // CHUNK)].all())


@dataclass(slots=True)
class LogView:
    """The log's last word on files that had content, on names, and on the blocks of btrees and directories.

    files: (inode, generation) -> its last state with content; roots: the logged btree root of those in btree format;
    former: btree blocks at whose place something else was logged since;
    names: inode -> (lsn, directory, name), rising in lsn; current: last logged state since the tail, when unclean;
    ended: (inode, generation) -> when its last name was taken away (Unix seconds).
    """

    files: dict[tuple[int, int], Inode] = field(default_factory=dict[tuple[int, int], Inode])
    roots: dict[tuple[int, int], bytes] = field(default_factory=dict[tuple[int, int], bytes])
    names: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict[int, list[tuple[int, int, str]]])
    blocks: dict[int, Logged] = field(default_factory=dict[int, Logged])
    former: dict[int, Logged] = field(default_factory=dict[int, Logged])
    current: dict[int, Inode] = field(default_factory=dict[int, Inode])
    current_roots: dict[int, bytes] = field(default_factory=dict[int, bytes])
    ended: dict[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])
    held: int = 0
    named: int = 0

    def add_name(self, ino: int, lsn: int, parent: int, name: str) -> None:
        """Notes a name, unless it is the newest already."""
        old = self.names.setdefault(ino, [])
        if self.named < OUR_MAX_NAMES and not (old and old[-1][1:] == (parent, name)):
            old.append((lsn, parent, name))
            self.named += 1


def read_log(log: Log, sb: Super) -> LogView:
    """Goes through the whole log once."""
    view = LogView()
    forks: dict[int, tuple[int, bytes]] = {}  # inode -> (generation, last fork)
    local: dict[int, bytes] = {}
    dying: set[int] = set()  # inodes whose size is 0: what happens to their btree blocks now is their end
    for transaction in log.transactions():
        for item in transaction:
            inode = inodes.parse_core(item.core, item.ino, item.order) if isinstance(item, InodeItem) else None
            if inode is None or isinstance(item, BufferItem):
                continue
            (dying.discard if inode.size else dying.add)(item.ino)
            if inode.links == 0:
                life = inode.generation - (inode.mode == 0) & 0xFFFFFFFF  # freeing an inode adds one
                view.ended.setdefault((item.ino, life), inode.times["changed"])
            if inode.directory and item.fields & FIELD_LOCAL and local.get(item.ino) != item.fork:
                local[item.ino] = item.fork
                for entry in dirs.short_entries(item.fork, len(item.fork), sb):
                    view.add_name(entry.ino, item.lsn, item.ino, entry.name)
            _note_inode(view, forks, item, inode, live=not log.clean and item.lsn >= log.tail)
        for item in transaction:
            if isinstance(item, BufferItem):
                _follow(view, item, sb, dying)
    return view


def _note_inode(view: LogView, forks: dict[int, tuple[int, bytes]], item: InodeItem, inode: Inode, live: bool) -> None:
    if item.fields & (FIELD_EXTENTS | FIELD_ROOT | FIELD_LOCAL):
        forks[item.ino] = (inode.generation, item.fork)
    elif forks.get(item.ino, (-1, b""))[0] != inode.generation:
        forks.pop(item.ino, None)
    inode.lsn = item.lsn
    inode.fork = forks.get(item.ino, (0, b""))[1]
    key = item.ino, inode.generation
    if live:
        view.current[item.ino] = inode
        view.current_roots.pop(item.ino, None)
        if inode.format == inodes.FORMAT_BTREE:
            view.current_roots[item.ino] = inode.fork
    # unlinking sets the size to 0 before it takes the first extent away
    if not inode.regular or inode.size == 0 or inode.extents == 0:
        return
    view.files[key] = inode
    view.roots.pop(key, None)
    if inode.format == inodes.FORMAT_BTREE and inode.fork:
        view.roots[key] = inode.fork


def _follow(view: LogView, item: BufferItem, sb: Super, dying: set[int]) -> None:
    """Applies a buffer's changes to what is known of it, for btree and directory blocks."""
    old = view.blocks.get(item.place)
    if old is not None and old.data[:4] == b"BMA3" and int.from_bytes(old.data[56:64], "big") in dying:
        if not item.parts or item.parts[0][0] or item.parts[0][1][56:64] == old.data[56:64]:
            return  # kept as it was before the file was taken apart
    if item.cancel:
        if old is not None:
            old.cancelled = True
        return
    if not item.parts:
        return
    at, first = item.parts[0]
    if at == 0 and first[:4] not in BMBT_MAGICS and first[:4] not in dirs.HEADS:
        if old is not None and first[:4] != old.data[:4]:
            old.cancelled = True
        return
    length = max(item.length, 0)
    if old is None or old.cancelled or len(old.data) != length or (at == 0 and first[:4] != old.data[:4]):
        if at != 0 or not sb.block_size <= length <= 1 << 16 or view.held + length > OUR_MAX_BUFFERS:
            return
        if old is not None and old.data[:4] in BMBT_MAGICS and first[:4] not in BMBT_MAGICS:
            view.former[item.place], old = old, None
        view.held += length if old is None else length - len(old.data)
        old = view.blocks[item.place] = Logged(bytearray(length), np.zeros(-(-length // CHUNK), np.bool_), item.lsn)
    old.lsn = item.lsn
    for at, data in item.parts:
        data = data[: max(length - at, 0)]
        old.data[at : at + len(data)] = data
        old.known[at // CHUNK : -(-(at + len(data)) // CHUNK)] = True


def replay(log: Log, sb: Super, reader: Reader) -> dict[int, bytes | int]:
    """Sectors (by number in the volume) as a replay of an unclean log leaves them; of inodes LogView.current tells."""
    buffers: dict[int, bytearray] = {}
    held = 0
    for item in itertools.chain.from_iterable(log.transactions(log.tail)):
        if not isinstance(item, BufferItem):
            continue
        if item.cancel:
            buffers.pop(item.place, None)
            continue
        data = buffers.get(item.place)
        if data is None or len(data) != item.length:
            if not 0 < item.length <= 1 << 16 or held > OUR_MAX_REPLAY:
                continue
            held += item.length
            data = bytearray(reader.read(sb.offset + item.place, item.length).ljust(item.length, b"\0"))
            buffers[item.place] = data
        if data[:2] == b"IN":  # inode buffers log only their unlinked list
            continue
        for at, part in item.parts:
            part = part[: max(item.length - at, 0)]
            data[at : at + len(part)] = part
    out: dict[int, bytes | int] = {}
    for place, data in buffers.items():
        for i in range(0, len(data), 512):
            out[(place + i) // 512] = bytes(data[i : i + 512])
    return out


# --- blocks in free space ------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Loose:
    """Linear numbers of blocks in free space that were a btree leaf or node, a directory's, or inodes."""

    bmbt: list[int] = field(default_factory=list[int])
    directories: list[int] = field(default_factory=list[int])
    inodes: list[int] = field(default_factory=list[int])


def sweep(reader: Reader, free: I64, sb: Super) -> Loose:
    """Looks at the first four bytes of every free block (runs of image offsets)."""
    found = Loose()
    kinds = {**{m: found.bmbt for m in BMBT_MAGICS}, **{m: found.directories for m in dirs.HEADS}}
    wanted = np.array([int.from_bytes(m, "big") for m in kinds], np.uint32)
    for at, blocks in sweep_runs(reader, free, sb.block_size):
        heads = np.ascontiguousarray(blocks[:, :4]).view(">u4")[:, 0].astype(np.uint32)
        first = (at - sb.offset) // sb.block_size
        for i in np.flatnonzero(np.isin(heads, wanted)).tolist():
            kind = kinds[int(heads[i]).to_bytes(4, "big")]
            if len(kind) < OUR_MAX_FOUND:
                kind.append(first + i)
        if len(found.inodes) < OUR_MAX_FOUND:
            found.inodes += (np.flatnonzero(heads >> 16 == 0x494E) + first).tolist()
    return found


def bmbt_owners(loose: Iterable[int], fetch: Callable[[int], BmbtBlock | None]) -> dict[int, list[int]]:
    """Leaf blocks (linear numbers) by owner; those that state no owner (version 4) by -1."""
    owners: dict[int, list[int]] = {}
    for block in loose:
        found = fetch(block)
        if found is not None and found.level == 0 and len(found.rows):
            owners.setdefault(found.owner, []).append(block)
    return owners


def chains(leaves: list[BmbtBlock], sb: Super) -> list[list[BmbtBlock]]:
    """Leaves in the order of their sibling pointers, as far as both sides agree; the newest chain first."""
    by_number = {sb.fsblock_of(leaf.block): leaf for leaf in leaves}
    after: dict[int, int] = {}
    for number, leaf in by_number.items():
        following = by_number.get(leaf.right)
        if following is not None and following.left == number and leaf.right != number and _continues(leaf, following):
            after[number] = leaf.right
    starts = sorted(set(by_number) - set(after.values()))
    out: list[list[BmbtBlock]] = []
    for number in starts:  # logical offsets rise along a chain, so it has no loop
        chain = [by_number[number]]
        while number in after:
            number = after[number]
            chain.append(by_number[number])
        out.append(chain)
    return sorted(out, key=lambda c: -max(leaf.lsn for leaf in c))


def _continues(a: BmbtBlock, b: BmbtBlock) -> bool:
    return int(a.rows[-1, 0] + a.rows[-1, 2]) <= int(b.rows[0, 0])


def leaf_maps(leaves: list[BmbtBlock], sb: Super) -> Iterator[tuple[I64, bool]]:
    """(extent rows, complete) of leaves of one owner: the newest chain's, then, with gaps filled, all of them."""
    found = chains(leaves, sb)
    if not found:
        return
    rows = np.concatenate([leaf.rows for leaf in found[0]])
    whole = found[0][0].left == NULL64 and found[0][-1].right == NULL64 and all(leaf.whole for leaf in found[0])
    if whole or len(found) == 1:
        yield rows, whole
    for chain in found[1:]:
        rows = fill_in(rows, np.concatenate([leaf.rows for leaf in chain]))
    if len(found) > 1:
        yield rows, False


def logged_bmbt(view: LogView, sb: Super) -> dict[int, BmbtBlock]:
    """Btree blocks of the log by linear number, where all their records are known."""
    out: dict[int, BmbtBlock] = {}
    for place, logged in [*view.former.items(), *view.blocks.items()]:
        if bytes(logged.data[:4]) not in BMBT_MAGICS or place % sb.block_size or not logged.whole(CHUNK):
            continue
        count = struct.unpack_from(">H", logged.data, 6)[0]
        node = struct.unpack_from(">H", logged.data, 4)[0] > 0
        head = 72 if sb.crc else 24
        if logged.whole(len(logged.data) if node else min(head + 16 * count, len(logged.data))):
            block = inodes.parse_bmbt(bytes(logged.data), sb, place // sb.block_size)
            if block is not None:
                out[block.block] = block
    return out
