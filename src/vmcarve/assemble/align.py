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

from .._ext.delta_path import delta_path

BLOCK = 4096
USED, FREE, UNKNOWN = 0, 1, 2  # what is expected of a file block

# Costs in nats, in the order that ext/delta_path takes them. Set once by hand from the shapes of the named breaks, on
# scenes whose seeds are in no table of results; not fitted.
COSTS = {
    "zero but used": -1.0,  # logs and preallocated files are used and zero: weak, one by one
    "full but free": -0.4,  # most likely a hole with somebody else's bytes at its place
    "zero and free": 0.0,
    "of unknown use": -0.5,
    "hole where used": -6.0,
    "hole where free": -0.05,
    "hole where unknown": -1.5,
    "a hole opens": -2.0,
    "owned by others": -50.0,
    "a jump": -24.0,
    "a run ends or begins amid full blocks": -6.0,
    "a break at a round place": 4.0,  # allocators break files at multiples of some MiB
    "a foreign block inside the run": -8.0,
    "a pin": 60.0,
    "a hole while the image goes on": -0.3,
}
NEVER = -1e12
ROUND_BLOCKS = 1024
MAX_CELLS = 100_000_000  # ours: states x blocks of one programme; one byte each
MAX_BLOCKS = 1 << 22  # ours: file blocks of one programme (16 GiB)
MAX_METADATA = 64  # ours: blocks of host metadata between two pins of one run
MAX_RANGE = 20_000  # ours: blocks of holes that one gap between pins may hold


@dataclass(frozen=True, slots=True)
class Pin:
    """File block `file_block` lies at image block `image_block`: 4 KiB each, image blocks counted from the window."""

    file_block: int
    image_block: int


def deltas_of(pins: list[Pin], holes: int = 0) -> npt.NDArray[np.int64]:
    """The states: the pins' deltas, and all between two neighbours that holes or host metadata could explain.

    holes: blocks of host holes that may follow behind the last pin.
    """
    ordered = sorted(pins, key=lambda p: p.file_block)
    out = {p.image_block - p.file_block for p in ordered}
    for a, b in zip(ordered, ordered[1:], strict=False):
        da, db = a.image_block - a.file_block, b.image_block - b.file_block
        if da > db and da - db <= min(MAX_RANGE, b.file_block - a.file_block):
            out.update(range(db, da + 1))
        elif 0 < db - da <= MAX_METADATA:
            out.update(range(da, db + 1))
    last = ordered[-1].image_block - ordered[-1].file_block
    out.update(range(last - holes, last))
    return np.array(sorted(out), np.int64)


def align(expected: npt.NDArray[np.uint8], full: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_],
          pins: list[Pin], holes: int = 0, jumps: bool = True) -> npt.NDArray[np.int64] | None:
    """The best image block for every file block: int64[n], -1 where the block is a hole of the host file.

    expected uint8[n]: USED, FREE or UNKNOWN per file block. full bool[m]: image block holds something, others bool[m]:
    owned by somebody else. pins: at least the container's first block. holes: see deltas_of. jumps: whether a run may
    end anywhere and another begin; one that bends toward the image's begin cannot, as it would lie over itself. None
    when the programme would be too large.
    """
    n = len(expected)
    delta = deltas_of(pins, holes)
    k = len(delta)
    if k * n > MAX_CELLS or not 0 < n <= MAX_BLOCKS:
        return None
    pinned = np.full(n, -1, np.int64)
    for p in pins:
        if p.file_block < n:
            pinned[p.file_block] = int(np.searchsorted(delta, p.image_block - p.file_block))
    first = min(pins, key=lambda p: p.file_block)
    start = int(np.searchsorted(delta, first.image_block - first.file_block))
    action, jump_from = np.zeros((n, k), np.uint8), np.zeros(n, np.int32)
    costs = COSTS if jumps else COSTS | {"a jump": NEVER}
    last = delta_path(expected, full.view(np.uint8), others.view(np.uint8), delta, start, pinned,
                      np.array(list(costs.values())), ROUND_BLOCKS, action, jump_from, np.zeros((2, k)),
                      np.zeros((2, k), np.uint8))
    return _trace(action, jump_from, delta, last)


def _trace(action: npt.NDArray[np.uint8], jump_from: npt.NDArray[np.int32], delta: npt.NDArray[np.int64], state: int
           ) -> npt.NDArray[np.int64]:
    """The image block of every file block, read back from the last one."""
    out = np.full(len(action), -1, np.int64)
    for f in range(len(action) - 1, -1, -1):
        step = int(action[f, state])
        if step not in (1, 2):
            out[f] = f + delta[state]
        if step >= 2:
            state = state + 1 if step == 2 else state - 1 if step == 3 else int(jump_from[f])
    return out
