"""legal_rows: rows of numbers all of which could stand in a table of some format.

in   buf uint8[width * n], borrowed, may be read-only: rows of `width` bytes, numbers of `size` (4 or 8) bytes
     swap: the numbers are in the other byte order than the machine's
     illegal: bits that no number has; low, high uint64[k]: the ranges that numbers lie in, both ends counted
     unused uint8[k]: numbers of this range stand for nothing
     steps uint32[s], s <= 8, or none: all other numbers leave one remainder by one of these
out  rows int64[n]: the rows that are not all zeros and fit, rising. Returns how many.
The test is in ext/legal_rows.h.
Reference: tests/reference/legal_rows.py
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "legal_rows.h":
    ctypedef struct row_rule:
        int size, swap, ranges, steps
        uint64_t illegal
        const uint64_t *low
        const uint64_t *high
        const uint8_t *unused
        const uint32_t *step
    int row_fits(const uint8_t *row, int64_t count, const row_rule *rule) nogil


cpdef Py_ssize_t legal_rows(const uint8_t[::1] buf, Py_ssize_t width, int size, bint swap, uint64_t illegal,
                            const uint64_t[::1] low, const uint64_t[::1] high, const uint8_t[::1] unused,
                            const uint32_t[::1] steps, int64_t[::1] rows) except -1:
    cdef Py_ssize_t n = rows.shape[0], i, found = 0
    cdef row_rule rule
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
            if row_fits(&buf[width * i], width // size, &rule):
                rows[found] = i
                found += 1
    return found
