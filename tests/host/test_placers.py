"""HostKind.placer: loose metadata of a volume that a real tool filled tells its own place, and no other's does.

The volume is cut at random blocks, its pieces are shuffled and fed; every structure must be sent back to where it was.
What is there is told by the makers' own tools (debugfs, xfs_db, btrfs, ntfs-3g, mtools) and by plain loops, never by
the code under test.
"""

from __future__ import annotations

import contextlib
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcarve.checksums import crc32c
from vmcarve.host import btrfs, ext, fat, ntfs, xfs
from vmcarve.host._blocks import state_before_rows
from vmcarve.host._ext_placer import _between
from vmcarve.model import HostKind, Placer
from vmcarve.source import BytesReader

from .loopfs import Disk, make, needs_loop
from .written import blank, mounted, needs, run

MIB = 1 << 20
BLOCK = 4096
START = MIB + 512  # the volume does not begin at the image's first byte: what is told must count from the volume
FILES = 320
IDS = ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", "c9b1d2a4-6f0e-4c7b-8d55-1be0f7a94e02")
Placed = dict[int, set[int]]  # where a structure was in the volume -> where the placer says that it belongs


# --- cutting and feeding -------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cut:
    """A volume and its pieces in the order in which they are fed: (offset, length), whole blocks."""

    data: bytes
    pieces: list[tuple[int, int]]

    def holds(self, offset: int, length: int) -> bool:
        """Whether no cut goes through these bytes."""
        return any(at <= offset and offset + length <= at + n for at, n in self.pieces)


def cut(data: bytes, seed: int, largest: int = 48) -> Cut:
    """Pieces of 1 to `largest` blocks in random order, without those that are empty."""
    rng = random.Random(seed)
    pieces: list[tuple[int, int]] = []
    at = 0
    while at < len(data):
        n = min(rng.randint(1, largest) * BLOCK, len(data) - at)
        if data.count(0, at, at + n) < n:
            pieces.append((at, n))
        at += n
    rng.shuffle(pieces)
    return Cut(data, pieces)


