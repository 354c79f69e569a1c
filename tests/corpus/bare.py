"""Images without a host: container files whole or cut at 4 KiB boundaries, in noise."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from . import payload
from .hosts import lognormal
from .sparse import BLOCK
from .truth import Extent

SMALLEST_GAP, LARGEST_GAP = 1, 96  # blocks of noise between two pieces
CHANCE_OF_GAP = 0.7
NOISES = ("random", "text", "compressed", "zero", "files", "files")


def noise(rng: random.Random, size: int) -> bytes:
    """`size` bytes of one kind of foreign data."""
    kind = rng.choice(NOISES)
    if kind == "zero":
        return bytes(size)
    if kind == "files":
        return payload.stretch(rng, size)
    if kind == "random":
        return payload.noise(rng, size)
    if kind == "text":
        return payload.text(rng, size + 1).encode()[:size]
    packed = b""
    while len(packed) < size:
        packed += zlib.compress(payload.text(rng, 4 * size).encode())
    return packed[:size]


def cut(file: Path, mean: int, rng: random.Random, unit: int = 0) -> list[tuple[Path, int, int]]:
    """(file, file_offset, length) of fragments: lognormal in whole blocks with this mean in bytes, or all of `unit`.

    One piece where both are 0."""
    size = file.stat().st_size
    if mean == unit == 0:
        return [(file, 0, size)]
    fragments, at = [], 0
    while at < size:
        length = unit or lognormal(rng, mean)
        fragments.append((file, at, min(length, size - at)))
        at += length
    return fragments


def lay_out(
    image: Path, files: Sequence[Path], mean: int, rng: random.Random, unit: int = 0
) -> dict[Path, list[Extent]]:
    """Write all files into the new `image`, fragments shuffled; return where each file's bytes lie."""
    fragments = [fragment for file in files for fragment in cut(file, mean, rng, unit)]
    rng.shuffle(fragments)
    extents: dict[Path, list[Extent]] = {file: [] for file in files}
    with image.open("xb") as target:
        _gap(target, rng, LARGEST_GAP)
        if unit:
            target.write(payload.noise(rng, -target.tell() % unit))
        for file, file_offset, length in fragments:
            extents[file].append((file_offset, target.tell(), length, ""))
            with file.open("rb") as source:
                source.seek(file_offset)
                target.write(source.read(length))
            target.write(payload.noise(rng, -length % BLOCK))
            if unit:  # a volume of such units: what is not ours is whole units too
                target.write(payload.noise(rng, -target.tell() % unit))
                if rng.random() < CHANCE_OF_GAP / 2:
                    target.write(payload.stretch(rng, unit))
            elif mean == 0 or rng.random() < CHANCE_OF_GAP:
                _gap(target, rng, min(LARGEST_GAP, mean // BLOCK // 2) if mean else LARGEST_GAP)
    return {file: sorted(rows) for file, rows in extents.items()}


def write_pieces(image: Path, pieces: Iterable[tuple[str, bytes]], rng: random.Random) -> None:
    """Write named pieces into the new `image`, each at a block, with noise around them."""
    with image.open("xb") as target:
        _gap(target, rng, LARGEST_GAP)
        for _, content in pieces:
            target.write(content)
            target.write(noise(rng, -len(content) % BLOCK))
            _gap(target, rng, LARGEST_GAP)


def _gap(target: BinaryIO, rng: random.Random, most: int) -> None:
    """Noise of up to `most` blocks."""
    target.write(noise(rng, rng.randint(SMALLEST_GAP, most) * BLOCK))
