"""Real structures for the dense benches: file systems made by their own tools are swept, one of each kind is taken."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pyarrow as pa

from vmcarve.source import open_image
from vmcarve.sweeper import sweep_image
from vmcarve.sweeper.table import Entry, declared

from .common import MIB


def dense_entries() -> dict[str, Entry]:
    """The registry's dense kinds by kind."""
    return {e.signature.kind: e for e in declared() if e.signature.dense}


def file_systems(folder: Path) -> list[Path]:
    """Small file systems with files in them, made without root; a tool that is not there makes none."""
    files = folder / "files"
    files.mkdir()
    for n in range(40):
        (files / f"note-{n}.txt").write_bytes(os.urandom(3000 + 100 * n))
    with (files / "many-extents.bin").open("wb") as f:  # more extents than an inode holds: an extent leaf of its own
        for n in range(64):
            f.seek(n * 32768)
            f.write(os.urandom(4096))
    made: list[Path] = []
    for name, mib, argv in (
        ("ext4", 64, ["mkfs.ext4", "-q", "-F", "-d", str(files)]),
        ("xfs", 320, ["mkfs.xfs", "-q", "-f", "-p", str(protofile(folder))]),
        ("ntfs", 16, ["mkntfs", "-q", "-F", "-Q"]),
    ):
        path = folder / f"{name}.img"
        with path.open("wb") as f:
            f.truncate(mib * MIB)
        try:
            done = subprocess.run([*argv, str(path)], capture_output=True, timeout=120)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            made.append(path)
    return made


def protofile(folder: Path) -> Path:
    """What mkfs.xfs puts into the new file system: the files."""
    path = folder / "proto"
    lines = [f"f{n} ---644 0 0 {file}" for n, file in enumerate(sorted((folder / "files").iterdir()))]
    path.write_text("\n".join(["/dev/null", "0 0", "d--755 0 0", *lines, "$", ""]))
    return path


def samples(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Kind -> (the longest run of structures that its module confirms in these file systems, bytes a structure)."""
    entries = dense_entries()
    found: dict[str, tuple[bytes, int]] = {}
    for image in file_systems(folder):
        with open_image(image) as source:
            batches: list[pa.RecordBatch] = []
            sweep_image(source, 0, batches.append, threads=1)
            for row in pa.Table.from_batches(batches).to_pylist() if batches else []:
                kind, length = row["kind"], min(row["length"], MIB)
                if kind in entries and length > len(found.get(kind, (b"", 0))[0]):
                    found[kind] = source.read(row["image_offset"], length), row["length"] // row["count"]
        image.unlink()
    return found
