"""Decoding of stored clusters: exact lengths, whole last clusters cut, and nothing else believed."""

from __future__ import annotations

import zlib

import pytest

from vmcarve.codec import decode, decode_counted, zstd
from vmcarve.model import DEFLATE, PLAIN, ZLIB, ZSTD

DATA = bytes(range(256)) * 256  # 64 KiB


def raw_deflate(data: bytes) -> bytes:
    c = zlib.compressobj(wbits=-15)
    return c.compress(data) + c.flush()


PACKED = {DEFLATE: raw_deflate(DATA), ZLIB: zlib.compress(DATA), ZSTD: zstd.compress(DATA)}


@pytest.mark.parametrize("encoding", PACKED)
def test_a_whole_cluster_decodes_and_says_how_much_it_took(encoding: int) -> None:
    """Bytes behind the stream are allowed, and not counted."""
    packed = PACKED[encoding]
    assert decode_counted(packed + b"\0" * 300, encoding, len(DATA)) == (DATA, len(packed))


@pytest.mark.parametrize("encoding", PACKED)
@pytest.mark.parametrize("length", [18_944, 40_000])
def test_the_last_cluster_is_cut_at_the_disk_end(encoding: int, length: int) -> None:
    """A cluster that is stored whole though the disk ends inside it gives the bytes that the disk has."""
    assert decode(PACKED[encoding], encoding, length) == DATA[:length]


@pytest.mark.parametrize("encoding", PACKED)
def test_a_damaged_or_short_stream_gives_nothing(encoding: int) -> None:
    """A stream that breaks off, or that holds less than the cluster, is no proof of anything."""
    packed = PACKED[encoding]
    assert decode(packed[: len(packed) // 2], encoding, len(DATA)) is None
    assert decode(packed, encoding, len(DATA) + 1) is None


def test_a_stream_of_an_odd_longer_length_is_not_ours() -> None:
    """Only a whole cluster may be longer than what the disk has of it."""
    assert decode(zlib.compress(DATA[:50_000]), ZLIB, 40_000) is None


def test_plain_is_cut_and_never_stretched() -> None:
    """Plain bytes are taken as they are; too few are none."""
    assert decode(DATA, PLAIN, 10) == DATA[:10] and decode(b"abc", PLAIN, 10) is None


def test_a_bomb_is_stopped() -> None:
    """A stream of 1 GiB of zeros is not decoded beyond the largest cluster."""
    c = zlib.compressobj()
    bomb = b"".join(c.compress(bytes(1 << 20)) for _ in range(64)) + c.flush()
    assert decode(bomb, ZLIB, 65536) is None
