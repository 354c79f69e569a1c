"""Damaged containers of every format, and what comes back of them: `python -m tests.formats.damage` prints the table.

A case is an image of noise, one container as a real tool (or an independent writer) made it, and noise. Some ranges of
the container are lost, either unreadable (the reader says so) or filled with other bytes (nobody says so). Truth is
where the sound container holds each guest sector; what comes back is read from its maps alone, so a range whose bytes
are gone but whose place is right counts as neither recovered nor wrong.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import vmcarve
from tests.guest.images import tree
from tests.helpers import run
from tests.test_registry import makers
from vmcarve.assemble.orphans import rebuilt
from vmcarve.assemble.places import Places
from vmcarve.assemble.state import Claims
from vmcarve.assemble.window import Window
from vmcarve.errors import Damaged
from vmcarve.model import DATA, LOST, PLAIN, SECTOR, Container, Evidence, GuestMap, Reader
from vmcarve.registry import formats
from vmcarve.source import BytesReader

MIB = 1 << 20
LEAD = 192 << 10  # bytes of noise before the container: a multiple of every host block
SMALL, WIDE = 64 * MIB, 1400 * MIB  # guests of the makers, who hold them in memory, and of qemu-img

QEMU = {  # samples that qemu-img writes: format, -O name, options
    "qcow2": ("qcow2", "qcow2", []),
    "qcow2-4k": ("qcow2", "qcow2", ["-o", "cluster_size=4096"]),
    "qcow2-compressed": ("qcow2", "qcow2", ["-c"]),
    "qcow2-extended": ("qcow2", "qcow2", ["-o", "extended_l2=on"]),
    "qcow1": ("qcow1", "qcow", []),
    "qed": ("qed", "qed", ["-o", "cluster_size=4096"]),
    "vdi": ("vdi", "vdi", []),
    "parallels": ("parallels", "parallels", []),
    "vhd": ("vhd", "vpc", []),
    "vhd-fixed": ("vhd", "vpc", ["-o", "subformat=fixed"]),
    "vhdx": ("vhdx", "vhdx", ["-o", "block_size=1048576"]),
    "vmdk": ("vmdk", "vmdk", []),
    "vmdk-qemu-stream": ("vmdk", "vmdk", ["-o", "subformat=streamOptimized"]),
}
SHORT_DISK = ("vhd-fixed",)  # as large as its disk: not made of the wide guest


# --- samples -------------------------------------------------------------------------------------------------------
def make_guest(folder: Path, size: int, seed: int) -> Path:
    """A disk with a GPT and an ext4 of real structures, its files written in no order that a container would keep."""
    raw = folder / f"guest-{size >> 20}.raw"
    with raw.open("wb") as f:
        f.truncate(size)
    run("sgdisk", "-n", "1:2048:0", "-U", "7d8c3b4a-0f6e-4f4e-9d3c-2b1a09f8e7d6", raw)
    files = tree(folder / f"tree-{size >> 20}", seed, 400)
    volume = (size - 2 * MIB) // 1024
    run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", files, "-E", f"offset={MIB},lazy_itable_init=1", raw,
        f"{volume}k")
    rng = np.random.default_rng(seed)
    with raw.open("r+b") as f:  # what a guest wrote once and gave up: spread, so that every table has something to name
        for at in range(9 * MIB, size - 2 * MIB, max(2 * MIB, size // 40)):
            f.seek(at)
            if not any(f.read(8192)):
                f.seek(at)
                f.write(rng.bytes(4096) + b"what a guest wrote once " * 170)
    return raw


@dataclass(frozen=True, slots=True)
class Sample:
    """A sound container, its bytes in memory, and where it holds each sector of its guest."""

    name: str
    format: str
    data: bytes
    container: Container
    truth: Sectors


@dataclass(frozen=True, slots=True)
class Sectors:
    """Per guest sector: state, image offset of its stored bytes (-1 none), encoding. start, length: those bytes."""

    state: npt.NDArray[np.uint8]
    at: npt.NDArray[np.int64]
    encoding: npt.NDArray[np.uint8]
    length: npt.NDArray[np.int64]


def places(guest: GuestMap, to_image: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]) -> Sectors:
    """The map by sectors. to_image: file offsets to image offsets, -1 where the file's bytes are nowhere."""
    count = guest.length // SECTOR
    row = np.repeat(np.arange(len(guest)), count)
    inside = (np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)) * SECTOR
    plain = guest.encoding[row] == PLAIN
    f = np.where(guest.state[row] == DATA, guest.file_offset[row] + np.where(plain, inside, 0), -1)
    at = np.where(f >= 0, to_image(f), -1)
    return Sectors(guest.state[row], at, guest.encoding[row], np.where(plain, SECTOR, guest.stored[row]))


