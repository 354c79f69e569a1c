"""From a plan to container files: a guest is made, a container is written from it, and both are checked to agree."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .containers import DRIVERS, Maker, QemuMaker, RawMaker, parent_of, qemu_name, virtual_size
from .guests import Guest, GuestSpec, evolve, make_guest
from .nbd import write_all
from .partitions import SECTOR
from .sparse import BLOCK, Hashes, block_hashes, new_sparse
from .tools import CorpusError, run

DELTA_WRITE = 64  # blocks at most in one write of a delta
INNER = GuestSpec("ext4", "mbr", 8)  # a disk inside a guest
TEMPLATE = "template"  # in the names of guests that disks are made from


@dataclass(frozen=True)
class Plan:
    """One disk of a scene as it is wanted; a delta brings its parent with it."""

    name: str
    maker: str  # "format/variant"
    guest: GuestSpec = GuestSpec()
    deleted: bool = True
    delivery: str = "copy"  # copy | dense | direct (QEMU writes onto the mounted host)
    chain: str = ""  # "" | delta | snapshots
    levels: int = 1  # deltas on top of each other
    inner: tuple[str, ...] = ()  # makers of small disks that lie as files in this one's guest
    template: str = ""  # disks of one template began as the same disk


@dataclass
class Built:
    """A container that was made. `files` are all its files, `main` the one that holds the data."""

    plan: Plan
    name: str
    maker: Maker
    variant: str
    written: str
    guest: Guest
    main: Path
    files: list[Path]
    virtual_size: int
    parent: str | None = None
    snapshots: list[tuple[str, Guest]] = field(default_factory=list)
    own_blocks: NDArray[np.bool_] | None = None
    inside: str | None = None  # the disk in whose guest this one lies
    guest_known: bool = True  # False: encrypted, or in a chain whose parent nobody here reads

    @property
    def driver(self) -> str | None:
        """QEMU's name for the format, where QEMU reads it."""
        if isinstance(self.maker, QemuMaker):
            return self.maker.driver
        return "raw" if isinstance(self.maker, RawMaker) else None

    @property
    def encrypted(self) -> bool:
        """Whether the guest's bytes are ciphertext in the container."""
        return isinstance(self.maker, QemuMaker) and self.maker.encrypted

    def moved(self, old: Path, new: Path) -> Built:
        """The same disk with its files below `new` instead of below `old`."""
        files = [new / file.relative_to(old) for file in self.files]
        return replace(self, files=files, main=new / self.main.relative_to(old))

    @property
    def opened(self) -> Path:
        """The file that a reader opens: the descriptor where there is one."""
        return self.files[0]


def build(
    plan: Plan, makers: Mapping[str, Maker], key: str, guests: Path, out: Path, mounts: bool
) -> list[Built]:
    """Make the disk(s) of `plan`: raw guests in `guests`, containers in the new folder `out`."""
    out.mkdir(parents=True)
    maker = makers[plan.maker]
    name = f"{plan.name}-base" if plan.chain == "delta" else plan.name
    inner = _build_inner(plan, name, makers, key, guests, out, mounts)
    extra = [(f"vms/{file.name}", file) for one in inner for file in one.files]
    guest = _make_guest(plan, key, name, guests, mounts, extra)
    base = _build_one(plan, name, maker, guest, key, out)
    if len(base.files) > 1 and maker.format == "qcow2":
        return _with_data_file(base)
    if (parent := parent_of(base.files[0])).exists():
        return [_foreign_parent(base, parent, guests), base]
    if plan.chain == "snapshots":
        _add_snapshots(base, key, guests)
    if plan.chain != "delta":
        return [base, *inner]
    chain = [base]
    for level in range(1, plan.levels + 1):
        name = plan.name if level == plan.levels else f"{plan.name}-{level}"
        chain.append(_build_delta(plan, name, chain[-1], key, guests, out))
    return chain


