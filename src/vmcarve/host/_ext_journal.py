"""jbd2, the journal of ext3 and ext4: every copy of a metadata block that is still in the log, with its age.

Source: Linux Documentation/filesystems/ext4/journal, fs/jbd2 (tag sizes, escaping, revoke), checked against logs that
Linux 6.18 wrote. All integers big-endian. A copy names its home block, so it is an old version of exactly that block.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..model import Reader
from ._blocks import I64, SWEEP_BYTES

MAGIC = 0xC03B3998
DESCRIPTOR, COMMIT, SUPER_V1, SUPER_V2, REVOKE = 1, 2, 3, 4, 5
FLAG_ESCAPED, FLAG_SAME_UUID, FLAG_LAST, MOST_FLAGS = 1, 2, 8, 15
INCOMPAT_64BIT, INCOMPAT_CSUM_V2, INCOMPAT_CSUM_V3, INCOMPAT_FAST_COMMIT = 0x2, 0x8, 0x10, 0x20
SECTOR = 512
OUR_MAX_LOGGED = 1 << 20  # bytes behind one descriptor: 254 tags of 4 KiB blocks and less
MAX_BLOCK = 4096  # Linux's largest, on pages of that size
NEAR = 16 << 10  # bytes between two of the journal's own blocks within which what is described is not counted
DEFAULT_FAST_COMMIT_BLOCKS = 256  # JBD2_DEFAULT_FAST_COMMIT_BLOCKS
OUR_MAX_LOG_BLOCKS = 1 << 22  # 16 GiB at 4 KiB: mke2fs makes logs of at most 1 GiB unless told otherwise


def logged(data: npt.NDArray[np.uint8], at: I64) -> npt.NDArray[np.bool_]:
    """Which of some positions in data uint8[n] lie in a transaction of a journal: copies, which belong elsewhere.

    They lie behind a block that describes them, up to the next of the journal's own blocks, or as many as it describes.
    """
    words = data[: len(data) // SECTOR * SECTOR].view(">u4").reshape(-1, SECTOR // 4)[:, :2]
    own = np.flatnonzero(words[:, 0] == MAGIC).astype(np.int64) * SECTOR
    if not len(own) or not len(at):
        return np.zeros(len(at), np.bool_)
    reach = np.where(words[own // SECTOR, 1] == DESCRIPTOR, OUR_MAX_LOGGED, 0)
    size = int(np.bitwise_or.reduce(own) | MAX_BLOCK)
    size &= -size  # of a block, at most: own blocks begin at multiples of it
    for k in np.flatnonzero((reach > 0) & (np.diff(own, append=1 << 62) > NEAR)).tolist():
        reach[k] = min(OUR_MAX_LOGGED, (1 + _described(data[own[k] : own[k] + size].tobytes())) * size)
    i = np.searchsorted(own, at, side="right") - 1
    return (i >= 0) & (at - own[i] < reach[i])


def _described(block: bytes) -> int:
    """How many blocks a descriptor describes, whatever the journal's features; more than there can be: not known."""
    for incompat in (INCOMPAT_CSUM_V3, 0, INCOMPAT_64BIT, INCOMPAT_CSUM_V2, INCOMPAT_CSUM_V2 | INCOMPAT_64BIT):
        tags = parse_tags(block, incompat)
        flags = [f for _, f in tags]
        once = len({home for home, _ in tags}) == len(tags)
        if tags and once and flags[-1] & FLAG_LAST and max(flags) <= MOST_FLAGS \
                and all(bool(f & FLAG_SAME_UUID) == (k > 0) for k, f in enumerate(flags)):
            return len(tags)
    return OUR_MAX_LOGGED


@dataclass(frozen=True, slots=True)
class LogSuper:
    """The log's own superblock: blocks first..last-1 of the log hold transactions, from `start` (0: log is empty)."""

    first: int
    last: int
    sequence: int
    start: int
    incompat: int

    @property
    def wide(self) -> bool:
        return bool(self.incompat & INCOMPAT_64BIT)


def parse_super(block: bytes, log_blocks: int, block_size: int) -> LogSuper | None:
    """The superblock in the log's first block, bounded by the length of the journal file."""
    if len(block) < 1024:
        return None
    magic, kind, _, size, length, first, sequence, start = struct.unpack_from(">8I", block)
    if magic != MAGIC or kind not in (SUPER_V1, SUPER_V2) or size != block_size:
        return None
    incompat = struct.unpack_from(">I", block, 0x28)[0] if kind == SUPER_V2 else 0
    last = min(length, log_blocks)
    if incompat & INCOMPAT_FAST_COMMIT:
        last -= struct.unpack_from(">I", block, 0x54)[0] or DEFAULT_FAST_COMMIT_BLOCKS
    if not 0 < first < last <= OUR_MAX_LOG_BLOCKS:
        return None
    return LogSuper(first, last, sequence, start, incompat)


