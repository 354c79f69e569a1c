"""Blocks that may hold tables, told in the sweep: the kernel against plain Python, and nothing that a format finds is
passed over."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.reference.table_blocks import table_blocks as table_blocks_reference
from vmcarve._ext.table_blocks import BlockSieve, table_blocks
from vmcarve.assemble import orphans
from vmcarve.assemble.state import common_runs
from vmcarve.model import RowRule, SectorBegin
from vmcarve.registry import formats
from vmcarve.source import open_image
from vmcarve.sweeper import sweep_image
from vmcarve.sweeper.sieve import RangeBlocks, TableBlocks, block_sieve

BLOCK = 4096
RULES = [rule for fmt in formats().values() for rule in fmt.rows]
SHAPED = sorted(name for name, fmt in formats().items() if fmt.shapes is not None)


def enemies(rng: np.random.Generator, count: int) -> np.ndarray:
    """uint8[count, 4096]: noise, zeros, text, and tables of every width and order with one number spoilt at times."""
    blocks = rng.integers(0, 256, (count, BLOCK), dtype=np.uint8)
    for block in blocks:
        kind = rng.integers(0, 8)
        if kind == 0:
            block[:] = 0
        elif kind == 1:
            block[:] = np.frombuffer("some text ".encode("utf-16-le") * 205, np.uint8)[:BLOCK]
        elif kind > 2:
            dtype = rng.choice(["<u4", ">u4", "<u8", ">u8"])
            words = np.zeros(BLOCK // int(dtype[-1]), dtype)
            step = int(rng.choice([1, 4, 128, 4097, 65536]))
            used = int(rng.integers(1, len(words) + 1))
            words[:used] = rng.permutation(used) * step + step * int(rng.integers(1, 9))
            if rng.integers(0, 3) == 0:
                words[used:] = np.iinfo(dtype).max
            if step == 4:
                words[:used].sort()
            if dtype == "<u8" and rng.integers(0, 2):
                words[:used] = words[:used] % 4096 + (0x1000_0000 << 32)
            if rng.integers(0, 4) == 0:
                words[rng.integers(0, len(words))] = np.iinfo(dtype).max // 3
            first = 512 * max(0, int(rng.integers(-8, 8)))  # a table may begin and end amid a block
            block[first:] = words.view(np.uint8)[: BLOCK - first]
            if rng.integers(0, 5) == 0:
                block[:512] = 0
        if rng.integers(0, 6) == 0:
            at = 512 * int(rng.integers(0, 8))
            block[at : at + 16] = np.frombuffer(b"\x80\0\0\0\0\0\0\0\x40\1\0\0\x78\x9c\xed\xd9", np.uint8)
    return blocks


@pytest.mark.parametrize("seed", range(4))
def test_kernel_is_the_reference(seed: int) -> None:
    """Blocks that nobody may write to, under the rules of all formats."""
    data = enemies(np.random.default_rng(seed), 80).tobytes()
    told = np.empty(80, np.uint8)
    count = table_blocks(block_sieve(), np.frombuffer(data, np.uint8), told)
    rules = [(r.width, r.size, "little" if r.swap != (sys.byteorder == "little") else "big", r.illegal,
              list(zip(r.low.tolist(), r.high.tolist(), r.unused.astype(bool).tolist(), strict=True)), r.steps.tolist())
             for r in RULES if isinstance(r, RowRule)]
    begins = [(r.mask, r.value) for r in RULES if isinstance(r, SectorBegin)]
    assert np.flatnonzero(told).tolist() == table_blocks_reference(data, rules, begins)
    assert 0 < count == told.sum() < 80


@pytest.mark.parametrize("name", SHAPED)
def test_no_piece_of_a_format_is_passed_over(name: str) -> None:
    """Of each block in which a format finds something, its own rules tell."""
    fmt = formats()[name]
    assert fmt.shapes is not None
    blocks = enemies(np.random.default_rng(7), 3000)
    if name == "sesparse":
        blocks[::50] = np.resize(np.arange(512, dtype="<u8") + (0x1000_0000 << 32), 512).view(np.uint8)
    if name == "qcow2":
        blocks[::50] = 0
        blocks[::50, 5:8] = 2, 0, 0
    found = [b.image_offset // BLOCK for b in fmt.shapes(blocks, np.arange(3000) * BLOCK)]
    rows = [(r.width, r.size, r.swap, r.illegal, r.low, r.high, r.unused, r.steps) for r in fmt.rows
            if isinstance(r, RowRule)]
    begins = [(np.frombuffer(r.mask, np.uint8), np.frombuffer(r.value, np.uint8)) for r in fmt.rows
              if isinstance(r, SectorBegin)]
    told = np.empty(3000, np.uint8)
    table_blocks(BlockSieve(rows, begins), blocks.reshape(-1), told)
    where = np.unique(np.concatenate(found))
    assert len(where) > 0, "enemies too kind"
    assert told[where].all()
    assert told.sum() < 3000


@pytest.mark.parametrize("threads", [1, 2])
def test_what_the_sweep_tells_of_is_all_that_is_found(tmp_path: Path, threads: int) -> None:
    """Pieces of all formats in the blocks that the sweep tells of are those in the whole image, whose end is ragged."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (1500, BLOCK), dtype=np.uint8)
    blocks[900:1000], blocks[1200:1300] = enemies(rng, 100), enemies(rng, 100)
    (tmp_path / "image").write_bytes(blocks.tobytes() + bytes(700))
    with open_image(tmp_path / "image") as image:
        told = sweep_image(image, 0, lambda _: None, threads=threads, tables=True).tables
        assert told is not None and 0 < told[:, 1].sum() < 300 * BLOCK
        space = np.array([[0, 512 * 1000], [512 * 1003, image.size - 512 * 1003]])
        some, every = (orphans.find(image, space, tables) for tables in (told, None))
        assert len(every) > 4
        for a, b in zip(some, every, strict=True):
            assert (a.format.name, a.pieces.kind, a.pieces.unit) == (b.format.name, b.pieces.kind, b.pieces.unit)
            assert a.pieces.image_offset.tolist() == b.pieces.image_offset.tolist()
            assert a.names.place.tolist() == b.names.place.tolist()
        assert sweep_image(image, 0, lambda _: None, ranges=[(0, 512)], tables=True).tables is None


