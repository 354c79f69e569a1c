"""What the guest modules share: integers at offsets, UUIDs and labels as text, reads that are whole or nothing."""

from __future__ import annotations

from uuid import UUID

from ..model import Reader

OUR_MAX_LABEL = 256  # characters shown


def le16(data: bytes, at: int) -> int:
    """Little-endian u16 at byte `at`."""
    return int.from_bytes(data[at : at + 2], "little")


def le32(data: bytes, at: int) -> int:
    """Little-endian u32 at byte `at`."""
    return int.from_bytes(data[at : at + 4], "little")


def le64(data: bytes, at: int) -> int:
    """Little-endian u64 at byte `at`."""
    return int.from_bytes(data[at : at + 8], "little")


def be16(data: bytes, at: int) -> int:
    """Big-endian u16 at byte `at`."""
    return int.from_bytes(data[at : at + 2], "big")


def be32(data: bytes, at: int) -> int:
    """Big-endian u32 at byte `at`."""
    return int.from_bytes(data[at : at + 4], "big")


def be64(data: bytes, at: int) -> int:
    """Big-endian u64 at byte `at`."""
    return int.from_bytes(data[at : at + 8], "big")


def uuid(data: bytes) -> str:
    """16 bytes in the order in which Linux file systems print them."""
    return str(UUID(bytes=bytes(data[:16])))


def guid(data: bytes) -> str:
    """16 bytes as Microsoft and GPT store them: the first three groups little-endian."""
    return str(UUID(bytes_le=bytes(data[:16])))


def label(data: bytes, encoding: str = "utf-8") -> str:
    """A name up to its first NUL as it may be shown: one line, bounded, nothing unprintable."""
    text = data.decode(encoding, "replace").split("\0", 1)[0][:OUR_MAX_LABEL]
    return "".join(c if c.isprintable() else "?" for c in text).strip()


def power_of_two(value: int, low: int, high: int) -> bool:
    """True for a power of two in [low, high]."""
    return low <= value <= high and value & (value - 1) == 0


def whole(reader: Reader, offset: int, length: int) -> bytes | None:
    """Exactly `length` bytes at `offset`, or None when any of them is not there."""
    if length <= 0 or reader.missing(offset, length):
        return None
    data = reader.read(offset, length)
    return data if len(data) == length else None
