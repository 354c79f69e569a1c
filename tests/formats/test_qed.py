"""QED: maps judged against qemu-img, the law that every cluster is named once, damage, hostile input."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import check_map, read_guest, run
from vmcarve.errors import Damaged
from vmcarve.formats.qed import FORMAT, SIGNATURES
from vmcarve.model import DATA, HOLE, LOST, UNALLOCATED, Container
from vmcarve.source import BytesReader

MIB = 1 << 20
SIZE = 12 * MIB  # three L2 tables of 4 MiB each at 4 KiB clusters and 2-cluster tables


def random_writes(path: Path, seed: int, count: int = 60) -> None:
    rng = random.Random(seed)
    commands: list[str] = []
    for number in range(count):
        at = rng.randrange(SIZE // 4096 - 3) * 4096
        verb = "write -z" if number % 6 == 5 else f"write -P {number % 250 + 1}"
        commands += ["-c", f"{verb} {at} {rng.choice((512, 4096, 12288))}"]
    run("qemu-io", "-f", "qed", *commands, path)


def make(path: Path, options: str = "cluster_size=4k,table_size=2", seed: int = 1) -> None:
    run("qemu-img", "create", "-q", "-f", "qed", "-o", options, path, str(SIZE))
    random_writes(path, seed)


def raw_of(path: Path) -> bytes:
    run("qemu-img", "convert", "-f", "qed", "-O", "raw", path, path.with_suffix(".out"))
    return path.with_suffix(".out").read_bytes()


def opened(path: Path) -> tuple[Container, BytesReader]:
    reader = BytesReader(path.read_bytes())
    container = FORMAT.open(reader)
    check_map(container, reader)
    return container, reader


def failed(container: Container) -> set[str]:
    return {c.name for c in container.checks if not c.ok}


@pytest.mark.parametrize("options", ["cluster_size=4k,table_size=2", "cluster_size=64k,table_size=4",
                                     "cluster_size=8k,table_size=16", "cluster_size=1M,table_size=2"])
def test_map(tmp_path: Path, options: str) -> None:
    """The map gives the guest that qemu-img reads, zero entries included, and the size is the file's."""
    path = tmp_path / "a.qed"
    make(path, options)
    container, reader = opened(path)
    guest = container.guests[0].map
    if "1M" not in options:
        assert (np.diff(guest.file_offset[guest.state == DATA]) < 0).any(), "fixture too kind"
    assert read_guest(reader, guest) == raw_of(path)
    assert (failed(container), container.size, container.size_exact) == (set(), reader.size, True)
    assert {r.grade for r in container.regions if r.kind == "qed.l2"} == {"proven"}


