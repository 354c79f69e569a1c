"""exFAT as a host: free clusters from the allocation bitmap, live files, deleted entry sets.

Source: Microsoft exFAT specification, checked against mkfs.exfat 1.2 and exfat-fuse 1.3. Deleting a file clears the
top bit of its entries' types. A file that lay in one piece says so (NoFatChain), and its map stays exact; of others
the chain survives where the driver leaves the table alone (Linux, Windows: UNVERIFIED; exfat-fuse zeroes it).
"""

from __future__ import annotations

import datetime
import itertools
import math
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..model import HostFile, HostKind, HostVolume, Reader
from ._fat_chains import FIRST, Guess, Heap, Table, read_table
from ._first_look import named
from ._space import NO_ROWS, PIECE, RunCollector, Runs, Stream, cut_rows, zero_bits

ENTRY = 32  # bytes of a directory entry
FILE, STREAM, NAME, BITMAP, LABEL = 0x85, 0xC0, 0xC1, 0x81, 0x83  # entry types in use
IN_USE = 0x80  # bit of the type
DIRECTORY = 0x10  # file attribute
NO_CHAIN = 2  # stream flag: one piece, the table does not tell of it
FORMAT_MAX_DIRECTORY = 256 << 20  # bytes
OUR_MAX_DIRECTORY = 64 << 20  # bytes of one directory that we read
OUR_MAX_DIRECTORIES = 1 << 20
OUR_MAX_DELETED = 1 << 20  # deleted entry sets of one volume
BOOT_SECTORS = 12  # boot region: the sector behind its first 11 holds their checksum; the backup follows it


@dataclass(frozen=True, slots=True)
class Boot:
    """Offsets and lengths in bytes from the volume's start."""

    sector: int
    cluster: int
    table: int
    table_length: int
    copies: int
    active: int
    heap: int
    clusters: int
    root: int
    size: int
    serial: int


