"""VHDX: files of QEMU and of an independent writer, whole, damaged and dirty, judged by qemu-img, dissect, libvhdi."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest, run
from tests.makers import parent_of
from tests.makers import vhdx as writer
from tests.makers.vhdx import MAKERS
from tests.reference.crc32c import crc32c
from vmcarve.errors import Damaged
from vmcarve.formats import vhdx
from vmcarve.model import DATA, HOLE, LOST, UNALLOCATED, Container, Want
from vmcarve.source import BytesReader

KIB64, MIB = 1 << 16, 1 << 20
SIZE = 9 * MIB + MIB // 2
EMPTY = 2  # this MiB of the guest is zero


@pytest.fixture(scope="module")
def guest() -> bytes:
    data = bytearray(np.random.default_rng(8).bytes(SIZE))
    data[EMPTY * MIB : (EMPTY + 1) * MIB] = bytes(MIB)
    return bytes(data)


@pytest.fixture(scope="module")
def made(guest: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of every maker, and QEMU's: written in random order, fixed, fixed and written to."""
    folder = tmp_path_factory.mktemp("vhdx")
    raw = folder / "raw"
    raw.write_bytes(guest)
    out = {}
    for name, maker in MAKERS.items():
        out[name] = folder / f"{name}.vhdx"
        maker.make(raw, out[name], 3)
    commands = []
    for i in (5, 1, 9, 7, 0, 3, 8, 6, 4):
        part = folder / f"part{i}"
        part.write_bytes(guest[i * MIB : (i + 1) * MIB])
        commands += ["-c", f"write -s {part} {i * MIB} {part.stat().st_size}"]
    for name, options in (("qemu", "block_size=1M"), ("qemu-8M", "block_size=8M"),
                          ("qemu-fixed-written", "block_size=1M,subformat=fixed"),
                          ("qemu-fixed-full", "block_size=8M,subformat=fixed,block_state_zero=off")):
        out[name] = folder / f"{name}.vhdx"
        run("qemu-img", "create", "-q", "-f", "vhdx", "-o", options, out[name], str(SIZE))
        run("qemu-io", "-f", "vhdx", *commands, out[name])
    out["qemu-fixed-empty"] = folder / "empty.vhdx"
    run("qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=fixed", out["qemu-fixed-empty"], str(SIZE))
    return out


def opened(data: bytes, holes: tuple[tuple[int, int], ...] = ()) -> tuple[Container, BytesReader]:
    reader = BytesReader(data, holes)
    container = vhdx.FORMAT.open(reader)
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


def qemu_guest(path: Path, out: Path) -> bytes:
    run("qemu-img", "convert", "-f", "vhdx", "-O", "raw", path, out)
    return out.read_bytes()


def dissect_guest(path: Path, size: int) -> bytes:
    disk = pytest.importorskip("dissect.hypervisor.disk.vhdx")
    return disk.VHDX(path).read(size)


# --- whole files ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["qemu", "qemu-8M", "qemu-fixed-written", "qemu-fixed-full", "qemu-fixed-empty"])
def test_qemu_files(made: dict[str, Path], guest: bytes, name: str, tmp_path: Path) -> None:
    """QEMU's files give QEMU's own guest and their exact length, fixed ones that are marked zero throughout too."""
    container, reader = opened(made[name].read_bytes())
    disk = container.guests[0].map
    if name == "qemu":
        assert (np.diff(disk.file_offset[disk.state == DATA]) < 0).any(), "fixture too kind: blocks lie in order"
    wanted = bytes(SIZE) if name == "qemu-fixed-empty" else guest
    assert read_guest(reader, disk) == wanted == qemu_guest(made[name], tmp_path / "raw")
    assert (container.size, container.size_exact, container.system) == (reader.size, True, "QEMU")
    assert container.variant == ("fixed" if "fixed" in name else "dynamic")
    assert container.patches == [] and failed(container) == set()


