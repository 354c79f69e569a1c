"""Btrfs: looking through metadata chunks for nodes of any generation, and for chunks that are gone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..model import Reader
from ._btrfs_disk import SYSTEM, Chunk, Chunks, Super, chunks_in, parse_node, sound_rows
from ._space import clipped, inverted

CHUNK_TREE = 3
PIECE = 4 << 20  # bytes of metadata read at once

Leaves = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def sound_leaves(reader: Reader, base: int, sb: Super, space: list[Chunk]) -> Iterator[Leaves]:
    """Leaves of this volume, some at a time: (uint8[n, nodesize], physical addresses int64[n]).

    base: image offset of the volume. Each physical byte is read once, as part of the first chunk that has it, from the
    chunk's first copy unless that is unreadable. A leaf counts when its checksum holds and it lies where it says.
    """
    size, done = sb.node, np.zeros((0, 2), np.int64)
    for chunk in space:
        if not chunk.copies:
            continue
        start = chunk.copies[0]
        stop = min(start + chunk.length, reader.size - base)  # a chunk may claim more than there is
        fresh = inverted(clipped(done, start, stop), start, stop)
        done = np.concatenate((done, [[start, chunk.length]]))
        for low, length in fresh.tolist():
            first, end = -(-(low - start) // size) * size, (low - start + length) // size * size
            for at in range(first, end, PIECE):
                leaves = _leaves(reader, base, sb, chunk, at, min(PIECE, end - at))
                if len(leaves[0]):
                    yield leaves


def _leaves(reader: Reader, base: int, sb: Super, chunk: Chunk, at: int, length: int) -> Leaves:
    """The sound leaves in bytes [at, at + length) of a chunk."""
    copy = next((c for c in chunk.copies if not reader.missing(base + c + at, length)), chunk.copies[0])
    data = reader.read(base + copy + at, length)
    nodes = np.frombuffer(data, np.uint8)[: len(data) // sb.node * sb.node].reshape(-1, sb.node)
    ours = (nodes[:, 32:48] == np.frombuffer(sb.node_id, np.uint8)).all(axis=1)
    logical = chunk.logical + at + np.arange(len(nodes), dtype=np.int64) * sb.node
    ours &= np.ascontiguousarray(nodes[:, 48:56]).view("<i8")[:, 0] == logical
    rows = np.flatnonzero(ours & (nodes[:, 100] == 0))
    rows = rows[sound_rows(sb.csum, nodes[rows])]
    return nodes[rows], copy + at + rows * sb.node


def with_old_chunks(reader: Reader, base: int, sb: Super, chunks: Chunks) -> tuple[Chunks, list[Chunk]]:
    """The chunk map with what old leaves of the chunk tree tell besides, and the chunks that this added.

    Logical addresses are not used twice, so that extents of old generations keep their meaning.
    """
    old: dict[int, tuple[int, Chunk]] = {}
    for nodes, _ in sound_leaves(reader, base, sb, [c for c in chunks.all if c.kind & SYSTEM]):
        for data in nodes:
            leaf = parse_node(data.tobytes())
            if leaf is None or leaf.owner != CHUNK_TREE:
                continue
            for chunk in chunks_in(leaf, sb):
                if chunk.logical not in old or old[chunk.logical][0] < leaf.generation:
                    old[chunk.logical] = leaf.generation, chunk
    newest_first = [chunk for _, chunk in sorted(old.values(), key=lambda item: -item[0])]
    return chunks.with_more(newest_first)
