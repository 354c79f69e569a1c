"""Disks without a container, and extents without a name: on real file systems, in images with noise between pieces."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

import vmcarve
from tests.helpers import run
from vmcarve.assemble.headers import _most  # pyright: ignore[reportPrivateUsage]
from vmcarve.guest import gpt
from vmcarve.model import DATA, EXTERNAL, Check, Container, GuestDisk, GuestMap, Member, Region
from vmcarve.source import BytesReader

MIB = 1 << 20
BLOCK = 4096
VOLUME = 14 * MIB
DISK = 16 * MIB


def disk(folder: Path, table: str, seed: int) -> bytes:
    """A disk of 16 MiB with one partition of 14 MiB, in it an ext4 with files of random sizes."""
    folder.mkdir()
    rng = random.Random(seed)
    files = folder / "files"
    files.mkdir()
    for n in range(120):
        (files / f"file{n}").write_bytes(rng.randbytes(rng.randrange(1, 120_000)))
    volume, raw = folder / "volume", folder / "raw"
    with volume.open("wb") as f:
        f.truncate(VOLUME)
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-b", "4096", "-d", files, volume)
    with raw.open("wb") as f:
        f.truncate(DISK)
        f.seek(MIB)
        f.write(volume.read_bytes())
    (folder / "script").write_text(f"label: {table}\nstart=2048, size={VOLUME // 512}\n")
    run("sh", "-c", f"sfdisk -q --no-reread {raw} < {folder / 'script'}")
    return raw.read_bytes()


def image_of(path: Path, parts: list[bytes]) -> list[int]:
    """Writes an image with noise between the parts, and returns where each begins."""
    rng, out, at = random.Random(9), bytearray(), list[int]()
    for part in parts:
        out += rng.randbytes(rng.randrange(20, 80) * BLOCK)
        at.append(len(out))
        out += part + bytes(-len(part) % BLOCK)
    path.write_bytes(out + rng.randbytes(64 * BLOCK))
    return at


def recovered(image: Path, case: Path) -> list[dict[str, object]]:
    vmcarve.recover([image], case)
    with pa.memory_map(str(case / "disks.arrow")) as f:
        return pa.ipc.open_file(f).read_all().to_pylist()


def blocks_alike(got: bytes, wanted: bytes) -> float:
    """The share of the wanted blocks with data that are right."""
    rows = [(got[i : i + BLOCK], wanted[i : i + BLOCK]) for i in range(0, len(wanted), BLOCK)]
    there = [(a, b) for a, b in rows if any(b)]
    return sum(a == b for a, b in there) / len(there)


@pytest.mark.parametrize("table", ["dos", "gpt"])
def test_a_raw_disk_whose_volume_lies_elsewhere_is_joined_to_its_table(table: str, tmp_path: Path) -> None:
    """The partition table first, the volume in another fragment before it: an MBR states no place, its volume tells."""
    data = disk(tmp_path / "one", table, 1)
    image_of(tmp_path / "image", [data[MIB : MIB + VOLUME], data[:MIB]])
    rows = recovered(tmp_path / "image", tmp_path / "case")
    found = [r for r in rows if r["format"] == "raw"]
    assert [r["variant"] for r in found] == ["mbr" if table == "dos" else "gpt"]
    got = (tmp_path / "case" / str(found[0]["path"])).read_bytes()
    assert blocks_alike(got[: MIB + VOLUME], data[: MIB + VOLUME]) == 1.0


def test_what_nothing_on_a_raw_disk_speaks_of_is_left_open(tmp_path: Path) -> None:
    """Behind the only partition of a raw disk lies another file: it is not given out as the disk's end."""
    data = disk(tmp_path / "one", "gpt", 2)
    (start,) = image_of(tmp_path / "image", [data[: MIB + VOLUME] + random.Random(4).randbytes(DISK - MIB - VOLUME)])
    (row,) = recovered(tmp_path / "image", tmp_path / "case")
    assert row["header_offset"] == start and row["virtual_size"] == DISK
    got = (tmp_path / "case" / str(row["path"])).read_bytes()
    assert got[: MIB + VOLUME] == data[: MIB + VOLUME] and not any(got[MIB + VOLUME :])


