"""Files whose first bytes say how long they are: where one begins on the image, a file of that size begins.

ELF: the section headers come last (ELF-64 and ELF-32, little-endian; System V ABI, "ELF header"). SQLite: page size
times pages (https://www.sqlite.org/fileformat.html, 1.3). RIFF: the length behind its magic. Debian packages: an `ar`
of three members whose headers name their sizes (deb(5)). An equal size is worth the size's own bits (in pages where it
is whole pages), for files of all sizes up to it are about equally many, less what rivals there are: begins of that size
on the image, and in all guests. That a block begins such a file at all is worth the more, the fewer blocks do.
Memory: 16 bytes for each such begin on the image, and for each file of a guest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..tails import to_file
from .want import BLOCK, Guest, Int64s, Told, U8s, in_phase

MAX_RIVALS = 64  # ours: places of one file beyond which it says nothing
MAX_BITS = 20.0
MAX_PHASES = 8  # ours
MEMBERS = 3  # of a Debian package


@dataclass(slots=True)
class Starts:
    """Mechanism: see the package."""

    _begins: list[tuple[int, Int64s, Int64s]] = field(default_factory=list[tuple[int, Int64s, Int64s]])
    """(image offset of the container's first byte, file_offset int64[n] of begins, size int64[n])"""
    _phases: list[int] = field(default_factory=list[int])
    _found: list[tuple[Int64s, Int64s]] = field(default_factory=list[tuple[Int64s, Int64s]])  # image offset, size
    _blocks: int = 0

    def want(self, guests: list[Guest]) -> bool:
        self._begins = []
        for guest in guests:
            g, number = guest.files.begins()
            f = to_file(guest.disk.map, g)
            self._begins.append((guest.start, f[f >= 0], guest.files.size[number][f >= 0]))
        phases = {int(p) for start, f, _ in self._begins for p in np.unique((f + start) % BLOCK)[:MAX_PHASES]}
        if phases <= set(self._phases):
            return False  # what begins where does not depend on what is wanted: one look is enough
        self._phases = sorted(phases | set(self._phases))[:MAX_PHASES]
        self._found, self._blocks = [], 0
        return True

    def see(self, data: U8s, at: int, length: int) -> None:
        self._blocks += length // BLOCK
        for phase in self._phases:
            first, blocks = in_phase(data, at, length, phase)
            head = np.ascontiguousarray(blocks[:, :4]).view("<u4")[:, 0]
            for magic, stated in SIZES.items():
                rows = np.flatnonzero(head == magic)
                if len(rows):
                    begin = first + rows * BLOCK
                    size = stated(data[begin[:, None] + np.arange(BLOCK)])
                    self._found.append((begin[size > 0] + at, size[size > 0]))

    def points(self, number: int) -> Told:
        start, f, size = self._begins[number]
        if not self._found or not len(f):
            return Told.nothing()
        image_offset = np.concatenate([p for p, _ in self._found])
        stated = np.concatenate([s for _, s in self._found])
        order = np.argsort(stated, kind="stable")
        image_offset, stated = image_offset[order], stated[order]
        low, high = np.searchsorted(stated, size), np.searchsorted(stated, size, side="right")
        count = np.where(high - low <= MAX_RIVALS, high - low, 0)
        which = np.repeat(np.arange(len(f)), count)
        first = np.cumsum(count) - count
        index = np.arange(len(which)) - np.repeat(first, count) + np.repeat(low, count)
        step = image_offset[index] - f[which] - start
        wanted = np.sort(np.concatenate([sizes for _, _, sizes in self._begins]))
        asked = np.searchsorted(wanted, size, side="right") - np.searchsorted(wanted, size)
        rivals = np.maximum(count * asked, 1)[which]
        # of so many blocks only these begin a file that says its size, and only one in so many says just this one
        rare = np.log2(max(self._blocks, len(stated)) / len(stated))
        steps = np.where(size[which] % BLOCK == 0, size[which] // BLOCK, size[which])
        bits = rare + np.maximum(np.minimum(np.log2(steps), MAX_BITS) - np.log2(rivals), 0.0)
        whole = step % BLOCK == 0
        none = np.empty(0, np.int64)
        return Told(f[which][whole] // BLOCK, step[whole] // BLOCK, bits[whole], none)


def _elf(heads: U8s) -> Int64s:
    """Sizes of little-endian ELF files by their heads uint8[n, BLOCK]; 0 where none is told."""
    wide = (heads[:, 4] == 2) & (heads[:, 5] == 1)
    narrow = (heads[:, 4] == 1) & (heads[:, 5] == 1)
    at64, at32 = _number(heads, 0x28, 8), _number(heads, 0x20, 4)
    size64 = at64 + _number(heads, 0x3A, 2) * _number(heads, 0x3C, 2)
    size32 = at32 + _number(heads, 0x2E, 2) * _number(heads, 0x30, 2)
    there = (wide & (at64 > 0) & (at64 < 1 << 40)) | (narrow & (at32 > 0))
    return np.where(there, np.where(wide, size64, size32), 0)


def _sqlite(heads: U8s) -> Int64s:
    page = _number(heads, 16, 2, big=True)
    good = (heads[:, :16] == np.frombuffer(b"SQLite format 3\0", np.uint8)).all(axis=1)
    return np.where(good, np.where(page == 1, 1 << 16, page) * _number(heads, 28, 4, big=True), 0)


def _riff(heads: U8s) -> Int64s:
    return _number(heads, 4, 4) + 8


def _package(heads: U8s) -> Int64s:
    """The end of the third member of an `ar`, where all three headers lie in the first block."""
    at = np.full(len(heads), 8, np.int64)
    good = (heads[:, 8:21] == np.frombuffer(b"debian-binary", np.uint8)).all(axis=1)
    for _ in range(MEMBERS):
        good &= at + 60 <= BLOCK
        header = np.take_along_axis(heads, np.where(good, at, 0)[:, None] + np.arange(60), axis=1)
        digits = header[:, 48:58].astype(np.int64) - ord("0")
        number = (digits >= 0) & (digits <= 9)
        good &= (header[:, 58] == ord("`")) & (header[:, 59] == ord("\n")) & number[:, 0]
        size = np.zeros(len(heads), np.int64)
        for i in range(10):  # digits, then blanks
            size = np.where(number[:, : i + 1].all(axis=1), size * 10 + digits[:, i], size)
        at += 60 + size + size % 2
    return np.where(good, at, 0)


def _number(heads: U8s, at: int, width: int, big: bool = False) -> Int64s:
    part = np.ascontiguousarray(heads[:, at : at + width][:, :: -1 if big else 1])
    return part.view(f"<u{width}")[:, 0].astype(np.int64)


SIZES = {int.from_bytes(magic, "little"): stated for magic, stated in (
    (b"\x7fELF", _elf), (b"SQLi", _sqlite), (b"RIFF", _riff), (b"!<ar", _package))}
