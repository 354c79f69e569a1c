"""ext4 extent blocks found by sweep: describing them, telling whose they are, and putting maps together from them.

An extent block's tail is CRC-32C of (file system seed, inode number, generation, block). Run backwards from the stored
value through the block it gives the state after seed, number and generation: the same key for every block of one file,
without knowing any of the three. Two files share a key by chance once in 2**32.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..blocks import Blocks
from ..model import RUN_HOLE, Evidence, EvidenceBatch, HostFile, Reader, Signature
from ._blocks import I64, U8, U32, candidates, fill_in, no_overlap, state_before_rows, sweep_runs
from ._ext_inode import (
    EXTENT,
    NO_EXTENTS,
    UNWRITTEN_FROM,
    bounded,
    entry_limit,
    header,
    index_rows,
    leaf_rows,
    plausible_extent_blocks,
    stale_rows,
)

KIND = "ext4.extent-leaf"
# blocks are multiples of 1 KiB from the volume's start, which itself may be any sector (63 on old disks)
# eh_entries and eh_max at most 5460 (64 KiB blocks), eh_depth at most 5
SIGNATURE = Signature(b"\x0a\xf3", KIND, dense=True, size=4096, also=(2, b"\0\xe0\0\xe0\xf8\xff", bytes(6)))
BLOCK_SIZES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
BY_LIMIT = {entry_limit(bs): bs for bs in BLOCK_SIZES}
OUR_MAX_EXTENT_BLOCKS = 1 << 20  # described at once: 40 MiB
OUR_MAX_GAP = 4096  # blocks: hole between neighbouring leaves of one file that only their place ties together


def confirm_batch(blocks: U8 | Blocks, image_offset: I64, signature: Signature) -> EvidenceBatch | None:
    """Extent blocks among the hits: eh_max of some block size, entries sorted and without overlap. value: eh_depth."""
    rows = Blocks.of(blocks)
    keep = plausible_extent_blocks(rows, *BLOCK_SIZES)
    if not keep.any():
        return None
    depth = rows[keep].field(6, "<u2")
    return EvidenceBatch(KIND, image_offset[keep], 1024, value=depth.astype(np.int64), confidence=0.7)


@dataclass(slots=True)
class ExtentBlocks:
    """Extent blocks, one element each: image offset, owner key, depth, logical blocks [low, high) of the used slots."""

    where: I64
    key: U32
    depth: I64
    low: I64
    high: I64
    block_size: int

    def __len__(self) -> int:
        return len(self.where)

    def take(self, chosen: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> ExtentBlocks:
        return ExtentBlocks(
            self.where[chosen], self.key[chosen], self.depth[chosen], self.low[chosen], self.high[chosen],
            self.block_size,
        )  # fmt: skip

    def groups(self) -> list[npt.NDArray[np.int64]]:
        """Indices by key; within a group by place."""
        order = np.lexsort((self.where, self.key))
        return np.split(order, np.flatnonzero(np.diff(self.key[order])) + 1) if len(order) else []


def describe(blocks: U8, where: I64, block_size: int) -> ExtentBlocks:
    """Describes extent blocks (uint8[n, block_size], already plausible)."""
    most = entry_limit(block_size)
    covered = 12 + 12 * most
    n = len(blocks)
    if n == 0:
        none = np.zeros(0, np.int64)
        return ExtentBlocks(none, none.astype(np.uint32), none, none, none, block_size)
    head = np.ascontiguousarray(blocks[:, :12]).view("<u2").astype(np.int64)
    tail = np.ascontiguousarray(blocks[:, covered : covered + 4]).view("<u4")[:, 0]
    key = state_before_rows(blocks[:, :covered], tail)
    entries = np.ascontiguousarray(blocks[:, 12:covered]).view(EXTENT).reshape(n, most)
    last = entries[np.arange(n), head[:, 1] - 1]
    length = last["length"].astype(np.int64)
    length = np.where(length > UNWRITTEN_FROM, length - UNWRITTEN_FROM, length)
    high = last["block"].astype(np.int64) + np.where(head[:, 3] == 0, length, 1)
    return ExtentBlocks(where.copy(), key, head[:, 3], entries["block"][:, 0].astype(np.int64), high, block_size)


def join(parts: list[ExtentBlocks], block_size: int) -> ExtentBlocks:
    """One table of several, in the order given."""
    if not parts:
        return describe(np.zeros((0, block_size), np.uint8), np.zeros(0, np.int64), block_size)
    return ExtentBlocks(
        np.concatenate([p.where for p in parts]), np.concatenate([p.key for p in parts]),
        np.concatenate([p.depth for p in parts]), np.concatenate([p.low for p in parts]),
        np.concatenate([p.high for p in parts]), block_size,
    )  # fmt: skip


def sweep(reader: Reader, runs: I64, block_size: int) -> ExtentBlocks:
    """Every extent block in the runs (image offset, length), both of whole blocks."""
    parts: list[ExtentBlocks] = []
    held = 0
    for at, blocks in sweep_runs(reader, runs, block_size):
        found = np.flatnonzero(plausible_extent_blocks(blocks, block_size))
        if len(found):
            parts.append(describe(blocks[found], at + found * block_size, block_size))
            held += len(found)
            if held >= OUR_MAX_EXTENT_BLOCKS:
                break
    return join(parts, block_size)


def at_places(reader: Reader, places: Sequence[int], block_size: int) -> ExtentBlocks:
    """The extent blocks at these image offsets; offsets where none lies are left out."""
    parts: list[ExtentBlocks] = []
    for i in range(0, min(len(places), OUR_MAX_EXTENT_BLOCKS), 1024):
        some = sorted(places[i : i + 1024])
        data = b"".join(reader.read(p, block_size).ljust(block_size, b"\0") for p in some)
        blocks = np.frombuffer(data, np.uint8).reshape(-1, block_size)
        found = np.flatnonzero(plausible_extent_blocks(blocks, block_size))
        parts.append(describe(blocks[found], np.array(some, np.int64)[found], block_size))
    return join(parts, block_size)


@dataclass(slots=True)
class LeafMap:
    """What a file's extent blocks say. rows: from slots in use; slack: the same with holes filled from stale slots.

    holes: rows between two neighbouring slots in use of one leaf, where the file has none: what lies between leaves
    may be in another leaf.
    """

    rows: I64
    slack: I64
    holes: I64
    complete: bool


def assemble(reader: Reader, blocks: ExtentBlocks, base: int, volume_blocks: int) -> LeafMap:
    """One file's map from its extent blocks, of whatever age.

    Where leaves contradict each other, one that an index block names wins over one that none names (a leaf that the
    file had dropped), then the fuller one.
    """
    bs, most = blocks.block_size, entry_limit(blocks.block_size)
    named: set[int] = set()
    leaves: list[tuple[int, I64, I64, I64]] = []
    complete = True
    for where in blocks.where.tolist():
        data = reader.read(where, bs)
        head = header(data, most)
        if head is None:
            complete = False
            continue
        if head.depth:
            named.update(base + child * bs for _, child in index_rows(data, head.entries))
            continue
        rows = leaf_rows(data, 0, head.entries)
        good = bounded(rows, volume_blocks)
        complete &= len(good) == len(rows)
        leaves.append((where, good, stale_rows(data, head, volume_blocks), _holes(rows)))
    if named:
        complete &= named <= set(blocks.where.tolist())
    leaves.sort(key=lambda leaf: (leaf[0] not in named, -len(leaf[1])))
    rows = _lay([leaf[1] for leaf in leaves])
    holes = _lay([rows, *(leaf[3] for leaf in leaves)])
    return LeafMap(rows, _lay([rows, *(no_overlap(leaf[2]) for leaf in leaves)]), holes[holes[:, 3] == RUN_HOLE],
                   complete)


def _holes(rows: I64) -> I64:
    """What one leaf leaves out between its extents."""
    start, end = rows[:-1, 0] + rows[:-1, 2], rows[1:, 0]
    there = end > start
    holes = np.zeros((int(there.sum()), 4), np.int64)
    holes[:, 0], holes[:, 2], holes[:, 3] = start[there], (end - start)[there], RUN_HOLE
    return holes


def _lay(parts: list[I64]) -> I64:
    """Rows of all parts; where two touch, the earlier part's row stays."""
    if not parts:
        return NO_EXTENTS
    rows = np.concatenate(parts)
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    if (rows[1:, 0] >= rows[:-1, 0] + rows[:-1, 2]).all():
        return rows
    out = parts[0]
    for part in parts[1:]:
        out = fill_in(out, part)
    return out


