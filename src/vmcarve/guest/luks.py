"""LUKS1 and LUKS2 headers: what is behind them is encrypted, so all that can be told is where and how large.

Source: LUKS1 on-disk format 1.2.3; LUKS2 on-disk format 1.1 (big-endian; the JSON area follows the binary header).
Seen: cryptsetup 2.6.1.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from ..model import Evidence, GuestKind, Reader, Signature, Volume
from ._fields import be16, be32, be64, label, power_of_two

HEADER, SECOND = "luks.header", "luks.second-header"
MAGIC, SECOND_MAGIC = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
SIGNATURES = (Signature(MAGIC, HEADER, also=(6, b"\xff\xfc", b"\0\0")),  # versions 1 and 2
              Signature(SECOND_MAGIC, SECOND, also=(6, b"\xff\xff", b"\0\2")))
SLOTS, SLOT_AT, SLOT_SIZE = 8, 208, 48
SLOT_ON, SLOT_OFF = 0x00AC71F3, 0x0000DEAD
BINARY = 4096  # bytes of a LUKS2 header before its JSON
HEADER_SIZES = (16 << 10, 4 << 20)  # of LUKS2, powers of two
HASHES = ("sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "whirlpool", "sm3", "stribog256", "stribog512")
DIGESTS = ("sha1", "sha256", "sha512")

_CIPHER = re.compile(r"[a-z0-9_]{2,30}\Z")
_SEGMENT = re.compile(rb'"segments"\s*:\s*\{\s*"0"\s*:\s*\{([^{}]{0,2000})\}')
_NUMBER = re.compile(rb'"(offset|size)"\s*:\s*"(\d{1,19}|dynamic)"')


@dataclass(frozen=True, slots=True)
class _Header:
    """start: of this header in the volume; payload: first encrypted byte; size: of the payload, 0 when to the end."""

    version: int
    uuid: str
    name: str
    start: int
    header_size: int
    payload: int
    size: int
    cipher: str


def _parse(reader: Reader, offset: int) -> _Header | None:
    data = reader.read(offset, 1024)
    if len(data) < 1024 or data[:6] not in (MAGIC, SECOND_MAGIC):
        return None
    version = be16(data, 6)
    if version == 1 and data[:6] == MAGIC:
        return _first_version(data)
    return _second_version(reader, offset, data) if version == 2 else None


def _first_version(data: bytes) -> _Header | None:
    """LUKS1 has no checksum: names must be known words, and eight key slots must look like key slots."""
    cipher, mode, digest = label(data[8:40]), label(data[40:72]), label(data[72:104])
    payload, key = be32(data, 104) * 512, be32(data, 108)
    if not _CIPHER.match(cipher) or digest not in HASHES or not mode or not 8 <= key <= 512 or key % 8:
        return None
    for at in range(SLOT_AT, SLOT_AT + SLOTS * SLOT_SIZE, SLOT_SIZE):
        if be32(data, at) not in (SLOT_ON, SLOT_OFF) or not 0 < be32(data, at + 44) <= 1 << 16:
            return None
    name = label(data[168:208])
    return _Header(1, name, "", 0, 592, payload, 0, f"{cipher}-{mode}") if len(name) == 36 else None


def _second_version(reader: Reader, offset: int, data: bytes) -> _Header | None:
    size, algorithm = be64(data, 8), label(data[72:104])
    if not power_of_two(size, *HEADER_SIZES) or algorithm not in DIGESTS:
        return None
    whole = reader.read(offset, size)
    digest = hashlib.new(algorithm, whole[:448] + bytes(64) + whole[512:], usedforsecurity=False).digest()
    if len(whole) < size or whole[448 : 448 + len(digest)] != digest:
        return None
    start = be64(data, 256)
    if start != (0 if data[:6] == MAGIC else size):
        return None
    segment = _SEGMENT.search(whole, BINARY)
    numbers = dict(_NUMBER.findall(segment[1])) if segment else {}
    cipher = re.search(rb'"encryption"\s*:\s*"([a-z0-9_:.-]{1,40})"', segment[1]) if segment else None
    place, length = numbers.get(b"offset", b"0"), numbers.get(b"size", b"dynamic")
    return _Header(2, label(data[168:208]), label(data[24:72]), start, size, int(place) if place != b"dynamic" else 0,
                   int(length) if length != b"dynamic" else 0, cipher[1].decode() if cipher else "")


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """LUKS2 headers state their own offset under a hash; a LUKS1 header lies at the volume's start."""
    h = _parse(reader, offset)
    if h is None:
        return None
    return Evidence(signature.kind, offset, h.header_size, volume_offset=h.start, identity=h.uuid,
                    value=h.payload + h.size, confidence=1.0 if h.version == 2 else 0.8)


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The volume at `offset`; a LUKS2 volume also from its second header. size: up to the payload's start at least, as
    most headers leave open where it ends."""
    h = _parse(reader, offset)
    bad: list[str] = []
    if h is None or h.start:
        sizes = [HEADER_SIZES[0] << i for i in range((HEADER_SIZES[1] // HEADER_SIZES[0]).bit_length())]
        seconds = (_parse(reader, offset + size) for size in sizes if size < limit)
        h = next((s for s in seconds if s is not None and s.start), None)
        if h is None:
            return None
        bad.append("first header lost, read from the second")
    elif h.version == 2 and _parse(reader, offset + h.header_size) is None:
        bad.append("second header lost")
    if h.payload >= limit or h.payload + h.size > limit:
        bad.append("larger than the space it has")
    # a LUKS1 header has no copy and no checksum: nothing to be consistent with
    consistent = None if h.version == 1 and not bad else not bad
    return Volume(f"luks{h.version}", offset, h.payload + h.size, h.name, h.uuid, consistent,
                  "; ".join([*bad, f"encrypted with {h.cipher}" if h.cipher else "encrypted"]))


GUEST = GuestKind("luks", SIGNATURES, probe, confirm)
