"""SESparse, the space-efficient delta files of ESXi: 4 KiB grains, all tables preallocated, a back map as second copy.

A constant header names every region: directory, grain tables, free bitmap, back map, grains. Entries are 64-bit with
the kind in the top nibble. The back map says for each grain of the file which grain of the disk it holds, so it
stands in for lost tables, where it has shown (on the tables that are left) that it is their inverse.
Sources: QEMU block/vmdk.c (vmdk_open_se_sparse). Seen: one sample of a real ESXi (tests/data/sesparse.vmdk.gz in the
source distribution of dissect.hypervisor 3.17).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from ..errors import Damaged
from ..model import (
    DATA,
    HOLE,
    LOST,
    SECTOR,
    SUPPORTED,
    UNALLOCATED,
    Check,
    Container,
    Evidence,
    Format,
    GuestDisk,
    GuestMap,
    Patch,
    Reader,
    Region,
    Signature,
    Tied,
    Want,
)
from ._sesparse_shapes import ROWS, rebuild, shapes, stow
from ._sesparse_tied import tied as tied_tables
from ._sesparse_wants import wants as table_wants
from ._vmdk_tables import (
    Bools,
    Int64s,
    RunList,
    drop_double_claims,
    read_array,
    read_tables,
    rest_runs,
    table_regions,
    table_runs,
)

MAGIC = struct.pack("<QQ", 0xCAFEBABE, 0x2_0000_0001)  # magic and version
VOLATILE_MAGIC = 0xCAFECAFE
GRAIN_SECTORS, TABLE_SECTORS = 8, 64  # the only values (QEMU)
ENTRIES = TABLE_SECTORS * SECTOR // 8
TABLE_GRAINS = ENTRIES  # grains of the disk that one table speaks of: 16 MiB
FORMAT_MAX_CAPACITY = 64 << 31  # sectors: 64 TB of VMFS6
UNUSED, UNMAPPED, ZERO_GRAIN, ALLOCATED = 0, 1, 2, 3  # kinds of a table entry
DIRECTORY_USED = 0x1000_0000  # high half of a directory entry that names a table
BACK_USED = 1  # kind of a back map entry that names a grain

CHUNK_TABLES = 64
OUR_MAX_BACK_MAP = 1 << 27  # entries that we read to replace lost tables: 512 GiB of grains
BACK_CHUNK = 1 << 18
EMPTY_CHUNKS = 4  # chunks of the back map without an entry after which nothing is expected (4 GiB of grains)
PER_SECTOR = SECTOR // 8
OUR_MAX_LOST_TABLES = 4096
SAMPLE = 1 << 16  # entries compared with the back map

_FIELDS = struct.Struct("<26Q")


@dataclass(frozen=True, slots=True)
class Header:
    """Sectors: capacity, and (first, count) of each region."""

    capacity: int
    journal: tuple[int, int]
    directory: tuple[int, int]
    tables: tuple[int, int]
    bitmap: tuple[int, int]
    back_map: tuple[int, int]
    grains: tuple[int, int]

    @property
    def disk_grains(self) -> int:
        return -(-self.capacity // GRAIN_SECTORS)

    @property
    def directory_entries(self) -> int:
        return -(-self.disk_grains // TABLE_GRAINS)

    @property
    def table_count(self) -> int:
        return self.tables[1] // TABLE_SECTORS


@dataclass(slots=True)
class _Found:
    """What reading the tables told."""

    lost: int = 0
    unmapped: int = 0
    restored: int = 0
    last: int = -1  # highest grain of the file in use
    patches: list[Patch] = field(default_factory=list[Patch])


def _parse(data: bytes) -> Header:
    if len(data) < SECTOR or data[:16] != MAGIC:
        raise Damaged("no SESparse header", offset=0, field="magic", value=data[:16], bound=MAGIC)
    v = _FIELDS.unpack_from(data)

    def need(ok: bool, name: str, value: object, bound: object, number: int) -> None:
        if not ok:
            raise Damaged("SESparse header is not valid", offset=8 * number, field=name, value=value, bound=bound)

    need(0 < v[2] <= FORMAT_MAX_CAPACITY, "capacity", v[2], FORMAT_MAX_CAPACITY, 2)
    need(v[3] == GRAIN_SECTORS, "grain_size", v[3], GRAIN_SECTORS, 3)
    need(v[4] == TABLE_SECTORS, "grain_table_size", v[4], TABLE_SECTORS, 4)
    need(not any(v[5:10]), "flags", v[5], "0, with the reserved fields", 5)
    h = Header(v[2], (v[14], v[15]), (v[16], v[17]), (v[18], v[19]), (v[20], v[21]), (v[22], v[23]), (v[24], v[25]))
    regions = sorted([h.directory, h.tables, h.bitmap, h.back_map, h.grains])
    for (at, size), (following, _) in zip(regions, [*regions[1:], (1 << 54, 0)], strict=True):
        need(0 < at and at + size <= following, "regions", at, "apart, in the file", 16)
    need(h.directory[1] * SECTOR >= 8 * h.directory_entries, "grain_dir_size", v[17], h.directory_entries, 17)
    need(h.table_count > 0, "grain_tables_size", v[19], TABLE_SECTORS, 19)
    need(h.table_count <= 2 * h.directory_entries + 4096, "grain_tables_size", v[19], "what the capacity takes", 19)
    return h


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A constant header at image_offset `offset`."""
    try:
        h = _parse(reader.read(offset, SECTOR))
    except Damaged:
        return None
    return Evidence("sesparse.header", offset, SECTOR, 0, value=h.capacity * SECTOR)


