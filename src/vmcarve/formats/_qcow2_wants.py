"""Tables of a qcow2 in pieces: refcount table and blocks, L1, L2. Source: QEMU docs/interop/qcow2.rst."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import Reader, Want
from ._qcow2_header import DATA_FILE, DATA_FILE_RAW, Header, read_header
from ._wants import (
    BITS,
    BLOCK,
    MAX_BITS,
    NO_PLACE,
    OUR_MAX_WANTS,
    TIED,
    Legal,
    Words,
    first_place,
    lacking,
    magic,
    missing,
    nothing,
    table,
)

COPIED, COMPRESSED, ZERO = np.uint64(1 << 63), np.uint64(1 << 62), np.uint64(1)
OFFSET = np.uint64(0x00FF_FFFF_FFFF_FE00)
MOST = np.uint64(1 << 63)
LUKS = b"LUKS\xba\xbe\0\1"  # with the version, which is the only one that QEMU writes
OUR_MAX_COUNT = 256  # references to one cluster: snapshots, and compressed clusters in it
OUR_SLACK = 64 << 20  # bytes of metadata that a container may have beyond its disk


def wants(reader: Reader) -> list[Want]:
    """What is not in its place, in the order in which one leads to the next."""
    try:
        h = read_header(reader, 0)
    except Damaged:
        return []
    if h.cluster < BLOCK:
        return []  # smaller clusters share blocks with data: see _qcow2_stated
    named: set[int] = set()
    behind = h.reftable_offset + h.reftable_clusters * h.cluster
    out = lacking(reader, _references(reader, h), ">u8", OFFSET, behind, named)
    if h.luks is not None:
        out += [w for w in [magic(h.luks[0], "qcow2.luks", LUKS, _luks)] if missing(reader, w)]
    found: list[tuple[int, int]] = []  # index in the L1, and place, of each L2 table that is named
    for number, want in enumerate(_l1(h, named)):
        if missing(reader, want):
            out.append(want)
            continue
        words = np.frombuffer(reader.read(want.file_offset, BLOCK), ">u8").astype(np.uint64)
        found += [(number * (BLOCK // 8) + i, int(words[i] & OFFSET)) for i in np.flatnonzero(words).tolist()]
    behind_l2 = {offset + h.cluster for _, offset in found}
    for index, offset in found:
        if h.incompatible & DATA_FILE:
            out += [w for w in _external_l2(h, offset, index) if missing(reader, w)]
        else:
            rows = _l2(h, offset, index, named, behind_l2 - {offset + h.cluster})
            out += lacking(reader, rows, ">u8", OFFSET, offset + h.cluster, named)
        if len(out) > OUR_MAX_WANTS:
            return out
    return out


def _l1(h: Header, named: set[int]) -> list[Want]:
    """The blocks of the L1. The refcount table names clusters too, and others. A new disk's first L2 lies behind it."""
    legal, size = _legal(h, COPIED), h.l1_entries * 8
    behind = h.l1_offset + -(-size // h.cluster) * h.cluster

    def bonus(words: Words) -> float:
        shared = h.snapshots == 0 and not (words & COPIED).any()  # every L2 table would be one of a snapshot too
        if shared or not named.isdisjoint(first_place(words & OFFSET)):
            return -1.0
        return TIED if (words & OFFSET == np.uint64(behind)).any() else 0.0

    rows: list[Want] = []
    for at in range(0, min(-(-size // h.cluster) * h.cluster, BLOCK * OUR_MAX_WANTS), BLOCK):
        here = h.l1_offset + at
        rows.append(table(here, "qcow2.l1", ">u8", legal, count=min(BLOCK // 8, (size - at) // 8), bonus=bonus,
                          empty=at > 0) if at < size else nothing(here, "qcow2.l1"))
    return rows


def _references(reader: Reader, h: Header) -> list[Want]:
    legal = _legal(h, np.uint64(0))
    length = min(h.reftable_clusters * h.cluster, BLOCK * OUR_MAX_WANTS)
    rows = [table(h.reftable_offset + at, "qcow2.refcount-table", ">u8", legal, empty=at > 0)
            for at in range(0, length, BLOCK)]
    out = list(rows)
    for row in rows if h.refcount_order == 4 else []:
        if missing(reader, row):
            break
        words = np.frombuffer(reader.read(row.file_offset, BLOCK), ">u8").astype(np.uint64)
        for offset in (words[words != 0] & OFFSET).tolist():
            out += [_counts(int(offset) + at, at > 0) for at in range(0, h.cluster, BLOCK)]
        if len(out) > OUR_MAX_WANTS:
            break
    return out


def _counts(offset: int, empty: bool) -> Want:
    """A block of 16-bit reference counts: small numbers."""
    def fits(block: bytes) -> float:
        counts = np.frombuffer(block, ">u2")
        ones, others = int((counts == 1).sum()), int((counts > 1).sum())
        if ones + others < 4 or counts.max() > OUR_MAX_COUNT:
            return 0.0
        return 20.0 if others <= ones // 8 else 10.0  # clusters that compressed data share are counted more than once

    def begins(at: npt.NDArray[np.uint16], word: Words) -> npt.NDArray[np.bool_]:
        return (at == 0) & (word & np.uint64(0x00FF_00FF_00FF_00FF) == 0)

    return Want(offset, "qcow2.refcount-block", begins, fits, empty, spare=True)


def _l2(h: Header, offset: int, index: int, named: set[int], others: set[int]) -> list[Want]:
    """The blocks of the L2 table of this index in the L1, as far as the disk has clusters for them: what a run has
    behind them may be anything, the table itself as well. A table is allocated before its clusters: it often names the
    one behind itself.

    named: what other blocks name first. others: what lies right behind the other tables.
    """
    inside = np.uint64((1 << (62 - (h.cluster_bits - 8))) - 1)  # of an entry of a compressed cluster

    def place(words: Words) -> Words:
        return np.where(words & COMPRESSED != 0, words & inside, words & OFFSET)

    def bonus(words: Words) -> float:
        places = place(words)
        places = places[places > 0]  # clusters of zeros name none
        if (places == np.uint64(offset)).any() or (places == np.uint64(h.l1_offset)).any():
            return -1.0
        lowest = int(places.min(initial=MOST))
        if not named.isdisjoint(first_place(words & OFFSET)) or lowest in others:
            return -1.0
        if lowest == offset + h.cluster:
            return TIED
        return 20.0 if (places == np.uint64(offset + h.cluster)).any() else 0.0

    legal = _legal(h, COPIED | COMPRESSED | ZERO)
    entry = 16 if h.extended else 8
    left = -(-h.size // h.cluster) - index * (h.cluster // entry)  # clusters of the disk from this table's first on
    rows = range(0, max(BLOCK, min(h.cluster, left * entry)), BLOCK)
    if h.extended:
        return [_pairs(offset + at, legal, bonus, at > 0) for at in rows]
    return [table(offset + at, "qcow2.l2", ">u8", legal, places=place, bonus=bonus, empty=at > 0) for at in rows]


def _pairs(file_offset: int, legal: Legal, bonus: Callable[[Words], float], empty: bool) -> Want:
    """A block of an L2 with subclusters: entries, each before a word of two bits for each of 32 of them, allocated and
    zero, never both ("Extended L2 Entries").
    """
    def sound(bits: Words) -> npt.NDArray[np.bool_]:
        return (bits >> np.uint64(32)) & bits & np.uint64(0xFFFF_FFFF) == 0

    def begins(at: npt.NDArray[np.uint16], word: Words) -> npt.NDArray[np.bool_]:
        value = word.byteswap()
        return np.where(at % 2 == 0, legal(value), sound(value))

    def fits(block: bytes) -> float:
        pairs = np.frombuffer(block, ">u8").astype(np.uint64).reshape(-1, 2)
        there = pairs[pairs.any(axis=1)]
        entry = there[:, 0][there[:, 0] != 0]
        places = entry & OFFSET
        if not legal(entry).all() or not sound(there[:, 1]).all() or (there[:, 1] == 0).any() or \
                not len(there) or len(np.unique(places)) < len(places):
            return 0.0
        if not len(entry):
            return NO_PLACE
        more = bonus(entry)
        return 0.0 if more < 0 else min(MAX_BITS, BITS * len(entry)) + more

    return Want(file_offset, "qcow2.l2", begins, fits, empty)


def _luks(block: bytes) -> bool:
    """Whether a block that begins as a LUKS header goes on as one: the names of its cipher, mode and hash, then where
    its payload begins, in sectors. Source: LUKS1 On-Disk Format Specification 1.2.3, 2.1.
    """
    names = [block[at: at + 32].rstrip(b"\0") for at in (8, 40, 72)]
    return all(name and name.isascii() for name in names) and int.from_bytes(block[104:108], "big") > 0


def _external_l2(h: Header, offset: int, index: int) -> list[Want]:
    """The blocks of the L2 table at L1 `index` whose entries name clusters of a data file, where any is legal.

    In a raw data file a guest cluster lies at its own guest offset ("External data file", autoclear bit 1).
    """
    span = np.uint64(h.cluster * h.l2_entries)
    most = np.uint64(h.size + OUR_SLACK)

    def legal(words: Words) -> npt.NDArray[np.bool_]:
        place = words & ~(COPIED | ZERO)
        return (place & np.uint64(h.cluster - 1) == 0) & (place < most)

    def bonus(words: Words) -> float:
        own = bool(((words & OFFSET) // span == np.uint64(index)).all())
        return (20.0 if own else -1.0) if h.autoclear & DATA_FILE_RAW else 0.0

    return [table(offset + at, "qcow2.l2", ">u8", legal, bonus=bonus, empty=at > 0)
            for at in range(0, h.cluster, BLOCK)]


def _legal(h: Header, flags: np.uint64):  # noqa: ANN202
    """Which words are entries: the flags that may be set, and a cluster inside the container."""
    most = np.uint64(h.size + h.size // 8 + OUR_SLACK)
    mask = np.uint64(h.cluster - 1)
    shift = 62 - (h.cluster_bits - 8)

    def legal(words: Words) -> npt.NDArray[np.bool_]:
        compressed = words & flags & COMPRESSED != 0
        place = words & ~flags
        plain = (place & mask == 0) & (place < most) & (place >= h.cluster)
        at = words & np.uint64((1 << shift) - 1)
        stream = (at >= h.cluster) & (at < most) & (words & COPIED == 0)
        return np.where(compressed, stream, plain | (words & flags & ZERO == words))

    return legal
