"""What assembling knows of one image while it works, and what it hands on."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..filemap import FileMap, FileView
from ..model import MISSING, Container, HostFile, HostVolume, Member, Reader


def inverted(runs: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """What [0, size) has outside `runs` (int64[n, 2] of offset, length, in any order): the same, rising, merged."""
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    end = np.maximum.accumulate(np.concatenate(([0], np.minimum(runs.sum(axis=1), size))))
    start = np.concatenate((np.clip(runs[:, 0], 0, size), [size]))
    gap = start > end
    return np.stack((end[gap], start[gap] - end[gap]), axis=1)


def common_runs(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What two sets of runs int64[n, 2] (offset, length; rising, disjoint) have in common: the same."""
    first = np.searchsorted(b.sum(axis=1), a[:, 0], side="right")
    last = np.searchsorted(b[:, 0], a.sum(axis=1), side="left")
    count = np.maximum(last - first, 0)
    i = np.repeat(np.arange(len(a)), count)
    j = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    low = np.maximum(a[i, 0], b[j, 0])
    return np.stack((low, np.minimum(a[i].sum(axis=1), b[j].sum(axis=1)) - low), axis=1)


@dataclass(slots=True)
class Assembled:
    """One container with its place in the image. `map` covers [0, container.size).

    inside: disk_id of the disk in whose guest it is a file.
    """

    disk_id: str
    source: int
    container: Container
    map: FileMap
    deleted: bool | None = None
    names: list[str] = field(default_factory=list[str])
    host: str | None = None
    parent: Assembled | None = None
    members: list[Joined] = field(default_factory=list["Joined"])
    inside: str | None = None

    def view(self, image: Reader) -> FileView:
        """The container's bytes as they will be written, patches included."""
        return FileView(image, self.map, [(p.file_offset, p.data) for p in self.container.patches])

    @property
    def header_offset(self) -> int | None:
        """Image offset of the first container byte, None when it was not found."""
        return int(self.map.image_offset[0]) if len(self.map) and self.map.image_offset[0] >= 0 else None


@dataclass(frozen=True, slots=True)
class Joined:
    """A file that a container refers to, and the assembled disk that it is."""

    member: Member
    item: Assembled


