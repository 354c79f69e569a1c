"""Blocks that other files had since a deletion, live ones or deleted in turn: never told as the deleted file's.

Each file system has one way to know: ext4 the bitmap copies in its journal, Btrfs the checksums of data, XFS and NTFS
the maps and times of the files that were deleted later.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.host.loopfs import Disk, append_in_turns, best, make, needs_loop
from tests.host.written import MIB, blank, mounted, needs, run
from vmcarve.assemble.rivals import CONTESTED, REUSED, Rivals
from vmcarve.filemap import FileMap
from vmcarve.host.btrfs import HOST as BTRFS
from vmcarve.host.ext import HOST as EXT
from vmcarve.host.ntfs import HOST as NTFS
from vmcarve.host.xfs import HOST as XFS
from vmcarve.model import GUESSED, MISSING, RUN_CHECKED, RUN_DATA, RUN_REUSED, SUPPORTED, HostFile, Reader
from vmcarve.source import ImageSource

BLOCK = 4096
LATER = 40  # files after the deletion


def reuse(point: Path, old: Path, sync: Callable[[], object], *, leave: int = 0) -> bytes:
    """Deletes `old`, then writes files over some of its space and deletes them too, all but `leave`: its content."""
    content = old.read_bytes()
    old.unlink()
    sync()
    names = [point / f"later{n:02d}" for n in range(LATER)]
    for n, path in enumerate(names):
        path.write_bytes(os.urandom(BLOCK * (1 + 2 * (n % 13))))
        if n % 4 == 3:
            sync()
            if n % 8 == 3:
                names[n - 2].unlink()  # so that inodes are used again
    sync()
    for path in names[leave:]:
        path.unlink(missing_ok=True)
    sync()
    return content


def sound_and_not(reader: Reader, rows: list[tuple[int, int, int]], content: bytes) -> tuple[int, int]:
    """Of rows (file_offset, image_offset, length): blocks that hold the file's content, and those that do not."""
    good = bad = 0
    for at, where, length in rows:
        for k in range(0, min(length, len(content) - at), BLOCK):
            n = min(BLOCK, len(content) - at - k)
            equal = reader.read(where + k, n) == content[at + k : at + k + n]
            good, bad = good + equal, bad + (not equal)
    return good, bad


def told(reader: Reader, file: HostFile, content: bytes) -> None:
    """What is called the file's is the file's, and what is called reused is not; there is some of both."""
    runs = file.runs
    kept = np.isin(runs[:, 3], (RUN_DATA, RUN_CHECKED))
    good, bad = sound_and_not(reader, [(a, p, n) for a, p, n, _ in runs[kept].tolist()], content)
    assert bad == 0 and good > 9, f"{bad} blocks of others are told as the file's"
    lost = runs[runs[:, 3] == RUN_REUSED]
    good, bad = sound_and_not(reader, [(a, p, n) for a, p, n, _ in lost.tolist()], content)
    assert good == 0 and bad > 9, f"{good} blocks of the file are told as reused"


def aged(folder: Path, size: int, *mkfs: str, room_left: int = MIB) -> Disk:
    """A file system with old.img in pieces, and little room beside it."""
    disk = make(folder, size, *mkfs)
    with disk.mounted() as point:
        append_in_turns(point, ["old.img", "other.img"], 100)
        disk.record("old.img")
        if mkfs[0] == "mkfs.btrfs":  # what is full to the brim can delete nothing
            room = os.statvfs(point)
            (point / "fill").write_bytes(os.urandom(max(room.f_bavail * room.f_frsize - room_left, 0)))
        else:
            _fill(point / "fill", room_left)
    return disk


def _fill(path: Path, room_left: int) -> None:
    """Takes all room but so much, what the file system keeps for root and for itself included."""
    with path.open("wb", buffering=0) as f:
        try:
            while True:
                f.write(os.urandom(1 << 16))
        except OSError:
            f.truncate(f.tell() - room_left)


