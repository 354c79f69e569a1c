"""Zeroing a host's own metadata in an unmounted image, its files' data untouched."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .fat import Fat
from .hosts import Host, HostSpec
from .ntfs import Ntfs
from .sparse import pieces
from .tools import CorpusError, run
from .truth import Extent

Area = tuple[int, int]  # image_offset, length in bytes

_XFS_BTREES = (b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"RMB3", b"R3FC")
_XFS_FILES = (b"BMA3", b"XDB3", b"XDD3", b"XDF3")  # of files and directories
_XFS_IDENTITY = {b"BMA3": 40, **dict.fromkeys(_XFS_FILES[1:], 24)}  # byte of the identity, where it is not 32
_BTRFS_SUPERS = (64 << 10, 64 << 20, 256 << 30)  # bytes from the volume's start


def wipe(
    image: Path, spec: HostSpec, start: int, kept: Iterable[Extent], further: Iterable[Area] = (), files: bool = False
) -> int:
    """Zero the metadata of the host at byte `start`, and what is named further; return how many bytes.

    `files`: also what an XFS keeps of its files, which names itself. `kept` must not be touched."""
    find = {"ntfs": _ntfs, "btrfs": _btrfs, "xfs": _xfs, "fat32": _fat, "exfat": _fat}.get(spec.kind, _ext)
    areas = merged([
        *find(image, start), *further, *(_xfs_pages(image, start, _XFS_FILES) if files and spec.kind == "xfs" else ())
    ])  # fmt: skip
    for _, at, length, mark in kept:
        if mark != "inline" and any(begin < at + length and at < begin + size for begin, size in areas):
            raise CorpusError(f"{spec.kind}: the data extent at {at} lies in metadata that is to be wiped")
    with image.open("r+b") as file:
        for at, length in areas:
            file.seek(at)
            file.write(bytes(length))
    return sum(length for _, length in areas)


def between_files(host: Host, contents: Iterable[Area]) -> list[Area]:
    """What `wipe` does not find by itself and no file holds: directories, and blocks of file extents.

    To be asked while the files are still there, for what is freed is not told apart from old content."""
    if host.spec.kind.startswith("ext"):
        return _ext_between(host, contents)
    if host.spec.kind == "ntfs":
        return Ntfs(host.image, host.offset).index_areas()
    return []  # XFS: its blocks name themselves, `wipe` finds them; Btrfs: it takes every node; FAT: every directory


def _ext_between(host: Host, contents: Iterable[Area]) -> list[Area]:
    """Blocks in use that are not the content of a file."""
    said = run("dumpe2fs", host.tool_target)
    size, blocks = (int(re.search(rf"{name}:\s+(\d+)", said)[1]) for name in ("Block size", "Block count"))  # type: ignore[index]
    used = np.ones(blocks, np.bool_)
    for line in re.findall(r"^  Free blocks: (.+)$", said, re.MULTILINE):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", line):
            used[int(first) : int(last or first) + 1] = False
    for at, length in contents:
        used[(at - host.offset) // size : -(-(at - host.offset + length) // size)] = False
    edges = np.flatnonzero(np.diff(np.concatenate(([False], used, [False])).astype(np.int8)))
    return [(host.offset + first * size, (last - first) * size) for first, last in edges.reshape(-1, 2).tolist()]


def merged(areas: Iterable[Area]) -> list[Area]:
    """The same areas sorted, those that touch or overlap joined."""
    joined: list[Area] = []
    for at, length in sorted(areas):
        if joined and at <= sum(joined[-1]):
            joined[-1] = (joined[-1][0], max(sum(joined[-1]), at + length) - joined[-1][0])
        else:
            joined.append((at, length))
    return joined


def without(areas: Iterable[Area], others: Iterable[Area]) -> list[Area]:
    """What is left of `areas` outside of `others`."""
    left: list[Area] = []
    kept = merged(others)
    for at, length in merged(areas):
        end = at + length
        for other, size in kept:
            if other >= end or other + size <= at:
                continue
            if other > at:
                left.append((at, other - at))
            at = other + size
        if at < end:
            left.append((at, end - at))
    return left


def _ext(image: Path, start: int) -> list[Area]:
    """Superblocks and group descriptors with their backups, bitmaps, inode tables, journal; not extent blocks."""
    target = f"{image}?offset={start}"
    said = run("dumpe2fs", target)
    size = int(re.search(r"Block size:\s+(\d+)", said)[1])  # type: ignore[index]
    places = r"(?:superblock|descriptors|GDT blocks|bitmap|table) at (\d+)(?:-(\d+))?"
    areas = [(0, 2048)]
    for first, last in re.findall(places, said, re.IGNORECASE):
        areas.append((int(first) * size, (int(last or first) - int(first) + 1) * size))
    journal = run("debugfs", "-R", "blocks <8>", target).split()
    areas += [(int(block) * size, size) for block in journal if block.isdigit()]
    return [(start + at, length) for at, length in areas]


def _ntfs(image: Path, start: int) -> list[Area]:
    return Ntfs(image, start).own_areas()


def _fat(image: Path, start: int) -> list[Area]:
    return Fat(image, start).own_areas()


def _xfs(image: Path, start: int) -> list[Area]:
    """AG headers, the log, AG btrees and all inodes that name their own place; not file extent btrees."""
    with image.open("rb") as file:
        file.seek(start)
        head = file.read(512)
    block = struct.unpack_from(">I", head, 4)[0]
    ag_blocks, ags, log_blocks = (struct.unpack_from(">I", head, at)[0] for at in (84, 88, 96))
    log_at, ag_log = struct.unpack_from(">Q", head, 48)[0], head[124]
    sector = struct.unpack_from(">H", head, 102)[0]

    def linear(fs_block: int) -> int:
        return ((fs_block >> ag_log) * ag_blocks + (fs_block & ((1 << ag_log) - 1))) * block

    areas = [(start + linear(log_at), log_blocks * block)]
    areas += [(start + ag * ag_blocks * block, 4 * sector) for ag in range(ags)]
    return areas + _xfs_pages(image, start, _XFS_BTREES)


def _xfs_pages(image: Path, start: int, magics: tuple[bytes, ...]) -> list[Area]:
    """Pages of this XFS with such a magic and its own identity; with the magics of btrees, its inodes too."""
    with image.open("rb") as file:
        file.seek(start)
        head = file.read(512)
    block, identity = struct.unpack_from(">I", head, 4)[0], head[32:48]
    areas: list[Area] = []
    for at, piece in pieces(image, block):
        for inner in range((start - at) % block, len(piece), block):
            page = piece[inner : inner + block]
            if page[:4] in magics and page[_XFS_IDENTITY.get(page[:4], 32) :][:16] == identity:
                areas.append((at + inner, block))
            elif magics is _XFS_BTREES and page[:2] == b"IN" and page[160:176] == identity:
                areas.append((at + inner, block))
    return areas


def _btrfs(image: Path, start: int) -> list[Area]:
    """Superblocks and every tree node of every generation."""
    with image.open("rb") as file:
        file.seek(start + _BTRFS_SUPERS[0])
        head = file.read(4096)
    identity, node = head[32:48], struct.unpack_from("<I", head, 0x94)[0]
    end = image.stat().st_size
    areas = [(start + at, 4096) for at in _BTRFS_SUPERS if start + at + 4096 <= end]
    needle = np.frombuffer(identity, np.uint8)
    for at, piece in pieces(image):
        pages = np.frombuffer(piece[: len(piece) // 4096 * 4096], np.uint8).reshape(-1, 4096)
        for number in np.flatnonzero((pages[:, 32:48] == needle).all(axis=1)).tolist():
            areas.append((at + number * 4096, node))
    return areas
