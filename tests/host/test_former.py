"""Files of volumes that cannot be opened any more: superblocks gone, or another file system made over them.

Real file systems, real mkfs; what is wiped is only what the test is about.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.host.loopfs import append_in_turns, make, needs_loop, write_at_random
from tests.host.written import MIB, blank, mounted, needs, run, stamped
from vmcarve.assemble.hosts import find_hosts, read_hosts
from vmcarve.assemble.state import HostView
from vmcarve.model import RUN_CHECKED, RUN_DATA, HostFile, Reader
from vmcarve.source import ImageSource, open_image
from vmcarve.sweeper import sweep_image
from vmcarve.tables import EVIDENCE


def views(image: Path) -> list[HostView]:
    """What assembling knows of the hosts of an image, the sweep's evidence included."""
    source = open_image(image)
    OPENED.append(source)
    batches: list[pa.RecordBatch] = []
    sweep_image(source, 0, batches.append)
    spots, troubles = find_hosts(source)
    found, more = read_hosts(source, spots, pa.Table.from_batches(batches, EVIDENCE))
    assert troubles == more == []
    return found


OPENED: list[ImageSource] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Images stay open while their views are looked at."""
    yield
    while OPENED:
        OPENED.pop().close()


def content(reader: Reader, file: HostFile, size: int) -> bytes:
    out = bytearray(size)
    for at, where, length, kind in file.runs.tolist():
        if kind in (RUN_DATA, RUN_CHECKED) and at < size:
            data = reader.read(where, min(length, size - at))
            out[at : at + len(data)] = data
    return bytes(out)


def holds(image: Path, view: HostView, wanted: bytes) -> list[HostFile]:
    """The files of a view whose map gives these bytes."""
    with ImageSource(image) as reader:
        return [f for f in view.files if len(f.runs) and content(reader, f, len(wanted)) == wanted]


def zero(image: Path, places: list[tuple[int, int]]) -> None:
    with image.open("r+b") as f:
        for at, length in places:
            f.seek(at)
            f.write(bytes(length))


@needs_loop
@needs("mkfs.btrfs")
def test_btrfs_without_any_superblock(tmp_path: Path) -> None:
    """Nodes prove themselves, the chunk tree's leaves say where everything lies, old checksums what is still there."""
    disk = make(tmp_path, 256 * MIB, "mkfs.btrfs", "-q")
    with disk.mounted() as point:
        append_in_turns(point, ["gone.img", "kept.img"], 25)
        write_at_random(point, "thin.img", 4000, 4096, 200)
        disk.record()
        wanted = {n: (point / n).read_bytes() for n in ("gone.img", "kept.img", "thin.img")}
    with disk.mounted() as point:
        (point / "gone.img").unlink()
        (point / "thin.img").unlink()
    zero(disk.image, [(64 << 10, 4096), (64 << 20, 4096)])
    (view,) = views(disk.image)
    assert view.carved and view.volume.name == "btrfs"
    for name, data in wanted.items():
        (file,) = [f for f in holds(disk.image, view, data) if f.name.endswith(name)]
        assert file.check is not None
        tested = file.check()
        assert set(tested[:, 3].tolist()) <= {RUN_CHECKED, 1}, f"{name}: what no checksum covers"


