"""delta_path: the cheapest way of laying file blocks over image blocks, one delta (image - file block) after another.

in   expected uint8[n]: class 0 used, 1 free, 2 unknown of each file block
     full uint8[m], others uint8[m]: the image block holds something; is owned by somebody else
     delta int64[k], strictly rising: the states; start: the state before the first block
     pinned int64[n]: the state that block f must have, -1 where it is free
     cost float64[15]: see COSTS in assemble/align.py, in that order
out  action uint8[n, k]: 0 placed, 1 a hole of the file with the image going on, 2 a hole with the image standing still,
     3 placed behind one foreign block, 4 placed after a jump; jump_from int32[n]: the state a jump at f comes from
returns the state of the last block. All arrays are borrowed; score and hole are scratch, float64[2, k] and uint8[2, k].
Every cell is written once: n * k steps. Ties: a jump wins over staying (late breaks), all else over nothing.
Reference: tests/reference/delta_path.py
"""

from libc.stdint cimport int32_t, int64_t, uint8_t


cpdef Py_ssize_t delta_path(const uint8_t[::1] expected, const uint8_t[::1] full, const uint8_t[::1] others,
                            const int64_t[::1] delta, Py_ssize_t start, const int64_t[::1] pinned,
                            const double[::1] cost, Py_ssize_t round_blocks, uint8_t[:, ::1] action,
                            int32_t[::1] jump_from, double[:, ::1] score, uint8_t[:, ::1] hole) except -1:
    cdef Py_ssize_t n = expected.shape[0], m = full.shape[0], k = delta.shape[0]
    cdef Py_ssize_t f, s, best, now = 0, then = 1
    cdef int64_t p
    cdef uint8_t act, reached, taken, holds
    cdef double place, base, total, ends, best_ends, jump, way, round_bonus, hole_cost
    if k < 1 or m < 1 or others.shape[0] != m or pinned.shape[0] != n or jump_from.shape[0] != n:
        raise ValueError("arrays do not have the lengths n, m and k that belong together")
    if action.shape[0] != n or action.shape[1] != k or score.shape[0] != 2 or score.shape[1] != k:
        raise ValueError("action must be uint8[n, k], score float64[2, k]")
    if hole.shape[0] != 2 or hole.shape[1] != k or cost.shape[0] != 15 or not 0 <= start < k or round_blocks < 1:
        raise ValueError("hole must be uint8[2, k], cost float64[15], start a state")
    with nogil:
        # in bounds: image blocks are looked at only where 0 <= p < m (p - 1: p > 0); states s - 1 and s + 1 only inside
        # [0, k); classes above 2 count as 2; pinned states are compared, never used as an index
        for s in range(k):
            score[now, s] = -1e9
            hole[now, s] = 0
        score[now, start] = 0.0
        for f in range(n):
            best = 0
            best_ends = -1e300
            for s in range(k):  # where a jump would come from: best where the run ends by itself
                p = f + delta[s]
                ends = score[now, s]
                if 0 <= p < m and full[p] and not others[p]:
                    ends += cost[10]
                if ends > best_ends:
                    best_ends = ends
                    best = s
            jump_from[f] = <int32_t> best
            round_bonus = cost[11] if f % round_blocks == 0 else 0.0
            hole_cost = cost[4] if expected[f] == 0 else (cost[5] if expected[f] == 1 else cost[6])
            for s in range(k):
                p = f + delta[s]
                taken = 1
                holds = 0
                if 0 <= p < m:
                    taken = others[p]
                    holds = full[p]
                if taken:
                    place = cost[8]
                elif expected[f] == 0:
                    place = 0.0 if holds else cost[0]
                elif expected[f] == 1:
                    place = cost[1] if holds else cost[2]
                else:
                    place = cost[3]
                base = score[now, s]
                act = 0
                jump = best_ends + cost[9] + round_bonus
                if 0 < p <= m and full[p - 1] and not others[p - 1]:
                    jump += cost[10]
                if jump >= base:
                    base = jump
                    act = 4
                if s > 0 and delta[s - 1] == delta[s] - 1:
                    way = score[now, s - 1] + cost[12]
                    if way > base:
                        base = way
                        act = 3
                reached = act
                total = base + place
                way = score[now, s] + hole_cost + cost[14] + (0.0 if hole[now, s] else cost[7])
                if way > total:
                    total = way
                    act = 1
                if s + 1 < k and delta[s + 1] == delta[s] + 1:
                    way = score[now, s + 1] + hole_cost + (0.0 if hole[now, s + 1] else cost[7])
                    if way > total:
                        total = way
                        act = 2
                if pinned[f] >= 0:
                    if pinned[f] == s:
                        total = base + cost[13]
                        act = reached
                    else:
                        total = -1e9
                score[then, s] = total
                hole[then, s] = act == 1 or act == 2
                action[f, s] = act
            now = then
            then = 1 - now
        best = 0
        for s in range(k):
            if score[now, s] > score[now, best]:
                best = s
    return best
