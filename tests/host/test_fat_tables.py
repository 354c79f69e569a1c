"""Allocation tables of FAT of which parts are lost."""

from __future__ import annotations

import numpy as np

from vmcarve.filemap import FileMap, FileView
from vmcarve.host._fat_chains import Heap, read_table
from vmcarve.model import GUESSED, MISSING
from vmcarve.source import BytesReader

ENTRIES = 100_000
LENGTH = 4 * ENTRIES


def test_what_is_lost_in_one_copy_is_read_from_the_other_and_the_rest_is_still_told() -> None:
    """Of two copies one has a hole, the other another one and ciphertext: only what both lack is not known."""
    rng = np.random.default_rng(1)
    table = np.arange(1, ENTRIES + 1, dtype="<u4")
    copies = bytearray(2 * table.tobytes())
    copies[LENGTH + 40960 : LENGTH + 81920] = rng.integers(0, 256, 40960, np.uint8).tobytes()
    view = FileView(BytesReader(bytes(copies)), FileMap.build([
        (0, 204800, 0, GUESSED, ""), (204800, 20480, -1, MISSING, ""),
        (225280, 2 * LENGTH - 225280 - 131072, 225280, GUESSED, ""), (2 * LENGTH - 131072, 131072, -1, MISSING, "")]))
    told = np.zeros(ENTRIES, np.uint32)
    for first, entries in read_table(view, [0, LENGTH], 28, Heap(0, 512, ENTRIES - 2)):
        if entries is not None:
            told[first : first + len(entries)] = entries
    assert (told[told > 0] == table[told > 0]).all()
    assert (told == table).all()
    second = dict(read_table(view, [LENGTH], 28, Heap(0, 512, ENTRIES - 2)))
    known = sum(len(e) for e in second.values() if e is not None)
    assert ENTRIES - 131072 // 4 - 2048 <= known <= ENTRIES - 131072 // 4
