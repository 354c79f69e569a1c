"""Raw disks without a container whose pieces are shuffled: every volume finds a disk, and the rest finds the volume."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers import ext4_disk, run
from tests.host.written import needs
from vmcarve.assemble import raw
from vmcarve.assemble.boot_sectors import BootSectors
from vmcarve.assemble.candidate import Candidate
from vmcarve.assemble.places import Owned, Places, first_rows
from vmcarve.assemble.raw import raw_disks, rivals
from vmcarve.assemble.state import Claims
from vmcarve.assemble.window import Window
from vmcarve.filemap import FileMap
from vmcarve.model import Container, GuestDisk, GuestMap
from vmcarve.registry import formats
from vmcarve.source import open_image
from vmcarve.sweeper import sweep_image

pytestmark = needs("mkfs.ext4", "sfdisk")

MIB = 1 << 20
BLOCK = 4096
SIZE = 26 * MIB
LABELS = ("gpt", "gpt", "dos")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("disks")
    return [ext4_disk(folder, seed, label, SIZE, BLOCK, 70_000) for seed, label in enumerate(LABELS)]


def laid(folder: Path, disks: list[bytes], lengths: list[int], gaps: bool) -> Path:
    """All disks cut in pieces of these lengths in turn, shuffled; noise before, and between where there are gaps."""
    rng = random.Random(4)
    pieces: list[bytes] = []
    for content in disks:
        at, n = 0, 0
        while at < len(content):
            length = lengths[n % len(lengths)]
            pieces.append(content[at : at + length])
            at, n = at + length, n + 1
    rng.shuffle(pieces)
    path = folder / "image"
    with path.open("wb") as out:
        out.write(rng.randbytes(MIB))
        for piece in pieces:
            out.write(piece)
            if gaps and rng.random() < 0.5:
                out.write(rng.randbytes(rng.randrange(1, 40) * BLOCK))
    return path


def found(path: Path) -> list[FileMap]:
    batches: list[pa.RecordBatch] = []
    with open_image(path) as image:
        sweep_image(image, 0, batches.append)
        table = pa.Table.from_batches(batches)
        claims, out = Claims(), list[FileMap]()
        room = np.array([[0, image.size]], np.int64)
        for _, file_map in raw_disks(image, table, claims, {0}, Places.of(table), room,
                                        BootSectors(image, room)):
            claims.add(file_map)
            out.append(file_map)
        return out


def tally(path: Path, file_map: FileMap, content: bytes) -> tuple[float, float]:
    """(right, wrong) share of the disk's blocks that hold something."""
    image = path.read_bytes()
    right = wrong = 0
    for f, n, p, _, _ in file_map.rows():
        for at in range(f, min(f + n, len(content)), BLOCK) if p >= 0 else ():
            there, own = image[p + at - f : p + at - f + BLOCK], content[at : at + BLOCK]
            right += there == own and any(own)
            wrong += there != own
    used = sum(any(content[at : at + BLOCK]) for at in range(0, len(content), BLOCK))
    return right / used, wrong / used


@pytest.mark.parametrize(("lengths", "gaps", "least"), [([MIB], False, 0.95), ([140 * BLOCK, 317 * BLOCK], True, 0.75)],
                         ids=["units of 1 MiB", "any blocks"])
def test_three_disks_of_one_size_come_back(disks: list[bytes], lengths: list[int], gaps: bool, least: float,
                                           tmp_path: Path) -> None:
    """Two with a GPT, one with an MBR that lies far from its volume. Which table is whose nothing tells, so any pairing
    counts; every file system must be there once, nearly whole, and hardly anything else."""
    path = laid(tmp_path, disks, lengths, gaps)
    maps = found(path)
    assert len(maps) == 3
    best = [max(tally(path, m, content) for m in maps) for content in disks]
    assert all(right > least and wrong < 0.02 for right, wrong in best), best


def test_a_table_that_may_be_another_disks_is_not_claimed(disks: list[bytes], tmp_path: Path) -> None:
    """In units of 1 MiB no table lies beside its volume. Of three alike each may be any one's; a single one has but
    one place to go."""
    (tmp_path / "three").mkdir()
    assert [int(m.image_offset[0]) for m in found(laid(tmp_path / "three", disks, [MIB], gaps=False))] == [-1] * 3
    path = laid(tmp_path, disks[:1], [MIB], gaps=False)
    (alone,) = found(path)
    assert path.read_bytes().startswith(disks[0][:BLOCK], int(alone.image_offset[0]))


def test_a_volume_behind_another_disks_table_is_not_its_own(disks: list[bytes], tmp_path: Path) -> None:
    """Units of 1 MiB in random order; by chance one volume's first unit follows the table of another disk."""
    rng = random.Random(6)
    units = [(n, at) for n in range(3) for at in range(0, SIZE, MIB)]
    rng.shuffle(units)
    first = units.index((0, 0))
    units.remove((2, MIB))
    units.insert(first + 1 - (units.index((0, 0)) < first), (2, MIB))
    path = tmp_path / "image"
    path.write_bytes(rng.randbytes(MIB) + b"".join(disks[n][at : at + MIB] for n, at in units))
    assert [int(m.image_offset[0]) for m in found(path)] == [-1] * 3


