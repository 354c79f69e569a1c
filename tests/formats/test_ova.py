"""OVA: the members of the tar and what proves them. Written by Python's tarfile and GNU tar, disks by qemu-img."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, run
from tests.makers.ova import MAKERS, write_ova
from vmcarve.errors import Damaged
from vmcarve.formats.ova import FORMAT
from vmcarve.model import PROVEN, Container, Evidence
from vmcarve.source import BytesReader


def open_bytes(data: bytes, holes: tuple[tuple[int, int], ...] = ()) -> Container:
    reader = BytesReader(data, holes)
    container = FORMAT.open(reader)
    check_map(container, reader)
    return container


def failed(container: Container) -> set[str]:
    return {c.name for c in container.checks if not c.ok}


def sweep(data: bytes) -> list[Evidence]:
    assert FORMAT.confirm is not None
    (s,) = FORMAT.signatures
    reader = BytesReader(data)
    hits = [at for at in range(0, len(data) - 512, 512) if data[at + s.at : at + s.at + len(s.magic)] == s.magic]
    return [row for at in hits if (row := FORMAT.confirm(reader, at, s)) is not None]


FILES = {"a-disk1.vmdk": random.Random(1).randbytes(70_001), "b-disk2.vmdk": random.Random(2).randbytes(512 * 9)}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("ova") / "vm.ova"
    write_ova(path, FILES)
    return path.read_bytes()


@pytest.mark.parametrize("maker", sorted(MAKERS))
def test_disk_inside_is_where_it_is_said_to_be(tmp_path: Path, maker: str) -> None:
    """A VMDK cut out at the member's place and length is the one that qemu-img wrote."""
    raw = tmp_path / "g.raw"
    raw.write_bytes(random.Random(3).randbytes(300_000) + bytes(1 << 20) + b"end of disk".ljust(512))
    MAKERS[maker].make(raw, tmp_path / "vm.ova", 1)
    data = (tmp_path / "vm.ova").read_bytes()
    container = open_bytes(data)
    disk = next(m for m in container.members if m.name == "disk-0.vmdk")
    assert disk.kind == "tar" and disk.file_offset % 512 == 0
    (tmp_path / "d.vmdk").write_bytes(data[disk.file_offset : disk.file_offset + disk.length])
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", tmp_path / "d.vmdk", tmp_path / "d.raw")
    assert (tmp_path / "d.raw").read_bytes()[: raw.stat().st_size] == raw.read_bytes()
    assert not failed(container) and container.rebuild and container.guests == []
    assert container.system == "VMware" and container.names == ["machine 1"] and container.extension == "ova"


