"""What two stretches of bytes say of whether the one goes on as the other."""

from __future__ import annotations

import base64
import itertools
import random
import struct
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from vmcarve.assemble.content.joins import (
    AGAINST,
    MOST,
    NUMBERS,
    STRIDES,
    Kind,
    Shares,
    _numbers,
    before,
    behind,
    bits,
    kind_of,
)

CUT = 8192  # where files are cut; they are twice as long
SHARES = Shares.of([(Kind.TEXT, -1), (Kind.DENSE, -1), (Kind.CODE, -1), (Kind.OTHER, -1), (Kind.FILL, 0),
                    (Kind.FILL, 255)])


def prose(rng: random.Random) -> bytes:
    """Lines of words that come again, in another order for each seed."""
    words = "every carver joins pieces whose borders nobody has written down anywhere before".split()
    return "\n".join(" ".join(rng.choices(words, k=9)) for _ in range(400)).encode()


def log(rng: random.Random) -> bytes:
    rows: list[str] = []
    at = 1_690_000_000 + rng.randrange(10**7)
    for _ in range(400):
        at += rng.randrange(30)
        rows.append(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(at))} unit[{rng.randrange(99)}]: "
                    f"{rng.choice(('started', 'stopped'))} {rng.getrandbits(40):010x}")
    return "\n".join(rows).encode()


def encoded(rng: random.Random) -> bytes:
    """Base64 behind a header of any length."""
    return b"x" * rng.randrange(1, 77) + b"\n" + base64.encodebytes(rng.randbytes(20_000))


def relocations(rng: random.Random) -> bytes:
    at, rows = rng.randrange(1 << 30) * 8, bytearray()
    for _ in range(1000):
        at += rng.choice((8, 8, 16))
        rows += struct.pack("<QQQ", at, 8, rng.getrandbits(24))
    return bytes(rows)


MAKERS = (prose, log, encoded, relocations)


def joined(a: bytes, b: bytes) -> float:
    return bits(before(a[:CUT]), behind(b[CUT : 2 * CUT]), SHARES)


@pytest.mark.parametrize("make", MAKERS, ids=lambda m: m.__name__)
def test_a_file_goes_on_as_itself(make: Callable[[random.Random], bytes]) -> None:
    """The rest of the file is likelier behind the border than that of another file of its kind."""
    files = [make(random.Random(seed)) for seed in range(24)]
    assert all(len(f) >= 2 * CUT for f in files)
    true = [joined(f, f) for f in files]
    false = [joined(f, g) for f, g in zip(files, files[1:], strict=False)]
    assert sum(t > 0 for t in true) >= 22
    assert sum(true) / len(true) > sum(false) / len(false) + 5
    assert sum(t > f for t, f in zip(true, false, strict=False)) >= 20


def test_a_log_does_not_go_back_in_time() -> None:
    """Its own part, from before or from much later, is not what follows."""
    text = log(random.Random(3))
    assert joined(text, text) > 5
    assert bits(before(text[CUT : 2 * CUT]), behind(text[:CUT]), SHARES) < 0
    assert bits(before(text[: CUT // 2]), behind(text[CUT:]), SHARES) < 0


def test_kinds_stay_what_they_are() -> None:
    """Dense content behind text speaks against it, and a fill for itself only."""
    text, dense = prose(random.Random(1))[:CUT], random.Random(1).randbytes(CUT)
    assert kind_of(dense[:4096]) == (Kind.DENSE, -1) and kind_of(b"\xff" * 512) == (Kind.FILL, 255)
    assert bits(before(text), behind(dense), SHARES) < 0 < bits(before(dense), behind(dense[::-1]), SHARES)
    assert bits(before(b"\xff" * CUT), behind(b"\xff" * CUT), SHARES) > 0
    assert bits(before(b"\xff" * CUT), behind(bytes(CUT)), SHARES) == 0
    assert bits(before(bytes(CUT)), behind(bytes(CUT)), SHARES) == 0, "zeros lie beside anything"


def numbers_of(left: bytes, right: bytes) -> float:
    """Rows of both sides as one table: the first column that never falls inside them, and mostly rises, tells."""
    for stride in STRIDES:
        rows = np.frombuffer(left[-stride * NUMBERS :] + right[: stride * NUMBERS], "<u8").reshape(2 * NUMBERS, -1)
        for column in rows.astype(np.float64).T.tolist():
            steps = [b - a for a, b in itertools.pairwise(column)]
            inside = steps[: NUMBERS - 1] + steps[NUMBERS:]
            if min(inside) >= 0 and sum(s > 0 for s in inside) > len(inside) // 2:
                return MOST if 0 <= steps[NUMBERS - 1] <= 4 * max(inside) else AGAINST
    return 0.0


@pytest.mark.parametrize("stride", STRIDES)
def test_what_each_side_says_of_numbers_tells_as_much_as_both_together(stride: int) -> None:
    """Each side's rows are looked at once for all that may lie on the other: 200 pairs of tables that rise, rest, fall
    somewhere, or begin anew."""
    rng = np.random.default_rng(stride)
    found = Counter[float]()
    for _ in range(200):
        rows = rng.integers(0, 1 << 40, (2 * NUMBERS, stride // 8))
        rows[:, -1] = np.cumsum(rng.integers(0, 3, 2 * NUMBERS)) + rng.integers(0, 1 << 30)
        if rng.random() < 0.4:
            rows[rng.integers(0, 2 * NUMBERS), -1] += rng.integers(-3, 20)
        if rng.random() < 0.3:
            rows[NUMBERS:, -1] += rng.integers(-50, 50)
        data = rows.astype("<u8").tobytes()
        left, right = before(bytes(512) + data[: len(data) // 2]), behind(data[len(data) // 2 :] + bytes(512))
        found[_numbers(left, right)] += 1
        assert _numbers(left, right) == numbers_of(left.data, right.data)
    assert min(found[MOST], found[AGAINST]) > 20
