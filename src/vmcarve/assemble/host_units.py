"""The unit of a host that gives out space in large aligned pieces: VMFS 1 MiB, LVM thin 64 KiB and more.

Where every run that is sure lies at a distance of a multiple of the unit from its place in the file (or of one and the
same rest), and no unit of a file is seen in two places, breaks fall on multiples of the unit: a unit with one point is
placed as a whole, and what would lie at another distance is chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .segments import BLOCK, Points, Segment

SURE = 36.0  # bits of a segment that is asked
LEAST, MOST = 4, 14  # powers of two: units of 64 KiB to 64 MiB
PROOF = 40.0  # bits by which chance must be excluded
OUTLIERS = 0.2  # share of the distances that may be wrong: each is seen once, however well
TORN = 0.04  # share of the units that may be seen in two places


@dataclass(frozen=True, slots=True)
class Unit:
    """blocks: of a unit, 1 where none shows. rest: image block - file block, modulo that. by_order: units are placed by
    what lies before and behind them, not only by what speaks for their own place.
    """

    blocks: int = 1
    rest: int = 0
    by_order: bool = False

    def fits(self, points: Points, begins: dict[int, int]) -> Points:
        """The points at distances that the unit allows."""
        if self.blocks == 1 or not len(points):
            return points
        begin = np.array([begins.get(o, 0) // BLOCK for o in range(int(points.owner.max()) + 1)], np.int64)
        keep = (begin[points.owner] + points.delta) % self.blocks == self.rest
        return Points(points.owner[keep], points.file_block[keep], points.delta[keep], points.bits[keep])


def unit_of(segments: Iterable[Segment], begins: dict[int, int]) -> Unit:
    """The largest unit that the sure ones of the segments keep to.

    begins: image offset of each container's first byte.
    """
    sure = [s for s in segments if s.weight >= SURE]
    apart = np.array(sorted({(s.owner, begins[s.owner] // BLOCK + s.delta) for s in sure}), np.int64).reshape(-1, 2)
    shift = np.unique(apart[:, 1])
    for power in range(MOST, LEAST - 1, -1):
        unit = 1 << power
        rest, count = np.unique(shift % unit, return_counts=True)
        most = int(count.max(initial=0))
        if most < (1 - OUTLIERS) * len(shift) or (most - 1) * power - _choices(len(shift), most) < PROOF:
            continue
        at = int(rest[np.argmax(count)])
        if _whole([s for s in sure if (begins[s.owner] // BLOCK + s.delta) % unit == at], unit):
            return Unit(unit, at)
    return Unit()


def _whole(segments: list[Segment], unit: int) -> bool:
    """Whether hardly any unit of a file has points of two distances."""
    rows = [np.stack((np.full(len(u), s.owner), u, np.full(len(u), s.delta)), axis=1)
            for s in segments for u in [np.unique(s.points // unit)]]
    seen = np.unique(np.concatenate(rows), axis=0) if rows else np.empty((0, 3), np.int64)
    each, places = np.unique(seen[:, :2], axis=0, return_counts=True)
    return bool((places > 1).sum() <= TORN * len(each))


def _choices(n: int, k: int) -> float:
    """Bits: in how many ways k of n can be chosen."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2) if n else 0.0
