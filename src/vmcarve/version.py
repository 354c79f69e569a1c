"""The installed version: apart, so that asking for it imports nothing else."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """As pip knows it, or "0+source" when run from a source tree."""
    try:
        return version("vmcarve")
    except PackageNotFoundError:
        return "0+source"
