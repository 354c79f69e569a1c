"""When a container is believed as it lies, and which of the maps that the rounds make is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from vmcarve.assemble import solve
from vmcarve.assemble.candidate import Candidate, Metadata
from vmcarve.assemble.content.files import Files
from vmcarve.assemble.gather import of_metadata
from vmcarve.assemble.headers import _up_to_heads  # pyright: ignore[reportPrivateUsage]
from vmcarve.assemble.places import Owned
from vmcarve.assemble.settled import misplaced, reads, settled
from vmcarve.assemble.solve import _keep_best, _with_tables  # pyright: ignore[reportPrivateUsage]
from vmcarve.assemble.state import Claims
from vmcarve.assemble.tails import FileEnds
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, MISSING, Container, GuestDisk, GuestMap, Placer, Region
from vmcarve.source import BytesReader

BLOCK = 4096
BLOCKS = 2000


@dataclass
class Full:
    """A volume that has all of itself in use, and agrees with that."""

    offset: int = 0
    size: int = BLOCKS * BLOCK

    def free(self) -> np.ndarray:
        return np.array([[self.size - BLOCK, BLOCK]], np.int64)


def candidate(ends: list[int], tables: list[tuple[int, int]], start: int = 8 * BLOCK) -> tuple[BytesReader, Candidate]:
    """A flat container at `start` in whose guest a file ends amid each of the blocks `ends`, and the image."""
    data = bytearray(start + BLOCKS * BLOCK)
    for block in range(BLOCKS):
        at = start + block * BLOCK
        data[at : at + BLOCK] = b"x" * BLOCK
        if block in ends:
            data[at + 100 : at + BLOCK] = bytes(BLOCK - 100)
    offsets = np.array(sorted(ends), np.int64) * BLOCK + 100
    size = BLOCKS * BLOCK
    container = Container("test", "", size, [GuestDisk(size, GuestMap.flat(size))])
    c = Candidate(start, container, FileMap.build([(0, size, start, GUESSED, "")]), lambda file_map: container, tables)
    volume: Any = Full()
    c.volumes, c.owned = [volume], [Owned(0, size, 0, 0)]
    c.ends = FileEnds(offsets, np.full(len(ends), 7, np.uint8), offsets[:0])
    return BytesReader(bytes(data)), c


def test_one_run_whose_files_end_where_they_should_is_settled() -> None:
    image, c = candidate(list(range(10, BLOCKS - 10, 40)), [])
    assert settled(image, c, [c])


def test_file_ends_in_front_say_nothing_of_what_lies_behind() -> None:
    """Of a guest that is read through a wrong map behind a break only the files in front are listed; all of those are
    right. Few ends that lie far apart witness as much."""
    image, c = candidate(list(range(10, BLOCKS // 4, 10)), [])
    assert not settled(image, c, [c])
    image, c = candidate([100, 500, 1000, 1500], [])
    assert settled(image, c, [c])


def test_metadata_that_lies_elsewhere_speaks_against_an_order_of_units() -> None:
    """Copies of what is in its place, and places that are one of two, do not."""
    _, c = candidate([], [])
    place = np.arange(100, dtype=np.int64) * 7 * BLOCK
    at = c.start + place
    assert not misplaced(c, 0, (at, place))
    log = c.start + 1900 * BLOCK + np.arange(100) * 512
    assert not misplaced(c, 0, (np.concatenate((at, log)), np.concatenate((place, place))))
    assert not misplaced(c, 0, (np.concatenate((at, at)), np.concatenate((place, place + 1000 * BLOCK))))
    assert misplaced(c, BLOCK, (at, place)) and not misplaced(c, BLOCK, (at, place - BLOCK))
    at[10:20] = at[10:20][::-1].copy()
    assert misplaced(c, 0, (at, place))
    assert not misplaced(c, 0, (at[:13], place[:13]))


def test_tables_at_other_distances_are_breaks_that_nobody_looked_for() -> None:
    """The same container, of which a table was found at another distance than that of its first byte."""
    ends = list(range(10, BLOCKS - 10, 40))
    image, c = candidate(ends, [(64 * BLOCK, 72 * BLOCK)])
    assert settled(image, c, [c]), "where the run has it"
    image, c = candidate(ends, [(64 * BLOCK, 80 * BLOCK)])
    assert not settled(image, c, [c])


def told(c: Candidate, files: int) -> None:
    c.files, c.listed = Files(np.zeros(files, np.int64), np.empty((0, 4), np.int64)), files


def test_a_round_that_loses_what_the_guest_told_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the guest is another one by then: its volumes are others'."""
    image, c = candidate([100], [])
    places: Any = None
    monkeypatch.setattr(solve, "_read_guest", lambda image, c, places: None)
    told(c, 100)
    _keep_best(image, c, places)
    better, worse = c.map, FileMap.build([(0, c.map.size, 16 * BLOCK, GUESSED, "")])
    c.map = worse
    told(c, 95)
    _keep_best(image, c, places)
    assert c.map is worse, "a few files fewer are no loss"
    told(c, 20)
    _keep_best(image, c, places)
    assert c.map is better
    c.map, c.owned = worse, [Owned(0, BLOCKS * BLOCK, 7, 0)]
    _keep_best(image, c, places)
    assert c.map is worse


