"""Units that nothing places by itself, by what lies around them: which of the image's free units goes where.

On a host that gives out space in units (`host_units`) a gap in a file is whole units, and what may lie there is whole
units that nobody has. For each pair of the two this asks: do files end and begin in it where the guest says that they
do, and does each file that enters or leaves it go on as it was (`joins`)? A unit that is placed is a neighbour for the
next, so all gaps are filled together: a beam search over assignments, the clearest gap first, no unit given twice. It
stops where no gap tells its unit from the others. A gap is taken for filled where all assignments that are left,
weighed by their likelihood, have the same content there but for one in ten.
Memory: 10 bytes for each sector of a candidate unit, at most MAX_UNITS; the bytes beside the borders that are asked;
twice MAX_CELLS KiB of counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

from ..._ext.sector_tails import sector_tails
from ...model import SECTOR, Reader
from ..magics import MAGICS
from ..segments import least_weight
from ..tails import FileEnds, to_file
from .alike import CELL, MOST_CELLS, counts, distances, within, worth
from .alike import LEAST as LEAST_COUNTED
from .files import spread
from .joins import REACH, Kind, Shares, Side, before, behind, bits, kind_of
from .want import BLOCK, Guest, Int64s, Told, U8s

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.uint32]  # see `alike.counts`
MAX_UNITS = 4096  # ours: free units that are looked at
MAX_PAIRS = 1 << 17  # ours: gaps times units
MAX_BITS = 1 << 20  # ours: bits of units in gaps that are remembered; some 16 bytes each
MAX_LINKS = 24  # ours: of one gap
MAX_CELLS = 1 << 16  # ours: of units whose bytes are counted, 64 MiB for the free ones and as much for all that is kept
LEAST = 1024  # bytes on each side of a border that tell anything
HEAD = 1024  # files begin at multiples of it
BEAM = 128  # ours: assignments that are followed
ASKED, NEAR = 8, 4.0  # ours: of the best, those that are asked which gap is clear; bits behind the best
END_RIGHT, END_OPEN, END_WRONG = 11.0, -2.0, -6.0  # bits: a file's end is there; zeros before it; data behind it
BEGIN_RIGHT, BEGIN_OPEN, BEGIN_AMID = 5.0, -0.5, -4.0  # bits: a known magic where a file begins, none there, one amid
LOOSE = -1.0  # bits that may speak against: between blocks of no file
FOUND = 0.9  # share of the gaps whose unit is among those looked at
TELLS, ALIKE = 2.0, 4  # bits before the units behind the first few, for a gap to be asked; how many those may be
SURE = 0.9  # chance that what fills a gap is right: it stays a guess
SPAN = 30.0  # bits behind the best unit of a gap beyond which none is followed


@dataclass(frozen=True, slots=True)
class Link:
    """A file of a guest goes on at byte `b` of its container behind byte `a` - 1; left, right: bytes of the file that
    lie in one piece there, before and behind. firm: the guest says so; else they are neighbours on its disk, and no
    file's. file: its number, -1 of none."""

    guest: int
    a: int
    b: int
    left: int
    right: int
    firm: bool
    file: int


@dataclass(frozen=True, slots=True)
class Free:
    """A free unit of the image. at: image offset; tail: where the data of each sector end; head: the first four bytes
    of each KiB; key: of its bytes; kinds: of its first and last block (see kind_of)."""

    at: int
    tail: npt.NDArray[np.uint16]
    head: npt.NDArray[np.uint32]
    key: bytes
    kinds: tuple[tuple[Kind, int], tuple[Kind, int]]


