"""VMDK kinds that no tool here makes: streams of two layouts, split extents as VirtualBox, COWD, SESparse.

From VMware's "Virtual Disk Format 1.1", VirtualBox's and open-vmdk's behaviour, and QEMU's readers. Judged by qemu-img,
dissect.hypervisor and 7-Zip; COWD and SESparse need a text descriptor beside them there: `describe`.
"""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import numpy as np

from . import Maker

SECTOR = 512
GRAIN = 128 * SECTOR
PER_TABLE = 512
NO_OFFSET = (1 << 64) - 1


def describe(out_path: Path, extents: list[tuple[int, str, str]], create_type: str, *, cid: int = 0x1234ABCD,
             parent_cid: int = 0xFFFFFFFF, hint: str = "") -> Path:  # fmt: skip
    """Writes a text descriptor for (sectors, TYPE, file name) extents."""
    out_path.write_bytes(text(extents, create_type, cid, parent_cid, hint))
    return out_path


def text(extents: list[tuple[int, str, str]], create_type: str, cid: int, parent_cid: int = 0xFFFFFFFF,
         hint: str = "") -> bytes:  # fmt: skip
    lines = ["# Disk DescriptorFile", "version=1", f"CID={cid:08x}", f"parentCID={parent_cid:08x}",
             f'createType="{create_type}"', *([f'parentFileNameHint="{hint}"'] if hint else []),
             "", "# Extent description", *(f'RW {n} {kind} "{name}"' for n, kind, name in extents), "",
             "# The Disk Data Base", "#DDB", "", 'ddb.adapterType = "lsilogic"',
             'ddb.virtualHWVersion = "7"', ""]  # fmt: skip
    return "\n".join(lines).encode()


def header(capacity: int, flags: int, version: int, rgd: int, gd: int, overhead: int, descriptor: tuple[int, int],
           compress: int) -> bytes:  # fmt: skip
    return struct.pack("<4sIIQQQQIQQQB4sH", b"KDMV", version, flags, capacity, 128, *descriptor, PER_TABLE, rgd, gd,
                       overhead, 0, b"\n \r\n", compress).ljust(SECTOR, b"\0")  # fmt: skip


