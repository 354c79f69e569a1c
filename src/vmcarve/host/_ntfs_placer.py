"""Loose $MFT records of an NTFS volume place themselves: each states its number, and $MFT's runs say where that lies.

Nothing in a record names its volume: records of two volumes with like numbers are told apart by their neighbours only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..model import RUN_DATA, Placer, Reader
from . import _ntfs_mft as mft_
from . import _ntfs_record as record_

I64 = npt.NDArray[np.int64]
BITS = 10.0
MAGIC = int.from_bytes(b"FILE", "little")
NUMBER, FIRST_NUMBERED, IN_USE = 0x2C, 0x30, 0x1


def placer(reader: Reader, offset: int, limit: int) -> Placer | None:
    """How loose records of the volume at `offset` place themselves; without record 0, as if $MFT were one run."""
    boot = record_.parse_boot(reader.read(offset, 512))
    if boot is None:
        return None
    mft = mft_.find_mft(reader, boot, offset)
    size = boot.record_size
    if mft is not None:
        runs = mft.runs
    else:
        home = offset + boot.mft_lcn * boot.cluster
        runs = np.array([[0, home, min(limit, boot.sectors * boot.sector) // 8, RUN_DATA]], np.int64)

    def find(data: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
        step = min(size, 512)
        words = data[: len(data) // step * step].view("<u4").reshape(-1, step // 4)
        at = np.flatnonzero(words[:, 0] == MAGIC).astype(np.int64) * step
        at = at[at + size <= len(data)]
        if len(at) == 0:
            return at, at
        records = data[at[:, None] + np.arange(size)]
        usable = record_.undo_fixups(records)
        number = np.ascontiguousarray(records[:, NUMBER : NUMBER + 4]).view("<u4")[:, 0].astype(np.int64)
        flags = np.ascontiguousarray(records[:, 0x16:0x18]).view("<u2")[:, 0]
        good = (usable > 0) & (np.ascontiguousarray(records[:, 4:6]).view("<u2")[:, 0] >= FIRST_NUMBERED)
        good &= (number > 0) | (flags & IN_USE != 0)
        at, place = at[good], number[good] * size
        i = np.searchsorted(runs[:, 0], place, side="right") - 1
        there = (i >= 0) & (place < runs[i, 0] + runs[i, 2]) & (runs[i, 1] >= 0)
        return at[there], (runs[i, 1] + place - runs[i, 0] - offset)[there]

    return Placer(repr(runs.tolist()), find, BITS, bounded=mft is not None)
