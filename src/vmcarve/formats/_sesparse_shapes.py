"""An SESparse extent without its headers: the directory's entries are marked, and the layout follows from the capacity.

Seen (one file of ESXi): every region starts where the one before ends, at a MiB; the directory at 2 MiB. For 512 MiB of
disk the tables take one MiB and the back map another.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ..model import GUESSED, SECTOR, Clue, Container, Orphan, Patch, Reader, Stowed, TablePieces
from ._rebuilt import Laid, opened, orphan
from ._shapes import I64, Numbers, distinct, rows_of
from ._stowed import in_row

MIB = 1 << 20
MIB_SECTORS = MIB // SECTOR
DIRECTORY_AT = 2 * MIB
VOLATILE = (0xCAFECAFE).to_bytes(8, "little")
USED = 0x1000_0000  # the high half of an entry that names a table
ENTRIES = Numbers(illegal=0xFFFF_FFFF_0000_0000 ^ USED << 32)
ROWS = (ENTRIES.rule("<u8", 4096),)
TABLE_GRAINS = 4096
GRAIN = 4096  # bytes
WINDOW = 512 * MIB  # bytes of disk for which the regions grow
MAX_TABLES = 1 << 17  # of a directory of one MiB: 2 TiB


def shapes(blocks: npt.NDArray[np.uint8], image_offset: I64) -> Iterable[TablePieces]:
    """First blocks of directories: entries are 0 or the mark over the number of a table, all different."""
    words, where = rows_of(blocks, image_offset, "<u8", blocks.shape[1])
    row = ENTRIES.sieve(words)
    if not len(row):
        return
    value = words[row].astype(np.int64)
    used, number = value >> 32 == USED, value & 0xFFFF_FFFF
    good = (number[:, 0] < MAX_TABLES) & ((number == 0) | used).all(axis=1) & (number < MAX_TABLES).all(axis=1)
    good &= distinct(number, used)
    at = where[row[good]]
    yield TablePieces("sesparse.gd", TABLE_GRAINS * 4096, at, np.full((len(at), 1), -1, np.int64),
                      np.full(len(at), DIRECTORY_AT))


def rebuild(reader: Reader, clue: Clue, open_sesparse: Callable[[Reader], Container]) -> Orphan | None:
    """The extent at the clue's origin, as large as the place of its back map says."""
    view = Laid(reader, clue.origin)
    for windows in _windows(view):
        bitmap = -(-windows // 64)
        capacity = windows * WINDOW
        if capacity - WINDOW < clue.size <= capacity:
            capacity = clue.size // SECTOR * SECTOR
        places = [1, 1, 2, 2, MIB_SECTORS, MIB_SECTORS]
        at = DIRECTORY_AT // SECTOR
        for size in (1, windows, bitmap, windows):
            places += [at, size * MIB_SECTORS]
            at += size * MIB_SECTORS
        places += [at, windows * (WINDOW // SECTOR)]
        head = struct.pack("<26Q", 0xCAFEBABE, 0x2_0000_0001, capacity // SECTOR, 8, 64, 0, 0, 0, 0, 0, *places)
        patches = [Patch(0, head.ljust(SECTOR, b"\0"), "rebuilt", GUESSED), *_volatile(view)]
        c = opened(open_sesparse, Laid(reader, clue.origin, patches),
                   "rebuilt from the directory, capacity " + ("the guest's" if capacity == clue.size else "rounded up"))
        agree = c is not None and all(x.ok for x in c.checks if x.name in (
            "tables and back map agree", "no byte is claimed twice"))
        if c is not None and agree and (c.guests[0].map.file_offset >= 0).any():
            return orphan(c, clue.origin, "sesparse.directory", reader.size)
    return None


def stow(reader: Reader) -> Iterable[Stowed]:
    """Grains in their order: all regions of the file begin at a MiB."""
    return in_row(0, reader.size, GRAIN)


def _volatile(view: Laid) -> list[Patch]:
    """The volatile header in the second sector, where it is lost: nothing to replay, the next table after the used."""
    if view.read(SECTOR, 8) == VOLATILE:
        return []
    entries = np.frombuffer(view.read(DIRECTORY_AT, MIB), "<u8").astype(np.int64)
    used = entries[entries >> 32 == USED] & 0xFFFF_FFFF
    ours = VOLATILE + struct.pack("<3Q", int(used.max(initial=-1)) + 1, 0, 0)
    return [Patch(SECTOR, ours.ljust(SECTOR, b"\0"), "rebuilt", GUESSED)]


def _windows(view: Laid) -> Iterable[int]:
    """How many windows of disk the file can have: a back map begins where the layout has it for that many, or that is
    lost, and these are as many as the tables take that the directory names.
    """
    named = np.flatnonzero(np.frombuffer(view.read(DIRECTORY_AT, MIB), "<u8") >> np.uint64(32) == USED)
    taken = -(-(int(named[-1]) + 1) * TABLE_GRAINS * GRAIN // WINDOW) if len(named) else 0
    for windows in range(1, MAX_TABLES * TABLE_GRAINS * GRAIN // WINDOW + 1):
        at = DIRECTORY_AT + MIB * (1 + windows + -(-windows // 64))
        first = int.from_bytes(view.read(at, 8), "little")
        if first >> 60 == 1 or windows == taken and view.missing(at, 8):
            yield windows
