"""table_blocks in plain Python: see ext/table_blocks.pyx for the contract."""

from __future__ import annotations

from tests.reference.legal_rows import legal_rows

Rule = tuple[int, int, str, int, list[tuple[int, int, bool]], list[int]]
"""width, size, byte order, illegal, (low, high, unused)s, steps"""


def table_blocks(data: bytes, rules: list[Rule], begins: list[tuple[bytes, bytes]]) -> list[int]:
    """Numbers of the blocks."""
    return [i // 4096 for i in range(0, len(data), 4096) if _told(data[i : i + 4096], rules, begins)]


def _told(block: bytes, rules: list[Rule], begins: list[tuple[bytes, bytes]]) -> bool:
    for i in range(0, 4096, 512):
        sector = block[i : i + 512]
        for mask, value in begins:
            if any(sector) and bytes(a & b for a, b in zip(sector, mask, strict=False)) == value:
                return True
    for width, size, order, illegal, ranges, steps in rules:
        rows = [[int.from_bytes(block[r + k : r + k + size], order) for k in range(0, width, size)]  # type: ignore[arg-type]
                for r in range(0, 4096, width)]
        if legal_rows(rows, illegal, ranges, steps):
            return True
    return False
