"""FAT12/16/32 and exFAT made by mkfs.vfat and mkfs.exfat, filled by mtools, judged by blkid and fsstat."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.guest.images import MIB, blkid, evidence, finds_nothing, flip, need, poke, probe, sound, sparse, tree
from tests.helpers import run
from vmcarve.guest.fat import GUEST

VARIANTS = {12: 2 * MIB, 16: 20 * MIB, 32: 40 * MIB}


def make(tmp_path: Path, bits: int, *options: str) -> Path:
    need("mkfs.vfat")
    path = sparse(tmp_path / "v.img", VARIANTS[bits])
    run("mkfs.vfat", "-F", str(bits), "-n", "BOOTDISK", *options, path)
    if shutil.which("mcopy"):
        run("mcopy", "-s", "-i", path, *sorted((tree(tmp_path / "t", count=12)).iterdir()), "::/")
    return path


def make_exfat(tmp_path: Path, *options: str) -> Path:
    need("mkfs.exfat")
    path = sparse(tmp_path / "x.img", 24 * MIB)
    run("mkfs.exfat", "-L", "Stick ü", *options, path)
    return path


@pytest.mark.parametrize("bits", VARIANTS)
def test_volume_as_blkid_sees_it(tmp_path: Path, bits: int) -> None:
    """Kind, size, label and serial number are those of blkid and sleuthkit; both tables agree."""
    path = make(tmp_path, bits)
    v = sound(GUEST, path)
    assert v.kind == f"fat{bits}" == f"fat{blkid(path, 'VERSION')[3:]}"
    assert (v.label, v.size) == (blkid(path, "LABEL"), VARIANTS[bits]) and v.label == "BOOTDISK"
    assert v.uuid.upper() == blkid(path, "UUID").replace("-", "")
    assert f"FAT{bits}" in run("fsstat", path).stdout


@pytest.mark.parametrize("options", ((), ("-S", "4096"), ("-s", "16")))
def test_other_geometries(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Sectors of 4096 bytes and large clusters make no difference."""
    path = sparse(tmp_path / "v.img", 512 * MIB)
    run("mkfs.vfat", "-F", "32", *options, path)
    v = sound(GUEST, path)
    assert 512 * MIB - (32 << 10) < v.size <= 512 * MIB and v.label == ""  # whole tracks only


def test_boot_sector_and_its_copy_are_told_apart(tmp_path: Path) -> None:
    """The boot sector of FAT32 pins the volume's start and the copy six sectors on pins its own place."""
    path = make(tmp_path, 32)
    rows = [(e.image_offset, e.volume_offset, e.value) for e in evidence(GUEST, path)]
    assert rows == [(0, 0, 40 * MIB), (6 * 512, 6 * 512, 40 * MIB)]
    for bits in (12, 16):
        assert [(e.image_offset, e.volume_offset) for e in evidence(GUEST, make(tmp_path, bits))] == [(0, 0)]


def test_a_container_of_sectors_brings_the_copy_nearer(tmp_path: Path) -> None:
    """Where sectors of zeros are not stored, the copy lies two sectors on, and the table wherever it was written."""
    data = make(tmp_path, 32).read_bytes()
    stored = b"".join(s for i in range(8) if any(s := data[i * 512 : (i + 1) * 512]))
    assert len(stored) < 8 * 512
    (tmp_path / "s.img").write_bytes(bytes(512) + stored + b"text" * 4096)
    rows = [(e.image_offset, e.volume_offset, e.value) for e in evidence(GUEST, tmp_path / "s.img")]
    assert rows == [(512, 0, 40 * MIB), (512 + len(stored) // 2, 6 * 512, 40 * MIB)]


def test_boot_sector_without_table_is_a_template(tmp_path: Path) -> None:
    """A boot sector as it lies in mkfs.vfat itself, in an installer, or alone in a file is no evidence."""
    (tmp_path / "b.img").write_bytes(bytes(512) + make(tmp_path, 16).read_bytes()[:512] + b"text" * 4096)
    assert evidence(GUEST, tmp_path / "b.img") == []
    program = shutil.which("mkfs.vfat")
    assert program is not None
    data = Path(program).read_bytes()
    (tmp_path / "p.img").write_bytes(data + bytes(-len(data) % 512))
    assert evidence(GUEST, tmp_path / "p.img") == []


def test_damage_is_seen(tmp_path: Path) -> None:
    """Tables that differ, a lost boot sector and a lost copy are each told; the volume is still found."""
    path = make(tmp_path, 32)
    whole = path.read_bytes()
    reserved = int.from_bytes(whole[14:16], "little") * 512
    for at, word in ((reserved + 40, "tables differ"), (0, "boot sector lost"), (6 * 512, "copy of the boot sector"),
                     (reserved, "first file allocation table damaged")):
        path.write_bytes(whole)
        poke(path, at, bytes(8) if at == reserved else b"\x7f" * 64)
        v = probe(GUEST, path)
        assert v is not None and v.consistent is False and word in v.detail, v
        assert (v.kind, v.size) == ("fat32", 40 * MIB)
    path.write_bytes(whole)
    v = probe(GUEST, path, 0, 20 * MIB)
    assert v is not None and v.consistent is False and "larger" in v.detail


@pytest.mark.parametrize("options", ((), ("-c", "64K")))
def test_exfat(tmp_path: Path, options: tuple[str, ...]) -> None:
    """An exFAT volume is known by the checksum of its boot region; region and copy pin their places."""
    path = make_exfat(tmp_path, *options)
    v = sound(GUEST, path)
    assert (v.kind, v.label, v.size) == ("exfat", "Stick ü", 24 * MIB)
    assert v.uuid.upper() == blkid(path, "UUID").replace("-", "")
    rows = [(e.kind, e.image_offset, e.volume_offset) for e in evidence(GUEST, path)]
    assert rows == [("fat.exfat-boot", 0, 0), ("fat.exfat-boot", 6144, 6144)]
    flip(path, 120)
    v = probe(GUEST, path)
    assert v is not None and v.consistent is False and "boot region lost" in v.detail and v.size == 24 * MIB
    assert [e.volume_offset for e in evidence(GUEST, path)] == [6144]


def test_magic_alone_is_nothing(tmp_path: Path) -> None:
    """FAT16, FAT32 and EXFAT in text, zeros, noise or code are neither evidence nor a volume."""
    finds_nothing(GUEST, tmp_path)
