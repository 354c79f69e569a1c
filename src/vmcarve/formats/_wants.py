"""Blocks of tables that a container in pieces lacks: how they are told from anything else. Knows no format.

A table's block is known by its words: all legal, none twice, at least one there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from ..model import Reader, Want

Words = npt.NDArray[np.uint64]
Legal = Callable[[Words], npt.NDArray[np.bool_]]
BLOCK = 4096
BITS = 8.0  # of each legal word
MAX_BITS = 40.0
NO_PLACE = 4.0  # bits of legal words that name nothing: believed in its place, and found in no other
TIED = 30.0  # bits of what only this very place would say: as good as a full table, however few its words are
OUR_MAX_WANTS = 1024  # of one container at a time


def table(file_offset: int, kind: str, dtype: str, legal: Legal, *, skip: int = 0, count: int | None = None,
          places: Callable[[Words], Words] = lambda words: words, bonus: Callable[[Words], float] | None = None,
          empty: bool = False) -> Want:
    """A block that holds `count` words of `dtype` from byte `skip` on (to its end without one), each zero or legal.

    places(words): what they name, where 0 is nothing; nothing is named twice. bonus(words that are not zero) adds bits,
    TIED where they name what lies right behind the table, or takes all away where it is negative.
    """
    size = np.dtype(dtype).itemsize
    end = BLOCK if count is None else min(BLOCK, skip + count * size)

    def begins(at: npt.NDArray[np.uint16], word: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        parts = word.astype("<u8").view(np.uint8).reshape(-1, 8).view(dtype).astype(np.uint64)
        good = ((parts == 0) | legal(parts.ravel()).reshape(parts.shape)).all(axis=1)
        first = at.astype(np.int64) * 8
        return good & (first + 8 > skip) & (first < end)

    def fits(block: bytes) -> float:
        words = np.frombuffer(block[skip:end], dtype).astype(np.uint64)
        rest = block[end:]
        there = words[words != 0]
        if len(there) == 0 or (count is not None and any(rest)) or not legal(there).all():
            return 0.0
        named = places(there)
        named = named[named != 0]
        if len(named) == 0:
            return NO_PLACE
        if len(np.unique(named)) < len(named):
            return 0.0
        more = bonus(there) if bonus is not None else 0.0
        bits = MAX_BITS if more >= TIED else min(MAX_BITS, BITS * len(named))
        return 0.0 if more < 0 else bits + more

    return Want(file_offset, kind, begins, fits, empty)


def magic(file_offset: int, kind: str, value: bytes, whole: Callable[[bytes], bool]) -> Want:
    """A block that begins with `value` (4 or 8 bytes) and that `whole` believes."""
    mask = np.uint64((1 << 8 * len(value)) - 1)
    number = np.uint64(int.from_bytes(value, "little"))

    def begins(at: npt.NDArray[np.uint16], word: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        return (at == 0) & (word & mask == number)

    return Want(file_offset, kind, begins, lambda block: MAX_BITS if block.startswith(value) and whole(block) else 0.0)


def nothing(file_offset: int, kind: str) -> Want:
    """A block that must be empty: the rest of a structure."""
    return Want(file_offset, kind, lambda at, word: np.zeros(len(at), bool), lambda block: 0.0, True)


def lacking(reader: Reader, rows: Iterable[Want], dtype: str, mask: np.uint64, behind: int, named: set[int]
            ) -> list[Want]:
    """The rows, blocks of one table, that the reader does not have in their place.

    What each of the others names first, cut to `mask`, goes to `named`: nothing is named twice, so a block that names
    it is not of another table. Only those do that name what lies right `behind` the table: the run may show one table
    in another's place.
    """
    out: list[Want] = []
    for want in rows:
        if missing(reader, want):
            out.append(want)
            continue
        words = np.frombuffer(reader.read(want.file_offset, BLOCK), dtype).astype(np.uint64) & mask
        if (words == np.uint64(behind)).any():
            named.update(first_place(words))
    return out


def first_place(words: Words) -> list[int]:
    """The first place that a table's words name, [] without one. 1 names none: it is a cluster of zeros in a QED."""
    return words[words > 1][:1].tolist()


def missing(reader: Reader, want: Want) -> bool:
    """Whether the reader does not have it in its place."""
    block = reader.read(want.file_offset, BLOCK)
    if len(block) < BLOCK or reader.missing(want.file_offset, BLOCK):
        return True
    return want.fits(block) <= 0 and not (want.empty and not any(block))
