"""Tables that do not lie where the header's run has them: a container in pieces is completed before it is read.

A format says which blocks with tables it lacks, and how each is known (`Format.wants`). They are looked for among all
blocks that nobody owns; of several that fit equally the nearest counts. What is found leads to more: directories name
tables.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .._ext.first_words import first_words
from ..errors import Damaged
from ..filemap import FileMap, FileView
from ..model import GUESSED, MISSING, ZERO, Container, Format, Placer, Reader, Want
from .exchanged import rearranged
from .window import read_into, read_view, steps

Int64s = npt.NDArray[np.int64]
Found = tuple[FileMap, list[tuple[int, int]]]
"""A container's map with its tables in it, and their (file, image offset)s."""
BLOCK = 4096
STEP = 4 << 20
EMPTY = "tables.empty"  # the rule of what is zero as a table says nothing there
REACH = 64 << 10  # bytes that a structure may have that states its place
MAX_ROUNDS = 16  # ours: directories that lead to tables, and so on
MAX_RIVALS = 1024  # ours: blocks that are read for one want, the nearest first
MAX_TABLE = 16  # ours: blocks of one table that are looked at together (64 KiB, the usual cluster)
MAX_TIED = 1 << 14  # ours: blocks that may tell each other's places, 64 MiB
MAX_STATED = 1 << 20  # ours: structures that state their place in one container
MAX_SIFTED = 4  # ours: times that what they state is sifted
IN_PLACE = 4  # structures, the header among them, that no other file has at these distances
MAX_OWN = 4096  # ours: structures of one container that are kept from others,
MAX_REGION = 4 << 20  # and bytes of one of them
MAX_WANTED = 256  # ours: maps of which it is remembered what they lack
LEAST_BITS = 8.0
STRONG = 16.0  # bits from which one block is better than another, whatever lies nearer


@dataclass(frozen=True, slots=True)
class Heads:
    """What the blocks of an image begin with: arrays of equal length n, image_offset rising.

    at uint16: index of the first eight bytes that are not all zero; word uint64: those bytes.
    """

    image_offset: Int64s
    at: npt.NDArray[np.uint16]
    word: npt.NDArray[np.uint64]


