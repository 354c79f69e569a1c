"""Blocks of tables that were taken for zeros, since nothing that fits lies where the file runs on.

Two things look alike while a container is laid out: a host that keeps no block of zeros, and a table that was cut in
two and whose rest lies elsewhere. On the first the file closes over them: what lies behind them in the file follows on
the image what lies before. Only there the container says zero; elsewhere what the table would tell is lost.
"""

from __future__ import annotations

from ..filemap import FileMap
from ..model import MISSING
from .candidate import Candidate
from .tables import EMPTY


def doubt_zeros(c: Candidate) -> None:
    """Reads a candidate again with those of its tables missing that only lack of better made zeros."""
    if not c.empty:
        return
    doubted = FileMap.build((f, n, p, MISSING if rule == EMPTY else g, "not-found" if rule == EMPTY else rule)
                            for f, n, p, g, rule in c.map.rows())
    kept = [r for r in _joined(c.empty) if _closes_over(doubted, *r)]
    doubted = doubted.zeroed(kept, EMPTY)
    container = c.reopen(doubted)
    if container is not None:
        c.container, c.map = container, doubted.resized(container.size)


def _closes_over(file_map: FileMap, first: int, end: int) -> bool:
    """Whether on the image the byte at file offset `end` follows the one before `first`."""
    before, behind = file_map.cut(first - 1, 1), file_map.cut(end, 1)
    return bool(before and behind) and before[0][2] >= 0 and behind[0][2] == before[0][2] + 1


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Rising (first, end)s, those that touch as one."""
    out: list[tuple[int, int]] = []
    for first, end in ranges:
        if out and out[-1][1] == first:
            out[-1] = out[-1][0], end
        else:
            out.append((first, end))
    return out
