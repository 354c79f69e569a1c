"""UFS as makefs writes it, APFS as mkapfs does, and HFS+ by an own writer after TN1150 that blkid and fsstat read."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.guest.images import (
    MIB,
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
from vmcarve import Options, recover
from vmcarve.guest import apfs, hfsplus, ufs
from vmcarve.model import GuestKind
from vmcarve.source import BytesReader, open_image

KINDS = {"apfs": apfs.GUEST, "hfsplus": hfsplus.GUEST, "ufs": ufs.GUEST}


@pytest.mark.parametrize("guest", KINDS.values(), ids=KINDS)
def test_magic_alone_is_nothing(tmp_path: Path, guest: GuestKind) -> None:
    """The magics in text, zeros, noise or code are neither evidence nor a volume."""
    finds_nothing(guest, tmp_path)


# --- UFS -------------------------------------------------------------------------------------------------------------
def make_ufs(tmp_path: Path, version: int) -> Path:
    """Of several cylinder groups."""
    need("makefs", "fsstat")
    path = tmp_path / "u.img"
    run("makefs", "-t", "ffs", "-o", f"version={version},bsize=8192,fsize=1024,maxbpcg=512,density=65536", "-s", "96m",
        path, tree(tmp_path / "tree"))
    return path


@pytest.mark.parametrize("version", [1, 2])
def test_ufs(version: int, tmp_path: Path) -> None:
    """Size and identifier are those that blkid reads; the groups lie where fsstat has them, and pin themselves."""
    path = make_ufs(tmp_path, version)
    v = sound(ufs.GUEST, path)
    assert (v.kind, v.size, v.uuid) == (f"ufs{version}", 96 * MIB, blkid(path, "UUID"))
    rows = evidence(ufs.GUEST, path)
    assert len(rows) > 1 and rows[0].volume_offset == rows[0].image_offset == 0
    assert all(row.volume_offset == row.image_offset and row.value == v.size for row in rows)
    if version == 1:  # The Sleuth Kit looks for version 2 at another place than makefs puts it
        places = run("fsstat", path).stdout.split("Group Desc: ")[1:]
        assert [int(part.split()[0]) * 1024 for part in places][1:] == [row.image_offset for row in rows[1:]]


def test_a_ufs_that_lost_its_begin(tmp_path: Path) -> None:
    """Without the first superblock it is no volume until a group's copy begins it again."""
    path = make_ufs(tmp_path, 2)
    whole = path.read_bytes()
    poke(path, 0, bytes(MIB))
    assert probe(ufs.GUEST, path) is None
    row = evidence(ufs.GUEST, path)[0]
    assert row.volume_offset == row.image_offset > MIB
    with open_image(path) as image:
        made = ufs.begin(image, row.image_offset)
    assert made is not None and made.size == 96 * MIB
    poke(path, 0, made.data)
    v = probe(ufs.GUEST, path)
    assert v is not None and v.size == 96 * MIB and v.detail == "no cylinder group 0"
    assert made.data[-4:] == whole[len(made.data) - 4 : len(made.data)]


def test_a_group_without_its_superblock_is_nothing(tmp_path: Path) -> None:
    """The group alone has no sizes by which to tell its place."""
    path = make_ufs(tmp_path, 2)
    rows = evidence(ufs.GUEST, path)
    at = rows[1].image_offset
    poke(path, at - 65536, bytes(65536))
    assert [row.image_offset for row in evidence(ufs.GUEST, path)] == [row.image_offset for row in rows if
                                                                      row.image_offset != at]


