"""What the mechanisms share: the guest as it can be read now, and the points that they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...disk import VirtualDisk
from .files import Files

Int64s = npt.NDArray[np.int64]
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Guest:
    """A container's guest through the map so far. start: image offset of the container's first byte.

    volumes: (guest_offset, bytes) of the volumes that are its own; files: those that live in them. sure int64[n, 3]:
    file blocks (first, end; rising) and their delta, where points at both ends have a run at.
    """

    start: int
    disk: VirtualDisk
    volumes: list[tuple[int, int]]
    files: Files
    sure: Int64s


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


class Mechanism(Protocol):
    """One kind of content pin. Guests come in one order, and number `k` is the same one in every call."""

    def want(self, guests: list[Guest]) -> bool:
        """Takes what the guests tell now; True when the image has to be seen (again)."""
        ...

    def see(self, data: npt.NDArray[np.uint8], at: int, length: int) -> None:
        """Image bytes from offset `at` on: `length` that are to be seen, and some behind them to read on in."""
        ...

    def points(self, number: int) -> Told:
        """What was found of guest `number`."""
        ...