@needs_loop
def test_ext4_bitmap_copies_in_the_journal(tmp_path: Path) -> None:
    """The log shows each block that was in use after the deletion, also by files of which nothing else is left."""
    disk = aged(tmp_path, 64 * MIB, "mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", room_left=MIB // 4)
    with disk.mounted() as point:
        content = reuse(point, point / "old.img", os.sync)
    with ImageSource(disk.image) as reader:
        volume = EXT.open(reader, 0, reader.size)
        assert volume is not None
        old = best(list(volume.files()), "old.img")
        assert old.settled
        told(reader, old, content)


@needs_loop
def test_ext4_a_log_that_has_turned_settles_nothing(tmp_path: Path) -> None:
    """When the deletion has left the log, its copies can only convict: the map is not called settled."""
    disk = aged(tmp_path, 64 * MIB, "mkfs.ext4", "-q", "-b", "4096", "-J", "size=4")
    with disk.mounted() as point:
        (point / "old.img").unlink()
        for n in range(300):
            (point / f"busy{n}").mkdir()
            run("sync", "-f", point)
            (point / f"busy{n}").rmdir()
    with ImageSource(disk.image) as reader:
        volume = EXT.open(reader, 0, reader.size)
        assert volume is not None
        size = disk.truth["old.img"].size
        old = [f for f in volume.files() if f.deleted and f.size in (-1, size) and len(f.runs) > 9]
        assert old and not any(f.settled for f in old)


@needs_loop
@needs("mkfs.btrfs")
def test_btrfs_checksums_of_data(tmp_path: Path) -> None:
    """Old leaves of the checksum tree prove what is still there and convict what is not, whoever wrote it."""
    disk = aged(tmp_path, 256 * MIB, "mkfs.btrfs", "-q")
    with disk.mounted() as point:
        content = reuse(point, point / "old.img", os.sync)
    with ImageSource(disk.image) as reader:
        volume = BTRFS.open(reader, 0, reader.size)
        assert volume is not None
        old = best(list(volume.files()), "old.img")
        assert old.check is not None
        old.runs = old.check()
        assert not (old.runs[:, 3] == RUN_DATA).any(), "a sector without a verdict"
        told(reader, old, content)


@needs_loop
@needs("mkfs.xfs")
def test_xfs_maps_of_files_deleted_later(tmp_path: Path) -> None:
    """A freed inode keeps its extents and its times: of two files that claim a block the later one had it last."""
    disk = aged(tmp_path, 64 * MIB, "mkfs.xfs", "-q", "-f", "--unsupported", "-d", "agcount=1")
    with disk.mounted() as point:
        content = reuse(point, point / "old.img", os.sync)
    with ImageSource(disk.image) as reader:
        volume = XFS.open(reader, 0, reader.size)
        assert volume is not None
        settled(reader, list(volume.files()), "old.img", content)


@needs("mkntfs", "ntfs-3g")
def test_ntfs_records_of_files_deleted_later(tmp_path: Path) -> None:
    """The same by creation times in MFT records, while these are not used again themselves."""
    image = blank(tmp_path / "host.img", 64 * MIB)
    run("mkntfs", "-q", "-F", "-Q", image)
    with mounted(tmp_path / "mnt", "ntfs-3g", image) as point:
        spare = [point / f"spare{n:02d}" for n in range(3 * LATER)]  # records that the later files will take
        for path in spare:
            path.write_bytes(os.urandom(BLOCK))
        append_in_turns(point, ["old.img", "other.img"], 100)
        room = os.statvfs(point)
        (point / "fill").write_bytes(os.urandom(room.f_bavail * room.f_frsize - MIB))
        for path in spare:
            path.unlink()
        run("sync", "-f", point)
        content = reuse(point, point / "old.img", os.sync)
    with ImageSource(image) as reader:
        volume = NTFS.open(reader, 0, reader.size)
        assert volume is not None
        settled(reader, list(volume.files()), "old.img", content)


def settled(reader: Reader, files: list[HostFile], name: str, content: bytes) -> None:
    """As `told`, of the map that Rivals leave; what they cannot tell may be a guess and nothing more."""
    old = best(files, name)
    file_map = Rivals(files).settle(old, FileMap.from_host_file(old, old.size))
    rows = file_map.rows()
    good, bad = sound_and_not(reader, [(f, p, n) for f, n, p, grade, _ in rows if grade == SUPPORTED], content)
    assert bad == 0 and good > 9, f"{bad} blocks of others are called supported"
    gone = [(f, n) for f, n, p, grade, rule in rows if grade == MISSING and rule == REUSED]
    where = [(f, int(p[2]), n) for f, n in gone for p in FileMap.from_host_file(old, old.size).cut(f, n)]
    good, bad = sound_and_not(reader, where, content)
    assert good == 0 and bad > 9, f"{good} blocks of the file are called reused"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "ntfs"])
