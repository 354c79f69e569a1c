"""Breaks between two runs, on small made-up layouts: each thing that tells their place, by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcarve.assemble import meeting
from vmcarve.assemble.align import FREE, UNKNOWN, USED
from vmcarve.assemble.breaks import (
    CLEAR,
    FEW_RATE,
    ROUND,
    UNSEEN,
    Borders,
    Bracket,
    Contents,
    Expectation,
    Row,
    _likeliest,
    _meets,
    break_rate,
    lay_out,
)
from vmcarve.assemble.segments import BLOCK, Segment, Taken, accept
from vmcarve.assemble.state import Claims
from vmcarve.assemble.tails import FileEnds
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, MISSING
from vmcarve.source import BytesReader

FULL = b"\x5a" * BLOCK
AT = 100  # the delta of the second run, in blocks: further than the host's own blocks inside a run reach


def picture(blocks: int, zero: list[int] | None = None, parts: dict[int, list[tuple[int, int]]] | None = None
            ) -> BytesReader:
    """An image of full blocks; zero: those that are not. parts: blocks with data only in ranges (from, to)."""
    data = bytearray(FULL * blocks)
    for block, ranges in [*((z, []) for z in zero or []), *(parts or {}).items()]:
        data[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
        for low, high in ranges:
            data[block * BLOCK + low : block * BLOCK + high] = FULL[low:high]
    return BytesReader(data)


def expect(use: list[int], ends: dict[int, int] | None = None) -> Expectation:
    """use: of each file block; ends: file blocks with so many bytes of data, then zeros."""
    f = np.array(sorted(b * BLOCK + n for b, n in (ends or {}).items()), np.int64)
    empty = (BLOCK - f % BLOCK) // 512
    classes = np.array(use, np.uint8)
    return Expectation(classes, FileEnds(f, empty.astype(np.uint8), np.empty(0, np.int64)),
                       np.concatenate(([0], np.cumsum(classes == FREE))))


def run(owner: int, delta: int, *blocks: int) -> Segment:
    return Segment(owner, delta, np.array(blocks, np.int64), np.full(len(blocks), 99.0), 99.0 * len(blocks))


def laid(image: BytesReader, segments: list[Segment], expected: dict[int, Expectation],
         begins: dict[int, int] | None = None, owned: list[int] | None = None, borders: Borders | None = None
         ) -> dict[int, list[Row]]:
    """begins: image blocks of the first bytes; owned: image blocks that somebody else has. Rows in blocks, merged."""
    begins = begins or {}
    at = {o: begins.get(o, 0) * BLOCK for o in expected}
    taken = Taken(Claims(), {})
    for block in owned or []:
        taken.image.add_range(block * BLOCK, (block + 1) * BLOCK)
    strong = accept(segments, at, taken, 1.0)
    found = lay_out(image, at, {o: len(e.use) * BLOCK for o, e in expected.items()}, strong, expected, taken,
                    borders or Borders())
    return {o: [(f // BLOCK, n // BLOCK, p // BLOCK, grade, rule) for f, n, p, grade, rule in FileMap.build(r).rows()]
            for o, r in found.items()}


def broken_at(x: int, n: int = 40) -> list[Row]:
    return [(0, x, 0, GUESSED, "aligned"), (x, n - x, x + AT, GUESSED, "aligned")]


def two_runs(n: int = 40, owner: int = 0) -> list[Segment]:
    return [run(owner, 0, 0, 1), run(owner, AT, n - 2, n - 1)]


# --- jumps -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("x", [13, 17, 27])
def test_a_run_ends_where_a_neighbour_begins(x: int) -> None:
    """Everything is full, and of what lies before it the neighbour's begin is the only place that says anything."""
    got = laid(picture(140), [*two_runs(), run(1, 0, 0)], {0: expect([USED] * 40), 1: expect([USED])}, {1: x})
    assert got == {0: broken_at(x), 1: [(0, 1, x, GUESSED, "aligned")]}


@pytest.mark.parametrize("x", [13, 27])
def test_a_run_begins_where_a_neighbour_ended(x: int) -> None:
    """A break that is clear tells its neighbour's: owner 1's first run ends where owner 0's second one begins."""
    # 64 blocks of owner 1 end where owner 0's second run begins, ten more lie at 250: its contents there tell that;
    # of owner 0 nothing is known but two blocks at each end
    first, there = x + AT - 64, 64
    other = [run(1, 0, 0, 1), run(1, 250 - first - there, there + 8, there + 9)]
    zero = [*range(x + AT, 136), *range(252 - there, 250)]
    got = laid(picture(300, zero), [*two_runs(), *other], {0: expect([USED] * 2 + [UNKNOWN] * 36 + [USED] * 2),
                                                           1: expect([USED] * (there + 10))}, {1: first})
    assert got[1] == [(0, there, first, GUESSED, "aligned"), (there, 10, 250, GUESSED, "aligned")]
    assert got[0] == broken_at(x)


