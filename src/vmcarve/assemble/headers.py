"""Header-led assembly: a structure that states its place in its container proposes where the container begins."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..filemap import FileMap, FileView
from ..model import (
    DATA,
    GUESSED,
    LOST,
    MISSING,
    PLAIN,
    Check,
    Container,
    Evidence,
    Format,
    GuestMap,
    Reader,
)
from ..registry import formats
from .candidate import Candidate
from .left_out import doubt_zeros
from .loose import Loose
from .places import Places
from .segments import BLOCK
from .solve import solve
from .state import Claims
from .tables import EMPTY, Found, Search
from .units import join_units, settle_units

MOST_SLACK = 16 << 20  # ours: bytes that a container in doubt may have beyond its disks and an eighth of them
MAX_REGIONS = 4096  # ours: tables of a container that are compared with what proposes others
BEHIND = 64 << 20  # ours: bytes of an archive behind the last of its disks

Hints = dict[tuple[int, str], set[tuple[int, int]]]
"""Of each image offset and format that evidence proposes as a container's begin: (file offset, its end) of that."""


@dataclass(slots=True)
class Led:
    """A container and its map, not yet claimed."""

    container: Container
    map: FileMap
    tables: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # (file, image offset)s of blocks


def lead(image: Reader, rows: list[tuple[str, Evidence]], places: Places, claims: Claims,
         free: npt.NDArray[np.int64] | None,
         rivals: Callable[[list[Candidate]], list[Candidate]], loose: Loose) -> Iterator[Led]:
    """Containers proposed by `rows` (module, evidence; image order) outside what `claims` holds.

    The caller claims each one before the next is asked for. places: guest structures that state their place. free: the
    host's free runs int64[n, 2], or None. rivals(containers) -> disks without a container that compete with them; they
    are not handed on. loose: what was found of the guests' loose metadata; grows.

    All are opened first, each as one run, so that guest structures go to the container that they fit and lie nearest
    to; then each one's breaks are placed, in image order.
    """
    hints: Hints = {}
    for m, e in rows:
        if e.container_offset is not None and e.image_offset >= e.container_offset:
            hints.setdefault((e.image_offset - e.container_offset, m), set()).add(
                (e.container_offset, e.container_offset + e.length))
    room = np.array([[0, image.size]], np.int64) if free is None or len(free) == 0 else free
    room = claims.free_of(room)
    opened = _open_all(image, {k: v for k, v in hints.items() if not claims.holds(_seen(hints, *k))}, claims, free,
                       Search(image, room))
    candidates = [_candidate(image, fmt, start, led, sorted(f for f, _ in hints[start, fmt.name]))
                  for start, fmt, led in opened if led.container.guests]
    _pin_by_name(candidates, rows)
    inside = {start + m.file_offset: start for start, _, led in opened if not led.container.guests
              for m in led.container.members if m.kind == "tar"}
    forms = {start: fmt for start, fmt, led in opened if led.container.guests}
    streams = join_units(image, forms, inside, candidates, {m for m, _ in rows}, room)
    heads = [c.start for c in candidates if 0 in c.anchors and c.start not in inside]
    for c, _ in streams:
        c.map = _up_to_heads(c.map, c.start, heads)
    others = rivals([c for c in candidates if c.plain])
    solve(image, candidates, places, room, others, loose=loose)
    for c, s in streams:
        settle_units(image, c, s)
        c.map = _up_to_heads(c.map, c.start, heads)
    for c in candidates:
        doubt_zeros(c)
    theirs = Claims()
    for c in [c for c in others if not c.nested]:
        if c.settled:
            theirs.add(c.map)
        elif c.owned:  # its table, by which it is found again in what is left
            theirs.add_range(c.start, c.start + BLOCK)
    solved = {c.start: c for c in candidates}
    headed = {start for start, _, _ in opened}
    opened += [(c.start, formats()[c.container.format], Led(c.container, c.map)) for c in candidates
               if c.start not in headed]

    def order(one: tuple[int, Format, Led]) -> tuple[int, int]:
        """What agrees as one run comes first, then what its units prove, then what the tables tell whole: others may
        have been left with a first map that reaches over it.

        What is known by its header's run only comes last: others may lie inside that. Archives share their bytes.
        """
        c = solved.get(one[0])
        if c is None or c.settled or c.joined:
            return int(c is not None and not c.settled), one[0]
        return (4 if not c.plain else 3 if in_doubt(c.container) else 2), one[0]

    for start, fmt, led in sorted(opened, key=order):
        if claims.holds(_seen(hints, start, fmt.name)):
            continue
        c = solved.get(start)
        if c is not None:
            led = Led(c.container, c.map)
        elif led.container.members:
            led = _around(image, fmt, start, led, solved)
        if c is None:
            led.map = _up_to_heads(led.map, start, heads)
        led.map = theirs.rest_of(claims.rest_of(led.map, "others"), "others")
        yield led


