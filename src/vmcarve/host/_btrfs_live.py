"""Btrfs: subvolumes and the files that are live in them, from the current trees."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..model import RUN_INLINE, HostFile
from ._btrfs_disk import Node, Super, Trees
from ._btrfs_items import (
    FIRST_ID,
    FS_TREE,
    INLINE_AT,
    INODE_EXTREF,
    INODE_REF,
    LAST_ID,
    OUR_MAX_BYTES,
    OUR_MAX_INLINE,
    ROOT_BACKREF,
    ROOT_ITEM,
    S_IFDIR,
    S_IFMT,
    S_IFREG,
    Names,
    extents,
    gaps,
    inodes,
    names,
    times,
    to_rows,
    without_overlap,
)
from ._space import NO_ROWS, Runs, cut_rows

LOG_ID = (1 << 64) - 6
OUR_MAX_ROOTS = 1 << 16  # subvolumes and snapshots
OUR_MAX_FOLDERS = 1 << 20  # directories whose names we hold
OUR_MAX_EXTENTS = 1 << 22  # extents of one file: 16 GiB of nothing but 4 KiB pieces


@dataclass(frozen=True, slots=True)
class Root:
    """Where a tree begins: logical address, level and generation of its root node; refs 0: it is being deleted."""

    id: int
    block: int
    level: int
    generation: int
    refs: int


def read_roots(trees: Trees, sb: Super) -> tuple[dict[int, Root], dict[int, tuple[int, int, str]]]:
    """All trees by id, and of subvolumes (parent subvolume, directory, name)."""
    roots: dict[int, Root] = {}
    links: dict[int, tuple[int, int, str]] = {}
    for leaf in trees.leaves(sb.root, sb.root_level):
        if leaf is None:
            continue
        wanted = np.isin(leaf.items["type"], (ROOT_ITEM, ROOT_BACKREF))
        for i in np.flatnonzero(wanted).tolist():
            number, data = int(leaf.items["id"][i]), leaf.item(i)
            if int(leaf.items["type"][i]) == ROOT_BACKREF:
                if len(data) >= 18:
                    folder, _, length = struct.unpack_from("<QQH", data, 0)
                    name = data[18 : 18 + length].decode("utf-8", "replace")
                    links[number] = int(leaf.items["offset"][i]), folder, name
            elif len(data) >= 239 and len(roots) < OUR_MAX_ROOTS:
                (generation,), (block,), (refs,) = (struct.unpack_from(f, data, at) for f, at in
                                                    (("<Q", 160), ("<Q", 176), ("<I", 216)))  # fmt: skip
                roots[number] = Root(number, block, data[238], generation, refs)
    return roots, links


def read_logs(trees: Trees, sb: Super) -> dict[int, Root]:
    """The log trees by subvolume: what was brought to the disk by fsync since the last commit, and is read over it."""
    logs: dict[int, Root] = {}
    for leaf in trees.leaves(sb.log, sb.log_level) if sb.log else ():
        wanted = (leaf.items["id"] == LOG_ID) & (leaf.items["type"] == ROOT_ITEM) if leaf is not None else []
        for i in np.flatnonzero(wanted).tolist():
            data = leaf.item(i) if leaf is not None else b""
            if leaf is not None and len(data) >= 239 and len(logs) < OUR_MAX_ROOTS:
                generation, block = struct.unpack_from("<Q", data, 160)[0], struct.unpack_from("<Q", data, 176)[0]
                logs[int(leaf.items["offset"][i])] = Root(LOG_ID, block, data[238], generation, 1)
    return logs


def logged_space(trees: Trees, logs: dict[int, Root]) -> Runs:
    """Logical addresses of the data that log trees name, which the extent tree does not yet: int64[n, 2]."""
    parts = [np.zeros((0, 4), np.int64)]
    parts += [piece for root in logs.values() for file in _of_tree(trees, root) for piece in file.pieces]
    rows = np.concatenate(parts)
    rows = rows[rows[:, 3] >= 0]
    return np.stack((rows[:, 3], rows[:, 1] - rows[:, 0]), axis=1)


def is_subvolume(number: int) -> bool:
    return number == FS_TREE or FIRST_ID <= number <= LAST_ID


@dataclass(slots=True)
class Live:
    """What is live: inodes with a link, by subvolume (uint64, rising), and addresses of leaves (int64, rising)."""

    inodes: dict[int, npt.NDArray[np.uint64]] = field(default_factory=dict[int, npt.NDArray[np.uint64]])
    leaves: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def survey(trees: Trees, roots: list[Root], folders: Names) -> Live:
    """First pass over the subvolumes: directories' names, live inodes, live leaves."""
    live = Live()
    blocks: list[int] = []
    for root in roots:
        found = [np.zeros(0, np.uint64)]
        unlinked = [np.zeros(0, np.uint64)]  # deleted while open: they wait for the last close, or for the next mount
        folder = -1
        for leaf in trees.leaves(root.block, root.level, root.generation):
            if leaf is None:
                continue
            blocks.append(leaf.block)
            folder = _folders(leaf, root.id, folder, folders)
            found.append(np.unique(leaf.items["id"]))
            row, inode = inodes(leaf)
            unlinked.append(leaf.items["id"][row[inode["links"] == 0]])
        live.inodes[root.id] = np.setdiff1d(np.concatenate(found), np.concatenate(unlinked))
    live.leaves = np.unique(np.array([b for b in blocks if b < OUR_MAX_BYTES], np.int64))
    return live


