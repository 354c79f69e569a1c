"""Whether one run from a container's first byte agrees with everything that it and its guest tell."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..disk import VirtualDisk
from ..filemap import FileView
from ..model import LOST, Reader
from ..verify.guest import describe
from .align import USED
from .asked import asked
from .candidate import Candidate
from .gather import expect
from .loose import Stated
from .segments import BLOCK
from .tails import agree, mapped, to_file

Int64s = npt.NDArray[np.int64]
SOUND = 0.97  # share of a guest's file ends that can be where one run has them, for the run to be believed
FEW = 4  # file ends below which their share says nothing
CHANCE = 1e-4  # that so many file ends would all lie so far in front, were they anywhere in what the guest uses


def settled(image: Reader, c: Candidate, candidates: list[Candidate]) -> bool:
    """Whether one run from the first byte agrees with everything that the container and its guest tell."""
    if c.joined and not c.plain:
        return True
    if not c.plain:
        return c.container.holds_data and all(k.ok for k in c.container.checks)
    if c.open or any((g.map.state == LOST).any() for g in c.container.guests):
        return False
    rows = c.map.rows()
    if len({p - f for f, p in c.tables} | {c.start}) > 1:
        return False  # between tables at different distances there are breaks, and nothing has looked for them yet
    if any(p <= o.start < p + n for _, n, p, _, _ in rows for o in candidates if o is not c):
        return False  # what flows around others reaches further than its size
    for f, p in c.pins:
        cut = c.map.cut(f, 1)
        if not cut or cut[0][2] != p:
            return False
    if len(c.ends) >= FEW:
        row = np.searchsorted(c.map.file_offset, c.ends.file_offset - 1, side="right") - 1
        told = [agree(image, mapped(c.map, e.file_offset), e) for i in np.unique(row)
                for e in [c.ends.picked(row == i)]]
        if any(wrong > right for right, wrong in told):  # what flows around others may go on elsewhere
            return False
        right, wrong = sum(r for r, _ in told), sum(w for _, w in told)
        if right < max(FEW, SOUND * (right + wrong)) or 2 * (right + wrong) <= len(c.ends):
            return False
        return _witnessed(c) >= CHANCE ** (1.0 / right)
    if c.flat and not reads(c):
        return False
    found = describe(VirtualDisk(FileView(image, c.map), c.container.guests[0].map))
    # an MBR alone says nothing of where the bytes of its disk lie; a GPT has its other copy at the disk's end
    sound = [v.consistent for v in found if v.consistent is not None and not (c.flat and v.kind == "mbr")]
    return bool(sound) and all(sound)


def misplaced(c: Candidate, guest_offset: int, stated: Stated) -> bool:
    """Whether loose metadata of the volume at `guest_offset` lies elsewhere than a candidate's map has it.

    A copy of what is in its place (in a log, of a table) says nothing.
    """
    at, place = stated
    f = to_file(c.container.guests[0].map, guest_offset + place)
    there = (f >= 0) & (mapped(c.map, f + 1) - 1 == at)
    filled = np.isin(place, place[there])
    right = np.unique(at[there | filled])
    wrong = np.setdiff1d(at, right)
    return len(wrong) >= FEW and len(wrong) > (1 - SOUND) * (len(right) + len(wrong))


def has_file_at(c: Candidate, place: int) -> bool:
    """Whether a file of the container's guest begins at that image offset, as its map is."""
    return any(p <= place < p + n and bool(np.isin(f + place - p, c.ends.begins)) for f, n, p, _, _ in c.map.rows()
               if p >= 0)


def _witnessed(c: Candidate) -> float:
    """The share of what a candidate's guest has in use that lies before the last of its files.

    A guest that is read through a wrong map behind a break lists files only in what lies before that.
    """
    used = np.flatnonzero(expect(c).use == USED)
    behind = to_file(c.container.guests[0].map, c.files.run[:, 2:].sum(axis=1) - 1)
    last = max(int(c.ends.file_offset[-1]), int(behind.max(initial=0)))
    return float(np.searchsorted(used, last // BLOCK, side="right")) / max(1, len(used))


def reads(c: Candidate) -> bool:
    """Whether the file systems of a guest tell what they have free: more than their first block is in its place.

    One that has most of itself in use and lists no file tells of what it gave out to its trees, which are not there.
    """
    def read() -> bool:
        free = [v.free() for v in c.volumes]
        used = [v.size - int(f[:, 1].sum()) for v, f in zip(c.volumes, free, strict=True)]
        empty = not len(c.files.size) and any(2 * n > v.size for v, n in zip(c.volumes, used, strict=True))
        return all(len(f) > 0 for f in free) and not empty

    return asked(read, False)
