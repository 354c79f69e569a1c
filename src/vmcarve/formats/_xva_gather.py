"""An XVA in pieces: chunks name their disk and number, so all of them together tell the archive's layout.

Members follow each other without gaps: what a chunk takes with its hash is known, so a chunk's place follows from how
many lie before it. Chunks of zeros are not there; whether a number that nobody saw was left out or is lost, the sector
at which the next one begins within a host block tells, for eight chunks at a time (a chunk with its hash takes three
sectors more than whole blocks). Source: xapi `stream_vdi.ml`, its format note; POSIX ustar.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import DATA, HOLE, LOST, PLAIN, GuestMap, Marks, Units
from ._tar import BLOCK, padded, parse_header
from ._xva_walk import CHUNK, HOST_BLOCK, is_chunk, new_hash, read_digest

HASH = 2 * BLOCK  # a hash's header and its data
SPAN = BLOCK + CHUNK + HASH
OUR_MAX_ORDERS = 24  # orders of the disks in an archive that are tried
OUR_MAX_NUMBER = 1 << 30
REF_BITS = 32

Int64s = npt.NDArray[np.int64]


def key_of(ref: str, number: int, *, of_hash: bool = False) -> int:
    """A chunk's disk and number as one key; its hash has another."""
    return int(of_hash) << 62 | int(ref.removeprefix("Ref:")) << REF_BITS | number


def marks(sectors: npt.NDArray[np.uint8], image_offset: Int64s) -> Marks:
    """Tar headers of chunks and of hashes."""
    first = np.ascontiguousarray(sectors[:, :4]).view("<u4")[:, 0]
    rows: list[tuple[int, int, int]] = []
    for i in np.flatnonzero(first == int.from_bytes(b"Ref:", "little")).tolist():
        header = parse_header(sectors[i].tobytes())
        name = is_chunk(header)
        if header is not None and name is not None and name[1] < OUR_MAX_NUMBER:
            key = key_of(name[0], name[1], of_hash=bool(name[2]))
            rows.append((int(image_offset[i]), key, header.span + (0 if name[2] else HASH)))
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Marks(table[:, 0], table[:, 1], table[:, 2])


def refs_of(found: Marks) -> list[str]:
    """The names of all disks of which a chunk was found."""
    return [f"Ref:{n}" for n in np.unique(found.key[found.key < 1 << 62] >> REF_BITS).tolist()]


def first_of(found: Marks, ref: str) -> int:
    """Image offset of a disk's first chunk that was found."""
    own = np.flatnonzero(found.key >> REF_BITS == key_of(ref, 0) >> REF_BITS)
    return int(found.image_offset[own[np.argmin(found.key[own])]])


@dataclass(slots=True)
class Slot:
    """A chunk in the archive: file offset of its header, bytes of data, number; -1 where a lost one's is not known."""

    file_offset: int
    size: int
    number: int


@dataclass(slots=True)
class Layout:
    """Where the chunks of each disk lie. pins: (file, image offset) of headers that fit. end: behind the last."""

    slots: dict[str, list[Slot]]
    pins: list[tuple[int, int]]
    end: int


def lay_out(start: int, first: int, found: Marks, refs: list[str]) -> Layout | None:
    """The layout of the archive at image offset `start` whose chunks begin at file offset `first`: of all orders of the
    disks the one in which most headers fit."""
    best: Layout | None = None
    for order in itertools.islice(itertools.permutations(refs), OUR_MAX_ORDERS):
        layout = Layout({}, [], first)
        for ref in order:
            _one_disk(layout, start, found, ref)
        if best is None or len(layout.pins) > len(best.pins):
            best = layout
    return best if best is not None and best.pins else None