def test_a_superblock_in_its_place_does_not_make_one_run_of_a_disk(tmp_path: Path) -> None:
    """A Btrfs superblock agrees with itself wherever the trees lie: here they lie in other fragments."""
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("no mkfs.btrfs")
    rng, tree, volume = random.Random(8), tmp_path / "tree", tmp_path / "volume"
    tree.mkdir()
    for n in range(200):
        (tree / f"file{n}").write_bytes(rng.randbytes(rng.randrange(5_000, 120_000)))
    with volume.open("wb") as f:
        f.truncate(63 * MIB)
    run("mkfs.btrfs", "-q", "-s", "4096", "-n", "4096", "-m", "single", "-d", "single", "--mixed", "--rootdir", tree,
        volume)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(MIB) + volume.read_bytes()[: 63 * MIB])
    (tmp_path / "script").write_text(f"label: dos\nstart=2048, size={63 * MIB // 512}\n")
    run("sh", "-c", f"sfdisk -q --no-reread {raw} < {tmp_path / 'script'}")
    data, head = raw.read_bytes(), MIB + (128 << 10)
    image_of(tmp_path / "image", [data[24 * MIB :], data[:head], data[head : 24 * MIB]])
    rows = [r for r in recovered(tmp_path / "image", tmp_path / "case") if r["variant"] == "mbr"]
    assert len(rows) == 1
    assert blocks_alike((tmp_path / "case" / str(rows[0]["path"])).read_bytes(), data) > 0.99


def qcow2_of(folder: Path, raw: bytes) -> bytes:
    """A qcow2 with that content, by qemu-img."""
    (folder / "raw").write_bytes(raw)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", folder / "raw", folder / "qcow2")
    return (folder / "qcow2").read_bytes()


def test_a_bare_volume_keeps_its_place_against_a_container_that_would_go_on_there(tmp_path: Path) -> None:
    """The rest of the container is gone, and its map does not end where it does: the volume says what lies there."""
    container = qcow2_of(tmp_path, disk(tmp_path / "one", "dos", 11))
    disk(tmp_path / "other", "dos", 12)
    volume = (tmp_path / "other" / "volume").read_bytes()[: 14 * MIB]
    head = len(container) // 3 // BLOCK * BLOCK
    _, start = image_of(tmp_path / "image", [container[:head], volume])
    rows = {r["format"]: r for r in recovered(tmp_path / "image", tmp_path / "case")}
    assert rows["raw"]["header_offset"] == start
    assert (tmp_path / "case" / str(rows["raw"]["path"])).read_bytes()[: len(volume)] == volume


def test_a_volume_that_is_a_file_of_a_guest_stays_in_it(tmp_path: Path) -> None:
    """A guest that keeps an image of a file system in a file: the container agrees as one run, so it is whole."""
    disk(tmp_path / "inner", "dos", 13)
    small = tmp_path / "small"
    # without room that is zero before its files: mkfs leaves holes there, and they are no blocks of the file
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal,^resize_inode", "-N", "160", "-b", "4096", "-d",
        tmp_path / "inner" / "files", small, "10M")
    rng, files = random.Random(14), tmp_path / "files"
    files.mkdir()
    for n in range(120):
        (files / f"file{n}").write_bytes(rng.randbytes(rng.randrange(1, 40_000)))
    (files / "image").write_bytes(small.read_bytes())
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-b", "4096", "-d", files, tmp_path / "volume", "24M")
    container = qcow2_of(tmp_path, (tmp_path / "volume").read_bytes())
    image_of(tmp_path / "image", [container])
    (row,) = recovered(tmp_path / "image", tmp_path / "case")
    assert row["format"] == "qcow2"
    assert (tmp_path / "case" / str(row["path"])).read_bytes() == container


def test_a_container_whose_data_lie_elsewhere_keeps_its_blocks(tmp_path: Path) -> None:
    """It is no more than its tables, and the host packed them: they agree, so nobody's run goes on over them."""
    container = qcow2_of(tmp_path, disk(tmp_path / "one", "dos", 16))
    disk(tmp_path / "other", "dos", 17)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", f"data_file={tmp_path / 'data'}",
        tmp_path / "other" / "volume", tmp_path / "tables")
    tables = (tmp_path / "tables").read_bytes()
    blocks = [tables[i : i + BLOCK] for i in range(0, len(tables), BLOCK)]
    head = len(container) // 3 // BLOCK * BLOCK
    _, start = image_of(tmp_path / "image", [container[:head], b"".join(b for b in blocks if any(b))])
    rows = {r["header_offset"]: r for r in recovered(tmp_path / "image", tmp_path / "case")}
    got, name = (tmp_path / "case" / str(rows[start]["path"])).read_bytes(), str(tmp_path / "data").encode()
    assert got == tables.replace(name, bytes(len(name)))  # what is written names no file outside the case


