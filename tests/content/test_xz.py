"""Chains of LZMA2 chunks lie where the chunk before says that the next one begins."""

from __future__ import annotations

import lzma
import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.host.written import needs
from vmcarve.assemble.content import Guest, Told
from vmcarve.assemble.content.xz import FULL, Xz

from .guests import BLOCK, START, Image, ext4, guest_of, right, told

pytestmark = needs("mkfs.ext4")
PIECES = (50, 64, 41, 83, 70)  # blocks of each file: some hold two headers, some three or more


def packed(seed: int) -> bytes:
    """An .xz of some 1.3 MB."""
    rng = random.Random(seed)
    return lzma.compress(b"".join(b"%012x\n" % rng.getrandbits(48) for _ in range(200_000)), preset=0)


def package(seed: int) -> bytes:
    """A Debian package with such data."""
    parts = ((b"debian-binary", b"2.0\n"), (b"control.tar.xz", lzma.compress(b"")), (b"data.tar.xz", packed(seed)))
    return b"!<arch>\n" + b"".join(b"%-16s%-12d%-6d%-6d%-8d%-10d`\n" % (name, 0, 0, 0, 100644, len(body)) + body
                                   + b"\n" * (len(body) % 2) for name, body in parts)


def scene(folder: Path, contents: list[bytes], sizes: tuple[int, ...] = PIECES) -> tuple[bytes, Image, Guest]:
    """A disk, an image of it in pieces amid noise, and the guest of which the first piece of each file is placed.

    sizes: blocks of a file's pieces, the last of which has the rest."""
    rng = random.Random(3)
    tree = folder / "tree"
    tree.mkdir()
    for n, content in enumerate(contents):
        (tree / str(n)).write_bytes(content)
    disk = ext4(folder, tree)
    guest = guest_of(disk)
    holes, sure, pieces = list[tuple[int, int]](), list[tuple[int, int, int]](), list[tuple[int, int, bool]]()
    for number in range(len(contents)):
        runs = guest.files.run[guest.files.run[:, 0] == number]
        blocks = np.concatenate([np.arange(g, g + n, BLOCK) // BLOCK for _, _, g, n in runs.tolist()])
        cuts = [0, *np.cumsum(sizes).tolist(), len(blocks)]
        for a, b in zip(cuts, cuts[1:], strict=False):
            part = blocks[a:b]
            for run in np.split(part, np.flatnonzero(np.diff(part) != 1) + 1):  # a file may lie in parts
                if len(run):
                    pieces.append((int(run[0]), len(run), a == 0))
    rng.shuffle(pieces)
    data = bytearray()
    for first, n, placed in pieces:
        data += rng.randbytes(rng.randrange(1, 30) * BLOCK)
        if placed:
            sure.append((first, first + n, (len(data) - START) // BLOCK - first))
        else:
            holes.append((first * BLOCK, n * BLOCK))
        data += disk[first * BLOCK : (first + n) * BLOCK]
    data += rng.randbytes(3 * BLOCK)
    return disk, Image(bytes(data)), replace(guest_of(disk, holes), sure=np.array(sorted(sure), np.int64))


def follow(image: Image, guest: Guest) -> Told:
    return told(Xz(), image, [guest])


def test_streams_are_followed_from_piece_to_piece(tmp_path: Path) -> None:
    """A package and a bare stream: what lies between the headers of each piece is placed, and rightly."""
    disk, image, guest = scene(tmp_path, [package(1), packed(2)])
    found = follow(image, guest)
    assert all(right(found, image, disk))
    assert len(found.bits) > 0.5 * 2 * sum(PIECES[1:])


def test_nothing_follows_a_stream_whose_begin_is_not_there(tmp_path: Path) -> None:
    disk, image, guest = scene(tmp_path, [packed(2)])
    holes = [(a * BLOCK, (b - a) * BLOCK) for a, b, _ in guest.sure.tolist()]
    assert not len(follow(image, replace(guest_of(disk, holes), sure=guest.sure[:0])).bits)


def headers(content: bytes) -> list[int]:
    """Where the chunks of an .xz begin that are full, and the first one that is not."""
    at = 12 + (content[12] + 1) * 4
    found = [at]
    while content[at + 3] in FULL:
        at += 5 + (content[at] >= 0xC0) + int.from_bytes(content[at + 3 : at + 5], "big") + 1
        found.append(at)
    return found


def test_one_header_places_a_piece(tmp_path: Path) -> None:
    """Pieces of 52 KiB hold no two headers; each header but those that a cut parts places its block."""
    disk, image, guest = scene(tmp_path, [packed(2)], (13,) * 40)
    found = follow(image, guest)
    assert all(right(found, image, disk))
    assert len(found.bits) >= len(headers(packed(2))) - 4


def test_of_two_headers_that_counts_behind_which_the_stream_goes_on(tmp_path: Path) -> None:
    """Chance has put another one at the same place in a block."""
    content = packed(2)
    disk, image, guest = scene(tmp_path, [content], (13,) * 40)
    whole = follow(image, guest)
    decoys = bytearray(random.Random(5).randbytes(len(headers(content)) * BLOCK))
    for n, at in enumerate(headers(content)[1:-1]):
        inside = disk.find(content[at : at + 64]) % BLOCK
        decoys[n * BLOCK + inside : n * BLOCK + inside + 6] = b"\x81\x23\x45\xef\xf7\0"[: BLOCK - inside]
    found = follow(Image(image.data + bytes(decoys)), guest)
    assert all(right(found, image, disk)) and len(found.bits) >= len(whole.bits) - 2
