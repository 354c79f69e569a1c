"""Deleted host files whose first part is overwritten: their map is known, and what lies where in the guest is found."""

from __future__ import annotations

import random
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers import deleted, ext4_disk, run
from tests.host.written import fat_volume, needs
from tests.makers.vmdk import make_sesparse
from vmcarve.assemble import begins, unit_lay
from vmcarve.assemble import headless as headless_module
from vmcarve.assemble import solve as solve_module
from vmcarve.assemble.align import FREE, UNKNOWN, USED
from vmcarve.assemble.begins import Others, begun
from vmcarve.assemble.candidate import Candidate
from vmcarve.assemble.headless import headless
from vmcarve.assemble.places import Owned
from vmcarve.assemble.state import State
from vmcarve.assemble.unit_lay import composed, solved
from vmcarve.assemble.unit_round import BEGIN, used
from vmcarve.disk import VirtualDisk
from vmcarve.filemap import FileMap, FileView
from vmcarve.model import (
    DATA,
    GUESSED,
    HOLE,
    LOST,
    MISSING,
    PLAIN,
    PROVEN,
    SUPPORTED,
    ZLIB,
    Begin,
    Container,
    GuestDisk,
    GuestMap,
    Reader,
    Stowed,
)
from vmcarve.registry import guests, hosts
from vmcarve.source import BytesReader, ViewSource
from vmcarve.sweeper import sweep_image
from vmcarve.tables import EVIDENCE

pytestmark = needs("mkfs.ext4", "sfdisk", "qemu-img")

