"""COWD: maps judged against qemu-img, libvmdk and dissect.hypervisor through a descriptor; damage and hostile input."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
import pyvmdk
from dissect.hypervisor.disk.vmdk import VMDK
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest, run
from tests.makers.vmdk import describe, make_cowd
from vmcarve.disk import VirtualDisk
from vmcarve.errors import Damaged
from vmcarve.formats.cowd import FORMAT
from vmcarve.model import DATA, LOST, UNALLOCATED, Container
from vmcarve.source import BytesReader

SECTOR = 512
SECTORS = 8 * 4096 + 777


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A COWD extent with a descriptor beside it, and its guest: sectors far apart, every one distinct."""
    folder = tmp_path_factory.mktemp("cowd")
    rng = random.Random(3)
    data = bytearray(SECTORS * SECTOR)
    for number in [*rng.sample(range(SECTORS // 8), 90), SECTORS // 8]:
        if number // 512 != 5:  # one table is never allocated
            at = number * 4096
            data[at : at + 4096] = rng.randbytes(len(data[at : at + 4096]))
    (folder / "raw").write_bytes(data)
    make_cowd(folder / "raw", folder / "x-delta.vmdk", 7)
    describe(folder / "x.vmdk", [(SECTORS, "VMFSSPARSE", "x-delta.vmdk")], "vmfsSparse")
    return folder / "x-delta.vmdk", bytes(data)


def opened(data: bytes, holes: list[tuple[int, int]] | None = None) -> tuple[Container, BytesReader]:
    reader = BytesReader(data, holes or [])
    container = FORMAT.open(reader)
    check_map(container, reader)
    return container, reader


def test_the_map_gives_what_three_other_readers_give(files: tuple[Path, bytes]) -> None:
    """qemu-img, libvmdk, dissect.hypervisor and our map read the same guest."""
    path, guest = files
    c, reader = opened(path.read_bytes())
    places = c.guests[0].map.file_offset[c.guests[0].map.state == DATA]
    assert (np.diff(places) < 0).any(), "fixture too kind: grains in disk order"
    assert read_guest(reader, c.guests[0].map) == guest
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path.with_name("x.vmdk"), path.with_name("out"))
    assert path.with_name("out").read_bytes() == guest
    with path.open("rb") as handle:
        whole = len(guest) // 8192 * 8192  # dissect.hypervisor 3.21 cannot read to an end inside its 8 KiB buffer
        assert VMDK(handle).read(whole) == guest[:whole]
    third = pyvmdk.handle()
    third.open(str(path.with_name("x.vmdk")))
    third.open_extent_data_files()
    assert third.read_buffer_at_offset(len(guest), 0) == guest
    third.close()


def test_size_is_what_free_sector_says(files: tuple[Path, bytes]) -> None:
    """The container ends at freeSector although the reader goes on, and everything agrees with it."""
    data = files[0].read_bytes()
    c, _ = opened(data + random.Random(1).randbytes(100_000))
    assert c.size == len(data) and all(check.ok for check in c.checks)
    assert (c.format, c.variant, c.virtual_size, c.cluster) == ("vmdk", "vmfsSparse", SECTORS * SECTOR, SECTOR)


def test_what_was_never_written_is_the_parents(files: tuple[Path, bytes]) -> None:
    """Sectors without an entry, with or without a table, are UNALLOCATED, not zero."""
    c, reader = opened(files[0].read_bytes())
    assert not (c.guests[0].map.state == LOST).any()
    parent = b"p" * len(files[1])
    child = read_guest(reader, c.guests[0].map, parent)
    assert child[5 * 4096 * SECTOR :][: 4096 * SECTOR] == b"p" * 4096 * SECTOR


def test_a_parent_name_is_shown_and_emptied(files: tuple[Path, bytes]) -> None:
    """parentFileName appears in `parent`, and the written copy holds zeros there."""
    data = bytearray(files[0].read_bytes())
    data[32 : 32 + 1024] = b"/vmfs/volumes/one/base.vmdk".ljust(1024, b"\0")
    c, _ = opened(bytes(data))
    assert c.parent is not None and c.parent.name == "/vmfs/volumes/one/base.vmdk"
    assert [(p.file_offset, p.data) for p in c.patches] == [(32, bytes(27))]


def test_a_missing_table_is_lost_not_zero(files: tuple[Path, bytes]) -> None:
    """Grains of a table that could not be read are LOST; the others still read right."""
    data = files[0].read_bytes()
    table = struct.unpack_from("<I", data, 2048)[0]
    c, reader = opened(data, [(table * SECTOR, 1024)])
    m = c.guests[0].map
    lost = m.state == LOST
    assert int(m.length[lost].sum()) == 256 * SECTOR and m.guest_offset[lost].min() == 0
    assert read_guest(reader, m)[256 * SECTOR :] == files[1][256 * SECTOR :]


@pytest.mark.parametrize("entry", [3, 5, 1 << 31, 0xFFFFFFFF])
def test_entries_that_name_no_data_are_lost(files: tuple[Path, bytes], entry: int) -> None:
    """An entry into the metadata or beyond freeSector is LOST, with a failed check."""
    data = bytearray(files[0].read_bytes())
    table = struct.unpack_from("<I", data, 2048)[0]
    struct.pack_into("<I", data, table * SECTOR + 4 * 100, entry)
    c, _ = opened(bytes(data))
    m = c.guests[0].map
    at = int(np.searchsorted(m.guest_offset, 100 * SECTOR, "right")) - 1
    assert m.state[at] == LOST and any(not check.ok for check in c.checks)


def test_a_sector_claimed_twice_goes_to_nobody(files: tuple[Path, bytes]) -> None:
    """Two entries with one value are both LOST."""
    data = bytearray(files[0].read_bytes())
    first, second = (struct.unpack_from("<I", data, 2048 + 4 * k)[0] for k in (0, 1))
    used = next(i for i in range(4096) if struct.unpack_from("<I", data, first * SECTOR + 4 * i)[0])
    value = struct.unpack_from("<I", data, first * SECTOR + 4 * used)[0]
    free = next(i for i in range(4096) if not struct.unpack_from("<I", data, second * SECTOR + 4 * i)[0])
    struct.pack_into("<I", data, second * SECTOR + 4 * free, value)
    m = opened(bytes(data))[0].guests[0].map
    for number in (used, 4096 + free):
        assert m.state[int(np.searchsorted(m.guest_offset, number * SECTOR, "right")) - 1] == LOST


def test_an_empty_disk_of_two_terabytes_is_one_run() -> None:
    """The largest capacity costs no memory: tables that do not exist are not read."""
    capacity = (1 << 32) - 1
    tables = -(-capacity // 4096)
    top = struct.pack("<4s7I", b"COWD", 1, 3, capacity, 1, 4, tables, 4 + tables * 4 // SECTOR).ljust(2048, b"\0")
    c, _ = opened(top + bytes(4 * tables))
    assert c.guests[0].map.state.tolist() == [UNALLOCATED]


def test_confirm_believes_no_magic_alone(files: tuple[Path, bytes]) -> None:
    """A header is confirmed at any offset; the magic before noise is not."""
    data = files[0].read_bytes()
    found = FORMAT.confirm(BytesReader(bytes(1536) + data), 1536, FORMAT.signatures[0])
    assert found is not None and (found.kind, found.container_offset) == ("cowd.header", 0)
    noise = b"COWD" + random.Random(2).randbytes(4096)
    assert FORMAT.confirm(BytesReader(noise), 0, FORMAT.signatures[0]) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 255)), max_size=12), st.integers(0, 200_000))
