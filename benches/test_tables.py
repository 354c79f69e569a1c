"""What does reading a case cost? Large tables, against Arrow's own reading of the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vmcarve import open_case, open_disk
from vmcarve.case import write_json
from vmcarve.tables import DISKS, EXTENTS, read, write, writer

from .common import compare, median, record

ROWS = 1 << 20  # extents of one disk: a terabyte in pieces of one MiB
CLUSTER = 1 << 16
OTHERS = 64  # disks with some extents each


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case whose first disk has ROWS extents, scattered over a sparse image; and some small ones."""
    folder = tmp_path_factory.mktemp("tables")
    image = folder / "image"
    with image.open("wb") as f:
        f.truncate(ROWS * CLUSTER)
    places = np.random.default_rng(1).permutation(ROWS).astype(np.int64) * CLUSTER
    offsets = np.arange(ROWS, dtype=np.int64) * CLUSTER
    maps = [extents(name, space, offsets[:count], places[:count])
            for name, count in [("big", ROWS), *((f"small-{n:02d}", 16) for n in range(OTHERS))]
            for space in ("container", "guest")]
    with writer(folder / "extents.arrow", EXTENTS) as out:
        out.write_table(pa.concat_tables(maps).unify_dictionaries().combine_chunks())
    rows = [{**dict.fromkeys(DISKS.names), **dict.fromkeys(
        (f.name for f in DISKS if pa.types.is_integer(f.type) and not f.nullable), 0), "disk_id": name,
        "format": "vdi", "variant": "dynamic", "system": "", "exact": True, "names": [], "checks": []}
        for name in ["big", *(f"small-{n:02d}" for n in range(OTHERS))]]
    write(folder / "disks.arrow", rows, DISKS)
    write_json(folder / "case.json", {"images": [{"path": str(image), "unreadable": []}]})
    return folder


def extents(name: str, space: str, offset: np.ndarray, place: np.ndarray) -> pa.Table:
    """The map of one disk in one space: clusters at `offset` that lie at `place`."""
    n = len(offset)

    def same(value: str) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value]))

    length = np.full(n, CLUSTER)
    columns = [[name] * n, same(space), offset, length, np.zeros(n, np.int32), place, offset, same("plain"), length,
               same("supported"), same("host.live")]
    return pa.Table.from_arrays([c if isinstance(c, pa.Array) else pa.array(c) for c in columns], schema=EXTENTS)


def test_open(benchmark: Any, case: Path) -> None:
    """A case is opened and its disks listed, beside a map of a million rows that nobody asked for."""
    result = compare(benchmark, lambda: open_case(case).disks(), lambda: read(case / "disks.arrow").to_pylist(),
                     check=lambda rows: len(rows) == OTHERS + 1)
    record(benchmark, "listing a case / reading disks.arrow, CPU time", result.cpu,
           note=f"{median(result.ours.wall) * 1e3:.1f} ms, {OTHERS + 1} disks, {2 * ROWS} extents beside")


def test_small_map(benchmark: Any, case: Path) -> None:
    """The map of a small disk in a case with a large one, against a look through the whole column."""
    def check(rows: list[dict[str, Any]]) -> None:
        assert [r["offset"] for r in rows] == [i * CLUSTER for i in range(16)]

    result = compare(benchmark, lambda: open_case(case).extents("small-07", "guest"),
                     lambda: pa.compute.equal(read(case / "extents.arrow")["disk_id"], "small-07"), check=check)
    record(benchmark, "map of a small disk / a look through the column, CPU time", result.cpu,
           note=f"{median(result.ours.wall) * 1e3:.0f} ms")


def test_view(benchmark: Any, case: Path) -> None:
    """A view of the disk with a million extents, to its first bytes."""
    result = compare(benchmark, lambda: open_disk(case, "big").read(0, 4096),
                     lambda: read(case / "extents.arrow").filter(
                         pa.compute.equal(read(case / "extents.arrow")["disk_id"], "big")),
                     check=lambda data: data == bytes(4096), rounds=3)
    record(benchmark, f"view of a disk with {ROWS} extents", median(result.ours.wall), unit="s", goal=2.0, at_most=True,
           note=f"{result.cpu:.3f} of the speed of Arrow's filter alone")
