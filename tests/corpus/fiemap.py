"""Where a mounted file lies: the FIEMAP call, and Btrfs's way from its addresses to bytes of the device."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from pathlib import Path

from .tools import CorpusError, run
from .truth import Extent

_FS_IOC_FIEMAP, _SYNC = 0xC020660B, 1
_HEAD, _ROW = struct.Struct("=QQLLLL"), struct.Struct("=QQQQQLLLL")
_ROWS = 512  # extents asked for in one call
_LAST, _UNKNOWN, _DELALLOC, _ENCODED, _INLINE, _UNWRITTEN = 0x1, 0x2, 0x4, 0x8, 0x200, 0x800

Chunk = tuple[int, int, int]  # logical start, length, physical start in bytes


def fiemap(path: Path) -> list[Extent]:
    """Extents of an open file system's file, in bytes of its device (for Btrfs: of its logical space)."""
    found: list[Extent] = []
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        at, last = 0, size == 0
        while not last:
            buffer = bytearray(_HEAD.pack(at, 2**64 - 1 - at, _SYNC, 0, _ROWS, 0) + bytes(_ROWS * _ROW.size))
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
            count = _HEAD.unpack_from(buffer)[3]
            if count == 0:
                break
            for number in range(count):
                logical, physical, length, _, _, flags, *_ = _ROW.unpack_from(buffer, _HEAD.size + number * _ROW.size)
                if flags & (_UNKNOWN | _DELALLOC | _ENCODED) and not flags & _INLINE:
                    raise CorpusError(f"{path.name}: extent at {logical} has no plain place (flags {flags:#x})")
                at, last = logical + length, bool(flags & _LAST)
                length = min(length, size - logical)
                if length > 0:
                    mark = "inline" if flags & _INLINE else "unwritten" if flags & _UNWRITTEN else ""
                    found.append((logical, physical, length, mark))
    finally:
        os.close(fd)
    return found


def btrfs_chunks(device: str) -> list[Chunk]:
    """The first stripe of every chunk of a Btrfs volume on one device."""
    dump = run("btrfs", "inspect-internal", "dump-tree", "-t", "chunk", device)
    pattern = r"CHUNK_ITEM (\d+)\).*?length (\d+) .*?stripe 0 devid \d+ offset (\d+)"
    return [(int(a), int(b), int(c)) for a, b, c in re.findall(pattern, dump, re.DOTALL)]


def through_chunks(extents: list[Extent], chunks: list[Chunk]) -> list[Extent]:
    """Extents in Btrfs's logical space, translated to bytes of the device."""
    found: list[Extent] = []
    for file_offset, logical, length, mark in extents:
        if mark == "inline":
            continue  # lies in a tree node, which is rewritten at will
        while length > 0:
            inside = [chunk for chunk in chunks if chunk[0] <= logical < chunk[0] + chunk[1]]
            if not inside:
                raise CorpusError(f"Btrfs address {logical} lies in no chunk")
            start, chunk_length, physical = inside[0]
            part = min(length, start + chunk_length - logical)
            found.append((file_offset, physical + logical - start, part, mark))
            file_offset, logical, length = file_offset + part, logical + part, length - part
    return found
