"""The text descriptor of the VMDK family: its grammar, what it tells of a disk, and how its references are made safe.

Grammar (VMware "Virtual Disk Format 1.1", QEMU block/vmdk.c, libvmdk's format document): comment lines, `key=value`,
`ddb.key = "value"`, and extent lines `ACCESS sectors TYPE ["file" [offset ...]]`. Keys are case-insensitive, lines end
in LF or CR LF, an embedded descriptor is padded with NULs. The scan is linear and stops at the first line that is none
of these, so that slack behind a text file is not taken for text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..model import EXTERNAL, HOLE, LOST, SECTOR, GuestMap, Member, ParentLink, Patch

MAGICS = (b"# Disk Descript", b"#Disk Descript")  # first line; VirtualBox reads "Descriptor File" and no blank too



def rest_of(magic: bytes) -> tuple[int, bytes, bytes]:
    """The two letters that follow in every first line, as Signature.also has it."""
    return len(magic), b"\xff\xff", b"or"


EMBEDDED_TYPES = ("monolithicsparse", "streamoptimized")  # createTypes whose descriptor lies inside the extent
TYPES = EMBEDDED_TYPES + (
    "monolithicflat", "twogbmaxextentsparse", "twogbmaxextentflat", "2gbmaxextentsparse", "2gbmaxextentflat", "vmfs",
    "vmfsthin", "vmfspreallocated", "vmfseagerzeroedthick", "vmfssparse", "sesparse", "vmfsrdm", "vmfsrdmp",
    "vmfsrawdevicemap", "vmfspassthroughrawdevicemap", "vmfsraw", "fulldevice", "partitioneddevice", "custom",
)  # fmt: skip
NO_CID = (0xFFFF_FFFF, 0xFFFF_FFFE)  # no parent / never written since it was created
FORMAT_MAX_SECTORS = 1 << 54  # sum of the extents: their bytes stay below 2^63

OUR_MAX_TEXT = (1 << 20) - 1  # bytes read: what QEMU reads
OUR_MAX_LINE = 4096
OUR_MAX_LINES = 16384
OUR_MAX_EXTENTS = 4096

_ACCESS = (b"RW", b"RDONLY", b"NOACCESS")
_FLAT = ("FLAT", "VMFS", "VMFSRAW", "VMFSRDM")
_KINDS = {"FLAT": "flat", "VMFS": "flat", "ZERO": "zero", "SPARSE": "sparse", "VMFSSPARSE": "sparse",
          "SESPARSE": "sparse", "VMFSRDM": "device", "VMFSRAW": "device"}  # fmt: skip
_KEY = re.compile(rb"[A-Za-z][A-Za-z0-9_.:\- ]{0,127}\Z")
_EXTENT = re.compile(rb'([A-Z]+) +([0-9]{1,19}) +([A-Z]+)(?: +"([^"]*)"(.*))? *\Z')
_ENCODINGS = {"utf-8": "utf-8", "utf8": "utf-8", "gbk": "gbk", "big5": "big5", "shift_jis": "shift_jis",
              "windows-1252": "cp1252", "windows-1251": "cp1251", "iso-8859-1": "latin-1", "euc-jp": "euc_jp",
              "euc-kr": "euc_kr"}  # fmt: skip
_HINT = b"parentfilenamehint"
_PATH_KEYS = ("changetrackpath", "ddb.sidecars", "ddb.nativeparenthint")  # other values that name files
_REMOVED = b"# parent reference removed"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the text: its bytes [at, end) without the line end; key and value of an assignment, else empty."""

    at: int
    end: int
    key: str = ""
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Extent:
    """An extent line. sectors and offset in 512-byte sectors; `raw` is the name as stored, `name` its text."""

    access: str
    sectors: int
    type: str
    name: str
    raw: bytes
    offset: int
    line: Line


