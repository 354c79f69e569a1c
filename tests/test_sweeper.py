"""The sweep as a whole: no structure is lost or doubled however the image is cut up, and nothing ends it early."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import mmap
import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcarve._ext.cpu import PATHS
from vmcarve.errors import UsageError
from vmcarve.model import Evidence, EvidenceBatch, Reader, Signature
from vmcarve.source import ImageSource, open_image
from vmcarve.sweeper import Sweep, fold, run, sweep_image
from vmcarve.sweeper.table import Entry, compile_table

SECTOR = 512
SECTORS = 160
Row = tuple[str, int, int | None, str | None]  # kind, image_offset, value, identity: one structure

# --- two modules with every shape of signature ----------------------------------------------------------------------
SPARSE = (
    Signature(b"HEAD", "t.head"),
    Signature(b"\x7f\x10", "t.inside", at=0x40),
    Signature(b"TAIL", "t.second-sector", at=1000),  # the structure begins one sector before its magic
    Signature(b"HERE", "t.here"),  # shares its first bytes with t.head
)
DENSE = (
    Signature(b"FILE", "t.record", dense=True, size=1024),
    Signature(b"node", "t.node", at=257, dense=True, size=4096),
)


def seal(body: bytearray) -> bytes:
    """Puts the CRC-32 of everything before the last four bytes there: what our confirm functions ask for."""
    struct.pack_into("<I", body, len(body) - 4, zlib.crc32(body[:-4]))
    return bytes(body)


def structure(signature: Signature, value: int) -> bytes:
    """A structure that confirms, with a value in it (0 to 255)."""
    body = bytearray(size_of(signature))
    body[signature.at : signature.at + len(signature.magic)] = signature.magic
    body[16] = value
    return seal(body)


def size_of(signature: Signature) -> int:
    return signature.size if signature.dense else max(SECTOR, -(-(signature.at + 16) // SECTOR) * SECTOR)


def sound(block: bytes) -> bool:
    return zlib.crc32(block[:-4]) == struct.unpack_from("<I", block, len(block) - 4)[0]


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    block = reader.read(offset, size_of(signature))
    if len(block) < size_of(signature) or not sound(block):
        return None
    return Evidence(signature.kind, offset, len(block), value=block[16])


def confirm_batch(blocks: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], signature: Signature
                  ) -> EvidenceBatch | None:
    keep = np.array([sound(b.tobytes()) for b in blocks], bool)
    return EvidenceBatch(signature.kind, offsets[keep], signature.size, value=blocks[keep, 16].astype(np.int64),
                         identity=[f"volume {v // 100}" for v in blocks[keep, 16]])


def entries(replaced: Callable[[Reader, int, Signature], Evidence | None] = confirm) -> list[Entry]:
    sparse = [Entry("sparse", s, replaced, None) for s in SPARSE]
    return sparse + [Entry("dense", s, None, confirm_batch) for s in DENSE]


@contextmanager
def settled(chunk: int = run.CHUNK, range_: int = run.RANGE, hits: int = run.HITS,
            declared: Sequence[Entry] | None = None) -> Iterator[None]:
    """The sweeper's sizes in bytes, and the signatures it knows, for one block."""
    with mock.patch.multiple(run, CHUNK=chunk, RANGE=range_, HITS=hits,
                             declared=lambda: list(declared) if declared is not None else entries()):
        yield


def swept(source: ImageSource, **options: object) -> tuple[list[Row], Sweep]:
    """Every structure that a sweep hands on, one by one (runs unfolded), and its totals."""
    batches: list[pa.RecordBatch] = []
    result = sweep_image(source, 3, batches.append, **options)  # type: ignore[arg-type]
    rows: list[Row] = []
    for batch in batches:
        at = [r["image_offset"] for r in batch.to_pylist()]
        assert at == sorted(at), "a record batch must be in image order"
        for r in batch.to_pylist():
            assert r["source"] == 3 and r["length"] % r["count"] == 0
            step = r["length"] // r["count"]
            for i in range(r["count"]):
                rows.append((r["kind"], r["image_offset"] + i * step, r["value"] + i, r["identity"]))
    return rows, result


