"""The search at every byte: the kernel against its plain reference, the sweep over all splits, and real containers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vmcarve
from tests.reference.every_byte import Magic
from tests.reference.every_byte import every_byte as reference
from vmcarve._ext.cpu import PATHS
from vmcarve._ext.every_byte import every_byte
from vmcarve.model import Evidence, Reader, Signature
from vmcarve.source import open_image
from vmcarve.sweeper import run, sweep_image
from vmcarve.sweeper.bytewise import ByteTable, anywhere, compile_bytes
from vmcarve.sweeper.table import Entry, declared

MAGICS: list[Magic] = [
    (0, b"KDMV", None), (0, b"KDM!rest", None), (64, b"\x7f\x10\xda\xbe", None), (257, b"ustar", (104, b"\xf8", b"0")),
    (0, b"Long magic of 16", None), (3, b"QED\0", (0, b"\xff\x0f", b"\x11\x02")), (0, b"KDMV", (8, b"\xff", b"7")),
]  # fmt: skip


def table(magics: list[Magic], path: int) -> ByteTable:
    return compile_bytes([Entry("t", Signature(magic, f"t.{i}", at, also=also), lambda *_: None, None)
                          for i, (at, magic, also) in enumerate(magics)], path)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@settings(max_examples=150, deadline=None)
@given(plants=st.lists(st.tuples(st.integers(-20, 1200), st.sampled_from(range(len(MAGICS)))), max_size=30),
       broken=st.lists(st.integers(0, 1199), max_size=20), begin=st.integers(0, 300), end=st.integers(0, 1200),
       size=st.integers(1, 1200), image_at=st.integers(0, 2000), cap=st.integers(len(MAGICS), 12))
def test_finds_what_the_reference_finds(path: int, plants: list[tuple[int, int]], broken: list[int], begin: int,
                                        end: int, size: int, image_at: int, cap: int) -> None:
    """Magics at any byte, cut off by either end, whole or damaged, with any size of the result, on every path."""
    data = bytearray(b"KDM\xee" * 400)
    for at, which in plants:
        place, magic, also = MAGICS[which]
        for where, piece in ((at, magic), *(() if also is None else ((at - place + also[0], also[2]),))):
            for i, byte in enumerate(piece):
                if 0 <= where + i < len(data):
                    data[where + i] = byte
    for at in broken:
        data[at] ^= 1
    buf = bytes(data[:size])
    end = min(end, size)
    t = table(MAGICS, path)
    places, found, resume = np.empty(cap, np.int64), np.empty(cap, np.int32), np.array([begin], np.int64)
    hits: list[tuple[int, int]] = []
    while resume[0] < end:
        before = int(resume[0])
        n = every_byte(t.search, np.frombuffer(buf, np.uint8), image_at, end, places, found, resume)
        hits += [(int(p), int(m)) for p, m in zip(places[:n], found[:n], strict=True)]
        assert resume[0] > before, "the kernel must go forward"
    assert hits == reference(buf, image_at, begin, end, MAGICS)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_magic_that_is_looked_for(path: int) -> None:
    """Each of the registry's that is looked for, in noise, at a byte that no sector begins with."""
    entries = anywhere(declared())
    t = compile_bytes(entries, path)
    noise = np.random.default_rng(5).bytes(4096)
    places, found = np.empty(64, np.int64), np.empty(64, np.int32)
    for i, e in enumerate(entries):
        s = e.signature
        buf = bytearray(noise)
        start = 1 + (i * 7 + 3) % 511
        buf[start + s.at : start + s.at + len(s.magic)] = s.magic
        if s.also is not None:
            buf[start + s.also[0] : start + s.also[0] + len(s.also[2])] = s.also[2]
        n = every_byte(t.search, np.frombuffer(buf, np.uint8), 0, 4096, places, found, np.zeros(1, np.int64))
        assert (start + s.at, i) in set(zip(places[:n].tolist(), found[:n].tolist(), strict=True))


def test_what_is_looked_for_is_telling() -> None:
    """Container formats only, and nothing that a table of small numbers is full of."""
    found = [e.signature for e in anywhere(declared())]
    assert {"qcow2.header", "vdi.header", "vhdx.identifier", "vmdk.header", "vhd.footer"} <= {s.kind for s in found}
    assert all(len(s.magic) >= 4 and s.magic[:4].count(0) <= 1 and not s.dense for s in found)


