"""Free units go into the gaps that what lies around them speaks for."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.host.written import needs
from vmcarve.assemble.content import gaps as gaps_module
from vmcarve.assemble.content.gaps import ALIKE, FOUND, Gaps, _Bits, _Search
from vmcarve.assemble.content.want import Guest
from vmcarve.assemble.host_units import Unit
from vmcarve.assemble.tails import file_ends, open_volumes
from vmcarve.model import GuestMap
from vmcarve.source import BytesReader

from .guests import BLOCK, MIB, ext4, guest_of
from .test_joins import encoded, log

pytestmark = needs("mkfs.ext4")
UNIT = 32  # blocks
SIZE = UNIT * BLOCK
FIRST = 3 * SIZE  # where units begin on the image


def scene(folder: Path, seed: int) -> tuple[bytes, bytes, list[int]]:
    """(disk, image, image offset of each unit of the disk): its units and as many of noise, in any order."""
    tree = folder / "tree"
    tree.mkdir()
    rng = random.Random(seed)
    for n in range(8):
        (tree / f"{n}.log").write_bytes(log(rng)[:-1] * (1 + n % 3))
        (tree / f"{n}.mail").write_bytes(b"".join(encoded(rng) for _ in range(rng.randrange(1, 9))))
        (tree / f"{n}.gpg").write_bytes(rng.randbytes(rng.randrange(300_000)))
    disk = ext4(folder, tree, 8 * MIB)
    units = [disk[at : at + SIZE] for at in range(0, len(disk), SIZE)]
    noise = [rng.randbytes(SIZE) if n % 2 else b"".join(encoded(rng) for _ in range(9))[:SIZE] for n in range(20)]
    order = list(range(len(units) + len(noise)))
    rng.shuffle(order)
    image = b"".join([bytes(FIRST), *((units + noise)[k] for k in order)])
    return disk, image, [FIRST + order.index(k) * SIZE for k in range(len(units))]


def guest(disk: bytes, places: list[int], gaps: set[int]) -> Guest:
    """The guest when all its units are placed but the gaps."""
    volumes = open_volumes(BytesReader(disk), [(0, len(disk))])
    sure = [(u * UNIT, (u + 1) * UNIT, (p - u * SIZE) // BLOCK) for u, p in enumerate(places) if u not in gaps]
    return replace(guest_of(disk, start=0), sure=np.array(sure, np.int64).reshape(-1, 3), unit=Unit(UNIT, 0),
                   ends=file_ends(volumes, GuestMap.flat(len(disk))))


def filled(image: bytes, one: Guest) -> dict[int, int]:
    """Image offset by unit, as the mechanism says."""
    gaps = Gaps(BytesReader(image), np.array([[0, len(image)]], np.int64))
    assert not gaps.want([one])
    told = gaps.points(0)
    assert not (told.file_block % UNIT).any()
    return {f // UNIT: (f + d) * BLOCK for f, d in zip(told.file_block.tolist(), told.delta.tolist(), strict=True)}


def wanted(disk: bytes, one: Guest) -> set[int]:
    """Units that hold something of a file that is no noise."""
    units = set[int]()
    for _, _, at, n in one.files.run.tolist():
        if disk[at : at + 2000].isascii():
            units |= set(range(at // SIZE, -(-(at + n) // SIZE)))
    return units


def test_gaps_take_what_goes_on(tmp_path: Path) -> None:
    """Each third unit is lost: most of those with text come back, and what comes back is right."""
    right = lost = 0
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        disk, image, places = scene(folder, seed)
        gaps = {u for u in range(2, len(places)) if u % 3 == 1}
        one = guest(disk, places, gaps)
        found = filled(image, one)
        assert found.keys() <= gaps
        assert all(image[p : p + SIZE] == disk[u * SIZE : (u + 1) * SIZE] for u, p in found.items())
        asked = wanted(disk, one) & gaps
        right, lost = right + len(asked & found.keys()), lost + len(asked)
    assert lost >= 12 and right >= 0.8 * lost


def test_neighbours_in_a_row_are_filled_together(tmp_path: Path) -> None:
    """Four units one behind the other inside text, of which each knows only the next."""
    disk, image, places = scene(tmp_path, 5)
    one = guest(disk, places, set())
    text = wanted(disk, one)
    row = next(range(u, u + 4) for u in sorted(text) if set(range(u - 1, u + 5)) <= text)
    found = filled(image, guest(disk, places, set(row)))
    assert found == {u: places[u] for u in row}


def test_what_is_not_there_is_not_filled(tmp_path: Path) -> None:
    """The gaps' own units are overwritten: noise of the same kinds does not go in their places."""
    disk, image, places = scene(tmp_path, 7)
    gaps = {u for u in range(2, len(places)) if u % 3 == 1}
    one = guest(disk, places, gaps)
    assert len(filled(image, one)) >= 3
    harmed = bytearray(image)
    for u in gaps:
        harmed[places[u] : places[u] + SIZE] = random.Random(u).randbytes(SIZE)
    assert not filled(bytes(harmed), one)