def test_zero_entries(tmp_path: Path) -> None:
    """A zero entry hides the parent; a free one does not."""
    path, base = tmp_path / "a.qed", tmp_path / "base.raw"
    base.write_bytes(random.Random(1).randbytes(SIZE))
    run("qemu-img", "create", "-q", "-f", "qed", "-o", "cluster_size=4k,table_size=2", "-F", "raw", "-b", base, path)
    random_writes(path, 2)
    container, reader = opened(path)
    guest = container.guests[0].map
    assert (guest.state == HOLE).any() and (guest.state == UNALLOCATED).any()
    assert read_guest(reader, guest, base.read_bytes()) == raw_of(path)
    assert container.parent is not None and container.parent.name == str(base)
    assert container.parent.detail == {"format": "raw"}
    data = bytearray(path.read_bytes())
    for patch in container.patches:
        data[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
    assert str(base).encode() not in data
    base.unlink()
    path.write_bytes(data)
    assert raw_of(path) == read_guest(reader, guest)
    assert opened(path)[0].parent is None


@pytest.mark.parametrize("table", [1, 4, 16])
def test_fresh_container(tmp_path: Path, table: int) -> None:
    """A container without data is header and L1, also with the table size that QEMU refuses to open."""
    path = tmp_path / "a.qed"
    run("qemu-img", "create", "-q", "-f", "qed", "-o", f"table_size={table}", path, "12M", check=table > 1)
    container, reader = opened(path)
    assert (container.size, failed(container)) == ((1 + table) * 65536, set())
    assert container.size == reader.size


class Blob(bytes):
    """Bytes that do not fill the screen when a test fails."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("qed") / "a.qed"
    make(path)
    return Blob(path.read_bytes())


def l2_of(data: bytes, index: int) -> int:
    return struct.unpack_from("<Q", data, struct.unpack_from("<Q", data, 40)[0] + 8 * index)[0]


def test_missing_and_overwritten_tables_are_lost(sample: bytes) -> None:
    """A lost or overwritten L2 loses its 4 MiB and nothing else, and nothing wrong is said."""
    whole = FORMAT.open(BytesReader(sample))
    told = read_guest(BytesReader(sample), whole.guests[0].map)
    at = l2_of(sample, 1)
    noise = random.Random(1).randbytes(8192)
    text = b"not a table at all ".ljust(8192, b".")
    for fill, holes in ((sample[at : at + 8192], [(at, 8192)]), (noise, []), (text, []), (bytes(8192), [])):
        reader = BytesReader(sample[:at] + fill + sample[at + 8192 :], holes=holes)
        container = FORMAT.open(reader)
        check_map(container, reader)
        guest = container.guests[0].map
        lost = guest.state == LOST
        assert guest.guest_offset[lost].tolist() == [4 * MIB] and guest.length[lost].tolist() == [4 * MIB]
        assert "qed.every-cluster-once" in failed(container)
        mine = read_guest(reader, guest)
        assert mine[: 4 * MIB] == told[: 4 * MIB] and mine[8 * MIB :] == told[8 * MIB :]


@pytest.mark.parametrize("what", ["outside", "header", "table", "twice", "unaligned"])
def test_impossible_entry_is_lost(sample: bytes, what: str) -> None:
    """An entry that points outside, into metadata, at another's cluster or breaks the format is LOST, with a check."""
    at = l2_of(sample, 0)
    words = list(struct.unpack_from("<1024Q", sample, at))
    used = [i for i, w in enumerate(words) if w > 1]
    words[used[0]] = {"outside": 1 << 40, "header": 4096, "table": at, "twice": words[used[1]], "unaligned": 2}[what]
    reader = BytesReader(sample[:at] + struct.pack("<1024Q", *words) + sample[at + 8192 :])
    container = FORMAT.open(reader)
    check_map(container, reader)
    guest = container.guests[0].map
    lost = {int(g) // 4096 for g in guest.guest_offset[guest.state == LOST]}
    assert used[0] in lost and (used[1] in lost) == (what == "twice")
    assert int(guest.length[guest.state == LOST].sum()) <= 2 * 4096 and len(failed(container)) >= 2


def test_confirm(sample: bytes) -> None:
    """A header pins the container's first byte; a bare magic is no evidence."""
    assert FORMAT.confirm is not None
    found = FORMAT.confirm(BytesReader(bytes(1024) + sample), 1024, SIGNATURES[0])
    assert found is not None
    assert (found.kind, found.image_offset, found.container_offset, found.value) == ("qed.header", 1024, 0, SIZE)
    for rest in (b"", bytes(504), b"\xff" * 504, b" some text " * 50, random.Random(3).randbytes(504)):
        assert FORMAT.confirm(BytesReader(SIGNATURES[0].magic + rest), 0, SIGNATURES[0]) is None


@pytest.mark.parametrize("at, width, value", [
    (4, 4, 0), (4, 4, 4097), (4, 4, 1 << 27), (8, 4, 3), (8, 4, 32), (12, 4, 0), (12, 4, 0xFFFFFFFF), (16, 8, 8),
    (40, 8, 0), (40, 8, 4097), (40, 8, 1 << 63), (48, 8, 1), (48, 8, 1 << 63), (16, 8, 1),
])
def test_header_field_out_of_bounds(sample: bytes, at: int, width: int, value: int) -> None:
    """Each field is bounded, and the refusal names it."""
    data = bytearray(sample)
    data[at : at + width] = value.to_bytes(width, "little")
    with pytest.raises(Damaged) as caught:
        FORMAT.open(BytesReader(data))
    assert caught.value.field is not None
    assert FORMAT.confirm is not None and FORMAT.confirm(BytesReader(data), 0, SIGNATURES[0]) is None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_containers_never_break_the_contract(sample: bytes, pick: st.DataObject) -> None:
    """Whatever bytes of header and tables say, open gives a lawful map or Damaged."""
    data = bytearray(sample)
    spots = [(r.file_offset, min(r.length, 8192)) for r in FORMAT.open(BytesReader(sample)).regions]
    spots.append((0, 64))
    for _ in range(pick.draw(st.integers(1, 4))):
        start, length = pick.draw(st.sampled_from(spots))
        at = start + pick.draw(st.integers(0, length - 1))
        patch = pick.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(
            [b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f", b"\0\x10" + bytes(6)])))
        data[at : at + len(patch)] = patch
    reader = BytesReader(bytes(data[: len(sample)]), holes=pick.draw(st.lists(st.sampled_from(spots[1:3]), max_size=1)))
    try:
        container = FORMAT.open(reader)
    except Damaged:
        return
    check_map(container, reader)
    assert container.size < 1 << 63
