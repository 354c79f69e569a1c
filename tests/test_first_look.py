"""The first-look kernel against its plain reference, on every path, on read-only buffers and at every edge."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.first_look import Also
from tests.reference.first_look import first_look as reference
from vmcarve._ext.cpu import PATHS
from vmcarve._ext.first_look import first_look, read_and_look
from vmcarve.errors import UsageError
from vmcarve.model import Signature
from vmcarve.simd import best_path
from vmcarve.sweeper.table import Entry, MagicTable, compile_table, declared

Magic = tuple[int, bytes, Also | None]
MAGICS: list[Magic] = [
    (0, b"KDMV", None), (0, b"KD", None), (0x40, b"\x7f\x10\xda\xbe", None), (510, b"\x55\xaa", None),
    (0, b"\0\0", None), (257, b"ustar", (104, b"\xf8\xf8", b"00")), (3, b"odd", None), (301, b"ab", None),
    (56, b"\x53\xef", (600, b"\xff\x0f", b"\x11\x02")),  # the second field lies in the next sector
    (128, b"xy", (-40, b"\xff", b"\x07")),  # and here in the one before
]  # fmt: skip


def table(magics: list[Magic], path: int) -> MagicTable:
    """The kernel's table; a magic whose second field lies before its sector begins one sector earlier."""
    entries: list[Entry] = []
    for i, (at, magic, also) in enumerate(magics):
        back = 512 if also is not None and also[0] < 0 else 0
        second = None if also is None else (also[0] + back, also[1], also[2])
        entries.append(Entry("t", Signature(magic, f"t.{i}", at + back, also=second), lambda *_: None, None))
    return compile_table(entries, path)


def look(buf: bytes, magics: list[Magic], path: int, cap: int = 64) -> list[tuple[int, int]]:
    t = table(magics, path)
    sectors, found = np.empty(cap, np.int64), np.empty(cap, np.int32)
    resume = np.zeros(1, np.int64)
    view = np.frombuffer(buf, np.uint8)
    assert not view.flags.writeable
    out: list[tuple[int, int]] = []
    while resume[0] < len(view) // 512:
        before = int(resume[0])
        n = first_look(t.look, view, sectors, found, resume)
        out += [(int(s), int(m)) for s, m in zip(sectors[:n], found[:n], strict=True)]
        assert resume[0] > before, "the kernel must go forward"
    assert [s for s, _ in out] == sorted(s for s, _ in out)
    return sorted(out)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(range(len(MAGICS)))), max_size=60),
       st.lists(st.integers(0, 41 * 512 - 1), max_size=20), st.integers(0, 600), st.integers(len(MAGICS), 20))
def test_finds_what_the_reference_finds(path: int, plants: list[tuple[int, int]], broken: list[int], tail: int,
                                        cap: int) -> None:
    """Every planted magic is found once, however small the result arrays, however long the tail, on every path."""
    buf = bytearray(b"\xee" * (41 * 512 + tail))
    for sector, which in plants:
        at, magic, also = MAGICS[which]
        buf[sector * 512 + at : sector * 512 + at + len(magic)] = magic
        if also is not None and 0 <= sector * 512 + also[0] <= 40 * 512:
            buf[sector * 512 + also[0] : sector * 512 + also[0] + len(also[2])] = also[2]
    for at in broken:
        buf[at] ^= 0x11
    assert look(bytes(buf), MAGICS, path, cap) == sorted(reference(bytes(buf), MAGICS))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_magic_of_the_registry_in_every_sector_of_a_block(path: int) -> None:
    """Each signature that the modules declare, in noise, in each of a block's sectors: what the reference says."""
    entries = declared()
    magics: list[Magic] = [(e.signature.at % 512, e.signature.magic,
                            None if (a := e.signature.also) is None else (a[0] - e.back, a[1], a[2])) for e in entries]
    noise = np.random.default_rng(3).bytes(20 * 512)
    t = compile_table(entries, path)
    sectors, found, resume = np.empty(128, np.int64), np.empty(128, np.int32), np.zeros(1, np.int64)
    for i, (at, magic, also) in enumerate(magics):
        buf = bytearray(noise)
        sector = 1 + i % 9
        buf[sector * 512 + at : sector * 512 + at + len(magic)] = magic
        if also is not None and 0 <= sector * 512 + also[0] <= 20 * 512 - 16:
            buf[sector * 512 + also[0] : sector * 512 + also[0] + len(also[2])] = also[2]
        resume[0] = 0
        n = first_look(t.look, np.frombuffer(buf, np.uint8), sectors, found, resume)
        hits = sorted(zip(sectors[:n].tolist(), found[:n].tolist(), strict=True))
        assert hits == sorted(reference(bytes(buf), magics)) and (sector, i) in hits


