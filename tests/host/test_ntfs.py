"""NTFS host: maps of live and deleted files on volumes that ntfs-3g wrote, judged by content, icat and ntfsinfo."""

from __future__ import annotations

import contextlib
import os
import random
import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcarve.host._ntfs_record import undo_fixups
from vmcarve.host.ntfs import HOST
from vmcarve.model import RUN_DATA, RUN_HOLE, RUN_UNWRITTEN, Evidence, HostVolume, Reader
from vmcarve.source import BytesReader, ImageSource

from .written import (
    MIB,
    append_in_turns,
    assert_disjoint,
    blank,
    by_name,
    check_file,
    check_free,
    content,
    mounted,
    needs,
    run,
    stamped,
    write_sparsely,
)

TOOLS = needs("mkfs.ntfs", "ntfs-3g", "ntfsinfo", "icat")
SIZE = 64 * MIB
START = 3 * MIB + 512  # the volume does not begin at the image's first byte


@dataclass(repr=False)  # contents are megabytes
class Scene:
    """A volume at START of an image, before (live) and after the deletions. contents: path -> bytes."""

    volume: Path  # the bare volume, after
    image: Path
    contents: dict[str, bytes]
    live: set[str]
    truth: dict[str, bytes]  # path -> what icat read while the file was live


def _icat(volume: Path, path: str, listing: str) -> bytes:
    number = re.search(rf"^r/r (\d+)-128-\d+:\t{re.escape(path)}$", listing, re.M)
    assert number, path
    return subprocess.run(["icat", str(volume), number[1]], capture_output=True, timeout=60, check=True).stdout


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Interleaved appends, random sparse writes into many records, a resident file, names in two deleted folders."""
    folder = tmp_path_factory.mktemp("ntfs")
    rng = random.Random(5)
    volume = blank(folder / "volume", SIZE)
    run("mkfs.ntfs", "-Q", "-F", "-c", "4096", "-L", "Prüfung", volume)
    contents: dict[str, bytes] = {}
    mount = folder / "mnt"
    with mounted(mount, "ntfs-3g", volume) as top:
        (top / "VMs" / "gone" / "deep").mkdir(parents=True)
        paths = [top / "VMs/a.vhdx", top / "VMs/gone/deep/b.vmdk", top / "live.vdi", top / "VMs/gone/c.img"]
        named = append_in_turns(paths, 2 * MIB, rng)
        contents |= {str(p.relative_to(top)): named[p.name] for p in paths}
        for tag, (name, share) in enumerate((("VMs/sparse.vmdk", 0.5), ("VMs/live sparse.vmdk", 0.4)), 20):
            contents[name] = write_sparsely(top / name, 24 * MIB, 16384, share, rng, tag)
        for name in ("tiny.txt", "VMs/gone/ünï ☃ name.txt"):
            (top / name).write_bytes(b"resident " + name.encode())
            contents[name] = b"resident " + name.encode()
        (top / "same-mount.img").write_bytes(stamped(40, 0, MIB))
        contents["same-mount.img"] = stamped(40, 0, MIB)
        with (top / "tail.img").open("wb") as file:  # valid data end before the size
            file.write(stamped(41, 0, 8192 + 512))
            file.truncate(MIB)
        contents["tail.img"] = stamped(41, 0, 8192 + 512) + bytes(MIB - 8704)
    listing = run("fls", "-rp", volume)
    truth = {path: _icat(volume, path, listing) for path in contents}
    with mounted(mount, "ntfs-3g", volume) as top:
        for name in ("same-mount.img", "VMs/a.vhdx", "VMs/sparse.vmdk"):
            os.remove(top / name)
        for name in ("b.vmdk",):
            os.remove(top / "VMs/gone/deep" / name)
        for name in ("c.img", "ünï ☃ name.txt"):
            os.remove(top / "VMs/gone" / name)
        (top / "VMs/gone/deep").rmdir()
        (top / "VMs/gone").rmdir()
    image = folder / "image"
    with image.open("wb") as out:
        out.seek(START)
        out.write(volume.read_bytes())
        out.truncate(START + SIZE + 5 * MIB)
    yield Scene(volume, image, contents, {"live.vdi", "VMs/live sparse.vmdk", "tiny.txt", "tail.img"}, truth)
    image.unlink()
    volume.unlink()


def opened(reader: Reader, offset: int = START, limit: int = SIZE) -> HostVolume:
    volume = HOST.open(reader, offset, limit)
    assert volume is not None
    return volume


def nameless(scene: Scene, reader: Reader, volume: HostVolume) -> str:
    """The identity of the deleted file whose name ntfs-3g wiped (it was in an extension record), found by content."""
    wanted = scene.contents["VMs/sparse.vmdk"]
    found = [f for f in volume.files() if f.deleted and not f.name and f.size == len(wanted)]
    assert len(found) == 1 and found[0].complete
    check_file(found[0], START + SIZE)
    assert content(reader, found[0]) == wanted
    return found[0].identity


@TOOLS
def test_live_and_deleted_files_read_back_whole(scene: Scene) -> None:
    """Every file, live or deleted, is found under its path and reads back through its runs, as icat read it before."""
    assert scene.truth == scene.contents, "icat disagrees with what was written"
    with ImageSource(scene.image) as reader:
        volume = opened(reader)
        for deleted in (False, True):
            found = by_name(volume, deleted)
            wanted = {n for n in scene.contents if (n in scene.live) != deleted} - {"VMs/sparse.vmdk"}
            assert wanted <= set(found), sorted(found)
            for name in wanted:
                file = found[name]
                check_file(file, START + SIZE)
                assert content(reader, file) == scene.contents[name], name
                assert file.complete and file.times["created"] > 1e9
        assert nameless(scene, reader, volume)


@TOOLS
def test_fixture_is_scrambled(scene: Scene) -> None:
    """The scene is worth its name: interleaved runs, several extension records, holes, unwritten tails."""
    with ImageSource(scene.image) as reader:
        files = list(opened(reader).files())
    by_path = {f.name: f for f in files}
    assert len(by_path["VMs/a.vhdx"].runs) > 3
    sparse = by_path["VMs/live sparse.vmdk"].runs
    assert (sparse[:, 3] == RUN_DATA).sum() > 300 and (sparse[:, 3] == RUN_HOLE).sum() > 100
    assert by_path["tiny.txt"].inline is not None
    volume = scene.volume.read_bytes()
    records = [m.start() for m in re.finditer(rb"FILE0\0", volume)]
    assert sum(volume[r + 32 : r + 38] != bytes(6) for r in records) >= 4, "no file needs extension records"


@TOOLS
def test_live_files_come_first_and_user_files_only(scene: Scene) -> None:
    """All live files precede all deleted ones, each of them once, and the volume's own files are not among them."""
    with ImageSource(scene.image) as reader:
        files = list(opened(reader).files())
    flags = [f.deleted for f in files]
    assert flags == sorted(flags) and len({f.identity for f in files}) == len(files)
    assert not [f.name for f in files if f.name.startswith("$") and "/" not in f.name]