def plain(data: bytes) -> list[Row]:
    """What a loop over all sectors finds: the reference."""
    rows: list[Row] = []
    for at in range(0, len(data) // SECTOR * SECTOR, SECTOR):
        for s in (*SPARSE, *DENSE):
            block = data[at : at + size_of(s)]
            if len(block) == size_of(s) and block[s.at : s.at + len(s.magic)] == s.magic and sound(block):
                rows.append((s.kind, at, block[16], f"volume {block[16] // 100}" if s.dense else None))
    return sorted(rows)


def image_of(plants: Sequence[tuple[int, int, int]], tail: int) -> bytes:
    """Noise with structures at (sector, which, value); later ones overwrite earlier ones."""
    data = bytearray(np.random.default_rng(7).bytes(SECTORS * SECTOR + tail))
    for sector, which, value in plants:
        body = structure((*SPARSE, *DENSE)[which], value)
        data[sector * SECTOR : sector * SECTOR + len(body)] = body
    del data[SECTORS * SECTOR + tail :]
    return bytes(data)


# --- no hit lost, none doubled ---------------------------------------------------------------------------------------
@settings(max_examples=120, deadline=None)
@given(plants=st.lists(st.tuples(st.integers(0, SECTORS - 1), st.integers(0, 5), st.integers(0, 255)), max_size=40),
       run_at=st.integers(0, SECTORS - 40), tail=st.integers(0, 700), chunk=st.integers(1, 40), per=st.integers(1, 8),
       hits=st.integers(1, 20), threads=st.integers(1, 4),
       cuts=st.lists(st.integers(0, SECTORS * SECTOR + 700), max_size=6))
def test_every_split_finds_the_same_structures(
    plants: list[tuple[int, int, int]], run_at: int, tail: int, chunk: int, per: int, hits: int, threads: int,
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """However an image is cut into ranges, tasks, reads, kernel calls and threads: the same structures, each once."""
    run_of_records = [(run_at + 2 * i, 4, 90 + i) for i in range(20)]
    data = image_of([*run_of_records, *plants], tail)
    path = tmp_path_factory.getbasetemp() / "splits.img"
    path.write_bytes(data)
    borders = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    ranges = [(a, b - a) for a, b in zip(borders, borders[1:], strict=False)]
    with open_image(path) as source, settled(chunk * SECTOR, chunk * per * SECTOR, hits):
        rows, result = swept(source, ranges=ranges, threads=threads)
        assert sorted(rows) == plain(data)
        assert result.confirmed == Counter(kind for kind, *_ in rows) and not result.failed
        assert swept(source, ranges=ranges, threads=1)[0] == rows, "the order must not hang on the threads"


@pytest.mark.parametrize("path", PATHS)
def test_every_path_finds_the_same_structures(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever instructions VMCARVE_SIMD names: the structures that the plain loop finds."""
    monkeypatch.setenv("VMCARVE_SIMD", path)
    rng = np.random.default_rng(6)
    data = image_of([(int(rng.integers(SECTORS)), int(rng.integers(6)), int(rng.integers(256))) for _ in range(60)], 99)
    (tmp_path / "i").write_bytes(data)
    with open_image(tmp_path / "i") as source, settled(24 * SECTOR, 48 * SECTOR):
        assert sorted(swept(source)[0]) == plain(data)


@pytest.mark.parametrize("which", range(len(SPARSE) + len(DENSE)))
def test_structures_at_every_place_of_a_border(which: int, tmp_path: Path) -> None:
    """A structure that starts before, at and behind the end of a read and of a task is found once."""
    signature = (*SPARSE, *DENSE)[which]
    path = tmp_path / "i"
    for sector in range(0, 40):
        path.write_bytes(image_of([(sector, which, 5)], 0))
        with open_image(path) as source, settled(8 * SECTOR, 16 * SECTOR):
            rows, _ = swept(source)
        want: list[Row] = [(signature.kind, sector * SECTOR, 5, "volume 0" if signature.dense else None)]
        assert rows == want


def test_the_last_structure_may_end_with_the_image(tmp_path: Path) -> None:
    """A dense structure whose last byte is the image's last is found; one that is cut off is not."""
    path = tmp_path / "i"
    data = image_of([(SECTORS - 8, 5, 1)], 0)
    for cut, found in ((0, True), (1, False), (SECTOR, False)):
        path.write_bytes(data[: len(data) - cut])
        with open_image(path) as source, settled(4 * SECTOR, 8 * SECTOR):
            assert bool(swept(source)[0]) is found


def test_runs_become_one_row(tmp_path: Path) -> None:
    """Structures that follow each other with rising numbers are one row of a task, and a gap or a new name ends it."""
    path = tmp_path / "i"
    path.write_bytes(image_of([(2 * i, 4, 97 + i) for i in range(6)] + [(20 + 2 * i, 4, 9 * i) for i in range(3)], 0))
    batches: list[pa.RecordBatch] = []
    with open_image(path) as source, settled():
        sweep_image(source, 0, batches.append)
    rows = pa.Table.from_batches(batches).select(["image_offset", "count", "value", "identity"]).to_pylist()
    assert [(r["image_offset"] // SECTOR, r["count"], r["value"]) for r in rows] == [
        (0, 3, 97), (6, 3, 100), (20, 1, 0), (22, 1, 9), (24, 1, 18)]


def test_a_run_over_borders_becomes_one_row(tmp_path: Path) -> None:
    """Neither the chunks that are confirmed together nor the tasks of threads end a run."""
    path = tmp_path / "i"
    path.write_bytes(image_of([(2 * i, 4, 100 + i) for i in range(30)], 0))
    for threads in (1, 3):
        batches: list[pa.RecordBatch] = []
        with open_image(path) as source, settled(3 * SECTOR, 9 * SECTOR):
            sweep_image(source, 0, batches.append, threads=threads)
        rows = pa.Table.from_batches(batches).select(["image_offset", "count", "length", "value"]).to_pylist()
        assert [tuple(r.values()) for r in rows] == [(0, 30, 30 * size_of(DENSE[0]), 100)]


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from([8, 8, 8, 16]), st.sampled_from([1, 1, 1, 2]),
                                st.sampled_from([8, 8, -1]), st.booleans()), max_size=20),
       cut=st.integers(0, 20), columns=st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)))
