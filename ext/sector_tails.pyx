"""sector_tails: where the data of each sector ends.

in   buf uint8[512 * n], borrowed, may be read-only
out  tail uint16[n]: bytes up to the last one that is not zero: 0 an empty sector, 512 one that is full to its end
Every sector is read from its end, in words of eight bytes, up to the first word that is not zero.
Reference: tests/reference/sector_tails.py
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy


cpdef void sector_tails(const uint8_t[::1] buf, uint16_t[::1] tail) except *:
    cdef Py_ssize_t n = tail.shape[0], i
    cdef const uint8_t *sector
    cdef uint64_t word
    cdef int at
    if buf.shape[0] != 512 * n:
        raise ValueError("buf must hold 512 bytes for each entry of tail")
    if n == 0:
        return
    with nogil:
        # in bounds: 0 <= at <= 504 while a word is read, 0 < at <= 512 while single bytes are
        for i in range(n):
            sector = &buf[512 * i]
            if sector[511]:
                tail[i] = 512
                continue
            at = 504
            while at >= 0:
                memcpy(&word, sector + at, 8)
                if word:
                    break
                at -= 8
            if at < 0:
                tail[i] = 0
                continue
            at += 8
            while sector[at - 1] == 0:
                at -= 1
            tail[i] = <uint16_t> at
