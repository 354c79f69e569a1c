"""Btrfs host: live and deleted files of volumes that the kernel wrote, judged by content and by `btrfs fi usage`."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcarve.blocks import Blocks
from vmcarve.host import _btrfs_batch, _btrfs_deleted, _btrfs_scan
from vmcarve.host._btrfs_carve import SIGNATURE, confirm_batch
from vmcarve.host._btrfs_disk import DATA, METADATA, SUPER_ROOM, SYSTEM, Chunk, Chunks, checksum
from vmcarve.host.btrfs import HOST
from vmcarve.model import RUN_DATA, RUN_HOLE, RUN_UNWRITTEN, HostFile, HostVolume, Reader
from vmcarve.source import BytesReader, ImageSource

from .written import (
    MIB,
    append_in_turns,
    assert_disjoint,
    blank,
    by_name,
    check_file,
    check_free,
    content,
    loop_device,
    mounted,
    needs,
    run,
    stamped,
    write_sparsely,
)

HAS_BTRFS = "btrfs" in Path("/proc/filesystems").read_text() if os.path.exists("/proc/filesystems") else False
TOOLS = needs("mkfs.btrfs", "btrfs", "losetup")
KERNEL = pytest.mark.skipif(not HAS_BTRFS, reason="this kernel has no Btrfs")
SIZE = 160 * MIB
START = MIB + 4096  # the volume does not begin at the image's first byte
PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


@dataclass(repr=False)  # contents are megabytes
class Scene:
    """A volume; contents: path -> bytes of all files, live: those not deleted; usage: what btrfs said last."""

    volume: Path
    contents: dict[str, bytes]
    live: set[str]
    usage: str


def opened(reader: Reader, offset: int = 0, limit: int = SIZE) -> HostVolume:
    volume = HOST.open(reader, offset, limit)
    assert volume is not None
    return volume


def _sync(top: Path) -> None:
    run("btrfs", "filesystem", "sync", top)


def _history(path: Path, rng: random.Random, tag: int) -> bytes:
    """A file that was written, overwritten, punched, cut and grown again, committed in between: its last content."""
    unit, count = 16384, 128
    held = bytearray(stamped(tag, 0, unit * count))
    with path.open("wb", buffering=0) as file:
        file.write(held)
        _sync(path.parent)
        for turn in range(1, 4):
            for k in rng.sample(range(count), 24):
                data = stamped(tag + turn, k * unit, unit)
                os.pwrite(file.fileno(), data, k * unit)
                held[k * unit : (k + 1) * unit] = data
            _sync(path.parent)
            for k in rng.sample(range(count), 6):
                run("fallocate", "--punch-hole", "-o", str(k * unit), "-l", str(unit), path)
                held[k * unit : (k + 1) * unit] = bytes(unit)
            _sync(path.parent)
        os.ftruncate(file.fileno(), (count - 20) * unit + 100)
        _sync(path.parent)
        os.ftruncate(file.fileno(), (count + 5) * unit)
        held[(count - 20) * unit + 100 :] = bytes(25 * unit - 100)
    return bytes(held)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Interleaved appends, sparse random writes, a file with a history, two subvolumes, deletion after a remount."""
    folder = tmp_path_factory.mktemp("btrfs")
    rng = random.Random(7)
    volume = blank(folder / "volume", SIZE)
    run("mkfs.btrfs", "-q", "-L", "Wirt", "-m", "dup", "-d", "single", volume)
    contents: dict[str, bytes] = {}
    mount = ("mount", "-t", "btrfs")
    with loop_device(volume) as device:
        with mounted(folder / "mnt", *mount, device) as top:
            (top / "VMs" / "gone").mkdir(parents=True)
            run("btrfs", "subvolume", "create", top / "VMs/sub")
            paths = [top / "VMs/a.vhdx", top / "VMs/gone/b.vmdk", top / "live.vdi", top / "VMs/sub/c.img"]
            named = append_in_turns(paths, 2 * MIB, rng)
            contents |= {str(p.relative_to(top)): named[p.name] for p in paths}
            for tag, name in ((20, "VMs/sparse.raw"), (21, "VMs/live sparse.raw")):
                contents[name] = write_sparsely(top / name, 16 * MIB, 16384, 0.4, rng, tag)
            for tag, name in ((30, "VMs/history.img"), (40, "live history.img")):
                contents[name] = _history(top / name, rng, tag)
            for name in ("tiny.txt", "VMs/gone/tiny ☃.txt"):
                contents[name] = b"inline " + name.encode()
                (top / name).write_bytes(contents[name])
            with (top / "reserved.img").open("wb") as file:
                file.write(stamped(50, 0, 8192))
                os.posix_fallocate(file.fileno(), 0, MIB)
            contents["reserved.img"] = stamped(50, 0, 8192) + bytes(MIB - 8192)
            (top / "same-mount.img").write_bytes(stamped(51, 0, MIB))
            contents["same-mount.img"] = stamped(51, 0, MIB)
            _sync(top)
            (top / "same-mount.img").unlink()
        live = {"live.vdi", "VMs/live sparse.raw", "live history.img", "tiny.txt", "reserved.img"}
        with mounted(folder / "mnt", *mount, device) as top:
            for name in set(contents) - live - {"same-mount.img"}:
                (top / name).unlink()
            (top / "VMs/gone").rmdir()
        with mounted(folder / "mnt", *mount, "-o", "ro", device) as top:
            usage = run("btrfs", "filesystem", "usage", "-b", top)
    yield Scene(volume, contents, live, usage)
    shutil.rmtree(folder)