@pytest.mark.parametrize(("size", "block"), [("33G", None), ("5T", "1M"), ("700M", "256M")])
def test_chunks_of_large_disks(size: str, block: str | None, tmp_path: Path) -> None:
    """Bitmap entries between the payload entries are stepped over on every chunk, as QEMU does."""
    path = tmp_path / "a.vhdx"
    options = ["-o", f"block_size={block}"] if block else []
    run("qemu-img", "create", "-q", "-f", "vhdx", *options, path, size)
    bytes_in = {"33G": 33 << 30, "5T": 5 << 40, "700M": 700 << 20}[size]
    places = [bytes_in - 4096, bytes_in // 2, 8 << 20, (4 << 30) % bytes_in, bytes_in // 3 // 4096 * 4096]
    commands = []
    for i, at in enumerate(places):
        commands += ["-c", f"write -P {i + 1} {at} 4096"]
    run("qemu-io", "-f", "vhdx", *commands, path)
    if size == "5T":
        with path.open("rb") as f, pytest.raises(Damaged, match="beyond our limit"):
            vhdx.FORMAT.open(BytesReader(f.read()))
        return
    container, reader = opened(path.read_bytes())
    disk = container.guests[0].map
    for i, at in enumerate(places):
        run_of = int(np.searchsorted(disk.guest_offset, at, "right")) - 1
        assert disk.state[run_of] == DATA
        where = int(disk.file_offset[run_of]) + at - int(disk.guest_offset[run_of])
        assert reader.read(where, 4096) == bytes([i + 1]) * 4096
    assert container.size == reader.size


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_variant(made: dict[str, Path], guest: bytes, name: str) -> None:
    """Hyper-V's layout, 4096-byte sectors, dirty logs and differencing files open to the guest that was put in."""
    container, reader = opened(made[name].read_bytes())
    parent = None
    if container.parent:
        below, base = opened(parent_of(made[name]).read_bytes())
        assert container.parent.identity in below.identities and len(below.identities) == 2
        assert container.parent.identity != below.identities[1], "fixture too kind: the child names the current GUID"
        parent = read_guest(base, below.guests[0].map)
    assert read_guest(reader, container.guests[0].map, parent) == guest
    assert container.size == reader.size and container.variant == MAKERS[name].variant
    assert failed(container) == set() and container.system == "Hyper-V/Windows"


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"vhdx-dirty-log"}))
def test_dissect_agrees_with_the_writer(made: dict[str, Path], guest: bytes, name: str) -> None:
    """dissect reads our writer's files, differencing and 4096-byte ones too, as we do."""
    assert dissect_guest(made[name], SIZE) == guest


@pytest.mark.parametrize("name", ["vhdx-windows", "vhdx-windows-fixed"])
def test_qemu_agrees_with_the_writer(made: dict[str, Path], guest: bytes, name: str, tmp_path: Path) -> None:
    """QEMU reads our writer's files of 512-byte sectors (it refuses 4096, and parents) and finds no fault."""
    run("qemu-img", "check", "-f", "vhdx", made[name])
    assert qemu_guest(made[name], tmp_path / "raw") == guest


@pytest.mark.parametrize(("state", "wanted"), [(0, UNALLOCATED), (1, HOLE), (2, HOLE), (3, HOLE), (5, HOLE),
                                               (4, LOST), (7, LOST), (8 | 6, LOST)])
def test_states_of_absent_blocks(guest: bytes, tmp_path: Path, state: int, wanted: int) -> None:
    """Each state of a payload entry means what the specification says; an old place left in it is only noted."""
    path = tmp_path / "a.vhdx"
    writer.write(path, writer.Plan(absent=state | 77 << 20), guest, 1)
    container, _ = opened(path.read_bytes())
    disk = container.guests[0].map
    assert disk.state[(disk.guest_offset <= EMPTY * MIB) & (disk.guest_offset + disk.length > EMPTY * MIB)] == wanted
    assert ("stale_places" in container.detail) == (wanted == HOLE)
    assert failed(container) == ({"blocks lie apart and inside the file"} if wanted == LOST else set())


