"""Disks that are files in the guests of recovered disks: a VMDK in a home folder, an OVA on a file server.

Where the sweep saw a container's structure in the data of a guest, the guest is looked through like an image, and what
its own file systems say of their files is taken. The map of such a disk is laid through the guest's: its places are
image offsets like any other's, and no better known than the guest's are. What the guest keeps compressed has no place
in the image and is missing. The bytes are given out twice, once as the outer disk's and once as the inner one's.
Memory: the evidence of one guest at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..filemap import FileMap
from ..model import GUESSED, MISSING, PARENT, PROVEN, SUPPORTED, ZERO
from ..registry import formats
from ..source import ImageSource, ViewSource
from ..sweeper import sweep_image
from ..tables import EVIDENCE, pc
from ..verify import Verified, guest_disk
from .run import assemble_image
from .state import Assembled

Int64s = npt.NDArray[np.int64]

MAX_GUESTS = 256  # ours: guests of one call that are looked through
MOST_TWICE = 4  # ours: a guest's data by the image's bytes; a hostile map gives the same ones over and over
DEPTH = 8  # ours: layers of a chain that are read through
ORDER = (PROVEN, SUPPORTED, GUESSED)


def nested(sources: Sequence[ImageSource], disks: Sequence[Verified], evidence: pa.Table) -> list[Assembled]:
    """The disks in the guests of `disks`, in their order. evidence: the sweep's, of all sources."""
    known = {d.disk_id: d for d in disks}
    begins = [_containers(evidence, index) for index in range(len(sources))]
    looked = 0
    out: list[Assembled] = []
    for d in disks:
        if d.guest.kind == "snapshot" or not d.volumes:
            continue
        data = [(r[0], r[1], r[2]) for r in d.guest_rows if r[2] is not None and r[4] == "plain"]
        size = sources[d.item.source].size
        if not _any_in(data, begins[d.item.source]) or sum(n for _, n, _ in data) > MOST_TWICE * size:
            continue
        looked += 1
        if looked > MAX_GUESTS:
            break
        out += _inside(sources, d, laid_out(d, known))
    return out


def laid_out(d: Verified, known: dict[str, Verified], depth: int = 0) -> FileMap:
    """The guest's map, through its parents: which image bytes are which guest bytes. known: by disk_id."""
    rows: list[tuple[int, int, int, str, str]] = []
    parent = None
    if d.item.parent is not None and depth < DEPTH and d.item.parent.source == d.item.source:
        above = known.get(d.item.parent.disk_id)
        parent = laid_out(above, known, depth + 1) if above is not None else None
    for g, n, p, _, encoding, _, grade, rule in d.guest_rows:
        if grade == PARENT and parent is not None:
            rows += parent.cut(g, n)
        elif p is not None and encoding == "plain":
            rows.append((g, n, p, grade, rule))
        else:
            rows.append((g, n, -1, ZERO if grade == ZERO else MISSING, rule))
    return FileMap.build(rows)


def through(outer: FileMap, inner: FileMap) -> FileMap:
    """A file's map in guest offsets, led on to the image: of two grades the lesser one."""
    rows: list[tuple[int, int, int, str, str]] = []
    for f, n, g, grade, rule in inner.rows():
        if g < 0:
            rows.append((f, n, -1, grade, rule))
            continue
        at = g
        for a, k, p, other, why in outer.cut(g, n):
            less = p < 0 or ORDER.index(other) > ORDER.index(grade)
            rows.append((f + a - g, k, p, other if less else grade, why if less else rule))
            at = a + k
        rows.append((f + at - g, g + n - at, -1, MISSING, "beyond-end"))
    return FileMap.build(rows)


def _inside(sources: Sequence[ImageSource], d: Verified, outer: FileMap) -> Iterator[Assembled]:
    view = ViewSource(guest_disk(list(sources), d.item, d.guest))
    batches: list[pa.RecordBatch] = []
    spans = [(g, n) for g, n, p, _, _ in outer.rows() if p >= 0]
    sweep_image(view, 0, batches.append, ranges=spans, threads=1)
    found, _, _ = assemble_image(view, 0, pa.Table.from_batches(batches, EVIDENCE), files_only=True)
    for item in found:
        laid = through(outer, item.map)
        if not len(laid) or laid.image_offset.max() < 0:
            continue
        item.disk_id, item.source, item.map = f"{d.disk_id}.{item.disk_id}", d.item.source, laid
        item.inside, item.host = d.disk_id, f"{d.disk_id}: {item.host}"
        if d.item.deleted is not False:
            item.deleted = True if d.item.deleted else item.deleted or None
        yield item


def _containers(evidence: pa.Table, source: int) -> Int64s:
    """Image offsets of structures of containers, rising."""
    mine = pc.and_(pc.equal(evidence["source"], pa.scalar(source, pa.int32())),
                   pc.is_in(evidence["module"], value_set=pa.array(list(formats()), pa.string())))
    return np.sort(evidence.filter(mine)["image_offset"].to_numpy())


def _any_in(data: list[tuple[int, int, int]], places: Int64s) -> bool:
    start = np.array([p for _, _, p in data], np.int64)
    end = start + np.array([n for _, n, _ in data], np.int64)
    return bool((np.searchsorted(places, end) > np.searchsorted(places, start)).any())
