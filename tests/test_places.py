"""Places of guest structures: whose volume is whose, and what of it is pinned. On disks made by mkfs and qemu-img."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers import run
from vmcarve.assemble import places as places_module
from vmcarve.assemble.places import Owned, Places, assign, first_rows, pins_of
from vmcarve.assemble.state import Claims
from vmcarve.assemble.tails import to_file
from vmcarve.formats.qcow2 import FORMAT
from vmcarve.model import DATA, HOLE, Container, GuestDisk, GuestMap
from vmcarve.source import BytesReader, open_image
from vmcarve.sweeper import sweep_image

MIB = 1 << 20
CLUSTER = 64 << 10
DISK = 48 * MIB
BLOCK = 4096


@dataclass(frozen=True)
class Disk:
    folder: Path  # with the guest, "raw"
    data: bytes  # of the qcow2
    container: Container
    uuid: str
    table: str


def filled(folder: Path, seed: int) -> Path:
    """Files of random size and contents; many in the first disk, few and large ones in the second."""
    rng = random.Random(seed)
    folder.mkdir()
    for n in range(300 if seed % 2 else 3):
        (folder / f"file{n}").write_bytes(rng.randbytes(rng.randrange(1, 60_000) if seed % 2 else 3_500_000 + n))
    return folder


def made(folder: Path, table: str, seed: int) -> Disk:
    """A qcow2 with one partition that holds an ext4."""
    raw, volume, out = folder / "raw", folder / "volume", folder / "disk.qcow2"
    uuid = f"00000000-0000-4000-8000-{seed:012x}"
    volume.write_bytes(b"")
    with volume.open("r+b") as f:
        f.truncate(DISK - 2 * MIB)
    run("mkfs.ext4", "-q", "-F", "-U", uuid, "-O", "^has_journal", "-N", "512", "-d",
        filled(folder / "files", seed), volume)
    with raw.open("wb") as f:
        f.truncate(DISK)
        f.seek(MIB)
        f.write(volume.read_bytes())
    label = "dos" if table == "mbr" else "gpt"
    script = folder / "script"
    script.write_text(f"label: {label}\nlabel-id: {'0x%08x' % (seed + 7) if table == 'mbr' else uuid}\n"
                      f"start=2048, size={(DISK - 2 * MIB) // 512}\n")
    run("sh", "-c", f"sfdisk -q --no-reread {raw} < {script}")
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=64k", raw, out)
    data = out.read_bytes()
    data += bytes(-len(data) % CLUSTER)
    return Disk(folder, data, FORMAT.open(BytesReader(data)), uuid, table)


def laid(folder: Path, parts: list[bytes]) -> tuple[BytesReader, list[int], Places]:
    """An image with noise before each part, where the parts begin, and what the sweep sees in it."""
    rng = random.Random(3)
    out, at = bytearray(), list[int]()
    for part in parts:
        out += rng.randbytes(rng.randrange(3, 9) * BLOCK)
        at.append(len(out))
        out += part
    out += rng.randbytes(3 * BLOCK)
    (folder / "image").write_bytes(out)
    batches: list[pa.RecordBatch] = []
    with open_image(folder / "image") as source:
        sweep_image(source, 0, batches.append)
    return BytesReader(out), at, Places.of(pa.Table.from_batches(batches))


@pytest.fixture(scope="module", params=["mbr", "gpt"])
def disks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Disk]:
    out: list[Disk] = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("places")
        out.append(made(folder, request.param, seed))
    assert out[0].container.virtual_size == out[1].container.virtual_size
    return out


def cut(disk: Disk) -> int:
    """The file offset of the cluster with the volume's begin: behind all tables and the disk's partition table."""
    m = disk.container.guests[0].map
    i = int(np.searchsorted(m.guest_offset, MIB, side="right")) - 1
    return int(m.file_offset[i]) + MIB - int(m.guest_offset[i])


@pytest.mark.parametrize("swapped", [False, True])
def test_a_volume_goes_to_the_container_whose_allocation_it_fits(disks: list[Disk], swapped: bool, tmp_path: Path
                                                                 ) -> None:
    """Two disks of one size, each in two fragments. The header's fragments lie first, the volumes' behind them in the
    same order, or the other one, so that each one lies nearer to the other's header."""
    heads, rest = [d.data[: cut(d)] for d in disks], [d.data[cut(d) :] for d in disks]
    behind = [1, 0] if swapped else [0, 1]
    image, at, places = laid(tmp_path, [*heads, *[rest[i] for i in behind]])
    where = {i: at[2 + n] for n, i in enumerate(behind)}
    found = assign(image, list(zip(at, (d.container for d in disks), strict=False)), places)
    for i, disk in enumerate(disks):
        delta = where[i] - cut(disk) - at[i]
        assert [(o.guest_offset, o.delta) for o in found[i]] == [(MIB, delta)]
        assert found[i][0].size == DISK - 2 * MIB
        assert places.identity[found[i][0].row] and disk.uuid in str(places.identity[found[i][0].row])
        pins = pins_of(disk.container, at[i], found[i], places)
        own = [f for f, _ in pins if f >= cut(disk)]
        assert len(own) >= 2, "the superblock, and a copy in another group"
        assert pins == sorted((f, f + (where[i] - cut(disk) if f >= cut(disk) else at[i])) for f, _ in pins)
        # a GPT names its disk at both ends, so the end's fragment vouches for the header's; an MBR vouches for nothing
        assert (len(own) < len(pins)) == (disk.table == "gpt")