@TOOLS
def test_free_is_what_ntfsinfo_counts(scene: Scene) -> None:
    """Free space equals the volume's own count, holds the deleted files' clusters and none of a live file."""
    told = run("ntfsinfo", "-m", scene.volume)
    clusters = int(re.search(r"Free Clusters:\s*(\d+)", told)[1])  # type: ignore[index]
    with ImageSource(scene.image) as reader:
        volume = opened(reader)
        free = volume.free()
        files = list(volume.files())
    check_free(free, START, START + SIZE)
    assert free[:, 1].sum() == clusters * 4096 and volume.block_size == 4096
    assert_disjoint(free, [f for f in files if not f.deleted])
    used = np.stack((free[:-1].sum(axis=1), free[1:, 0] - free[:-1].sum(axis=1)), axis=1)
    assert_disjoint(used, [f for f in files if f.deleted])
    serial = struct.unpack_from("<Q", scene.volume.read_bytes()[:512], 0x48)[0]
    assert volume.label == "Prüfung" and volume.uuid == f"{serial:016x}"


@TOOLS
def test_lost_bitmap_falls_back_on_claims(scene: Scene) -> None:
    """With $Bitmap unreadable, free space is what no record in use claims: nearly the same."""
    data = scene.image.read_bytes()
    whole = opened(BytesReader(data)).free()
    volume = opened(BytesReader(data))
    rows = volume._bitmap()._rows  # type: ignore[attr-defined]  # where to hurt it
    broken = opened(BytesReader(data, [(int(r[1]), int(r[2])) for r in rows]))
    free = broken.free()
    check_free(free, START, START + SIZE)
    assert abs(int(free[:, 1].sum()) - int(whole[:, 1].sum())) <= 8 * 4096
    assert_disjoint(free, [f for f in volume.files() if not f.deleted])


