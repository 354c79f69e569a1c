"""Rows of numbers that could be tables: the kernel against plain Python, and what it refuses to be called with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.legal_rows import legal_rows as legal_rows_reference
from vmcarve._ext.legal_rows import legal_rows
from vmcarve.formats._shapes import Numbers

NUMBERS = st.sampled_from((0, 1, 2, 21, 22, 128, 150, 256, 512, 4097, 1 << 24, (1 << 31) - 1, 1 << 31, 0xFFFF_FFFE,
                           0xFFFF_FFFF)) | st.integers(0, 1 << 12)
RULES = (
    Numbers(), Numbers(illegal=0xFFE, ranges=((0, 1 << 20),)), Numbers(ranges=((0, 150), (0xFFFF_FFFE, 0xFFFF_FFFF))),
    Numbers(ranges=((22, (1 << 31) - 1),), unused=((0, 1),), steps=(128,)),
    Numbers(ranges=((4, 1 << 29),), unused=((0, 0), (0xFFFF_FFFF, 0xFFFF_FFFF)), steps=(3, 5, 7, 11)),
)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.lists(NUMBERS, min_size=4, max_size=4), max_size=8),
       alike=st.lists(st.lists(st.integers(0, 40), min_size=4, max_size=4), max_size=4), rule=st.sampled_from(RULES),
       dtype=st.sampled_from(("<u4", ">u4", "<u8", ">u8")))
def test_sieve_is_the_reference(rows: list[list[int]], alike: list[list[int]], rule: Numbers, dtype: str) -> None:
    """Read-only rows in both byte orders and widths; rows of multiples among them, which leave one remainder."""
    rows = [*rows, *([2 + 128 * v for v in row] for row in alike), [0] * 4]
    words = np.frombuffer(np.array(rows, dtype).tobytes(), dtype).reshape(-1, 4)
    ranges = [*((a, b, True) for a, b in rule.unused), *((a, b, False) for a, b in rule.ranges)]
    assert rule.sieve(words).tolist() == legal_rows_reference(rows, rule.illegal, ranges, list(rule.steps))


def test_one_number_decides_a_row() -> None:
    """At each place of a row: one number that no range has, one illegal bit, one other remainder."""
    fit = np.full((128, 128), 256, "<u4")
    for bad, rule in ((300, Numbers(ranges=((0, 256),))), (257, Numbers(illegal=1)),
                      (384, Numbers(steps=(256,)))):
        words = fit.copy()
        words[np.arange(128), np.arange(128)] = bad
        assert len(rule.sieve(words)) == 0 and len(rule.sieve(fit)) == 128


def test_arrays_that_do_not_fit_are_refused() -> None:
    """Lengths are checked before the loop runs without checks."""
    ends, one, none = np.zeros(1, np.uint64), np.zeros(1, np.uint8), np.zeros(0, np.uint32)
    rows = np.zeros(2, np.int64)
    for size, width, number in ((1023, 512, 4), (1536, 512, 4), (1024, 510, 4), (1024, 512, 2), (0, 0, 4)):
        with pytest.raises(ValueError, match="width bytes"):
            legal_rows(np.zeros(size, np.uint8), width, number, False, 0, ends, ends, one, none, rows)
    buf = np.zeros(1024, np.uint8)
    for low, high, unused, steps in ((ends[:0], ends[:0], one[:0], none), (ends, ends[:0], one, none),
                                     (ends, ends, one[:0], none), (ends, ends, one, np.ones(9, np.uint32))):
        with pytest.raises(ValueError, match="range"):
            legal_rows(buf, 512, 4, False, 0, low, high, unused, steps, rows)
    with pytest.raises(ValueError, match="step"):
        legal_rows(buf, 512, 4, False, 0, ends, ends, one, np.zeros(1, np.uint32), rows)