def grains_of(raw: bytes, unit: int) -> dict[int, bytes]:
    """The units of the guest that are not empty; the last one may be short."""
    return {at // unit: raw[at : at + unit] for at in range(0, len(raw), unit) if raw[at : at + unit].strip(b"\0")}


def make_stream(raw_path: Path, out_path: Path, seed: int) -> None:
    """Marker style: grains in disk order, each table behind its grains, empty tables not written, footer, end."""
    raw, rng = raw_path.read_bytes(), random.Random(seed)
    capacity = len(raw) // SECTOR
    tables = -(-capacity // (128 * PER_TABLE))
    top = header(capacity, 0x30001, 3, 0, NO_OFFSET, 128, (1, 20), 1)
    words = text([(capacity, "SPARSE", out_path.name)], "streamOptimized", rng.getrandbits(31))
    out = bytearray((top + words.ljust(20 * SECTOR, b"\0")).ljust(128 * SECTOR, b"\0"))
    directory = [0] * tables
    grains = grains_of(raw, GRAIN)
    for k in range(tables):
        table = [0] * PER_TABLE
        for i in range(PER_TABLE):
            data = grains.get(k * PER_TABLE + i)
            if data is not None:
                table[i] = len(out) // SECTOR
                packed = zlib.compress(data, rng.choice((0, 1, 6, 9)))
                out += struct.pack("<QI", (k * PER_TABLE + i) * 128, len(packed)) + packed
                out += bytes(-len(out) % SECTOR)
        if any(table):
            out += marker(4, 1)
            directory[k] = len(out) // SECTOR
            out += struct.pack(f"<{PER_TABLE}I", *table)
    size = -(-4 * tables // SECTOR)
    out += marker(size, 2)
    gd = len(out) // SECTOR
    out += struct.pack(f"<{tables}I", *directory).ljust(size * SECTOR, b"\0")
    out += marker(1, 3) + header(capacity, 0x30001, 3, 0, gd, 128, (1, 20), 1) + bytes(SECTOR)
    out_path.write_bytes(out)


def marker(value: int, kind: int) -> bytes:
    return struct.pack("<QII", value, 0, kind).ljust(SECTOR, b"\0")


def make_front_stream(raw_path: Path, out_path: Path, seed: int) -> None:
    """Front style as open-vmdk: one directory at sector 21, grains in the order of threads, an empty end sector."""
    raw, rng = raw_path.read_bytes(), random.Random(seed)
    capacity = len(raw) // SECTOR
    tables = -(-capacity // (128 * PER_TABLE))
    size = -(-4 * tables // SECTOR)
    overhead = 21 + size + 4 * tables
    words = text([(capacity, "SPARSE", out_path.name)], "streamOptimized", rng.getrandbits(31))
    out = bytearray(header(capacity, 0x30001, 3, 0, 21, overhead, (1, 20), 1) + words.ljust(20 * SECTOR, b"\0"))
    out += bytes(overhead * SECTOR - len(out))
    table = [0] * (tables * PER_TABLE)
    grains = list(grains_of(raw, GRAIN).items())
    rng.shuffle(grains)
    for number, data in grains:
        table[number] = len(out) // SECTOR
        packed = zlib.compress(data, rng.choice((0, 1, 6, 9)))
        out += struct.pack("<QI", number * 128, len(packed)) + packed
        out += bytes(-len(out) % SECTOR)
    directory = [21 + size + 4 * k for k in range(tables)]
    out[21 * SECTOR : 21 * SECTOR + 4 * tables] = struct.pack(f"<{tables}I", *directory)
    out[(21 + size) * SECTOR : overhead * SECTOR] = struct.pack(f"<{len(table)}I", *table)
    out_path.write_bytes(out + bytes(SECTOR))


def make_split(raw_path: Path, out_path: Path, seed: int) -> None:
    """One extent of a split disk as VirtualBox: no descriptor, redundant directory at sector 1, grains in any order."""
    raw, rng = raw_path.read_bytes(), random.Random(seed)
    capacity = len(raw) // SECTOR
    tables = -(-capacity // (128 * PER_TABLE))
    size = -(-4 * tables // SECTOR)
    gd = 1 + size + 4 * tables
    overhead = -(-(gd + size + 4 * tables) // 128) * 128
    grains = list(grains_of(raw, GRAIN).items())
    rng.shuffle(grains)
    table = [0] * (tables * PER_TABLE)
    body = bytearray()
    for number, data in grains:
        table[number] = overhead + len(body) // SECTOR
        body += data.ljust(GRAIN, b"\0")
    entries = struct.pack(f"<{len(table)}I", *table)
    out = bytearray(header(capacity, 3, 1, 1, gd, overhead, (0, 0), 0))
    for at in (1, gd):
        out += struct.pack(f"<{tables}I", *(at + size + 4 * k for k in range(tables))).ljust(size * SECTOR, b"\0")
        out += entries
    out_path.write_bytes(bytes(out).ljust(overhead * SECTOR, b"\0") + bytes(body))


def make_cowd(raw_path: Path, out_path: Path, seed: int) -> None:
    """vmfsSparse: sectors in random batches, a table allocated when its first sector is written."""
    raw, rng = raw_path.read_bytes(), random.Random(seed)
    capacity = len(raw) // SECTOR
    tables = -(-capacity // 4096)
    directory = [0] * tables
    table: dict[int, list[int]] = {}
    at = {k: 0 for k in range(tables)}
    out = bytearray(2048 + -(-4 * tables // SECTOR) * SECTOR)
    batches = list(grains_of(raw, 8 * SECTOR))
    rng.shuffle(batches)
    for batch in batches:
        for number in range(batch * 8, min(batch * 8 + 8, capacity)):
            data = raw[number * SECTOR : (number + 1) * SECTOR]
            if not data.strip(b"\0"):
                continue
            k = number // 4096
            if k not in table:
                table[k], at[k] = [0] * 4096, len(out)
                directory[k] = len(out) // SECTOR
                out += bytes(16384)
            table[k][number % 4096] = len(out) // SECTOR
            out += data
    for k, entries in table.items():
        out[at[k] : at[k] + 16384] = struct.pack("<4096I", *entries)
    top = struct.pack("<4s7I3I", b"COWD", 1, 3, capacity, 1, 4, tables, len(out) // SECTOR, 5, 255, 63)
    out[:2048] = top.ljust(2048, b"\0")
    out[2048 : 2048 + 4 * tables] = struct.pack(f"<{tables}I", *directory)
    out_path.write_bytes(out)


def make_sesparse(raw_path: Path, out_path: Path, seed: int) -> None:
    """seSparse in the layout of the one real sample: grains and tables handed out in random order, back map, bitmap."""
    raw, rng = raw_path.read_bytes(), random.Random(seed)
    capacity = len(raw) // SECTOR
    grains = list(grains_of(raw, 4096).items())
    rng.shuffle(grains)
    tables = -(-capacity // (4096 * 8))

    def up(sectors: int) -> int:
        return -(-sectors // 2048) * 2048

    gd, gd_size = 4096, up(-(-8 * tables // SECTOR))
    gt, gt_size = gd + gd_size, up(64 * tables)
    bitmap, bitmap_size = gt + gt_size, up(-(-capacity // 8 // 8 // SECTOR) + 1)
    back, back_size = bitmap + bitmap_size, up(-(-capacity // SECTOR) + 1)
    data_at = back + back_size
    out = bytearray(data_at * SECTOR + len(grains) * 4096)
    fields = [0xCAFEBABE, 0x200000001, capacity, 8, 64, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2048, 2048, gd, gd_size, gt, gt_size,
              bitmap, bitmap_size, back, back_size, data_at, up(capacity)]  # fmt: skip
    out[: 8 * 26] = struct.pack("<26Q", *fields)
    out[SECTOR : SECTOR + 32] = struct.pack("<4Q", 0xCAFECAFE, len({n // 4096 for n, _ in grains}), 36, 0)
    out[2 * SECTOR : 2 * SECTOR + 24] = struct.pack("<3Q", 0xDEAFC0DE, 36, 1)
    order: dict[int, int] = {}
    bits = np.zeros(len(grains) + 7, np.uint8)
    for place, (number, data) in enumerate(grains):
        index = order.setdefault(number // 4096, len(order))
        at = (gt + 64 * index) * SECTOR + 8 * (number % 4096)
        out[at : at + 8] = struct.pack("<Q", 3 << 60 | (place & 0xFFF) << 48 | place >> 12)
        at = back * SECTOR + 8 * place
        out[at : at + 8] = struct.pack("<Q", 1 << 60 | (number & 0xFFF) << 48 | number >> 12)
        at = data_at * SECTOR + place * 4096
        out[at : at + len(data)] = data
        bits[place] = 1
    packed = np.packbits(bits, bitorder="little").tobytes()
    out[bitmap * SECTOR : bitmap * SECTOR + len(packed)] = packed
    for k, index in order.items():
        at = gd * SECTOR + 8 * k
        out[at : at + 8] = struct.pack("<Q", 0x10000000 << 32 | index)
    out_path.write_bytes(out)


MAKERS: dict[str, Maker] = {
    "vmdk-stream": Maker("vmdk", "streamOptimized", ".vmdk", make_stream),
    "vmdk-front-stream": Maker("vmdk", "streamOptimized", ".vmdk", make_front_stream),
    "vmdk-split": Maker("vmdk", "twoGbMaxExtentSparse", ".vmdk", make_split),
    "cowd": Maker("cowd", "vmfsSparse", ".vmdk", make_cowd),
    "sesparse": Maker("sesparse", "seSparse", ".vmdk", make_sesparse),
}