@TOOLS
@pytest.mark.parametrize("loss", ["boot", "record 0", "both", "record 0 and mirror"])
def test_redundant_copies_are_used(scene: Scene, loss: str) -> None:
    """The backup boot sector and $MFTMirr stand in for their originals; without record 0, the table is followed."""
    data = scene.image.read_bytes()
    mft, mirror = (START + 4096 * struct.unpack_from("<Q", data, START + at)[0] for at in (0x30, 0x38))
    holes = []
    if loss in ("boot", "both"):
        holes.append((START, 512))
    if loss != "boot":
        holes.append((mft, 1024))
    if loss == "record 0 and mirror":
        holes.append((mirror, 4096))
    wanted = {(f.identity, f.name, f.size, f.deleted) for f in opened(BytesReader(data)).files()}
    found = {(f.identity, f.name, f.size, f.deleted) for f in opened(BytesReader(data, holes)).files()}
    assert len(wanted) > 8 and found == wanted


@TOOLS
def test_the_mirrors_records_stand_for_lost_ones(scene: Scene) -> None:
    """Of $MFT nothing is left: where the log lies, the mirror still says."""
    data = scene.image.read_bytes()
    (mft,) = struct.unpack_from("<Q", data, START + 0x30)
    wanted = opened(BytesReader(data)).log()  # type: ignore[attr-defined]
    lost = BytesReader(data, [(START + 4096 * mft, 64 << 10)])
    assert len(wanted) and np.array_equal(opened(lost).log(), wanted)  # type: ignore[attr-defined]


@TOOLS
def test_missing_table_parts_cost_only_their_files(scene: Scene) -> None:
    """A hole over some records loses those files only; a map with a lost extension record is not called complete."""
    data = scene.image.read_bytes()
    reader = BytesReader(data)
    volume = opened(reader)
    table = volume._mft  # type: ignore[attr-defined]
    extension = [n for n in range(table.slots) if (r := table.record(n)) is not None and r.base and not r.in_use]
    at = int(table.runs[0, 1]) + extension[-1] * 1024
    broken = BytesReader(data, [(at, 1024)])
    before = {f.identity: f for f in volume.files()}
    after = {f.identity: f for f in opened(broken).files()}
    harmed = [k for k in before if before[k].complete and k in after and not after[k].complete]
    assert set(after) == set(before) and harmed == [nameless(scene, reader, volume)]
    partial, whole = after[harmed[0]], before[harmed[0]]
    rows = {tuple(r) for r in whole.runs.tolist()}
    assert len(partial.runs) < len(whole.runs)
    assert sum(tuple(r) in rows for r in partial.runs.tolist()) >= len(partial.runs) - 2


