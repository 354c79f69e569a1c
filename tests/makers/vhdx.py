"""VHDX as Hyper-V lays it out, from [MS-VHDX]: metadata before the BAT, 4096-byte sectors, sector bitmaps, a dirty log.

Judged by qemu-img, dissect.hypervisor and libvhdi (tests/formats/test_vhdx.py).
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.reference.crc32c import crc32c

from . import Maker, parent_of

KIB64, MIB, PAGE = 1 << 16, 1 << 20, 4096
LOG_AT, METADATA_AT, BAT_AT = MIB, 2 * MIB, 3 * MIB


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


def summed(raw: bytes) -> bytes:
    """With its CRC-32C at byte 4."""
    return raw[:4] + struct.pack("<I", crc32c(raw[:4] + bytes(4) + raw[8:])) + raw[8:]


@dataclass
class Plan:
    """One file. sector: logical sector size; states: what absent blocks are marked with; parent: (GUID, path)."""

    block: int = MIB
    sector: int = 512
    fixed: bool = False
    absent: int = 0
    creator: str = "Microsoft Windows 10.0.19041.1"
    disk_id: bytes = bytes(range(16))
    data_write: bytes = bytes(range(16, 32))
    parent: tuple[bytes, Path] | None = None
    old_data_write: bytes | None = None
    dirty: bool = False
    blocks: dict[int, int] = field(default_factory=dict[int, int])


def header(sequence: int, data_write: bytes, log_guid: bytes) -> bytes:
    raw = struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, sequence, b"\x77" * 16, data_write, log_guid, 0, 1, MIB, LOG_AT)
    return summed(raw.ljust(PAGE, b"\0"))


def regions(bat_length: int) -> bytes:
    raw = struct.pack("<4sIII", b"regi", 0, 2, 0)
    raw += guid("8b7ca206-4790-4b9a-b8fe-575f050f886e") + struct.pack("<QII", METADATA_AT, MIB, 1)
    raw += guid("2dc27766-f623-4200-9d64-115e9bfd4a08") + struct.pack("<QII", BAT_AT, bat_length, 1)
    return summed(raw.ljust(KIB64, b"\0"))


def locator(parent_guid: bytes, path: Path) -> bytes:
    entries = {
        "parent_linkage": "{" + str(uuid.UUID(bytes_le=parent_guid)) + "}",
        "relative_path": ".\\" + path.name,
        "absolute_win32_path": "C:\\disks\\" + path.name,
    }
    head = guid("b04aefb7-d19e-4a81-b789-25b8e9445913") + struct.pack("<HH", 0, len(entries))
    strings, at = b"", 20 + 12 * len(entries)
    for key, value in entries.items():
        k, v = key.encode("utf-16-le"), value.encode("utf-16-le")
        head += struct.pack("<IIHH", at + len(strings), at + len(strings) + len(k), len(k), len(v))
        strings += k + v
    return head + strings


def metadata(plan: Plan, size: int) -> bytes:
    items = [
        ("caa16737-fa36-4d43-b3b6-33f0aa44e76b", struct.pack("<II", plan.block, plan.fixed | 2 * bool(plan.parent)), 4),
        ("2fa54224-cd1b-4876-b211-5dbed83bf4b8", struct.pack("<Q", size), 6),
        ("beca12ab-b2e6-4523-93ef-c309e000c746", plan.disk_id, 6),
        ("8141bf1d-a96f-4709-ba47-f233a8faab5f", struct.pack("<I", plan.sector), 6),
        ("cda348c7-445d-4471-9cc9-e9885251c556", struct.pack("<I", 4096), 6),
    ]
    if plan.parent:
        items.append(("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", locator(*plan.parent), 4))
    table, body = struct.pack("<8sHH20x", b"metadata", 0, len(items)), b""
    for name, value, flags in items:
        table += guid(name) + struct.pack("<IIII", KIB64 + len(body), len(value), flags, 0)
        body += value.ljust(-(-len(value) // 8) * 8, b"\0")
    return table.ljust(KIB64, b"\0") + body


def log_entry(tail: int, sequence: int, log_guid: bytes, pages: list[tuple[int, bytes]], zeros: list[tuple[int, int]],
              length: int) -> bytes:
    """One entry: "zero" descriptors first, then "desc" with their data sectors. length: of the file, bytes."""
    count = len(pages) + len(zeros)
    head = b""
    for offset, size in zeros:
        head += struct.pack("<4s4xQQQ", b"zero", size, offset, sequence)
    for offset, page in pages:
        head += struct.pack("<4s4s8sQQ", b"desc", page[-4:], page[:8], offset, sequence)
    room = -(-(64 + len(head)) // PAGE) * PAGE
    high, low = struct.pack("<I", sequence >> 32), struct.pack("<I", sequence & 0xFFFFFFFF)
    data = b"".join(b"data" + high + page[8:-4] + low for _, page in pages)
    raw = struct.pack("<4sIIIQII16sQQ", b"loge", 0, room + len(data), tail, sequence, count, 0, log_guid, length,
                      length)
    return summed((raw + head).ljust(room, b"\0") + data)


def write(out: Path, plan: Plan, data: bytes, seed: int, parent: bytes | None = None) -> None:
    """Blocks lie in an order drawn from the seed, with a free MiB here and there as Hyper-V may leave."""
    rng = np.random.default_rng(seed)
    size, block = len(data), plan.block
    n, ratio = -(-size // block), (1 << 23) * plan.sector // block
    chunks = -(-n // ratio)
    bat = [0] * (chunks * (ratio + 1) if parent is not None else n + (n - 1) // ratio)
    bat_length = -(-8 * len(bat) // MIB) * MIB
    at = BAT_AT + bat_length
    bitmaps = np.zeros((chunks, 8 * MIB), np.uint8)
    bitmap_at: dict[int, int] = {}
    body: list[tuple[int, bytes]] = []
    order = np.arange(n) if plan.fixed else rng.permutation(n)
    for i in order.tolist():
        slot, chunk = i + i // ratio, i // ratio
        part = data[i * block : (i + 1) * block].ljust(block, b"\0")
        state = 6
        if parent is not None:
            old = parent[i * block : (i + 1) * block].ljust(block, b"\0")
            new, was = (np.frombuffer(x, np.uint8).reshape(-1, plan.sector) for x in (part, old))
            bits = (new != was).any(axis=1)
            if not bits.any():
                continue
            if not bits.all():
                state = 7
                if chunk not in bitmap_at:
                    bitmap_at[chunk] = at
                    bat[(chunk + 1) * ratio + chunk] = at | 6
                    at += MIB
                per = block // plan.sector
                bitmaps[chunk, i % ratio * per : (i % ratio + 1) * per] = bits
                part = np.where(bits[:, None], new, 0xEE).astype(np.uint8).tobytes()
        elif not plan.fixed and not any(part):
            bat[slot] = plan.absent
            continue
        bat[slot] = at | state
        plan.blocks[i] = at
        body.append((at, part))
        at += block + MIB * (not plan.fixed and int(rng.integers(0, 4)) == 0)
    raw_bat = b"".join(struct.pack("<Q", e) for e in bat)
    for chunk, place in bitmap_at.items():
        body.append((place, np.packbits(bitmaps[chunk], bitorder="little").tobytes()))
    end = max([BAT_AT + bat_length, *(place + len(part) for place, part in body)])
    log_guid = b"\x10" + rng.bytes(15) if plan.dirty else bytes(16)
    with out.open("wb") as f:
        f.write((b"vhdxfile" + plan.creator.encode("utf-16-le")).ljust(520, b"\0"))
        f.truncate(end)
        for place, part in [
            (KIB64, header(8, plan.old_data_write or plan.data_write, bytes(16))),
            (2 * KIB64, header(9, plan.data_write, log_guid)),
            (3 * KIB64, regions(bat_length)),
            (4 * KIB64, regions(bat_length)),
            (METADATA_AT, metadata(plan, size)),
            (BAT_AT, raw_bat),
            *body,
        ]:
            f.seek(place)
            f.write(part)
    if plan.dirty:
        soil(out, raw_bat, log_guid, end)


def soil(out: Path, raw_bat: bytes, log_guid: bytes, end: int) -> None:
    """Takes the BAT's newest page away and leaves it to the log: two entries, the second round the ring's end.

    Also in the ring: an entry of another log, a later entry whose CRC is wrong, and an old sequence of ours.
    """
    new = raw_bat[:PAGE].ljust(PAGE, b"\0")
    stale = bytes(PAGE)
    wrong = b"\xfe\xff\xff\xff\xff\xff\xff\x06" * 512
    first_at = MIB - 3 * PAGE
    first = log_entry(first_at, 41, log_guid, [], [(BAT_AT, PAGE)], end)
    second_at = first_at + len(first)
    # a second page: the metadata item page, unchanged
    with out.open("r+b") as f:
        f.seek(METADATA_AT)
        item = f.read(PAGE)
        second = log_entry(first_at, 42, log_guid, [(BAT_AT, new), (METADATA_AT, item)], [], end)
        ring = bytearray(MIB)
        for place, entry in [
            (10 * PAGE, log_entry(10 * PAGE, 99, b"\x22" * 16, [(BAT_AT, wrong)], [], end)),
            (20 * PAGE, log_entry(20 * PAGE, 7, log_guid, [(BAT_AT, wrong)], [], end)),
            (30 * PAGE, bytes(4) + log_entry(30 * PAGE, 43, log_guid, [(BAT_AT, wrong)], [], end)[4:]),
            (first_at, first),
            (second_at, second),
        ]:
            head = entry[: MIB - place]
            ring[place : place + len(head)] = head
            ring[: len(entry) - len(head)] = entry[len(head) :]
        f.seek(LOG_AT)
        f.write(ring)
        f.seek(BAT_AT)
        f.write(b"\x99" * 64 + stale[64:])


def make(**options: object) -> Callable[[Path, Path, int], None]:
    def made(raw_path: Path, out_path: Path, seed: int) -> None:
        write(out_path, Plan(**options), raw_path.read_bytes(), seed)  # type: ignore[arg-type]

    return made


def make_differencing(**options: object) -> Callable[[Path, Path, int], None]:
    def made(raw_path: Path, out_path: Path, seed: int) -> None:
        """The parent holds the same disk with runs of sectors different; one block differs altogether."""
        rng = np.random.default_rng(seed)
        plan = Plan(**options)  # type: ignore[arg-type]
        data = raw_path.read_bytes()
        old = np.frombuffer(data, np.uint8).reshape(-1, plan.sector).copy()
        for start in range(3, len(old), 401):
            old[start : start + int(rng.integers(1, 150))] ^= 0x5A
        per = plan.block // plan.sector
        old[per : 2 * per] ^= 0x33
        old[2 * per : 3 * per] = np.frombuffer(data, np.uint8).reshape(-1, plan.sector)[2 * per : 3 * per]
        parent, name = parent_of(out_path), rng.bytes(16)
        write(parent, Plan(block=plan.block, sector=plan.sector, data_write=rng.bytes(16), old_data_write=name),
              old.tobytes(), seed + 1)
        plan.parent = (name, parent)
        write(out_path, plan, data, seed, parent=old.tobytes())

    return made


MAKERS: dict[str, Maker] = {
    "vhdx-windows": Maker("vhdx", "dynamic", "vhdx", make()),
    "vhdx-windows-fixed": Maker("vhdx", "fixed", "vhdx", make(fixed=True)),
    "vhdx-4096": Maker("vhdx", "dynamic", "vhdx", make(sector=4096, block=2 * MIB)),
    "vhdx-dirty-log": Maker("vhdx", "dynamic", "vhdx", make(dirty=True)),
    "vhdx-differencing": Maker("vhdx", "differencing", "avhdx", make_differencing()),
    "vhdx-differencing-4096": Maker("vhdx", "differencing", "avhdx", make_differencing(sector=4096, block=2 * MIB)),
}
