"""The picture of what a disk lost: which of its blocks, and what kind of bytes they held."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from benches import loss, plots
from benches.rows import ASKED
from tests.corpus.losses import COLUMNS, kinds, losses
from tests.corpus.sparse import BLOCK, ZERO_HASH, block_hashes


def blocks(rng: random.Random) -> dict[str, bytes]:
    """A block of each kind."""
    words = " ".join("".join(rng.choices("etaoinshr", k=5)) for _ in range(BLOCK)).encode()
    return {"even": rng.randbytes(BLOCK), "text": words[:BLOCK], "other": bytes(range(64)) * 64}


def test_kinds_of_blocks_are_told() -> None:
    """What is random, what is text, and what is neither."""
    some = blocks(random.Random(1))
    array = np.frombuffer(b"".join(some.values()), np.uint8).reshape(-1, BLOCK)
    assert kinds(array) == list(some)


@pytest.mark.parametrize("kept", [True, False])
def test_lost_blocks_are_counted_by_what_they_held(kept: bool, tmp_path: Path) -> None:
    """Of a disk of five blocks one is right, two are missing, one is wrong, and one does not count; without the
    original nobody says what they held."""
    some = blocks(random.Random(2))
    disk = some["text"] + some["even"] + some["other"] + some["text"] + some["other"]
    got = some["text"] + bytes(2 * BLOCK) + some["even"]
    for name, content in (("disk", disk), ("got", got)):
        (tmp_path / name).write_bytes(content)
    wanted = np.array([True, True, True, True, False])
    told = losses(block_hashes(tmp_path / "disk", len(disk)), wanted, block_hashes(tmp_path / "got", len(got)),
                  tmp_path / "disk" if kept else None)
    assert told["strip"] == "rmmw."
    lost = {"wrong": {"text": BLOCK}, "missing": {"even": BLOCK, "other": BLOCK}}
    assert told["lost"] == (lost if kept else {"wrong": {"unknown": BLOCK}, "missing": {"unknown": 2 * BLOCK}})


def test_a_hole_of_one_block_is_seen_on_a_large_disk() -> None:
    """A column of many blocks shows what is lost of it."""
    truth = np.arange(1, 100 * COLUMNS + 1, dtype=np.uint64)
    found = truth.copy()
    found[777] = ZERO_HASH
    strip = losses(truth, np.ones(len(truth), np.bool_), found, None)["strip"]
    assert len(strip) == COLUMNS and strip[7] == "m" and set(strip[:7] + strip[8:]) == {"r"}


def test_a_row_that_falls_short_is_drawn() -> None:
    """Its disks that lost anything, by name, and their bytes by kind, guest and format."""
    scene = {"scene": "shuffled-1m", "seed": 1}
    disk = {"name": "a", "guest": "ext4", "format": "vhd", "found": True, "exact": False, "recall": 0.5,
            "wanted_bytes": 4096, "strip": "rrmw", "lost": {"missing": {"text": 1024}, "wrong": {"even": 1024}}}
    whole = {**disk, "name": "b", "exact": True}
    row = ASKED[0]
    picture = loss.drawn(row, [(scene, disk), (scene, whole)])
    assert "shuffled-1m 1: a, ext4" in picture and ": b," not in picture
    assert picture.count('height="10" fill="#c9a227"') == 2  # the hole, and what its colour means
    shown = [(row, [(scene, disk), (scene, whole)])]
    assert "| 25.00 % |  |  |  |  | 12.50 % |  | 12.50 % |  |  |" in loss.by_kind(shown)[-1]
    assert loss.by_disk(shown)[-1].endswith("| ext4 100 % (75.0 %) | vhd 100 % (75.0 %) |")
    assert plots.strips("none", [], loss.COLOURS).startswith("<svg")
