"""ext2, ext3 and ext4 hosts, on file systems that mke2fs made and Linux wrote."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
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
    write_at_random,
)
from vmcarve.checksums import crc32c
from vmcarve.guest.ext import begin
from vmcarve.host import _ext_super as super_
from vmcarve.host._space import joined_rows
from vmcarve.host.ext import HOST, ExtVolume
from vmcarve.model import RUN_DATA, RUN_HOLE, RUN_REUSED, SECTOR, Evidence, HostFile, Reader
from vmcarve.source import BytesReader, ImageSource

MIB = 1 << 20
KINDS = {
    "ext4-4k": ("mkfs.ext4", "-q", "-b", "4096"),
    "ext4-1k": ("mkfs.ext4", "-q", "-b", "1024"),
    "ext4-plain": ("mkfs.ext4", "-q", "-b", "4096", "-I", "128", "-O", "^metadata_csum,^64bit,^flex_bg"),
    "ext4-meta-bg": ("mkfs.ext4", "-q", "-b", "1024", "-O", "meta_bg,^resize_inode,sparse_super2"),
    "ext4-bigalloc": ("mkfs.ext4", "-q", "-b", "4096", "-O", "bigalloc", "-C", "16384"),
    "ext3-4k": ("mkfs.ext3", "-q", "-b", "4096"),
    "ext3-1k": ("mkfs.ext3", "-q", "-b", "1024"),
}
GONE = ("vm/a/first.img", "vm/a/thin.img", "small.vmdk")
KEPT = ("vm/a/second.img", "keep.img", "vm/b/notes.txt")


def fill(disk: Disk, point: Path, seed: int = 1) -> None:
    """Files that stay and files that go, grown in turns so that none lies in one piece."""
    append_in_turns(point, ["vm/a/first.img", "vm/a/second.img", "keep.img"], 12, seed)
    write_at_random(point, "vm/a/thin.img", 30000, 4096, 600, seed)
    (point / "small.vmdk").write_bytes(b"small" * 40000)
    (point / "vm/b").mkdir()
    (point / "vm/b/notes.txt").write_bytes(b"")
    disk.record()
    assert len(disk.truth["vm/a/first.img"].runs) > 4 and len(disk.truth["vm/a/thin.img"].runs) > 340


def opened(reader: Reader) -> ExtVolume:
    volume = HOST.open(reader, 0, reader.size)
    assert isinstance(volume, ExtVolume)
    return volume


def as_data(file: HostFile) -> list[list[int]]:
    """A file's rows as they were before others wrote over some of them."""
    runs = file.runs.copy()
    runs[runs[:, 3] == RUN_REUSED, 3] = RUN_DATA
    return joined_rows(runs).tolist()


def free_by_dumpe2fs(image: Path) -> int:
    """Free bytes as e2fsprogs counts them from the bitmaps, group by group.

    Seen (e2fsprogs 1.47): with bigalloc the last number of a range is the first block of its last cluster.
    """
    text = run("dumpe2fs", image).stdout
    size = re.search(r"^Block size:\s+(\d+)", text, re.M)
    cluster = re.search(r"^Cluster size:\s+(\d+)", text, re.M)
    groups = re.findall(r"^  Free blocks: (.*)$", text, re.M)
    assert size is not None
    step = int(cluster[1]) // int(size[1]) if cluster is not None else 1
    total = 0
    for group in groups:
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", group):
            total += int(last or first) - int(first) + step
    return total * int(size[1])


@pytest.fixture(scope="module", params=list(KINDS))
def deleted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """A file system whose files were deleted after a remount."""
    folder = tmp_path_factory.mktemp(request.param)
    disk = make(folder, 256 * MIB, *KINDS[request.param])
    with disk.mounted() as point:
        fill(disk, point)
    with disk.mounted() as point:
        for name in GONE:
            (point / name).unlink()
    return disk


