"""What a guest says against a map that its host gave: bytes in place that were written over since, or encrypted.

A host's map can be true and the bytes gone: an attack encrypts parts of a file where it lies, other files come and go.
The guest's own metadata shows it. Where its inodes say that files end, there is data behind the end; a volume that a
table names does not agree with itself. Then nothing that merely follows from the map is called supported.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future

import numpy as np

from ..decoded import encoded_rows, sound, taken
from ..disk import VirtualDisk
from ..filemap import FileMap, FileView
from ..model import GUESSED, SUPPORTED, Container, Reader
from ..verify.guest import describe
from .asked import asked
from .places import has_plain
from .tails import FileEnds, agree, file_ends, mapped, open_volumes

MAX_ENDS = 4096  # ours: file ends of one guest that are looked at, spread over it
LEAST = 2  # ends that are violated
SHARE = 0.01  # of those looked at
RULE = "doubted"


def ahead(pool: Executor, image: Reader, container: Container, file_map: FileMap) -> Future[object] | None:
    """Has the streams decoded that `contradicted` will ask for, while others are opened; None where there are none."""
    if not _tells(container) or not len(encoded_rows(container.guests[0].map)):
        return None
    return pool.submit(taken, FileView(image, file_map), container.guests[0].map)


def _tells(container: Container) -> bool:
    """Whether a guest can be asked that lies in the container alone, and not in streams only."""
    return bool(container.guests) and container.parent is None and has_plain(container.guests[0].map)


def contradicted(image: Reader, container: Container, file_map: FileMap) -> bool:
    """Whether the guest of a container, read through a map, shows that bytes of it are not its own any more."""
    if not _tells(container):
        return False
    guest_map = container.guests[0].map
    view = FileView(image, file_map)
    found = describe(VirtualDisk(view, guest_map))
    if any(v.consistent is False for v in found):
        return True
    disk = VirtualDisk(view, guest_map, sound=sound(view, guest_map))
    spans = [(offset, length) for v in found for offset, length, _ in v.partitions] or [(0, disk.size)]
    ends = asked(lambda: file_ends(open_volumes(disk, spans), guest_map, certain=True), FileEnds.none())
    picked = np.arange(0, len(ends), max(1, len(ends) // MAX_ENDS))
    some = ends.picked(picked)
    right, wrong = agree(image, mapped(file_map, some.file_offset), some)
    return wrong >= max(LEAST, SHARE * (right + wrong))


def doubted(file_map: FileMap) -> FileMap:
    """The map with nothing called supported."""
    rows = [r for r in file_map.rows() if r[2] >= 0 and r[3] == SUPPORTED]
    return file_map.graded((f, n, GUESSED, RULE) for f, n, *_ in rows)