def test_arguments_are_checked() -> None:
    """Before the loop runs without checks."""
    t = table(MAGICS, 0).search
    buf, places, found = np.zeros(100, np.uint8), np.empty(8, np.int64), np.empty(8, np.int32)
    for end, resume, at in ((101, 0, 0), (-1, 0, 0), (100, -1, 0), (100, 0, -1)):
        with pytest.raises(ValueError, match="resume"):
            every_byte(t, buf, at, end, places, found, np.array([resume], np.int64))
    with pytest.raises(ValueError, match="one length"):
        every_byte(t, buf, 0, 100, places, found[:7], np.zeros(1, np.int64))


# --- the sweep --------------------------------------------------------------------------------------------------------
def confirm(reader: Reader, offset: int, signature: Signature) -> Evidence | None:
    block = reader.read(offset, 40)
    return Evidence(signature.kind, offset, 40) if block[16:20] == b"good" else None


ENTRIES = [Entry("t", Signature(b"HEAD", "t.head"), confirm, None),
           Entry("t", Signature(b"INSIDE", "t.inside", at=20), confirm, None)]


@settings(max_examples=60, deadline=None)
@given(plants=st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 1)), max_size=30), chunk=st.integers(1, 9),
       per=st.integers(1, 4), threads=st.integers(1, 3), hits=st.integers(2, 6),
       cuts=st.lists(st.integers(0, 20_000), max_size=4))
def test_every_split_finds_the_same_structures(
    plants: list[tuple[int, int]], chunk: int, per: int, threads: int, hits: int, cuts: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """However the image is cut into ranges, tasks, reads and results: each structure once, at whatever byte it lies."""
    data = bytearray(b"\xee" * 20_000)
    for at, which in plants:
        body = bytearray(b"\x11" * 40)
        s = ENTRIES[which].signature
        body[s.at : s.at + len(s.magic)] = s.magic
        body[16:20] = b"good"
        data[at : at + 40] = body[: max(0, 20_000 - at)]
    path = tmp_path_factory.getbasetemp() / "bytes.img"
    path.write_bytes(data)
    want = [(e.signature.kind, i) for i in range(len(data)) for e in ENTRIES
            if data[i + e.signature.at :].startswith(e.signature.magic) and data[i + 16 : i + 20] == b"good"]
    # a cut inside a sector leaves its first part to the range before: what begins there is met twice
    borders = sorted({0, len(data), *(c // 512 * 512 for c in cuts)})
    ranges = [(a, b - a) for a, b in zip(borders, borders[1:], strict=False)]
    found: list[tuple[str, int]] = []
    with open_image(path) as source, mock.patch.multiple(
            run, CHUNK=chunk * 512, RANGE=chunk * per * 512, HITS=hits, declared=lambda: ENTRIES, anywhere=lambda e: e):
        result = sweep_image(source, 0, lambda b: found.extend((r["kind"], r["image_offset"]) for r in b.to_pylist()),
                             ranges=ranges, threads=threads, align=1)
    assert sorted(found) == sorted(want) and not result.failed


@pytest.mark.parametrize("name", ["qcow2", "vdi", "vhdx"])
def test_a_container_at_an_odd_byte_is_recovered(name: str, tmp_path: Path) -> None:
    """A disk of qemu-img inside other data, at a byte that no sector begins with: only --align 1 finds it, exactly."""
    rng = np.random.default_rng(11)
    raw, container = tmp_path / "guest.raw", tmp_path / "container"
    raw.write_bytes(rng.bytes(2 << 20))
    os.truncate(raw, 4 << 20)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", name, raw, container], check=True, timeout=60)
    body = container.read_bytes()
    image = tmp_path / "image"
    image.write_bytes(rng.bytes(70_001) + body + rng.bytes(33_333))
    assert not vmcarve.recover([image], tmp_path / "sectors").disks()
    case = vmcarve.recover([image], tmp_path / "bytes", options=vmcarve.Options(align=1))
    (row,) = case.disks()
    assert (row["format"], row["header_offset"], row["checks"]) == (name, 70_001, [])
    assert (case.path / row["path"]).read_bytes() == body
    guest = vmcarve.open_disk(case, row["disk_id"])
    assert guest.read(0, 4 << 20) == raw.read_bytes()
    assert case.info["options"]["align"] == 1
