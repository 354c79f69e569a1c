"""The corpus is what it says: guests repeat, the truth is where it claims, the scorer tells right from wrong."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benches import rows
from benches.recall import bound
from tests.corpus import SCENES, CorpusError, decoys, harm, lay, make, payload, score, scoring, survival, work
from tests.corpus.bare import cut
from tests.corpus.containers import QemuMaker, discover
from tests.corpus.disks import Plan
from tests.corpus.guests import GuestSpec, make_guest
from tests.corpus.hosts import HostSpec
from tests.corpus.magics import MAGICS
from tests.corpus.scene import ALL, HEADS, Scene, plans_for, slug
from tests.corpus.sparse import BLOCK, ZERO_HASH, block_hashes, copy_into, new_sparse, nonzero_runs, sha256
from tests.corpus.tools import no_mounts_because
from tests.corpus.truth import IMAGE, ORIGINALS, load_hashes, load_truth

WHY = no_mounts_because()
needs_root = pytest.mark.skipif(WHY is not None, reason=f"loop mounts: {WHY}")

SMALL = Scene(
    "small", "one disk", HostSpec("ext4"), (Plan("one", "qcow2/64k", GuestSpec(volume_mib=16)),)
)


def make_small(monkeypatch: pytest.MonkeyPatch, out: Path, **changes: Any) -> Path:
    """A scene of one small disk, changed as told."""
    monkeypatch.setitem(SCENES, "small", replace(SMALL, **changes))
    make("small", out, seed=3)
    return out


def perfect_case(scene: Path, case: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of a case that recovered every file byte for byte from where the truth says that it lies."""
    disks, extents = [], []
    (case / "disks").mkdir(parents=True)
    for number, disk in enumerate(load_truth(scene)["disks"]):
        name = Path(disk["host_path"]).name
        shutil.copy(scene / ORIGINALS / name, case / "disks" / name)
        disks.append({
            "disk_id": f"d{number}", "format": disk["format"], "virtual_size": disk["virtual_size"], "exact": True,
            "container_size": disk["container_size"], "deleted": disk["deleted"], "names": [name],
            "path": f"disks/{name}", "sha256": disk["container_sha256"],
        })  # fmt: skip
        for file_offset, image_offset, length, _ in disk["extents"]:
            extents.append({
                "disk_id": f"d{number}", "space": "container", "offset": file_offset, "length": length, "source": 0,
                "image_offset": image_offset, "encoding": "plain", "grade": "supported", "rule": "truth",
            })  # fmt: skip
    return disks, extents


