"""What the mechanisms share: the guest as it can be read now, and the points that they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ...disk import VirtualDisk
from ..host_units import Unit
from ..tails import FileEnds
from .files import Files

Int64s = npt.NDArray[np.int64]
U8s = npt.NDArray[np.uint8]
BLOCK = 4096
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Guest:
    """A container's guest through the map so far. start: image offset of the container's first byte.

    volumes: (guest_offset, bytes) of the volumes that are its own; files: those that live in them. sure int64[n, 3]:
    file blocks (first, end; rising) and their delta, where points at both ends have a run at. read: the same object as
    long as the disk and its files are as they were, None where that is not known. ends: of the files, where they are
    known; unit: in which the host gives out space, as the last round showed it. vacant int64[n, 2]: file blocks (first,
    end) that the guest holds free, and no deleted file that it knows had. rate: breaks by block of the image's
    containers, as the last round showed them; 0 where that is not known.
    """

    start: int
    disk: VirtualDisk
    volumes: list[tuple[int, int]]
    files: Files
    sure: Int64s
    read: object = None
    ends: FileEnds = field(default_factory=FileEnds.none)
    unit: Unit = field(default_factory=Unit)
    vacant: Int64s = field(default_factory=lambda: np.empty((0, 2), np.int64))
    rate: float = 0.0


@dataclass(slots=True)
class Kept(Generic[T]):
    """What was read of each guest, for as long as it reads the same: by its number."""

    _known: dict[int, tuple[object, T]] = field(default_factory=dict[int, tuple[object, T]])

    def of(self, number: int, guest: Guest, read: Callable[[Guest], T]) -> T:
        """read(guest), or what that gave when the guest was asked before."""
        known = self._known.get(number)
        if known is None or known[0] is None or known[0] is not guest.read:
            known = self._known[number] = guest.read, read(guest)
        return known[1]


@dataclass(frozen=True, slots=True)
class Told:
    """Points of one container: file_block, delta (blocks, from the container's first byte) int64[n], bits float64[n].

    passed int64[m]: file blocks that would have a point wherever they lie; one that has none there is not there.
    """

    file_block: Int64s
    delta: Int64s
    bits: npt.NDArray[np.float64]
    passed: Int64s

    @classmethod
    def nothing(cls) -> Told:
        none = np.empty(0, np.int64)
        return cls(none, none, np.empty(0), none)


def in_phase(data: U8s, at: int, length: int, phase: int) -> tuple[int, U8s]:
    """(index in `data`, uint8[n, BLOCK]) of the first of, and the whole blocks that begin in [at, at + length) of the
    image at an offset that is `phase` modulo a block. data: the image's bytes from `at` on."""
    first = (phase - at) % BLOCK
    count = max(0, (min(length, len(data) - BLOCK + 1) - first + BLOCK - 1) // BLOCK)
    return first, data[first : first + count * BLOCK].reshape(-1, BLOCK)


class Mechanism(Protocol):
    """One kind of content pin. Guests come in one order, and number `k` is the same one in every call."""

    def want(self, guests: list[Guest]) -> bool:
        """Takes what the guests tell now; True when the image has to be seen (again)."""
        ...

    def see(self, data: U8s, at: int, length: int) -> None:
        """Image bytes from offset `at` on: `length` that are to be seen, and some behind them to read on in; the
        caller's again when this returns."""
        ...

    def points(self, number: int) -> Told:
        """What was found of guest `number`."""
        ...
