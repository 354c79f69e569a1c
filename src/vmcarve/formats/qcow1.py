"""QEMU qcow, version 1: a header, an L1 table, L2 tables; no refcounts, nothing is ever freed.

Big endian, no checksums. Source: QEMU block/qcow.c; "Seen" means checked on files of qemu-img 7.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import (
    DATA,
    DEFLATE,
    GUESSED,
    PLAIN,
    SECTOR,
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
from ._append_shapes import QCOW1, rebuild_qcow1, stow_qcow1
from ._first_level import plain_rows, plain_tables
from ._qcow2_tables import OUR_MAX_DISK, U64, Cells, Ranges, regions, show_name, without_missing
from ._two_level_wants import Shape, clusters
from ._two_level_wants import wants as table_wants

KIND = "qcow1.header"
# padding, and an encryption of 0 or 1
SIGNATURES = (Signature(b"QFI\xfb\0\0\0\x01", KIND, also=(34, b"\xff" * 5 + b"\xfe", bytes(6))),)

HEADER_LENGTH = 48
FORMAT_MAX_NAME = 1023
OUR_MAX_L1_BYTES = 32 << 20  # QEMU allows 2 GiB; 4 Mi entries are 8 TiB at the default 2 MiB each
OUR_MAX_L1_OFFSET = 1 << 20  # QEMU writes the L1 right behind the backing name, Xen's tapdisk at 4 KiB
OUR_SLACK = 64 << 20  # bytes of tables that a container may have beyond its disk
COMPRESSED = np.uint64(1 << 63)


@dataclass(frozen=True, slots=True)
class Header:
    """Offsets and sizes in bytes; `entries` counts L1 entries."""

    backing_offset: int
    backing_size: int
    size: int
    cluster_bits: int
    l2_bits: int
    crypt: int
    l1_offset: int

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def entries(self) -> int:
        return -(-self.size >> (self.cluster_bits + self.l2_bits))


def read_header(reader: Reader, offset: int) -> Header:
    """The header at `offset` of the reader, or Damaged with the first value that cannot be."""
    block = reader.read(offset, HEADER_LENGTH)
    if len(block) < HEADER_LENGTH or reader.missing(offset, HEADER_LENGTH):
        raise Damaged("qcow header is not there", offset=offset)
    magic, backing, backing_size, _, size, cluster_bits, l2_bits, pad, crypt, l1 = struct.unpack(
        ">8sQIIQBBHIQ", block
    )
    if magic != SIGNATURES[0].magic:
        raise Damaged("not a qcow version 1 header", offset=offset)
    h = Header(backing, backing_size, size, cluster_bits, l2_bits, crypt, l1)
    rules = [
        ("size", size, 1 < size < OUR_MAX_DISK, "2 to 2^62"),
        ("cluster_bits", cluster_bits, 9 <= cluster_bits <= 16, "9 to 16"),
        ("l2_bits", l2_bits, 6 <= l2_bits <= 13, "6 to 13"),
        ("padding", pad, pad == 0, "0"),
        ("crypt_method", crypt, crypt <= 1, "0 or 1"),
        ("size", size, h.entries * 8 <= OUR_MAX_L1_BYTES, "within 32 MiB of L1"),
        ("l1_table_offset", l1, l1 % 8 == 0 and HEADER_LENGTH <= l1 <= OUR_MAX_L1_OFFSET, "behind the header"),
        ("backing_file_size", backing_size, backing == 0 or (backing_size <= FORMAT_MAX_NAME
         and HEADER_LENGTH <= backing and backing + backing_size <= l1), "a name before the L1"),
    ]
    for name, value, ok, bound in rules:
        if not ok:
            raise Damaged("qcow header", offset=offset, field=name, value=value, bound=bound)
    return h


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A header whose every field is in bounds."""
    try:
        h = read_header(reader, offset)
    except Damaged:
        return None
    return Evidence(KIND, offset, HEADER_LENGTH, container_offset=0, value=h.size, confidence=0.9)


def _parse(h: Header, words: U64) -> Cells:
    """L2 entries: a cluster's file offset, or bit 63 with the stream's bytes above its offset (seen)."""
    stream = words & COMPRESSED != 0
    split = np.uint64(63 - h.cluster_bits)
    offset = (words & ((np.uint64(1) << split) - np.uint64(1))).astype(np.int64)
    size = (words >> split & np.uint64(h.cluster - 1)).astype(np.int64)
    plain = np.where(stream, 0, words).astype(np.int64)
    illegal = (~stream & (plain & (h.cluster - 1) != 0)) | (stream & ((size == 0) | (offset == 0)))
    named = stream | (plain > 0)
    state = np.where(named, DATA, UNALLOCATED).astype(np.uint8)
    host = np.where(stream, offset, np.where(plain > 0, plain, -1))
    host[illegal] = -1
    encoding = np.where(stream, DEFLATE, PLAIN).astype(np.uint8)
    return Cells(state, host, np.where(stream, size, h.cluster), encoding, illegal)


