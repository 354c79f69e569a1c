"""qcow 1 and QED without their headers: L2 tables by shape, the L1 from what is left of it and from numbered L2s."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from ..model import DEFLATE, GUESSED, LOST, Clue, Container, Orphan, Patch, Reader, Stowed
from ._first_level import MAX_OFFSET, completed, numbered
from ._qcow2_tables import U64, Bools
from ._rebuilt import Laid, lose_untold, opened, orphan
from ._stowed import by_tables, in_row
from ._stowed_streams import by_streams

QCOW1, QED = "qcow1.l2", "qed.l2"
QCOW1_CLUSTER, QCOW1_ENTRIES, QCOW1_L1_AT = 4096, 512, 48  # without a backing file (seen: qemu-img 7.2)
STREAM = np.uint64(1 << 63)  # the flag of an entry
QED_CLUSTER = 1 << 16
QED_TABLES = (4, 2, 8, 16, 1)  # clusters of a table; 4 is QEMU's default
MAX_COUNT = 1 << 22  # entries of an L1


def rebuild_qcow1(reader: Reader, clue: Clue, open_qcow1: Callable[[Reader], Container]) -> Orphan | None:
    """The container at the clue's origin, in the layout of a file without a backing name."""
    if clue.pieces.unit != QCOW1_CLUSTER or not clue.size:
        return None
    count = -(-clue.size // (QCOW1_CLUSTER * QCOW1_ENTRIES))
    head = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, clue.size, 12, 9, 0, 0, QCOW1_L1_AT)
    return _best(reader, clue, open_qcow1, [(head, QCOW1_L1_AT, QCOW1_ENTRIES, count)], QCOW1, ">u8")


def rebuild_qed(reader: Reader, clue: Clue, open_qed: Callable[[Reader], Container]) -> Orphan | None:
    """The container at the clue's origin: one cluster of header, then the L1; the tables' size that reads best."""
    if not clue.size:
        return None
    return _best(reader, clue, open_qed, _qed_headers(clue), QED, "<u8")


def stow_qcow1(reader: Reader) -> Iterable[Stowed]:
    """Streams, spans of the L2 tables that are left, and clusters in their order."""

    def entries(words: U64, cluster: int) -> tuple[npt.NDArray[np.int64], Bools]:
        packed = words >= STREAM  # a stream's place is as wide as its size leaves room
        wide = np.uint64((1 << 64 - cluster.bit_length()) - 1)
        return np.where(packed, (words & wide).astype(np.int64), _whole(words)), packed

    yield from by_streams(reader, entries, (DEFLATE,))
    yield from by_tables(reader, [QCOW1_CLUSTER], ">u8", _whole)
    yield from in_row(0, reader.size, QCOW1_CLUSTER)


def stow_qed(reader: Reader) -> Iterable[Stowed]:
    """Spans of the L2 tables that are left, and clusters of QEMU's default size in their order."""
    yield from by_tables(reader, [QED_CLUSTER], "<u8", _whole)
    yield from in_row(0, reader.size, QED_CLUSTER)


def _whole(words: U64) -> npt.NDArray[np.int64]:
    return np.minimum(words, np.uint64(MAX_OFFSET + 1)).astype(np.int64)


def _qed_headers(clue: Clue) -> Iterator[tuple[bytes, int, int, int]]:
    cluster, size = clue.pieces.unit, -(-clue.size // 512) * 512
    for tables in QED_TABLES:
        entries = min(tables * cluster // 8, -(-size // cluster))
        if size <= cluster * (tables * cluster // 8) ** 2:
            head = struct.pack("<4sIIIQQQQQII", b"QED\0", cluster, tables, 1, 0, 0, 0, cluster, size, 0, 0)
            yield head, cluster, entries, -(-size // (cluster * entries))


def _best(reader: Reader, clue: Clue, fmt_open: Callable[[Reader], Container],
          heads: Iterator[tuple[bytes, int, int, int]] | list[tuple[bytes, int, int, int]], kind: str, dtype: str
          ) -> Orphan | None:
    """The reading with the fewest failed checks of those under `heads`: (header, place of the L1, entries of an L2,
    entries of the L1)."""
    unit = clue.pieces.unit

    def legal(words: U64) -> Bools:
        return (words & np.uint64(unit - 1) == 0) & (words < np.uint64(MAX_OFFSET))

    best: tuple[tuple[int, int], Orphan] | None = None
    for head, at, entries, count in heads:
        if not 0 < count <= MAX_COUNT:
            continue
        number, own = numbered(clue, kind, entries, unit, count)
        words, told = completed(Laid(reader, clue.origin), at, dtype, legal, number, own, count)
        if not told.any():
            continue
        patches = [Patch(0, head, "rebuilt", GUESSED), Patch(at, words.astype(dtype).tobytes(), "rebuilt", GUESSED)]
        c = opened(fmt_open, Laid(reader, clue.origin, patches), "rebuilt from the tables")
        if c is None:
            continue
        span = unit * entries
        lose_untold(c, np.flatnonzero(told).astype(np.int64) * span, span)
        m = c.guests[0].map
        score = sum(not x.ok for x in c.checks), int(m.length[m.state == LOST].sum())
        if best is None or score < best[0]:
            best = score, orphan(c, clue.origin, kind, reader.size)
    return None if best is None else best[1]
