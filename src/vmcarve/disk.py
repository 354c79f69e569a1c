"""VirtualDisk: a read-only, seekable view of a guest disk through its map. Nothing is copied before it is asked for."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from .codec import decode
from .model import DATA, EXTERNAL, LOST, PLAIN, UNALLOCATED, GuestMap, Reader

CACHED_CLUSTERS = 32


class VirtualDisk:
    """A Reader in guest offsets: `container` is read in file offsets through `guest_map`; `parent` answers for
    unallocated ranges (zeros without one).

    externals: for EXTERNAL runs, (guest_offset, length, Reader) per member file, guest_offset rising. Lost and
    undecodable ranges read as zeros and count as missing. sound bool[rows of the map]: which decode, where that is
    known (`decoded.sound`); else who asks what is missing has it decoded. It closes nothing that it was given. Threads
    may read at the same time.
    """

    def __init__(self, container: Reader, guest_map: GuestMap, parent: Reader | None = None,
                 externals: list[tuple[int, int, Reader]] | None = None, *,
                 sound: npt.NDArray[np.bool_] | None = None) -> None:
        self._container = container
        self.map = guest_map
        self.size = int(guest_map.guest_offset[-1] + guest_map.length[-1]) if len(guest_map) else 0
        self._row = 0, 0, 0  # the last plain row that was read: begin, end, and how far behind it the container has it
        self._parent = parent
        self._externals = externals or []
        self._sound = sound
        self._cache: OrderedDict[int, bytes | None] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of the guest disk, fewer at its end."""
        if offset < 0 or length <= 0 or offset >= self.size:
            return b""
        length = min(length, self.size - offset)
        low, high, shift = self._row
        if low <= offset and offset + length <= high:  # parsers read in thousands of parts that lie in one run
            return _filled(self._container.read(offset + shift, length), length)
        return b"".join([self._part(i, at, n) for i, at, n in self._runs(offset, length)])

    def missing(self, offset: int, length: int) -> bool:
        if offset < 0 or offset + length > self.size:
            return True
        m = self.map
        for i, at, n in self._runs(offset, length):
            state, inside = int(m.state[i]), at - int(m.guest_offset[i])
            if state == LOST:
                return True
            if state == DATA:
                if m.encoding[i] != PLAIN:
                    if not self._sound[i] if self._sound is not None else self._cluster(i) is None:
                        return True
                elif self._container.missing(int(m.file_offset[i]) + inside, n):
                    return True
            elif state == UNALLOCATED and self._parent is not None and self._parent.missing(at, n):
                return True
            elif state == EXTERNAL and not any(g <= at and at + n <= g + k and not r.missing(at - g, n)
                                               for g, k, r in self._externals):
                return True
        return False

    def stream(self) -> DiskStream:
        """The disk as a seekable binary file, for parsers that want one."""
        return DiskStream(self)

    def _runs(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """(row, guest_offset, length) of the parts of the rows inside the range."""
        m = self.map
        first = int(m.guest_offset.searchsorted(offset, "right")) - 1
        last = int(m.guest_offset.searchsorted(offset + length, "left"))
        out: list[tuple[int, int, int]] = []
        for i, (g, n) in enumerate(zip(m.guest_offset[first:last].tolist(), m.length[first:last].tolist(), strict=True),
                                   first):
            low, high = max(offset, g), min(offset + length, g + n)
            out.append((i, low, high - low))
        return out

    def _part(self, i: int, at: int, n: int) -> bytes:
        m = self.map
        state, inside = int(m.state[i]), at - int(m.guest_offset[i])
        data = b""
        if state == DATA:
            if m.encoding[i] == PLAIN:
                g, f = int(m.guest_offset[i]), int(m.file_offset[i])
                self._row = g, g + int(m.length[i]), f - g
                data = self._container.read(f + inside, n)
            else:
                data = (self._cluster(i) or b"")[inside : inside + n]
        elif state == UNALLOCATED and self._parent is not None:
            data = self._parent.read(at, n)
        elif state == EXTERNAL:
            for g, k, reader in self._externals:
                if g < at + n and at < g + k:
                    low = max(at, g)
                    data = data.ljust(low - at, b"\0") + reader.read(low - g, min(at + n, g + k) - low)
        return _filled(data, n)

    def _cluster(self, i: int) -> bytes | None:
        with self._lock:
            if i in self._cache:
                self._cache.move_to_end(i)
                return self._cache[i]
        m = self.map
        stored = self._container.read(int(m.file_offset[i]), int(m.stored[i]))
        data = decode(stored, int(m.encoding[i]), int(m.length[i]))
        with self._lock:
            self._cache[i] = data
            if len(self._cache) > CACHED_CLUSTERS:
                self._cache.popitem(last=False)
        return data


def _filled(data: bytes, length: int) -> bytes:
    return data if len(data) == length else data[:length].ljust(length, b"\0")


class DiskStream(io.RawIOBase):
    """A VirtualDisk as a read-only, seekable stream. Closing it closes nothing else."""

    def __init__(self, disk: VirtualDisk) -> None:
        super().__init__()
        self._disk = disk
        self._position = 0

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._disk.read(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._disk.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}: before the disk's first byte")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position
