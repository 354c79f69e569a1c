"""A container that the solver lays out: the best map of it so far, and what was read through that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..filemap import FileMap
from ..model import Container, HostVolume, Placer, Units
from .breaks import Expectation
from .content.files import Files
from .host_units import Unit
from .places import Owned, Table, has_plain
from .tails import FileEnds
from .unit_ends import OpenEnds

Int64s = npt.NDArray[np.int64]


@dataclass(slots=True)
class Candidate:
    """A container that begins at image offset `start`; map: the best so far. reopen reads it again through a map."""

    start: int
    container: Container
    map: FileMap
    reopen: Callable[[FileMap], Container | None]
    tables: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # (file, image offset)s of blocks
    empty: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # file ranges of tables that hold none
    checked: bool = False  # the format tells a table from anything else (`Format.wants`)
    anchors: list[int] = field(default_factory=lambda: [0])  # file offsets of what proposes it, at the delta of `start`
    joined: bool = False  # its streams are placed, and what of them is not found is missing
    open: bool = False  # breaks of it lie outside its streams
    units: Units | None = None  # that prove themselves, where the format told them
    proved: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])  # first block, blocks, delta
    flat: bool = False  # no table says what it holds: nothing is claimed behind the last volume or pin
    settled: bool = False
    nested: bool = False
    scattered: Table | None = None  # what is known of its partitions, where its units lie in any order
    begun: Callable[[FileMap], FileMap] | None = None  # lays what is made anew of lost begins of volumes over a map
    ends: FileEnds = field(default_factory=FileEnds.none)
    open_ends: OpenEnds = field(default_factory=OpenEnds.none)
    files: Files = field(default_factory=Files.none)  # those that live, and behind them what is left of deleted ones
    listed: int = 0  # how many of the files live
    sure: Int64s = field(default_factory=lambda: np.empty((0, 3), np.int64))  # see content.Guest
    unit: Unit = field(default_factory=Unit)
    pins: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    volumes: list[HostVolume] = field(default_factory=list[HostVolume])
    owned: list[Owned] = field(default_factory=list[Owned])
    placed: tuple[Container, object] | None = None  # as what its volumes were given to it, of which places
    read: object = None  # what the guest was last read through
    expected: tuple[object, Container, Expectation] | None = None  # as what it was last said what to expect, and that
    best: Best | None = None
    metadata: dict[int, Metadata] = field(default_factory=dict[int, "Metadata"])  # by guest offset of the volume

    @property
    def encrypted(self) -> bool:
        """Whether nothing of its guest is to be seen."""
        return self.container.detail.get("encrypted") == "yes"

    @property
    def plain(self) -> bool:
        return bool(self.container.guests) and has_plain(self.container.guests[0].map)


@dataclass(frozen=True, slots=True)
class Best:
    """The map of a candidate through which its guest tells of most files so far, and whose volumes those are."""

    files: int
    rows: list[int]
    container: Container
    map: FileMap


@dataclass(slots=True)
class Metadata:
    """Loose metadata of one volume: image_offset int64[n] of structures, volume_offset int64[n] where they belong."""

    row: int  # the volume's first structure in Places
    placer: Placer
    image_offset: Int64s | None = None
    volume_offset: Int64s | None = None
    alone: bool = False  # every volume of its kind on the image is somebody's: what one alone may have is its own
