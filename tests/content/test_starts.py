"""Files that state their length: where one of a wanted length begins on the image, that file begins."""

from __future__ import annotations

import io
import random
import sqlite3
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.host.written import needs
from vmcarve.assemble.content.starts import Starts

from .guests import BLOCK, MIB, START, Image, ext4, guest_of, places, told, true_points

pytestmark = needs("mkfs.ext4")


def program(folder: Path) -> bytes:
    """An ELF of this machine whose section headers come last, as the linker leaves it."""
    for path in sorted(Path("/usr/bin").iterdir()):
        data = path.read_bytes() if path.is_file() and 20_000 < path.stat().st_size < 400_000 else b""
        if data[:6] == b"\x7fELF\x02\x01":
            end = int.from_bytes(data[40:48], "little") + 64 * int.from_bytes(data[60:62], "little")
            if end == len(data):
                return data
    pytest.skip(f"no such program on {sys.platform}")


def database(folder: Path) -> bytes:
    path = folder / "made.sqlite"
    base = sqlite3.connect(path)
    base.execute("create table t (a blob)")
    base.executemany("insert into t values (?)", [(random.Random(n).randbytes(900),) for n in range(60)])
    base.commit()
    base.close()
    return path.read_bytes()


def sound(folder: Path) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(random.Random(3).randbytes(31_402))
    return out.getvalue()


def package(folder: Path) -> bytes:
    """An `ar` of three members, as dpkg-deb writes it."""
    body = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.xz", random.Random(1).randbytes(701)),
                          ("data.tar.xz", random.Random(2).randbytes(40_123))):
        body += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        body += b"\n" * (len(content) % 2)
    return body


MAKERS = (program, database, sound, package)


@pytest.mark.parametrize("block", [1024, 4096])
@pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
def test_a_begin_of_the_wanted_size_is_placed(make: Callable[[Path], bytes], block: int, tmp_path: Path) -> None:
    """Its block, and no other, though files of other sizes begin with the same bytes."""
    tree = tmp_path / "tree"
    tree.mkdir()
    content = make(tmp_path)
    (tree / "wanted").write_bytes(content)
    (tree / "noise").write_bytes(random.Random(9).randbytes(50_000))
    disk = ext4(tmp_path, tree, block=block)
    at = places(disk, content)
    phase = at % BLOCK
    start = START + -phase % BLOCK  # pieces that begin at the image's blocks begin amid the container's
    image = Image.of(disk, 4, phase=phase)
    found = told(Starts(), image, [guest_of(disk, start=start)])
    assert true_points(found, image, disk, start, phase) == {at // BLOCK} and found.bits[0] > 9
    (tree / "wanted").write_bytes(content + b"more")
    other = ext4(tmp_path, tree, block=block)
    assert not len(told(Starts(), image, [guest_of(other, start=start)]).bits), "no file of the size that is stated"


def test_files_of_one_size_are_rivals(tmp_path: Path) -> None:
    """Two guests that have the same file: which one's it is nothing says, and the weight says so."""
    tree = tmp_path / "tree"
    tree.mkdir()
    content = sound(tmp_path)
    (tree / "wanted").write_bytes(content)
    disk = ext4(tmp_path, tree)
    image = Image.of(disk, 4)
    alone = told(Starts(), image, [guest_of(disk)]).bits
    both = told(Starts(), image, [guest_of(disk), guest_of(disk)]).bits
    assert alone - both == pytest.approx([1.0])


def test_a_rare_begin_says_more(tmp_path: Path) -> None:
    """On a larger image fewer blocks in a hundred begin a file that says its size; that it is just this one counts as
    before. A size of whole pages is one of fewer."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_bytes(program(tmp_path))
    disk = ext4(tmp_path, tmp_path / "tree", 16 * MIB)
    noise = random.Random(1).randbytes(48 * MIB)
    small, large = (told(Starts(), Image.of(disk + more, 4), [guest_of(disk)]).bits for more in (b"", noise))
    assert len(small) == len(large) == 1 and large[0] - small[0] > 1.0
