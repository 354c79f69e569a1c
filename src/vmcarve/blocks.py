"""Candidates of a dense kind, where they lie in the buffer that was read: only bytes that are asked for are copied.

Structures overlap (an XFS inode may have 512 or 2048 bytes, and every 512 may begin one), so copying each whole would
cost several times the read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._ext.gather import gather, gather_fields

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


class Blocks:
    """n structures of `size` bytes at `at` (int64[n], rising) in `buffer`; read like an array uint8[n, size].

    `b[:, 4:8]` copies those bytes of each, `b[rows]` chooses structures without copying, `b[rows, 4:8]` does both.
    """

    __slots__ = ("at", "buffer", "size")

    def __init__(self, buffer: U8, at: I64, size: int) -> None:
        self.buffer, self.at, self.size = buffer, at, size

    @classmethod
    def of(cls, blocks: Blocks | U8) -> Blocks:
        """The rows of uint8[n, size] (not copied when C-contiguous), or what is one already."""
        if isinstance(blocks, Blocks):
            return blocks
        n, size = blocks.shape
        return cls(np.ascontiguousarray(blocks).reshape(-1), np.arange(n, dtype=np.int64) * size, size)

    def __len__(self) -> int:
        return len(self.at)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.at), self.size

    def __getitem__(self, key: Any) -> Any:
        rows, columns = key if isinstance(key, tuple) else (key, None)
        if isinstance(rows, (int, np.integer)):
            row = self.buffer[int(self.at[rows]) :][: self.size]
            return row if columns is None else row[columns]
        chosen = self
        if not (isinstance(rows, slice) and rows == slice(None)):
            chosen = Blocks(self.buffer, self.at[rows], self.size)
        if columns is None:
            return chosen
        if isinstance(columns, slice):
            first, last, step = columns.indices(self.size)
            return chosen.bytes(first, max(0, last - first))[:, ::step]
        return chosen.bytes(columns if columns >= 0 else self.size + columns, 1)[:, 0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        whole = self.bytes(0, self.size)
        return whole if dtype is None else whole.astype(dtype)

    def bytes(self, first: int, length: int) -> U8:
        """uint8[n, length]: a copy of the bytes from `first` on of each."""
        if not 0 <= first <= first + length <= self.size:
            raise IndexError(f"bytes {first} to {first + length} of structures of {self.size}")
        out = np.empty((len(self.at), length), np.uint8)
        gather(self.buffer, self.at, first, out)
        return out

    def part(self, first: int, length: int) -> Blocks:
        """Bytes [first, first + length) of each as structures of their own; nothing is copied."""
        if not 0 <= first <= first + length <= self.size:
            raise IndexError(f"bytes {first} to {first + length} of structures of {self.size}")
        return Blocks(self.buffer, self.at + first, length)

    def field(self, at: int | I64, kind: str) -> npt.NDArray[Any]:
        """[n] of one field of each: `kind` as numpy names it ("<u4", ">u8"); at: its place, or one place each."""
        width = np.dtype(kind).itemsize
        if isinstance(at, (int, np.integer)):
            return self.bytes(int(at), width).view(kind)[:, 0]
        if len(at) and not (0 <= int(at.min()) and int(at.max()) + width <= self.size):
            raise IndexError(f"a field of {width} bytes lies outside structures of {self.size}")
        out = np.empty((len(self.at), width), np.uint8)
        gather(self.buffer, self.at + at, 0, out)
        return out.view(kind)[:, 0]

    def fields(self, *wanted: tuple[int, str]) -> list[npt.NDArray[Any]]:
        """[n] of each (place, kind) as `field` gives it, read in one pass: large structures leave the inner caches
        between two. Name the widest first, then none lies askew."""
        widths = np.array([np.dtype(kind).itemsize for _, kind in wanted], np.int64)
        first = np.array([at for at, _ in wanted], np.int64)
        if (first < 0).any() or (first + widths > self.size).any():
            raise IndexError(f"fields {wanted} do not lie in structures of {self.size}")
        n, ends = len(self.at), np.cumsum(widths)
        out = np.empty(n * int(widths.sum()), np.uint8)
        gather_fields(self.buffer, self.at, first, widths, out)
        return [out[n * int(end - width) : n * int(end)].view(kind)
                for (_, kind), width, end in zip(wanted, widths, ends, strict=True)]


def distinct(rows: U8) -> tuple[list[bytes], npt.NDArray[np.int32]]:
    """The different rows of uint8[n, k], and which of them each row is (int32[n]). Fast where they repeat in runs."""
    if len(rows) == 0:
        return [], np.zeros(0, np.int32)
    rows = np.ascontiguousarray(rows)
    words = rows.view(np.uint64) if rows.shape[1] % 8 == 0 else rows  # few long columns compare faster than many short
    if all((words[:, i] == words[0, i]).all() for i in range(words.shape[1])):
        return [rows[0].tobytes()], np.zeros(len(rows), np.int32)
    first = np.ones(len(rows), np.bool_)
    first[1:] = np.logical_or.reduce([words[1:, i] != words[:-1, i] for i in range(words.shape[1])])
    names, which = np.unique(rows[first].view(f"V{rows.shape[1]}")[:, 0], return_inverse=True)
    return [name.tobytes() for name in names], which.astype(np.int32)[np.cumsum(first) - 1]
