"""An ext4 volume whose superblocks, descriptors and tables of inodes are lost: its journal has them."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from tests.host.loopfs import make, needs_loop
from vmcarve.assemble.begins import begun
from vmcarve.host import _ext_super as super_
from vmcarve.host._blocks import Overlay
from vmcarve.host._ext_begin import KIND, begins
from vmcarve.host.ext import open_volume
from vmcarve.model import Begin, Cut, Evidence
from vmcarve.source import BytesReader, ViewSource
from vmcarve.sweeper import sweep_image
from vmcarve.tables import EVIDENCE

pytestmark = needs_loop

KIB, MIB = 1024, 1 << 20
SIZE = 24 * MIB
UNIT = 64 * KIB
FILES = 40


@pytest.fixture(scope="module", params=["metadata_csum", "^metadata_csum,^64bit"])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A volume with a few directories and files; nothing of it was written twice."""
    disk = make(tmp_path_factory.mktemp("ext"), SIZE, "mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", request.param,
                "-E", "lazy_itable_init=0,lazy_journal_init=0", "-F")
    with disk.mounted() as point:
        for n in range(FILES):
            (point / f"folder{n % 4}").mkdir(exist_ok=True)
            (point / f"folder{n % 4}" / f"file{n}").write_bytes(random.Random(n).randbytes(50_000 + n))
    return disk.image.read_bytes()


def swept(content: bytes) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    sweep_image(ViewSource(BytesReader(content)), 0, batches.append, threads=1)
    return pa.Table.from_batches(batches, EVIDENCE)


def made_of(content: bytes, named: tuple[tuple[str, str], ...] = ()) -> list[Begin]:
    rows = [Evidence(**{k: v for k, v in r.items() if k not in ("source", "module")})
            for r in swept(content).to_pylist() if r["kind"] == KIND]
    assert rows
    return list(begins(BytesReader(content), rows, Cut(UNIT, named=named)))


def without_metadata(volume: bytes) -> bytes:
    """The volume without superblocks, descriptors, bitmaps and inodes, but for what its journal has."""
    out = bytearray(volume)
    sb = super_.find(BytesReader(volume), 0, len(volume))
    assert sb is not None
    groups = super_.Groups(BytesReader(volume), sb)
    for start, count in super_.metadata_runs(sb, groups).tolist():
        out[start * KIB : (start + count) * KIB] = bytes(count * KIB)
    return bytes(out)


def listed(made: Begin, content: bytes) -> dict[str, list[list[int]]]:
    blocks = {place // KIB: data for place, data in made.parts} | {1: made.data[KIB : 2 * KIB]}
    whole = open_volume(Overlay(BytesReader(content), 0, KIB, dict(blocks)), 0, len(content))
    assert whole is not None
    return {f.name: f.runs.tolist() for f in whole.files() if not f.deleted}


def test_the_files_of_a_volume_without_metadata_are_read_from_its_journal(volume: bytes) -> None:
    content = without_metadata(volume)
    assert open_volume(BytesReader(content), 0, len(content)) is None
    (made,) = made_of(content)
    right = open_volume(BytesReader(volume), 0, len(volume))
    assert right is not None
    assert made.identity == right.uuid
    assert made.size == right.size
    assert listed(made, content) == {f.name: f.runs.tolist() for f in right.files() if not f.deleted}
    assert len(listed(made, content)) == FILES


def test_a_transaction_that_units_cut_is_followed_by_its_sums(volume: bytes) -> None:
    """Units of 64 KiB in any order, as a guest's writes leave them; without sums only whole transactions count."""
    content = bytes(MIB) + without_metadata(volume) + bytes(MIB)
    order = np.random.default_rng(1).permutation(len(content) // UNIT)
    units = b"".join(content[n * UNIT : (n + 1) * UNIT] for n in order.tolist())
    (made,) = made_of(units)
    sums = super_.parse(volume[KIB : 2 * KIB], 0, SIZE)
    assert sums is not None
    (whole,) = made_of(content)
    if sums.checksums:
        assert made.parts == whole.parts
    assert 0 < len(made.parts) <= len(whole.parts)
    # a superblock's copy in the journal is older than what is written at each unmount
    assert all(volume[place : place + KIB] == data for place, data in made.parts if place != KIB)


def test_parts_come_behind_the_units(volume: bytes) -> None:
    """The volume begins as its journal says, and what else that has is at hand for where nothing lies."""
    content = without_metadata(volume)
    order = np.random.default_rng(2).permutation(len(content) // UNIT)
    units = b"".join(content[n * UNIT : (n + 1) * UNIT] for n in order.tolist())
    found = begun(BytesReader(units), UNIT, swept(units))
    assert len(found.parts) and found.begins.tolist() == [[0, len(units), 2 * KIB]]
    assert found.size == SIZE
    for guest, at, length in found.parts.tolist():
        assert at >= len(units)
        assert guest == KIB or found.reader.read(at, length) == volume[guest : guest + length]


def test_blocks_of_two_journals_are_told_apart_by_their_sums(volume: bytes) -> None:
    """Without sums nothing says whose a transaction is, and none is used."""
    other = bytearray(volume)
    at = volume.index(b"\xc0\x3b\x39\x98\0\0\0\x04")
    other[at + 0x30 : at + 0x40] = bytes(range(16))
    both = without_metadata(volume) + bytes(other[at : at + KIB])
    sb = super_.parse(volume[KIB : 2 * KIB], 0, SIZE)
    assert sb is not None
    found = made_of(both)
    assert [m.parts for m in found] == ([made_of(without_metadata(volume))[0].parts] if sb.checksums else [])


def test_a_journal_without_superblock_has_the_name_of_a_volume_that_is_told_elsewhere(volume: bytes) -> None:
    """Neither its superblock is left nor a copy of the volume's in it: a backup of that gives the name, and sums tell
    whether it is the journal's."""
    content = bytearray(without_metadata(volume))
    right = open_volume(BytesReader(volume), 0, len(volume))
    assert right is not None
    whole = made_of(bytes(content))[0].parts
    for at in range(0, len(content), KIB):
        journal = content[at : at + 8] == b"\xc0\x3b\x39\x98\0\0\0\x04"
        if journal or content[at + 0x38 : at + 0x3A] == b"\x53\xef":
            content[at : at + KIB] = bytes(KIB)
    assert made_of(bytes(content)) == []
    (made,) = made_of(bytes(content), (("ext", right.uuid),))
    assert [part for part in made.parts if part[0] != KIB] == [part for part in whole if part[0] != KIB]
    sb = super_.parse(volume[KIB : 2 * KIB], 0, SIZE)
    assert sb is not None
    other = made_of(bytes(content), (("ext", "00112233-4455-6677-8899-aabbccddeeff"),))
    assert (other == []) == sb.checksums
