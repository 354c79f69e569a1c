"""Which parts of a file were encrypted, where an attack took parts of it at a period: every tenth MiB, three of ten.

Whoever encrypts in parts to save time takes them by their place in the file. So there is a period after which the same
parts are as even as random bytes again, over the whole file, and they begin and end at multiples of 64 KiB with other
bytes beside them. Compressed files of the guest are as even, but lie anywhere. What speaks for a period is counted as
how unlikely those begins and ends are where they lie, against how many periods and parts there are to choose from.
Other files of the host were encrypted likewise, though some are too even or too short to show it: they need not speak
against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

PER = 16  # blocks of a part: 64 KiB
LEAST_BITS = 5.0  # by which a period must be likelier than none: before anything is seen one is as likely as the other
LEAST_RUN_BITS = 6.0  # and with one more run in it than without
MOST_LENGTH_BITS = 3.0  # that the length of what begins at one place is worth
LEAST_SEEN = 2  # times that a part must be seen


@dataclass(frozen=True, slots=True)
class Stride:
    """period: parts after which the same ones are encrypted again. runs: (first, end) of those in it, rising."""

    period: int
    runs: tuple[tuple[int, int], ...]

    def ranges(self, parts: int) -> Iterator[tuple[int, int]]:
        """(first, end) of the encrypted parts of a file of `parts`, rising."""
        for begin in range(0, parts, self.period):
            for first, end in self.runs:
                if begin + first < parts:
                    yield begin + first, min(begin + end, parts)


def find(even: Bools, known: Bools) -> Stride | None:
    """The period of a file that begins with ciphertext, None where none shows.

    even, known bool[n]: whether each of its blocks is as even as random bytes, and whether it is there at all.
    """
    parts = -(-len(even) // PER)
    if parts < 2:
        return None
    seen = _Seen.of(even, known, parts)
    best: tuple[float, Stride] | None = None
    for period in range(2, parts):
        found = seen.under(period)
        if found is not None and (best is None or found[0] > best[0]):
            best = found
    return best[1] if best is not None and best[0] >= LEAST_BITS else None


def holds(stride: Stride, even: Bools, known: Bools) -> bool:
    """Whether a file may have been encrypted at a period that another one shows: nothing that is there in those parts
    is uneven, and some of it lies behind the first of them. even, known: see find.
    """
    inside = np.zeros(len(even), np.bool_)
    for first, end in stride.ranges(-(-len(even) // PER)):
        inside[first * PER : end * PER] = True
    seen = np.flatnonzero(inside & known)
    return bool(even[seen].all()) and len(seen) > 0 and int(seen[-1]) >= stride.period * PER


@dataclass(frozen=True, slots=True)
class _Seen:
    """Per part: whether all of it that is there is even, or some is not; whether it begins, and ends, what is even, at
    a block that is there and not even. begin_bits, end_bits: of one such border, where nothing was encrypted.
    """

    whole: Bools
    broken: Bools
    begins: Bools
    ends: Bools
    begin_bits: float
    end_bits: float

    @classmethod
    def of(cls, even: Bools, known: Bools, parts: int) -> _Seen:
        beside = known[1:] & known[:-1]
        rises, falls = beside & even[1:] & ~even[:-1], beside & even[:-1] & ~even[1:]
        # every border counts as chance, also those of the ciphertext: then it is rather too likely
        rise = (np.count_nonzero(rises) + 1) / (np.count_nonzero(beside & ~even[:-1]) + 2)
        fall = (np.count_nonzero(falls) + 1) / (np.count_nonzero(beside & even[:-1]) + 2)
        pad = parts * PER - len(even)
        uneven: Bools = np.pad(known & ~even, (0, pad)).reshape(parts, PER).max(axis=1)
        whole: Bools = np.pad(known & even, (0, pad)).reshape(parts, PER).max(axis=1) & ~uneven
        begins, ends = np.zeros(parts, np.bool_), np.zeros(parts, np.bool_)
        edge = np.arange(1, parts) * PER
        begins[1:] = whole[1:] & rises[edge - 1]
        ends[:-1] = whole[:-1] & falls[edge - 1]
        return cls(whole, uneven, begins, ends, float(-np.log2(rise)), float(-np.log2(fall)))

    def under(self, period: int) -> tuple[float, Stride] | None:
        """How many bits speak for a period, and what is encrypted under it; None where its begin is not."""
        phase = np.arange(len(self.whole)) % period

        def often(what: Bools) -> Int64s:
            return np.bincount(phase[what], minlength=period)

        open_ = (often(self.broken) == 0) & (often(self.whole) >= LEAST_SEEN)
        if not open_[0]:
            return None
        begins, ends = often(self.begins), often(self.ends)
        step = np.flatnonzero(np.diff(np.concatenate(([False], open_, [False])).astype(np.int8)))
        choice = float(np.log2(period))
        runs: list[tuple[int, int]] = []
        total = 0.0
        for low, high in zip(step[::2].tolist(), step[1::2].tolist(), strict=True):
            first = low + int(begins[low:high].argmax()) if low else 0
            end = first + int(ends[first:high].argmax()) + 1 if ends[first:high].any() else high
            # what begins by chance is seldom so long; how seldom is bounded, for compressed files may be long too
            long = min(MOST_LENGTH_BITS, -((end - first) * PER - 1) * float(np.log2(1 - 2**-self.end_bits)))
            bits = (self.begin_bits + long) * int(begins[first]) + self.end_bits * int(ends[end - 1])
            if first:
                bits -= 2 * choice
            elif self.ends[:period].any() and end == int(self.ends.argmax()) + 1:
                bits -= self.end_bits  # what begins the file was to be explained; so it ends
            else:
                bits -= choice
            if first == 0 or bits > LEAST_RUN_BITS:
                runs.append((first, end))
                total += bits
        # one period of as many as there are parts, or of the multiples of what is encrypted: most count in that
        length = runs[0][1]
        total -= 1.0 + float(np.log2(len(self.whole) / (1 if period % length else length)))
        return total, Stride(period, tuple(runs))
