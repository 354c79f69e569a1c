"""ext2/3: indirect blocks of deleted files whose inode left no copy: found by their content, chained by their place.

An indirect block holds block_size / 4 pointers and nothing else, so that belief rests on the pointers: all inside the
volume, all different, most of them continuing the one before. Seen (ext3 image, Linux 6.18): content is laid out as if
the indirect blocks were not there, and those lie together elsewhere; older drivers put each before what it points to.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..model import HostFile, Reader
from ._blocks import I64, U8, inside, no_overlap, sweep_runs, to_runs
from ._ext_inode import NO_EXTENTS, pointer_rows

ORIGIN, GUESS = "ext3.indirect", "ext3.indirect-guess"
DIRECT = 12  # pointers in the inode itself
MIN_POINTERS = 4  # fewer say too little by themselves; as a child of another indirect block they count
OUR_MAX_HELD = 128 << 20  # bytes of pointers considered in one volume: 128 GiB of content at 4 KiB


def plausible(blocks: U8, volume_blocks: int) -> npt.NDArray[np.int64]:
    """Number of pointers in each row of uint8[n, block size] that may be an indirect block, 0 where it is none.

    All pointers lie in the volume, and no two that follow each other are equal.
    """
    p = np.ascontiguousarray(blocks).view("<u4")
    used = p > 0
    ok = (p < volume_blocks).all(axis=1) & used.any(axis=1)
    ok &= ~((p[:, 1:] == p[:, :-1]) & used[:, 1:]).any(axis=1)
    return np.where(ok, used.sum(axis=1), 0)


@dataclass(slots=True)
class Found:
    """Candidates by block number. level 0 points at content, 1 and 2 at other candidates."""

    pointers: dict[int, npt.NDArray[np.uint32]] = field(default_factory=dict[int, npt.NDArray[np.uint32]])
    level: dict[int, int] = field(default_factory=dict[int, int])
    children: set[int] = field(default_factory=set[int])


def _sweep(reader: Reader, free: I64, volume_blocks: int, block_size: int, base: int) -> Found:
    found = Found()
    per, held = block_size // 4, 0
    for at, blocks in sweep_runs(reader, free, block_size):
        heads = np.ascontiguousarray(blocks[:, :64]).view("<u4")
        some = np.flatnonzero((heads < volume_blocks).all(axis=1) & heads.any(axis=1))
        some = some[plausible(blocks[some], volume_blocks) > 0] if len(some) else some
        for i in some.tolist():
            table = np.ascontiguousarray(blocks[i]).view("<u4")
            used = np.flatnonzero(table)
            # cut behind the last pointer: most candidates are short
            found.pointers[(at - base) // block_size + i] = table[: min(int(used[-1]) + 1, per)].copy()
            held += 4 * (int(used[-1]) + 1)
        if held > OUR_MAX_HELD:
            break
    return found


def _classify(found: Found) -> None:
    """Levels, from the bottom: what mostly counts upwards is level 0, what names only lower candidates is above."""
    for block, table in found.pointers.items():
        p = table[table > 0].astype(np.int64)
        steps = int((np.diff(p) == 1).sum())
        if len(p) >= MIN_POINTERS and 2 * steps >= len(p) - 1 and len(np.unique(p)) == len(p):
            found.level[block] = 0
    for level in (1, 2):
        lower = {b for b, n in found.level.items() if n == level - 1}
        for block, table in found.pointers.items():
            used = table[table > 0]
            if int(used[0]) not in lower:
                continue
            p = used.tolist()
            rest = [q for q in p if q not in lower]
            # a file's last indirect block can hold too few pointers to be believed alone
            if rest and (rest != p[-1:] or rest[0] not in found.pointers or level > 1):
                continue
            if len(set(p)) == len(p) and not found.children.intersection(p) and block not in p:
                found.level[block] = level
                found.children.update(p)
                for q in rest:
                    found.level.setdefault(q, 0)


def _rows(found: Found, block: int, level: int, first: int, per: int) -> I64:
    """Extent rows below one indirect block whose first pointer is for logical block `first`."""
    table = found.pointers[block]
    if level == 0:
        return pointer_rows(table, first)
    step = per**level
    parts = [_rows(found, int(table[i]), level - 1, first + int(i) * step, per) for i in np.flatnonzero(table)
             if int(table[i]) in found.pointers]  # fmt: skip
    return np.concatenate([NO_EXTENTS, *parts])


def files(reader: Reader, free: I64, volume_blocks: int, block_size: int, base: int) -> Iterator[HostFile]:
    """Maps from indirect blocks in free space (runs of image offsets), per file: the pointers' own, then with a guess.

    The 12 direct pointers were in the inode: the guess takes the 12 free blocks before the first indirect content.
    """
    found = _sweep(reader, free, volume_blocks, block_size, base)
    _classify(found)
    per = block_size // 4
    start = (DIRECT, DIRECT + per, DIRECT + per + per * per)
    tops: list[list[tuple[int, I64]]] = [[], [], []]
    for block, level in found.level.items():
        if block not in found.children and (level > 0 or len(found.pointers[block]) >= MIN_POINTERS):
            rows = no_overlap(_rows(found, block, level, start[level], per))
            if len(rows) and inside(free, rows[:, 1] * block_size + base).mean() >= 0.5:
                tops[level].append((block, rows))
    by_end = [{int(rows[-1, 1] + rows[-1, 2]): (block, rows) for block, rows in tops[n]} for n in (0, 1)]
    # trees that reach to where the next level begins: whatever precedes a larger tree must
    before = [sorted(((b, r) for b, r in tops[n] if int(r[-1, 0] + r[-1, 2]) == start[n + 1]), key=lambda t: t[0])
              for n in (0, 1)]  # fmt: skip
    taken: set[int] = set()
    for level in (2, 1, 0):
        for block, rows in tops[level]:
            if block in taken:
                continue
            taken.add(block)
            rows, below = _with_lower(rows, level, by_end, taken)
            name = f"indirect block {block}"
            yield HostFile(name, "", -1, True, to_runs(rows, block_size, base), ORIGIN, complete=False)
            guess = _guess(block, rows, before[:below], per, free, block_size, base)
            if guess is not None:
                yield HostFile(name, "", -1, True, to_runs(guess, block_size, base), GUESS, complete=False,
                               certain=False)


def _with_lower(rows: I64, level: int, by_end: list[dict[int, tuple[int, I64]]], taken: set[int]) -> tuple[I64, int]:
    """Puts the smaller indirect trees of the same file before `rows`: their content ends where this one's begins.

    Returns the rows and the level of the lowest tree in them.
    """
    while level > 0:
        # up to three indirect blocks may lie between the two
        ends = range(int(rows[0, 1]), int(rows[0, 1]) - 4, -1)
        near = [by_end[level - 1][e] for e in ends if e in by_end[level - 1]]
        if not near or near[0][0] in taken or int(near[0][1][-1, 0] + near[0][1][-1, 2]) > int(rows[0, 0]):
            break
        level -= 1
        taken.add(near[0][0])
        rows = np.concatenate((near[0][1], rows))
    return rows, level


def _guess(
    block: int, rows: I64, lower: list[list[tuple[int, I64]]], per: int, free: I64, block_size: int, base: int
) -> I64 | None:
    """`rows` with what their file probably had before them, or None when there is no candidate.

    lower: full trees (block, rows) by level, sorted by block, for the levels below the lowest that `rows` hold. Where
    content does not continue, the tree is taken whose block lies nearest.
    """
    for trees in reversed(lower):
        i = bisect.bisect_left(trees, block, key=lambda t: t[0])
        near = [t for t in trees[max(i - 1, 0) : i + 2] if t[0] != block]
        if not near:
            return None
        nearest, before = min(near, key=lambda t: abs(t[0] - block))
        if abs(nearest - block) > per or int(rows[0, 0]) < int(before[-1, 0] + before[-1, 2]):
            return None
        block, rows = nearest, np.concatenate((before, rows))
    if int(rows[0, 0]) != DIRECT:
        return None
    behind = int(rows[0, 1])
    for end in (behind, behind - 1):  # older drivers: the indirect block lies between
        direct = np.arange(end - DIRECT, end)
        if direct[0] > 0 and block not in direct and inside(free, direct * block_size + base).all():
            return np.concatenate((np.array([[0, end - DIRECT, DIRECT, 0]], np.int64), rows))
    return None
