"""From points to segments: which deltas of which containers the evidence of an image speaks for.

A point says that one block of a container's file lies at one block of the image. Points of one container and one delta
(image block - file block) that follow each other make a segment; each has a weight in bits. Chance agreements are many
and short, true ones long: a segment is believed when its weight is more than the number of places that it could have
had, and no block of a file and no block of the image belongs to two.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .state import Claims

Int64s = npt.NDArray[np.int64]
BLOCK = 4096
MAX_GAP = 4096  # ours: blocks between two points of one segment (16 MiB)
HOLE = 8  # free blocks between two points over which a segment does not reach
CLOSE = 8  # blocks between two points that belong to their segment whatever else speaks for others
AGAINST = 6.0  # bits: a file end inside a segment that is not where the segment has it
MAX_BREAKS = 4.0  # that a gap inside a segment should hold, where their rate is known
MARGIN = 10.0  # bits beyond the number of places that a segment could have had, where files hardly break
OFTEN, MARGIN_OFTEN = 1 / 64, 6.0  # breaks by block from which it needs no more than that: on three images in pieces of
# 64 KiB 48 of 51 segments with 6 to 10 were right, and 196 of 206 with 10 to 16
MAX_TIES = 4096  # ours: segments of several containers alike that are weighed against what else these may have
MAX_SEGMENTS = 200_000  # ours: candidates that are looked at, the heaviest first


@dataclass(frozen=True, slots=True)
class Points:
    """Arrays of equal length n: owner int64 (which container), file_block int64, delta int64 (blocks, counted from the
    container's first byte), bits float64. A file block may have rivals.
    """

    owner: Int64s
    file_block: Int64s
    delta: Int64s
    bits: npt.NDArray[np.float64]

    @classmethod
    def of(cls, parts: list[tuple[int, Int64s, Int64s, npt.NDArray[np.float64]]]) -> Points:
        """From (owner, file_block, delta, bits) groups."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        return cls(np.concatenate([np.full(len(f), o, np.int64) for o, f, _, _ in parts]),
                   np.concatenate([p[1] for p in parts]), np.concatenate([p[2] for p in parts]),
                   np.concatenate([p[3] for p in parts]))

    def __len__(self) -> int:
        return len(self.owner)


@dataclass(slots=True)
class Segment:
    """Blocks [first, last] of container `owner` lie at delta; `points` int64[n] are its pinned file blocks, rising.

    cuts: indices of points between which and the one before others own something.
    """

    owner: int
    delta: int
    points: Int64s
    bits: npt.NDArray[np.float64]
    weight: float
    cuts: list[int] = field(default_factory=list[int])

    @property
    def first(self) -> int:
        return int(self.points[0])

    @property
    def last(self) -> int:
        return int(self.points[-1])


@dataclass(slots=True)
class Taken:
    """What accepted segments own: image bytes, and file blocks per container."""

    image: Claims
    files: dict[int, Claims]

    def file(self, owner: int) -> Claims:
        return self.files.setdefault(owner, Claims())


