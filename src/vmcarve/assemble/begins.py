"""Volumes of a guest whose first structure is lost: what begins them, by a copy of it, and where on the disk that is.

For units of a container in the order of its file. A copy that states its place in the volume, or that lies in its unit
where only one place of the volume can lie, tells where the volume begins on the disk.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..model import SECTOR, Begin, Cut, Evidence, Reader
from ..registry import guests, hosts
from ..tables import pc
from ..verify.guest import describe
from .boot_sectors import ENTRY
from .places import Places, Table, fills, stated_tables
from .segments import BLOCK
from .window import Window

Int64s = npt.NDArray[np.int64]

USUAL = (1 << 20, 0)  # where a volume begins that does not state it: behind a partition table, or without one
MOST_BEFORE = 1 << 30  # ours: bytes of a disk before a volume
MAX_BEGIN = 1 << 20  # ours: bytes that are made again
LEAST_STATED, MOST_STATED = 8, 0.9  # structures, and which share of them must agree, that prove where a volume begins
LEAST_RISING, LEAST_BEHIND = 3, 2  # steps from unit to unit that show the disk's order; structures farther behind
MAX_BOOTS = 1 << 16  # ours: units whose first sector is read


@dataclass(frozen=True, slots=True)
class Begun:
    """places: with every volume's begin. reader: the units, and behind them what is made from copies.

    begins, parts int64[k, 3], rising: byte of the guest, the byte of `reader` that stands there, length; begins hold
    whatever lies there, parts (metadata that a log has) where nothing does. size: bytes of the disk, 0 unknown. table:
    where its volumes begin. stated: whether that is told of every one of them, and not the likelier of two.
    """

    reader: Reader
    places: Places
    begins: Int64s
    parts: Int64s
    size: int
    table: Table
    stated: bool


@dataclass(frozen=True, slots=True)
class Others:
    """What a file has of volumes and partitions outside of the units that are looked at, or in them unseen.

    volumes: (module, identity) and what begins each. parts: (offset, length) of the partitions that tables state.
    """

    volumes: tuple[tuple[tuple[str, str], Begin], ...] = ()
    parts: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, file: Reader, evidence: pa.Table) -> Others:
        """By the evidence of a whole file, wherever in it that lies."""
        places = Places.of(evidence)
        volumes: list[tuple[tuple[str, str], Begin]] = []
        for key, mine in _volumes(places).items():
            made = next((b for i in mine if (b := _begin(file, places, i)) is not None), None)
            if made is not None:
                volumes.append((key, replace(made, size=made.size or max(int(places.value[i]) for i in mine))))
        return cls(tuple(volumes), tuple(part for _, found in stated_tables(file, places) for part in found))


class Appended:
    """A Reader with `tail` from byte `at` on, at or behind the end of `inner`."""

    def __init__(self, inner: Reader, at: int, tail: bytes) -> None:
        self._inner, self._at, self._tail = inner, at, tail

    @property
    def size(self) -> int:
        return self._at + len(self._tail) if self._tail else self._inner.size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length <= 0 or offset >= self.size:
            return b""
        if offset + length <= self._at:
            return self._inner.read(offset, length)
        behind = max(offset - self._at, 0)
        front = self._inner.read(offset, max(0, self._at - offset)).ljust(max(0, self._at - offset), b"\0")
        return front + self._tail[behind : max(0, offset + length - self._at)]

    def missing(self, offset: int, length: int) -> bool:
        if offset < 0 or offset + length > self.size:
            return True
        return offset < self._at and self._inner.missing(offset, min(length, self._at - offset))


def begun(units: Reader, unit: int, evidence: pa.Table, told: dict[str, int] | None = None, *, whole: bool = False,
          cut_short: bool = False, gapless: bool = False, disk: int = 0,
          others: Callable[[], Others] = Others) -> Begun:
    """The volumes that evidence of `units` (each of `unit` bytes, in any order) tells of.

    told: where volumes begin on the disk, by name, as units of other sizes told; what these prove is added. whole: the
    units are all of the file, whose header may be among them. cut_short: the file's end is lost, where a partition
    table has its copy if units rise: that there is none says nothing then, and most disks have one. gapless: see Cut.
    disk: bytes of it, 0 unknown. others: asked where the units have the begin of no volume, nor a copy of it.
    """
    told = {} if told is None else told
    places = Places.of(evidence)
    rows = evidence.filter(pc.is_in(evidence["module"], value_set=pa.array(list(guests()), pa.string())))
    tables = [int(r["value"]) for r in rows.filter(pc.is_valid(rows["guest_offset"])).to_pylist() if r["value"]]
    size = max(set(tables), key=tables.count) if tables else 0
    maybe = [] if tables else _boots(units, unit)
    stating = [part for _, found in stated_tables(units, places) for part in found]
    rooms = stating + [p for _, f in maybe for p in f] or [(at, disk - at) for at in USUAL if disk > at]
    named = {(m, i) for m, i in zip(places.module, places.identity, strict=True) if i is not None}
    loose = _by_metadata(units, evidence, Cut(unit, tuple(rooms), gapless, tuple(sorted(named))), places)
    sizes = {int(places.value[i]) for i in np.flatnonzero(places.value > 0).tolist()} | {b.size for b in loose.values()}
    boots = [(at, f) for at, f in maybe if any(fills(size, length) for size in sizes for _, length in f)]
    search = _Starts(unit, stating + [p for _, f in boots for p in f], bool(tables or boots), told, whole, cut_short)
    tail = _Tail(-(-units.size // unit) * unit)
    added: list[tuple[int, str, str, int]] = []
    also: list[tuple[int, int, str, str]] = []
    begins: list[tuple[int, int]] = []
    parts: list[tuple[int, bytes]] = []
    stated = True
    volumes = _found(units, places, loose)
    if not volumes:
        elsewhere = others()
        volumes = [(key, [], made) for key, made in elsewhere.volumes]
        search = search if search.parts else replace(search, parts=elsewhere.parts, table=bool(elsewhere.parts))
    for (module, identity), mine, made in volumes:
        length = made.size or max(int(places.value[i]) for i in mine)
        known_at = _stated(places, mine, made)
        starts = search.of(identity, known_at, made, length)
        start = _settle(places, mine, made, starts, unit, whole=whole)
        by_phase = _by_phase(known_at, start, starts, unit)
        stated = stated and (by_phase or len(starts) == 1)
        if by_phase:
            told[identity] = start
        begins.append((start, length))
        if not tables:
            size = max(size, start + length + min(start, USUAL[0]))
        also += [(*row, module, identity) for row in _also(rows, made, start, unit)]
        also += [(p, v, module, identity) for p, v in made.stated if (start + v - p) % unit == 0]
        if not any(places.volume_offset[i] == 0 for i in mine):
            added.append((tail.add(start, made.data[:MAX_BEGIN]), module, identity, length))
        parts += [(start + place, data) for place, data in made.parts]
    more = [(p, v, module, identity, 0) for p, v, module, identity in also]
    more += [(p, 0, module, identity, length) for p, module, identity, length in added]
    places = _with(places, more)
    if len(boots) == 1:
        places = _with(places, [(boots[0][0], -1, "mbr", "", size)])
    behind = _Tail(tail.at + len(tail.data))
    for at, data in parts:
        behind.add(at, data)
    reader = Appended(units, tail.at, bytes(tail.data + behind.data))
    return Begun(reader, places, tail.rows(), behind.rows(), size, (size, begins), stated)


@dataclass(frozen=True, slots=True)
class _Starts:
    """Where on the disk a volume may begin, as `begun` asks it of each.

    parts: (offset, length) of the partitions that are known. table: whether the disk has a partition table.
    """

    unit: int
    parts: Sequence[tuple[int, int]]
    table: bool
    told: dict[str, int]
    whole: bool
    cut_short: bool

    def of(self, identity: str, known: Int64s, made: Begin, length: int) -> list[int]:
        """The places, the likelier first. known: see `_stated`. length: bytes of the volume."""
        if identity in self.told:
            return [self.told[identity]]
        if fitting := [at for at, room in self.parts if fills(length, room)]:
            return fitting
        usual = self.table or self.cut_short and _rises(known, self.unit)
        starts: list[int] = [*USUAL] if usual else [*reversed(USUAL)]
        starts = [made.before] if 0 <= made.before <= MOST_BEFORE else starts
        later = _in_place(known, self.unit) or self.unit >= USUAL[0] and _comes_later(known, self.unit)
        return [s for s in starts if s] or starts if later and not self.whole else starts


class _Tail:
    """Blocks that follow the units: bytes of the guest that are known though none of them lies among those.

    at: where the first begins. A block of it holds what is known of one block of the guest.
    """

    def __init__(self, at: int) -> None:
        self.at = at
        self.data = bytearray()
        self._rows: list[tuple[int, int, int]] = []
        self._block: dict[int, int] = {}  # guest block -> byte of `data`

    def add(self, guest: int, data: bytes) -> int:
        """Puts the bytes of the guest from `guest` on behind the units; returns where they begin there."""
        first = -1
        at = 0
        while at < len(data):
            block, inside = divmod(guest + at, BLOCK)
            length = min(BLOCK - inside, len(data) - at)
            where = self._block.setdefault(block, len(self.data))
            if where == len(self.data):
                self.data += bytes(BLOCK)
            self.data[where + inside : where + inside + length] = data[at : at + length]
            self._rows.append((guest + at, self.at + where + inside, length))
            first = self.at + where + inside if first < 0 else first
            at += length
        return first

    def rows(self) -> Int64s:
        """int64[k, 3], see Begun."""
        return np.array(sorted(self._rows), np.int64).reshape(-1, 3)


def _boots(units: Reader, unit: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Units that may begin the disk: with an MBR. With (offset, length) of its partitions.

    An MBR states no place: it is looked for where units begin, and nothing but a volume that fills one of its
    partitions tells it from other sectors.
    """
    out: list[tuple[int, list[tuple[int, int]]]] = []
    for start in range(0, min(units.size, MAX_BOOTS * unit), unit):
        sector = units.read(start, SECTOR)
        if sector[-2:] != b"\x55\xaa":
            continue
        entries = np.frombuffer(sector[446:510], ENTRY)
        end = int((entries["first"].astype(np.int64) + entries["count"]).max()) * SECTOR
        found = [(offset, length) for v in describe(Window(units, start, end)) if v.kind == "mbr"
                 for offset, length, _ in v.partitions]
        out += [(start, found)] if found else []
    return out


