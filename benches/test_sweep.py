"""How much of the read limit does the sweep reach? Page cache warm, every kind of the registry looked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vmcarve.source import ImageSource
from vmcarve.sweeper import Sweep, sweep_image
from vmcarve.sweeper import run as sweeper

from .common import (
    MIB,
    READ,
    ROUNDS,
    SIZE_MIB,
    Comparison,
    Timed,
    compare,
    median,
    page_buffer,
    read_all,
    read_part,
    record,
    two_threads_gain,
)


def sweep(source: ImageSource, threads: int = 1) -> Sweep:
    return sweep_image(source, 0, lambda batch: None, threads=threads)


def nothing(result: Sweep) -> None:
    """Random bytes hold no structure; every byte was looked at."""
    assert not result.confirmed and not result.failed
    assert result.bytes_read == SIZE_MIB * MIB


def test_noise_one_thread(benchmark: Any, noise_image: ImageSource) -> None:
    """The sweep of random bytes on one thread, against pread of the same bytes into a buffer of the same size."""
    buffer = page_buffer(READ)
    assert sweeper.PIECE <= READ
    result = compare(benchmark, lambda: sweep(noise_image), lambda: read_all(noise_image, buffer), check=nothing)
    speed = SIZE_MIB / 1024 / median(result.limit.cpu)
    record(benchmark, "sweep of noise / pread, CPU time", result.cpu, goal=0.9, note=f"pread {speed:.1f} GiB/s")
    record(benchmark, "sweep of noise / pread, wall time", result.wall, goal=0.9)


def test_noise_two_threads(benchmark: Any, noise_image: ImageSource) -> None:
    """Two threads against one; and, as what the machine can give, two threads that only read against one."""
    buffers = page_buffer(READ), page_buffer(READ)

    def read(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            size = noise_image.size // threads
            for done in [pool.submit(read_part, noise_image, i * size, size, buffers[i]) for i in range(threads)]:
                done.result()

    reading = Comparison(Timed(), Timed())
    for _ in range(ROUNDS):
        reading.limit.run(lambda: read(1))
        reading.ours.run(lambda: read(2))
    result = compare(benchmark, lambda: sweep(noise_image, 2), lambda: sweep(noise_image, 1), check=nothing)
    record(benchmark, "sweep, two threads / one, wall time", result.wall, goal=1.8,
           note=f"two threads that only read: {reading.wall:.2f}; that only hash, each its own: "
                f"{two_threads_gain():.2f}")


def test_evidence_does_not_depend_on_threads(benchmark: Any, noise_image: ImageSource) -> None:
    """The hits that noise gives by chance are the same for one, two and four threads."""
    counts = [sweep(noise_image, n).hits for n in (1, 2, 4)]
    assert counts[0] == counts[1] == counts[2]
    timed = Timed()
    benchmark.pedantic(lambda: timed.run(lambda: sweep(noise_image, 4)), rounds=1)
    record(benchmark, "hits that random bytes give, per GiB", counts[0].total() * 1024 / SIZE_MIB, unit="",
           note="each costs a confirmation")


@pytest.mark.parametrize(("kib", "offset"), [(64, 0), (256, 0), (512, 0), (2048, 0), (4096, 0), (1024, 16)])
def test_read_size(benchmark: Any, noise_image: ImageSource, kib: int, offset: int) -> None:
    """What a read's size and its buffer's place cost: judges CHUNK and the page-aligned buffer of the sweep."""
    buffer = page_buffer(kib * 1024 + offset)[offset:]
    usual = page_buffer(READ)
    result = compare(benchmark, lambda: read_all(noise_image, buffer), lambda: read_all(noise_image, usual))
    where = f", {offset} bytes behind a page" if offset else ""
    record(benchmark, f"pread of {kib} KiB{where} / of 1024 KiB on a page", result.cpu)
