"""Does it feel instant? Start-up of the command line and of the import, in fresh interpreters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.makers.vdi import MAKERS
from vmcarve import recover

from .common import MIB, Child, median, record, run_child, vmcarve_child

ROUNDS = 9


def usual(benchmark: Any, run: Any) -> Child:
    """The run of the median wall time; the first one, which compiles byte code, does not count."""
    children: list[Child] = []
    run()
    benchmark.pedantic(lambda: children.append(run()), rounds=ROUNDS)
    middle = median(c.wall for c in children)
    return min(children, key=lambda c: abs(c.wall - middle))


@pytest.mark.parametrize(("name", "goal", "argv"), [
    ("vmcarve --help", 0.15, ("-m", "vmcarve.cli", "--help")),
    ("import vmcarve", 0.3, ("-c", "import vmcarve")),
    ("vmcarve recover --help", None, ("-m", "vmcarve.cli", "recover", "--help")),
    ("import vmcarve; vmcarve.recover (all that it needs)", None, ("-c", "import vmcarve; vmcarve.recover")),
])
def test_start(benchmark: Any, name: str, goal: float | None, argv: tuple[str, ...]) -> None:
    """Seconds from the start of an interpreter to its end."""
    child = usual(benchmark, lambda: run_child(sys.executable, *argv))
    record(benchmark, name, child.wall, unit="s", goal=goal, at_most=True,
           note=f"{child.cpu:.2f} s CPU, {child.peak / MIB:.0f} MiB")


def test_list(benchmark: Any, scratch: Path) -> None:
    """`vmcarve list CASE` on a case with one disk."""
    image, case = scratch / "image", scratch / "case"
    raw = scratch / "raw"
    raw.write_bytes(np.random.default_rng(1).bytes(MIB))
    next(iter(MAKERS.values())).make(raw, scratch / "disk", 1)
    image.write_bytes(bytes(MIB) + (scratch / "disk").read_bytes())
    assert len(recover([image], case).disks()) == 1
    child = usual(benchmark, lambda: vmcarve_child("list", case))
    record(benchmark, "vmcarve list CASE", child.wall, unit="s", goal=0.3, at_most=True,
           note=f"{child.cpu:.2f} s CPU, {child.peak / MIB:.0f} MiB")
