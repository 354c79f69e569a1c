"""FAT12/16/32 (mkfs.vfat, mtools) and exFAT (mkfs.exfat, exfat-fuse), judged by content and the checkers' counts."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcarve.host import exfat, fat
from vmcarve.host._fat_chains import Guess, Heap, Table
from vmcarve.model import RUN_UNWRITTEN, HostKind, HostVolume, Reader
from vmcarve.source import BytesReader, ImageSource

from .written import (
    MIB,
    append_in_turns,
    assert_disjoint,
    blank,
    by_name,
    check_file,
    check_free,
    content,
    loop_device,
    mounted,
    needs,
    run,
    stamped,
)

FAT_TOOLS = needs("mkfs.vfat", "mcopy", "mdel", "fsck.fat")
EXFAT_TOOLS = needs("mkfs.exfat", "mount.exfat-fuse", "fls")
START = 2 * MIB + 512  # the volume does not begin at the image's first byte


@dataclass(repr=False)  # contents are megabytes
class Scene:
    """A volume at START of an image; contents: path -> bytes of all files, live: those that were not deleted."""

    kind: HostKind
    volume: Path
    image: Path
    size: int
    contents: dict[str, bytes]
    live: set[str]
    in_one_piece: set[str]
    before: bytes = b""  # the bare volume before the deletions
    free_clusters: int = -1  # as the driver said after them


def moved(volume: Path, size: int) -> Path:
    image = volume.with_name("image")
    with image.open("wb") as out:
        out.seek(START)
        out.write(volume.read_bytes())
        out.truncate(START + size + MIB)
    return image


def opened(kind: HostKind, reader: Reader, size: int, offset: int = START) -> HostVolume:
    volume = kind.open(reader, offset, size)
    assert volume is not None
    return volume


# --- FAT -----------------------------------------------------------------------------------------------------------
FAT_CASES = {12: (2 * MIB, 1), 16: (16 * MIB, 4), 32: (48 * MIB, 1)}  # bits -> size, sectors per cluster


def _mtools(folder: Path, volume: Path, bits: int) -> tuple[dict[str, bytes], set[str], set[str]]:
    """Holes are made by deleting every other small file; the file that fills them has many fragments."""
    unit = FAT_CASES[bits][1] * 512
    contents: dict[str, bytes] = {}

    def put(name: str, data: bytes) -> None:
        (folder / "x").write_bytes(data)
        run("mcopy", "-o", "-i", volume, folder / "x", f"::{name}")
        contents[name] = data

    run("mmd", "-i", volume, "::Folder with a long name", "::Folder with a long name/SUB")
    put("Folder with a long name/SUB/gone early.img", stamped(1, 0, 40 * unit))
    for k in range(16):
        put(f"f{k}", stamped(10 + k, 0, (3 + k % 3) * unit - 8 * k))
    for k in range(0, 16, 2):
        run("mdel", "-i", volume, f"::f{k}")
        del contents[f"f{k}"]
    if bits == 32:  # else mtools goes on behind the last cluster that it gave
        with volume.open("r+b") as file:
            file.seek(512 + 492)
            file.write((2).to_bytes(4, "little"))
    put("Folder with a long name/fragmented live disk.vmdk", stamped(30, 0, 60 * unit + 64))
    put("whole.vdi", stamped(31, 0, 50 * unit + 8))
    put("Folder with a long name/SUB/Name of one piece.img", stamped(32, 0, 20 * unit))
    put("empty", b"")
    run("mdel", "-i", volume, "::whole.vdi", "::Folder with a long name/SUB/Name of one piece.img")
    run("mdeltree", "-i", volume, "::Folder with a long name/SUB")
    live = {n for n in contents if "SUB" not in n and n != "whole.vdi"}
    return contents, live, {"whole.vdi", "Folder with a long name/SUB/Name of one piece.img"}


@pytest.fixture(scope="module", params=list(FAT_CASES), ids=lambda b: f"fat{b}")
def fat_scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("fat")
    bits = request.param
    size, per_cluster = FAT_CASES[bits]
    volume = blank(folder / "volume", size)
    run("mkfs.vfat", "-F", str(bits), "-s", str(per_cluster), "-n", "HOSTDISK", volume)
    os.environ["MTOOLS_SKIP_CHECK"] = "1"
    contents, live, whole = _mtools(folder, volume, bits)
    yield Scene(fat.HOST, volume, moved(volume, size), size, contents, live, whole)
    shutil.rmtree(folder)


@FAT_TOOLS
def test_fat_live_files_read_back_whole(fat_scene: Scene) -> None:
    """Live files, fragmented ones among them, are found under their long names and read back through their chains."""
    with ImageSource(fat_scene.image) as reader:
        volume = opened(fat.HOST, reader, fat_scene.size)
        found = by_name(volume, deleted=False)
        assert set(found) == fat_scene.live
        for name, file in found.items():
            check_file(file, START + fat_scene.size)
            assert content(reader, file) == fat_scene.contents[name] and file.complete, name
        assert len(found["Folder with a long name/fragmented live disk.vmdk"].runs) > 4, "fixture too kind"


@FAT_TOOLS
def test_fat_deleted_entries_become_guesses(fat_scene: Scene) -> None:
    """A deleted file of one piece is found, also in a deleted folder; short names have lost their first character."""
    with ImageSource(fat_scene.image) as reader:
        files = list(opened(fat.HOST, reader, fat_scene.size).files())
        flags = [f.deleted for f in files]
        assert flags == sorted(flags)
        deleted = {f.name: f for f in files if f.deleted}
        for name in fat_scene.in_one_piece:
            file = deleted[name.replace("/SUB/", "/_UB/").replace("whole.vdi", "_hole.vdi")]
            check_file(file, START + fat_scene.size)
            assert content(reader, file) == fat_scene.contents[name] and file.origin == "fat.direntry"
    for file in files:
        check_file(file, START + fat_scene.size)


@FAT_TOOLS
def test_fat_free_is_what_fsck_counts(fat_scene: Scene) -> None:
    """Free clusters are all clusters less those that fsck.fat counts as used."""
    used, total = (int(n) for n in re.findall(r"(\d+)/(\d+) clusters", run("fsck.fat", "-vn", fat_scene.volume))[-1])
    with ImageSource(fat_scene.image) as reader:
        volume = opened(fat.HOST, reader, fat_scene.size)
        free = volume.free()
        check_free(free, START, START + fat_scene.size)
        assert free[:, 1].sum() == (total - used) * volume.block_size
        assert_disjoint(free, [f for f in volume.files() if not f.deleted])
        assert volume.label == "HOSTDISK" and re.fullmatch("[0-9a-f]{4}-[0-9a-f]{4}", volume.uuid)


@FAT_TOOLS
def test_fat_second_copy_and_backup_boot_sector(fat_scene: Scene) -> None:
    """An unreadable or overwritten first table is replaced by the second, FAT32's boot sector by its backup."""
    data = bytearray(fat_scene.image.read_bytes())
    wanted = [(f.identity, f.name, f.complete, f.runs.tolist())
              for f in opened(fat.HOST, BytesReader(data), fat_scene.size).files()]  # fmt: skip
    boot = fat.parse_boot(bytes(data[START : START + 512]))
    assert boot is not None
    holes = [(START + boot.reserved, boot.table)] + ([(START, 512)] if boot.bits == 28 else [])
    for reader in (BytesReader(bytes(data), holes), None):
        if reader is None:  # nonsense instead of a hole
            data[START + boot.reserved + 4 : START + boot.reserved + 512] = random.Random(2).randbytes(508)
            reader = BytesReader(bytes(data))
        found = [(f.identity, f.name, f.complete, f.runs.tolist())
                 for f in opened(fat.HOST, reader, fat_scene.size).files()]  # fmt: skip
        assert found == wanted