@pytest.mark.parametrize("start", [0, 512, 4096, 5120])
def test_blocks_cut_by_a_look_may_hold_anything(start: int) -> None:
    """Looks of any length, which begin and end amid blocks; runs of several ranges go together."""
    data = np.random.default_rng(1).integers(128, 256, 20 * BLOCK, dtype=np.uint8)
    data[BLOCK * 9 : BLOCK * 10] = np.arange(1, 1025, dtype="<u4").view(np.uint8)
    whole = TableBlocks()
    for low, high in ((start, 11 * BLOCK), (11 * BLOCK, 20 * BLOCK)):
        part = RangeBlocks(block_sieve(), low, high)
        for at in range(low, high, 5 * 512):
            part.look(data[at : min(at + 5 * 512, high)], at)
        whole.add(part.told())
    told = whole.told()
    assert told is not None and (told[:, 1] > 0).all() and (told[1:, 0] > told[:-1].sum(axis=1)).all()
    inside = common_runs(np.array([[9 * BLOCK, BLOCK]]), told)
    assert inside.tolist() == [[9 * BLOCK, BLOCK]]


def test_common_runs() -> None:
    """What two sets of runs share, cut where either ends."""
    a = np.array([[0, 10], [20, 10], [40, 5]])
    b = np.array([[5, 20], [28, 1], [44, 100]])
    assert common_runs(a, b).tolist() == [[5, 5], [20, 5], [28, 1], [44, 1]]
    assert common_runs(a, b[:0]).tolist() == [] and common_runs(a[:0], b).tolist() == []
    assert TableBlocks().told() is not None


def test_rules_and_arrays_that_do_not_fit_are_refused() -> None:
    """Lengths are checked before the loop runs without checks."""
    ends, one, none = np.zeros(1, np.uint64), np.zeros(1, np.uint8), np.zeros(0, np.uint32)
    for width, size, low, unused, steps in ((1024, 4, ends, one, none), (512, 2, ends, one, none),
                                            (512, 4, ends[:0], one, none), (512, 4, ends, one[:0], none),
                                            (512, 4, ends, one, np.ones(9, np.uint32)),
                                            (512, 4, ends, one, np.zeros(1, np.uint32))):
        with pytest.raises(ValueError, match="rows|range|step"):
            BlockSieve([(width, size, False, 0, low, ends, unused, steps)], [])
    with pytest.raises(ValueError, match="16 bytes"):
        BlockSieve([], [(np.zeros(15, np.uint8), np.zeros(16, np.uint8))])
    with pytest.raises(ValueError, match="4096 bytes"):
        table_blocks(block_sieve(), np.zeros(BLOCK + 1, np.uint8), np.zeros(1, np.uint8))
