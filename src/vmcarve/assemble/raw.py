"""Guest disks without a container: a partition table or file system that nothing assembled so far explains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..disk import VirtualDisk
from ..filemap import FileMap, FileView
from ..model import GUESSED, MISSING, SECTOR, Container, GuestDisk, GuestMap, Patch, Reader, Volume
from ..registry import guests
from ..tables import pc
from ..verify.guest import describe
from .boot_sectors import ENTRY, BootSectors
from .candidate import Candidate
from .loose import Loose
from .places import SIZE_SLACK, Owned, Places, assign, fills, first_rows, of_snapshots, through
from .segments import BLOCK
from .solve import solve
from .state import Claims
from .tails import to_file
from .window import Window

Int64s = npt.NDArray[np.int64]
# where first partitions begin: 1 MiB (since 2008), track 63 (before), 64 KiB (ESX)
USUAL_STARTS = (2048 * 512, 63 * 512, 128 * 512)
MIN_DISK = 64 << 10
FIRST_TABLE = 64 << 10  # what states a smaller place on its disk is the first of the two copies of a GPT
FITS = 0.8  # the cost up to which a volume is a container's: its maps agree, or cannot be read and it fills its room
TABLE = 34 * SECTOR  # of a GPT with its protective MBR; of an MBR the first sector
MAX_MBR = 256  # ours: sectors that look like an MBR in one image, each of which is tried with every volume


def disk_size(volumes: list[Volume]) -> int:
    """The size of a disk as its own structures tell: the end of the last thing they name, in bytes."""
    ends = [v.offset + v.size for v in volumes]
    ends += [offset + size for v in volumes for offset, size, _ in v.partitions]
    return max(ends, default=0)


def sound(volumes: list[Volume]) -> bool:
    """Whether a disk shows more than a magic: a file system that agrees with itself, not only a table."""
    return any(v.kind not in ("mbr", "gpt") and v.consistent is not False and v.size >= MIN_DISK for v in volumes)


def raw_container(view: Reader) -> Container | None:
    """A whole file as raw guest disk, when its own structures say that it is one."""
    volumes = describe(view)
    if not sound(volumes) or disk_size(volumes) > view.size * 1.05 + (1 << 20):
        return None
    variant = volumes[0].kind if volumes[0].kind in ("gpt", "mbr") else "volume"
    return Container(format="raw", variant=variant, size=view.size, system="",
                     guests=[GuestDisk(view.size, GuestMap.flat(view.size))], extension="raw")


def raw_disks(image: Reader, evidence: pa.Table, claims: Claims, hosts_at: set[int], places: Places, room: Int64s,
              boot: BootSectors, known: Set[str] = frozenset(), metadata: Loose | None = None
              ) -> Iterator[tuple[Container, FileMap]]:
    """Disks without a container in `image`, outside `claims`, other than the image itself and its host volumes.

    The caller claims each one before the next is asked for. room int64[k, 2]: image ranges that may be theirs. boot:
    of that room. known: names of volumes and partition tables of disks that were found: copies of what begins those
    may lie anywhere. metadata: what was found of it; grows.
    """
    mask = pc.is_in(evidence["module"], value_set=pa.array(list(guests()), pa.string()))
    table = evidence.filter(mask)
    places = places.beside(known)
    for tables in (True, False):
        loose = places.outside(claims)
        found = list(_tables(image, table, claims, hosts_at, known) if tables else
                     _volumes(image, table, claims, hosts_at))
        if tables:
            found += _with_mbr(image, boot, claims, hosts_at, loose, {c.start for c in found}, metadata)
        solve(image, found, loose, claims.free_of(room), loose=metadata)
        twins = of_twins(image, found, loose)
        for k, c in sorted(enumerate(found), key=lambda one: not one[1].settled):
            disk = VirtualDisk(FileView(image, c.map), c.container.guests[0].map)
            if claims.holds(c.start) or not (c.owned or sound(describe(disk))) or tables and _unlike(image, c):
                continue
            container, file_map = (c.container, c.map) if k not in twins else _under_a_copy(image, c)
            yield container, claims.rest_of(file_map, "others")


def of_twins(image: Reader, found: list[Candidate], places: Places) -> set[int]:
    """The numbers of disks whose table and volume nothing ties, where the table of another such disk fits as well.

    A table is tied to a volume that lies in its run, or beside its own copy at the disk's end. Whatever pairs the
    others is chance: then every byte of a disk would be said to be another one's.
    """
    loose = [k for k, c in enumerate(found) if not c.settled and not _tied(image, c, places)]
    tables = {k: _parts(image, found[k]) for k in loose}
    out: set[int] = set()
    for k in loose:
        own = found[k].owned
        if own and any(all(any(o.guest_offset == offset and fills(o.size, length) for offset, length in tables[other])
                           for o in own) for other in loose if other != k):
            out.add(k)
    return out


def _parts(image: Reader, c: Candidate) -> list[tuple[int, int]]:
    """(guest offset, length) of the partitions of a disk, by its table where that lies."""
    return [(offset, length) for v in describe(through(image, c.start, c.container, 0))
            for offset, length, _ in v.partitions]


def _unlike(image: Reader, c: Candidate) -> bool:
    """Whether a table has volumes only that lie elsewhere than it says, and for which its partitions were not made:
    those are likelier disks by themselves."""
    parts = _parts(image, c)
    return bool(c.owned) and not any(o.delta == 0 or any(o.guest_offset == offset and fills(o.size, length)
                                                         for offset, length in parts) for o in c.owned)


def _tied(image: Reader, c: Candidate, places: Places) -> bool:
    beside = [o.guest_offset for o in c.owned if o.delta == 0]
    if beside:  # its copy was pinned for no other reason
        return not all(_at_a_border(c, offset) for offset in beside)
    names = {places.identity[i] for i in np.flatnonzero(places.guest_offset >= 0).tolist()
             if places.image_offset[i] - places.guest_offset[i] == c.start}
    for i in np.flatnonzero(places.guest_offset >= 0).tolist():
        f, p = int(places.guest_offset[i]), int(places.image_offset[i])
        if places.identity[i] in names and p - f != c.start and p in [at for _, _, at, _, _ in c.map.cut(f, 1)]:
            return True
    return False


def _at_a_border(c: Candidate, guest_offset: int) -> bool:
    """Whether a unit of the host begins there, and its units hardly ever follow each other on the image: then that
    one does is chance."""
    unit = c.unit.blocks
    if unit == 1 or guest_offset % (unit * BLOCK):
        return False
    goes_on = int(((c.sure[:, 1] - c.sure[:, 0]) // unit - 1).clip(min=0).sum())
    breaks = int(np.count_nonzero(c.sure[1:, 0] == c.sure[:-1, 1]))
    return goes_on <= breaks


def _under_a_copy(image: Reader, c: Candidate) -> tuple[Container, FileMap]:
    """A disk whose table may be another's: nothing is claimed before its first volume, and the table is written there
    as a copy of one that fits, so that the disk can be opened."""
    first = min(o.guest_offset for o in c.owned)
    table = image.read(c.start, min(first, TABLE)).rstrip(b"\0")
    table = table.ljust(-(-len(table) // SECTOR) * SECTOR, b"\0")
    rows = [(0, first, -1, MISSING, "whose-table"), *c.map.cut(first, c.map.size - first)]
    patch = Patch(0, table, "rebuilt", GUESSED)
    return replace(c.container, patches=[patch]), FileMap.build(rows)


def names_of(disk: VirtualDisk) -> set[str]:
    """The names of a disk's partition table and volumes, those where a volume begins without its table included."""
    found = describe(disk)
    for at in USUAL_STARTS:
        found += [v for kind in guests().values() if at < disk.size and
                  (v := kind.probe(disk, at, disk.size - at)) is not None]
    return {v.uuid for v in found if v.uuid}


