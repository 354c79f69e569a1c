"""VHDX (Hyper-V, Windows, QEMU): fixed, dynamic, differencing. Two headers, two region tables, a log, a 64-bit BAT.

Everything lies on multiples of 1 MiB. What a header and a region table prove is under a CRC-32C; the BAT and the
metadata are not, so they are judged by their bounds. The BAT interleaves payload entries with one bitmap entry per
chunk of 2^23 sectors. A dirty log is replayed in memory, and the written file gets the result.
Source: [MS-VHDX]. "Seen" names what was checked on files of QEMU 7.2; no file of Hyper-V's own was at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..checksums import crc32c_zeroed
from ..errors import Damaged
from ..model import (
    DATA,
    GUESSED,
    HOLE,
    LOST,
    PROVEN,
    SUPPORTED,
    UNALLOCATED,
    Check,
    Container,
    Evidence,
    Format,
    GuestDisk,
    GuestMap,
    ParentLink,
    Patch,
    Reader,
    Region,
    Signature,
)
from . import _vhdx_log as log_of
from ._blocks import Bitmaps, Bools, Int64s, Partial, clashes, missing_entries, split_map, table_patch
from ._stowed import in_row
from ._vhdx_log import Replay, Replayed
from ._vhdx_parts import (
    HEADER_AT,
    HEADER_SIZE,
    KIB64,
    LINKS,
    MIB,
    REGIONS_AT,
    Header,
    Metadata,
    Regions,
    clean_text,
    guid_text,
    linkage,
    make_header,
    make_regions,
    parse_header,
    parse_locator,
    parse_regions,
    read_metadata,
    safe_locator,
)
from ._vhdx_wants import wants

# --- BAT entries ([MS-VHDX] 2.5): bits 0-2 state, 3-19 reserved, 20-63 the offset in MiB
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, OLD_UNMAPPED, FULL, PARTIAL = 0, 1, 2, 3, 5, 6, 7
RESERVED_BITS = 0xF_FFF8
# --- our limits
OUR_MAX_ENTRIES = 1 << 22  # 32 MiB of BAT: 64 TiB of 16 MiB blocks, 8 TiB of 2 MiB blocks
OUR_MAX_RUNS = 1 << 21  # runs of a differencing disk, some 200 MiB while the map is made
OUR_MAX_REGIONS = 1 << 14  # bitmap blocks that are listed
OUR_SEARCH = 64  # MiB in which metadata are looked for when no region table is left
QEMU_GAP = 4 * MIB  # QEMU 7.2 leaves this behind the last region (seen: nine disk, block and log sizes)
SLACK_BLOCKS = 8  # blocks beyond those that a gap-free file could hold

SIGNATURES = (
    # zeros behind the creator; versions; reserved; at most 2047 items; lengths of whole pages
    Signature(b"vhdxfile", "vhdx.identifier", also=(520, b"\xff" * 16, bytes(16))),
    Signature(b"head", "vhdx.header", also=(64, b"\xff" * 4, b"\0\0\1\0")),
    Signature(b"regi", "vhdx.regions", also=(12, b"\xff" * 4, bytes(4))),
    Signature(b"metadata", "vhdx.metadata", also=(11, b"\xf8", b"\0")),
    Signature(b"loge", "vhdx.log", also=(8, b"\xff\x0f\0\0\xff\x0f", bytes(6))),
)


def up(value: int, step: int) -> int:
    return -(-value // step) * step


# --- confirmation --------------------------------------------------------------------------------------------------
def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """Evidence for the structure at `offset`. Headers and region tables lie at one of two places: neighbours decide."""
    return _CONFIRM[signature.kind](reader, offset)


def _confirm_identifier(reader: Reader, offset: int) -> Evidence | None:
    raw = reader.read(offset, 4096)
    if len(raw) < 4096 or raw[:8] != b"vhdxfile" or any(raw[520:]):
        return None
    sure = any(parse_header(reader.read(offset + at, HEADER_SIZE)) for at in HEADER_AT)
    return Evidence("vhdx.identifier", offset, 4096, container_offset=0, confidence=1.0 if sure else 0.5)


def _confirm_header(reader: Reader, offset: int) -> Evidence | None:
    raw = reader.read(offset, HEADER_SIZE)
    header = parse_header(raw) if raw[66:68] == b"\x01\0" else None
    if header is None:
        return None
    before, behind = reader.read(offset - KIB64, 8), reader.read(offset + KIB64, 4)
    first = before == b"vhdxfile" or behind == b"head"
    second = before[:4] == b"head" or behind == b"regi"
    place = None if first == second else HEADER_AT[0] if first else HEADER_AT[1]
    return Evidence("vhdx.header", offset, HEADER_SIZE, container_offset=place, identity=_data_write(header),
                    value=header.sequence & (1 << 63) - 1)


def _confirm_regions(reader: Reader, offset: int) -> Evidence | None:
    head = reader.read(offset, 16)
    if head[12:16] != bytes(4) or not 0 < int.from_bytes(head[8:12], "little") < 2048:
        return None
    regions = parse_regions(reader.read(offset, KIB64))
    if regions is None:
        return None
    before, behind = reader.read(offset - KIB64, 4), reader.read(offset + KIB64, 4)
    first, second = before == b"head" or behind == b"regi", before == b"regi"
    place = None if first == second else REGIONS_AT[0] if first else REGIONS_AT[1]
    return Evidence("vhdx.regions", offset, KIB64, container_offset=place, value=regions.bat[0])


def _confirm_metadata(reader: Reader, offset: int) -> Evidence | None:
    """The metadata region does not say where it lies, but writers have two layouts, and the BAT must be where each has
    it: QEMU puts it before the metadata (seen), Microsoft behind."""
    found = read_metadata(reader, offset, MIB)
    if found is None or found.table is not None:
        return None
    place = None
    length = up(8 * found.entries, MIB)
    for at, bat in ((2 * MIB + length, -length), (2 * MIB, MIB)):
        if offset >= at and found.entries <= OUR_MAX_ENTRIES:
            table = read_table(reader, found, (offset + bat, length), [])
            if table is not None and table.used and not table.doubtful:
                place = at
                break
    return Evidence("vhdx.metadata", offset, KIB64, container_offset=place, identity=_disk_name(found),
                    value=found.size, confidence=1.0 if place is None else 0.8)


def _confirm_log(reader: Reader, offset: int) -> Evidence | None:
    entry = log_of.parse_entry(reader.read(offset, 64), 0, log_of.OUR_MAX_LOG)
    if entry is None:
        return None
    raw = reader.read(offset, entry.length)
    if len(raw) < entry.length or crc32c_zeroed(raw, 4) != int.from_bytes(raw[4:8], "little"):
        return None
    # the log's own place is not known here: 1 MiB in every file seen, so this is no pin, only a value
    return Evidence("vhdx.log", offset, entry.length, identity=f"vhdx-log:{guid_text(entry.guid)}",
                    value=MIB + entry.tail)


_CONFIRM = {
    "vhdx.identifier": _confirm_identifier,
    "vhdx.header": _confirm_header,
    "vhdx.regions": _confirm_regions,
    "vhdx.metadata": _confirm_metadata,
    "vhdx.log": _confirm_log,
}


def _data_write(header: Header) -> str:
    return f"vhdx-dw:{guid_text(header.data_write)}"


def _disk_name(metadata: Metadata) -> str:
    return f"vhdx-disk:{guid_text(metadata.disk_id)}"


# --- the table -----------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Table:
    """The BAT, judged, one element per payload block. raw: all entries as read, little-endian u64, with the bitmap
    entries between them; payload, bitmap: indexes into raw of the payload and bitmap entries."""

    raw: npt.NDArray[np.uint64]
    payload: Int64s
    bitmap: Int64s
    kind: npt.NDArray[np.uint8]  # state bits of each payload entry
    place: Int64s  # file_offset of each present block, else -1
    bitmap_place: Int64s  # of each present bitmap block, else -1
    lost: Bools  # payload entries that are not there
    bad: Bools  # payload entries that cannot be
    bitmap_bad: Bools
    end: int  # file_offset behind the last present block

    @property
    def used(self) -> int:
        return int((self.place >= 0).sum())

    @property
    def doubtful(self) -> int:
        return int(self.lost.sum() + self.bad.sum() + self.bitmap_bad.sum())


def read_table(reader: Reader, metadata: Metadata, bat: tuple[int, int], reserved: list[tuple[int, int]],
               dense: bool = False) -> Table | None:
    """Reads and judges the BAT at `bat` (file_offset, bytes); None when it is beyond our limit.

    Present blocks must lie behind the first MiB, apart from each other, from bitmap blocks and from `reserved`, and not
    beyond what a file of this disk can hold: all of its blocks twice (QEMU's fixed files reserve the room and then
    grow behind it, seen), or, in a `dense` file, the blocks that are there.
    """
    total, n, ratio = metadata.entries, metadata.blocks, metadata.ratio
    if total > OUR_MAX_ENTRIES:
        return None
    there = min(total, bat[1] // 8)
    raw = np.zeros(total, "<u8")
    data = reader.read(bat[0], 8 * there)
    raw[: len(data) // 8] = np.frombuffer(data, "<u8", len(data) // 8)
    gone = np.ones(total, bool)
    gone[:there] = missing_entries(reader, bat[0], there, 8)
    number = np.arange(n, dtype=np.int64)
    payload = number + number // ratio
    chunks = total // (ratio + 1)
    bitmap = (np.arange(chunks, dtype=np.int64) + 1) * ratio + np.arange(chunks, dtype=np.int64)
    entry, bitmap_entry = raw[payload], raw[bitmap]
    kind = (entry & 7).astype(np.uint8)
    lost, bitmap_lost = gone[payload], gone[bitmap]
    reserved_set = (entry & RESERVED_BITS) != 0
    bad = ~lost & (reserved_set | (kind == 4) | ((kind == PARTIAL) & (not metadata.has_parent)))
    present = ~lost & ~bad & ((kind == FULL) | (kind == PARTIAL))
    mapped = ~bitmap_lost & ((bitmap_entry & 7) == FULL) & ((bitmap_entry & RESERVED_BITS) == 0)
    mapped &= bool(metadata.has_parent)
    place = np.where(present, (entry >> 20 << 20).astype(np.int64), -1)
    bitmap_place = np.where(mapped, (bitmap_entry >> 20 << 20).astype(np.int64), -1)
    length = np.full(n, metadata.block, np.int64)
    if metadata.fixed:
        # QEMU's fixed file ends with its disk, inside the last block (seen: 9.5 MiB in blocks of 8 MiB); for others
        # it is not known, so a file that ends there is taken as whole
        rest = metadata.size - (n - 1) * metadata.block
        length[-1] = rest if dense else max(rest, min(metadata.block, reader.size - int(place[-1])))
    first = max([MIB, *(end for _, end in reserved)])
    blocks = int(present.sum() + lost.sum()) + SLACK_BLOCKS if dense else 2 * n
    limit = first + up(metadata.size, MIB) * metadata.fixed + blocks * metadata.block + chunks * MIB
    at, bitmap_at = np.flatnonzero(present), np.flatnonzero(mapped)
    start = np.concatenate((place[at], bitmap_place[bitmap_at]))
    size = np.concatenate((length[at], np.full(len(bitmap_at), MIB, np.int64)))
    wrong = (start < MIB) | (start > limit - size)
    sane = np.flatnonzero(~wrong)
    wrong[sane] |= clashes(start[sane], size[sane], reserved)
    bad[at[wrong[: len(at)]]] = True
    bitmap_bad = np.zeros(chunks, bool)
    bitmap_bad[bitmap_at[wrong[len(at) :]]] = True
    place[bad] = -1
    bitmap_place[bitmap_bad] = -1
    ends = (start + size)[~wrong]
    return Table(raw, payload, bitmap, kind, place, bitmap_place, lost, bad, bitmap_bad,
                 int(ends.max()) if len(ends) else 0)


# --- opening -------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _File:
    """What is left of a VHDX. reader: as it reads after the log's replay; headers, tables: as found, None when lost."""

    reader: Reader
    headers: tuple[Header | None, ...]  # two
    current: Header | None
    tables: tuple[Regions | None, ...]  # two
    regions: Regions
    log: Replay
    metadata: Metadata
    table: Table
    creator: str
    identified: bool
    log_range: tuple[int, int]  # (start, end), bytes
    regained: int = 0  # pages of the BAT that were lost and are taken from old entries of the log