def feed(placer: Placer, parts: Cut, count: int = 7) -> Placed:
    """What `find` says of buffers of `count` pieces each."""
    out: Placed = defaultdict(set)
    for i in range(0, len(parts.pieces), count):
        some = parts.pieces[i : i + count]
        buffer = np.frombuffer(b"".join(parts.data[at : at + n] for at, n in some), np.uint8)
        origin = np.concatenate([np.arange(at, at + n, 512) for at, n in some])
        position, place = placer.find(buffer)
        assert position.dtype == place.dtype == np.int64 and position.shape == place.shape
        assert not (position % 256).any()
        for p, v in zip(position.tolist(), place.tolist(), strict=True):
            out[int(origin[p // 512]) + p % 512].add(v)
    return out


def assert_true(data: bytes, placed: Placed, size: int) -> None:
    """One of the places of every structure (rivals, where copies are kept) holds what the structure holds."""
    for origin, places in placed.items():
        stored = data[origin : origin + size]
        assert any(data[v : v + size] == stored for v in places), (hex(origin), [hex(v) for v in places])


def the_placer(kind: HostKind, data: bytes, holes: tuple[tuple[int, int], ...] = ()) -> Placer:
    placer = none_or_placer(kind, data, holes)
    assert placer is not None
    return placer


def none_or_placer(kind: HostKind, data: bytes, holes: tuple[tuple[int, int], ...] = ()) -> Placer | None:
    assert kind.placer is not None
    image = BytesReader(bytes(START) + data, [(START + at, n) for at, n in holes])
    return kind.placer(image, START, len(data))


def finds_nothing_in_noise(placer: Placer) -> None:
    """Random bytes tell no place."""
    noise = np.frombuffer(random.Random(11).randbytes(4 * MIB), np.uint8)
    assert [len(a) for a in placer.find(noise)] == [0, 0]


def fill(top: Path, seed: int, directories: int = 16, count: int = FILES) -> None:
    """Some hundred files of distinct content, some without any, in some directories."""
    rng = random.Random(seed)
    for k in range(count):
        path = top / f"dir{k % directories}" / f"file {k}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice((0, 600, 9000, 40_000))))


def numbers(top: Path) -> dict[str, int]:
    """Inode (or record) numbers as the driver tells them, of files and directories."""
    return {str(p.relative_to(top)): p.stat().st_ino for p in [top, *top.rglob("*")]}


def written_by_loop(disk: Disk, seed: int) -> dict[str, int]:
    """Fills a volume through the kernel's driver: its numbers."""
    with disk.mounted() as top:
        fill(top, seed)
        return numbers(top)


@dataclass(repr=False)
class Two:
    """A volume and another one of its kind; structures: where the first one's are, as a foreign tool says."""

    data: bytes
    other: bytes
    size: int  # of a structure
    structures: set[int]


# --- ext4 ----------------------------------------------------------------------------------------------------------
MKFS_EXT = ("mkfs.ext4", "-q", "-F", "-I", "256", "-N", "768", "-O", "metadata_csum,^has_journal")


def inode_places(image: Path, inodes: set[int], block: int) -> set[int]:
    """Where debugfs says that inodes lie."""
    commands = image.with_name("imap")
    commands.write_text("".join(f"imap <{i}>\n" for i in inodes))
    text = run("debugfs", "-f", commands, image)
    found = re.findall(r"located at block (\d+), offset (0x[0-9a-f]+)", text)
    assert len(found) == len(inodes)
    return {int(b) * block + int(o, 16) for b, o in found}


@pytest.fixture(scope="module", params=[1024, 4096])
def ext4(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Two:
    """24 MiB without a journal, whose copies of inodes would be older than what lies at their place."""
    if shutil.which("debugfs") is None:
        pytest.skip("not installed: debugfs")
    made: list[bytes] = []
    places: set[int] = set()
    for seed, identity in enumerate(IDS):
        disk = make(tmp_path_factory.mktemp("ext4"), 24 * MIB, *MKFS_EXT, "-b", str(request.param), "-U", identity)
        inodes = set(written_by_loop(disk, seed).values())
        made.append(disk.image.read_bytes())
        places = places or inode_places(disk.image, inodes, request.param)
    return Two(made[0], made[1], 256, places)


@needs_loop
def test_ext4_inodes_tell_their_numbers(ext4: Two) -> None:
    """Every inode of every file and directory is sent to where it was, and nothing else is sent anywhere."""
    placer = the_placer(ext.HOST, ext4.data)
    placed = feed(placer, cut(ext4.data, 1))
    assert all(places == {origin} for origin, places in placed.items())
    assert_true(ext4.data, placed, ext4.size)
    assert len(ext4.structures) > FILES and ext4.structures <= placed.keys()
    assert len(placed) <= len(ext4.structures) + 2, "lost+found and perhaps a reserved inode"
    assert placer.bits >= 32, "a checksum of 32 bits under the volume's seed"


@needs_loop
def test_ext4_needs_the_volumes_seed(ext4: Two) -> None:
    """Inodes of another volume lead to random numbers, some 768 of 2**32 of which would be believed; noise to none."""
    placer = the_placer(ext.HOST, ext4.data)
    finds_nothing_in_noise(placer)
    assert feed(placer, cut(ext4.other, 2)) == {}
    assert len(feed(the_placer(ext.HOST, ext4.other), cut(ext4.other, 2))) > FILES, "they were there to be found"


@needs_loop
def test_ext4_a_changed_inode_tells_nothing(ext4: Two) -> None:
    """The number comes out of the checksum: a bit that changed anywhere in an inode gives a number that is none."""
    placer = the_placer(ext.HOST, ext4.data)
    rows = np.frombuffer(ext4.data, np.uint8).copy()
    rng = random.Random(3)
    for at in ext4.structures:
        rows[at + rng.randrange(256)] ^= 1 << rng.randrange(8)
    assert feed(placer, cut(rows.tobytes(), 1)).keys() & ext4.structures == set()


@needs_loop
def test_ext4_journal_copies_name_the_table(tmp_path: Path) -> None:
    """The journal holds inodes as they were: they tell their number, which is that of the inode at the place told."""
    disk = make(tmp_path, 32 * MIB, "mkfs.ext4", "-q", "-F", "-I", "256", "-b", "4096", "-O", "metadata_csum")
    number = written_by_loop(disk, 5)
    data = disk.image.read_bytes()
    places = inode_places(disk.image, set(number.values()), 4096)
    placed = feed(the_placer(ext.HOST, data), cut(data, 1))
    assert places <= placed.keys()
    copies = placed.keys() - places - {v for vs in placed.values() for v in vs}
    assert len(copies) > 20, "the journal holds some"
    for origin, told in placed.items():
        assert len(told) == 1
        at = min(told)
        assert origin == at or origin in copies
        # i_generation is drawn for each new inode
        assert data[at + 0x64 : at + 0x68] == data[origin + 0x64 : origin + 0x68]


@pytest.mark.parametrize("block", [1024, 4096])
def test_ext4_a_journals_superblock_tells_where_it_begins(block: int, tmp_path: Path) -> None:
    """By the volume's UUID, also when every inode is lost; that of another volume's journal tells nothing."""
    head = bytes.fromhex("c03b399800000004")
    made: list[bytes] = []
    for identity in IDS:
        disk = make(tmp_path, 32 * MIB, "mkfs.ext4", "-q", "-F", "-I", "256", "-O", "metadata_csum", "-b", str(block),
                    "-U", identity)
        made.append(disk.image.read_bytes())
    at = made[0].index(head)
    table = re.search(r"Inode table at (\d+)-", run("dumpe2fs", disk.image))
    assert table is not None
    lost = (int(table[1]) * block, 16 * 256)
    assert feed(the_placer(ext.HOST, made[0], (lost,)), cut(made[0], 1))[at] == {at}
    assert made[1].index(head) not in feed(the_placer(ext.HOST, made[0]), cut(made[1], 2))


@pytest.mark.parametrize("options", [("-I", "256", "-O", "^metadata_csum"), ("-I", "128", "-O", "metadata_csum")])
@needs("mkfs.ext4")
def test_ext4_without_whole_checksums_has_no_placer(tmp_path: Path, options: tuple[str, ...]) -> None:
    volume = blank(tmp_path / "volume", 16 * MIB)
    run("mkfs.ext4", "-q", "-F", *options, volume)
    assert none_or_placer(ext.HOST, volume.read_bytes()) is None


def raw_crc(state: int, data: bytes) -> int:
    """CRC-32C without inversions, from the state before `data` to the one behind it."""
    return crc32c(data, state ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


words = st.integers(0, 0xFFFFFFFF)


@given(words, st.lists(words, min_size=1, max_size=20))
def test_between_finds_the_four_bytes(before: int, sought: list[int]) -> None:
    """The number whose bytes lead from one state to another is the one that did."""
    after = np.array([raw_crc(before, n.to_bytes(4, "little")) for n in sought], np.uint32)
    assert _between(before, after).tolist() == sought


@given(st.integers(1, 64).flatmap(lambda m: st.lists(st.tuples(words, st.binary(min_size=m, max_size=m)),
                                                     min_size=1, max_size=8)))
def test_back_undoes_the_crc(rows: list[tuple[int, bytes]]) -> None:
    """From the state behind any bytes to the one before them."""
    behind = np.array([raw_crc(state, data) for state, data in rows], np.uint32)
    data = np.array([list(data) for _, data in rows], np.uint8)
    assert state_before_rows(data, behind).tolist() == [state for state, _ in rows]


# --- XFS -----------------------------------------------------------------------------------------------------------
XFS_KINDS = {"4k": (), "1k": ("-b", "size=1024", "-n", "size=4096"), "wide": ("-i", "size=1024")}
# magic: (its place, that of the uuid behind the address, whether it sums a directory's block, not the volume's)
XFS_MAGICS = {
    **dict.fromkeys((b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"RMB3", b"R3FC"), (0, 32, False)),
    b"BMA3": (0, 40, False),
    **dict.fromkeys((b"XDB3", b"XDD3", b"XDF3"), (0, 24, True)),
    **dict.fromkeys((b"\x3d\xf1", b"\x3d\xff", b"\x3e\xbe"), (8, 32, True)),
    b"\x3b\xee": (8, 32, False),
}


@dataclass(repr=False)
class Xfs(Two):
    block: int
    headers: dict[int, bytes]  # blocks with the volume's uuid: place -> magic
    groups: set[int]


def xfs_inodes(image: Path, inodes: set[int]) -> set[int]:
    """Where xfs_db says that inodes lie."""
    commands = [word for i in inodes for word in ("-c", f"convert ino {i} byte")]
    return {int(b) for b in re.findall(r"\((\d+)\)", run("xfs_db", "-r", *commands, image))}


def xfs_headers(data: bytes, block: int) -> dict[int, bytes]:
    """A plain search for magics with the volume's uuid, and the place where they are, at theirs."""
    uuid = data[32:48]
    out: dict[int, bytes] = {}
    for magic, (before, at, directory) in XFS_MAGICS.items():
        for found in re.finditer(re.escape(magic), data):
            p = found.start() - before
            address = at - 16 if at != 24 else 8  # of the directory's headers the log sequence number lies between
            where = int.from_bytes(data[p + address : p + address + 8], "big") * 512
            if directory and block < 4096:
                continue
            if p % block == 0 and data[p + at : p + at + 16] == uuid and where == p:
                out[p] = magic
    return out


@pytest.fixture(scope="module", params=list(XFS_KINDS))
def xfs5(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Xfs:
    """The smallest that mkfs.xfs makes, sparse; a directory too large for one block; four groups."""
    if shutil.which("xfs_db") is None:
        pytest.skip("not installed: xfs_db")
    made: list[bytes] = []
    places: set[int] = set()
    for seed, identity in enumerate(IDS):
        options = (*XFS_KINDS[request.param], "-m", f"uuid={identity}")
        disk = make(tmp_path_factory.mktemp("xfs"), 300 * MIB, "mkfs.xfs", "-q", "-f", *options)
        with disk.mounted() as top:
            fill(top, seed)
            (top / "many").mkdir()
            for k in range(400):
                (top / "many" / f"a name of some length, number {k}").touch()
            inodes = set(numbers(top).values())
        made.append(disk.image.read_bytes())
        places = places or xfs_inodes(disk.image, inodes)
        disk.image.unlink()
    block = 1024 if request.param == "1k" else 4096
    size = 1024 if request.param == "wide" else 512
    assert len(places) > FILES
    groups = {m.start() for m in re.finditer(b"XAG[FI]", made[0]) if m.start() % 512 == 0}
    return Xfs(made[0], made[1], size, places, block, xfs_headers(made[0], block), groups)


@needs_loop
def test_xfs_inodes_and_headers_tell_their_places(xfs5: Xfs) -> None:
    """Each inode and each block with a header is sent to where it was; so are the headers of the groups."""
    placer = the_placer(xfs.HOST, xfs5.data)
    parts = cut(xfs5.data, 1)
    placed = feed(placer, parts)
    assert all(places == {origin} for origin, places in placed.items()), "the journal's copies have no sound checksum"
    assert_true(xfs5.data, placed, 512)
    assert xfs5.structures <= placed.keys()
    headers = {at for at in xfs5.headers if parts.holds(at, xfs5.block)}
    assert len(headers) >= 0.8 * len(xfs5.headers) >= 16 and headers <= placed.keys()
    if xfs5.block == 4096:  # those of larger blocks of directories are not looked for
        assert {b"XDD3", b"\x3d\xf1"} <= {xfs5.headers[at] for at in headers}
    assert len(xfs5.groups) == 8 and xfs5.groups <= placed.keys()
    assert placer.bits >= 32


@needs_loop
def test_xfs_log_records_tell_their_sectors(xfs5: Xfs) -> None:
    """Each record that bears the volume's uuid is sent to where it was; one that contradicts itself is not."""
    log = {m.start() for m in re.finditer(b"\xfe\xed\xba\xbe", xfs5.data) if m.start() % 512 == 0
           and xfs5.data[m.start() + 304 : m.start() + 320] == xfs5.data[32:48]}
    assert len(log) >= 4
    placed = feed(the_placer(xfs.HOST, xfs5.data), cut(xfs5.data, 1))
    assert {at: placed[at] for at in log} == {at: {at} for at in log}
    data = bytearray(xfs5.data)
    for at in log:
        data[at + 7] ^= 1  # of the cycle, which the sequence number repeats
    assert not log & feed(the_placer(xfs.HOST, xfs5.data), cut(bytes(data), 1)).keys()


@needs_loop
def test_xfs_needs_the_volumes_uuid(xfs5: Xfs) -> None:
    """Another volume's inodes and headers are as sound, and not this one's; noise is neither."""
    placer = the_placer(xfs.HOST, xfs5.data)
    finds_nothing_in_noise(placer)
    assert feed(placer, cut(xfs5.other, 2)) == {}
    assert len(feed(the_placer(xfs.HOST, xfs5.other), cut(xfs5.other, 2))) > FILES, "they were there to be found"


@needs_loop
def test_xfs_changed_structures_tell_nothing(xfs5: Xfs) -> None:
    """One bit that changed in each, behind its identity and number: their checksums say so."""
    data = bytearray(xfs5.data)
    for at in xfs5.structures:
        data[at + 300] ^= 1
    for at in xfs5.headers:
        data[at + 600] ^= 1
    for at in xfs5.groups:
        data[at + 500] ^= 1
    found = feed(the_placer(xfs.HOST, xfs5.data), cut(bytes(data), 1)).keys()
    assert found & (xfs5.structures | xfs5.headers.keys() | xfs5.groups) == set()


@needs("mkfs.xfs")
def test_xfs_v4_has_no_placer(tmp_path: Path) -> None:
    """Its headers carry no address."""
    volume = blank(tmp_path / "volume", 300 * MIB)
    run("mkfs.xfs", "-q", "-f", "-m", "crc=0,finobt=0,rmapbt=0,reflink=0", volume)
    assert none_or_placer(xfs.HOST, volume.read_bytes()) is None


# --- Btrfs ---------------------------------------------------------------------------------------------------------
NODE = 16384


@pytest.fixture(scope="module", params=["single", "dup"])
def btrfs_two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Two:
    """The smallest that holds chunks for both; structures: logical addresses of the live nodes, as btrfs says."""
    if shutil.which("btrfs") is None:
        pytest.skip("not installed: btrfs")
    made: list[bytes] = []
    nodes: set[int] = set()
    # half of the other one's id is the same: all of it counts
    similar = IDS[0][:18] + IDS[1][18:] if request.param == "single" else IDS[1][:18] + IDS[0][18:]
    for seed, identity in enumerate((IDS[0], similar)):
        options = ("-m", request.param, "-n", str(NODE), "-U", identity)
        disk = make(tmp_path_factory.mktemp("btrfs"), 128 * MIB, "mkfs.btrfs", "-q", "-f", *options)
        written_by_loop(disk, seed)
        made.append(disk.image.read_bytes())
        text = run("btrfs", "inspect-internal", "dump-tree", disk.image)
        nodes = nodes or {int(n) for n in re.findall(r"^(?:leaf|node) (\d+) ", text, re.M)}
        disk.image.unlink()
    return Two(made[0], made[1], NODE, nodes)


@needs_loop
def test_btrfs_nodes_tell_their_addresses(btrfs_two: Two, request: pytest.FixtureRequest) -> None:
    """Every node that no cut went through, live or stale, is sent to where it was; of two copies, to both places."""
    data = btrfs_two.data
    placer = the_placer(btrfs.HOST, data)
    parts = cut(data, 1)
    placed = feed(placer, parts)
    assert all(origin in places for origin, places in placed.items())
    assert_true(data, placed, NODE)
    at = [p for p in range(0, len(data) - NODE + 1, BLOCK)
          if int.from_bytes(data[p + 48 : p + 56], "little") in btrfs_two.structures
          and data[p + 32 : p + 48] == data[0x10000 + 32 : 0x10000 + 48]]
    assert {int.from_bytes(data[p + 48 : p + 56], "little") for p in at} == btrfs_two.structures
    whole = {p for p in at if parts.holds(p, NODE)}
    assert len(whole) >= 0.7 * len(at) > 10 and whole <= placed.keys()
    two = [p for p, places in placed.items() if len(places) == 2]
    assert len(two) == (len(placed) if "dup" in request.node.callspec.id else 0)
    assert placer.bits >= 32


@needs_loop
def test_btrfs_needs_the_volumes_id(btrfs_two: Two) -> None:
    """Another volume's nodes are as sound, and not this one's; noise is neither."""
    placer = the_placer(btrfs.HOST, btrfs_two.data)
    finds_nothing_in_noise(placer)
    assert feed(placer, cut(btrfs_two.other, 2)) == {}
    assert len(feed(the_placer(btrfs.HOST, btrfs_two.other), cut(btrfs_two.other, 2))) > 10


@needs_loop
def test_btrfs_a_changed_node_tells_nothing(btrfs_two: Two) -> None:
    """One bit in the last sector of each: the checksum says so."""
    parts = cut(btrfs_two.data, 1)
    placer = the_placer(btrfs.HOST, btrfs_two.data)
    before = feed(placer, parts).keys()
    data = bytearray(btrfs_two.data)
    for at in before:
        data[at + NODE - 1] ^= 0x80
    assert len(before) > 10 and feed(placer, Cut(bytes(data), parts.pieces)) == {}


# --- NTFS ----------------------------------------------------------------------------------------------------------
RECORD = 1024


def ntfs_volume(folder: Path, seed: int, scattered: bool) -> tuple[bytes, set[int]]:
    """A volume of 24 MiB and the numbers of its records. scattered: $MFT grew when no free space lay together."""
    volume = blank(folder / "volume", 24 * MIB)
    run("mkfs.ntfs", "-Q", "-F", "-c", "4096", volume)
    with mounted(folder / "mnt", "ntfs-3g", volume) as top:
        if scattered:
            spacers = [top / f"spacer {k}" for k in range(24)]
            for path in spacers:
                path.write_bytes(random.Random(seed).randbytes(16384))
            with (top / "rest").open("wb", buffering=0) as rest, contextlib.suppress(OSError):
                while rest.write(b"\1" * BLOCK):  # until there is no space left
                    pass
            for path in spacers[::2]:
                path.unlink()
            for k in range(150):
                (top / f"late {k}").write_bytes(b"resident")
        else:
            fill(top, seed)
        inodes = set(numbers(top).values())
    return volume.read_bytes(), inodes


@dataclass(repr=False)
class Ntfs(Two):
    mirror: int
    runs: list[tuple[int, int]]  # of $MFT, as istat tells them: where and how long


def ntfs_runs(folder: Path, data: bytes) -> list[tuple[int, int]]:
    """The clusters of $MFT as istat lists them, as runs."""
    (folder / "copy").write_bytes(data)
    text = run("istat", folder / "copy", "0")
    block = re.search(r"Type: \$DATA[^\n]*\n((?:[\d ]+\n)+)", text)
    assert block, text
    runs: list[tuple[int, int]] = []
    for cluster in filter(None, map(int, block[1].split())):  # istat fills the last line with zeros
        at = cluster * BLOCK
        if runs and sum(runs[-1]) == at:
            runs[-1] = (runs[-1][0], runs[-1][1] + BLOCK)
        else:
            runs.append((at, BLOCK))
    return runs


@pytest.fixture(scope="module", params=[False, True], ids=["one run", "scattered"])
def ntfs_two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ntfs:
    folder = tmp_path_factory.mktemp("ntfs")
    data, inodes = ntfs_volume(folder, 0, request.param)
    other, _ = ntfs_volume(tmp_path_factory.mktemp("ntfs"), 1, request.param)
    runs = ntfs_runs(folder, data)
    slots = [p for at, n in runs for p in range(at, at + n, RECORD)]
    assert len(inodes) > 100
    mirror = int.from_bytes(data[0x38:0x40], "little") * BLOCK
    return Ntfs(data, other, RECORD, {slots[i] for i in inodes}, mirror, runs)


NTFS_TOOLS = needs("mkfs.ntfs", "ntfs-3g", "istat")


@NTFS_TOOLS
def test_ntfs_records_tell_their_numbers(ntfs_two: Ntfs, request: pytest.FixtureRequest) -> None:
    """Every record of a file or directory is sent to where it was, in whatever run of $MFT; the mirror's to $MFT."""
    data = ntfs_two.data
    assert (len(ntfs_two.runs) > 2) == ("scattered" in request.node.callspec.id)
    whole = the_placer(ntfs.HOST, data)
    lost = the_placer(ntfs.HOST, data[:512] + bytes(len(data) - 512))
    assert whole.bounded and not lost.bounded, "record 0 says how many records there can be"
    placed = feed(whole, cut(data, 1))
    assert_true(data, placed, RECORD)
    home = ntfs_two.runs[0][0]
    for origin, places in placed.items():
        mirrored = ntfs_two.mirror <= origin < ntfs_two.mirror + 4 * RECORD
        assert places == ({origin - ntfs_two.mirror + home} if mirrored else {origin})
    assert ntfs_two.structures <= placed.keys()
    for at, _ in ntfs_two.runs:
        assert at in placed


@NTFS_TOOLS
@pytest.mark.parametrize("all_lost", [False, True])
def test_ntfs_without_record_0_takes_mft_for_one_run(ntfs_two: Ntfs, all_lost: bool) -> None:
    """Without the record and its copy, or $MFT's first run whole, the runs are unknown: the first is gone by."""
    data, (home, length) = ntfs_two.data, ntfs_two.runs[0]
    lost = length if all_lost else RECORD
    placer = the_placer(ntfs.HOST, data, ((home, lost), (ntfs_two.mirror, min(lost, 4 * RECORD))))
    assert placer.key != the_placer(ntfs.HOST, data).key, "when more is known, that must show"
    placed = feed(placer, cut(data, 1))
    first = {at for at in ntfs_two.structures if home <= at < home + length}
    assert len(first) > 20 and all(placed.get(at) == {at} for at in first)


@NTFS_TOOLS
def test_ntfs_records_beside_one_that_tells_another_volume_are_that_ones(tmp_path: Path) -> None:
    """The first records say how large the volume is, and where the mirror of $MFT lies."""
    made: list[bytes] = []
    for size in (24 * MIB, 40 * MIB):
        volume = tmp_path / f"{size}"
        with volume.open("wb") as f:
            f.truncate(size)
        run("mkfs.ntfs", "-Q", "-F", "-c", "4096", volume)
        made.append(volume.read_bytes())
    placer = the_placer(ntfs.HOST, made[0])
    own, other = (Cut(data, [(4 * BLOCK, 16 * BLOCK)]) for data in made)  # $MFT begins at cluster 4 (mkntfs)
    assert len(feed(placer, own)) > 12 and not feed(placer, other)
    behind = feed(placer, Cut(made[1], [(4 * BLOCK + 9 * RECORD, 8 * RECORD)]))
    assert len(behind) > 2, "what lies away from those tells nothing of its volume"


@NTFS_TOOLS
def test_ntfs_records_do_not_name_their_volume(ntfs_two: Ntfs) -> None:
    """Another volume's records are sent to places as well, for nothing in them tells: hence few bits. Noise is not."""
    placer = the_placer(ntfs.HOST, ntfs_two.data)
    finds_nothing_in_noise(placer)
    assert len(feed(placer, cut(ntfs_two.other, 2))) > 50
    assert 0 < placer.bits <= 10 < Placer("", placer.find).bits


@NTFS_TOOLS
def test_ntfs_a_torn_record_tells_nothing(ntfs_two: Ntfs) -> None:
    """Fixups that do not fit in the record's first sector: what is there may be another record's."""
    data = bytearray(ntfs_two.data)
    for at in ntfs_two.structures:
        data[at + 510] ^= 0xFF
    found = feed(the_placer(ntfs.HOST, ntfs_two.data), cut(bytes(data), 1)).keys()
    assert found & ntfs_two.structures == set()


# --- FAT -----------------------------------------------------------------------------------------------------------
@dataclass(repr=False)
class Fat(Two):
    """structures: sectors of the tables' copies of which three quarters of the entries name the next one."""

    copies: list[tuple[int, int]]
    directories: int


def fat_volume(folder: Path, bits: int, seed: int) -> bytes:
    volume = blank(folder / "volume", 40 * MIB)
    per_cluster = {12: 64, 16: 2, 32: 1}[bits]
    run("mkfs.vfat", "-F", str(bits), "-s", str(per_cluster), "-i", f"{seed + 1:08x}", volume)
    (folder / "tree").mkdir()
    fill(folder / "tree", seed)
    run("mcopy", "-s", "-Q", "-i", volume, *sorted((folder / "tree").iterdir()), "::")
    return volume.read_bytes()


def fat_tables(data: bytes) -> list[tuple[int, int]]:
    """(offset, length) of the copies, as the boot sector says."""
    reserved, copies = int.from_bytes(data[14:16], "little"), data[16]
    size = int.from_bytes(data[22:24], "little") or int.from_bytes(data[36:40], "little")
    return [((reserved + k * size) * 512, size * 512) for k in range(copies)]


def in_order(data: bytes, tables: list[tuple[int, int]], width: int) -> set[int]:
    """Sectors of which three quarters of the entries are the number of the entry behind them."""
    out: set[int] = set()
    for table, length in tables:
        for at in range(table, table + length, 512):
            first, good = (at - table) // width, 0
            for k in range(512 // width):
                entry = int.from_bytes(data[at + k * width : at + (k + 1) * width], "little") & 0x0FFFFFFF
                good += entry == first + k + 1
            if good * width * 4 >= 512 * 3:
                out.add(at)
    return out


@pytest.fixture(scope="module", params=[16, 32], ids=lambda b: f"fat{b}")
def fat_two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Fat:
    data, other = (fat_volume(tmp_path_factory.mktemp("fat"), request.param, seed) for seed in (0, 1))
    tables = fat_tables(data)
    return Fat(data, other, 512, in_order(data, tables, request.param // 8), tables, 16)


FAT_TOOLS = needs("mkfs.vfat", "mcopy")


@FAT_TOOLS
def test_fat_sectors_and_directories_tell_their_places(fat_two: Fat) -> None:
    """Sectors of the table are sent to their place in each copy, directories to their first cluster."""
    data = fat_two.data
    placed = feed(the_placer(fat.HOST, data), cut(data, 1))
    assert_true(data, placed, 512)
    assert all(origin in places for origin, places in placed.items())
    (first, length), (second, _) = fat_two.copies
    tables = {p for p in placed if first <= p < second + length}
    assert all(placed[p] == {first + (p - first) % length, second + (p - first) % length} for p in tables)
    assert len(fat_two.structures) > 10
    assert len(fat_two.structures & tables) >= 0.85 * len(fat_two.structures)
    # those passed over have an end of a chain among their first 16 bytes, and are taken for no table at first sight
    assert all(b"\xff\xff" in data[p : p + 16] for p in fat_two.structures - tables)
    folders = {p for p in placed if p not in tables}
    assert len(folders) == fat_two.directories
    assert all(data[p : p + 11] == b".          " and placed[p] == {p} for p in folders)


@FAT_TOOLS
def test_fat_metadata_does_not_name_its_volume(fat_two: Fat) -> None:
    """Another volume's sectors are sent to places as well, for nothing in them tells: hence few bits. Noise is not."""
    placer = the_placer(fat.HOST, fat_two.data)
    finds_nothing_in_noise(placer)
    assert len(feed(placer, cut(fat_two.other, 2))) > 10
    assert 0 < placer.bits <= 16 < Placer("", placer.find).bits


@FAT_TOOLS
def test_fat_noise_in_a_sector_silences_it(fat_two: Fat) -> None:
    """A sector of which more than half of the entries are anything else tells no number."""
    rng = random.Random(4)
    data = bytearray(fat_two.data)
    for at in fat_two.structures:
        data[at : at + 320] = data[at : at + 16] + rng.randbytes(304)
    found = feed(the_placer(fat.HOST, fat_two.data), cut(bytes(data), 1)).keys()
    assert found & fat_two.structures == set()


@FAT_TOOLS
def test_fat_numbers_that_count_up_are_no_table(fat_two: Fat) -> None:
    """A sector of rising numbers is one of the table where its first entry is a sector's first, and a cluster's."""
    find = the_placer(fat.HOST, fat_two.data).find
    width = 2 if fat_two.data[54:59] == b"FAT16" else 4
    count = 512 // width

    def placed(first: int) -> list[int]:
        return find((np.arange(count) + first + 1).astype(f"<u{width}").view(np.uint8))[1].tolist()

    assert placed(count * 3) == [table + 3 * 512 for table, _ in fat_two.copies]
    for first in (count * 3 + 1, count * 3 - 1, count // 2, 0xFF00 if width == 2 else 0x0FF00000):
        assert placed(first) == []


@FAT_TOOLS
def test_fat12_has_no_placer(tmp_path: Path) -> None:
    """Its entries straddle bytes."""
    assert none_or_placer(fat.HOST, fat_volume(tmp_path, 12, 0)) is None


# --- all -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [ext.HOST, xfs.HOST, btrfs.HOST, ntfs.HOST, fat.HOST], ids=lambda k: k.name)
@pytest.mark.parametrize("content", [bytes, random.Random(8).randbytes], ids=["zeros", "noise"])
def test_no_volume_no_placer(kind: HostKind, content: Callable[[int], bytes]) -> None:
    """Where nothing begins, nothing can be placed."""
    assert none_or_placer(kind, content(2 * MIB)) is None


# --- ext4: blocks of extent trees ------------------------------------------------------------------------------------
@needs("mkfs.ext4", "debugfs")
def test_ext_extent_blocks_go_where_the_inode_says(tmp_path: Path) -> None:
    """Files of hundreds of pieces: each block of their trees is sent home by its checksum, and by nothing in it."""
    tree, rng = tmp_path / "tree", random.Random(21)
    tree.mkdir()
    for n in range(6):
        with (tree / f"holed {n}").open("wb") as file:
            for piece in range(700 if n else 20):
                file.seek(piece * 3 * BLOCK)
                file.write(rng.randbytes(BLOCK))
    path = blank(tmp_path / "volume", 64 * MIB)
    run("mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-O", "^has_journal", "-d", tree, path)
    data = path.read_bytes()
    wanted: set[int] = set()
    for n in range(6):
        told = run("debugfs", "-R", f'dump_extents "/holed {n}"', path)
        # level/depth of a line, and at its end the block that an index entry names
        rows = re.findall(r"^ *(\d+)/ *(\d+) +\d+/ *\d+ +\d+ - +\d+ +(\d+) ", told, re.MULTILINE)
        wanted |= {int(block) * BLOCK for level, depth, block in rows if level < depth}
    assert len(wanted) >= 11, "fixture too kind: trees of one block each"
    placer = the_placer(ext.HOST, data)
    parts = cut(data, 5)
    placed = feed(placer, parts)
    blocks = {at for at, n in parts.pieces for at in range(at, at + n, BLOCK)}
    found = {v for at, places in placed.items() for v in places if v in wanted and at == v}
    assert found == wanted & blocks
    assert_true(data, {at: places for at, places in placed.items() if at in wanted}, BLOCK)
    victim = min(wanted)
    harmed = bytearray(data)
    harmed[victim + 100] ^= 1
    at = np.frombuffer(bytes(harmed[victim : victim + 2 * BLOCK]), np.uint8)
    assert victim not in placer.find(at)[1].tolist()
