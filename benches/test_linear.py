"""Does time grow with the bytes, and with nothing else? The whole job over images of one, two, four and eight parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmcarve import open_case

from .common import SERIES, Series, median, record, vmcarve_child
from .test_memory import BLOCK, block

PART_MIB = max(BLOCK, int(os.environ.get("VMCARVE_BENCH_MEMORY_MIB", "8192")) // 8 // BLOCK * BLOCK)
PARTS = (1, 2, 4, 8)
ROUNDS = 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Path]]:
    """One image per number of parts, of the same mix: random bytes, an ext4 with files, a qcow2."""
    folder = tmp_path_factory.mktemp("linear")
    data, _ = block(folder)
    made = {}
    for parts in (0, *PARTS):
        made[parts] = folder / f"image-{parts}"
        with made[parts].open("wb") as f:
            for _ in range(parts * PART_MIB // BLOCK):
                f.write(data)
    yield made
    for path in made.values():
        path.unlink()


def test_linear(benchmark: Any, images: dict[int, Path], scratch: Path) -> None:
    """CPU time of recover, start-up taken off; the slowest part against the fastest, sizes in turn."""
    seconds: dict[int, list[float]] = {parts: [] for parts in images}

    def one(parts: int) -> None:
        case = scratch / f"case-{parts}-{len(seconds[parts])}"
        seconds[parts].append(vmcarve_child("recover", images[parts], "--out", case, "--no-write").cpu)
        assert sum(d["format"] == "qcow2" for d in open_case(case).disks()) == parts * PART_MIB // BLOCK

    benchmark.pedantic(lambda: [one(parts) for parts in images], rounds=ROUNDS, warmup_rounds=0)
    start = median(seconds[0])
    points = [(parts * PART_MIB / 1024, median(seconds[parts]) - start) for parts in PARTS]
    SERIES.append(Series("time over size", "recover --no-write", "GiB", "CPU seconds", points))
    part = [took / size for size, took in points]
    slope = float(np.polyfit(*np.log(np.array(points).T), 1)[0])
    record(benchmark, f"recover over {PARTS[0]} to {PARTS[-1]} × {PART_MIB} MiB, linear within",
           100 * (max(part) / min(part) - 1), unit="%", goal=10.0, at_most=True,
           note=f"time grows with size to the power of {slope:.2f}; start-up of {start:.2f} s taken off")
