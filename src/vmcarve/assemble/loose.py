"""Loose metadata of guest volumes, looked for on the image: what states its place in its volume, whoever holds that.

It tells whose a volume is before a byte of it is placed. Metadata that lies in one piece on the image lies in one piece
of its container's file too: through the allocation table of the right container it comes to few distances between image
and file, through another one's to many, or to places that the table does not store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from ..filemap import FileMap, FileView
from ..model import GUESSED, LOST, GuestMap, Placer, Reader
from ..registry import hosts
from .asked import asked
from .segments import BLOCK
from .tails import STEP, to_file
from .window import read_view, steps

Int64s = npt.NDArray[np.int64]
Stated = tuple[Int64s, Int64s]
"""image_offset int64[n] of structures, volume_offset int64[n] where they belong; image_offset rising."""
REACH = 64 << 10  # bytes that a structure of metadata may have
RUN_BITS = 16.0  # what it speaks against a container that it makes one run more of the same metadata
ABSENT_BITS = RUN_BITS  # that a structure would lie where its table stores nothing: no less than a run of its own
MAX_ROOMS = 4  # ours: of which what was found is kept
SAMPLE = 4096  # ours: structures of a volume that are asked, spread over it
MAX_READS = 3  # ours: of one volume, each with what the last has found
ONWARD = 0.8  # share of the steps from one run on the image to the next that lead onward in a file that grew there
MOST_ONWARD = 20.0  # bits: how a file grew says less than what lies together
LEAST = 4  # structures that must be told of, and the share of them, for a container to be judged
LEAST_SHARE = 0.25


def placer_of(disk: Reader, guest_offset: int, size: int) -> Placer | None:
    """How the loose metadata of the volume at `guest_offset` of a disk places itself, None where nothing tells."""
    for kind in hosts().values():
        found = None if kind.placer is None else asked(partial(kind.placer, disk, guest_offset, size), None)
        if found is not None:
            return found
    return None


@dataclass(slots=True)
class Loose:
    """What was found of each volume of an image, by where it begins and what was known of it: in the last rooms."""

    image: Reader
    _rooms: dict[bytes, _Seen] = field(default_factory=dict[bytes, "_Seen"])

    def _in(self, room: Int64s) -> _Seen:
        key = room.tobytes()
        seen = self._rooms.pop(key, None) or _Seen()
        self._rooms[key] = seen  # the last that was asked of
        if len(self._rooms) > MAX_ROOMS:
            del self._rooms[next(iter(self._rooms))]
        return seen

    def placer(self, begin: int, size: int, room: Int64s, known: str = "") -> Placer | None:
        """How the metadata of a volume of `size` bytes that begins at image offset `begin` places itself: as it reads
        from there, or with what was found of it in the room by the placer of key `known` laid over that.
        """
        seen = self._in(room)
        key = begin, size, known
        if key not in seen.placers:
            over = seen.found[begin, known] if known else None
            seen.placers[key] = placer_of(_volume(self.image, begin, size, over), 0, size)
        return seen.placers[key]

    def look(self, wanted: list[tuple[int, Placer]], room: Int64s) -> list[Stated]:
        """The structures of each volume (where it begins, placer) in the image ranges `room` int64[k, 2]; one pass for
        all new ones."""
        known = self._in(room).found
        new = {(begin, p.key): p for begin, p in wanted if (begin, p.key) not in known}
        parts: dict[tuple[int, str], list[Stated]] = {key: [] for key in new}
        buffer = np.empty(STEP + REACH, np.uint8)
        for start, length in room.tolist() if new else []:
            for at in steps(self.image, start, start + length, STEP):
                n = min(STEP, start + length - at)
                data = read_view(self.image, at, buffer[: n + REACH])
                for key, placer in new.items():
                    position, place = placer.find(data)
                    here = position < n
                    parts[key].append((position[here] + at, place[here]))
        nothing = np.empty(0, np.int64)
        for key, found in parts.items():
            image_offset = np.concatenate([nothing, *(p for p, _ in found)])
            order = np.argsort(image_offset, kind="stable")
            known[key] = image_offset[order], np.concatenate([nothing, *(v for _, v in found)])[order]
        return [known[begin, p.key] for begin, p in wanted]


@dataclass(slots=True)
class _Seen:
    """Of one room."""

    found: dict[tuple[int, str], Stated] = field(default_factory=dict[tuple[int, str], Stated])
    placers: dict[tuple[int, int, str], Placer | None] = field(default_factory=dict[
        tuple[int, int, str], Placer | None])


def stated_by(loose: Loose, rows: dict[int, tuple[int, int]], room: Int64s) -> dict[int, tuple[Stated, float]]:
    """The loose metadata of volumes that nobody may hold, and the bits of each structure, by row.

    rows: by row of its first structure, (image offset of the volume's first byte, its length).

    A volume is read as one run from there at first, then with the metadata that was found laid over it, as long as that
    tells how more of it places itself.
    """
    out: dict[int, tuple[Stated, float]] = {}
    keys: dict[int, str] = {}
    for _ in range(MAX_READS):
        wanted: list[tuple[int, Placer]] = []
        for row, (begin, size) in rows.items():
            placer = loose.placer(begin, size, room, keys.get(row, ""))
            if placer is not None and keys.get(row) != placer.key:
                keys[row] = placer.key
                wanted.append((row, placer))
        if not wanted:
            break
        looked = loose.look([(rows[row][0], p) for row, p in wanted], room)
        out |= {row: (found, p.bits) for (row, p), found in zip(wanted, looked, strict=True)}
    return out


def _volume(image: Reader, begin: int, size: int, stated: Stated | None) -> Reader:
    """A volume with each structure where it was found: from there on it runs on, REACH at most, up to the next."""
    first = [(0, size, begin, GUESSED, "")]
    if stated is None or not len(stated[0]):
        return FileView(image, FileMap.build(first))
    whole = FileMap.build(first)
    place, index = np.unique(stated[1], return_index=True)
    rows: list[tuple[int, int, int, str, str]] = []
    at = 0
    for o, p, end in zip(place.tolist(), stated[0][index].tolist(), [*place[1:].tolist(), size], strict=True):
        rows += whole.cut(at, o - at)
        at = min(o + REACH, end, size)
        rows.append((o, at - o, p, GUESSED, ""))
    return FileView(image, FileMap.build([*rows, *whole.cut(at, size - at)]))


def against(guest_map: GuestMap, start: int, guest_offset: int, stated: Stated) -> float | None:
    """Bits against a volume's lying at `guest_offset` of the disk of a container that begins at image offset `start`.

    Only differences between containers say something. None where the container's tables tell of too few structures.
    Hosts give out space onward while a file grows, so runs that lead onward in the file too speak for a container;
    where they do not, that says nothing.
    """
    picked = np.arange(0, len(stated[0]), max(1, len(stated[0]) // SAMPLE))
    p = stated[0][picked]
    g, which = np.unique(guest_offset + stated[1][picked], return_inverse=True)
    f = to_file(guest_map, g)
    i = np.clip(np.searchsorted(guest_map.guest_offset, g, side="right") - 1, 0, None)
    known = (f >= 0) | (guest_map.state[i] != LOST) if len(guest_map) else np.zeros(len(g), bool)
    if known.sum() < max(LEAST, LEAST_SHARE * len(g)):
        return None
    there = np.flatnonzero(f[which] >= 0)
    delta = (p - f[which] - start)[there] // BLOCK
    one = _one_each(which[there], delta)
    absent = int(np.count_nonzero(known & (f < 0)))
    bits = (RUN_BITS * _runs(p[there[one]], delta[one]) + ABSENT_BITS * absent) * len(g) / float(known.sum())
    return bits - _onward(p[there[one]], delta[one])


def _one_each(place: Int64s, delta: Int64s) -> Int64s:
    """Indices, rising, of one structure for each place: of several that state it (a journal has older copies, which lie
    anywhere) that which most others share their distance with."""
    _, which, votes = np.unique(delta, return_inverse=True, return_counts=True)
    order = np.lexsort((-votes[which], place))
    return np.sort(order[np.diff(place[order], prepend=-1) != 0])


def _onward(image_offset: Int64s, delta: Int64s) -> float:
    """Bits for a file that grew onward on the image: steps between runs, against as many that lead back. image_offset
    rises."""
    first = np.flatnonzero(np.diff(delta, prepend=np.iinfo(np.int64).min))
    step = np.diff((image_offset // BLOCK - delta)[first])
    onward = int(np.count_nonzero(step > 0))
    bits = onward * np.log2(2 * ONWARD) + (len(step) - onward) * np.log2(2 * (1 - ONWARD))
    return float(min(max(bits, 0.0), MOST_ONWARD))


def _runs(image_offset: Int64s, delta: Int64s) -> int:
    """How often the distance changes along the image. A structure that has two places lies at the one that suits."""
    if not len(delta):
        return 0
    first = np.flatnonzero(np.diff(image_offset, prepend=-1))
    last = np.append(first[1:], len(delta)) - 1
    one, other = delta[first], delta[last]
    same = (one[1:] == one[:-1]) | (one[1:] == other[:-1]) | (other[1:] == one[:-1]) | (other[1:] == other[:-1])
    return int(np.count_nonzero(~same)) + 1


def stated_of_several(volumes: list[Int64s]) -> Int64s:
    """Image blocks, rising, that hold metadata which more than one volume may have: image offsets by volume."""
    blocks = [np.unique(at // BLOCK) for at in volumes]
    block, often = np.unique(np.concatenate([np.empty(0, np.int64), *blocks]), return_counts=True)
    return block[often > 1]
