"""Names that outlive their records: an NTFS logs them in its change journal and, with index entries, in $LogFile.

Sources: Windows SDK, winioctl.h (USN_RECORD_V2); layout.h of ntfs-3g (INDEX_ENTRY, FILE_NAME_ATTR, RECORD_PAGE_HEADER).
A reference is a record's number and the sequence number that it had then, so a name is that of one life of a record.
No Linux driver writes either log: both were seen as these sources describe them only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..model import RUN_DATA, Reader
from ._ntfs_mft import Mft, list_value, to_rows
from ._ntfs_record import (
    DATA,
    INDEX,
    NAME_RANK,
    REFERENCE,
    STRIDE,
    Boot,
    FileName,
    Record,
    best_name,
    decode_runs,
    listed,
    unix,
)
from ._space import NO_ROWS, Runs

EXTEND = 11  # record of the folder that the change journal lies in
JOURNAL, STREAM = "$UsnJrnl", "$J"
USN_VERSION, USN_HEAD = 2, 60  # major version; bytes before the name
DELETED = 0x200  # USN_REASON_FILE_DELETE
PAGE = 4096  # of $LogFile: its pages bear fixups
KEY = 16  # byte of an index entry at which the $FILE_NAME begins that is its key
NAME_HEAD = 66  # bytes of a $FILE_NAME before the name
LEAST_TICKS, MOST_TICKS = 0x0190_0000_0000_0000, 0x0250_0000_0000_0000  # 1965 and 2125: times of a real record

OUR_MAX_BYTES = 256 << 20  # of each log that are read, from its end
OUR_MAX_NAMES = 1 << 20  # 40 bytes each, and their letters
AT_ONCE = 4 << 20  # bytes that are looked through at once

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Names:
    """reference, parent uint64[n], rising by reference and then by time; time float64[n], Unix seconds; deleted
    bool[n]; rank int64[n] (see FileName); letters int64[n, 2]: where each name begins in `text`, and its bytes.
    """

    reference: npt.NDArray[np.uint64]
    parent: npt.NDArray[np.uint64]
    time: npt.NDArray[np.float64]
    deleted: npt.NDArray[np.bool_]
    rank: Runs
    letters: Runs
    text: bytes

    def _of(self, number: int, life: int) -> npt.NDArray[np.int64]:
        key = np.uint64(number | life << 48)
        return np.arange(*np.searchsorted(self.reference, [key, key + np.uint64(1)]))

    def of(self, number: int, life: int) -> FileName | None:
        """The last name of record `number` in the life in which its sequence number was `life`."""
        rows = self._of(number, life)
        if not len(rows):
            return None
        best = rows[self.rank[rows] == self.rank[rows].min()][-1]
        start, length = self.letters[best].tolist()
        parent = int(self.parent[best])
        name = self.text[start : start + length].decode("utf-16-le", "replace")
        return FileName(parent & REFERENCE, parent >> 48, name, int(self.rank[best]))

    def deletion(self, number: int, life: int) -> float | None:
        """When that life ended, in Unix seconds, if the change journal says so."""
        rows = self._of(number, life)
        rows = rows[self.deleted[rows]]
        return float(self.time[rows[-1]]) if len(rows) else None


def logged_names(reader: Reader, boot: Boot, base: int, mft: Mft, log: Runs) -> Names:
    """All names of the change journal and of $LogFile (`log`: its HostFile rows)."""
    found = [_usn(part, at) for part, at in _parts(reader, _journal(reader, boot, base, mft), USN_HEAD + 512)]
    found += [_entries(part) for part, _ in _parts(reader, log, 0)]
    return _joined(found)


def _journal(reader: Reader, boot: Boot, base: int, mft: Mft) -> Runs:
    """HostFile rows of the change journal; none where there is none."""
    folder = mft.record(EXTEND)
    if folder is None or not folder.directory:
        return NO_ROWS
    index = {a.first: decode_runs(folder, a, boot.clusters)[0] for a in folder.attributes if a.kind == INDEX}
    rows = to_rows(np.concatenate([index[first] for first in sorted(index)]), boot, base) if index else NO_ROWS
    data = folder.data + b"".join(reader.read(start, min(length, AT_ONCE)) for start, length in rows[:, 1:3].tolist())
    at = data.find(JOURNAL.encode("utf-16-le")) - KEY - NAME_HEAD
    record = mft.record(int.from_bytes(data[at : at + 6], "little")) if at >= 0 else None
    name = best_name(record) if record is not None and record.in_use else None
    if record is None or name is None or (name.name, name.parent) != (JOURNAL, EXTEND):
        return NO_ROWS
    return _stream(reader, boot, base, mft, record)


def _stream(reader: Reader, boot: Boot, base: int, mft: Mft, record: Record) -> Runs:
    """HostFile rows of the stream of the journal's record that holds the changes."""
    records = [record]
    for kind, _, number, _ in listed(list_value(reader, record, boot, base), named=True):
        part = mft.record(number) if kind == DATA and number != record.number else None
        records += [part] if part is not None and part.base == record.number else []
    runs = {a.first: decode_runs(r, a, boot.clusters)[0] for r in records for a in r.attributes
            if a.kind == DATA and not a.resident and r.label(a) == STREAM}
    return to_rows(np.concatenate([runs[first] for first in sorted(runs)]), boot, base) if runs else NO_ROWS


