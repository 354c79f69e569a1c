"""QEMU QED: a header, an L1 and L2 tables of one size, append only; every cluster is named exactly once.

Little endian, no checksums. Source: QEMU docs/interop/qed_spec.txt; "Seen" means checked on files of qemu-img 7.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from ..errors import Damaged
from ..model import (
    DATA,
    HOLE,
    PLAIN,
    PROVEN,
    SUPPORTED,
    UNALLOCATED,
    Check,
    Container,
    Evidence,
    Format,
    GuestDisk,
    ParentLink,
    Patch,
    Reader,
    Signature,
    Want,
)
from ._append_only import Plan, walk
from ._append_shapes import QED, rebuild_qed, stow_qed
from ._first_level import plain_rows, plain_tables
from ._qcow2_tables import U64, Cells, Ranges, regions, show_name
from ._two_level_wants import Shape, clusters
from ._two_level_wants import wants as table_wants

KIND = "qed.header"
SIGNATURES = (Signature(b"QED\0", KIND, also=(4, b"\xff\x0f\0\xf8", bytes(4))),)  # clusters of 2^12 to 2^26

HEADER_LENGTH = 64
MIN_CLUSTER, MAX_CLUSTER = 1 << 12, 1 << 26
TABLE_SIZES = (1, 2, 4, 8, 16)  # clusters; 1 is legal though QEMU 7.2 refuses to open what it made (seen)
BACKING, NEED_CHECK, BACKING_RAW = 1, 2, 4  # incompatible features
FORMAT_MAX_OFFSET = 1 << 62  # QEMU refuses sizes above 2^63 - 1; keeps our sums inside an int64
FORMAT_MAX_NAME = 1023
OUR_MAX_HEADER = 64 << 20  # bytes of header clusters; QEMU writes one cluster
OUR_SLACK = 64 << 20  # bytes of tables that a container may have beyond its disk
OUR_MAX_ENTRIES = 4 << 20  # entries of one table that we hold (QEMU's default has 32768)
ZERO_ENTRY = np.uint64(1)


@dataclass(frozen=True, slots=True)
class Header:
    """Offsets and sizes in bytes; table_clusters counts clusters."""

    cluster: int
    table_clusters: int
    header_clusters: int
    features: int
    l1_offset: int
    size: int
    backing_offset: int
    backing_size: int

    @property
    def table_bytes(self) -> int:
        return self.table_clusters * self.cluster

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 that can be used: all of them, or as many as a disk with a single L2 has clusters."""
        return min(self.table_bytes // 8, -(-self.size // self.cluster) or 1)

    @property
    def l1_entries(self) -> int:
        return -(-self.size // (self.cluster * self.l2_entries))


def read_header(reader: Reader, offset: int) -> Header:
    """The header at `offset` of the reader, or Damaged with the first value that cannot be."""
    block = reader.read(offset, HEADER_LENGTH)
    if len(block) < HEADER_LENGTH or reader.missing(offset, HEADER_LENGTH):
        raise Damaged("QED header is not there", offset=offset)
    magic, cluster, table, header, features, _, _, l1, size, backing, backing_size = struct.unpack(
        "<4sIIIQQQQQII", block
    )
    if magic != SIGNATURES[0].magic:
        raise Damaged("not a QED header", offset=offset)
    if not (MIN_CLUSTER <= cluster <= MAX_CLUSTER and cluster & (cluster - 1) == 0):
        raise Damaged("QED header", offset=offset, field="cluster_size", value=cluster, bound="2^12 to 2^26")
    h = Header(cluster, table, header, features, l1, size, backing, backing_size)
    span = cluster * (table * cluster // 8) ** 2
    rules = [
        ("table_size", table, table in TABLE_SIZES, "1, 2, 4, 8 or 16"),
        ("header_size", header, 1 <= header and header * cluster <= OUR_MAX_HEADER, "1 cluster or more"),
        ("features", features, features & ~(BACKING | NEED_CHECK | BACKING_RAW) == 0, "bits 0 to 2"),
        ("l1_table_offset", l1, l1 % cluster == 0 and header * cluster <= l1 < FORMAT_MAX_OFFSET, "a cluster"),
        ("image_size", size, size % 512 == 0 and size <= min(span, FORMAT_MAX_OFFSET), "what the tables span"),
        ("backing_filename_size", backing_size, not features & BACKING or (0 < backing_size <= FORMAT_MAX_NAME
         and HEADER_LENGTH <= backing and backing + backing_size <= header * cluster), "a name in the header"),
    ]
    for name, value, ok, bound in rules:
        if not ok:
            raise Damaged("QED header", offset=offset, field=name, value=value, bound=bound)
    return h


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A header whose every field is in bounds."""
    try:
        h = read_header(reader, offset)
    except Damaged:
        return None
    return Evidence(KIND, offset, HEADER_LENGTH, container_offset=0, value=h.size)


def _parse(h: Header, words: U64) -> Cells:
    """L2 entries: 0 free, 1 zero, else a cluster's file offset."""
    zero = words == ZERO_ENTRY
    illegal = ~zero & ((words & np.uint64(h.cluster - 1) != 0) | (words >= np.uint64(FORMAT_MAX_OFFSET)))
    named = ~zero & ~illegal & (words > 0)
    state = np.where(named, DATA, np.where(zero, HOLE, UNALLOCATED)).astype(np.uint8)
    host = np.where(named, words, 0).astype(np.int64)
    host[~named] = -1
    return Cells(state, host, np.full(host.shape, h.cluster, np.int64), np.full(host.shape, PLAIN, np.uint8), illegal)


def open_container(reader: Reader) -> Container:
    """Reads the L1 and every L2; a lost table becomes LOST runs."""
    h = read_header(reader, 0)
    if max(h.l1_entries, h.l2_entries) > OUR_MAX_ENTRIES:
        raise Damaged("QED tables", field="entries of a table", value=max(h.l1_entries, h.l2_entries),
                      bound=f"at most {OUR_MAX_ENTRIES}")
    head = h.header_clusters * h.cluster
    fixed = Ranges.of([0, h.l1_offset], [head, h.table_bytes])
    tables = walk(reader, Plan(h.size, h.cluster, h.l1_offset, h.l1_entries, h.table_bytes, h.l2_entries, fixed, "<u8",
                               lambda words: (words & np.uint64(h.cluster - 1) != 0)
                               | (words >= np.uint64(FORMAT_MAX_OFFSET)), lambda words: _parse(h, words)))
    metadata, l2 = tables.metadata, tables.l2
    plain = np.unique(tables.found.plain)
    end = max(int(metadata.end[-1]), int(plain.max(initial=0)) + (h.cluster if len(plain) else 0))
    named = int((metadata.end - metadata.start).sum()) + len(plain) * h.cluster
    full_file = named == end and tables.whole
    grade = PROVEN if full_file else SUPPORTED
    container = Container(
        "qed", "qed", end, [GuestDisk(h.size, tables.guest)], system="QEMU/KVM", cluster=h.cluster,
        size_exact=full_file, checks=[
            Check("qed.l1-read", bool(tables.known.all()),
                  f"{int((~tables.known).sum())} L1 entries are missing", False),
            Check("qed.every-cluster-once", named == end, f"{end - named} bytes that nothing names",
                  tables.whole or bool(tables.tally.illegal + tables.tally.outside + tables.tally.twice)),
            Check("qed.closed", not h.features & NEED_CHECK, grave=False), *tables.tally.checks("qed")],
        regions=[*regions("qed.header", [0], [head], SUPPORTED),
                 # entries behind the disk's end are read by nobody: what lies there proves nothing
                 *regions("qed.l1", [h.l1_offset], [8 * h.l1_entries], grade),
                 *regions("qed.l2", l2, np.full(len(l2), 8 * h.l2_entries), grade)],
    )
    if h.features & BACKING:
        _backing(reader, h, container)
    return container


def _backing(reader: Reader, h: Header, container: Container) -> None:
    """The parent by name, and the patches that keep every program from opening it."""
    name = show_name(reader.read(h.backing_offset, h.backing_size))
    container.parent = ParentLink(None, name or None, {"format": "raw"} if h.features & BACKING_RAW else {})
    container.detail["backing"] = name
    features = h.features & ~(BACKING | BACKING_RAW)
    container.patches = [Patch(16, features.to_bytes(8, "little"), "reference"), Patch(56, bytes(8), "reference"),
                         Patch(h.backing_offset, bytes(h.backing_size), "reference")]


def wants(reader: Reader) -> list[Want]:
    """Tables that are not in their place."""
    try:
        h = read_header(reader, 0)
    except Damaged:
        return []
    legal = clusters(h.cluster, h.header_clusters * h.cluster, h.size + h.size // 8 + OUR_SLACK)
    return table_wants(reader, Shape("qed", "<u8", h.l1_offset, 8 * h.l1_entries, h.table_bytes, 8 * h.l2_entries,
                                     legal, legal))


FORMAT = Format(name="qed", extension="qed", signatures=SIGNATURES, open=open_container, confirm=confirm,
                qemu_name="qed", wants=wants, shapes=lambda blocks, where: plain_tables(blocks, where, "<u8", QED),
                rows=plain_rows("<u8"),
                rebuild=lambda reader, clue: rebuild_qed(reader, clue, open_container), stow=stow_qed)
