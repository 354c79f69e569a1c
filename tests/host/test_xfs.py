"""XFS hosts, on file systems that mkfs.xfs made and Linux wrote."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import run
from tests.host.loopfs import (
    Disk,
    append_in_turns,
    assert_contract,
    assert_exact,
    best,
    make,
    needs_loop,
    up_to_end,
    write_at_random,
)
from vmcarve.host.xfs import HOST, XfsVolume
from vmcarve.model import Reader
from vmcarve.source import BytesReader, ImageSource

MIB = 1 << 20
MKFS = ("mkfs.xfs", "-q", "-f")
KINDS = {
    "v5": MKFS,
    "v5-1k": (*MKFS, "-b", "size=1024", "-n", "size=4096"),
    "v4": (*MKFS, "-m", "crc=0,finobt=0,rmapbt=0,reflink=0"),
    "v5-old": (*MKFS, "-m", "bigtime=0,finobt=0,reflink=0", "-i", "sparse=0,size=1024"),
}
GONE = ("vm/a/first.img", "vm/a/thin.img", "small.vmdk")
KEPT = ("vm/a/second.img", "keep.img", "vm/b/notes.txt", "kept thin.img")


def fill(disk: Disk, point: Path, seed: int = 1) -> None:
    """Files that stay and files that go, grown in turns so that none lies in one piece; many names in one folder."""
    append_in_turns(point, ["vm/a/first.img", "vm/a/second.img", "keep.img"], 12, seed)
    for name in ("vm/a/thin.img", "kept thin.img"):
        write_at_random(point, name, 30000, 4096, 700, seed)
    (point / "small.vmdk").write_bytes(b"small" * 40000)
    (point / "vm/b").mkdir()
    (point / "vm/b/notes.txt").write_bytes(b"")
    disk.record()
    assert len(disk.truth["vm/a/first.img"].runs) > 2 and len(disk.truth["vm/a/thin.img"].runs) > 254


def opened(reader: Reader) -> XfsVolume:
    volume = HOST.open(reader, 0, reader.size)
    assert isinstance(volume, XfsVolume)
    return volume


def free_by_xfs_db(image: Path) -> int:
    """Free bytes as xfsprogs counts them, group by group, from the btrees and the free lists."""
    text = run("xfs_db", "-r", "-c", "freesp -s", "-c", "sb 0", "-c", "p blocksize", image).stdout
    blocks, size = re.search(r"total free blocks (\d+)", text), re.search(r"blocksize = (\d+)", text)
    assert blocks is not None and size is not None
    return int(blocks[1]) * int(size[1])


@pytest.fixture(scope="module", params=list(KINDS))
def deleted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """A file system whose files were deleted after a remount."""
    folder = tmp_path_factory.mktemp(request.param)
    disk = make(folder, 320 * MIB, *KINDS[request.param])
    with disk.mounted() as point:
        fill(disk, point)
    with disk.mounted() as point:
        for name in GONE:
            (point / name).unlink()
    return disk


@needs_loop
def test_free_is_what_xfs_db_counts(deleted: Disk) -> None:
    """Free space is that of the free space btrees and the free lists, and holds every deleted file."""
    with ImageSource(deleted.image) as reader:
        free = opened(reader).free()
    assert int(free[:, 1].sum()) == free_by_xfs_db(deleted.image)
    for name in GONE:
        for _, where, length, _ in deleted.truth[name].runs.tolist():
            assert ((free[:, 0] <= where) & (where + length <= free.sum(axis=1))).any()


@needs_loop
def test_live_files_are_the_mounted_tree(deleted: Disk) -> None:
    """Every live file has its path, size, blocks and content; nothing else is live."""
    with ImageSource(deleted.image) as reader:
        files = assert_contract(opened(reader), reader)
        live = {f.name: f for f in files if not f.deleted}
        assert set(live) == set(KEPT)
        for name in KEPT:
            assert live[name].complete and live[name].origin == "xfs.inode"
            assert_exact(reader, live[name], deleted.truth[name])


@needs_loop
def test_deleted_files_are_exact(deleted: Disk) -> None:
    """The best candidate of a deleted file has its path, size, blocks and content."""
    with ImageSource(deleted.image) as reader:
        files = list(opened(reader).files())
        for name in GONE:
            found = best(files, name)
            assert_exact(reader, found, deleted.truth[name])
            assert found.complete and found.origin == "xfs.log" and "deleted" in found.times


def wipe_log(disk: Disk) -> None:
    """Empties the log, as far as it tells of the past; a log of zeros is a clean one."""
    wanted = ("logstart", "logblocks", "agblocks", "agblklog", "blocksize")
    text = run("xfs_db", "-r", "-c", "sb 0", "-c", f"p {' '.join(wanted)}", disk.image).stdout
    value = {k: int(v) for k, v in re.findall(r"(\w+) = (\d+)", text)}
    group, block = divmod(value["logstart"], 1 << value["agblklog"])
    with disk.image.open("r+b") as f:
        f.seek((group * value["agblocks"] + block) * value["blocksize"])
        f.write(bytes(value["logblocks"] * value["blocksize"]))


@needs_loop
def test_maps_survive_the_log(deleted: Disk, tmp_path: Path) -> None:
    """Without the log, short maps are exact from inodes, long ones from btree blocks; sizes are lost."""
    if "v4" in deleted.image.parent.name:
        pytest.skip("version 4 btree blocks state no owner")
    disk = Disk(tmp_path / "copy.img", tmp_path / "mnt", deleted.truth)
    run("cp", "--sparse=always", deleted.image, disk.image)
    wipe_log(disk)
    with ImageSource(disk.image) as reader:
        files = [f for f in assert_contract(opened(reader), reader) if f.deleted]
        for name, origin in zip(GONE, ("xfs.inode", "xfs.bmbt", "xfs.inode"), strict=True):
            truth = up_to_end(deleted.truth[name].runs, -(-deleted.truth[name].size // 4096) * 4096)
            found = [f for f in files if len(f.runs) and f.runs[0, :2].tolist() == truth[0][:2]]
            assert found and found[0].origin == origin and found[0].size == -1
            assert found[0].runs.tolist() == truth and found[0].complete


@needs_loop
@pytest.mark.parametrize("kind", ["v5", "v4"])
def test_deleted_in_the_mount_that_wrote_them(tmp_path: Path, kind: str) -> None:
    """Files written and deleted in one mount are exact from the log alone."""
    disk = make(tmp_path, 320 * MIB, *KINDS[kind])
    with disk.mounted() as point:
        fill(disk, point)
        for name in GONE:
            (point / name).unlink()
    with ImageSource(disk.image) as reader:
        files = assert_contract(opened(reader), reader)
        for name in GONE:
            assert_exact(reader, best(files, name), disk.truth[name])


@needs_loop
def test_unclean_log_is_replayed_in_memory(tmp_path: Path) -> None:
    """An image taken while mounted gives the state that a mount would give; the image is not written."""
    disk = make(tmp_path, 320 * MIB, *KINDS["v5"])
    with disk.mounted() as point:
        append_in_turns(point, ["a.img", "b.img"], 10)
        write_at_random(point, "thin.img", 30000, 4096, 700)
        disk.record()
        (point / "b.img").unlink()
        run("sync", "-f", point)
        copy = tmp_path / "taken.img"
        shutil.copy(disk.image, copy)
    with ImageSource(copy) as reader:
        volume = opened(reader)
        free = int(volume.free()[:, 1].sum())
        files = assert_contract(volume, reader)
        assert {f.name for f in files if not f.deleted} == {"a.img", "thin.img"}
        for name in ("a.img", "thin.img"):
            assert_exact(reader, best(files, name, deleted=False), disk.truth[name])
        assert_exact(reader, best(files, "b.img"), disk.truth["b.img"])
    with Disk(copy, tmp_path / "mnt2").mounted("nouuid"):
        pass
    assert free == free_by_xfs_db(copy)


@needs_loop
def test_an_emptied_file_keeps_its_former_map(tmp_path: Path) -> None:
    """A file cut to nothing stays live with no content; what it held is told as deleted."""
    disk = make(tmp_path, 320 * MIB, *KINDS["v5"])
    with disk.mounted() as point:
        append_in_turns(point, ["cut.img", "other.img"], 6)
        disk.record()
    with disk.mounted() as point:
        (point / "cut.img").write_bytes(b"")
    with ImageSource(disk.image) as reader:
        files = list(opened(reader).files())
        assert best(files, "cut.img", deleted=False).size == 0
        assert_exact(reader, best(files, "cut.img"), disk.truth["cut.img"])


@needs_loop
def test_a_reused_inode_keeps_its_former_file(tmp_path: Path) -> None:
    """A file whose inode has been given to another is told apart by generation."""
    disk = make(tmp_path, 320 * MIB, *KINDS["v5"])
    with disk.mounted() as point:
        append_in_turns(point, ["old.img", "other.img"], 6)
        disk.record()
        inode = (point / "old.img").stat().st_ino
        (point / "old.img").unlink()
    with disk.mounted() as point:
        (point / "new.img").write_bytes(b"n" * 50000)
        assert (point / "new.img").stat().st_ino == inode
    with ImageSource(disk.image) as reader:
        files = list(opened(reader).files())
        assert best(files, "new.img", deleted=False).identity == f"inode {inode}"
        assert_exact(reader, best(files, "old.img"), disk.truth["old.img"])


@needs_loop
def test_names_in_large_directories(tmp_path: Path) -> None:
    """Names come from directory blocks too, in use and removed, when the log no longer tells them."""
    disk = make(tmp_path, 320 * MIB, *KINDS["v5"])
    names = [f"folder/a name long enough to need blocks {i:04d}.vdi" for i in range(300)]
    with disk.mounted() as point:
        (point / "folder").mkdir()
        for name in names:
            (point / name).write_bytes(name.encode())
        disk.record(*names[100:103])
    with disk.mounted() as point:
        for name in names[100:103]:
            (point / name).unlink()
    wipe_log(disk)
    with ImageSource(disk.image) as reader:
        files = list(opened(reader).files())
        assert {f.name for f in files if not f.deleted} == set(names) - set(names[100:103])
        for name in names[100:103]:
            assert best(files, name).runs[:, :2].tolist() == disk.truth[name].runs[:, :2].tolist()


@needs_loop
def test_a_copy_stands_in_for_the_primary(tmp_path: Path) -> None:
    """With the superblock's sector gone, the copy in the second group gives the same files."""
    disk = make(tmp_path, 320 * MIB, *KINDS["v5"])
    with disk.mounted() as point:
        append_in_turns(point, ["a.img", "b.img"], 6)
        disk.record()
    with disk.image.open("r+b") as f:
        f.write(bytes(512))
    with ImageSource(disk.image) as reader:
        files = assert_contract(opened(reader), reader)
        for name in ("a.img", "b.img"):
            assert_exact(reader, best(files, name, deleted=False), disk.truth[name])