def _volumes(places: Places) -> dict[tuple[str, str], list[int]]:
    """Rows of each volume's superblocks and boot sectors, those that state a place first."""
    out: dict[tuple[str, str], list[int]] = defaultdict(list)
    order = np.argsort(np.where(places.volume_offset < 0, 1 << 62, places.volume_offset), kind="stable")
    for i in order.tolist():
        identity, module = places.identity[i], places.module[i]
        if identity is not None and places.guest_offset[i] < 0 and places.value[i] > 0 and guests()[module].begin:
            out[module, identity].append(i)
    return out


def _found(units: Reader, places: Places, loose: dict[tuple[str, str], Begin]
           ) -> list[tuple[tuple[str, str], list[int], Begin]]:
    """Each volume with its rows of `places` and what begins it: by a copy, or else by loose metadata."""
    out: list[tuple[tuple[str, str], list[int], Begin]] = []
    for key, mine in _volumes(places).items():
        made = next((b for i in mine if (b := _begin(units, places, i)) is not None), None)
        if made is not None and key in loose:
            made = replace(made, stated=made.stated or loose[key].stated, parts=loose[key].parts)
        out += [(key, mine, made)] if made is not None else []
    found = {key for key, *_ in out}
    return out + [(key, [], made) for key, made in loose.items() if made.data and key not in found]


