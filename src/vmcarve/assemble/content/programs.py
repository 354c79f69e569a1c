"""The x86-64 programs of guests: where their functions begin, as the sorted table of their .eh_frame_hdr says.

The head of a program states where that table lies in the file, and its size, hence how many functions it has; the
table's own first words repeat that. So the table is known again on the image where the map does not have it, up to
where a break cuts it; and the head where it is the only one on the image that states the size of a file. Source: System
V ABI ("ELF header"); LSB 5.0, "The .eh_frame_hdr section".
Memory: 16 bytes for each head and table on the image, 8 for each function of the programs.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ...model import Reader
from ..tails import to_file
from .want import BLOCK, Guest, Int64s, U8s

ELF, X86_64, LOAD, EH_FRAME = b"\x7fELF\x02\x01", 62, 1, 0x6474E550
EXECUTE = 1  # p_flags
ENCODINGS = b"\x01\x1b\x03\x3b"  # version 1; relative pointers, a 4-byte count, a sorted table relative to the header
SECTOR, WORD = 512, 4
MAX_TABLE = 1 << 24  # ours: bytes of one table of functions
MAX_PROGRAMS = 4096  # ours: of one guest
MAX_NOTED = 1 << 18  # ours: heads, and tables, of one image
MAX_RIVALS = 8  # ours: tables of one place in a block and one count
FEW = 64  # functions of a table that a break cuts
TABLE_BITS = 30.0  # a place in a block, four bytes of encodings and the number of functions

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Program:
    """Functions of a program, as far as its table is there, and its code: starts int64[n] (addresses, rising); the
    first address and file offset of the code, and its bytes as far as the table tells of it. files: (guest, file
    number)s that are this program. table: offset in the file of the table of functions; found: image offsets where that
    very table lies.
    """

    key: bytes  # equal programs have equal ones
    starts: Int64s
    address: int
    offset: int
    length: int
    table: int
    found: tuple[int, ...]
    files: list[tuple[int, int]]


@dataclass(slots=True)
class Programs:
    """What was noted of programs on the image."""

    image: Reader
    _heads: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # image offsets by the file's size
    _tables: dict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    """image offsets by place in a block and number of functions"""
    _noted: int = 0

    def see(self, data: U8s, at: int, length: int) -> None:
        """Notes heads and tables in image bytes from `at` on (see Mechanism.see)."""
        for place in _each(data, ELF[:4], -at % SECTOR, length, SECTOR):
            head = data[place : place + 64].tobytes()
            size = _size(head) if head.startswith(ELF) else 0
            if size and self._noted < MAX_NOTED:
                self._heads[size].append(at + place)
                self._noted += 1
        for place in _each(data, ENCODINGS, -at % WORD, min(length, len(data) - 11), WORD):
            count = int.from_bytes(data[place + 8 : place + 12].tobytes(), "little")
            if 0 < count <= MAX_TABLE // 8 and self._noted < MAX_NOTED:
                self._tables[(at + place) % BLOCK, count].append(at + place)
                self._noted += 1

    def of(self, guests: list[Guest]) -> dict[bytes, Program]:
        """The programs whose tables can be read, in the map or where they lie on the image."""
        wanted = Counter(size for g in guests for size in g.files.size.tolist())
        found: dict[bytes, Program] = {}
        for k, guest in enumerate(guests):
            g, number = guest.files.begins()
            for at, file in list(zip(g.tolist(), number.tolist(), strict=True))[:MAX_PROGRAMS]:
                size = int(guest.files.size[file])
                head = guest.disk.read(at, BLOCK) if size > BLOCK else b""
                if head[:6] != ELF or guest.disk.missing(at, BLOCK):
                    head = self._supposed(size, wanted[size])
                if head[:6] != ELF or int.from_bytes(head[18:20], "little") != X86_64:
                    continue
                program = self._program(guest, file, size, head)
                if program is not None:
                    other = found.get(program.key)
                    if other is None or len(other.starts) < len(program.starts):  # a break may cut the one's table
                        found[program.key] = replace(program, files=other.files if other else [])
                    found[program.key].files.append((k, file))
        return found

    def _supposed(self, size: int, wanted: int) -> bytes:
        """The head of the files of a size where the image has one for each, all alike; else nothing."""
        heads = self._heads.get(size, ())
        if not wanted <= len(heads) <= MAX_RIVALS:
            return b""
        texts = {self.image.read(at, BLOCK) for at in heads}
        return texts.pop() if len(texts) == 1 else b""

    def _program(self, guest: Guest, file: int, size: int, head: bytes) -> Program | None:
        table, entry, count = (int.from_bytes(head[a:b], "little") for a, b in ((32, 40), (54, 56), (56, 58)))
        if entry != 56 or table + 56 * count > BLOCK:
            return None
        rows = [[int.from_bytes(head[at + a : at + b], "little")
                 for a, b in ((0, 4), (4, 8), (8, 16), (16, 24), (32, 40))]
                for at in range(table, table + 56 * count, 56)]
        code = [r for r in rows if r[0] == LOAD and r[1] & EXECUTE and r[2] + r[4] <= size]
        frames = [r for r in rows if r[0] == EH_FRAME and 12 < r[4] <= MAX_TABLE and r[2] + r[4] <= size]
        if len(code) != 1 or len(frames) != 1 or (code[0][3] - code[0][2]) % BLOCK:
            return None
        _, _, offset, address, length = frames[0]
        _, _, begin, first, extent = code[0]
        told = {at: _functions(self.image.read(at, length), address, first, extent)
                for at in self._places(guest, file, offset, length)}
        places = {at: starts for at, starts in told.items() if len(starts)}
        known = _functions(_read(guest, file, offset, length), address, first, extent)
        starts = max([known, *places.values()], key=len)
        same = tuple(at for at, part in places.items() if np.array_equal(part, starts[: len(part)]))
        if not len(starts) or not len(known) and len(same) < len(places):
            return None  # or the tables of several programs: nothing tells which is this one's
        key = hashlib.blake2b(head, digest_size=16).digest()
        if len(starts) < (length - 12) // 8:
            extent = int(starts[-1]) - first  # what lies behind it cannot be held against its functions
        return Program(key, starts, first, begin, extent, offset, same, [])

    def _places(self, guest: Guest, file: int, offset: int, length: int) -> tuple[int, ...]:
        """Image offsets of tables as one of so many bytes begins, that could be this one by their place in a block."""
        f = int(to_file(guest.disk.map, guest.files.place(np.array([file]), np.array([offset])))[0])
        found = self._tables.get(((f + guest.start) % BLOCK, (length - 12) // 8), []) if f >= 0 else []
        return tuple(found) if len(found) <= MAX_RIVALS else ()


def points(number: int, programs: dict[bytes, Program]) -> tuple[Int64s, Floats]:
    """(int64[n, 3]: file, offset in it, image offset; bits) of the tables of one guest's programs on the image."""
    rows = [(file, p.table, at, TABLE_BITS - np.log2(len(p.found) * len(p.files)))
            for p in programs.values() for g, file in p.files if g == number for at in p.found]
    return (np.array([r[:3] for r in rows], np.int64).reshape(-1, 3), np.array([r[3] for r in rows], np.float64))


