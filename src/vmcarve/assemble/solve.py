"""The solver: all containers of an image whose first byte is known are laid over the image together.

Rounds of: read each guest through the map so far; gather the points that its structures, its files' ends and the
container's own tables give; join them to segments, each byte of the image and of a file to one; place the breaks
between segments. What a round places lets the next one read more of the guest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..disk import VirtualDisk
from ..filemap import FileMap, FileView
from ..model import DATA, LOST, MISSING, Container, HostVolume, Reader
from ..verify.guest import describe
from .asked import asked
from .breaks import Borders, Contents, Expectation, lay_out
from .candidate import Best, Candidate, Metadata
from .content import Content, Guest
from .content.files import Files
from .content.sums import without_wrong
from .gather import PIN_BITS, RoundEvidence, expected, gather
from .host_units import unit_of
from .loose import Loose, placer_of, stated_by
from .places import Known, Places, assign, first_rows, pins_of, through
from .removed import removed
from .segments import BLOCK, MAX_BREAKS, Points, Segment, Taken, accept, group, least_weight
from .settled import has_file_at, misplaced, settled
from .state import Claims
from .tables import EMPTY
from .tails import SECTOR, FileEnds, Live, SectorEnds, file_ends, look, open_volumes
from .unit_ends import OpenEnds

Int64s = npt.NDArray[np.int64]
ROUNDS = 6
HEADER_BITS = 1e6
FOUND_BITS = 1e5  # a table that is read: without it the rest of the container cannot be
MAX_TABLES = 1024  # ours: of one container
MAX_REGIONS = 4096  # ours: of one container, which a round leaves where they were
NEAR = 64  # blocks of a step between neighbouring segments that needs no strong evidence
NEAR_MARGIN = 6.0  # bits
STEADY = 0.7  # a rate of breaks that changes by less from round to round is taken for the same, or rounds would not end
KEPT = 0.9  # share of a guest's files that a round may not lose


Round = Callable[[Reader, Candidate, Points, Expectation], list[tuple[int, int, int, int]]]
"""A round for one candidate alone: sets its map by the points; returns its runs (0, first block, last block, delta)."""


def solve(image: Reader, candidates: list[Candidate], places: Places, room: Int64s,
          rivals: Sequence[Candidate] = (), alone: Round | None = None, loose: Loose | None = None) -> None:
    """Better maps for the candidates that are not one run. room int64[k, 2]: image ranges that may be theirs.

    rivals: others that may be what they are proposed as; only those that agree as one run keep their bytes. alone: how
    a single candidate is laid out instead. loose: what was found on the image so far; grows.
    """
    taken = Taken(_outside(room, image.size), {})
    known: Known = {}
    loose = loose or Loose(image)
    plain = [c for c in [*candidates, *rivals] if c.plain]
    _give_volumes(image, plain, places, known, loose, room)
    for c in plain:
        _read_guest(image, c, places)
        told = _told(image, c)
        if told is not c.map:
            c.map, c.read = told, None  # what was read was read through more than that
    for r in rivals:
        r.nested = any(has_file_at(c, r.start) and settled(image, c, candidates) for c in candidates)
    rivals = [r for r in rivals if not r.nested]
    everyone = [*candidates, *rivals]
    for c in everyone:
        c.settled = settled(image, c, everyone) and not (
            c.scattered is not None and _misplaced(image, c, places, loose, room))
    for c in everyone:
        if c.settled:
            taken.image.add(c.map)
    active = [c for c in candidates if not c.settled and c.plain]
    if not active:
        return
    if len(active) < len(plain):  # what is settled keeps its volumes, and a rival those that lie in its own run
        kept = _copy(taken.image)
        for rival in rivals:
            for o in rival.owned:
                if o.delta == 0:
                    at = int(places.image_offset[o.row] + places.length[o.row])
                    kept.add_range(at - 1, at)
        places, known = places.outside(kept), {}
        _give_volumes(image, active, places, known, loose, room)
        for c in active:
            _read_guest(image, c, places)
    for c in active:
        c.tables = sorted(dict([*_tables(image, c), *c.tables]).items())
    free = taken.image.free_of(room)
    looks: dict[int, SectorEnds] = {}
    contents = Contents(image)
    content, borders, rate = Content(image, free), Borders(), 0.0
    last = b""
    seen: list[tuple[list[tuple[int, int, int, int]], list[list[bytes]]]] = []
    for number in range(ROUNDS):
        if number:
            _give_volumes(image, active, places, known, loose, room)
            for c in active:
                _read_guest(image, c, places)
                _keep_best(image, c, places)
        _place_metadata(image, active, places, loose, free)
        for c in active:
            if c.start % SECTOR not in looks:
                looks[c.start % SECTOR] = look(image, free, c.start % SECTOR)
        content.look([_guest(image, c, borders.rate) for c in active])
        evidence = gather(active, looks, content)
        if evidence.key == last:
            break
        last = evidence.key
        held = [c.map for c in active]
        now = Taken(_copy(taken.image), {})
        if not rate or not STEADY <= borders.rate / rate <= 1 / STEADY:
            rate = borders.rate
        borders = Borders(rate=rate)
        if alone is not None:
            runs = alone(image, active[0], evidence.points, evidence.expectations[0])
        else:
            runs = _round(image, active, evidence, now, borders, contents)
        for c, old in zip(active, held, strict=True):
            c.map = c.map if c.begun is None else c.begun(c.map)
            container = _reopened(c)
            if container is None:
                c.map = _with_tables(c, old, now.image)
                container = _reopened(c)
            if container is None:
                c.map = old  # what was read before is worth more than a better place for something else
                continue
            c.container = container
            c.map = _told(image, c).resized(container.size)
        found = runs, [[g.map.file_offset.tobytes() for g in c.container.guests] for c in active]
        if found in seen:
            break  # the same runs of the same disks, as before or in turns: the guests tell no more than they did
        seen.append(found)
    for c in active:
        _read_guest(image, c, places)
        _keep_best(image, c, places)
    for c, stated in zip(active, content.sums.stated, strict=True):
        c.map = without_wrong(image, c.map, stated)


def _guest(image: Reader, c: Candidate, rate: float) -> Guest:
    disk = VirtualDisk(FileView(image, c.map), c.container.guests[0].map)
    vacant = expected(c).vacant if c.flat else np.empty((0, 2), np.int64)  # elsewhere what is free need not be there
    return Guest(c.start, disk, [(o.guest_offset, o.size) for o in c.owned], c.files, c.sure, c.read, c.ends, c.unit,
                 vacant, rate)


def _reopened(c: Candidate) -> Container | None:
    """The container as the new map shows it, None where its tables tell less of the guest so."""
    container = c.reopen(c.map.zeroed(c.empty, EMPTY))  # read so; what was not found may be one of them
    return None if container is None or _lost(container) > _lost(c.container) else container


def _with_tables(c: Candidate, old: FileMap, taken: Claims) -> FileMap:
    """The new map of a candidate with its tables where the old one has them, as far as the new has nothing there and
    nobody else has those bytes. What is laid so is taken."""
    rest = taken.rest_of(old, "others")
    rows: list[tuple[int, int, int, str, str]] = []
    at = 0
    for region in sorted(c.container.regions, key=lambda r: r.file_offset)[:MAX_REGIONS]:
        low, high = max(at, region.file_offset // BLOCK * BLOCK), region.file_offset + region.length
        high = min(-(-high // BLOCK) * BLOCK, c.map.size, old.size)
        if low >= high:
            continue
        rows += c.map.cut(at, low - at)
        for f, n, p, grade, rule in c.map.cut(low, high - low):
            rows += [(f, n, p, grade, rule)] if p >= 0 else rest.cut(f, n)
        at = high
    rows += c.map.cut(at, c.map.size - at)
    taken.add(FileMap.build(rows))
    return FileMap.build(rows)


def _lost(container: Container) -> int:
    """Guest bytes that the container's tables do not tell."""
    return sum(int(g.map.length[g.map.state == LOST].sum()) for g in container.guests)


