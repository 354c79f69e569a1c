"""How well one text goes on as another at a border: the letters, the lines, the stamps and the numbers beside it.

Words are foretold by how often four letters follow each other in the texts of the image itself; lines of one length go
on at their phase, the stamps of logs and the numbers of numbered lines rise by as much as they did.
Memory: two tables of 8 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .joins import LEAST_LINES, LINE, RANGE_SECONDS, SAME_LINES, STAMP, seconds
from .numbered import SHORT, at_begin, at_end, goes_on, only_one, worth
from .want import BLOCK, Int64s, U8s
from .ways import Floats

HEAD = 64  # bytes at a block's begin that must be text
COUNTED = 1 << 10  # blocks whose letters are counted at a time
LINES = 6  # that tell whether a stretch goes on
LINED = 768  # bytes of a block in which most texts have so many
BESIDE = 9  # lines beside a border, of which most have one length
ORDER, HASH = 3, 20  # letters that foretell the next, and bits of the table of four
DOUBT = 2.0  # letters that are taken to have been seen of any that come behind others
MOST, AGAINST = 9.0, -9.0  # bits of one border
STAMPED = 512  # bytes beside a border in which a log has a stamp
MOST_TIME = 12.0  # bits of stamps
MOST_NUMBER = 12.0  # bits of numbered lines
ONE_NUMBERED = -4.5  # bits at most where only one side has them
TRUST = 0.7  # of the bits of letters: those behind each other are no independent witnesses
SAME_LINE = 0.9  # chance that lines of one length go on over a border
UNEVEN = -9.5  # bits where lines of one length do not go on
FOREIGN = -5.0  # bits of what is no text beside a text
LIKELY_TEXT = np.zeros(256, np.bool_)
LIKELY_TEXT[9:14] = LIKELY_TEXT[32:127] = True


@dataclass(frozen=True, slots=True)
class Edge:
    """One side of a border: letters (the last or the first ORDER); of lines of one length, that length and the bytes
    from the border to where a line ends; 0, 0 where there are none. text: whether it is of a text at all. time: of a
    log, Unix seconds of the nearest stamp, and step: between two. number, pace: of numbered lines (see `numbered`)."""

    letters: bytes
    line: int = 0
    rest: int = 0
    text: bool = True
    time: float = float("nan")
    step: float = 0.0
    number: int = -1
    pace: int = 0


@dataclass(frozen=True, slots=True)
class Edges:
    """Edges as columns: letters uint32[n, ORDER], and the fields of `Edge`."""

    letters: npt.NDArray[np.uint32]
    line: Int64s
    rest: Int64s
    text: npt.NDArray[np.bool_]
    time: Floats
    step: Floats
    number: Int64s  # int64[n, 2]: number, pace

    @classmethod
    def of(cls, edges: list[Edge], ends: bool) -> Edges:
        """ends: of the sides before borders, whose letters stand next to them last."""
        letters = b"".join(e.letters.rjust(ORDER, b"\0") if ends else e.letters.ljust(ORDER, b"\0") for e in edges)
        return cls(np.frombuffer(letters, np.uint8).reshape(-1, ORDER).astype(np.uint32),
                   np.array([e.line for e in edges], np.int64), np.array([e.rest for e in edges], np.int64),
                   np.array([e.text for e in edges], np.bool_), np.array([e.time for e in edges], np.float64),
                   np.array([e.step for e in edges], np.float64),
                   np.array([(e.number, e.pace) for e in edges], np.int64).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.line)

    def picked(self, which: Int64s) -> Edges:
        """Those of some numbers."""
        return Edges(self.letters[which], self.line[which], self.rest[which], self.text[which], self.time[which],
                     self.step[which], self.number[which])


def likely(text: U8s) -> npt.NDArray[np.bool_]:
    """LIKELY_TEXT of each byte, without a look into a table for each."""
    return (text - np.uint8(9) < 5) | (text - np.uint8(32) < 95)


def counted(blocks: npt.NDArray[np.bool_]) -> Int64s:
    """How many of each block's bytes: eight at a time, in groups that count no further than a byte does."""
    words = blocks.view(np.uint64).reshape(len(blocks), -1, BLOCK // 32)
    return words.sum(axis=2).view(np.uint8).reshape(len(blocks), -1).sum(axis=1, dtype=np.int64)


def lines_of(text: U8s) -> Int64s:
    """int64[n, LINES] of rows of text: the bytes before the first end of a line, and of the lines behind it."""
    line = text[:, :LINED] == ord("\n")
    few = np.flatnonzero(np.count_nonzero(line, axis=1) < LINES)  # their lines are long, or end further on
    out = _ends_of(line)
    if len(few) and text.shape[1] > LINED:
        out[few] = _ends_of(text[few] == ord("\n"))
    return out


def _ends_of(line: npt.NDArray[np.bool_]) -> Int64s:
    at = np.arange(len(line))
    ends = np.zeros((len(line), LINES), np.int64)
    for i in range(LINES):
        ends[:, i] = np.argmax(line, axis=1)
        line[at, ends[:, i]] = False
    return np.column_stack((ends[:, 0], np.maximum(np.diff(ends, axis=1), 0)))


def edge_of(data: bytes, ends: bool) -> Edge:
    array = np.frombuffer(data, np.uint8)
    part = array[-HEAD:] if ends else array[:HEAD]
    letters = data[-ORDER:] if ends else data[:ORDER]
    if len(data) < BLOCK or not LIKELY_TEXT[part].all():
        return Edge(letters, text=False)
    stamps = STAMP.finditer(data[-STAMPED:] if ends else data[:STAMPED])
    times = [t for stamp in stamps if (t := seconds(stamp)) is not None]
    if times:
        step = max((b - a for a, b in zip(times, times[1:], strict=False)), default=0.0)
        return Edge(letters, time=times[-1 if ends else 0], step=max(step, 1.0))
    lines = lines_of(array[None, ::-1] if ends else array[None])
    number, pace = (at_end if ends else at_begin)(array[None], lines)[0].tolist()
    if number >= 0:
        return Edge(letters, number=number, pace=pace)
    at = np.flatnonzero(array == ord("\n"))
    lengths = np.diff(at[-BESIDE:] if ends else at[:BESIDE])
    if len(at) > LEAST_LINES:
        common, counts = np.unique(lengths, return_counts=True)
        most = int(counts.argmax())
        if counts[most] >= SAME_LINES * counts.sum() and common[most] >= LINE:
            line = int(common[most])
            rest = line - (len(data) - 1 - int(at[-1])) - 1 if ends else int(at[0])
            return Edge(letters, line, rest, pace=pace)
    return Edge(letters, pace=pace)


@dataclass(frozen=True, slots=True)
class Letters:
    """How often letters follow each other in the texts of an image: counts of four and of three by their hash, of two
    by both, and the share of one."""

    four: Floats
    three: Floats
    two: Floats
    one: Floats

    @classmethod
    def of(cls, samples: list[U8s]) -> Letters:
        four, three, two, one = np.zeros(1 << HASH), np.zeros(1 << HASH), np.zeros(1 << 16), np.full(256, 0.5)
        for part in _together(samples):  # each count touches the whole of its table
            rows = np.concatenate(part).astype(np.uint32)
            begun = _mixed(rows[:, :-2], rows[:, 1:-1], rows[:, 2:])
            three += np.bincount(_cut(begun).ravel(), minlength=1 << HASH)
            four += np.bincount(_cut(_mixed(rows[:, 3:], begun=begun[:, :-1])).ravel(), minlength=1 << HASH)
            two += np.bincount((rows[:, :-1] << 8 | rows[:, 1:]).ravel(), minlength=1 << 16)
            one += np.bincount(rows.ravel(), minlength=256)
        return cls(four, three, two, one / one.sum())

    def odds(self, left: Edges, right: Edges, apart: int = 0, among: Edges | None = None) -> Floats:
        """float64[m, n]: how much likelier each right edge comes behind each left one than behind any. apart: bytes of
        the file that lie between; among: all that might come there, if not the right ones."""
        if not len(left) or not len(right):
            return np.ones((len(left), len(right)))
        bits = self.bits(left.letters[:, None], right.letters[None]) if not apart else np.zeros((len(left), len(right)))
        line_l, line_r = left.line[:, None], right.line[None, :]
        if line_l.any() or line_r.any():
            share = np.maximum((line_l == (among or right).line).mean(axis=1), 1 / 64)[:, None]
            goes_on = np.log2(SAME_LINE * np.maximum(line_l, 1) / np.where(line_l == line_r, share, 1.0))
            width = np.maximum(line_l, 1)
            of_lines = np.where((left.rest[:, None] - apart) % width == right.rest[None, :] % width, goes_on,
                                np.where(line_r == 0, AGAINST / 2, AGAINST))
            bits = np.where(line_l > 0, of_lines, np.where(line_r > 0, np.log2(1 - SAME_LINE), bits))
        bits = _of_numbers(left, right, _of_times(left, right, bits, apart), apart, among or right)
        return np.where(left.text[:, None] & right.text[None, :], np.exp2(bits), 2.0 ** FOREIGN)

    def bits(self, left: npt.NDArray[np.uint32], right: npt.NDArray[np.uint32]) -> Floats:
        """By how much likelier the ORDER letters of `right` (the last axis) are behind those of `left`."""
        both = [*(left[..., k] for k in range(ORDER)), *(right[..., k] for k in range(ORDER))]
        out = np.zeros(())
        for i in range(ORDER):  # the letters behind the border, each by the three before it
            begun = _mixed(*both[i : i + ORDER])
            seen = self.four[_cut(_mixed(both[i + ORDER], begun=begun))] + DOUBT * self.one[both[i + ORDER]]
            out = out + np.log2(seen / (self.three[_cut(begun)] + DOUBT))
        return np.clip(TRUST * (out - self._alone(right)), AGAINST, MOST)

    def _alone(self, letters: npt.NDArray[np.uint32]) -> Floats:
        """The logarithm of how likely three letters are behind any."""
        a, b, c = (letters[..., k] for k in range(ORDER))
        pair, next_ = a << 8 | b, b << 8 | c
        total = max(float(self.two.sum()), 1.0)
        begin = (self.two[pair] + DOUBT * self.one[a] * self.one[b]) / (total + DOUBT)
        near = (self.two[next_] + DOUBT * self.one[c]) / (self.one[b] * total + DOUBT)
        seen = self.three[_cut(_mixed(a, b, c))]
        return np.log2(begin * (seen + DOUBT * near) / (self.two[pair] + DOUBT))


def _of_times(left: Edges, right: Edges, bits: Floats, apart: int) -> Floats:
    """The bits with what time stamps say: those of a log rise by as much as they did."""
    log_l, log_r = np.isfinite(left.time)[:, None], np.isfinite(right.time)[None, :]
    if not log_l.any() and not log_r.any():
        return bits
    step = (4 + apart // SHORT) * np.maximum(left.step[:, None], right.step[None, :])
    gap = right.time[None, :] - left.time[:, None]
    of_time = np.where((gap >= 0) & (gap <= step), np.log2(RANGE_SECONDS / np.maximum(step, 1.0)), AGAINST)
    both = bits / 2 + np.minimum(of_time, MOST_TIME)
    return np.where(log_l & log_r, both, np.where(log_l | log_r, AGAINST / 2, bits))


def _of_numbers(left: Edges, right: Edges, bits: Floats, apart: int, among: Edges) -> Floats:
    """The bits with what the numbers of lines say."""
    known = np.concatenate((left.number[:, 0], among.number[:, 0]))
    known = known[known >= 0]
    if not len(known):
        return bits
    numbered, rises = goes_on(left.number[:, None], right.number[None, :], apart)
    of_numbers = np.minimum(worth(left.number[:, 1], float(np.ptp(known))), MOST_NUMBER)[:, None]
    one = only_one(left.number[:, None], right.number[None, :])
    bits = np.where(one, np.minimum(bits, ONE_NUMBERED), bits)
    return np.where(numbered, np.where(rises, bits + of_numbers, np.minimum(bits, UNEVEN)), bits)


def _together(samples: list[U8s]) -> Iterator[list[U8s]]:
    """The samples in lists of some COUNTED rows."""
    part, held = list[U8s](), 0
    for sample in samples:
        part.append(sample)
        held += len(sample)
        if held >= COUNTED:
            yield part
            part, held = [], 0
    if part:
        yield part


def _mixed(*letters: npt.NDArray[np.uint32], begun: npt.NDArray[np.uint32] | None = None) -> npt.NDArray[np.uint32]:
    """A number for letters that follow each other. begun: that of those before them."""
    out = np.zeros((), np.uint32) if begun is None else begun
    for each in letters:
        out = out ^ each
        out *= np.uint32(0x9E3779B1)
        out ^= out >> np.uint32(15)
    return out


def _cut(mixed: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return mixed & np.uint32((1 << HASH) - 1)