def parse_boot(block: bytes) -> Boot | None:
    """The boot sector, or None when it is none or contradicts itself."""
    if len(block) < 512 or block[3:11] != b"EXFAT   " or any(block[11:64]) or block[510:512] != b"\x55\xaa":
        return None
    sectors, table, length, heap, clusters, root, serial, _, flags = struct.unpack_from("<QIIIIIIHH", block, 72)
    sector_shift, cluster_shift, copies = block[108], block[109], block[110]
    if not 9 <= sector_shift <= 12 or cluster_shift > 25 - sector_shift or copies not in (1, 2):
        return None
    sector, cluster = 1 << sector_shift, 1 << sector_shift + cluster_shift
    clusters = min(clusters, length * sector // 4 - FIRST)
    if not 0 < sectors < 1 << 52 or table < 2 * BOOT_SECTORS or heap < table + copies * length:
        return None
    if clusters < 1 or heap * sector + clusters * cluster > sectors * sector or not 2 <= root < clusters + FIRST:
        return None
    return Boot(sector, cluster, table * sector, length * sector, copies, flags & 1 if copies == 2 else 0,
                heap * sector, clusters, root, sectors * sector, serial)  # fmt: skip


def checksum_holds(region: bytes, sector: int) -> bool:
    """Whether the boot region's last sector repeats the checksum of the eleven before it."""
    if len(region) < BOOT_SECTORS * sector:
        return False
    out = 0
    for i, byte in enumerate(region[: 11 * sector]):
        if i not in (106, 107, 112):  # VolumeFlags and PercentInUse change without a new checksum
            out = ((out << 31) + (out >> 1) + byte) & 0xFFFFFFFF
    return struct.unpack_from("<I", region, 11 * sector)[0] == out


@dataclass(slots=True)
class _Entry:
    """A file's or directory's entry set. cluster: its first one; at: image offset of the set; sound: checksum holds."""

    path: str
    at: int
    folder: bool
    cluster: int
    size: int
    valid: int
    in_one_piece: bool
    deleted: bool
    sound: bool
    times: dict[str, float]


@dataclass(slots=True)
class _Folder:
    path: str
    rows: Runs
    deleted: bool


class ExfatVolume:
    """An exFAT volume. size: bytes by its boot sector; block_size: a cluster."""

    name = "exfat"
    derived = False

    def __init__(self, reader: Reader, offset: int, boot: Boot) -> None:
        self._reader, self._boot = reader, boot
        self.offset, self.size, self.block_size = offset, boot.size, boot.cluster
        self.uuid = f"{boot.serial >> 16:04x}-{boot.serial & 0xFFFF:04x}"
        self._heap = Heap(offset + boot.heap, boot.cluster, boot.clusters)
        copies = [offset + boot.table + i * boot.table_length for i in range(boot.copies)]
        table = [copies[boot.active]]  # the other one, if any, belongs to the other half of a TexFAT transaction
        self._table = Table(self._heap, read_table(reader, table, 32, self._heap), 0xFFFFFFF8)
        self._root = _Folder("", self._rows(boot.root, OUR_MAX_DIRECTORY, False, False)[0], False)
        self.label = ""
        self._free_clusters = np.zeros((0, 2), np.int64)
        self._read_root()
        self._guess = Guess(self._heap, self._free_clusters)

    def _read_root(self) -> None:
        """Label and allocation bitmap. Of two bitmaps the one of the active table counts."""
        data, _ = self._data(self._root)
        for at in range(0, len(data), ENTRY):
            kind = data[at]
            if kind == 0:
                return
            if kind == LABEL:
                self.label = data[at + 2 : at + 2 + 2 * min(data[at + 1], 11)].decode("utf-16-le", "replace")
            elif kind == BITMAP and data[at + 1] & 1 == self._boot.active:
                cluster, size = struct.unpack_from("<IQ", data, at + 20)
                self._free_clusters = self._read_bitmap(cluster, min(size, -(-self._boot.clusters // 8)))

    def _read_bitmap(self, cluster: int, size: int) -> Runs:
        """Clusters whose bit is clear: int64[n, 2]. What is unreadable of the bitmap is not called free."""
        bitmap = Stream(self._reader, self._rows(cluster, size, False, False)[0], size)
        found = RunCollector()
        for at in range(0, size, PIECE):
            length = min(PIECE, size - at)
            if not bitmap.missing(at, length):
                found.add(zero_bits(bitmap.read(at, length), FIRST + at * 8, self._boot.clusters - at * 8))
        return found.result()

    def free(self) -> Runs:
        """Clusters whose bit in the allocation bitmap is clear."""
        runs = self._heap.image(self._free_clusters)
        inside = np.minimum(runs[:, 0] + runs[:, 1], self._reader.size) - runs[:, 0]
        return np.stack((runs[:, 0], inside), axis=1)[inside > 0]

    def _rows(self, cluster: int, size: int, in_one_piece: bool, exact: bool) -> tuple[Runs, bool]:
        """HostFile rows from a first cluster on, and whether they reach `size`; exact: a chain must end there too."""
        count = min(-(-size // self._heap.cluster), self._heap.count)
        if in_one_piece:
            held = min(count, FIRST + self._heap.count - cluster) if self._heap.holds(cluster) else 0
            runs = np.array([[cluster, held]], np.int64) if held > 0 else np.zeros((0, 2), np.int64)
        else:
            runs, ended = self._table.chain(cluster, count + exact)
            if exact and not ended:
                return NO_ROWS, False
        reached = int(runs[:, 1].sum())
        return self._heap.rows(runs), reached * self._heap.cluster >= size and (not exact or reached == count)

    def files(self) -> Iterator[HostFile]:
        """Live files, then deleted entry sets, each with its likeliest map first."""
        deleted: list[_Entry] = []
        for entry in self._walk():
            if entry.deleted:
                if len(deleted) < OUR_MAX_DELETED:
                    deleted.append(entry)
                continue
            rows, whole = self._rows(entry.cluster, entry.size, entry.in_one_piece, False)
            yield self._file(entry, rows, whole, "exfat.piece" if entry.in_one_piece else "exfat.chain")
        for entry in deleted:
            yield from self._deleted(entry)

    def live(self) -> Iterator[HostFile]:
        """Live files."""
        return itertools.takewhile(lambda file: not file.deleted, self.files())

    def _file(self, entry: _Entry, rows: Runs, whole: bool, origin: str) -> HostFile:
        rows = cut_rows(rows, entry.size, entry.valid)
        when = entry.times
        last = max((when[k] for k in ("created", "modified") if k in when), default=math.inf)
        return HostFile(f"entry {entry.at:#x}", entry.path, entry.size, entry.deleted, rows, origin, whole, when,
                        certain=origin != "exfat.direntry", born=when.get("created", -math.inf), last=last)

    def _deleted(self, entry: _Entry) -> Iterator[HostFile]:
        if entry.in_one_piece:
            rows, whole = self._rows(entry.cluster, entry.size, True, False)
            yield self._file(entry, rows, whole and entry.sound, "exfat.piece")
            return
        rows, whole = self._rows(entry.cluster, entry.size, False, True)
        told = whole and entry.size > 0
        if told:
            yield self._file(entry, rows, entry.sound, "exfat.chain")
        for rows, whole in self._guess.maps(entry.cluster, entry.size):
            told = True
            yield self._file(entry, rows, whole and entry.sound, "exfat.direntry")
        if not told:
            yield self._file(entry, NO_ROWS, entry.size == 0, "exfat.direntry")

    def quiet_since(self) -> float:
        """Never: entries and chains of files that came and went may be gone."""
        return math.inf

    # --- directories ---------------------------------------------------------------------------------------------
    def _walk(self) -> Iterator[_Entry]:
        """All files of the tree, breadth first; each directory once, whoever names it."""
        waiting = deque([self._root])
        met = {self._boot.root}
        left = self._heap.count * self._heap.cluster  # bytes: directories that claim more share clusters
        while waiting and left >= 0:
            folder = waiting.popleft()
            left -= int(folder.rows[:, 2].sum())
            for entry in self._entries(folder):
                if not entry.folder:
                    yield entry
                    continue
                if entry.cluster in met or len(met) > OUR_MAX_DIRECTORIES:
                    continue
                if entry.deleted and not (entry.sound and self._guess.is_free(entry.cluster)):
                    continue
                met.add(entry.cluster)
                size = min(entry.size, OUR_MAX_DIRECTORY)
                rows, _ = self._rows(entry.cluster, size, entry.in_one_piece, False)
                if entry.deleted and not len(rows):  # its chain is gone: its first cluster is not
                    rows = self._heap.rows(np.array([[entry.cluster, 1]], np.int64))
                waiting.append(_Folder(entry.path, rows, entry.deleted))

    def _data(self, folder: _Folder) -> tuple[bytes, int]:
        size = int(folder.rows[-1, 0] + folder.rows[-1, 2]) if len(folder.rows) else 0
        size = min(size, OUR_MAX_DIRECTORY)
        return Stream(self._reader, folder.rows, size).read(0, size), size // ENTRY

    def _entries(self, folder: _Folder) -> Iterator[_Entry]:
        data, count = self._data(folder)
        kinds = np.frombuffer(data, np.uint8)[::ENTRY][:count]
        end = np.flatnonzero(kinds == 0)
        kinds = kinds[: int(end[0])] if len(end) else kinds
        for i in np.flatnonzero((kinds | IN_USE) == FILE).tolist():
            deleted = not kinds[i] & IN_USE
            more = data[i * ENTRY + 1]
            if not 2 <= more <= 18 or i + more >= len(kinds):
                continue
            wanted = [STREAM, *[NAME] * (more - 1)] if not deleted else [STREAM & 0x7F, *[NAME & 0x7F] * (more - 1)]
            told = kinds[i + 1 : i + 1 + more].tolist()
            if told[:2] == wanted[:2]:
                entry = self._entry(data[i * ENTRY : (i + 1 + more) * ENTRY], folder, i, deleted)
                if entry is not None:
                    yield entry

    def _entry(self, entries: bytes, folder: _Folder, i: int, deleted: bool) -> _Entry | None:
        stream = entries[ENTRY : 2 * ENTRY]
        (valid,) = struct.unpack_from("<Q", stream, 8)
        cluster, size = struct.unpack_from("<IQ", stream, 20)
        if max(size, valid) > self._heap.count * self._heap.cluster or (size and not self._heap.holds(cluster)):
            return None
        raw = b"".join(entries[k + 2 : k + ENTRY] for k in range(2 * ENTRY, len(entries), ENTRY)
                       if entries[k] | IN_USE == NAME)  # fmt: skip
        name = raw[: 2 * stream[3]].decode("utf-16-le", "replace").replace("\0", "")
        path = f"{folder.path}/{name}" if folder.path else name
        row = max(int(np.searchsorted(folder.rows[:, 0], i * ENTRY, "right")) - 1, 0)
        at = int(folder.rows[row, 1]) + i * ENTRY - int(folder.rows[row, 0])
        is_folder = bool(struct.unpack_from("<H", entries, 4)[0] & DIRECTORY)
        return _Entry(path, at, is_folder, cluster, size, min(valid, size), bool(stream[1] & NO_CHAIN),
                      deleted or folder.deleted, _sound(entries), _times(entries))  # fmt: skip


def _sound(entries: bytes) -> bool:
    """Whether the set's checksum holds; that of a deleted set counts the types as they were."""
    out = 0
    for i, byte in enumerate(entries):
        if i not in (2, 3):
            out = ((out << 15) + (out >> 1) + (byte | IN_USE if i % ENTRY == 0 else byte)) & 0xFFFF
    return struct.unpack_from("<H", entries, 2)[0] == out


def _times(entries: bytes) -> dict[str, float]:
    """The set's times; without a valid offset from UTC they are local times, told as if they were UTC."""
    out: dict[str, float] = {}
    for name, at, fine, zone in (("created", 8, 20, 22), ("modified", 12, 21, 23), ("accessed", 16, -1, 24)):
        (stamp,) = struct.unpack_from("<I", entries, at)
        day, second = stamp >> 16, stamp & 0xFFFF
        try:
            when = datetime.datetime(1980 + (day >> 9), day >> 5 & 15, day & 31, second >> 11, second >> 5 & 63,
                                     min((second & 31) * 2, 59), tzinfo=datetime.UTC).timestamp()  # fmt: skip
        except ValueError:
            continue
        if entries[zone] & 0x80:  # 7 bits, signed, in quarters of an hour
            when -= ((entries[zone] & 0x7F ^ 0x40) - 0x40) * 900
        out[name] = when + (min(entries[fine], 199) / 100 if fine >= 0 else 0)
    return out


def open_volume(reader: Reader, offset: int, limit: int) -> HostVolume | None:
    """The volume at image offset `offset` (`limit`: bytes to its end): the boot region whose checksum holds, else
    whichever of the two can be read."""
    if offset < 0 or limit <= 0:
        return None
    rest: list[Boot] = []
    copies = (BOOT_SECTORS << shift for shift in (9, 10, 11, 12)) if named(reader, offset) in ("", "exfat") else ()
    for at in (0, *copies):
        boot = parse_boot(reader.read(offset + at, 512))
        if boot is None or (at and at != BOOT_SECTORS * boot.sector):
            continue
        if checksum_holds(reader.read(offset + at, BOOT_SECTORS * boot.sector), boot.sector):
            return ExfatVolume(reader, offset, boot)
        rest.append(boot)
    return ExfatVolume(reader, offset, rest[0]) if rest else None


HOST = HostKind("exfat", open_volume)
