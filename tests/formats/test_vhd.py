"""VHD: files of QEMU and of independent writers, whole and damaged, judged by qemu-img and libvhdi."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest, run
from tests.makers import parent_of
from tests.makers.vhd import MAKERS, Style, checksum, footer, header, write
from vmcarve.errors import Damaged
from vmcarve.formats import _vhd_parts, vhd
from vmcarve.model import DATA, LOST, PROVEN, UNALLOCATED, Container, Evidence
from vmcarve.source import BytesReader

pyvhdi = pytest.importorskip("pyvhdi")

BLOCK = 1 << 21
SIZE = 7 * BLOCK + (3 << 19)
EMPTY = 2  # this block of the guest is zero, so no writer allocates it
WITH_BLOCKS = sorted(name for name, maker in MAKERS.items() if maker.variant != "fixed")
DYNAMIC = sorted(name for name, maker in MAKERS.items() if maker.variant == "dynamic")


@pytest.fixture(scope="module")
def guest() -> bytes:
    data = bytearray(np.random.default_rng(7).bytes(SIZE))
    data[EMPTY * BLOCK : (EMPTY + 1) * BLOCK] = bytes(BLOCK)
    data[5 * 4096 : 9 * 4096] = bytes(4 * 4096)
    return bytes(data)


@pytest.fixture(scope="module")
def made(guest: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of every maker, and two of QEMU: written in random order, and fixed."""
    folder = tmp_path_factory.mktemp("vhd")
    raw = folder / "raw"
    raw.write_bytes(guest)
    out = {}
    for name, maker in MAKERS.items():
        out[name] = folder / f"{name}.vhd"
        maker.make(raw, out[name], 3)
    out["qemu"] = folder / "qemu.vhd"
    run("qemu-img", "create", "-q", "-f", "vpc", "-o", "force_size=on", out["qemu"], str(SIZE))
    commands = []
    for i in (5, 1, 7, 0, 3, 6, 4):
        part = folder / f"part{i}"
        part.write_bytes(guest[i * BLOCK : (i + 1) * BLOCK])
        commands += ["-c", f"write -s {part} {i * BLOCK} {part.stat().st_size}"]
    run("qemu-io", "-f", "vpc", *commands, out["qemu"])
    out["qemu-fixed"] = folder / "qemu-fixed.vhd"
    run("qemu-img", "convert", "-O", "vpc", "-o", "subformat=fixed", "-f", "raw", raw, out["qemu-fixed"])
    return out


def opened(data: bytes, holes: tuple[tuple[int, int], ...] = ()) -> tuple[Container, BytesReader]:
    reader = BytesReader(data, holes)
    container = vhd.FORMAT.open(reader)
    check_map(container, reader)
    return container, reader


