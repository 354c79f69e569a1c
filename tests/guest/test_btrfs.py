"""Btrfs made by mkfs.btrfs from a folder, judged by blkid and btrfs inspect-internal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guest.images import MIB, blkid, evidence, finds_nothing, flip, need, poke, probe, sound, sparse, tree
from tests.helpers import run
from vmcarve.guest.btrfs import GUEST
from vmcarve.source import open_image

SIZE = 128 * MIB


def make(tmp_path: Path, checksum: str = "crc32c") -> Path:
    need("mkfs.btrfs", "btrfs")
    path = sparse(tmp_path / "v.img", SIZE)
    run("mkfs.btrfs", "-q", "-f", "--csum", checksum, "-L", "pool one", "-r", tree(tmp_path / "t"), path)
    return path


@pytest.mark.parametrize("checksum", ("crc32c", "xxhash", "sha256", "blake2"))
def test_volume_as_blkid_sees_it(tmp_path: Path, checksum: str) -> None:
    """Size, label and UUID are those of blkid and the file, whatever the checksum algorithm is."""
    path = make(tmp_path, checksum)
    v = sound(GUEST, path)
    assert (v.kind, v.label, v.uuid, v.size) == ("btrfs", "pool one", blkid(path, "UUID"), SIZE)


def test_superblocks_pin_themselves(tmp_path: Path) -> None:
    """The first superblock pins the volume's start, the second its own place, as btrfs inspect-internal lists them."""
    path = make(tmp_path)
    text = run("btrfs", "inspect-internal", "dump-super", "-a", path).stdout
    assert [int(b) for b in re.findall(r"(?m)^bytenr\s+(\d+)", text)] == [64 << 10, 64 * MIB]
    rows = [(e.image_offset, e.volume_offset, e.identity, e.value) for e in evidence(GUEST, path)]
    uuid = blkid(path, "UUID")
    assert rows == [(0, 0, uuid, SIZE), (64 * MIB, 64 * MIB, uuid, SIZE)]


def test_damage_is_seen(tmp_path: Path) -> None:
    """Either superblock may be lost: the other one gives the volume, and says that it is alone."""
    path = make(tmp_path)
    want = sound(GUEST, path)
    for at in (64 << 10, 64 * MIB):
        flip(path, at + 600)
        v = probe(GUEST, path)
        assert v is not None and v.consistent is False and f"{at:#x} lost" in v.detail
        assert (v.size, v.uuid) == (want.size, want.uuid)
        flip(path, at + 600)
    poke(path, 64 << 10, bytes(4096))
    poke(path, 64 * MIB, bytes(4096))
    assert probe(GUEST, path) is None and evidence(GUEST, path) == []


def test_magic_alone_is_nothing(tmp_path: Path) -> None:
    """_BHRfS_M in text, zeros, noise or code is neither evidence nor a volume."""
    finds_nothing(GUEST, tmp_path)


@pytest.mark.parametrize("checksum", ("crc32c", "blake2"))
def test_either_superblock_tells_what_the_volume_begins_with(tmp_path: Path, checksum: str) -> None:
    """The second one makes the first again, byte for byte; what is neither makes nothing."""
    path = make(tmp_path, checksum)
    assert GUEST.begin is not None
    with open_image(path) as source:
        first = source.read(64 << 10, 4096)
        for at in (0, 64 * MIB):
            found = GUEST.begin(source, at)
            assert found is not None
            assert found.data[64 << 10 :] == first and len(found.data) == (64 << 10) + 4096
        assert GUEST.begin(source, 4096) is None
