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
from .table import MAX_FIELD, Entry

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
    m = len(entries)
    low, high = (np.zeros((LEAST, 16), np.uint8) for _ in range(2))
    six = np.zeros((LEAST, 64), np.uint8)
    begins = np.zeros(8192, np.uint8)
    room, also_room = np.zeros(m, np.int32), np.zeros(m, np.int32)
    at, also_at = np.zeros(m, np.int64), np.zeros(m, np.int64)
    magic, also_mask, also_value = (np.zeros((m, MAX_FIELD), np.uint8) for _ in range(3))
    bucket = _buckets(sorted({e.signature.magic[:LEAST] for e in entries}))
    for i, e in enumerate(entries):
        s = e.signature
        begin = s.magic[0] | s.magic[1] << 8
        begins[begin >> 3] |= 1 << (begin & 7)
        for j, byte in enumerate(s.magic[:LEAST]):
            low[j, byte & 15] |= 1 << bucket[s.magic[:LEAST]]
            high[j, byte >> 4] |= 1 << bucket[s.magic[:LEAST]]
            six[j, byte & 63] |= 1 << bucket[s.magic[:LEAST]]
        magic[i, : len(s.magic)] = np.frombuffer(s.magic, np.uint8)
        room[i], at[i] = len(s.magic), s.at
        if s.also is not None:
            place, mask, value = s.also
            also_at[i], also_room[i] = place, len(mask)
            also_mask[i, : len(mask)] = np.frombuffer(mask, np.uint8)
            also_value[i, : len(mask)] = np.frombuffer(value, np.uint8)
    search = BytesTable(low, high, six, begins, magic, room, at, also_at, also_room, also_mask, also_value,
                        best_path() if path is None else path)
    return ByteTable(tuple(entries), search, int(room.max()) if m else 0)


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
