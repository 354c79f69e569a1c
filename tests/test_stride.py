"""Parts of files that were encrypted at a period: which they are, told by begins and ends, and what is not told."""

from __future__ import annotations

import numpy as np
import pytest

from vmcarve.assemble.stride import PER, Stride, find, holds

EVERY_TENTH = Stride(160, ((0, 16),))
THREE_OF_TEN = Stride(10, ((0, 1), (3, 4), (6, 7)))
HALF = Stride(2, ((0, 1),))


def guest(parts: int, seed: int) -> np.ndarray:
    """bool[blocks]: even ones in compressed files of a few blocks to some MiB, a tenth of a guest."""
    rng = np.random.default_rng(seed)
    out = np.zeros(parts * PER, np.bool_)
    while out.mean() < 0.1:
        length = int(rng.lognormal(2.5, 1.5)) + 1
        at = int(rng.integers(0, len(out)))
        out[at : at + length] = True
    return out


def encrypted(blocks: np.ndarray, stride: Stride) -> np.ndarray:
    out = blocks.copy()
    for first, end in stride.ranges(-(-len(out) // PER)):
        out[first * PER : end * PER] = True
    return out


@pytest.mark.parametrize("stride", [EVERY_TENTH, THREE_OF_TEN, HALF])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_encrypted_at_a_period_is_told_from_compressed_files(stride: Stride, seed: int) -> None:
    """Of a file of 24 MiB with compressed files in it, to the part; of a longer one where a fifth of it is a hole."""
    even = encrypted(guest(384, seed), stride)
    assert find(even, np.ones(len(even), np.bool_)) == stride
    even = encrypted(guest(1024, seed), stride)
    known = np.ones(len(even), np.bool_)
    known[np.random.default_rng(seed).integers(1, 64, 14)[:, None] * 256 + np.arange(256)] = False
    assert find(even & known, known) == stride


@pytest.mark.parametrize("seed", [0, 1, 2, 4])  # of the guest of seed 3 three quarters are even
def test_one_begin_is_enough_for_a_period_of_whole_lengths(seed: int) -> None:
    """A file of 11 MiB whose first and last MiB are encrypted: of the last nothing but where it begins is seen."""
    even = encrypted(guest(176, seed), EVERY_TENTH)
    even[16 * PER : 16 * PER + 8] = even[160 * PER - 8 : 160 * PER] = False
    found = find(even, np.ones(len(even), np.bool_))
    assert found is not None
    assert set(found.ranges(176)) == set(EVERY_TENTH.ranges(176))


def test_a_period_holds_for_what_does_not_speak_against_it() -> None:
    """A file that is even throughout shows none, and may have that of another; one uneven block behind its opening in
    what would be encrypted is enough against it, and nothing behind the opening is not enough for it."""
    even, there = np.ones(320 * PER, np.bool_), np.ones(320 * PER, np.bool_)
    assert find(even, there) is None and holds(EVERY_TENTH, even, there)
    even[170 * PER] = False
    assert not holds(EVERY_TENTH, even, there)
    there[170 * PER] = False
    assert holds(EVERY_TENTH, even, there)
    there[160 * PER : 176 * PER] = False
    assert not holds(EVERY_TENTH, even, there) and not holds(EVERY_TENTH, even[: 100 * PER], there[: 100 * PER])


@pytest.mark.parametrize("seed", range(40))
def test_compressed_files_have_no_period(seed: int) -> None:
    """Behind an opening that is encrypted lie as many of them as there may be, and none is taken for ciphertext."""
    even = guest(1024, seed)
    even[: 16 * PER], even[16 * PER :][:3] = True, False
    assert find(even, np.ones(len(even), np.bool_)) is None


def test_a_guest_that_is_even_throughout_has_no_period() -> None:
    """Neither an encrypted guest, nor one part, nor nothing shows one."""
    for n in (0, PER, 64 * PER):
        assert find(np.ones(n, np.bool_), np.ones(n, np.bool_)) is None
