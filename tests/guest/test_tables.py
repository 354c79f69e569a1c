"""GPT by sgdisk and sfdisk, MBR by sfdisk, judged by mmls; and the walk over a whole disk."""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.guest.images import MIB, evidence, finds_nothing, flip, need, poke, probe, sound, sparse, tree
from tests.helpers import run
from vmcarve.checksums import crc32c, crc32c_zeroed
from vmcarve.guest import gpt, mbr
from vmcarve.model import Volume
from vmcarve.registry import guests
from vmcarve.source import BytesReader, open_image
from vmcarve.verify.guest import describe, summary


def sfdisk(path: Path, script: str) -> None:
    need("sfdisk")
    subprocess.run(["sfdisk", "-q", str(path)], input=script, text=True, check=True, timeout=60, capture_output=True)


def mmls(path: Path, kind: str, sector: int = 512) -> list[tuple[int, int]]:
    """(offset, size) of the partitions as sleuthkit lists them."""
    text = run("mmls", "-t", kind, "-b", str(sector), path).stdout
    rows = re.findall(r"(?m)^\d+:\s+[\d:]+\s+(\d+)\s+\d+\s+(\d+)", text)
    return sorted((int(a) * sector, int(n) * sector) for a, n in rows)


def make_gpt(tmp_path: Path) -> Path:
    need("sgdisk", "mmls")
    path = sparse(tmp_path / "g.img", 64 * MIB)
    run("sgdisk", "-n", "1:2048:+10M", "-t", "1:ef00", "-c", "1:EFI part", "-n", "3:0:+20M", "-n", "2:0:+8M",
        "-t", "2:8200", path)
    return path


def make_mbr(tmp_path: Path) -> Path:
    path = sparse(tmp_path / "m.img", 96 * MIB)
    sfdisk(path, "label: dos\nstart=2048, size=20480, type=83, bootable\nstart=22528, size=40960, type=7\n"
                 "start=63488, size=131072, type=5\nstart=65536, size=20480, type=83\n"
                 "start=88064, size=30720, type=82\nstart=120832, size=10240, type=b\n")
    return path


def test_gpt_as_mmls_lists_it(tmp_path: Path) -> None:
    """Places, sizes, types and names of the partitions are sgdisk's; the disk's size is the table's own."""
    path = make_gpt(tmp_path)
    v = sound(gpt.GUEST, path)
    assert (v.kind, v.size) == ("gpt", 64 * MIB)
    assert [(o, s) for o, s, _ in v.partitions] == mmls(path, "gpt") and len(v.partitions) == 3
    assert [t for _, _, t in v.partitions][0] == "EFI system 'EFI part'" and "Linux swap" in v.partitions[2][2]
    assert v.uuid.upper() in run("sgdisk", "-p", path).stdout
    with open_image(path) as image:  # a window that does not end where the disk ends
        assert gpt.GUEST.probe(image, 0, 64 * MIB) == v


def test_gpt_headers_pin_their_lba(tmp_path: Path) -> None:
    """Both headers prove their guest offset from the LBA they state, with the disk's size, only while the CRC holds."""
    path = make_gpt(tmp_path)
    last = 64 * MIB - 512
    rows = [(e.kind, e.image_offset, e.guest_offset, e.value) for e in evidence(gpt.GUEST, path)]
    assert rows == [("gpt.header", 512, 512, 64 * MIB), ("gpt.backup", last, last, 64 * MIB)]
    flip(path, 512 + 0x18)
    assert [e.kind for e in evidence(gpt.GUEST, path)] == ["gpt.backup"]
    flip(path, 512 + 0x18)


