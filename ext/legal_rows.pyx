"""legal_rows: rows of numbers all of which could stand in a table of some format.

in   buf uint8[width * n], borrowed, may be read-only: rows of `width` bytes, numbers of `size` (4 or 8) bytes
     swap: the numbers are in the other byte order than the machine's
     illegal: bits that no number has; low, high uint64[k]: the ranges that numbers lie in, both ends counted
     unused uint8[k]: numbers of this range stand for nothing
     steps uint32[s], s <= 8, or none: all other numbers leave one remainder by one of these
out  rows int64[n]: the rows that are not all zeros and fit, rising. Returns how many.
A row ends at the first number that does not fit: of anything but tables that is the first or second.
Reference: tests/reference/legal_rows.py
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    uint32_t __builtin_bswap32(uint32_t) nogil
    uint64_t __builtin_bswap64(uint64_t) nogil


cdef struct Rule:
    int size
    bint swap
    uint64_t illegal
    int ranges
    const uint64_t *low
    const uint64_t *high
    const uint8_t *unused
    int steps
    const uint32_t *step


cdef bint fits(const uint8_t *row, Py_ssize_t count, const Rule *rule) noexcept nogil:
    cdef uint64_t value, told = 0
    cdef uint32_t word
    cdef uint32_t rest[8]
    cdef int alive = (1 << rule.steps) - 1, k, s
    cdef bint first = True
    cdef Py_ssize_t i
    # in bounds: (i + 1) * size <= width of the row; k < ranges; s < steps <= 8
    for i in range(count):
        if rule.size == 4:
            memcpy(&word, row + 4 * i, 4)
            value = __builtin_bswap32(word) if rule.swap else word
        else:
            memcpy(&value, row + 8 * i, 8)
            if rule.swap:
                value = __builtin_bswap64(value)
        if value & rule.illegal:
            return False
        k = 0
        while k < rule.ranges and not rule.low[k] <= value <= rule.high[k]:
            k += 1
        if k == rule.ranges:
            return False
        told |= value
        if rule.steps and not rule.unused[k]:
            for s in range(rule.steps):
                word = <uint32_t> (value % rule.step[s])
                if first:
                    rest[s] = word
                elif rest[s] != word:
                    alive &= ~(1 << s)
            first = False
            if not alive:
                return False
    return told != 0


cpdef Py_ssize_t legal_rows(const uint8_t[::1] buf, Py_ssize_t width, int size, bint swap, uint64_t illegal,
                            const uint64_t[::1] low, const uint64_t[::1] high, const uint8_t[::1] unused,
                            const uint32_t[::1] steps, int64_t[::1] rows) except -1:
    cdef Py_ssize_t n = rows.shape[0], i, found = 0
    cdef Rule rule
    if size not in (4, 8) or width <= 0 or width % size or buf.shape[0] != width * n:
        raise ValueError("buf must hold width bytes for each entry of rows, and rows whole numbers of 4 or 8 bytes")
    if not 0 < low.shape[0] == high.shape[0] == unused.shape[0] < 256 or steps.shape[0] > 8:
        raise ValueError("each range needs a low and a high end, and there are at most 8 steps")
    for i in range(steps.shape[0]):
        if steps[i] == 0:
            raise ValueError("a step is 0")
    if n == 0:
        return 0
    rule.size, rule.swap, rule.illegal = size, swap, illegal
    rule.ranges, rule.low, rule.high, rule.unused = <int> low.shape[0], &low[0], &high[0], &unused[0]
    rule.steps, rule.step = <int> steps.shape[0], NULL
    if rule.steps:
        rule.step = &steps[0]
    with nogil:
        for i in range(n):
            if fits(&buf[width * i], width // size, &rule):
                rows[found] = i
                found += 1
    return found
