"""Checksums that several formats share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ._ext import crc32c as _kernel
from .blocks import Blocks
from .simd import best_path

_ALL = 0xFFFF_FFFF
_PATH = best_path()


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data` as VHDX, XFS and Btrfs store it; `crc` is the result for the bytes before it.

    ext4 leaves out both inversions: for its raw seed s the raw result is `crc32c(data, s ^ 0xFFFFFFFF) ^ 0xFFFFFFFF`.
    """
    return _kernel.crc32c_update(data, (crc ^ _ALL) & _ALL, _PATH) ^ _ALL


def crc32c_zeroed(data: bytes | bytearray | memoryview, at: int, length: int = 4) -> int:
    """CRC-32C of `data` with `length` bytes at `at` taken as zeros: how a structure sums itself."""
    view = memoryview(data)
    return crc32c(view[at + length :], crc32c(bytes(length), crc32c(view[:at])))


def crc32c_rows(blocks: npt.NDArray[np.uint8] | Blocks, crc: int = 0, *, length: int | None = None,
                zeroed: tuple[int, int] = (0, 0)) -> npt.NDArray[np.uint32]:
    """CRC-32C of the first `length` bytes (default: all) of every structure, each as `crc32c(row, crc)`.

    zeroed: (at, length) of bytes that are taken as zeros. Blocks and C-contiguous uint8[n, m] are not copied.
    """
    rows = Blocks.of(blocks)
    out = np.empty(len(rows), np.uint32)
    _kernel.crc32c_structures(rows.buffer, rows.at, rows.size if length is None else length, *zeroed,
                              (crc ^ _ALL) & _ALL, out, _PATH)
    return np.bitwise_xor(out, np.uint32(_ALL), out=out)
