"""Where files end of which only the clusters are known, not the bytes: what that tells of the place of a unit.

A table of allocation says where a chain ends, though no directory that is left says how long the file is. Its data end
amid the last cluster then, and zeros follow: in a sector of other data that is rare, how rare is counted on the units.
Weaker than an end that is known to the byte (`tails.py`), such ends tell together, as sums over a unit and a place.
Where files are known to go on, an end that a unit shows speaks against the place.
Memory: 4 bytes for each sector of the units, and three times of the places; none beyond MAX_SECTORS.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .._ext.sector_tails import sector_tails
from ..model import RUN_DATA, SECTOR, Reader
from .tails import Live
from .unit_grid import Grid

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MOST_TAIL = 480  # bytes of the last sector: numbers end in zeros too, but in few
SHOWN = 0.9  # of the ends: sizes are anything, and some files end in zeros
AMID = 0.5  # how much rarer what looks like an end is inside files than anywhere
LEAST_RATE = 1e-3  # of what looks like an end among sectors with data, whatever is counted
MAX_SECTORS = 1 << 24  # ours: of the units of a file, and of the places


@dataclass(frozen=True, slots=True)
class OpenEnds:
    """at int64[k]: guest offsets behind the last cluster of files whose size is lost; cluster int64[k]: bytes of that.

    goes_on int64[r, 3]: guest offset and length of whole clusters behind which their file goes on, and bytes of one.
    """

    at: Int64s
    cluster: Int64s
    goes_on: Int64s

    @classmethod
    def none(cls) -> OpenEnds:
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3), np.int64))

    @classmethod
    def of(cls, volumes: Iterable[Live]) -> OpenEnds:
        """None where no volume has such a file."""
        ends: list[tuple[int, int]] = []
        rows: list[tuple[int, int, int]] = []
        for volume in volumes:
            cluster = volume.block_size
            for file in volume.listed if any(f.size < 0 for f in volume.listed) else ():
                runs = [(p, n) for _, p, n, kind in file.runs.tolist() if kind == RUN_DATA and p >= 0]
                if not runs or not cluster:
                    continue
                if file.size < 0:
                    ends.append((sum(runs[-1]), cluster))
                last = (runs[-1][1] - 1) // cluster * cluster  # bytes of the last run before its last cluster
                rows += [(p, n, cluster) for p, n in [*runs[:-1], (runs[-1][0], last)] if n]
        end = np.array(sorted(ends), np.int64).reshape(-1, 2)
        return cls(end[:, 0], end[:, 1], np.array(rows, np.int64).reshape(-1, 3))


@dataclass(slots=True)
class Shown:
    """What looks like ends in the units of a grid."""

    _tail: npt.NDArray[np.uint16]  # bytes of data in each sector, uint16[units, sectors]
    _by_cluster: dict[int, Bools] = field(default_factory=dict[int, Bools])

    @classmethod
    def of(cls, image: Reader, grid: Grid) -> Shown | None:
        """None where they are too large."""
        per = grid.unit // SECTOR
        if grid.unit % SECTOR or per * grid.count > MAX_SECTORS:
            return None
        tail = np.zeros((grid.count, per), np.uint16)
        for i in range(grid.count):
            data = np.frombuffer(image.read(grid.at(i, 0), grid.unit).ljust(grid.unit, b"\0"), np.uint8)
            sector_tails(data, tail[i])
        return cls(tail)

    def fitting(self, ends: OpenEnds, units: Int64s, places: Int64s) -> Floats | None:
        """float64[n, m], nats, for each of `units` at each of `places` (both by number); None where nothing tells."""
        per = self._tail.shape[1]
        if not len(ends.at) or per * len(places) > MAX_SECTORS:
            return None
        out = np.zeros((len(units), len(places)))
        full = self._tail[units] > 0
        for cluster in np.unique(ends.cluster).tolist():
            every = self._ends(cluster)
            rate = min(max(float(every.sum()) / max(1, np.count_nonzero(self._tail)), LEAST_RATE), SHOWN / 2)
            shown = every[units]
            here = _sectors(ends.at[ends.cluster == cluster] - SECTOR, places, per)
            of = ends.goes_on[ends.goes_on[:, 2] == cluster]
            inside = _sectors(np.concatenate([np.empty(0, np.int64), *(
                np.arange(p + cluster, p + n + 1, cluster) for p, n, _ in of.tolist())]) - SECTOR, places, per) & ~here
            seen, unseen = shown.astype(np.float32), (full & ~shown).astype(np.float32)
            out += np.log(SHOWN / rate) * (seen @ here.T.astype(np.float32))
            out += np.log((1 - SHOWN) / (1 - rate)) * (unseen @ here.T.astype(np.float32))
            out += np.log(AMID) * (seen @ inside.T.astype(np.float32))
        out[~full.any(axis=1)] = 0.0
        return out

    def _ends(self, cluster: int) -> Bools:
        """bool[units, sectors]: data end amid a sector of the cluster that would end with this one, zeros follow."""
        if cluster not in self._by_cluster:
            number = np.arange(self._tail.shape[1])
            last = np.maximum.accumulate(np.where(self._tail > 0, number, -1), axis=1)
            tail = np.take_along_axis(self._tail, np.maximum(last, 0), axis=1)
            near = (last >= 0) & (number - last < cluster // SECTOR)
            self._by_cluster[cluster] = near & (tail <= MOST_TAIL)
        return self._by_cluster[cluster]


def _sectors(at: Int64s, places: Int64s, per: int) -> Bools:
    """bool[m, per]: which sectors of the places, which rise, begin at one of these guest offsets."""
    out = np.zeros((len(places), per), np.bool_)
    place, sector = np.divmod(at // SECTOR, per)
    row = np.minimum(np.searchsorted(places, place), max(len(places) - 1, 0))
    there = places[row] == place if len(places) else np.zeros(len(at), np.bool_)
    out[row[there], sector[there]] = True
    return out
