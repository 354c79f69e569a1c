"""What speaks for one unit being the guest's next behind another: content, zeros, and links of the file."""

from __future__ import annotations

import numpy as np

from vmcarve.assemble.unit_grid import Grid
from vmcarve.assemble.unit_joins import Borders, Zeros
from vmcarve.source import BytesReader

UNIT = 32 << 10


def test_zeros_lie_together() -> None:
    """Units that end in zeros are followed by nothing, or by such as begin with them; what is unknown says nothing."""
    full = np.ones((40, 8), np.bool_)
    full[:10, 5:], full[10:20, :3] = False, False
    known = np.ones_like(full)
    known[39] = False
    zeros = Zeros.of(full, known)
    assert zeros.follows()[0, 10] > 1.0 > zeros.follows()[20, 21] > 0.0 > zeros.follows()[0, 20]
    assert zeros.out()[0] > 1.0 and zeros.out()[20] < -1.0
    assert zeros.into()[10] > 1.0 and zeros.into()[20] < -1.0
    assert not zeros.follows()[39].any() and zeros.out()[39] == 0.0
    whole = Zeros.of(np.ones((5, 1), np.bool_), np.ones((5, 1), np.bool_))
    assert not whole.follows().any() and not whole.out().any()  # units of one block: nothing was counted


def borders(links: np.ndarray) -> Borders:
    n = len(links)
    data = np.random.default_rng(1).integers(0, 256, n * UNIT, np.uint8).tobytes()
    full = np.ones((n, 8), np.bool_)
    return Borders.of(BytesReader(data), Grid(UNIT, n), np.arange(n), Zeros.of(full, full), links)


def test_a_link_is_the_next_and_where_others_have_one_none_means_an_end() -> None:
    """Nine of ten units have a link: the one that shows none likely ends what was written; one that cannot show any
    says nothing."""
    links = np.column_stack((np.arange(1, 31), np.arange(-1, 29)))
    links[29] = -1, 28
    links[20], links[21, 1] = (-2, 19), -2
    with_them, without = borders(links), borders(np.full((30, 2), -2))
    said = with_them.link - without.link
    assert said[3, 4] > 3.0 and said[3, 5] < -4.0 and said[2, 4] < -4.0
    assert with_them.out[29] - without.out[29] > 2.0 and with_them.out[3] - without.out[3] < -4.0
    assert said[20, 21] == 0.0 and with_them.out[20] == without.out[20]


def test_where_no_unit_has_a_link_none_says_nothing() -> None:
    """Files whose tables all lie right before what they name."""
    with_them, without = borders(np.full((30, 2), -1)), borders(np.full((30, 2), -2))
    assert np.allclose(with_them.link, without.link) and np.allclose(with_them.out, without.out)
