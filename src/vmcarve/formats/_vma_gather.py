"""A VMA in pieces: its extents name their archive, and follow each other at places that a host block tells mod 4096.

An extent takes 512 bytes more than whole blocks, so of eight extents each begins at another sector of a host block:
that says what may follow a run of extents whose last one breaks off. Where several may, the one whose clusters go on
does (backups run through a disk in order), else the next in the image. A wrong guess moves nothing: each block's place
on the guest is stated by its own extent, and no two extents share bytes. Source: pve-qemu `vma_spec.txt`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK = 4096

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Extent:
    """One extent header in the image. span: bytes with its payload; first, last: (device, cluster)s that it names."""

    image_offset: int
    span: int
    first: tuple[int, int]
    last: tuple[int, int]


def lay_out(start: int, first: int, extents: list[Extent]) -> tuple[list[tuple[int, Extent]], int]:
    """(file offset, extent)s in file order, and the file offset behind the last one.

    start: image offset of the archive's first byte; first: file offset of the first extent.
    """
    runs: list[list[Extent]] = []
    for e in sorted(extents, key=lambda e: e.image_offset):
        if runs and runs[-1][-1].image_offset + runs[-1][-1].span == e.image_offset:
            runs[-1].append(e)
        else:
            runs.append([e])
    out: list[tuple[int, Extent]] = []
    at, last = first, Extent(start, first, (0, -1), (0, -1))
    while runs:
        fits = [r for r in runs if (r[0].image_offset - start - at) % BLOCK == 0]
        run = min(fits or runs, key=lambda r: _distance(last, r[0]))
        runs.remove(run)
        at += (run[0].image_offset - start - at) % BLOCK  # more of the file lies between: its size is not known
        for e in run:
            out.append((at, e))
            at += e.span
        last = run[-1]
    return out, at


def _distance(last: Extent, then: Extent) -> tuple[bool, int, int]:
    """How far an extent is from being the next one: by clusters, then by the image, forwards first."""
    step = then.first[1] - last.last[1]
    goes_on = then.first[0] == last.last[0] and 0 < step <= 16
    behind = then.image_offset - last.image_offset - last.span
    return not goes_on, int(behind < 0), abs(behind)