def _up_to_heads(file_map: FileMap, start: int, heads: list[int]) -> FileMap:
    """The map of what begins at image offset `start` without what only goes on over another container's first byte: it
    ends before."""
    rows: list[tuple[int, int, int, str, str]] = []
    for f, n, p, grade, rule in file_map.rows():
        over = [head for head in heads if p <= head < p + n and head != start] if rule == "continuity" else []
        end = min(over, default=p + n)
        rows += [(f, end - p, p, grade, rule), (f + end - p, p + n - end, -1, MISSING, "others")]
    return FileMap.build([row for row in rows if row[1] > 0])


def _seen(hints: Hints, start: int, module: str) -> int:
    """Where what proposes it lies: a footer's file need not be one run, so its first byte may be anyone's."""
    return start + min((f for f, _ in hints.get((start, module), ())), default=0)


def _open_all(image: Reader, hints: Hints, claims: Claims, free: npt.NDArray[np.int64] | None, search: Search
              ) -> list[tuple[int, Format, Led]]:
    """The containers that open where the hints propose them, by their first bytes, with the tables that were found."""
    opened: list[tuple[int, Format, Led]] = []

    def whole_first(one: tuple[int, str]) -> tuple[bool, bool, int]:
        """Those with a header, of which those whose tables all lie in their run come first, so that nobody takes those.

        Tables without a header are left for those that have one and lack some: a file may break behind its header.
        """
        fmt = formats()[one[1]]
        first = _run_from(image, one[0], _room_of(image), claims, free)
        return _seen(hints, *one) > one[0], _lacks(fmt, image, first, search), one[0]

    ranked = sorted((*whole_first(one), one[1]) for one in hints)
    heads = sorted({start for inner, _, start, _ in ranked if not inner})
    near: dict[tuple[int, str], Found] = {}
    for inner, lacking, start, module in ranked:
        if lacking and not inner:
            search.keep_begun(formats()[module], _run_from(image, start, _room_of(image), claims, free))
    for inner, lacking, start, module in ranked:
        if lacking and not inner:  # tables before the next header are this one's, if they are all it lacks
            end = min((h for h in heads if h > start), default=image.size)
            first = _run_from(image, start, _room_of(image), claims, free)
            found = search.complete_before(formats()[module], start, first, end)
            if found is not None:
                near[start, module] = found
    for _, lacking, start, module in ranked:
        ends = sorted({end for _, end in hints[start, module]}, reverse=True)
        led = _open_at(image, formats()[module], start, ends, claims, free, search if lacking else None,
                       near.get((start, module)))
        if led is not None:
            opened.append((start, formats()[module], led))
            if not lacking and led.container.holds_data and not in_doubt(led.container):
                search.keep(led.container, led.map)
    opened = [one for one in opened if not _anothers(hints[one[0], one[1].name], one, opened)]
    return sorted(opened, key=lambda one: (one[0], one[1].name))


def _anothers(hints: set[tuple[int, int]], one: tuple[int, Format, Led], opened: list[tuple[int, Format, Led]]) -> bool:
    """Whether all that proposes a container without header are tables of one that has its header.

    A table states where its file begins as if that were one run. Where a host leaves out what is zero between the
    header and the table, that is beside the header.
    """
    start, fmt, _ = one
    if min(f for f, _ in hints) == 0:
        return False
    places = {start + f for f, _ in hints}
    for begin, other, led in opened:
        if other is fmt and begin != start:
            places -= _tables_of(led)
    return not places


