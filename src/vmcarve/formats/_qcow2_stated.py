"""L2 tables of a qcow2 whose clusters are smaller than a block of the host: sectors among data.

Source: QEMU docs/interop/qcow2.rst.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import Placer, Reader
from ._qcow2_header import read_header
from ._qcow2_tables import read_words
from ._qcow2_wants import BLOCK, COPIED, OFFSET, OUR_SLACK, ZERO
from ._stated import I64, placer

OUR_MAX_L1 = 1 << 20  # entries that are read
IN_FLIGHT = 8  # requests of a copy that may allocate by turns, and a table each. Source: qemu-img convert -m


def stated(reader: Reader) -> Placer | None:
    """How the L2 tables place themselves, where `wants` cannot look for them: in clusters below 4 KiB."""
    try:
        h = read_header(reader, 0)
    except Damaged:
        return None
    if h.cluster >= BLOCK or h.extended:
        return None
    words, _ = read_words(reader, h.l1_offset, min(h.l1_entries, OUR_MAX_L1), ">u8")
    tables = (words.astype(np.uint64) & OFFSET).astype(np.int64)
    most = np.uint64(h.size + h.size // 4 + OUR_SLACK)

    def places(entries: npt.NDArray[np.generic]) -> I64:
        value = entries.astype(np.uint64)
        place = value & ~(COPIED | ZERO)
        legal = (place & np.uint64(h.cluster - 1) == 0) & (place < most)
        return np.where(legal, place, np.uint64(0)).astype(np.int64) - np.where(legal, 0, 1)

    between = IN_FLIGHT * (h.cluster // 8 + 1) * h.cluster
    return placer(tables, h.cluster, ">u8", places, between)
