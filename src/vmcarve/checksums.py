"""Checksums that several formats share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ._ext import crc32c as _kernel

_ALL = 0xFFFF_FFFF


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of `data` as VHDX, XFS and Btrfs store it; `crc` is the result for the bytes before it.

    ext4 leaves out both inversions: for its raw seed s the raw result is `crc32c(data, s ^ 0xFFFFFFFF) ^ 0xFFFFFFFF`.
    """
    return _kernel.crc32c_update(data, (crc ^ _ALL) & _ALL) ^ _ALL


def crc32c_zeroed(data: bytes | bytearray | memoryview, at: int, length: int = 4) -> int:
    """CRC-32C of `data` with `length` bytes at `at` taken as zeros: how a structure sums itself."""
    view = memoryview(data)
    return crc32c(view[at + length :], crc32c(bytes(length), crc32c(view[:at])))


def crc32c_rows(blocks: npt.NDArray[np.uint8], crc: int = 0) -> npt.NDArray[np.uint32]:
    """CRC-32C of every row of uint8[n, m] (C-contiguous rows are not copied), each as `crc32c(row, crc)`."""
    out = np.empty(len(blocks), np.uint32)
    _kernel.crc32c_blocks(np.ascontiguousarray(blocks), (crc ^ _ALL) & _ALL, out)
    return np.bitwise_xor(out, np.uint32(_ALL), out=out)
