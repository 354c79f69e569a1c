"""What every format must do, over the registry: a new module in formats/ is tested here before anyone thinks of it.

A format needs a sample: a maker in tests/makers whose `format` is the module's name, or a `qemu_name` that qemu-img
writes. One without fails here by name. Checksummed structures are only seen to be refused here; their own tests mend
the sums (tests/formats).
"""

from __future__ import annotations

import importlib
import pkgutil
import random
import shutil
import subprocess
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import tests.makers
import vmcarve
from tests.helpers import check_map, read_guest, run
from tests.makers import Maker
from vmcarve.errors import Damaged
from vmcarve.model import SECTOR, Container, Format
from vmcarve.registry import formats, guests, hosts
from vmcarve.source import BytesReader
from vmcarve.sweeper import run as sweeper

MIB = 1 << 20
GUEST = 3 * MIB
QEMU_OPTIONS = {"vmdk-descriptor": ["-o", "subformat=monolithicFlat"]}  # where the usual choice is another module's
# a tail of zeros that nothing in the file names: tar's padding to records of 10 KiB, a VHD footer of 511 bytes
UNNAMED_ZEROS = 10 << 10
MAX_MEMORY = 256 * MIB  # what opening a hostile container may take
MAX_SECONDS = 5.0  # and how long (on a busy machine)


# --- samples ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Sample:
    """A container as a tool or an independent writer made it, and the guest that went in."""

    data: bytes
    guest: bytes


def scrambled(raw: Path) -> bytes:
    """A guest whose blocks are all different, with holes; written to `raw`."""
    rng = np.random.default_rng(99)
    data = bytearray(GUEST)
    for at in range(0, GUEST, 128 << 10):
        if at // (128 << 10) % 3 != 1:
            data[at : at + (96 << 10)] = rng.bytes(64 << 10) + b"text of a guest " * 2048
    raw.write_bytes(data)
    return bytes(data)


@cache
def makers() -> dict[str, Maker]:
    """Every maker of tests/makers by name."""
    found: dict[str, Maker] = {}
    for info in pkgutil.iter_modules(tests.makers.__path__):
        found.update(getattr(importlib.import_module(f"tests.makers.{info.name}"), "MAKERS", {}))
    return found


def labels(name: str) -> list[str]:
    """The samples of a format by name: its makers, and "qemu"."""
    own = [label for label, maker in makers().items() if maker.format == name]
    return own + (["qemu"] if formats()[name].qemu_name is not None else [])


def by_qemu(fmt: Format, raw: Path, out: Path) -> bytes | None:
    """The format as qemu-img writes it, clusters out of order; None when what it writes is another module's."""
    assert fmt.qemu_name is not None
    how = ["qemu-img", "convert", "-q", "-f", "raw", "-O", fmt.qemu_name, *QEMU_OPTIONS.get(fmt.name, [])]
    for unordered in (["-W", "-m", "8"], []):
        done = subprocess.run([*how, *unordered, raw, out], capture_output=True, timeout=60)
        if done.returncode == 0:
            data = out.read_bytes()
            if any(data[s.at : s.at + len(s.magic)] == s.magic for s in fmt.signatures):
                return data
    return None


Samples = Callable[[str, str], Sample | None]


