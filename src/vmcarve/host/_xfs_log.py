"""The XFS log: what its transactions say of inodes and blocks, oldest first.

Sources: XFS Algorithms & Data Structures (3rd edition), "Journaling Log"; fs/xfs/libxfs/xfs_log_format.h. Checked
against logs of Linux 6.18. Record and operation headers are big-endian; items are in the byte order of the machine
that wrote them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..model import Reader
from ._blocks import SWEEP_BYTES
from ._xfs_super import Super

BB = 512
RECORD_MAGIC = 0xFEEDBABE
FORMAT_MAX_RECORD = 256 << 10  # largest in-core log buffer
WORDS_PER_HEADER = 64  # first words of body sectors that one header sector keeps
OP_START, OP_COMMIT, OP_CONTINUE, OP_WAS_CONTINUED, OP_END, OP_UNMOUNT = 1, 2, 4, 8, 0x10, 0x20
ITEM_INODE, ITEM_BUFFER = 0x123B, 0x123C
ITEM_TYPES = range(0x1236, 0x1260)
BUFFER_CANCEL = 0x2
CHUNK = 128  # bytes of a buffer that one bit of its map stands for
FIELDS_FORK, FIELD_EXTENTS, FIELD_ROOT, FIELD_LOCAL = 0x2 | 0x4 | 0x8, 0x4, 0x8, 0x2
OUR_MAX_RECORDS = 1 << 22
OUR_MAX_TRANSACTION = 256 << 20  # bytes of one transaction


@dataclass(frozen=True, slots=True)
class Record:
    lsn: int
    block: int  # of the log, in 512-byte units
    headers: int
    length: int
    tail: int
    before: int
    operations: int


@dataclass(frozen=True, slots=True)
class InodeItem:
    """An inode as logged. core: xfs_log_dinode; fork: what `fields` says (extent list, btree root or local data)."""

    lsn: int
    ino: int
    fields: int
    core: bytes
    fork: bytes
    order: str


@dataclass(frozen=True, slots=True)
class BufferItem:
    """Changed parts of a buffer. place: byte offset in the volume; length: bytes; parts: (offset, bytes)."""

    lsn: int
    place: int
    length: int
    cancel: bool
    parts: list[tuple[int, bytes]]


class Log:
    """The internal log of a volume. ended: its last record is an unmount; clean: so it is, or a part is missing and
    nobody can know. unbroken, once it was gone through: the record from which on none is missing.
    """

    def __init__(self, reader: Reader, sb: Super) -> None:
        self._reader, self._sb = reader, sb
        start = sb.block_of(sb.log_start) if sb.log_start else None
        self._start = sb.place(start) if start is not None else -1
        self._size = sb.log_blocks * sb.block_size // BB
        self.records = self._find_records() if start is not None else []
        self.clean, self.ended = True, False
        self.tail = self.unbroken = 0
        if self.records:
            last = self.records[-1]
            operations = _operations(self._body(last) or b"", last.operations)
            self.ended = any(flags & OP_UNMOUNT for _, flags, _ in operations)
            if not reader.missing(self._start, self._size * BB):
                self.tail, self.clean = last.tail, self.ended

    def _read(self, block: int, count: int) -> bytes:
        """`count` sectors of the log from `block`, going on at its start behind its end."""
        ahead = min(count, self._size - block)
        data = self._reader.read(self._start + block * BB, ahead * BB).ljust(ahead * BB, b"\0")
        if ahead < count:
            data += self._reader.read(self._start, (count - ahead) * BB).ljust((count - ahead) * BB, b"\0")
        return data

    def _find_records(self) -> list[Record]:
        found: list[Record] = []
        for at in range(0, self._size, SWEEP_BYTES // BB):
            count = min(SWEEP_BYTES // BB, self._size - at)
            sectors = np.frombuffer(self._read(at, count), np.uint8).reshape(count, BB)
            heads = np.ascontiguousarray(sectors[:, :4]).view(">u4")[:, 0]
            for i in np.flatnonzero(heads == RECORD_MAGIC).tolist():
                record = self._record(sectors[i].tobytes(), at + i)
                if record is not None:
                    found.append(record)
            if len(found) > OUR_MAX_RECORDS:
                break
        found.sort(key=lambda r: r.lsn)
        return found

    def _record(self, head: bytes, block: int) -> Record | None:
        cycle, version, length, lsn, tail = struct.unpack_from(">IIIQQ", head, 4)
        before, operations = struct.unpack_from(">II", head, 36)
        size = struct.unpack_from(">I", head, 320)[0]
        if version not in (1, 2) or lsn & 0xFFFFFFFF != block or lsn >> 32 != cycle or head[304:320] != self._sb.uuid:
            return None
        headers = max(-(-size // (32 << 10)), 1) if version == 2 else 1
        # records without operations are stamps that clear the log ahead of its head
        if not 0 < operations or not 0 < length <= FORMAT_MAX_RECORD or headers > 8:
            return None
        return Record(lsn, block, headers, length, tail, before, operations)

    def _body(self, record: Record) -> bytes | None:
        """A record's operations, or None when other records have been written over part of it."""
        sectors = -(-record.length // BB)
        if record.headers * WORDS_PER_HEADER < sectors or record.headers + sectors > self._size:
            return None
        data = self._read(record.block, record.headers + sectors)
        words = np.frombuffer(data, ">u4").reshape(-1, BB // 4)
        body = words[record.headers :].astype(np.uint32)
        cycle = record.lsn >> 32
        wrapped = (record.block + record.headers + np.arange(sectors)) >= self._size
        if (body[:, 0] != cycle + wrapped).any():
            return None
        kept = [words[0, 11 : 11 + WORDS_PER_HEADER], *words[1 : record.headers, 1 : 1 + WORDS_PER_HEADER]]
        body[:, 0] = np.concatenate(kept)[:sectors]
        return body.astype(">u4").tobytes()[: record.length]

    def transactions(self, since: int = 0) -> Iterator[list[InodeItem | BufferItem]]:
        """Every whole transaction in records from lsn `since` on, in the order of their commits.

        What happened to one thing within a transaction is merged into one item; their order there says nothing.
        """
        pending: dict[int, _Transaction] = {}
        previous = -1
        for record in self.records:
            if record.lsn < since:
                continue
            body = self._body(record)
            if body is None or (previous >= 0 and record.before != previous):
                pending.clear()  # a gap: what began before it has lost its middle
                self.unbroken = record.lsn
            previous = record.block if body is not None else -1
            for tid, flags, data in _operations(body or b"", record.operations):
                if flags & OP_START:
                    pending[tid] = _Transaction()
                transaction = pending.get(tid)
                if transaction is None or flags & OP_UNMOUNT:
                    continue
                if flags & OP_COMMIT:
                    del pending[tid]
                    yield list(_parse(transaction.regions, record.lsn))
                elif data and not transaction.add(flags, data):
                    del pending[tid]


@dataclass(slots=True)
class _Transaction:
    regions: list[bytes] = field(default_factory=list[bytes])
    held: int = 0
    parts: list[bytes] = field(default_factory=list[bytes])

    def add(self, flags: int, data: bytes) -> bool:
        """Adds a region, or the next part of one; False when the transaction grows beyond our bound."""
        self.held += len(data)
        if flags & OP_WAS_CONTINUED:
            self.parts.append(data)
        else:
            self.parts = [data]
        if not flags & OP_CONTINUE:
            self.regions.append(b"".join(self.parts))
            self.parts = []
        return self.held <= OUR_MAX_TRANSACTION


def _operations(body: bytes, count: int) -> Iterator[tuple[int, int, bytes]]:
    """(transaction, flags, data) of each of a record's operations; what follows them is padding."""
    at = 0
    for _ in range(count):
        if at + 12 > len(body):
            return
        tid, length, _, flags = struct.unpack_from(">IIBB", body, at)
        at += 12
        if at + length > len(body):
            return
        yield tid, flags, body[at : at + length]
        at += length


def _order(region: bytes) -> str | None:
    """Byte order of an item's first region, None when it is none."""
    if len(region) < 4:
        return None
    if struct.unpack_from("<H", region)[0] in ITEM_TYPES:
        return "<"
    return ">" if struct.unpack_from(">H", region)[0] in ITEM_TYPES else None


def _parse(regions: list[bytes], lsn: int) -> Iterator[InodeItem | BufferItem]:
    i = 0
    while i < len(regions):
        order = _order(regions[i])
        if order is None:  # the transaction's header
            i += 1
            continue
        kind, count = struct.unpack_from(order + "HH", regions[i])
        item = regions[i : i + max(count, 1)]
        i += max(count, 1)
        if kind == ITEM_INODE:
            parsed = _inode(item, order, lsn)
        elif kind == ITEM_BUFFER:
            parsed = _buffer(item, order, lsn)
        else:
            continue
        if parsed is not None:
            yield parsed


def _inode(item: list[bytes], order: str, lsn: int) -> InodeItem | None:
    head = item[0]
    if len(item) < 2 or len(head) not in (52, 56):
        return None
    fields = struct.unpack_from(order + "I", head, 4)[0]
    ino = struct.unpack_from(order + "Q", head, 16 if len(head) == 56 else 12)[0]
    fork = item[2] if len(item) > 2 and fields & FIELDS_FORK else b""
    return InodeItem(lsn, ino, fields, item[1], fork, order)


def _buffer(item: list[bytes], order: str, lsn: int) -> BufferItem | None:
    head = item[0]
    if len(head) < 20:
        return None
    flags, length = struct.unpack_from(order + "HH", head, 4)
    place = struct.unpack_from(order + "q", head, 8)[0]
    words = min(struct.unpack_from(order + "I", head, 16)[0], (len(head) - 20) // 4)
    if place < 0:
        return None
    bits = np.unpackbits(np.frombuffer(head, order + "u4", words, 20).astype("<u4").view(np.uint8), bitorder="little")
    chunks = np.flatnonzero(bits).tolist()
    parts: list[tuple[int, bytes]] = []
    for region in item[1:]:
        # a region holds a run of chunks, or a part of one
        count = len(region) // CHUNK
        if count == 0 or count > len(chunks) or chunks[count - 1] - chunks[0] != count - 1:
            return None
        parts.append((chunks[0] * CHUNK, region[: count * CHUNK]))
        del chunks[:count]
    return BufferItem(lsn, place * BB, length * BB, bool(flags & BUFFER_CANCEL), parts)
