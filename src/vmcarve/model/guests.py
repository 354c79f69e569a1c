"""What one module of guest/ offers: file systems and partition schemes inside disks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .evidence import Confirm, ConfirmBatch, Signature
from .reader import Reader


@dataclass(slots=True)
class Volume:
    """A partition table or a file system found at `offset` of a disk, as told by its own structures (bytes)."""

    kind: str  # "gpt", "mbr", "ext4", "ntfs", ...
    offset: int
    size: int
    label: str = ""
    uuid: str = ""
    consistent: bool | None = None  # None: not checked
    detail: str = ""
    partitions: list[tuple[int, int, str]] = field(default_factory=list[tuple[int, int, str]])  # offset, size, type


@dataclass(frozen=True, slots=True)
class Begin:
    """What a volume begins with, as a copy of its first structure tells (`GuestKind.begin`).

    data: the bytes from the volume's start on, b"" where they are not known. before: bytes of the disk before the
    volume, -1 not stated. copy: where in the volume the copy lies when nothing beside it tells, -1 where the evidence
    states it. also: (kind, value, places in the volume) of other evidence, which lies at one of these places. size,
    identity: of the volume, where no evidence of it says so; one without identity is a guess that nothing names.
    stated: (image offset, place in the volume) of structures that tell where they lie. parts: (place in the volume,
    bytes) of other metadata, as a log has it: for where it is lost.
    """

    data: bytes
    before: int = -1
    copy: int = -1
    also: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    size: int = 0
    identity: str = ""
    stated: tuple[tuple[int, int], ...] = ()
    parts: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Cut:
    """How a disk is cut into units, of which a reader has some, each as a whole, one behind the other in any order.

    unit: bytes of each. rooms: (offset, length) of the partitions that the disk has, none where no table is known.
    gapless: no unit was left out because nothing tells where it lies; units of zeros may be. named: (module, identity)
    of the volumes of which the units have a structure that bears their name.
    """

    unit: int
    rooms: tuple[tuple[int, int], ...] = ()
    gapless: bool = False
    named: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class GuestKind:
    """What one module of guest/ offers.

    probe(reader, offset, limit): the volume or partition table that starts at `offset` of a disk, or None; `limit` is
    the number of bytes up to the partition's (or disk's) end. It checks consistency cheaply (superblock copies, group
    descriptors, checksums; at most some hundred reads).
    begin(reader, offset): what a volume begins with, by the structure at `offset` that evidence names; None when that
    is none.
    types: of partitions, as tables are told here, that are made for such volumes and are nobody's default.
    """

    name: str
    signatures: tuple[Signature, ...]
    probe: Callable[[Reader, int, int], Volume | None]
    confirm: Confirm | None = None
    confirm_batch: ConfirmBatch | None = None
    begin: Callable[[Reader, int], Begin | None] | None = None
    types: frozenset[str] = frozenset()
