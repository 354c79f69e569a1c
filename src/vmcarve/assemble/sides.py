"""Whether the bytes of an image go on over the borders of its blocks: where a run ends they mostly do not.

Inside a file content stays of its kind and text goes on amid a word; where the blocks of two files meet they are any
two blocks. So of each place at which a run may end or begin, the border there speaks for it the more, the less what
lies on both sides of it belongs together. All places of a break are weighed at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..model import Reader
from .content.joins import LEAST_SHARE, STAYS, Kind, Shares, before, behind, bits, kinds_of

U8s = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
BLOCK = 4096
CHUNK = 16  # blocks that are looked at together
SAMPLE = 512  # ours: blocks of an image that stand for all of it
MAX_CHUNKS = 1 << 16  # ours: that are remembered, some 100 bytes each
READ = 1536  # bytes of text on each side of a border that are asked
MOST_READ = 64  # ours: blocks of a gap of whose texts it is asked whether they go on amid a word: that costs most
MAX_TEXTS = 1 << 18  # ours: borders amid text that are remembered
MOST = 3.0  # nats that a border says


@dataclass(slots=True)
class Sides:
    """The borders of an image's blocks, asked again and again at the same places."""

    image: Reader
    _kinds: dict[tuple[int, int], U8s] = field(default_factory=dict[tuple[int, int], U8s])
    _texts: dict[int, float] = field(default_factory=dict[int, float])
    _shares: Floats | None = None

    def apart(self, at: int, asked: npt.NDArray[np.bool_]) -> Floats:
        """float64[n], nats: what speaks for a border before each of n blocks from image offset `at` on being one
        between two files, where it is asked; else 0."""
        n = len(asked)
        kind = self._kinds_at(at - BLOCK, n + 1)
        left, right = kind[:-1], kind[1:]
        same, other = self._told()
        out = np.where(left == right, same[left], other[left])
        out[(left == Kind.FILL) | (right == Kind.FILL) | ~asked] = 0.0
        text = (left == Kind.TEXT) & (right == Kind.TEXT) & asked
        for k in np.flatnonzero(text).tolist() if n <= MOST_READ else ():
            out[k] = self._text(at + k * BLOCK)
        return np.clip(-np.log(2.0) * out, -MOST, MOST)

    def _text(self, at: int) -> float:
        """The bits by which the text before image offset `at` goes on there."""
        if at not in self._texts:
            if len(self._texts) >= MAX_TEXTS:
                self._texts.clear()
            data = self.image.read(at - READ, 2 * READ)
            share = float(self.shares[Kind.TEXT])
            shares = Shares({(Kind.TEXT, -1): share})
            self._texts[at] = bits(before(data[:READ], READ), behind(data[READ:], READ), shares)
        return self._texts[at]

    def _told(self) -> tuple[Floats, Floats]:
        """Bits by the kind before a border: if that behind it is the same, and if it is another."""
        share = self.shares
        return np.log2(STAYS / share), np.log2((1 - STAYS) / np.maximum(1 - share, 0.1))

    @property
    def shares(self) -> Floats:
        """float64[kinds]: how common each kind is among the image's blocks that hold something, of a sample."""
        if self._shares is None:
            blocks = self.image.size // BLOCK
            places = range(0, blocks, max(1, blocks // SAMPLE))
            data = b"".join(self.image.read(i * BLOCK, BLOCK) for i in places)
            rows = np.frombuffer(data, np.uint8)[: len(data) // BLOCK * BLOCK].reshape(-1, BLOCK)
            kind = kinds_of(rows[rows.any(axis=1)])
            count = np.bincount(kind, minlength=len(Kind))
            self._shares = np.maximum(count / max(1, len(kind)), LEAST_SHARE)
        return self._shares

    def _kinds_at(self, at: int, n: int) -> U8s:
        """uint8[n]: the Kind of each block from image offset `at` on; what lies outside the image is zeros."""
        first, phase = at // BLOCK, at % BLOCK
        parts: list[U8s] = []
        for number in range(first // CHUNK, (first + n - 1) // CHUNK + 1):
            if (number, phase) not in self._kinds:
                begin = number * CHUNK * BLOCK + phase
                data = (self.image.read(begin, CHUNK * BLOCK) if begin >= 0 else b"").ljust(CHUNK * BLOCK, b"\0")
                if len(self._kinds) >= MAX_CHUNKS:
                    self._kinds.clear()
                self._kinds[number, phase] = kinds_of(np.frombuffer(data, np.uint8).reshape(CHUNK, BLOCK))
            parts.append(self._kinds[number, phase])
        return np.concatenate(parts)[first % CHUNK :][:n]
