"""How assembling grows with the number of fragments: fifty disks in 10², 10³, 10⁴ shuffled pieces, no host.

The same bytes lie in more and more pieces, so that time per byte would show as a ratio of one. What grows is compared
with n log n. The sweep is not counted; second reads of the image are.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import bare
from tests.corpus.containers import QemuMaker, discover
from tests.corpus.guests import GuestSpec, make_guest
from vmcarve.assemble import assemble_image
from vmcarve.source import open_image
from vmcarve.sweeper import sweep_image
from vmcarve.tables import EVIDENCE, read, writer

from .common import record

DISKS = 50
PIECES = (100, 1_000, 10_000)  # 10⁵ pieces of 4 KiB and more would need ten times these disks
MEGABYTE, KILOBYTES = 1_000, 10_000  # pieces of about 500 KiB and 50 KiB, for which the goal says seconds per GB
SECONDS = 60  # for 50 disks in 10⁴ pieces, by the goal
MAKERS = ("qcow2/64k", "vmdk/monolithicSparse", "vdi/dynamic", "vhd/dynamic", "vhdx/dynamic-1m")


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Fifty small disks, each with its own files."""
    folder = tmp_path_factory.mktemp("disks")
    made = []
    for number in range(DISKS):
        guest = make_guest(GuestSpec("ext4", "gpt", 8), f"growth-{number}", folder, mounts=False)
        maker = discover()[MAKERS[number % len(MAKERS)]]
        assert isinstance(maker, QemuMaker)
        path = folder / f"{number}{maker.extension}"
        maker.make(guest.raw, path, number)
        made.append(path)
        guest.raw.unlink()
        guest.volume.unlink()
    yield made
    for path in made:
        path.unlink()


def seconds(image: Path, folder: Path) -> tuple[float, int, int]:
    """(CPU seconds of assembling, disks, bytes of the image)."""
    with open_image(image) as source:
        with writer(folder / "evidence.arrow", EVIDENCE) as out:
            sweep_image(source, 0, out.write_batch)
        evidence = read(folder / "evidence.arrow")
        began = time.process_time()
        found, _, _ = assemble_image(source, 0, evidence)
        return time.process_time() - began, len(found), source.size


def test_growth(benchmark: Any, containers: list[Path], scratch: Path) -> None:
    """Each step of ten in pieces against what n log n would take, and 50 disks in 10⁴ pieces against a minute."""
    total = sum(path.stat().st_size for path in containers)
    took = []
    for pieces in PIECES:
        image = scratch / "image.raw"
        bare.lay_out(image, containers, total // pieces, random.Random(pieces))
        spent, found, size = seconds(image, scratch)
        assert found, "nothing was assembled, so nothing was timed"
        took.append(spent)
        record(benchmark, f"assembling {DISKS} disks in {pieces} pieces", spent / (size / 1e9), unit="s/GB",
               goal={MEGABYTE: 1.0, KILOBYTES: 5.0}.get(pieces), at_most=True,
               note=f"{spent:.2f} s of CPU, {found} disks")
        image.unlink()
    for before, after, few, many in zip(took, took[1:], PIECES, PIECES[1:], strict=False):
        log = many * math.log(many) / (few * math.log(few))
        record(benchmark, f"growth from {few} to {many} pieces", after / before, goal=log, at_most=True,
               note="goal: n log n")
    record(benchmark, f"{DISKS} disks in {KILOBYTES} pieces", took[PIECES.index(KILOBYTES)], unit="s", goal=SECONDS,
           at_most=True)
    benchmark.pedantic(lambda: None, rounds=1)
