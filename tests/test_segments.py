"""Segments: which points join, what speaks against them, and who gets a block that several want."""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcarve.assemble.segments import (
    AGAINST,
    BLOCK,
    CLOSE,
    HOLE,
    MARGIN,
    MAX_GAP,
    Points,
    Segment,
    Taken,
    accept,
    group,
    least_weight,
)
from vmcarve.assemble.state import Claims

BITS = 12.0
Made = tuple[int, int, int, float]  # owner, file block, delta, bits


def points(*rows: tuple[int, int, int]) -> Points:
    """From (owner, file block, delta) rows, each worth BITS."""
    return made([(*row, BITS) for row in rows])


def made(rows: list[Made]) -> Points:
    return Points.of([(o, np.array([f], np.int64), np.array([d], np.int64), np.array([b])) for o, f, d, b in rows])


def segment(owner: int, delta: int, blocks: list[int], bits: float = BITS) -> Segment:
    return Segment(owner, delta, np.array(blocks, np.int64), np.full(len(blocks), bits), bits * len(blocks))


def shape(segments: list[Segment]) -> list[tuple[int, int, list[int]]]:
    return sorted((s.owner, s.delta, s.points.tolist()) for s in segments)


def nobody() -> Taken:
    return Taken(Claims(), {})


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends what does not end by itself: a loop without an end would else only hang."""
    def stop(*_: object) -> None:
        raise AssertionError(f"still at work after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- group -----------------------------------------------------------------------------------------------------------
def test_points_of_one_owner_and_delta_join() -> None:
    """In whatever order they come, and whatever other owners and deltas have between them."""
    found = group(points((0, 9, 5), (1, 4, 5), (0, 1, 5), (0, 5, 6), (0, 4, 5), (1, 2, 5)), {}, {})
    assert shape(found) == [(0, 5, [1, 4, 9]), (0, 6, [5]), (1, 5, [2, 4])]
    assert sorted(s.weight for s in found) == [BITS, 2 * BITS, 3 * BITS]


def test_the_heaviest_come_first() -> None:
    """Later stages look at the first ones only."""
    found = group(made([(0, 1, 1, 5.0), (0, 2, 2, 50.0), (0, 3, 3, 20.0)]), {}, {})
    assert [s.weight for s in found] == [50.0, 20.0, 5.0]


def test_no_points_are_no_segments() -> None:
    assert group(Points.of([]), {0: np.array([3], np.int64)}, {0: np.zeros(9, np.int64)}) == []


@pytest.mark.parametrize(("gap", "parts"), [(MAX_GAP, 1), (MAX_GAP + 1, 2)])
def test_a_wide_gap_splits(gap: int, parts: int) -> None:
    assert len(group(points((0, 10, 3), (0, 10 + gap, 3)), {}, {})) == parts


@pytest.mark.parametrize(("free", "parts"), [(HOLE - 1, 1), (HOLE, 2)])
def test_free_blocks_between_split(free: int, parts: int) -> None:
    """The host file may have a hole there. What is free before and behind the two points says nothing."""
    is_free = np.zeros(100, bool)
    is_free[:20] = is_free[60:] = True
    is_free[30 : 30 + free] = True
    count = np.concatenate(([0], np.cumsum(is_free)))
    assert len(group(points((0, 25, 3), (0, 59, 3)), {}, {0: count})) == parts
    assert len(group(points((1, 25, 3), (1, 59, 3)), {}, {0: count})) == 1  # another's free blocks


@pytest.mark.parametrize("missed", [0, 1, 5])
def test_a_file_end_that_is_passed_over_counts_against(missed: int) -> None:
    """The ends at the points themselves are not missed ones, nor are those outside, nor another's."""
    wanted = {0: np.array([5, 10, *range(20, 20 + missed), 50, 60], np.int64), 1: np.arange(11, 49)}
    found = group(points((0, 10, 3), (0, 50, 3)), wanted, {})
    assert [s.points.tolist() for s in found] == [[10, 50]]
    assert found[0].weight == pytest.approx(2 * BITS - AGAINST * missed)
    assert found[0].bits.sum() == pytest.approx(found[0].weight)


def test_many_missed_file_ends_split() -> None:
    """What lies between is somebody else's: then they count against neither part."""
    wanted = {0: np.array([10, *range(20, 26), 50], np.int64)}
    found = group(points((0, 10, 3), (0, 50, 3)), wanted, {})
    assert shape(found) == [(0, 3, [10]), (0, 3, [50])] and {s.weight for s in found} == {BITS}


# --- accept ----------------------------------------------------------------------------------------------------------
def test_the_heaviest_gets_what_two_want() -> None:
    """One image block, two containers; one file block, two deltas: in both, the weight decides, not the order."""
    weak, strong = segment(0, 0, [4, 5], 10.0), segment(1, -2, [4, 5, 6], 10.0)  # image blocks 4, 5; 102, 103, 104
    begins = {0: 0, 1: 2 * BLOCK}
    got = accept([weak, strong], begins, nobody(), 10.0)
    assert shape(got) == [(1, -2, [4, 5, 6])]
    other = segment(0, 300, [4, 5, 6], 9.0)
    assert shape(accept([weak, other], begins, nobody(), 10.0)) == [(0, 300, [4, 5, 6])]


