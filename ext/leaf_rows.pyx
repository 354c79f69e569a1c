"""leaf_rows: which blocks are leaves of a SQLite table, and the first and last row number that each holds.

in   buf uint8[n], borrowed, may be read-only; blocks of 4096 bytes begin at `first` and follow each other while whole
     ones begin before `end`
out  block int64[k]: their numbers from `first` on, rising; low, high int64[k]: row numbers, 0 < low <= high
Returns how many there are. Raises ValueError where the out arrays have no room for every block.
A leaf: type 13, cells inside the page behind the pointers, varints of at most 9 bytes (of 9 the value means nothing).
Source: sqlite.org/fileformat.html, 1.6. Reference: tests/reference/leaf_rows.py
"""

from libc.stdint cimport int64_t, uint8_t

cdef enum:
    BLOCK = 4096
    LEAF = 13
    HEAD = 8
    NUMBER = 9      # bytes of the longest varint


cdef inline int number(const uint8_t *at, int64_t *value) noexcept nogil:
    """Bytes of the varint; in bounds: reads at[0 .. 8)."""
    cdef int i
    value[0] = 0
    for i in range(NUMBER - 1):
        value[0] = value[0] << 7 | (at[i] & 0x7F)
        if at[i] < 0x80:
            return i + 1
    return NUMBER


cdef inline int64_t row_of(const uint8_t *block, int pointer, int behind) noexcept nogil:
    """The row number of the cell that the pointer names, -1 where it names none."""
    cdef int at = block[pointer] << 8 | block[pointer + 1]
    cdef int64_t value
    if at < behind or at > BLOCK - 2 * NUMBER:
        return -1
    at += number(block + at, &value)    # the payload's length; in bounds: at was 4078 at most
    number(block + at, &value)
    return value


cpdef Py_ssize_t leaf_rows(const uint8_t[::1] buf, Py_ssize_t first, Py_ssize_t end, int64_t[::1] block,
                           int64_t[::1] low, int64_t[::1] high) except -1:
    cdef Py_ssize_t n, i, found = 0
    cdef const uint8_t *at
    cdef int cells
    cdef int64_t a, b
    if first < 0:
        raise ValueError(f"blocks begin at {first}, before the buffer")
    n = max(0, (min(end, buf.shape[0] - BLOCK + 1) - first + BLOCK - 1) // BLOCK)
    if block.shape[0] < n or low.shape[0] < n or high.shape[0] < n:
        raise ValueError(f"no room for {n} blocks")
    with nogil:
        for i in range(n):      # in bounds: the last block ends inside buf
            at = &buf[first + BLOCK * i]
            if at[0] != LEAF:
                continue
            cells = at[3] << 8 | at[4]
            if cells == 0 or HEAD + 2 * cells > BLOCK:
                continue
            a = row_of(at, HEAD, HEAD + 2 * cells)
            b = row_of(at, HEAD + 2 * (cells - 1), HEAD + 2 * cells)
            if 0 < a <= b:
                block[found], low[found], high[found] = i, a, b
                found += 1
    return found
