"""UFS1 and UFS2 (FFS of the BSDs): cylinder groups that state their number, each behind a copy of the superblock.

Source: FreeBSD sys/ufs/ffs/fs.h, sys/ufs/ufs/dinode.h. Seen: makefs of NetBSD. Little-endian only: volumes of SPARC and
PowerPC machines are not looked for. No checksums: a group is believed with the copy of the superblock before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model import Begin, Evidence, GuestKind, Reader, Signature, Volume
from ._fields import label, le32, le64, power_of_two

KIND = "ufs.group"
GROUP_MAGIC = (0x00090255).to_bytes(4, "little")
SIGNATURES = (Signature(GROUP_MAGIC, KIND, at=4),)
UFS1, UFS2 = 0x00011954, 0x19540119
SUPER_LENGTH = 1376  # bytes of a superblock, its magic the last four
MAGIC_AT = 1372
PLACES = (65536, 8192, 0, 262144)  # where a superblock may lie in its volume, as FreeBSD looks for it
BEHIND = (8192, 16384, 32768, 65536)  # bytes from a copy of the superblock to its group: its own, rounded to a block

OUR_MAX_SIZE = 1 << 60
OUR_MAX_GROUPS = 16  # that a probe looks at


@dataclass(frozen=True, slots=True)
class _Super:
    """block, fragment in bytes; the other numbers are of fragments, `super_at` and `group_at` in each group."""

    magic: int
    at: int  # bytes from the volume's start to the superblock that is used
    block: int
    fragment: int
    fragments: int
    groups: int
    group: int
    super_at: int
    group_at: int
    rotation: int  # of UFS1: by how much the begin of each group's metadata moves on
    mask: int
    uuid: str
    name: str
    mounted: str

    @property
    def size(self) -> int:
        return self.fragments * self.fragment

    def place(self, group: int) -> int:
        """Bytes from the volume's start to a cylinder group."""
        turned = self.rotation * (group & ~self.mask) if self.magic == UFS1 else 0
        return (group * self.group + turned + self.group_at) * self.fragment


def _parse(data: bytes) -> _Super | None:
    """A superblock whose sizes agree with each other."""
    magic = le32(data, MAGIC_AT)
    if len(data) < SUPER_LENGTH or magic not in (UFS1, UFS2):
        return None
    block, fragment, count = le32(data, 48), le32(data, 52), le32(data, 56)
    if not power_of_two(block, 4096, 65536) or not power_of_two(fragment, 512, block) or count * fragment != block:
        return None
    fragments = le64(data, 1080) if magic == UFS2 else le32(data, 36)
    groups, group, super_at, group_at = le32(data, 44), le32(data, 188), le32(data, 8), le32(data, 12)
    if not 0 < fragments * fragment <= OUR_MAX_SIZE or not super_at < group_at < group:
        return None
    if not 0 < groups or not (groups - 1) * group < fragments <= groups * group:
        return None
    at = le64(data, 1000) if magic == UFS2 else 8192
    if at not in PLACES:
        return None
    return _Super(magic, at, block, fragment, fragments, groups, group, super_at, group_at, le32(data, 24),
                  le32(data, 28), f"{le32(data, 144):08x}{le32(data, 148):08x}" if any(data[144:152]) else "",
                  label(data[680:712]) if magic == UFS2 else "", label(data[212:680]))


def _group(data: bytes, s: _Super) -> int | None:
    """The number of the cylinder group at the start of `data`, if it is one of this volume."""
    number = le32(data, 12)
    if len(data) < 24 or data[4:8] != GROUP_MAGIC or number >= s.groups:
        return None
    room = min(s.group, s.fragments - number * s.group)
    return number if le32(data, 20) == room else None


def _before(reader: Reader, offset: int) -> tuple[_Super, int, int] | None:
    """The superblock's copy before the group at `offset`, the byte at which it lies, and the group's number."""
    head = reader.read(offset, 24)
    for distance in BEHIND:
        s = _parse(reader.read(offset - distance, SUPER_LENGTH)) if offset >= distance else None
        if s is not None and (s.group_at - s.super_at) * s.fragment == distance:
            number = _group(head, s)
            return None if number is None else (s, offset - distance, number)
    return None


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A cylinder group behind its copy of the superblock. The first group's tells where the volume begins."""
    found = _before(reader, offset)
    if found is None:
        return None
    s, _, number = found
    place = s.place(number)
    if number == 0 and offset >= place:
        return Evidence(KIND, offset - place, place + 512, volume_offset=0, identity=s.uuid or None, value=s.size,
                        confidence=0.9)
    return Evidence(KIND, offset, 512, volume_offset=place, identity=s.uuid or None, value=s.size, confidence=0.9)


def begin(reader: Reader, offset: int) -> Begin | None:
    """What the volume begins with, by the copy of the superblock before the group at `offset`."""
    found = _before(reader, offset)
    if found is None:
        return None
    s, at, _ = found
    return Begin(bytes(s.at) + reader.read(at, SUPER_LENGTH), size=s.size)


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The volume at `offset`, by its superblock."""
    s = next((found for at in PLACES if at + SUPER_LENGTH <= limit
              and (found := _parse(reader.read(offset + at, SUPER_LENGTH))) is not None and found.at == at), None)
    if s is None:
        return None
    step = max(1, s.groups // OUR_MAX_GROUPS)
    bad = [n for n in range(0, s.groups, step) if _group(reader.read(offset + s.place(n), 24), s) != n]
    troubles = ["larger than the space it has"] if s.size > limit else []
    troubles += [f"no cylinder group {bad[0]}" if len(bad) == 1 else f"{len(bad)} cylinder groups lost"] if bad else []
    return Volume("ufs2" if s.magic == UFS2 else "ufs1", offset, s.size, s.name or s.mounted, s.uuid, not troubles,
                  "; ".join(troubles))


GUEST = GuestKind("ufs", SIGNATURES, probe, confirm, begin=begin,
                  types=frozenset(("FreeBSD", "FreeBSD UFS", "OpenBSD", "NetBSD", "Solaris")))
