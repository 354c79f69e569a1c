"""The plain meaning of ext/unit_chances.pyx: the same sums as logarithms, a row at a time."""

from __future__ import annotations

import numpy as np

NEVER = -1e9


def unit_chances(weight, hole, joined, beside, follows, none, jump, near=0.0, stray=1.0):  # noqa: ANN001, ANN201
    """(chance[n, m], log of the sum over all orders, how many units the guest's next is expected to follow)."""
    n, m = weight.shape
    rising = len(hole) > 0
    skipped = np.concatenate(([0.0], np.cumsum(hole))) if rising else np.zeros(m + 1)  # before unit j
    start = skipped if rising else np.append(np.full(m, -np.log(m)), NEVER)
    after = np.where(np.append(True, beside), np.log(follows), NEVER)  # unit j comes after the one before it
    # by the place that would be next and the one that is: how likely a jump is there
    away = np.abs(np.arange(m + 1)[:, None] - np.arange(m))
    close = (1 - stray) * (1 - near) / (1 + near) * near**away if near else 0.0 * away
    step = np.log(jump * (stray / m + close))
    forward, unseen = [start[:m] + weight[0]], np.log(none) + start
    for i in range(1, n):
        row = forward[-1]
        here = np.logaddexp(np.append(NEVER, row[:-1] + joined[i - 1]), unseen[:m]) + after
        if rising:
            both = np.logaddexp(np.append(NEVER, row), unseen) - skipped  # by the unit that would be next
            leap = np.append(NEVER, np.logaddexp.accumulate(both)[:-2]) + skipped[:-1] + np.log(jump)
        else:
            leap = np.logaddexp.reduce(np.logaddexp(np.append(NEVER, row), unseen)[:, None] + step, axis=0)
        forward.append(np.logaddexp(here, leap) + weight[i])
        unseen = np.append(unseen[0], np.logaddexp(row, unseen[1:])) + np.log(none)
    out = skipped[-1] - skipped
    back = out[1:]
    whole = float(np.logaddexp.reduce(np.append(forward[-1] + back, unseen + out)))
    chance = [np.exp(forward[-1] + back - whole)]
    followed = 0.0
    for i in range(n - 2, -1, -1):
        ahead = weight[i + 1] + back
        onward = np.append(ahead[1:] + after[1:] + joined[i], NEVER)  # place j goes on with j + 1
        followed += float(np.exp(forward[i] + onward - whole).sum())
        if rising:
            behind = np.logaddexp.accumulate((ahead + skipped[:-1])[::-1])[::-1]
            leap = np.append(behind[1:], [NEVER, NEVER]) - skipped + np.log(jump)
        else:
            leap = np.logaddexp.reduce(ahead + step, axis=1)
        back = np.logaddexp(np.logaddexp(onward, leap[1:]), out[1:] + np.log(none))
        out = np.logaddexp(np.logaddexp(np.append(ahead + after, NEVER), out + np.log(none)), leap)
        chance.append(np.exp(forward[i] + back - whole))
    return np.array(chance[::-1]), whole, followed
