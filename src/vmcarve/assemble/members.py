"""The extent files of a disk that is described by a text, when no host tells their names.

Extents of one size look alike: which is which is told by the guest, whose files end where they should in one order
only. A flat disk in several extents lies on the image as a raw disk, found by its own structures as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, permutations

from ..disk import VirtualDisk
from ..model import GuestMap, Member, Reader
from ..verify import disk as verified  # the module: it imports this package, and may not be whole yet
from ..verify.guest import describe
from .asked import asked
from .state import Assembled, Joined
from .tails import FileEnds, agree, file_ends, open_volumes

MAX_ORDERS = 120  # ours: orders of extents of one size that are tried


def fits(candidate: Assembled, member: Member) -> bool:
    """Whether a disk has the size that the extent should have."""
    size = candidate.container.virtual_size
    return candidate.container.guests != [] and size >= member.file_offset + member.length and (
        size - member.file_offset - member.length < 1 << 20)


def join_nameless(images: Sequence[Reader], item: Assembled, items: list[Assembled], used: set[int]) -> None:
    """Joins members that have no name to be known by. used: ids of the items that are such members already; grows."""
    open_ = [m for m in item.container.members if m.length > 0 and m.kind not in ("zero", "tar")
             and all(m is not j.member for j in item.members)]
    free = [c for c in items if c is not item and id(c) not in used and not c.names and c.source == item.source]
    whole = _whole(item, open_, free)
    if whole is not None:
        used.add(id(whole))
        item.members += [Joined(replace(m, file_offset=m.guest_offset), whole) for m in open_]
        return
    lengths = sorted({m.length for m in open_}, reverse=True)  # the end alone tells nothing, beside the rest it may
    while lengths:
        left: list[int] = []
        for length in lengths:
            places = [m for m in open_ if m.length == length]
            alike = sorted((c for c in free if id(c) not in used and fits(c, places[0])),
                           key=lambda c: c.header_offset or 0)
            chosen = alike if len(places) == len(alike) == 1 else _best_order(images, item, places, alike)
            used.update(id(c) for c in chosen)
            item.members += [Joined(m, c) for m, c in zip(places, chosen, strict=False)]
            left += [] if chosen else [length]
        if left == lengths:
            break  # what was joined may tell of the rest, else nothing does
        lengths = left


def _whole(item: Assembled, members: list[Member], free: list[Assembled]) -> Assembled | None:
    """The one raw disk of the size of all members of a flat disk."""
    if len(members) < 2 or len(members) < len(item.container.members) or any(m.kind != "flat" for m in members):
        return None
    found = [c for c in free if c.container.format == "raw"
             and c.container.virtual_size == item.container.virtual_size]
    return found[0] if len(found) == 1 else None


def _best_order(images: Sequence[Reader], item: Assembled, places: list[Member], alike: list[Assembled]
                ) -> Sequence[Assembled]:
    """The candidates in the order in which the guest agrees with itself best; [] where nothing tells."""
    orders = list(islice(permutations(alike, len(places)), MAX_ORDERS + 1))
    if not 0 < len(orders) <= MAX_ORDERS:
        return []
    before = item.members
    scores: list[int] = []
    for order in orders:
        item.members = [*before, *(Joined(m, c) for m, c in zip(places, order, strict=True))]
        scores.append(_agreement(verified.guest_disk(list(images), item, item.container.guests[0])))
    item.members = before
    best = max(scores)
    return orders[scores.index(best)] if best > 0 and scores.count(best) == 1 else []


def _agreement(disk: VirtualDisk) -> int:
    """File ends of the guest that lie where they should, less those that cannot; and its tables and volumes that agree
    with themselves, as a table does with its copy at the disk's end.
    """
    def read() -> tuple[FileEnds, int]:
        found = describe(disk)
        spans = [(offset, length) for v in found for offset, length, _ in v.partitions] or [(0, disk.size)]
        ends = file_ends(open_volumes(disk, spans), GuestMap.flat(disk.size))
        return ends, sum(v.consistent is True for v in found)

    ends, sound = asked(read, (FileEnds.none(), 0))
    right, wrong = agree(disk, ends.file_offset, ends)
    return right - wrong + sound