def open_container(reader: Reader) -> Container:
    """Reads the L1 and every L2; a lost table becomes LOST runs."""
    h = read_header(reader, 0)
    table_bytes = 8 << h.l2_bits
    head = [(0, HEADER_LENGTH), (h.backing_offset, h.backing_size if h.backing_offset else 0),
            (h.l1_offset, h.entries * 8)]
    fixed = Ranges.of([at for at, _ in head], [n for _, n in head])
    tables = walk(reader, Plan(h.size, h.cluster, h.l1_offset, h.entries, table_bytes, 1 << h.l2_bits, fixed, ">u8",
                               # L2s lie on cluster boundaries (seen)
                               lambda words: (words >= COMPRESSED) | (words & np.uint64(h.cluster - 1) != 0),
                               lambda words: _parse(h, words)))
    found, l2 = tables.found, tables.l2
    guest, lost = without_missing(reader, tables.guest)
    end = max([-(-h.entries * 8 // SECTOR) * SECTOR + h.l1_offset,  # the L1 is written in whole sectors (seen)
               *(l2[-1:] + table_bytes).tolist(), *(found.plain + h.cluster).max(initial=0, keepdims=True).tolist(),
               int((found.start + found.length).max(initial=0))])
    container = Container(
        "qcow1", "v1-encrypted" if h.crypt else "v1", end, [GuestDisk(h.size, guest)],
        system="QEMU/KVM", cluster=h.cluster, size_exact=tables.whole, checks=[
            Check("qcow1.l1-read", bool(tables.known.all()),
                  f"{int((~tables.known).sum())} L1 entries are missing", False),
            *tables.tally.checks("qcow1")],
        regions=[*regions("qcow1.header", [0], [h.l1_offset], SUPPORTED),
                 *regions("qcow1.l1", [h.l1_offset], [h.entries * 8], SUPPORTED),
                 *regions("qcow1.l2", l2, np.full(len(l2), table_bytes), SUPPORTED)],
    )
    if h.crypt:
        container.detail |= {"encryption": "aes", "encrypted": "yes"}
    if len(lost):
        index = lost // h.cluster
        at = tables.l1[index >> h.l2_bits] + (index & ((1 << h.l2_bits) - 1)) * 8
        container.patches += [Patch(place, bytes(8), "rebuilt", GUESSED) for place in at.tolist()]
        container.checks.append(Check("qcow1.streams-there", False, f"{len(lost)} compressed clusters are lost: their "
                                      "entries are emptied", False))
    if len(found.start):
        container.detail["compression"] = "zlib"
    if h.backing_offset:
        _backing(reader, h, container)
    return container


def _backing(reader: Reader, h: Header, container: Container) -> None:
    """The parent by name, and the patches that keep every program from opening it."""
    name = show_name(reader.read(h.backing_offset, h.backing_size))
    container.parent = ParentLink(None, name or None)
    container.detail["backing"] = name
    container.patches += [Patch(8, bytes(12), "reference"),
                          Patch(h.backing_offset, bytes(h.backing_size), "reference")]


def wants(reader: Reader) -> list[Want]:
    """Tables that are not in their place."""
    try:
        h = read_header(reader, 0)
    except Damaged:
        return []
    table_bytes = 8 << h.l2_bits
    if h.cluster < 4096 or table_bytes < 4096:
        return []
    least, most = np.uint64(h.l1_offset + 8 * h.entries), np.uint64(h.size + h.size // 4 + OUR_SLACK)
    plain = clusters(h.cluster, int(least), int(most))
    inside = (np.uint64(1) << np.uint64(63 - h.cluster_bits)) - np.uint64(1)

    def legal(words: U64) -> npt.NDArray[np.bool_]:
        at = words & inside
        return ((words & COMPRESSED != 0) & (at >= least) & (at < most)) | plain(words)

    def place(words: U64) -> U64:
        return np.where(words & COMPRESSED != 0, words & inside, words)

    used = min(table_bytes, 8 * -(-h.size // h.cluster))
    return table_wants(reader, Shape("qcow1", ">u8", h.l1_offset, 8 * h.entries, table_bytes, used, plain, legal,
                                     place))


FORMAT = Format(name="qcow1", extension="qcow", signatures=SIGNATURES, open=open_container, confirm=confirm,
                qemu_name="qcow", wants=wants, shapes=lambda blocks, where: plain_tables(blocks, where, ">u8", QCOW1),
                rows=plain_rows(">u8"),
                rebuild=lambda reader, clue: rebuild_qcow1(reader, clue, open_container), stow=stow_qcow1)
