"""The chances of all ways to fill a gap are those that one gets by writing them down one by one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from vmcarve.assemble.content import ways
from vmcarve.assemble.content.ways import ABSENT, Filled, Gap, fill

RATE = 1 / 64
LENGTH = np.array([2, 3, 4, 7], np.int64)
NONE = np.full(len(LENGTH) + 1, -1, np.int64)
ONES = np.ones(len(LENGTH))


def gap(blocks: int, odds: np.ndarray, left: tuple[int, np.ndarray] | None, right: tuple[int, np.ndarray] | None,
        next_: np.ndarray = NONE) -> Gap:
    return Gap(blocks, LENGTH, odds, next_, np.full(len(LENGTH) + 1, 0.9), ONES, left, right, RATE)


def filled(of: Gap) -> Filled:
    found = fill(of)
    assert found is not None
    return found


def test_the_only_row_that_fits_and_goes_on_is_sure() -> None:
    """7 and 4 behind the left end, which has 2, and before the right one, which has 3."""
    odds = np.full((4, 4), 0.1)
    odds[3, 2] = 200.0
    found = filled(gap(16, odds, (2, np.array([0.1, 0.1, 0.1, 200.0])), (3, np.array([0.1, 0.1, 200.0, 0.1]))))
    assert found.chance[2, 3] > 0.95 and found.chance[9, 2] > 0.95
    assert found.left > 0.95 and found.right > 0.95


def test_a_row_that_is_too_short_is_none() -> None:
    """The same borders, one block more: something is missing, and nothing of it is sure."""
    odds = np.full((4, 4), 0.1)
    odds[3, 2] = 200.0
    found = filled(gap(17, odds, (2, np.array([0.1, 0.1, 0.1, 200.0])), (3, np.array([0.1, 0.1, 200.0, 0.1]))))
    assert found.chance[9, 2] < 0.9 or found.chance[2, 3] < 0.9


def test_what_lies_beside_on_the_image_goes_on() -> None:
    """The odds say nothing; the second stretch begins where the third ends."""
    next_ = np.array([-1, -1, 1, -1, 2])
    found = filled(gap(9, np.ones((4, 4)), (2, ONES), None, next_))
    assert found.chance[2, 2] > 0.6 and found.chance[6, 1] > 0.6


@pytest.mark.parametrize("blocks", [5, 9, 12])
def test_the_sums_are_those_of_all_rows(blocks: int) -> None:
    """With a left end and no right one: every row of stretches, each with or without something unknown behind it."""
    rng = np.random.default_rng(blocks)
    odds, behind = rng.uniform(0.1, 3, (4, 4)), rng.uniform(0.1, 3, 4)
    found = filled(gap(blocks, odds, (1, behind), None))
    prior = np.append(LENGTH, 1.0)[: len(LENGTH)] / LENGTH.sum()

    def jumps(row: np.ndarray) -> tuple[np.ndarray, float]:
        raw = (1 - ABSENT) * row * prior
        return raw / (raw.sum() + ABSENT), ABSENT / (raw.sum() + ABSENT)

    lasts = 1 - RATE * (1 - ABSENT)
    total, of = 0.0, np.zeros((blocks + 1, 4))
    # a way: what follows the left end, one after another: a stretch, or -n for n unknown blocks (never two together)
    ways = [[]]
    done: list[list[int]] = []
    while ways:
        way = ways.pop()
        at = 1 + sum(int(LENGTH[k]) if k >= 0 else -k for k in way)
        if at == blocks:
            done.append(way)
            continue
        ways += [[*way, k] for k in range(4) if at + LENGTH[k] <= blocks]
        if not way or way[-1] >= 0:
            ways += [[*way, -n] for n in range(1, blocks - at + 1)]
    for hidden, way in itertools.product((False, True), done):
        # that the left end is no more than it seems; else what is unknown begins at once, and is not told apart here
        if hidden:
            continue
        weight, last = 0.85, -1
        row, none = jumps(behind)
        unknown = False
        at, begins = 1, list[tuple[int, int]]()
        for k in way:
            if k < 0:
                weight *= none * lasts ** (-k - 1)
                unknown, at = True, at - k
                continue
            weight *= prior[k] * RATE if unknown else row[k]
            begins.append((at, k))
            row, none = jumps(odds[k])
            unknown, last, at = False, k, at + int(LENGTH[k])
        total += weight
        for at, k in begins:
            of[at, k] += weight
        assert last >= -1
    kept = found.left  # the share of the ways in which the left end is what it seems
    assert np.allclose(found.chance, of / total * kept, atol=0.03)


def test_no_stretch_reaches_over_a_border_of_extents() -> None:
    """Two rows of 4 and 3 blocks are as likely; only one of them meets the border, where what is beside on the image
    says nothing and the odds there count."""
    odds = np.ones((4, 4))
    met = {0: odds}
    for border, other in ((4, 3), (3, 4)):
        of = gap(7, odds, (0, ONES), (0, ONES))
        found = filled(Gap(of.blocks, of.length, odds, NONE, of.stays, ONES, of.left, of.right, RATE, 1.0,
                           {border: 0}, met))
        assert not found.chance[0, LENGTH > border].any() and not found.chance[other, LENGTH > 7 - other].any()
        assert not found.chance[other : border, LENGTH > border - other].any()
        assert found.chance[0, LENGTH == border].item() > 2 * filled(of).chance[0, LENGTH == border].item()


def test_a_row_of_pieces_lies_over_a_border_only_where_one_of_them_ends() -> None:
    """The last stretch is two pieces, of 4 and 3 blocks: the only one as long as the gap."""
    odds = np.full((4, 4), 0.01)
    chances = [filled(replace(gap(7, odds, None, None), borders={border: 0}, meeting={0: odds}, joints={3: [4]})
                      ).chance[0, 3] for border in (4, 3)]
    assert chances[0] > 0.3 and chances[1] == 0


def test_sums_that_singles_do_not_hold_are_made_of_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many likely rows fill a long gap, their sum is beyond what a single holds: nothing would be said then."""
    rng = np.random.default_rng(8)
    of = gap(200, rng.uniform(0.1, 3, (4, 4)), (1, rng.uniform(0.1, 3, 4)), None)
    before = filled(of)
    monkeypatch.setattr(ways, "SCALE", 1e39)
    after = filled(of)
    assert np.allclose(before.chance, after.chance, atol=1e-5) and after.chance.max() > 0.01
