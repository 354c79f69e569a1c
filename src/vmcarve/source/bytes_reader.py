"""A Reader over bytes in memory: what tests and small embedded structures are read with."""

from __future__ import annotations

from collections.abc import Sequence


class BytesReader:
    """Reads `data`; `holes` are (offset, length) ranges that count as missing and read as zeros."""

    def __init__(self, data: bytes | bytearray | memoryview, holes: Sequence[tuple[int, int]] = ()) -> None:
        self._data = memoryview(data)
        self._holes = tuple(holes)

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length <= 0 or offset >= len(self._data):
            return b""
        out = bytearray(self._data[offset : offset + length])
        for at, n in self._holes:
            low, high = max(at, offset), min(at + n, offset + len(out))
            if low < high:
                out[low - offset : high - offset] = bytes(high - low)
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        if offset < 0 or offset + length > len(self._data):
            return True
        return any(at < offset + length and offset < at + n for at, n in self._holes)
