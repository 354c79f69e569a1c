"""Parallels: maps judged against qemu-img, both magics, the format extension, damage, hostile input."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest, run
from tests.makers.parallels import MAKERS
from vmcarve.errors import Damaged
from vmcarve.formats.parallels import FORMAT, SIGNATURES
from vmcarve.model import DATA, LOST, UNALLOCATED, Container
from vmcarve.source import BytesReader

MIB = 1 << 20
SIZE = 12 * MIB - 100 * 512


def guest_raw(path: Path) -> bytes:
    """Half of the sixteenths of a MiB empty, every other one distinct."""
    rng = random.Random(5)
    data = b"".join(rng.choice((bytes(65536), rng.randbytes(512) * 128)) for _ in range(190))
    data = (data + b"the last ones are used  " * 8192)[:SIZE]
    path.write_bytes(data)
    return data


def opened(path: Path) -> tuple[Container, BytesReader]:
    reader = BytesReader(path.read_bytes())
    container = FORMAT.open(reader)
    check_map(container, reader)
    return container, reader


def failed(container: Container) -> set[str]:
    return {c.name for c in container.checks if not c.ok}


def raw_of(path: Path) -> bytes:
    run("qemu-img", "convert", "-f", "parallels", "-O", "raw", path, path.with_suffix(".out"))
    return path.with_suffix(".out").read_bytes()


@pytest.mark.parametrize("cluster", ["64k", "1M"])
def test_map_of_qemu(tmp_path: Path, cluster: str) -> None:
    """The map gives the guest that qemu-img reads, clusters in order of first write; the size is the file's."""
    path = tmp_path / "a.hds"
    run("qemu-img", "create", "-q", "-f", "parallels", "-o", f"cluster_size={cluster}", path, "10M")
    order = [7, 2, 9, 0, 4]
    run("qemu-io", "-f", "parallels", *[a for i in order for a in ("-c", f"write -P {i + 1} {i * MIB + 512} 200k")],
        path)
    container, reader = opened(path)
    guest = container.guests[0].map
    assert read_guest(reader, guest) == raw_of(path)
    assert (np.diff(guest.file_offset[guest.state == DATA]) < 0).any(), "fixture too kind"
    assert (failed(container), container.size, container.size_exact) == (set(), reader.size, True)
    assert (container.variant, container.system) == ("WithouFreSpacExt", "Parallels")


def test_fresh_container(tmp_path: Path) -> None:
    """A container without data ends where data would begin."""
    path = tmp_path / "a.hds"
    run("qemu-img", "create", "-q", "-f", "parallels", path, "10M")
    container, reader = opened(path)
    assert (container.size, failed(container)) == (reader.size, set())
    assert (container.guests[0].map.state == UNALLOCATED).all()


@pytest.mark.parametrize("name", list(MAKERS))
def test_map_of_parallels(tmp_path: Path, name: str) -> None:
    """Both magics, odd cluster sizes and the format extension read back, and qemu-img agrees."""
    raw, path = guest_raw(tmp_path / "r.raw"), tmp_path / "a.hds"
    MAKERS[name].make(tmp_path / "r.raw", path, 3)
    container, reader = opened(path)
    assert read_guest(reader, container.guests[0].map) == raw == raw_of(path)
    assert (failed(container), container.size, container.variant) == (set(), reader.size, MAKERS[name].variant)
    kinds = {r.kind for r in container.regions}
    assert ("parallels.bitmap" in kinds and "parallels.extension" in kinds) == ("bitmap" in name)


def test_damaged_extension_is_told(tmp_path: Path) -> None:
    """The extension's MD5 covers its cluster: one changed byte is told, and the map stays."""
    raw, path = guest_raw(tmp_path / "r.raw"), tmp_path / "a.hds"
    MAKERS["parallels-bitmap"].make(tmp_path / "r.raw", path, 3)
    container, _ = opened(path)
    at = next(r.file_offset for r in container.regions if r.kind == "parallels.extension")
    data = bytearray(path.read_bytes())
    data[at + 100] ^= 1
    reader = BytesReader(data)
    container = FORMAT.open(reader)
    assert "parallels.extension-md5" in failed(container)
    assert read_guest(reader, container.guests[0].map) == raw


def test_open_disk_may_have_a_tail(tmp_path: Path) -> None:
    """A disk that was not closed may go on behind its last cluster."""
    guest_raw(tmp_path / "r.raw")
    path = tmp_path / "a.hds"
    MAKERS["parallels-old-63"].make(tmp_path / "r.raw", path, 3)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 44, 0x746F6E59)
    container = FORMAT.open(BytesReader(data + bytes(MIB)))
    assert (container.size, container.size_exact) == (len(data), False)
    assert failed(container) == {"parallels.closed"}


