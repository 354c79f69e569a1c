"""Xz streams: the LZMA2 chunks of one say how long they are, so that a break inside a chunk ends at a known byte.

liblzma closes a chunk of packed bytes at 60 KiB, and what its range coder writes first is always a zero: so the header
of a chunk is some 18 bits. From the begin of a placed file (an .xz, or the data of a Debian package) its chunks are
followed to where the map has none any more. Wherever the file goes on, the next header lies at that very byte of it: a
header of the image that nobody has, and which lies there modulo a block, is the file's, where it is the only one, or
the one behind which the stream goes on farthest. It says where the next chunk begins, and so on, from piece to piece.
Headers at the distance that the first one states are a chain: what lies between them is one piece.
Sources: the .xz file format 1.2.0 (tukaani.org), LZMA2 in liblzma's lzma2_encoder.c, the range coder's first byte in
its rangecoder/range_encoder.h, deb(5).
Memory: 16 bytes for each header of the image, chance ones included (some 1 in 2^18 bytes that are random).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..tails import to_file
from .followed import Followed
from .want import BLOCK, Guest, Int64s, Kept, U8s

MAGIC = b"\xfd7zXZ\0"
FULL = (0xEF, 0xF0)  # the high byte of the length of a chunk that was closed when full
PACKED, SET_ANEW = 0x80, 0xC0  # the first byte of a header: of packed bytes, of those before which comes one byte more
LEAST = 128 << 10  # bytes of a file that may have two of them
MAX_HEADERS = 1 << 24  # ours: of one image
MAX_CHUNKS = 1 << 20  # ours: of one file
HEADER, MEMBER = 5, 60  # bytes of a chunk's header without new properties, and of one in an ar
AHEAD = 3  # chunks that are looked ahead where several headers may be the next
END = 64  # bytes at the end of a stream without full chunks' headers: the index and the footer of one


@dataclass(frozen=True, slots=True)
class Stream:
    """file: its number; first, end: offsets in the file of the first chunk, and behind the stream."""

    file: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Chain:
    """headers int64[n, 2] that follow each other: image offset, bytes of the chunk."""

    headers: Int64s

    @property
    def length(self) -> int:
        """Bytes of all its chunks."""
        return int(self.headers[-1].sum() - self.headers[0, 0])


@dataclass(frozen=True, slots=True)
class Chains:
    """All of an image that nobody has. phase int64[n]: of the first header's place, modulo a block; rising."""

    all: list[Chain]
    phase: Int64s

    @classmethod
    def of(cls, headers: Int64s) -> Chains:
        """headers int64[n, 2]: image offset, rising, and bytes of the chunk."""
        next_ = np.minimum(np.searchsorted(headers[:, 0], headers.sum(axis=1)), max(len(headers) - 1, 0))
        there = headers[next_, 0] == headers.sum(axis=1)
        follows = np.zeros(len(headers), np.bool_)
        follows[next_[there]] = True
        out: list[Chain] = []
        for i in np.flatnonzero(~follows).tolist():
            chain = [i]
            while there[chain[-1]]:
                chain.append(int(next_[chain[-1]]))
            out.append(Chain(headers[chain]))
        out.sort(key=lambda c: int(c.headers[0, 0]) % BLOCK)
        return cls(out, np.array([int(c.headers[0, 0]) % BLOCK for c in out], np.int64))

    def at(self, guest: Guest, stream: Stream, offset: int) -> list[Chain]:
        """Those whose first header may lie at this byte of a stream's file."""
        place = int(to_file(guest.disk.map, guest.files.place(np.array([stream.file]), np.array([offset])))[0])
        if place < 0 or offset < 0:
            return []
        low, high = (int(np.searchsorted(self.phase, (place + guest.start) % BLOCK, side=side))
                     for side in ("left", "right"))
        return [c for c in self.all[low:high] if offset + c.length < stream.end]


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
        if self._count >= MAX_HEADERS or len(data) <= HEADER:
            return
        high = data[3 : min(length + 3, len(data) - 2)]
        row = np.flatnonzero(high - np.uint8(FULL[0]) < len(FULL))
        row = row[(data[row] >> 5 == PACKED >> 5) & (data[row + HEADER] == 0)]  # no new state: all but the first
        size = (data[row + 3].astype(np.int64) << 8 | data[row + 4]) + 1 + HEADER
        self._headers.append(np.column_stack((row + at, size)))
        self._count += len(row)

    def follow(self) -> None:
        if not any(self._streams) or not self._headers:
            return
        chains = Chains.of(self._free())
        for k, guest in enumerate(self._guests):
            for stream in self._streams[k]:
                at = stream.first
                for _ in range(MAX_CHUNKS):
                    at = _next(guest, stream, at)
                    found = chains.at(guest, stream, at)
                    if len(found) > 1:
                        steps = [_goes_on(guest, stream, at + c.length, chains, AHEAD) for c in found]
                        found = [c for c, n in zip(found, steps, strict=True) if n == max(steps)]
                    if len(found) != 1:
                        break
                    self._give(k, guest, stream, at, found[0].headers)
                    at += found[0].length

    def _give(self, number: int, guest: Guest, stream: Stream, at: int, chain: Int64s) -> None:
        """Notes the blocks with the headers of a chain, and those between."""
        p = np.arange(int(chain[0, 0] - guest.start) // BLOCK, int(chain[-1, 0] - guest.start) // BLOCK + 1)
        offset = at + p * BLOCK + guest.start - int(chain[0, 0])  # of the blocks' first bytes in the file
        offset[0] = at
        f = to_file(guest.disk.map, guest.files.place(np.full(len(p), stream.file), np.maximum(offset, at)))
        for file_block, block, there in zip((f // BLOCK).tolist(), p.tolist(), (f >= 0).tolist(), strict=True):
            if there:
                self._found[number].setdefault(file_block, block + guest.start // BLOCK)

    def _free(self) -> Int64s:
        """The headers in what nobody has."""
        every = np.concatenate(self._headers)
        every = every[np.argsort(every[:, 0], kind="stable")]
        taken = np.zeros(len(every), np.bool_)
        for g in self._guests:
            for a, b, d in g.sure.tolist():
                low, high = np.searchsorted(every[:, 0], [g.start + (a + d) * BLOCK, g.start + (b + d) * BLOCK])
                taken[low:high] = True
        return every[~taken]


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


def _goes_on(guest: Guest, stream: Stream, at: int, chains: Chains, most: int) -> int:
    """How many chunks or chains a stream may have from this byte of its file on: `most` where it has more, or ends."""
    if most == 0 or at + END >= stream.end:
        return most
    size = _chunk(guest, stream, at)
    ways = [size] if size else [c.length for c in chains.at(guest, stream, at)]
    return max((1 + _goes_on(guest, stream, at + n, chains, most - 1) for n in ways), default=0)


def _next(guest: Guest, stream: Stream, at: int) -> int:
    """The offset in the file of the first chunk from that at `at` on whose header the map does not have; -1 where the
    stream ends before."""
    for _ in range(MAX_CHUNKS):
        if at + END >= stream.end:
            return -1
        size = _chunk(guest, stream, at)
        if not size:
            return at
        at += size
    return -1


def _chunk(guest: Guest, stream: Stream, at: int) -> int:
    """The bytes of the full chunk that the map has at a byte of the file, header and all; 0 where it has none."""
    g = int(guest.files.place(np.array([stream.file]), np.array([at]))[0])
    head = guest.disk.read(g, HEADER + 2) if g >= 0 and not guest.disk.missing(g, HEADER) else b""
    if len(head) < HEADER + 2 or head[0] < PACKED or head[3] not in FULL:
        return 0
    longer = int(head[0] >= SET_ANEW)
    return 0 if head[HEADER + longer] else HEADER + longer + int.from_bytes(head[3:5], "big") + 1
