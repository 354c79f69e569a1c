"""Texts: what of a text file no other point places, from the text that is left on the image.

Blocks of text that lie one behind the other on the image, and that nobody has, are stretches: a host's pieces hold
many files, so that what is beside a piece is seldom text as well. Where a stretch hardly goes on as itself (a line of
another length, letters that do not follow each other) it may be two. A gap in a file of text is then some stretches one
behind the other, from what goes on from the last placed piece to what leads up to the next. `ways` weighs all rows of
stretches that are exactly as long as the gap, by how well the words or the lines go on at each border. Words are
foretold by how often four letters follow each other in the texts of this very image; the stamps of logs rise.
Memory: 200 bytes for each block of text up to MAX_TEXTS, 16 MiB of samples, two tables of 8 MiB. Time: that of `ways`
for MAX_ASKED blocks of gaps in each round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...model import Reader
from .followed import Followed
from .joins import LEAST_LINES, LINE, RANGE_SECONDS, SAME_LINES, STAMP, TEXTUAL, may_be_stamped, seconds
from .numbered import SHORT, at_begin, at_end, goes_on, worth
from .spans import FREED, Span, gaps
from .want import BLOCK, Guest, Int64s, U8s, in_phase
from .ways import Floats, Gap, fill

HEAD = 64  # bytes at a block's begin that must be text
RATE = 1 / 256  # ours: breaks by block, taken for pieces of 1 MiB where they are not known
MOST_RATE = 0.25  # breaks by block beyond which they count no higher
TELLING = 32  # blocks of a gap whose file has nothing else to tell that it is a text
LARGE = 256  # blocks of a gap whose file may be one, for nothing of it is known
MAYBE_TEXT, SURE_UNKNOWN = 0.3, 0.8  # chance that it is; from which a stretch is given there
MAX_STRETCHES = 512  # ours: of one image, the longest first
MAX_TEXTS = 1 << 20  # ours: blocks of text of one image
MAX_ASKED = 1 << 16  # ours: blocks of all gaps of one round, the shortest gaps first
MAX_SAMPLES = 16 << 20  # ours: letters that are counted
COUNTED = 1 << 10  # blocks whose letters are counted at a time
LINES = 6  # that tell whether a stretch goes on
LINED = 768  # bytes of a block in which most texts have so many
BESIDE = 9  # lines beside a border, of which most have one length
ORDER, HASH = 3, 20  # letters that foretell the next, and bits of the table of four
DOUBT = 2.0  # letters that are taken to have been seen of any that come behind others
MOST, AGAINST = 9.0, -9.0  # bits of one border
STAMPED = 512  # bytes beside a border in which a log has a stamp
MOST_TIME = 12.0  # bits of stamps
MOST_NUMBER = 12.0  # bits of numbered lines
TRUST = 0.7  # of the bits of letters: those behind each other are no independent witnesses
SAME_LINE = 0.9  # chance that lines of one length go on over a border
CUT, CUT_OFTEN = 1.0, -2.0  # bits below which a stretch may be two; where pieces are short (see OFTEN)
UNEVEN = -9.5  # bits where lines of one length do not go on
TEXTS_MEET = 0.75  # share of the breaks behind a text on the image where another one begins
FOREIGN = -5.0  # bits of what is no text beside a text
END_BITS = 5.0  # that a stretch ends where the file's run does
TAIL_BITS = 10.0  # that a stretch ends at the very byte at which the file does
SURE, SURE_END = 0.4, 0.9  # chances from which a stretch is given; what one run has of one beside its points
"""Of the blocks of stretches that came out with 0.4 to 0.8 on nine development images, 97 in 100 were right: the sums
count what nothing is known of too high where pieces are long. Not so where they are short."""
OFTEN, SURE_OFTEN = 1 / 64, 0.95  # breaks by block from which they are, and the chance there
LIKELY_TEXT = np.zeros(256, np.bool_)
LIKELY_TEXT[9:14] = LIKELY_TEXT[32:127] = True


@dataclass(frozen=True, slots=True)
class Edge:
    """One side of a border: letters (the last or the first ORDER); of lines of one length, that length and the bytes
    from the border to where a line ends; 0, 0 where there are none. text: whether it is of a text at all. time: of a
    log, Unix seconds of the nearest stamp, and step: between two. number, pace: of numbered lines (see `numbered`)."""

    letters: bytes
    line: int = 0
    rest: int = 0
    text: bool = True
    time: float = float("nan")
    step: float = 0.0
    number: int = -1
    pace: int = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks [first, first + count) of the image. tail: bytes of text in the last block. stays: the chance that what
    follows on the image goes on from it."""

    first: int
    count: int
    tail: int
    stays: float
    begin: Edge
    end: Edge