@FAT_TOOLS
def test_fat_directories_that_nothing_names_are_found(fat_scene: Scene) -> None:
    """Where the root directory is lost, what lies below the others is listed all the same."""
    data = fat_scene.image.read_bytes()
    volume = opened(fat_scene.kind, BytesReader(data), fat_scene.size)
    assert isinstance(volume, fat.FatVolume)
    if volume.name == "fat12":
        pytest.skip("clusters of the smallest volumes are not looked through")
    rows = volume._root().rows
    lost = BytesReader(data, [(at, length) for _, at, length, _ in rows.tolist()])
    name = "fragmented live disk.vmdk"
    wanted = next(f for f in volume.live() if f.name.endswith(name))
    found = [f for f in opened(fat_scene.kind, lost, fat_scene.size).live() if f.name.endswith(name)]
    assert [(f.size, f.runs.tolist(), f.complete) for f in found] == [(wanted.size, wanted.runs.tolist(), True)]
    names = [f.name for f in opened(fat_scene.kind, lost, fat_scene.size).live()]
    assert not any(n.endswith("Name of one piece.img") for n in names), "a deleted directory is not in use"


def test_fat_guess_offers_both_readings() -> None:
    """A used cluster amid a deleted file was either there before (skipped) or is a later file's (lost)."""
    heap = Heap(1000, 512, 100)
    guess = Guess(heap, np.array([[10, 4], [16, 20]], np.int64))
    maps = list(guess.maps(11, 512 * 6 - 5))
    assert [(m.tolist(), whole) for m, whole in maps] == [
        ([[0, 1000 + 9 * 512, 3 * 512, 0], [3 * 512, 1000 + 14 * 512, 3 * 512, 0]], True),
        ([[0, 1000 + 9 * 512, 3 * 512, 0], [5 * 512, 1000 + 14 * 512, 512, 0]], False),
    ]
    assert [w for _, w in guess.maps(15, 1024)] == [False] and list(guess.maps(50, 4096)) == []
    assert [w for _, w in guess.maps(30, 1 << 40)] == [False]