class Blob(bytes):
    """Bytes that do not fill the screen when a test fails."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Clusters of 4 KiB, so that the table takes 12 KiB, with the format extension."""
    path = tmp_path_factory.mktemp("parallels")
    guest_raw(path / "r.raw")
    MAKERS["parallels-bitmap"].make(path / "r.raw", path / "a.hds", 7)
    return Blob((path / "a.hds").read_bytes())


def table_of(data: bytes) -> list[int]:
    return list(struct.unpack_from(f"<{struct.unpack_from('<I', data, 32)[0]}I", data, 64))


@pytest.mark.parametrize("what", ["outside", "header", "extension", "twice"])
def test_impossible_entry_is_lost(sample: bytes, what: str) -> None:
    """An entry outside the file, in metadata or at another's cluster is LOST, with a check."""
    table = table_of(sample)
    used = [i for i, entry in enumerate(table) if entry]
    extension = struct.unpack_from("<Q", sample, 56)[0] // 8
    value = {"outside": 0x7FFFFFFF, "header": 1, "extension": extension, "twice": table[used[1]]}[what]
    data = bytearray(sample)
    struct.pack_into("<I", data, 64 + 4 * used[0], value)
    reader = BytesReader(data)
    container = FORMAT.open(reader)
    check_map(container, reader)
    guest = container.guests[0].map
    lost = int(guest.length[guest.state == LOST].sum()) // 4096
    assert lost == (2 if what == "twice" else 1)
    assert len(failed(container)) >= 1 and not container.size_exact


@pytest.mark.parametrize("fill", ["missing", "zeros", "noise", "text"])
def test_overwritten_table_is_lost(sample: bytes, fill: str) -> None:
    """A piece of table that is not there or was overwritten loses its clusters, and the other ones stay right."""
    told = read_guest(BytesReader(sample), FORMAT.open(BytesReader(sample)).guests[0].map)
    data = bytearray(sample)
    data[4096:8192] = {"missing": bytes(4096), "zeros": bytes(4096), "noise": random.Random(1).randbytes(4096),
                     "text": b"text of another file, ".ljust(4096, b".")}[fill]
    reader = BytesReader(data, holes=[(4096, 4096)] if fill == "missing" else [])
    container = FORMAT.open(reader)
    check_map(container, reader)
    guest = container.guests[0].map
    lost = guest.state == LOST
    first, end = 1008 * 4096, 2032 * 4096  # the header takes 16 entries' room
    assert guest.guest_offset[lost].tolist() == [first] and guest.length[lost].tolist() == [end - first]
    mine = read_guest(reader, guest)
    assert mine[:first] == told[:first] and mine[end:] == told[end:]
    assert failed(container)


def test_confirm(sample: bytes) -> None:
    """A header pins the container's first byte; a bare magic is no evidence."""
    assert FORMAT.confirm is not None
    found = FORMAT.confirm(BytesReader(bytes(1024) + sample), 1024, SIGNATURES[1])
    assert found is not None
    assert (found.kind, found.image_offset, found.container_offset) == ("parallels.header", 1024, 0)
    assert found.value == SIZE
    for rest in (b"", bytes(504), b"\xff" * 504, b" some text " * 50, random.Random(3).randbytes(504)):
        for signature in SIGNATURES:
            assert FORMAT.confirm(BytesReader(signature.magic + rest), 0, signature) is None


@pytest.mark.parametrize("at, width, value", [
    (16, 4, 1), (20, 4, 0), (28, 4, 0), (28, 4, 0xFFFFFFFF), (32, 4, 0), (32, 4, 0xFFFFFFFF), (36, 8, 0),
    (36, 8, 1 << 63), (44, 4, 7), (48, 4, 0), (48, 4, 1), (52, 4, 0x20202020), (56, 8, 1), (56, 8, 1 << 63),
])
def test_header_field_out_of_bounds(sample: bytes, at: int, width: int, value: int) -> None:
    """Each field is bounded, and the refusal names it."""
    data = bytearray(sample)
    data[at : at + width] = value.to_bytes(width, "little")
    with pytest.raises(Damaged) as caught:
        FORMAT.open(BytesReader(data))
    assert caught.value.field is not None
    assert FORMAT.confirm is not None and FORMAT.confirm(BytesReader(data), 0, SIGNATURES[1]) is None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_containers_never_break_the_contract(sample: bytes, pick: st.DataObject) -> None:
    """Whatever bytes of header, table and extension say, open gives a lawful map or Damaged."""
    data = bytearray(sample)
    if pick.draw(st.booleans()):
        data[:16] = SIGNATURES[0].magic
    for _ in range(pick.draw(st.integers(1, 4))):
        at = pick.draw(st.one_of(st.integers(16, 63), st.integers(64, 12 * 1024), st.integers(0, len(data) - 8)))
        patch = pick.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, bytes(4)])))
        data[at : at + len(patch)] = patch
    reader = BytesReader(data, holes=pick.draw(st.lists(st.just((512, 1024)), max_size=1)))
    try:
        container = FORMAT.open(reader)
    except Damaged:
        return
    check_map(container, reader)
