"""Linux swap: a header page that ends in its magic.

Source: Linux include/linux/swap.h, union swap_header. Seen: mkswap 2.38. Little-endian. No checksum: the fields that
must be zero are what it is believed for.
"""

from __future__ import annotations

from ..model import Evidence, GuestKind, Reader, Signature, Volume
from ._fields import label, le32, uuid

KIND = "swap.header"
MAGIC = b"SWAPSPACE2"
PAGE_SIZES = (4096, 16384, 65536)
INFO, INFO_END = 1024, 1536  # version .. padding; bad page numbers follow
FORMAT_VERSION = 1
# looked for by the version, whose cache line is read anyhow: the magic's own would be read for it alone
SIGNATURES = tuple(Signature(FORMAT_VERSION.to_bytes(4, "little"), KIND, at=INFO, size=page,
                             also=(page - len(MAGIC), bytes([0xFF]) * len(MAGIC), MAGIC)) for page in PAGE_SIZES)


def _volume(reader: Reader, offset: int, page: int) -> Volume | None:
    data = reader.read(offset, page)
    if len(data) < page or data[-len(MAGIC) :] != MAGIC:
        return None
    last, bad = le32(data, INFO + 4), le32(data, INFO + 8)
    room = (page - INFO_END - len(MAGIC)) // 4
    if le32(data, INFO) != FORMAT_VERSION or last < 1 or bad > room or bad > last:
        return None
    if any(data[INFO + 44 : INFO_END]) or any(data[INFO_END + 4 * bad : -len(MAGIC)]):
        return None
    return Volume("swap", offset, (last + 1) * page, label(data[INFO + 28 : INFO + 44]), uuid(data[INFO + 12 :]))


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A whole header page with nothing in it that does not belong there."""
    page = signature.size
    v = _volume(reader, offset, page)
    if v is None:
        return None
    return Evidence(KIND, offset, page, volume_offset=0, identity=v.uuid, value=v.size, confidence=0.9)


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The swap space at `offset`. There is nothing else in it that could be checked, so `consistent` stays None."""
    for page in PAGE_SIZES:
        v = _volume(reader, offset, page) if page <= limit else None
        if v is not None:
            if v.size > limit:
                v.consistent, v.detail = False, "larger than the space it has"
            return v
    return None


GUEST = GuestKind("swap", SIGNATURES, probe, confirm, types=frozenset(("Linux swap",)))
