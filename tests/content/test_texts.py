"""Texts lie where they go on: by words, by lines of one length, and by the length of the gap."""

from __future__ import annotations

import base64
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.host.written import needs
from vmcarve.assemble.content import Guest, Told
from vmcarve.assemble.content.files import Files
from vmcarve.assemble.content.letters import (
    COUNTED,
    LIKELY_TEXT,
    LINES,
    Letters,
    _cut,
    _mixed,
    counted,
    likely,
    lines_of,
)
from vmcarve.assemble.content.texts import Texts
from vmcarve.source import BytesReader

from .guests import BLOCK, MIB, START, Image, ext4, guest_of, right, told

pytestmark = needs("mkfs.ext4")
WORDS = [f"{a}{b}{c}" for a in ("ra", "to", "mi", "sel", "con") for b in ("ne", "tu", "par") for c in ("s", "ment", "")]
PIECES = (40, 75, 31, 90, 58, 66)  # blocks


def prose(rng: random.Random, size: int) -> bytes:
    out, at = list[str](), 0
    while at < size:
        line = " ".join(rng.choices(WORDS, k=rng.randrange(4, 15)))
        out.append(line)
        at += len(line) + 1
    return "\n".join(out).encode()[:size]


def mail(rng: random.Random, size: int) -> bytes:
    out = bytearray()
    while len(out) < size:
        part = base64.encodebytes(rng.randbytes(rng.randrange(200_000)))
        out += prose(rng, rng.randrange(300, 3000)) + b"\n\n" + part
    return bytes(out[:size])


def log(rng: random.Random, size: int) -> bytes:
    out, at, now = list[str](), 0, 1_690_000_000
    while at < size:
        now += rng.randrange(30)
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now))
        out.append(f"{stamp} {rng.choice(WORDS)}: {rng.getrandbits(160):x}")
        at += len(out[-1]) + 1
    return "\n".join(out).encode()[:size]