def _make_guest(
    plan: Plan, key: str, name: str, guests: Path, mounts: bool, extra: Sequence[tuple[str, Path]]
) -> Guest:
    """The guest of a plan: its own, or what its template became."""
    if not plan.template:
        return make_guest(plan.guest, f"{key}-{name}", guests, mounts, extra)
    shared = f"{key}-{TEMPLATE}-{plan.template}"
    template = Guest(plan.guest, shared, guests / f"{shared}.raw", guests / f"{shared}.volume", mounts)
    if not template.raw.exists():
        template = make_guest(plan.guest, shared, guests, mounts)
    return evolve(template, f"{key}-{name}", guests)


def _build_inner(
    plan: Plan, name: str, makers: Mapping[str, Maker], key: str, guests: Path, out: Path, mounts: bool
) -> list[Built]:
    """The disks that lie in this one's guest."""
    found: list[Built] = []
    for number, maker in enumerate(plan.inner):
        small = Plan(f"{name}-inner-{number}", maker, INNER)
        found += build(small, makers, key, guests, out.with_name(f"{out.name}.inner-{number}"), mounts)
    return [replace(one, inside=name) for one in found]


def _seed(key: str, name: str) -> int:
    return random.Random(f"container {key} {name}").getrandbits(31)


def _build_one(plan: Plan, name: str, maker: Maker, guest: Guest, key: str, out: Path) -> Built:
    path = out / f"{name}.{maker.extension.lstrip('.')}"
    seed = _seed(key, name)
    maker.make(guest.raw, path, seed)
    written = maker.order(seed) if isinstance(maker, QemuMaker) else "convert"
    files = sorted(set(out.iterdir()) - {parent_of(path)}, key=lambda file: (file != path, file.name))
    main = _main_file(maker, path, files)
    built = Built(plan, name, maker, maker.variant, written, guest, main, files, guest.spec.size)
    if built.driver is not None:
        built.virtual_size = virtual_size(built.driver, path)
        built.guest_known = not built.encrypted
        if built.guest_known:
            check_reads_back(built, guest.raw)
    return built


def _main_file(maker: Maker, path: Path, files: list[Path]) -> Path:
    """The file with the data: of a VMDK in several files the fullest, else the container itself."""
    if maker.format == "vmdk":
        return max(files, key=lambda file: (file.stat().st_blocks, file.name))
    return path


def check_reads_back(built: Built, raw: Path) -> None:
    """QEMU reads the container and finds the guest's bytes, zeros behind them."""
    words = ("--image-opts", f"driver=raw,file.filename={raw.resolve()}", image_opts(built))
    said = run("qemu-img", "compare", *words, cwd=built.opened.parent, accept=(0, 1))
    if "identical" not in said:
        kind = f"{built.maker.format}/{built.variant}, written {built.written}"
        raise CorpusError(f"{built.opened.name} ({kind}): QEMU reads other bytes: {said.strip()}")


def image_opts(built: Built) -> str:
    """How QEMU opens a container of ours by its own words, parents and all."""
    exact = ",force_size_calc=current_size" if built.driver == "vpc" else ""
    return f"driver={built.driver},file.filename={built.opened.resolve()}{exact}"


def changed_writes(old: Hashes, new: Hashes, rng: random.Random) -> list[tuple[int, int]]:
    """(guest_offset, length) of writes over all blocks that differ, in random order."""
    different = np.concatenate(([False], old != new, [False]))
    writes: list[tuple[int, int]] = []
    for start, end in np.flatnonzero(different[1:] != different[:-1]).reshape(-1, 2).tolist():
        writes += [(at * BLOCK, min(DELTA_WRITE, end - at) * BLOCK) for at in range(start, end, DELTA_WRITE)]
    rng.shuffle(writes)
    return writes


def _later(guest: Guest, name: str, key: str, guests: Path) -> tuple[Guest, list[tuple[int, int]]]:
    """The guest some time later, and the writes that lead there."""
    later = evolve(guest, f"{key}-{name}", guests)
    before, after = (block_hashes(one.raw, guest.spec.size) for one in (guest, later))
    writes = changed_writes(before, after, random.Random(f"later {key} {name}"))
    return later, writes


def _add_snapshots(built: Built, key: str, guests: Path) -> None:
    """Two internal snapshots with guest writes behind each; the active state is the newest."""
    if built.driver != "qcow2":
        raise CorpusError(f"{built.driver}: no internal snapshots")
    for number in (1, 2):
        name = f"snapshot-{number}"
        run("qemu-img", "snapshot", "-c", name, built.main)
        built.snapshots.append((name, built.guest))
        built.guest, writes = _later(built.guest, f"{built.name}-{number}", key, guests)
        write_all(built.main, built.driver, built.guest.raw, writes)
    built.variant += "-snapshots"
    check_reads_back(built, built.guest.raw)