@TOOLS
@KERNEL
def test_live_and_deleted_files_read_back_whole(scene: Scene) -> None:
    """Every file is found under its path and reads back through its runs, deleted ones as they last were."""
    with ImageSource(scene.volume) as reader:
        volume = opened(reader)
        found = {f.name: f for f in volume.files()}
        flags = [f.deleted for f in volume.files()]
    assert flags == sorted(flags) and len(flags) == len(scene.contents) == len(found)
    with ImageSource(scene.volume) as reader:
        for name, wanted in scene.contents.items():
            file = found[name]
            check_file(file, SIZE)
            assert file.deleted == (name not in scene.live), name
            assert content(reader, file) == wanted and file.size == len(wanted), name
            assert file.complete and file.times["modified"] > 1e9, name
    sparse = found["VMs/sparse.raw"].runs
    assert (sparse[:, 3] == RUN_DATA).sum() > 200 and len(found["VMs/a.vhdx"].runs) > 8, "fixture too kind"
    assert (found["reserved.img"].runs[:, 3] == RUN_UNWRITTEN).any()
    assert found["tiny.txt"].inline is not None and found["VMs/gone/tiny ☃.txt"].inline is not None


@TOOLS
@KERNEL
def test_volume_inside_an_image(scene: Scene) -> None:
    """Offsets are image offsets when the volume begins in the middle of an image."""
    data = bytes(START) + scene.volume.read_bytes() + bytes(MIB)
    reader = BytesReader(data)
    volume = opened(reader, START)
    free = volume.free()
    check_free(free, START + MIB, START + SIZE)
    for name, file in by_name(volume).items():
        assert content(reader, file) == scene.contents[name]
    with ImageSource(scene.volume) as source:
        assert np.array_equal(opened(source).free() + [START, 0], free)


def _free_bytes(usage: str) -> int:
    data = re.search(r"Data,\w+: Size:(\d+), Used:(\d+)", usage)
    rest = re.search(r"Unallocated:\n\s+\S+\s+(\d+)", usage)
    assert data and rest
    return int(data[1]) - int(data[2]) + int(rest[1]) - MIB  # no chunk ever lies in the first MiB


@TOOLS
@KERNEL
def test_free_is_what_btrfs_counts(scene: Scene) -> None:
    """Free space is data chunks less their use plus unallocated space, as `btrfs filesystem usage` tells."""
    with ImageSource(scene.volume) as reader:
        volume = opened(reader)
        free, files = volume.free(), list(volume.files())
    check_free(free, MIB, SIZE)
    assert free[:, 1].sum() == _free_bytes(scene.usage)
    assert_disjoint(free, [f for f in files if not f.deleted])
    assert volume.label == "Wirt" and volume.block_size == 4096 and len(volume.uuid) == 36


def _told(files: Iterator[HostFile]) -> list[tuple[str, str, bool, bool, list[list[int]]]]:
    return [(f.identity, f.name, f.deleted, f.complete, f.runs.tolist()) for f in files]


