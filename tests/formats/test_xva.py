"""XVA: chunks numbered by a counter, hashes that prove them, breaks that hashes repair. Written by Python's tarfile."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest
from tests.makers.xva import MIB, ova_xml, write_xva
from vmcarve.errors import Damaged
from vmcarve.formats.xva import CHUNK_KIND, FORMAT, HEADER_KIND
from vmcarve.model import LOST, PROVEN, Container, Evidence, Orphan, Reader
from vmcarve.source import BytesReader


def disk(size: int, seed: int, zero: tuple[int, ...] = ()) -> bytes:
    """Random bytes, chunks in `zero` empty."""
    data = bytearray(random.Random(seed).randbytes(size))
    for i in zero:
        data[i * MIB : (i + 1) * MIB] = bytes(len(data[i * MIB : (i + 1) * MIB]))
    return bytes(data)


A = disk(6 * MIB + 70_000, 1, zero=(2, 3))
B = disk(3 * MIB, 2, zero=(1,))


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    write_xva(tmp_path / "a.xva", {"Ref:1": A, "Ref:10": B}, silence=(4,))
    return (tmp_path / "a.xva").read_bytes()


def open_bytes(data: bytes, holes: tuple[tuple[int, int], ...] = ()) -> tuple[Container, Reader]:
    reader = BytesReader(data, holes)
    container = FORMAT.open(reader)
    check_map(container, reader)
    return container, reader


def failed(container: Container) -> set[str]:
    return {c.name for c in container.checks if not c.ok}


def member_offset(data: bytes, name: str) -> int:
    """Where a member's header is, as tarfile tells."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmember(name).offset


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


def salvage(data: bytes) -> list[Orphan]:
    assert FORMAT.salvage is not None
    return list(FORMAT.salvage(BytesReader(data), [e for e in sweep(data) if e.kind == CHUNK_KIND]))


def view(orphan: Orphan, data: bytes) -> BytesReader:
    """The orphan's file, put together from its runs."""
    out = bytearray(orphan.container.size)
    for f, p, n in orphan.runs.tolist():
        out[f : f + n] = data[p : p + n]
    return BytesReader(bytes(out))


@pytest.mark.parametrize("digest", ("xxhash", "checksum"))
@pytest.mark.parametrize("silence", ((), (4,), (1, 4, 5, 6)))
def test_disks_are_read_whatever_the_counter_did(tmp_path: Path, digest: str, silence: tuple[int, ...]) -> None:
    """Every disk comes out byte for byte, also where members of length 0 push the numbers ahead of the offsets."""
    write_xva(tmp_path / "a.xva", {"Ref:1": A, "Ref:10": B}, digest=digest, silence=silence)
    data = (tmp_path / "a.xva").read_bytes()
    container, reader = open_bytes(data)
    assert [g.label for g in container.guests] == ["Ref:1", "Ref:10"]
    assert [g.virtual_size for g in container.guests] == [len(A), len(B)]
    assert [read_guest(reader, g.map) for g in container.guests] == [A, B]
    assert not failed(container) and container.variant == digest and not container.rebuild
    assert len(data) - 10240 < container.size <= len(data) and container.size_exact
    assert container.names[0] == "win & co" and container.system == "XCP-ng 8.2.1"
    assert container.detail["Ref:1"] == "xvda disk Ref:1"


def test_chunks_with_their_hash_are_proven(archive: bytes) -> None:
    """The regions that hashes prove cover every stored chunk, and no region covers a chunk whose hash disagrees."""
    container, _ = open_bytes(archive)
    proven = [r for r in container.regions if r.grade == PROVEN]
    for g in container.guests:
        for p, n in zip(g.map.file_offset, g.map.length, strict=True):
            assert p < 0 or any(r.file_offset <= p and p + n <= r.file_offset + r.length for r in proven)
    flipped = bytearray(archive)
    at = member_offset(archive, "Ref:1/00000001") + 512 + 77
    flipped[at] ^= 1
    container, reader = open_bytes(bytes(flipped))
    assert failed(container) == {"xva.hashes"}
    assert not any(r.file_offset <= at < r.file_offset + r.length for r in container.regions if r.grade == PROVEN)
    guest = container.guests[0].map
    assert guest.state[np.searchsorted(guest.guest_offset, MIB)] == LOST
    got = read_guest(reader, guest)
    assert got[:MIB] + got[2 * MIB :] == A[:MIB] + A[2 * MIB :]


