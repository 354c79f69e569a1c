"""Real metadata, wall to wall: all structures of one kind that a full volume or a large container has, side by side.

Unlike benches/samples.py, which repeats one structure, these differ from each other as they do on a disk: record
numbers rise, tables go on where the one before ended.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.corpus.tools import run

from .common import MIB
from .images import full_of_files, why_not

VOLUME_MIB = 320


def _starting(image: Path, step: int, size: int, begins: bytes, at: int = 0) -> bytes:
    """All blocks of `size` bytes at multiples of `step` that have `begins` at their byte `at`."""
    data = np.fromfile(image, np.uint8)
    n = (len(data) - size) // step + 1
    rows = np.lib.stride_tricks.as_strided(data, (n, size), (step, 1), writeable=False)
    want = np.frombuffer(begins, np.uint8)
    return rows[(rows[:, at : at + len(want)] == want).all(axis=1)].tobytes()


def _ext4_inodes(image: Path) -> bytes:
    """The inode tables of the groups that have inodes in use, as dumpe2fs tells where they are."""
    told = run("dumpe2fs", image)
    block = int(re.search(r"Block size:\s+(\d+)", told)[1])  # type: ignore[index]
    out = []
    with image.open("rb") as f:
        for group in told.split("\nGroup ")[1:]:
            table = re.search(r"Inode table at (\d+)-(\d+)", group)
            if table is not None and "INODE_UNINIT" not in group.split("\n")[0]:
                first, last = int(table[1]), int(table[2])
                f.seek(first * block)
                out.append(f.read((last - first + 1) * block))
    return b"".join(out)


def _btrfs_nodes(image: Path) -> bytes:
    with image.open("rb") as f:
        f.seek(65536 + 32)
        fsid = f.read(16)  # where the superblock has it, and every node too
    return _starting(image, 16384, 16384, fsid, at=32)


def _l2_tables(folder: Path) -> bytes:
    """The second-level tables of a qcow2 of 16 GiB whose clusters are all there, as qemu-img allocates them."""
    path = folder / "l2.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-o", "preallocation=metadata", path, "16G")
    with path.open("rb") as f:
        head = f.read(104)
        bits, entries, at = (*struct.unpack(">I", head[20:24]), *struct.unpack(">IQ", head[36:48]))
        f.seek(at)
        tables = [e & 0x00FF_FFFF_FFFF_FE00 for e in struct.unpack(f">{entries}Q", f.read(8 * entries))]
        out = []
        for table in tables:
            f.seek(table)
            out.append(f.read(1 << bits))
    path.unlink()
    return b"".join(out)


def _grain_tables(folder: Path) -> bytes:
    """The grain tables of a sparse VMDK whose grains were all written, as qemu-img lays them out."""
    raw, path = folder / "raw", folder / "grains.vmdk"
    with raw.open("wb") as f:
        for _ in range(256):
            f.write(b"\1" * MIB)
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, path)
    raw.unlink()
    with path.open("rb") as f:
        head = f.read(512)
        capacity, grain = struct.unpack("<QQ", head[12:28])
        per, directory = struct.unpack("<I", head[44:48])[0], struct.unpack("<Q", head[56:64])[0]
        f.seek(directory * 512)
        count = -(-capacity // (grain * per))
        out = []
        for table in struct.unpack(f"<{count}I", f.read(4 * count)):
            f.seek(table * 512)
            out.append(f.read(4 * per))
    path.unlink()
    return b"".join(out)


# what -> (the host that it is taken from, None for a container; the function that takes it)
WALLS: dict[str, tuple[str | None, Callable[[Path], bytes]]] = {
    "MFT records": ("ntfs", lambda image: _starting(image, 1024, 1024, b"FILE")),
    "INDX blocks": ("ntfs", lambda image: _starting(image, 4096, 4096, b"INDX")),
    "ext4 inodes": ("ext4", _ext4_inodes),
    "XFS inodes": ("xfs", lambda image: _starting(image, 512, 512, b"IN")),
    "Btrfs nodes": ("btrfs", _btrfs_nodes),
    "qcow2 L2 tables": (None, _l2_tables),
    "grain tables": (None, _grain_tables),
}


def volume(folder: Path, kind: str) -> Path | str:
    """A full volume, or why there is none."""
    why = why_not(kind)
    if why is not None:
        return why
    made = full_of_files(folder, kind, VOLUME_MIB)
    for path in made.disks:
        path.unlink()
    return made.image


def wall(path: Path, metadata: bytes, mib: int) -> Path:
    """An image of `mib` MiB of this metadata, again from its beginning where it ends."""
    whole = metadata[: len(metadata) // 512 * 512]
    with path.open("wb") as f:
        while f.tell() < mib * MIB:
            f.write(whole[: mib * MIB - f.tell()])
    return path
