"""One assembled container: streams decoded, grades settled, guest disks described, extents laid out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..assemble.state import Assembled
from ..assemble.streams import CHAIN
from ..assemble.window import Window
from ..decoded import encoded_rows, taken
from ..disk import VirtualDisk
from ..filemap import FileMap
from ..model import (
    DATA,
    ENCODING_NAMES,
    EXTERNAL,
    GUESSED,
    HOLE,
    LOST,
    MISSING,
    PARENT,
    PLAIN,
    PROVEN,
    SUPPORTED,
    UNALLOCATED,
    ZERO,
    ZLIB,
    GuestDisk,
    GuestMap,
    Reader,
    Volume,
)
from .guest import describe, summary

HOST_BLOCK = 4096  # bytes; files lie at multiples of it

Row = tuple[int, int, int | None, int | None, str, int, str, str]
"""offset, length, image_offset, container_offset, encoding, stored, grade, rule"""


@dataclass(slots=True)
class Verified:
    """One guest disk of a container (the active state, a snapshot, a member), ready to be written and listed.

    guest_rows: its map in guest offsets. container_rows: the container's map (active disks of rebuilt containers).
    """

    item: Assembled
    guest: GuestDisk
    disk_id: str
    guest_rows: list[Row]
    container_rows: list[Row] = field(default_factory=list[Row])
    volumes: list[Volume] = field(default_factory=list[Volume])
    failed: list[str] = field(default_factory=list[str])

    @property
    def is_file(self) -> bool:
        """Whether it is written as the container itself, not as a raw disk taken out of it."""
        return self.guest.kind == "active" and self.item.container.rebuild

    @property
    def rows(self) -> list[Row]:
        """The rows that count for the grades: those of what is written."""
        return self.container_rows if self.is_file else self.guest_rows

    @property
    def guest_text(self) -> str | None:
        return summary(self.volumes) if self.volumes else None

    @property
    def consistent(self) -> bool | None:
        told = [v.consistent for v in self.volumes if v.consistent is not None]
        return all(told) if told else None


def guest_disk(images: list[Reader], item: Assembled, guest: GuestDisk, depth: int = 0) -> VirtualDisk:
    """The guest disk of an assembled container, read through its parents and members."""
    parent = None
    if item.parent is not None and guest.kind == "active" and depth < 64 and item.parent.container.guests:
        parent = guest_disk(images, item.parent, item.parent.container.guests[0], depth + 1)
    externals: list[tuple[int, int, Reader]] = []
    if depth < 64:
        for joined in item.members:
            inner = guest_disk(images, joined.item, joined.item.container.guests[0], depth + 1)
            m = joined.member
            externals.append((m.guest_offset, m.length, Window(inner, m.file_offset, m.length)))
    return VirtualDisk(item.view(images[item.source]), guest.map, parent, externals)


def verify(images: list[Reader], item: Assembled) -> Iterator[Verified]:
    """Settles the grades of `item` (its map is replaced) and yields its guest disks."""
    failed = [f"{c.name}: {c.detail}" if c.detail else c.name for c in item.container.checks if not c.ok]
    container_map = item.map
    item.map, sure = _settle(images[item.source], item, failed)
    if sure:
        container_map = item.map
    for n, guest in enumerate(item.container.guests):
        disk_id = item.disk_id if n == 0 and item.container.rebuild else f"{item.disk_id}.{n}"
        volumes: list[Volume] = []
        if item.container.detail.get("encrypted") != "yes":
            volumes = describe(guest_disk(images, item, guest))
        yield Verified(item, guest, disk_id, _guest_map(item, guest, sure),
                       _container_rows(item, container_map) if n == 0 and item.container.rebuild else [], volumes,
                       failed)
    if not item.container.guests:  # an archive that is rebuilt as a file; its disks are found by themselves
        nothing = GuestDisk(0, GuestMap.build([], [], [], []))
        yield Verified(item, nothing, item.disk_id, [], _container_rows(item, container_map), [], failed)


def _settle(image: Reader, item: Assembled, failed: list[str]) -> tuple[FileMap, bool]:
    """The container's map with what proves itself graded so: decoded streams, regions under a checksum.

    The second value: whether that holds of places in the container too. A stream that decodes proves what the guest
    holds; where in the file it stood is proven only as far as the map under it. With something wrong in a container
    that was led by its header alone, a part may be missing before it, and all behind it is shifted.
    """
    view = item.view(image)
    ranges: dict[int, tuple[int, str]] = {
        r.file_offset: (r.length, r.kind) for r in item.container.regions
        if r.grade == PROVEN and r.length > 0 and _belongs(item.map, r.file_offset, r.length)}
    broken = 0
    for guest in item.container.guests:
        m = guest.map
        for i, used in zip(encoded_rows(m).tolist(), taken(view, m).tolist(), strict=True):
            f = int(m.file_offset[i])
            if used < 0:
                broken += 1
            elif guest.guessed:
                continue
            elif m.encoding[i] == ZLIB or _one_run(item.map, f, used) and not _another(item.map, f):
                # else nothing but a checksum proves the join, or that it is this stream
                ranges[f] = (max(used, ranges.get(f, (0, ""))[0]), f"decoded.{ENCODING_NAMES[m.encoding[i]]}")
    if broken:
        failed.append(f"{broken} compressed clusters do not decode")
    laid: list[tuple[int, int, str, str]] = []
    at = 0
    for f in sorted(ranges):
        n, rule = ranges[f]
        low = max(f, at)
        if f + n > low:
            laid.append((low, f + n - low, PROVEN, rule))
            at = f + n
    sure = not failed or GUESSED not in item.map.grade
    return (item.map.graded(laid) if laid else item.map), sure


def _one_run(file_map: FileMap, file_offset: int, length: int) -> bool:
    """Whether the bytes lie one behind the other in the image, or their place is not a guess."""
    parts = file_map.cut(file_offset, length)
    return all(b[2] == a[2] + a[1] or b[3] != GUESSED for a, b in zip(parts, parts[1:], strict=False))


def _another(file_map: FileMap, file_offset: int) -> bool:
    """Whether a stream that begins here may be another one of its file, at a guessed place: those that begin with a
    block of the host do so at any distance. One that begins amid a block does at no other."""
    parts = file_map.cut(file_offset, 1)
    run = int(file_map.image_offset[0]) - int(file_map.file_offset[0])
    return file_offset % HOST_BLOCK == 0 and any(p - f != run and grade == GUESSED for f, _, p, grade, _ in parts)


def _belongs(file_map: FileMap, file_offset: int, length: int) -> bool:
    """Whether a structure that is sound in itself is this container's.

    It is in the header's own run, or given by a host, or what is checked leads to it without a gap.
    """
    first = int(file_map.image_offset[0])
    return all(grade != GUESSED or p - f == first or rule == CHAIN
               for f, _, p, grade, rule in file_map.cut(file_offset, length) if p >= 0)


def _container_rows(item: Assembled, container_map: FileMap) -> list[Row]:
    """The container's map with the bytes that we write ourselves laid over it."""
    rows: list[Row] = []
    at = 0
    for patch in sorted(item.container.patches, key=lambda p: p.file_offset):
        f, n = max(patch.file_offset, at), patch.file_offset + len(patch.data) - max(patch.file_offset, at)
        if n <= 0:
            continue
        rows += _plain(container_map.cut(at, f - at))
        # only what we rebuilt can be what the file once held; replaced names and replayed logs are our own bytes
        grade = patch.grade if patch.reason == "rebuilt" else GUESSED
        rows.append((f, n, None, f, "plain", n, grade, patch.reason))
        at = f + n
    return rows + _plain(container_map.cut(at, max(0, item.container.size - at)))