# --- differencing --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(n for n in MAKERS if "differencing" in n))
def test_parent_paths_are_taken_away(made: dict[str, Path], guest: bytes, name: str, tmp_path: Path) -> None:
    """The written child keeps the parent's GUID and no path; what it said is kept."""
    container, reader = opened(made[name].read_bytes())
    parent = parent_of(made[name])
    assert container.parent and container.parent.name == f".\\{parent.name}"
    assert container.parent.detail["absolute_win32_path"] == f"C:\\disks\\{parent.name}"
    data = patched(container, reader)
    assert parent.name.encode("utf-16-le") not in data
    again, after = opened(data)
    assert again.parent and (again.parent.identity, again.parent.name) == (container.parent.identity, None)
    below, base = opened(parent.read_bytes())
    assert read_guest(after, again.guests[0].map, read_guest(base, below.guests[0].map)) == guest
    pyvhdi = pytest.importorskip("pyvhdi")
    path = tmp_path / "child.vhdx"
    path.write_bytes(data)
    file = pyvhdi.file()
    file.open(str(path))
    assert file.get_parent_identifier() in container.parent.identity


def test_lost_bitmap(made: dict[str, Path]) -> None:
    """Partly present blocks whose bitmap is lost are LOST; the block that is here throughout stays."""
    data = made["vhdx-differencing"].read_bytes()
    whole, _ = opened(data)
    at = next(region for region in whole.regions if region.kind == "vhdx.bitmap").file_offset
    container, _ = opened(data, ((at, MIB),))
    disk = container.guests[0].map
    assert failed(container) == {"sector bitmaps are there"}
    assert disk.length[disk.state == DATA].tolist() == [MIB]


# --- damage --------------------------------------------------------------------------------------------------------
def test_either_header_lost(made: dict[str, Path], guest: bytes, tmp_path: Path) -> None:
    """One header is enough; the other is written anew as the older one, and QEMU opens what was written."""
    data = made["qemu"].read_bytes()
    for i, at in enumerate((KIB64, 2 * KIB64)):
        container, reader = opened(data, ((at, 4096),))
        assert failed(container) == {f"header {i + 1}"}
        path = tmp_path / f"{i}.vhdx"
        path.write_bytes(patched(container, reader))
        assert qemu_guest(path, tmp_path / "raw") == guest
        again, _ = opened(path.read_bytes())
        assert failed(again) == set() and again.identities == container.identities


@pytest.mark.parametrize("at", [3 * KIB64, 4 * KIB64])
def test_either_region_table_lost(made: dict[str, Path], at: int) -> None:
    """One region table is enough, and gives the other one byte for byte, also where a single byte is wrong."""
    data = made["qemu"].read_bytes()
    container, reader = opened(data, ((at + 512, 512), (at, 512)))
    assert len(failed(container)) == 1 and patched(container, reader) == data
    wrong = bytearray(data)
    wrong[at + 20] ^= 1
    container, reader = opened(bytes(wrong))
    assert len(failed(container)) == 1 and patched(container, reader) == data


@pytest.mark.parametrize("name", ["qemu", "vhdx-windows"])
def test_first_mebibyte_lost(made: dict[str, Path], guest: bytes, name: str, tmp_path: Path) -> None:
    """Without identifier, headers and region tables, the metadata pin the file and lead to the BAT beside them."""
    data = made[name].read_bytes()
    image = BytesReader(b"\x31" * 4096 + bytes(MIB) + data[MIB:])
    at = 4096 + data.index(b"metadata\0\0")
    found = vhdx.confirm(image, at, vhdx.SIGNATURES[3])
    assert found is not None and found.container_offset == at - 4096
    container, reader = opened(data, ((0, MIB),))
    assert read_guest(reader, container.guests[0].map) == guest
    path = tmp_path / "a.vhdx"
    path.write_bytes(patched(container, reader))
    assert qemu_guest(path, tmp_path / "raw") == guest
    assert {"file identifier", "header 1", "header 2", "region table 1", "region table 2"} <= failed(container)


def test_few_blocks_begin_as_metadata_does(made: dict[str, Path]) -> None:
    """The values of the metadata begin with the size of a block: most of what lies on an image does not."""
    data = bytearray(made["qemu"].read_bytes())
    want = next(w for w in _wanted(bytes(data)) if w.kind == "vhdx.metadata-items")
    block = data[want.file_offset : want.file_offset + 4096]
    word = int.from_bytes(block[:8], "little")
    rng = np.random.default_rng(1)
    words = np.array([word, *rng.integers(0, 1 << 63, 10_000).tolist()], np.uint64)
    begins = want.begins(np.zeros(len(words), np.uint16), words)
    assert begins[0] and begins.sum() < 5 and want.fits(bytes(block)) > 0


