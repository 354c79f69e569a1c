"""Files are followed again only where a guest tells more than when they were followed last."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vmcarve.assemble.content import Guest
from vmcarve.assemble.content.files import Files
from vmcarve.assemble.content.followed import Followed
from vmcarve.assemble.host_units import Unit
from vmcarve.disk import VirtualDisk
from vmcarve.model import GuestMap
from vmcarve.source import BytesReader

from .guests import BLOCK, START


@dataclass(slots=True)
class Counted(Followed):
    """Follows nothing, and counts how often it was asked to."""

    times: int = 0

    def follow(self) -> None:
        self.times += 1

    def see(self, data: np.ndarray, at: int, length: int) -> None:
        pass


def guest(read: object) -> Guest:
    disk = VirtualDisk(BytesReader(bytes(BLOCK)), GuestMap.flat(BLOCK))
    files = Files(np.array([10], np.int64), np.array([[0, 0, 0, BLOCK]], np.int64))
    return Guest(START, disk, [(0, BLOCK)], files, np.empty((0, 3), np.int64), read)


def test_guests_that_read_as_they_did_are_not_followed_again() -> None:
    """Each round takes guests anew: only what they were read through, the sure runs and the unit tell."""
    read = object()
    mechanism = Counted()
    rounds = [guest(read), guest(read), replace(guest(read), sure=np.array([[0, 1, 2]], np.int64)),
              replace(guest(read), sure=np.array([[0, 1, 2]], np.int64)), replace(guest(read), unit=Unit(16, 1)),
              guest(object()), guest(None), guest(None)]
    times: list[int] = []
    for one in rounds:
        mechanism.want([one])
        mechanism.points(0)
        mechanism.points(0)
        times.append(mechanism.times)
    assert times == [1, 1, 2, 2, 3, 4, 5, 6]


def test_a_guest_with_nothing_to_ask_is_followed_once_it_has() -> None:
    """What was followed before the image was seen does not count."""
    read = object()
    mechanism = Counted()
    for files in (Files.none(), guest(read).files):
        mechanism.want([replace(guest(read), files=files)])
        mechanism.points(0)
    assert mechanism.times == 2