@dataclass(frozen=True, slots=True)
class Edges:
    """Edges as columns: letters uint32[n, ORDER], and the fields of `Edge`."""

    letters: npt.NDArray[np.uint32]
    line: Int64s
    rest: Int64s
    text: npt.NDArray[np.bool_]
    time: Floats
    step: Floats
    number: Int64s  # int64[n, 2]: number, pace

    @classmethod
    def of(cls, edges: list[Edge], ends: bool) -> Edges:
        """ends: of the sides before borders, whose letters stand next to them last."""
        letters = b"".join(e.letters.rjust(ORDER, b"\0") if ends else e.letters.ljust(ORDER, b"\0") for e in edges)
        return cls(np.frombuffer(letters, np.uint8).reshape(-1, ORDER).astype(np.uint32),
                   np.array([e.line for e in edges], np.int64), np.array([e.rest for e in edges], np.int64),
                   np.array([e.text for e in edges], np.bool_), np.array([e.time for e in edges], np.float64),
                   np.array([e.step for e in edges], np.float64),
                   np.array([(e.number, e.pace) for e in edges], np.int64).reshape(-1, 2))

    def __len__(self) -> int:
        return len(self.line)


@dataclass(frozen=True, slots=True)
class Pieces:
    """All stretches of a round, by place, as columns: see `Stretch`. odds float64[n, n]: how much likelier the second
    comes behind the first than any; rising: their numbers by length."""

    stretches: list[Stretch]
    first: Int64s
    count: Int64s
    tail: Int64s
    stays: Floats
    begins: Edges
    ends: Edges
    odds: Floats
    rising: Int64s

    @classmethod
    def of(cls, stretches: list[Stretch], letters: Letters) -> Pieces:
        begins, ends = Edges.of([s.begin for s in stretches], False), Edges.of([s.end for s in stretches], True)
        tail = np.array([s.tail for s in stretches], np.int64)
        count = np.array([s.count for s in stretches], np.int64)
        odds = _within(letters.odds(ends, begins), tail)
        return cls(stretches, np.array([s.first for s in stretches], np.int64), count, tail,
                   np.array([s.stays for s in stretches], np.float64), begins, ends, odds,
                   np.argsort(count, kind="stable"))


    def apart(self, letters: Letters, between: int) -> Floats:
        """The odds where so many bytes of the file lie between."""
        return _within(letters.odds(self.ends, self.begins, between), self.tail) if between else self.odds


def _within(odds: Floats, tail: Int64s) -> Floats:
    """The odds, none behind where a file ends."""
    return np.where((tail < BLOCK)[:, None], 0.0, odds)


