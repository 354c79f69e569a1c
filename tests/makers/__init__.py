"""Independent writers, from the specifications, of what no tool here makes. Nothing of src/vmcarve is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Maker:
    """make(raw_path, out_path, seed) writes a container of the guest's bytes; block order comes from the seed.

    Differencing makers also write the parent, beside the child: `parent_of(out_path)`.
    """

    format: str
    variant: str
    extension: str
    make: Callable[[Path, Path, int], None]


def parent_of(out_path: Path) -> Path:
    """Where a differencing maker puts the parent."""
    return out_path.with_name(f"{out_path.stem}-parent{out_path.suffix}")