def test_gpt_headers_alone_tell_their_sector_size_by_the_room_of_the_entries(tmp_path: Path) -> None:
    """Where the entries are lost: between what is usable and the backup is just their room in sectors of one size; with
    more than that no place is claimed."""
    head = bytearray(make_gpt(tmp_path).read_bytes()[512:604])
    alone = tmp_path / "alone.img"
    for less, place in ((0, 512), (1, None)):
        struct.pack_into("<Q", head, 48, 64 * MIB // 512 - 34 - less)  # the last usable sector
        struct.pack_into("<II", head, 12, 92, 0)
        struct.pack_into("<I", head, 16, zlib.crc32(head))
        alone.write_bytes(bytes(4096) + head.ljust(512, b"\0") + bytes(4096))
        (row,) = evidence(gpt.GUEST, alone)
        assert (row.guest_offset, row.confidence) == (place, 1.0 if place else 0.5)


def test_gpt_with_4096_byte_sectors(tmp_path: Path) -> None:
    """The same disk in sectors of 4096 bytes: the entries' CRC tells which sector size is meant."""
    path = sparse(tmp_path / "k.img", 64 * MIB)
    entries = bytearray(128 * 128)
    entries[:16] = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
    entries[16:32] = bytes(range(16))
    struct.pack_into("<QQ", entries, 32, 256, 5000)
    for lba, other, at in ((1, 16383, 2), (16383, 1, 16379)):
        head = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, lba, other, 6, 16378,
                                     bytes(range(16)), at, 128, 128, zlib.crc32(entries)))
        struct.pack_into("<I", head, 16, zlib.crc32(head))
        poke(path, lba * 4096, bytes(head))
        poke(path, at * 4096, bytes(entries))
    v = sound(gpt.GUEST, path)
    assert v.size == 64 * MIB and [(o, s) for o, s, _ in v.partitions] == [(256 * 4096, 4745 * 4096)]
    assert [(o, s) for o, s, _ in v.partitions] == mmls(path, "gpt", 4096)
    rows = [(e.kind, e.image_offset, e.guest_offset, e.value) for e in evidence(gpt.GUEST, path)]
    assert rows == [("gpt.header", 4096, 4096, 64 * MIB), ("gpt.backup", 16383 * 4096, 16383 * 4096, 64 * MIB)]


def test_gpt_damage(tmp_path: Path) -> None:
    """Header, entries or backup lost: the other copy gives the same partitions, and the damage is told."""
    path = make_gpt(tmp_path)
    want = sound(gpt.GUEST, path).partitions
    whole = path.read_bytes()
    for at, word in ((512, "primary header lost"), (1024, "entries read from the backup"),
                     (64 * MIB - 512, "backup header lost")):
        path.write_bytes(whole)
        poke(path, at, b"\x11" * 64)
        v = probe(gpt.GUEST, path)
        assert v is not None and v.consistent is False and word in v.detail and v.partitions == want
    path.write_bytes(whole[: 40 * MIB])
    v = probe(gpt.GUEST, path)
    assert v is not None and v.consistent is False and "cut off" in v.detail and v.size == 64 * MIB
    path.write_bytes(whole)
    poke(path, 512, bytes(512))
    poke(path, 64 * MIB - 512, bytes(512))
    assert probe(gpt.GUEST, path) is None
    v = probe(mbr.GUEST, path)
    assert v is not None and v.consistent is False and "GPT is lost" in v.detail


def test_mbr_as_mmls_lists_it(tmp_path: Path) -> None:
    """Primary and logical partitions are those of sleuthkit; the size is the end of what the table names."""
    path = make_mbr(tmp_path)
    v = sound(mbr.GUEST, path)
    want = [p for p in mmls(path, "dos") if p != (63488 * 512, 131072 * 512)]
    assert [(o, s) for o, s, _ in v.partitions] == [p for p in want if p[0] > 0]
    assert v.size == (63488 + 131072) * 512
    assert [t for _, _, t in v.partitions] == ["Linux", "NTFS / exFAT", "Linux", "Linux swap", "FAT32"]


def test_ebr_loops_end(tmp_path: Path) -> None:
    """A chain of EBRs that leads back, out or on for ever ends, and the table says that it is damaged."""
    path = make_mbr(tmp_path)
    ebr = 63488 * 512
    for link in (0, 1, 0xFFFF_FFFF, 131072):
        poke(path, ebr + 462, struct.pack("<BBBBBBBBII", 0, 0, 0, 0, 5, 0, 0, 0, link, 4096))
        v = probe(mbr.GUEST, path)
        assert v is not None and (v.consistent is False) and len(v.partitions) >= 2
    first = 63488
    for i in range(1000):  # a chain longer than any program makes
        poke(path, (first + i) * 512 + 446, bytes(16) + struct.pack("<BBBBBBBBII", 0, 0, 0, 0, 5, 0, 0, 0, i + 1, 1)
             + bytes(32) + b"\x55\xaa")
    v = probe(mbr.GUEST, path)
    assert v is not None and v.consistent is False and "more than" in v.detail


