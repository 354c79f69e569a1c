"""A FAT volume whose first part is lost, with both tables: its directories tell what its boot sector said."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers import ext4_disk
from vmcarve.assemble.begins import begun
from vmcarve.guest import fat as guest
from vmcarve.host import _fat_begin
from vmcarve.host._fat_begin import begins
from vmcarve.host._fat_directory import KIND, SIGNATURE, confirm_batch
from vmcarve.host.fat import FatVolume, open_volume
from vmcarve.model import Begin, Cut, Evidence
from vmcarve.source import BytesReader, ViewSource
from vmcarve.sweeper import sweep_image
from vmcarve.tables import EVIDENCE

from .written import fat_volume, needs

pytestmark = needs("mkfs.vfat", "mcopy")

MIB = 1 << 20
SIZE = 42 * MIB  # of a disk whose volume of 40 MiB begins at 1 MiB


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return fat_volume(tmp_path_factory.mktemp("fat32"), "-F", "32", "-s", "1")


@pytest.fixture(scope="module")
def disk(volume: bytes) -> bytes:
    """Without a table."""
    return bytes(MIB) + volume + bytes(MIB)


def swept(content: bytes) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    sweep_image(ViewSource(BytesReader(content)), 0, batches.append, threads=1)
    return pa.Table.from_batches(batches, EVIDENCE)


def found(content: bytes, cut: Cut) -> list[Begin]:
    rows = [Evidence(**{k: v for k, v in r.items() if k not in ("source", "module")})
            for r in swept(content).to_pylist() if r["kind"] == KIND]
    return list(begins(BytesReader(content), rows, cut))


def heap_of(volume: bytes) -> int:
    opened = open_volume(BytesReader(volume), 0, len(volume))
    assert isinstance(opened, FatVolume)
    return opened._heap.start


def units_of(disk: bytes, unit: int, lost: int, *, shuffled: bool = False) -> bytes:
    """The units of a disk that hold anything and lie behind its first `lost` bytes, those before as holes."""
    parts = [disk[at : at + unit] for at in range(lost // unit * unit, len(disk), unit)]
    parts = [p for p in parts if any(p)]
    if shuffled:
        random.Random(3).shuffle(parts)
    return bytes(lost // unit * unit) + b"".join(parts)


def test_directories_tell_where_they_lie(volume: bytes) -> None:
    """What the sweep says of each is its own number; what only looks like one is passed over."""
    start = heap_of(volume)
    rows = [(e["image_offset"] + k * 512, e["value"] + k) for e in swept(volume).to_pylist() if e["kind"] == KIND
            for k in range(e["count"])]  # fmt: skip
    assert len(rows) == 60
    assert all(at == start + (number - 2) * 512 for at, number in rows)
    head = np.frombuffer(volume[rows[0][0] :][:64], np.uint8)
    wrong = np.stack([head] * 5)
    for row, (at, value) in enumerate([(11, 0x20), (11, 0x18), (26, 0), (28, 1), (60, 1)]):
        wrong[row, at] = value
        wrong[row, [20, 21, 27]] = 0 if at == 26 else wrong[row, [20, 21, 27]]
    assert confirm_batch(wrong, np.arange(5), SIGNATURE) is None


@pytest.mark.parametrize("shuffled", [False, True])
def test_large_units_leave_one_volume_that_is_likely(shuffled: bool, volume: bytes, disk: bytes) -> None:
    """Tables that begin a unit later would be those of a volume four times as large."""
    units = units_of(disk, 2 * MIB, 2 * MIB, shuffled=shuffled)
    (begin,) = found(units, Cut(2 * MIB))
    assert (begin.before, begin.size, begin.identity) == (MIB, 40 * MIB, "")
    assert len(begin.stated) >= 40
    assert all((p - v - MIB) % (2 * MIB) == 0 for p, v in begin.stated)
    assert all(volume[v : v + 11] == b".          " for _, v in begin.stated)
    whole = BytesReader(begin.data + volume[len(begin.data) :])
    probed = guest.probe(whole, 0, len(volume))
    assert probed is not None and (probed.kind, probed.size) == ("fat32", 40 * MIB)
    opened, right = open_volume(whole, 0, len(volume)), open_volume(BytesReader(volume), 0, len(volume))
    assert opened is not None and right is not None
    assert [(f.name, f.runs.tolist()) for f in opened.live()] == [(f.name, f.runs.tolist()) for f in right.live()]


def test_small_units_tell_it_only_with_a_partition(disk: bytes) -> None:
    """Tables of units of 4 KiB more are those of volumes of 41, 42 or 43 MiB."""
    units = units_of(disk, 4 << 10, 2 * MIB)
    assert found(units, Cut(4 << 10)) == []
    (begin,) = found(units, Cut(4 << 10, ((MIB, 40 * MIB - 512),)))
    assert (begin.before, begin.size) == (MIB, 40 * MIB)
    assert found(units, Cut(4 << 10, ((5 * MIB, 400 * MIB),))) == []


def test_sizes_that_people_choose_tell_it_in_units_of_64_kib(disk: bytes) -> None:
    """The next volume of whole MiBs that has its clusters at such a place is one of 105, and others are hardly made."""
    unit = 64 << 10
    units = units_of(disk, unit, 2 * MIB, shuffled=True)
    (begin,) = found(units, Cut(unit))
    assert (begin.before, begin.size) == (MIB, 40 * MIB)
    assert found(units, Cut(unit, ((5 * MIB, 400 * MIB),))) == []


def test_where_the_tables_lie_in_their_units_tells_how_long_they_are(disk: bytes) -> None:
    """Of units of 32 KiB two volumes of whole MiBs are likely; the second table begins elsewhere in a unit in one."""
    unit = 32 << 10
    assert found(units_of(disk, unit, 2 * MIB), Cut(unit)) == []
    (begin,) = found(units_of(disk, unit, MIB + (64 << 10), shuffled=True), Cut(unit))
    assert (begin.before, begin.size) == (MIB, 40 * MIB)


def test_units_of_zeros_speak_for_no_other_volume(disk: bytes) -> None:
    """A sparse file leaves a dozen of its units out: a volume of FAT16 whose clusters lie so much nearer is none."""
    unit = 64 << 10
    used = [n for n in range(SIZE // unit) if any(disk[n * unit : (n + 1) * unit])]
    sparse = used[-30:-18]
    left = bytearray(disk)
    for n in sparse:
        left[n * unit : (n + 1) * unit] = bytes(unit)
    (begin,) = found(units_of(bytes(left), unit, 2 * MIB), Cut(unit, gapless=True))
    assert (begin.before, begin.size) == (MIB, 40 * MIB)


def test_units_of_63_sectors_do_not_take_one_size_of_a_cluster_for_another(disk: bytes) -> None:
    """A cluster of 64 sectors leads to the same sector of a unit as one of one sector does, but to another unit."""
    unit = 63 * 512
    units = units_of(disk, unit, 2 * MIB, shuffled=True)
    (begin,) = found(units, Cut(unit, ((MIB, 40 * MIB),)))
    assert (begin.before, begin.size) == (MIB, 40 * MIB)


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that people choose, and clusters that formatters make of these, are no likelier than others."""
    monkeypatch.setattr(_fat_begin, "ROUND", _fat_begin.ROUND_OF_ALL)
    monkeypatch.setattr(_fat_begin, "USUAL", 0.5)


