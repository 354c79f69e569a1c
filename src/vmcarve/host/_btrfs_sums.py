"""Btrfs: what deleted files hold, tested against checksums of data that old leaves of the checksum tree still tell.

Every sector of data has its checksum in that tree, by logical address, put there in the generation in which the extent
was made. A leaf of a later generation may speak of the address's next owner: its checksum convicts what does not agree
(somebody wrote there), and acquits nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..checksums import crc32c_rows
from ..model import RUN_CHECKED, RUN_DATA, RUN_REUSED, Reader
from ._btrfs_disk import CRC32C, HEADER_BYTES, Chunk, Chunks, Super, checksum, parse_node
from ._btrfs_scan import sound_leaves
from ._space import Runs, equal_runs

SUM_TREE, EXTENT_SUM = 7, 128
LENGTH = {CRC32C: 4, 1: 8, 2: 32, 3: 32}  # bytes of one checksum by csum_type
OUR_MAX_ITEMS = 1 << 20  # items of checksums that we remember (40 bytes each)
PIECE = 4 << 20  # bytes of data tested at once


@dataclass(slots=True)
class Piece:
    """A part of a file as a leaf of generation `seen` told it. made: the generation of the extent."""

    file_offset: int
    logical: int
    length: int
    made: int
    seen: int


@dataclass(slots=True)
class _Items:
    """Items of the checksum tree, rising in generation: int64[n] each. at: image offset of the first checksum."""

    start: Runs
    end: Runs
    generation: Runs
    at: Runs


@dataclass(slots=True)
class Sums:
    """The checksums of one volume, looked for when first asked. base: image offset of the volume."""

    reader: Reader
    base: int
    sb: Super
    chunks: Chunks
    space: list[Chunk]
    _items: _Items | None = field(default=None)

    def tested(self, pieces: list[Piece]) -> Runs:
        """HostFile rows of data pieces: RUN_CHECKED, RUN_REUSED where a checksum speaks against, else RUN_DATA."""
        rows = [row for piece in pieces for row in self._tested(piece)]
        return np.array(rows, np.int64).reshape(-1, 4)

    def _tested(self, piece: Piece) -> list[tuple[int, int, int, int]]:
        whole = np.array([[piece.file_offset, piece.logical, piece.length]], np.int64)
        out: list[tuple[int, int, int, int]] = []
        size = self.sb.sector
        for f, physical, length in self.chunks.split(whole)[0].tolist():
            logical = piece.logical + f - piece.file_offset
            if logical % size or length % size:
                out.append((f, self.base + physical, length, RUN_DATA))
                continue
            for at in range(0, length, PIECE):
                kinds = self._kinds(logical + at, self.base + physical + at, min(PIECE, length - at) // size, piece)
                for kind in (RUN_DATA, RUN_CHECKED, RUN_REUSED):
                    out += [(f + at + k * size, self.base + physical + at + k * size, n * size, kind)
                            for k, n in equal_runs(kinds == kind).tolist()]  # fmt: skip
        return out

    def _kinds(self, logical: int, image_offset: int, count: int, piece: Piece) -> npt.NDArray[np.int64]:
        """What each of `count` sectors is."""
        kinds = np.full(count, RUN_DATA, np.int64)
        told = np.zeros(count, np.bool_)
        size, width = self.sb.sector, LENGTH[self.sb.csum]
        items = self._found()
        near = np.flatnonzero((items.start < logical + count * size) & (items.end > logical)
                              & (items.generation >= piece.made))  # fmt: skip
        if not len(near):
            return kinds
        data = self.reader.read(image_offset, count * size)
        there = len(data) // size
        sums = self._sums(np.frombuffer(data, np.uint8)[: there * size].reshape(there, size))
        for i in near.tolist():  # the oldest that knows the extent first
            low = max(int(items.start[i]), logical)
            k = (low - logical) // size
            n = min((min(int(items.end[i]), logical + count * size) - low) // size, there - k)
            if n <= 0 or told[k : k + n].all():
                continue
            at = int(items.at[i]) + (low - int(items.start[i])) // size * width
            stated = np.frombuffer(self.reader.read(at, n * width).ljust(n * width, b"\0"), np.uint8).reshape(n, width)
            equal = (stated == sums[k : k + n]).all(axis=1)
            own = RUN_CHECKED if int(items.generation[i]) <= piece.seen else RUN_DATA
            fresh = ~told[k : k + n]
            kinds[k : k + n][fresh] = np.where(equal, own, RUN_REUSED)[fresh]
            told[k : k + n] = True
        return kinds

    def _sums(self, sectors: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The checksum of each sector, uint8[n, its length]."""
        if self.sb.csum == CRC32C:
            return crc32c_rows(sectors).astype("<u4").view(np.uint8).reshape(-1, 4)
        width = LENGTH[self.sb.csum]
        data = b"".join(checksum(self.sb.csum, row.tobytes())[:width] for row in sectors)
        return np.frombuffer(data, np.uint8).reshape(-1, width)

    def _found(self) -> _Items:
        if self._items is not None:
            return self._items
        parts: list[Runs] = [np.zeros((0, 4), np.int64)]
        held = 0
        width = LENGTH[self.sb.csum]
        for nodes, places in sound_leaves(self.reader, self.base, self.sb, self.space):
            for data, place in zip(nodes, places.tolist(), strict=True):
                leaf = parse_node(data.tobytes())
                if leaf is None or leaf.owner != SUM_TREE or held > OUR_MAX_ITEMS:
                    continue
                items = leaf.items[(leaf.items["type"] == EXTENT_SUM) & (leaf.items["offset"] < 1 << 62)]
                start = items["offset"].astype(np.int64)
                where = items["at"].astype(np.int64) + HEADER_BYTES
                fits = where + items["size"] <= self.sb.node
                sectors = items["size"].astype(np.int64) // width
                rows = np.stack((start, start + sectors * self.sb.sector, np.full(len(start), leaf.generation),
                                 self.base + place + where), axis=1)[fits & (sectors > 0)]  # fmt: skip
                parts.append(rows.astype(np.int64))
                held += len(rows)
        rows = np.concatenate(parts)
        rows = rows[np.argsort(rows[:, 2], kind="stable")]
        self._items = _Items(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3])
        return self._items
