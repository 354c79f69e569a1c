"""From evidence to containers: which image bytes are which container bytes, and what may be claimed of them."""

from .hosts import Spot, find_hosts, unallocated
from .run import assemble_image
from .state import Assembled, Claims

__all__ = ["Assembled", "Claims", "Spot", "assemble_image", "find_hosts", "unallocated"]
