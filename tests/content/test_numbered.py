"""Lines that begin with rising numbers: which are read, and what goes on from what."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vmcarve.assemble.content.letters import Edges, Letters, edge_of, lines_of
from vmcarve.assemble.content.numbered import NONE, at_begin, at_end, goes_on, only_one, rising

BLOCK = 4096


def text(first: int, step: int, form: str = "x", seed: int = 0, size: int = 2 * BLOCK) -> bytes:
    """Lines that begin with a counter, long enough for `size` bytes."""
    rng, out, at = random.Random(seed), list[str](), 0
    while at < size:
        out.append(f"{first + step * len(out):{form}} {'a' * rng.randrange(30, 80)}\n")
        at += len(out[-1])
    return "".join(out).encode()[:size]


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)[None]


@pytest.mark.parametrize("form", ["x", "d"])
def test_numbers_of_both_kinds_rise_over_a_border(form: str) -> None:
    data = text(0x1F2E3D, 0x123, form)
    a, b = array(data[:BLOCK]), array(data[BLOCK:])
    before, behind = at_end(a, lines_of(a[:, ::-1])), at_begin(b, lines_of(b))
    assert (before[:, 0] > 0).all() and (behind[:, 0] > before[:, 0]).all()
    assert [bool(v) for v in goes_on(before, behind)] == [True, True]
    assert [bool(v) for v in goes_on(behind, before)] == [True, False]
    other = text(0x9F2E3D00, 0x123, form, 1)
    far = at_begin(array(other[BLOCK:]), lines_of(array(other[BLOCK:])))
    assert [bool(v) for v in goes_on(before, far)] == [True, False]


def test_lines_without_rising_numbers_have_none() -> None:
    for data in (text(100, -1, "d"), b"word " * 900, b"12\n" * 1500, b"beef12345678901234 x\n" * 300, bytes(BLOCK)):
        block = array(data[:BLOCK].ljust(BLOCK, b"\0"))
        few = NONE if b"\n" not in data else 0  # lines: then nothing is told
        assert at_begin(block, lines_of(block))[0].tolist() == [NONE, few]
        assert at_end(block, lines_of(block[:, ::-1]))[0].tolist() == [NONE, few]
    assert rising(array(b"1 a 2 b 3 c 10 d" + bytes(40)), np.array([[4, 8, 12]]))[0, 0] == NONE  # uneven steps


def test_numbers_alone_tell_which_text_goes_on() -> None:
    """Four texts of one letter, cut amid: letters and lines say nothing."""
    texts = [text(first, 7, "d", first) for first in (1_000, 50_000, 700_000, 8_000_000)]
    ends = Edges.of([edge_of(t[:BLOCK], True) for t in texts], True)
    begins = Edges.of([edge_of(t[BLOCK:], False) for t in texts], False)
    letters = Letters.of([np.concatenate([array(t[:512]) for t in texts])])
    odds = letters.odds(ends, begins)
    for i in range(len(texts)):
        assert odds[i, i] > 20 * np.delete(odds[i], i).max()


def test_only_one_side_with_rising_numbers_is_told_where_the_other_has_lines() -> None:
    numbered, plain, short = np.array([5, 2]), np.array([NONE, 0]), np.array([NONE, NONE])
    assert only_one(numbered, plain) and only_one(plain, numbered)
    assert not only_one(numbered, numbered) and not only_one(plain, plain) and not only_one(numbered, short)