@dataclass(slots=True)
class Search:
    """The blocks of an image in which tables may be found. The look is made when the first table is wanted."""

    image: Reader
    room: Int64s
    used: set[int] = field(default_factory=set[int])  # image offsets of tables that were found
    _heads: dict[int, Heads] = field(default_factory=dict[int, Heads])
    _wanted: dict[tuple[object, ...], list[Want]] = field(default_factory=dict[tuple[object, ...], list[Want]])

    def wants(self, fmt: Format, file_map: FileMap) -> list[Want]:
        """What the format wants of a container as a map shows it: it is asked several times through one map."""
        if fmt.wants is None:
            return []
        key = fmt.name, *file_map.reads()
        if key not in self._wanted:
            if len(self._wanted) >= MAX_WANTED:
                del self._wanted[next(iter(self._wanted))]
            self._wanted[key] = list(fmt.wants(FileView(self.image, file_map)))
        return self._wanted[key]

    def heads(self, phase: int) -> Heads:
        """The heads of all blocks at image offsets of this phase (mod 4096)."""
        if phase not in self._heads:
            self._heads[phase] = _look(self.image, self.room, phase)
        return self._heads[phase]

    def keep(self, container: Container, file_map: FileMap) -> None:
        """The tables of this container are its own: nobody else's."""
        for region in container.regions[:MAX_OWN]:
            end = region.file_offset + min(region.length, MAX_REGION)
            for f in range(region.file_offset // BLOCK * BLOCK, end, BLOCK):
                self.used.update(p for _, _, p, _, _ in file_map.cut(f, 1) if p >= 0)

    def keep_begun(self, fmt: Format, first: FileMap) -> None:
        """So are those in their place of one that lacks others, when there are more than chance puts there."""
        wants = self.wants(fmt, first)
        own = self._in_place(fmt, first, min((w.file_offset for w in wants), default=0))
        if len(own) >= IN_PLACE:
            self.used |= own

    def complete_before(self, fmt: Format, start: int, first: FileMap, end: int) -> Found | None:
        """What `complete` finds before image offset `end`, when that is all that is wanted; else nothing is used."""
        before = set(self.used)
        found = self.complete(fmt, start, first, end)
        if fmt.wants is not None and not self.wants(fmt, found[0]):
            return found
        self.used = before
        return None

    def complete(self, fmt: Format, start: int, first: FileMap, end: int | None = None) -> Found:
        """`first` with the tables that the format wants where they were found, and their (file, image offset)s, less
        those of spare ones.

        end: image offset before which, and behind the header, they must lie.
        """
        if fmt.wants is None and fmt.stated is None and fmt.tied is None:
            return first, []
        laid = _Laid(first, self.image.size)
        placer = fmt.stated(FileView(self.image, first)) if fmt.stated is not None else None
        if placer is not None:
            for f, p in self._stated(placer, start):
                for at in self._told_by(f, p, placer.length):
                    laid.add(at, p + at - f)
        current = FileMap.build(laid.rows(0, first.size)) if laid.found else first
        tried: set[int] = set()
        looked_for: dict[int, Want] = {}
        again = False
        own: set[int] | None = None
        spare: set[int] = set()
        for _ in range(MAX_ROUNDS):
            if self._tie(fmt, current, start, laid):
                current = FileMap.build(laid.rows(0, first.size))
            wants = [w for w in self.wants(fmt, current) if w.file_offset not in tried]
            if own is None:
                own = self._in_place(fmt, first, min((w.file_offset for w in wants), default=0))
            wants = [w for w in wants if w.file_offset + BLOCK <= first.size]  # beyond: a table that is none
            if not wants:
                lost = [] if again else self._rearrange(laid, looked_for, start, own)
                if again or lost is None:
                    break
                tried.difference_update(lost)
                again, current = True, FileMap.build(laid.rows(0, first.size))
                continue
            wants = [w for w in wants if not w.spare] or wants  # those last: others lie behind them in the file
            for want in wants:
                # what was found since may have led here: tables, and blocks of one table, lie behind each other
                rows = laid.rows(want.file_offset, want.file_offset + BLOCK)
                here = FileView(self.image, FileMap.build(rows))
                if want.fits(here.read(want.file_offset, BLOCK).ljust(BLOCK, b"\0")) > 0:
                    if len(rows) == 1 and rows[0][2] >= 0 and not want.spare:
                        laid.add(want.file_offset, rows[0][2])
                    continue
                tried.add(want.file_offset)
                p = None if want.empty else self._find(_with_what_follows(want, wants), start, laid, own, end)
                if not want.empty and not want.spare:
                    looked_for[want.file_offset] = want
                if p is None and not want.empty:
                    continue
                laid.add(want.file_offset, -1 if p is None else p)
                if p is not None:
                    self.used.add(p)
                if want.spare:
                    spare.add(want.file_offset)
            current = FileMap.build(laid.rows(0, first.size))
        tables = sorted((f, p) for f, p in laid.found.items() if p >= 0 and f not in spare)
        return _ended(current, tables), tables

    def _rearrange(self, laid: _Laid, wanted: dict[int, Want], start: int, own: set[int]) -> list[int] | None:
        """Lays the tables that were looked for where their neighbours have them. Returns the file offsets of those that
        are not found so, None where all lie as before."""
        there = self.heads(start % BLOCK)
        found = {f: laid.found[f] for f in wanted if laid.found.get(f, -1) >= 0}
        kinds = {p: wanted[f].kind for f, p in found.items()}

        def bits(f: int, p: int) -> float:
            """One that was found for another place of this container may be in any: what it names first is no proof."""
            i = int(np.searchsorted(there.image_offset, p))
            if i >= len(there.image_offset) or there.image_offset[i] != p or p in own or \
                    kinds.get(p, wanted[f].kind) != wanted[f].kind or (p in self.used and p not in kinds):
                return 0.0
            begins = bool(wanted[f].begins(there.at[i : i + 1], there.word[i : i + 1])[0])
            more = wanted[f].fits(self._block(p)) if begins else 0.0
            return max(more, LEAST_BITS) if p in kinds else more if more >= LEAST_BITS else 0.0

        better = rearranged(found, [f for f in wanted if f not in found], bits)
        if better == found:
            return None
        self.used.difference_update(found.values())
        self.used.update(better.values())
        for f in found.keys() | better.keys():
            laid.move(f, better.get(f))
        return [f for f in wanted if f not in better]

    def _tie(self, fmt: Format, current: FileMap, start: int, laid: _Laid) -> bool:
        """Lays blocks whose places others tell, and says whether there were any that the map does not have."""
        how = fmt.tied(FileView(self.image, current)) if fmt.tied is not None else None
        if how is None:
            return False
        heads = self.heads(start % BLOCK)
        places = [p for p in heads.image_offset[how.begins(heads.at, heads.word)].tolist() if p not in self.used]
        places = sorted([*places, *(p for p in laid.found.values() if p >= 0)])[:MAX_TIED]
        blocks = np.zeros((len(places), BLOCK), np.uint8)
        for i, p in enumerate(places):
            blocks[i] = np.frombuffer(self.image.read(p, BLOCK).ljust(BLOCK, b"\0"), np.uint8)
        file = how.place(blocks).tolist()
        there = {f: next((at for _, _, at, _, _ in current.cut(f, 1)), -1) for f in file if 0 <= f < current.size}
        new = [(f, p) for f, p in zip(file, places, strict=True) if there.get(f, p) != p]
        for f, p in new:
            laid.add(f, p)
            self.used.add(p)
        return bool(new)

    def _stated(self, placer: Placer, start: int) -> list[tuple[int, int]]:
        """(file, image offset)s of structures that state their place in the container that begins at `start`.

        Where several state one place, or one states several, that at the distance of most others is the container's.
        """
        parts: list[tuple[Int64s, Int64s]] = []
        buffer = np.empty(STEP + REACH, np.uint8)
        for begin, length in self.room.tolist():
            for at in steps(self.image, begin, begin + length, STEP):
                n = min(STEP, begin + length - at)
                position, place = placer.find(read_view(self.image, at, buffer[: n + REACH]))
                parts.append((place[position < n], position[position < n] + at))
        found = np.array([np.concatenate(column) for column in zip(*parts, strict=True)] or [[], []], np.int64).T
        found = found[(found[:, 1] - found[:, 0] - start) % BLOCK == 0][:MAX_STATED]
        _, which, votes = np.unique(found[:, 1] - found[:, 0], return_inverse=True, return_counts=True)
        found, index = np.unique(found, axis=0, return_index=True)
        votes = votes[which][index]
        for column in (1, 0):
            order = np.lexsort((found[:, 1 - column], -votes, found[:, column]))
            found, votes = found[order], votes[order]
            first = np.diff(found[:, column], prepend=-1) != 0
            clear = first & ~np.append((~first[1:]) & (votes[1:] == votes[:-1]), False)
            found, votes = found[clear], votes[clear]
        for _ in range(MAX_SIFTED):
            amid = _amid_another(found)
            if not amid.any():
                break
            found = found[~amid]
        return [(f, p) for f, p in found.tolist()]

    def _in_place(self, fmt: Format, first: FileMap, end: int) -> set[int]:
        """Image offsets where structures begin before file offset `end`, the first wanted: so far the run holds.

        Only where they begin: behind that may be zeros, which a host leaves out.
        """
        if end == 0:
            return set()
        try:
            regions = fmt.open(FileView(self.image, first)).regions
        except Damaged:
            return set()
        begins = [r.file_offset // BLOCK * BLOCK for r in regions if r.file_offset < end]
        return {p for f in begins[:MAX_OWN] for _, _, p, _, _ in first.cut(f, 1) if p >= 0}

    def _told_by(self, f: int, p: int, length: int) -> list[int]:
        """The file's blocks that a table at image offset `p` is in which states file offset `f`, as far as it says
        something there: a break in it may have brought zeros of another file before or behind the rest."""
        blocks = range(f // BLOCK * BLOCK, f + max(1, length), BLOCK)
        table = self.image.read(p, max(1, length))
        return [at for at in blocks if len(blocks) == 1 or any(table[max(0, at - f) : at - f + BLOCK])]

    def _find(self, table: list[Want], start: int, laid: _Laid, own: set[int], end: int | None) -> int | None:
        """Where the first of these blocks of one table lies, which follow each other, or None."""
        want = table[0]
        heads = self.heads(start % BLOCK)
        rows = np.flatnonzero(want.begins(heads.at, heads.word))
        if len(rows) == 0:
            return None
        places = heads.image_offset[rows]
        cut = laid.rows(want.file_offset, want.file_offset + 1)
        near = [p for p in (cut[0][2], start, *(q + BLOCK for q in laid.found.values() if q >= 0)) if p >= 0]
        distance = np.min(np.abs(places[:, None] - np.array(near, np.int64)[None, :]), axis=1)
        best: tuple[float, int] | None = None
        for i in np.argsort(distance, kind="stable")[:MAX_RIVALS].tolist():
            p = int(places[i])
            if p in self.used or p in own or p == start:
                continue
            # holes that a host leaves out bring a table nearer to its header, never farther from it
            if end is not None and not start < p <= min(end - BLOCK, start + want.file_offset):
                continue
            bits = self._bits(table, p)
            if bits >= LEAST_BITS and len(table) > 1 and p - BLOCK not in self.used | own and \
                    want.fits(self._block(p - BLOCK)) >= LEAST_BITS:
                continue  # a later block of the table that the one before begins
            if bits >= LEAST_BITS and (best is None or bits >= best[0] + STRONG):
                best = (bits, p)
        return None if best is None else best[1]

    def _bits(self, table: list[Want], p: int) -> float:
        """What speaks for a table that lies at image offset `p`: as much as for the block of it that says most."""
        bits = table[0].fits(self._block(p))
        for k, want in enumerate(table[1:] if bits >= LEAST_BITS else [], 1):
            block = self._block(p + k * BLOCK)
            more = want.fits(block)
            if more <= 0 and any(block):
                break
            bits = max(bits, more)
        return bits

    def _block(self, p: int) -> bytes:
        return self.image.read(p, BLOCK).ljust(BLOCK, b"\0") if p >= 0 else bytes(BLOCK)


def _with_what_follows(want: Want, wants: Sequence[Want]) -> list[Want]:
    """A wanted block and those right behind it that are of its kind and may be empty: the rest of its table."""
    at = {w.file_offset: w for w in wants if w.empty and w.kind == want.kind}
    out = [want]
    while len(out) < MAX_TABLE and (more := at.get(out[-1].file_offset + BLOCK)) is not None:
        out.append(more)
    return out


def _ended(file_map: FileMap, tables: list[tuple[int, int]]) -> FileMap:
    """The map with each run ended where a table lies that belongs elsewhere in the file: it cannot go on there."""
    starts = sorted((p, p - f) for f, p in tables)
    rows: list[tuple[int, int, int, str, str]] = []
    for f, n, p, grade, rule in file_map.rows():
        i = bisect.bisect_left(starts, (p - BLOCK + 1, 0)) if p >= 0 else len(starts)
        while i < len(starts) and starts[i][0] < p + n and starts[i][1] == p - f:
            i += 1
        there = min(n, max(0, starts[i][0] - p)) if i < len(starts) else n
        rows += [(f, there, p, grade, rule), (f + there, n - there, -1, MISSING, "not-found")]
    return FileMap.build([row for row in rows if row[1] > 0])


def _amid_another(found: Int64s) -> npt.NDArray[np.bool_]:
    """Of int64[n, 2] (file, image offset): which lie, in the file or on the image, amid more that share a distance.

    A table that names first what lies behind another one states that one's place. A file does not break and go on.
    """
    out = np.zeros(len(found), bool)
    delta = found[:, 1] - found[:, 0]
    _, which, count = np.unique(delta, return_inverse=True, return_counts=True)
    for column in (0, 1):
        order = np.argsort(found[:, column], kind="stable")
        kind = which[order]
        begins = np.flatnonzero(np.diff(kind, prepend=-1))
        run = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(kind))))
        each = kind[begins]
        amid = np.zeros(len(begins), bool)
        amid[1:-1] = (each[:-2] == each[2:]) & (count[each[:-2]] > count[each[1:-1]])
        out[order] |= amid[run]
    return out


