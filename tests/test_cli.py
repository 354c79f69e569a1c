"""The command line as a contract: exit status, one line per failure, tables that other programs read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import polars
import pyarrow as pa
import pytest

from tests.helpers import run
from tests.test_sweeper import BadMedium
from vmcarve import cli, open_case, open_disk, pipeline

MIB = 1 << 20


def vmcarve(*argv: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "vmcarve.cli", *map(str, argv)], capture_output=True, text=True,
                          timeout=timeout)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VDI and a compressed qcow2 between noise; the guest's blocks are all different, the VDI's out of order."""
    folder = tmp_path_factory.mktemp("image")
    raw = folder / "guest.raw"
    with open(raw, "wb") as f:
        f.truncate(24 * MIB)
        for k in (17, 3, 11, 8, 20):
            f.seek(k * MIB)
            f.write(os.urandom(700_000) + b"text " * 10_000)
    run("qemu-img", "create", "-q", "-f", "vdi", folder / "a.vdi", "24M")
    writes = [f"write -q -P {k} {k}M 1M" for k in (20, 3, 17, 8)]
    run("qemu-io", "-f", "vdi", *[x for w in writes for x in ("-c", w)], folder / "a.vdi")
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, folder / "b.qcow2")
    out = folder / "image.raw"
    with open(out, "wb") as f:
        f.write(os.urandom(MIB))
        for name in ("a.vdi", "b.qcow2"):
            data = (folder / name).read_bytes()
            f.write(data + bytes(-len(data) % 4096) + os.urandom(MIB))
    return out


