"""Parts of a guest's own files that hold one byte over and over: whatever has that byte is equal to what is lost.

NTFS fills $LogFile with FF when it makes or empties it (`HostKind.fills`). Which of several such stretches of the image
is this volume's nothing tells, and nothing depends on it. Each stretch is given to one gap, as it fits; what was given
once stays. Nothing is asked where the map shows that a part was written, as on any NTFS that Windows has used for long.
Memory: 16 bytes for each stretch of a fill on the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ...registry import hosts
from ..asked import asked
from ..segments import least_weight
from ..tails import to_file
from .want import BLOCK, Guest, Int64s, Told, U8s, in_phase

Span = tuple[int, int, int]  # guest, first file block, end
MAX_STRETCHES = 1 << 20  # ours: of one image
MAX_SPANS = 1 << 16  # ours: parts of the files of one guest
SAMPLES = 64  # blocks of a part that are looked at


@dataclass(slots=True)
class Fills:
    """Mechanism: see the package."""

    _guests: list[Guest] = field(default_factory=list[Guest])
    _wanted: dict[int, list[Span]] = field(default_factory=dict[int, list[Span]])  # by byte
    _seen: set[int] = field(default_factory=set[int])  # bytes
    _stretches: dict[int, list[Int64s]] = field(default_factory=dict[int, list[Int64s]])  # by byte: first block, end
    _given: dict[Span, int] = field(default_factory=dict[Span, int])  # image block of the first
    _blocks: int = 2

    def want(self, guests: list[Guest]) -> bool:
        self._guests = guests
        self._wanted = {}
        for k, guest in enumerate(guests):
            if guest.start % BLOCK != guests[0].start % BLOCK:
                continue
            for byte, first, end in _spans(guest)[:MAX_SPANS]:
                self._wanted.setdefault(byte, []).append((k, first, end))
        if set(self._wanted) <= self._seen:
            self._give()
            return False
        self._seen |= set(self._wanted)
        self._stretches, self._blocks = {}, 2
        return True

    def see(self, data: U8s, at: int, length: int) -> None:
        self._blocks += length // BLOCK
        first, blocks = in_phase(data, at, length, self._guests[0].start % BLOCK)
        for byte in self._seen:
            row = np.flatnonzero((blocks[:, 0] == byte) & (blocks[:, -1] == byte))
            row = row[(blocks[row] == byte).all(axis=1)]
            cut = np.flatnonzero(np.diff(row) != 1) + 1
            ends = np.stack((row[np.concatenate(([0], cut))], row[np.concatenate((cut, [len(row)])) - 1] + 1), axis=1) \
                if len(row) else np.empty((0, 2), np.int64)
            self._stretches.setdefault(byte, []).append(ends + (at + first) // BLOCK)

    def points(self, number: int) -> Told:
        if not self._given:
            self._give()
        guest = self._guests[number]
        step = guest.unit.blocks
        parts = [(first, end, block - first) for (g, first, end), block in self._given.items() if g == number]
        worth = 2 * (least_weight(self._blocks) + 1.0)
        if guest.unit.by_order:  # each unit has its own point
            rows = [(at, delta, worth * (min(at + step, end) - at) / step) for first, end, delta in parts
                    for at in range(first, end, step)]
        else:
            rows = [(at, delta, worth / (end - first)) for first, end, delta in parts for at in range(first, end)]
        f, delta, bits = (np.array([r[k] for r in rows]) for k in range(3))
        return Told(f.astype(np.int64), delta.astype(np.int64) - guest.start // BLOCK, bits.astype(np.float64),
                    np.empty(0, np.int64))

    def _give(self) -> None:
        """Gives stretches that nobody has to gaps that nothing fills, each as it fits.

        Units that were placed by their order alone have nothing for sure: what is given must say so.
        """
        unit, rest = (self._guests[0].unit.blocks, self._guests[0].unit.rest) if self._guests else (1, 0)
        sure = [(k, *row) for k, g in enumerate(self._guests)
                for row in (g.sure.tolist() if not g.unit.by_order else ())]
        taken = _Ranges([(self._guests[k].start // BLOCK + a + d, self._guests[k].start // BLOCK + b + d)
                         for k, a, b, d in sure] + [(p, p + b - a) for (_, a, b), p in self._given.items()])
        for byte, spans in self._wanted.items():
            free = [piece for part in self._stretches.get(byte, []) for a, b in part.tolist()[:MAX_STRETCHES]
                    for piece in taken.outside(a, b, unit, rest)]
            free.sort(key=lambda s: s[0] - s[1])
            for k, first, end in spans:
                have = _Ranges([(a, b) for g, a, b, _ in sure if g == k]
                               + [(a, b) for (g, a, b) in self._given if g == k])
                for low, high in have.outside(first, end, unit, 0):
                    at = low
                    while at < high and free:
                        a, b = free.pop(0)
                        n = min(b - a, high - at)
                        if unit > 1 and (a - at - rest) % unit:
                            break
                        self._given[k, at, at + n] = a
                        if a + n < b:
                            free.insert(0, (a + n, b))
                        at += n


class _Ranges:
    """Ranges of numbers, any order and overlap."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        rows = np.array(sorted(ranges), np.int64).reshape(-1, 2)
        self._first, self._end = rows[:, 0], np.maximum.accumulate(rows[:, 1])

    def outside(self, low: int, high: int, unit: int, rest: int) -> list[tuple[int, int]]:
        """The parts of [low, high) outside all ranges, cut at multiples of the unit plus `rest`."""
        out: list[tuple[int, int]] = []
        at = low
        i = int(np.searchsorted(self._end, low, side="right"))
        while at < high:
            stop = min(high, int(self._first[i])) if i < len(self._first) else high
            while at < stop:
                cut = min(stop, at + unit - (at - rest) % unit) if unit > 1 else stop
                out.append((at, cut))
                at = cut
            if i >= len(self._first):
                break
            at = max(at, int(self._end[i]))
            i += 1
        return out


def _spans(guest: Guest) -> list[tuple[int, int, int]]:
    """(byte, first file block, end) of the whole blocks that the guest's own files fill."""
    out: list[tuple[int, int, int]] = []
    for offset, size in guest.volumes:
        for kind in hosts().values():
            found = None if kind.fills is None else asked(partial(kind.fills, guest.disk, offset, size), None)
            for at, n, byte in found.tolist() if found is not None else ():
                f, last = to_file(guest.disk.map, np.array([at, at + n - 1], np.int64)).tolist()
                if f >= 0 and last - f == n - 1 and not _written(guest, at, n, byte):
                    out.append((byte, -(-f // BLOCK), (f + n) // BLOCK))
    return [s for s in out if s[2] > s[1]]


def _written(guest: Guest, at: int, length: int, byte: int) -> bool:
    """Whether any of some blocks of a part that the map has holds anything else."""
    for block in range(at, at + length - BLOCK + 1, max(BLOCK, length // SAMPLES // BLOCK * BLOCK)):
        if not guest.disk.missing(block, BLOCK) and guest.disk.read(block, BLOCK) != bytes([byte]) * BLOCK:
            return True
    return False
