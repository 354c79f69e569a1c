"""XenServer / XCP-ng XVA: a tar of ova.xml and, per disk, numbered chunks of 1 MiB, each followed by its hash.

    ova.xml | Ref:N/00000000 | Ref:N/00000000.xxhash | Ref:N/00000001 | ...        (older: .checksum, SHA-1)

Source: xapi `stream_vdi.ml` and its format note. Chunks of zeros are left out; the first and the last chunk of a disk
are always there. The number is a counter, not an offset: after some seconds of zeros the exporter writes a member of
length 0 with the current number and gives the chunk itself the next one, so

    guest_offset = (number - members of length 0 of this disk with a smaller number) * 1 MiB

Chunk and hash prove each other. Numbers behind a gap in the archive are believed where the disk's size proves that no
member of length 0 was lost in it, or where the disk has none at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import (
    DATA,
    HOLE,
    LOST,
    SUPPORTED,
    Check,
    Container,
    Evidence,
    Format,
    Gathered,
    GuestDisk,
    GuestMap,
    Marks,
    Orphan,
    Reader,
    Region,
    Signature,
)
from . import _xmlrpc
from ._tar import BLOCK, END_BLOCKS, parse_header
from ._xva_gather import Layout, first_of, guest_map, lay_out, marks, refs_of, units_of
from ._xva_stowed import stow
from ._xva_walk import BAD, CHUNK, GOOD, HOST_BLOCK, Budget, Chunk, Walk, hash_before, is_chunk, join_across, walk

FIRST_MEMBER = "ova.xml"
HEADER_KIND, CHUNK_KIND = "xva.header", "xva.chunk"
TAR = (257, b"\xff" * 5, b"ustar")
SIGNATURES = (Signature(b"ova.xml\0", HEADER_KIND, also=TAR), Signature(b"Ref:", CHUNK_KIND, also=TAR))

OUR_MAX_XML = 16 << 20  # bytes of ova.xml that are read
OUR_MAX_DISK = 1 << 50  # bytes; a larger size is a lie
OUR_MAX_SHOWN = 4  # chunks named in one check
OUR_MAX_JOINS = 256  # pairs of runs that are tried against a chunk's hash

Int64s = npt.NDArray[np.int64]


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A tar header with its sum: ova.xml pins the archive's start; a chunk says its disk and number.

    A chunk's header is not on the guest disk itself, and its number is no offset, so no guest_offset is claimed.
    Hashes have no evidence of their own: the chunk before them leads to them.
    """
    header = parse_header(reader.read(offset, BLOCK))
    if header is None:
        return None
    if signature.kind == HEADER_KIND:
        if header.name != FIRST_MEMBER or not header.is_file or not 0 < header.size <= OUR_MAX_XML:
            return None
        if b"<struct>" not in reader.read(offset + BLOCK, min(header.size, 4096)):
            return None
        return Evidence(HEADER_KIND, offset, header.span, container_offset=0, value=header.size)
    name = is_chunk(header)
    if name is None or name[2]:
        return None
    return Evidence(CHUNK_KIND, offset, header.span, identity=name[0], value=name[1], confidence=0.9)


# --- ova.xml -------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Disk:
    size: int
    name: str = ""
    device: str = ""


@dataclass(slots=True)
class _Machine:
    """What ova.xml tells: disks by "Ref:N", the machine's name, the product that exported it."""

    disks: dict[str, _Disk]
    name: str = ""
    system: str = ""


def _machine(reader: Reader, length: int) -> _Machine:
    text = reader.read(BLOCK, length).decode("utf-8", "replace")
    root = _xmlrpc.parse(text)
    found = _Machine({})
    if not isinstance(root, dict):
        return found
    version = root.get("version")
    if isinstance(version, dict):
        words = [version.get("product_brand"), version.get("product_version")]
        found.system = " ".join(_shown(w) for w in words if isinstance(w, str) and w)
    objects = root.get("objects")
    drives: list[dict[str, _xmlrpc.Value]] = []
    for item in objects if isinstance(objects, list) else []:
        snapshot = item.get("snapshot") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(snapshot, dict):
            continue
        kind, ref, name = item.get("class"), item.get("id"), snapshot.get("name_label")
        if kind == "VDI" and isinstance(ref, str):
            size = snapshot.get("virtual_size")
            if isinstance(size, str) and size.isascii() and size.isdigit() and len(size) < 17 \
                    and 0 < int(size) <= OUR_MAX_DISK:
                found.disks[ref] = _Disk(int(size), _shown(name))
        elif kind == "VM" and not found.name:
            found.name = _shown(name)
        elif kind == "VBD":
            drives.append(snapshot)
    for drive in drives:
        ref, device = drive.get("VDI"), drive.get("device") or drive.get("userdevice")
        if isinstance(ref, str) and ref in found.disks:
            found.disks[ref].device = _shown(device)
    return found