def test_nothing_is_asked_without_units(tmp_path: Path) -> None:
    """Where the host gives out single blocks a gap may hold parts of anything."""
    disk, image, places = scene(tmp_path, 7)
    one = guest(disk, places, {u for u in range(2, len(places)) if u % 3 == 1})
    assert filled(image, one) and not filled(image, replace(one, unit=Unit()))


def test_a_round_may_find_another_unit(tmp_path: Path) -> None:
    """What was read of free units of one size is not taken for those of another that begin where they do."""
    disk, image, places = scene(tmp_path, 7)
    one = guest(disk, places, {u for u in range(2, len(places)) if u % 3 == 1})
    gaps = Gaps(BytesReader(image), np.array([[0, len(image)]], np.int64))
    gaps.want([replace(one, unit=Unit(2 * UNIT, UNIT))])
    gaps.want([one])
    told = gaps.points(0)
    found = {f // UNIT: (f + d) * BLOCK for f, d in zip(told.file_block.tolist(), told.delta.tolist(), strict=True)}
    assert found and found == filled(image, one)


def test_how_far_the_best_unit_of_a_gap_is_before_the_rest() -> None:
    """As from all units in order: those used elsewhere left out, equal ones counted once."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        n = int(rng.integers(1, 60))
        content = rng.integers(0, max(1, n // 3), n)
        search = object.__new__(_Search)
        search._own, search._between, search._bits = [np.round(rng.normal(0, 9, n))], [[]], {}
        search._free, search._content, search._contents = [None] * n, content, content.tolist()  # type: ignore[list-item]
        used = rng.integers(0, n, int(rng.integers(0, n))).tolist()
        chosen = dict(enumerate([*used, -1], 1))
        worth = search._worth(0, chosen)
        order = np.argsort(-worth, kind="stable")[: ALIKE * 8]
        order = order[np.isfinite(worth[order])]
        first = np.sort(np.unique(content[order], return_index=True)[1])
        none = np.log2((1 - FOUND) / FOUND * n)
        next_ = worth[order[first[ALIKE]]] if len(first) > ALIKE else -np.inf
        best = worth[order[0]] if len(order) else -np.inf
        assert search._tells(0, chosen) == best - max(none, next_)


def searched(n: int, content: list[int], own: list[Callable[[dict[int, int]], dict[int, float]]]) -> dict[int, int]:
    """The units, by gap, that a search gives among n, of which gap i says own[i](chosen): bits by unit, others -9."""
    def bits(gap: int, chosen: dict[int, int]) -> _Bits:
        worth = np.full(n, -9.0)
        for unit, value in own[gap](chosen).items():
            worth[unit] = value
        return _Bits(worth)

    search = object.__new__(_Search)
    search._gaps, search._content, search._contents = [(0, g) for g in range(len(own))], np.array(content), content
    search._free = [gaps_module.Free(j, *[None] * 4) for j in range(n)]  # type: ignore[arg-type]
    search._beside_chosen = bits  # type: ignore[method-assign]
    return {g: at for (_, g), at in search.run().items()}


def test_of_equal_assignments_each_is_asked_what_is_clear() -> None:
    """Two units fit the first gap alike: which of them is in its place only the second gap tells."""
    found = searched(12, list(range(12)), [lambda _: {0: 9.0, 1: 9.0},
                                           lambda chosen: {2: 12.0} if chosen.get(0) == 1 else {}])
    assert found == {0: 1, 1: 2}


def test_copies_of_a_unit_do_not_fill_the_beam() -> None:
    """A dozen times the same bytes for each of two gaps are one assignment, and leave room for the right one."""
    found = searched(44, [0] * 12 + [1] * 12 + list(range(2, 22)),
                     [lambda _: {**dict.fromkeys(range(12), 9.0), 24: 8.8}, lambda _: dict.fromkeys(range(12, 24), 9.0),
                      lambda chosen: {25: 20.0} if chosen.get(0) == 24 else {}])
    assert found.items() >= {0: 24, 2: 25}.items()


@pytest.mark.parametrize("cells", [None, 1])
def test_a_file_takes_no_units_of_another_kind(cells: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                               ) -> None:
    """Lines of one length go on at every border, in units of any file: only one has the letters of what is placed.
    Nothing is asked of more units than may be counted."""
    if cells is not None:
        monkeypatch.setattr(gaps_module, "MAX_CELLS", cells)
    rng = np.random.default_rng(2)
    tree = tmp_path / "tree"
    tree.mkdir()

    def lines(letters: bytes, size: int) -> bytes:
        return b"".join(rng.choice(np.frombuffer(letters, np.uint8), 63).tobytes() + b"\n" for _ in range(size // 64))

    (tree / "a").write_bytes(lines(b"ABCDEFGHIJKLMNOP", 5 * SIZE))
    disk = ext4(tmp_path, tree, 8 * MIB)
    units = [disk[at : at + SIZE] for at in range(0, len(disk), SIZE)]
    noise = [lines(b"0123456789", SIZE) if n < 3 else rng.bytes(SIZE) for n in range(20)]
    image = b"".join([bytes(FIRST), *units, *noise])
    places = [FIRST + u * SIZE for u in range(len(units))]
    lost = [u for u in range(len(units)) if units[u].isascii() and units[u].isupper()][1]
    assert filled(image, guest(disk, places, {lost})) == ({lost: places[lost]} if cells is None else {})
