"""call_votes in plain Python: see ext/call_votes.pyx for the contract."""

from __future__ import annotations

from collections import Counter


def call_votes(blocks: list[list[int]], programs: list[tuple[list[int], int, int]]
               ) -> list[tuple[list[tuple[int, int]], int, int]]:
    """For each block (targets): (the pages with most votes, as (program, page of its code)), their votes, and the most
    of any other than one of these. programs: (functions' starts, first page of code, pages of code).
    """
    out: list[tuple[list[tuple[int, int]], int, int]] = []
    for targets in blocks:
        votes: Counter[tuple[int, int]] = Counter()
        for target in targets:
            for k, (starts, page, count) in enumerate(programs):
                for start in starts:
                    number = (start - target) // 4096 - page
                    if (start - target) % 4096 == 0 and 0 <= number < count:
                        votes[k, number] += 1
        ranked = sorted(votes.values(), reverse=True)
        most = ranked[0] if ranked else 0
        out.append(([p for p, v in votes.items() if v == most], most, ranked[1] if len(ranked) > 1 else 0))
    return out