@needs_loop
@needs("mkfs.xfs")
@pytest.mark.parametrize("options", [(), ("-d", "agcount=3"), ("-i", "size=1024")], ids=["usual", "uneven", "inodes"])
def test_xfs_without_any_group_header(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Inodes state their number: so the division into groups is found, and the extent lists that they keep are read."""
    disk = make(tmp_path, 300 * MIB, "mkfs.xfs", "-q", "-f", *options)
    with disk.mounted() as point:
        for n in range(12):  # directories spread over the groups
            (point / f"d{n}").mkdir()
            (point / f"d{n}" / "small.img").write_bytes(stamped(n + 1, 0, 200 << 10))
        disk.record()
    with disk.mounted() as point:
        for n in range(0, 12, 2):
            (point / f"d{n}" / "small.img").unlink()
    data = disk.image.read_bytes()
    block, (group_blocks, groups) = struct.unpack_from(">I", data, 4)[0], struct.unpack_from(">II", data, 84)
    log_at, log_blocks, log = *struct.unpack_from(">Q", data, 48), struct.unpack_from(">I", data, 96)[0], data[124]
    linear = (log_at >> log) * group_blocks + (log_at & (1 << log) - 1)
    heads = [(g * group_blocks * block, 4 * 512) for g in range(groups)]
    zero(disk.image, [*heads, (linear * block, log_blocks * block)])
    (view,) = views(disk.image)
    assert view.carved and view.volume.name == "xfs"
    groups_met = set()
    for n in range(12):
        found = holds(disk.image, view, stamped(n + 1, 0, 200 << 10))
        assert found and found[0].origin == "xfs.carved-inode" and found[0].deleted == (n % 2 == 0), n
        groups_met.add(int(found[0].runs[0, 1]) // (group_blocks * block))
    assert len(groups_met) > 1, "a volume of one group needs no geometry"


@needs_loop
@needs("mkfs.ext4", "mkfs.xfs")
def test_ext4_under_a_new_xfs(tmp_path: Path) -> None:
    """A backup superblock opens what was there before: inodes, names and extent blocks, as far as nothing lies over."""
    disk = make(tmp_path, 300 * MIB, "mkfs.ext4", "-q", "-b", "1024")
    with disk.mounted() as point:
        append_in_turns(point, ["gone.img", "kept.img"], 25)
        disk.record()
        wanted = {n: (point / n).read_bytes() for n in ("gone.img", "kept.img")}
    with disk.mounted() as point:
        (point / "gone.img").unlink()
    run("mkfs.xfs", "-q", "-f", "-K", "-d", "agcount=3", disk.image)
    former = next(v for v in views(disk.image) if v.former)
    assert former.volume.name == "ext4" and former.carved
    for name, data in wanted.items():
        found = holds(disk.image, former, data)
        assert found and found[0].deleted and not found[0].settled, name
        assert found[0].name == name or name == "gone.img", "XFS keeps its log where the journal with that name was"


@needs("mkntfs", "ntfs-3g", "mkfs.vfat")
def test_ntfs_under_a_new_fat(tmp_path: Path) -> None:
    """The backup boot sector in the last sector, and $MFT's own runs from the mirror."""
    image = blank(tmp_path / "host.img", 300 * MIB)
    run("mkntfs", "-q", "-F", "-Q", image)
    last = 1500
    with mounted(tmp_path / "mnt", "ntfs-3g", image) as point:
        for n in range(last):  # FAT's tables lie over the first records
            (point / f"file{n}").write_bytes(stamped(n + 1, 0, 4096))
    run("mkfs.vfat", "-F", "32", image)
    former = next(v for v in views(image) if v.former)
    assert former.volume.name == "ntfs"
    found = [n for n in range(last - 50, last) if any(f.deleted and f.name.endswith(f"file{n}") for f in
                                                      holds(image, former, stamped(n + 1, 0, 4096)))]
    assert len(found) == 50


@needs_loop
@needs("mkfs.btrfs", "mkntfs")
@pytest.mark.parametrize("over", [("mkntfs", "-q", "-F", "-Q"), ("mkfs.ext4", "-q", "-F", "-E", "nodiscard")],
                         ids=["ntfs", "ext4"])
def test_btrfs_under_another(tmp_path: Path, over: tuple[str, ...]) -> None:
    """Nodes in the new volume's free space tell of the old one, which has another identity."""
    disk = make(tmp_path, 256 * MIB, "mkfs.btrfs", "-q")
    with disk.mounted() as point:
        append_in_turns(point, ["gone.img", "kept.img"], 25)
        disk.record()
        wanted = (point / "kept.img").read_bytes()
    run(*over, disk.image)
    carved = next(v for v in views(disk.image) if v.volume.name == "btrfs")
    assert carved.carved and not carved.former
    assert any(f.name.endswith("kept.img") for f in holds(disk.image, carved, wanted))


@needs_loop
@needs("mkfs.xfs")
def test_inodes_of_a_guest_are_not_the_hosts(tmp_path: Path) -> None:
    """An XFS inside a file states another start: nothing is carved of it as if it were the host's."""
    inner = make(_sub(tmp_path, "inner"), 300 * MIB, "mkfs.xfs", "-q", "-f")
    with inner.mounted() as point:
        for n in range(9):
            (point / f"d{n}").mkdir()
            (point / f"d{n}" / "f").write_bytes(stamped(n + 1, 0, 64 << 10))
    image = blank(tmp_path / "noise.img", 340 * MIB)
    with image.open("r+b") as f:
        f.seek(20 * MIB)
        f.write(inner.image.read_bytes())
    assert [v for v in views(image) if v.volume.name == "xfs" and any(len(f.runs) for f in v.files)] == []


def test_hostile_nodes_make_no_volume(tmp_path: Path) -> None:
    """The flags of a node before noise are no node."""
    rng = random.Random(1)
    data = bytearray(rng.randbytes(4 * MIB))
    for at in range(0, len(data), 16384):
        data[at + 56 : at + 64] = struct.pack("<Q", 1 | 1 << 56)
    image = tmp_path / "noise.img"
    image.write_bytes(data)
    assert views(image) == []


def _sub(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name
