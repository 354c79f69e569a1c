"""Host files that no format opens, for their first part was overwritten or encrypted, though their map is known.

The map says where each byte of the file lies. Where the format's tables are left, they may be enough to write a header
anew (`Format.rebuild`). Else the format says in which units a guest lies in such a file (`Format.stow`); which unit is
which the lost table told. The units are looked through like an image, as which the solver reads them, and laid in the
likeliest order (`unit_round`). Then the guest's disk is given out, and no header is made up.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..disk import VirtualDisk
from ..filemap import FileMap, FileView
from ..model import (
    DATA,
    GUESSED,
    LOST,
    MISSING,
    PLAIN,
    SECTOR,
    Container,
    GuestDisk,
    GuestMap,
    HostFile,
    Orphan,
    Reader,
    Stowed,
)
from ..registry import formats, guests
from ..source import ViewSource
from ..sweeper import sweep_image
from ..tables import EVIDENCE, pc
from .begins import begun
from .chains import base_name
from .cipher import without_opening
from .orphans import rebuilt
from .places import Places
from .segments import BLOCK
from .solve import Candidate, solve
from .state import Claims, HostView, State
from .unit_round import RULE, UnitRound

Int64s = npt.NDArray[np.int64]

LEAST_FILE = 256 << 10  # bytes; what is smaller holds no file system
LEAST_LEFT = 0.25  # share of a file that must still be its own
MAX_CELLS = 1 << 22  # ours: units of a file times units of its guest; three arrays of 8 bytes each
MAX_FILES = 256  # ours: files without a header that are looked through
PLAIN_UNIT = 1 << 20  # of a raw disk, whose blocks follow each other
RAW = ("img", "raw", "dd")  # extensions of raw disks
LEAST_TOLD = 60.0  # nats: more than two structures that state their place
MOST_SURE = 0.5  # share of what the solver places alone that must lie between points
LEAST_TABLES = 0.9  # share of what units tell that tables must tell to be taken instead
LEAST_IN_ORDER = 0.9  # share of a raw disk that must be found where the file has it: its units cannot be out of order
LEAST_IN_PHASE = 0.5  # share of the points that must lie at one place in both units
ENOUGH = 0.75  # guest bytes for each of the file: nothing else is tried then
UNTRIED = "one-run"  # the rule of the map that the solver begins with


def headless(state: State, files: Iterator[tuple[HostView, HostFile, FileMap]], evidence: pa.Table) -> None:
    """Takes the guests of files that no format opened. files: with their maps."""
    told = _guest_places(evidence)
    looked = 0
    for view, file, whole in files:
        names = _formats_of(file)
        if not (file.complete and file.certain):  # a remnant beside others of one file
            continue
        if file.size < LEAST_FILE or not names or not (file.name or _any_in(whole, told)):
            continue
        file_map = state.claims.rest_of(whole, "others")  # a live file that was opened is not its own any more
        kept = sum(n for _, n, p, _, _ in file_map.rows() if p >= 0)
        if kept < LEAST_LEFT * sum(n for _, n, p, grade, _ in file_map.rows() if p >= 0 or grade == MISSING):
            continue
        looked += 1
        if looked > MAX_FILES:
            break
        file_map, _ = without_opening(state.image, file_map)
        found = _best(FileView(state.image, file_map), names)
        if found is None:
            continue
        container, runs = found
        if not file.name and not container.rebuild:
            container.format = "raw"  # units of one size are alike in several formats
        # the map is the host's word, what it holds is not
        rows = ((f, n, p, GUESSED if p >= 0 else grade, RULE if p >= 0 else why)
                for at, start, length in runs.tolist()
                for f, n, p, grade, why in _moved(file_map.cut(start, length), at - start))
        state.accept(container, FileMap.build(rows).resized(container.size), deleted=file.deleted,
                     host=f"{view.label}: {file.origin}", names=[file.name])


def _moved(rows: list[tuple[int, int, int, str, str]], step: int) -> list[tuple[int, int, int, str, str]]:
    return [(f + step, n, p, grade, why) for f, n, p, grade, why in rows]


def _guest_places(evidence: pa.Table) -> Int64s:
    """Image offsets of all structures of guests, rising."""
    mask = pc.is_in(evidence["module"], value_set=pa.array(list(guests()), pa.string()))
    return np.sort(evidence.filter(mask)["image_offset"].to_numpy())


def _any_in(file_map: FileMap, places: Int64s) -> bool:
    there = file_map.image_offset >= 0
    low = np.searchsorted(places, file_map.image_offset[there])
    high = np.searchsorted(places, (file_map.image_offset + file_map.length)[there])
    return bool((high > low).any())


def _formats_of(file: HostFile) -> list[str]:
    """The formats that a file's name speaks of, all where it is lost; "raw" for a disk's plain bytes."""
    able = [name for name, fmt in formats().items() if fmt.stow is not None or fmt.rebuild is not None]
    if not file.name:
        return [*able, "raw"]
    extension = base_name(file.name).rpartition(".")[2].lower()
    named = [name for name in able if extension in (formats()[name].extension, name)]
    return [*named, "raw"] if named or extension in RAW else []


def _best(view: Reader, names: list[str]) -> tuple[Container, Int64s] | None:
    """The container as what is left of its tables tells, or as the units of which most is told, where they tell more.

    With it int64[n, 3]: its file offsets, those of `view` that they are, length.
    """
    best: tuple[float, Container] | None = None
    for name, stowed in _stowed(view, names):
        found = _solved(view, name, stowed)
        if found is not None and (best is None or found[0] > best[0]):
            best = found
            if best[0] >= ENOUGH * view.size:
                break
    tables = _by_tables(view, names)
    if tables is not None and (best is None or _placed(tables.container) >= LEAST_TABLES * _placed(best[1])):
        return tables.container, tables.runs
    return None if best is None else (best[1], np.array([[0, 0, view.size]], np.int64))


def _stowed(view: Reader, names: list[str]) -> Iterator[tuple[str, Stowed]]:
    for name in names:
        stow = formats()[name].stow if name != "raw" else _plainly
        for stowed in stow(view) if stow is not None else ():
            yield name, stowed


def _by_tables(view: Reader, names: list[str]) -> Orphan | None:
    """What of `rebuilt` tells most: of a file that begins where this one does, or of a stream."""
    batches: list[pa.RecordBatch] = []
    sweep_image(ViewSource(view), 0, batches.append, threads=1)
    places = Places.of(pa.Table.from_batches(batches, EVIDENCE))
    found: list[Orphan] = []
    for orphan in rebuilt(view, places, Claims(), None):
        begins = orphan.runs[:, :2].max() == 0
        if orphan.container.format in names and (begins or orphan.container.guests[0].map.encoding.any()):
            orphan.container.size = view.size if begins else orphan.container.size
            found.append(orphan)
    return max(found, key=lambda o: _placed(o.container), default=None)


def _placed(container: Container) -> int:
    """Guest bytes that lie in the container."""
    m = container.guests[0].map
    return int(m.length[m.state == DATA].sum())


def _plainly(view: Reader) -> Iterator[Stowed]:
    """The file as it is: a raw disk."""
    yield Stowed(PLAIN_UNIT, GuestMap.flat(view.size), view.size)


def _solved(view: Reader, name: str, stowed: Stowed) -> tuple[float, Container] | None:
    """How many guest bytes are laid out, less what speaks against these units (more than anything where one run agrees
    with all), and the container.
    """
    if stowed.in_order:
        return _stated(view, name, stowed)
    units = ViewSource(VirtualDisk(view, stowed.map))
    batches: list[pa.RecordBatch] = []
    sweep_image(units, 0, batches.append, threads=1)
    if not batches:
        return None
    found = begun(units, stowed.unit, pa.Table.from_batches(batches, EVIDENCE))
    size = stowed.size or found.size
    if size <= SECTOR:
        return None
    flat = Container("raw", "", size, [GuestDisk(size, GuestMap.flat(size))])
    laid = UnitRound(stowed.unit, -(-units.size // stowed.unit), found.blocks)
    few = laid.count * -(-size // stowed.unit) <= MAX_CELLS
    first = laid.with_begins(FileMap.build([(0, min(size, units.size), 0, GUESSED, UNTRIED)]).resized(size))
    c = Candidate(0, flat, first, lambda file_map: flat, anchors=[], flat=True,
                  scattered=None if name == "raw" else found.table)
    solve(found.reader, [c], found.places, np.array([[0, found.reader.size]], np.int64), alone=laid if few else None)
    told = laid.told if few else _between_points(c)
    if not c.owned or not c.settled and (told < LEAST_TOLD or UNTRIED in c.map.rule):
        return None
    share = laid.in_phase if few else 1.0
    if not c.settled and share < LEAST_IN_PHASE:
        return None
    if name == "raw" and not c.settled and _in_order(c.map) < LEAST_IN_ORDER:
        return None
    container = _without_tables(view, name, stowed, GuestDisk(size, composed(c.map, stowed.map)))
    container.detail["header"] = "lost; the guest is laid out by what it says of itself"
    # where the solver laid single blocks, what lies between no points counts for nothing
    return (np.inf if c.settled else share * _placed(container) if few else told * BLOCK), container


def _stated(view: Reader, name: str, stowed: Stowed) -> tuple[float, Container] | None:
    """The container as its units state themselves, and the guest bytes that are in them."""
    container = _without_tables(view, name, stowed, GuestDisk(stowed.size, stowed.map))
    container.detail["header"] = "lost; the units say which they are"
    return (float(_placed(container)), container) if _placed(container) else None


def _without_tables(view: Reader, name: str, stowed: Stowed, guest: GuestDisk) -> Container:
    return Container(name, "without its tables", view.size, [guest], cluster=stowed.unit, rebuild=False)


def _in_order(file_map: FileMap) -> float:
    """The share of what a map places that lies where the file has it."""
    rows = [(f == p, n) for f, n, p, _, why in file_map.rows() if p >= 0 and why == RULE]
    return sum(n for same, n in rows if same) / max(1, sum(n for _, n in rows))


def _between_points(c: Candidate) -> float:
    """Blocks that lie between points of one run, none where most of the map lies between none."""
    sure = float((c.sure[:, 1] - c.sure[:, 0]).sum())
    placed = sum(n for _, n, p, _, _ in c.map.rows() if p >= 0) / BLOCK
    return sure if sure >= MOST_SURE * placed else 0.0


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
