"""gather: the same bytes of many structures in one buffer, side by side.

in   buf uint8[n], borrowed, may be read-only; at int64[k]: where each structure begins; first: byte of the structure
out  out uint8[k, m]: bytes [at + first, at + first + m) of each
Raises ValueError where one lies outside the buffer; nothing of `out` can be relied on then.
Reference: numpy, buf[at[:, None] + first + arange(m)]
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy


cpdef int gather(const uint8_t[::1] buf, const int64_t[::1] at, int64_t first, uint8_t[:, ::1] out) except -1:
    cdef Py_ssize_t k = at.shape[0], m = out.shape[1], i
    cdef int64_t last = buf.shape[0] - m, low
    cdef const uint8_t *source
    cdef uint8_t *target
    cdef bint inside = True
    if out.shape[0] != k:
        raise ValueError(f"out has {out.shape[0]} rows for {k} structures")
    if k == 0 or m == 0:
        return 0
    if last < 0:
        raise ValueError("a structure lies outside the buffer")
    with nogil:     # in bounds: 0 <= low <= n - m for every copy, or nothing is copied
        source, target = &buf[0], &out[0, 0]
        for i in range(k):
            low = at[i] + first
            if low < 0 or low > last:
                inside = False
                break
            if m == 2:      # sizes of fields: the compiler makes one move of each
                memcpy(target, source + low, 2)
            elif m == 4:
                memcpy(target, source + low, 4)
            elif m == 8:
                memcpy(target, source + low, 8)
            elif m == 16:
                memcpy(target, source + low, 16)
            else:
                memcpy(target, source + low, m)
            target += m
    if not inside:
        raise ValueError(f"the structure at {at[i]} lies outside the buffer")
    return 0
