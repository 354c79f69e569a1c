"""Calls of real programs: pages of code that lie anywhere go to the page of the program whose functions they call."""

from __future__ import annotations

import platform
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.host.written import needs
from vmcarve.assemble.content import Guest, Told
from vmcarve.assemble.content.calls import BITS, LEAST, Calls, _sure, begin_bits
from vmcarve.assemble.content.files import Files
from vmcarve.assemble.content.programs import Programs, _each
from vmcarve.disk import VirtualDisk
from vmcarve.model import GuestMap
from vmcarve.source import BytesReader

from .guests import BLOCK, MIB, START, Image, ext4, guest_of, places, right
from .guests import told as told_by

pytestmark = needs("mkfs.ext4")

COUNT = 6


def told(image: Image, guests: list[Guest]) -> Told:
    return told_by(Calls(Programs(BytesReader(image.data))), image, guests)


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
    found = told(image, [guest_of(disk)])
    good = np.array(right(found, image, disk))
    code = sum(len(c) for c in contents) // BLOCK
    assert good.sum() > 0.15 * code and (~good).sum() <= 0.01 * len(good)
    assert (found.bits >= BITS).all()


def test_pages_with_few_calls_are_placed_together(made: tuple[bytes, list[bytes]]) -> None:
    """Four pages beside each other vote as one: each of them that has votes of its own for that is placed."""
    disk, contents = made
    image = Image.of(disk, 7, largest=40)
    found = told(image, [replace(guest_of(disk), rate=1 / 16)])
    good, few = np.array(right(found, image, disk)), found.bits < BITS * (LEAST - 1)
    code = sum(len(c) for c in contents) // BLOCK
    assert (few & good).sum() > 0.015 * code and (few & ~good).sum() <= 0.1 * few.sum()
    assert (~good).sum() <= 0.02 * len(good)


def cut_tables(image: Image, disk: bytes, contents: list[bytes], kept: int) -> Image:
    """An image of which each table of functions is overwritten behind so many entries, where it lies in one piece."""
    data, rng = bytearray(image.data), random.Random(3)
    for block in tables(disk, contents):
        begin = disk.find(b"\x01\x1b\x03\x3b", block * BLOCK)
        count = int.from_bytes(disk[begin + 8 : begin + 12], "little")
        at = data.find(disk[begin : begin + 12 + 8 * kept])
        if at >= 0:
            data[at + 12 + 8 * kept : at + 12 + 8 * count] = rng.randbytes(8 * (count - kept))
    return Image(bytes(data))


def test_a_table_that_a_break_cuts_tells_of_the_first_functions(made: tuple[bytes, list[bytes]]) -> None:
    """Of each table the first 200 entries are there: pages of the code up to there are placed, and no others."""
    disk, contents = made
    image = cut_tables(Image.of(disk, 7, largest=60), disk, contents, 200)
    found = told(image, [without(disk, contents, BLOCK)])
    good = np.array(right(found, image, disk))
    assert good.sum() > len(contents) + 0.03 * sum(len(c) for c in contents) // BLOCK
    assert (~good).sum() <= 0.05 * len(good)


def test_code_of_other_programs_is_nobodys(made: tuple[bytes, list[bytes]]) -> None:
    """The guest has the first three; the image holds the code of the other three."""
    disk, contents = made
    guest = guest_of(disk)
    own = sorted(places(disk, c) for c in contents[:3])
    holes = [(places(disk, c), len(c)) for c in contents[3:]]
    others = b"".join(c + bytes(-len(c) % BLOCK) for c in contents[3:])
    found = told(Image.of(others, 8, largest=2), [guest_of(disk, holes)])
    assert len(own) == 3 and len(guest.files.size) >= COUNT
    assert len(found.bits) <= 0.005 * len(others) // BLOCK


