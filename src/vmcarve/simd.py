"""Which instructions the kernels use: the best that this machine has, or what VMCARVE_SIMD names (for tests)."""

from __future__ import annotations

import os

from ._ext.cpu import PATHS
from .errors import UsageError


def best_path() -> int:
    """The number of the path (ext/cpu.h). Raises UsageError for a name that cannot be run here."""
    name = os.environ.get("VMCARVE_SIMD", "")
    if not name:
        return max(PATHS.values())
    if name not in PATHS:
        raise UsageError(f"VMCARVE_SIMD is {name!r}, this machine runs {', '.join(PATHS)}")
    return PATHS[name]
