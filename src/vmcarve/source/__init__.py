"""How evidence is read: never written to, read errors become ranges."""

from .bytes_reader import BytesReader
from .image import ImageSource, open_image
from .view import ViewSource

__all__ = ["BytesReader", "ImageSource", "ViewSource", "open_image"]
