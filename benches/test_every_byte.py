"""What does looking at every byte cost (`--align 1`: a disk inside an archive, a memory dump)?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.makers.vdi import MAKERS
from vmcarve.source import ImageSource, open_image
from vmcarve.sweeper import Sweep, sweep_image

from .common import MIB, READ, SIZE_MIB, compare, need, page_buffer, race, read_all, record, run_child
from .test_peers import ripgrep, sweeping


def sweep(source: ImageSource) -> Sweep:
    return sweep_image(source, 0, lambda _: None, threads=1, align=1)


def test_noise(benchmark: Any, noise_image: ImageSource) -> None:
    """Random bytes, every kind looked for at every byte, against pread of them."""
    name = "every byte of noise / pread, CPU time"
    buffer = page_buffer(READ)

    def check(result: Sweep) -> None:
        assert not result.confirmed and not result.failed
        assert result.bytes_read == SIZE_MIB * MIB

    result = compare(benchmark, lambda: sweep(noise_image), lambda: read_all(noise_image, buffer), check=check)
    record(benchmark, name, result.cpu, goal=0.35)
    record(benchmark, "every byte of noise / pread, wall time", result.wall, goal=0.35)


def test_against_ripgrep(benchmark: Any, noise_image: ImageSource, scratch: Path) -> None:
    """The sweep against ripgrep with the same literals."""
    name = "every byte of noise / ripgrep, CPU time"
    program = need(name, "rg")
    argv = (program, *ripgrep(scratch), noise_image.path)
    result = race(benchmark, lambda: sweeping(noise_image, align=1), lambda: run_child(*argv, ends=(0, 1)))
    record(benchmark, name, result.cpu, goal=1.5, note=result.note())


def test_odd_places(benchmark: Any, scratch: Path) -> None:
    """A container at an odd offset is found, and it is found once."""
    name = "disks found at odd offsets"
    raw, out, image = scratch / "raw", scratch / "disk.vdi", scratch / "image"
    rng = np.random.default_rng(4)
    raw.write_bytes(rng.bytes(4 * MIB))
    next(iter(MAKERS.values())).make(raw, out, 1)
    image.write_bytes(rng.bytes(MIB + 77) + out.read_bytes() + rng.bytes(MIB))
    with open_image(image) as source:
        results: list[Sweep] = []
        benchmark.pedantic(lambda: results.append(sweep(source)), rounds=1)
    assert results[0].confirmed["vdi.header"] == 1
    record(benchmark, name, results[0].confirmed["vdi.header"], unit="", goal=1)