def group(points: Points, wanted: dict[int, Int64s], free: dict[int, Int64s], rate: float = 0.0) -> list[Segment]:
    """Every run of points of one owner and delta.

    wanted: per owner the rising file blocks where a file ends: each that a segment passes over without a point counts
    against it. free: per owner, how many of the first k file blocks the guest holds free (int64[blocks + 1]): a segment
    does not pass over several, for the host file may have a hole there, and somebody else's bytes in its place. rate:
    breaks by block, where known: the more of them a gap should hold, the less its two ends belong together.
    """
    if len(points) == 0:
        return []
    order = np.lexsort((points.file_block, points.delta, points.owner))
    owner, f, delta = points.owner[order], points.file_block[order], points.delta[order]
    bits = points.bits[order]
    passed = np.zeros(len(f), np.int64)  # file ends up to this point, itself included
    padding = np.zeros(len(f), np.int64)
    for o, count in free.items():
        mine = owner == o
        padding[mine] = count[np.clip(f[mine], 0, len(count) - 1)]
    for o, ends in wanted.items():
        mine = owner == o
        passed[mine] = np.searchsorted(ends, f[mine], side="right")
    new = np.concatenate(([True], (owner[1:] != owner[:-1]) | (delta[1:] != delta[:-1])
                          | (f[1:] - f[:-1] > MAX_GAP) | (padding[1:] - padding[:-1] >= HOLE)))
    between = np.concatenate(([0], np.maximum(passed[1:] - passed[:-1] - 1, 0)))
    new |= between * AGAINST > 30.0
    breaks = np.concatenate(([0.0], np.maximum(f[1:] - f[:-1], 0) * rate))
    new |= breaks > MAX_BREAKS
    worth = bits - np.where(new, 0.0, AGAINST * between + breaks / np.log(2.0))
    start = np.flatnonzero(new)
    weight = np.add.reduceat(worth, start)
    stop = np.append(start[1:], len(f))
    keep = np.argsort(-weight, kind="stable")[:MAX_SEGMENTS]
    return [Segment(int(owner[start[i]]), int(delta[start[i]]), f[start[i]:stop[i]],
                    worth[start[i]:stop[i]], float(weight[i])) for i in keep.tolist()]


def accept(candidates: list[Segment], begins: dict[int, int], taken: Taken, least: float, unit: int = 1
           ) -> list[Segment]:
    """The segments of at least `least` bits, heaviest first; points that a heavier one owns are cut from the others.

    What two containers may have alike (records of NTFS do not name their volume) is that one's which has less to lay
    there instead: so both get the most together.

    begins: image offset of each container's first byte. `taken` grows by what is accepted: the blocks at and between
    points that lie close to each other. Wider gaps are left open, for what strongly speaks for another there; so
    segments come back in pieces without such gaps. unit: blocks that the host gives out together: a point owns all of
    its unit, and the pieces begin and end with one.
    """
    other = _elsewhere(candidates, begins, least)
    heap = [(-s.weight, other.get(i, 0.0), i) for i, s in enumerate(candidates) if s.weight >= least]
    heapq.heapify(heap)
    pool = list(candidates)
    out: list[Segment] = []
    while heap:
        _, _, i = heapq.heappop(heap)
        pieces = _pieces(pool[i], unit)
        free = [p for p in pieces if _free(p, begins[p.owner], taken)]
        if len(free) < len(pieces):
            kept = [s for p in pieces for s in _free_stretches(p, begins[p.owner], taken, unit)]
            left = _part(pool[i], kept) if kept else None
            if left is not None and left.weight >= least:
                heapq.heappush(heap, (-left.weight, 0.0, len(pool)))
                pool.append(left)
            continue
        for p in pieces:
            at = begins[p.owner] + p.delta * BLOCK
            taken.image.add_range(at + p.first * BLOCK, at + (p.last + 1) * BLOCK)
            taken.file(p.owner).add_range(p.first, p.last + 1)
        out += pieces
    return out


