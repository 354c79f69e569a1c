"""Btrfs: some deleted files, put together from all that old leaves tell of them (see _btrfs_deleted)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import RUN_DATA, RUN_HOLE, RUN_INLINE, HostFile
from ._btrfs_disk import Node
from ._btrfs_items import (
    EXTENT_DATA,
    INLINE_AT,
    INODE,
    INODE_EXTREF,
    INODE_REF,
    OUR_MAX_BYTES,
    OUR_MAX_INLINE,
    S_IFMT,
    S_IFREG,
    extents,
    inodes,
    names,
    times,
    without_overlap,
)
from ._btrfs_sums import Piece
from ._space import NO_ROWS, Runs, cut_rows, joined_rows

OUR_MAX_ROWS = 1 << 19  # extents that we put together at a time (56 bytes each, and as much again to sort them)
OUR_MAX_INLINE_BYTES = 32 << 20  # contents inside metadata that we hold at a time
FILE, START, STOP, KIND, LOGICAL, GENERATION, MADE = range(7)  # columns of a row: int64

Keys = npt.NDArray[np.uint64]
Finish = Callable[[Runs], tuple[Runs, bool]]  # pieces -> HostFile rows, and whether all could be told
Test = Callable[[list[Piece]], Runs]  # data pieces -> HostFile rows, tested against checksums (Sums.tested)
Path = Callable[[int, int, str], str]  # subvolume, parent inode, name -> path


def positions(values: Keys, rising: Keys) -> npt.NDArray[np.int64]:
    """Where each of `values` stands in `rising`; -1: not there."""
    if not len(rising):
        return np.full(len(values), -1, np.int64)
    i = np.minimum(np.searchsorted(rising, values), len(rising) - 1)
    return np.where(rising[i] == values, i, -1)


class Batch:
    """The files `keys` uint64[n, 2] (subvolume, inode), rising; a file is its row's number."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._parts: list[Runs] = []
        self._held = 0
        self._compact_at = 2 * OUR_MAX_ROWS
        self._dropped = False
        self._inodes: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.void]]] = []
        self._names: dict[int, tuple[int, int, str]] = {}
        self._inline: dict[int, tuple[int, bytes]] = {}
        self._inline_bytes = 0

    def _numbered(self, leaf: Node, ids: Keys) -> npt.NDArray[np.int64]:
        """Files that inode numbers of a leaf stand for; -1: none of ours."""
        root = np.uint64(leaf.owner)
        low, high = np.searchsorted(self._keys[:, 0], root), np.searchsorted(self._keys[:, 0], root, "right")
        i = positions(ids, self._keys[low:high, 1])
        return np.where(i >= 0, i + low, -1)

    def take(self, leaf: Node) -> None:
        """Adds what a leaf says of these files."""
        row, inode = inodes(leaf)
        file = self._numbered(leaf, leaf.items["id"][row])
        ours = file >= 0
        generation = leaf.generation & (OUR_MAX_BYTES - 1)
        if ours.any():
            self._inodes.append((file[ours], np.full(int(ours.sum()), generation, np.int64), inode[ours]))
            if len(self._inodes) > 4096:
                self._inodes = [self._newest_inodes()]
        self._take_names(leaf, generation)
        self._take_extents(leaf, generation)

    def _take_names(self, leaf: Node, generation: int) -> None:
        row = np.flatnonzero(np.isin(leaf.items["type"], (INODE_REF, INODE_EXTREF)))
        file = self._numbered(leaf, leaf.items["id"][row])
        for i, number in zip(row[file >= 0].tolist(), file[file >= 0].tolist(), strict=True):
            if number not in self._names or self._names[number][0] < generation:
                for parent, name in names(leaf, i):
                    self._names[number] = generation, parent, name

    def _take_extents(self, leaf: Node, generation: int) -> None:
        ext = extents(leaf)
        file = self._numbered(leaf, ext.id)
        ours = np.flatnonzero(file >= 0)
        if not len(ours):
            return
        row, file, piece, made = ext.row[ours], file[ours], ext.piece[ours], ext.made[ours]
        ids, kinds = leaf.items["id"], leaf.items["type"]
        n = len(row)
        # Holes: between two extents that are neighbours in the leaf, before the first of a file whose other items
        # come right before it, and behind the last if another inode's items follow.
        beside = np.flatnonzero((row[1:] == row[:-1] + 1) & (file[1:] == file[:-1]) & (piece[1:, 0] > piece[:-1, 1]))
        before = np.maximum(row - 1, 0)
        opens = (row > 0) & (ids[before] == ids[row]) & (kinds[before] != EXTENT_DATA) & (piece[:, 0] > 0)
        after = np.minimum(row + 1, len(ids) - 1)
        closes = (row + 1 < len(ids)) & (ids[after] != ids[row])
        start = np.concatenate((piece[:, 0], piece[beside, 1], np.zeros(int(opens.sum()), np.int64), piece[closes, 1]))
        stop = np.concatenate((piece[:, 1], piece[beside + 1, 0], piece[opens, 0],
                               np.full(int(closes.sum()), OUR_MAX_BYTES)))  # fmt: skip
        who = np.concatenate((file, file[beside], file[opens], file[closes]))
        out = np.full((len(who), 7), -1, np.int64)
        out[:, FILE], out[:, START], out[:, STOP] = who, start, stop
        out[:, KIND], out[:, GENERATION] = RUN_HOLE, generation
        out[:n, KIND], out[:n, LOGICAL], out[:n, MADE] = piece[:, 2], piece[:, 3], made
        self._parts.append(out)
        self._held += len(out)
        if self._held > self._compact_at:
            self._compact()
        for k in np.flatnonzero((piece[:, 2] == RUN_INLINE) & (piece[:, 0] == 0)).tolist():
            self._take_inline(int(file[k]), generation, leaf.item(int(row[k]))[INLINE_AT:])

    def _take_inline(self, file: int, generation: int, content: bytes) -> None:
        if file in self._inline and self._inline[file][0] >= generation:
            return
        if self._inline_bytes + len(content) <= OUR_MAX_INLINE_BYTES:
            self._inline_bytes += len(content)
            self._inline[file] = generation, content

    def _compact(self) -> None:
        """Rows that generations repeat become one, of the newest; what is still too much is let go, oldest first."""
        rows = np.concatenate(self._parts)
        rows = rows[np.lexsort([rows[:, c] for c in (MADE, GENERATION, LOGICAL, KIND, STOP, START, FILE)])]
        same = (rows[1:, FILE:GENERATION] == rows[:-1, FILE:GENERATION]).all(axis=1)
        rows = rows[np.flatnonzero(np.concatenate((~same, [True]))[: len(rows)])]
        if len(rows) > 2 * OUR_MAX_ROWS:
            self._dropped = True
            rows = rows[np.argsort(rows[:, GENERATION], kind="stable")[-2 * OUR_MAX_ROWS :]]
        self._parts, self._held = [rows], len(rows)
        self._compact_at = len(rows) + 2 * OUR_MAX_ROWS

    def _newest_inodes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.void]]:
        """Of each file: the newest state with a link, the oldest without one, the newest with a size; rising."""
        if not self._inodes:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, INODE)
        file = np.concatenate([p[0] for p in self._inodes])
        generation = np.concatenate([p[1] for p in self._inodes])
        inode = np.concatenate([p[2] for p in self._inodes])
        order = np.lexsort((generation, file))
        file, generation, inode = file[order], generation[order], inode[order]
        keep: list[npt.NDArray[np.int64]] = []
        for wanted, newest in ((inode["links"] > 0, True), (inode["links"] == 0, False), (inode["size"] > 0, True)):
            rows = np.flatnonzero(wanted)
            if len(rows):
                differs = file[rows][1:] != file[rows][:-1]
                edge = np.concatenate((differs, [True])) if newest else np.concatenate(([True], differs))
                keep.append(rows[edge])
        rows = np.unique(np.concatenate(keep)) if keep else np.zeros(0, np.int64)
        return file[rows], generation[rows], inode[rows]

    def files(self, finish: Finish, test: Test, path: Path, sector: int,
              entries: Mapping[tuple[int, int], tuple[int, int, str]]) -> Iterator[HostFile]:  # fmt: skip
        """Regular files of which a map or the content is left."""
        self._parts.append(np.zeros((0, 7), np.int64))
        self._compact()
        rows = self._parts[0]
        rows = rows[np.lexsort((rows[:, MADE], rows[:, GENERATION], rows[:, FILE]))]
        edges = np.searchsorted(rows[:, FILE], np.arange(len(self._keys) + 1))
        file, generation, inode = self._newest_inodes()
        states = np.searchsorted(file, np.arange(len(self._keys) + 1))
        for k in range(len(self._keys)):
            mine, its = slice(int(states[k]), int(states[k + 1])), slice(int(edges[k]), int(edges[k + 1]))
            out = self._file(k, rows[its], generation[mine], inode[mine], finish, test, sector)
            if out is not None:
                root, number = (int(v) for v in self._keys[k])
                told = self._names.get(k) or entries.get((root, number))
                out.name = path(root, told[1], told[2]) if told is not None else ""
                yield out

    def _file(self, k: int, rows: Runs, generation: npt.NDArray[np.int64], inode: npt.NDArray[np.void],
              finish: Finish, test: Test, sector: int) -> HostFile | None:  # fmt: skip
        linked = np.flatnonzero(inode["links"] > 0)
        chosen = int(linked[-1]) if len(linked) else len(inode) - 1
        state: Any = inode[chosen] if chosen >= 0 else None
        if state is not None and (int(state["mode"]) & S_IFMT != S_IFREG or int(state["size"]) >= OUR_MAX_BYTES):
            return None
        size = int(state["size"]) if state is not None else -1
        out = HostFile(f"inode {self._keys[k, 0]}/{self._keys[k, 1]}", "", size, True, NO_ROWS, "btrfs.leaf", False,
                       times(state) if state is not None else {})  # fmt: skip
        # From the first state without a link on, leaves show a file that is being cleared from its end.
        unlinked = generation[inode["links"] == 0]
        if len(unlinked):
            rows = rows[(rows[:, KIND] != RUN_HOLE) | (rows[:, GENERATION] < unlinked[0])]
        pieces = without_overlap(rows[:, [START, STOP, KIND, LOGICAL, MADE, GENERATION]], rows[:, GENERATION])
        held = pieces[pieces[:, 2] != RUN_HOLE]
        if not len(held):
            return None
        if (held[:, 2] == RUN_INLINE).all():
            content = self._inline.get(k, (0, b""))[1]
            if not 0 <= size <= OUR_MAX_INLINE or not content:
                return None
            out.inline, out.complete = content[:size].ljust(size, b"\0"), len(content) >= size
            return out
        if size < 0:
            pieces = pieces[pieces[:, 1] < OUR_MAX_BYTES]
        told, whole = finish(pieces[:, :4])
        out.runs = cut_rows(told, size, -1)
        data = pieces[pieces[:, 2] == RUN_DATA]
        if len(data):
            out.check = partial(_checked, out.runs, data, size, test)
        made = rows[rows[:, LOGICAL] >= 0, MADE]
        if len(made):
            out.number, out.born, out.last = int(self._keys[k, 1]), float(made.min()), float(made.max())
        out.complete = whole and not self._dropped and state is not None and _sums_up(held, size, sector, state)
        return out


def _checked(runs: Runs, data: Runs, size: int, test: Test) -> Runs:
    """A file's rows with those of its data tested. data: pieces with the generations of extent and leaf behind."""
    pieces = [Piece(start, logical, end - start, made, seen) for start, end, _, logical, made, seen in data.tolist()]
    rows = np.concatenate((runs[runs[:, 3] != RUN_DATA], cut_rows(test(pieces), size, -1)))
    return joined_rows(rows[np.argsort(rows[:, 0], kind="stable")])


def _sums_up(held: Runs, size: int, sector: int, state: np.void) -> bool:
    """Whether a file's extents are as many bytes as its inode counted, with or without those beyond its end."""
    end = -(-size // sector) * sector
    inside = np.clip(np.minimum(held[:, 1], end) - held[:, 0], 0, None)
    return int(state["nbytes"]) in (int((held[:, 1] - held[:, 0]).sum()), int(inside.sum()))
