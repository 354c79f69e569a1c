"""From evidence to containers: which image bytes are which container bytes, and what may be claimed of them."""

from .run import assemble_image
from .state import Assembled

__all__ = ["Assembled", "assemble_image"]
