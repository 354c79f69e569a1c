"""Loose metadata tells whose a volume is: few distances through the right table, many through another one's."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers import run
from vmcarve.assemble import loose as loose_module
from vmcarve.assemble.candidate import Candidate, Metadata
from vmcarve.assemble.gather import of_metadata
from vmcarve.assemble.loose import MOST_ONWARD, Loose, against, placer_of, stated_by, stated_of_several
from vmcarve.assemble.places import Places, assign
from vmcarve.assemble.window import Window
from vmcarve.filemap import FileMap
from vmcarve.model import DATA, GUESSED, LOST, PLAIN, UNALLOCATED, Container, GuestDisk, GuestMap, Placer, Reader
from vmcarve.source import BytesReader, open_image
from vmcarve.sweeper import sweep_image

MIB = 1 << 20
BLOCK = 4096
UNIT = 16 * BLOCK
DISK = 64 * MIB
UNITS = DISK // UNIT


def permuted(order: list[int], lost: range = range(0), absent: range = range(0)) -> GuestMap:
    """A table that stores unit k of the disk behind a header of one block, as number order[k] of the file."""
    state = np.full(UNITS, DATA, np.uint8)
    place = BLOCK + np.array(order, np.int64) * UNIT
    for which, value in ((lost, LOST), (absent, UNALLOCATED)):
        state[list(which)], place[list(which)] = value, -1
    length = np.full(UNITS, UNIT, np.int64)
    return GuestMap.build(np.arange(UNITS, dtype=np.int64) * UNIT, length, state, place,
                          np.full(UNITS, PLAIN, np.uint8), length)


def orders(count: int) -> list[list[int]]:
    """So many orders in which a guest may first have written its units: pieces of it at a time."""
    out: list[list[int]] = []
    for seed in range(count):
        pieces = [list(range(at, min(at + 12, UNITS))) for at in range(0, UNITS, 12)]
        random.Random(seed).shuffle(pieces)
        written = [unit for piece in pieces for unit in piece]
        out.append(np.argsort(written).tolist())
    return out


def test_metadata_of_one_run_lies_at_one_distance_through_the_right_table() -> None:
    """The file lies in two runs on the image: two distances through its own table, one for each unit or so through
    another. What a table has lost tells nothing; what it does not store speaks against it."""
    own, other = orders(2)
    volume_offset = np.arange(0, DISK, UNIT // 2, dtype=np.int64)
    f = BLOCK + np.array(own, np.int64)[volume_offset // UNIT] * UNIT + volume_offset % UNIT
    p = f + np.where(f < DISK // 2, 100 * MIB, 10 * MIB)
    order = np.argsort(p)
    stated = p[order], volume_offset[order]
    right = against(permuted(own), 5 * MIB, 0, stated)
    wrong = against(permuted(other), 5 * MIB, 0, stated)
    assert right == 2 * 16.0 and wrong is not None and wrong > 40 * 16.0
    half = against(permuted(own, lost=range(UNITS // 2)), 5 * MIB, 0, stated)
    assert half is not None and half < wrong / 4, "a table that is lost in part is judged by the rest"
    assert against(permuted(own, lost=range(UNITS)), 5 * MIB, 0, stated) is None
    thin = against(permuted(own, absent=range(30, 40)), 5 * MIB, 0, stated)
    assert thin is not None and thin > right + 20 * 8.0 - 1


def test_a_table_that_stores_little_of_it_is_worse_than_one_of_a_file_in_many_pieces() -> None:
    """The file lies in a piece for each unit: a run for nearly each structure, in its own table as in another. What
    that one does not store can lie nowhere in it, which says no less than that it would be a run."""
    own, other = orders(2)
    volume_offset = np.arange(0, DISK, UNIT, dtype=np.int64)
    pieces = np.array(random.Random(9).sample(range(UNITS), UNITS), np.int64)
    number = np.array(own, np.int64)
    at = np.where(number < UNITS // 2, number // 2 * 2, number)  # in one half of the file two units stay together
    p = BLOCK + (pieces[at] * 2 + number - at) * UNIT
    order = np.argsort(p)
    stated = p[order], volume_offset[order]
    right = against(permuted(own), 5 * MIB, 0, stated)
    assert right is not None and right <= UNITS * 3 // 4 * 16.0
    wrong = against(permuted(other, absent=range(UNITS // 8, UNITS)), 5 * MIB, 0, stated)
    assert wrong is not None and wrong > right + UNITS // 8 * 16.0


def test_a_structure_with_two_places_lies_at_the_one_that_suits() -> None:
    """Two copies of each node (DUP), and nobody knows which one is which: a run of either is one run."""
    p = np.repeat(np.arange(0, DISK // 2, UNIT, dtype=np.int64), 2)
    stated = p, p + np.tile([0, DISK // 2], len(p) // 2)
    assert against(GuestMap.flat(DISK), 0, 0, stated) == 16.0


def test_older_copies_of_structures_say_nothing_against_the_right_table() -> None:
    """A journal of eight units holds copies of what lies elsewhere, some of them several times: each structure has one
    place only, and that is where the others of its run are. As a flat disk the structures would lie in many runs."""
    own, other = orders(2)
    rng = random.Random(7)
    home = np.arange(0, DISK // 2, UNIT // 2, dtype=np.int64)
    journal = np.arange(DISK - 8 * UNIT, DISK, BLOCK, dtype=np.int64)
    place = np.concatenate((home, journal))
    f = BLOCK + np.array(own, np.int64)[place // UNIT] * UNIT + place % UNIT
    volume_offset = np.concatenate((home, np.array(rng.choices(home.tolist(), k=len(journal)), np.int64)))
    order = np.argsort(f)
    stated = f[order] + 9 * MIB, volume_offset[order]
    right = against(permuted(own), 5 * MIB, 0, stated)
    assert right == 16.0
    for table in (permuted(other), GuestMap.flat(DISK)):
        wrong = against(table, 5 * MIB, 0, stated)
        assert wrong is not None and wrong > 20 * 16.0


def test_full_containers_of_one_size_get_the_volumes_whose_order_is_theirs(tmp_path: Path) -> None:
    """Both tables store every unit, so allocation tells nothing, and each volume's begin lies nearer to the other's
    header. Their metadata lies in one run through the own table only."""
    volumes = [tmp_path / f"volume{n}" for n in range(2)]
    for n in range(1500):
        folder = tmp_path / "files" / f"{n // 20}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{n}").write_bytes(b"%d" % n * 1000)
    for volume in volumes:
        volume.write_bytes(bytes(DISK))
        run("mkfs.btrfs", "-q", "-f", "--mixed", "--rootdir", tmp_path / "files", volume)
    rng = random.Random(5)
    heads, bodies, maps = [rng.randbytes(BLOCK) for _ in range(2)], list[bytes](), list[GuestMap]()
    for volume, order in zip(volumes, orders(2), strict=True):
        raw, body = volume.read_bytes(), bytearray(DISK)
        for unit, place in enumerate(order):
            body[place * UNIT : (place + 1) * UNIT] = raw[unit * UNIT : (unit + 1) * UNIT]
        bodies.append(bytes(body))
        maps.append(permuted(order))
    image = b"".join([heads[1], rng.randbytes(3 * BLOCK), bodies[0], heads[0], rng.randbytes(BLOCK), bodies[1]])
    (tmp_path / "image").write_bytes(image)
    batches: list[pa.RecordBatch] = []
    with open_image(tmp_path / "image") as source:
        sweep_image(source, 0, batches.append)
    places = Places.of(pa.Table.from_batches(batches))
    at = [image.index(head) for head in heads]
    containers = [Container("test", "", BLOCK + DISK, [GuestDisk(DISK, m)]) for m in maps]
    found = assign(BytesReader(image), list(zip(at, containers, strict=True)), places)
    begins = [4 * BLOCK, 4 * BLOCK + DISK + 2 * BLOCK]
    assert [[(o.guest_offset, at[k] + o.delta) for o in owned] for k, owned in enumerate(found)] == \
        [[(0, begins[k] - BLOCK)] for k in range(2)]


def test_a_volume_in_pieces_is_read_through_its_own_metadata(tmp_path: Path) -> None:
    """Btrfs: the superblock leads to nodes of the chunk tree, and they to where all others belong."""
    volume = tmp_path / "volume"
    volume.write_bytes(bytes(128 * MIB))
    (tmp_path / "files").mkdir()
    for n in range(2000):
        (tmp_path / "files" / f"file{n}").write_bytes(b"%d" % n * 100)
    run("mkfs.btrfs", "-q", "-f", "--mixed", "--rootdir", tmp_path / "files", volume)
    raw = volume.read_bytes()
    # the first MiB stays, all behind it lies elsewhere
    image = BytesReader(raw[:MIB] + bytes(7 * MIB) + raw[MIB:])
    room = np.array([[0, image.size]], np.int64)
    found, bits = stated_by(Loose(image), {0: (0, len(raw))}, room)[0]
    assert bits == 40.0
    behind = found[1] >= MIB
    assert behind.sum() > 20
    assert {7 * MIB} <= set((found[0] - found[1])[behind].tolist())
    placer = placer_of(Window(image, 0, len(raw)), 0, len(raw))
    assert placer is not None
    first, _ = Loose(image).look([(0, placer)], room)[0]
    assert 0 < len(first) < len(found[0]), "read as one run it tells of the chunk tree's own nodes only"


def test_what_one_volume_alone_may_have_is_as_sure_as_if_it_named_it() -> None:
    """Records that do not name their volume: of those that have one place each, and that no other volume could have,
    one is enough; where another lies that could be it, or another volume could have it, each says little."""
    size = 64 * BLOCK
    container = Container("raw", "gpt", size, [GuestDisk(size, GuestMap.flat(size))])
    map_ = FileMap.build([(0, size, 0, GUESSED, "")])
    c = Candidate(0, container, map_, lambda _: container)
    at = np.array([3, 5, 9, 7], np.int64) * BLOCK
    place = np.array([0, 1, 1, 2], np.int64) * BLOCK
    m = Metadata(0, Placer("", lambda data: (at, place), 10.0), at, place, alone=True)
    shared = stated_of_several([at, np.array([7 * BLOCK + 1024, 7 * BLOCK], np.int64)])
    f, delta, bits = of_metadata(c, 16 * BLOCK, m, shared)
    assert f.tolist() == [16, 17, 17, 18] and (f + delta).tolist() == [3, 5, 9, 7]
    assert bits.tolist() == [40.0, 10.0, 10.0, 10.0]
    m.alone = False
    assert of_metadata(c, 16 * BLOCK, m, shared)[2].tolist() == [10.0] * 4


def test_a_volume_that_reads_the_same_is_asked_once_how_its_metadata_places_itself(monkeypatch: pytest.MonkeyPatch
                                                                                    ) -> None:
    """Rounds ask of the same volumes; only where one begins, or what was found of it, makes it read differently."""
    asked: list[int] = []

    def placer(disk: Reader, guest_offset: int, size: int) -> Placer | None:
        asked.append(size)
        return Placer("key", lambda data: (np.array([BLOCK]), np.array([0])))

    monkeypatch.setattr(loose_module, "placer_of", placer)
    loose = Loose(BytesReader(bytes(8 * BLOCK)))
    room = np.array([[0, 8 * BLOCK]], np.int64)
    first = stated_by(loose, {5: (0, 3 * BLOCK)}, room)
    assert len(asked) == 2, "once as it lies, and once with what was found"
    again = stated_by(loose, {5: (0, 3 * BLOCK)}, room)
    assert len(asked) == 2 and again[5][0][0].tolist() == first[5][0][0].tolist() == [BLOCK]
    stated_by(loose, {5: (BLOCK, 3 * BLOCK)}, room)
    assert len(asked) == 4
    stated_by(loose, {7: (BLOCK, 3 * BLOCK)}, room)
    assert len(asked) == 4, "whatever its row is called"
    elsewhere = stated_by(loose, {5: (0, 3 * BLOCK)}, np.array([[4 * BLOCK, 4 * BLOCK]], np.int64))
    assert len(asked) == 6 and elsewhere[5][0][0].tolist() == [5 * BLOCK], "in another room other things are found"


def test_a_file_that_grew_onward_has_its_runs_in_order() -> None:
    """One structure in each unit, each in a run of its own: through any table so many runs, in order through one. What
    lies on the image in any order tells nothing."""
    own, other = (np.random.default_rng(k).permutation(UNITS).tolist() for k in range(2))
    place = np.arange(0, DISK, UNIT, dtype=np.int64)
    f = BLOCK + np.array(own, np.int64) * UNIT
    grown = f + f // UNIT * 3 * BLOCK + 5 * MIB
    order = np.argsort(grown)
    stated = grown[order], place[order]
    right, wrong = against(permuted(own), 5 * MIB, 0, stated), against(permuted(other), 5 * MIB, 0, stated)
    assert right is not None and wrong is not None and right == wrong - MOST_ONWARD
    any_order = 5 * MIB + BLOCK + np.random.default_rng(3).permutation(UNITS) * (UNIT + 3 * BLOCK)
    order = np.argsort(any_order)
    stated = any_order[order], place[order]
    assert against(permuted(own), 5 * MIB, 0, stated) == against(permuted(other), 5 * MIB, 0, stated)