def write_case(case: Path, disks: list[dict[str, Any]], extents: list[dict[str, Any]]) -> None:
    """Write both tables, with the types that hold even where a column is empty."""
    text, number, flag = pa.string(), pa.int64(), pa.bool_()
    columns = {
        "disks": {"disk_id": text, "format": text, "virtual_size": number, "container_size": number, "exact": flag,
                  "deleted": flag, "names": pa.list_(text), "path": text, "sha256": text},
        "extents": {"disk_id": text, "space": text, "offset": number, "length": number, "source": number,
                    "image_offset": number, "encoding": text, "grade": text, "rule": text},
    }  # fmt: skip
    for name, content in (("disks", disks), ("extents", extents)):
        table = pa.Table.from_pylist(content, schema=pa.schema(list(columns[name].items())))
        with pa.OSFile(str(case / f"{name}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)


def test_payload_repeats() -> None:
    """Equal keys give equal files, other keys others."""
    first, again, other = (list(payload.files(key, 1 << 20)) for key in ("a", "a", "b"))
    assert first == again
    both = {content for _, content in first} & {content for _, content in other}
    assert len(both) <= len(first) // 5, "a machine has equal files, but not many"


def test_an_offline_guest_repeats_to_the_byte(tmp_path: Path) -> None:
    """A guest that is made without mounts follows from its key alone."""
    sums = []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        sums.append(sha256(make_guest(GuestSpec(volume_mib=12), "key", tmp_path / folder, mounts=False).raw))
    assert sums[0] == sums[1]


@needs_root
@pytest.mark.parametrize("kind", ["ntfs", "xfs", "btrfs"])
def test_a_mounted_guest_has_its_files(kind: str, tmp_path: Path) -> None:
    """The recognisable text of a guest lies in its raw disk, and two guests differ."""
    spec = GuestSpec(kind, "mbr", 32)
    guests = [make_guest(spec, key, tmp_path) for key in ("one", "two")]
    for guest in guests:
        content = guest.raw.read_bytes()
        assert f"This is the disk called {guest.key}.".encode() in content
        assert content[510:512] == b"\x55\xaa"
    assert sha256(guests[0].raw) != sha256(guests[1].raw)


def test_sparse_hashes_equal_naive_ones(tmp_path: Path) -> None:
    """Hashing by data runs gives what hashing every block gives, at odd sizes too."""
    path = new_sparse(tmp_path / "file", 40 * BLOCK + 700)
    with path.open("r+b") as file:
        for at in (0, 7 * BLOCK - 3, 40 * BLOCK + 699):
            file.seek(at)
            file.write(b"x")
    found = block_hashes(path, path.stat().st_size)
    assert np.flatnonzero(found != ZERO_HASH).tolist() == [0, 6, 40]
    copy = new_sparse(tmp_path / "copy", path.stat().st_size)
    copy_into(path, copy)
    assert sha256(copy) == sha256(path)
    assert (block_hashes(copy, copy.stat().st_size) == found).all()


def test_nonzero_runs_are_whole_units() -> None:
    """Runs begin and end at units, the last one at the end of the bytes."""
    assert list(nonzero_runs(b"\0" * 10 + b"x" + b"\0" * 5 + b"y", 4)) == [(8, 12), (16, 17)]


def test_fragments_cover_a_file_once(tmp_path: Path) -> None:
    """Cut fragments follow each other without gap or overlap, at block boundaries."""
    path = new_sparse(tmp_path / "file", 3 * BLOCK * 100 + 5)
    parts = cut(path, 16 * BLOCK, payload.random.Random(1))
    assert len(parts) > 5
    assert [at for _, at, _ in parts[1:]] == [at + length for _, at, length in parts[:-1]]
    assert parts[-1][1] + parts[-1][2] == path.stat().st_size
    assert all(at % BLOCK == 0 for _, at, _ in parts)


def test_decoys_hold_every_magic(tmp_path: Path) -> None:
    """The decoy image has each magic somewhere, and no disk in its truth."""
    make("decoys", tmp_path / "decoys")
    content = (tmp_path / "decoys" / IMAGE).read_bytes()
    assert [what for what, _, magic in MAGICS if magic not in content] == []
    assert load_truth(tmp_path / "decoys")["disks"] == []
    assert len(content) < decoys.BUDGET


def test_a_few_seeds_use_every_maker_of_a_pool() -> None:
    """Disks are drawn in turn, so that five seeds leave out hardly any kind, and equal seeds draw the same."""
    scene = SCENES["braided-ext4"]
    assert scene.pool is not None
    drawn = {plan.maker for seed in range(11, 16) for plan in plans_for(scene, seed)}
    assert len(drawn) >= 0.6 * len(scene.pool.makers)
    assert {plan.maker for seed in range(11, 31) for plan in plans_for(scene, seed)} == set(scene.pool.makers)
    assert plans_for(scene, 11) == plans_for(SCENES["braided-ext4"], 11)


@pytest.mark.parametrize(
    ("extents", "shape", "counts"),
    [
        ([(0, 80, 40, "")], lay.ONE_RUN, {"pieces": 1}),
        ([(0, 80, 8, ""), (16, 96, 8, "")], lay.IN_PLACE, {"pieces": 1, "in_place": 1}),
        ([(0, 80, 8, ""), (16, 88, 8, "")], lay.PACKED, {"pieces": 2, "packed": 1}),
        ([(0, 80, 8, ""), (8, 92, 8, "")], lay.METADATA, {"pieces": 2, "metadata": 1}),
        ([(0, 80, 8, ""), (8, 100, 8, "")], lay.GAPS, {"pieces": 2, "gaps": 1}),
        ([(0, 80, 8, ""), (8, 200, 8, "")], lay.FRAGMENTED, {"pieces": 2, "jumps": 1, "backward": 0}),
        ([(0, 80, 8, ""), (8, 40, 8, "")], lay.FRAGMENTED, {"pieces": 2, "jumps": 1, "backward": 1}),
    ],
)
def test_breaks_are_told_apart(extents: list[Any], shape: str, counts: dict[str, int]) -> None:
    """Each kind of break counts as itself; other files lie at 150, blocks of the host's own at 88."""
    found = lay.lay_of(extents, others=[(150, 8)], own=[(88, 4)])
    assert found.shape == shape
    assert {name: getattr(found, name) for name in counts} == counts


def test_a_disk_in_several_files_lies_as_the_worst_of_them() -> None:
    whole, broken = lay.lay_of([(0, 80, 40, "")]), lay.lay_of([(0, 80, 8, ""), (8, 40, 8, "")])
    assert lay.hardest([whole.to_json(), broken.to_json(), {}]) == lay.FRAGMENTED
    assert lay.hardest([whole.to_json(), {}]) == lay.ONE_RUN


def test_harm_takes_what_it_says() -> None:
    """Ranges of each kind lie in the file and take the share that they are named for; holes are left alone."""
    size = 40 << 20
    shares = {kind: sum(end - start for start, end in harm.ranges(size, kind)) / size for kind in harm.KINDS
              if kind != harm.CUT}  # fmt: skip
    assert shares[harm.FIRST] * size == 1 << 20
    assert shares[harm.TENTH] == pytest.approx(0.1)
    assert shares[harm.STRIDED] == pytest.approx(0.3)
    assert harm.placed([(0, 1000, 10, ""), (20, 5000, 10, ""), (40, 9000, 9, "unwritten")], 5, 45) == [
        (1005, 5), (5000, 10)
    ]  # fmt: skip


def test_every_maker_is_in_a_scene() -> None:
    """No container that can be made is left out of the scenes."""
    used = {plan.maker for scene in SCENES.values() for plan in scene.plans}
    assert set(discover()) - used == set()


def test_random_writes_leave_blocks_out_of_order(tmp_path: Path) -> None:
    """A VDI written in a guest's order has a block map that is not sorted; a reader that ignores it would fail."""
    guest = make_guest(GuestSpec(volume_mib=24), "scrambled", tmp_path, mounts=False)
    maker = QemuMaker("vdi", "dynamic", ".vdi", "vdi", orders=("random",))
    maker.make(guest.raw, tmp_path / "disk.vdi", 5)
    head = (tmp_path / "disk.vdi").read_bytes()[:4096]
    at, blocks = int.from_bytes(head[340:344], "little"), int.from_bytes(head[384:388], "little")
    table = np.frombuffer(head[at : at + 4 * blocks], "<u4")
    used = table[table < 0xFFFFFFFE]
    assert len(used) > 8
    assert used.tolist() != sorted(used.tolist()), "fixture too kind"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "ntfs", "btrfs", "fat32"])
