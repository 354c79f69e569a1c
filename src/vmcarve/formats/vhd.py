"""VHD (Virtual PC, Hyper-V, VirtualBox, XenServer, QEMU): fixed, dynamic, differencing. Big-endian, additive sums.

A fixed VHD is the guest's bytes and a footer. Dynamic and differencing files begin with a copy of the footer, then a
header, a table of blocks (BAT) and the blocks, each led by its sector bitmap; nothing ever frees a block, so a sound
file has no gaps and every wrong entry collides with another one or lies behind the end.
Facts: Microsoft "Virtual Hard Disk Image Format Specification" 1.0, blktap's libvhd (XenServer), VirtualBox VHD.cpp,
QEMU block/vpc.c. "Seen" names what was checked on real files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import Damaged
from ..model import (
    DATA,
    GUESSED,
    LOST,
    PROVEN,
    SECTOR,
    SUPPORTED,
    UNALLOCATED,
    Check,
    Container,
    Evidence,
    Format,
    GuestDisk,
    GuestMap,
    Orphan,
    ParentLink,
    Patch,
    Reader,
    Region,
    Signature,
)
from ._blocks import Bitmaps, Bools, Int64s, Partial, split_map, table_patch
from ._vhd_parts import (
    DIFFERENCING,
    DYNAMIC,
    FIXED,
    FOOTER,
    FORMAT_MAX_BLOCK_DISK,
    FORMAT_MAX_LOCATOR,
    HEADER_AT,
    MAX_LOCATORS,
    OUR_MAX_ENTRIES,
    PAGE,
    SLACK_BLOCKS,
    TABLE_AT,
    UNUSED,
    VARIANTS,
    VERSION,
    Batmap,
    Footer,
    Header,
    Locator,
    Table,
    batmap_at,
    batmap_states,
    footer_at,
    header_at,
    locators_of,
    make_header,
    may_be_regular,
    parse_footer,
    read_table,
    summed,
    text_of,
    up,
)
from ._vhd_shapes import ROWS, rebuild, shapes, stow

# --- habits of the writers
EPOCH = 946_684_800  # 2000-01-01 UTC
XEN_ENTRIES = 1 << 20  # XenServer on LVM sizes every table for 2 TiB (sm, lvhdutil)
RUNNING = b"\xc7" * SECTOR  # what tapdisk puts over the tail footer while the disk is open
EXACT = (b"qemu", b"qem2", b"vbox")  # the footer lies exactly behind the last block (source; seen for QEMU)
WINDOWS_8 = 0x0006_0002  # creator version from which Windows places footers by the 4 KiB page
# --- our limits
OUR_MAX_RUNS = 1 << 21  # runs of a differencing disk, some 200 MiB while the map is made
OUR_MAX_BITMAPS = 1 << 14  # bitmaps of a dynamic disk that are looked at and listed as regions
OUR_MAX_PROBES = 1 << 16  # places at which a lost footer or a file's start is looked for

CREATORS = {
    b"vpc ": "Virtual PC",
    b"vs  ": "Virtual Server",
    b"win ": "Hyper-V/Windows",
    b"vbox": "VirtualBox",
    b"qemu": "QEMU",
    b"qem2": "QEMU",
    b"tap\0": "XenServer",
    b"CTXS": "Citrix converter",
    b"d2v\0": "disk2vhd",
    b"wa\0\0": "Azure",
}

SIGNATURES = (
    # features and version; no next structure; a sector of the file below 2 TiB, and a version of at most 1.2
    Signature(b"conectix", "vhd.footer", also=(8, b"\xff\xff\xff\xfc\xff\xff\xff\xff", b"\0\0\0\0\0\1\0\0")),
    Signature(b"cxsparse", "vhd.header", also=(8, b"\xff" * 8, b"\xff" * 8)),
    Signature(b"tdbatmap", "vhd.batmap",
              also=(8, b"\xff\xff\xfe\0\0\0\x01\xff\0\0\0\0\xff\xfe", bytes(14))),
)


# --- confirmation --------------------------------------------------------------------------------------------------
def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """Evidence for the structure whose magic is at `offset`; pinned only where the structure proves its place."""
    if signature.kind == "vhd.footer":
        return _confirm_footer(reader, offset)
    if signature.kind == "vhd.header":
        header = header_at(reader, offset)
        if header is None or not header.sum_ok:
            return None
        front = footer_at(reader, offset - HEADER_AT)
        paired = front is not None and front.kind != FIXED and front.data_offset == HEADER_AT
        # without its footer copy the place is known from every writer's habit only
        return Evidence("vhd.header", offset, 1024, container_offset=HEADER_AT,
                        value=header.entries * header.block_size, confidence=1.0 if paired else 0.8)
    raw = reader.read(offset, SECTOR)
    place = batmap_states(raw)
    if place is None:
        return None
    size = int.from_bytes(raw[16:20], "big") * SECTOR
    sums = np.cumsum(np.frombuffer(reader.read(offset + SECTOR, size), np.uint8), dtype=np.uint64)[SECTOR - 1 :: SECTOR]
    # summed over the part that the disk's size takes (libvhd), which is not known here; a crash leaves the sum stale
    agrees = bool((~sums & 0xFFFF_FFFF == int.from_bytes(raw[24:28], "big")).any())
    return Evidence("vhd.batmap", offset, SECTOR + size, container_offset=place - SECTOR,
                    value=(place - SECTOR - TABLE_AT) // 4, confidence=1.0 if agrees else 0.7)


def _confirm_footer(reader: Reader, offset: int) -> Evidence | None:
    footer = footer_at(reader, offset)
    if footer is None:
        return None
    place = None
    if footer.kind == FIXED:
        place = footer.size
    else:
        header = header_at(reader, offset + footer.data_offset)
        if header is not None and header.sum_ok:
            place = 0
    return Evidence("vhd.footer", offset, footer.length, container_offset=place, identity=footer.identity,
                    value=footer.size)


# --- opening -------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _File:
    """What is left of a VHD with blocks: front and tail footer as found, and the footer that we go by."""

    reader: Reader
    front: Footer | None
    header: Header
    batmap: Batmap | None
    table: Table
    locators: list[Locator]
    tail: Footer | None
    tail_at: int  # where the tail footer is or must be
    sure: bool  # ... and whether that is certain
    footer: Footer
    invented: bool  # both footers are lost

    @property
    def known(self) -> bool:
        """A footer with a right checksum is left."""
        return self.front is not None or self.tail is not None


def open_vhd(reader: Reader) -> Container:
    """Opens the VHD that starts at file_offset 0 of `reader`.

    A fixed VHD is known by its footer alone, so `reader` must end with it. A dynamic one may end anywhere.
    """
    front = footer_at(reader, 0)
    if front is not None and front.kind == FIXED:
        front = None
    header = header_at(reader, front.data_offset if front else HEADER_AT)
    if header is not None and not header.sum_ok and not _fits(reader, header, None):
        header = None
    last = None
    if front is None and header is None:
        last = _last_footer(reader)
        if last is not None and last[1].kind == FIXED:
            return _open_fixed(reader, *last)
        if last is None:
            header = _header_from_batmap(reader)
            if header is None:
                raise Damaged("neither a VHD footer nor a dynamic header is left", offset=0)
    if header is None:
        footer = front or (last[1] if last else None)
        header = _guess_header(reader, footer, last[0] if last else None) if footer else None
        if header is None:
            raise Damaged("the dynamic header of a VHD is lost, and no table in its usual place fits", offset=HEADER_AT)
    return _describe_blocks(_gather(reader, front, header))


def _last_footer(reader: Reader) -> tuple[int, Footer] | None:
    for length in (512, 511):
        footer = footer_at(reader, reader.size - length)
        if footer is not None:
            return reader.size - length, footer
    return None


def _open_fixed(reader: Reader, place: int, footer: Footer) -> Container:
    if footer.size != place:
        raise Damaged("the footer of a fixed VHD does not lie behind its disk", offset=place, field="current_size",
                      value=footer.size, bound=place)
    out = Container("vhd", "fixed", reader.size, [GuestDisk(footer.size, GuestMap.flat(footer.size))])
    out.regions.append(Region(place, reader.size - place, "vhd.footer", PROVEN))
    out.checks.append(Check("footer checksum", True))
    _describe(out, footer)
    return out


def _gather(reader: Reader, front: Footer | None, header: Header) -> _File:
    batmap = batmap_at(reader, header.table_end)
    table = read_table(reader, header, batmap)
    locators = locators_of(header, table)
    tail_at, tail, sure = _find_tail(reader, front, header, table, locators)
    table.bad |= table.start + header.span > tail_at
    footer = front or tail or parse_footer(reader.read(0, SECTOR), trust_sum=False)
    invented = footer is None or footer.kind == FIXED
    if footer is None or invented:
        footer = _invented_footer(header)
    return _File(reader, front, header, batmap, table, locators, tail, tail_at, sure, footer, invented)


def _invented_footer(header: Header) -> Footer:
    """A footer for a file that lost both: the size is known to within one block, the identity not at all."""
    kind = DIFFERENCING if any(header.parent_uuid) else DYNAMIC
    size = min(header.entries * header.block_size, FORMAT_MAX_BLOCK_DISK)
    raw = FOOTER.pack(b"conectix", 2, VERSION, header.place, 0, b"vmcv", 0, b"Wi2k", size, size, 65535, 16, 255, kind,
                      0, b"\xff" * 16, 0).ljust(SECTOR, b"\0")
    footer = parse_footer(summed(raw, 64))
    if footer is None:
        raise Damaged("the table of a VHD gives no disk size", field="max_table_entries", value=header.entries)
    return footer


def _find_tail(reader: Reader, front: Footer | None, header: Header, table: Table,
               locators: Sequence[Locator]) -> tuple[int, Footer | None, bool]:
    """Where the tail footer is, the footer if it is there, and whether the place is certain.

    Rules by creator: exactly behind the last block (QEMU, seen; VirtualBox, tapdisk, source), or in the last sector of
    a 4 KiB page (Windows 8+, seen). Where entries are lost, blocks may follow: then every further step is tried.
    """
    good = table.good
    end = int(good[-1]) + header.span if len(good) else max([table.first, *(at.offset + at.space for at in locators)])
    end = up(end, SECTOR)
    on_page = bool(((good + header.bitmap_size) % PAGE == 0).all())
    windows = front is not None and front.app == b"win " and on_page and front.app_version >= WINDOWS_8
    pad = up(end + SECTOR, PAGE) - SECTOR - end if windows else 0
    places = [end + pad, *range(end, end + PAGE, SECTOR)]
    places += [end + pad + k * table.stride for k in range(1, min(table.unknown + 1, OUR_MAX_PROBES))]
    if not table.regular:  # a wrong entry may lie behind the end: the file ends where a footer is
        places += [int(at) + header.span + pad for at in good[-2 : -2 - SLACK_BLOCKS : -1]]
    # XenServer on LVM: in the last sector of the volume; and a host that knows the file's length gives it to the reader
    if front is not None:
        places += [reader.size - 512, reader.size - 511]
    for place in places:
        if not table.first <= place <= reader.size - 511:
            continue
        tail = footer_at(reader, place)
        if tail is None or tail.kind == FIXED or -(-tail.size // header.block_size) > header.entries:
            continue
        if front is None or (tail.uuid, tail.kind) == (front.uuid, front.kind):
            return place, tail, True
    if reader.read(end, SECTOR) == RUNNING:
        return end, None, True
    return end + pad, None, front is not None and front.app in EXACT and table.regular


# --- a lost header -------------------------------------------------------------------------------------------------
def _guess_header(reader: Reader, footer: Footer, tail_at: int | None) -> Header | None:
    """A header whose table, read at the usual place, is a sound BAT of this disk; all its fields follow then."""
    for table_offset in (TABLE_AT, 2 * PAGE, PAGE):
        for block in (1 << 21, 1 << 19):
            needed = -(-footer.size // block)
            for entries in (needed, XEN_ENTRIES) if footer.app == b"tap\0" else (needed,):
                header = make_header(table_offset, entries, block) if entries <= OUR_MAX_ENTRIES else None
                if header is not None and _fits(reader, header, tail_at):
                    return header
    return None


def _fits(reader: Reader, header: Header, tail_at: int | None) -> bool:
    """Whether the bytes at the table's place are a whole, sound BAT, and its last block ends at a footer."""
    if not may_be_regular(reader, header):
        return False
    batmap = batmap_at(reader, header.table_end)
    table = read_table(reader, header, batmap)
    if not table.regular:
        return False
    if len(table.start) and int(table.start.min()) - table.first > PAGE + MAX_LOCATORS * FORMAT_MAX_LOCATOR:
        return False
    if tail_at is None:
        return len(table.start) > 2 or _find_tail(reader, None, header, table, ())[1] is not None
    end = int(table.start.max()) + header.span if len(table.start) else table.first
    return 0 <= tail_at - end < PAGE or (batmap is not None and tail_at >= end)