def samples() -> list[str]:
    """Names of all samples: qemu-img's and the makers'."""
    return [*QEMU, *(n for n, m in makers().items() if m.format != "ova")]  # an archive of others: no disk of its own


@cache
def make(name: str, folder: Path) -> Sample:
    """The sample, made in `folder` once."""
    guests = folder / "guests"
    guests.mkdir(exist_ok=True)
    own = name not in QEMU
    size = SMALL if own or name in SHORT_DISK else WIDE
    raw = guests / f"guest-{size >> 20}.raw"
    if not raw.exists():
        make_guest(guests, size, 11)
    out = folder / name
    out.mkdir()
    if own:
        maker = makers()[name]
        path = out / f"disk.{maker.extension.lstrip('.')}"
        maker.make(raw, path, 7)
        fmt = maker.format
    else:
        fmt, driver, options = QEMU[name]
        path = out / f"disk.{driver}"
        how = ["qemu-img", "convert", "-q", "-f", "raw", "-O", driver, *options]
        for order in (["-W", "-m", "8"], []):
            if subprocess.run([*how, *order, raw, path], capture_output=True, timeout=120).returncode == 0:
                break
    data = path.read_bytes()
    shutil.rmtree(out)
    container = formats()[fmt].open(BytesReader(data))
    guest = container.guests[0].map
    return Sample(name, fmt, data, container, places(guest, lambda f: f + LEAD))


# --- damages -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Damage:
    """Ranges (file offset, length) that are lost; cut: the image ends there (file offset), None: it does not."""

    name: str
    ranges: tuple[tuple[int, int], ...] = ()
    cut: int | None = None


FRONT = {"header sector": SECTOR, "first 4 KiB": 4096, "first 64 KiB": 64 << 10, "first MiB": MIB}
MAX_TABLES = 10  # of one sample that are lost in turn


def damages(sample: Sample, quick: bool = False) -> Iterator[tuple[Damage, str]]:
    """Everything that is done to a sample, and how: "missing" or "random". quick: a part of it, as the tests do."""
    for damage in _damages(sample):
        name = damage.name
        if not quick:
            yield damage, "missing"
        if not quick or name in RANDOM or name.startswith("table") and int(name[6:]) % 4 == 0:
            yield damage, "random"
        elif name in MISSING:
            yield damage, "missing"


# what the tests do of it
RANDOM = ("header sector", "first MiB", "every 10th MiB")
MISSING = ("first 4 KiB", "tail sector", "cut at 60%")


