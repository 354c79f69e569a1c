"""Lost headers, written anew: the whole job on an image, and the file that it writes, judged by QEMU.

Also what the search for tables may not do: find disks in noise, or fail on hostile numbers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import vmcarve
from tests.formats.damage import make_guest
from tests.helpers import check_map, run
from vmcarve.assemble import orphans
from vmcarve.assemble.places import Places
from vmcarve.assemble.state import Claims
from vmcarve.errors import Damaged
from vmcarve.model import Clue, TablePieces
from vmcarve.registry import formats
from vmcarve.source import BytesReader, open_image

MIB = 1 << 20
SHAPED = sorted(name for name, fmt in formats().items() if fmt.shapes is not None)


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Guest disks by size in MiB."""
    folder = tmp_path_factory.mktemp("guests")
    return {size: make_guest(folder, size * MIB, 3) for size in (1400, 20_000)}


CASES = {  # driver, options, MiB of the guest, bytes lost at the front
    "qcow2": ("qcow2", [], 1400, 64 << 10),
    "qcow2 of 4 KiB clusters": ("qcow2", ["-o", "cluster_size=4096"], 1400, 4096),
    "qcow2, compressed": ("qcow2", ["-c"], 1400, 4096),
    "qcow2, zstd": ("qcow2", ["-c", "-o", "compression_type=zstd"], 1400, 512),
    "qcow2 of version 2": ("qcow2", ["-o", "compat=0.10"], 1400, 512),
    "qcow2 of 1-bit counts": ("qcow2", ["-o", "refcount_bits=1"], 1400, 4096),
    "qed": ("qed", [], 1400, 512),
    "vdi": ("vdi", [], 1400, 512),
    "vmdk": ("vmdk", [], 1400, 64 << 10),
    "vmdk of 20 GB": ("vmdk", [], 20_000, MIB),
    "vmdk with zeroed grains": ("vmdk", ["-o", "zeroed_grain=on"], 1400, 64 << 10),
}


@pytest.mark.parametrize("case", CASES)
def test_a_lost_front_is_written_anew_and_qemu_reads_the_disk(case: str, guests: dict[int, Path], tmp_path: Path
                                                              ) -> None:
    """QEMU opens what is written by the format's name, and finds the guest that went in; the header is told as ours."""
    driver, options, size, lost = CASES[case]
    raw = guests[size]
    run("qemu-img", "convert", "-q", "-f", "raw", "-O", driver, *options, "-W", "-m", "8", raw, tmp_path / "disk")
    rng = np.random.default_rng(4)
    data = (tmp_path / "disk").read_bytes()
    image = tmp_path / "image"
    image.write_bytes(rng.bytes(MIB + lost) + data[lost:] + bytes(-len(data) % 4096) + rng.bytes(64 << 10))
    done = vmcarve.recover([image], tmp_path / "case")
    rows = [r for r in done.disks() if r["format"] == driver]
    assert len(rows) == 1, [(r["format"], r["disk_id"]) for r in done.disks()]
    written = done.path / rows[0]["path"]
    run("qemu-img", "info", "-f", driver, written)
    assert "identical" in run("qemu-img", "compare", "-f", driver, "-F", "raw", written, raw).stdout
    assert any("header is the file's own" in said for said in rows[0]["checks"])
    assert not rows[0]["exact"]


def test_a_stream_without_its_tables_opens_again(guests: dict[int, Path], tmp_path: Path) -> None:
    """Its first MiB lost: the grains that are left are at their places, the others read as zeros."""
    raw = guests[1400]
    run("qemu-img", "convert", "-q", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw,
        tmp_path / "disk")
    rng = np.random.default_rng(5)
    (tmp_path / "image").write_bytes(rng.bytes(MIB) + (tmp_path / "disk").read_bytes()[MIB:] + rng.bytes(64 << 10))
    done = vmcarve.recover([tmp_path / "image"], tmp_path / "case")
    rows = [r for r in done.disks() if r["format"] == "vmdk"]
    assert len(rows) == 1
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", done.path / rows[0]["path"], tmp_path / "raw")
    unit, same, empty = 64 << 10, 0, 0
    with (tmp_path / "raw").open("rb") as got, raw.open("rb") as want:
        while part := got.read(unit):
            true = want.read(unit)[: len(part)]
            assert part == true or not any(part), "a grain at another's place"
            same += part == true and any(true)
            empty += part != true
    assert same > empty > 0
    sure = [e for e in done.extents(rows[0]["disk_id"], "guest") if e["grade"] == "proven"]
    assert sum(e["length"] for e in sure) == same * unit


def test_a_stream_whose_grain_is_lost_still_converts(guests: dict[int, Path], tmp_path: Path) -> None:
    """A table entry that leads to a destroyed grain is emptied: qemu-img reads the rest instead of stopping there."""
    raw = guests[1400]
    run("qemu-img", "convert", "-q", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw,
        tmp_path / "disk")
    data = bytearray((tmp_path / "disk").read_bytes())
    container = formats()["vmdk"].open(BytesReader(data))
    m = container.guests[0].map
    at = int(m.file_offset[m.file_offset > 0][5]) - 12
    data[at : at + 4096] = np.random.default_rng(6).bytes(4096)
    (tmp_path / "image").write_bytes(bytes(data))
    done = vmcarve.recover([tmp_path / "image"], tmp_path / "case")
    row = next(r for r in done.disks() if r["format"] == "vmdk")
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", done.path / row["path"], tmp_path / "raw")
    got, want = (np.fromfile(path, np.uint8) for path in (tmp_path / "raw", raw))
    assert len(got) == len(want)
    lost = np.unique(np.flatnonzero(got != want) >> 16).tolist()
    assert 1 <= len(lost) <= 4096 // 512 + 1, "grains take a sector at least: no more of them were written over"
    assert all(not got[grain << 16 : grain + 1 << 16].any() for grain in lost), "and they read as zeros"