def open_sesparse(reader: Reader) -> Container:
    """Opens an SESparse extent through a reader of its file."""
    h = _parse(reader.read(0, SECTOR))
    c = Container("vmdk", "seSparse", 0, [], "VMware ESXi", cluster=GRAIN_SECTORS * SECTOR, size_exact=False)
    found = _Found()
    table, bad = _directory(reader, h)
    regained = _lost_tables(reader, h, table, bad, found)
    guest = _map(reader, h, table, bad, found)
    c.regions = [
        Region(0, SECTOR, "sesparse.header"),
        *(Region(at * SECTOR, size * SECTOR, f"sesparse.{kind}") for kind, (at, size) in (
            ("journal", h.journal), ("gd", h.directory), ("bitmap", h.bitmap), ("back-map", h.back_map))
          if size and at < h.grains[0]),
        *table_regions(np.where(table >= 0, h.tables[0] + table * TABLE_SECTORS, 0), TABLE_SECTORS * SECTOR,
                       "sesparse.gt", SUPPORTED),
    ]  # fmt: skip
    guest, disputed = drop_double_claims(guest, [(0, h.grains[0] * SECTOR)])
    c.guests = [GuestDisk(h.capacity * SECTOR, guest)]
    c.size = (h.grains[0] + GRAIN_SECTORS * (found.last + 1)) * SECTOR
    c.patches = [p for p in found.patches if p.file_offset + len(p.data) <= c.size]
    agree, compared = _compare_back_map(reader, h, guest)
    c.checks = [
        Check("directory entries are sound", not (bad.any() or regained),
              f"{int(bad.sum())} lost, {regained} regained", bool(bad.any())),
        Check("table entries are sound", not (found.lost or found.restored),
              f"{found.lost} lost, {found.restored} taken from the back map"),
        Check("tables and back map agree", agree, f"{compared} grains compared"),
        Check("no byte is claimed twice", not disputed, f"{disputed} guest bytes"),
        _journal(reader),
    ]  # fmt: skip
    if found.unmapped:
        # QEMU and xen-orchestra read zeros, dissect the parent: the guest gave the space back, so zeros
        c.detail["grains unmapped by the guest"] = str(found.unmapped)
    return c


def _journal(reader: Reader) -> Check:
    """The volatile header says whether the journal has something to replay."""
    magic, _, _, replay = struct.unpack("<4Q", reader.read(SECTOR, 32).ljust(32, b"\0"))
    if magic != VOLATILE_MAGIC:
        return Check("journal is clean", False, "the volatile header is lost")
    late = "replay_journal is set: the last table updates are in the journal"
    return Check("journal is clean", not replay, late if replay else "")


