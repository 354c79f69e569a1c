"""Ends of files: what volumes say of them, what the image shows of them, and the two kernels that look.

Where the files of a real volume end is found by their content, which is random, and by nothing else.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host.loopfs import Disk, needs_loop
from tests.host.written import mounted, needs, run
from tests.reference.first_words import first_words as first_words_reference
from tests.reference.sector_tails import sector_tails as sector_tails_reference
from vmcarve._ext.first_words import first_words
from vmcarve._ext.sector_tails import sector_tails
from vmcarve.assemble import tails
from vmcarve.assemble.tails import FileEnds, agree, file_ends, look, open_volumes, to_file
from vmcarve.model import DATA, HOLE, LOST, PLAIN, UNALLOCATED, ZLIB, GuestMap
from vmcarve.source import BytesReader

MIB = 1 << 20
START = MIB + 512  # the volume does not begin at the disk's first byte
SIZE = 24 * MIB
MARK = 32  # random bytes that exist once


# --- the ends of a real volume's files -----------------------------------------------------------------------------
@dataclass(repr=False)
class Guest:
    """A disk with one volume; ends: where live files' data ends amid a sector -> empty sectors behind, begins: where
    live files begin; deleted: as ends, of files that are gone."""

    disk: bytes
    ends: dict[int, int]
    begins: set[int]
    own: int  # files that the makers keep for themselves, at most
    deleted: set[int]
    others: set[int]  # ends that must not be told: at a sector's end, before a hole, inside the metadata


def fill(top: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Live files and files that will go: name -> content."""
    rng = random.Random(6)

    def put(name: str, size: int) -> bytes:
        data = rng.randbytes(size - 1) + b"\x01"
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_bytes(data)
        return data

    live = {f"d{k % 5}/file {k}": put(f"d{k % 5}/file {k}", 2000 + rng.randrange(60_000)) for k in range(120)}
    live |= {f"full {k}": put(f"full {k}", 512 * (5 + k)) for k in range(20)}  # no end amid a sector
    live |= {f"small {k}": put(f"small {k}", 100 + k) for k in range(5)}  # in the record itself on NTFS
    for k in range(5):  # data, and behind it a hole up to the size
        name = f"then a hole {k}"
        live[name] = put(name, 5000 + k)
        with (top / name).open("r+b") as file:
            file.truncate(40_001)
    parts = {f"in parts {k}": b"" for k in range(4)}
    for turn in range(8):  # no two blocks of a file lie together
        for name in parts:
            data = rng.randbytes(65536 if turn < 7 else 777) + b"\x01"
            parts[name] += data
            with (top / name).open("ab") as file:
                file.write(data)
                os.fsync(file.fileno())
    live |= parts
    gone = {f"gone {k}": put(f"gone {k}", 9001 + k) for k in range(10)}
    return live, gone


def guest(volume: bytes, block: int, live: dict[str, bytes], gone: dict[str, bytes], resident: bool) -> Guest:
    disk = bytes(START) + volume + bytes(8192)
    begins, others, ends = set[int](), set[int](), dict[int, int]()

    def find(mark: bytes) -> int:
        assert disk.count(mark) == 1
        return disk.index(mark)

    for name, data in live.items():
        end = find(data[-MARK:]) + MARK
        if resident and name.startswith("small"):
            others.add(end)
            continue
        begins.add(find(data[:MARK]))
        if name.startswith("then") or len(data) % 512 == 0:
            others.add(end)
        else:
            ends[end] = -len(data) % block // 512
    deleted = {find(data[-MARK:]) + MARK for data in gone.values()}
    return Guest(disk, ends, begins, 20 if resident else 0, deleted, others)


def dirty(path: Path) -> Path:
    """An image of old data: the zeros behind a file's end are there because somebody wrote them."""
    path.write_bytes(b"\xee" * SIZE)
    return path


@needs_loop
@needs("mkfs.ext4")
def ext4_guest(folder: Path, block: int) -> Guest:
    image = dirty(folder / "volume")
    options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    run("mkfs.ext4", "-q", "-F", "-b", str(block), "-E", options, image)
    disk = Disk(image, folder / "mnt")
    with disk.mounted() as top:
        live, gone = fill(top)
        for k in range(5):  # blocks that were never written: no file's first bytes, and no last ones
            with (top / f"reserved {k}").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 20_001 + k)
    with disk.mounted() as top:
        for name in gone:
            os.remove(top / name)
    return guest(image.read_bytes(), block, live, gone, False)


