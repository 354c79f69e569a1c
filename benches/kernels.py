"""What the gate has each kernel of ext/ do, on fixed input. A kernel that is not here fails the gate.

A workload makes its input and returns (call, MiB): the gate counts the instructions of one call, and divides them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vmcarve._ext.crc32c import crc32c_blocks, crc32c_update
from vmcarve._ext.delta_path import delta_path
from vmcarve._ext.first_look import first_look
from vmcarve.assemble.align import COSTS
from vmcarve.model import SECTOR, Signature
from vmcarve.sweeper.table import Entry, compile_table

from .common import MIB, page_buffer

Workload = Callable[[], tuple[Callable[[], object], float]]


def _noise(count: int = MIB) -> np.ndarray:
    view = page_buffer(count)
    view[:] = np.random.default_rng(1).bytes(count)
    return np.frombuffer(view, np.uint8)


def _first_look() -> tuple[Callable[[], object], float]:
    """Random bytes with 64 magics at 8 places: a table of its own, so that new formats do not count."""
    places = (0, 3, 54, 56, 64, 82, 257, 502)
    rng = np.random.default_rng(1)
    entries = [Entry("x", Signature(rng.bytes(8), f"x.{i}", at=places[max(0, i - 56)]), lambda *_: None, None)
               for i in range(64)]
    t, buffer = compile_table(entries), _noise()
    sectors, found, resume = np.empty(4096, np.int64), np.empty(4096, np.int32), np.zeros(1, np.int64)

    def call() -> None:
        for _ in range(16):
            first_look(buffer, t.probe, t.gate, t.only, t.first, t.next_, t.magic, t.room, sectors, found, resume)
        assert resume[0] == MIB // SECTOR

    return call, 16


def _crc32c() -> tuple[Callable[[], object], float]:
    """One long buffer, and the same bytes as blocks of 4 KiB."""
    buffer, out = _noise(), np.empty(256, np.uint32)

    def call() -> None:
        crc32c_update(buffer, 0xFFFFFFFF)
        crc32c_blocks(buffer.reshape(256, 4096), 0xFFFFFFFF, out)

    return call, 2


def _delta_path() -> tuple[Callable[[], object], float]:
    """A file of 4096 blocks over an image of as many, 64 deltas: a MiB counts 2^20 cells, not bytes."""
    n, k = 4096, 64
    rng = np.random.default_rng(2)
    expected, full, others = (rng.integers(0, top, n).astype(np.uint8) for top in (3, 2, 2))
    delta, pinned = np.arange(k, dtype=np.int64), np.full(n, -1, np.int64)
    pinned[::512] = rng.integers(0, k, len(pinned[::512]))
    action, jump = np.zeros((n, k), np.uint8), np.zeros(n, np.int32)
    cost, score, hole = np.array(list(COSTS.values())), np.zeros((2, k)), np.zeros((2, k), np.uint8)

    def call() -> None:
        delta_path(expected, full, others, delta, 0, pinned, cost, 16, action, jump, score, hole)

    return call, n * k / MIB


WORKLOADS: dict[str, Workload] = {"crc32c": _crc32c, "delta_path": _delta_path, "first_look": _first_look}
