"""All ways to fill a gap in a file by whole stretches of the image, weighed: which stretch begins where in it.

A stretch is a piece of the image that is known to lie in one piece. Behind each comes any other, at odds that say how
well it goes on there; what is not among the stretches may be anything of any length. The sums over all ways that are
exactly as long as the gap, from its begin (forward) and from its end (backward), give the chance of each stretch at
each place: a hidden Markov model, as in `unit_order`. No way is followed by itself, and none is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Jumps = tuple[Singles, Singles]  # chance that the second comes behind the first; that none does
ABSENT = 0.2  # chance that what comes next is none of the stretches
HIDDEN = 0.15  # that a run ends amid a stretch which looks whole
SCALE = 1e18  # of sums on their way
MAX_WORK = 1 << 31  # ours: blocks times pairs of stretches
MAX_UNLIKELY = 1 << 27  # ours: the same, where the stretches may well be of another kind than the gap


@dataclass(frozen=True, slots=True)
class Gap:
    """blocks: of the gap. length int64[s] of the stretches in blocks, rising; odds float64[s, s]: how much likelier the
    second comes behind the first than any. next int64[s + 1]: which of them begins on the image where each ends, and
    where the left one ends, -1 none; stays float64[s + 1]: the chance that those two are one. ends float64[s]: the odds
    of each as the last, where no right end is known.

    left, right: what goes on from the piece before and up to the piece behind: (blocks, odds of every stretch behind
    or before it), None where that is not known. across: the odds of the right one behind the left one. borders: blocks
    of the gap over which no piece reaches, with the key in `meeting` of the odds, as above, of two that meet there.
    joints: of stretches that are several pieces, by number, the blocks at which the next one begins. likely: the chance
    that stretches of this kind fill it at all.
    """

    blocks: int
    length: Int64s
    odds: Floats
    next: Int64s
    stays: Floats
    ends: Floats
    left: tuple[int, Floats] | None
    right: tuple[int, Floats] | None
    rate: float  # breaks by block
    across: float = 1.0
    borders: dict[int, int] = field(default_factory=dict[int, int])
    meeting: dict[int, Floats] = field(default_factory=dict[int, Floats])
    joints: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    likely: float = 1.0


@dataclass(frozen=True, slots=True)
class Filled:
    """chance float64[blocks + 1, s]: that a stretch begins at a block of the gap; left, right: of what was given."""

    chance: Floats
    left: float
    right: float


def fill(gap: Gap) -> Filled | None:
    """The chances, None where the gap is too large to be asked."""
    n, count = gap.blocks, len(gap.length)
    if n * (count + 2) ** 2 > (MAX_WORK if gap.likely == 1.0 else MAX_UNLIKELY):
        return None
    left, right, size = count, count + 1, count + 2
    length = np.zeros(size, np.int64)
    length[:count] = gap.length
    odds = np.zeros((size, size))
    odds[:count, :count] = gap.odds
    if gap.left is not None:
        length[left], odds[left, :count] = gap.left[0], gap.left[1]
    if gap.right is not None:
        length[right], odds[:count, right] = gap.right[0], gap.right[1]
        odds[left, right] = gap.across if gap.left is not None else 0.0
    # short ones are seldom whole pieces: what others left, and what lies between pieces
    prior = np.minimum(np.maximum(length, 1), 1 / gap.rate)
    for k, joints in gap.joints.items():  # each of several pieces for itself
        prior[k] = np.minimum(np.diff([0, *joints, length[k]]), 1 / gap.rate).sum()
    prior[left] = 0.0
    prior[right] = 1 / gap.rate if gap.right is not None else 0.0  # it goes on behind the gap
    prior /= max(float(prior.sum()), 1.0)
    goes_on = np.flatnonzero(gap.next >= 0)
    amid = _normed(odds * prior, np.full(size, ABSENT), goes_on, gap)
    # another extent of the file begins there: what lies beside it on the image does not
    kinds: dict[int, Jumps] = {}
    for key, of_border in gap.meeting.items():
        met = odds.copy()
        met[:count, :count] = of_border
        kinds[key] = _normed(met * prior, np.full(size, ABSENT), goes_on[:0], gap)
    across = {x: kinds[key] for x, key in gap.borders.items()}
    # whether what comes before each is not known either, against what it would be if nothing spoke of it
    other = ABSENT / (ABSENT + (1 - ABSENT) * (odds * prior[:, None]).sum(axis=0))
    other[gap.next[goes_on]] *= 1 - gap.stays[goes_on]
    enter = np.append(prior[:right], 1.0) * gap.rate * other / ABSENT
    ends = np.zeros(size)
    if gap.right is None:
        ends[:count] = gap.ends
        ends[left] = 1.0
    # nothing known up to the very end, or beyond it
    out = 1.0 if gap.right is None else gap.rate * HIDDEN if gap.right[0] else 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        found = _sums(length, amid, across, prior, enter, ends, gap, out, np.float32)
    return found or _sums(length, amid, across, prior, enter, ends, gap, out, np.float64)


def _normed(jump: Floats, none: Floats, goes_on: Int64s, gap: Gap) -> Jumps:
    """(chance that the second comes behind the first, that none does). jump: the odds by how common each is; goes_on:
    those of which it is known what follows on the image."""
    jump = jump * (1 - ABSENT)
    jump[goes_on] *= 1 - gap.stays[goes_on, None]
    none[goes_on] *= 1 - gap.stays[goes_on]
    jump[goes_on, gap.next[goes_on]] += gap.stays[goes_on]
    all_ = jump.sum(axis=1) + none  # where one fits well, that speaks against all else
    return (jump / all_[:, None]).astype(np.float32), (none / all_).astype(np.float32)


def _sums(length: Int64s, amid: Jumps, across: dict[int, Jumps], prior: Floats, enter: Floats, ends: Floats, gap: Gap,
          out: float, real: type[np.float32 | np.float64]) -> Filled | None:
    """The sums over all ways, None where numbers of type `real` do not hold them. amid, across: of `_normed` for any
    block, and for borders; enter: chance that each comes behind a block of what is unknown; out: to leave that.

    Lengths rise: of the stretches, the first ones can have ended at a block, and the first ones can begin there. The
    sums are SCALE times too high on their way, for they are held as singles where that does: half of what is to be read
    for each block.
    """
    n, count = gap.blocks, len(gap.length)
    left, right = count, count + 1
    size = count + 2
    at = np.arange(n + 1)
    ended = np.searchsorted(length[:count], at, side="right").tolist()
    fits = np.searchsorted(length[:count], n - at, side="right").tolist()
    whole = _whole(length[:count], gap) if gap.borders else None
    begin, end = np.zeros((n + 1, size), real), np.zeros((n + 1, size), real)
    enters = enter.astype(real)
    lasts = 1 - gap.rate * (1 - ABSENT)
    hidden = HIDDEN if gap.left is not None and gap.left[0] else 0.0
    first = 1 - gap.likely * (1 - ABSENT) if gap.left is None else hidden  # that it begins with what is not known
    unknown = np.zeros(n + 2)  # that up to this block nothing known lies there
    last = n - int(length[right]) if gap.right is not None else -1
    of_left = int(length[left]) if gap.left is not None else -1  # blocks from the gap's begin
    numbers = np.arange(count)
    if gap.left is not None and of_left <= n:
        end[of_left, left] = SCALE * (1 - hidden)
    elif gap.left is None:
        begin[0, :count] = SCALE * gap.likely * (1 - ABSENT) * prior[:count]
        begin[0, right] = SCALE * gap.likely * (1 - ABSENT)  # where it reaches so far
    for x in range(n + 1):
        row, here, q, p = begin[x], end[x], ended[x], fits[x]
        jump, none = across.get(x, amid)
        row[:p] += here[:q] @ jump[:q, :p] + real(unknown[x]) * enters[:p]
        fresh = float(here[:q] @ none[:q])
        if x == of_left:
            row[:p] += here[left] * jump[left, :p]
            fresh += float(here[left]) * float(none[left])
        if x == last:
            row[right] += float(here[: right] @ jump[: right, right]) + unknown[x] * float(enters[right])
            end[n, right] += row[right]
        if whole is not None:
            row[:count] *= whole[x]
        end[x + length[:p], numbers[:p]] += row[:p]
        if x == 0:
            fresh += SCALE * first
        unknown[x + 1] = lasts * unknown[x] + fresh
    # weight behind an end, and from a begin on
    after, before = np.zeros((n + 1, size), real), np.zeros((n + 1, size), real)
    all_ = float(end[n, right]) + float(end[n] @ ends) + float(unknown[n]) * out
    from_unknown = leaves = 0.0
    out *= SCALE
    after[n] = ends * SCALE
    for x in range(n, -1, -1):
        row, here, q, p = after[x], before[x], ended[x], fits[x]
        jump, none = across.get(x, amid)
        here[:p] = after[x + length[:p], numbers[:p]]
        if whole is not None:
            here[:count] *= whole[x]
        if x == last:
            here[right] = SCALE
        if x < n:
            from_unknown = lasts * from_unknown + leaves
        row[:q] += jump[:q, :p] @ here[:p] + none[:q] * real(from_unknown)
        row[:q] += jump[:q, right] * here[right]
        if x == of_left:
            row[left] += float(jump[left, :p] @ here[:p]) + float(none[left]) * from_unknown
            row[left] += jump[left, right] * here[right]
        leaves = float(here[:p] @ enters[:p]) + float(enters[right]) * float(here[right]) + (out if x == n else 0.0)
    if real is np.float32 and not all(bool(np.isfinite(a).all()) for a in (begin, end, after, before)):
        return None
    if all_ <= 0:
        return Filled(np.zeros((n + 1, count)), 0.0, 0.0)
    all_ *= SCALE
    chance = begin.astype(np.float64) * before / all_
    kept = float(end[of_left, left]) * float(after[of_left, left]) / all_ if 0 <= of_left <= n else 0.0
    of_right = float(chance[last, right]) if gap.right is not None and last >= 0 else 0.0
    return Filled(chance[:, :count], kept, of_right)


def _whole(length: Int64s, gap: Gap) -> npt.NDArray[np.bool_]:
    """bool[blocks + 1, s]: whether a stretch that begins at a block has no piece that would reach over a border."""
    n = gap.blocks
    border = np.zeros(n + int(length.max(initial=0)) + 2, np.int64)
    border[list(gap.borders)] = 1
    before = np.concatenate(([0], np.cumsum(border)))  # borders before each block
    at = np.arange(n + 1)
    inside = before[np.minimum(at[:, None] + length, n)] - before[at + 1][:, None]
    for k, joints in gap.joints.items():
        inside[:, k] -= border[at[:, None] + np.array(joints, np.int64)].sum(axis=1)
    return inside <= 0