@pytest.mark.usefixtures("any_size")
def test_the_order_of_units_tells_it(disk: bytes) -> None:
    """Units of 1 MiB: the disk could be bare, and its tables longer. From front to back no room is left for either."""
    units = units_of(disk, MIB, 4 * MIB)
    (begin,) = found(units, Cut(MIB, gapless=True))
    assert (begin.before, begin.size) == (MIB, 40 * MIB)
    assert found(units, Cut(MIB)) == []


@pytest.mark.usefixtures("any_size")
def test_how_many_units_there_are_tells_it(disk: bytes) -> None:
    """Longer tables would push the clusters into one unit more than there are. With two of them more they may have."""
    units = units_of(disk, MIB, 4 * MIB, shuffled=True)
    (begin,) = found(units, Cut(MIB, gapless=True))
    assert (begin.before, begin.size) == (MIB, 40 * MIB)
    assert found(units + random.Random(6).randbytes(2 * MIB), Cut(MIB, gapless=True)) == []


def test_directories_that_do_not_agree_tell_nothing(disk: bytes) -> None:
    """Some of another volume, or too few."""
    units = units_of(disk, 2 * MIB, 2 * MIB)
    rows = [Evidence(KIND, 7 * MIB + 512 * 11 * n, 512, value=100 + 97 * n) for n in range(20)]
    assert list(begins(BytesReader(units), rows, Cut(2 * MIB))) == []
    rows = [Evidence(KIND, 7 * MIB + 512 * n, 512, value=100 + n) for n in (0, 5)]
    assert list(begins(BytesReader(units), rows, Cut(2 * MIB))) == []


@pytest.mark.parametrize("unit", [64 << 10, MIB, 2 * MIB, 32 * MIB])
@pytest.mark.parametrize("cluster", ["2", "4"])
def test_a_volume_of_fat16_is_taken_for_no_other(cluster: str, unit: int, tmp_path: Path) -> None:
    volume = fat_volume(tmp_path, "-F", "16", "-s", cluster)
    start = heap_of(volume)
    disk = bytes(MIB) + volume + bytes(MIB)
    for begin in found(units_of(disk, unit, 2 * MIB), Cut(unit, gapless=True)):
        opened = open_volume(BytesReader(begin.data + volume[len(begin.data) :]), 0, begin.size)
        assert isinstance(opened, FatVolume)
        assert begin.before + opened._heap.start == MIB + start


@pytest.mark.parametrize("unit", [64 << 10, MIB, 2 * MIB])
def test_clusters_at_a_round_place_do_not_tell_how_much_is_reserved(unit: int, tmp_path: Path) -> None:
    """What Windows makes: so many reserved sectors that cluster 2 lies at 4 MiB."""
    tables = 2 * 577  # sectors of both
    volume = fat_volume(tmp_path, "-F", "32", "-s", "1", "-R", str(8 * MIB // 1024 - tables))
    assert heap_of(volume) == 4 * MIB
    disk = bytes(MIB) + volume + bytes(MIB)
    assert found(units_of(disk, unit, 2 * MIB), Cut(unit, gapless=True)) == []


def test_a_volume_without_name_is_not_added_to_others(tmp_path: Path, disk: bytes) -> None:
    """Where a volume is known, directories of FAT may lie in an image in one of its files."""
    other = ext4_disk(tmp_path, 1, "gpt", 26 * MIB, 1024, 60_000)
    content = other + units_of(disk, 2 * MIB, 2 * MIB)[2 * MIB :]
    told = begun(BytesReader(content), 2 * MIB, swept(content))
    assert "fat" not in told.places.module and told.size == 26 * MIB
    alone = content[len(other) :]
    told = begun(BytesReader(alone), 2 * MIB, swept(alone))
    assert set(told.places.module) == {"fat"} and told.size == SIZE and len(told.begins)
