"""The gaps of files, in the file's order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vmcarve.assemble.content import Guest
from vmcarve.assemble.content.files import Files
from vmcarve.assemble.content.spans import FREED, Span
from vmcarve.assemble.content.spans import gaps as gaps_of
from vmcarve.disk import VirtualDisk
from vmcarve.model import DATA, GuestMap
from vmcarve.source import BytesReader

BLOCK = 4096
SIZE = 400 * BLOCK
START = 3 * BLOCK


def guest(runs: list[tuple[int, int, int]], sure: list[tuple[int, int, int]], size: int,
          vacant: list[tuple[int, int]] | None = None) -> Guest:
    """One file of extents (offset, guest_offset, bytes)."""
    rows = np.array([(0, *r) for r in runs], np.int64)
    disk = VirtualDisk(BytesReader(bytes(SIZE)), GuestMap.flat(SIZE))
    return Guest(START, disk, [(0, SIZE)], Files(np.array([size], np.int64), rows),
                 np.array(sure, np.int64).reshape(-1, 3), vacant=np.array(vacant or [], np.int64).reshape(-1, 2))


def gaps(guest: Guest) -> list[Span]:
    return gaps_of(guest, guest.files.in_container(guest.disk.map))


def test_a_gap_goes_on_from_one_extent_to_the_next() -> None:
    """Blocks 10 to 29 and 100 to 119 of the disk: the first five and the last five are placed."""
    runs = [(0, 10 * BLOCK, 20 * BLOCK), (20 * BLOCK, 100 * BLOCK, 20 * BLOCK)]
    (span,) = gaps(guest(runs, [(8, 15, 50), (115, 130, 7)], 40 * BLOCK))
    assert span.blocks.tolist() == [*range(15, 30), *range(100, 115)]
    assert span.borders == ((15, 0),) and (span.left, span.right) == (50, 7)
    assert span.inside_left and span.inside_right and span.before[0] == span.behind[0] == -1


def test_what_is_beside_in_the_file_is_known_though_it_lies_elsewhere() -> None:
    """All of the first extent is placed, nothing of the second, and the third again."""
    runs = [(0, 10 * BLOCK, 20 * BLOCK), (20 * BLOCK, 100 * BLOCK, 20 * BLOCK), (40 * BLOCK, 300 * BLOCK, 5 * BLOCK)]
    (span,) = gaps(guest(runs, [(10, 30, 50), (300, 305, -200)], 45 * BLOCK))
    assert span.blocks.tolist() == list(range(100, 120)) and not span.inside_left and not span.inside_right
    assert span.before == (29 + 50 + 3, 0) and span.behind == (300 - 200 + 3, 0)


def test_a_part_of_a_block_between_extents_is_counted() -> None:
    """Guest blocks of 1 KiB: the extents begin and end amid a block of the container."""
    runs = [(0, 10 * BLOCK + 1024, 20 * BLOCK), (20 * BLOCK, 100 * BLOCK + 1024, 20 * BLOCK)]
    (span,) = gaps(guest(runs, [], 40 * BLOCK))
    assert span.blocks.tolist() == [*range(11, 30), *range(101, 121)]
    assert span.borders == ((19, BLOCK),)


def test_one_run_around_a_gap_leaves_none() -> None:
    assert gaps(guest([(0, 10 * BLOCK, 20 * BLOCK)], [(8, 15, 50), (20, 35, 50)], 20 * BLOCK)) == []


def test_free_space_is_a_gap_of_no_file() -> None:
    spans = gaps(guest([(0, 10 * BLOCK, 5 * BLOCK)], [(10, 25, 4)], 5 * BLOCK, [(15, 60)]))
    (span,) = spans
    assert (span.file, span.blocks.tolist(), span.left, span.inside_left) == (FREED, list(range(25, 60)), 4, True)


def test_a_file_in_clusters_that_do_not_follow_each_other_is_one_gap() -> None:
    """Eight blocks a cluster; the container has the guest's second and third the other way round."""
    unit = 8 * BLOCK
    table = GuestMap.from_units(4 * unit, unit, np.zeros(4, np.uint8) + DATA, np.array([1, 3, 2, 4]) * unit)
    one = guest([(0, 4 * BLOCK, 18 * BLOCK)], [], 18 * BLOCK)
    (span,) = gaps(replace(one, disk=VirtualDisk(BytesReader(bytes(SIZE)), table)))
    assert span.blocks.tolist() == [*range(12, 16), *range(24, 32), *range(16, 22)]
    assert span.borders == ((4, 0), (12, 0))
