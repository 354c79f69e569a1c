"""Confirmed structures become rows of EVIDENCE: a run of dense ones folds into one row, without Python per hit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..model import Evidence, EvidenceBatch
from ..tables import EVIDENCE

FLUSH = 1 << 16  # runs: a record batch of the table is made of at least so many, the last one excepted

I64 = npt.NDArray[np.int64]
Runs = tuple[EvidenceBatch, I64]  # what each element of a batch stands for: so many structures, one behind the other


class EvidenceRows:
    """Takes what the tasks found, in image order, and hands record batches to `emit`.

    Runs fold over task borders; only a flush ends them. Memory: FLUSH runs and what one task found.
    """

    def __init__(self, source_index: int, emit: Callable[[pa.RecordBatch], None]) -> None:
        self._source = source_index
        self._emit = emit
        self._rows: list[tuple[str, Evidence]] = []
        self._runs: list[tuple[str, Runs]] = []
        self._waiting = 0

    def add(self, rows: Sequence[tuple[str, Evidence]], runs: Sequence[tuple[str, Runs]]) -> Counter[str]:
        """The structures by kind, after taking the (module, structure) and (module, runs) pairs over."""
        counts: Counter[str] = Counter()
        for _, row in rows:
            counts[row.kind] += row.count
        for _, (batch, count) in runs:
            counts[batch.kind] += int(count.sum())
        self._rows += rows
        self._runs += runs
        self._waiting += len(rows) + sum(len(count) for _, (_, count) in runs)
        if self._waiting >= FLUSH:
            self.flush()
        return counts

    def flush(self) -> None:
        """Hands on what is waiting."""
        tables = [_of_rows(self._rows)] if self._rows else []
        tables += [_of_runs(module, folded(*runs)) for module, runs in _joined(self._runs)]
        self._rows, self._runs, self._waiting = [], [], 0
        if not tables:
            return
        table = pa.concat_tables(tables)
        offsets = table["image_offset"].to_numpy()
        if not (offsets[1:] >= offsets[:-1]).all():  # rows of one kind alone are in order, and taking all is dear
            table = table.take(pa.array(np.argsort(offsets, kind="stable")))
        table = table.add_column(0, EVIDENCE.field("source"), _repeated(self._source, table.num_rows, pa.int32()))
        for batch in table.cast(EVIDENCE).combine_chunks().to_batches():
            self._emit(batch)


def folded(batch: EvidenceBatch, count: I64 | None = None) -> Runs:
    """Structures that follow each other, numbered one by one, become one element: evidence grows with fragments.

    count: what the elements stand for already; None: one structure each. Done where a batch was confirmed, on its
    thread and in its cache, and once more over the borders between batches.
    """
    p, of = batch.image_offset, np.int64(1) if count is None else count[:-1]
    joined = p[1:] == p[:-1] + of * batch.length
    if batch.value is not None:
        joined &= batch.value[1:] == batch.value[:-1] + of
    if batch.volume_offset is not None:
        v = batch.volume_offset
        joined &= (v[1:] == v[:-1] + of * batch.length) & (v[:-1] >= 0)
    names, which = _named(batch)
    if which is not None:
        joined &= which[1:] == which[:-1]
    if joined.any():
        start = np.flatnonzero(np.concatenate((np.ones(1, np.bool_), ~joined)))
        count = np.add.reduceat(count, start) if count is not None else np.diff(start, append=len(p))
        p, value, volume = p[start], *(None if c is None else c[start] for c in (batch.value, batch.volume_offset))
        which = None if which is None else which[start]
    else:
        value, volume = batch.value, batch.volume_offset
        count = np.ones(len(p), np.int64) if count is None else count
    return EvidenceBatch(batch.kind, p, batch.length, value, volume, names, batch.confidence, which), count


NAMES = [name for name in EVIDENCE.names if name != "source"]
WITHOUT_SOURCE = pa.schema([EVIDENCE.field(name) for name in NAMES])


def _of_rows(rows: list[tuple[str, Evidence]]) -> pa.Table:
    columns = {name: [module if name == "module" else getattr(row, name) for module, row in rows] for name in NAMES}
    return pa.Table.from_pydict(columns, schema=WITHOUT_SOURCE)


def _joined(waiting: list[tuple[str, Runs]]) -> list[tuple[str, Runs]]:
    """The runs with those of one kind and shape put together."""
    groups: dict[tuple[object, ...], list[Runs]] = {}
    for module, runs in waiting:
        b = runs[0]
        names = b.identity if b.identity is None or isinstance(b.identity, str) else list
        key = (module, b.kind, b.length, b.value is None, b.volume_offset is None, names, b.confidence)
        groups.setdefault(key, []).append(runs)
    return [(str(module), group[0] if len(group) == 1 else _concatenated(group))
            for (module, *_), group in groups.items()]


def _concatenated(group: list[Runs]) -> Runs:
    batches = [b for b, _ in group]
    b = batches[0]
    names, which = b.identity, None
    if names is not None and not isinstance(names, str):
        names = [name for g in batches for name in g.identity or ()]
        before = np.cumsum([0, *(len(g.identity or ()) for g in batches)])
        which = np.concatenate([_which(g) + np.int32(n) for g, n in zip(batches, before, strict=False)])
    return EvidenceBatch(b.kind, np.concatenate([g.image_offset for g in batches]), b.length,
                         _column(g.value for g in batches), _column(g.volume_offset for g in batches), names,
                         b.confidence, which), np.concatenate([count for _, count in group])


def _which(batch: EvidenceBatch) -> npt.NDArray[np.int32]:
    """The place of each structure's name in batch.identity."""
    return np.arange(len(batch.image_offset), dtype=np.int32) if batch.which is None else batch.which


def _column(arrays: Iterable[I64 | None]) -> I64 | None:
    there = [a for a in arrays if a is not None]
    return np.concatenate(there) if there else None


def _named(batch: EvidenceBatch) -> tuple[Sequence[str] | str | None, npt.NDArray[np.int32] | None]:
    """(names, the place of each element's name among them), each name once; one name for all, or none, as it is."""
    names = batch.identity
    if names is None or isinstance(names, str):
        return names, None
    if batch.which is not None and len(set(names)) == len(names):
        return names, batch.which
    encoded = pa.array(names, pa.string()).dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)[_which(batch)]


def _of_runs(module: str, runs: Runs) -> pa.Table:
    batch, count = runs
    k, v = len(count), batch.volume_offset
    no_number = pa.nulls(k, pa.int64())
    names = _repeated(batch.identity, k, pa.string()) if batch.which is None else \
        pa.array(batch.identity, pa.string()).take(pa.array(batch.which))
    columns = {
        "image_offset": pa.array(batch.image_offset),
        "length": pa.array(count * batch.length),
        "count": pa.array(count),
        "kind": _repeated(batch.kind, k, pa.string()),
        "module": _repeated(module, k, pa.string()),
        "container_offset": no_number,
        "guest_offset": no_number,
        "volume_offset": no_number if v is None else pa.array(v, mask=v < 0),
        "identity": names,
        "value": no_number if batch.value is None else pa.array(batch.value),
        "confidence": _repeated(batch.confidence, k, pa.float32()),
    }
    return pa.Table.from_arrays([columns[name] for name in NAMES], schema=WITHOUT_SOURCE)


def _repeated(value: object, count: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)