def ntfs_guest(folder: Path) -> Guest:
    image = dirty(folder / "volume")
    run("mkfs.ntfs", "-Q", "-F", "-c", "4096", image)
    with mounted(folder / "mnt", "ntfs-3g", image) as top:
        live, gone = fill(top)
    with mounted(folder / "mnt", "ntfs-3g", image) as top:
        for name in gone:
            os.remove(top / name)
    return guest(image.read_bytes(), 4096, live, gone, True)


@pytest.fixture(scope="module", params=[
    pytest.param("ext4", marks=[needs_loop, needs("mkfs.ext4")]),
    pytest.param("ext4-1k", marks=[needs_loop, needs("mkfs.ext4")]),
    pytest.param("ntfs", marks=needs("mkfs.ntfs", "ntfs-3g")),
])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "ntfs":
        return ntfs_guest(folder)
    return ext4_guest(folder, 1024 if request.param == "ext4-1k" else 4096)


def ends_of(disk: bytes, guest_map: GuestMap) -> FileEnds:
    volumes = open_volumes(BytesReader(disk), [(0, START), (START, SIZE)])
    assert len(volumes) == 1 and volumes[0].offset == START
    return file_ends(volumes, guest_map)


def test_file_ends_are_where_the_content_ends(real: Guest) -> None:
    """All live files whose data ends amid a sector, and no others; zeros on the volume as far as said."""
    ends = ends_of(real.disk, GuestMap.flat(len(real.disk)))
    told = dict(zip(ends.file_offset.tolist(), ends.empty.tolist(), strict=True))
    assert len(told) == len(ends) > 100
    extra = told.keys() - real.ends.keys()  # of files that the makers keep for themselves
    assert real.ends.keys() <= told.keys()
    for f, empty in real.ends.items():
        assert told[f] == empty
    assert not extra & (real.deleted | real.others) and len(extra) <= min(real.own, 2), sorted(extra)
    for f in real.ends:
        behind = -f % 512 + told[f] * 512
        assert real.disk[f - 1] and not any(real.disk[f : f + behind])
    assert (np.diff(ends.file_offset) >= 0).all() and (np.diff(ends.begins) >= 0).all()
    begins = set(ends.begins.tolist())
    assert real.begins <= begins and len(begins - real.begins) <= real.own
    volumes = open_volumes(BytesReader(real.disk), [(START, SIZE)])
    assert sum(f.name.startswith("in parts") and len(f.runs) > 1 for f in volumes[0].files()) == 4


def test_file_ends_go_through_the_containers_map(real: Guest) -> None:
    """Ends lie where the container has the guest's bytes; not told: those that a hole or a seam goes through."""
    size = len(real.disk)
    straight = ends_of(real.disk, GuestMap.flat(size))
    moved = ends_of(real.disk, GuestMap.flat(size, 65536))
    assert (moved.file_offset == straight.file_offset + 65536).all() and (moved.empty == straight.empty).all()
    assert (moved.begins == straight.begins + 65536).all()

    apart_from_begins = sorted(f for f, empty in real.ends.items() if empty and f - f % 512 not in real.begins)
    hole, seam, near = random.Random(2).sample(apart_from_begins, 3)
    begin = max(real.begins - {f - f % 512 for f in real.ends})  # of another file
    holes = {hole - hole % 512, begin}
    guest_offset = sorted([0, *holes, *(g + 512 for g in holes), seam - seam % 512 + 512, near - near % 512])
    state = [HOLE if g in holes else DATA for g in guest_offset]
    apart = [g + 4 * MIB * k for k, g in enumerate(guest_offset)]  # each run elsewhere in the container
    length = np.diff([*guest_offset, size])
    ends = ends_of(real.disk, GuestMap.build(guest_offset, length, state,
                                             [f if s == DATA else -1 for f, s in zip(apart, state, strict=True)]))
    run_of = np.searchsorted(guest_offset, straight.file_offset - 1, side="right") - 1
    kept = ~np.isin(straight.file_offset, (hole, seam))
    assert np.count_nonzero(~kept) == 2
    assert ends.file_offset.tolist() == (straight.file_offset + 4 * MIB * run_of)[kept].tolist()
    assert ends.empty.tolist() == straight.empty[kept].tolist()
    run_of = np.searchsorted(guest_offset, straight.begins, side="right") - 1
    assert ends.begins.tolist() == (straight.begins + 4 * MIB * run_of)[straight.begins != begin].tolist()


