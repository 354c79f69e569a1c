"""Pieces that hold no disk and look like one: magics in wrong places, damaged structures, arrays like tables."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator

import numpy as np

from . import payload
from .bare import noise
from .magics import MAGICS
from .sparse import BLOCK

BUDGET = 48 << 20  # bytes of all pieces, at most
SECTOR = 512
ENTRIES = 16384  # numbers in one array that looks like a table

Piece = tuple[str, bytes]  # name, content


def pieces(rng: random.Random) -> Iterator[Piece]:
    """All decoys, in a fixed order; contents differ with `rng`."""
    yield "manual.txt", manual(rng)
    yield "magics-alone.bin", magics_at(rng, shift=0, body=False)
    yield "magics-in-noise.bin", magics_at(rng, shift=0, body=True)
    yield "magics-shifted.bin", magics_at(rng, shift=7, body=True)
    yield "magics-packed.bin", b"".join(magic for _, _, magic in MAGICS) * 40
    yield "rules.yar", rules()
    yield from broken_headers(rng)
    yield from arrays(rng)
    for number, (name, content) in enumerate(payload.files(f"decoys {rng.getrandbits(32)}", 8 << 20)):
        if number < 60 and len(content) > BLOCK:
            yield f"file-{number}-{name.rsplit('/', 1)[-1]}".replace(" ", "_"), content


def manual(rng: random.Random) -> bytes:
    """A text about formats: each magic in the middle of a line, at any byte."""
    lines = []
    for what, at, magic in MAGICS:
        lines.append(payload.text(rng, rng.randrange(60, 1200)).encode())
        lines.append(f"The structure {what} has at byte {at} the bytes ".encode() + magic + b" (checked).")
    return b"\n".join(lines)


def magics_at(rng: random.Random, shift: int, body: bool) -> bytes:
    """Each magic at its own offset of a block (plus `shift`), three times; noise or zeros around it."""
    blocks = []
    for _, at, magic in MAGICS * 3:
        size = -(-(at + shift + len(magic)) // BLOCK) * BLOCK
        block = bytearray(noise(rng, size) if body else bytes(size))
        block[at + shift : at + shift + len(magic)] = magic
        blocks.append(bytes(block))
    return b"".join(blocks)


def rules() -> bytes:
    """Signatures as a scanner's source has them: as hexadecimal text and as strings."""
    rows = [
        f"rule r{n} {{ strings: $a = {{ {magic.hex(' ')} }} condition: $a at {at} }}"
        for n, (_, at, magic) in enumerate(MAGICS)
    ]
    return "\n".join(rows).encode()