def _outside(room: Int64s, size: int) -> Claims:
    """Everything that is not room."""
    out, at = Claims(), 0
    for start, length in room.tolist():
        if start > at:
            out.add_range(at, start)
        at = max(at, start + length)
    if at < size:
        out.add_range(at, size)
    return out


def _copy(claims: Claims) -> Claims:
    out = Claims()
    for start, end in claims.ranges():
        out.add_range(start, end)
    return out


# --- what a guest tells ----------------------------------------------------------------------------------------------
def _give_volumes(image: Reader, candidates: list[Candidate], places: Places, known: Known, loose: Loose, room: Int64s
                  ) -> None:
    legible = [c for c in candidates if not c.encrypted]
    if legible and all(c.placed is not None and c.placed[0] is c.container and c.placed[1] is places for c in legible):
        return  # no table was read otherwise since
    found = assign(image, [(c.start, c.container) for c in legible], places, known, loose, room,
                   [c.scattered for c in legible])
    for c, owned in zip(legible, found, strict=True):
        c.owned, c.placed = owned, (c.container, places)


def _read_guest(image: Reader, c: Candidate, places: Places) -> None:
    """Pins, volumes and file ends of a candidate as its map shows them now."""
    guest_map = c.container.guests[0].map
    key = (c.map.reads(), [g.map.file_offset.tobytes() for g in c.container.guests], c.owned)
    if key == c.read:
        return
    c.read = key
    disk = VirtualDisk(FileView(image, c.map), guest_map)
    c.pins = pins_of(c.container, c.start, c.owned, places, scattered=c.scattered is not None)

    def read() -> tuple[list[HostVolume], list[Live], FileEnds, Files, OpenEnds]:
        volumes = open_volumes(disk, [(o.guest_offset, o.size) for o in c.owned])
        live = [Live.of(v, image if c.scattered is not None else None) for v in volumes]
        return volumes, live, file_ends(live, guest_map), Files.of(live), OpenEnds.of(live)

    c.volumes, live, c.ends, files, c.open_ends = asked(read, ([], [], FileEnds.none(), Files.none(), OpenEnds.none()))
    c.listed = len(files.size)
    c.files = asked(lambda: Files.of(live, [f for v in live for f in removed(v.gone, v.listed)]), files)


