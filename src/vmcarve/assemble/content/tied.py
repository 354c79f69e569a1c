"""Stretches of an image that surely follow each other in some file, whoever's it is: chains.

Where a log's time stamps or numbered lines go on from one stretch in exactly one other, and lead up to that from
exactly this one, the two are one after the other in a file, though nothing tells yet in which. Tied so, hundreds of
short pieces become a few long rows: what fills a gap is then found by far fewer and far longer parts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .want import Int64s
from .ways import ABSENT, Floats

SURE_BESIDE = 0.97  # chance from which what lies beside each other on the image is
SURE = 0.8  # chance in both directions from which two are tied: of 464 on two images 15 may have been wrong


def ties(odds: npt.NDArray[np.float32], weight: Floats, begun: Floats, ended: Floats, next_: Int64s, stays: Floats
         ) -> Int64s:
    """int64[n]: which stretch comes behind each, -1 where that is not sure.

    odds float32[n, n]: how much likelier the second comes behind the first than any; weight float64[n]: how common each
    is; begun, ended: the chance that what comes before each, or behind it, is known to be none of them. next_, stays:
    which of them begins on the image where each ends, -1 none, and the chance that it goes on there.
    """
    n = len(odds)
    if not n:
        return np.empty(0, np.int64)
    share = (1 - ABSENT) * weight / max(float(weight.sum()), 1e-9)
    every = np.arange(n)
    from_each = odds @ share.astype(np.float32) - odds[every, every] * share + ABSENT
    to_each = share.astype(np.float32) @ odds - odds[every, every] * share + ABSENT
    after = np.full(n, -1, np.int64)
    for first in range(0, n, 256):
        rows = odds[first : first + 256].astype(np.float64)
        at = np.arange(len(rows))
        rows[at, first + at] = 0.0
        onward = rows * share * (1 - begun) / from_each[first : first + len(rows), None]
        back = rows * share[first : first + len(rows), None] / to_each
        both = np.minimum(onward * (1 - ended[first : first + len(rows), None]), back)
        best = both.argmax(axis=1)
        after[first : first + len(rows)] = np.where(both[at, best] >= SURE, best, -1)
    led = np.zeros(n, np.bool_)
    led[after[after >= 0]] = True
    stay = (after < 0) & (next_ >= 0) & (stays >= SURE_BESIDE) & ~led[next_]
    after[stay] = next_[stay]
    return after


@dataclass(frozen=True, slots=True)
class Chains:
    """Rows of stretches with their blocks, the longest first; stretches of no chain are rows of one."""

    rows: list[tuple[int, list[int]]]
    count: list[int]
    place: dict[int, tuple[int, int]]  # of each stretch: its row, and its number there

    @classmethod
    def of(cls, after: Int64s, count: Int64s) -> Chains:
        """after: see ties; count int64[n]: the blocks of each."""
        follows = np.zeros(len(after), np.bool_)
        follows[after[after >= 0]] = True
        seen = np.zeros(len(after), np.bool_)
        rows: list[tuple[int, list[int]]] = []
        each = count.tolist()
        for k in [*np.flatnonzero(~follows).tolist(), *np.flatnonzero(follows).tolist()]:  # rings last, cut anywhere
            row: list[int] = []
            while k >= 0 and not seen[k]:
                seen[k] = True
                row.append(k)
                k = int(after[k])
            if row:
                rows.append((sum(each[k] for k in row), row))
        rows.sort(key=lambda row: -row[0])
        return cls(rows, each, {k: (i, n) for i, (_, row) in enumerate(rows) for n, k in enumerate(row)})

    def from_(self, stretch: int, room: int, back: bool = False) -> list[int]:
        """A stretch and those of its row that come behind it, or before it (`back`), the nearest first: as many as so
        many blocks have room for."""
        i, n = self.place[stretch]
        row = self.rows[i][1]
        beside = row[:n][::-1] if back else row[n + 1 :]
        out = [stretch]
        for k in beside:
            room -= self.count[k]
            if room < 0:
                break
            out.append(k)
        return out

    def upto(self, blocks: int, used: Collection[int]) -> list[tuple[int, list[int]]]:
        """The rows of so many blocks at most, the longest first, parted where a stretch is used otherwise. Those that
        are longer come apart: a tie may be wrong."""
        out: list[tuple[int, list[int]]] = []
        for size, row in self.rows:
            if size > blocks:
                out += [(self.count[k], [k]) for k in row if self.count[k] <= blocks and k not in used]
            elif used and any(k in used for k in row):
                part: list[int] = []
                for k in [*row, -1]:
                    if k < 0 or k in used:
                        out += [(sum(self.count[i] for i in part), part)] if part else []
                        part = []
                    else:
                        part.append(k)
            else:
                out.append((size, row))
        return sorted(out, key=lambda row: -row[0])