def _plain(cut: list[tuple[int, int, int, str, str]]) -> list[Row]:
    return [(f, n, p if p >= 0 else None, f, "plain", n, grade, rule) for f, n, p, grade, rule in cut]


def _guest_map(item: Assembled, guest: GuestDisk, sure: bool) -> list[Row]:
    """The guest's rows. Where a grave check failed a table may name the wrong place: only streams prove more."""
    rows = list(_guest_rows(item, guest, sure))
    if all(c.ok or not c.grave for c in item.container.checks):
        return rows
    return [(*r[:6], GUESSED, r[7]) if r[4] == "plain" and r[6] in (PROVEN, SUPPORTED) else r for r in rows]


def _guest_rows(item: Assembled, guest: GuestDisk, sure: bool = True, depth: int = 0) -> Iterator[Row]:
    """The guest's map, run by run, through the container's map. Without `sure`, tables that say zero may be others'."""
    m = guest.map
    child = item.container.parent is not None and guest.kind == "active"
    zero = ZERO if sure else GUESSED
    columns = zip(m.guest_offset.tolist(), m.length.tolist(), m.state.tolist(), m.file_offset.tolist(),
                  m.encoding.tolist(), m.stored.tolist(), strict=True)
    for g, n, state, f, encoding, stored in columns:
        if state == DATA and encoding == PLAIN:
            for at, k, p, grade, rule in item.map.cut(f, n):
                yield g + at - f, k, p if p >= 0 else None, at, "plain", k, grade, rule
            covered = item.map.size - f
            if covered < n:
                yield g + max(0, covered), n - max(0, covered), None, None, "plain", 0, MISSING, "beyond-end"
        elif state == DATA:
            parts = item.map.cut(f, stored)
            whole = len({(grade, rule) for _, _, _, grade, rule in parts}) >= 1 and parts[0][2] >= 0
            joined = all(b[2] == a[2] + a[1] for a, b in zip(parts, parts[1:], strict=False)) if whole else False
            grade, rule = (parts[0][3], parts[0][4]) if parts else (MISSING, "beyond-end")
            yield (g, n, parts[0][2] if joined else None, f, ENCODING_NAMES[encoding], stored, grade,
                   rule if joined or not whole else f"{rule} (in {len(parts)} parts)")
        elif state == HOLE:
            yield g, n, None, None, "plain", 0, zero, "container.zero"
        elif state == UNALLOCATED:
            yield g, n, None, None, "plain", 0, PARENT if child else zero, "container.unallocated"
        elif state == EXTERNAL:
            yield from _external_rows(item, g, n, depth)
        else:
            assert state == LOST
            yield g, n, None, None, "plain", 0, MISSING, "container.table-lost"


def _external_rows(item: Assembled, g: int, n: int, depth: int) -> Iterator[Row]:
    at, end = g, g + n
    for joined in sorted(item.members, key=lambda j: j.member.guest_offset) if depth < 8 else []:
        m, member = joined.member, joined.item
        low, high = max(m.guest_offset, at), min(m.guest_offset + m.length, end)
        if low >= high:
            continue
        if low > at:
            yield at, low - at, None, None, "plain", 0, MISSING, "extent-file-not-found"
        shift = m.guest_offset - m.file_offset  # guest offset here - guest offset in the member
        for r in _guest_rows(member, member.container.guests[0], depth=depth + 1):
            a, b = max(r[0] + shift, low), min(r[0] + r[1] + shift, high)
            if a >= b:
                continue
            inside = a - shift - r[0]
            plain = r[4] == "plain"
            yield (a, b - a, r[2] + inside if plain and r[2] is not None else r[2], None, r[4],
                   b - a if plain and r[2] is not None else r[5], r[6], r[7])
        at = high
    if at < end:
        yield at, end - at, None, None, "plain", 0, MISSING, "extent-file-not-found"
