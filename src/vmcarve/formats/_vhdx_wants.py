"""Structures of a VHDX in pieces: headers, region tables, metadata, BAT. Source: [MS-VHDX] 2.2, 2.5, 2.6."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..model import Reader, Want
from ._vhdx_parts import (
    DISK_SIZE,
    FORMAT_MAX_BLOCK,
    FORMAT_MAX_DISK,
    FORMAT_MIN_BLOCK,
    HEADER_AT,
    KIB64,
    LOGICAL,
    MIB,
    PARAMETERS,
    REGIONS_AT,
    Regions,
    parse_header,
    parse_regions,
    read_items,
)
from ._wants import BLOCK, MAX_BITS, Words, magic, missing, nothing, table

STATE, RESERVED = np.uint64(7), np.uint64(0xF_FFF8)  # bits of a BAT entry; the rest is its file offset in MiB
STATES = (0, 1, 2, 3, 6, 7)
OUR_MAX_BAT = 256  # blocks of the BAT that are looked for: 128 Ki entries
OUR_SLACK = 256 << 20


def wants(reader: Reader) -> list[Want]:
    """What is not in its place, in the order in which one leads to the next."""
    out = [w for at in HEADER_AT
           if missing(reader, w := magic(at, "vhdx.header", b"head", lambda b: parse_header(b) is not None))]
    found: Regions | None = None
    for at in REGIONS_AT:
        want = magic(at, "vhdx.regions", b"regi", lambda b: parse_regions(b.ljust(KIB64, b"\0")) is not None)
        if missing(reader, want):
            out.append(want)
        else:
            found = parse_regions(reader.read(at, BLOCK).ljust(KIB64, b"\0"))
        rest = [nothing(at + i, "vhdx.regions") for i in range(BLOCK, KIB64, BLOCK)]
        out += [w for w in rest if missing(reader, w)]
    if found is None:
        return out
    start, length = found.metadata
    if KIB64 < length:
        items = read_items(reader, start, length)
        rows = [magic(start, "vhdx.metadata", b"metadata", _names_items)]
        out += [w for w in [*rows, *_items(start, items or {})] if missing(reader, w)]
    start, length = found.bat
    legal = _legal(found)
    for at in range(0, min(length, OUR_MAX_BAT * BLOCK), BLOCK):
        want = table(start + at, "vhdx.bat", "<u8", legal, places=lambda words: words >> np.uint64(20),
                     empty=at > 0)
        if missing(reader, want):
            out.append(want)
    return out


def _names_items(block: bytes) -> bool:
    """Whether a metadata table names what every disk has."""
    names = {block[32 + 32 * i : 48 + 32 * i] for i in range((BLOCK - 32) // 32)}
    return {PARAMETERS, DISK_SIZE, LOGICAL} <= names


def _items(start: int, items: Mapping[bytes, tuple[int, int]]) -> list[Want]:
    """The block with the values of the metadata, where the table is known and puts them into one."""
    places = [items[name][0] for name in (PARAMETERS, DISK_SIZE, LOGICAL) if name in items]
    if len(places) < 3 or len({at // BLOCK for at in places}) > 1:
        return []
    parameters, size, logical = (at % BLOCK for at in places)

    def fits(block: bytes) -> float:
        block_size, flags = (int.from_bytes(block[at : at + 4], "little") for at in (parameters, parameters + 4))
        whole = int.from_bytes(block[size : size + 8], "little")
        good = block_size & (block_size - 1) == 0 and FORMAT_MIN_BLOCK <= block_size <= FORMAT_MAX_BLOCK and flags <= 3
        good &= int.from_bytes(block[logical : logical + 4], "little") in (512, 4096)
        return MAX_BITS if good and 0 < whole <= FORMAT_MAX_DISK and whole % 512 == 0 else 0.0

    first = min(parameters, size, logical)

    def begins(at: npt.NDArray[np.uint16], word: Words) -> npt.NDArray[np.bool_]:
        block_size, flags = word & np.uint64(0xFFFF_FFFF), word >> np.uint64(32)
        good = (block_size & (block_size - np.uint64(1)) == 0) & (block_size >= FORMAT_MIN_BLOCK) \
            & (block_size <= FORMAT_MAX_BLOCK) & (flags <= 3)
        return (at * 8 < first) | (at * 8 == first) & (good | (first != parameters))

    return [Want(start + places[0] // BLOCK * BLOCK, "vhdx.metadata-items", begins, fits)]


def _legal(regions: Regions):  # noqa: ANN202
    """BAT entries: a state, and for blocks that are there a MiB of the file behind the regions."""
    low = max(regions.bat[0] + regions.bat[1], MIB)

    def legal(words: Words) -> npt.NDArray[np.bool_]:
        state, place = words & STATE, words >> np.uint64(20) << np.uint64(20)
        known = np.isin(state, STATES) & (words & RESERVED == 0)
        there = np.where(state >= 6, place >= MIB, (state > 0) | (place == 0))
        return known & there & (place < low + (1 << 42))

    return legal
