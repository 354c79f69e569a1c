"""The main job on host images made by real tools: every disk found and exact, nothing wrong claimed, no false disks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import make, score
from vmcarve import Options, recover

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="host images are made with loop mounts, which take root")


def run(name: str, seed: int, folder: Path, *, live: bool = False) -> dict[str, Any]:
    make(name, folder / "scene", seed)
    recover([folder / "scene" / "image.raw"], folder / "case", options=Options(live=live))
    return score(folder / "case", folder / "scene")


def no_lie(result: dict[str, Any]) -> None:
    for disk in result["disks"]:
        for grade in ("proven", "supported"):
            counts = disk["wrong_by_grade"].get(grade, {"wrong": 0})
            assert counts["wrong"] == 0, f"{disk['name']}: {counts['wrong']} wrong bytes graded {grade}"


@needs_root
@pytest.mark.parametrize("name", ["ext4-contiguous", "ext3-contiguous", "xfs-contiguous-gpt", "ntfs-contiguous",
                                  "btrfs-contiguous", "braided-ext4", "braided-ntfs", "braided-btrfs",
                                  "braided-xfs-unflushed", "chains"])
def test_deleted_disks_come_back_exact(name: str, tmp_path: Path) -> None:
    """With the host's metadata there, every disk is found, told live or deleted, and equal to the original."""
    result = run(name, 71, tmp_path, live=True)
    no_lie(result)
    assert [e for e in result["extra"] if e["false"]] == []
    for disk in result["disks"]:
        assert disk["found"] and (disk["exact"] or disk["guest_equal"]), disk["name"]
        assert disk["deleted_right"] and disk["format_right"] and disk["size_right"], disk["name"]


@needs_root
@pytest.mark.parametrize("name", ["all-formats-btrfs-vmdk", "all-formats-ntfs-vmdk"])
def test_split_disks_are_joined_by_texts_inside_host_metadata(name: str, tmp_path: Path) -> None:
    """Btrfs and NTFS keep small descriptors where no sector begins; the disks are made of their extents all the same.

    And the partition's own records give nothing a second time as seen from the beginning of the whole disk.
    """
    result = run(name, 74, tmp_path, live=True)
    no_lie(result)
    assert [e for e in result["extra"] if e["false"]] == []
    for disk in result["disks"]:
        assert disk["found"] and (disk["exact"] or disk["guest_equal"]) and disk["deleted_right"], disk["name"]


@needs_root
@pytest.mark.parametrize("name", ["ext4-wiped", "ntfs-wiped"])
def test_without_host_metadata_nothing_wrong_is_claimed(name: str, tmp_path: Path) -> None:
    """With the host's metadata zeroed every disk is still found; what is not certain is graded guessed."""
    result = run(name, 72, tmp_path)
    no_lie(result)
    assert all(disk["found"] for disk in result["disks"])


@needs_root
@pytest.mark.parametrize("name", ["decoys", "decoys-ext4"])
def test_decoys_are_no_disks(name: str, tmp_path: Path) -> None:
    """Magics in text, at wrong places, with wrong sums, and arrays that look like tables give no disk."""
    result = run(name, 73, tmp_path, live=True)
    assert result["disks"] == [] and result["extra"] == []


@needs_root
@pytest.mark.parametrize("name", ["unbroken-xfs-wiped", "braided-xfs-wiped"])
def test_of_the_contents_alone_nearly_all_comes_back(name: str, tmp_path: Path) -> None:
    """With all but contents zeroed, six disks in one piece each and three that grew together are put in place again."""
    result = run(name, 204, tmp_path)
    no_lie(result)
    assert len(result["disks"]) == (6 if name.startswith("unbroken") else 3)
    for disk in result["disks"]:
        assert disk["found"] and disk["recall"] >= 0.9, f"{disk['name']}: {disk['recall']}"
