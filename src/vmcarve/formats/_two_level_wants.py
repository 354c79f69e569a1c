"""Tables of a QED or a qcow version 1 in pieces: L1 and L2, words of eight bytes that name clusters.

A table is allocated before what it names, so it often names the cluster right behind itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..model import Reader, Want
from ._wants import BLOCK, OUR_MAX_WANTS, TIED, Legal, Words, first_place, lacking, missing, table

EVERY_BIT = np.uint64((1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """l1, l1_bytes: place and length of the first level; l2_bytes: length of each second-level table; l2_used: of that
    what the disk needs; legal_l1, legal_l2: which words may be entries. place: the file offsets that entries of an L2
    name.
    """

    name: str
    dtype: str
    l1: int
    l1_bytes: int
    l2_bytes: int
    l2_used: int
    legal_l1: Legal
    legal_l2: Legal
    place: Callable[[Words], Words] = lambda words: words


def wants(reader: Reader, shape: Shape) -> list[Want]:
    """What is not in its place: blocks of the L1, and those of the L2 tables that known ones name."""
    out: list[Want] = []
    named: set[int] = set()
    first = shape.l1 // BLOCK * BLOCK
    for at in range(first, min(shape.l1 + shape.l1_bytes, first + BLOCK * OUR_MAX_WANTS), BLOCK):
        skip = max(0, shape.l1 - at)
        count = min(BLOCK - skip, shape.l1 + shape.l1_bytes - at - skip) // 8
        want = table(at, f"{shape.name}.l1", shape.dtype, shape.legal_l1, skip=skip, count=count, empty=at > shape.l1)
        block = reader.read(at, BLOCK)
        words = np.frombuffer(block[skip : skip + count * 8], shape.dtype).astype(np.uint64) if at else None
        if at and missing(reader, want):
            out.append(want)
            continue
        if words is None:  # in the header's own block
            words = np.frombuffer(block[skip : skip + count * 8], shape.dtype).astype(np.uint64)
        for offset in np.unique(words[words > 1]).tolist():
            if int(offset) % BLOCK == 0:
                rows = _l2(shape, int(offset), named)
                out += lacking(reader, rows, shape.dtype, EVERY_BIT, int(offset) + shape.l2_bytes, named)
            if len(out) > OUR_MAX_WANTS:
                return out
    return out


def _l2(shape: Shape, offset: int, named: set[int]) -> list[Want]:
    def bonus(words: Words) -> float:
        places = shape.place(words[words > 1])
        if (places == np.uint64(offset)).any() or not named.isdisjoint(first_place(words)):
            return -1.0
        if int(places.min(initial=EVERY_BIT)) == offset + shape.l2_bytes:
            return TIED
        return 20.0 if (places == np.uint64(offset + shape.l2_bytes)).any() else 0.0

    return [table(offset + at, f"{shape.name}.l2", shape.dtype, shape.legal_l2, bonus=bonus, empty=at > 0,
                  places=lambda words: np.where(words > 1, words, np.uint64(0)))
            for at in range(0, shape.l2_used, BLOCK)]


def clusters(step: int, low: int, most: int) -> Legal:
    """Words that are multiples of `step` in [low, most), and 1 (a cluster of zeros, where there is such)."""
    def legal(words: Words):  # noqa: ANN202
        return (words == 1) | ((words % np.uint64(step) == 0) & (words >= low) & (words < most))

    return legal
