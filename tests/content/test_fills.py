"""An empty $LogFile takes whatever is filled with its byte, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import run
from tests.host.written import needs
from vmcarve.assemble.content.fills import Fills
from vmcarve.assemble.host_units import Unit

from .guests import BLOCK, MIB, Image, guest_of, right, told

pytestmark = needs("mkntfs")
UNIT = 16


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = tmp_path_factory.mktemp("fills") / "volume"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    run("mkntfs", "-q", "-Q", "-F", "-s", "512", "-p", "0", "-H", "255", "-S", "63", path)
    return path.read_bytes()


def log_of(disk: bytes) -> tuple[int, int]:
    """Offset and bytes of the log: the only part of a new volume that is FF for so long."""
    at = disk.find(b"\xff" * (64 << 10))
    end = next(k for k in range(at, len(disk), BLOCK) if disk[k : k + BLOCK] != b"\xff" * BLOCK)
    assert at % BLOCK == 0 and end - at > MIB // 4
    return at, end - at


def test_stretches_of_the_byte_fill_the_log(disk: bytes) -> None:
    """All of it, each block once; two guests share what there is."""
    at, length = log_of(disk)
    image = Image.of(disk, 3, largest=40)
    lost = guest_of(disk, [(at, length)])
    found = told(Fills(), image, [lost])
    assert sorted(found.file_block.tolist()) == list(range(at // BLOCK, (at + length) // BLOCK))
    assert all(right(found, image, disk))
    both = Fills()
    one, other = told(both, image, [lost, lost]), both.points(1)
    taken = np.concatenate((one.file_block + one.delta, other.file_block + other.delta))
    assert len(set(taken.tolist())) == len(taken) == length // BLOCK


def test_units_are_kept(disk: bytes) -> None:
    at, length = log_of(disk)
    image = Image.of(disk, 3, largest=40)
    found = told(Fills(), image, [replace(guest_of(disk, [(at, length)]), unit=Unit(UNIT, 5))])
    start = guest_of(disk).start // BLOCK
    assert len(found.delta) and set(((found.delta + start) % UNIT).tolist()) == {5}
    assert all(right(found, image, disk))


def test_units_that_are_placed_by_their_order_have_a_point_each(disk: bytes) -> None:
    """What the order gave them says nothing of their own: it is asked as if nothing lay there."""
    at, length = log_of(disk)
    image = Image.of(disk, 3, largest=40)
    laid = guest_of(disk, [(at, length)])
    sure = np.array([[at // BLOCK, (at + length) // BLOCK, 0]], np.int64)
    by_order, known = (replace(laid, sure=sure, unit=Unit(UNIT, 0, o)) for o in (True, False))
    assert not len(told(Fills(), image, [known]).bits)
    found = told(Fills(), image, [by_order])
    assert len(found.bits) and (np.diff(np.sort(found.file_block)) >= UNIT).all()
    assert found.bits.max() > 20


def test_a_log_that_was_written_takes_nothing(disk: bytes) -> None:
    """A page of it that the map has is no fill: then the rest is none either."""
    at, length = log_of(disk)
    used = bytearray(disk)
    used[at + length // 2 : at + length // 2 + 4] = b"RCRD"
    image = Image.of(disk, 3, largest=40)
    lost = guest_of(bytes(used), [(at, length // 2)])
    assert not len(told(Fills(), image, [lost]).bits)
    assert len(told(Fills(), image, [guest_of(disk, [(at, length // 2)])]).bits)


def test_what_is_placed_is_not_given_again(disk: bytes) -> None:
    """The first half of the log is sure: the other half takes what is left."""
    at, length = log_of(disk)
    image = Image.of(disk, 3, largest=1 << 20)  # one piece
    half, place = (at + length // 2) // BLOCK, image.data.find(b"\xff" * length) // BLOCK
    guest = guest_of(disk, [(at, length)])
    sure = np.array([[at // BLOCK, half, place - at // BLOCK - guest.start // BLOCK]], np.int64)
    found = told(Fills(), image, [replace(guest, sure=sure)])
    assert int(found.file_block.min()) == half
    assert int((found.file_block + found.delta).min()) + guest.start // BLOCK == place + half - at // BLOCK
