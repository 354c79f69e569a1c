"""The plain meaning of ext/delta_path.pyx: one block after another, one state after another, in Python numbers."""

from __future__ import annotations

NEVER = -1e9


def delta_path(expected, full, others, delta, start, pinned, cost, round_blocks):  # noqa: ANN001, ANN201
    """(actions[n][k], jump_from[n], last state)."""
    m, k = len(full), len(delta)
    score, hole = [NEVER] * k, [False] * k
    score[start] = 0.0
    actions, jumps = [], []
    at = {d: s for s, d in enumerate(delta)}
    for f, cls in enumerate(expected):
        def ours(p: int) -> bool:
            return 0 <= p < m and bool(full[p]) and not others[p]

        ends = [score[s] + (cost[10] if ours(f + d) else 0.0) for s, d in enumerate(delta)]
        best = max(range(k), key=lambda s: (ends[s], -s))
        new, holes, acts = [], [], []
        for s, d in enumerate(delta):
            p = f + d
            if not 0 <= p < m or others[p]:
                place = cost[8]
            else:
                place = [0.0 if full[p] else cost[0], cost[1] if full[p] else cost[2], cost[3]][cls]
            ways = [(score[s], 0, 0), (ends[best] + cost[9] + (cost[11] if f % round_blocks == 0 else 0.0)
                                       + (cost[10] if ours(p - 1) else 0.0), 1, 4)]
            base, _, act = max(ways)
            if d - 1 in at and score[at[d - 1]] + cost[12] > base:
                base, act = score[at[d - 1]] + cost[12], 3
            total, reached = base + place, act
            here = score[s] + cost[4 + cls] + cost[14] + (0.0 if hole[s] else cost[7])
            if here > total:
                total, act = here, 1
            if d + 1 in at:
                t = at[d + 1]
                still = score[t] + cost[4 + cls] + (0.0 if hole[t] else cost[7])
                if still > total:
                    total, act = still, 2
            if pinned[f] >= 0:
                total, act = (base + cost[13], reached) if pinned[f] == s else (NEVER, act)
            new.append(total)
            holes.append(act in (1, 2))
            acts.append(act)
        score, hole = new, holes
        actions.append(acts)
        jumps.append(best)
    return actions, jumps, max(range(k), key=lambda s: (score[s], -s))