def test_mutations_raise_nothing_but_damaged(files: tuple[Path, bytes], changes: list[tuple[int, int]],
                                             cut: int) -> None:  # fmt: skip
    """Whatever header and tables say, `open` gives a valid map or Damaged."""
    data = bytearray(files[0].read_bytes()[: max(cut, 3000)])
    for at, value in changes:
        data[at % 32 if at % 3 == 0 else at % len(data)] = value
    try:
        opened(bytes(data))
    except Damaged:
        pass


def test_tables_without_header_are_tied_by_their_first_grains(files: tuple[Path, bytes]) -> None:
    """Without header and directory, and with a part of one table gone, each table's span is a unit, by its sectors."""
    path, guest = files
    content = bytearray(path.read_bytes())
    tables = struct.unpack_from("<9I", content, 2048)
    content[:2560] = bytes(2560)
    at = next(t for t in tables if t) * SECTOR
    lost = (at + 31 * SECTOR, SECTOR)
    assert FORMAT.stow is not None
    (stowed,) = FORMAT.stow(BytesReader(bytes(content), [lost]))
    assert stowed.unit == 4096 * SECTOR
    order = sorted((t, k) for k, t in enumerate(tables) if t and k < 8)
    disk = VirtualDisk(BytesReader(bytes(content), [lost]), stowed.map)
    for i, (t, k) in enumerate(order):
        got, wanted = disk.read(i * stowed.unit, stowed.unit), guest[k * stowed.unit : (k + 1) * stowed.unit]
        end = 31 * 128 * SECTOR if t * SECTOR == at else stowed.unit
        assert got[:end] == wanted[:end] and not any(got[end:])
        assert disk.missing(i * stowed.unit + 31 * 128 * SECTOR, 128 * SECTOR) == (t * SECTOR == at)
