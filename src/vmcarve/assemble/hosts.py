"""The host file systems of an image: found through its partition table, or at its first byte.

Where a file system cannot be opened there (wiped, encrypted over, reformatted), what the sweep found of its metadata
still gives maps: these are carved.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..model import Evidence, HostFile, HostKind, HostVolume, Reader
from ..registry import hosts
from ..tables import pc
from ..verify.guest import describe
from .state import HostView

MAX_FILES = 5_000_000  # ours: files of one volume that are looked at
MAX_CARVED_ROWS = 1_000_000  # ours: evidence rows of one host kind that carving looks at


@dataclass(slots=True)
class CarvedVolume:
    """A host file system that is known by loose pieces of its metadata only: what is free there nobody tells."""

    name: str
    offset: int
    size: int
    block_size: int = 0
    uuid: str = ""
    label: str = ""

    def free(self) -> npt.NDArray[np.int64]:
        return np.empty((0, 2), np.int64)

    def files(self) -> itertools.chain[HostFile]:
        return itertools.chain()


def open_hosts(image: Reader, evidence: pa.Table) -> tuple[list[HostView], list[str]]:
    """Every host volume of the image, and one sentence for each that could not be read to its end."""
    found: list[HostView] = []
    troubles: list[str] = []
    spans = {(0, image.size)}
    for volume in describe(image):
        spans.update((offset, size) for offset, size, _ in volume.partitions)
        if volume.kind not in ("gpt", "mbr"):
            spans.add((volume.offset, volume.size or image.size - volume.offset))
    for offset, size in sorted(spans):
        if not 0 <= offset < image.size:
            continue
        opened = _open(image, offset, min(size, image.size - offset))
        if opened is None:
            found += _carve(image, evidence, offset, min(size, image.size - offset), troubles)
            continue
        try:
            free = opened.free()
            files = list(itertools.islice(opened.files(), MAX_FILES))
        except Exception as e:  # a host that breaks our reader must not cost the sweep's finds: they stand without it
            troubles.append(f"{opened.name} at {offset:#x}: {type(e).__name__}: {e}")
            free, files = np.empty((0, 2), np.int64), list[HostFile]()
        found.append(HostView(opened, free, files))
    return found, troubles


def _open(image: Reader, offset: int, limit: int) -> HostVolume | None:
    for kind in hosts().values():
        volume = kind.open(image, offset, limit)
        if volume is not None:
            return volume
    return None


def _carve(image: Reader, evidence: pa.Table, offset: int, limit: int, troubles: list[str]) -> list[HostView]:
    found: list[HostView] = []
    for kind in hosts().values():
        if kind.carve is None:
            continue
        try:
            files = list(itertools.islice(kind.carve(image, _rows(evidence, kind), offset, limit), MAX_FILES))
        except Exception as e:  # as above: carving is an extra
            troubles.append(f"{kind.name} carved at {offset:#x}: {type(e).__name__}: {e}")
            continue
        if files:
            volume = CarvedVolume(kind.name, offset, limit)
            found.append(HostView(volume, volume.free(), files, carved=True))
    return found


def _rows(evidence: pa.Table, kind: HostKind) -> list[Evidence]:
    """The evidence that a host's module confirmed, and what guest modules of its name did."""
    kinds = pa.array(sorted({s.kind for s in kind.signatures} | {f"{kind.name}.record"}), pa.string())
    table = evidence.filter(pc.is_in(evidence["kind"], value_set=kinds)).slice(0, MAX_CARVED_ROWS)
    return [Evidence(**{k: v for k, v in r.items() if k not in ("source", "module")}) for r in table.to_pylist()]
