"""The rows of docs/results.md: which scenes answer which figure of the goal."""

from __future__ import annotations

import re
from dataclasses import dataclass

CONTIGUOUS, IN_ORDER, OUT_OF_ORDER = "contiguous", "fragmented in order", "out of order"
MISSING_PARTS, NESTED, BRAIDED = "missing parts", "nested", "braided"  # the six levels of NIST's carving set


@dataclass(frozen=True)
class Row:
    """Scenes (a regular expression) and what is asked of them: least recall, least share of exact disks, most wrong.

    wrong: share of bytes graded proven or supported that may be wrong; None asks for nothing.
    """

    title: str
    level: str
    scenes: str
    recall: float | None = None
    exact: float | None = None
    wrong: float | None = None
    found: bool = False  # every disk is to be found
    note: str = ""

    def takes(self, scene: str) -> bool:
        """Whether the scene counts in this row."""
        return re.search(f"^(?:{self.scenes})$", scene) is not None


MILLIONTH = 1e-6
STAND_IN = "stand-in: a first part that takes a fifth to a half of the container"

ASKED = (
    Row("grown together, deleted; ext4, NTFS, XFS", BRAIDED, "braided-(ext4|ntfs|xfs)", 0.9999, 0.99, 0),
    Row("the same on Btrfs", BRAIDED, "braided-btrfs", 0.999, None, 0),
    Row("the same on XFS, deleted before the inode was written", BRAIDED, "braided-xfs-unflushed", 0.99, None, 0),
    Row("a tenth reused by files that live", BRAIDED, "braided-[a-z0-9]+-reused", 0.99, None, 0),
    Row("a tenth reused by files deleted in turn", BRAIDED, "braided-[a-z0-9]+-reused-deleted", 0.95, None, MILLIONTH),
    Row("host metadata wiped: ext4, XFS, NTFS", BRAIDED, "braided-(ext4|ntfs|xfs)-wiped", 0.98, None, MILLIONTH),
    Row("host metadata wiped: Btrfs", BRAIDED, "braided-btrfs-wiped", 0.93, None, MILLIONTH),
    Row("no host, fragments of 8 MiB on average", OUT_OF_ORDER, "shuffled-8m", 0.97, None, MILLIONTH),
    Row("no host, fragments of 1 MiB on average", OUT_OF_ORDER, "shuffled-1m", 0.90, None, MILLIONTH),
    Row("no host, fragments of 64 KiB on average", OUT_OF_ORDER, "shuffled-64k", 0.65, None, MILLIONTH),
    Row("first MiB of every container encrypted", MISSING_PARTS, "harmed-first-1m", 0.95, None, 0),
    Row("first 8 MiB of every container encrypted", MISSING_PARTS, "harmed-first-8m", 0.95, None, 0, note=STAND_IN),
    Row("every 10th MiB encrypted", MISSING_PARTS, "harmed-every-10th", 0.90, None, MILLIONTH),
    Row("30 % encrypted, strided at 64 KiB", MISSING_PARTS, "harmed-strided", 0.90, None, MILLIONTH),
    Row("flat guests, units of 1 MiB: ext4, NTFS, XFS", OUT_OF_ORDER, "flat-(ext4|ntfs|xfs)-1m", 0.90, None, MILLIONTH),
    Row("flat guests, units of 1 MiB: Btrfs", OUT_OF_ORDER, "flat-btrfs-1m", 0.999, None, MILLIONTH),
    Row("flat guests, cut at 4 KiB, 1 MiB on average: ext4, NTFS, XFS", OUT_OF_ORDER, "flat-(ext4|ntfs|xfs)-4k", 0.90,
        None, MILLIONTH),
    Row("flat guests, cut at 4 KiB, 1 MiB on average: Btrfs", OUT_OF_ORDER, "flat-btrfs-4k", 0.999, None, MILLIONTH),
    Row("snapshot chains", BRAIDED, "chains", 0.99, None, 0, True),
    Row("split extents", BRAIDED, "split", 0.99, None, 0, True),
    Row("disks and an OVA in guests", NESTED, "nested", 0.99, None, 0, True),
)

UNBROKEN = (
    Row("nothing broken, host there (all five)", CONTIGUOUS, "unbroken-[a-z0-9]+", 1.0, 1.0, 0, True),
    Row("nothing broken, host metadata wiped", CONTIGUOUS, "unbroken-[a-z0-9]+-wiped", 0.99, None, 0, True),
)

BESIDE = (
    Row("all formats, copied, deleted", IN_ORDER, "(all-formats|makers)-.*(?<!wiped)|.*contiguous.*(?<!wiped)|demo"),
    Row("containers whole, in noise, no host", CONTIGUOUS, "bare-.*"),
    Row("reused and wiped", BRAIDED, "braided-.*reused.*-wiped"),
    Row("tail overwritten; image cut short; footer gone", MISSING_PARTS, "harmed-(tail|cut|footer)"),
    Row("harmed and the host wiped", MISSING_PARTS, "harmed-.*-wiped"),
    Row("chains, split, nested, the host wiped", BRAIDED, "(chains|split|nested)-wiped"),
    Row("machines at work", BRAIDED, "work"),
    Row("machines at work, the host wiped", BRAIDED, "work-wiped"),
    Row("thin raw disks written in random order", BRAIDED, "thin"),
    Row("thin raw disks, the host wiped", BRAIDED, "thin-wiped"),
    Row("three clones of a template", BRAIDED, "clones"),
    Row("three clones, the host wiped", BRAIDED, "clones-wiped"),
    Row("guests that ran", BRAIDED, "ran"),
    Row("guests that ran, the host wiped", BRAIDED, "ran-wiped"),
    Row("encrypted guests", BRAIDED, "sealed"),
    Row("encrypted guests, the host wiped", BRAIDED, "sealed-wiped"),
    Row("encrypted guests, the host wiped but for blocks of extents", BRAIDED, "sealed-half-wiped"),
    Row("decoys: no disk in them", CONTIGUOUS, "decoys.*"),
)

QUICK = "|".join((  # one scene for most rows: what a change is tried on
    "braided-ext4", "braided-btrfs-reused", "braided-ntfs-reused-deleted", "braided-xfs-wiped", "shuffled-1m",
    "harmed-first-1m", "harmed-every-10th", "flat-ext4-1m", "chains", "nested", "unbroken-ext4-wiped", "decoys",
))
