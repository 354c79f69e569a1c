"""A VDI without its header: the map, a permutation of the blocks' numbers, lies before them as its writer places it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..model import GUESSED, SECTOR, Clue, Container, Orphan, Patch, Reader, Stowed, TablePieces
from ._rebuilt import Laid, opened, orphan
from ._shapes import I64, Numbers, distinct, padding, pieces, rows_of
from ._stowed import in_row

BLOCK = 1 << 20  # of every known writer's default
FREE, ZERO = 0xFFFF_FFFF, 0xFFFF_FFFE
MAX_BLOCKS = 1 << 24
MOST_BEHIND = 2 * BLOCK  # bytes between a map and its blocks in no known layout: one that made room for a longer map
NUMBERS = Numbers(ranges=((0, MAX_BLOCKS - 1), (ZERO, FREE)))
ROWS = (NUMBERS.rule("<u4"),)
# (map, alignment of what follows): QEMU (seen), VirtualBox (VDI.cpp)
LAYOUTS = ((SECTOR, SECTOR), (BLOCK, BLOCK), (SECTOR, BLOCK), (4096, 4096))


def shapes(blocks: npt.NDArray[np.uint8], image_offset: I64) -> Iterable[TablePieces]:
    """Sectors of block maps: numbers of blocks, all different, and the two marks for none. They count from block 0."""
    words, where = rows_of(blocks, image_offset, "<u4")
    row = NUMBERS.sieve(words)
    if not len(row):
        return
    value = words[row].astype(np.int64)
    used = (value < MAX_BLOCKS) & ~padding(value)
    good = used.any(axis=1) & distinct(value, used)
    good &= (value != value[:, :1]).any(axis=1)
    yield pieces("vdi.map", BLOCK, where[row[good]], np.where(used, value * BLOCK, -1)[good])


def rebuild(reader: Reader, clue: Clue, open_vdi: Callable[[Reader], Container]) -> Orphan | None:
    """The file whose block 0 lies at the clue's origin, its map where a guest structure puts it."""
    known = np.flatnonzero(clue.first >= 0)
    starts, votes = np.unique(clue.pieces.image_offset[known] - 4 * clue.first[known], return_counts=True)
    if not len(starts) or not clue.size:
        return None
    begins = int(starts[int(votes.argmax())])
    blocks = -(-clue.size // BLOCK)
    for map_at, data_at in _places(begins, clue.origin, blocks) if blocks <= MAX_BLOCKS else ():
        if data_at >= FREE:
            continue
        base = begins - map_at
        head = _header(clue.size, map_at, data_at, _allocated(reader, begins, blocks))
        c = opened(open_vdi, Laid(reader, base, [Patch(0, head, "rebuilt", GUESSED)]), "rebuilt from the block map")
        if c is not None:
            return orphan(c, base, "vdi.map", reader.size)
    return None


def stow(reader: Reader) -> Iterable[Stowed]:
    """Blocks up to the file's end: each writer allocates whole ones, and nothing follows the last."""
    return [replace(s, linear=True) for s in in_row(reader.size % BLOCK or BLOCK, reader.size, BLOCK)]


def _places(begins: int, origin: int, blocks: int) -> Iterator[tuple[int, int]]:
    """(offBlocks, offData) of the known layouts that the distance of map and blocks allows."""
    for map_at, step in LAYOUTS:
        data_at = map_at + origin - begins
        if data_at == -(-(map_at + 4 * blocks) // step) * step:
            yield map_at, data_at
    if 4 * blocks <= origin - begins <= 4 * blocks + MOST_BEHIND:  # else any row of rising numbers on the image is one
        yield SECTOR, SECTOR + origin - begins


def _allocated(reader: Reader, begins: int, blocks: int) -> int:
    """How many blocks the map names: the greatest number that occurs, and one."""
    data = reader.read(begins, 4 * blocks)
    value = np.frombuffer(data, "<u4", len(data) // 4).astype(np.int64)
    value = value[value < blocks]
    return int(value.max(initial=-1)) + 1


def _header(size: int, map_at: int, data_at: int, allocated: int) -> bytes:
    """VDIHEADER1PLUS as QEMU writes it; the identity is lost, and ours is told by its text."""
    blocks = -(-size // BLOCK)
    head = bytearray(SECTOR)
    text = b"<<< header rebuilt by vmcarve >>>\n"
    head[: len(text)] = text
    struct.pack_into("<4sIIII", head, 64, b"\x7f\x10\xda\xbe", 0x0001_0001, 384, 1, 0)
    struct.pack_into("<II", head, 340, map_at, data_at)
    struct.pack_into("<IIQIIII", head, 360, SECTOR, 0, size, BLOCK, 0, blocks, allocated)
    head[392:424] = b"vmcarve: no uuid" + b"vmcarve: rebuilt"
    return bytes(head)
