"""first_words: what each block begins with, zeros left out.

in   buf uint8[4096 * n], borrowed, may be read-only
out  at uint16[n]: index of the first eight bytes that are not all zero, 512 for an empty block
     word uint64[n]: those bytes in the machine's order, 0 for an empty block
Reference: tests/reference/first_words.py
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy


cpdef void first_words(const uint8_t[::1] buf, uint16_t[::1] at, uint64_t[::1] word) except *:
    cdef Py_ssize_t n = at.shape[0], i
    cdef const uint8_t *block
    cdef uint64_t value
    cdef int k
    if buf.shape[0] != 4096 * n or word.shape[0] != n:
        raise ValueError("buf must hold 4096 bytes for each entry of at and word")
    if n == 0:
        return
    with nogil:
        # in bounds: 0 <= 8 * k <= 4088 while a word is read
        for i in range(n):
            block = &buf[4096 * i]
            value = 0
            k = 0
            while k < 512:
                memcpy(&value, block + 8 * k, 8)
                if value:
                    break
                k += 1
            at[i] = <uint16_t> k
            word[i] = value
