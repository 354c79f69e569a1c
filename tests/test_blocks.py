"""Candidates in a buffer, and the kernels that read them: what numpy and plain Python say of the same bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.extent_blocks import is_extent_block
from vmcarve._ext.extent_blocks import extent_blocks
from vmcarve._ext.gather import gather, gather_fields
from vmcarve.blocks import Blocks, distinct

DATA = np.random.default_rng(4).integers(0, 256, 4000, np.uint8)
DATA.flags.writeable = False


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3900), max_size=20), st.integers(0, 99), st.integers(0, 99), st.data())
def test_blocks_read_like_an_array(at: list[int], a: int, b: int, data: st.DataObject) -> None:
    """Columns, rows, fields and single bytes are those of uint8[n, 100], whether the structures overlap or not."""
    first, last = min(a, b), max(a, b)
    where = np.array(at, np.int64)
    plain = DATA[where[:, None] + np.arange(100)] if at else np.zeros((0, 100), np.uint8)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(at), max_size=len(at))), np.bool_)
    for blocks in (Blocks(DATA, where, 100), Blocks.of(plain)):
        assert len(blocks) == len(plain) and blocks.shape == plain.shape
        assert (np.asarray(blocks) == plain).all()
        assert (blocks[:, first:last] == plain[:, first:last]).all()
        assert (blocks[chosen, first:last] == plain[chosen, first:last]).all()
        assert (np.asarray(blocks[np.flatnonzero(chosen)]) == plain[chosen]).all()
        assert (blocks[:, a] == plain[:, a]).all() and (blocks[:, -1] == plain[:, -1]).all()
        assert (blocks[:, first:last:3] == plain[:, first:last:3]).all()
        part = blocks.part(first, last - first)
        assert (np.asarray(part) == plain[:, first:last]).all() and part.buffer is blocks.buffer
        if at:
            assert (blocks[0] == plain[0]).all() and blocks[0, a] == plain[0, a]
        places = np.array(data.draw(st.lists(st.integers(0, 96), min_size=len(at), max_size=len(at))), np.int64)
        want = [int.from_bytes(row[p : p + 4].tobytes(), "big") for row, p in zip(plain, places, strict=True)]
        assert blocks.field(places, ">u4").tolist() == want


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3900), max_size=20),
       st.lists(st.tuples(st.integers(0, 84), st.sampled_from(["u1", "<u2", ">u4", "<u8", "V16", "V7"])), max_size=6))
def test_fields_in_one_pass(at: list[int], wanted: list[tuple[int, str]]) -> None:
    """Several fields at once are what each is alone, whatever they overlap."""
    blocks = Blocks(DATA, np.array(at, np.int64), 100)
    got = blocks.fields(*wanted)
    assert [field.tobytes() for field in got] == [blocks.field(place, kind).tobytes() for place, kind in wanted]


def test_fields_outside_are_refused() -> None:
    """Arguments of the kernel are checked before it runs without checks, and places while it runs."""
    def call(at: int, first: list[int], length: list[int], room: int) -> int:
        return gather_fields(DATA[:100], np.array([0, at]), np.array(first, np.int64), np.array(length, np.int64),
                             np.zeros(room, np.uint8))

    assert call(92, [0, 4], [4, 4], 16) == 0
    for wrong in ((93, [0, 4], [4, 4], 16), (-1, [4], [4], 8), (0, [99], [2], 4), (0, [-1], [2], 4), (0, [0], [-1], 0),
                  (0, [0], [4], 7), (0, [0, 1], [4], 8), (0, [0] * 17, [1] * 17, 34), (1 << 62, [4], [4], 8)):
        with pytest.raises(ValueError, match="outside|out has|fields"):
            call(*wrong)
    blocks = Blocks(DATA, np.array([0]), 100)
    for field in ((-1, "<u4"), (97, "<u4")):
        with pytest.raises(IndexError):
            blocks.fields((0, "<u8"), field)


def test_nothing_outside_is_read() -> None:
    """A structure that leaves the buffer, or a field that leaves its structure, is refused."""
    out = np.zeros((1, 4), np.uint8)
    for at, first in ((-1, 0), (97, 0), (96, 1), (0, -1), (1 << 62, 1 << 62)):
        with pytest.raises(ValueError, match="outside"):
            gather(DATA[:100], np.array([at], np.int64), first, out)
    blocks = Blocks(DATA, np.array([0, 50], np.int64), 100)
    for call in (lambda: blocks.field(97, "<u4"), lambda: blocks.field(np.array([0, 97]), "<u4"),
                 lambda: blocks.field(np.array([-1, 0]), "<u4"), lambda: blocks.bytes(99, 2),
                 lambda: blocks.part(99, 2), lambda: blocks.part(-1, 2)):
        with pytest.raises(IndexError):
            call()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=12), st.sampled_from([3, 8, 16]))
def test_distinct_rows(runs: list[tuple[int, int]], width: int) -> None:
    """Each row is the name that it points at, and no name is listed twice."""
    ids = [value for value, n in runs for _ in range(n)]
    rows = np.array([[7] * (width - 1) + [i] for i in ids], np.uint8).reshape(-1, width)
    names, which = distinct(rows)
    assert len(set(names)) == len(names) == len(set(ids))
    assert [names[w] for w in which] == [row.tobytes() for row in rows]


# --- extent blocks ----------------------------------------------------------------------------------------------------
BEGIN, LENGTH, PLACE = st.integers(0, 40), st.integers(0, 3), st.integers(0, 2)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0xF30A, 0xF30A, 0xF30A, 0]), st.integers(0, 5), st.sampled_from([3, 4, 84]), st.integers(0, 6),
       st.lists(st.tuples(BEGIN, LENGTH, PLACE), max_size=6), st.booleans(), st.booleans(), st.integers(12, 80))
def test_extent_blocks(magic: int, entries: int, most: int, depth: int, rows: list[tuple[int, int, int]], rising: bool,
                       edge: bool, length: int) -> None:
    """Heads and entries of every kind, cut off anywhere: the kernel says what the plain reading says."""
    body = bytearray(struct.pack("<4HI", magic, entries, most, depth, 0))
    at = 0xFFFFFFFF - 60 if edge else 0
    for begin, span, place in rows:
        at = at + begin if rising else begin
        raw = span | 0x8000 if span and place == 2 else span
        body += struct.pack("<IHHI", at & 0xFFFFFFFF, raw, place // 2, place & 1) if depth == 0 else struct.pack(
            "<IIHH", at & 0xFFFFFFFF, place & 1, place // 2, 9)
        at += span
    buf = np.frombuffer(b"\xf3" + bytes(body).ljust(100, b"\0"), np.uint8)
    good = np.full(2, 7, np.uint8)
    extent_blocks(buf, np.array([1, 0], np.int64), length, np.array([84, 3], np.uint16), good)
    assert good[0] == is_extent_block(buf[1 : 1 + length].tobytes(), [84, 3])
    assert good[1] == is_extent_block(buf[:length].tobytes(), [84, 3])


def test_extent_blocks_outside_are_refused() -> None:
    """Arguments are checked before the loop runs without checks."""
    buf, limits, good = np.zeros(50, np.uint8), np.array([84], np.uint16), np.zeros(1, np.uint8)
    for at, length in ((-1, 12), (39, 12), (0, 51), (0, 11)):
        with pytest.raises(ValueError, match="outside|no head"):
            extent_blocks(buf, np.array([at], np.int64), length, limits, good)
    with pytest.raises(ValueError, match="places"):
        extent_blocks(buf, np.array([0, 1], np.int64), 12, limits, good)
