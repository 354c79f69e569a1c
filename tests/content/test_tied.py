"""Stretches that lead to each other, and to no others, are tied; nothing else is."""

from __future__ import annotations

import numpy as np

from vmcarve.assemble.content.tied import Chains, ties

NONE = np.zeros(4)
WEIGHT = np.full(4, 8.0)
APART = np.full(4, -1, np.int64)


def odds(*pairs: tuple[int, int, float]) -> np.ndarray:
    out = np.full((4, 4), 0.1, np.float32)
    for i, j, worth in pairs:
        out[i, j] = worth
    return out


def after(table: np.ndarray, begun: np.ndarray = NONE, ended: np.ndarray = NONE, next_: np.ndarray = APART,
          stays: np.ndarray = NONE) -> list[int]:
    return ties(table, WEIGHT, begun, ended, next_, stays).tolist()


def test_what_leads_to_each_other_alone_is_tied() -> None:
    assert after(odds((0, 2, 900.0), (2, 1, 900.0))) == [2, -1, 1, -1]


def test_two_that_lead_to_one_or_one_that_leads_to_two_are_not() -> None:
    assert after(odds((0, 2, 900.0), (1, 2, 900.0))) == [-1] * 4
    assert after(odds((0, 2, 900.0), (0, 3, 900.0))) == [-1] * 4


def test_little_is_not_enough_and_nothing_follows_itself() -> None:
    assert after(odds((0, 2, 1.5), (1, 1, 900.0))) == [-1] * 4


def test_what_is_known_to_go_on_from_something_else_is_not_tied() -> None:
    known = np.array([0.0, 0.0, 0.9, 0.0])
    assert after(odds((0, 2, 900.0)), begun=known) == [-1] * 4
    assert after(odds((2, 0, 900.0)), ended=known) == [-1] * 4


def test_what_lies_beside_on_the_image_and_goes_on_is_tied_if_nothing_else_is() -> None:
    beside, sure = np.array([1, -1, -1, -1]), np.array([0.99, 0.0, 0.0, 0.0])
    assert after(odds(), next_=beside, stays=sure) == [1, -1, -1, -1]
    assert after(odds((0, 2, 900.0)), next_=beside, stays=sure) == [2, -1, -1, -1]
    assert after(odds((3, 1, 900.0)), next_=beside, stays=sure) == [-1, -1, -1, 1]


def test_rows_are_parted_where_one_is_used_and_where_they_are_too_long() -> None:
    chains = Chains.of(np.array([2, -1, 3, 1, -1, 6, 5]), np.array([5, 4, 3, 2, 9, 1, 1]))
    assert chains.rows == [(14, [0, 2, 3, 1]), (9, [4]), (2, [5, 6])]  # a ring is cut anywhere
    assert chains.upto(14, {2}) == [(9, [4]), (6, [3, 1]), (5, [0]), (2, [5, 6])]
    assert chains.upto(8, set()) == [(5, [0]), (4, [1]), (3, [2]), (2, [3]), (2, [5, 6])]
    assert chains.from_(2, 5) == [2, 3] and chains.from_(3, 9, back=True) == [3, 2, 0]
