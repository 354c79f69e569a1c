"""COWD, the vmfsSparse delta files of ESX up to VMFS5: one-sector grains, tables allocated among the data.

A 2048-byte header, a directory of 32-bit table sectors, tables of 4096 32-bit sector numbers that lie wherever they
were allocated. No second copy and no checksum: a map is believed as far as its entries stay below freeSector and claim
no sector twice. Sources: libvmdk's format document (COWD), QEMU block/vmdk.c (vmdk_open_vmfs_sparse). UNVERIFIED on
files of a real ESX: none could be had.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import (
    DATA,
    LOST,
    SECTOR,
    UNALLOCATED,
    Check,
    Container,
    Evidence,
    Format,
    GuestDisk,
    GuestMap,
    ParentLink,
    Patch,
    Placer,
    Reader,
    Region,
    Signature,
    Stowed,
)
from ._stated import placer
from ._stowed import STEP, by_tables, sound
from ._vmdk_tables import (
    PER_SECTOR,
    Bools,
    Int64s,
    Rules,
    RunList,
    drop_double_claims,
    judge,
    read_array,
    read_tables,
    rest_runs,
    table_regions,
    table_runs,
)

MAGIC = b"COWD"
HEADER_BYTES = 2048
ENTRIES = 4096  # of each table, 16 KiB
TABLE_SECTORS = ENTRIES * 4 // SECTOR
PARENT_AT, PARENT_BYTES = 32, 1024  # parentFileName of a child; a root disk has its geometry there
CHUNK_TABLES = 64
OUR_MAX_STATED = 1 << 20  # tables that are looked for
MOST_TIED = 0.5  # share of the sectors of tables that are in one which is known; then the others are not asked alone
MAX_TABLES = 1 << 12  # ours: tables of one file without header, 40 KiB each
FORMAT_MAX_GRAIN = 128  # sectors; 1 in every known file
PADDING_AT = 1652
RISING = 0.5  # share of a table's entries that follow the one before them, at least: other numbers do not

_STRUCT = struct.Struct("<4sIIIIIII")
_UNCLEAN = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Header:
    """capacity, grain, directory_at and free (the next sector to be allocated) in sectors; tables: numGDEntries."""

    magic: bytes
    version: int
    flags: int
    capacity: int
    grain: int
    directory_at: int
    tables: int
    free: int
    parent: bytes
    unclean: int
    pad_clean: bool

    @property
    def directory_sectors(self) -> int:
        return -(-4 * self.tables // SECTOR)

    @property
    def data_at(self) -> int:
        """First sector that a table or a grain may have."""
        return self.directory_at + self.directory_sectors


def _parse(data: bytes) -> Header:
    """The header in `data`; raises Damaged with the first field that does not fit."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        raise Damaged("no COWD header", offset=0, field="magic", value=data[:4], bound=MAGIC)
    name = data[PARENT_AT : PARENT_AT + PARENT_BYTES].split(b"\0", 1)[0]
    # a root disk keeps three small numbers here; a name has at least four characters before its first NUL
    parent = name if len(name) >= 4 and all(c >= 0x20 for c in name) else b""
    unclean = _UNCLEAN.unpack_from(data, 1648)[0]
    pad_clean = not any(data[PADDING_AT:HEADER_BYTES])
    h = Header(*_STRUCT.unpack_from(data), parent=parent, unclean=unclean, pad_clean=pad_clean)

    def need(ok: bool, field: str, value: object, bound: object, offset: int) -> None:
        if not ok:
            raise Damaged("COWD header is not valid", offset=offset, field=field, value=value, bound=bound)

    need(h.version == 1, "version", h.version, 1, 4)
    need(0 < h.grain <= FORMAT_MAX_GRAIN and not h.grain & (h.grain - 1), "grainSize", h.grain, "1..128", 16)
    need(h.capacity > 0, "capacity", h.capacity, "more than 0", 12)
    tables = -(-h.capacity // (ENTRIES * h.grain))
    need(h.tables == tables, "numGDEntries", h.tables, tables, 24)
    need(4 <= h.directory_at < 1 << 24, "gdOffset", h.directory_at, "4 or a little more", 20)
    need(h.free >= h.data_at, "freeSector", h.free, h.data_at, 28)
    return h


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A COWD header at image_offset `offset`."""
    try:
        h = _parse(reader.read(offset, HEADER_BYTES))
    except Damaged:
        return None
    return Evidence("cowd.header", offset, HEADER_BYTES, 0, value=h.capacity * SECTOR,
                    confidence=1.0 if h.pad_clean and h.directory_at == 4 else 0.7)  # fmt: skip


def open_cowd(reader: Reader) -> Container:
    """Opens a COWD extent through a reader of its file."""
    h = _parse(reader.read(0, HEADER_BYTES))
    limit = min(h.free, h.data_at + h.tables * TABLE_SECTORS + h.capacity + h.grain)  # whether the file was cut or not
    raw, gone = read_array(reader, h.directory_at * SECTOR, h.tables, "<u4")
    tables = raw.astype(np.int64)
    bad = gone | _bad_tables(tables, h, limit)
    tables[bad] = -1
    c = Container("vmdk", "vmfsSparse", 0, [], "VMware ESXi", cluster=h.grain * SECTOR, size_exact=False)
    rules = Rules(h.data_at, limit, h.grain, False)
    guest, last, lost, named = _map(reader, h, tables, rules, False)
    used = max(last, int(tables.max(initial=0)) + TABLE_SECTORS if (tables > 0).any() else 0, h.data_at)
    # freeSector is the end of what is allocated; one far beyond everything that is there is not believed
    expected = h.free if h.free <= max(used, -(-reader.size // SECTOR)) else used
    if named < expected:
        # something lies where no table points, and no second table tells: an empty part may have been emptied
        if expected - named > TABLE_SECTORS:
            tables = _doubt_empty(tables)
        guest, last, lost, _ = _map(reader, h, tables, rules, True)
    c.regions = [
        Region(0, HEADER_BYTES, "cowd.header"),
        Region(h.directory_at * SECTOR, h.directory_sectors * SECTOR, "cowd.gd"),
        *table_regions(tables, TABLE_SECTORS * SECTOR, "cowd.gt", "supported"),
    ]
    guest, disputed = drop_double_claims(guest, [(r.file_offset, r.length) for r in c.regions])
    c.size = max(used, expected) * SECTOR
    c.guests = [GuestDisk(h.capacity * SECTOR, guest)]
    c.checks = [
        Check("directory entries are sound", not bad.any(), f"{int(bad.sum())} entries are damaged"),
        Check("table entries are sound", not lost, f"{lost} entries are lost"),
        Check("no byte is claimed twice", not disputed, f"{disputed} guest bytes"),
        Check("tables name every sector", named == expected, f"{named} of {expected} sectors"),
        Check("freeSector agrees with the tables", h.free == used, f"{h.free}, the last named ends at {used}", False),
        Check("closed cleanly", not h.unclean, "uncleanShutdown is set" if h.unclean else "", False),
    ]
    c.detail = {"flags": f"{h.flags:#x}"}
    if h.parent:
        name = h.parent.decode("utf-8", "replace")
        c.parent = ParentLink(None, name)
        c.detail["parentFileName"] = name
        c.patches = [Patch(PARENT_AT, bytes(len(h.parent)), "reference")]
    return c


def _bad_tables(sector: Int64s, h: Header, limit: int) -> Bools:
    """Directory entries outside the file, or whose tables share a sector."""
    bad = (sector != 0) & ((sector < h.data_at) | (sector >= limit))
    used = np.flatnonzero((sector != 0) & ~bad)
    order = used[np.argsort(sector[used], kind="stable")]
    close = np.diff(sector[order]) < TABLE_SECTORS
    bad[order[1:][close]] = True
    bad[order[:-1][close]] = True
    return bad


def _doubt_empty(tables: Int64s) -> Int64s:
    """The directory with every sector that names no table taken as lost (-1)."""
    out = tables.copy()
    for at in range(0, len(out), SECTOR // 4):
        if not (out[at : at + SECTOR // 4] > 0).any():
            out[at : at + SECTOR // 4] = -1
    return out


def _map(reader: Reader, h: Header, tables: Int64s, rules: Rules, doubt: bool) -> tuple[GuestMap, int, int, int]:
    """The guest map, the sector behind the last grain, how many entries are lost, and sectors that have a use.

    doubt: sectors of a table that name nothing count as lost.
    """
    size, unit = h.capacity * SECTOR, h.grain * SECTOR
    rest = np.where(tables < 0, LOST, UNALLOCATED).astype(np.uint8)
    runs = RunList()
    last = lost = at = 0
    named = rules.floor
    present = np.flatnonzero(tables > 0)
    for i in range(0, len(present), CHUNK_TABLES):
        k = present[i : i + CHUNK_TABLES]
        value, gone = read_tables(reader, tables[k], ENTRIES)
        judge(value, gone, rules)
        if doubt:
            empty = ~value.reshape(len(k), -1, PER_SECTOR).any(2)
            gone |= np.repeat(empty, PER_SECTOR, axis=1)
        sector = value.astype(np.int64)
        data = (sector != 0) & ~gone
        state = np.select([gone, data], [LOST, DATA], UNALLOCATED).astype(np.uint8)
        runs.add(table_runs(range(at, int(k[-1]) + 1), k, rest, unit, size, state, np.where(data, sector * SECTOR, -1)))
        last = max(last, int(sector[data].max(initial=-h.grain)) + h.grain)
        lost += int(gone.sum())
        named += TABLE_SECTORS * len(k) + h.grain * int(data.sum())
        at = int(k[-1]) + 1
    runs.add(rest_runs(at, rest, ENTRIES * unit, size))
    return runs.finish(), last, lost, named


def stated(reader: Reader) -> Placer | None:
    """How the tables place themselves: they lie between grains of a sector, at any sector."""
    try:
        h = _parse(reader.read(0, HEADER_BYTES))
    except Damaged:
        return None
    raw, _ = read_array(reader, h.directory_at * SECTOR, min(h.tables, OUR_MAX_STATED), "<u4")
    limit = h.data_at + h.tables * TABLE_SECTORS + h.capacity + h.grain

    def places(entries: npt.NDArray[np.generic]) -> Int64s:
        sector = entries.astype(np.int64)
        return np.where(sector == 0, 0, np.where((sector >= h.data_at) & (sector < limit), sector * SECTOR, -1))

    return placer(raw.astype(np.int64) * SECTOR, TABLE_SECTORS * SECTOR, "<u4", places)


def stow(reader: Reader) -> Iterable[Stowed]:
    """What each table that is left covers, or each sector of one: writes are longer than a sector, so entries rise by
    one.
    """
    whole, share = _by_whole_tables(reader)
    yield from whole
    if share < MOST_TIED:
        yield from by_tables(reader, [SECTOR], "<u4", _named, RISING)


def _named(words: npt.NDArray[np.uint64]) -> Int64s:
    return words.astype(np.int64) * SECTOR


def _by_whole_tables(reader: Reader) -> tuple[list[Stowed], float]:
    """The spans of tables of which some sectors are left, and the share of the sectors that are in one of them.

    A table's first grain was allocated with it, right behind it, so the lowest place that its sectors name tells where
    it begins.
    """
    length = TABLE_SECTORS * SECTOR
    found: list[tuple[int, int, Int64s]] = []  # begin of the table, place of a sector of it, what that names
    for at in range(0, reader.size, STEP):
        data = reader.read(at, STEP)
        words = np.frombuffer(data, "<u4", len(data) // 4 // PER_SECTOR * PER_SECTOR).reshape(-1, PER_SECTOR)
        some = np.flatnonzero(words.any(axis=1))
        place = _named(words[some].astype(np.uint64))
        row = sound(place, SECTOR, reader.size, RISING)
        lowest = np.where(place[row] > 0, place[row], reader.size).min(axis=1)
        found += zip((lowest - length).tolist(), (at + some[row] * SECTOR).tolist(), place[row], strict=True)
    tables: dict[int, dict[int, Int64s]] = {}
    taken: set[int] = set()
    where = np.sort(np.array([p for _, p, _ in found], np.int64))
    by_place = {p: named for _, p, named in found}
    for begin, p, _ in sorted(found, key=lambda f: f[:2]):
        if p in taken or not begin <= p < begin + length or len(tables) >= MAX_TABLES:
            continue
        mine = where[np.searchsorted(where, begin) : np.searchsorted(where, begin + length)].tolist()
        tables[begin] = {q: by_place[q] for q in mine if q not in taken}
        taken.update(mine)
    if not tables:
        return [], 0.0
    place = np.zeros((len(tables), TABLE_SECTORS, PER_SECTOR), np.int64)
    state = np.full(place.shape, LOST, np.uint8)
    for k, (begin, sectors) in enumerate(sorted(tables.items())):
        for i in range(TABLE_SECTORS):
            at = begin + i * SECTOR
            if at in sectors:
                place[k, i] = sectors[at]
                state[k, i] = np.where(place[k, i] > 0, DATA, UNALLOCATED)
            elif not reader.missing(at, SECTOR) and not any(reader.read(at, SECTOR)):
                state[k, i] = UNALLOCATED
    place[state != DATA] = -1
    guest_map = GuestMap.from_units(place.size * SECTOR, SECTOR, state.ravel(), place.ravel())
    return [Stowed(ENTRIES * SECTOR, guest_map)], len(taken) / len(found)


FORMAT = Format(
    name="cowd",
    extension="vmdk",
    signatures=(Signature(MAGIC, "cowd.header", size=HEADER_BYTES, also=(4, b"\xff" * 4, b"\1\0\0\0")),),
    open=open_cowd,
    confirm=confirm,
    qemu_name="vmdk",
    stated=stated,
    stow=stow,
)
