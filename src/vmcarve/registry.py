"""Formats, guests and hosts are found by import: there is no list to edit, and order never carries meaning."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any

from .model import Format, GuestKind, HostKind


def discover(package: ModuleType, attribute: str) -> dict[str, Any]:
    """Every record called `attribute` (or in a tuple called `attribute` + "S") in the modules of `package`, by name.

    Modules whose name begins with an underscore are shared pieces, not records. Two records of one name are refused.
    """
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        records = list(getattr(module, attribute + "S", ()))
        if hasattr(module, attribute):
            records.append(getattr(module, attribute))
        for record in records:
            if record.name in found:
                raise ValueError(f"{package.__name__}.{info.name}: a second {attribute} called {record.name!r}")
            found[record.name] = record
    return dict(sorted(found.items()))


@cache
def formats() -> dict[str, Format]:
    """Container formats by name."""
    from . import formats as package

    return discover(package, "FORMAT")


@cache
def guests() -> dict[str, GuestKind]:
    """Guest file systems and partition schemes by name."""
    from . import guest as package

    return discover(package, "GUEST")


@cache
def hosts() -> dict[str, HostKind]:
    """Host file systems by name."""
    from . import host as package

    return discover(package, "HOST")