@dataclass(slots=True)
class Descriptor:
    """A parsed text. length: bytes up to the text's end; terminated: a NUL or the end of the data follows it."""

    length: int
    terminated: bool
    version: int = 0
    cid: int | None = None
    parent_cid: int | None = None
    create_type: str = ""
    parent_hint: str | None = None
    extents: list[Extent] = field(default_factory=list[Extent])
    lines: list[Line] = field(default_factory=list[Line])
    values: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def sectors(self) -> int:
        """Size of the disk that the extents make up, in sectors."""
        return sum(e.sectors for e in self.extents)

    @property
    def embedded(self) -> bool:
        """True when this kind of text lies inside its extent, at file offset 512."""
        return self.create_type.lower() in EMBEDDED_TYPES

    @property
    def identities(self) -> list[str]:
        return [] if self.cid is None or self.cid in NO_CID else [cid_name(self.cid)]

    @property
    def parent(self) -> ParentLink | None:
        """What the text says of a parent disk, or None."""
        linked = self.parent_cid is not None and self.parent_cid not in NO_CID
        if not linked and self.parent_hint is None:
            return None
        detail = {} if self.parent_cid is None else {"parentCID": f"{self.parent_cid:08x}"}
        identity = cid_name(self.parent_cid) if linked and self.parent_cid is not None else None
        return ParentLink(identity, self.parent_hint, detail)

    @property
    def uuid(self) -> str | None:
        return self.values.get("ddb.uuid.image") or self.values.get("ddb.uuid") or self.values.get("ddb.longcontentid")

    @property
    def system(self) -> str:
        """The program that wrote the text, as far as it tells."""
        if any(k.startswith("ddb.uuid.") for k in self.values):
            return "VirtualBox"
        # Seen: qemu-img 7.2 writes 2147483647; ESXi does too for "unknown", but with its own createTypes
        hardware = self.values.get("ddb.virtualhwversion")
        if self.values.get("ddb.toolsversion") == "2147483647" and hardware in ("4", "6"):
            return "QEMU"
        return "VMware ESXi" if self.create_type.lower().startswith(("vmfs", "sesparse")) else "VMware"

    @property
    def detail(self) -> dict[str, str]:
        """What a person wants to see of the text, references included as they were."""
        out = {"createType": self.create_type, "descriptor version": str(self.version)}
        if self.cid is not None:
            out["CID"] = f"{self.cid:08x}"
        if self.parent_cid is not None and self.parent_cid not in NO_CID:
            out["parentCID"] = f"{self.parent_cid:08x}"
        if self.parent_hint is not None:
            out["parentFileNameHint"] = self.parent_hint
        for key in ("encoding", *_PATH_KEYS, "ddb.adaptertype", "ddb.virtualhwversion", "ddb.toolsversion"):
            if key in self.values:
                out[key] = self.values[key]
        for i, extent in enumerate(self.extents[:16]):
            if base_name(extent.name, extent.type) != extent.name:
                out[f"extent {i}"] = extent.name
        return out


def cid_name(cid: int) -> str:
    """The identity by which children name a layer."""
    return f"vmdk-cid:{cid:08x}"


def base_name(name: str, extent_type: str = "") -> str:
    """The plain file name that may stay in a rebuilt text: no directory, no protocol, no device; "" if none is left."""
    if extent_type == "VMFSRAW" or name.startswith(("/dev/", "\\\\.\\", "\\\\?\\")):
        return ""
    base = re.split(r"[/\\:]", name)[-1]
    plain = all(c >= " " and c != '"' for c in base)
    return base if plain and base.strip(" .") else ""


def parse(data: bytes) -> Descriptor | None:
    """The descriptor that `data` begins with, or None when it is not a believable one."""
    nul = data.find(b"\0", 0, OUR_MAX_TEXT)
    text = data[: nul if nul >= 0 else OUR_MAX_TEXT]
    found = Descriptor(length=0, terminated=False)
    told = 0
    complete = True
    raw_extents: list[tuple[Line, re.Match[bytes]]] = []
    for at, end, after in _lines(text):
        line, extent = _classify(text, at, end)
        if line is None or len(raw_extents) > OUR_MAX_EXTENTS:
            complete = False
            break
        found.lines.append(line)
        found.length = after
        if line.key:
            _assign(found, line)
        elif extent is not None:
            raw_extents.append((line, extent))
        if line.key or extent is not None:
            told = after
    else:
        complete = found.length == len(text)
    found.terminated = complete
    if not complete:
        found.length = told  # comments and blank lines before foreign text may be foreign too
    encoding = _ENCODINGS.get(found.values.get("encoding", "utf-8").lower(), "utf-8")
    found.extents = [_extent(line, match, encoding) for line, match in raw_extents]
    hint = next((x for x in found.lines if x.key == _HINT.decode()), None)
    found.parent_hint = None if hint is None else _decode(hint.value, encoding)
    sane = 1 <= found.version <= 3 and found.cid is not None and 0 < found.sectors < FORMAT_MAX_SECTORS
    return found if sane else None


def _lines(text: bytes) -> Iterator[tuple[int, int, int]]:
    """(first byte, end without CR LF, start of the next line) of each line, as far as we read."""
    at = 0
    for _ in range(OUR_MAX_LINES):
        if at >= len(text):
            return
        newline = text.find(b"\n", at, at + OUR_MAX_LINE)
        after = newline + 1 if newline >= 0 else len(text)
        if after - at > OUR_MAX_LINE:
            return
        end = newline if newline >= 0 else len(text)
        if end > at and text[end - 1] == 0x0D:
            end -= 1
        yield at, end, after
        at = after


