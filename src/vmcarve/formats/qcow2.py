"""QEMU qcow2, versions 2 and 3: a header, an L1 table, L2 tables, and refcounts that say all of it a second time.

Big endian. No checksum and no backup header: the maps are proved by the refcounts, which count every reference to
every cluster. Source: QEMU docs/interop/qcow2.txt; "Seen" means checked on files of qemu-img 7.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import Damaged
from ..model import (
    DATA,
    DEFLATE,
    EXTERNAL,
    GUESSED,
    HOLE,
    PLAIN,
    PROVEN,
    SUPPORTED,
    UNALLOCATED,
    ZSTD,
    Check,
    Container,
    Evidence,
    Format,
    GuestDisk,
    GuestMap,
    Member,
    ParentLink,
    Patch,
    Reader,
    Region,
    Signature,
    Want,
)
from ._qcow2_extras import Piece, Snapshot, read_bitmaps, read_snapshots
from ._qcow2_header import (
    CORRUPT,
    DATA_FILE,
    DATA_FILE_RAW,
    DIRTY,
    EXTENDED_L2,
    FORMAT_MAX_OFFSET,
    Header,
    describe,
    read_header,
    reference_patches,
)
from ._qcow2_refcounts import Comparison, Refcounts, compare, count_references, read_refcounts, rebuild
from ._qcow2_shapes import ROWS, shapes, stow
from ._qcow2_shapes import rebuild as rebuild_container
from ._qcow2_stated import stated
from ._qcow2_tables import (
    I32,
    I64,
    OUR_MAX_TABLE_BYTES,
    U64,
    Cells,
    Claims,
    FirstLevel,
    Layout,
    Ranges,
    Tables,
    Tally,
    build_map,
    chunks,
    claims,
    first_level,
    load_tables,
    read_words,
    regions,
    show_name,
    without_missing,
)
from ._qcow2_wants import wants

KIND = "qcow2.header"
SMALL_BITS = (20, b"\xff\xff\xff\xe0", bytes(4))  # cluster_bits: 9 to 21
SIGNATURES = (Signature(b"QFI\xfb\0\0\0\x02", KIND, also=SMALL_BITS),
              Signature(b"QFI\xfb\0\0\0\x03", KIND, also=SMALL_BITS))

OFFSET_MASK = np.uint64(0x00FF_FFFF_FFFF_FE00)  # bits 9 to 55 of L1 and standard L2 entries
COPIED = np.uint64(1 << 63)  # the refcount is exactly one
COMPRESSED = np.uint64(1 << 62)
ZERO = np.uint64(1)  # standard L2 entries of version 3
HALF = np.uint64(0xFFFF_FFFF)
ABOUT_REFCOUNTS = ("qcow2.refcounts-read", "qcow2.refcounts-agree", "qcow2.no-leaks", "qcow2.copied-bits")
OUR_MAX_WALK = 4 * OUR_MAX_TABLE_BYTES  # bytes of L2 tables turned into maps, all snapshots together


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A header whose every field is in bounds; surer when the refcount table lies where it says."""
    try:
        h = read_header(reader, offset)
    except Damaged:
        return None
    first = reader.read(offset + h.reftable_offset, 8)
    block = int.from_bytes(first, "big")
    follows = len(first) == 8 and block > 0 and block % h.cluster == 0 and block < FORMAT_MAX_OFFSET
    return Evidence(KIND, offset, h.length, container_offset=0, value=h.size, confidence=1.0 if follows else 0.8)


@dataclass(slots=True)
class _Walk:
    """Everything that the container's structures refer to."""

    pieces: list[Piece]
    l1s: list[FirstLevel]
    tables: Tables
    layout: Layout
    l2: I64  # file offsets of all L2 tables that any L1 names, rising
    tally: Tally
    end: int = 0  # behind the last cluster or stream that an L2 names
    compressed: bool = False
    refs: tuple[I64, I64] = field(default_factory=lambda: count_references([], []))

    @property
    def whole(self) -> bool:
        """No table is missing and no entry was refused."""
        t = self.tally
        known = all(bool(l1.known.all()) for l1 in self.l1s) and self.tables.known is None
        return known and t.illegal == t.outside == t.unread == t.empty == 0


