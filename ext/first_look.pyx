"""first_look: which sectors begin a magic. Knows no format: magics come as a table made from the modules' signatures.

in   buf uint8[n], borrowed, may be read-only; looked at in steps of 512 bytes, a tail shorter than a sector is ignored
     probe int32[k], rising: in-sector byte offsets at which magics lie (0 <= probe < 511)
     gate uint8[k, 8192]: per probe one bit for each little-endian 16-bit value that begins a magic there
     only int32[k]: the value, where one value begins every magic of the probe, else -1 (the gate says the same, slower)
     first int32[k, 65536] or -1: head of the chain of magics for that value; next int32[m]: the chain, ends with -1
     magic uint8[m, 16]: the bytes to compare, padded with zeros
     room int32[m]: 0 < probe + length <= 512, length of each magic, so that a comparison stays inside its sector
out  hit_sector int64[cap], hit_magic int32[cap]: sector numbers, rising, and which magic
     resume int64[1]: the sector to go on with when the result is full (cap), else the number of sectors
returns the number of hits; a caller whose cap was reached calls again from resume[0].
Reference: tests/reference/first_look.py
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define PREFETCH(at) __builtin_prefetch(at)
    #else
    #define PREFETCH(at) ((void) (at))
    #endif
    """
    void PREFETCH(const void *at) noexcept nogil

cdef enum:
    BLOCK = 8       # sectors that are asked together; 16 is no faster, one by one costs twice as much


cdef inline bint may_begin(const uint8_t *block, const int32_t *probe, const int32_t *only, const uint8_t *gate,
                           Py_ssize_t probes) noexcept nogil:
    """Whether a magic may begin in one of BLOCK sectors: what nearly every block answers with no.

    The cost is the cache lines that are touched, one a sector and probe, so they are asked for a block ahead, and no
    branch depends on the data. A comparison is cheaper than the gate, whose tables compete for the first-level cache.
    In bounds: probe <= 510 and all BLOCK sectors are there; value >> 3 < 8192; a prefetch behind the end is no access.
    """
    cdef uint16_t value, wanted
    cdef uint8_t any_bit = 0
    cdef const uint8_t *at
    cdef const uint8_t *bits
    cdef Py_ssize_t k
    cdef int i
    for k in range(probes):
        at = block + probe[k]
        for i in range(BLOCK):
            PREFETCH(at + 512 * (BLOCK + i))
        if only[k] >= 0:
            wanted = <uint16_t> only[k]
            for i in range(BLOCK):
                value = <uint16_t> (at[512 * i] | at[512 * i + 1] << 8)
                any_bit |= value == wanted
        else:
            bits = gate + 8192 * k
            for i in range(BLOCK):
                value = <uint16_t> (at[512 * i] | at[512 * i + 1] << 8)
                any_bit |= bits[value >> 3] >> (value & 7)
    return any_bit & 1


cpdef Py_ssize_t first_look(const uint8_t[::1] buf, const int32_t[::1] probe, const uint8_t[:, ::1] gate,
                            const int32_t[::1] only, const int32_t[:, ::1] first, const int32_t[::1] next_,
                            const uint8_t[:, ::1] magic, const int32_t[::1] room, int64_t[::1] hit_sector,
                            int32_t[::1] hit_magic, int64_t[::1] resume) except -1:
    cdef Py_ssize_t sectors = buf.shape[0] // 512
    cdef Py_ssize_t probes = probe.shape[0], cap = hit_sector.shape[0], magics = next_.shape[0]
    cdef Py_ssize_t s = 0, end, k, hits = 0, before
    cdef const uint8_t *at
    cdef const uint8_t *want
    cdef int32_t m, i, n
    cdef uint16_t value
    if gate.shape[0] != probes or gate.shape[1] != 8192 or first.shape[0] != probes or first.shape[1] != 65536:
        raise ValueError("gate must be uint8[k, 8192] and first int32[k, 65536] for k probes")
    if only.shape[0] != probes or magic.shape[0] != magics or magic.shape[1] != 16 or room.shape[0] != magics:
        raise ValueError("only must be int32[k], magic uint8[m, 16], and room int32[m], for k probes and m magics")
    if hit_magic.shape[0] != cap or cap < magics or resume.shape[0] != 1:
        raise ValueError("hit_sector and hit_magic must have one length, at least the number of magics")
    for k in range(probes):
        if probe[k] < 0 or probe[k] > 510:
            raise ValueError(f"probe {probe[k]} does not lie inside a sector")
    for m in range(magics):
        if room[m] < 2 or room[m] > 16 or next_[m] < -1 or next_[m] >= magics:
            raise ValueError(f"magic {m} has length {room[m]}, next {next_[m]}")
    resume[0] = sectors
    if sectors == 0 or probes == 0:
        return 0
    with nogil:
        # in bounds: s < sectors so 512*s + 511 < n; probe <= 510 so both bytes of the value are in the sector; a magic
        # is compared only where probe + room <= 512; chains end (the caller built them from distinct indices, and the
        # inner loop stops at cap: a sector that would overflow is given back whole through resume)
        while s < sectors and resume[0] == sectors:
            if s + BLOCK <= sectors and not may_begin(&buf[512 * s], &probe[0], &only[0], &gate[0, 0], probes):
                s += BLOCK
                continue
            end = min(s + BLOCK, sectors)
            while s < end:
                before = hits
                for k in range(probes):
                    at = &buf[512 * s] + probe[k]
                    value = <uint16_t> (at[0] | (at[1] << 8))
                    if not gate[k, value >> 3] >> (value & 7) & 1:
                        continue
                    m = first[k, value]
                    while m >= 0:
                        n = room[m]
                        if probe[k] + n <= 512:
                            want = &magic[m, 0]
                            i = 2
                            while i < n and at[i] == want[i]:
                                i += 1
                            if i == n:
                                if hits == cap:
                                    break
                                hit_sector[hits] = s
                                hit_magic[hits] = m
                                hits += 1
                        m = next_[m]
                    if m >= 0:      # left by break: full
                        hits = before
                        resume[0] = s
                        break
                if resume[0] == s:
                    break
                s += 1
    return hits
