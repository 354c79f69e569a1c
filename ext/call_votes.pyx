"""call_votes: for each block of code, the page of a program in which most of its calls lead to where functions begin.

in   cut int64[b + 1]: the targets of block i are target[cut[i] .. cut[i + 1]), rising
     target int64[n]: where each call leads, from the begin of its block; of one block all different
     head int64[4097]: the functions that begin at byte r of a page are start[head[r] .. head[r + 1])
     start int64[f]: where each begins, as if its file's byte 0 lay at 0; owner int64[f]: its program
     page int64[p], count int64[p], first int64[p]: of each program, its first page of code in the file, how many there
     are, and the number of the first one among all programs' pages
     votes uint64[t]: zeros, one for each page of all programs; used up
out  best int64[b]: the page with most votes, one of several, -1 without any; most, next int64[b]: its votes, and the
     most that another has
Raises ValueError for arrays whose lengths or contents disagree. Reference: tests/reference/call_votes.py
"""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    PAGE = 4096
    COUNT_BITS = 16     # of an entry of votes; above them the block that the count is of: nothing is set back


cpdef int call_votes(const int64_t[::1] cut, const int64_t[::1] target, const int64_t[::1] head,
                     const int64_t[::1] start, const int64_t[::1] owner, const int64_t[::1] page,
                     const int64_t[::1] count, const int64_t[::1] first, uint64_t[::1] votes, int64_t[::1] best,
                     int64_t[::1] most, int64_t[::1] next) except -1:
    cdef Py_ssize_t b = best.shape[0], f = start.shape[0], p = page.shape[0], i, j, k
    cdef int64_t number, of, one, two, top, r
    cdef uint64_t stamp, told
    if cut.shape[0] != b + 1 or most.shape[0] != b or next.shape[0] != b:
        raise ValueError(f"cut, most and next do not fit {b} blocks")
    if head.shape[0] != PAGE + 1 or owner.shape[0] != f or count.shape[0] != p or first.shape[0] != p:
        raise ValueError("head, owner, count or first has another length than what it goes with")
    if cut[0] < 0 or cut[b] > target.shape[0] or head[0] < 0 or head[PAGE] > f:
        raise ValueError("cut or head leads outside its array")
    for i in range(b):
        if not 0 <= cut[i + 1] - cut[i] < 1 << COUNT_BITS:
            raise ValueError(f"block {i} has {cut[i + 1] - cut[i]} targets")
    for i in range(PAGE):
        if head[i + 1] < head[i]:
            raise ValueError("head falls")
    for i in range(f):
        if not 0 <= owner[i] < p:
            raise ValueError(f"a function belongs to program {owner[i]} of {p}")
    for i in range(p):
        if first[i] < 0 or count[i] < 0 or first[i] + count[i] > votes.shape[0]:
            raise ValueError(f"the pages of program {i} lie outside votes")
    with nogil:     # in bounds: all of the above, and 0 <= r < PAGE, 0 <= number < count
        for i in range(b):
            top, one, two = -1, 0, 0
            stamp = <uint64_t> (i + 1) << COUNT_BITS
            for j in range(cut[i], cut[i + 1]):
                r = target[j] & (PAGE - 1)
                for k in range(head[r], head[r + 1]):
                    of = owner[k]
                    number = ((start[k] - target[j]) >> 12) - page[of]
                    if number < 0 or number >= count[of]:
                        continue
                    number += first[of]
                    told = votes[number]
                    told = (told if told >> COUNT_BITS == <uint64_t> (i + 1) else stamp) + 1
                    votes[number] = told
                    told &= (1 << COUNT_BITS) - 1
                    if number == top:
                        one = <int64_t> told
                    elif <int64_t> told > one:
                        top, two, one = number, one, <int64_t> told
                    elif <int64_t> told > two:
                        two = <int64_t> told
            best[i], most[i], next[i] = top, one, two
    return 0
