"""ext2/3/4 made by mke2fs, judged by blkid, dumpe2fs and debugfs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guest.images import MIB, blkid, evidence, finds_nothing, flip, need, poke, probe, sound, sparse, tree
from tests.helpers import run
from vmcarve.guest.ext import GUEST

VARIANTS = {
    "ext2": ("-t", "ext2"),
    "ext3": ("-t", "ext3"),
    "ext4": ("-t", "ext4", "-b", "4096"),
    "ext4-1k": ("-t", "ext4", "-b", "1024"),
    "ext4-gdt-csum": ("-t", "ext4", "-O", "^metadata_csum,uninit_bg"),
    "ext4-32bit": ("-t", "ext4", "-O", "^64bit"),
    "ext4-no-csum": ("-t", "ext4", "-O", "^metadata_csum,^uninit_bg"),
    "ext4-csum-seed": ("-t", "ext4", "-O", "metadata_csum_seed"),
    "ext4-bigalloc": ("-t", "ext4", "-O", "bigalloc", "-C", "16384"),
    "ext4-meta-bg": ("-t", "ext4", "-O", "meta_bg,^resize_inode"),
}


def make(tmp_path: Path, variant: str = "ext4", size: int = 24 * MIB) -> Path:
    need("mke2fs")
    path = sparse(tmp_path / "v.img", size)
    run("mke2fs", "-q", "-F", *VARIANTS[variant], "-L", "root disk", "-d", tree(tmp_path / "t"), path)
    return path


def field(path: Path, name: str) -> str:
    match = re.search(rf"^{name}:\s*(.*)$", run("dumpe2fs", "-h", path).stdout, re.MULTILINE)
    assert match is not None
    return match[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_volume_as_blkid_sees_it(tmp_path: Path, variant: str) -> None:
    """Kind, size, label and UUID are those of blkid and dumpe2fs, and a fresh volume agrees with itself."""
    path = make(tmp_path, variant)
    v = sound(GUEST, path)
    assert (v.kind, v.label, v.uuid) == (blkid(path, "TYPE"), "root disk", blkid(path, "UUID"))
    assert v.size == int(field(path, "Block count")) * int(field(path, "Block size")) and v.detail == ""


@pytest.mark.parametrize("variant", ("ext4-1k", "ext2"))
def test_superblocks_pin_themselves(tmp_path: Path, variant: str) -> None:
    """The primary pins the volume's start, and each backup the place where dumpe2fs says that it is."""
    path = make(tmp_path, variant, 80 * MIB)
    text = run("dumpe2fs", path).stdout
    block = int(field(path, "Block size"))
    want = {int(b) * block for b in re.findall(r"(?:Backup) superblock at (\d+)", text)}
    rows = evidence(GUEST, path)
    backups = [e for e in rows if e.volume_offset]
    assert {e.image_offset for e in backups} == {e.volume_offset for e in backups} == want and want
    primary = [e for e in rows if e.volume_offset == 0]
    assert [e.image_offset for e in primary] == [0] and primary[0].value == 80 * MIB
    assert {e.identity for e in rows} == {blkid(path, "UUID")}


def test_journal_copy_of_the_superblock_is_no_start(tmp_path: Path) -> None:
    """A copy of the primary superblock without its group descriptors behind it claims no place."""
    path = make(tmp_path)
    copy = path.read_bytes()[:4096]
    poke(path, 20 * MIB, copy)
    (row,) = [e for e in evidence(GUEST, path) if e.image_offset > MIB]
    assert row.volume_offset is None and row.guest_offset is None and row.confidence < 0.5


@pytest.mark.parametrize("variant", ("ext4", "ext4-gdt-csum", "ext4-1k"))
def test_damage_is_seen(tmp_path: Path, variant: str) -> None:
    """A bit flipped in a group descriptor, or in the root inode under its checksum, makes the volume inconsistent."""
    path = make(tmp_path, variant)
    block = int(field(path, "Block size"))
    table = (1 if block > 1024 else 2) * block
    flip(path, table + 12)
    v = probe(GUEST, path)
    assert v is not None and v.consistent is False and "group descriptors" in v.detail
    flip(path, table + 12)
    text = run("dumpe2fs", path).stdout
    match = re.search(r"Inode table at (\d+)", text)
    assert match is not None
    size = int(field(path, "Inode size"))
    at = int(match[1]) * block + size
    if variant != "ext4-gdt-csum":
        flip(path, at + 8)
        v = probe(GUEST, path)
        assert v is not None and v.consistent is False and "root inode" in v.detail
    poke(path, at, b"\0\x81")
    v = probe(GUEST, path)
    assert v is not None and v.consistent is False


def test_lost_primary_is_read_from_a_backup(tmp_path: Path) -> None:
    """Without its primary superblock a volume is still recognised, and called inconsistent."""
    path = make(tmp_path, "ext4-1k")
    want = sound(GUEST, path)
    poke(path, 1024, bytes(1024))
    v = probe(GUEST, path)
    assert v is not None and (v.kind, v.size, v.uuid, v.consistent) == (want.kind, want.size, want.uuid, False)
    assert "primary superblock lost" in v.detail


def test_state_flags_are_told(tmp_path: Path) -> None:
    """A journal that waits for replay and noted errors are told, and do not make the volume inconsistent."""
    path = make(tmp_path, "ext4-no-csum")
    run("debugfs", "-w", "-R", "set_super_value state 2", path)
    run("debugfs", "-w", "-R", "feature +needs_recovery", path)
    v = sound(GUEST, path)
    assert "journal not replayed" in v.detail and "errors noted" in v.detail


def test_size_is_held_against_the_space(tmp_path: Path) -> None:
    """A volume larger than its partition is inconsistent, never an error."""
    path = make(tmp_path)
    v = probe(GUEST, path, 0, 10 * MIB)
    assert v is not None and v.consistent is False and "larger" in v.detail


def test_magic_alone_is_nothing(tmp_path: Path) -> None:
    """53 EF in text, zeros, noise or code is neither evidence nor a volume; one wrong checksum bit is enough."""
    finds_nothing(GUEST, tmp_path)
    path = make(tmp_path)
    flip(path, 1024 + 0x200)
    assert probe(GUEST, path) is None and evidence(GUEST, path) == []
