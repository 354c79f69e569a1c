"""What one module of host/ offers: file systems that hold containers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .evidence import Confirm, ConfirmBatch, Evidence, Signature
from .guests import Begin, Cut
from .reader import Reader

RUN_DATA, RUN_HOLE, RUN_UNWRITTEN, RUN_INLINE, RUN_REUSED, RUN_CHECKED = 0, 1, 2, 3, 4, 5


@dataclass(slots=True)
class HostFile:
    """A file of the host, live or deleted, as its metadata or their remnants tell.

    runs int64[n, 4]: file_offset, image_offset (-1 for holes), length in bytes, one of RUN_*; rising and without
    overlap in file_offset; gaps between rows are holes. RUN_UNWRITTEN: allocated but never written (reads as zeros).
    RUN_REUSED: another file's after it was this one's. RUN_CHECKED: a checksum that the host keeps covers these bytes.
    size: bytes, -1 when lost. name: path inside the volume if known, else "". origin: rule that gave the runs, e.g.
    "ext4.inode", "ext4.extent-leaf", "ext4.journal". complete: False when parts of the map are known to be lost.
    certain: False when the runs are inferred (a first cluster and a size, slots behind a leaf's end), not recorded.
    settled: what others wrote over since is known from the host's own records, and has rows of RUN_REUSED.
    check: the runs again, tested against the host's checksums (which reads the content).
    number: of its inode or record, -1 where that is lost. born, last: it allocated no block before the one and none
    after the other, by a clock of the volume (Unix seconds, generations); the defaults say that nobody knows.
    """

    identity: str  # e.g. "inode 12", "mft 64-3"
    name: str
    size: int
    deleted: bool
    runs: npt.NDArray[np.int64]
    origin: str
    complete: bool = True
    times: dict[str, float] = field(default_factory=dict[str, float])  # Unix seconds UTC
    inline: bytes | None = None  # content when it lies inside the metadata itself (at most some KiB)
    certain: bool = True
    settled: bool = False
    check: Callable[[], npt.NDArray[np.int64]] | None = None
    number: int = -1
    born: float = -math.inf
    last: float = math.inf


class HostVolume(Protocol):
    """A host file system, opened read-only through a Reader. Offsets are image offsets.

    derived, asked after `free`: its own map of what is free is lost, and `free` went by other means: files that are
    lost too have nothing there.
    """

    name: str
    offset: int
    size: int
    block_size: int
    uuid: str
    label: str
    derived: bool

    def free(self) -> npt.NDArray[np.int64]:
        """int64[n, 2]: image_offset, length of space that the file system holds free, rising."""
        ...

    def files(self) -> Iterator[HostFile]:
        """Every regular file: live ones, then deleted ones with whatever map survives (best candidate first)."""
        ...

    def live(self) -> Iterator[HostFile]:
        """The live ones of `files`, in its order, perhaps without names: folders and deleted files are not read."""
        ...

    def quiet_since(self) -> float:
        """By the clock of HostFile.born: all files that had blocks after this time are among `files`.

        Before it, a file may have come and gone whose inode, record or entry another one has now. Asked after `files`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Placer:
    """How the loose metadata of one volume places itself: by its own number or address, under an identity or checksum.

    find(uint8[m]) -> (position int64[k] in the array, volume_offset int64[k]) of structures at multiples of 256 bytes.
    key: changes when more of the volume is known, and `find` may find more. bits: what one structure is worth, less
    where nothing in it names its volume. length: bytes of a structure, where it takes several blocks.
    bounded: of structures that do not name their volume, only those are found that it can have.
    """

    key: str
    find: Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
    bits: float = 40.0
    length: int = 0
    bounded: bool = False


@dataclass(frozen=True, slots=True)
class DataSums:
    """Checksums that a volume keeps of its data: CRC-32C of `sector` bytes each.

    volume_offset int64[n], rising; crc uint32[n]; current bool[n]: False where it was stated once, of what is free now.
    """

    sector: int
    volume_offset: npt.NDArray[np.int64]
    crc: npt.NDArray[np.uint32]
    current: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class HostKind:
    """What one module of host/ offers. open(reader, offset, limit) -> the volume starting at `offset`, or None.

    carve(reader, evidence, offset, limit): maps that survive without the superblock (found by the sweep), or None.
    placer(reader, offset, limit): how loose metadata of the volume at `offset` places itself, None without a volume.
    former(reader, offset, limit): the volume that its superblock's copies tell of, whatever begins at `offset` now.
    tell(volume, image_offset int64[n]): where a sweep of all free space found what the first of `signatures` stands
    for, so that `files` need not look for it; any volume may be given.
    sums(reader, offset, limit): what the volume at `offset` states of its data, None without a volume.
    fills(reader, offset, limit): int64[n, 3] of offset, length and byte: parts of the volume's own files that hold
    nothing but that byte unless somebody wrote there since.
    logged(data uint8[n], at int64[k]): which of these positions in data hold copies in a log of what belongs elsewhere.
    begins(reader, evidence, cut): what volumes begin with of which only loose metadata is left, no copy of what begins
    them, and what a log of theirs has of their metadata. guest: the module of guest/ for the same file system, where
    that has another name.
    elsewhere(volume, reader): live files of a volume of this kind that its metadata tells of, wherever in `reader` that
    lies: for a volume whose blocks lie there in no known order.
    """

    name: str
    open: Callable[[Reader, int, int], HostVolume | None]
    carve: Callable[[Reader, Sequence[Evidence], int, int], Iterable[HostFile]] | None = None
    former: Callable[[Reader, int, int], HostVolume | None] | None = None
    tell: Callable[[HostVolume, npt.NDArray[np.int64]], None] | None = None
    signatures: tuple[Signature, ...] = ()
    confirm: Confirm | None = None
    confirm_batch: ConfirmBatch | None = None
    placer: Callable[[Reader, int, int], Placer | None] | None = None
    sums: Callable[[Reader, int, int], DataSums | None] | None = None
    fills: Callable[[Reader, int, int], npt.NDArray[np.int64]] | None = None
    logged: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64]], npt.NDArray[np.bool_]] | None = None
    begins: Callable[[Reader, Sequence[Evidence], Cut], Iterable[Begin]] | None = None
    elsewhere: Callable[[HostVolume, Reader], Iterable[HostFile]] | None = None
    guest: str = ""
