"""`vmcarve bench` says what a source can be read at and what to set; it only reads, and fails in plain words."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benches.common import vmcarve_child
from vmcarve import bench, cli
from vmcarve.bench import Speeds, judged, windows
from vmcarve.source import open_image

MIB = 1 << 20
FACTS = {"image": "x", "size": 10 << 30, "kind": "file", "rotational": None, "in_memory": 0.0}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "image"
    path.write_bytes(np.random.default_rng(1).bytes(32 * MIB + 77))
    return path


def test_json_has_every_speed_and_the_image_is_not_touched(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Speeds are positive, the judgement follows from them, and neither bytes nor times of the image change."""
    before, status = image.read_bytes(), image.stat()
    assert cli.main(["bench", str(image), "--json", "--seconds", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["size"] == 32 * MIB + 77 and found["kind"] == "file"
    speeds = found["bytes_per_second"]
    for rates in (speeds["buffered"], speeds["sweep"], speeds["sweep_cold"], {"": speeds["memory"]}):
        assert rates and all(rate > MIB for rate in rates.values())
    assert speeds["direct"] or speeds["direct_refused"]
    assert found["bottleneck"] in ("device", "cpu", "memory")
    assert str(found["set"]["threads"]) in speeds["sweep"]
    assert (image.read_bytes(), image.stat().st_mtime_ns, image.stat().st_size) == (
        before, status.st_mtime_ns, status.st_size)


def test_words_say_the_bottleneck_and_what_to_set(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(image), "--seconds", "0.5"]) == 0
    out = capsys.readouterr().out
    assert str(image) in out and "bottleneck" in out and "--threads" in out and "/s" in out


def test_time_and_memory_are_bounded(image: Path) -> None:
    """About as long as it was told, with no more memory than the program itself and its buffers."""
    child = vmcarve_child("bench", image, "--seconds", "2")
    assert child.wall < 12
    assert child.peak < 200 * MIB


@pytest.mark.parametrize(("what", "status"), [("empty", 2), ("small", 2), ("folder", 2), ("missing", 1)])
def test_what_cannot_be_measured_is_one_line(what: str, status: int, tmp_path: Path,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        path.write_bytes(bytes(0 if what == "empty" else 100_000))
    assert cli.main(["bench", str(path)]) == status
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"vmcarve: {path}: ")


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "nan", "1e9"])
def test_seconds_have_bounds(seconds: str, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", str(image), "--seconds", seconds])
    assert stop.value.code == 2


def test_where_the_page_cache_cannot_be_passed_it_says_so(image: Path, monkeypatch: pytest.MonkeyPatch,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    """A file system without O_DIRECT costs that line, not the command."""
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert cli.main(["bench", str(image), "--seconds", "0.5"]) == 0
    assert "not possible here: Invalid argument" in capsys.readouterr().out


def test_bad_sectors_are_gone_round_and_told(image: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    """A source that refuses a sector is measured all the same; the exit status says that a part was unreadable."""
    real = os.preadv

    def failing(fd: int, buffers: Sequence[Any], offset: int, flags: int = 0) -> int:
        length = sum(len(b) for b in buffers)
        if offset <= MIB + 512 < offset + length:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", failing)
    assert cli.main(["bench", str(image), "--seconds", "0.5"]) == 3
    assert "512 bytes in 1 ranges could not be read" in capsys.readouterr().err


def speeds(source: float, memory: float, sweep: dict[int, float], cold: dict[int, float]) -> Speeds:
    return Speeds(memory, {1: source}, {}, "no", sweep, cold)


@pytest.mark.parametrize(("given", "rotational", "bottleneck", "threads"), [
    (speeds(0.2e9, 9e9, {1: 8e9, 2: 9e9}, {1: 0.2e9, 2: 0.1e9}), True, "device", 1),
    (speeds(0.2e9, 9e9, {1: 8e9, 2: 9e9}, {1: 0.15e9, 2: 0.2e9}), True, "device", 1),
    (speeds(3e9, 9e9, {1: 1e9, 2: 1.9e9, 4: 3.7e9}, {1: 1e9, 2: 1.9e9, 4: 2.9e9}), False, "device", 4),
    (speeds(9e9, 9e9, {1: 8e9, 2: 8.1e9}, {1: 8e9, 2: 8e9}), None, "memory", 1),
    (speeds(9e9, 9e9, {1: 1e9, 2: 1.9e9}, {1: 1e9, 2: 1.9e9}), None, "cpu", 2),
])
def test_what_holds_it_up(given: Speeds, rotational: bool | None, bottleneck: str, threads: int) -> None:
    """A slow source, a dense image, memory: told apart by what is measured; a disk that spins gets one reader."""
    found = judged(given, {**FACTS, "rotational": rotational})
    assert (found["bottleneck"], found["set"]["threads"]) == (bottleneck, threads)
    assert found["advice"][0].startswith(f"--threads {threads}")
    assert 0 < found["sweep_reaches"] <= 1


@pytest.mark.parametrize("size", [bench.SMALLEST, bench.SMALLEST + 1, 100 * MIB + 4097, 3 << 30])
def test_windows_are_inside_the_image_and_apart(size: int, tmp_path: Path) -> None:
    """Page-aligned for O_DIRECT, rising, disjoint, the last one at the end of the image."""
    path = tmp_path / "image"
    with path.open("wb") as f:
        f.truncate(size)
    with open_image(path) as source:
        found = windows(source)
    assert all(at % 4096 == 0 and n % 4096 == 0 and n > 0 and at + n <= size for at, n in found)
    assert all(a + n <= b for (a, n), (b, _) in zip(found, found[1:], strict=False))
    assert size - sum(found[-1]) < bench.WINDOWS * 8192