def _wanted(data: bytes) -> list[Want]:
    """What is wanted of a file whose metadata values are overwritten."""
    whole = BytesReader(data)
    c = vhdx.FORMAT.open(whole)
    start = next(r.file_offset for r in c.regions if r.kind == "vhdx.metadata")
    bad = data[: start + KIB64] + b"\xa5" * 4096 + data[start + KIB64 + 4096 :]
    return list(vhdx.FORMAT.wants(BytesReader(bad))) if vhdx.FORMAT.wants is not None else []


def test_metadata_table_lost(made: dict[str, Path], guest: bytes, tmp_path: Path) -> None:
    """The five items are found where QEMU puts them when their table is lost, and the table is written anew."""
    data = made["qemu"].read_bytes()
    at = data.index(b"metadata\0\0")
    container, reader = opened(data, ((at, KIB64),))
    assert failed(container) == {"metadata table"}
    path = tmp_path / "a.vhdx"
    path.write_bytes(patched(container, reader))
    assert qemu_guest(path, tmp_path / "raw") == guest


def test_lost_bat_sector(made: dict[str, Path]) -> None:
    """Blocks whose entries are lost are LOST, and the written BAT names no wrong place for them."""
    data = made["qemu"].read_bytes()
    whole, _ = opened(data)
    bat = next(region for region in whole.regions if region.kind == "vhdx.bat").file_offset
    container, reader = opened(data, ((bat, 512), (MIB, MIB)))  # and the log, which has copies
    assert (container.guests[0].map.state == LOST).all() and "BAT is there" in failed(container)
    again, _ = opened(patched(container, reader))
    assert (again.guests[0].map.state == HOLE).all()


@pytest.mark.parametrize("length", [512, 4096, MIB])
def test_a_lost_bat_is_in_the_log(made: dict[str, Path], guest: bytes, length: int, tmp_path: Path) -> None:
    """QEMU's closed file has its BAT pages in old entries of the log: the places come back, and the file opens."""
    data = made["qemu"].read_bytes()
    whole, _ = opened(data)
    bat = next(region for region in whole.regions if region.kind == "vhdx.bat").file_offset
    container, reader = opened(data, ((bat, length),))
    before, after = whole.guests[0].map, container.guests[0].map
    held = before.guest_offset[before.state == DATA]
    assert after.guest_offset[after.state == DATA].tolist() == held.tolist()
    assert after.file_offset[after.state == DATA].tolist() == before.file_offset[before.state == DATA].tolist()
    assert "BAT is the file's own" in failed(container)
    path = tmp_path / "a.vhdx"
    path.write_bytes(patched(container, reader))
    assert qemu_guest(path, tmp_path / "raw") == guest


