"""VMA writer after pve-qemu's vma_spec.txt and vma-writer.c (2012): extents of 58 rows, devices interleave."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from . import Maker

CLUSTER, BLOCK = 65536, 4096
FLUSH_ROWS = 58


def _blob(buffer: bytearray, data: bytes) -> int:
    at = len(buffer)
    buffer += struct.pack("<H", len(data)) + data
    return at


def header(uuid: bytes, devices: Sequence[tuple[str, int]], configs: dict[str, bytes]) -> bytes:
    """The header with its blobs, padded to 512, and its MD5."""
    blobs = bytearray(1)  # offset 0 means "none"
    out = bytearray(12288)
    for i, (name, data) in enumerate(configs.items()):
        struct.pack_into(">I", out, 2044 + 4 * i, _blob(blobs, name.encode() + b"\0"))
        struct.pack_into(">I", out, 3068 + 4 * i, _blob(blobs, data))
    for i, (name, size) in enumerate(devices, 1):
        struct.pack_into(">IIQ", out, 4096 + 32 * i, _blob(blobs, name.encode() + b"\0"), 0, size)
    size = -(-(12288 + len(blobs)) // 512) * 512
    struct.pack_into(">4sI16sq", out, 0, b"VMA\0", 1, uuid, 1_600_000_000)
    struct.pack_into(">III", out, 48, 12288, len(blobs), size)
    out += blobs + bytes(size - 12288 - len(blobs))
    out[32:48] = hashlib.md5(out).digest()
    return bytes(out)


def extent(uuid: bytes, clusters: Sequence[tuple[int, int, bytes]]) -> bytes:
    """One extent of (device, cluster, content) rows: blocks of zeros are masked out."""
    out = bytearray(512)
    payload = bytearray()
    for i, (device, number, data) in enumerate(clusters):
        mask = 0
        for bit in range(16):
            block = data[bit * BLOCK : (bit + 1) * BLOCK]
            if any(block):
                mask |= 1 << bit
                payload += block.ljust(BLOCK, b"\0")
        struct.pack_into(">HBBI", out, 40 + 8 * i, mask, 0, device, number)
    struct.pack_into(">4sHH16s", out, 0, b"VMAE", 0, len(payload) // BLOCK, uuid)
    out[24:40] = hashlib.md5(out).digest()
    return bytes(out + payload)


def write_vma(out: Path, devices: Sequence[tuple[str, bytes]], seed: int,
              configs: dict[str, bytes] | None = None) -> None:
    """Devices' clusters in random order, interleaved; a device called vmstate comes first, in order."""
    rng = random.Random(seed)
    uuid = rng.randbytes(16)
    todo: list[tuple[int, int]] = []
    ram: list[tuple[int, int]] = []
    for device, (name, data) in enumerate(devices, 1):
        (ram if name == "vmstate" else todo).extend((device, c) for c in range(-(-len(data) // CLUSTER)))
    rng.shuffle(todo)
    todo = ram + todo
    with out.open("wb") as f:
        f.write(header(uuid, [(n, len(data)) for n, data in devices], configs or {"qemu-server.conf": b"name: x\n"}))
        for i in range(0, len(todo), FLUSH_ROWS):
            rows = [(d, c, devices[d - 1][1][c * CLUSTER : (c + 1) * CLUSTER]) for d, c in todo[i : i + FLUSH_ROWS]]
            f.write(extent(uuid, rows))


def _maker(names: Sequence[str]) -> Callable[[Path, Path, int], None]:
    def make(raw: Path, out: Path, seed: int) -> None:
        data = raw.read_bytes()
        others = [(name, random.Random(seed + i).randbytes(300_000)) for i, name in enumerate(names)]
        write_vma(out, [("drive-scsi0", data), *others], seed)

    return make


MAKERS = {
    "vma-one-disk": Maker("vma", "one disk", "vma", _maker(())),
    "vma-two-disks": Maker("vma", "two disks", "vma", _maker(("drive-scsi1", "vmstate"))),
}
