"""One pass over a source: plan ranges, run the first look, confirm hits, write evidence."""

from .run import Sweep, sweep_image

__all__ = ["Sweep", "sweep_image"]
