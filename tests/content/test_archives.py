"""ZIP files: the end of the directory places itself, and the directory its members."""

from __future__ import annotations

import io
import random
import zipfile

import numpy as np
import pytest

from tests.host.written import needs
from vmcarve.assemble.content.archives import Archives
from vmcarve.source import BytesReader

from .guests import BLOCK, Image, ext4, guest_of, places, told, true_points

pytestmark = needs("mkfs.ext4")


def archive(seed: int, members: int = 30) -> bytes:
    out, rng = io.BytesIO(), random.Random(seed)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for n in range(members):
            file.writestr(zipfile.ZipInfo(f"{seed}/{n}.bin"), rng.randbytes(rng.randrange(6_000, 20_000)))
    return out.getvalue()


def members(content: bytes, disk: bytes) -> set[int]:
    """Blocks of the disk with a member's header, or with the directory's end."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        at = [i.header_offset for i in file.infolist()]
    return {disk.find(content[o : o + 30]) // BLOCK for o in at} | {disk.find(content[-22:]) // BLOCK}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[bytes]]:
    folder = tmp_path_factory.mktemp("zip")
    (folder / "tree").mkdir()
    contents = [archive(seed) for seed in (1, 2)]
    for n, content in enumerate(contents):
        (folder / "tree" / f"{n}.zip").write_bytes(content)
    return ext4(folder, folder / "tree"), contents


def test_members_and_directories_place_themselves(made: tuple[bytes, list[bytes]]) -> None:
    """Whatever the map has of the archives: nothing."""
    disk, contents = made
    image = Image.of(disk, 6)
    # a directory must lie unbroken: both archives' last pieces are laid once more, whole
    ends = [c[-3 * BLOCK - len(c) % BLOCK :] for c in contents]
    image = Image(image.data + b"".join(e + bytes(-len(e) % BLOCK) for e in ends))
    holes = [(places(disk, c), len(c)) for c in contents]
    found = told(Archives(BytesReader(image.data)), image, [guest_of(disk, holes)])
    points = true_points(found, image, disk)
    wanted = {b for c in contents for b in members(c, disk)}
    assert points <= wanted and len(points) > 0.95 * len(wanted)
    assert np.median(found.bits) == 40.0


def test_a_broken_directory_names_nobody(made: tuple[bytes, list[bytes]]) -> None:
    """Its end is known all the same, by the size of the archive that it states."""
    disk, contents = made
    end = contents[0][-22:]
    image = Image(bytes(64 * BLOCK + len(contents[0]) % BLOCK - 22) + end + bytes(-len(contents[0]) % BLOCK))
    found = told(Archives(BytesReader(image.data)), image, [guest_of(disk)])
    assert found.file_block.tolist() == [disk.find(end) // BLOCK]


def test_archives_of_other_sizes_are_not_ours(made: tuple[bytes, list[bytes]]) -> None:
    disk, _ = made
    image = Image(archive(3) + bytes(BLOCK))
    assert not len(told(Archives(BytesReader(image.data)), image, [guest_of(disk)]).bits)
