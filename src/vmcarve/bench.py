"""`vmcarve bench IMAGE`: what a source can be read at, what the sweep reaches of it, what is in the way, what to set.

Windows spread over the image are read in several ways for about a second each. Before a cold measure the windows are
dropped from the page cache; nothing is ever written. Memory is one read buffer for each read in flight. Speeds are
bytes a second on the clock: they hold for this machine as busy as it is now.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from .errors import UsageError
from .source import ImageSource
from .sweeper import sweep_image

PIECE = 1 << 20  # bytes of one read, as the sweep reads
PAGE = 4096  # O_DIRECT: what offsets, lengths and buffers are multiples of
WINDOW = 32 << 20
WINDOWS = 8  # that are looked at by turns
SMALLEST = 16 << 20  # bytes of an image: calls cost more than bytes in a smaller one
IN_FLIGHT = (1, 2, 4, 8)
DIRECT_IN_FLIGHT = (1, 4, 16)
ASKED = 256  # pages that are asked whether they are in memory
ROUNDS = 2
NEAR = 0.95  # what counts as the same speed
LOOKING = 0.6  # of the speed of memory: a sweep below it is held up by what it sees, not by the copies

Range = tuple[int, int]
"""offset, length"""


@dataclass(slots=True)
class Speeds:
    """Bytes a second. memory: one read after the other from the page cache; buffered, direct: from the source, by
    reads in flight; sweep, sweep_cold: by threads, from the page cache and from the source."""

    memory: float = 0.0
    buffered: dict[int, float] = field(default_factory=dict[int, float])
    direct: dict[int, float] = field(default_factory=dict[int, float])
    direct_refused: str | None = None
    sweep: dict[int, float] = field(default_factory=dict[int, float])
    sweep_cold: dict[int, float] = field(default_factory=dict[int, float])

    @property
    def source(self) -> float:
        """The most that any way of reading gets out of the source itself."""
        return max([*self.buffered.values(), *self.direct.values()])


def bench(source: ImageSource, seconds: float = 10.0) -> dict[str, Any]:
    """Measures for about `seconds` and judges. Raises UsageError where there is nothing to measure."""
    spread = windows(source)
    threads = _thread_counts()
    facts = {
        "image": source.name,
        "size": source.size,
        "kind": "device" if stat.S_ISBLK(os.fstat(source.fd).st_mode) else "file",
        "rotational": rotational(source.fd),
        "in_memory": in_memory(source, spread),
    }
    # warming, memory, then by number: buffered, direct, sweeps from the source and in memory
    each = seconds / (2 + len(IN_FLIGHT) + len(DIRECT_IN_FLIGHT) + 2 * len(threads)) / ROUNDS
    speeds = Speeds()

    def best(of: dict[int, float], n: int, rate: float) -> None:
        of[n] = max(of.get(n, 0.0), rate)

    for _ in range(ROUNDS):  # in turn, and the best counts: what else the machine does makes it slower, never faster
        for n in IN_FLIGHT:
            best(speeds.buffered, n, _rate(source.readinto, _cold(source, spread), n, each))
        _measure_direct(source, spread, speeds, each)
        for n in threads:
            best(speeds.sweep_cold, n, _sweep_rate(source, _cold(source, spread), n, each))
        warm = _warm(source, spread, each)
        speeds.memory = max(speeds.memory, _rate(source.readinto, lambda warm=warm: warm, 1, each))
        for n in threads:
            best(speeds.sweep, n, _sweep_rate(source, lambda warm=warm: warm, n, each))
    return judged(speeds, facts)


def judged(speeds: Speeds, facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with the speeds, the bottleneck, what the sweep reaches of the limit, and what to set."""
    best = max(speeds.sweep.values())
    if speeds.source < NEAR * best:
        bottleneck, limit = "device", speeds.source
        threads = 1 if facts["rotational"] and speeds.sweep[1] >= speeds.source else _fewest(speeds.sweep_cold)
    else:
        bottleneck, limit = "cpu" if best < LOOKING * speeds.memory else "memory", max(best, speeds.memory)
        threads = _fewest(speeds.sweep)
    reached = min(best, max(speeds.sweep_cold.values()))
    return {
        **facts,
        "bytes_per_second": {
            "memory": round(speeds.memory),
            "buffered": _rounded(speeds.buffered),
            "direct": _rounded(speeds.direct),
            "direct_refused": speeds.direct_refused,
            "sweep": _rounded(speeds.sweep),
            "sweep_cold": _rounded(speeds.sweep_cold),
        },
        "bottleneck": bottleneck,
        "sweep_reaches": round(reached / limit, 3),
        "sweep_seconds": round(facts["size"] / reached, 1),
        "set": {"threads": threads},
        "advice": _advice(speeds, bottleneck, threads, facts),
    }


