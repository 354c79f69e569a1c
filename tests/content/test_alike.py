"""What the counts of bytes say of whether stretches are of one kind."""

from __future__ import annotations

import numpy as np
import pytest

from vmcarve.assemble.content.alike import CELL, COUNTED, LEAST, counts, distances, within, worth


def test_counts_are_those_of_the_cells() -> None:
    """Against a count of each cell by itself, for any part of a stretch."""
    rng = np.random.default_rng(1)
    data = rng.integers(0, 40, 3 * CELL + COUNTED + 5).astype(np.uint8)
    upto = counts(data.tobytes())
    for low, high in rng.integers(0, len(data), (50, 2)).tolist():
        a, b = within(len(data), low, max(low, high))
        cells = [k for k in range(0, len(data), CELL) if low <= k and k + COUNTED <= high]
        wanted = sum((np.bincount(data[k : k + COUNTED], minlength=256) for k in cells), np.zeros(256, np.int64))
        assert (upto[b].astype(np.int64) - upto[a] == wanted).all()


@pytest.mark.parametrize("others", [True, False])
def test_only_what_is_unlike_speaks(others: bool) -> None:
    """One of twenty stretches has the same letters, or each of them. Too few bytes say nothing at all."""
    letters = np.zeros((2, 256))
    letters[0, :20] = letters[1, 100:120] = LEAST
    rows = np.vstack((letters[:1], np.repeat(letters[1:] if others else letters[:1], 19, axis=0), letters[:1] / 1000))
    got = worth(distances(letters[0], rows), np.zeros(len(rows), np.int64))
    assert -1.0 < got[0] <= 0.0 and (got[1] < -5.0 if others else got[1] == got[0]) and got[-1] == 0.0
