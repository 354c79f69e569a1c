"""The sweep of one image: ranges on worker threads, hits confirmed, evidence written in image order.

Memory is bounded by the buffers (one a thread) and by the evidence of the ranges in flight, not by the image.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from .._ext.first_look import first_look
from ..model import SECTOR, Evidence, EvidenceBatch
from ..source import ImageSource
from ..tables import EVIDENCE
from .table import Entry, MagicTable, compile_table, declared

RANGE = 8 << 20  # bytes a task; evidence is handed on in this order
CHUNK = 1 << 20  # bytes a read: stays in L2, and one call's cost is lost in it
MARGIN = 64 << 10  # a dense structure starts in the chunk and may reach this far behind it
HITS = 4096  # hits a kernel call hands back before it is called again
CACHE_PAGE = 64 << 10


@dataclass(slots=True)
class Sweep:
    """What one sweep found: record batches of EVIDENCE are handed to `emit`, totals stand here."""

    bytes_read: int = 0
    hits: Counter[str] = field(default_factory=Counter[str])  # magics seen, by kind
    confirmed: Counter[str] = field(default_factory=Counter[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])  # kinds whose confirm raised: a defect, told


def sweep_image(
    source: ImageSource,
    source_index: int,
    emit: Callable[[pa.RecordBatch], None],
    *,
    ranges: list[tuple[int, int]] | None = None,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Sweep:
    """Reads `ranges` ((offset, length), rising; default: all of the image) once and emits confirmed evidence.

    emit: called on this thread, in image order. progress: called with the bytes done since the last call.
    """
    table = compile_table(declared())
    result = Sweep()
    local = threading.local()
    tasks = _tasks(source, ranges)

    def work(start: int, end: int) -> tuple[_Found, int]:
        buffer = getattr(local, "buffer", None)
        if buffer is None:
            buffer = local.buffer = np.empty(CHUNK + MARGIN, np.uint8)
            local.reader = CachedReader(source)
        return _sweep_range(source, local.reader, table, buffer, start, end), end - start

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="sweep") as pool:
        waiting: deque[Future[tuple[_Found, int]]] = deque()
        try:
            for start, end in tasks:
                waiting.append(pool.submit(work, start, end))
                if len(waiting) > 2 * threads + 2:
                    _finish(waiting.popleft(), result, source_index, emit, progress)
            while waiting:
                _finish(waiting.popleft(), result, source_index, emit, progress)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return result


class CachedReader:
    """Small reads of a source in pages: what confirmation asks for lies close together. One thread each."""

    PAGES = 64

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._pages: dict[int, bytes] = {}

    @property
    def size(self) -> int:
        return self._source.size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length <= 0:
            return b""
        if length > CACHE_PAGE * 2:
            return self._source.read(offset, length)
        first, last = offset // CACHE_PAGE, (offset + length - 1) // CACHE_PAGE
        data = b"".join(self._page(i) for i in range(first, last + 1))
        return data[offset - first * CACHE_PAGE : offset - first * CACHE_PAGE + length]

    def missing(self, offset: int, length: int) -> bool:
        return self._source.missing(offset, length)

    def _page(self, index: int) -> bytes:
        page = self._pages.get(index)
        if page is None:
            if len(self._pages) >= self.PAGES:
                self._pages.pop(next(iter(self._pages)))
            page = self._pages[index] = self._source.read(index * CACHE_PAGE, CACHE_PAGE)
        return page


@dataclass(slots=True)
class _Found:
    rows: list[tuple[str, Evidence]] = field(default_factory=list[tuple[str, Evidence]])  # module, row
    batches: list[tuple[str, EvidenceBatch]] = field(default_factory=list[tuple[str, EvidenceBatch]])
    hits: Counter[str] = field(default_factory=Counter[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])


def _tasks(source: ImageSource, ranges: list[tuple[int, int]] | None) -> Iterator[tuple[int, int]]:
    """Sector-aligned (start, end) pieces of at most RANGE bytes; holes of a sparse image are passed over."""
    for offset, length in ranges if ranges is not None else [(0, source.size)]:
        for start, end in _data_ranges(source, offset, min(offset + length, source.size)):
            at = start // SECTOR * SECTOR
            while at < end:
                upto = min(end, (at // RANGE + 1) * RANGE)
                yield at, upto
                at = upto


def _data_ranges(source: ImageSource, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the image has data (a magic is never all zeros): SEEK_DATA where the file system knows it."""
    at = start
    while at < end:
        try:
            data = os.lseek(source.fd, at, os.SEEK_DATA)
            hole = os.lseek(source.fd, data, os.SEEK_HOLE)
        except OSError as e:
            if e.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            yield at, end  # not known here (a device, another system)
            return
        except AttributeError:
            yield at, end
            return
        if data >= end:
            return
        yield data, min(hole, end)
        at = hole


