"""ZIP files (jar, whl, docx, apk): the directory at the end names the place of each member, and what begins it.

Source: PKWARE APPNOTE 6.3 (4.3.7 local header, 4.3.12 directory, 4.3.16 its end; little-endian). The end of a directory
says how long the file is, so it places itself in the file of that size, at its very byte. The directory before it,
where it lies unbroken, gives time, checksum and sizes of each member; a local header with the same ones is that
member's. Of members that were written as a stream (no checksum in the local header) and of ZIP64 nothing is asked.
Memory: 24 bytes for each local header on the image, and for each member of a guest's archives.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...model import Reader
from ..tails import to_file
from .want import BLOCK, Guest, Int64s, Told, U8s

RECORD = int.from_bytes(b"PK", "little")  # every record begins with it; then come two bytes of its kind
LOCAL, ENTRY, END = 30, 46, 22  # bytes of the fixed parts
MAX_LOCALS = 1 << 22  # ours: of one image
MAX_ENDS = 1 << 16  # ours
MAX_DIRECTORY = 16 << 20  # ours: bytes of one directory
MAX_RIVALS = 16  # ours
END_BITS, MEMBER_BITS = 28.0, 40.0  # a size and the place in a block; those, a checksum and a time


@dataclass(frozen=True, slots=True)
class End:
    """The end of a directory: its image offset, where it lies in the archive, the directory's bytes, the archive's."""

    at: int
    offset: int
    directory: int
    size: int


@dataclass(slots=True)
class Archives:
    """Mechanism: see the package."""

    image: Reader
    _guests: list[Guest] = field(default_factory=list[Guest])
    _seen: bool = False
    _locals: list[Int64s] = field(default_factory=list[Int64s])  # int64[n, 2]: key, image offset
    _held: int = 0
    _ends: list[End] = field(default_factory=list[End])
    _members: dict[int, Int64s] = field(default_factory=dict[int, Int64s])  # by image offset of the end

    def want(self, guests: list[Guest]) -> bool:
        self._guests = guests
        first, self._seen = not self._seen, self._seen or any(len(g.files.size) for g in guests)
        return first and self._seen

    def see(self, data: U8s, at: int, length: int) -> None:
        if self._held >= MAX_LOCALS:
            return
        found: list[int] = []
        for i in _records(data[: length + 3]):
            if data[i + 2] == 3:
                if i + LOCAL <= len(data):
                    found.append(i)
            elif i + END <= len(data) and len(self._ends) < MAX_ENDS:
                end = data[i : i + END].tobytes()
                directory, offset = (int.from_bytes(end[k : k + 4], "little") for k in (12, 16))
                comment = int.from_bytes(end[20:22], "little")
                if directory and end[4:8] == bytes(4):
                    self._ends.append(End(at + i, offset + directory, directory, offset + directory + END + comment))
        if found:
            place = np.array(found, np.int64)
            key = _keys(data[place[:, None] + np.arange(LOCAL)], 10, 14, 18)
            self._locals.append(np.column_stack((key, place + at))[key != 0])
            self._held += len(found)

    def points(self, number: int) -> Told:
        guest = self._guests[number]
        stated = Counter(e.size for e in self._ends)
        wanted = Counter(size for g in self._guests for size in g.files.size.tolist())
        by_size: dict[int, list[int]] = {}
        for i, size in enumerate(guest.files.size.tolist()):
            by_size.setdefault(size, []).append(i)
        rows, bits = [np.empty((0, 3), np.int64)], [np.empty(0)]  # file, offset in it, image offset
        members = [np.empty((0, 3), np.int64)]  # file, offset in it, key
        for end in self._ends:
            rivals = stated[end.size] * wanted[end.size]
            for file in by_size.get(end.size, ()) if rivals <= MAX_RIVALS else ():
                rows.append(np.array([[file, end.offset, end.at]], np.int64))
                bits.append(np.array([END_BITS - np.log2(rivals)]))
                of = self._directory(end)
                members.append(np.column_stack((np.full(len(of), file), of)))
        one = self._known_again(np.unique(np.concatenate(members), axis=0))
        all_rows = np.concatenate([*rows, one[0]])
        f = to_file(guest.disk.map, guest.files.place(all_rows[:, 0], all_rows[:, 1]))
        step = all_rows[:, 2] - f - guest.start
        keep = (f >= 0) & (step % BLOCK == 0)
        return Told(f[keep] // BLOCK, step[keep] // BLOCK, np.concatenate([*bits, one[1]])[keep], np.empty(0, np.int64))

    def _known_again(self, members: Int64s) -> tuple[Int64s, npt.NDArray[np.float64]]:
        """(int64[n, 3]: file, offset in it, image offset; bits) of the members int64[m, 3] on the image."""
        if not self._locals or not len(members):
            return np.empty((0, 3), np.int64), np.empty(0)
        there = np.concatenate(self._locals)
        there = there[np.argsort(there[:, 0], kind="stable")]
        low = np.searchsorted(there[:, 0], members[:, 2])
        count = np.searchsorted(there[:, 0], members[:, 2], side="right") - low
        count[count > MAX_RIVALS] = 0
        which = np.repeat(np.arange(len(members)), count)
        index = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
        return (np.column_stack((members[which, :2], there[index, 1])), MEMBER_BITS - np.log2(count[which]))

    def _directory(self, end: End) -> Int64s:
        """int64[n, 2]: the offset of each member in the archive, and its key; none where the directory is broken."""
        if end.at not in self._members:
            self._members[end.at] = _entries(self.image, end)
        return self._members[end.at]


def _records(data: U8s) -> list[int]:
    """Where local headers and ends of directories begin, rising."""
    found: list[Int64s] = []
    for odd in (0, 1):
        words = data[odd : odd + (len(data) - odd) // 2 * 2].view("<u2")
        at = np.flatnonzero(words == RECORD) * 2 + odd
        at = at[at + 4 <= len(data)]
        kind = data[at + 2].astype(np.int64) << 8 | data[at + 3]
        found.append(at[(kind == 0x0304) | (kind == 0x0506)])
    return np.sort(np.concatenate(found)).tolist()


def _entries(image: Reader, end: End) -> Int64s:
    none = np.empty((0, 2), np.int64)
    if not 0 < end.directory <= min(end.at, MAX_DIRECTORY):
        return none
    text = image.read(end.at - end.directory, end.directory)
    begins: list[int] = []
    at = 0
    while at + ENTRY <= len(text) and text[at : at + 4] == b"PK\x01\x02":
        begins.append(at)
        at += ENTRY + sum(int.from_bytes(text[at + k : at + k + 2], "little") for k in (28, 30, 32))
    if at != end.directory:
        return none
    rows = np.frombuffer(text, np.uint8)[np.array(begins, np.int64)[:, None] + np.arange(ENTRY)]
    key = _keys(rows, 12, 16, 20)
    offset = np.ascontiguousarray(rows[:, 42:46]).view("<u4")[:, 0].astype(np.int64)
    return np.column_stack((offset, key))[key != 0]


def _keys(rows: U8s, time: int, crc: int, stored: int) -> Int64s:
    """One number for time, checksum and both sizes of records; 0 where no checksum is told."""
    def number(at: int) -> npt.NDArray[np.uint64]:
        return np.ascontiguousarray(rows[:, at : at + 4]).view("<u4")[:, 0].astype(np.uint64)

    mixed = number(time) * np.uint64(0x9E3779B97F4A7C15) ^ number(stored) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= number(stored + 4) << np.uint64(17) ^ number(crc) << np.uint64(32) ^ number(crc)
    return np.where(number(crc) == 0, np.uint64(0), mixed).view(np.int64)
