"""From evidence to containers: which image bytes are which container bytes, and what may be claimed of them."""

from .hosts import Spot, find_hosts, unallocated
from .run import assemble_image
from .state import Assembled

__all__ = ["Assembled", "Spot", "assemble_image", "find_hosts", "unallocated"]
