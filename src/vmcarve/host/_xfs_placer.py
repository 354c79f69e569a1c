"""Loose metadata of an XFS v5 volume places itself: headers and inodes state uuid and address under a CRC.

Records of its log state the volume's uuid and, in their sequence number, the sector of the log in which they begin.

Source: Linux fs/xfs/libxfs/xfs_format.h, xfs_da_format.h and xfs_log_format.h. Big-endian; the CRC-32C fields are
little-endian.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..checksums import crc32c_rows, crc32c_zeroed
from ..model import Placer, Reader
from . import _xfs_super as super_

I64 = npt.NDArray[np.int64]
SECTOR = 512
# magic: (bytes of blkno, of uuid, of the CRC) in the block; blkno in sectors of 512 bytes
SHORT, LONG, DIRECTORY = (16, 32, 52), (24, 40, 64), (8, 24, 4)
BLOCKS = {
    **dict.fromkeys((b"AB3B", b"AB3C", b"IAB3", b"FIB3", b"RMB3", b"R3FC"), SHORT),
    b"BMA3": LONG,
    **dict.fromkeys((b"XDB3", b"XDD3", b"XDF3"), DIRECTORY),
}
ATTRIBUTE_MAGICS = (0x3DF1, 0x3DFF, 0x3EBE, 0x3BEE)  # at byte 8 of directory and attribute tree blocks
ATTRIBUTE = (16, 32, 12)
AGF, AGI = (b"XAGF", 64, 216, 1), (b"XAGI", 296, 312, 2)  # magic, uuid, CRC, sector in the group
INODE_NUMBER, INODE_UUID, INODE_CRC = 152, 160, 100
RECORD, RECORD_VERSIONS = b"\xfe\xed\xba\xbe", (1, 2)
RECORD_CYCLE, RECORD_VERSION, RECORD_LSN, RECORD_UUID = 4, 8, 16, 304


def placer(reader: Reader, offset: int, limit: int) -> Placer | None:
    """How loose metadata of the volume at `offset` places itself; None for v4, whose headers carry no address."""
    sb = super_.find(reader, offset, limit)
    if sb is None or not sb.crc or sb.block_size < 1024:
        return None
    owner = np.frombuffer(sb.meta_uuid, np.uint8)

    def headers(data: npt.NDArray[np.uint8], sectors: npt.NDArray[np.uint32], half: npt.NDArray[np.uint16]
                ) -> list[tuple[I64, I64]]:
        out: list[tuple[I64, I64]] = []
        kinds = [(np.flatnonzero(sectors == int.from_bytes(m, "little")), at) for m, at in BLOCKS.items()]
        kinds.append((np.flatnonzero(np.isin(half, ATTRIBUTE_MAGICS)), ATTRIBUTE))
        for rows, (blkno, uuid, crc) in kinds:
            if len(rows) == 0:
                continue
            at = rows.astype(np.int64) * SECTOR
            # a block that this buffer cuts is left to the next one, which begins before it
            at = at[at + sb.block_size <= len(data)]
            blocks = data[at[:, None] + np.arange(sb.block_size)]
            mine = (blocks[:, uuid : uuid + 16] == owner).all(axis=1)
            blocks, at = blocks[mine], at[mine]
            stored = blocks[:, crc : crc + 4].copy().view("<u4")[:, 0]
            number = blocks[:, blkno : blkno + 8].copy().view(">u8")[:, 0]
            blocks[:, crc : crc + 4] = 0
            good = (crc32c_rows(blocks) == stored) & (number < sb.blocks * (sb.block_size // SECTOR))
            out.append((at[good], number[good].astype(np.int64) * SECTOR))
        return out

    def find(data: npt.NDArray[np.uint8]) -> tuple[I64, I64]:
        whole = data[: len(data) // SECTOR * SECTOR].reshape(-1, SECTOR)
        sectors = whole.view("<u4")[:, 0]
        found = headers(data, sectors, whole.view(">u2")[:, 4])
        for magic, uuid, crc, place in (AGF, AGI):
            for i in np.flatnonzero(sectors == int.from_bytes(magic, "little")).tolist():
                block = data[i * SECTOR : i * SECTOR + sb.sector].tobytes()
                if len(block) == sb.sector and block[uuid : uuid + 16] == sb.meta_uuid \
                        and crc32c_zeroed(block, crc) == int.from_bytes(block[crc : crc + 4], "little"):
                    group = int.from_bytes(block[8:12], "big")
                    at = group * sb.group_blocks * sb.block_size + place * sb.sector
                    found.append((np.array([i * SECTOR], np.int64), np.array([at], np.int64)))
        found.append(_log_records(sb, whole, np.flatnonzero(sectors == int.from_bytes(RECORD, "little"))))
        rows = np.flatnonzero(sectors & 0xFFFF == 0x4E49)
        at = rows.astype(np.int64) * SECTOR
        at = at[at + sb.inode_size <= len(data)]
        if len(at):
            inodes = data[at[:, None] + np.arange(sb.inode_size)]
            mine = (inodes[:, INODE_UUID : INODE_UUID + 16] == owner).all(axis=1)
            inodes, at = inodes[mine], at[mine]
            stored = inodes[:, INODE_CRC : INODE_CRC + 4].copy().view("<u4")[:, 0]
            number = inodes[:, INODE_NUMBER : INODE_NUMBER + 8].copy().view(">u8")[:, 0].astype(np.int64)
            inodes[:, INODE_CRC : INODE_CRC + 4] = 0
            good = crc32c_rows(inodes) == stored
            group, inside = number >> sb.group_log + sb.inode_log, number >> sb.inode_log
            inside &= (1 << sb.group_log) - 1
            block = group * sb.group_blocks + inside
            good &= (number >= 0) & (inside < sb.group_blocks) & (block < sb.blocks)
            slot = number & (1 << sb.inode_log) - 1
            found.append((at[good], (block * sb.block_size + slot * sb.inode_size)[good]))
        nothing = np.empty(0, np.int64)
        return (np.concatenate([nothing, *(p for p, _ in found)]), np.concatenate([nothing, *(v for _, v in found)]))

    return Placer(sb.meta_uuid.hex(), find)


def _log_records(sb: super_.Super, sectors: npt.NDArray[np.uint8], rows: I64) -> tuple[I64, I64]:
    """Of those sectors uint8[n, 512] that `rows` names: where records of the volume's log are, and belong."""
    start = sb.block_of(sb.log_start) if sb.log_start else None
    if start is None or not len(rows):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    heads = sectors[rows]

    def number(at: int) -> npt.NDArray[np.uint32]:
        return heads[:, at : at + 4].copy().view(">u4")[:, 0].astype(np.uint32)

    sector = number(RECORD_LSN + 4).astype(np.int64)
    good = (heads[:, RECORD_UUID : RECORD_UUID + 16] == np.frombuffer(sb.uuid, np.uint8)).all(axis=1)
    good &= np.isin(number(RECORD_VERSION), RECORD_VERSIONS) & (number(RECORD_LSN) == number(RECORD_CYCLE))
    good &= sector < sb.log_blocks * (sb.block_size // SECTOR)
    return rows[good] * SECTOR, start * sb.block_size + sector[good] * SECTOR
