"""Who writes which container: QEMU for its formats, `tests/makers` for the rest, all behind one small interface."""

from __future__ import annotations

import importlib
import json
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .guests import SECRET, TRIES
from .nbd import random_writes, write_all
from .tools import CorpusError, run

ORDERS = ("convert", "shuffled", "random")  # guest order; qemu-img convert -W; a guest's own writes
ONCE = ("convert", "shuffled")  # what a format can take that cannot be written twice


class Maker(Protocol):
    """Writes one variant of one container format. Modules of `tests/makers` register theirs by name in MAKERS."""

    @property
    def format(self) -> str:
        """The format's name, as a case has it."""
        ...

    @property
    def variant(self) -> str:
        """The variant's name."""
        ...

    @property
    def extension(self) -> str:
        """The usual end of a file name, with or without the dot."""
        ...

    @property
    def make(self) -> Callable[[Path, Path, int], object]:
        """make(raw_path, out_path, seed) writes the guest `raw_path` to the new container `out_path`.

        Further files go beside it; a parent is called as `parent_of` says."""
        ...


def parent_of(out_path: Path) -> Path:
    """Where a maker of differencing disks puts the parent."""
    return out_path.with_name(f"{out_path.stem}-parent{out_path.suffix}")


@dataclass(frozen=True)
class QemuMaker:
    """A container that qemu-img makes; `options` are its -o words, `driver` its name for the format."""

    format: str
    variant: str
    extension: str
    driver: str
    options: tuple[str, ...] = ()
    orders: tuple[str, ...] = ORDERS
    compress: bool = False
    encrypted: bool = False
    wide: bool = False  # made for disks above 2 GiB, so that it comes in several extent files
    accept: tuple[int, ...] = (0,)  # exit status of a qemu-img that wrote a sound file; the content is checked anyway

    def order(self, seed: int) -> str:
        """The order in which the guest's data is written for this seed."""
        return random.Random(f"order {self.format} {self.variant} {seed}").choice(self.orders)

    def words(self, stem: str) -> tuple[str, ...]:
        """The -o options with the names of files beside the container filled in."""
        filled = [option.replace("{stem}", stem) for option in self.options]
        return ("-o", ",".join(filled)) if filled else ()

    def make(self, raw_path: Path, out_path: Path, seed: int) -> None:
        """Write the container; every name inside it is relative to its own folder."""
        raw, here, order = raw_path.resolve(), out_path.parent, self.order(seed)
        words = self.words(out_path.stem)
        if order == "random":
            self.create(out_path, raw.stat().st_size)
            write_all(out_path, self.driver, raw, random_writes(raw, random.Random(f"writes {seed}")))
            return
        unordered = ("-W", "-m", "8") if order == "shuffled" else ()
        secret = ("--object", f"secret,id=key,data={SECRET}") if self.encrypted else ()
        packed = ("-c",) if self.compress else ()
        how = (*secret, *unordered, *packed, "-f", "raw", "-O", self.driver, *words)
        for attempt in range(TRIES if self.encrypted else 1):
            try:
                run("qemu-img", "convert", *how, raw, out_path.name, cwd=here, accept=self.accept)
                return
            except CorpusError:
                if not self.encrypted or attempt == TRIES - 1:
                    raise

    def create(self, out_path: Path, size: int) -> None:
        """A container of `size` guest bytes with nothing in it."""
        run(
            "qemu-img",
            "create",
            "-q",
            "-f",
            self.driver,
            *self.words(out_path.stem),
            out_path.name,
            str(size),
            cwd=out_path.parent,
        )


@dataclass(frozen=True)
class RawMaker:
    """The guest's bytes themselves, as a virtual machine's raw disk file."""

    format: str = "raw"
    variant: str = "disk"
    extension: str = ".img"

    def make(self, raw_path: Path, out_path: Path, seed: int) -> None:
        """Copy the disk; zeros become holes."""
        run("cp", "--sparse=always", raw_path, out_path)


@dataclass(frozen=True)
class SplitMaker(QemuMaker):
    """A VMDK in extent files much smaller than QEMU makes them: QEMU's own extents under a descriptor of ours."""

    extent: int = 8 << 20  # guest bytes in one file

    def make(self, raw_path: Path, out_path: Path, seed: int) -> None:
        """Convert the disk part by part, and list the parts in one descriptor."""
        lines: list[str] = []
        text = ""
        for number, at in enumerate(range(0, raw_path.stat().st_size, self.extent), 1):
            part = out_path.with_suffix(".part")
            with raw_path.open("rb") as source, part.open("wb") as target:
                source.seek(at)
                target.write(source.read(self.extent))
            one = out_path.with_name(f"part{number}.vmdk")
            run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", *self.words(""), part, one)
            text = one.read_text()
            named = f"{out_path.stem}-s{number:03d}.vmdk"
            one.with_name(f"part{number}-s001.vmdk").rename(out_path.with_name(named))
            lines.append(f'RW {part.stat().st_size // 512} SPARSE "{named}"')
            one.unlink()
            part.unlink()
        rows = [row for row in text.splitlines() if not row.startswith("RW ")]
        rows[rows.index("# Extent description") + 1 : rows.index("# Extent description") + 1] = lines
        out_path.write_text("\n".join(rows) + "\n")


