"""The plain meaning of ext/first_look.pyx."""

from __future__ import annotations

Also = tuple[int, bytes, bytes]  # place from the sector's start, mask, value


def first_look(buf: bytes, magics: list[tuple[int, bytes, Also | None]]) -> list[tuple[int, int]]:
    """(sector, index of the magic) for every magic (in-sector offset, bytes, second field) that lies there, by sector.

    A second field that lies outside `buf` is taken to fit: who confirms will see.
    """
    return [
        (s, i)
        for s in range(len(buf) // 512)
        for i, (at, magic, also) in enumerate(magics)
        if at + len(magic) <= 512 and buf[512 * s + at : 512 * s + at + len(magic)] == magic
        if fits(buf, 512 * s, also)
    ]


def fits(buf: bytes, sector_at: int, also: Also | None) -> bool:
    if also is None:
        return True
    at, mask, value = also
    begin = sector_at + at
    if begin < 0 or begin + len(mask) > len(buf):
        return True
    return bytes(b & m for b, m in zip(buf[begin : begin + len(mask)], mask, strict=True)) == value
