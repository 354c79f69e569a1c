"""Checksums of a guest's data: every sector of a Btrfs is known again, and what does not agree is not given out."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.helpers import run
from tests.host.written import needs
from vmcarve.assemble.content.sums import MAX_RIVALS, RULE, Sums, without_wrong
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, MISSING
from vmcarve.source import BytesReader

from .guests import BLOCK, MIB, START, Image, guest_of, told, true_points

pytestmark = needs("mkfs.btrfs")

FILES = 40


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Btrfs with files of random content, and a block that more files have than a checksum may."""
    folder = tmp_path_factory.mktemp("btrfs")
    tree, rng = folder / "tree", random.Random(5)
    tree.mkdir()
    for i in range(FILES):
        (tree / f"file {i}").write_bytes(rng.randbytes(20_000 + rng.randrange(60_000)))
    same = rng.randbytes(BLOCK)
    for i in range(MAX_RIVALS + 1):
        (tree / f"same {i}").write_bytes(same)
    path = folder / "volume"
    with path.open("wb") as file:
        file.truncate(128 * MIB)
    run("mkfs.btrfs", "-q", "-r", tree, path)
    return path.read_bytes()


def sectors(disk: bytes) -> set[int]:
    """Blocks of the files whose content exists once."""
    guest = guest_of(disk)
    of = guest.files.run[guest.files.size[guest.files.run[:, 0]] > BLOCK]
    return {b for _, _, at, n in of.tolist() for b in range(at // BLOCK, -(-(at + n) // BLOCK))}


def test_every_sector_of_data_is_known_again(disk: bytes) -> None:
    """In pieces of a few blocks, without a look at any other: but for what too many sectors share."""
    image = Image.of(disk, 3)
    found = told(Sums(), image, [guest_of(disk)])
    assert true_points(found, image, disk) == sectors(disk)
    assert (found.bits >= 31).all() and set(found.passed.tolist()) == sectors(disk)


def test_a_changed_sector_is_not(disk: bytes) -> None:
    wanted = sectors(disk)
    victim = min(wanted)
    changed = bytearray(disk)
    changed[victim * BLOCK + 77] ^= 4
    found = told(Sums(), Image.of(bytes(changed), 3), [guest_of(disk)])
    assert set(found.file_block.tolist()) == wanted - {victim}


def test_two_equal_sectors_are_rivals(disk: bytes) -> None:
    """A second copy of a piece on the image: each of its blocks has two places, and a bit less each."""
    victim = min(sectors(disk))
    image = Image.of(disk, 3)
    image = Image(image.data + disk[victim * BLOCK : (victim + 1) * BLOCK])
    found = told(Sums(), image, [guest_of(disk)])
    mine = found.file_block == victim
    assert mine.sum() == 2 and np.allclose(found.bits[mine], 31.0) and true_points(found, image, disk) == sectors(disk)


def test_a_tree_that_cannot_be_read_tells_nothing(disk: bytes) -> None:
    found = told(Sums(), Image.of(disk, 3), [guest_of(disk, [(0, 128 * MIB)])])
    assert not len(found.bits)


def test_what_a_checksum_speaks_against_is_missing(disk: bytes) -> None:
    """A map that is wrong in three blocks: those, and no others, become holes."""
    guest = guest_of(disk)
    sums = Sums()
    sums.want([guest])
    wrong = sorted(sectors(disk))[4:7]
    image = bytearray(disk)
    for block in wrong:
        image[block * BLOCK : (block + 1) * BLOCK] = random.Random(block).randbytes(BLOCK)
    before = FileMap.build([(0, len(disk), 0, GUESSED, "aligned")])
    after = without_wrong(BytesReader(bytes(image)), before, sums.stated[0])
    missing = {b for f, n, p, grade, rule in after.rows() if p < 0 for b in range(f // BLOCK, (f + n) // BLOCK)
               if (grade, rule) == (MISSING, RULE)}
    assert missing == set(wrong) and after.size == len(disk)


def test_the_start_of_the_container_counts(disk: bytes) -> None:
    """Deltas count from the container's first byte, wherever that lies."""
    image = Image.of(disk, 3)
    near, far = (told(Sums(), image, [guest_of(disk, start=s)]) for s in (START, START + 5 * BLOCK))
    assert np.array_equal(np.sort(near.delta), np.sort(far.delta + 5))
