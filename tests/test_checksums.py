"""The CRC-32C kernel against its bitwise reference and the published check value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import crc32c as reference
from vmcarve._ext import crc32c as kernel
from vmcarve._ext.cpu import PATHS
from vmcarve.checksums import crc32c, crc32c_rows, crc32c_zeroed

SEED = bytes(np.random.default_rng(5).integers(0, 256, 400, np.uint8))


def test_check_value() -> None:
    """The published check values hold: "123456789" (RFC 3720 / Rocksoft catalogue) and 32 zeros (RFC 3720 B.4)."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"") == 0


@pytest.mark.parametrize("length", range(0, 40))
def test_every_shift_and_length(length: int) -> None:
    """Unaligned, read-only views of every short length give what the reference gives."""
    for shift in range(17):
        part = memoryview(SEED)[shift : shift + length]
        for path in PATHS.values():
            assert kernel.crc32c_update(part, 0x1234_5678, path) == reference.crc32c_update(bytes(part), 0x1234_5678)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_long_stretches(path: int) -> None:
    """Lengths around the parts that are summed side by side, and around where the lock is given up."""
    data = np.random.default_rng(9).bytes(5000)
    for length in (511, 512, 1535, 1536, 1537, 1544, 3072, 3079, 4095, 4096, 4999):
        assert kernel.crc32c_update(data[1 : 1 + length], 7, path) == reference.crc32c_update(data[1 : 1 + length], 7)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=13), st.integers(0, 100), st.integers(0, 100), st.integers(0, 20))
def test_structures_in_a_buffer(path: int, at: list[int], length: int, zero_at: int, zero: int) -> None:
    """Structures that overlap, in any order and number, with bytes that count as zeros."""
    zero_at = min(zero_at, length)
    zero = min(zero, length - zero_at)
    buf, out = np.frombuffer(SEED, np.uint8), np.empty(len(at), np.uint32)
    kernel.crc32c_structures(buf, np.array(at, np.int64), length, zero_at, zero, 99, out, path)
    want = []
    for a in at:
        body = SEED[a : a + zero_at] + bytes(zero) + SEED[a + zero_at + zero : a + length]
        want.append(reference.crc32c_update(body, 99))
    assert out.tolist() == want


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 0xFFFF_FFFF), st.integers(0, 300))
def test_in_parts(data: bytes, crc: int, cut: int) -> None:
    """A sum may be continued at any place, from any start."""
    assert crc32c(data[cut:], crc32c(data[:cut], crc)) == crc32c(data, crc) == reference.crc32c(data, crc)


@pytest.mark.parametrize(("n", "m"), [(0, 8), (3, 0), (1, 1), (5, 33), (4, 4096)])
def test_rows(n: int, m: int) -> None:
    """Rows are summed each for itself, also through a strided, read-only view."""
    blocks = np.random.default_rng(n * m).integers(0, 256, (n, m), np.uint8)
    blocks.flags.writeable = False
    assert crc32c_rows(blocks, 7).tolist() == [crc32c(row.tobytes(), 7) for row in blocks]
    if n and m > 1:
        assert crc32c_rows(blocks[::2, 1:]).tolist() == [crc32c(row[1:].tobytes()) for row in blocks[::2]]


def test_zeroed_field() -> None:
    """A structure's own sum field counts as zeros."""
    assert crc32c_zeroed(SEED, 4) == crc32c(SEED[:4] + bytes(4) + SEED[8:])


def test_what_lies_outside_is_refused() -> None:
    """Arguments are checked before the loop runs without checks, and nothing is written then."""
    buf, out = np.zeros(20, np.uint8), np.zeros(2, np.uint32)
    for at, length, zero_at, zero in (([0], 8, 0, 0), ([0, 13], 8, 0, 0), ([-1, 0], 8, 0, 0), ([0, 1], 8, 5, 4),
                                      ([0, 1], 8, -1, 1), ([0, 1], -1, 0, 0), ([0, 1], 8, 9, 0)):
        with pytest.raises(ValueError, match="places|outside|inside"):
            kernel.crc32c_structures(buf, np.array(at, np.int64), length, zero_at, zero, 1, out)
    assert not out.any()
    with pytest.raises(ValueError, match="path"):
        kernel.crc32c_update(b"abc", 0, 17)
