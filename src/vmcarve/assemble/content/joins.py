"""What two stretches of bytes say of whether the one goes on as the other: both sides of a border inside a file.

All of it are likelihood ratios in bits: how much likelier the bytes behind the border are if the file goes on there
than if they were any others of the image. Text goes on amid a word, lines of one length (base64, dumps) at their
phase, time stamps of a log rise by as much as they did, sorted records of numbers (relocations, indices) rise on, a
fill goes on as itself, and content stays of its kind. Nothing is asked of compressed or encrypted bytes but that.
The weights were measured on files that tests/corpus/work.py makes and on the programs of a Debian machine; each is what
the worse of two samples gave, rounded towards zero.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum

import numpy as np
import numpy.typing as npt

U8s = npt.NDArray[np.uint8]
REACH = 3072  # bytes on each side that tell how a text goes on
CONTEXT, AHEAD = 6, 6  # letters before a letter that foretell it; letters behind the border that are asked
TEXTUAL = 0.95  # share of the bytes of a text that are of one
DENSE_BITS = 7.6  # entropy of 4 KiB that are compressed or encrypted, in bits a byte: random bytes have some 7.95
LEAST_SHARE = 1 / 256  # of a kind that was hardly seen
STAYS = 0.9  # share of the borders inside files at which the kind of content stays
LEAST_LINES, LINE, SAME_LINES = 6, 8, 0.8  # lines of one length: how many, how long, which share
NUMBERS, STRIDES = 12, (24, 16, 8)  # rows on each side, and their bytes
RANGE_SECONDS = 1e7  # over which the logs of one image spread
MOST = 14.0  # bits of one kind of evidence
AGAINST = -8.0
STAMP = re.compile(rb"(?<!\d)((?:19|20)\d\d)-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)")
WORDS = ((2.0, 5.0), (0.0, 2.5), (-10.0, 0.0), (-15.0, -2.0), (-1e9, -6.0))
"""bits by the least gain of the text model: over 800 borders of text and logs, true against any two of a kind"""


class Kind(IntEnum):
    """What a block looks like."""

    FILL, TEXT, DENSE, CODE, OTHER = range(5)


@dataclass(frozen=True, slots=True)
class Rising:
    """Rows beside a border, by the numbers of which they consist. rises bool[n]: those that never fall from row to row;
    rose int64[n]: how often they rise; most float64[n]: by how much at once; edge float64[n]: those of the row next to
    the border."""

    rises: npt.NDArray[np.bool_]
    rose: npt.NDArray[np.int64]
    most: npt.NDArray[np.float64]
    edge: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a border. data: the bytes up to it, or from it on. fill: the byte of which its block consists, or -1.

    line, rest: of lines of one length, that length, and the bytes up to where one ends (from the border on); 0, 0
    where there are none. times: seconds of the stamps, nearest to the border first; step: the greatest between two.
    """

    data: bytes
    kind: Kind
    fill: int
    line: int = 0
    rest: int = 0
    times: tuple[float, ...] = ()
    step: float = 0.0
    _counts: dict[bytes, int] = field(default_factory=dict[bytes, int], compare=False, repr=False)
    _rising: dict[tuple[int, bool], Rising] = field(default_factory=dict[tuple[int, bool], Rising], compare=False,
                                                    repr=False)

    def count(self, letters: bytes) -> int:
        """How often these letters are in the data."""
        if letters not in self._counts:
            self._counts[letters] = self.data.count(letters)
        return self._counts[letters]

    def rising(self, stride: int, ends: bool) -> Rising:
        """Of the NUMBERS rows of `stride` bytes that end at the border, or begin at it. There must be as many bytes."""
        if (stride, ends) not in self._rising:
            size = stride * NUMBERS
            data = self.data[-size:] if ends else self.data[:size]
            rows = np.frombuffer(data, "<u8").reshape(NUMBERS, -1).astype(np.float64)
            steps = np.diff(rows, axis=0)
            self._rising[stride, ends] = Rising(np.logical_and.reduce(steps >= 0), np.count_nonzero(steps > 0, axis=0),
                                                steps.max(axis=0), rows[-1 if ends else 0])
        return self._rising[stride, ends]


def before(data: bytes, block: int = 4096) -> Side:
    """The side that ends at the border."""
    kind, fill = kind_of(data[-block:])
    if kind != Kind.TEXT:
        return Side(data, kind, fill)
    ends = np.flatnonzero(np.frombuffer(data[-block:], np.uint8) == ord("\n"))
    line, rest = 0, 0
    if len(ends) > LEAST_LINES:
        lengths, counts = np.unique(np.diff(ends[-24:]), return_counts=True)
        most = int(counts.argmax())
        if counts[most] >= SAME_LINES * counts.sum() and lengths[most] >= LINE:
            line = int(lengths[most])
            rest = line - (len(data[-block:]) - 1 - int(ends[-1])) - 1
    times = _times(data[-block:])[::-1]
    return Side(data, kind, fill, line, rest, times, _step(times))


def behind(data: bytes, block: int = 4096) -> Side:
    """The side that begins at the border."""
    kind, fill = kind_of(data[:block])
    if kind != Kind.TEXT:
        return Side(data, kind, fill)
    times = _times(data[:block])
    return Side(data, kind, fill, 0, data[:block].find(b"\n"), times, _step(times))


def kind_of(data: bytes) -> tuple[Kind, int]:
    """The kind of a block, and of a fill its byte (else -1)."""
    if not data:
        return Kind.OTHER, -1
    kind = Kind(int(kinds_of(np.frombuffer(data, np.uint8)[None, :])[0]))
    return kind, data[0] if kind == Kind.FILL else -1