def test_of_clones_each_has_the_structures_of_its_own_run(disks: list[Disk], tmp_path: Path) -> None:
    """The same disk three times: copies of its superblock and of its table are alike in all of them."""
    image, at, places = laid(tmp_path, [disks[0].data] * 3)
    container = disks[0].container
    found = assign(image, [(start, container) for start in at], places)
    for start, owned in zip(at, found, strict=True):
        assert [o.delta for o in owned] == [0]
        pins = pins_of(container, start, owned, places)
        assert len(pins) >= 2 and {p - f for f, p in pins} == {start}


def test_many_clones_are_judged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every clone of a volume states the same places: the pins are those of a loop over them, but the work is not."""
    rng, size, start = np.random.default_rng(5), 64 * MIB, 7 * BLOCK
    stored = GuestMap.build([0, 8 * MIB, 16 * MIB], [8 * MIB, 8 * MIB, size - 16 * MIB], [DATA, HOLE, DATA],
                            [MIB, -1, 32 * MIB])
    container = Container("test", "", 80 * MIB, [GuestDisk(size, stored)])
    n = 600
    volume_offset = rng.choice([0, 4096, 40 * MIB, 9 * MIB, 20 * MIB, 20 * MIB + 1024], n)
    image_offset = np.sort(rng.integers(0, 4000, n)) * 1024
    delta = 11 * BLOCK
    for row, g in ((50, 4096), (300, 40 * MIB), (301, 40 * MIB)):  # these lie where the volume's delta has them
        volume_offset[row] = g
        file_offset = g + MIB if g < 8 * MIB else g + 16 * MIB
        image_offset[row] = start + delta + file_offset
    places = Places(image_offset, np.full(n, -1), volume_offset, np.zeros(n, bool), np.full(n, 1024), np.full(n, size),
                    ["ext"] * n, ["one" if i % 3 else "two" for i in range(n)])
    owned = Owned(0, size, 1, delta)
    want: dict[int, tuple[int, int]] = {}
    for row in [1, *(i for i in range(n) if volume_offset[i] > 0 and places.identity[i] == places.identity[1])]:
        g = 1023 + (int(volume_offset[row]) if row != 1 else 0)
        p = int(image_offset[row]) + 1023
        f = g + MIB if g < 8 * MIB else -1 if g < 16 * MIB else g + 16 * MIB
        if f >= 0 and (p - f - start) % BLOCK == 0 and (f // BLOCK not in want or p - f - start == delta):
            want[f // BLOCK] = f, p
    calls: list[int] = []
    monkeypatch.setattr(places_module, "to_file", lambda m, at: calls.append(len(at)) or to_file(m, at))
    assert pins_of(container, start, [owned], places) == sorted(want.values()) and len(want) >= 3
    assert len(calls) <= 4, "one question for all clones, not one for each"


def test_a_disk_without_a_known_volume_has_its_own_partition_table(disks: list[Disk], tmp_path: Path) -> None:
    """Where the header's run has it. At any other place it is another disk's of the same size."""
    image, at, places = laid(tmp_path, [disks[0].data[: cut(disks[0])], disks[1].data[: cut(disks[1])]])
    assert assign(image, list(zip(at, (d.container for d in disks), strict=True)), places) == [[], []]
    for disk, start in zip(disks, at, strict=True):
        pins = pins_of(disk.container, start, [], places)
        assert [p - f for f, p in pins] == [start] * len(pins)
        assert len(pins) == (1 if disk.table == "gpt" else 0)


@pytest.mark.parametrize(("table", "volume", "own"), [(3, 9, True), (20, 9, False), (3, 900, False), (-3, 9, False)])
def test_a_partition_table_on_the_way_to_the_volume_is_the_containers(table: int, volume: int, own: bool) -> None:
    """A host that keeps no zeros brings both nearer to the header than they are in the file. table, volume: blocks from
    the header to them; in the file they are 16 and 272."""
    size, start, end = 64 * MIB, 50 * BLOCK, 41 * BLOCK - 512  # where the disk's last sector lies says nothing
    container = Container("test", "", size + 16 * BLOCK, [GuestDisk(size, GuestMap.flat(size, 16 * BLOCK))])
    at = np.array([start + table * BLOCK + 512, start + volume * BLOCK, end], np.int64)
    places = Places(at, np.array([512, -1, size - 512]), np.array([-1, 0, -1]), np.array([False, True, False]),
                    np.full(3, 512), np.full(3, size), ["gpt", "ext", "gpt"], ["table", "volume", "table"])
    owned = Owned(MIB, size - 2 * MIB, 1, (volume - 272) * BLOCK)
    pins = pins_of(container, start, [owned], places)
    assert ((16 * BLOCK + 1023, int(at[0]) + 511) in pins) == own and len(pins) == (3 if own else 1)


def test_a_volume_has_one_container_and_lies_whole_blocks_away(disks: list[Disk], tmp_path: Path) -> None:
    """Two headers of one disk, one volume: the nearer has it. No fragment begins amid a block of the host."""
    disk = disks[0]
    head = disk.data[: cut(disk)]
    image, at, places = laid(tmp_path, [head, head, disk.data[cut(disk) :]])
    far, near = assign(image, [(p, disk.container) for p in at[:2]], places)
    assert far == [] and [(o.guest_offset, o.delta) for o in near] == [(MIB, at[2] - cut(disk) - at[1])]
    assert assign(image, [(at[1] + 1024, disk.container)], places) == [[]]


def test_a_volume_where_the_containers_own_run_has_it_is_its_own(disks: list[Disk], tmp_path: Path) -> None:
    """A container that holds every block of its disk fits no volume well; the head of a thin copy does. The volume lies
    in the first one, at the very place that its table names."""
    thin, full = disks[0], tmp_path / "full.qcow2"
    run("qemu-img", "convert", "-S", "0", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=64k", thin.folder / "raw",
        full)
    data = full.read_bytes()
    image, at, places = laid(tmp_path, [thin.data[: cut(thin)], data + bytes(-len(data) % CLUSTER)])
    containers = [thin.container, FORMAT.open(BytesReader(data))]
    other, own = assign(image, list(zip(at, containers, strict=True)), places)
    assert other == [] and [(o.guest_offset, o.delta) for o in own] == [(MIB, 0)]


def test_a_volume_whose_copy_lies_in_the_containers_run_is_its_own(disks: list[Disk], tmp_path: Path) -> None:
    """Two flat disks of one size, known by their ends, and the begins of their volumes behind both, that of the first
    disk nearer to the second. A copy of the superblock lies in each one's end, where its own run has it."""
    raws = [(d.folder / "raw").read_bytes() for d in disks]
    at_cut = 10 * MIB
    parts = [bytes([1]) * at_cut, *(r[at_cut:] for r in raws), *(r[MIB:at_cut] for r in raws)]
    image, at, places = laid(tmp_path, parts)
    flat = Container("raw", "gpt", DISK, [GuestDisk(DISK, GuestMap.flat(DISK))])
    starts = [at[1] - at_cut, at[2] - at_cut]
    found = assign(image, [(start, flat) for start in starts], places)
    assert [[places.identity[o.row] for o in owned] for owned in found] == [[d.uuid] for d in disks]
    assert [o.delta for owned in found for o in owned] == [at[3] - MIB - starts[0], at[4] - MIB - starts[1]]


