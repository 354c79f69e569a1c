"""Guests made by real tools without a mount, and images that hold their blocks in another order."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.helpers import run
from vmcarve.assemble.content import Guest, Mechanism, Told
from vmcarve.assemble.content.files import Files
from vmcarve.assemble.tails import open_volumes
from vmcarve.disk import VirtualDisk
from vmcarve.model import GuestMap
from vmcarve.source import BytesReader

BLOCK = 4096
MIB = 1 << 20
START = 7 * BLOCK  # the container's first byte is not the image's


def ext4(folder: Path, tree: Path, size: int = 16 * MIB, block: int = BLOCK) -> bytes:
    """A bare ext4 that holds the files of `tree`."""
    path = folder / "volume"
    with path.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-b", str(block), "-O", "^has_journal", "-d", tree, path)
    return path.read_bytes()


def guest_of(disk: bytes, holes: list[tuple[int, int]] | None = None, start: int = START) -> Guest:
    """The guest as a solver has it that knows all of it but `holes` (offset, length)."""
    kept = bytearray(disk)
    whole = BytesReader(disk)
    for at, n in holes or []:
        kept[at : at + n] = bytes(n)
    files = Files.of(open_volumes(whole, [(0, len(disk))]))
    reader = VirtualDisk(BytesReader(bytes(kept), holes or []), GuestMap.flat(len(disk)))
    return Guest(start, reader, [(0, len(disk))], files, np.empty((0, 3), np.int64))


def places(disk: bytes, content: bytes) -> int:
    """Where a file of a disk with this content begins: its first bytes exist once."""
    at = disk.find(content[:1000])
    assert at >= 0 and at % 512 == 0 and disk.find(content[:1000], at + 1) < 0
    return at


@dataclass
class Image:
    """Pieces of disks in random order, with noise between."""

    data: bytes

    @classmethod
    def of(cls, disk: bytes, seed: int, largest: int = 5, phase: int = 0) -> Image:
        """All blocks of a disk that hold something, in pieces of 1 to `largest` blocks; cut at `phase` in a block."""
        rng = random.Random(seed)
        pieces = [disk[:phase]] if phase else []
        at = phase
        while at < len(disk):
            n = rng.randint(1, largest) * BLOCK
            if any(disk[at : at + n]):
                pieces.append(disk[at : at + n].ljust(BLOCK, b"\0"))
            at += n
        rng.shuffle(pieces)
        out = bytearray()
        for piece in pieces:
            out += rng.randbytes(rng.randrange(3) * BLOCK) + piece + bytes(-len(piece) % BLOCK)
        return cls(bytes(out))


def told(mechanism: Mechanism, image: Image, guests: list[Guest], number: int = 0, step: int = 1 << 20) -> Told:
    """What a mechanism says of a guest when it has seen the image, a part at a time."""
    mechanism.want(guests)
    for at in range(0, len(image.data), step):
        n = min(step, len(image.data) - at)
        mechanism.see(np.frombuffer(image.data[at : at + n + BLOCK], np.uint8), at, n)
    return mechanism.points(number)


def right(found: Told, image: Image, disk: bytes, start: int = START, phase: int = 0) -> list[bool]:
    """Whether the image holds at each point what the disk holds there.

    phase: where in a block of the disk its blocks begin on the image."""
    pairs = [(f * BLOCK + phase, start + (f + delta) * BLOCK + phase)
             for f, delta in zip(found.file_block.tolist(), found.delta.tolist(), strict=True)]
    return [image.data[p : p + BLOCK] == disk[at : at + BLOCK].ljust(BLOCK, b"\0") for at, p in pairs]


def true_points(found: Told, image: Image, disk: bytes, start: int = START, phase: int = 0) -> set[int]:
    """The file blocks of the points, all of which must be right."""
    assert all(right(found, image, disk, start, phase))
    return set(found.file_block.tolist())
