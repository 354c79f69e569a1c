"""Writing one recovered disk: sparse, whole or not at all, hashed as it goes.

A hole stays a hole, and 64 KiB of zeros become one: the file takes the space that its content takes.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..disk import VirtualDisk
from ..errors import VmcarveError
from ..model import MISSING, ZERO, Patch
from ..source import ImageSource
from ..verify.disk import Row

STEP = 1 << 20  # bytes read and written at once
BLOCK = 64 << 10  # zeros of this size and alignment are left out of the file
ZEROS = memoryview(bytes(STEP))
MAX_HASHED = 1 << 40  # ours: a sparse file may claim any size, and every zero of it would be hashed


@dataclass(frozen=True, slots=True)
class Output:
    """A written file: path, its size in bytes, and SHA-256 (None when not asked for)."""

    path: Path
    size: int
    sha256: str | None


def needed(rows: Iterable[Row]) -> int:
    """Bytes that a disk takes at most: the ranges that hold content."""
    return sum(n for _, n, _, _, _, _, grade, _ in rows if grade not in (ZERO, MISSING))


def write_container(image: ImageSource, path: Path, size: int, rows: list[Row], patches: list[Patch],
                    *, digest: bool = True) -> Output:
    """The container file from its rows; what no image byte gives comes from the patches, else it is a hole."""
    if digest or not hasattr(os, "copy_file_range"):
        return _write(path, size, _container_pieces(image, rows, patches), digest)
    with _whole(path, size) as fd:
        for f, n, p, *_ in rows:
            if p is not None:
                _copy(image, fd, p, f, n)
        for patch in patches:
            os.pwrite(fd, patch.data, patch.file_offset)
    return Output(path, size, None)


def write_raw(disk: VirtualDisk, path: Path, rows: list[Row], *, digest: bool = True) -> Output:
    """The guest disk as a sparse raw file; rows that hold nothing are not even read."""
    def pieces() -> Iterator[tuple[int, bytes]]:
        for offset, n, *_, grade, _ in rows:
            if grade in (ZERO, MISSING):
                continue
            for at in range(offset, offset + n, STEP):
                yield at, disk.read(at, min(STEP, offset + n - at))

    return _write(path, disk.size, pieces(), digest)


def _container_pieces(image: ImageSource, rows: list[Row],
                      patches: list[Patch]) -> Iterator[tuple[int, bytes | memoryview]]:
    buffer = memoryview(bytearray(STEP))
    for f, n, p, *_ in rows:
        if p is None:
            for patch in patches:
                at = f - patch.file_offset
                if 0 <= at and at + n <= len(patch.data):
                    yield f, patch.data[at : at + n]
                    break
            continue
        for done in range(0, n, STEP):
            step = min(STEP, n - done)
            got = image.readinto(p + done, buffer[:step])
            yield f + done, buffer[:got]


def _copy(image: ImageSource, fd: int, source_at: int, target_at: int, length: int) -> None:
    """Copies inside the kernel (a reflink where the file system can); by hand where it cannot."""
    done = 0
    while done < length:
        try:
            got = os.copy_file_range(image.fd, fd, length - done, source_at + done, target_at + done)
        except OSError as e:
            if e.errno == errno.ENOSPC:
                raise
            got = 0
        if got <= 0:  # another file system, a device, a bad sector
            data = image.read(source_at + done, min(STEP, length - done))
            if not data:
                return
            got = os.pwrite(fd, data, target_at + done)
        done += got


class _whole:  # noqa: N801 - used as a function
    """A file that appears under its name only when the block ends well."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._size = size
        self._fd = -1

    def __enter__(self) -> int:
        self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.ftruncate(self._fd, self._size)
        except OSError as e:
            os.close(self._fd)
            self._part.unlink(missing_ok=True)
            raise VmcarveError(f"cannot hold {self._size} bytes: {e.strerror}", source=str(self._path)) from e
        return self._fd

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        os.close(self._fd)
        if kind is None:
            os.replace(self._part, self._path)
            return
        self._part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise VmcarveError(f"cannot be written: {error.strerror}", source=str(self._path)) from error


def _write(path: Path, size: int, pieces: Iterable[tuple[int, bytes | memoryview]], digest: bool) -> Output:
    """Writes (offset, bytes) rising and disjoint; blocks of zeros and gaps stay holes."""
    sha = hashlib.sha256() if digest and size <= MAX_HASHED else None
    hashed = 0
    with _whole(path, size) as fd:
        for offset, data in pieces:
            if sha is not None:
                _zeros(sha, offset - hashed)
                sha.update(data)
                hashed = offset + len(data)
            view = memoryview(data)
            at = 0
            while at < len(view):
                n = min(len(view) - at, BLOCK - (offset + at) % BLOCK)
                if view[at : at + n] != ZEROS[:n]:
                    end = at + n  # one call for neighbouring blocks that hold something
                    while end < len(view):
                        k = min(BLOCK, len(view) - end)
                        if view[end : end + k] == ZEROS[:k]:
                            break
                        end += k
                    _pwrite(fd, view[at:end], offset + at)
                    at = end
                else:
                    at += n
        if sha is not None:
            _zeros(sha, size - hashed)
    return Output(path, size, None if sha is None else sha.hexdigest())


def _pwrite(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def _zeros(sha: hashlib._Hash, count: int) -> None:
    while count > 0:
        sha.update(ZEROS[: min(count, STEP)])
        count -= STEP


def rows_of(extents: list[dict[str, object]]) -> list[Row]:
    """Rows of extents.arrow in the shape that the writers take."""
    names = ("offset", "length", "image_offset", "container_offset", "encoding", "stored", "grade", "rule")
    return [tuple(e[n] for n in names) for e in extents]  # type: ignore[misc]
