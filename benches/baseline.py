"""What is beside ours in docs/results.md: the best simple rule, and PhotoRec, on the same images.

The rule: from a header to the size that its container states, in one run, flowing around the blocks that the host has
in use. It finds and opens headers with vmcarve's own formats, so that it is as good as such a rule can be.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tests.corpus.sparse import BLOCK, ZERO_HASH, block_hashes, sha256
from tests.corpus.truth import ORIGINALS, load_truth
from vmcarve.errors import Damaged, VmcarveError
from vmcarve.export import write_container
from vmcarve.filemap import FileMap, FileView
from vmcarve.model import Container
from vmcarve.registry import formats, guests, hosts
from vmcarve.source import ImageSource, open_image
from vmcarve.sweeper import sweep_image
from vmcarve.tables import DISKS, EVIDENCE, EXTENTS, pc, read, write, writer

ROOM = 64 << 30  # bytes that a run may have before its container says its size
PHOTOREC_TYPES = ("vdi", "vmdk", "cow")  # all that it knows of virtual disks
PHOTOREC_SECONDS = 600


def simple_rule(image: Path, case: Path) -> None:
    """A case folder with what the rule gives; for the scorer of the corpus."""
    (case / "disks").mkdir(parents=True)
    with open_image(image) as source:
        free = _free(source)
        with writer(case / "evidence.arrow", EVIDENCE) as out:
            sweep_image(source, 0, out.write_batch)
        evidence = read(case / "evidence.arrow").filter(_is_head).to_pylist()
        disks, extents = [], []
        for number, (module, start) in enumerate(sorted({(row["module"], row["image_offset"]) for row in evidence})):
            led = _lead(source, module, start, free) if module in formats() else None
            if led is None:
                continue
            container, file_map = led
            name = f"{container.format}-{number}"
            path = case / "disks" / f"{name}.{container.extension or formats()[module].extension}"
            rows: list[Any] = [(f, n, p if p >= 0 else None, 0, "plain", n, grade, rule)
                               for f, n, p, grade, rule in file_map.rows()]
            write_container(source, path, container.size, rows, [])
            disks.append(_disk(name, container, path))
            columns = ("offset", "length", "image_offset", "container_offset", "encoding", "stored", "grade", "rule")
            extents += [{"disk_id": name, "space": "container", "source": 0, **dict(zip(columns, row, strict=True))}
                        for row in rows]
        write(case / "disks.arrow", disks, DISKS)
        write(case / "extents.arrow", extents, EXTENTS)


_is_head = pc.equal(pc.field("container_offset"), 0)


def _lead(image: ImageSource, module: str, start: int, free: npt.NDArray[np.int64]) -> tuple[Container, FileMap] | None:
    fmt = formats()[module]
    try:
        container = fmt.open(FileView(image, FileMap.flow(start, ROOM, free)))
    except Damaged:
        return None
    if not 0 < container.size <= ROOM or not 0 < container.virtual_size <= ROOM:
        return None
    return container, FileMap.flow(start, container.size, free)


def _free(image: ImageSource) -> npt.NDArray[np.int64]:
    """int64[n, 2] of what the hosts do not use; all of the image where there is none."""
    spans = [(0, image.size)]
    for kind in guests().values():
        if kind.name in ("gpt", "mbr") and (table := kind.probe(image, 0, image.size)) is not None:
            spans += [(at, size) for at, size, _ in table.partitions]
    for at, size in spans:
        for host in hosts().values():
            try:
                volume = host.open(image, at, min(size, image.size - at))
                if volume is not None:
                    return volume.free()
            except VmcarveError:
                continue
    return np.array([[0, image.size]], np.int64)


def _disk(name: str, container: Container, path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {field.name: None if field.nullable else _NOTHING[field.type] for field in DISKS}
    row.update(disk_id=name, format=container.format, variant=container.variant, virtual_size=container.virtual_size,
               container_size=container.size, path=f"disks/{path.name}", sha256=sha256(path))
    return row


_NOTHING: dict[pa.DataType, Any] = {
    pa.string(): "", pa.int32(): 0, pa.int64(): 0, pa.bool_(): False, pa.list_(pa.string()): [], pa.float32(): 0.0,
}


# --- PhotoRec ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Carved:
    """What a carver that knows no maps gives of one disk: its file is right, or this share of its blocks is."""

    name: str
    exact: bool
    recall: float
    wanted: int  # bytes


def photorec(scene: Path, work: Path) -> list[Carved] | None:
    """PhotoRec's virtual disks against the truth of a scene; None where it is not installed."""
    program = shutil.which("photorec") or shutil.which("photorec", path="/usr/sbin:/usr/bin:/sbin")
    if program is None:
        return None
    work.mkdir(parents=True)
    truth = load_truth(scene)
    types = "".join(f",{kind},enable" for kind in PHOTOREC_TYPES)
    words = f"partition_none,blocksize,512,fileopt,everything,disable{types},options,paranoid_no,wholespace,search"
    subprocess.run([program, "/d", str(work / "out"), "/cmd", str((scene / truth["image"]).resolve()), words], cwd=work,
                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   timeout=PHOTOREC_SECONDS, check=False)
    files = [path for path in work.glob("out*/*") if path.suffix[1:] in PHOTOREC_TYPES or path.suffix == ".qcow2"]
    hashed = [(sha256(path), block_hashes(path, path.stat().st_size)) for path in files]
    return list(_compare(truth, scene, hashed))


def _compare(truth: dict[str, Any], scene: Path, files: list[tuple[str, npt.NDArray[np.uint64]]]) -> Iterator[Carved]:
    """Block for block of the container file, which suits one that does not look into it."""
    for disk in truth["disks"]:
        if disk["deleted"] is False:
            continue
        path = scene / ORIGINALS / Path(disk["host_path"]).name
        right = block_hashes(path, path.stat().st_size)
        used = right != ZERO_HASH
        best = 0
        for _, found in files:
            length = min(len(found), len(right))
            best = max(best, int(((found[:length] == right[:length]) & used[:length]).sum()))
        exact = any(digest == disk["container_sha256"] for digest, _ in files)
        yield Carved(disk["name"], exact, best / max(1, int(used.sum())), int(used.sum()) * BLOCK)
