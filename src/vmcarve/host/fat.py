"""FAT12, FAT16 and FAT32 as a host: free clusters, live files through their chains, deleted entries as guesses.

Source: Microsoft FAT specification 1.03, checked against mkfs.vfat 4.2, mtools 4.0 and fsck.fat. Deleting a file
writes 0xE5 over the first character of its entries and zeroes its chain: first cluster and size are all that is left
(of the first cluster, Windows clears the high half on FAT32), so a deleted file's map is a guess, origin
"fat.direntry", and only its content can confirm it.
"""

from __future__ import annotations

import datetime
import itertools
import math
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ..model import SECTOR, HostFile, HostKind, HostVolume, Reader
from ._blocks import NO_RUNS
from ._fat_begin import begins
from ._fat_boot import ENTRY, Boot, parse_boot
from ._fat_chains import FIRST, Guess, Heap, Table, read_table
from ._fat_directory import DELETED, LONG_NAME, SIGNATURE, checksum, confirm_batch, continued, of_directory, own_number
from ._fat_placer import own_clusters, placer
from ._first_look import named
from ._space import NO_ROWS, Runs, Stream, clipped, cut_rows

DIRECTORY, LABEL = 0x10, 0x08  # attributes
BACKUP_SECTOR = 6  # where formatters put FAT32's second boot sector (seen: mkfs.vfat 4.2)
FORMAT_MAX_DIRECTORY = 65536 * ENTRY  # bytes
OUR_MAX_DIRECTORIES = 1 << 20
OUR_MAX_DELETED = 1 << 20  # deleted entries of one volume
OUR_MAX_HELD = 1 << 22  # entries of one volume whose table is lost in part
OUR_MAX_LOOKED = 1 << 30  # bytes of one volume that are looked through for directories
OUR_MAX_HIGH_HALVES = 4  # values tried for the half of a first cluster that Windows cleared
LOST_INITIAL = "_"
STEP = 4 << 20  # bytes that are looked through at once


@dataclass(slots=True)
class _Entry:
    """A directory entry. cluster: its first one (0: none); at: image offset of the entry, which names it."""

    name: str
    at: int
    folder: bool
    cluster: int
    size: int
    deleted: bool
    times: dict[str, float]
    highs: list[int] = field(default_factory=list[int])


@dataclass(slots=True)
class _Folder:
    path: str
    rows: Runs
    deleted: bool