def _qemu() -> list[QemuMaker]:
    """Every container that QEMU 7.2 writes."""

    def vmdk(variant: str, *options: str, orders: tuple[str, ...] = ORDERS, wide: bool = False) -> QemuMaker:
        return QemuMaker("vmdk", variant, ".vmdk", "vmdk", options, orders, wide=wide)

    def vhd(variant: str, *options: str) -> QemuMaker:
        return QemuMaker("vhd", variant, ".vhd", "vpc", options)

    def vhdx(variant: str, *options: str) -> QemuMaker:
        return QemuMaker("vhdx", variant, ".vhdx", "vhdx", options)

    def qcow2(variant: str, *options: str, orders: tuple[str, ...] = ORDERS, compress: bool = False) -> QemuMaker:
        return QemuMaker("qcow2", variant, ".qcow2", "qcow2", options, orders, compress)

    return [
        vmdk("monolithicSparse", "subformat=monolithicSparse"),
        vmdk("zeroed-grain", "subformat=monolithicSparse,zeroed_grain=on"),
        vmdk("streamOptimized", "subformat=streamOptimized", orders=ONCE),
        vmdk("monolithicFlat", "subformat=monolithicFlat"),
        vmdk("twoGbMaxExtentSparse", "subformat=twoGbMaxExtentSparse", wide=True),
        vmdk("twoGbMaxExtentFlat", "subformat=twoGbMaxExtentFlat", wide=True),
        SplitMaker("vmdk", "split-small", ".vmdk", "vmdk", ("subformat=twoGbMaxExtentSparse",), ("convert",)),
        vhd("dynamic"),
        vhd("dynamic-exact-size", "force_size=on"),
        vhd("fixed", "subformat=fixed", "force_size=on"),
        vhdx("dynamic"),
        vhdx("dynamic-1m", "block_size=1M"),
        vhdx("fixed", "subformat=fixed", "block_state_zero=off"),
        vhdx("fixed-state-zero", "subformat=fixed"),
        QemuMaker("vdi", "dynamic", ".vdi", "vdi"),
        QemuMaker("vdi", "static", ".vdi", "vdi", ("static=on",)),
        qcow2("64k"),
        qcow2("512", "cluster_size=512"),
        qcow2("4k", "cluster_size=4k"),
        qcow2("2m", "cluster_size=2M"),
        qcow2("v2", "compat=0.10"),
        qcow2("refcount1", "refcount_bits=1", "cluster_size=4k"),
        qcow2("metadata", "preallocation=metadata"),
        qcow2("zlib", compress=True, orders=ONCE),
        qcow2("zstd", "compression_type=zstd", compress=True, orders=ONCE),
        qcow2("extended-l2", "extended_l2=on", "cluster_size=128k"),
        QemuMaker("qcow2", "data-file", ".qcow2", "qcow2", ("data_file={stem}.data",), ("convert",)),
        QemuMaker(
            "qcow2",
            "luks",
            ".qcow2",
            "qcow2",
            ("encrypt.format=luks", "encrypt.key-secret=key", "encrypt.iter-time=10"),
            ("convert",),
            encrypted=True,
        ),
        QemuMaker("qcow", "plain", ".qcow", "qcow"),
        QemuMaker("qcow", "compressed", ".qcow", "qcow", (), ("convert",), compress=True, accept=(0, 1)),
        QemuMaker("qed", "plain", ".qed", "qed"),
        QemuMaker("parallels", "ext", ".hds", "parallels"),
    ]


def discover() -> dict[str, Maker]:
    """All makers by name: "format/variant" for QEMU's and raw, and what modules of `tests/makers` list in MAKERS."""
    found: dict[str, Maker] = {f"{maker.format}/{maker.variant}": maker for maker in _qemu()}
    found["raw/disk"] = RawMaker()
    package = importlib.import_module("tests.makers")
    for module in pkgutil.iter_modules(package.__path__, "tests.makers."):
        for name, maker in getattr(importlib.import_module(module.name), "MAKERS", {}).items():
            if name in found:
                raise ValueError(f"{module.name}: {name} is made twice")
            found[name] = maker
    return found


def external(makers: dict[str, Maker]) -> list[str]:
    """Keys of the makers that neither QEMU nor this module provides."""
    return sorted(key for key, maker in makers.items() if not isinstance(maker, QemuMaker | RawMaker))


def qemu_name(driver: str, path: Path) -> str:
    """How QEMU is told to open `path`: explicit format, no parent, and for VHD the size field, never CHS."""
    node: dict[str, object] = {"driver": driver, "file": {"driver": "file", "filename": str(path.resolve())}}
    if driver == "vpc":
        node["force_size_calc"] = "current_size"
    if driver in ("qcow", "qcow2", "qed", "vmdk"):
        node["backing"] = None
    return "json:" + json.dumps(node)


DRIVERS = {  # a case's name for a format -> QEMU's
    "vmdk": "vmdk",
    "vhd": "vpc",
    "vhdx": "vhdx",
    "vdi": "vdi",
    "qcow2": "qcow2",
    "qcow": "qcow",
    "qed": "qed",
    "parallels": "parallels",
    "raw": "raw",
}


def virtual_size(driver: str, path: Path) -> int:
    """Guest bytes that the container states."""
    return int(
        json.loads(run("qemu-img", "info", "--output=json", qemu_name(driver, path), cwd=path.parent))["virtual-size"]
    )