def _begin(units: Reader, places: Places, i: int) -> Begin | None:
    make = guests()[places.module[i]].begin
    return make(units, int(places.image_offset[i])) if make is not None else None


def _by_metadata(units: Reader, evidence: pa.Table, cut: Cut, places: Places) -> dict[tuple[str, str], Begin]:
    """What volumes begin with of which only loose metadata is left, by module and identity.

    One that nothing names is believed where nothing else is found, and nothing tells of another kind of volume more
    often: it could be an image in a file of that.
    """
    out: dict[tuple[str, str], Begin] = {}
    told: Counter[str] = Counter()
    for kind in hosts().values():
        name = kind.guest or kind.name
        told[name] = int(pc.sum(evidence.filter(pc.equal(evidence["module"], kind.name))["count"]).as_py() or 0)
        if kind.begins is None:
            continue
        rows = evidence.filter(pc.is_in(evidence["kind"], value_set=pa.array([s.kind for s in kind.signatures])))
        read = [Evidence(**{k: v for k, v in r.items() if k not in ("source", "module")}) for r in rows.to_pylist()]
        out |= {(name, made.identity): made for made in (kind.begins(units, read, cut) if read else ())}
    sure = bool(_volumes(places)) or any(identity for _, identity in out)
    return {(name, identity): made for (name, identity), made in out.items()
            if identity or not sure and told[name] == max(told.values())}


def _settle(places: Places, mine: list[int], made: Begin, starts: Sequence[int], unit: int, *, whole: bool) -> int:
    """Where the volume begins; rows that state no place get theirs, where only one is possible, and those whose unit
    could not hold it there lose it: a log has copies of a superblock with what follows it."""
    def fits(i: int, start: int, inside: int) -> bool:
        return bool((start + inside - places.image_offset[i]) % unit == 0)

    stated = [i for i in mine if places.volume_offset[i] >= 0]
    start = max(starts, key=lambda s: sum(fits(i, s, int(places.volume_offset[i])) for i in stated))
    if made.stated:
        start = max(starts, key=lambda s: sum((s + v - p) % unit == 0 for p, v in made.stated))
    for i in stated if not whole else ():
        if not fits(i, start, int(places.volume_offset[i])):
            places.volume_offset[i] = -1
            places.first[i] = False
    for i in mine:
        if places.volume_offset[i] < 0:
            could = [v for v in (0, made.copy) if v >= 0 and fits(i, start, v)]
            if len(could) == 1 and made.copy >= 0:
                places.volume_offset[i] = could[0]
    return start


