"""How a file lies in an image: one run, or which breaks it has and of what kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .truth import Extent

OWN_GAP = 4 << 20  # bytes; the host's own blocks inside a run are fewer (ext4: descriptors kept for growth)

Area = tuple[int, int]  # image_offset, length in bytes

ONE_RUN = "one run"
IN_PLACE = "host holes in place"
PACKED = "host holes packed"
METADATA = "host metadata inside"
GAPS = "small gaps inside"
FRAGMENTED = "fragmented"
HARDEST = (FRAGMENTED, GAPS, METADATA, PACKED, IN_PLACE, ONE_RUN)


@dataclass
class Lay:
    """Pieces of a file, and its breaks by kind. A piece ends where the delta of the next byte in file order changes.

    in_place: the file has a hole and the image skips as much. packed: the file has a hole, the image has none.
    metadata: the file goes on, the image skips blocks of the host's own. gaps: the image skips a little that no file
    holds. jumps: all else; backward: those that lead to a lower place in the image.
    """

    pieces: int = 0
    in_place: int = 0
    packed: int = 0
    metadata: int = 0
    gaps: int = 0
    jumps: int = 0
    backward: int = 0

    @property
    def shape(self) -> str:
        """The hardest break that the file has."""
        named = (
            (self.jumps, FRAGMENTED),
            (self.gaps, GAPS),
            (self.metadata, METADATA),
            (self.packed, PACKED),
            (self.in_place, IN_PLACE),
        )
        return next((name for count, name in named if count), ONE_RUN)

    def to_json(self) -> dict[str, Any]:
        """The counts and the shape."""
        return {**asdict(self), "shape": self.shape}


def hardest(lays: Iterable[dict[str, Any]]) -> str:
    """The shape of a disk in several files: that of the file with the hardest break."""
    shapes = {lay["shape"] for lay in lays if lay}
    return next((shape for shape in HARDEST if shape in shapes), ONE_RUN)


def lay_of(extents: Sequence[Extent], others: Sequence[Area] = (), own: Sequence[Area] = ()) -> Lay:
    """The lay of a file whose extents rise in file order.

    `others` are areas that are content of files, `own` areas that the host holds for itself."""
    lay = Lay()
    end = at_end = 0
    for file_offset, at, length, mark in extents:
        if mark == "inline":
            continue
        hole, gap = file_offset - end, at - at_end
        if not lay.pieces or gap != hole:
            lay.pieces += 1
        if lay.pieces > 1 or end:
            _count(lay, hole, gap, (at_end, at), others, own)
        end, at_end = file_offset + length, at + length
    return lay


def _count(lay: Lay, hole: int, gap: int, between: Area, others: Sequence[Area], own: Sequence[Area]) -> None:
    """Count one break; `between` are the first and the end byte of what the image skips."""
    if gap == hole:
        lay.in_place += hole > 0
    elif 0 <= gap <= OWN_GAP and _shared(between, own) == gap:
        lay.packed += hole > 0
        lay.metadata += gap > 0
    elif hole == 0 and 0 < gap <= OWN_GAP and not _shared(between, others):
        lay.gaps += 1
    else:
        lay.jumps += 1
        lay.backward += gap < 0


def _shared(between: Area, areas: Sequence[Area]) -> int:
    """Bytes of [first, end) that lie in `areas`, which do not overlap."""
    return sum(max(0, min(between[1], at + length) - max(between[0], at)) for at, length in areas)
