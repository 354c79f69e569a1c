"""What a person sees: progress with rate and time left on a terminal, plain lines otherwise; tables at the end.

rich is imported where it draws: plain lines should be there at once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from .case import Case

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

WORDS = {"sweep": "sweeping", "assemble": "assembling", "verify": "verifying", "write": "writing"}


class Progress:
    """A `report` for the pipeline, as a context. On a terminal a bar, else a line when a stage ends."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._told: set[str] = set()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() or os.environ.get("FORCE_COLOR"):
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bars

            self._bars = Bars(TextColumn("{task.description:<11}"), BarColumn(), DownloadColumn(binary_units=True),
                              TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        started = self._started.setdefault(stage, time.monotonic())
        if self._bars is not None:
            if stage not in ("sweep", "write"):
                return
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(WORDS[stage], total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
        elif done >= total and stage in ("sweep", "write") and total and stage not in self._told:
            self._told.add(stage)
            seconds = max(time.monotonic() - started, 1e-6)
            print(f"{WORDS[stage]}: {size_text(total)} in {seconds:.1f} s", file=sys.stderr)


def size_text(count: int | None) -> str:
    """Bytes for people: 1.5 GiB."""
    if count is None:
        return "?"
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def _clean(text: str) -> str:
    """Text from evidence, safe for a terminal: no control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def grade_text(row: dict[str, Any]) -> str:
    """What is claimed of a disk, shortest first."""
    parts = [f"{size_text(row['bytes_' + g])} {g}" for g in ("proven", "supported", "guessed", "missing")
             if row["bytes_" + g]]
    return ", ".join(parts) or "empty"


def _state(row: dict[str, Any]) -> str:
    return {True: "deleted", False: "live", None: "unknown"}[row["deleted"]]


def print_disks(case: Case) -> None:
    """The table at the end of a recovery."""
    rows = case.disks()
    if not rows:
        print("no virtual disks found")
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("disk", "variant", "state", "size", "what is known", "guest", "file"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(row["disk_id"], f"{row['format']} {row['variant']}", _state(row), size_text(row["virtual_size"]),
                      grade_text(row), _clean(row["guest"] or "-"), row["path"] or "not written", style=None)
    console.print(table)


def print_next_step(case: Case) -> None:
    """One line on what to do next, and what went wrong where something did."""
    rows = case.disks()
    for trouble in case.info["troubles"]:
        print(f"note: {_clean(trouble)}")
    live = [r for r in rows if r["deleted"] is False and r["path"] is None]
    if live and case.info["options"]["write"]:
        print(f"{len(live)} disks are live on the host and were not written (--live writes them too)")
    if rows:
        print(f"next: vmcarve show {case.path} {rows[0]['disk_id']}")


def print_lines(case: Case) -> None:
    """One line a disk."""
    for row in case.disks():
        name = _clean(row["names"][0]) if row["names"] else "-"
        print("\t".join([row["disk_id"], row["format"], row["variant"], _state(row), str(row["virtual_size"]),
                         grade_text(row), _clean(row["guest"] or "-"), name, row["path"] or "-"]))


def print_evidence(case: Case) -> None:
    """How many structures of each kind were proven, and of how many magics."""
    swept = case.info["sweep"]
    for kind in sorted(set(swept["hits"]) | set(swept["confirmed"])):
        print(f"{kind}\t{swept['confirmed'].get(kind, 0)} proven\t{swept['hits'].get(kind, 0)} magics seen")


def print_disk(case: Case, disk_id: str, *, as_json: bool = False) -> None:
    """Everything that the case says of one disk."""
    from .model import GRADES

    row = case.disk(disk_id)
    maps = {space: case.extents(row["disk_id"], space) for space in ("container", "guest")}
    if as_json:
        print(json.dumps({**row, "extents": maps}, indent=2, ensure_ascii=False))
        return
    print(f"{row['disk_id']}: {row['format']} {row['variant']}"
          + (f", written by {_clean(row['system'])}" if row["system"] else ""))
    facts = [
        ("guest disk", f"{row['virtual_size']} bytes ({size_text(row['virtual_size'])})"),
        ("container", f"{row['container_size']} bytes in {row['fragments']} fragments"),
        ("first byte", "not found" if row["header_offset"] is None
         else f"image offset {row['header_offset']:#x} of {case.info['images'][row['source']]['path']}"),
        ("state", _state(row)),
        ("host", row["host"]),
        ("names", ", ".join(_clean(n) for n in row["names"])),
        ("uuid", row["uuid"]),
        ("parent", row["parent_id"]),
        ("inside", row["inside_id"]),
        ("it names", row["parent_said"] and f"{_clean(row['parent_said'])} (shown, not followed)"),
        ("guest", row["guest"] and _clean(row["guest"])),
        ("file", row["path"] and os.path.join(case.path, row["path"])),
        ("sha256", row["sha256"]),
    ]
    for name, value in facts:
        if value:
            print(f"  {name:<11} {value}")
    for check in row["checks"]:
        print(f"  {'failed':<11} {_clean(check)}")
    for space, extents in maps.items():
        if not extents:
            continue
        print(f"  {space} map")
        sums = {g: sum(e["length"] for e in extents if e["grade"] == g) for g in GRADES}
        print("    " + ", ".join(f"{size_text(n)} {g}" for g, n in sums.items() if n))
        for e in extents[:40]:
            place = "" if e["image_offset"] is None else f" image {e['image_offset']:#x}"
            print(f"    {e['offset']:#14x} {e['length']:#12x} {e['grade']:<9}{place}  {e['rule']}")
        if len(extents) > 40:
            print(f"    ... {len(extents) - 40} more (extents.arrow has them all)")


def print_bench(found: dict[str, Any]) -> None:
    """What `vmcarve bench` measured: speeds, the bottleneck, what to set."""
    speeds = found["bytes_per_second"]

    def by_count(rates: dict[str, int], noun: str) -> str:
        parts = [f"{n} {noun}{'s' if n != '1' else ''} {size_text(rate)}/s" for n, rate in rates.items()]
        return ", ".join(parts)

    spins = {True: ", says that it spins", False: ", says that it does not spin", None: ""}[found["rotational"]]
    cached = found["in_memory"]
    facts = [
        ("source", f"{found['kind']} of {size_text(found['size'])}{spins}"),
        ("in memory", None if cached is None else f"{cached:.0%} of it before this"),
        ("read", by_count(speeds["buffered"], "reader")),
        ("unbuffered", by_count(speeds["direct"], "reader") or f"not possible here: {speeds['direct_refused']}"),
        ("from memory", f"{size_text(speeds['memory'])}/s"),
        ("sweep", by_count(speeds["sweep_cold"], "thread")),
        ("in memory", by_count(speeds["sweep"], "thread")),
        ("bottleneck", {"device": "the source", "cpu": "the CPU", "memory": "memory"}[found["bottleneck"]]
         + f"; the sweep reaches {found['sweep_reaches']:.0%} of it: all of the image in {found['sweep_seconds']:g} s"),
    ]
    print(_clean(found["image"]))
    for name, value in facts:
        if value:
            print(f"  {name:<11} {value}")
    for n, line in enumerate(found["advice"]):
        print(f"  {'set' if n == 0 else '':<11} {line}")
