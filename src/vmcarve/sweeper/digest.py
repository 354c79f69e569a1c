"""Hashes of the whole image, computed from the bytes that the sweep reads: never a second read.

A hash is of all bytes in order, so the sweep runs on one thread then and hands its buffers on; each algorithm has a
thread of its own. Holes of a sparse image are hashed as the zeros that they read as, and so are bad sectors.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import Any

from ..errors import UsageError

ALGORITHMS = ("sha256", "blake2b", "blake3")
ZEROS = memoryview(bytes(1 << 20))


def new_hash(name: str) -> Any:
    """An empty hash. Raises UsageError for a name that is none, or whose package is not installed."""
    if name not in ALGORITHMS:
        raise UsageError(f"no hash is called {name!r} (there are {', '.join(ALGORITHMS)})")
    if name != "blake3":
        return hashlib.new(name, usedforsecurity=False)
    try:
        import blake3  # type: ignore[import-not-found]
    except ImportError as e:
        raise UsageError("blake3 is not installed (python -m pip install blake3)") from e
    return blake3.blake3()


def check_hashes(names: tuple[str, ...]) -> None:
    """Raises UsageError when one of them cannot be computed here."""
    for name in names:
        new_hash(name)


class ImageDigest:
    """Takes an image's bytes in order, in buffers that it lends and gets back. Use as a context; then `finish`."""

    def __init__(self, names: tuple[str, ...], buffers: list[memoryview]) -> None:
        self._hashes = {name: new_hash(name) for name in names}
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        for buffer in buffers:
            self._free.put(buffer)
        self._work: dict[str, queue.SimpleQueue[_Piece | None]] = {name: queue.SimpleQueue() for name in names}
        self._threads = [threading.Thread(target=self._run, args=(name,), name=f"hash-{name}", daemon=True)
                         for name in names]
        self._at = 0
        self._failed: list[BaseException] = []
        for t in self._threads:
            t.start()

    def __enter__(self) -> ImageDigest:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for work in self._work.values():
            work.put(None)
        for t in self._threads:
            t.join()

    def buffer(self) -> memoryview:
        """A buffer that nobody reads; waits for one. It is given back by `take`."""
        return self._free.get()

    def take(self, offset: int, buffer: memoryview, length: int) -> None:
        """The image's bytes from `offset` on stand in buffer[:length]; what was left out before them is zeros."""
        zeros, skip = max(0, offset - self._at), max(0, self._at - offset)
        piece = _Piece(self, buffer, zeros, buffer[skip:length], len(self._work))
        self._at = max(self._at, offset + length)
        for work in self._work.values():
            work.put(piece)

    def give_back(self, buffer: memoryview) -> None:
        self._free.put(buffer)

    def finish(self, size: int) -> dict[str, str]:
        """The hashes of all `size` bytes, as hexadecimal text by name."""
        self.take(size, self.buffer(), 0)
        self._end()
        if self._failed:
            raise self._failed[0]
        return {name: h.hexdigest() for name, h in self._hashes.items()}

    def _run(self, name: str) -> None:
        h = self._hashes[name]
        while (piece := self._work[name].get()) is not None:
            try:
                for at in range(0, piece.zeros, len(ZEROS)):
                    h.update(ZEROS[: piece.zeros - at])
                h.update(piece.data)
            except Exception as e:  # told by `finish`: the buffers must go round meanwhile
                self._failed.append(e)
            finally:
                piece.done()


class _Piece:
    """Zeros, then data; its buffer goes back when every algorithm is done with it."""

    def __init__(self, owner: ImageDigest, buffer: memoryview, zeros: int, data: memoryview, users: int) -> None:
        self._owner, self._buffer, self.zeros, self.data, self._users = owner, buffer, zeros, data, users
        self._lock = threading.Lock()

    def done(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self._owner.give_back(self._buffer)