def _classify(text: bytes, at: int, end: int) -> tuple[Line | None, re.Match[bytes] | None]:
    """The line and, for an extent line, its parts; (None, None) when it is no line of a descriptor."""
    raw = text[at:end]
    if any(c < 0x20 and c != 0x09 for c in raw):
        return None, None
    body = raw.strip()
    if not body or body.startswith(b"#"):
        return Line(at, end), None
    if body.split(b" ", 1)[0] in _ACCESS:
        match = _EXTENT.match(raw)
        return (Line(at, end), match) if match and match[3].decode() in _KINDS else (None, None)
    key, equals, value = body.partition(b"=")
    key = key.strip()
    if not equals or not _KEY.match(key):
        return None, None
    return Line(at, end, key.decode("ascii").lower(), value.strip().strip(b'"')), None


def _assign(found: Descriptor, line: Line) -> None:
    """Takes a `key=value` line into the record; the first of several wins, as in QEMU's search."""
    value = line.value.decode("utf-8", "replace")
    if line.key in found.values:
        return
    found.values[line.key] = value
    if line.key == "version":
        found.version = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else 0
    elif line.key == "cid":
        found.cid = _hex(value)
    elif line.key == "parentcid":
        found.parent_cid = _hex(value)
    elif line.key == "createtype":
        found.create_type = value if re.fullmatch(r"[A-Za-z0-9]{1,64}", value) else ""


def _hex(value: str) -> int | None:
    return int(value, 16) if re.fullmatch(r"[0-9A-Fa-f]{1,8}", value) else None


def _decode(raw: bytes, encoding: str) -> str:
    return raw.decode(encoding, "replace")


def _extent(line: Line, match: re.Match[bytes], encoding: str) -> Extent:
    raw = match[4] or b""
    rest = (match[5] or b"").split()
    offset = int(rest[0]) if rest and rest[0].isdigit() and len(rest[0]) < 20 else 0
    return Extent(match[1].decode(), int(match[2]), match[3].decode(), _decode(raw, encoding), raw,
                  min(offset, FORMAT_MAX_SECTORS), line)  # fmt: skip


def external_map(found: Descriptor) -> tuple[GuestMap, list[Member]]:
    """The guest map of a disk whose bytes are in other files, and those files by plain name.

    EXTERNAL runs give the byte in the flat file, or the guest byte inside a sparse extent. ZERO extents are holes;
    NOACCESS extents are LOST.
    """
    sectors = np.array([e.sectors for e in found.extents], np.int64)
    length = sectors * SECTOR
    start = np.cumsum(length) - length
    state = np.full(len(length), EXTERNAL, np.uint8)
    offset = np.zeros(len(length), np.int64)
    members: list[Member] = []
    for i, extent in enumerate(found.extents):
        kind = _KINDS[extent.type]
        if extent.type in _FLAT:
            offset[i] = extent.offset * SECTOR
        if kind == "zero" or extent.access == "NOACCESS":
            state[i], offset[i] = HOLE if kind == "zero" else LOST, -1
        name = base_name(extent.name, extent.type)
        if extent.sectors:
            members.append(Member(name, kind, int(start[i]), int(length[i]), max(0, int(offset[i]))))
    return GuestMap.build(start, length, state, offset), members


def safe_patches(data: bytes, found: Descriptor | None, file_offset: int) -> list[Patch]:
    """Same-length changes after which the text in `data` (at `file_offset`) names no file outside its directory.

    The parent's name goes, and parentCID becomes ffffffff, so that readers take the disk as one without a parent;
    extent names become their base names. QEMU searches the whole text for the word parentFileNameHint, comments and
    bytes behind foreign lines too (block/vmdk.c, vmdk_parent_open), so every occurrence goes.
    """
    new = bytearray(data)
    if found is not None:
        for extent in found.extents:
            kept = base_name(extent.name, extent.type)
            if kept != extent.name:
                _replace_quoted(new, extent.line, re.split(rb"[/\\:]", extent.raw)[-1] if kept else b"")
        for line in found.lines:
            if line.key in _PATH_KEYS and re.search(rb"[/\\:]", line.value):
                _replace_quoted(new, line, b"")
        _blank_rest(new, found)
    slack = _remove_hints(new)
    if found is not None and (found.parent_cid is not None and found.parent_cid not in NO_CID):
        _clear_parent_cid(new, found, slack)
    return _difference(data, bytes(new), file_offset)


def _blank_rest(new: bytearray, found: Descriptor) -> None:
    """Blanks what follows the lines that we understood when it holds a quoted name: another reader may follow it."""
    nul = new.find(b"\0", found.length)
    end = nul if nul >= 0 else len(new)
    if not found.terminated and b'"' in new[found.length : end]:
        new[found.length : end] = b" " * (end - found.length)


