"""Containers of which a part of the tables is lost, in host files whose map is known: units that no table names.

A first-level entry or a second-level table that was written over loses the places of its units, and nothing else: the
units still lie in the file, between those that other tables name. What is named holds the order of the file; the units
between are laid into the places that are left (`unit_round`), by what the guest says and by how files are written. They
are a guess, and no table is made up for them: the guest's disk is given out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..model import DATA, LOST, PLAIN, Container, GuestMap, Reader, Stowed
from ..registry import formats
from .segments import BLOCK
from .unit_lay import solved
from .unit_round import NO_UNIT, UNTOLD

Int64s = npt.NDArray[np.int64]

LEAST_UNNAMED = 64 << 10  # bytes that no table names, of a file and of its guest
LEAST_AGREEING = 0.9  # share of the bytes that are named that must be units of the file
MAX_UNITS = 1 << 20  # ours: of one file, or of its guest


def completed(view: Reader, container: Container, starts: dict[str, int] | None = None) -> Container | None:
    """The container with units that no table names laid into what is lost of its guest; None where none can be.

    view: the whole file. starts: see `begins.begun`.
    """
    if len(container.guests) != 1 or container.parent is not None or container.members:
        return None
    if container.format not in formats():  # a raw disk has no tables
        return None
    guest = container.guests[0]
    if lost(guest.map) < LEAST_UNNAMED or (guest.map.encoding != PLAIN).any():
        return None
    best: tuple[int, Stowed, Int64s] | None = None
    for stowed in _rows_of_units(view, container):
        agreeing, told = _told(stowed, guest.map, container)
        if agreeing >= LEAST_AGREEING and (best is None or stowed.unit > best[0]):
            best = stowed.unit, stowed, told
        if agreeing >= LEAST_AGREEING and stowed.unit == container.cluster:
            break  # what the format would say of a file without tables is not asked
    if best is None:
        return None
    unit, stowed, told = best
    left = np.flatnonzero(told == UNTOLD)
    if _there(view, stowed, left) < LEAST_UNNAMED or -(-guest.virtual_size // unit) > MAX_UNITS:
        return None
    found = solved(view, container.format, replace(stowed, size=guest.virtual_size), told, starts)
    if found is None:
        return None
    both = _filled(guest.map, found[1].guests[0].map)
    if lost(both) >= lost(guest.map):
        return None
    detail = dict(container.detail, tables="lost in part; what they named is laid out by what the guest says of itself")
    return replace(container, guests=[replace(guest, map=both)], rebuild=False, patches=[], detail=detail)


def lost(guest_map: GuestMap) -> int:
    """Bytes of the guest whose place nothing tells."""
    return int(guest_map.length[guest_map.state == LOST].sum())


def added(before: GuestMap, after: GuestMap) -> Iterator[tuple[int, int]]:
    """(file offset, bytes), rising: what of the file `after` names where `before` is lost."""
    rows = [(f + low - g, high - low) for g, n, f in _named(after) for low, high in _common(before, g, g + n)]
    yield from sorted(rows)


def _rows_of_units(view: Reader, container: Container) -> Iterator[Stowed]:
    """How the units of the file may follow each other: as the container's own do, and as the format says."""
    m, unit = container.guests[0].map, container.cluster
    named = np.flatnonzero((m.state == DATA) & (m.guest_offset % max(unit, 1) == 0))
    if unit >= BLOCK and unit % BLOCK == 0 and len(named):
        rest, count = np.unique(m.file_offset[named] % unit, return_counts=True)
        first = int(rest[int(count.argmax())])
        number = (view.size - first) // unit
        if 0 < number <= MAX_UNITS:
            yield Stowed(unit, GuestMap.flat(number * unit, first))
    stow = formats()[container.format].stow
    for stowed in stow(view) if stow is not None else ():
        length = np.unique(stowed.map.length % stowed.unit)
        if stowed.unit % BLOCK == 0 and not length.any():  # else units are of several parts
            yield stowed


