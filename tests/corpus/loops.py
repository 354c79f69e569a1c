"""Loop devices and mounts that are always taken down again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from .tools import CorpusError, NeedsRoot, no_mounts_because, run

TRIES = 8  # another process may take the free loop device between finding and using it

FUSE = {"ntfs": "ntfs-3g", "exfat": "mount.exfat-fuse"}  # file systems that we mount through a program


@contextlib.contextmanager
def loop_device(path: Path, offset: int = 0, size: int = 0) -> Iterator[str]:
    """A loop device over `size` bytes of `path` from byte `offset` (0: to the end)."""
    if (why := no_mounts_because()) is not None:
        raise NeedsRoot(f"loop mounts are not possible here: {why}")
    window = ["--offset", str(offset)] + (["--sizelimit", str(size)] if size else [])
    device = _patiently("losetup", "--find", "--show", *window, path).strip()
    try:
        yield device
    finally:
        _patiently("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(device: str, kind: str, at: Path, options: str = "") -> Iterator[Path]:
    """`device` mounted on the new directory `at`."""
    at.mkdir(parents=True, exist_ok=True)
    if kind in FUSE:
        run(FUSE[kind], device, at)
    else:
        run("mount", "-t", kind, *(("-o", options) if options else ()), device, at)
    try:
        yield at
    finally:
        _patiently("umount", at)
        at.rmdir()


def _patiently(*words: str | Path) -> str:
    """Run a command that may find its device busy or taken for a moment."""
    for _ in range(TRIES - 1):
        try:
            return run(*words)
        except CorpusError:
            time.sleep(0.25)
    return run(*words)