@dataclass(slots=True)
class Texts(Followed):
    """Mechanism: see the package."""

    image: Reader = field(kw_only=True)
    _noted: list[Int64s] = field(default_factory=list[Int64s])
    """image block of a text, its bytes; 1 for one of a log; bytes up to the first end of a line, and of the next
    LINES - 1 lines; the same from behind; the first and the last ORDER letters; number and pace at the begin and at
    the end (see `numbered`)"""
    _samples: list[U8s] = field(default_factory=list[U8s])
    _sampled: int = 0
    _letters: Letters | None = None
    _parts: dict[int, Int64s] = field(default_factory=dict[int, Int64s])  # of the guests' files: see in_container
    _rate: float = RATE  # breaks by block
    _often: bool = True  # or it is not known
    _texts: set[int] = field(default_factory=set[int])  # image blocks
    _edges: dict[tuple[int, bool], Edge] = field(default_factory=dict[tuple[int, bool], "Edge"])

    def see(self, data: U8s, at: int, length: int) -> None:
        first, blocks = in_phase(data, at, length, self._guests[0].start % BLOCK)
        self._blocks += len(blocks)
        if sum(len(rows) for rows in self._noted) >= MAX_TEXTS:
            return
        likely = np.flatnonzero(_letters(blocks[:, :HEAD]).all(axis=1))
        if not len(likely):
            return
        text = blocks[likely]
        there = text != 0
        size = _counted(there)
        good = (size == BLOCK) | (np.argmin(there, axis=1) == size)  # zeros behind it only
        good &= _counted(_letters(text)) >= TEXTUAL * size
        text, size = text[good], size[good]
        if not len(text):
            return
        stamped = may_be_stamped(text[:, :STAMPED]).astype(np.int64)
        for i in np.flatnonzero(stamped).tolist():
            stamped[i] = STAMP.search(text[i, :STAMPED].tobytes()) is not None
        begins, ends = _lines(text), _lines(text[:, ::-1])
        row = np.column_stack(((at + first) // BLOCK + likely[good], size, stamped, begins, ends, text[:, :ORDER],
                               text[:, -ORDER:], at_begin(text, begins), at_end(text, ends)))
        self._noted.append(row.astype(np.int64))
        if self._sampled < MAX_SAMPLES:
            self._samples.append(text[:, : BLOCK // 8].copy())
            self._sampled += len(text) * (BLOCK // 8)

    def follow(self) -> None:
        if not self._noted or self._guests[0].unit.blocks > 1:  # whole units are weighed by `gaps`
            return
        self._rate = min(self._guests[0].rate or RATE, MOST_RATE)
        self._often = not 0 < self._guests[0].rate <= OFTEN
        phase = self._guests[0].start % BLOCK
        guests = [(k, g) for k, g in enumerate(self._guests) if g.start % BLOCK == phase]
        self._parts = {k: g.files.in_container(g.disk.map) for k, g in guests}
        spans = sorted(((k, span) for k, g in guests for span in gaps(g, self._parts[k])),
                       key=lambda s: len(s[1].blocks))
        asked = np.cumsum([len(span.blocks) for _, span in spans])
        spans = spans[: int(np.searchsorted(asked, MAX_ASKED, side="right"))]
        if not spans:
            return
        if self._letters is None:
            self._letters = Letters.of(self._samples)
            self._samples = []
            self._texts = set(np.concatenate(self._noted)[:, 0].tolist())
        every = Pieces.of(self._stretches(phase), self._letters)
        # of each image block: whether a file that is known wants it, the chance, guest and file block
        claims: dict[int, tuple[bool, float, int, int]] = {}
        for k, span in spans:
            for f, p, chance in self._ways(k, span, every, phase):
                claims[p] = max(claims.get(p, (False, 0.0, 0, 0)), (span.file != FREED, chance, k, f))
        for p, (_, _, k, f) in claims.items():
            self._found[k].setdefault(f, p)

    def _ways(self, k: int, span: Span, every: Pieces, phase: int
              ) -> list[tuple[int, int, float]]:
        """(file block, image block, chance) of what fills a gap."""
        guest = self._guests[k]
        at = guest.start // BLOCK
        n, begins, counts = len(span.blocks), every.first, every.count
        extents = [0, *(x for x, _ in span.borders), n]
        keep = counts <= n
        left = right = None
        letters = self._letters
        assert letters is not None
        seen, ends_of = self._samples_of(guest, self._parts[k], span.file) if span.file != FREED else [], list[Edge]()
        text = 2 * sum(seen) > len(seen)
        first = stop = -1
        of_left = 0.0
        whole = span.tail if span.tail >= 0 else BLOCK  # bytes of the gap's last block
        if span.left is not None:
            first = at + int(span.blocks[0]) + span.left
            edge = self._edge(first - 1, True, phase)
            if span.inside_left and not (edge.text and first - 1 in self._texts):
                return []
            j = int(np.searchsorted(begins, first, side="right")) - 1
            if j >= 0 and begins[j] <= first < begins[j] + counts[j]:
                size = int(begins[j] + counts[j] - first)
                fits = size <= extents[1] and every.tail[j] == (BLOCK if size < n else whole)
                if not fits and span.inside_left:
                    return []
                if fits and span.before[0] < 0:
                    keep[j] = False
                    left, text, of_left = (size, every.odds[j]), True, float(every.stays[j])
                    ends_of.append(every.stretches[j].end)
            elif span.inside_left:
                left, text = (0, letters.odds(Edges.of([edge], True), every.begins)[0]), True
                ends_of.append(edge)
        before, behind = span.before[0], span.behind[0]
        if left is None and before >= 0:
            edge = self._edge(before, True, phase)
            if edge.text and before in self._texts:
                left, text = (0, letters.odds(Edges.of([edge], True), every.begins, span.before[1])[0]), True
                ends_of.append(edge)
        if span.right is not None:
            stop = at + int(span.blocks[-1]) + 1 + span.right  # behind the gap's last block
            edge = self._edge(stop, False, phase)
            if span.inside_right and not (edge.text and stop in self._texts):
                return []
            j = int(np.searchsorted(begins, stop - 1, side="right")) - 1
            if j >= 0 and begins[j] <= stop - 1 < begins[j] + counts[j]:
                size, end = int(stop - begins[j]), int(begins[j] + counts[j])
                fits = size <= n - extents[-2] and (every.tail[j] if stop == end else BLOCK) == whole
                if not fits and span.inside_right:
                    return []
                if fits and span.behind[0] < 0:
                    keep[j] = False
                    right, text = (size, every.odds[:, j]), True
                    ends_of.append(every.stretches[j].begin)
            elif span.inside_right:
                right, text = (0, letters.odds(every.ends, Edges.of([edge], False))[:, 0]), True
                ends_of.append(edge)
        if right is None and behind >= 0:
            edge = self._edge(behind, False, phase)
            if edge.text and behind in self._texts:
                right, text = (0, letters.odds(every.ends, Edges.of([edge], False), span.behind[1])[:, 0]), True
                ends_of.append(edge)
        if span.file == FREED and left is right is None:
            return []
        joined = span.inside_left or span.inside_right or max(before, behind) >= 0
        if not (text and (joined or n >= TELLING or 0 < span.tail < BLOCK) or not seen and n >= LARGE):
            return []
        picked = every.rising[keep[every.rising]]
        number = np.full(len(begins) + 1, -1, np.int64)  # of those picked; none is behind the last
        number[picked] = np.arange(len(picked))
        follow = np.append(begins[picked] + counts[picked], first + left[0] if left is not None and left[0] else -1)
        found_at = np.minimum(np.searchsorted(begins, follow), len(begins) - 1)
        next_ = np.where(begins[found_at] == follow, number[found_at], -1) if len(begins) else np.full(1, -1, np.int64)
        wanted = BLOCK if span.tail < 0 else span.tail
        ends = np.where(every.tail[picked] == wanted, 2.0 ** (END_BITS if wanted == BLOCK else TAIL_BITS), 0.0)
        across = 1.0
        if len(ends_of) == 2:
            across = float(letters.odds(Edges.of(ends_of[:1], True), Edges.of(ends_of[1:], False))[0, 0])
        found = fill(Gap(n, counts[picked], every.odds[np.ix_(picked, picked)], next_,
                         np.append(every.stays[picked], of_left), ends,
                         None if left is None else (left[0], left[1][picked]),
                         None if right is None else (right[0], right[1][picked]), self._rate, across,
                         dict(span.borders), {apart: every.apart(letters, apart)[np.ix_(picked, picked)]
                                              for apart in {apart for _, apart in span.borders}},
                         1.0 if text else MAYBE_TEXT))
        if found is None:
            return []
        out: list[tuple[int, int, float]] = []
        given = np.zeros(n, np.bool_)

        def give(a: int, p: int, blocks: int, chance: float) -> None:
            if not given[a : a + blocks].any():
                given[a : a + blocks] = True
                out.extend((f, p + k, chance) for k, f in enumerate(span.blocks[a : a + blocks].tolist()))

        if left is not None and found.left >= SURE_END:
            give(0, first, left[0], found.left)
        if right is not None and found.right >= SURE_END:
            give(n - right[0], stop - right[0], right[0], found.right)
        known = text and span.file != FREED
        x, row = np.nonzero(found.chance >= (SURE_OFTEN if self._often else SURE if known else SURE_UNKNOWN))
        for j in np.argsort(-found.chance[x, row], kind="stable").tolist():  # the likeliest first
            s = every.stretches[int(picked[row[j]])]
            give(int(x[j]), s.first, s.count, float(found.chance[x[j], row[j]]))
        return out

    def _samples_of(self, guest: Guest, parts: Int64s, file: int) -> list[bool]:
        """Of what is placed of a file: whether some blocks are text. parts: see Files.in_container."""
        low, high = np.searchsorted(parts[:, 0], [file, file + 1])
        seen: list[bool] = []
        for a, n in (parts[low:high, 2:] // BLOCK).tolist():
            for first, end, delta in guest.sure[(guest.sure[:, 0] < a + n) & (guest.sure[:, 1] > a + 1)].tolist():
                blocks = range(max(first, a + 1), min(end, a + n))
                seen += [b + delta + guest.start // BLOCK in self._texts for b in blocks[:: max(1, len(blocks) // 16)]]
        return seen

    def _stretches(self, phase: int) -> list[Stretch]:
        """What of the texts nobody has, the longest stretches, by place."""
        noted = np.concatenate(self._noted)
        noted = noted[np.argsort(noted[:, 0], kind="stable")]
        taken = np.zeros(len(noted), np.bool_)
        for g in self._guests:
            for a, b, d in g.sure.tolist():
                low, high = np.searchsorted(noted[:, 0], [g.start // BLOCK + a + d, g.start // BLOCK + b + d])
                taken[low:high] = True
        noted = noted[~taken]
        bits = self._goes_on(noted[:-1], noted[1:])
        breaks = min(TEXTS_MEET * self._rate, 0.5)
        stays = np.append(1 / (1 + breaks / (1 - breaks) * np.exp2(-bits)), 0.0)
        new = (np.diff(noted[:, 0]) != 1) | (noted[:-1, 1] < BLOCK) | (bits < (CUT_OFTEN if self._often else CUT))
        start = np.flatnonzero(np.concatenate(([True], new))[: len(noted)])
        stop = np.append(start[1:], len(noted)) if len(start) else start
        order = np.sort(np.argsort(start - stop, kind="stable")[:MAX_STRETCHES])
        out: list[Stretch] = []
        for a, b in zip(start[order].tolist(), stop[order].tolist(), strict=True):
            tail = int(noted[b - 1, 1])
            begin = self._edge(int(noted[a, 0]), False, phase)
            end = self._edge(int(noted[b - 1, 0]), True, phase)
            if begin.text and (end.text or tail < BLOCK):
                out.append(Stretch(int(noted[a, 0]), b - a, tail, float(stays[b - 1]), begin, end))
        return out

    def _goes_on(self, left: Int64s, right: Int64s) -> Floats:
        """Bits by which it is likelier that each noted block goes on from the one before than that it is any."""
        assert self._letters is not None
        begins, ends = right[:, 3 : 3 + LINES], left[:, 3 + LINES : 3 + 2 * LINES]
        at = 3 + 2 * LINES
        letters = left[:, at + ORDER : at + 2 * ORDER], right[:, at : at + ORDER]
        numbered, rises = goes_on(left[:, -2:], right[:, -4:-2])
        across = begins[:, 0] + ends[:, 0] + 1
        even = [(side[:, 1] >= LINE) & (side[:, 1:] == side[:, 1:2]).all(axis=1) for side in (ends, begins)]
        even_on = (across == ends[:, 1]) | (across == begins[:, 1])
        bits = self._letters.bits(*(side.astype(np.uint32) for side in letters))
        uneven = (even[0] | even[1]) & ~even_on | (left[:, 2] != right[:, 2])
        bits = np.where(uneven, np.minimum(bits, UNEVEN), np.where(even_on, MOST, bits))
        return np.where(numbered, np.where(rises, MOST_NUMBER, np.minimum(bits, UNEVEN)), bits)

    def _edge(self, block: int, ends: bool, phase: int) -> Edge:
        """The end or the begin of an image block."""
        key = block, ends
        if key not in self._edges:
            data = self.image.read(block * BLOCK + phase, BLOCK)
            self._edges[key] = _edge(data, ends)
        return self._edges[key]


def _letters(text: U8s) -> npt.NDArray[np.bool_]:
    """LIKELY_TEXT of each byte, without a look into a table for each."""
    return (text - np.uint8(9) < 5) | (text - np.uint8(32) < 95)


def _counted(blocks: npt.NDArray[np.bool_]) -> Int64s:
    """How many of each block's bytes: eight at a time, in groups that count no further than a byte does."""
    words = blocks.view(np.uint64).reshape(len(blocks), -1, BLOCK // 32)
    return words.sum(axis=2).view(np.uint8).reshape(len(blocks), -1).sum(axis=1, dtype=np.int64)


def _lines(text: U8s) -> Int64s:
    """int64[n, LINES] of rows of text: the bytes before the first end of a line, and of the lines behind it."""
    line = text[:, :LINED] == ord("\n")
    few = np.flatnonzero(np.count_nonzero(line, axis=1) < LINES)  # their lines are long, or end further on
    out = _ends_of(line)
    if len(few) and text.shape[1] > LINED:
        out[few] = _ends_of(text[few] == ord("\n"))
    return out


def _ends_of(line: npt.NDArray[np.bool_]) -> Int64s:
    at = np.arange(len(line))
    ends = np.zeros((len(line), LINES), np.int64)
    for i in range(LINES):
        ends[:, i] = np.argmax(line, axis=1)
        line[at, ends[:, i]] = False
    return np.column_stack((ends[:, 0], np.maximum(np.diff(ends, axis=1), 0)))


def _edge(data: bytes, ends: bool) -> Edge:
    array = np.frombuffer(data, np.uint8)
    part = array[-HEAD:] if ends else array[:HEAD]
    letters = data[-ORDER:] if ends else data[:ORDER]
    if len(data) < BLOCK or not LIKELY_TEXT[part].all():
        return Edge(letters, text=False)
    stamps = STAMP.finditer(data[-STAMPED:] if ends else data[:STAMPED])
    times = [t for stamp in stamps if (t := seconds(stamp)) is not None]
    if times:
        step = max((b - a for a, b in zip(times, times[1:], strict=False)), default=0.0)
        return Edge(letters, time=times[-1 if ends else 0], step=max(step, 1.0))
    lines = _lines(array[None, ::-1] if ends else array[None])
    number, pace = (at_end if ends else at_begin)(array[None], lines)[0].tolist()
    if number >= 0:
        return Edge(letters, number=number, pace=pace)
    at = np.flatnonzero(array == ord("\n"))
    lengths = np.diff(at[-BESIDE:] if ends else at[:BESIDE])
    if len(at) > LEAST_LINES:
        common, counts = np.unique(lengths, return_counts=True)
        most = int(counts.argmax())
        if counts[most] >= SAME_LINES * counts.sum() and common[most] >= LINE:
            line = int(common[most])
            rest = line - (len(data) - 1 - int(at[-1])) - 1 if ends else int(at[0])
            return Edge(letters, line, rest)
    return Edge(letters)


@dataclass(frozen=True, slots=True)
class Letters:
    """How often letters follow each other in the texts of an image: counts of four and of three by their hash, of two
    by both, and the share of one."""

    four: Floats
    three: Floats
    two: Floats
    one: Floats

    @classmethod
    def of(cls, samples: list[U8s]) -> Letters:
        four, three, two, one = np.zeros(1 << HASH), np.zeros(1 << HASH), np.zeros(1 << 16), np.full(256, 0.5)
        for part in _together(samples):  # each count touches the whole of its table
            rows = np.concatenate(part).astype(np.uint32)
            begun = _mixed(rows[:, :-2], rows[:, 1:-1], rows[:, 2:])
            three += np.bincount(_cut(begun).ravel(), minlength=1 << HASH)
            four += np.bincount(_cut(_mixed(rows[:, 3:], begun=begun[:, :-1])).ravel(), minlength=1 << HASH)
            two += np.bincount((rows[:, :-1] << 8 | rows[:, 1:]).ravel(), minlength=1 << 16)
            one += np.bincount(rows.ravel(), minlength=256)
        return cls(four, three, two, one / one.sum())

    def odds(self, left: Edges, right: Edges, apart: int = 0) -> Floats:
        """float64[m, n]: how much likelier each right edge comes behind each left one than behind any. apart: bytes of
        the file that lie between."""
        if not len(left) or not len(right):
            return np.ones((len(left), len(right)))
        bits = self.bits(left.letters[:, None], right.letters[None]) if not apart else np.zeros((len(left), len(right)))
        line_l, line_r = left.line[:, None], right.line[None, :]
        if line_l.any() or line_r.any():
            share = np.maximum((line_l == line_r).mean(axis=1), 1 / 64)[:, None]
            goes_on = np.log2(SAME_LINE * np.maximum(line_l, 1) / np.where(line_l == line_r, share, 1.0))
            width = np.maximum(line_l, 1)
            of_lines = np.where((left.rest[:, None] - apart) % width == right.rest[None, :] % width, goes_on,
                                np.where(line_r == 0, AGAINST / 2, AGAINST))
            bits = np.where(line_l > 0, of_lines, np.where(line_r > 0, np.log2(1 - SAME_LINE), bits))
        bits = _of_numbers(left, right, _of_times(left, right, bits, apart), apart)
        return np.where(left.text[:, None] & right.text[None, :], np.exp2(bits), 2.0 ** FOREIGN)

    def bits(self, left: npt.NDArray[np.uint32], right: npt.NDArray[np.uint32]) -> Floats:
        """By how much likelier the ORDER letters of `right` (the last axis) are behind those of `left`."""
        both = [*(left[..., k] for k in range(ORDER)), *(right[..., k] for k in range(ORDER))]
        out = np.zeros(())
        for i in range(ORDER):  # the letters behind the border, each by the three before it
            begun = _mixed(*both[i : i + ORDER])
            seen = self.four[_cut(_mixed(both[i + ORDER], begun=begun))] + DOUBT * self.one[both[i + ORDER]]
            out = out + np.log2(seen / (self.three[_cut(begun)] + DOUBT))
        return np.clip(TRUST * (out - self._alone(right)), AGAINST, MOST)

    def _alone(self, letters: npt.NDArray[np.uint32]) -> Floats:
        """The logarithm of how likely three letters are behind any."""
        a, b, c = (letters[..., k] for k in range(ORDER))
        pair, next_ = a << 8 | b, b << 8 | c
        total = max(float(self.two.sum()), 1.0)
        begin = (self.two[pair] + DOUBT * self.one[a] * self.one[b]) / (total + DOUBT)
        near = (self.two[next_] + DOUBT * self.one[c]) / (self.one[b] * total + DOUBT)
        seen = self.three[_cut(_mixed(a, b, c))]
        return np.log2(begin * (seen + DOUBT * near) / (self.two[pair] + DOUBT))


def _of_times(left: Edges, right: Edges, bits: Floats, apart: int) -> Floats:
    """The bits with what time stamps say: those of a log rise by as much as they did."""
    log_l, log_r = np.isfinite(left.time)[:, None], np.isfinite(right.time)[None, :]
    if not log_l.any() and not log_r.any():
        return bits
    step = (4 + apart // SHORT) * np.maximum(left.step[:, None], right.step[None, :])
    gap = right.time[None, :] - left.time[:, None]
    of_time = np.where((gap >= 0) & (gap <= step), np.log2(RANGE_SECONDS / np.maximum(step, 1.0)), AGAINST)
    both = bits / 2 + np.minimum(of_time, MOST_TIME)
    return np.where(log_l & log_r, both, np.where(log_l | log_r, AGAINST / 2, bits))


def _of_numbers(left: Edges, right: Edges, bits: Floats, apart: int) -> Floats:
    """The bits with what the numbers of lines say."""
    known = np.concatenate((left.number[:, 0], right.number[:, 0]))
    known = known[known >= 0]
    if not len(known):
        return bits
    numbered, rises = goes_on(left.number[:, None], right.number[None, :], apart)
    of_numbers = np.minimum(worth(left.number[:, 1], float(np.ptp(known))), MOST_NUMBER)[:, None]
    return np.where(numbered, np.where(rises, bits + of_numbers, np.minimum(bits, UNEVEN)), bits)


def _together(samples: list[U8s]) -> Iterator[list[U8s]]:
    """The samples in lists of some COUNTED rows."""
    part, held = list[U8s](), 0
    for sample in samples:
        part.append(sample)
        held += len(sample)
        if held >= COUNTED:
            yield part
            part, held = [], 0
    if part:
        yield part


def _mixed(*letters: npt.NDArray[np.uint32], begun: npt.NDArray[np.uint32] | None = None) -> npt.NDArray[np.uint32]:
    """A number for letters that follow each other. begun: that of those before them."""
    out = np.zeros((), np.uint32) if begun is None else begun
    for each in letters:
        out = out ^ each
        out *= np.uint32(0x9E3779B1)
        out ^= out >> np.uint32(15)
    return out


def _cut(mixed: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    return mixed & np.uint32((1 << HASH) - 1)
