"""Whether a file's bytes still lie in the image where they lay, and what a guest loses where they do not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .containers import qemu_name
from .disks import Built
from .sparse import BLOCK, ZERO_HASH, Hashes, block_hashes, pieces
from .tools import CorpusError, run
from .truth import Extent

PIECE = 4 << 20  # bytes compared at once
SECTOR = 512  # bytes; every format here keeps the guest's sectors whole and at whole sectors
PLAIN = 0.9  # share of the guest that stands in a container as it is, unless that is compressed
FRONT = 1 << 20  # bytes put back so that what is behind them can be read


def matches(image: Path, file: Path, extents: list[Extent]) -> bool:
    """Whether the written extents of `image` hold the bytes of `file`, and all else of `file` is zero."""
    return next(damage(image, file, extents), None) is None and _zero_outside(file, extents)


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
    left = work / "left"
    left.mkdir()
    try:
        for file in built.files:
            copy = Path(shutil.copy(file, left / file.name))
            with copy.open("r+b") as target:
                for at, length in damage(image, file, extents.get(file, [])):
                    target.seek(at)
                    target.write(bytes(length))
        there = _sectors_there(built, built.files, len(wanted))
        if there[wanted != ZERO_HASH].mean() > PLAIN:
            return _sectors_there(built, [left / file.name for file in built.files], len(wanted))
        return _decoded(built, left, wanted)
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


def _decoded(built: Built, left: Path, wanted: Hashes) -> NDArray[np.bool_]:
    """What QEMU reads of a container with compressed data, its front and end put back if it must."""
    if built.driver is None or built.encrypted:
        raise CorpusError(f"{built.name}: nobody can say what is left of a {built.maker.format}")
    raw, opened = left / "guest.raw", left / built.opened.name
    words = ("convert", "--salvage", "-O", "raw", qemu_name(built.driver, opened), raw)
    try:
        run("qemu-img", *words)
    except CorpusError:
        size = built.opened.stat().st_size
        with built.opened.open("rb") as source, opened.open("r+b") as target:
            for start in (0, max(0, size - FRONT)):
                source.seek(start)
                target.seek(start)
                target.write(source.read(FRONT))
        run("qemu-img", *words)
    return np.equal(block_hashes(raw, len(wanted) * BLOCK), wanted)
