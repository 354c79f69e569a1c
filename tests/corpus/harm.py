"""What is done to the bytes of containers after they lay on the host: encryption in place, overwriting, cutting."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

from . import payload
from .partitions import MIB
from .truth import Extent, HostFile

FIRST, FIRST_8, TENTH, STRIDED = "first-1m", "first-8m", "every-10th", "strided"
TAIL, CUT, FOOTER = "tail", "cut", "footer"
KINDS = (FIRST, FIRST_8, TENTH, STRIDED, TAIL, CUT, FOOTER)

STRIDE = 64 << 10  # bytes of one encrypted unit of STRIDED
ENCRYPTED_OF_TEN = (0, 3, 6)  # units of each ten that it takes
TAIL_SHARE = 0.25  # of a container that is overwritten from its end
CUT_SHARE = 0.25  # of the image that is cut off
FOOTER_SIZE = 4096  # bytes at the end of a container that hold its footer


def harm(image: Path, files: Sequence[HostFile], kind: str, rng: random.Random) -> None:
    """Harm every file where it lies in the image, and note where; CUT shortens the image instead."""
    if kind == CUT:
        os.truncate(image, int(image.stat().st_size * (1 - CUT_SHARE)) // 4096 * 4096)
        return
    with image.open("r+b") as target:
        for one in files:
            for start, end in ranges(one.size, kind):
                one.harmed.append((start, end - start))
                for at, length in placed(one.extents, start, end):
                    target.seek(at)
                    target.write(payload.stretch(rng, length) if kind == TAIL else payload.noise(rng, length))


def ranges(size: int, kind: str) -> list[tuple[int, int]]:
    """(start, end) in a file of `size` bytes that are harmed."""
    if kind == FIRST:
        return [(0, min(size, MIB))]
    if kind == FIRST_8:
        return [(0, min(size, 8 * MIB))]
    if kind == TENTH:
        return [(at, min(size, at + MIB)) for at in range(0, size, 10 * MIB)]
    if kind == STRIDED:
        units = range(-(-size // STRIDE))
        return [(n * STRIDE, min(size, (n + 1) * STRIDE)) for n in units if n % 10 in ENCRYPTED_OF_TEN]
    if kind == TAIL:
        return [(int(size * (1 - TAIL_SHARE)) // 4096 * 4096, size)]
    if kind == FOOTER:
        return [(max(0, size - FOOTER_SIZE), size)]
    raise ValueError(f"no harm called {kind}")


def placed(extents: Sequence[Extent], start: int, end: int) -> list[tuple[int, int]]:
    """(image_offset, length) of the bytes [start, end) of a file; holes have none."""
    found = []
    for file_offset, at, length, mark in extents:
        first, last = max(start, file_offset), min(end, file_offset + length)
        if first < last and not mark:
            found.append((at + first - file_offset, last - first))
    return found
