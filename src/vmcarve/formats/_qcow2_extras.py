"""qcow2 snapshot table and dirty bitmaps: what else a container refers to. Source: QEMU docs/interop/qcow2.txt."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from ..model import Reader
from ._qcow2_header import BITMAPS_VALID, FORMAT_MAX_L1_BYTES, FORMAT_MAX_OFFSET, Header
from ._qcow2_tables import I64, OUR_MAX_DISK, read_words, show_name

FORMAT_MAX_EXTRA = 1024
FORMAT_MAX_BITMAPS = 65535
OUR_MAX_SNAPSHOTS = 4096
OUR_MAX_SNAPSHOT_L1 = 64 << 20  # bytes of all snapshots' L1 tables together
OUR_MAX_BITMAP_TABLES = 4 << 20  # bytes of all bitmap tables together: 32 GiB of bitmaps at 64 KiB clusters
SNAPSHOT_ROW, BITMAP_ROW = 40, 24


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One row of the snapshot table. size: bytes of the disk then; state_size: bytes of VM state behind it."""

    l1_offset: int
    l1_entries: int
    name: str
    created: float
    size: int
    state_size: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Clusters that the container's own structures take: region kind, file offset and length of each."""

    kind: str
    start: I64
    length: I64

    @classmethod
    def one(cls, kind: str, start: int, length: int) -> Piece:
        return cls(kind, np.asarray([start], np.int64), np.asarray([length], np.int64))


def read_snapshots(reader: Reader, h: Header) -> tuple[list[Snapshot], int, str]:
    """The rows that can be read, the file offset where they end, and what stopped us early ("" when all were read)."""
    rows: list[Snapshot] = []
    at, budget = h.snapshots_offset, OUR_MAX_SNAPSHOT_L1
    for number in range(min(h.snapshots, OUR_MAX_SNAPSHOTS)):
        if reader.missing(at, SNAPSHOT_ROW):
            return rows, at, f"row {number} is missing"
        (l1, entries, id_length, name_length, seconds, nanoseconds, _, state, extra) = struct.unpack(
            ">QIHHIIQII", reader.read(at, SNAPSHOT_ROW)
        )
        length = SNAPSHOT_ROW + extra + id_length + name_length
        if (extra > FORMAT_MAX_EXTRA or l1 % h.cluster or not h.cluster <= l1 < FORMAT_MAX_OFFSET
                or entries * 8 > FORMAT_MAX_L1_BYTES or nanoseconds >= 1_000_000_000):
            return rows, at, f"row {number} is damaged"
        if reader.missing(at, length):
            return rows, at, f"row {number} is missing"
        rest = reader.read(at + SNAPSHOT_ROW, length - SNAPSHOT_ROW)
        size = h.size
        if extra >= 8:
            state = struct.unpack_from(">Q", rest)[0]
        if extra >= 16:
            size = struct.unpack_from(">Q", rest, 8)[0]
        if size >= OUR_MAX_DISK or size > entries * h.cluster * h.l2_entries:
            return rows, at, f"row {number}: disk of {size} bytes, more than its L1 covers"
        budget -= entries * 8
        if budget < 0:
            return rows, at, f"row {number}: L1 tables above our limit of {OUR_MAX_SNAPSHOT_L1} bytes"
        ident, name = rest[extra : extra + id_length], rest[extra + id_length :]
        label = show_name(name) or show_name(ident)
        rows.append(Snapshot(l1, entries, label, seconds + nanoseconds / 1e9, size, state))
        at += length
        if number + 1 < h.snapshots:
            at = -(-at // 8) * 8
    return rows, at, "" if len(rows) == h.snapshots else f"more than {OUR_MAX_SNAPSHOTS} rows"


def read_bitmaps(reader: Reader, h: Header) -> tuple[list[Piece], str]:
    """Where dirty bitmaps lie, and what stopped us early. They count only while autoclear bit 0 is set."""
    if h.bitmaps is None or not h.autoclear & BITMAPS_VALID:
        return [], ""
    count, size, directory = h.bitmaps
    pieces = [Piece.one("qcow2.bitmap-directory", directory, size)]
    if count > FORMAT_MAX_BITMAPS or size > FORMAT_MAX_BITMAPS * 1024:
        return [], "directory is damaged"
    at, end, budget = directory, directory + size, OUR_MAX_BITMAP_TABLES
    for number in range(count):
        if at + BITMAP_ROW > end or reader.missing(at, BITMAP_ROW):
            return pieces, f"row {number} is missing"
        table, entries, _, _, _, name_length, extra = struct.unpack(">QIIBBHI", reader.read(at, BITMAP_ROW))
        at += -(-(BITMAP_ROW + name_length + extra) // 8) * 8
        budget -= entries * 8
        if table % h.cluster or not h.cluster <= table < FORMAT_MAX_OFFSET or budget < 0:
            return pieces, f"row {number} is damaged"
        if entries:
            pieces.append(Piece.one("qcow2.bitmap-table", table, entries * 8))
        words, known = read_words(reader, table, entries, ">u8")
        words = words.astype(np.uint64)
        legal = known & (words & np.uint64(h.cluster - 1) == 0) & (words < np.uint64(FORMAT_MAX_OFFSET)) & (words > 0)
        start = words[legal].astype(np.int64)
        if len(start):
            pieces.append(Piece("qcow2.bitmap", start, np.full(len(start), h.cluster)))
    return pieces, ""