@TOOLS
def test_base_record_lost_leaves_the_extensions_map(scene: Scene) -> None:
    """When a deleted file's base record is gone, its extension records still give their part of the map."""
    data = scene.image.read_bytes()
    reader = BytesReader(data)
    volume = opened(reader)
    identity = nameless(scene, reader, volume)
    number = int(identity.split()[1].split("-")[0])
    table = volume._mft  # type: ignore[attr-defined]
    at = int(table.runs[0, 1]) + number * 1024
    orphans = [f for f in opened(BytesReader(data, [(at, 1024)])).files() if f.origin == "ntfs.extension"]
    assert len(orphans) == 1 and orphans[0].deleted and not orphans[0].complete
    wanted = scene.contents["VMs/sparse.vmdk"]
    for file_offset, image_offset, length, kind in orphans[0].runs.tolist():
        if kind == RUN_DATA:
            assert reader.read(image_offset, length) == wanted[file_offset : file_offset + length]
    assert (orphans[0].runs[:, 3] == RUN_DATA).sum() > 100


def _evidence(data: bytes, start: int = 0) -> list[Evidence]:
    places = [m.start() for m in re.finditer(rb"FILE0\0", data) if m.start() % 512 == 0]
    return [Evidence("ntfs.record", start + p, 1024, value=struct.unpack_from("<I", data, p + 0x2C)[0]) for p in places]


def _folded(rows: list[Evidence]) -> list[Evidence]:
    """Records that follow each other, numbered one by one, as one row: what the sweep's table holds."""
    out: list[Evidence] = []
    for row in rows:
        last = out[-1] if out else None
        if last and (last.image_offset + last.length, (last.value or 0) + last.count) == (row.image_offset, row.value):
            out[-1] = Evidence(last.kind, last.image_offset, last.length + 1024, value=last.value, count=last.count + 1)
        else:
            out.append(row)
    return out


@TOOLS
def test_copies_of_an_earlier_format_are_not_believed(scene: Scene) -> None:
    """The backup boot sector and $MFT of a volume that was formatted anew since are not a volume."""
    data = bytearray(scene.image.read_bytes())
    data[START : START + 8192] = bytes(8192)
    assert HOST.open(BytesReader(bytes(data)), START, SIZE) is not None
    data[START : START + 4] = b"XFSB"
    assert HOST.open(BytesReader(bytes(data)), START, SIZE) is None


@TOOLS
@pytest.mark.parametrize("gone", ["boot", "boot and record 0", "boot, rows folded"])
def test_carve_without_boot_sector(scene: Scene, gone: str) -> None:
    """Records that the sweep found give the same maps: through $MFT's own record, or by votes of the directories."""
    data = bytearray(scene.image.read_bytes())
    mft, mirror = (START + 4096 * struct.unpack_from("<Q", data, START + at)[0] for at in (0x30, 0x38))
    data[START : START + 8192] = bytes(8192)
    data[START + SIZE - 512 : START + SIZE] = bytes(512)
    if gone == "boot and record 0":
        data[mft : mft + 1024] = bytes(1024)
        data[mirror : mirror + 4096] = bytes(4096)
    reader = BytesReader(bytes(data))
    assert HOST.open(reader, START, SIZE) is None and HOST.carve is not None
    rows = _evidence(bytes(data))
    if gone == "boot, rows folded":
        rows, single = _folded(rows), len(rows)
        assert len(rows) < single / 4
    files = list(HOST.carve(reader, rows, START, SIZE))
    found = {f.name: f for f in files}
    for name in set(scene.contents) - {"VMs/sparse.vmdk"}:
        check_file(found[name], START + SIZE)
        assert content(reader, found[name]) == scene.contents[name], name
        assert found[name].complete and found[name].origin == "ntfs.carved.record"
    assert any(not f.name and content(reader, f) == scene.contents["VMs/sparse.vmdk"] for f in files)


