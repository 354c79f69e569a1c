"""What is known of a scene before deletion, and how it is written down: truth.json and one .npy per disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sparse import ZERO_HASH, Hashes, block_hashes, sha256

TRUTH = "truth.json"
IMAGE = "image.raw"
ORIGINALS = "originals"

Extent = tuple[int, int, int, str]  # file_offset, image_offset, length in bytes; "" or "unwritten" or "inline"


@dataclass
class HostFile:
    """One file of a disk as it lay on the host; `extents` do not cover holes, `lay` counts breaks (see lay.py)."""

    host_path: str
    role: str  # "container", or "descriptor" for the text beside it
    size: int
    sha256: str
    extents: list[Extent] = field(default_factory=list)
    lay: dict[str, Any] = field(default_factory=dict)
    harmed: list[tuple[int, int]] = field(default_factory=list)  # file_offset, length overwritten where it lay


@dataclass
class GuestTruth:
    """A guest disk's content: SHA-256 of its `virtual_size` bytes, and the .npy of one hash per 4 KiB block."""

    virtual_size: int
    guest_sha256: str
    guest_hashes: str
    guest_zeros: str
    guest_raw: str | None


@dataclass
class Snapshot(GuestTruth):
    """An internal snapshot of a container: an older state of the same disk."""

    name: str


@dataclass
class Disk:
    """One virtual disk of a scene. `container_*`, `host_path` and `extents` are those of its main file."""

    name: str
    format: str
    variant: str
    driver: str | None  # QEMU's name for the format, or None where QEMU does not read it
    written: str  # order of the guest's writes
    delivered: str  # how the file came onto the host
    deleted: bool | None  # None: there is no host to say
    encrypted: bool
    guest_known: bool  # False: no content is compared, the disk counts by its files
    parent: str | None
    inside: str | None  # the disk in whose guest this one lies; its own files have no place in the image then
    guest_kind: str  # the guest's file system
    guest: GuestTruth
    own_blocks: str | None  # .npy of bool per 4 KiB: what a delta holds itself; None: all of it
    snapshots: list[Snapshot]
    files: list[HostFile]
    main: int = 0  # index in `files`
    intact: bool = True  # the final image still holds every byte of every file
    recoverable: str | None = None  # .npy of bool per 4 KiB guest block, where not intact

    def to_json(self) -> dict[str, Any]:
        """The row of truth.json: the fields above, with the main file's and the guest's raised to the top."""
        row = asdict(self)
        row.update(row.pop("guest"))
        main = row["files"][self.main]
        row["host_path"], row["extents"], row["lay"] = main["host_path"], main["extents"], main["lay"]
        row["container_size"], row["container_sha256"] = main["size"], main["sha256"]
        return row


def describe_guest(folder: Path, name: str, raw: Path, size: int, keep: bool) -> GuestTruth:
    """Hash the guest `raw` (zeros behind its end, up to `size`) and note it under `name`."""
    hashes = block_hashes(raw, size)
    guest_hashes, guest_zeros = f"{name}.hashes.npy", f"{name}.zeros.npy"
    np.save(folder / guest_hashes, hashes)
    np.save(folder / guest_zeros, hashes == ZERO_HASH)
    with raw.open("r+b") as file:
        file.truncate(size)
    return GuestTruth(size, sha256(raw), guest_hashes, guest_zeros, f"{ORIGINALS}/{raw.name}" if keep else None)


def write_truth(folder: Path, head: dict[str, Any], disks: list[Disk]) -> None:
    """Write truth.json beside the image; `head` has the scene, the seed and what else holds for all disks."""
    rows = [disk.to_json() for disk in disks]
    (folder / TRUTH).write_text(json.dumps({**head, "image": IMAGE, "disks": rows}, indent=1) + "\n")


def load_truth(folder: Path) -> dict[str, Any]:
    """truth.json of a made scene."""
    loaded: dict[str, Any] = json.loads((folder / TRUTH).read_text())
    return loaded


def load_hashes(folder: Path, name: str) -> Hashes:
    """Hashes per 4 KiB block, uint64."""
    return np.load(folder / name)


def load_flags(folder: Path, name: str) -> NDArray[np.bool_]:
    """A flag per 4 KiB block."""
    return np.load(folder / name)