@pytest.mark.parametrize("seed", range(20))
def test_table_equals_following_every_entry(seed: int) -> None:
    """Chains through segments are those that following single entries gives, however the table is cut in pieces."""
    rng = random.Random(seed)
    count = rng.randrange(4, 200)
    entries = np.zeros(count + 2, np.uint32)
    for k in range(2, count + 2):
        entries[k] = rng.choice((0, k + 1, k + 1, k + 1, rng.randrange(count + 4), 0x0FFFFFFF, 0x0FFFFFF7))
    cuts = sorted({0, count + 2, *(rng.randrange(count + 2) for _ in range(3))})
    parts = [(a, entries[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
    heap = Heap(0, 512, count)
    table = Table(heap, parts, 0x0FFFFFF8)
    for first in range(2, count + 2):
        table._steps = 10**6
        walked, at = [], first
        while len(walked) < count and heap.holds(at) and entries[at]:
            walked.append(at)
            at = int(entries[at])
        runs, _ = table.chain(first, count)
        assert [c for a, n in runs.tolist() for c in range(a, a + n)] == walked
    free = [c for a, n in table.free.tolist() for c in range(a, a + n)]
    assert free == [k for k in range(2, count + 2) if not entries[k]]


def test_fat12_entries() -> None:
    """Three bytes hold two entries of 12 bits."""
    from vmcarve.host._fat_chains import _decoded

    assert _decoded(bytes((0xF8, 0xFF, 0xFF, 0x03, 0x40, 0x00, 0x05)), 12, 4).tolist() == [0xFF8, 0xFFF, 3, 4]


# --- exFAT ---------------------------------------------------------------------------------------------------------
EXFAT_SIZE = 32 * MIB


@pytest.fixture(scope="module")
def exfat_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("exfat")
    volume = blank(folder / "volume", EXFAT_SIZE)
    run("mkfs.exfat", "-c", "4K", "-L", "Prüf", volume)
    contents: dict[str, bytes] = {}
    with loop_device(volume) as device, mounted(folder / "mnt", "mount.exfat-fuse", device) as top:
        (top / "VMs" / "gone").mkdir(parents=True)
        paths = [top / "VMs/a.vhdx", top / "VMs/gone/b.vmdk", top / "live.vdi"]
        named = append_in_turns(paths, MIB, random.Random(3))
        contents |= {str(p.relative_to(top)): named[p.name] for p in paths}
        for tag, name in enumerate(("whole.vdi", "VMs/gone/name ☃ that needs more than one entry.img", "keep.img"), 50):
            (top / name).write_bytes(stamped(tag, 0, 300 * 1024 + 8))
            contents[name] = stamped(tag, 0, 300 * 1024 + 8)
        (top / "empty").write_bytes(b"")
        contents["empty"] = b""
    before = volume.read_bytes()
    whole = {"whole.vdi", "VMs/gone/name ☃ that needs more than one entry.img"}
    with loop_device(volume) as device, mounted(folder / "mnt", "mount.exfat-fuse", device) as top:
        for name in (*whole, "VMs/a.vhdx", "VMs/gone/b.vmdk"):
            (top / name).unlink()
        (top / "VMs/gone").rmdir()
        free = os.statvfs(top).f_bfree * os.statvfs(top).f_frsize // 4096
    yield Scene(exfat.HOST, volume, moved(volume, EXFAT_SIZE), EXFAT_SIZE, contents,
                {"live.vdi", "keep.img", "empty"}, whole, before, free)  # fmt: skip
    shutil.rmtree(folder)


@EXFAT_TOOLS
def test_exfat_live_files_read_back_whole(exfat_scene: Scene) -> None:
    """Live files read back, by the chain where they are fragmented, as one piece where they say so."""
    with ImageSource(exfat_scene.image) as reader:
        volume = opened(exfat.HOST, reader, EXFAT_SIZE)
        found = by_name(volume, deleted=False)
        assert set(found) == exfat_scene.live and volume.label == "Prüf"
        for name, file in found.items():
            check_file(file, START + EXFAT_SIZE)
            assert content(reader, file) == exfat_scene.contents[name] and file.complete, name
        assert found["live.vdi"].origin == "exfat.chain" and len(found["live.vdi"].runs) > 4
        assert found["keep.img"].origin == "exfat.piece"


@EXFAT_TOOLS
def test_exfat_deleted_files_of_one_piece_are_exact(exfat_scene: Scene) -> None:
    """A deleted file that lay in one piece is whole, under its path, deleted folders included; others are guesses."""
    with ImageSource(exfat_scene.image) as reader:
        files = [f for f in opened(exfat.HOST, reader, EXFAT_SIZE).files() if f.deleted]
        first = {f.name: f for f in reversed(files)}
        assert set(first) == set(exfat_scene.contents) - exfat_scene.live
        for name in exfat_scene.in_one_piece:
            assert content(reader, first[name]) == exfat_scene.contents[name] and first[name].origin == "exfat.piece"
            assert first[name].complete and first[name].times["created"] > 1e9
        assert {f.origin for f in files} == {"exfat.piece", "exfat.direntry"}


@EXFAT_TOOLS
def test_exfat_surviving_chain_is_the_first_candidate(exfat_scene: Scene) -> None:
    """Where the driver left the table alone, a deleted file's chain is followed if it ends where the file does."""
    data = bytearray(exfat_scene.image.read_bytes())
    boot = exfat.parse_boot(exfat_scene.before)
    assert boot is not None
    end = boot.table + boot.table_length
    data[START + boot.table : START + end] = exfat_scene.before[boot.table : end]
    reader = BytesReader(bytes(data))
    files = [f for f in opened(exfat.HOST, reader, EXFAT_SIZE).files() if f.deleted]
    first = {f.name: f for f in reversed(files)}
    for name in ("VMs/a.vhdx", "VMs/gone/b.vmdk"):
        assert first[name].origin == "exfat.chain" and first[name].complete
        assert content(reader, first[name]) == exfat_scene.contents[name]


@EXFAT_TOOLS
def test_exfat_free_is_what_the_driver_counts(exfat_scene: Scene) -> None:
    """Free clusters are those that the driver reported, and no live file lies in them."""
    with ImageSource(exfat_scene.image) as reader:
        volume = opened(exfat.HOST, reader, EXFAT_SIZE)
        free = volume.free()
        check_free(free, START, START + EXFAT_SIZE)
        assert free[:, 1].sum() == exfat_scene.free_clusters * 4096
        assert_disjoint(free, [f for f in volume.files() if not f.deleted])


@EXFAT_TOOLS
def test_exfat_valid_data_length(exfat_scene: Scene) -> None:
    """Bytes beyond the valid data length were never written: they read as zeros, not as what lies there."""
    data = bytearray(exfat_scene.image.read_bytes())
    with ImageSource(exfat_scene.image) as reader:
        at = int(by_name(opened(exfat.HOST, reader, EXFAT_SIZE))["keep.img"].identity.split()[1], 16)
    data[at + 32 + 8 : at + 32 + 16] = (10000).to_bytes(8, "little")
    file = by_name(opened(exfat.HOST, BytesReader(bytes(data)), EXFAT_SIZE))["keep.img"]
    check_file(file, START + EXFAT_SIZE)
    assert file.runs[:, [0, 2, 3]].tolist() == [[0, 10000, 0], [10000, 300 * 1024 + 8 - 10000, RUN_UNWRITTEN]]
    wanted = exfat_scene.contents["keep.img"][:10000] + bytes(300 * 1024 + 8 - 10000)
    assert content(BytesReader(bytes(data)), file) == wanted


@EXFAT_TOOLS
def test_exfat_backup_boot_region(exfat_scene: Scene) -> None:
    """The second boot region stands in for the first; a region whose checksum fails yields to one that holds."""
    data = bytearray(exfat_scene.image.read_bytes())

    def found(*holes: tuple[int, int]) -> list[tuple[str, list[list[int]]]]:
        volume = opened(exfat.HOST, BytesReader(bytes(data), holes), EXFAT_SIZE)
        return [(f.identity, f.runs.tolist()) for f in volume.files()]

    wanted = found()
    assert len(wanted) >= 7 and found((START, 512)) == wanted
    data[START + 88] ^= 1  # ClusterHeapOffset
    assert found() == wanted


# --- hostile input -------------------------------------------------------------------------------------------------
def test_noise_is_no_volume() -> None:
    """Zeros, noise, an empty image and odd offsets are none of ours."""
    noise = random.Random(1).randbytes(MIB)
    for kind in (fat.HOST, exfat.HOST):
        for data in (b"", bytes(MIB), noise, noise[:512]):
            for offset, limit in ((0, len(data)), (512, 1 << 62), (-1, 5), (len(data), 512), (0, 0)):
                assert kind.open(BytesReader(data), offset, limit) is None


def _survives(kind: HostKind, data: bytes) -> None:
    host = kind.open(BytesReader(data), 0, len(data))
    if host is None:
        return
    check_free(host.free(), 0, len(data))
    for file in host.files():
        check_file(file, 1 << 62)


BYTES = st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xE5, 0xFF]) | st.integers(0, 255)
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 20), BYTES, st.sampled_from([1, 1, 2, 8])), min_size=1, max_size=12)


