"""`make bench-gate`: has something become slower or larger? Answers that a busy machine cannot change.

1. instructions per MiB of each kernel of ext/ and of whole sweeps, counted by callgrind: the same run after run;
2. speed as a ratio to reading or copying the same bytes in the same run, with a wide margin;
3. peak memory of a sweep and of a recovery, in child processes.

Limits are in limits.json. Each one broken is one line on stderr, and exit status 1. A kernel that benches/kernels.py
has no work for, and a figure without a limit, are broken too. `--measure` prints what the figures are now; `--tighten`
lowers the limits of what got better (--tighten writes limits.json); one is raised by hand, with a reason in the commit.
VMCARVE_GATE_SLOW=FIGURE makes that one worse: tests/test_gate.py uses it to see the gate fail.
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

import numpy as np

from tests.makers import vdi, vhd, vhdx, vmdk
from vmcarve.export import write_container
from vmcarve.source import open_image
from vmcarve.sweeper import sweep_image

from .common import MIB, READ, Child, Timed, noise, page_buffer, read_all, run_child

LIMITS = Path(__file__).with_name("limits.json")
# the files of ext/ that have a function to call; one that only tells what the CPU can do is no kernel
KERNELS = sorted(p.stem for p in Path(__file__).parents[1].glob("ext/*.pyx") if "\ncpdef " in p.read_text("utf-8"))
NOISE_MIB = 256
COUNTED_MIB = 16  # of an image whose sweep is counted
ROUNDS = 5
TRIES = 3  # a ratio is believed when it is good once: noise makes it worse, never better
ROOM = 1.1  # what --tighten leaves above a figure


class Missing(Exception):
    """What the gate needs and does not find."""


def slowed(name: str) -> bool:
    return os.environ.get("VMCARVE_GATE_SLOW") == name


# --- 1. instructions --------------------------------------------------------------------------------------------------
def disks_image(path: Path) -> Path:
    """Random bytes with containers of our own writers between them: the same bytes wherever it is made."""
    rng = np.random.default_rng(8)
    folder = path.with_suffix(".d")
    folder.mkdir()
    raw = folder / "raw"
    raw.write_bytes(rng.bytes(MIB) + bytes(MIB))
    with path.open("wb") as f:
        for seed, maker in enumerate(m for module in (vdi, vhd, vhdx, vmdk) for m in module.MAKERS.values()):
            out = folder / f"disk-{seed}"
            maker.make(raw, out, seed)
            f.write(rng.bytes(64 << 10) + out.read_bytes())
            f.write(bytes(-f.tell() % 4096))
        f.truncate(COUNTED_MIB * MIB)
    return path


def dense_image(path: Path) -> Path:
    """Sectors that begin like NTFS records and XFS inodes and are none: random behind the magic."""
    sectors = np.frombuffer(np.random.default_rng(9).bytes(COUNTED_MIB * MIB), np.uint8).reshape(-1, 512).copy()
    sectors[0::4, :4] = np.frombuffer(b"FILE", np.uint8)
    sectors[2::4, :5] = np.frombuffer(b"IN\x81\xa4\x03", np.uint8)
    path.write_bytes(sectors.tobytes())
    return path


IMAGES: dict[str, Callable[[Path], Path]] = {
    "noise": lambda path: noise(path, 4 * COUNTED_MIB),  # larger, so that what a sweep costs once counts for little
    "disks": disks_image,
    "dense": dense_image,
}
COUNTED = [*(f"kernel.{stem}" for stem in KERNELS), *(f"sweep.{image}" for image in IMAGES)]


def instructions(names: list[str]) -> dict[str, float]:
    """Instructions per MiB of each name, counted in one run of benches/gate_child.py."""
    if shutil.which("valgrind") is None:
        raise Missing("valgrind is not installed (Debian: apt-get install valgrind)")
    with tempfile.TemporaryDirectory(prefix="vmcarve-gate-") as folder:
        for image, make in IMAGES.items():
            if f"sweep.{image}" in names:
                make(Path(folder) / image)
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": f"{folder}/pycache"}
        child = [sys.executable, "-m", "benches.gate_child", folder, *names]
        # once without callgrind: byte code is compiled, and a mistake is told in words
        first = subprocess.run(child, env=environment, timeout=300, capture_output=True, text=True)
        if first.returncode != 0:
            raise Missing(f"benches/gate_child.py: {first.stderr.strip()[-400:]}")
        subprocess.run(["valgrind", "--tool=callgrind", "--instr-atstart=no",
                        f"--callgrind-out-file={folder}/counted", *child], env=environment, capture_output=True,
                       timeout=600, check=True)
        mib = dict(line.split() for line in first.stdout.splitlines())
        counts: dict[str, int] = {}
        for path in Path(folder).glob("counted.*"):
            text = path.read_text(errors="replace")
            name = re.search(r"^desc: Trigger: Client Request: (\S+)", text, re.MULTILINE)
            total = re.search(r"^totals: (\d+)", text, re.MULTILINE)
            if name is not None and total is not None:
                counts[name[1]] = int(total[1])
    if set(counts) != set(names) or not all(counts.values()):
        raise Missing(f"callgrind counted nothing for {sorted(set(names) - {n for n in counts if counts[n]})}")
    return {name: counts[name] / float(mib[name]) for name in names}


# --- 2. ratios --------------------------------------------------------------------------------------------------------
def best_ratio(name: str, ours: Callable[[], object], limit: Callable[[], object]) -> float:
    """Speed of ours in speeds of the limit by CPU time, run in turn: the best of a few tries."""
    best = 0.0
    for _ in range(TRIES):
        mine, least = Timed(), Timed()
        for _ in range(ROUNDS):
            least.run(limit)
            for _ in range(16 if slowed(name) else 1):
                mine.run(ours)
        best = max(best, median(least.cpu) / (sum(mine.cpu) / ROUNDS if slowed(name) else median(mine.cpu)))
    return best


def sweep_over_read() -> float:
    """Sweep of random bytes against pread of them, one thread."""
    with tempfile.TemporaryDirectory(prefix="vmcarve-gate-") as folder:
        with open_image(noise(Path(folder) / "noise", NOISE_MIB)) as source:
            buffer = page_buffer(READ)

            def sweep() -> None:
                result = sweep_image(source, 0, lambda _: None, threads=1)
                assert result.bytes_read == NOISE_MIB * MIB and not result.confirmed

            return best_ratio("sweep_over_read", sweep, lambda: read_all(source, buffer))


def write_over_copy() -> float:
    """A container of 64 MiB in pieces of 64 KiB in random order, written without its hash, against a plain copy."""
    piece, count = 64 << 10, 1024
    with tempfile.TemporaryDirectory(prefix="vmcarve-gate-") as name:
        folder = Path(name)
        places = np.random.default_rng(3).permutation(count).tolist()
        rows = [(n * piece, piece, p * piece, n * piece, "plain", piece, "supported", "x") for n, p in
                enumerate(places)]
        with open_image(noise(folder / "image", piece * count // MIB)) as source:
            def write() -> None:
                write_container(source, folder / "ours", piece * count, rows, [], digest=False)

            ratio = best_ratio("write_over_copy", write, lambda: shutil.copyfile(folder / "image", folder / "copy"))
            with (folder / "ours").open("rb") as f:
                assert all(f.read(piece) == source.read(p * piece, piece) for p in places)
    return ratio


# --- 3. memory --------------------------------------------------------------------------------------------------------
HOLDING = "held = b'1' * (256 << 20); import runpy, sys; sys.argv[0] = 'vmcarve'; runpy.run_module('vmcarve.cli', " \
          "run_name='__main__')"


def peak(name: str, command: str, make: Callable[[Path], Path]) -> float:
    """Peak memory of a command on the image that `make` makes, in MiB."""
    with tempfile.TemporaryDirectory(prefix="vmcarve-gate-") as folder:
        program = ("-c", HOLDING) if slowed(name) else ("-m", "vmcarve.cli")
        child: Child = run_child(sys.executable, *program, command, make(Path(folder) / "image"), "--out",
                                 Path(folder) / "case", "--threads", 2)
    return child.peak / MIB


# name in limits.json -> (unit, whether the limit is the most that it may be, how it is measured; None: counted)
FIGURES: dict[str, tuple[str, bool, Callable[[], float] | None]] = {
    **{name: ("instructions a MiB", True, None) for name in COUNTED},
    "sweep_over_read": ("of the speed of pread", False, sweep_over_read),
    "write_over_copy": ("of the speed of a copy", False, write_over_copy),
    "sweep_peak": ("MiB", True, lambda: peak("sweep_peak", "sweep", lambda p: noise(p, NOISE_MIB))),
    "recover_peak": ("MiB", True, lambda: peak("recover_peak", "recover", disks_image)),
}


def measured(names: list[str]) -> Iterator[tuple[str, float | None]]:
    """Each figure as it is known; None for a kernel that has no work."""
    from .kernels import WORKLOADS

    idle = [n for n in names if n.startswith("kernel.") and n.removeprefix("kernel.") not in WORKLOADS]
    counted = [n for n in names if FIGURES[n][2] is None and n not in idle]
    for name in idle:
        yield name, None
    if counted:
        yield from instructions(counted).items()
    for name in names:
        how = FIGURES[name][2]
        if how is not None:
            yield name, how()


def judge(limits: dict[str, float], names: list[str]) -> Iterator[str]:
    """One line for each limit that does not hold; what was measured goes to stdout."""
    for name, figure in measured(names):
        unit, at_most, _ = FIGURES[name]
        word = "at most" if at_most else "at least"
        limit = limits.get(name)
        if figure is None:
            yield f"bench-gate: {name} has no workload in benches/kernels.py"
            continue
        fine = limit is not None and (figure <= limit if at_most else figure >= limit)
        shown = "no limit" if limit is None else f"{word} {limit:.6g}"
        print(f"{name:20} {figure:12.6g} {unit} ({shown}){'' if fine else ' BROKEN'}", flush=True)
        if limit is None:
            yield f"bench-gate: {name} is {figure:.6g} {unit} and has no limit in limits.json"
        elif not fine:
            yield f"bench-gate: {name} is {figure:.6g} {unit}, must be {word} {limit:.6g}"


def tightened(limits: dict[str, float], names: list[str]) -> dict[str, float]:
    """The limits with those of instruction counts lowered to what was measured and some room; none is raised."""
    for name, figure in measured(names):
        if figure is not None and FIGURES[name][2] is None:
            limits[name] = min(limits.get(name, float("inf")), float(f"{figure * ROOM:.3g}"))
    return {name: limits[name] for name in FIGURES if name in limits}


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 all limits hold, 1 one is broken, 2 something needed is missing."""
    parser = argparse.ArgumentParser(prog="python -m benches.gate", description=__doc__.split("\n")[0])
    parser.add_argument("--limits", type=Path, default=LIMITS, help="JSON of limits (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), default=list(FIGURES), help="these figures only")
    parser.add_argument("--measure", action="store_true", help="print the figures as JSON, judge nothing")
    parser.add_argument("--tighten", action="store_true", help="lower the limits of instruction counts that got better")
    args = parser.parse_args(argv)
    try:
        if args.measure:
            print(json.dumps({name: figure and round(figure, 4) for name, figure in measured(args.only)}, indent=2))
            return 0
        limits = json.loads(args.limits.read_text(encoding="utf-8"))
        if args.tighten:
            args.limits.write_text(json.dumps(tightened(limits, args.only), indent=2) + "\n", encoding="utf-8")
            return 0
        lines = list(judge(limits, args.only))
    except Missing as e:
        print(f"bench-gate: {e}", file=sys.stderr)
        return 2
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