def test_copies_of_a_volume_that_somebody_has_begin_none(disks: list[Disk], tmp_path: Path) -> None:
    """A superblock in a file or journal, without its group's number, may begin a volume only while nothing else of its
    name is known to."""
    raw = (disks[0].folder / "raw").read_bytes()
    image, at, places = laid(tmp_path, [raw])
    sure = np.flatnonzero(places.volume_offset == 0).tolist()
    copy = next(i for i in np.flatnonzero(places.volume_offset > 0).tolist()
                if places.identity[i] == places.identity[sure[0]])
    places.volume_offset[copy], places.first[copy] = -1, True
    owned = Claims()
    p = int(places.image_offset[sure[0]] + places.length[sure[0]])
    owned.add_range(p - 1, p)
    rest = places.outside(owned)
    assert len(rest.first) == len(places.first) - 1 and first_rows(rest) == []
    alone = places.outside(Claims())
    assert first_rows(alone) == sure
    assert first_rows(places.beside({disks[0].uuid})) == sure, "what states that a volume begins with it may be a clone"


def test_a_volume_of_a_snapshot_is_no_other_containers(disks: list[Disk], tmp_path: Path) -> None:
    """The snapshot's superblock lies in another cluster than the current one, and belongs to the same container."""
    old = tmp_path / "old.qcow2"
    old.write_bytes(disks[0].data)
    run("qemu-img", "snapshot", "-c", "one", old)
    run("qemu-io", "-f", "qcow2", "-c", f"write -P 0 {MIB} 512", old)  # before the superblock, in its cluster
    data = old.read_bytes()
    data += bytes(-len(data) % CLUSTER)
    image, at, places = laid(tmp_path, [disks[1].data[: cut(disks[1])], data])
    assert len(np.flatnonzero(places.volume_offset == 0)) == 2
    other, own = assign(image, list(zip(at, (disks[1].container, FORMAT.open(BytesReader(data))), strict=True)), places)
    assert other == [] and [(o.guest_offset, o.delta) for o in own] == [(MIB, 0)]