@pytest.mark.parametrize("x", [13, 27])
def test_used_blocks_are_not_zero(x: int) -> None:
    """The first run ends before the zeros behind it, the second begins behind those before it."""
    image = picture(140, [*range(x, 40), *range(AT + 2, AT + x)])
    assert laid(image, two_runs(), {0: expect([USED] * 40)}) == {0: broken_at(x)}


@pytest.mark.parametrize("x", [8, 24])
def test_free_blocks_are_zero(x: int) -> None:
    """The same the other way round: full blocks are not at the place of those that the guest holds free."""
    image = picture(140, [*range(2, x), *range(AT + x, AT + 38)])
    assert laid(image, two_runs(), {0: expect([USED] * 2 + [FREE] * 36 + [USED] * 2)}) == {0: broken_at(x)}


@pytest.mark.parametrize(("n", "more"), [(100, (100, 101)), (100, (4095, 4096)), (1537, (1537, 1538)),
                                         (1537, (2048, 2049))])
@pytest.mark.parametrize("x", [13, 27])
def test_a_file_end_tells_which_run_a_block_is_of(x: int, n: int, more: tuple[int, int]) -> None:
    """Files end in the blocks before and behind the break. In the other run there is one byte behind the end."""
    image = picture(140, parts={x - 1: [(0, n)], AT + x - 1: [(0, n), more], x: [(0, n), more], AT + x: [(0, n)]})
    assert laid(image, two_runs(), {0: expect([USED] * 40, {x - 1: n, x: n})}) == {0: broken_at(x)}


@pytest.mark.parametrize(("x", "count", "learned"), [(16, 4, ROUND), (17, 4, 0.0), (16, 3, UNSEEN), (17, 3, UNSEEN)])
def test_breaks_that_are_clear_tell_whether_the_host_breaks_at_round_places(x: int, count: int, learned: float) -> None:
    """Four are enough, where others own what lies beyond; one more is left to use it."""
    begins = {o: 300 * o for o in range(count + 1)}
    owned = [300 * o + b for o in range(count) for b in (*range(x, 38), *range(AT + 2, AT + x))]
    borders = Borders()
    got = laid(picture(300 * count + 140), [s for o in begins for s in two_runs(owner=o)],
               {o: expect([USED] * 40) for o in begins}, begins, owned, borders)
    assert [rows[0][1] for rows in got.values()][:count] == [x] * count
    assert borders.round == learned


def test_a_part_that_neither_run_explains_is_a_hole() -> None:
    """Both runs would reach over what others own there."""
    owned = [*range(11, 30), *range(AT + 5, AT + 29)]
    got = laid(picture(140), two_runs(), {0: expect([USED] * 40)}, owned=owned)
    assert got == {0: [(0, 11, 0, GUESSED, "aligned"), (11, 18, -1, MISSING, "not-found"),
                       (29, 11, AT + 29, GUESSED, "aligned")]}


@pytest.mark.parametrize("rest", [3, 36])
def test_one_block_of_others_is_not_given_for_the_rest(rest: int) -> None:
    """Where a hole would cost more than one owned block, the run goes on behind that; the block itself is not ours."""
    owned = [2, *range(AT + 2, AT + 2 + rest)]
    n = rest + 4
    got = laid(picture(150), two_runs(n), {0: expect([USED] * n)}, owned=owned)
    assert all(p + k <= b or b < p for _, k, p, _, _ in got[0] if p >= 0 for b in owned)


# --- runs that bend, and gaps of one run ------------------------------------------------------------------------------
def test_a_host_hole_inside_a_run_lies_where_the_guest_is_free() -> None:
    """The file goes on by ten blocks more than the image: exactly where the guest has ten free ones."""
    use = [USED] * 14 + [FREE] * 10 + [USED] * 16
    got = laid(picture(50), [run(0, 0, 0, 1), run(0, -10, 38, 39)], {0: expect(use)})
    assert got == {0: [(0, 14, 0, GUESSED, "aligned"), (14, 10, -1, MISSING, "aligned.host-hole"),
                       (24, 16, 14, GUESSED, "aligned")]}


