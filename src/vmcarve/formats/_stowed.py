"""Units of a container in the order of its file, for formats that tell no more of them than their size and phase.

Where first-level tables are lost but second-level ones are left, a unit is what one of these (or 4 KiB of it) covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..model import DATA, HOLE, GuestMap, Reader, Stowed

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

MAX_UNITS = 1 << 20  # ours: of one container
PIECE = 4096  # bytes of a table of which each is a unit
STEP = 4 << 20
LEAST_NAMED = 2  # entries in use of a piece of a table


def in_row(first: int, end: int, unit: int, *, step: int = 0, size: int = 0) -> list[Stowed]:
    """Units of `unit` bytes from file offset `first` up to `end`, one each `step` bytes; none where none fits."""
    step = step or unit
    count = min((end - first + step - unit) // step, MAX_UNITS) if end - first >= unit else 0
    if count <= 0 or first < 0:
        return []
    number = np.arange(count, dtype=np.int64)
    place = first + number * step
    state = np.full(count, DATA, np.uint8)
    return [Stowed(unit, GuestMap.build(number * unit, np.full(count, unit), state, place), size)]


def by_tables(reader: Reader, clusters: Sequence[int], dtype: str, places: Callable[[U64], I64],
              least_steps: float = 0.0, parts: Callable[[U64], Bools] | None = None) -> list[Stowed]:
    """Spans of the second-level tables that are left, for the cluster size of `clusters` of which they name most.

    places(words) -> int64 of one shape: file offsets that entries name, 0 for none, -1 for what is no entry.
    least_steps: share of the entries of a piece that must follow the one before them by one cluster. parts: of entries
    of two words, uint64[n, k, 2], which parts of the cluster are there, bool[n, k, parts]; places has all of it then.
    """
    best: tuple[int, int, I64] | None = None
    for cluster in clusters:
        rows = [r for r in _tables(reader, cluster, dtype, places, least_steps, parts) if len(r)]
        if not rows:
            continue
        table = np.concatenate(rows)[: MAX_UNITS // 64]
        size = int((table > 0).sum()) * (cluster // table.shape[2])
        if best is None or size > best[0]:
            best = size, cluster // table.shape[2], table.reshape(len(table), -1)
    if best is None:
        return []
    _, part, table = best
    state = np.where(table > 0, DATA, HOLE).astype(np.uint8).ravel()
    guest_map = GuestMap.from_units(table.size * part, part, state, np.where(table > 0, table, -1).ravel())
    return [Stowed(table.shape[1] * part, guest_map)]


def sound(place: I64, cluster: int, size: int, least_steps: float) -> I64:
    """Which rows of places, int64[n, k], are pieces of tables of a file of `size` bytes; else see by_tables."""
    good = ((place == 0) | (place > 0) & (place % cluster == 0) & (place + cluster <= size)).all(axis=1)
    named = (place > 0).sum(axis=1)
    good &= named >= LEAST_NAMED
    good &= ((place[:, 1:] == place[:, :-1] + cluster) & (place[:, :-1] > 0)).sum(axis=1) >= least_steps * named
    row = np.flatnonzero(good)
    there = np.sort(place[row], axis=1)
    return row[~((there[:, 1:] == there[:, :-1]) & (there[:, 1:] > 0)).any(axis=1)]


def _tables(reader: Reader, cluster: int, dtype: str, places: Callable[[U64], I64], least_steps: float,
            parts: Callable[[U64], Bools] | None) -> Iterator[I64]:
    """Pieces of tables in file order: places int64[n, k, parts] of what they name, 0 none."""
    piece = min(cluster, PIECE)
    for at in range(0, reader.size, STEP):
        data = reader.read(at, STEP)
        words = np.frombuffer(data, dtype, len(data) // piece * (piece // np.dtype(dtype).itemsize))
        words = words.reshape(-1, piece // np.dtype(dtype).itemsize)
        words = words[words.any(axis=1)].astype(np.uint64)
        words = words if parts is None else words.reshape(len(words), words.shape[1] // 2, 2)
        place = places(words)
        row = sound(place, cluster, reader.size, least_steps)
        place = place[row][:, :, None]
        if parts is None:
            yield place
            continue
        there = parts(words[row])
        step = np.arange(there.shape[2], dtype=np.int64) * (cluster // there.shape[2])
        yield np.where((place > 0) & there, place + step, 0)
