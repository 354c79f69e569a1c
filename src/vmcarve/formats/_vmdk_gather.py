"""A stream whose tables lie behind its grains, in pieces: each table says where 512 grains lie in the file.

A table follows the last of its grains. That grain's marker says which table it is, the table says where the grain lies
in the file, and so where the table itself does. The next table's first grain follows the table before, which strings
the tables of one file together; the grains in the header's own run say which string is this file's. Source: VMware
"Virtual Disk Format 1.1", Stream-Optimized Compressed Sparse Extents.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..codec import decode_counted
from ..errors import Damaged
from ..model import GUESSED, SECTOR, ZLIB, Container, Gathered, Marks, Patch, Reader, Units
from . import _vmdk_header as header
from . import _vmdk_stream as stream
from . import _vmdk_text as text
from ._rebuilt import Pieced, opened
from ._vmdk_header import NO_OFFSET, Header

GRAIN = 128  # sectors, of every known writer
BLOCK = 4096  # bytes of a host block
OUR_MAX_RUNS = 1 << 16
OUR_MAX_TRIES = 64  # runs that are tried behind a cut grain
TABLE, TAIL = -1, 3  # the key of a table's mark; sectors of footer, its marker, and the end

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table:
    """Grain table `number`, its marker at file sector `at`. row int64[entries]: sectors of its grains, 0 none."""

    number: int
    at: int
    row: Int64s

    @property
    def first(self) -> int:
        return int(self.row[self.row > 0].min())


def gather(image: Reader, start: int, reader: Reader, marks: Marks) -> Gathered | None:
    """The grains that found tables give to the stream whose header lies at image offset `start`."""
    h = header.parse(reader.read(0, SECTOR))
    if h is None or not h.compressed or h.directory_at != NO_OFFSET:
        return None
    try:
        header.check(h)
    except Damaged:
        return None
    head = _head(start, h, marks)
    tables = _string(h, _tables(image, start, h, marks), head)
    number, sector = [head[:, 0]], [head[:, 1]]
    for t in tables:
        used = np.flatnonzero(t.row)
        number.append(t.number * h.entries + used)
        sector.append(t.row[used])
    every = np.unique(np.stack((np.concatenate(sector), np.concatenate(number)), axis=1), axis=0)
    keep = every[:, 1] < h.grains
    keep[1:] &= np.diff(every[:, 0]) != 0
    f, lba = every[keep, 0], every[keep, 1] * h.grain
    if not len(f):
        return None
    most = -(-(stream.GRAIN_HEAD + stream.FORMAT_MAX_STORED * h.grain_bytes) // SECTOR)
    ends = np.sort(np.concatenate((f, np.array([t.at for t in tables], np.int64))))
    behind = np.searchsorted(ends, f, side="right")
    end = np.where(behind < len(ends), ends[np.minimum(behind, len(ends) - 1)], f + most)
    stored = np.minimum(end - f, most) * SECTOR
    units = Units(f * SECTOR, stored, np.zeros(len(f), np.int64), np.minimum(h.grain, h.capacity - lba) * SECTOR,
                  np.full(len(f), ZLIB, np.uint8), lba, stream.GRAIN_HEAD)
    last = max((t.at + 1 + h.table_sectors for t in tables), default=0)
    units.size = (last + 1 + h.directory_sectors + TAIL) * SECTOR if last else 0
    return Gathered(None, units, np.empty((0, 3), np.int64))


def _head(start: int, h: Header, marks: Marks) -> Int64s:
    """(number, sector, sector behind) of the grains that follow each other in the header's own run."""
    rows: list[tuple[int, int, int]] = []
    at = start + h.overhead * SECTOR
    i = int(np.searchsorted(marks.image_offset, at))
    while i < len(marks) and int(marks.image_offset[i]) == at and marks.key[i] >= 0 and marks.key[i] < h.capacity:
        sector = (at - start) // SECTOR
        at += int(marks.span[i])
        rows.append((int(marks.key[i]) // h.grain, sector, (at - start) // SECTOR))
        i += int(np.searchsorted(marks.image_offset[i:], at))
    return np.array(rows, np.int64).reshape(-1, 3)


def _tables(image: Reader, start: int, h: Header, marks: Marks) -> list[Table]:
    """Every table in the image that follows one of its own grains, and may be this extent's."""
    out: list[Table] = []
    ends = marks.image_offset + marks.span
    order = np.argsort(ends, kind="stable")
    for i in np.flatnonzero(marks.key == TABLE).tolist():
        p = int(marks.image_offset[i])
        j = int(np.searchsorted(ends[order], p))
        before = int(order[j]) if j < len(order) and int(ends[order[j]]) == p else -1
        if before < 0 or not 0 <= marks.key[before] < h.capacity:
            continue
        number = int(marks.key[before]) // h.grain
        data = image.read(p + SECTOR, 4 * h.entries)
        if len(data) < 4 * h.entries:
            continue
        row = np.frombuffer(data, "<u4").astype(np.int64)
        at = int(row[number % h.entries]) + int(marks.span[before]) // SECTOR
        used = row[row > 0]
        if not row[number % h.entries] or (used < h.overhead).any() or (used >= at).any():
            continue
        if (p - start) // SECTOR % 8 == at % 8:
            out.append(Table(number // h.entries, at, row))
    return out


def _string(h: Header, tables: list[Table], head: Int64s) -> list[Table]:
    """The tables of one file: from the first one, each next where the one before it ends."""
    by_first: dict[int, list[Table]] = {}
    tables = list({(t.number, t.at, t.row.tobytes()): t for t in tables}.values())  # copies of one file say the same
    for t in tables:
        by_first.setdefault(t.first, []).append(t)
    def agrees(t: Table) -> bool:
        number, sector, behind = head[head[:, 0] // h.entries == t.number].T
        right = (t.row[number % h.entries] == sector) & (np.isin(behind, t.row) | (behind == t.at))
        return bool(right.all())

    out: list[Table] = []
    at, last = h.overhead, -1
    while True:
        fits = [t for t in by_first.get(at, []) if t.number > last and agrees(t)]
        if len(fits) != 1:
            break
        out.append(fits[0])
        at, last = fits[0].at + 1 + h.table_sectors, fits[0].number
    if not out or fits:
        return out
    # one of them is lost: the others are this file's as long as there is but one of each
    rest = sorted((t for t in tables if t.number > last and t.first > at), key=lambda t: t.at)
    numbers_left = [t.number for t in rest]
    if len(set(numbers_left)) == len(rest) and numbers_left == sorted(numbers_left):
        out += rest
    return out


# --- without a header ------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Run:
    """Elements that follow each other in the image: marks [first, last], the grains' lowest and highest place.

    end: behind what is whole of it; then: the run that goes on with its last grain, of which `here` bytes lie here.
    """

    first: int
    last: int
    low: int
    high: int
    end: int
    then: Run | None = None
    here: int = 0


def loose(image: Reader, marks: Marks, open_extent: Callable[[Reader], Container]) -> Iterator[Gathered]:
    """Streams whose header is lost: runs of grains, tied where the grain that a break cuts decodes across it.

    Header, tables and places in the file are ours; the grains' places on the disk are their own.
    """
    top = header.layout(header.OUR_MAX_TABLES * header.ENTRIES * GRAIN, stream=True)
    runs = _runs(image, top, marks)
    _tie(image, top, marks, runs)
    heads = {id(r) for r in runs} - {id(r.then) for r in runs}
    for run in runs:
        if id(run) in heads and run.then is not None:  # a single run may go on behind damage: see _vmdk_grains
            found = _as_container(image, marks, run, open_extent)
            if found is not None:
                yield found


def _runs(image: Reader, top: Header, marks: Marks) -> list[Run]:
    """Runs of at least two elements whose first grain decodes; in the image's order."""
    out: list[Run] = []
    i = 0
    while i < len(marks) and len(out) < OUR_MAX_RUNS:
        j = i
        while j + 1 < len(marks) and int(marks.image_offset[j + 1]) == int(marks.image_offset[j] + marks.span[j]):
            j += 1
        keys = marks.key[i : j + 1]
        grains = np.flatnonzero(keys >= 0)
        if len(grains) > 1 and (np.diff(keys[grains]) > 0).all() and stream.inflates(
                image, top, int(marks.image_offset[i + grains[0]]) // SECTOR):
            end = int(marks.image_offset[j])
            if keys[-1] < 0 or stream.inflates(image, top, end // SECTOR):
                end += int(marks.span[j])
            out.append(Run(i, j, int(keys[grains[0]]), int(keys[grains[-1]]), end))
        i = j + 1
    return out


def _tie(image: Reader, top: Header, marks: Marks, runs: list[Run]) -> None:
    """Finds for each cut grain the run whose first bytes are the rest of it: of those that come later on the disk, the
    next first."""
    later = sorted(runs, key=lambda r: r.low)
    lows = [r.low for r in later]
    taken: set[int] = set()
    for run in runs:
        p, span = int(marks.image_offset[run.last]), int(marks.span[run.last])
        if run.end != p:
            continue
        at = bisect.bisect_right(lows, run.high)
        for then in [r for r in later[at:] if id(r) not in taken][:OUR_MAX_TRIES]:
            begin = int(marks.image_offset[then.first])
            for here in range(-p % BLOCK or BLOCK, span, BLOCK):
                if (begin - span + here) % BLOCK == 0 and _whole(image, top, p, begin - span + here, here, span):
                    run.then, run.here = then, here
                    taken.add(id(then))
                    break
            if run.then is not None:
                break


def _whole(image: Reader, top: Header, first: int, rest: int, here: int, span: int) -> bool:
    """Whether the grain that has `here` of its bytes at image offset `first`, and the rest at `rest`, decodes."""
    if rest < 0:
        return False
    data = image.read(first, here) + image.read(rest, span - here)
    head = stream.grain_head(top, data)
    if head is None or len(data) < span:
        return False
    full, used = decode_counted(data[stream.GRAIN_HEAD : stream.GRAIN_HEAD + head[1]], ZLIB, top.grain_bytes)
    return full is not None and used == head[1]


def _as_container(image: Reader, marks: Marks, run: Run, open_extent: Callable[[Reader], Container]) -> Gathered | None:
    pieces: list[tuple[int, int]] = []  # image offset, length
    at, last = int(marks.image_offset[run.first]), run
    seen: set[int] = set()
    while id(last) not in seen:
        seen.add(id(last))
        if last.then is None:
            pieces.append((at, last.end - at))
            break
        pieces.append((at, last.end + last.here - at))
        at = int(marks.image_offset[last.then.first]) - int(marks.span[last.last]) + last.here
        last = last.then
    capacity = last.high + GRAIN  # at least so much; the last grain may be a short one
    if -(-capacity // GRAIN) > header.OUR_MAX_TABLES * header.ENTRIES:
        return None
    h = header.layout(capacity, stream=True)
    new = text.plain_text(capacity, "streamOptimized").ljust(header.DESCRIPTOR_SECTORS * SECTOR, b"\0")
    rows, f = list[tuple[int, int, int]](), h.overhead * SECTOR
    for p, n in pieces:
        rows.append((f, p, n))
        f += n
    view = Pieced(image, rows, [Patch(0, h.pack() + new, "rebuilt", GUESSED)])
    c = opened(open_extent, view, "rebuilt from the grains that are left, disk at least as large as the last of them "
                                  "says")
    if c is None or not c.guests:
        return None
    return Gathered(c, None, np.array(rows, np.int64), int(marks.image_offset[run.first]))
