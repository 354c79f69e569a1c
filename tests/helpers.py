"""What the tests share: reading a guest through its map, and the invariants that every map must keep."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vmcarve.assemble.hosts import CarvedVolume
from vmcarve.assemble.state import HostView, State
from vmcarve.codec import decode
from vmcarve.filemap import FileMap
from vmcarve.model import (
    DATA,
    EXTERNAL,
    HOLE,
    LOST,
    PLAIN,
    RUN_DATA,
    UNALLOCATED,
    Container,
    GuestMap,
    HostFile,
    Reader,
)
from vmcarve.source import open_image
from vmcarve.sweeper import sweep_image
from vmcarve.tables import EVIDENCE

LIMIT_SECONDS = 120
MIB = 1 << 20


def run(*argv: str | Path, timeout: float = LIMIT_SECONDS, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a foreign tool under a time limit; its output is in the error when it fails."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, argv))} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done


def ext4_disk(folder: Path, seed: int, label: str, size: int, block: int, most: int, files: int = 500,
              content: Callable[[random.Random, int], bytes] = random.Random.randbytes) -> bytes:
    """A disk of `size` bytes with one partition from 1 MiB to 1 MiB before its end, label "gpt" or "dos": an ext4 in
    blocks of `block` bytes with `files` files of 2000 to `most` bytes of content(rng, bytes), others for every seed.
    """
    rng = random.Random(seed)
    tree, volume, raw = folder / f"tree{seed}", folder / f"volume{seed}", folder / f"raw{seed}"
    tree.mkdir()
    for n in range(files):
        (tree / f"file{n}").write_bytes(content(rng, rng.randrange(2_000, most)))
    with volume.open("wb") as file:
        file.truncate(size - (2 << 20))
    run("mkfs.ext4", "-q", "-F", "-b", str(block), "-O", "^has_journal", "-N", "600", "-d", tree, volume)
    raw.write_bytes(bytes(1 << 20) + volume.read_bytes() + bytes(1 << 20))
    script = folder / "script"
    script.write_text(f"label: {label}\nstart=2048, size={(size - (2 << 20)) // 512}\n")
    run("sh", "-c", f"sfdisk -q --no-reread {raw} < {script}")
    return raw.read_bytes()


def deleted(folder: Path, content: bytes, name: str) -> tuple[State, HostFile, FileMap, pa.Table]:
    """`content` as a deleted file in three fragments of an image, out of order."""
    third = len(content) // 3 // 4096 * 4096
    cuts = [(0, third), (third, third), (2 * third, len(content) - 2 * third)]
    at, runs, image = 5 * MIB, [], bytearray(5 * MIB)
    for start, length in (cuts[1], cuts[2], cuts[0]):
        runs.append((start, at, length, RUN_DATA))
        image += content[start : start + length].ljust(-(-length // 4096) * 4096 + MIB, b"\0")
        at = len(image)
    (folder / "image").write_bytes(image)
    source = open_image(folder / "image")
    batches: list[pa.RecordBatch] = []
    sweep_image(source, 0, batches.append, threads=1)
    file = HostFile("mft 7", name, len(content), True, np.array(sorted(runs), np.int64), "test")
    view = HostView(CarvedVolume("test", 0, len(image)), np.empty((0, 2), np.int64), [file])
    return State(source, 0, [view]), file, FileMap.from_host_file(file, file.size), pa.Table.from_batches(
        batches, EVIDENCE)


def read_guest(reader: Reader, guest_map: GuestMap, parent: bytes | None = None) -> bytes:
    """The whole guest disk (small ones only): zeros for holes and lost runs, the parent's bytes where unallocated."""
    size = int(guest_map.guest_offset[-1] + guest_map.length[-1]) if len(guest_map) else 0
    out = bytearray(size)
    for i in range(len(guest_map)):
        g, n, state = int(guest_map.guest_offset[i]), int(guest_map.length[i]), int(guest_map.state[i])
        if state == DATA:
            stored = reader.read(int(guest_map.file_offset[i]), int(guest_map.stored[i]))
            data = decode(stored, int(guest_map.encoding[i]), n)
            assert data is not None, f"guest {g:#x}: stored bytes do not decode"
            out[g : g + n] = data
        elif state == UNALLOCATED and parent is not None:
            part = parent[g : g + n]
            out[g : g + len(part)] = part
    return bytes(out)


def check_map(container: Container, reader: Reader) -> None:
    """Asserts the contract of GuestMap for every guest of a container."""
    for guest in container.guests:
        m = guest.map
        arrays: Sequence[np.ndarray] = (m.guest_offset, m.length, m.state, m.file_offset, m.encoding, m.stored)
        assert len({len(a) for a in arrays}) == 1
        assert guest.virtual_size >= 0
        if len(m) == 0:
            assert guest.virtual_size == 0
            continue
        assert m.guest_offset[0] == 0 and (m.length > 0).all()
        assert (m.guest_offset[1:] == m.guest_offset[:-1] + m.length[:-1]).all(), "gap or overlap in guest_offset"
        assert int(m.guest_offset[-1] + m.length[-1]) == guest.virtual_size
        assert np.isin(m.state, (DATA, HOLE, UNALLOCATED, LOST, EXTERNAL)).all()
        data = m.state == DATA
        assert (m.file_offset[data] >= 0).all() and (m.stored[data] > 0).all()
        assert (m.file_offset[data] + m.stored[data] <= max(container.size, 0)).all(), "data beyond the container"
        assert (m.stored[m.encoding == PLAIN] == m.length[m.encoding == PLAIN]).all()
        if guest.kind == "active":
            plain = data & (m.encoding == PLAIN)
            order = np.argsort(m.file_offset[plain], kind="stable")
            f, n = m.file_offset[plain][order], m.length[plain][order]
            assert (f[1:] >= f[:-1] + n[:-1]).all(), "one byte of the container is given to two guest ranges"
    assert container.size >= 0
    for region in container.regions:
        assert region.file_offset >= 0 and region.length >= 0
