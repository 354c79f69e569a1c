"""Directory, tables and back map of an SESparse extent in pieces. Source: QEMU block/vmdk.c (vmdk_open_se_sparse)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..model import SECTOR, Reader, Want
from ._wants import BLOCK, OUR_MAX_WANTS, Words, missing, table

USED = np.uint64(0x1000_0000)  # the high half of a directory entry that names a table
HALF = np.uint64(0xFFFF_FFFF)
KINDS = (1, 2, 3)  # top nibbles of table entries: given back, zeros, a grain
TABLE_BYTES = 64 * SECTOR


def wants(reader: Reader, directory: tuple[int, int], tables: int, grains: int) -> list[Want]:
    """What is not in its place. directory: file offset, and entries; tables: file offset of the first; grains: that the
    disk has.
    """
    out: list[Want] = []

    def named(words: Words) -> npt.NDArray[np.bool_]:
        return (words >> np.uint64(32) == USED) & (words & HALF < directory[1] + 4096)

    def stored(words: Words) -> npt.NDArray[np.bool_]:
        return np.isin(words >> np.uint64(60), KINDS) & (grain_of(words) < 2 * grains + 4096)

    at, count = directory
    rows = [table(at + i * 8, "sesparse.gd", "<u8", named, count=min(BLOCK // 8, count - i), empty=i > 0,
                  places=lambda words: (words & HALF) + np.uint64(1))
            for i in range(0, min(count, OUR_MAX_WANTS * BLOCK // 8), BLOCK // 8)]
    for row in rows:
        if missing(reader, row):
            out.append(row)
            continue
        words = np.frombuffer(reader.read(row.file_offset, BLOCK), "<u8").astype(np.uint64)
        for number in (words[named(words)] & HALF).tolist():
            first = tables + int(number) * TABLE_BYTES
            blocks = [table(first + i, "sesparse.gt", "<u8", stored, empty=True, places=_named)
                      for i in range(0, TABLE_BYTES, BLOCK)]
            # a table is allocated for what it names: one that names nothing is another file's zeros
            some = any(any(reader.read(b.file_offset, BLOCK)) for b in blocks)
            out += [b for b in blocks if not some or missing(reader, b)]
            if len(out) > OUR_MAX_WANTS:
                return out
    return out


def _named(words: Words) -> Words:
    """A number for each grain of the file that is named, 0 for none."""
    return np.where(words >> np.uint64(60) == KINDS[-1], grain_of(words) + np.uint64(1), np.uint64(0))


def grain_of(words: Words) -> Words:
    """The grain of the file that a table entry names: its low 12 bits lie above its high bits."""
    return (words >> np.uint64(48)) & np.uint64(0xFFF) | (words & np.uint64(0xFFFF_FFFF_FFFF)) << np.uint64(12)