def test_noise_touches_two_cache_lines() -> None:
    """What the look costs: of a sector's eight cache lines, the registry's magics need the first two."""
    assert compile_table(declared()).lines == (0, 64)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_magic_across_a_sector_end_is_no_hit(path: int) -> None:
    """A magic that begins in one sector and ends in the next lies in neither."""
    buf = bytearray(2048)
    buf[510:514] = b"KDMV"
    assert look(bytes(buf), [(0, b"KDMV", None)], path) == []


@pytest.mark.parametrize("size", [0, 1, 511])
def test_less_than_a_sector_is_nothing(size: int) -> None:
    """A tail that is no sector is not looked at."""
    assert look(b"K" * size, MAGICS, 0) == []


def test_arrays_of_the_wrong_shape_are_refused() -> None:
    """Arguments are checked before the loop runs without checks."""
    t = table(MAGICS, 0).look
    sectors, found, resume = np.empty(16, np.int64), np.empty(16, np.int32), np.zeros(1, np.int64)
    buf = np.zeros(1024, np.uint8)
    with pytest.raises(ValueError, match="one length"):
        first_look(t, buf, sectors, found[:15], resume)
    with pytest.raises(ValueError, match="at least the number of magics"):
        first_look(t, buf, sectors[:9], found[:9], resume)
    for state, piece in (([0, 1025, 0, 0, 0], 512), ([0, 512, 2, 0, 0], 512), ([-1, 0, 0, 0, 0], 512),
                         ([0, 0, 0, 0, 0], 511), ([0, 0, 0, 0, 0], 1536)):
        with pytest.raises(ValueError, match="state|piece"):
            read_and_look(t, 0, np.array(state, np.int64), buf, piece, sectors, found)


def test_a_magic_that_leaves_its_sector_is_refused() -> None:
    """A signature whose magic crosses a sector's end could never be found, so it is a mistake of its module."""
    with pytest.raises(ValueError, match="inside one sector"):
        table([(510, b"abcd", None)], 0)


@pytest.mark.parametrize("also", [(4, b"", b""), (4, b"\xff", b"ab"), (-1, b"\xff", b"a"), (4, b"\x0f", b"\x10")])
def test_a_second_field_that_cannot_be_is_refused(also: Also) -> None:
    """No bytes, two lengths, a place before the structure, a bit that the mask takes away."""
    with pytest.raises(ValueError, match="second field"):
        compile_table([Entry("t", Signature(b"abcd", "t.x", also=also), lambda *_: None, None)])


def test_a_path_is_forced_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """VMCARVE_SIMD chooses one; a name that cannot be run here is a wrong call, not a crash."""
    for name, number in PATHS.items():
        monkeypatch.setenv("VMCARVE_SIMD", name)
        assert best_path() == number
    monkeypatch.setenv("VMCARVE_SIMD", "vax")
    with pytest.raises(UsageError, match="vax.*plain"):
        best_path()


# --- reading and looking ----------------------------------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(plants=st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0, 1, 2, 6])), max_size=30),
       chunk=st.integers(1, 20), piece=st.integers(1, 20), cap=st.integers(len(MAGICS), 24), begin=st.integers(0, 99),
       tail=st.integers(0, 511))
