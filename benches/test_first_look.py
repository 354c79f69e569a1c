"""What does looking cost beside reading? The kernel alone, on the registry's signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.reference.first_look import first_look as reference
from vmcarve._ext.cpu import PATHS
from vmcarve._ext.first_look import first_look, read_and_look
from vmcarve.model import SECTOR, Signature
from vmcarve.source import ImageSource
from vmcarve.sweeper.run import PIECE
from vmcarve.sweeper.table import Entry, MagicTable, compile_table, declared

from .common import MIB, READ, SIZE_MIB, compare, median, page_buffer, read_all, record


def looker(table: MagicTable, cap: int = 4096) -> Callable[[np.ndarray], int]:
    """first_look with its result arrays; returns the number of hits."""
    sectors, magics, resume = np.empty(cap, np.int64), np.empty(cap, np.int32), np.zeros(1, np.int64)

    def look(buffer: np.ndarray) -> int:
        resume[0] = 0
        return first_look(table.look, buffer, sectors, magics, resume)

    return look


def reader(table: MagicTable, source: ImageSource, buffer: memoryview) -> Callable[[], int]:
    """read_and_look over the whole source; returns the number of hits."""
    sectors, magics, view = np.empty(4096, np.int64), np.empty(4096, np.int32), np.frombuffer(buffer, np.uint8)

    def read() -> int:
        state, hits = np.array([0, 0, 0, source.size, 0], np.int64), 0
        while n := read_and_look(table.look, source.plain_fd, state, view, PIECE, sectors, magics):
            hits += n
        assert state[0] + state[1] == source.size and state[4] == 0
        return hits

    return read


def test_read_and_look(benchmark: Any, noise_image: ImageSource) -> None:
    """pread with the first look at every sector, against pread alone."""
    buffer, table = page_buffer(READ), compile_table(declared())
    result = compare(benchmark, reader(table, noise_image, page_buffer(READ)), lambda: read_all(noise_image, buffer))
    seconds = (median(result.ours.cpu) - median(result.limit.cpu)) / SIZE_MIB
    record(benchmark, "pread + first look / pread, CPU time", result.cpu, goal=0.93,
           note=f"{len(table.lines)} cache lines of a sector, {seconds * 1e6:.1f} µs a MiB")


@pytest.mark.parametrize("path", PATHS)
def test_paths(benchmark: Any, noise_image: ImageSource, path: str) -> None:
    """What each set of instructions gives: the look alone, at bytes in the second-level cache."""
    buffer, noise = page_buffer(PIECE), page_buffer(PIECE)
    noise_image.readinto(0, noise)
    view = np.frombuffer(noise, np.uint8)
    look = looker(compile_table(declared(), PATHS[path]))
    result = compare(benchmark, lambda: sum(look(view) for _ in range(256)),
                     lambda: [noise_image.readinto(0, buffer) for _ in range(256)])
    record(benchmark, f"first look with {path} / pread, speed", result.cpu,
           note=f"{median(result.ours.cpu) / 256 * 1e6 * (MIB // PIECE):.1f} µs a MiB")


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
        if e.signature.also is not None:
            at, _, value = e.signature.also
            at += i * 8 * SECTOR - e.back
            view[at : at + len(value)] = np.frombuffer(value, np.uint8)
    second = [None if (a := e.signature.also) is None else (a[0] - e.back, a[1], a[2]) for e in entries]
    want = len(reference(view.tobytes(), [(e.signature.at % SECTOR, e.signature.magic, also)
                                          for e, also in zip(entries, second, strict=True)]))
    assert want >= len(entries)
    look, buffer = looker(compile_table(entries)), page_buffer(READ)
    result = compare(benchmark, lambda: look(view), lambda: noise_image.readinto(0, buffer),
                     check=lambda hits: hits == want, rounds=50)
    record(benchmark, "first look with every magic planted / pread, speed", result.cpu, note=f"{want} hits a MiB")