def by_place(reader: Reader, blocks: ExtentBlocks, base: int) -> list[npt.NDArray[np.int64]]:
    """Groups of extent blocks without checksums: children of index blocks, then leaves that continue each other."""
    bs, most = blocks.block_size, entry_limit(blocks.block_size)
    at = {w: i for i, w in enumerate(blocks.where.tolist())}
    owner = np.arange(len(blocks))
    for i in np.flatnonzero(blocks.depth > 0).tolist():
        data = reader.read(int(blocks.where[i]), bs)
        head = header(data, most)
        for low, child in index_rows(data, head.entries) if head is not None else ():
            j = at.get(base + child * bs)
            if j is not None and owner[j] == j and blocks.depth[j] == blocks.depth[i] - 1 and blocks.low[j] >= low:
                owner[j] = i
    for _ in range(8):  # depth is at most 5: every block then names its tree's top
        owner = owner[owner]
    trees: dict[int, list[int]] = {}
    for i, top in enumerate(owner.tolist()):
        trees.setdefault(top, []).append(i)
    spans = sorted((int(blocks.low[m].min()), int(blocks.high[m].max()), t) for t, m in trees.items())
    chain = {t: t for t in trees}  # tree -> the tree before it in its file
    open_ends: dict[int, list[tuple[int, int]]] = {}  # logical end -> (place, tree) that nothing continues yet
    ends: list[int] = []
    for low, high, top in spans:
        place = int(blocks.where[top])
        i = bisect.bisect_right(ends, low) - 1
        if low > 0 and i >= 0 and low - ends[i] <= OUR_MAX_GAP:
            rivals = open_ends[ends[i]]
            j = bisect.bisect_left(rivals, (place, 0))
            if j == len(rivals) or (j > 0 and place - rivals[j - 1][0] <= rivals[j][0] - place):
                j -= 1
            chain[top] = rivals.pop(j)[1]
            if not rivals:
                del open_ends[ends[i]]
                ends.pop(i)
        if high not in open_ends:
            bisect.insort(ends, high)
            open_ends[high] = []
        bisect.insort(open_ends[high], (place, top))
    files: dict[int, list[int]] = {}
    first: dict[int, int] = {}
    for _, _, top in spans:  # a predecessor begins earlier, hence is known already
        first[top] = first.get(chain[top], top)
        files.setdefault(first[top], []).extend(trees[top])
    return [np.array(sorted(members), np.int64) for members in files.values()]


