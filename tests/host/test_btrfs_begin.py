"""A Btrfs volume whose first part is lost: its nodes tell what its superblock said."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from tests.helpers import run
from tests.host.written import needs
from vmcarve.assemble.begins import Appended, begun
from vmcarve.host import _btrfs_disk as disk
from vmcarve.host._btrfs_begin import begins
from vmcarve.host._btrfs_carve import KIND
from vmcarve.host._btrfs_stated import data_sums
from vmcarve.host.btrfs import open_volume
from vmcarve.model import Evidence
from vmcarve.source import BytesReader, ViewSource
from vmcarve.sweeper import sweep_image
from vmcarve.tables import EVIDENCE

pytestmark = needs("mkfs.btrfs")

MIB = 1 << 20


@pytest.fixture(scope="module", params=["--mixed", "--csum=xxhash", "--data=single"])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A volume of 128 MiB with a few files."""
    folder = tmp_path_factory.mktemp("btrfs")
    (folder / "tree").mkdir()
    for n in range(40):
        (folder / "tree" / f"file{n}").write_bytes(random.Random(n).randbytes(50_000 + n))
    with (folder / "volume").open("wb") as file:
        file.truncate(128 * MIB)
    run("mkfs.btrfs", "-q", request.param, "--rootdir", folder / "tree", folder / "volume")
    return (folder / "volume").read_bytes()


def swept(content: bytes) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    sweep_image(ViewSource(BytesReader(content)), 0, batches.append, threads=1)
    return pa.Table.from_batches(batches, EVIDENCE)


def evidence(content: bytes) -> list[Evidence]:
    return [Evidence(**{k: v for k, v in r.items() if k not in ("source", "module")})
            for r in swept(content).to_pylist() if r["kind"] == KIND]


def without_superblocks(volume: bytes, upto: int) -> bytes:
    """The volume without its first bytes and the copy at 64 MiB."""
    return bytes(upto) + volume[upto : 64 * MIB] + bytes(4096) + volume[64 * MIB + 4096 :]


@pytest.mark.parametrize("upto", [MIB, 5 * MIB])
def test_the_files_of_a_volume_without_superblocks_are_read(volume: bytes, upto: int) -> None:
    """Also without the first chunks, in which the chunk tree lies when it is small."""
    content = without_superblocks(volume, upto)
    assert open_volume(BytesReader(content), 0, len(content)) is None
    (made,) = begins(BytesReader(content), evidence(content))
    whole = open_volume(BytesReader(made.data + content[len(made.data) :]), 0, len(content))
    right = open_volume(BytesReader(volume), 0, len(volume))
    assert whole is not None and right is not None
    assert made.identity == whole.uuid == right.uuid
    found = {f.name: f.runs.tolist() for f in whole.live()}
    assert found == {f.name: f.runs.tolist() for f in right.live()}
    assert len(found) == 40
    assert all(at == place for at, place in made.stated)


def test_nodes_say_where_on_the_disk_the_volume_begins(volume: bytes) -> None:
    """Units of 1 MiB behind a partition table, the first of them lost, in another order."""
    gpt = bytes(MIB) + without_superblocks(volume, 5 * MIB)
    parts = [gpt[at : at + MIB] for at in range(0, len(gpt), MIB)]
    units = b"".join(parts[40:] + parts[:40])
    found = begun(BytesReader(units), MIB, swept(units))
    assert isinstance(found.reader, Appended)
    assert len(found.begins) and int(found.places.value.max()) >= 5 * MIB
    stated = [(int(p), int(v)) for p, v in zip(found.places.image_offset, found.places.volume_offset, strict=True)
              if 0 < v]
    assert stated
    assert all((v - p) % MIB == 0 for p, v in stated)


