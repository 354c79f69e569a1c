"""Shared inputs, and the one table at the end of a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmcarve.source import ImageSource, open_image

from . import common


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # its table has seconds, which say nothing by themselves: ours has ratios


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(group=item.path.stem))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table: figures are medians of this run; `goal` is what issue and design ask for."""
    if not common.RECORDS:
        return
    write = terminalreporter.write_line
    width = max(len(r.name) for r in common.RECORDS)
    write("")
    write(f"{'what':{width}}  {'figure':>10}  {'goal':>10}  ")
    for r in common.RECORDS:
        goal = "" if r.goal is None else f"{'≤' if r.at_most else '≥'} {r.goal:.4g}"
        write(f"{r.name:{width}}  {r.figure:>7.2f} {r.unit:<3}  {goal:>9}  {r.verdict:5}  {r.note}".rstrip())
    write(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
          f"images of {common.SIZE_MIB} MiB, {common.ROUNDS} rounds, load {os.getloadavg()[0]:.1f}")


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
