"""The sweep of one image: ranges on worker threads, hits confirmed, evidence written in image order.

Memory is bounded by the buffers (one a thread) and by the evidence of the ranges in flight, not by the image.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .._ext.every_byte import every_byte
from .._ext.first_look import first_look, read_and_look
from ..blocks import Blocks
from ..model import SECTOR, Evidence
from ..source import ImageSource
from .bytewise import ByteTable, anywhere, compile_bytes
from .digest import ImageDigest
from .fold import EvidenceRows, Runs, folded
from .sieve import RangeBlocks, TableBlocks, TableRuns, block_sieve
from .table import MARGIN, Entry, MagicTable, compile_table, declared

RANGE = 16 << 20  # bytes a task; evidence is handed on in this order
PIECE = 256 << 10  # bytes a read, looked at while they are in the second-level cache: 512 KiB are no faster
CHUNK = 2 << 20  # bytes that are confirmed together, once a piece has a hit: a quarter has them in the cache still, but
# pays four times for the same calls (walls of XFS inodes and MFT records take a fifth and a third longer)
HITS = 4096  # hits a kernel call hands back before it is called again
HASHED_BUFFERS = 4  # of CHUNK bytes: one is read and looked at while others are hashed
CACHE_PAGE = 64 << 10


@dataclass(slots=True)
class Sweep:
    """What one sweep found: record batches of EVIDENCE are handed to `emit`, totals stand here."""

    bytes_read: int = 0
    hits: Counter[str] = field(default_factory=Counter[str])  # magics seen, by kind
    confirmed: Counter[str] = field(default_factory=Counter[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])  # kinds whose confirm raised: a defect, told
    digests: dict[str, str] = field(default_factory=dict[str, str])  # of the whole image, by name
    tables: TableRuns | None = None  # blocks that may hold a piece of an allocation table; None: nobody looked


def sweep_image(
    source: ImageSource,
    source_index: int,
    emit: Callable[[pa.RecordBatch], None],
    *,
    ranges: list[tuple[int, int]] | None = None,
    threads: int = 2,
    align: int = SECTOR,
    hashes: tuple[str, ...] = (),
    tables: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Sweep:
    """Reads `ranges` ((offset, length), rising; default: all of the image) once and emits confirmed evidence.

    emit: called on this thread, in image order. progress: called with the bytes done since the last call.
    align: 512, or 1 to look for containers at every byte too. hashes: names of digest.ALGORITHMS, of the whole image.
    tables: also look for blocks that may hold a piece of an allocation table (`Sweep.tables`), where all of the image
    is looked at by sectors.
    """
    if align not in (1, SECTOR):
        raise ValueError(f"align is {align}, not 1 or {SECTOR}")
    if hashes and ranges is not None:
        raise ValueError("a part of an image is not hashed")
    entries = declared()
    compiled = compile_table(entries), compile_bytes(anywhere(entries)) if align == 1 else None
    blocks = TableBlocks() if tables and ranges is None and align == SECTOR and not hashes else None
    result = Sweep()
    out = EvidenceRows(source_index, emit)
    tasks = _tasks(source, ranges)
    source.read_in_order()
    if hashes:
        with ImageDigest(hashes, [_page_buffer() for _ in range(HASHED_BUFFERS)]) as digest:
            _one_thread(_Worker(source, *compiled, digest), tasks, result, out, blocks, progress)
            result.digests = digest.finish(source.size)
    elif threads <= 1:
        _one_thread(_Worker(source, *compiled, tables=blocks is not None), tasks, result, out, blocks, progress)
    else:
        _many_threads(lambda: _Worker(source, *compiled, tables=blocks is not None), threads, tasks, result, out,
                      blocks, progress)
    out.flush()
    result.tables = blocks.told() if blocks is not None else None
    return result


def _one_thread(worker: _Worker, tasks: Iterator[tuple[int, int]], result: Sweep, out: EvidenceRows,
                blocks: TableBlocks | None, progress: Callable[[int], None] | None) -> None:
    for start, end in tasks:
        _finish((worker.sweep(start, end), end - start), result, out, blocks, progress)


def _many_threads(make: Callable[[], _Worker], threads: int, tasks: Iterator[tuple[int, int]], result: Sweep,
                  out: EvidenceRows, blocks: TableBlocks | None, progress: Callable[[int], None] | None) -> None:
    local = threading.local()

    def work(start: int, end: int) -> tuple[_Found, int]:
        if not hasattr(local, "worker"):
            local.worker = make()
        return local.worker.sweep(start, end), end - start

    with ThreadPoolExecutor(threads, thread_name_prefix="sweep") as pool:
        waiting: deque[Future[tuple[_Found, int]]] = deque()
        try:
            for start, end in tasks:
                waiting.append(pool.submit(work, start, end))
                if len(waiting) > 2 * threads + 2:
                    _finish(waiting.popleft().result(), result, out, blocks, progress)
            while waiting:
                _finish(waiting.popleft().result(), result, out, blocks, progress)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class CachedReader:
    """Small reads of a source: from the chunk that is being looked at, else in pages. One thread each."""

    PAGES = 64

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._pages: dict[int, bytes] = {}
        self._chunk = memoryview(b"")
        self._chunk_at = 0

    def show(self, at: int, chunk: memoryview) -> None:
        """Image bytes from `at` on that need not be read again; theirs until the next call."""
        self._chunk_at, self._chunk = at, chunk

    @property
    def size(self) -> int:
        return self._source.size

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length <= 0:
            return b""
        inside = offset - self._chunk_at
        if 0 <= inside and inside + length <= len(self._chunk):
            return bytes(self._chunk[inside : inside + length])
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
    runs: list[tuple[str, Runs]] = field(default_factory=list[tuple[str, Runs]])
    hits: Counter[str] = field(default_factory=Counter[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    tables: TableRuns | None = None  # see Sweep.tables

    def tell(self, entry: Entry, error: Exception, image_offset: int) -> None:
        """One kind's defect must not end the sweep: it is told in the case, and the other hits go on."""
        said = f"{type(error).__name__}: {error} (image_offset {image_offset:#x})"
        self.failed.setdefault(entry.signature.kind, said)


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


