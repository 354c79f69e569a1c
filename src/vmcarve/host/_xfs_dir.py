"""XFS directories: entries in use, and entries that were removed and still lie there.

Source: XFS Algorithms & Data Structures (3rd edition), "Directories". A removed entry of a directory block loses its
first four bytes (free tag and length); what stays is the low half of its inode number, its name, and the tag at its
end, which repeats its own place in the block. Seen: Linux 6.18.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ._xfs_super import Super

HEADS = {b"XDB3": 64, b"XDD3": 64, b"XD2B": 16, b"XD2D": 16}  # bytes before the first entry
WITH_TAIL = (b"XDB3", b"XD2B")  # single-block directories end in hash entries and a tail
FREE_TAG = 0xFFFF
TYPE_REGULAR, TYPE_DIR = 1, 2
LEAF_OFFSET = 1 << 35  # bytes: where hash blocks begin in a directory's address space


@dataclass(frozen=True, slots=True)
class Entry:
    """removed: the entry is free space now; then ino has its low 32 bits only."""

    ino: int
    name: str
    kind: int
    removed: bool


def _name(raw: bytes) -> str | None:
    if not raw or b"\0" in raw or b"/" in raw or raw in (b".", b".."):
        return None
    return raw.decode("utf-8", "replace")


def owner_of(block: bytes) -> int | None:
    """The inode of the directory that a version 5 block states, None for other blocks."""
    if block[:4] not in (b"XDB3", b"XDD3"):
        return None
    return struct.unpack_from(">Q", block, 40)[0]


def block_entries(block: bytes, sb: Super) -> Iterator[Entry]:
    """Entries of a directory data block, then what is left of removed ones."""
    head = HEADS.get(block[:4])
    if head is None:
        return
    end = len(block)
    if block[:4] in WITH_TAIL:
        count = struct.unpack_from(">I", block, end - 8)[0]
        if 8 + 8 * count < end - head:
            end -= 8 + 8 * count
    at = head
    while at + 16 <= end:
        tag, length = struct.unpack_from(">HH", block, at)
        if tag == FREE_TAG:
            if length < 8 or length % 8 or at + length > end:
                return
            yield from _removed(block, at, at + length, sb)
            at += length
            continue
        size = 8 + 1 + block[at + 8] + sb.ftype + 2
        size = -(-size // 8) * 8
        if at + size > end:
            return
        name = _name(block[at + 9 : at + 9 + block[at + 8]])
        if name is not None:
            kind = block[at + 9 + block[at + 8]] if sb.ftype else 0
            yield Entry(struct.unpack_from(">Q", block, at)[0], name, kind, False)
        at += size


def _removed(block: bytes, at: int, end: int, sb: Super) -> Iterator[Entry]:
    """Entries inside free space. When it was joined, a later entry's tag became the place of the space before it."""
    start = at
    while at + 16 <= end:
        length = block[at + 8]
        size = -(-(8 + 1 + length + sb.ftype + 2) // 8) * 8
        tag = struct.unpack_from(">H", block, at + size - 2)[0] if at + size <= end else -1
        if length and start <= tag <= at and tag % 8 == 0:
            name = _name(block[at + 9 : at + 9 + length])
            ino = struct.unpack_from(">I", block, at + 4)[0]
            if name is not None and ino:
                yield Entry(ino, name, block[at + 9 + length] if sb.ftype else 0, True)
                at += size
                continue
        at += 8


def short_entries(fork: bytes, size: int, sb: Super) -> Iterator[Entry]:
    """Entries of a short-form directory (inside the inode), then what is left behind its end."""
    if len(fork) < 6:
        return
    count, wide = fork[0], fork[1] > 0
    number = 8 if wide else 4
    at = 2 + number
    for _ in range(count):
        entry = _short(fork, at, number, sb)
        if entry is None:
            break
        yield Entry(entry[0], entry[1], entry[2], False)
        at += entry[3]
    at = max(at, min(size, len(fork)) - 255, 2 + number)
    # entries behind a removed one moved up over it: what is left of the last ones lies behind the end, cut at its front
    while at + 3 + number < len(fork):
        entry = _short(fork, at, number, sb)
        if entry is not None and entry[2] in (0, TYPE_REGULAR, TYPE_DIR):
            yield Entry(entry[0], entry[1], entry[2], True)
            at += entry[3]
        else:
            at += 1


def _short(fork: bytes, at: int, number: int, sb: Super) -> tuple[int, str, int, int] | None:
    """(inode, name, type, bytes) of a short-form entry."""
    if at >= len(fork):
        return None
    length = fork[at]
    size = 3 + length + sb.ftype + number
    if not length or at + size > len(fork):
        return None
    name = _name(fork[at + 3 : at + 3 + length])
    kind = fork[at + 3 + length] if sb.ftype else 0
    ino = int.from_bytes(fork[at + size - number : at + size], "big")
    if name is None or kind > 8 or sb.inode_place(ino) is None:
        return None
    return ino, name, kind, size