def test_folding_loses_nothing(steps: list[tuple[int, int, int, bool]], cut: int,
                               columns: tuple[bool, bool, int]) -> None:
    """Unfolded, the runs are the structures that went in; folding twice gives what folding once does."""
    p, value, volume, which = 0, 0, 0, 0
    rows: list[tuple[int, int, int, int]] = []
    for step, more, away, other in steps:
        p, value, volume, which = p + step, value + more, volume + away if away > 0 else -1, which ^ int(other)
        rows.append((p, value, max(volume, -1), which))
    valued, placed, naming = columns

    def batch(part: list[tuple[int, int, int, int]]) -> EvidenceBatch:
        at, values, volumes, names = np.array(part, np.int64).reshape(-1, 4).T
        named: dict[int, tuple[Sequence[str] | str | None, npt.NDArray[np.int32] | None]] = {
            0: (None, None), 1: ("all", None), 2: ([f"n{n}" for n in names.tolist()], None),
            3: (["n0", "n1"], names.astype(np.int32))}
        return EvidenceBatch("k", at.copy(), 8, values.copy() if valued else None, volumes.copy() if placed else None,
                             named[naming][0], which=named[naming][1])

    def unfolded(runs: fold.Runs) -> list[tuple[int, int | None, int | None, str | None]]:
        b, count = runs
        out: list[tuple[int, int | None, int | None, str | None]] = []
        for i, n in enumerate(count.tolist()):
            name = b.identity if b.which is None else (b.identity or ())[int(b.which[i])]
            assert name is None or isinstance(name, str)
            for k in range(n):
                number = None if b.value is None else int(b.value[i]) + k
                place = None if b.volume_offset is None else int(b.volume_offset[i]) + 8 * k
                out.append((int(b.image_offset[i]) + 8 * k, number, place, name))
        return out

    want = [(at, v if valued else None, place if placed else None, (None, "all", f"n{n}", f"n{n}")[naming])
            for at, v, place, n in rows]
    once = fold.folded(batch(rows))
    assert unfolded(once) == want
    parts = [("m", fold.folded(batch(part))) for part in (rows[:cut], rows[cut:]) if part]
    if parts:
        (_, joined), = fold._joined(parts)  # pyright: ignore[reportPrivateUsage]
        again = fold.folded(*joined)
        assert unfolded(again) == want and again[1].tolist() == once[1].tolist()


