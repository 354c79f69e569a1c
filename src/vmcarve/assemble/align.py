"""Where a container's bytes lie when only its first byte is known: breaks placed by one dynamic programme.

The container's blocks in file order are laid over the image's blocks. A state is a delta (image block - file block);
pins fix it at points, and between them every block is weighed: what the guest's own allocation map calls used should
not be zero, what it calls free may be a hole of the host file, and what others own cannot be ours. Steps between
deltas are the named breaks: a host hole (the file jumps, the image does not), host metadata inside the run (the image
jumps by a few blocks, the file does not), or a jump to another pinned run.

Nothing here is proof: what is placed is `guessed`, whatever its score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BLOCK = 4096
USED, FREE, UNKNOWN = 0, 1, 2  # what is expected of a file block

# Costs in nats, set once on the study's scenes (docs/reassembly.md) and not fitted to the corpus' seeds.
ZERO_BUT_USED = -1.0  # logs and preallocated files are used and zero: weak, one by one
FULL_BUT_FREE = -0.4  # most likely a hole with somebody else's bytes at its place
ZERO_AND_FREE = 0.0
EITHER = -0.5
HOLE = np.array([-6.0, -0.05, -1.5])  # by class
HOLE_OPENS = -2.0
OTHERS = -50.0
JUMP = -24.0
UNNATURAL = -6.0  # a run that ends, or begins, amid full blocks that nobody is known to own
ROUND = 4.0  # allocators break files at multiples of some MiB
ROUND_BLOCKS = 1024
INSERT = -8.0
PIN = 60.0
MAX_CELLS = 300_000_000  # ours: states x blocks of one programme; one byte each
MAX_BLOCKS = 400_000  # ours: file blocks of one programme; a Python step each
MAX_METADATA = 64  # ours: blocks of host metadata between two pins of one run
MAX_RANGE = 20_000  # ours: blocks of holes that one gap between pins may hold


@dataclass(frozen=True, slots=True)
class Pin:
    """File block `file_block` lies at image block `image_block`: 4 KiB each, image blocks counted from the window."""

    file_block: int
    image_block: int


def deltas_of(pins: list[Pin]) -> npt.NDArray[np.int64]:
    """The states: the pins' deltas, and all between two neighbours that holes or host metadata could explain."""
    ordered = sorted(pins, key=lambda p: p.file_block)
    out = {p.image_block - p.file_block for p in ordered}
    for a, b in zip(ordered, ordered[1:], strict=False):
        da, db = a.image_block - a.file_block, b.image_block - b.file_block
        if da > db and da - db <= min(MAX_RANGE, b.file_block - a.file_block):
            out.update(range(db, da + 1))
        elif 0 < db - da <= MAX_METADATA:
            out.update(range(da, db + 1))
    return np.array(sorted(out), np.int64)


def align(expected: npt.NDArray[np.uint8], full: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_],
          pins: list[Pin]) -> npt.NDArray[np.int64] | None:
    """The best image block for every file block: int64[n], -1 where the block is a hole of the host file.

    expected uint8[n]: USED, FREE or UNKNOWN per file block. full bool[m]: image block holds something, others bool[m]:
    owned by somebody else. pins: at least the container's first block. None when the programme would be too large.
    """
    n, m = len(expected), len(full)
    delta = deltas_of(pins)
    k = len(delta)
    if k * n > MAX_CELLS or not 0 < n <= MAX_BLOCKS:
        return None
    fixed: dict[int, int] = {p.file_block: int(np.searchsorted(delta, p.image_block - p.file_block)) for p in pins}
    # action per cell: 0 placed, 1 hole with the same delta, 2 hole (came from delta + 1), 3 metadata, 4 jump
    action = np.zeros((n, k), np.uint8)
    from_jump = np.zeros(n, np.int32)
    score = np.full(k, -1e9)
    start = min(pins, key=lambda p: p.file_block)
    score[int(np.searchsorted(delta, start.image_block - start.file_block))] = 0.0
    in_hole = np.zeros(k, bool)
    up_ok = np.isin(delta - 1, delta)
    up_from = np.where(up_ok, np.searchsorted(delta, delta - 1), 0)
    hole_ok = np.isin(delta + 1, delta)
    hole_from = np.where(hole_ok, np.minimum(np.searchsorted(delta, delta + 1), k - 1), 0)
    for f in range(n):
        cls = int(expected[f])
        p = f + delta
        inside = (p >= 0) & (p < m)
        at = np.clip(p, 0, max(m - 1, 0))
        nz = full[at] & inside
        taken = others[at] | ~inside
        if cls == USED:
            place = np.where(nz, 0.0, ZERO_BUT_USED)
        elif cls == FREE:
            place = np.where(nz, FULL_BUT_FREE, ZERO_AND_FREE)
        else:
            place = np.full(k, EITHER)
        place = np.where(taken, OTHERS, place)
        ends = score + np.where(nz & ~taken, UNNATURAL, 0.0)  # the block that would have followed is there
        best = int(np.argmax(ends))
        before = np.clip(p - 1, 0, max(m - 1, 0))
        begins = np.where(full[before] & ~others[before] & (p > 0), UNNATURAL, 0.0)
        jump = ends[best] + JUMP + begins + (ROUND if f % ROUND_BLOCKS == 0 else 0.0)
        # ways to reach each delta before this block is placed
        base = score.copy()
        act = np.zeros(k, np.uint8)
        better = jump >= base
        base[better], act[better] = jump[better], 4
        if k > 1:
            insert = np.where(up_ok, score[up_from] + INSERT, -1e9)
            better = insert > base
            base[better], act[better] = insert[better], 3
        total = base + place
        reached = act.copy()
        # the block is a hole: the image stands still (delta falls by one), or others' bytes lie at its place
        here = score + HOLE[cls] + np.where(in_hole, 0.0, HOLE_OPENS) - 0.3
        better = here > total
        if better.any():
            total[better], act[better] = here[better], 1
        hole = np.where(hole_ok, score[hole_from] + HOLE[cls] + np.where(in_hole[hole_from], 0.0, HOLE_OPENS), -1e9)
        better = hole > total
        if better.any():
            total[better], act[better] = hole[better], 2
        if f in fixed:
            s = fixed[f]
            total[:] = -1e9
            total[s] = base[s] + PIN
            act[s] = reached[s]
        in_hole = (act == 1) | (act == 2)
        action[f] = act
        from_jump[f] = best
        score = total
    return _trace(action, from_jump, delta, int(np.argmax(score)), up_from, hole_from)


def _trace(action: npt.NDArray[np.uint8], from_jump: npt.NDArray[np.int32], delta: npt.NDArray[np.int64], state: int,
           up_from: npt.NDArray[np.int64], hole_from: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    n = len(action)
    out = np.full(n, -1, np.int64)
    for f in range(n - 1, -1, -1):
        a = int(action[f, state])
        if a in (0, 3, 4):
            out[f] = f + delta[state]
        if a == 2:
            state = int(hole_from[state])
        elif a == 3:
            state = int(up_from[state])
        elif a == 4:
            state = int(from_jump[f])
    return out