def scene(folder: Path, content: bytes) -> tuple[bytes, Image, Guest]:
    """A disk with one large file, an image of it in pieces amid noise and other texts, and the guest of which the
    pieces with the file's begin and end are placed."""
    rng = random.Random(3)
    tree = folder / "tree"
    tree.mkdir()
    (tree / "text").write_bytes(content)
    disk = ext4(folder, tree, 8 * MIB)
    guest = guest_of(disk)
    _, _, first, blocks = (guest.files.run[np.argmax(guest.files.run[:, 3])] // BLOCK).tolist()  # it may lie in parts
    cuts = [0, *np.cumsum(PIECES).tolist(), blocks]
    pieces = list(enumerate(zip(cuts, cuts[1:], strict=False)))
    rng.shuffle(pieces)
    data, at = bytearray(), dict[int, int]()
    for number, (a, b) in pieces:
        data += rng.randbytes(rng.randrange(1, 30) * BLOCK) + prose(rng, rng.randrange(1, 30) * BLOCK)
        data += rng.randbytes(rng.randrange(1, 9) * BLOCK)
        at[number] = len(data) // BLOCK
        data += disk[(first + a) * BLOCK : (first + b) * BLOCK]
    data += rng.randbytes(3 * BLOCK)
    ends = ((0, PIECES[0] // 2, 0), (len(PIECES), cuts[-2] + 10, 1))
    sure = [(first + (b if last else 0), first + (blocks if last else b), at[k] - first - cuts[k] - START // BLOCK)
            for k, b, last in ends]
    return disk, Image(bytes(data)), replace(guest, sure=np.array(sure, np.int64))


def follow(image: Image, guest: Guest) -> Told:
    return told(Texts(image=BytesReader(image.data)), image, [guest])


@pytest.mark.parametrize("kind", [prose, mail, log], ids=lambda k: k.__name__)
def test_pieces_of_a_text_are_put_between_its_begin_and_its_end(kind: Callable[[random.Random, int], bytes],
                                                                tmp_path: Path) -> None:
    """Five pieces that nothing else tells of, among other texts: nearly all of them are placed, and rightly."""
    content = kind(random.Random(8), (sum(PIECES) + 60) * BLOCK)
    disk, image, guest = scene(tmp_path, content)
    found = follow(image, guest)
    assert all(right(found, image, disk))
    assert len(found.bits) > 0.7 * sum(PIECES[1:])


def test_a_text_that_was_deleted_is_put_together_in_what_is_free_now(tmp_path: Path) -> None:
    """Its file is not known any more; the guest holds its blocks free."""
    disk, image, guest = scene(tmp_path, log(random.Random(8), (sum(PIECES) + 60) * BLOCK))
    files = guest.files
    number, _, at, n = files.run[np.argmax(files.run[:, 3])].tolist()
    gone = replace(guest, files=Files(files.size, files.run[files.run[:, 0] != number]), rate=1 / 256)
    assert not len(follow(image, gone).bits)
    found = follow(image, replace(gone, vacant=np.array([[at // BLOCK, (at + n) // BLOCK]])))
    assert all(right(found, image, disk))
    assert len(found.bits) > 0.7 * sum(PIECES[1:])


def test_a_text_goes_on_in_the_next_extent_of_its_file(tmp_path: Path) -> None:
    """The begin of the file is placed, and lies elsewhere on the disk than the rest, of which nothing is: only that it
    is one file leads from the one to the other."""
    disk, image, guest = scene(tmp_path, log(random.Random(8), (sum(PIECES) + 60) * BLOCK))
    number, _, at, n = guest.files.run[np.argmax(guest.files.run[:, 3])].tolist()
    cut, first = PIECES[0] * BLOCK, at // BLOCK
    one = Files(guest.files.size, np.array([(number, 0, 0, cut), (number, cut, at + cut, n - cut)]))
    two = Files(np.array([cut, n - cut]), np.array([(0, 0, 0, cut), (1, 0, at + cut, n - cut)]))
    sure = np.array([(0, PIECES[0], guest.sure[0, 2] + first)])
    found, apart = (follow(image, replace(guest, rate=1 / 256, sure=sure, files=f)) for f in (one, two))
    assert all(right(found, image, disk))
    assert len(found.bits) > 0.7 * sum(PIECES[1:]) and not any(right(apart, image, disk))


def test_a_text_in_whose_place_nothing_fits_stays_open(tmp_path: Path) -> None:
    """One piece is not there: no row of the others is as long as the gap, and hardly anything is given."""
    content = prose(random.Random(8), (sum(PIECES) + 60) * BLOCK)
    disk, image, guest = scene(tmp_path, content)
    first = int(guest.sure[0, 0]) + sum(PIECES[:2])
    lost = disk[first * BLOCK : (first + PIECES[2]) * BLOCK]
    image = Image(image.data.replace(lost, random.Random(1).randbytes(len(lost))))
    good = right(follow(image, guest), image, disk)
    assert sum(good) >= 0.98 * len(good)


def test_nothing_is_given_where_nothing_is_placed(tmp_path: Path) -> None:
    content = prose(random.Random(8), (sum(PIECES) + 60) * BLOCK)
    _, image, guest = scene(tmp_path, content)
    assert not len(follow(image, replace(guest, sure=guest.sure[:0])).bits)


def test_letters_are_counted_alike_however_the_samples_are_parted() -> None:
    """All samples of an image are counted a few rows at a time; a row's letters are never behind another row's."""
    rng = np.random.default_rng(5)
    rows = rng.integers(97, 104, (COUNTED + 100, 64)).astype(np.uint8)
    whole = Letters.of([rows])
    parted = Letters.of([rows[:7], rows[7:30], rows[30 : COUNTED + 1], rows[COUNTED + 1 :]])
    assert all(np.array_equal(getattr(whole, name), getattr(parted, name)) for name in ("four", "three", "two"))
    assert whole.four.sum() == len(rows) * 61 and whole.three.sum() == len(rows) * 62
    one = np.frombuffer(b"abcdef", np.uint8).astype(np.uint32)
    every = np.lib.stride_tricks.sliding_window_view(rows, 4, axis=1)
    for i in range(3):
        there = int((every == one[i : i + 4]).all(axis=2).sum())
        assert whole.four[_cut(_mixed(*one[i : i + 4, None]))].item() == there


def test_lines_are_those_of_the_whole_block_however_long() -> None:
    """Blocks with ends of lines near, far, few, none, and at their first byte; the same from behind."""
    rng = np.random.default_rng(4)
    text = np.full((60, BLOCK), ord("a"), np.uint8)
    for i, block in enumerate(text):
        block[rng.integers(0, (BLOCK, 400, 900)[i % 3], i % 9)] = ord("\n")
    text[7, 0] = ord("\n")
    for turned in (text, text[:, ::-1]):
        for block, found in zip(turned, lines_of(turned).tolist(), strict=True):
            ends = np.flatnonzero(block == ord("\n"))[:LINES].tolist()
            ends += [0] * (LINES - len(ends))
            assert found == [ends[0], *(max(0, b - a) for a, b in itertools.pairwise(ends))]


def test_letters_of_text_are_told_and_counted_as_by_the_table() -> None:
    """All bytes; blocks with none, with some and with all set."""
    assert np.array_equal(likely(np.arange(256, dtype=np.uint8)), LIKELY_TEXT)
    blocks = np.random.default_rng(2).random((20, BLOCK)) < np.linspace(0, 1, 20)[:, None]
    blocks[-1] = True
    assert np.array_equal(counted(blocks), blocks.sum(axis=1))


def test_a_log_in_short_pieces_of_which_nothing_is_placed_is_put_together(tmp_path: Path) -> None:
    """Its pieces lead to each other and together are as long as the file, which ends at the very byte. Those of another
    log lie between them."""
    rng = random.Random(5)
    content = [log(random.Random(seed), 200 * BLOCK - 1234 * seed) for seed in (1, 2)]
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "log").write_bytes(content[0])
    disk = ext4(tmp_path, tree, 8 * MIB)
    guest = guest_of(disk)
    _, _, at, length = guest.files.run[np.argmax(guest.files.run[:, 3])].tolist()
    pieces: list[bytes] = []
    for text in (disk[at : at + length], shifted(content[1])):
        cuts = [0, *itertools.accumulate(rng.randrange(2, 14) for _ in range(60))]
        pieces += [text[a * BLOCK : b * BLOCK] for a, b in itertools.pairwise(cuts) if a * BLOCK < len(text)]
    rng.shuffle(pieces)
    data = b"".join(rng.randbytes(rng.randrange(1, 5) * BLOCK) + piece for piece in pieces) + rng.randbytes(3 * BLOCK)
    image = Image(data)
    found = follow(image, replace(guest, rate=1 / 8))
    assert all(right(found, image, disk))
    assert len(found.bits) > 0.8 * 199


def shifted(text: bytes) -> bytes:
    """A log of two years earlier, in whole blocks."""
    return text.replace(b"2023-", b"2021-")[: len(text) // BLOCK * BLOCK]
