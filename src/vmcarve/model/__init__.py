"""The few records that cross stages.

Three address spaces, never mixed: `image_offset` (the evidence), `file_offset` / `container_offset` (the container
file), `guest_offset` (the disk inside it). All in bytes.
"""

from __future__ import annotations

from .containers import Check, Container, GuestDisk, Member, ParentLink, Patch, Region
from .evidence import Confirm, ConfirmBatch, Evidence, EvidenceBatch, Signature
from .formats import Clue, Format, Gathered, Marks, Orphan, RowRule, SectorBegin, Stowed, TablePieces, Tied, Units, Want
from .grades import GRADES, GUESSED, MISSING, PARENT, PROVEN, SUPPORTED, ZERO
from .guests import Begin, Cut, GuestKind, Volume
from .hosts import (
    RUN_CHECKED,
    RUN_DATA,
    RUN_HOLE,
    RUN_INLINE,
    RUN_REUSED,
    RUN_UNWRITTEN,
    DataSums,
    HostFile,
    HostKind,
    HostVolume,
    Placer,
)
from .maps import DATA, DEFLATE, ENCODING_NAMES, EXTERNAL, HOLE, LOST, PLAIN, UNALLOCATED, ZLIB, ZSTD, GuestMap, Streams
from .reader import SECTOR, Reader

__all__ = [
    "Begin", "Check", "Clue", "Confirm", "ConfirmBatch", "Container", "Cut", "DATA", "DEFLATE", "DataSums",
    "ENCODING_NAMES", "EXTERNAL", "Evidence", "EvidenceBatch", "Format", "GRADES", "GUESSED", "Gathered",
    "GuestDisk", "GuestKind", "GuestMap", "HOLE", "HostFile", "HostKind", "HostVolume", "LOST", "MISSING", "Marks",
    "Member", "Orphan", "PARENT", "PLAIN", "PROVEN", "ParentLink", "Patch", "Placer", "RUN_CHECKED", "RUN_DATA",
    "RUN_HOLE", "RUN_INLINE", "RUN_REUSED", "RUN_UNWRITTEN", "Reader", "Region", "RowRule", "SECTOR", "SUPPORTED",
    "SectorBegin", "Signature", "Stowed", "Streams", "TablePieces", "Tied", "UNALLOCATED", "Units", "Volume",
    "Want", "ZERO", "ZLIB", "ZSTD",
]
