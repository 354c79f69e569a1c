"""The members of an XVA in archive order: chunks, their hashes, and what a break in the archive did to them.

All offsets are the reader's own (a container, or the image itself when fragments are looked for). Each chunk's hash is
tested while a budget lasts; where the next header is not where it must be, the hash also tells at which byte of the
chunk foreign bytes were let in (the host's metadata) or zeros left out (a hole of the host's file).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import numpy as np
import xxhash

from ..model import PROVEN, Reader, Region
from ._tar import BLOCK, END_BLOCKS, TarHeader, end_of_archive, padded, parse_header

CHUNK = 1 << 20  # bytes; xapi: stream_vdi.ml, chunk_size
GOOD, BAD, UNTESTED = "good", "bad", "untested"

OUR_MAX_MEMBERS = 1 << 21
OUR_MAX_TESTED = 1 << 30  # bytes of chunks that are hashed in all walks of one call
OUR_MAX_SEARCHED = 1 << 30  # bytes that are searched for members behind breaks, likewise
OUR_RESYNC = 4 << 20  # bytes searched behind one break
OUR_MAX_BREAKS = 256
OUR_MAX_SHIFT = 128 << 10  # bytes let in or left out inside one chunk
HOST_BLOCK = 4096  # bytes; breaks lie at multiples of this, or of the shift when it is smaller

_NAME = re.compile(r"(Ref:\d{1,9})/(\d{8,10})(\.xxhash|\.checksum)?\Z", re.ASCII)
_DIGEST = {".xxhash": re.compile(rb"[0-9A-Fa-f]{16}"), ".checksum": re.compile(rb"[0-9A-Fa-f]{40}")}


@dataclass(slots=True)
class Chunk:
    """One numbered member. `segment`: breaks met before it. `verdict`: what its hash says of the bytes.

    pieces: (offset in the chunk, reader offset or -1 for zeros, length) where the bytes are not one run at `data`.
    """

    ref: str
    number: int
    size: int
    header: int
    segment: int
    verdict: str = UNTESTED
    pieces: tuple[tuple[int, int, int], ...] = ()

    @property
    def data(self) -> int:
        return self.header + BLOCK

    @property
    def end(self) -> int:
        return self.data + padded(self.size)


@dataclass(slots=True)
class Budget:
    """What one call of `open` or `salvage` may still spend, in bytes."""

    test: int = OUR_MAX_TESTED
    search: int = OUR_MAX_SEARCHED


@dataclass(slots=True)
class Walk:
    """What a walk from `start` found. `end`: reader offset behind the last member. `ended`: the end marker was there.

    closed: disks whose last chunk was followed by another disk or the end marker, without a break.
    """

    start: int
    end: int
    chunks: list[Chunk] = field(default_factory=list[Chunk])
    closed: set[str] = field(default_factory=set[str])
    breaks: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # where the header should be, was
    ended: bool = False
    open_chunk: Chunk | None = None  # the last chunk, when nothing valid follows it
    algorithms: set[str] = field(default_factory=set[str])
    members: int = 0
    proven: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # merged reader ranges

    def regions(self) -> list[Region]:
        """The ranges that hashes prove."""
        return [Region(a, b - a, "xva.chunk", PROVEN) for a, b in self.proven]

    def close(self, last: tuple[str, int] | None, segment: int) -> None:
        """Notes that nothing was lost behind the last chunk of a disk."""
        if last is not None and self.chunks and self.chunks[-1].segment == segment:
            self.closed.add(last[0])

    def prove(self, start: int, end: int) -> None:
        if self.proven and self.proven[-1][1] == start:
            self.proven[-1] = (self.proven[-1][0], end)
        elif end > start:
            self.proven.append((start, end))


def chunk_name(name: str) -> tuple[str, int, str] | None:
    """(disk, number, "" or the hash's suffix) of a member's name, or None for another member."""
    match = _NAME.match(name)
    return (match[1], int(match[2]), match[3] or "") if match else None


def is_chunk(header: TarHeader | None) -> tuple[str, int, str] | None:
    """The name's parts when `header` is a chunk's or a hash's."""
    if header is None or not header.is_file:
        return None
    name = chunk_name(header.name)
    return name if name is not None and header.size <= (512 if name[2] else CHUNK) else None


def walk(reader: Reader, start: int, budget: Budget) -> Walk:
    """Follows the members from the header at `start` to the end marker or to a break that nothing plausible follows."""
    w = Walk(start, start)
    at, segment = start, 0
    waiting: Chunk | None = None  # the chunk whose hash should come next
    last: tuple[str, int] | None = None
    refs: set[str] = set()
    while w.members < OUR_MAX_MEMBERS:
        header = parse_header(reader.read(at, BLOCK))
        name = is_chunk(header)
        if header is None or (name is None and w.chunks):
            if end_of_archive(reader, at):
                w.ended = True
                w.close(last, segment)
                at += END_BLOCKS * BLOCK
                waiting = None
                break
            found = _resync(reader, w, budget, at, waiting, last, refs)
            if found is None:
                break
            if waiting is not None:
                _over_break(reader, w, budget, waiting, found)
                waiting = None
            else:
                _without_header(reader, w, at, found, segment)
            w.breaks.append((at, found))
            at, segment = found, segment + 1
            continue
        w.members += 1
        if name is None:  # ova.xml and whatever else a writer adds
            at += header.span
        elif name[2]:
            w.algorithms.add(name[2])
            if waiting is not None and name[:2] == (waiting.ref, waiting.number):
                _test(reader, w, budget, waiting, at, header, name[2])
            waiting = None
            at += header.span
        else:
            if last and name[0] != last[0]:
                w.close(last, segment)
            waiting = Chunk(name[0], name[1], header.size, at, segment)
            w.chunks.append(waiting)
            at = waiting.end
        if name is not None:
            last = name[:2]
            refs.add(name[0])
    if waiting is not None and not reader.missing(waiting.end, BLOCK):
        waiting.verdict = BAD  # something else follows: it breaks off somewhere inside
    w.end = at
    w.open_chunk = waiting
    return w


def _test(reader: Reader, w: Walk, budget: Budget, chunk: Chunk, at: int, header: TarHeader, suffix: str) -> None:
    """Compares a chunk with the hash member at `at`, while the budget lasts."""
    digest = read_digest(reader, at, header, suffix)
    if digest is None or budget.test < chunk.size or reader.missing(chunk.data, chunk.size):
        return
    budget.test -= chunk.size
    hasher = new_hash(suffix)
    hasher.update(reader.read(chunk.data, chunk.size))
    chunk.verdict = GOOD if hasher.digest() == digest else BAD
    if chunk.verdict == GOOD:
        w.prove(chunk.header, at + header.span)


def new_hash(suffix: str) -> Any:
    """xapi: XXH64 with seed 0; older exporters SHA-1."""
    return xxhash.xxh64() if suffix == ".xxhash" else hashlib.sha1(usedforsecurity=False)


def read_digest(reader: Reader, at: int, header: TarHeader, suffix: str) -> bytes | None:
    """The hash that the member with its header at `at` holds, or None when it is not one."""
    text = reader.read(at + BLOCK, header.size).strip(b" \r\n\0")
    return bytes.fromhex(text.decode("ascii")) if _DIGEST[suffix].fullmatch(text) else None


def _resync(reader: Reader, w: Walk, budget: Budget, at: int, waiting: Chunk | None, last: tuple[str, int] | None,
            refs: set[str]) -> int | None:
    """The next plausible member when none is at `at`: first the one that stands nearest, searched from inside the
    chunk before (zeros may have been left out there) to OUR_RESYNC behind."""
    if len(w.breaks) >= OUR_MAX_BREAKS:
        return None
    low = max(waiting.data, at - OUR_MAX_SHIFT) if waiting is not None else at
    for offset, header in _headers(reader, budget, low, at + OUR_RESYNC):
        name = is_chunk(header)
        if name is None:
            continue
        same = last is not None and name[0] == last[0]
        if (same and last is not None and name[1] >= last[1]) or (not same and name[0] not in refs and name[1] == 0):
            return offset
    return None


def _headers(reader: Reader, budget: Budget, low: int, high: int) -> Iterator[tuple[int, TarHeader]]:
    """Tar headers of "Ref:" members at whole blocks from `low` on, below `high`."""
    mark = int.from_bytes(b"Ref:", "little")
    for start in range(low, min(high, reader.size), CHUNK):
        if budget.search <= 0:
            return
        data = reader.read(start, min(CHUNK, high - start))
        budget.search -= len(data)
        words = np.frombuffer(data[: len(data) // BLOCK * BLOCK], "<u4")[:: BLOCK // 4]
        for i in np.flatnonzero(words == mark).tolist():
            header = parse_header(data[i * BLOCK : (i + 1) * BLOCK])
            if header is not None:
                yield start + i * BLOCK, header


def _over_break(reader: Reader, w: Walk, budget: Budget, chunk: Chunk, found: int) -> None:
    """A chunk whose follower is at `found` instead of its end: the hash says at which byte they were shifted."""
    if reader.missing(chunk.end, BLOCK):
        return  # the follower is unreadable, which says nothing about this chunk
    chunk.verdict = BAD
    header = parse_header(reader.read(found, BLOCK))
    name = is_chunk(header)
    shift = found - chunk.end
    if header is None or name is None or name[:2] != (chunk.ref, chunk.number) or not name[2]:
        return
    digest = read_digest(reader, found, header, name[2])
    if digest is None or abs(shift) > OUR_MAX_SHIFT or shift == 0:
        return
    size, span = chunk.size, found - chunk.data
    if reader.missing(chunk.data, span) or budget.test < CHUNK:
        return
    budget.test -= CHUNK
    data = reader.read(chunk.data, span)
    pad = padded(size) - size
    tail = data[max(0, span - padded(size)) : span - pad]  # the chunk's last bytes, if all of it stood before `found`
    zeros = bytes(max(0, -shift))
    first = -chunk.data % gcd(HOST_BLOCK, abs(shift))
    cuts = range(first, size - len(zeros) + 1, gcd(HOST_BLOCK, abs(shift)))
    cut = _cut(data[:size], zeros, tail, size, cuts, digest, name[2])
    if cut is None:
        return
    chunk.verdict = GOOD
    rest = cut + len(zeros)
    pieces = [(0, chunk.data, cut), (cut, -1, len(zeros)), (rest, chunk.data + rest + shift, size - rest)]
    chunk.pieces = tuple(p for p in pieces if p[2] > 0)
    w.prove(chunk.header, chunk.data + cut)
    w.prove(chunk.data + rest + shift, found)


def _cut(head: bytes, middle: bytes, tail: bytes, size: int, cuts: range, digest: bytes, suffix: str) -> int | None:
    """The c for which head[:c] + middle + the last bytes of `tail` (`size` bytes together) have this hash."""
    hasher = new_hash(suffix)
    view, done = memoryview(tail), 0
    for c in cuts:
        rest = size - c - len(middle)
        if rest > len(tail) or c > len(head):
            continue
        hasher.update(head[done:c])
        done = c
        trial = hasher.copy()
        trial.update(middle)
        trial.update(view[len(tail) - rest :])
        if trial.digest() == digest:
            return c
    return None


def _without_header(reader: Reader, w: Walk, at: int, found: int, segment: int) -> None:
    """A hash whose chunk's own header is lost: 1 MiB before it is the chunk if the hash says so."""
    header = parse_header(reader.read(found, BLOCK))
    name = is_chunk(header)
    data = found - CHUNK
    if header is None or name is None or not name[2] or data < at + BLOCK or reader.missing(data, CHUNK):
        return
    digest = read_digest(reader, found, header, name[2])
    hasher = new_hash(name[2])
    hasher.update(reader.read(data, CHUNK))
    if digest == hasher.digest():
        w.chunks.append(Chunk(name[0], name[1], CHUNK, data - BLOCK, segment + 1, GOOD))
        w.prove(data, found + header.span)


def hash_before(reader: Reader, follower: int) -> tuple[str, int, str] | None:
    """The hash member that stands right before the header at `follower`: what it is the hash of."""
    name = is_chunk(parse_header(reader.read(follower - 2 * BLOCK, BLOCK)))
    return name if name is not None and name[2] else None


def join_across(reader: Reader, chunk: Chunk, follower: int, suffix: str) -> tuple[int, int] | None:
    """Where `chunk` breaks off, given that its hash stands right before the header at `follower` (another run).

    Returns (c, offset): the chunk's first c bytes are at its data, the rest at `offset`, in front of the hash member.
    None when no c gives the hash.
    """
    at = follower - 2 * BLOCK
    header = parse_header(reader.read(at, BLOCK))
    digest = read_digest(reader, at, header, suffix) if header is not None else None
    if digest is None:
        return None
    low = max(0, at - padded(chunk.size))
    pad = padded(chunk.size) - chunk.size
    head, tail = reader.read(chunk.data, chunk.size), reader.read(low, at - low - pad)
    cut = _cut(head, b"", tail, chunk.size, range(0, chunk.size + 1, BLOCK), digest, suffix)
    if cut is None:
        return None
    rest = at - pad - (chunk.size - cut)
    chunk.verdict = GOOD
    chunk.pieces = tuple(p for p in ((0, chunk.data, cut), (cut, rest, chunk.size - cut)) if p[2] > 0)
    return cut, rest
