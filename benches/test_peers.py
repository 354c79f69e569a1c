"""Is the whole program faster than others on the same bytes? Random bytes, page cache warm, one thread each.

vmcarve looks for all its kinds. The literals that the others get are those of our magics that have at least four bytes
(shorter ones would drown them in chance hits), the same for all; each looks at every byte unless its line says so.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vmcarve import open_case
from vmcarve.source import ImageSource
from vmcarve.sweeper.table import declared

from .common import Child, need, race, record, run_child, vmcarve_child

SHORTEST = 4  # bytes of a literal


def literals() -> list[bytes]:
    """Our magics, as others can be asked for them: no line feed, which would end a pattern."""
    return sorted({e.signature.magic for e in declared()
                   if len(e.signature.magic) >= SHORTEST and b"\n" not in e.signature.magic})


def sweeping(image: Path, scratch: Path, *options: object) -> Child:
    """`vmcarve sweep` with one thread in a new case; random bytes hold nothing that is confirmed."""
    case = scratch / f"case-{len(list(scratch.iterdir()))}"
    child = vmcarve_child("sweep", image, "--out", case, "--threads", 1, *options)
    assert open_case(case).table("evidence").num_rows == 0
    return child


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


def carver(folder: Path, columns: str) -> Path:
    """A configuration for Scalpel and Foremost: each literal begins a file of at most 4096 bytes."""
    path = folder / "carver.conf"
    path.write_text("".join(columns.format(i=i, magic=escaped(m)) for i, m in enumerate(literals())))
    return path


@pytest.mark.parametrize("peer", ["cat", "sha256sum", "grep", "rg"])
def test_readers(benchmark: Any, peer: str, noise_image: ImageSource, scratch: Path) -> None:
    """Against programs that read all of it: to copy, to hash, to search."""
    image = noise_image.path
    name = f"sweep of noise / {'ripgrep' if peer == 'rg' else peer}, CPU time"
    program = need(name, peer)
    argv: tuple[object, ...] = (program, image)
    ends = (0,)
    if peer == "grep":
        argv, ends = ("env", "LC_ALL=C", program, "-caFf", fixed(scratch), image), (0, 1)
    elif peer == "rg":
        argv, ends = (program, *ripgrep(scratch), image), (0, 1)
    result = race(benchmark, lambda: sweeping(image, scratch), lambda: run_child(*argv, ends=ends))
    record(benchmark, name, result.cpu, note=result.note())


def test_searchers_agree(benchmark: Any, noise_image: ImageSource, scratch: Path) -> None:
    """grep and ripgrep were asked the same: lines with any of the literals, planted ones among them."""
    name = "grep / ripgrep, the same literals"
    programs = need(name, "grep"), need(name, "rg")
    planted = scratch / "planted"
    planted.write_bytes(b"\n".join(b"before " + m + b" behind" for m in literals()) + noise_image.read(0, 1 << 20))

    def count(*argv: object) -> int:
        done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=300, check=True)
        return int(re.findall(r"\d+", done.stdout)[-1])

    grep = count("env", "LC_ALL=C", programs[0], "-caFf", fixed(scratch), planted)
    assert grep == count(programs[1], *ripgrep(scratch), planted) >= len(literals())
    result = race(benchmark, lambda: run_child("env", "LC_ALL=C", programs[0], "-caFf", fixed(scratch), planted),
                  lambda: run_child(programs[1], *ripgrep(scratch), planted))
    record(benchmark, name, result.cpu, note=f"{len(literals())} literals, the same lines counted")


@pytest.mark.parametrize(("peer", "options"), [("scalpel", ()), ("foremost", ()), ("foremost", ("-q",))])
def test_carvers(benchmark: Any, peer: str, options: tuple[str, ...], noise_image: ImageSource, scratch: Path) -> None:
    """Against Scalpel and Foremost with the same headers, and next to nothing to find."""
    image = noise_image.path
    shown = " ".join([peer, *options])
    name = f"sweep of noise / {shown}, same headers, CPU time"
    program = need(name, peer)
    config = carver(scratch, "x{i} y 4096 {magic}\n")
    config_of = ("-c", config)

    def theirs() -> Child:
        out = scratch / f"out-{len(list(scratch.iterdir()))}"
        if peer == "scalpel":
            return run_child(program, *config_of, "-o", out, image)
        return run_child(program, *options, *config_of, "-o", out, "-i", image)

    result = race(benchmark, lambda: sweeping(image, scratch), theirs)
    goal = None if options else 5.0  # -q looks at sector starts only and skips most magics of file systems
    record(benchmark, name, result.cpu, goal=goal, note=result.note())


@pytest.mark.parametrize("peer", ["scalpel", "foremost"])
def test_carvers_were_asked(peer: str, noise_image: ImageSource, scratch: Path) -> None:
    """The configuration is one that they understand: a planted literal is carved."""
    program = need(f"{peer} finds planted headers", peer)
    planted = scratch / "planted"
    magic = max(literals(), key=len)
    planted.write_bytes(bytes(8192) + magic + noise_image.read(0, 1 << 20))
    config, out = carver(scratch, "x{i} y 4096 {magic}\n"), scratch / "out"
    image = (planted,) if peer == "scalpel" else ("-i", planted)
    run_child(program, "-c", config, "-o", out, *image)
    assert any(p.stat().st_size == 4096 for p in out.rglob("*") if p.is_file() and p.suffix != ".txt")
