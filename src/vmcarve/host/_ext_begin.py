"""ext3 and ext4 whose superblock or group descriptors are lost: what a journal has of them.

A journal names the home of each block that it holds, and all metadata that was written since it began anew went through
it: on a small or young volume descriptors, bitmaps, tables of inodes and directories are all there. Where the blocks
lie in units of any order, a transaction goes on in another unit: with checksums of version 3 each tag tells how its
block must sum up, so the unit is found by its first block. Source: Linux Documentation/filesystems/ext4/journal,
fs/jbd2/commit.c (jbd2_block_tag_csum_set). Seen: mke2fs 1.47 gives a journal its volume's UUID.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..blocks import Blocks
from ..checksums import crc32c
from ..filemap import FileMap, FileView
from ..model import MISSING, Begin, Cut, Evidence, EvidenceBatch, Reader, Signature
from . import _ext_super as super_
from ._blocks import I64, U8, Overlay
from ._ext_journal import (
    DESCRIPTOR,
    FLAG_ESCAPED,
    INCOMPAT_64BIT,
    INCOMPAT_CSUM_V2,
    INCOMPAT_CSUM_V3,
    MAGIC,
    REVOKE,
    SUPER_V1,
    SUPER_V2,
    logged,
    revoked,
    tags_of,
)
from ._ext_placer import placer

KIND = "ext.journal"
GUEST = "ext"  # the module that finds superblocks
# the type, 1 to 5, is the header's second word
SIGNATURE = Signature(MAGIC.to_bytes(4, "big") + bytes(3), KIND, dense=True, size=1024)
BLOCK_SIZES = (1024, 2048, 4096)
FEATURES = (INCOMPAT_64BIT | INCOMPAT_CSUM_V3, INCOMPAT_CSUM_V3, INCOMPAT_64BIT, 0, INCOMPAT_CSUM_V2,
            INCOMPAT_64BIT | INCOMPAT_CSUM_V2)  # fmt: skip
ALL = 0xFFFF_FFFF
OUR_MAX_BLOCKS = 1 << 12  # of a journal's own that are read: the newest
OUR_MAX_BYTES = 32 << 20  # of metadata of one volume
OUR_MAX_TRIES = 1 << 17  # blocks that are read to find where transactions go on
MAX_STATED = 256  # ours: structures that are said to lie where they do
STEP = 4 << 20


def confirm_batch(blocks: U8 | Blocks, image_offset: I64, signature: Signature) -> EvidenceBatch | None:
    """A journal's superblocks, and the blocks that describe or revoke others. value: their transaction."""
    rows = Blocks.of(blocks)
    keep = np.isin(rows.field(4, ">u4"), (DESCRIPTOR, SUPER_V1, SUPER_V2, REVOKE))
    if not keep.any():
        return None
    return EvidenceBatch(KIND, image_offset[keep], 1024, value=rows[keep].field(8, ">u4").astype(np.int64),
                         confidence=0.7)


@dataclass(slots=True)
class _Journal:
    """What is known of one journal. blocks: (transaction, place), newest first, of those that describe or revoke.

    home: the newest copy of each home block. seed: raw CRC-32C state behind its UUID.
    """

    block_size: int
    incompat: int
    identity: bytes
    blocks: list[tuple[int, int]]
    home: dict[int, bytes] = field(default_factory=dict[int, bytes])

    @property
    def seed(self) -> int:
        return crc32c(self.identity) ^ ALL

    @property
    def sums(self) -> bool:
        return bool(self.incompat & INCOMPAT_CSUM_V3)