@pytest.mark.parametrize(("whole", "owns", "kept"), [
    (False, None, False), (False, 32 * MIB, True),  # a volume of which the table says nothing
    (True, None, True), (True, SIZE - 2 * MIB, False),  # the table's own volume is right behind it
])  # fmt: skip
def test_a_table_is_a_broken_containers_only_where_its_volume_may_be(
    disks: list[bytes], whole: bool, owns: int | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A qcow2 of about the disk's size, whose own table is elsewhere, lies right before the disk; owns: its volume."""
    run("qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk", str(34 * MIB))
    front = (tmp_path / "disk").read_bytes()
    front += bytes(-len(front) % BLOCK)
    disk = disks[0] if whole else disks[0][:MIB] + bytes(BLOCK) + disks[0][MIB + BLOCK :]
    (tmp_path / "image").write_bytes(front + disk + bytes(MIB) + (b"" if whole else disks[0][MIB : 2 * MIB]))
    batches: list[pa.RecordBatch] = []
    with open_image(tmp_path / "image") as image:
        sweep_image(image, 0, batches.append)
        table, room = pa.Table.from_batches(batches), np.array([[0, image.size]], np.int64)
        places = Places.of(table)
        row = int(np.flatnonzero(places.guest_offset < 0)[0])
        c = Candidate(0, formats()["qcow2"].open(Window(image, 0, image.size)), FileMap.flow(0, image.size, room),
                      lambda _: None)
        given = [Owned(MIB, owns, row, -9)] if owns else []
        monkeypatch.setattr(raw, "assign", lambda _, of, *__, **___: [given if start == 0 else [] for start, *_ in of])
        found = rivals(image, table, Claims(), set(), places, BootSectors(image, room), [c])
    assert [d.start for d in found if d.container.variant == "gpt"] == ([len(front)] if kept else [])


@pytest.mark.parametrize(("size", "shown", "left"), [
    (SIZE - BLOCK, None, False), (SIZE, None, True), (SIZE, 1, False), (SIZE, 0, True),
])  # fmt: skip
def test_a_volume_in_place_behind_a_table_is_no_smaller_containers(
    disks: list[bytes], size: int, shown: int | None, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole disk, and behind it a container that shows nothing of its guest, or the table of a disk (of this one: its
    copy at the end). Where its disk is too small for the table, or its own table is another one, the table's volume,
    which would fit there, is none of those that it may have."""
    behind = random.Random(1).randbytes(SIZE) if shown is None else bytes(SIZE - MIB) + disks[shown][-MIB:]
    (tmp_path / "image").write_bytes(disks[0] + behind)
    asked: list[set[int]] = []

    def no_volumes(_: object, of: list[tuple[int, Container]], places: Places, *__: object, **___: object
                   ) -> list[list[Owned]]:
        if of and of[0][0] == len(disks[0]):
            asked.append({places.begin(i) for i in first_rows(places)})
        return [[] for _ in of]

    monkeypatch.setattr(raw, "assign", no_volumes)
    batches: list[pa.RecordBatch] = []
    with open_image(tmp_path / "image") as image:
        sweep_image(image, 0, batches.append)
        table, room = pa.Table.from_batches(batches), np.array([[0, image.size]], np.int64)
        c = Candidate(len(disks[0]), Container("test", "", size, [GuestDisk(size, GuestMap.flat(size))]),
                      FileMap.flow(len(disks[0]), size, room), lambda _: None)
        rivals(image, table, Claims(), set(), Places.of(table), BootSectors(image, room), [c])
    assert asked == [{MIB} if left else set()]


@pytest.mark.parametrize("more", [0, 6])
def test_a_volume_does_not_go_to_a_table_that_was_not_made_for_it(more: int, disks: list[bytes], tmp_path: Path
                                                                  ) -> None:
    """A volume in two pieces, and before it a table whose partition is so many MiB longer: its disk's, or another's."""
    table = bytearray(disks[2][:BLOCK])
    sectors = int.from_bytes(table[458:462], "little") + more * (MIB // 512)
    table[458:462] = sectors.to_bytes(4, "little")
    volume, noise = disks[2][MIB : SIZE - MIB], random.Random(5).randbytes(9 * MIB)
    image = tmp_path / "image"
    image.write_bytes(b"".join([noise[:MIB], table, noise[MIB : 2 * MIB], volume[: 10 * MIB], noise[2 * MIB :],
                                volume[10 * MIB :]]))
    assert [int(m.image_offset[0]) for m in found(image)] == [2 * MIB + BLOCK if more else MIB]