def _keep_best(image: Reader, c: Candidate, places: Places) -> None:
    """Takes the best map again where the last round has lost much of what the guest told through that."""
    files, rows = c.listed, sorted(o.row for o in c.owned)
    best = c.best
    if best is None or best.rows != rows or files >= best.files:
        c.best = Best(files, rows, c.container, c.map)
    elif files < KEPT * best.files:
        c.container, c.map = best.container, best.map
        _read_guest(image, c, places)


def _place_metadata(image: Reader, active: list[Candidate], places: Places, loose: Loose, room: Int64s) -> None:
    """Looks for the loose metadata of every volume of which more is known than at the last look.

    What is known of a volume is read through the map so far, or through its own metadata: whichever tells more.
    """
    wanted: list[Metadata] = []
    for c in active:
        current = VirtualDisk(FileView(image, c.map), c.container.guests[0].map)
        for o in c.owned:
            first = through(image, c.start, c.container, o.delta)
            placer = placer_of(current, o.guest_offset, o.size) or placer_of(first, o.guest_offset, o.size)
            old = c.metadata.get(o.guest_offset)
            if placer is None:
                c.metadata.pop(o.guest_offset, None)
            elif old is None or old.row != o.row or old.placer.key != placer.key:
                c.metadata[o.guest_offset] = Metadata(o.row, placer)
                wanted.append(c.metadata[o.guest_offset])
        for g in set(c.metadata) - {o.guest_offset for o in c.owned}:
            del c.metadata[g]
    alone = stated_by(loose, {o.row: (places.begin(o.row), o.size) for c in active for o in c.owned
                              if places.begin(o.row) >= 0 and any(m.row == o.row for m in wanted)}, room)
    owned = {(places.module[o.row], places.identity[o.row]) for c in active for o in c.owned}
    open_ = {places.module[i] for i in first_rows(places) if (places.module[i], places.identity[i]) not in owned}
    for m in [m for c in active for m in c.metadata.values()]:
        m.alone = m.placer.bits < PIN_BITS and places.module[m.row] not in open_
    for m, found in zip(wanted, loose.look([(places.begin(m.row), m.placer) for m in wanted], room), strict=True):
        own, _ = alone.get(m.row, (found, 0.0))
        told = found if m.placer.bounded else max(found, own, key=lambda stated: len(stated[0]))
        m.image_offset, m.volume_offset = told


def _misplaced(image: Reader, c: Candidate, places: Places, loose: Loose, room: Int64s) -> bool:
    """Whether the units of a candidate lie in another order than its map has them, as its metadata says."""
    disk = VirtualDisk(FileView(image, c.map), c.container.guests[0].map)
    told = [(o, p) for o in c.owned if (p := placer_of(disk, o.guest_offset, o.size)) is not None]
    found = loose.look([(places.begin(o.row), p) for o, p in told], room)
    return any(misplaced(c, o.guest_offset, stated) for (o, _), stated in zip(told, found, strict=True))


