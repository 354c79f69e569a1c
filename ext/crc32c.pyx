"""crc32c: the Castagnoli checksum (reflected polynomial 0x82F63B78), slicing by 8, of one buffer or of many blocks.

The functions move the *raw* register: they invert neither before nor after, so that every convention can be built on
them (VHDX, XFS, Btrfs: start at 0xFFFFFFFF and invert the result; ext4: start at a seed, no inversion).
in   buf uint8[n], or blocks uint8[n, m]: borrowed, may be read-only; state: the register before the first byte
out  the register after the last byte; for blocks out uint32[n], each block started anew from `init`
Reference: tests/reference/crc32c.py
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef uint32_t[8][256] TABLE     # TABLE[k][b]: the register after byte b and k zero bytes, from register 0


cdef void fill_table() noexcept:
    cdef uint32_t value, b
    cdef int k, _bit
    for b in range(256):
        value = b
        for _bit in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        TABLE[0][b] = value
    for k in range(1, 8):
        for b in range(256):
            TABLE[k][b] = (TABLE[k - 1][b] >> 8) ^ TABLE[0][TABLE[k - 1][b] & 255]


fill_table()


cdef inline uint32_t run(const uint8_t *at, Py_ssize_t n, uint32_t state) noexcept nogil:
    """in bounds: reads at[0 .. n); each table index is a byte."""
    cdef uint64_t word
    while n >= 8:
        # put together byte by byte: no alignment, no byte order; compilers make one load of it
        word = (<uint64_t> at[0] | <uint64_t> at[1] << 8 | <uint64_t> at[2] << 16 | <uint64_t> at[3] << 24
                | <uint64_t> at[4] << 32 | <uint64_t> at[5] << 40 | <uint64_t> at[6] << 48 | <uint64_t> at[7] << 56)
        word ^= state
        state = (TABLE[7][word & 255] ^ TABLE[6][word >> 8 & 255] ^ TABLE[5][word >> 16 & 255]
                 ^ TABLE[4][word >> 24 & 255] ^ TABLE[3][word >> 32 & 255] ^ TABLE[2][word >> 40 & 255]
                 ^ TABLE[1][word >> 48 & 255] ^ TABLE[0][word >> 56])
        at += 8
        n -= 8
    while n > 0:
        state = (state >> 8) ^ TABLE[0][(state ^ at[0]) & 255]
        at += 1
        n -= 1
    return state


cpdef uint32_t crc32c_update(const uint8_t[::1] buf, uint32_t state):
    """The register after `buf`. The GIL is released from 4 KiB on: below, releasing costs more than the sum."""
    cdef Py_ssize_t n = buf.shape[0]
    if n == 0:
        return state
    if n < 4096:
        return run(&buf[0], n, state)
    with nogil:
        state = run(&buf[0], n, state)
    return state


cpdef int crc32c_blocks(const uint8_t[:, ::1] blocks, uint32_t init, uint32_t[::1] out) except -1:
    """out[i]: the register after block i, from `init`."""
    cdef Py_ssize_t n = blocks.shape[0], m = blocks.shape[1], i
    if out.shape[0] != n:
        raise ValueError(f"out has {out.shape[0]} places for {n} blocks")
    if n == 0:
        return 0
    if m == 0:
        for i in range(n):
            out[i] = init
        return 0
    with nogil:     # in bounds: i < n, and each row has m bytes, contiguous
        for i in range(n):
            out[i] = run(&blocks[i, 0], m, init)
    return 0
