"""The plain meaning of ext/extent_blocks.pyx."""

from __future__ import annotations

import struct


def is_extent_block(block: bytes, limits: list[int]) -> bool:
    """`block`: the bytes that are there of it, at least 12."""
    magic, entries, most, depth = struct.unpack_from("<4H", block)
    if magic != 0xF30A or most not in limits or depth > 5 or not 0 < entries <= most:
        return False
    end = 0
    for at in range(12, min(12 + 12 * entries, len(block) // 12 * 12), 12):
        if depth == 0:
            begin, raw, high, low = struct.unpack_from("<IHHI", block, at)
            length = raw - 0x8000 if raw > 0x8000 else raw
        else:
            begin, low, high = struct.unpack_from("<IIH", block, at)
            length = 1
        if length == 0 or (high << 32 | low) == 0 or begin < end or begin + length > 0xFFFFFFFF:
            return False
        end = begin + length
    return True
