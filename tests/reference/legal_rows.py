"""legal_rows in plain Python: see ext/legal_rows.pyx for the contract."""

from __future__ import annotations


def legal_rows(rows: list[list[int]], illegal: int, ranges: list[tuple[int, int, bool]], steps: list[int]) -> list[int]:
    """Which rows fit. ranges: (low, high, unused)."""
    out: list[int] = []
    for i, row in enumerate(rows):
        told = [next((unused for low, high, unused in ranges if low <= v <= high), None) for v in row]
        used = [v for v, unused in zip(row, told, strict=True) if not unused]
        if any(row) and None not in told and not any(v & illegal for v in row) and \
                (not steps or any(len({v % s for v in used}) <= 1 for s in steps)):
            out.append(i)
    return out
