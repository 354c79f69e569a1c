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
    """No figure goes unjudged, and no limit without a figure; every kernel of ext/ is one."""
    assert set(json.loads(gate.LIMITS.read_text())) == set(gate.FIGURES)
    assert {f"kernel.{stem}" for stem in gate.KERNELS} <= set(gate.FIGURES) and len(gate.KERNELS) >= 3


@pytest.mark.parametrize(("name", "limit"), [("write_over_copy", 50.0), ("sweep_peak", 1.0)])
def test_a_broken_limit_is_one_line_and_a_status(name: str, limit: float, tmp_path: Path) -> None:
    """A limit that does not hold is told with the figure and the limit, and nothing else is on stderr."""
    done = run_gate("--only", name, "--limits", limits(tmp_path / "limits.json", **{name: limit}))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and name in done.stderr and f"{limit:g}" in done.stderr


@needs_valgrind
def test_the_committed_limits_hold() -> None:
    """The gate lets this very code through: what the next tests see fail, fails for what was made worse."""
    done = run_gate()
    assert (done.returncode, done.stderr) == (0, "")


@needs_valgrind
@pytest.mark.parametrize("name", ["kernel.first_look", "sweep.noise"])
def test_work_that_is_done_twice_is_seen_in_its_instructions(name: str) -> None:
    """A kernel, and a sweep, that does its work twice breaks the committed limit."""
    slow = run_gate("--only", name, VMCARVE_GATE_SLOW=name)
    assert slow.returncode == 1
    assert slow.stderr.startswith(f"bench-gate: {name} is "), slow.stderr


@pytest.mark.parametrize("name", ["sweep_over_read", "write_over_copy", "sweep_peak", "recover_peak"])
def test_much_slower_or_larger_is_seen(name: str) -> None:
    """Ratios have wide margins: sixteen times the work breaks them, and 256 MiB more break the limits on memory."""
    worse = run_gate("--only", name, VMCARVE_GATE_SLOW=name)
    assert worse.returncode == 1
    assert worse.stderr.startswith(f"bench-gate: {name} is "), worse.stderr


@needs_valgrind
def test_a_figure_without_a_limit_fails(tmp_path: Path) -> None:
    """What has no limit is not waved through: the figure is told, so that a limit can be written."""
    path = limits(tmp_path / "limits.json")
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "kernel.crc32c"}))
    done = run_gate("--only", "kernel.crc32c", "--limits", path)
    assert done.returncode == 1 and "has no limit" in done.stderr


def test_a_kernel_without_work_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel that is new in ext/ breaks the gate until it has a workload and a limit."""
    monkeypatch.setitem(gate.FIGURES, "kernel.brand_new", ("instructions a MiB", True, None))
    assert gate.main(["--only", "kernel.brand_new"]) == 1
    assert "kernel.brand_new has no workload" in capsys.readouterr().err


@needs_valgrind
def test_limits_are_lowered_and_never_raised(tmp_path: Path) -> None:
    """--tighten brings a limit down to what is measured, leaves a lower one alone, and keeps all others."""
    path = limits(tmp_path / "limits.json", **{"kernel.crc32c": 1e9, "kernel.first_look": 5.0})
    assert run_gate("--only", "kernel.crc32c", "kernel.first_look", "--tighten", "--limits", path).returncode == 0
    after = json.loads(path.read_text())
    assert after["kernel.crc32c"] < 1e8 and after["kernel.first_look"] == 5.0
    assert set(after) == set(gate.FIGURES)


def test_without_valgrind_it_says_so(tmp_path: Path) -> None:
    """What is missing is named, with another status than a broken limit."""
    done = run_gate("--only", "kernel.first_look", PATH=str(tmp_path))
    assert done.returncode == 2 and "valgrind" in done.stderr
