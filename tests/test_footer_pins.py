"""A footer that says whose it is, not where it lies, pins the end of its file, where the header's tables tell that."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import run
from tests.host.written import needs
from vmcarve import Options, open_disk, recover

pytestmark = needs("qemu-img")

MIB, BLOCK = 1 << 20, 4096
SIZE = 8 * MIB


def disk(folder: Path) -> tuple[bytes, bytes]:
    """What a guest of random bytes reads, and a dynamic VHD of it."""
    data = np.random.default_rng(4).bytes(SIZE)
    (folder / "raw").write_bytes(data)
    run("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on", folder / "raw",
        folder / "vhd")
    return data, (folder / "vhd").read_bytes()


@pytest.mark.parametrize("footers", [1, 2], ids=["its own", "and a stale one"])
def test_the_part_before_the_footer_is_found_by_it(tmp_path: Path, footers: int) -> None:
    data, vhd = disk(tmp_path)
    noise = random.Random(5)
    cut = 5 * MIB  # the file breaks there; what lies behind is in front on the image
    image = noise.randbytes(MIB) + vhd[cut:].ljust(-(-(len(vhd) - cut) // BLOCK) * BLOCK, b"\0") + noise.randbytes(MIB)
    image += vhd[:cut] + noise.randbytes(4 * MIB)
    if footers == 2:  # a file that has grown leaves its old footer behind on the disk
        image += vhd[-512:].ljust(BLOCK, b"\0") + noise.randbytes(MIB)
    (tmp_path / "image").write_bytes(image)
    case = recover([tmp_path / "image"], tmp_path / "case", options=Options(write=False))
    found = [d for d in case.disks() if d["format"] == "vhd"]
    assert len(found) == 1
    guest = open_disk(case, found[0]["disk_id"])
    last = guest.read(SIZE - 4 * BLOCK, 4 * BLOCK)
    assert (last == data[-4 * BLOCK :]) == (footers == 1)
    assert guest.read(0, MIB) == data[:MIB]
