"""Logs: time stamps rise through a file, so a stretch that begins just after what is placed has ended comes next.

Each block of the image that is text with time stamps is noted with its first and last. Behind the last placed block of
a log comes the only stretch of free blocks whose stamps begin within a quarter of the time that a block spans, and
before the first one the only one that ends so; and so on from there, up to the next block that is placed. Where two
stretches would do neither is taken; where another block of the image logs the same moment (machines have several logs,
and images several machines) the words at the border must go on as well (`joins`).
Memory: 24 bytes for each block of logs on the image, 16 for each that is placed so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...model import Reader
from ..tails import to_file
from .followed import Followed
from .joins import REACH, STAMP, before, behind, foretold, may_be_stamped, seconds
from .want import BLOCK, Guest, Int64s, U8s, in_phase

HEAD, ENDS = 64, 512  # bytes at a block's begin that must be text; bytes at both ends that must have a stamp
MAX_BLOCKS = 1 << 20  # ours: blocks of logs of one image
MAX_FILES = 1 << 16  # ours: files of one guest that are followed
BESIDE = 2  # blocks beside a sure run that are taken for its own: the one with a log's end has stamps at no end
NEAR = 0.25  # of the time that a block spans, between the last stamp of one block and the first of the next


@dataclass(slots=True)
class Times(Followed):
    """Mechanism: see the package."""

    image: Reader = field(kw_only=True)
    _noted: list[tuple[int, float, float]] = field(default_factory=list[tuple[int, float, float]])
    """image block, first and last stamp (Unix seconds)"""

    def see(self, data: U8s, at: int, length: int) -> None:
        first, blocks = in_phase(data, at, length, self._guests[0].start % BLOCK)
        self._blocks += len(blocks)
        head = blocks[:, :HEAD]
        text = np.flatnonzero((((head >= 32) & (head < 127)) | (head == 9) | (head == 10) | (head == 13)).all(axis=1))
        likely = may_be_stamped(blocks[text, :ENDS]) & may_be_stamped(blocks[text, -ENDS:])
        for i in text[likely].tolist():
            if len(self._noted) >= MAX_BLOCKS:
                break
            block = blocks[i].tobytes()
            begin, ends = STAMP.search(block, 0, ENDS), list(STAMP.finditer(block, BLOCK - ENDS))
            low, high = (seconds(begin), seconds(ends[-1])) if begin and ends else (None, None)
            if low is not None and high is not None and low <= high:
                self._noted.append(((at + first) // BLOCK + i, low, high))

    def follow(self) -> None:
        noted = np.array(sorted(self._noted), np.float64).reshape(-1, 3)
        place = noted[:, 0].astype(np.int64)
        logged = set(place.tolist())
        taken = np.zeros(len(place), np.bool_)
        wider = [_wider(g, logged) for g in self._guests]
        for g, runs in zip(self._guests, wider, strict=True):
            for a, b, d in runs:
                low, high = np.searchsorted(place, [g.start // BLOCK + a + d, g.start // BLOCK + b + d])
                taken[low:high] = True
        phase = self._guests[0].start % BLOCK
        log = _Log(self.image, phase, place, noted[:, 1:], np.sort(noted[:, 1]), np.sort(noted[:, 2]))
        stretches = _Stretches.of(place[~taken], noted[~taken, 1:])
        if not len(stretches.first):
            return
        claims: dict[int, set[tuple[int, int]]] = {}  # of each stretch: guest, file block of its first block
        freed: dict[int, set[tuple[int, int]]] = {}  # the same of logs that were deleted: they lie in what is free now
        for k, guest in enumerate(self._guests):
            if guest.start % BLOCK != self._guests[0].start % BLOCK:
                continue
            where = _placed(guest, wider[k])
            vacant = [np.arange(a, b) for a, b in guest.vacant.tolist()]
            for rows, told in ((_in_order(guest), claims), (vacant, freed)):
                for blocks in rows[:MAX_FILES]:
                    for s, first in stretches.beside(blocks, where, log):
                        told.setdefault(s, set()).add((k, first))
        for s, told in (freed | claims).items():
            if len(told) == 1:
                (k, first), = told
                n = int(stretches.count[s])
                known = _placed(self._guests[k], self._guests[k].sure.tolist())
                for i in range(n):
                    if first + i not in known:
                        self._found[k].setdefault(first + i, int(stretches.first[s]) + i)


@dataclass(frozen=True, slots=True)
class _Log:
    """All blocks of logs of the image: place int64[n], rising; stamps float64[n, 2]; first and last ones, rising."""

    image: Reader
    phase: int
    place: Int64s
    stamps: npt.NDArray[np.float64]
    first: npt.NDArray[np.float64]
    last: npt.NDArray[np.float64]

    def goes_on(self, a: int, b: int, time: float) -> bool:
        """Whether image block `b` may follow `a`, which ends (or begins, where `b` is before it) at a time."""
        at_once = np.searchsorted(self.first, time, side="right") - np.searchsorted(self.last, time, side="left")
        if at_once <= 1:
            return True  # its own block
        left = self.image.read((a + 1) * BLOCK + self.phase - REACH, REACH)
        return foretold(before(left), behind(self.image.read(b * BLOCK + self.phase, REACH))) >= 0


@dataclass(frozen=True, slots=True)
class _Stretches:
    """Free blocks of the image whose stamps go on from one to the next: arrays of first block, blocks, first and last
    stamp, and seconds that a block spans."""

    first: Int64s
    count: Int64s
    begin: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    span: npt.NDArray[np.float64]

    @classmethod
    def of(cls, place: Int64s, stamps: npt.NDArray[np.float64]) -> _Stretches:
        span = np.maximum(stamps[:, 1] - stamps[:, 0], 1.0)
        gap = stamps[1:, 0] - stamps[:-1, 1]
        goes_on = (np.diff(place) == 1) & (gap >= 0) & (gap <= NEAR * span[:-1])
        start = np.flatnonzero(np.concatenate(([True], ~goes_on))[: len(place)])
        stop = np.append(start[1:], len(place)) if len(start) else start
        return cls(place[start], stop - start, stamps[start, 0], stamps[stop - 1, 1], span[start])

    def beside(self, blocks: Int64s, where: dict[int, int], log: _Log) -> list[tuple[int, int]]:
        """(stretch, file block of its first) of those that follow or precede what is placed of a file, whose blocks
        in order are blocks int64[n]."""
        out: list[tuple[int, int]] = []
        known = np.array([where.get(b, -1) for b in blocks.tolist()], np.int64)
        i = np.minimum(np.searchsorted(log.place, known), max(len(log.place) - 1, 0))
        logged = (known >= 0) & (log.place[i] == known)
        for ahead in (True, False):
            step = 1 if ahead else -1
            for j in np.flatnonzero(logged).tolist():
                at = j + step
                low, high = log.stamps[i[j]].tolist()
                edge = int(known[j])
                time, span = (high if ahead else low), max(high - low, 1.0)
                while 0 <= at < len(blocks) and known[at] < 0:
                    near = (self.begin - time if ahead else time - self.end)
                    fits = [s for s in np.flatnonzero((near >= 0) & (near <= NEAR * span)).tolist()
                            if (log.goes_on(edge, int(self.first[s]), time) if ahead else
                                log.goes_on(int(self.first[s] + self.count[s]) - 1, edge, time))]
                    if len(fits) != 1:
                        break
                    s = fits[0]
                    n = int(self.count[s])
                    edge = int(self.first[s]) + (n - 1 if ahead else 0)
                    run = blocks[at : at + n] if ahead else blocks[max(0, at - n + 1) : at + 1]
                    if len(run) and int(run[-1] - run[0]) == n - 1 == len(run) - 1:
                        out.append((s, int(run[0])))
                    at += step * n
                    time = float(self.end[s] if ahead else self.begin[s])
        return out


def _wider(guest: Guest, logged: set[int]) -> list[tuple[int, int, int]]:
    """The sure runs, each with some blocks more on a side where its last one has no stamps at both ends."""
    out: list[tuple[int, int, int]] = []
    for a, b, d in guest.sure.tolist():
        at = guest.start // BLOCK + d
        out.append((a if at + a in logged else max(a - BESIDE, 0), b if at + b - 1 in logged else b + BESIDE, d))
    return out


def _placed(guest: Guest, runs: list[tuple[int, int, int]]) -> dict[int, int]:
    """The image block of each file block of some runs."""
    out: dict[int, int] = {}
    for a, b, d in runs:
        out.update(zip(range(a, b), range(guest.start // BLOCK + a + d, guest.start // BLOCK + b + d), strict=True))
    return out


def _in_order(guest: Guest) -> list[Int64s]:
    """The container's blocks that lie whole in each file, in the file's order."""
    out: list[Int64s] = []
    f = to_file(guest.disk.map, guest.files.run[:, 2])
    last = to_file(guest.disk.map, guest.files.run[:, 2] + guest.files.run[:, 3] - 1)
    for number in np.unique(guest.files.run[:, 0]).tolist():
        rows = np.flatnonzero(guest.files.run[:, 0] == number)
        parts = [np.arange(-(-f[r] // BLOCK), (last[r] + 1) // BLOCK) for r in rows.tolist()
                 if f[r] >= 0 and last[r] - f[r] == guest.files.run[r, 3] - 1]
        if parts:
            out.append(np.concatenate(parts))
    return out
