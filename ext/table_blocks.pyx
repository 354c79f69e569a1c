"""table_blocks: which blocks of 4096 bytes hold a row that could be a piece of some allocation table.

BlockSieve takes the rules of all formats once, checks them, and keeps their arrays; the look runs without the GIL.
    rules: (width, size, swap, illegal, low uint64[k], high uint64[k], unused uint8[k], steps uint32[s]) of rows of
    `width` bytes (512 or 4096), as ext/legal_rows.h reads them; begins: (mask uint8[16], value uint8[16]) of sectors
    whose first bytes are `value` under the mask.
table_blocks:
    in   buf uint8[4096 * n], borrowed, may be read-only
    out  found uint8[n]: 1 where a rule fits a row of the block, or a sector begins so, else 0. Returns how many.
Rows of zeros are no table. Reference: tests/reference/table_blocks.py
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "legal_rows.h":
    ctypedef struct row_rule:
        int size, swap, ranges, steps
        uint64_t illegal
        const uint64_t *low
        const uint64_t *high
        const uint8_t *unused
        const uint32_t *step
    int row_fits(const uint8_t *row, int64_t count, const row_rule *rule) nogil

cdef enum:
    MOST = 32
    LAYOUTS = 4     # of a number: 4 or 8 bytes, its most significant byte last or first


cdef bint blank(const uint8_t *row, Py_ssize_t length) noexcept nogil:
    cdef uint64_t word, told = 0
    cdef Py_ssize_t i, k
    for i in range(0, length, 64):     # lengths are multiples of 64: a line at a time, so that it is vectorised
        for k in range(8):
            memcpy(&word, row + i + 8 * k, 8)
            told |= word
        if told:
            return False
    return True


cdef int layout(int size, int swap) noexcept nogil:
    """Number of the layout; bit 1: 8 bytes, bit 0: the most significant byte is the first."""
    cdef int one = 1
    cdef bint little = (<uint8_t *> &one)[0] == 1
    return (2 if size == 8 else 0) | (1 if little == (swap != 0) else 0)


cdef bint may_begin(const row_rule *rule, int top) noexcept nogil:
    """Whether a number whose most significant byte is `top` may fit."""
    cdef int shift = 8 * rule.size - 8, k
    cdef uint64_t low = <uint64_t> top << shift
    cdef uint64_t high = low | ((<uint64_t> 1 << shift) - 1)
    if low & rule.illegal:
        return False
    for k in range(rule.ranges):
        if rule.low[k] <= high and low <= rule.high[k]:
            return True
    return False


cdef class BlockSieve:
    cdef row_rule rule[MOST]
    # by layout and most significant byte, which rules a number may fit: two numbers of a row settle nearly all
    cdef uint32_t top[LAYOUTS][256]
    cdef uint32_t sectors, blocks       # rules by their rows' width
    cdef uint64_t mask[MOST][2]
    cdef uint64_t value[MOST][2]
    cdef int rules, begins
    cdef list keep

    def __init__(self, rules, begins):
        cdef const uint64_t[::1] low, high
        cdef const uint8_t[::1] unused, bits, bytes_
        cdef const uint32_t[::1] steps
        cdef Py_ssize_t i
        cdef int width, size, swap
        cdef uint64_t illegal
        self.rules = self.begins = 0
        self.sectors = self.blocks = 0
        memset(self.top, 0, sizeof(self.top))
        self.keep = [list(rules), list(begins)]
        if len(self.keep[0]) > MOST or len(self.keep[1]) > MOST:
            raise ValueError(f"there are at most {MOST} rules, and so many begins")
        for width, size, swap, illegal, low, high, unused, steps in self.keep[0]:
            if width not in (512, 4096) or size not in (4, 8):
                raise ValueError("rows have 512 or 4096 bytes, and numbers 4 or 8")
            if not 0 < low.shape[0] == high.shape[0] == unused.shape[0] < 256 or steps.shape[0] > 8:
                raise ValueError("each range needs a low and a high end, and there are at most 8 steps")
            for i in range(steps.shape[0]):
                if steps[i] == 0:
                    raise ValueError("a step is 0")
            r = &self.rule[self.rules]
            r.size, r.swap, r.illegal = size, swap, illegal
            r.ranges, r.low, r.high, r.unused = <int> low.shape[0], &low[0], &high[0], &unused[0]
            r.steps, r.step = <int> steps.shape[0], NULL
            if r.steps:
                r.step = &steps[0]
            if width == 512:
                self.sectors |= <uint32_t> 1 << self.rules
            else:
                self.blocks |= <uint32_t> 1 << self.rules
            for i in range(256):
                if may_begin(r, <int> i):
                    self.top[layout(size, swap)][i] |= <uint32_t> 1 << self.rules
            self.rules += 1
        for bits, bytes_ in self.keep[1]:
            if bits.shape[0] != 16 or bytes_.shape[0] != 16:
                raise ValueError("a begin has 16 bytes")
            memcpy(self.mask[self.begins], &bits[0], 16)
            memcpy(self.value[self.begins], &bytes_[0], 16)
            self.begins += 1

    cdef uint32_t open_rules(self, const uint8_t *row) noexcept nogil:
        """The rules that the first two numbers of a row may fit."""
        return (self.top[0][row[3]] & self.top[0][row[7]] | self.top[1][row[0]] & self.top[1][row[4]]
                | self.top[2][row[7]] & self.top[2][row[15]] | self.top[3][row[0]] & self.top[3][row[8]])

    cdef bint fits(self, const uint8_t *row, int length, uint32_t rules) noexcept nogil:
        cdef int k
        for k in range(self.rules):
            if rules >> k & 1 and row_fits(row, length // self.rule[k].size, &self.rule[k]):
                return True
        return False

    cdef bint told(self, const uint8_t *block) noexcept nogil:
        cdef int s, k
        cdef uint64_t first, second
        cdef uint32_t rules
        cdef const uint8_t *row
        cdef bint zeros = True
        # in bounds: rows of 512 or 4096 bytes end within the block
        for s in range(8):
            row = block + 512 * s
            memcpy(&first, row, 8)
            if first == 0 and blank(row, 512):
                continue
            zeros = False
            memcpy(&second, row + 8, 8)
            for k in range(self.begins):
                if first & self.mask[k][0] == self.value[k][0] and second & self.mask[k][1] == self.value[k][1]:
                    return True
            rules = self.open_rules(row) & self.sectors
            if rules and self.fits(row, 512, rules):
                return True
        if zeros:
            return False
        rules = self.open_rules(block) & self.blocks
        return rules != 0 and self.fits(block, 4096, rules)


cpdef Py_ssize_t table_blocks(BlockSieve sieve, const uint8_t[::1] buf, uint8_t[::1] found) except -1:
    cdef Py_ssize_t n = found.shape[0], i, count = 0
    if sieve is None or buf.shape[0] != 4096 * n:
        raise ValueError("buf must hold 4096 bytes for each entry of found")
    with nogil:
        for i in range(n):
            found[i] = 1 if sieve.told(&buf[4096 * i]) else 0
            count += found[i]
    return count
