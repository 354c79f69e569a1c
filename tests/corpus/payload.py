"""The files that guests and hosts hold: real ones of this machine and generated ones, chosen by seed."""

from __future__ import annotations

import contextlib
import functools
import gzip
import os
import random
import struct
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SMALLEST, LARGEST = 200, 1 << 20  # bytes of a machine file that we use
MOST_FILES = 6000  # machine files considered; the rest adds nothing

WORDS = (
    "disk guest host block grain sector cluster table map header footer snapshot chain parent extent image offset"
    " proof pin sweep case evidence journal inode record volume mirror archive invoice contract meeting report"
).split()

WORDS_A_LINE, LINE = 9, 66  # words, and characters on average

Named = tuple[str, bytes]


def machine_roots() -> tuple[Path, ...]:
    """Directories with text, code, programs, compressed files and pictures, where they exist."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    candidates = (
        Path("/usr/share/doc"),
        stdlib,
        Path("/usr/bin"),
        Path("/usr/share/pixmaps"),
        Path("/usr/lib/python3"),
    )
    return tuple(path for path in candidates if path.is_dir())


@functools.cache
def machine_files() -> tuple[Path, ...]:
    """Regular files of a usable size below the roots, in a fixed order, evenly from every root."""
    found: list[Path] = []
    for root in machine_roots():
        here: list[Path] = []
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if name not in ("__pycache__", "site-packages"))
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and SMALLEST <= path.stat().st_size <= LARGEST:
                    here.append(path)
            if len(here) >= MOST_FILES:
                break
        found += here[: MOST_FILES // 4]
    return tuple(found)


def files(key: str, budget: int) -> Iterator[Named]:
    """(relative name, content) of about `budget` bytes in all; equal keys give equal files on one machine."""
    rng = random.Random(f"payload {key}")
    machine, made, number = machine_files(), 0, 0
    yield "README.txt", f"This is the disk called {key}.\n{text(rng, 900)}".encode()
    while made < budget:
        number += 1
        if machine and rng.random() < 0.6:
            path = rng.choice(machine)
            try:
                content = path.read_bytes()
            except OSError:
                continue
            name = f"{path.parent.name}/{number:04d}-{path.name}"
        else:
            name, content = generated(rng, number)
        content = content[: max(budget - made, SMALLEST)]
        made += len(content)
        yield name, content


def stretch(rng: random.Random, size: int) -> bytes:
    """`size` bytes of ordinary content: machine files one after the other, now and then random bytes."""
    parts, made = list[bytes](), 0
    while made < size:
        content = noise(rng, rng.randrange(4096, 1 << 18))
        if rng.random() < 0.9 and (machine := machine_files()):
            with contextlib.suppress(OSError):
                content = rng.choice(machine).read_bytes()
        parts.append(content)
        made += len(content)
    return b"".join(parts)[:size]


def generated(rng: random.Random, number: int) -> Named:
    """One file of our own: text, numbers, random bytes, a compressed file or a picture."""
    kind = rng.choice(("text", "csv", "random", "gz", "png", "zeros"))
    size = int(2 ** rng.uniform(9, 19))
    if kind == "text":
        return f"home/notes-{number:04d}.txt", text(rng, size).encode()
    if kind == "csv":
        columns = np.random.default_rng(rng.getrandbits(64)).integers(0, 10**6, (size // 14 + 1, 2)).tolist()
        return f"home/table-{number:04d}.csv", "\n".join(f"{a},{b}" for a, b in columns).encode()
    if kind == "gz":
        return f"backup/log-{number:04d}.gz", gzip.compress(text(rng, size * 2).encode(), mtime=0)
    if kind == "png":
        return f"pictures/{number:04d}.png", png(rng, 16 + size // 4096)
    if kind == "zeros":
        return f"var/sparse-{number:04d}.db", noise(rng, 4096) + bytes(size) + noise(rng, 4096)
    return f"var/random-{number:04d}.bin", noise(rng, size)


def noise(rng: random.Random, size: int) -> bytes:
    """`size` random bytes."""
    return np.random.default_rng(rng.getrandbits(64)).bytes(size)


def text(rng: random.Random, size: int) -> str:
    """About `size` characters of lines of words, no two lines likely equal."""
    lines = size // LINE + 1
    words, numbers = rng.choices(WORDS, k=WORDS_A_LINE * lines), rng.getrandbits(32)
    step = rng.getrandbits(16) | 1
    return "\n".join(
        f"{numbers + step * at:x} " + " ".join(words[WORDS_A_LINE * at : WORDS_A_LINE * (at + 1)])
        for at in range(lines)
    )


def png(rng: random.Random, side: int) -> bytes:
    """A valid grey picture of side x side pixels."""
    grey = np.add.outer(np.arange(side) ** 2, 3 * np.arange(side)) + np.frombuffer(noise(rng, side), np.uint8) % 16
    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in grey)
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