def test_a_hole_may_hold_blocks_that_are_used_and_zero() -> None:
    """Of 140 blocks of a hole the guest calls 138 free. That 63 used ones behind it are zero is no reason to let the
    run begin earlier and jump: it would lie over itself."""
    use = [USED] * 14 + [FREE] * 138 + [USED] * 120
    got = laid(picture(140, list(range(20, 83))), [run(0, 0, 0, 1), run(0, -140, 270, 271)], {0: expect(use)})
    assert got == {0: [(0, 14, 0, GUESSED, "aligned"), (14, 140, -1, MISSING, "aligned.host-hole"),
                       (154, 118, 14, GUESSED, "aligned")]}


def test_a_block_of_the_host_inside_a_run_is_passed_over() -> None:
    """The image goes on by one block more than the file: the one that somebody else owns."""
    got = laid(picture(50), [run(0, 0, 0, 1), run(0, 1, 38, 39)], {0: expect([USED] * 40)}, owned=[17])
    assert got == {0: [(0, 17, 0, GUESSED, "aligned"), (17, 23, 18, GUESSED, "aligned")]}


def test_a_gap_of_one_run_is_the_run() -> None:
    """What others own in it is theirs."""
    got = laid(picture(50), [run(0, 0, 0, 1), run(0, 0, 38, 39)], {0: expect([USED] * 40)}, owned=[20, 21])
    assert got == {0: [(0, 20, 0, GUESSED, "aligned"), (20, 2, -1, MISSING, "others"),
                       (22, 18, 22, GUESSED, "aligned")]}


@pytest.mark.parametrize(("use", "mine"), [(FREE, False), (USED, True)])
def test_free_blocks_of_a_run_are_ours_when_nobody_else_has_them(use: int, mine: bool) -> None:
    """A later container's used blocks lie where this one's free blocks would: its place, for it needs them."""
    first = expect([USED] * 10 + [use] * 20 + [USED] * 10)
    segments = [run(0, 0, 8, 9), run(0, 0, 30, 31)]
    alone = laid(picture(50), segments, {0: first})
    rule = "padding" if use == FREE else "aligned"
    assert {(f, n, p, r) for f, n, p, _, r in alone[0]} >= ({(10, 20, 10, rule)} if use == FREE else {(0, 32, 0, rule)})
    other = [run(1, 0, 0), run(1, 0, 10)]  # image blocks 14 and 24, with used ones between
    both = laid(picture(50), [*segments, *other], {0: first, 1: expect([USED] * 11)}, {1: 14})
    if mine:
        assert both[1] == [(0, 1, 14, GUESSED, "aligned"), (1, 9, -1, MISSING, "others"),
                           (10, 1, 24, GUESSED, "aligned")]
    else:
        assert both[1] == [(0, 11, 14, GUESSED, "aligned")]
        assert [r for r in both[0] if 10 <= r[0] < 30] == [
            (10, 4, 10, GUESSED, "padding"), (14, 11, -1, MISSING, "others"), (25, 5, 25, GUESSED, "padding")]


def test_a_run_goes_on_before_and_behind_as_far_as_nobody_is_there() -> None:
    """Before the first point and behind the last one, up to where the image ends."""
    got = laid(picture(30), [run(0, -5, 15, 16)], {0: expect([USED] * 40)}, owned=[4, 20])
    assert got == {0: [(0, 5, -1, MISSING, "not-found"), (5, 4, 0, GUESSED, "aligned"), (9, 1, -1, MISSING, "others"),
                       (10, 7, 5, GUESSED, "aligned"), (17, 8, 12, GUESSED, "continuity"),
                       (25, 1, -1, MISSING, "others"), (26, 9, 21, GUESSED, "continuity"),
                       (35, 5, -1, MISSING, "others")]}


# --- always ----------------------------------------------------------------------------------------------------------
@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    owners = draw(st.integers(1, 3))
    uses = [draw(st.lists(st.sampled_from([USED, FREE, UNKNOWN]), min_size=20, max_size=50)) for _ in range(owners)]
    begins = {o: draw(st.integers(0, 12 * 8)) * 512 for o in range(owners)}
    segments = [run(o, draw(st.sampled_from([*range(-12, 13), 30, 70])), *sorted(draw(st.sets(
        st.integers(0, len(uses[o]) - 1), min_size=1, max_size=3))))
        for o in range(owners) for _ in range(draw(st.integers(0, 4)))]
    return {"uses": uses, "begins": begins, "segments": segments,
            "zero": draw(st.lists(st.integers(0, 139), max_size=40)),
            "owned": draw(st.lists(st.tuples(st.integers(0, 1100), st.integers(1, 40)), max_size=6)),
            "odd": draw(st.integers(0, BLOCK - 1))}


