"""Blocks of logs lie where their time stamps go on."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.host.written import needs
from vmcarve.assemble.content import Guest, Told
from vmcarve.assemble.content.files import Files
from vmcarve.assemble.content.times import Times
from vmcarve.source import BytesReader

from .guests import BLOCK, MIB, START, Image, ext4, guest_of, places, right, told

pytestmark = needs("mkfs.ext4")
BLOCKS = 120  # of a log


def log(seed: int, begin: int) -> bytes:
    rng, rows, made = random.Random(seed), list[str](), 0
    while made < BLOCKS * BLOCK - 1000:
        begin += rng.randrange(30)
        rows.append(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(begin))} host unit[{seed}]: "
                    f"{rng.getrandbits(200):050x}\n")
        made += len(rows[-1])
    return "".join(rows).encode()


def follow(image: Image, guests: list[Guest]) -> Told:
    return told(Times(image=BytesReader(image.data)), image, guests)


def scene(folder: Path, begins: list[int]) -> tuple[bytes, Image, list[int]]:
    """A disk with logs that begin at these times, an image of it in pieces, and where on the disk each log begins."""
    tree = folder / "tree"
    tree.mkdir()
    contents = [log(n, at) for n, at in enumerate(begins)]
    for n, content in enumerate(contents):
        (tree / str(n)).write_bytes(content)
    disk = ext4(folder, tree, 8 * MIB)
    return disk, Image.of(disk, 5, largest=25), [places(disk, c) // BLOCK for c in contents]


def knowing(disk: bytes, image: Image, first: list[int]) -> Guest:
    """The guest of which the begin of each log is placed: the piece that holds it, up to its end."""
    sure: list[tuple[int, int, int]] = []
    for f in first:
        p = image.data.find(disk[f * BLOCK : (f + 1) * BLOCK]) // BLOCK
        n = 1
        while image.data[(p + n) * BLOCK : (p + n + 1) * BLOCK] == disk[(f + n) * BLOCK : (f + n + 1) * BLOCK]:
            n += 1
        sure.append((f, f + n, p - f - START // BLOCK))
    return replace(guest_of(disk), sure=np.array(sorted(sure), np.int64))


def test_a_log_is_followed_from_piece_to_piece(tmp_path: Path) -> None:
    """Three logs of other weeks: all their blocks but those with the ends are placed, and rightly."""
    disk, image, first = scene(tmp_path, [1_690_000_000 + k * 10**6 for k in range(3)])
    guest = knowing(disk, image, first)
    found = follow(image, [guest])
    assert all(right(found, image, disk))
    covered = set(found.file_block.tolist()) | {b for a, e, _ in guest.sure.tolist() for b in range(a, e)}
    run = guest.files.run // BLOCK  # a log may lie in two parts
    for number in {n for n, _, at, _ in guest.files.run.tolist() if at // BLOCK in first}:
        blocks = {b for at, n in run[guest.files.run[:, 0] == number, 2:].tolist() for b in range(at, at + n)}
        assert len(blocks) >= BLOCKS - 1 and len(blocks - covered) <= 25  # a piece may be cut by the part
    assert len(found.bits) > BLOCKS


def test_a_log_that_was_deleted_is_followed_in_what_is_free_now(tmp_path: Path) -> None:
    """Its file is not known any more; the guest holds its blocks free."""
    disk, image, first = scene(tmp_path, [1_690_000_000])
    guest = knowing(disk, image, first)
    files = guest.files
    number = files.run[files.run[:, 2] // BLOCK == first[0], 0]
    own = np.isin(files.run[:, 0], number)
    gone = replace(guest, files=Files(files.size, files.run[~own]))
    assert not len(follow(image, [gone]).bits)
    vacant = np.array([(at // BLOCK, (at + n) // BLOCK) for _, _, at, n in files.run[own].tolist()])
    found = follow(image, [replace(gone, vacant=vacant)])
    assert all(right(found, image, disk)) and len(found.bits) > 10  # up to where its first extent ends


def test_logs_of_the_same_hours_are_told_apart_by_nothing_here(tmp_path: Path) -> None:
    """Where two stretches would do neither is taken: what is placed is right, and is hardly anything."""
    disk, image, first = scene(tmp_path, [1_690_000_000, 1_690_000_005, 1_690_000_011])
    found = follow(image, [knowing(disk, image, first)])
    good = right(found, image, disk)
    assert len(good) < BLOCKS and sum(good) >= 0.9 * len(good)


def test_nothing_follows_what_is_not_placed(tmp_path: Path) -> None:
    disk, image, first = scene(tmp_path, [1_690_000_000])
    assert not len(follow(image, [guest_of(disk)]).bits)
    assert len(follow(image, [knowing(disk, image, first)]).bits)
