"""Texts: what of a text file no other point places, from the text that is left on the image.

Blocks of text that lie one behind the other on the image, and that nobody has, are stretches: a host's pieces hold
many files, so that what is beside a piece is seldom text as well. Where a stretch hardly goes on as itself (a line of
another length, letters that do not follow each other) it may be two. A gap in a file of text is then some stretches one
behind the other, from what goes on from the last placed piece to what leads up to the next. `ways` weighs all rows of
stretches that are exactly as long as the gap, by how well the words or the lines go on at each border. How
well is what `letters` says. Stretches that surely follow each other, in whatever file, are tied before (`tied`).
Memory: 200 bytes for each block of text up to MAX_TEXTS, 16 MiB of samples, 16 MiB of odds. Time: that of `ways` for
MAX_ASKED blocks of gaps in each round.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...model import Reader
from .followed import Followed
from .joins import LINE, STAMP, TEXTUAL, may_be_stamped
from .letters import (
    HEAD,
    LINES,
    MOST,
    MOST_NUMBER,
    ONE_NUMBERED,
    ORDER,
    STAMPED,
    UNEVEN,
    Edge,
    Edges,
    Letters,
    counted,
    edge_of,
    likely,
    lines_of,
)
from .numbered import at_begin, at_end, goes_on, only_one
from .spans import FREED, Span, gaps
from .tied import Chains, ties
from .want import BLOCK, Guest, Int64s, U8s, in_phase
from .ways import MAX_UNLIKELY, Floats, Gap, fill

RATE = 1 / 256  # ours: breaks by block, taken for pieces of 1 MiB where they are not known
MOST_RATE = 0.25  # breaks by block beyond which they count no higher
TELLING = 32  # blocks of a gap whose file has nothing else to tell that it is a text
LARGE, SMALL = 256, 4  # blocks of a gap whose file may be one, for nothing of it is known; where one ends at its byte
MAYBE_TEXT, SURE_UNKNOWN = 0.3, 0.7  # chance that it is; from which a stretch is given there
MAX_STRETCHES = 2048  # ours: of one image, the longest first; 4 bytes for each two
MAX_ROWS, ROWS_A_BLOCK = 512, 40  # ours: of them, tied to rows, that one gap is filled from, the longest first
MAX_TEXTS = 1 << 20  # ours: blocks of text of one image
MAX_ASKED = 1 << 16  # ours: blocks of all gaps of one round, the shortest gaps first
ROWS = 256  # of odds that are counted at a time
MAX_SAMPLES = 16 << 20  # ours: letters that are counted
CUT, CUT_OFTEN = 1.0, -2.0  # bits below which a stretch may be two; where pieces are short (see OFTEN)
TEXTS_MEET = 0.75  # share of the breaks behind a text on the image where another one begins
END_BITS = 5.0  # that a stretch ends where the file's run does
TAIL_BITS = 13.0  # that a stretch ends at the very byte at which the file does
SURE, SURE_END = 0.25, 0.9  # chances from which a stretch is given; what one run has of one beside its points
"""Of 24 that came out with 0.2 to 0.95 on three development images in pieces of 1 MiB one was wrong, 7 of some 5,000
blocks: the sums count what nothing is known of too high where pieces are long. Not so where they are short."""
SURE_FREED = 0.95  # of the latter in free space: nothing says that it held text
OFTEN, SURE_OFTEN = 1 / 64, 0.85  # breaks by block from which they are, and the chance there


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks [first, first + count) of the image. tail: bytes of text in the last block. stays: the chance that what
    follows on the image goes on from it. begun, ended: the chance that it goes on from, or to, what is placed beside
    it."""

    first: int
    count: int
    tail: int
    stays: float
    begun: float
    ended: float
    begin: Edge
    end: Edge


