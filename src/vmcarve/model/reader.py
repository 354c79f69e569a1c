"""What evidence, containers and guests are read through."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

SECTOR = 512


@runtime_checkable
class Reader(Protocol):
    """Random access to an address space: an image (image offsets) or a container through a map (file offsets).

    `read` never raises for an offset inside or beyond the space: it returns fewer bytes at the end (none beyond it,
    and none for a negative offset), and zeros where the bytes are missing; `missing` tells which those are.
    """

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def missing(self, offset: int, length: int) -> bool:
        """True if any byte of [offset, offset + length) is not there (unreadable, not found, or beyond the end)."""
        ...
