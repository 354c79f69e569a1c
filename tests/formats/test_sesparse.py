"""SESparse: the one real sample and an independent writer's files, judged by dissect.hypervisor and qemu-img."""

from __future__ import annotations

import gzip
import os
import random
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from dissect.hypervisor.disk.vmdk import VMDK
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest, run
from tests.makers.vmdk import describe, make_sesparse
from vmcarve.errors import Damaged
from vmcarve.formats.sesparse import FORMAT
from vmcarve.model import DATA, HOLE, LOST, Container
from vmcarve.source import BytesReader

SECTOR = 512
MIB = 1 << 20
SAMPLE = "dissect.hypervisor==3.17"
GD, GT = 4096 * SECTOR, 6144 * SECTOR  # of the writer's files


def cached_sample() -> Path:
    """The sdist that holds the real sample, fetched once; skips with the reason when it cannot be had."""
    cache = Path(os.environ.get("VMCARVE_SAMPLES", "~/.cache/vmcarve-samples")).expanduser()
    found = list(cache.glob("dissect*hypervisor-3.17.tar.gz"))
    if not found:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "--no-build-isolation",
                 "-q", "-d", str(cache), SAMPLE], capture_output=True, text=True, timeout=120)  # fmt: skip
            reason = done.stderr.strip().splitlines()[-1:] or [""]
        except (OSError, subprocess.TimeoutExpired) as e:
            reason = [str(e)]
        found = list(cache.glob("dissect*hypervisor-3.17.tar.gz"))
        if not found:
            pytest.skip(f"the ESXi sample is in {SAMPLE} on PyPI, which cannot be reached: {reason[0]}")
    return found[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A written extent with a descriptor, and its guest: grains far apart, every one distinct, some tables absent."""
    folder = tmp_path_factory.mktemp("sesparse")
    rng = random.Random(5)
    data = bytearray(80 * MIB + 3 * SECTOR)
    for number in [*rng.sample(range(80 * 256), 300), 80 * 256]:
        if number // 4096 != 2:
            data[number * 4096 : number * 4096 + 4096] = rng.randbytes(len(data[number * 4096 : number * 4096 + 4096]))
    (folder / "raw").write_bytes(data)
    make_sesparse(folder / "raw", folder / "x-sesparse.vmdk", 1)
    describe(folder / "x.vmdk", [(len(data) // SECTOR, "SESPARSE", "x-sesparse.vmdk")], "seSparse")
    return folder / "x-sesparse.vmdk", bytes(data)


def opened(data: bytes, holes: list[tuple[int, int]] | None = None) -> tuple[Container, BytesReader]:
    reader = BytesReader(data, holes or [])
    container = FORMAT.open(reader)
    check_map(container, reader)
    return container, reader


def test_the_real_sample_reads_as_dissect_reads_it(tmp_path: Path) -> None:
    """A file of a real ESXi: guest, size of what is used and all checks."""
    with tarfile.open(cached_sample()) as tar:
        member = next(m for m in tar.getmembers() if m.name.endswith("tests/data/sesparse.vmdk.gz"))
        handle = tar.extractfile(member)
        assert handle is not None
        (tmp_path / "s.vmdk").write_bytes(gzip.decompress(handle.read()))
    c, reader = opened((tmp_path / "s.vmdk").read_bytes())
    with (tmp_path / "s.vmdk").open("rb") as raw:
        assert read_guest(reader, c.guests[0].map)[: 32 * MIB] == VMDK(raw).read(32 * MIB)
    assert c.virtual_size == 512 * MIB and all(check.ok for check in c.checks)
    # one grain that nothing names follows in this file
    assert not c.size_exact and c.size == reader.size - 4096


def test_the_map_gives_what_two_other_readers_give(files: tuple[Path, bytes]) -> None:
    """qemu-img (through a descriptor), dissect.hypervisor and our map read the same guest."""
    path, guest = files
    c, reader = opened(path.read_bytes())
    places = c.guests[0].map.file_offset[c.guests[0].map.state == DATA]
    assert (np.diff(places) < 0).any(), "fixture too kind: grains in disk order"
    assert read_guest(reader, c.guests[0].map) == guest
    assert c.size == reader.size and all(check.ok for check in c.checks)
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path.with_name("x.vmdk"), path.with_name("out"))
    assert path.with_name("out").read_bytes() == guest


def test_unmapped_and_zero_grains_are_holes(files: tuple[Path, bytes]) -> None:
    """Kinds 1 and 2 read as zeros (QEMU's reading), never as the parent."""
    data = bytearray(files[0].read_bytes())
    for i, kind in ((1, 1), (2, 2)):
        struct.pack_into("<Q", data, GT + 8 * (4000 + i), kind << 60)
    table = struct.unpack_from("<Q", data, GD)[0] & 0xFFFFFFFF
    data[GT + table * 32768 + 8 : GT + table * 32768 + 24] = struct.pack("<QQ", 1 << 60 | 5 << 48, 2 << 60)
    c, _ = opened(bytes(data))
    m = c.guests[0].map
    at = int(np.searchsorted(m.guest_offset, 4096, "right")) - 1
    assert m.state[at] == HOLE and m.guest_offset[at] == 4096 and m.length[at] == 8192


def test_a_lost_table_comes_back_from_the_back_map(files: tuple[Path, bytes]) -> None:
    """Entries of a missing table sector are rebuilt, the written copy gets them, and what was unknown is LOST."""
    data = files[0].read_bytes()
    c, reader = opened(data, [(GT, 32768 + 512)])
    m = c.guests[0].map
    assert (m.state == LOST).any()
    guest = read_guest(reader, m)
    assert guest == files[1], "only entries that name nothing may be lost"
    written = bytearray(data)
    written[GT : GT + 32768 + 512] = bytes(32768 + 512)
    for patch in c.patches:
        written[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
    assert bytes(written) == data


def test_zeros_in_place_of_a_table_are_not_an_empty_disk(files: tuple[Path, bytes]) -> None:
    """A table is given out for its first grain. Where the back map does not tell it either its grains are lost."""
    data = bytearray(files[0].read_bytes())
    whole, _ = opened(bytes(data))
    back = next(r for r in whole.regions if r.kind == "sesparse.back-map")
    table = next(r for r in whole.regions if r.kind == "sesparse.gt")
    data[back.file_offset : back.file_offset + back.length] = bytes(back.length)
    data[table.file_offset : table.file_offset + 32768] = bytes(32768)
    c, _ = opened(bytes(data))
    m = c.guests[0].map
    first = int(np.frombuffer(data[GD : GD + 16], "<u8").astype(np.uint32)[0] != 0)  # which 16 MiB the first table has
    at = np.flatnonzero(m.state == LOST)
    assert m.guest_offset[at].tolist() == [first * 16 * MIB] and m.length[at].tolist() == [16 * MIB]


def test_a_lost_directory_sector_comes_back_from_the_back_map(files: tuple[Path, bytes]) -> None:
    """Tables that nothing names are tied to their 16 MiB by what the back map says of their grains."""
    data = files[0].read_bytes()
    c, reader = opened(data, [(GD, SECTOR)])
    assert read_guest(reader, c.guests[0].map) == files[1]
    written = bytearray(data)
    written[GD : GD + SECTOR] = bytes(SECTOR)
    for patch in c.patches:
        written[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
    assert bytes(written) == data


def test_a_set_replay_flag_is_said(files: tuple[Path, bytes]) -> None:
    """A journal that waits for replay fails its check; the tables are still read."""
    data = bytearray(files[0].read_bytes())
    data[SECTOR + 24] = 1
    c, _ = opened(bytes(data))
    assert [check.name for check in c.checks if not check.ok] == ["journal is clean"]


def test_entries_beyond_the_file_and_double_claims_are_lost(files: tuple[Path, bytes]) -> None:
    """No entry may give bytes that are not there, or bytes of another entry."""
    data = bytearray(files[0].read_bytes())
    table = GT + (struct.unpack_from("<Q", data, GD)[0] & 0xFFFFFFFF) * 32768
    used = [i for i in range(4096) if data[table + 8 * i + 7] >> 4 == 3]
    free = next(i for i in range(4096) if data[table + 8 * i : table + 8 * i + 8] == bytes(8))
    data[table + 8 * free : table + 8 * free + 8] = data[table + 8 * used[0] : table + 8 * used[0] + 8]
    struct.pack_into("<Q", data, table + 8 * used[1], 3 << 60 | 0xFFF << 48 | 0xFFFF)
    m = opened(bytes(data))[0].guests[0].map
    for number in (used[0], free):
        assert m.state[int(np.searchsorted(m.guest_offset, number * 4096, "right")) - 1] == LOST


def test_confirm_takes_the_header_only(files: tuple[Path, bytes]) -> None:
    """The header is confirmed with its place; 16 bytes of magic before noise are not."""
    data = files[0].read_bytes()[:SECTOR]
    found = FORMAT.confirm(BytesReader(bytes(SECTOR) + data), SECTOR, FORMAT.signatures[0])
    assert found is not None and (found.kind, found.container_offset) == ("sesparse.header", 0)
    noise = data[:16] + random.Random(2).randbytes(SECTOR)
    assert FORMAT.confirm(BytesReader(noise), 0, FORMAT.signatures[0]) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 512, GD, GT, GT + 32768]), st.integers(0, 511), st.integers(0, 255)),
                max_size=10), st.integers(0, 8 * MIB))  # fmt: skip
def test_mutations_raise_nothing_but_damaged(files: tuple[Path, bytes], changes: list[tuple[int, int, int]],
                                             cut: int) -> None:  # fmt: skip
    """Whatever header and tables say, `open` gives a valid map or Damaged."""
    data = bytearray(files[0].read_bytes()[: max(cut, SECTOR)])
    for base, at, value in changes:
        if base + at < len(data):
            data[base + (at % 208 if base == 0 else at)] = value
    try:
        opened(bytes(data))
    except Damaged:
        pass
