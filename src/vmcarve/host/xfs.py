"""XFS as a host: what is free, the live files, and what is left of the maps of deleted ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..model import HostFile, HostKind, HostVolume, Reader
from . import _xfs_carve as carve
from . import _xfs_dir as dirs
from . import _xfs_inode as inodes
from . import _xfs_remains as remains
from . import _xfs_super as super_
from ._blocks import I64, U8, Overlay, candidates, merge, to_runs
from ._ext_dir import Paths
from ._xfs_inode import BmbtBlock, Inode
from ._xfs_log import Log
from ._xfs_placer import placer

OUR_MAX_DELETED = 1 << 20  # deleted inodes with remnants that we hold
OUR_MAX_DIRECTORY_BLOCKS = 1 << 20  # of one volume
CHUNK_INODES = 64
RANK = ("xfs.log", "xfs.log-slack", "xfs.bmbt", "xfs.bmbt-slack", "xfs.inode")  # of complete maps, best first


@dataclass(slots=True)
class Deleted:
    """What is known of one deleted file: its slot, and its last state in the log."""

    slot: Inode | None = None
    logged: Inode | None = None


LSN, NO_LSN = 112, (1 << 64) - 1  # byte of a v5 inode with the place in the log of its last change


class XfsVolume:
    """An XFS file system. Offsets are image offsets in bytes."""

    name = "xfs"
    derived = False

    def __init__(self, reader: Reader, sb: super_.Super) -> None:
        self.sb = sb
        self.offset, self.block_size, self.size = sb.offset, sb.block_size, sb.blocks * sb.block_size
        self.uuid, self.label = super_.uuid_text(sb), sb.label
        self._reader = reader
        self._log = Log(reader, sb)
        if not self._log.clean:
            sectors = remains.replay(self._log, sb, reader)
            self._reader = Overlay(reader, sb.offset, super_.DADDR, sectors)
        self._free: I64 | None = None
        self._budget = max(sb.blocks, 1 << 16)  # btree blocks: more than these no sane volume holds

    @cached_property
    def _view(self) -> remains.LogView:
        return remains.read_log(self._log, self.sb)

    def free(self) -> I64:
        """int64[n, 2]: image_offset, length of free space. A group whose free space btrees are lost gives none.

        Files that were unlinked and still open when the image was taken count as free: the next mount frees them.
        """
        if self._free is None:
            runs, _ = super_.free_runs(self._reader, self.sb)
            if not self._log.clean:
                orphans = [self._map(i)[0][:, 1:3] for i in self._selected(inodes.S_IFREG, linked=False)]
                runs = merge(np.concatenate([runs, *orphans]))
            self._free = runs * self.block_size + (self.offset, 0)
        return self._free

    # --- inodes ----------------------------------------------------------------------------------------------------
    def _tables(self) -> Iterator[tuple[I64, U8, npt.NDArray[np.bool_]]]:
        """(inode numbers, uint8[n, inode size], in use) of every inode that the inode btrees name."""
        size = self.sb.inode_size
        for chunk in super_.inode_chunks(self._reader, self.sb):
            if isinstance(chunk, int):
                yield from self._loose_tables(chunk)
                continue
            place = self.sb.inode_place(chunk.first)
            if place is None:
                continue
            data = self._reader.read(place, CHUNK_INODES * size)
            raw = np.frombuffer(data, np.uint8, len(data) // size * size).reshape(-1, size)
            index = np.arange(len(raw))
            bits = np.array([chunk.free >> i & 1 for i in range(len(raw))], np.bool_)
            absent = np.array([chunk.absent >> i & 1 for i in range(len(raw))], np.bool_)
            keep = (raw[:, 0] == 0x49) & (raw[:, 1] == 0x4E) & ~absent
            yield chunk.first + index[keep], raw[keep], ~bits[keep]

    def _loose_tables(self, group: int) -> Iterator[tuple[I64, U8, npt.NDArray[np.bool_]]]:
        """The same for a group whose inode btree is lost: every block that holds inodes."""
        sb = self.sb
        run = np.array([[sb.place(group * sb.group_blocks), sb.group_size(group) * sb.block_size]], np.int64)
        yield from self._inode_blocks(remains.sweep(self._reader, run, sb).inodes)

    def _inode_blocks(self, blocks: list[int]) -> Iterator[tuple[I64, U8, npt.NDArray[np.bool_]]]:
        sb = self.sb
        for block in blocks:
            data = self._reader.read(sb.place(block), sb.block_size).ljust(sb.block_size, b"\0")
            raw = np.frombuffer(data, np.uint8).reshape(-1, sb.inode_size)
            numbers = (sb.fsblock_of(block) << sb.inode_log) + np.arange(len(raw))
            keep = (raw[:, 0] == 0x49) & (raw[:, 1] == 0x4E)
            yield numbers[keep], raw[keep], (raw[keep, 2] | raw[keep, 3]) > 0

    def _selected(self, kind: int, linked: bool = True) -> Iterator[Inode]:
        """Inodes of one type in use, as the log's replay leaves them; not linked: those that nothing names any more.

        What the disk has of an inode is newer than the log where its own sequence number is (as in Linux,
        xlog_recover_inode_commit_pass2).
        """
        current = dict(self._lost) if self._log.clean else dict(self._view.current)
        for numbers, raw, used in self._tables():
            modes = raw[:, 2].astype(np.int64) << 8 | raw[:, 3]
            written = raw[:, LSN : LSN + 8].copy().view(">u8")[:, 0].tolist() if self.sb.crc else [0] * len(raw)
            for n, lsn in zip(numbers.tolist(), written, strict=True):
                if n in current and lsn > current[n].lsn and lsn != NO_LSN:
                    del current[n]
            changed = np.array([n in current for n in numbers.tolist()], np.bool_)
            for i in np.flatnonzero(used & (modes & inodes.S_IFMT == kind) & ~changed).tolist():
                inode = inodes.parse_inode(raw[i].tobytes(), int(numbers[i]))
                if inode is not None and (inode.links > 0) is linked:
                    yield inode
        for ino, inode in current.items():
            if inode.mode & inodes.S_IFMT == kind and (inode.links > 0) is linked:
                yield self._completed(inode, ino)

    @cached_property
    def _lost(self) -> dict[int, Inode]:
        """Files whose inodes are missing on the disk, as the log has them last.

        All that changes an inode is logged: where no gap of the log lies behind, that is its last state.
        """
        if not self._log.ended or not self._reader.missing(self.offset, self.size):
            return {}
        out: dict[int, Inode] = {}
        for key, inode in self._view.files.items():
            place = self.sb.inode_place(inode.ino)
            last = key not in self._view.ended and inode.lsn >= self._log.unbroken
            if last and place is not None and self._reader.missing(place, self.sb.inode_size):
                out[inode.ino] = max(inode, out.get(inode.ino, inode), key=lambda i: i.lsn)
        return out

    def _completed(self, inode: Inode, ino: int) -> Inode:
        """A logged inode whose fork was not logged with it gets the fork that is on the disk."""
        if not inode.fork and inode.extents and (place := self.sb.inode_place(ino)) is not None:
            disk = inodes.parse_inode(self._reader.read(place, self.sb.inode_size), ino)
            inode.fork = disk.fork if disk is not None else b""
        return inode

    # --- maps ------------------------------------------------------------------------------------------------------
    def _bmbt(self, block: int) -> BmbtBlock | None:
        self._budget -= 1
        at = self.sb.place(block)
        if self._budget < 0 or self._reader.missing(at, self.block_size):
            return None
        data = self._reader.read(at, self.block_size)
        # blocks that a replay changed carry the checksum of what they were
        if self.sb.crc and self._log.clean and not inodes.bmbt_checksum_ok(data):
            return None
        return inodes.parse_bmbt(data, self.sb, block)

    def _map(self, inode: Inode) -> tuple[I64, bool]:
        """(extent rows, complete) of a live inode."""
        if inode.flags & inodes.FLAG_REALTIME:
            return inodes.NO_EXTENTS, inode.extents == 0
        if inode.format == inodes.FORMAT_EXTENTS:
            rows, ok = inodes.good_rows(inode.fork, min(inode.extents, 1 << 16), self.sb)
            return rows, ok and len(rows) == inode.extents
        if inode.format == inodes.FORMAT_BTREE:
            level, children = inodes.root_children(inode.fork, self.sb)
            if inode.ino in (self._lost if self._log.clean else self._view.current_roots):
                level, children = inodes.log_root_children(inode.fork, self.sb)

            def fetch(block: int) -> BmbtBlock | None:
                found = self._bmbt(block)
                return found if found is not None and found.owner in (-1, inode.ino) else None

            leaves, whole = inodes.walk_bmbt(level, children, fetch)
            rows, agree = inodes.rows_of(leaves)
            return rows, whole and agree and len(rows) == inode.extents
        return inodes.NO_EXTENTS, inode.format == inodes.FORMAT_LOCAL

    # --- files -----------------------------------------------------------------------------------------------------
    def files(self) -> Iterator[HostFile]:
        """Live regular files, then deleted ones."""
        paths, removed = self._walk()
        alive: dict[int, tuple[int, bool]] = {}  # inode -> (generation, has content)
        for inode, file in self._live(paths):
            alive[inode.ino] = inode.generation, len(file.runs) > 0
            yield file
        yield from self._deleted(alive, paths, removed)

    def live(self) -> Iterator[HostFile]:
        """Live regular files without their names."""
        for _, file in self._live(Paths()):
            yield file

    def _live(self, paths: Paths) -> Iterator[tuple[Inode, HostFile]]:
        for inode in self._selected(inodes.S_IFREG):
            if inode.ino in self.sb.internal:
                continue
            rows, whole = self._map(inode)
            yield inode, HostFile(f"inode {inode.ino}", paths.of(inode.ino, self.sb.root), inode.size, False,
                                  to_runs(rows, self.block_size, self.offset), "xfs.inode", whole, inode.times)

    def _walk(self) -> tuple[Paths, list[tuple[int, int, str]]]:
        """Names of everything live; and (low 32 bits of inode, directory, name) of removed entries."""
        paths = Paths()
        removed: list[tuple[int, int, str]] = []
        seen: set[int] = set()
        for inode in self._selected(inodes.S_IFDIR):
            for entry in self._entries(inode, seen):
                if not entry.removed:
                    if entry.kind in (0, dirs.TYPE_REGULAR, dirs.TYPE_DIR):
                        paths.add(entry.ino, inode.ino, entry.name)
                elif len(removed) < remains.OUR_MAX_NAMES:
                    removed.append((entry.ino & 0xFFFFFFFF, inode.ino, entry.name))
        return paths, removed

    def _entries(self, inode: Inode, seen: set[int]) -> Iterator[dirs.Entry]:
        if inode.format == inodes.FORMAT_LOCAL:
            yield from dirs.short_entries(inode.fork, inode.size, self.sb)
            return
        rows, _ = self._map(inode)
        step = self.sb.dir_block // self.block_size
        for logical, block, count, _ in rows.tolist():
            if logical * self.block_size >= dirs.LEAF_OFFSET:
                return
            for b in range(block, block + count - step + 1, step):
                if b in seen or len(seen) >= OUR_MAX_DIRECTORY_BLOCKS:
                    return
                seen.add(b)
                yield from dirs.block_entries(self._reader.read(self.sb.place(b), self.sb.dir_block), self.sb)

    def quiet_since(self) -> float:
        """The last birth in an inode, which may have been another file's before. What is freed keeps its map itself."""
        out = -math.inf
        for _, raw, _ in self._tables():
            if not self.sb.crc:
                return math.inf  # version 4 knows no births
            out = max(out, float(inodes.births(raw).max(initial=-math.inf)))
        return out

    # --- deleted files ---------------------------------------------------------------------------------------------
    def _deleted(
        self, alive: dict[int, tuple[int, bool]], paths: Paths, removed: list[tuple[int, int, str]]
    ) -> Iterator[HostFile]:
        loose = remains.sweep(self._reader, self.free(), self.sb)
        gone: dict[tuple[int, int], Deleted] = {}
        for inode in self._selected(inodes.S_IFREG, linked=False) if not self._log.clean else ():
            gone[inode.ino, inode.generation] = Deleted(inode)
        for numbers, raw, used in self._tables():
            self._note_slots(gone, numbers, raw, used)
        for numbers, raw, _ in self._inode_blocks(loose.inodes):
            self._note_slots(gone, numbers, raw, np.zeros(len(numbers), np.bool_))
        for key, inode in self._view.files.items():
            generation, content = alive.get(key[0], (-1, False))
            if not (generation == key[1] and content):
                gone.setdefault(key, Deleted()).logged = inode
        logged = remains.logged_bmbt(self._view, self.sb)
        owners = remains.bmbt_owners(loose.bmbt, self._bmbt)
        for block in logged.values():
            if block.level == 0 and block.owner > 0 and block.block not in owners.get(block.owner, ()):
                owners.setdefault(block.owner, []).append(block.block)
        newest = {ino: generation for ino, generation in sorted(gone)}
        for owner in owners:
            if owner > 0 and owner not in newest and not alive.get(owner, (0, False))[1]:
                gone[owner, -1] = Deleted()
                newest[owner] = -1
        names = self._names(gone, paths, removed, loose)
        for key, file in sorted(gone.items()):
            its = owners.get(key[0], []) if newest[key[0]] == key[1] else []
            yield from self._candidates(key, file, its, logged, names.get(key, ""))

    def _note_slots(
        self, gone: dict[tuple[int, int], Deleted], numbers: I64, raw: U8, used: npt.NDArray[np.bool_]
    ) -> None:
        """Slots that are no longer in use, or emptied, and whose fork still holds something."""
        if not len(raw):
            return
        mode = raw[:, 2].astype(np.int64) << 8 | raw[:, 3]
        count = np.where(raw[:, 4] == 3, 176, 100)
        first = raw[np.arange(len(raw))[:, None], count[:, None] + np.arange(16)]
        no_extents = ~raw[:, 76:80].any(axis=1) & ~((raw[:, 4] == 3) & raw[:, 24:32].any(axis=1))
        emptied = (mode & inodes.S_IFMT == inodes.S_IFREG) & no_extents & ~raw[:, 56:64].any(axis=1)
        candidates_ = ((mode == 0) | emptied | (~used & (mode & inodes.S_IFMT == inodes.S_IFREG))) & first.any(axis=1)
        for i in np.flatnonzero(candidates_).tolist():
            inode = inodes.parse_inode(raw[i].tobytes(), int(numbers[i]))
            if inode is None or len(gone) >= OUR_MAX_DELETED:
                continue
            # freeing an inode adds one to its generation
            generation = inode.generation - 1 & 0xFFFFFFFF if inode.mode == 0 else inode.generation
            file = gone.setdefault((inode.ino, generation), Deleted())
            file.slot = file.slot or inode

    def _candidates(
        self, key: tuple[int, int], file: Deleted, leaves: list[int], logged: dict[int, BmbtBlock], name: str
    ) -> Iterator[HostFile]:
        """Every map that survives of one deleted file, best first."""
        maps: list[tuple[str, I64, bool]] = []
        old = file.logged
        if old is not None and old.format == inodes.FORMAT_EXTENTS:
            fork = old.fork or (file.slot.fork if file.slot is not None else b"")
            rows, ok = inodes.good_rows(fork, old.extents, self.sb)
            maps.append(("xfs.log", rows, ok))
        if old is not None and old.format == inodes.FORMAT_BTREE:
            level, children = inodes.log_root_children(self._view.roots.get(key, b""), self.sb)

            for blocks in (logged, {}):  # the log's blocks first, or those in place
                tree, whole = inodes.walk_bmbt(level, children, lambda n, b=blocks: self._version(n, key[0], b, logged))
                rows, agree = inodes.rows_of(tree)
                maps.append(("xfs.log", rows, whole and agree and len(rows) == old.extents))
                # a long file is taken apart from its end: the last leaf may have been cut before it was freed
                rows = inodes.with_slack(rows, tree)
                maps.append(("xfs.log-slack", rows, whole and agree and len(rows) == old.extents))
        found = [b for n in leaves if (b := self._version(n, key[0], logged, logged)) is not None]
        for rows, whole in remains.leaf_maps(found, self.sb):
            more = inodes.with_slack(rows, found)
            maps.append(("xfs.bmbt", rows, whole and len(rows) == (old.extents if old is not None else len(more))))
            maps.append(("xfs.bmbt-slack", more, whole and old is not None and len(more) == old.extents))
        slot = file.slot
        if slot is not None and slot.extents:  # unlinked, but not emptied yet
            maps.append(("xfs.inode", *self._map(slot)))
        elif slot is not None:
            maps.append(("xfs.inode", inodes.remnant_rows(slot.fork, self.sb), True))
        # the log's whole map is the newest, a btree is newer than a list in its inode; then whichever maps most
        maps.sort(key=lambda m: (not m[2], RANK.index(m[0]) if m[2] else 0, -int(m[1][:, 2].sum())))
        times = dict(old.times) if old is not None else {}
        born, last = times.get("created", -math.inf), math.inf
        if slot is not None and slot.mode == 0:
            times.update({"created": slot.times["created"]} if "created" in slot.times else {})
            times["deleted"] = last = slot.times["changed"]
            born = times.get("created", born)
        elif (after := self._now(key[0])) is not None and after.generation != key[1]:
            last = after.times.get("created", last)  # the slot's next life
        last = min(last, self._view.ended.get(key, last))
        identity = f"inode {key[0]} generation {key[1]:08x}" if key[1] >= 0 else f"inode {key[0]}, a former file"
        size = old.size if old is not None else -1
        yield from candidates(identity, maps, self.block_size, self.offset, name, size, times, key[0], born, last)

    def _now(self, ino: int) -> Inode | None:
        """What the disk holds in an inode's place."""
        place = self.sb.inode_place(ino)
        data = self._reader.read(place, self.sb.inode_size) if place is not None else b""
        return inodes.parse_inode(data, ino) if len(data) == self.sb.inode_size else None

    def _version(
        self, block: int, owner: int, first: dict[int, BmbtBlock], last: dict[int, BmbtBlock]
    ) -> BmbtBlock | None:
        """A btree block of a deleted file, from `first`, else from its place, else from `last`."""
        for found in (first.get(block), self._bmbt(block), last.get(block)):
            if found is not None and found.owner in (-1, owner):
                return found
        return None

    def _names(
        self, gone: dict[tuple[int, int], Deleted], paths: Paths, removed: list[tuple[int, int, str]],
        loose: remains.Loose,
    ) -> dict[tuple[int, int], str]:  # fmt: skip
        """Paths of deleted files, from the log, from removed entries, and from directories in free space."""
        view, sb = self._view, self.sb
        for block in loose.directories:
            data = self._reader.read(sb.place(block), sb.dir_block)
            removed += [(e.ino & 0xFFFFFFFF, dirs.owner_of(data) or 0, e.name) for e in dirs.block_entries(data, sb)]
        for logged in view.blocks.values():
            data = bytes(logged.data)
            for entry in dirs.block_entries(data, sb) if data[:4] in dirs.HEADS else ():
                if entry.removed:
                    removed.append((entry.ino, dirs.owner_of(data) or 0, entry.name))
                else:
                    view.add_name(entry.ino, logged.lsn, dirs.owner_of(data) or 0, entry.name)
        by_low: dict[int, tuple[int, str]] = {low: (parent, name) for low, parent, name in removed}
        folders = Paths()
        for ino, told in view.names.items():
            folders.add(ino, told[-1][1], told[-1][2])
        out: dict[tuple[int, int], str] = {}
        for key, file in gone.items():
            told = view.names.get(key[0], [])
            limit = file.logged.lsn if file.logged is not None else None
            before = [t for t in told if limit is None or t[0] <= limit]
            if file.slot is not None and file.slot.mode and key[0] in paths:
                out[key] = paths.of(key[0], sb.root)
                continue
            if told:
                _, parent, name = max(before or told)
            elif (key[0] & 0xFFFFFFFF) in by_low:
                parent, name = by_low[key[0] & 0xFFFFFFFF]
            else:
                continue
            above = paths.of(parent, sb.root) or folders.of(parent, sb.root)
            out[key] = f"{above}/{name}" if above else name
        return out


def open_volume(reader: Reader, offset: int, limit: int) -> HostVolume | None:
    """The XFS volume that starts at image offset `offset` and has at most `limit` bytes, or None."""
    sb = super_.find(reader, offset, limit)
    return XfsVolume(reader, sb) if sb is not None else None


HOST = HostKind(
    name="xfs", open=open_volume, carve=carve.carve, signatures=(carve.SIGNATURE,), confirm_batch=carve.confirm_batch,
    placer=placer,
)
__all__ = ["HOST", "XfsVolume", "open_volume"]
