"""Units of a host: told by the distances of what is sure, and used to place the rest."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vmcarve.assemble.host_units import Unit, unit_of
from vmcarve.assemble.segments import BLOCK, Points, Segment, Taken, accept
from vmcarve.assemble.state import Claims

UNIT = 256
BEGINS = {0: 3 * UNIT * BLOCK, 1: 40 * UNIT * BLOCK}


def segment(owner: int, f: int, delta: int, bits: float = 50.0) -> Segment:
    return Segment(owner, delta, np.array([f, f + 3], np.int64), np.full(2, bits / 2), bits)


def scattered(rng: random.Random, count: int, step: int, rest: int = 0) -> list[Segment]:
    """Runs in different units of two files, at distances of multiples of `step` blocks and a rest."""
    places = rng.sample(range(100), count)
    return [segment(n % 2, u * UNIT + rng.randrange(UNIT - 4), rng.randrange(1000) * step + rest)
            for n, u in enumerate(places)]


@pytest.mark.parametrize("rest", [0, 17])
def test_the_largest_unit_that_all_keep_to(rest: int) -> None:
    found = unit_of(scattered(random.Random(1), 40, UNIT, rest), BEGINS)
    assert found == Unit(UNIT, rest)


def test_distances_of_any_kind_show_none() -> None:
    assert unit_of(scattered(random.Random(2), 40, 1), BEGINS) == Unit()


def test_few_distances_prove_nothing() -> None:
    """Four multiples of 256 blocks come about by chance, where many a segment is looked at."""
    assert unit_of(scattered(random.Random(3), 4, UNIT), BEGINS) == Unit()


def test_one_that_is_wrong_does_not_hide_it() -> None:
    some = scattered(random.Random(4), 60, UNIT)
    assert unit_of([*some, segment(0, 9, 77)], BEGINS) == Unit(UNIT, 0)


def test_units_that_hold_two_distances_are_none() -> None:
    """Aligned pieces that break anywhere: distances are multiples, but breaks are not."""
    some = scattered(random.Random(5), 40, UNIT)
    again = [segment(s.owner, s.first // UNIT * UNIT, s.delta + UNIT) for s in some]
    assert unit_of([*some, *again], BEGINS) == Unit()


def test_weak_segments_are_not_asked() -> None:
    some = [segment(s.owner, s.first, s.delta, 20.0) for s in scattered(random.Random(6), 40, UNIT)]
    assert unit_of(some, BEGINS) == Unit()


def test_points_at_other_distances_are_chance() -> None:
    delta = np.array([0, 256, 255, 512 + 3], np.int64)
    points = Points(np.array([0, 1, 0, 1], np.int64), np.arange(4), delta, np.ones(4))
    assert Unit(UNIT, 0).fits(points, BEGINS).delta.tolist() == [0, 256]
    assert Unit().fits(points, BEGINS) is points


def test_one_point_owns_its_unit() -> None:
    """And not one block more; a second claim on it goes to the heavier, though their blocks do not touch."""
    taken = Taken(Claims(), {})
    heavy, late = segment(0, 5 * UNIT + 9, 2 * UNIT, 60.0), segment(1, 5 * UNIT + 200, 0, 40.0)
    begins = {0: 0, 1: 2 * UNIT * BLOCK}  # both would have image unit 7
    got = accept([late, heavy], begins, taken, 30.0, UNIT)
    assert [(s.owner, s.first, s.last) for s in got] == [(0, 5 * UNIT, 6 * UNIT - 1)]
    assert taken.image.ranges() == [(7 * UNIT * BLOCK, 8 * UNIT * BLOCK)]


def test_what_a_heavier_one_leaves_of_a_segment_keeps_its_units() -> None:
    long = Segment(0, 0, np.arange(10, 3 * UNIT, 40, dtype=np.int64), np.full(19, 4.0), 76.0)
    first = segment(1, 20, 0, 90.0)
    got = accept([long, first], {0: 0, 1: UNIT * BLOCK}, Taken(Claims(), {}), 20.0, UNIT)
    last = 2 * UNIT
    assert [(s.owner, s.first, s.last) for s in got] == [(1, 0, UNIT - 1), (0, 0, UNIT - 1), (0, last, last + UNIT - 1)]
