"""Copies in a journal of ext4 tell what they are copies of, not where they lie: what is before them shows them."""

from __future__ import annotations

import struct

import numpy as np

from vmcarve.host._ext_journal import COMMIT, DESCRIPTOR, MAGIC, OUR_MAX_LOGGED, logged


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