def test_what_a_heavier_one_leaves_is_weighed_again() -> None:
    """A cut segment waits for those that are now heavier, and is dropped when it is worth less than the least."""
    heavy, cut, middle = segment(0, 0, list(range(8))), segment(1, 0, list(range(7)), 10.0), segment(2, 0, [0], 39.0)
    begins = {0: 0, 1: 5 * BLOCK, 2: 11 * BLOCK}  # of `cut` image blocks 5 to 11: three go to `heavy`, 11 to `middle`
    assert shape(accept([heavy, cut, middle], begins, nobody(), 20.0)) == [
        (0, 0, list(range(8))), (1, 0, [3, 4, 5, 6])]
    middle = segment(2, 0, [0], 41.0)
    assert shape(accept([heavy, cut, middle], begins, nobody(), 20.0)) == [
        (0, 0, list(range(8))), (1, 0, [3, 4, 5]), (2, 0, [0])]
    assert shape(accept([heavy, cut, middle], begins, nobody(), 31.0)) == [(0, 0, list(range(8))), (2, 0, [0])]


@pytest.mark.parametrize("gap", [CLOSE, CLOSE + 1])
def test_a_point_in_a_wide_gap_of_a_heavier_segment_wins(gap: int) -> None:
    """Close points own what lies between them; a wide gap is open for what speaks for another there."""
    heavy, other = segment(0, 0, [10, 10 + gap], 100.0), segment(1, 0, [0], 30.0)
    got = accept([heavy, other], {0: 0, 1: 14 * BLOCK}, nobody(), 20.0)
    if gap > CLOSE:
        assert shape(got) == [(0, 0, [10]), (0, 0, [10 + gap]), (1, 0, [0])]
    else:
        assert shape(got) == [(0, 0, [10, 10 + gap])]


def test_what_is_taken_before_stays_taken() -> None:
    """Neither image bytes nor the file's own blocks that were given in an earlier round are given again."""
    taken = nobody()
    taken.image.add_range(12 * BLOCK + 100, 12 * BLOCK + 101)
    taken.file(0).add_range(15, 16)
    got = accept([segment(0, 0, list(range(10, 18)))], {0: 0}, taken, BITS)
    assert shape(got) == [(0, 0, [10, 11]), (0, 0, [13, 14]), (0, 0, [16, 17])]  # all that is left, not only the first


def test_nothing_lies_before_the_image() -> None:
    assert shape(accept([segment(0, -5, [3, 4, 5, 6])], {0: 0}, nobody(), BITS)) == [(0, -5, [5, 6])]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(-12, 12), st.floats(1.0, 40.0)),
                max_size=60),
       st.tuples(*[st.integers(0, 20 * BLOCK // 512).map(lambda n: n * 512)] * 3), st.floats(1.0, 60.0))
def test_nothing_is_given_twice_and_it_ends(rows: list[Made], at: tuple[int, int, int], least: float) -> None:
    """Any points, of containers that begin at any sector: every block between accepted points has one owner."""
    candidates = group(made(rows), {}, {})
    begins = dict(enumerate(at))
    taken = nobody()
    with within(5.0):
        got = accept(candidates, begins, taken, least)
    files = Counter((s.owner, f) for s in got for f in range(s.first, s.last + 1))
    assert all(n == 1 for n in files.values())
    sectors = Counter(n for s in got for f in range(s.first, s.last + 1)
                      for n in range((begins[s.owner] + (f + s.delta) * BLOCK) // 512,
                                     (begins[s.owner] + (f + s.delta + 1) * BLOCK) // 512))
    assert all(n == 1 for n in sectors.values()) and min(sectors, default=0) >= 0
    assert sum(b - a for a, b in taken.image.ranges()) == 512 * len(sectors)
    stated = {(o, f, d) for o, f, d, _ in rows}
    kept = {(s.owner, f, s.delta) for s in got for f in s.points.tolist()}
    assert kept <= stated
    first = next((s for s in candidates if s.weight >= least), None)
    if first is not None and begins[first.owner] + (first.first + first.delta) * BLOCK >= 0:
        assert kept >= {(first.owner, f, first.delta) for f in first.points.tolist()}, "the heaviest loses nothing"


# --- least_weight ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("places", [0, 1, 2, 3, 1 << 20])
def test_a_segment_is_believed_beyond_the_number_of_its_places(places: int) -> None:
    """MARGIN bits more than chance needs to bring one such about somewhere; no image has less than two places."""
    assert least_weight(places) == pytest.approx(MARGIN + math.log2(max(places, 2)))


def test_what_two_may_have_alike_goes_to_the_one_that_has_less_instead() -> None:
    """The same records, as heavy for both, at one place of either file: the second has hardly anything else for it."""
    shared = [segment(o, 100, list(range(10, 30))) for o in (0, 1)]
    own = [segment(0, 500, list(range(10, 25))), segment(1, 900, list(range(10, 14)))]
    begins = {0: 0, 1: 0}
    for candidates in ([*shared, *own], [*reversed(shared), *own]):
        out = accept(candidates, begins, nobody(), 20.0)
        assert shape(out) == shape([own[0], shared[1]])


def test_the_begin_of_a_file_that_states_its_size_stands_alone() -> None:
    """One of 512 such begins among 2^16 blocks, of a file of 160 KB that nobody else's is as large as: 24 bits. Where
    files hardly break that is too little."""
    bits = math.log2((1 << 16) / 512) + math.log2(160_000)
    points = Points(np.zeros(1, np.int64), np.array([7]), np.array([20]), np.array([bits]))
    for rate, there in ((1 / 16, True), (1 / 64, True), (1 / 4096, False), (0.0, False)):
        found = accept(group(points, {}, {}), {0: 0}, Taken(Claims(), {}), least_weight(1 << 16, rate))
        assert [(s.first, s.delta) for s in found] == [(7, 20)] * there