@needs_loop
def test_free_is_what_e2fsprogs_counts(deleted: Disk) -> None:
    """Free space is the sum of the block bitmaps' clear bits, uninitialised groups included."""
    with ImageSource(deleted.image) as reader:
        free = opened(reader).free()
    assert int(free[:, 1].sum()) == free_by_dumpe2fs(deleted.image)
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
            assert live[name].complete and live[name].origin == "ext4.inode"
            assert_exact(reader, live[name], deleted.truth[name])


@needs_loop
def test_deleted_files_are_exact(deleted: Disk) -> None:
    """The best candidate of a deleted file has its path, size, blocks and content."""
    with ImageSource(deleted.image) as reader:
        files = list(opened(reader).files())
        for name in GONE:
            found = best(files, name)
            assert_exact(reader, found, deleted.truth[name])
            assert found.complete and found.origin == "ext4.journal" and "deleted" in found.times


def wipe(image: Path, start: int, length: int, seed: int | None = None) -> None:
    """Overwrites a range of the image with zeros, or with noise."""
    with image.open("r+b") as f:
        f.seek(start)
        f.write(bytes(length) if seed is None else random.Random(seed).randbytes(length))


def wipe_journal(disk: Disk) -> None:
    """Empties the journal as an hour of other work would, but for its superblock."""
    block = re.search(r"^Block size:\s+(\d+)", run("dumpe2fs", "-h", disk.image).stdout, re.M)
    assert block is not None
    unit = int(block[1])
    for number in run("debugfs", "-R", "blocks <8>", disk.image).stdout.split()[1:]:
        wipe(disk.image, int(number) * unit, unit)


def gone(disk: Disk) -> Callable[[list[HostFile], str], HostFile]:
    """Finds a deleted file by where it began, for maps that have no name."""

    def find(files: list[HostFile], name: str) -> HostFile:
        start = disk.truth[name].runs[0].tolist()
        found = [f for f in files if f.deleted and len(f.runs) and f.runs[0, :2].tolist() == start[:2]]
        assert found, f"no map begins like {name}"
        return found[0]

    return find


@needs_loop
@pytest.mark.parametrize("kind", ["ext4-4k", "ext3-1k"])
def test_deleted_in_the_mount_that_wrote_them(tmp_path: Path, kind: str) -> None:
    """Files written and deleted in one mount are exact too, from the journal."""
    disk = make(tmp_path, 128 * MIB, *KINDS[kind])
    with disk.mounted() as point:
        fill(disk, point)
        for name in GONE:
            (point / name).unlink()
    with ImageSource(disk.image) as reader:
        files = assert_contract(opened(reader), reader)
        for name in GONE:
            assert_exact(reader, best(files, name), disk.truth[name])


@needs_loop
@pytest.mark.parametrize("kind", ["ext4-4k", "ext4-plain"])
def test_extent_blocks_survive_the_journal(tmp_path: Path, kind: str) -> None:
    """With the journal gone, a file of more than four extents is exact from its extent blocks; a small one is lost."""
    disk = make(tmp_path, 128 * MIB, *KINDS[kind])
    with disk.mounted() as point:
        fill(disk, point)
    with disk.mounted() as point:
        for name in GONE:
            (point / name).unlink()
    wipe_journal(disk)
    with ImageSource(disk.image) as reader:
        files = assert_contract(opened(reader), reader)
        for name in GONE[:2]:
            found = gone(disk)(files, name)
            assert found.origin == "ext4.extent-leaf" and found.size == -1
            assert_runs(found, disk.truth[name])
            assert found.complete is (kind != "ext4-plain"), "without checksums nothing says that a map is whole"
        told = opened(reader)
        told.leaves = [e.image_offset for e in swept(reader)]
        again = [(f.identity, f.origin, f.runs.tolist()) for f in told.files()]
        assert again == [(f.identity, f.origin, f.runs.tolist()) for f in files], "a sweep's finds replace our own"
        small = disk.truth["small.vmdk"].runs[0, 1]
        assert not any((f.runs[:, 1] == small).any() for f in files)


