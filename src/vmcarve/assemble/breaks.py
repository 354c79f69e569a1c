"""Where the runs of a container meet: all breaks of an image are placed together.

Between the last point of one segment and the first of the next, in file order, lies one break (or a part that was not
found). Its place is weighed for every block of the gap at once: what the guest expects of each file block against what
lies there, breaks at round places, and above all the neighbours: a run ends where another begins, since hosts
give out space without gaps. A break whose place is clear settles others, so the clearest is settled first.

Nothing here is proof: what is placed is `guessed`, whatever its score.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .._ext.sector_tails import sector_tails
from ..model import GUESSED, MISSING, SECTOR, Reader
from . import meeting
from .align import BLOCK, COSTS, FREE, MAX_CELLS, MAX_METADATA, MAX_RANGE, UNKNOWN, USED, Pin, align
from .magics import MAGICS
from .segments import Segment, Taken
from .sides import Sides
from .state import Claims
from .tails import FileEnds

# Costs in nats, beside those of align. Set by hand on scenes whose seeds are in no table of results.
FITS = np.array([[-1.0, 0.02], [0.3, -0.8], [0.0, 0.0]])  # [USED, FREE, UNKNOWN][empty, full]: against any block's
ALIKE = 8  # blocks from the edge of a row of blocks that are alike: one there says half as much
NOWHERE = -2.5  # a block that neither run explains
AMID = -12.0  # a part between two runs that neither explains
KNOWN = 0.9  # of the blocks of a hole, those that the guest must call free for it to be a hole
MEETS = 0.7  # share of the runs that end where a known one begins, or begin where one ends, where few tell
END_WRONG = -6.0  # a file end that is not where the run has it
MAGIC_RIGHT, MAGIC_WRONG = 3.0, -3.0  # a file's first bytes where a file begins; where none does
ROUND = 0.5  # for each power of two that divides a break's file block, on a host that breaks files at round places
UNSEEN = 0.3  # the same before that is known
MAX_ROUND = 10
ROUND_BITS = 4  # a place is round when so many powers of two divide it (64 KiB)
FEW = 4  # breaks that must be known before they tell how a host breaks files
FEW_RATE = 8  # breaks that must be known before they tell how often
BENDS = 0.1  # share of the breaks that can be bends, below which none is
MOST_RATE = 5.0  # breaks by unit: files of which hardly two units follow each other
LIKELY = 0.5  # a block that a run covers with less than this chance is a hole
SURE = 1e9
NEVER = -1e6  # a break amid a unit
CLEAR = 4.0  # nats between the best place and the next: settled at once
MAX_SLACK = 1 << 13  # ours: file blocks of one gap before each of which is looked for what ended there (32 MiB)
MAX_ASKED = 256  # ours: file blocks of one gap of whose borders it is asked whether the bytes go on: one among more
# that look alike says little
SAMPLE = 1024  # ours: blocks that stand for all of an image
MAX_BRACKET = 1 << 18  # ours: file blocks of one gap whose break is looked for block by block (1 GiB)
MAX_CONTENTS = 1 << 21  # ours: blocks that are remembered; 20 bytes each
MAX_SCORES = 1 << 20  # ours: blocks of gaps of which it is remembered what the image says; some 20 bytes each
MAX_PASSES = 12  # ours: rounds of settling; then the rest is settled as it is

PADDING = "padding"  # the rule of free blocks between two runs of one delta

Int64s = npt.NDArray[np.int64]
Row = tuple[int, int, int, str, str]
Part = tuple[int, int, int | None, str]  # file blocks [first, last), delta or None, rule


@dataclass(slots=True)
class Expectation:
    """What a container's file blocks should hold. use uint8[n]: USED, FREE or UNKNOWN; ends: where the guest's files
    end; free int64[n + 1]: how many of the first k blocks are FREE. jumps: file offsets, rising, where
    the guest does not go on.
    """

    use: npt.NDArray[np.uint8]
    ends: FileEnds
    free: npt.NDArray[np.int64]
    jumps: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def vacant(self) -> npt.NDArray[np.int64]:
        """int64[n, 2]: the first block, and the one behind the last, of each row of FREE ones."""
        return np.flatnonzero(np.diff(np.concatenate(([False], self.use == FREE, [False])))).reshape(-1, 2)


@dataclass(slots=True)
class Bracket:
    """The file blocks (low, high) of a gap between two segments, and what speaks for each place of the break."""

    owner: int
    begin: int  # image offset of the container's first byte
    low: int
    high: int
    left: int  # deltas
    right: int
    from_left: npt.NDArray[np.float64]
    from_right: npt.NDArray[np.float64]
    apart: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # [n + 1] each, nats, of the left run's end and of
    # the right one's begin: how little belongs together what lies on both sides on the image
    slack: meeting.Signs  # [n + 1]: whether the right run would begin behind the end of another's file
    settled: list[Part] = field(default_factory=list[Part])

    def at(self, block: int, delta: int) -> int:
        return self.begin + (block + delta) * BLOCK


@dataclass(slots=True)
class Borders:
    """Image offsets where runs are known to begin and to end."""

    begin: list[int] = field(default_factory=list[int])  # rising
    end: list[int] = field(default_factory=list[int])
    round: float = UNSEEN
    rate: float = 0.0  # breaks by block of file, as between the points of all runs; 0 unknown
    unit: int = 1  # blocks: files break at multiples of it
    slack: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))  # nats, see meeting
    meets: float = MEETS
    blocks: int = 1  # of the image

    @property
    def reach(self) -> int:
        """Blocks that a run is likely to go on beyond its last point."""
        return int(-np.log(LIKELY) / self.rate) // self.unit * self.unit if self.rate else 1 << 62


class Contents:
    """What blocks of an image hold, as far as breaks ask: round after round looks at the same places."""

    def __init__(self, image: Reader) -> None:
        self._image = image
        self.sides = Sides(image)
        self._slack: float | None = None
        self._known: dict[tuple[int, int], tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]] = {}
        self._blocks = 0
        self._scores: dict[tuple[int, int, int], tuple[tuple[bytes, ...], npt.NDArray[np.float64]]] = {}
        self._scored = 0

    def score(self, at: int, first: int, n: int, told: tuple[bytes, ...],
              ask: Callable[[], npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        """What `ask` says of n file blocks from `first` on, if they lie from image offset `at` on; or what it said when
        the same was told of them."""
        key = at, first, n
        known = self._scores.get(key)
        if known is None or known[0] != told:
            if self._scored + n > MAX_SCORES:
                self._scores, self._scored = {}, 0
            known = self._scores[key] = told, ask()
            self._scored += n
        return known[1]

    @property
    def slack(self) -> float:
        """Of the image's blocks that hold something, the share whose data end before they do: of a sample."""
        if self._slack is None:
            size = self._image.size // BLOCK
            places = range(0, size, max(1, size // SAMPLE))
            signs = meeting.slack(np.concatenate([_tails(self._image, i * BLOCK, 1) for i in places] or [
                np.zeros(BLOCK // SECTOR, np.uint16)]).reshape(-1, BLOCK // SECTOR))
            self._slack = float(np.mean(signs[signs != meeting.OPEN] == meeting.YES)) if signs.min() < 2 else 0.5
        return self._slack

    def of(self, at: int, blocks: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32]]:
        """Of so many blocks from image offset `at` on: where the data of each of their sectors ends (uint16[8 n], see
        sector_tails), and their first four bytes (uint32[n]). What lies outside the image is zeros."""
        found = self._known.get((at, blocks))
        if found is None:
            data = (self._image.read(at, blocks * BLOCK) if at >= 0 else b"").ljust(blocks * BLOCK, b"\0")
            tail = np.zeros(blocks * (BLOCK // SECTOR), np.uint16)
            sector_tails(data, tail)
            found = tail, np.frombuffer(data, np.uint32)[:: BLOCK // 4].copy()
            if self._blocks + blocks > MAX_CONTENTS:
                self._known, self._blocks = {}, 0
            self._known[at, blocks] = found
            self._blocks += blocks
        return found


def lay_out(image: Reader, begins: dict[int, int], sizes: dict[int, int], segments: list[Segment],
            expectations: dict[int, Expectation], taken: Taken, borders: Borders, contents: Contents | None = None
            ) -> dict[int, list[Row]]:
    """The rows of a FileMap for every container that has segments.

    begins, sizes: image offset of the first byte and file size in bytes, per container. taken, borders and contents
    (what earlier calls saw of the image) grow.
    """
    contents = contents or Contents(image)
    chains: dict[int, list[Segment]] = {}
    for s in sorted(segments, key=lambda s: (s.owner, s.first)):
        chains.setdefault(s.owner, []).append(s)
    borders.rate = break_rate(chains.values(), borders.unit)
    if borders.rate:
        borders.meets = meeting.meets([_seen_break(begins[a.owner], a, b) for chain in chains.values()
                                       for a, b in zip(chain, chain[1:], strict=False) if a.delta != b.delta], MEETS)
    borders.blocks = max(1, image.size // BLOCK)
    bends = _bends(chains.values())
    placed: dict[tuple[int, int], list[Part]] = {}
    open_: list[tuple[int, int, Bracket]] = []
    for owner, chain in chains.items():
        bisect.insort(borders.begin, begins[owner])
        for i, (a, b) in enumerate(zip(chain, chain[1:], strict=False)):
            bend = None
            if bends or a.delta == b.delta:
                bend = _within_run(image, begins[owner], a, b, expectations[owner], taken)
            if bend is not None:
                placed[owner, i] = _take(begins[owner], bend, taken, owner)
            else:
                open_.append((owner, i, _bracket(contents, begins[owner], a, b, expectations[owner])))
    _see_slack([b for _, _, b in open_], begins.values(), contents, taken, borders)
    _settle([b for _, _, b in open_], taken, borders)
    for owner, i, b in open_:
        placed[owner, i] = b.settled
    rows = {owner: _rows(image, begins[owner], sizes[owner], chain, placed, taken, borders.reach)
            for owner, chain in chains.items()}
    return {owner: _with_padding(found, taken) for owner, found in rows.items()}


def _seen_break(begin: int, a: Segment, b: Segment) -> tuple[int, int, int]:
    """Of a break between two segments: the image blocks from which on the left run may end, and the right one may
    begin, and how many more places there are."""
    at = begin // BLOCK + a.last + 1
    return at + a.delta, at + b.delta, b.first - a.last - 1


def _bends(chains: Iterable[list[Segment]]) -> bool:
    """Whether the runs of this image bend: no, when of many breaks hardly one could be a bend."""
    steps = [(b.delta - a.delta, b.first - a.last - 1) for chain in chains
             for a, b in zip(chain, chain[1:], strict=False) if a.delta != b.delta]
    like = sum(0 < -step <= min(n, MAX_RANGE) or 0 < step <= MAX_METADATA for step, n in steps)
    return len(steps) < FEW_RATE or like >= BENDS * len(steps)


def break_rate(chains: Iterable[list[Segment]], unit: int = 1) -> float:
    """Breaks by block, the likeliest that would have parted the points of the chains as they are; 0 where few are.

    Two points d blocks apart are of one run with the chance exp(-rate * d). unit: of blocks in which no file breaks.
    """
    apart: list[Int64s] = []
    whole = 0
    for chain in chains:
        steps = [(a.delta == b.delta, b.first // unit - a.last // unit)
                 for a, b in zip(chain, chain[1:], strict=False)]
        apart.append(np.array([d for same, d in steps if not same and d > 0], np.int64))
        whole += sum(s.last // unit - s.first // unit for s in chain) + sum(d for same, d in steps if same)
    broken = np.concatenate(apart) if apart else np.empty(0, np.int64)
    if len(broken) < FEW_RATE or whole == 0 and unit == 1:
        return 0.0
    low, high, rate = 1e-9, MOST_RATE, MOST_RATE
    for _ in range(50):  # the derivative of the likelihood falls: by halves of the exponent
        rate = float(np.sqrt(low * high))
        more = float((broken / np.expm1(np.minimum(rate * broken, 500.0))).sum()) > whole
        low, high = (rate, high) if more else (low, rate)
    return rate / unit


def _rows(image: Reader, begin: int, size: int, chain: list[Segment],
          placed: dict[tuple[int, int], list[Part]], taken: Taken, reach: int) -> list[Row]:
    """The file from its first to its last byte; before the first segment and behind the last one it runs on as far as
    nobody else is there, `reach` blocks at most.
    """
    parts: list[Part] = []
    first = chain[0]
    if first.first > 0:  # the run goes back as far as nobody else is there
        p = begin + first.delta * BLOCK
        before = max(0, -(p // BLOCK), first.first - reach)  # that would lie before the image, or too far off
        parts += _take(begin, [(0, before, None, "not-found"), (before, first.first, first.delta, "aligned")], taken,
                       first.owner)
    for i, s in enumerate(chain):
        parts.append((s.first, s.last + 1, s.delta, "aligned"))
        parts += placed.get((s.owner, i), [])
    blocks = -(-size // BLOCK)
    rows: list[Row] = []
    for a, b, delta, rule in parts:
        n = min(b * BLOCK, size) - a * BLOCK
        if n > 0:
            p = -1 if delta is None else begin + (a + delta) * BLOCK
            rows.append((a * BLOCK, n, p, MISSING if p < 0 else GUESSED, rule))
    last = chain[-1]
    if last.last + 1 < blocks:
        f = (last.last + 1) * BLOCK
        p = begin + f + last.delta * BLOCK
        n = max(0, min(size - f, image.size - p, min(reach, blocks) * BLOCK))
        at = p
        for start, length in taken.image.free_of(np.array([[p, n]], np.int64)).tolist() if n else []:
            rows.append((f + at - p, start - at, -1, MISSING, "others"))
            rows.append((f + start - p, length, start, GUESSED, "continuity"))
            at = start + length
        rows.append((f + at - p, size - f - (at - p), -1, MISSING, "others"))
        taken.image.add_range(p, p + n)
    return [r for r in rows if r[1] > 0]


def _with_padding(rows: list[Row], taken: Taken) -> list[Row]:
    """The rows with those free blocks that nobody else has, when everybody has what they need."""
    out: list[Row] = []
    for f, n, p, grade, rule in rows:
        if rule != PADDING:
            out.append((f, n, p, grade, rule))
            continue
        at = p
        for start, length in taken.image.free_of(np.array([[p, n]], np.int64)).tolist():
            out += [(f + at - p, start - at, -1, MISSING, "others"), (f + start - p, length, start, grade, rule)]
            at = start + length
        out.append((f + at - p, p + n - at, -1, MISSING, "others"))
        taken.image.add_range(p, p + n)
    return [r for r in out if r[1] > 0]


def _take(begin: int, parts: list[Part], taken: Taken, owner: int) -> list[Part]:
    """Claims the parts, one after another, but for what others own (or an earlier part): the parts without that."""
    out: list[Part] = []
    for a, b, delta, rule in parts:
        if b <= a:
            continue
        taken.file(owner).add_range(a, b)
        if delta is None or rule == PADDING:
            out.append((a, b, delta, rule))
            continue
        low, n = begin + (a + delta) * BLOCK, (b - a) * BLOCK
        out += _unowned(low, a, b, delta, taken.image.free_of(np.array([[low, n]], np.int64)), rule)
        taken.image.add_range(low, low + n)
    return out


# --- named breaks: a run that bends ---------------------------------------------------------------------------------
def _within_run(image: Reader, begin: int, a: Segment, b: Segment, expected: Expectation, taken: Taken
                ) -> list[Part] | None:
    """The gap when host holes or host metadata inside one run explain it, else None."""
    n, step = b.first - a.last - 1, b.delta - a.delta
    low = begin + (a.last + 1 + a.delta) * BLOCK
    if step == 0:
        free = taken.image.free_of(np.array([[low, n * BLOCK]], np.int64)) if n else np.empty((0, 2), np.int64)
        return _padded(_unowned(low, a.last + 1, b.first, a.delta, free), expected)
    holes, foreign = 0 < -step <= min(n, MAX_RANGE), 0 < step <= MAX_METADATA
    if not (holes or foreign) or n > MAX_BRACKET or (abs(step) + 1) * (n + 2) > MAX_CELLS:
        return None
    base, count = low - BLOCK, n + 2 + step
    full = _full(image, base, count)
    others = np.ones(count, bool)
    for start, length in taken.image.free_of(np.array([[low, max(0, count - 2) * BLOCK]], np.int64)).tolist():
        others[-(-(start - base) // BLOCK) : (start + length - base) // BLOCK] = False
    others[0] = others[-1] = False
    use = expected.use[a.last : b.first + 1]
    # where too little is known to be free the guest has not been read: then nobody can say where the holes are. A few
    # blocks that are used and zero may be holes too
    jumps = foreign or int((use == FREE).sum()) < KNOWN * -step
    found = align(use, full, others, [Pin(0, 0), Pin(n + 1, n + 1 + step)], jumps=jumps)
    if found is None:
        return None
    inside, out = found[1:-1], list[Part]()
    delta = np.where(inside >= 0, inside - np.arange(1, n + 1) + a.delta, np.iinfo(np.int64).min)
    cut = [0, *(np.flatnonzero(delta[1:] != delta[:-1]) + 1).tolist(), n] if n else []
    for i, j in zip(cut, cut[1:], strict=False):
        there = inside[i] >= 0
        out.append((a.last + 1 + i, a.last + 1 + j, int(delta[i]) if there else None,
                    "aligned" if there else "aligned.host-hole"))
    return out


def _padded(parts: list[Part], expected: Expectation) -> list[Part]:
    """The parts with the free blocks set apart: they are ours only when nobody else wants them."""
    out: list[Part] = []
    for a, b, delta, rule in parts:
        if delta is None or b <= a:
            out.append((a, b, delta, rule))
            continue
        padding = np.diff(expected.free[a : b + 1]) > 0
        padding = np.pad(padding, (0, b - a - len(padding)), constant_values=True)
        cut = [0, *(np.flatnonzero(padding[1:] != padding[:-1]) + 1).tolist(), b - a]
        out += [(a + i, a + j, delta, PADDING if padding[i] else rule) for i, j in zip(cut, cut[1:], strict=False)]
    return out


def _unowned(low: int, first: int, last: int, delta: int, free: npt.NDArray[np.int64], rule: str = "aligned"
             ) -> list[Part]:
    """File blocks [first, last) at one delta, without those whose image blocks others own."""
    out: list[Part] = []
    at = first
    for start, length in free.tolist():
        a = first + -(-(start - low) // BLOCK)
        b = first + (start + length - low) // BLOCK
        if b > a:
            out += [(at, a, None, "others"), (a, b, delta, rule)]
            at = b
    return [*out, (at, last, None, "others")]


def _full(image: Reader, base: int, count: int) -> npt.NDArray[np.bool_]:
    """Which of `count` blocks from image offset `base` hold something."""
    out = np.zeros(count, bool)
    step = 1024
    for i in range(0, count, step):
        n = min(step, count - i)
        tail = _tails(image, base + i * BLOCK, n)
        out[i : i + n] = tail.reshape(n, -1).any(axis=1)
    return out


def _tails(image: Reader, at: int, blocks: int) -> npt.NDArray[np.uint16]:
    tail = np.zeros(blocks * (BLOCK // SECTOR), np.uint16)
    if at >= 0:
        data = image.read(at, blocks * BLOCK).ljust(blocks * BLOCK, b"\0")
        sector_tails(data, tail)
    return tail


# --- jumps: a run ends, another begins ------------------------------------------------------------------------------
def _bracket(contents: Contents, begin: int, a: Segment, b: Segment, expected: Expectation) -> Bracket:
    n = b.first - a.last - 1
    sides: list[npt.NDArray[np.float64]] = []
    for delta in (a.delta, b.delta):
        if n > MAX_BRACKET or n == 0:
            sides.append(np.zeros(n))
            continue
        sides.append(_fit(contents, begin, a.last + 1, n, delta, expected))
    inside = _inside(expected, a.last + 1, n)
    left, right = (contents.sides.apart(begin + (a.last + 1 + delta) * BLOCK, inside) if inside.any()
                   else np.zeros(n + 1) for delta in (a.delta, b.delta))
    return Bracket(a.owner, begin, a.last, b.first, a.delta, b.delta, sides[0], sides[1], (left, right),
                   _slack_before(contents, begin, a.last, n, b.delta, expected))


def _inside(expected: Expectation, first: int, n: int) -> npt.NDArray[np.bool_]:
    """bool[n + 1]: which borders of n file blocks lie amid a file of the guest, as far as its files are known."""
    begins, ends = expected.ends.begins, expected.ends.file_offset
    if not 0 < n <= MAX_ASKED or not len(begins):
        return np.zeros(n + 1, np.bool_)
    use = np.pad(expected.use[first - 1 : first + n + 1], (0, max(0, first + n + 1 - len(expected.use))),
                 constant_values=UNKNOWN)
    at = (first + np.arange(n + 1)) * BLOCK
    begun = np.searchsorted(begins, at, side="right") > np.searchsorted(begins, at - BLOCK, side="right")
    ended = np.searchsorted(ends, at + BLOCK) > np.searchsorted(ends, at - BLOCK, side="right")
    jumps = np.isin(at, expected.jumps)
    return (use[:-1] == USED) & (use[1:] == USED) & ~begun & ~ended & ~jumps


def _slack_before(contents: Contents, begin: int, last: int, n: int, delta: int, expected: Expectation
                  ) -> meeting.Signs:
    """Of each place at which a run may begin, behind block `last` of the file, the sign of the block before it on the
    image; OPEN where that would end a file of the guest in the run itself."""
    if n > MAX_SLACK:
        return np.full(n + 1, meeting.OPEN, np.uint8)
    tail, _ = contents.of(begin + (last + delta) * BLOCK, n + 1)
    out = meeting.slack(tail.reshape(n + 1, -1))
    edges = np.searchsorted(expected.ends.file_offset, (last + np.arange(n + 2)) * BLOCK, side="right")
    out[edges[1:] > edges[:-1]] = meeting.OPEN
    return out


def _see_slack(brackets: list[Bracket], begins: Iterable[int], contents: Contents, taken: Taken, borders: Borders
               ) -> None:
    """How often runs begin behind the slack of another's file, on this image."""
    known = [b.slack for b in brackets if not taken.image.holds(b.at(b.high, b.right) - BLOCK)]
    known += [meeting.slack(contents.of(p - BLOCK, 1)[0].reshape(1, -1)) for p in begins
              if not taken.image.holds(p - BLOCK)]
    borders.slack = meeting.nats(meeting.share(known, contents.slack), contents.slack)


def _fit(contents: Contents, begin: int, first: int, n: int, delta: int, expected: Expectation
         ) -> npt.NDArray[np.float64]:
    """What the content says of each of the file blocks [first, first + n) at `delta`, in nats."""
    use = expected.use[first : first + n]
    use = np.pad(use, (0, n - len(use)), constant_values=UNKNOWN)
    ends = expected.ends
    low, high = np.searchsorted(ends.file_offset, [first * BLOCK, (first + n) * BLOCK])
    wanted, empty = ends.file_offset[low:high] - first * BLOCK, ends.empty[low:high]
    a, b = np.searchsorted(ends.begins, [first * BLOCK, (first + n) * BLOCK])
    told = use.tobytes(), wanted.tobytes(), empty.tobytes(), ends.begins[a:b].tobytes(), bytes(len(ends.begins) > 0)
    at = begin + (first + delta) * BLOCK
    return contents.score(at, first, n, told, lambda: _scored(contents, at, first, use, ends.begins, wanted, empty))


def _scored(contents: Contents, at: int, first: int, use: npt.NDArray[np.uint8], begins: Int64s, wanted: Int64s,
            empty: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The same, if the blocks lie from image offset `at` on. wanted: ends of files, from the first block on."""
    n = len(use)
    holds = np.zeros(n, bool)
    out = np.zeros(n)
    step = 1024
    for i in range(0, n, step):
        k = min(step, n - i)
        tail, head = contents.of(at + i * BLOCK, k)
        full = tail.reshape(k, -1).any(axis=1)
        holds[i : i + k] = full
        score = out[i : i + k]
        index = np.minimum(np.searchsorted(MAGICS, head), len(MAGICS) - 1)
        magic = np.flatnonzero((MAGICS[index] == head) & (use[i : i + k] == USED))
        places = (first + i + magic) * BLOCK
        if len(begins):
            known = begins[np.minimum(np.searchsorted(begins, places), len(begins) - 1)] == places
            score[magic] += np.where(known, MAGIC_RIGHT, MAGIC_WRONG)
        c, d = np.searchsorted(wanted, [i * BLOCK, (i + k) * BLOCK])
        for w, e in zip((wanted[c:d] - i * BLOCK).tolist(), empty[c:d].tolist(), strict=True):
            sector = w // SECTOR
            beyond = tail[sector] > w % SECTOR or tail[sector + 1 : sector + 1 + e].any()
            if beyond:
                score[w // BLOCK] += END_WRONG
    return out + _fitting(use, holds)


def _fitting(use: npt.NDArray[np.uint8], holds: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """What it says of each block, in nats, that it holds something where it should or not: less amid many that are
    like it, for they are not each other's witnesses; most where that changes.
    """
    kind = use.astype(np.int64) * 2 + holds
    if not len(kind):
        return np.zeros(0)
    cut = np.flatnonzero(np.concatenate(([True], kind[1:] != kind[:-1], [True])))
    run = np.repeat(np.arange(len(cut) - 1), np.diff(cut))
    at = np.arange(len(kind))
    edge = np.minimum(at - cut[run], cut[run + 1] - 1 - at)
    return FITS.ravel()[kind] / (1.0 + edge / ALIKE)


def _settle(brackets: list[Bracket], taken: Taken, borders: Borders) -> None:
    """Places every break, the clear ones first: each one's borders and bytes count for those that follow."""
    left = list(brackets)
    known: list[bool] = []
    weighed: dict[int, tuple[tuple[int, int], float]] = {}  # by bracket, while nothing that counts for it changes
    for number in range(MAX_PASSES):
        for b in left:
            if id(b) not in weighed:
                weighed[id(b)] = _best(b, taken, borders)
        found = [(*weighed[id(b)], b) for b in left]
        clear = [f for f in found if f[1] >= CLEAR]
        last = number == MAX_PASSES - 1
        chosen = found if last else clear or sorted(found, key=lambda f: -f[1])[: max(1, len(found) // 8)]
        changed, rounds = Claims(), borders.round
        # one pass may not give the same bytes twice: the clearest first, the others again with what is left
        for (x, y), _, b in sorted(chosen, key=lambda f: -f[1]):
            if _owned(b, x, y, taken):
                (x, y), _ = _best(b, taken, borders)
            b.settled = _take(b.begin, [(b.low + 1, x, b.left, "aligned"), (x, y, None, "not-found"),
                                        (y, b.high, b.right, "aligned")], taken, b.owner)
            if x == y or not borders.rate:  # else neither border is where a run was seen to end
                bisect.insort(borders.end, b.at(x, b.left))
                bisect.insort(borders.begin, b.at(y, b.right))
            changed.add_range(b.at(b.low + 1, b.left) - 1, b.at(x, b.left) + 1)  # borders lie at the ends
            changed.add_range(b.at(y, b.right) - 1, b.at(b.high, b.right) + 1)
        done = {id(b) for _, _, b in chosen}
        left = [b for b in left if id(b) not in done]
        if not left:
            return
        places = [x for (x, _), nats, _ in clear if nats < SURE]
        known += [bool(x % (1 << ROUND_BITS) == 0) for x in places]
        if len(known) >= FEW:
            borders.round = ROUND if 2 * sum(known) >= len(known) else 0.0
        for b in left:
            if borders.round != rounds or any(changed.overlap(b.at(b.low + 1, delta), b.at(b.high, delta) + 1)
                                              for delta in (b.left, b.right)):
                del weighed[id(b)]


def _owned(b: Bracket, x: int, y: int, taken: Taken) -> bool:
    return bool(taken.image.overlap(b.at(b.low + 1, b.left), b.at(x, b.left))
                or taken.image.overlap(b.at(y, b.right), b.at(b.high, b.right)))


def _best(b: Bracket, taken: Taken, borders: Borders) -> tuple[tuple[int, int], float]:
    """((end of the left run, begin of the right one) in file blocks, nats before the next best place)."""
    n = b.high - b.low - 1
    if n == 0:
        return (b.high, b.high), SURE
    first = b.low + 1
    upto, since = _sums(b, taken, borders)
    one = upto + since
    top = int(np.argmax(one))
    if borders.rate:
        return _likeliest(first, upto, since, borders.rate)
    # the median of what is likely: of places that are all alike, the one that is least wrong whichever is true
    likely = np.cumsum(np.exp(one - one[top]))
    x = int(np.searchsorted(likely, likely[-1] / 2))
    # a part that neither explains: the best end of the left run before each begin of the right one
    reach = upto - NOWHERE * np.arange(n + 1)
    best = np.maximum.accumulate(reach)
    two = best + NOWHERE * np.arange(n + 1) + since + AMID
    y = int(np.argmax(two))
    if two[y] > one[top]:
        return (first + int(np.argmax(reach[: y + 1])), first + y), float(two[y] - one[top])
    rest = np.delete(one, top)
    return (first + x, first + x), float(one[top] - rest.max()) if len(rest) else SURE


def _sums(b: Bracket, taken: Taken, borders: Borders) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """float64[n + 1] each: the nats of the left run up to, and of the right run from, each place."""
    first, n = b.low + 1, b.high - b.low - 1
    upto = np.concatenate(([0.0], np.cumsum(b.from_left + _others(b, b.left, taken))))
    others = _others(b, b.right, taken)
    since = np.concatenate((np.cumsum((b.from_right + others)[::-1])[::-1], [0.0]))
    f = np.arange(first, first + n + 1)
    low_bit = np.minimum(np.log2((f & -f).astype(np.float64)), MAX_ROUND)
    grid = np.where(f % borders.unit == 0, 0.0, NEVER)
    upto = upto + _meets(b, first, n, b.left, borders.begin, borders) + borders.round * low_bit + grid
    since = since + _meets(b, first, n, b.right, borders.end, borders) + borders.round * low_bit + grid
    known = np.concatenate(([False], others < 0))  # whose the block before is: nothing else tells then
    return upto + b.apart[0], since + b.apart[1] + np.where(known, 0.0, borders.slack[b.slack])


def _likeliest(first: int, upto: npt.NDArray[np.float64], since: npt.NDArray[np.float64], rate: float
               ) -> tuple[tuple[int, int], float]:
    """As _best, where the rate of breaks is known: each run as far as it is likelier there than not.

    upto, since float64[n + 1]: the nats of the left run up to, and of the right run from, each place. Between the two
    there is one break, or more and then other runs that nothing tells of.
    """
    steps = np.arange(len(upto))
    left, right = upto - rate * steps, since - rate * steps[::-1]
    more = np.log(rate)  # of one break beyond the first
    before = np.concatenate(([-np.inf], np.logaddexp.accumulate(left)[:-1]))
    behind = np.concatenate((np.logaddexp.accumulate(right[::-1])[::-1][1:], [-np.inf]))
    one = left + right
    ends, begins = np.logaddexp(one, left + behind + more), np.logaddexp(one, right + before + more)
    all_ = float(np.logaddexp.reduce(ends))
    goes_on = np.cumsum(np.exp(ends - all_)[::-1])[::-1][1:]  # of each block: the chance that the left run covers it
    has_begun = np.cumsum(np.exp(begins - all_))[:-1]
    x, y = int(np.count_nonzero(goes_on > LIKELY)), int(np.count_nonzero(has_begun <= LIKELY))
    top = float(np.exp(one.max() - all_))
    return (first + x, first + max(x, y)), float(np.log(top / max(1.0 - top, 1e-12))) if top > 0 else -SURE


def _others(b: Bracket, delta: int, taken: Taken) -> npt.NDArray[np.float64]:
    n = b.high - b.low - 1
    out = np.full(n, COSTS["owned by others"])
    base = b.at(b.low + 1, delta)
    start = max(base, 0)
    room = np.array([[start, max(0, base + n * BLOCK - start)]], np.int64)
    for at, length in taken.image.free_of(room).tolist():
        out[-(-(at - base) // BLOCK) : (at + length - base) // BLOCK] = 0.0
    return out


def _meets(b: Bracket, first: int, n: int, delta: int, known: list[int], borders: Borders
           ) -> npt.NDArray[np.float64]:
    """For each place of the break, in nats, what it says that the run at `delta` would meet a known border there, or
    would not: the more, the fewer borders are known, for then hardly any lies there by chance.
    """
    base, unit, meets = b.at(first, delta), borders.unit, borders.meets
    near = known[bisect.bisect_left(known, base) : bisect.bisect_right(known, base + n * BLOCK)]
    at = sorted({(p - base) // BLOCK for p in near if (p - base) % (BLOCK * unit) == -first % unit * BLOCK})
    any_ = min(len(known) * unit / borders.blocks, 0.5)  # share of the places at which there is one
    out = np.full(n + 1, np.log((1 - meets) / (1 - any_)))
    out[at] = np.log(meets / any_) if at else 0.0
    return out
