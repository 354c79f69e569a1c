"""When the guest of a container without a header agrees with itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import run
from vmcarve.assemble.orphans import LEAST, _agreeing  # pyright: ignore[reportPrivateUsage]
from vmcarve.model import Container, GuestDisk, GuestMap, Orphan
from vmcarve.source import BytesReader

MIB = 1 << 20
SIZE = 32 * MIB


@pytest.mark.parametrize("with_volume", [True, False])
def test_a_partition_table_alone_is_no_guest_that_agrees(with_volume: bool, tmp_path: Path) -> None:
    """It agrees with itself wherever its volumes lie: numbers that look like a table made a disk of noise from it."""
    image, volume = tmp_path / "image", tmp_path / "volume"
    for path, size in ((image, SIZE), (volume, SIZE - MIB)):
        with path.open("wb") as f:
            f.truncate(size)
    (tmp_path / "script").write_text(f"label: dos\nstart=2048, size={(SIZE - MIB) // 512}\n")
    run("sh", "-c", f"sfdisk -q --no-reread {image} < {tmp_path / 'script'}")
    run("mkfs.ext4", "-q", "-F", volume)
    data = image.read_bytes()[:MIB] + (volume.read_bytes() if with_volume else bytes(SIZE - MIB))
    orphan = Orphan(Container("vdi", "", SIZE, [GuestDisk(SIZE, GuestMap.flat(SIZE))]),
                    np.array([[0, 0, SIZE]], np.int64), "test")
    agreeing = _agreeing(BytesReader(data), orphan, np.array([[0, 0]], np.int64), stated=False)
    assert (agreeing >= LEAST) is with_volume
