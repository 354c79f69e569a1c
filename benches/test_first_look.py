"""What does looking cost beside reading? The kernel alone, on the registry's signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.reference.first_look import first_look as reference
from vmcarve._ext.first_look import first_look
from vmcarve.model import SECTOR, Signature
from vmcarve.source import ImageSource
from vmcarve.sweeper.table import Entry, MagicTable, compile_table, declared

from .common import READ, SIZE_MIB, compare, median, page_buffer, read_all, record


def looker(table: MagicTable, cap: int = 4096) -> Callable[[np.ndarray], int]:
    """first_look with its result arrays; returns the number of hits."""
    sectors, magics, resume = np.empty(cap, np.int64), np.empty(cap, np.int32), np.zeros(1, np.int64)

    def look(buffer: np.ndarray) -> int:
        return first_look(buffer, table.probe, table.gate, table.only, table.first, table.next_, table.magic,
                          table.room, sectors, magics, resume)

    return look


def reading(source: ImageSource, buffer: memoryview, look: Callable[[np.ndarray], int]) -> int:
    """pread and a look at each buffer; returns the hits."""
    view = np.frombuffer(buffer, np.uint8)
    return sum(look(view[: source.readinto(at, buffer)]) for at in range(0, source.size, len(buffer)))


def test_read_and_look(benchmark: Any, noise_image: ImageSource) -> None:
    """pread with the first look at every sector, against pread alone."""
    buffer, look = page_buffer(READ), looker(compile_table(declared()))
    result = compare(benchmark, lambda: reading(noise_image, buffer, look), lambda: read_all(noise_image, buffer))
    seconds = (median(result.ours.cpu) - median(result.limit.cpu)) / SIZE_MIB
    record(benchmark, "pread + first look / pread, CPU time", result.cpu, goal=0.93,
           note=f"{len(compile_table(declared()).probe)} places in the sector, {seconds * 1e6:.1f} µs a MiB")


@pytest.mark.parametrize("probes", [1, 2, 4, 8, 16])
def test_places(benchmark: Any, noise_image: ImageSource, probes: int) -> None:
    """What one more place in the sector costs: a magic of four bytes each, one cache line each."""
    places = [at for _, at in zip(range(probes), [*range(0, SECTOR, 64), *range(32, SECTOR, 64)], strict=False)]
    entries = [Entry("x", Signature(bytes([200 + i, 77, 3, 4]), f"x.{i}", at=at), lambda *_: None, None)
               for i, at in enumerate(places)]
    view = np.frombuffer(page_buffer(READ), np.uint8)
    noise_image.readinto(0, memoryview(view))
    look = looker(compile_table(entries))
    buffer = page_buffer(READ)

    def looks() -> int:
        return sum(look(view) for _ in range(64))

    def reads() -> None:
        for _ in range(64):
            noise_image.readinto(0, buffer)

    result = compare(benchmark, looks, reads, check=lambda hits: hits == 0)
    record(benchmark, f"first look at {probes} places / pread, speed", result.cpu,
           note=f"{median(result.ours.cpu) / 64 * 1e6:.1f} µs a MiB")


def test_every_magic_planted(benchmark: Any, noise_image: ImageSource) -> None:
    """Each signature of the registry planted in noise: the kernel counts what its plain reference counts."""
    entries = declared()
    view = np.frombuffer(page_buffer(READ), np.uint8).copy()
    noise_image.readinto(0, memoryview(view))
    for i, e in enumerate(entries):
        at = i * 8 * SECTOR + e.signature.at % SECTOR
        view[at : at + len(e.signature.magic)] = np.frombuffer(e.signature.magic, np.uint8)
    want = len(reference(view.tobytes(), [(e.signature.at % SECTOR, e.signature.magic) for e in entries]))
    assert want >= len(entries)
    look, buffer = looker(compile_table(entries)), page_buffer(READ)
    result = compare(benchmark, lambda: look(view), lambda: noise_image.readinto(0, buffer),
                     check=lambda hits: hits == want, rounds=50)
    record(benchmark, "first look with every magic planted / pread, speed", result.cpu, note=f"{want} hits a MiB")
