"""Guest structures that state their place: which container each volume belongs to, and which bytes of it they pin.

Many disks of one host have one size and one partition layout, and fragments of them lie anywhere, so neither size nor
distance tells whose a volume is. The allocation table does: what a file system has in use must be allocated in its
container, and a container that holds much that the file system calls free is another's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..disk import VirtualDisk
from ..filemap import FileMap, FileView
from ..model import DATA, GUESSED, MISSING, PLAIN, Container, GuestMap, Reader
from ..registry import guests
from ..tables import pc
from ..verify.guest import describe
from .asked import asked
from .loose import Loose, against, stated_by
from .segments import BLOCK
from .share_out import Place, share_out
from .state import Claims
from .tails import open_volumes, to_file
from .window import Window

Int64s = npt.NDArray[np.int64]
SIZE_SLACK = 16 << 20  # a container's disk may be this much larger than the guest's own end (cylinder rounding)
# where volumes begin when no table says it, with what that adds to the cost: since 2008, before, bare, ESX
USUAL_STARTS = {1 << 20: 0.10, 63 * 512: 0.15, 0: 0.15, 64 << 10: 0.25}
ALIKE = 0.05  # two containers whose allocation fits a volume so nearly the same are told apart by distance
UNKNOWN = 0.6  # the cost of a volume whose maps cannot be read: after those that fit, before those that do not
IN_PLACE = 1.0  # what it counts that a volume lies exactly where the container's own run has it: no chance does that
INSIDE = 0.1  # what it counts that a volume lies where the container's own run would be, before any other header
UNFIT, MAYBE_UNFIT = 0.8, 0.05  # the cost of a volume that does not fill the partition that a table gives it
MISNAMED = 0.3  # that a partition's type is for volumes of another kind: some are formatted anew without changing it
FLAT = 0.98  # of a volume's space allocated: then the allocation tells nothing
ROOM = 0.03  # the cost of each MiB that a volume leaves of the disk, where nothing else is known
MAX_ROOM = 0.4
BAD = 1.7  # beyond this a volume is nobody's of those that are known
BITS_OF_COST = 40.0  # by which the metadata of a volume speaks against a container, for a cost of 1
MOST_AGAINST = 4.0
NAMED_BITS = 40.0  # of structures that name their volume; of others some are another's, and tell alike ones apart only
MOST_UNNAMED = 0.5
MOST_ALONE = 0.5  # the container that stores it in another order may be one that is not known
MAX_CONTESTED = 256  # ours: volumes whose metadata is looked for because several containers may have them
MAX_COPIES = 16  # ours: of one volume's first structure
MAX_SNAPSHOTS = 64  # ours: of one container, whose volumes are told from others
MAX_PAIRS = 20_000  # ours: (container, volume) pairs that are tried in one image


@dataclass(frozen=True, slots=True)
class Places:
    """Guest structures of an image that state their place: arrays of equal length, image_offset rising.

    module: which guest module; identity: of the disk or volume; guest_offset and volume_offset -1 where not stated.
    first bool: a volume may begin here: it is stated, or nothing near tells the volume's first structure from a copy.
    """

    image_offset: Int64s
    guest_offset: Int64s
    volume_offset: Int64s
    first: npt.NDArray[np.bool_]
    length: Int64s
    value: Int64s
    module: list[str]
    identity: list[str | None]

    @classmethod
    def of(cls, evidence: pa.Table) -> Places:
        """The rows of guest modules that state a place."""
        mask = pc.is_in(evidence["module"], value_set=pa.array(list(guests()), pa.string()))
        stated = pc.or_(pc.is_valid(evidence["guest_offset"]), pc.is_valid(evidence["volume_offset"]))
        headers = pc.and_(pc.is_valid(evidence["identity"]), pc.equal(evidence["count"], 1))
        stated = pc.or_(stated, pc.and_(headers, pc.less(evidence["confidence"], 0.6)))
        t = evidence.filter(pc.and_(mask, stated)).sort_by("image_offset")

        def column(name: str) -> Int64s:
            return pc.fill_null(t[name], -1).to_numpy().astype(np.int64)

        guest, volume = column("guest_offset"), column("volume_offset")
        return cls(column("image_offset"), guest, volume, (guest < 0) & (volume <= 0), column("length"),
                   column("value"), t["module"].to_pylist(), t["identity"].to_pylist())

    def begin(self, row: int) -> int:
        """The image offset at which the volume of a first structure begins; negative where it would lie before."""
        return int(self.image_offset[row]) - max(0, int(self.volume_offset[row]))

    def outside(self, claims: Claims) -> Places:
        """The rows that nobody owns. What is left of a volume whose first structure is known is a copy of that.

        By their last bytes: where a volume begins may be a hole, and somebody else's.
        """
        keep = np.array([not claims.holds(p) for p in (self.image_offset + self.length - 1).tolist()], bool)
        picked = np.flatnonzero(keep).tolist()
        known = {(self.module[i], self.identity[i]) for i in np.flatnonzero(self.volume_offset == 0).tolist()}
        first = self.first & ~self._copies_of(known)
        return Places(self.image_offset[keep], self.guest_offset[keep], self.volume_offset[keep], first[keep],
                      self.length[keep], self.value[keep], [self.module[i] for i in picked],
                      [self.identity[i] for i in picked])

    def beside(self, names: Set[str]) -> Places:
        """The same where disks that have volumes of these names are known: what may begin one of those is a copy."""
        return replace(self, first=self.first & ~self._copies_of(
            {(m, n) for m, n in zip(self.module, self.identity, strict=True) if n in names}))

    def _copies_of(self, known: set[tuple[str, str | None]]) -> npt.NDArray[np.bool_]:
        """Which rows do not state that a volume begins with them, of volumes of which that is known."""
        named = [name in known for name in zip(self.module, self.identity, strict=True)]
        return (self.volume_offset < 0) & np.array(named, bool)


@dataclass(frozen=True, slots=True)
class Owned:
    """A volume of a container: where it begins on the guest disk, its length, and the row of its first structure.

    cost: what speaks against it, see `assign`.
    """

    guest_offset: int
    size: int
    row: int
    delta: int  # bytes: image offset - container's first byte - file offset
    cost: float = field(default=0.0, compare=False)


Table = tuple[int, list[tuple[int, int]]]
"""Bytes of a disk, and (guest offset, length) of its partitions."""

Known = dict[tuple[int, bytes, int, int], tuple[float, int] | None]
"""What was found of (container's first byte, digest of its map, row, guest offset): a volume's cost and length."""


def assign(image: Reader, containers: Sequence[tuple[int, Container]], places: Places, known: Known | None = None,
           loose: Loose | None = None, room: Int64s | None = None, scattered: Sequence[Table | None] = ()
           ) -> list[list[Owned]]:
    """The volumes of each container (image offset of the first byte, container): each to the one that it fits best.

    known, loose: what earlier calls found; grow. room int64[k, 2]: where metadata of the volumes may lie, all of the
    image without it. scattered: of each container whose units lie in any order what is known of its partitions: that a
    volume lies in its run is chance then.
    """
    known = {} if known is None else known
    stated = list(_stated(image, places))
    tables = [(size, parts) for _, size, parts in stated]
    in_place = _in_place_of_tables(stated, places)
    options: list[tuple[float, int, int, int, Owned]] = []  # cost, room left, distance, container
    rows = first_rows(places)
    copies = _copies(image, places, rows)
    of_older = {p for start, container in containers for p in of_snapshots(image, start, container, places)}
    heads = sorted(start for start, _ in containers)
    after = [min((h for h in heads if h > start), default=image.size) for start, _ in containers]
    tried = 0
    for k, (start, container) in enumerate(containers):
        guest_map = container.guests[0].map
        size = container.virtual_size
        own = scattered[k] if k < len(scattered) else None
        bare = container.format == "raw" and container.variant == "volume"  # the disk is known by its volume
        starts, types = _partitions(image, start, container, tables, own)
        digest = _digest(guest_map)
        ends = np.add.outer(places.length[rows] - 1, np.array(list(starts), np.int64))
        files = to_file(guest_map, ends.ravel()).reshape(ends.shape)
        copied = _copied(guest_map, start, copies, list(starts), len(rows))
        for i, at, in_run in zip(rows, files, copied.tolist(), strict=True):
            behind = int(places.length[i]) - 1  # the structure's last byte: before it there may be a hole
            p, value = int(places.image_offset[i]) + behind, int(places.value[i])
            for (g, (doubt, unfit, rooms)), f, copy in zip(starts.items(), at.tolist(), in_run, strict=True):
                if f < 0 or g + value > size or (p - start - f) % BLOCK or tried >= MAX_PAIRS:
                    continue
                if bare and (g or p - start != f):
                    continue
                if p - start != f and int(places.image_offset[i]) in of_older:
                    continue  # it is explained already; the current state may share it
                if p - start != f and in_place.get(i, 0) > size:
                    continue  # it lies where the table of a larger disk has it
                key = (start, digest, i, g)
                if key not in known:
                    tried += 1
                    known[key] = _cost(image, start, container, g, p - start - f, places.module[i])
                found = known[key]
                if found is not None:
                    cost, length = found
                    fits = any(fills(length, room) for room in rooms)
                    if cost == UNKNOWN:
                        cost += min(MAX_ROOM, ROOM * ((size - g - length) >> 20))
                    if own is None and start <= p < min(start + container.size, after[k]):
                        cost -= INSIDE
                    if own is None and (p - start == f or copy):
                        cost -= IN_PLACE
                    cost += doubt + (0.0 if fits or not rooms else unfit)
                    cost += MISNAMED if _made_for_another(types.get(g, ""), places.module[i]) else 0.0
                    options.append((cost, size - g - length, abs(p - start - f), k,
                                    Owned(g, length, i, p - start - f)))
    options, by_itself = _judged(image, containers, places, options, loose or Loose(image), room)
    # alike costs: where the volume fills the disk, then the nearer; no two volumes of one container over each other
    options = sorted((o for o in options if o[0] <= BAD), key=lambda o: (round(o[0] / ALIKE), o[1] >> 20, o[2]))
    wanted = [Place(_volume_of(places, owned.row), cost, k, owned.guest_offset, owned.guest_offset + owned.size)
              for cost, _, _, k, owned in options]
    out: list[list[Owned]] = [[] for _ in containers]
    alone = {_volume_of(places, row): BAD + more for row, more in by_itself.items()}
    for i in share_out(wanted, BAD, ALIKE, alone):
        cost, _, _, k, owned = options[i]
        out[k].append(replace(owned, cost=cost))
    return out


def _volume_of(places: Places, row: int) -> Hashable:
    """What a volume is known by: its row, or its name where any of several rows may be the one that it begins with."""
    name = places.identity[row]
    return row if name is None or int(places.volume_offset[row]) == 0 else (places.module[row], name)


Option = tuple[float, int, int, int, Owned]


def _judged(image: Reader, containers: Sequence[tuple[int, Container]], places: Places, options: list[Option],
            loose: Loose, room: Int64s | None) -> tuple[list[Option], dict[int, float]]:
    """The options with what a volume's own metadata says against each, where several containers may have it; and, by
    row, what it says against its being none's: then it would lie in the order of a disk."""
    mine: dict[int, list[int]] = {}
    rivals: dict[int, set[int]] = {}  # rows that each container may have
    for i, (cost, _, _, k, owned) in enumerate(options):
        if cost <= BAD:
            mine.setdefault(owned.row, []).append(i)
            rivals.setdefault(k, set()).add(owned.row)
    contested: dict[int, tuple[int, int]] = {}
    for row, which in sorted(mine.items()):
        holders = {options[i][3] for i in which}
        in_place = {options[i][3] for i in which if options[i][4].delta == 0}
        begin = places.begin(row)
        several = len(holders) > 1 or any(len(rivals[k]) > 1 for k in holders)
        if several and len(in_place) != 1 and begin >= 0:
            contested[row] = begin, options[which[0]][4].size
    contested = dict(list(contested.items())[:MAX_CONTESTED])
    room = np.array([[0, image.size]], np.int64) if room is None else room
    out, alone = list(options), dict[int, float]()
    for row, (stated, weight) in stated_by(loose, contested, room).items():
        begin, size = contested[row]
        named = weight >= NAMED_BITS
        # what the right table stores in its order, a flat disk would store in no fewer runs
        flat = against(GuestMap.flat(size), begin, 0, stated)
        bits = [against(containers[k][1].guests[0].map, containers[k][0], owned.guest_offset, stated)
                for _, _, _, k, owned in (options[i] for i in mine[row])]
        least = min((b for b in [flat if named else None, *bits] if b is not None), default=0.0)
        if flat is not None and flat > least:
            alone[row] = min(MOST_ALONE, (flat - least) / BITS_OF_COST)
        for i, b in zip(mine[row], bits, strict=True):
            more = 0.0 if b is None else min(MOST_AGAINST if named else MOST_UNNAMED, (b - least) / BITS_OF_COST)
            out[i] = (options[i][0] + more, *options[i][1:])
    return out, alone


def fills(length: int, room: int) -> bool:
    """Whether a volume of `length` bytes is what a partition of `room` bytes was made for: it is rounded, not more."""
    return length <= room <= length + (length >> 5) + (2 << 20)


def _copies(image: Reader, places: Places, rows: list[int]) -> Int64s:
    """int64[m, 3]: the copies of what volumes begin with: index in `rows`, place in the volume and image offset of the
    last byte."""
    named: dict[tuple[str, str | None], list[int]] = {(places.module[i], places.identity[i]): [] for i in rows}
    for j in np.flatnonzero((places.guest_offset < 0) & (places.value > 0)).tolist():
        if places.identity[j] is not None and (places.module[j], places.identity[j]) in named:
            named[places.module[j], places.identity[j]].append(j)
    out: list[tuple[int, int, int]] = []
    for k, i in enumerate(rows):
        others = [j for j in named[places.module[i], places.identity[i]] if j != i]
        begin = guests()[places.module[i]].begin
        made = begin(image, int(places.image_offset[i])) if begin is not None and others else None
        at = [made.copy if made is not None and v < 0 else v for v in places.volume_offset[others].tolist()]
        out += [(k, v + int(places.length[j]) - 1, int(places.image_offset[j] + places.length[j]) - 1)
                for v, j in zip(at, others, strict=True) if v > 0][:MAX_COPIES]
    return np.array(out, np.int64).reshape(-1, 3)


def _copied(guest_map: GuestMap, start: int, copies: Int64s, begins: list[int], rows: int) -> npt.NDArray[np.bool_]:
    """bool[rows, begins]: whether a copy lies where the container's own run has it, if the volume begins there."""
    out = np.zeros((rows, len(begins)), np.bool_)
    at = np.add.outer(copies[:, 1], np.array(begins, np.int64))
    there = to_file(guest_map, at.ravel()).reshape(at.shape) == (copies[:, 2] - start)[:, None]
    np.logical_or.at(out, copies[:, 0], there)
    return out


def of_snapshots(image: Reader, start: int, container: Container, places: Places) -> set[int]:
    """Image offsets where volumes begin that the container's run has in one of its snapshots."""
    rows = np.flatnonzero(places.volume_offset == 0)
    begin, last = places.image_offset[rows], places.length[rows] - 1
    out: set[int] = set()
    for k, guest in list(enumerate(container.guests))[1:MAX_SNAPSHOTS]:
        for v in describe(through(image, start, container, 0, k)):
            # a volume may begin with a hole: only the end of its first structure is surely there
            out.update(begin[to_file(guest.map, v.offset + last) + start == begin + last].tolist())
    return out


def first_rows(places: Places) -> list[int]:
    """Rows where a volume begins: those that are sure of it; the others only for a volume that has no sure one."""
    sure = np.flatnonzero(places.volume_offset == 0).tolist()
    known = {(places.module[i], places.identity[i]) for i in sure}
    maybe = [i for i in np.flatnonzero(places.first & (places.volume_offset < 0)).tolist()
             if (places.module[i], places.identity[i]) not in known]
    return sorted([*sure, *maybe])


def stated_tables(image: Reader, places: Places) -> list[Table]:
    """Every partition table that states its place, though the disk's begin may lie before the image's."""
    return [(size, parts) for _, size, parts in _stated(image, places)]


def _stated(image: Reader, places: Places) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """(image offset of the disk's first byte, its size, its partitions) of every table that states its place."""
    for i in np.flatnonzero(places.guest_offset >= 0).tolist():
        size = int(places.value[i])
        start = int(places.image_offset[i] - places.guest_offset[i])
        if size <= 0:
            continue
        table = guests()[places.module[i]].probe(Window(image, start, size), 0, size)
        if table is not None:
            yield start, size, [(offset, length) for offset, length, _ in table.partitions]


def _in_place_of_tables(stated: Iterable[tuple[int, int, list[tuple[int, int]]]], places: Places) -> dict[int, int]:
    """Rows of first structures that lie right where a table's run has the partition that they fill, and the bytes of
    that table's disk. stated: see `_stated`."""
    rows = {places.begin(i): i for i in first_rows(places)}
    out: dict[int, int] = {}
    for start, size, parts in stated:
        for offset, length in parts:
            i = rows.get(start + offset)
            if i is not None and fills(int(places.value[i]), length):
                out[i] = size
    return out


def _made_for_another(kind: str, module: str) -> bool:
    """Whether a partition's type, as tables tell it, is for volumes of other modules than this one."""
    kind = kind.split(" '", 1)[0]  # a GPT's partition may have a name too
    return any(kind in guest.types for guest in guests().values()) and kind not in guests()[module].types


def _partitions(image: Reader, start: int, container: Container, tables: list[Table], own: Table | None) -> tuple[dict[
        int, tuple[float, float, list[int]]], dict[int, str]]:
    """Guest offsets where volumes of a container may begin: (cost, cost of a volume of another size, sizes); and the
    types of the partitions that its own table has there.

    A table that names the very end of this disk is likely its own; one of a somewhat smaller disk may be. own: what is
    known of it without its run.
    """
    out: dict[int, tuple[float, float, list[int]]] = {g: (doubt, 0.0, []) for g, doubt in USUAL_STARTS.items()}
    size = container.virtual_size
    seen = [part for v in describe(through(image, start, container, 0)) for part in v.partitions] if own is None else []
    stated = [(UNFIT, [(offset, length) for offset, length, _ in seen] if own is None else own[1])]
    if stated[0][1] and container.format == "raw":
        out.clear()  # the disk is known by that table: its volumes are where it says
    stated += [(UNFIT if end == size else MAYBE_UNFIT, parts) for end, parts in tables
               if size - SIZE_SLACK < end <= size]
    for unfit, parts in stated:
        for offset, length in parts:
            _, before, rooms = out.get(offset, (0.0, 0.0, []))
            out[offset] = (0.0, max(unfit, before), [*rooms, length])
    return out, {offset: kind for offset, _, kind in seen}


def _digest(guest_map: GuestMap) -> bytes:
    parts = (guest_map.guest_offset, guest_map.file_offset, guest_map.state)
    return hashlib.blake2b(b"".join(a.tobytes() for a in parts), digest_size=16).digest()


def through(image: Reader, start: int, container: Container, delta: int, guest: int = 0) -> VirtualDisk:
    """The guest disk (or of its snapshots) as it would be if the whole container lay at one delta (bytes)."""
    base = start + delta
    rows = [(0, min(container.size, -base), -1, MISSING, "")] if base < 0 else []
    at = max(0, -base)
    there = max(0, min(container.size, image.size - base) - at)
    rows += [(at, there, base + at, GUESSED, ""), (at + there, container.size - at - there, -1, MISSING, "")]
    return VirtualDisk(FileView(image, FileMap.build(rows)), container.guests[guest].map)


def _cost(image: Reader, start: int, container: Container, g: int, delta: int, module: str
          ) -> tuple[float, int] | None:
    """(what speaks against the volume lying here: 0 nothing, 2 all; its length), or None when none is to be seen."""
    disk = through(image, start, container, delta)
    volume = guests()[module].probe(disk, g, disk.size - g)
    if volume is None or volume.partitions or not 0 < volume.size <= disk.size - g:
        return None
    used = used_space(disk, g) if volume.consistent else None
    if used is None:
        return UNKNOWN, volume.size
    allocated = allocated_space(container.guests[0].map, g, volume.size)
    if int(allocated[:, 1].sum()) >= FLAT * volume.size:
        return UNKNOWN, volume.size
    both = common(used, allocated)
    in_use, there = int(used[:, 1].sum()), int(allocated[:, 1].sum())
    return (1 - both / in_use if in_use else 1.0) + (1 - both / there if there else 1.0), volume.size


def free_space(disk: Reader, g: int, size: int, *, own: bool = False) -> tuple[Int64s, int] | None:
    """Guest ranges int64[n, 2] that the file system at `g`, of `size` bytes at most, has free, and its size; None when
    its maps are not readable here: when they call its own first block free they are not its maps. own: nor what it
    finds where its maps are lost.
    """
    def read() -> list[tuple[Int64s, int]]:
        found = [(v.free(), v.size, v) for v in open_volumes(disk, [(g, size)])[:1]]
        return [(free, length) for free, length, v in found if not (own and v.derived)]

    found = asked(read, [])
    return found[0] if found and len(found[0][0]) and int(found[0][0][0, 0]) > g else None


def used_space(disk: VirtualDisk, g: int) -> Int64s | None:
    """Guest ranges int64[n, 2] that the file system at `g` has in use, None when its maps are not readable here."""
    found = free_space(disk, g, disk.size - g)
    if found is None:
        return None
    free, size = found
    end = g + size
    start = np.concatenate(([g], free[:, 0] + free[:, 1]))
    stop = np.concatenate((free[:, 0], [end]))
    keep = stop > start
    return np.stack((start[keep], stop[keep] - start[keep]), axis=1)


def allocated_space(guest_map: GuestMap, g: int, size: int) -> Int64s:
    """Guest ranges int64[n, 2] in [g, g + size) that the container stores."""
    data = guest_map.state == DATA
    low = np.maximum(guest_map.guest_offset[data], g)
    high = np.minimum(guest_map.guest_offset[data] + guest_map.length[data], g + size)
    keep = high > low
    return np.stack((low[keep], high[keep] - low[keep]), axis=1)


def common(a: Int64s, b: Int64s) -> int:
    """Bytes that two lists of ranges int64[n, 2] (offset, length; rising, disjoint) have in common."""
    if len(a) == 0 or len(b) == 0:
        return 0
    edges = np.unique(np.concatenate((a[:, 0], a.sum(axis=1), b[:, 0], b.sum(axis=1))))
    at, length = edges[:-1], np.diff(edges)
    return int(length[_inside(a, at) & _inside(b, at)].sum())


def _inside(ranges: Int64s, at: Int64s) -> npt.NDArray[np.bool_]:
    i = np.searchsorted(ranges[:, 0], at, side="right") - 1
    return (i >= 0) & (at < ranges[i].sum(axis=1))


def pins_of(container: Container, start: int, owned: list[Owned], places: Places, *, scattered: bool = False
            ) -> list[tuple[int, int]]:
    """(file_offset, image_offset) of the structures of a container's own volumes and disk, rising.

    A partition table is its own when it says where the disk ends, and lies at the delta of one of its volumes (or, for
    a disk without a known volume, at the header's), or on the way from the header to one; or anywhere, where units of
    this disk alone lie in any order. Of clones, which are alike, the one at the delta of the volume counts.
    """
    guest_map = container.guests[0].map
    pins: dict[int, tuple[int, int]] = {}

    def add(g: Int64s, rows: Int64s, delta: int) -> None:
        """Pins the last byte: what is before it may be a hole of the host file (the first 64 KiB of Btrfs)."""
        behind = places.length[rows] - 1
        p, f = places.image_offset[rows] + behind, to_file(guest_map, g + behind)
        good = (f >= 0) & ((p - f - start) % BLOCK == 0)
        p, f = p[good], f[good]
        # of clones, which are many, only the first in each block and those at the delta can count
        keep = p - f - start == delta
        keep[np.unique(f // BLOCK, return_index=True)[1]] = True
        for file_offset, image_offset in zip(f[keep].tolist(), p[keep].tolist(), strict=True):
            if file_offset // BLOCK not in pins or image_offset - file_offset - start == delta:
                pins[file_offset // BLOCK] = file_offset, image_offset

    deltas: set[int] = set() if owned else {0}
    for volume in owned:
        name, module = places.identity[volume.row], places.module[volume.row]
        deltas.add(volume.delta)
        add(np.array([volume.guest_offset]), np.array([volume.row]), volume.delta)
        if name is None:
            continue
        rows = np.array([j for j in np.flatnonzero(places.volume_offset > 0).tolist()
                         if places.identity[j] == name and places.module[j] == module], np.int64)
        add(volume.guest_offset + places.volume_offset[rows], rows, volume.delta)
    size = container.virtual_size
    tables = np.flatnonzero((places.guest_offset >= 0) & (places.value <= size) & (places.value > size - SIZE_SLACK))
    near = {places.identity[i] for i in tables.tolist()
            if scattered or _delta(guest_map, places, i, start) in deltas
            or any(_on_the_way(guest_map, places, i, start, o) for o in owned)}
    rows = np.array([i for i in tables.tolist() if places.identity[i] in near and places.identity[i] is not None],
                    np.int64)
    add(places.guest_offset[rows], rows, next(iter(deltas)))
    return sorted(pins.values())


def _delta(guest_map: GuestMap, places: Places, i: int, start: int) -> int | None:
    f = int(to_file(guest_map, places.guest_offset[i : i + 1])[0])
    return None if f < 0 else int(places.image_offset[i]) - f - start


def _on_the_way(guest_map: GuestMap, places: Places, i: int, start: int, volume: Owned) -> bool:
    """Whether table `i` lies between a container's first byte and its volume, no way longer than in the file: a host
    that leaves out what is zero brings them nearer to each other, and never apart.
    """
    rows = [i, volume.row]
    behind = places.length[rows] - 1  # the last bytes: what is before them may be a hole of the host file
    g = np.array([places.guest_offset[i], volume.guest_offset + max(0, int(places.volume_offset[volume.row]))])
    f, p = to_file(guest_map, g + behind), places.image_offset[rows] + behind
    return bool((f >= 0).all()) and 0 < p[0] - start <= f[0] and 0 < p[1] - p[0] <= f[1] - f[0]


def has_plain(guest_map: GuestMap) -> bool:
    """Whether guest data lies plain in the file: what can be pinned."""
    return bool(((guest_map.state == DATA) & (guest_map.encoding == PLAIN)).any())