def _tables_of(led: Led) -> set[int]:
    """Image offsets of the tables that were found for a container away from its run."""
    if not led.tables:
        return set()
    cuts = [led.map.cut(r.file_offset, 1) for r in led.container.regions[:MAX_REGIONS]]
    return {p for cut in cuts for _, _, p, _, _ in cut if p >= 0}


def _lacks(fmt: Format, image: Reader, first: FileMap, search: Search) -> bool:
    """Whether tables of a container are not where its run has them, as the format tells or as what it reads there."""
    if search.wants(fmt, first):
        return True
    try:
        return fmt.stated is not None and in_doubt(fmt.open(FileView(image, first)))
    except Damaged:
        return True


def _candidate(image: Reader, fmt: Format, start: int, led: Led, anchors: list[int]) -> Candidate:
    last: list[tuple[tuple[object, ...], Container | None]] = []

    def reopen(file_map: FileMap) -> Container | None:
        key = file_map.reads()
        if not last or last[0][0] != key:  # rounds often lay it out as the one before did
            found = _reopened(image, fmt, file_map)
            last[:] = [(key, None if found is None else found.container)]
        return last[0][1]

    # a footer tells where the first byte would be if the whole file were one run: then only the footer is a pin
    first = [0] if 0 in anchors else anchors
    empty = [(f, f + n) for f, n, _, _, rule in led.map.rows() if rule == EMPTY]
    return Candidate(start, led.container, led.map, reopen, led.tables, empty, fmt.wants is not None, first)


def _pin_by_name(candidates: Sequence[Candidate], rows: list[tuple[str, Evidence]]) -> None:
    """Notes where structures lie that say whose they are but not where (a VHD's tail footer), of containers that know.

    Not where several bear the name: clones, or what a file left where it ended before.
    """
    places: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for module, e in rows:
        if e.container_offset is None and e.identity is not None:
            places[module, e.kind, e.identity].append(e.image_offset)
    if not places:
        return
    bearers = Counter(name for c in candidates for name in c.container.identities)
    for c in candidates:
        if in_doubt(c.container):
            continue
        for region in c.container.regions:
            for name in c.container.identities:
                at = places.get((c.container.format, region.kind, name), []) if region.file_offset else []
                inside = region.file_offset % BLOCK
                if len(at) == 1 and bearers[name] == 1 and (at[0] - inside - c.start) % BLOCK == 0:
                    c.tables.append((region.file_offset - inside, at[0] - inside))


def _around(image: Reader, fmt: Format, start: int, led: Led, solved: dict[int, Candidate]) -> Led:
    """An archive around files that were put together: its bytes lie where theirs do, and go on behind them."""
    rows: list[tuple[int, int, int, str, str]] = []
    at = 0
    for m in sorted(led.container.members, key=lambda m: m.file_offset):
        c = solved.get(start + m.file_offset)
        if c is None or not c.joined or m.kind != "tar" or m.file_offset < at:
            continue
        rows += led.map.cut(at, m.file_offset - at) if not rows else _behind(rows, at, m.file_offset - at, image.size)
        rows += [(f + m.file_offset, n, p, grade, rule) for f, n, p, grade, rule in c.map.cut(0, m.length)]
        while rows and rows[-1][2] < 0:  # what the disk does not name at its end goes on too
            rows.pop()
        if not rows:
            return led
        at = rows[-1][0] + rows[-1][1]
    if not rows:
        return led
    rows += _behind(rows, at, BEHIND, image.size)
    return _reopened(image, fmt, FileMap.build(rows)) or led


