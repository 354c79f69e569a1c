"""The plain meaning of ext/first_look.pyx."""


def first_look(buf: bytes, magics: list[tuple[int, bytes]]) -> list[tuple[int, int]]:
    """(sector, index of the magic) for every magic (in-sector offset, bytes) that lies there, by sector."""
    return [
        (s, i)
        for s in range(len(buf) // 512)
        for i, (at, magic) in enumerate(magics)
        if at + len(magic) <= 512 and buf[512 * s + at : 512 * s + at + len(magic)] == magic
    ]
