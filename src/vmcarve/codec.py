"""Decoding of stored clusters and grains: bounded output, no dictionary, trailing bytes allowed but counted."""

from __future__ import annotations

import sys
import zlib

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
    whole = max(length, MAX_CLUSTER)
    try:
        if encoding in (DEFLATE, ZLIB):
            stream = zlib.decompressobj(-15 if encoding == DEFLATE else 15)
            out = stream.decompress(data, whole)
            if len(out) >= length and not stream.eof:
                # the end-of-block code or the Adler-32 may still be unread
                out += stream.decompress(stream.unconsumed_tail, 1)
            ended, used = stream.eof, len(data) - len(stream.unused_data)
        elif encoding == ZSTD:
            frame = zstd.ZstdDecompressor()
            out = frame.decompress(data, whole)
            if len(out) >= length and not frame.eof:
                out += frame.decompress(b"", 1)
            ended, used = frame.eof, len(data) - len(frame.unused_data)
        else:
            raise ValueError(f"encoding {encoding} is not known")
    except (zlib.error, zstd.ZstdError, EOFError):
        return None, 0
    fits = len(out) == length or (len(out) > length and len(out).bit_count() == 1)
    return (out[:length], used) if ended and fits else (None, 0)
