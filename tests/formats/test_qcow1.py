"""qcow version 1: maps judged against qemu-img and libqcow, damage, hostile input."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pyqcow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest, run
from vmcarve.errors import Damaged
from vmcarve.formats.qcow1 import FORMAT, SIGNATURES
from vmcarve.model import DATA, LOST, PLAIN, UNALLOCATED, Container
from vmcarve.source import BytesReader

KIB, MIB = 1024, 1 << 20
SIZE = 6 * MIB  # three L2 tables


def random_writes(path: Path, seed: int, count: int = 60) -> None:
    rng = random.Random(seed)
    commands: list[str] = []
    for number in range(count):
        commands += ["-c", f"write -P {number % 250 + 1} {rng.randrange(SIZE // 4096) * 4096} 4096"]
    run("qemu-io", "-f", "qcow", *commands, path)


def make_plain(path: Path) -> None:
    run("qemu-img", "create", "-q", "-f", "qcow", path, str(SIZE))
    random_writes(path, 1)


def make_compressed(path: Path) -> None:
    rng = random.Random(2)
    raw = path.with_suffix(".raw")
    raw.write_bytes(b"".join(rng.choice((bytes(4096), rng.randbytes(999) + bytes([i % 256]) * 3097))
                             for i in range(SIZE // 4096)))
    # Seen: qemu-img 7.2 ends with 1 and no message, because its closing write of no bytes is refused; all data is there
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow", raw, path, check=False)
    assert raw_of(path) == raw.read_bytes()


def make_mixed(path: Path) -> None:
    make_compressed(path)
    random_writes(path, 3)


MAKE = {"plain": make_plain, "compressed": make_compressed, "mixed": make_mixed}


def raw_of(path: Path) -> bytes:
    run("qemu-img", "convert", "-f", "qcow", "-O", "raw", path, path.with_suffix(".out"))
    return path.with_suffix(".out").read_bytes()


def opened(path: Path) -> tuple[Container, BytesReader]:
    reader = BytesReader(path.read_bytes())
    container = FORMAT.open(reader)
    check_map(container, reader)
    return container, reader


def failed(container: Container) -> set[str]:
    return {c.name for c in container.checks if not c.ok}


@pytest.mark.parametrize("kind", list(MAKE))
def test_map(tmp_path: Path, kind: str) -> None:
    """The map gives the guest that qemu-img and libqcow read, and the size is the file's."""
    path = tmp_path / "a.qcow"
    MAKE[kind](path)
    container, reader = opened(path)
    guest = container.guests[0].map
    mine = read_guest(reader, guest)
    assert mine == raw_of(path)
    other = pyqcow.file()
    other.open(str(path))
    assert mine == other.read_buffer_at_offset(SIZE, 0)
    other.close()
    if kind != "compressed":
        assert (np.diff(guest.file_offset[guest.state == DATA]) < 0).any(), "fixture too kind"
    assert (guest.encoding != PLAIN).any() == (kind != "plain")
    assert (failed(container), container.size, container.size_exact) == (set(), reader.size, True)


@pytest.mark.parametrize("size", ["512", "1M", "100G"])
def test_fresh_container_ends_after_its_l1(tmp_path: Path, size: str) -> None:
    """A container without data is as long as its file."""
    path = tmp_path / "a.qcow"
    run("qemu-img", "create", "-q", "-f", "qcow", path, size)
    container, reader = opened(path)
    assert (container.size, failed(container)) == (reader.size, set())


