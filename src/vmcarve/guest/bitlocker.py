"""BitLocker: a boot sector that names the three places of its metadata blocks; the volume itself is encrypted.

Source: libbde "BitLocker Drive Encryption (BDE) format" (Metz), Windows 7 and later, and To Go. No volume of this kind
could be made here: the layout is taken from the source, and confirmed against a writer of our own only. Little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model import Evidence, GuestKind, Reader, Signature, Volume
from ._fields import guid, le16, le32, le64, power_of_two

KIND = "bitlocker.boot"
MAGIC = b"-FVE-FS-"
SIGNATURES = (Signature(MAGIC, KIND, at=3, also=(510, b"\xff\xff", b"\x55\xaa")),)
IDENTIFIERS = ("4967d63b-2e29-4ad8-8399-f6a339e3d001", "92a84d3b-dd80-4d0e-9e4e-b1e3284eaed8")
BLOCK_VERSIONS = (1, 2)
OUR_MAX_SIZE = 1 << 60


@dataclass(frozen=True, slots=True)
class _Boot:
    blocks: tuple[int, int, int]  # bytes from the volume's start
    sector: int
    sectors: int


def _parse(data: bytes) -> _Boot | None:
    """The boot sector: identifier and three block offsets that are distinct, aligned and behind it."""
    if len(data) < 512 or data[510:512] != b"\x55\xaa" or not power_of_two(le16(data, 11), 512, 4096):
        return None
    if data[3:11] == MAGIC:
        at = 160
    elif data[3:11] == b"MSWIN4.1":  # To Go: a FAT32 volume is shown to systems that know nothing of it
        at = 424
    else:
        return None
    if guid(data[at : at + 16]) not in IDENTIFIERS:
        return None
    sector = le16(data, 11)
    one, two, three = (le64(data, at + 16 + 8 * i) for i in range(3))
    if not 0 < one < two < three <= OUR_MAX_SIZE or any(b % sector for b in (one, two, three)):
        return None
    sectors = le64(data, 0x28) if data[3:11] == MAGIC else le32(data, 32)
    return _Boot((one, two, three), sector, sectors if sectors * sector <= OUR_MAX_SIZE else 0)


def _block(reader: Reader, offset: int, at: int, b: _Boot) -> int | None:
    """The encrypted size that the metadata block at `at` states, when it names the same three places; else None."""
    data = reader.read(offset + at, 112)
    if len(data) < 112 or data[:8] != MAGIC or le16(data, 10) not in BLOCK_VERSIONS:
        return None
    if tuple(le64(data, 32 + 8 * i) for i in range(3)) != b.blocks or le32(data, 64 + 4) != 1:
        return None
    return le64(data, 16)


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A boot sector; sure when a metadata block stands where it says."""
    b = _parse(reader.read(offset, 512))
    if b is None:
        return None
    found = [size for at in b.blocks if (size := _block(reader, offset, at, b)) is not None]
    size = max([*found, b.sectors * b.sector])
    return Evidence(KIND, offset, 512, volume_offset=0, value=min(size, OUR_MAX_SIZE), confidence=1.0 if found else 0.6)


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The encrypted volume at `offset`; size: what its metadata or boot sector state, else up to the last block."""
    b = _parse(reader.read(offset, 512))
    if b is None:
        return None
    found = [size for at in b.blocks if (size := _block(reader, offset, at, b)) is not None]
    size = max([*(s for s in found if s <= limit), b.sectors * b.sector, b.blocks[-1] + b.sector])
    lost = len(b.blocks) - len(found)
    detail = [f"{lost} of {len(b.blocks)} metadata blocks lost"] if lost else []
    return Volume("bitlocker", offset, size, consistent=not lost, detail="; ".join([*detail, "encrypted"]))


GUEST = GuestKind("bitlocker", SIGNATURES, probe, confirm, types=frozenset(("NTFS / exFAT", "FAT16", "FAT32")))