def _directory(reader: Reader, h: Header) -> tuple[Int64s, Bools]:
    """The table of each 16 MiB of the disk (-1 none), and which entries are lost."""
    raw, bad = read_array(reader, h.directory[0] * SECTOR, h.directory_entries, "<u8")
    high, index = raw >> np.uint64(32), (raw & np.uint64(0xFFFF_FFFF)).astype(np.int64)
    end = (h.tables[0] + (index + 1) * TABLE_SECTORS) * SECTOR
    named = (high == DIRECTORY_USED) & (index < h.table_count) & (end - TABLE_SECTORS * SECTOR < reader.size)
    bad |= (raw != 0) & ~named
    used = np.flatnonzero(named & ~bad)
    order = used[np.argsort(index[used], kind="stable")]
    same = np.diff(index[order]) == 0
    bad[order[1:][same]] = True
    bad[order[:-1][same]] = True
    return np.where(named & ~bad, index, -1), bad


def _entries(values: np.ndarray) -> tuple[np.ndarray, Int64s]:
    """(kind, grain of the file) of table entries: the grain's low 12 bits lie above its high bits."""
    kind = (values >> np.uint64(60)).astype(np.uint8)
    low = (values >> np.uint64(48)) & np.uint64(0xFFF)
    grain = (low | (values & np.uint64((1 << 48) - 1)) << np.uint64(12)).astype(np.int64)
    return kind, grain


def _lost_tables(reader: Reader, h: Header, table: Int64s, bad: Bools, found: _Found) -> int:
    """Ties tables that no sound directory entry names to entries without one, through the back map.

    Every grain that such a table names must be told by the back map to belong to one and the same entry. Tables are
    handed out in rising order; the volatile header has the next free one. Returns how many were tied.
    """
    magic, used_tables = struct.unpack("<2Q", reader.read(SECTOR, 16).ljust(16, b"\0"))
    end = max(min(used_tables, h.table_count) if magic == VOLATILE_MAGIC else 0, int(table.max(initial=-1)) + 1)
    if bad.any():
        end = min(h.table_count, end + 4 * int(bad.sum()) + CHUNK_TABLES)
    free = np.setdiff1d(np.arange(end, dtype=np.int64), table[table >= 0])
    regained = 0
    for index in free[:OUR_MAX_LOST_TABLES].tolist():
        values, missing = read_tables(reader, np.array([h.tables[0] + index * TABLE_SECTORS]), ENTRIES, "<u8")
        kind, grain = _entries(values[0])
        used = np.flatnonzero((kind == ALLOCATED) & ~missing[0] & (grain < h.disk_grains))[:256]
        if not len(used):
            continue
        told = np.array([_back(reader, h, int(g)) for g in grain[used]])
        k = int(told[0]) // TABLE_GRAINS
        if (told == k * TABLE_GRAINS + used).all() and 0 <= k < len(bad) and table[k] < 0:
            table[k], bad[k] = index, False
            regained += 1
            entry = struct.pack("<Q", DIRECTORY_USED << 32 | index)
            found.patches.append(Patch(h.directory[0] * SECTOR + 8 * k, entry, "rebuilt", SUPPORTED))
    return regained


def _back(reader: Reader, h: Header, grain: int) -> int:
    """The disk's grain that the back map gives for a grain of the file, -1 if none."""
    at = h.back_map[0] * SECTOR + 8 * grain
    data = reader.read(at, 8)
    if len(data) < 8 or reader.missing(at, 8) or 8 * (grain + 1) > h.back_map[1] * SECTOR:
        return -1
    kind, value = _entries(np.frombuffer(data, "<u8"))
    return int(value[0]) if kind[0] == BACK_USED else -1


