"""What the sweep looks for, and what it confirms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .reader import SECTOR, Reader


@dataclass(frozen=True, slots=True)
class Signature:
    """A magic that the sweep looks for.

    magic: 2 to 16 fixed bytes, at byte `at` of the structure (the magic must lie inside one 512-byte sector).
    kind: what `confirm` would call it ("vdi.header"). Structures start at multiples of 512 bytes.
    dense: True when an image can hold hundreds of thousands of them; dense kinds are confirmed by
    `confirm_batch` only, arrays in, arrays out; `size` is then the number of bytes that it needs from the start.
    also: (at, mask, value), bytes elsewhere in the structure (1 to 16 of them) that must equal `value` under `mask`:
    what `confirm` asks for anyhow. The kernel tests it, so that a magic which stands there by chance, or in a text
    about formats, costs next to nothing. Its place counts from the structure's start, like the magic's.
    """

    magic: bytes
    kind: str
    at: int = 0
    dense: bool = False
    size: int = SECTOR
    also: tuple[int, bytes, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """One confirmed structure (one row of evidence.arrow). A magic alone is never evidence.

    container_offset: where in its container file these bytes lie (a pin), if the structure proves it.
    guest_offset: where on the guest disk they lie; volume_offset: where in their volume (partition) they lie.
    identity: UUID or other name that ties structures together; value: one number worth keeping (a size, a record
    number). confidence: 0..1, the reasons are in the module that confirmed it.
    """

    kind: str
    image_offset: int
    length: int
    container_offset: int | None = None
    guest_offset: int | None = None
    volume_offset: int | None = None
    identity: str | None = None
    value: int | None = None
    count: int = 1
    confidence: float = 1.0


@dataclass(slots=True)
class EvidenceBatch:
    """Confirmed structures of one dense kind, as arrays of equal length n.

    image_offset int64[n] rising; length int (bytes each); value int64[n] or None; volume_offset int64[n] (-1 unknown)
    or None; identity: list of n names, one name for all, or None; which int32[n]: where given, `identity` lists the
    names that are met and which[i] is the place there of structure i's.
    """

    kind: str
    image_offset: npt.NDArray[np.int64]
    length: int
    value: npt.NDArray[np.int64] | None = None
    volume_offset: npt.NDArray[np.int64] | None = None
    identity: Sequence[str] | str | None = None
    confidence: float = 1.0
    which: npt.NDArray[np.int32] | None = None


Confirm = Callable[[Reader, int, Signature], Evidence | None]
# (blocks: Blocks, read like uint8[n, signature.size]; image_offset int64[n]; signature) -> batch
ConfirmBatch = Callable[[Any, npt.NDArray[np.int64], Signature], EvidenceBatch | None]
