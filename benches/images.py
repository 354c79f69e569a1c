"""Host images for the benches: real file systems, full of files, on which disks grew in pieces and were deleted.

Made with the corpus's loop mounts, so they take root; `why_not` says why they cannot be made here.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.corpus.loops import loop_device, mounted
from tests.corpus.tools import no_mounts_because, run

from .common import MIB

MAKERS = {  # mkfs and its words, for the kinds of the issue
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "ntfs": ("mkntfs", "-q", "-Q"),
}
FORMATS = (  # of the disks, in turn: qemu-img's driver, its options, the usual extension
    ("qcow2", (), "qcow2"),
    ("vmdk", ("-o", "subformat=monolithicSparse"), "vmdk"),
    ("vdi", (), "vdi"),
    ("vhdx", ("-o", "subformat=dynamic,block_size=1M"), "vhdx"),
    ("vpc", ("-o", "subformat=dynamic,force_size=on"), "vhd"),
    ("qcow2", ("-c",), "qcow2"),
)
APPEND = 1 << 20  # bytes of one append while disks grow in turn, at most; a sixteenth of it at least
OLD = (16, 22)  # sizes of the files that fill the host first, as powers of two
LIVE = ("/usr/lib", "/usr/share", "/usr/bin")  # real files of the machine: what a host is full of


@dataclass(frozen=True, slots=True)
class HostImage:
    """An image, and the container files that lay on it (byte for byte, outside of it)."""

    image: Path
    disks: list[Path]

    @property
    def disk_bytes(self) -> int:
        """Bytes that the disks take where they are stored, holes not counted."""
        return sum(p.stat().st_blocks * 512 for p in self.disks)


def why_not(kind: str) -> str | None:
    """Why a host of this kind cannot be made here, or None."""
    maker = MAKERS[kind][0]
    if shutil.which(maker) is None:
        return f"{maker} is not installed"
    return no_mounts_because()


def container(folder: Path, number: int, mib: int) -> Path:
    """One virtual disk of about `mib` MiB: an ext4 of files that no other disk has, in the format whose turn it is."""
    rng = np.random.default_rng([17, number])
    files, raw = folder / f"files-{number}", folder / f"raw-{number}"
    files.mkdir(parents=True)
    left = int(mib * MIB * 0.7)
    while left > 0:
        n = min(left, int(2 ** rng.uniform(12, 22)))
        half = rng.bytes(n // 2)  # text and noise in turn: compressed disks have something to do
        (files / f"f{left}").write_bytes(half + rng.integers(97, 101, n - len(half), dtype=np.uint8).tobytes())
        left -= n
    with raw.open("wb") as f:
        f.truncate(mib * MIB)
    journal = () if mib >= 32 else ("-O", "^has_journal")  # on a small one it would leave no room for files
    run("mkfs.ext4", "-q", "-F", *journal, "-d", files, raw)
    shutil.rmtree(files)
    driver, words, extension = FORMATS[number % len(FORMATS)]
    out = folder / f"disk-{number:02d}.{extension}"
    order = () if "-c" in words else ("-W", "-m", "8")
    run("qemu-img", "convert", *order, "-f", "raw", "-O", driver, *words, raw, out)
    raw.unlink()
    return out


def with_deleted_disks(folder: Path, kind: str, mib: int, count: int, *, append: int = APPEND,
                       seed: int = 1) -> HostImage:
    """A host of `mib` MiB that is full of files; `count` disks took two fifths of it in turn, and were deleted.

    append: bytes of one append at most, which decides into how many pieces the disks fall; 0: one disk after the other,
    on a host that no older files broke up.
    """
    rng = random.Random(seed)
    each = max(4, mib * 2 // 5 // count)
    disks = [container(folder, n, each) for n in range(count)]
    image = _empty(folder / f"{kind}.img", kind, mib)
    with loop_device(image) as device, mounted(device, kind, folder / "mnt") as root:
        if append:
            _age(root, sum(p.stat().st_blocks * 512 for p in disks) + mib * MIB // 16, rng)
            _grow(root, disks, rng, append)
        else:
            for path in disks:
                run("cp", "--sparse=always", path, root / path.name)
            _age(root, 0, rng)
        os.sync()
        for path in disks:
            (root / path.name).unlink()
    return HostImage(image, disks)


def full_of_files(folder: Path, kind: str, mib: int, seed: int = 1) -> HostImage:
    """A host of `mib` MiB full of this machine's own files and three live virtual disks; nothing is deleted."""
    disks = [container(folder, n, max(4, mib // 12)) for n in range(3)]
    image = _empty(folder / f"{kind}.img", kind, mib)
    with loop_device(image) as device, mounted(device, kind, folder / "mnt") as root:
        for path in disks:
            shutil.copyfile(path, root / path.name)
        for source in _live_files(random.Random(seed)):
            if _free(root) < 16 * MIB + source.stat().st_size:
                break
            to = root / source.relative_to("/")
            to.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(source, to)
            except OSError as e:
                if e.errno != errno.ENOSPC:
                    raise
                to.unlink()  # Btrfs calls space free that its metadata takes
                break
    return HostImage(image, disks)


def _empty(image: Path, kind: str, mib: int) -> Path:
    with image.open("wb") as f:
        f.truncate(mib * MIB)
    with loop_device(image) as device:
        run(*MAKERS[kind], device)
    return image


def _free(root: Path) -> int:
    told = os.statvfs(root)
    return told.f_bavail * told.f_frsize


def _live_files(rng: random.Random) -> Iterator[Path]:
    """Real files, folder after folder in an order drawn by lot."""
    folders = [Path(at) for top in (*LIVE, sys.prefix) for at, _, _ in os.walk(top)]
    rng.shuffle(folders)
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield path


def _age(root: Path, needed: int, rng: random.Random) -> None:
    """Fills the host with old files, and deletes some drawn by lot until `needed` bytes are free."""
    noise = np.random.default_rng(rng.randrange(1 << 30))
    paths: list[Path] = []
    (root / "old").mkdir()
    while _free(root) > 24 * MIB:
        paths.append(root / "old" / f"{len(paths):06d}")
        paths[-1].write_bytes(noise.bytes(int(2 ** rng.uniform(*OLD))))
    os.sync()
    rng.shuffle(paths)
    while _free(root) < needed and paths:
        paths.pop().unlink()
        if len(paths) % 64 == 0:
            os.sync()


def _grow(root: Path, disks: list[Path], rng: random.Random, append: int) -> None:
    """Copies the disks by appends in turn; room is taken at each append, so that their pieces interleave."""
    growing = [(path.open("rb"), (root / path.name).open("wb", buffering=0)) for path in disks]
    while growing:
        pair = rng.choice(growing)
        block = pair[0].read(max(4096, rng.randrange(append // 16, append) // 4096 * 4096))
        if not block:
            growing.remove(pair)
            pair[0].close()
            pair[1].close()
            continue
        at = pair[1].tell()
        os.posix_fallocate(pair[1].fileno(), at, len(block))
        pair[1].write(block)
