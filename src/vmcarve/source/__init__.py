"""How evidence is read: never written to, read errors become ranges."""

from .bytes_reader import BytesReader
from .image import ImageSource, open_image

__all__ = ["BytesReader", "ImageSource", "open_image"]