def _shown(value: object) -> str:
    """Text from evidence as it may be shown: one line, bounded."""
    text = value if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


# --- the guest's map -----------------------------------------------------------------------------------------------
def _offsets(chunks: list[Chunk], size: int | None, closed: bool) -> tuple[Int64s, str]:
    """guest_offset per data chunk (-1: not known), and what is wrong with the numbers ("" if nothing)."""
    empty = np.sort(np.array([c.number for c in chunks if c.size == 0], np.int64))
    data = [c for c in chunks if c.size]
    number = np.array([c.number for c in data], np.int64)
    segment = np.array([c.segment for c in data], np.int64)
    offset = (number - np.searchsorted(empty, number, side="left")) * CHUNK
    offset[offset > OUR_MAX_DISK] = -1
    anchored = chunks[0].number == 0  # the first chunk is always written
    if anchored and (segment == segment[0]).all():
        return offset, ""
    behind = np.ones(len(data), bool) if not anchored else segment != segment[0]
    if size is None or not closed:
        if len(empty) == 0:
            return offset, "behind a gap the chunks are placed by their numbers alone"
        offset[behind] = -1
        return offset, "members of length 0 may be lost in a gap; the chunks behind it have no place"
    lost = int(number[-1]) - (size - 1) // CHUNK - len(empty)  # members of length 0 that must have been in the gaps
    if lost == 0:
        return offset, ""
    tail = behind & (segment == segment[-1])
    offset[tail] -= lost * CHUNK if lost > 0 else 0
    offset[behind & ~tail if lost > 0 else behind] = -1
    return offset, f"{lost} members of length 0 are missing; only the last run of chunks has a sure place"


def _rows(data: list[Chunk], offset: Int64s, size: int, limit: int) -> Iterator[tuple[int, int, int, int]]:
    """(guest_offset, length, state, reader offset) of every chunk that has a place, parts beyond `size` cut off."""
    placed, count = np.unique(offset, return_counts=True)
    twice = set(placed[count > 1].tolist())
    for chunk, g in zip(data, offset.tolist(), strict=True):
        if g < 0 or g >= size:
            continue
        if chunk.verdict == BAD or g in twice:
            yield g, min(CHUNK, size - g), LOST, -1
            continue
        for at, p, n in chunk.pieces or ((0, chunk.data, chunk.size),):
            n = min(n, size - g - at)
            if p < 0:
                yield g + at, n, HOLE, -1
                continue
            there = min(n, limit - p)
            yield g + at, there, DATA, p
            if there < n:
                yield g + at + max(there, 0), n - max(there, 0), LOST, -1