def broken_headers(rng: random.Random) -> Iterator[Piece]:
    """Headers that are right in all but what decides: a sum, a size, a count."""
    footer = bytearray(512)
    struct.pack_into(
        ">8sIIQI4sI4sQQHBBI",
        footer,
        0,
        b"conectix",
        2,
        0x10000,
        512,
        700000000,
        b"win ",
        0xA0000,
        b"Wi2k",
        64 << 20,
        64 << 20,
        963,
        8,
        17,
        3,
    )
    footer[68:84] = payload.noise(rng, 16)
    good = ~sum(footer) & 0xFFFFFFFF
    struct.pack_into(">I", footer, 64, (good + 1) & 0xFFFFFFFF)
    yield "vhd-wrong-sum.bin", bytes(footer) + payload.noise(rng, 7 * SECTOR)

    head = bytearray(4096)
    struct.pack_into("<4sIQ", head, 0, b"head", rng.getrandbits(32), 77)
    head[16:64] = payload.noise(rng, 48)
    struct.pack_into("<HHIQ", head, 64, 0, 1, 1 << 20, 1 << 20)
    yield "vhdx-wrong-crc.bin", bytes(head) * 2

    gpt = bytearray(512)
    struct.pack_into("<8sIIIIQQQQ", gpt, 0, b"EFI PART", 0x10000, 92, rng.getrandbits(32), 0, 1, 131071, 34, 131038)
    struct.pack_into("<QIII", gpt, 72, 2, 128, 128, rng.getrandbits(32))
    yield "gpt-wrong-crc.bin", bytes(gpt) + bytes(7 * SECTOR)

    for name, capacity, grain in (("huge", 1 << 63, 128), ("grain-zero", 131072, 0), ("grain-odd", 131072, 127)):
        vmdk = struct.pack(
            "<4sIIQQQQIQQQB4sH", b"KDMV", 3, 3, capacity, grain, 1, 20, 512, 21, 26, 128, 0, b"\n \r\n", 0
        )
        yield f"vmdk-{name}.bin", vmdk.ljust(512, b"\0") + payload.noise(rng, 7 * SECTOR)

    for name, bits, size in (("bits-40", 40, 1 << 26), ("size-huge", 16, (1 << 63) - 1), ("bits-zero", 0, 1 << 26)):
        qcow2 = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, bits, size, 0, 1, 0x30000, 0x10000, 1, 0, 0)
        yield f"qcow2-{name}.bin", qcow2.ljust(SECTOR, b"\0") + payload.noise(rng, 7 * SECTOR)

    vdi = bytearray(512)
    vdi[:40] = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
    struct.pack_into("<IIIII", vdi, 64, 0xBEDA107F, 0x10001, 400, 1, 0)
    struct.pack_into("<II", vdi, 340, 512, 4096)
    struct.pack_into("<QIIII", vdi, 368, 64 << 20, 1 << 20, 0, 0xFFFFFFFF, 0xFFFFFFF0)
    yield "vdi-counts.bin", bytes(vdi) + payload.noise(rng, 7 * SECTOR)

    extent = bytearray(payload.noise(rng, 512))
    struct.pack_into(">4sHH", extent, 0, b"VMAE", 0, 12)
    extent[24:40] = hashlib.md5(extent).digest()  # of the wrong bytes: the field was not zero
    yield "vma-wrong-md5.bin", bytes(extent) + payload.noise(rng, 12 * BLOCK)

    record = bytearray(1024)
    struct.pack_into("<4sHHQHHHHII", record, 0, b"FILE", 48, 3, 0, 1, 1, 56, 1, 416, 1024)
    struct.pack_into("<I", record, 44, 40)
    record[510:512], record[1022:1024] = b"\x11\x22", b"\x33\x44"  # fixups that do not agree
    yield "ntfs-wrong-fixup.bin", bytes(record) * 64


def arrays(rng: random.Random) -> Iterator[Piece]:
    """Sorted or regular numbers in the shape of each format's tables."""
    rising = np.cumsum(np.random.default_rng(rng.getrandbits(64)).integers(1, 5000, ENTRIES)).astype(np.uint64)
    line = np.arange(ENTRIES, dtype=np.uint64)
    yield "sorted-u32le.bin", rising.astype("<u4").tobytes()
    yield "sorted-u64le.bin", (rising * 4096).astype("<u8").tobytes()
    yield "sorted-u64be.bin", (rising * 4096).astype(">u8").tobytes()
    yield "step-128-u32le.bin", (line * 128 + 128).astype("<u4").tobytes()
    yield "step-4097-u32be.bin", (line * 4097 + 1540).astype(">u4").tobytes()
    yield "step-1-u32le.bin", line.astype("<u4").tobytes()
    yield "step-64k-u64be.bin", ((line * 65536 + 0x50000) | (1 << 63)).astype(">u8").tobytes()
    yield "step-1m-u64le.bin", (((line + 4) << 20) | 6).astype("<u8").tobytes()
    yield "relocations.bin", np.stack([rising * 16 + 0x400000, line * 8 + 8], axis=1).astype("<u8").tobytes()
    yield "erased.bin", b"\xff" * (256 << 10)