@TOOLS
@KERNEL
@pytest.mark.parametrize("loss", ["superblock", "first metadata copies"])
def test_redundant_copies_are_used(scene: Scene, loss: str) -> None:
    """The second superblock, and the second copy of DUP metadata, stand in for what is unreadable."""
    data = scene.volume.read_bytes()
    whole = opened(BytesReader(data))
    wanted, free = _told(whole.files()), whole.free()
    chunks = whole._chunks.all  # type: ignore[attr-defined]
    holes = [(c.copies[0], c.length) for c in chunks if c.kind & (METADATA | SYSTEM)]
    assert all(len(c.copies) == 2 for c in chunks if c.kind & METADATA)
    hurt = opened(BytesReader(data, holes if loss != "superblock" else [(64 << 10, 4096)]))
    assert _told(hurt.files()) == wanted and np.array_equal(hurt.free(), free)


@TOOLS
@KERNEL
def test_damaged_leaves_cost_only_what_they_held(scene: Scene) -> None:
    """With live leaves overwritten, nothing raises, what is still told is right, and lost maps are not complete."""
    data = bytearray(scene.volume.read_bytes())
    volume = opened(BytesReader(bytes(data)))
    trees = volume._trees()  # type: ignore[attr-defined]
    roots = volume._subvolumes(trees)[0]  # type: ignore[attr-defined]
    leaves = list(trees.leaves(roots[0].block, roots[0].level, roots[0].generation))
    assert len(leaves) > 3
    for leaf in leaves[1:3]:
        for at in volume._chunks.copies(leaf.block, 16384):  # type: ignore[attr-defined]
            data[at + 200 : at + 300] = bytes(100)
    reader = BytesReader(bytes(data))
    files = list(opened(reader).files())
    assert not all(f.complete for f in files)
    for file in files:
        check_file(file, SIZE)
        wanted = scene.contents.get(file.name)
        if file.complete and wanted is not None:
            assert content(reader, file) == wanted
        if wanted is not None and not file.deleted:
            for at, image_offset, length, kind in file.runs.tolist():
                if kind == RUN_DATA:
                    assert reader.read(image_offset, length) == wanted[at : at + length]


