"""The pages and plots of `make bench` are made of its JSON: what was measured, what falls short, what was left out."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benches import report
from benches.common import Record
from benches.goals import GOALS, unanswered

PAGE = f"# Title\nbefore\n{report.BEGIN}\nold\n{report.END}\nbehind\n"


def facts() -> dict[str, Any]:
    lines = [
        Record("sweep of noise / pread, CPU time", 0.93, goal=0.9),
        Record("recover end to end / (read once + cp of the outputs), wall time", 4.5, goal=3.0, at_most=True),
        Record("sweep of noise / ripgrep, CPU time", None, "", note="rg is not installed | here"),
        Record("vmcarve --help", 0.11, "s", 0.15, True),
    ]
    series = {"plot": "time over size", "line": "recover", "x_label": "GiB", "y_label": "seconds",
              "points": [(1.0, 2.0), (2.0, 4.1)]}
    return {"machine": "2 CPUs (x < y & z)", "records": [vars_of(r) for r in lines], "series": [series]}


def vars_of(r: Record) -> dict[str, Any]:
    return {name: getattr(r, name) for name in (*r.__slots__, "verdict")}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "bench-out.json"
    path.write_text(json.dumps({"benchmarks": [], "vmcarve": facts()}))
    return path


def test_the_page_keeps_its_words_and_gets_the_table(run: Path, tmp_path: Path) -> None:
    """Only what stands between the marks changes, and a second run changes nothing more."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    for _ in range(2):
        assert report.main([str(run), "--write", str(page), "--plots", str(tmp_path / "plots")]) == 0
        text = page.read_text()
        assert text.startswith("# Title\nbefore\n") and text.endswith("\nbehind\n") and "\nold\n" not in text
        assert "| sweep of noise / pread, CPU time | 0.93× | ≥ 0.9 | ok |  |" in text
        assert "| 4.50× | ≤ 3 | short |" in text
        assert "| not measured | rg is not installed \\| here |" in text
        assert "2 CPUs (x < y & z)" in text and "plots/time-over-size.svg" in text
    assert "Not measured in this run:" in text and "import vmcarve" in text.split("Not measured in this run:")[1]


@pytest.mark.parametrize("text", ["no marks", report.BEGIN, f"{report.END}{report.BEGIN}", PAGE + report.END])
def test_a_page_without_its_marks_is_left_alone(text: str, run: Path, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what is wrong with the page, and not a byte of it changes."""
    page = tmp_path / "page.md"
    page.write_text(text)
    assert report.main([str(run), "--write", str(page)]) == 1
    assert page.read_text() == text
    assert capsys.readouterr().err.count("\n") == 1


def test_plots_are_svg_that_a_browser_takes(run: Path, tmp_path: Path) -> None:
    """Well-formed XML; every ratio that was measured has its bar, in the colour of its verdict."""
    assert report.main([str(run), "--plots", str(tmp_path)]) == 0
    for page, colour in (("faster.svg", "#4d8b4d"), ("longer.svg", "#c0652a")):
        bars = ET.parse(tmp_path / page).getroot()
        assert [e.get("fill") for e in bars.iter() if e.tag.endswith("rect")] == ["#ffffff", colour]
    lines = ET.parse(tmp_path / "time-over-size.svg").getroot()
    assert sum(e.tag.endswith("circle") for e in lines.iter()) == 2


def test_runs_of_a_ci_become_one_plot(run: Path, tmp_path: Path) -> None:
    """The summaries of runs, oldest first, are lines over runs; a figure that a run lacks is a gap."""
    paths = [tmp_path / f"{n}.json" for n in range(3)]
    for path in paths:
        assert report.main([str(run), "--summary", str(path)]) == 0
    assert {r["name"]: r["value"] for r in json.loads(paths[0].read_text())}["vmcarve --help"] == 0.11
    out = tmp_path / "trend.svg"
    assert report.main(["trend", *map(str, paths), "--out", str(out), "--only", "noise"]) == 0
    svg = ET.parse(out).getroot()
    assert sum(e.tag.endswith("circle") for e in svg.iter()) == 3
    assert sum(e.tag.endswith("polyline") for e in svg.iter()) == 1


def test_what_is_not_a_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of another kind, or none, is one line on stderr."""
    other = tmp_path / "other.json"
    other.write_text("{}")
    for path in (other, tmp_path / "missing.json"):
        assert report.main([str(path)]) == 1
        assert report.main(["trend", str(path), "--out", str(tmp_path / "x.svg")]) == 1
    assert capsys.readouterr().err.count("\n") == 4


def test_lines_that_nobody_measured_are_named() -> None:
    """Each line of the goals is looked for by the names of records, and one that none answers is not left out."""
    answered = ["sweep of noise / pread, CPU time", "sweep of noise, two threads / one, wall time",
                "peak memory of recover, 8192 MiB", "peak memory of recover, 64 GiB sparse"]
    left = unanswered(answered)
    assert len(GOALS) - len(left) == 4
    assert not any("threads" in goal.text or "peak" in goal.text for goal in left)


def test_workflows_use_make_targets_that_exist() -> None:
    """What CI services run is what .ci/run runs: a target that was renamed would fail there alone."""
    root = Path(report.__file__).parents[1]
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text("utf-8"), re.MULTILINE))
    used = {target for path in (root / ".github/workflows").glob("*.yml")
            for target in re.findall(r"run: .*\bmake ([a-z-]+)", path.read_text("utf-8"))}
    assert {"lint", "bench-gate", "test", "bench"} <= used <= targets
