"""The host file systems of an image: found through its partition table, or at its first byte."""

from __future__ import annotations

import itertools

import numpy as np

from ..model import HostFile, HostVolume, Reader
from ..registry import hosts
from ..verify.guest import describe
from .state import HostView

MAX_FILES = 5_000_000  # ours: files of one volume that are looked at


def open_hosts(image: Reader) -> tuple[list[HostView], list[str]]:
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