def _build_delta(plan: Plan, name: str, base: Built, key: str, guests: Path, out: Path) -> Built:
    """A child of `base` that holds what changed since."""
    maker = base.maker
    if not isinstance(maker, QemuMaker):
        raise CorpusError(f"{maker.format}/{maker.variant}: no delta without QEMU")
    guest, writes = _later(base.guest, name, key, guests)
    path = out / f"{name}{maker.extension}"
    options = maker.words(path.stem)
    backing = ("-b", base.main.name, "-F", maker.driver)
    run("qemu-img", "create", "-q", "-f", maker.driver, *options, *backing, path.name, cwd=out)
    write_all(path, maker.driver, guest.raw, writes)
    built = Built(
        plan, name, maker, f"{maker.variant}-delta", "random", guest, path, [path], base.virtual_size, base.name
    )
    check_reads_back(built, guest.raw)
    built.own_blocks = _own_blocks(built)
    return built


def _with_data_file(header: Built) -> list[Built]:
    """A qcow2 with an external data file is two disks: one that holds no guest byte itself, and a raw one."""
    data = header.files[1]
    raw = replace(
        header,
        name=f"{header.name}-raw",
        maker=RawMaker(),
        variant="data-file",
        main=data,
        files=[data],
        own_blocks=None,
    )
    nothing = np.zeros(-(-header.virtual_size // BLOCK), np.bool_)
    return [replace(header, files=[header.main], own_blocks=nothing), raw]


def _foreign_parent(child: Built, path: Path, guests: Path) -> Built:
    """The parent that a maker wrote beside `child`, its guest as QEMU reads it; the child becomes its delta.

    Where QEMU does not read it, neither guest is known, and both count by their files alone."""
    name, raw = f"{child.name}-parent", guests / f"{child.guest.key}-parent.raw"
    try:
        run("qemu-img", "convert", "-O", "raw", qemu_name(DRIVERS[child.maker.format], path), raw)
        child.own_blocks = _differing_blocks(raw, child.guest.raw)
    except CorpusError:
        raw.unlink(missing_ok=True)
        new_sparse(raw, child.virtual_size)
        child.guest_known = False
    child.parent = name
    guest = replace(child.guest, key=f"{child.guest.key}-parent", raw=raw)
    parent = replace(child, name=name, variant="parent", guest=guest, files=[path], main=path)
    parent.parent, parent.own_blocks = None, None
    return parent


def _differing_blocks(parent: Path, child: Path) -> NDArray[np.bool_]:
    """Blocks that a child gives alone: each of their sectors differs from the parent's or is zero."""
    new = np.fromfile(child, np.uint8)
    old = np.zeros(len(new), np.uint8)
    stored = np.fromfile(parent, np.uint8)[: len(new)]
    old[: len(stored)] = stored
    changed = np.zeros((-(-len(new) // BLOCK), BLOCK // SECTOR), np.bool_)
    empty = np.ones_like(changed)
    changed.ravel()[: len(new) // SECTOR] = np.any((new != old).reshape(-1, SECTOR), axis=1)
    empty.ravel()[: len(new) // SECTOR] = ~np.any(new.reshape(-1, SECTOR), axis=1)
    return np.all(changed | empty, axis=1, keepdims=True).ravel() & np.any(changed, axis=1, keepdims=True).ravel()


def _own_blocks(built: Built) -> NDArray[np.bool_]:
    """Which guest blocks a delta answers for itself, by QEMU's map of it."""
    own = np.zeros(-(-built.virtual_size // BLOCK), np.bool_)
    words = ("--output=json", "--image-opts", image_opts(built))
    for row in json.loads(run("qemu-img", "map", *words, cwd=built.opened.parent)):
        if row["depth"] == 0 and row.get("present", True):
            own[row["start"] // BLOCK : -(-(row["start"] + row["length"]) // BLOCK)] = True
    return own
