"""XFS hosts, on file systems that mkfs.xfs made and Linux wrote."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import run
from tests.host import loopfs
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
from vmcarve.checksums import crc32c_zeroed
from vmcarve.host._xfs_log import BufferItem
from vmcarve.host._xfs_remains import LogView, _follow
from vmcarve.host.xfs import HOST, XfsVolume
from vmcarve.model import SECTOR, Evidence, Reader
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
        old, truth = best(files, "old.img"), disk.truth["old.img"]
        # the new file has taken some of its blocks: the map is what it was, the content is not
        assert old.size == truth.size and up_to_end(old.runs, old.size) == up_to_end(truth.runs, truth.size)


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


@needs_loop
def test_a_leaf_that_was_cut_before_it_was_freed(tmp_path: Path) -> None:
    """A leaf that lost its last records to the deletion still shows them; the log's count says that they belong."""
    disk = make(tmp_path, 320 * MIB, *KINDS["v5"])
    with disk.mounted() as point:
        write_at_random(point, "thin.img", 30000, 4096, 600)
        disk.record()
    with disk.mounted() as point:
        (point / "thin.img").unlink()
    with ImageSource(disk.image) as reader:
        ends = [e.image_offset for e in swept(reader) if reader.read(e.image_offset + 16, 8) == b"\xff" * 8]
        assert len(ends) == 1
        block = bytearray(reader.read(ends[0], 4096))
    block[6:8] = (int.from_bytes(block[6:8], "big") - 50).to_bytes(2, "big")
    block[64:68] = crc32c_zeroed(bytes(block), 64).to_bytes(4, "little")
    with disk.image.open("r+b") as f:
        f.seek(ends[0])
        f.write(block)
    with ImageSource(disk.image) as reader:
        files = list(opened(reader).files())
        assert_exact(reader, best(files, "thin.img"), disk.truth["thin.img"])
    wipe_log(disk)
    with ImageSource(disk.image) as reader:
        first, second = [f for f in opened(reader).files() if f.deleted][:2]
        assert (first.origin, second.origin) == ("xfs.bmbt-slack", "xfs.bmbt") and not second.complete
        assert first.runs.tolist() == disk.truth["thin.img"].runs.tolist()


def swept(reader: Reader) -> list[Evidence]:
    """Btree leaves of an image as the sweep would confirm them."""
    signature = HOST.signatures[0]
    data = np.frombuffer(reader.read(0, reader.size).ljust(reader.size + signature.size, b"\0"), np.uint8)
    heads = np.ascontiguousarray(data[: reader.size].reshape(-1, SECTOR)[:, :4]).view("S4")[:, 0]
    hits = np.flatnonzero(heads == signature.magic) * SECTOR
    assert HOST.confirm_batch is not None
    batch = HOST.confirm_batch(data[hits[:, None] + np.arange(signature.size)], hits, signature)
    assert batch is not None and batch.volume_offset is not None and batch.value is not None
    assert isinstance(batch.identity, list) and batch.which is not None
    names = [batch.identity[i] for i in batch.which]
    return [
        Evidence(batch.kind, int(at), batch.length, volume_offset=int(place), value=int(owner), identity=name)
        for at, place, owner, name in zip(batch.image_offset, batch.volume_offset, batch.value, names, strict=True)
    ]


