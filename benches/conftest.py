"""Shared inputs, and the one table at the end of a run."""

from __future__ import annotations

import compileall
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import vmcarve
from vmcarve.source import ImageSource, open_image

from . import common
from .goals import unanswered


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # its table has seconds, which say nothing by themselves: ours has ratios
    compileall.compile_dir(Path(vmcarve.__file__).parent, quiet=2)  # children start as an installed package does


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(group=item.path.stem))


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: object, output_json: dict[str, Any]) -> None:
    """The table, the series and the machine go into pytest-benchmark's own file: benches/report.py reads them there."""
    output_json["vmcarve"] = run_facts()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table: figures are medians of this run; `goal` is what issue and design ask for."""
    if not common.RECORDS:
        return
    rows = [r.cells() for r in common.RECORDS]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    write = terminalreporter.write_line
    write("")
    for what, figure, goal, verdict, note in [("what", "figure", "goal", "", ""), *rows]:
        write(f"{what:{widths[0]}}  {figure:>{widths[1]}}  {goal:>{widths[2]}}  {verdict:{widths[3]}}  {note}".rstrip())
    for goal in unanswered([r.name for r in common.RECORDS]):
        write(f"not in this run: {goal.text}")
    write(run_facts()["machine"])


def run_facts() -> dict[str, Any]:
    """What benches/report.py makes its pages of."""
    return {
        "machine": machine(),
        "records": [{**asdict(r), "verdict": r.verdict} for r in common.RECORDS],
        "series": [asdict(s) for s in common.SERIES],
    }


def machine() -> str:
    """Where the figures come from, in one line."""
    cpu = re.search(r"model name\s*:\s*(.+)", _text("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", _text("/proc/meminfo"))
    words = [
        f"{os.cpu_count()} CPUs ({cpu[1].strip() if cpu else platform.machine()})",
        f"{int(memory[1]) / (1 << 20):.0f} GiB of memory" if memory else "",
        f"{platform.system()} {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}",
        f"images of {common.SIZE_MIB} MiB",
        f"{common.ROUNDS} rounds",
        f"load {os.getloadavg()[0]:.1f}",
    ]
    return ", ".join(w for w in words if w)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@pytest.fixture(scope="session")
def noise_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageSource]:
    """Random bytes, in the page cache."""
    path = common.noise(tmp_path_factory.mktemp("noise") / "noise.img", common.SIZE_MIB)
    with open_image(path) as source:
        yield source
    path.unlink()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files are gone right after the bench: images are large."""
    yield tmp_path
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
