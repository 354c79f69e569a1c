"""Signatures of every module, compiled into the tables that ext/first_look walks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._ext.first_look import LookTable
from ..model import SECTOR, Confirm, ConfirmBatch, Signature
from ..registry import formats, guests, hosts
from ..simd import best_path

MAX_FIELD = 16  # bytes of a magic, and of a second field
MARGIN = 64 << 10  # bytes: a dense structure starts in what is looked at and may reach this far behind it
LINE, WORDS = 64, 32  # a cache line, and the 16-bit words in it
CROWDED = 4  # magics at one place from which on a bitmap is cheaper than a compared word each
TELLING = 8  # bits that a word must fix to be worth comparing

Word = tuple[int, int, int]  # place in the sector (even), mask, pattern (no bits outside the mask)


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

    @property
    def reaches(self) -> bool:
        """Whether its second field lies in another sector than its magic."""
        also = self.signature.also
        return also is not None and also[0] // SECTOR != self.signature.at // SECTOR


@dataclass(frozen=True, slots=True)
class MagicTable:
    """The kernel's table, and per magic the entry that it belongs to. lines: cache lines of a sector always touched."""

    entries: tuple[Entry, ...]
    look: LookTable
    lines: tuple[int, ...]


def declared() -> list[Entry]:
    """Every signature of formats/, guest/ and host/."""
    records = [*formats().values(), *guests().values(), *hosts().values()]
    entries = [Entry(r.name, s, r.confirm, r.confirm_batch) for r in records for s in r.signatures]
    for e in entries:
        if (e.confirm_batch if e.signature.dense else e.confirm) is None:
            raise ValueError(f"{e.signature.kind}: no function confirms it")
    return entries


