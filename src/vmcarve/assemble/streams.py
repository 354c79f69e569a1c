"""Containers of streams in pieces: units that prove themselves when they decode, laid where the tables have them.

A unit (a compressed grain or cluster) has a place in the file by the container's tables, and a length. Where its mark
states which one it is, it is looked up (`Format.marks`); where it has none, the unit behind a break is tried at the
blocks around. What decodes whole at one delta is placed. A unit that a break cuts lies between two known deltas: every
border of host blocks in it is tried, and the one at which it decodes is the break. What does not decode is a hole.

Cost: one look at the image for formats with marks; each unit is decoded once, each cut one at most once for each of its
blocks and pair of deltas; searches are bounded by AWAY and MAX_SEARCHED.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..codec import MAX_CLUSTER, decode_counted, likely
from ..errors import Damaged
from ..filemap import FileMap, FileView
from ..model import DATA, GUESSED, LOST, MISSING, PLAIN, SECTOR, Container, Format, Marks, Reader, Units
from .segments import BLOCK
from .state import Claims
from .window import read_into, steps

Int64s = npt.NDArray[np.int64]
RULE = "joined"  # of a row: units that decode give its place
CHAIN = "joined.chain"  # checked units without a gap from the header on: each break lies inside one that is checked
DECODERS = max(1, min(4, os.cpu_count() or 1))
STEP = 4 << 20
PART = 1 << 20  # bytes that are searched at once
AWAY = 1 << 30  # ours: bytes before and behind a break in which its other side is searched
MAX_SEARCHED = 32 << 30  # ours: bytes that are searched for one container
MAX_UNITS = 1 << 23  # ours: 512 GiB at 64 KiB
MAX_PAIRS = 64  # ours: marks that say the same
AHEAD = 4  # units behind a break that are searched
NOWHERE = np.iinfo(np.int64).min
LIKELY_BYTES = 16  # of a stream that tell whether it may be one
ALIKE = 4  # marks of one run: two files in which so many are alike hold the same there
GAP = 8  # units without a mark of their own over which a run of marks goes on


@dataclass(slots=True)
class Stream:
    """One container of streams that begins at image offset `start`.

    map: as it was opened, tables included. phase: bytes of the host's block before the first byte. pins: (file, image
    offset)s that are known. delta int64[n]: where each unit begins (image offset - start - file offset), NOWHERE
    unknown; sure bool[n]: it decodes; place int64[blocks]: the delta of each block of the file that units prove.
    """

    start: int
    format: Format
    container: Container
    map: FileMap
    units: Units
    phase: int = 0
    pins: Sequence[tuple[int, int]] = ()
    delta: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    sure: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    tail: Int64s = field(default_factory=lambda: np.empty(0, np.int64))  # the delta where each ends, by a mark there
    used: Int64s = field(default_factory=lambda: np.empty(0, np.int64))  # bytes of each that decodes
    place: Int64s = field(default_factory=lambda: np.empty(0, np.int64))
    # by unit: (first block, end, delta before, delta behind) of borders at each of which it decodes
    doubt: dict[int, tuple[int, int, int, int]] = field(default_factory=dict[int, tuple[int, int, int, int]])
    searched: int = 0
    open: bool = False  # a break lies in what no unit holds

    def __post_init__(self) -> None:
        u = self.units
        self.delta, self.tail = np.full((2, len(u)), NOWHERE, np.int64)
        self.sure = np.zeros(len(u), bool)
        self.used = np.zeros(len(u), np.int64)
        end = int((u.file_offset + u.stored).max(initial=0))
        self.place = np.full((max(end, self.map.size, u.size) + self.phase) // BLOCK + 2, NOWHERE, np.int64)

    def blocks(self, i: int, used: int | None = None) -> tuple[int, int]:
        """[first, end) of the blocks of the file that hold unit `i`, or the first `used` bytes of it."""
        f = int(self.units.file_offset[i]) + self.phase
        return f // BLOCK, (f + (used or int(self.units.stored[i])) - 1) // BLOCK + 1

    def before(self, i: int) -> set[int]:
        """The delta at the end of the unit before `i`, where that is known."""
        return {int(self.place[self.blocks(i - 1, int(self.used[i - 1]))[1] - 1])} if i and self.sure[i - 1] else set()

    def proved(self) -> list[tuple[int, int, int]]:
        """(first block, blocks, delta in blocks) of what the units prove, where blocks count from the first byte."""
        return [] if self.phase else [(f, n, delta // BLOCK) for f, n, delta in _runs(self.place)]

    def chain(self, start: int) -> int:
        """Where the checked units end that follow each other without a gap from file offset `start` on, at the header's
        delta. A break between two of them lies inside a checked one: so they are of one file."""
        u, at, delta = self.units, start, 0
        if u.check is None:
            return start
        for i in range(len(u)):
            if not self.sure[i] or int(u.file_offset[i]) != at or int(self.delta[i]) != delta:
                break
            at += int(self.used[i])
            delta = int(self.place[self.blocks(i, int(self.used[i]))[1] - 1])
        return at

    def holds(self, file_map: FileMap, start: int, end: int) -> bool:
        """Whether the map has [start, end) where the units prove it."""
        for f, n, p, _, _ in file_map.cut(start, end - start):
            blocks = self.place[(f + self.phase) // BLOCK : (f + n + self.phase - 1) // BLOCK + 1]
            if (blocks != p - f - self.start).any():
                return False
        return True

    def prove(self, i: int, used: int, cut: list[tuple[int, int]]) -> None:
        """Takes the places of a unit whose `used` bytes decode: (first block, delta) of each of its parts."""
        self.sure[i], self.used[i] = True, used
        self.delta[i] = cut[0][1]
        _, end = self.blocks(i, used)
        for (first, delta), (stop, _) in zip(cut, [*cut[1:], (end, 0)], strict=True):
            self.place[first:stop] = delta


def units_of(container: Container) -> Units | None:
    """The encoded runs of its guest maps, each once."""
    rows: list[Int64s] = []
    for guest in container.guests:
        m = guest.map
        pick = np.flatnonzero((m.state == DATA) & (m.encoding != PLAIN))
        rows.append(np.stack((m.file_offset[pick], m.stored[pick], m.length[pick],
                              m.encoding[pick].astype(np.int64)), axis=1))
    table = np.concatenate(rows) if rows else np.empty((0, 4), np.int64)
    _, first = np.unique(table[:, 0], return_index=True)
    table = table[first][:MAX_UNITS]
    if not len(table):
        return None
    f, stored, length, encoding = table.T
    least = np.where((f + stored) % SECTOR == 0, np.maximum(stored - SECTOR, 0), stored - 1)  # sectors, or bytes
    follows = np.append(f[1:] - f[:-1], MAX_CLUSTER)
    packed = (follows <= stored) & (np.append(f[1:], 0) % BLOCK != 0)
    stored = np.minimum(stored, follows)
    least = np.minimum(np.where(packed, stored - 1, least), stored - 1)  # one behind the other, to the byte
    return Units(f, stored, least, length, encoding.astype(np.uint8), np.full(len(f), -1, np.int64))


@dataclass(slots=True)
class Looks:
    """Every mark of each format in an image, looked for when it is first asked for.

    room int64[k, 2]: image ranges that are looked at.
    """

    image: Reader
    room: Int64s
    _found: dict[tuple[str, int], Marks] = field(default_factory=dict[tuple[str, int], Marks])

    def marks(self, fmt: Format, phase: int) -> Marks:
        """At image offsets of this phase (mod 512)."""
        key = fmt.name, phase
        if key not in self._found:
            self._found[key] = look(self.image, self.room, fmt, phase)
        return self._found[key]


def join(image: Reader, streams: list[Stream], looks: Looks, whole: Claims) -> None:
    """Places the units of all streams: their maps become better. whole: what containers have that need no joining."""
    taken, room = Claims(), looks.room
    for name, phase in sorted({(s.format.name, s.start % SECTOR) for s in streams if s.format.marks is not None}):
        own = [s for s in streams if s.format.name == name and s.start % SECTOR == phase]
        _by_marks(image, own, looks.marks(own[0].format, phase), whole)
    for s in streams:
        _follow(image, s)
    for s in streams:
        _close(image, s)
        _claim(s, taken)
    for s in streams:
        if ((s.units.key < 0) & (s.units.encoding != PLAIN)).any():
            _search(image, s, room, taken)
        s.map = _laid(s, image.size)


# --- marks -----------------------------------------------------------------------------------------------------------
def look(image: Reader, room: Int64s, fmt: Format, phase: int) -> Marks:
    """Every mark of a format in `room`, at image offsets of this phase (mod 512)."""
    assert fmt.marks is not None
    parts: list[Marks] = []
    buffer = np.empty(STEP, np.uint8)
    for start, length in room.tolist():
        first = start + (phase - start) % SECTOR
        for at in steps(image, first, start + length - SECTOR + 1, STEP):
            n = read_into(image, at, buffer[: min(STEP, start + length - at)]) // SECTOR
            sectors = buffer[: n * SECTOR].reshape(n, SECTOR)
            parts.append(fmt.marks(sectors, np.arange(at, at + n * SECTOR, SECTOR, dtype=np.int64)))
    nothing = np.empty(0, np.int64)
    return Marks(*(np.concatenate([nothing, *(getattr(p, c) for p in parts)])
                   for c in ("image_offset", "key", "span")))


def _by_marks(image: Reader, streams: list[Stream], marks: Marks, whole: Claims) -> None:
    """Gives units the deltas that their marks state; then decodes them. whole: what other containers have.

    A header's own run comes first, then the run with most marks, the nearest of equals.
    """
    rows: list[Int64s] = []  # stream, delta, unit, mark
    order = np.argsort(marks.key, kind="stable")
    keys = marks.key[order]
    for o, s in enumerate(streams):
        u = s.units
        low, high = np.searchsorted(keys, u.key), np.searchsorted(keys, u.key, side="right")
        count = np.where((u.key >= 0) & (high - low <= MAX_PAIRS), high - low, 0)
        unit = np.repeat(np.arange(len(u)), count)
        index = order[np.arange(len(unit)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)]
        span, delta = marks.span[index], marks.image_offset[index] - s.start - u.file_offset[unit]
        fits = (span <= u.stored[unit]) & (span > u.least[unit]) & (delta % BLOCK == 0)
        rows.append(np.stack((np.full(int(fits.sum()), o), delta[fits], unit[fits], index[fits]), axis=1))
    table = np.concatenate(rows)
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    new = (np.diff(table[:, :2], axis=0) != 0).any(axis=1) | (np.diff(table[:, 2]) > GAP)
    runs = np.split(table, np.flatnonzero(new) + 1) if len(table) else []
    used = held(whole, marks.image_offset)
    own = [run for run in runs if int(run[0, 1]) == 0]  # at the delta of the header
    others = sorted((run for run in runs if int(run[0, 1]) != 0), key=lambda run: (-len(run), abs(int(run[0, 1]))))
    at = 0
    while at < len(others) and len(others[at]) >= ALIKE:
        at += 1
    for run in [*own, *others[:at]]:
        _take(streams, [run], used)
    while at < len(others):
        same = [run for run in others[at:] if len(run) == len(others[at])]
        at += len(same)
        _take(streams, same, used)
    for s in streams:
        _tails(s, marks.image_offset[order], keys)
    jobs = [(s, i, int(s.delta[i])) for s in streams for i in np.flatnonzero(s.delta != NOWHERE).tolist()]
    for (s, i, delta), used in zip(jobs, _decode_all(image, jobs), strict=True):
        if used:
            s.prove(i, used, [(s.blocks(i)[0], delta)])


def held(claims: Claims, at: Int64s) -> npt.NDArray[np.bool_]:
    """Which of these image offsets are claimed."""
    ranges = np.array([(0, 0), *claims.ranges()], np.int64)
    return np.asarray(at < ranges[np.searchsorted(ranges[:, 0], at, side="right") - 1, 1])


def _tails(s: Stream, image_offset: Int64s, keys: Int64s) -> None:
    """Where units end, by marks inside them that only one place has. keys int64[n], rising, of the marks there."""
    u = s.units
    if u.tail_key is None or u.tail_at is None:
        return
    low, high = np.searchsorted(keys, u.tail_key), np.searchsorted(keys, u.tail_key, side="right")
    one = np.flatnonzero((high - low == 1) & (u.tail_key >= 0))
    delta = image_offset[low[one]] - s.start - u.tail_at[one]
    fits = delta % BLOCK == 0
    s.tail[one[fits]] = delta[fits]


def _take(streams: list[Stream], runs: list[Int64s], used: npt.NDArray[np.bool_]) -> None:
    """Runs of one weight: what two of them claim, a mark or a unit, goes to neither."""
    marks: dict[int, int] = {}
    units: dict[tuple[int, int], int] = {}
    open_: list[list[tuple[int, int, int, int]]] = []
    for run in runs:
        rows = [(o, d, i, m) for o, d, i, m in run.tolist() if not used[m] and streams[o].delta[i] == NOWHERE]
        open_.append(rows)
        for o, _, i, m in rows:
            marks[m] = marks.get(m, 0) + 1
            units[o, i] = units.get((o, i), 0) + 1
    for rows in open_:
        for o, d, i, m in rows:
            used[m] = True
            if marks[m] == 1 and units[o, i] == 1:
                streams[o].delta[i] = d


# --- decoding --------------------------------------------------------------------------------------------------------
def _good(u: Units, i: int, data: bytes) -> int:
    """Bytes that unit `i` takes of `data`, 0 where that does not begin with the whole of it."""
    if u.check is not None:
        return u.check(i, data)
    out, used = decode_counted(data[u.head : int(u.stored[i])], int(u.encoding[i]), int(u.length[i]))
    return used + u.head if out is not None and used + u.head > u.least[i] else 0


def _at(image: Reader, s: Stream, i: int, delta: int) -> bytes:
    p, n = s.start + delta + int(s.units.file_offset[i]), int(s.units.stored[i])
    if p < 0:
        return bytes(-p) + image.read(0, n + p) if n + p > 0 else b""  # its end only may be there
    return image.read(p, n)


def _decode_all(image: Reader, jobs: list[tuple[Stream, int, int]]) -> Iterator[int]:
    """The bytes that each (stream, unit, delta) takes, 0 where it does not decode; threads decode, some at a time."""
    def some(part: list[tuple[Stream, int, int]]) -> list[int]:
        return [_good(s.units, i, _at(image, s, i, delta)) for s, i, delta in part]

    parts = [jobs[at : at + 16] for at in range(0, len(jobs), 16)]
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        for told in pool.map(some, parts):
            yield from told


def _follow(image: Reader, s: Stream) -> None:
    """Units without marks, from what is pinned on: as long as they decode at the delta of the unit before or behind."""
    u = s.units
    pins = sorted({(0, 0), *((f, p - f - s.start) for f, p in s.pins)})
    places = np.array([f for f, _ in pins], np.int64)
    for i in range(len(u)):
        if s.sure[i] or u.key[i] >= 0 or u.encoding[i] == PLAIN:
            continue
        k = int(np.searchsorted(places, u.file_offset[i], side="right")) - 1
        near = {pins[k][1], pins[min(k + 1, len(pins) - 1)][1]}
        for delta in near | s.before(i):
            if delta % BLOCK == 0 and _try(image, s, i, delta):
                _backwards(image, s, i, delta)
                break


def _try(image: Reader, s: Stream, i: int, delta: int) -> bool:
    data = _at(image, s, i, delta)
    h = s.units.head
    head = np.frombuffer(data[h : h + LIKELY_BYTES].ljust(LIKELY_BYTES, b"\0"), np.uint8).reshape(1, -1)
    used = _good(s.units, i, data) if likely(int(s.units.encoding[i]), head)[0] else 0
    if used:
        s.prove(i, used, [(s.blocks(i)[0], delta)])
    return used > 0


def _backwards(image: Reader, s: Stream, i: int, delta: int) -> None:
    while i and not s.sure[i - 1] and _try(image, s, i - 1, delta):
        i -= 1


# --- units that breaks cut -----------------------------------------------------------------------------------------
def _close(image: Reader, s: Stream) -> None:
    """Every unit between two known deltas: at which border does it decode?"""
    for i in np.flatnonzero(~s.sure).tolist():
        _straddle(image, s, i)


def _ends(s: Stream, i: int) -> tuple[set[int], set[int]]:
    """Deltas that the first, and the last, block of unit `i` may have."""
    first, end = s.blocks(i)
    left = {int(s.delta[i]), int(s.place[first]), *s.before(i)}
    right = {int(s.place[end - 1]), int(s.place[end]), int(s.tail[i])}
    if i + 1 < len(s.units):
        right.add(int(s.delta[i + 1]))
    return left - {NOWHERE}, right - {NOWHERE}


def _straddle(image: Reader, s: Stream, i: int) -> bool:
    """Whether there is one break at which unit `i` decodes."""
    lefts, rights = _ends(s, i)
    first, end = s.blocks(i)
    f = int(s.units.file_offset[i])
    found: dict[bytes, tuple[int, list[tuple[int, int]]]] = {}  # by the bytes: equal blocks may lie on both sides
    for one in {*lefts, *rights}:
        data = _at(image, s, i, one)
        used = _good(s.units, i, data)
        if used:
            found[data[:used]] = used, [(first, one)]
    for left in lefts if not found else ():
        for right in rights - {left}:
            a, b = _at(image, s, i, left), _at(image, s, i, right)
            for c in range(first + 1, end):
                cut = c * BLOCK - s.phase - f
                data = a[:cut] + b[cut:]
                used = _good(s.units, i, data)
                if used > cut:
                    found.setdefault(data[:used], (used, [(first, left), (c, right)]))
    if len(found) == 1:
        s.prove(i, *next(iter(found.values())))
        return True
    cuts = sorted(cut[1][0] for _, cut in found.values() if len(cut) > 1)
    if len(cuts) > 1 and len(lefts) == len(rights) == 1:  # what lies before and behind all of them is known
        left, right = *lefts, *rights
        s.place[first : cuts[0]] = left
        s.place[cuts[-1] : max(s.blocks(i, used)[1] for used, _ in found.values())] = right
        s.doubt[i] = cuts[0], cuts[-1], left, right
    return False


# --- the other side of a break -------------------------------------------------------------------------------------
def _search(image: Reader, s: Stream, room: Int64s, taken: Claims) -> None:
    """Units without marks behind a break: one of the first of them begins at some block around."""
    for i in range(len(s.units)):
        if s.sure[i] or s.units.key[i] >= 0 or s.units.encoding[i] == PLAIN or (i and not s.sure[i - 1] and i % AHEAD):
            continue
        behind = np.flatnonzero(s.sure[i : i + AHEAD])
        wanted = range(i, i + (int(behind[0]) if len(behind) else min(AHEAD, len(s.units) - i)))
        _find(image, s, wanted, room, taken)
        _claim(s, taken)
    _close(image, s)
    _claim(s, taken)


def _find(image: Reader, s: Stream, wanted: Sequence[int], room: Int64s, taken: Claims) -> None:
    """Places the one of the wanted units that decodes nearest to where the unit before them lies, in blocks that nobody
    has, and all beside it that decode there too."""
    u = s.units
    before = np.flatnonzero(s.sure[: wanted[0]])
    around = s.start + int(u.file_offset[wanted[0]]) + (int(s.delta[before[-1]]) if len(before) else 0)
    grid = (s.start - s.phase) % BLOCK
    low, high = max(0, around - AWAY), min(image.size, around + AWAY)
    reads: list[tuple[int, int]] = []
    for start, length in taken.free_of(room[(room[:, 0] < high) & (room.sum(axis=1) > low)]).tolist():
        a, b = max(start, low), min(start + length, high)
        first = a + (grid - a) % BLOCK
        reads += [(at, min(PART, b - at)) for at in range(first, b - BLOCK + 1, PART)]
    for at, size in sorted(reads, key=lambda r: abs(r[0] + r[1] // 2 - around)):
        if s.searched >= MAX_SEARCHED:
            return
        s.searched += size
        data = image.read(at, size)
        n = len(data) // BLOCK
        blocks = np.frombuffer(data, np.uint8, n * BLOCK).reshape(n, BLOCK)
        for i in wanted:
            inside = int(u.file_offset[i] + s.phase) % BLOCK
            rows = blocks[:, inside + u.head : inside + u.head + LIKELY_BYTES]
            if rows.shape[1] < LIKELY_BYTES:
                continue  # the stream's first bytes lie in the next block: the units beside it will do
            for b in np.flatnonzero(likely(int(u.encoding[i]), rows)).tolist():
                delta = at + b * BLOCK + inside - s.start - int(u.file_offset[i])
                used = _good(u, i, _at(image, s, i, delta))
                if used and _settles(image, s, i, used, delta):
                    return


def _settles(image: Reader, s: Stream, i: int, used: int, delta: int) -> bool:
    """Takes a unit that decodes somewhere, if a unit beside it agrees: streams of one length are alike."""
    a, b = s.blocks(i, used)
    before = s.place[a:b].copy()
    s.prove(i, used, [(a, delta)])
    first, last = i, i
    while last + 1 < len(s.units) and not s.sure[last + 1] and _try(image, s, last + 1, delta):
        last += 1
    while first and not s.sure[first - 1] and _try(image, s, first - 1, delta):
        first -= 1
    if first < last or any(0 <= k < len(s.units) and not s.sure[k] and _straddle(image, s, k) for k in (i - 1, i + 1)):
        return True
    s.sure[i], s.delta[i], s.place[a:b] = False, NOWHERE, before
    return False


# --- the map -------------------------------------------------------------------------------------------------------
def _claim(s: Stream, taken: Claims) -> None:
    for f, n, delta in _runs(s.place):
        at = s.start + delta + f * BLOCK - s.phase
        taken.add_range(max(0, at), at + n * BLOCK)


def _runs(place: Int64s) -> Iterator[tuple[int, int, int]]:
    """(first block, blocks, delta) of each run of one delta that is known."""
    cut = np.flatnonzero(np.diff(place)) + 1
    for a, b in zip([0, *cut.tolist()], [*cut.tolist(), len(place)], strict=True):
        if place[a] != NOWHERE:
            yield a, b - a, int(place[a])


def _with_guesses(s: Stream) -> Int64s:
    """The places of all blocks, a break in doubt amid those that it may have."""
    place = s.place.copy()
    for first, end, left, right in s.doubt.values():
        place[first : (first + end) // 2], place[(first + end) // 2 : end] = left, right
    return place


def without_lost(image: Reader, s: Stream, file_map: FileMap) -> FileMap:
    """The map without the bytes of streams that do not decode in it, whatever lies there."""
    view, u = FileView(image, file_map), s.units
    rows: list[tuple[int, int, int, str, str]] = []
    at = 0
    for i in np.flatnonzero(~s.sure & (u.encoding != PLAIN)).tolist():
        f, n = int(u.file_offset[i]), int(u.stored[i])
        if f >= file_map.size or _good(u, i, view.read(f, n)):
            continue
        n = min(n, file_map.size - f)
        rows += [*file_map.cut(at, f - at), (f, n, -1, MISSING, "not-found")]
        at = f + n
    return FileMap.build([*rows, *file_map.cut(at, file_map.size - at)]) if rows else file_map


def _laid(s: Stream, image_size: int) -> FileMap:
    """Units where they are proved, what holds none as the container was opened, and holes."""
    u = s.units
    mine = s.sure | (u.encoding != PLAIN)  # plain units that do not agree are for the solver
    first = (u.file_offset[mine] + s.phase) // BLOCK
    end = (u.file_offset[mine] + s.phase + u.stored[mine] - 1) // BLOCK + 1
    change = np.zeros(len(s.place) + 1, np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, end, -1)
    held = np.cumsum(change[:-1]) > 0
    place = _with_guesses(s)
    # what no unit holds and no table is (padding, an end) goes on as before
    metadata = np.zeros(len(place), bool)
    for r in s.container.regions if not s.units.size else ():  # else they were read where the first run has them
        metadata[(r.file_offset + s.phase) // BLOCK : (r.file_offset + r.length + s.phase - 1) // BLOCK + 1] = True
    bare = ~held & ~metadata & (place == NOWHERE)
    bare[0] = False
    known = np.maximum.accumulate(np.where(bare, 0, np.arange(len(place))))
    place = place[known]
    behind = place[1:][held[1:] & ~held[:-1]]
    s.open = bool(((place[:-1][held[1:] & ~held[:-1]] != behind) & (behind != NOWHERE)).any())
    s.open |= bool((~s.sure & (u.encoding == PLAIN)).any()) or bool(s.doubt)
    rows: list[tuple[int, int, int, str, str]] = []
    behind_all = int((u.file_offset + s.used)[s.sure].max(initial=0))
    size = u.size or max(s.map.size, -(-behind_all // BLOCK) * BLOCK)
    cut = np.flatnonzero((np.diff(place) != 0) | (np.diff(held.astype(np.int8)) != 0)) + 1
    for a, b in zip([0, *cut.tolist()], [*cut.tolist(), len(place)], strict=True):
        f, end = max(0, a * BLOCK - s.phase), min(size, b * BLOCK - s.phase)
        if f >= end:
            continue
        if place[a] != NOWHERE:
            p = s.start + int(place[a]) + f
            there = max(0, min(end - f, image_size - p)) if p >= 0 else 0
            rows += [(f, there, p, GUESSED, RULE), (f + there, end - f - there, -1, MISSING, "image-end")]
        elif held[a]:
            rows.append((f, end - f, -1, MISSING, "not-found"))
        else:
            rows += s.map.cut(f, end - f)
    return FileMap.build(rows)


def stream_of(image: Reader, fmt: Format, start: int, container: Container, file_map: FileMap,
              pins: Sequence[tuple[int, int]], phase: int, units: Units | None = None) -> Stream | None:
    """The container as a stream, None when it holds none. units: where they are known already."""
    view = _Named(FileView(image, file_map))
    if units is None and fmt.units is not None:
        units = fmt.units(view, container)
    elif units is None and any(((g.map.encoding != PLAIN) | (g.map.state == LOST)).any() for g in container.guests):
        try:
            units = units_of(fmt.open(view))
        except Damaged:
            units = units_of(container)
    if units is None or not len(units):
        return None
    return Stream(start, fmt, container, file_map, units, phase, pins)


class _Named:
    """A container whose every byte counts as there: what its tables name is told, whether it lies there or not.

    What lies behind its end does not: of that there is nothing to read.
    """

    def __init__(self, inner: Reader) -> None:
        self._inner = inner
        self.size = inner.size

    def read(self, offset: int, length: int) -> bytes:
        return self._inner.read(offset, length)

    def missing(self, offset: int, length: int) -> bool:
        return offset < 0 or offset + length > self.size
