"""Header-led assembly: a structure that states its place in its container proposes where the container begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..filemap import FileMap, FileView
from ..model import DATA, LOST, PLAIN, Check, Container, Evidence, Format, GuestMap, Reader
from ..registry import formats
from .breaks import Places, refine
from .state import Claims


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
    """
    tried: set[tuple[str, int]] = set()
    starts = sorted({(e.image_offset - e.container_offset, m) for m, e in rows
                     if e.container_offset is not None and e.image_offset >= e.container_offset})
    hints: dict[tuple[str, int], list[int]] = {}
    for m, e in rows:
        if e.container_offset is not None:
            hints.setdefault((m, e.image_offset - e.container_offset), []).append(e.container_offset + e.length)
    firsts = sorted({start for start, _ in starts})
    for start, module in starts:
        if (module, start) in tried or claims.holds(start):
            continue
        tried.add((module, start))
        led = _open_at(image, module, start, sorted(set(hints[module, start]), reverse=True), places, claims, free, firsts)
        if led is not None:
            yield led


def _open_at(image: Reader, module: str, start: int, hints: list[int], places: Places, claims: Claims,
             free: npt.NDArray[np.int64] | None, firsts: list[int]) -> Led | None:
    fmt = formats()[module]
    # an image may end before the container does; a sparse host file may be longer than the image
    room = 4 * image.size + (64 << 20)
    for size in [room, *hints]:
        file_map = _run_from(image, start, size, claims, free)
        try:
            container = fmt.open(FileView(image, file_map))
        except Damaged:
            continue
        if container.size <= 0:
            continue
        clip(container, room)
        led = Led(container, file_map.resized(container.size))
        better = refine(image, container, led.map, places, claims, free, firsts)
        return led if better is None else _reopened(image, fmt, led, better)
    return None


def _reopened(image: Reader, fmt: Format, led: Led, better: FileMap) -> Led:
    """The container as the better map shows it: tables behind a break read differently now."""
    try:
        container = fmt.open(FileView(image, better))
    except Damaged:
        return led
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
    container.checks.append(Check("container size is possible on this image", False, f"tables name places beyond {limit:#x}"))
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