class Claims:
    """Image ranges that an accepted container owns. No byte of the image is given twice."""

    def __init__(self) -> None:
        self._start: list[int] = []
        self._end: list[int] = []

    def add(self, file_map: FileMap) -> None:
        """Claims the image bytes of a map."""
        for _, n, p, _, _ in file_map.rows():
            if p >= 0:
                self.add_range(p, p + n)

    def holds(self, image_offset: int) -> bool:
        """Whether the byte is claimed."""
        i = bisect.bisect_right(self._start, image_offset) - 1
        return i >= 0 and self._end[i] > image_offset

    def overlap(self, start: int, end: int) -> int:
        """Claimed bytes in [start, end)."""
        i = max(0, bisect.bisect_right(self._start, start) - 1)
        total = 0
        while i < len(self._start) and self._start[i] < end:
            total += max(0, min(end, self._end[i]) - max(start, self._start[i]))
            i += 1
        return total

    def free_of(self, runs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The parts of runs int64[n, 2] (offset, length, rising) that nobody claims."""
        out: list[tuple[int, int]] = []
        for start, length in runs.tolist():
            at, end = start, start + length
            i = max(0, bisect.bisect_right(self._start, at) - 1)
            while at < end:
                while i < len(self._start) and self._end[i] <= at:
                    i += 1
                if i >= len(self._start) or self._start[i] >= end:
                    out.append((at, end - at))
                    break
                if self._start[i] > at:
                    out.append((at, self._start[i] - at))
                at = self._end[i]
        return np.array(out, np.int64).reshape(-1, 2)

    def rest_of(self, file_map: FileMap, rule: str) -> FileMap:
        """A map without what is claimed: those parts are missing, for the reason `rule`."""
        return FileMap.build((f, n, -1 if claimed else p, MISSING if claimed else grade, rule if claimed else why)
                             for (f, n, p, grade, why), claimed in self._parted(file_map))

    def regraded(self, file_map: FileMap, grade: str, rule: str) -> FileMap:
        """A map of which the claimed parts have another grade, for the reason `rule`."""
        return FileMap.build((f, n, p, grade if claimed else old, rule if claimed else why)
                             for (f, n, p, old, why), claimed in self._parted(file_map))

    def _parted(self, file_map: FileMap) -> Iterator[tuple[tuple[int, int, int, str, str], bool]]:
        """The rows of a map, cut where claims begin and end, and whether each is claimed."""
        for f, n, p, grade, why in file_map.rows():
            if p < 0:
                yield (f, n, p, grade, why), False
                continue
            at, end = p, p + n
            i = max(0, bisect.bisect_right(self._start, p) - 1)
            while at < end:
                while i < len(self._start) and self._end[i] <= at:
                    i += 1
                low = min(self._start[i], end) if i < len(self._start) else end
                if low > at:
                    yield (f + at - p, low - at, at, grade, why), False
                    at = low
                if at < end:
                    upto = min(self._end[i], end)
                    yield (f + at - p, upto - at, at, grade, why), True
                    at = upto

    def with_runs(self, runs: npt.NDArray[np.int64], size: int) -> Claims:
        """These claims and runs int64[n, 2] (offset, length) of an image of `size` bytes."""
        own = np.array([self._start, np.array(self._end, np.int64) - self._start], np.int64).T.reshape(-1, 2)
        both = inverted(inverted(np.concatenate((own, runs)), size), size)
        out = Claims()
        out._start, out._end = both[:, 0].tolist(), both.sum(axis=1).tolist()
        return out

    def ranges(self) -> list[tuple[int, int]]:
        """(start, end) of what is claimed, rising."""
        return list(zip(self._start, self._end, strict=True))

    def add_range(self, start: int, end: int) -> None:
        """Claims [start, end)."""
        i = bisect.bisect_left(self._start, start)
        if i > 0 and self._end[i - 1] >= start:
            i -= 1
            start = self._start[i]
        j = i
        while j < len(self._start) and self._start[j] <= end:
            end = max(end, self._end[j])
            j += 1
        self._start[i:j] = [start]
        self._end[i:j] = [end]


@dataclass(slots=True)
class HostView:
    """One host file system of the image with what it says of its space and files."""

    volume: HostVolume
    free: npt.NDArray[np.int64]
    files: list[HostFile]
    carved: bool = False  # known by what is left of it only: nothing tells live from deleted, or free from used
    former: bool = False  # carved, by a copy of its superblock, where another file system was made since

    @property
    def label(self) -> str:
        how = " (former)" if self.former else " (carved)" if self.carved else ""
        return f"{self.volume.name}{how} at {self.volume.offset:#x}"


class State:
    """The claims so far and the disks accepted, with stable ids.

    free, held int64[n, 2]: what no host of the image holds, and what its hosts hold; None where no host tells.
    """

    def __init__(self, image: Reader, source: int, views: list[HostView],
                 free: npt.NDArray[np.int64] | None = None) -> None:
        self.image = image
        self.source = source
        self.views = views
        self.claims = Claims()
        self.done: list[Assembled] = []
        self.free = free
        self.held = None if free is None else inverted(free, image.size)
        self._ids: set[str] = set()

    def accept(self, container: Container, file_map: FileMap, *, deleted: bool | None, host: str | None,
               names: Sequence[str] = ()) -> None:
        """Takes a disk and claims its bytes."""
        if container.guests:  # an archive leaves its bytes to the disks inside it
            self.claims.add(file_map)
        first = next((p for _, _, p, _, _ in file_map.rows() if p >= 0), 0)
        base = f"{container.format}-{first:x}" if self.source == 0 else f"{container.format}-{self.source}-{first:x}"
        disk_id, n = base, 2
        while disk_id in self._ids:
            disk_id, n = f"{base}-{n}", n + 1
        self._ids.add(disk_id)
        all_names = list(dict.fromkeys([*(n for n in names if n), *container.names]))
        self.done.append(Assembled(disk_id, self.source, container, file_map, deleted, all_names, host))

    def taken(self, file_map: FileMap) -> bool:
        """Whether somebody owns a byte that the map would claim."""
        return any(p >= 0 and self.claims.overlap(p, p + n) for _, n, p, _, _ in file_map.rows())

    def deleted_at(self, file_map: FileMap) -> bool | None:
        """Whether a container without a host file is deleted: where its first byte is held by a host, it is live.

        None when that lies where no host tells.
        """
        p = int(file_map.image_offset[0]) if len(file_map) else -1
        if p < 0 or self.free is None:
            return None
        if not inside(self.free, p):
            return False
        return True if any(_tells(v) and v.volume.offset <= p < v.volume.offset + v.volume.size
                           for v in self.views) else None


def inside(runs: npt.NDArray[np.int64], at: int) -> bool:
    """Whether `at` lies in one of runs int64[n, 2] (offset, length; rising, merged)."""
    i = int(np.searchsorted(runs[:, 0], at, side="right")) - 1
    return i >= 0 and at < int(runs[i].sum())


def _tells(view: HostView) -> bool:
    return not view.carved and len(view.free) > 0