def _damages(sample: Sample) -> Iterator[Damage]:
    size = len(sample.data)
    for name, length in FRONT.items():
        yield Damage(name, ((0, min(length, size)),))
    for name, length in (("tail sector", SECTOR), ("last 4 KiB", 4096), ("last 64 KiB", 64 << 10)):
        yield Damage(name, ((max(0, size - length) // SECTOR * SECTOR, length),))
    for i, piece in enumerate(_tables(sample)):
        yield Damage(f"table {i}", (piece,))
    yield Damage("every 10th MiB", tuple((at, MIB) for at in range(MIB, size, 10 * MIB)))
    yield Damage("every 10th MiB, the first too", tuple((at, MIB) for at in range(0, size, 10 * MIB)))
    for share in (0.3, 0.6, 0.9):
        yield Damage(f"cut at {share:.0%}", cut=int(size * share) // 4096 * 4096)


def _tables(sample: Sample) -> list[tuple[int, int]]:
    """Pieces of at most 4 KiB of what the format calls its tables, spread over all of them."""
    pieces: list[tuple[int, int]] = []
    for region in sample.container.regions:
        if region.kind.split(".")[-1] not in ("header", "footer", "identifier", "descriptor"):
            end = region.file_offset + region.length
            for at in range(region.file_offset // 4096 * 4096, end, 4096):  # hosts give and take back whole blocks
                pieces.append((max(at, region.file_offset), min(at + 4096, end) - max(at, region.file_offset)))
    pieces = [p for p in sorted(set(pieces)) if any(sample.data[p[0] : p[0] + p[1]])]
    return pieces[:: -(-len(pieces) // MAX_TABLES) or 1] if pieces else []


# --- what comes back -----------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Result:
    """Shares of guest sectors. right, lost: of those whose stored bytes are there; wrong: sectors with another's bytes,
    or zeros where there were data. doubted: a grave check failed, so nothing plain is graded better than guessed."""

    sample: str
    damage: str
    mode: str
    how: str
    there: int
    right: int
    lost: int
    wrong: int
    doubted: bool
    container: Container | None = None
    view: Reader | None = None

    @property
    def recall(self) -> float:
        return self.right / self.there if self.there else 1.0


def damaged_image(sample: Sample, damage: Damage, mode: str) -> BytesReader:
    """The image as it is read after the damage."""
    rng = np.random.default_rng(len(sample.data))
    body = bytearray(sample.data)
    if mode == "random":
        for at, n in damage.ranges:
            body[at : at + n] = rng.bytes(min(n, len(body) - at))
    image = rng.bytes(LEAD) + bytes(body[: damage.cut])
    if damage.cut is None:
        image += bytes(-len(image) % 4096) + rng.bytes(LEAD)
    holes = [(LEAD + at, n) for at, n in damage.ranges] if mode == "missing" else []
    return BytesReader(image, holes)


def come_back(sample: Sample, damage: Damage, mode: str, folder: Path) -> Result:
    """Opens what is left of the sample where it lies, else by what a sweep finds, and compares."""
    image = damaged_image(sample, damage, mode)
    fmt = formats()[sample.format]
    best: Result | None = None
    for how, container, runs in _found(image, fmt.name, len(sample.data), folder):
        if not container.guests:
            continue
        got = places(container.guests[0].map, lambda f, r=runs: _through(f, r))
        result = _compare(sample, damage, mode, how, container, got)
        result.view = _View(image, runs)
        if best is None or result.right > best.right:
            best = result
    if best is None:
        empty = Sectors(np.full(0, LOST, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.int64))
        best = _compare(sample, damage, mode, "nothing", None, empty)
    return best


def _found(image: BytesReader, name: str, size: int, folder: Path
           ) -> Iterator[tuple[str, Container, npt.NDArray[np.int64]]]:
    """(how, container, runs) of everything that the format makes of an image: at the place, by evidence, by salvage."""
    fmt = formats()[name]
    for length in (image.size - LEAD, size):  # a fixed VHD is known by its end alone
        try:
            yield "open", fmt.open(Window(image, LEAD, length)), np.array([[0, LEAD, length]], np.int64)
            return
        except Damaged:
            continue
    table = swept(image, folder)
    rows = [Evidence(**{k: v for k, v in r.items() if k not in ("source", "module")})
            for r in table.to_pylist() if r["module"] == name]
    starts = sorted({e.image_offset - e.container_offset for e in rows if e.container_offset is not None})
    hints = [e.container_offset + e.length for e in rows if e.container_offset is not None]
    found = False
    for start in starts:
        for length in (image.size - start, *hints):
            try:
                container = fmt.open(Window(image, start, length)) if start >= 0 else None
            except Damaged:
                continue
            if container is not None:
                found = True
                yield "led", container, np.array([[0, start, length]], np.int64)
                break
    for orphan in fmt.salvage(image, rows) if not found and fmt.salvage is not None else ():
        yield orphan.evidence, orphan.container, orphan.runs
    for orphan in rebuilt(image, Places.of(table), Claims(), None):
        yield orphan.evidence, orphan.container, orphan.runs


def swept(image: BytesReader, folder: Path) -> pa.Table:
    """The evidence of a sweep of the image."""
    path = folder / "image"
    path.write_bytes(image.read(0, image.size))
    case = vmcarve.sweep([path], folder / "case")
    table = case.table("evidence").combine_chunks()
    shutil.rmtree(folder / "case")
    path.unlink()
    return table


def _through(f: npt.NDArray[np.int64], runs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """File offsets as image offsets through runs (file, image, length), -1 where there are none."""
    i = np.maximum(np.searchsorted(runs[:, 0], f, "right") - 1, 0)
    inside = (f >= runs[i, 0]) & (f < runs[i, 0] + runs[i, 2])
    return np.where(inside, f - runs[i, 0] + runs[i, 1], -1)


@dataclass(frozen=True, slots=True)
class _View:
    """A container's bytes through runs, as a reader in file offsets."""

    image: Reader
    runs: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        return int((self.runs[:, 0] + self.runs[:, 2]).max())

    def read(self, offset: int, length: int) -> bytes:
        out = bytearray(max(0, min(length, self.size - offset)))
        for f, p, n in self.runs.tolist():
            low, high = max(f, offset), min(f + n, offset + len(out))
            if low < high:
                part = self.image.read(p + low - f, high - low)
                out[low - offset : low - offset + len(part)] = part
        return bytes(out)

    def missing(self, offset: int, length: int) -> bool:
        at = offset
        for f, p, n in self.runs.tolist():
            if f <= at < f + n:
                k = min(f + n, offset + length) - at
                if self.image.missing(p + at - f, k):
                    return True
                at += k
        return at < offset + length


def _compare(sample: Sample, damage: Damage, mode: str, how: str, container: Container | None, got: Sectors) -> Result:
    truth = sample.truth
    n = len(truth.state)
    state = np.full(n, LOST, np.uint8)
    at = np.full(n, -1, np.int64)
    k = min(n, len(got.state))
    state[:k], at[:k] = got.state[:k], got.at[:k]
    held = truth.state == DATA
    gone = np.zeros(n, bool)
    for low, length in damage.ranges:
        gone |= (truth.at < LEAD + low + length) & (truth.at + truth.length > LEAD + low)
    if damage.cut is not None:
        gone |= truth.at + truth.length > LEAD + damage.cut
    there = held & ~gone
    same = (state == DATA) & (at == truth.at)
    other = (state == DATA) & (at >= 0) & ~same
    none = (state != DATA) & (state != LOST) & held
    doubted = container is None or any(c.grave and not c.ok for c in container.checks)
    return Result(sample.name, damage.name, mode, how, int(there.sum()), int((there & same).sum()),
                  int((there & (state == LOST)).sum()), int((other | none).sum()), doubted, container)


def main(argv: Iterable[str] | None = None) -> None:
    """Prints one line a sample and damage."""
    parser = argparse.ArgumentParser(description="what comes back of damaged containers")
    parser.add_argument("--only", help="samples whose name contains this")
    parser.add_argument("--all", action="store_true", help="whole recoveries too")
    parser.add_argument("--quick", action="store_true", help="only what the tests do")
    options = parser.parse_args(None if argv is None else list(argv))
    with tempfile.TemporaryDirectory() as folder:
        for name in samples():
            if options.only and options.only not in name:
                continue
            sample = make(name, Path(folder))
            for damage, mode in damages(sample, options.quick):
                r = come_back(sample, damage, mode, Path(folder))
                verdict = "doubted" if r.doubted else "CLAIMED" if r.wrong else ""
                if options.all or r.recall < 1 or r.wrong:
                    print(f"{name:26} {mode:8} {damage.name:30} {r.how:22} {r.recall:8.2%} of {r.there:7} "
                          f"lost {r.lost:7} wrong {r.wrong:6} {verdict}")
                    sys.stdout.flush()
            make.cache_clear()  # one container at a time


if __name__ == "__main__":
    main()