def open_container(reader: Reader) -> Container:
    """Reads header, refcounts, snapshots, L1 and L2 tables. Lost tables become LOST runs, never a failure."""
    h = read_header(reader, 0)
    rc = read_refcounts(reader, h)
    trusted = rc.complete and not h.incompatible & DIRTY
    limit = max(reader.size, rc.reach)
    snapshots, table_end, trouble = read_snapshots(reader, h)
    bitmaps, bitmap_trouble = read_bitmaps(reader, h)
    pieces = _pieces(h, rc, snapshots, table_end, bitmaps)
    walk = _walk(reader, h, pieces, snapshots, limit, np.zeros(0, np.int64))
    told = compare(reader, h, rc, *walk.refs)
    if trusted and 0 < len(told.free) <= max(1, len(walk.refs[0]) // 16):
        # a few entries name free clusters: they are wrong; if it were many, the counts would be
        walk = _walk(reader, h, pieces, snapshots, limit, told.free)
    walk.layout.empty_is_lost = not trusted or told.leaked > 0
    guests, spent = _guests(h, walk, snapshots)
    emptied = _without_missing(reader, h, walk, guests)
    size, exact = _size(h, rc, walk, guests, trusted)
    grade = PROVEN if told.agrees and trusted and walk.whole else SUPPORTED
    container = Container(
        "qcow2", _variant(h), size, guests, system="QEMU/KVM", cluster=h.cluster, size_exact=exact,
        regions=_regions(walk, grade), patches=reference_patches(h), detail=describe(h),
    )
    container.checks = [
        *_refcount_checks(h, rc, told),
        Check("qcow2.copied-bits", (bad := _wrong_copied(walk)) == 0, f"{bad} L2 entries disagree with the references"),
        Check("qcow2.snapshots-read", not trouble, trouble, False),
        Check("qcow2.bitmaps-read", not bitmap_trouble, bitmap_trouble, False),
        Check("qcow2.not-marked-corrupt", not h.incompatible & CORRUPT),
        Check("qcow2.metadata-apart", walk.layout.metadata.overlap == 0,
              f"{walk.layout.metadata.overlap} bytes of metadata are claimed twice"),
        Check("qcow2.within-our-limits", not spent, "snapshots left out: too many tables" if spent else "",
              False),
        *walk.layout.tally.checks("qcow2"),
    ]
    _references_out(h, container)
    stale = h.bitmaps is not None and not bitmaps  # counted perhaps, but not to be walked
    others = [c for c in container.checks if c.name not in ABOUT_REFCOUNTS]
    if walk.whole and not stale and not h.incompatible & DIRTY and all(c.ok for c in others):
        container.patches += rebuild(reader, h, rc, *walk.refs)
    container.patches += emptied
    if emptied:
        container.checks.append(Check("qcow2.streams-there", False, f"{len(emptied)} compressed clusters are lost: "
                                      "their entries are emptied", False))
    if walk.compressed:
        container.detail["compression"] = "zstd" if h.compression else "zlib"
    return container


def _wants(reader: Reader) -> list[Want]:
    """What is not in its place. No table is missing where the refcounts prove them, whatever they look like: the first
    cluster that one of them names may lie right behind another.
    """
    rows = wants(reader)
    return [w for w in rows if w.kind == "qcow2.luks"] if rows and _proven(open_container(reader)) else rows


def _proven(container: Container) -> bool:
    """Whether the refcounts agree with tables that name clusters of this file: those of a data file nobody counts."""
    tables = [r.grade for r in container.regions if r.kind == "qcow2.l2"]
    return bool(tables) and tables[0] == PROVEN and not container.members


def _without_missing(reader: Reader, h: Header, walk: _Walk, guests: list[GuestDisk]) -> list[Patch]:
    """Streams of which bytes are missing become LOST; the patches empty their L2 entries."""
    places: set[int] = set()
    size = h.cluster // h.l2_entries
    for guest, l1 in zip(guests, walk.l1s, strict=False):
        guest.map, lost = without_missing(reader, guest.map)
        index = lost // h.cluster
        places.update((l1.table[index // h.l2_entries] + index % h.l2_entries * size).tolist())
    return [Patch(at, bytes(size), "rebuilt", GUESSED) for at in sorted(places)]


def _variant(h: Header) -> str:
    marks = [f"v{h.version}"]
    marks += ["extended-l2"] if h.extended else []
    marks += ["data-file"] if h.incompatible & DATA_FILE else []
    marks += ["encrypted"] if h.crypt else []
    return "-".join(marks)


def _references_out(h: Header, container: Container) -> None:
    """Backing and data file as a ParentLink and a Member. Names are shown, never opened."""
    if "backing" in h.names:
        name = show_name(h.names["backing"][1])
        kind = show_name(h.names.get("backing-format", (0, b""))[1])
        container.parent = ParentLink(None, name or None, {"format": kind} if kind else {})
    if h.incompatible & DATA_FILE:
        name = show_name(h.names.get("data-file", (0, b""))[1])
        container.members.append(Member(name, "data-file", 0, h.size, 0))
        container.detail["data-file-raw"] = "yes" if h.autoclear & DATA_FILE_RAW else "no"


def _pieces(h: Header, rc: Refcounts, snapshots: list[Snapshot], table_end: int, bitmaps: list[Piece]) -> list[Piece]:
    """All structures but the L2 tables."""
    blocks = np.sort(rc.block[rc.block > 0])
    pieces = [
        Piece.one("qcow2.header", 0, h.end),
        Piece.one("qcow2.refcount-table", h.reftable_offset, h.reftable_clusters * h.cluster),
        Piece("qcow2.refcount-block", blocks, np.full(len(blocks), h.cluster)),
    ]
    if h.l1_entries:
        pieces.append(Piece.one("qcow2.l1", h.l1_offset, h.l1_entries * 8))
    if h.luks is not None:
        pieces.append(Piece.one("qcow2.luks", *h.luks))
    if snapshots:
        pieces.append(Piece.one("qcow2.snapshot-table", h.snapshots_offset, table_end - h.snapshots_offset))
        pieces += [Piece.one("qcow2.l1", s.l1_offset, s.l1_entries * 8) for s in snapshots if s.l1_entries]
    return pieces + bitmaps


def _clusters(pieces: list[Piece], cluster: int) -> Ranges:
    """The whole clusters that some structures take."""
    start = np.concatenate([p.start for p in pieces])
    length = np.concatenate([p.length for p in pieces])
    return Ranges.of(start, -(-length // cluster) * cluster)


def _walk(reader: Reader, h: Header, pieces: list[Piece], snapshots: list[Snapshot], limit: int, free: I64) -> _Walk:
    """Reads every L1 and each L2 once. free: numbers of clusters that nothing may name."""
    fixed = _clusters(pieces, h.cluster)
    overlap = fixed.overlap
    fixed = fixed.joined(free * h.cluster, np.full(len(free), h.cluster))
    tally = Tally()
    places = [(h.l1_offset, h.l1_entries), *((s.l1_offset, s.l1_entries) for s in snapshots)]
    l1s = [_read_l1(reader, h, at, entries, fixed, limit, tally) for at, entries in places]
    l2, times = np.unique(np.concatenate([l1.named for l1 in l1s]), return_counts=True)
    tables = load_tables(reader, l2, h.cluster // 8, ">u8")
    tally.unread += len(l2) - len(tables.offset)
    metadata = fixed.joined(l2, np.full(len(l2), h.cluster))
    metadata.overlap += overlap
    layout = Layout(h.cluster, h.l2_entries, lambda words: _parse(h, words), limit, metadata, False)
    rows = tables.rows(l2)
    found = claims(layout, tables, rows[rows >= 0], times[rows >= 0], tally)
    layout.tally = replace(tally, illegal=0, outside=0)  # the guests' own entries are counted with their maps
    walk = _Walk(pieces, l1s, tables, layout, l2, tally, compressed=len(found.start) > 0)
    walk.refs = _references(h, walk, times, found)
    walk.end = int((found.start + found.length).max(initial=0))
    if len(found.plain) and not h.incompatible & (DATA_FILE | EXTENDED_L2):
        walk.end = max(walk.end, int(found.plain.max()) + h.cluster)
    return walk


def _read_l1(reader: Reader, h: Header, at: int, entries: int, fixed: Ranges, limit: int, tally: Tally) -> FirstLevel:
    raw, known = read_words(reader, at, entries, ">u8")
    words = raw.astype(np.uint64)
    table = (words & OFFSET_MASK).astype(np.int64)
    illegal = ((words & ~(OFFSET_MASK | COPIED)) != 0) | (table % h.cluster != 0) | ((table == 0) & (words != 0))
    return first_level(table, illegal, known, h.cluster, fixed, limit, tally)


def _parse(h: Header, words: U64) -> Cells:
    """L2 entries. Source: qcow2.txt, "Standard Cluster Descriptor", "Compressed Clusters Descriptor", "Extended L2"."""
    halves: U64 | None = None
    if h.extended:
        words, halves = words[:, 0::2], words[:, 1::2].copy()
    data_file = bool(h.incompatible & DATA_FILE)
    stream = words & COMPRESSED != 0
    host = (words & OFFSET_MASK).astype(np.int64)
    allowed = OFFSET_MASK | COPIED | (ZERO if h.version == 3 and not h.extended else np.uint64(0))
    illegal = ~stream & ((words & ~allowed != 0) | (host & (h.cluster - 1) != 0))
    named = (host > 0) | (data_file & (words & COPIED != 0))  # only a data file can hold something at its offset 0
    illegal |= ~stream & ~named & (words & COPIED != 0)
    state = np.where(named, EXTERNAL if data_file else DATA, UNALLOCATED).astype(np.uint8)
    if halves is None:
        state[~stream & (words & ZERO != 0)] = HOLE
    else:
        low, high = halves & HALF, halves >> np.uint64(32)
        illegal |= (low & high != 0) | (stream & (halves != 0)) | (~stream & ~named & (low != 0))
    host[~named] = -1
    stored = np.full(host.shape, h.cluster, np.int64)
    if stream.any():
        split = np.uint64(62 - (h.cluster_bits - 8))
        offset = (words & ((np.uint64(1) << split) - np.uint64(1))).astype(np.int64)
        sectors = (words >> split & np.uint64((1 << (h.cluster_bits - 8)) - 1)).astype(np.int64)
        host = np.where(stream, offset, host)
        stored = np.where(stream, (sectors + 1) * 512 - offset % 512, stored)
        state[stream] = DATA
        illegal |= stream & ((words & COPIED != 0) | data_file | (offset < h.cluster) | (offset >= FORMAT_MAX_OFFSET))
    encoding = np.where(stream, ZSTD if h.compression else DEFLATE, PLAIN).astype(np.uint8)
    host[illegal] = -1
    return Cells(state, host, stored, encoding, illegal, halves)


def _references(h: Header, walk: _Walk, times: I64, found: Claims) -> tuple[I64, I64]:
    """Every reference to every cluster: structures, L2 tables (`times`: by how many L1s), data, streams."""
    index: list[I64] = [walk.l2 // h.cluster]
    weight: list[I64 | I32] = [times]
    for piece in walk.pieces:
        count = -(-(piece.start % h.cluster + piece.length) // h.cluster)
        clusters = np.repeat(piece.start // h.cluster, count) + _ramp(count)
        index.append(clusters)
        weight.append(np.ones(len(clusters), np.int64))
    if not h.incompatible & DATA_FILE:
        index.append(found.plain // h.cluster)
        weight.append(found.plain_weight)
    first = found.start // h.cluster
    count = (found.start + found.length - 1) // h.cluster - first + 1
    index.append(np.repeat(first, count) + _ramp(count))
    weight.append(np.repeat(found.stream_weight, count))
    return count_references(index, weight)


def _ramp(count: I64) -> I64:
    """0..count[0]-1, 0..count[1]-1, ..."""
    ends = np.cumsum(count)
    return np.arange(int(ends[-1]) if len(ends) else 0, dtype=np.int64) - np.repeat(ends - count, count)


def _guests(h: Header, walk: _Walk, snapshots: list[Snapshot]) -> tuple[list[GuestDisk], bool]:
    """The active disk first, then every snapshot; True when some were left out because of our limits."""
    active = walk.l1s[0]
    guests = [GuestDisk(h.size, _map(h.size, walk, active, walk.layout))]
    spent = 0
    for snapshot, l1 in zip(snapshots, walk.l1s[1:], strict=True):
        spent += len(l1.named) * h.cluster
        if spent > OUR_MAX_WALK:
            return guests, True
        layout = replace(walk.layout, tally=Tally())
        guests.append(GuestDisk(snapshot.size, _map(snapshot.size, walk, l1, layout), "snapshot", snapshot.name,
                                snapshot.created))
    return guests, False


def _map(size: int, walk: _Walk, l1: FirstLevel, layout: Layout) -> GuestMap:
    rows = np.where(l1.table >= 0, walk.tables.rows(l1.table), -1)
    return build_map(size, layout, walk.tables, rows, l1.absent)


def _wrong_copied(walk: _Walk) -> int:
    """Entries of the active disk whose COPIED bit disagrees with the number of references that we found."""
    rows = walk.tables.rows(walk.l1s[0].named)
    rows = rows[rows >= 0]
    index, times = walk.refs
    cluster, step = walk.layout.cluster, walk.tables.words.shape[1] // walk.layout.entries
    wrong = 0
    for part in chunks(walk.layout, len(rows)):
        words = walk.tables.words[rows[part]]
        cells = walk.layout.parse(words)
        plain = (cells.host >= 0) & (cells.encoding == PLAIN) & (cells.state != EXTERNAL)
        at = np.searchsorted(index, cells.host[plain] // cluster)
        inside = at < len(index)
        once = times[at[inside]] == 1
        wrong += int((once != (words[:, ::step][plain][inside] & COPIED != 0)).sum())
    return wrong


def _refcount_checks(h: Header, rc: Refcounts, told: Comparison) -> list[Check]:
    state = "" if rc.complete else "refcount table or blocks are missing"
    return [
        Check("qcow2.refcounts-read", rc.complete, state, False),
        Check("qcow2.refcounts-agree", told.below == told.above == 0,
              f"{told.below} clusters counted too low, {told.above} too high, of {told.compared}"),
        Check("qcow2.no-leaks", told.leaked == 0, f"{told.leaked} clusters counted that nothing names", False),
    ]


def _size(h: Header, rc: Refcounts, walk: _Walk, guests: list[GuestDisk], trusted: bool) -> tuple[int, bool]:
    """The file's length and whether it is certain.

    The file ends with the last thing in it: a fresh file after its last L1 entry, a compressed one at a multiple of
    512, one with extended L2 after the last subcluster written (all seen). What is counted but named by nothing at
    the end is kept whole: a tail may follow then.
    """
    ends = [int((p.start + p.length).max()) for p in walk.pieces if len(p.start)]
    ends.append(int(walk.l2[-1]) + h.cluster if len(walk.l2) else 0)
    for guest in guests:
        data = guest.map.state == DATA
        ends.append(int((guest.map.file_offset + guest.map.stored)[data].max(initial=0)))
    size = max(*ends, walk.end)
    if rc.end - size >= h.cluster:
        return rc.end, False
    return size, trusted and walk.whole and not (h.extended and rc.end > size)


def _regions(walk: _Walk, grade: str) -> list[Region]:
    found: list[Region] = []
    pieces = [*walk.pieces, Piece("qcow2.l2", walk.l2, np.full(len(walk.l2), walk.layout.cluster))]
    for kind in dict.fromkeys(p.kind for p in pieces):
        same = [p for p in pieces if p.kind == kind]
        start, length = np.concatenate([p.start for p in same]), np.concatenate([p.length for p in same])
        proven = kind in ("qcow2.l1", "qcow2.l2", "qcow2.refcount-table", "qcow2.refcount-block")
        found += regions(kind, start, length, grade if proven else SUPPORTED)
    return found


FORMAT = Format(name="qcow2", extension="qcow2", signatures=SIGNATURES, open=open_container, confirm=confirm,
                qemu_name="qcow2", wants=_wants, stated=stated, shapes=shapes, rows=ROWS,
                rebuild=lambda reader, clue: rebuild_container(reader, clue, open_container), stow=stow)