def _rounded(speeds: dict[int, float]) -> dict[str, int]:
    return {str(n): round(speed) for n, speed in speeds.items()}


def _fewest(by_count: dict[int, float]) -> int:
    """The fewest threads that are as fast as any: more would only take CPUs from others."""
    return min(n for n, speed in by_count.items() if speed >= NEAR * max(by_count.values()))


def _advice(speeds: Speeds, bottleneck: str, threads: int, facts: dict[str, Any]) -> list[str]:
    """What to set, in words, and why."""
    words = [f"--threads {threads}: no number of threads is faster here"]
    if bottleneck == "device":
        words.append("the source is the limit: only a faster one (or a copy on one) makes the sweep faster")
        if threads == 1 and facts["rotational"]:
            words.append("it says that it spins: one reader spares it the seeks")
        if speeds.direct and max(speeds.direct.values()) > 1.3 * max(speeds.buffered.values()):
            words.append("it gives more to many reads past the page cache: a larger read-ahead helps "
                         "(blockdev --setra 8192 DEVICE)")
    elif bottleneck == "cpu":
        words.append("looking costs more than reading: the image is dense with metadata, and more CPUs help")
    else:
        words.append("copying out of the page cache is the limit: nothing that can be set makes it faster")
    return words


# --- where ------------------------------------------------------------------------------------------------------------
def windows(source: ImageSource) -> list[Range]:
    """Windows spread evenly over the image, page-aligned, rising, disjoint. Raises UsageError for a small image."""
    size = source.size // PAGE * PAGE
    if size < SMALLEST:
        raise UsageError(f"has {source.size} bytes: too few to measure anything (at least {SMALLEST})",
                         source=source.name)
    length = min(WINDOW, size // WINDOWS // PAGE * PAGE)
    step = (size - length) // (WINDOWS - 1) // PAGE * PAGE
    return [(n * step, length) for n in range(WINDOWS)]


def in_memory(source: ImageSource, spread: Sequence[Range]) -> float | None:
    """Share of the pages that are in the page cache; None where the system does not tell."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None:
        return None
    page, told, there = bytearray(PAGE), 0, 0
    for offset, length in spread:
        for at in range(offset, offset + length, max(PAGE, length * len(spread) // ASKED // PAGE * PAGE)):
            try:
                there += os.preadv(source.fd, [page], at, flag) > 0
            except BlockingIOError:
                pass
            except OSError:  # a file system that cannot say, or a bad sector
                continue
            told += 1
    return round(there / told, 3) if told else None


def rotational(fd: int) -> bool | None:
    """Whether the device under this file says that it spins; None where nothing tells (over a network, say)."""
    status = os.fstat(fd)
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    for place in (node / "queue/rotational", node.resolve().parent / "queue/rotational"):  # a partition's is its disk's
        try:
            return place.read_text(encoding="ascii").strip() == "1"
        except OSError:
            continue
    return None


def _thread_counts() -> list[int]:
    """1, 2, 4 ... up to the CPUs, at most 8."""
    most = max(1, min(8, os.cpu_count() or 1))
    return sorted({n for n in (1, 2, 4, 8) if n < most} | {most})


# --- how fast ---------------------------------------------------------------------------------------------------------
def _cold(source: ImageSource, spread: list[Range]) -> Callable[[], list[Range]]:
    """The windows, dropped from the page cache each time that they are asked for."""
    def again() -> list[Range]:
        for offset, length in spread:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(source.fd, offset, length, os.POSIX_FADV_DONTNEED)
        return spread

    return again


def _warm(source: ImageSource, spread: list[Range], seconds: float) -> list[Range]:
    """The windows that could be read in `seconds`, at least the first: they are in memory now."""
    buffer, read = memoryview(mmap.mmap(-1, PIECE)), []
    until = time.perf_counter() + seconds
    for offset, length in spread:
        for at, n in _pieces([(offset, length)]):
            source.readinto(at, buffer[:n])
        read.append((offset, length))
        if time.perf_counter() > until:
            break
    return read


def _pieces(spread: Sequence[Range]) -> Iterator[Range]:
    for offset, length in spread:
        for at in range(offset, offset + length, PIECE):
            yield at, min(PIECE, offset + length - at)


def _rate(read: Callable[[int, memoryview], int], spread: Callable[[], Sequence[Range]], in_flight: int,
          seconds: float) -> float:
    """Bytes a second of `read` over the windows, again and again for `seconds`, `in_flight` reads at a time."""
    lock = Lock()
    total, busy = 0, 0.0
    buffers = [memoryview(mmap.mmap(-1, PIECE)) for _ in range(in_flight)]
    for buffer in buffers:
        buffer[:] = b"\1" * PIECE  # its pages are there before the clock runs
    with ThreadPoolExecutor(in_flight) as pool:
        while busy < seconds:
            pieces = _pieces(spread())
            started = time.perf_counter()
            until = started + seconds - busy

            def work(buffer: memoryview, pieces: Iterator[Range] = pieces, until: float = until) -> int:
                done = 0
                while time.perf_counter() < until:
                    with lock:
                        piece = next(pieces, None)
                    if piece is None:
                        break
                    done += read(piece[0], buffer[: piece[1]])
                return done

            total += sum(f.result() for f in [pool.submit(work, buffer) for buffer in buffers])
            busy += max(time.perf_counter() - started, 1e-9)
    return total / busy


def _sweep_rate(source: ImageSource, spread: Callable[[], Sequence[Range]], threads: int, seconds: float) -> float:
    """Bytes a second of whole sweeps of the windows."""
    total, busy = 0, 0.0
    while busy < seconds:
        ranges = list(spread())
        if busy == 0.0:  # one window tells how many there is time for
            ranges = ranges[:1]
        started = time.perf_counter()
        sweep_image(source, 0, lambda _: None, ranges=ranges, threads=threads)
        took = max(time.perf_counter() - started, 1e-9)
        if busy == 0.0 and took < seconds / 2:
            busy = 1e-9  # it paid for imports and buffers: not counted
            continue
        total += sum(length for _, length in ranges)
        busy += took
    return total / busy


@contextmanager
def _direct(path: Path) -> Iterator[int]:
    """The image opened past the page cache. Raises OSError where that cannot be."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _measure_direct(source: ImageSource, spread: list[Range], speeds: Speeds, seconds: float) -> None:
    """Reads past the page cache, by reads in flight; what refuses them is told."""
    if not hasattr(os, "O_DIRECT"):
        speeds.direct_refused = "this system has no O_DIRECT"
        return
    try:
        with _direct(source.path) as fd:
            def read(offset: int, buffer: memoryview) -> int:
                try:
                    return os.preadv(fd, [buffer], offset)
                except OSError as e:
                    if e.errno == errno.EINVAL:
                        raise
                    return source.readinto(offset, buffer)  # a bad sector: gone round, and noted

            for n in DIRECT_IN_FLIGHT:
                speeds.direct[n] = max(speeds.direct.get(n, 0.0), _rate(read, lambda: spread, n, seconds))
    except OSError as e:
        speeds.direct.clear()
        speeds.direct_refused = e.strerror or str(e)
