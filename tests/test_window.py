"""Passes over an image: every step that has data is made, steps that are holes of a sparse file are not."""

from __future__ import annotations

import os
from pathlib import Path

from vmcarve.assemble.window import steps
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