@settings(max_examples=300, deadline=None)
@given(scenes())
def test_no_byte_is_given_twice(scene: dict[str, Any]) -> None:
    """Of any runs, in any order: each file is told whole, and each byte of the image has one owner at most."""
    taken = Taken(Claims(), {})
    given: list[tuple[int, int]] = []
    for at, n in scene["owned"]:
        taken.image.add_range(at * 512, (at + n) * 512)
    given += taken.image.ranges()
    expected = {o: expect(use) for o, use in enumerate(scene["uses"])}
    sizes = {o: len(use) * BLOCK - scene["odd"] for o, use in enumerate(scene["uses"])}
    image = picture(140, scene["zero"])
    begins = scene["begins"]
    inside = [s for s in scene["segments"] if begins[s.owner] + (s.last + s.delta + 1) * BLOCK <= image.size]
    strong = accept(inside, begins, taken, 1.0)
    found = lay_out(image, begins, sizes, strong, expected, taken, Borders())
    assert set(found) == {s.owner for s in strong}
    for o, rows in found.items():
        at = 0
        for f, n, p, grade, _ in rows:
            assert f == at and n > 0 and (p >= 0) == (grade == GUESSED) and -1 <= p <= image.size - n
            at += n
            given += [(p, p + n)] if p >= 0 else []
        assert at == sizes[o]
    given.sort()
    assert all(end <= start for (_, end), (start, _) in zip(given, given[1:], strict=False))
    for s in strong:
        for f in s.points.tolist():
            cut = FileMap.build(found[s.owner]).cut(f * BLOCK, 1)
            assert not cut or cut[0][2] == begins[s.owner] + (f + s.delta) * BLOCK, "what is pinned stays where it is"


