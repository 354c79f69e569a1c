"""Files that begin with ciphertext: what an attack left of a disk whose map the host still knows.

No disk begins with bytes that are as even as random ones: a partition table, a file system or a header does, also where
the guest is encrypted. Where one does, the map is sound and the content is not, and how much else of it was encrypted
nobody says. Compressed bytes can be as even: where such follow, it is not to be seen where the ciphertext ends. But who
encrypts does so in round lengths, and what ends at another place goes on in the guest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..filemap import FileMap, FileView
from ..model import MISSING, Reader
from .segments import BLOCK

STEP = 1 << 20
ROUND = 64 << 10  # bytes of which a part that is encrypted is a multiple
LEAST = 16 << 10  # bytes: what is shorter can be a key or a compressed boot loader
MOST_UNEVEN = 400.0  # chi squared of 255 degrees: random blocks of 4 KiB exceed it once in 10^7
RULE = "encrypted"


def even(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """bool[n]: of blocks uint8[n, 4096] those in which every byte value is about as frequent as in random bytes."""
    keys = blocks.astype(np.int64) + 256 * np.arange(len(blocks))[:, None]
    count = np.bincount(keys.ravel(), minlength=256 * len(blocks)).reshape(-1, 256)
    mean = blocks.shape[1] / 256
    return ((count - mean) ** 2).sum(axis=1) / mean < MOST_UNEVEN


def opening(view: Reader) -> int:
    """Bytes from the begin on of which all blocks are even: 0 where that is not enough to tell."""
    at = 0
    for step in [BLOCK, *[STEP] * (view.size // STEP + 1)]:
        length = min(step, view.size - at) // BLOCK * BLOCK
        if length <= 0 or view.missing(at, length):
            break
        uneven = np.flatnonzero(~even(np.frombuffer(view.read(at, length), np.uint8).reshape(-1, BLOCK)))
        if len(uneven):
            at += int(uneven[0]) * BLOCK
            break
        at += length
    return at if at >= LEAST else 0


def without_opening(image: Reader, file_map: FileMap) -> tuple[FileMap, bool]:
    """A file's map without the ciphertext that it begins with, as far as that surely goes; and whether there is any.

    Of a round length the greatest power of two is sure: the rest may be even bytes of the guest.
    """
    length = opening(FileView(image, file_map))
    if not length:
        return file_map, False
    if length > file_map.size - BLOCK:
        return file_map, True  # all of it: there is nothing to tell it from a guest that is encrypted
    sure = 0 if length % ROUND else 1 << length.bit_length() - 1
    rest = file_map.cut(sure, file_map.size - sure)
    return FileMap.build([(0, sure, -1, MISSING, RULE), *rest]), True
