"""Which magics are looked for at every byte, compiled into the tables that ext/every_byte walks.

Containers inside an archive, a mail or a memory dump begin anywhere. What is looked for there are the container
formats' magics of at least four bytes, three of these four not zero: two bytes, or a small number, stand everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._ext.every_byte import BytesTable
from ..model import Signature
from ..registry import formats
from ..simd import best_path
from .table import Entry, fields

LEAST, TELLING = 4, 3  # bytes of a magic at least, and how many of its first four are not zero
BUCKETS = 8


@dataclass(frozen=True, slots=True)
class ByteTable:
    """The kernel's table, and per magic the entry that it belongs to. reach: bytes of the longest magic."""

    entries: tuple[Entry, ...]
    search: BytesTable
    reach: int


def anywhere(entries: list[Entry]) -> list[Entry]:
    """Those of `entries` that are worth a search at every byte."""
    return [e for e in entries if e.module in formats() and not e.signature.dense and _telling(e.signature)]


def _telling(s: Signature) -> bool:
    return len(s.magic) >= LEAST and sum(b != 0 for b in s.magic[:LEAST]) >= TELLING


def compile_bytes(entries: list[Entry], path: int | None = None) -> ByteTable:
    """The tables for `entries`; path: cpu.PATHS, default the best here."""
    low, high = (np.zeros((LEAST, 16), np.uint8) for _ in range(2))
    six = np.zeros((LEAST, 64), np.uint8)
    begins = np.zeros(8192, np.uint8)
    bucket = _buckets(sorted({e.signature.magic[:LEAST] for e in entries}))
    for e in entries:
        head = e.signature.magic[:LEAST]
        begin = int.from_bytes(head[:2], "little")
        begins[begin >> 3] |= 1 << (begin & 7)
        for j, byte in enumerate(head):
            low[j, byte & 15] |= 1 << bucket[head]
            high[j, byte >> 4] |= 1 << bucket[head]
            six[j, byte & 63] |= 1 << bucket[head]
    magic, room = fields([e.signature.magic for e in entries])
    at = np.array([e.signature.at for e in entries], np.int64)
    also_at = np.array([0 if e.signature.also is None else e.signature.also[0] for e in entries], np.int64)
    also_mask, also_room = fields([b"" if e.signature.also is None else e.signature.also[1] for e in entries])
    also_value, _ = fields([b"" if e.signature.also is None else e.signature.also[2] for e in entries])
    search = BytesTable(low, high, six, begins, magic, room, at, also_at, also_room, also_mask, also_value,
                        best_path() if path is None else path)
    return ByteTable(tuple(entries), search, int(room.max(initial=0)))


def _buckets(heads: list[bytes]) -> dict[bytes, int]:
    """A bucket for each of the first four bytes: the one whose magics then pass the least of random bytes."""
    members: list[list[bytes]] = [[] for _ in range(BUCKETS)]
    out: dict[bytes, int] = {}
    for head in heads:
        costs = [_passing([*group, head]) - _passing(group) for group in members]
        out[head] = costs.index(min(costs))
        members[out[head]].append(head)
    return out


def _passing(group: list[bytes]) -> float:
    """The share of random places that these four bytes' halves let pass."""
    share = 1.0 if group else 0.0
    for j in range(LEAST):
        share *= len({h[j] & 15 for h in group}) * len({h[j] >> 4 for h in group}) / 256
    return share
