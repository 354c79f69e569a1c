"""What the journal tells of blocks since a file was deleted: copies of block bitmaps, each with its sequence number.

The log is a ring: when it still holds the moment of a deletion, it holds every allocation since, whoever made it and
whatever became of it. A block whose bit is set in a later copy was given to another file, and written over by it.
"""

from __future__ import annotations

import numpy as np

from ..model import RUN_DATA, RUN_REUSED, Reader
from ._blocks import I64
from ._ext_inode import slots
from ._ext_journal import Copies
from ._ext_super import Groups, Super
from ._space import equal_runs

FIRST_TIME = 1 << 24  # smaller deletion times are numbers of inodes: the file is on the orphan list still
OUR_MAX_GROUPS = 1 << 10  # groups of which we hold when each block was last seen in use (256 KiB each)
NEVER, BEFORE_THE_LOG = 1 << 62, -1


class History:
    """Block bitmaps and inodes of one volume as its log's copies show them."""

    def __init__(self, reader: Reader, sb: Super, groups: Groups, log: Copies) -> None:
        self._reader, self._super, self._log = reader, sb, log
        self._bitmap = groups.block_bitmap
        self._good = groups.good
        self._used: dict[int, I64 | None] = {}

    def deleted_in(self, home: int, index: int, generation: int) -> int:
        """Sequence number of the transaction that deleted the inode at place `index` of table block `home`.

        BEFORE_THE_LOG when the log shows nothing of it; NEVER when it shows the file alive and not its end.
        """
        alive = False
        for k in self._log.of(home):
            table = slots(self._log.read(self._reader, k, self._super.block_size), self._super.inode_size)
            if index >= len(table):
                continue
            slot = table[index]
            if int(slot["generation"]) != generation:
                if alive:
                    return int(self._log.seq[k])
            elif int(slot["links"]) == 0 and int(slot["dtime"]) > FIRST_TIME:
                return int(self._log.seq[k])
            else:
                alive = True
        return NEVER if alive else BEFORE_THE_LOG

    def knows_all_since(self, sequence: int) -> bool:
        """Whether the log holds every transaction after `sequence`."""
        return self._log.unbroken <= sequence < NEVER

    def _last_used(self, group: int) -> I64 | None:
        """For each cluster of a group the newest sequence number that shows it in use (-2: none); None: no copy."""
        if group not in self._used:
            copies = self._log.of(int(self._bitmap[group])) if self._good[group] else []
            if not len(copies) or len(self._used) >= OUR_MAX_GROUPS:
                self._used[group] = None
                return None
            count = self._super.blocks_per_group // self._super.cluster_blocks
            last = np.full(count, -2, np.int64)
            for k in copies:  # rising in sequence
                data = np.frombuffer(self._log.read(self._reader, k, self._super.block_size), np.uint8)
                bits = np.unpackbits(data[: -(-count // 8)], bitorder="little")[:count]
                last[: len(bits)][bits.astype(np.bool_)] = int(self._log.seq[k])
            self._used[group] = last
        return self._used[group]

    def without_reused(self, rows: I64, since: int) -> I64:
        """Extent rows of which those blocks are RUN_REUSED that were in use after transaction `since`."""
        out: list[I64] = []
        first, per, cluster = self._super.first_block, self._super.blocks_per_group, self._super.cluster_blocks
        for row in rows:
            logical, physical, count, kind = row.tolist()
            at = physical
            while kind == RUN_DATA and at < physical + count:
                group, inside = divmod(at - first, per)
                end = min(physical + count, first + (group + 1) * per)
                last = self._last_used(group) if 0 <= group < len(self._bitmap) else None
                if last is not None:
                    taken = np.repeat(last[inside // cluster : -(-(inside + end - at) // cluster)] > since, cluster)
                    taken = taken[inside % cluster :][: end - at]
                    runs = equal_runs(taken, at)
                    out.append(np.stack((runs[:, 0] - physical + logical, runs[:, 0], runs[:, 1],
                                         np.full(len(runs), RUN_REUSED)), axis=1))  # fmt: skip
                at = end
        taken_rows = np.concatenate([np.zeros((0, 4), np.int64), *out])
        return rows if not len(taken_rows) else _laid_over(rows, taken_rows)


def _laid_over(rows: I64, over: I64) -> I64:
    """Extent rows (sorted by logical, no overlap) with those of `over` in place of the parts that they cover."""
    edges = np.unique(np.concatenate((rows[:, 0], rows[:, 0] + rows[:, 2], over[:, 0], over[:, 0] + over[:, 2])))
    low, high = edges[:-1], edges[1:]
    i = np.searchsorted(rows[:, 0], low, "right") - 1
    inside = (i >= 0) & (low < rows[i, 0] + rows[i, 2])
    low, high, i = low[inside], high[inside], i[inside]
    over = over[np.argsort(over[:, 0], kind="stable")]
    j = np.searchsorted(over[:, 0], low, "right") - 1
    covered = (j >= 0) & (low < over[j, 0] + over[j, 2])
    kind = np.where(covered, RUN_REUSED, rows[i, 3])
    return np.stack((low, rows[i, 1] + low - rows[i, 0], high - low, kind), axis=1)