def kinds_of(blocks: U8s) -> U8s:
    """uint8[n]: the Kind of each of the blocks uint8[n, bytes]."""
    n, total = blocks.shape
    counts = np.bincount((blocks + 256 * np.arange(n)[:, None]).ravel(), minlength=256 * n).reshape(n, 256)
    text = counts[:, 9:14].sum(axis=1) + counts[:, 32:127].sum(axis=1) >= TEXTUAL * total
    share = counts / total
    entropy = -(share * np.log2(np.maximum(share, 1e-12))).sum(axis=1)
    moves = counts[:, [0x48, 0x89, 0x8B, 0xE8, 0x0F]].sum(axis=1)  # REX.W, MOV, CALL, what begins two-byte codes
    code = (moves > 0.12 * total) & (counts[:, 0] < 0.4 * total)
    return np.select([counts.max(axis=1) == total, text, entropy > DENSE_BITS, code],
                     [Kind.FILL, Kind.TEXT, Kind.DENSE, Kind.CODE], Kind.OTHER).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Shares:
    """How common the kinds of blocks are among what could lie behind a border."""

    kinds: dict[tuple[Kind, int], float]  # by kind_of

    @classmethod
    def of(cls, found: Iterable[tuple[Kind, int]]) -> Shares:
        counts = Counter(found)
        return cls({kind: n / counts.total() for kind, n in counts.items()})

    def __getitem__(self, side: Side) -> float:
        return max(self.kinds.get((side.kind, side.fill), 0.0), LEAST_SHARE)


def bits(left: Side, right: Side, shares: Shares) -> float:
    """How much likelier it is that `right` follows `left`. shares: among what could be there."""
    if 0 in (left.fill, right.fill):
        return 0.0  # zeros lie at the ends of all that is free, and what goes on as zeros was never a candidate
    if (left.kind, left.fill) != (right.kind, right.fill):
        if Kind.FILL in (left.kind, right.kind):
            return 0.0  # files hold fills, and end in them: that one ends says little
        return math.log2((1 - STAYS) / max(1 - shares[left], 0.1))
    out = math.log2(STAYS / shares[left])
    if left.kind == Kind.TEXT:
        return out + _text(left, right)
    return out + (_numbers(left, right) if left.kind != Kind.DENSE else 0.0)


def _text(left: Side, right: Side) -> float:
    if left.line:
        return math.log2(STAYS * left.line) if right.rest == left.rest else AGAINST / 2
    out = 0.0
    if len(left.times) > 2 and len(right.times) > 2:
        gap, step = right.times[0] - left.times[0], max(left.step, right.step, 1.0)
        if not 0 <= gap <= 4 * step:
            return AGAINST
        out = min(MOST, math.log2(RANGE_SECONDS / (4 * step)))
    elif (len(left.times) > 2) != (len(right.times) > 2):
        return AGAINST / 2
    gain = foretold(left, right)
    return out + next(worth for least, worth in WORDS if gain >= least)


def foretold(left: Side, right: Side) -> float:
    """Bits by which the letters before the border foretell those behind it better than these do each other.

    Contexts of up to six letters, counted on both sides; a longer one where it was seen, weighed against the shorter.
    """
    total = len(left.data) + len(right.data) + 128

    def chance(context: bytes, letter: bytes) -> float:
        out = (left.count(letter) + right.count(letter) + 0.5) / total
        for k in range(1, len(context) + 1):
            seen = left.count(context[-k:]) + right.count(context[-k:])
            if not seen:
                break
            out = (left.count(context[-k:] + letter) + right.count(context[-k:] + letter) + 2 * out) / (seen + 2)
        return out

    out = 0.0
    for i in range(min(AHEAD, len(right.data))):
        known, letter = right.data[:i], right.data[i : i + 1]
        with_left = (left.data[-CONTEXT:] + known)[-CONTEXT:]
        out += math.log2(chance(with_left, letter) / chance(known[-CONTEXT:], letter))
    return out


def _numbers(left: Side, right: Side) -> float:
    """Whether sorted rows with a number of eight bytes go on: +MOST, AGAINST, or 0 where there are none."""
    for stride in STRIDES:
        if min(len(left.data), len(right.data)) < stride * NUMBERS:
            continue
        a, b = left.rising(stride, True), right.rising(stride, False)
        both = np.flatnonzero(a.rises & b.rises)
        both = both[(a.rose + b.rose)[both] > NUMBERS - 1] if len(both) else both  # half of the steps
        if len(both):
            column = int(both[0])
            gap = float(b.edge[column] - a.edge[column])
            return MOST if 0 <= gap <= 4 * float(max(a.most[column], b.most[column])) else AGAINST
    return 0.0


def may_be_stamped(text: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Of rows of bytes: whether STAMP can match at all, for the dashes of a date."""
    dash = text == ord("-")
    return (dash[:, :-3] & dash[:, 3:]).any(axis=1)


def seconds(stamp: re.Match[bytes]) -> float | None:
    """Unix seconds of a match of STAMP, taken for UTC; None where it is no time."""
    try:
        return datetime(*(int(n) for n in stamp.groups()), tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _times(data: bytes) -> tuple[float, ...]:
    """Seconds of the time stamps in a text, none where they do not rise."""
    out = [t for match in STAMP.finditer(data) if (t := seconds(match)) is not None]
    return tuple(out) if all(a <= b for a, b in zip(out, out[1:], strict=False)) else ()


def _step(times: tuple[float, ...]) -> float:
    return max((abs(a - b) for a, b in zip(times, times[1:], strict=False)), default=0.0)
