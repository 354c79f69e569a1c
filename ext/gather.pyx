"""gather: the same bytes of many structures, side by side: one field of each, or several of each in one pass.

in   buf uint8[n], borrowed, may be read-only; at int64[k]: where each structure begins
     gather: first: byte of the structure. gather_fields: first int64[f], length int64[f]: its fields
out  gather: out uint8[k, m]: bytes [at + first, at + first + m) of each
     gather_fields: out uint8[k * sum(length)]: the first field of all structures, then the second of all, and so on
Raises ValueError where one lies outside the buffer; nothing of `out` can be relied on then.
One pass, because structures are many and large: each pass more brings the same cache lines back from outer caches.
Reference: numpy, buf[at[:, None] + first + arange(m)]
"""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

cdef enum:
    FIELDS = 16     # at most, of one call


cdef inline void copy(uint8_t *target, const uint8_t *source, Py_ssize_t m) noexcept nogil:
    if m == 2:      # sizes of fields: the compiler makes one move of each
        memcpy(target, source, 2)
    elif m == 4:
        memcpy(target, source, 4)
    elif m == 8:
        memcpy(target, source, 8)
    elif m == 16:
        memcpy(target, source, 16)
    else:
        memcpy(target, source, m)


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
            copy(target, source + low, m)
            target += m
    if not inside:
        raise ValueError(f"the structure at {at[i]} lies outside the buffer")
    return 0


cpdef int gather_fields(const uint8_t[::1] buf, const int64_t[::1] at, const int64_t[::1] first,
                        const int64_t[::1] length, uint8_t[::1] out) except -1:
    cdef Py_ssize_t k = at.shape[0], f = first.shape[0], i, j
    cdef int64_t size = buf.shape[0], high = 0, total = 0
    cdef uint8_t *target[FIELDS]
    cdef bint inside = True
    if length.shape[0] != f or f > FIELDS:
        raise ValueError(f"{f} fields with {length.shape[0]} lengths, at most {FIELDS}")
    for j in range(f):
        if not (0 <= first[j] <= size and 0 <= length[j] <= size - first[j]):
            raise ValueError(f"a field of {length[j]} bytes at {first[j]} lies outside the buffer")
        high = max(high, first[j] + length[j])
        total += length[j]
    if out.shape[0] != k * total:
        raise ValueError(f"out has {out.shape[0]} bytes for {k} structures of {total}")
    if k == 0 or total == 0:
        return 0
    total = 0
    for j in range(f):
        target[j] = &out[0] + k * total     # at most one behind the end, where nothing is copied
        total += length[j]
    with nogil:     # in bounds: 0 <= at and at + high <= size for every structure, and no field ends behind `high`
        for i in range(k):
            if at[i] < 0 or at[i] > size - high:
                inside = False
                break
            for j in range(f):
                copy(target[j], &buf[0] + at[i] + first[j], length[j])
                target[j] += length[j]
    if not inside:
        raise ValueError(f"the structure at {at[i]} lies outside the buffer")
    return 0
