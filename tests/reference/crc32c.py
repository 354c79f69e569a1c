"""The plain meaning of ext/crc32c.pyx."""


def crc32c_update(buf: bytes, state: int) -> int:
    """The raw register after `buf`, one bit at a time."""
    for byte in buf:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state


def crc32c(buf: bytes, crc: int = 0) -> int:
    """The usual convention: inverted before and after."""
    return crc32c_update(buf, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
