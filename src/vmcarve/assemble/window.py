"""A Reader over a part of another, and the steps and buffers of a pass over one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..model import Reader


def read_into(reader: Reader, offset: int, buffer: npt.NDArray[np.uint8]) -> int:
    """Fills uint8[n] from `offset` on, without a copy where the reader can; returns the bytes filled."""
    readinto = getattr(reader, "readinto", None)
    if readinto is not None:
        return readinto(offset, memoryview(buffer.data))
    data = np.frombuffer(reader.read(offset, len(buffer)), np.uint8)
    buffer[: len(data)] = data
    return len(data)


def steps(reader: Reader, start: int, end: int, step: int) -> Iterator[int]:
    """range(start, end, step), but for those whose whole step is a hole of a sparse image."""
    data_from = getattr(reader, "data_from", None)
    data = start - 1
    for at in range(start, end, step):
        if data_from is not None and data < at:
            data = data_from(at)
        if data_from is None or data < at + step:
            yield at


def read_view(reader: Reader, offset: int, buffer: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What read_into fills of the buffer, as an array of its own that cannot be written to: who looks at one array
    several times may keep what he found, for as long as there is this array.
    """
    data = buffer[: read_into(reader, offset, buffer)]
    data.flags.writeable = False
    return data


class Window:
    """A Reader over a part of another, offsets counted from its start; what lies before that one is missing."""

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
        at, length = self._start + offset, min(length, self._size - offset)
        before = min(length, max(0, -at))
        return bytes(before) + (self._reader.read(at + before, length - before) if length > before else b"")

    def missing(self, offset: int, length: int) -> bool:
        at = self._start + offset
        return offset < 0 or at < 0 or offset + length > self._size or self._reader.missing(at, length)
