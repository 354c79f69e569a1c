"""Programs for x86-64: the calls in a page of code must lead to where functions begin, which tells the page.

A near call (E8) names its target by the distance from itself. Where the functions of a program begin is in a table of
it (`programs`), which is placed too where the map does not have it. For every page of code on the image each call votes
for the pages of each program in which it would lead to a function's begin; only different targets count, for a function
that is called often would vote often. A page is believed with 8 votes and three times as many as the next, and where
the functions that begin in it follow on the end of another: programs that share a library's functions, in the same
order, vote for each other's pages. Where files lie in short pieces pages beside each other vote together, four at a
time; of 12 such votes those are believed that have three of their own. Equal programs in several guests are one.
Memory: 16 bytes for each call on the image, up to OUR_MAX_CALLS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..._ext.call_votes import call_votes
from ..segments import OFTEN
from ..tails import to_file
from .programs import Program, Programs, points
from .want import BLOCK, Guest, Int64s, Told, U8s

CALL, CALL_BYTES = 0xE8, 5
BLOCK_BITS = BLOCK.bit_length() - 1
REACH = 1 << 22  # bytes that a call leads away at most: programs are no larger, and what is no code reaches anywhere
WIDTH = 4 * REACH  # numbers for the places of targets, from the begin of the block
LEAST, TIMES = 8, 3  # votes that a page needs; times those of the next one
BESIDE, ALL, OWN = 4, 12, 3  # blocks beside each other that vote together; votes that they need, and one of its own
BITS = 2.0  # of a vote beyond chance
MAX_BITS = 30.0
OUR_MAX_CALLS = 1 << 24  # 256 MiB: about 4 GiB of programs
MAX_PHASES = 8  # ours
ENDS = np.isin(np.arange(256), (0x00, 0x90, 0xC3, 0xCC, 0x0B, 0xFF))  # last bytes of padding, returns, jumps, calls
# Of 94546 functions of 155 programs of a Debian machine 99 % begin behind such a byte, of other places 29 %.
FOLLOWS, AMID = np.log2(0.99 / 0.29), np.log2(0.01 / 0.71)

Vote = tuple[int, int, int]  # block of the image, number of a page (see _Pages), votes


@dataclass(slots=True)
class Calls:
    """Mechanism: see the package."""

    programs: Programs
    _guests: list[Guest] = field(default_factory=list[Guest])
    _programs: dict[bytes, Program] | None = None  # None: not asked since the guests or the image were seen
    _asked: set[tuple[bytes, int, bool]] = field(default_factory=set[tuple[bytes, int, bool]])
    """programs whose pages were voted for, with as many functions, and whether together too"""
    _seen: bool = False
    _calls: list[tuple[Int64s, Int64s]] = field(default_factory=list[tuple[Int64s, Int64s]])
    """image offsets of calls, rising, and of their targets"""
    _held: int = 0
    _found: dict[tuple[bytes, int, int], int] = field(default_factory=dict[tuple[bytes, int, int], int])
    """votes by program, page of the file and image offset: what was believed once stays"""

    def want(self, guests: list[Guest]) -> bool:
        self._guests = guests
        self._programs = None
        first, self._seen = not self._seen, self._seen or any(len(g.files.size) for g in guests)
        return first and self._seen

    def see(self, data: U8s, at: int, length: int) -> None:
        self.programs.see(data, at, length)
        if self._held >= OUR_MAX_CALLS:
            return
        end = min(length, len(data) - CALL_BYTES + 1)
        place = np.flatnonzero(data[: max(end, 0)] == CALL)
        if not len(place):
            return
        step = np.ndarray((end,), "<i4", data, 1, (1,))[place].astype(np.int64)  # the word behind each byte
        near = (np.abs(step) < REACH) & (step != 0)
        place = place[near] + at
        self._calls.append((place, place + CALL_BYTES + step[near]))
        self._held += len(place)

    def points(self, number: int) -> Told:
        if self._programs is None:
            self._programs = self.programs.of(self._guests)
            told = {(p.key, len(p.starts), self._often) for p in self._programs.values()}
            if self._calls and not told <= self._asked:
                self._vote(list(self._programs.values()))
                self._asked |= told
        rows: list[tuple[int, int, int, int]] = []  # file, page of it, image offset, votes
        for (key, page, place), votes in self._found.items():
            files = self._programs[key].files if key in self._programs else []
            rows += [(file, page, place, votes - len(files)) for guest, file in files if guest == number]
        pages = np.array(rows, np.int64).reshape(-1, 4)
        table, worth = points(number, self._programs)
        guest = self._guests[number]
        all_ = np.concatenate((np.column_stack((pages[:, 0], pages[:, 1] * BLOCK, pages[:, 2])), table))
        f = to_file(guest.disk.map, guest.files.place(all_[:, 0], all_[:, 1]))
        step = all_[:, 2] - f - guest.start
        keep = (f >= 0) & (step % BLOCK == 0)
        bits = np.concatenate((np.clip(BITS * pages[:, 3].astype(np.float64), 0.0, MAX_BITS), worth))
        return Told(f[keep] // BLOCK, step[keep] // BLOCK, bits[keep], np.empty(0, np.int64))

    @property
    def _often(self) -> bool:
        """Whether files lie in pieces so short that many have no page which places itself."""
        return any(guest.rate >= OFTEN for guest in self._guests)

    def _vote(self, programs: list[Program]) -> None:
        """Notes the pages of all programs that are believed, where nothing else makes sure what lies there."""
        if len(self._calls) > 1:
            self._calls = [(np.concatenate([c for c, _ in self._calls]), np.concatenate([t for _, t in self._calls]))]
        place, target = self._calls[0]
        left = ~_sure(self._guests, place)
        place, target = place[left], target[left]
        by_phase: dict[int, list[Program]] = {}
        for program in programs:
            for phase in self._phases(program):
                by_phase.setdefault(phase, []).append(program)
        for phase in sorted(by_phase)[:MAX_PHASES]:
            pages = _Pages.of(by_phase[phase])
            block = (place - phase) >> BLOCK_BITS
            begin = (block << BLOCK_BITS) + phase
            both = np.sort(block * WIDTH + target - begin + WIDTH // 2)
            both = both[np.concatenate(([True], both[1:] != both[:-1]))] if len(both) else both
            begun, step = both // WIDTH, both % WIDTH - WIDTH // 2
            together = pages.together(begun, step) if self._often else ()
            for b, p, v in [*together, *pages.alone(begun, step)]:
                program, at = pages.which(p)
                here = b * BLOCK + phase
                bits = begin_bits(program, at, self.programs.image.read(here, BLOCK))
                if bits >= 0:  # amid a function only calls speak
                    self._found[program.key, at, here] = v if bits else min(v, LEAST)

    def _phases(self, program: Program) -> set[int]:
        """Where in a block of the image pages of a program begin that are not sure to lie somewhere already."""
        out: set[int] = set()
        at = np.arange(program.offset // BLOCK, -(-(program.offset + program.length) // BLOCK), dtype=np.int64) * BLOCK
        for guest, file in program.files:
            g = self._guests[guest]
            f = to_file(g.disk.map, g.files.place(np.full(len(at), file), at))
            f = f[f >= 0]
            i = np.searchsorted(g.sure[:, 0], f // BLOCK, side="right") - 1
            sure = (i >= 0) & (f // BLOCK < g.sure[np.maximum(i, 0), 1]) if len(g.sure) else np.zeros(len(f), np.bool_)
            out |= set(((f[~sure] + g.start) % BLOCK).tolist())
        return out


@dataclass(frozen=True, slots=True)
class _Pages:
    """All pages of code of the programs, numbered through. page, count, first: of each program, see call_votes; head,
    start, owner: its functions by the place in a page, start as if the file's byte 0 were at address 0 and all of it
    lay behind.
    """

    programs: list[Program]
    page: Int64s
    count: Int64s
    first: Int64s
    head: Int64s
    start: Int64s
    owner: Int64s

    @classmethod
    def of(cls, programs: list[Program]) -> _Pages:
        page = np.array([p.offset // BLOCK for p in programs], np.int64)
        count = np.array([-(-(p.offset + p.length) // BLOCK) for p in programs], np.int64) - page
        start = np.concatenate([p.starts - p.address + p.offset for p in programs])
        owner = np.repeat(np.arange(len(programs)), [len(p.starts) for p in programs])
        order = np.argsort(start % BLOCK, kind="stable")
        head = np.searchsorted(start[order] % BLOCK, np.arange(BLOCK + 1))
        return cls(programs, page, count, np.cumsum(count) - count, head, start[order], owner[order])

    def alone(self, block: Int64s, target: Int64s) -> Iterator[Vote]:
        """The blocks that their own calls place; see believed."""
        found = self.believed(block, target)
        yield from zip(*(column.tolist() for column in found), strict=True)

    def together(self, block: Int64s, target: Int64s) -> Iterator[Vote]:
        """The same of BESIDE blocks at once, that lie beside each other on the image: for each the calls of its own."""
        shift = np.arange(BESIDE)[:, None]
        both = np.unique((block - shift) * WIDTH + target + shift * BLOCK + WIDTH // 2)
        begun, numbers, votes = self.believed(both // WIDTH, both % WIDTH - WIDTH // 2, ALL)
        best: dict[int, tuple[int, int, int]] = {}  # votes of all, of each block; number of its page
        for b, p, v in zip(begun.tolist(), numbers.tolist(), votes.tolist(), strict=True):
            program, at = self.which(p)
            starts = program.starts - program.address + program.offset
            pages = -(-(program.offset + program.length) // BLOCK) - at
            for k in range(min(BESIDE, pages)):
                low, high = np.searchsorted(block, [b + k, b + k + 1])
                own = int(np.isin(target[low:high] + (at + k) * BLOCK, starts, assume_unique=True).sum())
                if own >= OWN and (v, own, p + k) > best.get(b + k, (0, 0, 0)):
                    best[b + k] = v, own, p + k
        yield from ((b, p, own) for b, (_, own, p) in best.items())

    def believed(self, block: Int64s, target: Int64s, least: int = LEAST) -> tuple[Int64s, Int64s, Int64s]:
        """(block, number of a page, votes) of the blocks that calls int64[n] place: by block and target, each once;
        target: from the block's begin.
        """
        cut = np.flatnonzero(np.concatenate(([True], block[1:] != block[:-1], [True]))) if len(block) else np.zeros(
            1, np.int64)
        enough = np.flatnonzero(np.diff(cut) >= least)
        kept = np.repeat(np.diff(cut) >= least, np.diff(cut))
        cut = np.concatenate(([0], np.cumsum(np.diff(cut)[enough])))
        block, target = block[kept][cut[:-1]], target[kept]
        best, most, second = (np.empty(len(block), np.int64) for _ in range(3))
        votes = np.zeros(int(self.count.sum()), np.uint64)
        call_votes(cut, target, self.head, self.start, self.owner, self.page, self.count, self.first, votes, best, most,
                   second)
        good = (most >= least) & (most >= TIMES * second)
        return block[good], best[good], most[good]

    def which(self, number: int) -> tuple[Program, int]:
        """The program of a page, and the page's number in the file."""
        k = int(np.searchsorted(self.first, number, side="right")) - 1  # every program has a page of code
        return self.programs[k], int(self.page[k]) + number - int(self.first[k])


def begin_bits(program: Program, page: int, data: bytes) -> float:
    """Bits for the data to be that page of the program, by the bytes before the functions that begin in it."""
    at = program.starts - program.address + program.offset - page * BLOCK
    at = at[(at > 0) & (at < len(data))]
    follows = int(np.count_nonzero(ENDS[np.frombuffer(data, np.uint8)[at - 1]]))
    return float(FOLLOWS * follows + AMID * (len(at) - follows))


def _sure(guests: list[Guest], image_offset: Int64s) -> npt.NDArray[np.bool_]:
    """Whether image bytes, rising, are where a run of a guest is sure. Of runs over each other the later one tells."""
    out = np.zeros(len(image_offset), np.bool_)
    for g in guests:
        runs = (g.sure[:, :2] + g.sure[:, 2:]) * BLOCK + g.start
        runs = runs[np.argsort(runs[:, 0], kind="stable")]
        runs[:-1, 1] = np.minimum(runs[:-1, 1], runs[1:, 0])
        for low, high in np.searchsorted(image_offset, runs).tolist():
            out[low:high] = True
    return out