def test_an_empty_image_is_swept(tmp_path: Path) -> None:
    """Nothing in, nothing out; a part of a sector is no sector."""
    path = tmp_path / "i"
    for size in (0, 1, 511):
        path.write_bytes(b"HEAD"[:size].ljust(size, b"\0"))
        with open_image(path) as source, settled():
            assert swept(source)[0] == []


# --- sparse images ---------------------------------------------------------------------------------------------------
def test_holes_are_passed_over(tmp_path: Path) -> None:
    """An image of 1 TiB with a few MiB of data is swept in the time of its data; progress still tells what was read."""
    path = tmp_path / "sparse.img"
    places = (0, (1 << 30) - 4096, 1 << 36, (1 << 40) - 4096)
    with path.open("wb") as f:
        f.truncate(1 << 40)
        for at in places:
            f.seek(at)
            f.write(structure(SPARSE[0], 1))
    told: list[int] = []
    with open_image(path) as source, settled():
        rows, result = swept(source, progress=told.append)
    assert [at for _, at, *_ in rows] == list(places)
    assert result.bytes_read == sum(told) < 1 << 20


def test_a_source_that_knows_no_holes_is_read_whole(tmp_path: Path) -> None:
    """Where SEEK_DATA is not known every byte is read."""
    path = tmp_path / "i"
    path.write_bytes(image_of([(3, 0, 1)], 0) + bytes(1 << 20))

    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "not known here")

    with open_image(path) as source, settled(), mock.patch.object(run.os, "lseek", refuse):
        rows, result = swept(source)
    assert len(rows) == 1 and result.bytes_read == path.stat().st_size


# --- hashes of the image, and the page cache -------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=8), tail=st.integers(0, 700),
       chunk=st.integers(1, 9), per=st.integers(1, 4), bad=st.sets(st.integers(0, 30), max_size=3),
       align=st.sampled_from([1, 512]))
def test_the_image_is_hashed_while_it_is_swept(parts: list[tuple[bool, int]], tail: int, chunk: int, per: int,
                                               bad: set[int], align: int,
                                               tmp_path_factory: pytest.TempPathFactory) -> None:
    """Data, holes and bad sectors, in reads of any size: the hashes of what the image reads as, and the same finds."""
    data = bytearray()
    path = tmp_path_factory.getbasetemp() / "hashed.img"
    with path.open("wb") as f:
        for n, (is_data, pages) in enumerate(parts):
            body = bytearray(pages * 4096)
            if is_data:
                body[:] = np.random.default_rng(n).bytes(len(body))
                body[512:1024] = structure(SPARSE[0], n)
                f.seek(len(data))
                f.write(body)
            data += body
        f.truncate(len(data) + tail)
    data += bytes(tail)
    for s in bad:
        data[s * SECTOR : (s + 1) * SECTOR] = bytes(len(data[s * SECTOR : (s + 1) * SECTOR]))
    with BadMedium(path, bad) as source, settled(chunk * SECTOR, chunk * per * SECTOR), \
            mock.patch.object(os, "preadv", source.preadv):  # type: ignore[attr-defined]
        rows, result = swept(source, hashes=("sha256", "blake2b"), align=align)
    assert sorted(rows) == plain(bytes(data))
    assert result.digests == {n: hashlib.new(n, data).hexdigest() for n in ("sha256", "blake2b")}


def test_a_hash_that_is_none_is_refused(tmp_path: Path) -> None:
    """An unknown name is a wrong call; a part of an image has no hash."""
    (tmp_path / "i").write_bytes(bytes(1024))
    with open_image(tmp_path / "i") as source, settled():
        with pytest.raises(UsageError, match="crc1"):
            swept(source, hashes=("crc1",))
        with pytest.raises(ValueError, match="part"):
            swept(source, hashes=("sha256",), ranges=[(0, 512)])


