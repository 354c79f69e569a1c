"""The VHDX log: which entries are to be replayed, and the file as it reads after that. Nothing is written.

Source: [MS-VHDX] 2.3 and 2.3.3. A log is a ring of 4 KiB sectors. Seen (QEMU 7.2): entries stay, with a right CRC,
until the ring comes round; only those under the header's LogGuid count.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..checksums import crc32c_zeroed
from ..model import PROVEN, Patch, Reader
from ._vhdx_parts import MIB, Header

PAGE = 4096
OUR_MAX_LOG = 1 << 26  # bytes; QEMU and Hyper-V make 1 MiB
OUR_MAX_ZEROS = 1 << 12  # "zero" descriptors that are applied
OUR_MAX_ZERO_BYTES = 1 << 26  # bytes of zeros that become patches
OUR_MAX_HEADS = 64  # candidates for the newest entry that are followed
CRC_BUDGET = 8  # times the log's length: a sound log is summed once

_ENTRY = struct.Struct("<4sIIIQII16sQQ")
_DESCRIPTOR = np.dtype([("sign", "S4"), ("trailing", "V4"), ("leading", "V8"), ("offset", "<u8"), ("sequence", "<u8")])


@dataclass(frozen=True, slots=True)
class Entry:
    """One log entry. place, length, tail: bytes from the log's start. flushed, last: file lengths in bytes."""

    place: int
    length: int
    tail: int
    sequence: int
    descriptors: int
    guid: bytes
    flushed: int
    last: int


def parse_entry(raw: bytes, place: int, limit: int) -> Entry | None:
    """The entry header in 64 bytes, or None; its CRC is not looked at. limit: the log's length in bytes."""
    if len(raw) < 64 or raw[:4] != b"loge":
        return None
    _, _, length, tail, sequence, count, reserved, guid, flushed, last = _ENTRY.unpack_from(raw)
    if not PAGE <= length <= limit or length % PAGE or tail % PAGE or tail >= limit or reserved or not sequence:
        return None
    if 64 + 32 * count > length or guid == bytes(16):
        return None
    return Entry(place, length, tail, sequence, count, guid, flushed, last)


@dataclass(slots=True)
class Replay:
    """What the active sequence changes. pages: file_offset -> 4096 bytes; zeros: (file_offset, length), rising."""

    state: str  # "empty", "replayed" or why not
    pages: dict[int, bytes] = field(default_factory=dict[int, bytes])
    zeros: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    flushed: int = 0  # bytes that the file must have
    last: int = 0  # bytes that the file has after the replay
    refused: int = 0  # descriptors that name the log, the headers or nothing sound
    damaged: int = 0  # sectors of the log that are missing or no log's: newer entries may be among them

    @property
    def failed(self) -> bool:
        return self.state not in ("empty", "replayed")


def replay(reader: Reader, header: Header) -> Replay:
    """Follows the log that `header` names. Never raises: `state` says what stood in the way."""
    if header.log_guid == bytes(16):
        return Replay("empty")
    if not PAGE <= header.log_length <= OUR_MAX_LOG:
        return Replay(f"a log of {header.log_length} bytes is beyond our limit of {OUR_MAX_LOG}")
    log = reader.read(header.log_offset, header.log_length)
    if len(log) < header.log_length:
        return Replay("the log is cut off")
    chain = _active(log, header.log_guid)
    if not chain:
        return Replay("no whole sequence of log entries is left")
    out = Replay("replayed", flushed=chain[-1].flushed, last=chain[-1].last, damaged=_damaged(reader, header, log))
    order_of: dict[int, int] = {}
    zeros: list[tuple[int, int, int]] = []
    for step, entry in enumerate(chain):
        if not _apply(log, entry, step, (header.log_offset, header.log_end), out, order_of, zeros):
            return Replay("a log entry has a wrong descriptor or data sector")
    if len(zeros) > OUR_MAX_ZEROS:
        return Replay("the log zeroes more ranges than our limit")
    _settle(out, order_of, zeros)
    return out


