"""The tables of a case: Arrow schemas with units, and how they are written whole and read without copying.

docs/tables.md is printed from here (`python -m vmcarve.tables`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from .errors import VmcarveError


class _Compute:
    """pyarrow.compute, imported when first used: `list` does without and starts a fifth faster."""

    def __getattr__(self, name: str) -> Any:
        import pyarrow.compute

        return getattr(pyarrow.compute, name)


# pyarrow makes its functions at import time, so its type stubs do not know them
pc: Any = _Compute()


def _field(name: str, kind: pa.DataType, meaning: str, unit: str = "", null: str = "") -> pa.Field:
    meta = {"meaning": meaning}
    if unit:
        meta["unit"] = unit
    if null:
        meta["null"] = null
    return pa.field(name, kind, nullable=bool(null), metadata=meta)


EVIDENCE = pa.schema(
    [
        _field("source", pa.int32(), "index of the image in case.json"),
        _field("image_offset", pa.int64(), "first byte of the structure in the image", "bytes"),
        _field("length", pa.int64(), "bytes that the row covers, all `count` structures together", "bytes"),
        _field("count", pa.int64(), "structures of one kind that follow each other without a break", "structures"),
        _field("kind", pa.string(), "what it is, as module.structure"),
        _field("module", pa.string(), "the module of formats/, guest/ or host/ that confirmed it"),
        _field("container_offset", pa.int64(), "its place in its container file, where it proves one", "bytes",
               "it proves none"),
        _field("guest_offset", pa.int64(), "its place on the guest disk, where it proves one", "bytes",
               "it proves none"),
        _field("volume_offset", pa.int64(), "its place in its volume (partition), where it proves one", "bytes",
               "it proves none"),
        _field("identity", pa.string(), "UUID or name that ties it to others", null="it carries none"),
        _field("value", pa.int64(), "one number that it carries: a size, a record number of the first structure",
               null="it carries none"),
        _field("confidence", pa.float32(), "0 to 1; the reasons stand in the module that confirmed it"),
    ],
    metadata={"vmcarve.table": "evidence", "invariant": "rising by source and image_offset within each record batch"},
)

DISKS = pa.schema(
    [
        _field("disk_id", pa.string(), "stable name: the same image gives the same id"),
        _field("format", pa.string(), "container format, `raw` for a guest disk without a container"),
        _field("variant", pa.string(), "variant within the format (createType, dynamic, differencing, snapshot ...)"),
        _field("system", pa.string(), "hypervisor or tool that wrote it, as far as it tells"),
        _field("virtual_size", pa.int64(), "size of the guest disk", "bytes"),
        _field("container_size", pa.int64(), "size of the container file", "bytes"),
        _field("source", pa.int32(), "index of the image in case.json"),
        _field("header_offset", pa.int64(), "image offset of the container's first byte", "bytes",
               "the first byte was not found"),
        _field("fragments", pa.int64(), "runs of the container in the image", "runs"),
        _field("bytes_proven", pa.int64(), "container bytes of grade proven", "bytes"),
        _field("bytes_supported", pa.int64(), "container bytes of grade supported", "bytes"),
        _field("bytes_guessed", pa.int64(), "container bytes of grade guessed", "bytes"),
        _field("bytes_missing", pa.int64(), "container bytes of grade missing", "bytes"),
        _field("bytes_zero", pa.int64(), "container bytes that the host or the format says are zero", "bytes"),
        _field("exact", pa.bool_(), "every byte of the container is accounted for, none guessed or missing"),
        _field("deleted", pa.bool_(), "deleted on the host (false: live)", null="no host file system tells"),
        _field("names", pa.list_(pa.string()), "names that the host, the container or its companions give it"),
        _field("parent_id", pa.string(), "disk_id of the parent layer, or of the container that holds this disk",
               null="no parent, or not found"),
        _field("inside_id", pa.string(), "disk_id of the disk in whose guest this one is a file",
               null="it lies in no guest"),
        _field("parent_said", pa.string(), "what the container itself says of its parent", null="it says nothing"),
        _field("uuid", pa.string(), "identity that the container carries", null="it carries none"),
        _field("guest", pa.string(), "partitions and file systems on the guest disk", null="not looked at or unknown"),
        _field("guest_consistent", pa.bool_(), "the guest's own structures agree with each other",
               null="nothing there can tell"),
        _field("host", pa.string(), "host file system and the rule that gave the map", null="no host file system"),
        _field("checks", pa.list_(pa.string()), "invariants that failed, one sentence each"),
        _field("path", pa.string(), "recovered file, relative to the case", null="not written"),
        _field("sha256", pa.string(), "SHA-256 of the recovered file", null="not written or not hashed"),
    ],
    metadata={"vmcarve.table": "disks", "invariant": "one row per disk_id"},
)

EXTENTS = pa.schema(
    [
        _field("disk_id", pa.string(), "disk that the range belongs to"),
        _field("space", pa.dictionary(pa.int32(), pa.string()), "container (file offsets) or guest (guest offsets)"),
        _field("offset", pa.int64(), "first byte of the range in that space", "bytes"),
        _field("length", pa.int64(), "bytes of the range in that space", "bytes"),
        _field("source", pa.int32(), "index of the image in case.json"),
        _field("image_offset", pa.int64(), "where the bytes lie in the image", "bytes",
               "grade is zero, missing or parent, or the bytes are ours (rule rebuilt, reference, log-replay)"),
        _field("container_offset", pa.int64(), "where the (stored) bytes lie in the disk's own container file", "bytes",
               "not in the disk's own container: zero, missing, parent, or in another file of the disk"),
        _field("encoding", pa.dictionary(pa.int32(), pa.string()),
               "plain, or how the image bytes decode (deflate: RFC 1951, zlib: RFC 1950, zstd)"),
        _field("stored", pa.int64(), "bytes at image_offset (the length, unless encoded)", "bytes"),
        _field("grade", pa.dictionary(pa.int32(), pa.string()), "proven, supported, guessed, missing, zero or parent"),
        _field("rule", pa.dictionary(pa.int32(), pa.string()), "the reason for the grade"),
    ],
    metadata={"vmcarve.table": "extents",
              "invariant": "per disk and space: offset rising from 0, no gap, no overlap"},
)

FILES = pa.schema(
    [
        _field("source", pa.int32(), "index of the image in case.json"),
        _field("host", pa.string(), "host file system and its place in the image"),
        _field("name", pa.string(), "path on the host", null="the name is lost"),
        _field("identity", pa.string(), "inode or record"),
        _field("size", pa.int64(), "size of the file", "bytes", "the size is lost"),
        _field("deleted", pa.bool_(), "deleted on the host"),
        _field("kind", pa.string(), "what kind of companion: descriptor, configuration, nvram, saved state, log"),
    ],
    metadata={"vmcarve.table": "files", "invariant": "none"},
)

SCHEMAS = {"evidence": EVIDENCE, "disks": DISKS, "extents": EXTENTS, "files": FILES}


@contextmanager
def writer(path: Path, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """An Arrow IPC file that appears whole (temporary name, then rename) or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
            yield out
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write(path: Path, rows: list[dict[str, object]], schema: pa.Schema) -> None:
    """Writes rows as one record batch."""
    with writer(path, schema) as out:
        out.write_table(pa.Table.from_pylist(rows, schema=schema))