def _look(image: Reader, room: Int64s, phase: int) -> Heads:
    places: list[Int64s] = []
    ats: list[npt.NDArray[np.uint16]] = []
    words: list[npt.NDArray[np.uint64]] = []
    buffer = np.empty(STEP, np.uint8)
    for start, length in room.tolist():
        first = start + (phase - start) % BLOCK
        for at in steps(image, first, start + length - BLOCK + 1, STEP):
            n = min(STEP, start + length - at) // BLOCK
            n = read_into(image, at, buffer[: n * BLOCK]) // BLOCK
            index, word = np.zeros(n, np.uint16), np.zeros(n, np.uint64)
            first_words(buffer[: n * BLOCK], index, word)
            there = np.flatnonzero(word)
            places.append(there * BLOCK + at)
            ats.append(index[there])
            words.append(word[there])
    if not places:
        return Heads(np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.uint64))
    return Heads(np.concatenate(places), np.concatenate(ats), np.concatenate(words))


class _Laid:
    """A map with the blocks that were found laid over it: from each on, the file runs on at its place, up to the next.

    found: file offset -> image offset, -1 for a block taken as zeros. Thousands may be found one by one, so that the
    rows are made only where they are asked for.
    """

    def __init__(self, first: FileMap, image_size: int) -> None:
        self.found: dict[int, int] = {}
        self._first = first
        self._image_size = image_size
        self._cuts: list[int] = []  # file offsets, rising, and of those the ones that have a place
        self._placed: list[int] = []

    def add(self, file_offset: int, image_offset: int) -> None:
        self.found[file_offset] = image_offset
        bisect.insort(self._cuts, file_offset)
        if image_offset >= 0:
            bisect.insort(self._placed, file_offset)

    def move(self, file_offset: int, image_offset: int | None) -> None:
        """Lays a block elsewhere, or no more."""
        if self.found.pop(file_offset, None) is not None:
            self._cuts.remove(file_offset)
            self._placed.remove(file_offset)
        if image_offset is not None:
            self.add(file_offset, image_offset)

    def rows(self, low: int, high: int) -> list[tuple[int, int, int, str, str]]:
        """(file_offset, length, image_offset, grade, rule) of [low, high), which lies inside the map."""
        out: list[tuple[int, int, int, str, str]] = []
        at = low
        while at < high:
            i = bisect.bisect_right(self._cuts, at)
            end = min(high, self._cuts[i]) if i < len(self._cuts) else high
            cut = self._cuts[i - 1] if i else -BLOCK
            if at < cut + BLOCK and self.found[cut] < 0:
                end = min(end, cut + BLOCK)
                out.append((at, end - at, -1, ZERO, EMPTY))
            elif j := bisect.bisect_right(self._placed, at):
                delta = self.found[self._placed[j - 1]] - self._placed[j - 1]
                there = max(0, min(end, self._image_size - delta) - at)
                out += [(at, there, at + delta, GUESSED, "tables"),
                        (at + there, end - at - there, -1, MISSING, "image-end")]
            else:
                out += self._first.cut(at, end - at)
            at = end
        return [row for row in out if row[1] > 0]
