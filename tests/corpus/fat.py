"""Cluster chains out of a FAT32 or exFAT volume, read from the image itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .tools import CorpusError
from .truth import Extent

_END = 0x0FFFFFF8
_EXFAT_END = 0xFFFFFFF7
_LONG_NAME, _FREE = 0x0F, 0xE5
Area = tuple[int, int]  # image_offset, length in bytes


@dataclass(frozen=True)
class Entry:
    """A directory entry: where its chain begins, and whether the clusters simply follow each other."""

    name: str
    folder: bool
    cluster: int
    size: int
    contiguous: bool


class Fat:
    """A FAT32 or exFAT volume at byte `start` of an image."""

    def __init__(self, image: Path, start: int) -> None:
        self.image, self.start = image, start
        boot = self._read(0, 512)
        self.exfat = boot[3:11] == b"EXFAT   "
        if self.exfat:
            sector = 1 << boot[108]
            self.cluster = sector << boot[109]
            fat, fat_length, heap, self.clusters, self.root = struct.unpack_from("<IIIII", boot, 80)
            self.fat_at, self.fat_size, self.heap, self.copies = (
                fat * sector,
                fat_length * sector,
                heap * sector,
                boot[110],
            )
            self.reserved = 24 * sector
        elif boot[82:87] == b"FAT32":
            sector, per_cluster, reserved, self.copies = struct.unpack_from("<HBHB", boot, 11)
            self.cluster = sector * per_cluster
            self.fat_size = struct.unpack_from("<I", boot, 36)[0] * sector
            self.root = struct.unpack_from("<I", boot, 44)[0]
            self.reserved = self.fat_at = reserved * sector
            self.heap = self.fat_at + self.copies * self.fat_size
            self.clusters = (struct.unpack_from("<I", boot, 32)[0] * sector - self.heap) // self.cluster
        else:
            raise CorpusError(f"{image.name}: no FAT32 or exFAT boot sector at {start}")
        table = self._read(self.fat_at, min(self.fat_size, 4 * (self.clusters + 2)))
        self.table = struct.unpack(f"<{len(table) // 4}I", table)

    def _read(self, offset: int, length: int) -> bytes:
        with self.image.open("rb") as file:
            file.seek(self.start + offset)
            return file.read(length)

    def chain(self, first: int, size: int, contiguous: bool) -> list[int]:
        """Cluster numbers of a file or (size 0) a directory."""
        if contiguous:
            return list(range(first, first + -(-size // self.cluster)))
        end, chain, cluster = _EXFAT_END if self.exfat else _END, [], first
        while 2 <= cluster < min(end, len(self.table)):
            chain.append(cluster)
            cluster = self.table[cluster] & (0xFFFFFFFF if self.exfat else 0x0FFFFFFF)
            if len(chain) > self.clusters:
                raise CorpusError(f"{self.image.name}: FAT chain of cluster {first} has no end")
        return chain

    def _content(self, entry: Entry) -> bytes:
        clusters = self.chain(entry.cluster, entry.size, entry.contiguous)
        return b"".join(self._read(self.heap + (cluster - 2) * self.cluster, self.cluster) for cluster in clusters)

    def entries(self, folder: Entry) -> Iterator[Entry]:
        """What lies in a directory."""
        return self._exfat_entries(folder) if self.exfat else self._fat_entries(folder)

    def _fat_entries(self, folder: Entry) -> Iterator[Entry]:
        block, long_name = self._content(folder), ""
        for at in range(0, len(block), 32):
            row = block[at : at + 32]
            if row[0] == 0:
                return
            if row[0] == _FREE or row[0] == ord("."):
                long_name = ""
            elif row[11] == _LONG_NAME:
                part = (row[1:11] + row[14:26] + row[28:32]).decode("utf-16-le", "replace")
                long_name = part.split("\0")[0] + ("" if row[0] & 0x40 else long_name)
            elif not row[11] & 8:
                short = row[:8].decode("latin-1").rstrip() + "." + row[8:11].decode("latin-1").rstrip()
                high, low, size = struct.unpack_from("<H4xHI", row, 20)
                yield Entry(long_name or short.rstrip("."), bool(row[11] & 16), high << 16 | low, size, False)
                long_name = ""

    def _exfat_entries(self, folder: Entry) -> Iterator[Entry]:
        block, at = self._content(folder), 0
        while at + 96 <= len(block) and block[at]:
            count = block[at + 1] if block[at] == 0x85 else 0
            if block[at] == 0x85:
                stream = block[at + 32 : at + 64]
                first, size = struct.unpack_from("<IQ", stream, 20)
                names = b"".join(block[at + 32 * n + 2 : at + 32 * n + 32] for n in range(2, count + 1))
                name = names[: 2 * stream[3]].decode("utf-16-le", "replace")
                yield Entry(name, bool(block[at + 4] & 16), first, size, bool(stream[1] & 2))
            at += 32 * (count + 1)

    def find(self, path: str) -> Entry:
        """The entry of a path below the root, its parts separated by '/'."""
        entry = Entry("", True, self.root, 0, False)
        for part in path.split("/"):
            inside = [one for one in self.entries(entry) if one.name.casefold() == part.casefold()]
            if not inside:
                raise CorpusError(f"{self.image.name}: no {path} on the volume")
            entry = inside[0]
        return entry

    def extents(self, path: str) -> list[Extent]:
        """Extents of a file in bytes of the image, neighbouring clusters joined."""
        entry = self.find(path)
        found: list[Extent] = []
        for number, cluster in enumerate(self.chain(entry.cluster, entry.size, entry.contiguous)):
            at, file_offset = self.start + self.heap + (cluster - 2) * self.cluster, number * self.cluster
            length = min(self.cluster, entry.size - file_offset)
            if found and found[-1][1] + found[-1][2] == at:
                found[-1] = (found[-1][0], found[-1][1], found[-1][2] + length, "")
            else:
                found.append((file_offset, at, length, ""))
        return found

    def own_areas(self) -> list[Area]:
        """Boot sectors, all FATs, exFAT's bitmap, and all directories."""
        areas = [(self.start, self.reserved), (self.start + self.fat_at, self.copies * self.fat_size)]
        folders = [Entry("", True, self.root, 0, False)]
        while folders:
            folder = folders.pop()
            folders += [entry for entry in self.entries(folder) if entry.folder]
            areas += self._areas_of(folder)
        if self.exfat:
            root = self._content(Entry("", True, self.root, 0, False))
            for at in range(0, len(root), 32):
                if root[at] == 0x81:
                    first, size = struct.unpack_from("<IQ", root, at + 20)
                    areas += self._areas_of(Entry("", False, first, size, True))
        return areas

    def _areas_of(self, entry: Entry) -> list[Area]:
        clusters = self.chain(entry.cluster, entry.size, entry.contiguous)
        return [(self.start + self.heap + (cluster - 2) * self.cluster, self.cluster) for cluster in clusters]
