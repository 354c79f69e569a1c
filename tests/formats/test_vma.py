"""VMA: extents place their own blocks. Written by an independent writer, judged by dissect.archive."""

from __future__ import annotations

import hashlib
import io
import random
import struct
from pathlib import Path

import pytest
from dissect.archive.vma import VMA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest
from tests.makers.vma import CLUSTER, extent, header, write_vma
from vmcarve.errors import Damaged
from vmcarve.formats.vma import EXTENT_KIND, FORMAT, HEADER_KIND
from vmcarve.model import HOLE, LOST, PROVEN, UNALLOCATED, Container, Evidence, Orphan, Reader
from vmcarve.source import BytesReader


def disk(size: int, seed: int) -> bytes:
    """Clusters full, half full in scattered blocks, or empty."""
    rng = random.Random(seed)
    out = bytearray(size)
    for at in range(0, size, 4096):
        kind = at // CLUSTER % 5
        if kind < 3 or (kind == 3 and rng.random() < 0.5):
            n = min(4096, size - at)
            out[at : at + n] = rng.randbytes(n)
    return bytes(out)


A = disk(9 * (1 << 20) + 5120, 1)
B = disk(3 * (1 << 20), 2)
RAM = disk(1 << 20, 3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("vma") / "a.vma"
    write_vma(path, [("drive-scsi0", A), ("drive-virtio1", B), ("vmstate", RAM)], 4,
              {"qemu-server.conf": b"name: vm1\n", "fw.conf": b"x"})
    return path.read_bytes()


def open_bytes(data: bytes, holes: tuple[tuple[int, int], ...] = ()) -> tuple[Container, Reader]:
    reader = BytesReader(data, holes)
    container = FORMAT.open(reader)
    check_map(container, reader)
    return container, reader


def failed(container: Container) -> set[str]:
    return {c.name for c in container.checks if not c.ok}


def sweep(data: bytes) -> list[Evidence]:
    """What the sweep would confirm: every signature at every sector."""
    assert FORMAT.confirm is not None
    reader = BytesReader(data)
    found: list[Evidence] = []
    for s in FORMAT.signatures:
        for at in range(0, len(data) - 512, 512):
            if data[at + s.at : at + s.at + len(s.magic)] == s.magic:
                row = FORMAT.confirm(reader, at, s)
                found += [row] if row is not None else []
    return found


def salvage(data: bytes, *kinds: str) -> list[Orphan]:
    assert FORMAT.salvage is not None
    orphans = list(FORMAT.salvage(BytesReader(data), [e for e in sweep(data) if e.kind in kinds]))
    for o in orphans:
        check_map(o.container, view(o, data))
    return orphans


def view(orphan: Orphan, data: bytes) -> BytesReader:
    """The orphan's file, put together from its runs."""
    out = bytearray(orphan.container.size)
    for f, p, n in orphan.runs.tolist():
        out[f : f + n] = data[p : p + n]
    return BytesReader(bytes(out))


def extents(data: bytes) -> list[int]:
    return [e.image_offset for e in sweep(data) if e.kind == EXTENT_KIND]


def right_or_lost(reader: Reader, container: Container, truth: list[bytes]) -> list[int]:
    """Asserts that every byte is right or marked lost; returns lost bytes per device."""
    lost: list[int] = []
    for guest, want in zip(container.guests, truth, strict=True):
        got = bytearray(read_guest(reader, guest.map))
        m = guest.map
        lost.append(0)
        for g, n, s in zip(m.guest_offset.tolist(), m.length.tolist(), m.state.tolist(), strict=True):
            if s == LOST:
                got[g : g + n] = want[g : g + n]
                lost[-1] += n
        assert bytes(got) == want[: len(got)]
    return lost


def test_devices_as_dissect_reads_them(archive: bytes) -> None:
    """Two disks and RAM with interleaved clusters in random order are read as dissect.archive reads them."""
    container, reader = open_bytes(archive)
    oracle = VMA(io.BytesIO(archive))
    assert [g.label for g in container.guests] == [d.name for d in oracle.devices()]
    for guest, device, want in zip(container.guests, oracle.devices(), (A, B, RAM), strict=True):
        assert guest.virtual_size == device.size
        got = read_guest(reader, guest.map)
        assert got == device.open().read(device.size) == want
    assert not failed(container) and container.size == len(archive) and container.size_exact
    assert container.uuid == str(oracle.uuid) and container.names == ["qemu-server.conf", "fw.conf"]
    assert "RAM" in container.detail["vmstate"] and "RAM" not in container.detail["drive-scsi0"]
    assert container.guests[0].created == 1_600_000_000 and not container.rebuild
    assert {r.grade for r in container.regions} == {PROVEN}


def test_extents_are_enough(archive: bytes) -> None:
    """With the header overwritten or unreadable the devices come out all the same, up to their last cluster."""
    size = int.from_bytes(archive[56:60], "big")
    bad = bytearray(archive)
    bad[4096 + 32 : 4096 + 48] = b"\xff" * 16
    for data, holes in ((bytes(bad), ()), (archive, ((0, size),))):
        container, reader = open_bytes(data, holes)
        assert failed(container) >= {"vma.header"}
        for guest, want in zip(container.guests, (A, B, RAM), strict=True):
            assert read_guest(reader, guest.map)[: len(want)] == want
    (orphan,) = salvage(random.Random(9).randbytes(4096) + archive[size:], EXTENT_KIND)
    for guest, want in zip(orphan.container.guests, (A, B, RAM), strict=True):
        got = read_guest(view(orphan, random.Random(9).randbytes(4096) + archive[size:]), guest.map)
        assert got[: len(want)] == want and not any(got[len(want) :])


def test_scattered_extents(archive: bytes) -> None:
    """Extents cut apart and shuffled in the image still give every byte; with the header also names and sizes."""
    at = extents(archive)
    parts = [archive[a:b] for a, b in zip(at, [*at[1:], len(archive)], strict=True)]
    rng = random.Random(5)
    rng.shuffle(parts)
    # each one followed by another one's header at its end, as in fragments that break between extents
    data = archive[: at[0]] + b"".join(parts)
    (orphan,) = salvage(data, EXTENT_KIND, HEADER_KIND)
    reader = view(orphan, data)
    assert [read_guest(reader, g.map) for g in orphan.container.guests] == [A, B, RAM]
    assert [g.label for g in orphan.container.guests] == ["drive-scsi0", "drive-virtio1", "vmstate"]
    noise = b"".join(p + rng.randbytes(4096) for p in parts)
    (orphan,) = salvage(archive[: at[0]] + noise, EXTENT_KIND, HEADER_KIND)
    right_or_lost(view(orphan, archive[: at[0]] + noise), orphan.container, [A, B, RAM])


@pytest.mark.parametrize("shift", (4096, 512, 1 << 20))
def test_break_inside_an_extent_loses_that_extent_only(archive: bytes, shift: int) -> None:
    """Foreign bytes inside an extent's payload: nothing wrong is given, and the other extents stay."""
    at = extents(archive)[2] + 512 + 40 * 4096
    data = archive[:at] + random.Random(6).randbytes(shift) + archive[at:]
    container, reader = open_bytes(data)
    lost = right_or_lost(reader, container, [A, B, RAM])
    assert 0 < sum(lost) <= 58 * CLUSTER and {"vma.extents", "vma.device"} <= failed(container)
    (orphan,) = salvage(data[12800:], EXTENT_KIND)
    assert len(orphan.container.guests) == 3


def test_damaged_extent_header_costs_its_own_clusters(archive: bytes) -> None:
    """An extent whose header fails its MD5 or is unreadable is gone round; its neighbours are whole."""
    at = extents(archive)[1]
    flipped = bytearray(archive)
    flipped[at + 44] ^= 1
    for data, holes in ((bytes(flipped), ()), (archive, ((at, 512),))):
        container, reader = open_bytes(data, holes)
        lost = right_or_lost(reader, container, [A, B, RAM])
        assert 0 < sum(lost) <= 58 * CLUSTER


def test_cut_off_archive(archive: bytes) -> None:
    """What a truncated archive does not hold is lost; a fragment's end in foreign bytes gives nothing wrong."""
    end = extents(archive)[3] + 512 + 33 * 4096
    container, reader = open_bytes(archive[:end])
    right_or_lost(reader, container, [A, B, RAM])
    assert "vma.device" in failed(container) and container.size == end
    end = extents(archive)[2] + 512 + 33 * 4096  # behind the last extent nothing could tell
    container, reader = open_bytes(archive[:end] + random.Random(7).randbytes(5 << 20))
    right_or_lost(reader, container, [A, B, RAM])


def test_short_vmstate_is_no_loss(tmp_path: Path) -> None:
    """RAM is written up to its end, which lies before its device's: the rest is unallocated, not lost."""
    uuid = bytes(range(16))
    clusters = [(1, 0, RAM[:CLUSTER]), (1, 1, RAM[CLUSTER : 2 * CLUSTER]), (2, 0, bytes(CLUSTER))]
    data = header(uuid, [("vmstate", 9 * CLUSTER), ("drive-ide0", 100)], {}) + extent(uuid, clusters)
    container, _ = open_bytes(data)
    assert not failed(container)
    assert container.guests[0].map.state.tolist()[-1] == UNALLOCATED
    assert container.guests[1].map.state.tolist() == [HOLE] and container.guests[1].virtual_size == 100


def test_hostile_extents() -> None:
    """Clusters claimed twice or beyond the device are lost and told, with no exception and no large table."""
    uuid = bytes(range(16))
    full = random.Random(8).randbytes(CLUSTER)
    rows = [(1, 0, full), (1, 1, full), (1, 0xFFFF_FFFF, full), (7, 0xFFFF_FFFE, full), (1, 1, full)]
    data = header(uuid, [("drive-ide0", 3 * CLUSTER)], {}) + extent(uuid, rows)
    container, reader = open_bytes(data)
    guest = container.guests[0].map
    assert guest.state.tolist()[1:] == [LOST] and int(guest.length[0]) == CLUSTER
    detail = next(c.detail for c in container.checks if c.name == "vma.device")
    assert "claimed twice" in detail and "beyond its end" in detail and "in no extent" in detail
    assert container.guests[1].virtual_size == 0xFFFF_FFFF * CLUSTER and len(container.guests[1].map) == 2
    assert read_guest(reader, guest)[:CLUSTER] == full


def test_evidence_needs_its_md5(archive: bytes) -> None:
    """Magics in text, and structures with one bit changed, are no evidence."""
    found = sweep(archive)
    assert [(e.kind, e.container_offset) for e in found[:1]] == [(HEADER_KIND, 0)]
    assert len(found) == 1 + len(extents(archive)) and len({e.identity for e in found}) == 1
    assert all(e.guest_offset is None for e in found)
    for at in (0, 10, 5000, 12300, extents(archive)[0] + 9, extents(archive)[0] + 500):
        data = bytearray(archive)
        data[at] ^= 4
        assert len(sweep(bytes(data))) == len(found) - 1
    assert sweep((b"VMA\0\0\0\0\x01" + b"text " * 200)[:512] + (b"VMAE\0\0" + b"x" * 600)[:512] + bytes(4096)) == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("vma") / "s.vma"
    write_vma(path, [("drive-scsi0", A[:5_000_000]), ("vmstate", RAM[:200_000])], 5)
    return path.read_bytes()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated(small: bytes, data: st.DataObject) -> None:
    """Header and extent rows changed under a correct MD5: only Damaged is raised and every map keeps its contract."""
    blob = bytearray(small)
    at = extents(small)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.sampled_from([0, *at]))
        span = 12288 if where == 0 else 512
        field = data.draw(st.one_of(st.integers(0, span - 9), st.sampled_from([6, 40, 48, 52, 56, 4128, 4136])))
        if field + 8 <= span:
            blob[where + field : where + field + 8] = data.draw(st.binary(min_size=8, max_size=8))
        if data.draw(st.booleans()):
            size = struct.unpack_from(">I", blob, 56)[0] if where == 0 else 512
            place = 32 if where == 0 else 24
            if size <= len(blob) - where:
                blob[where + place : where + place + 16] = bytes(16)
                blob[where + place : where + place + 16] = hashlib.md5(blob[where : where + size]).digest()
    reader = BytesReader(bytes(blob))
    try:
        check_map(FORMAT.open(reader), reader)
    except Damaged:
        pass
    salvage(bytes(blob), EXTENT_KIND, HEADER_KIND)