@needs_loop
@pytest.mark.parametrize("kind", ["ext4-1k", "ext4-plain"])
def test_extent_blocks_are_enough(tmp_path: Path, kind: str) -> None:
    """With superblocks, descriptors, inode tables and journal gone, carve() gives the maps of fragmented files."""
    disk = make(tmp_path, 128 * MIB, *KINDS[kind])
    with disk.mounted() as point:
        fill(disk, point)
    with disk.mounted() as point:
        for name in GONE:
            (point / name).unlink()
    wipe_journal(disk)
    text = run("dumpe2fs", disk.image).stdout
    unit = 1024 if kind == "ext4-1k" else 4096
    for first, last in re.findall(r"(?:Inode table at|superblock at|Group descriptors at) (\d+)(?:-(\d+))?", text):
        wipe(disk.image, int(first) * unit, (int(last or first) - int(first) + 1) * unit, seed=1)
    wipe(disk.image, 0, 65536, seed=2)
    with ImageSource(disk.image) as reader:
        assert HOST.open(reader, 0, reader.size) is None
        assert HOST.carve is not None
        files = list(HOST.carve(reader, swept(reader), 0, reader.size))
        assert_contract(_Carved(files, reader.size), reader)
        for name in (*GONE[:2], *KEPT[:2]):
            found = gone(disk)(files, name)
            assert found.origin == "ext4.extent-leaf"
            assert_runs(found, disk.truth[name])


def assert_runs(found: HostFile, truth: HostFile) -> None:
    """All the truth's runs and nothing but holes between them: each of those from the end of one to the next."""
    data = found.runs[found.runs[:, 3] == RUN_DATA]
    assert data.tolist() == truth.runs.tolist()
    holes = found.runs[found.runs[:, 3] != RUN_DATA]
    between = set(zip((data[:-1, 0] + data[:-1, 2]).tolist(), data[1:, 0].tolist(), strict=True))
    assert {(f, f + n) for f, _, n, kind in holes.tolist() if kind == RUN_HOLE} <= between
    assert len(holes) == 0 if found.complete else len(holes) >= 0.9 * sum(a < b for a, b in between)


class _Carved:
    """What carve() gave, judged by the same contract as a volume."""

    name, offset, block_size, uuid, label = "ext4", 0, 4096, "", ""

    def __init__(self, files: list[HostFile], size: int) -> None:
        self._files, self.size = files, size

    def free(self) -> np.ndarray:
        return np.zeros((0, 2), np.int64)

    def files(self) -> Iterator[HostFile]:
        return iter(self._files)

    def live(self) -> Iterator[HostFile]:
        return (f for f in self._files if not f.deleted)


def swept(reader: Reader) -> list[Evidence]:
    """Extent blocks of an image as the sweep would confirm them."""
    signature = HOST.signatures[0]
    data = np.frombuffer(reader.read(0, reader.size).ljust(reader.size + signature.size, b"\0"), np.uint8)
    places = np.arange(0, reader.size, SECTOR)
    hits = places[(data[places] == 0x0A) & (data[places + 1] == 0xF3)]
    blocks = data[hits[:, None] + np.arange(signature.size)]
    assert HOST.confirm_batch is not None
    batch = HOST.confirm_batch(blocks, hits, signature)
    assert batch is not None and (np.diff(batch.image_offset) > 0).all()
    return [Evidence(batch.kind, int(at), batch.length) for at in batch.image_offset]


@needs_loop
@pytest.mark.parametrize("kind", ["ext3-4k", "ext3-1k"])
def test_indirect_blocks_survive_the_journal(tmp_path: Path, kind: str) -> None:
    """With the journal gone, an ext3 file follows from its indirect blocks; its first 12 blocks are a guess."""
    disk = make(tmp_path, 128 * MIB, *KINDS[kind])
    with disk.mounted() as point:
        append_in_turns(point, ["one.img", "two.img"], 40, seed=5)
        disk.record()
    with disk.mounted() as point:
        (point / "one.img").unlink()
    wipe_journal(disk)
    unit = disk_block(disk)
    with ImageSource(disk.image) as reader:
        files = assert_contract(opened(reader), reader)
        guess = [f for f in files if f.origin == "ext3.indirect-guess"]
        sure = [f for f in files if f.origin == "ext3.indirect"]
        assert disk.truth["one.img"].runs.tolist() in [f.runs.tolist() for f in guess]
        assert sure[-1].runs[0, 0] == 12 * unit and not sure[-1].complete