def rivals(image: Reader, evidence: pa.Table, claims: Claims, hosts_at: set[int], places: Places, boot: BootSectors,
           containers: list[Candidate], metadata: Loose | None = None) -> list[Candidate]:
    """Disks without a container that compete for space with `containers`: their tables are in none of those.

    A table is a container's when its run has it there, and may be that of any container of about its size that shows
    nothing of its guest, unless that has a volume of which the table says nothing, or the table's own volume lies
    behind it as on a disk, and is no container's. A volume is a container's when it fits there, and may be that of any
    that lacks one so large. metadata: what was found of the guests' loose metadata; grows.
    """
    table = evidence.filter(pc.is_in(evidence["module"], value_set=pa.array(list(guests()), pa.string())))
    loose = places.outside(claims)
    found = list(_tables(image, table, claims, hosts_at, set()))
    found += _with_mbr(image, boot, claims, hosts_at, loose, {c.start for c in found}, metadata)
    containers = [c for c in containers if not c.encrypted]
    left = loose.outside(_of_tables(image, found, containers, loose))
    owned = assign(image, [(c.start, c.container) for c in containers], left, loose=metadata)
    explained: set[int] = set()
    # disks whose table may be anywhere: size, identity where it is known, and volumes
    open_: list[tuple[int, str | None, list[Owned]]] = []
    parts: list[int] = []  # lengths of partitions whose volume may be anywhere
    disks: list[int] = []  # and of disks of which nothing is known
    for c, volumes in zip(containers, owned, strict=True):
        f = int(to_file(c.container.guests[0].map, np.zeros(1, np.int64))[0])
        if f >= 0:
            explained.add(c.start + f)
        own = [o for o in volumes if o.cost <= FITS]
        explained |= {int(left.image_offset[o.row]) for o in own} | of_snapshots(image, c.start, c.container, loose)
        kinds = describe(through(image, c.start, c.container, 0))
        if not any(v.partitions and v.consistent is not False for v in kinds):
            open_.append((c.container.virtual_size, next((v.uuid for v in kinds if v.kind == "gpt"), None), own))
        had = {o.guest_offset for o in own}
        parts += [length for v in kinds for offset, length, _ in v.partitions if offset not in had]
        disks += [] if own or any(v.partitions for v in kinds) else [c.container.virtual_size]
    for d in found:
        kinds = describe(through(image, d.start, d.container, 0))
        explained |= {d.start + offset for v in kinds for offset, _, _ in v.partitions}

    def may_be_of(d: Candidate, size: int, name: str | None, own: list[Owned]) -> bool:
        kinds = describe(through(image, d.start, d.container, 0))
        if name is not None:
            return any(v.uuid == name for v in kinds)
        named = [(offset, length) for v in kinds for offset, length, _ in v.partitions]
        return size - SIZE_SLACK < d.container.size <= size and all(
            any(offset == o.guest_offset and fills(o.size, length) for offset, length in named) for o in own)

    given = {left.begin(o.row) for volumes in owned for o in volumes}
    free = [(loose.begin(i), int(loose.value[i])) for i in first_rows(loose) if loose.begin(i) not in given]

    def has_its_own(d: Candidate) -> bool:
        kinds = describe(through(image, d.start, d.container, 0))
        return any(at == d.start + offset and fills(size, length) for v in kinds for offset, length, _ in v.partitions
                   for at, size in free)

    found = [d for d in found if d.start not in explained
             and (has_its_own(d) or not any(may_be_of(d, *o) for o in open_))]
    explained |= {d.start for d in found}
    return found + [d for d in _volumes(image, table, claims, hosts_at)
                    if d.container.variant == "volume" and d.start not in explained
                    and not any(fills(d.container.size, part) for part in parts)
                    and not any(whole - SIZE_SLACK < d.container.size <= whole for whole in disks)]


