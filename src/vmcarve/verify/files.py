"""The files inside a guest disk, by the same parsers that read host file systems."""

from __future__ import annotations

from collections.abc import Iterator

from ..model import Reader
from ..registry import hosts
from .guest import describe


def list_files(disk: Reader) -> Iterator[tuple[str, int]]:
    """(path, size in bytes) of live regular files, volume after volume; `pN:` before the path names the volume."""
    spans: list[tuple[int, int]] = []
    for volume in describe(disk):
        if volume.partitions:
            spans += [(offset, size) for offset, size, _ in volume.partitions]
        elif volume.kind not in ("gpt", "mbr"):
            spans.append((volume.offset, volume.size))
    for n, (offset, size) in enumerate(sorted(set(spans)), 1):
        for kind in hosts().values():
            volume = kind.open(disk, offset, min(size, disk.size - offset))
            if volume is None:
                continue
            for file in volume.files():
                if file.deleted:
                    break
                yield f"p{n}:{file.name}", file.size
            break