def _told(stowed: Stowed, m: GuestMap, container: Container) -> tuple[float, Int64s]:
    """Share of the units named by a map that are units of the file, and what tables say of each unit of the file."""
    unit = stowed.unit
    first, place = _unit_places(stowed)
    told = np.full(len(place), UNTOLD)
    named, agreeing = 0, 0
    for g, n, f in _named(m):
        number = np.arange(-(-g // unit), -(-(g + n) // unit), dtype=np.int64)
        at = f + number * unit - g
        named += len(number)
        i = np.minimum(np.searchsorted(place, at), len(place) - 1)
        same = place[i] == at
        agreeing += int(same.sum())
        told[first[i[same]]] = number[same]
    for region in container.regions:
        low = int(np.searchsorted(place + unit, region.file_offset, "right"))
        high = int(np.searchsorted(place, region.file_offset + region.length))
        told[first[low:high]] = np.where(told[first[low:high]] == UNTOLD, NO_UNIT, told[first[low:high]])
    return (agreeing / named if named else 0.0), told


def _unit_places(stowed: Stowed) -> tuple[Int64s, Int64s]:
    """Numbers of the units by their file offsets, and these, rising."""
    unit, m = stowed.unit, stowed.map
    parts = [f + np.arange(n // unit, dtype=np.int64) * unit
             for n, f in zip(m.length.tolist(), m.file_offset.tolist(), strict=True)]
    place = np.concatenate([np.empty(0, np.int64), *parts])
    order = np.argsort(place, kind="stable")
    return order, place[order]


def _there(view: Reader, stowed: Stowed, units: Int64s) -> int:
    """Bytes of some units that hold something."""
    number, place = _unit_places(stowed)
    at_of = np.empty(len(place), np.int64)
    at_of[number] = place
    total = 0
    for at in at_of[np.sort(units)].tolist():
        total += stowed.unit if any(view.read(at, stowed.unit)) else 0
        if total >= LEAST_UNNAMED:
            break
    return total


def _named(m: GuestMap) -> list[tuple[int, int, int]]:
    """(guest offset, bytes, file offset) of what lies plain in the file."""
    plain = (m.state == DATA) & (m.encoding == PLAIN)
    return list(zip(m.guest_offset[plain].tolist(), m.length[plain].tolist(), m.file_offset[plain].tolist(),
                    strict=True))


def _common(m: GuestMap, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(first, end) of what is lost in [start, end) of a guest."""
    i = max(0, int(np.searchsorted(m.guest_offset, start, "right")) - 1)
    while i < len(m) and m.guest_offset[i] < end:
        low, high = max(start, int(m.guest_offset[i])), min(end, int(m.guest_offset[i] + m.length[i]))
        if m.state[i] == LOST and low < high:
            yield low, high
        i += 1


def _filled(m: GuestMap, other: GuestMap) -> GuestMap:
    """A map with what another names where it is lost."""
    rows = [(g, n, s, f, e, k) for g, n, s, f, e, k in
            zip(m.guest_offset.tolist(), m.length.tolist(), m.state.tolist(), m.file_offset.tolist(),
                m.encoding.tolist(), m.stored.tolist(), strict=True) if s != LOST]
    named = _named(other)
    begins = [g for g, _, _ in named]
    for g, n, s in zip(m.guest_offset.tolist(), m.length.tolist(), m.state.tolist(), strict=True):
        if s != LOST:
            continue
        at = g
        near = named[max(0, bisect_right(begins, g) - 1) : bisect_left(begins, g + n)]
        for a, k, f in _clipped(near, g, g + n):
            rows += [(at, a - at, LOST, -1, PLAIN, a - at), (a, k, DATA, f, PLAIN, k)]
            at = a + k
        rows.append((at, g + n - at, LOST, -1, PLAIN, g + n - at))
    return GuestMap.build(*zip(*sorted(rows), strict=True))


def _clipped(named: list[tuple[int, int, int]], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """What of (guest offset, bytes, file offset)s is inside [start, end)."""
    for g, n, f in named:
        low, high = max(start, g), min(end, g + n)
        if low < high:
            yield low, high - low, f + low - g