def _guest_map(chunks: list[Chunk], size: int | None, closed: bool, limit: int) -> tuple[GuestMap, int, list[Check]]:
    """The map of one disk (reader offsets), its size, and what its chunks say of themselves."""
    data = [c for c in chunks if c.size]
    ref = chunks[0].ref
    if not data:
        disk = size or 0
        return GuestMap.flat(disk, state=LOST), disk, [Check("xva.chunks", disk == 0, f"{ref} has no chunk")]
    offset, trouble = _offsets(chunks, size, closed)
    known = offset >= 0
    ends = [g + c.size for g, c in zip(offset.tolist(), data, strict=True) if g >= 0]
    disk = size if size is not None else max(ends, default=0)
    rows = sorted({r[0]: r for r in _rows(data, offset, disk, limit) if r[1] > 0}.values())
    # a chunk that is not there is zero only when its neighbours follow each other in the archive without a break
    order = np.argsort(offset[known], kind="stable")
    start = offset[known][order]
    segment = np.array([c.segment for c in data], np.int64)[known][order]
    whole = np.array([c.size for c in data], np.int64)[known][order] == CHUNK
    sure = {int(a) + CHUNK for a, ok in zip(start[:-1], (segment[1:] == segment[:-1]) & whole[:-1], strict=True) if ok}
    out: list[tuple[int, int, int, int]] = []
    at = 0
    for g, n, state, p in [*rows, (disk, 0, LOST, -1)]:
        if g > at:
            out.append((at, g - at, HOLE if at in sure and g < disk else LOST, -1))
        if n > 0:
            out.append((g, n, state, p))
        at = max(at, g + n)
    columns = [np.array(column, np.int64) for column in zip(*out, strict=True)] or [np.zeros(0, np.int64)] * 4
    rising = all(a.number < b.number for a, b in zip(chunks, chunks[1:], strict=False))
    checks = [
        Check("xva.numbers", rising, "" if rising else f"{ref}: chunk numbers do not rise"),
        Check("xva.places", not trouble, f"{ref}: {trouble}" if trouble else ""),
    ]
    if size is not None:
        end = max(ends, default=0)
        fits = end == size
        checks.append(Check("xva.size", fits, "" if fits else f"{ref}: chunks end at {end:#x}, the disk at {size:#x}"))
    return GuestMap.build(columns[0], columns[1], columns[2], columns[3]), disk, checks


# --- the archive ---------------------------------------------------------------------------------------------------
def _container(w: Walk, chunks: list[Chunk], machine: _Machine, limit: int) -> Container:
    """All disks of the chunks of one archive; offsets stay the walk's own."""
    by_ref: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_ref.setdefault(chunk.ref, []).append(chunk)
    out = Container("xva", ", ".join(sorted(a[1:] for a in w.algorithms)) or "plain", w.end, [], rebuild=False,
                    system=machine.system or "XenServer / XCP-ng", cluster=CHUNK, size_exact=w.ended)
    out.regions = w.regions()
    for ref in sorted(by_ref.keys() | machine.disks.keys(), key=lambda r: (len(r), r)):
        disk = machine.disks.get(ref)
        if ref not in by_ref:  # a CD in the drive, or a disk whose chunks are all lost
            out.detail[ref] = f"{disk.size if disk else 0} bytes, no chunk in the archive"
            continue
        guest_map, size, checks = _guest_map(by_ref[ref], disk.size if disk else None, ref in w.closed, limit)
        out.guests.append(GuestDisk(size, guest_map, "member", ref))
        out.checks += checks
        if disk is not None:
            out.detail[ref] = " ".join(filter(None, (disk.device, disk.name)))
            out.names += [disk.name] if disk.name and disk.name not in out.names else []
    if machine.name:
        out.names.insert(0, machine.name)
    out.checks += _verdicts(w, chunks)
    return out


def _verdicts(w: Walk, chunks: list[Chunk]) -> list[Check]:
    bad = [f"{c.ref}/{c.number:08d}" for c in chunks if c.verdict == BAD]
    told = f"{sum(c.verdict == GOOD for c in chunks)} of {len(chunks)} chunks agree with their hash"
    if bad:
        told += f"; not: {', '.join(bad[:OUR_MAX_SHOWN])}{' ...' if len(bad) > OUR_MAX_SHOWN else ''}"
    breaks = f"{len(w.breaks)} breaks, the first at {w.breaks[0][0]:#x}" if w.breaks else ""
    return [
        Check("xva.hashes", not bad, told),
        Check("xva.breaks", not w.breaks, breaks, False),
        Check("xva.end", w.ended, "" if w.ended else f"no end marker at {w.end:#x}", False),
    ]