@TOOLS
def test_carve_tells_a_guests_records_apart(scene: Scene) -> None:
    """Records of another volume (a guest's disk) inside the range do not become files of the host."""
    data = bytearray(scene.image.read_bytes())
    inner = blank(scene.volume.parent / "inner", 8 * MIB)
    run("mkfs.ntfs", "-Q", "-F", "-c", "4096", inner)
    data += bytes(START % 4096) + inner.read_bytes()
    inner.unlink()
    data[START : START + 8192] = bytes(8192)
    reader = BytesReader(bytes(data))
    assert HOST.carve is not None
    files = list(HOST.carve(reader, _evidence(bytes(data)), START, len(data) - START))
    assert {f.name for f in files if not f.deleted} == scene.live


@TOOLS
def test_valid_data_length(scene: Scene) -> None:
    """Bytes at or beyond the initialised size were never written: they read as zeros, not as what lies there."""
    data = bytearray(scene.image.read_bytes())
    volume = opened(BytesReader(bytes(data)))
    number = int(re.split("[ -]", by_name(volume)["live.vdi"].identity)[1])
    table = volume._mft  # type: ignore[attr-defined]
    attribute = next(a for a in table.record(number).attributes if a.kind == 0x80)
    at = int(table.runs[0, 1]) + number * 1024 + attribute.at + 56
    data[at : at + 8] = struct.pack("<Q", 70000)
    file = by_name(opened(BytesReader(bytes(data))))["live.vdi"]
    check_file(file, START + SIZE)
    written = file.runs[file.runs[:, 3] == RUN_DATA]
    assert written[-1, [0, 2]].sum() == 70000 and (file.runs[:, 3] == RUN_UNWRITTEN).any() and file.complete
    wanted = scene.contents["live.vdi"]
    assert content(BytesReader(bytes(data)), file) == wanted[:70000] + bytes(len(wanted) - 70000)


@TOOLS
def test_compressed_files_have_no_map(tmp_path: Path) -> None:
    """A compressed attribute is told, with its size, but never with runs that would read as its content."""
    volume = blank(tmp_path / "volume", 16 * MIB)
    run("mkfs.ntfs", "-Q", "-F", "-c", "4096", volume)
    with mounted(tmp_path / "mnt", "ntfs-3g", "-o", "compression", volume) as top:
        folder = top / "packed"
        folder.mkdir()
        os.setxattr(folder, "system.ntfs_attrib_be", struct.pack(">I", 0x800 | 0x10))
        (folder / "x.bin").write_bytes(b"again and again " * 65536)
    with ImageSource(volume) as reader:
        file = by_name(opened(reader, 0, 16 * MIB))["packed/x.bin"]
    assert file.size == MIB and not file.complete and len(file.runs) == 0 and file.inline is None


@TOOLS
@pytest.mark.parametrize("cluster", [512, 65536])
def test_other_cluster_sizes(tmp_path: Path, cluster: int) -> None:
    """Small and large clusters: maps and free space hold."""
    volume = blank(tmp_path / "volume", 24 * MIB)
    run("mkfs.ntfs", "-Q", "-F", "-c", str(cluster), volume)
    with mounted(tmp_path / "mnt", "ntfs-3g", volume) as top:
        wanted = append_in_turns([top / "a", top / "b"], MIB, random.Random(cluster))
        (top / "b").unlink()
    clusters = int(re.search(r"Free Clusters:\s*(\d+)", run("ntfsinfo", "-m", volume))[1])  # type: ignore[index]
    with ImageSource(volume) as reader:
        host = opened(reader, 0, 24 * MIB)
        found = by_name(host)
        assert host.block_size == cluster and host.free()[:, 1].sum() == clusters * cluster
        assert content(reader, found["a"]) == wanted["a"] and content(reader, found["b"]) == wanted["b"]
        assert found["b"].deleted and not found["a"].deleted


