"""Real file systems in sparse files: made by mkfs, written through a loop mount, and told of by filefrag."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers import run
from vmcarve.model import (
    RUN_CHECKED,
    RUN_DATA,
    RUN_HOLE,
    RUN_INLINE,
    RUN_REUSED,
    RUN_UNWRITTEN,
    HostFile,
    HostVolume,
    Reader,
)

needs_loop = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("filefrag") or not shutil.which("mount"),
    reason="needs root (loop mounts) and filefrag",
)


RUNS = (RUN_DATA, RUN_HOLE, RUN_UNWRITTEN, RUN_INLINE, RUN_REUSED, RUN_CHECKED)


@dataclass(slots=True)
class Truth:
    """A file as it was: bytes, sha256 of its content, runs as in model.HostFile."""

    size: int
    sha256: str
    runs: npt.NDArray[np.int64]


@dataclass(slots=True)
class Disk:
    """One file system in an image file."""

    image: Path
    point: Path
    truth: dict[str, Truth] = field(default_factory=dict[str, Truth])

    @contextmanager
    def mounted(self, *options: str) -> Iterator[Path]:
        """Mounts the image while the block lasts."""
        self.point.mkdir(exist_ok=True)
        done = run("mount", "-o", ",".join(["loop", *options]), self.image, self.point, check=False)
        if done.returncode != 0:
            pytest.skip(f"this kernel does not mount it: {done.stderr.strip()}")
        try:
            yield self.point
        finally:
            run("sync", "-f", self.point)
            run("umount", self.point)

    def record(self, *names: str) -> None:
        """Notes the truth of mounted files, after everything is on the disk."""
        run("sync", "-f", self.point)
        for name in names or [str(p.relative_to(self.point)) for p in self.point.rglob("*") if p.is_file()]:
            path = self.point / name
            self.truth[name] = Truth(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest(), extents(path))


def make(folder: Path, size: int, *mkfs: str) -> Disk:
    """A new file system of `size` bytes made by the command `mkfs` (the image's path is added)."""
    if shutil.which(mkfs[0]) is None:
        pytest.skip(f"{mkfs[0]} is not installed")
    image = folder / "host.img"
    with image.open("wb") as f:
        f.truncate(size)
    run(*mkfs, image)
    return Disk(image, folder / "mnt")


def extents(path: Path) -> npt.NDArray[np.int64]:
    """HostFile runs of a file as FIEMAP tells them (filefrag -v), neighbours merged."""
    text = run("filefrag", "-v", path).stdout
    found = re.search(r"blocks? of (\d+) bytes", text)
    assert found is not None, text
    unit = int(found[1])
    rows: list[list[int]] = []
    pattern = r"^\s*\d+:\s+(\d+)\.\.\s*\d+:\s+(\d+)\.\.\s*\d+:\s+(\d+):(.*)$"
    for logical, physical, length, flags in re.findall(pattern, text, re.M):
        kind = RUN_UNWRITTEN if "unwritten" in flags else RUN_DATA
        row = [int(logical) * unit, int(physical) * unit, int(length) * unit, kind]
        before = rows[-1] if rows else [0, 0, 0, -1]
        if before[3] == kind and before[0] + before[2] == row[0] and before[1] + before[2] == row[1]:
            before[2] += row[2]
        else:
            rows.append(row)
    return np.array(rows, np.int64).reshape(-1, 4)


def stamp(name: str, number: int, length: int = 4096) -> bytes:
    """Content that exists once."""
    return (f"{name} {number:09d} ".encode() * (length // 8))[:length]


def append_in_turns(point: Path, names: list[str], rounds: int, seed: int = 0) -> None:
    """Grows files in turns by 1 to 16 blocks, each step on the disk before the next: runs of different files mix."""
    rng = random.Random(seed)
    count = dict.fromkeys(names, 0)
    for _ in range(rounds):
        for name in rng.sample(names, len(names)):
            path = point / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as f:
                for _ in range(rng.randint(1, 16)):
                    f.write(stamp(name, count[name]))
                    count[name] += 1
                f.flush()
                os.fsync(f.fileno())


def write_at_random(point: Path, name: str, units: int, unit: int, writes: int, seed: int = 0) -> None:
    """A sparse file of `units` units of which `writes` are written, in random order."""
    rng = random.Random(seed)
    (point / name).parent.mkdir(parents=True, exist_ok=True)
    with (point / name).open("wb") as f:
        f.truncate(units * unit)
        for i, at in enumerate(rng.sample(range(units), writes)):
            f.seek(at * unit)
            f.write(stamp(name, at, unit))
            if i % 97 == 0:
                f.flush()
                os.fsync(f.fileno())


def content(reader: Reader, file: HostFile) -> bytes:
    """A file's bytes through its runs."""
    out = bytearray(file.size)
    for at, where, length, kind in file.runs.tolist():
        if kind == RUN_DATA:
            data = reader.read(where, min(length, max(file.size - at, 0)))
            out[at : at + len(data)] = data
    if file.inline is not None:
        out[: len(file.inline)] = file.inline
    return bytes(out)


def up_to_end(runs: npt.NDArray[np.int64], size: int) -> list[list[int]]:
    """Runs as far as the file goes: XFS keeps space behind the end while a file grows, and lets it go later."""
    runs = runs[runs[:, 0] < size].copy()
    runs[:, 2] = np.minimum(runs[:, 2], size - runs[:, 0])
    return runs.tolist()


def assert_exact(reader: Reader, file: HostFile, truth: Truth) -> None:
    """The file is what it was: size, place of every block, content."""
    assert up_to_end(file.runs, truth.size) == up_to_end(truth.runs, truth.size)
    assert file.size == truth.size
    assert hashlib.sha256(content(reader, file)).hexdigest() == truth.sha256


def assert_contract(volume: HostVolume, reader: Reader) -> list[HostFile]:
    """Asserts what model.HostFile and HostVolume.free promise, whatever the image holds; returns the files."""
    free = volume.free()
    assert free.dtype == np.int64 and (free[:, 1] > 0).all() and (free[1:, 0] > free[:-1].sum(axis=1)).all()
    files = list(volume.files())
    for file in files:
        runs = file.runs
        assert runs.dtype == np.int64 and runs.shape[1:] == (4,)
        assert (runs[:, 2] > 0).all() and (runs[:, 0] >= 0).all() and np.isin(runs[:, 3], RUNS).all()
        assert (runs[1:, 0] >= runs[:-1, 0] + runs[:-1, 2]).all(), "runs overlap in the file"
        placed = runs[:, 1] >= 0
        assert (placed | (runs[:, 3] == 1)).all()
        assert (runs[placed, 1] >= volume.offset).all()
        assert (runs[placed, 1] + runs[placed, 2] <= volume.offset + volume.size).all()
        assert file.size >= -1
    live = list(itertools.takewhile(lambda f: not f.deleted, files))
    again = list(volume.live())
    assert [(f.identity, f.size, f.complete) for f in again] == [(f.identity, f.size, f.complete) for f in live]
    assert all(np.array_equal(a.runs, b.runs) for a, b in zip(again, live, strict=True))
    return files


def best(files: list[HostFile], name: str, deleted: bool = True) -> HostFile:
    """The first candidate of this path."""
    found = [f for f in files if f.name == name and f.deleted is deleted]
    assert found, f"{name} is not among {[(f.name, f.origin) for f in files if f.deleted is deleted]}"
    return found[0]
