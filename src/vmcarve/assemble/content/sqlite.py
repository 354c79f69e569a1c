"""SQLite: interior pages of a table name each child page and the greatest row below it; so leaves place themselves.

Source: https://www.sqlite.org/fileformat.html, 1.6 (b-tree pages; big-endian). An interior page of a table (type 5) is
read where the map so far has it inside a database, or where it lies behind the only first page on the image that states
the size of a file: then what it names must show whether it is that one. A leaf (type 13) is known again on the image
by its first and last row numbers. Interior pages further down are known likewise, by the span of their row numbers, and
asked in turn; of several the one whose first and last leaves go on from its neighbours' rows. Pages of 4 KiB and more;
of indices nothing is asked. Databases of one image count their rows alike, so a page has rivals; they are counted.
Memory: 24 bytes for each leaf on the image, a page for each interior one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..._ext.leaf_rows import leaf_rows
from ..tails import to_file
from .want import BLOCK, Guest, Int64s, Kept, Told, U8s, in_phase

MAGIC = b"SQLite format 3\0"
MAGIC_BYTES = np.frombuffer(MAGIC, np.uint8)
HEAD = 100  # bytes
INTERIOR = 5
NEAR_HEAD = 1 << 20  # bytes behind a first page in which the pages may be its own
MAX_RIVALS = 16  # ours: leaves with the same row numbers
MAX_BITS = 14.0
MAX_PHASES = 8  # ours
MAX_INTERIOR = 1 << 14  # ours: interior pages of one image, 64 MiB
MAX_DATABASES = 4096  # ours: of one guest
MAX_BYTES = 1 << 36  # ours: of one database that are looked through
STEP = 4 << 20
NEAR = 64  # rows by which the span of an interior page may differ from what its parent says (deleted ones)
LEFT_OUT = 4  # rows that may be deleted between two leaves of one table
NUMBER_BYTES = 9  # a varint's most


@dataclass(frozen=True, slots=True)
class Database:
    """A database of a guest: the number of its file, bytes of a page, and the interior pages that the map has."""

    file: int
    page: int
    interior: list[bytes]


@dataclass(slots=True)
class Pages:
    """Mechanism: see the package."""

    _guests: list[tuple[Guest, list[Database]]] = field(default_factory=list[tuple[Guest, list[Database]]])
    _phases: list[int] = field(default_factory=list[int])
    _leaves: list[Int64s] = field(default_factory=list[Int64s])  # int64[n, 3]: image offset, first and last row
    _interior: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])  # image offset, page
    _heads: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    """image offset of a first page, bytes of the database, of a page"""
    _blocks: int = 0
    _kept: Kept[list[Database]] = field(default_factory=Kept[list[Database]])
    _sorted: Int64s | None = None  # the leaves by their last rows, when they were asked for
    _spans: Int64s | None = None  # first and last rows of the interior pages
    _told: dict[int, tuple[Database, Int64s, npt.NDArray[np.float64]]] = field(default_factory=dict[
        int, tuple[Database, Int64s, npt.NDArray[np.float64]]])
    """what was found of a database, by its identity as an object"""

    def want(self, guests: list[Guest]) -> bool:
        self._guests = [(g, self._kept.of(k, g, _databases)) for k, g in enumerate(guests)]
        phases = {int(p) for g in guests for p in _phases(g)}
        if phases <= set(self._phases):
            return False  # what lies on the image does not depend on what is wanted: one look is enough
        self._phases = sorted(phases | set(self._phases))[:MAX_PHASES]
        self._leaves, self._interior, self._heads, self._blocks = [], [], [], 0
        self._sorted, self._spans, self._told = None, None, {}
        return True

    def see(self, data: U8s, at: int, length: int) -> None:
        self._blocks += length // BLOCK
        for phase in self._phases:
            first, blocks = in_phase(data, at, length, phase)
            if not len(blocks):
                continue
            block, low, high = (np.empty(len(blocks), np.int64) for _ in range(3))
            n = leaf_rows(data, first, length, block, low, high)
            self._leaves.append(np.column_stack((at + first + block[:n] * BLOCK, low[:n], high[:n])))
            for i in np.flatnonzero((blocks[:, : len(MAGIC)] == MAGIC_BYTES).all(axis=1)).tolist():
                if len(self._heads) < MAX_DATABASES:
                    head = blocks[i, :HEAD].tobytes()
                    page = _page_bytes(head)
                    self._heads.append((at + first + i * BLOCK, page * int.from_bytes(head[28:32], "big"), page))
            for i in _interior_rows(blocks).tolist():
                page = blocks[i].tobytes()
                if len(self._interior) < MAX_INTERIOR and len(_children(page)):
                    self._interior.append((at + first + i * BLOCK, page))

    def points(self, number: int) -> Told:
        if number >= len(self._guests) or not self._leaves:
            return Told.nothing()
        guest, databases = self._guests[number]
        databases = [*databases, *self._supposed(guest, {d.file for d in databases})]
        if not databases:
            return Told.nothing()
        if self._sorted is None or self._spans is None:
            leaves = np.concatenate(self._leaves)
            self._sorted = leaves[np.argsort(leaves[:, 2], kind="stable")]
            spans = [(c[0, 1], c[-1, 1]) for _, page in self._interior for c in [_children(page)]]
            self._spans = np.array(spans, np.int64).reshape(-1, 2)
        found: list[tuple[Int64s, npt.NDArray[np.float64]]] = []
        for database in databases:
            told = self._told.get(id(database))
            if told is None:
                told = database, *self._points(guest, database, self._sorted, self._spans)
                self._told[id(database)] = told
            found.append(told[1:])
        rows = np.concatenate([r for r, _ in found])
        bits = np.concatenate([b for _, b in found])
        none = np.empty(0, np.int64)
        f = to_file(guest.disk.map, guest.files.place(rows[:, 0], rows[:, 1]))
        step = rows[:, 2] - f - guest.start
        keep = (f >= 0) & (step % BLOCK == 0)
        return Told(f[keep] // BLOCK, step[keep] // BLOCK, bits[keep], none)

    def _supposed(self, guest: Guest, known: set[int]) -> list[Database]:
        """Databases whose first page the map does not have: files of a size that one first page alone states."""
        stated = Counter(size for _, size, _ in self._heads)
        wanted = Counter(size for g, _ in self._guests for size in g.files.size.tolist())
        file = {size: i for i, size in enumerate(guest.files.size.tolist())}
        out: list[Database] = []
        for place, size, page in self._heads:
            if page < BLOCK or stated[size] > 1 or wanted[size] != 1 or size not in file or file[size] in known:
                continue
            behind = [p for at, p in self._interior if place < at < place + NEAR_HEAD and (at - place) % page == 0]
            out.append(Database(file[size], page, behind))
        return [d for d in out if d.interior]

    def _points(self, guest: Guest, database: Database, leaves: Int64s, spans: Int64s
                ) -> tuple[Int64s, npt.NDArray[np.float64]]:
        """(int64[n, 3]: file, offset in it, image offset; bits) of the pages of one database that are known again."""
        rows, bits = [np.empty((0, 3), np.int64)], [np.empty(0)]
        waiting, seen = list(database.interior), set(database.interior)
        while waiting:
            parent = waiting.pop()
            child = _children(parent)
            child = child[(child[:, 0] > 0) & ((child[:, 0] - 1) * database.page < guest.files.size[database.file])]
            if not len(child):
                continue
            before = np.concatenate(([-1], child[:-1, 1]))
            low = np.searchsorted(leaves[:, 2], child[:, 1])
            count = np.searchsorted(leaves[:, 2], child[:, 1], side="right") - low
            count[count > MAX_RIVALS] = 0
            which = np.repeat(np.arange(len(child)), count)
            index = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
            fits = (leaves[index, 1] > before[which]) & ((which == 0) | (leaves[index, 1] <= before[which] + NEAR))
            which, index = which[fits], index[fits]
            no_leaf = np.bincount(which, minlength=len(child)) == 0
            deep = bool(no_leaf[-1:].all() and no_leaf[1:].all())  # its children are interior pages, all of them
            if deep:  # what ends with the first one's last row is that one's last leaf
                which, index, no_leaf = which[:0], index[:0], no_leaf | True
            rivals = np.bincount(which, minlength=len(child))[which]
            rows.append(np.column_stack((np.full(len(which), database.file), (child[which, 0] - 1) * database.page,
                                         leaves[index, 0])))
            bits.append(np.clip(np.log2(max(self._blocks, 2) / np.maximum(rivals, 1)), 0.0, MAX_BITS))
            below = [(int(child[i, 0]), int(before[i]), int(child[i, 1])) for i in np.flatnonzero(no_leaf).tolist()]
            if deep:  # the last one's rows have no end
                below.append((_last_child(parent), int(child[-1, 1]), 0))
            for number, behind, last in below if len(spans) else ():
                same = _spanning(spans, leaves, behind, last)
                if same >= 0 and 0 < (number - 1) * database.page < guest.files.size[database.file]:
                    place, page = self._interior[same]
                    rows.append(np.array([[database.file, (number - 1) * database.page, place]], np.int64))
                    bits.append(np.array([MAX_BITS]))
                    if page not in seen:
                        seen.add(page)
                        waiting.append(page)
        return np.concatenate(rows), np.concatenate(bits)


def _spanning(spans: Int64s, leaves: Int64s, behind: int, last: int) -> int:
    """The one interior page whose rows begin behind row `behind` and end with row `last` (0: unknown), -1 where it
    cannot be told: its first and last leaf are on the image, and leave out but some rows (deleted ones) from there, and
    up to there. Databases of one image count their rows alike: its span alone may be another's.

    spans, leaves int64[n, 2] and [n, 3]: see Pages; the greatest row of a page's last leaf is not in its span.
    """
    good = (spans[:, 0] > behind) & ((spans[:, 0] <= behind + NEAR) | (behind < 0))
    if last:
        good &= (spans[:, 1] <= last) & (spans[:, 1] > last - NEAR)
    ends = _first_rows(leaves, last) if last else None
    whole = [i for i in np.flatnonzero(good).tolist()
             if (behind < 0 or _follows(_first_rows(leaves, int(spans[i, 0])), behind))
             and (ends is None or _follows(ends, int(spans[i, 1])))]
    return whole[0] if len(whole) == 1 else -1


def _follows(first: Int64s, behind: int) -> bool:
    """Whether a leaf begins behind row `behind`, with few rows left out."""
    return bool(((first > behind) & (first <= behind + LEFT_OUT)).any())


def _first_rows(leaves: Int64s, last: int) -> Int64s:
    """The first rows of leaves that end with row `last`, or did before it was deleted; leaves rise by their last ones.
    """
    low, high = np.searchsorted(leaves[:, 2], [last - LEFT_OUT, last], side="right")
    return leaves[low:high, 1]


def _last_child(page: bytes) -> int:
    """The number of the child of an interior page that has the rows behind all others."""
    return int.from_bytes(page[8:12], "big")


def _databases(guest: Guest) -> list[Database]:
    """The databases whose first page the map has."""
    out: list[Database] = []
    g, number = guest.files.begins()
    for at, file in zip(g.tolist(), number.tolist(), strict=True):
        size = int(guest.files.size[file])
        head = guest.disk.read(at, HEAD) if size >= BLOCK else b""
        page = _page_bytes(head)
        if head[:16] != MAGIC or page < BLOCK or page & (page - 1) or len(out) >= MAX_DATABASES:
            continue
        interior = [p for p in _interior(guest, file, page) if len(_children(p))]
        out.append(Database(file, page, interior))
    return out


def _interior(guest: Guest, file: int, page: int) -> Iterator[bytes]:
    """Pages of a database that may be interior ones, where the map has it: runs are read some MiB at a time."""
    left = MAX_BYTES
    for _, offset, at, length in guest.files.run[guest.files.run[:, 0] == file].tolist():
        first, end = at + -offset % page, at + min(length, left)
        left -= length
        for place in range(first, end - page + 1, STEP):
            data = np.frombuffer(guest.disk.read(place, min(STEP, end - place) // page * page), np.uint8)
            pages = data[: len(data) // page * page].reshape(-1, page)
            for i in _interior_rows(pages).tolist():
                yield pages[i].tobytes()


def _interior_rows(pages: U8s) -> Int64s:
    """Which of pages uint8[n, m] may be interior ones, by their type and their number of cells."""
    i = np.flatnonzero(pages[:, 0] == INTERIOR)
    count = pages[i, 3].astype(np.int64) << 8 | pages[i, 4]
    return i[(count > 0) & (count <= (pages.shape[1] - 12) // 7)]


def _page_bytes(head: bytes) -> int:
    page = int.from_bytes(head[16:18], "big")
    return 1 << 16 if page == 1 else page


def _phases(guest: Guest) -> Int64s:
    """Where in a block of the image files begin."""
    f = to_file(guest.disk.map, guest.files.begins()[0])
    return np.unique((f[f >= 0] + guest.start) % BLOCK)


def _children(page: bytes) -> Int64s:
    """int64[n, 2] of an interior page: the number of each child page and the greatest row below it; rising, or none."""
    count = int.from_bytes(page[3:5], "big")
    if page[0] != INTERIOR or not 0 < count <= (len(page) - 12) // 7:
        return np.empty((0, 2), np.int64)
    data = np.frombuffer(page.ljust(len(page) + 4 + NUMBER_BYTES, b"\0"), np.uint8)
    at = data[12 : 12 + 2 * count].view(">u2").astype(np.int64)
    if (at < 12 + 2 * count).any() or (at > len(page) - 5).any():
        return np.empty((0, 2), np.int64)
    child = np.ascontiguousarray(data[at[:, None] + np.arange(4)]).view(">u4")[:, 0].astype(np.int64)
    key, _ = _numbers(data[at[:, None] + 4 + np.arange(NUMBER_BYTES)])
    return np.column_stack((child, key)) if (np.diff(key) > 0).all() else np.empty((0, 2), np.int64)


def _numbers(data: U8s) -> tuple[Int64s, Int64s]:
    """(value, bytes) of the varints at the begin of rows uint8[n, >= 9]: 7 bits a byte, high bit: one more follows.

    Of the longest (9 bytes, negative rows) the value means nothing.
    """
    value, used = np.zeros(len(data), np.int64), np.zeros(len(data), np.int64)
    more = np.ones(len(data), np.bool_)
    for i in range(NUMBER_BYTES - 1):
        value = np.where(more, (value << 7) | (data[:, i] & 0x7F), value)
        used += more
        more &= data[:, i] >= 0x80
    return value, np.where(more, NUMBER_BYTES, used)
