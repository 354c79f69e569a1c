"""The first-look kernel against its plain reference, on read-only, unaligned buffers and at every edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.first_look import first_look as reference
from vmcarve._ext.first_look import first_look
from vmcarve.model import Signature
from vmcarve.sweeper.table import Entry, compile_table

MAGICS = [(0, b"KDMV"), (0, b"KD"), (0x40, b"\x7f\x10\xda\xbe"), (257, b"ustar"), (510, b"\x55\xaa"), (0, b"\0\0")]


def table(magics: list[tuple[int, bytes]]):
    return compile_table([Entry("t", Signature(m, f"t.{i}", at), lambda *_: None, None)
                          for i, (at, m) in enumerate(magics)])


def look(buf: bytes, magics: list[tuple[int, bytes]], cap: int = 64) -> list[tuple[int, int]]:
    t = table(magics)
    sectors, found = np.empty(cap, np.int64), np.empty(cap, np.int32)
    resume = np.zeros(1, np.int64)
    view = np.frombuffer(buf, np.uint8)
    assert not view.flags.writeable
    out: list[tuple[int, int]] = []
    done = 0
    while done < len(view) // 512:
        n = first_look(view[done * 512 :], t.probe, t.gate, t.only, t.first, t.next_, t.magic, t.room, sectors, found,
                       resume)
        out += [(int(s) + done, int(m)) for s, m in zip(sectors[:n], found[:n], strict=True)]
        assert resume[0] > 0, "the kernel must go forward"
        done += int(resume[0])
    return sorted(out)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(range(len(MAGICS)))), max_size=60),
       st.integers(0, 600), st.integers(len(MAGICS), 20))
def test_finds_what_the_reference_finds(plants: list[tuple[int, int]], tail: int, cap: int) -> None:
    """Every planted magic is found once, however small the result arrays and however long the tail."""
    buf = bytearray(b"\xee" * (41 * 512 + tail))
    for sector, which in plants:
        at, magic = MAGICS[which]
        buf[sector * 512 + at : sector * 512 + at + len(magic)] = magic
    assert look(bytes(buf), MAGICS, cap) == sorted(reference(bytes(buf), MAGICS))


def test_a_magic_across_a_sector_end_is_no_hit() -> None:
    """A magic that begins in one sector and ends in the next lies in neither."""
    buf = bytearray(2048)
    buf[510:514] = b"KDMV"
    assert look(bytes(buf), [(0, b"KDMV")]) == []


@pytest.mark.parametrize("size", [0, 1, 511])
def test_less_than_a_sector_is_nothing(size: int) -> None:
    """A tail that is no sector is not looked at."""
    assert look(b"K" * size, MAGICS) == []


def test_tables_of_the_wrong_shape_are_refused() -> None:
    """Arguments are checked before the loop runs without checks."""
    t = table(MAGICS)
    sectors, found = np.empty(8, np.int64), np.empty(7, np.int32)
    with pytest.raises(ValueError, match="one length"):
        first_look(np.zeros(512, np.uint8), t.probe, t.gate, t.only, t.first, t.next_, t.magic, t.room, sectors, found,
                   np.zeros(1, np.int64))


def test_a_magic_that_leaves_its_sector_is_refused() -> None:
    """A signature whose magic crosses a sector's end could never be found, so it is a mistake of its module."""
    with pytest.raises(ValueError, match="inside one sector"):
        table([(510, b"abcd")])