def _replace_quoted(new: bytearray, line: Line, name: bytes) -> None:
    """Puts another text between the quotes of a line; blanks at its end keep its length."""
    raw = bytes(new[line.at : line.end])
    first = raw.find(b'"')
    last = raw.find(b'"', first + 1)
    if first < 0 or last < 0:  # an unquoted value: all of it goes
        first, last, name = raw.find(b"="), len(raw) - 1, b""
    changed = raw[: first + 1] + name + raw[last:] if raw[last : last + 1] == b'"' else raw[: first + 1]
    if len(changed) <= len(raw):
        new[line.at : line.end] = changed.ljust(len(raw))


def _remove_hints(new: bytearray) -> tuple[int, int] | None:
    """Turns every line with the word parentFileNameHint into a comment; returns blanks [start, end) that may shrink."""
    slack: tuple[int, int] | None = None
    lower = bytes(new).lower()
    at = lower.find(_HINT)
    while at >= 0:
        start = max(lower.rfind(c, 0, at) for c in (b"\n", b"\r", b"\0")) + 1
        ends = [e for e in (lower.find(c, at) for c in (b"\n", b"\r", b"\0")) if e >= 0]
        end = min(ends, default=len(lower))
        if at - start > OUR_MAX_LINE or end - at > OUR_MAX_LINE:  # not a line of text: only the word itself
            start, end = at, at + len(_HINT)
        new[start:end] = _REMOVED[: end - start].ljust(end - start)
        if end - start > len(_REMOVED):
            slack = (start + len(_REMOVED), end)
        at = lower.find(_HINT, end)
    return slack


def _clear_parent_cid(new: bytearray, found: Descriptor, slack: tuple[int, int] | None) -> None:
    """Sets parentCID to ffffffff; room for digits that the old value lacked comes from `slack`, when it has any."""
    line = next(x for x in found.lines if x.key == "parentcid")
    raw = bytes(new[line.at : line.end])
    value = raw.find(b"=") + 1
    changed = raw[:value] + b"ffffffff"
    extra = len(changed) - len(raw)
    if extra <= 0:
        new[line.at : line.end] = changed.ljust(len(raw))
    elif slack is not None and slack[0] >= line.end and slack[1] - slack[0] >= extra:
        middle = bytes(new[line.end : slack[1] - extra])
        new[line.at : slack[1]] = changed + middle


def _difference(old: bytes, new: bytes, file_offset: int) -> list[Patch]:
    """Patches for the bytes that differ; ranges less than 16 bytes apart go together."""
    at = np.flatnonzero(np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8))
    if not len(at):
        return []
    parts = np.split(at, np.flatnonzero(np.diff(at) > 16) + 1)
    return [
        Patch(file_offset + int(p[0]), new[int(p[0]) : int(p[-1]) + 1], "reference") for p in parts
    ]


def relinked(data: bytes, names: Mapping[str, tuple[str, int]]) -> bytes:
    """The whole text with its extents led to other files: `names` by plain old name, the rest stays plain.

    names: the new name, and the byte of that file at which a flat extent begins.
    """
    new = bytearray(data)
    for patch in safe_patches(data, parse(data), 0):
        new[patch.file_offset : patch.file_offset + len(patch.data)] = patch.data
    found = parse(bytes(new))
    if found is None:
        return bytes(new)
    del new[found.length :]
    for extent in reversed(found.extents):
        new_name, place = names.get(extent.name, (extent.name, extent.offset * SECTOR))
        name = base_name(new_name, extent.type)
        raw = bytes(new[extent.line.at : extent.line.end])
        first = raw.find(b'"') + 1
        moved = extent.type in _FLAT and place != extent.offset * SECTOR
        if first and (moved or name != extent.name):
            behind = f'" {place // SECTOR}'.encode() if moved else raw[raw.find(b'"', first) :]
            changed = raw[:first] + name.encode("utf-8", "replace") + behind
            new[extent.line.at : extent.line.end] = changed.rstrip()
    return bytes(new)


def plain_text(capacity: int, create_type: str) -> bytes:
    """A descriptor for an extent of `capacity` sectors whose own is lost: works, but is not the lost one."""
    heads = 16
    return (
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
        f'createType="{create_type}"\n\n# Extent description\nRW {capacity} SPARSE "disk.vmdk"\n\n'
        '# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = "4"\n'
        f'ddb.geometry.cylinders = "{min(16383, capacity // (heads * 63))}"\nddb.geometry.heads = "{heads}"\n'
        'ddb.geometry.sectors = "63"\nddb.adapterType = "ide"\n'
    ).encode()
