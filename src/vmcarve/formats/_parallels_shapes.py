"""A Parallels disk without its header: the table follows it at once, and names clusters from the file's begin."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ..model import GUESSED, SECTOR, Clue, Container, Orphan, Patch, Reader, TablePieces
from ._rebuilt import Laid, lose_untold, opened, orphan
from ._shapes import I64, Numbers, distinct, one_remainder, pieces, rows_of

CLUSTER = 1 << 20  # of QEMU and Parallels by default
TABLE_AT = 64
LEAD = TABLE_AT // 4  # entries that the header takes of the first sector
MAX_NUMBER = 1 << 22
NUMBERS = Numbers(ranges=((0, MAX_NUMBER - 1),))
KINDS = {"parallels.bat": (b"WithouFreSpacExt", CLUSTER), "parallels.bat-sectors": (b"WithoutFreeSpace", SECTOR)}
ROWS = (NUMBERS.rule("<u4"),)


def shapes(blocks: npt.NDArray[np.uint8], image_offset: I64) -> Iterable[TablePieces]:
    """Sectors of tables: numbers of clusters (new magic) or of sectors (old one), all different, 0 for none."""
    words, where = rows_of(blocks, image_offset, "<u4")
    row = NUMBERS.sieve(words)
    if not len(row):
        return
    value = words[row].astype(np.int64)
    used = value > 0
    good = (used.sum(axis=1) >= 2) & distinct(value, used)
    for kind, (_, unit) in KINDS.items():
        if unit == SECTOR:  # one remainder throughout
            good = good & one_remainder(value, used, CLUSTER // SECTOR)
        place = np.where(used, value * unit, -1)
        yield pieces(kind, CLUSTER, where[row[good]], place[good], phase=-LEAD)


def rebuild(reader: Reader, clue: Clue, open_parallels: Callable[[Reader], Container]) -> Orphan | None:
    """The file at the clue's origin, when its table lies where the header would end."""
    magic, unit = KINDS[clue.pieces.kind]
    known = np.flatnonzero(clue.first >= 0)
    own = clue.pieces.image_offset[known] - clue.origin
    if not clue.size or 2 * int((own == TABLE_AT + 4 * clue.first[known]).sum()) <= len(known):
        return None
    entries = -(-clue.size // CLUSTER)
    view = Laid(reader, clue.origin)
    table = np.frombuffer(view.read(TABLE_AT, 4 * entries), "<u4").astype(np.int64)
    used = table[(table > 0) & (table < MAX_NUMBER)] * unit
    first = -(-(TABLE_AT + 4 * entries) // unit) * unit
    data_at = max(first, int(used[used >= first].min(initial=first)) if len(used) else first)
    head = struct.pack("<16sIIIIIQIIIQ", magic, 2, 16, max(1, clue.size // SECTOR // 512), CLUSTER // SECTOR, entries,
                       clue.size // SECTOR, 0, data_at // SECTOR, 0, 0)
    lead = np.frombuffer(view.read(TABLE_AT, SECTOR - TABLE_AT), "<u4").astype(np.int64)
    patches = [Patch(0, head, "rebuilt", GUESSED)]
    ours = view.missing(0, SECTOR) or not _plausible(lead, table)
    if ours:  # the entries beside the header went with it
        patches = [Patch(0, head.ljust(SECTOR, b"\0"), "rebuilt", GUESSED)]
    c = opened(open_parallels, Laid(reader, clue.origin, patches), "rebuilt from the table")
    if c is None:
        return None
    if ours:
        rest = (SECTOR - TABLE_AT) // 4 * CLUSTER
        lose_untold(c, np.array([rest], np.int64), max(0, clue.size - rest))
    return orphan(c, clue.origin, "parallels.table", reader.size)


def _plausible(lead: I64, table: I64) -> bool:
    """Whether the entries in the header's sector are numbers as the others are."""
    top = int(table[len(lead) :].max(initial=0)) + len(lead)
    return bool((lead <= top).all())
