"""Which containers are put together by units that prove themselves, and what the solver is told of them.

Streams that are not whole where their headers have them, archives by their members, and archives of which the first
member is lost. What is proved of them the solver keeps; what no unit proves it lays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..filemap import FileMap, FileView
from ..model import GUESSED, PROVEN, SECTOR, Container, Format, Marks, Reader, Region
from ..registry import formats
from .candidate import Candidate
from .segments import BLOCK
from .state import Claims
from .streams import CHAIN, Looks, Stream, held, join, stream_of, without_lost

Int64s = npt.NDArray[np.int64]


def join_units(image: Reader, formats_of: dict[int, Format], inside: dict[int, int], candidates: list[Candidate],
               modules: set[str], room: Int64s) -> list[tuple[Candidate, Stream]]:
    """Containers of streams, and archives, that are not whole where their headers have them: by what proves itself.

    formats_of: by the first byte of each. inside: the first byte of the archive that a container lies in. modules:
    formats of which evidence was found. The candidates become better, and archives without header more; returned is
    each one with what is known of its units.
    """
    looks = Looks(image, room)
    streams: list[tuple[Candidate, Stream]] = []
    pinned: dict[str, set[int]] = {}  # image offsets of marks that an archive has
    whole = Claims()
    for c in candidates:
        fmt = formats_of[c.start]
        if fmt.marks is not None and all(k.ok for k in c.container.checks):
            whole.add(c.map)  # each of its marks lies where it must
            continue
        phase = (c.start - inside.get(c.start, c.start)) % BLOCK  # a file inside an archive breaks where that does
        if fmt.gather is not None and not (c.plain and c.container.rebuild):
            pinned.setdefault(fmt.name, set()).update(_gather(image, fmt, c, looks))
        s = stream_of(image, fmt, c.start, c.container, c.map, c.tables, phase, c.units)
        if s is not None:
            streams.append((c, s))
    _join(image, streams, looks, whole)
    more: list[tuple[Candidate, Stream]] = []
    for c, fmt in _loose(image, candidates, modules, pinned, looks, whole):
        candidates.append(c)
        s = stream_of(image, fmt, c.start, c.container, c.map, c.tables, 0, c.units) if c.plain else None
        if s is not None:
            more.append((c, s))
    _join(image, more, looks, whole)
    return [*streams, *more]


def _join(image: Reader, streams: list[tuple[Candidate, Stream]], looks: Looks, whole: Claims) -> None:
    join(image, [s for _, s in streams], looks, whole)
    for c, s in streams:
        container = c.reopen(s.map) if s.sure.any() else None
        if container is not None:
            c.container, c.map, c.joined = container, s.map.resized(container.size), True
            c.proved, c.open = [*s.proved(), *c.proved], s.open


def _without_lost(image: Reader, c: Candidate, s: Stream) -> None:
    """Streams that were not found are holes again, whatever the solver laid there, and their entries are emptied."""
    left = without_lost(image, s, c.map)
    container = c.reopen(left) if c.joined and left is not c.map else None
    if container is not None:
        c.container, c.map = container, left.resized(container.size)


def settle_units(image: Reader, c: Candidate, s: Stream) -> None:
    """What may be said of units when the solver has laid the rest."""
    _without_lost(image, c, s)
    _grade(c, s)


def _grade(c: Candidate, s: Stream) -> None:
    """Notes which units are checked and of this archive beyond doubt."""
    start = int(s.units.file_offset[0])
    end = s.chain(start)
    if end > start and s.holds(c.map, start, end):
        c.map = c.map.graded([(start, end - start, GUESSED, CHAIN)])
        c.container.regions.append(Region(start, end - start, f"{c.container.format}.checked", PROVEN))


def _gather(image: Reader, fmt: Format, c: Candidate, looks: Looks) -> list[int]:
    """An archive of which only the first run was opened: by its members, wherever they lie. Returns where they do."""
    assert fmt.gather is not None
    found = fmt.gather(image, c.start, FileView(image, c.map), looks.marks(fmt, c.start % SECTOR))
    if found is not None:
        c.units = found.units
    if found is None or found.container is None:
        return []
    _take(image, c, found.container, found.pins.tolist())
    return list(found.pins[:, 1].tolist())


def _loose(image: Reader, candidates: list[Candidate], modules: set[str], pinned: dict[str, set[int]], looks: Looks,
           whole: Claims) -> list[tuple[Candidate, Format]]:
    """Archives whose first bytes are lost, of marks that no other archive has."""
    out: list[tuple[Candidate, Format]] = []
    starts = {c.start for c in candidates}
    for fmt in [fmt for name, fmt in formats().items() if fmt.loose is not None and name in modules]:
        marks = looks.marks(fmt, 0)
        for c in candidates:
            if c.container.format == fmt.name and c.joined:
                whole.add(c.map)
        had = pinned.get(fmt.name, set())
        keep = ~np.isin(marks.image_offset, list(had)) & ~held(whole, marks.image_offset)
        rest = Marks(marks.image_offset[keep], marks.key[keep], marks.span[keep])
        for found in fmt.loose(image, rest) if fmt.loose is not None else ():
            if found.container is None or found.start in starts:
                continue
            starts.add(found.start)
            c = Candidate(found.start, found.container, FileMap.build([]), lambda _: None, units=found.units)
            _take(image, c, found.container, found.pins.tolist())
            out.append((c, fmt))
    return out


def _take(image: Reader, c: Candidate, container: Container, pins: list[list[int]]) -> None:
    """Makes the gathered archive the candidate's container."""
    c.container, c.reopen = container, lambda _: container
    # until more is known each part is taken to go on from what is known before it
    rows = [(f, min(end - f, image.size - p), p, GUESSED, "continuity")
            for (f, p, _), end in zip(pins, [*(f for f, _, _ in pins[1:]), container.size], strict=True)]
    c.map = FileMap.from_runs(np.array([(f, p, n) for f, n, p, _, _ in rows], np.int64), container.size, "continuity",
                              GUESSED)
    c.proved = [(b, 1, (p - f - c.start) // BLOCK) for f, p, n in pins
                for b in range(f // BLOCK, (f + n - 1) // BLOCK + 1)]
    c.anchors, c.tables, c.open = [f for f, p, _ in pins if p - f == c.start], [], True
