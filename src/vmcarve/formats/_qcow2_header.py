"""The qcow2 header and its extensions, fully bounded before anything is believed.

Source: QEMU docs/interop/qcow2.txt. "Format" limits are QEMU's own refusals (block/qcow2.h), all checked here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ..errors import Damaged
from ..model import SECTOR, Patch, Reader
from ._qcow2_tables import OUR_MAX_DISK, show_name

MAGIC = b"QFI\xfb"
V2_LENGTH = 72  # bytes of a version 2 header
V3_LENGTH = 104  # least bytes of a version 3 header; QEMU 7.2 writes 112 (seen)
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
EXTENDED_MIN_CLUSTER_BITS = 14  # a subcluster is at least one sector
FORMAT_MAX_L1_BYTES = 32 << 20
FORMAT_MAX_REFTABLE_BYTES = 8 << 20
FORMAT_MAX_SNAPSHOTS = 65536
FORMAT_MAX_NAME = 1023
FORMAT_MAX_OFFSET = 1 << 56  # table entries hold bits 9 to 55
FORMAT_MAX_REFCOUNT_ORDER = 6
OUR_MAX_EXTENSIONS = 64  # QEMU writes at most five
OUR_MAX_LUKS = 64 << 20  # bytes of a LUKS header: 2 MB in LUKS1 (seen), 16 MB in LUKS2

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = 1, 2, 4, 8, 16  # incompatible features
BITMAPS_VALID, DATA_FILE_RAW = 1, 2  # autoclear features

EXT_END, EXT_BACKING_FORMAT, EXT_FEATURES = 0, 0xE2792ACA, 0x6803F857
EXT_DATA_FILE, EXT_CRYPTO, EXT_BITMAPS = 0x44415441, 0x0537BE77, 0x23852875


@dataclass(slots=True)
class Header:
    """The header's values; offsets and sizes in bytes unless named otherwise.

    names: file offset and bytes of the texts that name other files, by "backing", "backing-format", "data-file".
    end: end of the last extension or of the backing name.
    """

    version: int
    cluster_bits: int
    size: int
    crypt: int
    l1_entries: int
    l1_offset: int
    reftable_offset: int
    reftable_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    length: int = V2_LENGTH
    compression: int = 0
    backing_offset: int = 0
    backing_size: int = 0
    names: dict[str, tuple[int, bytes]] = field(default_factory=dict[str, tuple[int, bytes]])
    luks: tuple[int, int] | None = None  # file offset and length of the LUKS header
    bitmaps: tuple[int, int, int] | None = None  # count, directory size, directory file offset
    end: int = V2_LENGTH

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    @property
    def extended(self) -> bool:
        return bool(self.incompatible & EXTENDED_L2)

    @property
    def l2_entries(self) -> int:
        """Guest clusters per L2 table: entries take 8 bytes, 16 with extended L2."""
        return self.cluster // (16 if self.extended else 8)

    @property
    def l1_needed(self) -> int:
        """L1 entries that the disk itself takes; more of them hold VM state."""
        return -(-self.size // (self.cluster * self.l2_entries))


def read_header(reader: Reader, offset: int) -> Header:
    """The header at `offset` of the reader, or Damaged with the first value that cannot be."""
    block = reader.read(offset, SECTOR)
    if len(block) < 112 or reader.missing(offset, 112):
        raise Damaged("qcow2 header is not there", offset=offset)
    if block[:4] != MAGIC:
        raise Damaged("not a qcow2 header", offset=offset)
    version, backing, backing_size, bits, size, crypt, l1_entries, l1, reftable, clusters, count, snapshots = (
        struct.unpack_from(">IQIIQIIQQIIQ", block, 4)
    )
    if version not in (2, 3):
        raise Damaged("qcow2 header", offset=offset, field="version", value=version, bound="2 or 3")
    header = Header(version, bits, size, crypt, l1_entries, l1, reftable, clusters, count, snapshots,
                    backing_offset=backing, backing_size=backing_size)
    if version == 3:
        (header.incompatible, header.compatible, header.autoclear, header.refcount_order, header.length
         ) = struct.unpack_from(">QQQII", block, 72)
        header.compression = block[104] if header.length > 104 else 0
    for name, value, ok, bound in _rules(header):
        if not ok:
            raise Damaged("qcow2 header", offset=offset, field=name, value=value, bound=bound)
    _read_extensions(reader, offset, header)
    return header


def _rules(h: Header) -> list[tuple[str, int, bool, str]]:
    """field, value, whether it may be, what it must be."""
    if not MIN_CLUSTER_BITS <= h.cluster_bits <= MAX_CLUSTER_BITS:  # before anything is shifted by it
        return [("cluster_bits", h.cluster_bits, False, "9 to 21")]
    mask = h.cluster - 1
    known = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2
    return [
        ("size", h.size, h.size < OUR_MAX_DISK, "below 2^62"),
        ("incompatible_features", h.incompatible, h.incompatible & ~known == 0, "bits 0 to 4"),
        ("cluster_bits", h.cluster_bits, not h.extended or h.cluster_bits >= EXTENDED_MIN_CLUSTER_BITS,
         "14 or more with extended L2"),
        ("crypt_method", h.crypt, h.crypt <= 2, "0, 1 or 2"),
        ("l1_size", h.l1_entries, h.l1_entries * 8 <= FORMAT_MAX_L1_BYTES, "at most 32 MiB"),
        ("l1_size", h.l1_entries, h.l1_entries >= h.l1_needed, f"{h.l1_needed} or more"),
        ("l1_table_offset", h.l1_offset, h.l1_offset & mask == 0 and h.l1_offset < FORMAT_MAX_OFFSET
         and (h.l1_offset > 0 or h.l1_entries == 0), "a cluster behind the header"),
        ("refcount_table_offset", h.reftable_offset, h.reftable_offset & mask == 0
         and h.cluster <= h.reftable_offset < FORMAT_MAX_OFFSET and h.reftable_offset != h.l1_offset, "a cluster"),
        ("refcount_table_clusters", h.reftable_clusters,
         1 <= h.reftable_clusters << h.cluster_bits <= max(FORMAT_MAX_REFTABLE_BYTES, h.cluster), "1 to 8 MiB"),
        ("nb_snapshots", h.snapshots, h.snapshots <= FORMAT_MAX_SNAPSHOTS, "at most 65536"),
        ("snapshots_offset", h.snapshots_offset, h.snapshots == 0 or (h.snapshots_offset & mask == 0
         and h.cluster <= h.snapshots_offset < FORMAT_MAX_OFFSET), "a cluster"),
        ("refcount_order", h.refcount_order, h.refcount_order <= FORMAT_MAX_REFCOUNT_ORDER, "0 to 6"),
        ("header_length", h.length, h.version == 2 or (h.length % 8 == 0 and V3_LENGTH <= h.length <= h.cluster),
         "104 to one cluster, a multiple of 8"),
        ("compression_type", h.compression, h.compression <= 1 and bool(h.compression)
         == bool(h.incompatible & COMPRESSION), "0, or 1 with incompatible bit 3"),
        ("backing_file_size", h.backing_size, h.backing_offset == 0 or (h.backing_size <= FORMAT_MAX_NAME
         and h.length <= h.backing_offset and h.backing_offset + h.backing_size <= h.cluster),
         "a name inside the first cluster"),
    ]


def _read_extensions(reader: Reader, offset: int, h: Header) -> None:
    """Walks the extensions; they end at type 0, at the backing name or at the first cluster's end."""
    stop = h.backing_offset or h.cluster
    at = h.length
    for _ in range(OUR_MAX_EXTENSIONS):
        if at + 8 > stop or reader.missing(offset + at, 8):
            break
        kind, length = struct.unpack(">II", reader.read(offset + at, 8))
        if kind == EXT_END:
            at += 8
            break
        if length > stop - at - 8:
            raise Damaged("qcow2 header extension", offset=offset + at, field="length", value=length,
                          bound=f"at most {stop - at - 8}")
        _take_extension(reader, offset, h, kind, at + 8, length)
        at += 8 + -(-length // 8) * 8
    h.end = min(at, stop)
    if h.backing_offset:
        name = reader.read(offset + h.backing_offset, h.backing_size)
        h.names["backing"] = (h.backing_offset, name.ljust(h.backing_size, b"\0"))
        h.end = max(h.end, h.backing_offset + h.backing_size)


def _take_extension(reader: Reader, offset: int, h: Header, kind: int, at: int, length: int) -> None:
    names = {EXT_BACKING_FORMAT: "backing-format", EXT_DATA_FILE: "data-file"}
    if kind in names and length <= FORMAT_MAX_NAME:
        h.names[names[kind]] = (at, reader.read(offset + at, length).ljust(length, b"\0"))
    elif kind == EXT_CRYPTO and length >= 16:
        start, size = struct.unpack(">QQ", reader.read(offset + at, 16).ljust(16, b"\0"))
        if start % h.cluster == 0 and 0 < start < FORMAT_MAX_OFFSET and 0 < size <= OUR_MAX_LUKS:
            h.luks = (start, size)
    elif kind == EXT_BITMAPS and length >= 24:
        count, _, size, start = struct.unpack(">IIQQ", reader.read(offset + at, 24).ljust(24, b"\0"))
        if start % h.cluster == 0 and 0 < start < FORMAT_MAX_OFFSET and size < FORMAT_MAX_OFFSET:
            h.bitmaps = (count, size, start)


def reference_patches(h: Header) -> list[Patch]:
    """Empties every name of another file, so that no program follows it.

    The extensions keep their type and length, because a zeroed type would end the list before the LUKS extension.
    """
    patches = [Patch(at, bytes(len(raw)), "reference") for at, raw in h.names.values() if raw]
    if h.backing_offset:
        patches.append(Patch(8, bytes(12), "reference"))
    return patches


def describe(h: Header) -> dict[str, str]:
    """What `show` tells of the header."""
    detail = {f"{key}": show_name(raw) for key, (_, raw) in h.names.items()}
    detail["refcount-bits"] = str(1 << h.refcount_order)
    if h.crypt:
        detail["encryption"] = "aes" if h.crypt == 1 else "luks"
        detail["encrypted"] = "yes"
    flags = [name for bit, name in ((DIRTY, "dirty"), (CORRUPT, "corrupt")) if h.incompatible & bit]
    if flags:
        detail["marked"] = ", ".join(flags)
    return detail
