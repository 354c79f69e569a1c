"""Whether a file's bytes still lie in the image where they lay, and what a guest loses where they do not."""

from __future__ import annotations

import mmap
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .disks import Built
from .sparse import BLOCK, ZERO_HASH, Hashes, pieces
from .tools import CorpusError
from .truth import Extent

PIECE = 4 << 20  # bytes compared at once
SECTOR = 512  # bytes; every format here keeps the guest's sectors whole and at whole sectors
SMALL = 64  # bytes that tell a small file from others
MOST_INLINE = 4096  # bytes of a file that a host keeps among its metadata
PLAIN = 0.9  # share of the guest that stands in a container as it is, unless that is compressed

Unit = tuple[int, int, int, int]  # guest_offset, length, file_offset, stored bytes


def matches(image: Path, file: Path, extents: list[Extent]) -> bool:
    """Whether the written extents of `image` hold the bytes of `file`, and all else of `file` is zero."""
    return next(damage(image, file, extents), None) is None and _zero_outside(file, extents)


def has_small(image: Path, file: Path) -> bool:
    """Whether the image still holds a file that the host kept among its own metadata: what tells it from others.

    That is how it begins: descriptors end alike. NTFS puts two other bytes at the end of each sector of a record,
    which may be amid that.
    """
    data = file.read_bytes().rstrip(b"\0")  # qemu-img fills a descriptor up to a sector
    with image.open("rb") as there, mmap.mmap(there.fileno(), 0, access=mmap.ACCESS_READ) as all_of_it:
        return not data or any(all_of_it.find(part) >= 0 for part in (data[:SMALL], data[SMALL // 2 : 2 * SMALL]))


def damage(image: Path, file: Path, extents: list[Extent]) -> Iterator[tuple[int, int]]:
    """Blocks of `file` whose bytes in the image differ, as (file_offset, length in bytes)."""
    with image.open("rb") as there, file.open("rb") as here:
        for file_offset, image_offset, length, mark in extents:
            if mark:
                continue
            for at in range(0, length, PIECE):
                size = min(PIECE, length - at)
                there.seek(image_offset + at)
                here.seek(file_offset + at)
                found, wanted = there.read(size), here.read(size)
                if found == wanted:
                    continue
                for inner in range(0, size, BLOCK):
                    if found[inner : inner + BLOCK] != wanted[inner : inner + BLOCK]:
                        yield file_offset + at + inner, min(BLOCK, size - inner)


def _zero_outside(file: Path, extents: list[Extent]) -> bool:
    """Whether `file` is zero wherever no extent holds written data."""
    covered = np.zeros(-(-file.stat().st_size // 512) + 1, np.bool_)
    for file_offset, _, length, mark in extents:
        if mark != "unwritten":
            covered[file_offset // 512 : -(-(file_offset + length) // 512)] = True
    for at, block in pieces(file):
        sectors = np.frombuffer(block.ljust(-(-len(block) // 512) * 512, b"\0"), np.uint8).reshape(-1, 512)
        used = np.any(sectors, axis=1, keepdims=True).ravel()
        if (used & ~covered[at // 512 : at // 512 + len(used)]).any():
            return False
    return True


def recoverable_blocks(
    image: Path, built: Built, extents: dict[Path, list[Extent]], hashes: Path, work: Path
) -> NDArray[np.bool_]:
    """Per 4 KiB guest block: whether its bytes are still in the image, wherever the container has them.

    The container's own tables count as known: what is left of the guest is the measure, not what a reader of the
    damaged container sees."""
    wanted: Hashes = np.load(hashes)
    harmed = {file: list(damage(image, file, extents.get(file, []))) for file in built.files}
    units = _encoded(built)
    if units is not None:
        return _units_left(units, harmed[built.main], len(wanted))
    left = work / "left"
    left.mkdir()
    try:
        for file in built.files:
            copy = Path(shutil.copy(file, left / file.name))
            with copy.open("r+b") as target:
                for at, length in harmed[file]:
                    target.seek(at)
                    target.write(bytes(length))
        if _sectors_there(built, built.files, len(wanted))[wanted != ZERO_HASH].mean() < PLAIN:
            raise CorpusError(f"{built.name}: nobody can say what is left of a {built.maker.format}/{built.variant}")
        return _sectors_there(built, [left / file.name for file in built.files], len(wanted))
    finally:
        shutil.rmtree(left)


def _sectors_there(built: Built, files: list[Path], blocks: int) -> NDArray[np.bool_]:
    """Per guest block: whether each of its sectors that is not zero stands as it is in one of `files`."""
    known = {bytes(SECTOR)}
    for file in files:
        for _, block in pieces(file):
            known.update(block[at : at + SECTOR] for at in range(0, len(block), SECTOR))
    there = np.ones(blocks, np.bool_)
    for at, block in pieces(built.guest.raw):
        for inner in range(0, len(block), SECTOR):
            if block[inner : inner + SECTOR] not in known:
                there[(at + inner) // BLOCK] = False
    return there


def _units_left(units: Iterable[Unit], harmed: list[tuple[int, int]], blocks: int) -> NDArray[np.bool_]:
    """Per guest block: whether no stored byte of its unit was harmed."""
    there = np.ones(blocks, np.bool_)
    bad = {at // BLOCK for at, _ in harmed}
    for guest_offset, length, file_offset, stored in units:
        if bad.intersection(range(file_offset // BLOCK, (file_offset + stored - 1) // BLOCK + 1)):
            there[guest_offset // BLOCK : -(-(guest_offset + length) // BLOCK)] = False
    return there


def _encoded(built: Built) -> list[Unit] | None:
    """The units of a container with compressed data; None where the guest's sectors stand in the file as they are."""
    if built.maker.format == "qcow2" and built.variant in ("zlib", "zstd"):
        return list(_qcow2_units(built.main.read_bytes()))
    if built.maker.format == "vmdk" and built.variant == "streamOptimized" and built.driver:
        return list(_stream_units(built.main.read_bytes()))
    return None


def _qcow2_units(content: bytes) -> Iterator[Unit]:
    """Clusters of a qcow2 without snapshots and extended entries. Source: QEMU, docs/interop/qcow2.txt."""
    bits, l1_size, l1_at = struct.unpack_from(">I", content, 20)[0], *struct.unpack_from(">IQ", content, 36)
    cluster, split = 1 << bits, 62 - (bits - 8)
    for number, l1 in enumerate(struct.unpack_from(f">{l1_size}Q", content, l1_at)):
        table_at = l1 & 0x00FFFFFFFFFFFE00
        table = struct.unpack_from(f">{cluster // 8}Q", content, table_at) if table_at else ()
        for inner, entry in enumerate(table):
            guest_offset = (number * (cluster // 8) + inner) * cluster
            if entry >> 62 & 1:
                at = entry & ((1 << split) - 1)
                sectors = (entry >> split & ((1 << (62 - split)) - 1)) + 1
                yield guest_offset, cluster, at, sectors * SECTOR - at % SECTOR
            elif at := entry & 0x00FFFFFFFFFFFE00:
                yield guest_offset, cluster, at, cluster


def _stream_units(content: bytes) -> Iterator[Unit]:
    """Grains of a streamOptimized VMDK, by their markers: LBA, stored size, deflate data. Source: QEMU, vmdk.c."""
    grain, at = struct.unpack_from("<Q", content, 20)[0] * SECTOR, struct.unpack_from("<Q", content, 64)[0] * SECTOR
    while at + 12 <= len(content):
        lba, stored = struct.unpack_from("<QI", content, at)
        if not stored:  # the end of the stream
            return
        yield lba * SECTOR, grain, at, 12 + stored
        at += -(-(12 + stored) // SECTOR) * SECTOR
