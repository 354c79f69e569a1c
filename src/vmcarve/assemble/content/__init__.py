"""Content pins: what a guest's own metadata says of its files' data places that data.

One mechanism a module. Each takes from the guests, as they can be read so far, what it would know again on the image
(`want`), sees every free byte of the image once (`see`), and gives points for the solver (`points`). The image is read
again only in rounds in which a guest tells more than before.
"""

from .look import Content
from .want import Guest, Mechanism, Told

__all__ = ["Content", "Guest", "Mechanism", "Told"]