@TOOLS
@KERNEL
def test_small_batches_give_the_same(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted files put together a few at a time, with rows merged early, are the same files."""
    with ImageSource(scene.volume) as reader:
        wanted = _told(opened(reader).files())
        monkeypatch.setattr(_btrfs_deleted, "OUR_MAX_ROWS", 1)
        monkeypatch.setattr(_btrfs_scan, "PIECE", 65536)
        assert _told(opened(reader).files()) == wanted
        monkeypatch.setattr(_btrfs_batch, "OUR_MAX_ROWS", 600)
        assert _told(opened(reader).files()) == wanted
        monkeypatch.setattr(_btrfs_batch, "OUR_MAX_ROWS", 20)
        for file in opened(reader).files():
            check_file(file, SIZE)


@TOOLS
@KERNEL
def test_broken_extent_tree_falls_back_on_live_files(scene: Scene) -> None:
    """With the extent tree gone, free data space is what no live file claims (hidden parts of extents included)."""
    data = bytearray(scene.volume.read_bytes())
    volume = opened(BytesReader(bytes(data)))
    before = volume.free()
    items = [m.start() for m in re.finditer(re.escape(struct.pack("<Q", 2)), data) if m.start() % 16384 == 88]
    for at in items:  # owner of a node: the extent tree
        data[at] ^= 0xFF
    hurt = opened(BytesReader(bytes(data)))
    free = hurt.free()
    check_free(free, MIB, SIZE)
    assert_disjoint(free, [f for f in hurt.files() if not f.deleted])
    assert 0 <= int(free[:, 1].sum()) - int(before[:, 1].sum()) < 2 * MIB


@TOOLS
@KERNEL
@pytest.mark.parametrize("options", [("--csum", "xxhash"), ("--csum", "sha256"), ("--csum", "blake2"),
                                     ("--mixed", "-n", "4096"), ("-n", "65536", "-O", "^no-holes")],
                         ids=["xxhash", "sha256", "blake2", "mixed", "holes told"])  # fmt: skip
def test_other_formats(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Other checksums, mixed block groups, large nodes, told holes: live and deleted files and free space hold."""
    volume = blank(tmp_path / "volume", 128 * MIB)
    run("mkfs.btrfs", "-q", *options, volume)
    rng = random.Random(1)
    with loop_device(volume) as device:
        with mounted(tmp_path / "mnt", "mount", "-t", "btrfs", device) as top:
            wanted = append_in_turns([top / "live", top / "gone"], MIB // 2, rng)
            wanted["gone too"] = write_sparsely(top / "gone too", 4 * MIB, 16384, 0.3, rng, 9)
        with mounted(tmp_path / "mnt", "mount", "-t", "btrfs", device) as top:
            (top / "gone").unlink()
            (top / "gone too").unlink()
        with mounted(tmp_path / "mnt", "mount", "-t", "btrfs", "-o", "ro", device) as top:
            usage = run("btrfs", "filesystem", "usage", "-b", top)
    with ImageSource(volume) as reader:
        host = opened(reader, 0, 128 * MIB)
        found = by_name(host)
        assert set(found) == set(wanted)
        for name, file in found.items():
            check_file(file, 128 * MIB)
            assert content(reader, file) == wanted[name] and file.complete and file.deleted == (name != "live"), name
        free = host.free()
    check_free(free, MIB, 128 * MIB)
    counted = _free_bytes(usage.replace("Data+Metadata", "Data"))
    assert free[:, 1].sum() in (counted, counted - SUPER_ROOM), "less the room of the second superblock if unallocated"
    volume.unlink()


@TOOLS
@KERNEL
def test_compressed_extents_have_no_rows(tmp_path: Path) -> None:
    """Compressed extents are never told as a file's bytes, live or deleted; the size still is."""
    volume = blank(tmp_path / "volume", 128 * MIB)
    run("mkfs.btrfs", "-q", volume)
    packed = b"over and over " * 60000
    with loop_device(volume) as device:
        with mounted(tmp_path / "mnt", "mount", "-t", "btrfs", "-o", "compress-force=zstd", device) as top:
            for name in ("live", "gone"):
                (top / name).write_bytes(packed)
        with mounted(tmp_path / "mnt", "mount", "-t", "btrfs", device) as top:
            (top / "gone").unlink()
    with ImageSource(volume) as reader:
        found = by_name(opened(reader, 0, 128 * MIB))
    for name in ("live", "gone"):
        file = found[name]
        assert file.size == len(packed) and not file.complete and not (file.runs[:, 3] == RUN_DATA).any()
    volume.unlink()


@TOOLS
@KERNEL
@pytest.mark.parametrize("profile", ["raid1", "raid0"])
def test_one_device_of_two(tmp_path: Path, profile: str) -> None:
    """Of a mirrored pair one device gives all; of striped data it gives no wrong bytes, and says that they lack."""
    parts = [blank(tmp_path / f"volume{k}", 128 * MIB) for k in range(2)]
    with ExitStack() as stack:
        devices = [stack.enter_context(loop_device(p)) for p in parts]
        run("mkfs.btrfs", "-q", "-m", "raid1", "-d", profile, *devices)
        run("btrfs", "device", "scan", *devices)
        with mounted(tmp_path / "mnt", "mount", "-t", "btrfs", devices[0]) as top:
            wanted = append_in_turns([top / "live", top / "gone"], MIB, random.Random(2))
        run("btrfs", "device", "scan", *devices)
        with mounted(tmp_path / "mnt", "mount", "-t", "btrfs", devices[0]) as top:
            (top / "gone").unlink()
        run("btrfs", "device", "scan", "--forget", *devices)
    for part in parts:
        with ImageSource(part) as reader:
            volume = opened(reader, 0, 128 * MIB)
            check_free(volume.free(), MIB, 128 * MIB)
            found = by_name(volume)
            for name in ("live", "gone"):
                check_file(found[name], 128 * MIB)
                assert found[name].complete == (profile == "raid1") and found[name].size == len(wanted[name])
                if profile == "raid1":
                    assert content(reader, found[name]) == wanted[name]
                else:
                    assert not (found[name].runs[:, 3] == RUN_DATA).any()
        part.unlink()


@TOOLS
@KERNEL
def test_snapshots_and_deleted_subvolumes(tmp_path: Path) -> None:
    """A snapshot's equal files are told once, and a deleted subvolume's files are deleted files."""
    volume = blank(tmp_path / "volume", 128 * MIB)
    run("mkfs.btrfs", "-q", volume)
    with loop_device(volume) as device:
        with mounted(tmp_path / "mnt", "mount", "-t", "btrfs", device) as top:
            for name in ("a", "b"):
                run("btrfs", "subvolume", "create", top / name)
                wanted = append_in_turns([top / name / "one", top / name / "two"], MIB // 4, random.Random(3))
            _sync(top)
            run("btrfs", "subvolume", "snapshot", "-r", top / "a", top / "kept")
            _sync(top)
            (top / "a/one").unlink()
            run("btrfs", "subvolume", "delete", "-C", top / "b")
        with mounted(tmp_path / "mnt", "mount", "-t", "btrfs", device) as top:
            run("btrfs", "subvolume", "sync", top)
    with ImageSource(volume) as reader:
        files = list(opened(reader, 0, 128 * MIB).files())
        assert sorted(f.name for f in files if not f.deleted) == ["a/two", "kept/one"]
        for file in files:
            check_file(file, 128 * MIB)
            if file.complete:
                assert content(reader, file) == wanted[file.name.rpartition("/")[2]]
        gone = {f.name for f in files if f.deleted and f.complete}
        assert {"?/one", "?/two"} <= gone
    volume.unlink()


@TOOLS
@KERNEL
def test_chunk_tree_gone(scene: Scene) -> None:
    """With the current chunk tree overwritten, its older leaves place what they knew; the rest is not called whole."""
    data = bytearray(scene.volume.read_bytes())
    volume = opened(BytesReader(bytes(data)))
    wanted, free = {f.identity: f for f in volume.files()}, int(volume.free()[:, 1].sum())
    sb = volume._super  # type: ignore[attr-defined]
    for at in volume._chunks.copies(sb.chunk_root, sb.node):  # type: ignore[attr-defined]
        data[at : at + sb.node] = bytes(sb.node)
    hurt = opened(BytesReader(bytes(data)))
    found = {f.identity: f for f in hurt.files()}
    assert set(found) == set(wanted) and sum(f.complete for f in found.values()) >= 4
    for identity, file in found.items():
        rows = file.runs[file.runs[:, 3] == RUN_DATA].tolist()
        assert all(row in wanted[identity].runs.tolist() for row in rows)
        assert not file.complete or rows == wanted[identity].runs[wanted[identity].runs[:, 3] == RUN_DATA].tolist()
    assert 0 < int(hurt.free()[:, 1].sum()) < free


def test_chunks_split_and_overlap() -> None:
    """Ranges are split where chunks end; what no chunk of this device has is said to be lacking."""
    chunks = Chunks([Chunk(1000, 100, DATA, (5000,)), Chunk(1100, 50, DATA, (9000,)), Chunk(1140, 60, DATA, (1,)),
                     Chunk(2000, 10, DATA, ())])  # fmt: skip
    assert len(chunks.all) == 3
    rows, whole = chunks.split(np.array([[0, 1090, 30], [100, 1000, 5]]))
    assert whole and rows.tolist() == [[0, 5090, 10], [10, 9000, 20], [100, 5000, 5]]
    for row in ([0, 990, 20], [0, 1140, 20], [0, 2000, 5], [0, 1 << 61, 1 << 61]):
        assert not chunks.split(np.array([row]))[1]
    assert chunks.copies(1095, 5) == [5095] and chunks.copies(1095, 6) == [] and chunks.copies(1 << 63, 1) == []


@TOOLS
@KERNEL
def test_superblocks_of_an_earlier_format_are_not_believed(scene: Scene) -> None:
    """A volume whose first sector names another file system was formatted anew: Btrfs clears that sector."""
    with ImageSource(scene.volume) as reader:
        assert HOST.open(Patched(reader, {0: b"\xeb\x52\x90NTFS    "}), 0, SIZE) is None


def test_nodes_of_a_sweep_are_not_copied() -> None:
    """Nodes are confirmed where they lie, each by its own file system's name; not one of them is copied whole."""
    body, size = random.Random(2), 16384
    nodes, fsids = [], [b"a" * 16, b"b" * 16]
    for i in range(64):
        head = fsids[i // 40] + struct.pack("<QQ16sQQIB", 4096 * i, 1 | 1 << 56, bytes(16), 7, 5 + i, 3, 0)
        node = head + body.randbytes(size - 32 - len(head))
        nodes.append(checksum(0, node).ljust(32, b"\0") + node if i != 9 else bytes(32) + node)
    buffer, at = np.frombuffer(b"".join(nodes), np.uint8), np.arange(64) * size
    tracemalloc.start()
    try:
        batch = confirm_batch(Blocks(buffer, at, size), at + 512, SIGNATURE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch is not None and batch.which is not None and isinstance(batch.identity, list)
    assert peak < len(nodes) * size // 8, f"{peak} bytes for {len(nodes)} nodes of {size}"
    good = [i for i in range(64) if i != 9]
    assert batch.image_offset.tolist() == [i * size + 512 for i in good] and batch.length == size
    assert batch.value is not None and batch.value.tolist() == [5 + i for i in good]
    assert [batch.identity[k] for k in batch.which.tolist()] == [fsids[i // 40].hex() for i in good]


def test_noise_is_no_volume() -> None:
    """Zeros, noise, an empty image and odd offsets are none of ours."""
    noise = random.Random(1).randbytes(MIB)
    for data in (b"", bytes(MIB), noise, noise[:512]):
        for offset, limit in ((0, len(data)), (512, 1 << 62), (-1, 5), (len(data), 512), (0, 0)):
            assert HOST.open(BytesReader(data), offset, limit) is None


class Patched:
    """A Reader over another with some blocks replaced: cheap to make for each example."""

    def __init__(self, reader: Reader, blocks: dict[int, bytes]) -> None:
        self._reader, self._blocks = reader, blocks
        self.size = reader.size

    def read(self, offset: int, length: int) -> bytes:
        out = bytearray(self._reader.read(offset, length))
        for at, block in self._blocks.items():
            low, high = max(at, offset), min(at + len(block), offset + len(out))
            if low < high:
                out[low - offset : high - offset] = block[low - at : high - at]
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        return self._reader.missing(offset, length)


@dataclass(repr=False)
class Nodes:
    """Where the sound nodes of a volume lie."""

    reader: ImageSource
    places: list[int]


@pytest.fixture(scope="module")
def nodes(scene: Scene) -> Iterator[Nodes]:
    data = scene.volume.read_bytes()
    with ImageSource(scene.volume) as reader:
        fsid = opened(reader)._super.node_id  # type: ignore[attr-defined]
        found = [m.start() - 32 for m in re.finditer(re.escape(fsid), data) if m.start() % 4096 == 32]
        yield Nodes(reader, [at for at in found if data[at : at + 4] == checksum(0, data[at + 32 : at + 16384])])


@TOOLS
@KERNEL
@settings(max_examples=35, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hostile_nodes(nodes: Nodes, data: st.DataObject) -> None:
    """Whatever superblock and nodes say under valid checksums: no exception, sound maps, bounded work."""
    blocks: dict[int, bytes] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.sampled_from([64 << 10, *nodes.places]))
        length = 4096 if at == 64 << 10 else 16384
        out = bytearray(blocks.get(at) or nodes.reader.read(at, length))
        for _ in range(data.draw(st.integers(1, 4))):
            # headers, item heads and the items' data at the node's end are what leads astray
            heads, tails = st.integers(48, 400), st.integers(length - 600, length - 9)
            where = data.draw(heads | st.integers(32, length - 9) | tails)
            count = data.draw(st.sampled_from([1, 1, 2, 8]))
            value = data.draw(st.sampled_from([0, 1, 0x7F, 0xFF]) | st.integers(0, 255))
            out[where : where + count] = bytes([value]) * count
        out[:4] = checksum(0, bytes(out[32:]))
        blocks[at] = bytes(out)
    reader = Patched(nodes.reader, blocks)
    host = HOST.open(reader, 0, SIZE)
    if host is None:
        return
    check_free(host.free(), 0, SIZE)
    for file in host.files():
        check_file(file, 1 << 62)
        assert not len(file.runs) or (file.runs[:, 3] != RUN_HOLE).sum() < 100000


@needs("mkfs.btrfs")
def test_log_trees_of_a_volume_that_was_not_unmounted(tmp_path: Path) -> None:
    """What fsync brought to the disk since the last commit is live, and its space is not free."""
    image, crashed = blank(tmp_path / "host.img", 256 * MIB), tmp_path / "crashed.img"
    run("mkfs.btrfs", "-q", image)
    with mounted(tmp_path / "mnt", "mount", "-o", "loop,commit=300", image) as point:
        (point / "old.img").write_bytes(stamped(1, 0, 1 << 20))
        run("sync", "-f", point)
        half = 512 << 10
        parts = {"new.img": stamped(2, 0, 3 << 20), "old.img": stamped(3, 0, half)}
        wanted = {**parts, "old.img": parts["old.img"] + stamped(1, half, half)}
        for name, part in parts.items():
            with (point / name).open("r+b" if name == "old.img" else "wb", buffering=0) as file:
                for at in range(0, len(part), 64 << 10):
                    os.pwrite(file.fileno(), part[at : at + (64 << 10)], at)
                    os.fsync(file.fileno())
        crashed.write_bytes(image.read_bytes())
    with ImageSource(crashed) as reader:
        volume = HOST.open(reader, 0, reader.size)
        assert volume is not None
        live = by_name(volume, deleted=False)
        assert {name: content(reader, live[name]) for name in wanted} == wanted
        assert_disjoint(volume.free(), live.values())
