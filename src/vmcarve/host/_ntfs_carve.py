"""NTFS maps without boot sector and $MFT: FILE records that a sweep found, and the cluster size that fits them.

Which volume a loose record belongs to is not written in it, and the disks of guests hold records too. So a record is
believed to be this volume's (which begins at the offset given) when something lies where it says: $MFT's own record
predicts where the others are, a directory's first cluster holds "INDX", $LogFile's "RSTR".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ..model import SECTOR, Evidence, HostFile, Reader
from ._ntfs_files import Files
from ._ntfs_mft import Mft, Scattered, from_record_0, is_mft, to_rows, unnamed_data
from ._ntfs_record import IN_USE, INDEX, MAX_RECORD, MIN_RECORD, NUMBERED_FROM, Attribute, Boot, Record, decode_runs
from ._space import Runs

KIND = "ntfs.record"
DEFAULT_CLUSTER = 4096
CLUSTERS = tuple(512 << k for k in range(13))  # 512 bytes to 2 MiB
LOG_FILE = 2
OUR_MAX_PLACES = 1 << 23  # records looked at: an $MFT of 8 GiB
OUR_MAX_HEADS = 64  # copies of record 0 that are tried
OUR_MAX_GROUPS = 512  # fragments of a table that are put to the vote
SAMPLES = 32  # directories of one fragment that vote
DOUBT_FROM = 4  # directories without a single vote: that fragment is another volume's


def carve(reader: Reader, evidence: Sequence[Evidence], offset: int, limit: int) -> Iterator[HostFile]:
    """Files of the volume at image offset `offset` (`limit` bytes), out of evidence of kind "ntfs.record"."""
    places, numbers = _places(evidence, offset, min(offset + limit, reader.size))
    if not len(places):
        return
    size = _record_size(reader, places)
    if size is None:
        return
    places, numbers = _numbered(reader, places, numbers, size)
    boot = Boot(SECTOR, DEFAULT_CLUSTER, limit // SECTOR, 0, 0, size, 0)
    found = Scattered(reader, places, numbers, size)
    mft = _by_record_0(reader, found, boot, offset)
    if mft is not None:
        yield from Files(reader, mft[0], offset, mft[1], "ntfs.carved")
        return
    cluster, ours, proven = _by_votes(reader, found, boot, offset)
    boot = dataclasses.replace(boot, cluster=cluster)
    table = Scattered(reader, places[ours], numbers[ours], size)
    for file in Files(reader, boot, offset, table, "ntfs.carved"):
        file.complete &= proven or file.inline is not None
        yield file


def _places(evidence: Sequence[Evidence], offset: int, end: int) -> tuple[Runs, Runs]:
    """Image offsets (rising, each once) and record numbers (-1 unknown). A folded row stands for `count` records."""
    parts: list[Runs] = []
    total = 0
    for row in evidence:
        if row.kind != KIND or not offset <= row.image_offset < end or total >= OUR_MAX_PLACES:
            continue
        stride = max(row.length // max(row.count, 1), MIN_RECORD)
        count = max(min(row.count, OUR_MAX_PLACES - total, (end - row.image_offset) // stride), 1)
        k = np.arange(count, dtype=np.int64)
        number = np.full(count, -1, np.int64) if row.value is None else row.value + k
        parts.append(np.stack((row.image_offset + k * stride, number), axis=1))
        total += count
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    both = np.concatenate(parts)
    _, first = np.unique(both[:, 0], return_index=True)
    return both[first, 0], both[first, 1]


def _record_size(reader: Reader, places: Runs) -> int | None:
    """The allocated size that most of some records state."""
    votes: dict[int, int] = {}
    for at in places[:: max(len(places) // 64, 1)][:64].tolist():
        head = reader.read(at, 48)
        size = int.from_bytes(head[28:32], "little")
        if head[:4] == b"FILE" and MIN_RECORD <= size <= MAX_RECORD and size & (size - 1) == 0:
            votes[size] = votes.get(size, 0) + 1
    return max(votes, key=lambda s: (votes[s], -s)) if votes else None


def _numbered(reader: Reader, places: Runs, numbers: Runs, size: int) -> tuple[Runs, Runs]:
    """Sound records only, with the number that they state (NTFS 3.1), else the one that the evidence gave."""
    kept: list[tuple[Runs, Runs]] = []
    for batch in Scattered(reader, places, numbers, size).batches():
        usable = np.flatnonzero(batch.usable > 0)
        records = batch.records[usable]
        stated = np.ascontiguousarray(records[:, 0x2C:0x30]).view("<u4")[:, 0].astype(np.int64)
        given = batch.numbers[usable]
        has_number = records[:, 4] >= NUMBERED_FROM  # the update sequence leaves room for it
        # reserved records state 0 as well (seen: mkntfs); the real record 0 is always in use
        reserved = (stated == 0) & (records[:, 22] & IN_USE == 0)
        number = np.where(reserved, -1, np.where(has_number, stated, given))
        good = number >= 0
        kept.append((places[batch.slot + usable[good]], number[good]))
    return np.concatenate([k[0] for k in kept]), np.concatenate([k[1] for k in kept])


def _by_record_0(reader: Reader, found: Scattered, boot: Boot, offset: int) -> tuple[Boot, Mft] | None:
    """The table by a copy of its own record: the cluster size with which it predicts most records' places."""
    best: tuple[int, Boot, Record] | None = None
    for slot in np.flatnonzero(found.numbers == 0)[:OUR_MAX_HEADS].tolist():
        record = found.at_slot(slot)
        if record is None or not is_mft(record):
            continue
        for cluster in CLUSTERS:
            trial = dataclasses.replace(boot, cluster=cluster)
            hits = _predicted(record, trial, offset, found)
            if hits and (best is None or hits > best[0]):
                best = hits, trial, record
    if best is None or (best[0] < 2 and len(found.numbers) > 1):
        return None
    mft = from_record_0(reader, best[2], best[1], offset)
    return None if mft is None else (best[1], mft)


