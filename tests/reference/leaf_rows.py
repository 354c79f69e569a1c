"""leaf_rows in plain Python: see ext/leaf_rows.pyx for the contract."""

from __future__ import annotations


def leaf_rows(buf: bytes, first: int, end: int) -> list[tuple[int, int, int]]:
    """(number of the block, first row, last row) of every leaf of a table."""
    out: list[tuple[int, int, int]] = []
    places = [at for at in range(first, end, 4096) if at + 4096 <= len(buf)]
    for i, at in enumerate(places):
        rows = _rows(buf[at : at + 4096])
        if rows is not None and 0 < rows[0] <= rows[1]:
            out.append((i, *rows))
    return out


def _rows(page: bytes) -> tuple[int, int] | None:
    cells = int.from_bytes(page[3:5], "big")
    if page[0] != 13 or cells == 0 or 8 + 2 * cells > 4096:
        return None
    pointers = [int.from_bytes(page[at : at + 2], "big") for at in (8, 8 + 2 * (cells - 1))]
    if any(not 8 + 2 * cells <= p <= 4096 - 18 for p in pointers):
        return None
    first, last = (_number(page, p + _number(page, p)[1])[0] for p in pointers)
    return first, last


def _number(page: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        value = value << 7 | page[at + i] & 0x7F
        if page[at + i] < 0x80:
            return value, i + 1
    return value, 9
