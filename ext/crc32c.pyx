"""crc32c: the Castagnoli checksum (reflected polynomial 0x82F63B78) of one buffer, or of many structures in one.

The functions move the *raw* register: they invert neither before nor after, so that every convention can be built on
them (VHDX, XFS, Btrfs: start at 0xFFFFFFFF and invert the result; ext4: start at a seed, no inversion).
in   buf uint8[n]: borrowed, may be read-only; state, init: the register before the first byte; path: cpu.PATHS
out  the register after the last byte; for structures out uint32[k], each started anew from `init`
Reference: tests/reference/crc32c.py. How it is computed: ext/crc32c.h
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef extern from "cpu.h":
    int path_is_here(int path) nogil

cdef extern from "crc32c.h":
    void crc_fill_tables() nogil
    int crc_instruction_is_here(int path) nogil
    uint32_t crc_run(const uint8_t *at, int64_t n, uint32_t state, int instruction) nogil
    void crc_rows(const uint8_t *buf, const int64_t *at, int64_t rows, int64_t length, int64_t zero_at, int64_t zero,
                  uint32_t init, uint32_t *out, int instruction) nogil

crc_fill_tables()


cdef int instruction_of(int path) except -1:
    if not path_is_here(path):
        raise ValueError(f"path {path} cannot be run here")
    return crc_instruction_is_here(path)


cpdef uint32_t crc32c_update(const uint8_t[::1] buf, uint32_t state, int path=0):
    """The register after `buf`. The GIL is released from 4 KiB on: below, releasing costs more than the sum."""
    cdef Py_ssize_t n = buf.shape[0]
    cdef int instruction = instruction_of(path)
    if n == 0:
        return state
    if n < 4096:
        return crc_run(&buf[0], n, state, instruction)
    with nogil:
        state = crc_run(&buf[0], n, state, instruction)
    return state


cpdef int crc32c_structures(const uint8_t[::1] buf, const int64_t[::1] at, int64_t length, int64_t zero_at,
                            int64_t zero, uint32_t init, uint32_t[::1] out, int path=0) except -1:
    """out[i]: the register after buf[at[i] .. at[i] + length); `zero` bytes from its `zero_at` on count as zeros."""
    cdef Py_ssize_t k = at.shape[0], i
    cdef int instruction = instruction_of(path)
    cdef int64_t last = buf.shape[0] - length
    if out.shape[0] != k:
        raise ValueError(f"out has {out.shape[0]} places for {k} structures")
    if length < 0 or zero < 0 or zero_at < 0 or zero_at > length - zero:
        raise ValueError(f"{zero} zeros at {zero_at} do not lie inside {length} bytes")
    for i in range(k):
        if at[i] < 0 or at[i] > last:
            raise ValueError(f"the structure at {at[i]} lies outside the buffer")
    if k == 0:
        return 0
    if length == 0:
        for i in range(k):
            out[i] = init
        return 0
    with nogil:     # in bounds: every structure lies in buf, and the zeros in every structure
        crc_rows(&buf[0], &at[0], k, length, zero_at, zero, init, &out[0], instruction)
    return 0