def _folders(leaf: Node, root: int, carried: int, known: Names) -> int:
    """Notes the directories of a leaf. carried: one whose items go on from the leaf before; returns the next such."""
    row, inode = inodes(leaf)
    ids = leaf.items["id"][row][(inode["mode"] & S_IFMT) == S_IFDIR]
    wanted = {carried, *ids.tolist()}
    for i in np.flatnonzero(leaf.items["type"] == INODE_REF).tolist():
        number = int(leaf.items["id"][i])
        if number in wanted and number != FIRST_ID and len(known.folders) < OUR_MAX_FOLDERS:
            for parent, name in names(leaf, i):
                known.folders.setdefault((root, number), (parent, name))
    last = int(leaf.items["id"][-1]) if len(leaf.items) else -1
    return last if last in wanted else -1


@dataclass(slots=True)
class _File:
    """A file while its items go by, leaf after leaf. broken: a part of the tree beside it is lost."""

    number: int
    broken: bool
    inode: np.void | None = None
    name: tuple[int, str] | None = None
    pieces: list[Runs] = field(default_factory=list[Runs])
    count: int = 0
    inline: bytes | None = None


def live_files(trees: Trees, roots: list[Root], folders: Names, base: int, logs: dict[int, Root]
               ) -> Iterator[HostFile]:
    """Regular files of all subvolumes; a snapshot's file that is the same in every byte's place is told once."""
    told: set[int] = set()
    for root in roots:
        for file in _with_log(trees, root, logs.get(root.id)):
            out = _finished(file, root.id, trees, folders, base)
            if out is None:
                continue
            if len(roots) > 1:
                key = hash((file.number, out.size, out.runs.tobytes(), out.inline, out.name.rpartition("/")[2]))
                if key in told:
                    continue
                told.add(key)
            yield out


def _with_log(trees: Trees, root: Root, log: Root | None) -> Iterator[_File]:
    """A subvolume's files as the next mount would find them."""
    newer = {file.number: file for file in _of_tree(trees, log)} if log is not None else {}
    for file in _of_tree(trees, root):
        over = newer.pop(file.number, None)
        if over is not None:  # of pieces that overlap, the later in this list stays
            file.pieces += over.pieces
            file.count += over.count
            file.broken |= over.broken
            file.inode = over.inode if over.inode is not None else file.inode
            file.inline = over.inline if over.inline is not None else file.inline
        yield file
    yield from newer.values()


def _of_tree(trees: Trees, root: Root) -> Iterator[_File]:
    pending = _File(-1, False)
    broken = False
    for leaf in trees.leaves(root.block, root.level, root.generation):
        if leaf is None:
            broken = pending.broken = True
            continue
        ids = leaf.items["id"]
        edges = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1]))).tolist() if len(ids) else []
        row, inode = inodes(leaf)
        by_row = dict(zip(row.tolist(), inode, strict=True))
        ext = extents(leaf)
        for low, high in zip(edges, [*edges[1:], len(ids)], strict=True):
            number = int(ids[low])
            if number != pending.number:
                if pending.number >= 0:
                    yield pending
                pending = _File(number, broken)
            broken = False
            _take(pending, leaf, low, high, by_row)
            a, b = np.searchsorted(ext.row, [low, high]).tolist()
            if a < b and pending.count < OUR_MAX_EXTENTS:
                pending.pieces.append(ext.piece[a:b])
                pending.count += b - a
                if ext.piece[a, 2] == RUN_INLINE and ext.piece[a, 0] == 0:
                    pending.inline = leaf.item(int(ext.row[a]))[INLINE_AT:]
    if pending.number >= 0:
        yield pending


def _take(file: _File, leaf: Node, low: int, high: int, by_row: dict[int, np.void]) -> None:
    """Inode and first name among items [low, high) of a leaf: they come before all others of their file."""
    for i in range(low, min(high, low + 3)):
        kind = int(leaf.items["type"][i])
        if i in by_row:
            file.inode = by_row[i]
        elif kind in (INODE_REF, INODE_EXTREF) and file.name is None:
            file.name = next(names(leaf, i), None)


def _finished(file: _File, root: int, trees: Trees, folders: Names, base: int) -> HostFile | None:
    if file.inode is None or int(file.inode["mode"]) & S_IFMT != S_IFREG or not FIRST_ID <= file.number <= LAST_ID:
        return None
    if int(file.inode["links"]) == 0:
        return None
    size = int(file.inode["size"])
    path = folders.path(root, *file.name) if file.name is not None else ""
    if size >= OUR_MAX_BYTES:
        size, file.broken = -1, True
    out = HostFile(f"inode {root}/{file.number}", path, size, False, NO_ROWS, "btrfs.tree", True, times(file.inode))
    if file.inline is not None and file.count == 1 and 0 <= size <= OUR_MAX_INLINE:
        out.inline = file.inline[:size].ljust(size, b"\0")
        return out
    pieces = np.concatenate([np.zeros((0, 4), np.int64), *file.pieces])
    pieces = without_overlap(pieces, np.zeros(len(pieces), np.int64))
    rows, whole = to_rows(pieces, trees.chunks, base)
    out.complete = whole and not file.broken and file.count < OUR_MAX_EXTENTS
    if not out.complete and not file.broken and size >= 0:  # what has no extent is a hole, whatever else is lost
        rows, _ = to_rows(np.concatenate((pieces, gaps(pieces, size))), trees.chunks, base)
    out.runs = cut_rows(rows, size, -1)
    return out
