"""Tar members as XVA and OVA use them: POSIX ustar and GNU headers, sizes in octal, base-256 or a pax record.

Source: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format". Seen: Python 3.11 tarfile,
GNU tar 1.34. Offsets and sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model import SECTOR, Reader

BLOCK = SECTOR  # tar's own unit has the same 512 bytes
RECORD = 20 * BLOCK  # POSIX pax: the default blocking factor
END_BLOCKS = 2  # blocks of zeros that end an archive

FILE_TYPES = frozenset(b"0\x007")  # regular, regular (old), contiguous
PAX_TYPES = frozenset(b"xg")
OUR_MAX_PAX = 1 << 16  # bytes of a pax record that we look at
OUR_MAX_SIZE = 1 << 60  # a member larger than this is a lie


@dataclass(frozen=True, slots=True)
class TarHeader:
    """One header block: `size` is the length of the member's data, without the padding to 512."""

    name: str
    size: int
    type: int

    @property
    def span(self) -> int:
        """Bytes from the header's first byte to the next header's."""
        return BLOCK + padded(self.size)

    @property
    def is_file(self) -> bool:
        return self.type in FILE_TYPES


def padded(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def parse_header(block: bytes) -> TarHeader | None:
    """The header in `block` (512 bytes), or None when magic or sum are not a tar header's."""
    if len(block) < BLOCK or block[257:262] != b"ustar":
        return None
    stated = _number(block[148:156])
    # the sum counts its own field as blanks (POSIX)
    if stated is None or stated != sum(block[:BLOCK]) - sum(block[148:156]) + 8 * 0x20:
        return None
    size = _number(block[124:136])
    if size is None or not 0 <= size <= OUR_MAX_SIZE:
        return None
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""  # GNU keeps other things there
    if not name:
        return None
    return TarHeader(f"{prefix}/{name}" if prefix else name, size, block[156])


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member at `offset` (of its first header, pax records included) whose data lies at `data_offset`."""

    offset: int
    data_offset: int
    header: TarHeader

    @property
    def end(self) -> int:
        """Where the next member's header must be."""
        return self.data_offset + padded(self.header.size)


def read_member(reader: Reader, offset: int) -> TarMember | None:
    """The member whose header is at `offset`; a pax record before it is taken into account."""
    header = parse_header(reader.read(offset, BLOCK))
    if header is None:
        return None
    if header.type not in PAX_TYPES:
        return TarMember(offset, offset + BLOCK, header)
    records = _pax(reader.read(offset + BLOCK, min(header.size, OUR_MAX_PAX)))
    at = offset + header.span
    inner = parse_header(reader.read(at, BLOCK))
    if inner is None or inner.type in PAX_TYPES:  # a second record: none of these formats' writers makes one
        return None
    size = records.get("size", "")
    bounded = int(size) if size.isascii() and size.isdigit() and len(size) < 19 else inner.size
    if bounded > OUR_MAX_SIZE:
        return None
    return TarMember(offset, at + BLOCK, TarHeader(records.get("path", inner.name), bounded, inner.type))


def end_of_archive(reader: Reader, offset: int) -> bool:
    """True when two blocks of zeros are really there at `offset`."""
    length = END_BLOCKS * BLOCK
    return not reader.missing(offset, length) and reader.read(offset, length) == bytes(length)


def end_of_file(reader: Reader, end: int) -> int:
    """Where an archive ends whose two blocks of zeros end at `end`: writers fill the last record of 20 blocks.

    Seen: GNU tar 1.34 and Python 3.11 fill it, and so do those who use them; where no zeros are, nobody did.
    """
    full = -(-end // RECORD) * RECORD
    filled = full <= reader.size and not reader.missing(end, full - end) and not any(reader.read(end, full - end))
    return full if filled else end


def _number(field: bytes) -> int | None:
    """Octal digits ended by NUL or blank, or GNU's base-256 (first bit set, big-endian)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits or any(d not in b"01234567" for d in digits):
        return None
    return int(digits, 8)


def _text(field: bytes) -> str:
    """Up to the first NUL, as UTF-8; what is not printable becomes a question mark (names are shown, never opened)."""
    text = field.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _pax(data: bytes) -> dict[str, str]:
    """The `length key=value` lines of a pax record; reading ends at the first line that is none."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + 20)
        length = data[at:blank] if blank > 0 else b""
        if not length.isdigit():
            break
        if at + int(length) <= blank:
            break
        line = data[blank + 1 : at + int(length) - 1]
        key, equals, value = line.partition(b"=")
        if not equals:
            break
        found[key.decode("utf-8", "replace")] = _text(value)
        at += int(length)
    return found
