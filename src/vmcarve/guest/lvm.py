"""LVM2 physical volumes: a label that states its own sector, and metadata text, both under CRCs.

Source: LVM2 lib/label/label.h, lib/format_text/layout.h. Seen: pvcreate and vgcreate of LVM2 2.03.16. Little-endian.
The CRC is CRC-32 from 0xF597A6CF without a final inversion.
"""

from __future__ import annotations

import re
import zlib

from ..model import Evidence, GuestKind, Reader, Signature, Volume
from ._fields import le32, le64, whole

KIND = "lvm.label"
MAGIC, TYPE = b"LABELONE", b"LVM2 001"
SECTOR = 512
USUAL_SECTOR = 1
LABEL_SECTORS = 4  # the label is in one of the first
TYPE_AT = 24
SIGNATURES = (Signature(MAGIC, KIND, at=USUAL_SECTOR * SECTOR,
                        also=(USUAL_SECTOR * SECTOR + TYPE_AT, b"\xff" * len(TYPE), TYPE)),)
MDA_MAGIC = b" LVM2 x[5A%r0N*>"
INITIAL = 0xF597A6CF

OUR_MAX_TEXT = 4 << 20  # bytes of metadata text
OUR_MAX_SIZE = 1 << 60
OUR_MAX_VOLUMES = 64  # logical volumes that are named

_SECTION = re.compile(r"([A-Za-z0-9+_.-]{1,128})\s*\{")


def _crc(data: bytes) -> int:
    return zlib.crc32(data, INITIAL ^ 0xFFFF_FFFF) ^ 0xFFFF_FFFF


def _label(reader: Reader, offset: int) -> bytes | None:
    """The label sector at `offset` when its CRC agrees and its sector number is possible."""
    data = reader.read(offset, SECTOR)
    if len(data) < SECTOR or data[:8] != MAGIC or not data[TYPE_AT:].startswith(TYPE):
        return None
    if le64(data, 8) >= LABEL_SECTORS:
        return None
    if _crc(data[20:]) != le32(data, 16) or not 32 <= le32(data, 20) <= SECTOR - 40:
        return None
    return data


def _uuid(text: bytes) -> str:
    """32 characters in the groups in which LVM prints them."""
    t = "".join(chr(c) if 0x30 <= c < 0x7B else "?" for c in text[:32])
    return "-".join((t[:6], t[6:10], t[10:14], t[14:18], t[18:22], t[22:26], t[26:32]))


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A label under its CRC pins itself by its sector number: the usual one gives the volume's start."""
    at = offset + USUAL_SECTOR * SECTOR
    data = _label(reader, at)
    if data is None:
        return None
    header = le32(data, 20)
    place = le64(data, 8) * SECTOR
    identity, size = _uuid(data[header:]), le64(data, header + 32)
    if place == USUAL_SECTOR * SECTOR:
        return Evidence(KIND, offset, place + SECTOR, volume_offset=0, identity=identity, value=min(size, OUR_MAX_SIZE))
    return Evidence(KIND, at, SECTOR, volume_offset=place, identity=identity, value=min(size, OUR_MAX_SIZE))


def _areas(data: bytes, header: int) -> list[tuple[int, int]]:
    """(offset, size) of the metadata areas: the second of the two lists behind the header, each ended by zeros."""
    lists: list[list[tuple[int, int]]] = [[]]
    for at in range(header + 40, SECTOR - 15, 16):
        start, size = le64(data, at), le64(data, at + 8)
        if start == 0:
            lists.append([])
            if len(lists) > 2:
                break
            continue
        lists[-1].append((start, size))
    return lists[1] if len(lists) > 1 else []


def _group(reader: Reader, offset: int, areas: list[tuple[int, int]]) -> tuple[str, list[str]] | None:
    """Name of the volume group and its logical volumes, from a metadata area under its CRCs.

    None when no area can be believed; an empty name when the volume is in no group.
    """
    for start, size in areas[:4]:
        head = whole(reader, offset + start, SECTOR)
        if head is None or head[4:20] != MDA_MAGIC or le64(head, 24) != start or _crc(head[4:]) != le32(head, 0):
            continue
        at, length = le64(head, 40), le64(head, 48)
        if at == 0:
            return "", []
        if not SECTOR <= at < size or not 0 < length <= min(OUR_MAX_TEXT, size - SECTOR):
            continue
        text = reader.read(offset + start + at, min(length, size - at))
        text += reader.read(offset + start + SECTOR, length - len(text))  # the area is a ring
        if _crc(text) != le32(head, 56):
            continue
        return _names(text.split(b"\0", 1)[0].decode("ascii", "replace"))
    return None


def _names(text: str) -> tuple[str, list[str]]:
    """Group and logical volumes out of the text form of the metadata (on the disk it is not indented)."""
    group, volumes = "", list[str]()
    path: list[str] = []
    for line in text.splitlines():
        line = line.strip()
        opens = _SECTION.match(line)
        if opens:
            path.append(opens[1])
            group = group or opens[1]
            if len(path) == 3 and path[1] == "logical_volumes" and len(volumes) < OUR_MAX_VOLUMES:
                volumes.append(opens[1])
        elif line.startswith("}") and path:
            path.pop()
    return group, volumes


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The physical volume at `offset`; the label may be in any of its first four sectors."""
    for sector in range(LABEL_SECTORS):
        data = _label(reader, offset + sector * SECTOR)
        if data is None or le64(data, 8) != sector:
            continue
        header = le32(data, 20)
        size = le64(data, header + 32)
        if not 0 < size <= OUR_MAX_SIZE:
            continue
        out = Volume("lvm", offset, size, uuid=_uuid(data[header:]))
        told = _group(reader, offset, _areas(data, header))
        bad = [] if told is not None else ["metadata lost"]
        if size > limit:
            bad.append("larger than the space it has")
        notes: list[str] = []
        if told is not None and told[0]:
            out.label = told[0]
            notes = [f"logical volumes: {', '.join(told[1])}" if told[1] else "no logical volumes"]
        out.consistent, out.detail = not bad, "; ".join(bad + notes)
        return out
    return None


GUEST = GuestKind("lvm", SIGNATURES, probe, confirm, types=frozenset(("Linux LVM",)))
