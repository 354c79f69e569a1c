"""ext2, ext3, ext4 as hosts: what is free, the live files, and what is left of the maps of deleted ones.

A deleted file's inode keeps its number and generation; its map is emptied (Seen: Linux 6.18). What survives:
extent blocks in place, bound to (inode, generation) by their checksum; indirect blocks in place; and in the journal
old copies of inode table blocks (maps of up to 4 extents, sizes), of extent blocks, and of directories (names).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..blocks import Blocks
from ..model import EvidenceBatch, HostFile, HostKind, HostVolume, Reader, Signature
from . import _ext_begin as begin
from . import _ext_dir as dirs
from . import _ext_indirect as indirect
from . import _ext_inode as inodes
from . import _ext_journal as journal
from . import _ext_leaf as leaf
from . import _ext_super as super_
from ._blocks import I64, NO_RUNS, Overlay, candidates, inside, merge, subtract, to_runs
from ._ext_history import FIRST_TIME, NEVER, History
from ._ext_inode import Slot, Tree
from ._ext_placer import placer

TABLE_BYTES = 4 << 20  # of inode table read at once
COMPAT_JOURNAL = 0x4
OUR_MAX_DIRECTORIES = 1 << 20
OUR_MAX_DIRECTORY_BLOCKS = 1 << 20  # of one volume
OUR_MAX_DELETED = 1 << 22  # deleted inodes held at once, 12 bytes each
AT_ONCE = 512  # slots of deleted inodes that are read together
COMMIT_SECONDS = 5  # Linux commits a journal at least so often
RESERVED_INODES = 10  # 1..10 belong to the file system itself; 2 is the root directory


@dataclass(slots=True)
class Deleted:
    """What is known of one deleted file: its slot in the table, and the last copy of its inode that had a map."""

    slot: Slot | None = None
    copy: Slot | None = None
    seq: int = -1


@dataclass(slots=True)
class Remains:
    """Everything gathered about deleted files before any is told. Keys of `files`: (inode, generation)."""

    files: dict[tuple[int, int], Deleted] = field(default_factory=dict[tuple[int, int], Deleted])
    # deleted slots without a map, as arrays: most of them left nothing
    ino: list[npt.NDArray[np.uint32]] = field(default_factory=list[npt.NDArray[np.uint32]])
    generation: list[npt.NDArray[np.uint32]] = field(default_factory=list[npt.NDArray[np.uint32]])
    held: int = 0


class ExtVolume:
    """An ext2/3/4 file system. Offsets are image offsets in bytes.

    leaves: image offsets of extent blocks, when a sweep has found them already; None: files() sweeps free space itself.
    """

    derived = False

    def __init__(self, reader: Reader, sb: super_.Super, limit: int) -> None:
        self.sb = sb
        older = "ext3" if sb.compat & COMPAT_JOURNAL else "ext2"
        self.name = "ext4" if sb.incompat & super_.INCOMPAT_EXTENTS else older
        self.offset, self.block_size = sb.offset, sb.block_size
        self.size = sb.blocks * sb.block_size
        self.uuid, self.label = super_.uuid_text(sb), sb.label
        self.leaves: Sequence[int] | None = None
        self._raw = self._reader = reader
        self._limit = limit
        self._groups = super_.Groups(reader, sb)
        if sb.incompat & super_.INCOMPAT_RECOVER:
            self._replay()
        self.replayed = self._reader is not reader  # whether blocks of the journal are laid over those in place
        self._tree_budget = max(sb.blocks, 1 << 16)
        if reader.missing(self.offset, self.size):
            self._restore()
        self._free: I64 | None = None
        self._traced: set[tuple[int, int]] = set()

    # --- reading ---------------------------------------------------------------------------------------------------
    def _block(self, block: int, count: int = 1) -> bytes:
        return self._reader.read(self.offset + block * self.block_size, count * self.block_size)

    def _there(self, block: int) -> bytes | None:
        """A block's bytes, None when any is missing. Counts against what a sane volume can hold."""
        self._tree_budget -= 1
        at = self.offset + block * self.block_size
        if self._tree_budget < 0 or self._reader.missing(at, self.block_size):
            return None
        return self._reader.read(at, self.block_size)

    def _place(self, ino: int) -> int | None:
        """Image offset of an inode slot."""
        group, index = divmod(ino - 1, self.sb.inodes_per_group)
        if not 0 <= group < self.sb.groups or not self._groups.good[group]:
            return None
        return self.offset + int(self._groups.inode_table[group]) * self.block_size + index * self.sb.inode_size

    def _slot(self, ino: int) -> Slot | None:
        at = self._place(ino)
        data = self._reader.read(at, self.sb.inode_size) if at is not None else b""
        if len(data) != self.sb.inode_size:
            return None
        return inodes.slot_of(inodes.slots(data, self.sb.inode_size)[0], ino)

    def _slots(self, inos: Iterable[int]) -> dict[int, Slot]:
        """The slots of those inodes, as far as they are there."""
        size = self.sb.inode_size
        raw = {ino: self._reader.read(at, size) for ino in inos if (at := self._place(ino)) is not None}
        told = [ino for ino, data in raw.items() if len(data) == size]
        table = inodes.slots(b"".join(raw[ino] for ino in told), size)
        return dict(zip(told, inodes.slots_of(table, np.array(told, np.int64)), strict=True))

    def _tables(self) -> Iterator[tuple[int, npt.NDArray[np.void]]]:
        """(first inode number, slots) of every part of the inode tables that was ever used."""
        size = self.sb.inode_size
        step = TABLE_BYTES // size
        for group, used in enumerate(self._groups.used_inodes(self.sb).tolist()):
            start = self.offset + int(self._groups.inode_table[group]) * self.block_size
            for i in range(0, used, step):
                data = self._reader.read(start + i * size, min(step, used - i) * size)
                if data:
                    yield group * self.sb.inodes_per_group + i + 1, inodes.slots(data, size)

    def _map(self, slot: Slot) -> Tree:
        """The map that a slot in use gives."""
        def fetch(block: int, _: int) -> bytes | None:
            return self._there(block)

        if slot.inline:
            return Tree(inodes.NO_EXTENTS, [], True)
        read = inodes.read_tree if slot.extents else inodes.read_indirect
        return read(slot.root, fetch, self.block_size, self.sb.blocks)

    # --- the journal -----------------------------------------------------------------------------------------------
    def _open_log(self, reader: Reader) -> tuple[journal.LogSuper, journal.Copies] | None:
        """The internal journal's copies, through its inode or the superblock's copy of that inode's map."""
        if not self.sb.compat & COMPAT_JOURNAL:
            return None
        tries: list[tuple[bytes, int]] = []
        slot = self._slot(self.sb.journal_inum)
        if slot is not None and slot.links:
            tries.append((slot.root, slot.size))
        tries.append((self.sb.journal_blocks[:60], self.sb.journal_size))
        for root, size in tries:
            kind = inodes.FLAG_EXTENTS if inodes.header(root, 4) is not None else 0
            tree = self._map(Slot(self.sb.journal_inum, 0, size, kind, 0, 1, 0, root))
            rows = tree.rows
            length = int(rows[-1, 0] + rows[-1, 2]) if len(rows) else 0
            if length == 0 or length > journal.OUR_MAX_LOG_BLOCKS or int(rows[:, 2].sum()) != length:
                continue
            where = np.repeat(rows[:, 1] - rows[:, 0], rows[:, 2]) + np.arange(length)
            where = self.offset + where * self.block_size
            log = journal.parse_super(reader.read(int(where[0]), self.block_size), length, self.block_size)
            if log is not None:
                return log, journal.read_log(reader, where, log, self.block_size, self.sb.blocks)
        return None

    def _replay(self) -> None:
        """Lays the committed transactions of an unclean journal over the volume, in memory."""
        self._tree_budget = self.sb.blocks
        opened = self._open_log(self._raw)
        blocks = opened[1].to_replay(self._raw, opened[0], self.block_size) if opened is not None else {}
        if not blocks:
            return
        self._reader = Overlay(self._raw, self.offset, self.block_size, blocks)
        sb = super_.find(self._reader, self.offset, self._limit)
        if sb is not None and (sb.block_size, sb.uuid) == (self.sb.block_size, self.sb.uuid):
            self.sb = sb
        self._groups = super_.Groups(self._reader, self.sb)

    def _restore(self) -> None:
        """Lays the newest copies that the journal has over blocks that are missing, in memory.

        Whatever changed a block wrote it to the journal first: where nothing behind is lost, the newest copy is what
        the block was at last.
        """
        opened = self._open_log(self._reader)
        if opened is None or not opened[1].ends(opened[0]):
            return
        copies, bs = opened[1], self.block_size
        blocks: dict[int, bytes | int] = {}
        for i in copies.newest().tolist():
            home, where = int(copies.home[i]), int(copies.where[i])
            if self._reader.missing(self.offset + home * bs, bs) and not self._reader.missing(where, bs):
                blocks[home] = copies.read(self._reader, i, bs)
        if blocks:
            self._reader = Overlay(self._reader, self.offset, bs, blocks)
            self._groups = super_.Groups(self._reader, self.sb)

    @cached_property
    def _history(self) -> History:
        return History(self._reader, self.sb, self._groups, self._log)

    @cached_property
    def _log(self) -> journal.Copies:
        opened = self._open_log(self._reader)
        return opened[1] if opened is not None else journal.no_copies()

    # --- free space ------------------------------------------------------------------------------------------------
    def free(self) -> I64:
        """int64[n, 2]: image_offset, length of free blocks; where a bitmap is lost, what no live inode claims.

        Files that were unlinked and still open when the image was taken count as free: the next mount frees them.
        """
        if self._free is None:
            runs, known = super_.free_blocks(self._reader, self.sb, self._groups)
            lost = np.flatnonzero(~known)
            if len(lost):
                starts = self.sb.first_block + lost * self.sb.blocks_per_group
                spans = np.stack((starts, np.minimum(self.sb.blocks_per_group, self.sb.blocks - starts)), axis=1)
                spans = subtract(spans, super_.metadata_runs(self.sb, self._groups))
                runs = merge(np.concatenate((runs, subtract(spans, self._claimed()))))
            if self.sb.orphan:
                runs = merge(np.concatenate((runs, self._orphans())))
            self._free = runs * self.block_size + (self.offset, 0)
        return self._free

    def _orphans(self) -> I64:
        """Blocks of the content of inodes without a name that are not freed yet: dtime chains them by number."""
        parts = [NO_RUNS]
        for first, table in self._tables():
            regular = table["mode"] & inodes.S_IFMT == inodes.S_IFREG
            still_open = regular & (table["links"] == 0) & (table["dtime"] <= self.sb.inodes)
            for slot in _some_slots(table, np.flatnonzero(still_open), first):
                if slot.has_map:
                    tree = self._map(slot)
                    parts += [tree.rows[:, 1:3], np.array([(b, 1) for b in tree.blocks], np.int64).reshape(-1, 2)]
        return merge(np.concatenate(parts))

    def _claimed(self) -> I64:
        """Blocks of every inode in use: content, trees, extended attributes."""
        parts = [NO_RUNS]
        for first, table in self._tables():
            used = np.flatnonzero((table["links"] > 0) & (table["mode"] > 0) | (np.arange(len(table)) + first <= 10))
            single: list[tuple[int, int]] = []
            for slot in _some_slots(table, used, first):
                single.append((slot.acl, 1))
                if slot.mode & inodes.S_IFMT in (inodes.S_IFREG, inodes.S_IFDIR) or slot.extents:
                    tree = self._map(slot)
                    parts.append(tree.rows[:, 1:3])
                    single += [(b, 1) for b in tree.blocks]
            parts.append(np.array(single, np.int64).reshape(-1, 2))
        return merge(np.concatenate(parts))

    # --- live files ------------------------------------------------------------------------------------------------
    def files(self) -> Iterator[HostFile]:
        """Live regular files, then deleted ones."""
        paths, owner_of_block = self._walk()
        remains = Remains()
        for first, table in self._tables():
            number = np.arange(len(table), dtype=np.int64) + first
            regular = (table["mode"] & inodes.S_IFMT == inodes.S_IFREG) & (number > RESERVED_INODES)
            for slot in _some_slots(table, np.flatnonzero(regular & (table["links"] > 0)), first):
                yield self._live(slot, paths)
                if slot.size == 0 and not slot.has_map:
                    remains.files[slot.ino, slot.generation] = Deleted()  # emptied: may have had content
            gone = regular & (table["links"] == 0)
            self._note_deleted(remains, table, first, gone)
        yield from self._deleted(remains, paths, owner_of_block)

    def live(self) -> Iterator[HostFile]:
        """Live regular files without their names."""
        nameless = dirs.Paths()
        for first, table in self._tables():
            number = np.arange(len(table), dtype=np.int64) + first
            regular = (table["mode"] & inodes.S_IFMT == inodes.S_IFREG) & (number > RESERVED_INODES)
            live = np.flatnonzero(regular & (table["links"] > 0))
            rows, size = inodes.single_extents(table[live], self.sb.blocks)
            rows = rows * (self.block_size, self.block_size, self.block_size, 1) + (0, self.offset, 0, 0)
            for n, (i, of_file) in enumerate(zip(live.tolist(), size.tolist(), strict=True)):
                if of_file >= 0:  # most files: one extent that the inode itself holds
                    yield HostFile(f"inode {first + i}", "", of_file, False, rows[n : n + 1], "ext4.inode", True)
                else:
                    yield self._live(inodes.slot_of(table[i], first + i), nameless)

    def _live(self, slot: Slot, paths: dirs.Paths) -> HostFile:
        tree = self._map(slot)
        inline = inodes.inline_content(slot) if slot.inline else None
        runs = to_runs(tree.rows, self.block_size, self.offset)
        return HostFile(f"inode {slot.ino}", paths.of(slot.ino), slot.size, False, runs, "ext4.inode", tree.complete,
                        slot.times, inline)  # fmt: skip

    def _walk(self) -> tuple[dirs.Paths, dict[int, int]]:
        """Names of everything live, and the directory that each directory block belongs to."""
        paths = dirs.Paths()
        owner_of_block: dict[int, int] = {}
        filetype = bool(self.sb.incompat & super_.INCOMPAT_FILETYPE)
        held = 0
        for first, table in self._tables():
            is_dir = (table["mode"] & inodes.S_IFMT == inodes.S_IFDIR) & (table["links"] > 0)
            for slot in _some_slots(table, np.flatnonzero(is_dir), first):
                held += 1
                if held > OUR_MAX_DIRECTORIES:
                    return paths, owner_of_block
                for block, data in self._directory_blocks(slot, owner_of_block):
                    if block:
                        owner_of_block[block] = slot.ino
                    for entry in dirs.entries(data, filetype, slack=False):
                        if entry.kind in (0, 1, dirs.TYPE_DIR):
                            paths.add(entry.ino, slot.ino, entry.name)
        return paths, owner_of_block

    def _directory_blocks(self, slot: Slot, seen: dict[int, int]) -> Iterator[tuple[int, bytes]]:
        """(block, bytes) of a directory; no block twice in one volume. Inline directories give block 0."""
        if slot.inline:
            content = inodes.inline_content(slot)
            yield 0, content[4:60]  # the first 4 bytes are the parent's number
            yield 0, content[60:]
            return
        for block, count in self._map(slot).rows[:, 1:3].tolist():
            for b in range(block, block + count):
                if b in seen or len(seen) >= OUR_MAX_DIRECTORY_BLOCKS:
                    return
                yield b, self._block(b)

    # --- deleted files ---------------------------------------------------------------------------------------------
    def _note_deleted(
        self, remains: Remains, table: npt.NDArray[np.void], first: int, gone: npt.NDArray[np.bool_]
    ) -> None:
        extents = (table["flags"] & inodes.FLAG_EXTENTS) != 0
        roots = np.ascontiguousarray(table["block"]).view(np.uint8).reshape(len(table), 60)
        mapped = gone & np.where(extents, roots[:, 2] > 0, roots.any(axis=1))
        for slot in _some_slots(table, np.flatnonzero(mapped), first):
            if slot.has_map:
                remains.files[slot.ino, slot.generation] = Deleted(slot)
        bare = np.flatnonzero(gone & ~mapped)
        if remains.held + len(bare) <= OUR_MAX_DELETED:
            remains.held += len(bare)
            remains.ino.append((bare + first).astype(np.uint32))
            remains.generation.append(table["generation"][bare].astype(np.uint32))

    def quiet_since(self) -> float:
        """The last birth in an inode, which may have been another file's before, or deletion that left no map.

        Blocks that are freed are not given away before the journal commits: deletions of one moment hide nothing.
        """
        out = -math.inf
        for first, table in self._tables():
            number = np.arange(len(table), dtype=np.int64) + first
            used = (table["mode"] != 0) & (number > RESERVED_INODES)
            if not used.any():
                continue
            out = max(out, float(inodes.births(table[used]).max()))
            dead = used & (table["links"] == 0) & (table["dtime"] > FIRST_TIME)
            for i in np.flatnonzero(dead & (table["dtime"] > out + COMMIT_SECONDS)).tolist():
                if (int(number[i]), int(table["generation"][i])) not in self._traced:
                    out = max(out, float(table["dtime"][i]) - COMMIT_SECONDS)
        return out

    def _deleted(self, remains: Remains, paths: dirs.Paths, owner_of_block: dict[int, int]) -> Iterator[HostFile]:
        self._read_old_inodes(remains)
        ino = np.concatenate([*remains.ino, np.array([k[0] for k in remains.files], np.uint32)])
        generation = np.concatenate([*remains.generation, np.array([k[1] for k in remains.files], np.uint32)])
        blocks = self._extent_blocks()
        owned: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
        orphans = blocks
        if self.sb.checksums and len(blocks):
            keys = self.sb.owner_state(ino, generation)
            order = np.argsort(keys, kind="stable")
            for group in blocks.groups():
                i = int(np.searchsorted(keys[order], blocks.key[group[0]]))
                if i < len(order) and keys[order[i]] == blocks.key[group[0]]:
                    owner = int(ino[order[i]]), int(generation[order[i]])
                    owned[owner] = group
                    remains.files.setdefault(owner, Deleted())
            loose = np.ones(len(blocks), np.bool_)
            for group in owned.values():
                loose[group] = False
            orphans = blocks.take(loose)
        self._traced = set(remains.files)
        names = self._old_names(remains, paths, owner_of_block)
        used: list[I64] = []
        told = sorted(remains.files.items())
        for at in range(0, len(told), AT_ONCE):
            now = self._slots(ino for (ino, _), _ in told[at : at + AT_ONCE])
            for key, file in told[at : at + AT_ONCE]:
                its = blocks.take(owned[key]) if key in owned else None
                for found in self._candidates(key, file, its, names.get(key, ""), now.get(key[0])):
                    used.append(found.runs[:, 1:3])
                    yield found
        yield from self._without_inode(orphans, merge(np.concatenate([NO_RUNS, *used])))

    def _extent_blocks(self) -> leaf.ExtentBlocks:
        """Extent blocks that lie in free space."""
        if self.leaves is not None:
            places = np.array(self.leaves, np.int64)
            places = places[inside(self.free(), places) & ((places - self.offset) % self.block_size == 0)]
            return leaf.at_places(self._reader, places.tolist(), self.block_size)
        return leaf.sweep(self._reader, self.free(), self.block_size)

    def _read_old_inodes(self, remains: Remains) -> None:
        """The newest journal copy, with a map, of every inode that is no longer what it was."""
        log = self._log
        if len(log) == 0:
            return
        size, bs, sb = self.sb.inode_size, self.block_size, self.sb
        order = np.argsort(self._groups.inode_table, kind="stable")
        starts = self._groups.inode_table[order]
        span = -(-sb.inodes_per_group * size // bs)
        i = np.searchsorted(starts, log.home, "right") - 1
        inside_table = (i >= 0) & (log.home < starts[i] + span) & self._groups.good[order[i]]
        for home in np.unique(log.home[inside_table]).tolist():
            j = int(np.searchsorted(starts, home, "right")) - 1
            first = int(order[j]) * sb.inodes_per_group + (home - int(starts[j])) * (bs // size) + 1
            now = inodes.slots(self._block(home).ljust(bs, b"\0"), size)
            live = (now["links"] > 0) & (now["size_low"] | now["size_high"] > 0)
            taken, generation = np.zeros(len(now), np.bool_), np.zeros(len(now), np.uint32)  # of newer copies
            for k in reversed(log.of(home)):
                old = inodes.slots(log.read(self._reader, k, bs).ljust(bs, b"\0"), size)
                wanted = (old["mode"] & inodes.S_IFMT == inodes.S_IFREG) & (old["size_low"] | old["size_high"] > 0)
                wanted &= ~(live & (now["generation"] == old["generation"]))
                wanted &= ~(taken & (generation == old["generation"]))
                for slot in _some_slots(old, np.flatnonzero(wanted), first):
                    if slot.has_map and RESERVED_INODES < slot.ino <= sb.inodes:
                        file = remains.files.setdefault((slot.ino, slot.generation), Deleted())
                        if file.copy is None:  # newest first
                            file.copy, file.seq = slot, int(log.seq[k])
                        taken[slot.ino - first], generation[slot.ino - first] = True, slot.generation

    def _candidates(
        self, key: tuple[int, int], file: Deleted, blocks: leaf.ExtentBlocks | None, name: str, gone: Slot | None
    ) -> Iterator[HostFile]:
        """Every map that survives of one deleted file, best first. gone: what its slot holds now."""
        maps: list[tuple[str, I64, bool]] = []
        if file.slot is not None:
            tree = self._old_tree(file.slot)
            maps.append(("ext4.inode", tree.rows, tree.complete))
        if file.copy is not None:
            tree = self._tree_of_copy(file.copy, file.seq)
            maps.append(("ext4.journal", tree.rows, tree.complete))
        if blocks is not None:
            found = leaf.assemble(self._reader, blocks, self.offset, self.sb.blocks)
            maps.append((leaf.KIND, found.rows, found.complete))
            maps.append(("ext4.extent-slack", found.slack, False))
        # a whole tree from inode to leaves first; else whichever maps most
        maps.sort(key=lambda m: (not (m[2] and m[0] in ("ext4.inode", "ext4.journal")), m[0] == "ext4.extent-slack",
                                 -int(m[1][:, 2].sum())))  # fmt: skip
        told = file.slot if file.slot is not None and file.slot.size else file.copy
        times = dict(told.times) if told is not None else {}
        born, last = times.get("created", -math.inf), math.inf
        if gone is not None and gone.generation == key[1] and gone.links == 0:
            times.update({k: v for k, v in gone.times.items() if k in ("deleted", "created")})
            # taking the last block away sets the change time, with its fraction; of the deletion only seconds are told
            born, last = gone.times.get("created", born), max(gone.times["changed"], gone.dtime)
        elif gone is not None and gone.generation != key[1]:
            last = gone.times.get("created", last)  # the slot's next life
        identity = f"inode {key[0]} generation {key[1]:08x}"
        size = told.size if told is not None else -1
        since, settled = self._deleted_in(key)
        maps = [(origin, self._history.without_reused(rows, since), whole) for origin, rows, whole in maps]
        yield from candidates(identity, maps, self.block_size, self.offset, name, size, times, key[0], born, last,
                              settled)

    def _deleted_in(self, key: tuple[int, int]) -> tuple[int, bool]:
        """The journal's transaction that deleted a file (History.deleted_in)."""
        place = self._place(key[0])
        if place is None:
            return NEVER, False
        home, inside = divmod(place - self.offset, self.block_size)
        return self._history.deleted_in(home, inside // self.sb.inode_size, key[1])

    def _tree_of_copy(self, slot: Slot, seq: int) -> Tree:
        """The map of a journal copy of an inode, judged by the number of blocks that the inode counts.

        A long file is taken apart over several transactions, from its end: its last blocks in place may be those of a
        file already cut. Then copies from the inode's own time are better.
        """
        tree = self._old_tree(slot)
        if self.sb.cluster_blocks > 1 or inodes.accounts_for(slot, tree, self.block_size):
            return tree
        older = self._old_tree(slot, seq)
        if older.complete and inodes.accounts_for(slot, older, self.block_size):
            return older
        best = max(tree, older, key=lambda t: int(t.rows[:, 2].sum()))
        return Tree(best.rows, best.blocks, False)

    def _old_tree(self, slot: Slot, seq: int | None = None) -> Tree:
        """The map of a slot that is no longer in use: its blocks in place while they are still its own, else copies.

        With `seq`: the newest copies up to that sequence first, and the blocks in place for want of them.
        """
        bs, log = self.block_size, self._log
        most = inodes.entry_limit(bs)
        key: int | None = None

        def own(data: bytes, depth: int) -> bool:
            if not slot.extents:
                return indirect.plausible(np.frombuffer(data, np.uint8).reshape(1, -1), self.sb.blocks)[0] > 0
            nonlocal key
            head = inodes.header(data, most)
            if head is None or head.depth != depth or head.entries == 0:
                return False
            if key is None:  # most files have no block but their inode
                state = self.sb.owner_state(np.array([slot.ino], np.uint32), np.array([slot.generation], np.uint32))
                key = int(state[0])
            rows = np.frombuffer(data, np.uint8).reshape(1, -1)
            if not inodes.plausible_extent_blocks(rows, bs)[0]:
                return False
            return not self.sb.checksums or int(leaf.describe(rows, np.zeros(1, np.int64), bs).key[0]) == key

        def versions(block: int) -> Iterator[bytes | None]:
            if seq is None:
                yield self._there(block)
            copies = [i for i in reversed(log.of(block)) if seq is None or int(log.seq[i]) <= seq]
            yield from (log.read(self._reader, i, bs) for i in copies)
            if seq is not None:
                yield self._there(block)

        def fetch(block: int, depth: int) -> bytes | None:
            for data in versions(block):
                if data is not None and len(data) == bs and own(data, depth):
                    return data
            return None

        read = inodes.read_tree if slot.extents else inodes.read_indirect
        return read(slot.root, fetch, bs, self.sb.blocks)

    def _old_names(
        self, remains: Remains, paths: dirs.Paths, owner_of_block: dict[int, int]
    ) -> dict[tuple[int, int], str]:
        """Paths of deleted files, from journal copies of directories and from slack in live ones."""
        wanted = {key[0] for key in remains.files}
        filetype = bool(self.sb.incompat & super_.INCOMPAT_FILETYPE)
        found: dict[int, list[tuple[int, int, str]]] = {}  # inode -> (sequence, directory, name)
        folders = dirs.Paths()
        known: dirs.Known = {}
        for seq, parent, data in self._directory_copies(owner_of_block):
            own = parent or (dirs.dot_numbers(data) or (0, 0))[0]
            for entry in dirs.entries(data, filetype, known=known):
                if seq == 0 and not entry.slack and entry.kind in (0, 1):
                    continue  # the name of what has the number now, which `paths` knows
                if entry.ino in wanted and entry.kind in (0, 1):
                    found.setdefault(entry.ino, []).append((-1 if entry.slack else seq, own, entry.name))
                elif entry.kind == dirs.TYPE_DIR and entry.ino not in paths:
                    folders.add(entry.ino, own, entry.name)
        out: dict[tuple[int, int], str] = {}
        for key, file in remains.files.items():
            rivals = found.get(key[0], [])
            now = self._slot(key[0]) if key[0] in paths else None
            reborn = now is not None and now.generation != key[1]  # its number has another file's name since
            # the copy of its directory that is nearest to the last time when it was seen alive
            before = [r for r in rivals if file.seq < 0 or r[0] <= file.seq]
            if reborn and not before:
                continue
            if rivals and (key[0] not in paths or file.seq >= 0):
                _, parent, name = max(before or rivals)
                above = paths.of(parent) or folders.of(parent)
                out[key] = f"{above}/{name}" if above else name
            elif key[0] in paths and not reborn:
                out[key] = paths.of(key[0])
        return out

    def _directory_copies(self, owner_of_block: dict[int, int]) -> Iterator[tuple[int, int, bytes]]:
        """(sequence, directory's inode or 0, bytes) of old and, for their slack, present directory blocks."""
        filetype = bool(self.sb.incompat & super_.INCOMPAT_FILETYPE)
        bs, log = self.block_size, self._log
        for i in np.argsort(log.where, kind="stable").tolist():
            data = log.read(self._reader, i, bs)
            home = int(log.home[i])
            if len(data) == bs and (home in owner_of_block or dirs.is_directory_block(data, filetype, self.sb.inodes)):
                yield int(log.seq[i]), owner_of_block.get(home, 0), data
        for block, ino in owner_of_block.items():
            yield 0, ino, self._block(block)

    def _without_inode(self, orphans: leaf.ExtentBlocks, used: I64) -> Iterator[HostFile]:
        """Maps whose inode is lost or reused, as far as at least half of what they name is free."""
        free = subtract(self.free(), used)
        for found in leaf.unowned(self._reader, orphans, self.offset, self.sb.blocks):
            total = int(found.runs[:, 2].sum())
            taken = int(subtract(found.runs[:, 1:3], free)[:, 1].sum()) if len(found.runs) else 0
            if total and 2 * taken <= total:
                yield found
        if not self.sb.incompat & super_.INCOMPAT_EXTENTS:
            yield from indirect.files(self._reader, free, self.sb.blocks, self.block_size, self.offset)


def _some_slots(table: npt.NDArray[np.void], index: I64, first: int) -> Iterator[Slot]:
    """Slots of those elements of a table that begins with inode `first`."""
    return inodes.slots_of(table[index], index + first)


def open_volume(reader: Reader, offset: int, limit: int) -> ExtVolume | None:
    """The ext2/3/4 volume that starts at image offset `offset` and has at most `limit` bytes, or None."""
    sb = super_.find(reader, offset, limit)
    return ExtVolume(reader, sb, limit) if sb is not None else None


def former_volume(reader: Reader, offset: int, limit: int) -> ExtVolume | None:
    """The ext2/3/4 volume that was here before something else began at `offset`, by a copy of its superblock."""
    sb = super_.find_copy(reader, offset, limit)
    return ExtVolume(reader, sb, limit) if sb is not None else None


def tell(volume: HostVolume, image_offset: npt.NDArray[np.int64]) -> None:
    """Extent blocks that a sweep has found. Not taken where a journal waits: it holds newer blocks than the image."""
    if isinstance(volume, ExtVolume) and not volume.replayed:
        volume.leaves = image_offset.tolist()


def confirm_batch(blocks: npt.NDArray[np.uint8] | Blocks, image_offset: I64, signature: Signature
                  ) -> EvidenceBatch | None:
    """Extent blocks, or blocks of a journal."""
    confirm = leaf.confirm_batch if signature.kind == leaf.KIND else begin.confirm_batch
    return confirm(blocks, image_offset, signature)


HOST = HostKind(name="ext4", open=open_volume, carve=leaf.carve, former=former_volume, confirm_batch=confirm_batch,
                signatures=(leaf.SIGNATURE, begin.SIGNATURE), logged=journal.logged, placer=placer, tell=tell,
                begins=begin.begins, guest="ext")
__all__ = ["HOST", "ExtVolume", "open_volume"]
