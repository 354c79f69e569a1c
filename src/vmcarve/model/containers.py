"""Containers: their guests, what they name, and what they must be written with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .grades import PROVEN, SUPPORTED
from .maps import DATA, EXTERNAL, GuestMap


@dataclass(frozen=True, slots=True)
class ParentLink:
    """What a child layer says of its parent. Names are shown, never opened.

    identity: the parent's identity (one of its `Container.identities`) or None when the format records only a name;
    name: base name or path as stored in evidence, or None.
    """

    identity: str | None
    name: str | None
    detail: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Member:
    """Another file that this container refers to (VMDK extent, data file), or a file inside an archive.

    guest_offset/length: bytes of the guest disk it holds (length 0 if not guest data); file_offset: first byte used
    in that file, or the member's place inside the archive; kind: "sparse", "flat", "zero", "data-file", "tar".
    """

    name: str
    kind: str
    guest_offset: int = 0
    length: int = 0
    file_offset: int = 0


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes that the written container must hold instead of what lies on the image, and why.

    reason: "reference" (a name emptied so that no program follows it), "rebuilt" (a structure that we wrote),
    "log-replay", "inline" (read where the host keeps small files, in its metadata; names in it are emptied likewise).
    `grade` is what may be claimed of rebuilt bytes: that the original held the same. Bytes of the other reasons need
    not be the original's, and are graded guessed whatever stands here.
    """

    file_offset: int
    data: bytes
    reason: str
    grade: str = PROVEN


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant of the format, tested on this container.

    grave: whether its failure puts the guest map in doubt (a damaged table does, a lost copy of a header does not).
    """

    name: str
    ok: bool
    detail: str = ""
    grave: bool = True


@dataclass(slots=True)
class Region:
    """A range of the container file that holds the format's own structures (everything else is payload or slack)."""

    file_offset: int
    length: int
    kind: str
    grade: str = SUPPORTED  # PROVEN only when a checksum or cross reference covers all of it


@dataclass(slots=True)
class GuestDisk:
    """One disk that a container holds: kind "active" (the current state), "snapshot" or "member" (of an archive).

    guessed: no table says which part of the disk is which of the file, so a stream that decodes proves no place.
    """

    virtual_size: int
    map: GuestMap
    kind: str = "active"
    label: str = ""
    created: float | None = None  # Unix seconds UTC
    guessed: bool = False


@dataclass(slots=True)
class Container:
    """An opened container: everything that `Format.open` learnt. file offsets count from the container's first byte.

    size: length of the container file in bytes as its own structures tell (at least the end of the last thing they
    name); size_exact: False when a tail may follow that nothing names. identities: names by which children call this
    layer. cluster: the allocation unit in bytes (grain, block, cluster), 0 for flat. rebuild: False for archives whose
    disks are written as raw instead of the archive itself. relink(old name -> (new name, byte in that file)) gives a
    text container anew, its references led to files of the same case.
    """

    format: str
    variant: str
    size: int
    guests: list[GuestDisk]
    system: str = ""
    cluster: int = 0
    size_exact: bool = True
    uuid: str | None = None
    identities: list[str] = field(default_factory=list[str])
    parent: ParentLink | None = None
    names: list[str] = field(default_factory=list[str])
    members: list[Member] = field(default_factory=list[Member])
    regions: list[Region] = field(default_factory=list[Region])
    patches: list[Patch] = field(default_factory=list[Patch])
    checks: list[Check] = field(default_factory=list[Check])
    detail: dict[str, str] = field(default_factory=dict[str, str])
    rebuild: bool = True
    extension: str | None = None  # file extension when it differs from the format's
    # for small text containers: the whole file with members (and parent) under the names that they have in the case
    relink: Callable[[Mapping[str, tuple[str, int]]], bytes] | None = None

    @property
    def virtual_size(self) -> int:
        return self.guests[0].virtual_size if self.guests else 0

    @property
    def holds_data(self) -> bool:
        """Whether the tables name data, here or in another file. Those that lie elsewhere may read as empty."""
        return any(bool(((g.map.state == DATA) | (g.map.state == EXTERNAL)).any()) for g in self.guests)
