"""Copies in a journal of ext4 tell what they are copies of, not where they lie: what is before them shows them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from vmcarve.host._ext_journal import COMMIT, DESCRIPTOR, FLAG_LAST, FLAG_SAME_UUID, MAGIC, OUR_MAX_LOGGED, logged


def block(kind: int | None) -> bytes:
    return (b"" if kind is None else struct.pack(">III", MAGIC, kind, 7)).ljust(1024, b"\1")


def told(*kinds: int | None) -> list[bool]:
    data = np.frombuffer(b"".join(map(block, kinds)), np.uint8)
    return logged(data, np.arange(0, len(data), 1024)).tolist()


def test_what_lies_between_a_descriptor_and_a_commit_is_a_copy() -> None:
    assert told(None, DESCRIPTOR, None, None, COMMIT, None) == [False, True, True, True, False, False]


def test_what_no_descriptor_is_before_is_none() -> None:
    assert told(None, None) == [False, False]
    assert told(COMMIT, None) == [False, False]
    data = np.frombuffer(block(DESCRIPTOR).ljust(2 * OUR_MAX_LOGGED, b"\1"), np.uint8)
    assert logged(data, np.array([1024, OUR_MAX_LOGGED + 1024])).tolist() == [True, False]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("size", [1024, 4096])
def test_a_descriptor_reaches_as_far_as_it_says(size: int, wide: bool) -> None:
    """Where the end of a transaction lies elsewhere (a guest in pieces), what follows its copies is none."""
    tags = [(9, 0), (12, FLAG_SAME_UUID), (40, FLAG_SAME_UUID | FLAG_LAST)]
    parts = [struct.pack(">III", MAGIC, DESCRIPTOR, 7)]
    for home, flags in tags:
        parts.append(struct.pack(">IIII", home, flags, 0, 99) if wide else struct.pack(">IHH", home, 99, flags))
        parts.append(b"" if flags & FLAG_SAME_UUID else bytes(16))
    data = np.frombuffer(bytes(size) + b"".join(parts).ljust(64 * size, b"\1"), np.uint8)
    assert np.flatnonzero(logged(data, np.arange(0, len(data), size))).tolist() == [1, 2, 3, 4]
