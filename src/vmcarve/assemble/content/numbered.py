"""Texts whose lines begin with a number that rises: rows of a table by their key, counters, seconds since the start.

Numbers are read as decimal where all of them can be, else as hexadecimal. Where five lines on each side of a
border begin with rising numbers the one side goes on from the other when its numbers do, by steps of the same size;
which numbers another such text would have is told by how widely they are spread on the image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .want import Int64s, U8s

Floats = npt.NDArray[np.float64]
DIGITS = 12  # of a number that is read: 48 bits
PACE = 4  # by how many times steps of one text differ at most
REACH = 3  # steps from the last whole line before a border to the first behind it: one line lies between
SHORT = 32  # bytes of a short line
VALUE = np.full(256, 255, np.uint8)
VALUE[48:58], VALUE[65:71], VALUE[97:103] = range(10), range(10, 16), range(10, 16)
APART = np.isin(np.arange(256), [ord(c) for c in " \t,;:.)]|\"'"])  # behind a number
NONE = -1  # where lines do not begin so


def rising(text: U8s, start: Int64s) -> Int64s:
    """int64[n, 3]: the numbers that begin the first and the last of some lines, and the largest step between two; NONE
    and 0 where they do not rise. text uint8[n, m]; start int64[n, k]: where the lines begin, as they follow."""
    out = np.tile(np.array([NONE, NONE, 0], np.int64), (len(text), 1))
    row = np.flatnonzero(((start > 0) & (start + DIGITS < text.shape[1])).all(axis=1))
    row = row[VALUE[text[row, start[row, 0]]] < 16]  # most lines begin otherwise
    if not len(row):
        return out
    letters = text[row[:, None, None], start[row][:, :, None] + np.arange(DIGITS + 1)]
    value = VALUE[letters]
    digits = np.argmax(value == 255, axis=2)  # 0 where there is none, or more than are read
    behind = np.take_along_axis(letters, digits[:, :, None], axis=2)[:, :, 0]
    inside = np.arange(DIGITS) < digits[:, :, None]
    base = np.where(np.where(inside, value[:, :, :DIGITS], 0).max(axis=(1, 2)) < 10, 10, 16).astype(np.int64)[:, None]
    number = np.zeros(digits.shape, np.int64)
    for k in range(DIGITS):
        number = np.where(inside[:, :, k], number * base + value[:, :, k], number)
    step = np.diff(number, axis=1)
    good = ((digits > 0) & APART[behind]).all(axis=1) & (step > 0).all(axis=1)
    good &= step.max(axis=1) <= PACE * step.min(axis=1)
    out[row[good]] = np.column_stack((number[good, 0], number[good, -1], step[good].max(axis=1)))
    return out


def at_begin(text: U8s, lines: Int64s) -> Int64s:
    """int64[n, 2]: the number of the first whole line of blocks, and the largest step; NONE, 0 where none rise, NONE,
    NONE where there are too few lines to tell.

    lines int64[n, k]: the bytes up to the first end of a line, and from each end to the next."""
    return _told(rising(text, _whole(lines, np.cumsum(lines, axis=1)[:, :-1] + 1))[:, [0, 2]], lines)


def at_end(text: U8s, lines: Int64s) -> Int64s:
    """The same of the last whole line. lines: the same from behind."""
    return _told(rising(text, _whole(lines, text.shape[1] - np.cumsum(lines, axis=1)[:, 1:])[:, ::-1])[:, 1:], lines)


def _whole(lines: Int64s, start: Int64s) -> Int64s:
    """The begins of lines, none where there are fewer lines."""
    return np.where(_enough(lines), start, 0)


def _enough(lines: Int64s) -> npt.NDArray[np.bool_]:
    """bool[n, 1]: whether there are as many lines as are asked."""
    return np.expand_dims((lines[:, 1:] > 0).all(axis=1), 1)


def _told(number: Int64s, lines: Int64s) -> Int64s:
    return np.where(_enough(lines), number, NONE)


def goes_on(before: Int64s, behind: Int64s, apart: int = 0) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """(whether both are numbered, whether the second goes on from the first), of rows [..., 2] as above. apart: bytes
    that lie between."""
    pace = np.maximum(before[..., 1], behind[..., 1])
    both = (before[..., 0] >= 0) & (behind[..., 0] >= 0)
    step = behind[..., 0] - before[..., 0]
    even = pace <= PACE * np.minimum(before[..., 1], behind[..., 1])
    return both, both & even & (step > 0) & (step <= (REACH + apart // SHORT) * pace)


def only_one(before: Int64s, behind: Int64s) -> npt.NDArray[np.bool_]:
    """Whether the lines of one side begin with rising numbers, and those of the other do not. See goes_on."""
    left, right = before[..., 0] >= 0, behind[..., 0] >= 0
    told = (left | (before[..., 1] == 0)) & (right | (behind[..., 1] == 0))
    return (left != right) & told


def worth(pace: Int64s, spread: float) -> Floats:
    """Bits by which it is likelier that a text goes on by such steps than that another one does. spread: of the numbers
    on the image."""
    return np.log2(np.maximum(spread, 1.0) / (REACH * np.maximum(pace, 1)))
