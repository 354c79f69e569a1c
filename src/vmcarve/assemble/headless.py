"""Host files that no format opens, for their first part was overwritten or encrypted, though their map is known.

The map says where each byte of the file lies. Where the format's tables are left, they may be enough to write a header
anew (`Format.rebuild`). Else the format says in which units a guest lies in such a file (`Format.stow`); which unit is
which the lost table told. The units are looked through like an image, as which the solver reads them, and laid in the
likeliest order (`unit_round`). Then the guest's disk is given out, and no header is made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..filemap import FileMap, FileView
from ..model import (
    DATA,
    GUESSED,
    MISSING,
    PLAIN,
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
from .begins import Others
from .chains import base_name
from .cipher import Strides, without_ciphertext
from .orphans import rebuilt
from .partly import completed
from .places import Places
from .segments import BLOCK
from .state import Claims, HostView, State
from .unit_lay import WITHOUT_TABLES, placed, solved, without_tables
from .unit_round import RULE

Int64s = npt.NDArray[np.int64]

LEAST_FILE = 256 << 10  # bytes; what is smaller holds no file system
LEAST_UNSHOWN = 1 << 20  # bytes, where neither name nor content speaks of a disk: what is in streams shows nothing
LEAST_LEFT = 0.25  # share of a file that must still be its own
MAX_FILES = 256  # ours: files without a header that are looked through
PLAIN_UNIT = 1 << 20  # of a raw disk, whose blocks follow each other
RAW = ("img", "raw", "dd")  # extensions of raw disks
LEAST_TABLES = 0.9  # share of what units tell that tables must tell to be taken instead
ENOUGH = 0.75  # guest bytes for each of the file: nothing else is tried then
LEAST_ZERO = 0.1  # share of the units that hold zeros in a file that is written out whole: others leave those out
LEAST_NAMED = 0.5  # share of a file that tables, or what its units say, must tell of for nothing else to be asked


def headless(state: State, files: Iterable[tuple[HostView, HostFile]], map_of: Callable[[HostView, HostFile], FileMap],
             evidence: pa.Table, strides: Strides | None = None) -> None:
    """Takes the guests of files that no format opened. map_of: asked of few of them. strides: what other files have
    shown.
    """
    told = _guest_places(evidence)
    strides = strides or Strides()
    asked: list[tuple[HostView, HostFile, list[str], bool, FileMap]] = []
    for view, file in files:
        if not (file.complete and file.certain) or file.size < LEAST_FILE:  # a remnant beside others of one file
            continue
        names = _formats_of(file)
        if not names:
            continue
        whole = map_of(view, file)
        shown = bool(file.name) or _any_in(whole, told)
        if not shown and file.size < LEAST_UNSHOWN:
            continue
        file_map = _left(state, whole)
        if file_map is None:
            continue
        if len(asked) == MAX_FILES:
            break
        strides.look(state.image, file_map)
        asked.append((view, file, names, shown, file_map))
    for view, file, names, shown, whole in asked:
        left = _left(state, whole)  # others were taken meanwhile
        if left is None:
            continue
        file_map, _ = without_ciphertext(state.image, left, strides)
        starts: dict[str, int] = {}
        content = FileView(state.image, file_map)
        found = _best(content, names, starts, encoded=not shown)
        if file.name and (found is None or placed(found[0]) < LEAST_NAMED * content.size):
            found = _written_out(content, names[:1]) or found
        if found is None:
            continue
        container, runs = found
        file_map = guessed(file_map, runs, container.size)
        if container.variant != WITHOUT_TABLES or not container.cluster:  # else the units were asked already
            container = completed(FileView(state.image, file_map), container, starts) or container
        if not file.name and not container.rebuild:
            container.format = "raw"  # units of one size are alike in several formats
        state.accept(container, file_map, deleted=file.deleted, host=f"{view.label}: {file.origin}",
                     names=[file.name])


def _left(state: State, whole: FileMap) -> FileMap | None:
    """What of a file nobody has, where that is enough of it: a live file that was opened is not its own any more."""
    file_map = state.claims.rest_of(whole, "others")
    kept = sum(n for _, n, p, _, _ in file_map.rows() if p >= 0)
    all_ = sum(n for _, n, p, grade, _ in file_map.rows() if p >= 0 or grade == MISSING)
    return file_map if kept >= LEAST_LEFT * all_ else None


def guessed(file_map: FileMap, runs: Int64s, size: int) -> FileMap:
    """The map of what was laid out anew: it is the host's word, what it holds is not. runs: see `_best`."""
    rows = ((f, n, p, GUESSED if p >= 0 else grade, RULE if p >= 0 else why)
            for at, start, length in runs.tolist()
            for f, n, p, grade, why in _moved(file_map.cut(start, length), at - start))
    return FileMap.build(rows).resized(size)


def relaid(view: FileView, file: HostFile, container: Container) -> tuple[Container, Int64s] | None:
    """A container that opened, laid out like one without header, where its tables name less of the file than that.

    With the runs of `_best`. None where the tables name as much.
    """
    if file.size < LEAST_FILE or len(container.guests) != 1 or container.parent is not None or container.members:
        return None
    here = sum(n for _, n, p, _, _ in view.map.rows() if p >= 0)
    named = placed(container)
    if named >= LEAST_NAMED * here or (container.guests[0].map.encoding != PLAIN).any():
        return None
    found = _best(view, [container.format], {})
    return found if found is not None and placed(found[0]) > named else None


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


