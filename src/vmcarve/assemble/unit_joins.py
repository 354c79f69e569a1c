"""What speaks for one unit of a container being the guest's next behind another one: how the bytes on both sides go on.

Inside a file content stays of its kind and text goes on amid a word (`content/joins.py`). And what is zero lies
together: behind a block of zeros mostly comes another one, in the same unit or in the next. How often it does is
counted inside the units. So where the guest has nothing (a unit of zeros is not stored), the units around mostly end
and begin with zeros; and of two units that follow each other rarely one side of the border alone is zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import Reader
from .content.joins import REACH, STAYS, Kind, Shares, Side, before, behind, bits
from .unit_grid import Grid

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

INSIDE = 0.7  # share of the borders of units that lie inside a file
MAX_JOINED = 1 << 14  # ours: units of which what goes on is asked
AHEAD = 16  # units of the file up to which texts and numbers are asked whether they go on; behind them kinds are
WRONG = 0.01  # chance of a link that is none
STORED, MOST_SHOWN = 0.95, 0.99  # shares of the units behind which another one is stored, and of those that can show it
SEEN = 4.0  # pairs of blocks that count as much as there being no rule


@dataclass(frozen=True, slots=True)
class Borders:
    """Nats, of n units. link float32[n, n]: for unit j being the guest's next behind unit i. out, into float64[n]: for
    nothing being behind unit i in the guest, and before it. in_turns: the file shows that several writes were under
    way.
    """

    link: Singles
    out: Floats
    into: Floats
    in_turns: bool = False

    @classmethod
    def none(cls, n: int) -> Borders:
        return cls(np.zeros((n, n), np.float32), np.zeros(n), np.zeros(n))

    @classmethod
    def of(cls, image: Reader, grid: Grid, number: Int64s, zeros: Zeros, links: Int64s) -> Borders:
        """Of the units number int64[n], rising, of those in the image; zeros: of these; links: see `model.Stowed`."""
        sides = [_sides(image, i, grid) for i in number.tolist()]
        there = np.array([_there(image, i, grid) for i in number.tolist()], np.bool_).reshape(-1, 2)
        link = _by_kind(sides)
        shares = Shares.of((b.kind, b.fill) for _, b in sides)
        for i, (end, _) in enumerate(sides):
            if end.kind in (Kind.DENSE, Kind.FILL):
                continue
            for j in range(i + 1, int(np.searchsorted(number, number[i] + AHEAD, "right"))):
                if sides[j][1].kind == end.kind:
                    link[i, j] = _nats(bits(end, sides[j][1], shares))
        link[~there[:, 1]] = 0.0
        link[:, ~there[:, 0]] = 0.0
        link += zeros.follows()
        out, into = zeros.out(), zeros.into()
        _by_links(number, links, link, out, into)
        shown = np.count_nonzero(links[number, 0] >= 0)
        return cls(link.astype(np.float32), out, into, bool(2 * shown > np.count_nonzero(links[number, 0] >= -1)))


def _by_links(number: Int64s, links: Int64s, link: Floats, out: Floats, into: Floats) -> None:
    """Adds what `Stowed.links` says of the units number int64[n] to the nats of `Borders`.

    A unit with a link has that next one. Where one would show and does not, it is likelier that nothing is stored
    behind, the more so the more of the units have one.
    """
    for side, alone in ((0, out), (1, into)):
        mine = links[number, side]
        shown = mine >= 0
        share = np.count_nonzero(shown) / max(1, np.count_nonzero(mine >= -1))
        rows = link if side == 0 else link.T
        rows[shown] += np.log(WRONG)
        alone[shown] += np.log(WRONG)
        rows[mine == -1] += np.log(1.0 - share * MOST_SHOWN) - np.log(1.0 - share * MOST_SHOWN * STORED)
        alone[mine == -1] -= np.log(1.0 - share * MOST_SHOWN * STORED)
    told = np.flatnonzero((links[number, 0] >= 0) & np.isin(links[number, 0], number))
    link[told, np.searchsorted(number, links[number[told], 0])] += np.log(len(number)) - 2 * np.log(WRONG)


@dataclass(frozen=True, slots=True)
class Zeros:
    """Whether the first and the last block of each of n units holds anything, and how that goes on.

    first, last int64[n]: 1, 0, or 2 where it is not known. goes_on float64[3, 3], nats: for a block being followed by
    one, more than by any.
    """

    first: Int64s
    last: Int64s
    goes_on: Floats

    @classmethod
    def of(cls, full: Bools, known: Bools) -> Zeros:
        """full, known bool[n, blocks]: whether each block of each unit holds anything, and whether that is known."""
        state = np.where(known, full.astype(np.int64), 2)
        share = np.bincount(state[known], minlength=2)[:2] + 0.5
        share = share / share.sum()
        pairs = np.tile(SEEN * share, (2, 1))
        both = known[:, :-1] & known[:, 1:]
        np.add.at(pairs, (state[:, :-1][both], state[:, 1:][both]), 1.0)
        goes_on = np.zeros((3, 3))
        goes_on[:2, :2] = np.log(pairs / pairs.sum(axis=1, keepdims=True) / share)
        return cls(state[:, 0], state[:, -1], goes_on)

    def follows(self) -> Floats:
        """float64[n, n], nats: for unit j following unit i."""
        return self.goes_on[self.last[:, None], self.first[None, :]]

    def out(self) -> Floats:
        """float64[n], nats: for zeros following a unit."""
        return self.goes_on[self.last, 0]

    def into(self) -> Floats:
        """float64[n], nats: for a unit following zeros."""
        return self.goes_on[0, self.first]


def joined(image: Reader, grid: Grid) -> Floats:
    """float64[n - 1], nats: what speaks for a unit being the guest's next behind the one before it, by what goes on.

    Most borders of units lie inside files; at the others anything may follow. Where a side is as even as ciphertext it
    may be that, and says nothing.
    """
    n = grid.count
    out = np.zeros(max(0, n - 1))
    if n > MAX_JOINED:
        return out
    sides = [_sides(image, i, grid) for i in range(n)]
    shares = Shares.of((b.kind, b.fill) for _, b in sides)
    for i in range(n - 1):
        even = Kind.DENSE in (sides[i][0].kind, sides[i + 1][1].kind)
        if not even and _there(image, i, grid)[1] and _there(image, i + 1, grid)[0]:
            out[i] = _nats(bits(sides[i][0], sides[i + 1][1], shares))
    return out


def _sides(image: Reader, i: int, grid: Grid) -> tuple[Side, Side]:
    """The side of the border behind unit i, and that of the one before it."""
    reach, at = min(REACH, grid.unit), grid.at(i, 0)
    return (before(image.read(at + grid.unit - reach, reach).ljust(reach, b"\0")),
            behind(image.read(at, reach).ljust(reach, b"\0")))


def _there(image: Reader, i: int, grid: Grid) -> tuple[bool, bool]:
    """Whether the first and the last bytes of unit i are there."""
    reach, at = min(REACH, grid.unit), grid.at(i, 0)
    return not image.missing(at, reach), not image.missing(at + grid.unit - reach, reach)


def _nats(worth: float) -> float:
    return float(np.log(INSIDE * 2.0**worth + 1.0 - INSIDE))


def _by_kind(sides: Sequence[tuple[Side, Side]]) -> Floats:
    """float64[n, n], nats: for the second side of unit j following the first of unit i, by the kinds of content.

    As `bits` has them, and nothing of what may be ciphertext on one side only.
    """
    shares = Shares.of((b.kind, b.fill) for _, b in sides)
    end, begin = (np.array([(s[k].kind, s[k].fill) for s in sides], np.int64).reshape(-1, 2) for k in (0, 1))
    share = np.array([shares[s] for s, _ in sides])
    same = (end[:, None] == begin[None, :]).all(axis=2)
    fills = (end[:, None, 0] == Kind.FILL) | (begin[None, :, 0] == Kind.FILL)
    zero = (end[:, None, 1] == 0) | (begin[None, :, 1] == 0)
    worth = np.where(same, np.log2(STAYS / share)[:, None],
                     np.where(fills, 0.0, np.log2((1 - STAYS) / np.maximum(1 - share, 0.1))[:, None]))
    return np.where(zero, 0.0, np.log(INSIDE * 2.0**worth + 1.0 - INSIDE))
