"""OVA: a tar whose first member is the .ovf description; then the manifest (.mf), a certificate, and the disks.

Source: DMTF DSP0243 (OVF 1.x/2.x), sections "OVF package" and "Distribution as a single file". The archive is rebuilt
as it is; its disks (VMDK as a rule) begin at 512-byte blocks and are containers of their own. The manifest's hashes
prove whole members, and the description's File elements say each one's size again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import Damaged
from ..model import (
    PROVEN,
    SUPPORTED,
    Check,
    Container,
    Evidence,
    Format,
    Member,
    Reader,
    Region,
    Signature,
)
from ._tar import (
    BLOCK,
    END_BLOCKS,
    FILE_TYPES,
    PAX_TYPES,
    TarHeader,
    TarMember,
    end_of_archive,
    end_of_file,
    parse_header,
    read_member,
)

HEADER_KIND = "ova.header"
# the mode has two octal digits in bytes 104 and 105 however it is padded; their cache line is read anyhow
SIGNATURES = (Signature(b"ustar", HEADER_KIND, at=257, also=(104, b"\xf8\xf8", b"00")),)

OUR_MAX_OVF = 4 << 20  # bytes of the description that are read
OUR_MAX_MANIFEST = 1 << 20
OUR_MAX_MEMBERS = 4096
OUR_MAX_HASHED = 64 << 20  # bytes of a member that is hashed while opening
OUR_MAX_HASHED_ALL = 256 << 20  # bytes of all of them together
OUR_MAX_SHOWN = 4

_FILE = re.compile(r"<(?:[\w-]{1,32}:)?File\b([^<>]{0,2000})>")
_SYSTEM = re.compile(r"<(?:[\w-]{1,32}:)?VirtualSystem\b([^<>]{0,2000})>")
_ATTRIBUTE = re.compile(r"""(?:[\w-]{1,32}:)?(href|size|id)\s*=\s*["']([^"']{0,500})["']""")
_MANIFEST = re.compile(r"(SHA1|SHA256|SHA512)\s*\(([^)\r\n]{1,255})\)\s*=\s*([0-9a-fA-F]{40,128})")
_WRITERS = (("http://www.virtualbox.org/ovf/machine", "VirtualBox"), ("http://www.vmware.com/schema/ovf", "VMware"),
            ("http://schemas.citrix.com/ovf", "XenServer"))


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A tar header with its sum whose member is called .ovf and is an Envelope: the archive's first bytes.

    Most hits are other archives' members: the name alone turns them down.
    """
    block = reader.read(offset, BLOCK)
    if len(block) < BLOCK:
        return None
    if block[156] not in PAX_TYPES and not block[:100].rstrip(b"\0").lower().endswith(b".ovf"):
        return None
    first = _first(reader, offset)
    if first is None or b"Envelope" not in reader.read(first.data_offset, min(first.header.size, 4096)):
        return None
    return Evidence(HEADER_KIND, offset, first.end - offset, container_offset=0, value=first.header.size)


def _first(reader: Reader, offset: int) -> TarMember | None:
    member = read_member(reader, offset)
    if member is None or not member.header.is_file or not 0 < member.header.size <= OUR_MAX_OVF:
        return None
    return member if member.header.name.lower().endswith(".ovf") else None


@dataclass(slots=True)
class _Description:
    """What the .ovf tells: files in order with sizes (-1 when not said), names of machines, who wrote it."""

    files: dict[str, int] = field(default_factory=dict[str, int])
    machines: list[str] = field(default_factory=list[str])
    writer: str = ""


def _describe(reader: Reader, member: TarMember) -> _Description:
    """A scan for three tags: nothing is expanded or followed."""
    text = reader.read(member.data_offset, member.header.size).decode("utf-8", "replace")
    found = _Description()
    for match in _FILE.finditer(text):
        attributes = dict(_ATTRIBUTE.findall(match[1]))
        size, name = attributes.get("size", ""), attributes.get("href", "")
        if name and len(found.files) < OUR_MAX_MEMBERS:
            found.files.setdefault(name, int(size) if size.isascii() and size.isdigit() and len(size) < 18 else -1)
    for match in _SYSTEM.finditer(text):
        name = dict(_ATTRIBUTE.findall(match[1])).get("id", "")
        if name and len(found.machines) < 16:
            found.machines.append("".join(c if c.isprintable() else "?" for c in name))
    found.writer = next((name for mark, name in _WRITERS if mark in text), "")
    return found