@pytest.mark.parametrize("style", (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
def test_members_as_tarfile_lists_them(tmp_path: Path, style: int) -> None:
    """Names, sizes and places agree with tarfile for all three kinds of header; the size ends at the end marker."""
    files = {**FILES, "długa nazwa " + "x" * 60 + ".vmdk": b"abc"} if style == tarfile.PAX_FORMAT else FILES
    write_ova(tmp_path / "vm.ova", files, style=style, manifest="SHA512")
    data = (tmp_path / "vm.ova").read_bytes()
    container = open_bytes(data)
    with tarfile.open(tmp_path / "vm.ova") as tar:
        want = [(m.name, m.size, m.offset_data) for m in tar.getmembers()]
    assert [(m.name, m.length, m.file_offset) for m in container.members] == want
    assert data[container.size - 1024 : container.size] == bytes(1024) and not any(data[container.size :])
    assert container.size_exact and not failed(container)
    with tarfile.open(fileobj=io.BytesIO(data[: container.size])) as tar:
        assert len(tar.getmembers()) == len(want)


def test_gnu_tar(tmp_path: Path) -> None:
    """An archive that GNU tar wrote from files is read the same way."""
    (tmp_path / "m.ovf").write_text('<?xml version="1.0"?><Envelope><File href="d.vmdk" size="5000"/></Envelope>')
    (tmp_path / "d.vmdk").write_bytes(bytes(range(250)) * 20)
    run("tar", "-C", tmp_path, "-cf", tmp_path / "m.ova", "m.ovf", "d.vmdk")
    container = open_bytes((tmp_path / "m.ova").read_bytes())
    assert [(m.name, m.length) for m in container.members][1:] == [("d.vmdk", 5000)] and not failed(container)


def test_large_sizes_are_understood(archive: bytes) -> None:
    """A size above 8 GiB in base-256 is read as tarfile writes it."""
    info = tarfile.TarInfo("big.vmdk")
    info.size = 20 << 30
    big = info.tobuf(tarfile.GNU_FORMAT)
    last = open_bytes(archive).members[-1]
    end = last.file_offset + -(-last.length // 512) * 512
    container = open_bytes(archive[:end] + big + bytes(4096))
    assert container.members[-1].length == 20 << 30 and container.size == end + 512 + 4096
    assert failed(container) == {"ova.end"}


def test_manifest_finds_the_changed_member(archive: bytes) -> None:
    """A changed byte fails the manifest and its member is not proven; the others are."""
    at = next(m.file_offset for m in open_bytes(archive).members if m.name == "a-disk1.vmdk")
    data = bytearray(archive)
    data[at + 5] ^= 1
    container = open_bytes(bytes(data))
    assert failed(container) == {"ova.manifest"}
    proven = [r for r in container.regions if r.grade == PROVEN]
    assert proven and not any(r.file_offset <= at + 5 < r.file_offset + r.length for r in proven)
    assert "a-disk1.vmdk" in next(c.detail for c in container.checks if c.name == "ova.manifest")


def test_unreadable_header_is_replaced_by_the_description(archive: bytes) -> None:
    """The .ovf names every file in order with its size: an unreadable tar header in between loses nothing."""
    whole = open_bytes(archive)
    at = next(m.file_offset for m in whole.members if m.name == "a-disk1.vmdk")
    container = open_bytes(archive, ((at - 512, 512),))
    assert container.members == whole.members and container.size == whole.size


def test_truncated(archive: bytes) -> None:
    """A cut archive says so and never claims bytes beyond what is there."""
    container = open_bytes(archive[:40_000])
    assert {"ova.end", "ova.files"} <= failed(container) and container.size == 40_000 and not container.size_exact


def test_only_real_archives_are_evidence(archive: bytes, tmp_path: Path) -> None:
    """One row at the archive's start; other tars, broken sums, .ovf names without an Envelope give none."""
    noise = random.Random(4).randbytes(1024)
    found = sweep(noise + archive)
    assert [(e.image_offset, e.container_offset) for e in found] == [(1024, 0)]
    broken = bytearray(archive)
    broken[3] ^= 1
    assert sweep(bytes(broken)) == []
    for name, data in (("x.ovf", b"no xml here"), ("x.txt", b"<Envelope/>")):
        with tarfile.open(tmp_path / "o.tar", "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        other = (tmp_path / "o.tar").read_bytes()
        assert sweep(other) == []
        if name != "x.ovf":
            with pytest.raises(Damaged):
                FORMAT.open(BytesReader(other))
    text = bytearray(b"vm.ovf".ljust(512, b" "))
    text[257:262] = b"ustar"
    assert sweep(bytes(text) + bytes(1024)) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=1, max_size=16)), min_size=1, max_size=6),
       fix=st.booleans(), cut=st.integers(0, 40_000))
def test_mutated(archive: bytes, edits: list[tuple[int, bytes]], fix: bool, cut: int) -> None:
    """Whatever stands in headers, description and manifest, only Damaged is raised and nothing lies outside."""
    data = bytearray(archive)
    for where, new in edits:
        at = where % (len(archive) if where % 3 == 0 else 6 * 512)
        data[at : at + len(new)] = new
        head = at // 512 * 512
        if fix and data[head + 257 : head + 262] == b"ustar":
            data[head + 148 : head + 156] = b"        "
            data[head + 148 : head + 156] = b"%06o\0 " % sum(data[head : head + 512])
    reader = BytesReader(bytes(data[: len(data) - cut]))
    try:
        container = FORMAT.open(reader)
    except Damaged:
        return
    check_map(container, reader)
    assert container.size <= reader.size and len(container.members) <= 4096
