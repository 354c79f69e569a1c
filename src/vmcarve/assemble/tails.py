"""File tails: a guest's file says where its data ends, and the rest of its last block is zero on the image.

The last block of a file ends in zeros exactly from its size on (Linux, Windows and the tools of both write whole
blocks). Where a size is no multiple of 512 that is a sector whose data ends at a known byte, at a known sector of a
4 KiB block, with a known number of empty sectors behind: some twelve bits, as often as there are files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .._ext.sector_tails import sector_tails
from ..filemap import FileMap
from ..model import DATA, PLAIN, RUN_DATA, SECTOR, GuestMap, HostFile, HostVolume, Reader
from ..registry import hosts
from .asked import asked
from .window import read_view, steps

Int64s = npt.NDArray[np.int64]
PAGE = 4096  # systems write files by pages: what is behind the end is zeroed up to here
PAGE_SECTORS = PAGE // SECTOR
STEP = 4 << 20
MAX_LOOK = 1 << 39  # ours: bytes of one image that are looked at; some 100 MiB of memory for each 64 GiB
MAX_FILES = 2_000_000  # ours: files of one guest


@dataclass(frozen=True, slots=True)
class SectorEnds:
    """Sectors of an image in which data ends: arrays of equal length n, sector rising.

    sector int64: number in the image, in units of 512 bytes from `phase`; tail uint16: bytes of data in it, 1 to 511;
    empty uint8: sectors of zeros that follow, at most 8. blocks: 4 KiB blocks with any data that were looked at.
    """

    sector: Int64s
    tail: npt.NDArray[np.uint16]
    empty: npt.NDArray[np.uint8]
    phase: int
    blocks: int


@dataclass(frozen=True, slots=True)
class FileEnds:
    """Where files of a guest end, in the container: file_offset int64[n] of the first byte behind the data, rising.

    empty uint8[n]: sectors that must be zero behind the one with the end. begins int64[m]: container offsets where
    files begin, rising.
    """

    file_offset: Int64s
    empty: npt.NDArray[np.uint8]
    begins: Int64s

    @classmethod
    def none(cls) -> FileEnds:
        return cls(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.int64))

    def picked(self, which: npt.NDArray[np.bool_] | Int64s) -> FileEnds:
        """Only some ends: `which` bool[n], or their indices."""
        return FileEnds(self.file_offset[which], self.empty[which], self.begins)

    def __len__(self) -> int:
        return len(self.file_offset)


def look(image: Reader, room: Int64s, phase: int) -> SectorEnds:
    """The sectors in which data ends, of the image ranges `room` int64[k, 2] (offset, length; rising)."""
    sectors: list[Int64s] = []
    tails: list[npt.NDArray[np.uint16]] = []
    empties: list[npt.NDArray[np.uint8]] = []
    blocks = seen = 0
    buffer = np.empty(STEP + PAGE, np.uint8)
    for start, length in room.tolist():
        first = start + (phase - start) % SECTOR
        for at in steps(image, first, start + length, STEP):
            n = min(STEP, start + length - at)
            # a page behind: how many empty sectors follow the last one
            data = read_view(image, at, buffer[: n + PAGE])
            tail = np.zeros(len(data) // SECTOR, np.uint16)
            sector_tails(data[: len(tail) * SECTOR], tail)
            count = min(n // SECTOR, len(tail))
            part = np.flatnonzero((tail[:count] > 0) & (tail[:count] < SECTOR))
            full = np.append(np.flatnonzero(tail), len(tail) + PAGE_SECTORS)
            follows = full[np.searchsorted(full, part + 1)] - part - 1
            sectors.append(part + (at - phase) // SECTOR)
            tails.append(tail[part])
            empties.append(np.minimum(follows, PAGE_SECTORS).astype(np.uint8))
            blocks += int(np.count_nonzero(tail[: count // PAGE_SECTORS * PAGE_SECTORS]
                                           .reshape(-1, PAGE_SECTORS).any(axis=1)))
        seen += length
        if seen > MAX_LOOK:
            break
    if not sectors:
        return SectorEnds(np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.uint8), phase, blocks)
    return SectorEnds(np.concatenate(sectors), np.concatenate(tails), np.concatenate(empties), phase, blocks)


class Listed(Protocol):
    """What is asked of a volume here."""

    @property
    def block_size(self) -> int: ...

    def live(self) -> Iterable[HostFile]:
        """Every regular file that is not deleted."""
        ...


@dataclass(frozen=True, slots=True)
class Live:
    """The live files of a volume, read once for all who ask; gone: the deleted ones that it still knows."""

    block_size: int
    listed: list[HostFile]
    gone: list[HostFile] = field(default_factory=list[HostFile])

    @classmethod
    def of(cls, volume: HostVolume, units: Reader | None = None) -> Live:
        """units: where more of its metadata lies, in no known order."""
        listed: list[HostFile] = []
        gone: list[HostFile] = []
        for file in asked(lambda: list(itertools.islice(volume.files(), MAX_FILES)), []):
            (gone if file.deleted else listed).append(file)
        if not listed:  # what is left of deleted ones may be what cannot be read
            listed = list(itertools.islice(volume.live(), MAX_FILES))
        if units is not None:
            begins = {int(file.runs[0, 1]) for file in listed if len(file.runs)}
            told = (kind.elsewhere(volume, units) for kind in hosts().values() if kind.elsewhere is not None)
            listed += [file for file in itertools.chain(*told) if len(file.runs) and int(file.runs[0, 1]) not in begins]
        return cls(volume.block_size, listed, gone)

    def live(self) -> Iterable[HostFile]:
        return self.listed


def file_ends(volumes: Iterable[Listed], guest_map: GuestMap, *, certain: bool = False) -> FileEnds:
    """The ends of the live files of a guest's volumes (opened on the guest disk: their offsets are guest offsets).

    certain: only of those whose place is recorded, not inferred.
    """
    ends: list[tuple[int, int]] = []  # guest offset of the end, and of the first byte behind the zeros
    begins: list[int] = []
    for volume in volumes:
        page = min(volume.block_size or PAGE, PAGE)
        for file in itertools.islice(volume.live(), MAX_FILES):
            end = _end(file, page) if file.certain or not certain else None
            if end is not None:
                ends.append(end)
            if file.size > 0 and len(file.runs) and file.runs[0, 0] == 0 and file.runs[0, 3] == RUN_DATA:
                begins.append(int(file.runs[0, 1]))
    g = np.array(ends, np.int64).reshape(-1, 2)
    last = to_file(guest_map, g[:, 0] - 1)
    behind = to_file(guest_map, g[:, 1] - 1)
    keep = (last >= 0) & (behind - last == g[:, 1] - g[:, 0])
    f, room = last[keep] + 1, g[keep, 1] - g[keep, 0]
    empty = (room - (-f) % SECTOR) // SECTOR
    order = np.argsort(f, kind="stable")
    first = np.sort(to_file(guest_map, np.array(begins, np.int64)))
    return FileEnds(f[order], np.clip(empty[order], 0, PAGE_SECTORS).astype(np.uint8), first[first >= 0])


def _end(file: HostFile, page: int) -> tuple[int, int] | None:
    """Guest offsets (end of the data, end of the zeros behind it), when the end lies amid a sector."""
    if file.size <= 0 or file.size % SECTOR == 0 or len(file.runs) == 0:
        return None
    i = int(np.searchsorted(file.runs[:, 0], file.size - 1, side="right")) - 1
    if i < 0:
        return None
    f, p, n, kind = file.runs[i].tolist()
    if kind != RUN_DATA or p < 0 or f + n < file.size:
        return None
    zeros = -(-file.size // page) * page  # some hosts' runs are cut at the size; blocks are given out whole
    return p + file.size - f, p + zeros - f


def open_volumes(disk: Reader, spans: Iterable[tuple[int, int]]) -> list[HostVolume]:
    """The file systems in the (guest_offset, length) spans of a guest disk."""
    out: list[HostVolume] = []
    for offset, length in spans:
        for kind in hosts().values():
            volume = kind.open(disk, offset, min(length, disk.size - offset))
            if volume is not None:
                out.append(volume)
                break
    return out


def to_file(guest_map: GuestMap, guest_offset: Int64s) -> Int64s:
    """The file offsets of guest bytes, -1 where the container does not hold them plain."""
    out = np.full(len(guest_offset), -1, np.int64)
    if len(guest_map) == 0:
        return out
    i = np.searchsorted(guest_map.guest_offset, guest_offset, side="right") - 1
    inside = guest_offset - guest_map.guest_offset[i]
    good = (i >= 0) & (guest_map.state[i] == DATA) & (guest_map.encoding[i] == PLAIN) & (inside < guest_map.length[i])
    out[good] = guest_map.file_offset[i[good]] + inside[good]
    return out


def agree(image: Reader, image_offset: Int64s, ends: FileEnds) -> tuple[int, int]:
    """How many ends lie on the image where a map puts them, and how many cannot: there is data behind the end.

    image_offset int64[n]: of each end, -1 unknown. Files that end in zeros are neither.
    """
    right = wrong = 0
    for p, f, empty in zip(image_offset.tolist(), ends.file_offset.tolist(), ends.empty.tolist(), strict=True):
        behind = -f % SECTOR + empty * SECTOR
        data = image.read(p - 1, behind + 1) if p > 0 else b""
        if len(data) <= behind:
            continue
        if any(data[1:]):
            wrong += 1
        elif data[0]:
            right += 1
    return right, wrong


def mapped(file_map: FileMap, file_offset: Int64s) -> Int64s:
    """The image offsets of bytes of a file, -1 where they are missing. Behind a byte: of the one before, plus one."""
    before = file_offset - 1
    i = np.clip(np.searchsorted(file_map.file_offset, before, side="right") - 1, 0, None)
    p = file_map.image_offset[i]
    return np.where(p >= 0, p + before - file_map.file_offset[i] + 1, -1)
