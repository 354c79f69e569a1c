"""Any Reader as a source that the sweep reads: a file inside an image is looked through like an image."""

from __future__ import annotations

from ..model import Reader
from .image import ImageSource


class ViewSource(ImageSource):
    """What the sweep asks of a source, answered by `inner`: offsets are those of `inner`, missing bytes are zeros."""

    def __init__(self, inner: Reader) -> None:  # no file of its own is opened
        self._inner = inner
        self.name = "a view"

    @property
    def size(self) -> int:
        return self._inner.size

    @property
    def unreadable(self) -> list[tuple[int, int]]:
        return []

    @property
    def plain_fd(self) -> int:
        return -1  # nothing but `readinto` gives these bytes

    def read_in_order(self) -> None: ...

    def done_with(self, offset: int, length: int) -> None: ...

    def close(self) -> None: ...

    def data_from(self, offset: int) -> int:
        return offset

    def read(self, offset: int, length: int) -> bytes:
        return self._inner.read(offset, length)

    def missing(self, offset: int, length: int) -> bool:
        return self._inner.missing(offset, length)

    def readinto(self, offset: int, buffer: memoryview) -> int:
        data = self._inner.read(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)
