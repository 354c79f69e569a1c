"""Borders of an image's blocks: what goes on over them, and what two files left beside each other."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.content.test_joins import prose
from vmcarve.assemble import sides
from vmcarve.assemble.align import USED
from vmcarve.assemble.breaks import Borders, Expectation, lay_out
from vmcarve.assemble.content.joins import Kind, kind_of, kinds_of
from vmcarve.assemble.segments import BLOCK, Segment, Taken, accept
from vmcarve.assemble.sides import Sides
from vmcarve.assemble.state import Claims
from vmcarve.assemble.tails import FileEnds
from vmcarve.filemap import FileMap
from vmcarve.source import BytesReader

AT = 100  # the delta of the second run, in blocks


def text(seed: int, blocks: int) -> bytes:
    """Lines of words of its own, that come again."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(4, 11))) for _ in range(12)]
    return "\n".join(" ".join(rng.choices(words, k=9)) for _ in range(blocks * 80)).encode()[: blocks * BLOCK]


def noise(seed: int, blocks: int) -> bytes:
    return random.Random(seed).randbytes(blocks * BLOCK)


def test_where_two_files_meet_the_border_says_so() -> None:
    """Of another kind, or of one kind and not going on; amid either file the border speaks against it."""
    image = BytesReader(noise(1, 8) + text(2, 8) + text(3, 8) + noise(4, 8) + bytes(8 * BLOCK))
    apart = Sides(image).apart(BLOCK, np.ones(39, np.bool_))
    assert (apart[[7, 15, 23]] > 1).all()
    inside = np.delete(apart, [7, 15, 23])
    assert (inside[:28] < 0).all() and (inside[28:] == 0).all(), "zeros lie beside anything"


def test_a_border_that_is_not_asked_says_nothing() -> None:
    asked = np.arange(15) % 2 == 0
    apart = Sides(BytesReader(text(2, 8) + noise(1, 8))).apart(BLOCK, asked)
    assert (apart[asked] != 0).all() and (apart[~asked] == 0).all()


def test_a_border_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds ask of the same places again, from wherever their gaps begin."""
    seen: list[int] = []

    def some(blocks: np.ndarray) -> np.ndarray:
        seen.append(len(blocks))
        return kinds_of(blocks)

    monkeypatch.setattr(sides, "kinds_of", some)
    known = Sides(BytesReader(noise(1, 64)))
    first = known.apart(BLOCK, np.ones(40, np.bool_))
    before = len(seen)
    assert known.apart(4 * BLOCK, np.ones(30, np.bool_)).tolist() == first[3:33].tolist() and len(seen) == before


def test_kinds_of_many_blocks_are_those_of_each() -> None:
    blocks = [noise(1, 1), text(2, 1), prose(random.Random(1))[:BLOCK], bytes(BLOCK), b"\xff" * BLOCK,
              bytes(range(32)) * 128, b"\x48\x89\xe8\x0f\x01\x02\x03\x04" * 512]
    kinds = kinds_of(np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, BLOCK))
    assert kinds.tolist() == [kind_of(b)[0] for b in blocks]
    assert kinds.tolist() == [Kind.DENSE, Kind.TEXT, Kind.TEXT, Kind.FILL, Kind.FILL, Kind.OTHER, Kind.CODE]


@pytest.mark.parametrize(("x", "known"), [(13, True), (17, True), (13, False)])
def test_a_run_ends_where_what_it_holds_does(x: int, known: bool) -> None:
    """Each run is text and what lies behind and before it is not: the only place that has both borders is the break.
    Where no file of the guest is known nobody can say what should go on."""
    own = text(5, 40)
    data = bytearray(noise(6, 200))
    data[: x * BLOCK] = own[: x * BLOCK]
    data[(AT + x) * BLOCK : (AT + 40) * BLOCK] = own[x * BLOCK :]
    nothing = np.empty(0, np.int64)
    ends = FileEnds(nothing, np.empty(0, np.uint8), np.zeros(int(known), np.int64))
    expected = Expectation(np.full(40, USED, np.uint8), ends, np.zeros(41, np.int64))
    segments = [Segment(0, d, np.array(f, np.int64), np.full(2, 99.0), 198.0) for d, f in ((0, [0, 9]), (AT, [22, 39]))]
    taken = Taken(Claims(), {})
    strong = accept(segments, {0: 0}, taken, 1.0)
    rows = lay_out(BytesReader(bytes(data)), {0: 0}, {0: 40 * BLOCK}, strong, {0: expected}, taken, Borders(round=0.0))
    found = [(f // BLOCK, n // BLOCK, p // BLOCK) for f, n, p, *_ in FileMap.build(rows[0]).rows()]
    assert (found == [(0, x, 0), (x, 40 - x, AT + x)]) == known
