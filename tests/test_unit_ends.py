"""Ends of files of which only the clusters are known, in units whose place nothing else tells."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vmcarve.assemble.tails import Live
from vmcarve.assemble.unit_ends import OpenEnds, Shown
from vmcarve.assemble.unit_grid import Grid
from vmcarve.model import RUN_DATA, HostFile
from vmcarve.source import BytesReader

UNIT = 64 << 10
PLACES = 40


def files_of(rng: random.Random, cluster: int, known: float = 0.0) -> tuple[bytes, Live]:
    """A disk full of files of 1 to 30 KiB of random bytes, one behind the other, and what is known of them."""
    disk, files = bytearray(), list[HostFile]()
    while len(disk) < PLACES * UNIT:
        size = rng.randrange(1 << 10, 30 << 10)
        whole = -(-size // cluster) * cluster
        runs = np.array([[0, len(disk), whole, RUN_DATA]], np.int64)
        files.append(HostFile(str(len(files)), "", size if rng.random() < known else -1, False, runs, "fat.chain"))
        disk += rng.randbytes(size) + bytes(whole - size)
    return bytes(disk[: PLACES * UNIT]), Live(cluster, files)


@pytest.mark.parametrize(("unit", "cluster"), [(UNIT, 512), (63 * 512, 512), (UNIT, 4096)])
def test_units_go_where_files_end_as_they_show_it(unit: int, cluster: int) -> None:
    rng = random.Random(7)
    disk, live = files_of(rng, cluster)
    order = list(range(len(disk) // unit))
    rng.shuffle(order)
    grid = Grid(unit, len(order))
    image = bytearray(grid.size)
    for i, n in enumerate(order):  # in the row of its true place, and in that of the first, where units are looked at
        for place in (0, n):
            at = grid.at(i, place)
            image[at : at + unit] = disk[n * unit : (n + 1) * unit]
    shown = Shown.of(BytesReader(bytes(image)), grid)
    ends = OpenEnds.of([live])
    assert shown is not None and len(ends.at) == len(live.listed)
    weight = shown.fitting(ends, np.arange(len(order)), np.arange(len(order)))
    assert weight is not None
    assert (weight.argmax(axis=1) == order).mean() > 0.9
    some = np.array(sorted(order[:5]))  # units and places by number
    part = shown.fitting(ends, np.arange(5), some)
    assert part is not None and np.allclose(part, weight[:5][:, some])


def test_ends_known_to_the_byte_are_not_counted_twice() -> None:
    """They have points of their own; where their files go on still speaks."""
    disk, live = files_of(random.Random(8), 512, known=0.5)
    ends = OpenEnds.of([live])
    assert len(ends.at) == sum(f.size < 0 for f in live.listed)
    assert len(ends.goes_on) == len([f for f in live.listed if f.runs[0, 2] > 512])
    _, known = files_of(random.Random(8), 512, known=1.0)
    none = OpenEnds.of([known])
    assert not len(none.at) and not len(none.goes_on)
    shown = Shown.of(BytesReader(disk), Grid(UNIT, PLACES))
    assert shown is not None and shown.fitting(none, np.arange(3), np.arange(3)) is None


def test_empty_units_have_no_ends() -> None:
    disk, live = files_of(random.Random(9), 512)
    shown = Shown.of(BytesReader(bytes(UNIT) + disk[UNIT:]), Grid(UNIT, PLACES))
    assert shown is not None
    weight = shown.fitting(OpenEnds.of([live]), np.arange(PLACES), np.arange(PLACES))
    assert weight is not None and not weight[0].any() and weight[1:].any(axis=1).all()