def begins(reader: Reader, evidence: Sequence[Evidence], cut: Cut) -> Iterator[Begin]:
    """Of each journal that is told from others the metadata of its volume, which may be all of the begin."""
    rows = [(e.value or 0, e.image_offset + k * (e.length // max(e.count, 1))) for e in evidence if e.kind == KIND
            for k in range(e.count)]  # fmt: skip
    for journal in _journals(reader, sorted(rows, reverse=True), cut.named):
        _gather(reader, journal, cut.unit)
        made = _begin(reader, journal)
        if made is not None:
            yield made


def _journals(reader: Reader, rows: list[tuple[int, int]], named: Sequence[tuple[str, str]]) -> Iterator[_Journal]:
    """The journals that have a superblock, or a copy of their volume's, in a transaction or anywhere (named, see Cut);
    with one of them all blocks are its.
    """
    supers: dict[bytes, tuple[int, int]] = {}
    own: list[tuple[int, int, int]] = []  # transaction, place, type
    for seq, at in rows:
        head = reader.read(at, 1024)
        kind = int.from_bytes(head[4:8], "big")
        size = int.from_bytes(head[12:16], "big")
        if kind in (SUPER_V1, SUPER_V2) and size in BLOCK_SIZES and len(head) == 1024:
            incompat = int.from_bytes(head[0x28:0x2C], "big") if kind == SUPER_V2 else 0
            supers.setdefault(head[0x30:0x40], (size, incompat))
        elif kind in (DESCRIPTOR, REVOKE) and len(own) < OUR_MAX_BLOCKS:
            own.append((seq, at, kind))
    guessed = _size_and_features(reader, [at for _, at, kind in own if kind == DESCRIPTOR])
    if guessed is not None and not supers:
        found = _volume_copy(reader, own, *guessed)
        names = [found] if found is not None else [uuid.UUID(name).bytes for kind, name in named if kind == GUEST]
        supers |= dict.fromkeys(names, guessed)
    for identity, (size, incompat) in sorted(supers.items()):
        journal = _Journal(size, incompat, identity, [])
        mine = [(seq, at) for seq, at, _ in own]
        if incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3):
            mine = [(seq, at) for seq, at in mine if _sound(reader.read(at, size), journal)]
        elif len(supers) > 1:
            continue  # nothing tells whose a block is
        journal.blocks = mine
        yield journal


def _sound(block: bytes, journal: _Journal) -> bool:
    """Whether a block of the journal's own agrees with the sum at its end."""
    state = crc32c(block[:-4] + bytes(4), journal.seed ^ ALL) ^ ALL
    return state == int.from_bytes(block[-4:], "big")


def _size_and_features(reader: Reader, descriptors: list[int]) -> tuple[int, int] | None:
    """The block size and the tags' form with which most descriptors have another block of the journal behind what they
    describe. None where none has.
    """
    votes: dict[tuple[int, int], int] = {}
    for at in descriptors[:256]:
        for size in BLOCK_SIZES:
            block = reader.read(at, size)
            for incompat in FEATURES:
                tags = tags_of(block, incompat)
                behind = reader.read(at + (1 + len(tags)) * size, 12) if tags else b""
                if behind[:4] == block[:4] and behind[8:] == block[8:12]:
                    votes[size, incompat] = votes.get((size, incompat), 0) + 1
    return max(votes, key=lambda k: votes[k]) if votes else None


def _volume_copy(reader: Reader, own: list[tuple[int, int, int]], size: int, incompat: int) -> bytes | None:
    """The volume's UUID by a copy of its superblock in a transaction."""
    home, inside = (1, 0) if size == super_.SUPER_AT else (0, super_.SUPER_AT)
    for _, at, kind in own:
        tags = tags_of(reader.read(at, size), incompat) if kind == DESCRIPTOR else []
        for j, (number, _, _) in enumerate(tags):
            data = reader.read(at + (1 + j) * size + inside, super_.SUPER_SIZE) if number == home else b""
            sb = super_.parse(data, 0, 1 << 62)
            if sb is not None and sb.group == 0 and super_.checksum_ok(data):
                return sb.uuid
    return None


def _gather(reader: Reader, journal: _Journal, unit: int) -> None:
    """The newest copy of each home block, unless it was given up since."""
    gone: dict[int, int] = {}
    units = _Units(reader, journal, unit)
    for seq, at in journal.blocks:
        block = reader.read(at, journal.block_size)
        if int.from_bytes(block[4:8], "big") == REVOKE:
            for number in revoked(block, bool(journal.incompat & INCOMPAT_64BIT)):
                gone.setdefault(number, seq)
            continue
        for number, data in units.copies(block, at, seq):
            if (len(journal.home) + 1) * journal.block_size > OUR_MAX_BYTES:
                return
            if gone.get(number, -1) < seq:
                journal.home.setdefault(number, data)


class _Units:
    """Where transactions go on that the end of a unit cuts."""

    def __init__(self, reader: Reader, journal: _Journal, unit: int) -> None:
        self._reader, self._journal, self._unit = reader, journal, unit
        self._next: dict[int, int] = {}
        self._tries = OUR_MAX_TRIES

    def copies(self, block: bytes, at: int, seq: int) -> Iterator[tuple[int, bytes]]:
        """(home block, bytes) of the copies that the descriptor at `at` describes."""
        size = self._journal.block_size
        tags = tags_of(block, self._journal.incompat)
        behind = self._reader.read(at + (1 + len(tags)) * size, 12)
        in_order = behind[:4] == block[:4] and behind[8:] == block[8:12]  # another block of the same transaction
        where = at
        for number, flags, tag in tags:
            where += size
            if where % self._unit == 0 and (self._journal.sums or not in_order):
                found = self._goes_on(where, block, tag, seq) if self._journal.sums else None
                if found is None:
                    return
                where = found
            data = self._reader.read(where, size)
            if self._reader.missing(where, size) or self._journal.sums and not self._agrees(data, block, tag, seq):
                continue
            yield number, MAGIC.to_bytes(4, "big") + data[4:] if flags & FLAG_ESCAPED else data

    def _agrees(self, data: bytes, block: bytes, tag: int, seq: int) -> bool:
        """Whether a copy sums up to what its tag says."""
        state = crc32c(seq.to_bytes(4, "big") + data, self._journal.seed ^ ALL) ^ ALL
        return state == int.from_bytes(block[tag + 12 : tag + 16], "big")

    def _goes_on(self, where: int, block: bytes, tag: int, seq: int) -> int | None:
        """The begin of the unit that goes on behind the one that ends at `where`: its first block is the tag's."""
        known = self._next.get(where)
        if known is not None:
            return known
        count = -(-self._reader.size // self._unit)
        near = where // self._unit
        for n in (near, *range(near), *range(near + 1, count)):
            self._tries -= 1
            if self._tries < 0:
                return None
            if self._agrees(self._reader.read(n * self._unit, self._journal.block_size), block, tag, seq):
                self._next[where] = n * self._unit
                return n * self._unit
        return None


def _begin(reader: Reader, journal: _Journal) -> Begin | None:
    size = journal.block_size
    parts = tuple((number * size, data) for number, data in sorted(journal.home.items()))
    if not parts:
        return None
    identity = str(uuid.UUID(bytes=journal.identity))
    inside = super_.SUPER_AT if size > super_.SUPER_AT else 0
    data = journal.home.get(super_.SUPER_AT // size, b"")[inside : inside + super_.SUPER_SIZE]
    sb = super_.parse(data, 0, 1 << 62)
    if sb is None or sb.group or sb.uuid != journal.identity or not super_.checksum_ok(data):
        return Begin(b"", identity=identity, parts=parts)
    nothing = FileView(reader, FileMap.build([(0, sb.blocks * size, -1, MISSING, "")]))
    volume = Overlay(nothing, 0, size, {0: bytes(size), **journal.home})  # what lies before the superblock is known
    return Begin(bytes(super_.SUPER_AT) + data, size=volume.size, identity=identity, parts=parts,
                 stated=tuple(_stated(reader, volume)))


def _stated(reader: Reader, volume: Reader) -> Iterator[tuple[int, int]]:
    """(place, place in the volume) of inodes that lie in no journal."""
    look = placer(volume, 0, volume.size)
    if look is None:
        return
    left = MAX_STATED
    for at in range(0, reader.size, STEP):
        data = np.frombuffer(reader.read(at, STEP), np.uint8)
        where, place = look.find(data)
        keep = np.flatnonzero(~logged(data, where))[:left]
        left -= len(keep)
        yield from zip((where[keep] + at).tolist(), place[keep].tolist(), strict=True)
        if not left:
            return