def test_the_case_keeps_the_hashes(tmp_path: Path) -> None:
    """case.json has them by image, --resume keeps them, and asks for a new sweep when one is missing."""
    image, out = tmp_path / "i", tmp_path / "case"
    image.write_bytes(image_of([], 100))
    argv = [sys.executable, "-m", "vmcarve.cli", "recover", str(image), "--out", str(out), "--no-write"]

    def hashes(*more: str) -> dict[str, str]:
        done = subprocess.run([*argv, *more], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads((out / "case.json").read_text())["images"][0]["hashes"]

    sha, blake = (hashlib.new(n, image.read_bytes()).hexdigest() for n in ("sha256", "blake2b"))
    assert hashes("--hash-image", "sha256", "--align", "1") == {"sha256": sha}
    assert hashes("--resume", "--align", "1") == {"sha256": sha}
    assert hashes("--resume", "--hash-image", "sha256", "--hash-image", "blake2b") == {"sha256": sha, "blake2b": blake}
    refused = subprocess.run([*argv[:-3], str(tmp_path / "new"), "--align", "2"], capture_output=True, timeout=60)
    assert refused.returncode == 2 and not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system takes no advice")
def test_the_page_cache_is_not_filled(tmp_path: Path) -> None:
    """What was read of an image larger than half of the memory is given up, all of it; of a smaller one, nothing."""
    path = tmp_path / "i"
    path.write_bytes(bytes(image_of([(3, 0, 1)], 300)))
    size = path.stat().st_size
    for memory, dropped in ((2 * size + 2, []), (2 * size - 2, [(0, size)])):
        told: list[tuple[int, int, int]] = []
        with open_image(path) as source, settled(8 * SECTOR, 16 * SECTOR), \
                mock.patch("vmcarve.source.image._memory", lambda memory=memory: memory), \
                mock.patch.object(os, "posix_fadvise", lambda fd, at, n, what, told=told: told.append((at, n, what))):
            swept(source, threads=2)
        assert told[0] == (0, 0, os.POSIX_FADV_SEQUENTIAL)
        merged: list[tuple[int, int]] = []
        for at, n, what in sorted(told[1:]):
            assert what == os.POSIX_FADV_DONTNEED
            if merged and merged[-1][1] == at:
                merged[-1] = (merged[-1][0], at + n)
            else:
                merged.append((at, at + n))
        assert merged == dropped


# --- what goes wrong does not end it ----------------------------------------------------------------------------------
class BadMedium(ImageSource):
    """An image some of whose sectors give EIO, like a disk's; any read that touches one fails as a whole."""

    def __init__(self, path: Path, bad: set[int]) -> None:
        super().__init__(path)
        self.bad = bad
        self.refused = 0
        self.system_preadv = os.preadv

    @property
    def plain_fd(self) -> int:
        return -1  # the kernel's own pread would not fail: every read goes through Python

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if fd == self.fd:
            end = offset + sum(len(b) for b in buffers)
            if any(s * SECTOR < end and offset < (s + 1) * SECTOR for s in self.bad):
                self.refused += 1
                raise OSError(errno.EIO, "Input/output error")
        return self.system_preadv(fd, buffers, offset)


@settings(max_examples=40, deadline=None)
@given(bad=st.sets(st.integers(0, SECTORS - 1), min_size=1, max_size=12),
       plants=st.lists(st.tuples(st.integers(0, SECTORS - 1), st.integers(0, 5), st.integers(0, 255)), max_size=20),
       threads=st.integers(1, 3))
def test_unreadable_sectors_become_ranges(bad: set[int], plants: list[tuple[int, int, int]], threads: int,
                                          tmp_path_factory: pytest.TempPathFactory) -> None:
    """Exactly the bad sectors are noted, and everything that does not touch one is found."""
    data = bytearray(image_of(plants, 0))
    path = tmp_path_factory.getbasetemp() / "bad.img"
    path.write_bytes(data)
    for s in bad:
        data[s * SECTOR : (s + 1) * SECTOR] = bytes(SECTOR)
    with BadMedium(path, bad) as source, settled(16 * SECTOR, 32 * SECTOR), \
            mock.patch.object(os, "preadv", source.preadv):
        rows, _ = swept(source, threads=threads)
        noted = {s for at, n in source.unreadable for s in range(at // SECTOR, -(-(at + n) // SECTOR))}
    assert sorted(rows) == plain(bytes(data))
    assert noted == bad
    assert source.refused < 100 * len(bad), "a bad sector must not be asked for without end"


def test_an_error_of_the_system_becomes_a_range(tmp_path: Path) -> None:
    """EIO that pread itself gives, as a bad disk would: our own memory with a page taken out, read as an image."""
    page = mmap.PAGESIZE
    area = mmap.mmap(-1, 16 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    body = structure(SPARSE[0], 9)
    wanted: list[Row] = []
    at = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for where in (0, 4 * page + 512, 6 * page - 512, 7 * page, 16 * page - 512):
        area[where : where + 512] = body
        wanted.append(("t.head", at + where, 9, None))
    libc = ctypes.CDLL(None)
    assert libc.munmap(ctypes.c_void_p(at + 6 * page), ctypes.c_size_t(page)) == 0
    try:
        (tmp_path / "i").write_bytes(b"")
        with open_image(tmp_path / "i") as source, settled(8 * page, 16 * page), \
                mock.patch.object(source, "_size", at + len(area)):
            memory = os.open("/proc/self/mem", os.O_RDONLY)
            os.dup2(memory, source.fd)
            os.close(memory)
            rows, _ = swept(source, ranges=[(at, len(area))], threads=1)
            assert source.unreadable == [(at + 6 * page, page)]
    finally:
        libc.mmap.restype = ctypes.c_void_p  # whole again, for whoever frees it
        fixed, private_anonymous, read_write = 0x10, 0x22, 3
        libc.mmap(ctypes.c_void_p(at + 6 * page), ctypes.c_size_t(page), read_write, private_anonymous | fixed, -1,
                  ctypes.c_long(0))
    assert rows == wanted


def test_a_confirm_that_raises_is_told(tmp_path: Path) -> None:
    """A defect in one kind's confirmation is named with its place; other kinds and later finds are not lost."""
    path = tmp_path / "i"
    path.write_bytes(image_of([(1, 0, 1), (5, 1, 2), (7, 0, 3), (9, 4, 4), (100, 1, 5)], 0))

    def sour(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
        if signature.kind == "t.head" and offset == SECTOR:
            raise IndexError("list index out of range")
        return confirm(reader, offset, signature)

    with open_image(path) as source, settled(declared=entries(sour)):
        rows, result = swept(source)
    assert [r[:2] for r in rows] == [("t.inside", 5 * SECTOR), ("t.head", 7 * SECTOR), ("t.record", 9 * SECTOR),
                                     ("t.inside", 100 * SECTOR)]
    assert list(result.failed) == ["t.head"]
    assert "IndexError" in result.failed["t.head"] and "0x200" in result.failed["t.head"]


def test_a_batch_that_raises_is_told(tmp_path: Path) -> None:
    """The same for a dense kind."""
    path = tmp_path / "i"
    path.write_bytes(image_of([(1, 0, 1), (9, 4, 4)], 0))

    def sour(*_: object) -> EvidenceBatch | None:
        raise ZeroDivisionError("division by zero")

    with open_image(path) as source, settled(declared=[*entries()[: len(SPARSE)], Entry("d", DENSE[0], None, sour)]):
        rows, result = swept(source)
    assert [r[0] for r in rows] == ["t.head"]
    assert list(result.failed) == ["t.record"]


def test_a_failing_writer_ends_the_sweep(tmp_path: Path) -> None:
    """What cannot be handed on (a full disk) is the caller's error, and no thread stays behind."""
    path = tmp_path / "i"
    path.write_bytes(image_of([(i, 0, 1) for i in range(0, SECTORS, 2)], 0))

    def full(_: pa.RecordBatch) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_image(path) as source, settled(4 * SECTOR, 8 * SECTOR), pytest.raises(OSError, match="No space"):
        sweep_image(source, 0, full)


# --- the table --------------------------------------------------------------------------------------------------------
def test_what_the_kernel_could_not_find_is_refused() -> None:
    """Signatures that could never be found, or would never be confirmed, are mistakes of their module."""
    for wrong in (Signature(b"x", "t.short"), Signature(b"x" * 17, "t.long"), Signature(b"abcd", "t.across", at=510),
                  Signature(b"ab", "t.far", at=512, dense=True)):
        with pytest.raises(ValueError, match=wrong.kind):
            compile_table([Entry("t", wrong, confirm, confirm_batch)])