def compile_table(entries: list[Entry], path: int | None = None) -> MagicTable:
    """The tables for `entries`; path: cpu.PATHS, default the best here. Raises ValueError for what cannot be found."""
    for e in entries:
        _refuse(e.signature)
    gates, layers = _tests([e.signature for e in entries])
    m = len(entries)
    places = {at: k for k, at in enumerate(sorted({e.signature.at % SECTOR for e in entries},
                                                  key=lambda at: (at not in gates, at)))}
    probe = np.array(list(places), np.int32)
    bits = np.zeros((len(probe), 8192), np.uint8)
    chains: list[dict[int, int]] = [{} for _ in probe]  # the first two bytes -> the last magic declared with them
    next_ = np.full(m, -1, np.int32)
    for i, e in enumerate(entries):
        k = places[e.signature.at % SECTOR]
        value = int.from_bytes(e.signature.magic[:2], "little")
        bits[k, value >> 3] |= 1 << (value & 7)
        next_[i], chains[k][value] = chains[k].get(value, -1), i
    magic, room = fields([e.signature.magic for e in entries])
    also_at = np.array([0 if e.signature.also is None else e.signature.also[0] - e.back for e in entries], np.int64)
    also_mask, also_room = fields([b"" if e.signature.also is None else e.signature.also[1] for e in entries])
    also_value, _ = fields([b"" if e.signature.also is None else e.signature.also[2] for e in entries])
    heads = np.cumsum([0, *map(len, chains)], dtype=np.int32)
    head = np.array([value for chain in chains for value in sorted(chain)], np.uint16)
    first = np.array([chain[value] for chain in chains for value in sorted(chain)], np.int32)
    line, pattern, mask, idle = _layer_arrays(layers)
    look = LookTable(len(gates), line, pattern, mask, idle, probe, bits, heads, head, first, next_, magic, room,
                     also_at, also_room, also_mask, also_value, best_path() if path is None else path)
    touched = {int(at) // LINE * LINE for at in [*line, *gates]}
    return MagicTable(tuple(entries), look, tuple(sorted(touched)))


def fields(texts: list[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """uint8[m, MAX_FIELD], padded with zeros, and their lengths."""
    padded = b"".join(text.ljust(MAX_FIELD, b"\0") for text in texts)
    lengths = np.array([len(text) for text in texts], np.int32)
    return np.frombuffer(padded, np.uint8).reshape(-1, MAX_FIELD), lengths


def _refuse(s: Signature) -> None:
    if not 2 <= len(s.magic) <= MAX_FIELD or s.at % SECTOR + len(s.magic) > SECTOR:
        raise ValueError(f"{s.kind}: a magic has 2 to {MAX_FIELD} bytes inside one sector")
    if s.dense and (s.at >= SECTOR or s.size > MARGIN):
        raise ValueError(f"{s.kind}: a dense kind has its magic in its first sector and at most {MARGIN} bytes")
    if s.also is not None:
        at, mask, value = s.also
        fits = 1 <= len(mask) == len(value) <= MAX_FIELD and at >= 0
        if not fits or any(v & ~m for m, v in zip(mask, value, strict=True)):
            raise ValueError(f"{s.kind}: the second field has 1 to {MAX_FIELD} bytes, and no bit outside its mask")


# --- which word of a magic is looked at first -----------------------------------------------------------------------
def _tests(signatures: list[Signature]) -> tuple[set[int], list[tuple[int, dict[int, Word]]]]:
    """The places that get a bitmap, and the layers: (cache line, place -> the one word that is compared there).

    What costs is the cache lines of a sector that are touched, so as few as possible are: a magic in a line of its own
    is looked for by its second field, where that lies in a line that is touched anyway.
    """
    crowd: defaultdict[int, set[bytes]] = defaultdict(set)
    for s in signatures:
        crowd[s.at % SECTOR].add(s.magic[:2])
    gates = {at for at, heads in crowd.items() if len(heads) > CROWDED}
    open_: list[list[Word]] = []
    for words in (list(_words(s)) for s in signatures if s.at % SECTOR not in gates):
        if words not in open_:
            open_.append(words)
    lines = {at // LINE for at in gates}
    while waiting := [words for words in open_ if not any(w[0] // LINE in lines for w in words)]:
        # the line that settles most of them; of equals the lowest
        votes = {line: sum(any(w[0] // LINE == line for w in words) for words in waiting)
                 for words in waiting for line in {w[0] // LINE for w in words}}
        lines.add(min(votes, key=lambda line: (-votes[line], line)))
    layers: list[tuple[int, dict[int, Word]]] = []
    choices = [[w for w in words if w[0] // LINE in lines] for words in open_]
    for usable in sorted(choices, key=lambda words: sum(map(_rare, words))):  # who has least choice chooses first
        if not any(layer.get(w[0]) == w for w in usable for _, layer in layers):
            _place(layers, max(usable, key=lambda w: (_free(layers, w), _rare(w), w[1].bit_count(), -w[0])))
    return gates, sorted(layers, key=lambda layer: layer[0])


def _rare(word: Word) -> bool:
    """Two blanks or two zeros pass in every text and every table."""
    return word[2] & 0xFF != word[2] >> 8


def _free(layers: list[tuple[int, dict[int, Word]]], word: Word) -> bool:
    return any(line == word[0] // LINE * LINE and word[0] not in layer for line, layer in layers)


def _place(layers: list[tuple[int, dict[int, Word]]], word: Word) -> None:
    line = word[0] // LINE * LINE
    for at, layer in layers:
        if at == line and word[0] not in layer:
            layer[word[0]] = word
            return
    layers.append((line, {word[0]: word}))


def _words(s: Signature) -> Iterator[Word]:
    """The 16-bit words of the magic's sector that the signature fixes, wholly or TELLING bits of them."""
    fixed = {s.at % SECTOR + i: (0xFF, byte) for i, byte in enumerate(s.magic)}
    if s.also is not None and s.also[0] // SECTOR == s.at // SECTOR:
        for i, (mask, value) in enumerate(zip(s.also[1], s.also[2], strict=True)):
            fixed.setdefault(s.also[0] % SECTOR + i, (mask, value))
    for at in sorted({place & ~1 for place in fixed}):
        (low, a), (high, b) = fixed.get(at, (0, 0)), fixed.get(at + 1, (0, 0))
        if (low | high << 8).bit_count() >= TELLING:
            yield at, low | high << 8, a | b << 8


def _layer_arrays(layers: list[tuple[int, dict[int, Word]]]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint16],
                                                                       npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    line = np.array([at for at, _ in layers], np.int32)
    pattern, mask = (np.zeros((len(layers), WORDS), np.uint16) for _ in range(2))
    idle = np.full((len(layers), WORDS), 0xFFFF, np.uint16)
    for k, (at, layer) in enumerate(layers):
        for place, bits, value in layer.values():
            w = (place - at) // 2
            pattern[k, w], mask[k, w], idle[k, w] = value, bits, 0
    return line, pattern, mask, idle
