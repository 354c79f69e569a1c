"""Asking a guest that is read through a map which may be wrong: it can be anything, and then it tells nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)


def asked(ask: Callable[[], T], nothing: T) -> T:
    """What `ask` gives, `nothing` where it breaks. Why goes to the log, at debug: it may be a fault of our reader."""
    try:
        return ask()
    except Exception:
        log.debug("a guest could not be read through its map so far", exc_info=True)
        return nothing