def test_backing_file_is_named_and_never_followed(tmp_path: Path) -> None:
    """A backing file becomes a parent link; the patches leave no name behind, and qemu-img opens the result."""
    base, path = tmp_path / "base.raw", tmp_path / "a.qcow"
    base.write_bytes(random.Random(4).randbytes(SIZE))
    run("qemu-img", "create", "-q", "-f", "qcow", "-F", "raw", "-b", base, path)
    random_writes(path, 5)
    container, reader = opened(path)
    assert container.parent is not None and container.parent.name == str(base)
    assert (container.guests[0].map.state == UNALLOCATED).any() and container.cluster == 512
    assert read_guest(reader, container.guests[0].map, base.read_bytes()) == raw_of(path)
    assert (failed(container), container.size) == (set(), reader.size)
    data = bytearray(path.read_bytes())
    for patch in container.patches:
        data[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
    path.write_bytes(data)
    base.unlink()
    assert str(base).encode() not in data
    assert raw_of(path) == read_guest(reader, container.guests[0].map)


def test_encrypted(tmp_path: Path) -> None:
    """An encrypted container keeps the map of its ciphertext and says what it is."""
    path = tmp_path / "a.qcow"
    secret = ("--object", "secret,id=s,data=pass")
    run("qemu-img", "create", "-q", "-f", "qcow", *secret, "-o", "encrypt.format=aes,encrypt.key-secret=s", path, "1M")
    run("qemu-io", *secret, "--image-opts", f"driver=qcow,file.filename={path},encrypt.key-secret=s",
        "-c", "write -P 7 64k 4k")
    container, _ = opened(path)
    assert (container.variant, container.detail["encrypted"]) == ("v1-encrypted", "yes")
    assert (container.guests[0].map.state == DATA).any()


class Blob(bytes):
    """Bytes that do not fill the screen when a test fails."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("qcow1") / "a.qcow"
    make_mixed(path)
    return Blob(path.read_bytes())


def test_missing_and_overwritten_tables_are_lost(sample: bytes) -> None:
    """A lost or overwritten L2 loses its 2 MiB and nothing else, and nothing wrong is said."""
    whole = FORMAT.open(BytesReader(sample))
    told = read_guest(BytesReader(sample), whole.guests[0].map)
    at = struct.unpack_from(">Q", sample, 48 + 8)[0]
    noise = random.Random(1).randbytes(4096)
    text = b"not a table at all ".ljust(4096, b".")
    for fill, holes in ((sample[at : at + 4096], [(at, 4096)]), (noise, []), (text, []), (bytes(4096), [])):
        reader = BytesReader(sample[:at] + fill + sample[at + 4096 :], holes=holes)
        container = FORMAT.open(reader)
        check_map(container, reader)
        guest = container.guests[0].map
        lost = guest.state == LOST
        assert guest.guest_offset[lost].tolist() == [2 * MIB] and guest.length[lost].tolist() == [2 * MIB]
        assert failed(container)
        mine = read_guest(reader, guest)
        assert mine[: 2 * MIB] == told[: 2 * MIB] and mine[4 * MIB :] == told[4 * MIB :]
    container = FORMAT.open(BytesReader(sample, holes=[(48, 16)]))
    assert "qcow1.l1-read" in failed(container) and (container.guests[0].map.state == LOST).all()


@pytest.mark.parametrize("what", ["outside", "far outside", "table", "twice", "unaligned", "empty stream"])
def test_impossible_entry_is_lost(sample: bytes, what: str) -> None:
    """An entry that points outside, into metadata, at another's cluster or breaks the format is LOST, with a check."""
    at = struct.unpack_from(">Q", sample, 48)[0]
    words = list(struct.unpack_from(">512Q", sample, at))
    plain = [i for i, w in enumerate(words) if w and not w >> 63]
    words[plain[0]] = {"outside": 1 << 40, "far outside": 1 << 62, "table": at, "twice": words[plain[1]],
                       "unaligned": words[plain[0]] + 512, "empty stream": 1 << 63 | 4096}[what]
    reader = BytesReader(sample[:at] + struct.pack(">512Q", *words) + sample[at + 4096 :])
    container = FORMAT.open(reader)
    check_map(container, reader)
    guest = container.guests[0].map
    lost = {int(g) // 4096 for g in guest.guest_offset[guest.state == LOST]}
    assert plain[0] in lost and (plain[1] in lost) == (what == "twice")
    assert int(guest.length[guest.state == LOST].sum()) <= 2 * 4096 and failed(container)


def test_confirm(sample: bytes) -> None:
    """A header pins the container's first byte; a bare magic is no evidence."""
    assert FORMAT.confirm is not None
    found = FORMAT.confirm(BytesReader(bytes(1024) + sample), 1024, SIGNATURES[0])
    assert found is not None
    assert (found.kind, found.image_offset, found.container_offset, found.value) == ("qcow1.header", 1024, 0, SIZE)
    for rest in (b"", bytes(504), b"\xff" * 504, b" some text " * 50, random.Random(3).randbytes(504)):
        assert FORMAT.confirm(BytesReader(SIGNATURES[0].magic + rest), 0, SIGNATURES[0]) is None


@pytest.mark.parametrize("at, width, value", [
    (24, 8, 0), (24, 8, 1 << 63), (24, 8, 1 << 50), (32, 1, 8), (32, 1, 64), (33, 1, 5), (33, 1, 200), (34, 2, 1),
    (36, 4, 2), (40, 8, 40), (40, 8, 1 << 62), (40, 8, 49), (8, 8, 1), (8, 8, 1 << 40),
])
def test_header_field_out_of_bounds(sample: bytes, at: int, width: int, value: int) -> None:
    """Each field is bounded, and the refusal names it."""
    data = bytearray(sample)
    data[at : at + width] = value.to_bytes(width, "big")
    with pytest.raises(Damaged) as caught:
        FORMAT.open(BytesReader(data))
    assert caught.value.field is not None
    assert FORMAT.confirm is not None and FORMAT.confirm(BytesReader(data), 0, SIGNATURES[0]) is None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_containers_never_break_the_contract(sample: bytes, pick: st.DataObject) -> None:
    """Whatever bytes of header and tables say, open gives a lawful map or Damaged."""
    data = bytearray(sample)
    spots = [(r.file_offset, r.length) for r in FORMAT.open(BytesReader(sample)).regions]
    for _ in range(pick.draw(st.integers(1, 4))):
        start, length = pick.draw(st.sampled_from(spots))
        at = start + pick.draw(st.integers(0, length - 1))
        patch = pick.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(
            [b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, bytes(5) + b"\x10\0\0"])))
        data[at : at + len(patch)] = patch
    reader = BytesReader(bytes(data[: len(sample)]), holes=pick.draw(st.lists(st.sampled_from(spots[1:]), max_size=1)))
    try:
        container = FORMAT.open(reader)
    except Damaged:
        return
    check_map(container, reader)
    assert container.size < 1 << 62


def test_a_stream_that_begins_in_the_header_is_no_entry(tmp_path: Path) -> None:
    """Sparse words with a high byte, as file systems have them, are not taken for an L2 of compressed clusters."""
    path = tmp_path / "c.qcow"
    make_compressed(path)
    data = bytearray(path.read_bytes())
    at = int.from_bytes(data[56:64], "big")  # the second entry of the L1, behind the header
    table = bytes(data[at: at + 4 * KIB])
    foreign = np.zeros(512, ">u8")
    foreign[::128] = [(0x9720 + i * 0x100) << 48 for i in range(4)]
    data[at: at + 4 * KIB] = foreign.tobytes()
    want, = FORMAT.wants(BytesReader(bytes(data)))
    assert want.file_offset == at and want.fits(table) > 0 and want.fits(foreign.tobytes()) == 0
