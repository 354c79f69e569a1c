"""Containers of which a host kept no block of zeros, in one run that its own wiped metadata interrupt."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import ext4_disk, run
from tests.host.written import needs
from vmcarve import Options, recover
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, MISSING, ZERO

pytestmark = needs("mkfs.ext4", "sfdisk", "qemu-img")

MIB = 1 << 20
BLOCK = 4096
SIZE = 34 * MIB
KINDS = {"qcow2": ("cluster_size=64k", "qcow2"), "qed": ("cluster_size=64k", "qed"),
         "vmdk": ("subformat=monolithicSparse", "vmdk")}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest disk with an ext4 behind a GPT."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "raw").write_bytes(ext4_disk(folder, 5, "gpt", SIZE, 1024, 60_000))
    return folder / "raw"


@pytest.mark.parametrize("kind", KINDS)
def test_tables_keep_what_the_host_left_out_of_them(kind: str, disk: Path, tmp_path: Path) -> None:
    """The tables are found block by block, what lies between is zeros, and stays so when the guest's structures have
    told where the runs bend; a table of a VMDK that names its own place proposes no second one."""
    options, name = KINDS[kind]
    run("qemu-img", "convert", "-f", "raw", "-O", name, "-o", options, disk, tmp_path / "container")
    data = (tmp_path / "container").read_bytes()
    blocks = np.frombuffer(data + bytes(-len(data) % BLOCK), np.uint8).reshape(-1, BLOCK)
    kept = blocks[blocks.any(axis=1)]
    half = len(kept) // 2
    rng = random.Random(kind)
    (tmp_path / "image").write_bytes(rng.randbytes(50 * BLOCK) + kept[:half].tobytes() + bytes(90 * BLOCK)
                                     + kept[half:].tobytes() + rng.randbytes(50 * BLOCK))
    recover([tmp_path / "image"], tmp_path / "case", options=Options())
    (found,) = (tmp_path / "case" / "disks").iterdir()
    run("qemu-img", "convert", "-f", name, "-O", "raw", found, tmp_path / "out")
    wanted, got = (np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, BLOCK) for path in (disk, tmp_path / "out"))
    full = wanted.any(axis=1)
    assert (wanted == got).all(axis=1)[full].mean() > 0.95


def test_zeros_are_laid_where_nothing_is() -> None:
    """What a map has, and what it knows to be zero, stays."""
    rows = [(0, 10, 100, GUESSED, "a"), (10, 10, -1, MISSING, "b"), (20, 10, -1, ZERO, "c"), (30, 10, -1, MISSING, "d")]
    made = FileMap.build(rows).zeroed([(5, 15), (18, 35)], "e").rows()
    assert made == [(0, 10, 100, GUESSED, "a"), (10, 5, -1, ZERO, "e"), (15, 3, -1, MISSING, "b"),
                    (18, 2, -1, ZERO, "e"), (20, 10, -1, ZERO, "c"), (30, 5, -1, ZERO, "e"), (35, 5, -1, MISSING, "d")]