def open_vhdx(reader: Reader) -> Container:
    """Opens the VHDX that starts at file_offset 0 of `reader`, by whichever copies are left."""
    return _describe(_gather(reader))


def _gather(reader: Reader) -> _File:
    head = reader.read(0, 520)
    identified = head[:8] == b"vhdxfile"
    creator = clean_text(head[8:520]) if identified else ""
    headers = tuple(parse_header(reader.read(at, HEADER_SIZE)) for at in HEADER_AT)
    current = max((h for h in headers if h is not None), key=lambda h: h.sequence, default=None)
    log_range = (current.log_offset, current.log_end) if current else (MIB, 2 * MIB)
    tables = tuple(parse_regions(reader.read(at, KIB64)) for at in REGIONS_AT)
    log = log_of.replay(reader, current) if current else Replay("both headers are lost, so its state is not known")
    replayed = Replayed(reader, log)
    regions = tables[0] or tables[1]
    metadata = read_metadata(replayed, *regions.metadata) if regions else None
    if regions is None:
        regions, metadata = _guess_regions(replayed, log_range, identified or current is not None)
    if regions is None or metadata is None:
        raise Damaged("no sound VHDX metadata region", offset=regions.metadata[0] if regions else None)
    if any(_meets(log_range, r) for r in (regions.bat, regions.metadata)):
        raise Damaged("the log of a VHDX overlaps another region", offset=log_range[0], field="LogOffset",
                      value=log_range[0], bound="apart from BAT and metadata")
    table = read_table(replayed, metadata, regions.bat, _reserved(regions, log_range), creator.startswith("QEMU"))
    if table is None:
        raise Damaged("the BAT of a VHDX is beyond our limit", offset=regions.bat[0], field="entries",
                      value=metadata.entries, bound=OUR_MAX_ENTRIES)
    found = _File(replayed, headers, current, tables, regions, log, metadata, table, creator, identified, log_range)
    return _regained(reader, found) if table.doubtful else found