@dataclass(frozen=True, slots=True)
class Pieces:
    """All stretches of a round, by place, as columns: see `Stretch`. odds float32[n, n]: how much likelier the second
    comes behind the first than any; chains: those that surely follow each other."""

    stretches: list[Stretch]
    first: Int64s
    count: Int64s
    tail: Int64s
    stays: Floats
    begins: Edges
    ends: Edges
    odds: npt.NDArray[np.float32]
    chains: Chains

    @classmethod
    def of(cls, stretches: list[Stretch], letters: Letters, rate: float, earlier: Pieces | None = None) -> Pieces:
        """rate: breaks by block. earlier: of a round before, whose odds stand as far as the stretches do."""
        begins, ends = Edges.of([s.begin for s in stretches], False), Edges.of([s.end for s in stretches], True)
        tail = np.array([s.tail for s in stretches], np.int64)
        count = np.array([s.count for s in stretches], np.int64)
        odds = np.empty((len(count), len(count)), np.float32)
        known = {} if earlier is None else {(s.first, s.count): i for i, s in enumerate(earlier.stretches)}
        was = np.array([known.get((s.first, s.count), -1) for s in stretches], np.int64)
        old, new = np.flatnonzero(was >= 0), np.flatnonzero(was < 0)
        if earlier is not None and len(old):
            odds[np.ix_(old, old)] = earlier.odds[np.ix_(was[old], was[old])]
            fresh = letters.odds(ends.picked(old), begins.picked(new), among=begins)
            odds[np.ix_(old, new)] = _within(fresh, tail[old])
        for i in range(0, len(new), ROWS):
            part = new[i : i + ROWS]
            odds[part] = _within(letters.odds(ends.picked(part), begins), tail[part])
        begun, ended = (np.array([getattr(s, side) for s in stretches]) for side in ("begun", "ended"))
        first, stays = np.array([s.first for s in stretches], np.int64), np.array([s.stays for s in stretches])
        behind = np.minimum(np.searchsorted(first, first + count), max(len(first) - 1, 0))
        next_ = np.where(first[behind] == first + count, behind, -1)
        after = ties(odds, np.minimum(count, 1 / rate), begun, ended, next_, stays)
        return cls(stretches, first, count, tail, stays, begins, ends, odds, Chains.of(after, count))

    def apart(self, letters: Letters, between: int, last: Int64s, first: Int64s) -> Floats:
        """The odds of some behind some, where so many bytes of the file lie between."""
        if not between:
            return self.odds[np.ix_(last, first)].astype(np.float64)
        return _within(letters.odds(self.ends.picked(last), self.begins.picked(first), between), self.tail[last])


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
    _every: Pieces | None = None  # of the last round
    _rate: float = RATE  # breaks by block
    _often: bool = True  # or it is not known
    _texts: set[int] = field(default_factory=set[int])  # image blocks
    _edges: dict[tuple[int, bool], Edge] = field(default_factory=dict[tuple[int, bool], "Edge"])

    def see(self, data: U8s, at: int, length: int) -> None:
        first, blocks = in_phase(data, at, length, self._guests[0].start % BLOCK)
        self._blocks += len(blocks)
        if sum(len(rows) for rows in self._noted) >= MAX_TEXTS:
            return
        may_be = np.flatnonzero(likely(blocks[:, :HEAD]).all(axis=1))
        if not len(may_be):
            return
        text = blocks[may_be]
        there = text != 0
        size = counted(there)
        good = (size == BLOCK) | (np.argmin(there, axis=1) == size)  # zeros behind it only
        good &= counted(likely(text)) >= TEXTUAL * size
        text, size = text[good], size[good]
        if not len(text):
            return
        stamped = may_be_stamped(text[:, :STAMPED]).astype(np.int64)
        for i in np.flatnonzero(stamped).tolist():
            stamped[i] = STAMP.search(text[i, :STAMPED].tobytes()) is not None
        begins, ends = lines_of(text), lines_of(text[:, ::-1])
        row = np.column_stack(((at + first) // BLOCK + may_be[good], size, stamped, begins, ends, text[:, :ORDER],
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
        parts = {k: g.files.in_container(g.disk.map) for k, g in guests}
        spans = sorted(((k, span) for k, g in guests for span in gaps(g, parts[k])), key=lambda s: len(s[1].blocks))
        asked = np.cumsum([len(span.blocks) for _, span in spans])
        spans = spans[: int(np.searchsorted(asked, MAX_ASKED, side="right"))]
        if not spans:
            return
        if self._letters is None:
            self._letters = Letters.of(self._samples)
            self._samples = []
            self._texts = set(np.concatenate(self._noted)[:, 0].tolist())
        every = self._every = Pieces.of(self._stretches(phase), self._letters, self._rate, self._every)
        # of each image block: whether a file that is known wants it, the chance, guest and file block
        claims: dict[int, tuple[bool, float, int, int]] = {}
        seen: dict[tuple[int, int], list[bool]] = {(k, FREED): [] for k, _ in guests}
        for k, span in spans:
            if (k, span.file) not in seen:
                seen[k, span.file] = self._samples_of(self._guests[k], parts[k], span.file)
            for f, p, chance in self._ways(self._guests[k], seen[k, span.file], span, every, phase):
                claims[p] = max(claims.get(p, (False, 0.0, 0, 0)), (span.file != FREED, chance, k, f))
        for p, (_, _, k, f) in claims.items():
            self._found[k].setdefault(f, p)

    def _ways(self, guest: Guest, seen: list[bool], span: Span, every: Pieces, phase: int
              ) -> list[tuple[int, int, float]]:
        """(file block, image block, chance) of what fills a gap. seen: see _samples_of."""
        at = guest.start // BLOCK
        n, begins, counts = len(span.blocks), every.first, every.count
        extents = [0, *(x for x, _ in span.borders), n]
        used = set[int]()  # stretches at the gap's edges
        known = span.file != FREED  # else what lies beside it may be of another file
        at_left, at_right = list[tuple[int, int]](), list[tuple[int, int]]()  # image blocks there, and how many
        left = right = None
        letters = self._letters
        assert letters is not None
        ends_of = list[Edge]()
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
                    # less than all of the room: whether its end would fit is not asked
                    row = every.chains.from_(j, extents[1] - size - 1) if known else [j]
                    at_left = [(first, size), *((int(begins[k]), int(counts[k])) for k in row[1:])]
                    used.update(row)
                    left, text = (sum(m for _, m in at_left), every.odds[row[-1]].astype(np.float64)), True
                    of_left = float(every.stays[row[-1]])
                    ends_of.append(every.stretches[row[-1]].end)
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
                    row = every.chains.from_(j, n - extents[-2] - size - 1, True) if known and j not in used else [j]
                    row = row[: next((i for i, k in enumerate(row) if i and k in used), len(row))]
                    at_right = [*((int(begins[k]), int(counts[k])) for k in row[:0:-1]), (stop - size, size)]
                    used.update(row)
                    right, text = (sum(m for _, m in at_right), every.odds[:, row[-1]].astype(np.float64)), True
                    ends_of.append(every.stretches[row[-1]].begin)
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
        ends_there = 0 < span.tail < BLOCK and bool((every.tail == span.tail).any())
        if not (text and (joined or n >= TELLING or 0 < span.tail < BLOCK) or
                not seen and (n >= LARGE or n >= SMALL and ends_there)):
            return []
        rows, joints = self._rows(span, every, used, text)
        length = np.array([sum(every.chains.count[k] for k in row) for row in rows], np.int64)
        head, last = (np.array([row[i] for row in rows], np.int64) for i in (0, -1))
        number = np.full(len(begins) + 1, -1, np.int64)  # of the rows, by what they begin with; none is behind the last
        number[head] = np.arange(len(head))
        follow = np.append(begins[last] + counts[last], sum(at_left[-1]) if at_left else -1)
        found_at = np.minimum(np.searchsorted(begins, follow), len(begins) - 1)
        next_ = np.where(begins[found_at] == follow, number[found_at], -1) if len(begins) else np.full(1, -1, np.int64)
        wanted = BLOCK if span.tail < 0 else span.tail
        ends = np.where(every.tail[last] == wanted, 2.0 ** (END_BITS if wanted == BLOCK else TAIL_BITS), 0.0)
        across = 1.0
        if len(ends_of) == 2:
            across = float(letters.odds(Edges.of(ends_of[:1], True), Edges.of(ends_of[1:], False))[0, 0])
        found = fill(Gap(n, length, every.apart(letters, 0, last, head), next_,
                         np.append(every.stays[last], of_left), ends,
                         None if left is None else (left[0], left[1][head]),
                         None if right is None else (right[0], right[1][last]), self._rate, across,
                         dict(span.borders), {apart: every.apart(letters, apart, last, head)
                                              for apart in {apart for _, apart in span.borders}},
                         joints, 1.0 if text else MAYBE_TEXT))
        if found is None:
            return []
        out: list[tuple[int, int, float]] = []
        given = np.zeros(n, np.bool_)

        def give(a: int, p: int, blocks: int, chance: float) -> None:
            if not given[a : a + blocks].any():
                given[a : a + blocks] = True
                out.extend((f, p + k, chance) for k, f in enumerate(span.blocks[a : a + blocks].tolist()))

        def give_all(a: int, parts: list[tuple[int, int]], chance: float) -> None:
            for p, blocks in parts:
                give(a, p, blocks, chance)
                a += blocks

        sure = SURE_END if known else SURE_FREED
        if left is not None and found.left >= sure:
            give_all(0, at_left, found.left)
        if right is not None and found.right >= sure:
            give_all(n - right[0], at_right, found.right)
        known &= text
        x, k = np.nonzero(found.chance >= (SURE_OFTEN if self._often else SURE if known else SURE_UNKNOWN))
        for j in np.argsort(-found.chance[x, k], kind="stable").tolist():  # the likeliest first
            parts = [(every.stretches[one].first, every.stretches[one].count) for one in rows[int(k[j])]]
            give_all(int(x[j]), parts, float(found.chance[x[j], k[j]]))
        return out

    def _rows(self, span: Span, every: Pieces, used: set[int], text: bool
              ) -> tuple[list[list[int]], dict[int, list[int]]]:
        """The stretches of each row that may fill a gap, the rows by their length, and of rows of several the blocks at
        which each but the first begins."""
        n, count = len(span.blocks), every.chains.count
        rows = every.chains.upto(n, used)
        most = min(MAX_ROWS, ROWS_A_BLOCK * n)
        most = max(0, most if text else min(most, int((MAX_UNLIKELY / max(n, 1)) ** 0.5) - 2))
        if len(rows) > most:  # those that may well come last, or lie right behind a long one
            head, last = (np.array([row[i] for _, row in rows], np.int64) for i in (0, -1))
            fits = (every.tail[last] == span.tail) & (span.tail != BLOCK)
            fits |= np.isin(every.first[head], (every.first + every.count)[last[:most]])
            rows = [*rows[:most], *(rows[i] for i in (np.flatnonzero(fits[most:])[:most] + most).tolist())]
        rows = rows[::-1]
        return [row for _, row in rows], {i: list(itertools.accumulate(count[k] for k in row[:-1]))
                                          for i, (_, row) in enumerate(rows) if len(row) > 1}

    def _samples_of(self, guest: Guest, parts: Int64s, file: int) -> list[bool]:
        """Of what is placed of a file: whether some blocks are text. parts: see Files.in_container."""
        low, high = np.searchsorted(parts[:, 0], [file, file + 1])
        runs = parts[low:high]
        seen: list[bool] = []
        for a, n in (runs[:, 2:] // BLOCK).tolist():
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
        breaks = min(TEXTS_MEET * self._rate, 0.5)
        bits = self._goes_on(noted[:-1], noted[1:])
        beside = (np.diff(noted[:, 0]) == 1) & (noted[:-1, 1] == BLOCK)
        stays = np.where(beside, 1 / (1 + breaks / (1 - breaks) * np.exp2(-bits)), 0.0)
        begun = np.concatenate(([0.0], np.where(taken[:-1], stays, 0.0)))[~taken]
        ended = np.append(np.where(taken[1:], stays, 0.0), 0.0)[~taken]
        noted = noted[~taken]
        bits = self._goes_on(noted[:-1], noted[1:])
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
                out.append(Stretch(int(noted[a, 0]), b - a, tail, float(stays[b - 1]), float(begun[a]),
                                   float(ended[b - 1]), begin, end))
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
        bits = np.where(only_one(left[:, -2:], right[:, -4:-2]), np.minimum(bits, ONE_NUMBERED / 2), bits)
        return np.where(numbered, np.where(rises, MOST_NUMBER, np.minimum(bits, UNEVEN)), bits)

    def _edge(self, block: int, ends: bool, phase: int) -> Edge:
        """The end or the begin of an image block."""
        key = block, ends
        if key not in self._edges:
            data = self.image.read(block * BLOCK + phase, BLOCK)
            self._edges[key] = edge_of(data, ends)
        return self._edges[key]
