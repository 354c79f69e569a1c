"""Signatures of every module, compiled into the tables that ext/first_look walks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import SECTOR, Confirm, ConfirmBatch, Signature
from ..registry import formats, guests, hosts

MAX_MAGIC = 16
MARGIN = 64 << 10  # bytes: a dense structure starts in what is looked at and may reach this far behind it


@dataclass(frozen=True, slots=True)
class Entry:
    """One signature with the functions of the module that declared it."""

    module: str
    signature: Signature
    confirm: Confirm | None
    confirm_batch: ConfirmBatch | None

    @property
    def back(self) -> int:
        """Bytes from the sector that holds the magic back to the structure's first byte."""
        return self.signature.at // SECTOR * SECTOR


@dataclass(frozen=True, slots=True)
class MagicTable:
    """The arrays of ext/first_look, and per magic the entry that it belongs to."""

    entries: tuple[Entry, ...]
    probe: npt.NDArray[np.int32]
    gate: npt.NDArray[np.uint8]
    only: npt.NDArray[np.int32]
    first: npt.NDArray[np.int32]
    next_: npt.NDArray[np.int32]
    magic: npt.NDArray[np.uint8]
    room: npt.NDArray[np.int32]


def declared() -> list[Entry]:
    """Every signature of formats/, guest/ and host/."""
    records = [*formats().values(), *guests().values(), *hosts().values()]
    entries = [Entry(r.name, s, r.confirm, r.confirm_batch) for r in records for s in r.signatures]
    for e in entries:
        if (e.confirm_batch if e.signature.dense else e.confirm) is None:
            raise ValueError(f"{e.signature.kind}: no function confirms it")
    return entries


def compile_table(entries: list[Entry]) -> MagicTable:
    """The arrays for `entries`. Raises ValueError for a magic that does not lie inside one sector."""
    m = len(entries)
    for e in entries:
        s = e.signature
        if not 2 <= len(s.magic) <= MAX_MAGIC or s.at % SECTOR + len(s.magic) > SECTOR:
            raise ValueError(f"{s.kind}: a magic has 2 to {MAX_MAGIC} bytes inside one sector")
        if s.dense and (s.at >= SECTOR or s.size > MARGIN):
            raise ValueError(f"{s.kind}: a dense kind has its magic in its first sector and at most {MARGIN} bytes")
    probe = np.unique(np.array([e.signature.at % SECTOR for e in entries], np.int32))
    gate = np.zeros((len(probe), 8192), np.uint8)
    first = np.full((len(probe), 65536), -1, np.int32)
    values: list[set[int]] = [set() for _ in probe]
    next_ = np.full(m, -1, np.int32)
    magic = np.zeros((m, MAX_MAGIC), np.uint8)
    room = np.zeros(m, np.int32)
    for i, e in enumerate(entries):
        s = e.signature
        k = int(np.searchsorted(probe, s.at % SECTOR))
        value = s.magic[0] | s.magic[1] << 8
        values[k].add(value)
        gate[k, value >> 3] |= 1 << (value & 7)
        next_[i], first[k, value] = first[k, value], i
        magic[i, : len(s.magic)] = np.frombuffer(s.magic, np.uint8)
        room[i] = len(s.magic)
    only = np.array([v.pop() if len(v) == 1 else -1 for v in values], np.int32)
    return MagicTable(tuple(entries), probe, gate, only, first, next_, magic, room)
