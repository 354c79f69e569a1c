"""vmcarve: recovers virtual machine disks from raw disks, and says for every byte how it knows.

The public API: `recover` and `sweep` run the job on images; `open_case` reads a case; `open_disk` gives a read-only
view of a recovered guest disk. Heavy imports happen on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .case import Case, open_case, open_disk
    from .errors import Damaged, Unreadable, UsageError, VmcarveError
    from .pipeline import Options, recover, sweep

__all__ = ["Case", "Damaged", "Options", "Unreadable", "UsageError", "VmcarveError", "open_case", "open_disk",
           "recover", "sweep"]

_HOME = {"Case": "case", "open_case": "case", "open_disk": "case", "Options": "pipeline", "recover": "pipeline",
         "sweep": "pipeline", "VmcarveError": "errors", "UsageError": "errors", "Unreadable": "errors",
         "Damaged": "errors"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