def copies(reader: Reader, log_range: tuple[int, int], pages: set[int]) -> dict[int, bytes]:
    """The newest copy that the log still holds of each of `pages` (file offsets), whichever log it was written for.

    Old entries stay, with a right CRC, until the ring comes round (seen: QEMU 7.2, also after closing). A later entry
    states a file that is at least as long; QEMU begins with sequence 1 at each opening (seen), so that comes second.
    """
    start, end = log_range
    log = reader.read(start, min(end - start, OUR_MAX_LOG))
    log = log[: len(log) // PAGE * PAGE]
    best: dict[int, tuple[tuple[int, int], bytes]] = {}
    budget = CRC_BUDGET * len(log)
    sectors = np.frombuffer(log, np.uint8).reshape(-1, PAGE)
    for place in (np.flatnonzero((sectors[:, :4] == np.frombuffer(b"loge", np.uint8)).all(axis=1)) * PAGE).tolist():
        entry = parse_entry(log[place : place + 64], place, len(log))
        if entry is None or budget < entry.length:
            continue
        budget -= entry.length
        raw = _ring(log, place, entry.length)
        found = Replay("")
        if crc32c_zeroed(raw, 4) != int.from_bytes(raw[4:8], "little") or not _apply(log, entry, 0, log_range, found,
                                                                                       {}, []):
            continue
        age = entry.flushed, entry.sequence
        for at in pages & found.pages.keys():
            if at not in best or best[at][0] < age:
                best[at] = age, found.pages[at]
    return {at: page for at, (_, page) in best.items()}


def _damaged(reader: Reader, header: Header, log: bytes) -> int:
    """How many sectors of the log are missing or no log's: each begins with a sign, or with zeros never written to."""
    first = np.frombuffer(log, np.uint8).reshape(-1, PAGE)[:, :4]
    known = (first == 0).all(axis=1)
    for sign in (b"loge", b"desc", b"zero", b"data"):
        known |= (first == np.frombuffer(sign, np.uint8)).all(axis=1)
    if reader.missing(header.log_offset, header.log_length):
        gone = [reader.missing(header.log_offset + at, PAGE) for at in range(0, len(log), PAGE)]
        known &= ~np.array(gone)
    return int((~known).sum())


def _active(log: bytes, guid: bytes) -> list[Entry]:
    """The entries to apply, oldest first: the sequence with the greatest last number whose tail lies within itself."""
    sectors = np.frombuffer(log, np.uint8).reshape(-1, PAGE)
    hit = (sectors[:, :4] == np.frombuffer(b"loge", np.uint8)).all(axis=1)
    hit &= (sectors[:, 32:48] == np.frombuffer(guid, np.uint8)).all(axis=1)
    budget = CRC_BUDGET * len(log)
    entries: dict[int, Entry] = {}
    for place in (np.flatnonzero(hit) * PAGE).tolist():
        entry = parse_entry(log[place : place + 64], place, len(log))
        if entry is None:
            continue
        budget -= entry.length
        if budget < 0:
            break
        raw = _ring(log, place, entry.length)
        if crc32c_zeroed(raw, 4) == int.from_bytes(raw[4:8], "little"):
            entries[place] = entry
    for head in sorted(entries.values(), key=lambda e: -e.sequence)[:OUR_MAX_HEADS]:
        chain: list[Entry] = []
        at: Entry | None = entries.get(head.tail)
        while at is not None and at.sequence <= head.sequence and len(chain) < len(entries):
            chain.append(at)
            if at is head:
                return chain
            following = entries.get((at.place + at.length) % len(log))
            at = following if following is not None and following.sequence == at.sequence + 1 else None
    return []


def _ring(log: bytes, place: int, length: int) -> bytes:
    """`length` (at most the log's) bytes from `place`, round the end."""
    part = log[place : place + length]
    return part + log[: length - len(part)]


def _apply(log: bytes, entry: Entry, step: int, own: tuple[int, int], out: Replay, order_of: dict[int, int],
           zeros: list[tuple[int, int, int]]) -> bool:
    raw = _ring(log, entry.place, entry.length)
    table = np.frombuffer(raw, _DESCRIPTOR, entry.descriptors, 64)
    is_page, is_zero = table["sign"] == b"desc", table["sign"] == b"zero"
    data_at = -(-(64 + 32 * entry.descriptors) // PAGE) * PAGE
    if not (is_page | is_zero).all() or (table["sequence"] != entry.sequence).any():
        return False
    if data_at + int(is_page.sum()) * PAGE > entry.length:
        return False
    offset = table["offset"]
    # the headers and the log itself are never what a log may change
    sound = (offset % PAGE == 0) & (offset >= MIB) & (offset < 1 << 62) & ((offset < own[0]) | (offset >= own[1]))
    out.refused += int((~sound).sum())
    number = np.cumsum(is_page) - 1
    for i in np.flatnonzero(is_page).tolist():
        at = data_at + int(number[i]) * PAGE
        sector = raw[at : at + PAGE]
        high, low = int.from_bytes(sector[4:8], "little"), int.from_bytes(sector[4092:], "little")
        if sector[:4] != b"data" or high << 32 | low != entry.sequence:
            return False
        if sound[i]:
            page = table["leading"][i].tobytes() + sector[8:4092] + table["trailing"][i].tobytes()
            out.pages[int(offset[i])] = page
            order_of[int(offset[i])] = step
    for i in np.flatnonzero(is_zero & sound)[: OUR_MAX_ZEROS + 1].tolist():
        start = int(offset[i])
        end = start + int.from_bytes(table["leading"][i].tobytes(), "little")
        if start < own[0] < end:
            end = own[0]
            out.refused += 1
        zeros.append((start, min(end, 1 << 62), step))
    return True


def _settle(out: Replay, order_of: dict[int, int], zeros: Sequence[tuple[int, int, int]]) -> None:
    """Drops pages that a later entry zeroes; joins the zeroed ranges."""
    places = np.array(sorted(out.pages), np.int64)
    when = np.array([order_of[int(p)] for p in places], np.int64)
    for start, end, step in zeros:
        for place in places[(places >= start) & (places < end) & (when < step)].tolist():
            out.pages.pop(place, None)
    for start, end, _ in sorted(zeros):
        if out.zeros and start <= out.zeros[-1][0] + out.zeros[-1][1]:
            first, length = out.zeros[-1]
            out.zeros[-1] = (first, max(length, end - first))
        elif end > start:
            out.zeros.append((start, end - start))


@dataclass(slots=True)
class Replayed:
    """The container as it reads after the replay: a Reader over another one."""

    inner: Reader
    log: Replay

    @property
    def size(self) -> int:
        return self.inner.size

    def read(self, offset: int, length: int) -> bytes:
        raw = self.inner.read(offset, length)
        if not self.log.pages and not self.log.zeros:
            return raw
        # a page may lie beyond what the reader has
        end = max([offset + len(raw), *(p + PAGE for p in self._pages(offset, length))])
        out = bytearray(raw.ljust(min(end, offset + length) - offset, b"\0"))
        for at, n in self.log.zeros:
            low, high = max(at, offset), min(at + n, offset + len(out))
            if low < high:
                out[low - offset : high - offset] = bytes(high - low)
        for at in self._pages(offset, length):
            low, high = max(at, offset), min(at + PAGE, offset + len(out))
            out[low - offset : high - offset] = self.log.pages[at][low - at : high - at]
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        if not self.inner.missing(offset, length):
            return False
        at = offset
        while at < offset + length:
            page = at // PAGE * PAGE
            end = min(page + PAGE, offset + length)
            if page not in self.log.pages and self.inner.missing(at, end - at) and not self._zeroed(at, end):
                return True
            at = end
        return False

    def _pages(self, offset: int, length: int) -> list[int]:
        first, last = offset // PAGE * PAGE, offset + length
        if (last - first) // PAGE < len(self.log.pages):
            return [p for p in range(first, last, PAGE) if p in self.log.pages]
        return [p for p in self.log.pages if first <= p < last]

    def _zeroed(self, start: int, end: int) -> bool:
        return any(at <= start and end <= at + n for at, n in self.log.zeros)


def patches(log: Replay, size: int) -> tuple[list[Patch], int]:
    """What the written file needs instead of a replay, inside its `size` bytes, and the bytes of zeros left out."""
    out: list[Patch] = []
    room, left_out = OUR_MAX_ZERO_BYTES, 0
    for at, n in log.zeros:
        wanted = max(0, min(at + n, size) - at)
        take = min(wanted, room)
        room -= take
        left_out += wanted - take
        # zeros first, without the pages that were written after them: no byte is in two patches
        out += _around_pages(log, at, take)
    run: list[int] = []
    for at in [*sorted(p for p in log.pages if p + PAGE <= size), -1]:
        if run and at != run[-1] + PAGE:
            out.append(Patch(run[0], b"".join(log.pages[p] for p in run), "log-replay", PROVEN))
            run = []
        run.append(at)
    return out, left_out


def _around_pages(log: Replay, start: int, length: int) -> list[Patch]:
    out: list[Patch] = []
    at, end = start, start + length
    for page in sorted(p for p in log.pages if start < p + PAGE and p < end):
        if page > at:
            out.append(Patch(at, bytes(page - at), "log-replay", PROVEN))
        at = max(at, page + PAGE)
    if at < end:
        out.append(Patch(at, bytes(end - at), "log-replay", PROVEN))
    return out
