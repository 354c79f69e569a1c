"""A guest laid out from the units of a container whose tables are lost, wholly or in part.

The units are looked through like an image, as which the solver reads them, and laid in the likeliest order
(`unit_round`), or as runs where there are too many of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..disk import VirtualDisk
from ..filemap import FileMap
from ..model import DATA, GUESSED, LOST, MISSING, PLAIN, SECTOR, Container, GuestDisk, GuestMap, Reader, Stowed
from ..source import ViewSource
from ..sweeper import sweep_image
from ..tables import EVIDENCE
from . import cipher
from .begins import USUAL, Others, begun
from .candidate import Candidate
from .places import Places
from .segments import BLOCK
from .solve import solve
from .unit_grid import Grid, in_slots
from .unit_round import RULE, UNTOLD, Open, UnitRound

Int64s = npt.NDArray[np.int64]

MAX_CELLS = 1 << 21  # ours: units of a file times units of its guest; four arrays of 8 bytes each
LEAST_TOLD = 60.0  # nats: more than two structures that state their place
LEAST_SPOKEN = 3  # units with such: two at one distance may be chance, and all between them is laid by that
MOST_SURE = 0.5  # share of what the solver places alone that must lie between points
SHORT = 8.0  # blocks of a run between points: where runs are shorter, writes went on in turns, and nothing lies between
LEAST_IN_ORDER = 0.9  # share of a raw disk that must be found where the file has it: its units cannot be out of order
WITHOUT_TABLES = "without its tables"  # the variant of such a container
UNTRIED = "one-run"  # the rule of the map that the solver begins with


def solved(view: Reader, name: str, stowed: Stowed, told: Int64s | None = None, starts: dict[str, int] | None = None,
           others: Callable[[], Others] = Others) -> tuple[float, Container] | None:
    """How many guest bytes are laid out, less what speaks against these units (more than anything where one run agrees
    with all, none where that is a volume without files), and the container.

    told int64[n]: what tables that are left say of each unit, see `unit_round.Open`; None: there are none. starts,
    others: see `begins.begun`.
    """
    if stowed.in_order and told is None:
        return _stated(view, name, stowed)
    units = ViewSource(VirtualDisk(view, stowed.map))
    batches: list[pa.RecordBatch] = []
    sweep_image(units, 0, batches.append, threads=1)
    if not batches and told is None:
        return None
    found = begun(units, stowed.unit, pa.Table.from_batches(batches, EVIDENCE), starts, whole=name == "raw",
                  cut_short=cipher.lost_end(view), gapless=bool((stowed.map.state == DATA).all()), disk=stowed.size,
                  others=others)
    size = stowed.size or found.size
    if size <= SECTOR:
        return None
    flat = Container("raw", "", size, [GuestDisk(size, GuestMap.flat(size))])
    count, places = -(-units.size // stowed.unit), -(-size // stowed.unit)
    grid = Grid(stowed.unit, count)
    parts = Open.parts(told if told is not None else np.full(count, UNTOLD), places)
    few = max((part.cells for part in parts), default=0) <= MAX_CELLS
    if grid.rows > 1 and not few:
        return None
    found = in_slots(found, units, grid)
    laid = UnitRound(stowed.unit, count, found.begins, found.parts, links=stowed.links)
    rows = [(0, min(size, units.size), 0, GUESSED, UNTRIED)]
    if grid.rows > 1:
        rows = [(f, n, p, grade, UNTRIED) for f, n, p, grade, _ in laid.rows(np.arange(min(count, places)), size)]
    if told is not None:
        laid.told = told
        rows = laid.rows(told, size)
    first = laid.with_begins(found.reader, FileMap.build(rows).resized(size))
    c = Candidate(0, flat, first, lambda file_map: flat, anchors=[], flat=True, open=told is not None,
                  scattered=None if name == "raw" else found.table,
                  begun=lambda file_map: laid.with_begins(found.reader, file_map))
    if told is not None:
        c.proved = [(f // BLOCK, n // BLOCK, (p - f) // BLOCK) for f, n, p, *_ in first.rows() if p >= 0]
    solve(found.reader, [c], found.places, np.array([[0, found.reader.size]], np.int64), alone=laid if few else None)
    if few and not c.settled:
        laid.take_best(c)
    if not few and (told is not None or not c.settled):
        c.map = _only_between_points(c) if told is not None or _mean(c.sure) < SHORT else _without_gaps(c)
    sure = laid.sure if few else _between_points(c)
    if told is None and (not c.owned or not few and not c.settled and (sure < LEAST_TOLD or UNTRIED in c.map.rule)):
        return None
    if told is None and few and not c.settled and (sure < LEAST_TOLD or laid.spoken < min(LEAST_SPOKEN, count)):
        # a volume that may as well lie 1 MiB farther behind would be given out there, all of it
        if UNTRIED in c.map.rule or not laid.alone.any() or not found.stated:
            return None
        c.map = laid.only_alone(c.map)
    share = laid.in_phase if few else 1.0
    if told is None and not c.settled and share < least_in_phase(stowed.unit):
        return None
    if starts is not None and few and np.count_nonzero(laid.alone) >= LEAST_SPOKEN:
        _tell_starts(c, found.places, stowed.unit, starts)
    if name == "raw" and not c.settled and _in_order(c.map) < LEAST_IN_ORDER:
        return None
    guest_map = composed(grid.in_row(c.map), stowed.map)
    container = without_tables(view, name, stowed, GuestDisk(size, guest_map, guessed=True))
    container.detail["header"] = "lost; the guest is laid out by what it says of itself"
    if c.settled:  # without a file nothing but a volume's head agrees, and that lies where any units have it
        return (np.inf if c.listed else 0.0), container
    # where the solver laid single blocks, what lies between no points counts for nothing
    return (worth(share, placed(container)) if few else sure * BLOCK), container


def worth(share: float, length: int) -> float:
    """What a container counts for, by the share of its points that are in phase, and the guest bytes that it lays out.

    Units of twice the size have half of the points in phase, for one of the two in each is right, and lay out twice as
    much: by one share both would be worth the same.
    """
    return share**2 * length


def _tell_starts(c: Candidate, places: Places, unit: int, starts: dict[str, int]) -> None:
    """Notes where the volumes of a guest begin, where units of this size would be out of phase were it elsewhere."""
    for o in c.owned:
        identity = places.identity[o.row]
        if identity is not None and any((at - o.guest_offset) % unit for at in USUAL):
            starts.setdefault(identity, o.guest_offset)


def placed(container: Container) -> int:
    """Guest bytes that lie in the container."""
    m = container.guests[0].map
    return int(m.length[m.state == DATA].sum())


def least_in_phase(unit: int) -> float:
    """The share of the points that must lie at one place in both units: half of them for 64 KiB.

    Of larger units fewer do by chance, or because smaller ones lie together, and more of the points are wrong ones. In
    units that are no number of blocks a point has a place for each step of a sector, and each row adds wrong points.
    """
    grid = Grid(unit, 1)
    return float((unit / grid.step * grid.rows) ** -0.25)


def _stated(view: Reader, name: str, stowed: Stowed) -> tuple[float, Container] | None:
    """The container as its units state themselves, and the guest bytes that are in them."""
    container = without_tables(view, name, stowed, GuestDisk(stowed.size, stowed.map))
    container.detail["header"] = "lost; the units say which they are"
    return (float(placed(container)), container) if placed(container) else None


def without_tables(view: Reader, name: str, stowed: Stowed, guest: GuestDisk) -> Container:
    """What is known of a container of which only units are left. The clusters of spans of its tables are not known."""
    spans = bool((stowed.map.length % stowed.unit).any())
    return Container(name, WITHOUT_TABLES, view.size, [guest], cluster=0 if spans else stowed.unit, rebuild=False)


def _in_order(file_map: FileMap) -> float:
    """The share of what a map places that lies where the file has it."""
    rows = [(f == p, n) for f, n, p, _, why in file_map.rows() if p >= 0 and why == RULE]
    return sum(n for same, n in rows if same) / max(1, sum(n for _, n in rows))


def _between_points(c: Candidate) -> float:
    """Blocks that lie between points of one run, none where most of the map lies between none."""
    sure = float((c.sure[:, 1] - c.sure[:, 0]).sum())
    placed = sum(n for _, n, p, _, _ in c.map.rows() if p >= 0) / BLOCK
    return sure if sure >= MOST_SURE * placed else 0.0


def _mean(sure: Int64s) -> float:
    """Blocks of a run."""
    return float((sure[:, 1] - sure[:, 0]).mean()) if len(sure) else 0.0


def _without_gaps(c: Candidate) -> FileMap:
    """The map without what lies between two runs of one delta that are two: something else broke them."""
    same = np.flatnonzero(c.sure[1:, 2] == c.sure[:-1, 2])
    gaps = np.column_stack((c.sure[same, 1], c.sure[same + 1, 0])) * BLOCK
    return c.map.without([(a, b) for a, b in gaps.tolist() if b > a], "not-found")


def _only_between_points(c: Candidate) -> FileMap:
    """The map without what no run between points holds."""
    rows: list[tuple[int, int, int, str, str]] = []
    at = 0
    for first, end, _ in sorted((c.sure * [BLOCK, BLOCK, 1]).tolist()):
        low, high = max(first, at), max(min(end, c.map.size), at)
        rows += [(at, low - at, -1, MISSING, "not-found"), *c.map.cut(low, high - low)]
        at = high
    return FileMap.build([*rows, (at, c.map.size - at, -1, MISSING, "not-found")])


def composed(outer: FileMap, inner: GuestMap) -> GuestMap:
    """Guest -> file, from guest -> units and units -> file; what is in no unit, or in none that holds data, is LOST.

    Encoded units are given as wholes.
    """
    rows: list[tuple[int, int, int, int, int, int]] = []  # the columns of a GuestMap
    end = inner.guest_offset + inner.length
    for f, n, p, *_ in outer.rows():
        at = p
        first, last = np.searchsorted(end, p, "right"), np.searchsorted(inner.guest_offset, p + n, "left")
        for i in range(int(first), int(last)) if p >= 0 else ():
            low, high = max(p, int(inner.guest_offset[i])), min(p + n, int(end[i]))
            inside, encoding = low - int(inner.guest_offset[i]), int(inner.encoding[i])
            if inner.state[i] != DATA or low >= high or encoding != PLAIN and high - low != int(inner.length[i]):
                continue
            rows.append((f + at - p, low - at, LOST, -1, PLAIN, low - at))
            stored = high - low if encoding == PLAIN else int(inner.stored[i])
            rows.append((f + low - p, high - low, DATA, int(inner.file_offset[i]) + inside, encoding, stored))
            at = high
        done = at - p if p >= 0 else 0
        rows.append((f + done, n - done, LOST, -1, PLAIN, n - done))
    g, n, s, f, e, k = zip(*rows, strict=True)
    return GuestMap.build(g, n, s, f, e, k)