@pytest.fixture(scope="module")
def case(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "case"
    done = vmcarve("recover", image, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def test_recover_writes_the_containers_byte_for_byte(image: Path, case: Path) -> None:
    """What is written equals the originals, and `disks` names every file in the case."""
    rows = {r["format"]: r for r in open_case(case).disks()}
    assert set(rows) == {"vdi", "qcow2"}
    for name, fmt in (("a.vdi", "vdi"), ("b.qcow2", "qcow2")):
        assert (case / rows[fmt]["path"]).read_bytes() == (image.parent / name).read_bytes()
    assert {r["path"] for r in rows.values()} == {f"disks/{p.name}" for p in (case / "disks").iterdir()}


def test_the_same_image_gives_the_same_ids(image: Path, case: Path, tmp_path: Path) -> None:
    """disk_id is stable from run to run, whatever the number of threads."""
    assert vmcarve("recover", image, "--out", tmp_path / "c", "--threads", 1, "--no-write").returncode == 0
    assert [r["disk_id"] for r in open_case(tmp_path / "c").disks()] == [r["disk_id"] for r in open_case(case).disks()]
    assert not list((tmp_path / "c" / "disks").iterdir())


def test_tables_are_mapped_not_copied(case: Path) -> None:
    """Opening and reading the tables allocates no Arrow memory: their buffers lie in the mapped file."""
    before = pa.total_allocated_bytes()
    tables = [open_case(case).table(name) for name in ("evidence", "disks", "extents")]
    assert pa.total_allocated_bytes() == before
    assert all(t.num_rows for t in tables)
    assert tables[2].schema.field("offset").metadata[b"unit"] == b"bytes"


def test_duckdb_and_polars_read_the_tables(case: Path) -> None:
    """Two other programs see the same rows."""
    extents = open_case(case).table("extents")
    want = sum(r["length"] for r in extents.to_pylist() if r["space"] == "guest")
    got = duckdb.sql("select sum(length) from extents where space = 'guest'").limit(1).fetchall()[0]
    frame = polars.read_ipc(case / "extents.arrow")
    assert int(got[0]) == want
    assert frame.filter(polars.col("space").cast(polars.String) == "guest")["length"].sum() == want


def test_maps_cover_every_disk_without_gap(case: Path) -> None:
    """Per disk and space the extents rise from 0 to the size without gap or overlap."""
    opened = open_case(case)
    for row in opened.disks():
        for space, size in (("container", row["container_size"]), ("guest", row["virtual_size"])):
            at = 0
            for e in opened.extents(row["disk_id"], space):
                assert e["offset"] == at
                at += e["length"]
            assert at == size


def test_open_disk_reads_the_guest_from_the_image(image: Path, case: Path) -> None:
    """The zero-copy view gives the guest's bytes, compressed clusters included, without the recovered file."""
    opened = open_case(case)
    row = next(r for r in opened.disks() if r["format"] == "qcow2")
    disk = open_disk(opened, row["disk_id"])
    assert disk.read(0, disk.size) == (image.parent / "guest.raw").read_bytes()


def test_export_raw_equals_the_guest(image: Path, case: Path, tmp_path: Path) -> None:
    """`export --to raw` writes the guest disk, and refuses to overwrite."""
    row = next(r for r in open_case(case).disks() if r["format"] == "qcow2")
    target = tmp_path / "guest.raw"
    assert vmcarve("export", case, row["disk_id"], "--to", "raw", "--output", target).returncode == 0
    assert target.read_bytes() == (image.parent / "guest.raw").read_bytes()
    again = vmcarve("export", case, row["disk_id"], "--to", "raw", "--output", target)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_list_and_show_read_the_case_only(case: Path) -> None:
    """list gives a line a disk, JSON and an Arrow stream; show tells the map."""
    lines = vmcarve("list", case).stdout.splitlines()
    rows = json.loads(vmcarve("list", case, "--json").stdout)
    assert len(lines) == len(rows) == 2
    stream = subprocess.run([sys.executable, "-m", "vmcarve.cli", "list", str(case), "--arrow"], capture_output=True)
    assert pa.ipc.open_stream(stream.stdout).read_all().num_rows == 2
    shown = vmcarve("show", case, rows[0]["disk_id"])
    assert shown.returncode == 0 and "container map" in shown.stdout
    assert json.loads(vmcarve("show", case, rows[0]["disk_id"], "--json").stdout)["extents"]["guest"]


def test_resume_keeps_the_sweep(image: Path, tmp_path: Path) -> None:
    """--resume goes on from a finished sweep; without it a folder in use is refused."""
    out = tmp_path / "c"
    assert vmcarve("sweep", image, "--out", out).returncode == 0
    stamp = (out / "evidence.arrow").stat().st_mtime_ns
    refused = vmcarve("recover", image, "--out", out)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    assert vmcarve("recover", image, "--out", out, "--resume").returncode == 0
    assert (out / "evidence.arrow").stat().st_mtime_ns == stamp and open_case(out).info["complete"]


def _lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()


@pytest.mark.parametrize("make, status", [
    (lambda p: p.mkdir(), 2),
    (lambda p: None, 1),
    (lambda p: os.mkfifo(p), 2),
], ids=["a directory", "nothing there", "a pipe"])
def test_a_path_that_is_no_image_is_told_in_one_line(make, status: int, tmp_path: Path) -> None:
    """Wrong paths end with one line that names the path, and leave no case behind."""
    make(tmp_path / "x")
    done = vmcarve("recover", tmp_path / "x", "--out", tmp_path / "c")
    assert done.returncode == status and len(_lines(done)) == 1 and str(tmp_path / "x") in done.stderr
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("size", [0, 1, 511, 4096])
def test_tiny_images_hold_nothing_and_are_no_failure(size: int, tmp_path: Path) -> None:
    """An empty or tiny image is swept to its end: status 0, no disks, tables present."""
    (tmp_path / "x").write_bytes(b"K" * size)
    done = vmcarve("recover", tmp_path / "x", "--out", tmp_path / "c")
    assert done.returncode == 0 and "no virtual disks found" in done.stdout
    assert open_case(tmp_path / "c").disks() == []


def test_a_case_that_is_none_is_told(tmp_path: Path) -> None:
    """Reading commands on a folder without a case, and unknown disks, are wrong use."""
    for argv in (("list", tmp_path), ("show", tmp_path, "x")):
        done = vmcarve(*argv)
        assert done.returncode == 2 and len(_lines(done)) == 1


def test_no_room_is_said_before_anything_is_written(image: Path, tmp_path: Path) -> None:
    """When the outputs would not fit, the sizes are told and nothing is written."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs takes root")
    try:
        done = vmcarve("recover", image, "--out", small / "c")
        assert done.returncode == 1 and len(_lines(done)[-1:]) == 1 and "room for" in done.stderr
        assert not list((small / "c" / "disks").iterdir())
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_truncated_image_says_what_is_missing(image: Path, tmp_path: Path) -> None:
    """A container that the image's end cuts off is found, and its tail is missing, not zero."""
    cut = tmp_path / "cut.raw"
    cut.write_bytes(image.read_bytes()[: 3 * MIB])
    assert vmcarve("recover", cut, "--out", tmp_path / "c").returncode == 0
    rows = open_case(tmp_path / "c").disks()
    assert [r["format"] for r in rows] == ["vdi"]
    assert rows[0]["bytes_missing"] > MIB and not rows[0]["exact"]


def test_help_teaches_and_is_quick() -> None:
    """--help names the commands with examples and imports nothing heavy."""
    done = vmcarve("--help")
    assert done.returncode == 0 and "vmcarve recover disk.raw --out case" in done.stdout
    code = "import sys, vmcarve.cli; vmcarve.cli._parser().format_help(); print([m for m in sys.modules if m in " \
           "('numpy', 'pyarrow', 'rich')])"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert heavy.stdout.strip() == "[]"


def test_unreadable_sectors_are_status_3(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    """A medium with bad sectors inside the VDI: the rest is recovered, what is missing is told, the status is 3."""
    bad = {(MIB + 3 * MIB) // 512 + k for k in (5, 6, 9)}

    def medium(path: str | os.PathLike[str]) -> BadMedium:
        source = BadMedium(Path(path), bad)
        monkeypatch.setattr(os, "preadv", source.preadv)
        return source

    monkeypatch.setattr(pipeline, "open_image", medium)
    assert cli.main(["recover", str(image), "--out", str(tmp_path / "case"), "--threads", "1"]) == 3
    told = json.loads((tmp_path / "case" / "case.json").read_text())["images"][0]["unreadable"]
    assert sum(length for _, length in told) == 3 * 512 and len(told) == 2
    rows = {row["format"]: row for row in open_case(tmp_path / "case").disks()}
    assert rows["vdi"]["bytes_missing"] == 3 * 512 and not rows["vdi"]["exact"]
    assert rows["qcow2"]["bytes_missing"] == 0
    assert "1536 bytes in 2 ranges could not be read" in capsys.readouterr().err


def test_an_interrupted_command_says_so_in_one_line() -> None:
    """Also where the keys are pressed again while it is said."""
    code = """if True:
        import os, signal, sys
        from vmcarve import cli
        class Pressed:
            def write(self, text):
                os.kill(os.getpid(), signal.SIGINT)
                sys.__stderr__.write(text)
            def flush(self):
                pass
        class Parser:
            def parse_args(self, argv):
                return self
            def run(self, args):
                sys.stderr = Pressed()
                os.kill(os.getpid(), signal.SIGINT)
                signal.pause()
        cli._parser = Parser
        sys.exit(cli.main([]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and len(_lines(done)) == 1 and "interrupted" in done.stderr
