"""Is memory bounded by the buffers, whatever the size of the image? Peak resident memory of whole runs, in children."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmcarve import open_case

from .common import MIB, Child, record, vmcarve_child

SIZE_MIB = int(os.environ.get("VMCARVE_BENCH_MEMORY_MIB", "8192"))
SPARSE_GIB = int(os.environ.get("VMCARVE_BENCH_SPARSE_GIB", "64"))
BLOCK = 64  # MiB that the image repeats
GUEST = 8  # MiB of the guest inside
LIMIT = 300  # MiB, and twice the evidence table


def block(folder: Path) -> tuple[bytes, str]:
    """64 MiB of a disk: random bytes, an ext4 with files, a qcow2 with clusters out of order; and its SHA-256."""
    rng = np.random.default_rng(5)
    files = folder / "files"
    files.mkdir()
    for n in range(200):
        (files / f"file-{n}").write_bytes(rng.bytes(1000 * (n + 1)))
    ext4, raw, qcow2 = folder / "ext4", folder / "raw", folder / "qcow2"
    with ext4.open("wb") as f:
        f.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", files, ext4], check=True, timeout=60)
    raw.write_bytes(rng.bytes(GUEST * MIB))
    subprocess.run(["qemu-img", "convert", "-W", "-m", "8", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True,
                   timeout=60)
    data = rng.bytes(8 * MIB) + ext4.read_bytes() + qcow2.read_bytes()
    data += rng.bytes(-len(data) % 4096)
    assert len(data) <= BLOCK * MIB
    return data + rng.bytes(BLOCK * MIB - len(data)), hashlib.sha256(qcow2.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """SIZE_MIB of the block again and again, and what the disk in it must hash to; gone after the benches."""
    folder = tmp_path_factory.mktemp("memory")
    data, digest = block(folder)
    path = folder / "image"
    needed = 2 * SIZE_MIB * MIB  # the image, and what is recovered from it
    assert shutil.disk_usage(folder).free > needed, f"{folder} has no room for {needed} bytes: set TMPDIR"
    with path.open("wb") as f:
        for _ in range(SIZE_MIB // BLOCK):
            f.write(data)
    yield path, digest
    path.unlink()


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, str]]:
    """SPARSE_GIB of hole with the block once in each GiB; how many there are, and what the disk in it hashes to."""
    folder = tmp_path_factory.mktemp("sparse")
    data, digest = block(folder)
    path = folder / "image"
    with path.open("wb") as f:
        f.truncate(SPARSE_GIB << 30)
        for gib in range(SPARSE_GIB):
            f.seek((gib << 30) + (gib * 7919 % 900) * MIB)
            f.write(data)
    yield path, SPARSE_GIB, digest
    path.unlink()


def test_peak_sparse(benchmark: Any, sparse: tuple[Path, int, str], scratch: Path) -> None:
    """Peak memory of recover on an image that is mostly hole: the same limit as on one that is full."""
    path, count, digest = sparse
    child, table = measured(benchmark, "recover", path, scratch, count)
    sums = [d["sha256"] for d in open_case(scratch / "case").disks()]
    assert sums.count(digest) == count, "each copy of the disk must come out byte for byte"
    record(benchmark, f"peak memory of recover, {SPARSE_GIB} GiB sparse", child.peak / MIB, unit="MiB",
           goal=LIMIT + 2 * table / MIB, at_most=True, note=f"{count} disks, {child.wall:.1f} s on the clock")


def measured(benchmark: Any, command: str, image: Path, scratch: Path, count: int) -> tuple[Child, int]:
    """One run of a command; returns its child and the bytes of the evidence table."""
    children: list[Child] = []
    benchmark.pedantic(lambda: children.append(vmcarve_child(command, image, "--out", scratch / "case")), rounds=1)
    kinds = open_case(scratch / "case").table("evidence")["kind"].to_pylist()
    assert kinds.count("qcow2.header") == count
    return children[0], (scratch / "case" / "evidence.arrow").stat().st_size


@pytest.mark.parametrize("command", ["sweep", "recover"])
def test_peak(benchmark: Any, command: str, image: tuple[Path, str], scratch: Path) -> None:
    """Peak memory of the whole command on an image that is larger than any buffer."""
    path, digest = image
    child, table = measured(benchmark, command, path, scratch, SIZE_MIB // BLOCK)
    if command == "recover":
        sums = [d["sha256"] for d in open_case(scratch / "case").disks()]
        assert sums.count(digest) == SIZE_MIB // BLOCK, "each copy of the disk must come out byte for byte"
    record(benchmark, f"peak memory of {command}, {SIZE_MIB} MiB", child.peak / MIB, unit="MiB",
           goal=LIMIT + 2 * table / MIB, at_most=True,
           note=f"{SIZE_MIB / child.wall:.0f} MiB/s on the clock, evidence table {table / MIB:.1f} MiB")


def test_nothing_swept(benchmark: Any, scratch: Path) -> None:
    """What the program takes before it reads a byte: interpreter, Arrow, numpy, every module."""
    (scratch / "empty").touch()
    children: list[Child] = []
    benchmark.pedantic(lambda: children.append(vmcarve_child("sweep", scratch / "empty", "--out", scratch / "case")),
                       rounds=1)
    record(benchmark, "peak memory of sweep, empty image", children[0].peak / MIB, unit="MiB",
           note=f"{children[0].wall:.2f} s")