@TOOLS
def test_fragmented_table(tmp_path: Path) -> None:
    """$MFT itself in hundreds of pieces: its own attribute list is followed, and all of its files are found."""
    volume = blank(tmp_path / "volume", 12 * MIB)
    run("mkfs.ntfs", "-Q", "-F", "-c", "512", volume)
    small: list[str] = []
    with mounted(tmp_path / "mnt", "ntfs-3g", volume) as top:
        big = 0
        with contextlib.suppress(OSError):
            while True:
                (top / f"f{big}").write_bytes(stamped(1 + big % 200, 0, 4096))
                big += 1
        for k in range(0, big, 2):
            (top / f"f{k}").unlink()
        with contextlib.suppress(OSError):
            for k in range(4000):
                (top / f"g{k}").write_bytes(b"x" * 40)
                small.append(f"g{k}")
    with ImageSource(volume) as reader:
        host = opened(reader, 0, 12 * MIB)
        assert len(host._mft.runs) > 100, "fixture too kind"  # type: ignore[attr-defined]
        found = by_name(host, deleted=False)
        kept = [f"f{k}" for k in range(1, big - 1, 2)]
        assert set(found) >= {*small, *kept}
        assert all(content(reader, found[n]) == stamped(1 + int(n[1:]) % 200, 0, 4096) for n in kept)


def test_torn_records_are_believed_up_to_the_tear() -> None:
    """A sector whose fixup does not match ends what may be believed; sound sectors get their bytes back."""
    record = bytearray(1024)
    record[:4] = b"FILE"
    struct.pack_into("<HH", record, 4, 0x30, 3)
    record[0x30:0x36] = b"\x07\x00AABB"
    record[510:512] = record[1022:1024] = b"\x07\x00"
    torn = bytearray(record)
    torn[1022] = 9
    rows = np.frombuffer(bytes(record + torn + bytes(1024)), np.uint8).reshape(3, 1024).copy()
    assert undo_fixups(rows).tolist() == [1024, 512, 0]
    assert bytes(rows[0, 510:512]) == b"AA" and bytes(rows[0, 1022:]) == b"BB" and bytes(rows[1, 510:512]) == b"AA"


def test_noise_is_no_volume() -> None:
    """Zeros, noise, an empty image and odd offsets are none of ours."""
    noise = random.Random(1).randbytes(MIB)
    for data in (b"", bytes(MIB), noise, noise[:512]):
        for offset, limit in ((0, len(data)), (512, 1 << 62), (-1, 5), (len(data), 512), (0, 0)):
            assert HOST.open(BytesReader(data), offset, limit) is None
            assert HOST.carve is not None and list(HOST.carve(BytesReader(data), [], offset, limit)) == []
    lies = [Evidence("ntfs.record", at, 1024, count=1 << 40, value=0) for at in (0, 512, MIB - 1, 1 << 60)]
    assert list(HOST.carve(BytesReader(noise), lies, 0, 1 << 61)) == []


@dataclass(repr=False)
class Metadata:
    """The bare volume's first part, and where its metadata is: (offset, length)."""

    volume: bytes
    places: list[tuple[int, int]]


@pytest.fixture(scope="module")
def metadata(scene: Scene) -> Metadata:
    data = scene.volume.read_bytes()[: 24 * MIB]
    records = [(m.start(), 1024) for m in re.finditer(rb"FILE0\0", data) if m.start() % 512 == 0]
    return Metadata(data, [(0, 512), *records])


@TOOLS
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_hostile_metadata(metadata: Metadata, data: st.DataObject) -> None:
    """Whatever boot sector and records say: no exception, sound maps, bounded work."""
    out = bytearray(metadata.volume)
    for _ in range(data.draw(st.integers(1, 12))):
        at, length = data.draw(st.sampled_from(metadata.places))
        # small places first: headers and attribute headers are what leads astray
        where = at + data.draw(st.integers(0, length - 8) | st.integers(0, min(length, 400) - 8))
        value = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
        count = data.draw(st.sampled_from([1, 1, 2, 8]))
        out[where : where + count] = bytes([value]) * count
    image = bytes(out)
    reader = BytesReader(image)
    host = HOST.open(reader, 0, len(image))
    files = [] if host is None else list(host.files())
    if host is not None:
        check_free(host.free(), 0, len(image))
    for file in files:
        check_file(file, 1 << 62)
