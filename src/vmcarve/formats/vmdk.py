"""VMDK hosted sparse extents (KDMV): monolithicSparse, streamOptimized and the extents of split disks.

A header, a descriptor, two copies of grain directory and grain tables, 64 KiB grains in order of first write; streams
hold compressed grains that name their own place. There are no checksums but the Adler-32 of compressed grains: the two
copies of the tables prove each other, and the layout follows from the capacity alone, so a lost header is rebuilt.
Sources: VMware "Virtual Disk Format 1.1", QEMU block/vmdk.c, VirtualBox VMDK.cpp. Seen: qemu-img 7.2, vmdkstream 0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..errors import Damaged
from ..model import (
    DATA,
    GUESSED,
    HOLE,
    LOST,
    PROVEN,
    SECTOR,
    SUPPORTED,
    UNALLOCATED,
    Check,
    Container,
    Evidence,
    Format,
    GuestDisk,
    GuestMap,
    Orphan,
    Patch,
    Reader,
    Region,
    Signature,
)
from . import _vmdk_grains as grains
from . import _vmdk_header as header
from . import _vmdk_shapes as shapes
from . import _vmdk_stream as stream
from . import _vmdk_text as text
from ._rebuilt import Laid
from ._stowed import in_row
from ._vmdk_gather import gather, loose
from ._vmdk_header import NO_OFFSET, Header
from ._vmdk_rebuild import find_header, redundant_directory, stream_table
from ._vmdk_stowed import stow_stream
from ._vmdk_tables import (
    PER_SECTOR,
    Directory,
    Rules,
    RunList,
    Tally,
    drop_double_claims,
    merge_tables,
    read_directory,
    table_regions,
)
from ._vmdk_wants import wants

EMBEDDED_AT = 512  # file offset of an embedded descriptor; QEMU looks for a parent's name only there
# First two entries of the redundant directory behind an embedded descriptor: E[0] = 21 + its own length in sectors.
# Lengths of disks up to 64 GiB, and of some usual larger ones (4 GiB for each sector).
DIRECTORY_SECTORS = (*range(1, 17), 20, 25, 32, 40, 50, 64, 125, 128, 250, 256)
ORPHAN_FACTOR = 2  # a file holds at most so many grains for each grain of the disk: beyond that an entry is damage
ORPHAN_SLACK = 4096  # grains

SIGNATURES = (
    *(Signature(magic, "vmdk.header", also=(4, b"\xfc\xff\xff\xff", bytes(4)))  # version 0 to 3
      for magic in (header.MAGIC, header.UNFINISHED)),
    *(Signature(magic, "vmdk.descriptor", also=text.rest_of(magic)) for magic in text.MAGICS),
    Signature(struct.pack("<QII", 4, 0, stream.GRAIN_TABLE), "vmdk.stream-table",
              also=(16, b"\xff" * 16, bytes(16))),  # a marker is padded with zeros to a sector
    *(
        Signature(struct.pack("<II", first, first + 4), "vmdk.directory",
                  # the next two rise by four too; in a directory of one sector they may be zero
                  also=(8, b"\xff" * 8, struct.pack("<II", first + 8, first + 12)) if n > 1 else
                  (8, struct.pack("<II", ~(first + 8) & 0xFFFF_FFFF, ~(first + 12) & 0xFFFF_FFFF), bytes(8)))
        for n in DIRECTORY_SECTORS
        for first in (header.REDUNDANT_AT + n,)
    ),
)


# --- the sweep -----------------------------------------------------------------------------------------------------
def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """What lies at image_offset `offset`: a header, a stream's footer, a descriptor, a stream's table, a directory."""
    if signature.kind == "vmdk.header":
        return _confirm_header(reader, offset)
    if signature.kind == "vmdk.descriptor":
        found = text.parse(reader.read(offset, header.DESCRIPTOR_SECTORS * SECTOR))
        if found is None or not found.embedded or len(found.extents) != 1:
            return None
        return Evidence("vmdk.descriptor", offset, found.length, EMBEDDED_AT, value=found.sectors * SECTOR,
                        identity=next(iter(found.identities), None))  # fmt: skip
    if signature.kind == "vmdk.stream-table":
        met = stream_table(reader, offset)
        if met is None:
            return None
        number, sector = met
        return Evidence("vmdk.stream-table", offset, SECTOR + 4 * header.ENTRIES, sector * SECTOR, value=number)
    tables = redundant_directory(reader, offset)
    if tables is None:
        return None
    return Evidence("vmdk.directory", offset, 4 * tables, header.REDUNDANT_AT * SECTOR, value=tables)


def _confirm_header(reader: Reader, offset: int) -> Evidence | None:
    h = header.parse(reader.read(offset, SECTOR))
    if h is None:
        return None
    try:
        header.check(h)
    except Damaged:
        return None
    confidence = 1.0 if h.version and h.pad_clean else 0.5
    size = h.capacity * SECTOR
    if h.compressed and h.directory_at != NO_OFFSET and h.directory_at >= h.overhead:
        # a footer: its directory lies before it, one marker between them
        before = reader.read(offset - SECTOR, 16)
        marked = before in (struct.pack("<QII", v, 0, stream.FOOTER) for v in (0, 1))
        ahead = reader.read(offset - (h.directory_sectors + 2) * SECTOR, 16)
        named = ahead in (struct.pack("<QII", v, 0, stream.GRAIN_DIRECTORY) for v in (0, h.directory_sectors))
        if not marked and not named:
            return None
        place = (h.directory_at + h.directory_sectors + 1) * SECTOR if marked and named else None
        return Evidence("vmdk.footer", offset, SECTOR, place, value=size, confidence=confidence)
    found = text.parse(reader.read(offset + EMBEDDED_AT, header.DESCRIPTOR_SECTORS * SECTOR))
    identity = next(iter(found.identities), None) if found is not None else None
    return Evidence("vmdk.header", offset, SECTOR, 0, value=size, identity=identity, confidence=confidence)


# --- opening -------------------------------------------------------------------------------------------------------
def open_extent(reader: Reader) -> Container:
    """Opens an extent through a reader of its file; a lost header is rebuilt from what it would say."""
    h = header.parse(reader.read(0, SECTOR))
    if h is not None and h.capacity == 0 and h.descriptor_at:
        return _wrapped(reader, h)
    h, origin = find_header(reader)
    if h.compressed:
        return _open_stream(reader, h, origin)
    return _open_plain(reader, h, origin)


def _base(reader: Reader, h: Header, origin: str) -> Container:
    """The container with everything that header and descriptor tell."""
    area = _text_area(h)
    data = reader.read(*area) if area else b""
    found = text.parse(data)
    c = Container("vmdk", "", 0, [], cluster=h.grain_bytes)
    c.detail["header"] = origin or "as found"
    c.regions.append(Region(0, SECTOR, "vmdk.header"))
    c.checks.append(Check("header is there", not origin, origin, False))
    stored = header.parse(reader.read(0, SECTOR))
    if origin:
        c.patches.append(Patch(0, h.pack(), "rebuilt", GUESSED if "rounded" in origin else SUPPORTED))
    elif stored is not None and stored.magic != header.MAGIC:
        c.patches.append(Patch(0, header.MAGIC, "rebuilt", SUPPORTED))
        c.detail["header"] = "unfinished export: the magic was still in lower case"
    if h.unclean:
        c.checks.append(Check("closed cleanly", False, "uncleanShutdown is set", False))
    if area:
        c.regions.append(Region(*area, "vmdk.descriptor"))
        c.patches += text.safe_patches(data, found, area[0])
    # QEMU looks for a parent's name in 20 sectors here, whatever the header says
    rest = EMBEDDED_AT + (area[1] if area and area[0] == EMBEDDED_AT else 0)
    end = EMBEDDED_AT + header.DESCRIPTOR_SECTORS * SECTOR
    c.patches += text.safe_patches(reader.read(rest, end - rest), None, rest)
    if found is not None:
        c.variant = "streamOptimized" if h.compressed else found.create_type
        c.system, c.uuid, c.identities, c.parent = found.system, found.uuid, found.identities, found.parent
        c.names = [n for n in (text.base_name(e.name, e.type) for e in found.extents) if n]
        c.detail |= found.detail
        c.checks.append(Check("descriptor agrees with the header", found.sectors == h.capacity,
                              f"{found.sectors} and {h.capacity} sectors", False))  # fmt: skip
        return c
    c.variant = "streamOptimized" if h.compressed else "twoGbMaxExtentSparse"
    # Seen: qemu-img 7.2 says "descriptor at 1, 20 sectors" in split extents too, and leaves the area empty
    c.system = "QEMU" if h.descriptor_at == 1 and not h.compressed else "VMware"
    lost = origin or any(data) or h.capacity > header.SPLIT_SECTORS  # only single files have a rebuilt layout
    gone = area is not None and (lost or reader.missing(*area))
    if gone or h.compressed:
        c.variant = "streamOptimized" if h.compressed else "monolithicSparse"
        c.checks.append(Check("descriptor is there", False, "lost: a plain one is written", False))
        if area is not None:
            new = text.plain_text(h.capacity, c.variant)
            c.patches.append(Patch(area[0], new.ljust(area[1], b"\0"), "rebuilt", GUESSED))
    return c


def _text_area(h: Header) -> tuple[int, int] | None:
    """(file offset, bytes) that the header gives to a descriptor, as far as we read it; None if it has none."""
    if not h.descriptor_at or not h.descriptor_size:
        return None
    if h.capacity == 0:  # only a wrapper: nothing else tells where the text may lie
        place = min(h.descriptor_at, header.OUR_MAX_CAPACITY)
        return place * SECTOR, min(h.descriptor_size, header.DESCRIPTOR_SECTORS) * SECTOR
    limit = min(o for o in (h.overhead, h.directory_at, h.redundant_at if h.redundant else NO_OFFSET) if o)
    sectors = min(h.descriptor_size, text.OUR_MAX_TEXT // SECTOR)
    if h.descriptor_at < limit:
        return h.descriptor_at * SECTOR, min(sectors, limit - h.descriptor_at) * SECTOR
    if limit == 1:
        return None
    return EMBEDDED_AT, min(header.DESCRIPTOR_SECTORS, limit - 1) * SECTOR


def _open_plain(reader: Reader, h: Header, origin: str) -> Container:
    c = _base(reader, h, origin)
    directory = read_directory(reader, h)
    limit = h.overhead + h.grain * (ORPHAN_FACTOR * h.grains + ORPHAN_SLACK)
    runs, tally, last, grains = _plain_map(reader, h, directory, limit, False)
    if (last + h.grain) * SECTOR > reader.size:
        # the file was cut, or entries are wrong: grains fill a file, so no true one lies far behind their number
        limit = min(limit, max(-(-reader.size // SECTOR), h.overhead + h.grain * (ORPHAN_FACTOR * grains + 1)))
        runs, tally, last, grains = _plain_map(reader, h, directory, limit, False)
    orphans = max(0, (last + h.grain - h.overhead) // h.grain - grains) if last else 0
    damaged = directory.damaged or tally.primary_bad or tally.twin_bad
    if damaged and (orphans and not h.zero_grains or not grains):
        # grains that no table names, and tables are damaged: where both copies name nothing both may have been emptied
        runs, tally, last, grains = _plain_map(reader, h, directory, limit, True)
    reserved = [(0, SECTOR), (h.directory_at * SECTOR, h.directory_sectors * SECTOR)]
    proof = PROVEN if directory.regular and directory.has_twin and not directory.damaged else SUPPORTED
    for kind, sectors, at in (("gd", directory.primary, h.directory_at), ("rgd", directory.twin, h.redundant_at)):
        if kind == "gd" or directory.has_twin:
            size, name = h.table_sectors * SECTOR, f"vmdk.{kind.replace('d', 't')}"
            tables = table_regions(np.where(directory.told, sectors, 0), size, name, PROVEN)
            tables += table_regions(np.where(directory.told, 0, sectors), size, name, SUPPORTED)
            c.regions += [Region(at * SECTOR, h.directory_sectors * SECTOR, f"vmdk.{kind}", proof), *tables]
            reserved += [(r.file_offset, r.length) for r in tables]
    guest, disputed = drop_double_claims(runs.finish(), reserved)
    c.guests = [GuestDisk(h.capacity * SECTOR, guest)]
    c.size = max(h.overhead, last + h.grain if last else 0) * SECTOR
    c.size_exact = not (tally.zeroed or tally.lost)
    c.patches += [p for p in directory.patches + tally.patches if p.file_offset + len(p.data) <= c.size]
    if orphans:
        c.detail["grains that no table names"] = str(orphans)
    if not h.zero_grains:  # a writer gives a grain up only to set its entry to 1
        c.checks.append(Check("tables name every grain", not orphans, f"{orphans} grains"))
    _judge_tables(c, directory, tally, disputed, runs.given_up)
    whole = c.size <= reader.size
    c.checks.append(Check("file is whole", whole, "" if whole else f"{c.size} bytes needed", False))
    return c


def _plain_map(reader: Reader, h: Header, directory: Directory, limit: int, doubt: bool
               ) -> tuple[RunList, Tally, int, int]:
    """The runs, what the tables told, the highest sector of a grain (0: none), and how many grains are named.

    limit: no grain lies behind this sector. doubt: sectors of tables that name nothing count as lost.
    """
    tally, runs = Tally(), RunList()
    rules = Rules(h.overhead, max(limit, h.overhead), h.grain, h.zero_grains)
    size, last, grains = h.capacity * SECTOR, 0, 0
    for first, value, lost in merge_tables(reader, h, directory, rules, tally):
        if doubt:
            parts = np.add.reduceat(value, np.arange(0, len(value), PER_SECTOR)) == 0
            lost = lost | np.repeat(parts, PER_SECTOR)[: len(value)]
        data = (value > (1 if h.zero_grains else 0)) & ~lost
        state = np.where(data, DATA, np.where(value == 1, HOLE, UNALLOCATED))
        state = np.where(lost, LOST, state)
        g = (first + np.arange(len(value), dtype=np.int64)) * h.grain_bytes
        length = np.minimum(h.grain_bytes, size - g)
        runs.add(GuestMap.build(g, length, state, np.where(data, value * SECTOR, -1)))
        grains += int(data.sum())
        last = max(last, int(value[data].max(initial=0)))
    rest = tally.rest * h.grain_bytes
    runs.add(GuestMap.build([rest], [max(0, size - rest)], [LOST], [-1]))
    return runs, tally, last, grains


def _judge_tables(c: Container, directory: Directory, tally: Tally, disputed: int, given_up: int) -> None:
    alone = not directory.has_twin  # a second copy makes good what one has lost
    c.checks += [
        Check("grain directories are sound", not directory.damaged, f"{directory.damaged} entries are damaged",
              alone and not directory.regular),
        Check("grain tables are sound", not tally.primary_bad, f"{tally.primary_bad} entries are damaged", alone),
        Check("redundant grain tables are sound", not tally.twin_bad, f"{tally.twin_bad} entries are damaged", False),
        Check("both copies of the tables agree", not tally.differ, f"{tally.differ} entries differ"),
        Check("every table entry is known", not tally.lost, f"{tally.lost} entries are lost", tally.refused > 0),
        Check("no entry beyond the capacity", not tally.beyond, f"{tally.beyond} entries", False),
        Check("no byte is claimed twice", not disputed, f"{disputed} guest bytes"),
    ]
    if given_up:
        c.checks.append(Check("map within our limit", False, f"{given_up} guest bytes not mapped", False))


def _open_stream(reader: Reader, h: Header, origin: str) -> Container:
    s = stream.read_stream(reader, h)
    if origin and s.style == "markers" and s.footer:
        footer = header.parse(reader.read(s.footer * SECTOR, SECTOR))
        if footer is not None:  # Seen: header and footer differ in gdOffset only
            h = replace(stream.marker_header(footer), redundant_at=0)
    return _stream_container(reader, h, origin, s)


def _stream_container(reader: Reader, h: Header, origin: str, s: stream.Stream) -> Container:
    c = _base(reader, h, origin)
    c.detail["layout"] = "tables behind the grains" if s.style == "markers" else "tables at the front"
    if s.style == "front" and h.redundant:
        c.system = "QEMU"
    size = h.table_sectors * SECTOR
    lead = SECTOR if s.style == "markers" else 0  # the marker before a table
    at = table_regions(s.table_at - lead // SECTOR, size + lead, "vmdk.gt", SUPPORTED)
    c.regions += at + table_regions(s.twin_at, size, "vmdk.rgt", SUPPORTED)
    if s.directory:
        c.regions.append(Region(s.directory * SECTOR, h.directory_sectors * SECTOR, "vmdk.gd"))
    if s.style == "front" and h.redundant:
        c.regions.append(Region(h.redundant_at * SECTOR, h.directory_sectors * SECTOR, "vmdk.rgd"))
    if s.footer:
        c.regions.append(Region((s.footer - 1) * SECTOR, (s.end - s.footer + 1) * SECTOR, "vmdk.footer"))
    reserved = [(r.file_offset, r.length) for r in c.regions]
    guest, disputed = drop_double_claims(stream.stream_map(s), reserved)
    c.guests = [GuestDisk(h.capacity * SECTOR, guest)]
    c.patches += [p for p in s.patches if p.file_offset + len(p.data) <= s.end * SECTOR]
    c.size, c.size_exact = s.end * SECTOR, s.finished
    if s.style == "front" and h.redundant and len(s.grains.sector):
        # Seen: qemu-img 7.2 writes an empty 64 KiB grain first, so up to 127 empty sectors follow the last one
        tail = (int(s.grains.sector.max()) + h.grain) * SECTOR
        c.size_exact = False
        if tail > c.size and reader.read(c.size, tail - c.size) == bytes(tail - c.size):
            c.size = tail
    # grains name their own places, so none of this puts what was found in doubt
    named, unknown = len(s.named_lost), int((s.unknown[:, 1] - s.unknown[:, 0]).sum())
    c.checks += [
        Check("every grain that is named is there", not named, f"{named} grains", False),
        Check("every table entry is known", not unknown, f"{unknown} entries", False),
        Check("grain tables are sound", not (s.damaged_tables or s.lost_entries),
              f"{s.damaged_tables} tables or directory entries, {s.lost_entries} entries", False),
        Check("tables name every grain", not s.unnamed, f"{s.unnamed} grains were found without them", False),
        Check("no gap between the grains", not s.breaks, f"{s.breaks} gaps", False),
        Check("the end is there", s.finished, "" if s.finished else "no footer: one is written", False),
        Check("no byte is claimed twice", not disputed, f"{disputed} guest bytes"),
    ]  # fmt: skip
    return c


def _wrapped(reader: Reader, h: Header) -> Container:
    """A header without capacity around a descriptor of other files; QEMU follows it."""
    area = _text_area(h)
    data = reader.read(*area) if area else b""
    found = text.parse(data)
    if area is None or found is None:
        raise Damaged("VMDK header is not valid", offset=12, field="capacity", value=0, bound="more than 0")
    guest, members = text.external_map(found)
    c = Container("vmdk", found.create_type or "custom", area[0] + area[1], [GuestDisk(found.sectors * SECTOR, guest)],
                  found.system, uuid=found.uuid, identities=found.identities, parent=found.parent, members=members,
                  detail=found.detail, size_exact=False)  # fmt: skip
    c.regions = [Region(0, SECTOR, "vmdk.header"), Region(*area, "vmdk.descriptor")]
    c.patches = text.safe_patches(data, found, area[0])
    if area[0] != EMBEDDED_AT:
        c.patches += text.safe_patches(reader.read(EMBEDDED_AT, header.DESCRIPTOR_SECTORS * SECTOR), None, EMBEDDED_AT)
    return c


# --- without a header ----------------------------------------------------------------------------------------------
def salvage(reader: Reader, evidence: Sequence[Evidence]) -> Iterator[Orphan]:
    """Streams whose front is gone: their footers and grain tables say where the file began and where its grains are."""
    groups: dict[int, list[Evidence]] = {}
    for row in evidence:
        if row.kind in ("vmdk.footer", "vmdk.stream-table") and row.container_offset is not None:
            groups.setdefault(row.image_offset - row.container_offset, []).append(row)
    for base, rows in sorted(groups.items()):
        orphan = _orphan(reader, base, rows)
        if orphan is not None:
            yield orphan


def _orphan(reader: Reader, base: int, rows: Sequence[Evidence]) -> Orphan | None:
    view = Laid(reader, base)
    footer = next((r.container_offset for r in rows if r.kind == "vmdk.footer" and r.container_offset), None)
    if footer is not None:
        h = header.parse(view.read(footer, SECTOR))
    else:  # the capacity is lost with header and footer: the tables that are there cover at least so much
        most = max(r.value or 0 for r in rows) + 1
        h = header.marker_layout(most * header.ENTRIES * 128) if most <= header.OUR_MAX_TABLES else None
    if h is None:
        return None
    try:
        header.check(h)
    except Damaged:
        return None
    met = [(r.value or 0, (r.container_offset or 0) // SECTOR + 1) for r in rows if r.kind == "vmdk.stream-table"]
    s = stream.from_tables(view, h, footer // SECTOR if footer else 0, met)
    if not len(s.grains.number):
        return None
    why = "rebuilt from the footer" if footer else "rebuilt from grain tables, capacity rounded up"
    c = _stream_container(view, stream.marker_header(h), why, s)
    return Orphan(c, stream.found_runs(s, base), "vmdk.stream-footer" if footer else "vmdk.stream-tables")


FORMAT = Format(
    name="vmdk",
    extension="vmdk",
    signatures=SIGNATURES,
    open=open_extent,
    confirm=confirm,
    salvage=salvage,
    wants=wants,
    qemu_name="vmdk",
    shapes=lambda blocks, where: [*shapes.shapes(blocks, where), *grains.shapes(blocks, where)],
    rows=(*shapes.ROWS, *grains.ROWS),
    rebuild=lambda reader, clue: (grains if clue.pieces.kind == grains.KIND else shapes).rebuild(
        reader, clue, open_extent),
    units=grains.units,
    stow=lambda reader: [*stow_stream(reader), *in_row(0, reader.size, shapes.UNIT)],
    marks=grains.marks,
    gather=gather,
    loose=lambda image, marks: loose(image, marks, open_extent),
)
