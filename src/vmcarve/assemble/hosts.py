"""The host file systems of an image: found through its partition table, or at its first byte.

Where a file system cannot be opened there (wiped, encrypted over, reformatted), what the sweep found of its metadata
still gives maps: these are carved.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..model import Evidence, HostFile, HostKind, HostVolume, Reader
from ..registry import hosts
from ..tables import pc
from ..verify.guest import describe
from .state import HostView, inside, inverted

MAX_FILES = 5_000_000  # ours: files of one volume that are looked at
MAX_CARVED_ROWS = 1_000_000  # ours: evidence rows of one host kind that carving looks at

Int64s = npt.NDArray[np.int64]


@dataclass(slots=True)
class Spot:
    """Where a host file system begins, or should: its partition, or the whole image.

    volume: None where none can be opened. free int64[n, 2] (image_offset, length): what it holds free; None where
    nobody can tell. former: volumes that were there before, by copies of their superblocks.
    """

    offset: int
    limit: int
    volume: HostVolume | None = None
    free: Int64s | None = None
    former: list[HostVolume] = field(default_factory=list["HostVolume"])

    @property
    def end(self) -> int:
        """Behind the last byte that the file system has."""
        size = self.limit if self.volume is None else self.volume.size
        return self.offset + min(size, self.limit)


@dataclass(slots=True)
class CarvedVolume:
    """A host file system that is known by loose pieces of its metadata only: what is free there nobody tells."""

    name: str
    offset: int
    size: int
    block_size: int = 0
    uuid: str = ""
    label: str = ""
    derived: bool = False

    def free(self) -> Int64s:
        return np.empty((0, 2), np.int64)

    def files(self) -> itertools.chain[HostFile]:
        return itertools.chain()

    def live(self) -> itertools.chain[HostFile]:
        return itertools.chain()

    def quiet_since(self) -> float:
        return math.inf


def find_hosts(image: Reader) -> tuple[list[Spot], list[str]]:
    """Every place of a host volume in the image, and one sentence for each whose free space could not be read."""
    spans = {(0, image.size)}
    for volume in describe(image):
        spans.update((offset, size) for offset, size, _ in volume.partitions)
        if volume.kind not in ("gpt", "mbr"):
            spans.add((volume.offset, volume.size or image.size - volume.offset))
    found: list[Spot] = []
    troubles: list[str] = []
    for offset, size in sorted(spans):
        if not 0 <= offset < image.size:
            continue
        spot = Spot(offset, min(size, image.size - offset))
        spot.volume = _open(image, spot.offset, spot.limit)
        if spot.volume is not None:
            try:
                spot.free = spot.volume.free()
            except Exception as e:  # a host that breaks our reader must not cost the sweep's finds: they stand alone
                troubles.append(f"{spot.volume.name} at {offset:#x}: {type(e).__name__}: {e}")
        known = spot.volume.uuid if spot.volume is not None else ""
        former = [k.former(image, spot.offset, spot.limit) for k in hosts().values() if k.former is not None]
        spot.former = [v for v in former if v is not None and v.uuid != known]
        found.append(spot)
    return found, troubles


def unallocated(size: int, spots: list[Spot]) -> Int64s:
    """What no host holds of an image of `size` bytes: int64[n, 2], rising, merged.

    That is the free space of its volumes, and all that lies outside a volume that can be opened.
    """
    return inverted(_held(spots), size)


def _held(spots: list[Spot]) -> Int64s:
    """What the file systems hold, overlapping where their volumes do: int64[n, 2]."""
    parts = [np.empty((0, 2), np.int64)]
    for spot in spots:
        if spot.free is None:
            continue
        low = np.maximum(spot.free[:, 0], spot.offset)
        high = np.minimum(spot.free.sum(axis=1), spot.end)
        free = np.stack((low - spot.offset, high - low), axis=1)[high > low]
        held = inverted(free, spot.end - spot.offset)
        held[:, 0] += spot.offset
        parts.append(held)
    return np.concatenate(parts)


def read_hosts(image: Reader, spots: list[Spot], evidence: pa.Table) -> tuple[list[HostView], list[str]]:
    """The files of every volume, and one sentence for each that could not be read to its end."""
    found: list[HostView] = []
    troubles: list[str] = []
    nobodys = unallocated(image.size, spots)
    for spot in spots:
        for volume in spot.former:
            found += _read_former(volume, troubles)
        if spot.volume is None or spot.free is not None:
            found += _carve(image, evidence, spot, nobodys, troubles)
        if spot.volume is None:
            continue
        _tell(spot.volume, evidence)
        files: list[HostFile] = []
        if spot.free is not None:
            try:
                files = list(itertools.islice(spot.volume.files(), MAX_FILES))
            except Exception as e:  # as above
                troubles.append(f"{spot.volume.name} at {spot.offset:#x}: {type(e).__name__}: {e}")
        found.append(HostView(spot.volume, np.empty((0, 2), np.int64) if spot.free is None else spot.free, files))
    return found, troubles


def _tell(volume: HostVolume, evidence: pa.Table) -> None:
    """What the sweep found of a host's kind need not be looked for again when its deleted files are asked for."""
    for kind in hosts().values():
        if kind.tell is None:
            continue
        rows = evidence.filter(pc.equal(evidence["kind"], kind.signatures[0].kind))
        start, length, count = (rows[c].to_numpy().astype(np.int64) for c in ("image_offset", "length", "count"))
        number = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)  # in its row
        kind.tell(volume, np.repeat(start, count) + number * np.repeat(length // np.maximum(count, 1), count))


def _open(image: Reader, offset: int, limit: int) -> HostVolume | None:
    for kind in hosts().values():
        volume = kind.open(image, offset, limit)
        if volume is not None:
            return volume
    return None


def _read_former(volume: HostVolume, troubles: list[str]) -> list[HostView]:
    """All files of a volume that is no more. What its journal says ends where the new one begins."""
    try:
        files = list(itertools.islice(volume.files(), MAX_FILES))
    except Exception as e:  # as above
        troubles.append(f"former {volume.name} at {volume.offset:#x}: {type(e).__name__}: {e}")
        return []
    for file in files:
        file.deleted, file.settled = True, False
    return [HostView(volume, np.empty((0, 2), np.int64), files, carved=True, former=True)] if files else []


def _carve(image: Reader, evidence: pa.Table, spot: Spot, nobodys: Int64s, troubles: list[str]) -> list[HostView]:
    """Volumes by loose metadata: of any kind where none can be opened, else such as was there before that one.

    Only what lies in `nobodys` space counts: what a partition's file system holds is its own, and read from the
    place where the whole disk begins it would put every file 1 MiB off. Where a volume is open, what has its identity
    does not count either: a host looks through its own free space itself.
    """
    found: list[HostView] = []
    for kind in hosts().values():
        if kind.carve is None:
            continue
        rows = [r for r in _rows(evidence, kind) if inside(nobodys, r.image_offset)]
        if spot.volume is not None and spot.free is not None:
            known = spot.volume.uuid.replace("-", "")
            rows = [r for r in rows if inside(spot.free, r.image_offset)
                    and (r.identity or "").replace("-", "") != known]
        try:
            files = list(itertools.islice(kind.carve(image, rows, spot.offset, spot.limit), MAX_FILES))
        except Exception as e:  # carving is an extra
            troubles.append(f"{kind.name} carved at {spot.offset:#x}: {type(e).__name__}: {e}")
            continue
        if files:
            volume = CarvedVolume(kind.name, spot.offset, spot.limit)
            found.append(HostView(volume, volume.free(), files, carved=True))
    return found


def _rows(evidence: pa.Table, kind: HostKind) -> list[Evidence]:
    """The evidence that a host's module confirmed, and what guest modules of its name did."""
    own = {s.kind for s in kind.signatures} | {f"{kind.name}.record", f"{kind.name}.inode"}
    kinds = pa.array(sorted(own), pa.string())
    table = evidence.filter(pc.is_in(evidence["kind"], value_set=kinds)).slice(0, MAX_CARVED_ROWS)
    return [Evidence(**{k: v for k, v in r.items() if k not in ("source", "module")}) for r in table.to_pylist()]
