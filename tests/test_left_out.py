"""Tables taken for zeros: the container says zero only where its file closes over them on the image."""

from __future__ import annotations

import pytest

from vmcarve.assemble.candidate import Candidate
from vmcarve.assemble.left_out import doubt_zeros
from vmcarve.assemble.tables import EMPTY
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, MISSING, ZERO, Container, GuestDisk, GuestMap

BLOCK = 4096
SIZE = 12 * BLOCK


@pytest.mark.parametrize(("behind", "grade"), [(4, ZERO), (40, MISSING), (8, MISSING), (None, MISSING)])
def test_zeros_that_the_file_does_not_close_over_are_not_said(behind: int | None, grade: str) -> None:
    """Blocks 4 to 7 of a table were taken for zeros; what follows them lies at block `behind` of the image."""
    begin = [(0, 4 * BLOCK, 0, GUESSED, "continuity"), (4 * BLOCK, 4 * BLOCK, -1, ZERO, EMPTY)]
    rest = [(8 * BLOCK, 4 * BLOCK, -1, MISSING, "not-found") if behind is None else
            (8 * BLOCK, 4 * BLOCK, behind * BLOCK, GUESSED, "tables")]
    read: list[FileMap] = []

    def reopen(file_map: FileMap) -> Container:
        read.append(file_map)
        return Container("made", "again", SIZE, [GuestDisk(SIZE, GuestMap.flat(SIZE))])

    first = Container("made", "", SIZE, [GuestDisk(SIZE, GuestMap.flat(SIZE))])
    empty = [(4 * BLOCK, 6 * BLOCK), (6 * BLOCK, 8 * BLOCK)]
    c = Candidate(0, first, FileMap.build([*begin, *rest]), reopen, empty=empty)
    doubt_zeros(c)
    assert c.container.variant == "again" and {row[3] for row in c.map.cut(4 * BLOCK, 4 * BLOCK)} == {grade}
    assert {row[3] for row in read[0].cut(4 * BLOCK, 4 * BLOCK)} == {grade}
