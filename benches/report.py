"""Pages and plots from the JSON of `make bench`.

    python -m benches.report bench-out.json --plots docs/plots --write docs/performance.md --summary bench-summary.json
    python -m benches.report trend RUN.json RUN.json ... --out trend.svg [--only REGEX]

--write replaces what stands between the two marks of the page, and nothing else. --summary is a list of {name, value,
unit, goal, verdict}: what a CI keeps of a run. `trend` draws such lists, oldest first, one line a figure.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from . import plots
from .common import Record, Series
from .goals import unanswered

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
HEAD = ("what", "figure", "goal", "", "")
PLOTTED = ("×",)  # units whose records stand side by side as bars


class Unusable(Exception):
    """A file that is not what it should be; one line says what."""


def load(path: Path) -> dict[str, Any]:
    """What `make bench` wrote: {machine, records, series}. Raises Unusable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["vmcarve"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise Unusable(f"{path}: not written by `make bench` ({type(e).__name__}: {e})") from e


def records(facts: dict[str, Any]) -> list[Record]:
    return [Record(**{k: v for k, v in r.items() if k != "verdict"}) for r in facts["records"]]


def series(facts: dict[str, Any]) -> dict[str, list[Series]]:
    """The series of a run by the plot that they belong to."""
    found: dict[str, list[Series]] = {}
    for s in facts["series"]:
        found.setdefault(s["plot"], []).append(Series(**{**s, "points": [tuple(p) for p in s["points"]]}))
    return found


def summary(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """A flat list, in the shape that trend tools of CI services read."""
    return [{"name": r.name, "value": r.figure, "unit": r.unit, "goal": r.goal, "verdict": r.verdict}
            for r in records(facts)]


def table(facts: dict[str, Any], source: str, drawn: list[str]) -> str:
    """The block of docs/performance.md."""
    rows = records(facts)
    lines = [f"Made by `python -m benches.report {source} --write docs/performance.md` from a run of `make bench` on",
             f"{facts['machine']}.", "", f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in r.cells()) + " |" for r in rows]
    left = unanswered([r.name for r in rows])
    if left:
        lines += ["", "Not measured in this run: " + "; ".join(goal.text for goal in left) + "."]
    lines += ["", *(f"![{Path(name).stem}](plots/{name})" for name in drawn)] if drawn else []
    return "\n".join(lines)


def replace_block(page: Path, block: str) -> None:
    """Puts `block` between the marks of `page`. Raises Unusable where the marks are not there, in this order, once."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise Unusable(f"{page}: needs one {BEGIN} and one {END} behind it")
    head, rest = text.split(BEGIN)
    page.write_text(f"{head}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def draw(facts: dict[str, Any]) -> dict[str, str]:
    """One SVG for the ratios and one for each family of series, by its file's name."""
    pages: dict[str, str] = {}
    ratios = [r for r in records(facts) if r.unit in PLOTTED and r.figure is not None and r.figure > 0]
    for name, title, at_most in (("faster", "how many times as fast as the limit or the peer (mark: the goal)", False),
                                 ("longer", "how many times as long as the least (mark: the most)", True)):
        if group := [r for r in ratios if r.at_most == at_most]:
            pages[f"{name}.svg"] = plots.bars(title, group)
    for name, group in series(facts).items():
        pages[f"{name.replace(' ', '-')}.svg"] = plots.lines(name, group)
    return pages


def trend(paths: list[Path], only: str) -> str:
    """One line a figure over the runs, oldest first; a run that lacks it leaves a gap."""
    points: dict[str, list[tuple[float, float]]] = {}
    for n, path in enumerate(paths):
        try:
            run = [(str(r["name"]), float(r["value"])) for r in json.loads(path.read_text(encoding="utf-8"))
                   if r["value"] is not None]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise Unusable(f"{path}: not a summary of a run ({type(e).__name__}: {e})") from e
        for name, value in run:
            if re.search(only, name):
                points.setdefault(name, []).append((float(n), value))
    if not points:
        raise Unusable(f"no figure matches {only!r}")
    return plots.lines("over runs", [Series("trend", name, "run", "figure", p) for name, p in points.items()])


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 done, 1 a file that cannot be used."""
    words = sys.argv[1:] if argv is None else argv
    try:
        return _trend(words[1:]) if words[:1] == ["trend"] else _report(words)
    except Unusable as e:
        print(f"benches.report: {e}", file=sys.stderr)
        return 1


def _report(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="BENCH_OUT", help="what `make bench` wrote")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draws the plots there")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="replaces the block between the marks of the page")
    parser.add_argument("--summary", type=Path, metavar="JSON", help="writes the flat list for a CI")
    args = parser.parse_args(words)
    facts = load(args.run)
    pages = draw(facts)
    if args.plots:
        args.plots.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (args.plots / name).write_text(text, encoding="utf-8")
    if args.summary:
        args.summary.write_text(json.dumps(summary(facts), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.write:
        replace_block(args.write, table(facts, args.run.name, list(pages)))
    return 0


def _trend(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.report trend", description="Draws figures over runs.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="summaries, oldest first")
    parser.add_argument("--out", type=Path, required=True, metavar="SVG")
    parser.add_argument("--only", default=".", metavar="REGEX", help="figures whose name matches")
    args = parser.parse_args(words)
    args.out.write_text(trend(args.runs, args.only), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