def _page_buffer() -> memoryview:
    """Room for a chunk and its margin that begins on a page: the kernel copies into it a third faster than to 16 bytes
    behind one, where malloc would put it (benches/test_sweep.py)."""
    return memoryview(mmap.mmap(-1, CHUNK + MARGIN))


class _Worker:
    """One thread's buffers, and what it does with a range."""

    def __init__(self, source: ImageSource, table: MagicTable, anywhere: ByteTable | None = None,
                 digest: ImageDigest | None = None, tables: bool = False) -> None:
        self._sieve = block_sieve() if tables else None
        self._source = source
        self._table = table
        self._anywhere = anywhere
        self._digest = digest
        self._reader = CachedReader(source)
        self._sectors = np.empty(max(HITS, len(table.entries)), np.int64)  # and places, of the search at every byte
        self._magics = np.empty(len(self._sectors), np.int32)
        self._at = self._filled = 0  # image offset of the buffer's first byte, and how many bytes are there
        if digest is None:
            self._use(_page_buffer())

    def _use(self, view: memoryview) -> None:
        self._view, self._buffer = view, np.frombuffer(view, np.uint8)

    def sweep(self, start: int, end: int) -> _Found:
        """What begins in [start, end)."""
        if self._anywhere is None and self._digest is None:
            found = self._sweep_sectors(start, end)
        else:
            found = self._sweep_chunks(start, end)
        self._source.done_with(start, end - start)
        return found

    def _sweep_sectors(self, start: int, end: int) -> _Found:
        found, piece, chunk = _Found(), min(PIECE, CHUNK), self._buffer[:CHUNK]
        blocks = RangeBlocks(self._sieve, start, end) if self._sieve is not None else None
        # with a second look at every piece, one at a time: the next takes its place in the buffer
        state = np.array([start, 0, 0, end if blocks is None else min(start + piece, end), 0], np.int64)  # see the .pyx
        while True:
            n = read_and_look(self._table.look, self._source.plain_fd, state, chunk, piece, self._sectors, self._magics)
            self._at, self._filled = int(state[0]), int(state[1])
            if n:
                self._confirm(found, self._sectors[:n], self._magics[:n])
            if state[4]:  # the source knows what to do about a bad sector, and how it is read if not with pread
                filled = int(state[1])
                want = min(piece - filled % SECTOR, CHUNK - filled, end - self._at - filled)
                state[1] += self._source.readinto(self._at + filled, self._view[filled : filled + want])
            elif n == 0:
                if blocks is not None:
                    blocks.look(chunk[: int(state[1])], int(state[0]))
                if state[3] >= end:
                    found.tables = blocks.told() if blocks is not None else None
                    return found
                state[3] = min(int(state[3]) + piece, end)

    def _sweep_chunks(self, start: int, end: int) -> _Found:
        """The same, chunk by chunk, for what needs every byte: hashes, and containers that begin anywhere.

        A magic begins in what is searched and may reach behind.
        """
        found, reach = _Found(), self._anywhere.reach if self._anywhere is not None else 0
        step = CHUNK if self._digest is not None else min(2 * PIECE, CHUNK)
        for at in range(start, end, step):
            if self._digest is not None:
                self._use(self._digest.buffer())
            length = min(step, end - at)
            self._at, self._filled = at, self._source.readinto(at, self._view[: length + reach])
            self._look(found, length)
            if self._anywhere is not None:
                self._search(found, length, self._anywhere)
            if self._digest is not None:
                self._digest.take(at, self._view, length)
        return found

    def _look(self, found: _Found, length: int) -> None:
        resume = np.zeros(1, np.int64)
        while resume[0] < length // SECTOR:
            n = first_look(self._table.look, self._buffer[:length], self._sectors, self._magics, resume)
            if n:
                self._confirm(found, self._sectors[:n], self._magics[:n])

    def _search(self, found: _Found, length: int, anywhere: ByteTable) -> None:
        resume = np.zeros(1, np.int64)
        while resume[0] < length:
            n = every_byte(anywhere.search, self._buffer[: self._filled], self._at, length, self._sectors, self._magics,
                           resume)
            if n:
                self._reader.show(self._at, self._view[: self._filled])
            for place, m in zip(self._sectors[:n].tolist(), self._magics[:n].tolist(), strict=True):
                entry = anywhere.entries[m]
                found.hits[entry.signature.kind] += 1
                self._confirm_one(found, entry, self._at + place - entry.signature.at)

    def _confirm(self, found: _Found, sectors: npt.NDArray[np.int64], magics: npt.NDArray[np.int32]) -> None:
        self._reader.show(self._at, self._view[: self._filled])
        counts = np.bincount(magics)
        for m in np.flatnonzero(counts).tolist():
            entry = self._table.entries[m]
            where = (sectors if counts[m] == len(magics) else sectors[magics == m]) * SECTOR
            found.hits[entry.signature.kind] += len(where)
            if entry.signature.dense:
                self._confirm_batch(found, entry, where)
                continue
            for offset in (where + self._at - entry.back).tolist():
                self._confirm_one(found, entry, offset)

    def _confirm_one(self, found: _Found, entry: Entry, offset: int) -> None:
        assert entry.confirm is not None
        if entry.reaches and not self._fits(entry, offset):
            return
        try:
            row = entry.confirm(self._reader, offset, entry.signature) if offset >= 0 else None
        except Exception as e:
            found.tell(entry, e, offset)
            return
        if row is not None:
            found.rows.append((entry.module, row))

    def _fits(self, entry: Entry, offset: int) -> bool:
        """The second field, where the kernel may not have had its bytes yet: a read is cheaper than confirming."""
        assert entry.signature.also is not None
        at, mask, value = entry.signature.also
        field = self._reader.read(offset + at, len(mask))
        same = int.from_bytes(field, "little") & int.from_bytes(mask, "little") == int.from_bytes(value, "little")
        return same and len(field) == len(mask)

    def _confirm_batch(self, found: _Found, entry: Entry, where: npt.NDArray[np.int64]) -> None:
        assert entry.confirm_batch is not None
        size = entry.signature.size
        reach = int(where[-1]) + size
        if reach > self._filled:  # behind what was read: it is read now
            more = self._view[self._filled : reach]
            self._filled += self._source.readinto(self._at + self._filled, more)
        where = where[: np.searchsorted(where, self._filled - size, "right")]
        if len(where) == 0:
            return
        try:
            batch = entry.confirm_batch(Blocks(self._buffer, where, size), where + self._at, entry.signature)
            if batch is not None and len(batch.image_offset):
                found.runs.append((entry.module, folded(batch)))
        except Exception as e:
            found.tell(entry, e, int(where[0]) + self._at)


def _finish(done: tuple[_Found, int], result: Sweep, out: EvidenceRows, blocks: TableBlocks | None,
            progress: Callable[[int], None] | None) -> None:
    found, length = done
    if blocks is not None and found.tables is not None:
        blocks.add(found.tables)
    result.bytes_read += length
    result.hits.update(found.hits)
    result.failed.update(found.failed)
    result.confirmed.update(out.add(found.rows, found.runs))
    if progress is not None:
        progress(length)
