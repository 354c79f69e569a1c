"""Is writing as fast as others write? Containers against cp, raw guests against qemu-img convert, of the same bytes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import run
from vmcarve import Case, Options, open_disk, recover
from vmcarve.export import write_container, write_raw
from vmcarve.export.write import rows_of
from vmcarve.source import open_image

from .common import MIB, SIZE_MIB, compare, median, noise, record

SIZE = max(32, SIZE_MIB // 4)  # MiB of the guest


@dataclass(frozen=True, slots=True)
class Carved:
    """A case whose disks were not written, and the originals."""

    case: Case
    image: Path
    container: Path
    raw: Path


def guest(path: Path) -> Path:
    """A disk of which half is letters at random and half is holes, in runs of 1 to 8 MiB."""
    rng = np.random.default_rng(11)
    with path.open("wb") as f:
        f.truncate(SIZE * MIB)
        at = 0
        while at < SIZE:
            n = min(int(rng.integers(1, 9)), SIZE - at)
            f.seek(at * MIB)
            f.write(rng.integers(97, 123, n * MIB, dtype=np.uint8).tobytes())
            at += n + int(rng.integers(1, 9))
    return path


@pytest.fixture(scope="module", params=["vdi", "qcow2", "qcow2 compressed"])
def carved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Carved]]:
    """One container between noise, its clusters out of order where the tool can."""
    folder = tmp_path_factory.mktemp("export")
    name = request.param
    raw, container, image = guest(folder / "raw"), folder / "container", folder / "image"
    how = ["-c"] if "compressed" in name else []
    how += ["-W", "-m", "8"]
    run("qemu-img", "convert", *how, "-f", "raw", "-O", name.split()[0], raw, container, timeout=600)
    noise(image, 1)
    with image.open("ab") as f:
        f.write(container.read_bytes())
        f.write(bytes(-f.tell() % 4096) + np.random.default_rng(3).bytes(MIB))
    case = recover([image], folder / "case", options=Options(write=False))
    yield name, Carved(case, image, container, raw)
    for path in (raw, container, image):
        path.unlink()


def same(a: Path, b: Path) -> None:
    """Byte for byte, up to the size of the larger."""
    assert subprocess.run(["cmp", a, b], timeout=300).returncode == 0


@pytest.mark.parametrize("digest", [False, True], ids=["plain", "sha256"])
def test_container(benchmark: Any, carved: tuple[str, Carved], digest: bool, scratch: Path) -> None:
    """The container written from its map, against cp of the original."""
    name, c = carved
    row, out = c.case.disks()[0], scratch / "out"
    rows = rows_of(c.case.extents(row["disk_id"], "container"))
    with open_image(c.image) as source:
        result = compare(
            benchmark, lambda: write_container(source, out, row["container_size"], rows, [], digest=digest),
            lambda: run("cp", "--sparse=never", "--reflink=never", c.container, out),
            check=lambda _: same(out, c.container), before=lambda: out.unlink(missing_ok=True), rounds=3)
    record(benchmark, f"writing a {name}{' with SHA-256' if digest else ''} / cp, wall time", result.wall,
           note=f"{SIZE / 2 / median(result.ours.wall):.0f} MiB/s of guest content")


def test_raw(benchmark: Any, carved: tuple[str, Carved], scratch: Path) -> None:
    """The guest disk written from its map, against qemu-img convert of the original container."""
    name, c = carved
    row, out = c.case.disks()[0], scratch / "out"
    rows = rows_of(c.case.extents(row["disk_id"], "guest"))
    result = compare(
        benchmark, lambda: write_raw(open_disk(c.case, row["disk_id"]), out, rows, digest=False),
        lambda: run("qemu-img", "convert", "-f", name.split()[0], "-O", "raw", c.container, out, timeout=600),
        check=lambda _: same(out, c.raw), before=lambda: out.unlink(missing_ok=True), rounds=3)
    record(benchmark, f"writing raw from {name} / qemu-img convert, wall time", result.wall,
           note=f"{SIZE / 2 / median(result.ours.wall):.0f} MiB/s of guest content")
