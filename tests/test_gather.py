"""What is expected of the blocks of a file, from the guest's allocation and the container's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from vmcarve.assemble.align import FREE, USED
from vmcarve.assemble.candidate import Candidate
from vmcarve.assemble.gather import expect
from vmcarve.assemble.places import Owned
from vmcarve.filemap import FileMap
from vmcarve.model import DATA, GUESSED, UNALLOCATED, Container, GuestDisk, GuestMap, HostVolume

BLOCK = 4096
BLOCKS = 64
SIZE = BLOCKS * BLOCK


@pytest.mark.parametrize(("cluster", "flat", "free"),
                         [(512, False, USED), (BLOCK, False, USED), (2 * BLOCK, False, FREE),
                          (0, False, FREE), (BLOCK, True, FREE)])
def test_what_a_container_stores_by_blocks_was_written(cluster: int, flat: bool, free: int) -> None:
    """A guest's free block that has a unit of its own holds what was deleted; in a larger one it may be zeros."""
    half = SIZE // 2
    guest_map = GuestMap.build([0, half], [half, half], [DATA, UNALLOCATED], [0, -1])
    container = Container("made", "", SIZE, [GuestDisk(SIZE, guest_map)], cluster=cluster)
    c = Candidate(0, container, FileMap.build([(0, SIZE, 0, GUESSED, "continuity")]), lambda _: None, flat=flat)
    c.owned = [Owned(0, SIZE, 0, 0)]
    volume = SimpleNamespace(offset=0, size=SIZE, free=lambda: np.array([[4 * BLOCK, SIZE - 4 * BLOCK]], np.int64))
    c.volumes = [cast(HostVolume, volume)]
    use = expect(c).use
    assert set(use[:4].tolist()) == {USED} and set(use[4 : BLOCKS // 2].tolist()) == {free}
    assert set(use[BLOCKS // 2 :].tolist()) == {FREE}, "what no table names is padding"


def test_tables_that_tell_of_no_data_expect_nothing() -> None:
    """Read through another map a container may name no block at all: nothing jumps there, and nothing breaks."""
    container = Container("made", "", SIZE, [GuestDisk(SIZE, GuestMap.flat(SIZE, state=UNALLOCATED))], cluster=BLOCK)
    c = Candidate(0, container, FileMap.build([(0, SIZE, 0, GUESSED, "continuity")]), lambda _: None)
    found = expect(c)
    assert len(found.jumps) == 0 and found.use.tolist() == [USED] + [FREE] * (BLOCKS - 1)