def _behind(rows: list[tuple[int, int, int, str, str]], at: int, length: int, image_size: int
            ) -> list[tuple[int, int, int, str, str]]:
    """Bytes [at, at + length) of a file that goes on where the last of the rows does."""
    f, _, p, _, _ = rows[-1]
    if p < 0:
        return [(at, length, -1, MISSING, "not-found")]
    there = max(0, min(length, image_size - (p + at - f)))
    return [(at, there, p + at - f, GUESSED, "continuity"), (at + there, length - there, -1, MISSING, "image-end")]


def _open_at(image: Reader, fmt: Format, start: int, hints: list[int], claims: Claims,
             free: npt.NDArray[np.int64] | None, search: Search | None, near: Found | None) -> Led | None:
    """search: None where the run has every table. near: what was found already of one that lacks some."""
    room = _room_of(image)
    for size in [room, *hints]:
        file_map = _run_from(image, start, size, claims, free)
        tables: list[tuple[int, int]] = []
        if size == room and search is not None:
            file_map, tables = near or search.complete(fmt, start, file_map)
        try:
            container = fmt.open(FileView(image, file_map))
        except Damaged:
            continue
        if container.size <= 0 or (container.guests and container.virtual_size == 0):
            continue  # a file just created, or an old copy of such a header: there is no disk in it
        clip(container, _most(container, room))
        return Led(container, file_map.resized(container.size), tables)
    return None


def _room_of(image: Reader) -> int:
    """Bytes that a container may have: an image may end before it does; a sparse host file may be longer than that."""
    return 4 * image.size + (64 << 20)


def _reopened(image: Reader, fmt: Format, better: FileMap) -> Led | None:
    """The container as the better map shows it: tables behind a break read differently now."""
    try:
        container = fmt.open(FileView(image, better))
    except Damaged:
        return None
    clip(container, _most(container, better.size))
    return Led(container, better.resized(container.size))


def in_doubt(container: Container) -> bool:
    """Whether what the tables say of places cannot all be believed."""
    return any(c.grave and not c.ok for c in container.checks) or \
        any(bool((g.map.state == LOST).any()) for g in container.guests)


def _most(container: Container, limit: int) -> int:
    """Bytes that the container may have: tables in doubt do not make it much larger than its disks, nor one whose data
    lie in another file larger than its tables."""
    if not container.guests or not in_doubt(container):
        return limit
    if container.members and not any((g.map.state == DATA).any() for g in container.guests):
        return min(limit, max((r.file_offset + r.length for r in container.regions), default=limit))
    disks = sum(g.virtual_size for g in container.guests)
    return min(limit, disks + disks // 8 + MOST_SLACK)


def clip(container: Container, limit: int) -> None:
    """Cuts a container at `limit` bytes: tables read from a wrong place may name any offset.

    What lay beyond is lost, not zero.
    """
    if container.size <= limit:
        return
    container.size = limit
    container.size_exact = False
    detail = f"tables name places beyond {limit:#x}"
    container.checks.append(Check("container size is possible on this image", False, detail))
    container.patches = [p for p in container.patches if p.file_offset + len(p.data) <= limit]
    container.regions = [r for r in container.regions if r.file_offset + r.length <= limit]
    for guest in container.guests:
        m = guest.map
        beyond = (m.state == DATA) & (m.file_offset + m.stored > limit)
        if beyond.any():
            state, place = m.state.copy(), m.file_offset.copy()
            encoding, stored = m.encoding.copy(), m.stored.copy()
            state[beyond], place[beyond], encoding[beyond], stored[beyond] = LOST, -1, PLAIN, m.length[beyond]
            guest.map = GuestMap.build(m.guest_offset, m.length, state, place, encoding, stored)


def _run_from(image: Reader, start: int, size: int, claims: Claims,
              free: npt.NDArray[np.int64] | None) -> FileMap:
    """The image from `start` on, flowing around what the host has in use and what other containers own."""
    if free is not None and len(free):
        i = int(np.searchsorted(free[:, 0], start, side="right")) - 1
        if i >= 0 and start < int(free[i].sum()):
            return FileMap.flow(start, size, claims.free_of(free))
    everything = np.array([[start, image.size - start]], np.int64)
    return FileMap.flow(start, size, claims.free_of(everything), "continuity")
