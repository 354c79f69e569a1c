"""Loose sectors of a FAT32 or FAT16 table and first blocks of directories place themselves.

Files lie mostly in one run, so most entries of the table name the entry behind them: a sector of the table tells its
own number. A directory begins with an entry "." that names its own first cluster. Nothing in either names the volume.

Source: Microsoft FAT specification 1.03.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..model import Placer, Reader
from ._fat_boot import Boot, parse_boot
from ._fat_directory import DOT, DOT_DOT

I64 = npt.NDArray[np.int64]
SECTOR = 512
BITS = 16.0
SHARE = 0.5  # of a sector's entries must name the entry behind them


def placer(reader: Reader, offset: int, limit: int) -> Placer | None:
    """How loose metadata of the volume at `offset` places itself; None on FAT12, whose entries straddle bytes."""
    boot = parse_boot(reader.read(offset, SECTOR))
    if boot is None or boot.bits not in (16, 28) or boot.total > limit:
        return None

    def find(data: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
        sectors = data[: len(data) // SECTOR * SECTOR].reshape(-1, SECTOR)
        parts = [_table(sectors, boot), _directories(sectors, boot)]
        return np.concatenate([p for p, _ in parts]), np.concatenate([v for _, v in parts])

    return Placer(repr(boot), find, BITS)


def _table(sectors: npt.NDArray[np.uint8], boot: Boot) -> tuple[I64, I64]:
    row, first = of_table(sectors, boot.bits, boot.clusters)
    position = row * SECTOR
    place = boot.reserved + first // (SECTOR // (4 if boot.bits == 28 else 2)) * SECTOR
    return (np.tile(position, boot.copies),
            np.concatenate([place + i * boot.table for i in range(boot.copies)]) if boot.copies else place)


def of_table(sectors: npt.NDArray[np.uint8], bits: int, clusters: int) -> tuple[I64, I64]:
    """Which of sectors uint8[n, 512] are of a table of so many clusters, and the number of the first entry of each."""
    wide = bits == 28
    count = SECTOR // (4 if wide else 2)
    # the first entries decide which sectors are looked at whole
    head = sectors[:, :16].copy().view("<u4" if wide else "<u2").astype(np.int64) & ((1 << bits) - 1)
    likely = np.flatnonzero(((head[:, 1:] - head[:, :-1]) == 1).any(axis=1) & (head[:, 0] <= clusters + 2))
    entries = sectors[likely].view("<u4" if wide else "<u2").astype(np.int64) & ((1 << bits) - 1)
    first = entries - np.arange(count) - 1  # the number of the sector's first entry, as each entry tells it
    told = np.where((first % count == 0) & (first >= 0) & (first <= clusters + 2), first, -1)
    guess = np.sort(told, axis=1)[:, count * 3 // 4]  # of so many entries that most agree, any but the lowest
    agree = (told == guess[:, None]).mean(axis=1)
    good = (guess >= 0) & (agree >= SHARE)
    return likely[good].astype(np.int64), guess[good]


def _directories(sectors: npt.NDArray[np.uint8], boot: Boot) -> tuple[I64, I64]:
    rows, cluster = own_clusters(sectors, boot.bits)
    good = (cluster >= 2) & (cluster < boot.clusters + 2)
    return rows[good] * SECTOR, boot.heap + (cluster[good] - 2) * boot.cluster


def own_clusters(blocks: npt.NDArray[np.uint8], bits: int) -> tuple[I64, I64]:
    """Which of blocks uint8[n, 64 or more] begin a directory, and the cluster that each says it has."""
    words = blocks[:, :4].copy().view("<u4")[:, 0]
    rows = np.flatnonzero(words == int.from_bytes(DOT[:4], "little"))
    rows = rows[[blocks[r, :11].tobytes() == DOT and blocks[r, 32:43].tobytes() == DOT_DOT for r in rows.tolist()]] \
        if len(rows) else rows
    low = blocks[rows, 26].astype(np.int64) | blocks[rows, 27].astype(np.int64) << 8
    high = blocks[rows, 20].astype(np.int64) | blocks[rows, 21].astype(np.int64) << 8
    return rows.astype(np.int64), low | (high << 16 if bits == 28 else 0)