def _members(reader: Reader, first: TarMember, description: _Description) -> Iterator[TarMember]:
    """The members in order. A header that cannot be read is replaced by what the description says comes next."""
    member: TarMember | None = first
    seen: set[str] = set()
    for _ in range(OUR_MAX_MEMBERS):
        if member is None:
            return
        yield member
        seen.add(member.header.name)
        at = member.end
        member = read_member(reader, at)
        if member is None and at < reader.size and reader.missing(at, BLOCK):
            name = next((n for n, size in description.files.items() if n not in seen and size > 0), None)
            if name is not None:
                member = TarMember(at, at + BLOCK, TarHeader(name, description.files[name], min(FILE_TYPES)))


def _manifest(reader: Reader, members: list[TarMember]) -> dict[str, tuple[str, str]]:
    """name -> (algorithm, hex digest) from the .mf, if there is one."""
    out: dict[str, tuple[str, str]] = {}
    for m in members:
        if m.header.name.lower().endswith(".mf") and m.header.size <= OUR_MAX_MANIFEST:
            text = reader.read(m.data_offset, m.header.size).decode("utf-8", "replace")
            for algorithm, name, digest in _MANIFEST.findall(text):
                out.setdefault(name.strip(), (algorithm.lower(), digest.lower()))
    return out


def _hashes(reader: Reader, members: list[TarMember], out: Container) -> None:
    """Compares members with the manifest; those too large to be read here, or not all there, are left out."""
    wanted = _manifest(reader, members)
    bad: list[str] = []
    good, budget = 0, OUR_MAX_HASHED_ALL
    for m in members:
        name, size = m.header.name, m.header.size
        if name not in wanted or size > min(budget, OUR_MAX_HASHED) or reader.missing(m.data_offset, size):
            continue
        budget -= size
        algorithm, digest = wanted[name]
        if hashlib.new(algorithm, reader.read(m.data_offset, size), usedforsecurity=False).hexdigest() == digest:
            good += 1
            if size:
                out.regions.append(Region(m.data_offset, size, "ova.member", PROVEN))
        else:
            bad.append(name)
    if wanted:
        told = f"{good} members agree with the manifest" + (f"; not: {', '.join(bad[:OUR_MAX_SHOWN])}" if bad else "")
        out.checks.append(Check("ova.manifest", not bad, told))


def open_ova(reader: Reader) -> Container:
    """The members from the .ovf to the two blocks of zeros; small members are hashed, disks are not read."""
    header = parse_header(reader.read(0, BLOCK))
    if header is None:
        raise Damaged("no OVA: no tar header with a valid sum", offset=0)
    first = _first(reader, 0)
    if first is None:
        raise Damaged("no OVA", offset=0, field="first member", value=header.name, bound="an .ovf file")
    description = _describe(reader, first)
    members = list(_members(reader, first, description))
    end = members[-1].end
    ended = end_of_archive(reader, end)
    size = end_of_file(reader, end + END_BLOCKS * BLOCK) if ended else end
    out = Container("ova", "ova", min(size, reader.size), [], size_exact=ended, system=description.writer,
                    names=description.machines, extension="ova")
    out.members = [Member(m.header.name, "tar", 0, m.header.size, m.data_offset) for m in members if m.header.is_file]
    out.regions = [Region(m.offset, m.data_offset - m.offset, "ova.tar", SUPPORTED) for m in members]
    _hashes(reader, members, out)
    sizes = {m.header.name: m.header.size for m in members}
    wrong = [n for n, size in description.files.items() if size >= 0 and sizes.get(n, size) != size]
    absent = [n for n in description.files if n not in sizes]
    for check, said, names in (("ova.sizes", "not as described", wrong), ("ova.files", "not there", absent)):
        out.checks.append(Check(check, not names, f"{said}: {', '.join(names[:OUR_MAX_SHOWN])}" if names else ""))
    out.checks.append(Check("ova.end", ended, "" if ended else f"no end marker at {end:#x}", False))
    out.regions.sort(key=lambda r: r.file_offset)
    return out


FORMAT = Format("ova", "ova", SIGNATURES, open_ova, confirm)
