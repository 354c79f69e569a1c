"""Units of a container in the order of its file, for formats that tell no more of them than their size and phase.

Where first-level tables are lost but second-level ones are left, a unit is what one of these (or 4 KiB of it) covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ..model import DATA, HOLE, LOST, GuestMap, Reader, Stowed

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

MAX_UNITS = 1 << 20  # ours: of one container
PIECE = 4096  # bytes of a table of which each is a unit
STEP = 4 << 20
NO_UNIT, UNTOLD = -1, -2  # see Stowed.links
LEAST_NAMED = 2  # entries in use of a piece of a table
MOST_BESIDE = 4  # clusters of tables and the like beside a span whose table is lost


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
              least_steps: float = 0.0, parts: Callable[[U64], Bools] | None = None,
              spare: Callable[[bytes], bool] = lambda cluster: False) -> list[Stowed]:
    """Spans of the second-level tables that are left, for the cluster size of `clusters` of which they name most.

    places(words) -> int64 of one shape: file offsets that entries name, 0 for none, -1 for what is no entry.
    least_steps: share of the entries of a piece that must follow the one before them by one cluster. parts: of entries
    of two words, uint64[n, k, 2], which parts of the cluster are there, bool[n, k, parts]; places has all of it then.
    spare: whether a cluster holds something else than the guest or a table.
    """
    best: tuple[int, int, I64, I64] | None = None
    for cluster in clusters:
        found = [(at, r) for at, r in _tables(reader, cluster, dtype, places, least_steps, parts) if len(r)]
        if not found:
            continue
        at, table = (np.concatenate(part)[: MAX_UNITS // 64] for part in zip(*found, strict=True))
        size = int((table > 0).sum()) * (cluster // table.shape[2])
        if best is None or size > best[0]:
            best = size, cluster // table.shape[2], at, table.reshape(len(table), -1)
    if best is None:
        return []
    _, part, at, table = best
    links = None
    if parts is None and part <= PIECE:  # else a piece is no whole table
        table, links = _in_order(reader, at, table, part, spare)
    state = np.select([table > 0, table < 0], [DATA, LOST], HOLE).astype(np.uint8).ravel()
    guest_map = GuestMap.from_units(table.size * part, part, state, np.where(table > 0, table, -1).ravel())
    return [Stowed(table.shape[1] * part, guest_map, links=links)]


def _in_order(reader: Reader, at: I64, table: I64, cluster: int, spare: Callable[[bytes], bool]) -> tuple[I64, I64]:
    """The tables (at file offsets `at`) in the order of what they name, with spans of lost ones between them, and which
    follows which (see `Stowed.links`).

    Clusters between others that no table names are what a lost one covered. Where it is all there and nothing else,
    they are it; else its place in the order is known, and all of it is lost (-1).
    """
    links = _linked(at, table, cluster)
    per = table.shape[1]
    taken = np.unique(np.concatenate((table[table > 0], at))) // cluster
    bound = np.concatenate(([-1], taken, [reader.size // cluster]))
    length = np.diff(bound) - 1
    first: list[int] = []
    spans: list[I64] = []
    for i in np.flatnonzero(length > per // 2).tolist():
        begin, n = int(bound[i]) + 1, int(length[i])
        count = (n + per // 2) // (per + 1)
        known = _span_in(reader, begin, n, per, cluster, spare) if count == 1 else -1
        for k in range(min(count, MAX_UNITS // 64 - len(spans))):
            first.append((begin + k * (n // count)) * cluster)
            spans.append(known + np.arange(per) * cluster if known >= 0 else np.full(per, -1))
    begins = np.where(table > 0, table, np.iinfo(np.int64).max).min(axis=1)
    order = np.argsort(np.concatenate((begins, np.array(first, np.int64))), kind="stable")
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    links = np.concatenate((np.where(links >= 0, number[links], links), np.full((len(first), 2), UNTOLD)))
    return np.concatenate((table, np.array(spans, np.int64).reshape(-1, per)))[order], links[order]


def _span_in(reader: Reader, begin: int, n: int, per: int, cluster: int, spare: Callable[[bytes], bool]) -> int:
    """The file offset of `per` clusters that hold data among n from number `begin` on, where all others are lost tables
    or spare; -1 where they may be others as well."""
    def no_data(k: int) -> bool:
        place = (begin + k) * cluster
        return reader.missing(place, cluster) or spare(reader.read(place, cluster))

    more = n - per
    if not 0 <= more <= MOST_BESIDE:
        return -1
    low = next((k for k in range(more) if not no_data(k)), more)
    high = next((k for k in range(more) if not no_data(n - 1 - k)), more)
    could = [k for k in range(more + 1) if k <= low and more - k <= high]
    return (begin + could[0]) * cluster if len(could) == 1 else -1


def _linked(at: I64, table: I64, cluster: int) -> I64:
    """int64[n, 2], see `Stowed.links`: of tables of one cluster at file offsets `at`, rising, by the places they name.

    A write that goes on over the end of what a table covers has the next table allocated then, right behind its last
    cluster (or behind a cluster of refcounts); where others write at the same time, what it names comes later. A table
    right behind which its own first cluster lies may be another write's, and says nothing (seen: qemu-img 7.2 with
    clusters of 512 bytes and -W: of 7,000 tables behind which another's clusters lie every one was the next).
    """
    begin, end = np.where(table > 0, table, np.iinfo(np.int64).max).min(axis=1), table.max(axis=1) + cluster
    taken = np.unique(np.concatenate((table[table > 0], at)))

    def is_taken(place: I64) -> Bools:
        return taken[np.minimum(np.searchsorted(taken, place), len(taken) - 1)] == place

    own = (begin == at + cluster) | (begin == at + 2 * cluster) & ~is_taken(at + cluster)
    behind = end + np.where(is_taken(end), 0, cluster)  # what may be refcounts is passed over
    near = np.minimum(np.searchsorted(at, behind), len(at) - 1)
    is_table = (at[near] == behind) & (near != np.arange(len(at)))
    out = np.full((len(at), 2), UNTOLD)
    out[is_taken(end) & ~is_table, 0] = NO_UNIT
    out[is_taken(at - cluster) & ~own, 1] = NO_UNIT
    good = np.flatnonzero(is_table & ~own[near])
    out[good, 0] = near[good]
    out[near[good], 1] = good
    return out


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
            parts: Callable[[U64], Bools] | None) -> Iterator[tuple[I64, I64]]:
    """Pieces of tables in file order: where each lies, and places int64[n, k, parts] of what they name, 0 none."""
    piece = min(cluster, PIECE)
    for at in range(0, reader.size, STEP):
        data = reader.read(at, STEP)
        words = np.frombuffer(data, dtype, len(data) // piece * (piece // np.dtype(dtype).itemsize))
        words = words.reshape(-1, piece // np.dtype(dtype).itemsize)
        some = np.flatnonzero(words.any(axis=1))
        words = words[some].astype(np.uint64)
        words = words if parts is None else words.reshape(len(words), words.shape[1] // 2, 2)
        place = places(words)
        row = sound(place, cluster, reader.size, least_steps)
        place = place[row][:, :, None]
        if parts is None:
            yield at + some[row] * piece, place
            continue
        there = parts(words[row])
        step = np.arange(there.shape[2], dtype=np.int64) * (cluster // there.shape[2])
        yield at + some[row] * piece, np.where((place > 0) & there, place + step, 0)
