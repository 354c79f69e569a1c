"""What is recovered of the corpus, on seeds that the code was not written on: the tables of docs/results.md.

`python -m benches.recall --seeds 11 12 --write docs/results.md` makes each scene, recovers it, scores the case against
the truth, and adds up; PhotoRec and the simple rule of benches/baseline.py run on the same image. Scenes are made below
TMPDIR and deleted one at a time; a disk of some GiB is enough. `--keep FILE` notes each scene as it is done, and leaves
out what FILE has already, so that a run of hours can be broken off.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import shutil
import sys
import tempfile
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.corpus import SCENES, make, score
from vmcarve import Options, pipeline, recover

from . import loss, rows
from .baseline import photorec, simple_rule
from .rows import Row

GRADES = ("proven", "supported", "guessed", "zero")
BLOCK = 4096
Result = dict[str, Any]


@dataclass
class Sum:
    """What a group of scenes adds up to. Bytes; recall is weighted by the bytes that could be recovered."""

    scenes: int = 0
    disks: int = 0
    found: int = 0
    exact: int = 0
    exact_of: int = 0  # disks whose every byte is still in the image
    false: int = 0
    wanted: int = 0
    recovered: float = 0.0
    image: int = 0
    cpu: float = 0.0
    harmed: int = 0
    unsaid: int = 0
    tallies: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter[str]))
    lying: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # disks with a wrong byte of the grade
    said: Counter[str] = field(default_factory=Counter[str])  # recoverable bytes by grade
    rule: list[float] = field(default_factory=lambda: [0.0, 0.0])  # the simple rule's recovered bytes, exact disks
    carver: list[float] | None = None  # PhotoRec's, of the container's bytes; and those bytes

    def add(self, result: Result) -> None:
        """Count one scene. Live disks do not count: they are listed, and written only when asked for."""
        self.scenes += 1
        self.false += sum(e["false"] for e in result["extra"])
        self.image += result["image_bytes"]
        self.cpu += result["cpu"]
        for disk in counted(result):
            self.disks += 1
            self.found += disk["found"]
            self.exact += is_exact(disk)
            self.exact_of += disk["intact"] or is_exact(disk)
            self.harmed += disk["harmed_bytes"] if disk["found"] else 0
            self.unsaid += disk.get("harmed_unsaid_bytes", 0)
            if disk["recall"] is not None:
                self.wanted += disk["wanted_bytes"]
                self.recovered += recall_of(disk) * disk["wanted_bytes"]
                self.said.update(said_of(disk))
            for grade, counts in disk["wrong_by_grade"].items():
                self.tallies[grade].update(counts)
                self.lying[grade] += counts["wrong"] > 0
        for disk in counted(result["rule"]) if result["rule"] else []:
            self.rule[0] += recall_of(disk) * disk["wanted_bytes"] if disk["recall"] is not None else 0
            self.rule[1] += is_exact(disk)
        for one in result["photorec"] or []:
            sums = self.carver = self.carver or [0.0, 0.0, 0.0]
            for number, more in enumerate((one["recall"] * one["wanted"], one["exact"], one["wanted"])):
                sums[number] += more

    @property
    def recall(self) -> float | None:
        """Share of the recoverable guest bytes."""
        return self.recovered / self.wanted if self.wanted else None

    @property
    def wrong(self) -> tuple[int, int]:
        """(wrong, checked) bytes graded proven or supported."""
        both = self.tallies["proven"] + self.tallies["supported"]
        return both["wrong"], both["claimed"] - both["unchecked"]


def counted(result: Result) -> list[Result]:
    """The disks of a scene that are to be recovered."""
    return [disk for disk in result["disks"] if disk["deleted"] is not False]


def is_exact(disk: Result) -> bool:
    """Archives and neutralised references are exact in their guest, not in their bytes."""
    return bool(disk["exact"] or disk.get("guest_equal"))


def recall_of(disk: Result) -> float:
    """An exact disk is wholly recalled."""
    return 1.0 if is_exact(disk) else disk["recall"]


def said_of(disk: Result) -> dict[str, int]:
    """Recoverable bytes by grade; an archive written whole has no map of its guest, and counts as supported."""
    said = disk.get("wanted_by_grade") or {"missing": disk["wanted_bytes"]}
    whole = disk.get("exact_by") == "bytes" and said.get("missing") == disk["wanted_bytes"]
    return {"supported": disk["wanted_bytes"]} if whole else said


def bound(wrong: int, of: int) -> float:
    """Upper end of the 95 % interval of a rate, `wrong` events of `of`, for rare independent ones (Poisson)."""
    if not of:
        return math.nan
    if wrong > 1000:
        return (wrong + 1.96 * math.sqrt(wrong)) / of
    low, high = float(wrong), 4.0 * wrong + 20
    for _ in range(60):
        mean = (low + high) / 2
        below = sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(wrong + 1))
        low, high = (mean, high) if below > 0.05 else (low, mean)
    return high / of


# --- running ----------------------------------------------------------------------------------------------------------
def run(name: str, seed: int, folder: Path, *, beside: bool = True) -> Result:
    """One scene: made, recovered, scored, and the same by others where `beside`."""
    scene = folder / "scene"
    shutil.rmtree(scene, ignore_errors=True)
    try:
        image = make(name, scene, seed)
        with assembling() as spent:
            recover([image], scene / "case", options=Options())
        result = score(scene / "case", scene)
        status = image.stat()
        result.update(cpu=spent[0], image_bytes=min(status.st_size, status.st_blocks * 512), rule=None, photorec=None)
        shutil.rmtree(scene / "case")
        if beside:
            simple_rule(image, scene / "rule")
            result["rule"] = score(scene / "rule", scene)
            shutil.rmtree(scene / "rule")
            carved = photorec(scene, scene / "photorec")
            result["photorec"] = None if carved is None else [asdict(one) for one in carved]
        return result
    finally:
        shutil.rmtree(scene, ignore_errors=True)


@contextlib.contextmanager
def assembling() -> Iterator[list[float]]:
    """A list of one number: the seconds of CPU that the stage `assemble` takes inside."""
    spent, stage = [0.0], pipeline._assemble

    def timed(*args: Any) -> Any:
        began = time.process_time()
        try:
            return stage(*args)
        finally:
            spent[0] += time.process_time() - began

    pipeline._assemble = timed
    try:
        yield spent
    finally:
        pipeline._assemble = stage


# --- printing ---------------------------------------------------------------------------------------------------------
def report(results: list[Result], seeds: Sequence[int], command: str, pictures: Path | None = None) -> str:
    """The text of docs/results.md. pictures: a folder beside it, for those of what falls short."""
    everything = summed(results)
    falling = fell_short(results)
    parts = [
        ["# What is recovered of the corpus", "", *wrap(f"""
            Printed by `{command}`: scenes of `tests/corpus` on seeds {', '.join(map(str, seeds))}, none of which the
            code was written on. Images of 100 to 350 MiB, Linux writers only, looked at right after the last write.
            Recall is the share of the non-zero guest bytes that are still in the image. 'exact' counts disks whose
            file, or whose guest where references were emptied or an archive was taken apart, equals the original; of
            those whose every byte is still there. Live disks do not count. Levels are those of NIST's carving set.
            Beside ours: the simple rule of `benches/baseline.py`, and PhotoRec 7.1 (vdi, vmdk, cow; its share is of
            the container's blocks).""")],
        *([title, "", *table(results, asked), *more] for title, asked, more in (
            ("## Goals", rows.ASKED, []), ("## Nothing broken", rows.UNBROKEN, ["", *by_shape(results)]),
            ("## Beside", rows.BESIDE, [])) if any(row.takes(r["scene"]) for row in asked for r in results)),
        ["## What a grade is worth", "",
         *wrap("""
            The rate is of blocks of 4 KiB, taken as independent, which they are not; 'disks' says how many disks the
            wrong ones lie in, and the 95 % upper bound of that. This is what a report may say of the grade."""), "",
         *grades(everything)],
        ["## What stays open", "",
         "Recoverable bytes by what the case says of them: this bounds the recall that can be vouched for.", "",
         *openness(results)],
        ["## Where the loss is", "",
         *wrap("""
            Rows that fall short. Kinds are of blocks of 4 KiB of the guest as it was: even (compressed, encrypted or
            noise: nothing in such bytes tells them apart), text, other. Shares are of what could be recovered; 'not
            found' are disks of which nothing is listed. In the pictures a disk goes from left to right; disks that lost
            nothing are left out, and so is, within a disk, what is zero or no more in the image."""), "",
         *loss.by_kind(falling), "", *loss.by_disk(falling), "",
         *(loss.write_pictures(falling, pictures) if pictures else ())],
        ["## Cost", "", "CPU of assembling, second reads included, by GB of image data.", "", *costs(results)],
        ["## How the files lie", "", *fragmentation(results)],
        ["## What fell short", "", *short(results)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def fell_short(results: list[Result]) -> list[tuple[Row, list[tuple[Result, Result]]]]:
    """Rows of the goals whose recall falls short, each with its disks (scene, disk)."""
    out: list[tuple[Row, list[tuple[Result, Result]]]] = []
    for row in (*rows.ASKED, *rows.UNBROKEN):
        some = [result for result in results if row.takes(result["scene"])]
        if some and verdict(row, summed(some)) == "short":
            out.append((row, [(result, disk) for result in some for disk in counted(result)]))
    return out


def wrap(text: str) -> list[str]:
    """The lines of a paragraph."""
    return textwrap.wrap(" ".join(text.split()), 118, break_on_hyphens=False)


def summed(results: list[Result]) -> Sum:
    """All of them added up."""
    total = Sum()
    for result in results:
        total.add(result)
    return total


def table(results: list[Result], asked: Sequence[Row]) -> list[str]:
    """One line for each row that has scenes."""
    lines = [
        "| corpus | level | images | found | exact | recall | goal | wrong, proven or supported | goal | | rule |"
        " PhotoRec |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in asked:
        total = summed([result for result in results if row.takes(result["scene"])])
        if total.scenes:
            lines.append(line(row, total))
    return lines


def line(row: Row, total: Sum) -> str:
    """A line of the tables."""
    wrong, checked = total.wrong
    rate = f"{wrong} ({wrong / checked:.1e})" if wrong else "0"
    harmed = sum(total.tallies[grade]["wrong_harmed"] for grade in ("proven", "supported"))
    rate += f", {harmed} of them overwritten in place" if harmed else ""
    goals = [f"≥ {percent(row.recall)}"] if row.recall is not None else []
    goals += [f"{percent(row.exact)} exact"] if row.exact is not None else []
    goals += ["all found"] if row.found else []
    limit = "" if row.wrong is None else "0" if row.wrong == 0 else f"≤ {row.wrong:.0e}"
    rule = f"{percent(total.rule[0] / total.wanted) if total.wanted else '-'}, {total.rule[1]:.0f} exact"
    carved = "-" if total.carver is None else f"{percent(total.carver[0] / (total.carver[2] or 1))}, "
    carved += "" if total.carver is None else f"{total.carver[1]:.0f} exact"
    cells = (
        row.title + (f" ({row.note})" if row.note else ""), row.level, total.scenes, f"{total.found} of {total.disks}",
        f"{total.exact} of {total.exact_of}", percent(total.recall), "; ".join(goals), rate, limit,
        verdict(row, total), rule, carved,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def verdict(row: Row, total: Sum) -> str:
    """Ok or short; nothing where nothing is asked."""
    if row.recall is None and row.wrong is None:
        return ""
    wrong, checked = total.wrong
    ok = row.recall is None or (total.recall or 0) >= row.recall
    ok &= row.exact is None or total.exact >= row.exact * total.exact_of
    ok &= row.wrong is None or wrong <= row.wrong * checked
    ok &= not row.found or total.found == total.disks
    return "ok" if ok else "short"


def percent(share: float | None) -> str:
    """A share in words: never rounded up to all."""
    return "-" if share is None else f"{math.floor(1e6 * share + 1e-6) / 1e4:.4g} %"


def by_shape(results: list[Result]) -> list[str]:
    """How the disks of unbroken scenes lay, and what came back of each shape."""
    lines = ["| lay | host | disks | found | exact | recall |", "| --- | --- | --- | --- | --- | --- |"]
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        for row, name in zip(rows.UNBROKEN, ("there", "wiped"), strict=True):
            if row.takes(result["scene"]):
                for disk in counted(result):
                    groups[disk["lay"]["shape"], name].append(disk)
    for (shape, name), disks in sorted(groups.items()):
        wanted = sum(disk["wanted_bytes"] for disk in disks if disk["recall"] is not None)
        right = sum(recall_of(disk) * disk["wanted_bytes"] for disk in disks if disk["recall"] is not None)
        found, exact = sum(disk["found"] for disk in disks), sum(map(is_exact, disks))
        lines.append(f"| {shape} | {name} | {len(disks)} | {found} | {exact} | {percent(right / (wanted or 1))} |")
    return lines if groups else []


def grades(total: Sum) -> list[str]:
    """Error rate of each grade."""
    lines = ["| grade | bytes claimed and checked | wrong | rate | at most (95 %) | disks with wrong bytes | at most |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for grade in GRADES:
        tally = total.tallies[grade]
        checked, wrong = tally["claimed"] - tally["unchecked"], tally["wrong"]
        lying = total.lying[grade]
        rate = wrong / checked if checked else math.nan
        most = bound(tally["wrong_blocks"], checked // BLOCK)
        lines.append(f"| {grade} | {checked} | {wrong} | {rate:.1e} | {most:.1e} | {lying} of {total.found} | "
                     f"{bound(lying, total.found):.1e} |")
    return lines


def openness(results: list[Result]) -> list[str]:
    """Recoverable bytes by grade, for each row of the goals."""
    lines = ["| corpus | proven | supported | guessed | missing | disk not found | harmed bytes given out as content |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in (*rows.ASKED, *rows.UNBROKEN):
        some = [result for result in results if row.takes(result["scene"])]
        total = summed(some)
        if not total.wanted:
            continue
        lost = sum(d["wanted_bytes"] for r in some for d in counted(r) if not d["found"] and d["recall"] is not None)
        shares = [percent((total.said[grade] - (lost if grade == "missing" else 0)) / total.wanted)
                  for grade in ("proven", "supported", "guessed", "missing")]
        unsaid = f"{total.unsaid} of {total.harmed}" if total.harmed else ""
        lines.append(f"| {row.title} | {' | '.join(shares)} | {percent(lost / total.wanted)} | {unsaid} |")
    return lines


def costs(results: list[Result]) -> list[str]:
    """CPU seconds of assembling per GB."""
    lines = ["| corpus | seconds of CPU per GB | goal |", "| --- | --- | --- |"]
    goals = {"shuffled-1m": 1.0, "shuffled-64k": 5.0}
    for row in rows.ASKED:
        total = summed([result for result in results if row.takes(result["scene"])])
        if total.image:
            goal = goals.get(row.scenes)
            spent = total.cpu / (total.image / 1e9)
            said = "" if goal is None else f"≤ {goal:g}: {'ok' if spent <= goal else 'short'}"
            lines.append(f"| {row.title} | {spent:.2f} | {said} |")
    return lines


def fragmentation(results: list[Result]) -> list[str]:
    """Pieces by file and the share that goes backwards, as they were; and what that follows."""
    lines = [
        *wrap("""
            Bare images are cut in lognormal fragments (sigma 1, mean as named) or in units of 1 MiB, and shuffled. On
            hosts nothing is drawn but the sizes of appends (lognormal, sigma 1, mean 64 KiB, 256 KiB or 1 MiB by
            image) and the free space that older files left; the rest is the allocator's. 'Backward' is the share of a
            file's breaks that lead to a lower place. Van der Meer, Jonker and van den Bos (A Contemporary
            Investigation of NTFS File Fragmentation, DFRWS APAC 2021, 220 laptops) find that the fragments of a
            significant part of fragmented files lie out of order; theirs are files of all kinds on desktops, and no
            such measurement of hypervisor hosts is known to us."""), "",
        "| scenes | files in pieces | pieces: median, 90 %, most | backward |", "| --- | --- | --- | --- |",
    ]
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        group = re.sub(r"-(wiped|reused|deleted|unflushed)\b", "", result["scene"])
        groups[group] += [disk["lay"] for disk in result["disks"] if disk["lay"] and disk["lay"]["jumps"]]
    for group, lays in sorted(groups.items()):
        if lays:
            pieces = sorted(lay["pieces"] for lay in lays)
            jumps = sum(lay["jumps"] for lay in lays)
            back = percent(sum(lay["backward"] for lay in lays) / jumps)
            spread = f"{pieces[len(pieces) // 2]}, {pieces[len(pieces) * 9 // 10]}, {pieces[-1]}"
            lines.append(f"| {group} | {len(lays)} | {spread} | {back} |")
    return lines


def short(results: list[Result]) -> list[str]:
    """Disks that could have been exact and are not, or whose recoverable bytes did not all come back."""
    lines = []
    for result in results:
        for disk in counted(result):
            if is_exact(disk) or (not disk["intact"] and disk["recall"] == 1):
                continue
            recall = "NOT FOUND" if not disk["found"] else percent(disk["recall"])
            wrong = {grade: counts["wrong"] for grade, counts in disk["wrong_by_grade"].items() if counts["wrong"]}
            said = ", ".join(f"{count} wrong bytes {grade}" for grade, count in sorted(wrong.items()))
            lines.append(f"- {disk['name']} in {result['scene']}, seed {result['seed']}: {recall}"
                         + (f"; {said}" if said else ""))
    return [f"{len(lines)} disks:", "", *sorted(lines)] if lines else ["Nothing."]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--scenes", help="regular expression; default: the rows of the goals and of what is unbroken")
    parser.add_argument("--quick", action="store_true", help="one scene for most rows")
    parser.add_argument("--all", action="store_true", help="also the scenes beside the goals")
    parser.add_argument("--ours", action="store_true", help="do not run PhotoRec and the simple rule")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="results by line; what is there is not run again")
    parser.add_argument("--write", type=Path, help="file for the tables; default: standard output")
    options = parser.parse_args()
    results = [json.loads(text) for text in options.keep.read_text().splitlines()] if _there(options.keep) else []
    done = {(result["scene"], result["seed"]) for result in results}
    chosen = chooser(options)
    with tempfile.TemporaryDirectory(prefix="recall") as folder:
        for seed in options.seeds:
            for name in filter(chosen, SCENES):
                if (name, seed) in done:
                    continue
                try:
                    result = run(name, seed, Path(folder), beside=not options.ours)
                except Exception as e:  # a scene that this machine cannot make is told, and left out
                    print(f"{name}, seed {seed}: {type(e).__name__}: {e}", file=sys.stderr)
                    continue
                results.append(result)
                print(f"{name}, seed {seed}: {json.dumps(result['total'])}", file=sys.stderr)
                if options.keep:
                    with options.keep.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(result) + "\n")
    wanted = [result for result in results if result["seed"] in options.seeds and chosen(result["scene"])]
    pictures = options.write.parent / "plots" if options.write else None
    text = report(wanted, options.seeds, command_of(options), pictures)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0


def _there(path: Path | None) -> bool:
    return path is not None and path.exists()


def chooser(options: argparse.Namespace) -> Any:
    """Whether a scene is wanted, by its name."""
    if options.scenes:
        return lambda name: re.search(options.scenes, name) is not None
    if options.quick:
        return lambda name: re.fullmatch(rows.QUICK, name) is not None
    wanted = (*rows.ASKED, *rows.UNBROKEN, *(rows.BESIDE if options.all else ()))
    return lambda name: any(row.takes(name) for row in wanted)


def command_of(options: argparse.Namespace) -> str:
    """The command that prints the same."""
    words = [f"python -m benches.recall --seeds {' '.join(map(str, options.seeds))}"]
    words += [f"--scenes '{options.scenes}'"] if options.scenes else []
    words += [f"--{name}" for name in ("quick", "all", "ours") if getattr(options, name)]
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
