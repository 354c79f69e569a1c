"""How does assembling grow with fragments? Hosts of one size whose disks grew by ever smaller appends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmcarve import Options, recover

from .common import SERIES, Series, median, not_measured, record
from .images import HostImage, why_not, with_deleted_disks

MIB = 512  # of the host
APPENDS = (4 << 20, 1 << 20, 256 << 10, 64 << 10, 16 << 10)  # bytes at most
DISKS = 6
ROUNDS = 3


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[HostImage]]:
    why = why_not("ext4")
    if why is not None:
        not_measured("assembling a thousand fragments", why)
    made = [with_deleted_disks(tmp_path_factory.mktemp(f"append-{n}"), "ext4", MIB, DISKS, append=n) for n in APPENDS]
    yield made
    for host in made:
        for path in (host.image, *host.disks):
            path.unlink()


def test_fragments(benchmark: Any, hosts: list[HostImage], scratch: Path) -> None:
    """Seconds of the stage by the fragments of all disks: what it costs to go from few to many."""
    seconds: list[list[float]] = [[] for _ in hosts]
    fragments = [0] * len(hosts)

    def one(n: int) -> None:
        case = recover([hosts[n].image], scratch / f"case-{n}-{len(seconds[n])}", options=Options(write=False))
        rows = case.disks()
        assert len(rows) >= DISKS - 1
        fragments[n] = sum(row["fragments"] for row in rows)
        seconds[n].append(case.info["seconds"]["assemble"])

    benchmark.pedantic(lambda: [one(n) for n in range(len(hosts))], rounds=ROUNDS, warmup_rounds=1)
    assert fragments == sorted(fragments) and fragments[-1] > 4 * fragments[0], fragments
    points = [(float(count), median(took)) for count, took in zip(fragments, seconds, strict=True)]
    SERIES.append(Series("assembling over fragments", f"{DISKS} disks on an ext4 of {MIB} MiB", "fragments",
                         "seconds", points))
    slope, start = np.polyfit(*np.array(points).T, 1)
    record(benchmark, "assembling a thousand fragments", 1000 * float(slope), unit="s",
           note=f"{fragments[0]} to {fragments[-1]} fragments in {points[0][1]:.2f} to {points[-1][1]:.2f} s; the host "
                f"itself {float(start):.2f} s")