# --- how often files break -------------------------------------------------------------------------------------------
def chain_of(lengths: list[int], every: int) -> list[Segment]:
    """A file of runs of these lengths, each at its own delta, with a point at every so many blocks."""
    out: list[Segment] = []
    at = 0
    for n, length in enumerate(lengths):
        points = np.arange(-(-at // every) * every, at + length, every, dtype=np.int64)
        out += [Segment(0, 1000 * n, points[i : i + 1], np.full(1, 40.0), 40.0) for i in range(len(points))]
        at += length
    return out


@pytest.mark.parametrize("every", [3, 40, 200])
def test_the_rate_of_breaks_shows_between_points(every: int) -> None:
    """However far apart the points lie: what counts is which of them are still together."""
    rng = np.random.default_rng(2)
    lengths = (rng.exponential(250, 400) + 1).astype(int).tolist()
    assert break_rate([chain_of(lengths, every)]) == pytest.approx(1 / 250, rel=0.25)


def test_few_breaks_tell_no_rate() -> None:
    assert break_rate([chain_of([300] * FEW_RATE, 20)]) == 0.0
    assert break_rate([chain_of([300] * (FEW_RATE + 1), 20)]) > 0.0


def test_where_files_break_often_a_wide_gap_is_a_hole() -> None:
    """Between two runs that lie 40 times the usual length apart, each goes on for a while, and the rest is nobody's."""
    n, rate = 10_000, 1 / 250
    (x, y), _ = _likeliest(0, np.zeros(n + 1), np.zeros(n + 1), rate)
    assert x == pytest.approx(250 * np.log(2), rel=0.1) and n - y == pytest.approx(x, abs=2)


def test_where_files_hardly_break_a_gap_holds_one_break() -> None:
    """Alike everywhere: the middle."""
    (x, y), sure = _likeliest(0, np.zeros(101), np.zeros(101), 1e-6)
    assert x == y == pytest.approx(50, abs=1) and sure < CLEAR


def test_a_clear_place_is_clear() -> None:
    upto = np.zeros(101)
    upto[31:] = -40.0  # the left run ends at 30, and there the right one begins
    since = np.zeros(101)
    since[:30] = -40.0
    (x, y), sure = _likeliest(0, upto, since, 1e-6)
    assert x == y == 30 and sure >= CLEAR


def test_a_gap_is_weighed_again_only_when_something_else_is_told_of_it() -> None:
    """Round after round asks of the same blocks: what the guest uses, and where its files end, may have changed."""
    contents, asked = Contents(picture(10)), list[int]()

    def score(at: int, *told: bytes) -> float:
        def ask() -> np.ndarray:
            asked.append(at)
            return np.full(3, float(len(asked)))
        return float(contents.score(at, 1, 3, told, ask)[0])

    assert [score(0, b"a"), score(0, b"a"), score(BLOCK, b"a"), score(0, b"b"), score(0, b"b")] == [1, 1, 2, 3, 3]


@pytest.mark.parametrize("ends_amid", [True, False])
def test_a_run_begins_behind_the_end_of_another_file(ends_amid: bool) -> None:
    """Where the containers' first bytes follow blocks whose data end early, a run does too; else that says nothing."""
    heads = [300 + 10 * k for k in range(9)]
    begins = {0: 0, **{k + 1: at for k, at in enumerate(heads)}}
    before = [at - 1 for at in heads if ends_amid or at % 100 == 0]
    image = picture(500, parts={block: [(0, 1000)] for block in [AT + 16, *before]})
    expected = {0: expect([UNKNOWN] * 40), **{k: expect([UNKNOWN]) for k in range(1, 10)}}
    segments = [run(0, 0, 0, 9), run(0, AT, 20, 39), *(run(k, 0, 0) for k in range(1, 10))]
    found = laid(image, segments, expected, begins)[0]
    assert (found == broken_at(17)) == ends_amid


def test_an_end_of_the_guests_own_file_is_no_sign_of_a_begin() -> None:
    """A block whose data end where the guest's file does may as well be the run's own."""
    heads = [300 + 10 * k for k in range(9)]
    begins = {0: 0, **{k + 1: at for k, at in enumerate(heads)}}
    image = picture(500, parts={block: [(0, 1000)] for block in [AT + 16, *(at - 1 for at in heads)]})
    expected = {0: expect([UNKNOWN] * 40, {16: 1000}), **{k: expect([UNKNOWN]) for k in range(1, 10)}}
    segments = [run(0, 0, 0, 9), run(0, AT, 20, 39), *(run(k, 0, 0) for k in range(1, 10))]
    assert laid(image, segments, expected, begins)[0] != broken_at(17)


def test_the_share_of_begins_with_a_sign() -> None:
    """It is told by begins of which few places are possible, and by chance where too few of those are known."""
    sure, choice, wide = (np.array(s, np.uint8) for s in ([1], [0, 1, 0], [0] * 30))
    assert meeting.share([sure] * 7, 0.1) == 0.1
    assert meeting.share([sure] * 8, 0.1) == meeting.MOST
    assert meeting.share([choice] * 20, 0.1) > 0.8
    assert meeting.share([*[sure] * 10, *[wide] * 90], 0.1) == meeting.MOST
    assert meeting.share([np.array([k % 10 == 0], np.uint8) for k in range(50)], 0.1) == pytest.approx(0.1)
    assert abs(meeting.nats(0.1, 0.1)).max() == 0.0


def test_the_share_of_runs_that_end_where_another_begins() -> None:
    """Breaks that are known to few blocks tell it, others nothing; few of them say little against what is usual."""
    meeting_, apart = [(9 * k, 9 * k + 9, 0) for k in range(50)], [(9 * k, 9 * k + 4, 1) for k in range(50)]
    assert meeting.meets([], 0.7) == meeting.meets([(5, 5, meeting.MOST_OPEN)] * 50, 0.7) == 0.7
    assert meeting.meets(meeting_, 0.7) > 0.9 and meeting.meets(apart, 0.7) < 0.1
    assert 0.5 < meeting.meets(apart[:1], 0.7) < 0.7


@pytest.mark.parametrize("n", [30, 3000])
def test_a_known_border_says_as_much_in_a_wide_gap(n: int) -> None:
    """It lies there by chance as often as borders are known on the image, wherever the gap ends; and it says nothing
    where runs end at borders no more often than that."""
    none = np.zeros(n)
    gap = Bracket(0, 0, -1, n, 0, 5000, none, none, (np.zeros(n + 1), np.zeros(n + 1)), np.zeros(n + 1, np.uint8))
    known = [20 * BLOCK, *(k * BLOCK for k in range(10**6, 10**6 + 99))]
    nats = _meets(gap, 0, n, 0, known, Borders(meets=0.1, blocks=10_000))
    assert nats[20] - nats[19] == pytest.approx(np.log(0.1 / 0.01) - np.log(0.9 / 0.99))
    assert not _meets(gap, 0, n, 0, known, Borders(meets=0.01, blocks=10_000)).any()
