"""Separate text descriptors of VMDK disks: a disk whose bytes are in other files (flat, split, ESXi disks).

The text pins nothing in the image but itself, and gives the guest place of each extent. Its references stay names:
they are shown, made plain in the written copy, and never opened.
Sources: VMware "Virtual Disk Format 1.1", QEMU block/vmdk.c. Seen: qemu-img 7.2 (text padded with NULs to 512 bytes).
"""

from __future__ import annotations

from functools import partial

from ..errors import Damaged
from ..model import SECTOR, Check, Container, Evidence, Format, GuestDisk, Reader, Region, Signature
from . import _vmdk_text as text

SIGNATURES = tuple(Signature(magic, "vmdk-descriptor.text", also=text.rest_of(magic)) for magic in text.MAGICS)
CONFIRM_BYTES = 64 << 10  # what a confirmation reads; `open` reads on for disks of some thousand extents


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A separate descriptor at image_offset `offset`; those that lie inside an extent are the extent's."""
    found = text.parse(reader.read(offset, CONFIRM_BYTES))
    if found is None or found.embedded:
        return None
    known = found.create_type.lower() in text.TYPES
    return Evidence("vmdk-descriptor.text", offset, found.length, 0, value=found.sectors * SECTOR,
                    identity=next(iter(found.identities), None), confidence=1.0 if known else 0.7)  # fmt: skip


def open_descriptor(reader: Reader) -> Container:
    """Opens a text descriptor; the guest map is EXTERNAL, with the extents as `members`."""
    data = reader.read(0, text.OUR_MAX_TEXT)
    found = text.parse(data) if data[:15] in text.MAGICS or data[:14] in text.MAGICS else None
    if found is None:
        raise Damaged("no VMDK descriptor", offset=0, field="first line", value=data[:16], bound=text.MAGICS[0])
    if found.embedded:
        raise Damaged("the descriptor of a single-file VMDK, not a file of its own", offset=0, field="createType",
                      value=found.create_type, bound="a type with separate extents")  # fmt: skip
    guest, members = text.external_map(found)
    size = found.length
    if found.system == "QEMU" and not any(data[size : -(-size // SECTOR) * SECTOR]):
        size = -(-size // SECTOR) * SECTOR  # Seen: qemu-img 7.2 pads the file to whole sectors
    c = Container("vmdk", found.create_type or "custom", size, [GuestDisk(found.sectors * SECTOR, guest)],
                  found.system, size_exact=found.terminated, uuid=found.uuid, identities=found.identities,
                  parent=found.parent, names=[m.name for m in members if m.name], members=members,
                  detail=found.detail)  # fmt: skip
    c.relink = partial(text.relinked, data[:size])
    c.regions = [Region(0, size, "vmdk.descriptor")]
    c.patches = text.safe_patches(data[:size], found, 0)
    c.checks = [
        Check("the text ends where it should", found.terminated, f"{found.length} bytes understood", False),
        Check("createType is a known one", found.create_type.lower() in text.TYPES, found.create_type, False),
        Check("names are plain", not c.patches, "names are changed in the written copy" if c.patches else "",
              False),
    ]
    return c


FORMAT = Format(
    name="vmdk-descriptor",
    extension="vmdk",
    signatures=SIGNATURES,
    open=open_descriptor,
    confirm=confirm,
    qemu_name="vmdk",
)