def open_xva(reader: Reader) -> Container:
    """Walks the archive from ova.xml on: 1 KiB read a chunk, and the chunks themselves for their hashes (bounded)."""
    header = parse_header(reader.read(0, BLOCK))
    if header is None or header.name != FIRST_MEMBER or not header.is_file:
        raise Damaged("no XVA: the first tar member is not ova.xml", offset=0)
    if not 0 < header.size <= OUR_MAX_XML:
        raise Damaged("no XVA", offset=124, field="ova.xml size", value=header.size, bound=f"at most {OUR_MAX_XML}")
    machine = _machine(reader, header.size)
    w = walk(reader, 0, Budget())
    if not w.chunks and not machine.disks:
        raise Damaged("no XVA: ova.xml tells of no disk, and no chunk follows it", offset=0)
    out = _container(w, w.chunks, machine, min(w.end, reader.size))
    out.regions.insert(0, Region(0, header.span, "xva.ova-xml", SUPPORTED))
    for ref in machine.disks:
        if ref in w.closed or all(c.ref != ref for c in w.chunks):
            continue
        out.checks.append(Check("xva.complete", False, f"{ref}: the archive breaks off inside this disk", False))
    out.size = min(out.size, max(reader.size, 0))
    return out


# --- without ova.xml -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Join:
    """The run `index` continues another one inside its last chunk: `cut` bytes of it there, the rest at `rest`."""

    index: int
    cut: int
    rest: int


def salvage(reader: Reader, evidence: Sequence[Evidence]) -> Iterable[Orphan]:
    """Archives whose start is lost: runs of chunks, tied to each other only where a chunk's hash spans both runs."""
    walks: list[Walk] = []
    covered = -1
    budget = Budget()
    for e in sorted((e for e in evidence if e.kind == CHUNK_KIND), key=lambda e: e.image_offset):
        if e.image_offset >= covered:
            w = walk(reader, e.image_offset, budget)
            if w.chunks:
                walks.append(w)
                covered = w.end
    joins = _joins(reader, walks)
    continued = {j.index for j in joins.values()}
    for i in range(len(walks)):
        if i not in continued:
            yield _orphan(reader, walks, i, joins)


def _joins(reader: Reader, walks: list[Walk]) -> dict[int, _Join]:
    """Which run is continued by which, proven by the chunk between them. No ring, and no run is taken twice."""
    waiting: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for i, w in enumerate(walks):
        name = hash_before(reader, w.start)
        if name is not None:
            waiting.setdefault(name[:2], []).append((i, name[2]))
    joins: dict[int, _Join] = {}
    tries = 0
    for i, w in enumerate(walks):
        chunk = w.open_chunk
        for j, suffix in waiting.get((chunk.ref, chunk.number), []) if chunk is not None else []:
            if chunk is None or _leads(joins, j, i) or tries >= OUR_MAX_JOINS:
                continue
            tries += 1
            place = join_across(reader, chunk, walks[j].start, suffix)
            if place is not None:
                joins[i] = _Join(j, *place)
                waiting[chunk.ref, chunk.number].remove((j, suffix))
                break
    return joins


def _leads(joins: dict[int, _Join], start: int, end: int) -> bool:
    """True when the runs that follow `start` come to `end`."""
    while start != end and start in joins:
        start = joins[start].index
    return start == end


def _orphan(reader: Reader, walks: list[Walk], first: int, joins: dict[int, _Join]) -> Orphan:
    """One archive from its runs in file order; file_offset 0 is its first chunk's header."""
    whole = Walk(walks[first].start, walks[first].end)
    runs: list[tuple[int, int, int]] = []
    size, segment, i, start = 0, 0, first, walks[first].start
    while True:
        w, join = walks[i], joins.get(i)
        last = w.chunks[-1]
        end = min(w.end, reader.size) if join is None else last.data + join.cut
        if end > start:
            runs.append((size, start, end - start))
            size += end - start
        for chunk in w.chunks:
            chunk.segment += segment
        segment = last.segment
        whole.chunks += w.chunks
        whole.breaks += w.breaks
        whole.algorithms |= w.algorithms
        whole.closed |= w.closed
        whole.proven += w.proven
        whole.ended = w.ended
        if join is None:
            break
        i, start = join.index, join.rest
        whole.prove(last.header, last.data + join.cut)
        whole.prove(start, walks[i].start)
    table = np.array(runs, np.int64).reshape(-1, 3)
    container = _container(whole, whole.chunks, _Machine({}), reader.size)
    container.size, container.size_exact = size, whole.ended
    for guest in container.guests:
        _to_file(guest.map, table)
    places = [(_file_offset(r.file_offset, table), r) for r in container.regions]
    container.regions = [Region(f, r.length, r.kind, r.grade) for f, r in sorted(places, key=lambda x: x[0]) if f >= 0]
    container.checks.append(Check("xva.start", False, "ova.xml is lost: disk sizes are those of the chunks found",
                                  False))
    return Orphan(container, table, "xva.chunks")


