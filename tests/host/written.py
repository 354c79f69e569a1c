"""What the host tests share: stamped files written in scrambled order, and reading them back through their runs."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vmcarve.model import RUN_DATA, RUN_HOLE, RUN_UNWRITTEN, HostFile, HostVolume, Reader

MIB = 1 << 20


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skips, and says why, where images cannot be made: no root, or a program that is not installed."""
    lacking = [p for p in programs if shutil.which(p) is None]
    why = "not root: makes images with mounts" if os.geteuid() != 0 else f"not installed: {', '.join(lacking)}"
    return pytest.mark.skipif(os.geteuid() != 0 or bool(lacking), reason=why)


def run(*argv: str | Path, timeout: float = 60) -> str:
    """A foreign tool's output; an exit status other than 0 fails the test with what the tool said."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout, errors="replace")
    assert done.returncode == 0, f"{' '.join(map(str, argv))}: {done.stdout}{done.stderr}"
    return done.stdout


def blank(path: Path, size: int) -> Path:
    """A sparse file of `size` bytes."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


@contextmanager
def mounted(at: Path, *mount: str | Path) -> Iterator[Path]:
    """Runs `mount` with `at` as its last word, and takes the mount down again, whatever happens."""
    at.mkdir(exist_ok=True)
    run(*mount, at)
    try:
        yield at
    finally:
        run("umount", at)


@contextmanager
def loop_device(path: Path) -> Iterator[str]:
    """A loop device over `path`. Another process may take the free device between finding and using it: try again."""
    for attempt in range(8):
        done = subprocess.run(["losetup", "--find", "--show", str(path)], capture_output=True, text=True, timeout=60)
        if done.returncode == 0:
            break
        time.sleep(0.1 * (attempt + 1))
    assert done.returncode == 0, done.stderr
    try:
        yield done.stdout.strip()
    finally:
        run("losetup", "--detach", done.stdout.strip())


def stamped(tag: int, offset: int, length: int) -> bytes:
    """Bytes of which every aligned eight name their file and place; offset and length are multiples of 8."""
    words = np.arange(offset // 8, (offset + length) // 8, dtype=np.uint64)
    return (words | np.uint64(tag << 40 | 0xA5 << 56)).tobytes()


def append_in_turns(paths: Sequence[Path], size: int, rng: random.Random, first_tag: int = 1) -> dict[str, bytes]:
    """Files that grow at the same time, so that their clusters interleave: base name -> content."""
    sizes = [size + rng.randrange(-4096, 4096) // 8 * 8 for _ in paths]
    done = [0] * len(paths)
    with_handles = [path.open("wb", buffering=0) for path in paths]
    try:
        while any(d < s for d, s in zip(done, sizes, strict=True)):
            i = rng.randrange(len(paths))
            step = min(rng.choice((16, 32, 64, 96)) << 10, sizes[i] - done[i])
            with_handles[i].write(stamped(first_tag + i, done[i], step))
            os.fsync(with_handles[i].fileno())
            done[i] += step
    finally:
        for handle in with_handles:
            handle.close()
    return {p.name: stamped(first_tag + i, 0, sizes[i]) for i, p in enumerate(paths)}


def write_sparsely(path: Path, size: int, unit: int, share: float, rng: random.Random, tag: int) -> bytes:
    """A sparse file whose units are written in random order with fsync in between: its content."""
    units = rng.sample(range(size // unit), int(size // unit * share))
    content = bytearray(size)
    with path.open("wb", buffering=0) as file:
        file.truncate(size)
        for n, k in enumerate(units):
            data = stamped(tag, k * unit, unit)
            os.pwrite(file.fileno(), data, k * unit)
            content[k * unit : (k + 1) * unit] = data
            if n % 16 == 0:
                os.fsync(file.fileno())
        os.fsync(file.fileno())
    return bytes(content)


def content(reader: Reader, file: HostFile) -> bytes:
    """A file's bytes through its runs."""
    if file.inline is not None:
        return file.inline
    out = bytearray(max(file.size, 0))
    for at, image_offset, length, kind in file.runs.tolist():
        if kind == RUN_DATA:
            assert at + length <= len(out) or file.size < 0
            out[at : at + length] = reader.read(image_offset, length)
    return bytes(out)


def check_file(file: HostFile, size: int) -> None:
    """The contract of HostFile.runs, for an image of any bytes; `size`: bytes that an image offset may reach."""
    rows = file.runs
    assert rows.dtype == np.int64 and rows.ndim == 2 and rows.shape[1] == 4
    assert np.isin(rows[:, 3], (RUN_DATA, RUN_HOLE, RUN_UNWRITTEN)).all()
    assert (rows[:, 0] >= 0).all() and (rows[:, 2] > 0).all() and (rows[:, 0] + rows[:, 2] > 0).all()
    assert (rows[1:, 0] >= rows[:-1, 0] + rows[:-1, 2]).all(), "rows overlap in the file"
    hole = rows[:, 3] == RUN_HOLE
    assert (rows[hole, 1] == -1).all() and (rows[~hole, 1] >= -1).all()
    data = rows[rows[:, 3] == RUN_DATA]
    assert (data[:, 1] >= 0).all() and (data[:, 1] + data[:, 2] <= size).all(), "data beyond the volume"
    if file.size >= 0 and len(rows):
        assert rows[-1, 0] + rows[-1, 2] <= file.size
    assert file.size >= -1 and (file.inline is None or len(file.inline) == file.size)
    file.name.encode(), file.identity.encode()


def check_free(free: np.ndarray, start: int, end: int) -> None:
    """The contract of HostVolume.free."""
    assert free.dtype == np.int64 and free.ndim == 2 and free.shape[1] == 2
    assert (free[:, 1] > 0).all() and (free[1:, 0] > free[:-1, 0] + free[:-1, 1]).all(), "not merged, or not rising"
    if len(free):
        assert free[0, 0] >= start and free[-1].sum() <= end


def by_name(volume: HostVolume, deleted: bool | None = None) -> dict[str, HostFile]:
    """The first candidate of each path."""
    out: dict[str, HostFile] = {}
    for file in volume.files():
        if deleted is None or file.deleted == deleted:
            out.setdefault(file.name, file)
    return out


def assert_disjoint(free: np.ndarray, files: Iterable[HostFile]) -> None:
    """No byte of these files lies in free space."""
    for file in files:
        for _, image_offset, length, kind in file.runs.tolist():
            if kind != RUN_HOLE:
                i = int(np.searchsorted(free[:, 0], image_offset + length)) - 1
                assert i < 0 or free[i].sum() <= image_offset, f"{file.name} lies in free space"


def fat_volume(folder: Path, *options: str) -> bytes:
    """A FAT volume of 40 MiB, half full: directories with files of some KiB, and large files between them."""
    rng = random.Random(1)
    tree = folder / "tree"
    for n in range(60):
        (tree / f"d{n:02}").mkdir(parents=True)
        (tree / f"d{n:02}" / "A file with a name that is long.txt").write_bytes(rng.randbytes(3000 + n))
        if n % 4 == 0:
            (tree / f"d{n:02}" / "large.bin").write_bytes(rng.randbytes(MIB + n))
    run("mkfs.vfat", *options, blank(folder / "volume", 40 * MIB))
    run("mcopy", "-s", "-Q", "-i", folder / "volume", *sorted(tree.iterdir()), "::")
    return (folder / "volume").read_bytes()
