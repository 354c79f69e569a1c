"""Confirmed structures become rows of EVIDENCE: a run of dense ones folds into one row, without Python per hit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..model import Evidence, EvidenceBatch
from ..tables import EVIDENCE

FLUSH = 1 << 16  # structures: a record batch of the table is made of at least so many, the last one excepted


class EvidenceRows:
    """Takes what the tasks found, in image order, and hands record batches to `emit`.

    Runs fold over task borders; only a flush ends them. Memory: FLUSH structures and what one task found.
    """

    def __init__(self, source_index: int, emit: Callable[[pa.RecordBatch], None]) -> None:
        self._source = source_index
        self._emit = emit
        self._rows: list[tuple[str, Evidence]] = []
        self._batches: list[tuple[str, EvidenceBatch]] = []
        self._waiting = 0

    def add(self, rows: Sequence[tuple[str, Evidence]], batches: Sequence[tuple[str, EvidenceBatch]]) -> Counter[str]:
        """The structures by kind, after taking the (module, structure) pairs over."""
        counts: Counter[str] = Counter()
        for _, row in rows:
            counts[row.kind] += row.count
        for _, batch in batches:
            counts[batch.kind] += len(batch.image_offset)
        self._rows += rows
        self._batches += batches
        self._waiting += counts.total()
        if self._waiting >= FLUSH:
            self.flush()
        return counts

    def flush(self) -> None:
        """Hands on what is waiting."""
        tables = [_of_rows(self._rows)] if self._rows else []
        tables += [_of_batch(module, batch) for module, batch in _joined(self._batches)]
        self._rows, self._batches, self._waiting = [], [], 0
        if not tables:
            return
        table = pa.concat_tables(tables)
        offsets = table["image_offset"].to_numpy()
        if not (offsets[1:] >= offsets[:-1]).all():  # rows of one kind alone are in order, and taking all is dear
            table = table.take(pa.array(np.argsort(offsets, kind="stable")))
        table = table.add_column(0, EVIDENCE.field("source"), _repeated(self._source, table.num_rows, pa.int32()))
        for batch in table.cast(EVIDENCE).combine_chunks().to_batches():
            self._emit(batch)


NAMES = [name for name in EVIDENCE.names if name != "source"]
WITHOUT_SOURCE = pa.schema([EVIDENCE.field(name) for name in NAMES])


def _of_rows(rows: list[tuple[str, Evidence]]) -> pa.Table:
    columns = {name: [module if name == "module" else getattr(row, name) for module, row in rows] for name in NAMES}
    return pa.Table.from_pydict(columns, schema=WITHOUT_SOURCE)


def _joined(batches: list[tuple[str, EvidenceBatch]]) -> list[tuple[str, EvidenceBatch]]:
    """The batches with those of one kind and shape put together."""
    groups: dict[tuple[object, ...], list[EvidenceBatch]] = {}
    for module, b in batches:
        names = b.identity if b.identity is None or isinstance(b.identity, str) else list
        key = (module, b.kind, b.length, b.value is None, b.volume_offset is None, names, b.confidence)
        groups.setdefault(key, []).append(b)
    out: list[tuple[str, EvidenceBatch]] = []
    for (module, *_), group in groups.items():
        b = group[0]
        if len(group) > 1:
            names, which = b.identity, None
            if names is not None and not isinstance(names, str):
                names = [name for g in group for name in g.identity or ()]
                before = np.cumsum([0, *(len(g.identity or ()) for g in group)])
                which = np.concatenate([_which(g) + int(n) for g, n in zip(group, before, strict=False)])
            b = EvidenceBatch(b.kind, np.concatenate([g.image_offset for g in group]), b.length,
                              _concatenated(g.value for g in group), _concatenated(g.volume_offset for g in group),
                              names, b.confidence, which)
        out.append((str(module), b))
    return out


def _which(batch: EvidenceBatch) -> npt.NDArray[np.int32]:
    """The place of each structure's name in batch.identity."""
    return np.arange(len(batch.image_offset), dtype=np.int32) if batch.which is None else batch.which


def _concatenated(arrays: object) -> npt.NDArray[np.int64] | None:
    there = [a for a in arrays if a is not None]  # type: ignore[attr-defined]
    return np.concatenate(there) if there else None


def _of_batch(module: str, batch: EvidenceBatch) -> pa.Table:
    """Structures that follow each other, numbered one by one, become one row: evidence grows with fragments."""
    p = batch.image_offset
    joined = p[1:] == p[:-1] + batch.length
    if batch.value is not None:
        joined &= batch.value[1:] == batch.value[:-1] + 1
    if batch.volume_offset is not None:
        joined &= (batch.volume_offset[1:] == batch.volume_offset[:-1] + batch.length) & (batch.volume_offset[:-1] >= 0)
    names, which = None, np.zeros(0, np.int32)
    if batch.identity is not None and not isinstance(batch.identity, str):
        encoded = pa.array(batch.identity, pa.string()).dictionary_encode()  # a name may stand in it more than once
        names, which = encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)[_which(batch)]
        joined &= which[1:] == which[:-1]
    start = np.flatnonzero(np.concatenate(([True], ~joined)))
    count = np.diff(np.append(start, len(p)))
    k = len(start)
    no_number = pa.nulls(k, pa.int64())
    volume = no_number
    if batch.volume_offset is not None:
        volume = pa.array(batch.volume_offset[start], mask=batch.volume_offset[start] < 0)
    columns = {
        "image_offset": pa.array(p[start]),
        "length": pa.array(count * batch.length),
        "count": pa.array(count),
        "kind": _repeated(batch.kind, k, pa.string()),
        "module": _repeated(module, k, pa.string()),
        "container_offset": no_number,
        "guest_offset": no_number,
        "volume_offset": volume,
        "identity": _repeated(batch.identity, k, pa.string()) if names is None else names.take(pa.array(which[start])),
        "value": no_number if batch.value is None else pa.array(batch.value[start]),
        "confidence": _repeated(batch.confidence, k, pa.float32()),
    }
    return pa.Table.from_arrays([columns[name] for name in NAMES], schema=WITHOUT_SOURCE)


def _repeated(value: object, count: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)
