"""FileMap: which image bytes are which container bytes, and how we know. FileView reads a container through one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .model import (
    GUESSED,
    MISSING,
    PROVEN,
    RUN_CHECKED,
    RUN_DATA,
    RUN_HOLE,
    RUN_INLINE,
    RUN_REUSED,
    RUN_UNWRITTEN,
    SUPPORTED,
    ZERO,
    HostFile,
    Reader,
)

Int64s = npt.NDArray[np.int64]


@dataclass(slots=True)
class FileMap:
    """Rows of equal length, file_offset rising, no gap, no overlap, from 0 to `size`.

    image_offset: -1 where no image bytes are claimed (grade zero or missing). grade, rule: one name per row.
    """

    file_offset: Int64s
    length: Int64s
    image_offset: Int64s
    grade: list[str]
    rule: list[str]

    @property
    def size(self) -> int:
        return int(self.file_offset[-1] + self.length[-1]) if len(self.file_offset) else 0

    def __len__(self) -> int:
        return len(self.file_offset)

    @classmethod
    def build(cls, rows: Iterable[tuple[int, int, int, str, str]]) -> FileMap:
        """From (file_offset, length, image_offset, grade, rule) in file order; rows that continue each other merge."""
        out: list[list[object]] = []
        for f, n, p, grade, rule in rows:
            if n <= 0:
                continue
            if out:
                last = out[-1]
                lf, ln, lp = int(last[0]), int(last[1]), int(last[2])  # type: ignore[call-overload]
                follows = (p == -1 and lp == -1) or (p >= 0 and lp >= 0 and p == lp + ln)
                if lf + ln == f and follows and last[3] == grade and last[4] == rule:
                    last[1] = ln + n
                    continue
            out.append([f, n, p, grade, rule])
        f, n, p, grade, rule = ([row[i] for row in out] for i in range(5))
        return cls(np.array(f, np.int64), np.array(n, np.int64), np.array(p, np.int64),
                   [str(g) for g in grade], [str(r) for r in rule])

    @classmethod
    def from_host_file(cls, file: HostFile, size: int) -> FileMap:
        """The runs of a host file up to `size`: gaps are holes, or missing where the map is incomplete."""
        rows: list[tuple[int, int, int, str, str]] = []
        rule = f"host.{file.origin}"
        grade = SUPPORTED if file.certain else GUESSED
        gap, why = (ZERO, "host.hole") if file.complete else (MISSING, f"{rule}.lost")
        at = 0
        for f, p, n, kind in file.runs.tolist():
            if f >= size:
                break
            if f < at:  # overlapping rows are a remnant's fault: the first one stands
                n, p, f = n - (at - f), p + (at - f if p >= 0 else 0), at
                if n <= 0:
                    continue
            if f > at:
                rows.append((at, f - at, -1, gap, why))
            n = min(n, size - f)
            if kind == RUN_DATA and p >= 0:
                rows.append((f, n, p, grade, rule))
            elif kind in (RUN_HOLE, RUN_UNWRITTEN):
                rows.append((f, n, -1, ZERO, "host.hole" if kind == RUN_HOLE else "host.unwritten"))
            elif kind == RUN_INLINE and p >= 0:
                rows.append((f, n, p, grade, rule))
            elif kind == RUN_CHECKED and p >= 0:
                rows.append((f, n, p, PROVEN, f"{rule}.checksum"))
            elif kind == RUN_REUSED:
                rows.append((f, n, -1, MISSING, "reused"))
            else:
                rows.append((f, n, -1, MISSING, f"{rule}.lost"))
            at = f + n
        if at < size:
            rows.append((at, size - at, -1, gap, why))
        return cls.build(rows)

    @classmethod
    def flow(cls, image_offset: int, size: int, free: Int64s, rule: str = "free-space") -> FileMap:
        """From image_offset on, through the host's free runs int64[n, 2] only, in image order."""
        rows: list[tuple[int, int, int, str, str]] = []
        at = 0
        i = max(0, int(np.searchsorted(free[:, 0], image_offset, side="right")) - 1)
        while at < size and i < len(free):
            start, n = int(free[i, 0]), int(free[i, 1])
            i += 1
            p = max(start, image_offset)
            n = min(start + n - p, size - at)
            if n > 0:
                rows.append((at, n, p, GUESSED, rule))
                at += n
        if at < size:
            rows.append((at, size - at, -1, MISSING, "image-end"))
        return cls.build(rows)

    @classmethod
    def from_runs(cls, runs: Int64s, size: int, rule: str, grade: str = SUPPORTED) -> FileMap:
        """From int64[n, 3] file_offset, image_offset, length (rising, disjoint); the rest is missing."""
        rows: list[tuple[int, int, int, str, str]] = []
        at = 0
        for f, p, n in runs.tolist():
            if f < at:
                n, p, f = n - (at - f), p + (at - f), at
            n = min(n, size - f)
            if n <= 0:
                continue
            if f > at:
                rows.append((at, f - at, -1, MISSING, "not-found"))
            rows.append((f, n, p, grade, rule))
            at = f + n
        if at < size:
            rows.append((at, size - at, -1, MISSING, "not-found"))
        return cls.build(rows)

    def rows(self) -> list[tuple[int, int, int, str, str]]:
        """(file_offset, length, image_offset, grade, rule) per row."""
        return list(zip(self.file_offset.tolist(), self.length.tolist(), self.image_offset.tolist(),
                        self.grade, self.rule, strict=True))

    def reads(self) -> tuple[object, ...]:
        """What a view through the map reads by: maps for which this is equal read alike."""
        return (self.file_offset.tobytes(), self.length.tobytes(), self.image_offset.tobytes(), tuple(self.grade))

    def resized(self, size: int) -> FileMap:
        """Cut at `size`, or extended by a missing row."""
        rows = [(f, min(n, size - f), p, g, r) for f, n, p, g, r in self.rows() if f < size]
        if size > self.size:
            rows.append((self.size, size - self.size, -1, MISSING, "not-found"))
        return FileMap.build(rows)

    def cut(self, file_offset: int, length: int) -> list[tuple[int, int, int, str, str]]:
        """The parts of the rows inside [file_offset, file_offset + length)."""
        out: list[tuple[int, int, int, str, str]] = []
        if length <= 0 or len(self) == 0:
            return out
        end = file_offset + length
        i = max(0, int(self.file_offset.searchsorted(file_offset, "right")) - 1)
        j = int(self.file_offset.searchsorted(end, "left"))
        for f, n, p in zip(self.file_offset[i:j].tolist(), self.length[i:j].tolist(), self.image_offset[i:j].tolist(),
                           strict=True):
            low, high = max(f, file_offset), min(f + n, end)
            if low < high:
                out.append((low, high - low, p + (low - f) if p >= 0 else -1, self.grade[i], self.rule[i]))
            i += 1
        return out

    def without(self, ranges: Iterable[tuple[int, int]], rule: str) -> FileMap:
        """The same map without the image bytes of ranges (first, end), rising, disjoint: missing, for that reason."""
        out: list[tuple[int, int, int, str, str]] = []
        at = 0
        for first, end in ranges:
            out += self.cut(at, first - at)
            out += [(f, n, -1, MISSING if p >= 0 else g, rule if p >= 0 else r)
                    for f, n, p, g, r in self.cut(first, end - first)]
            at = end
        return FileMap.build([*out, *self.cut(at, self.size - at)])

    def zeroed(self, ranges: Iterable[tuple[int, int]], rule: str) -> FileMap:
        """The same map with zeros in ranges (first, end), rising, disjoint, where it says that bytes are missing."""
        out: list[tuple[int, int, int, str, str]] = []
        at = 0
        for first, end in ranges:
            out += self.cut(at, first - at)
            out += [(f, n, p, ZERO if g == MISSING else g, rule if g == MISSING else r)
                    for f, n, p, g, r in self.cut(first, end - first)]
            at = end
        return FileMap.build([*out, *self.cut(at, self.size - at)])

    def graded(self, ranges: Iterable[tuple[int, int, str, str]]) -> FileMap:
        """The same map with (file_offset, length, grade, rule) laid over the rows that claim image bytes.

        Zero and missing rows keep their grade: a rule about content cannot find bytes that are not there. Ranges
        must be rising and disjoint.
        """
        out: list[tuple[int, int, int, str, str]] = []
        at = 0
        for f, n, grade, rule in ranges:
            out += self.cut(at, f - at)
            out += [(a, b, p, grade if p >= 0 else g, rule if p >= 0 else r) for a, b, p, g, r in self.cut(f, n)]
            at = max(at, f + n)
        out += self.cut(at, self.size - at)
        return FileMap.build(out)


