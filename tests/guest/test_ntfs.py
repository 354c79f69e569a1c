"""NTFS made by mkntfs, filled by ntfscp, judged by blkid, fsstat and ntfsinfo."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.guest.images import MIB, batches, blkid, evidence, finds_nothing, flip, need, poke, probe, sound, sparse
from tests.helpers import run
from vmcarve.guest.ntfs import GUEST


def make(tmp_path: Path, size: int = 12 * MIB, sector: int = 512, cluster: int = 4096) -> Path:
    need("mkntfs", "ntfscp")
    path = sparse(tmp_path / "v.img", size)
    run("mkntfs", "-q", "-F", "-f", "-s", str(sector), "-c", str(cluster), "-L", "Wíndows C", path)
    for i in range(6):
        (tmp_path / "f").write_bytes(bytes([65 + i]) * (3000 * i + 10))
        run("ntfscp", "-f", path, tmp_path / "f", f"/file{i}.txt")
    return path


@pytest.mark.parametrize(("sector", "cluster"), ((512, 4096), (512, 512), (4096, 4096), (512, 65536)))
def test_volume_as_blkid_sees_it(tmp_path: Path, sector: int, cluster: int) -> None:
    """Label, serial number and size are those of blkid and of the file; a fresh volume agrees with itself."""
    path = make(tmp_path, 24 * MIB, sector, cluster)
    v = sound(GUEST, path)
    assert (v.kind, v.label, v.uuid.upper()) == ("ntfs", "Wíndows C", blkid(path, "UUID"))
    assert v.size == 24 * MIB and v.detail == ""


def test_boot_sector_and_its_copy_are_told_apart(tmp_path: Path) -> None:
    """The first boot sector pins the volume's start, the last sector its own place, though their bytes are the same."""
    path = make(tmp_path)
    rows = [(e.kind, e.image_offset, e.volume_offset, e.value) for e in evidence(GUEST, path)]
    last = 12 * MIB - 512
    assert rows == [("ntfs.boot", 0, 0, 12 * MIB), ("ntfs.boot", last, last, 12 * MIB)]
    moved = tmp_path / "copy.img"
    moved.write_bytes(bytes(8192) + path.read_bytes()[-512:] + bytes(8192))
    (row,) = evidence(GUEST, moved)
    assert row.volume_offset is None and row.confidence == 0.5


def test_records_state_their_numbers(tmp_path: Path) -> None:
    """Every record that is in use according to sleuthkit is confirmed at $MFT's place with its number, as arrays."""
    path = make(tmp_path)
    (batch,) = batches(GUEST, path)
    assert batch.kind == "ntfs.record" and batch.length == 1024 and batch.value is not None
    mft = int(re.findall(r"First Cluster of MFT: (\d+)", run("fsstat", path).stdout)[0]) * 4096
    number = dict(zip(batch.image_offset.tolist(), batch.value.tolist(), strict=True))
    assert (np.diff(batch.image_offset) > 0).all()
    used = [int(n) for n in re.findall(r"(?m)^[^*\n]*?\b(\d+)-\d+-\d+:", run("fls", "-r", path).stdout)]
    assert len(used) > 10
    for n in used:
        assert number[mft + n * 1024] == n
    in_mft = [(p, n) for p, n in number.items() if mft <= p < mft + 100 * 1024]
    # mkntfs states 0 in its reserved records 16 to 23: they must not pass for record 0
    assert {n for p, n in in_mft if p != mft + n * 1024} == {-1}


def test_torn_record_is_no_evidence(tmp_path: Path) -> None:
    """A record whose sector ends do not hold its update sequence number is left out; so is one with a wrong size."""
    path = make(tmp_path)
    (batch,) = batches(GUEST, path)
    flip(path, int(batch.image_offset[3]) + 510)
    poke(path, int(batch.image_offset[5]) + 0x18, b"\xff\xff")
    (again,) = batches(GUEST, path)
    assert set(batch.image_offset.tolist()) - set(again.image_offset.tolist()) == {
        int(batch.image_offset[3]), int(batch.image_offset[5])}


def test_large_records(tmp_path: Path) -> None:
    """Records of 4096 bytes, on volumes with 4096-byte sectors, are confirmed as such."""
    path = make(tmp_path, 24 * MIB, 4096)
    (batch,) = batches(GUEST, path)
    assert batch.length == 4096 and batch.value is not None and set(range(6)) <= set(batch.value.tolist())


def test_damage_is_seen(tmp_path: Path) -> None:
    """A lost boot sector, copy or $MFT and a mirror that differs are each told; the volume is still found."""
    path = make(tmp_path)
    whole = path.read_bytes()
    mft = int.from_bytes(whole[0x30:0x38], "little") * 4096
    mirror = int.from_bytes(whole[0x38:0x40], "little") * 4096
    for at, word in ((0, "boot sector lost"), (12 * MIB - 512, "copy of the boot"), (mft, "$MFT lost"),
                     (mirror, "$MFTMirr differs")):
        path.write_bytes(whole)
        poke(path, at, bytes(512))
        v = probe(GUEST, path)
        assert v is not None and v.consistent is False and word in v.detail, v
        assert v.size == 12 * MIB
    path.write_bytes(whole)
    v = probe(GUEST, path, 0, 10 * MIB)
    assert v is not None and v.consistent is False and "larger" in v.detail


def test_dirty_flag_is_told(tmp_path: Path) -> None:
    """A volume marked dirty says so and is consistent all the same."""
    path = make(tmp_path)
    data = path.read_bytes()
    for lcn in (0x30, 0x38):
        record = int.from_bytes(data[lcn : lcn + 8], "little") * 4096 + 3 * 1024
        at = data.index(b"\x70\0\0\0", record)
        value = at + int.from_bytes(data[at + 20 : at + 22], "little")
        poke(path, value + 10, b"\x01")
    assert "marked dirty" in sound(GUEST, path).detail


def test_magic_alone_is_nothing(tmp_path: Path) -> None:
    """NTFS and FILE in text, zeros, noise or code are neither evidence nor a volume."""
    finds_nothing(GUEST, tmp_path)
