"""One pass over a source: plan ranges, run the first look, confirm hits, write evidence."""

from .digest import check_hashes
from .run import Sweep, sweep_image
from .sieve import TableRuns

__all__ = ["Sweep", "TableRuns", "check_hashes", "sweep_image"]