def _predicted(record: Record, boot: Boot, offset: int, found: Scattered) -> int:
    """How many of the records found lie where the runs in `record` put their number."""
    runs = [decode_runs(record, a, boot.clusters)[0] for a in unnamed_data(record) if not a.resident]
    rows = to_rows(np.concatenate(runs), boot, offset)
    if not len(rows):
        return 0
    at = found.numbers * boot.record_size
    i = np.clip(np.searchsorted(rows[:, 0], at, "right") - 1, 0, None)
    inside = (at >= rows[i, 0]) & (at < rows[i, 0] + rows[i, 2]) & (rows[i, 1] >= 0)
    return int((inside & (rows[i, 1] + at - rows[i, 0] == found.positions)).sum())


def _by_votes(reader: Reader, found: Scattered, boot: Boot, offset: int) -> tuple[int, Runs, bool]:
    """Cluster size, the slots believed to be this volume's, and whether anything voted for it."""
    delta = found.positions - found.numbers * boot.record_size  # one value per fragment of the table
    _, group, members = np.unique(delta, return_inverse=True, return_counts=True)
    votes = np.zeros((len(members), len(CLUSTERS)), np.int64)
    asked = np.zeros(len(members), np.int64)
    for number in np.argsort(-members, kind="stable")[:OUR_MAX_GROUPS].tolist():
        slots = np.flatnonzero(group == number)
        for slot in slots.tolist():
            if asked[number] >= SAMPLES:
                break
            record = found.at_slot(slot)
            claim = _claim(record) if record is not None and record.in_use else None
            if record is None or claim is None:
                continue
            asked[number] += 1
            for k, cluster in enumerate(CLUSTERS):
                trial = dataclasses.replace(boot, cluster=cluster)
                runs, _ = decode_runs(record, claim[0], trial.clusters)
                if len(runs) and runs[0, 1] >= 0:
                    votes[number, k] += reader.read(offset + int(runs[0, 1]) * cluster, 4) == claim[1]
    total = votes.sum(axis=0)
    proven = bool(total.any())
    k = int(total.argmax()) if proven else CLUSTERS.index(DEFAULT_CLUSTER)
    ours = (votes[:, k] > 0) | (asked < DOUBT_FROM)
    return CLUSTERS[k], np.flatnonzero(ours[group]), proven


def _claim(record: Record) -> tuple[Attribute, bytes] | None:
    """An attribute whose first cluster must begin with known bytes, and those bytes."""
    for attribute in record.attributes:
        if attribute.kind == INDEX and not attribute.resident and attribute.first == 0:
            return attribute, b"INDX"
    if record.number == LOG_FILE:
        for attribute in unnamed_data(record):
            if not attribute.resident and attribute.first == 0:
                return attribute, b"RSTR"
    return None
