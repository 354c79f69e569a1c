"""First clusters of FAT32 and FAT16 directories, which state their own number: their "." entry names it.

Nothing in them names the volume, and no checksum proves them: what they tell is believed where many agree.

Source: Microsoft FAT specification 1.03.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..model import SECTOR, EvidenceBatch, Signature
from ._fat_boot import ENTRY
from ._fat_chains import FIRST

I64 = npt.NDArray[np.int64]
KIND = "fat.directory"
DOT, DOT_DOT = b".          ", b"..         "
DELETED, LONG_NAME = 0xE5, 0x0F  # first byte of a name; attributes
ATTRIBUTES, DIRECTORY, OTHER = 11, 0x10, 0xC8  # other: a volume's label, and two bits that nothing has
LOOKED = 4  # entries of a cluster, of which one belongs to a long name where any does
SIZE, LAST = 28, 0x0FFFFFF6  # directories state no size; the largest number of a cluster
SIGNATURE = Signature(DOT, KIND, dense=True, size=2 * ENTRY,
                      also=(ENTRY, b"\xff" * len(DOT_DOT) + b"\xd8", DOT_DOT + b"\x10"))


def confirm_batch(blocks: Any, image_offset: I64, signature: Signature) -> EvidenceBatch | None:
    """Entries "." and ".." as both are written. value: the cluster that a directory says it begins with."""
    heads = np.ascontiguousarray(blocks[:, : 2 * ENTRY])
    own, above = own_numbers(heads), own_numbers(heads[:, ENTRY:])
    good = (heads[:, ATTRIBUTES] & (OTHER | DIRECTORY)) == DIRECTORY
    good &= (own >= FIRST) & (own <= LAST) & (above <= LAST) & (above != own)
    for entry in (0, ENTRY):
        good &= ~heads[:, entry + SIZE : entry + ENTRY].any(axis=1)
    found = np.flatnonzero(good)
    return EvidenceBatch(KIND, image_offset[found], SECTOR, value=own[found], confidence=0.8) if len(found) else None


def own_numbers(entries: npt.NDArray[np.uint8]) -> I64:
    """int64[n]: the first cluster that each of uint8[n, 32 or more] names. FAT16 has zeros for the upper half."""
    return sum((entries[:, at].astype(np.int64) << shift for at, shift in ((26, 0), (27, 8), (20, 16), (21, 24))),
               np.zeros(len(entries), np.int64))


def own_number(data: bytes) -> int:
    """The number that the first cluster of a directory states, -1 when it is none."""
    if data[: len(DOT)] != DOT or data[ENTRY : ENTRY + len(DOT_DOT)] != DOT_DOT:
        return -1
    return int(own_numbers(np.frombuffer(data[:ENTRY], np.uint8).reshape(1, -1))[0])


def of_directory(data: bytes, *, first: bool) -> bool:
    """Whether a cluster holds entries of a directory, and nothing behind the last. first: it is the directory's first.

    Only such a one may name itself, and only a later one may begin with no entry.
    """
    table = np.frombuffer(data, np.uint8)[: len(data) // ENTRY * ENTRY].reshape(-1, ENTRY)
    used = table[:, 0] != 0
    count = int(np.argmin(used)) if not used.all() else len(used)
    if table[count:].any() or not first and data.startswith(DOT):
        return False
    long = table[:count, ATTRIBUTES] & 0x3F == LONG_NAME
    sane = table[:count, ATTRIBUTES] & 0xC0 == 0
    sane &= np.where(long, ~table[:count, [12, 26, 27]].any(axis=1), (table[:count, 1:ATTRIBUTES] >= 0x20).all(axis=1))
    return bool(sane.all()) and (count > 0 or not first)


def continued(blocks: npt.NDArray[np.uint8]) -> I64:
    """Which of blocks uint8[n, 512 or more] go on with a directory: some long name in them is that of the entry behind
    it, as both say. Arrays in, arrays out, but for the few that look like it."""
    looked = min(blocks.shape[1] // ENTRY, LOOKED)
    rows = blocks[:, : looked * ENTRY].reshape(len(blocks), looked, ENTRY)
    likely = (rows[:, :, ATTRIBUTES] == LONG_NAME) & ~rows[:, :, [12, 26, 27]].any(axis=2)
    found = np.flatnonzero(likely.any(axis=1))
    return found[[of_directory(data := blocks[i].tobytes(), first=False) and _named(data) for i in found.tolist()]] \
        if len(found) else found


def _named(cluster: bytes) -> bool:
    for at in range(ENTRY, len(cluster), ENTRY):
        before, row = cluster[at - ENTRY : at], cluster[at : at + ENTRY]
        if before[ATTRIBUTES] == LONG_NAME != row[ATTRIBUTES] and before[0] & 0x1F == 1 \
                and before[13] == checksum(row[:ATTRIBUTES]):
            return True
    return False


def checksum(short: bytes) -> int:
    """What the entries of a long name say of the short one."""
    out = 0
    for byte in short:
        out = ((out >> 1) + (out << 7 & 0x80) + byte) & 0xFF
    return out