def test_ufs_groups_lay_out_a_container_in_pieces(tmp_path: Path) -> None:
    """A VDI in five pieces in any order, no host: nothing but the groups of its guest says which piece is where."""
    need("makefs", "qemu-img")
    rng = random.Random(3)
    raw, image = tmp_path / "raw", tmp_path / "image"
    for i in range(40):
        (tree(tmp_path / "tree") / f"large{i}").write_bytes(rng.randbytes(800_000))
    run("makefs", "-t", "ffs", "-o", "version=2,bsize=8192,fsize=1024,maxbpcg=512,density=65536", "-s", "48m", raw,
        tmp_path / "tree")
    run("qemu-img", "convert", "-f", "raw", "-O", "vdi", raw, tmp_path / "a.vdi")
    content = (tmp_path / "a.vdi").read_bytes()
    cuts = [0, *(n * len(content) // 5 // 4096 * 4096 for n in range(1, 5)), len(content)]
    pieces = [content[cuts[n] : cuts[n + 1]] for n in (3, 0, 4, 2, 1)]
    image.write_bytes(b"".join(rng.randbytes(600 << 10) + one + rng.randbytes(-len(one) % 4096) for one in pieces))
    recover([image], tmp_path / "case", options=Options())
    (found,) = (tmp_path / "case" / "disks").glob("*.vdi")
    run("qemu-img", "convert", "-f", "vdi", "-O", "raw", found, tmp_path / "out")
    disk, out = (np.frombuffer((tmp_path / name).read_bytes().ljust(48 * MIB, b"\0"), np.uint8).reshape(-1, 4096)
                 for name in ("raw", "out"))
    full = disk.any(axis=1)
    assert (disk == out).all(axis=1)[full].mean() > 0.9  # 0.25 without them


# --- APFS ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A container of 600 MiB with one empty volume."""
    need("mkapfs", "apfsck")
    path = sparse(tmp_path / "a.img", 600 * MIB)
    run("mkapfs", "-L", "Macintosh HD", path)
    return path


def test_apfs(container: Path) -> None:
    """Size, identifier and the volume's name are those that mkapfs was told; physical objects pin themselves, and the
    superblock in the ring is told from the one in block 0."""
    run("apfsck", container)
    v = sound(apfs.GUEST, container)
    assert (v.kind, v.size, v.label, v.uuid) == ("apfs", 600 * MIB, "Macintosh HD", blkid(container, "UUID"))
    rows = evidence(apfs.GUEST, container)
    assert all(row.volume_offset == row.image_offset for row in rows)
    kinds = [row.kind for row in rows]
    assert kinds.count("apfs.superblock") == 2 and kinds.count("apfs.object") > 4
    assert {row.identity for row in rows} == {v.uuid, None}


def test_an_apfs_that_lost_its_first_block(container: Path) -> None:
    """The ring's superblock begins it again; an object with a flipped bit is none."""
    ring = [row for row in evidence(apfs.GUEST, container) if row.kind == "apfs.superblock"][1].image_offset
    poke(container, 0, bytes(4096))
    assert probe(apfs.GUEST, container) is None
    with open_image(container) as image:
        made = apfs.begin(image, ring)
    assert made is not None and made.size == 600 * MIB
    poke(container, 0, made.data)
    assert sound(apfs.GUEST, container).label == "Macintosh HD"
    last = evidence(apfs.GUEST, container)[-1].image_offset
    flip(container, last + 3000)
    assert evidence(apfs.GUEST, container)[-1].image_offset < last


def test_a_superblock_alone_proves_no_place(container: Path) -> None:
    """Block 0 and the ring hold the same bytes: without what lies beside them nobody tells which it is."""
    block = container.open("rb").read(4096)
    row = apfs.confirm(BytesReader(bytes(8192) + block), 8192, apfs.SIGNATURES[0])
    assert row is not None and row.volume_offset is None and row.confidence < 0.6


def test_fletcher_equals_the_sum_word_by_word() -> None:
    """Of random words, of the largest ones, and of one."""
    rng = np.random.default_rng(1)
    for data in (rng.bytes(4088), b"\xff" * 4088, b"\1\0\0\0"):
        low = high = 0
        for (word,) in struct.iter_unpack("<I", data):
            low = (low + word) % 0xFFFFFFFF
            high = (high + low) % 0xFFFFFFFF
        first = 0xFFFFFFFF - (low + high) % 0xFFFFFFFF
        assert apfs.fletcher64(data) == first | (0xFFFFFFFF - (low + first) % 0xFFFFFFFF) << 32


# --- HFS+ ------------------------------------------------------------------------------------------------------------
BLOCK, BLOCKS = 4096, 2048
BITMAP, CATALOG = 1, 16  # first blocks of the two files


def make_hfsplus(path: Path, name: str = "Mac OS X", version: int = 4) -> Path:
    """Volume header, alternate, bitmap, and a catalog of a header node and a leaf with the root folder."""
    disk = bytearray(BLOCK * BLOCKS)

    def fork(first: int, blocks: int) -> bytes:
        return struct.pack(">QIIII", blocks * BLOCK, BLOCK, blocks, first, blocks).ljust(80, b"\0")

    used = 32
    header = bytearray(512)
    struct.pack_into(">HHI4s", header, 0, 0x482B if version == 4 else 0x4858, version, 0x100, b"10.0")
    struct.pack_into(">IIII", header, 40, BLOCK, BLOCKS, BLOCKS - used - 1, used)
    header[104:112] = bytes.fromhex("0102030405060708")
    for place, file in ((112, fork(BITMAP, 1)), (192, fork(2, 1)), (272, fork(CATALOG, 8))):
        header[place : place + 80] = file
    disk[1024 : 1024 + 512] = disk[-1024:-512] = header
    bitmap = bytearray(BLOCK)
    bitmap[: used // 8] = b"\xff" * (used // 8)
    bitmap[BLOCKS // 8 - 1] |= 1
    disk[BITMAP * BLOCK : (BITMAP + 1) * BLOCK] = bitmap
    node = struct.pack(">IIbBHH", 0, 0, 1, 0, 3, 0)
    node += struct.pack(">HIIIIHHIIHIBBI", 1, 1, 2, 1, 1, BLOCK, 516, 8, 6, 0, 65536, 0, 0xCF, 6)
    disk[CATALOG * BLOCK : CATALOG * BLOCK + len(node)] = node
    text = name.encode("utf-16-be")
    key = struct.pack(">IH", 1, len(name)) + text
    folder = struct.pack(">HHII", 1, 0, 0, 2).ljust(88, b"\0")
    thread_key = struct.pack(">IH", 2, 0)
    thread = struct.pack(">HHIH", 3, 0, 1, len(name)) + text
    first = struct.pack(">H", len(key)) + key + folder
    second = struct.pack(">H", len(thread_key)) + thread_key + thread
    leaf = struct.pack(">IIbBHH", 0, 0, -1, 1, 2, 0) + first + second
    at = (CATALOG + 1) * BLOCK
    disk[at : at + len(leaf)] = leaf
    places = (14, 14 + len(first), 14 + len(first) + len(second))
    for i, place in enumerate(places):
        struct.pack_into(">H", disk, at + BLOCK - 2 * (i + 1), place)
    path.write_bytes(disk)
    return path


@pytest.mark.parametrize("version", [4, 5])
def test_hfsplus(version: int, tmp_path: Path) -> None:
    """Size, name and UUID are those that blkid reads; the header and its alternate pin themselves."""
    need("blkid")
    path = make_hfsplus(tmp_path / "h.img", version=version)
    v = sound(hfsplus.GUEST, path)
    assert blkid(path, "TYPE") == "hfsplus" and (v.label, v.uuid) == (blkid(path, "LABEL"), blkid(path, "UUID"))
    assert (v.kind, v.size, v.label) == ("hfsplus" if version == 4 else "hfsx", BLOCK * BLOCKS, "Mac OS X")
    rows = [(e.kind, e.image_offset, e.volume_offset) for e in evidence(hfsplus.GUEST, path)]
    assert rows == [("hfsplus.header", 0, 0), ("hfsplus.alternate", v.size - 1024, v.size - 1024)]
    if shutil.which("fsstat"):
        assert "Volume Name: Mac OS X" in run("fsstat", "-f", "hfs", path).stdout


def test_an_hfsplus_that_lost_its_begin(tmp_path: Path) -> None:
    """The alternate says that it is one, and begins the volume again."""
    path = make_hfsplus(tmp_path / "h.img")
    poke(path, 0, bytes(4096))
    v = probe(hfsplus.GUEST, path)
    assert v is not None and v.label == "Mac OS X" and (v.consistent, v.detail) == (False, "header lost")
    (row,) = evidence(hfsplus.GUEST, path)
    assert row.volume_offset == row.image_offset == v.size - 1024
    with open_image(path) as image:
        made = hfsplus.begin(image, row.image_offset)
    assert made is not None
    poke(path, 0, made.data)
    assert sound(hfsplus.GUEST, path).size == v.size


def test_headers_without_their_catalog_prove_no_place(tmp_path: Path) -> None:
    """They are believed for their extents alone, and a header with impossible ones is none."""
    path = make_hfsplus(tmp_path / "h.img")
    poke(path, CATALOG * BLOCK, bytes(BLOCK))
    assert [row.volume_offset for row in evidence(hfsplus.GUEST, path)] == [None, None]
    poke(path, 1024 + 272 + 16, b"\xff" * 4)
    assert probe(hfsplus.GUEST, path, limit=BLOCK * BLOCKS - 4096) is None
