"""Containers that only grow: an L1 and L2 tables that name every cluster once, nothing freed (qcow 1, QED).

So what is named fills the file. That bounds every entry, whether the file is whole, cut short, or followed by others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..model import GuestMap, Reader
from ._qcow2_tables import (
    I64,
    U64,
    Bools,
    Cells,
    Claims,
    Layout,
    Ranges,
    Tally,
    build_map,
    claims,
    first_level,
    load_tables,
    read_words,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the tables are and how they read. Offsets and sizes in bytes; entries count entries.

    fixed: what lies before all tables and clusters. illegal(words) -> which L1 entries no writer sets. parse(words) ->
    the entries of L2 tables. dtype: one entry as stored.
    """

    size: int
    cluster: int
    l1_offset: int
    l1_entries: int
    table_bytes: int
    l2_entries: int
    fixed: Ranges
    dtype: str
    illegal: Callable[[U64], Bools]
    parse: Callable[[U64], Cells]


@dataclass(slots=True)
class Walked:
    """What the tables say. known bool[l1_entries]: which L1 entries are there; l2: the tables' places, rising.

    l1 int64[l1_entries]: the place of each one's table, -1 none. found: every cluster and stream that is named;
    metadata: header and tables.
    """

    guest: GuestMap
    known: Bools
    l2: I64
    tally: Tally
    found: Claims
    metadata: Ranges
    l1: I64

    @property
    def whole(self) -> bool:
        """Every table was read, and no entry was refused."""
        return bool(self.known.all()) and all(c.ok for c in self.tally.checks(""))


def walk(reader: Reader, plan: Plan) -> Walked:
    """Reads the L1 and every L2; a lost table becomes LOST runs."""
    raw, known = read_words(reader, plan.l1_offset, plan.l1_entries, plan.dtype)
    words = raw.astype(np.uint64)
    illegal = plan.illegal(words)
    table = np.where(illegal, 0, words).astype(np.int64)
    used = int(plan.fixed.end[-1]) + plan.l1_entries * plan.table_bytes
    tally = Tally()
    most = used + plan.size + plan.size // plan.cluster * 512  # a full disk, should nothing of it be compressed
    l1 = first_level(table, illegal, known, plan.table_bytes, plan.fixed, max(reader.size, most), tally)
    l2 = np.unique(l1.named)
    tables = load_tables(reader, l2, plan.l2_entries, plan.dtype)
    limit = max(reader.size, used + (int(np.count_nonzero(tables.words)) + 1) * plan.cluster)
    metadata = plan.fixed.joined(l2, np.full(len(l2), plan.table_bytes))
    layout = Layout(plan.cluster, plan.l2_entries, plan.parse, limit, metadata, tally=tally)
    rows = np.where(l1.table >= 0, tables.rows(l1.table), -1)
    guest = build_map(plan.size, layout, tables, rows, l1.absent)
    tally.unread += int((~known).sum()) + len(l1.named) - int((rows >= 0).sum())
    return Walked(guest, known, l2, tally, claims(layout, tables, rows[rows >= 0]), metadata, l1.table)
