"""Btrfs: superblocks that state their own physical place under a checksum, at 64 KiB, 64 MiB and 256 GiB.

Source: Btrfs documentation "On-disk format"; Linux include/uapi/linux/btrfs_tree.h. Seen: mkfs.btrfs 6.2 with crc32c,
xxhash, sha256 and blake2. Little-endian. Tree nodes begin with a checksum and a file system's own id: they have no
fixed magic that a sweep could look for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import xxhash

from ..checksums import crc32c
from ..model import Begin, Evidence, GuestKind, Reader, Signature, Volume
from ._fields import label, le16, le32, le64, power_of_two, uuid

KIND = "btrfs.superblock"
MAGIC, MAGIC_AT = b"_BHRfS_M", 0x40
SIZE = 4096
PLACES = (64 << 10, 64 << 20, 256 << 30)  # bytenr of the copies
# bytenr, 0x30 bytes from the superblock's start, is one of PLACES: no other bit than theirs is set
SIGNATURES = (Signature(MAGIC, KIND, at=PLACES[0] + MAGIC_AT,
                        also=(PLACES[0] + 0x30, (~sum(PLACES) & (1 << 64) - 1).to_bytes(8, "little"), bytes(8))),)

OUR_MAX_SIZE = 1 << 60


@dataclass(frozen=True, slots=True)
class _Super:
    place: int
    uuid: str
    generation: int
    devices: int
    size: int  # bytes of this device
    name: str
    log: bool  # a log tree waits for replay


def _sum(kind: int, data: bytes) -> bytes | None:
    """The checksum of csum_type `kind`, as many bytes as it has."""
    if kind == 0:
        return crc32c(data).to_bytes(4, "little")
    if kind == 1:
        return xxhash.xxh64(data).intdigest().to_bytes(8, "little")
    if kind == 2:
        return hashlib.sha256(data, usedforsecurity=False).digest()
    if kind == 3:
        return hashlib.blake2b(data, digest_size=32).digest()
    return None


def _parse(data: bytes) -> _Super | None:
    if len(data) < SIZE or data[MAGIC_AT : MAGIC_AT + 8] != MAGIC:
        return None
    check = _sum(le16(data, 0xC4), data[32:])
    if check is None or data[: len(check)] != check:
        return None
    place, size = le64(data, 0x30), le64(data, 0xD1)
    if place not in PLACES or not 0 < size <= OUR_MAX_SIZE:
        return None
    if not power_of_two(le32(data, 0x90), 4096, 65536) or not power_of_two(le32(data, 0x94), 4096, 65536):
        return None
    return _Super(place, uuid(data[0x20:0x30]), le64(data, 0x48), le64(data, 0x88), size, label(data[0x12B:0x22B]),
                  le64(data, 0x60) != 0)


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A superblock under its checksum: the first pins the volume's start, the others their own place in it."""
    at = offset + PLACES[0]
    s = _parse(reader.read(at, SIZE))
    if s is None:
        return None
    if s.place == PLACES[0]:
        return Evidence(KIND, offset, PLACES[0] + SIZE, volume_offset=0, identity=s.uuid, value=s.size)
    return Evidence(KIND, at, SIZE, volume_offset=s.place, identity=s.uuid, value=s.size)


def begin(reader: Reader, offset: int) -> Begin | None:
    """What lies up to the first superblock's end, by that, or by another one that takes its place: they differ in where
    they say that they lie, and so in their checksum.
    """
    first = reader.read(offset, PLACES[0] + SIZE)
    s = _parse(first[PLACES[0] :])
    if s is not None and s.place == PLACES[0]:
        return Begin(first)
    copy = first[:SIZE]
    if _parse(copy) is None:
        return None
    body = copy[32:0x30] + PLACES[0].to_bytes(8, "little") + copy[0x38:]
    check = _sum(le16(copy, 0xC4), body) or b""
    return Begin(bytes(PLACES[0]) + check + copy[len(check) : 32] + body)


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The volume at `offset`, from the newest of its superblocks."""
    found = {place: s for place in PLACES
             if place + SIZE <= limit and (s := _parse(reader.read(offset + place, SIZE))) and s.place == place}
    if not found:
        return None
    newest = max(found.values(), key=lambda s: s.generation)
    bad: list[str] = []
    for place in PLACES:
        if place + SIZE > min(limit, newest.size):
            break
        copy = found.get(place)
        if copy is None or copy.uuid != newest.uuid:
            bad.append(f"superblock at {place:#x} lost")
        elif copy.generation != newest.generation:
            bad.append(f"superblock at {place:#x} is older")
    if newest.size > limit:
        bad.append("larger than the space it has")
    notes = ["log tree not replayed"] if newest.log else []
    if newest.devices > 1:
        notes.append(f"one of {newest.devices} devices")
    return Volume("btrfs", offset, newest.size, newest.name, newest.uuid, not bad, "; ".join(bad + notes))


GUEST = GuestKind("btrfs", SIGNATURES, probe, confirm, begin=begin,
                  types=frozenset(("Linux root (x86-64)", "Linux boot")))