def _parts(reader: Reader, rows: Runs, overlap: int) -> Iterator[tuple[Bytes, int]]:
    """The data of a log, the last OUR_MAX_BYTES of it, in parts that share `overlap` bytes; and how many bytes of each
    are in no later part."""
    rows = rows[(rows[:, 3] == RUN_DATA) & (rows[:, 1] >= 0)]
    rows = rows[np.cumsum(rows[::-1, 2])[::-1] <= OUR_MAX_BYTES]
    for start, length in rows[:, 1:3].tolist():
        for at in range(0, length, AT_ONCE):
            own = min(AT_ONCE, length - at)
            data = reader.read(start + at, min(own + overlap, length - at))
            yield np.frombuffer(data[: len(data) // 8 * 8], np.uint8), own


def _word(data: Bytes, at: npt.NDArray[np.int64], dtype: str) -> npt.NDArray[np.int64]:
    """Little-endian numbers at these bytes, as int64; the largest of eight bytes are negative."""
    width = np.dtype(dtype).itemsize
    return data[at[:, None] + np.arange(width)].view(dtype)[:, 0].astype(np.int64)


def _usn(data: Bytes, own: int) -> Names | None:
    """Change records that begin in the first `own` bytes."""
    at = np.arange(0, min(own, len(data) - USN_HEAD), 8)
    words = data[: len(data) // 8 * 8].view("<u8")
    head = words[at // 8]
    at = at[(head >> np.uint64(32) == USN_VERSION) & (head & np.uint64(0xFFFF_FFFF) > USN_HEAD)]
    length, letters, where = _word(data, at, "<u4"), _word(data, at + 56, "<u2"), _word(data, at + 58, "<u2")
    ticks = _word(data, at + 32, "<u8")
    good = (where == USN_HEAD) & (letters > 0) & (letters <= 510) & (letters % 2 == 0) & (length % 8 == 0)
    good &= (length >= USN_HEAD + letters) & (length < USN_HEAD + letters + 8) & (at + length <= len(data))
    good &= (ticks > LEAST_TICKS) & (ticks < MOST_TICKS)
    at, letters, ticks = at[good], letters[good], ticks[good]
    deleted = (_word(data, at + 40, "<u4") & DELETED) != 0
    return _built(data, at + 8, at + 16, ticks, deleted, np.zeros(len(at), np.int64), at + USN_HEAD, letters)


def _entries(pages: Bytes) -> Names | None:
    """Index entries of folders in pages of $LogFile."""
    data = _without_fixups(pages)
    at = np.arange(0, max(len(data) - KEY - NAME_HEAD, 0), 8)
    lengths = data.view("<u4")[at // 4 + 2]
    key = (lengths >> np.uint32(16)).astype(np.int64)
    good = (key > NAME_HEAD) & (key <= NAME_HEAD + 510) & (key % 2 == 0)
    at, key = at[good], key[good]
    entry, letters, space = _word(data, at + 8, "<u2"), data[at + KEY + 64].astype(np.int64), data[at + KEY + 65]
    ticks = _word(data, at + KEY + 24, "<u8")  # of the last change of the record
    good = (key == NAME_HEAD + 2 * letters) & (space <= 3) & (entry >= KEY + key) & (entry <= KEY + key + 16)
    good &= (entry % 8 == 0) & (at + KEY + key <= len(data)) & (ticks > LEAST_TICKS) & (ticks < MOST_TICKS)
    at, letters, space, ticks = at[good], letters[good], space[good], ticks[good]
    rank = np.array([NAME_RANK[n] for n in range(4)])[space]
    return _built(data, at, at + KEY, ticks, np.zeros(len(at), np.bool_), rank, at + KEY + NAME_HEAD, 2 * letters)


def _without_fixups(pages: Bytes) -> Bytes:
    """Whole pages of $LogFile with the bytes back that stood at the ends of their sectors; torn ones are zeros, and
    what is no page of records is left out.
    """
    whole = pages[: len(pages) // PAGE * PAGE].reshape(-1, PAGE)
    data = whole[(whole[:, :4] == np.frombuffer(b"RCRD", np.uint8)).all(axis=1)]
    at = _word(data.ravel(), np.arange(len(data)) * PAGE + 4, "<u2")
    count = _word(data.ravel(), np.arange(len(data)) * PAGE + 6, "<u2")
    good = (count == PAGE // STRIDE + 1)
    good &= (at % 2 == 0) & (at >= 8) & (at + 2 * count <= STRIDE - 2)
    rows, at = np.flatnonzero(good), at[good]
    for k in range(PAGE // STRIDE):
        for byte in range(2):
            end = (k + 1) * STRIDE - 2 + byte
            good[rows] &= data[rows, end] == data[rows, at + byte]
            data[rows, end] = data[rows, at + 2 + 2 * k + byte]
    data[~good] = 0
    return data.ravel()


def _built(data: Bytes, reference: Runs, parent: Runs, ticks: Runs, deleted: npt.NDArray[np.bool_], rank: Runs,
           start: Runs, length: Runs) -> Names | None:
    """Names of which reference, parent and letters are at these bytes of data."""
    keep = np.arange(min(len(reference), OUR_MAX_NAMES))
    if not len(keep):
        return None
    numbers = [_word(data, at[keep], "<u8").view(np.uint64) for at in (reference, parent)]
    begins = np.cumsum(length[keep]) - length[keep]
    text = b"".join(data[s : s + n].tobytes() for s, n in zip(start[keep].tolist(), length[keep].tolist(), strict=True))
    return Names(numbers[0], numbers[1], unix(ticks[keep]), deleted[keep], rank[keep],
                 np.column_stack((begins, length[keep])), text)


def _joined(found: Sequence[Names | None]) -> Names:
    """All of them in order, at most OUR_MAX_NAMES."""
    parts: list[Names] = []
    for part in found:
        if part is not None and sum(len(p.time) for p in parts) < OUR_MAX_NAMES:
            parts.append(part)
    if not parts:
        none = np.zeros(0, np.int64)
        return Names(none.view(np.uint64), none.view(np.uint64), none.astype(np.float64), none.astype(np.bool_), none,
                     none.reshape(0, 2), b"")
    moved = np.cumsum([0, *(len(p.text) for p in parts[:-1])])
    letters = np.concatenate([p.letters + [m, 0] for p, m in zip(parts, moved.tolist(), strict=True)])
    columns = [np.concatenate([getattr(p, name) for p in parts])
               for name in ("reference", "parent", "time", "deleted", "rank")]
    order = np.lexsort((columns[2], columns[0]))
    return Names(*(c[order] for c in columns), letters[order], b"".join(p.text for p in parts))  # type: ignore[arg-type]