def _sweep_range(source: ImageSource, reader: CachedReader, table: MagicTable, buffer: np.ndarray,
                 start: int, end: int) -> _Found:
    found = _Found()
    sectors = np.empty(max(HITS, len(table.entries)), np.int64)
    magics = np.empty(len(sectors), np.int32)
    resume = np.zeros(1, np.int64)
    for at in range(start, end, CHUNK):
        length = min(CHUNK, end - at)
        filled = source.readinto(at, memoryview(buffer)[: length + MARGIN])
        look = buffer[: min(length, filled)]
        done = 0
        while done < len(look) // SECTOR:
            n = first_look(look[done * SECTOR :], table.probe, table.gate, table.first, table.next_, table.magic,
                           table.room, sectors, magics, resume)
            if n:
                _confirm(found, reader, table, buffer[:filled], at, sectors[:n] + done, magics[:n])
            done += int(resume[0])
    return found


def _confirm(found: _Found, reader: CachedReader, table: MagicTable, block: np.ndarray, at: int,
             sectors: np.ndarray, magics: np.ndarray) -> None:
    for m in np.unique(magics).tolist():
        entry = table.entries[m]
        where = sectors[magics == m] * SECTOR
        kind = entry.signature.kind
        found.hits[kind] += len(where)
        try:
            if entry.signature.dense:
                _confirm_dense(found, entry, block, at, where)
            else:
                assert entry.confirm is not None
                for offset in (where + at - entry.back).tolist():
                    row = entry.confirm(reader, offset, entry.signature) if offset >= 0 else None
                    if row is not None:
                        found.rows.append((entry.module, row))
        except Exception as e:  # one kind's defect must not end the sweep; it is told in the case
            found.failed[kind] = f"{type(e).__name__}: {e} (image_offset {at:#x})"


def _confirm_dense(found: _Found, entry: Entry, block: np.ndarray, at: int, where: np.ndarray) -> None:
    assert entry.confirm_batch is not None
    size = entry.signature.size
    where = where[where + size <= len(block)]
    if len(where) == 0:
        return
    rows = np.lib.stride_tricks.sliding_window_view(block, size)[where]
    batch = entry.confirm_batch(np.ascontiguousarray(rows), where + at, entry.signature)
    if batch is not None and len(batch.image_offset):
        found.batches.append((entry.module, batch))


def _finish(future: Future[tuple[_Found, int]], result: Sweep, source_index: int,
            emit: Callable[[pa.RecordBatch], None], progress: Callable[[int], None] | None) -> None:
    found, length = future.result()
    result.bytes_read += length
    result.hits.update(found.hits)
    result.failed.update(found.failed)
    columns = [_columns(found.rows), *(_fold(m, b) for m, b in found.batches)]
    columns = [c for c in columns if len(c["image_offset"])]
    for c in columns:
        for kind, count in zip(c["kind"], c["count"], strict=True):
            result.confirmed[kind] += int(count)
    if columns:
        merged = {name: [v for c in columns for v in c[name]] for name in columns[0]}
        order = sorted(range(len(merged["image_offset"])), key=merged["image_offset"].__getitem__)
        data = {name: [values[i] for i in order] for name, values in merged.items()}
        data["source"] = [source_index] * len(order)
        emit(pa.RecordBatch.from_pydict(data, schema=EVIDENCE))
    if progress is not None:
        progress(length)


def _columns(rows: list[tuple[str, Evidence]]) -> dict[str, list[object]]:
    names = [f.name for f in EVIDENCE if f.name not in ("source", "module")]
    columns: dict[str, list[object]] = {name: [getattr(row, name) for _, row in rows] for name in names}
    columns["module"] = [module for module, _ in rows]
    return columns


def _fold(module: str, batch: EvidenceBatch) -> dict[str, list[object]]:
    """Structures that follow each other, numbered one by one, become one row: evidence grows with fragments."""
    p = batch.image_offset
    n = len(p)
    joined = p[1:] == p[:-1] + batch.length
    if batch.value is not None:
        joined &= batch.value[1:] == batch.value[:-1] + 1
    if batch.volume_offset is not None:
        joined &= (batch.volume_offset[1:] == batch.volume_offset[:-1] + batch.length) & (batch.volume_offset[:-1] >= 0)
    names = batch.identity
    if names is not None and not isinstance(names, str):
        joined &= np.array([a == b for a, b in zip(names[1:], names[:-1], strict=True)], bool)
    start = np.flatnonzero(np.concatenate(([True], ~joined)))
    count = np.diff(np.append(start, n))
    k = len(start)
    volume = None if batch.volume_offset is None else batch.volume_offset[start].tolist()
    return {
        "image_offset": p[start].tolist(),
        "length": (count * batch.length).tolist(),
        "count": count.tolist(),
        "kind": [batch.kind] * k,
        "module": [module] * k,
        "container_offset": [None] * k,
        "guest_offset": [None] * k,
        "volume_offset": [None] * k if volume is None else [v if v >= 0 else None for v in volume],
        "identity": [names] * k if names is None or isinstance(names, str) else [names[i] for i in start.tolist()],
        "value": [None] * k if batch.value is None else batch.value[start].tolist(),
        "confidence": [batch.confidence] * k,
    }
