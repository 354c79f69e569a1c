"""ext2, ext3, ext4: superblocks that know their group, group descriptors and inodes under checksums.

Source: Linux kernel documentation "ext4 Data Structures and Algorithms"; e2fsprogs lib/ext2fs (csum.c, crc16.c).
Seen: mke2fs 1.47 with and without metadata_csum, uninit_bg (gdt_csum), 64bit, 1 KiB and 4 KiB blocks. Little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checksums import crc32c
from ..model import Begin, Evidence, GuestKind, Reader, Signature, Volume
from ._fields import label, le16, le32, uuid, whole

KIND = "ext.superblock"
AT = 1024  # bytes before the primary superblock
SIZE = 1024
FORMAT_MAX_LOG = 6  # 64 KiB blocks: s_log_block_size counts from 1 KiB
SIGNATURES = (Signature(b"\x53\xef", KIND, at=AT + 0x38, also=(AT + 0x18, b"\xf8\xff\xff\xff", bytes(4))),)

HAS_JOURNAL = 0x4  # s_feature_compat
RECOVER, META_BG, BIT64, CSUM_SEED = 0x4, 0x10, 0x80, 0x2000  # s_feature_incompat
EXT3_INCOMPAT = 0x2 | RECOVER | META_BG
GDT_CSUM, BIGALLOC, METADATA_CSUM = 0x10, 0x200, 0x400  # s_feature_ro_compat
EXT3_RO_COMPAT = 0x1 | 0x2 | 0x4
JOURNAL_DEVICE = 0x8  # s_feature_incompat of a file system that is only a journal
UNCLEAN, ERRORS = 0x1, 0x2  # s_state: bit 0 set means clean
ROOT_INODE = 2
DIRECTORY = 0x4
USUAL_GROUPS = ((32768, 4096, 0), (16384, 2048, 0), (8192, 1024, 1))  # blocks per group, block size, first data block

OUR_MAX_DESCRIPTORS = 256  # whose checksums a probe tests
OUR_MAX_BLOCKS = 1 << 48
ALL = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class _Super:
    """The fields in use; sizes in bytes, the rest as stored. proven: its own checksum covers it."""

    data: bytes
    block: int
    blocks: int
    first: int
    per_group: int
    inodes_per_group: int
    inode_size: int
    group: int
    uuid: str
    compat: int
    incompat: int
    ro_compat: int
    proven: bool

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first) // self.per_group)

    @property
    def table(self) -> int:
        """Bytes from the volume's start to the group descriptors: the block behind the primary superblock's."""
        return (AT // self.block + 1) * self.block

    @property
    def seed(self) -> int:
        """What the checksums of everything else begin with, raw."""
        return le32(self.data, 0x270) if self.incompat & CSUM_SEED else _raw(self.data[0x68:0x78], ALL)

    @property
    def descriptor(self) -> int:
        return le16(self.data, 0xFE) if self.incompat & BIT64 else 32

    @property
    def kind(self) -> str:
        if self.incompat & ~EXT3_INCOMPAT or self.ro_compat & ~EXT3_RO_COMPAT:
            return "ext4"
        return "ext3" if self.compat & HAS_JOURNAL else "ext2"


def _raw(data: bytes, seed: int) -> int:
    """CRC-32C without either inversion, as ext4 stores it."""
    return crc32c(data, seed ^ ALL) ^ ALL


def _parse(data: bytes) -> _Super | None:
    """The superblock in `data` (1024 bytes) when its numbers agree with each other, and its checksum if it has one."""
    if len(data) < SIZE or data[0x38:0x3A] != b"\x53\xef":
        return None
    log, per_group, per_inode = le32(data, 0x18), le32(data, 0x20), le32(data, 0x28)
    if log > FORMAT_MAX_LOG or le32(data, 0x48) > 4:
        return None
    block = 1024 << log
    compat, incompat, ro_compat = le32(data, 0x5C), le32(data, 0x60), le32(data, 0x64)
    blocks = le32(data, 4) | (le32(data, 0x150) << 32 if incompat & BIT64 else 0)
    first, inodes = le32(data, 0x14), le32(data, 0)
    dynamic = le32(data, 0x4C) >= 1
    inode_size = le16(data, 0x58) if dynamic else 128
    big = ro_compat & BIGALLOC and log <= le32(data, 0x1C) < 32
    most = 8 * block << (le32(data, 0x1C) - log if big else 0)  # a bitmap of one block covers a group
    if first != (1 if log == 0 and not big else 0) or not first < blocks <= OUR_MAX_BLOCKS or incompat & JOURNAL_DEVICE:
        return None
    if not 8 <= per_group <= most or per_group % 8 or not 0 < per_inode <= 8 * block:
        return None
    if not (128 <= inode_size <= block and inode_size & (inode_size - 1) == 0):
        return None
    s = _Super(data, block, blocks, first, per_group, per_inode, inode_size, le16(data, 0x5A), uuid(data[0x68:0x78]),
               compat, incompat, ro_compat, bool(ro_compat & METADATA_CSUM))
    if inodes != s.groups * per_inode or s.group >= s.groups or not 32 <= s.descriptor <= 1024:
        return None
    if s.proven and _raw(data[:0x3FC], ALL) != le32(data, 0x3FC):
        return None
    return s


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A primary superblock pins the volume's start, a backup the first block of the group that it names.

    Copies of the primary lie in journals too: a primary is sure only with group descriptors behind it that are its own.
    """
    s = _parse(reader.read(offset + AT, SIZE))
    if s is None:
        return None
    confidence = 0.95 if s.proven else 0.7
    if s.group:
        place = (s.group * s.per_group + s.first) * s.block
        return Evidence(KIND, offset + AT, SIZE, volume_offset=place, identity=s.uuid, value=s.blocks * s.block,
                        confidence=confidence)
    told = _descriptors(reader, offset, s, 1)
    if told is False:
        return Evidence(KIND, offset, AT + SIZE, identity=s.uuid, value=s.blocks * s.block, confidence=0.3)
    return Evidence(KIND, offset, AT + SIZE, volume_offset=0, identity=s.uuid, value=s.blocks * s.block,
                    confidence=1.0 if told and s.proven else confidence)