def disk_block(disk: Disk) -> int:
    """Block size as e2fsprogs tells it."""
    found = re.search(r"^Block size:\s+(\d+)", run("dumpe2fs", "-h", disk.image).stdout, re.M)
    assert found is not None
    return int(found[1])


@needs_loop
def test_unclean_journal_is_replayed_in_memory(tmp_path: Path) -> None:
    """An image taken while mounted gives the state that a replay by e2fsck gives; the image is not written."""
    disk = make(tmp_path, 64 * MIB, *KINDS["ext4-4k"])
    with disk.mounted() as point:
        append_in_turns(point, ["a.img", "b.img"], 10)
        disk.record()
        (point / "b.img").unlink()
        run("sync", "-f", point)
        copy = tmp_path / "taken.img"
        shutil.copy(disk.image, copy)
    assert "needs_recovery" in run("dumpe2fs", "-h", copy).stdout
    with ImageSource(copy) as reader:
        volume = opened(reader)
        free = int(volume.free()[:, 1].sum())
        files = assert_contract(volume, reader)
        assert_exact(reader, best(files, "a.img", deleted=False), disk.truth["a.img"])
        assert_exact(reader, best(files, "b.img"), disk.truth["b.img"])
    run("e2fsck", "-fy", copy, check=False)
    assert free == free_by_dumpe2fs(copy)


@needs_loop
@pytest.mark.parametrize("kind", ["ext4-4k", "ext4-1k", "ext3-4k"])
def test_the_journal_has_what_is_missing(tmp_path: Path, kind: str) -> None:
    """A volume that lost its bitmaps and the inodes of its first group, the journal's own among them, tells the same
    files and the same free space, from the copies in the journal."""
    disk = make(tmp_path, 64 * MIB, *KINDS[kind])
    with disk.mounted() as point:
        append_in_turns(point, ["a.img", "vm/b.img"], 10)
        (point / "gone").write_bytes(b"gone" * 9000)
        run("sync", "-f", point)
        (point / "gone").unlink()
    data = bytearray(disk.image.read_bytes())
    whole = opened(BytesReader(bytes(data)))
    bs, groups, sb = whole.block_size, whole._groups, whole.sb
    gone = [(int(groups.inode_table[0]) * bs, sb.inodes_per_group * sb.inode_size)]
    gone += [(int(at) * bs, bs) for at in (groups.block_bitmap[0], groups.inode_bitmap[0])]
    for at, length in gone:
        data[at : at + length] = bytes(length)

    def told(volume: ExtVolume) -> list[tuple[str, int, list[list[int]]]]:
        return sorted((f.identity, f.size, f.runs.tolist()) for f in volume.live())

    assert len(told(whole)) == 2
    assert not told(opened(BytesReader(bytes(data)))), "fixture too kind: the inodes are somewhere else too"
    volume = opened(BytesReader(bytes(data), gone))
    assert told(volume) == told(whole)
    assert volume.free().tolist() == whole.free().tolist()


@needs_loop
def test_a_reused_inode_keeps_its_former_file(tmp_path: Path) -> None:
    """A file whose inode has been given to another is told apart by generation, and keeps its own name and map."""
    disk = make(tmp_path, 64 * MIB, *KINDS["ext4-4k"])
    with disk.mounted() as point:
        append_in_turns(point, ["old.img", "other.img"], 6)
        disk.record()
        inode = (point / "old.img").stat().st_ino
        (point / "old.img").unlink()
        run("sync", "-f", point)
        (point / "new.img").write_bytes(b"n" * 50000)
        assert (point / "new.img").stat().st_ino == inode
    with ImageSource(disk.image) as reader:
        files = list(opened(reader).files())
        assert best(files, "new.img", deleted=False).identity == f"inode {inode}"
        old = best(files, "old.img")
        assert old.identity.startswith(f"inode {inode} generation ")
        assert as_data(old) == disk.truth["old.img"].runs.tolist()
        new = best(files, "new.img", deleted=False).runs
        taken = [b for _, p, n, kind in old.runs.tolist() if kind == RUN_REUSED for b in range(p, p + n, 4096)]
        theirs = {b for _, p, n, _ in new.tolist() for b in range(p, p + n, 4096)}
        assert set(taken) == theirs & {b for _, p, n, _ in old.runs.tolist() for b in range(p, p + n, 4096)}


