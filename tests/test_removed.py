"""What is left of deleted files: only what nobody has written over since, and that is looked for and expected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.content.guests import BLOCK, MIB, ext4
from tests.host.written import needs
from vmcarve.assemble import solve
from vmcarve.assemble.align import FREE, UNKNOWN
from vmcarve.assemble.candidate import Candidate
from vmcarve.assemble.gather import expect
from vmcarve.assemble.places import Owned, Places
from vmcarve.assemble.removed import removed
from vmcarve.assemble.tails import Live
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, RUN_DATA, RUN_REUSED, Container, GuestDisk, GuestMap, HostFile
from vmcarve.source import BytesReader
from vmcarve.tables import EVIDENCE

PLACES = Places.of(pa.Table.from_pylist([], EVIDENCE))


def file(name: str, rows: list[tuple[int, int, int, int]], born: float = 0.0, deleted: bool = True) -> HostFile:
    runs = np.array(rows, np.int64).reshape(-1, 4)
    return HostFile(name, name, int(runs[:, 2].sum()), deleted, runs, "made", born=born)


def left(gone: list[HostFile], live: list[HostFile]) -> dict[str, list[list[int]]]:
    return {f.name: f.runs.tolist() for f in removed(gone, live)}


def test_what_files_have_written_over_is_theirs() -> None:
    """A live file has the middle of a deleted one."""
    gone = file("gone", [(0, 100, 50, RUN_DATA)])
    assert left([gone], [file("live", [(0, 110, 20, RUN_DATA)], deleted=False)]) == {
        "gone": [[0, 100, 10, RUN_DATA], [30, 130, 20, RUN_DATA]]}
    assert left([gone], [file("live", [(0, 90, 100, RUN_DATA)], deleted=False)]) == {}


def test_of_two_deleted_files_the_younger_one_had_the_blocks_last() -> None:
    old, young = file("old", [(0, 100, 50, RUN_DATA)], 1.0), file("young", [(0, 120, 50, RUN_DATA)], 2.0)
    for order in ([old, young], [young, old]):
        assert left(order, []) == {"young": [[0, 120, 50, RUN_DATA]], "old": [[0, 100, 20, RUN_DATA]]}


def test_what_the_host_says_was_reused_does_not_count() -> None:
    assert left([file("gone", [(0, 100, 10, RUN_REUSED), (10, 200, 10, RUN_DATA)])], []) == {
        "gone": [[10, 200, 10, RUN_DATA]]}


class _Volume:
    """A volume of which files can be read, or only the live ones."""

    block_size = BLOCK

    def __init__(self, broken: bool) -> None:
        self._broken = broken

    def live(self) -> list[HostFile]:
        return [file("live", [(0, 0, 10, RUN_DATA)], deleted=False)]

    def files(self) -> list[HostFile]:
        if self._broken:
            raise ValueError
        return [*self.live(), file("gone", [(0, 10, 10, RUN_DATA)])]


@pytest.mark.parametrize("broken", [False, True])
def test_live_files_are_read_whatever_is_left_of_deleted_ones(broken: bool) -> None:
    read = Live.of(_Volume(broken))  # type: ignore[arg-type]
    assert [f.name for f in read.listed] == ["live"]
    assert [f.name for f in read.gone] == ([] if broken else ["gone"])


@needs("mkfs.ext4")
def test_a_deleted_file_of_a_guest_is_looked_for_and_may_still_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                        ) -> None:
    """The guest holds its blocks free; the file is among those whose content is looked for, behind the live ones."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "kept").write_bytes(b"k" * 5 * BLOCK)
    disk = ext4(tmp_path, tree, 8 * MIB)
    where = BytesReader(disk)
    c = Candidate(0, Container("raw", "", len(disk), [GuestDisk(len(disk), GuestMap.flat(len(disk)))]),
                  FileMap.build([(0, len(disk), 0, GUESSED, "continuity")]), lambda _: None, flat=True)
    c.owned = [Owned(0, len(disk), 0, 0)]
    monkeypatch.setattr(solve, "pins_of", lambda *_, **more: [])
    free = int(np.flatnonzero(np.diff(np.array([0, *(_free(c, where)), 0])) > 0)[0]) * BLOCK
    gone = file("gone", [(0, free, 3 * BLOCK, RUN_DATA)])
    monkeypatch.setattr(Live, "of", classmethod(lambda cls, v, units: Live(BLOCK, list(v.live()), [gone])))
    c.read = None
    solve._read_guest(where, c, PLACES)
    assert c.listed == 1 and c.files.size.tolist()[1:] == [3 * BLOCK]
    use = expect(c).use[free // BLOCK : free // BLOCK + 4].tolist()
    assert use == [UNKNOWN, UNKNOWN, UNKNOWN, FREE]


def _free(c: Candidate, image: BytesReader) -> list[bool]:
    solve._read_guest(image, c, PLACES)
    return (expect(c).use == FREE).tolist()
