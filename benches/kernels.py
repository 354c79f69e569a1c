"""What the gate has each kernel of ext/ do, on fixed input. A kernel that is not here fails the gate.

A workload makes its input and returns (call, MiB): the gate counts the instructions of one call, and divides them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vmcarve._ext.call_votes import call_votes
from vmcarve._ext.cpu import PATHS
from vmcarve._ext.crc32c import crc32c_structures, crc32c_update
from vmcarve._ext.delta_path import delta_path
from vmcarve._ext.every_byte import every_byte
from vmcarve._ext.extent_blocks import extent_blocks
from vmcarve._ext.first_look import first_look
from vmcarve._ext.first_words import first_words
from vmcarve._ext.gather import gather, gather_fields
from vmcarve._ext.leaf_rows import leaf_rows
from vmcarve._ext.sector_tails import sector_tails
from vmcarve._ext.table_blocks import table_blocks
from vmcarve.assemble.align import COSTS
from vmcarve.formats._shapes import Numbers
from vmcarve.model import SECTOR, Signature
from vmcarve.sweeper.bytewise import anywhere, compile_bytes
from vmcarve.sweeper.sieve import block_sieve
from vmcarve.sweeper.table import Entry, compile_table, declared

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
            first_look(t.look, buffer, sectors, found, resume)
        assert resume[0] == MIB // SECTOR

    return call, 16


def _crc32c() -> tuple[Callable[[], object], float]:
    """One long buffer, and the same bytes as blocks of 4 KiB."""
    buffer, at, out = _noise(), np.arange(256) * 4096, np.empty(256, np.uint32)

    def call() -> None:
        crc32c_update(buffer, 0xFFFFFFFF)
        crc32c_structures(buffer, at, 4096, 0, 0, 0xFFFFFFFF, out)

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


def _cpu() -> tuple[Callable[[], object], float]:
    """No loop: which paths are there is asked once, when the module is imported."""
    return lambda: sorted(PATHS), 1


def _every_byte() -> tuple[Callable[[], object], float]:
    """Random bytes, and the magics of the registry that may lie anywhere."""
    t, buffer = compile_bytes(anywhere(declared())), _noise()
    places, found = np.empty(4096, np.int64), np.empty(4096, np.int32)

    def call() -> None:
        resume = np.zeros(1, np.int64)
        every_byte(t.search, buffer, 0, MIB, places, found, resume)
        assert resume[0] == MIB

    return call, 1


def _extent_blocks() -> tuple[Callable[[], object], float]:
    """Blocks of 1 KiB full of extents, all sound: none is left early."""
    block = np.zeros((1024, 1024), np.uint8)
    entries = block.view("<u2")
    entries[:, 0], entries[:, 1], entries[:, 2] = 0xF30A, 84, 84
    rows = block[:, 12 : 12 + 84 * 12].reshape(1024, 84, 12)
    rows[:, :, :4] = np.arange(84, dtype="<u4").view(np.uint8).reshape(84, 4)
    rows[:, :, 4], rows[:, :, 8] = 1, 1
    at, limits, good = np.arange(1024) * 1024, np.array([84], np.uint16), np.zeros(1024, np.uint8)

    def call() -> None:
        extent_blocks(block.reshape(-1), at, 1024, limits, good)
        assert good.all()

    return call, 1


def _first_words() -> tuple[Callable[[], object], float]:
    """Blocks that begin with zeros, each a few more than the one before."""
    blocks = np.zeros((256, 4096), np.uint8)
    blocks[np.arange(256), np.arange(256) * 16] = 1
    at, word = np.zeros(256, np.uint16), np.zeros(256, np.uint64)
    return lambda: first_words(blocks.reshape(-1), at, word), 1


def _gather() -> tuple[Callable[[], object], float]:
    """Structures of 512 bytes that lie side by side: whole, and four fields of each."""
    buffer, at, out = _noise(), np.arange(2048) * 512, np.empty((2048, 512), np.uint8)
    first, length = np.array([160, 0, 152, 100]), np.array([16, 8, 8, 4])
    fields = np.empty(2048 * 36, np.uint8)

    def call() -> None:
        gather(buffer, at, 0, out)
        gather_fields(buffer, at, first, length, fields)

    return call, 2


def _legal_rows() -> tuple[Callable[[], object], float]:
    """Noise, which ends at once, and as many sectors of a grain table, which are read to their ends."""
    table = (np.arange(1024 * 128, dtype="<u4") * 128 + 128).view(np.uint8)
    words = np.concatenate((_noise()[: table.size], table)).view("<u4").reshape(-1, 128)
    rule = Numbers(ranges=((22, (1 << 31) - 1),), unused=((0, 1),), steps=(128,))
    return lambda: rule.sieve(words), 1


def _table_blocks() -> tuple[Callable[[], object], float]:
    """Noise, as nearly all of an image looks to this."""
    buffer, told, sieve = _noise(), np.empty(256, np.uint8), block_sieve()
    return lambda: table_blocks(sieve, buffer, told), 1


def _sector_tails() -> tuple[Callable[[], object], float]:
    """Sectors that end in zeros, each with a few less than the one before."""
    sectors = np.tril(np.ones((512, 512), np.uint8)).repeat(4, axis=0)
    tail = np.zeros(2048, np.uint16)
    return lambda: sector_tails(sectors.reshape(-1), tail), 1


def _leaf_rows() -> tuple[Callable[[], object], float]:
    """A MiB of leaves that hold two rows each."""
    page = np.zeros(4096, np.uint8)
    page[:12] = 13, 0, 0, 0, 2, 0, 0, 0, 2, 0, 3, 0
    page[[512, 513, 768, 769]] = 9, 1, 9, 2
    buffer = np.tile(page, 256)
    block, low, high = (np.empty(256, np.int64) for _ in range(3))

    def call() -> None:
        assert leaf_rows(buffer, 0, MIB, block, low, high) == 256

    return call, 1


def _call_votes() -> tuple[Callable[[], object], float]:
    """A MiB of code with 16 calls a block, and two programs of a MiB with four functions a page."""
    rng = np.random.default_rng(1)
    start = rng.integers(0, MIB, 2048)
    owner = np.repeat(np.arange(2), 1024)
    order = np.argsort(start % 4096, kind="stable")
    start, owner = start[order], owner[order]
    head = np.searchsorted(start % 4096, np.arange(4097))
    target = rng.integers(-MIB, MIB, 4096)
    cut = np.arange(257) * 16
    page, count, first = np.zeros(2, np.int64), np.full(2, 256), np.array([0, 256])
    best, most, second = (np.empty(256, np.int64) for _ in range(3))

    def call() -> None:
        call_votes(cut, target, head, start, owner, page, count, first, np.zeros(512, np.uint64), best, most, second)

    return call, 1


WORKLOADS: dict[str, Workload] = {
    "call_votes": _call_votes, "cpu": _cpu, "crc32c": _crc32c, "delta_path": _delta_path, "every_byte": _every_byte,
    "extent_blocks": _extent_blocks, "first_look": _first_look, "first_words": _first_words, "gather": _gather,
    "leaf_rows": _leaf_rows, "legal_rows": _legal_rows, "sector_tails": _sector_tails,
    "table_blocks": _table_blocks,
}
