"""What a case gives back: each recovered disk read to a raw guest, by QEMU under limits or through its own map."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from .containers import DRIVERS, qemu_name
from .sparse import new_sparse, nonzero_runs
from .tools import CorpusError, run

OUR_MAX_SIZE = 64 << 30  # bytes of one guest that we read
MEMORY, SECONDS = 4 << 30, 120  # limits of one reader, bytes and seconds
PIECE = 4 << 20  # bytes copied at once
DESCRIPTOR = 1 << 16  # bytes at the front of a file in which we look for names

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A case folder and its two tables; `extents` by disk_id."""

    folder: Path
    disks: list[Row]
    extents: dict[str, list[Row]]


def load_case(folder: Path) -> Case:
    """Read disks.arrow and extents.arrow of a case."""
    extents: dict[str, list[Row]] = defaultdict(list)
    for row in _rows(folder / "extents.arrow"):
        extents[row["disk_id"]].append(row)
    return Case(folder, _rows(folder / "disks.arrow"), extents)


def _rows(path: Path) -> list[Row]:
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as table:
            rows: list[Row] = table.read_all().to_pylist()
            return rows
    except (OSError, pa.ArrowInvalid) as error:
        raise CorpusError(f"{path}: {error}") from None


def written_file(case: Case, disk: Row) -> Path | None:
    """The recovered file of a disk, where one was written."""
    path = case.folder / disk["path"] if disk["path"] else None
    return path if path is not None and path.is_file() else None


def read_guest(case: Case, disk: Row, image: Path, work: Path) -> tuple[Path | None, str]:
    """The guest of a disk as a new raw file in `work`, and how it was read (or why it was not)."""
    raw = work / f"{disk['disk_id']}.guest"
    reasons = []
    for how, reader in (("file", _by_qemu), ("guest map", _by_guest_rows), ("container map", _by_container_rows)):
        try:
            reader(case, disk, image, raw)
            return raw, how
        except CorpusError as error:
            reasons.append(f"{how}: {error}")
            raw.unlink(missing_ok=True)
    return None, "; ".join(reasons)


def _by_qemu(case: Case, disk: Row, image: Path, raw: Path) -> None:
    path = written_file(case, disk)
    if path is None:
        raise CorpusError("not written")
    _convert(path, _driver(disk), raw)


def _driver(disk: Row) -> str:
    driver = DRIVERS.get(disk["format"])
    if driver is None:
        raise CorpusError(f"no reader for {disk['format']}")
    if not 0 <= (disk["virtual_size"] or 0) <= OUR_MAX_SIZE:
        raise CorpusError(f"virtual size {disk['virtual_size']} is above our limit")
    return driver


def _convert(path: Path, driver: str, raw: Path) -> None:
    """Read a container with QEMU: explicit format, no parent, limited, and no names that lead elsewhere."""
    with path.open("rb") as file:
        head = file.read(DESCRIPTOR)
    named = re.findall(rb'^(?:RW|RDONLY|NOACCESS) \d+ \w+ "([^"]*)"', head, re.MULTILINE)
    if driver == "vmdk" and any(b"/" in name or b":" in name for name in named):
        raise CorpusError(f"{path.name}: a descriptor names a file elsewhere")
    limits = ("prlimit", f"--as={MEMORY}", f"--fsize={OUR_MAX_SIZE}")
    driver = "raw" if path.suffix in (".raw", ".img") else driver
    run(*limits, "qemu-img", "convert", "-O", "raw", qemu_name(driver, path), raw, seconds=SECONDS)


def _by_guest_rows(case: Case, disk: Row, image: Path, raw: Path) -> None:
    rows = [row for row in case.extents[disk["disk_id"]] if row["space"] == "guest"]
    if not rows:
        raise CorpusError("no guest rows")
    _driver({**disk, "format": "raw"})
    _assemble(rows, image, raw, disk["virtual_size"])


def _by_container_rows(case: Case, disk: Row, image: Path, raw: Path) -> None:
    rows = [row for row in case.extents[disk["disk_id"]] if row["space"] == "container"]
    if not rows:
        raise CorpusError("no container rows")
    driver, container = _driver(disk), raw.with_suffix(".container")
    try:
        _assemble(rows, image, container, disk["container_size"])
        _convert(container, driver, raw)
    finally:
        container.unlink(missing_ok=True)


def _assemble(rows: list[Row], image: Path, target: Path, size: int) -> None:
    """A new sparse file of `size` bytes with what the rows claim."""
    if not 0 <= size <= OUR_MAX_SIZE:
        raise CorpusError(f"size {size} is above our limit")
    new_sparse(target, size)
    with image.open("rb") as source, target.open("r+b") as file:
        for row in rows:
            at = 0
            while at < row["length"] and row["image_offset"] is not None:
                block = claimed(source, row, at, PIECE)
                if not block:
                    break
                for start, end in nonzero_runs(block):
                    file.seek(row["offset"] + at + start)
                    file.write(block[start:end])
                at += len(block)


def claimed(source: BinaryIO, row: Row, at: int, most: int) -> bytes | None:
    """Up to `most` bytes that a row claims from byte `at` of it on; None where the row alone does not give them.

    A zero row claims zeros. Rows without a place in the image hold what the program wrote itself, or a stream that
    lies in several pieces.
    """
    length = min(most, row["length"] - at)
    if row["grade"] == "zero":
        return bytes(length)
    if row["image_offset"] is None:
        return None
    if row["encoding"] == "plain":
        source.seek(row["image_offset"] + at)
        return source.read(length)
    if row["encoding"] not in WINDOWS or at:
        return None
    source.seek(row["image_offset"])
    packed = source.read(row["stored"] or 2 * row["length"] + DESCRIPTOR)
    try:
        return zlib.decompressobj(WINDOWS[row["encoding"]]).decompress(packed, row["length"])
    except zlib.error:
        return bytes(length)  # claimed, and does not even decode: all of it counts as wrong


WINDOWS = {"zlib": 15, "deflate": -15}
