"""Passes over an image: every step that has data is made, steps that are holes of a sparse file are not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vmcarve.assemble.window import Window, read_into, read_view, steps
from vmcarve.source import BytesReader, open_image

MIB = 1 << 20


def test_holes_of_a_sparse_image_are_passed_over(tmp_path: Path) -> None:
    """Data at both ends of a step counts; what is a hole does not; other readers have none."""
    path = tmp_path / "sparse"
    with path.open("wb") as f:
        f.truncate(64 * MIB)
        for at in (0, 12 * MIB - 4096, 20 * MIB):
            f.seek(at)
            f.write(b"x" * 4096)
    with open_image(path) as image:
        made = list(steps(image, 0, image.size, 4 * MIB))
        for at in range(0, image.size, 4 * MIB):
            assert at in made or image.read(at, 4 * MIB) == bytes(4 * MIB)
        if os.stat(path).st_blocks * 512 < MIB:  # the file system keeps holes
            assert made == [0, 8 * MIB, 20 * MIB]
            assert list(steps(image, 1, 8 * MIB, MIB)) == [1]
            assert list(steps(image, 30 * MIB, 40 * MIB, MIB)) == []
    assert list(steps(BytesReader(bytes(4 * MIB)), 0, 4 * MIB, MIB)) == [0, MIB, 2 * MIB, 3 * MIB]


@pytest.mark.parametrize("length", [0, 1, 700])
def test_a_buffer_is_filled_from_any_reader(tmp_path: Path, length: int) -> None:
    """With or without a copy the same bytes come; at the end fewer, and what follows in the buffer stays."""
    content = os.urandom(1000)
    (tmp_path / "i").write_bytes(content)
    with open_image(tmp_path / "i") as image:
        for reader in (image, BytesReader(content)):
            for at in (0, 300, 301, 999, 1000, 2000):
                buffer = np.full(length, 7, np.uint8)
                n = read_into(reader, at, buffer)
                assert buffer.tobytes() == content[at : at + length].ljust(length, b"\7") and n == len(
                    content[at : at + length])
                view = read_view(reader, at, buffer)
                assert view.tobytes() == content[at : at + length] and not view.flags.writeable
                assert buffer.flags.writeable


@pytest.mark.parametrize("start", [-700, -512, 0, 300])
def test_what_lies_before_the_image_is_missing(start: int) -> None:
    """A disk whose begin lies before the image is read at its own offsets; what is not there reads as zeros."""
    content = os.urandom(1024)
    window = Window(BytesReader(content), start, 2000)
    whole = bytes(max(0, -start)) + content[max(0, start) :]
    assert window.size == len(whole)
    for at in range(0, len(whole), 99):
        assert window.read(at, 513) == whole[at : at + 513]
        assert window.missing(at, min(99, len(whole) - at)) == (start + at < 0)
