"""What may be claimed of a guest: never more than its container's tables bear."""

from __future__ import annotations

import zlib

import pytest

from vmcarve.assemble import Assembled
from vmcarve.filemap import FileMap
from vmcarve.model import DATA, DEFLATE, ZLIB, Check, Container, GuestDisk, GuestMap
from vmcarve.source import BytesReader
from vmcarve.verify import verify

IMAGE = bytes(range(256)) * 64


def grades(*checks: Check) -> tuple[set[str], set[str]]:
    """(grades of the container's bytes, of the guest's) of a container that a host remnant gives whole."""
    guest = GuestDisk(8192, GuestMap.build([0, 4096], [4096, 4096], [0, 1], [4096, -1]))
    container = Container("raw", "test", 8192, [guest], checks=list(checks))
    file_map = FileMap.build([(0, 8192, 1024, "supported", "host.test")])
    item = Assembled("raw-400", 0, container, file_map)
    (found,) = verify([BytesReader(IMAGE)], item)
    return {r[6] for r in found.container_rows}, {r[6] for r in found.guest_rows}


def test_a_sound_container_hands_its_grade_to_the_guest() -> None:
    """What the host gave is supported, and what the tables say is zero is zero."""
    assert grades(Check("tables", True)) == ({"supported"}, {"supported", "zero"})


def test_a_damaged_table_makes_the_guest_a_guess() -> None:
    """The container's bytes stay what they are; which guest bytes they hold is in doubt."""
    assert grades(Check("tables", False)) == ({"supported"}, {"guessed", "zero"})


def test_a_lost_copy_of_a_header_casts_no_doubt() -> None:
    """A check that is not grave leaves the grades alone."""
    assert grades(Check("second header", False, grave=False)) == ({"supported"}, {"supported", "zero"})


@pytest.mark.parametrize("grade", ["guessed", "missing"])
def test_the_guest_is_never_surer_than_its_container(grade: str) -> None:
    """Continuity stays a guess in the guest, and a hole stays a hole."""
    guest = GuestDisk(4096, GuestMap.flat(4096))
    place = 0 if grade == "guessed" else -1
    item = Assembled("raw-0", 0, Container("raw", "test", 4096, [guest]),
                     FileMap.build([(0, 4096, place, grade, "test")]))
    (found,) = verify([BytesReader(IMAGE)], item)
    assert {r[6] for r in found.guest_rows} == {grade}


@pytest.mark.parametrize("guessed", [False, True])
def test_a_stream_in_a_unit_of_unknown_place_proves_nothing(guessed: bool) -> None:
    """It decodes, and which part of the disk it is no table says."""
    packed = zlib.compress(bytes(range(256)) * 16)
    guest = GuestDisk(4096, GuestMap.build([0], [4096], [DATA], [0], [ZLIB], [len(packed)]), guessed=guessed)
    file_map = FileMap.build([(0, len(packed), 0, "guessed", "units")])
    item = Assembled("x-0", 0, Container("qcow2", "test", len(packed), [guest], rebuild=False), file_map)
    (found,) = verify([BytesReader(packed)], item)
    assert {r[6] for r in found.guest_rows} == {"guessed" if guessed else "proven"}


@pytest.mark.parametrize(("at", "delta", "grade"),
                         [(8192, 0, "proven"), (8192, 4096, "guessed"), (8200, 4096, "proven")])
def test_a_stream_that_begins_with_a_block_may_be_another_of_its_file(at: int, delta: int, grade: str) -> None:
    """Deflate has no checksum: at another distance than the header's a stream at a block's border proves no place."""
    packed = zlib.compress(bytes(range(256)) * 16)[2:-4]
    image = BytesReader(bytes(at + delta) + packed + bytes(4096))
    guest = GuestDisk(4096, GuestMap.build([0], [4096], [DATA], [at], [DEFLATE], [len(packed)]))
    rows = [(0, 4096, 0, "guessed", "aligned"), (4096, at + len(packed) - 4096, 4096 + delta, "guessed", "aligned")]
    item = Assembled("x-0", 0, Container("qcow2", "test", at + len(packed), [guest]), FileMap.build(rows))
    (found,) = verify([image], item)
    assert {r[6] for r in found.guest_rows} == {grade}
