"""first_words in plain Python: see ext/first_words.pyx for the contract."""

from __future__ import annotations


def first_words(buf: bytes) -> list[tuple[int, int]]:
    """(index, value) of the first eight bytes that are not all zero, of every 4096."""
    out: list[tuple[int, int]] = []
    for start in range(0, len(buf), 4096):
        words = [int.from_bytes(buf[at : at + 8], "little") for at in range(start, start + 4096, 8)]
        k = next((i for i, value in enumerate(words) if value), 512)
        out.append((k, words[k] if k < 512 else 0))
    return out
