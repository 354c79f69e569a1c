"""ext2/3/4 directories: entries in use, entries left in the slack behind others, and the tree of paths.

Source: Linux Documentation/filesystems/ext4/directory. Removed entries: kernels since about 5.13 wipe them, older ones
only stretch the entry before them, so that number and name stay readable there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

ROOT_INO = 2
TYPE_DIR = 2
OUR_MAX_NAMES = 4 << 20  # names kept for one volume
OUR_MAX_KNOWN = 1 << 16  # records of directory blocks that are remembered
OUR_MAX_PATH_DEPTH = 256  # directories in one path


HEAD = struct.Struct("<IHBB")  # inode, rec_len, name length, file type (or the name length's high byte)
NOT_ZERO = re.compile(rb"[^\0]")


class Entry(NamedTuple):
    ino: int
    name: str
    kind: int  # file type byte, 0 where the file system stores none
    slack: bool


def _rec_len(raw: int, block_size: int) -> int:
    """rec_len in bytes; 64 KiB blocks store 0 or 0xFFFC for the whole block (ext4_rec_len_from_disk)."""
    if block_size == 65536 and raw in (0, 0xFFFC):
        return block_size
    return raw


def _named(block: bytes, at: int, end: int, filetype: bool, slack: bool) -> tuple[Entry | None, int, int]:
    """(the named entry at byte `at` that ends before `end`, or None for tails, unused entries and nonsense; rec_len as
    it is stored; bytes that such an entry takes)."""
    ino, rec, length, kind = HEAD.unpack_from(block, at)
    if not filetype:
        length, kind = length | kind << 8, 0
    if ino == 0 or not 1 <= length <= 255 or at + 8 + length > end or kind > 7:
        return None, rec, 8
    name = block[at + 8 : at + 8 + length]
    if b"\0" in name or b"/" in name:
        return None, rec, 8
    return Entry(ino, name.decode("utf-8", "replace"), kind, slack), rec, (8 + length + 3) // 4 * 4


Known = dict[tuple[int, bytes], tuple[Entry, ...]]
"""What records of directory blocks (place in the block, bytes) hold: copies of one block are alike but for a few."""


def entries(block: bytes, filetype: bool, slack: bool = True, known: Known | None = None) -> Iterator[Entry]:
    """Entries of one directory block; stops where the chain of rec_len breaks. With `slack` also removed ones.

    known: what earlier calls with the same `filetype` and `slack` found; grows.
    """
    size = len(block)
    at = 0
    while at + 8 <= size:
        rec = _rec_len(int.from_bytes(block[at + 4 : at + 6], "little"), size)
        if rec < 8 or rec % 4 or at + rec > size:
            return
        if known is None:
            yield from _record(block, at, at + rec, filetype, slack)
        else:
            key = at, block[at : at + rec]
            found = known.get(key)
            if found is None:
                if len(known) >= OUR_MAX_KNOWN:
                    known.clear()
                found = known[key] = tuple(_record(block, at, at + rec, filetype, slack))
            yield from found
        at += rec


def _record(block: bytes, at: int, end: int, filetype: bool, slack: bool) -> Iterator[Entry]:
    found, _, used = _named(block, at, end, filetype, False)
    if found is not None:
        yield found
    if slack and at + used + 12 <= end:
        yield from _slack(block, at + used, end, filetype)


def _slack(block: bytes, at: int, end: int, filetype: bool) -> Iterator[Entry]:
    while at + 12 <= end:
        told = NOT_ZERO.search(block, at, end)  # most of what is free was never used
        if told is None:
            return
        at += (told.start() - at) // 4 * 4
        if at + 12 > end:
            return
        found, rec, used = _named(block, at, end, filetype, True)
        if found is None or rec < 12 or rec % 4 or at + rec > len(block):
            at += 4
            continue
        yield found
        at += used


def is_directory_block(block: bytes, filetype: bool, inodes: int) -> bool:
    """Whether a block, of which nothing else is known, is one of a directory: its chain of entries fills it exactly."""
    size = len(block)
    at = named = 0
    while at < size:
        if at + 8 > size:
            return False
        rec = _rec_len(int.from_bytes(block[at + 4 : at + 6], "little"), size)
        if rec < 8 or rec % 4 or at + rec > size:
            return False
        ino = int.from_bytes(block[at : at + 4], "little")
        if ino:
            if ino > inodes or _named(block, at, at + rec, filetype, False)[0] is None:
                return False
            named += 1
        at += rec
    return named > 0


def dot_numbers(block: bytes) -> tuple[int, int] | None:
    """(own inode, parent inode) of a directory's first block, or None when it is not one."""
    if len(block) < 24 or block[4:7] != b"\x0c\x00\x01" or block[8:10] != b".\0" or block[20:22] != b"..":
        return None
    return int.from_bytes(block[:4], "little"), int.from_bytes(block[12:16], "little")


class Paths:
    """Names by inode number: child -> (parent, name); the first told stays. They come from evidence: loops happen."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[int, str]] = {}

    def __contains__(self, ino: int) -> bool:
        return ino in self._names

    def add(self, ino: int, parent: int, name: str) -> None:
        if len(self._names) < OUR_MAX_NAMES and name not in (".", ".."):
            self._names.setdefault(ino, (parent, name))

    def of(self, ino: int, root: int = ROOT_INO) -> str:
        """The path from the root, without a leading slash; as much of its end as is known; "" when nothing is."""
        parts: list[str] = []
        while ino != root and ino in self._names and len(parts) < OUR_MAX_PATH_DEPTH:
            ino, name = self._names[ino]
            parts.append(name)
        return "/".join(reversed(parts))

    def under(self, parent: int, name: str, root: int = ROOT_INO) -> str:
        """The path of `name` in directory `parent`."""
        above = self.of(parent, root)
        return f"{above}/{name}" if above else name
