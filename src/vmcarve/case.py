"""The case folder: what was found in a set of images, and the recovered files. Readers need this module alone.

What opens a disk is imported when one is opened: a list of disks should be there at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from .errors import UsageError, VmcarveError
from .tables import pc, read

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .disk import VirtualDisk
    from .filemap import FileView
    from .source import ImageSource



def make_folder(path: Path, resume: bool = False) -> Path:
    """The case folder, made or empty; with `resume` it may hold a case."""
    try:
        if path.exists() and not path.is_dir():
            raise UsageError("is a file, a case needs a folder of its own", source=str(path))
        if path.is_dir() and any(path.iterdir()) and not resume:
            raise UsageError("is not empty: name a new folder, or give --resume", source=str(path))
        path.mkdir(parents=True, exist_ok=True)
        (path / "disks").mkdir(exist_ok=True)
    except OSError as e:
        raise VmcarveError(f"cannot be made: {e.strerror}", source=str(path)) from e
    return path


def write_json(path: Path, value: dict[str, Any]) -> None:
    """JSON that appears whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise VmcarveError(f"cannot be written: {e.strerror}", source=str(path)) from e


@dataclass(slots=True)
class Case:
    """An opened case. Tables are memory-mapped: nothing is copied on reading."""

    path: Path
    info: dict[str, Any]

    def table(self, name: str) -> pa.Table:
        """evidence, disks, extents or files."""
        return read(self.path / f"{name}.arrow")

    def disks(self) -> list[dict[str, Any]]:
        """The rows of disks.arrow."""
        return self.table("disks").to_pylist()

    def disk(self, disk_id: str) -> dict[str, Any]:
        """One row, by its id or by a beginning of it that only one disk has."""
        rows = self.disks()
        found = [r for r in rows if r["disk_id"] == disk_id] or [r for r in rows if r["disk_id"].startswith(disk_id)]
        if len(found) != 1:
            raise UsageError(f"{'no' if not found else 'more than one'} disk is called {disk_id!r} "
                             f"(vmcarve list {self.path} names them)", source=str(self.path))
        return found[0]

    def extents(self, disk_id: str, space: str) -> list[dict[str, Any]]:
        """The map of one disk in one space, offset rising."""
        return self.map(disk_id, space).to_pylist()

    def map(self, disk_id: str, space: str) -> pa.Table:
        """The same as a table: a map may have millions of rows."""
        table = self.table("extents")
        mask = pc.and_(pc.equal(table["disk_id"], disk_id), pc.equal(pc.cast(table["space"], pa.string()), space))
        return table.filter(mask)

    def image(self, index: int) -> ImageSource:
        """The evidence image that a `source` column names."""
        from .source import open_image

        return open_image(self.info["images"][index]["path"])


def open_case(path: str | os.PathLike[str]) -> Case:
    """Opens a case folder. Raises UsageError when it is none."""
    folder = Path(path)
    try:
        info = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise UsageError("is not a case: it has no case.json", source=str(folder)) from e
    except (OSError, ValueError) as e:
        raise VmcarveError(f"case.json cannot be read: {e}", source=str(folder)) from e
    return Case(folder, info)


def open_disk(case: Case | str | os.PathLike[str], disk_id: str) -> VirtualDisk:
    """A read-only view of a recovered guest disk, through its map onto the evidence: nothing is copied.

    Runs that the parent of a snapshot chain answers are read through the parent.
    """
    if not isinstance(case, Case):
        case = open_case(case)
    return _open(case, case.disk(disk_id), 0)


def _open(case: Case, row: dict[str, Any], depth: int) -> VirtualDisk:
    import numpy as np

    from .disk import VirtualDisk
    from .filemap import FileMap, FileView
    from .model import DATA, ENCODING_NAMES, LOST, PARENT, PLAIN, GuestMap

    rows = _columns(case.map(row["disk_id"], "guest"))
    image = case.image(row["source"])
    own = _columns(case.map(row["disk_id"], "container"))
    if not len(own["offset"]):  # taken out of another container: that one's map leads to encoded runs
        own = _columns(case.map(row["disk_id"].rsplit(".", 1)[0], "container"))
    container = FileMap(own["offset"], own["length"], own["image_offset"], own["grade"].tolist(), own["rule"].tolist())
    # plain runs are read from the image directly, encoded ones through the container
    states = _states(rows)
    if row["parent_id"] is None:  # a parent that was not found is missing, not empty
        states[rows["grade"] == PARENT] = LOST
    encoded = np.zeros(len(states), np.uint8)
    for code, name in enumerate(ENCODING_NAMES):
        encoded[rows["encoding"] == name] = code
    inside = (states == DATA) & (encoded != PLAIN)
    place = np.where(states != DATA, -1, np.where(inside, rows["container_offset"] + image.size, rows["image_offset"]))
    guest_map = GuestMap.build(rows["offset"], rows["length"], states, place, encoded,
                               np.where(encoded != PLAIN, rows["stored"], rows["length"]))
    parent = None
    if row["parent_id"] is not None and depth < 64 and (rows["grade"] == PARENT).any():
        parent = _open(case, case.disk(row["parent_id"]), depth + 1)
    return VirtualDisk(_Both(image, FileView(image, container)), guest_map, parent)


def _columns(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """The columns of a map as arrays: numbers as int64 with -1 for null, texts as objects that rows share."""
    import numpy as np

    out: dict[str, npt.NDArray[Any]] = {}
    for f in table.schema:
        column = table[f.name].combine_chunks()
        if pa.types.is_dictionary(f.type):
            texts = np.array([*column.dictionary.to_pylist(), None], object)
            out[f.name] = texts[pc.fill_null(column.indices, len(texts) - 1).to_numpy(zero_copy_only=False)]
        elif pa.types.is_integer(f.type):
            out[f.name] = pc.fill_null(column, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return out


class _Both:
    """Image bytes at their image offsets, and behind them the container's bytes."""

    def __init__(self, image: ImageSource, container: FileView) -> None:
        self._image, self._container = image, container

    @property
    def size(self) -> int:
        return self._image.size + self._container.size

    def read(self, offset: int, length: int) -> bytes:
        base = self._image.size
        return self._image.read(offset, length) if offset < base else self._container.read(offset - base, length)

    def missing(self, offset: int, length: int) -> bool:
        base = self._image.size
        return (self._image.missing(offset, length) if offset < base
                else self._container.missing(offset - base, length))


def _states(rows: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.uint8]:
    """What each row of a guest's map is to a GuestMap: from its grade, or its rule where no image byte is told."""
    import numpy as np

    from .model import DATA, HOLE, LOST, MISSING, PARENT, UNALLOCATED, ZERO

    grade = rows["grade"]
    nowhere = (rows["image_offset"] < 0) & (rows["encoding"] == "plain")
    states = np.full(len(grade), DATA, np.uint8)
    if nowhere.any():
        told = np.array([rule.startswith("container.") for rule in rows["rule"][nowhere].tolist()])
        states[nowhere] = np.where(told, HOLE, LOST)
    states[grade == PARENT] = UNALLOCATED
    states[grade == ZERO] = HOLE
    states[grade == MISSING] = LOST
    return states


def image_identity(image: ImageSource) -> str:
    """A short name of an image's content: BLAKE2 over its size, its first and its last MiB."""
    h = hashlib.blake2b(str(image.size).encode(), digest_size=16)
    h.update(image.read(0, 1 << 20))
    h.update(image.read(max(0, image.size - (1 << 20)), 1 << 20))
    return h.hexdigest()


