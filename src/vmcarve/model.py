"""The Arrow schemas of a case and the few records that cross stages.

Three address spaces, never mixed: `image_offset` (the evidence), `file_offset` / `container_offset` (the container
file), `guest_offset` (the disk inside it). All in bytes. docs/tables.md is made from the schemas below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

SECTOR = 512

# --- grades: what may be claimed of a byte (docs/architecture.md) ------------------------------------------------
PROVEN = "proven"  # a checksum, a decoded stream, a pin or a verified table covers these very bytes
SUPPORTED = "supported"  # a host remnant that content agrees with, or between neighbouring pins of one delta
GUESSED = "guessed"  # continuity alone
MISSING = "missing"  # not found, unreadable or overwritten: written as a hole
ZERO = "zero"  # the container (or the host file) itself says zero / unallocated
PARENT = "parent"  # to be read from the parent disk of a snapshot chain
GRADES = (PROVEN, SUPPORTED, GUESSED, MISSING, ZERO, PARENT)


# --- reading -------------------------------------------------------------------------------------------------------
@runtime_checkable
class Reader(Protocol):
    """Random access to an address space: an image (image offsets) or a container through a map (file offsets).

    `read` never raises for an offset inside or beyond the space: it returns fewer bytes at the end (none beyond it,
    and none for a negative offset), and zeros where the bytes are missing; `missing` tells which those are.
    """

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def missing(self, offset: int, length: int) -> bool:
        """True if any byte of [offset, offset + length) is not there (unreadable, not found, or beyond the end)."""
        ...


# --- the sweep -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Signature:
    """A magic that the sweep looks for.

    magic: 2 to 16 fixed bytes, at byte `at` of the structure (the magic must lie inside one 512-byte sector).
    kind: what `confirm` would call it ("vdi.header"). Structures start at multiples of 512 bytes.
    dense: True when an image can hold hundreds of thousands of them; dense kinds are confirmed by
    `confirm_batch` only, arrays in, arrays out; `size` is then the number of bytes that it needs from the start.
    also: (at, mask, value), bytes elsewhere in the structure (1 to 16 of them) that must equal `value` under `mask`:
    what `confirm` asks for anyhow. The kernel tests it, so that a magic which stands there by chance, or in a text
    about formats, costs next to nothing. Its place counts from the structure's start, like the magic's.
    """

    magic: bytes
    kind: str
    at: int = 0
    dense: bool = False
    size: int = SECTOR
    also: tuple[int, bytes, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """One confirmed structure (one row of evidence.arrow). A magic alone is never evidence.

    container_offset: where in its container file these bytes lie (a pin), if the structure proves it.
    guest_offset: where on the guest disk they lie; volume_offset: where in their volume (partition) they lie.
    identity: UUID or other name that ties structures together; value: one number worth keeping (a size, a record
    number). confidence: 0..1, the reasons are in the module that confirmed it.
    """

    kind: str
    image_offset: int
    length: int
    container_offset: int | None = None
    guest_offset: int | None = None
    volume_offset: int | None = None
    identity: str | None = None
    value: int | None = None
    count: int = 1
    confidence: float = 1.0


@dataclass(slots=True)
class EvidenceBatch:
    """Confirmed structures of one dense kind, as arrays of equal length n.

    image_offset int64[n] rising; length int (bytes each); value int64[n] or None; volume_offset int64[n] (-1 unknown)
    or None; identity: list of n names, one name for all, or None; which int32[n]: where given, `identity` lists the
    names that are met and which[i] is the place there of structure i's.
    """

    kind: str
    image_offset: npt.NDArray[np.int64]
    length: int
    value: npt.NDArray[np.int64] | None = None
    volume_offset: npt.NDArray[np.int64] | None = None
    identity: Sequence[str] | str | None = None
    confidence: float = 1.0
    which: npt.NDArray[np.int32] | None = None


Confirm = Callable[[Reader, int, Signature], Evidence | None]
# (blocks: Blocks, read like uint8[n, signature.size]; image_offset int64[n]; signature) -> batch
ConfirmBatch = Callable[[Any, npt.NDArray[np.int64], Signature], EvidenceBatch | None]


# --- containers ----------------------------------------------------------------------------------------------------
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


@dataclass(frozen=True, slots=True)
class Orphan:
    """A container that no header names: its place follows from its other structures (see `Format.salvage`).

    runs int64[n, 3]: file_offset, image_offset, length (bytes) of the parts that are known.
    """

    container: Container
    runs: npt.NDArray[np.int64]
    evidence: str  # the rule, e.g. "vmdk.stream-markers"


@dataclass(slots=True)
class TablePieces:
    """Pieces of allocation tables of one kind, recognised by their shape alone, wherever they lie (`Format.shapes`).

    unit: guest bytes that one entry stands for. image_offset int64[m], rising. place int64[m, k]: where the unit that
    each entry names lies, in bytes from the container's origin, -1 where it names none. The unit number of entry e is
    e + phase modulo k; which multiple of k, the piece does not say. own int64[m]: where the piece itself lies from the
    origin, -1 where its shape does not tell. The origin is the container's first byte, or, for formats whose entries
    count from elsewhere, the point that they count from.
    """

    kind: str
    unit: int
    image_offset: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    own: npt.NDArray[np.int64]
    phase: int = 0


@dataclass(frozen=True, slots=True)
class RowRule:
    """Rows in which `Format.shapes` may find a piece: `width` bytes (512 or 4096), numbers of `size` (4 or 8), in the
    other byte order than the machine's where `swap`. illegal, low, high, unused, steps: see ext/legal_rows.h.
    """

    width: int
    size: int
    swap: bool
    illegal: int
    low: npt.NDArray[np.uint64]
    high: npt.NDArray[np.uint64]
    unused: npt.NDArray[np.uint8]
    steps: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class SectorBegin:
    """Sectors in which it may: their first 16 bytes are `value` under `mask`."""

    mask: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Clue:
    """What shapes and guest structures tell of a container whose header is lost (`Format.rebuild`).

    origin: image offset of the origin that `pieces` count from, at most 64 MiB before the image's begin; their `place`
    has no rows here. first int64[m]: unit number of each piece's first entry, -1 unknown; a guest structure that lies
    where the piece says proves it. size: bytes of the guest disk as its own structures say, 0 unknown.
    """

    origin: int
    size: int
    pieces: TablePieces
    first: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Stowed:
    """How a container whose header or tables are lost may hold its guest (`Format.stow`): in units, in an order that
    only the lost table told.

    unit: guest bytes of each, a multiple of 4096. map: where they lie, unit i from i times `unit` on in place of guest
    offsets, in the order in which the file gives them out; what is no unit but cannot be told from one may be among
    them. size: bytes of the guest disk, 0 unknown. in_order: the units themselves say which they are, and the map is
    the guest's. linear: it is the guest's too where a file of this kind is written out whole, zeros and all.
    """

    unit: int
    map: GuestMap
    size: int = 0
    in_order: bool = False
    linear: bool = False


@dataclass(frozen=True, slots=True)
class Want:
    """A block of 4096 bytes with tables, that a container must have at file_offset and does not have there.

    begins(at uint16[n], word uint64[n]) -> bool[n]: which blocks may be it, by the index of their first eight bytes
    that are not zero and those bytes as a little-endian number. fits(block) -> bits of evidence that it is this one, 0
    when it cannot be. empty: it may as well be zeros (the rest of a table), so where nothing fits it is taken as such.
    spare: many such blocks look alike, and the guest is read without it: what is found is no proof of a place.
    """

    file_offset: int
    kind: str
    begins: Callable[[npt.NDArray[np.uint16], npt.NDArray[np.uint64]], npt.NDArray[np.bool_]]
    fits: Callable[[bytes], float]
    empty: bool = False
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Tied:
    """Blocks with tables that tell each other's places (`Format.tied`).

    begins: see Want. place(blocks uint8[n, 4096]) -> file offset int64[n] of each in the container, -1 unknown; some
    are none of it.
    """

    begins: Callable[[npt.NDArray[np.uint16], npt.NDArray[np.uint64]], npt.NDArray[np.bool_]]
    place: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.int64]]


@dataclass(slots=True)
class Units:
    """The parts of a container that prove themselves when they are whole: streams (`Format.units`).

    Arrays of equal length n. file_offset int64, rising: the unit's first byte; head: bytes of it before the stream.
    stored int64: bytes that it takes at most, head included; least int64: it takes more than so many. length int64:
    bytes that it decodes to, under `encoding` uint8. key int64: what its mark says (`Format.marks`), -1: it has none.
    check(i, data) -> the bytes that unit i takes of data, 0 where that is not the whole of it: for units that hold
    their own checksum instead of a stream. tail_key int64, tail_at int64: the mark inside a unit that tells where its
    end lies, and its file offset; -1 none. size: bytes of the container that lie behind them too, 0 unknown.
    """

    file_offset: npt.NDArray[np.int64]
    stored: npt.NDArray[np.int64]
    least: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    encoding: npt.NDArray[np.uint8]
    key: npt.NDArray[np.int64]
    head: int = 0
    check: Callable[[int, bytes], int] | None = None
    tail_key: npt.NDArray[np.int64] | None = None
    tail_at: npt.NDArray[np.int64] | None = None
    size: int = 0

    def __len__(self) -> int:
        return len(self.file_offset)


@dataclass(slots=True)
class Marks:
    """Sectors that begin like an element of a stream: arrays of equal length n, image_offset rising.

    key int64: what it says of its place, -1 for elements that are no units. span int64: bytes up to the next element.
    """

    image_offset: npt.NDArray[np.int64]
    key: npt.NDArray[np.int64]
    span: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image_offset)


@dataclass(slots=True)
class Gathered:
    """An archive whose members were found wherever they lie (`Format.gather`).

    container: its guests' file offsets count from the archive's first byte, in the layout that the members tell; where
    they do not tell it, parts follow each other as it may be; None: it can be read through a better map. units: those
    that prove themselves, or None. pins int64[m, 3]: (file_offset, image_offset, length) of members' own structures,
    file_offset rising. start: image offset of the first byte, where the archive begins with what is lost
    (`Format.loose`).
    """

    container: Container | None
    units: Units | None
    pins: npt.NDArray[np.int64]
    start: int = -1


@dataclass(frozen=True, slots=True)
class Format:
    """What one module of formats/ offers. The stages know formats by this record only.

    signatures + confirm (sparse kinds) or confirm_batch (dense kinds): see Signature. Every evidence with a
    container_offset proposes a container that starts at image_offset - container_offset; `open` then decides.
    open(reader): reads the container through a Reader in *file* offsets, raises Damaged if it is none. It must work
    with missing ranges (redundant copies!), must never trust a length, count or offset, and may not read the payload.
    salvage(reader, evidence rows of this format's kinds that no opened container explains) -> orphans.
    wants(reader) -> blocks of tables that are not where the reader has them (the container is in pieces): those that
    can be told by what was found so far. It raises nothing.
    stated(reader) -> how tables that are no blocks of their own place themselves, in file offsets, where the reader has
    what names them. It raises nothing.
    tied(reader) -> how blocks of tables tell each other's places, where the reader has what names them, or None.
    shapes(blocks uint8[n, 4096], image_offset int64[n] rising) -> pieces of tables that have no magic. Called on space
    that nothing else explains, so it may take some ns a block and be wrong; arrays in, arrays out.
    rows: `shapes` finds nothing in a block none of whose rows or sectors is as one of these says.
    rebuild(reader of the image, clue) -> the container with a header written anew, or None when the clue does not hold.
    units(reader, container) -> the streams that its tables name, whether they lie there or not; without it, those of
    its guest maps. It may not read the payload.
    marks(sectors uint8[n, 512], image_offset int64[n] rising) -> which of them begin an element of a stream, arrays in,
    arrays out; it may be wrong: units are decoded before they are believed.
    gather(reader of the image, image offset of the archive's first byte, reader of the archive as it was opened, marks
    of the whole image) -> the archive whose members lie anywhere, or None where nothing but its first run tells of it.
    loose(reader of the image, marks that no archive with a header has) -> archives whose first bytes are lost.
    stow(reader of a whole file) -> in which units it may hold its guest, where nothing opens it, likeliest first.
    """

    name: str
    extension: str
    signatures: tuple[Signature, ...]
    open: Callable[[Reader], Container]
    confirm: Confirm | None = None
    confirm_batch: ConfirmBatch | None = None
    salvage: Callable[[Reader, Sequence[Evidence]], Iterable[Orphan]] | None = None
    wants: Callable[[Reader], Sequence[Want]] | None = None
    stated: Callable[[Reader], Placer | None] | None = None
    tied: Callable[[Reader], Tied | None] | None = None
    qemu_name: str | None = None  # the driver name in QEMU, for tests and messages
    shapes: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64]], Iterable[TablePieces]] | None = None
    rows: Sequence[RowRule | SectorBegin] = ()
    rebuild: Callable[[Reader, Clue], Orphan | None] | None = None
    units: Callable[[Reader, Container], Units | None] | None = None
    marks: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.int64]], Marks] | None = None
    gather: Callable[[Reader, int, Reader, Marks], Gathered | None] | None = None
    loose: Callable[[Reader, Marks], Iterable[Gathered]] | None = None
    stow: Callable[[Reader], Iterable[Stowed]] | None = None


# --- guest file systems and partition schemes ---------------------------------------------------------------------
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
    gapless: no unit was left out because nothing tells where it lies; units of zeros may be.
    """

    unit: int
    rooms: tuple[tuple[int, int], ...] = ()
    gapless: bool = False


@dataclass(frozen=True, slots=True)
class GuestKind:
    """What one module of guest/ offers.

    probe(reader, offset, limit): the volume or partition table that starts at `offset` of a disk, or None; `limit` is
    the number of bytes up to the partition's (or disk's) end. It checks consistency cheaply (superblock copies, group
    descriptors, checksums; at most some hundred reads).
    begin(reader, offset): what a volume begins with, by the structure at `offset` that evidence names; None when that
    is none.
    """

    name: str
    signatures: tuple[Signature, ...]
    probe: Callable[[Reader, int, int], Volume | None]
    confirm: Confirm | None = None
    confirm_batch: ConfirmBatch | None = None
    begin: Callable[[Reader, int], Begin | None] | None = None


# --- host file systems ---------------------------------------------------------------------------------------------
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
    where nothing in it names its volume. length: bytes of a structure that is whole, where it takes several blocks.
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
    guest: str = ""


# --- maps ----------------------------------------------------------------------------------------------------------
DATA, HOLE, UNALLOCATED, LOST, EXTERNAL = 0, 1, 2, 3, 4
PLAIN, DEFLATE, ZLIB, ZSTD = 0, 1, 2, 3
ENCODING_NAMES = ("plain", "deflate", "zlib", "zstd")


@dataclass(frozen=True, slots=True)
class Streams:
    """Of the encoded runs of a GuestMap (`decoded.taken`): place int64[n], the image offset where each was read, -1
    where it lay in several parts; taken int64[n], bytes that the stream took, -1 where it does not decode."""

    place: npt.NDArray[np.int64]
    taken: npt.NDArray[np.int64]


@dataclass(slots=True)
class GuestMap:
    """guest_offset -> file_offset, as runs: arrays of equal length, guest_offset rising, no gap, no overlap.

    guest_offset, length int64: the guest bytes of the run.
    state uint8: DATA (stored in this container at file_offset), HOLE (the container says zero), UNALLOCATED (not in
    this layer: the parent's bytes, or zero when there is no parent), LOST (the table that would tell is gone or its
    entry points outside the container), EXTERNAL (in another file: `Container.members`, file_offset is in that file).
    file_offset int64: -1 unless DATA or EXTERNAL. encoding uint8: PLAIN, or how the stored bytes decode to `length`
    guest bytes (DEFLATE raw RFC 1951, ZLIB RFC 1950, ZSTD one frame). stored int64: bytes at file_offset (= length
    when PLAIN). Encoded runs are one per cluster and never merged. streams: what is known of their bytes so far.
    """

    guest_offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    state: npt.NDArray[np.uint8]
    file_offset: npt.NDArray[np.int64]
    encoding: npt.NDArray[np.uint8]
    stored: npt.NDArray[np.int64]
    streams: Streams | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.guest_offset)

    @classmethod
    def flat(cls, size: int, file_offset: int = 0, state: int = DATA) -> GuestMap:
        """One run for the whole disk."""
        return cls.build([0], [size], [state], [file_offset if state in (DATA, EXTERNAL) else -1])

    @classmethod
    def build(cls, guest_offset: Any, length: Any, state: Any, file_offset: Any,
              encoding: Any = None, stored: Any = None) -> GuestMap:
        """From sequences or arrays; neighbouring plain runs that continue each other are merged."""
        g = np.asarray(guest_offset, np.int64)
        n = np.asarray(length, np.int64)
        s = np.asarray(state, np.uint8)
        f = np.asarray(file_offset, np.int64)
        e = np.zeros(len(g), np.uint8) if encoding is None else np.asarray(encoding, np.uint8)
        c = n.copy() if stored is None else np.asarray(stored, np.int64)
        keep = n > 0
        if not keep.all():
            g, n, s, f, e, c = g[keep], n[keep], s[keep], f[keep], e[keep], c[keep]
        if len(g) > 1:
            same = (s[1:] == s[:-1]) & (e[1:] == PLAIN) & (e[:-1] == PLAIN) & (g[1:] == g[:-1] + n[:-1])
            follows = np.where((s[1:] == DATA) | (s[1:] == EXTERNAL), f[1:] == f[:-1] + n[:-1], True)
            first = np.concatenate(([True], ~(same & follows)))
            start = np.flatnonzero(first)
            n = np.add.reduceat(n, start)
            g, s, f, e = g[start], s[start], f[start], e[start]
            c = np.where(e == PLAIN, n, c[start])
        return cls(g, n, s, f, e, c)

    @classmethod
    def from_units(cls, size: int, unit: int, state: Any, file_offset: Any) -> GuestMap:
        """From one entry per allocation unit (state uint8[k], file_offset int64[k]); the last unit is cut at size."""
        k = len(state)
        g = np.arange(k, dtype=np.int64) * unit
        n = np.minimum(unit, size - g)
        return cls.build(g, n, state, file_offset)
