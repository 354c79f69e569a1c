"""Where on a disk what could be recovered was not, and what kind of bytes that was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sparse import BLOCK, ZERO_HASH, Hashes

COLUMNS = 160  # of a strip
RIGHT, WRONG, MISSING, NONE = "r", "w", "m", "."  # a letter of a strip; NONE: no block of the column counts
TEXT, EVEN, OTHER = "text", "even", "other"
LEAST_PRINTABLE = 0.9  # share of a text's bytes
MOST_UNEVEN = 400.0  # chi-square over 255 degrees of freedom: random bytes exceed it once in some 10^8 blocks
AT_ONCE = 1024  # blocks read at once


def losses(truth: Hashes, wanted: NDArray[np.bool_], found: Hashes, raw: Path | None) -> dict[str, Any]:
    """`strip`, the disk from end to end in COLUMNS letters, and `lost`: bytes by how and by what they are.

    truth, wanted, found: per block of 4 KiB. A column is what most of its blocks that count are, as far as any are lost
    that is preferred: a hole of one block is to be seen. raw: the guest as it was, without which nothing is classified.
    """
    here = np.zeros(len(truth), np.uint64)
    here[:] = ZERO_HASH
    here[: len(found)] = found[: len(truth)]
    missing = wanted & (here == ZERO_HASH)
    wrong = wanted & ~missing & (here != truth)
    lost = {name: _kinds(raw, np.flatnonzero(part)) for name, part in (("wrong", wrong), ("missing", missing))}
    return {"strip": _strip(wanted, wrong, missing), "lost": {k: v for k, v in lost.items() if v}}


def _strip(wanted: NDArray[np.bool_], wrong: NDArray[np.bool_], missing: NDArray[np.bool_]) -> str:
    columns = min(COLUMNS, len(wanted))
    edges = (np.arange(columns) * len(wanted)) // max(columns, 1)
    sums = [np.add.reduceat(part.astype(np.int64), edges) for part in (wanted, wrong, missing)] if columns else []
    out = ""
    for count, w, m in zip(*sums, strict=True) if sums else ():
        lost = WRONG if w >= m else MISSING
        out += NONE if not count else lost if w + m else RIGHT
    return out


def _kinds(raw: Path | None, blocks: NDArray[np.int64]) -> dict[str, int]:
    """Bytes of these blocks by kind."""
    counts: Counter[str] = Counter()
    if raw is None or not raw.exists():
        return {"unknown": len(blocks) * BLOCK} if len(blocks) else {}
    source = np.memmap(raw, np.uint8, "r", shape=(raw.stat().st_size // BLOCK, BLOCK))
    blocks = blocks[blocks < len(source)]
    for at in range(0, len(blocks), AT_ONCE):
        counts.update(kinds(np.asarray(source[blocks[at : at + AT_ONCE]])))
    return {kind: count * BLOCK for kind, count in sorted(counts.items())}


def kinds(blocks: NDArray[np.uint8]) -> list[str]:
    """Of each block uint8[n, BLOCK]: text; bytes as even as random ones (compressed, encrypted, noise); or other."""
    values = (np.arange(len(blocks))[:, None] << 8) + blocks
    counts = np.bincount(values.ravel(), minlength=len(blocks) << 8).reshape(-1, 256)
    expected = BLOCK / 256
    uneven = ((counts - expected) ** 2).sum(axis=1) / expected
    printable = counts[:, 32:127].sum(axis=1) + counts[:, (9, 10, 13)].sum(axis=1)
    return [EVEN if u <= MOST_UNEVEN else TEXT if p >= LEAST_PRINTABLE * BLOCK else OTHER
            for u, p in zip(uneven.tolist(), printable.tolist(), strict=True)]
