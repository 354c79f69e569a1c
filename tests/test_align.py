"""Breaks: the kernel against its plain reference, and the named breaks on small made-up layouts."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.delta_path import delta_path as reference
from vmcarve._ext.delta_path import delta_path
from vmcarve.assemble.align import COSTS, FREE, ROUND_BLOCKS, UNKNOWN, USED, Pin, align


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_kernel_does_what_the_reference_does(data: st.DataObject) -> None:
    """Actions, jumps and the last state agree on any layout, pins included."""
    n, m = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 30))
    delta = np.array(sorted(data.draw(st.sets(st.integers(-8, 12), min_size=1, max_size=8))), np.int64)
    k = len(delta)
    bits = st.lists(st.integers(0, 1), min_size=m, max_size=m)
    full, others = (np.array(data.draw(bits), np.uint8) for _ in range(2))
    expected = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), np.uint8)
    pinned = np.full(n, -1, np.int64)
    for f in data.draw(st.sets(st.integers(0, n - 1), max_size=3)):
        pinned[f] = data.draw(st.integers(0, k - 1))
    start = data.draw(st.integers(0, k - 1))
    cost = np.array(list(COSTS.values()))
    action, jump = np.zeros((n, k), np.uint8), np.zeros(n, np.int32)
    last = delta_path(expected, full, others, delta, start, pinned, cost, 4, action, jump, np.zeros((2, k)),
                      np.zeros((2, k), np.uint8))
    want = reference(expected.tolist(), full.tolist(), others.tolist(), delta.tolist(), start, pinned.tolist(),
                     cost.tolist(), 4)
    assert (action.tolist(), jump.tolist(), last) == want


def lay(expected: list[int], image: str, pins: list[Pin]) -> list[int]:
    """image: `x` full, `.` zero, `o` full and somebody else's."""
    full = np.array([c != "." for c in image], bool)
    others = np.array([c == "o" for c in image], bool)
    found = align(np.array(expected, np.uint8), full, others, pins)
    assert found is not None
    return found.tolist()


def test_one_run_stays_one_run() -> None:
    """Nothing speaks against continuity, so nothing breaks it."""
    assert lay([USED] * 6 + [FREE] * 4, "xxxxxx....", [Pin(0, 0)]) == list(range(10))


def test_a_packed_host_hole_lies_where_the_guest_is_free() -> None:
    """The file jumps over a free range, the image does not: two pins tell how much, the guest tells where."""
    expected = [USED] * 10 + [FREE] * 30 + [USED] * 10
    got = lay(expected, "x" * 20, [Pin(0, 0), Pin(49, 19)])
    assert got == list(range(10)) + [-1] * 30 + list(range(10, 20))


def test_a_host_that_packs_may_go_on_packing() -> None:
    """Holes behind the last pin are found only where the host is known to pack."""
    expected = [USED] * 8 + [FREE] * 20 + [USED] * 8
    image = "x" * 16 + "." * 40
    full = np.array([c == "x" for c in image])
    none = np.zeros(len(image), bool)
    packed = align(np.array(expected, np.uint8), full, none, [Pin(0, 0)], holes=20)
    assert packed is not None and packed.tolist() == [*range(8), *[-1] * 20, *range(8, 16)]
    assert lay(expected, image, [Pin(0, 0)]) == list(range(36))


def test_a_block_of_the_host_inside_the_run_is_passed_over() -> None:
    """The image jumps by one block that somebody else owns, the file does not."""
    got = lay([USED] * 12, "xxxxxoxxxxxxx", [Pin(0, 0), Pin(11, 12)])
    assert got == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]


def test_a_jump_ends_where_others_begin() -> None:
    """Two pinned runs far apart: the first ends at its neighbour, the second begins behind one."""
    image = "x" * 20 + "o" * 40 + "x" * 20
    assert lay([USED] * 40, image, [Pin(0, 0), Pin(39, 79)]) == [*range(20), *range(60, 80)]


def test_what_others_own_is_never_claimed() -> None:
    """A block of unknown use at somebody else's place is a hole, not theirs."""
    got = lay([UNKNOWN] * 30, "xxxxx" + "o" * 25, [Pin(0, 0)])
    assert got[:5] == list(range(5)) and set(got[5:]) == {-1}


def test_rounds_are_counted_in_blocks_of_some_mib() -> None:
    """The place where allocators like to break files is stated in 4 KiB blocks."""
    assert ROUND_BLOCKS * 4096 == 4 << 20


def test_a_run_that_bends_back_lies_over_nothing_of_itself() -> None:
    """13 free blocks are holes, then 38 of the image are another's: no jump gives the image's blocks twice instead."""
    expected = np.array([USED] * 3 + [FREE] * 13 + [USED] * 105, np.uint8)
    full = np.array([1] * 5 + [0] * 38 + [1] * 65, bool)
    others = np.zeros(len(full), bool)
    others[5:43] = True
    n = len(expected)
    found = align(expected, full, others, [Pin(0, 0), Pin(n - 1, n - 14)], jumps=False)
    assert found is not None
    assert found.tolist() == [0, 1, 2, *[-1] * 13, 3, 4, *[-1] * 38, *range(43, 108)]