@dataclass(slots=True)
class Gaps:
    """Mechanism: see the package. room int64[k, 2]: image ranges that are free."""

    image: Reader
    room: Int64s
    _guests: list[Guest] = field(default_factory=list[Guest])
    _found: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    """image offset by (guest, unit of its file)"""
    _free: dict[tuple[int, int], Free] = field(default_factory=dict[tuple[int, int], Free])
    """by image offset and length: from round to round the unit may be another"""
    _sides: dict[tuple[int, int], Side] = field(default_factory=dict[tuple[int, int], Side])
    """what was looked at beside borders, by image offset and length (see _Search)"""
    _counts: dict[tuple[int, int], Counts] = field(default_factory=dict[tuple[int, int], Counts])
    """of the bytes of units, by image offset and length"""
    _units: int = 2

    def want(self, guests: list[Guest]) -> bool:
        self._guests = guests
        unit = guests[0].unit.blocks if guests else 1
        if unit > 1:
            known = [_known(g, unit) for g in guests]
            self._found = {(g, u): p for (g, u), p in self._found.items() if known[g].get(u) == p}
            self._fill(known, unit)
        return False

    def see(self, data: U8s, at: int, length: int) -> None:
        pass

    def points(self, number: int) -> Told:
        guest = self._guests[number]
        unit = guest.unit.blocks
        rows = np.array([(u * unit, p) for (g, u), p in self._found.items() if g == number], np.int64).reshape(-1, 2)
        delta = (rows[:, 1] - guest.start) // BLOCK - rows[:, 0]
        worth = least_weight(self._units) + 1.0  # enough for itself, and for nothing against what is pinned
        return Told(rows[:, 0], delta, np.full(len(rows), worth), np.empty(0, np.int64))

    def _fill(self, known: list[dict[int, int]], unit: int) -> None:
        size = unit * BLOCK
        pieces = [_pieces(guest, size) for guest in self._guests]
        links = [link for k, guest in enumerate(self._guests) for link in _links(k, guest, known[k], size, pieces[k])]
        gaps = sorted({(k.guest, f // size) for k in links for f in (k.a - 1, k.b)}
                      - {(g, u) for g, units in enumerate(known) for u in units})
        free = self._candidates({p for units in known for p in units.values()}, unit)
        if not gaps or not free or len(gaps) * len(free) > MAX_PAIRS:
            return
        search = _Search(self.image, self._guests, known, unit, gaps, free, links, self._sides, pieces,
                         self._counts)
        self._found.update(search.run())

    def _candidates(self, taken: set[int], unit: int) -> list[Free]:
        """The units of the image that are free as a whole and hold something."""
        guest = self._guests[0]
        phase, size = guest.start % BLOCK + guest.unit.rest * BLOCK, unit * BLOCK
        out: list[Free] = []
        total = 0
        for start, length in self.room.tolist():
            first = start + (phase - start) % size
            for at in range(first, start + length - size + 1, size):
                total += 1
                if at not in taken and len(out) < MAX_UNITS:
                    if (at, size) not in self._free:
                        self._free[at, size] = _free(self.image, at, size)
                    if self._free[at, size].tail.any():
                        out.append(self._free[at, size])
        self._units = max(total, 2)
        return out


def _free(image: Reader, at: int, size: int) -> Free:
    data = image.read(at, size).ljust(size, b"\0")
    tail = np.zeros(size // SECTOR, np.uint16)
    sector_tails(data, tail)
    head = np.frombuffer(data, np.uint32)[:: HEAD // 4].copy()
    kinds = kind_of(data[:BLOCK]), kind_of(data[-BLOCK:])
    return Free(at, tail, head, xxhash.xxh3_128_digest(data), kinds)


def _known(guest: Guest, unit: int) -> dict[int, int]:
    """The image offset of each unit of the file that a sure run has."""
    out: dict[int, int] = {}
    for first, end, delta in guest.sure.tolist():
        for u in range(first // unit, -(-end // unit)):
            out[u] = guest.start + (u * unit + delta) * BLOCK
    return out


def _links(number: int, guest: Guest, known: dict[int, int], size: int, piece: Int64s) -> list[Link]:
    """What follows what across a border of a gap, or from one piece of a file to the next in one. size: of a unit."""
    same = (piece[1:, 0] == piece[:-1, 0]) & (piece[1:, 1] == piece[:-1, 1] + piece[:-1, 3])
    firm = np.column_stack((piece[:-1, 2] + piece[:-1, 3], piece[1:, 2], piece[:-1, 3], piece[1:, 3], piece[1:, 0]))
    spans = [to_file(guest.disk.map, np.array([g, g + n - 1], np.int64)) for g, n in guest.volumes]
    edge = np.concatenate([piece[:0, 0], *(np.arange(a // size + 1, b // size + 1) * size for a, b in spans)])
    begin = np.sort(piece[:, 2])
    end = np.sort(piece[:, 2] + piece[:, 3])  # pieces do not overlap: each begin has its end
    taken = np.zeros(len(edge), np.bool_)
    for at in (edge - 1, edge):
        taken |= np.searchsorted(begin, at, side="right") > np.searchsorted(end, at, side="right")
    loose = edge[~taken]
    full = np.full(len(loose), REACH)
    out: list[Link] = []
    there = np.array(sorted(known), np.int64)
    loose = np.column_stack((loose, loose, full, full, np.full(len(loose), -1)))
    for pairs, told in ((firm[same], True), (loose, False)):
        a, b = (pairs[:, 0] - 1) // size, pairs[:, 1] // size
        asked = (~np.isin(a, there) | ~np.isin(b, there)) & ~((a == b) & (pairs[:, 0] == pairs[:, 1]))
        asked &= (pairs[:, 2] >= LEAST) & (pairs[:, 3] >= LEAST)
        out += [Link(number, i, j, left, right, told, file) for i, j, left, right, file in pairs[asked].tolist()]
    return out


def _pieces(guest: Guest, size: int) -> Int64s:
    """int64[n, 4] of the files' runs, cut where the container's map and its units are: file, offset in it,
    file_offset of the container, bytes; by file and rising."""
    run = guest.files.in_container(guest.disk.map)
    part, unit = spread(run[:, 2] // size, (run[:, 2] + run[:, 3] - 1) // size + 1)
    at = np.maximum(run[part, 2], unit * size)
    stop = np.minimum(run[part, 2] + run[part, 3], (unit + 1) * size)
    return np.column_stack((run[part, 0], run[part, 1] + at - run[part, 2], at, stop - at))


@dataclass(slots=True)
class _Bits:
    """worth float64[n]: bits for each unit in a gap."""

    worth: Floats
    _order: list[int] = field(default_factory=list[int])

    def order(self) -> list[int]:
        """The units, the best first."""
        if not self._order:
            self._order.extend(np.argsort(-self.worth, kind="stable").tolist())
        return self._order


class _Search:
    """One beam search. Numbers below are of gaps, and of free units."""

    def __init__(self, image: Reader, guests: list[Guest], known: list[dict[int, int]], unit: int,
                 gaps: list[tuple[int, int]], free: list[Free], links: list[Link],
                 sides: dict[tuple[int, int], Side], pieces: list[Int64s], kept: dict[tuple[int, int], Counts]) -> None:
        self._image, self._guests, self._known, self._unit = image, guests, known, unit
        self._pieces, self._kept = pieces, kept
        self._counted = np.empty((0, 1, 256), np.uint32)  # of the free units, when they are asked for
        self._files: dict[tuple[int, int], npt.NDArray[np.float64]] = {}
        self._size = unit * BLOCK
        self._gaps, self._free = gaps, free
        number = {gap: i for i, gap in enumerate(gaps)}
        self._shares = Shares.of(k for u in free for k in u.kinds)
        same: dict[bytes, int] = {}
        self._kind = np.array([int(u.kinds[0][0]) for u in free], np.int64)
        self._content = np.array([same.setdefault(u.key, i) for i, u in enumerate(free)], np.int64)
        self._contents: list[int] = self._content.tolist()
        self._tails = np.array([u.tail for u in free])
        heads = np.array([u.head for u in free])
        self._magic = MAGICS[np.minimum(np.searchsorted(MAGICS, heads), len(MAGICS) - 1)] == heads
        self._sides = sides
        self._rows: dict[tuple[Link, bool, int], Floats] = {}
        self._bits: dict[tuple[int, ...], _Bits] = {}
        self._own = [self._alone(g, u) for g, u in gaps]
        self._between: list[list[tuple[Link, int, bool]]] = [[] for _ in gaps]  # link, the other gap, whether it is `b`
        asked = [0] * len(gaps)
        for link in sorted(links, key=lambda k: not k.firm):
            a, b = (number.get((link.guest, f // self._size)) for f in (link.a - 1, link.b))
            ours = [i for i in {a, b} if i is not None]
            if any(asked[i] >= MAX_LINKS for i in ours):
                continue
            for i in ours:
                asked[i] += 1
            if a is not None and b is not None and a != b:
                self._between[a].append((link, b, False))
                self._between[b].append((link, a, True))
            elif a is not None and a == b:
                self._own[a] += self._amid(link)
            elif a is not None:
                self._own[a] += self._beside(link, False, self._place(link.guest, link.b))
            elif b is not None:
                self._own[b] += self._beside(link, True, self._place(link.guest, link.a - 1) + 1)

    def run(self) -> dict[tuple[int, int], int]:
        """Image offsets of the gaps that are filled."""
        prior, nothing = np.log2(FOUND / len(self._free)), np.log2(1 - FOUND)
        beam: list[tuple[float, dict[int, int]]] = [(0.0, {})]
        left = set(range(len(self._gaps)))
        while left:
            # of those that are about as likely one may tell what is beside its own unit, and the others nothing
            asked = [chosen for score, chosen in beam[:ASKED] if score >= beam[0][0] - NEAR]
            tells, gap = max((max(self._tells(i, chosen) for chosen in asked), -i) for i in left)
            if tells < TELLS:
                break
            gap = -gap
            left.remove(gap)
            scores, units, counts = list[Floats](), list[Int64s](), list[int]()  # by state; unit -1: none of them
            for score, chosen in beam:
                worth = self._worth(gap, chosen)
                best = worth.max()
                near = np.flatnonzero(worth > best - SPAN) if np.isfinite(best) else np.empty(0, np.int64)
                # of units with the same bytes one stands for all: else they would fill the beam with one assignment
                _, one, alike = np.unique(self._content[near], return_index=True, return_counts=True)
                near = near[one]
                scores.append(np.concatenate(([score + nothing], score + prior + worth[near] + np.log2(alike))))
                units.append(np.concatenate(([-1], near)))
                counts.append(len(near) + 1)
            score_of, unit_of = np.concatenate(scores), np.concatenate(units)
            state_of = np.repeat(np.arange(len(beam)), counts)
            first = np.argsort(-score_of, kind="stable")[:BEAM]
            beam = [(score, {**beam[k][1], gap: j}) for score, k, j in zip(
                score_of[first].tolist(), state_of[first].tolist(), unit_of[first].tolist(), strict=True)]
        return self._agreed(beam)

    def _agreed(self, beam: list[tuple[float, dict[int, int]]]) -> dict[tuple[int, int], int]:
        """What all assignments have alike, weighed; units are those of the best."""
        weight = np.exp2(np.array([score for score, _ in beam]) - beam[0][0])
        out: dict[tuple[int, int], int] = {}
        for gap, best in beam[0][1].items():
            if best < 0:
                continue
            same = np.array([chosen[gap] >= 0 and self._content[chosen[gap]] == self._content[best]
                             for _, chosen in beam])
            if weight[same].sum() >= SURE * weight.sum():
                out[self._gaps[gap]] = self._free[best].at
        return out

    def _worth(self, gap: int, chosen: dict[int, int]) -> Floats:
        """Bits for each unit in a gap beside those chosen; -inf for what is used."""
        out = self._beside_chosen(gap, chosen).worth.copy()
        out[[j for j in chosen.values() if j >= 0]] = -np.inf
        return out

    def _tells(self, gap: int, chosen: dict[int, int]) -> float:
        """Bits between the best unit of a gap and the first that is not of the few best contents, or none of them."""
        bits = self._beside_chosen(gap, chosen)
        used = set(chosen.values())
        none = float(np.log2((1 - FOUND) / FOUND * len(self._free)))
        best, next_ = -np.inf, -np.inf
        contents: set[int] = set()
        left = ALIKE * 8  # units that are looked at
        for j in bits.order():
            if j in used:
                continue
            content = self._contents[j]
            if not contents:
                best = float(bits.worth[j])
            if content not in contents:
                if len(contents) == ALIKE:
                    next_ = float(bits.worth[j])
                    break
                contents.add(content)
            left -= 1
            if not left:
                break
        return best - max(none, next_)

    def _beside_chosen(self, gap: int, chosen: dict[int, int]) -> _Bits:
        """The bits for each unit in a gap beside those chosen, whatever is used elsewhere: the same for all assignments
        that agree in what lies beside it."""
        units = [chosen.get(other, -1) for _, other, _ in self._between[gap]]
        key = gap, *units
        if key not in self._bits:
            if len(self._bits) * len(self._free) >= MAX_BITS:
                self._bits = {}
            out = self._own[gap].copy()
            for (link, _, is_b), unit in zip(self._between[gap], units, strict=True):
                if unit >= 0:
                    at = self._free[unit].at
                    out += self._beside(link, is_b, self._end(at, link) if is_b else at + link.b % self._size)
            self._bits[key] = _Bits(out)
        return self._bits[key]

    def _alone(self, guest: int, unit: int) -> Floats:
        """What each free unit says by itself: ends and begins of files that should lie in it."""
        ends, low = self._guests[guest].ends, unit * self._unit
        a, b = np.searchsorted(ends.file_offset, [low * BLOCK + 1, (low + self._unit) * BLOCK])
        inside = ends.picked(np.arange(a, b))
        c, d = np.searchsorted(ends.begins, [low * BLOCK, (low + self._unit) * BLOCK])
        begins = ends.begins[c:d]
        begins = begins[begins % HEAD == 0] // HEAD - low * (BLOCK // HEAD)
        files = self._in_files(guest, low)
        files[begins] = False
        out = np.where(self._magic[:, begins], BEGIN_RIGHT, BEGIN_OPEN).sum(axis=1)
        out += np.maximum(2 * BEGIN_AMID, BEGIN_AMID * np.count_nonzero(self._magic & files, axis=1))
        return out + _ends(self._tails, inside, low) + self._of_file(guest, unit)

    @property
    def _cells(self) -> int:
        """Of one unit, as they are kept."""
        return -(-self._size // CELL) + 1

    def _of_file(self, guest: int, unit: int) -> Floats:
        """Bits against each free unit for being of another kind than what is placed of the file that has most of the
        unit; none where there are too many units to count."""
        piece = self._pieces[guest]
        there = piece[piece[:, 2] // self._size == unit]
        if not len(there) or len(self._free) * self._cells > MAX_CELLS:
            return np.zeros(len(self._free))
        file, _, f, length = there[there[:, 3].argmax()].tolist()
        placed = self._placed(guest, file)
        if not placed.any():
            return np.zeros(len(self._free))
        return worth(distances(placed, self._counts_in(f - unit * self._size, length)), self._kind)

    def _placed(self, guest: int, file: int) -> Floats:
        """float64[256]: the counts of what is placed of a file, as far as MOST_CELLS cells."""
        if (guest, file) not in self._files:
            out, left = np.zeros(256), MOST_CELLS
            piece = self._pieces[guest]
            for _, _, f, length in piece[(piece[:, 0] == file) & (piece[:, 3] >= LEAST_COUNTED)].tolist():
                unit, low = divmod(f, self._size)
                if left > 0 and unit in self._known[guest]:
                    a, b = within(self._size, low, low + length)
                    b = min(b, a + left)
                    counted = self._count(self._known[guest][unit])
                    out += counted[b].astype(np.float64) - counted[a]
                    left -= b - a
            self._files[guest, file] = out
        return self._files[guest, file]

    def _counts_in(self, low: int, length: int) -> Floats:
        """float64[n, 256]: of bytes [low, low + length) of each free unit."""
        if not len(self._counted):
            self._counted = np.array([self._count(u.at) for u in self._free])
        a, b = within(self._size, low, low + length)
        return self._counted[:, b].astype(np.float64) - self._counted[:, a]

    def _count(self, at: int) -> Counts:
        if (at, self._size) not in self._kept:
            if (len(self._kept) + 1) * self._cells > MAX_CELLS:
                self._kept.clear()
            self._kept[at, self._size] = counts(self._image.read(at, self._size).ljust(self._size, b"\0"))
        return self._kept[at, self._size]

    def _in_files(self, guest: int, low: int) -> npt.NDArray[np.bool_]:
        """Which blocks of a unit of a guest's file are a file's; at what else files may begin nothing is said."""
        out = np.zeros(self._size // HEAD, np.bool_)
        disk, runs = self._guests[guest].disk.map, self._guests[guest].files.run
        f = to_file(disk, runs[:, 2])
        near = (f >= 0) & (f < (low + self._unit) * BLOCK) & (f + runs[:, 3] > low * BLOCK)
        for at, n in zip(f[near].tolist(), runs[near, 3].tolist(), strict=True):
            out[max(0, -(-(at - low * BLOCK) // HEAD)) : max(0, -(-(at + n - low * BLOCK) // HEAD))] = True
        out[np.arange(len(out)) % (BLOCK // HEAD) != 0] = False
        return out

    def _place(self, guest: int, file_offset: int) -> int:
        return self._known[guest][file_offset // self._size] + file_offset % self._size

    def _end(self, at: int, link: Link) -> int:
        """The image offset of the link's `a`, in the unit at `at`."""
        return at + (link.a - 1) % self._size + 1

    def _beside(self, link: Link, is_b: bool, other: int) -> Floats:
        """Bits for each free unit, which has one end of the link (`b` or `a`); the other one is at image offset
        `other`."""
        key = link, is_b, other
        if key not in self._rows:
            row = np.zeros(len(self._free))
            for j, unit in enumerate(self._free):
                if is_b:
                    row[j] = self._join(link, other, unit.at + link.b % self._size)
                else:
                    row[j] = self._join(link, self._end(unit.at, link), other)
            self._rows[key] = row + self._like(link, is_b, other) if link.firm else np.maximum(row, LOOSE)
        return self._rows[key]

    def _like(self, link: Link, is_b: bool, other: int) -> Floats:
        """Bits against each free unit for being of another kind than what the link joins it to, in a file of which
        nothing else tells what it is (`_of_file` has asked then)."""
        if min(link.left, link.right) < LEAST_COUNTED or len(self._free) * self._cells > MAX_CELLS or \
                self._placed(link.guest, link.file).any():
            return np.zeros(len(self._free))
        before, behind = ((link.a - link.left) % self._size, link.left), (link.b % self._size, link.right)
        mine, its = (behind, before) if is_b else (before, behind)
        counted = self._count(other - sum(before) if is_b else other - behind[0])
        a, b = within(self._size, its[0], sum(its))
        return worth(distances(counted[b].astype(np.float64) - counted[a], self._counts_in(*mine)), self._kind)

    def _amid(self, link: Link) -> Floats:
        """Bits for each free unit, which has both ends of the link."""
        return np.array([self._join(link, self._end(u.at, link), u.at + link.b % self._size) for u in self._free])

    def _join(self, link: Link, a: int, b: int) -> float:
        return bits(self._side(a, -min(link.left, REACH)), self._side(b, min(link.right, REACH)), self._shares)

    def _side(self, at: int, length: int) -> Side:
        """What lies before (length < 0) or behind an image offset."""
        key = at, length
        if key not in self._sides:
            data = self._image.read(at + min(length, 0), abs(length))
            self._sides[key] = before(data) if length < 0 else behind(data)
        return self._sides[key]


def _ends(tail: npt.NDArray[np.uint16], ends: FileEnds, low: int) -> Floats:
    """Bits of the ends of files for units (tail uint16[n, sectors]) that would begin with file block `low`."""
    out = np.zeros(len(tail))
    for w, empty in zip((ends.file_offset - low * BLOCK).tolist(), ends.empty.tolist(), strict=True):
        sector, inside = divmod(w, SECTOR)
        wrong = (tail[:, sector] > inside) | tail[:, sector + 1 : sector + 1 + empty].any(axis=1)
        out += np.where(wrong, END_WRONG, np.where(tail[:, sector] == inside, END_RIGHT, END_OPEN))
    return out
