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


def test_clusters_of_a_directory_tell_of_its_files_before_they_are_placed(tmp_path: Path) -> None:
    """Only its first cluster says where it lies. The files of all others end where they say, and that places most."""
    disk = fat_disk(tmp_path)
    order = [n for n in range(len(disk) // UNIT) if n != LOST and any(disk[n * UNIT : (n + 1) * UNIT])]
    random.Random(1).shuffle(order)
    content = b"".join(disk[n * UNIT : (n + 1) * UNIT] for n in order)
    found = solved(BytesReader(content), "vmdk", Stowed(UNIT, GuestMap.flat(len(content))))
    assert found is not None
    m = found[1].guests[0].map
    laid = [(g + at, f + at) for g, n, f, state in zip(m.guest_offset.tolist(), m.length.tolist(),
            m.file_offset.tolist(), m.state.tolist(), strict=True) if state == DATA for at in range(0, n, UNIT)]
    right = sum(order[f // UNIT] == g // UNIT for g, f in laid)
    assert right > 0.7 * len(order)
    assert len(laid) - right < 0.02 * len(order)
