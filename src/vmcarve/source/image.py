"""Raw images and block devices, read with pread; a bad sector becomes a range, not a failure."""

from __future__ import annotations

import bisect
import errno
import os
import stat
import threading
from pathlib import Path

from ..errors import Unreadable, UsageError
from ..model import SECTOR

OUR_CACHE_SHARE = 0.5  # of the memory: an image up to here may stay in the page cache
BAD_MEDIUM = {errno.EIO, errno.EREMOTEIO, errno.ENODATA, errno.EILSEQ}


class ImageSource:
    """One evidence image, opened read-only. Offsets are image offsets in bytes.

    `unreadable` holds (offset, length) of ranges that the medium refused, rising and merged; they read as zeros.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = str(path)
        try:
            mode = os.stat(self.path).st_mode
            if stat.S_ISDIR(mode):
                raise UsageError("is a directory, not an image", source=self.name)
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise UsageError("is neither a regular file nor a block device", source=self.name)
            self.fd = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
            self._size = os.lseek(self.fd, 0, os.SEEK_END)
        except OSError as e:
            raise Unreadable(f"cannot be opened: {e.strerror}", source=self.name) from e
        self._bad: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._size

    @property
    def unreadable(self) -> list[tuple[int, int]]:
        with self._lock:
            return list(self._bad)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> ImageSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def plain_fd(self) -> int:
        """The file descriptor whose pread gives the image's bytes as they are, -1 where only `readinto` can."""
        return self.fd

    def read_in_order(self) -> None:
        """Tells the system that the image is read from front to back: it reads further ahead."""
        self._advise(0, 0, "POSIX_FADV_SEQUENTIAL")

    def done_with(self, offset: int, length: int) -> None:
        """Bytes that the sweep has read. Where the page cache could not hold the image, it need not keep them: what
        others have there, and tables that are read again, would be pushed out."""
        if self._size > OUR_CACHE_SHARE * _memory():
            self._advise(offset, length, "POSIX_FADV_DONTNEED")

    def _advise(self, offset: int, length: int, name: str) -> None:
        if self.plain_fd >= 0 and hasattr(os, "posix_fadvise"):
            try:
                os.posix_fadvise(self.fd, offset, length, getattr(os, name))
            except OSError:  # advice that is not taken changes nothing
                pass

    def data_from(self, offset: int) -> int:
        """The first offset from `offset` on that may hold data: holes of a sparse file are passed over."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError as e:
            return self._size if e.errno == errno.ENXIO else offset
        except AttributeError:  # not known on this system
            return offset

    def readinto(self, offset: int, buffer: memoryview) -> int:
        """Fills `buffer` from image_offset `offset`; returns the bytes filled (short only at the end)."""
        want = max(0, min(len(buffer), self._size - offset))
        done = 0
        while done < want:
            try:
                got = os.preadv(self.fd, [buffer[done:want]], offset + done)
            except OSError as e:
                if e.errno not in BAD_MEDIUM:
                    raise Unreadable(f"read failed: {e.strerror}", source=self.name, offset=offset + done) from e
                got = self._around(offset + done, buffer[done:want])
            if got == 0:  # the file shrank while we read it: what is gone is unreadable
                self._note(offset + done, want - done)
                buffer[done:want] = bytes(want - done)
                break
            done += got
        return want

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length <= 0 or offset >= self._size:
            return b""
        length = min(length, self._size - offset)
        if self.plain_fd >= 0:
            try:
                data = os.pread(self.fd, length, offset)  # into the object that is returned: nothing is copied
            except OSError:  # told, or read around, below
                data = b""
            if len(data) == length:
                return data
        buffer = bytearray(length)
        self.readinto(offset, memoryview(buffer))
        return bytes(buffer)

    def missing(self, offset: int, length: int) -> bool:
        if offset < 0 or offset + length > self._size:
            return True
        with self._lock:
            i = bisect.bisect_right(self._bad, (offset, 1 << 63)) - 1
            if i >= 0 and self._bad[i][0] + self._bad[i][1] > offset:
                return True
            return i + 1 < len(self._bad) and self._bad[i + 1][0] < offset + length

    def _around(self, offset: int, buffer: memoryview) -> int:
        """Halves a failing range down to the sector; a sector that fails is noted and zeroed."""
        half = len(buffer) // 2 // SECTOR * SECTOR
        if half == 0:
            n = min(len(buffer), SECTOR - offset % SECTOR)
            try:
                got = os.preadv(self.fd, [buffer[:n]], offset)
            except OSError:
                got = 0
            if got <= 0:
                self._note(offset, n)
                buffer[:n] = bytes(n)
                got = n
            return got
        try:
            return os.preadv(self.fd, [buffer[:half]], offset)
        except OSError:
            return self._around(offset, buffer[:half])

    def _note(self, offset: int, length: int) -> None:
        with self._lock:
            ranges = sorted([*self._bad, (offset, length)])
            merged: list[tuple[int, int]] = []
            for at, n in ranges:
                if merged and at <= merged[-1][0] + merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(merged[-1][0] + merged[-1][1], at + n) - merged[-1][0])
                else:
                    merged.append((at, n))
            self._bad = merged


def _memory() -> int:
    """Bytes of the machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 34


def open_image(path: str | os.PathLike[str]) -> ImageSource:
    """Opens one image. A path that cannot be used is told in one line (UsageError, Unreadable)."""
    try:
        return ImageSource(path)
    except ValueError as e:  # an embedded NUL in the path
        raise UsageError(f"is not a path: {e}", source=str(path)) from e


__all__ = ["ImageSource", "open_image"]
