"""Guest disks: a real file system with real files in a partition or bare, distinct for every key."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from . import payload, work
from .loops import loop_device, mounted
from .partitions import MIB, SECTOR, START, seeded_uuid, volume_offset, volume_size, write_table
from .sparse import copy_into, new_sparse
from .tools import CorpusError, run

OFFLINE = ("ext4", "fat32")  # file systems that can be filled without a mount
FROZEN = 1_700_000_000  # Unix seconds: the time that tools write which take it from us
SET_TIME = {"E2FSPROGS_FAKE_TIME": str(FROZEN), "SOURCE_DATE_EPOCH": str(FROZEN)}
FILL = 0.55  # share of a volume that is filled with files
WORK_FILL = 0.7  # the same of one at work
PLAIN, WORK, FEW = "plain", "work", "few"  # many small files; a machine at work; a few large files
WRITERS = 3  # files that are written at the same time in a guest at work
CHUNK = (4096, 256 << 10)  # bytes of one write there, least and most
BTRFS_MIB = 112  # below, mkfs.btrfs wants data and metadata in one block group
LUKS_MIB = 4  # room for the header of an encrypted volume
TRIES = 40  # QEMU times its key derivation, and fails now and then where the clock of the CPU is coarse
SECRET = "vmcarve"  # the password of encrypted volumes


@dataclass(frozen=True)
class GuestSpec:
    """What a guest disk looks like. Sizes in MiB; `disk_mib` above `volume_mib` leaves the disk's end unused.

    Kind "luks" is an encrypted ext4."""

    kind: str = "ext4"
    table: str = "gpt"
    volume_mib: int = 32
    disk_mib: int = 0
    life: str = PLAIN

    @property
    def size(self) -> int:
        """Bytes of the whole disk."""
        return max(self.disk_mib, self.volume_mib + (2 if self.table != "none" else 0)) * MIB

    def without_mounts(self) -> GuestSpec:
        """The nearest guest that can be made without root."""
        return self if self.kind in OFFLINE else replace(self, kind="ext4")


@dataclass(frozen=True)
class Guest:
    """A made guest: the raw disk, and its volume alone (kept so that the guest can go on living)."""

    spec: GuestSpec
    key: str
    raw: Path
    volume: Path
    mounts: bool


def make_guest(
    spec: GuestSpec, key: str, folder: Path, mounts: bool = True, extra: Sequence[tuple[str, Path]] = ()
) -> Guest:
    """A new guest disk in `folder`, filled by `key`; file names and contents are equal for equal keys.

    `extra` are further files, as (name in the guest, source); they take part only where there are mounts.

    Without `mounts` every byte of the disk is, not only the files."""
    if not mounts:
        spec = spec.without_mounts()
    volume = new_sparse(folder / f"{key}.volume", (spec.volume_mib - (LUKS_MIB if spec.kind == "luks" else 0)) * MIB)
    budget = int(volume.stat().st_size * (FILL if spec.life == PLAIN else WORK_FILL))
    budget -= sum(source.stat().st_size for _, source in extra)
    rng = random.Random(f"guest {key}")
    if mounts or spec.kind == "fat32":
        _format(volume, spec, rng)
    if spec.kind == "fat32":
        _fill_fat(volume, payload.files(key, budget), folder / f"{key}.tree")
    elif not mounts:
        _fill_ext4_offline(volume, payload.files(key, budget), folder / f"{key}.tree", rng)
    else:
        with _mounted_volume(volume, spec.kind) as root:
            if spec.life == PLAIN:
                _live(root, payload.files(key, budget), rng)
            else:
                _work(root, work.files(key, budget, few=spec.life == FEW), rng)
            for name, source in extra:
                (root / name).parent.mkdir(exist_ok=True)
                run("cp", "--sparse=never", source, root / name)
    if spec.kind == "luks":
        _encrypt(volume)
    return _assemble(Guest(spec, key, folder / f"{key}.raw", volume, mounts))


def evolve(guest: Guest, key: str, folder: Path) -> Guest:
    """The same disk some time later: files went, others came. Its identity (UUIDs, table) stays."""
    volume = new_sparse(folder / f"{key}.volume", guest.volume.stat().st_size)
    copy_into(guest.volume, volume)
    budget = guest.spec.volume_mib * MIB // 8
    rng = random.Random(f"evolve {key}")
    later = ((f"later-{key}/{name}", content) for name, content in payload.files(key, budget))
    if guest.spec.kind == "fat32":
        _fill_fat(volume, later, folder / f"{key}.tree")
    elif not guest.mounts:
        _debugfs_write(volume, later, folder / f"{key}.tree")
    else:
        with _mounted_volume(volume, guest.spec.kind) as root:
            _live(root, later, rng)
    raw = new_sparse(folder / f"{key}.raw", guest.spec.size)
    copy_into(guest.raw, raw)
    with raw.open("r+b") as file:  # the old volume goes; what is now zero must read as zero
        file.seek(volume_offset(guest.spec.table))
        with volume.open("rb") as content:
            shutil.copyfileobj(content, file, MIB)
    return Guest(guest.spec, key, raw, volume, guest.mounts)


def _assemble(guest: Guest) -> Guest:
    """Put the volume into a new raw disk behind its partition table."""
    spec = guest.spec
    new_sparse(guest.raw, spec.size)
    write_table(guest.raw, spec.table, spec.kind, guest.key)
    assert spec.volume_mib * MIB <= volume_size(spec.table, spec.size)
    copy_into(guest.volume, guest.raw, volume_offset(spec.table))
    return guest


def _format(volume: Path, spec: GuestSpec, rng: random.Random) -> None:
    """Make the file system in the file `volume`."""
    identity, fresh = str(seeded_uuid(rng)), str(uuid.uuid4())  # the kernel refuses two volumes of one UUID
    hidden = str((START if spec.table != "none" else 0) // SECTOR)
    if spec.kind in ("ext4", "luks"):
        run("mkfs.ext4", "-q", "-F", "-U", identity, "-E", f"hash_seed={identity}", volume)
    elif spec.kind == "xfs":
        run("mkfs.xfs", "-q", "-f", "--unsupported", "-m", f"uuid={fresh}", volume)
    elif spec.kind == "btrfs":
        run("mkfs.btrfs", "-q", "-f", *(("--mixed",) if spec.volume_mib < BTRFS_MIB else ()), "-U", fresh, volume)
    elif spec.kind == "ntfs":
        run("mkntfs", "-q", "-Q", "-F", "-p", hidden, "-H", "255", "-S", "63", volume)
    elif spec.kind == "fat32":
        run("mkfs.fat", "-F", "32", "-s", "1", "-i", f"{rng.getrandbits(32):08x}", "-h", hidden, volume, env=SET_TIME)
    else:
        raise ValueError(f"no guest file system {spec.kind}")


@contextlib.contextmanager
def _mounted_volume(volume: Path, kind: str) -> Iterator[Path]:
    inner = "ext4" if kind == "luks" else kind
    with loop_device(volume) as device, mounted(device, inner, volume.with_suffix(".mnt")) as root:
        yield root


def _live(root: Path, content: Iterator[payload.Named], rng: random.Random) -> None:
    """Write files, and remove about one in eight of them again on the way, as in a life; until the disk is full."""
    written: list[Path] = []
    for name, block in content:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(block)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return  # small Btrfs volumes are full long before their bytes are
        written.append(path)
        if len(written) > 8 and rng.random() < 0.125:
            written.pop(rng.randrange(1, len(written))).unlink()


def _work(root: Path, content: Iterator[payload.Named], rng: random.Random) -> None:
    """Write several files at a time, chunk by chunk in turn, and remove one in eight again on the way."""
    writing: list[tuple[Path, BinaryIO, bytes]] = []
    done: list[Path] = []
    waiting = iter(content)
    while True:
        while len(writing) < WRITERS and (named := next(waiting, None)) is not None:
            path = root / named[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            writing.append((path, path.open("wb"), named[1]))
        if not writing:
            return
        number = rng.randrange(len(writing))
        path, file, block = writing[number]
        size = rng.randrange(*CHUNK)
        file.write(block[:size])
        file.flush()
        writing[number] = (path, file, block[size:])
        if rng.random() < 0.02:
            os.fsync(file.fileno())
        if len(block) <= size:
            file.close()
            done.append(writing.pop(number)[0])
            if len(done) > 8 and rng.random() < 0.125:
                done.pop(rng.randrange(1, len(done))).unlink()


def _encrypt(volume: Path) -> None:
    """Put the volume into a LUKS one of its own size and header."""
    plain = volume.rename(volume.with_suffix(".plain"))
    secret = ("--object", f"secret,id=key,data={SECRET}")
    words = ("-f", "raw", "-O", "luks", "-o", "key-secret=key,iter-time=10", plain, volume)
    for attempt in range(TRIES):
        try:
            run("qemu-img", "convert", *secret, *words)
            break
        except CorpusError:
            if attempt == TRIES - 1:
                raise
    plain.unlink()


def _write_tree(content: Iterator[payload.Named], tree: Path) -> None:
    for name, block in content:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(block)
    for path in tree.rglob("*"):
        os.utime(path, (FROZEN, FROZEN))


def _fill_fat(volume: Path, content: Iterator[payload.Named], tree: Path) -> None:
    """Copy the files into a FAT volume without mounting it."""
    _write_tree(content, tree)
    tops = sorted(tree.iterdir())
    run("mcopy", "-s", "-m", "-n", "-o", "-i", volume, *tops, "::/", env={"MTOOLS_SKIP_CHECK": "1", **SET_TIME})
    shutil.rmtree(tree)


def _fill_ext4_offline(volume: Path, content: Iterator[payload.Named], tree: Path, rng: random.Random) -> None:
    """Make the ext4 volume anew with its files inside; the whole volume follows from the key."""
    _write_tree(content, tree)
    identity = str(seeded_uuid(rng))
    run("mkfs.ext4", "-q", "-F", "-d", tree, "-U", identity, "-E", f"hash_seed={identity}", volume, env=SET_TIME)
    names = ["/", *(f"/{path.relative_to(tree)}" for path in sorted(tree.rglob("*")))]
    times = "".join(f'set_inode_field "{name}" {field} @{FROZEN}\n' for name in names for field in ("ctime", "atime"))
    run("debugfs", "-w", "-f", "-", volume, stdin=times, env=SET_TIME)  # mkfs takes these two from the tree
    shutil.rmtree(tree)


def _debugfs_write(volume: Path, content: Iterator[payload.Named], tree: Path) -> None:
    """Add files to the root directory of an ext4 volume without mounting it."""
    _write_tree(content, tree)
    commands = "".join(f"write {path} {number}-{path.name}\n" for number, path in enumerate(sorted(tree.rglob("*.*"))))
    run("debugfs", "-w", "-f", "-", volume, stdin=commands)
    shutil.rmtree(tree)