def _best(view: Reader, names: list[str], starts: dict[str, int], *, encoded: bool = False
          ) -> tuple[Container, Int64s] | None:
    """The container as what is left of its tables tells, or as the units of which most is told, where they tell more.

    starts: see `begins.begun`; grows. encoded: only as units that are streams.

    With it int64[n, 3]: its file offsets, those of `view` that they are, length.
    """
    best: tuple[float, Container] | None = None
    seen = cache(partial(_swept, view))
    for name, stowed in _by_size(_stowed(view, names)):
        if encoded and not stowed.map.encoding.any():
            continue
        if best is not None and stowed.unit % BLOCK:
            break  # every row of slots costs as much as another hypothesis
        found = solved(view, name, stowed, starts=starts, others=lambda: Others.of(view, seen()))
        if found is not None and (best is None or _rather(found, best)):
            best = found
            if best[0] >= ENOUGH * view.size:
                break
    tables = _by_tables(view, seen, names, best[1].virtual_size if best is not None else 0)
    if tables is not None and (best is None or placed(tables.container) >= LEAST_TABLES * placed(best[1])):
        return tables.container, tables.runs
    return None if best is None else (best[1], np.array([[0, 0, view.size]], np.int64))


def _rather(one: tuple[float, Container], other: tuple[float, Container]) -> bool:
    """Whether one of two containers laid out of units, each with how much is, is rather the file.

    What tables cover lies together, whatever else its blocks agree with. Where what smaller units lay out lies mostly
    at one place in larger ones, the file has these: what the others lay out beyond them is wrong.
    """
    if not one[0] or not other[0]:
        return one[0] > other[0]
    spans = [c for c in (one[1], other[1]) if not c.cluster]
    if len(spans) == 1:
        rest = one[1] if spans[0] is other[1] else other[1]
        if placed(spans[0]) >= LEAST_NAMED * placed(rest):
            return spans[0] is one[1]
    small, large = sorted((one[1], other[1]), key=lambda c: c.cluster)
    if 0 < small.cluster < large.cluster:
        least = (large.cluster / small.cluster) ** -0.25  # by chance, or where smaller ones lie together, fewer are
        if _in_phase(small, large) >= least:
            return one[1] is large
    return one[0] > other[0]


def _in_phase(small: Container, large: Container) -> float:
    """The share of what one container lays out that lies where the other's units would have it."""
    here, there = (c.guests[0].map for c in (small, large))
    plain, other = (np.flatnonzero((m.state == DATA) & (m.encoding == PLAIN)) for m in (here, there))
    if not len(plain) or not len(other):
        return 0.0
    rest = (there.file_offset[other[0]] - there.guest_offset[other[0]]) % large.cluster
    same = (here.file_offset[plain] - here.guest_offset[plain]) % large.cluster == rest
    return float(here.length[plain][same].sum() / here.length[plain].sum())


def _stowed(view: Reader, names: list[str]) -> Iterator[tuple[str, Stowed]]:
    for name in names:
        stow = formats()[name].stow if name != "raw" else _plainly
        for stowed in stow(view) if stow is not None else ():
            yield name, stowed


def _by_size(found: Iterable[tuple[str, Stowed]]) -> list[tuple[str, Stowed]]:
    """Each once, raw disks last and before them what is no number of blocks; else larger units first, as they tell more
    of less.
    """
    seen: set[tuple[int, int, bytes, bytes, bytes]] = set()
    out: list[tuple[str, Stowed]] = []
    for name, stowed in found:
        m = stowed.map
        key = stowed.unit, stowed.size, m.guest_offset.tobytes(), m.file_offset.tobytes(), m.stored.tobytes()
        if name == "raw" or key not in seen:
            out.append((name, stowed))
        seen.add(key)
    return sorted(out, key=lambda f: (f[0] == "raw", f[1].unit % BLOCK > 0, -f[1].unit))


def _written_out(view: Reader, names: list[str]) -> tuple[Container, Int64s] | None:
    """The container whose units follow each other as those of its guest, for it holds the zeros of that too.

    Nothing of the guest says so, and nothing has to: a file that grows by what is written has few units of zeros.
    """
    for name, stowed in _stowed(view, names):
        m = stowed.map
        here = [(f, n) for f, n in zip(m.file_offset.tolist(), m.length.tolist(), strict=True) if f >= 0]
        units = [(f + at, stowed.unit) for f, n in here for at in range(0, n, stowed.unit)] if stowed.linear else []
        zeros = sum(not view.missing(f, n) and not any(view.read(f, n)) for f, n in units)
        if units and zeros >= LEAST_ZERO * len(units):
            guest = GuestDisk(stowed.size or int(m.length.sum()), m, guessed=True)
            container = without_tables(view, name, stowed, guest)
            container.detail["header"] = "lost; the file holds zeros as the guest does, so it is laid out as it stands"
            return container, np.array([[0, 0, view.size]], np.int64)
    return None


def _swept(view: Reader) -> pa.Table:
    """The evidence of a file, as an image."""
    batches: list[pa.RecordBatch] = []
    sweep_image(ViewSource(view), 0, batches.append, threads=1)
    return pa.Table.from_batches(batches, EVIDENCE)


def _by_tables(view: Reader, seen: Callable[[], pa.Table], names: list[str], size: int) -> Orphan | None:
    """What of `rebuilt` tells most: of a file that begins where this one does, or of a stream. seen: its evidence."""
    places = Places.of(seen())
    found: list[Orphan] = []
    for orphan in rebuilt(view, places, Claims(), None, size):
        begins = orphan.runs[:, :2].max() == 0
        if orphan.container.format in names and (begins or orphan.container.guests[0].map.encoding.any()):
            orphan.container.size = view.size if begins else orphan.container.size
            found.append(orphan)
    return max(found, key=lambda o: placed(o.container), default=None)


def _plainly(view: Reader) -> Iterator[Stowed]:
    """The file as it is: a raw disk."""
    yield Stowed(PLAIN_UNIT, GuestMap.flat(view.size), view.size)