def test_boot_sectors_are_no_tables(tmp_path: Path) -> None:
    """Boot sectors of file systems, and tables whose entries overlap or begin at nothing, are not believed."""
    need("mkfs.vfat", "mkntfs", "mkfs.exfat")
    path = sparse(tmp_path / "v.img", 40 * MIB)
    for argv in (("mkfs.vfat", "-F", "32"), ("mkfs.vfat", "-F", "16"), ("mkntfs", "-q", "-F", "-f"), ("mkfs.exfat",)):
        run(*argv, path)
        assert probe(mbr.GUEST, path) is None
    good = bytearray(512)
    struct.pack_into("<BBBBBBBBII", good, 446, 0x80, 0, 0, 0, 0x83, 0, 0, 0, 2048, 4096)
    good[510:] = b"\x55\xaa"
    for at, data in ((446, b"\x01"), (450, b"\0"), (454, bytes(4)), (458, bytes(4)), (462 + 4, b"\x07"),
                     (454, b"\xff" * 4), (510, b"\x55\x55")):
        bad = bytearray(good)
        bad[at : at + len(data)] = data
        assert mbr.GUEST.probe(BytesReader(bytes(bad) + bytes(4 * MIB)), 0, 4 * MIB) is None, (at, data)
    struct.pack_into("<BBBBBBBBII", good, 462, 0, 0, 0, 0, 0x83, 0, 0, 0, 4000, 4096)
    assert mbr.GUEST.probe(BytesReader(bytes(good) + bytes(4 * MIB)), 0, 8 * MIB) is None


def test_magic_alone_is_nothing(tmp_path: Path) -> None:
    """EFI PART in text, zeros, noise or code is neither evidence nor a table."""
    finds_nothing(gpt.GUEST, tmp_path)


# --- whole disks ---------------------------------------------------------------------------------------------------
def put(disk: Path, offset: int, volume: Path) -> None:
    poke(disk, offset, volume.read_bytes())


def filled(tmp_path: Path, path: Path, places: list[tuple[int, int]]) -> None:
    """ext4, NTFS and swap into the first three places."""
    need("mke2fs", "mkntfs", "mkswap")
    for (offset, size), argv in zip(places, (
        ("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root", "-d", str(tree(tmp_path / "t", count=8))),
        ("mkntfs", "-q", "-F", "-f", "-L", "Windows"), ("mkswap",),
    ), strict=False):
        volume = sparse(tmp_path / "part", size)
        run(*argv, volume)
        put(path, offset, volume)


def walked(path: Path) -> list[Volume]:
    with open_image(path) as image:
        return describe(image)


def test_disk_with_gpt(tmp_path: Path) -> None:
    """Table first, then the file system of every partition with its place; the summary is one line."""
    path = make_gpt(tmp_path)
    places = sorted(p[:2] for p in sound(gpt.GUEST, path).partitions)
    filled(tmp_path, path, [places[1], places[0], places[2]])
    found = walked(path)
    assert [(v.kind, v.offset) for v in found] == [("gpt", 0), ("ntfs", places[0][0]), ("ext4", places[1][0]),
                                                   ("swap", places[2][0])]
    assert summary(found) == "GPT: ntfs 'Windows' 10 MiB, ext4 'root' 20 MiB, swap 8 MiB (consistent)"
    poke(path, places[1][0] + 4096, bytes(64))
    assert "ext4 'root' 20 MiB (damaged), swap" in summary(walked(path))
    poke(path, places[0][0], bytes(10 * MIB))
    assert summary(walked(path)).startswith("GPT: EFI system 'EFI part' 10 MiB, ext4")


def test_disk_with_mbr(tmp_path: Path) -> None:
    """Logical partitions are walked too; one that holds nothing known is told by its type."""
    path = make_mbr(tmp_path)
    places = [p[:2] for p in sound(mbr.GUEST, path).partitions]
    filled(tmp_path, path, [places[2], places[1], places[3]])
    assert summary(walked(path)) == ("MBR: Linux 10 MiB, ntfs 'Windows' 20 MiB, ext4 'root' 10 MiB, swap 15 MiB, "
                                     "FAT32 5 MiB (consistent)")


