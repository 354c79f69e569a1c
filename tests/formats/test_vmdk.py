"""VMDK sparse extents, streams and descriptors: judged by qemu-img and libvmdk; damage, salvage, hostile input."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
import pyvmdk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest, run
from tests.makers.vmdk import GRAIN, MAKERS, describe, make_front_stream, make_split, make_stream, text
from vmcarve.errors import Damaged
from vmcarve.formats import _vmdk_text as grammar
from vmcarve.formats import vmdk_descriptor
from vmcarve.formats.vmdk import FORMAT
from vmcarve.model import DATA, EXTERNAL, HOLE, LOST, SECTOR, UNALLOCATED, ZLIB, Container, Evidence
from vmcarve.source import BytesReader

MIB = 1 << 20
SECTORS = 70 * 2048 + 37  # three tables, the last grain cut
HEADER = FORMAT.signatures[0]
Hole = tuple[int, int]


def distinct(size: int, seed: int, share: float = 0.12) -> bytes:
    """A guest in which some grains are distinct and compress somewhat, and the last one is among them."""
    rng = random.Random(seed)
    data = bytearray(size)
    for at in range(0, size, GRAIN):
        if rng.random() < share or at + GRAIN >= size:
            part = rng.randbytes(700) + b"%d" % at * 3000 if rng.random() < 0.8 else rng.randbytes(GRAIN)
            n = min(GRAIN, size - at)
            data[at : at + n] = part[:n].ljust(n, b"x")
    return bytes(data)


def convert(raw: Path, out: Path, subformat: str, *options: str) -> Path:
    run("qemu-img", "convert", *options, "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, out)
    return out


def write_scattered(path: Path, seed: int, size: int, count: int = 60, unit: int = 4096) -> None:
    """A guest's writes in random order: grains lie in order of first write."""
    rng = random.Random(seed)
    commands: list[str] = []
    for i in range(count):
        commands += ["-c", f"write -P {i % 255 + 1} {rng.randrange(size // unit) * unit} {unit}"]
    run("qemu-io", "-f", "vmdk", *commands, path)


def raw_of(path: Path, driver: str = "vmdk") -> bytes:
    out = path.with_suffix(".out")
    run("qemu-img", "convert", "-f", driver, "-O", "raw", path, out)
    data = out.read_bytes()
    out.unlink()
    return data


def opened(data: bytes, holes: list[Hole] | None = None) -> tuple[Container, BytesReader]:
    reader = BytesReader(data, holes or [])
    container = FORMAT.open(reader)
    check_map(container, reader)
    assert all(0 <= p.file_offset and p.file_offset + len(p.data) <= container.size for p in container.patches)
    return container, reader


