"""extent_blocks: which structures of a buffer are ext4 extent blocks: a head and entries of 12 bytes, in order.

in   buf uint8[n], borrowed, may be read-only; at int64[k]: where each begins; length: bytes that are there of each;
     limits uint16[m]: values of eh_max that are allowed (one a block size)
out  good uint8[k]: 1 where magic, eh_max, eh_depth and eh_entries fit, no entry in use is empty, the last ends at
     0xFFFFFFFF at most (the format's end of file), and each begins where the one before ended, or later
Entries that lie behind `length` are not judged. Raises ValueError where a structure lies outside the buffer.
Source: Linux fs/ext4/ext4_extents.h. Reference: tests/reference/extent_blocks.py
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    HEAD = 12
    ENTRY = 12
    MAGIC = 0xF30A
    MAX_DEPTH = 5
    UNWRITTEN_FROM = 0x8000     # lengths above it: allocated and never written


cdef inline uint32_t le16(const uint8_t *at) noexcept nogil:
    return at[0] | <uint32_t> at[1] << 8


cdef inline uint32_t le32(const uint8_t *at) noexcept nogil:
    return le16(at) | le16(at + 2) << 16


cdef inline bint is_extent_block(const uint8_t *at, int64_t length, const uint16_t *limits,
                                 Py_ssize_t count) noexcept nogil:
    """in bounds: reads at[0 .. 12 * (1 + used)), and used is at most what `length` holds."""
    cdef uint32_t entries = le16(at + 2), most = le16(at + 4), depth = le16(at + 6)
    cdef uint32_t raw
    cdef uint64_t begin, end = 0, span, place
    cdef int64_t used, _i
    cdef Py_ssize_t k = 0
    if le16(at) != MAGIC or depth > MAX_DEPTH or entries == 0 or entries > most:
        return False
    while k < count and limits[k] != most:
        k += 1
    if k == count:
        return False
    used = min(<int64_t> entries, (length - HEAD) // ENTRY)
    for _i in range(used):
        at += ENTRY     # the head has the length of an entry
        begin = le32(at)
        if depth == 0:
            raw = le16(at + 4)
            span = raw - UNWRITTEN_FROM if raw > UNWRITTEN_FROM else raw
            place = le32(at + 8) | <uint64_t> le16(at + 6) << 32
        else:
            span = 1
            place = le32(at + 4) | <uint64_t> le16(at + 8) << 32
        if span == 0 or place == 0 or begin < end or begin + span > <uint64_t> 0xFFFFFFFF:
            return False
        end = begin + span
    return True


cpdef int extent_blocks(const uint8_t[::1] buf, const int64_t[::1] at, int64_t length, const uint16_t[::1] limits,
                        uint8_t[::1] good) except -1:
    cdef Py_ssize_t k = at.shape[0], count = limits.shape[0], i
    cdef int64_t last = buf.shape[0] - length
    if good.shape[0] != k:
        raise ValueError(f"good has {good.shape[0]} places for {k} structures")
    if length < HEAD:
        raise ValueError(f"{length} bytes hold no head of an extent block")
    for i in range(k):
        if at[i] < 0 or at[i] > last:
            raise ValueError(f"the structure at {at[i]} lies outside the buffer")
    if k == 0 or count == 0:
        for i in range(k):
            good[i] = 0
        return 0
    with nogil:     # in bounds: every structure lies in buf
        for i in range(k):
            good[i] = is_extent_block(&buf[at[i]], length, &limits[0], count)
    return 0