def _each(data: U8s, needle: bytes, first: int, end: int, step: int) -> list[int]:
    """Where a needle of WORD bytes begins before `end`, of first, first + step, ..."""
    count = (min(end, len(data) - WORD + 1) - first + step - 1) // step
    if count <= 0:
        return []
    words = np.ndarray((count,), "<u4", data, first, (step,))
    return (np.flatnonzero(words == int.from_bytes(needle, "little")) * step + first).tolist()


def _functions(data: bytes, address: int, first: int, extent: int) -> Int64s:
    """Addresses int64[n], rising, of the functions in a table at `address`, from its begin on as far as it is there:
    behind a break something else lies. None where it is no table of such code.
    """
    none = np.empty(0, np.int64)
    if data[:4] != ENCODINGS:
        return none
    entries = int.from_bytes(data[8:12], "little")
    if not 0 < entries <= (len(data) - 12) // 8:
        return none
    starts = np.frombuffer(data, "<i4", 2 * entries, 12)[::2].astype(np.int64) + address
    good = (starts >= first) & (starts < first + extent)
    good[1:] &= starts[1:] > starts[:-1]
    whole = entries if good.all() else int(np.argmin(good))
    return starts[:whole] if whole >= min(entries, FEW) else none


def _size(head: bytes) -> int:
    """The size that the head of a 64-bit ELF states: its section headers come last; 0 where none is told."""
    if len(head) < 64:
        return 0
    at, size, count = (int.from_bytes(head[a:b], "little") for a, b in ((40, 48), (58, 60), (60, 62)))
    return at + size * count if 0 < at < 1 << 40 else 0


def _read(guest: Guest, file: int, offset: int, length: int) -> bytes:
    """Bytes of a file, across its runs; zeros where it has none."""
    parts: list[bytes] = []
    for _, low, at, n in guest.files.run[guest.files.run[:, 0] == file].tolist():
        a, b = max(offset, low), min(offset + length, low + n)
        if a < b:
            parts.append(guest.disk.read(at + a - low, b - a))
    return b"".join(parts).ljust(length, b"\0")
