"""What is recovered of the corpus, on seeds that the code was not written on: the tables of docs/results.md.

`python -m benches.recall --seeds 11 12 --scenes REGEX --write docs/results.md` makes each scene, recovers it, scores
the case against the truth, and adds up. Scenes are made and deleted one at a time; a disk of some GiB is enough.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.corpus import SCENES, make, score
from vmcarve import Options, recover

GRADES = ("proven", "supported", "guessed", "zero")
GROUPS = (  # title, scenes
    ("host metadata there, deleted: ext4, ext3, XFS, NTFS, Btrfs; all formats",
     r"^(all-formats|makers)-(ext4|xfs|ntfs|btrfs).*(?<!wiped)$|^(ext|xfs|ntfs|btrfs).*contiguous.*$|^demo$"),
    ("containers grown together (4 to 86 pieces), deleted", r"^fragmented-(?!.*wiped).*"),
    ("FAT32 and exFAT hosts, deleted", r"^(fat32|exfat)-contiguous$"),
    ("some of the freed space reused", r"reused"),
    ("no host: containers in noise", r"^bare-(?!shuffled).*"),
    ("no host: shuffled fragments in noise", r"^bare-shuffled.*"),
    ("host metadata wiped: ext4, ext3", r"^(ext\S*|all-formats-ext4\S*|makers-ext4\S*)-wiped$"),
    ("host metadata wiped: XFS", r"^(xfs\S*|all-formats-xfs\S*)-wiped$"),
    ("host metadata wiped: NTFS", r"^(ntfs\S*|all-formats-ntfs\S*)-wiped$"),
    ("host metadata wiped: Btrfs", r"^(btrfs\S*|all-formats-btrfs\S*)-wiped$"),
    ("host metadata wiped: containers grown together", r"^fragmented-.*wiped"),
    ("decoys: no disk in them", r"^decoys"),
)


@dataclass
class Sum:
    """What a group of scenes adds up to. Bytes; recall is weighted by the bytes that could be recovered."""

    scenes: int = 0
    disks: int = 0
    found: int = 0
    exact: int = 0
    false: int = 0
    wanted: int = 0
    recovered: float = 0.0
    claimed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    wrong: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, result: dict[str, Any]) -> None:
        self.scenes += 1
        self.false += sum(e["false"] for e in result["extra"])
        for disk in result["disks"]:
            if disk["deleted"] is False:  # live disks are listed, and written only when asked for
                continue
            self.disks += 1
            self.found += disk["found"]
            # archives and neutralised references are exact in their guest, not in their bytes
            exact = bool(disk["exact"] or disk.get("guest_equal"))
            self.exact += exact
            if disk["recall"] is not None:
                self.wanted += disk["wanted_bytes"]
                self.recovered += (1.0 if exact else disk["recall"]) * disk["wanted_bytes"]
            for grade, counts in disk["wrong_by_grade"].items():
                self.claimed[grade] += counts["claimed"] - counts["unchecked"]
                self.wrong[grade] += counts["wrong"]

    def row(self, title: str) -> str:
        recall = f"{100 * self.recovered / self.wanted:.2f} %" if self.wanted else "-"
        wrong = self.wrong["proven"] + self.wrong["supported"]
        return (f"| {title} | {self.scenes} | {self.found} of {self.disks} | {self.exact} | {recall} | {wrong} | "
                f"{self.false} |")


def bound(wrong: int, claimed: int) -> str:
    """Upper end of the 95 % interval of the error rate, as if bytes were independent in blocks of 4 KiB."""
    blocks, bad = claimed / 4096, wrong / 4096
    if blocks < 1:
        return "-"
    if bad == 0:
        return f"{3 / blocks:.1e}"
    return f"{(bad + 1.96 * math.sqrt(bad) + 2) / blocks:.1e}"


def run(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """One scene: made, recovered, scored."""
    scene = folder / "scene"
    shutil.rmtree(scene, ignore_errors=True)
    try:
        make(name, scene, seed)
        recover([scene / "image.raw"], scene / "case", options=Options())
        return score(scene / "case", scene)
    finally:
        shutil.rmtree(scene, ignore_errors=True)


def report(results: list[dict[str, Any]], seeds: list[int], command: str) -> str:
    """The text of docs/results.md."""
    sums = {title: Sum() for title, _ in GROUPS}
    everything = Sum()
    for result in results:
        everything.add(result)
        for title, pattern in GROUPS:
            if re.search(pattern, result["scene"]):
                sums[title].add(result)
                break
    lines = [
        "# What is recovered of the corpus", "",
        f"Printed by `{command}`: scenes of `tests/corpus` on seeds {', '.join(map(str, seeds))}, none of which the",
        "code was written on.", "",
        "Small hosts (256 to 600 MiB) with guests of 20 to 40 MiB, Linux writers only, deleted and looked at at once:",
        "the best case for what deletion leaves. 'exact' counts disks whose file, or whose guest where references were",
        "emptied or an archive was taken apart, equals the original. Recall is the share of non-zero guest bytes that",
        "could be recovered. Live disks do not count.", "",
        "| scenes | images | disks found | exact | recall | wrong bytes graded proven or supported | false disks |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [s.row(title) for title, s in sums.items() if s.scenes]
    lines += ["", "Error rate of each grade over all scenes, and the upper end of its 95 % interval (blocks of 4 KiB",
              "taken as independent, which they are not):", "",
              "| grade | bytes claimed and checked | wrong | rate at most |", "| --- | --- | --- | --- |"]
    for g in GRADES:
        claimed, wrong = everything.claimed[g], everything.wrong[g]
        lines.append(f"| {g} | {claimed} | {wrong} | {bound(wrong, claimed)} |")
    short = sorted((d["name"], r["scene"], r["seed"], d.get("recall")) for r in results for d in r["disks"]
                   if d["deleted"] is not False and not (d["exact"] or d.get("guest_equal")))
    lines += ["", f"{len(short)} disks fell short:", ""]
    lines += [f"- {name} in {scene}, seed {seed}: recall {recall if recall is not None else 'not known'}"
              for name, scene, seed, recall in short]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--scenes", default=".", help="regular expression")
    parser.add_argument("--write", type=Path, help="file for the tables; default: standard output")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="recall") as folder:
        for seed in options.seeds:
            for name in SCENES:
                if not re.search(options.scenes, name):
                    continue
                try:
                    results.append(run(name, seed, Path(folder)))
                except Exception as e:  # a scene that this machine cannot make is told, and left out
                    print(f"{name}, seed {seed}: {type(e).__name__}: {e}", file=sys.stderr)
                    continue
                print(f"{name}, seed {seed}: {json.dumps(results[-1]['total'])}", file=sys.stderr)
    command = f"python -m benches.recall --seeds {' '.join(map(str, options.seeds))}"
    if options.scenes != ".":
        command += f" --scenes '{options.scenes}'"
    text = report(results, options.seeds, command)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