def carve(reader: Reader, evidence: Sequence[Evidence], offset: int, limit: int) -> Iterator[HostFile]:
    """Maps from extent blocks alone, for a volume taken to begin at image offset `offset` and to hold `limit` bytes.

    Block numbers in the blocks count from that start, so a wrong start gives wrong places: the caller tries, and
    content decides. Extents that leave the volume are dropped and make a map incomplete.
    """
    limit = min(limit, reader.size - offset)
    places: dict[int, list[int]] = {}
    for e in evidence:
        if e.kind != KIND or not offset <= e.image_offset < offset + limit:
            continue
        bs = BY_LIMIT.get(int.from_bytes(reader.read(e.image_offset, 6)[4:6], "little"))
        if bs is not None and (e.image_offset - offset) % bs == 0:
            places.setdefault(bs, []).append(e.image_offset)
    for bs, some in sorted(places.items()):
        yield from unowned(reader, at_places(reader, some, bs), offset, limit // bs)


def unowned(reader: Reader, blocks: ExtentBlocks, base: int, volume_blocks: int) -> Iterator[HostFile]:
    """One or two HostFiles per file whose extent blocks are found and whose inode is not."""
    groups = blocks.groups()
    # keys that repeat prove that checksums are in use, and then a block alone is a file with one block
    keyed = any(len(g) > 1 for g in groups) or len(groups) == 1
    for group in groups if keyed else by_place(reader, blocks, base):
        part = blocks.take(group)
        name = f"extent key {int(part.key[0]):08x}" if keyed else f"extent block at {int(part.where[0]):#x}"
        found = assemble(reader, part, base, volume_blocks)
        complete = found.complete and keyed  # then every gap is a hole
        rows = found.rows if complete else _lay([found.rows, found.holes])
        yield from candidates(name, [(KIND, rows, complete),
                                     ("ext4.extent-slack", found.slack, False)], blocks.block_size, base)  # fmt: skip


__all__ = ["KIND", "SIGNATURE", "ExtentBlocks", "assemble", "carve", "confirm_batch", "sweep"]
