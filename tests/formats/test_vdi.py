"""VDI: maps judged against qemu-img and dissect, the permutation law, chains by UUID, damage, hostile input."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from dissect.hypervisor.disk.vdi import VDI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest, run
from tests.makers import parent_of
from tests.makers.vdi import BLOCK, MAKERS
from vmcarve.errors import Damaged
from vmcarve.formats.vdi import FORMAT, SIGNATURES
from vmcarve.model import DATA, HOLE, LOST, UNALLOCATED, Container
from vmcarve.source import BytesReader

BLOCKS = 12
SIZE = BLOCKS * BLOCK - 700 * 512  # the last block is cut


def guest_raw(path: Path) -> bytes:
    """Twelve blocks, four of them empty, every other one distinct from end to end."""
    rng = random.Random(5)
    data = b"".join(bytes(BLOCK) if i in (1, 4, 5, 9) else rng.randbytes(512) * (BLOCK // 512) for i in range(BLOCKS))
    path.write_bytes(data[:SIZE])
    return data[:SIZE]


def make(tmp_path: Path, name: str) -> tuple[Path, bytes]:
    raw = guest_raw(tmp_path / "r.raw")
    path = tmp_path / "a.vdi"
    MAKERS[name].make(tmp_path / "r.raw", path, 3)
    return path, raw


def opened(path: Path) -> tuple[Container, BytesReader]:
    reader = BytesReader(path.read_bytes())
    container = FORMAT.open(reader)
    check_map(container, reader)
    return container, reader


def failed(container: Container) -> set[str]:
    return {c.name for c in container.checks if not c.ok}


def raw_of(path: Path) -> bytes:
    run("qemu-img", "convert", "-f", "vdi", "-O", "raw", path, path.with_suffix(".out"))
    return path.with_suffix(".out").read_bytes()


@pytest.mark.parametrize("options", ["static=off", "static=on"])
def test_map_of_qemu(tmp_path: Path, options: str) -> None:
    """The map gives the guest that qemu-img reads, blocks in order of first write; the size is the file's."""
    path = tmp_path / "a.vdi"
    run("qemu-img", "create", "-q", "-f", "vdi", "-o", options, path, "10M")
    order = [7, 2, 9, 0, 4]
    run("qemu-io", "-f", "vdi", *[a for i in order for a in ("-c", f"write -P {i + 1} {i * BLOCK + 512} 700k")], path)
    container, reader = opened(path)
    guest = container.guests[0].map
    assert read_guest(reader, guest) == raw_of(path)
    assert (failed(container), container.size, container.size_exact) == (set(), reader.size, True)
    assert (container.variant, container.system) == ("fixed" if "on" in options else "dynamic", "QEMU")
    assert container.parent is None and container.patches == []
    if "off" in options:
        assert (np.diff(guest.file_offset[guest.state == DATA]) < 0).any(), "fixture too kind"
    assert {r.kind: r.grade for r in container.regions} == {"vdi.header": "supported", "vdi.map": "proven"}


@pytest.mark.parametrize("name", [n for n in MAKERS if "differencing" not in n and "undo" not in n])
def test_map_of_virtualbox(tmp_path: Path, name: str) -> None:
    """VirtualBox's layout (map at 1 MiB, zero entries) and the older header read back; qemu-img agrees where it can."""
    path, raw = make(tmp_path, name)
    container, reader = opened(path)
    assert read_guest(reader, container.guests[0].map) == raw
    assert (failed(container), container.size, container.virtual_size) == (set(), reader.size, SIZE)
    assert (container.variant, container.system) == (MAKERS[name].variant, "VirtualBox")
    if "fixed" not in name:
        assert {DATA, HOLE, UNALLOCATED} == set(container.guests[0].map.state.tolist())
    if "v0" not in name:
        assert raw_of(path)[:SIZE] == raw


