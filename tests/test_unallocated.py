"""Allocation as exclusion: `unallocated` looks only at what no host holds, and what lies in held space is live."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.corpus import make, score
from tests.host.loopfs import make as make_host
from tests.host.loopfs import needs_loop
from tests.host.written import needs
from vmcarve import Options, recover, sweep
from vmcarve.assemble import find_hosts, unallocated
from vmcarve.cli import main
from vmcarve.source import open_image

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="host images are made with loop mounts, which take root")
KINDS = ("ext4-contiguous-mbr", "xfs-contiguous-gpt", "ntfs-contiguous", "btrfs-contiguous-gpt", "fat32-contiguous",
         "exfat-contiguous")
MIB = 1 << 20


@needs_root
@pytest.mark.parametrize("name", KINDS)
def test_deleted_disks_come_back_and_live_ones_are_not_looked_at(name: str, tmp_path: Path) -> None:
    """Every deleted disk of every host is exact from its free space alone; of the live one there is no evidence."""
    make(name, tmp_path / "scene", 74)
    image = tmp_path / "scene" / "image.raw"
    case = recover([image], tmp_path / "case", options=Options(unallocated=True))
    result = score(tmp_path / "case", tmp_path / "scene")
    live = {d["name"] for d in result["disks"] if not d["deleted"]}
    assert live and [e for e in result["extra"] if e["false"]] == []
    for disk in result["disks"]:
        assert disk["found"] != (disk["name"] in live), disk["name"]
        assert disk["name"] in live or disk["exact"] or disk["guest_equal"], disk["name"]
    assert all(d["deleted"] for d in case.disks())
    truth = json.loads((tmp_path / "scene" / "truth.json").read_text())
    held = [e for d in truth["disks"] if not d["deleted"] for f in d["files"] for e in f["extents"]]
    seen = case.table("evidence")["image_offset"].to_numpy()
    assert held and len(seen) and not any(((seen >= p) & (seen < p + n)).any() for _, p, n, mark in held if not mark)
    size = image.stat().st_size
    assert 0 < case.info["images"][0]["unallocated"] < size - sum(n for _, _, n, _ in held)


@needs_root
def test_space_outside_the_partitions_counts_as_unallocated(tmp_path: Path) -> None:
    """A container behind the last partition is found, and nobody says whether it was deleted."""
    make("xfs-contiguous-gpt", tmp_path / "scene", 75)
    image, disk = tmp_path / "scene" / "image.raw", tmp_path / "outside.vhdx"
    _small_disk(disk)
    end = -(-image.stat().st_size // MIB) * MIB
    with image.open("r+b") as f:
        f.seek(end)
        f.write(disk.read_bytes())
    case = recover([image], tmp_path / "case", options=Options(unallocated=True, write=False))
    outside = [d for d in case.disks() if d["header_offset"] == end]
    assert [(d["format"], d["deleted"]) for d in outside] == [("vhdx", None)]
    assert any(d["deleted"] for d in case.disks())


@needs_root
@needs_loop
@needs("mkfs.ext4", "qemu-img")
def test_a_disk_of_held_blocks_is_live(tmp_path: Path) -> None:
    """A disk inside a live file that is no container is found by its header and told live; unallocated has no row.

    The file before it is deleted, so that a run that ignored allocation would take its blocks.
    """
    disk = tmp_path / "inner.vdi"
    _small_disk(disk)
    host = make_host(tmp_path, 128 * MIB, "mkfs.ext4", "-q", "-F")
    with host.mounted() as root:
        (root / "first.bin").write_bytes(os.urandom(5 * MIB))
        (root / "archive.bin").write_bytes(os.urandom(MIB) + disk.read_bytes() + os.urandom(MIB))
        (root / "last.bin").write_bytes(os.urandom(5 * MIB))
        host.record("archive.bin", "last.bin")
        (root / "last.bin").unlink()
    runs = host.truth["archive.bin"].runs
    case = recover([host.image], tmp_path / "case", options=Options(write=False))
    assert [(d["format"], d["deleted"]) for d in case.disks()] == [("vdi", False)]
    rows = [e for e in case.extents(case.disks()[0]["disk_id"], "container") if e["image_offset"] is not None]
    for e in rows:
        low, high = e["image_offset"], e["image_offset"] + e["length"]
        assert any(p <= low and high <= p + n for _, p, n, _ in runs.tolist()), "a byte outside the live file"
    with open_image(host.image) as image:
        free = unallocated(image.size, find_hosts(image)[0])
    gone = host.truth["last.bin"].runs
    assert all(_covers(free, p, n) for _, p, n, _ in gone.tolist())
    assert not any(_covers(free, p, 1) for _, p, _, _ in runs.tolist())
    only = recover([host.image], tmp_path / "only", options=Options(unallocated=True, write=False))
    assert only.disks() == []


@needs_loop
@needs("mkfs.ext4", "qemu-img")
def test_command_line(tmp_path: Path) -> None:
    """Both commands take --unallocated; a case swept one way is not gone on with the other way."""
    disk = tmp_path / "a.vdi"
    _small_disk(disk)
    host = make_host(tmp_path, 96 * MIB, "mkfs.ext4", "-q", "-F")
    with host.mounted() as root:
        shutil.copy(disk, root / "live.vdi")
        shutil.copy(disk, root / "gone.vdi")
        host.record()
        (root / "gone.vdi").unlink()
    case = tmp_path / "case"
    assert main(["sweep", str(host.image), "--unallocated", "--out", str(case)]) == 0
    whole = sweep([host.image], tmp_path / "whole").table("evidence").num_rows
    few = json.loads((case / "case.json").read_text())["sweep"]["confirmed"]
    assert 0 < sum(few.values()) < whole
    assert main(["recover", str(host.image), "--out", str(case), "--resume", "--no-write"]) == 0
    info = json.loads((case / "case.json").read_text())
    assert sum(info["sweep"]["confirmed"].values()) > sum(few.values()), "swept anew"


def test_without_any_host_all_is_unallocated(tmp_path: Path) -> None:
    """Noise: one range, the whole image."""
    image = tmp_path / "noise.raw"
    image.write_bytes(np.random.default_rng(1).bytes(3 * MIB))
    with open_image(image) as source:
        assert unallocated(source.size, find_hosts(source)[0]).tolist() == [[0, 3 * MIB]]


def _covers(runs: np.ndarray, start: int, length: int) -> bool:
    return any(low <= start and start + length <= low + n for low, n in runs.tolist())


def _small_disk(path: Path) -> None:
    raw = path.with_suffix(".raw")
    raw.write_bytes(os.urandom(3 * MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", path.suffix[1:], raw, path], check=True, timeout=60,
                   capture_output=True)
    raw.unlink()
