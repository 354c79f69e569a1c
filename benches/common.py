"""What the benches share: inputs with a known answer, interleaved timing, and the table at the end.

A figure is a ratio of two medians of one run, measured in turn (A B A B): a slow machine is slow for both.
CPU time is the process's own (getrusage, user and system), which a busy neighbour disturbs least.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import numpy as np
import pytest

from vmcarve.model import SECTOR
from vmcarve.source import ImageSource

MIB = 1 << 20
READ = 1 << 20  # bytes a read of the limit: the sweep's own size
SIZE_MIB = int(os.environ.get("VMCARVE_BENCH_MIB", "1024"))  # of the images that are swept
ROUNDS = int(os.environ.get("VMCARVE_BENCH_ROUNDS", "7"))


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the table. figure: in `unit`, None where it was not measured (`note` says why); goal: what it should
    be at least (or, where `at_most`, at most)."""

    name: str
    figure: float | None
    unit: str = "×"
    goal: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "not measured"
        if self.goal is None:
            return ""
        return "ok" if (self.figure <= self.goal if self.at_most else self.figure >= self.goal) else "short"

    def cells(self) -> tuple[str, str, str, str, str]:
        """what, figure, goal, verdict, note: the same for the terminal and for docs/performance.md."""
        unit = self.unit if self.unit in ("", "×") else f" {self.unit}"
        figure = "" if self.figure is None else f"{_number(self.figure)}{unit}"
        goal = "" if self.goal is None else f"{'≤' if self.at_most else '≥'} {self.goal:.4g}"
        return self.name, figure, goal, self.verdict, self.note


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"


@dataclass(frozen=True, slots=True)
class Series:
    """Points for a plot: how `y` grows with `x`. A plot has all series of one `plot` name."""

    plot: str
    line: str
    x_label: str
    y_label: str
    points: list[tuple[float, float]]


RECORDS: list[Record] = []
SERIES: list[Series] = []


def record(benchmark: Any, name: str, figure: float, *, unit: str = "×", goal: float | None = None,
           at_most: bool = False, note: str = "") -> None:
    """Puts a figure into the table and into the bench's JSON."""
    line = Record(name, figure, unit, goal, at_most, note)
    RECORDS.append(line)
    benchmark.extra_info.setdefault("records", []).append({**asdict(line), "verdict": line.verdict})


def not_measured(name: str, why: str) -> NoReturn:
    """A line of the table that says why there is no figure; the bench is skipped."""
    RECORDS.append(Record(name, None, "", note=why))
    pytest.skip(why)


@dataclass(slots=True)
class Timed:
    """Seconds per round, on the clock and of the CPU."""

    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])

    def run(self, function: Callable[[], object]) -> object:
        """One round; returns what the function returned."""
        cpu, wall = cpu_seconds(), time.perf_counter()
        result = function()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(cpu_seconds() - cpu)
        return result


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against a limit: how much of the limit's speed is reached (1: as fast; above: faster)."""

    ours: Timed
    limit: Timed

    @property
    def wall(self) -> float:
        return median(self.limit.wall) / median(self.ours.wall)

    @property
    def cpu(self) -> float:
        return median(self.limit.cpu) / median(self.ours.cpu)


def compare(benchmark: Any, ours: Callable[[], object], limit: Callable[[], object], *,
            check: Callable[[Any], object] | None = None, before: Callable[[], object] | None = None,
            rounds: int | None = None) -> Comparison:
    """Runs limit, ours, limit, ours ... `check` gets each result of ours and asserts; `before` runs untimed."""
    result = Comparison(Timed(), Timed())
    limit()  # the first round of either warms caches and is not counted
    if check is not None:
        check(ours())

    def set_up() -> None:
        if before is not None:
            before()
        result.limit.run(limit)
        if before is not None:
            before()

    def timed() -> None:
        got = result.ours.run(ours)
        if check is not None:
            check(got)

    benchmark.pedantic(timed, setup=set_up, rounds=rounds or ROUNDS, iterations=1)
    benchmark.extra_info.update(cpu_ratio=result.cpu, wall_ratio=result.wall, ours=asdict(result.ours),
                                limit=asdict(result.limit))
    return result


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def page_buffer(size: int) -> memoryview:
    """A buffer that begins on a page, as the sweep's own: any other would flatter us (test_sweep.py: by how much)."""
    view = memoryview(mmap.mmap(-1, size))
    view[:] = b"\1" * size
    return view


def read_all(source: ImageSource, buffer: memoryview) -> int:
    """The limit of every sweep: pread of the whole image into one buffer, nothing looked at."""
    return read_part(source, 0, source.size, buffer)


def read_part(source: ImageSource, offset: int, length: int, buffer: memoryview) -> int:
    """The same for the bytes from `offset` on; the last read may go further."""
    done = 0
    while done < length:
        done += os.preadv(source.fd, [buffer], offset + done)
    return done