@pytest.mark.parametrize("name", ["vdi-differencing", "vdi-undo", "vdi-v0-differencing"])
def test_child_names_its_parent_by_uuid(tmp_path: Path, name: str) -> None:
    """A child is tied to its parent by UUIDs; free blocks are the parent's, zero entries are nobody's."""
    path, raw = make(tmp_path, name)
    child, reader = opened(path)
    parent, below = opened(parent_of(path))
    assert child.parent is not None and child.parent.identity in parent.identities
    assert child.parent.identity == f"vdi-uuid:{parent.uuid}" and parent.uuid != child.uuid
    if "v0" not in name:
        assert child.parent.detail["uuid-modify"] == parent.detail["uuid-modify"]
    assert parent.parent is None and child.variant == MAKERS[name].variant
    assert (failed(child), failed(parent)) == (set(), set())
    beneath = read_guest(below, parent.guests[0].map)
    assert beneath != raw and read_guest(reader, child.guests[0].map) != raw
    assert read_guest(reader, child.guests[0].map, beneath) == raw


def test_child_as_dissect_reads_it(tmp_path: Path) -> None:
    """dissect, which errs on reads across blocks, agrees when asked block by block."""
    path, raw = make(tmp_path, "vdi-differencing")
    with path.open("rb") as child, parent_of(path).open("rb") as parent:
        disk = VDI(child, parent=VDI(parent).open()).open()
        for i in range(BLOCKS):
            disk.seek(i * BLOCK)
            piece = raw[i * BLOCK : (i + 1) * BLOCK]
            assert disk.read(len(piece)) == piece


def test_child_without_a_parent_uuid_is_told(tmp_path: Path) -> None:
    """A differencing disk whose linkage is nil names nobody, and a check says so."""
    path, _ = make(tmp_path, "vdi-differencing")
    data = bytearray(path.read_bytes())
    data[424:440] = bytes(16)
    container = FORMAT.open(BytesReader(data))
    assert container.parent is None and failed(container) == {"vdi.parent-named"}


class Blob(bytes):
    """Bytes that do not fill the screen when a test fails."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """QEMU's layout, 300 blocks of which the first 260 are used, out of order."""
    path = tmp_path_factory.mktemp("vdi") / "a.vdi"
    run("qemu-img", "create", "-q", "-f", "vdi", path, "300M")
    data = bytearray(path.read_bytes()[:4096])
    order = list(range(260))
    random.Random(2).shuffle(order)
    struct.pack_into("<260I", data, 512, *order)
    struct.pack_into("<I", data, 388, 260)
    return Blob(data)


class Padded(BytesReader):
    """The first bytes of a container whose blocks nobody reads."""

    @property
    def size(self) -> int:
        return 400 * BLOCK

    def missing(self, offset: int, length: int) -> bool:
        return offset < 4096 and super().missing(offset, min(length, 4096 - offset))


@pytest.mark.parametrize("what, value", [("beyond", 260), ("far", 0xFFFFFFFD), ("twice", None)])
def test_impossible_entry_is_lost(sample: bytes, what: str, value: int | None) -> None:
    """An entry beyond the last block is LOST; of two that name one block both are."""
    data = bytearray(sample)
    number = struct.unpack_from("<I", data, 512 + 40)[0] if value is None else value
    struct.pack_into("<I", data, 512, number)
    reader = Padded(data)
    container = FORMAT.open(reader)
    check_map(container, reader)
    guest = container.guests[0].map
    assert guest.guest_offset[guest.state == LOST].tolist() == ([0, 10 * BLOCK] if what == "twice" else [0])
    assert "vdi.permutation" in failed(container) and not container.size_exact
    assert container.size == 2048 + 260 * BLOCK


