"""XFS made by mkfs.xfs, filled from a prototype file, judged by blkid and xfs_db."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.guest.images import (
    MIB,
    batches,
    blkid,
    evidence,
    finds_nothing,
    flip,
    need,
    poke,
    probe,
    sound,
    sparse,
    tree,
)
from tests.helpers import run
from vmcarve.guest.xfs import GUEST

SIZE = 320 * MIB  # mkfs.xfs 6.1 makes nothing below 300 MiB


def prototype(tmp_path: Path) -> Path:
    """The files of `tree` in the language of mkfs.xfs -p."""
    lines = ["/", "0 0", "d--755 0 0"]
    root = tree(tmp_path / "t")
    for folder in sorted(p for p in root.iterdir()):
        lines.append(f"{folder.name} d--755 0 0")
        lines += [f"{f.name} ---644 0 0 {f}" for f in sorted(folder.iterdir())]
        lines.append("$")
    (tmp_path / "proto").write_text("\n".join([*lines, "$", ""]))
    return tmp_path / "proto"


def make(tmp_path: Path, *options: str) -> Path:
    need("mkfs.xfs", "xfs_db")
    path = sparse(tmp_path / "v.img", SIZE)
    run("mkfs.xfs", "-q", "-f", "-L", "data", "-p", prototype(tmp_path), *options, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("xfs"))


def copied(made: Path, tmp_path: Path) -> Path:
    """A copy to damage; sparse."""
    run("cp", "--sparse=always", made, tmp_path / "c.img")
    return tmp_path / "c.img"


@pytest.mark.parametrize("options", ((), ("-m", "crc=0"), ("-b", "size=1024"), ("-i", "size=1024"),
                                     ("-s", "size=4096"), ("-d", "agcount=3")))
def test_volume_as_blkid_sees_it(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Size, label and UUID are those of blkid and the file; a fresh volume agrees with itself, in versions 4 and 5."""
    path = make(tmp_path, *options)
    v = sound(GUEST, path)
    assert (v.kind, v.label, v.uuid, v.size) == ("xfs", "data", blkid(path, "UUID"), SIZE)


def test_superblocks_pin_their_group(made: Path) -> None:
    """The superblock of each allocation group pins its place from the group number that its AGF states."""
    rows = evidence(GUEST, made)
    told = run("xfs_db", "-r", "-c", "sb 0", "-c", "p agblocks", made).stdout
    size = int(re.findall(r"agblocks = (\d+)", told)[0]) * 4096
    assert [(e.image_offset, e.volume_offset) for e in rows] == [(i * size, i * size) for i in range(4)]
    assert {e.identity for e in rows} == {blkid(made, "UUID")}


def test_superblock_without_its_group_header_has_no_place(made: Path, tmp_path: Path) -> None:
    """A superblock copy whose AGF is damaged says nothing about where it lies."""
    path = copied(made, tmp_path)
    flip(path, 512 + 20)
    row = evidence(GUEST, path)[0]
    assert row.image_offset == 0 and row.volume_offset is None and row.confidence == 0.5


@pytest.mark.parametrize("size", (512, 1024, 2048))
def test_inodes_state_their_numbers(tmp_path: Path, size: int) -> None:
    """Inodes are confirmed under their CRC, and lie where xfs_db says that an inode of their number lies."""
    path = make(tmp_path, "-i", f"size={size}")
    (batch,) = batches(GUEST, path)
    assert batch.kind == "xfs.inode" and batch.length == size and batch.value is not None
    assert batch.identity == blkid(path, "UUID") and len(batch.value) >= 45
    numbers = dict(zip(batch.value.tolist(), batch.image_offset.tolist(), strict=True))
    some = sorted(numbers)[:: max(1, len(numbers) // 12)]
    commands = [word for n in some for word in ("-c", f"convert inode {n} byte")]
    told = run("xfs_db", "-r", *commands, path).stdout
    places = [int(p, 16) for p in re.findall(r"\((?:\d+)\)|0x([0-9a-f]+)", told) if p]
    assert places == [numbers[n] for n in some]
    live = {os.stat(p).st_size for p in (tmp_path / "t").rglob("*.bin")}
    with path.open("rb") as f:
        sizes = set()
        for p in batch.image_offset.tolist():
            f.seek(p + 56)
            sizes.add(int.from_bytes(f.read(8), "big"))
    assert live <= sizes


def test_inode_with_a_wrong_bit_is_no_evidence(made: Path, tmp_path: Path) -> None:
    """One bit anywhere in an inode takes it out of the batch, and no other one."""
    (batch,) = batches(GUEST, made)
    path = copied(made, tmp_path)
    flip(path, int(batch.image_offset[7]) + 300)
    (again,) = batches(GUEST, path)
    assert set(batch.image_offset.tolist()) - set(again.image_offset.tolist()) == {int(batch.image_offset[7])}


def test_damage_is_seen(made: Path, tmp_path: Path) -> None:
    """Lost superblocks, group headers and a lost root inode are each told; the volume is still found."""
    want = sound(GUEST, made)
    rows = evidence(GUEST, made)
    (batch,) = batches(GUEST, made)
    group = rows[1].image_offset
    for at, word in ((0, "primary superblock lost"), (group, "1 superblock copies differ"),
                     (2 * group + 1024, "group headers damaged"), (int(batch.image_offset[0]), "root inode lost")):
        path = copied(made, tmp_path)
        poke(path, at, bytes(512))
        v = probe(GUEST, path)
        assert v is not None and v.consistent is False and word in v.detail, (v, word)
        assert (v.size, v.uuid) == (want.size, want.uuid)
    v = probe(GUEST, made, 0, 200 * MIB)
    assert v is not None and v.consistent is False and "larger" in v.detail


def test_magic_alone_is_nothing(tmp_path: Path) -> None:
    """XFSB and IN in text, zeros, noise or code are neither evidence nor a volume."""
    finds_nothing(GUEST, tmp_path)
    lines = np.frombuffer((b"IN\x81\xa4\x03\x02" + b"INTEGER IN INPUT ") .ljust(512) * 64, np.uint8)
    (tmp_path / "text").write_bytes(lines.tobytes() + bytes(4096))
    assert batches(GUEST, tmp_path / "text") == []
    shutil.rmtree(tmp_path)
