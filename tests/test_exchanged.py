"""Tables of one container that were taken for each other: their neighbours tell."""

from __future__ import annotations

import random

from vmcarve.assemble.exchanged import (
    MOST,
    REACH,
    SHARED,
    WORTH,
    Bits,
    _Laid,  # pyright: ignore[reportPrivateUsage]
    rearranged,
)

BLOCK = 4096


def blocks(laid: dict[int, int]) -> dict[int, int]:
    return {f * BLOCK: p * BLOCK for f, p in laid.items()}


def at(*image_blocks: int) -> Bits:
    """Tables of no mark at these image blocks."""
    return lambda f, p: 40.0 if p // BLOCK in image_blocks else 0.0


def test_two_tables_change_places_where_both_then_lie_beside_others() -> None:
    """Though each says that it is the other: what it names was allocated by a write that was under way."""
    right = blocks({10: 510, 11: 511, 900: 7900, 901: 7901})
    wrong = right | blocks({10: 7900, 900: 510})

    def bits(f: int, p: int) -> float:
        return 40.0 if wrong[f] == p else 8.0

    assert rearranged(wrong, [], bits) == right


def test_a_lost_table_takes_its_place_from_one_that_has_no_neighbour_there() -> None:
    laid = blocks({11: 511, 300: 510})
    assert rearranged(laid, [10 * BLOCK], at(510, 511)) == blocks({11: 511, 10: 510})


def test_what_fits_much_better_stays_and_what_cannot_be_is_not_taken() -> None:
    laid = blocks({10: 40, 11: 511})
    marked = {40: 70.0, 510: 40.0, 511: 40.0}
    assert rearranged(laid, [], lambda f, p: marked.get(p // BLOCK, 0.0)) == laid
    assert rearranged(laid, [], at(40, 511)) == laid
    assert rearranged(laid, [], at(40, 510, 511)) == blocks({10: 510, 11: 511})


def test_more_than_are_looked_at_stay() -> None:
    laid = blocks({k: 10_000 - 7 * k for k in range(MOST)})
    assert rearranged(laid, [5000 * BLOCK], at(*range(20_000))) == laid


def any_bits(f: int, p: int) -> float:
    return (8.0, 40.0, 70.0)[(f * 7 + p * 3) // BLOCK % 3]


def test_what_a_move_wins_is_what_the_whole_wins() -> None:
    """Counted around the table that moves, against all tables counted anew; and taken back it leaves all as it was."""
    rng = random.Random(4)
    for _ in range(200):
        files = rng.sample(range(0, 9000, 3), 8)
        laid = blocks(dict(zip(files, rng.sample(range(40), 8), strict=True)))
        now = _Laid(dict(laid), any_bits)

        def whole(place: dict[int, int]) -> float:
            groups: dict[int, list[int]] = {}
            for f, p in sorted(place.items()):
                groups.setdefault(p - f, []).append(f)
            pairs = sum(b - a <= REACH for g in groups.values() for a, b in zip(g, g[1:], strict=False))
            return SHARED * pairs + WORTH * sum(any_bits(f, p) for f, p in place.items())

        f = rng.choice(list(laid))
        p = rng.choice([q for q in [*laid.values(), 41 * BLOCK] if q != laid[f]])
        before = whole(now.place)
        more = now._try(f, p)  # pyright: ignore[reportPrivateUsage]
        assert now.place == laid
        now._put(f, p)  # pyright: ignore[reportPrivateUsage]
        assert abs(whole(now.place) - before - more) < 1e-9