def test_real_ends_are_seen_and_agree(real: Guest) -> None:
    """What the volume tells is what `look` sees; a page further on there is other data."""
    image = BytesReader(real.disk)
    ends = ends_of(real.disk, GuestMap.flat(len(real.disk)))
    seen = look(image, np.array([[0, len(real.disk)]], np.int64), 0)
    at = {int(s) * 512 + int(t): int(e) for s, t, e in zip(seen.sector, seen.tail, seen.empty, strict=True)}
    assert all(f in at and at[f] >= empty for f, empty in real.ends.items())
    right, wrong = agree(image, ends.file_offset, ends)
    assert right >= len(real.ends) and wrong <= len(ends) - len(real.ends)
    right, wrong = agree(image, ends.file_offset - 4096, ends)
    assert right < 10 and wrong > len(ends) // 2
    assert agree(image, np.full(len(ends), -1, np.int64), ends) == (0, 0)


def test_no_volumes_no_ends() -> None:
    """Noise is no volume, and no volume has no ends."""
    disk = BytesReader(random.Random(1).randbytes(MIB))
    assert open_volumes(disk, [(0, MIB // 2), (MIB // 2, MIB)]) == []
    ends = file_ends([], GuestMap.flat(MIB))
    assert len(ends) == len(FileEnds.none()) == len(ends.begins) == 0


# --- look ----------------------------------------------------------------------------------------------------------
plants = st.lists(st.tuples(st.integers(0, 20 * 4096), st.integers(1, 700), st.sampled_from([b"\1", b"\xff", b"a"])),
                  max_size=24)


def planted(size: int, where: list[tuple[int, int, bytes]]) -> bytes:
    """Zeros with runs of data in them."""
    out = bytearray(size)
    for at, n, fill_with in where:
        out[at : at + n] = fill_with * len(out[at : at + n])
    return bytes(out)


def plain_look(image: bytes, room: list[tuple[int, int]], phase: int) -> tuple[list[tuple[int, int, int]], int]:
    """look, sector by sector: (sector, tail, empty) of each, and the number of blocks with data."""
    out: list[tuple[int, int, int]] = []
    blocks = 0

    def tail(at: int) -> int:
        sector = image[at : at + 512]
        return len(sector.rstrip(b"\0")) if len(sector) == 512 else 0  # what is no whole sector holds nothing

    for start, length in room:
        first = next(at for at in range(start, start + 512) if at % 512 == phase)
        end = min(start + length, len(image))
        for at in range(first, end - 511, 512):
            if 0 < tail(at) < 512:
                empty = next((k for k in range(8) if tail(at + 512 * (k + 1))), 8)
                out.append(((at - phase) // 512, tail(at), empty))
        blocks += sum(any(tail(at + 512 * k) for k in range(8)) for at in range(first, end - 4095, 4096))
    return out, blocks


@settings(max_examples=200, deadline=None)
@given(plants, st.integers(0, 20 * 4096), st.integers(0, 511), st.sampled_from([4096, 8192, 4 << 20]),
       st.lists(st.integers(0, 20 * 4096), max_size=6, unique=True).map(sorted))
def test_look_finds_what_a_plain_loop_finds(where: list[tuple[int, int, bytes]], size: int, phase: int, step: int,
                                            borders: list[int]) -> None:
    """Any ranges of an image of any length, read in any steps."""
    image = planted(size, where)
    room = [(a, b - a) for a, b in zip(borders[::2], borders[1::2], strict=False) if b <= size]
    with patch.object(tails, "STEP", step):
        seen = look(BytesReader(image), np.array(room, np.int64).reshape(-1, 2), phase)
    assert (seen.sector.dtype, seen.tail.dtype, seen.empty.dtype) == (np.int64, np.uint16, np.uint8)
    found = list(zip(seen.sector.tolist(), seen.tail.tolist(), seen.empty.tolist(), strict=True))
    assert (found, seen.blocks) == plain_look(image, room, phase)
    assert seen.phase == phase


@pytest.mark.parametrize("step", [4096, 4 << 20])
def test_look_across_steps(step: int) -> None:
    """A dense case that chance need not hit: each sector ends somewhere else, empty runs of each length."""
    rng = random.Random(7)
    sectors: list[bytes] = []
    for k in range(400):
        sectors.append(rng.randbytes(k).rstrip(b"\0").ljust(512, b"\0"))
        sectors += [bytes(512)] * (k % 11)
    image = b"".join(sectors)
    with patch.object(tails, "STEP", step):
        seen = look(BytesReader(image), np.array([[0, len(image)]], np.int64), 0)
    expected, blocks = plain_look(image, [(0, len(image))], 0)
    assert list(zip(seen.sector.tolist(), seen.tail.tolist(), seen.empty.tolist(), strict=True)) == expected
    assert seen.blocks == blocks and len(expected) > 390 and {e for _, _, e in expected} == set(range(9))


def test_look_is_bounded() -> None:
    """No range is begun behind the bytes that one image is worth."""
    image = b"x".ljust(512, b"\0") * 64
    room = np.array([[0, 8192], [8192, 8192], [16384, 8192]], np.int64)
    assert len(look(BytesReader(image), room, 0).sector) == 48
    with patch.object(tails, "MAX_LOOK", 8192):
        assert len(look(BytesReader(image), room, 0).sector) == 32


# --- agree ---------------------------------------------------------------------------------------------------------
def test_agree_counts_right_and_wrong_ends() -> None:
    """Data then zeros: right. Data behind the end: wrong. Zeros before it, unknown, beyond the image: neither."""
    image = bytearray(b"\xaa" * 16384)
    image[1000:2048] = bytes(1048)  # 24 bytes of its sector and two sectors behind
    image[5000:5632] = bytes(632)
    image[5631] = 1  # the last byte that must be zero
    image[9000:10752] = bytes(1752)
    image[16384 - 100 :] = bytes(100)

    def ends(*rows: tuple[int, int]) -> FileEnds:
        return FileEnds(np.array([f for f, _ in rows], np.int64), np.array([e for _, e in rows], np.uint8),
                        np.empty(0, np.int64))

    def one(p: int, f: int, empty: int) -> tuple[int, int]:
        return agree(BytesReader(bytes(image)), np.array([p], np.int64), ends((f, empty)))

    assert one(1000, 1000, 2) == one(1000, 65536 + 1000, 0) == (1, 0)
    assert one(1000, 1000, 3) == (0, 1), "a sector too many"
    assert one(999, 999, 2) == (0, 1), "a byte too early"
    assert one(5000, 5000, 1) == (0, 1) and one(5000, 5000, 0) == (1, 0)
    assert one(9100, 9100, 1) == (0, 0), "a file that ends in zeros"
    assert one(-1, 1000, 2) == one(0, 1000, 2) == (0, 0)
    assert one(16284, 16284, 0) == (1, 0) and one(16284, 16284, 1) == (0, 0), "the image ends before"
    assert one(1 << 40, 1000, 2) == (0, 0)
    rows = ends((1000, 2), (1000, 3), (5000, 0), (5000, 1), (5000, 1), (9100, 1))
    assert agree(BytesReader(bytes(image)), np.array([1000, 1000, 5000, 5000, 5000, 9100]), rows) == (2, 3)
    assert agree(BytesReader(b""), np.empty(0, np.int64), FileEnds.none()) == (0, 0)


# --- to_file -------------------------------------------------------------------------------------------------------
pieces = st.lists(st.tuples(st.integers(1, 2000), st.sampled_from([DATA, DATA, HOLE, UNALLOCATED, LOST]),
                            st.integers(0, 1 << 40), st.sampled_from([PLAIN, PLAIN, ZLIB])), max_size=12)


@settings(deadline=None)
@given(pieces, st.lists(st.integers(-5, 25_000), max_size=30))
def test_to_file_is_the_map(rows: list[tuple[int, int, int, int]], points: list[int]) -> None:
    """Plain data where the map has it; holes, encoded runs, before the disk and behind it: -1."""
    length = [n for n, *_ in rows]
    guest_offset = [sum(length[:k]) for k in range(len(rows))]
    where = [f if s == DATA else -1 for _, s, f, _ in rows]
    encoding = [e if s == DATA else PLAIN for _, s, _, e in rows]
    built = GuestMap.build(guest_offset, length, [s for _, s, _, _ in rows], where, encoding)
    points += guest_offset + [g + n - 1 for g, n in zip(guest_offset, length, strict=True)]
    expected = [-1] * len(points)
    for i, p in enumerate(points):
        for g, (n, state, f, e) in zip(guest_offset, rows, strict=True):
            if g <= p < g + n and state == DATA and e == PLAIN:
                expected[i] = f + p - g
    assert to_file(built, np.array(points, np.int64)).tolist() == expected


# --- the kernels ---------------------------------------------------------------------------------------------------
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 6), st.lists(st.tuples(st.integers(0, 6 * 512 - 1), st.integers(1, 255)), max_size=30))
def test_sector_tails_is_the_reference(n: int, bytes_at: list[tuple[int, int]]) -> None:
    """Read-only sectors with single bytes in them."""
    data = bytearray(6 * 512)
    for at, value in bytes_at:
        data[at] = value
    buf = bytes(data[: n * 512])
    tail = np.full(n, 9999, np.uint16)
    sector_tails(np.frombuffer(buf, np.uint8), tail)
    assert tail.tolist() == sector_tails_reference(buf)


def test_sector_tails_at_every_byte() -> None:
    """One byte, the lowest and the highest bit of it, at each place of a sector; the sectors beside are not read."""
    for value in (b"\x01", b"\x80"):
        buf = b"".join(b"\xff" * 512 + value.rjust(k, b"\0").ljust(512, b"\0") for k in range(1, 513)) + bytes(512)
        tail = np.zeros(1025, np.uint16)
        sector_tails(buf, tail)
        assert tail.tolist() == [n for k in range(1, 513) for n in (512, k)] + [0]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3), st.lists(st.tuples(st.integers(0, 3 * 4096 - 1), st.integers(1, 255)), max_size=12))
def test_first_words_is_the_reference(n: int, bytes_at: list[tuple[int, int]]) -> None:
    """Read-only blocks with single bytes in them."""
    data = bytearray(3 * 4096)
    for at, value in bytes_at:
        data[at] = value
    buf = bytes(data[: n * 4096])
    at, word = np.full(n, 9999, np.uint16), np.full(n, 9999, np.uint64)
    first_words(np.frombuffer(buf, np.uint8), at, word)
    assert list(zip(at.tolist(), word.tolist(), strict=True)) == first_words_reference(buf)


def test_first_words_at_every_word() -> None:
    """One byte at each of the eight places of each word of a block, other data behind it; an empty block at the end."""
    blocks = [bytes(8 * k + k % 8) + b"\x81" + b"\x42" * (4095 - 8 * k - k % 8) for k in range(512)] + [bytes(4096)]
    at, word = np.zeros(513, np.uint16), np.ones(513, np.uint64)
    first_words(b"".join(blocks), at, word)
    assert at.tolist() == list(range(513))
    assert word[:512].tobytes() == b"".join(b[8 * k : 8 * k + 8] for k, b in enumerate(blocks[:512]))
    assert word[512] == 0


def test_arrays_of_the_wrong_length_are_refused() -> None:
    """Lengths are checked before the loops run without checks."""
    def zeros(n: int) -> np.ndarray:
        return np.zeros(n, np.uint8)

    def tail(n: int) -> np.ndarray:
        return np.zeros(n, np.uint16)

    for size, n in ((511, 1), (513, 1), (1024, 1), (512, 2), (512, 0), (0, 1)):
        with pytest.raises(ValueError, match="512 bytes"):
            sector_tails(zeros(size), tail(n))
    for size, n, words in ((4095, 1, 1), (4097, 1, 1), (8192, 1, 1), (4096, 2, 2), (4096, 0, 0), (0, 1, 1),
                           (4096, 1, 0), (4096, 1, 2), (8192, 2, 1)):
        with pytest.raises(ValueError, match="4096 bytes"):
            first_words(zeros(size), tail(n), np.zeros(words, np.uint64))
