"""Decoding of stored clusters and grains: bounded output, no dictionary, trailing bytes allowed but counted."""

from __future__ import annotations

import sys
import zlib

import numpy as np
import numpy.typing as npt

from .model import DEFLATE, PLAIN, ZLIB, ZSTD

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


MAX_CLUSTER = 2 << 20  # the largest compressed unit of any format: QCOW2


def decode(data: bytes, encoding: int, length: int) -> bytes | None:
    """The `length` bytes that `data` decodes to, or None when it does not decode to exactly that many."""
    out, _ = decode_counted(data, encoding, length)
    return out


def decode_counted(data: bytes, encoding: int, length: int) -> tuple[bytes | None, int]:
    """As `decode`, with the number of input bytes that the stream took (0 when it does not decode).

    The last cluster of a disk whose size is no multiple of it is stored whole: a stream that goes on to a power of two
    (a cluster, at most 2 MiB) is cut at `length`.
    """
    if encoding == PLAIN:
        return (data[:length], length) if len(data) >= length else (None, 0)
    out, used = stream_at(data, encoding, max(length, MAX_CLUSTER))
    fits = len(out) == length or (len(out) > length and len(out).bit_count() == 1)
    return (out[:length], used) if used and fits else (None, 0)


def stream_at(data: bytes, encoding: int, most: int) -> tuple[bytes, int]:
    """What the stream that `data` begins with decodes to, at most `most` bytes, and how many bytes of it that took: 0
    where it does not end.
    """
    try:
        if encoding in (DEFLATE, ZLIB):
            stream = zlib.decompressobj(-15 if encoding == DEFLATE else 15)
            out = stream.decompress(data, most)
            if len(out) and not stream.eof:
                # the end-of-block code or the Adler-32 may still be unread
                out += stream.decompress(stream.unconsumed_tail, 1)
            ended, used = stream.eof, len(data) - len(stream.unused_data)
        elif encoding == ZSTD:
            frame = zstd.ZstdDecompressor()
            out = frame.decompress(data, most)
            if len(out) and not frame.eof:
                out += frame.decompress(b"", 1)
            ended, used = frame.eof, len(data) - len(frame.unused_data)
        else:
            raise ValueError(f"encoding {encoding} is not known")
    except (zlib.error, zstd.ZstdError, EOFError):
        return b"", 0
    return (out, used) if ended else (b"", 0)


def likely(encoding: int, head: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which rows of `head` uint8[n, 16] may be the first bytes of a stream; True where that cannot be told.

    Source: RFC 1950 section 2.2, RFC 1951 section 3.2, RFC 8878 section 3.1.1.
    """
    if encoding == ZLIB:
        return (head[:, 0] & 0x0F == 8) & (head[:, 0] >> 4 <= 7) & (
            (head[:, 0].astype(np.int64) * 256 + head[:, 1]) % 31 == 0)
    if encoding == ZSTD:
        return np.asarray((head[:, :4] == np.frombuffer(b"\x28\xb5\x2f\xfd", np.uint8)).all(axis=1))
    if encoding != DEFLATE:
        return np.ones(len(head), bool)
    kind = head[:, 0] >> 1 & 3
    size, twin = (head[:, at : at + 2].astype(np.int64) @ np.array([1, 256]) for at in (1, 3))
    stored = (kind == 0) & (head[:, 0] >> 3 == 0) & (size ^ twin == 0xFFFF)
    out = stored | (kind == 1)
    # dynamic codes: at most 286 literals and 30 distances, and lengths of a complete prefix code
    row = np.flatnonzero(kind == 2)
    low = np.ascontiguousarray(head[row, :16]).view("<u8")
    first, second = low[:, 0], low[:, 1]
    literals, distances = first >> np.uint64(3) & np.uint64(31), first >> np.uint64(8) & np.uint64(31)
    count = (first >> np.uint64(13) & np.uint64(15)) + np.uint64(4)
    space = np.zeros(len(row), np.int64)
    for i in range(19):
        at = 17 + 3 * i
        bits = first >> np.uint64(at) if at + 3 <= 64 else second >> np.uint64(at - 64) if at >= 64 else (
            first >> np.uint64(at) | second << np.uint64(64 - at))
        n = np.where(count > i, bits & np.uint64(7), 0).astype(np.int64)
        space += np.where(n > 0, 128 >> n, 0)
    out[row] = (literals <= 29) & (distances <= 29) & (space == 128)
    return np.asarray(out)