NEEDS_BTRFS = pytest.mark.skipif(shutil.which("mkfs.btrfs") is None, reason="no mkfs.btrfs")
MIB = 1 << 20
GRAINS_AT = 6 * MIB  # of an SESparse file: behind headers, directory, tables, free bitmap and back map
UNIT = 64 << 10
SIZE = 26 * MIB
SUPERBLOCK_AT = 64 << 10  # of a Btrfs


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A guest disk with an ext4 of small files at 1 MiB."""
    return ext4_disk(tmp_path_factory.mktemp("disk"), 1, "gpt", SIZE, 1024, 60_000)


def read(state: State) -> tuple[bytes, np.ndarray]:
    """The guest of the only disk, and which of its blocks are said to be known."""
    (item,) = state.done
    guest = item.container.guests[0]
    view = VirtualDisk(FileView(state.image, item.map), guest.map)
    known = np.array([not view.missing(at, 4096) for at in range(0, SIZE, 4096)])
    return view.read(0, SIZE).ljust(SIZE, b"\0"), known


def agreement(got: bytes, known: np.ndarray, disk: bytes, there: np.ndarray) -> tuple[float, float]:
    """Share of the blocks that are still there (and not zero) that are right, and of the known ones that are wrong."""
    a, b = (np.frombuffer(d, np.uint8).reshape(-1, 4096) for d in (got, disk))
    same, full = (a == b).all(axis=1), b.any(axis=1)
    return float((same & known)[full & there].mean()), float((~same & known & there).sum() / known.sum())


def stored(disk: bytes, order: list[int]) -> bytes:
    return b"".join(disk[n * UNIT : (n + 1) * UNIT] for n in order)


@pytest.mark.parametrize("kind", ["copied", "in chunks"])
def test_grains_without_header_and_tables_find_their_places(kind: str, disk: bytes, tmp_path: Path) -> None:
    """A VMDK without its first 256 KiB, empty grains left out; as a copy has them, or in chunks in any order."""
    used = [n for n in range(SIZE // UNIT) if any(disk[n * UNIT : (n + 1) * UNIT])]
    rng = random.Random(2)
    if kind == "in chunks":
        chunks = [used[at : at + 16] for at in range(0, len(used), 16)]
        rng.shuffle(chunks)
        used = [n for chunk in chunks for n in chunk]
    content = bytearray(bytes(UNIT) + stored(disk, used))
    content[: 4 * UNIT] = rng.randbytes(4 * UNIT)
    there = np.ones(SIZE // 4096, np.bool_)
    for n in used[:3]:
        there[n * 16 : (n + 1) * 16] = False
    state, file, file_map, evidence = deleted(tmp_path, bytes(content), "vms/a.vmdk")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    got, known = read(state)
    right, wrong = agreement(got, known, disk, there)
    assert right > (0.98 if kind == "copied" else 0.75)
    assert wrong < 0.01
    item = state.done[0]
    assert item.container.format == "vmdk"
    assert set(item.map.grade) <= {GUESSED, MISSING}  # nothing that was laid out like this is more than a guess
    assert not item.container.rebuild


def texts(rng: random.Random, size: int) -> bytes:
    """Prose, in each file with words of its own."""
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(300)]
    return " ".join(rng.choices(words, k=size // 4)).encode()[:size]


def test_what_nothing_places_by_itself_is_placed_by_what_goes_on(tmp_path: Path) -> None:
    """A VMDK without its first 256 KiB, each of its grains elsewhere: most have no metadata, and no file's end."""
    disk = ext4_disk(tmp_path, 3, "gpt", SIZE, 1024, 900_000, 40, texts)
    used = [n for n in range(SIZE // UNIT) if any(disk[n * UNIT : (n + 1) * UNIT])]
    random.Random(4).shuffle(used)
    content = bytearray(bytes(4 * UNIT) + stored(disk, used))
    state, file, file_map, evidence = deleted(tmp_path, bytes(content), "vms/a.vmdk")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    right, wrong = agreement(*read(state), disk, np.ones(SIZE // 4096, np.bool_))
    assert right > 0.1  # 0.01 where only what lies inside a unit is asked
    assert wrong < 0.01


def blocks_of_a_vhdx(disk: bytes, order: list[int], folder: Path) -> State:
    """What is found of a VHDX of which only these blocks are left, behind a MiB that says nothing."""
    content = bytes(MIB) + b"".join(disk[n * MIB : (n + 1) * MIB] for n in order)
    state, file, file_map, evidence = deleted(folder, content, "a.vhdx")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    return state


def test_units_that_speak_for_themselves_stand_where_the_others_cannot_be_laid(disk: bytes, tmp_path: Path) -> None:
    """The blocks with a superblock and with the table at the disk's end say where they lie, and of the others nobody
    can tell."""
    got, known = read(blocks_of_a_vhdx(disk, [12, 9, 18, 25, 15], tmp_path))
    assert got[9 * MIB : 10 * MIB] == disk[9 * MIB : 10 * MIB]
    assert np.flatnonzero(known).tolist() == [*range(9 * 256, 10 * 256), SIZE // 4096 - 1]


def test_no_unit_stands_alone_where_nothing_tells_where_the_volume_begins(disk: bytes, tmp_path: Path) -> None:
    """Without the table a volume at 0 and one at 1 MiB are told by the same blocks: all of it might lie 1 MiB off."""
    assert not blocks_of_a_vhdx(disk, [12, 9, 18, 15], tmp_path).done


@pytest.mark.parametrize("table", ["gpt", "dos"])
def test_a_volume_that_happens_to_begin_a_file_does_not_begin_its_disk(table: str, tmp_path: Path) -> None:
    """Units in any order, that with the volume's begin first: where the disk's volume begins its own table says, also
    where that is an MBR, which states no place."""
    disk = ext4_disk(tmp_path, 1, table, SIZE, 1024, 60_000)
    order = list(range(SIZE // MIB))
    random.Random(6).shuffle(order)
    order = [1, *[n for n in order if n != 1]]
    content = b"".join([random.Random(7).randbytes(MIB), *(disk[n * MIB : (n + 1) * MIB] for n in order)])
    state, file, file_map, evidence = deleted(tmp_path, content, "a.hds")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    assert state.done[0].container.guests[0].virtual_size == SIZE
    got, known = read(state)
    right, wrong = agreement(got, known, disk, np.ones(SIZE // 4096, np.bool_))
    assert right > 0.7
    assert wrong < 0.01


def in_spans(disk: bytes, order: list[int]) -> bytes:
    """A qcow2 of clusters of 4 KiB without its first MiB, whose L2 tables were handed out in this order."""
    cluster = 4096
    out = bytearray(random.Random(4).randbytes(MIB))
    for span in order:
        at = len(out)
        part = disk[span * 2 * MIB : (span + 1) * 2 * MIB]
        table = np.zeros(512, ">u8")
        data = bytearray()
        for n in range(512):
            block = part[n * cluster : (n + 1) * cluster]
            if any(block):
                table[n] = 1 << 63 | at + cluster + len(data)
                data += block
        out += table.tobytes() + data
    return bytes(out)


def test_spans_of_second_level_tables_find_their_numbers(disk: bytes, tmp_path: Path) -> None:
    """A qcow2 without its first MiB whose L2 tables were handed out in any order: each table's span is placed whole."""
    order = list(range(SIZE // (2 * MIB)))
    random.Random(3).shuffle(order)
    state, file, file_map, evidence = deleted(tmp_path, in_spans(disk, order), "a.qcow2")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    got, known = read(state)
    right, wrong = agreement(got, known, disk, np.ones(SIZE // 4096, np.bool_))
    assert right > 0.85
    assert wrong < 0.01


def test_units_of_lost_tables_are_laid_between_the_spans_of_the_others(disk: bytes, tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the L2 tables are written over as well: their clusters lie between those of the others, and are laid
    when these are."""
    every = headless_module._stowed  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(headless_module, "_stowed", lambda *a: (s for s in every(*a) if s[1].unit == 2 * MIB))
    order = list(range(SIZE // (2 * MIB)))
    random.Random(3).shuffle(order)
    content = bytearray(in_spans(disk, order))
    tables = [at for at in range(MIB, len(content), 4096)
              if content[at : at + 8] == (1 << 63 | at + 4096).to_bytes(8, "big")]
    for at in tables[3], tables[6]:
        content[at : at + 4096] = bytes(4096)
    state, file, file_map, evidence = deleted(tmp_path, bytes(content), "a.qcow2")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    got, known = read(state)
    right, wrong = agreement(got, known, disk, np.ones(SIZE // 4096, np.bool_))
    assert right > 0.95  # 0.75 where only the spans are laid
    assert wrong < 0.01


@pytest.mark.parametrize("unit", [2 * MIB, MIB])
def test_large_units_in_phase_tell_smaller_ones_where_the_volume_begins(unit: int, disk: bytes,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few structures state their place for that to show before the units are laid; units of a MiB tell nothing."""
    monkeypatch.setattr(begins, "_by_phase", lambda *_: False)
    order = list(range(SIZE // unit))
    random.Random(3).shuffle(order)
    view = FileView(BytesReader(b"".join(disk[n * unit : (n + 1) * unit] for n in order)), FileMap.build(
        [(0, SIZE, 0, PROVEN, "host")]))
    starts: dict[str, int] = {}
    assert solved(view, "vhd", Stowed(unit, GuestMap.flat(SIZE)), starts=starts) is not None
    assert list(starts.values()) == ([MIB] if unit == 2 * MIB else [])


@needs("mkfs.vfat", "mcopy")
def test_a_fat_volume_is_found_by_its_directories(tmp_path: Path) -> None:
    """The span with the table of partitions, the boot sectors and what is used of both allocation tables is lost."""
    disk = bytes(MIB) + fat_volume(tmp_path, "-F", "32", "-s", "1") + bytes(MIB)
    there = np.arange(len(disk) // 4096) >= 2 * MIB // 4096
    spans = [n for n in range(1, len(disk) // (2 * MIB)) if any(disk[n * 2 * MIB : (n + 1) * 2 * MIB])]
    random.Random(3).shuffle(spans)
    state, file, file_map, evidence = deleted(tmp_path, in_spans(disk, spans), "a.qcow2")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    (item,) = state.done
    assert item.container.guests[0].virtual_size == len(disk)
    view = VirtualDisk(FileView(state.image, item.map), item.container.guests[0].map)
    known = np.array([not view.missing(at, 4096) for at in range(0, len(disk), 4096)])
    right, wrong = agreement(view.read(0, len(disk)), known, disk, there)
    assert right > 0.9 and wrong < 0.01
    assert not known[:512].any() and set(item.map.grade) <= {GUESSED, MISSING}


def test_clusters_of_extended_tables_are_laid_as_wholes(disk: bytes, tmp_path: Path) -> None:
    """A qcow2 of clusters of 128 KiB without its first MiB, in any order: smaller ones lay out more, and wrong."""
    unit = 128 << 10
    order = [n for n in range(SIZE // unit) if any(disk[n * unit : (n + 1) * unit])]
    random.Random(3).shuffle(order)
    content = random.Random(4).randbytes(MIB) + b"".join(disk[n * unit : (n + 1) * unit] for n in order)
    state, file, file_map, evidence = deleted(tmp_path, content, "a.qcow2")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    assert state.done[0].container.cluster == unit
    got, known = read(state)
    right, wrong = agreement(got, known, disk, np.ones(SIZE // 4096, np.bool_))
    assert right > 0.7
    assert wrong < 0.01


def laid_out(cluster: int, guest_offset: list[int], file_offset: list[int]) -> tuple[float, Container]:
    """A container of units of a size, and how many of its bytes lie somewhere."""
    n = len(guest_offset)
    guest_map = GuestMap.build(guest_offset, [UNIT] * n, [DATA] * n, file_offset)
    return n * UNIT, Container("qcow2", "", SIZE, [GuestDisk(SIZE, guest_map)], cluster=cluster)


def test_larger_units_are_taken_where_smaller_ones_agree_with_them() -> None:
    """Whatever was asked first, and though the smaller ones lay out more; not where these lie as they like, unless
    tables cover half as much."""
    large = laid_out(16 * UNIT, [0, 64 * UNIT], [32 * UNIT + 512, 16 * UNIT + 512])
    agreeing = laid_out(UNIT, [1 * UNIT, 17 * UNIT, 66 * UNIT, 70 * UNIT],
                        [33 * UNIT + 512, 81 * UNIT + 512, 18 * UNIT + 512, 3 * UNIT + 512])
    other = laid_out(UNIT, [1 * UNIT, 17 * UNIT, 66 * UNIT, 70 * UNIT], [n * UNIT + 512 for n in (2, 80, 11, 6)])
    rather = headless_module._rather  # pyright: ignore[reportPrivateUsage]
    spans = laid_out(0, [0, 64 * UNIT], [32 * UNIT, 16 * UNIT])
    assert rather(spans, other) and not rather(other, spans)  # what tables cover lies together
    few = laid_out(0, [0], [32 * UNIT])
    assert rather(other, few) and not rather(few, other)
    assert rather(large, agreeing) and not rather(agreeing, large)
    assert rather(other, large) and not rather(large, other)


def test_a_volume_without_files_wins_over_no_other_way(disk: bytes, tmp_path: Path) -> None:
    """Its head agrees with units of any size that begin with it; where files lie as they should nothing else is."""
    (tmp_path / "raw").write_bytes(bytes(8 * MIB))
    run("mkfs.ext4", "-q", "-F", tmp_path / "raw")
    for content, least in (((tmp_path / "raw").read_bytes(), 0.0), (disk, np.inf)):
        found = solved(BytesReader(content), "vhdx", Stowed(MIB, GuestMap.flat(len(content))))
        assert found is not None and found[0] == least
        assert headless_module._rather(laid_out(UNIT, [0], [0]), found) == (least == 0)  # pyright: ignore[reportPrivateUsage]


def test_each_way_to_stow_a_guest_is_asked_once() -> None:
    """Units of one size are alike in several formats; larger ones come first, those of 63 sectors behind all others."""
    view = BytesReader(bytes(24 * MIB + 5 * 512))
    names = ["parallels", "qcow2", "qed", "vmdk", "raw"]
    every = headless_module._stowed  # pyright: ignore[reportPrivateUsage]
    found = headless_module._by_size(every(view, names))  # pyright: ignore[reportPrivateUsage]
    assert [(name, s.unit) for name, s in found] == [
        ("parallels", MIB), ("qcow2", 128 << 10), ("qcow2", UNIT), ("qcow2", 4096), ("parallels", 63 * 512),
        ("raw", MIB)]


def test_what_is_built_from_tables_is_as_large_as_its_guest_says(tmp_path: Path) -> None:
    """A qcow2 of which the header alone is lost: its size is that of the disk that its clusters tell of, by an MBR."""
    raw, made = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(disk := ext4_disk(tmp_path, 1, "dos", SIZE, 1024, 60_000))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=2M", raw, made)
    content = random.Random(8).randbytes(MIB) + made.read_bytes()[MIB:]
    state, file, file_map, evidence = deleted(tmp_path, content, "a.qcow2")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    guest = state.done[0].container.guests[0]
    assert guest.virtual_size == SIZE
    assert VirtualDisk(FileView(state.image, state.done[0].map), guest.map).read(0, SIZE) == disk


def test_an_sesparse_is_as_large_as_its_directory_says_where_its_back_map_begins_with_a_hole(disk: bytes,
                                                                                         tmp_path: Path) -> None:
    """Where the headers are lost too, only the tables that the directory names tell where the grains begin."""
    (tmp_path / "raw").write_bytes(disk)
    make_sesparse(tmp_path / "raw", tmp_path / "out", 1)
    content = (tmp_path / "out").read_bytes()
    state, file, file_map, evidence = deleted(tmp_path, content, "a.vmdk")
    left = file_map.without([(0, UNIT), (5 * MIB, 5 * MIB + UNIT)], "encrypted")
    headless(state, [(state.views[0], file)], lambda *_: left, evidence)
    assert state.done[0].container.variant == "seSparse"
    got, known = read(state)
    assert known.mean() > 0.95
    assert got == disk


@pytest.mark.parametrize("speaks", [False, True])
@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_is_written_out_whole_lies_as_its_guest_does(whole: bool, speaks: bool, disk: bytes, tmp_path: Path
                                                                 ) -> None:
    """A fixed VDI of a guest that says nothing of itself, or of whose units one speaks, is given out as it stands;
    without its zeros it could lie in any order, and nothing is."""
    rng = random.Random(8)
    guest = b"".join(rng.randbytes(MIB) if n % 3 else bytes(MIB) for n in range(26))
    guest = guest[: 9 * MIB] + disk[9 * MIB : 10 * MIB] + guest[10 * MIB :] if speaks else guest
    (tmp_path / "raw").write_bytes(guest)
    run("qemu-img", "convert", "-f", "raw", "-O", "vdi", "-o", "static=on" if whole else "static=off", tmp_path / "raw",
        tmp_path / "a.vdi")
    content = bytearray((tmp_path / "a.vdi").read_bytes())
    content[: 2 * MIB] = rng.randbytes(2 * MIB)
    state, file, file_map, evidence = deleted(tmp_path, bytes(content), "a.vdi")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    assert len(state.done) == whole
    if whole:
        assert state.done[0].container.guests[0].virtual_size == SIZE
        assert read(state)[0][2 * MIB :] == guest[2 * MIB :]


def btrfs_volume(folder: Path) -> bytes:
    """SIZE bytes with a Btrfs of files from the first on, every block of which has a checksum."""
    rng = random.Random(6)
    tree, volume = folder / "tree", folder / "volume"
    tree.mkdir()
    for n in range(60):
        (tree / f"file{n}").write_bytes(rng.randbytes(rng.randrange(5_000, 200_000)))
    volume.write_bytes(bytes(SIZE))
    run("mkfs.btrfs", "-q", "-s", "4096", "-n", "4096", "-m", "single", "-d", "single", "--mixed", "--rootdir", tree,
        volume)
    return volume.read_bytes()


def test_a_volume_whose_copies_lie_in_no_unit_begins_by_one_elsewhere_in_the_file(disk: bytes) -> None:
    """The units that tables cover have neither the superblock nor its backup; a cluster whose table is lost has it."""
    primary, backup = MIB // UNIT, (MIB + 8 * MIB) // UNIT
    used = [n for n in range(SIZE // UNIT) if any(disk[n * UNIT : (n + 1) * UNIT]) and n not in (0, primary, backup)]
    content = stored(disk, [*used, backup])
    stowed = Stowed(UNIT, GuestMap.flat(len(used) * UNIT))
    view = BytesReader(content)
    assert solved(view, "qcow2", stowed) is None
    found = solved(view, "qcow2", stowed, others=lambda: Others.of(view, sweep(content)))
    assert found is not None
    guest = VirtualDisk(view, found[1].guests[0].map)
    assert np.mean([guest.read(n * UNIT, UNIT) == disk[n * UNIT : (n + 1) * UNIT] for n in used]) > 0.9


@NEEDS_BTRFS
def test_an_sesparse_without_tables_and_back_map_is_laid_by_its_grains(tmp_path: Path) -> None:
    """Grains of 4 KiB in any order: those of a Btrfs say which they are."""
    guest = btrfs_volume(tmp_path)
    (tmp_path / "raw").write_bytes(guest)
    make_sesparse(tmp_path / "raw", tmp_path / "a.vmdk", 5)
    content = (tmp_path / "a.vmdk").read_bytes()
    content = bytes(GRAINS_AT) + content[GRAINS_AT:]
    state, file, file_map, evidence = deleted(tmp_path, content, "a.vmdk")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    right, wrong = agreement(*read(state), guest, np.ones(SIZE // 4096, np.bool_))
    assert right > 0.9
    assert wrong == 0


@NEEDS_BTRFS
def test_what_begins_a_volume_is_there_in_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of 4 KiB, so many that they are laid as runs: a Btrfs without superblock is read by the one that is made
    again, whatever the runs are."""
    guest = btrfs_volume(tmp_path)
    here = [at for at in range(MIB, len(guest), 4096) if any(guest[at : at + 4096])]
    content = b"".join(guest[at : at + 4096] for at in here)
    laid: list[Candidate] = []

    def solve(image: Reader, candidates: list[Candidate], *rest: Any, **named: Any) -> None:
        solve_module.solve(image, candidates, *rest, **named)
        laid.extend(candidates)

    monkeypatch.setattr(unit_lay, "MAX_CELLS", 0)
    monkeypatch.setattr(unit_lay, "solve", solve)
    found = solved(BytesReader(content), "qcow2", Stowed(4096, GuestMap.flat(len(content)), len(guest)))
    assert found is not None
    view = VirtualDisk(BytesReader(content), found[1].guests[0].map)
    assert np.mean([view.read(at, 4096) == guest[at : at + 4096] for at in here]) > 0.95
    made = [(f, n) for f, n, _, _, why in laid[0].map.rows() if why == BEGIN]
    assert made == [(0, SUPERBLOCK_AT + 4096)]


def test_zeros_in_blocks_say_nothing_of_the_order_of_blocks(tmp_path: Path) -> None:
    """A dynamic VHD without head and footer: blocks of 2 MiB that hold little data hold a MiB of zeros too."""
    rng = random.Random(9)
    (tmp_path / "raw").write_bytes(b"".join(rng.randbytes(UNIT) + bytes(2 * MIB - UNIT) for _ in range(13)))
    run("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic", tmp_path / "raw",
        tmp_path / "a.vhd")
    content = bytearray((tmp_path / "a.vhd").read_bytes())
    content[: 2 * MIB], content[-512:] = rng.randbytes(2 * MIB), rng.randbytes(512)
    state, file, file_map, evidence = deleted(tmp_path, bytes(content), "a.vhd")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    assert not state.done


def test_files_that_are_no_disks_are_left_alone(disk: bytes, tmp_path: Path) -> None:
    """Neither a name of another kind, nor a disk's name over bytes without a guest, nor a small file is taken."""
    rng = random.Random(5)
    texts = zlib.compress(b"".join(b"%d lines\n" % rng.randrange(1 << 40) for _ in range(200_000)))
    assert len(texts) > MIB
    for name, content in (("a.tar", bytes(UNIT) + disk), ("a.vmdk", rng.randbytes(4 * MIB)), ("b.vdi", disk[:4096]),
                          ("", texts), ("", rng.randbytes(2 * MIB))):
        folder = tmp_path / f"{name}{len(content)}"
        folder.mkdir()
        state, file, file_map, evidence = deleted(folder, content, name)
        headless(state, [(state.views[0], file)], lambda *_, m=file_map: m, evidence)
        assert not state.done


def sweep(content: bytes) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    sweep_image(ViewSource(BytesReader(content)), 0, batches.append, threads=1)
    return pa.Table.from_batches(batches, EVIDENCE)


def test_a_volume_whose_first_block_is_lost_begins_by_its_copy(disk: bytes) -> None:
    """The superblock of a later group makes the first one again, at the place that its table and units leave."""
    content = disk[8 * MIB :]  # units of 1 MiB, in order, from the one before the second group's superblock on
    found = begun(BytesReader(content), MIB, sweep(content))
    assert found.size == SIZE
    assert found.begins.tolist() == [[MIB, len(content), 2048 + 3 * 64]]
    made = found.reader.read(int(found.begins[0, 1]), 4096)
    probe = guests()["ext"].probe
    volume = probe(BytesReader(made + disk[MIB + 4096 : SIZE - MIB]), 0, SIZE - 2 * MIB)
    whole = probe(BytesReader(disk[MIB : SIZE - MIB]), 0, SIZE - 2 * MIB)
    assert volume is not None
    assert whole is not None
    assert (volume.uuid, volume.size) == (whole.uuid, whole.size)
    assert hosts()["ext4"].open(BytesReader(made + disk[MIB + 4096 : SIZE - MIB]), 0, SIZE - 2 * MIB) is not None


def test_a_copy_that_its_unit_could_not_hold_there_begins_no_volume(disk: bytes) -> None:
    """A log has the superblock with the descriptors behind it, as a volume begins, amid a unit: not where that does."""
    content = bytearray(disk[8 * MIB :])
    at = 3 * MIB + 77 * 4096
    content[at : at + 4096] = disk[MIB : MIB + 4096]
    found = begun(BytesReader(bytes(content)), MIB, sweep(bytes(content)))
    assert found.begins[:, :2].tolist() == [[MIB, len(content)]]
    assert [int(p) for p, v in zip(found.places.image_offset, found.places.volume_offset, strict=True) if v == 0] == [
        len(content)]


def test_a_map_that_is_lost_in_part_calls_nothing_free_or_used_that_it_lost(disk: bytes) -> None:
    """Whatever 64 KiB of the guest are lost: what is still said of the use of a block is what the whole guest says."""
    flat = Container("raw", "", SIZE, [GuestDisk(SIZE, GuestMap.flat(SIZE))])

    def use(lost: int) -> np.ndarray:
        rows = [(0, SIZE, 0, GUESSED, "")] if lost < 0 else [
            (0, lost, 0, GUESSED, ""), (lost, UNIT, -1, MISSING, ""),
            (lost + UNIT, SIZE - lost - UNIT, lost + UNIT, GUESSED, "")]
        c = Candidate(0, flat, FileMap.build(rows), lambda file_map: flat, flat=True)
        c.owned = [Owned(MIB, SIZE - 2 * MIB, 0, 0)]
        return used(BytesReader(disk), c, SIZE // 4096)

    whole = use(-1)
    assert (whole == USED).sum() > 1000
    assert (whole == FREE).sum() > 1000
    unknown = 0
    for lost in range(MIB + UNIT, 3 * MIB, UNIT):
        part = use(lost)
        told = part != UNKNOWN
        assert (part[told] == whole[told]).all()
        unknown += not told[MIB // 4096 : -MIB // 4096].all()
    assert unknown


@pytest.mark.parametrize("name", ["a.vmdk", ""])
def test_a_stream_is_put_together_in_the_file(name: str, tmp_path: Path) -> None:
    """A streamOptimized VMDK whose first 128 KiB are gone has no structure of a guest outside its grains: it is known
    by its name or by them, and its grains follow each other in the file, not on the image."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    guest = np.random.default_rng(4).integers(0, 4, 6 * MIB, np.uint8).tobytes()
    raw.write_bytes(guest)
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, out)
    content = bytearray(out.read_bytes())
    content[: 2 * UNIT] = random.Random(1).randbytes(2 * UNIT)
    state, file, file_map, evidence = deleted(tmp_path, bytes(content), name)
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    (item,) = state.done
    view = VirtualDisk(FileView(state.image, item.map), item.container.guests[0].map)
    got = view.read(0, len(guest))
    assert got[MIB:] == guest[MIB:]
    assert PROVEN not in item.map.grade and SUPPORTED not in item.map.grade


def test_maps_compose_and_what_is_in_no_unit_is_lost() -> None:
    """Plain units are cut where they must; an encoded one is there as a whole or not at all; a hole tells nothing."""
    inner = GuestMap.build([0, 100, 200, 300], [100] * 4, [DATA, HOLE, DATA, DATA], [1000, -1, 5000, 7000],
                           [PLAIN, PLAIN, ZLIB, ZLIB], [100, 100, 31, 37])
    outer = FileMap.build([(0, 150, 50, GUESSED, "a"), (150, 10, -1, MISSING, "b"), (160, 100, 200, GUESSED, "c"),
                           (260, 50, 300, GUESSED, "d")])
    m = composed(outer, inner)
    assert list(zip(m.guest_offset.tolist(), m.length.tolist(), m.state.tolist(), m.file_offset.tolist(),
                    m.stored.tolist(), strict=True)) == [
        (0, 50, DATA, 1050, 50), (50, 110, LOST, -1, 110), (160, 100, DATA, 5000, 31), (260, 50, LOST, -1, 50)]




def told_by_nodes(stated: list[tuple[int, int]], unit: int, starts: dict[str, int], monkeypatch: pytest.MonkeyPatch,
                  *, whole: bool = False, cut: bool = False) -> int:
    """Where a volume of 16 MiB is taken to begin of which nothing is left but structures (offset, place in it)."""
    made = Begin(bytes(4096), size=16 * MIB, identity="name", stated=tuple(stated))
    monkeypatch.setattr(begins, "_by_metadata", lambda *_: {("btrfs", made.identity): made})
    found = begun(BytesReader(bytes(32 * MIB)), unit, sweep(bytes(8192)), starts, whole=whole, cut_short=cut)
    return found.table[1][0][0]


def test_a_volume_begins_where_units_of_another_size_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of 2 MiB tell a volume at 1 MiB from one without a table, and units of 64 KiB then know it; alone they say
    nothing."""
    starts: dict[str, int] = {}
    mixed = [(place + 7 * UNIT, place) for place in range(0, 4 * MIB, UNIT)]
    assert told_by_nodes(mixed, UNIT, starts, monkeypatch) == 0 and not starts
    stated = [(place + 3 * MIB, place) for place in range(0, 4 * MIB, UNIT)]
    assert told_by_nodes(stated, 2 * MIB, starts, monkeypatch) == MIB and starts == {"name": MIB}
    assert told_by_nodes(mixed, UNIT, starts, monkeypatch) == MIB


def test_a_disk_without_its_end_may_have_had_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table there is a copy at the disk's end: where units come in the disk's order, by and large, and that end is
    lost too, most disks have one. In any order the copy would be anywhere."""
    place = np.arange(64).reshape(-1, 4)[:, ::-1].ravel()
    near = [(n * UNIT, int(at) * UNIT) for n, at in enumerate(place)]
    assert told_by_nodes(near, UNIT, {}, monkeypatch) == 0
    assert told_by_nodes(near, UNIT, {}, monkeypatch, cut=True) == MIB
    assert told_by_nodes(near[:5], UNIT, {}, monkeypatch, cut=True) == 0
    mixed = [(n * UNIT, n * 29 % 64 * UNIT) for n in range(64)]
    assert told_by_nodes(mixed, UNIT, {}, monkeypatch, cut=True) == 0


def test_what_lies_farther_behind_than_in_its_volume_tells_of_something_before_it(monkeypatch: pytest.MonkeyPatch
                                                                                 ) -> None:
    """In a file in the disk's order; where units lie in any order it tells nothing."""
    rising = [(n * MIB + at, (n - 1 + n // 3) * MIB + at) for n in range(1, 9) for at in (0, 4096)]
    assert told_by_nodes(rising, MIB, {}, monkeypatch) == MIB
    left_out = [(p, v + 2 * MIB) for p, v in rising]
    assert told_by_nodes(left_out, MIB, {}, monkeypatch) == 0
    mixed = [(p, v) for (p, _), (_, v) in zip(rising, rising[::-1], strict=True)]
    assert told_by_nodes([(p // MIB * MIB + v % MIB, v) for p, v in mixed], MIB, {}, monkeypatch) == 0


@pytest.mark.parametrize(("stated", "place"), [([(MIB, 0)], MIB), ([(9 * MIB, 8 * MIB)], MIB), ([(5 * MIB, 0)], 0),
                                               ([(0, 0), (8 * MIB, 8 * MIB)], 0)])
def test_a_volume_in_its_place_behind_a_table_has_one(stated: list[tuple[int, int]], place: int,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """By its first structure or a copy where a dense file has it; at any other place nothing is told, nor where what
    lies before may be the container's header."""
    assert told_by_nodes(stated, MIB, {}, monkeypatch) == place
    assert told_by_nodes(stated, MIB, {}, monkeypatch, whole=True) == 0