def _one_disk(layout: Layout, start: int, found: Marks, ref: str) -> None:
    own = np.flatnonzero(found.key >> REF_BITS == key_of(ref, 0) >> REF_BITS)
    by_number: dict[int, list[tuple[int, int]]] = {}
    for i in own.tolist():
        number = int(found.key[i]) & ((1 << REF_BITS) - 1)
        by_number.setdefault(number, []).append((int(found.image_offset[i]), int(found.span[i]) - BLOCK - HASH))
    slots = layout.slots.setdefault(ref, [])
    last = -1
    for number in sorted(by_number):
        gap = number - last - 1
        fits = [(_lost(layout.end, p - start, gap), p, size) for p, size in by_number[number]]
        fits = sorted(f for f in fits if f[0] >= 0)
        if not fits:
            continue  # another archive's, or the ones before it are not what they seem
        lost = fits[0][0]
        for k in range(lost):
            slots.append(Slot(layout.end, CHUNK, last + 1 + k if lost == gap else -1))
            layout.end += SPAN
        alike = [(p, size) for x, p, size in fits if x == lost]
        slots.append(Slot(layout.end, alike[0][1], number))
        if len(alike) == 1:
            layout.pins.append((layout.end, alike[0][0]))
        layout.end += BLOCK + padded(alike[0][1]) + HASH
        last = number


def _lost(end: int, place: int, gap: int) -> int:
    """How many chunks must lie between file offset `end` and a header at `place` bytes from the archive's first byte,
    of the `gap` numbers between; -1 when none will do."""
    return next((x for x in range(min(gap, 7) + 1) if (end + x * SPAN - place) % HOST_BLOCK == 0), -1)


def units_of(layout: Layout) -> Units:
    """Each chunk with its header and its hash."""
    rows = sorted((s.file_offset, s.size, key_of(ref, s.number) if s.number >= 0 else -1)
                  for ref, slots in layout.slots.items() for s in slots)
    f, size, key = np.array(rows, np.int64).reshape(-1, 3).T
    stored = BLOCK + -(-size // BLOCK) * BLOCK + HASH
    keys = key.tolist()

    def check(i: int, data: bytes) -> int:
        return int(stored[i]) if len(data) >= stored[i] and _agrees(data, keys[i]) else 0

    return Units(f, stored, stored - 1, size, np.full(len(f), PLAIN, np.uint8), key, 0, check,
                 np.where(key >= 0, key | 1 << 62, -1), f + stored - HASH)


class _Bytes:
    """A reader of bytes that are there."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def missing(self, offset: int, length: int) -> bool:
        return offset + length > self.size


def _agrees(data: bytes, key: int) -> bool:
    """Whether a chunk's header, data and hash agree with each other and with the key."""
    header = parse_header(data[:BLOCK])
    name = is_chunk(header)
    if header is None or name is None or name[2] or key >= 0 and key_of(name[0], name[1]) != key:
        return False
    at = BLOCK + padded(header.size)
    behind = parse_header(data[at : at + BLOCK])
    of = is_chunk(behind)
    if behind is None or of is None or of[:2] != name[:2] or not of[2]:
        return False
    hasher = new_hash(of[2])
    hasher.update(data[BLOCK : BLOCK + header.size])
    return bool(hasher.digest() == read_digest(_Bytes(data), at, behind, of[2]))


def guest_map(slots: list[Slot], size: int | None) -> tuple[GuestMap, int]:
    """The map of one disk and its size: chunks that nobody saw are zeros where none can be lost."""
    data = [s for s in slots if s.size and s.number >= 0]
    empty = np.sort(np.array([s.number for s in slots if not s.size], np.int64))
    disk = size if size is not None else max(((s.number + 1) * CHUNK for s in data), default=0)
    rows: list[tuple[int, int, int, int]] = []
    at = 0
    unsure = False  # whether a lost chunk without a number lies before
    for s in slots:
        if s.number < 0:
            unsure = True
            continue
        if not s.size:
            continue
        g = (s.number - int(np.searchsorted(empty, s.number))) * CHUNK
        if g < at or g >= disk:
            continue
        if g > at:
            rows.append((at, g - at, LOST if unsure else HOLE, -1))
        n = min(s.size, disk - g)
        rows.append((g, n, DATA, s.file_offset + BLOCK))
        at, unsure = g + n, False
    if at < disk:
        rows.append((at, disk - at, LOST, -1))  # the last chunk is always written
    columns = [np.array(c, np.int64) for c in zip(*rows, strict=True)] or [np.zeros(0, np.int64)] * 4
    return GuestMap.build(columns[0], columns[1], columns[2], columns[3]), disk
