"""One read of the image for all mechanisms that have something new to look for."""

from __future__ import annotations

import numpy as np

from ...model import Reader
from ..window import read_view, steps
from .archives import Archives
from .calls import Calls
from .fills import Fills
from .gaps import Gaps
from .programs import Programs
from .sqlite import Pages
from .starts import Starts
from .sums import Sums
from .texts import Texts
from .times import Times
from .want import BLOCK, Guest, Int64s, Mechanism, Told
from .xz import Xz

STEP = 4 << 20


class Content:
    """The mechanisms at work on one image. room int64[k, 2]: image ranges that are free."""

    def __init__(self, image: Reader, room: Int64s) -> None:
        self._image, self._room = image, room
        self.sums = Sums()
        self._all: tuple[Mechanism, ...] = (
            self.sums, Starts(), Pages(), Archives(image), Calls(Programs(image)), Fills(),
            Times(image=image), Xz(), Texts(image=image), Gaps(image, room))

    def look(self, guests: list[Guest]) -> None:
        """Takes what the guests tell now."""
        changed = [m for m in self._all if m.want(guests)]
        if not changed:
            return
        buffer = np.empty(STEP + BLOCK, np.uint8)
        for start, length in self._room.tolist():
            for at in steps(self._image, start, start + length, STEP):
                n = min(STEP, start + length - at)
                data = read_view(self._image, at, buffer[: n + BLOCK])
                for m in changed:
                    m.see(data, at, n)

    def points(self, number: int) -> list[Told]:
        """What each mechanism says of guest `number`."""
        return [m.points(number) for m in self._all]
