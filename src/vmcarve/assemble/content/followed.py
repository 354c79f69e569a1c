"""What is common to mechanisms that follow the files of all guests through what one look at the image has noted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from ..segments import least_weight
from .want import BLOCK, Guest, Told


@dataclass(slots=True)
class Followed(ABC):
    """Mechanism whose image is seen once, as soon as any guest has something to ask (`asks`), and whose files are
    followed (`follow`) once in each round that shows more of any guest. Once found, a place stays.
    """

    _guests: list[Guest] = field(default_factory=list[Guest])
    _found: list[dict[int, int]] = field(default_factory=list[dict[int, int]])  # by guest: image block of a file block
    _blocks: int = 2  # of the image
    _seen: bool = False
    _followed: bool = False
    _told: list[tuple[object, ...]] = field(default_factory=list[tuple[object, ...]])  # of each guest, by which it was

    def want(self, guests: list[Guest]) -> bool:
        self._guests = guests
        self._found = [*self._found, *({} for _ in guests)][: len(guests)]
        self._followed = False
        first, self._seen = not self._seen, self._seen or self.asks()
        return first and self._seen

    def points(self, number: int) -> Told:
        if not self._followed:
            self._followed = True
            told = [_told(g) for g in self._guests]
            if not _same(told, self._told):
                self._told = told if self._seen else []
                self.follow()
        return given(self._found[number], self._guests[number], self._blocks)

    def asks(self) -> bool:
        return any(len(g.files.size) for g in self._guests)

    @abstractmethod
    def follow(self) -> None:
        """Notes in `_found` what comes next to what is placed."""


def _told(guest: Guest) -> tuple[object, ...]:
    return guest.read, guest.start, guest.unit, guest.sure.tobytes()


def _same(now: list[tuple[object, ...]], before: list[tuple[object, ...]]) -> bool:
    """Whether guests read as they did, and have as much that is sure."""
    return len(now) == len(before) and all(a[0] is not None and a[0] is b[0] and a[1:] == b[1:]
                                           for a, b in zip(now, before, strict=True))


def given(found: dict[int, int], guest: Guest, blocks: int) -> Told:
    """Points of blocks that were followed or filled in: enough for each run of them to stand alone, and for nothing
    against what is pinned. found: the image block of each file block; blocks: of the image."""
    f = np.array(sorted(found), np.int64)
    if not len(f):
        return Told.nothing()
    delta = np.array([found[k] for k in f.tolist()], np.int64) - f - guest.start // BLOCK
    run = np.cumsum(np.concatenate(([True], (delta[1:] != delta[:-1]) | (np.diff(f) != 1)))) - 1
    worth = 2 * (least_weight(blocks) + 1.0)
    return Told(f, delta, worth / np.bincount(run)[run], f[:0])
