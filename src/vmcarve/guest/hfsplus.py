"""HFS+ and HFSX: a volume header 1024 bytes from the start, and its alternate 1024 bytes before the end.

Source: Apple Technical Note TN1150, "HFS Plus Volume Format". Seen: volumes of Mac OS X 10.x. Big-endian, no checksums:
the catalog's first node, where the header says that it lies, tells the header from its alternate and from chance.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from uuid import UUID

from ..model import Begin, Evidence, GuestKind, Reader, Signature, Volume
from ._fields import be16, be32, be64, label, power_of_two, whole

HEADER, ALTERNATE = "hfsplus.header", "hfsplus.alternate"
AT = 1024  # of the header from the volume's start; of the alternate from its end
LENGTH = 512
MAGICS = (b"H+\0\4", b"HX\0\5")  # signature and version
SIGNATURES = tuple(Signature(magic, HEADER, at=AT) for magic in MAGICS)
NAMESPACE = UUID("b3e20f39-f292-11d6-97a4-00306543ecac").bytes  # Apple's, of which a volume's UUID is made
BITMAP_FORK, CATALOG_FORK = 112, 272
EXTENTS = 16  # of a fork: eight of (first block, blocks)
HEADER_NODE, LEAF_NODE = 1, 0xFF
ROOT_PARENT = 1

OUR_MAX_BLOCKS = 1 << 32


@dataclass(frozen=True, slots=True)
class _Header:
    """bitmap, catalog: (byte of the volume, bytes) of the first extent of each file."""

    kind: str
    block: int
    blocks: int
    uuid: str
    bitmap: tuple[int, int]
    catalog: tuple[int, int]

    @property
    def size(self) -> int:
        return self.block * self.blocks


def _parse(data: bytes) -> _Header | None:
    """A header whose counts and first extents agree with each other."""
    if len(data) < LENGTH or data[:4] not in MAGICS:
        return None
    block, blocks, free = be32(data, 40), be32(data, 44), be32(data, 48)
    if not power_of_two(block, 512, 1 << 20) or not 0 < blocks <= OUR_MAX_BLOCKS or free > blocks:
        return None
    extents: list[tuple[int, int]] = []
    for fork in (BITMAP_FORK, CATALOG_FORK):
        size, total, first, count = (be64(data, fork), be32(data, fork + 12), be32(data, fork + EXTENTS),
                                     be32(data, fork + EXTENTS + 4))
        if not 0 < count <= total <= blocks or first + count > blocks or not 0 < size <= total * block:
            return None
        extents.append((first * block, count * block))
    if be64(data, BITMAP_FORK) * 8 < blocks:
        return None
    named = UUID(bytes=hashlib.md5(NAMESPACE + data[104:112], usedforsecurity=False).digest(), version=3)
    return _Header("hfsplus" if data[:4] == MAGICS[0] else "hfsx", block, blocks,
                   str(named) if any(data[104:112]) else "", extents[0], extents[1])


def _node(reader: Reader, volume: int, h: _Header) -> bytes | None:
    """The catalog's header node, where it lies if the volume begins at `volume`."""
    data = whole(reader, volume + h.catalog[0], 512) if volume >= 0 else None
    if data is None or data[8] != HEADER_NODE or data[9] or be16(data, 10) != 3 or any(data[4:8]):
        return None
    return data if power_of_two(be16(data, 32), 512, 32768) else None


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A header with the catalog where it says, from the volume's start or from its end.

    Without the catalog it proves no place, and is believed for its extents alone.
    """
    at = offset + AT
    h = _parse(reader.read(at, LENGTH))
    if h is None:
        return None
    if _node(reader, offset, h) is not None:
        return Evidence(HEADER, offset, AT + LENGTH, volume_offset=0, identity=h.uuid or None, value=h.size)
    place = h.size - AT
    if _node(reader, at - place, h) is not None:
        return Evidence(ALTERNATE, at, LENGTH, volume_offset=place, identity=h.uuid or None, value=h.size)
    return Evidence(HEADER, offset, AT + LENGTH, identity=h.uuid or None, value=h.size, confidence=0.5)


def begin(reader: Reader, offset: int) -> Begin | None:
    """What the volume begins with, by the alternate header: an older state of the same."""
    for at in (offset, offset + AT):
        data = reader.read(at, LENGTH)
        h = _parse(data)
        if h is not None:
            return Begin(bytes(AT) + data, size=h.size)
    return None


def _name(reader: Reader, offset: int, h: _Header, node: bytes) -> str:
    """The volume's name: that of its root folder, in the first record of the catalog's first leaf."""
    size = be16(node, 32)
    at = be32(node, 24) * size
    leaf = whole(reader, offset + h.catalog[0] + at, size) if at + size <= h.catalog[1] else None
    if leaf is None or leaf[8] != LEAF_NODE or be32(leaf, 16) != ROOT_PARENT:
        return ""
    return label(leaf[22 : 22 + 2 * min(be16(leaf, 20), 255)], "utf-16-be")


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The volume at `offset`, by its header, or by the alternate before the end of its room."""
    h = _parse(reader.read(offset + AT, LENGTH))
    last = _parse(reader.read(offset + limit - AT, LENGTH)) if limit >= 4 * AT else None
    primary, h = h is not None, h or last
    if h is None or not primary and h.size != limit:
        return None
    volume = Volume(h.kind, offset, h.size, uuid=h.uuid)
    troubles = [] if primary else ["header lost"]
    if h.size > limit:
        troubles.append("larger than the space it has")
    node = _node(reader, offset, h)
    if node is None:
        troubles.append("no catalog where the header says")
    else:
        volume.label = _name(reader, offset, h, node)
    bitmap = whole(reader, offset + h.bitmap[0], 1)
    if bitmap is None or not bitmap[0] & 0x80:
        troubles.append("the bitmap calls the header's own block free")
    other = _parse(reader.read(offset + h.size - AT, LENGTH)) if h.size <= limit else None
    if primary and (other is None or (other.block, other.blocks, other.uuid) != (h.block, h.blocks, h.uuid)):
        troubles.append("no alternate header")
    volume.consistent, volume.detail = not troubles, "; ".join(troubles)
    return volume


GUEST = GuestKind("hfsplus", SIGNATURES, probe, confirm, begin=begin, types=frozenset(("Apple HFS+",)))
