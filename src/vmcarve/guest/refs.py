"""ReFS: a boot sector under its checksum, with a copy in the volume's last sector; superblocks that state their block.

Source: Microsoft, "File System Recognition" (structure and checksum of the boot sector); libfsrefs, "Resilient File
System (ReFS)" (the rest; there is no official specification). Seen: boot sectors of versions 1.1 and 1.2 as published.
Little-endian. Trees of version 3 state virtual blocks, which a table of containers translates: they pin nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model import Begin, Evidence, GuestKind, Reader, Signature, Volume
from ._fields import le16, le32, le64, power_of_two, whole

BOOT, SUPER = "refs.boot", "refs.superblock"
NAME = b"ReFS\0\0\0\0"
SIGNATURES = (
    Signature(NAME, BOOT, at=3, also=(16, b"\xff" * 4, b"FSRS")),
    Signature(b"SUPB", SUPER, also=(36, b"\xff" * 4, bytes(4))),  # blocks below 2^32
)
CHECKSUM_AT = 22
SUPER_BLOCK = 30
V1_PAGE = 16384  # version 1 counts in these, whatever the cluster
CLUSTERS = (4096, 65536)
HEAD = 80  # bytes of the head of a block of version 3; the superblock's own fields follow

OUR_MAX_SIZE = 1 << 60
OUR_MAX_CHECKPOINTS = 8


@dataclass(frozen=True, slots=True)
class _Boot:
    sector: int
    cluster: int
    size: int
    version: tuple[int, int]
    serial: str


def checksum(data: bytes) -> int:
    """Of a boot sector: all of it but the jump in front and the checksum itself."""
    out = 0
    for byte in data[3:CHECKSUM_AT] + data[CHECKSUM_AT + 2 :]:
        out = ((out & 1) << 15) + (out >> 1) + byte & 0xFFFF
    return out


def _parse(data: bytes) -> _Boot | None:
    """A boot sector whose checksum agrees."""
    if len(data) < 512 or data[3:11] != NAME or data[16:20] != b"FSRS" or not 64 <= le16(data, 20) <= 512:
        return None
    if checksum(data[: le16(data, 20)]) != le16(data, CHECKSUM_AT):
        return None
    sectors, sector, cluster = le64(data, 24), le32(data, 32), le32(data, 32) * le32(data, 36)
    if not power_of_two(sector, 512, 4096) or cluster not in CLUSTERS or not 0 < sectors * sector <= OUR_MAX_SIZE:
        return None
    return _Boot(sector, cluster, sectors * sector, (data[40], data[41]), f"{le64(data, 56):016x}" if any(data[56:64])
                 else "")


def _super(data: bytes | None) -> tuple[int, int] | None:
    """(block number, bytes of a block) that a superblock of version 3 states."""
    if data is None or len(data) < HEAD + 48 or data[:4] != b"SUPB":
        return None
    number, *others = (le64(data, at) for at in (32, 40, 48, 56))
    cluster = CLUSTERS[0] if others == [number + 1, number + 2, number + 3] else CLUSTERS[1]
    if number < SUPER_BLOCK or cluster == CLUSTERS[1] and any(others):
        return None
    where, count = le32(data, HEAD + 32), le32(data, HEAD + 36)
    return (number, cluster) if HEAD + 48 <= where < V1_PAGE and 0 < count <= OUR_MAX_CHECKPOINTS else None


def _begins(reader: Reader, volume: int, boot: _Boot) -> bool:
    """Whether the first superblock lies where it does in a volume that begins at `volume`."""
    if volume < 0:
        return False
    if boot.version[0] < 3:
        page = whole(reader, volume + SUPER_BLOCK * V1_PAGE, 8)
        return page is not None and le64(page, 0) == SUPER_BLOCK
    return _super(whole(reader, volume + SUPER_BLOCK * boot.cluster, 512)) == (SUPER_BLOCK, boot.cluster)


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A superblock states its place; a boot sector is told from its copy by the first superblock, if that is there."""
    if signature.kind == SUPER:
        found = _super(reader.read(offset, 512))
        return found and Evidence(SUPER, offset, 512, volume_offset=found[0] * found[1], confidence=0.8)
    boot = _parse(reader.read(offset, 512))
    if boot is None:
        return None
    name, last = boot.serial or None, boot.size - boot.sector
    if _begins(reader, offset, boot):
        return Evidence(BOOT, offset, 512, volume_offset=0, identity=name, value=boot.size)
    if _begins(reader, offset - last, boot):
        return Evidence(BOOT, offset, 512, volume_offset=last, identity=name, value=boot.size)
    return Evidence(BOOT, offset, 512, identity=name, value=boot.size, confidence=0.5)


def begin(reader: Reader, offset: int) -> Begin | None:
    """What the volume begins with: its boot sector, of which the copy is the same."""
    data = reader.read(offset, 512)
    boot = _parse(data)
    return None if boot is None else Begin(data, size=boot.size)


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The volume at `offset`, by its boot sector, or by the copy in the last sector of its room."""
    boot = _parse(reader.read(offset, 512))
    troubles = [] if boot is not None else ["boot sector lost"]
    for sector in (512, 4096) if boot is None and limit > V1_PAGE else ():
        last = _parse(reader.read(offset + limit - sector, 512))
        boot = last if last is not None and (last.size, last.sector) == (limit, sector) else boot
    if boot is None:
        return None
    if boot.size > limit:
        troubles.append("larger than the space it has")
    if not _begins(reader, offset, boot):
        troubles.append("no superblock where it should be")
    return Volume("refs", offset, boot.size, uuid=boot.serial, consistent=not troubles,
                  detail="; ".join(troubles) or f"version {boot.version[0]}.{boot.version[1]}")


GUEST = GuestKind("refs", SIGNATURES, probe, confirm, begin=begin, types=frozenset(("NTFS / exFAT",)))
