"""Xz streams: the LZMA2 chunks of one say how long they are, so that a break inside a chunk ends at a known byte.

liblzma closes a chunk of packed bytes at 60 KiB, hence two headers at the distance that the first one states are a
chain and no chance. From the begin of a placed file (an .xz, or the data of a Debian package) its chunks are followed
to where the map has none any more. Wherever the file goes on, the next header lies at that very byte of it: a chain of
the image that nobody has, and whose first header lies there modulo a block, is the file's, where it is the only one.
Its last header says where the next chunk begins, and so on.
Sources: the .xz file format 1.2.0 (tukaani.org), LZMA2 in liblzma's lzma2_encoder.c, deb(5).
Memory: 16 bytes for each header of the image, chance ones included (some 1 in 1024 bytes that are random).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..tails import to_file
from .followed import Followed
from .want import BLOCK, Guest, Int64s, Kept, U8s

MAGIC = b"\xfd7zXZ\0"
FULL = (0xEF, 0xF0)  # the high byte of the length of a chunk that was closed when full
LEAST = 128 << 10  # bytes of a file that may have two of them
MAX_HEADERS = 1 << 24  # ours: of one image
MAX_CHUNKS = 1 << 20  # ours: of one file
HEADER, MEMBER = 5, 60  # bytes of a chunk's header without new properties, and of one in an ar
END = 64  # bytes at the end of a stream without full chunks' headers: the index and the footer of one


@dataclass(frozen=True, slots=True)
class Stream:
    """file: its number; first, end: offsets in the file of the first chunk, and behind the stream."""

    file: int
    first: int
    end: int


@dataclass(slots=True)
class Xz(Followed):
    """Mechanism: see the package."""

    _streams: list[list[Stream]] = field(default_factory=list[list[Stream]])
    _kept: Kept[list[Stream]] = field(default_factory=Kept[list[Stream]])
    _headers: list[Int64s] = field(default_factory=list[Int64s])  # int64[n, 2]: image offset, bytes of the chunk
    _count: int = 0

    def want(self, guests: list[Guest]) -> bool:
        self._streams = [self._kept.of(k, guest, _streams) for k, guest in enumerate(guests)]
        return Followed.want(self, guests)

    def asks(self) -> bool:
        return any(self._streams)

    def see(self, data: U8s, at: int, length: int) -> None:
        self._blocks += length // BLOCK
        if self._count >= MAX_HEADERS or len(data) < HEADER:
            return
        high = data[3 : min(length + 3, len(data) - 1)]
        row = np.flatnonzero(high - np.uint8(FULL[0]) < len(FULL))
        row = row[data[row] >> 5 == 4]  # no new state: all but the first
        size = (data[row + 3].astype(np.int64) << 8 | data[row + 4]) + 1 + HEADER
        self._headers.append(np.column_stack((row + at, size)))
        self._count += len(row)

    def follow(self) -> None:
        if not any(self._streams) or not self._headers:
            return
        chains = self._chains()
        first = np.array([int(c[0, 0]) for c in chains], np.int64)
        length = np.array([int(c[-1, 0]) for c in chains], np.int64) - first  # up to where the last header lies
        for k, guest in enumerate(self._guests):
            for stream in self._streams[k]:
                at = _next(guest, stream)
                for _ in range(MAX_CHUNKS):
                    if at < 0 or at + END >= stream.end:
                        break
                    place = int(to_file(guest.disk.map, guest.files.place(np.array([stream.file]), np.array([at])))[0])
                    fits = np.flatnonzero((place >= 0) & ((first - place - guest.start) % BLOCK == 0)
                                          & (at + length < stream.end))
                    if len(fits) != 1:
                        break
                    at = self._give(k, guest, stream, at, chains[int(fits[0])])

    def _give(self, number: int, guest: Guest, stream: Stream, at: int, chain: Int64s) -> int:
        """Notes the blocks between the headers of a chain; the offset in the file where the next chunk begins."""
        p = np.arange(int(chain[0, 0] - guest.start) // BLOCK, int(chain[-1, 0] - guest.start) // BLOCK + 1)
        offset = at + p * BLOCK + guest.start - int(chain[0, 0])  # of the blocks' first bytes in the file
        offset[0] = at
        f = to_file(guest.disk.map, guest.files.place(np.full(len(p), stream.file), np.maximum(offset, at)))
        for file_block, block, there in zip((f // BLOCK).tolist(), p.tolist(), (f >= 0).tolist(), strict=True):
            if there:
                self._found[number].setdefault(file_block, block + guest.start // BLOCK)
        return at + int(chain[-1].sum() - chain[0, 0])

    def _chains(self) -> list[Int64s]:
        """Headers, each where the one before it ends, in what nobody has: of two at least."""
        every = np.concatenate(self._headers)
        every = every[np.argsort(every[:, 0], kind="stable")]
        taken = np.zeros(len(every), np.bool_)
        for g in self._guests:
            for a, b, d in g.sure.tolist():
                low, high = np.searchsorted(every[:, 0], [g.start + (a + d) * BLOCK, g.start + (b + d) * BLOCK])
                taken[low:high] = True
        every = every[~taken]
        behind = every.sum(axis=1)
        next_ = np.minimum(np.searchsorted(every[:, 0], behind), max(len(every) - 1, 0))
        there = every[next_, 0] == behind
        follows = np.zeros(len(every), np.bool_)
        follows[next_[there]] = True
        out: list[Int64s] = []
        for i in np.flatnonzero(there & ~follows).tolist():
            chain = [i]
            while there[chain[-1]]:
                chain.append(int(next_[chain[-1]]))
            out.append(every[chain])
        return out


def _streams(guest: Guest) -> list[Stream]:
    """The xz streams of a guest's files, where their begin can be read."""
    out: list[Stream] = []
    g, number = guest.files.begins()
    large = guest.files.size[number] >= LEAST
    for at, file in zip(g[large].tolist(), number[large].tolist(), strict=True):
        head = guest.disk.read(at, BLOCK) if not guest.disk.missing(at, BLOCK) else b""
        first, end = 0, int(guest.files.size[file])
        if head.startswith(b"!<arch>\n"):
            first, end = _data_of(head)
        if head[first : first + len(MAGIC)] == MAGIC and len(head) > first + 12:
            first += 12 + (head[first + 12] + 1) * 4  # behind the stream's header and the block's
            out.append(Stream(file, first, min(end, int(guest.files.size[file]))))
    return out


def _data_of(head: bytes) -> tuple[int, int]:
    """(first byte, end) of the third member of a Debian package; an offset beyond the head where there is none."""
    at = 8
    for member in range(3):
        text = head[at + 48 : at + 58].strip()
        if not text.isdigit():
            break
        if member == 2:
            return at + MEMBER, at + MEMBER + int(text)
        at += MEMBER + int(text) + int(text) % 2
    return len(head), 0


def _next(guest: Guest, stream: Stream) -> int:
    """The offset in the file of the first chunk whose header the map does not have; -1 where the stream ends before."""
    at = stream.first
    for _ in range(MAX_CHUNKS):
        g = int(guest.files.place(np.array([stream.file]), np.array([at]))[0])
        head = guest.disk.read(g, HEADER) if g >= 0 and not guest.disk.missing(g, HEADER) else b""
        if len(head) < HEADER or head[0] < 0x80 or head[3] not in FULL:
            return at
        at += HEADER + (head[0] >= 0xC0) + int.from_bytes(head[3:5], "big") + 1
        if at + END >= stream.end:
            return -1
    return -1