def test_a_structure_of_several_blocks_places_each() -> None:
    """A Btrfs node of 16 KiB under one checksum: four points that weigh as much as the node, not one block of it."""
    _, c = candidate([], [])
    nothing = np.empty(0, np.int64)
    placer = Placer("", lambda data: (nothing, nothing), 40.0, 4 * BLOCK)
    at = np.array([c.start + 64 * BLOCK, c.start + 80 * BLOCK], np.int64)
    found = Metadata(0, placer, at, np.array([4, 8], np.int64) * BLOCK)
    file_block, delta, bits = of_metadata(c, 0, found, nothing)
    assert file_block.tolist() == [*range(4, 8), *range(8, 12)]
    assert delta.tolist() == [60] * 4 + [72] * 4 and bits.tolist() == [10.0] * 8


def test_a_volume_in_use_that_lists_no_file_is_not_read() -> None:
    """Btrfs whose extent tree is elsewhere calls all used that it gave out to its trees; its superblock is sound."""
    _, c = candidate([], [])
    c.flat = True
    volume: Any = Full()
    c.volumes = [volume]
    assert not reads(c)
    c.files = Files(np.array([4000], np.int64), np.array([[0, 0, 10 * BLOCK, 4000]], np.int64))
    assert reads(c)


def test_an_mbr_alone_settles_nothing() -> None:
    """A raw disk of which only the MBR is there would else keep all that lies behind that from everybody."""
    image, c = candidate([], [])
    data = bytearray(image.read(0, image.size))
    entry = bytes([0, 0, 0, 0, 0x07, 0, 0, 0]) + (64).to_bytes(4, "little") + (8 * (BLOCKS - 8)).to_bytes(4, "little")
    data[c.start : c.start + 512] = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    c.flat, c.volumes, c.owned = True, [], []
    assert not settled(BytesReader(bytes(data)), c, [c])


def test_tables_that_a_round_has_no_place_for_stay_where_they_were() -> None:
    """But for what another container was given meanwhile, and for what the round knows better."""
    _, c = candidate([], [])
    c.container.regions = [Region(10 * BLOCK + 100, 4 * BLOCK, "test.table"), Region(20 * BLOCK, BLOCK, "test.table")]
    old, taken = c.map, Claims()
    taken.add_range(c.start + 11 * BLOCK, c.start + 12 * BLOCK)
    c.map = FileMap.build([(0, 9 * BLOCK, 0, GUESSED, "aligned"), (9 * BLOCK, 11 * BLOCK, -1, MISSING, "not-found"),
                           (20 * BLOCK, old.size - 20 * BLOCK, 12 * BLOCK, GUESSED, "aligned")])
    rows = [(f // BLOCK, n // BLOCK, p if p < 0 else p // BLOCK) for f, n, p, *_ in _with_tables(c, old, taken).rows()]
    assert rows == [(0, 9, 0), (9, 1, -1), (10, 1, 18), (11, 1, -1), (12, 3, 20), (15, 5, -1),
                    (20, BLOCKS - 20, 12)]
    assert taken.holds(c.start + 10 * BLOCK)


def test_what_only_goes_on_ends_where_another_container_begins() -> None:
    """A stream's header is read as it goes on from its first byte; what its units prove is its own all the same."""
    file_map = FileMap.build([(0, 16 * BLOCK, 8 * BLOCK, GUESSED, "continuity"),
                              (16 * BLOCK, 8 * BLOCK, 40 * BLOCK, GUESSED, "decoded")])
    rows = _up_to_heads(file_map, 8 * BLOCK, [8 * BLOCK, 12 * BLOCK, 20 * BLOCK, 44 * BLOCK]).rows()
    assert [(f // BLOCK, n // BLOCK, p if p < 0 else p // BLOCK, rule) for f, n, p, _, rule in rows] == [
        (0, 4, 8, "continuity"), (4, 12, -1, "others"), (16, 8, 40, "decoded")]
