"""How the corpus runs other people's programs: no shell, a time limit, and one plain line when something fails."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SECONDS = 300  # limit for one command


class CorpusError(Exception):
    """Making or scoring a scene failed; the message is one line that names the program or file."""


class NeedsRoot(CorpusError):
    """The scene needs loop mounts, and this process may not make them."""


class MissingTool(CorpusError):
    """A program that the scene needs is not installed."""


def run(
    *words: str | Path,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    seconds: float = SECONDS,
    accept: Sequence[int] = (0,),
) -> str:
    """Run one program and return its standard output; any exit status not in `accept` is a CorpusError."""
    need(str(words[0]))
    try:
        done = subprocess.run(
            [str(word) for word in words],
            input=stdin,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", **(env or {})},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CorpusError(f"{words[0]}: no end after {seconds:g} s ({' '.join(map(str, words[1:4]))} …)") from None
    if done.returncode not in accept:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise CorpusError(f"{words[0]}: exit {done.returncode}: {said[-1] if said else 'said nothing'}")
    return done.stdout


def need(*programs: str) -> None:
    """Raise MissingTool for the first program that is not on the path."""
    for program in programs:
        if shutil.which(program) is None:
            raise MissingTool(f"{program}: not installed")


def no_mounts_because() -> str | None:
    """Why this process cannot loop-mount, or None where it can."""
    if os.geteuid() != 0:
        return "not root"
    if not Path("/dev/loop-control").exists():
        return "no loop devices"
    if shutil.which("losetup") is None or shutil.which("mount") is None:
        return "losetup or mount not installed"
    return None
