"""ReFS: two boot sectors that Windows wrote, as published, and volumes by an own writer that blkid knows."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.guest.images import MIB, blkid, evidence, finds_nothing, flip, need, poke, probe, sound
from vmcarve.guest import refs
from vmcarve.source import BytesReader

# www.ntfs.com/refs-structure-boot-sector.htm (1.2); resilientfilesystem.co.uk/refs-volume-boot-record (1.1)
PUBLISHED = (
    "00000052654653000000000000000000465352530002ffdd0000383a000000000002000080000000010200000a000000"
    "000000000000000028e86f9409709418",
    "00000052654653000000000000000000465352530002 33c200009e0000000000000200008000000001010000000000000000000000000000"
    "041c55c45655c434",
)
SIZE = 16 * MIB


def volume(path: Path, version: int, cluster: int) -> Path:
    """A boot sector, its copy in the last sector, and the first superblock and its copies."""
    boot = bytearray(512)
    struct.pack_into("<3x8s5x4sHHQIIBB14xQ", boot, 0, b"ReFS", b"FSRS", 512, 0, SIZE // 512, 512, cluster // 512,
                     version, 4 if version == 3 else 2, 0x1122334455667788)
    total = 0
    for place, byte in enumerate(boot):
        if place > 2 and place not in (22, 23):
            total = ((total >> 1 | total << 15) + byte) & 0xFFFF  # a right rotation, then the byte
    struct.pack_into("<H", boot, 22, total)
    disk = bytearray(SIZE)
    disk[:512] = disk[-512:] = boot
    if version == 1:
        struct.pack_into("<Q", disk, 30 * 16384, 30)
    for number in (30, SIZE // cluster - 12) if version == 3 else ():
        numbers = [number + i for i in range(4)] if cluster == 4096 else [number, 0, 0, 0]
        struct.pack_into("<4sI4xI16x4Q", disk, number * cluster, b"SUPB", 2, 0xABCD, *numbers)
        struct.pack_into("<II", disk, number * cluster + 80 + 32, 0xC0, 2)
    path.write_bytes(disk)
    return path


def test_magic_alone_is_nothing(tmp_path: Path) -> None:
    """The magics in text, zeros, noise or code are neither evidence nor a volume."""
    finds_nothing(refs.GUEST, tmp_path)


@pytest.mark.parametrize("sector", PUBLISHED)
def test_boot_sectors_that_windows_wrote(sector: str) -> None:
    """Their checksums agree, and nothing says whether they are the first or the copy."""
    data = bytes.fromhex(sector).ljust(512, b"\0")
    row = refs.confirm(BytesReader(data), 0, refs.SIGNATURES[0])
    assert row is not None and row.volume_offset is None and row.confidence < 0.6
    assert row.value == int.from_bytes(data[24:32], "little") * 512
    assert refs.confirm(BytesReader(data[:40] + b"\7" + data[41:]), 0, refs.SIGNATURES[0]) is None


@pytest.mark.parametrize(("version", "cluster"), [(1, 65536), (3, 4096), (3, 65536)])
def test_a_volume_and_its_copies(version: int, cluster: int, tmp_path: Path) -> None:
    """The boot sector and its copy are told apart by the first superblock; superblocks of version 3 pin themselves."""
    need("blkid")
    path = volume(tmp_path / "r.img", version, cluster)
    assert blkid(path, "TYPE") == "ReFS"
    v = sound(refs.GUEST, path)
    assert (v.kind, v.size, v.uuid) == ("refs", SIZE, "1122334455667788") and v.detail.startswith(f"version {version}")
    rows = evidence(refs.GUEST, path)
    assert all(row.volume_offset == row.image_offset for row in rows)
    assert [row.kind for row in rows] == ["refs.boot", *["refs.superblock"] * (2 if version == 3 else 0), "refs.boot"]
    flip(path, 30)
    v = probe(refs.GUEST, path)
    assert v is not None and (v.consistent, v.detail) == (False, "boot sector lost")
    made = refs.begin(BytesReader(path.read_bytes()), SIZE - 512)
    assert made is not None and made.size == SIZE and made.data == path.read_bytes()[-512:]
    poke(path, 30 * (16384 if version == 1 else cluster), bytes(128))
    (row,) = (row for row in evidence(refs.GUEST, path) if row.kind == "refs.boot")
    assert row.volume_offset is None
