"""A Reader over a part of another."""

from __future__ import annotations

from ..model import Reader


class Window:
    """A Reader over a part of another, offsets counted from its start."""

    def __init__(self, reader: Reader, start: int, size: int) -> None:
        self._reader = reader
        self._start = start
        self._size = max(0, min(size, reader.size - start))

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset >= self._size:
            return b""
        return self._reader.read(self._start + offset, min(length, self._size - offset))

    def missing(self, offset: int, length: int) -> bool:
        return offset < 0 or offset + length > self._size or self._reader.missing(self._start + offset, length)
