"""Loose $MFT records of an NTFS volume place themselves: each states its number, and $MFT's runs say where that lies.

Nothing in a record names its volume. But the first ones say what the boot sector says too: where $MFT and its mirror
lie, and how large the volume is. Records that lie beside such a one of another volume, numbered on, are that one's;
what else two volumes have alike is told apart by its neighbours only.
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
MFT, MIRROR, SPACE, BAD = 0, 1, 6, 8  # records of $MFT, $MFTMirr, $Bitmap, $BadClus
SLACK = 512  # clusters by which what a volume says of its size may differ: rounding, and sectors at its end


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
        good[good] = ~_of_others(records[good], usable[good], at[good], number[good], boot)
        at, place = at[good], number[good] * size
        i = np.searchsorted(runs[:, 0], place, side="right") - 1
        there = (i >= 0) & (place < runs[i, 0] + runs[i, 2]) & (runs[i, 1] >= 0)
        return at[there], (runs[i, 1] + place - runs[i, 0] - offset)[there]

    return Placer(repr(runs.tolist()), find, BITS, bounded=mft is not None)


def _of_others(records: npt.NDArray[np.uint8], usable: I64, at: I64, number: I64, boot: record_.Boot
               ) -> npt.NDArray[np.bool_]:
    """Which records lie in a row, as far from each other as their numbers are, with one that says that it is another
    volume's. Records that state no number lie between (mkntfs: 12 to 23)."""
    delta = at - number * boot.record_size
    row = np.cumsum(np.diff(delta, prepend=delta[:1]) != 0)
    telling = np.flatnonzero(np.isin(number, (MFT, MIRROR, SPACE, BAD)))
    others = [int(row[i]) for i in telling.tolist() if not _agrees(
        record_.parse_record(records[i].tobytes(), int(usable[i]), int(number[i])), boot)]
    return np.isin(row, others)


def _agrees(record: record_.Record, boot: record_.Boot) -> bool:
    """Whether a record of the first ones says nothing that the boot sector denies."""
    if not record.whole or not record.in_use or record.base:
        return True
    for a in record.attributes:
        if a.kind != record_.DATA or a.resident or a.first:
            continue
        if record.number in (MFT, MIRROR) and not a.named:
            runs, _ = record_.decode_runs(record, a, boot.clusters)
            if len(runs) and runs[0, 1] != (boot.mft_lcn if record.number == MFT else boot.mirror_lcn):
                return False
        elif record.number == SPACE and not a.named and abs(a.size * 8 - boot.clusters) > SLACK:
            return False
        elif record.number == BAD and a.named and abs(a.size // boot.cluster - boot.clusters) > SLACK:
            return False
    return True