def _of_tables(image: Reader, disks: list[Candidate], containers: list[Candidate], places: Places) -> Claims:
    """What begins the volumes that lie right where a partition table has them which can be no container's: each shows
    another one, or its disk is smaller."""
    shown = [(c.container.virtual_size, {v.uuid for v in describe(through(image, c.start, c.container, 0))
                                         if v.partitions}) for c in containers]
    begins = [(places.begin(i), int(places.value[i]), int(places.image_offset[i] + places.length[i]) - 1)
              for i in first_rows(places)]
    out = Claims()
    for d in disks:
        kinds = describe(through(image, d.start, d.container, 0))
        names = {v.uuid for v in kinds if v.partitions}
        if any(own & names if own else d.container.size <= size for size, own in shown):
            continue
        parts = [part for v in kinds for part in v.partitions]
        for at, size, last in begins:
            if any(at == d.start + offset and fills(size, length) for offset, length, _ in parts) and \
                    not any(c.start <= at < c.start + c.container.size for c in containers):
                out.add_range(last, last + 1)
    return out


def _tables(image: Reader, table: pa.Table, claims: Claims, hosts_at: set[int], known: Set[str]) -> Iterator[Candidate]:
    """Disks that a GPT header proposes: it states its own place, and where the disk ends.

    known: names of those of disks that were found.
    """
    seen = {name for name in known if not _twice(table, name)}
    rows = table.filter(pc.is_valid(table["guest_offset"])).sort_by("guest_offset")
    for row in rows.to_pylist():
        g, size, name = int(row["guest_offset"]), int(row["value"] or 0), str(row["identity"])
        start = int(row["image_offset"]) - g
        if name in seen or claims.holds(start + g) or size < MIN_DISK or start in hosts_at:
            continue
        found = describe(Window(image, start, size))
        if any(start + offset in hosts_at for v in found for offset, _, _ in v.partitions):
            continue
        seen.add(name)
        yield _candidate("gpt", start, size, claims, g)