def test_the_first_block_of_a_snapshots_volume_is_no_disk_of_its_own(tmp_path: Path) -> None:
    """The guest wrote its superblock again: the old one stays in the container, of which only the snapshot knows."""
    disk(tmp_path / "one", "dos", 18)
    volume = tmp_path / "one" / "volume"
    qcow2_of(tmp_path, volume.read_bytes())
    run("qemu-img", "snapshot", "-c", "before", tmp_path / "qcow2")
    run("tune2fs", "-L", "after", volume)
    (tmp_path / "cluster").write_bytes(volume.read_bytes()[: 64 << 10])
    run("qemu-io", "-f", "qcow2", "-c", f"write -s {tmp_path / 'cluster'} 0 64k", tmp_path / "qcow2")
    container = (tmp_path / "qcow2").read_bytes()
    image_of(tmp_path / "image", [container])
    rows = recovered(tmp_path / "image", tmp_path / "case")
    assert {r["format"] for r in rows} == {"qcow2"}
    assert (tmp_path / "case" / str(rows[0]["path"])).read_bytes() == container


def test_an_encrypted_container_takes_no_volume(tmp_path: Path) -> None:
    """What such a container holds looks like noise: a volume behind its header is another's, here a disk of its own."""
    raw = disk(tmp_path / "one", "dos", 15)
    secret = ("--object", "secret,id=s,data=pass")
    options = "encrypt.format=aes,encrypt.key-secret=s"  # not LUKS, which QEMU refuses to make on a busy machine
    run("qemu-img", "create", "-q", *secret, "-f", "qcow2", "-o", options, tmp_path / "aes", str(24 * MIB))
    (tmp_path / "raw").write_bytes(random.Random(3).randbytes(24 * MIB))
    run("qemu-img", "convert", "-n", *secret, "-f", "raw", tmp_path / "raw", "--target-image-opts",
        f"driver=qcow2,file.filename={tmp_path / 'aes'},encrypt.key-secret=s")
    container = (tmp_path / "aes").read_bytes()
    volume = raw[MIB : MIB + VOLUME]
    at = 12 * MIB  # an attack or a later file wrote over part of it
    _, start = image_of(tmp_path / "image", [container[:at], volume])
    rows = {str(r["format"]): r for r in recovered(tmp_path / "image", tmp_path / "case")}
    assert set(rows) == {"qcow2", "raw"} and rows["raw"]["header_offset"] == start
    assert (tmp_path / "case" / str(rows["raw"]["path"])).read_bytes()[:VOLUME] == volume


def extents(folder: Path, data: bytes, size: int, kind: str) -> tuple[bytes, list[bytes]]:
    """A descriptor and its extents of `size` bytes each, as VMware splits disks; sparse ones written by qemu-img."""
    lines, parts = list[str](), list[bytes]()
    for n, at in enumerate(range(0, len(data), size)):
        part = data[at : at + size]
        name = f"disk-{'s' if kind == 'SPARSE' else 'f'}{n + 1:03}.vmdk"
        lines.append(f'RW {len(part) // 512} {kind} "{name}"' + (" 0" if kind == "FLAT" else ""))
        if kind == "SPARSE":
            (folder / "part").write_bytes(part)
            run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", folder / "part", folder / name)
            part = (folder / name).read_bytes()
        parts.append(part)
    create = "twoGbMaxExtentSparse" if kind == "SPARSE" else "twoGbMaxExtentFlat"
    text = ("# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
            f'createType="{create}"\n\n# Extent description\n' + "\n".join(lines) + "\n\n# The Disk Data Base\n#DDB\n\n"
            'ddb.virtualHWVersion = "4"\nddb.geometry.cylinders = "32"\nddb.geometry.heads = "16"\n'
            'ddb.geometry.sectors = "63"\nddb.adapterType = "ide"\n')
    return text.encode(), parts


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_extents_of_one_size_are_told_apart_by_the_guest(order: list[int], tmp_path: Path) -> None:
    """No host tells a name. Each extent has the same size; they lie in the disk's order, or in another one."""
    data = disk(tmp_path / "one", "gpt", 3)
    text, parts = extents(tmp_path, data, 4 * MIB, "SPARSE")
    image_of(tmp_path / "image", [text, *[parts[i] for i in order]])
    rows = recovered(tmp_path / "image", tmp_path / "case")
    row = next(r for r in rows if r["variant"] == "twoGbMaxExtentSparse")
    assert raw_of(tmp_path / "case" / str(row["path"])) == data


