"""What lies right before where a run begins: on most hosts the last block of another file, zeros from its end on.

How often a run of this image begins behind such a block is estimated from the begins that are known, to a few blocks at
most: the containers' first bytes, and breaks between points that hardly leave a choice. Among few places the true one
cannot be told, so all are counted by how likely each is, by the share that follows from that (expectation and
maximization). Where files are whole blocks, or pieces follow each other without a host, the share comes out as that of
any block, and says nothing. How often a run ends just where another is known to begin is counted on breaks that are
known as well: hosts give out space without gaps, other images are pieces with anything between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Signs = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
NO, YES, OPEN = 0, 1, 2
SLACK = 16  # bytes of zeros at the end of a block that others may have ended in
MOST_PLACES = 8  # of a begin that is known
FEW = 8  # begins that must be known before they tell of others
MOST_OPEN = 3  # places of an end and a begin between two points for them to tell whether runs meet
USUAL = 4  # ends that would outweigh what is usual
ROUNDS = 12
LEAST, MOST = 0.02, 0.95  # a share is never surer


def slack(tails: npt.NDArray[np.uint16]) -> Signs:
    """uint8[n]: whether the data of each block end before it does, OPEN where there are none.

    tails uint16[n, sectors]: where the data of each sector end, see sector_tails.
    """
    sector = 512
    return np.where(tails.any(axis=1), tails[:, -1] <= sector - SLACK, OPEN).astype(np.uint8)


def share(places: Sequence[Signs], chance: float) -> float:
    """Of the begins of runs, how many have the sign before them; `chance`, where too few are known.

    places: of each known begin, the signs of the places that it may have. chance: of the blocks of the image that hold
    something, how many have the sign.
    """
    known = [p for p in places if len(p) <= MOST_PLACES and (p != OPEN).any()]
    if len(known) < FEW:
        return chance
    start = np.cumsum([0, *(len(p) for p in known[:-1])])
    sign = np.concatenate(known)
    which = np.repeat(np.arange(len(known)), [len(p) for p in known])
    out = 0.5
    for _ in range(ROUNDS):
        mass = np.exp(nats(out, chance))[sign]
        mass /= np.add.reduceat(mass, start)[which]
        out = float(np.clip(mass[sign == YES].sum() / max(1e-9, mass[sign != OPEN].sum()), LEAST, MOST))
    return out


def nats(share: float, chance: float) -> Floats:
    """float64[3]: how much likelier each sign is before a begin than before any block."""
    share, chance = np.clip([share, chance], LEAST, 1 - LEAST).tolist()
    return np.array([np.log((1 - share) / (1 - chance)), np.log(share / chance), 0.0])


def meets(breaks: Sequence[tuple[int, int, int]], usual: float) -> float:
    """The share of the runs that end just where another one is known to begin.

    breaks: the image block behind a run's end, that with the begin of the run that goes on, and how many blocks farther
    both may be; those that are known best tell. usual: the share where few or none tell.
    """
    known = np.array([b for b in breaks if b[2] < MOST_OPEN], np.int64).reshape(-1, 3)
    end, begin = known[:, 0], np.sort(known[:, 1])
    there = np.searchsorted(begin, end + MOST_OPEN) > np.searchsorted(begin, end - MOST_OPEN + 1)
    return float(np.clip((np.count_nonzero(there) + USUAL * usual) / (len(known) + USUAL), LEAST, MOST))