def test_nothing_is_put_together_from_noise() -> None:
    """Numbers that look like tables, and no guest structure that ties them: no disk."""
    rng = np.random.default_rng(7)
    parts = [rng.bytes(256 << 10)]
    for dtype in ("<u4", ">u4", "<u8", ">u8"):
        for step in (1, 128, 512, 4096, 4097, 65536, MIB):
            parts.append((rng.permutation(1024) * step + step).astype(dtype).tobytes().ljust(8192, b"\0"))
    data = b"".join(p + bytes(-len(p) % 4096) for p in parts)
    reader = BytesReader(data)
    found = orphans.find(reader, np.array([[0, len(data)]]))
    assert {f.format.name for f in found} >= {"qcow1", "qed", "vdi", "vhd", "vmdk", "parallels"}, "enemies too kind"
    none = np.zeros(0, np.int64)
    places = Places(none, none, none, none > 0, none, none, [], [])
    assert list(orphans.rebuilt(reader, places, Claims(), None)) == []


def test_a_table_that_names_nothing_is_no_disk() -> None:
    """A single number that may be a grain directory, and zeros where the tables would be, which agree with anything."""
    data = bytearray(MIB)
    at = 65 * 4096  # a block
    data[at: at + 4] = (22).to_bytes(4, "little")  # a table at sector 22: the directory is in sector 21
    reader = BytesReader(bytes(data))
    space = np.array([[0, len(data)]])
    assert any((f.pieces.own >= 0).any() for f in orphans.find(reader, space)), "an enemy too kind"
    none = np.zeros(0, np.int64)
    places = Places(none, np.zeros(0, np.int64), none, none > 0, none, none, [], [])
    assert list(orphans.rebuilt(reader, places, Claims(), None)) == []


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("seed", range(6))
def test_hostile_clues(name: str, seed: int) -> None:
    """Any origin, size and table: a rebuild gives nothing, or a container whose maps keep their contract."""
    fmt = formats()[name]
    assert fmt.shapes is not None and fmt.rebuild is not None
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (64, 4096), dtype=np.uint8)
    for width in (4, 8):
        row = blocks[rng.integers(0, 64)].view(f"<u{width}")
        row[:] = rng.integers(0, 1 << rng.integers(1, 31), len(row))
    blocks[rng.integers(0, 64)] = 0xFF
    where = np.arange(64, dtype=np.int64) * 4096
    reader = BytesReader(blocks.tobytes())
    batches = [b for b in fmt.shapes(blocks, where) if len(b.image_offset)]
    k = int(rng.integers(1, 600))
    made = TablePieces("any", 1 << int(rng.integers(9, 22)), where[:3], rng.integers(-1, 1 << 50, (3, k)),
                       np.full(3, -1, np.int64))
    batches += [dataclasses.replace(made, kind=b.kind) for b in batches] + [made]
    for pieces in batches:
        first = rng.integers(-1, 1 << int(rng.integers(2, 45)), len(pieces.image_offset))
        for size in (0, 512, 1 << 30, 1 << 41, (1 << 61) + 512):
            for origin in (0, 512 - (64 << 20), int(rng.integers(0, 64)) * 4096, (64 * 4096) - 512):
                try:
                    orphan = fmt.rebuild(reader, Clue(origin, size, pieces, first))
                except Damaged:
                    continue
                except KeyError:  # a kind that the format does not have
                    assert pieces.kind == "any"
                    continue
                if orphan is not None:
                    check_map(orphan.container, BytesReader(b""))


def test_pieces_are_tied_by_two_units(guests: dict[int, Path], tmp_path: Path) -> None:
    """Where a file begins is voted by guest structures of different units; each says the same of a sound file."""
    run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-W", "-m", "8", guests[1400], tmp_path / "disk")
    start = 192 << 10
    (tmp_path / "image").write_bytes(bytes(start) + (tmp_path / "disk").read_bytes())
    case = vmcarve.sweep([tmp_path / "image"], tmp_path / "case")
    with open_image(tmp_path / "image") as image:
        pins, sizes = orphans.pins_of(image, Places.of(case.table("evidence").combine_chunks()))
        assert len(pins) >= 6 and sizes.max() == 1400 * MIB
        found = [f for f in orphans.find(image, np.array([[0, image.size]])) if f.pieces.kind == "qcow2.l2"]
        votes = [f.votes(pins) for f in found if f.pieces.unit == 64 << 10]
    origins, count = votes[0]
    assert origins[0] == start and count[0] >= 2 and (len(count) == 1 or count[1] < count[0])


@pytest.mark.parametrize(("behind", "there"), [(MIB, True), (3 * MIB, False), (88 * MIB, False)])
def test_a_row_of_rising_numbers_far_from_a_disk_is_no_map_of_it(behind: int, there: bool) -> None:
    """A raw disk anywhere behind such a row was given out as a VDI of which every block lies in its place."""
    row = np.full((1, 4096), 0xFF, np.uint8)
    row[0, :128] = np.arange(32, dtype="<u4").view(np.uint8)
    fmt = formats()["vdi"]
    assert fmt.shapes is not None and fmt.rebuild is not None
    (pieces,) = fmt.shapes(row, np.zeros(1, np.int64))
    first = np.where(pieces.image_offset == 0, 0, -1)
    assert (first == 0).sum() == 1
    made = fmt.rebuild(BytesReader(row.tobytes() + bytes(4096)), Clue(behind, 32 * MIB, pieces, first))
    assert (made is not None) == there
