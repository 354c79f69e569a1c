"""What a round of whole units asks of the guest: use, phase, what goes on from one unit to the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import ext4_disk, run
from tests.host.written import needs
from vmcarve.assemble import headless, solve, unit_lay
from vmcarve.assemble.align import FREE, UNKNOWN, USED
from vmcarve.assemble.candidate import Candidate
from vmcarve.assemble.content.files import Files
from vmcarve.assemble.places import Owned, free_space
from vmcarve.assemble.segments import Points, Segment
from vmcarve.assemble.unit_grid import Grid
from vmcarve.assemble.unit_round import UnitRound, in_phase, joined, used
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, MISSING, Container, GuestDisk, GuestMap, Stowed
from vmcarve.source import BytesReader

MIB = 1 << 20
UNIT = 64 << 10
SIZE = 26 * MIB


def candidate(runs: list[tuple[int, int]]) -> Candidate:
    """A flat disk with one volume whose files take `runs`."""
    flat = Container("raw", "", SIZE, [GuestDisk(SIZE, GuestMap.flat(SIZE))])
    c = Candidate(0, flat, FileMap.build([(0, SIZE, 0, GUESSED, "")]), lambda file_map: flat, flat=True)
    c.owned = [Owned(MIB, SIZE - 2 * MIB, 0, 0)]
    c.files = Files(np.ones(len(runs), np.int64), np.array([(n, 0, g, k) for n, (g, k) in enumerate(runs)],
                                                               np.int64).reshape(-1, 4))
    return c


def test_where_the_map_is_lost_the_files_tell_what_is_used() -> None:
    """Of a volume that cannot be read only what its files take is known."""
    told = used(BytesReader(bytes(SIZE)), candidate([(4 * MIB, MIB)]), SIZE // 4096)
    assert (told == USED).sum() == MIB // 4096
    assert (told[4 * MIB // 4096 : 5 * MIB // 4096] == USED).all()
    assert (told == UNKNOWN).sum() == len(told) - MIB // 4096


@needs("mkfs.ext4", "sfdisk")
def test_a_map_that_has_files_free_is_none(tmp_path: Path) -> None:
    """Another unit in the place of the map: it is not asked."""
    disk = BytesReader(ext4_disk(tmp_path, 1, "gpt", SIZE, 1024, 20_000))
    whole = used(disk, candidate([]), SIZE // 4096)
    free = np.flatnonzero(whole == FREE)
    assert (whole == USED).any()
    told = used(disk, candidate([(int(free[0]) * 4096, 4096), (int(free[-1]) * 4096, 4096)]), SIZE // 4096)
    assert np.flatnonzero(told == USED).tolist() == [int(free[0]), int(free[-1])]
    assert not (told == FREE).any()


@needs("mkntfs")
def test_what_a_volume_finds_free_without_its_map_is_not_its_map(tmp_path: Path) -> None:
    """NTFS whose record of $Bitmap is lost calls free what no record claims; files whose records are lost lie there."""
    path = tmp_path / "volume"
    path.write_bytes(bytes(16 * MIB))
    run("mkntfs", "-q", "-Q", "-F", path)
    data = bytearray(path.read_bytes())
    assert free_space(BytesReader(bytes(data)), 0, len(data), own=True) is not None
    table = int.from_bytes(data[48:56], "little") * data[13] * 512
    data[table + 6 * 1024 : table + 7 * 1024] = bytes(1024)
    assert free_space(BytesReader(bytes(data)), 0, len(data)) is not None
    assert free_space(BytesReader(bytes(data)), 0, len(data), own=True) is None


def test_points_of_units_of_another_size_are_out_of_phase() -> None:
    """Points of a file in 64 KiB units all lie at one place in both; of one in 4 KiB units one in sixteen does."""
    rng = np.random.default_rng(1)
    place = rng.permutation(64)
    p = np.arange(1024)
    coarse = place[p // 16] * 16 + p % 16
    fine = rng.permutation(1024)
    for file_block, is_so in ((coarse, True), (fine, False)):
        points = Points.of([(0, file_block, p - file_block, np.full(1024, 8.0))])
        assert (in_phase(points, 0, Grid(UNIT, 64), np.zeros(1024, np.bool_)) > unit_lay.least_in_phase(UNIT)) == is_so
    assert unit_lay.least_in_phase(2 * MIB) < 0.25 < unit_lay.least_in_phase(16384)


def test_copies_in_a_log_are_not_out_of_phase() -> None:
    """Where the log of a volume lies has nothing to do with where what it repeats belongs."""
    p = np.arange(64)
    points = Points.of([(0, np.concatenate((p, p)), np.concatenate((p * 0, 101 + p * 0)), np.full(128, 8.0))])
    copies = np.zeros(256, np.bool_)
    assert in_phase(points, 0, Grid(UNIT, 64), copies) < unit_lay.least_in_phase(UNIT) + 0.1
    copies[101:165] = True
    assert in_phase(points, 0, Grid(UNIT, 64), copies) == 1.0


def test_units_of_one_byte_lie_where_it_is_told_and_say_nothing_of_the_order() -> None:
    """Four units of FF among twelve: they take the places where that lies, and what stands between them is not laid by
    them."""
    rng = np.random.default_rng(1)
    units = rng.integers(0, 256, (12, UNIT), np.uint8)
    units[4:8] = 255
    laid = UnitRound(UNIT, 12, np.empty((0, 3), np.int64), np.empty((0, 3), np.int64))
    file_block = np.arange(32, 36) * 16
    points = Points.of([(0, file_block, np.arange(4, 8) * 16 - file_block, np.full(4, 40.0))])
    c = candidate([])
    laid(BytesReader(units.tobytes()), c, points, None)  # type: ignore[arg-type]
    assert [(f, n, p) for f, n, p, *_ in c.map.rows() if p >= 0] == [(32 * UNIT, 4 * UNIT, 4 * UNIT)]
    assert np.flatnonzero(laid.alone).tolist() == [4, 5, 6, 7] and laid.spoken == 0


def test_what_a_log_has_lies_where_nothing_like_it_does() -> None:
    """A block of metadata in its older state stays; zeros, and what another unit holds there, make room."""
    rng = np.random.default_rng(4)
    newer = rng.integers(1, 256, 4096, np.uint8)
    older = newer.copy()
    older[100:400] = 7
    image = np.concatenate((older, rng.integers(1, 256, 4096, np.uint8), np.zeros(4096, np.uint8), newer))
    parts = np.array([[n * 4096, 3 * 4096, 4096] for n in range(4)], np.int64)
    laid = UnitRound(UNIT, 1, np.empty((0, 3), np.int64), parts)
    rows = [(0, 3 * 4096, 0, GUESSED, "units"), (3 * 4096, 4096, -1, MISSING, "")]
    both = laid.with_begins(BytesReader(image.tobytes()), FileMap.build(rows))
    assert [(f, n, p) for f, n, p, *_ in both.rows()] == [
        (0, 4096, 0), *((n * 4096, 4096, 3 * 4096) for n in range(1, 4))]


def test_the_round_for_which_most_spoke_is_kept() -> None:
    """A later round in which little is told any more does not take back what an earlier one had."""
    rng = np.random.default_rng(5)
    image = BytesReader(rng.integers(0, 256, 12 * UNIT, np.uint8).tobytes())
    laid = UnitRound(UNIT, 12, np.empty((0, 3), np.int64), np.empty((0, 3), np.int64))
    file_block = np.arange(32, 44) * 16
    points = Points.of([(0, file_block, np.arange(12) * 16 - file_block, np.full(12, 40.0))])
    c = candidate([])
    laid(image, c, points, None)  # type: ignore[arg-type]
    whole = c.map.rows()
    laid(image, c, Points.of([]), None)  # type: ignore[arg-type]
    assert laid.spoken == 0 and c.map.rows() != whole
    laid.take_best(c)
    assert laid.spoken == 12 and c.map.rows() == whole


def test_units_of_twice_the_size_are_worth_less_than_the_right_ones() -> None:
    assert unit_lay.worth(0.5, 2 * MIB) < unit_lay.worth(0.9, MIB)


def test_runs_of_one_delta_that_should_have_broken_are_two() -> None:
    """Between two points a hundred blocks apart, where files break every third block, something else lies."""
    chain = [Segment(0, 5, np.array([at]), np.full(1, 40.0), 40.0) for at in (10, 110)]
    run = solve._sure(chain, 0.0)  # pyright: ignore[reportPrivateUsage]
    two = solve._sure(chain, 0.3)  # pyright: ignore[reportPrivateUsage]
    assert run.tolist() == [[10, 111, 5]]
    assert two.tolist() == [[10, 11, 5], [110, 111, 5]]
    c = candidate([])
    c.sure = two
    left = unit_lay._without_gaps(c)  # pyright: ignore[reportPrivateUsage]
    assert [(f // 4096, n // 4096) for f, n, p, *_ in left.rows() if p < 0] == [(11, 99)]


def test_text_that_goes_on_joins_units_and_other_text_does_not() -> None:
    """Units of a text in their order, and the same units shuffled."""
    words = " ".join(f"{n * n % 9973} bottles of {n} green {n % 7} walls" for n in range(80_000)).encode()
    count = len(words) // UNIT
    in_order = joined(BytesReader(words), Grid(UNIT, count))
    order = np.random.default_rng(2).permutation(count)
    mixed = joined(BytesReader(b"".join(words[n * UNIT : (n + 1) * UNIT] for n in order.tolist())), Grid(UNIT, count))
    apart = np.diff(order) != 1
    assert in_order.mean() > mixed[apart].mean() + 0.5
    assert joined(BytesReader(b""), Grid(UNIT, 0)).tolist() == []
    noise = np.random.default_rng(3).integers(0, 256, 8 * UNIT, np.uint8).tobytes()
    assert not joined(BytesReader(noise + words[: 8 * UNIT]), Grid(UNIT, 9)).any()


def test_the_units_that_lay_out_most_are_taken_and_no_others_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small units tell more by number; what counts is how much of the guest is laid out."""
    flat = [Container("raw", str(n), n, [GuestDisk(MIB, GuestMap.flat(MIB))]) for n in range(4)]
    worth = iter([(0.2 * MIB, flat[0]), None, (0.9 * MIB, flat[1]), (2.0 * MIB, flat[2])])
    monkeypatch.setattr(headless, "solved", lambda *_, **__: next(worth))
    monkeypatch.setattr(headless, "_stowed", lambda *_: iter([("raw", Stowed(4096, GuestMap.flat(MIB)))] * 4))
    monkeypatch.setattr(headless, "_by_tables", lambda *_: None)
    found = headless._best(BytesReader(bytes(MIB)), ["raw"], {})  # pyright: ignore[reportPrivateUsage]
    assert found is not None
    assert found[0] is flat[1]
    assert next(worth) is not None
