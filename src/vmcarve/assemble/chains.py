"""Layers and members: which assembled container is the parent, or the extent file, of which."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..model import Reader
from .members import fits, join_nameless
from .state import Assembled, Joined

MAX_DEPTH = 64  # ours: layers of a snapshot chain


def base_name(path: str) -> str:
    """The last part of a path in any system's spelling, lower case: what names of one file have in common."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1].lower()


def link(images: Sequence[Reader], items: list[Assembled]) -> None:
    """Sets `parent` and `members` of every item that names others. A loop or an endless chain is cut."""
    by_identity: dict[str, list[Assembled]] = {}
    by_name: dict[str, list[Assembled]] = {}
    for item in items:
        for identity in item.container.identities:
            by_identity.setdefault(identity, []).append(item)
        for name in item.names:
            by_name.setdefault(base_name(name), []).append(item)
    nameless: set[int] = set()  # ids of what is an extent of one of them by what the guest says: it is no other's
    for item in items:
        _link_parent(item, by_identity, by_name)
        _link_members(images, item, items, by_name, nameless)
    for item in items:
        seen = {item.disk_id}
        at = item
        while at.parent is not None:
            if at.parent.disk_id in seen or len(seen) > MAX_DEPTH:
                at.parent = None
                break
            at = at.parent
            seen.add(at.disk_id)


def _link_parent(item: Assembled, by_identity: dict[str, list[Assembled]],
                 by_name: dict[str, list[Assembled]]) -> None:
    said = item.container.parent
    if said is None:
        return
    found = [p for p in by_identity.get(said.identity or "", []) if p is not item]
    named = [p for p in by_name.get(base_name(said.name), []) if p is not item] if said.name else []
    both = [p for p in found if any(p is q for q in named)]
    choice = both or found or (named if said.identity is None else [])
    sized = [p for p in choice if p.container.virtual_size == item.container.virtual_size]
    item.parent = _best(item, sized or choice)


def _link_members(images: Sequence[Reader], item: Assembled, items: list[Assembled],
                  by_name: dict[str, list[Assembled]], nameless: set[int]) -> None:
    used: set[int] = set()
    for member in item.container.members:
        if member.length <= 0 or member.kind in ("zero", "tar"):
            continue
        named = [m for m in by_name.get(base_name(member.name), []) if m is not item and id(m) not in used]
        choice = _best(item, [m for m in named if fits(m, member)])
        if choice is not None:
            used.add(id(choice))
            item.members.append(Joined(member, choice))
    join_nameless(images, item, items, nameless)


def _best(item: Assembled, choice: list[Assembled]) -> Assembled | None:
    """The one of the same image and the same state on the host, nearest in the image."""
    def distance(other: Assembled) -> tuple[bool, bool, int]:
        return (other.source != item.source, other.deleted != item.deleted,
                abs((other.header_offset or 0) - (item.header_offset or 0)))

    return min(choice, key=distance, default=None)
