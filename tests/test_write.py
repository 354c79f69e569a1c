"""What is written is what the rows say, byte for byte, hashed or not, shared or copied; it is whole or not there."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.corpus.loops import loop_device, mounted
from tests.corpus.tools import no_mounts_because, run
from vmcarve.disk import VirtualDisk
from vmcarve.errors import VmcarveError
from vmcarve.export import Stopped, write_container, write_raw
from vmcarve.export.clone import Cloner
from vmcarve.model import DATA, HOLE, PLAIN, ZLIB, GuestMap, Patch
from vmcarve.source import BytesReader, open_image
from vmcarve.verify.disk import Row

KIB, MIB = 1 << 10, 1 << 20
IMAGE_KIB = 3 * 1024


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random bytes with zeros between them, in runs of 16 to 256 KiB."""
    rng = np.random.default_rng(2)
    path = tmp_path_factory.mktemp("write") / "image"
    with path.open("wb") as f:
        while f.tell() < IMAGE_KIB * KIB:
            n = int(rng.integers(16, 257)) * KIB
            f.write(rng.bytes(n) if rng.integers(2) else bytes(n))
        f.truncate(IMAGE_KIB * KIB)
    return path


def laid(rows: list[Row], patches: list[Patch], size: int, image: bytes) -> bytes:
    """What the rows say, written out plainly."""
    out = bytearray(size)
    for f, n, p, *_ in rows:
        if p is not None:
            part = image[p : p + n]
            out[f : f + len(part)] = part
    for patch in patches:
        out[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
    return bytes(out)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[Row], list[Patch], int]:
    """Rows of a file in order: image bytes from anywhere (also beyond the image's end), holes, bytes of our own."""
    rows: list[Row] = []
    patches: list[Patch] = []
    at = 0
    for _ in range(draw(st.integers(0, 12))):
        n = draw(st.one_of(st.integers(1, 5000), st.integers(1, 400).map(lambda k: k * 4096)))
        kind = draw(st.sampled_from(("image", "image", "next", "hole", "ours")))
        p: int | None = None
        if kind == "image":
            p = draw(st.integers(0, IMAGE_KIB)) * KIB + draw(st.sampled_from((0, 0, 1, 511)))
        elif kind == "next" and rows and rows[-1][2] is not None:
            p = rows[-1][2] + rows[-1][1]
        elif kind == "ours":
            n = min(n, 70_000)
            patches.append(Patch(at, bytes([len(rows) + 1]) * n, "rebuilt"))
        rows.append((at, n, p, at, "plain", n, "supported" if p is not None else "guessed", "x"))
        at += n
    return rows, patches, at + draw(st.sampled_from((0, 1, 100_000)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts(), st.booleans(), st.booleans())
def test_any_layout(image: Path, tmp_path: Path, layout: tuple[list[Row], list[Patch], int], digest: bool,
                    apart: bool) -> None:
    """The file is what its rows say, its hash is that of the file, whoever hashes, and nothing else is left there."""
    rows, patches, size = layout
    path = tmp_path / "out"
    with open_image(image) as source:
        output = write_container(source, path, size, rows, patches, digest=digest, apart=apart)
    data = path.read_bytes()
    assert data == laid(rows, patches, size, image.read_bytes())
    assert output.sha256 == (hashlib.sha256(data).hexdigest() if digest else None)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("shift", [0, 4096, 100])
def test_zeros_take_no_space(tmp_path: Path, digest: bool, shift: int) -> None:
    """Blocks of zeros in the image become holes, wherever they lie; what is between them is written."""
    data = bytes(4 * MIB) + b"x" + bytes(4 * MIB - 1)
    (tmp_path / "image").write_bytes(bytes(shift) + data)
    with open_image(tmp_path / "image") as source:
        rows: list[Row] = [(0, len(data), shift, 0, "plain", len(data), "supported", "x")]
        write_container(source, tmp_path / "out", len(data), rows, [], digest=digest)
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_blocks * 512 <= 128 * KIB


@pytest.mark.parametrize("digest", [False, True])
def test_a_stop_leaves_nothing(image: Path, tmp_path: Path, digest: bool) -> None:
    """A disk that is stopped half way is not there at all."""
    stop = threading.Event()
    stop.set()
    with open_image(image) as source, pytest.raises(Stopped):
        rows: list[Row] = [(0, MIB, 0, 0, "plain", MIB, "supported", "x")]
        write_container(source, tmp_path / "out", MIB, rows, [], digest=digest, stop=stop)
    assert os.listdir(tmp_path) == []


def test_no_room_is_told_and_leaves_nothing(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails is one stated failure, also with a thread that hashes."""
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    rows: list[Row] = [(0, 3 * MIB, 0, 0, "plain", 3 * MIB, "supported", "x")]
    with open_image(image) as source, pytest.raises(VmcarveError, match="No space left"):
        write_container(source, tmp_path / "out", 3 * MIB, rows, [])
    assert os.listdir(tmp_path) == []


@pytest.mark.needs_root
@pytest.mark.skipif(no_mounts_because() is not None, reason=f"loop mounts: {no_mounts_because()}")
@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize(("kind", "words"), [("xfs", ("mkfs.xfs", "-q", "-f", "-m", "reflink=1")),
                                             ("btrfs", ("mkfs.btrfs", "-q", "-f"))])
def test_blocks_are_shared_where_they_can_be(tmp_path: Path, kind: str, words: tuple[str, ...], digest: bool) -> None:
    """On a file system with reflinks, a disk in the same one takes next to no space, and is the same byte for byte."""
    volume = tmp_path / "volume"
    with volume.open("wb") as f:
        f.truncate(400 * MIB)
    rng = np.random.default_rng(5)
    with loop_device(volume) as device:
        run(*words, device)
        with mounted(device, kind, tmp_path / "mnt") as root:
            data = rng.bytes(32 * MIB)
            (root / "image").write_bytes(data)
            os.sync()
            order = rng.permutation(32).tolist()
            # in pieces of a MiB in another order, the last ones off by a byte: those cannot be shared
            rows: list[Row] = [(n * MIB, MIB, p * MIB - (n >= 30 and p > 0), 0, "plain", MIB, "supported", "x")
                               for n, p in enumerate(order)]
            before = os.statvfs(root).f_bfree
            with open_image(root / "image") as source:
                output = write_container(source, root / "out", 32 * MIB, rows, [], digest=digest)
            os.sync()
            taken = (before - os.statvfs(root).f_bfree) * os.statvfs(root).f_bsize
            want = laid(rows, [], 32 * MIB, data)
            assert (root / "out").read_bytes() == want
            assert output.sha256 == (hashlib.sha256(want).hexdigest() if digest else None)
            assert taken < 8 * MIB, "the pieces were copied"


def test_where_nothing_can_be_shared_nothing_is(image: Path, tmp_path: Path) -> None:
    """Another file system, or one without reflinks, is no error: all is left to be copied."""
    with open_image(image) as source, (tmp_path / "out").open("wb") as f:
        f.truncate(MIB)
        shared = Cloner(source.fd, f.fileno(), [(0, MIB, 0)]).shared
        assert shared in ([], [(0, MIB)])
    with open_image("/proc/self/exe") as other, (tmp_path / "out").open("wb") as f:
        assert Cloner(other.fd, f.fileno(), [(0, 4096, 0), (4096, 10, None)]).shared == []


def compressed(rng: np.random.Generator, clusters: int) -> tuple[VirtualDisk, bytes]:
    """A disk of clusters of 64 KiB: compressed, plain, and holes in turn; and what it holds."""
    stored, content = bytearray(), bytearray()
    columns: list[tuple[int, int, int, int, int, int]] = []
    for n in range(clusters):
        body = bytes(rng.integers(97, 105, 64 * KIB, dtype=np.uint8)) if n % 5 else bytes(64 * KIB)
        content += body
        kept = zlib.compress(body) if n % 2 else body
        if not n % 5:
            columns.append((n * 64 * KIB, 64 * KIB, HOLE, -1, PLAIN, 64 * KIB))
            continue
        columns.append((n * 64 * KIB, 64 * KIB, DATA, len(stored), ZLIB if n % 2 else PLAIN, len(kept)))
        stored += kept
    return VirtualDisk(BytesReader(bytes(stored)), GuestMap.build(*zip(*columns, strict=True))), bytes(content)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("digest", [False, True])
def test_a_compressed_disk_is_decoded_in_order(tmp_path: Path, digest: bool, apart: bool) -> None:
    """Clusters decoded on several threads stand where they belong."""
    disk, content = compressed(np.random.default_rng(7), 100)
    m = disk.map
    rows: list[Row] = [(int(g), int(n), 0, 0, "x", int(n), "zero" if s == HOLE else "supported", "x")
                       for g, n, s in zip(m.guest_offset, m.length, m.state, strict=True)]
    output = write_raw(disk, tmp_path / "out", rows, digest=digest, apart=apart)
    assert (tmp_path / "out").read_bytes() == content
    assert output.sha256 == (hashlib.sha256(content).hexdigest() if digest else None)


def test_threads_may_read_one_disk() -> None:
    """More clusters than the cache holds, read by eight threads in different orders, are always the right ones."""
    disk, content = compressed(np.random.default_rng(8), 80)

    def read(seed: int) -> bool:
        places = np.random.default_rng(seed).integers(0, len(content) - 5000, 400).tolist()
        return all(disk.read(at, 5000) == content[at : at + 5000] for at in places)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