@needs_loop
def test_leaves_are_enough(tmp_path: Path) -> None:
    """With every superblock and group header overwritten, carve() gives the maps of long files, in all groups."""
    disk = make(tmp_path, 320 * MIB, *KINDS["v5"])
    with disk.mounted() as point:
        for i in range(8):  # folders go to groups in turns
            write_at_random(point, f"folder {i}/thin.img", 4000, 4096, 600, seed=i)
        disk.record()
    with disk.mounted() as point:
        for i in range(0, 8, 2):
            (point / f"folder {i}/thin.img").unlink()
    group = 320 * MIB // 4
    with disk.image.open("r+b") as f:
        for i in range(4):
            f.seek(i * group)
            f.write(bytes(2048))
    with ImageSource(disk.image) as reader:
        assert HOST.open(reader, 0, reader.size) is None and HOST.carve is not None
        evidence = swept(reader)
        assert all(e.image_offset == e.volume_offset for e in evidence)
        files = list(HOST.carve(reader, evidence, 0, reader.size))
        assert {int(f.runs[0, 1]) // group for f in files} == {0, 1, 2, 3}
        maps = [up_to_end(f.runs, 4000 * 4096) for f in files]
        for name in disk.truth:
            assert up_to_end(disk.truth[name].runs, 4000 * 4096) in maps, name
        assert all(f.complete and f.origin == "xfs.bmbt-leaf" for f in files)


@needs_loop
def test_version_4_as_mkfs_populates_it(tmp_path: Path) -> None:
    """Version 4 without checksums: files that mkfs.xfs put there have their names and content; free space agrees."""
    content = {f"file {i}".replace(" ", "-"): bytes([i + 1]) * (5000 * i) for i in range(40)}
    lines = ["none", "0 0", "d--755 0 0"]
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
        lines.append(f"{name} ---644 0 0 {tmp_path / name}")
    lines += ["folder d--755 0 0", f"deep.vmdk ---644 0 0 {tmp_path / 'file-7'}", "$", "$"]
    (tmp_path / "proto").write_text("\n".join(lines) + "\n")
    disk = make(tmp_path, 320 * MIB, *KINDS["v4"], "-p", str(tmp_path / "proto"))
    content["folder/deep.vmdk"] = content["file-7"]
    with ImageSource(disk.image) as reader:
        volume = opened(reader)
        assert int(volume.free()[:, 1].sum()) == free_by_xfs_db(disk.image)
        live = {f.name: loopfs.content(reader, f) for f in assert_contract(volume, reader) if not f.deleted}
        assert live == content


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A small volume with live and deleted files, and the offsets of sectors that hold metadata."""
    disk = make(tmp_path_factory.mktemp("little"), 300 * MIB, *KINDS["v5"], "-l", "size=64m")
    with disk.mounted() as point:
        append_in_turns(point, ["d/a.img", "d/b.img"], 6)
        write_at_random(point, "thin.img", 3000, 4096, 400)
        write_at_random(point, "kept.img", 3000, 4096, 400)
        run("sync", "-f", point)
        (point / "thin.img").unlink()
        (point / "d/a.img").unlink()
    heads = (b"XFSB", b"XAGF", b"XAGI", b"XAFL", b"AB3", b"IAB3", b"BMA3", b"XD", b"IN", b"\xfe\xed\xba\xbe")
    with ImageSource(disk.image) as reader:
        data = reader.read(0, reader.size)
    sectors = [i for i in range(0, len(data), 512) if data.startswith(heads, i)]
    return disk.image, [i + extra for i in sectors for extra in (0, 512, 3584)]


class Mutated:
    """An image with some bytes changed and one range missing."""

    def __init__(self, source: ImageSource, changes: list[tuple[int, bytes]], hole: tuple[int, int]) -> None:
        self._source, self._changes, self._hole = source, changes, hole

    @property
    def size(self) -> int:
        return self._source.size

    def read(self, offset: int, length: int) -> bytes:
        out = bytearray(self._source.read(offset, length))
        for at, new in [*self._changes, (self._hole[0], bytes(self._hole[1]))]:
            low, high = max(at, offset), min(at + len(new), offset + len(out))
            if low < high:
                out[low - offset : high - offset] = new[low - at : high - at]
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        at, count = self._hole
        return (at < offset + length and offset < at + count) or self._source.missing(offset, length)


@needs_loop
@settings(max_examples=12, deadline=8000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_metadata_never_raises(little: tuple[Path, list[int]], data: st.DataObject) -> None:
    """Whatever the metadata say, open, free and files keep their contract and end."""
    changes: list[tuple[int, bytes]] = []
    for _ in range(data.draw(st.integers(1, 30))):
        at = data.draw(st.sampled_from([0, 0, *little[1]])) + data.draw(st.integers(0, 511))
        changes.append((at, data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4])))))
    with ImageSource(little[0]) as source:
        reader = Mutated(source, changes, (data.draw(st.sampled_from(little[1])), 4096))
        volume = HOST.open(reader, 0, reader.size)
        if volume is not None:
            assert_contract(volume, reader)


class Shifted:
    """An image whose first byte lies at `start` of a larger one."""

    def __init__(self, source: ImageSource, start: int) -> None:
        self._source, self._start = source, start

    @property
    def size(self) -> int:
        return self._source.size + self._start

    def read(self, offset: int, length: int) -> bytes:
        before = bytes(min(max(self._start - offset, 0), length)) if offset >= 0 else b""
        return before + self._source.read(max(offset - self._start, 0), length - len(before))

    def missing(self, offset: int, length: int) -> bool:
        return self._source.missing(max(offset - self._start, 0), length - min(max(self._start - offset, 0), length))


@needs_loop
def test_a_volume_inside_an_image(little: tuple[Path, list[int]]) -> None:
    """A volume that begins at an odd sector of a larger image gives the same files, shifted."""
    start = 63 * 512
    with ImageSource(little[0]) as reader:
        moved = Shifted(reader, start)
        volume = HOST.open(moved, start, reader.size)
        assert volume is not None and volume.offset == start
        here, there = assert_contract(opened(reader), reader), assert_contract(volume, moved)
        assert [(f.identity, f.name, f.origin) for f in here] == [(f.identity, f.name, f.origin) for f in there]
        for a, b in zip(here, there, strict=True):
            assert (a.runs + (0, start, 0, 0)).tolist() == b.runs.tolist()


@needs_loop
def test_a_log_whose_end_is_gone_hides_no_file(tmp_path: Path) -> None:
    """A guest in pieces may lack the part with the unmount: what is left of its log looks unclean, and is old."""
    disk = make(tmp_path, 320 * MIB, *MKFS)
    with disk.mounted() as point:
        for n in range(60):
            (point / f"file {n}").write_bytes(b"first" * 3000)
            run("sync", "-f", point)
    with disk.mounted() as point:
        for n in range(60):
            (point / f"file {n}").write_bytes(b"then more" * 5000)
    data = disk.image.read_bytes()
    whole = opened(BytesReader(data))
    live = {f.name: f.runs.tolist() for f in whole.files() if not f.deleted}
    assert len(live) == 60
    log = whole._log
    last = log.records[-1]
    end = log._start + last.block * SECTOR
    zeroed = data[:end] + bytes(4 * SECTOR) + data[end + 4 * SECTOR :]
    for reader in (BytesReader(data, [(end, 4 * SECTOR)]), BytesReader(zeroed)):  # known to be gone, and overwritten
        volume = opened(reader)
        assert {f.name: f.runs.tolist() for f in volume.files() if not f.deleted} == live
    assert not opened(BytesReader(zeroed))._log.clean, "fixture too kind: nothing is there to be replayed"


@needs_loop
def test_the_log_has_inodes_that_are_missing(tmp_path: Path) -> None:
    """A volume that lost the inodes of its files tells them from the log, but for what was deleted since."""
    disk = make(tmp_path, 320 * MIB, *MKFS)
    with disk.mounted() as point:
        append_in_turns(point, ["first.img", "second.img"], 12, 1)
        write_at_random(point, "thin.img", 30000, 4096, 700, 1)
        (point / "gone").write_bytes(b"gone" * 9000)
        run("sync", "-f", point)
        (point / "gone").unlink()
    data = disk.image.read_bytes()
    whole = opened(BytesReader(data))

    def told(volume: XfsVolume) -> list[tuple[str, int, list[list[int]]]]:
        return sorted((f.identity, f.size, f.runs.tolist()) for f in volume.live())

    live = told(whole)
    assert len(live) == 3 and max(len(runs) for *_, runs in live) > 254
    chunks = {whole.sb.inode_place(int(identity.split()[1]) // 64 * 64) for identity, *_ in live}
    gone = [(at, 64 * whole.sb.inode_size) for at in chunks if at is not None]
    for at, length in gone:
        data = data[:at] + bytes(length) + data[at + length :]
    assert not told(opened(BytesReader(data))), "fixture too kind: the inodes are somewhere else too"
    assert told(opened(BytesReader(data, gone))) == live


@needs_loop
def test_a_btree_block_outlives_a_directory_in_its_place(tmp_path: Path) -> None:
    """The log had the map of a deleted file; that a directory got its block, and was logged there, loses nothing."""
    sb = opened(BytesReader(make(tmp_path, 320 * MIB, *MKFS).image.read_bytes())).sb
    view, place = LogView(), 8 * sb.block_size
    for lsn, magic in enumerate((b"BMA3", b"XDB3"), 1):
        _follow(view, BufferItem(lsn, place, sb.block_size, False, [(0, magic.ljust(128, b"\0"))]), sb, set())
    assert view.blocks[place].data[:4] == b"XDB3"
    assert view.former[place].data[:4] == b"BMA3"


@settings(max_examples=60, deadline=2000)
@given(st.binary(max_size=512), st.integers(0, 1 << 63))
def test_noise_is_no_volume(noise: bytes, limit: int) -> None:
    """Noise is no volume, even with the magic, at any limit."""
    data = noise.ljust(4096, b"\xa5")
    assert HOST.open(BytesReader(data), 0, limit) is None
    data = b"XFSB" + data[4:]
    volume = HOST.open(BytesReader(data), 0, limit)
    assert volume is None or assert_contract(volume, BytesReader(data)) is not None
