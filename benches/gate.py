"""`make bench-gate`: has something become slower or larger? Three answers that a busy machine cannot change.

1. instructions per MiB of the first-look kernel and of a whole sweep, counted by callgrind: the same run after run;
2. the sweep's speed as a ratio to reading the same bytes in the same run, with a wide margin;
3. peak memory of a sweep in a child process.

Limits are in limits.json. Each one broken is one line on stderr, and exit status 1. A limit is lowered when the code
got better (`python -m benches.gate --measure` prints what it is now); it is raised with a reason in the commit.
VMCARVE_GATE_SLOW=kernel makes the kernel look twice: tests/test_gate.py uses it to see the gate fail.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from vmcarve.source import open_image
from vmcarve.sweeper import sweep_image

from .common import MIB, READ, Timed, noise, page_buffer, read_all, vmcarve_child

LIMITS = Path(__file__).with_name("limits.json")
NOISE_MIB = 256
ROUNDS = 5
TRIES = 3  # a ratio is believed when it is good once: noise makes it worse, never better


class Missing(Exception):
    """What the gate needs and does not find."""


def instructions(what: str) -> float:
    """Instructions per MiB that benches/gate_child.py spends on `what` ("kernel" or "sweep")."""
    if shutil.which("valgrind") is None:
        raise Missing("valgrind is not installed (Debian: apt-get install valgrind)")
    with tempfile.TemporaryDirectory(prefix="vmcarve-gate-") as folder:
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": folder}
        child = [sys.executable, "-m", "benches.gate_child", what, folder]
        # once without callgrind: byte code is compiled, and a mistake is told in words
        subprocess.run(child, env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null", *child],
            env=environment, capture_output=True, text=True, timeout=600)
    counted = re.search(r"Collected\s*:\s*(\d+)", done.stderr)
    mib = re.search(r"(\d+) MiB", done.stdout)
    if done.returncode != 0 or counted is None or mib is None or int(counted[1]) == 0:
        raise Missing(f"callgrind counted nothing: {done.stdout}{done.stderr[-400:]}")
    return int(counted[1]) / int(mib[1])


def sweep_over_read() -> float:
    """Sweep of random bytes against pread of them, CPU time, one thread: the best of a few tries."""
    with tempfile.TemporaryDirectory(prefix="vmcarve-gate-") as folder:
        with open_image(noise(Path(folder) / "noise", NOISE_MIB)) as source:
            buffer = page_buffer(READ)
            best = 0.0
            for _ in range(TRIES):
                ours, limit = Timed(), Timed()
                for _ in range(ROUNDS):
                    limit.run(lambda: read_all(source, buffer))
                    result = ours.run(lambda: sweep_image(source, 0, lambda _: None, threads=1))
                    assert result.bytes_read == NOISE_MIB * MIB and not result.confirmed  # type: ignore[attr-defined]
                best = max(best, median(limit.cpu) / median(ours.cpu))
    return best


def sweep_peak() -> float:
    """Peak memory of `vmcarve sweep` on random bytes, in MiB."""
    with tempfile.TemporaryDirectory(prefix="vmcarve-gate-") as folder:
        image = noise(Path(folder) / "noise", NOISE_MIB)
        return vmcarve_child("sweep", image, "--out", Path(folder) / "case", "--threads", 2).peak / MIB


# name in limits.json -> (unit, whether the limit is the most that it may be, how it is measured)
FIGURES: dict[str, tuple[str, bool, Callable[[], float]]] = {
    "kernel_instructions": ("instructions a MiB", True, lambda: instructions("kernel")),
    "sweep_instructions": ("instructions a MiB", True, lambda: instructions("sweep")),
    "sweep_over_read": ("of the speed of pread", False, sweep_over_read),
    "sweep_peak": ("MiB", True, sweep_peak),
}


def broken(limits: dict[str, float], only: list[str]) -> Iterator[str]:
    """One line for each limit that does not hold; what was measured goes to stdout."""
    for name, (unit, at_most, measure) in FIGURES.items():
        if name not in only:
            continue
        limit = limits[name]
        figure = measure()
        word = "at most" if at_most else "at least"
        fine = figure <= limit if at_most else figure >= limit
        print(f"{name:20} {figure:12.6g} {unit} ({word} {limit:.6g}){'' if fine else ' BROKEN'}", flush=True)
        if not fine:
            yield f"bench-gate: {name} is {figure:.6g} {unit}, must be {word} {limit:.6g}"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all limits hold, 1 one is broken, 2 something needed is missing."""
    parser = argparse.ArgumentParser(prog="python -m benches.gate", description=__doc__.split("\n")[0])
    parser.add_argument("--limits", type=Path, default=LIMITS, help="JSON of limits (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), default=list(FIGURES), help="these figures only")
    parser.add_argument("--measure", action="store_true", help="print the figures as JSON, judge nothing")
    args = parser.parse_args(argv)
    try:
        if args.measure:
            print(json.dumps({name: round(FIGURES[name][2](), 4) for name in args.only}, indent=2))
            return 0
        lines = list(broken(json.loads(args.limits.read_text(encoding="utf-8")), args.only))
    except Missing as e:
        print(f"bench-gate: {e}", file=sys.stderr)
        return 2
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
