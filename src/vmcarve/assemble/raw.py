"""Guest disks without a container: a partition table or file system that nothing assembled so far explains."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..filemap import FileMap
from ..model import Container, GuestDisk, GuestMap, Reader, Volume
from ..registry import guests
from ..tables import pc
from ..verify.guest import describe
from .places import Places
from .solve import Candidate, solve
from .state import Claims
from .window import Window

Int64s = npt.NDArray[np.int64]
# where first partitions begin: 1 MiB (since 2008), track 63 (before), 64 KiB (ESX)
USUAL_STARTS = (2048 * 512, 63 * 512, 128 * 512)
MIN_DISK = 64 << 10


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


def raw_disks(image: Reader, evidence: pa.Table, claims: Claims, hosts_at: set[int], places: Places, room: Int64s
              ) -> Iterator[tuple[Container, FileMap]]:
    """Disks without a container in `image`, outside `claims`, other than the image itself and its host volumes.

    The caller claims each one before the next is asked for. room int64[k, 2]: image ranges that may be theirs.
    """
    mask = pc.is_in(evidence["module"], value_set=pa.array(list(guests()), pa.string()))
    table = evidence.filter(mask)
    first = pc.fill_null(pc.equal(table["volume_offset"], 0), False)
    volumes = _starts(table.filter(first), "volume_offset", claims)
    disks = _starts(table.filter(pc.is_valid(table["guest_offset"])), "guest_offset", claims)
    found: list[Candidate] = []
    inside = Claims()  # volumes of the disks found so far are theirs
    for start in [*disks, *_behind_mbr(image, volumes), *volumes]:
        if start < 0 or start in hosts_at or claims.holds(start) or inside.holds(start):
            continue
        container = _disk_at(image, start, hosts_at)
        if container is not None:
            size = container.size
            free = claims.free_of(np.array([[start, size]], np.int64))
            found.append(Candidate(start, container, FileMap.flow(start, size, free, "continuity"), _as_it_is(container)))
            inside.add_range(start, start + 1)
            for v in describe(Window(image, start, size)):
                for offset, _, _ in v.partitions:
                    inside.add_range(start + offset, start + offset + 1)
    solve(image, found, places.outside(claims), claims.free_of(room))
    for c in sorted(found, key=lambda c: not c.settled):
        if not claims.holds(c.start):
            yield c.container, claims.rest_of(c.map, "others")


def _as_it_is(container: Container) -> Callable[[FileMap], Container]:
    """A raw disk reads the same through every map."""
    return lambda file_map: container


def _disk_at(image: Reader, start: int, hosts_at: set[int]) -> Container | None:
    """The disk that begins at `start`, as its own structures show it."""
    window = Window(image, start, image.size - start)
    found = describe(window)
    size = disk_size(found)
    if not sound(found) or not MIN_DISK <= size:
        return None
    if any(start + offset in hosts_at for v in found for offset, _, _ in v.partitions):
        return None
    variant = found[0].kind if found[0].kind in ("gpt", "mbr") else "volume"
    return Container(format="raw", variant=variant, size=size, guests=[GuestDisk(size, GuestMap.flat(size))],
                     extension="raw")


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
