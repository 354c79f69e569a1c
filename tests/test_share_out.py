"""Sharing out volumes among containers: the cheapest whole, not the cheapest pair first."""

from __future__ import annotations

import itertools
import random

from vmcarve.assemble.share_out import Place, share_out

NONE, LEAST = 1.7, 0.05


def place(volume: str, container: int, cost: float, low: int = 0, high: int = 10) -> Place:
    return Place(volume, cost, container, low, high)


def given(places: list[Place]) -> dict[object, int]:
    return {places[i].volume: places[i].container for i in share_out(places, NONE, LEAST)}


def test_a_volume_leaves_a_container_that_another_needs() -> None:
    """The best pair first would leave `b` without a place, since it fits only where `a` fits a little better."""
    places = [place("a", 1, 0.35), place("b", 1, 0.4), place("a", 2, 1.1)]
    assert given(places) == {"a": 2, "b": 1}


def test_three_move_round() -> None:
    places = [place("a", 1, 0.1), place("b", 2, 0.1), place("c", 1, 0.2), place("a", 2, 0.2), place("b", 3, 0.2)]
    assert given(places) == {"c": 1, "a": 2, "b": 3}


def test_two_change_places_where_each_has_the_others() -> None:
    """Both have a place, and the first one's is as good as any that it may have."""
    places = [place("a", 1, 0.75), place("a", 2, 0.75), place("b", 1, 0.75), place("b", 2, 1.05)]
    assert given(places) == {"a": 2, "b": 1}


def test_a_volume_that_is_no_disk_by_itself_is_served_before_one_that_may_be() -> None:
    places = [place("a", 1, 0.6), place("b", 1, 0.6)]
    assert given(places) == {"a": 1}
    assert share_out(places, NONE, LEAST, {"b": NONE + 0.5}) == [1]


def test_what_costs_more_than_no_place_moves_nothing() -> None:
    places = [place("a", 1, -0.8), place("b", 1, 0.6), place("a", 2, 1.2)]
    assert given(places) == {"a": 1}


def test_two_volumes_of_one_container_do_not_lie_over_each_other() -> None:
    places = [place("a", 1, 0.1, 0, 10), place("b", 1, 0.2, 5, 15), place("c", 1, 0.3, 10, 20)]
    assert given(places) == {"a": 1, "c": 1}


def test_never_worse_than_one_after_the_other() -> None:
    """On small random cases: as cheap as the best of all orders of taking, within what moving three can reach."""
    rng = random.Random(1)
    for _ in range(200):
        places = [place(v, c, rng.random()) for v in "abc" for c in range(3) if rng.random() < 0.7]
        cost = sum(places[i].cost for i in share_out(places, NONE, 0.0))
        total = cost + NONE * (len({p.volume for p in places}) - len(share_out(places, NONE, 0.0)))
        greedy = {}
        for p in places:
            if p.volume not in greedy and all(q.container != p.container for q in greedy.values()):
                greedy[p.volume] = p
        first = sum(p.cost for p in greedy.values()) + NONE * (len({p.volume for p in places}) - len(greedy))
        assert total <= first + 1e-9
        for chosen in itertools.combinations(share_out(places, NONE, 0.0), 2):
            assert not places[chosen[0]].over(places[chosen[1]])
