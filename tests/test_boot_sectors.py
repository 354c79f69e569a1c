"""Master boot records among blocks: found once, and not where something has its bytes since."""

from __future__ import annotations

import random
import struct

import numpy as np

from vmcarve.assemble.boot_sectors import BootSectors
from vmcarve.assemble.state import Claims
from vmcarve.source import BytesReader

BLOCK = 4096


def boot_sector(active: int, kind: int, first: int, count: int) -> bytes:
    entry = struct.pack("<B3sB3sII", active, b"\0\0\0", kind, b"\0\0\0", first, count)
    return (bytes(446) + entry + bytes(48) + b"\x55\xaa").ljust(BLOCK, b"\0")


class Counted(BytesReader):
    """Counts the bytes that are read."""

    taken = 0

    def read(self, offset: int, length: int) -> bytes:
        data = super().read(offset, length)
        self.taken += len(data)
        return data


def test_an_entry_must_be_one_of_a_partition() -> None:
    """A boot sector counts with a used, legal entry, on a block of the room; anything else that ends so does not."""
    blocks = [boot_sector(0x80, 0x83, 2048, 99), boot_sector(0x81, 0x83, 2048, 99), boot_sector(0, 0xEE, 1, 99),
              boot_sector(0, 0x83, 0, 99), boot_sector(0, 0x83, 2048, 0), boot_sector(0, 7, 63, 1), bytes(BLOCK),
              b"x" + boot_sector(0x80, 0x83, 2048, 99)[:-1], boot_sector(0x80, 0x83, 2048, 99)]
    image = BytesReader(b"".join(blocks))
    room = np.array([[0, 8 * BLOCK]], np.int64)
    assert list(BootSectors(image, room).outside(Claims())) == [0, 5 * BLOCK]
    room = np.array([[512, 6 * BLOCK], [8 * BLOCK, BLOCK]], np.int64)
    assert list(BootSectors(image, room).outside(Claims())) == [5 * BLOCK, 8 * BLOCK]


def test_one_look_serves_all_later_claims() -> None:
    """What is claimed later is left out as if the room had been looked through again, but nothing is read."""
    rng = random.Random(5)
    kinds = [boot_sector(0, 0x83, 2048, 99), rng.randbytes(BLOCK), bytes(BLOCK)]
    image = Counted(b"".join(rng.choice(kinds) for _ in range(200)))
    room = np.array([[0, image.size]], np.int64)
    kept, claims = BootSectors(image, room), Claims()
    for _ in range(40):
        got = list(kept.outside(claims))
        taken = image.taken
        assert got == list(BootSectors(image, claims.free_of(room)).outside(Claims()))
        image.taken = taken
        at = rng.randrange(image.size)
        claims.add_range(at, at + rng.randrange(1, 3 * BLOCK))
    assert image.taken == image.size
