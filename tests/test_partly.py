"""Containers of which a part of the tables is lost: what no table names is laid between what the others name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import deleted, ext4_disk, run
from tests.host.written import needs
from vmcarve.assemble.headless import relaid
from vmcarve.assemble.host_files import host_files
from vmcarve.assemble.partly import added, completed, lost
from vmcarve.assemble.unit_round import NO_UNIT, UNTOLD, Open
from vmcarve.disk import VirtualDisk
from vmcarve.filemap import FileMap, FileView
from vmcarve.model import (
    DATA,
    GUESSED,
    LOST,
    MISSING,
    RUN_DATA,
    SUPPORTED,
    Container,
    Evidence,
    GuestDisk,
    GuestMap,
    HostFile,
)
from vmcarve.registry import formats
from vmcarve.source import BytesReader

pytestmark = needs("mkfs.ext4", "sfdisk", "qemu-img")

MIB = 1 << 20
SIZE = 26 * MIB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A guest disk with an ext4 of small files at 1 MiB."""
    return ext4_disk(tmp_path_factory.mktemp("disk"), 1, "gpt", SIZE, 1024, 60_000)


def qcow2(folder: Path, disk: bytes, cluster: int) -> tuple[bytes, int, tuple[int, ...]]:
    """A qcow2 of the disk, the place of its L1, and the places of its L2 tables (0 none)."""
    (folder / "raw").write_bytes(disk)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster}", folder / "raw",
        folder / "qcow2")
    content = (folder / "qcow2").read_bytes()
    count, at = struct.unpack_from(">IQ", content, 36)
    return content, at, tuple(e & 0x00FF_FFFF_FFFF_FE00 for e in struct.unpack_from(f">{count}Q", content, at))


def without(content: bytes, *places: tuple[int, int]) -> FileView:
    """The file with some (offset, length) missing."""
    rows, at = [], 0
    for start, length in sorted(places):
        rows += [(at, start - at, at, SUPPORTED, "host"), (start, length, -1, MISSING, "reused")]
        at = start + length
    return FileView(BytesReader(content), FileMap.build([*rows, (at, len(content) - at, at, SUPPORTED, "host")]))


def opened(view: FileView) -> Container:
    return formats()["qcow2"].open(view)


def told(view: FileView, container: Container, disk: bytes) -> tuple[float, float]:
    """Share of the blocks of the disk that hold something that are right, and of the known ones that are wrong."""
    guest = VirtualDisk(view, container.guests[0].map)
    blocks = [(guest.read(at, 4096), guest.missing(at, 4096), disk[at : at + 4096]) for at in range(0, SIZE, 4096)]
    full = [(a == b and not gone) for a, gone, b in blocks if any(b)]
    known = [a != b for a, gone, b in blocks if not gone]
    return sum(full) / len(full), sum(known) / max(1, len(known))


def test_units_of_a_lost_table_are_laid_between_those_of_the_others(disk: bytes, tmp_path: Path) -> None:
    """A qcow2 in clusters of 4 KiB of which one L2 table, of 2 MiB of the disk, was written over."""
    content, _, tables = qcow2(tmp_path, disk, 4096)
    view = without(content, (tables[4], 4096))
    container = opened(view)
    before, _ = told(view, container, disk)
    whole = completed(view, container)
    assert whole is not None
    right, wrong = told(view, whole, disk)
    assert right > before + 0.04
    assert wrong < 0.002
    assert lost(whole.guests[0].map) < lost(container.guests[0].map)
    assert not whole.rebuild  # no table of the container names them
    new = list(added(container.guests[0].map, whole.guests[0].map))
    assert sum(n for _, n in new) == lost(container.guests[0].map) - lost(whole.guests[0].map)


def test_a_lost_first_table_leaves_the_spans_of_the_second_ones(disk: bytes, tmp_path: Path) -> None:
    """The header opens, and names nothing: the tables that are left are laid like those of a file without header."""
    content, first, _ = qcow2(tmp_path, disk, 65536)
    view = without(content, (first, 4096))
    container = opened(view)
    assert told(view, container, disk)[0] == 0
    runs = np.array([[0, 0, len(content), RUN_DATA]], np.int64)
    found = relaid(view, HostFile("inode 9", "a.qcow2", len(content), True, runs, "test"), container)
    assert found is not None
    right, wrong = told(view, found[0], disk)
    assert right > 0.99 and wrong == 0


def test_what_is_laid_anew_is_a_guess_even_where_the_host_is_sure(disk: bytes, tmp_path: Path) -> None:
    """The bytes of the file are where the host says; which of the guest's they are, nothing proves."""
    content, _, tables = qcow2(tmp_path, disk, 4096)
    spoilt = bytearray(content)
    spoilt[tables[4] : tables[4] + 4096] = b"\xff" * 4096
    state, _, _, evidence = deleted(tmp_path, bytes(spoilt), "vms/a.qcow2")
    rows = [("qcow2", Evidence(**{k: v for k, v in r.items() if k not in ("source", "module")}))
            for r in evidence.to_pylist() if r["module"] == "qcow2"]
    host_files(state, rows, np.empty(0, np.int64), evidence, deleted=True)
    (item,) = state.done
    guest = item.container.guests[0].map
    grades = {g: {item.map.cut(f, 1)[0][3] for f in range(f, f + n, 4096)}
              for g, n, f in zip(guest.guest_offset.tolist(), guest.length.tolist(), guest.file_offset.tolist(),
                                 strict=True) if f >= 0}
    inside = {grade for g, found in grades.items() if 4 * 2 * MIB <= g < 5 * 2 * MIB for grade in found}
    outside = {grade for g, found in grades.items() if not 4 * 2 * MIB <= g < 5 * 2 * MIB for grade in found}
    assert inside == {GUESSED}
    assert outside


def test_a_container_whose_tables_name_all_is_left_alone(disk: bytes, tmp_path: Path) -> None:
    """Nothing is lost but data."""
    content, _, _ = qcow2(tmp_path, disk, 65536)
    view = without(content, (10 * 65536, 3 * 65536))
    assert completed(view, opened(view)) is None


def test_what_lies_between_two_units_that_are_told_is_a_part_of_its_own() -> None:
    """Where all that is told rises; a unit that is none holds no order. Else there is one part."""
    seen = np.array([0, 1, UNTOLD, NO_UNIT, UNTOLD, 7, 8, 9, UNTOLD])
    parts = Open.parts(seen, 12)
    assert [p.units.tolist() for p in parts] == [[1, 2, 4, 5], [7, 8]]
    assert [p.places.tolist() for p in parts] == [[1, 2, 3, 4, 5, 6, 7], [9, 10, 11]]
    assert [p.told.tolist() for p in parts] == [[0, -1, -1, 6], [0, -1]]
    (whole,) = Open.parts(np.array([5, UNTOLD, 2, 3]), 7)
    assert whole.units.tolist() == [0, 1, 2]
    assert whole.places.tolist() == [0, 1, 2, 4, 5, 6]
    assert whole.told.tolist() == [4, -1, 2]


def test_a_raw_disk_has_no_tables(disk: bytes) -> None:
    """What is lost of it, no unit can be laid into."""
    view = without(disk)
    flat = GuestMap.build([0, MIB], [MIB, SIZE - MIB], [LOST, DATA], [-1, MIB])
    assert completed(view, Container("raw", "", SIZE, [GuestDisk(SIZE, flat)], cluster=MIB, rebuild=False)) is None