@needs_loop
def test_an_emptied_file_keeps_its_former_map(tmp_path: Path) -> None:
    """A file cut to nothing stays live with no content; what it held is told as deleted."""
    disk = make(tmp_path, 64 * MIB, *KINDS["ext4-4k"])
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
def test_preallocated_parts_are_unwritten(tmp_path: Path) -> None:
    """Blocks that were allocated and never written are told as unwritten, holes not at all."""
    disk = make(tmp_path, 64 * MIB, *KINDS["ext4-4k"])
    with disk.mounted() as point:
        with (point / "pre.img").open("wb") as f:
            f.write(b"p" * 8192)
        run("fallocate", "-o", "32768", "-l", "65536", point / "pre.img")
        disk.record()
    kinds = disk.truth["pre.img"].runs[:, 3].tolist()
    assert kinds == [0, 2]
    with ImageSource(disk.image) as reader:
        assert_exact(reader, best(list(opened(reader).files()), "pre.img", deleted=False), disk.truth["pre.img"])


@needs_loop
def test_backups_stand_in_for_the_primary(tmp_path: Path) -> None:
    """With the first 64 KiB of every descriptor table and the superblock gone, the backups give the same files."""
    disk = make(tmp_path, 64 * MIB, *KINDS["ext4-1k"])
    with disk.mounted() as point:
        append_in_turns(point, ["a.img", "b.img"], 6)
        disk.record()
    wipe(disk.image, 0, 3 * 1024)
    with ImageSource(disk.image) as reader:
        files = assert_contract(opened(reader), reader)
        for name in ("a.img", "b.img"):
            assert_exact(reader, best(files, name, deleted=False), disk.truth[name])
    wipe(disk.image, 0, 1)
    with disk.image.open("r+b") as f:
        f.write(b"XFSB")
    with ImageSource(disk.image) as reader:
        assert HOST.open(reader, 0, reader.size) is None, "backups outlive a new mkfs: another file system begins here"


@needs_loop
def test_lost_bitmaps_leave_what_no_file_claims(tmp_path: Path) -> None:
    """Where bitmaps cannot be read, free space is what no live file and no metadata takes."""
    disk = make(tmp_path, 64 * MIB, *KINDS["ext4-4k"])
    with disk.mounted() as point:
        append_in_turns(point, ["a.img", "b.img"], 6)
        write_at_random(point, "thin.img", 30000, 4096, 900)
        disk.record()
    data = disk.image.read_bytes()
    whole = opened(BytesReader(data)).free()
    at = re.search(r"Block bitmap at (\d+)", run("dumpe2fs", disk.image).stdout)
    assert at is not None
    lost = BytesReader(data, [(int(at[1]) * 4096, 4096)])
    assert opened(lost).free().tolist() == whole.tolist()