def test_a_page_of_a_like_program_has_no_functions_there(made: tuple[bytes, list[bytes]]) -> None:
    """Its calls may lead to where functions of this one begin too; what lies before its own functions tells it."""
    disk, _ = made
    programs = Programs(BytesReader(disk))
    calls = Calls(programs)
    calls.want([guest_of(disk)])
    calls.see(np.frombuffer(disk, np.uint8), 0, len(disk))
    program = next(iter(programs.of([guest_of(disk)]).values()))
    file = program.files[0][1]
    pages = range(program.offset // BLOCK + 1, (program.offset + program.length) // BLOCK)
    at = guest_of(disk).files.place(np.full(len(pages), file), np.array(pages) * BLOCK)
    texts = [disk[p : p + BLOCK] for p in at.tolist()]
    own = np.array([begin_bits(program, p, t) for p, t in zip(pages, texts, strict=True)])
    wrong = np.array([begin_bits(program, p, t) for p, t in zip(pages, texts[3:] + texts[:3], strict=True)])
    told = own != 0
    assert told.sum() > 0.5 * len(own)
    assert (own[told] > 0).mean() > 0.9 and (wrong[told] < 0).mean() > 0.8


def without(disk: bytes, contents: list[bytes], kept: int) -> Guest:
    """The guest whose map has the first `kept` bytes of each program, and of other files nothing."""
    begins = {places(disk, c) for c in contents}
    runs = [(at, n) for _, _, at, n in guest_of(disk).files.run.tolist()]
    return guest_of(disk, [(at + kept, n - kept) if at in begins else (at, n) for at, n in runs])


def tables(disk: bytes, contents: list[bytes]) -> set[int]:
    """The blocks in which the tables of functions begin: where the program headers (type 0x6474e550) say."""
    out = set[int]()
    for content in contents:
        at, count = int.from_bytes(content[32:40], "little"), int.from_bytes(content[56:58], "little")
        rows = [content[at + 56 * k : at + 56 * k + 56] for k in range(count)]
        offset = next(int.from_bytes(r[8:16], "little") for r in rows if r[:4] == b"\x50\xe5\x74\x64")
        out.add((places(disk, content) + offset) // BLOCK)
    return out


@pytest.mark.parametrize("kept", [BLOCK, 0])
def test_a_table_that_the_map_lacks_is_known_again(made: tuple[bytes, list[bytes]], kept: int) -> None:
    """Where the head is there, or is the only one of the file's size, so is its table; and then the pages of code."""
    disk, contents = made
    image = Image.of(disk, 7, largest=60)
    found = told(image, [without(disk, contents, kept)])
    good = np.array(right(found, image, disk))
    blocks = set(found.file_block[good].tolist())
    sizes = [len(c) for c in contents]
    asked = tables(disk, [c for c in contents if kept or sizes.count(len(c)) == 1])
    assert len(asked) >= 3 and len(asked & blocks) >= len(asked) - 1  # a break may cut one
    assert good.sum() > 0.15 * sum(len(c) for c in contents) // BLOCK and (~good).sum() <= 0.01 * len(good)


def test_a_head_is_nobodys_where_two_files_have_its_size(made: tuple[bytes, list[bytes]]) -> None:
    disk, contents = made
    image = Image.of(disk, 7, largest=60)
    lost = without(disk, contents, 0)
    assert len(told(image, [lost]).bits)
    assert not len(told(image, [lost, lost]).bits), "as many files as heads, or one of them is another one's"


def test_a_program_whose_table_is_nowhere_votes_for_nothing(made: tuple[bytes, list[bytes]]) -> None:
    disk, contents = made
    image = Image(Image.of(disk, 7).data.replace(b"\x01\x1b\x03\x3b", bytes(4)))
    assert not len(told(image, [without(disk, contents, BLOCK)]).bits)


@pytest.mark.parametrize("step", [4, 512])
def test_heads_and_tables_are_seen_where_they_may_begin(step: int) -> None:
    """As a search byte by byte finds them, at every place modulo the step, cut off at the end."""
    rng = np.random.default_rng(step)
    data = rng.integers(0, 2, 5000).astype(np.uint8) * 3
    needle = bytes((3, 0, 3, 3))
    for first in (0, 1, step - 1):
        there = [at for at in range(4900) if data[at : at + 4].tobytes() == needle and (at - first) % step == 0]
        assert _each(data, needle, first, 4900, step) == there
    assert _each(data[:3], needle, 0, 3, step) == []


def test_calls_that_are_sure_are_those_inside_the_runs() -> None:
    """Calls as they rise on the image; a run's first byte is its own, the one behind it is not."""
    sure = np.array([[2, 4, 1], [5, 6, -3]], np.int64)
    places = np.arange(START - 3 * BLOCK, START + 8 * BLOCK, 512)
    inside = ((places >= START + 3 * BLOCK) & (places < START + 5 * BLOCK)
              | (places >= START + 2 * BLOCK) & (places < START + 3 * BLOCK))
    disk = VirtualDisk(BytesReader(bytes(BLOCK)), GuestMap.flat(BLOCK))
    assert np.array_equal(_sure([Guest(START, disk, [], Files.none(), sure)], places), inside)
