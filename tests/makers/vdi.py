"""VDI as VirtualBox lays it out (VDICore.h), which no tool here writes: map at 1 MiB, zero entries, diff, undo, v0."""

from __future__ import annotations

import random
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import Maker, parent_of

BLOCK = 1 << 20
MIB = 1 << 20
FREE, ZERO = 0xFFFFFFFF, 0xFFFFFFFE
DYNAMIC, FIXED, UNDO, DIFFERENCING = 1, 2, 3, 4
NIL = uuid.UUID(int=0)
TEXT = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
OLD_TEXT = b"<<< innotek VirtualBox Disk Image >>>\n"


@dataclass(frozen=True)
class Identity:
    """The four UUIDs of a header."""

    create: uuid.UUID
    modify: uuid.UUID
    linkage: uuid.UUID = NIL
    parent_modify: uuid.UUID = NIL


def make_uuid(rng: random.Random) -> uuid.UUID:
    return uuid.UUID(int=rng.getrandbits(128) | 1)


def header_v1(kind: int, size: int, ident: Identity, blocks: int, used: int, map_at: int, data_at: int) -> bytes:
    """Pre-header and the 400-byte header of version 1.1."""
    raw = TEXT.ljust(64, b"\0") + struct.pack("<IIIII", 0xBEDA107F, 0x00010001, 400, kind, 0)
    raw = raw.ljust(340, b"\0") + struct.pack("<II", map_at, data_at)
    raw += struct.pack("<IIIII", 0, 0, 0, 512, 0)
    raw += struct.pack("<QIIII", size, BLOCK, 0, blocks, used)
    raw += ident.create.bytes_le + ident.modify.bytes_le + ident.linkage.bytes_le + ident.parent_modify.bytes_le
    return raw + struct.pack("<IIII", 0, 0, 0, 512)


def header_v0(kind: int, size: int, ident: Identity, blocks: int, used: int) -> bytes:
    """Pre-header and VDIHEADER0: 420 bytes in all, the map follows."""
    raw = OLD_TEXT.ljust(64, b"\0") + struct.pack("<IIII", 0xBEDA107F, 2, kind, 0)
    raw = raw.ljust(336, b"\0") + struct.pack("<IIII", 0, 0, 0, 512)
    raw += struct.pack("<QIII", size, BLOCK, blocks, used)
    return raw + ident.create.bytes_le + ident.modify.bytes_le + ident.linkage.bytes_le


def write(path: Path, kind: int, size: int, ident: Identity, content: dict[int, bytes], order: Sequence[int],
          zero: Sequence[int] = (), old: bool = False) -> None:
    """content: block number -> its bytes; order: block numbers as they were first written; zero: zero entries."""
    blocks = -(-size // BLOCK)
    entries = [FREE] * blocks
    for number in zero:
        entries[number] = ZERO
    for place, number in enumerate(order):
        entries[number] = place
    table = struct.pack(f"<{blocks}I", *entries)
    if old:
        map_at, data_at = 420, 420 + len(table)
        head = header_v0(kind, size, ident, blocks, len(order))
    else:
        map_at = MIB
        data_at = map_at + -(-len(table) // MIB) * MIB
        head = header_v1(kind, size, ident, blocks, len(order), map_at, data_at)
    with path.open("wb") as out:
        out.write(head)
        out.seek(map_at)
        out.write(table)
        for place, number in enumerate(order):
            out.seek(data_at + place * BLOCK)
            out.write(content[number].ljust(BLOCK, b"\0"))


def split(raw_path: Path) -> tuple[int, dict[int, bytes], list[int]]:
    """Size, the blocks that are not all zero, and the numbers of those that are."""
    raw = raw_path.read_bytes()
    blocks = {i: raw[i * BLOCK : (i + 1) * BLOCK] for i in range(-(-len(raw) // BLOCK))}
    return len(raw), {i: b for i, b in blocks.items() if any(b)}, [i for i, b in blocks.items() if not any(b)]


def shuffled(numbers: Sequence[int], rng: random.Random) -> list[int]:
    out = list(numbers)
    rng.shuffle(out)
    return out


def dynamic(raw_path: Path, out_path: Path, seed: int) -> None:
    """Half of the empty blocks as zero entries, the others free."""
    rng = random.Random(seed)
    size, content, empty = split(raw_path)
    write(out_path, DYNAMIC, size, Identity(make_uuid(rng), make_uuid(rng)), content, shuffled(list(content), rng),
          empty[::2])


def fixed(raw_path: Path, out_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    size, content, empty = split(raw_path)
    content |= {i: b"" for i in empty}
    write(out_path, FIXED, size, Identity(make_uuid(rng), make_uuid(rng)), content, sorted(content))


def version_0(raw_path: Path, out_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    size, content, empty = split(raw_path)
    write(out_path, DYNAMIC, size, Identity(make_uuid(rng), make_uuid(rng)), content, shuffled(list(content), rng),
          empty[::2], old=True)


def child(raw_path: Path, out_path: Path, seed: int, kind: int = DIFFERENCING, old: bool = False) -> None:
    """The child holds every other block, and hides parent bytes under zero entries; the parent holds the rest."""
    rng = random.Random(seed)
    size, content, empty = split(raw_path)
    numbers = shuffled(list(content), rng)
    mine, theirs = numbers[::2], numbers[1::2]
    hidden = empty[::2]
    base = Identity(make_uuid(rng), make_uuid(rng))
    below = {i: content[i] for i in theirs} | {i: b"stale " * 99 for i in (*hidden, *mine[:2])}
    write(parent_of(out_path), DYNAMIC, size, base, below, shuffled(list(below), rng), old=old)
    link = Identity(make_uuid(rng), make_uuid(rng), base.create, base.modify)
    write(out_path, kind, size, link, content, mine, hidden, old=old)


def undo(raw_path: Path, out_path: Path, seed: int) -> None:
    child(raw_path, out_path, seed, UNDO)


def version_0_child(raw_path: Path, out_path: Path, seed: int) -> None:
    child(raw_path, out_path, seed, old=True)


MAKERS: dict[str, Maker] = {
    "vdi-virtualbox": Maker("vdi", "dynamic", ".vdi", dynamic),
    "vdi-virtualbox-fixed": Maker("vdi", "fixed", ".vdi", fixed),
    "vdi-v0": Maker("vdi", "dynamic-v0", ".vdi", version_0),
    "vdi-differencing": Maker("vdi", "differencing", ".vdi", child),
    "vdi-undo": Maker("vdi", "undo", ".vdi", undo),
    "vdi-v0-differencing": Maker("vdi", "differencing-v0", ".vdi", version_0_child),
}