@needs_loop
@pytest.mark.parametrize("kind", ["ext4-4k", "ext4-1k", "ext3-1k"])
def test_a_log_that_was_written_back_has_metadata_that_is_lost(tmp_path: Path, kind: str) -> None:
    """Where all descriptors, bitmaps and inodes but the superblock are lost, the log's copies give the same files."""
    disk = make(tmp_path, 64 * MIB, *KINDS[kind])
    with disk.mounted() as point:
        append_in_turns(point, ["a.img", "d/b.img"], 6)
        write_at_random(point, "thin.img", 30000, 4096, 200)
        disk.record()
    data = disk.image.read_bytes()
    whole = opened(BytesReader(data))
    wanted = [(f.identity, f.size, f.runs.tolist()) for f in whole.live()]
    assert len(wanted) == 3
    block = whole.block_size
    runs = super_.metadata_runs(whole.sb, super_.Groups(BytesReader(data), whole.sb))
    holes = [(max(at * block, 2048), n * block - max(0, 2048 - at * block)) for at, n in runs.tolist()]
    lost = opened(BytesReader(data, holes))
    assert [(f.identity, f.size, f.runs.tolist()) for f in lost.live()] == wanted
    newest = max(whole._log.commits)
    at = int(whole._log.where[whole._log.seq == newest].max()) + block  # its commit
    assert not list(opened(BytesReader(data, [*holes, (at, block)])).live()), "newer copies may be in what is lost"
    oldest = int(whole._log.where.min())
    some = [(f.identity, f.size, f.runs.tolist()) for f in opened(BytesReader(data, [*holes, (oldest, block)])).live()]
    assert all(file in wanted for file in some), "of what was written before a part that is lost nothing is believed"


@needs_loop
def test_what_begins_a_volume_again_hides_no_inode(tmp_path: Path) -> None:
    """Descriptors of a copy are those of the new volume, in which no inode was used: nothing of that is kept."""
    disk = make(tmp_path, 32 * MIB, *KINDS["ext4-1k"])
    with disk.mounted() as point:
        append_in_turns(point, ["a.img", "d/b.img"], 6)
        disk.record()
    data = disk.image.read_bytes()
    made = begin(BytesReader(data), 8193 * 1024)
    assert made is not None
    again = opened(BytesReader(made.data + data[len(made.data) :]))
    wanted = [(f.identity, f.runs.tolist()) for f in opened(BytesReader(data)).live()]
    assert [(f.identity, f.runs.tolist()) for f in again.live()] == wanted
    assert again.free().tolist() == opened(BytesReader(data)).free().tolist()


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int]]:
    """A small volume with live and deleted files, and the offsets of blocks that hold metadata."""
    folder = tmp_path_factory.mktemp("little")
    disk = make(folder, 8 * MIB, "mkfs.ext4", "-q", "-b", "1024", "-N", "128", "-J", "size=1")
    with disk.mounted() as point:
        append_in_turns(point, ["d/a.img", "d/b.img"], 6)
        write_at_random(point, "thin.img", 3000, 1024, 300)
        run("sync", "-f", point)
        (point / "thin.img").unlink()
        (point / "d/a.img").unlink()
    data = disk.image.read_bytes()
    content = re.compile(rb"(d/[ab]|thin)\.img \d{9} ")
    return data, [i for i in range(0, len(data), 1024) if any(data[i : i + 1024]) and not content.match(data, i)]


@needs_loop
@settings(max_examples=25, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_metadata_never_raises(little: tuple[bytes, list[int]], data: st.DataObject) -> None:
    """Whatever the metadata say, open, free and files keep their contract and end."""
    image = bytearray(little[0])
    for _ in range(data.draw(st.integers(1, 30))):
        block = data.draw(st.sampled_from([1024, 2048, *little[1]]))
        at = block + data.draw(st.integers(0, 1023))
        new = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, bytes(4)])))
        image[at : at + len(new)] = new
    reader = BytesReader(bytes(image[: 8 * MIB]), [(data.draw(st.integers(0, 8191)) * 1024, 4096)])
    volume = HOST.open(reader, 0, reader.size)
    if volume is not None:
        assert_contract(volume, reader)


@needs_loop
def test_a_volume_inside_an_image(little: tuple[bytes, list[int]]) -> None:
    """A volume that begins at an odd sector of a larger image gives the same files, shifted, and stays inside it."""
    start = 63 * 512
    reader, moved = BytesReader(little[0]), BytesReader(bytes(start) + little[0] + b"\x0a\xf3" * 4096)
    volume = HOST.open(moved, start, len(little[0]))
    assert volume is not None and (volume.offset, volume.size) == (start, len(little[0]))
    here, there = assert_contract(opened(reader), reader), assert_contract(volume, moved)
    assert [(f.identity, f.name, f.origin) for f in here] == [(f.identity, f.name, f.origin) for f in there]
    for a, b in zip(here, there, strict=True):
        assert (a.runs + (0, start, 0, 0)).tolist() == b.runs.tolist()
    assert (opened(reader).free() + (start, 0)).tolist() == volume.free().tolist()


