"""What the journal tells of blocks since a file was deleted: copies of block bitmaps, each with its sequence number.

The log is a ring: when it still holds the moment of a deletion, it holds every allocation since, whoever made it and
whatever became of it. A block whose bit is set in a later copy was given to another file, and written over by it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..model import RUN_DATA, RUN_REUSED, Reader
from ._blocks import I64
from ._ext_inode import changes, slots
from ._ext_journal import Copies
from ._ext_super import Groups, Super
from ._space import equal_runs

FIRST_TIME = 1 << 24  # smaller deletion times are numbers of inodes: the file is on the orphan list still
OUR_MAX_GROUPS = 1 << 10  # groups of which we hold when each block was last seen in use (256 KiB each)
STATE = np.dtype([("generation", "<u4"), ("links", "<u2"), ("dtime", "<u4"), ("ended", "<f8")])
NEVER, BEFORE_THE_LOG = 1 << 62, -1


class History:
    """Block bitmaps and inodes of one volume as its log's copies show them."""

    def __init__(self, reader: Reader, sb: Super, groups: Groups, log: Copies) -> None:
        self._reader, self._super, self._log = reader, sb, log
        self._bitmap = groups.block_bitmap
        self._good = groups.good
        self._used: dict[int, tuple[I64, int] | None] = {}
        self._newest = int(log.seq.max()) if len(log) else BEFORE_THE_LOG
        self._home = -1
        self._states: tuple[I64, npt.NDArray[np.void]] = (np.zeros(0, np.int64), np.zeros((0, 0), STATE))

    def deleted_in(self, home: int, index: int, generation: int) -> tuple[int, bool]:
        """The transaction in which the log first shows the inode at place `index` of table block `home` deleted.

        The second value: whether that is the one that deleted it, and the log holds all that came after. A later copy
        of a block shows the same. BEFORE_THE_LOG when the log shows nothing of it; NEVER when it shows the file alive
        and not its end.
        """
        if self._home != home:  # files come by number, so that those of one block follow each other
            self._home, self._states = home, self._states_of(home)
        seq, states = self._states
        if not len(seq) or index >= states.shape[1]:
            return BEFORE_THE_LOG, False
        own = states["generation"][:, index] == generation
        dead = own & (states["links"][:, index] == 0) & (states["dtime"][:, index] > FIRST_TIME)
        alive = own & ~dead
        if not alive.any() and not dead.any():
            return BEFORE_THE_LOG, False
        end = dead | ~own & (np.arange(len(seq)) > int((alive | dead).argmax()))
        if not end.any():
            return NEVER, False
        k = int(end.argmax())
        if not dead[k]:  # its next life: that transaction's own bitmaps show what others had already
            return int(seq[k]) - 1, False
        return int(seq[k]), self._is_its_own(int(seq[k]), float(states["ended"][k, index]))

    def _is_its_own(self, sequence: int, when: float) -> bool:
        """Whether what happened at `when`, and a copy of transaction `sequence` shows first, happened in that one.

        A transaction takes changes until the next begins, which is before its commit is written. So what is newer than
        the commit before the last was no part of anything older than the last, and had it been of that, it would show.
        """
        log = self._log
        before = log.before.get(log.before.get(sequence, -1))
        return before is not None and log.unbroken <= before and log.times[before] < when

    def _states_of(self, home: int) -> tuple[I64, npt.NDArray[np.void]]:
        """Sequence numbers int64[n], rising, and the n copies of a block of the inode table: STATE[n, slots]."""
        copies = self._log.of(home)
        tables = [slots(self._log.read(self._reader, k, self._super.block_size), self._super.inode_size)
                  for k in copies]  # fmt: skip
        width = min((len(t) for t in tables), default=0)
        states = np.zeros((len(tables), width), STATE)
        for row, table in zip(states, tables, strict=True):
            for name in ("generation", "links", "dtime"):
                row[name] = table[name][:width]
            row["ended"] = np.maximum(changes(table[:width]), row["dtime"])
        return self._log.seq[copies.start : copies.stop], states

    def _last_used(self, group: int) -> tuple[I64, int] | None:
        """For each cluster of a group the newest sequence number that shows it in use (-2: none), and the newest of
        all; None: no copy."""
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
            self._used[group] = last, int(last.max(initial=-2))
        return self._used[group]

    def without_reused(self, rows: I64, since: int) -> I64:
        """Extent rows of which those blocks are RUN_REUSED that were in use after transaction `since`."""
        if since >= self._newest:
            return rows
        out: list[I64] = []
        first, per, cluster = self._super.first_block, self._super.blocks_per_group, self._super.cluster_blocks
        for logical, physical, count, kind in rows.tolist():
            at = physical
            while kind == RUN_DATA and at < physical + count:
                group, inside = divmod(at - first, per)
                end = min(physical + count, first + (group + 1) * per)
                known = self._last_used(group) if 0 <= group < len(self._bitmap) else None
                if known is not None and known[1] > since:
                    later = known[0][inside // cluster : -(-(inside + end - at) // cluster)] > since
                    if later.any():
                        taken = np.repeat(later, cluster)[inside % cluster :][: end - at]
                        runs = equal_runs(taken, at)
                        out.append(np.stack((runs[:, 0] - physical + logical, runs[:, 0], runs[:, 1],
                                             np.full(len(runs), RUN_REUSED)), axis=1))  # fmt: skip
                at = end
        return _laid_over(rows, np.concatenate(out)) if out else rows


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