def parse_tags(block: bytes, incompat: int) -> list[tuple[int, int]]:
    """(home block, flags) of each tag of a descriptor block, in the order of the blocks that follow it."""
    return [(home, flags) for home, flags, _ in tags_of(block, incompat)]


def tags_of(block: bytes, incompat: int) -> list[tuple[int, int, int]]:
    """As `parse_tags`, and the byte of the block at which each tag begins."""
    v3, v2, wide = incompat & INCOMPAT_CSUM_V3, incompat & INCOMPAT_CSUM_V2, incompat & INCOMPAT_64BIT
    # journal_tag_bytes(): version 2 checksums add two bytes that nothing uses
    size = 16 if v3 else 8 + (2 if v2 else 0) + (4 if wide else 0)
    end = len(block) - (4 if v2 or v3 else 0)
    at = 12
    tags: list[tuple[int, int, int]] = []
    while at + size <= end:
        home = int.from_bytes(block[at : at + 4], "big")
        flags = int.from_bytes(block[at + 4 : at + 8] if v3 else block[at + 6 : at + 8], "big")
        if wide:
            home |= int.from_bytes(block[at + 8 : at + 12], "big") << 32
        tags.append((home, flags, at))
        if flags & FLAG_LAST:
            return tags
        at += size + (0 if flags & FLAG_SAME_UUID else 16)
    return tags


