"""Writes into a container through qemu-nbd, in the order that we choose: a guest at work, without a guest."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from .sparse import nonzero_runs, pieces
from .tools import CorpusError, need

SIZES = (4096, 16384, 65536, 65536, 262144)  # bytes of one guest write
START_SECONDS = 10.0
FLUSH_EVERY = 64  # writes between two flushes

_OPTION_MAGIC, _REQUEST, _REPLY = 0x49484156454F5054, 0x25609513, 0x67446698
_WRITE, _DISCONNECT, _FLUSH = 1, 2, 3

Write = tuple[int, bytes]  # guest_offset, content


def random_writes(raw: Path, rng: random.Random) -> list[tuple[int, int]]:
    """(guest_offset, length) of writes that bring all non-zero data of `raw`, in random order."""
    writes: list[tuple[int, int]] = []
    for at, block in pieces(raw):
        for start, end in nonzero_runs(block):
            while start < end:
                size = min(rng.choice(SIZES), end - start)
                writes.append((at + start, size))
                start += size
    rng.shuffle(writes)
    return writes


def write_all(container: Path, driver: str, raw: Path, writes: Iterable[tuple[int, int]]) -> None:
    """Carry out `writes`, their content taken from `raw`, on an existing container."""
    need("qemu-nbd")
    with tempfile.TemporaryDirectory(prefix="nbd") as folder, raw.open("rb") as source:
        path = Path(folder, "socket")
        command = [
            "qemu-nbd",
            "--format",
            driver,
            "--cache",
            "unsafe",
            "--discard",
            "unmap",
            "--socket",
            str(path),
            str(container),
        ]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            with _connect(path, server) as link:
                _handshake(link)
                for number, (offset, length) in enumerate(writes, 1):
                    source.seek(offset)
                    _request(link, _WRITE, offset, length, source.read(length).ljust(length, b"\0"))
                    if number % FLUSH_EVERY == 0:
                        _request(link, _FLUSH, 0, 0)
                _request(link, _FLUSH, 0, 0)
                link.sendall(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
            server.wait(timeout=60)
        finally:
            if server.poll() is None:
                server.terminate()
                server.wait()
            if server.stderr is not None:
                server.stderr.close()


def _connect(path: Path, server: subprocess.Popen[str]) -> socket.socket:
    """The connected socket of a qemu-nbd that has just been started."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(path))
            return link
        except OSError:
            link.close()
            time.sleep(0.01)
    said = server.stderr.read().strip() if server.poll() is not None and server.stderr else "no socket"
    raise CorpusError(f"qemu-nbd: {said}")


def _handshake(link: socket.socket) -> None:
    """Newstyle negotiation of the default export, without the old 124 bytes of padding."""
    if _exactly(link, 16) != b"NBDMAGICIHAVEOPT":
        raise CorpusError("qemu-nbd: not the newstyle protocol")
    flags = struct.unpack(">H", _exactly(link, 2))[0]
    link.sendall(struct.pack(">I", flags & 3))
    link.sendall(struct.pack(">QII", _OPTION_MAGIC, 1, 0))
    _exactly(link, 10 if flags & 2 else 134)


def _request(link: socket.socket, kind: int, offset: int, length: int, content: bytes = b"") -> None:
    """One request and its reply."""
    link.sendall(struct.pack(">IHHQQI", _REQUEST, 0, kind, 0, offset, length) + content)
    magic, error, _ = struct.unpack(">IIQ", _exactly(link, 16))
    if magic != _REPLY or error:
        raise CorpusError(f"qemu-nbd: write at {offset}: error {error}")


def _exactly(link: socket.socket, count: int) -> bytes:
    block = b""
    while len(block) < count:
        part = link.recv(count - len(block))
        if not part:
            raise CorpusError("qemu-nbd: connection lost")
        block += part
    return block