def test_a_birth_after_the_deletion_may_hide_a_file(kind: str, tmp_path: Path) -> None:
    """Quiet as long as nothing is born in an inode or record that had been another's; then a map is a guess."""
    host, make_it, mount = {
        "ext4": (EXT, ("mkfs.ext4", "-q", "-F"), ("mount", "-o", "loop")),
        "xfs": (XFS, ("mkfs.xfs", "-q", "-f", "--unsupported"), ("mount", "-o", "loop")),
        "ntfs": (NTFS, ("mkntfs", "-q", "-F", "-Q"), ("ntfs-3g",)),
    }[kind]
    if os.geteuid() != 0 or not all(shutil.which(p) for p in (make_it[0], mount[0])):
        pytest.skip("needs root and the formatter")
    image = blank(tmp_path / "host.img", 64 * MIB)
    run(*make_it, image)

    def grades(name: str) -> set[str]:
        with ImageSource(image) as reader:
            volume = host.open(reader, 0, reader.size)
            assert volume is not None
            files = list(volume.files())
            old = next(f for f in files if f.deleted and f.name == name and len(f.runs))
            old.settled = False  # ext4's log would tell more
            return set(Rivals(files, volume.quiet_since).settle(old, FileMap.from_host_file(old, old.size)).grade)

    with mounted(tmp_path / "mnt", *mount, image) as point:
        (point / "before.txt").write_bytes(os.urandom(BLOCK))
        append_in_turns(point, ["gone.img", "kept.img"], 8)
    with mounted(tmp_path / "mnt", *mount, image) as point:
        (point / "gone.img").unlink()
    assert grades("gone.img") <= {SUPPORTED, "zero"}
    with mounted(tmp_path / "mnt", *mount, image) as point:
        time.sleep(0.05)
        (point / "before.txt").unlink()  # so that NTFS uses its record again
        run("sync", "-f", point)
        (point / "after.txt").write_bytes(b"x")
    assert grades("gone.img") <= {GUESSED, MISSING, "zero"}


# --- the rule by itself --------------------------------------------------------------------------------------------
def file(name: str, place: int, blocks: int, *, born: float = -math.inf, last: float = math.inf, number: int = -1,
         certain: bool = True, kind: int = RUN_DATA) -> HostFile:
    runs = np.array([[0, place * BLOCK, blocks * BLOCK, kind]], np.int64)
    return HostFile(name, name, blocks * BLOCK, True, runs, "test", number=number, born=born, last=last,
                    certain=certain)


def outcome(mine: HostFile, *others: HostFile) -> list[tuple[int, int, str, str]]:
    """(first block, blocks, grade, rule) of a file's map among others."""
    rows = Rivals([mine, *others]).settle(mine, FileMap.from_host_file(mine, mine.size)).rows()
    return [(f // BLOCK, n // BLOCK, grade, rule) for f, n, _, grade, rule in rows]


def test_a_later_file_takes_an_earlier_one_does_not() -> None:
    """Born after the other's last block: later. Then its blocks are not the other's any more."""
    mine = file("inode 5", 10, 10, born=100, last=200, number=5)
    assert outcome(mine, file("inode 6", 12, 3, born=201, last=300, number=6)) == [
        (0, 2, SUPPORTED, "host.test"), (2, 3, MISSING, REUSED), (5, 5, SUPPORTED, "host.test")]
    assert outcome(mine, file("inode 6", 12, 3, born=1, last=99, number=6)) == [(0, 10, SUPPORTED, "host.test")]


@pytest.mark.parametrize("other", [
    file("inode 6", 12, 3, born=150, last=160, number=6),
    file("inode 6", 12, 3, number=6),
    file("inode 6", 12, 3, born=201, last=300, number=6, certain=False),
], ids=["while it lived", "no times", "an inferred map"])  # fmt: skip
def test_what_nobody_can_tell_is_a_guess(other: HostFile) -> None:
    """Without an order both keep the bytes, as a guess."""
    mine = file("inode 5", 10, 10, born=100, last=200, number=5)
    assert outcome(mine, other) == [
        (0, 2, SUPPORTED, "host.test"), (2, 3, GUESSED, CONTESTED), (5, 5, SUPPORTED, "host.test")]


def test_remnants_of_one_file_are_no_rivals() -> None:
    """Another remnant without a number, nearly all at the same places: the same file. At other places: another."""
    mine = file("inode 5", 10, 10, last=200, number=5)
    assert outcome(mine, file("extent key 1", 10, 8)) == [(0, 10, SUPPORTED, "host.test")]
    assert outcome(mine, file("extent key 1", 12, 8))[1][2:] == (GUESSED, CONTESTED)
    assert outcome(mine, file("inode 6", 10, 8, number=6))[0][2:] == (GUESSED, CONTESTED)


def test_what_a_checksum_proves_is_not_contested() -> None:
    """RUN_CHECKED bytes are the file's, whoever claims their blocks."""
    mine = file("inode 5", 10, 10, born=100, last=200, number=5, kind=RUN_CHECKED)
    assert outcome(mine, file("inode 6", 12, 3, born=201, number=6)) == [(0, 10, "proven", "host.test.checksum")]