def test_reading_finds_what_the_reference_finds(
    plants: list[tuple[int, int]], chunk: int, piece: int, cap: int, begin: int, tail: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever the sizes of buffer, read and result: each magic once, and its sector is whole in the buffer by then."""
    data = bytearray(b"\xee" * (100 * 512 + tail))
    for sector, which in plants:
        at, magic, _ = MAGICS[which]
        data[sector * 512 + at : sector * 512 + at + len(magic)] = magic
    path = tmp_path_factory.getbasetemp() / "read"
    path.write_bytes(data)
    t = table(MAGICS, best_path())
    sectors, found, buf = np.empty(cap, np.int64), np.empty(cap, np.int32), np.zeros(chunk * 512, np.uint8)
    state = np.array([begin * 512, 0, 0, len(data), 0], np.int64)
    hits: list[tuple[int, int]] = []
    with path.open("rb") as f:
        while True:
            n = read_and_look(t.look, f.fileno(), state, buf, min(piece, chunk) * 512, sectors, found)
            assert state[4] == 0
            assert buf[: state[1]].tobytes() == data[state[0] : state[0] + state[1]]
            hits += [(int(s) + int(state[0]) // 512, int(m)) for s, m in zip(sectors[:n], found[:n], strict=True)]
            assert all(s < state[2] for s in sectors[:n])
            if n == 0:
                break
    assert state[0] + state[1] == max(len(data), begin * 512)
    assert sorted(hits) == sorted((s, m) for s, m in reference(bytes(data), MAGICS) if s >= begin)


@settings(max_examples=150, deadline=None)
@given(plants=st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0, 5, 8, 9]), st.booleans()), max_size=30),
       chunk=st.integers(1, 20), piece=st.integers(1, 20), cap=st.integers(len(MAGICS), 24))
def test_a_second_field_in_the_next_piece_is_asked_for_when_that_is_read(
    plants: list[tuple[int, int, bool]], chunk: int, piece: int, cap: int, tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """No hit is lost, and of those handed back each has its second field, unless that is not in the buffer."""
    data = bytearray(b"\xee" * (100 * 512))
    for sector, which, whole in plants:
        at, magic, also = MAGICS[which]
        data[sector * 512 + at : sector * 512 + at + len(magic)] = magic
        if whole and also is not None and 0 <= sector * 512 + also[0] < len(data) - 16:
            data[sector * 512 + also[0] : sector * 512 + also[0] + len(also[2])] = also[2]
    path = tmp_path_factory.getbasetemp() / "second"
    path.write_bytes(data)
    want = {(s, m) for s, m in reference(bytes(data), MAGICS)}
    t = table(MAGICS, best_path())
    sectors, found, buf = np.empty(cap, np.int64), np.empty(cap, np.int32), np.zeros(chunk * 512, np.uint8)
    state, hits = np.array([0, 0, 0, len(data), 0], np.int64), list[tuple[int, int]]()
    with path.open("rb") as f:
        while n := read_and_look(t.look, f.fileno(), state, buf, min(piece, chunk) * 512, sectors, found):
            for s, m in zip(sectors[:n].tolist(), found[:n].tolist(), strict=True):
                hits.append((s + int(state[0]) // 512, m))
                also = MAGICS[m][2]
                if also is not None and 0 <= s * 512 + also[0] <= state[1] - len(also[1]):
                    assert hits[-1] in want, "its second field was there to be seen"
    assert state[0] + state[1] == len(data) and want <= set(hits) and len(set(hits)) == len(hits)


def test_a_piece_whose_hits_come_to_nothing_is_overwritten(tmp_path: Path) -> None:
    """Second fields that lie behind a piece and are not there cost one more piece in the buffer, and no call."""
    data = bytearray(b"\xee" * (64 * 512))
    for sector in (3, 7, 11, 35):
        data[sector * 512 + 56 : sector * 512 + 58] = MAGICS[8][1]
    (tmp_path / "i").write_bytes(data)
    t = table(MAGICS, best_path())
    sectors, found, buf = np.empty(64, np.int64), np.empty(64, np.int32), np.zeros(64 * 512, np.uint8)
    state = np.array([0, 0, 0, len(data), 0], np.int64)
    with (tmp_path / "i").open("rb") as f:
        assert read_and_look(t.look, f.fileno(), state, buf, 4 * 512, sectors, found) == 0
    assert state.tolist() == [60 * 512, 4 * 512, 4, len(data), 0]


def test_a_bad_place_stops_the_read(tmp_path: Path) -> None:
    """EIO from the system comes back with everything before it looked at; so does a file that ends too early."""
    t, sectors, found = table(MAGICS, best_path()), np.empty(64, np.int64), np.empty(64, np.int32)
    page = mmap.PAGESIZE
    area = mmap.mmap(-1, 3 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[:] = b"\xee" * len(area)
    area[page - 512 : page - 508] = b"KDMV"
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.munmap(ctypes.c_void_p(at + page), ctypes.c_size_t(page)) == 0  # our own memory has a bad page now
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        state = np.array([at, 0, 0, at + 3 * page, 0], np.int64)
        buf = np.zeros(8 * page, np.uint8)
        assert read_and_look(t.look, memory, state, buf, 4 * page, sectors, found) == 0
        assert state.tolist() == [at, page, 0, at + 3 * page, errno.EIO]
        assert read_and_look(t.look, memory, state, buf, 4 * page, sectors, found) == 2  # KDMV and KD
        assert state[4] == errno.EIO and sectors[0] == page // 512 - 1
    finally:
        os.close(memory)
        libc.mmap.restype = ctypes.c_void_p  # whole again, for whoever frees it
        fixed, private_anonymous, read_write = 0x10, 0x22, 3
        libc.mmap(ctypes.c_void_p(at + page), ctypes.c_size_t(page), read_write, private_anonymous | fixed, -1,
                  ctypes.c_long(0))
    short = tmp_path / "short"
    short.write_bytes(b"\xee" * 1000)
    with short.open("rb") as f:
        state = np.array([0, 0, 0, 4096, 0], np.int64)
        assert read_and_look(t.look, f.fileno(), state, np.zeros(4096, np.uint8), 4096, sectors, found) == 0
        assert state.tolist() == [0, 1000, 0, 4096, errno.EIO]