def read(path: Path) -> pa.Table:
    """The table, memory-mapped: column buffers lie in the file, nothing is copied."""
    try:
        with pa.memory_map(str(path), "r") as mapped:
            return pa.ipc.open_file(mapped).read_all()
    except (OSError, pa.ArrowInvalid) as e:
        raise VmcarveError(f"is not a table of a case: {e}", source=str(path)) from e


def describe() -> str:
    """The text of docs/tables.md."""
    lines = [
        "# The tables of a case",
        "",
        "Arrow IPC files, uncompressed: `pyarrow.memory_map` + `pyarrow.ipc.open_file` read them without copying, and",
        "so do DuckDB and Polars. The same texts are in the fields' metadata. This page is printed by",
        "`python -m vmcarve.tables`.",
    ]
    for name, schema in SCHEMAS.items():
        lines += ["", f"## {name}.arrow", "", f"Invariant: {schema.metadata[b'invariant'].decode()}.", "",
                  "| column | type | unit | meaning | null when |", "| --- | --- | --- | --- | --- |"]
        for f in schema:
            meta = {k.decode(): v.decode() for k, v in f.metadata.items()}
            kind = str(f.type).replace("dictionary<values=string, indices=int32, ordered=0>", "string (dictionary)")
            cells = (f.name, kind, meta.get("unit", ""), meta["meaning"], meta.get("null", "never"))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(describe(), end="")