def test_lost_number_range_is_not_called_zero(archive: bytes) -> None:
    """Chunks that lay in a destroyed part of the archive are lost, while chunks the exporter left out are holes."""
    data = bytearray(archive)
    start, end = member_offset(archive, "Ref:1/00000001"), member_offset(archive, "Ref:1/00000006")
    data[start:end] = random.Random(3).randbytes(end - start)
    container, reader = open_bytes(bytes(data))
    guest = container.guests[0].map
    got = read_guest(reader, guest)
    lost = guest.state == LOST
    assert (int(guest.guest_offset[lost][0]), int(guest.length[lost].sum())) == (MIB, 4 * MIB)
    # one member of length 0 was lost with them: the disk's size proves it, and the chunks behind are placed right
    assert got[:MIB] + got[5 * MIB :] == A[:MIB] + A[5 * MIB :]
    assert {"xva.breaks", "xva.places"} <= failed(container)


@pytest.mark.parametrize("shift", (4096, 8192, 1024, 65536))
def test_host_metadata_inside_a_chunk_is_cut_out(archive: bytes, shift: int) -> None:
    """Foreign blocks inside a chunk are found by the chunk's hash, and the disk is exact."""
    at = (member_offset(archive, "Ref:1/00000001") + 300_000) // 4096 * 4096
    data = archive[:at] + random.Random(4).randbytes(shift) + archive[at:]
    container, reader = open_bytes(data)
    assert [read_guest(reader, g.map) for g in container.guests] == [A, B]
    assert failed(container) == {"xva.breaks"}