def _elsewhere(candidates: list[Segment], begins: dict[int, int], least: float) -> dict[int, float]:
    """By the number of a segment that several containers may have alike: what its own container's heaviest segment for
    these file blocks weighs that lies elsewhere."""
    alike: dict[tuple[float, int, int], list[int]] = {}
    mine: dict[int, list[int]] = {}
    for i, s in enumerate(candidates):
        if s.weight >= least:
            alike.setdefault((s.weight, begins[s.owner] // BLOCK + s.delta + s.first, len(s.points)), []).append(i)
            mine.setdefault(s.owner, []).append(i)
    tied = [i for group in alike.values() if len({candidates[i].owner for i in group}) > 1 for i in group]
    columns = {o: np.array([(s.first, s.last, s.delta) for s in (candidates[i] for i in which)], np.int64)
               for o, which in mine.items()} if tied else {}
    weight = {o: np.array([candidates[i].weight for i in mine[o]]) for o in columns}
    out: dict[int, float] = {}
    for i in tied[:MAX_TIES]:
        s = candidates[i]
        first, last, delta = columns[s.owner].T
        out[i] = float(weight[s.owner][(first <= s.last) & (last >= s.first) & (delta != s.delta)].max(initial=0.0))
    return out


@dataclass(slots=True)
class _Piece(Segment):
    """A part of a segment; start: index of its first point in the segment; own: its points without weightless ends."""

    start: int = 0
    own: Int64s = field(default_factory=lambda: np.empty(0, np.int64))


def _pieces(segment: Segment, unit: int) -> list[_Piece]:
    """The segment cut at its wide gaps. Of units: with a weightless point at each end of the piece's units."""
    points = segment.points
    apart = (points[1:] - points[:-1] > CLOSE) & (points[1:] // unit != points[:-1] // unit)
    apart[[i - 1 for i in segment.cuts]] = True
    cut = [0, *(np.flatnonzero(apart) + 1).tolist(), len(points)]
    out: list[_Piece] = []
    for a, b in zip(cut, cut[1:], strict=False):
        f, bits = points[a:b], segment.bits[a:b]
        if unit > 1:
            low, high = int(f[0]) // unit * unit, int(f[-1]) // unit * unit + unit - 1
            more = int(low < f[0]), int(high > f[-1])
            f = np.pad(f, more, constant_values=(low, high))
            bits = np.pad(bits, more)
        out.append(_Piece(segment.owner, segment.delta, f, bits, float(bits.sum()), [], a, points[a:b]))
    return out


def _free(p: Segment, begin: int, taken: Taken) -> bool:
    base = begin + p.delta * BLOCK
    low, high = base + p.first * BLOCK, base + (p.last + 1) * BLOCK
    return low >= 0 and not taken.file(p.owner).overlap(p.first, p.last + 1) and not taken.image.overlap(low, high)


def _free_stretches(p: _Piece, begin: int, taken: Taken, unit: int) -> list[list[int]]:
    """Indices in the segment of the piece's points that nobody owns, parted where others own what lies between."""
    if unit > 1:
        free = _in_free_units(p, begin, taken, unit)
        return [free] if free else []
    base = begin + p.delta * BLOCK
    files = taken.file(p.owner)
    out: list[list[int]] = []
    last = -1  # the block of the last point that is kept
    for k, f in enumerate(p.points.tolist()):
        if base + f * BLOCK < 0 or files.overlap(f, f + 1) or \
                taken.image.overlap(base + f * BLOCK, base + (f + 1) * BLOCK):
            continue
        joined = out and not files.overlap(last, f) and not taken.image.overlap(base + last * BLOCK, base + f * BLOCK)
        if joined:
            out[-1].append(p.start + k)
        else:
            out.append([p.start + k])
        last = f
    return out


def _in_free_units(p: _Piece, begin: int, taken: Taken, unit: int) -> list[int]:
    """The same where a point owns its unit: those in units that nobody owns."""
    stated = p.own // unit
    free: list[int] = []
    for u in np.unique(stated).tolist():
        low = begin + (u * unit + p.delta) * BLOCK
        if low >= 0 and not taken.file(p.owner).overlap(u * unit, (u + 1) * unit) and \
                not taken.image.overlap(low, low + unit * BLOCK):
            free.append(u)
    return (np.flatnonzero(np.isin(stated, free)) + p.start).tolist()


def _part(segment: Segment, stretches: list[list[int]]) -> Segment:
    picked = [k for stretch in stretches for k in stretch]
    cuts = np.cumsum([len(stretch) for stretch in stretches])[:-1].tolist()
    points, bits = segment.points[picked], segment.bits[picked]
    return Segment(segment.owner, segment.delta, points, bits, float(bits.sum()), cuts)


def least_weight(places: int, rate: float = 0.0) -> float:
    """Bits that a segment needs which could have lain at so many places. rate: breaks by block, 0 unknown: a segment of
    its own is one break more, and the likelier the oftener files break."""
    margin = np.clip(MARGIN_OFTEN + np.log2(OFTEN / rate), MARGIN_OFTEN, MARGIN) if rate else MARGIN
    return float(margin) + float(np.log2(max(places, 2)))
