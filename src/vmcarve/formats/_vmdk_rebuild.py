"""What stands in for a lost VMDK header: the descriptor, the tables' own layout, the tables of a stream."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np

from ..errors import Damaged
from ..model import SECTOR, Reader
from . import _vmdk_header as header
from . import _vmdk_stream as stream
from . import _vmdk_text as text
from ._vmdk_header import REDUNDANT_AT, Header
from ._vmdk_tables import Rules, Tally, merge_tables, read_array, read_directory

MAX_DIRECTORY_SECTORS = 512  # of a plain extent: 2 TiB at 32 MiB a table
LAST_GRAIN_SECTORS = 257  # a compressed grain's sectors at most: two grains and the 12 bytes before them
SPLIT_REDUNDANT_AT = 1  # rgdOffset in extents without descriptor (VirtualBox)
TWIN_SAMPLE = 128  # entries of the other directory that are compared


def find_header(reader: Reader) -> tuple[Header, str]:
    """The header, and how it was rebuilt ("" when it was read). Raises Damaged when there is not enough."""
    first: Damaged | None = None
    h = header.parse(reader.read(0, SECTOR))
    if h is not None and not reader.missing(0, SECTOR):
        try:
            header.check(h)
            return replace(h, magic=header.MAGIC), ""
        except Damaged as e:
            text_mode = h.line_test.startswith((b"\n \n", b"\r\n \r"))
            if e.field in ("version", "flags") or text_mode:
                raise  # another layout, or a file that went through a text-mode transfer: nothing to repair
            first = e
    rebuilt = _from_text(reader) or _from_footer(reader) or _from_directory(reader)
    if rebuilt is None:
        raise first or Damaged("no VMDK header, and too little to rebuild it from", offset=0, field="magic",
                               value=reader.read(0, 4), bound=header.MAGIC)  # fmt: skip
    return rebuilt


def _from_text(reader: Reader) -> tuple[Header, str] | None:
    """From an embedded descriptor: the capacity gives the layout, and tables or grains must be where it says."""
    found = text.parse(reader.read(SECTOR, header.DESCRIPTOR_SECTORS * SECTOR))
    if found is None or not found.embedded or len(found.extents) != 1:
        return None
    capacity = found.sectors
    is_stream = found.create_type.lower() == "streamoptimized"
    h = header.layout(capacity, stream=is_stream)
    if _acceptable(h) and (fits := _directories_that_fit(reader, h)):
        if is_stream and fits == [h.redundant_at]:
            front = header.front_layout(capacity)  # its only directory is where QEMU's redundant one is
            if stream.grain_head(front, reader.read(front.overhead * SECTOR, 16)) is not None:
                h = front
        return with_zero_grains(reader, h), "rebuilt from descriptor and tables"
    h = header.marker_layout(capacity)
    if is_stream and _acceptable(h) and len(stream.walk(reader, h, h.overhead, "markers").grains.number):
        return h, "rebuilt from descriptor and grains"
    return None


def _from_footer(reader: Reader) -> tuple[Header, str] | None:
    """From a stream's footer in one of the last two sectors: it is the header but for gdOffset."""
    for sector in (reader.size // SECTOR - 2, reader.size // SECTOR - 1):
        h = header.parse(reader.read(sector * SECTOR, SECTOR)) if sector > 0 else None
        if h is not None and _acceptable(h) and h.directory_at + h.directory_sectors + 1 == sector:
            return stream.marker_header(h), "rebuilt from the footer"
    return None


def _acceptable(h: Header) -> bool:
    try:
        header.check(h)
    except Damaged:
        return False
    return True


def _directories_that_fit(reader: Reader, h: Header) -> list[int]:
    """Those sectors of the two directories at which lies what this layout would have there."""
    order = np.arange(h.tables, dtype=np.int64) * h.table_sectors
    return [p for p in (h.directory_at, h.redundant_at)
            if 2 * int((read_array(reader, p * SECTOR, h.tables, "<u4")[0] == p + h.directory_sectors + order).sum())
            > h.tables]  # fmt: skip


def with_zero_grains(reader: Reader, h: Header) -> Header:
    """The header with the zero-grain flag when the tables use it: an entry of 1 would be the descriptor's sector."""
    if h.compressed:
        return h
    tally = Tally()
    rules = Rules(h.overhead, max(h.overhead, -(-reader.size // SECTOR)), h.grain, True)
    for _ in merge_tables(reader, h, read_directory(reader, h), rules, tally):
        if tally.zeroed:
            return header.layout(h.capacity, zero_grains=True)
    return h


def _from_directory(reader: Reader) -> tuple[Header, str] | None:
    """From the two directories alone: they give the number of tables, so the capacity up to 32 MiB."""
    tables = redundant_directory(reader, REDUNDANT_AT * SECTOR)
    if tables is None:
        tables = redundant_directory(reader, SPLIT_REDUNDANT_AT * SECTOR, SPLIT_REDUNDANT_AT)
        if tables is None:
            return None
        h = header.layout(tables * header.ENTRIES * 128, redundant_at=SPLIT_REDUNDANT_AT)
        return replace(h, descriptor_at=0, descriptor_size=0), "rebuilt from tables, capacity rounded up"
    capacity = tables * header.ENTRIES * 128
    as_stream = header.layout(capacity, stream=True)
    if stream.inflates(reader, as_stream, as_stream.overhead):
        return as_stream, "rebuilt from tables, capacity rounded up"
    return with_zero_grains(reader, header.layout(capacity)), "rebuilt from tables, capacity rounded up"


def redundant_directory(reader: Reader, offset: int, place: int = REDUNDANT_AT) -> int | None:
    """The number of tables when a redundant directory of sector `place` of its file lies at `offset`, with its twin.

    Its first entry is `place` + its own length, entries rise by 4; the other directory lies length + 4 * tables
    sectors on.
    """
    head = reader.read(offset, 4)
    if len(head) < 4:
        return None
    sectors = struct.unpack("<I", head)[0] - place
    if not 0 < sectors <= MAX_DIRECTORY_SECTORS:
        return None
    row = read_array(reader, offset, sectors * SECTOR // 4, "<u4")[0].astype(np.int64)
    rising = np.flatnonzero(row != row[0] + 4 * np.arange(len(row)))
    tables = int(rising[0]) if len(rising) else len(row)
    if -(-4 * tables // SECTOR) != sectors or row[tables:].any():
        return None
    shift = sectors + 4 * tables
    count = min(tables, TWIN_SAMPLE)
    twin = read_array(reader, offset + shift * SECTOR, count, "<u4")[0].astype(np.int64)
    return tables if (twin == row[:count] + shift).all() else None


def stream_table(reader: Reader, offset: int) -> tuple[int, int] | None:
    """(number of the table, sector of its marker) for a stream's grain table whose marker lies at `offset`.

    The grain that ends at the marker names its place on the disk, and the table names that grain's sector: together
    they prove where in the file both lie.
    """
    row = read_array(reader, offset + SECTOR, header.ENTRIES, "<u4")[0].astype(np.int64)
    used = np.sort(row[row != 0])
    if not len(used) or (used[1:] == used[:-1]).any():
        return None
    h = header.marker_layout(header.OUR_MAX_TABLES * header.ENTRIES * 128)
    before = reader.read(max(0, offset - LAST_GRAIN_SECTORS * SECTOR), min(offset, LAST_GRAIN_SECTORS * SECTOR))
    for distance in range(1, len(before) // SECTOR + 1):
        at = len(before) - distance * SECTOR
        head = stream.grain_head(h, before[at : at + 16])
        if head is None or -(-(stream.GRAIN_HEAD + head[1]) // SECTOR) != distance:
            continue
        last = int(row[head[0] % header.ENTRIES])
        if last and last == row.max() and stream.inflates(reader, h, (offset - distance * SECTOR) // SECTOR):
            return head[0] // header.ENTRIES, last + distance
    return None