def test_host_hole_inside_a_chunk_is_put_back(tmp_path: Path) -> None:
    """Zeros that the host's file system did not store are found by the chunk's hash."""
    guest = bytearray(A)
    write_xva(tmp_path / "a.xva", {"Ref:1": bytes(guest)})
    place = member_offset((tmp_path / "a.xva").read_bytes(), "Ref:1/00000001") + 512
    hole = -(-(place + 200_000) // 4096) * 4096
    guest[MIB + hole - place : MIB + hole - place + 40960] = bytes(40960)
    write_xva(tmp_path / "a.xva", {"Ref:1": bytes(guest)})
    data = (tmp_path / "a.xva").read_bytes()
    container, reader = open_bytes(data[:hole] + data[hole + 40960 :])
    assert read_guest(reader, container.guests[0].map) == bytes(guest)


def test_unreadable_headers_are_gone_round(archive: bytes) -> None:
    """A chunk without its own header is found by its hash; one without hash header stays, unproven."""
    holes = ((member_offset(archive, "Ref:1/00000001"), 512), (member_offset(archive, "Ref:1/00000006.xxhash"), 512))
    container, reader = open_bytes(archive, holes)
    assert read_guest(reader, container.guests[0].map) == A
    assert read_guest(reader, container.guests[1].map) == B


def test_cut_off_archive(archive: bytes) -> None:
    """A truncated archive gives what is there; the rest is lost and said to be so."""
    end = member_offset(archive, "Ref:1/00000006") + 512 + 5000
    container, reader = open_bytes(archive[:end])
    assert {"xva.end", "xva.complete"} <= failed(container)
    got = read_guest(reader, container.guests[0].map)
    kept = 5 * MIB + 5000
    assert got[:kept] == A[:kept] and not any(got[kept:]) and not container.size_exact


def test_evidence_pins_and_rejects(archive: bytes) -> None:
    """ova.xml pins the archive's start, chunks give disk and number; names in text or with a wrong sum are nothing."""
    found = sweep(archive)
    assert [(e.kind, e.container_offset) for e in found if e.kind == HEADER_KIND] == [(HEADER_KIND, 0)]
    numbers = [(e.identity, e.value) for e in found if e.kind == CHUNK_KIND]
    assert ("Ref:1", 4) in numbers and ("Ref:10", 0) in numbers and all(e.guest_offset is None for e in found)
    text = (b"Ref:1/00000001\0" + b"lorem ipsum " * 50)[:512] + (b"ova.xml\0is a file" + b" " * 500)[:512]
    broken = bytearray(archive[member_offset(archive, "Ref:1/00000000") :][:512])
    broken[110] ^= 1
    assert sweep(text + bytes(broken) + bytes(4096)) == []


def test_orphan_without_its_start(archive: bytes) -> None:
    """Without ova.xml the chunk headers alone give every disk whose last chunk is there."""
    start = member_offset(archive, "Ref:1/00000000")
    data = random.Random(5).randbytes(8192) + archive[start:]
    (orphan,) = salvage(data)
    reader = view(orphan, data)
    check_map(orphan.container, reader)
    assert [read_guest(reader, g.map) for g in orphan.container.guests] == [A, B]
    assert failed(orphan.container) == {"xva.start"}


@pytest.mark.parametrize("inside", (4096 * 20, 512, 100, MIB))
def test_orphan_fragments_are_joined_by_a_hash(archive: bytes, inside: int) -> None:
    """Two runs in the wrong order become one archive when a chunk's hash spans both; all bytes are right."""
    start = member_offset(archive, "Ref:1/00000000")
    cut = (member_offset(archive, "Ref:1/00000004.xxhash") - 512 if inside == 100 else
           member_offset(archive, "Ref:1/00000001") + 512 + inside) // 512 * 512
    noise = random.Random(6).randbytes
    data = noise(512 * 8) + archive[cut:] + noise(512 * 8) + archive[start:cut] + noise(6 * MIB)
    orphans = salvage(data)
    if inside == 100:  # the break is at an empty member: nothing is proven, so nothing is joined
        assert len(orphans) == 2
        return
    (orphan,) = orphans
    reader = view(orphan, data)
    check_map(orphan.container, reader)
    assert [read_guest(reader, g.map) for g in orphan.container.guests] == [A, B]


def test_unproven_runs_stay_apart(archive: bytes) -> None:
    """Runs that no hash ties are not glued together because their numbers would fit."""
    first, second = member_offset(archive, "Ref:1/00000000"), member_offset(archive, "Ref:1/00000005")
    noise = random.Random(7).randbytes
    data = archive[second:] + noise(MIB) + archive[first:second] + noise(6 * MIB)
    assert len(salvage(data)) == 2


@pytest.mark.parametrize("xml", (
    b"", b"<value>", b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]>" + ova_xml({"Ref:1": 5}), b"<value><struct>" * 5000,
    ova_xml({"Ref:1": 1 << 62}), b"<array>" * 100 + b"</array>" * 100, b"</struct></value></name>",
    ova_xml({"Ref:1": MIB})[:-300],
))
def test_hostile_ova_xml(tmp_path: Path, xml: bytes) -> None:
    """No entity is expanded, nesting is bounded, absurd sizes are not believed; chunks are still read."""
    write_xva(tmp_path / "a.xva", {"Ref:1": A[:MIB]}, xml=xml)
    data = (tmp_path / "a.xva").read_bytes()
    if not xml:
        with pytest.raises(Damaged):
            FORMAT.open(BytesReader(data))
        return
    container, reader = open_bytes(data)
    assert read_guest(reader, container.guests[0].map) == A[:MIB]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("xva") / "s.xva"
    write_xva(path, {"Ref:1": A[: MIB + 3000], "Ref:2": B[:2000]}, silence=(1,))
    return path.read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6),
       cut=st.integers(0, 1 << 22))
def test_mutated_headers(small: bytes, edits: list[tuple[int, bytes]], cut: int) -> None:
    """Whatever stands in headers and ova.xml, only Damaged is raised and every map keeps its contract."""
    data = bytearray(small)
    headers = [i for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar"]
    for where, new in edits:
        at = headers[where % len(headers)] + where // 7 % 512
        data[at : at + len(new)] = new
        header = at // 512 * 512
        if where % 2:  # a sum that agrees with the lie
            data[header + 148 : header + 156] = b"        "
            data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    blob = bytes(data[: max(1024, len(data) - cut % 100_000)])
    reader = BytesReader(blob)
    try:
        check_map(FORMAT.open(reader), reader)
    except Damaged:
        pass
    for orphan in salvage(blob):
        check_map(orphan.container, view(orphan, blob))


def test_many_lone_headers_cost_little(archive: bytes) -> None:
    """A hundred thousand planted chunk headers with falling numbers are gone through in seconds."""
    one = bytearray(archive[member_offset(archive, "Ref:1/00000000") :][:512])
    blocks: list[bytes] = []
    for i in range(8000):
        one[6:14] = b"%08d" % (90_000_000 - i)
        one[148:156] = b"        "
        one[148:156] = b"%06o\0 " % sum(one)
        blocks.append(bytes(one))
    data = b"".join(blocks)
    for orphan in salvage(data):
        assert all(g.virtual_size <= 1 << 51 for g in orphan.container.guests)