def two_threads_gain(rounds: int = 5) -> float:
    """What a second thread gains here where nothing is shared: each hashes a buffer of its own that stays in its
    cache, without the interpreter's lock. On a busy machine, or with two CPUs of one core, that is far from 2."""
    buffers = page_buffer(256 << 10), page_buffer(256 << 10)

    def hashing(n: int, times: int) -> None:
        sha = hashlib.sha256()
        for _ in range(times):
            sha.update(buffers[n])

    one, two = Timed(), Timed()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            one.run(lambda: hashing(0, 800))
            two.run(lambda: list(pool.map(hashing, (0, 1), (400, 400))))
    return median(one.wall) / median(two.wall)


def noise(path: Path, mib: int, seed: int = 1) -> Path:
    """An image of random bytes: nothing to find, and nothing to skip."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as f:
        for _ in range(mib):
            f.write(rng.bytes(MIB))
    return path


def tiled(path: Path, structure: bytes, mib: int) -> int:
    """An image made of one structure, wall to wall; returns how many there are."""
    assert len(structure) % SECTOR == 0
    per = MIB // len(structure)
    with path.open("wb") as f:
        for _ in range(mib):
            f.write((structure * per).ljust(MIB, b"\0"))
    return per * mib


# --- children ---------------------------------------------------------------------------------------------------------
# A child's peak counts the pages of whoever started it, so a small interpreter starts the one that is measured.
LAUNCHER = """
import json, os, sys, time
begun = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, used = os.wait4(pid, 0)
print(json.dumps({"status": os.waitstatus_to_exitcode(status), "peak_kib": used.ru_maxrss,
                  "cpu": used.ru_utime + used.ru_stime, "wall": time.perf_counter() - begun}))
"""


def _environment() -> dict[str, str]:
    """Of a child: its modules are compiled once, as pip leaves them, not at each start. Forty thousand lines take a
    second, which an environment that forbids to write bytecode would add to every figure."""
    out = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    out.setdefault("PYTHONPYCACHEPREFIX", os.path.join(tempfile.gettempdir(), "vmcarve-bench-bytecode"))
    return out


@dataclass(frozen=True, slots=True)
class Child:
    """What a child process took. peak: most resident memory in bytes."""

    peak: int
    cpu: float
    wall: float


@dataclass(frozen=True, slots=True)
class Race:
    """Two jobs of whole programs, run in turn: how many times faster ours is, by medians."""

    ours: list[Child]
    theirs: list[Child]

    @property
    def cpu(self) -> float:
        return median(c.cpu for c in self.theirs) / median(c.cpu for c in self.ours)

    @property
    def wall(self) -> float:
        return median(c.wall for c in self.theirs) / median(c.wall for c in self.ours)

    def note(self) -> str:
        """The medians of both, so that a ratio of programs can be checked by hand."""
        return " against ".join(f"{median(c.cpu for c in side):.2f} s CPU ({median(c.wall for c in side):.2f} s)"
                                for side in (self.ours, self.theirs))


def race(benchmark: Any, ours: Callable[[], Child], theirs: Callable[[], Child], rounds: int = 3) -> Race:
    """Theirs, ours, theirs, ours ... after one of each that is not counted and warms the page cache."""
    result = Race([], [])
    theirs()
    ours()
    benchmark.pedantic(lambda: result.ours.append(ours()), setup=lambda: result.theirs.append(theirs()) or None,
                       rounds=rounds, iterations=1)
    benchmark.extra_info.update(ours=[asdict(c) for c in result.ours], theirs=[asdict(c) for c in result.theirs])
    return result


def here(function: Callable[[], object]) -> Child:
    """A job that runs in this process, measured as a child is; its peak is not known."""
    timed = Timed()
    timed.run(function)
    return Child(0, timed.cpu[0], timed.wall[0])


def need(name: str, program: str) -> str:
    """The program's path; without it the record `name` says so and the bench is skipped."""
    path = shutil.which(program)
    if path is None:
        not_measured(name, f"{program} is not installed")
    return path


def run_child(*argv: object, timeout: float = 3600, ends: tuple[int, ...] = (0,)) -> Child:
    """Runs a program to its end and measures it; it must end with a status of `ends`. Its output goes nowhere."""
    done = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, *map(str, argv)], capture_output=True, text=True,
                          timeout=timeout, check=True, env=_environment())
    took = json.loads(done.stdout)
    assert took["status"] in ends, f"{argv} ended with {took['status']}: {done.stderr}"
    return Child(took["peak_kib"] * 1024, took["cpu"], took["wall"])


def vmcarve_child(*argv: object) -> Child:
    """The command line in a child."""
    return run_child(sys.executable, "-m", "vmcarve.cli", *argv)
