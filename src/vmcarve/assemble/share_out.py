"""Which volume goes to which container, once it is known what speaks against each pair: the cheapest share-out.

Taking the best pair first leaves a container with another's volume, and that volume's own container with what nobody
else wants. So what was given that way is given again wherever moving a few makes the whole cheaper; a volume that gets
no place costs as much as the worst pair that is believed, or more where it does not look like a disk by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

MOVED = 3  # ours: volumes that one step moves at most,
TRIED = 8  # places that are tried for each, the cheapest,
PASSES = 4  # and times that all are gone through


@dataclass(frozen=True, slots=True)
class Place:
    """A place that a volume may have: what speaks against it, and bytes [low, high) of a container's disk."""

    volume: Hashable
    cost: float
    container: int
    low: int
    high: int

    def over(self, other: Place) -> bool:
        """Whether only one of the two can be."""
        return self.container == other.container and self.low < other.high and other.low < self.high


def share_out(places: Sequence[Place], none: float, least: float, alone: Mapping[Hashable, float] | None = None
              ) -> list[int]:
    """Indices of the places that are given: one for each volume at most, no two over each other.

    places: in the order in which they are given at first. none: what it costs that a volume has no place, where `alone`
    does not tell. least: what moving others must save.
    """
    alone = alone or {}
    options: dict[Hashable, list[int]] = {}
    given: dict[Hashable, int] = {}
    for i, p in enumerate(places):
        options.setdefault(p.volume, []).append(i)
        if p.volume not in given and not any(p.over(places[j]) for j in given.values()):
            given[p.volume] = i
    cheapest = {v: sorted(which, key=lambda i: places[i].cost)[:TRIED] for v, which in options.items()}

    def moved(volume: Hashable, now: dict[Hashable, int], left: int, fixed: frozenset[Hashable]
              ) -> tuple[float, dict[Hashable, int]]:
        """The least cost of a volume and of those that make room for it, and who has what then."""
        best, after = alone.get(volume, none), now
        for i in cheapest[volume]:
            others = [v for v, j in now.items() if places[i].over(places[j])]
            if len(others) > left or any(v in fixed for v in others):
                continue
            then = {v: j for v, j in now.items() if v not in others} | {volume: i}
            cost = places[i].cost - sum(places[now[v]].cost for v in others)
            for v in others:
                more, then = moved(v, then, left - len(others), fixed | {volume})
                cost += more
            if cost < best:
                best, after = cost, then
        return best, after

    for volume in [v for v in options if v not in given]:
        cost, after = moved(volume, given, MOVED, frozenset())
        if cost < alone.get(volume, none) - least:
            given = after
    # and those that came off worse than they might: two volumes may have been given each other's place
    for _ in range(PASSES):
        before = given
        for volume in [v for v, i in given.items() if places[i].cost - places[cheapest[v][0]].cost > least]:
            others = {v: i for v, i in given.items() if v != volume}
            cost, after = moved(volume, others, MOVED, frozenset())
            if cost < places[given[volume]].cost - least:
                given = after
        if given == before:
            break
    return sorted(given.values())
