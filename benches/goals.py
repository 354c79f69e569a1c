"""The figures that vmcarve is to reach, one line each, and which record of a run answers it.

A line that no record answers is "not measured" in the table: nothing is left out in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Goal:
    """A line: what it says, and the names of the records that answer it (a regular expression, searched)."""

    text: str
    records: str


GOALS = (
    Goal("sweep of noise, one thread, against pread (CPU and wall time)", r"^sweep of noise / pread"),
    Goal("sweep of hosts full of live files and guests, against pread", r"^sweep of a full \S+ host / pread"),
    Goal("dense kinds and all our magics, wall to wall, against pread", r"wall to wall / pread|all our magics"),
    Goal("every byte looked at (--align 1), against pread", r"^every byte.* / pread"),
    Goal("every byte looked at (--align 1), against ripgrep", r"^every byte.* / ripgrep"),
    Goal("two threads against one, where the read is not the limit", r"two threads / one"),
    Goal("whole job against PhotoRec's whole job", r"^recover / PhotoRec, whole job"),
    Goal("per byte recovered right, against PhotoRec", r"^recover / PhotoRec, bytes right"),
    Goal("nothing to find, against Scalpel or Foremost with the same headers", r"^sweep of noise / (scalpel|foremost)"),
    Goal("time to the first disk that opens, behind the sweep", r"^first disk that opens"),
    Goal("recover end to end against one read of the image and cp of the outputs", r"^recover end to end"),
    Goal("peak memory of recover on 8 GB", r"^peak memory of recover, \d+ MiB"),
    Goal("peak memory of recover on 64 GB, sparse", r"^peak memory of recover, \d+ GiB sparse"),
    Goal("time over 1, 2, 4, 8 GB of the same mix", r"^recover over .* linear"),
    Goal("vmcarve --help", r"^vmcarve --help"),
    Goal("import vmcarve", r"^import vmcarve"),
)


def unanswered(names: list[str]) -> list[Goal]:
    """The lines that none of these records answers."""
    return [goal for goal in GOALS if not any(re.search(goal.records, name) for name in names)]
