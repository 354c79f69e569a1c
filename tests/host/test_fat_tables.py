"""Allocation tables of FAT of which parts are lost."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from vmcarve.assemble.tails import Live
from vmcarve.filemap import FileMap, FileView
from vmcarve.host._fat_boot import parse_boot
from vmcarve.host._fat_chains import Heap, read_table
from vmcarve.host._fat_directory import continued
from vmcarve.host.fat import FatVolume, elsewhere, open_volume
from vmcarve.model import GUESSED, MISSING, RUN_DATA
from vmcarve.source import BytesReader

from .written import MIB, blank, fat_volume, needs, run

ENTRIES = 100_000
LENGTH = 4 * ENTRIES
FAT_TOOLS = needs("mkfs.vfat", "mcopy")


def test_what_is_lost_in_one_copy_is_read_from_the_other_and_the_rest_is_still_told() -> None:
    """Of two copies one has a hole, the other another one and ciphertext: only what both lack is not known."""
    rng = np.random.default_rng(1)
    table = np.arange(1, ENTRIES + 1, dtype="<u4")
    copies = bytearray(2 * table.tobytes())
    copies[LENGTH + 40960 : LENGTH + 81920] = rng.integers(0, 256, 40960, np.uint8).tobytes()
    view = FileView(BytesReader(bytes(copies)), FileMap.build([
        (0, 204800, 0, GUESSED, ""), (204800, 20480, -1, MISSING, ""),
        (225280, 2 * LENGTH - 225280 - 131072, 225280, GUESSED, ""), (2 * LENGTH - 131072, 131072, -1, MISSING, "")]))
    told = np.zeros(ENTRIES, np.uint32)
    for first, entries in read_table(view, [0, LENGTH], 28, Heap(0, 512, ENTRIES - 2)):
        if entries is not None:
            told[first : first + len(entries)] = entries
    assert (told[told > 0] == table[told > 0]).all()
    assert (told == table).all()
    second = dict(read_table(view, [LENGTH], 28, Heap(0, 512, ENTRIES - 2)))
    known = sum(len(e) for e in second.values() if e is not None)
    assert ENTRIES - 131072 // 4 - 2048 <= known <= ENTRIES - 131072 // 4


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """FAT32 with files in one run each."""
    return fat_volume(tmp_path_factory.mktemp("fat32"), "-F", "32", "-s", "1")


def opened(content: bytes, lost: float = 0.0) -> FatVolume:
    """The volume without the first part of both tables."""
    boot = parse_boot(content)
    assert boot is not None
    holes = [(boot.reserved + k * boot.table, int(boot.table * lost) // 512 * 512) for k in range(2) if lost]
    found = open_volume(BytesReader(content, holes), 0, len(content))
    assert isinstance(found, FatVolume)
    return found


@FAT_TOOLS
def test_files_whose_entries_are_lost_are_taken_for_one_run(volume: bytes) -> None:
    """As a guess, up to where another file begins; what the table still tells is no guess."""
    right = {f.name: f for f in opened(volume).live()}
    files = list(opened(volume, lost=1.0).live())
    assert {f.name.split("/")[-1] for f in files} == {n.split("/")[-1] for n in right} and len(files) == len(right)
    assert {str(f.runs.tolist()) for f in files} == {str(f.runs.tolist()) for f in right.values()}
    assert not any(f.complete or f.certain for f in files)
    certain = [f.certain for f in opened(volume, lost=0.25).live()]
    assert 0 < sum(certain) < len(certain)


@FAT_TOOLS
def test_a_chain_goes_on_in_one_run_where_the_table_is_lost(volume: bytes) -> None:
    """As a guess: of a file of which the first entries are left, not the others."""
    whole = opened(volume)
    large = next(f for f in whole.live() if f.name.endswith("large.bin"))
    first = int(large.runs[0, 1] - whole._heap.start) // 512 + 2
    boot = parse_boot(volume)
    assert boot is not None
    kept = (4 * first + 511) // 512 * 512 + 512  # of a table: some entries of the file are behind
    holes = [(boot.reserved + k * boot.table + kept, boot.table - kept) for k in range(2)]
    found = open_volume(BytesReader(volume, holes), 0, len(volume))
    assert isinstance(found, FatVolume)
    (same,) = [f for f in found.live() if f.identity == large.identity]
    assert same.runs.tolist() == large.runs.tolist()
    assert (same.origin, same.complete, same.certain) == ("fat.one-run", False, False)


@FAT_TOOLS
def test_files_are_named_wherever_their_directories_lie(volume: bytes) -> None:
    """Sectors in any order tell where the files of a volume begin; what two of them tell otherwise is left out."""
    right = {int(f.runs[0, 1]): f for f in opened(volume).live() if len(f.runs)}
    empty = opened(volume)
    start = empty._heap.start
    front, sectors = volume[:start], [volume[at : at + 512] for at in range(start, len(volume), 512)]
    random.Random(5).shuffle(sectors)
    bare = open_volume(BytesReader(front + bytes(len(volume) - start)), 0, len(volume))
    assert isinstance(bare, FatVolume) and not list(bare.live())
    told = list(elsewhere(bare, BytesReader(b"".join(sectors))))
    files = [f for f in told if f.size >= 0]
    found = {int(f.runs[0, 1]): f for f in files}
    assert len(found) == len(files) >= len(right) * 0.9
    assert all(f.runs.tolist() == right[at].runs.tolist() and f.size == right[at].size for at, f in found.items())
    listed = Live.of(bare, BytesReader(b"".join(sectors))).listed
    assert {int(f.runs[0, 1]) for f in listed if f.size >= 0} == found.keys()
    whole = Live.of(opened(volume), BytesReader(b"".join(sectors))).listed
    assert len({int(f.runs[0, 1]) for f in whole if len(f.runs)}) == sum(len(f.runs) > 0 for f in whole)
    one = next(i for i, s in enumerate(sectors) if s[:11] == b".          " and s[64 + 11] == 0x0F)
    other = bytearray(sectors[one])
    short = next(at for at in range(64, 512, 32) if other[at + 11] == 0x20)
    other[short + 28] ^= 1  # its size
    begin = start + (int.from_bytes(other[short + 26 : short + 28], "little") - 2) * 512
    again = list(elsewhere(bare, BytesReader(b"".join([*sectors, bytes(other)]))))
    assert {int(f.runs[0, 1]) for f in again if f.size >= 0} == found.keys() - {begin}


@FAT_TOOLS
def test_chains_that_no_entry_names_are_files_of_lost_size(volume: bytes) -> None:
    """Behind what is lost of the table they may be the end of something: there they are left out, or where one jumps to
    out of that (the root directory's) begins."""
    right = {int(f.runs[0, 1]): f for f in opened(volume).live() if len(f.runs)}
    alone = list(elsewhere(opened(volume), BytesReader(bytes(512))))
    assert all((f.size, f.certain) == (-1, False) for f in alone)
    chains = {int(f.runs[0, 1]): f.runs for f in alone}
    assert right.keys() <= chains.keys()
    for at, f in right.items():
        assert chains[at][:, 1].tolist() == f.runs[:, 1].tolist()
        assert chains[at][:, 2].sum() == -(-f.size // 512) * 512
    half = elsewhere(opened(volume, lost=0.25), BytesReader(bytes(512)))
    begins = {int(f.runs[0, 1]) for f in half}
    assert len(begins & chains.keys()) > 20 and len(begins - chains.keys()) <= 1


@FAT_TOOLS
def test_a_run_ends_where_another_file_begins(volume: bytes) -> None:
    boot = opened(volume)
    large = next(f for f in boot.live() if f.name.endswith("large.bin"))
    (_, at, length, kind), = large.runs.tolist()
    assert kind == RUN_DATA
    data = bytearray(volume)
    inside = (at + length // 2 - boot._heap.start) // 512 + 2
    other = next(f for f in boot.live() if f.name.endswith("d59/A file with a name that is long.txt"))
    entry = int(other.identity.split()[1], 16)
    data[entry + 26 : entry + 28], data[entry + 20 : entry + 22] = (inside & 0xFFFF).to_bytes(2, "little"), bytes(2)
    (cut,) = [f for f in opened(bytes(data), lost=1.0).live() if f.identity == large.identity]
    assert cut.runs.tolist() == [[0, at, (inside - 2) * 512 + boot._heap.start - at, RUN_DATA]]


@FAT_TOOLS
def test_clusters_that_go_on_with_a_directory_are_read_where_they_lie(tmp_path: Path) -> None:
    """Between them lie the files that were written when the one before was full."""
    rng = random.Random(2)
    folder = tmp_path / "tree" / "one folder"
    folder.mkdir(parents=True)
    for n in range(60):
        (folder / f"file {n} of some.bin").write_bytes(rng.randbytes(20_000 + 77 * n))
    run("mkfs.vfat", "-F", "32", "-s", "1", blank(tmp_path / "volume", 40 * MIB))
    run("mcopy", "-s", "-Q", "-i", tmp_path / "volume", folder, "::")
    content = (tmp_path / "volume").read_bytes()
    right = {f.identity: (f.size, f.runs.tolist()) for f in opened(content).live()}
    whole = {identity: told for identity, told in right.items() if len(told[1]) == 1}
    files = list(opened(content, lost=1.0).live())
    found = {f.identity: (f.size, f.runs.tolist()) for f in files}
    assert len(right) == 60 and len(whole) >= 40
    assert len(files) == len(found) and found.keys() == right.keys()
    assert all(found[identity] == told for identity, told in whole.items())


@pytest.mark.parametrize("size", [512, 4096])
def test_no_clusters_go_on_with_nothing(size: int) -> None:
    """A damaged table may leave none to look at."""
    assert continued(np.zeros((0, size), np.uint8)).tolist() == []
    assert continued(np.zeros((3, size), np.uint8)).tolist() == []
