"""How fast is the sweep where there is much to see? Hosts full of this machine's own files and of live guests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.corpus.tools import run
from vmcarve.source import ImageSource, open_image
from vmcarve.sweeper import Sweep, sweep_image

from .common import MIB, READ, SIZE_MIB, compare, not_measured, page_buffer, read_all, record, two_threads_gain
from .images import MAKERS, full_of_files, why_not

SIZE = max(320, SIZE_MIB)  # MiB: mkfs.xfs takes no smaller one
HEADERS = ("qcow2.header", "vmdk.header", "vdi.header")  # of the live disks that lie on each host


@pytest.fixture(scope="module", params=sorted(MAKERS))
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ImageSource]]:
    """One full host, holes filled with zeros that are really read, so that the limit reads what the sweep reads."""
    kind: str = request.param
    why = why_not(kind)
    if why is not None:
        not_measured(f"sweep of a full {kind} host / pread, CPU time", why)
    folder = tmp_path_factory.mktemp("host")
    made = full_of_files(folder, kind, SIZE)
    dense = folder / "dense"
    run("cp", "--sparse=never", made.image, dense)
    for path in (made.image, *made.disks):
        path.unlink()
    with open_image(dense) as source:
        yield kind, source
    dense.unlink()


def test_sweep(benchmark: Any, host: tuple[str, ImageSource]) -> None:
    """Every kind looked for on one thread, against pread of the same bytes into the same buffer; two against one."""
    kind, source = host
    buffer = page_buffer(READ)
    first: list[Counter[str]] = []

    def check(result: Sweep) -> None:
        assert result.bytes_read == SIZE * MIB and not result.failed
        first.append(result.confirmed)
        assert result.confirmed == first[0]
        assert all(result.confirmed[header] >= 1 for header in HEADERS), "a live disk's header was not seen"

    def sweep(threads: int) -> Sweep:
        return sweep_image(source, 0, lambda _: None, threads=threads)

    result = compare(benchmark, lambda: sweep(1), lambda: read_all(source, buffer), check=check)
    note = f"{SIZE} MiB, {sum(first[0].values())} structures confirmed"
    record(benchmark, f"sweep of a full {kind} host / pread, CPU time", result.cpu, goal=0.6, note=note)
    record(benchmark, f"sweep of a full {kind} host / pread, wall time", result.wall, goal=0.6)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one CPU")
def test_two_threads(benchmark: Any, host: tuple[str, ImageSource]) -> None:
    """Two threads against one, where looking costs more than reading; the evidence is the same."""
    kind, source = host
    seen: list[Counter[str]] = []

    def sweep(threads: int) -> Sweep:
        result = sweep_image(source, 0, lambda _: None, threads=threads)
        seen.append(result.confirmed)
        assert result.confirmed == seen[0]
        return result

    result = compare(benchmark, lambda: sweep(2), lambda: sweep(1))
    record(benchmark, f"sweep of a full {kind} host, two threads / one, wall time", result.wall, goal=1.8,
           note=f"two threads that share nothing, and only hash: {two_threads_gain():.2f}")
