"""Which unit of a guest each unit of a container is, when the table that told it is lost.

A container gives out its units as the guest first writes them. So a unit of the file is most often followed by the
guest's next one, else by any (a guest at work), by a later one (a copy from front to back, which leaves out what is
empty), or by one near by (a copy that has several writes under way, or packs several units at a time). This is a hidden
Markov model: its states are the guest's units, and none (a table, or lost). What the evidence says of each pair is
summed over all orders at once (forward and backward), so that every unit's place has a probability in which each place
of each break counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._ext.unit_chances import unit_chances
from .unit_joins import Borders
from .unit_streams import ANCHOR, anchored, place_streams

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEVER = -1e9  # log of a chance that is none
FOLLOWS = 0.8  # chance that the next unit of the file is the guest's next; where the estimate begins
LEAST_FOLLOWS, MOST_FOLLOWS = 0.05, 0.995
NONE = 0.02  # chance that a unit of the file is none of the guest's, and that the next one is none too
LEAST_STAY, MOST_STAY = 0.2, 0.99  # see _stay_out
SURE = 0.9  # a place as likely as this is taken from all others
LIKELY = 0.8  # and one as likely is given in the end: the rate comes from runs that were found, and is rather too long
ROUNDS = 6
LEAST_HELD = 4  # units that are held in a place by themselves, for several writes to be told apart
MAX_STREAMS = 1 << 11  # ours: units whose borders are all weighed against each other; some 64 bytes for each pair
NEAR = 0.8  # of a copy with several writes under way: how a step's chance falls with each unit that it is longer
STRAY = 0.1  # and the share of its steps that are of any length: over what is empty, and to what came late


@dataclass(frozen=True, slots=True)
class Order:
    """place int64[n]: the guest's unit for each unit of the file, -1 not known, none twice. likelihood: the logarithm
    of the evidence's, against no evidence; of_weight: of that of the weights, against none of them.

    follows: how often the guest's next unit is the next of the file.
    """

    place: Int64s
    likelihood: float
    of_weight: float
    follows: float


def order_units(weight: Floats, hole: Floats, joined: Floats | None = None, beside: Bools | None = None,
                borders: Callable[[], Borders] | None = None, number: Int64s | None = None) -> Order:
    """Of four kinds of order that under which the evidence is likelier: rising (some units are left out); where the
    units do not rise: any, any with most steps to what is near, or that of several writes at a time (`unit_streams`).

    weight float64[n, m]: what speaks for unit i of the file being unit j of the guest (log of a likelihood ratio).
    hole float64[m]: what speaks for a file written from front to back leaving unit j out. joined float64[n - 1]: what
    speaks for unit i + 1 being the guest's next behind unit i, wherever that is. All of it as weight. beside
    bool[m - 1]: whether unit j + 1 follows unit j in the guest; None: always. borders: what speaks for each unit being
    the guest's next behind any; without it several writes at a time are not asked. number int64[n], rising: of the
    units in the file; None: one after the other.
    """
    n, m = weight.shape
    joined = np.zeros(max(0, n - 1)) if joined is None else joined
    beside = np.ones(max(0, m - 1), np.bool_) if beside is None else beside
    rising, free = _settle(weight, hole, joined, beside), _settle(weight, None, joined, beside)
    if rising.likelihood > free.likelihood:
        return rising
    close = _settle(weight, None, joined, beside, NEAR)
    best = close if close.likelihood > free.likelihood else free
    held = np.count_nonzero((weight >= ANCHOR).any(axis=1))
    if borders is not None and held >= LEAST_HELD and n <= MAX_STREAMS:
        asked = borders()
        # what else it asks the others do not: the weights decide
        least = -np.inf if asked.in_turns else best.of_weight
        chance = place_streams(weight, hole, asked, np.arange(n) if number is None else number, beside, least)
        if chance is not None:
            place = _given(chance.argmax(axis=0), chance.max(axis=0), LIKELY, m)
            return Order(anchored(place, weight, asked, beside), best.likelihood, best.of_weight, best.follows)
    return best


def _settle(weight: Floats, hole: Floats | None, joined: Floats, beside: Bools, near: float = 0.0) -> Order:
    """Places one after the other: those that are sure are taken from the other units, and the rest is weighed again."""
    n, m = weight.shape
    left = weight.copy()
    follows = FOLLOWS
    place = np.full(n, -1, np.int64)

    def chances(weight: Floats, joined: Floats) -> tuple[Floats, float, float]:
        if hole is None:
            return _chances(weight, None, follows, joined, beside, near=near)
        stay = _stay_out(n, m, follows)
        out = np.minimum(hole + np.log(stay), np.log(MOST_STAY))
        return _chances(weight, out, follows, joined, beside, float(np.log1p(-stay) - np.log(stay)))

    for number in range(ROUNDS):
        chance, _, again = chances(left, joined)
        best = chance.argmax(axis=1)
        most = chance[np.arange(n), best]
        old, place = place, _given(best, most, SURE, m)
        if number and np.array_equal(old, place) and abs(again - follows) < 0.01:
            break
        follows = again
        left = weight.copy()
        fixed = np.flatnonzero(place >= 0)
        left[:, place[fixed]] = NEVER
        left[fixed, place[fixed]] = weight[fixed, place[fixed]]
    chance, _, _ = chances(left, joined)
    best = chance.argmax(axis=1)
    told, nothing = chances(weight, joined)[1], np.zeros((n, m))
    return Order(_given(best, chance[np.arange(n), best], LIKELY, m), told - chances(nothing, np.zeros_like(joined))[1],
                 told - chances(nothing, joined)[1], follows)


def _given(best: Int64s, most: Floats, least: float, m: int) -> Int64s:
    """The places that are likelier than `least`; of units with one place the likeliest has it."""
    out = np.full(len(best), -1, np.int64)
    owner = np.full(m, -1, np.int64)
    for i in np.argsort(most, kind="stable").tolist():
        if most[i] > least:
            owner[best[i]] = i
    taken = np.flatnonzero(owner >= 0)
    out[owner[taken]] = taken
    return out


def _stay_out(n: int, m: int, follows: float) -> float:
    """Chance that behind a unit that a copy leaves out it leaves out the next one too: what is empty lies together.

    m - n units are left out, in as many gaps as units do not follow each other.
    """
    gaps = max(1.0, n * (1.0 - follows))
    return float(np.clip(1.0 - gaps / max(1.0, m - n), LEAST_STAY, MOST_STAY))


def _chances(weight: Floats, hole: Floats | None, follows: float, joined: Floats, beside: Bools, leap: float = 0.0,
             near: float = 0.0) -> tuple[Floats, float, float]:
    """Chance float64[n, m] of each place, the log likelihood of all orders, and how often units follow each other."""
    chance, power = np.empty(weight.shape), np.empty(weight.shape, np.int32)
    jump = (1.0 - follows - NONE) * float(np.exp(leap))
    total, followed = unit_chances(weight, np.empty(0) if hole is None else hole, joined, beside.view(np.uint8),
                                   follows, NONE, jump, near, STRAY, chance, power)
    share = (followed + FOLLOWS) / (float(chance[:-1].sum()) + 1.0)
    return chance, total, float(np.clip(share, LEAST_FOLLOWS, MOST_FOLLOWS - NONE))