def _changed(data: bytes, places: list[tuple[int, int]], changes: list[tuple[int, int, int]]) -> bytes:
    out = bytearray(data)
    for where, value, count in changes:
        start, length = places[where % len(places)]
        at = start + where // len(places) % length
        out[at : at + count] = bytes([value]) * count
    return bytes(out)


@FAT_TOOLS
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES)
def test_fat_hostile_metadata(fat_scene: Scene, changes: list[tuple[int, int, int]]) -> None:
    """Whatever boot sector, tables and directories say: no exception, sound maps, bounded work."""
    data = fat_scene.volume.read_bytes()[: 3 * MIB]
    boot = fat.parse_boot(data)
    assert boot is not None
    places = [(0, 96), (boot.reserved, min(boot.table, 2048)), (boot.heap - boot.root_bytes, 8192)]
    _survives(fat.HOST, _changed(data, places, changes))


@EXFAT_TOOLS
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES)
def test_exfat_hostile_metadata(exfat_scene: Scene, changes: list[tuple[int, int, int]]) -> None:
    """Whatever boot region, table, bitmap and directories say: no exception, sound maps, bounded work."""
    data = exfat_scene.volume.read_bytes()[: 10 * MIB]
    boot = exfat.parse_boot(data)
    assert boot is not None
    root = boot.heap + (boot.root - 2) * boot.cluster
    _survives(exfat.HOST, _changed(data, [(64, 64), (boot.table, 1024), (root, 1024), (root + 4096, 4096)], changes))
