"""The plain meaning of ext/every_byte.pyx."""

from __future__ import annotations

Magic = tuple[int, bytes, tuple[int, bytes, bytes] | None]  # place in the structure, bytes, (place, mask, value)


def every_byte(buf: bytes, image_at: int, begin: int, end: int, magics: list[Magic]) -> list[tuple[int, int]]:
    """(place in buf, index of the magic) of every magic that begins in buf[begin:end], sector starts left out."""
    out: list[tuple[int, int]] = []
    for i in range(begin, end):
        for m, (at, magic, also) in enumerate(magics):
            start = image_at + i - at
            if buf[i : i + len(magic)] != magic or start < 0 or start % 512 == 0:
                continue
            if also is not None:
                from_ = i - at + also[0]
                field = buf[from_ : from_ + len(also[1])] if from_ >= 0 else b""
                inside = len(field) == len(also[1])
                if inside and bytes(b & k for b, k in zip(field, also[1], strict=True)) != also[2]:
                    continue
            out.append((i, m))
    return out
