"""The order of a container's units: every order is weighed, by the rule that the module states."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.reference.unit_chances import unit_chances as reference
from vmcarve._ext.unit_chances import unit_chances
from vmcarve.assemble import unit_order
from vmcarve.assemble.unit_order import NONE, STRAY, order_units

FOLLOWS = 0.7
KINDS = [(False, 0.0), (True, 0.0), (False, 0.6)]  # whether an order rises, and how a step's chance falls


def every_order(weight: np.ndarray, hole: np.ndarray | None, joined: np.ndarray, beside: np.ndarray, leap: float,
                near: float) -> tuple[np.ndarray, float]:
    """The chances by going through all orders one by one: a unit has a place, or none (what would be next stays)."""
    n, m = weight.shape
    jump = (1 - FOLLOWS - NONE) * math.exp(leap)
    chance, total = np.zeros((n, m)), 0.0
    for states in itertools.product([*range(m), None], repeat=n):
        for begin in range(m + 1) if states[0] is None else [states[0]]:
            if hole is None and begin == m:
                continue
            likely = 1 / m if hole is None else math.exp(hole[:begin].sum())
            ahead = begin  # the place that would be next
            for i, state in enumerate(states):
                if state is None:
                    likely *= NONE
                    continue
                if i:
                    step = FOLLOWS if state == ahead and (state == 0 or beside[state - 1]) else 0.0
                    step *= math.exp(joined[i - 1]) if states[i - 1] is not None else 1.0
                    if hole is None and near:
                        close = (1 - STRAY) * (1 - near) / (1 + near) * near ** abs(state - ahead)
                        step += jump * (STRAY / m + close)
                    elif hole is None:
                        step += jump / m
                    elif state > ahead:
                        step += jump * math.exp(hole[ahead:state].sum())
                    likely *= step
                likely *= math.exp(weight[i, state])
                ahead = state + 1
            if hole is not None:
                likely *= math.exp(hole[ahead:].sum())
            total += likely
            for i, state in enumerate(states):
                if state is not None:
                    chance[i, state] += likely
    return chance / total, math.log(total)


@pytest.mark.parametrize(("rising", "near"), KINDS)
@pytest.mark.parametrize("shape", [(1, 3), (3, 4), (4, 3)])
def test_chances_are_those_of_all_orders(shape: tuple[int, int], rising: bool, near: float) -> None:
    """Forward and backward sums give what adding up every order gives."""
    rng = np.random.default_rng(sum(shape))
    weight = rng.normal(size=shape) * 2
    hole = -rng.random(shape[1]) * 3 if rising else None
    joined, beside, leap = rng.normal(size=shape[0] - 1), np.arange(shape[1] - 1) != 1, 0.3
    chance, likelihood, _ = unit_order._chances(  # pyright: ignore[reportPrivateUsage]
        weight, hole, FOLLOWS, joined, beside, leap, near)
    wanted, whole = every_order(weight, hole, joined, beside, leap, near)
    assert np.allclose(chance, wanted, atol=1e-9)
    assert math.isclose(likelihood, whole, abs_tol=1e-9)


@pytest.mark.parametrize(("rising", "near"), KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (30, 70), (70, 30)])
@pytest.mark.parametrize("strength", [0.0, 1.0, 40.0, 3000.0])
def test_sums_are_those_of_logarithms_whatever_speaks(shape: tuple[int, int], strength: float, rising: bool, near: float
                                                      ) -> None:
    """Weights that contradict each other by more than a double reaches, places that cannot be, long gaps: the kernel's
    numbers are those of plain logarithms."""
    n, m = shape
    rng = np.random.default_rng(n)
    weight = rng.normal(size=shape) * strength
    weight[rng.random(shape) < 0.1] = unit_order.NEVER
    hole = -rng.random(m) * (1.0 + strength / 10) if rising else np.empty(0)
    joined, beside = rng.normal(size=n - 1) * min(strength, 50.0), rng.random(m - 1) < 0.8
    chance, power = np.empty(shape), np.empty(shape, np.int32)
    got = unit_chances(weight, hole, joined, beside.view(np.uint8), FOLLOWS, NONE, 0.2, near, STRAY, chance, power)
    wanted = reference(weight, hole, joined, beside, FOLLOWS, NONE, 0.2, near, STRAY if near else 1.0)
    assert np.allclose(chance, wanted[0], atol=1e-7)
    assert np.allclose(got, wanted[1:], rtol=1e-9, atol=1e-7)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    """A shape that is wrong is an error before anything is read."""
    def run(hole: int = 4, joined: int = 2, beside: int = 3, rows: int = 3, near: float = 0.0) -> None:
        unit_chances(np.zeros((3, 4)), np.zeros(hole), np.zeros(joined), np.ones(beside, np.uint8), FOLLOWS, NONE, 0.2,
                     near, STRAY, np.empty((rows, 4)), np.empty((3, 4), np.int32))

    run()
    run(hole=0, near=0.5)
    for near, hole in ((0.5, 4), (1.0, 0)):
        with pytest.raises(ValueError, match="near"):
            run(hole=hole, near=near)
    for wrong in ({"hole": 3}, {"joined": 3}, {"beside": 4}, {"rows": 4}):
        with pytest.raises(ValueError, match="belong together|shape"):
            run(**wrong)


def test_a_copy_with_units_left_out_is_found_between_its_pins() -> None:
    """A rising order: what the guest uses is there, what is free was left out, and few pins hold it in place."""
    rng = np.random.default_rng(3)
    used = rng.random(80) < 0.7
    place = np.flatnonzero(used)
    weight = np.zeros((len(place), 80))
    for i in (0, 20, len(place) - 1):
        weight[i, place[i]] = 25.0
    found = order_units(weight, np.where(used, -12.0, -0.3))
    assert np.array_equal(found.place, place)


def test_what_is_empty_lies_together() -> None:
    """A rising order of which nobody knows what is used: one long gap is no reason to believe in none that rises."""
    place = np.concatenate((np.arange(10, 30), np.arange(700, 720), np.arange(900, 920)))
    weight = np.zeros((60, 1000))
    for i in (0, 10, 30, 50, 59):
        weight[i, place[i]] = 8.0
    found = order_units(weight, np.zeros(1000))
    assert found.follows > 0.8
    near = np.concatenate((np.arange(0, 11), np.arange(50, 60)))
    assert np.array_equal(found.place[near], place[near])


def test_what_goes_on_holds_chunks_together() -> None:
    """Chunks in any order, a pin in each: where the bytes go on from unit to unit says how far a chunk reaches."""
    rng = np.random.default_rng(7)
    chunks = rng.permutation(np.arange(120).reshape(20, 6))
    place = chunks.ravel()
    weight = np.zeros((120, 120))
    for at in range(2, 120, 6):
        weight[at, place[at]] = 25.0
    joined = np.where(np.diff(place) == 1, 3.0, -1.2)
    alone, helped = (order_units(weight, np.zeros(120), j).place for j in (None, joined))
    assert (helped == place).mean() > 0.95
    assert (alone == place).mean() < 0.9
    assert (helped[helped >= 0] == place[helped >= 0]).all()


def test_chunks_in_any_order_follow_their_pins() -> None:
    """Chunks whose order means nothing: two pins in each place what lies between them, and nothing else wrongly."""
    rng = np.random.default_rng(5)
    chunks = rng.permutation(np.arange(120).reshape(10, 12))
    place = chunks.ravel()
    weight = np.zeros((120, 120))
    for i in [*range(1, 120, 12), *range(10, 120, 12)]:
        weight[i, place[i]] = 30.0
    found = order_units(weight, np.full(120, -1.2))
    given = found.place >= 0
    assert given.reshape(10, 12)[:, 1:11].all()
    assert (found.place[given] == place[given]).mean() > 0.95


def test_a_copy_with_several_writes_under_way_stays_near() -> None:
    """Eight units at a time are written as they come: what is told of every third leaves little room for the others."""
    rng = np.random.default_rng(11)
    under_way, place = list(range(8)), []
    for following in [*range(8, 240), *[-1] * 8]:
        place.append(under_way.pop(int(rng.integers(len(under_way)))))
        under_way += [following] if following >= 0 else []
    weight = np.zeros((240, 400))
    told = np.arange(0, 240, 3)
    weight[told, np.array(place)[told]] = 25.0
    weight += 4.0 * (np.arange(400) % 32 == np.array(place)[:, None] % 32)  # what the others hold says a little
    found, free = order_units(weight, np.zeros(400)), unit_order._settle(  # pyright: ignore[reportPrivateUsage]
        weight, None, np.zeros(239), np.ones(399, np.bool_))
    given = found.place >= 0
    assert found.likelihood > free.likelihood + 100.0
    assert given.sum() > 1.3 * (free.place >= 0).sum()
    assert (found.place[given] == np.array(place)[given]).mean() > 0.95


def test_nothing_is_placed_where_nothing_speaks() -> None:
    """Fewer units than places and no evidence: no place is likelier than a half."""
    assert (order_units(np.zeros((20, 60)), np.full(60, -1.2)).place == -1).all()


def test_no_place_is_given_twice() -> None:
    """Two units with one place: the stronger has it."""
    weight = np.zeros((8, 30))
    weight[2, 11], weight[6, 11] = 40.0, 30.0
    found = order_units(weight, np.full(30, -1.2)).place
    assert found[2] == 11
    assert len(set(found[found >= 0].tolist())) == int((found >= 0).sum())
