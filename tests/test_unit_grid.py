"""Units of 63 sectors: no block of the guest lies in one at a place that only its size tells."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import deleted, ext4_disk
from tests.host.written import needs
from tests.test_headless import SIZE, agreement, read
from vmcarve.assemble.headless import headless
from vmcarve.assemble.unit_grid import Grid, Slots
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, MISSING
from vmcarve.source import BytesReader

TRACK = 63 * 512
BLOCK = 4096


@pytest.mark.parametrize("unit", [TRACK, 3 * 512, 1 << 16])
def test_the_blocks_that_agree_tell_unit_and_place(unit: int) -> None:
    """Every block of a unit as it would lie at a place, against every block near by of the guest: those of that place
    alone fit."""
    grid = Grid(unit, 11)
    assert grid.rows == (1 if unit % BLOCK == 0 else 8)
    for n, place in ((0, 0), (3, 5), (10, 17), (7, 8)):
        at = grid.at(n, place)
        assert at % BLOCK == place * unit % BLOCK and grid.unit_at(at) == grid.unit_at(at + unit - 1) == n
        image = np.arange(at // BLOCK, -(-(at + unit) // BLOCK))
        first = place * unit // BLOCK
        for step in range(-9, 10):
            units, places, fits = grid.pairs(image, first + step + np.arange(len(image)))
            right = fits & (places == place)
            assert right.all() == (step == 0) and (units == n).all()
            assert not (fits & ~right).any() or unit < BLOCK or unit % BLOCK == 0


def test_slots_hold_the_units_and_lead_back_to_them() -> None:
    """What is read at a unit's begin is the unit, in every row; around it nothing is there; a map to a slot is one to
    the unit, and a map behind all slots one behind all units."""
    content = random.Random(1).randbytes(5 * TRACK - 700)
    grid = Grid(TRACK, 5)
    slots = Slots(BytesReader(content), grid)
    whole = slots.read(0, slots.size)
    assert len(whole) == grid.size == slots.size
    for n in range(5):
        part = content[n * TRACK : (n + 1) * TRACK]
        for place in range(8):
            at = grid.at(n, place)
            assert whole[at : at + TRACK] == slots.read(at, TRACK) == part.ljust(TRACK, b"\0")
            assert slots.missing(at, TRACK) == (n == 4) and not slots.missing(at, len(part))
            assert slots.missing(at - 1, 2) and (at + TRACK == grid.size or slots.missing(at + TRACK - 1, 2))
    rows = [(0, TRACK, grid.at(2, 6), GUESSED, "a"), (TRACK, 100, -1, MISSING, "b"),
            (TRACK + 100, 512, grid.size + 4096, GUESSED, "c"), (2 * TRACK, 512, grid.at(4, 3) + 1024, GUESSED, "d")]
    back = grid.in_row(FileMap.build(rows))
    assert [p for _, _, p, *_ in back.rows()] == [2 * TRACK, -1, 5 * TRACK + 4096, 4 * TRACK + 1024]


@needs("mkfs.ext4", "sfdisk")
@pytest.mark.parametrize(("order", "least"), [("copied", 0.95), ("any", 0.15)])
def test_clusters_of_63_sectors_find_their_places(order: str, least: float, tmp_path: Path) -> None:
    """A Parallels disk of the old kind without its header and table; as a copy has its clusters, or in any order."""
    disk = ext4_disk(tmp_path, 1, "gpt", SIZE, 1024, 60_000)
    used = [n for n in range(-(-SIZE // TRACK)) if any(disk[n * TRACK : (n + 1) * TRACK])]
    if order == "any":
        random.Random(2).shuffle(used)
    head = random.Random(3).randbytes(12 * 512)
    content = head + b"".join(disk[n * TRACK : (n + 1) * TRACK].ljust(TRACK, b"\0") for n in used)
    state, file, file_map, evidence = deleted(tmp_path, content, "a.hds")
    headless(state, [(state.views[0], file)], lambda *_: file_map, evidence)
    assert state.done[0].container.guests[0].virtual_size == SIZE
    got, known = read(state)
    right, wrong = agreement(got, known, disk, np.ones(SIZE // BLOCK, np.bool_))
    assert right > least
    assert wrong < 0.01