def test_extents_of_two_disks_are_shared_out(tmp_path: Path) -> None:
    """Two disks are split alike, and no host tells a name. The last extents, which are smaller, show nothing alone, and
    what one disk has is not the other's."""
    disks = [disk(tmp_path / f"disk{n}", "gpt", n) for n in (3, 4)]
    made = [extents(tmp_path, data, 6 * MIB, "SPARSE") for data in disks]
    texts = [text.replace(b"12345678", b"1234567%d" % n) for n, (text, _) in enumerate(made)]
    # without the text that qemu-img puts into each, which has its name
    parts = [part[:28] + bytes(16) + part[44:512] + bytes(20 * 512) + part[21 * 512 :]
             for _, some in made for part in some]
    image_of(tmp_path / "image", [*texts, *[parts[i] for i in (4, 0, 2, 5, 3, 1)]])
    rows = recovered(tmp_path / "image", tmp_path / "case")
    paths = [str(r["path"]) for r in rows if r["variant"] == "twoGbMaxExtentSparse" and r["header_offset"] is None
             or r["virtual_size"] == len(disks[0])]
    assert sorted(raw_of(tmp_path / "case" / path) for path in paths) == sorted(disks)


def test_a_flat_disk_in_several_extents_is_the_raw_disk_of_its_size(tmp_path: Path) -> None:
    """Its extents lie one behind the other: the descriptor is led to places inside one file, and QEMU reads it."""
    data = disk(tmp_path / "one", "gpt", 4)
    text, parts = extents(tmp_path, data, 6 * MIB, "FLAT")
    image_of(tmp_path / "image", [text, b"".join(parts)])
    rows = recovered(tmp_path / "image", tmp_path / "case")
    row = next(r for r in rows if r["variant"] == "twoGbMaxExtentFlat")
    got = raw_of(tmp_path / "case" / str(row["path"]))
    assert got[: MIB + VOLUME] == data[: MIB + VOLUME]


def raw_of(path: Path) -> bytes:
    out = path.with_suffix(".out")
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, out)
    return out.read_bytes()


def test_partition_entries_that_are_not_there_are_zeros_when_their_sum_says_so(tmp_path: Path) -> None:
    """A sparse host file has a hole where the unused entries are. With a used one missing the sum disagrees."""
    class Holes(BytesReader):
        def missing(self, offset: int, length: int) -> bool:
            return offset + length > BLOCK

    data = disk(tmp_path / "one", "gpt", 5)
    found = gpt.probe(Holes(data[:BLOCK] + bytes(len(data) - BLOCK)), 0, len(data))
    assert found is not None and [p[0] for p in found.partitions] == [MIB]
    lost = gpt.probe(Holes(data[:1024] + bytes(len(data) - 1024)), 0, len(data))
    assert lost is not None and lost.partitions == [] and "entries lost" in lost.detail


def test_a_text_that_lies_there_twice_is_one_disk(tmp_path: Path) -> None:
    """A descriptor in older copies of a tree's blocks; where it names another file it is another disk."""
    text = (b'# Disk DescriptorFile\nversion=1\nCID=1a2b3c4d\nparentCID=ffffffff\ncreateType="twoGbMaxExtentSparse"\n\n'
            b'RW 4192256 SPARSE "disk-s001.vmdk"\n\nddb.adapterType = "ide"\n')
    noise = random.Random(8)
    parts = [text, text, text.replace(b"disk-s001", b"work-s001"), text]
    (tmp_path / "image").write_bytes(b"".join(noise.randbytes(65536) + part.ljust(4096, b"\0") for part in parts))
    case = vmcarve.recover([tmp_path / "image"], tmp_path / "case", options=vmcarve.Options(write=False))
    assert [d["header_offset"] for d in case.disks()] == [65536, 2 * 69632 + 65536]


@pytest.mark.parametrize(("state", "most"), [(EXTERNAL, 320 << 10), (DATA, 40_370_176)], ids=["elsewhere", "inside"])
def test_tables_in_doubt_make_no_container_large_whose_data_lie_elsewhere(state: int, most: int) -> None:
    """A header that names data in another file holds tables only: what wrong ones name behind them is others'."""
    disk = GuestDisk(20 << 20, GuestMap.build([0], [20 << 20], [state], [0]))
    c = Container("qcow2", "v3-data-file", 1 << 32, [disk], members=[Member("data", "data-file", 0, 20 << 20)],
                  checks=[Check("entries name each cluster once", False)],
                  regions=[Region(0, 64 << 10, "header"), Region(256 << 10, 64 << 10, "l2")])
    assert _most(c, 1 << 40) == most


def test_a_copy_of_the_hosts_superblock_is_no_disk(tmp_path: Path) -> None:
    """A journal may have the group descriptors right behind the superblock, and the root inode where they name it, and
    ext3 has no checksum that says which is which: what bears the host's name is the host."""
    image = tmp_path / "host"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    run("mkfs.ext3", "-q", "-F", "-b", "4096", image, "64M")
    with image.open("r+b") as file:
        begin = file.read(1 << 20)
        file.seek(40 << 20)
        file.write(begin)
    vmcarve.recover([image], tmp_path / "case", options=vmcarve.Options())
    with pa.memory_map(str(tmp_path / "case" / "disks.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().num_rows == 0
