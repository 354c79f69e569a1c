"""XFS: a superblock in each allocation group, headers that state their group, inodes that state their number.

Source: "XFS Algorithms & Data Structures", 3rd edition; Linux fs/xfs/libxfs/xfs_format.h. Seen: mkfs.xfs 6.1, v5 and
v4. Big-endian; the CRC-32C fields of v5 are little-endian. An inode number holds the group in its high bits, then the
block in the group, then the slot in the block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..blocks import Blocks, distinct
from ..checksums import crc32c_rows, crc32c_zeroed
from ..model import Begin, Evidence, EvidenceBatch, GuestKind, Reader, Signature, Volume
from ._fields import be16, be32, be64, label, le32, power_of_two, uuid, whole

SUPER, INODE = "xfs.superblock", "xfs.inode"
INODE_SIZES = (512, 1024, 2048)  # of version 3 inodes; mkfs.xfs makes 512
SIGNATURES = (
    Signature(b"XFSB", SUPER, also=(4, b"\xff\xfe\x01\xff", bytes(4))),  # blocks of 512 bytes to 64 KiB
    # version 3, and a format of at most 5
    Signature(b"IN", INODE, dense=True, size=INODE_SIZES[-1], also=(4, b"\xff\xf8", b"\x03\0")),
)
V5 = 5
META_UUID = 0x4  # sb_features_incompat: structures carry sb_meta_uuid instead
SUPER_CRC, AGF_CRC, AGI_CRC, INODE_CRC = 224, 216, 312, 100
DIRECTORY = 0x4

OUR_MAX_GROUPS = 16  # whose headers a probe looks at
OUR_MAX_BLOCKS = 1 << 48


@dataclass(frozen=True, slots=True)
class _Super:
    """block, sector, inode in bytes; group_blocks and blocks in blocks."""

    block: int
    blocks: int
    group_blocks: int
    groups: int
    sector: int
    inode: int
    root: int
    block_bits: int  # of the block in its group, in an inode number
    slot_bits: int
    v5: bool
    uuid: str
    owner: bytes  # uuid that other structures carry
    name: str

    @property
    def group_bytes(self) -> int:
        return self.group_blocks * self.block

    @property
    def size(self) -> int:
        return self.blocks * self.block

    def place(self, number: int) -> int:
        """Bytes from the volume's start to the inode `number`."""
        group = number >> (self.block_bits + self.slot_bits)
        block = (number >> self.slot_bits) & ((1 << self.block_bits) - 1)
        slot = number & ((1 << self.slot_bits) - 1)
        return (group * self.group_blocks + block) * self.block + slot * self.inode


