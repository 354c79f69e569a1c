"""Does real metadata slow the sweep down, where there is nothing else from wall to wall?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmcarve.source import open_image
from vmcarve.sweeper import Sweep, sweep_image

from .common import MIB, READ, SIZE_MIB, compare, not_measured, page_buffer, read_all, record
from .walls import WALLS, volume, wall

SIZE = max(16, SIZE_MIB // 8)  # MiB of each image


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path | str]]:
    """Full volumes by kind, or why there is none."""
    made = {kind: volume(tmp_path_factory.mktemp(kind), kind) for kind in {host for host, _ in WALLS.values() if host}}
    yield made
    for path in made.values():
        if isinstance(path, Path):
            path.unlink()


@pytest.mark.parametrize("what", sorted(WALLS))
def test_wall_to_wall(benchmark: Any, what: str, volumes: dict[str, Path | str], scratch: Path) -> None:
    """Sweep against pread; the same structures are confirmed by one thread and by two."""
    name = f"sweep of real {what}, wall to wall / pread, CPU time"
    kind, take = WALLS[what]
    taken_from = scratch if kind is None else volumes[kind]
    if isinstance(taken_from, str):
        not_measured(name, taken_from)
    metadata = take(taken_from)
    assert len(metadata) >= 4096, f"no {what} were made"
    buffer = page_buffer(READ)
    with open_image(wall(scratch / "i", metadata, SIZE)) as source:
        def sweep(threads: int) -> Sweep:
            return sweep_image(source, 0, lambda _: None, threads=threads)

        want = sweep(2)

        def check(result: Sweep) -> None:
            assert not result.failed, result.failed
            assert result.bytes_read == SIZE * MIB
            assert result.confirmed == want.confirmed

        result = compare(benchmark, lambda: sweep(1), lambda: read_all(source, buffer), check=check, rounds=3)
    confirmed = ", ".join(f"{n} {k}" for k, n in sorted(want.confirmed.items())) or "no kind of the registry"
    record(benchmark, name, result.cpu, goal=0.2, note=f"{len(metadata) / MIB:.1f} MiB of them in turn: {confirmed}")