def patched(container: Container, reader: BytesReader) -> bytes:
    """The file that would be written."""
    out = bytearray(reader.read(0, container.size).ljust(container.size, b"\0"))
    for patch in container.patches:
        assert patch.file_offset + len(patch.data) <= container.size
        out[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
    return bytes(out)


def failed(container: Container) -> set[str]:
    return {check.name for check in container.checks if not check.ok}


def libvhdi_guest(path: Path, parent: Path | None = None) -> bytes:
    file = pyvhdi.file()
    file.open(str(path))
    if parent:
        base = pyvhdi.file()
        base.open(str(parent))
        file.set_parent(base)
    return file.read_buffer_at_offset(file.get_media_size(), 0)


def qemu_guest(path: Path, out: Path) -> bytes:
    """What QEMU reads; it would take the size from CHS if it were not told otherwise (tests/oracles.md)."""
    options = f"driver=vpc,file.filename={path},force_size_calc=current_size"
    run("qemu-img", "convert", "--image-opts", options, "-O", "raw", out)
    return out.read_bytes()


# --- whole files ---------------------------------------------------------------------------------------------------
def test_qemu_dynamic_written_in_random_order(made: dict[str, Path], guest: bytes, tmp_path: Path) -> None:
    """A file that QEMU grew by writes in random order gives QEMU's own guest, to the byte, and its exact length."""
    container, reader = opened(made["qemu"].read_bytes())
    disk = container.guests[0].map
    places = disk.file_offset[disk.state == DATA]
    assert (np.diff(places) < 0).any(), "fixture too kind: a reader that ignores the table would pass"
    assert read_guest(reader, disk) == guest == qemu_guest(made["qemu"], tmp_path / "raw")
    assert (container.size, container.size_exact, container.system) == (reader.size, True, "QEMU")
    assert container.patches == [] and failed(container) == set()


def test_qemu_convert_out_of_order(guest: bytes, tmp_path: Path) -> None:
    """A file that qemu-img wrote out of order, of the CHS-rounded size, opens with that size."""
    raw, path = tmp_path / "raw", tmp_path / "a.vhd"
    raw.write_bytes(guest)
    run("qemu-img", "convert", "-W", "-m", "8", "-f", "raw", "-O", "vpc", raw, path)
    container, reader = opened(path.read_bytes())
    assert container.virtual_size >= SIZE
    assert read_guest(reader, container.guests[0].map) == qemu_guest(path, tmp_path / "out")


def test_qemu_fixed(made: dict[str, Path], guest: bytes, tmp_path: Path) -> None:
    """A fixed file is its guest and a footer, which pins itself at current_size."""
    data = made["qemu-fixed"].read_bytes()
    container, reader = opened(data)
    assert read_guest(reader, container.guests[0].map) == qemu_guest(made["qemu-fixed"], tmp_path / "raw")
    assert container.virtual_size == len(data) - 512
    found = vhd.confirm(reader, len(data) - 512, vhd.SIGNATURES[0])
    assert found is not None and found.container_offset == found.value == len(data) - 512
    assert [found.identity] == container.identities


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_writer(made: dict[str, Path], guest: bytes, name: str) -> None:
    """Each program's layout opens to the guest that was put in, with its exact length and nothing to mend."""
    container, reader = opened(made[name].read_bytes())
    parent = None
    if container.parent:
        below, base = opened(parent_of(made[name]).read_bytes())
        assert container.parent.identity in below.identities
        parent = read_guest(base, below.guests[0].map)
    assert read_guest(reader, container.guests[0].map, parent) == guest
    assert (container.size, container.size_exact) == (reader.size, True)
    assert container.variant == MAKERS[name].variant
    assert failed(container) == set()
    assert {patch.reason for patch in container.patches} <= {"reference"}


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"vhd-short-footer", "vhd-short-footer-fixed"}))
def test_libvhdi_agrees_with_the_writers(made: dict[str, Path], guest: bytes, name: str) -> None:
    """libvhdi reads our writers' files as we do, but for its own fault: in a differencing file it takes a clear bit
    that follows a set bit in the same byte of the bitmap for data of the child."""
    differencing = MAKERS[name].variant == "differencing"
    got = libvhdi_guest(made[name], parent_of(made[name]) if differencing else None)
    if not differencing:
        assert got == guest
        return
    container, _ = opened(made[name].read_bytes())
    disk = container.guests[0].map
    ours = np.repeat(disk.state == DATA, disk.length // 512).reshape(-1, 8)
    faulty = (np.cumsum(ours, axis=1) > 0).ravel() & ~ours.ravel()
    theirs, wanted = (np.frombuffer(x, np.uint8).reshape(-1, 512) for x in (got, guest))
    assert (theirs == wanted).all(axis=1)[~faulty].all()


@pytest.mark.parametrize(("name", "system"), [
    ("vhd-virtualpc", "Virtual PC"), ("vhd-virtualserver-fixed", "Virtual Server"), ("vhd-windows", "Hyper-V/Windows"),
    ("vhd-virtualbox", "VirtualBox"), ("vhd-xenserver", "XenServer"), ("qemu", "QEMU"),
])
def test_creators_are_told_apart(made: dict[str, Path], name: str, system: str) -> None:
    """The footer's creator code names the program; the size is current_size, whatever the geometry says."""
    container, _ = opened(made[name].read_bytes())
    assert container.system == system and container.virtual_size == SIZE
    assert container.detail["creator"]


def test_a_reader_that_goes_on_behind_the_file(made: dict[str, Path], guest: bytes) -> None:
    """A dynamic file ends at its footer, however much the reader holds behind it."""
    data = made["vhd-windows"].read_bytes()
    container, reader = opened(data + np.random.default_rng(1).bytes(300_000))
    assert container.size == len(data) and container.size_exact
    assert read_guest(reader, container.guests[0].map) == guest


def test_clear_bits_of_a_dynamic_file_are_told(made: dict[str, Path]) -> None:
    """Programs disagree on clear bits in a dynamic file: the data are kept, and it is said."""
    container, _ = opened(made["vhd-xenserver"].read_bytes())
    assert "blocks have clear bits" in container.detail["bitmaps"]


# --- differencing --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(n for n in MAKERS if "differencing" in n))
def test_parent_names_are_taken_away(made: dict[str, Path], guest: bytes, name: str, tmp_path: Path) -> None:
    """The written child names no file any more, still opens on its parent, and what it said is kept."""
    container, reader = opened(made[name].read_bytes())
    parent = parent_of(made[name])
    assert container.parent and container.parent.name == parent.name
    assert container.parent.detail["W2ru"] == f".\\{parent.name}"
    data = patched(container, reader)
    assert parent.name.encode("utf-16-le") not in data and parent.name.encode("utf-16-be") not in data
    again, after = opened(data)
    assert failed(again) == set() and again.patches == [] and again.parent
    assert (again.parent.identity, again.parent.name) == (container.parent.identity, None)
    path = tmp_path / "child.vhd"
    path.write_bytes(data)
    assert libvhdi_guest(path, parent) == libvhdi_guest(made[name], parent)
    below, base = opened(parent.read_bytes())
    assert read_guest(after, again.guests[0].map, read_guest(base, below.guests[0].map)) == guest


def test_lost_bitmap_of_a_differencing_file(made: dict[str, Path]) -> None:
    """Without its bitmap nobody can tell which sectors of a block are the parent's: LOST, not guessed."""
    data = made["vhd-windows-differencing"].read_bytes()
    whole, _ = opened(data)
    at = next(region for region in whole.regions if region.kind == "vhd.bitmap").file_offset
    container, _ = opened(data, ((at, 512),))
    disk = container.guests[0].map
    assert disk.length[disk.state == LOST].tolist() == [BLOCK]
    assert failed(container) == {"sector bitmaps are there"}


def test_batmap_stands_in_for_a_lost_bitmap(made: dict[str, Path]) -> None:
    """XenServer's batmap says that a block is full, which is all that its lost bitmap would say."""
    data = bytearray(made["vhd-xenserver-differencing"].read_bytes())
    container, _ = opened(bytes(data))
    places = {region.kind: region.file_offset for region in container.regions}
    at = next(region.file_offset for region in container.regions if region.kind == "vhd.bitmap")
    index = int(np.flatnonzero(np.frombuffer(data[1536:1568], ">u4") == at // 512)[0])
    data[places["vhd.batmap"] + 512 + index // 8] |= 0x80 >> index % 8
    again, _ = opened(bytes(data), ((at, 512),))
    for state, old in ((DATA, again), (UNALLOCATED, container)):
        disk = old.guests[0].map
        where = (disk.guest_offset < (index + 1) * BLOCK) & (disk.guest_offset + disk.length > index * BLOCK)
        assert state in disk.state[where] and (state == UNALLOCATED or len(disk.state[where]) == 1)
    assert "sector bitmaps are there" not in failed(again)


# --- damage --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*WITH_BLOCKS, "qemu"])
def test_lost_tail_is_put_back(made: dict[str, Path], name: str) -> None:
    """Every writer's rule gives the place of a lost tail, and the front copy its bytes: the file is as it was."""
    data = made[name].read_bytes()
    length = 511 if "short" in name else 512
    for cut in (data[:-length], data[:-length] + b"\xaa" * 4096):
        container, reader = opened(cut)
        assert "tail footer" in failed(container)
        assert patched(container, reader)[-512:][:length] == data[-length:]
        assert container.size == len(data) + 512 - length
        if MAKERS.get(name) is None or MAKERS[name].variant != "differencing":
            assert patched(container, reader)[: len(data)] == data


@pytest.mark.parametrize("name", [*WITH_BLOCKS, "qemu"])
def test_lost_front_is_put_back(made: dict[str, Path], name: str) -> None:
    """A lost front footer is the tail's bytes; no patch changes another byte of a dynamic file."""
    data = made[name].read_bytes()
    container, reader = opened(data, ((0, 512),))
    assert failed(container) == {"front footer"}
    if container.variant == "dynamic":
        assert patched(container, reader)[:-1] == data[: container.size - 1]


@pytest.mark.parametrize("name", [*sorted(set(DYNAMIC) - {"vhd-xenserver"}), "qemu"])
@pytest.mark.parametrize("holes", [((512, 1024),), ((0, 1536),)], ids=["header", "front and header"])
def test_lost_header_is_rebuilt(made: dict[str, Path], name: str, holes: tuple[tuple[int, int], ...]) -> None:
    """The dynamic header follows from a footer and the table, byte for byte."""
    data = made[name].read_bytes()
    container, reader = opened(data, holes)
    assert "dynamic header" in failed(container)
    assert patched(container, reader)[:-1] == data[: container.size - 1]


def test_xenserver_is_led_by_its_batmap(made: dict[str, Path], guest: bytes) -> None:
    """A batmap pins itself and gives the table's length, so header and front copy can both be gone."""
    data = made["vhd-xenserver"].read_bytes()
    place = data.index(b"tdbatmap")
    noise = b"\x11" * 1024
    found = vhd.confirm(BytesReader(noise + data), len(noise) + place, vhd.SIGNATURES[2])
    assert found is not None and found.container_offset == place and found.confidence == 1.0
    container, reader = opened(data + b"\0" * 8192, ((0, 1536),))
    assert read_guest(reader, container.guests[0].map) == guest
    assert container.size == len(data)


def test_running_xenserver_disk(made: dict[str, Path]) -> None:
    """tapdisk fills the tail footer with 0xC7 while the disk is open: that is its place, and the front its bytes."""
    data = made["vhd-xenserver"].read_bytes()
    container, reader = opened(data[:-512] + b"\xc7" * 512)
    assert container.size == len(data) and container.size_exact
    assert patched(container, reader) == data
    assert [patch.grade for patch in container.patches] == [PROVEN]


def test_footer_at_the_end_of_a_logical_volume(made: dict[str, Path]) -> None:
    """XenServer on LVM keeps the tail in the volume's last sector, far behind the blocks."""
    data = made["vhd-xenserver"].read_bytes()
    volume = data[:-512] + bytes((4 << 20) - len(data) % (4 << 20)) + data[-512:]
    container, _ = opened(volume)
    assert container.size == len(volume) and failed(container) == set()


def test_both_footers_lost(made: dict[str, Path], guest: bytes, tmp_path: Path) -> None:
    """A header and its table still give the guest; the size is then known to within one block, and it is said."""
    data = made["qemu"].read_bytes()
    container, reader = opened(data[:-512], ((0, 512),))
    assert {"front footer", "tail footer", "disk size"} <= failed(container)
    assert read_guest(reader, container.guests[0].map)[:SIZE] == guest
    assert container.virtual_size - SIZE < BLOCK and container.identities == []
    path = tmp_path / "a.vhd"
    path.write_bytes(patched(container, reader))
    assert qemu_guest(path, tmp_path / "raw")[:SIZE] == guest


def test_short_file_keeps_its_map(made: dict[str, Path]) -> None:
    """A file that is cut off says so; what lies before the cut is mapped, and what lies behind is only missing."""
    data = made["qemu"].read_bytes()
    container, reader = opened(data[: len(data) // 2])
    assert "file is whole" in failed(container) and container.size == len(data)
    assert not (container.guests[0].map.state == LOST).any()


def test_lost_table_sector(made: dict[str, Path], guest: bytes) -> None:
    """Blocks whose table sector is lost are LOST; the tail is found, and the written table names no wrong place."""
    data = made["vhd-512k"].read_bytes()
    container, reader = opened(data, ((1536, 512),))
    assert (container.guests[0].map.state == LOST).all() and container.size == len(data)
    assert "block table is there" in failed(container)
    again, _ = opened(patched(container, reader))
    assert (again.guests[0].map.state == UNALLOCATED).all()


@pytest.mark.parametrize(("value", "both"), [(0, False), (2, False), (0xFFFFFFF0, False), (None, True)])
def test_wrong_entries_are_lost(made: dict[str, Path], value: int | None, both: bool) -> None:
    """An entry that names metadata or a place behind the end is LOST; one that two blocks share is LOST for both."""
    data = bytearray(made["qemu"].read_bytes())
    entry = 1536 + 4 * 3
    data[entry : entry + 4] = data[1536 + 4 * 6 : 1536 + 4 * 7] if value is None else value.to_bytes(4, "big")
    container, reader = opened(bytes(data))
    disk = container.guests[0].map
    assert "blocks lie apart and inside the file" in failed(container)
    lost = {int(g) // BLOCK for g in disk.guest_offset[disk.state == LOST]}
    assert lost == ({3, 6} if both else {3})
    assert container.size == reader.size
    again, _ = opened(patched(container, reader))
    assert not (again.guests[0].map.state == LOST).any()


def test_out_of_step_entry_loses_against_its_neighbours(made: dict[str, Path]) -> None:
    """Where an entry reaches into another block, the one that is out of step is wrong, and the other one stays."""
    data = bytearray(made["qemu"].read_bytes())
    entry = 1536 + 4 * 3
    value = int.from_bytes(data[entry + 4 : entry + 8], "big") + 100
    data[entry : entry + 4] = value.to_bytes(4, "big")
    container, _ = opened(bytes(data))
    disk = container.guests[0].map
    assert {int(g) // BLOCK for g in disk.guest_offset[disk.state == LOST]} == {3}


def test_entry_just_behind_the_end(made: dict[str, Path]) -> None:
    """An entry that would lengthen the file is disbelieved when the footer lies at the end of the others."""
    data = bytearray(made["qemu"].read_bytes())
    table = np.frombuffer(bytes(data[1536:1568]), ">u4").astype(int)
    index, last = int(table.argmin()), int(table[table != 0xFFFFFFFF].max())
    data[1536 + 4 * index : 1540 + 4 * index] = (last + 2 * 4097).to_bytes(4, "big")
    container, reader = opened(bytes(data) + bytes(4 * BLOCK))
    assert container.size == len(data) and (container.guests[0].map.state == LOST).any()


# --- evidence ------------------------------------------------------------------------------------------------------
def test_footer_and_header_pins(made: dict[str, Path]) -> None:
    """A front copy is told by the header behind it; the tail of a dynamic file pins nothing by itself."""
    data = made["qemu"].read_bytes()
    reader = BytesReader(b"\x5a" * 3584 + data)
    front = vhd.confirm(reader, 3584, vhd.SIGNATURES[0])
    header = vhd.confirm(reader, 3584 + 512, vhd.SIGNATURES[1])
    tail = vhd.confirm(reader, 3584 + len(data) - 512, vhd.SIGNATURES[0])
    assert front and header and tail
    assert (front.container_offset, header.container_offset, tail.container_offset) == (0, 512, None)
    assert front.identity == tail.identity and front.value == SIZE


@pytest.mark.parametrize("at", [0, 512, 1 << 40, -512])
def test_no_evidence_in_noise(at: int) -> None:
    """A magic in front of noise, or beyond the reader, is nothing."""
    noise = np.random.default_rng(2).bytes(8192)
    for signature in vhd.SIGNATURES:
        data = signature.magic + noise[len(signature.magic) :]
        assert vhd.confirm(BytesReader(data[:512] + data), at, signature) is None


def test_one_wrong_byte_is_no_evidence(made: dict[str, Path]) -> None:
    """Footers and headers are believed under their checksum only."""
    data = bytearray(made["qemu"].read_bytes()[:2048])
    data[100] ^= 1
    data[900] ^= 1
    assert vhd.confirm(BytesReader(data), 0, vhd.SIGNATURES[0]) is None
    assert vhd.confirm(BytesReader(data), 512, vhd.SIGNATURES[1]) is None


def test_hidden_disk_of_old_tapdisk(made: dict[str, Path]) -> None:
    """Old tapdisk set the hidden byte without a new sum: the footer is believed, and said to be hidden."""
    data = bytearray(made["vhd-xenserver"].read_bytes())
    data[85] = data[len(data) - 512 + 85] = 1
    container, _ = opened(bytes(data))
    assert "hidden" in container.detail and failed(container) == set()


@pytest.mark.parametrize("name", [*sorted(set(DYNAMIC) - {"vhd-xenserver"}), "qemu"])
def test_salvage_from_the_tail(made: dict[str, Path], guest: bytes, name: str) -> None:
    """A file that lost its first 1536 bytes is found by its tail footer and the table that must lie before it."""
    data = made[name].read_bytes()
    lead = np.random.default_rng(4).bytes(1 << 20)
    image = BytesReader(lead + b"\x5a" * 1536 + data[1536:] + lead)
    at = len(lead) + len(data) - (511 if "short" in name else 512)
    found = vhd.confirm(image, at, vhd.SIGNATURES[0])
    assert found is not None and found.container_offset is None
    orphans = list(vhd.salvage(image, [found]))
    assert [orphan.runs.tolist() for orphan in orphans] == [[[0, len(lead), len(data)]]]
    assert read_guest(BytesReader(image.read(len(lead), len(data))), orphans[0].container.guests[0].map) == guest


def test_salvage_finds_nothing_in_noise(made: dict[str, Path]) -> None:
    """A tail footer alone, in noise, is no container."""
    data = made["qemu"].read_bytes()
    image = BytesReader(np.random.default_rng(6).bytes(len(data)) + data[-512:])
    assert list(vhd.salvage(image, [Evidence("vhd.footer", len(data), 512)])) == []


# --- hostile input -------------------------------------------------------------------------------------------------
def small(kind: int = 3) -> bytes:
    """A small file with blocks of 4 KiB, so that tables are easy to hit."""
    data = np.random.default_rng(kind).bytes(40 * 4096)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.vhd"
        write(path, Style(b"win ", 0x000A0000, block=4096), data, 5, uuid=b"\x01" * 16,
              parent=bytes(len(data)) if kind == 4 else None, parent_uuid=b"\x02" * 16,
              parent_path=Path("p.vhd") if kind == 4 else None)
        return path.read_bytes()


def resum(data: bytearray) -> bytes:
    """With right sums again, so that what follows is tested too."""
    for start, size, at in ((0, 512, 64), (512, 1024, 36)):
        part = bytearray(data[start : start + size])
        part[at : at + 4] = bytes(4)
        data[start + at : start + at + 4] = checksum(bytes(part)).to_bytes(4, "big")
    return bytes(data)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([small(3), small(4)]), st.data())
def test_mutated_headers_never_escape(data: bytes, draw: st.DataObject) -> None:
    """Whatever stands in footer, header and table: Damaged, or a map that keeps its contract."""
    changed = bytearray(data)
    edges = (0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
    extremes = st.sampled_from([edge.to_bytes(8, "big") for edge in edges])
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, 1535 + 4 * 40))
        value = draw.draw(st.one_of(extremes, st.binary(min_size=1, max_size=8)))
        changed[at : at + len(value)] = value
    raw = resum(changed) if draw.draw(st.booleans()) else bytes(changed)
    cut = draw.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    reader = BytesReader(raw[:cut], ((draw.draw(st.integers(0, 4096)), draw.draw(st.integers(1, 1024))),))
    try:
        container = vhd.FORMAT.open(reader)
    except Damaged:
        return
    check_map(container, reader)
    assert sum(len(patch.data) for patch in container.patches) < 64 << 20


def test_largest_table_within_bounds() -> None:
    """A header that claims the largest table that we hold, over nothing, opens fast and in bounded memory."""
    foot = footer(Style(b"win ", 0x000A0000), 3, 1 << 41, b"\x01" * 16)
    reader = BytesReader(foot + header(1536, 1 << 22, 1 << 19, bytes(16), "", []))
    container = vhd.FORMAT.open(reader)
    check_map(container, reader)
    assert (container.guests[0].map.state == LOST).all()
    assert sum(len(patch.data) for patch in container.patches) < 64 << 20


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 40) | st.just(2045), max_size=12), st.integers(0, 5), st.integers(-1, 12),
       st.integers(0, 3))
def test_a_regular_table_passes_its_first_look(numbers: list[int], shift: int, lost: int, unused: int) -> None:
    """The look at a table's first entries refuses none that is regular, wherever its blocks lie and what is lost."""
    head = _vhd_parts.make_header(_vhd_parts.TABLE_AT, len(numbers) + unused, BLOCK)
    first = head.table_end // 512 + shift
    raw = [0 if n == 2045 else first + n * head.span // 512 for n in numbers] + [0xFFFF_FFFF] * unused
    table = b"".join(n.to_bytes(4, "big") for n in raw)
    reader = BytesReader(bytes(_vhd_parts.TABLE_AT) + table.ljust(1024, b"\xff"),
                         [(_vhd_parts.TABLE_AT + 4 * lost, 4)] if lost >= 0 else [])
    if numbers and _vhd_parts.read_table(reader, head, None).regular:
        assert _vhd_parts.may_be_regular(reader, head)


def test_a_million_entries_of_noise_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Footers of tapdisk let a table of a million entries be tried at each place that a file may begin at."""
    judged: list[int] = []
    monkeypatch.setattr(vhd, "read_table", lambda *_: judged.append(1))
    head = vhd.make_header(1536, vhd.XEN_ENTRIES, BLOCK)
    assert not vhd._fits(BytesReader(np.random.default_rng(1).bytes(5 << 20)), head, None)
    assert not judged


def test_what_is_no_vhd_is_damaged() -> None:
    """Nothing, noise and zeros raise Damaged with the place."""
    for data in (b"", bytes(4096), np.random.default_rng(3).bytes(1 << 16)):
        with pytest.raises(Damaged):
            vhd.FORMAT.open(BytesReader(data))