@pytest.mark.parametrize("fill", ["missing", "zeros", "noise", "text"])
def test_overwritten_map_is_lost(sample: bytes, fill: str) -> None:
    """A map sector that is not there or was overwritten loses its blocks, and the other ones stay right."""
    whole = FORMAT.open(Padded(sample)).guests[0].map
    data = bytearray(sample)
    data[512:1024] = {"missing": bytes(512), "zeros": bytes(512), "noise": random.Random(1).randbytes(512),
                      "text": b"text of another file, ".ljust(512, b".")}[fill]
    reader = Padded(data, holes=[(512, 512)] if fill == "missing" else [])
    container = FORMAT.open(reader)
    check_map(container, reader)
    guest = container.guests[0].map
    assert (guest.state[guest.guest_offset < 128 * BLOCK] == LOST).all()
    assert failed(container)
    known = {int(g): int(f) for g, f in zip(whole.guest_offset, whole.file_offset, strict=True)}
    for g, f in zip(guest.guest_offset[guest.state == DATA], guest.file_offset[guest.state == DATA], strict=True):
        assert known[int(g)] == int(f)
    if fill == "missing":
        assert (guest.state == DATA).any()


def test_fixed_disk_needs_no_map(tmp_path: Path) -> None:
    """The map of a fixed disk is the identity, so losing part of it loses nothing."""
    path, raw = make(tmp_path, "vdi-virtualbox-fixed")
    data = path.read_bytes()
    reader = BytesReader(data, holes=[(BLOCK, 512)])
    container = FORMAT.open(reader)
    assert read_guest(reader, container.guests[0].map) == raw
    assert failed(container) == {"vdi.map-read"}


def test_confirm(sample: bytes) -> None:
    """A header pins the container's first byte and names it; a bare magic is no evidence."""
    assert FORMAT.confirm is not None
    found = FORMAT.confirm(BytesReader(bytes(1024) + sample), 1024, SIGNATURES[0])
    assert found is not None and found.identity is not None
    assert (found.kind, found.image_offset, found.container_offset, found.value) == ("vdi.header", 1024, 0, 300 * BLOCK)
    assert found.identity == FORMAT.open(Padded(sample)).identities[0]
    for rest in (b"", bytes(504), b"\xff" * 504, b" some text " * 50, random.Random(3).randbytes(504)):
        for signature in SIGNATURES:
            block = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + signature.magic + rest
            assert FORMAT.confirm(BytesReader(block), 0, signature) is None


@pytest.mark.parametrize("at, width, value", [
    (68, 4, 0x10002), (72, 4, 380), (72, 4, 1 << 30), (76, 4, 0), (76, 4, 5), (340, 4, 100), (344, 4, 512),
    (360, 4, 4096), (368, 8, 0), (368, 8, 1 << 63), (376, 4, 0), (376, 4, 3 << 19), (376, 4, 1 << 31), (380, 4, 3),
    (384, 4, 0), (384, 4, 0xFFFFFFFF), (388, 4, 301), (388, 4, 0xFFFFFFFF), (392, 16, 0), (408, 16, 0),
])
def test_header_field_out_of_bounds(sample: bytes, at: int, width: int, value: int) -> None:
    """Each field is bounded by itself or by the others."""
    data = bytearray(sample)
    data[at : at + width] = value.to_bytes(width, "little")
    with pytest.raises(Damaged):
        FORMAT.open(BytesReader(data))
    assert FORMAT.confirm is not None and FORMAT.confirm(BytesReader(data), 0, SIGNATURES[0]) is None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_containers_never_break_the_contract(sample: bytes, pick: st.DataObject) -> None:
    """Whatever bytes of header and map say, open gives a lawful map or Damaged."""
    data = bytearray(sample)
    for _ in range(pick.draw(st.integers(1, 4))):
        at = pick.draw(st.one_of(st.integers(64, 460), st.integers(512, 512 + 1200)))
        patch = pick.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, bytes(4)])))
        data[at : at + len(patch)] = patch
    reader = Padded(data, holes=pick.draw(st.lists(st.just((1024, 512)), max_size=1)))
    try:
        container = FORMAT.open(reader)
    except Damaged:
        return
    check_map(container, reader)
