"""What the gate counts: run under callgrind with instrumentation off; switches it on around the part that counts."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from pathlib import Path

import numpy as np

from vmcarve._ext.first_look import first_look
from vmcarve.model import SECTOR, Signature
from vmcarve.source import open_image
from vmcarve.sweeper import sweep_image
from vmcarve.sweeper.table import Entry, compile_table

from .common import MIB, noise, page_buffer

KERNEL_MIB, SWEEP_MIB = 16, 32
START, STOP = 0x4354_0004, 0x4354_0005  # callgrind.h: START_INSTRUMENTATION, STOP_INSTRUMENTATION
# valgrind.h, amd64-linux: rax = the request's address, rdx = 0, then the rotations that valgrind knows a request by;
# outside valgrind they do nothing
REQUEST = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")


class Instrumentation:
    """Callgrind's counting, switched from inside: what comes before (imports, some 10^9 instructions) varies."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            raise SystemExit("valgrind's requests are written for x86_64 only")
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(REQUEST)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._call = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(at)

    def __enter__(self) -> None:
        self._ask(START)

    def __exit__(self, *_: object) -> None:
        self._ask(STOP)

    def _ask(self, request: int) -> None:
        words = (ctypes.c_long * 6)(request)
        self._call(ctypes.addressof(words))


def kernel() -> int:
    """first_look over random bytes with 64 magics at 8 places: a table of its own, so that new formats do not count."""
    places = (0, 3, 54, 56, 64, 82, 257, 502)
    rng = np.random.default_rng(1)
    magics = [rng.bytes(8) for _ in range(64)]
    entries = [Entry("x", Signature(m, f"x.{i}", at=places[max(0, i - 56)]), lambda *_: None, None)
               for i, m in enumerate(magics)]
    t = compile_table(entries)
    view = page_buffer(MIB)
    view[:] = rng.bytes(MIB)
    buffer = np.frombuffer(view, np.uint8)
    sectors, found, resume = np.empty(4096, np.int64), np.empty(4096, np.int32), np.zeros(1, np.int64)
    repeats = KERNEL_MIB * (2 if os.environ.get("VMCARVE_GATE_SLOW") == "kernel" else 1)
    with Instrumentation():
        for _ in range(repeats):
            resume[0] = 0
            first_look(t.look, buffer, sectors, found, resume)
    assert resume[0] == MIB // SECTOR
    return KERNEL_MIB


def sweep(folder: Path) -> int:
    """A whole sweep of random bytes with every signature of the registry, on one thread."""
    with open_image(noise(folder / "noise", SWEEP_MIB)) as source:
        sweep_image(source, 0, lambda _: None, threads=1)  # the first one imports and fills caches
        with Instrumentation():
            result = sweep_image(source, 0, lambda _: None, threads=1)
        assert result.bytes_read == SWEEP_MIB * MIB
    return SWEEP_MIB


if __name__ == "__main__":
    print(kernel() if sys.argv[1] == "kernel" else sweep(Path(sys.argv[2])), "MiB")
