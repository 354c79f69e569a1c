"""A container without its header: a new one is laid over what is left, and the format opens it as any other."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import DATA, EXTERNAL, LOST, PLAIN, Check, Container, GuestMap, Orphan, Patch, Reader


@dataclass(frozen=True, slots=True)
class Laid:
    """A reader in file offsets of a contiguous container that begins at image_offset `base` (negative: before the
    image), with `patches` over it; `lost` (start, end): ranges that hold other bytes now, so they count as missing."""

    reader: Reader
    base: int
    patches: Sequence[Patch] = ()
    lost: Sequence[tuple[int, int]] = field(default=())

    @property
    def size(self) -> int:
        return max(0, self.reader.size - self.base)

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length <= 0:
            return b""
        ahead = min(length, max(0, -(offset + self.base)))
        out = bytearray(bytes(ahead) + self.reader.read(offset + self.base + ahead, length - ahead))
        for start, end in self.lost:
            low, high = max(start, offset), min(end, offset + len(out))
            if low < high:
                out[low - offset : high - offset] = bytes(high - low)
        for patch in self.patches:
            low, high = max(patch.file_offset, offset), min(patch.file_offset + len(patch.data), offset + len(out))
            if low < high:
                out[low - offset : high - offset] = patch.data[low - patch.file_offset : high - patch.file_offset]
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        gaps = [(offset, offset + length)]
        for patch in self.patches:
            start, end = patch.file_offset, patch.file_offset + len(patch.data)
            gaps = [part for low, high in gaps for part in ((low, min(high, start)), (max(low, end), high))
                    if part[0] < part[1]]
        return any(
            low + self.base < 0 or self.reader.missing(low + self.base, high - low)
            or any(start < high and low < end for start, end in self.lost) for low, high in gaps)


@dataclass(frozen=True, slots=True)
class Pieced:
    """The same of a container in pieces. runs: (file_offset, image_offset, length), file_offset rising."""

    reader: Reader
    runs: Sequence[tuple[int, int, int]]
    patches: Sequence[Patch] = ()

    @property
    def size(self) -> int:
        return max((f + n for f, _, n in self.runs), default=0)

    def read(self, offset: int, length: int) -> bytes:
        out = bytearray(max(0, min(length, self.size - offset)))
        for at, part in self._parts(offset, len(out)):
            out[at - offset : at - offset + len(part)] = part
        return bytes(out)

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
        first = max(0, bisect.bisect_right(self.runs, (offset, 1 << 62, 0)) - 1)
        for f, p, n in self.runs[first:]:
            low, high = max(f, offset), min(f + n, offset + length)
            if f >= offset + length:
                break
            if low < high:
                yield low, self.reader.read(p + low - f, high - low)
        for patch in self.patches:
            low, high = max(patch.file_offset, offset), min(patch.file_offset + len(patch.data), offset + length)
            if low < high:
                yield low, patch.data[low - patch.file_offset : high - patch.file_offset]

    def missing(self, offset: int, length: int) -> bool:
        ranges = [*((f, f + n) for f, _, n in self.runs), *((p.file_offset, p.file_offset + len(p.data))
                                                           for p in self.patches)]
        at = offset
        for start, end in sorted(r for r in ranges if r[1] > offset and r[0] < offset + length):
            if start > at:
                return True
            at = max(at, end)
        return at < offset + length


def opened(fmt_open: Callable[[Reader], Container], view: Laid | Pieced, why: str) -> Container | None:
    """The container as it reads with our patches, which are told as ours; None when it is none."""
    try:
        container = fmt_open(view)
    except Damaged:
        return None
    container.patches = [*_under(container.patches, view.patches), *view.patches]
    container.detail["header"] = why
    container.checks.append(Check("header is the file's own", False, why))
    return container


def _under(patches: Sequence[Patch], ours: Sequence[Patch]) -> list[Patch]:
    """The container's own patches; one that changes bytes of ours (a name made plain) stands instead of ours there."""
    return [p for p in patches if not any(p.file_offset < o.file_offset + len(o.data) and o.file_offset < p.file_offset
                                          + len(p.data) for o in ours)]


def lose_untold(container: Container, start: npt.NDArray[np.int64], span: int) -> None:
    """Guest bytes that no table tells are LOST, not empty: all but [start, start + span) for each of `start`, rising.

    A table that we wrote has an empty entry where the true one is not known.
    """
    disk = container.guests[0]
    m = disk.map
    edges = np.unique(np.concatenate([m.guest_offset, start, start + span]))
    edges = edges[edges < disk.virtual_size]
    row = np.searchsorted(m.guest_offset, edges, "right") - 1
    i = np.searchsorted(start, edges, "right") - 1
    told = (i >= 0) & (edges < start[np.maximum(i, 0)] + span) if len(start) else np.zeros(len(edges), bool)
    inside = edges - m.guest_offset[row]
    data = (m.state[row] == DATA) | (m.state[row] == EXTERNAL)
    state = np.where(told | data, m.state[row], LOST)
    length = np.diff(np.append(edges, disk.virtual_size))
    encoded = m.encoding[row] != PLAIN
    keep = ~encoded | (inside == 0)  # an encoded cluster is one run, and never cut
    length = np.where(encoded, m.length[row], length)
    place = np.where(data, m.file_offset[row] + np.where(encoded, 0, inside), -1)
    stored = np.where(encoded, m.stored[row], length)
    disk.map = GuestMap.build(edges[keep], length[keep], state[keep], place[keep], m.encoding[row][keep], stored[keep])


def orphan(container: Container, base: int, rule: str, image_size: int) -> Orphan:
    """The container as one run from image_offset `base`; what would lie before the image is left out."""
    first = max(0, -base)
    length = min(container.size, image_size - base) - first
    return Orphan(container, np.array([[first, base + first, max(0, length)]], np.int64), rule)
