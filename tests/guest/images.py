"""File systems made by the real mkfs programs, without mounting, and what the sweep would find in them."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import run
from vmcarve.model import Evidence, EvidenceBatch, GuestKind, Volume
from vmcarve.source import BytesReader, open_image

MIB = 1 << 20


def need(*tools: str) -> None:
    """Skips a test on a machine that lacks a tool."""
    missing = [t for t in tools if shutil.which(t) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def tree(where: Path, seed: int = 1, count: int = 40) -> Path:
    """A folder of small files with distinct content, in two levels."""
    rng = random.Random(seed)
    for i in range(count):
        path = where / f"dir{i % 4}" / f"file{i}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(100, 30_000)))
    return where


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as f:
        f.truncate(size)
    return path


def poke(path: Path, offset: int, data: bytes) -> None:
    """Overwrites bytes of an image in place."""
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(data)


def flip(path: Path, offset: int) -> None:
    """Changes one bit."""
    with path.open("r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ 1]))


def blkid(path: Path, tag: str, offset: int = 0) -> str:
    """One value that blkid's low-level probing reports, "" when it reports none."""
    return run("blkid", "-p", "-O", str(offset), "-s", tag, "-o", "value", path, check=False).stdout.strip()


def probe(guest: GuestKind, path: Path, offset: int = 0, limit: int | None = None) -> Volume | None:
    with open_image(path) as image:
        return guest.probe(image, offset, image.size - offset if limit is None else limit)


def sound(guest: GuestKind, path: Path) -> Volume:
    """The volume at the image's start, which must agree with itself."""
    volume = probe(guest, path)
    assert volume is not None and volume.consistent, volume
    return volume


def _hits(path: Path, guest: GuestKind) -> list[tuple[int, int]]:
    """(index of the signature, structure offset) wherever a magic stands at a sector."""
    size = os.path.getsize(path) // 512 * 512
    sectors = np.memmap(path, np.uint8, "r", shape=(size,)).reshape(-1, 512)
    out: list[tuple[int, int]] = []
    for i, s in enumerate(guest.signatures):
        at = s.at % 512
        same = (sectors[:, at : at + len(s.magic)] == np.frombuffer(s.magic, np.uint8)).all(axis=1)
        out += [(i, k * 512 - s.at // 512 * 512) for k in np.flatnonzero(same).tolist()]
    return out


def evidence(guest: GuestKind, path: Path) -> list[Evidence]:
    """What the sweep confirms of the sparse kinds of `guest`, in image order."""
    found: list[Evidence] = []
    with open_image(path) as image:
        for i, offset in _hits(path, guest):
            s = guest.signatures[i]
            if not s.dense and offset >= 0 and guest.confirm is not None:
                row = guest.confirm(image, offset, s)
                found += [row] if row is not None else []
    return sorted(found, key=lambda e: e.image_offset)


def batches(guest: GuestKind, path: Path) -> list[EvidenceBatch]:
    """What the sweep confirms of the dense kinds, one batch a kind."""
    out: list[EvidenceBatch] = []
    with open_image(path) as image:
        for i, s in enumerate(guest.signatures):
            if s.dense and guest.confirm_batch is not None:
                where = [o for k, o in _hits(path, guest) if k == i and o + s.size <= image.size]
                blocks = np.frombuffer(b"".join(image.read(o, s.size) for o in where), np.uint8).reshape(-1, s.size)
                batch = guest.confirm_batch(blocks, np.array(where, np.int64), s)
                out += [batch] if batch is not None else []
    return out


def from_bytes(guest: GuestKind, data: bytes, holes: tuple[tuple[int, int], ...] = ()) -> Volume | None:
    return guest.probe(BytesReader(data, holes), 0, len(data))


def planted(guest: GuestKind, tmp_path: Path) -> Path:
    """A file with every magic of `guest` in text, in zeros, in noise and among code, each at the right place."""
    rng = random.Random(9)
    out = bytearray()
    for s in guest.signatures:
        reach = -(-(s.at + len(s.magic)) // 512) * 512 + 4096
        for filler in (b"lorem ipsum dolor sit amet, ", bytes(1), rng.randbytes(100_000), b"\xff", b"\x55\xaa\xe8\x90"):
            block = bytearray((filler * (reach // len(filler) + 1))[:reach])
            block[s.at : s.at + len(s.magic)] = s.magic
            block[510:512] = b"\x55\xaa"
            if s.at not in (0, 510):
                block[0:1] = b"\xeb"
            block[s.at : s.at + len(s.magic)] = s.magic
            out += block
    path = tmp_path / "planted.bin"
    path.write_bytes(bytes(out) + bytes(128 << 10))
    return path


def finds_nothing(guest: GuestKind, tmp_path: Path) -> None:
    """Asserts that magics alone are no evidence, and that noise is no volume."""
    path = planted(guest, tmp_path)
    assert evidence(guest, path) == [] and batches(guest, path) == []
    data = path.read_bytes()
    for offset in range(0, len(data), 4096):
        assert guest.probe(BytesReader(data), offset, len(data) - offset) is None
