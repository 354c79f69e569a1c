"""Whether a file's bytes still lie in the image where they lay, and what a guest loses where they do not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .containers import qemu_name
from .disks import Built
from .sparse import BLOCK, Hashes, block_hashes, pieces
from .tools import CorpusError, run
from .truth import Extent

PIECE = 4 << 20  # bytes compared at once


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
    """Per 4 KiB guest block: whether a container with only the surviving bytes still gives it."""
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
        raw = left / "guest.raw"
        try:
            if built.driver is None or built.encrypted:
                raise CorpusError("no reader for what is left")
            run("qemu-img", "convert", "-O", "raw", qemu_name(built.driver, left / built.opened.name), raw)
        except CorpusError:  # the container's own map is gone, so nobody can say
            return np.zeros(len(wanted), np.bool_)
        found = block_hashes(raw, len(wanted) * BLOCK)
        return np.equal(found, wanted)
    finally:
        shutil.rmtree(left)