@pytest.fixture(scope="session")
def sample_of(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """sample_of(format, label): made once a session; None when qemu-img writes something else under that name."""
    folder = tmp_path_factory.mktemp("samples")
    guest = scrambled(folder / "guest.raw")

    @cache
    def make(name: str, label: str) -> Sample | None:
        out = folder / name / label
        out.mkdir(parents=True)
        if label == "qemu":
            data = by_qemu(formats()[name], folder / "guest.raw", out / "disk")
            return None if data is None else Sample(data, guest)
        maker = makers()[label]
        path = out / f"disk.{maker.extension.lstrip('.')}"
        maker.make(folder / "guest.raw", path, 7)
        return Sample(path.read_bytes(), guest)

    return make


def first_sample(sample_of: Samples, name: str) -> Sample:
    """The format's first sample, or the failure that names the format."""
    for label in labels(name):
        sample = sample_of(name, label)
        if sample is not None:
            return sample
    pytest.fail(f"format {name!r} has no sample: add a maker with format={name!r} to tests/makers (or a qemu_name that "
                "qemu-img writes)")


every_format = pytest.mark.parametrize("name", sorted(formats()))
every_sample = pytest.mark.parametrize(("name", "label"), [(n, x) for n in sorted(formats()) for x in labels(n)])


@every_format
def test_every_format_has_a_sample(name: str, sample_of: Samples) -> None:
    """A format without a file to test it on is not tested: it fails here."""
    sample = first_sample(sample_of, name)
    container = formats()[name].open(BytesReader(sample.data))
    assert container.format in formats()  # what a case calls it: one word for the variants of a family
    check_map(container, BytesReader(sample.data))


# --- found once, wherever it begins -----------------------------------------------------------------------------------
CHUNK, RANGE = 16 << 10, 128 << 10
PLACES = (512, CHUNK - SECTOR, CHUNK, RANGE - SECTOR, RANGE, RANGE + SECTOR, 3 * RANGE - CHUNK - SECTOR)


def evidence(folder: Path, data: bytes, name: str) -> Counter[tuple[object, ...]]:
    """A module's rows in a sweep of an image, as (kind, image_offset, length, place, value, identity)."""
    (folder / "image").write_bytes(data)
    case = vmcarve.sweep([folder / "image"], folder / "case")
    rows = [r for r in case.table("evidence").to_pylist() if r["module"] == name]
    assert not case.info["troubles"], case.info["troubles"]
    shutil.rmtree(folder / "case")
    names = ("kind", "image_offset", "length", "container_offset", "value", "identity")
    return Counter(tuple(r[n] for n in names) for r in rows)


@every_format
def test_found_once_at_range_ends(name: str, sample_of: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                  ) -> None:
    """A container that begins before, at or behind the end of a read or a task gives the same rows, each once."""
    data = first_sample(sample_of, name).data
    rng = np.random.default_rng(4)
    usual = 8 * SECTOR
    want = evidence(tmp_path, rng.bytes(usual) + data, name)
    assert want and max(want.values()) == 1, f"{name}: a structure is found twice, or none is"
    assert any(place is not None and image_offset - place == usual for _, image_offset, _, place, *_ in want), (
        f"{name}: nothing in its container says where the container begins")
    monkeypatch.setattr(sweeper, "CHUNK", CHUNK)
    monkeypatch.setattr(sweeper, "RANGE", RANGE)
    ends = [-len(data) % RANGE or RANGE, (SECTOR - len(data)) % RANGE or RANGE]
    for place in (*PLACES, *(e // SECTOR * SECTOR for e in ends)):
        got = evidence(tmp_path, rng.bytes(place) + data, name)
        assert got == Counter({(kind, at - usual + place, *rest): 1 for kind, at, *rest in want}), f"begins at {place}"


# --- hostile input ----------------------------------------------------------------------------------------------------
def opened(fmt: Format, reader: BytesReader) -> Container | None:
    """What `open` makes of it: a container whose maps keep their contract, or None. Only Damaged may be raised."""
    begun = time.monotonic()
    try:
        container = fmt.open(reader)
    except Damaged as e:
        assert str(e)
        return None
    finally:
        took = time.monotonic() - begun
        assert took < MAX_SECONDS, f"open took {took:.1f} s"
    check_map(container, reader)
    return container


def borders(container: Container) -> list[int]:
    """File offsets where something begins or ends, as the container itself tells."""
    out = {0, 1, SECTOR - 1, SECTOR, container.size, container.size - 1}
    for region in container.regions[:64]:
        out |= {region.file_offset, region.file_offset + region.length}
    for guest in container.guests[:2]:
        stored = guest.map.file_offset[guest.map.file_offset >= 0]
        out |= set(stored[:: max(1, len(stored) // 16)].tolist())
    return sorted(x for x in out if x >= 0)


@every_sample
def test_cut_anywhere(name: str, label: str, sample_of: Samples) -> None:
    """A container cut at every border of a structure, beside it, and at random lengths: refused, or maps that hold."""
    sample = sample_of(name, label)
    if sample is None:
        return
    fmt, data = formats()[name], sample.data
    rng = random.Random(name + label)
    at = {x + d for x in borders(fmt.open(BytesReader(data))) for d in (-SECTOR, -1, 0, 1, SECTOR)}
    at |= {rng.randrange(len(data)) for _ in range(12)}
    lengths = sorted(x for x in at if 0 <= x < len(data))
    for n in rng.sample(lengths, min(48, len(lengths))):
        opened(fmt, BytesReader(memoryview(data)[:n]))


@every_sample
def test_missing_anywhere(name: str, label: str, sample_of: Samples) -> None:
    """Ranges that are not there (bad sectors, lost fragments) never raise anything but Damaged either."""
    sample = sample_of(name, label)
    if sample is None:
        return
    fmt, data = formats()[name], sample.data
    rng = random.Random(label + name)
    starts = sorted({x // SECTOR * SECTOR for x in borders(fmt.open(BytesReader(data))) if x < len(data)})
    for at in rng.sample(starts, min(24, len(starts))):
        opened(fmt, BytesReader(data, [(at, rng.choice((SECTOR, 4096, 65536, len(data))))]))


def maxima() -> Iterator[tuple[int, bytes]]:
    """(offset in the sector, value): each aligned word at its largest, unsigned, and signed in both byte orders."""
    for width, signed in ((8, SECTOR), (4, SECTOR // 2), (2, 0)):
        for at in range(0, SECTOR if width > 2 else SECTOR // 4, width):
            yield at, b"\xff" * width
            if at < signed:
                yield at, b"\xff" * (width - 1) + b"\x7f"
                yield at, b"\x7f" + b"\xff" * (width - 1)


@every_format
def test_every_field_at_its_maximum(name: str, sample_of: Samples) -> None:
    """Each word of the first sector at its largest: refused or opened with sound maps, in bounded memory and time."""
    fmt = formats()[name]
    data = bytearray(first_sample(sample_of, name).data)
    reader = BytesReader(data)
    fmt.open(reader)  # what the first call imports or fills is not the container's fault
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for at, value in maxima():
            old = bytes(data[at : at + len(value)])
            data[at : at + len(value)] = value
            tracemalloc.reset_peak()
            opened(fmt, reader)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < MAX_MEMORY, f"{value.hex()} at {at:#x} took {(peak - before) >> 20} MiB"
            data[at : at + len(value)] = old
    finally:
        tracemalloc.stop()


# --- nothing where nothing is -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Decoys:
    """The evidence of an image of bare magics. zeros: image offsets of those with nothing but zeros behind them."""

    rows: list[dict[str, object]]
    zeros: frozenset[int]


@pytest.fixture(scope="module")
def decoys(tmp_path_factory: pytest.TempPathFactory) -> Decoys:
    """Noise; every magic of the registry at its place, in noise, ones, text and zeros; all of them in a row."""
    folder = tmp_path_factory.mktemp("decoys")
    records = [*formats().values(), *guests().values(), *hosts().values()]
    rng = np.random.default_rng(12)
    fills = (rng.bytes, lambda n: b"\xff" * n, lambda n: (b"A text that names magics. " * n)[:n], bytes)
    image = bytearray(rng.bytes(2 * MIB))
    zeros: set[int] = set()
    for signature in dict.fromkeys(s for r in records for s in r.signatures):
        for fill in fills:
            block = bytearray(fill(-(-(signature.at + SECTOR) // 4096) * 4096))
            block[signature.at : signature.at + len(signature.magic)] = signature.magic
            if fill is bytes:
                zeros.add(len(image))
            image += block
    image += b"".join(dict.fromkeys(s.magic for r in records for s in r.signatures)) * 40
    (folder / "image").write_bytes(image)
    case = vmcarve.sweep([folder / "image"], folder / "case")
    assert not case.info["troubles"], case.info["troubles"]
    return Decoys(case.table("evidence").to_pylist(), frozenset(zeros))


@pytest.mark.parametrize("name", sorted({*formats(), *guests(), *hosts()}))
def test_a_magic_alone_is_no_evidence(name: str, decoys: Decoys) -> None:
    """Noise, and magics with nothing behind them, confirm no structure.

    One that may be empty by its specification (a VHDX identifier is its magic and 4 KiB of zeros) may say so, unsure.
    """
    for row in decoys.rows:
        unsure = row["image_offset"] in decoys.zeros and float(str(row["confidence"])) <= 0.5
        assert row["module"] != name or unsure, f"{row['kind']} at {row['image_offset']}"


# --- rebuilt equals original ------------------------------------------------------------------------------------------
@every_sample
def test_rebuilt_equals_original(name: str, label: str, sample_of: Samples, tmp_path: Path) -> None:
    """On an image without host, the whole job writes the container byte for byte, or (archives) its guest."""
    sample = sample_of(name, label)
    if sample is None:
        return
    rng = np.random.default_rng(8)
    with (tmp_path / "image").open("wb") as f:
        f.write(rng.bytes(64 << 10) + sample.data)
        f.write(bytes(-f.tell() % 4096) + rng.bytes(64 << 10))
    case = vmcarve.recover([tmp_path / "image"], tmp_path / "case")
    container = formats()[name].open(BytesReader(sample.data))
    rows = [r for r in case.disks() if r["format"] == container.format and r["path"] is not None]
    assert rows, f"{name} was not recovered: {[(r['format'], r['disk_id']) for r in case.disks()]}"
    if not container.rebuild:
        want = {read_guest(BytesReader(sample.data), g.map) for g in container.guests}
        assert sample.guest in want
        assert sample.guest in {(case.path / r["path"]).read_bytes() for r in rows}
        return
    assert len(rows) == 1, [r["disk_id"] for r in rows]
    got, original = bytearray((case.path / rows[0]["path"]).read_bytes()), bytearray(sample.data)
    for patch in container.patches:  # references made safe, a log replayed: said, and nothing else may differ
        for data in (got, original):
            data[patch.file_offset : patch.file_offset + len(patch.data)] = bytes(len(patch.data))
    if abs(len(got) - len(original)) <= UNNAMED_ZEROS:
        got, original = got.rstrip(b"\0"), original.rstrip(b"\0")
    assert len(got) == len(original)
    differ = [i for i in range(0, len(got), SECTOR) if got[i : i + SECTOR] != original[i : i + SECTOR]]
    assert not differ, f"{len(differ)} sectors differ, the first at {differ[0]:#x}"


def test_qemu_agrees_that_the_samples_are_sound(sample_of: Samples, tmp_path: Path) -> None:
    """The samples that qemu-img wrote read back as the guest that went in."""
    for name, fmt in formats().items():
        sample = sample_of(name, "qemu") if fmt.qemu_name else None
        if sample is None or name in QEMU_OPTIONS:
            continue
        (tmp_path / "disk").write_bytes(sample.data)
        run("qemu-img", "convert", "-f", fmt.qemu_name or "", "-O", "raw", tmp_path / "disk", tmp_path / "raw")
        assert (tmp_path / "raw").read_bytes()[:GUEST] == sample.guest, name