def _descriptors(reader: Reader, offset: int, s: _Super, most: int) -> bool | None:
    """Whether the first `most` group descriptors agree with their checksums, or name blocks inside the volume.

    None: the place is not readable. With meta_bg only the first block of them is looked at.
    """
    count = min(s.groups, most, s.block // s.descriptor if s.incompat & META_BG else most)
    table = whole(reader, offset + s.table, count * s.descriptor)
    if table is None:
        return None
    return all(_descriptor_fits(s, n, table[n * s.descriptor : (n + 1) * s.descriptor]) for n in range(count))


def _descriptor_fits(s: _Super, number: int, d: bytes) -> bool:
    wide = s.descriptor >= 64
    for low, high in ((0, 0x20), (4, 0x24), (8, 0x28)):
        block = le32(d, low) | (le32(d, high) << 32 if wide else 0)
        if not s.first < block < s.blocks:
            return False
    place = number.to_bytes(4, "little")
    if s.ro_compat & METADATA_CSUM:
        return _raw(d[:0x1E] + b"\0\0" + d[0x20:], _raw(place, s.seed)) & 0xFFFF == le16(d, 0x1E)
    if s.ro_compat & GDT_CSUM:
        return _crc16(s.data[0x68:0x78] + place + d[:0x1E] + d[0x20:]) == le16(d, 0x1E)
    return True


def _crc16(data: bytes) -> int:
    """CRC-16 (reflected 0x8005) from 0xFFFF, as e2fsprogs crc16.c."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


def _root(reader: Reader, offset: int, s: _Super) -> bool | None:
    """Whether the root inode is a directory, under its checksum where there is one."""
    d = whole(reader, offset + s.table, s.descriptor)
    if d is None:
        return None
    block = le32(d, 8) | (le32(d, 0x28) << 32 if s.descriptor >= 64 else 0)
    inode = whole(reader, offset + block * s.block + s.inode_size * (ROOT_INODE - 1), s.inode_size)
    if inode is None:
        return None
    if inode[1] >> 4 != DIRECTORY:
        return False
    if not s.ro_compat & METADATA_CSUM:
        return True
    wide = s.inode_size > 128 and le16(inode, 0x80) >= 4
    summed = inode[:0x7C] + b"\0\0" + inode[0x7E:]
    stated = le16(inode, 0x7C)
    if wide:
        summed = summed[:0x82] + b"\0\0" + summed[0x84:]
        stated |= le16(inode, 0x82) << 16
    crc = _raw(summed, _raw(inode[0x64:0x68], _raw(ROOT_INODE.to_bytes(4, "little"), s.seed)))
    return (crc if wide else crc & 0xFFFF) == stated


def _backup(reader: Reader, offset: int, limit: int, s: _Super | None) -> _Super | None:
    """The backup in group 1 (there is one with and without sparse_super); without a primary at the usual places."""
    places = ((s.per_group, s.block, s.first),) if s is not None else USUAL_GROUPS
    for per_group, block, first in places:
        at = (per_group + first) * block
        found = _parse(reader.read(offset + at, SIZE)) if at + SIZE <= limit else None
        if found is not None and found.group == 1 and (found.per_group, found.block) == (per_group, block):
            return found
    return None


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The volume at `offset`, from its primary superblock or the backup in group 1."""
    s = _parse(reader.read(offset + AT, SIZE))
    if s is not None and s.group:
        s = None  # a backup that happens to lie here
    other = _backup(reader, offset, limit, s)
    bad: list[str] = []
    if s is None:
        if other is None:
            return None
        s = other
        bad.append("primary superblock lost")
    elif other is not None and (other.uuid, other.blocks) != (s.uuid, s.blocks):
        bad.append("backup superblock is another volume's")
    size = s.blocks * s.block
    if size > limit:
        bad.append("larger than the space it has")
    told = _descriptors(reader, offset, s, OUR_MAX_DESCRIPTORS)
    if told is False:
        bad.append("group descriptors do not agree with their checksums")
    root = _root(reader, offset, s)
    if root is False:
        bad.append("root inode is no directory")
    if root is None or told is None:
        bad.append("group descriptors or root inode lost")
    notes: list[str] = []
    if s.incompat & RECOVER:
        notes.append("journal not replayed")
    state = le16(s.data, 0x3A)
    if not state & UNCLEAN and not s.incompat & RECOVER:
        notes.append("not unmounted")
    if state & ERRORS:
        notes.append("errors noted by the system")
    return Volume(s.kind, offset, size, label(s.data[0x78:0x88]), s.uuid, not bad, "; ".join(bad + notes))


def begin(reader: Reader, offset: int) -> Begin | None:
    """The primary superblock as this copy of it would be there, and the descriptors behind the copy."""
    for at in (offset, offset + AT):  # evidence of a primary begins with its volume
        data = bytearray(reader.read(at, SIZE))
        s = _parse(bytes(data))
        if s is not None:
            break
    else:
        return None
    data[0x5A:0x5C] = bytes(2)  # the group that it is in
    if s.proven:
        data[0x3FC:] = _raw(bytes(data[:0x3FC]), ALL).to_bytes(4, "little")
    count = min(s.groups, OUR_MAX_DESCRIPTORS) if s.group else 0
    behind = reader.read(at + s.block, count * s.descriptor)
    table = [_of_any_use(s, n, behind[n * s.descriptor : (n + 1) * s.descriptor])
             for n in range(len(behind) // s.descriptor)]
    return Begin((bytes(AT) + bytes(data)).ljust(s.table, b"\0") + b"".join(table))


def _of_any_use(s: _Super, number: int, descriptor: bytes) -> bytes:
    """A descriptor of a copy, which is as old as the volume, without what it says of use: flags, free inodes, sums."""
    if not _descriptor_fits(s, number, descriptor):
        return descriptor
    d = bytearray(descriptor)
    for at in (0x12, 0x18, 0x1A, 0x1C, *((0x32, 0x38, 0x3A) if s.descriptor >= 64 else ())):
        d[at : at + 2] = bytes(2)
    place = number.to_bytes(4, "little")
    if s.ro_compat & METADATA_CSUM:
        d[0x1E:0x20] = (_raw(bytes(d[:0x1E]) + b"\0\0" + bytes(d[0x20:]), _raw(place, s.seed)) & 0xFFFF
                        ).to_bytes(2, "little")
    elif s.ro_compat & GDT_CSUM:
        d[0x1E:0x20] = _crc16(s.data[0x68:0x78] + place + bytes(d[:0x1E]) + bytes(d[0x20:])).to_bytes(2, "little")
    return bytes(d)


GUEST = GuestKind("ext", SIGNATURES, probe, confirm, begin=begin,
                  types=frozenset(("Linux root (x86-64)", "Linux boot")))
