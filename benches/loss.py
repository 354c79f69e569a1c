"""Where the loss is: of each row of docs/results.md that falls short, its disks drawn, and its lost bytes by kind."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.corpus.losses import EVEN, MISSING, OTHER, RIGHT, TEXT, WRONG

from . import plots
from .rows import Row

Result = dict[str, Any]

COLOURS = {RIGHT: ("#2f6f9f", "right"), WRONG: ("#b03a48", "wrong, as a guess"), MISSING: ("#c9a227", "missing")}
LEAST_LOST = 0.0005  # of a disk's recoverable bytes, for it to be drawn
KINDS = (EVEN, TEXT, OTHER)
LEAST_SHARE = 0.01  # of the loss of a row, to be named


def drawn(row: Row, disks: Sequence[tuple[Result, Result]]) -> str:
    """An SVG of the disks (scene, disk) of a row that lost anything, each from end to end."""
    strips = [(f"{scene['scene']} {scene['seed']}: {disk['name']}, {disk['guest']}", disk["strip"])
              for scene, disk in disks if lost_of(disk) >= LEAST_LOST * disk["wanted_bytes"]]
    return plots.strips(row.title, strips, COLOURS)


def name_of(row: Row) -> str:
    """The file name of its picture."""
    return "loss-" + re.sub(r"[^a-z0-9]+", "-", row.title.lower()).strip("-") + ".svg"


def lost_of(disk: Result) -> int:
    """Bytes of a disk that could be recovered, and were not."""
    whole = disk["exact"] or disk.get("guest_equal")
    return 0 if whole else sum(sum(kinds.values()) for kinds in disk.get("lost", {}).values())


def by_kind(asked: Sequence[tuple[Row, list[tuple[Result, Result]]]]) -> list[str]:
    """The lost bytes of each row by how they were lost and what they are, as shares of what could be recovered."""
    head = [f"{how}: {kind}" for how in ("not found", "missing", "wrong") for kind in KINDS]
    lines = ["| corpus | lost | " + " | ".join(head) + " |", "| --- |" + " --- |" * (len(head) + 1)]
    for row, disks in asked:
        wanted = sum(d["wanted_bytes"] for _, d in disks if d["recall"] is not None) or 1
        sums: Counter[tuple[str, str]] = Counter()
        for _, disk in disks:
            for how, kinds in disk.get("lost", {}).items() if lost_of(disk) else ():
                for kind, count in kinds.items():
                    sums[how if disk["found"] else "not found", kind] += count
        cells = [sums[how, kind] for how in ("not found", "missing", "wrong") for kind in KINDS]
        shares = [f"{100 * v / wanted:.2f} %" if v else "" for v in (sum(sums.values()), *cells)]
        lines.append(f"| {row.title} | {' | '.join(shares)} |")
    return lines


def by_disk(asked: Sequence[tuple[Row, list[tuple[Result, Result]]]]) -> list[str]:
    """Which guests and which formats the lost bytes of each row belong to: share of the loss, and recall."""
    lines = ["| corpus | guest: share of the loss (recall) | format: share of the loss (recall) |",
             "| --- | --- | --- |"]
    for row, disks in asked:
        cells = [_shares([d for _, d in disks], key) for key in (_guest, _format)]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return lines


def _guest(disk: Result) -> str:
    return str(disk["guest"])


def _format(disk: Result) -> str:
    return str(disk["format"])


def _shares(disks: Sequence[Result], key: Callable[[Result], str]) -> str:
    """Groups of disks by their share of the loss, the largest first."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for disk in disks:
        if disk["recall"] is not None:
            sums[key(disk)][0] += lost_of(disk)
            sums[key(disk)][1] += disk["wanted_bytes"]
    total = sum(lost for lost, _ in sums.values()) or 1
    ranked = sorted(sums.items(), key=lambda item: -item[1][0])
    return ", ".join(f"{name} {100 * lost / total:.0f} % ({100 - 100 * lost / (wanted or 1):.1f} %)"
                     for name, (lost, wanted) in ranked if lost >= LEAST_SHARE * total)


def write_pictures(asked: Sequence[tuple[Row, list[tuple[Result, Result]]]], folder: Path) -> list[str]:
    """Writes a picture for each row; returns the lines of the page that show them, as seen from the folder above."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for row, disks in asked:
        (folder / name_of(row)).write_text(drawn(row, disks), encoding="utf-8")
        lines += ["", f"![{row.title}]({folder.name}/{name_of(row)})"]
    return lines[1:]
