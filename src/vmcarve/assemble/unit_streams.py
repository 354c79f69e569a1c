"""Which unit of a guest each unit of a container is where several writes were under way at a time.

Each of them goes through the guest from unit to unit, and the file has what they wrote in turns: A1 B1 C1 A2 B2 D1 A3.
From unit to unit of the file such an order leads anywhere; from unit to unit of the guest it leads some few units on in
the file, by as many as writes were under way, until one ends. So this is `unit_order`'s model turned round: a chain
along the guest's places, whose states are the units of the file, and none (what is left out). How far a step leads in
the file is learned from the places that are sure so far. On its own such a chain would give a unit to several places;
that a unit has one is told by messages between the places (belief propagation for an assignment: Bayati, Shah and
Sharma, "Max-product for maximum weight matching", 2008), in turns with the sums over the chain.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from .unit_joins import Borders

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.floating[Any]]  # of 32 bits
Bools = npt.NDArray[np.bool_]

ROUNDS, JUDGED = 8, 3  # and after how many the model is judged
NEAR = 16  # units of the file: steps to here have a chance each, longer ones share that of their size
LONGER = 1.5  # and the sizes rise by this
# chances of steps before any was seen: to the next unit, to one near by, farther on, back to near by, farther back
GOES_ON, BEHIND_A_GAP = (0.25, 0.45, 0.1, 0.05, 0.15), (0.1, 0.3, 0.2, 0.1, 0.3)
STRAY = 0.05  # share of the steps that lead anywhere
SEEN = 20.0  # steps that count as much as what is thought before
AROUND, SEEN_NEAR = 24, 20.0  # units of the file around one whose steps tell of its own; how many count as much as all
SURE = 0.7  # chance of a place from which steps are learned
SHARED = 8  # places between two that are sure: a step is what each has on average
NO_PLACE = 0.02  # chance that a unit of the file has none in the guest
STAYS_OUT = 0.9  # chance that what follows a place without unit has none; where the estimate begins
LEAST, MOST = 0.005, 0.995  # of that chance and its like
DAMPED = 0.5
MOST_TOLD = 12.0  # nats of a message
ANCHOR, TIED = 5.0, 4.0  # nats that hold a unit in its place, and that hold it to the one before it
SMALL = 1e-7  # share of a row below which a state is followed no further


class _Steps:
    """How likely a step in the file is, by its length, at each place of it: learned in bins, and of what is near by
    first. number int64[n], rising: of the units in the file."""

    def __init__(self, number: Int64s, before: tuple[float, ...]) -> None:
        self._number = number
        self._span = int(number[-1] - number[0])
        size = [*range(1, NEAR + 1)]
        while size[-1] <= self._span:
            size.append(int(size[-1] * LONGER) + 1)
        half = len(size)
        far = half - NEAR
        lag = np.arange(-self._span, self._span + 1)
        self._bin = np.searchsorted(size, np.abs(lag), "right") - 1 + np.where(lag < 0, half, 0)
        self._bin[self._span] = 2 * half  # none
        self._bins = 2 * half + 1
        self._width = np.maximum(np.bincount(self._bin, minlength=self._bins), 1)
        share = np.array(before) / [1, NEAR - 1, max(1, far), NEAR, max(1, far)]
        prior = np.append(np.repeat(share, [1, NEAR - 1, far, NEAR, far]), 0.0)
        prior[np.bincount(self._bin, minlength=self._bins) == 0] = 0.0
        self._prior = prior / prior.sum()
        self._share = np.tile(self._prior, (len(number), 1))

    def learn(self, begin: Int64s, step: Int64s) -> None:
        """Takes steps from some units on."""
        which = self._bin[step + self._span]
        whole = (np.bincount(which, minlength=self._bins) + SEEN * self._prior) / (len(which) + SEEN)
        count = np.zeros((len(self._number) + 1, self._bins))
        np.add.at(count, (begin + 1, which), 1.0)
        count = count.cumsum(axis=0)
        near = count[np.searchsorted(self._number, self._number + AROUND, "right")]
        near -= count[np.searchsorted(self._number, self._number - AROUND)]
        self._share = (near + SEEN_NEAR * whole) / (near.sum(axis=1, keepdims=True) + SEEN_NEAR)

    def chances(self) -> Singles:
        """float32[n, n]: of the step from unit i to unit j."""
        n = len(self._number)
        by_bin = ((1 - STRAY) * self._share / self._width + STRAY / n).astype(np.float32)
        return np.take_along_axis(by_bin, self._bin[self._number[None, :] - self._number[:, None] + self._span], axis=1)


def place_streams(weight: Floats, hole: Floats, borders: Borders, number: Int64s, beside: Bools,
                  least: float = -np.inf) -> Floats | None:
    """The chance float64[m, n] of each unit of the file for each place of the guest by the model above; None where it
    makes the weights less likely than `least` (the logarithm of how likely, against no weights).

    weight float64[n, m], hole float64[m], beside bool[m - 1]: see `unit_order.order_units`. number int64[n], rising:
    of the units in the file. Costs ROUNDS times m products of a row with a matrix n by n, less what is as good as told.
    """
    n, m = weight.shape
    chain = _Chain(weight.T, hole, borders, beside)
    on, over = _Steps(number, GOES_ON), _Steps(number, BEHIND_A_GAP)
    out = float(np.clip(1.0 - n / m, LEAST, MOST))
    chain.stays_out, chain.leaves_out = STAYS_OUT, min(0.5, (1.0 - STAYS_OUT) * out / (1.0 - out))
    told, chance = np.zeros((m, n)), np.zeros((m, n))
    for k in range(ROUNDS):
        chain.step(on.chances(), over.chances())
        if k == JUDGED and np.isfinite(least) and chain.of_weights() < least:
            return None
        chance, none = chain.sums(told)[:2]
        _learn(on, over, chance, none, number, beside)
        told += DAMPED * (_one_place_each(chance, told) - told)
    return chance


class _Chain:
    """The chain along the places: sums over all ways to give each place a unit, or none.

    weight float64[m, n]. stays_out, leaves_out: chances that a place has no unit, behind one without and one with.
    """

    def __init__(self, weight: Floats, hole: Floats, borders: Borders, beside: Bools) -> None:
        self._weight, self._hole, self._beside = weight, hole, beside
        self._link = np.exp(borders.link)
        self._out, self._into = np.exp(borders.out).astype(np.float32), np.exp(borders.into).astype(np.float32)
        self.stays_out = self.leaves_out = 0.5
        self._on = self._over = (np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))

    def step(self, on: Singles, over: Singles) -> None:
        """Sets the chances float32[n, n] of steps to the next place, and to one behind others that have no unit."""
        on, over = on * self._link, over * self._into
        self._on, self._over = (on, np.ascontiguousarray(on.T)), (over, np.ascontiguousarray(over.T))

    def sums(self, told: Floats) -> tuple[Floats, Floats, float]:
        """The chance float64[m, n] of each unit for each place, float64[m] of none, and the logarithm of the sum.

        told float64[m, n], nats: what is added to the weight.
        """
        m, n = self._weight.shape
        seen, unseen = np.empty((m, n), np.float32), np.empty((m, n), np.float32)  # unseen: by the last unit before
        total = 0.0
        for p in range(m):
            here, none, top = self._row(p, told)
            if p == 0:
                a, b = np.full(n, (1 - self.leaves_out) / n, np.float32), np.full(n, self.leaves_out / n, np.float32)
            else:
                a, b = self._ahead(seen[p - 1], unseen[p - 1], bool(self._beside[p - 1]))
            a, b = a * here, b * none
            whole = float(a.sum() + b.sum())
            seen[p], unseen[p] = a / whole, b / whole
            total += float(np.log(whole)) + top
        chance, left = np.empty((m, n)), np.empty(m)
        a, b = np.ones(n, np.float32), np.ones(n, np.float32)
        for p in range(m - 1, -1, -1):
            chance[p] = seen[p] * a
            gone = float(unseen[p] @ b)
            whole = float(chance[p].sum()) + gone
            chance[p] /= whole
            left[p] = gone / whole
            if p:
                here, none, _ = self._row(p, told)
                a, b = self._back(a * here, b * none, bool(self._beside[p - 1]))
                whole = max(float(a.max()), float(b.max()))
                a, b = a / whole, b / whole
        return chance, left, total

    def of_weights(self) -> float:
        """The logarithm of how likely the weights make the sum, against none."""
        told, nothing = np.zeros_like(self._weight), copy(self)
        nothing._weight = told
        return self.sums(told)[2] - nothing.sums(told)[2]

    def _row(self, p: int, told: Floats) -> tuple[Singles, float, float]:
        """Of place p: what speaks for each unit, and for none, over the best of it; the logarithm of that."""
        weight = self._weight[p] + told[p]
        top = max(float(weight.max()), float(self._hole[p]))
        return np.exp(weight - top).astype(np.float32), float(np.exp(self._hole[p] - top)), top

    def _ahead(self, seen: Singles, unseen: Singles, beside: bool) -> tuple[Singles, Singles]:
        enters = (1 - self.stays_out) * unseen
        if beside:
            a = (1 - self.leaves_out) * _product(seen, self._on[0]) + _product(enters, self._over[0])
        else:
            a = _product((1 - self.leaves_out) * seen + enters, self._over[0])
        return a, self.leaves_out * seen * self._out + self.stays_out * unseen

    def _back(self, seen: Singles, unseen: Singles, beside: bool) -> tuple[Singles, Singles]:
        over = _product(seen, self._over[1])
        on = _product(seen, self._on[1]) if beside else over
        return ((1 - self.leaves_out) * on + self.leaves_out * self._out * unseen,
                (1 - self.stays_out) * over + self.stays_out * unseen)


def _product(row: Singles, matrix: Singles) -> Singles:
    """row @ matrix, without what is next to nothing of the row."""
    some = np.flatnonzero(row > SMALL * row.max())
    if not len(some):
        return np.zeros(matrix.shape[1], np.float32)
    return row[some] @ matrix[some] if 4 * len(some) < len(row) else row @ matrix


def anchored(place: Int64s, weight: Floats, borders: Borders, beside: Bools) -> Int64s:
    """The places without those that hang on nothing: -1.

    Writes that go on side by side look alike, so a stretch of one of them that nothing holds may be another's. What is
    kept is held in its place itself, or tied to such a unit without a gap, or lies between two that are kept.
    """
    m = len(beside) + 1
    unit = np.full(m, -1)
    unit[place[place >= 0]] = np.flatnonzero(place >= 0)
    there = np.flatnonzero(unit >= 0)
    held = np.zeros(m, np.bool_)
    held[there] = weight[unit[there], there] >= ANCHOR
    joined = (unit[:-1] >= 0) & (unit[1:] >= 0) & beside
    tied = joined.copy()
    tied[joined] = borders.link[unit[:-1][joined], unit[1:][joined]] >= TIED
    stretch, run = (np.concatenate(([0], np.cumsum(~same))) for same in (tied, joined))
    kept = np.flatnonzero((unit >= 0) & (np.bincount(stretch, weights=held)[stretch] > 0))
    first, last = np.full(m, m), np.full(m, -1)
    np.minimum.at(first, run[kept], kept)
    np.maximum.at(last, run[kept], kept)
    at = np.arange(m)
    at = at[(unit >= 0) & (first[run] <= at) & (at <= last[run])]
    out = np.full(len(place), -1, np.int64)
    out[unit[at]] = at
    return out


def _one_place_each(chance: Floats, told: Floats) -> Floats:
    """float64[m, n], nats: what the other places say of each unit for each place, when every unit has one.

    told: what they said before, which is in the chances.
    """
    odds = np.log(np.maximum(chance, 1e-12)) - np.log(np.maximum(1 - chance, 1e-12)) - told
    odds = np.exp(np.clip(odds, -25.0, 25.0))
    others = np.maximum(odds.sum(axis=0) - odds, 0.0)
    return np.maximum(-np.log(NO_PLACE + others), -MOST_TOLD)


def _learn(on: _Steps, over: _Steps, chance: Floats, none: Floats, number: Int64s, beside: Bools) -> None:
    """Takes the steps between places that are sure; of some places between two such each has its share."""
    best = chance.argmax(axis=1)
    held = np.flatnonzero(chance[np.arange(len(best)), best] > SURE)
    empty, parted = (np.concatenate(([0], np.cumsum(one))) for one in (none > SURE, ~beside))
    low, high = held[:-1], held[1:]
    wide, step = high - low, number[best[high]] - number[best[low]]
    whole = (parted[high] == parted[low]) & ((wide == 1) | (wide <= SHARED) & (step > 0) & (empty[high] == empty[low]))
    on.learn(best[low[whole]], np.rint(step[whole] / wide[whole]).astype(np.int64))
    gap = (wide > 1) & (empty[high] - empty[low + 1] == wide - 1)
    over.learn(best[low[gap]], step[gap])