# --- one round -----------------------------------------------------------------------------------------------------
def _round(image: Reader, active: list[Candidate], evidence: RoundEvidence, taken: Taken, borders: Borders,
           contents: Contents) -> list[tuple[int, int, int, int]]:
    """Better maps for all of them; returns the runs that they were laid out from: (container, first, last, delta)."""
    points, wanted, expectations = evidence.points, evidence.wanted, evidence.expectations
    blocks = evidence.blocks
    begins = {o: c.start for o, c in enumerate(active)}
    free = {o: e.free for o, e in expectations.items()}
    candidates = group(points, wanted, free, borders.rate)
    unit = unit_of(accept(candidates, begins, Taken(_copy(taken.image), {}), least_weight(blocks)), begins)
    if unit.blocks > 1:
        candidates = group(unit.fits(points, begins), wanted, free, borders.rate)
        borders.unit = unit.blocks
    _find_nested(active, candidates)
    heads = [Segment(o, 0, np.array([f // BLOCK], np.int64), np.full(1, HEADER_BITS), HEADER_BITS)
             for o, c in enumerate(active) if not c.nested for f in c.anchors]
    heads += [s for o, c in enumerate(active) if not c.nested for s in _of_tables(o, c)]
    heads += [Segment(o, delta, np.arange(first, first + n), np.full(n, FOUND_BITS), FOUND_BITS * n)
              for o, c in enumerate(active) if not c.nested for first, n, delta in c.proved]
    candidates = [s for s in candidates if not active[s.owner].nested]
    least = least_weight(blocks // unit.blocks, borders.rate)
    strong = accept(heads + candidates, begins, taken, least, unit.blocks)
    strong += _nearby(candidates, strong, begins, taken, wanted, unit.blocks)
    sizes = {o: _end(c) for o, c in enumerate(active)}
    for o, c in enumerate(active):
        mine = sorted((s for s in strong if s.owner == o), key=lambda s: s.first)
        c.unit, c.sure = unit, _sure(mine, borders.rate if c.scattered is not None else 0.0)
    rows = lay_out(image, begins, sizes, strong, expectations, taken, borders, contents)
    for o, found in rows.items():
        active[o].map = FileMap.build(found).resized(active[o].container.size)
    return sorted((s.owner, s.first, s.last, s.delta) for s in strong)


def _of_tables(owner: int, c: Candidate) -> list[Segment]:
    """The tables of a container, those of one delta together."""
    blocks: dict[int, list[int]] = {}
    for f, p in c.tables:
        blocks.setdefault((p - f - c.start) // BLOCK, []).append(f // BLOCK)
    return [Segment(owner, delta, np.unique(np.array(f, np.int64)), np.full(len(set(f)), FOUND_BITS),
                    FOUND_BITS * len(set(f))) for delta, f in sorted(blocks.items())]


def _told(image: Reader, c: Candidate) -> FileMap:
    """The map of a flat disk without what nothing on it speaks of: between partitions, behind the file system of one.

    No allocation map says that it holds anything there: a sparse host file has a hole.
    """
    if not c.flat or not c.owned:
        return c.map
    disk = VirtualDisk(FileView(image, c.map), c.container.guests[0].map)
    parts = [p for v in describe(disk) for p in v.partitions]
    volumes = {o.guest_offset: o.size for o in c.owned}
    told = Claims()
    told.add_range(0, min([*volumes, *(offset for offset, _, _ in parts if offset > 0)]))
    for offset, length in [*volumes.items(), *((offset, length) for offset, length, _ in parts)]:
        told.add_range(offset, offset + volumes.get(offset, length))
    for f, _ in c.pins:
        told.add_range(f // BLOCK * BLOCK, (f // BLOCK + 1) * BLOCK)
    rows: list[tuple[int, int, int, str, str]] = []
    at = 0
    for start, end in [*told.ranges(), (c.map.size, c.map.size)]:
        rows += [(f, n, -1, MISSING, "nothing-told") for f, n, *_ in c.map.cut(at, start - at)]
        rows += c.map.cut(start, end - start)
        at = max(at, end)
    return FileMap.build(rows)


def _end(c: Candidate) -> int:
    """Bytes of the file that may be claimed."""
    if not c.flat or not c.owned:
        return c.container.size
    ends = [*(o.guest_offset + o.size for o in c.owned), *(f + BLOCK for f, _ in c.pins)]
    return min(c.container.size, max(ends))


def _sure(chain: list[Segment], rate: float) -> Int64s:
    """Runs of one delta between the first and the last of their segments: int64[n, 3] (first block, end, delta).

    rate: breaks by block, where two segments of one delta may not belong together; 0: they do.
    """
    out: list[list[int]] = []
    for s in chain:
        if out and out[-1][2] == s.delta and (s.first - out[-1][1]) * rate <= MAX_BREAKS:
            out[-1][1] = s.last + 1
        else:
            out.append([s.first, s.last + 1, s.delta])
    return np.array(out, np.int64).reshape(-1, 3)


def _tables(image: Reader, c: Candidate) -> list[tuple[int, int]]:
    """(file, image offset)s of the tables that the first map reads, when they tell every guest byte.

    Where the format has no test for a table in its place, only those before the first guest data: of others nothing but
    the map says that they lie there.
    """
    if _lost(c.container):
        return []
    m = c.container.guests[0].map
    head = c.container.size if c.checked else int(m.file_offset[m.state == DATA].min(initial=c.container.size))
    out: list[tuple[int, int]] = []
    sure = {p - f for f, p in c.tables} | {c.start}  # of what is spare nobody knows whether it is this one
    for region in [r for r in c.container.regions if r.file_offset < head][:MAX_TABLES]:
        f = region.file_offset // BLOCK * BLOCK
        p = next((at for _, _, at, _, _ in c.map.cut(f, 1)), -1)
        if f and p - f in sure and (p - c.start) % BLOCK == 0 and any(image.read(p, BLOCK)):
            out.append((f, p))
    return out


def _find_nested(active: list[Candidate], segments: list[Segment]) -> None:
    """Marks the candidates that are files inside another one's guest: where a heavy segment has them a file begins."""
    heavy = [s for s in segments if s.weight >= 2 * PIN_BITS and s.last > s.first]
    for o, c in enumerate(active):
        for s in heavy:
            other = active[s.owner]
            f = c.start - other.start - s.delta * BLOCK
            if s.owner != o and s.first < f // BLOCK < s.last:
                i = int(np.searchsorted(other.ends.begins, f))
                if i < len(other.ends.begins) and other.ends.begins[i] == f:
                    c.nested = True
                    break


def _nearby(candidates: list[Segment], strong: list[Segment], begins: dict[int, int], taken: Taken,
            wanted: dict[int, Int64s], unit: int) -> list[Segment]:
    """Weaker segments that continue a strong one, or bend between two.

    They could have lain at few places only; how many file ends of the gap had the same chance counts too.
    """
    out: list[Segment] = []
    chains: dict[int, tuple[Int64s, Int64s]] = {}
    for o in {s.owner for s in strong}:
        chain = sorted((s.first, s.delta) for s in strong if s.owner == o)
        chains[o] = np.array([f for f, _ in chain], np.int64), np.array([d for _, d in chain], np.int64)
    chosen: list[Segment] = []
    for s in candidates:
        if s.owner not in chains or s.weight < NEAR_MARGIN:
            continue
        first, delta = chains[s.owner]
        i = int(np.searchsorted(first, s.first, side="right")) - 1
        before = int(delta[i]) if i >= 0 else None
        after = int(delta[i + 1]) if i + 1 < len(delta) else None
        around = [d for d in (before, after) if d is not None]
        if any(d == s.delta for d in around):
            spread = 1
        elif before == after:
            continue  # one run goes on around it
        elif before is not None and after is not None and after <= s.delta <= before:
            spread = before - after + 1
        elif any(abs(d - s.delta) <= NEAR for d in around):
            spread = 2 * NEAR
        else:
            continue
        low = int(first[i]) if i >= 0 else 0
        high = int(first[i + 1]) if i + 1 < len(first) else 1 << 62
        chances = int(np.diff(np.searchsorted(wanted.get(s.owner, first[:0]), [low, high]))[0])
        if s.weight >= NEAR_MARGIN + np.log2(spread * max(1, chances) if spread > 1 else 1):
            chosen.append(s)
    out += accept(chosen, begins, taken, NEAR_MARGIN, unit)
    return out
