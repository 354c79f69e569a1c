"""The main job: sweep, assemble, verify, write. Each stage can be called by itself; data goes one way."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .assemble import Assembled, Claims, Spot, assemble_image, find_hosts, unallocated
from .assemble.chains import link
from .assemble.nested import nested
from .assemble.state import HostView
from .case import Case, image_identity, make_folder, open_case, write_json
from .errors import UsageError, VmcarveError
from .export import Output, needed, write_container, write_raw
from .model import GRADES, GUESSED, Patch
from .registry import formats
from .source import ImageSource, open_image
from .sweeper import TableRuns, check_hashes, sweep_image
from .tables import DISKS, EVIDENCE, EXTENTS, FILES, pc, read, write, writer
from .verify import Verified, guest_disk, verify
from .version import program_version

MAX_NESTED = 4  # ours: disks in disks in disks
WRITERS = 4  # disks written at the same time at most: more make a spinning disk seek

Report = Callable[[str, int, int], None]
"""report(stage, done, total): stage "sweep" counts bytes, "verify" and "write" count disks and bytes."""


@dataclass(slots=True)
class Options:
    """What a recovery may do. live: also write disks that are not deleted; write: False keeps to tables and maps.

    unallocated: look only at what the images' host file systems do not hold; live disks are not found then.
    align: 512, or 1 to look for containers at every byte. hash_image: names of hashes of the images ("sha256",
    "blake2b", "blake3"), computed while they are swept.
    """

    live: bool = False
    unallocated: bool = False
    write: bool = True
    digest: bool = True
    resume: bool = False
    align: int = 512
    hash_image: tuple[str, ...] = ()
    threads: int = field(default_factory=lambda: max(1, min(8, os.cpu_count() or 1)))


def sweep(images: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, options: Options | None = None,
          report: Report | None = None) -> Case:
    """Evidence only: CASE/evidence.arrow and case.json."""
    options = options or Options()
    check_hashes(options.hash_image)
    sources = _open_all(images, out)
    try:
        folder = make_folder(Path(out), options.resume)
        info = _info(sources, options)
        spots = _spots(sources, info) if options.unallocated else None
        _sweep(sources, folder, info, options, spots, report)
        write_json(folder / "case.json", info)
    finally:
        for s in sources:
            s.close()
    return open_case(folder)


def recover(images: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, options: Options | None = None,
            report: Report | None = None) -> Case:
    """The main job on one or more images: sweeps, assembles, verifies and writes into the case folder `out`.

    Raises UsageError for a wrong call, VmcarveError for a stated failure (no room for the outputs, for one). The
    evidence is opened read-only.
    """
    options = options or Options()
    check_hashes(options.hash_image)
    sources = _open_all(images, out)
    try:
        folder = make_folder(Path(out), options.resume)
        info = _info(sources, options)
        spots = _spots(sources, info) if options.unallocated else None
        tables: list[TableRuns | None] = [None] * len(sources)
        if not (options.resume and _swept(folder, info)):
            tables = _sweep(sources, folder, info, options, spots, report, tables=True)
            write_json(folder / "case.json", info)
        else:
            old = json.loads((folder / "case.json").read_text(encoding="utf-8"))
            info["sweep"] = old["sweep"]
            for image, before in zip(info["images"], old["images"], strict=True):
                image["hashes"] = before.get("hashes", {})
        started = time.monotonic()
        items, files = _assemble(sources, folder, info, spots, tables, report)
        info["seconds"]["assemble"] = round(time.monotonic() - started, 3)
        started = time.monotonic()
        disks = _verify(sources, items, report)
        disks += _nested(sources, folder, disks, report)
        info["seconds"]["verify"] = round(time.monotonic() - started, 3)
        started = time.monotonic()
        written = _write(sources, folder, disks, options, report) if options.write else {}
        info["seconds"]["write"] = round(time.monotonic() - started, 3)
        with writer(folder / "extents.arrow", EXTENTS) as out:
            out.write_table(_extents(disks))
        write(folder / "files.arrow", files, FILES)
        write(folder / "disks.arrow", [_disk_row(d, disks, written) for d in disks], DISKS)
        for i, s in enumerate(sources):
            info["images"][i]["unreadable"] = [list(r) for r in s.unreadable]
        info["finished"] = _now()
        info["complete"] = True
        write_json(folder / "case.json", info)
    finally:
        for s in sources:
            s.close()
    return open_case(folder)


# --- stages --------------------------------------------------------------------------------------------------------
def _open_all(images: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> list[ImageSource]:
    if not images:
        raise UsageError("no image is named")
    sources: list[ImageSource] = []
    try:
        for path in images:
            source = open_image(path)
            sources.append(source)
            if Path(out).resolve() == Path(path).resolve():
                raise UsageError("is both the image and the case", source=str(path))
    except VmcarveError:
        for s in sources:
            s.close()
        raise
    return sources


def _info(sources: list[ImageSource], options: Options) -> dict[str, Any]:
    return {
        "vmcarve": program_version(),
        "started": _now(),
        "finished": None,
        "complete": False,
        "options": {"live": options.live, "unallocated": options.unallocated, "write": options.write,
                    "hash": options.digest, "threads": options.threads, "align": options.align,
                    "hash_image": list(options.hash_image)},
        "images": [{"path": str(s.path.resolve()), "size": s.size, "identity": image_identity(s), "unreadable": []}
                   for s in sources],
        "hosts": [],
        "troubles": [],
        "seconds": {},
    }


def _swept(folder: Path, info: dict[str, Any]) -> bool:
    """Whether the case already holds the evidence of these very images and ranges, by this version."""
    try:
        old = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        same = [(i["size"], i["identity"]) for i in old["images"]] == [
            (i["size"], i["identity"]) for i in info["images"]]
        same &= old["options"]["unallocated"] == info["options"]["unallocated"]
        same = same and old["options"].get("align", 512) == info["options"]["align"]
        same = same and all(set(info["options"]["hash_image"]) <= set(i.get("hashes", {})) for i in old["images"])
        return same and old["vmcarve"] == info["vmcarve"] and "sweep" in old and (folder / "evidence.arrow").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _spots(sources: list[ImageSource], info: dict[str, Any]) -> list[list[Spot]]:
    """The host volumes of each image, and in the case how much of it no host holds."""
    out: list[list[Spot]] = []
    for index, source in enumerate(sources):
        spots, troubles = find_hosts(source)
        out.append(spots)
        info["troubles"] += troubles
        info["images"][index]["unallocated"] = int(unallocated(source.size, spots)[:, 1].sum())
    return out


def _sweep(sources: list[ImageSource], folder: Path, info: dict[str, Any], options: Options,
           spots: list[list[Spot]] | None, report: Report | None, *, tables: bool = False) -> list[TableRuns | None]:
    """All of each image, or with `spots` what none of these hosts holds. Returns `Sweep.tables` of each."""
    blocks: list[TableRuns | None] = []
    started = time.monotonic()
    ranges = [None if spots is None else unallocated(s.size, spots[i]).tolist() for i, s in enumerate(sources)]
    sizes = [s.size if r is None else sum(n for _, n in r) for s, r in zip(sources, ranges, strict=True)]
    total = sum(sizes)
    done = 0
    hits: Counter[str] = Counter()
    confirmed: Counter[str] = Counter()
    with writer(folder / "evidence.arrow", EVIDENCE) as out:
        for index, source in enumerate(sources):
            base = sum(sizes[:index])

            def progress(count: int) -> None:
                nonlocal done
                done += count
                if report is not None:
                    report("sweep", min(done, total), total)

            result = sweep_image(source, index, out.write_batch, ranges=ranges[index], threads=options.threads,
                                 align=options.align, hashes=options.hash_image, tables=tables, progress=progress)
            blocks.append(result.tables)
            info["images"][index]["hashes"] = result.digests
            hits.update(result.hits)
            confirmed.update(result.confirmed)
            info["troubles"] += [f"{kind}: {text}" for kind, text in sorted(result.failed.items())]
            done = base + sizes[index]
            if report is not None:
                report("sweep", done, total)
    info["sweep"] = {"hits": dict(sorted(hits.items())), "confirmed": dict(sorted(confirmed.items()))}
    info["seconds"]["sweep"] = round(time.monotonic() - started, 3)
    return blocks


def _assemble(sources: list[ImageSource], folder: Path, info: dict[str, Any], spots: list[list[Spot]] | None,
              tables: list[TableRuns | None], report: Report | None) -> tuple[list[Assembled], list[dict[str, object]]]:
    """With `spots`: only what none of these hosts holds."""
    evidence = read(folder / "evidence.arrow")
    items: list[Assembled] = []
    files: list[dict[str, object]] = []
    for index, source in enumerate(sources):
        if report is not None:
            report("assemble", index, len(sources))
        own = evidence.filter(pc.equal(evidence["source"], pa.scalar(index, pa.int32())))
        found, hosts, troubles = assemble_image(source, index, own, None if spots is None else spots[index],
                                                unallocated_only=spots is not None, tables=tables[index])
        bad = Claims()
        for offset, length in source.unreadable:
            bad.add_range(offset, offset + length)
        for item in found:
            item.map = bad.rest_of(item.map, "unreadable")
        items += found
        info["hosts"] += [{"image": index, "kind": h.volume.name, "offset": h.volume.offset, "size": h.volume.size,
                           "uuid": h.volume.uuid, "label": h.volume.label, "files": len(h.files),
                           "deleted_files": sum(f.deleted for f in h.files),
                           "free": int(h.free[:, 1].sum()) if len(h.free) else 0} for h in hosts]
        info["troubles"] += troubles
        files += [f for f in _companions(index, hosts) if spots is None or f["deleted"]]
    link(sources, items)
    return items, files


COMPANIONS = {
    ".vmx": "configuration", ".vmxf": "configuration", ".vmsd": "snapshots", ".vmsn": "saved state",
    ".vmss": "saved state", ".vmem": "memory", ".nvram": "nvram", ".vswp": "memory", ".vmcx": "configuration",
    ".vmrs": "saved state", ".vsv": "saved state", ".bin": "memory", ".vbox": "configuration",
    ".vbox-prev": "configuration", ".sav": "saved state", ".pvs": "configuration", ".hds": "disk",
    ".ovf": "configuration", ".mf": "manifest", ".vhds": "configuration", ".rct": "change tracking",
    ".mrt": "change tracking", ".vmdk": "disk", ".vhd": "disk", ".vhdx": "disk", ".avhd": "disk", ".avhdx": "disk",
    ".vdi": "disk", ".qcow2": "disk", ".qcow": "disk", ".qed": "disk", ".xva": "disk", ".vma": "disk", ".ova": "disk",
}


def _companions(index: int, hosts: list[HostView]) -> list[dict[str, object]]:
    """Files of the hosts whose names belong to virtual machines. The name says it, the content was not looked at."""
    rows: list[dict[str, object]] = []
    for host in hosts:
        for f in host.files:
            kind = COMPANIONS.get(os.path.splitext(f.name)[1].lower())
            if kind is not None:
                rows.append({"source": index, "host": host.label, "name": f.name, "identity": f.identity,
                             "size": f.size if f.size >= 0 else None, "deleted": f.deleted, "kind": kind})
    return rows


def _verify(sources: list[ImageSource], items: list[Assembled], report: Report | None) -> list[Verified]:
    disks: list[Verified] = []
    for n, item in enumerate(items):
        if report is not None:
            report("verify", n, len(items))
        disks += verify(list(sources), item)
    _relink(disks)
    return disks


def _nested(sources: list[ImageSource], folder: Path, disks: list[Verified], report: Report | None) -> list[Verified]:
    """Disks in the guests of disks, and those in theirs."""
    evidence = read(folder / "evidence.arrow")
    out: list[Verified] = []
    layer = disks
    for _ in range(MAX_NESTED):
        items = nested(sources, layer, evidence)
        if not items:
            break
        link(sources, items)
        layer = _verify(sources, items, report)
        out += layer
    return out


def _write(sources: list[ImageSource], folder: Path, disks: list[Verified], options: Options,
           report: Report | None) -> dict[str, tuple[str, str | None]]:
    """disk_id -> (path relative to the case, sha256) of what was written."""
    chosen = [d for d in disks if options.live or d.item.deleted is not False]
    total = sum(needed(d.rows) for d in chosen)
    room = shutil.disk_usage(folder).free
    if total > room:
        raise VmcarveError(f"the recovered disks take up to {total} bytes and there is room for {room}: nothing was "
                           "written (name another folder, or give --no-write for tables and maps only)",
                           source=str(folder))
    written: dict[str, tuple[str, str | None]] = {}
    done = 0
    stop = threading.Event()

    workers = min(options.threads, WRITERS)

    def one(d: Verified) -> Output:
        c = d.item.container
        # one disk a CPU keeps them busy, and costs less than to hand pieces on; but not while most wait for a large one
        apart = options.threads > workers or needed(d.rows) * workers > total
        path = folder / "disks" / _file_name(d)
        if d.is_file:
            return write_container(sources[d.item.source], path, c.size, d.container_rows, c.patches,
                                   digest=options.digest, apart=apart, stop=stop)
        return write_raw(guest_disk(list(sources), d.item, d.guest), path, d.guest_rows, digest=options.digest,
                         apart=apart, stop=stop)

    with ThreadPoolExecutor(workers, thread_name_prefix="write") as pool:
        try:
            for d, output in zip(chosen, [pool.submit(one, d) for d in chosen], strict=True):
                result = output.result()
                written[d.disk_id] = (f"disks/{result.path.name}", result.sha256)
                done += needed(d.rows)
                if report is not None:
                    report("write", done, total)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return written


def _file_name(d: Verified) -> str:
    """The name in CASE/disks: made of disk_id alone, never of evidence."""
    c = d.item.container
    extension = (c.extension or formats()[c.format].extension) if d.is_file else "raw"
    return f"{d.disk_id}.{extension}"


def _relink(disks: list[Verified]) -> None:
    """Text containers get the names that their members have in this case; what is not in it stays a plain name."""
    names = {d.item.disk_id: _file_name(d) for d in disks if d.is_file}
    for d in disks:
        c = d.item.container
        if c.relink is None or not d.is_file or not d.item.members:
            continue
        new = c.relink({j.member.name: (names[j.item.disk_id], j.member.file_offset)
                        for j in d.item.members if j.item.disk_id in names})
        c.patches = [Patch(0, new, "reference")]
        c.size = len(new)
        c.regions = []
        d.container_rows[:] = [(0, len(new), None, 0, "plain", len(new), GUESSED, "reference")]


# --- rows ----------------------------------------------------------------------------------------------------------
def _disk_row(d: Verified, disks: list[Verified], written: dict[str, tuple[str, str | None]]) -> dict[str, object]:
    c, item = d.item.container, d.item
    sums: dict[str, int] = dict.fromkeys(GRADES, 0)
    for _, n, *_, grade, _ in d.rows:
        sums[grade] += n
    path, sha256 = written.get(d.disk_id, (None, None))
    parent_id = None
    if d.disk_id != item.disk_id:
        parent_id = item.disk_id if c.rebuild else None
    elif item.parent is not None:
        parent_id = item.parent.disk_id
    said = c.parent
    size = c.size if d.is_file else d.guest.virtual_size
    fragments = sum(1 for a, b in _image_runs(d.rows) if b is None or a != b)
    return {
        "disk_id": d.disk_id,
        "format": c.format,
        "variant": c.variant if d.guest.kind != "snapshot" else f"{c.variant} snapshot",
        "system": c.system,
        "virtual_size": d.guest.virtual_size,
        "container_size": size,
        "source": item.source,
        "header_offset": item.header_offset,
        "fragments": fragments,
        "bytes_proven": sums["proven"],
        "bytes_supported": sums["supported"],
        "bytes_guessed": sums["guessed"],
        "bytes_missing": sums["missing"],
        "bytes_zero": sums["zero"],
        "exact": sums["guessed"] == 0 and sums["missing"] == 0,
        "deleted": item.deleted,
        "names": [*([d.guest.label] if d.guest.label else []), *item.names],
        "parent_id": parent_id,
        "inside_id": item.inside,
        "parent_said": None if said is None else " ".join(x for x in (said.name, said.identity) if x) or None,
        "uuid": c.uuid,
        "guest": d.guest_text,
        "guest_consistent": d.consistent,
        "host": item.host,
        "checks": d.failed,
        "path": path,
        "sha256": sha256,
    }


def _image_runs(rows: list[tuple[Any, ...]]) -> list[tuple[int, int | None]]:
    """(start, end of the run before) of every run of image bytes."""
    out: list[tuple[int, int | None]] = []
    end: int | None = None
    for row in rows:
        if row[2] is None:
            continue
        out.append((row[2], end))
        end = row[2] + row[5]
    return out


def _extents(disks: list[Verified]) -> pa.Table:
    """The rows of all maps, column by column: a dict per row would cost more than everything else about it."""
    rows = [row for d in disks for part in (d.container_rows, d.guest_rows) for row in part]
    names = ("offset", "length", "image_offset", "container_offset", "encoding", "stored", "grade", "rule")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    parts = [(d, space, len(part)) for d in disks
             for space, part in (("container", d.container_rows), ("guest", d.guest_rows))]
    counts = np.array([count for *_, count in parts], np.int64)

    def repeated(values: list[Any], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(pa.array(np.repeat(np.arange(len(parts)), counts)))

    arrays = {
        "disk_id": repeated([d.disk_id for d, *_ in parts], pa.string()),
        "space": repeated([space for _, space, _ in parts], pa.string()),
        "source": repeated([d.item.source for d, *_ in parts], pa.int32()),
    }
    made = []
    for f in EXTENTS:
        column = arrays.get(f.name)
        text = pa.types.is_dictionary(f.type)
        if column is None:
            column = pa.array(columns.get(f.name, ()), pa.string() if text else f.type)
        made.append(column.dictionary_encode() if text else column)
    return pa.Table.from_arrays(made, schema=EXTENTS)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