def _regained(reader: Reader, file: _File) -> _File:
    """The file with lost entries of its BAT as the log last had them.

    Blocks never move, so what a copy names is there; what it does not name may have come later, and stays lost.
    """
    table, bat = file.table, file.regions.bat
    wrong = np.concatenate((table.payload[table.lost | table.bad], table.bitmap[table.bitmap_bad]))
    pages = {bat[0] + at * log_of.PAGE for at in np.unique(wrong * 8 // log_of.PAGE).tolist()}
    copies: dict[int, bytes] = {}
    for at, page in log_of.copies(reader, file.log_range, pages).items():
        first = (at - bat[0]) // 8
        old, now = np.frombuffer(page, "<u8"), table.raw[first : first + log_of.PAGE // 8]
        old = old[: len(now)]
        doubtful = np.isin(np.arange(first, first + len(now)), wrong)
        there = ~doubtful & (old & 7 >= FULL) & (now & 7 >= FULL)
        if (old[there] == now[there]).all():  # blocks never move: one elsewhere is another file's
            copies[at] = np.where(doubtful, old, now).astype("<u8").tobytes().ljust(log_of.PAGE, b"\0")
    if not copies:
        return file
    log = replace(file.log, pages=file.log.pages | copies)
    view = Replayed(reader, log)
    new = read_table(view, file.metadata, bat, _reserved(file.regions, file.log_range),
                     file.creator.startswith("QEMU"))
    if new is None or new.doubtful >= table.doubtful:
        return file
    new.lost |= (table.lost | table.bad) & (new.place < 0) & ~new.bad
    return replace(file, reader=view, log=log, table=new, regained=len(copies))


def _meets(log_range: tuple[int, int], region: tuple[int, int]) -> bool:
    return log_range[0] < region[0] + region[1] and region[0] < log_range[1]


def _reserved(regions: Regions, log_range: tuple[int, int]) -> list[tuple[int, int]]:
    return [(0, MIB), log_range, *((at, at + n) for at, n in (regions.bat, regions.metadata, *regions.others))]


def _guess_regions(reader: Reader, log_range: tuple[int, int], known: bool) -> tuple[Regions | None, Metadata | None]:
    """Both region tables are lost: metadata are looked for on each MiB, and the BAT where the writers put it.

    `known`: something else says that this is a VHDX; otherwise the BAT must name at least one block.
    """
    for at in range(MIB, OUR_SEARCH * MIB, MIB):
        metadata = read_metadata(reader, at, MIB) if reader.read(at, 8) == b"metadata" else None
        if metadata is None:
            continue
        length = up(8 * metadata.entries, MIB)
        for bat in ((at - length, length), (at + MIB, length)):
            if bat[0] < MIB or _meets(log_range, bat) or _meets(log_range, (at, MIB)):
                continue
            regions = make_regions(bat, (at, MIB))
            table = read_table(reader, metadata, bat, _reserved(regions, log_range))
            if table is not None and not table.doubtful and (table.used or known):
                return regions, metadata
    return None, None


# --- the map -------------------------------------------------------------------------------------------------------
def _map(out: Container, file: _File) -> GuestMap:
    """The guest's map. States 1, 2, 3 and the draft's 5 read as zeros, never as the parent's; 0 is the parent's."""
    metadata, table = file.metadata, file.table
    state = np.full(metadata.blocks, HOLE, np.uint8)
    state[table.kind == NOT_PRESENT] = UNALLOCATED
    state[table.place >= 0] = DATA
    if file.log.damaged or (file.log.failed and file.current is not None):
        state[state != DATA] = LOST  # a newer entry of the log, now gone, may have given these blocks a place
    state[table.lost | table.bad] = LOST
    if not metadata.has_parent:
        return GuestMap.from_units(metadata.size, metadata.block, state, table.place)
    row_size = metadata.block // metadata.logical // 8

    def read(units: Int64s) -> Bitmaps:
        rows, known = np.zeros((len(units), row_size), np.uint8), np.zeros(len(units), bool)
        home = table.bitmap_place[units // metadata.ratio]
        places = np.where(home >= 0, home + units % metadata.ratio * row_size, -1)
        for i, at in enumerate(places.tolist()):
            raw = file.reader.read(at, row_size)
            if len(raw) == row_size and not file.reader.missing(at, row_size):
                rows[i] = np.frombuffer(raw, np.uint8)
                known[i] = True
        return Bitmaps(rows, known)

    units = np.flatnonzero((table.kind == PARTIAL) & (state == DATA)).astype(np.int64)
    split, lost, given_up = split_map(metadata.size, metadata.block, state, table.place,
                                      Partial(units, read, metadata.logical, "little", OUR_MAX_RUNS))
    out.checks.append(Check("sector bitmaps are there", lost == 0, f"of {lost} blocks lost" if lost else ""))
    if given_up:
        out.checks.append(Check("sector bitmaps within our limit", False, f"{given_up} blocks not mapped"))
    return split


# --- what a container says -----------------------------------------------------------------------------------------
def _describe(file: _File) -> Container:
    metadata, table, regions = file.metadata, file.table, file.regions
    qemu = file.creator.startswith("QEMU")
    size = max(end for _, end in _reserved(regions, file.log_range)) + QEMU_GAP * qemu
    if metadata.fixed and not table.used:
        size += metadata.size  # QEMU reserves the room and marks it all zero (seen)
    size = max(size, table.end)
    variant = "differencing" if metadata.has_parent else "fixed" if metadata.fixed else "dynamic"
    out = Container("vhdx", variant, size, [GuestDisk(metadata.size, GuestMap.flat(metadata.size, state=LOST))],
                    system=_system(file.creator), cluster=metadata.block, size_exact=qemu and not table.doubtful)
    if any(metadata.disk_id):
        out.uuid = guid_text(metadata.disk_id)
    # two generations: a child may have been made before the last first write
    out.identities = list(dict.fromkeys(_data_write(h) for h in file.headers if h and any(h.data_write)))
    out.detail |= {"creator": file.creator, "block_size": str(metadata.block), "log": file.log.state,
                   "logical_sector": str(metadata.logical), "physical_sector": str(metadata.physical)}
    old = ~table.lost & np.isin(table.kind, (UNDEFINED, ZERO, UNMAPPED, OLD_UNMAPPED))
    stale = int((table.raw[table.payload[old]] >> 20 > 0).sum())
    if stale:
        out.detail["stale_places"] = f"{stale} blocks without data still name where they were"
    _add_checks(out, file)
    _add_regions(out, file)
    _add_patches(out, file)
    out.guests[0].map = _map(out, file)
    return out


def _system(creator: str) -> str:
    for word, system in (("QEMU", "QEMU"), ("Microsoft", "Hyper-V/Windows"), ("disk2vhd", "disk2vhd")):
        if creator.lower().startswith(word.lower()):
            return system
    return ""


def _add_checks(out: Container, file: _File) -> None:
    table = file.table
    bad, lost = int(table.bad.sum() + table.bitmap_bad.sum()), int(table.lost.sum())
    whole = max(out.size, file.log.flushed) <= file.reader.size
    need = "" if whole else f"{max(out.size, file.log.flushed)} bytes needed"
    out.checks += [
        Check("file identifier", file.identified, grave=False),
        *(Check(f"header {i + 1}", header is not None, grave=False) for i, header in enumerate(file.headers)),
        *(Check(f"region table {i + 1}", found is not None, grave=False) for i, found in enumerate(file.tables)),
        Check("log", not (file.log.failed or file.log.refused or file.log.damaged), _trouble(file.log)),
        Check("metadata table", file.metadata.table is None),
        Check("BAT is the file's own", not file.regained, f"{file.regained} pages taken from old entries of the log"),
        Check("BAT is there", lost == 0, f"{lost} entries lost" if lost else ""),
        Check("blocks lie apart and inside the file", bad == 0, f"{bad} entries" if bad else ""),
        Check("file is whole", whole, need),
    ]
    first, second = file.headers
    first, second = file.headers
    if first and second:
        # disk2vhd writes two equal headers (QEMU's source); any other pair of one sequence is damage
        sound = first.sequence != second.sequence or first.raw == second.raw
        out.checks.append(Check("header sequences differ", sound))


def _trouble(log: Replay) -> str:
    if log.refused:
        return f"{log.refused} descriptors refused"
    return f"{log.damaged} of its sectors are lost, newer entries may be too" if log.damaged else log.state


def _add_regions(out: Container, file: _File) -> None:
    regions = file.regions
    out.regions.append(Region(0, KIB64, "vhdx.identifier"))
    for at, header in zip(HEADER_AT, file.headers, strict=True):
        out.regions.append(Region(at, HEADER_SIZE, "vhdx.header", PROVEN if header else SUPPORTED))
    for at, found in zip(REGIONS_AT, file.tables, strict=True):
        out.regions.append(Region(at, KIB64, "vhdx.regions", PROVEN if found else SUPPORTED))
    out.regions += [
        Region(file.log_range[0], file.log_range[1] - file.log_range[0], "vhdx.log"),
        Region(*regions.bat, "vhdx.bat"),
        Region(*regions.metadata, "vhdx.metadata"),
        *(Region(*other, "vhdx.other") for other in regions.others),
    ]
    bitmaps = file.table.bitmap_place[file.table.bitmap_place >= 0][:OUR_MAX_REGIONS].tolist()
    out.regions += [Region(at, MIB, "vhdx.bitmap") for at in bitmaps]


def _add_patches(out: Container, file: _File) -> None:
    """What makes the written file open anywhere without its log: copies rebuilt, the replay's result, paths emptied."""
    own: list[Patch] = []
    if not file.identified:
        own.append(Patch(0, b"vhdxfile".ljust(520, b"\0"), "rebuilt", GUESSED))
    own += _header_patches(file)
    for at, found in zip(REGIONS_AT, file.tables, strict=True):
        if found is None:
            own.append(Patch(at, file.regions.raw, "rebuilt", PROVEN if any(file.tables) else GUESSED))
    if file.metadata.table is not None:
        own.append(Patch(file.regions.metadata[0], file.metadata.table, "rebuilt", GUESSED))
    if file.metadata.has_parent:
        own += _parent(out, file)
    own += _bat_patches(file)
    replayed, left_out = log_of.patches(file.log, out.size)
    if left_out:
        out.checks.append(Check("log replay within our limit", False, f"{left_out} bytes of zeros not written"))
    out.patches = [_under(patch, own) for patch in replayed] + own


def _under(patch: Patch, later: list[Patch]) -> Patch:
    """`patch` with the bytes of later ones where they overlap, so that the order of writing means nothing."""
    end = patch.file_offset + len(patch.data)
    over = [p for p in later if p.file_offset < end and patch.file_offset < p.file_offset + len(p.data)]
    if not over:
        return patch
    data = bytearray(patch.data)
    for p in over:
        low, high = max(p.file_offset, patch.file_offset), min(p.file_offset + len(p.data), end)
        data[low - patch.file_offset : high - patch.file_offset] = p.data[low - p.file_offset : high - p.file_offset]
    return Patch(patch.file_offset, bytes(data), patch.reason, patch.grade)


def _header_patches(file: _File) -> list[Patch]:
    """A lost header is written as the older one; a header that names a log loses the name, under the same number."""
    current, out = file.current, []
    if current is None:
        made = [make_header(None, sequence) for sequence in (1, 2)]
        return [Patch(at, h.raw, "rebuilt", GUESSED) for at, h in zip(HEADER_AT, made, strict=True)]
    for at, header in zip(HEADER_AT, file.headers, strict=True):
        if header is None:
            out.append(Patch(at, make_header(current, current.sequence - 1).raw, "rebuilt", GUESSED))
        elif any(header.log_guid) and header.sequence == current.sequence:
            grade = GUESSED if file.log.failed else PROVEN
            out.append(Patch(at, make_header(header, header.sequence).raw, "log-replay", grade))
    return out


def _parent(out: Container, file: _File) -> list[Patch]:
    """Reads the parent locator into `out.parent`; returns the patch that leaves its GUIDs and takes its paths away."""
    locator = file.metadata.locator
    if locator is None:
        out.parent = ParentLink(None, None)
        out.checks.append(Check("parent locator", False, "lost", False))
        return []
    at, length = file.regions.metadata[0] + locator[0], locator[1]
    entries = parse_locator(file.reader.read(at, length))
    links = [link for link in (linkage(entries, key) for key in LINKS) if link]
    name = next((entries[k] for k in ("relative_path", "absolute_win32_path", "volume_path") if k in entries), None)
    out.parent = ParentLink(f"vhdx-dw:{links[0]}" if links else None, name, entries)
    out.checks.append(Check("parent locator", bool(links), "" if links else "names no parent", False))
    if not length or file.reader.missing(at, length):
        return []
    return [Patch(at, safe_locator(entries, length), "reference")]


def _bat_patches(file: _File) -> list[Patch]:
    """Entries that we do not believe become "zero" blocks: no program then reads a wrong place, or an older parent."""
    table, bat = file.table, file.regions.bat
    wrong = np.zeros(up(len(table.raw), 64), bool)
    wrong[table.payload[table.lost | table.bad]] = True
    wrong[table.bitmap[table.bitmap_bad]] = True
    wrong[bat[1] // 8 :] = False
    if not wrong.any():
        return []
    raw = np.zeros(len(wrong), "<u8")
    raw[: len(table.raw)] = table.raw
    raw[table.payload[table.lost | table.bad]] = ZERO
    raw[table.bitmap[table.bitmap_bad]] = NOT_PRESENT
    return table_patch(bat[0], raw.view(np.uint8), wrong, 8, "rebuilt", GUESSED)


FORMAT = Format("vhdx", "vhdx", SIGNATURES, open_vhdx, confirm=confirm, wants=wants, qemu_name="vhdx",
                stow=lambda reader: in_row(1 << 20, reader.size, 1 << 20))
