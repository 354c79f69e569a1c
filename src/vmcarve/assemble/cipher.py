"""Files that begin with ciphertext: what an attack left of a disk whose map the host still knows.

No disk begins with bytes that are as even as random ones: a partition table, a file system or a header does, also where
the guest is encrypted. Where one does, the map is sound and the content is not, and how much else of it was encrypted
nobody says. Compressed bytes can be as even: where such follow, it is not to be seen where the ciphertext ends. But who
encrypts does so in round lengths, and what ends at another place goes on in the guest. Parts that are encrypted
amid a file show by their period (`stride.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..filemap import FileMap, FileView
from ..model import Reader
from .segments import BLOCK
from .stride import PER, Bools, Stride, find, holds

STEP = 1 << 20
ROUND = PER * BLOCK  # bytes of which a part that is encrypted is a multiple
MOST_LOOKED = 1 << 30  # ours: bytes of a file in which a period must show
MAX_KEPT = 256  # ours: files of which what was looked at is kept
LEAST = 16 << 10  # bytes: what is shorter can be a key or a compressed boot loader
MOST_UNEVEN = 400.0  # chi squared of 255 degrees: random blocks of 4 KiB exceed it once in 10^7
RULE = "encrypted"


def even(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """bool[n]: of blocks uint8[n, 4096] those in which every byte value is about as frequent as in random bytes."""
    # block by block: numbers for the bytes of all of them leave the cache
    count = np.array([np.bincount(block, minlength=256) for block in blocks], np.int64).reshape(-1, 256)
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


def lost_end(view: Reader) -> bool:
    """Whether a file's end is not there, or as even as ciphertext."""
    at = max(0, view.size - ROUND) // BLOCK * BLOCK
    length = (view.size - at) // BLOCK * BLOCK
    if view.missing(at, view.size - at):
        return True
    return length > 0 and bool(even(np.frombuffer(view.read(at, length), np.uint8).reshape(-1, BLOCK)).all())


@dataclass(slots=True)
class Strides:
    """The periods at which files of an image were encrypted. Memory: a bit for each block of the files that were looked
    at, twice; those of MAX_KEPT files.
    """

    shown: list[Stride] = field(default_factory=list[Stride])
    _kept: dict[tuple[int, int], tuple[Stride | None, bytes, bytes]] = field(
        default_factory=dict[tuple[int, int], tuple[Stride | None, bytes, bytes]])

    def look(self, image: Reader, file_map: FileMap) -> None:
        """Takes note of the period that a file shows, for others that show none."""
        view = FileView(image, file_map)
        if 0 < opening(view) <= file_map.size - BLOCK:
            self._own(view)

    def of(self, view: FileView) -> Stride | None:
        """The period of a file that begins with ciphertext: its own, or that of another which it may share."""
        own, looks, known = self._own(view)
        return own or next((s for s in self.shown if holds(s, looks, known)), None)

    def _own(self, view: FileView) -> tuple[Stride | None, Bools, Bools]:
        key = int(view.map.image_offset[0]), view.size
        if key in self._kept:
            own, packed, there = self._kept[key]
            count = min(view.size, MOST_LOOKED) // BLOCK
            return own, _unpacked(packed, count), _unpacked(there, count)
        looks, known = _looks(view)
        own = find(looks, known)
        if own is not None and own not in self.shown:
            self.shown.append(own)
        if len(self._kept) < MAX_KEPT:
            self._kept[key] = own, np.packbits(looks).tobytes(), np.packbits(known).tobytes()
        return own, looks, known


def _unpacked(packed: bytes, count: int) -> Bools:
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=count).astype(np.bool_)


def without_ciphertext(image: Reader, file_map: FileMap, strides: Strides | None = None) -> tuple[FileMap, bool]:
    """A file's map without what of it is surely ciphertext, where it begins with any; and whether it does.

    Where what is encrypted comes again at a period (strides: those of other files too), all of that; else the opening.
    Of a round length the greatest power of two is sure: the rest may be even bytes of the guest.
    """
    view = FileView(image, file_map)
    length = opening(view)
    if not length:
        return file_map, False
    if length > file_map.size - BLOCK:
        return file_map, True  # all of it: there is nothing to tell it from a guest that is encrypted
    stride = (strides or Strides()).of(view)
    if stride is None:
        ranges = [] if length % ROUND else [(0, 1 << length.bit_length() - 1)]
    else:
        ranges = [(first * ROUND, min(end * ROUND, file_map.size))
                  for first, end in stride.ranges(-(-file_map.size // ROUND))]
    return file_map.without(ranges, RULE), True


def _looks(view: FileView) -> tuple[Bools, Bools]:
    """bool[n] twice: of the whole blocks of the first bytes of a file which are even, and which are there."""
    size = min(view.size, MOST_LOOKED)
    looks, known = np.zeros(size // BLOCK, np.bool_), np.zeros(size // BLOCK, np.bool_)
    for f, n, p, _, _ in view.map.cut(0, size):
        if p >= 0:
            known[-(-f // BLOCK) : (f + n) // BLOCK] = True
    for at in range(0, len(looks) * BLOCK, STEP):
        blocks = np.frombuffer(view.read(at, min(STEP, len(looks) * BLOCK - at)), np.uint8).reshape(-1, BLOCK)
        looks[at // BLOCK :][: len(blocks)] = even(blocks)
    return looks, known