def _twice(table: pa.Table, name: str) -> bool:
    """Whether two partition tables of one name begin a disk: those of clones."""
    begins = pc.fill_null(pc.less(table["guest_offset"], FIRST_TABLE), False)
    return table.filter(pc.and_(begins, pc.fill_null(pc.equal(table["identity"], name), False))).num_rows > 1


def _with_mbr(image: Reader, boot: BootSectors, claims: Claims, hosts_at: set[int], places: Places, known: set[int],
              metadata: Loose | None = None) -> list[Candidate]:
    """Disks whose MBR names a partition that a volume of the image fills, wherever that lies.

    Most blocks that look like an MBR are none, or one of a disk that is not here; nothing but its volume tells. Where
    no volume begins but those of hosts, the image is not looked through.
    """
    found: list[Candidate] = []
    if set(places.image_offset[first_rows(places)].tolist()) <= hosts_at:
        return found
    for start in boot.outside(claims):
        entries = np.frombuffer(image.read(start + 446, 64), ENTRY)
        size = int((entries["first"].astype(np.int64) + entries["count"]).max()) * SECTOR
        if start in known or start in hosts_at or claims.holds(start) or size < MIN_DISK:
            continue
        c = _candidate("mbr", start, size, claims, 0)
        tables = [v for v in describe(through(image, start, c.container, 0)) if v.kind == "mbr"]
        if tables and not any(start + offset in hosts_at for offset, _, _ in tables[0].partitions):
            found.append(c)
        if len(found) == MAX_MBR:
            break
    owned = assign(image, [(c.start, c.container) for c in found], places, loose=metadata)
    return [c for c, volumes in zip(found, owned, strict=True) if volumes]


def _volumes(image: Reader, table: pa.Table, claims: Claims, hosts_at: set[int]) -> Iterator[Candidate]:
    """Disks that a volume proposes, with the MBR before it where there is one."""
    first = pc.fill_null(pc.equal(table["volume_offset"], 0), False)
    volumes = _starts(table.filter(first), "volume_offset", claims)
    copied = _copied(table, hosts_at)
    of_hosts = _of_hosts(table, hosts_at)
    inside = Claims()  # volumes of the disks found so far are theirs
    for start in [*_behind_mbr(image, volumes), *volumes]:
        if start < 0 or start in hosts_at or claims.holds(start) or inside.holds(start) or start in of_hosts:
            continue
        found = describe(_from(image, start))
        if found and found[0].kind.startswith("luks"):
            continue  # a header that leaves open how much lies behind it, and may be a container's own
        size = disk_size(found)
        # in pieces a file system does not agree with itself: then copies of what begins it must vouch for it
        if not (sound(found) or found and start in copied) or size < MIN_DISK:
            continue
        parts = [start + offset for v in found for offset, _, _ in v.partitions]
        if any(p in hosts_at for p in parts):
            continue
        for p in [start, *parts]:
            inside.add_range(p, p + 1)
        yield _candidate(found[0].kind if found[0].kind in ("gpt", "mbr") else "volume", start, size, claims, 0)