def _stated(places: Places, mine: list[int], made: Begin) -> Int64s:
    """int64[n, 2], rising: offset among the units, and place in its volume, of what states that."""
    known = [i for i in mine if places.volume_offset[i] >= 0]
    rows = [*made.stated, *zip(places.image_offset[known].tolist(), places.volume_offset[known].tolist(), strict=True)]
    return np.array(sorted(rows), np.int64).reshape(-1, 2)


def _in_place(at: Int64s, unit: int) -> bool:
    """Whether a volume lies where the units' own order has the one behind a partition table: its begin, or most of it.

    Of units in any order one lies so by chance.
    """
    behind = at[:, 0] - at[:, 1]
    there = behind == USUAL[0]
    some = np.unique(at[there, 0] // unit)
    return bool(there[at[:, 1] == 0].any()) or 2 * len(some) > len(np.unique(at[:, 0] // unit))


def _comes_later(at: Int64s, unit: int) -> bool:
    """Whether something lies before the volume on the disk, though no table is left that says so.

    Of a file that is written from front to back units are left out, and none comes in: nothing lies farther behind in
    it than on the disk. What lies farther behind than in its volume tells how much comes before that.
    """
    if len(at) < LEAST_STATED:
        return False
    _, first = np.unique(at[:, 0] // unit, return_index=True)
    rising = np.diff(at[first, 1]) > 0
    behind = np.count_nonzero(at[:, 0] - at[:, 1] >= USUAL[0])
    return len(rising) >= LEAST_RISING and float(rising.mean()) >= MOST_STATED and bool(behind >= LEAST_BEHIND)


def _rises(at: Int64s, unit: int) -> bool:
    """Whether units come in the volume's order, by and large: each that states its place has about its rank there."""
    _, first = np.unique(at[:, 0] // unit, return_index=True)
    if len(first) < LEAST_STATED:
        return False
    rank = np.argsort(np.argsort(at[first, 1], kind="stable"), kind="stable")
    return float(np.corrcoef(rank, np.arange(len(rank)))[0, 1]) >= MOST_STATED


def _by_phase(at: Int64s, start: int, starts: Sequence[int], unit: int) -> bool:
    """Whether what states its place lies in its units as it would if the volume began at `start`, and nowhere else."""
    if len(at) < LEAST_STATED or len(starts) < 2:
        return False
    fit = {s: float(((s + at[:, 1] - at[:, 0]) % unit == 0).mean()) for s in starts}
    return all(share >= MOST_STATED if s == start else share <= 1 - MOST_STATED for s, share in fit.items())


def _also(rows: pa.Table, made: Begin, start: int, unit: int) -> list[tuple[int, int]]:
    """(image offset, place in the volume) of other structures of a volume, where only one place is possible."""
    out: list[tuple[int, int]] = []
    for kind, value, places in made.also:
        mine = rows.filter(pc.and_(pc.equal(rows["kind"], kind), pc.fill_null(pc.equal(rows["value"], value), False)))
        for p in mine["image_offset"].to_pylist():
            could = [v for v in places if (start + v - p) % unit == 0]
            out += [(p, could[0])] if len(could) == 1 else []
    return out


def _with(places: Places, added: list[tuple[int, int, str, str, int]]) -> Places:
    """The places, and structures (image offset, place in the volume, module, identity, length of the volume) too.

    A place below 0: that begins the disk, which has that length.
    """
    def more(column: Int64s, values: list[int]) -> Int64s:
        return np.concatenate((column, np.array(values, np.int64)))

    n = len(added)
    known = {(module, identity) for _, place, module, identity, _ in added if place == 0}
    first = np.array([bool(f) and (m, i) not in known for f, m, i in
                      zip(places.first, places.module, places.identity, strict=True)], np.bool_)
    new = replace(places, image_offset=more(places.image_offset, [a[0] for a in added]),
                  guest_offset=more(places.guest_offset, [0 if a[1] < 0 else -1 for a in added]),
                  volume_offset=more(places.volume_offset, [a[1] for a in added]),
                  first=np.concatenate((first, np.array([a[1] == 0 for a in added], np.bool_))),
                  length=more(places.length, [512] * n), value=more(places.value, [a[4] for a in added]),
                  module=[*places.module, *(a[2] for a in added)],
                  identity=[*places.identity, *(a[3] for a in added)])
    order = np.argsort(new.image_offset, kind="stable")
    columns = {name: getattr(new, name)[order] for name in ("image_offset", "guest_offset", "volume_offset", "first",
                                                           "length", "value")}
    return replace(new, module=[new.module[i] for i in order], identity=[new.identity[i] for i in order], **columns)
