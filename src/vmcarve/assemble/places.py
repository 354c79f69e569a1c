"""Guest structures that state their place: which container each belongs to, and which bytes of it they pin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..disk import VirtualDisk
from ..model import DATA, PLAIN, Container, GuestMap, Reader
from ..registry import guests
from ..tables import pc
from ..verify.guest import describe
from .segments import BLOCK
from .state import Claims
from .window import Window

SIZE_SLACK = 16 << 20  # a container's disk may be this much larger than the guest's own end (cylinder rounding)


@dataclass(frozen=True, slots=True)
class Places:
    """Guest structures of an image that state their place: arrays of equal length, image_offset rising.

    module: which guest module; identity: of the disk or volume; guest_offset and volume_offset -1 where not stated.
    """

    image_offset: npt.NDArray[np.int64]
    guest_offset: npt.NDArray[np.int64]
    volume_offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    value: npt.NDArray[np.int64]
    module: list[str]
    identity: list[str | None]

    @classmethod
    def of(cls, evidence: pa.Table) -> Places:
        """The rows of guest modules that state a place."""
        mask = pc.is_in(evidence["module"], value_set=pa.array(list(guests()), pa.string()))
        stated = pc.or_(pc.is_valid(evidence["guest_offset"]), pc.is_valid(evidence["volume_offset"]))
        t = evidence.filter(pc.and_(mask, stated)).sort_by("image_offset")

        def column(name: str) -> npt.NDArray[np.int64]:
            return pc.fill_null(t[name], -1).to_numpy().astype(np.int64)

        return cls(column("image_offset"), column("guest_offset"), column("volume_offset"), column("length"),
                   column("value"), t["module"].to_pylist(), t["identity"].to_pylist())


    def owners(self, containers: list[tuple[int, Container]]) -> dict[tuple[str, str], int]:
        """(module, identity) -> start of the container that it belongs to: it fits there, and lies nearest.

        containers: (image offset of the first byte, container). Nearest to the place where one run would have it.
        """
        best: dict[tuple[str, str], tuple[int, int]] = {}
        for start, container in containers:
            guest_map = container.guests[0].map if container.guests else None
            if guest_map is None or len(guest_map) == 0:
                continue
            size = container.virtual_size
            for i in np.flatnonzero((self.guest_offset >= 0) | (self.volume_offset == 0)).tolist():
                name, g = self.identity[i], int(self.guest_offset[i])
                if name is None:
                    continue
                if g >= 0:
                    if not size - SIZE_SLACK < int(self.value[i]) <= size:
                        continue
                elif self.volume_offset[i] == 0 and int(self.value[i]) <= size:
                    g = 0  # anywhere on the disk: the start of its partition is not known yet
                else:
                    continue
                f = to_file(guest_map, g)
                if g == 0 and self.guest_offset[i] < 0:
                    reach = int(self.image_offset[i]) - start
                    distance = 0 if 0 <= reach < container.size else min(abs(reach), abs(reach - container.size))
                    distance += 1  # a place that is stated outranks one that is only possible
                elif f is None:
                    continue
                else:
                    distance = abs(int(self.image_offset[i]) - start - f)
                key = (self.module[i], name)
                if key not in best or distance < best[key][0]:
                    best[key] = (distance, start)
        return {key: start for key, (_, start) in best.items()}

    def of_owner(self, owners: dict[tuple[str, str], int], start: int) -> Places:
        """The rows whose identity belongs to the container at `start`, or to nobody known."""
        keep = np.array([n is None or owners.get((m, n), start) == start
                         for m, n in zip(self.module, self.identity, strict=True)], bool)
        picked = np.flatnonzero(keep).tolist()
        return Places(self.image_offset[keep], self.guest_offset[keep], self.volume_offset[keep], self.length[keep],
                      self.value[keep], [self.module[i] for i in picked], [self.identity[i] for i in picked])


def pins_of(image: Reader, container: Container, guest_map: GuestMap, disk: VirtualDisk, start: int, places: Places,
          claims: Claims) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """((file_offset, image_offset) pins, (guest_offset, size) of the volumes).

    A structure belongs to this container when its disk has this size and it lies nearest; a volume when it fits a
    partition of that disk and lies nearest. Two pins may not claim one file block: the nearer one stands.
    """
    pins: dict[int, tuple[int, int]] = {0: (0, start)}

    def expect(f: int) -> int:
        below = max((b for b in pins if b <= f // BLOCK), default=0)
        at, p = pins[below]
        return p + f - at

    def add(g: int, p: int) -> bool:
        f = to_file(guest_map, g)
        if f is None or claims.holds(p) or (p - start - f) % 512:
            return False
        if (p - f - start) % BLOCK == 0 and f // BLOCK not in pins:
            pins[f // BLOCK] = (f, p)
        return True

    def nearest(rows: npt.NDArray[np.int64], g: npt.NDArray[np.int64]) -> int | None:
        best: tuple[int, int] | None = None
        for i, at in zip(rows.tolist(), g.tolist(), strict=True):
            f = to_file(guest_map, at)
            p = int(places.image_offset[i])
            if f is None or claims.holds(p) or (p - f - start) % BLOCK:
                continue
            distance = abs(p - expect(f))
            if best is None or distance < best[0]:
                best = (distance, i)
        return None if best is None else best[1]

    size = container.virtual_size
    partitions: list[tuple[int, int]] = []
    tables = np.flatnonzero((places.guest_offset >= 0) & (places.value <= size) & (places.value > size - SIZE_SLACK))
    chosen = nearest(tables, places.guest_offset[tables])
    if chosen is not None:
        name = places.identity[chosen]
        for i in tables.tolist():
            if places.identity[i] == name:
                add(int(places.guest_offset[i]), int(places.image_offset[i]))
        at = int(places.image_offset[chosen] - places.guest_offset[chosen])
        for volume in describe(Window(image, at, size)) if at >= 0 else []:
            partitions += [(offset, length) for offset, length, _ in volume.partitions]
    if not partitions:
        for volume in describe(disk):
            partitions += [(offset, length) for offset, length, _ in volume.partitions]
        partitions = partitions or [(0, size)]
    primaries = np.flatnonzero(places.volume_offset == 0)
    for offset, length in sorted(set(partitions)):
        fitting = np.array([i for i in primaries.tolist() if _fits(image, places, i, length)], np.int64)
        i = nearest(fitting, np.full(len(fitting), offset, np.int64)) if len(fitting) else None
        if i is None or not add(offset, int(places.image_offset[i])):
            continue
        name = places.identity[i]
        if name is None:
            continue
        for j in np.flatnonzero(places.volume_offset > 0).tolist():
            if places.identity[j] == name and places.module[j] == places.module[i]:
                add(offset + int(places.volume_offset[j]), int(places.image_offset[j]))
    return sorted(pins.values()), sorted(set(partitions))


def _fits(image: Reader, places: Places, i: int, partition: int) -> bool:
    p = int(places.image_offset[i])
    volume = guests()[places.module[i]].probe(image, p, min(partition, image.size - p))
    return volume is not None and partition - (2 << 20) <= volume.size + (volume.size >> 5) and volume.size <= partition


def to_file(guest_map: GuestMap, g: int) -> int | None:
    """The file offset of a guest byte, when the container holds it plain."""
    i = int(np.searchsorted(guest_map.guest_offset, g, side="right")) - 1
    if i < 0 or guest_map.state[i] != DATA or guest_map.encoding[i] != PLAIN:
        return None
    inside = g - int(guest_map.guest_offset[i])
    return int(guest_map.file_offset[i]) + inside if inside < int(guest_map.length[i]) else None