def test_a_raw_disk_has_volumes_only_where_its_table_says(disks: list[Disk], tmp_path: Path) -> None:
    """A bare volume of another size lies on the image: it does not begin where the table itself is."""
    volume = tmp_path / "volume"
    with volume.open("wb") as f:
        f.truncate(20 * MIB)
    run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", filled(tmp_path / "files", 5), volume)
    image, at, places = laid(tmp_path, [(disks[0].folder / "raw").read_bytes()[:CLUSTER], volume.read_bytes()])
    flat = Container("raw", disks[0].table, DISK, [GuestDisk(DISK, GuestMap.flat(DISK))])
    (found,) = assign(image, [(at[0], flat)], places)
    assert all(o.guest_offset == MIB for o in found)


@pytest.mark.parametrize(("kind", "goes"), [("7", "ntfs"), ("83", "ext")])
def test_a_partition_gets_a_volume_that_its_type_is_made_for(kind: str, goes: str, tmp_path: Path) -> None:
    """Two volumes fill it, and the other lies nearer; a type that is any formatter's default tells nothing."""
    size = DISK - 2 * MIB
    volumes: list[bytes] = []
    for how in (["mkfs.ext4", "-q", "-F", "-O", "^has_journal"], ["mkfs.ntfs", "-Q", "-F"]):
        with (tmp_path / "volume").open("wb") as f:
            f.truncate(size)
        run(*how, tmp_path / "volume")
        volumes.append((tmp_path / "volume").read_bytes()[: 4 * MIB])
    with (tmp_path / "raw").open("wb") as f:
        f.truncate(DISK)
    (tmp_path / "script").write_text(f"label: dos\nstart=2048, size={size // 512}, type={kind}\n")
    run("sh", "-c", f"sfdisk -q --no-reread {tmp_path / 'raw'} < {tmp_path / 'script'}")
    image, at, places = laid(tmp_path, [(tmp_path / "raw").read_bytes()[:BLOCK], *volumes])
    (found,) = assign(image, [(at[0], Container("raw", "mbr", DISK, [GuestDisk(DISK, GuestMap.flat(DISK))]))], places)
    assert [places.module[o.row] for o in found] == [goes]


def test_a_volume_in_a_larger_disks_partition_is_no_smaller_containers(disks: list[Disk], tmp_path: Path) -> None:
    """It would fit there, behind no table; but it lies right where the table of a disk has it that cannot be this one.
    An MBR does not say where it lies."""
    image, at, places = laid(tmp_path, [(disks[0].folder / "raw").read_bytes()[: 4 * MIB], bytes(BLOCK)])
    for size, had in ((DISK, 1), (DISK - MIB, 0 if disks[0].table == "gpt" else 1)):
        flat = Container("vhd", "fixed", size, [GuestDisk(size, GuestMap.flat(size))])
        (found,) = assign(image, [(at[1], flat)], places)
        assert len(found) == had
