"""Several writes at a time: a chain along the guest's places tells which unit of the file each of them is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vmcarve.assemble import unit_streams
from vmcarve.assemble.unit_joins import Borders
from vmcarve.assemble.unit_order import order_units
from vmcarve.assemble.unit_streams import anchored, place_streams


def in_turns(pieces: list[range]) -> np.ndarray:
    """The guest's places in file order, where each piece goes on in its turn."""
    waiting = [list(piece) for piece in pieces]
    out: list[int] = []
    while any(waiting):
        out += [piece.pop(0) for piece in waiting if piece]
    return np.array(out)


def test_writes_in_turns_are_followed_through_the_guest() -> None:
    """Seven writes at a time, four places of each told: all between them are placed, which no other order can."""
    pieces = [range(40 * k, 40 * k + 24) for k in (4, 0, 6, 2, 5, 1, 3)]
    place = in_turns(pieces)
    weight = np.zeros((len(place), 290))
    for piece in pieces:
        for p in piece[::7]:
            weight[np.flatnonzero(place == p)[0], p] = 20.0
    hole = np.zeros(290)
    found = order_units(weight, hole, borders=lambda: Borders.none(len(place)))
    given = found.place >= 0
    assert (found.place[given] == place[given]).all()
    assert given.sum() >= 7 * 22
    assert (order_units(weight, hole).place >= 0).sum() < 60


def test_links_tell_the_writes_apart() -> None:
    """Where one place of each write is told, the file's own links carry it on to the ends, and no farther."""
    pieces = [range(30 * k, 30 * k + 20) for k in (2, 0, 3, 1)]
    place = in_turns(pieces)
    n = len(place)
    weight, link = np.zeros((n, 125)), np.full((n, n), math.log(0.01), np.float32)
    for piece in pieces:
        weight[np.flatnonzero(place == piece[9])[0], piece[9]] = 20.0
    unit = {p: i for i, p in enumerate(place.tolist())}
    for p in set(unit) & {p - 1 for p in unit}:
        link[unit[p], unit[p + 1]] = 9.0
    borders = Borders(link, np.zeros(n), np.zeros(n), in_turns=True)
    assert np.array_equal(order_units(weight, np.zeros(125), borders=lambda: borders).place, place)


def test_what_hangs_on_nothing_is_not_given() -> None:
    """Of a stretch with one unit held in its place what is tied to it stays, and what lies between two; the rest goes,
    and all of a stretch with none."""
    place = np.array([0, 1, 2, 3, 4, 5, 10, 11, 20, 21, 22])
    weight, link = np.zeros((11, 30)), np.zeros((11, 11), np.float32)
    weight[2, 2] = weight[8, 20] = weight[10, 22] = 8.0
    link[2, 3] = 6.0
    kept = anchored(place, weight, Borders(link, np.zeros(11), np.zeros(11)), np.ones(29, np.bool_))
    assert kept.tolist() == [-1, -1, 2, 3, -1, -1, -1, -1, 20, 21, 22]


@pytest.mark.parametrize("beside", [(True, True), (True, False)])
def test_the_sums_are_those_of_all_ways(beside: tuple[bool, bool]) -> None:
    """Forward and backward sums over three places and four units give what adding up every way gives."""
    rng = np.random.default_rng(1)
    n, m = 4, 3
    weight, hole, told = rng.normal(size=(m, n)), rng.normal(size=m), rng.normal(size=(m, n))
    borders = Borders(rng.normal(size=(n, n)).astype(np.float32), rng.normal(size=n), rng.normal(size=n))
    chain = unit_streams._Chain(weight, hole, borders, np.array(beside))  # pyright: ignore[reportPrivateUsage]
    chain.stays_out, chain.leaves_out = 0.7, 0.2
    on, over = rng.random((n, n)).astype(np.float32), rng.random((n, n)).astype(np.float32)
    chain.step(on, over)
    chance, none, total = chain.sums(told)
    wanted, whole = np.zeros((m, n + 1)), 0.0
    for begin in range(n):  # without a unit at the first place there is one that would be before it
        for states in itertools.product([*range(n), None], repeat=m):
            if states[0] is not None and states[0] != begin:
                continue
            likely, last = 1 / n, begin
            for p, state in enumerate(states):
                before = states[p - 1] if p else None
                if p == 0:
                    likely *= 0.8 if state is not None else 0.2
                elif state is None:
                    likely *= 0.2 * math.exp(borders.out[last]) if before is not None else 0.7
                elif before is not None and beside[p - 1]:
                    likely *= 0.8 * float(on[last, state]) * math.exp(borders.link[last, state])
                else:
                    likely *= (0.8 if before is not None else 0.3) * float(over[last, state])
                    likely *= math.exp(borders.into[state])
                likely *= math.exp(hole[p] if state is None else weight[p, state] + told[p, state])
                last = last if state is None else state
            whole += likely
            for p, state in enumerate(states):
                wanted[p, n if state is None else state] += likely
    assert np.allclose(np.column_stack((chance, none)), wanted / whole, atol=1e-5)
    assert math.isclose(total, math.log(whole), abs_tol=1e-4)


def test_a_unit_is_given_to_one_place_only() -> None:
    """Two places that one unit fits equally well, of which another unit fits one: each has its own."""
    weight = np.full((2, 2), -30.0)
    weight[0] = 10.0
    weight[1, 1] = 10.0
    chance = place_streams(weight, np.full(2, -30.0), Borders.none(2), np.arange(2), np.ones(1, np.bool_))
    assert chance is not None
    assert chance[0, 0] > 0.9 and chance[1, 1] > 0.9
