"""Header-led assembly: a structure that states its place in its container proposes where the container begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..filemap import FileMap, FileView
from ..model import DATA, GUESSED, LOST, MISSING, PLAIN, Check, Container, Evidence, Format, GuestMap, Reader
from ..registry import formats
from .places import Places
from .solve import Candidate, solve
from .state import Claims

HOST_BLOCK = 4096
MAX_PACKED = 8  # ours: clusters of tables at the head of a file that are tried as packed
MAX_PACKED_UNIT = 1 << 20


@dataclass(slots=True)
class Led:
    """A container and its map, not yet claimed."""

    container: Container
    map: FileMap


def lead(image: Reader, rows: list[tuple[str, Evidence]], places: Places, claims: Claims,
         free: npt.NDArray[np.int64] | None) -> Iterator[Led]:
    """Containers proposed by `rows` (module, evidence; image order) outside what `claims` holds.

    The caller claims each one before the next is asked for. places: guest structures that state their place. free: the
    host's free runs int64[n, 2], or None.

    All are opened first, each as one run, so that guest structures go to the container that they fit and lie nearest
    to; then each one's breaks are placed, in image order.
    """
    hints: dict[tuple[int, str], set[int]] = {}
    for m, e in rows:
        if e.container_offset is not None and e.image_offset >= e.container_offset:
            hints.setdefault((e.image_offset - e.container_offset, m), set()).add(e.container_offset + e.length)
    opened: list[tuple[int, Format, Led]] = []
    for start, module in sorted(hints):
        if not claims.holds(start):
            led = _open_at(image, formats()[module], start, sorted(hints[start, module], reverse=True), claims, free)
            if led is not None:
                opened.append((start, formats()[module], led))
    candidates = [_candidate(image, fmt, start, led) for start, fmt, led in opened if led.container.guests]
    room = np.array([[0, image.size]], np.int64)
    if free is not None and len(free):
        room = free
    solve(image, candidates, places, claims.free_of(room))
    solved = {c.start: c for c in candidates}
    for start, _, led in opened:
        if claims.holds(start):
            continue
        c = solved.get(start)
        if c is not None:
            led = Led(c.container, c.map)
        led.map = claims.rest_of(led.map, "others")
        yield led


def _candidate(image: Reader, fmt: Format, start: int, led: Led) -> Candidate:
    def reopen(file_map: FileMap) -> Container | None:
        found = _reopened(image, fmt, file_map)
        return None if found is None else found.container

    return Candidate(start, led.container, led.map, reopen)


def _open_at(image: Reader, fmt: Format, start: int, hints: list[int], claims: Claims,
             free: npt.NDArray[np.int64] | None) -> Led | None:
    # an image may end before the container does; a sparse host file may be longer than the image
    room = 4 * image.size + (64 << 20)
    for size in [room, *hints]:
        file_map = _run_from(image, start, size, claims, free)
        try:
            container = fmt.open(FileView(image, file_map))
        except Damaged:
            continue
        if container.size <= 0 or (container.guests and container.virtual_size == 0):
            continue  # a file just created, or an old copy of such a header: there is no disk in it
        led = Led(container, file_map)
        if not all(c.ok for c in container.checks):
            led = min([led, *_packed(image, fmt, led, start)], key=lambda one: _doubt(one.container))
        clip(led.container, room)
        return Led(led.container, led.map.resized(led.container.size))
    return None


def _packed(image: Reader, fmt: Format, led: Led, start: int) -> Iterator[Led]:
    """The container as it lies when its first clusters hold a block of tables each and a host hole behind it.

    A host that packs what is written (XFS, Btrfs) puts those blocks side by side; from the last of them on the file
    runs on. How many there are nobody tells: each number is tried, and the tables must be sound.
    """
    unit = led.container.cluster
    if not HOST_BLOCK < unit <= MAX_PACKED_UNIT:
        return
    size = led.map.size
    for count in range(2, MAX_PACKED + 1):
        rows: list[tuple[int, int, int, str, str]] = []
        for i in range(count - 1):
            rows.append((i * unit, HOST_BLOCK, start + i * HOST_BLOCK, GUESSED, "packed"))
            rows.append((i * unit + HOST_BLOCK, unit - HOST_BLOCK, -1, MISSING, "packed.host-hole"))
        last = (count - 1) * unit
        at = start + (count - 1) * HOST_BLOCK
        there = max(0, min(size - last, image.size - at))
        rows += [(last, there, at, GUESSED, "packed"), (last + there, size - last - there, -1, MISSING, "image-end")]
        file_map = FileMap.build(rows)
        try:
            container = fmt.open(FileView(image, file_map))
        except Damaged:
            continue
        if container.cluster == unit and container.size > 0:
            yield Led(container, file_map)


def _doubt(container: Container) -> tuple[int, int]:
    """What speaks against a reading of a container: failed checks, and guest bytes that its tables do not tell."""
    return (sum(not c.ok for c in container.checks),
            sum(int(g.map.length[g.map.state == LOST].sum()) for g in container.guests))


def _reopened(image: Reader, fmt: Format, better: FileMap) -> Led | None:
    """The container as the better map shows it: tables behind a break read differently now."""
    try:
        container = fmt.open(FileView(image, better))
    except Damaged:
        return None
    clip(container, better.size)
    return Led(container, better.resized(container.size))


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
