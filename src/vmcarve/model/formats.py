"""What one module of formats/ offers, and what its hooks take and give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .containers import Container
from .evidence import Confirm, ConfirmBatch, Evidence, Signature
from .hosts import Placer
from .maps import GuestMap
from .reader import Reader


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

    unit: guest bytes of each, a multiple of 512. map: where they lie, unit i from i times `unit` on in place of guest
    offsets, in the order in which the file gives them out; what is no unit but cannot be told from one may be among
    them. size: bytes of the guest disk, 0 unknown. in_order: the units themselves say which they are, and the map is
    the guest's. linear: it is the guest's too where a file of this kind is written out whole, zeros and all.
    links: int64[units, 2], which unit is the guest's next behind each one and which the one before it, as the file
    shows without saying which they are; -1: it would show and shows none, -2: it does not say.
    """

    unit: int
    map: GuestMap
    size: int = 0
    in_order: bool = False
    linear: bool = False
    links: npt.NDArray[np.int64] | None = None


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
