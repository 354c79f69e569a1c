"""Tables of one container that were taken for each other, told by those beside them.

A table that names what lies right behind its own place is taken for that place's. While several writes are under way a
table is allocated and what lies behind it goes to another write, so another table of the container may say the same.
But a file breaks seldom: tables that lie beside each other in the file lie so on the image too, and by chance two of
them share a distance between image and file about once in a hundred pairs.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

SHARED = 8.0  # bits that a table shares its distance with the next one before or behind, no farther from it than
REACH = 16 << 20  # bytes of the file
WORTH = 1 / 6  # of the bits by which one table fits its place better: all of them are this container's
LEAST = 4.0  # bits that a move must win: some table lies at a distance by chance, most lie where they say
MOST = 128  # ours: tables of a container that are looked at: every distance is tried for each,
PASSES = 8  # and so often

Bits = Callable[[int, int], float]
"""(file, image offset) -> bits that the block there is the file's, 0 when it cannot be or is another's."""


def rearranged(laid: dict[int, int], lost: list[int], bits: Bits) -> dict[int, int]:
    """The tables `laid` (file offset -> image offset) with as many as possible where their neighbours have them.

    Each, and each of the file offsets `lost` whose table was not found, may go to the distance that another one has, to
    a place that is free or, in exchange, to another table's; that of a lost one is lost then. As they were where there
    are more than MOST.
    """
    if len(laid) + len(lost) > MOST:
        return laid
    now = _Laid(dict(laid), bits)
    for _ in range(PASSES):
        moves = [now.move(f) for f in sorted([*laid, *lost])]
        if not any(moves):
            break
    return now.place


class _Laid:
    """Where each table lies, and how good that is."""

    def __init__(self, place: dict[int, int], bits: Bits) -> None:
        self.place = place
        self._bits = bits
        self._known: dict[tuple[int, int], float] = {}
        self._holder = {p: f for f, p in place.items()}
        self._groups: dict[int, list[int]] = {}  # of one distance, file offsets rising
        for f, p in sorted(place.items()):
            self._groups.setdefault(p - f, []).append(f)

    def move(self, f: int) -> bool:
        """Moves the table of file offset `f` to where that makes the whole better by most; says whether it did."""
        old = self.place.get(f)
        near = {d for d, group in self._groups.items()
                if (i := bisect.bisect_left(group, f - REACH)) < len(group) and group[i] <= f + REACH}
        best, where = LEAST, None
        for d in sorted(near if old is None else near - {old - f}):
            other = self._holder.get(f + d)
            if self._fits(f, f + d) <= 0 or (other is not None and old is not None and self._fits(other, old) <= 0):
                continue
            more = self._try(f, f + d)
            if more > best:
                best, where = more, f + d
        if where is not None:
            self._put(f, where)
        return where is not None

    def _try(self, f: int, p: int) -> float:
        """Bits that are won when `f` goes to `p`."""
        old, other = self.place.get(f), self._holder.get(p)
        more = self._put(f, p)
        self._take(f)
        if other is not None:
            if old is not None:
                self._take(other)
            self._lay(other, p)
        if old is not None:
            self._lay(f, old)
        return more

    def _put(self, f: int, p: int) -> float:
        """Lets `f` go to `p`, whose table comes where it was; returns the bits that are won."""
        old, other = self.place.get(f), self._holder.get(p)
        more = -sum(self._take(one) for one in (f, other) if one in self.place)
        more += self._lay(f, p)
        return more + (self._lay(other, old) if other is not None and old is not None else 0.0)

    def _take(self, f: int) -> float:
        p = self.place.pop(f)
        group = self._groups[p - f]
        before = self._pairs(group, f)
        group.remove(f)
        del self._holder[p]
        return WORTH * self._fits(f, p) + SHARED * (before - self._pairs(group, f))

    def _lay(self, f: int, p: int) -> float:
        group = self._groups.setdefault(p - f, [])
        before = self._pairs(group, f)
        bisect.insort(group, f)
        self.place[f], self._holder[p] = p, f
        return WORTH * self._fits(f, p) + SHARED * (self._pairs(group, f) - before)

    @staticmethod
    def _pairs(group: list[int], f: int) -> int:
        """How many of the steps from one table of a distance to the next around `f` are within reach."""
        i = bisect.bisect_left(group, f)
        some = group[max(0, i - 1) : i + 2]
        return sum(b - a <= REACH for a, b in zip(some, some[1:], strict=False))

    def _fits(self, f: int, p: int) -> float:
        if (f, p) not in self._known:
            self._known[f, p] = self._bits(f, p)
        return self._known[f, p]
