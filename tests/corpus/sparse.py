"""Reading, copying and hashing big sparse files by their data runs."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096  # bytes; the unit of guest_hashes
PIECE = 4 << 20  # bytes read at once

Hashes = NDArray[np.uint64]


def data_runs(path: Path) -> Iterator[tuple[int, int]]:
    """(offset, length) in bytes of every run that the file system holds data for, rising."""
    size = path.stat().st_size
    fd = os.open(path, os.O_RDONLY)
    try:
        at = 0
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            at = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, at - start
    finally:
        os.close(fd)


def pieces(path: Path, unit: int = BLOCK) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of the data runs, widened to whole units and cut to at most PIECE bytes."""
    size, done = path.stat().st_size, 0
    with path.open("rb") as file:
        for start, length in data_runs(path):
            at = max(start // unit * unit, done)
            end = min(-(-(start + length) // unit) * unit, size)
            while at < end:
                file.seek(at)
                block = file.read(min(PIECE, end - at))
                yield at, block
                at += len(block)
            done = max(done, at)


def copy_into(source: Path, target: Path, target_offset: int = 0) -> None:
    """Write the non-zero units of `source` into the existing file `target` at `target_offset`; zeros stay holes."""
    with target.open("r+b") as file:
        for at, block in pieces(source):
            for start, end in nonzero_runs(block):
                file.seek(target_offset + at + start)
                file.write(block[start:end])


def nonzero_runs(block: bytes, unit: int = BLOCK) -> Iterator[tuple[int, int]]:
    """(start, end) of the runs of whole units in `block` that hold a byte other than zero."""
    units = -(-len(block) // unit)
    padded = np.zeros(units * unit, np.uint8)
    padded[: len(block)] = np.frombuffer(block, np.uint8)
    used = np.concatenate(([False], padded.reshape(units, unit).any(axis=1), [False]))
    edges = np.flatnonzero(used[1:] != used[:-1])
    for start, end in edges.reshape(-1, 2).tolist():
        yield start * unit, min(end * unit, len(block))


def new_sparse(path: Path, size: int) -> Path:
    """A new file of `size` bytes that is one hole."""
    with path.open("xb") as file:
        file.truncate(size)
    return path


def sha256(path: Path) -> str:
    """SHA-256 of the whole content, hexadecimal; holes are not read."""
    digest, zeros, done = hashlib.sha256(), memoryview(bytes(PIECE)), 0

    def skip(end: int) -> None:
        for at in range(done, end, PIECE):
            digest.update(zeros[: min(PIECE, end - at)])

    for at, block in pieces(path):
        skip(at)
        digest.update(block)
        done = at + len(block)
    skip(path.stat().st_size)
    return digest.hexdigest()


def block_hash(block: bytes) -> int:
    """BLAKE2b of 8 bytes of one block padded with zeros to BLOCK, as a little-endian number."""
    return int.from_bytes(hashlib.blake2b(block.ljust(BLOCK, b"\0"), digest_size=8).digest(), "little")


ZERO_HASH = block_hash(b"")


def block_hashes(path: Path, size: int) -> Hashes:
    """One hash per BLOCK of the first `size` bytes of `path`, which count as zeros behind its end."""
    hashes = np.full(-(-size // BLOCK), ZERO_HASH, np.uint64)
    for at, block in pieces(path):
        for start, end in nonzero_runs(block):
            for inner in range(start, end, BLOCK):
                if (at + inner) < size:
                    hashes[(at + inner) // BLOCK] = block_hash(block[inner : min(inner + BLOCK, size - at)])
    return hashes