def _from(image: Reader, start: int) -> FileView:
    """The image from `start` on, and as much again that is missing: a disk in pieces need not end in the image."""
    there = image.size - start
    return FileView(image, FileMap.build([(0, there, start, GUESSED, ""), (there, image.size, -1, MISSING, "")]))


def _copied(table: pa.Table, hosts_at: set[int]) -> set[int]:
    """Image offsets of what begins a volume and names it, where more on the image bears that name.

    Not where two begin so: one lies in a journal; nor what bears the name of a host.
    """
    names, places = _named(table)
    first = pc.fill_null(pc.equal(table["volume_offset"], 0), False).to_pylist()
    often = Counter(names)
    begins = Counter(name for name, one in zip(names, first, strict=True) if one)
    return {p for p, name, one in zip(places, names, first, strict=True)
            if one and name[1] is not None and often[name] > 1 and begins[name] == 1} - _of_hosts(table, hosts_at)


def _of_hosts(table: pa.Table, hosts_at: set[int]) -> set[int]:
    """Image offsets of what bears the name of a host: copies of its superblock lie in its journal, and a journal may
    have the group descriptors behind one.
    """
    names, places = _named(table)
    known = {name for name, p in zip(names, places, strict=True) if p in hosts_at and name[1] is not None}
    return {p for name, p in zip(names, places, strict=True) if name in known}


def _named(table: pa.Table) -> tuple[list[tuple[str, str | None]], list[int]]:
    """(module, identity) of each row, and its image offset."""
    names = list(zip(table["module"].to_pylist(), table["identity"].to_pylist(), strict=True))
    return names, table["image_offset"].to_pylist()


def _candidate(variant: str, start: int, size: int, claims: Claims, anchor: int) -> Candidate:
    container = Container(format="raw", variant=variant, size=size, guests=[GuestDisk(size, GuestMap.flat(size))],
                          extension="raw")
    low = max(start, 0)
    free = claims.free_of(np.array([[low, start + size - low]], np.int64))
    first = FileMap.flow(low, size - (low - start), free, "continuity")
    if low > start:
        first = FileMap.build([(0, low - start, -1, MISSING, "not-found"),
                               *((f + low - start, n, p, grade, rule) for f, n, p, grade, rule in first.rows())])
    return Candidate(start, container, first, _as_it_is(container), anchors=[anchor], flat=True)


def _as_it_is(container: Container) -> Callable[[FileMap], Container]:
    """A raw disk reads the same through every map."""
    return lambda file_map: container


def _starts(table: pa.Table, place: str, claims: Claims) -> list[int]:
    """Where disks or volumes begin as structures that nobody owns state it."""
    return sorted({p - at for p, n, at in zip(table["image_offset"].to_pylist(), table["length"].to_pylist(),
                                              table[place].to_pylist(), strict=True) if not claims.overlap(p, p + n)})


def _behind_mbr(image: Reader, volumes: list[int]) -> list[int]:
    """Disk starts whose boot sector names a volume that was found."""
    out: list[int] = []
    for volume in volumes:
        for distance in USUAL_STARTS:
            start = volume - distance
            if start > 0 and image.read(start + 510, 2) == b"\x55\xaa":
                table = describe(Window(image, start, image.size - start))
                if any(offset == distance for v in table for offset, _, _ in v.partitions):
                    out.append(start)
    return out
