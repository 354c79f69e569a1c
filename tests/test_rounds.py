"""What a round of the solver need not ask again: a container that reads as it did tells what it told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from vmcarve.assemble import gather, solve
from vmcarve.assemble.breaks import Expectation
from vmcarve.assemble.candidate import Candidate
from vmcarve.assemble.loose import Loose
from vmcarve.assemble.places import Owned, Places
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, Container, GuestDisk, GuestMap
from vmcarve.source import BytesReader
from vmcarve.tables import EVIDENCE

SIZE = 1 << 16
ROOM = np.array([[0, SIZE]], np.int64)
OWNED = [Owned(0, SIZE, 0, 0)]


def container() -> Container:
    return Container("made", "", SIZE, [GuestDisk(SIZE, GuestMap.flat(SIZE))])


def candidate() -> Candidate:
    return Candidate(0, container(), FileMap.build([(0, SIZE, 0, GUESSED, "continuity")]), lambda _: None)


def test_volumes_are_given_again_only_when_a_container_or_the_places_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same container, as an object, has the same tables; and the same places the same volumes."""
    asked: list[int] = []

    def assign(image: object, containers: Sequence[object], *more: object) -> list[list[Owned]]:
        asked.append(len(containers))
        return [OWNED for _ in containers]

    monkeypatch.setattr(solve, "assign", assign)
    image = BytesReader(bytes(SIZE))
    some, loose = [candidate(), candidate()], Loose(image)
    places = [Places.of(pa.Table.from_pylist([], EVIDENCE)) for _ in range(2)]

    def give(which: int) -> int:
        solve._give_volumes(image, some, places[which], {}, loose, ROOM)
        assert all(c.owned == OWNED for c in some)
        return len(asked)

    assert [give(0), give(0), give(1), give(1)] == [1, 1, 2, 2]
    some[1].container = container()
    assert [give(1), give(1)] == [3, 3]


def test_what_to_expect_is_asked_again_only_when_the_guest_reads_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it was read through the same and is the same container; never where that is not known."""
    c, asked = candidate(), list[int]()

    def expect(c: Candidate) -> Expectation:
        asked.append(1)
        return Expectation(np.empty(0, np.uint8), c.ends, np.zeros(1, np.int64))

    monkeypatch.setattr(gather, "expect", expect)

    def times() -> int:
        gather.expected(c)
        return len(asked)

    assert [times(), times()] == [1, 2]
    c.read = object()
    assert [times(), times()] == [3, 3]
    c.container = container()
    assert [times(), times()] == [4, 4]
    c.read = object()
    assert [times(), times()] == [5, 5]