def test_bare_volume_and_nothing(tmp_path: Path) -> None:
    """A volume without a table is found at 0; noise, zeros and an empty disk give an empty list."""
    path = sparse(tmp_path / "v.img", 20 * MIB)
    filled(tmp_path, path, [(0, 20 * MIB)])
    assert summary(walked(path)) == "ext4 'root' 20 MiB (consistent)"
    for data in (b"", bytes(MIB), b"text " * 100_000):
        assert describe(BytesReader(data)) == [] and summary([]) == ""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small volumes of all kinds that can be made small, for mutation."""
    where = tmp_path_factory.mktemp("heads")
    need("mke2fs", "mkntfs", "mkswap", "mkfs.vfat", "mkfs.exfat")
    out: list[bytes] = []
    for argv, size in ((("mke2fs", "-q", "-F", "-t", "ext4"), 2), (("mkntfs", "-q", "-F", "-f"), 2), (("mkswap",), 1),
                       (("mkfs.vfat",), 1), (("mkfs.vfat", "-F", "32"), 34), (("mkfs.exfat",), 8)):
        path = sparse(where / "v", size * MIB)
        run(*argv, path)
        out.append(path.read_bytes()[: 2 * MIB])
    out.append(make_gpt(where).read_bytes()[: 64 << 10])
    out.append(make_mbr(where).read_bytes()[: 64 << 10])
    need("mkfs.btrfs", "mkfs.xfs", "cryptsetup")
    path = sparse(where / "b", 128 * MIB)
    run("mkfs.btrfs", "-q", "-f", path)
    out.append(path.read_bytes()[: MIB])
    path = sparse(where / "x", 320 * MIB)
    run("mkfs.xfs", "-q", "-f", path)
    out.append(path.read_bytes()[: MIB])
    return out


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated(head: list[bytes], data: st.DataObject) -> None:
    """Whatever stands in headers, no probe, confirmation or summary raises, and bounds hold."""
    blob = bytearray(data.draw(st.sampled_from(head)))
    for _ in range(data.draw(st.integers(1, 5))):
        base = data.draw(st.sampled_from([0, 0, 1024, 512, 65536, 4096, 16384]))
        at = base + data.draw(st.integers(0, 300))
        value = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, bytes(8)])))
        blob[at : at + len(value)] = value
    _fix_sums(blob)
    holes = ((data.draw(st.integers(0, len(blob) - 1)), 4096),) if data.draw(st.booleans()) else ()
    reader = BytesReader(bytes(blob), holes)
    volumes = describe(reader)
    assert len(summary(volumes)) < 4000
    for v in volumes:
        assert v.size >= 0 and v.offset >= 0 and all(o >= 0 and s >= 0 for o, s, _ in v.partitions)
    for guest in guests().values():
        for s in guest.signatures:
            if not s.dense and guest.confirm is not None:
                row = guest.confirm(reader, 0, s)
                assert row is None or -(1 << 63) <= (row.value or 0) < 1 << 63


def _fix_sums(blob: bytearray) -> None:
    """Makes the checksums of GPT, ext, XFS and Btrfs superblocks agree with the lies, so that parsing goes on."""
    if blob[512:520] == b"EFI PART":
        size = min(int.from_bytes(blob[524:528], "little"), 512)
        blob[528:532] = bytes(4)
        blob[528:532] = zlib.crc32(blob[512 : 512 + size]).to_bytes(4, "little")
    if blob[1024 + 0x38 : 1024 + 0x3A] == b"\x53\xef":
        blob[1024 + 0x3FC : 2048] = (crc32c(bytes(blob[1024 : 1024 + 0x3FC])) ^ 0xFFFF_FFFF).to_bytes(4, "little")
    if blob[:4] == b"XFSB":
        blob[224:228] = crc32c_zeroed(bytes(blob[:512]), 224).to_bytes(4, "little")
    if blob[65536 + 64 : 65536 + 72] == b"_BHRfS_M":
        blob[65536:65540] = crc32c(bytes(blob[65568 : 65536 + 4096])).to_bytes(4, "little")
