"""Is the sweep faster than what others do with the same bytes? Random bytes, page cache warm, one thread each.

vmcarve looks for all its kinds; its start-up (benches/test_start.py) is not counted here. The literals that the others
get are those of our magics that have at least four bytes (shorter ones would drown them in chance hits), the same for
all; each looks at every byte unless its line says so.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vmcarve.source import ImageSource
from vmcarve.sweeper import sweep_image
from vmcarve.sweeper.table import declared

from .common import MIB, Child, here, need, race, record, run_child

SHORTEST = 4  # bytes of a literal
FOREMOST_MOST = 49  # headers that Foremost 1.5.7 takes


def literals() -> list[bytes]:
    """Our magics, as others can be asked for them: no line feed, which would end a pattern."""
    return sorted({e.signature.magic for e in declared()
                   if len(e.signature.magic) >= SHORTEST and b"\n" not in e.signature.magic})


def sweeping(source: ImageSource, **options: Any) -> Child:
    """A sweep with one thread; random bytes hold nothing that is confirmed."""
    def sweep() -> None:
        result = sweep_image(source, 0, lambda _: None, threads=1, **options)
        assert not result.confirmed and not result.failed and result.bytes_read == source.size

    return here(sweep)


def escaped(literal: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in literal)


def ripgrep(folder: Path) -> tuple[str, Path]:
    """Options and pattern file: one regular expression of bytes, with all literals."""
    path = folder / "rg.patterns"
    path.write_text("(?-u:" + "|".join(map(escaped, literals())) + ")\n")
    return "-caf", path


def fixed(folder: Path) -> Path:
    """The literals for grep -F, one a line."""
    path = folder / "grep.patterns"
    path.write_bytes(b"\n".join(literals()) + b"\n")
    return path


def carver(folder: Path, headers: list[bytes]) -> Path:
    """A configuration for Scalpel and Foremost: each header begins a file of 4096 bytes."""
    path = folder / "carver.conf"
    path.write_text("".join(f"x{i} y 4096 {escaped(magic)}\n" for i, magic in enumerate(headers)))
    return path


@pytest.mark.parametrize("peer", ["cat", "sha256sum", "grep", "rg"])
def test_readers(benchmark: Any, peer: str, noise_image: ImageSource, scratch: Path) -> None:
    """Against programs that read all of it: to copy, to hash, to search."""
    name = f"sweep of noise / {'ripgrep' if peer == 'rg' else peer}, CPU time"
    program = need(name, peer)

    def theirs(image: Path) -> Child:
        if peer == "grep":
            return run_child("env", "LC_ALL=C", program, "-caFf", fixed(scratch), image, ends=(0, 1))
        return run_child(program, *(ripgrep(scratch) if peer == "rg" else ()), image, ends=(0, 1))

    result = race(benchmark, lambda: sweeping(noise_image), lambda: theirs(noise_image.path))
    record(benchmark, name, result.cpu, note=result.note())


def test_searchers_agree(benchmark: Any, noise_image: ImageSource, scratch: Path) -> None:
    """grep and ripgrep were asked the same: lines with any of the literals, planted ones among them."""
    name = "grep / ripgrep, the same literals, CPU time"
    programs = need(name, "grep"), need(name, "rg")
    planted = scratch / "planted"
    planted.write_bytes(b"\n".join(b"before " + m + b" behind" for m in literals()) + noise_image.read(0, 32 * MIB))

    def count(*argv: object) -> int:
        done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=300, check=True)
        return int(re.findall(r"\d+", done.stdout)[-1])

    grep = count("env", "LC_ALL=C", programs[0], "-caFf", fixed(scratch), planted)
    assert grep == count(programs[1], *ripgrep(scratch), planted) >= len(literals())
    result = race(benchmark, lambda: run_child("env", "LC_ALL=C", programs[0], "-caFf", fixed(scratch), planted),
                  lambda: run_child(programs[1], *ripgrep(scratch), planted))
    record(benchmark, name, result.cpu, note=f"{len(literals())} literals, the same lines counted")


@pytest.mark.parametrize(("peer", "options"), [("scalpel", ()), ("foremost", ()), ("foremost", ("-q",))])
def test_carvers(benchmark: Any, peer: str, options: tuple[str, ...], noise_image: ImageSource,
                 scratch: Path) -> None:
    """Against Scalpel and Foremost with the same headers, and next to nothing to find."""
    shown = " ".join([peer, *options])
    name = f"sweep of noise / {shown}, same headers, CPU time"
    program = need(name, peer)
    headers = literals() if peer == "scalpel" else sorted(literals(), key=len)[-FOREMOST_MOST:]
    config = carver(scratch, headers)

    def theirs(image: Path) -> Child:
        out = scratch / f"out-{len(list(scratch.iterdir()))}"
        return run_child(program, *options, "-c", config, "-o", out, *(() if peer == "scalpel" else ("-i",)), image)

    planted = scratch / "planted"  # the configuration is one that they understand
    planted.write_bytes(bytes(8192) + headers[-1] + noise_image.read(0, MIB))
    theirs(planted)
    assert any(p.stat().st_size == 4096 for p in scratch.glob("out-*/**/*") if p.is_file()), "nothing was carved"
    result = race(benchmark, lambda: sweeping(noise_image), lambda: theirs(noise_image.path))
    goal = None if options else 5.0  # -q looks at sector starts only, where most magics of file systems are not
    record(benchmark, name, result.cpu, goal=goal, note=f"{len(headers)} headers, {result.note()}")