def test_without_a_root_nodes_lie_where_they_say_and_checksums_are_known(volume: bytes) -> None:
    """No node of the root tree is left: no file is listed, but the volume begins, and leaves tell what its data are."""
    content = without_superblocks(volume, 5 * MIB)
    others = [e for e in evidence(content) if e.value != 1]
    (made,) = begins(BytesReader(content), others, MIB)
    laid = made.data + content[len(made.data) :]
    whole, right = open_volume(BytesReader(laid), 0, len(laid)), open_volume(BytesReader(volume), 0, len(volume))
    assert whole is not None and right is not None
    assert made.identity == whole.uuid == right.uuid
    assert list(whole.live()) == []
    assert made.stated and all(at == place for at, place in made.stated)
    known, wanted = data_sums(BytesReader(laid), 0, len(laid)), data_sums(BytesReader(volume), 0, len(volume))
    assert (known is None) == (wanted is None)  # xxhash is not looked for
    if known is not None and wanted is not None:
        found, all_ = (dict(zip(sums.volume_offset.tolist(), sums.crc.tolist(), strict=True))
                       for sums in (known, wanted))
        assert found and found.items() <= all_.items()
        assert not known.current.any()


def test_nodes_that_no_chunk_has_tell_nothing(volume: bytes) -> None:
    content = without_superblocks(volume, 5 * MIB)
    others = [e for e in evidence(content) if e.value not in (1, 2, 3, 4, 11)]
    assert list(begins(BytesReader(content), others)) == []
    assert list(begins(BytesReader(bytes(8192)), [Evidence(KIND, 0, 4096, value=1, identity="00" * 16)])) == []


def test_block_groups_stand_in_for_the_chunks_where_none_is_doubled(volume: bytes) -> None:
    """Without the trees that map addresses: first chunks lie at their own ones, where there is one copy of each."""
    content = without_superblocks(volume, MIB)
    others = [e for e in evidence(content) if e.value not in (3, 4)]
    found = list(begins(BytesReader(content), others))
    right = open_volume(BytesReader(volume), 0, len(volume))
    assert right is not None
    names = {f.name: f.runs.tolist() for f in right.live()}
    doubled = any(len(c.copies) > 1 for c in right._chunks.all)  # type: ignore[attr-defined]
    assert len(found) == (0 if doubled else 1)
    for made in found:
        whole = open_volume(BytesReader(made.data + content[len(made.data) :]), 0, len(content))
        assert whole is not None
        assert {f.name: f.runs.tolist() for f in whole.live()} == names


def test_block_groups_stand_in_for_chunks_that_came_later(volume: bytes) -> None:
    """Of the tree of device extents only an older leaf is left, which names the first of the chunks."""
    content = bytearray(without_superblocks(volume, MIB))
    others = [e for e in evidence(bytes(content)) if e.value != 3]
    for at, size in [(e.image_offset + k * size, size) for e in others if e.value == 4
                     for size in [e.length // e.count] for k in range(e.count)]:  # fmt: skip
        node = memoryview(content)[at : at + size]
        kind = next(k for k in (disk.CRC32C, disk.XXHASH) if disk.checksum(k, node[32:]) == node[: len(
            disk.checksum(k, node[32:]))])  # fmt: skip
        first = next(i for i in range(8) if node[101 + 25 * i + 8] == 204)  # the first device extent
        node[96:100] = (first + 1).to_bytes(4, "little")
        check = disk.checksum(kind, node[32:])
        node[: len(check)] = check
    right = open_volume(BytesReader(volume), 0, len(volume))
    assert right is not None
    doubled = any(len(c.copies) > 1 for c in right._chunks.all)  # type: ignore[attr-defined]
    for made in begins(BytesReader(bytes(content)), others):
        whole = open_volume(BytesReader(made.data + bytes(content[len(made.data) :])), 0, len(content))
        assert whole is not None
        assert doubled or {f.name: f.runs.tolist() for f in whole.live()} == {
            f.name: f.runs.tolist() for f in right.live()}
        assert doubled or len(list(whole.live())) == 40
    assert doubled or len(list(begins(BytesReader(bytes(content)), others))) == 1
