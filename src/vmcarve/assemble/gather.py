"""What a round of the solver has to go by: points of all containers, and what is expected of each block of a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import DATA, PLAIN
from .align import FREE, UNKNOWN, USED
from .breaks import Expectation
from .candidate import Candidate, Metadata
from .content import Content
from .loose import stated_of_several
from .segments import BLOCK, Points
from .tails import PAGE_SECTORS, SECTOR, SectorEnds, to_file

Int64s = npt.NDArray[np.int64]
MAX_RIVALS = 64  # ours: places of one file end beyond which it says nothing
MAX_END_BITS = 14.0
PIN_BITS = 40.0  # a structure that states its own place


@dataclass(frozen=True, slots=True)
class RoundEvidence:
    """What a round has: points of all containers, file blocks that tell and expectations by container; blocks: of the
    image with data. key: of all this and of what each container is: equal evidence gives equal maps.
    """

    points: Points
    wanted: dict[int, Int64s]
    expectations: dict[int, Expectation]
    blocks: int
    key: bytes


def gather(active: list[Candidate], looks: dict[int, SectorEnds], content: Content) -> RoundEvidence:
    """The evidence of all candidates, from their pins, loose metadata, file ends and content."""
    shared = stated_of_several([m.image_offset for c in active for m in c.metadata.values()
                                if m.image_offset is not None])
    parts: list[tuple[int, Int64s, Int64s, npt.NDArray[np.float64]]] = []
    wanted: dict[int, Int64s] = {}
    for o, c in enumerate(active):
        if c.nested:
            continue
        pinned = np.array([(f // BLOCK, (p - f - c.start) // BLOCK) for f, p in c.pins], np.int64).reshape(-1, 2)
        parts.append((o, pinned[:, 0], pinned[:, 1], np.full(len(pinned), PIN_BITS)))
        parts += [(o, *of_metadata(c, g, m, shared)) for g, m in c.metadata.items()]
        f, delta, bits, told = _matches(c, looks[c.start % SECTOR])
        parts.append((o, f, delta, bits))
        found = content.points(o)
        parts += [(o, t.file_block, t.delta, t.bits) for t in found]
        wanted[o] = np.unique(np.concatenate([told // BLOCK, *(t.passed for t in found)]))
    points = Points.of(parts)
    expectations = {o: expected(c) for o, c in enumerate(active)}
    digest = hashlib.blake2b(digest_size=16)
    for array in (points.owner, points.file_block, points.delta, points.bits, *wanted.values(),
                  *(a for c in active for a in (c.open_ends.at, c.open_ends.goes_on)),
                  *(a for e in expectations.values() for a in (e.use, e.ends.file_offset, e.ends.begins))):
        digest.update(array.tobytes())
    digest.update(repr([(c.container.size, c.nested, c.tables) for c in active]).encode())
    blocks = max((s.blocks for s in looks.values()), default=2)
    return RoundEvidence(points, wanted, expectations, blocks, digest.digest())


def expected(c: Candidate) -> Expectation:
    """expect(c), or what that was while the guest read the same."""
    if c.read is None or c.expected is None or c.expected[0] is not c.read or c.expected[1] is not c.container:
        c.expected = c.read, c.container, expect(c)
    return c.expected[2]


def expect(c: Candidate) -> Expectation:
    """What each file block should be, from the guest's own allocation maps."""
    guest_map = c.container.guests[0].map
    n = -(-c.container.size // BLOCK)
    out = np.full(n, FREE, np.uint8)  # file bytes that nothing names are padding
    plain = (guest_map.state == DATA) & (guest_map.encoding == PLAIN)
    # what is stored by blocks was written, whether the guest needs it still or not; larger units have zeros around it
    by_blocks = 0 < c.container.cluster <= BLOCK and not c.flat
    used: list[tuple[int, int, int]] = []  # guest ranges with their class
    opened = {v.offset: v for v in c.volumes}
    for offset, length in _spans(c):
        volume = opened.get(offset)
        free = volume.free() if volume is not None else np.empty((0, 2), np.int64)
        if volume is None or len(free) == 0 or int(free[0, 0]) <= offset:  # its first block free: no bitmap of it
            between = bool(c.owned) and all(offset != o.guest_offset for o in c.owned)
            table = min(length, BLOCK) if between and offset == 0 else 0  # of the partitions: it is there
            used += [(offset, table, USED), (offset + table, length - table,
                                             FREE if between and c.flat and offset > 0 else UNKNOWN)]
            continue
        at = offset
        for start, size in free.tolist():
            used += [(at, start - at, USED), (start, size, FREE)]
            at = start + size
        used.append((at, offset + volume.size - at, USED))
    spans = np.array([(a, a + k, cls) for a, k, cls in used if k > 0], np.int64).reshape(-1, 3)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    for g, length, f in zip(guest_map.guest_offset[plain].tolist(), guest_map.length[plain].tolist(),
                            guest_map.file_offset[plain].tolist(), strict=True):
        i = max(0, int(np.searchsorted(spans[:, 0], g, side="right")) - 1)
        while i < len(spans) and spans[i, 0] < g + length:
            low, high, cls = max(g, int(spans[i, 0])), min(g + length, int(spans[i, 1])), int(spans[i, 2])
            if cls == FREE and by_blocks:
                cls = USED
            i += 1
            if low >= high:
                continue
            a, b = f + low - g, f + high - g
            if cls == FREE:  # a block counts as free only when all of it is
                out[-(-a // BLOCK) : b // BLOCK] = FREE
            else:
                out[a // BLOCK : -(-b // BLOCK)] = cls
    for _, _, g, length in c.files.run[c.files.run[:, 0] >= c.listed].tolist():  # of deleted files: may be there still
        f = to_file(guest_map, np.array([g, g + length - 1], np.int64)).tolist()
        if f[0] >= 0 and f[1] - f[0] == length - 1:
            part = out[f[0] // BLOCK : -(-(f[1] + 1) // BLOCK)]
            part[part == FREE] = UNKNOWN
    for region in c.container.regions:
        a, b = region.file_offset, region.file_offset + region.length
        block = out[a // BLOCK : -(-b // BLOCK)]
        block[block == FREE] = UNKNOWN
    if n:
        out[0] = USED
    order = np.flatnonzero(plain)[np.argsort(guest_map.file_offset[plain], kind="stable")]
    begin, length = guest_map.guest_offset[order], guest_map.length[order]
    goes_on = np.zeros(len(order), bool)  # none where the tables, as they are read now, tell of no data
    goes_on[1:] = (begin[1:] == begin[:-1] + length[:-1]) & (np.diff(guest_map.file_offset[order]) == length[:-1])
    jumps = guest_map.file_offset[order[~goes_on]]
    return Expectation(out, c.ends, np.concatenate(([0], np.cumsum(out == FREE))), jumps)


def _spans(c: Candidate) -> list[tuple[int, int]]:
    """(guest_offset, length) of the parts of the disk: its volumes, and what lies between them."""
    out, at = list[tuple[int, int]](), 0
    for o in sorted(c.owned, key=lambda o: o.guest_offset):
        out += [(at, o.guest_offset - at), (o.guest_offset, o.size)]
        at = o.guest_offset + o.size
    return [s for s in [*out, (at, c.container.virtual_size - at)] if s[1] > 0]


def of_metadata(c: Candidate, guest_offset: int, m: Metadata, shared: Int64s
                 ) -> tuple[Int64s, Int64s, npt.NDArray[np.float64]]:
    """(file block, delta, bits) of the loose metadata of one volume, one point for a block of each.

    shared: image blocks, rising, with metadata that several volumes may have.
    """
    nothing = np.empty(0, np.int64)
    if m.image_offset is None or m.volume_offset is None:
        return nothing, nothing, np.empty(0)
    blocks = max(1, m.placer.length // BLOCK)
    inside = np.tile(np.arange(blocks) * BLOCK, len(m.image_offset))
    f = to_file(c.container.guests[0].map, guest_offset + np.repeat(m.volume_offset, blocks) + inside)
    p = np.repeat(m.image_offset, blocks) + inside
    step = p - f - c.start
    keep = (f >= 0) & (step % BLOCK == 0)
    points, at = np.unique(np.stack((f[keep] // BLOCK, step[keep] // BLOCK), axis=1), axis=0, return_index=True)
    bits = np.full(len(points), m.placer.bits / blocks)
    if m.alone:
        _, which, rivals = np.unique(points[:, 0], return_inverse=True, return_counts=True)
        bits[(rivals[which] == 1) & ~np.isin(p[keep][at] // BLOCK, shared)] = PIN_BITS
    return points[:, 0], points[:, 1], bits


def _matches(c: Candidate, seen: SectorEnds) -> tuple[Int64s, Int64s,
                                                      npt.NDArray[np.float64], Int64s]:
    """(file block, delta, bits) of every place where a file end of the guest may lie, and the file ends that tell."""
    ends = c.ends
    nothing = np.empty(0, np.int64)
    if len(ends) == 0 or len(seen.sector) == 0:
        return nothing, nothing, np.empty(0), nothing
    sector = ends.file_offset // SECTOR
    shift = (c.start - seen.phase) // SECTOR  # of the container's first byte, in sectors of the look
    key = (ends.file_offset % SECTOR) * PAGE_SECTORS + (sector + shift) % PAGE_SECTORS
    keys = seen.tail.astype(np.int64) * PAGE_SECTORS + seen.sector % PAGE_SECTORS
    order = np.argsort(keys, kind="stable")
    low, high = np.searchsorted(keys[order], key), np.searchsorted(keys[order], key, side="right")
    count = high - low
    few = count <= MAX_RIVALS * 4
    which = np.repeat(np.flatnonzero(few), count[few])
    first = np.cumsum(count[few]) - count[few]
    index = order[np.arange(len(which)) - np.repeat(first, count[few]) + np.repeat(low[few], count[few])]
    fits = seen.empty[index] >= ends.empty[which]
    which, index = which[fits], index[fits]
    rivals = np.bincount(which, minlength=len(ends))
    keep = rivals[which] <= MAX_RIVALS
    which, index = which[keep], index[keep]
    bits = np.clip(np.log2(max(seen.blocks, 2) / np.maximum(rivals, 1)), 0.0, MAX_END_BITS)
    delta = (seen.sector[index] - sector[which] - shift) // PAGE_SECTORS
    return sector[which] // PAGE_SECTORS, delta, bits[which], ends.file_offset[few]