class FatVolume:
    """A FAT volume. size: bytes by its boot sector; block_size: a cluster."""

    derived = False

    def __init__(self, reader: Reader, offset: int, boot: Boot) -> None:
        self._reader, self._boot = reader, boot
        self.name = f"fat{32 if boot.bits == 28 else boot.bits}"
        self.offset, self.size, self.block_size = offset, boot.total, boot.cluster
        self.uuid = f"{boot.serial >> 16:04x}-{boot.serial & 0xFFFF:04x}"
        self._heap = Heap(offset + boot.heap, boot.cluster, boot.clusters)
        order = list(range(boot.copies)) if boot.active < 0 else [boot.active]
        copies = [offset + boot.reserved + i * boot.table for i in order]
        self._table = Table(self._heap, read_table(reader, copies, boot.bits, self._heap), (1 << boot.bits) - 8)
        self._guess = Guess(self._heap, self._table.free)
        self._lost = False  # a part of some directory
        self._read: set[int] = set()  # clusters of directories whose entry in the table is lost
        self._begins = np.empty(0, np.int64)  # clusters with which files begin, where a part of the table is lost
        self.label = next((e.name for e in self._entries(self._root(), labels=True)), boot.label)

    def free(self) -> Runs:
        """Clusters whose entry in the table is 0."""
        runs = self._heap.image(self._table.free)
        inside = np.minimum(runs[:, 0] + runs[:, 1], self._reader.size) - runs[:, 0]
        return np.stack((runs[:, 0], inside), axis=1)[inside > 0]

    def files(self) -> Iterator[HostFile]:
        """Live files through their chains, then deleted entries, each with its likeliest map first."""
        deleted: list[_Entry] = []
        met = {self._boot.root_cluster}
        self._read.clear()
        entries = self._walk(met)
        if len(self._table.lost):  # where others begin tells of each how far it can go on
            entries = iter(held := list(itertools.islice(entries, OUR_MAX_HELD)))
            self._begins = np.unique(np.array([*met, *(e.cluster for e in held if not e.deleted)], np.int64))
        for entry in entries:
            if not entry.deleted:
                yield self._live(entry)
            elif len(deleted) < OUR_MAX_DELETED:
                deleted.append(entry)
        for entry in deleted:
            yield from self._deleted(entry)

    def live(self) -> Iterator[HostFile]:
        """Live files."""
        return itertools.takewhile(lambda file: not file.deleted, self.files())

    def _live(self, entry: _Entry) -> HostFile:
        count = -(-entry.size // self._heap.cluster)
        runs, held = self._table.chain(entry.cluster, count)
        rows = cut_rows(self._heap.rows(runs), entry.size, -1)
        complete = held and int(runs[:, 1].sum()) >= count
        identity = f"entry {entry.at:#x}"
        more = NO_RUNS
        if not held:  # where the table is lost it goes on in one run
            known = int(runs[:, 1].sum())
            first = self._table.following(int(runs[-1].sum()) - 1) if known else entry.cluster
            more = self._in_one_run(first, count - known)
        if not len(more):
            certain = held or len(runs) > 0
            return HostFile(identity, entry.name, entry.size, False, rows, "fat.chain" if certain else "fat.one-run",
                            complete, entry.times, certain=certain or not len(rows))
        rows = cut_rows(self._heap.rows(np.concatenate((runs, more))), entry.size, -1)
        return HostFile(identity, entry.name, entry.size, False, rows, "fat.one-run", False, entry.times, certain=False)

    def _in_one_run(self, first: int, count: int) -> Runs:
        """The clusters of a file from one on whose entry is lost, as if they lay in one run, up to where another file
        begins.
        """
        runs = self._table.in_one_run(first, count) if self._heap.holds(first) else NO_RUNS
        after = self._begins[int(np.searchsorted(self._begins, first, "right")) :][:1]
        return clipped(runs, first, int(after[0])) if len(after) else runs

    def _deleted(self, entry: _Entry) -> Iterator[HostFile]:
        identity = f"entry {entry.at:#x}"
        told = False
        for high in [0, *entry.highs]:
            cluster = high << 16 | entry.cluster
            if not self._heap.holds(cluster) or (high and not self._guess.is_free(cluster)):
                continue
            origin = "fat.direntry" if not high else "fat.direntry-half"
            for rows, complete in self._guess.maps(cluster, entry.size):
                told = True
                rows = cut_rows(rows, entry.size, -1)
                yield HostFile(identity, entry.name, entry.size, True, rows, origin, complete and not high, entry.times,
                               certain=False)
        if not told:
            yield HostFile(identity, entry.name, entry.size, True, NO_ROWS, "fat.direntry", not entry.size, entry.times)

    def elsewhere(self, reader: Reader) -> Iterator[HostFile]:
        """Live files that sectors of directories tell of, wherever in `reader` these lie, and those of which only the
        chain is left, their size lost; each once.

        Of which directory a sector is, and whether that is in use, is not known: what two tell otherwise is left out,
        and what begins where the table says that nothing is.
        """
        found: dict[int, _Entry | None] = {}
        for at in range(0, min(reader.size, OUR_MAX_LOOKED), STEP):
            data = np.frombuffer(reader.read(at, STEP), np.uint8)
            sectors = data[: len(data) // SECTOR * SECTOR].reshape(-1, SECTOR)
            begins, own = own_clusters(sectors, self._boot.bits)
            begins = begins[[not self._guess.is_free(c) for c in own.tolist()]] if len(own) else begins
            for i in np.union1d(begins, continued(sectors)).tolist():
                folder = _Folder("", np.array([[0, at + i * SECTOR, SECTOR, 0]], np.int64), False)
                for entry in self._entries_of(sectors[i].tobytes(), folder):
                    c = entry.cluster
                    if entry.deleted or entry.folder or not entry.size or not self._heap.holds(c):
                        continue
                    if len(found) < OUR_MAX_HELD and not self._guess.is_free(c):
                        known = found.setdefault(c, entry)
                        found[c] = known if known is not None and known.size == entry.size else None
        told = {c: entry for c, entry in found.items() if entry is not None}
        self._begins = np.union1d(self._begins, np.array(list(told), np.int64))
        for c, entry in told.items():
            yield replace(self._live(entry), identity=f"cluster {c}")
        for c in self._table.heads():  # no entry is left of these
            runs, ended = self._table.chain(c, self._heap.count)
            if ended and c not in told:
                yield HostFile(f"chain {c}", "", -1, False, self._heap.rows(runs), "fat.chain", certain=False)

    def quiet_since(self) -> float:
        """Never: entries and chains of files that came and went may be gone."""
        return math.inf

    # --- directories ---------------------------------------------------------------------------------------------
    def _root(self) -> _Folder:
        if self._boot.bits == 28:
            return self._folder("", self._boot.root_cluster)
        start = self.offset + self._boot.heap - self._boot.root_bytes
        self._lost |= self._reader.missing(start, self._boot.root_bytes)
        return _Folder("", np.array([[0, start, self._boot.root_bytes, 0]], np.int64), False)

    def _folder(self, path: str, cluster: int) -> _Folder:
        runs, held = self._table.chain(cluster, -(-FORMAT_MAX_DIRECTORY // self._heap.cluster))
        if not held and not len(runs):
            runs = self._unchained(cluster)
        rows = self._heap.rows(runs)
        self._lost |= not held or any(self._reader.missing(at, n) for _, at, n, _ in rows.tolist())
        return _Folder(path, rows, False)

    def _unchained(self, cluster: int) -> Runs:
        """The clusters of a directory whose first entry in the table is lost: while they are full and look like it."""
        count = 0
        while self._heap.holds(cluster + count) and self._table.is_lost(cluster + count):
            at = self._heap.start + (cluster + count - FIRST) * self._heap.cluster
            data = self._reader.read(at, self._heap.cluster)
            root = cluster == self._boot.root_cluster
            if not count and not root and own_number(data) != cluster or not of_directory(data, first=not count):
                break
            self._read.add(cluster + count)
            count += 1
            if not data[-ENTRY] or count * self._heap.cluster >= FORMAT_MAX_DIRECTORY:
                break
        return np.array([[cluster, count]] if count else [], np.int64).reshape(-1, 2)

    def _deleted_folder(self, entry: _Entry) -> _Folder | None:
        """A deleted directory, as long as its first cluster is free and says that it is itself; one cluster of it."""
        if not self._heap.holds(entry.cluster) or not self._guess.is_free(entry.cluster):
            return None
        rows = self._heap.rows(np.array([[entry.cluster, 1]], np.int64))
        if own_number(self._reader.read(int(rows[0, 1]), 2 * ENTRY)) != entry.cluster:
            return None
        return _Folder(entry.name, rows, True)

    def _walk(self, met: set[int]) -> Iterator[_Entry]:
        """All files of the tree, breadth first; each directory once, whoever names it. met: grows by their clusters."""
        left = self._heap.count * self._heap.cluster  # bytes: directories that claim more share clusters
        for top in itertools.chain([self._root()], self._loose(met)):
            waiting = deque([top])
            while waiting and left >= 0:
                here = waiting.popleft()
                left -= int(here.rows[:, 2].sum()) if self._boot.bits == 28 or here.path else 0
                for entry in self._entries(here):
                    if not entry.folder:
                        yield entry
                        continue
                    if entry.cluster in met or len(met) > OUR_MAX_DIRECTORIES:
                        continue
                    folder = self._deleted_folder(entry) if entry.deleted else self._folder(entry.name, entry.cluster)
                    if folder is not None:
                        met.add(entry.cluster)
                        waiting.append(folder)

    def _loose(self, met: set[int]) -> Iterator[_Folder]:
        """Where parts of directories are lost: those in use that were not met, as each states where it lies."""
        if self._boot.bits == 12 or not (self._lost and self._reader.missing(self.offset, self.size)):
            return
        cluster, step = self._heap.cluster, max(1, STEP // self._heap.cluster)
        for first in range(0, min(self._heap.count, OUR_MAX_LOOKED // cluster), step):
            data = np.frombuffer(self._reader.read(self._heap.start + first * cluster, step * cluster), np.uint8)
            blocks = data[: len(data) // cluster * cluster].reshape(-1, cluster)
            rows, stated = own_clusters(blocks, self._boot.bits)
            number = rows + first + FIRST
            for c in number[stated == number].tolist():
                if c not in met and len(met) <= OUR_MAX_DIRECTORIES and not self._guess.is_free(c):
                    met.add(c)
                    yield self._folder(f"(cluster {c})", c)
            if len(self._table.lost):  # what goes on with a directory, nobody knows which
                for c in (continued(blocks) + first + FIRST).tolist():
                    if c not in self._read and len(self._read) <= OUR_MAX_DIRECTORIES and self._table.is_lost(c):
                        self._read.add(c)
                        yield _Folder(f"(cluster {c})", self._heap.rows(np.array([[c, 1]], np.int64)), False)

    def _entries(self, folder: _Folder, labels: bool = False) -> Iterator[_Entry]:
        """Files and directories of one directory (or, `labels`, only the volume's label)."""
        size = min(int(folder.rows[-1, 0] + folder.rows[-1, 2]), FORMAT_MAX_DIRECTORY) if len(folder.rows) else 0
        yield from self._entries_of(Stream(self._reader, folder.rows, size).read(0, size), folder, labels)

    def _entries_of(self, data: bytes, folder: _Folder, labels: bool = False) -> Iterator[_Entry]:
        """Those of what a directory holds, or of a part of it."""
        table = np.frombuffer(data, np.uint8)[: len(data) // ENTRY * ENTRY].reshape(-1, ENTRY)
        end = np.flatnonzero(table[:, 0] == 0)
        table = table[: int(end[0])] if len(end) else table
        short = (table[:, 11] & 0x3F) != LONG_NAME
        is_label = short & (table[:, 11] & LABEL != 0) & (table[:, 0] != DELETED)
        if labels:
            for i in np.flatnonzero(is_label).tolist():
                yield _Entry(_oem(table[i, :11].tobytes()).rstrip(), 0, False, 0, 0, False, {})
            return
        wanted = short & (table[:, 11] & LABEL == 0) & (table[:, 0] != ord(".")) & (table[:, 11] & 0xC0 == 0)
        live = table[wanted & (table[:, 0] != DELETED)].astype(np.int64)
        highs = np.unique(live[:, 20] | live[:, 21] << 8)  # the halves that neighbours have are the likeliest
        highs = highs[highs > 0][:OUR_MAX_HIGH_HALVES].tolist()
        for i in np.flatnonzero(wanted).tolist():
            entry = self._entry(data, i, folder)
            if entry is not None:
                if entry.deleted and self._boot.bits == 28 and entry.cluster < 1 << 16:
                    entry.highs = highs
                yield entry

    def _entry(self, data: bytes, i: int, folder: _Folder) -> _Entry | None:
        row = data[i * ENTRY : (i + 1) * ENTRY]
        deleted = folder.deleted or row[0] == DELETED
        (size,) = struct.unpack_from("<I", row, 28)
        cluster = _cluster(row) & 0x0FFFFFFF if self._boot.bits == 28 else _cluster(row) & 0xFFFF
        is_folder = bool(row[11] & DIRECTORY)
        if deleted and ((cluster and not self._heap.holds(cluster) and self._boot.bits != 28)
                        or size > self._heap.count * self._heap.cluster):
            return None
        if not row[:11].strip(b"\0 \xe5"):
            return None
        name = _long_name(data, i, row) or _short_name(row)
        path = f"{folder.path}/{name}" if folder.path else name
        return _Entry(path, self._place(folder, i * ENTRY), is_folder, cluster, size, deleted, _times(row))

    def _place(self, folder: _Folder, at: int) -> int:
        """Image offset of byte `at` of a directory."""
        i = max(int(np.searchsorted(folder.rows[:, 0], at, "right")) - 1, 0)
        return int(folder.rows[i, 1]) + at - int(folder.rows[i, 0])


def _cluster(row: bytes) -> int:
    return int.from_bytes(row[20:22], "little") << 16 | int.from_bytes(row[26:28], "little")


def _oem(raw: bytes) -> str:
    return raw.decode("cp437")


def _short_name(row: bytes) -> str:
    """The 8.3 name in the case that byte 12 tells; a deleted one's first character is gone."""
    raw = row[:11]
    if raw[0] == DELETED:
        raw = LOST_INITIAL.encode() + raw[1:]
    elif raw[0] == 0x05:  # stands for 0xE5 as a character
        raw = b"\xe5" + raw[1:]
    stem, extension = _oem(raw[:8]).rstrip(), _oem(raw[8:]).rstrip()
    stem = stem.lower() if row[12] & 8 else stem
    extension = extension.lower() if row[12] & 16 else extension
    return f"{stem}.{extension}" if extension else stem


def _long_name(data: bytes, i: int, short: bytes) -> str:
    """The long name in the entries before entry i, or "". Deleted ones have lost their order marks, not their order."""
    parts: list[bytes] = []
    deleted = short[0] == DELETED
    told = checksum(short[:11])
    while i > 0 and len(parts) < 20:
        i -= 1
        row = data[i * ENTRY : (i + 1) * ENTRY]
        if row[11] & 0x3F != LONG_NAME or (row[0] == DELETED) != deleted:
            break
        if not deleted and (row[13] != told or row[0] & 0x1F != len(parts) + 1):
            return ""
        if deleted and parts and row[13] != told:
            break
        told = row[13]
        parts.append(row[1:11] + row[14:26] + row[28:32])
        if not deleted and row[0] & 0x40 or b"\0\0" in (parts[-1][k : k + 2] for k in range(0, 26, 2)) and deleted:
            break
    name = b"".join(parts).decode("utf-16-le", "replace").split("\0")[0]
    return name.rstrip("\uffff")


def _times(row: bytes) -> dict[str, float]:
    """Local times of the writing machine, told as if they were UTC."""
    created, made, accessed, modified, day = struct.unpack_from("<HHH2xHH", row, 14)
    pairs = {"created": (made, created), "accessed": (accessed, 0), "modified": (day, modified)}
    out: dict[str, float] = {}
    for name, (date, time) in pairs.items():
        try:
            when = datetime.datetime(1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63,
                                     min((time & 31) * 2, 59), tzinfo=datetime.UTC)  # fmt: skip
        except ValueError:
            continue
        out[name] = when.timestamp()
    return out


def _believed(reader: Reader, offset: int, boot: Boot, block: bytes) -> bool:
    """A parameter block alone is weak: a copy of the table must begin with the media byte, or the sector say FAT."""
    for i in range(boot.copies):
        head = reader.read(offset + boot.reserved + i * boot.table, 4)
        if len(head) == 4 and head[0] == block[21] and head[1] == 0xFF:
            return True
    return block[510:512] == b"\x55\xaa" and b"FAT" in (block[54:57], block[82:85])


def open_volume(reader: Reader, offset: int, limit: int) -> HostVolume | None:
    """The volume at image offset `offset`, by its boot sector or FAT32's backup of it. `limit`: bytes to its end."""
    if offset < 0 or limit <= 0:
        return None
    copies = (BACKUP_SECTOR * s for s in (512, 1024, 2048, 4096)) if named(reader, offset) in ("", "fat") else ()
    for at in (0, *copies):
        block = reader.read(offset + at, 512)
        boot = parse_boot(block)
        if boot is None or (at and (boot.bits != 28 or at != BACKUP_SECTOR * boot.sector)):
            continue
        if _believed(reader, offset, boot, block):
            return FatVolume(reader, offset, boot)
    return None


def elsewhere(volume: HostVolume, reader: Reader) -> Iterator[HostFile]:
    """See HostKind."""
    return volume.elsewhere(reader) if isinstance(volume, FatVolume) else iter(())


HOST = HostKind("fat", open_volume, signatures=(SIGNATURE,), confirm_batch=confirm_batch, placer=placer, begins=begins,
                elsewhere=elsewhere)