def _map(reader: Reader, h: Header, table: Int64s, bad: Bools, found: _Found) -> GuestMap:
    """The guest map; entries of lost tables come from the back map where that is proved."""
    runs = RunList()
    limit = max(0, -(-reader.size // SECTOR) - h.grains[0]) // GRAIN_SECTORS + 1
    limit = min(limit, h.grains[1] // GRAIN_SECTORS)
    spare = _BackMap(reader, h)
    unit, size = GRAIN_SECTORS * SECTOR, h.capacity * SECTOR
    # without a table each entry must come from the back map: not worth the time when most tables are lost
    each = (table >= 0) | bad if int(bad.sum()) <= OUR_MAX_LOST_TABLES else table >= 0
    rest = np.where(bad, LOST, UNALLOCATED).astype(np.uint8)
    some = np.flatnonzero(each)
    at = 0
    for i in range(0, len(some), CHUNK_TABLES):
        k = some[i : i + CHUNK_TABLES]
        values, gone = read_tables(reader, np.where(table[k] >= 0, h.tables[0] + table[k] * TABLE_SECTORS, -1),
                                   ENTRIES, "<u8")  # fmt: skip
        kind, grain = _entries(values)
        wrong = (kind > ALLOCATED) | (kind != UNUSED) & (grain >= limit) | (kind == UNUSED) & (values != 0)
        blank = (table[k] >= 0) & ~(values != 0).any(axis=1)  # a table is given out for its first grain
        gone |= wrong | _foreign(wrong, values != 0) | blank[:, None]
        _from_back_map(h, spare, k, table[k], values, kind, grain, gone, found)
        state = np.select([gone, kind == ALLOCATED, kind == UNUSED], [LOST, DATA, UNALLOCATED], HOLE).astype(np.uint8)
        data = state == DATA
        found.lost += int(gone.sum())
        found.unmapped += int(((kind == UNMAPPED) & ~gone).sum())
        found.last = max(found.last, int(grain[data].max(initial=-1)))
        place = np.where(data, (h.grains[0] + grain * GRAIN_SECTORS) * SECTOR, -1)
        runs.add(table_runs(range(at, int(k[-1]) + 1), k, rest, unit, size, state, place))
        at = int(k[-1]) + 1
    runs.add(rest_runs(at, rest, TABLE_GRAINS * unit, size))
    return runs.finish()


def _foreign(wrong: Bools, used: Bools) -> Bools:
    """Entries in sectors of which a quarter of the used entries are wrong: other bytes lie there, zeros included."""
    w, u = (x.reshape(len(x), -1, PER_SECTOR).sum(2) for x in (wrong, used))
    return np.repeat((w >= 2) & (4 * w >= u), PER_SECTOR, axis=1)


def _from_back_map(h: Header, spare: _BackMap, k: Int64s, table: Int64s, values: np.ndarray, kind: np.ndarray,
                   grain: Int64s, gone: Bools, found: _Found) -> None:  # fmt: skip
    """Fills lost entries (`gone`) of the tables `k` that the back map knows, and adds their patches.

    A sector of a table that is empty throughout may have been emptied: entries there count as lost if the back map has
    them.
    """
    number = k[:, None] * TABLE_GRAINS + np.arange(ENTRIES)
    sound = (kind == ALLOCATED) & ~gone
    empty = ~(values != 0).reshape(len(values), -1, PER_SECTOR).any(2)
    rows, columns = np.nonzero(gone | np.repeat(empty, PER_SECTOR, axis=1))
    where = spare.find(number[rows, columns], number[sound], grain[sound])
    good = where >= 0
    rows, columns, where = rows[good], columns[good], where[good]
    kind[rows, columns], grain[rows, columns] = ALLOCATED, where
    gone[rows, columns] = False
    w = where.astype(np.uint64)
    values[rows, columns] = (
        np.uint64(ALLOCATED << 60) | (w & np.uint64(0xFFF)) << np.uint64(48) | w >> np.uint64(12)
    )
    found.restored += len(rows)
    for row in np.unique(rows[table[rows] >= 0]).tolist():
        first = (h.tables[0] + int(table[row]) * TABLE_SECTORS) * SECTOR
        for part in np.unique(columns[rows == row] // PER_SECTOR).tolist():
            data = values[row, part * PER_SECTOR : (part + 1) * PER_SECTOR].tobytes()
            found.patches.append(Patch(first + part * SECTOR, data, "rebuilt", SUPPORTED))


class _BackMap:
    """The back map, read once and only if a table is lost: the file's grain of each grain of the disk."""

    def __init__(self, reader: Reader, h: Header) -> None:
        self._reader, self._h = reader, h
        self._disk: Int64s | None = None
        self._file = np.zeros(0, np.int64)

    def find(self, wanted: Int64s, sound: Int64s, place: Int64s) -> Int64s:
        """The file's grain of each disk grain in `wanted`, -1 where none is proved.

        sound, place: disk and file grains of table entries that are there; where they show the back map to be the
        inverse of the tables (and not only equal numbers on both sides), it is believed, else only for equal numbers:
        the direction of the map was never seen otherwise.
        """
        if self._disk is None:
            self._load()
        disk = self._disk if self._disk is not None else np.zeros(0, np.int64)
        if not len(disk):
            return np.full(len(wanted), -1, np.int64)
        at = np.minimum(np.searchsorted(disk, sound), len(disk) - 1)
        same = (disk[at] == sound) & (self._file[at] == place)
        telling = (sound != place)
        proved = bool(telling.any()) and bool(same.all())
        at = np.minimum(np.searchsorted(disk, wanted), len(disk) - 1)
        out = np.where(disk[at] == wanted, self._file[at], -1)
        return out if proved else np.where(out == wanted, out, -1)

    def _load(self) -> None:
        h = self._h
        count = min(h.back_map[1] * SECTOR // 8, h.grains[1] // GRAIN_SECTORS, OUR_MAX_BACK_MAP,
                    max(0, self._reader.size - h.back_map[0] * SECTOR) // 8)  # fmt: skip
        disk: list[Int64s] = [np.zeros(0, np.int64)]
        file: list[Int64s] = [np.zeros(0, np.int64)]
        idle = 0
        for at in range(0, count, BACK_CHUNK):
            if idle == EMPTY_CHUNKS:  # grains of the file are handed out in rising order
                break
            raw, lost = read_array(self._reader, h.back_map[0] * SECTOR + 8 * at, min(BACK_CHUNK, count - at), "<u8")
            idle = 0 if raw.any() or lost.any() else idle + 1
            kind, value = _entries(raw)
            used = np.flatnonzero((kind == BACK_USED) & ~lost & (value < h.disk_grains))
            disk.append(value[used])
            file.append(at + used)
        every, where = np.concatenate(disk), np.concatenate(file)
        order = np.argsort(every, kind="stable")
        every, where = every[order], where[order]
        same = np.diff(every) == 0  # a disk grain in two places: neither is believed
        once = ~(np.concatenate((same, [False])) | np.concatenate(([False], same))) if len(every) else np.zeros(0, bool)
        self._disk, self._file = every[once], where[once]


def _compare_back_map(reader: Reader, h: Header, guest: GuestMap) -> tuple[bool, int]:
    """Whether the back map names the first disk grain of each run (of some), and how many were compared."""
    data = np.flatnonzero(guest.state == DATA)[:SAMPLE]
    if not len(data):
        return True, 0
    grain = (guest.file_offset[data] // SECTOR - h.grains[0]) // GRAIN_SECTORS
    data, grain = data[grain * 8 < h.back_map[1] * SECTOR], grain[grain * 8 < h.back_map[1] * SECTOR]
    if not len(grain) or int(grain.max()) - int(grain.min()) > 1 << 24:
        return True, 0
    raw, lost = read_array(reader, h.back_map[0] * SECTOR + 8 * int(grain.min()),
                           int(grain.max()) - int(grain.min()) + 1, "<u8")  # fmt: skip
    kind, value = _entries(raw[grain - grain.min()])
    there = ~lost[grain - grain.min()]
    wanted = guest.guest_offset[data] // (GRAIN_SECTORS * SECTOR)
    same = (kind == BACK_USED) & (value == wanted)
    return bool(same[there].all()), int(there.sum())


def wants(reader: Reader) -> list[Want]:
    """Blocks of the directory and of tables that are not in their place."""
    try:
        h = _parse(reader.read(0, SECTOR))
    except Damaged:
        return []
    return table_wants(reader, (h.directory[0] * SECTOR, h.directory_entries), h.tables[0] * SECTOR, h.disk_grains)


def tied(reader: Reader) -> Tied | None:
    """How tables and the back map tell each other's places."""
    try:
        h = _parse(reader.read(0, SECTOR))
    except Damaged:
        return None
    return tied_tables(reader, (h.directory[0] * SECTOR, h.directory_entries), h.tables[0] * SECTOR,
                       (h.back_map[0] * SECTOR, h.back_map[1] * SECTOR), h.disk_grains)


FORMAT = Format(
    name="sesparse",
    extension="vmdk",
    signatures=(Signature(MAGIC, "sesparse.header", also=(24, b"\xff" * 8, struct.pack("<Q", GRAIN_SECTORS))),),
    open=open_sesparse,
    confirm=confirm,
    qemu_name="vmdk",
    wants=wants,
    tied=tied,
    shapes=shapes,
    rows=ROWS,
    rebuild=lambda reader, clue: rebuild(reader, clue, open_sesparse),
    stow=stow,
)
