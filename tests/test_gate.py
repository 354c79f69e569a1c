"""The gate of `make bench-gate` fails when something became slower: seen on limits that do not hold, and on purpose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benches import gate

needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")


def run_gate(*argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "benches.gate", *map(str, argv)], capture_output=True, text=True,
                          timeout=300, cwd=gate.LIMITS.parents[1], env={**os.environ, **environment})


def limits(path: Path, **changed: float) -> Path:
    """The committed limits with some changed."""
    path.write_text(json.dumps({**json.loads(gate.LIMITS.read_text()), **changed}))
    return path


def test_every_figure_has_a_limit() -> None:
    """No figure goes unjudged, and no limit without a figure."""
    assert set(json.loads(gate.LIMITS.read_text())) == set(gate.FIGURES)


@pytest.mark.parametrize(("name", "limit"), [("sweep_over_read", 50.0), ("sweep_peak", 1.0)])
def test_a_broken_limit_is_one_line_and_a_status(name: str, limit: float, tmp_path: Path) -> None:
    """A limit that does not hold is told with the figure and the limit, and nothing else is on stderr."""
    done = run_gate("--only", name, "--limits", limits(tmp_path / "limits.json", **{name: limit}))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and name in done.stderr and f"{limit:g}" in done.stderr


@needs_valgrind
def test_a_kernel_that_looks_twice_fails() -> None:
    """The committed limit on the kernel's instructions holds, and not when the kernel does its work twice."""
    assert run_gate("--only", "kernel_instructions").returncode == 0
    slow = run_gate("--only", "kernel_instructions", VMCARVE_GATE_SLOW="kernel")
    assert slow.returncode == 1
    assert slow.stderr.startswith("bench-gate: kernel_instructions is "), slow.stderr


def test_without_valgrind_it_says_so(tmp_path: Path) -> None:
    """What is missing is named, with another status than a broken limit."""
    done = run_gate("--only", "kernel_instructions", PATH=str(tmp_path))
    assert done.returncode == 2 and "valgrind" in done.stderr
