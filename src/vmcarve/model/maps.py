"""Where the bytes of a guest lie in its container."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

DATA, HOLE, UNALLOCATED, LOST, EXTERNAL = 0, 1, 2, 3, 4
PLAIN, DEFLATE, ZLIB, ZSTD = 0, 1, 2, 3
ENCODING_NAMES = ("plain", "deflate", "zlib", "zstd")


@dataclass(frozen=True, slots=True)
class Streams:
    """Of the encoded runs of a GuestMap (`decoded.taken`): place int64[n], the image offset where each was read, -1
    where it lay in several parts; taken int64[n], bytes that the stream took, -1 where it does not decode."""

    place: npt.NDArray[np.int64]
    taken: npt.NDArray[np.int64]


@dataclass(slots=True)
class GuestMap:
    """guest_offset -> file_offset, as runs: arrays of equal length, guest_offset rising, no gap, no overlap.

    guest_offset, length int64: the guest bytes of the run.
    state uint8: DATA (stored in this container at file_offset), HOLE (the container says zero), UNALLOCATED (not in
    this layer: the parent's bytes, or zero when there is no parent), LOST (the table that would tell is gone or its
    entry points outside the container), EXTERNAL (in another file: `Container.members`, file_offset is in that file).
    file_offset int64: -1 unless DATA or EXTERNAL. encoding uint8: PLAIN, or how the stored bytes decode to `length`
    guest bytes (DEFLATE raw RFC 1951, ZLIB RFC 1950, ZSTD one frame). stored int64: bytes at file_offset (= length
    when PLAIN). Encoded runs are one per cluster and never merged. streams: what is known of their bytes so far.
    """

    guest_offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    state: npt.NDArray[np.uint8]
    file_offset: npt.NDArray[np.int64]
    encoding: npt.NDArray[np.uint8]
    stored: npt.NDArray[np.int64]
    streams: Streams | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.guest_offset)

    @classmethod
    def flat(cls, size: int, file_offset: int = 0, state: int = DATA) -> GuestMap:
        """One run for the whole disk."""
        return cls.build([0], [size], [state], [file_offset if state in (DATA, EXTERNAL) else -1])

    @classmethod
    def build(cls, guest_offset: Any, length: Any, state: Any, file_offset: Any,
              encoding: Any = None, stored: Any = None) -> GuestMap:
        """From sequences or arrays; neighbouring plain runs that continue each other are merged."""
        g = np.asarray(guest_offset, np.int64)
        n = np.asarray(length, np.int64)
        s = np.asarray(state, np.uint8)
        f = np.asarray(file_offset, np.int64)
        e = np.zeros(len(g), np.uint8) if encoding is None else np.asarray(encoding, np.uint8)
        c = n.copy() if stored is None else np.asarray(stored, np.int64)
        keep = n > 0
        if not keep.all():
            g, n, s, f, e, c = g[keep], n[keep], s[keep], f[keep], e[keep], c[keep]
        if len(g) > 1:
            same = (s[1:] == s[:-1]) & (e[1:] == PLAIN) & (e[:-1] == PLAIN) & (g[1:] == g[:-1] + n[:-1])
            follows = np.where((s[1:] == DATA) | (s[1:] == EXTERNAL), f[1:] == f[:-1] + n[:-1], True)
            first = np.concatenate(([True], ~(same & follows)))
            start = np.flatnonzero(first)
            n = np.add.reduceat(n, start)
            g, s, f, e = g[start], s[start], f[start], e[start]
            c = np.where(e == PLAIN, n, c[start])
        return cls(g, n, s, f, e, c)

    @classmethod
    def from_units(cls, size: int, unit: int, state: Any, file_offset: Any) -> GuestMap:
        """From one entry per allocation unit (state uint8[k], file_offset int64[k]); the last unit is cut at size."""
        k = len(state)
        g = np.arange(k, dtype=np.int64) * unit
        n = np.minimum(unit, size - g)
        return cls.build(g, n, state, file_offset)