class FileView:
    """A Reader in file offsets over an image and a FileMap. Patches (file_offset, bytes) are laid over what is read.

    Reads mostly follow each other inside one row of the map, so the last row is kept: tables of a container are read in
    thousands of parts.
    """

    def __init__(self, image: Reader, file_map: FileMap, patches: Iterable[tuple[int, bytes]] = ()) -> None:
        self.image = image
        self.map = file_map
        self.size = file_map.size
        self.patches = list(patches)
        self._row = 0, 0, -1, MISSING  # begin, end, image offset, grade

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length <= 0 or offset >= self.size:
            return b""
        length = min(length, self.size - offset)
        low, high, at, _ = self._row_at(offset)
        if offset + length <= high:
            data = self._bytes(at + offset - low if at >= 0 else -1, length)
        else:
            data = b"".join([self._bytes(p, n) for _, n, p, _, _ in self.map.cut(offset, length)])
        if self.patches:
            out = bytearray(data)
            for at, new in self.patches:
                low, high = max(at, offset), min(at + len(new), offset + length)
                if low < high:
                    out[low - offset : high - offset] = new[low - at : high - at]
            return bytes(out)
        return data

    def missing(self, offset: int, length: int) -> bool:
        if offset < 0 or offset + length > self.size:
            return True
        if length <= 0:
            return False
        low, high, at, grade = self._row_at(offset)
        if offset + length <= high:
            return self._lacks(offset, length, at + offset - low if at >= 0 else -1, grade)
        return any(self._lacks(at, n, p, grade) for at, n, p, grade, _ in self.map.cut(offset, length))

    def _row_at(self, offset: int) -> tuple[int, int, int, str]:
        """Begin, end, image offset and grade of the row that holds the byte."""
        row = self._row
        if not row[0] <= offset < row[1]:
            m = self.map
            i = int(m.file_offset.searchsorted(offset, "right")) - 1
            low = int(m.file_offset[i])
            row = self._row = low, low + int(m.length[i]), int(m.image_offset[i]), m.grade[i]
        return row

    def _bytes(self, image_offset: int, length: int) -> bytes:
        if image_offset < 0:
            return bytes(length)
        got = self.image.read(image_offset, length)
        return got if len(got) == length else got + bytes(length - len(got))

    def _lacks(self, offset: int, length: int, image_offset: int, grade: str) -> bool:
        """Whether bytes that lie in one row of the map are missing."""
        if image_offset >= 0:
            return self.image.missing(image_offset, length)
        return grade == MISSING and not any(f <= offset and offset + length <= f + len(d) for f, d in self.patches)
