"""Calls of real programs: pages of code that lie anywhere go to the page of the program whose functions they call."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from tests.host.written import needs
from vmcarve.assemble.content.calls import LEAST, Calls

from .guests import BLOCK, MIB, Image, ext4, guest_of, places, right, told

pytestmark = needs("mkfs.ext4")

COUNT = 6


def programs() -> list[bytes]:
    """Some x86-64 programs of this machine with a table of their functions, all different."""
    out: list[bytes] = []
    for path in sorted(Path("/usr/bin").iterdir()):
        if path.is_symlink() or not path.is_file() or not 200_000 < path.stat().st_size < 1_500_000:
            continue
        data = path.read_bytes()
        if data[:6] == b"\x7fELF\x02\x01" and data[18:20] == b"\x3e\0" and b".eh_frame_hdr" in data and data not in out:
            out.append(data)
        if len(out) == COUNT:
            break
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[bytes]]:
    if platform.machine() != "x86_64" or len(programs()) < COUNT:
        pytest.skip("no x86-64 programs here")
    folder = tmp_path_factory.mktemp("calls")
    (folder / "tree").mkdir()
    for n, content in enumerate(programs()):
        (folder / "tree" / f"{n}").write_bytes(content)
    return ext4(folder, folder / "tree", 24 * MIB), programs()


def test_pages_of_code_place_themselves(made: tuple[bytes, list[bytes]]) -> None:
    """The map has the programs (their tables are what is asked); each page of code of the image is placed by itself."""
    disk, contents = made
    image = Image.of(disk, 7, largest=2)
    found = told(Calls(), image, [guest_of(disk)])
    good = np.array(right(found, image, disk))
    code = sum(len(c) for c in contents) // BLOCK
    assert good.sum() > 0.15 * code and (~good).sum() <= 0.01 * len(good)
    assert (found.bits >= 2 * LEAST - 2).all()


def test_code_of_other_programs_is_nobodys(made: tuple[bytes, list[bytes]]) -> None:
    """The guest has the first three; the image holds the code of the other three."""
    disk, contents = made
    guest = guest_of(disk)
    own = sorted(places(disk, c) for c in contents[:3])
    holes = [(places(disk, c), len(c)) for c in contents[3:]]
    others = b"".join(c + bytes(-len(c) % BLOCK) for c in contents[3:])
    found = told(Calls(), Image.of(others, 8, largest=2), [guest_of(disk, holes)])
    assert len(own) == 3 and len(guest.files.size) >= COUNT
    assert len(found.bits) <= 0.005 * len(others) // BLOCK


def test_a_program_whose_table_is_not_there_votes_for_nothing(made: tuple[bytes, list[bytes]]) -> None:
    disk, contents = made
    begins = {places(disk, c) for c in contents}
    runs = [(at, n) for _, _, at, n in guest_of(disk).files.run.tolist()]
    holes = [(at + BLOCK, n - BLOCK) if at in begins else (at, n) for at, n in runs]
    assert not len(told(Calls(), Image.of(disk, 7), [guest_of(disk, holes)]).bits)