def _header_from_batmap(reader: Reader) -> Header | None:
    """XenServer: the batmap lies right behind the table and states its own place, so the table's length follows."""
    data = np.frombuffer(reader.read(0, up(TABLE_AT + 4 * XEN_ENTRIES, SECTOR) + SECTOR), np.uint8)
    sectors = data[: len(data) // SECTOR * SECTOR].reshape(-1, SECTOR)
    for i in np.flatnonzero((sectors[:, :8] == np.frombuffer(b"tdbatmap", np.uint8)).all(axis=1))[:8].tolist():
        if i * SECTOR > TABLE_AT and batmap_at(reader, i * SECTOR) is not None:
            table = data[TABLE_AT : i * SECTOR].view(">u4")
            pad = int((table[-(SECTOR // 4) :][::-1] != 0).argmax())  # tapdisk pads with zeros, which name no block
            return make_header(TABLE_AT, len(table) - pad, 1 << 21)
    return None


# --- the map -------------------------------------------------------------------------------------------------------
def _add_map(out: Container, file: _File) -> None:
    """The guest's map. Dynamic: a block is data throughout, whatever its bitmap says (programs disagree: QEMU and
    dissect read data, libvhdi zeros; seen). Differencing: clear bits are the parent's."""
    header, table = file.header, file.table
    n = -(-file.footer.size // header.block_size)
    state = np.full(n, UNALLOCATED, np.uint8)
    place = np.full(n, -1, np.int64)
    sound = ~table.bad & (table.index < n)
    index = table.index[sound]
    state[index] = DATA
    place[index] = table.start[sound] + header.bitmap_size
    state[table.index[table.bad & (table.index < n)]] = LOST
    state[: header.entries][table.lost[:n]] = LOST
    state[header.entries :] = LOST
    if file.footer.kind == DIFFERENCING:
        out.guests[0].map = _split(out, file, state, place, index)
        return
    out.guests[0].map = GuestMap.from_units(file.footer.size, header.block_size, state, place)
    looked = table.start[~table.bad][:OUR_MAX_BITMAPS]
    bitmaps = _read_bitmaps(file.reader, header, looked)
    cleared = int((~_all_ones(bitmaps.rows, header.block_size // SECTOR) & bitmaps.known).sum())
    if cleared:
        out.detail["bitmaps"] = (f"{cleared} of {len(looked)} blocks have clear bits; their data are kept "
                                 "(some programs read zeros there)")
    ones = b"\xff" * header.bitmap_size
    out.patches += [Patch(at, ones, "rebuilt", SUPPORTED) for at in looked[~bitmaps.known].tolist()]


def _split(out: Container, file: _File, state: npt.NDArray[np.uint8], place: Int64s, index: Int64s) -> GuestMap:
    header, batmap, footer = file.header, file.batmap, file.footer

    def read(units: Int64s) -> Bitmaps:
        got = _read_bitmaps(file.reader, header, place[units] - header.bitmap_size)
        if batmap is not None and not got.known.all():
            inside = units < len(batmap.full)
            full = np.zeros(len(units), bool)
            full[inside] = batmap.full[units[inside]]
            got.rows[~got.known & full] = 255
            got.known[full] = True
        return got

    # tapdisk 0.1 wrote bitmaps least significant bit first (libvhd)
    order = "little" if footer.app == b"tap\0" and footer.app_version == 1 else "big"
    split, lost, given_up = split_map(footer.size, header.block_size, state, place,
                                      Partial(index, read, SECTOR, order, OUR_MAX_RUNS))
    out.checks.append(Check("sector bitmaps are there", lost == 0, f"{lost} lost" if lost else ""))
    if given_up:
        out.checks.append(Check("sector bitmaps within our limit", False, f"{given_up} blocks not mapped"))
    return split


def _all_ones(rows: npt.NDArray[np.uint8], sectors: int) -> Bools:
    """Whether the first `sectors` bits of each row are all set."""
    whole, rest = divmod(sectors, 8)
    full = (rows[:, :whole] == 255).all(axis=1)
    return full & (rows[:, whole] >> (8 - rest) == (1 << rest) - 1) if rest else full


def _read_bitmaps(reader: Reader, header: Header, places: Int64s) -> Bitmaps:
    size = header.bitmap_size
    rows = np.zeros((len(places), size), np.uint8)
    known = np.zeros(len(places), bool)
    for i, at in enumerate(places.tolist()):
        raw = reader.read(at, size)
        if len(raw) == size and not reader.missing(at, size):
            rows[i] = np.frombuffer(raw, np.uint8)
            known[i] = True
    return Bitmaps(rows, known)


# --- what a container says -----------------------------------------------------------------------------------------
def _describe(out: Container, footer: Footer) -> None:
    """What the footer says of the file: creator, identity, times."""
    out.system = CREATORS.get(footer.app, "")
    out.uuid = footer.uuid.hex()
    out.identities = [footer.identity]
    app, host = (text_of(code, "latin-1").strip() for code in (footer.app, footer.os))
    out.detail["creator"] = f"{app} {footer.app_version >> 16}.{footer.app_version & 0xFFFF}"
    if host:
        out.detail["creator"] += f" on {host}"
    out.detail["geometry"] = "{}/{}/{}".format(*footer.geometry)
    if footer.hidden:
        out.detail["hidden"] = "yes (a base of snapshots, by tapdisk)"
    if footer.timestamp:
        out.guests[0].created = float(EPOCH + footer.timestamp)


def _describe_blocks(file: _File) -> Container:
    footer, header = file.footer, file.header
    out = Container("vhd", VARIANTS[footer.kind], file.tail_at + (file.tail.length if file.tail else SECTOR),
                    [GuestDisk(footer.size, GuestMap.flat(footer.size, state=LOST))], cluster=header.block_size,
                    size_exact=file.sure)
    _describe(out, footer)
    if file.invented:
        out.uuid, out.identities, out.system = None, [], ""
        out.detail["creator"] = "unknown"
    if footer.kind == DIFFERENCING:
        out.parent = _parent(file)
    out.detail["block_size"] = str(header.block_size)
    out.detail["stride"] = str(file.table.stride)
    _add_checks(out, file)
    _add_regions(out, file)
    _add_patches(out, file)
    _add_map(out, file)
    return out


def _parent(file: _File) -> ParentLink:
    """Who the parent is: its uuid; all paths are kept as text. The parent's timestamp is not: Windows 10 writes 0."""
    detail: dict[str, str] = {}
    for at in file.locators:
        raw = file.reader.read(at.offset, at.length)
        if raw and not file.reader.missing(at.offset, at.length):
            detail[text_of(at.code, "latin-1").strip()] = text_of(raw, "utf-16-le" if at.code[:1] == b"W" else "utf-8")
    name = file.header.parent_name or next(iter(detail.values()), None)
    uuid = file.header.parent_uuid
    return ParentLink(f"vhd-uuid:{uuid.hex()}" if any(uuid) else None, name, detail)


def _add_checks(out: Container, file: _File) -> None:
    header, table = file.header, file.table
    bad, lost = int(table.bad.sum()), int(table.lost.sum())
    whole = out.size <= file.reader.size
    out.checks += [
        Check("front footer", file.front is not None, "" if file.front else "lost or wrong", False),
        Check("tail footer", file.tail is not None, "" if file.tail else f"not found; its place is {file.tail_at:#x}",
              False),
        Check("dynamic header", header.sum_ok and header.found, "" if header.found else "rebuilt from the table"),
        Check("block table is there", lost == 0, f"{lost} entries lost" if lost else ""),
        Check("blocks lie apart and inside the file", bad == 0, f"{bad} entries" if bad else ""),
        Check("table covers the disk", header.entries * header.block_size >= out.virtual_size),
        Check("file is whole", whole, "" if whole else f"{out.size} bytes needed"),
    ]
    if file.front is not None and file.tail is not None:
        out.checks.append(Check("footers agree", file.front.raw == file.tail.raw))
    if file.invented:
        out.checks.append(Check("disk size", False, "both footers are lost: known to within one block"))


def _add_regions(out: Container, file: _File) -> None:
    header, table, batmap = file.header, file.table, file.batmap
    out.regions += [
        Region(0, SECTOR, "vhd.footer", PROVEN if file.front else SUPPORTED),
        Region(header.place, 1024, "vhd.header", PROVEN if header.sum_ok and header.found else SUPPORTED),
        Region(header.table_offset, header.table_end - header.table_offset, "vhd.bat",
               PROVEN if table.regular else SUPPORTED),
    ]
    if batmap:
        out.regions.append(Region(batmap.place, SECTOR + batmap.size, "vhd.batmap"))
    out.regions += [Region(at.offset, at.length, "vhd.locator") for at in file.locators]
    starts = table.start[~table.bad][:OUR_MAX_BITMAPS].tolist()
    out.regions += [Region(at, header.bitmap_size, "vhd.bitmap") for at in starts]
    out.regions.append(Region(file.tail_at, out.size - file.tail_at, "vhd.footer", PROVEN if file.tail else SUPPORTED))


def _add_patches(out: Container, file: _File) -> None:
    """Lost footers and header rebuilt, parent names emptied, entries that we do not believe made unused."""
    header, table = file.header, file.table
    raw = file.footer.raw if file.known else summed(file.footer.raw, 64)
    if file.front is None:
        out.patches.append(Patch(0, raw, "rebuilt", PROVEN if file.tail else GUESSED))
    blank = summed(header.raw[:64] + bytes(704) + header.raw[768:], 36)
    if not header.found:
        exact = file.footer.kind != DIFFERENCING and file.known
        out.patches.append(Patch(header.place, header.raw, "rebuilt", PROVEN if exact else GUESSED))
    elif any(header.raw[64:768]):
        out.patches.append(Patch(header.place, blank, "reference"))
    elif not header.sum_ok:
        out.patches.append(Patch(header.place, blank, "rebuilt", SUPPORTED))
    out.patches += [Patch(at.offset, bytes(at.length), "reference") for at in file.locators]
    wrong = table.lost.copy()
    wrong[table.index[table.bad]] = True
    if wrong.any():
        entries = np.full(up(len(wrong), SECTOR // 4), UNUSED, ">u4")
        entries[: len(wrong)] = np.where(wrong, UNUSED, table.raw)
        # an entry that reads as a wrong place would give wrong bytes: unused gives none
        out.patches += table_patch(header.table_offset, entries.view(np.uint8), wrong, 4, "rebuilt", GUESSED)
    if file.tail is None:
        out.patches.append(Patch(file.tail_at, raw, "rebuilt",
                                 (PROVEN if file.sure else SUPPORTED) if file.known else GUESSED))


# --- a dynamic file of which only the end is known ------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Window:
    """A part of another address space."""

    inner: Reader
    start: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset >= self.size:
            return b""
        return self.inner.read(self.start + offset, min(length, self.size - offset))

    def missing(self, offset: int, length: int) -> bool:
        return offset < 0 or offset + length > self.size or self.inner.missing(self.start + offset, length)


@dataclass(frozen=True, slots=True)
class _Start:
    """A guess: the file begins at image_offset `at`, its first block at file_offset `first` (bytes); n of its table's
    `entries` name blocks."""

    at: int
    first: int
    stride: int
    n: int
    entries: int


def salvage(reader: Reader, evidence: Sequence[Evidence]) -> Iterable[Orphan]:
    """Containers that lie in one piece before a tail footer though their front copy and header are lost.

    The file's length is a whole number of blocks more than its metadata: each start that this allows is tested by the
    table that must lie there and name exactly that many blocks.
    """
    probes = OUR_MAX_PROBES
    for row in evidence:
        footer = footer_at(reader, row.image_offset) if row.kind == "vhd.footer" else None
        if footer is None or footer.kind == FIXED:
            continue
        for start in _starts(footer, row.image_offset):
            probes -= 1
            if probes < 0:
                return
            if not _table_at(reader, start):
                continue
            size = row.image_offset + footer.length - start.at
            try:
                container = open_vhd(_Window(reader, start.at, size))
            except Damaged:
                continue
            if container.size == size and container.uuid == footer.uuid.hex():
                yield Orphan(container, np.array([[0, start.at, size]], np.int64), "vhd.tail-footer")
                break


def _table_at(reader: Reader, start: _Start) -> bool:
    """Whether the first sector of a table could be at this start: its entries name some of the n blocks, each once."""
    raw = reader.read(start.at + TABLE_AT, min(SECTOR, 4 * start.entries))
    head = np.frombuffer(raw, ">u4", len(raw) // 4).astype(np.int64)
    used = head[head != UNUSED] * SECTOR - start.first
    number = used // start.stride
    sound = (used % start.stride == 0) & (number >= 0) & (number < start.n)
    return len(head) > 0 and bool(sound.all()) and len(np.unique(number)) == len(number)


def _starts(footer: Footer, tail_at: int) -> Iterable[_Start]:
    """Possible starts of the file whose tail footer is at image_offset `tail_at`, nearest first."""
    for block in (1 << 21, 1 << 19):
        header = make_header(TABLE_AT, max(1, min(-(-footer.size // block), OUR_MAX_ENTRIES)), block)
        on_page = up(header.table_end + header.bitmap_size, PAGE) - header.bitmap_size
        layouts = {
            (header.table_end, header.span, 0),  # QEMU, VirtualBox, Virtual PC
            (on_page, up(header.span, PAGE), 0),  # tapdisk
            (on_page, up(header.span, PAGE), PAGE - SECTOR),  # Windows 8+
        }
        for first, stride, pad in sorted(layouts):
            for n in range(1, header.entries + 1):
                at = tail_at - pad - first - (n - 1) * stride - header.span
                if at < 0:
                    break
                yield _Start(at, first, stride, n, header.entries)


FORMAT = Format("vhd", "vhd", SIGNATURES, open_vhd, confirm=confirm, salvage=salvage, qemu_name="vpc", shapes=shapes,
                rows=ROWS, rebuild=lambda reader, clue: rebuild(reader, clue, open_vhd), stow=stow)