def revoked(block: bytes, wide: bool) -> list[int]:
    """The home blocks whose copies a revoke block gives up. wide: numbers of 64 bits."""
    used = min(int.from_bytes(block[12:16], "big"), len(block))
    return np.frombuffer(block, ">u8" if wide else ">u4", max(used - 16, 0) // (8 if wide else 4), 16).tolist()


@dataclass
class Copies:
    """Journal copies, sorted by (home, seq): arrays int64 of home block, sequence, image offset; escaped bool."""

    home: I64
    seq: I64
    where: I64
    escaped: npt.NDArray[np.bool_]
    commits: dict[int, int]  # sequence -> log block of its commit
    revoked: dict[int, int]  # home block -> highest sequence that revoked it
    before: dict[int, int]  # sequence -> the transaction before it, where none between the two is lost
    times: dict[int, float]  # sequence -> when its commit was written, Unix seconds

    def __len__(self) -> int:
        return len(self.home)

    def of(self, home: int) -> range:
        """Indices of the copies of one home block, oldest first."""
        low, high = np.searchsorted(self.home, [home, home + 1])
        return range(int(low), int(high))

    def read(self, reader: Reader, i: int, block_size: int) -> bytes:
        """The block as it was at sequence seq[i]."""
        data = reader.read(int(self.where[i]), block_size)
        return struct.pack(">I", MAGIC) + data[4:] if self.escaped[i] else data

    @cached_property
    def unbroken(self) -> int:
        """Every transaction after this one is there whole."""
        sequence = max(self.commits, default=1 << 62)
        while sequence in self.before:
            sequence = self.before[sequence]
        return sequence

    def ends(self, log: LogSuper) -> bool:
        """Whether the last transaction of a log that was closed cleanly is there."""
        last = max(self.commits, default=-1)  # the next number is one or two on (seen: Linux 6.18)
        return log.start == 0 and log.sequence - 2 <= last < log.sequence

    def newest(self) -> I64:
        """Indices of the newest committed copy of each home block, but of those that were given up since, and of those
        behind which a part of the log is lost."""
        committed = np.isin(self.seq, np.fromiter(self.commits, np.int64, len(self.commits)))
        committed = np.flatnonzero(committed & (self.seq >= self.unbroken))
        last = committed[np.diff(self.home[committed], append=-1) != 0]
        kept = [self.revoked.get(home, -1) < seq
                for home, seq in zip(self.home[last].tolist(), self.seq[last].tolist(), strict=True)]
        return last[np.array(kept, np.bool_)]

    def to_replay(self, reader: Reader, log: LogSuper, block_size: int) -> dict[int, bytes | int]:
        """Home block -> newest committed content (bytes, or the image offset of the copy) that was not yet at home."""
        if log.start == 0:
            return {}
        end = log.sequence
        while end in self.commits:
            end += 1
        out: dict[int, bytes | int] = {}
        for i in np.flatnonzero((self.seq >= log.sequence) & (self.seq < end)).tolist():
            home, seq = int(self.home[i]), int(self.seq[i])
            if self.revoked.get(home, -1) >= seq and self.revoked[home] < end:
                out.pop(home, None)
                continue
            out[home] = self.read(reader, i, block_size) if self.escaped[i] else int(self.where[i])
        return out


def no_copies() -> Copies:
    """What a volume without a journal has."""
    none = np.zeros(0, np.int64)
    return Copies(none, none, none, np.zeros(0, np.bool_), {}, {}, {}, {})


def read_log(reader: Reader, where: I64, log: LogSuper, block_size: int, volume_blocks: int) -> Copies:
    """All copies whose transaction is whole in the log. where int64[log blocks]: image offset of each log block."""
    control: dict[int, tuple[int, int]] = {}  # log block -> (type, sequence)
    descriptors: list[tuple[int, int, list[tuple[int, int]]]] = []
    commits: dict[int, int] = {}
    times: dict[int, float] = {}
    given_up: dict[int, int] = {}
    for at, kind, sequence, block in _control_blocks(reader, where, log, block_size):
        control[at] = (kind, sequence)
        if kind == DESCRIPTOR:
            descriptors.append((at, sequence, parse_tags(block, log.incompat)))
        elif kind == COMMIT:
            commits[sequence] = at
            seconds, nanoseconds = struct.unpack_from(">QI", block, 48)
            times[sequence] = seconds + min(nanoseconds, 999_999_999) / 1e9
        elif kind == REVOKE:
            for number in revoked(block, log.wide):
                given_up[number] = max(given_up.get(number, -1), sequence)
    home: list[int] = []
    seq: list[int] = []
    place: list[int] = []
    escaped: list[bool] = []
    span = log.last - log.first
    for at, sequence, tags in descriptors:
        behind = log.first + (at + len(tags) + 1 - log.first) % span
        # what follows the last block must still be of this transaction: else the log's head has run over it
        if not tags or len(home) + len(tags) > span or control.get(behind, (0, -1))[1] != sequence:
            continue
        for j, (number, flags) in enumerate(tags):
            if 0 < number < volume_blocks or (number == 0 and block_size > 1024):
                home.append(number)
                seq.append(sequence)
                place.append(int(where[log.first + (at + 1 + j - log.first) % span]))
                escaped.append(bool(flags & FLAG_ESCAPED))
    arrays = [np.array(a, np.int64) for a in (home, seq, place)]
    order = np.lexsort((arrays[1], arrays[0]))
    h, s, w = (a[order] for a in arrays)
    before = _before(log, control, commits)
    return Copies(h, s, w, np.array(escaped, np.bool_)[order], commits, given_up, before, times)


def _before(log: LogSuper, control: dict[int, tuple[int, int]], commits: dict[int, int]) -> dict[int, int]:
    """Of each transaction the one before it: it begins right behind that one's commit, or at the log's first block.

    Linux leaves two numbers out between the last transaction of a mount and the first of the next, which goes on behind
    it (seen: Linux 6.18) or begins the log anew, and runs over what was written there before.
    """
    anew = control.get(log.first, (0, -1))[1]
    out: dict[int, int] = {}
    for sequence in commits:
        last = sequence - 1 if sequence - 1 in commits else sequence - 3 if sequence - 2 not in commits else -1
        if last in commits:
            behind = log.first + (commits[last] + 1 - log.first) % (log.last - log.first)
            if sequence in (control.get(behind, (0, -1))[1], anew):
                out[sequence] = last
    return out


def _control_blocks(
    reader: Reader, where: I64, log: LogSuper, block_size: int
) -> Iterator[tuple[int, int, int, bytes]]:
    """(log block, type, sequence, bytes) of each block of the log that begins with the journal's magic."""
    step = max(SWEEP_BYTES // block_size, 1)
    at = log.first
    while at < log.last:
        # as many log blocks as follow each other on the image
        ahead = where[at : min(at + step, log.last)]
        count = int(np.flatnonzero(np.concatenate((np.diff(ahead) != block_size, [True])))[0]) + 1
        data = reader.read(int(ahead[0]), count * block_size)
        whole = len(data) // block_size
        heads = np.frombuffer(data, ">u4", whole * block_size // 4).reshape(whole, -1)[:, :3]
        for i in np.flatnonzero(heads[:, 0] == MAGIC).tolist():
            block = data[i * block_size : (i + 1) * block_size]
            yield at + i, int(heads[i, 1]), int(heads[i, 2]), block
        at += count
