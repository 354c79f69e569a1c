"""What the gate counts: run under callgrind with counting off; switches it on around each part, and dumps it by name.

    python -m benches.gate_child FOLDER NAME...     NAME: kernel.<stem of ext/>, sweep.<image in FOLDER>

Prints one line "NAME MIB" for each. VMCARVE_GATE_SLOW=NAME does the work of that one twice.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from vmcarve.source import open_image
from vmcarve.sweeper import sweep_image

from .common import MIB
from .kernels import WORKLOADS

# callgrind.h: what a client may ask
START, STOP, ZERO, DUMP_AT = 0x4354_0004, 0x4354_0005, 0x4354_0001, 0x4354_0003
# valgrind.h, amd64-linux: rax = the request's address, rdx = 0, then the rotations that valgrind knows a request by;
# outside valgrind they do nothing
REQUEST = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")


class Counting:
    """Callgrind's counting, switched from inside: what comes before (imports, some 10^9 instructions) varies."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            raise SystemExit("valgrind's requests are written for x86_64 only")
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(REQUEST)
        at = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._call = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(at)

    def count(self, name: str, call: Callable[[], object]) -> None:
        """One call, counted and dumped under `name`."""
        self._ask(ZERO)
        self._ask(START)
        call()
        self._ask(STOP)
        text = ctypes.create_string_buffer(name.encode())
        self._ask(DUMP_AT, ctypes.addressof(text))

    def _ask(self, request: int, argument: int = 0) -> None:
        words = (ctypes.c_long * 6)(request, argument)
        self._call(ctypes.addressof(words))


def sweeping(image: Path) -> tuple[Callable[[], object], float]:
    """A whole sweep with every signature of the registry, on one thread; the first one imports and fills caches."""
    source = open_image(image)

    def call() -> None:
        result = sweep_image(source, 0, lambda _: None, threads=1)
        assert result.bytes_read == source.size and not result.failed

    call()
    return call, source.size / MIB


def main(folder: Path, names: list[str]) -> None:
    counting = Counting()
    for name in names:
        kind, _, what = name.partition(".")
        call, mib = WORKLOADS[what]() if kind == "kernel" else sweeping(folder / what)
        if os.environ.get("VMCARVE_GATE_SLOW") == name:
            counting.count(name, lambda call=call: (call(), call()))
        else:
            counting.count(name, call)
        print(name, mib)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