@pytest.mark.parametrize("value", [0, 6, 1 << 20 | 6, 3 << 20 | 6, 1 << 40 | 6, (1 << 64) - 2, None])
def test_wrong_entries_are_lost(made: dict[str, Path], value: int | None) -> None:
    """Entries into headers, log, BAT or metadata, beyond any file of this disk, or shared by two blocks are LOST."""
    data = bytearray(made["qemu"].read_bytes())
    whole, _ = opened(bytes(data))
    bat = next(region for region in whole.regions if region.kind == "vhdx.bat").file_offset
    other = bytes(data[bat + 8 * 7 : bat + 8 * 8])
    data[bat + 8 * 3 : bat + 8 * 4] = other if value is None else value.to_bytes(8, "little")
    container, reader = opened(bytes(data), ((MIB, MIB),))  # without the log, which has copies
    disk = container.guests[0].map
    lost = {int(g) // MIB for g in disk.guest_offset[disk.state == LOST]}
    if value == 0:
        assert lost == set() and failed(container) == set()
        return
    assert lost == ({3, 7} if value is None else {3})
    assert failed(container) == {"blocks lie apart and inside the file"} and container.size <= reader.size
    again, _ = opened(patched(container, reader))
    assert failed(again) == set() and not (again.guests[0].map.state == LOST).any()


def test_short_file_keeps_its_map(made: dict[str, Path]) -> None:
    """A file that is cut off says so, and its map stays."""
    data = made["qemu"].read_bytes()
    container, _ = opened(data[: len(data) - 3 * MIB])
    assert failed(container) == {"file is whole"} and container.size == len(data)


# --- the log -------------------------------------------------------------------------------------------------------
def test_dirty_log_as_qemu_replays_it(made: dict[str, Path], guest: bytes, tmp_path: Path) -> None:
    """A log that goes round its end, between entries of other logs, torn and old ones, replays as in QEMU."""
    path = tmp_path / "a.vhdx"
    shutil.copy(made["vhdx-dirty-log"], path)
    container, reader = opened(path.read_bytes())
    assert container.detail["log"] == "replayed"
    assert read_guest(reader, container.guests[0].map) == guest
    run("qemu-img", "check", "-f", "vhdx", "-r", "all", path)
    assert qemu_guest(path, tmp_path / "raw") == guest
    data = patched(container, reader)
    path.write_bytes(data)
    run("qemu-img", "check", "-f", "vhdx", path)
    assert qemu_guest(path, tmp_path / "raw") == guest == dissect_guest(path, SIZE)
    again, _ = opened(data)
    assert again.detail["log"] == "empty" and again.patches == []


def dirty_qemu(path: Path) -> bytes:
    """QEMU's own file, made dirty: the newest log entry that is still there counts again, and its page is wiped."""
    data = bytearray(path.read_bytes())
    entries = [at for at in range(MIB, 2 * MIB, 4096) if data[at : at + 4] == b"loge"]
    newest = max(entries, key=lambda at: (struct.unpack_from("<Q", data, at + 48)[0], at))
    (place,) = struct.unpack_from("<Q", data, newest + 64 + 16)
    data[place : place + 4096] = bytes(4096)
    at = max((KIB64, 2 * KIB64), key=lambda at: struct.unpack_from("<Q", data, at + 8)[0])
    data[at + 48 : at + 64] = data[newest + 32 : newest + 48]
    data[at + 4 : at + 8] = bytes(4)
    data[at + 4 : at + 8] = crc32c(bytes(data[at : at + 4096])).to_bytes(4, "little")
    return bytes(data)


def test_dirty_log_of_qemu(made: dict[str, Path], guest: bytes, tmp_path: Path) -> None:
    """QEMU's own log entry, still in the ring, gives the BAT page back that was wiped."""
    path = tmp_path / "a.vhdx"
    path.write_bytes(dirty_qemu(made["qemu"]))
    container, reader = opened(path.read_bytes())
    assert read_guest(reader, container.guests[0].map) == guest
    run("qemu-img", "check", "-f", "vhdx", "-r", "all", path)
    assert qemu_guest(path, tmp_path / "raw") == guest
    path.write_bytes(patched(container, reader))
    assert qemu_guest(path, tmp_path / "raw") == guest


def test_replay_also_mends_what_is_missing(made: dict[str, Path], guest: bytes) -> None:
    """A BAT page that is not on the image at all comes from the log."""
    data = dirty_qemu(made["qemu"])
    whole, _ = opened(data)
    bat = next(region for region in whole.regions if region.kind == "vhdx.bat").file_offset
    container, reader = opened(data, ((bat, 4096),))
    assert read_guest(reader, container.guests[0].map) == guest and failed(container) == set()


def test_lost_log_is_told(made: dict[str, Path], tmp_path: Path) -> None:
    """A dirty log that is lost fails its check; the written file opens without it, under a low grade."""
    data = made["vhdx-dirty-log"].read_bytes()
    container, reader = opened(data, ((MIB, MIB),))
    assert "log" in failed(container)
    assert [patch.grade for patch in container.patches if patch.reason == "log-replay"] == ["guessed"]
    path = tmp_path / "a.vhdx"
    path.write_bytes(patched(container, reader))
    run("qemu-img", "info", "-f", "vhdx", path)


def relogged(data: bytes, entries: list[tuple[int, bytes]], guid: bytes) -> bytes:
    """With these entries at these places of an otherwise empty log that `guid` makes current."""
    out = bytearray(data)
    out[MIB : 2 * MIB] = bytes(MIB)
    for place, raw in entries:
        out[MIB + place : MIB + place + len(raw)] = raw
    out[2 * KIB64 : 2 * KIB64 + 4096] = writer.header(99, b"\x01" * 16, guid)
    return bytes(out[: max(len(data), 2 * MIB)])


def test_log_may_not_change_headers_or_itself(made: dict[str, Path], guest: bytes) -> None:
    """Descriptors that name the log, the headers, a crooked place or 2^64 bytes of zeros do no harm and are told."""
    guid = b"\x44" * 16
    page = b"\xcc" * 4096
    pages = [(0, page), (KIB64, page), (MIB + 4096, page), ((1 << 63) + 4096, page), (4 * MIB + 100, page)]
    entry = writer.log_entry(0, 5, guid, pages, [(MIB, 1 << 63), (1 << 62, (1 << 64) - 4096)], 1)
    container, reader = opened(relogged(made["vhdx-windows"].read_bytes(), [(0, entry)], guid))
    assert read_guest(reader, container.guests[0].map) == guest
    assert "log" in failed(container)
    assert sum(len(patch.data) for patch in container.patches) < MIB


def test_zeros_of_the_log_are_bounded(made: dict[str, Path]) -> None:
    """A log that zeroes everything behind it wipes the metadata, as it says; no memory is taken for it."""
    guid = b"\x44" * 16
    entry = writer.log_entry(0, 5, guid, [], [(2 * MIB, (1 << 62))], 1)
    with pytest.raises(Damaged):
        vhdx.FORMAT.open(BytesReader(relogged(made["vhdx-windows"].read_bytes(), [(0, entry)], guid)))


def test_logs_that_turn_in_circles(made: dict[str, Path], guest: bytes) -> None:
    """Entries whose tail is not in their sequence, that overlap, or that repeat a number end the search."""
    guid = b"\x44" * 16
    filled = writer.log_entry(4096, 7, guid, [(3 * MIB, bytes(4096))] * 100, [], 1)
    entries = [(4096 * i, writer.log_entry(4096 * ((i + 7) % 250), 6, guid, [], [], 1)) for i in range(250)]
    container, reader = opened(relogged(made["vhdx-windows"].read_bytes(), entries, guid))
    assert "log" in failed(container) and read_guest(reader, container.guests[0].map) == guest
    cut = [(0, filled[:8192]), (4096 * 100, filled)]
    container, _ = opened(relogged(made["vhdx-windows"].read_bytes(), cut, guid))
    assert "log" in failed(container)


# --- evidence ------------------------------------------------------------------------------------------------------
def test_pins(made: dict[str, Path]) -> None:
    """Identifier, headers and region tables pin themselves by their neighbours; log entries state a value."""
    data = made["qemu"].read_bytes()
    image, lead = BytesReader(b"\x31" * 1536 + data), 1536
    wanted = [(0, 0), (KIB64, 1), (2 * KIB64, 1), (3 * KIB64, 2), (4 * KIB64, 2)]
    for at, kind in wanted:
        found = vhdx.confirm(image, lead + at, vhdx.SIGNATURES[kind])
        assert found is not None and found.container_offset == at and found.confidence == 1.0
    entry = next(at for at in range(MIB, 2 * MIB, 4096) if data[at : at + 4] == b"loge")
    found = vhdx.confirm(image, lead + entry, vhdx.SIGNATURES[4])
    assert found is not None and found.container_offset is None and found.value == entry
    alone = BytesReader(data[KIB64 : 2 * KIB64])
    found = vhdx.confirm(alone, 0, vhdx.SIGNATURES[1])
    assert found is not None and found.container_offset is None


def test_one_wrong_byte_is_no_evidence(made: dict[str, Path]) -> None:
    """Headers, region tables and log entries are believed under their CRC only."""
    data = made["qemu"].read_bytes()
    entry = next(at for at in range(MIB, 2 * MIB, 4096) if data[at : at + 4] == b"loge")
    for at, kind, inside in ((KIB64, 1, 4000), (3 * KIB64, 2, 65000), (entry, 4, 200)):
        wrong = bytearray(data)
        wrong[at + inside] ^= 4
        assert vhdx.confirm(BytesReader(wrong), at, vhdx.SIGNATURES[kind]) is None


@pytest.mark.parametrize("at", [0, 512, 1 << 40, -512])
def test_no_evidence_in_noise(at: int) -> None:
    """A magic in front of noise or text, or beyond the reader, is nothing."""
    for filler in (np.random.default_rng(2).bytes(1 << 17), b"head and region, some text " * 5000, bytes(1 << 17)):
        for signature in vhdx.SIGNATURES:
            data = signature.magic + filler[len(signature.magic) :]
            found = vhdx.confirm(BytesReader(data[:512] + data), at, signature)
            assert found is None or (signature.kind == "vhdx.identifier" and found.confidence < 1)


# --- hostile input -------------------------------------------------------------------------------------------------
def resum(data: bytearray) -> bytes:
    """With right CRCs again, so that what follows is tested too."""
    for at, size in ((KIB64, 4096), (2 * KIB64, 4096), (3 * KIB64, KIB64), (4 * KIB64, KIB64), (MIB, 8192)):
        data[at + 4 : at + 8] = bytes(4)
        data[at + 4 : at + 8] = vhdx.crc32c_zeroed(bytes(data[at : at + size]), 4).to_bytes(4, "little")
    return bytes(data)


@pytest.fixture(scope="module")
def targets(made: dict[str, Path]) -> list[bytes]:
    guid = b"\x44" * 16
    entry = writer.log_entry(0, 5, guid, [(9 * MIB, b"\x01" * 4096)], [(10 * MIB, 4096)], 1)
    return [relogged(made["vhdx-windows"].read_bytes(), [(0, entry[:8192])], guid),
            made["vhdx-differencing"].read_bytes()]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_structures_never_escape(targets: list[bytes], draw: st.DataObject) -> None:
    """Whatever stands in headers, tables, log and metadata: Damaged, or a map that keeps its contract."""
    changed = bytearray(draw.draw(st.sampled_from(targets)))
    areas = [(KIB64, 96), (2 * KIB64, 96), (3 * KIB64, 96), (4 * KIB64, 96), (MIB, 128), (2 * MIB, 256),
             (2 * MIB + KIB64, 512), (3 * MIB, 128)]
    edges = (0, 1, 1 << 20, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
    extremes = st.sampled_from([edge.to_bytes(8, "little") for edge in edges])
    for _ in range(draw.draw(st.integers(1, 4))):
        start, size = draw.draw(st.sampled_from(areas))
        at = start + draw.draw(st.integers(0, size))
        value = draw.draw(st.one_of(extremes, st.binary(min_size=1, max_size=8)))
        changed[at : at + len(value)] = value
        if start in (3 * KIB64, KIB64):  # both copies
            changed[at + KIB64 : at + KIB64 + len(value)] = value
    raw = resum(changed) if draw.draw(st.booleans()) else bytes(changed)
    cut = draw.draw(st.one_of(st.none(), st.integers(0, len(raw))))
    hole = (draw.draw(st.integers(0, 64)) * KIB64, draw.draw(st.integers(1, 1 << 17)))
    reader = BytesReader(raw[:cut], (hole,))
    try:
        container = vhdx.FORMAT.open(reader)
    except Damaged:
        return
    check_map(container, reader)
    assert sum(len(patch.data) for patch in container.patches) < 128 << 20


def test_largest_bat_within_bounds(made: dict[str, Path]) -> None:
    """A disk with the largest BAT that we hold, over nothing, opens fast and in bounded memory."""
    data = bytearray(made["vhdx-differencing"].read_bytes()[: 4 * MIB])
    at = 2 * MIB + KIB64
    data[at : at + 16] = struct.pack("<IIQ", MIB, 2, (1 << 22) - 4096 << 20)
    container, _ = opened(bytes(data))
    assert container.virtual_size == (1 << 22) - 4096 << 20
    assert sum(len(patch.data) for patch in container.patches) < 64 << 20


def test_what_is_no_vhdx_is_damaged() -> None:
    """Nothing, noise, zeros and a bare magic raise Damaged."""
    for data in (b"", bytes(4096), np.random.default_rng(3).bytes(1 << 20), b"vhdxfile" + bytes(1 << 20)):
        with pytest.raises(Damaged):
            vhdx.FORMAT.open(BytesReader(data))
