"""Breaks of a header-led container: guest structures pin it, `align` lays the rest between the pins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..disk import VirtualDisk
from ..filemap import FileMap, FileView
from ..model import DATA, GUESSED, MISSING, PLAIN, Container, GuestMap, Reader
from ..registry import guests, hosts
from ..tables import pc
from ..verify.guest import describe
from .align import BLOCK, FREE, UNKNOWN, USED, Pin, align
from .state import Claims
from .window import Window

ROUNDS = 4
SIZE_SLACK = 16 << 20  # a container's disk may be this much larger than the guest's own end (cylinder rounding)
MAX_REGION_PINS = 1024  # ours
MAX_HOLES = 4096  # ours: blocks of holes behind the last pin, where the host is seen to pack
MAX_WINDOW = 64 << 30  # ours: bytes of the image that one container's pieces may span


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


def refine(image: Reader, container: Container, first: FileMap, places: Places, claims: Claims,
           free: npt.NDArray[np.int64] | None, neighbours: list[tuple[int, int]]) -> FileMap | None:
    """A better map than `first` (one run from the container's first byte), or None when nothing speaks against it.

    neighbours: (image offset of the first byte, size) of the other containers that headers propose.
    """
    start = int(first.image_offset[0])
    if not container.guests or container.size < 2 * BLOCK or start < 0:
        return None
    guest = container.guests[0]
    if not ((guest.map.state == DATA) & (guest.map.encoding == PLAIN)).any():
        return _bounded(first, _foreign(neighbours, start, [(0, start)], guest.map))
    best: FileMap | None = None
    current = first
    for _ in range(ROUNDS):
        disk = VirtualDisk(FileView(image, current), guest.map)
        pins, volumes = _pins(image, container, guest.map, disk, start, places, claims)
        foreign = _foreign(neighbours, start, pins, guest.map)
        pins = _with_tables(image, container, first, pins, claims, foreign)
        inside = any(start < other < start + container.size for other, _ in foreign)
        if best is None and not inside and all(_agrees(first, f, p) for f, p in pins) and _consistent(disk):
            return None
        window = _window(image, start, container.size, pins)
        if window is None:
            return best or _bounded(first, foreign)
        base, end = window
        expected = _expected(container, guest.map, disk, volumes)
        full, others = _image_blocks(image, base, end, claims, free, foreign)
        placed = align(expected, full, others, [Pin(f // BLOCK, (p - f % BLOCK - base) // BLOCK) for f, p in pins],
                       min(MAX_HOLES, int((expected == FREE).sum())) if "packed" in first.rule else 0)
        if placed is None:
            return best or _bounded(first, foreign)
        found = _file_map(placed, base, container.size)
        if best is not None and found.rows() == best.rows():
            break
        best = current = found
    return best


def _with_tables(image: Reader, container: Container, first: FileMap, pins: list[tuple[int, int]], claims: Claims,
                 foreign: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """More pins: the format's own tables where the first map has them, when they are sound and nobody else is there."""
    if not all(c.ok for c in container.checks) and "packed" not in first.rule:
        return pins
    known = {f // BLOCK for f, _ in pins}
    more: list[tuple[int, int]] = []
    for region in container.regions[:MAX_REGION_PINS]:
        f = region.file_offset // BLOCK * BLOCK
        p = next((at for _, _, at, _, _ in first.cut(f, 1)), -1)
        if p < 0 or f // BLOCK in known or claims.holds(p) or any(at <= p < at + size for at, size in foreign):
            continue
        if any(image.read(p, BLOCK)):
            known.add(f // BLOCK)
            more.append((f, p))
    return sorted([*pins, *more])


def _foreign(neighbours: list[tuple[int, int]], start: int, pins: list[tuple[int, int]],
             guest_map: GuestMap) -> list[tuple[int, int]]:
    """Where the neighbours lie, each up to the next header: not ours, unless a pin of ours says that we are there.

    Between two pins of one delta guest data is ours: a header there belongs to a disk inside this disk. Where the file
    holds no guest data, the neighbour lies in a hole of ours.
    """
    starts = sorted({s for s, _ in neighbours} | {start})
    out: list[tuple[int, int]] = []
    for other, size in neighbours:
        if other == start:
            continue
        later = [s for s in starts if s > other]
        size = min(size, later[0] - other) if later else size
        if any(other <= p < other + size for _, p in pins):
            continue
        before = {p - f for f, p in pins if p < other}
        around = before & {p - f for f, p in pins if p >= other + size}
        if not any(_is_data(guest_map, other - delta) for delta in around):
            out.append((other, size))
    return out


def _bounded(file_map: FileMap, foreign: list[tuple[int, int]]) -> FileMap:
    """The map without what lies where others are."""
    theirs = Claims()
    for start, size in foreign:
        theirs.add_range(start, start + size)
    return theirs.rest_of(file_map, "others")


def _agrees(file_map: FileMap, f: int, p: int) -> bool:
    cut = file_map.cut(f, 1)
    return bool(cut) and cut[0][2] == p


def _consistent(disk: VirtualDisk) -> bool:
    told = [v.consistent for v in describe(disk) if v.consistent is not None]
    return bool(told) and all(told)


def to_file(guest_map: GuestMap, g: int) -> int | None:
    """The file offset of a guest byte, when the container holds it plain."""
    i = int(np.searchsorted(guest_map.guest_offset, g, side="right")) - 1
    if i < 0 or guest_map.state[i] != DATA or guest_map.encoding[i] != PLAIN:
        return None
    inside = g - int(guest_map.guest_offset[i])
    return int(guest_map.file_offset[i]) + inside if inside < int(guest_map.length[i]) else None


def _is_data(guest_map: GuestMap, file_offset: int) -> bool:
    """Whether the file byte holds guest data."""
    inside = (guest_map.state == DATA) & (guest_map.file_offset <= file_offset)
    return bool((inside & (file_offset < guest_map.file_offset + guest_map.stored)).any())


def _pins(image: Reader, container: Container, guest_map: GuestMap, disk: VirtualDisk, start: int, places: Places,
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


def _window(image: Reader, start: int, size: int, pins: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The part of the image to look at: from the lowest pin's run to the end that the highest one asks for."""
    low = min(min(p for _, p in pins), start)
    base = start - (start - low + BLOCK - 1) // BLOCK * BLOCK
    base -= min(base // BLOCK, size // BLOCK) * BLOCK if low < start else 0
    end = min(image.size, max(p - f for f, p in pins) + size + (1 << 20))
    return (base, end) if 0 <= base < end and end - base <= MAX_WINDOW else None


def _image_blocks(image: Reader, base: int, end: int, claims: Claims, free: npt.NDArray[np.int64] | None,
                  foreign: list[tuple[int, int]]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    count = -(-(end - base) // BLOCK)
    full = np.zeros(count, bool)
    step = 4 << 20
    for at in range(base, end, step):
        data = np.frombuffer(image.read(at, min(step, end - at)), np.uint8)
        data = np.pad(data, (0, -len(data) % BLOCK)).reshape(-1, BLOCK)
        full[(at - base) // BLOCK : (at - base) // BLOCK + len(data)] = data.any(axis=1)
    others = np.ones(count, bool)
    room = np.array([[base, end - base]], np.int64)
    if free is not None and len(free):
        clipped = np.stack([np.maximum(free[:, 0], base), np.minimum(free.sum(axis=1), end)], axis=1)
        clipped = clipped[clipped[:, 1] > clipped[:, 0]]
        room = np.stack([clipped[:, 0], clipped[:, 1] - clipped[:, 0]], axis=1)
    for at, n in claims.free_of(room).tolist():
        others[-(-(at - base) // BLOCK) : (at + n - base) // BLOCK] = False
    for other, size in foreign:
        if base < other + size and other < end:
            others[max(0, other - base) // BLOCK : (other + size - base) // BLOCK] = True
    return full, others


def _expected(container: Container, guest_map: GuestMap, disk: VirtualDisk, volumes: list[tuple[int, int]]
              ) -> npt.NDArray[np.uint8]:
    """What each file block should be: USED by the guest or the format, FREE, or UNKNOWN."""
    n = -(-container.size // BLOCK)
    out = np.full(n, FREE, np.uint8)  # file bytes that nothing names are padding
    plain = (guest_map.state == DATA) & (guest_map.encoding == PLAIN)
    used: list[tuple[int, int, int]] = []  # guest ranges with their class
    for offset, length in volumes:
        for kind in hosts().values():
            volume = kind.open(disk, offset, min(length, disk.size - offset))
            if volume is None:
                continue
            free = volume.free()
            if len(free) == 0 or int(free[0, 0]) <= offset:  # its own first block free: a bitmap read from elsewhere
                used.append((offset, length, UNKNOWN))
                break
            at = offset
            for start, size in free.tolist():
                used += [(at, start - at, USED), (start, size, FREE)]
                at = start + size
            used.append((at, offset + volume.size - at, USED))
            break
        else:
            used.append((offset, length, UNKNOWN))
    for g, length, f in zip(guest_map.guest_offset[plain].tolist(), guest_map.length[plain].tolist(),
                            guest_map.file_offset[plain].tolist(), strict=True):
        for start, size, cls in used:
            low, high = max(g, start), min(g + length, start + size)
            if low < high:
                a, b = f + low - g, f + high - g
                if cls == FREE:  # a block counts as free only when all of it is
                    out[-(-a // BLOCK) : b // BLOCK] = FREE
                else:
                    out[a // BLOCK : -(-b // BLOCK)] = cls
    for region in container.regions:
        a, b = region.file_offset, region.file_offset + region.length
        block = out[a // BLOCK : -(-b // BLOCK)]
        block[block == FREE] = UNKNOWN
    if n:
        out[0] = USED
    return out


def _file_map(placed: npt.NDArray[np.int64], base: int, size: int) -> FileMap:
    delta = np.where(placed >= 0, placed - np.arange(len(placed)), np.iinfo(np.int64).min)
    cut = np.flatnonzero(delta[1:] != delta[:-1]) + 1
    rows: list[tuple[int, int, int, str, str]] = []
    for a, b in zip([0, *cut.tolist()], [*cut.tolist(), len(placed)], strict=True):
        f, n = a * BLOCK, min(b * BLOCK, size) - a * BLOCK
        p = int(placed[a])
        if p < 0:
            rows.append((f, n, -1, MISSING, "aligned.host-hole"))
        else:
            rows.append((f, n, base + p * BLOCK, GUESSED, "aligned"))
    return FileMap.build(rows)
