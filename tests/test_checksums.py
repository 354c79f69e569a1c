"""The CRC-32C kernel against its bitwise reference and the published check value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import crc32c as reference
from vmcarve._ext import crc32c as kernel
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
        assert kernel.crc32c_update(part, 0x1234_5678) == reference.crc32c_update(bytes(part), 0x1234_5678)


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


def test_out_must_fit() -> None:
    """A result array of another length is refused before anything is written."""
    with pytest.raises(ValueError, match="out has 2 places for 3 blocks"):
        kernel.crc32c_blocks(np.zeros((3, 8), np.uint8), 0, np.zeros(2, np.uint32))
