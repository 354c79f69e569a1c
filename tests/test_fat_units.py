"""FAT guests in units of which nothing tells the order: what their directories say counts wherever they lie."""

from __future__ import annotations

import random
from pathlib import Path

from tests.helpers import run
from tests.host.written import blank, needs
from vmcarve.assemble.unit_lay import solved
from vmcarve.model import DATA, GuestMap, Stowed
from vmcarve.source import BytesReader

pytestmark = needs("mkfs.vfat", "mcopy")

MIB = 1 << 20
UNIT = 64 << 10
ROOT = 26  # the unit with cluster 2
LOST = 22  # the unit with most of the second table; the first table ends in one that is there


def fat_disk(folder: Path) -> bytes:
    """A volume at 1 MiB with one large directory, whose clusters lie between its files, and some of one file each."""
    rng = random.Random(2)
    for name in ("a", "b", "c", "d"):
        (folder / "tree" / name).mkdir(parents=True)
        (folder / "tree" / name / "A long name of a file.bin").write_bytes(rng.randbytes(90_000))
    (folder / "tree" / "b and more").mkdir()
    for n in range(100):
        content = rng.randbytes(rng.randrange(30_000, 120_000))
        (folder / "tree" / "b and more" / f"File {n} with a name.bin").write_bytes(content)
    run("mkfs.vfat", "-F", "32", "-s", "1", "-h", str(MIB // 512), blank(folder / "volume", 40 * MIB))
    run("mcopy", "-s", "-Q", "-i", folder / "volume", *sorted((folder / "tree").iterdir()), "::")
    return bytes(MIB) + (folder / "volume").read_bytes() + bytes(MIB)


def laid(disk: bytes, lost: set[int]) -> tuple[int, int, int]:
    """How many units of a disk are laid out right, how many wrong, and how many there are, in an order that tells
    nothing.
    """
    order = [n for n in range(len(disk) // UNIT) if n not in lost and any(disk[n * UNIT : (n + 1) * UNIT])]
    random.Random(1).shuffle(order)
    content = b"".join(disk[n * UNIT : (n + 1) * UNIT] for n in order)
    found = solved(BytesReader(content), "vmdk", Stowed(UNIT, GuestMap.flat(len(content))))
    m = found[1].guests[0].map if found is not None else GuestMap.flat(0)
    units = [(g + at, f + at) for g, n, f, state in zip(m.guest_offset.tolist(), m.length.tolist(),
             m.file_offset.tolist(), m.state.tolist(), strict=True) if state == DATA for at in range(0, n, UNIT)]
    right = sum(order[f // UNIT] == g // UNIT for g, f in units)
    return right, len(units) - right, len(order)


def test_clusters_of_a_directory_tell_of_its_files_before_they_are_placed(tmp_path: Path) -> None:
    """Only its first cluster says where it lies. The files of all others end where they say, and that places most."""
    right, wrong, count = laid(fat_disk(tmp_path), {LOST})
    assert right > 0.7 * count
    assert wrong < 0.02 * count


def test_ends_of_chains_place_units_whose_files_have_no_entry(tmp_path: Path) -> None:
    """The unit with the only directory is lost, and its other clusters tell nothing: no name in them is a long one."""
    rng = random.Random(3)
    (tmp_path / "tree").mkdir()
    for n in range(120):
        (tmp_path / "tree" / f"F{n:03}.BIN").write_bytes(rng.randbytes(rng.randrange(5_000, 50_000)))
    run("mkfs.vfat", "-F", "32", "-s", "1", "-h", str(MIB // 512), blank(tmp_path / "volume", 40 * MIB))
    run("mcopy", "-Q", "-i", tmp_path / "volume", *sorted((tmp_path / "tree").iterdir()), "::")
    disk = bytes(MIB) + (tmp_path / "volume").read_bytes() + bytes(MIB)
    right, wrong, count = laid(disk, {ROOT})
    assert right > 0.7 * count
    assert wrong < 0.02 * count
