"""The kernels of the content pins against plain Python."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.call_votes import call_votes as call_votes_reference
from tests.reference.leaf_rows import leaf_rows as leaf_rows_reference
from vmcarve._ext.call_votes import call_votes
from vmcarve._ext.leaf_rows import leaf_rows

PAGE = 4096


def varint(value: int, more: int = 0) -> bytes:
    """A number in groups of 7 bits, with `more` empty ones before it."""
    groups = [value >> shift & 0x7F for shift in range(0, max(7, value.bit_length()), 7)][::-1]
    groups = [0] * more + groups
    return bytes([g | 0x80 for g in groups[:-1]] + groups[-1:])


@st.composite
def pages(draw: st.DrawFn) -> bytes:
    """A leaf whose numbers are at their limits and around them, or nearly one."""
    page = bytearray(random.Random(draw(st.integers(0, 9))).randbytes(PAGE))
    cells = draw(st.sampled_from([0, 1, 2, 40, 2043, 2044, 2045]))
    page[0] = draw(st.sampled_from([13, 13, 13, 13, 10, 5]))
    page[3:5] = cells.to_bytes(2, "big")
    for pointer in (8, 8 + 2 * (cells - 1)):
        at = draw(st.sampled_from([8 + 2 * cells - 1, 8 + 2 * cells, 1000, 4077, 4078, 4079, 65535]))
        cell = varint(draw(st.integers(0, 1 << 40)), draw(st.integers(0, 3)))
        cell += varint(draw(st.sampled_from([0, 1, 127, 128, 5000, (1 << 56) - 1])), draw(st.integers(0, 3)))
        if 0 <= pointer <= PAGE - 2:
            page[pointer : pointer + 2] = at.to_bytes(2, "big")
        page[at : at + len(cell)] = cell[: max(0, PAGE - at)]
    return bytes(page)


@settings(max_examples=300, deadline=None)
@given(st.lists(pages(), max_size=4), st.integers(0, 700), st.integers(0, 4 * PAGE), st.integers(0, 700))
def test_leaf_rows_is_the_reference(made: list[bytes], first: int, end: int, behind: int) -> None:
    buffer = bytes(first) + b"".join(made) + bytes(behind)
    out = [np.empty(len(made) + 1, np.int64) for _ in range(3)]
    n = leaf_rows(np.frombuffer(buffer, np.uint8), first, end, *out)
    assert list(zip(*(column[:n].tolist() for column in out), strict=True)) == leaf_rows_reference(buffer, first, end)


def test_leaf_rows_at_the_end_of_the_page() -> None:
    """The last cell that can be one, and numbers of nine bytes, whose value means nothing but which are read."""
    page = bytearray(PAGE)
    page[0], page[4], page[8:10] = 13, 1, (4078).to_bytes(2, "big")
    page[4078:] = b"\xff" * 8 + b"\x01" + b"\x81" * 8 + b"\x01"
    out = [np.empty(1, np.int64) for _ in range(3)]
    assert leaf_rows(np.frombuffer(bytes(page), np.uint8), 0, PAGE, *out) == 1
    assert leaf_rows_reference(bytes(page), 0, PAGE) == [(0, int(out[1][0]), int(out[2][0]))]


def test_leaf_rows_refuses_what_has_no_room() -> None:
    one = [np.empty(1, np.int64) for _ in range(3)]
    with pytest.raises(ValueError, match="no room for 2 blocks"):
        leaf_rows(np.zeros(2 * PAGE, np.uint8), 0, 2 * PAGE, *one)
    with pytest.raises(ValueError, match="before the buffer"):
        leaf_rows(np.zeros(PAGE, np.uint8), -1, PAGE, *one)


def arrays(blocks: list[list[int]], programs: list[tuple[list[int], int, int]]) -> list[np.ndarray]:
    """call_votes' arguments up to `first`."""
    start = np.array([s for starts, _, _ in programs for s in starts], np.int64)
    owner = np.repeat(np.arange(len(programs)), [len(starts) for starts, _, _ in programs]).astype(np.int64)
    order = np.argsort(start % PAGE, kind="stable")
    page, count = (np.array([p[i] for p in programs], np.int64) for i in (1, 2))
    return [np.cumsum([0, *map(len, blocks)]).astype(np.int64), np.array([t for b in blocks for t in b], np.int64),
            np.searchsorted(start[order] % PAGE, np.arange(PAGE + 1)).astype(np.int64), start[order], owner[order],
            page, count, (np.cumsum(count) - count).astype(np.int64)]


near = st.integers(-6 * PAGE, 6 * PAGE).map(lambda t: t // 512 * 512 + t % 3)  # places in a page that meet often
code = st.tuples(st.lists(st.integers(0, 8 * PAGE).map(lambda t: t // 512 * 512 + t % 3), unique=True, max_size=30),
                 st.integers(0, 3), st.integers(0, 6))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(near, unique=True, max_size=30).map(sorted), max_size=5), st.lists(code, max_size=3))
def test_call_votes_is_the_reference(blocks: list[list[int]], programs: list[tuple[list[int], int, int]]) -> None:
    """Votes are counted for each block alone; which of several equal pages is named is free."""
    given_ = arrays(blocks, programs)
    best, most, second = (np.empty(len(blocks), np.int64) for _ in range(3))
    call_votes(*given_, np.zeros(sum(p[2] for p in programs), np.uint64), best, most, second)
    first = given_[-1].tolist()
    for i, (named, votes, next_) in enumerate(call_votes_reference(blocks, programs)):
        assert (most[i], second[i]) == (votes, next_)
        assert int(best[i]) in [first[k] + page for k, page in named] or not named and best[i] == -1


def test_call_votes_refuses_arrays_that_do_not_fit() -> None:
    def voted(**changed: np.ndarray) -> None:
        names = ("cut", "target", "head", "start", "owner", "page", "count", "first")
        given_ = dict(zip(names, arrays([[0, 512]], [([0, 512, 4096], 0, 2)]), strict=True)) | changed
        call_votes(*given_.values(), np.zeros(2, np.uint64), *(np.empty(1, np.int64) for _ in range(3)))

    voted()
    wrong = {"cut": [0, 3], "target": [0], "head": [0] * 4096, "owner": [0, 0, 1], "count": [3], "first": [1]}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match="."):
            voted(**{name: np.array(value, np.int64)})
    with pytest.raises(ValueError, match="falls"):
        voted(head=np.array([0, 3, 2, *[3] * 4094], np.int64))
