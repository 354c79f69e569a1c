"""Does dense evidence slow the sweep down? Images that are one kind of structure from wall to wall, and enemies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from vmcarve.model import SECTOR, Signature
from vmcarve.source import open_image
from vmcarve.sweeper import Sweep, sweep_image
from vmcarve.sweeper.table import declared

from .common import MIB, READ, SIZE_MIB, compare, page_buffer, read_all, record, tiled
from .samples import dense_entries, samples

SIZE = max(16, SIZE_MIB // 4)  # MiB of each image: a smaller one stays in the last-level cache
ENEMY = SIZE  # MiB of an image of magics


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, int]]:
    return samples(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("kind", sorted(dense_entries()))
def test_wall_to_wall(benchmark: Any, kind: str, real: dict[str, tuple[bytes, int]], scratch: Path) -> None:
    """Runs of a dense kind one after the other, against pread. Where no tool here makes one, all are refused."""
    signature = dense_entries()[kind].signature
    if kind in real:
        body, step = real[kind]
    else:
        step = -(-signature.size // SECTOR) * SECTOR
        refused = bytearray(os.urandom(step))
        plant(refused, signature)
        body = bytes(refused)
    per = len(body) // step
    count = tiled(scratch / "i", body, SIZE) * per
    runs = [m * MIB + r * len(body) for m in range(SIZE) for r in range(MIB // len(body))]
    want = sum(at + i * step + signature.size <= SIZE * MIB for at in runs for i in range(per)) if kind in real else 0

    def check(result: Sweep) -> None:
        assert not result.failed, result.failed
        assert result.hits[kind] >= count
        assert result.confirmed[kind] == want

    buffer = page_buffer(READ)
    with open_image(scratch / "i") as source:
        result = compare(benchmark, lambda: sweep_image(source, 0, lambda _: None, threads=1),
                         lambda: read_all(source, buffer), check=check, rounds=3)
    record(benchmark, f"sweep of {kind}, wall to wall / pread, CPU time", result.cpu, goal=0.2,
           note=f"{count} in {SIZE} MiB, {'each confirmed' if want else 'each refused: no tool here makes a real one'}")


def plant(sector: bytearray, signature: Signature) -> None:
    """The magic, and what the kernel asks for beside it: a hit that only confirming can refuse."""
    sector[signature.at : signature.at + len(signature.magic)] = signature.magic
    if signature.also is not None:
        at, _, value = signature.also
        sector[at : at + len(value)] = value


def test_all_our_magics(benchmark: Any, scratch: Path) -> None:
    """Every sector begins with a magic of the registry and is nothing: a text about formats, a scanner's own rules."""
    sectors = []
    for entry in declared():
        s = entry.signature
        sector = bytearray(b"This text names a format. " * 20)[:SECTOR]
        sector[s.at % SECTOR : s.at % SECTOR + len(s.magic)] = s.magic
        sectors.append(bytes(sector))
    body = b"".join(sectors)
    with (scratch / "i").open("wb") as f:
        for _ in range(ENEMY * MIB // len(body)):
            f.write(body)

    def check(result: Sweep) -> None:
        assert not result.failed, result.failed
        assert result.bytes_read == source.size
        assert not result.confirmed, result.confirmed  # nor is all of it a hit: most lack the second field

    buffer = page_buffer(READ)
    with open_image(scratch / "i") as source:
        result = compare(benchmark, lambda: sweep_image(source, 0, lambda _: None, threads=1),
                         lambda: read_all(source, buffer), check=check, rounds=3)
    record(benchmark, "sweep of all our magics, one a sector / pread, CPU time", result.cpu, goal=0.2)
