"""Disks that are files in the guests of recovered disks."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import ext4_disk, run
from tests.host.written import needs
from vmcarve import Options, open_disk, recover
from vmcarve.assemble.nested import through
from vmcarve.case import Case
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, MISSING, PROVEN, SUPPORTED, ZERO

pytestmark = needs("mkfs.ext4", "debugfs", "sfdisk", "qemu-img")

MIB = 1 << 20
OUTER = {"vmdk": ("vmdk", ()), "qcow2": ("qcow2", ("-o", "cluster_size=4096")), "vdi": ("vdi", ()),
         "compressed": ("qcow2", ("-c",))}


def volume(path: Path, size: int, folder: Path) -> None:
    run("truncate", "-s", str(size), path)
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "-d", folder, path)


@pytest.fixture(scope="module")
def inner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A qcow2, and what its guest reads."""
    folder = tmp_path_factory.mktemp("inner")
    disk = ext4_disk(folder, 3, "gpt", 12 * MIB, 1024, 20_000)
    (folder / "raw").write_bytes(disk)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", folder / "raw", folder / "inner.qcow2")
    return folder / "inner.qcow2", disk


def host(folder: Path, inside: Path, outer: str, base: bool = False) -> Path:
    """An ext4 image that holds a disk of some format, whose guest (ext4) holds `inside` as a file.

    base: the disk is a snapshot that holds nothing itself.
    """
    guest, files = folder / "guest", folder / "files"
    (guest / "vms").mkdir(parents=True)
    files.mkdir()
    (guest / "vms" / "small.qcow2").write_bytes(inside.read_bytes())
    (guest / "notes.txt").write_text("the machine that matters is in vms\n" * 500)
    volume(folder / "volume", 40 * MIB, guest)
    fmt, options = OUTER[outer]
    run("qemu-img", "convert", "-f", "raw", "-O", fmt, *options, folder / "volume", files / f"outer.{fmt}")
    if base:
        run("qemu-img", "create", "-f", "qcow2", "-b", f"outer.{fmt}", "-F", fmt, files / "top.qcow2")
    volume(folder / "host", 96 * MIB, files)
    return folder / "host"


def row_of(case: Case, **wanted: object) -> dict[str, Any]:
    found = [d for d in case.disks() if all(d[k] == v for k, v in wanted.items())]
    assert len(found) == 1, [(d["disk_id"], d["inside_id"], d["names"]) for d in case.disks()]
    return found[0]


@pytest.mark.parametrize("outer", ["vmdk", "qcow2", "vdi"])
@pytest.mark.parametrize("gone", [False, True], ids=["live", "deleted"])
def test_a_disk_in_a_guest_is_recovered_as_a_disk(inner: tuple[Path, bytes], outer: str, gone: bool, tmp_path: Path
                                                  ) -> None:
    content, disk = inner
    image = host(tmp_path, content, outer)
    if gone:
        subprocess.run(("debugfs", "-w", "-R", f"rm outer.{OUTER[outer][0]}", image), check=True, capture_output=True)
    case = recover([image], tmp_path / "case", options=Options(live=True))
    found = row_of(case, inside_id=row_of(case, inside_id=None)["disk_id"])
    assert (found["format"], found["names"]) == ("qcow2", ["vms/small.qcow2"])
    assert found["host"].startswith(f"{found['inside_id']}: ext4")
    assert found["deleted"] == row_of(case, inside_id=None)["deleted"]
    assert hashlib.sha256(content.read_bytes()).hexdigest() == found["sha256"]
    assert open_disk(case, found["disk_id"]).read(0, len(disk)) == disk


def test_what_a_snapshot_has_from_its_parent_is_found_there_once(inner: tuple[Path, bytes], tmp_path: Path) -> None:
    image = host(tmp_path, inner[0], "vdi", base=True)
    case = recover([image], tmp_path / "case", options=Options(write=False))
    below = row_of(case, format="vdi")["disk_id"]
    assert row_of(case, names=["vms/small.qcow2"])["inside_id"] == below


def test_nothing_is_made_up_of_what_a_guest_keeps_compressed(inner: tuple[Path, bytes], tmp_path: Path) -> None:
    image = host(tmp_path, inner[0], "compressed")
    case = recover([image], tmp_path / "case", options=Options(write=False))
    assert [d["inside_id"] for d in case.disks()] == [None]


def test_of_two_maps_the_lesser_grade_stands() -> None:
    outer = FileMap.build([(0, 4096, 70_000, PROVEN, "a"), (4096, 4096, 90_000, GUESSED, "b"),
                           (8192, 4096, -1, ZERO, "z"), (12288, 4096, -1, MISSING, "m")])
    inner_map = FileMap.build([(0, 1024, 3072, SUPPORTED, "file"), (1024, 1024, 4096, SUPPORTED, "file"),
                               (2048, 4096, -1, ZERO, "hole"), (6144, 8192, 10_240, SUPPORTED, "file")])
    assert through(outer, inner_map).rows() == [
        (0, 1024, 73_072, SUPPORTED, "file"), (1024, 1024, 90_000, GUESSED, "b"), (2048, 4096, -1, ZERO, "hole"),
        (6144, 2048, -1, ZERO, "z"), (8192, 4096, -1, MISSING, "m"), (12_288, 2048, -1, MISSING, "beyond-end")]
    assert np.all(np.diff(through(outer, inner_map).file_offset) > 0)