def written(c: Container, data: bytes, holes: list[Hole] | None = None, reason: str = "") -> bytes:
    """The container as it would be written: holes are zeros, patches are applied."""
    out = bytearray(BytesReader(data, holes or []).read(0, c.size).ljust(c.size, b"\0"))
    for patch in c.patches:
        if not reason or patch.reason == reason:
            out[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
    return bytes(out)


def failed(c: Container) -> list[str]:
    return [check.name for check in c.checks if not check.ok]


def state_at(c: Container, guest_offset: int) -> int:
    m = c.guests[0].map
    return int(m.state[int(np.searchsorted(m.guest_offset, guest_offset, "right")) - 1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that most tests share: raw, mono.vmdk (scattered), streams of three layouts, a split extent."""
    folder = tmp_path_factory.mktemp("vmdk")
    (folder / "raw").write_bytes(distinct(SECTORS * SECTOR, 1))
    run("qemu-img", "create", "-f", "vmdk", folder / "mono.vmdk", str(SECTORS * SECTOR))
    write_scattered(folder / "mono.vmdk", 2, SECTORS * SECTOR, 100)
    convert(folder / "raw", folder / "qemu.vmdk", "streamOptimized", "-W", "-m", "8")
    make_stream(folder / "raw", folder / "stream.vmdk", 3)
    make_front_stream(folder / "raw", folder / "front.vmdk", 4)
    make_split(folder / "raw", folder / "split.vmdk", 5)
    return folder


@pytest.fixture(scope="module")
def mono(folder: Path) -> bytes:
    return (folder / "mono.vmdk").read_bytes()


@pytest.fixture(scope="module")
def guest(folder: Path) -> bytes:
    """The guest of mono.vmdk as qemu-img reads it."""
    return raw_of(folder / "mono.vmdk")


def tables(data: bytes) -> tuple[int, int, int, int]:
    """(gd, rgd, number of tables, directory sectors) of a header."""
    capacity, = struct.unpack_from("<Q", data, 12)
    rgd, gd = struct.unpack_from("<QQ", data, 48)
    n = -(-capacity // 65536)
    return gd, rgd, n, -(-4 * n // SECTOR)


# --- sound files ---------------------------------------------------------------------------------------------------
def test_scattered_writes_read_as_qemu_and_libvmdk_read_them(folder: Path, mono: bytes, guest: bytes) -> None:
    """monolithicSparse: guest, size and checks agree although the reader goes on behind the file."""
    c, reader = opened(mono + random.Random(1).randbytes(200_000))
    places = c.guests[0].map.file_offset[c.guests[0].map.state == DATA]
    assert (np.diff(places) < 0).any(), "fixture too kind: grains in disk order"
    assert read_guest(reader, c.guests[0].map) == guest
    assert (c.size, c.size_exact, failed(c), c.patches) == (len(mono), True, [], [])
    assert (c.variant, c.system, c.cluster, c.names) == ("monolithicSparse", "QEMU", GRAIN, ["mono.vmdk"])
    assert {r.kind for r in c.regions} == {f"vmdk.{k}" for k in ("header", "descriptor", "gd", "gt", "rgd", "rgt")}
    assert len(c.regions) == 6, "neighbouring tables are one region"
    handle = pyvmdk.handle()
    handle.open(str(folder / "mono.vmdk"))
    handle.open_extent_data_files()
    assert handle.read_buffer_at_offset(SECTORS * SECTOR, 0) == guest
    handle.close()


@pytest.mark.parametrize("sectors", [1, 127, 1954, 49115, 65536, 2000002])
def test_capacities_that_no_grain_divides(tmp_path: Path, sectors: int) -> None:
    """The last grain is cut at the capacity, and the file still ends with a whole grain."""
    path = tmp_path / "a.vmdk"
    run("qemu-img", "create", "-f", "vmdk", path, str(sectors * SECTOR))
    run("qemu-io", "-f", "vmdk", "-c", f"write -P 7 {(sectors - 1) * SECTOR} 512", "-c", "write -P 9 0 512", path)
    c, reader = opened(path.read_bytes())
    assert (c.virtual_size, c.size, failed(c)) == (sectors * SECTOR, reader.size, [])
    m = c.guests[0].map
    assert int(m.guest_offset[-1] + m.length[-1]) == sectors * SECTOR and m.state[-1] == DATA
    if sectors < 100_000:
        assert read_guest(reader, m) == raw_of(path)


def test_converted_out_of_order(folder: Path) -> None:
    """qemu-img convert -W writes grains in any order."""
    path = convert(folder / "raw", folder / "w.vmdk", "monolithicSparse", "-W", "-m", "8")
    c, reader = opened(path.read_bytes())
    assert read_guest(reader, c.guests[0].map) == (folder / "raw").read_bytes()
    assert c.size == reader.size


def test_zeroed_grains_are_holes_and_orphans_are_counted(tmp_path: Path) -> None:
    """Version 2: an entry of 1 hides the parent, and the grain that it gave up is nobody's."""
    base, path = tmp_path / "base.vmdk", tmp_path / "z.vmdk"
    run("qemu-img", "create", "-f", "vmdk", base, "8M")
    run("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 1M", base)
    run("qemu-img", "create", "-f", "vmdk", "-o", "zeroed_grain=on", "-b", base, "-F", "vmdk", path)
    run("qemu-io", "-f", "vmdk", "-c", "write -P 2 128k 64k", "-c", "write -P 3 640k 64k", "-c", "write -z 128k 64k",
        "-c", "write -z 0 64k", path)  # fmt: skip
    c, reader = opened(path.read_bytes())
    assert state_at(c, 0) == HOLE and state_at(c, 128 * 1024) == HOLE and state_at(c, 64 * 1024) == UNALLOCATED
    assert c.detail["grains that no table names"] == "1" and not c.size_exact
    assert read_guest(reader, c.guests[0].map, raw_of(base)) == raw_of(path)


def test_split_extents_of_both_writers(folder: Path) -> None:
    """KDMV files without a descriptor: QEMU's, and VirtualBox's with the redundant directory at sector 1."""
    convert(folder / "raw", folder / "two.vmdk", "twoGbMaxExtentSparse")
    for path, system in ((folder / "two-s001.vmdk", "QEMU"), (folder / "split.vmdk", "VMware")):
        c, reader = opened(path.read_bytes())
        assert read_guest(reader, c.guests[0].map) == (folder / "raw").read_bytes(), path.name
        assert (c.variant, c.system, c.size, failed(c), c.patches) == (
            "twoGbMaxExtentSparse", system, reader.size, [], [])  # fmt: skip
    describe(folder / "s.vmdk", [(SECTORS, "SPARSE", "split.vmdk")], "twoGbMaxExtentSparse")
    assert raw_of(folder / "s.vmdk") == (folder / "raw").read_bytes(), "the writer of the fixture is wrong"


# --- deltas and references -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("cid", [0x25ABA292, 0x5ABA29])
def test_a_delta_names_its_parent_and_is_written_without(tmp_path: Path, cid: int) -> None:
    """The parent's CID is the link; the written copy keeps its size, opens alone and names nothing."""
    base, path = tmp_path / "base.vmdk", tmp_path / "delta.vmdk"
    run("qemu-img", "create", "-f", "vmdk", base, "8M")
    run("qemu-io", "-f", "vmdk", "-c", "write -P 1 0 1M", base)
    run("qemu-img", "create", "-f", "vmdk", "-b", base, "-F", "vmdk", path)
    run("qemu-io", "-f", "vmdk", "-c", "write -P 2 512k 64k", path)
    data = bytearray(path.read_bytes())
    at = data.index(b"parentCID=") + 10
    end = data.index(b"\n", at)
    area = bytes(data[SECTOR : 21 * SECTOR]).replace(bytes(data[at:end]), b"%x" % cid)
    data[SECTOR : 21 * SECTOR] = area[: 20 * SECTOR].ljust(20 * SECTOR, b"\0")
    c, reader = opened(bytes(data))
    assert c.parent is not None and c.parent.identity == f"vmdk-cid:{cid:08x}" and c.parent.name == str(base)
    assert c.detail["parentFileNameHint"] == str(base)
    assert state_at(c, 0) == UNALLOCATED and state_at(c, 512 * 1024) == DATA
    out = tmp_path / "alone.vmdk"
    out.write_bytes(written(c, bytes(data)))
    assert out.stat().st_size == len(data) and str(tmp_path).encode() not in out.read_bytes()
    base.unlink()
    assert raw_of(out) == read_guest(reader, c.guests[0].map)
    assert opened(out.read_bytes())[0].parent is None


def test_a_parent_is_found_by_identity(tmp_path: Path) -> None:
    """What a child calls its parent is among the parent's identities; the values for "none" never are."""
    base, path = tmp_path / "base.vmdk", tmp_path / "delta.vmdk"
    run("qemu-img", "create", "-f", "vmdk", base, "8M")
    run("qemu-img", "create", "-f", "vmdk", "-b", base, "-F", "vmdk", path)
    parent, child = opened(base.read_bytes())[0], opened(path.read_bytes())[0]
    assert child.parent is not None and [child.parent.identity] == parent.identities
    fresh = grammar.parse(text([(8, "FLAT", "a")], "monolithicFlat", 0xFFFFFFFE))
    assert fresh is not None and fresh.identities == []


def test_an_embedded_extent_line_cannot_lead_outside(folder: Path, mono: bytes) -> None:
    """libvmdk opens the name in the embedded line: a path is made a plain name of the same length."""
    data = mono.replace(b'SPARSE "mono.vmdk"', b'SPARSE "/etc/pass"')
    c, _ = opened(data)
    out = written(c, data)
    assert b"/etc" not in out and b'SPARSE "pass"' in out and len(out) == len(data)
    assert c.detail["extent 0"] == "/etc/pass" and c.names == ["pass"]
    (folder / "out.vmdk").write_bytes(out)
    assert raw_of(folder / "out.vmdk") == raw_of(folder / "mono.vmdk")


# --- damaged tables ------------------------------------------------------------------------------------------------
def damages(data: bytes) -> dict[str, tuple[bytes, list[Hole]]]:
    """Named damages that the other copy of the tables can repair."""
    gd, rgd, n, size = tables(data)
    rng = random.Random(9)
    table = [(at + size + 4 * k) * SECTOR for k in range(n) for at in (gd, rgd)]  # GT 0, RGT 0, GT 1, RGT 1, ..

    def put(*parts: tuple[int, bytes]) -> tuple[bytes, list[Hole]]:
        out = bytearray(data)
        for at, new in parts:
            out[at : at + len(new)] = new
        return bytes(out), []

    return {
        "GD empty": put((gd * SECTOR, bytes(size * SECTOR))),
        "GD foreign": put((gd * SECTOR, rng.randbytes(size * SECTOR))),
        "RGD empty": put((rgd * SECTOR, bytes(size * SECTOR))),
        "both directories foreign": put((gd * SECTOR, b"text" * 128), (rgd * SECTOR, rng.randbytes(SECTOR))),
        "GT empty": put((table[0], bytes(2048))),
        "GT text": put((table[2], b"some words\n" * 186)),
        "GT noise": put((table[0], rng.randbytes(2048)), (table[3], rng.randbytes(2048))),
        "GT one sector noise": put((table[0] + 512, rng.randbytes(512)), (table[1] + 1024, rng.randbytes(512))),
        "GT entry beyond": put((table[0] + 4 * used_entry(data, table[0]), b"\xff\xff\xff\x7f")),
        "GD missing": (data, [(gd * SECTOR, size * SECTOR)]),
        "GT missing": (data, [(table[0], 2048), (table[3] + 512, 700)]),
        "all primary missing": (data, [(gd * SECTOR, (size + 4 * n) * SECTOR)]),
        "all redundant missing": (data, [(rgd * SECTOR, (size + 4 * n) * SECTOR)]),
    }


def used_entry(data: bytes, table: int) -> int:
    return next(i for i in range(512) if struct.unpack_from("<I", data, table + 4 * i)[0])


@pytest.mark.parametrize("name", list(damages(struct.pack("<4sIIQ28xQQ", b"KDMV", 1, 3, SECTORS, 21, 34).ljust(
    60 * SECTOR, b"\1"))))  # fmt: skip
def test_the_other_copy_repairs_the_tables(mono: bytes, guest: bytes, name: str) -> None:
    """Whatever one copy lost, the guest is complete, a check says so, and the written file is the original."""
    data, holes = damages(mono)[name]
    c, reader = opened(data, holes)
    assert read_guest(reader, c.guests[0].map) == guest
    assert failed(c) and not (c.guests[0].map.state == LOST).any()
    out = written(c, data, holes, "rebuilt")
    assert c.size == len(mono) and out == mono


def test_tables_lost_on_both_sides_are_lost(mono: bytes, guest: bytes) -> None:
    """No copy left: the table's 32 MiB are LOST, never zero; the rest reads right."""
    gd, rgd, _, size = tables(mono)
    c, reader = opened(mono, [((at + size + 4) * SECTOR, 2048) for at in (gd, rgd)])
    m = c.guests[0].map
    lost = m.state == LOST
    assert int(m.length[lost].sum()) == 32 * MIB and m.guest_offset[lost].tolist() == [32 * MIB]
    seen = read_guest(reader, m)
    assert seen[: 32 * MIB] == guest[: 32 * MIB] and seen[64 * MIB :] == guest[64 * MIB :]


def test_tables_emptied_on_both_sides_are_lost(mono: bytes) -> None:
    """Zeros over both copies, directories included: where grains may be nothing is said to be empty."""
    gd, rgd, n, size = tables(mono)
    data = bytearray(mono)
    end = (gd + size + 4 * n) * SECTOR
    data[rgd * SECTOR : end] = bytes(end - rgd * SECTOR)
    c, _ = opened(bytes(data))
    assert c.guests[0].map.state.tolist() == [LOST] and "grain directories are sound" in failed(c)


def test_entries_into_metadata_or_claimed_twice_are_lost(mono: bytes) -> None:
    """Both copies wrong alike: no guest byte comes from tables, or from a grain that two entries claim."""
    gd, rgd, _, size = tables(mono)
    data = bytearray(mono)
    table = (gd + size) * SECTOR
    used = [i for i in range(512) if struct.unpack_from("<I", mono, table + 4 * i)[0]]
    value = struct.unpack_from("<I", mono, table + 4 * used[0])[0]
    for at in (table, (rgd + size) * SECTOR):
        struct.pack_into("<I", data, at + 4 * used[1], value)
        struct.pack_into("<I", data, at + 4 * used[2], 21)
    c, _ = opened(bytes(data))
    assert [state_at(c, i * GRAIN) for i in used[:4]] == [LOST, LOST, LOST, DATA]
    assert "every table entry is known" in failed(c)


def test_one_copy_ahead_of_the_other_is_not_changed(mono: bytes) -> None:
    """Sound copies that differ in an entry: the primary one counts, the check says so, both stay as they are."""
    gd, rgd, _, size = tables(mono)
    data = bytearray(mono)
    i = used_entry(mono, (rgd + size) * SECTOR)
    struct.pack_into("<I", data, (rgd + size) * SECTOR + 4 * i, 0)
    c, _ = opened(bytes(data))
    assert state_at(c, i * GRAIN) == DATA and failed(c) == ["both copies of the tables agree"] and c.patches == []


# --- lost headers --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", ["mono.vmdk", "qemu.vmdk", "stream.vmdk", "front.vmdk"])
@pytest.mark.parametrize("how", ["missing", "zero", "noise"])
def test_a_lost_header_is_rebuilt_byte_for_byte(folder: Path, file: str, how: str) -> None:
    """With its descriptor and tables (or grains) a file needs no header."""
    original = (folder / file).read_bytes()
    lost = {"missing": original[:SECTOR], "zero": bytes(SECTOR), "noise": random.Random(1).randbytes(SECTOR)}[how]
    data = lost + original[SECTOR:]
    holes = [(0, SECTOR)] if how == "missing" else []
    c, reader = opened(data, holes)
    expected, known = opened(original)
    assert read_guest(reader, c.guests[0].map) == read_guest(known, expected.guests[0].map)
    assert written(c, data, holes) == original and "header is there" in failed(c)


def test_a_zeroed_grain_file_gets_its_version_back(tmp_path: Path) -> None:
    """Entries of 1 in the tables show that the lost header had the zero-grain flag."""
    path = tmp_path / "z.vmdk"
    run("qemu-img", "create", "-f", "vmdk", "-o", "zeroed_grain=on", path, "8M")
    run("qemu-io", "-f", "vmdk", "-c", "write -P 2 0 192k", "-c", "write -z 64k 64k", path)
    data = path.read_bytes()
    c, _ = opened(bytes(SECTOR) + data[SECTOR:])
    assert written(c, data) == data


def test_header_and_descriptor_lost(folder: Path, mono: bytes, guest: bytes) -> None:
    """The first 4 KiB gone: the directories give the capacity up to 32 MiB, and the written file opens."""
    c, reader = opened(bytes(4096) + mono[4096:])
    assert read_guest(reader, c.guests[0].map)[: len(guest)] == guest
    assert c.virtual_size == 96 * MIB and "rounded up" in c.detail["header"]
    (folder / "r.vmdk").write_bytes(written(c, bytes(4096) + mono[4096:]))
    assert raw_of(folder / "r.vmdk")[: len(guest)] == guest


def test_a_lost_descriptor_is_replaced(folder: Path, mono: bytes, guest: bytes) -> None:
    """QEMU opens no KDMV file without a CID: a plain descriptor is written where the old one is missing."""
    holes = [(SECTOR, 20 * SECTOR)]
    c, reader = opened(mono, holes)
    assert read_guest(reader, c.guests[0].map) == guest and "descriptor is there" in failed(c)
    (folder / "d.vmdk").write_bytes(written(c, mono, holes))
    assert raw_of(folder / "d.vmdk") == guest


def test_an_unfinished_export_is_finished(folder: Path) -> None:
    """open-vmdk writes the magic in lower case first: the file behind it is complete."""
    data = (folder / "front.vmdk").read_bytes()
    c, reader = opened(b"kdmv" + data[4:])
    assert read_guest(reader, c.guests[0].map) == (folder / "raw").read_bytes()
    assert written(c, b"kdmv" + data[4:]) == data


@pytest.mark.parametrize(("at", "value"), [(4, b"\4"), (11, b"\4"), (73, b"\n \n\n"), (73, b"\r\n \r")])
def test_other_layouts_and_text_mode_damage_are_refused(mono: bytes, at: int, value: bytes) -> None:
    """Unknown version or incompatible flag, or a file that went through a text-mode transfer: no map."""
    with pytest.raises(Damaged):
        opened(mono[:at] + value + mono[at + len(value) :])


# --- streams -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", ["qemu.vmdk", "stream.vmdk", "front.vmdk"])
def test_streams_of_three_layouts(folder: Path, file: str) -> None:
    """Every layout gives the guest and the file's end, and qemu-img agrees."""
    data = (folder / file).read_bytes()
    c, reader = opened(data)
    assert read_guest(reader, c.guests[0].map) == (folder / "raw").read_bytes() == raw_of(folder / file)
    assert (c.variant, c.size, failed(c), c.patches) == ("streamOptimized", len(data), [], [])
    m = c.guests[0].map
    assert (m.encoding[m.state == DATA] == ZLIB).all()
    if file == "front.vmdk":
        assert (np.diff(m.file_offset[m.state == DATA]) < 0).any(), "fixture too kind"


def test_a_stream_ends_before_what_follows_it(folder: Path) -> None:
    """A marker stream inside something longer: its own end counts, and another stream behind it is not read."""
    data = (folder / "stream.vmdk").read_bytes()
    c, _ = opened(data + data + bytes(5000))
    assert (c.size, c.size_exact, failed(c)) == (len(data), True, [])


def test_a_stream_without_its_end_is_completed(folder: Path) -> None:
    """Directory, footer and end are written again from the grains: what was lost, if all grains are there."""
    data = (folder / "stream.vmdk").read_bytes()
    gd = struct.unpack_from("<Q", data, len(data) - 1024 + 56)[0]
    # at the GD marker, the last GT marker, the footer marker, the footer, the empty sector behind it
    for cut in (gd - 1, gd - 6, gd + 1, gd + 2, gd + 3):
        c, reader = opened(data[: cut * SECTOR])
        assert read_guest(reader, c.guests[0].map) == (folder / "raw").read_bytes()
        assert written(c, data[: cut * SECTOR]) == data, cut
        assert ("the end is there" in failed(c)) == (cut < gd + 3)


def test_a_stream_cut_among_its_grains_loses_only_what_is_behind(folder: Path) -> None:
    """Grains before the cut are there, those behind it LOST, and the written file opens with them."""
    data = (folder / "stream.vmdk").read_bytes()
    cut = len(data) * 2 // 3
    c, reader = opened(data[:cut])
    m = c.guests[0].map
    last = int(m.guest_offset[m.state == LOST].min())  # the grain that is cut
    raw = (folder / "raw").read_bytes()
    out = folder / "cut.vmdk"
    out.write_bytes(written(c, data[:cut]))
    assert int(m.length[m.state == LOST].sum()) == len(raw) - last
    assert (m.guest_offset[m.state == DATA] < last).all()
    assert read_guest(reader, m)[:last] == raw[:last]


def test_damage_inside_a_stream_costs_the_grains_it_hit(folder: Path) -> None:
    """A hole over some grains: found again behind it, what the tables name and nobody confirms is LOST."""
    data = (folder / "stream.vmdk").read_bytes()
    whole = opened(data)[0].guests[0].map
    at = int(whole.file_offset[whole.state == DATA][5])
    holes = [(at // 4096 * 4096, 8192)]
    c, reader = opened(data, holes)
    m = c.guests[0].map
    lost = m.state == LOST
    raw = (folder / "raw").read_bytes()
    assert 0 < int(m.length[lost].sum()) <= 20 * GRAIN
    assert c.size == len(data) and "no gap between the grains" in failed(c)
    for i in np.flatnonzero(m.state == UNALLOCATED).tolist():
        g, n = int(m.guest_offset[i]), int(m.length[i])
        assert raw[g : g + n] == bytes(n), "a lost grain must not look empty"


@pytest.mark.parametrize("lost", ["GD", "GT", "both"])
def test_lost_tables_of_a_stream(folder: Path, lost: str) -> None:
    """Without directory or tables the markers give every grain, and the written tables are the old ones."""
    data = (folder / "stream.vmdk").read_bytes()
    gd = struct.unpack_from("<Q", data, len(data) - 1024 + 56)[0]
    first = struct.unpack_from("<I", data, gd * SECTOR)[0]
    holes = [(gd * SECTOR, SECTOR)] if lost != "GT" else []
    holes += [(first * SECTOR, 2048)] if lost != "GD" else []
    c, reader = opened(data, holes)
    assert read_guest(reader, c.guests[0].map) == (folder / "raw").read_bytes() and not (
        c.guests[0].map.state == LOST).any()  # fmt: skip
    if lost == "GT":
        assert written(c, data, holes) == data


def test_qemu_streams_without_their_tables_are_walked(folder: Path) -> None:
    """All tables of a front-style stream gone: the markers place the grains, the written tables are the old ones."""
    data = (folder / "qemu.vmdk").read_bytes()
    gd, rgd, n, size = tables(data)
    holes = [((at + size) * SECTOR, 4 * n * SECTOR) for at in (gd, rgd)]
    c, reader = opened(data, holes)
    assert read_guest(reader, c.guests[0].map) == (folder / "raw").read_bytes()
    assert written(c, data, holes) == data


def test_vmdkstream_files(folder: Path) -> None:
    """Streams of Debian's python3-vmdkstream (descriptor of one sector), as one other independent writer."""
    code = "import sys, VMDKstream; VMDKstream.convert_to_stream(sys.argv[1], sys.argv[2])"
    done = run("/usr/bin/python3", "-c", code, folder / "raw", folder / "v.vmdk", check=False)
    if done.returncode:
        pytest.skip(f"python3-vmdkstream is not installed: {done.stderr.strip().splitlines()[-1:]}")
    data = (folder / "v.vmdk").read_bytes()
    c, reader = opened(data)
    assert read_guest(reader, c.guests[0].map)[: SECTORS * SECTOR] == raw_of(folder / "v.vmdk")[: SECTORS * SECTOR]
    assert (c.size, failed(c)) == (len(data), [])


# --- the sweep and salvage -----------------------------------------------------------------------------------------
def sweep(image: bytes) -> list[Evidence]:
    reader = BytesReader(image)
    out: list[Evidence] = []
    assert FORMAT.confirm is not None
    for signature in FORMAT.signatures:
        at = image.find(signature.magic)
        while at >= 0:
            if at % SECTOR == 0:
                found = FORMAT.confirm(reader, at, signature)
                out += [found] if found is not None else []
            at = image.find(signature.magic, at + 1)
    return sorted(out, key=lambda e: e.image_offset)


def test_evidence_of_a_stream_points_to_its_begin(folder: Path) -> None:
    """Header, descriptor, grain tables and footer of one stream all propose the same begin; the footer is no header."""
    data = (folder / "stream.vmdk").read_bytes()
    rows = sweep(bytes(7 * SECTOR) + data)
    assert {r.kind for r in rows} == {"vmdk.header", "vmdk.descriptor", "vmdk.stream-table", "vmdk.footer"}
    assert {r.image_offset - (r.container_offset or 0) for r in rows} == {7 * SECTOR}
    assert [r.container_offset for r in rows if r.kind == "vmdk.footer"] == [len(data) - 1024]


def test_evidence_of_a_sparse_file(mono: bytes) -> None:
    """Header, embedded descriptor and the redundant directory name their places; the CID is the identity."""
    rows = {r.kind: r for r in sweep(mono)}
    assert {k: r.container_offset for k, r in rows.items()} == {
        "vmdk.header": 0, "vmdk.descriptor": 512, "vmdk.directory": 21 * SECTOR}  # fmt: skip
    assert rows["vmdk.header"].identity == rows["vmdk.descriptor"].identity is not None
    assert rows["vmdk.header"].value == SECTORS * SECTOR


@pytest.mark.parametrize("keep", ["footer", "tables"])
def test_a_stream_without_its_front_is_salvaged(folder: Path, keep: str) -> None:
    """Header, descriptor and the first grains overwritten: footer, or grain tables alone, still place the grains."""
    data = (folder / "stream.vmdk").read_bytes()
    gone = 131 * SECTOR
    image = random.Random(3).randbytes(3 * SECTOR + gone) + data[gone:] + bytes(4096)
    if keep == "tables":
        image = image[: 3 * SECTOR + len(data) - 3 * SECTOR] + bytes(4096)
    rows = [r for r in sweep(image) if r.container_offset is not None]
    with pytest.raises(Damaged):
        FORMAT.open(BytesReader(image[3 * SECTOR :]))
    assert FORMAT.salvage is not None
    orphans = list(FORMAT.salvage(BytesReader(image), rows))
    assert len(orphans) == 1
    c, view = orphans[0].container, BytesReader(image[3 * SECTOR :].ljust(orphans[0].container.size, b"\0"))
    check_map(c, view)
    m, raw = c.guests[0].map, (folder / "raw").read_bytes()
    found = np.flatnonzero(m.state == DATA)
    assert len(found) >= len(opened(data)[0].guests[0].map.file_offset) // 4
    for i in found[:-1].tolist():
        g, n = int(m.guest_offset[i]), int(m.length[i])
        part = read_guest(view, type(m)(*(np.array([x]) for x in (0, n, DATA, m.file_offset[i], ZLIB, m.stored[i]))))
        assert part == raw[g : g + n]
    assert (orphans[0].runs[:, 1] - orphans[0].runs[:, 0] == 3 * SECTOR).all()
    if keep == "footer":
        assert c.size == len(data) and written(c, image[3 * SECTOR :])[:SECTOR] == data[:SECTOR]


@pytest.mark.parametrize("decoy", [
    b"KDMV" + bytes(600), b"KDMV\1\0\0\0" + b"\xff" * 600, b"# Disk DescriptorFile\nhello\n",
    b"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\n",
    struct.pack("<QII", 4, 0, 1) + bytes(4096), struct.pack("<2I", 22, 26) + bytes(504),
    struct.pack("<128I", *range(22, 22 + 512, 4)) + bytes(4096),
])  # fmt: skip
def test_decoys_are_no_evidence(decoy: bytes) -> None:
    """A magic alone, in text or before noise, confirms nothing."""
    assert sweep(decoy.ljust(8192, b"\0")) == []


# --- text descriptors ----------------------------------------------------------------------------------------------
def describe_opened(data: bytes) -> Container:
    reader = BytesReader(data)
    c = vmdk_descriptor.FORMAT.open(reader)
    check_map(c, reader)
    return c


def test_descriptors_of_flat_and_split_disks(folder: Path) -> None:
    """qemu-img's descriptors: members with their guest places, an EXTERNAL map, the padded size."""
    for kind, name in (("monolithicFlat", "f-flat.vmdk"), ("twoGbMaxExtentFlat", "f-f001.vmdk")):
        data = convert(folder / "raw", folder / "f.vmdk", kind).read_bytes()
        c = describe_opened(data + bytes(3 * SECTOR))
        assert (c.variant, c.size, c.size_exact, failed(c)) == (kind, len(data), True, [])
        assert [(m.name, m.kind, m.guest_offset, m.length, m.file_offset) for m in c.members] == [
            (name, "flat", 0, SECTORS * SECTOR, 0)]  # fmt: skip
        assert c.guests[0].map.state.tolist() == [EXTERNAL]


def test_extents_of_every_access_and_type() -> None:
    """Offsets of flat extents count in their file, ZERO is a hole, NOACCESS is lost."""
    words = text([(10, "FLAT", "a-f001.vmdk")], "custom", 5).replace(
        b'RW 10 FLAT "a-f001.vmdk"',
        b'RW 10 FLAT "a-f001.vmdk" 63\r\nRW 20 ZERO\nRDONLY 5 SPARSE "b.vmdk"\nNOACCESS 7 FLAT "c.vmdk" 0')  # fmt: skip
    c = describe_opened(words)
    m = c.guests[0].map
    assert m.state.tolist() == [EXTERNAL, HOLE, EXTERNAL, LOST] and m.file_offset.tolist() == [63 * 512, -1, 0, -1]
    assert m.length.tolist() == [n * SECTOR for n in (10, 20, 5, 7)]


def test_a_text_ends_where_its_lines_end() -> None:
    """Slack of the host's block behind the text is not part of the file."""
    words = text([(10, "VMFS", "a-flat.vmdk")], "vmfs", 5)
    for slack in (b"\x01\x02old bytes", b"<xml>not ours</xml>\n", bytes(20) + b"old"):
        c = describe_opened(words + slack)
        assert c.size == len(words) and c.size_exact is (slack[0] == 0)
        assert c.system == "VMware ESXi"


@pytest.mark.parametrize("name", [
    "/etc/passwd", "../../x.vmdk", "C:\\vm\\x.vmdk", "nbd:unix:/run/x", "json:{'driver':'file'}", "/dev/sda",
    "\\\\.\\PhysicalDrive0", "fat:rw:/tmp", "a/..", "ssh://host/x", "file:x.vmdk",
])  # fmt: skip
def test_names_that_lead_elsewhere_are_made_plain(tmp_path: Path, name: str) -> None:
    """No path, device or protocol stays in the written text, in extents or elsewhere; the length stays the same."""
    words = text([(64, "FLAT", name)], "monolithicFlat", 5, 0xABC123, name).replace(
        b"# The Disk", f'changeTrackPath="{name}"\n# The Disk'.encode()).replace(
        f'FLAT "{name}"'.encode(), f'FLAT "{name}" 0'.encode())  # fmt: skip
    c = describe_opened(words)
    out = written(c, words)
    assert len(out) == len(words) and name.encode() not in out
    again = describe_opened(out)
    assert again.parent is None and again.patches == []
    assert all(not set(m.name) & set("/\\:") and m.name not in (".", "..") for m in again.members)
    assert c.parent is not None and c.parent.name == name and c.detail["extent 0"] == name
    if again.members[0].name:
        (tmp_path / again.members[0].name).write_bytes(b"q" * 64 * SECTOR)
        (tmp_path / "t.vmdk").write_bytes(out)
        assert raw_of(tmp_path / "t.vmdk") == b"q" * 64 * SECTOR


def test_a_descriptor_is_led_to_the_files_of_its_case(folder: Path) -> None:
    """`relink` gives the text anew with other extent names, longer or shorter, and qemu-img opens it."""
    (folder / "case-split-00001234.vmdk").write_bytes((folder / "split.vmdk").read_bytes())
    words = text([(SECTORS, "SPARSE", "C:\\vm\\s-s001.vmdk"), (64, "FLAT", "/x/f.vmdk")], "custom", 5, 77, "../p")
    words = words.replace(b'f.vmdk"', b'f.vmdk" 0')
    (folder / "f.vmdk").write_bytes(b"q" * 64 * SECTOR)
    c = describe_opened(words)
    assert c.relink is not None
    new = c.relink({"s-s001.vmdk": ("case-split-00001234.vmdk", 0)})
    again = describe_opened(new)
    assert [m.name for m in again.members] == ["case-split-00001234.vmdk", "f.vmdk"] and again.parent is None
    (folder / "relinked.vmdk").write_bytes(new.replace(b'"custom"', b'"twoGbMaxExtentSparse"'))
    raw = (folder / "raw").read_bytes()  # Seen: qemu-img 7.2 reads zeros behind an extent that ends inside a grain
    assert raw_of(folder / "relinked.vmdk")[: len(raw)] == raw


def test_odd_spellings_of_a_reference_are_found() -> None:
    """QEMU searches the whole text for the word: in comments, behind foreign lines, in any case for other readers."""
    base = text([(64, "SPARSE", "x.vmdk")], "monolithicSparse", 5)
    for extra in (
        b'# parentFileNameHint="/etc/a"\n',
        b'PARENTFILENAMEHINT = "/etc/a"\n',
        b'x\x01parentFileNameHint="/etc/a"',
        b'!!!\nparentFileNameHint="/etc/a"\n',
        b'!!!\nRW 5 FLAT "/etc/a" 0\n',
    ):
        data = (base + extra).ljust(20 * SECTOR, b"\0")
        out = bytearray(data)
        for patch in grammar.safe_patches(data, grammar.parse(data), 0):
            out[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
        assert b"/etc/a" not in out and b"arentFileNameHint" not in out and len(out) == len(data), extra


def test_embedded_and_separate_texts_are_told_apart(mono: bytes) -> None:
    """The text inside a single-file disk is not proposed as a file of its own."""
    words = mono[SECTOR : 21 * SECTOR]
    assert vmdk_descriptor.FORMAT.confirm is not None
    signature = vmdk_descriptor.FORMAT.signatures[0]
    assert vmdk_descriptor.FORMAT.confirm(BytesReader(words), 0, signature) is None
    with pytest.raises(Damaged):
        describe_opened(words)
    flat = text([(10, "VMFS", "a-flat.vmdk")], "vmfs", 5)
    found = vmdk_descriptor.FORMAT.confirm(BytesReader(flat), 0, signature)
    assert found is not None and (found.container_offset, found.identity) == (0, "vmdk-cid:00000005")


def test_a_header_around_a_descriptor_is_external() -> None:
    """Capacity 0: QEMU follows the embedded text to other files, so its names are made plain too."""
    words = text([(64, "FLAT", "/etc/passwd")], "monolithicFlat", 5).replace(b'passwd"', b'passwd" 0')
    data = struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", 1, 3, 0, 128, 1, 20, 512, 0, 0, 128, 0, b"\n \r\n", 0)
    data = data.ljust(SECTOR, b"\0") + words.ljust(20 * SECTOR, b"\0")
    c, _ = opened(data)
    assert c.guests[0].map.state.tolist() == [EXTERNAL] and [m.name for m in c.members] == ["passwd"]
    assert b"/etc" not in written(c, data)


# --- hostile input -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("field", ["capacity", "grain", "gd", "rgd", "overhead", "descriptor", "size", "entries"])
@pytest.mark.parametrize("value", [0, 127, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 2])
@pytest.mark.parametrize("file", ["mono.vmdk", "qemu.vmdk"])
def test_sizes_at_their_extremes(folder: Path, file: str, field: str, value: int) -> None:
    """Every size and offset of the header at its worst values: a valid map or Damaged, at once."""
    at = {"capacity": 12, "grain": 20, "descriptor": 28, "size": 36, "entries": 44, "rgd": 48, "gd": 56, "overhead": 64}
    data = bytearray((folder / file).read_bytes()[: 1 << 20])
    if field == "entries":
        struct.pack_into("<I", data, at[field], value & 0xFFFFFFFF)
    else:
        struct.pack_into("<Q", data, at[field], value)
    try:
        opened(bytes(data))
    except Damaged:
        pass


@pytest.mark.parametrize("file", ["mono.vmdk", "qemu.vmdk", "stream.vmdk", "front.vmdk", "split.vmdk"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30), cut=st.integers(0, 400_000), count=st.integers(0, 12))
def test_mutations_raise_nothing_but_damaged(folder: Path, file: str, seed: int, cut: int, count: int) -> None:
    """Header, text, tables, markers changed anywhere: `open` gives a valid map or Damaged."""
    rng = random.Random(seed)
    data = bytearray((folder / file).read_bytes())
    if cut < 200_000:
        del data[max(SECTOR, cut) :]
    for _ in range(count):
        at = rng.choice((rng.randrange(80), rng.randrange(60 * SECTOR), rng.randrange(len(data)),
                         len(data) - 1 - rng.randrange(2048)))  # fmt: skip
        if 0 <= at < len(data):
            data[at] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
    holes = [(rng.randrange(len(data)), rng.randrange(1, 9000)) for _ in range(rng.randrange(3))]
    try:
        opened(bytes(data), holes)
    except Damaged:
        pass


def test_a_disk_of_the_largest_capacity_costs_little() -> None:
    """2 TiB with tables that are not there: LOST or unallocated in a few runs, no table is held."""
    data = struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", 1, 3, (1 << 32) - 128, 128, 1, 20, 512, 21, 262677, 525440, 0,
                       b"\n \r\n", 0).ljust(1 << 20, b"\0")  # fmt: skip
    c, _ = opened(data)
    assert len(c.guests[0].map) < 10


def test_every_maker_makes_what_it_says(tmp_path: Path) -> None:
    """The independent writers make files of the format and variant that they are listed with."""
    (tmp_path / "raw").write_bytes(distinct(3 * MIB, 8, 0.5))
    for name, maker in MAKERS.items():
        if maker.format != "vmdk":
            continue
        out = tmp_path / f"{name}{maker.extension}"
        maker.make(tmp_path / "raw", out, 1)
        c, reader = opened(out.read_bytes())
        assert (c.format, c.variant) == (maker.format, maker.variant)
        assert read_guest(reader, c.guests[0].map) == (tmp_path / "raw").read_bytes()