def _file_offset(image_offset: int, runs: Int64s) -> int:
    inside = (runs[:, 1] <= image_offset) & (image_offset < runs[:, 1] + runs[:, 2])
    i = int(np.argmax(inside))
    return int(runs[i, 0] + image_offset - runs[i, 1]) if inside[i] else -1


def _to_file(guest_map: GuestMap, runs: Int64s) -> None:
    """Turns the image offsets of a map into file offsets, in place (a piece of a chunk never spans two runs)."""
    order = runs[np.argsort(runs[:, 1])]
    data = guest_map.state == DATA
    p = guest_map.file_offset[data]
    i = np.maximum(np.searchsorted(order[:, 1], p, side="right") - 1, 0)
    guest_map.file_offset[data] = p - order[i, 1] + order[i, 0]


# --- in pieces -------------------------------------------------------------------------------------------------------
def gather(image: Reader, start: int, reader: Reader, marks: Marks) -> Gathered | None:
    """The archive whose ova.xml lies at image offset `start`, its chunks anywhere."""
    header = parse_header(reader.read(0, BLOCK))
    if header is None or header.name != FIRST_MEMBER or not 0 < header.size <= OUR_MAX_XML:
        return None
    machine = _machine(reader, header.size)
    layout = lay_out(start, header.span, marks, sorted(machine.disks, key=lambda r: (len(r), r)))
    return None if layout is None else _gathered(start, header.span, machine, layout)


def loose(image: Reader, marks: Marks) -> Iterator[Gathered]:
    """Archives without ova.xml: chunks of one name each, the disk's size unknown."""
    for ref in refs_of(marks):
        first = first_of(marks, ref)
        begin = HOST_BLOCK + first % HOST_BLOCK  # as far as an ova.xml of whole blocks would have it
        layout = lay_out(first - begin, begin, marks, [ref])
        if layout is not None and first >= begin:
            found = _gathered(first - begin, 0, _Machine({}), layout)
            assert found.container is not None
            found.container.checks.append(Check("xva.start", False, "ova.xml is lost: disk sizes are those of the "
                                                "chunks found", False))
            yield found


def _gathered(start: int, header: int, machine: _Machine, layout: Layout) -> Gathered:
    """header: bytes of the first member, 0 where it is lost."""
    out = Container("xva", "gathered", layout.end + END_BLOCKS * BLOCK, [], rebuild=False, cluster=CHUNK,
                    system=machine.system or "XenServer / XCP-ng", size_exact=False)
    out.regions = [Region(0, header, "xva.ova-xml", SUPPORTED)] if header else []
    for ref, slots in layout.slots.items():
        disk = machine.disks.get(ref)
        if not any(s.size for s in slots):
            out.detail[ref] = f"{disk.size if disk else 0} bytes, no chunk in the image"
            continue
        found, size = guest_map(slots, disk.size if disk else None)
        out.guests.append(GuestDisk(size, found, "member", ref))
        if disk is not None:
            out.detail[ref] = " ".join(filter(None, (disk.device, disk.name)))
            out.names += [disk.name] if disk.name and disk.name not in out.names else []
        lost = sum(s.number < 0 for s in slots)
        out.checks.append(Check("xva.places", not lost, f"{ref}: {lost} chunks are lost whose place is not known"
                                if lost else ""))
    if machine.name:
        out.names.insert(0, machine.name)
    pins = [*([(0, start, header)] if header else []), *((f, p, BLOCK) for f, p in sorted(layout.pins))]
    return Gathered(out, units_of(layout), np.array(pins, np.int64), start)


FORMAT = Format("xva", "xva", SIGNATURES, open_xva, confirm, salvage=salvage, marks=marks, gather=gather,
                loose=loose, stow=stow)