@settings(max_examples=60, deadline=2000)
@given(st.binary(max_size=2048), st.integers(0, 1 << 63))
def test_noise_is_no_volume(noise: bytes, limit: int) -> None:
    """Noise is no volume, even with the magic, at any limit."""
    data = bytearray(noise.ljust(4096, b"\xa5"))
    assert HOST.open(BytesReader(bytes(data)), 0, limit) is None
    data[1080:1082] = b"\x53\xef"
    volume = HOST.open(BytesReader(bytes(data)), 0, limit)
    assert volume is None or assert_contract(volume, BytesReader(bytes(data))) is not None


@needs_loop
def test_a_leaf_that_was_cut_before_it_was_freed(tmp_path: Path) -> None:
    """Where the deletion cut a leaf in place, the inode's count of blocks tells, and the journal has the whole leaf."""
    disk = make(tmp_path, 64 * MIB, *KINDS["ext4-4k"])
    with disk.mounted() as point:
        write_at_random(point, "thin.img", 30000, 4096, 600)
        disk.record()
    with disk.mounted() as point:
        (point / "thin.img").unlink()
    with ImageSource(disk.image) as reader:
        volume = opened(reader)
        free = volume.free()
        found = [e.image_offset for e in swept(reader)]
        found = [at for at in found if ((free[:, 0] <= at) & (at < free.sum(axis=1))).any()]
        leaves = [bytearray(reader.read(at, 4096)) for at in found]
        at, block = max(zip(found, leaves, strict=True), key=lambda f: f[1][12:16][::-1])
        deleted = best(list(volume.files()), "thin.img")
    count = int.from_bytes(block[2:4], "little") - 50
    block[2:4] = count.to_bytes(2, "little")
    block[12 + 12 * count : 4092] = bytes(4080 - 12 * count)
    inode, generation = int(deleted.identity.split()[1]), int(deleted.identity.split()[-1], 16)
    seed = crc32c(volume.sb.uuid) ^ 0xFFFFFFFF
    body = inode.to_bytes(4, "little") + generation.to_bytes(4, "little") + bytes(block[:4092])
    block[4092:] = (crc32c(body, seed ^ 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "little")
    with disk.image.open("r+b") as f:
        f.seek(at)
        f.write(block)
    with ImageSource(disk.image) as reader:
        assert_exact(reader, best(list(opened(reader).files()), "thin.img"), disk.truth["thin.img"])
    wipe_journal(disk)
    with ImageSource(disk.image) as reader:
        first = next(f for f in opened(reader).files() if f.deleted)
        assert int(first.runs[:, 2].sum()) == (600 - 50) * 4096 and first.origin == "ext4.extent-leaf"


@needs_loop
def test_unlinked_while_open(tmp_path: Path) -> None:
    """A file that was deleted while a program held it open is told as deleted, whole, and its space as free."""
    disk = make(tmp_path, 64 * MIB, *KINDS["ext4-4k"])
    with disk.mounted() as point:
        append_in_turns(point, ["open.img", "other.img"], 6)
        disk.record()
        with (point / "open.img").open("rb"):
            (point / "open.img").unlink()
            run("sync", "-f", point)
            copy = tmp_path / "taken.img"
            shutil.copy(disk.image, copy)
    with ImageSource(copy) as reader:
        volume = opened(reader)
        found = best(list(volume.files()), "open.img")
        assert found.origin == "ext4.inode"
        assert_exact(reader, found, disk.truth["open.img"])
        free = int(volume.free()[:, 1].sum())
    run("e2fsck", "-fy", copy, check=False)
    assert free == free_by_dumpe2fs(copy)