def _parse(data: bytes) -> _Super | None:
    """The superblock at the start of `data` when sizes agree with their logarithms, and its CRC when it is a v5."""
    if len(data) < 512 or data[:4] != b"XFSB":
        return None
    block, sector, inode = be32(data, 4), be16(data, 102), be16(data, 104)
    version = be16(data, 100) & 0xF
    if version not in (4, V5) or not power_of_two(block, 512, 65536) or not power_of_two(sector, 512, 32768):
        return None
    if not power_of_two(inode, 256, 2048) or inode > block or be16(data, 106) != block // inode:
        return None
    logs = [v.bit_length() - 1 for v in (block, sector, inode, block // inode)]
    blocks, group_blocks, groups = be64(data, 8), be32(data, 84), be32(data, 88)
    if list(data[120:124]) != logs or not 0 < blocks <= OUR_MAX_BLOCKS or not 0 < groups <= 1 << 32:
        return None
    if not (groups - 1) * group_blocks < blocks <= groups * group_blocks:
        return None
    if data[124] != (group_blocks - 1).bit_length() or len(data) < sector:
        return None
    if version == V5 and crc32c_zeroed(data[:sector], SUPER_CRC) != le32(data, SUPER_CRC):
        return None
    owner = data[248:264] if version == V5 and be32(data, 216) & META_UUID else data[32:48]
    return _Super(block, blocks, group_blocks, groups, sector, inode, be64(data, 56), data[124], data[123],
                  version == V5, uuid(data[32:48]), owner, label(data[108:120]))


def _group(reader: Reader, offset: int, s: _Super) -> int | None:
    """The group whose superblock is at `offset`, as the AGF in the next sector says under its CRC."""
    agf = whole(reader, offset + s.sector, s.sector)
    if agf is None or agf[:8] != b"XAGF\0\0\0\x01":
        return None
    number, length = be32(agf, 8), be32(agf, 12)
    last = number == s.groups - 1
    if number >= s.groups or length != (s.blocks - number * s.group_blocks if last else s.group_blocks):
        return None
    if s.v5 and (agf[64:80] != s.owner or crc32c_zeroed(agf, AGF_CRC) != le32(agf, AGF_CRC)):
        return None
    return number


def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    """A superblock; the AGF behind it tells which group's copy it is. Without one it proves no place."""
    data = reader.read(offset, 512)
    s = _parse(reader.read(offset, max(512, min(be16(data, 102), 32768)))) if len(data) == 512 else None
    if s is None:
        return None
    number = _group(reader, offset, s)
    if number is None:
        return Evidence(SUPER, offset, s.sector, identity=s.uuid, value=s.size, confidence=0.5)
    return Evidence(SUPER, offset, s.sector, volume_offset=number * s.group_bytes, identity=s.uuid, value=s.size,
                    confidence=1.0 if s.v5 else 0.9)


def confirm_batch(blocks: npt.NDArray[np.uint8] | Blocks, image_offset: npt.NDArray[np.int64],
                  signature: Signature) -> EvidenceBatch | None:
    """Version 3 inodes under their CRC, for the inode size that most of the batch has. value: the inode number."""
    inodes = Blocks.of(blocks)
    owner, head, number, stated = inodes.fields((160, "V16"), (0, "<u8"), (152, ">u8"), (INODE_CRC, "<u4"))
    # of the head magic, mode, version, format
    rows = np.flatnonzero((head & 0xFF_0000_FFFF == 0x03_0000_4E49) & (head >> 40 & 0xFF <= 5))
    if len(rows) < len(inodes):
        inodes, stated = inodes[rows], stated[rows]
    best, size, count = np.zeros(len(rows), np.bool_), INODE_SIZES[0], 0
    for candidate in INODE_SIZES:
        if count * 2 > len(rows):
            break
        good = crc32c_rows(inodes, length=candidate, zeroed=(INODE_CRC, 4)) == stated
        if (n := int(np.count_nonzero(good))) > count:
            best, size, count = good, candidate, n
    if count == 0:
        return None
    if count < len(head):
        rows = rows[best]
        owner, number, image_offset = owner[rows], number[rows], image_offset[rows]
    names, which = distinct(owner.view(np.uint8).reshape(-1, 16))
    return EvidenceBatch(INODE, image_offset, size, number.astype(np.int64),
                         identity=uuid(names[0]) if len(names) == 1 else [uuid(n) for n in names],
                         which=None if len(names) == 1 else which)


def _group_troubles(reader: Reader, offset: int, s: _Super) -> list[str]:
    """What disagrees in the headers of up to OUR_MAX_GROUPS groups, spread over the volume."""
    picked = sorted({i * (s.groups - 1) // max(1, min(s.groups, OUR_MAX_GROUPS) - 1)
                     for i in range(min(s.groups, OUR_MAX_GROUPS))})
    copies = headers = 0
    for number in picked:
        at = offset + number * s.group_bytes
        copy = _parse(reader.read(at, s.sector))
        same = copy is not None and (copy.uuid, copy.blocks, copy.group_blocks) == (s.uuid, s.blocks, s.group_blocks)
        if number and not same:
            copies += 1
        agi = whole(reader, at + 2 * s.sector, s.sector)
        sound = agi is not None and agi[:8] == b"XAGI\0\0\0\x01" and be32(agi, 8) == number
        if sound and agi is not None and s.v5:
            sound = crc32c_zeroed(agi, AGI_CRC) == le32(agi, AGI_CRC)
        if _group(reader, at, s) != number or not sound:
            headers += 1
    out = [f"{copies} superblock copies differ"] if copies else []
    return out + ([f"{headers} of {len(picked)} group headers damaged"] if headers else [])


def _root(reader: Reader, offset: int, s: _Super) -> bool:
    at = s.place(s.root)
    inode = whole(reader, offset + at, s.inode) if at < s.size else None
    if inode is None or inode[:2] != b"IN" or inode[2] >> 4 != DIRECTORY:
        return False
    return not s.v5 or (be64(inode, 152) == s.root and crc32c_zeroed(inode, INODE_CRC) == le32(inode, INODE_CRC))


def _copy(reader: Reader, offset: int, limit: int) -> _Super | None:
    """The second group's superblock where mkfs.xfs puts it by default: a quarter of the volume, 4 KiB blocks."""
    at = -(-(limit // 4096) // 4) * 4096
    s = _parse(reader.read(offset + at, 4096))
    return s if s is not None and s.group_bytes == at and _group(reader, offset + at, s) == 1 else None


def probe(reader: Reader, offset: int, limit: int) -> Volume | None:
    """The volume at `offset`, from its superblock or the copy in the second group."""
    bad: list[str] = []
    data = reader.read(offset, 32768)
    s = _parse(data)
    if s is None:
        s = _copy(reader, offset, limit)
        if s is None:
            return None
        bad.append("primary superblock lost")
    if s.size > limit:
        bad.append("larger than the space it has")
    bad += _group_troubles(reader, offset, s)
    if not _root(reader, offset, s):
        bad.append("root inode lost")
    return Volume("xfs", offset, s.size, s.name, s.uuid, not bad, "; ".join(bad))


def begin(reader: Reader, offset: int) -> Begin | None:
    """Every group begins with the same superblock."""
    data = reader.read(offset, 32768)
    s = _parse(data)
    return None if s is None else Begin(data[: s.sector])


GUEST = GuestKind("xfs", SIGNATURES, probe, confirm, confirm_batch, begin,
                  types=frozenset(("Linux root (x86-64)", "Linux boot")))