@pytest.mark.parametrize("wiped", ["", HEADS, ALL])
def test_truth_is_where_it_says(kind: str, wiped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After deletion (and wiping) the image still has the container's bytes at the recorded extents."""
    if WHY and kind not in ("ext4", "fat32"):
        pytest.skip(f"loop mounts: {WHY}")
    host = HostSpec(kind, "gpt" if kind == "xfs" else "none")
    scene = make_small(monkeypatch, tmp_path / "scene", host=host, wiped=wiped)
    (disk,) = load_truth(scene)["disks"]
    assert disk["deleted"] is True and disk["intact"] is True
    rebuilt = new_sparse(tmp_path / "rebuilt", disk["container_size"])
    with (scene / IMAGE).open("rb") as image, rebuilt.open("r+b") as file:
        for file_offset, image_offset, length, mark in disk["extents"]:
            assert mark in ("", "unwritten")
            image.seek(image_offset)
            file.seek(file_offset)
            file.write(image.read(length) if not mark else bytes(length))
    assert sha256(rebuilt) == disk["container_sha256"]
    assert len(load_hashes(scene, disk["guest_hashes"])) == disk["virtual_size"] // BLOCK


def test_a_perfect_case_scores_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte-equal files with right maps are exact, with full recall and no wrong byte."""
    scene = make_small(monkeypatch, tmp_path / "scene", offline=True)
    write_case(tmp_path / "case", *perfect_case(scene, tmp_path / "case"))
    result = score(tmp_path / "case", scene)
    (disk,) = result["disks"]
    assert (disk["exact_by"], disk["recall"], disk["wrong_output_bytes"]) == ("bytes", 1.0, 0)
    assert (
        disk["wrong_by_grade"]["supported"]["wrong"] == 0 and disk["wrong_by_grade"]["supported"]["claimed"] > 1 << 20
    )
    assert result["total"]["false_disks"] == 0


def test_a_wrong_map_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims shifted by a block are wrong bytes of their grade, and the guest read through them loses recall."""
    scene = make_small(monkeypatch, tmp_path / "scene", offline=True)
    disks, extents = perfect_case(scene, tmp_path / "case")
    disks[0].update(path=None, sha256=None)
    last = max(extents, key=lambda row: row["length"])
    last.update(image_offset=last["image_offset"] + BLOCK, grade="guessed")
    write_case(tmp_path / "case", disks, extents)
    (disk,) = score(tmp_path / "case", scene)["disks"]
    assert disk["found"] and not disk["exact"]
    assert disk["wrong_by_grade"]["guessed"]["wrong"] > 0
    assert disk["wrong_by_grade"].get("supported", {"wrong": 0})["wrong"] == 0
    assert disk["recall"] is not None and disk["recall"] < 1


def test_a_container_is_judged_by_its_own_file() -> None:
    """Disks are paired by their guests; a container with another disk's guest is still the file that begins there."""
    def state(name: str, fmt: str, place: int) -> scoring.State:
        none = np.zeros(0, np.bool_)
        disk = {"name": name, "format": fmt, "files": [{"extents": [[0, place, BLOCK, ""], [BLOCK, 0, BLOCK, ""]]}]}
        return scoring.State(name, disk, None, None, 0, np.zeros(0, np.uint64), none, none)

    states = [state("a", "vhdx", 8 * BLOCK), state("b", "vhd", 40 * BLOCK)]
    for fmt, place, owner in (("vhdx", 8, "a"), ("vhdx", 0, "b"), ("vhdx", 40, "b"), ("vhd", None, "b")):
        row = {"format": fmt, "header_offset": None if place is None else place * BLOCK}
        assert scoring.container_of(states, states[1], row)["name"] == owner, (fmt, place)


@needs_root
def test_what_was_overwritten_in_place_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right map over bytes that were encrypted since gives wrong bytes, counted as such and as harmed."""
    scene = make_small(monkeypatch, tmp_path / "scene", harm=harm.FIRST)
    disks, extents = perfect_case(scene, tmp_path / "case")
    write_case(tmp_path / "case", disks, extents)
    (disk,) = score(tmp_path / "case", scene)["disks"]
    tally = disk["wrong_by_grade"]["supported"]
    assert 0 < tally["wrong"] == tally["wrong_harmed"] <= 1 << 20
    assert disk["harmed_unsaid_bytes"] <= disk["harmed_bytes"] == 1 << 20


def test_the_score_says_what_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recoverable bytes are counted by the grade that the case gives their blocks; the rest is missing."""
    scene = make_small(monkeypatch, tmp_path / "scene", offline=True)
    disks, extents = perfect_case(scene, tmp_path / "case")
    (truth,) = load_truth(scene)["disks"]
    used = np.flatnonzero(load_hashes(scene, truth["guest_hashes"]) != ZERO_HASH)
    half = int(used[len(used) // 2]) * BLOCK
    extents.append({**extents[0], "space": "guest", "offset": 0, "length": half, "grade": "guessed", "image_offset": 0})
    write_case(tmp_path / "case", disks, extents)
    (disk,) = score(tmp_path / "case", scene)["disks"]
    said = disk["wanted_by_grade"]
    assert said == {"guessed": len(used) // 2 * BLOCK, "missing": (len(used) - len(used) // 2) * BLOCK}


def test_a_rate_has_an_upper_bound() -> None:
    """The 95 % bound of a Poisson rate: 3.0 events for none seen, 4.74 for one, 9.15 for four."""
    assert [round(bound(seen, 1), 2) for seen in (0, 1, 4)] == [3.0, 4.74, 9.15]
    assert bound(2000, 10**6) == pytest.approx(2000e-6, rel=0.05)


def test_rows_name_scenes_that_exist() -> None:
    """Every row of the results has scenes, and what the goals ask for is in one row each."""
    for row in (*rows.ASKED, *rows.UNBROKEN, *rows.BESIDE):
        assert any(row.takes(name) for name in SCENES), row.title
    for name in SCENES:
        assert sum(row.takes(name) for row in (*rows.ASKED, *rows.UNBROKEN)) <= 1, name


def test_false_and_missing_disks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that has another disk in place of the true one has one missing and one false."""
    scene = make_small(monkeypatch, tmp_path / "scene", offline=True)
    disks, _ = perfect_case(scene, tmp_path / "case")
    (tmp_path / "case" / disks[0]["path"]).write_bytes(np.random.default_rng(1).bytes(1 << 20))
    disks[0].update(format="raw", virtual_size=1 << 20, container_size=1 << 20)
    write_case(tmp_path / "case", disks, [])
    total = score(tmp_path / "case", scene)["total"]
    assert (total["found"], total["exact"], total["false_disks"], total["lowest_recall"]) == (0, 0, 1, 0.0)


@needs_root
@pytest.mark.parametrize("host", [HostSpec("ext3", offline=True), HostSpec("xfs")], ids=lambda host: host.kind)
def test_a_roomy_host_breaks_nothing(host: HostSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a large empty host a file has holes and blocks of the host's own inside, but no fragments."""
    plans = (Plan("one", "vhd/fixed", GuestSpec(volume_mib=16)), Plan("two", "qcow2/64k", GuestSpec(volume_mib=16)))
    scene = make_small(monkeypatch, tmp_path / "scene", host=host, plans=plans, roomy=1 << 30, wiped=ALL)
    lays = [disk["lay"] for disk in load_truth(scene)["disks"]]
    assert [(one["jumps"], one["gaps"]) for one in lays] == [(0, 0), (0, 0)]
    if host.kind == "ext3":
        assert all(one["metadata"] for one in lays), "no indirect block inside a run: too kind"


@needs_root
def test_a_full_wipe_leaves_the_contents_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What maps a much broken file is gone from an ext4 and an XFS, and the file's bytes are there."""
    plans = tuple(Plan(name, "raw/disk", GuestSpec(volume_mib=12)) for name in ("one", "two"))
    left = {}
    for kind, wiped, magic in (("ext4", HEADS, b"\x0a\xf3"), ("ext4", ALL, b"\x0a\xf3"), ("xfs", ALL, b"BMA3")):
        changes = {"host": HostSpec(kind), "plans": plans, "together": True, "thin": True, "wiped": wiped}
        scene = make_small(monkeypatch, tmp_path / f"{kind}-{wiped}", **changes)
        assert all(disk["intact"] for disk in load_truth(scene)["disks"])
        image = np.fromfile(scene / IMAGE, np.uint8).reshape(-1, BLOCK)
        left[kind, wiped] = int((image[:, : len(magic)] == np.frombuffer(magic, np.uint8)).all(axis=1).sum())
    assert left["ext4", HEADS] > left["ext4", ALL]
    assert left["xfs", ALL] == 0


@needs_root
def test_what_is_recoverable_is_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every first MiB encrypted, the blocks behind it count although no reader opens the container."""
    makers = ("qcow2/64k", "qcow2/zlib", "vmdk/streamOptimized")
    plans = tuple(Plan(slug(key), key, GuestSpec(volume_mib=16)) for key in makers)
    scene = make_small(monkeypatch, tmp_path / "scene", plans=plans, harm=harm.FIRST)
    for disk in load_truth(scene)["disks"]:
        left = np.load(scene / disk["recoverable"])
        used = load_hashes(scene, disk["guest_hashes"]) != ZERO_HASH
        assert not disk["intact"]
        assert disk["files"][0]["harmed"] == [[0, 1 << 20]]
        assert 0.4 < left[used].mean() < 1, disk["name"]


@needs_root
def test_a_disk_inside_a_guest_is_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A nested disk is in the truth, without a place of its own, and its bytes are in the outer guest."""
    plans = (Plan("outer", "raw/disk", GuestSpec(volume_mib=32), inner=("qcow2/64k",)),)
    scene = make_small(monkeypatch, tmp_path / "scene", plans=plans)
    outer, inner = load_truth(scene)["disks"]
    assert (inner["inside"], inner["deleted"], inner["extents"]) == (outer["name"], None, [])
    content = (scene / outer["guest_raw"]).read_bytes()
    head = (scene / ORIGINALS / Path(inner["host_path"]).name).read_bytes()[:BLOCK]
    assert head[:4] == b"QFI\xfb" and head in content


@needs_root
def test_clones_share_most_of_their_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two disks of one template are equal in most places and not in all."""
    plans = tuple(Plan(name, "raw/disk", GuestSpec(volume_mib=24), template="t") for name in ("one", "two"))
    scene = make_small(monkeypatch, tmp_path / "scene", plans=plans)
    one, two = (load_hashes(scene, disk["guest_hashes"]) for disk in load_truth(scene)["disks"])
    assert 0.5 < (one == two)[(one != ZERO_HASH) & (two != ZERO_HASH)].mean() < 1


@needs_root
def test_a_guest_at_work_has_real_files(tmp_path: Path) -> None:
    """Programs, databases that pass their own check, packages, logs; a guest of few files has a large one."""
    made = dict(work.files("work", 8 << 20))
    assert any(content[:4] == b"\x7fELF" for content in made.values())
    base = next(content for name, content in made.items() if name.endswith(".sqlite"))
    (tmp_path / "base").write_bytes(base)
    assert sqlite3.connect(tmp_path / "base").execute("pragma integrity_check").fetchone() == ("ok",)
    few = dict(work.files("few", 8 << 20, few=True))
    assert max(len(content) for content in few.values()) > 2 << 20


@needs_root
def test_reused_space_lowers_what_can_be_recovered(tmp_path: Path) -> None:
    """Where later files took freed blocks, the truth says which guest blocks no one can give back."""
    make("ext4-reused", tmp_path / "scene", originals=False)
    hurt = [disk for disk in load_truth(tmp_path / "scene")["disks"] if not disk["intact"]]
    # what was taken of some may be tables or padding only, as the allocator will have it
    assert any(not np.load(tmp_path / "scene" / disk["recoverable"]).all() for disk in hurt)


def test_a_scene_without_mounts_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody may mount, ext4 scenes are made all the same and say how; others name what they need."""
    monkeypatch.setattr("tests.corpus.making.no_mounts_because", lambda: "not root")
    scene = make_small(monkeypatch, tmp_path / "scene")
    assert "not root" in capsys.readouterr().err
    assert load_truth(scene)["mounts"] is False
    with pytest.raises(CorpusError, match="needs loop mounts"):
        make("xfs-contiguous", tmp_path / "xfs")


def test_a_file_that_a_host_kept_in_its_metadata_is_there_or_not(tmp_path: Path) -> None:
    """NTFS writes its own two bytes at the end of each sector of a record; a wiped host has nothing of the file."""
    text = "".join(f"RW {n} SPARSE \"disk-s{n:03}.vmdk\"\n" for n in range(20)).encode()
    (tmp_path / "file").write_bytes(text + bytes(200))
    record = bytearray(bytes(300) + text + bytes(500))
    record[510:512] = b"\7\0"
    (tmp_path / "image").write_bytes(record)
    assert survival.has_small(tmp_path / "image", tmp_path / "file")
    (tmp_path / "image").write_bytes(bytes(len(record)))
    assert not survival.has_small(tmp_path / "image", tmp_path / "file")
