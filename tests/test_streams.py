"""Containers of streams and archives in pieces: the whole job on an image without a host, judged by who wrote them.

The guests hold no file system, so nothing but the streams, the hashes and the members' names can place a piece.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vmcarve
from tests.helpers import run
from tests.makers import ova, vma, vmdk, xva
from vmcarve.assemble import streams
from vmcarve.codec import decode, likely
from vmcarve.filemap import FileMap
from vmcarve.formats import _xva_gather as gather
from vmcarve.model import DEFLATE, GUESSED, MISSING, PLAIN, ZLIB, ZSTD, Marks, Units
from vmcarve.registry import formats
from vmcarve.source import BytesReader

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB, BLOCK = 1 << 20, 4096
Write = Callable[[Path, Path], object]


def guest(folder: Path, seed: int, size: int = 12 * MIB) -> Path:
    """Words and numbers, which compress to about a half, and empty clusters."""
    rng = np.random.default_rng(seed)
    words = [rng.bytes(int(n)).hex().encode() for n in rng.integers(1, 9, 4000)]
    out = bytearray()
    while len(out) < size:
        part = b" ".join(words[i] for i in np.minimum(rng.zipf(1.2, 12_000), 3999).tolist())
        out += part[: 64 << 10].ljust(64 << 10, b"\n") if rng.random() < 0.9 else bytes(64 << 10)
    path = folder / f"guest-{seed}"
    path.write_bytes(out)
    return path


def qemu(driver: str, *options: str) -> Write:
    # Seen: qemu-img 7.2 writes a sound compressed qcow, and ends with status 1
    how = ("qemu-img", "convert", "-q", "-f", "raw", "-O", driver, *options)
    return lambda raw, out: run(*how, raw, out, check=driver != "qcow")


WRITERS: dict[str, tuple[str, Write]] = {
    "streamOptimized of QEMU": ("vmdk", qemu("vmdk", "-o", "subformat=streamOptimized")),
    "streamOptimized, tables behind": ("vmdk", lambda raw, out: vmdk.make_stream(raw, out, 1)),
    "streamOptimized, grains in any order": ("vmdk", lambda raw, out: vmdk.make_front_stream(raw, out, 1)),
    "qcow2 of zlib": ("qcow2", qemu("qcow2", "-c")),
    "qcow2 of zstd": ("qcow2", qemu("qcow2", "-c", "-o", "compression_type=zstd")),
    "qcow": ("qcow1", qemu("qcow", "-c")),
    "xva with xxhash": ("xva", lambda raw, out: xva.MAKERS["xva-xxhash"].make(raw, out, 1)),
    "xva with sha1": ("xva", lambda raw, out: xva.MAKERS["xva-checksum"].make(raw, out, 1)),
    "xva with members of no length": ("xva", lambda raw, out: xva.MAKERS["xva-empty-members"].make(raw, out, 1)),
    "ova": ("vmdk", lambda raw, out: ova.MAKERS["ova-sha256"].make(raw, out, 1)),
}


def pieces(data: bytes, rng: np.random.Generator, mean: int, least: int = 160 << 10, first: int = 256 << 10
           ) -> list[bytes]:
    """Cut at blocks, no two breaks in one unit; the first piece holds at least the header's own structures."""
    out, at = [], 0
    while at < len(data):
        n = max(first if at == 0 else least, int(rng.exponential(mean)) // BLOCK * BLOCK)
        n = len(data) - at if len(data) - at - n < least else n
        out.append(data[at : at + n])
        at += n
    return out


def scatter(rng: np.random.Generator, *files: list[bytes]) -> bytes:
    """All pieces in any order, each at a block, with noise between."""
    parts = [p for file in files for p in file]
    order = rng.permutation(len(parts))
    out = bytearray(rng.bytes(5 * BLOCK))
    for i in order.tolist():
        out += parts[i] + rng.bytes(-len(parts[i]) % BLOCK)
        if rng.random() < 0.5:
            out += rng.bytes(int(rng.integers(1, 9)) * BLOCK)
    return bytes(out)


def recovered(tmp_path: Path, image: bytes, form: str) -> tuple[list[bytes], list[dict[str, object]]]:
    """The guests of all disks of a format, and their rows."""
    (tmp_path / "image").write_bytes(image)
    done = vmcarve.recover([tmp_path / "image"], tmp_path / "case")
    rows = [r for r in done.disks() if r["format"] == form]
    out = []
    for r in rows:
        file = done.path / str(r["path"])
        raw = tmp_path / f"{r['disk_id']}.raw"
        driver = "raw" if file.suffix == ".raw" else {"qcow1": "qcow"}.get(form, form)
        run("qemu-img", "convert", "-q", "-f", driver, "-O", "raw", file, raw)
        out.append(raw.read_bytes())
    return out, rows


@pytest.mark.parametrize("name", WRITERS)
def test_the_pieces_of_a_stream_are_joined(name: str, tmp_path: Path) -> None:
    """In shuffled pieces, where tables tell whose a unit is two of one kind and size: every guest comes back."""
    form, write = WRITERS[name]
    rng = np.random.default_rng(8)
    raws = [guest(tmp_path, seed) for seed in (1, 2)][: 1 if form in ("xva", "qcow1") else 2]
    files = []
    for i, raw in enumerate(raws):
        write(raw, tmp_path / f"disk{i}")
        least = 1100 << 10 if form == "xva" else 160 << 10
        files.append(pieces((tmp_path / f"disk{i}").read_bytes(), rng, 768 << 10, least))
    found, _ = recovered(tmp_path, scatter(rng, *files), form)
    for raw in raws:
        assert any(same_data(raw.read_bytes(), other) for other in found), name


def same_data(right: bytes, found: bytes) -> bool:
    return found[: len(right)] == right and not any(found[len(right) :])


@pytest.mark.parametrize("name", [name for name, (form, _) in WRITERS.items() if form in ("vmdk", "qcow2")][:-1])
def test_a_lost_piece_is_a_hole_and_qemu_reads_the_rest(name: str, tmp_path: Path) -> None:
    """Units of which a byte is gone are empty in what is written; nothing else differs, and nothing is made up."""
    form, write = WRITERS[name]
    rng = np.random.default_rng(9)
    raw = guest(tmp_path, 3)
    write(raw, tmp_path / "disk")
    parts = pieces((tmp_path / "disk").read_bytes(), rng, 512 << 10)
    lost = parts.pop(len(parts) // 2)
    found, rows = recovered(tmp_path, scatter(rng, parts), form)
    right = np.frombuffer(raw.read_bytes(), np.uint8).reshape(-1, 64 << 10)
    best = min((np.frombuffer(f.ljust(right.size, b"\0")[: right.size], np.uint8).reshape(right.shape) for f in found),
               key=lambda f: int((f != right).any(axis=1).sum()))
    wrong = (best != right).any(axis=1)
    assert not best[wrong].any(), "what is lost reads as zeros"
    assert 0 < int(wrong.sum()) <= 2 + len(lost) // (16 << 10)
    assert int(str(rows[0]["bytes_missing"])) > 0 and not rows[0]["exact"]


@pytest.mark.parametrize("name", ["xva-xxhash", "xva-checksum"])
def test_chunks_that_hashes_lead_to_are_proven(name: str, tmp_path: Path) -> None:
    """Each break lies inside a chunk whose hash agrees, so every chunk is the archive's; one flipped bit ends that."""
    rng = np.random.default_rng(10)
    raw = guest(tmp_path, 4)
    xva.MAKERS[name].make(raw, tmp_path / "disk", 1)
    data = (tmp_path / "disk").read_bytes()
    parts = pieces(data, rng, 2 * MIB, 1100 << 10)
    _, rows = recovered(tmp_path, scatter(rng, parts), "xva")
    assert len(rows) == 1 and rows[0]["bytes_guessed"] == 0 and rows[0]["bytes_missing"] == 0
    harmed = bytearray(data)
    harmed[len(data) // 2] ^= 1
    (tmp_path / "again").mkdir()
    _, rows = recovered(tmp_path / "again", scatter(rng, pieces(bytes(harmed), rng, 2 * MIB, 1100 << 10)), "xva")
    assert all(int(str(r["bytes_guessed"])) > 0 for r in rows)


def places(parts: list[bytes], image: bytes) -> list[tuple[int, int, int]]:
    """(file offset, image offset, length) of each piece."""
    out, at = [], 0
    for p in parts:
        out.append((at, image.find(p), len(p)))
        at += len(p)
    return out


@pytest.mark.parametrize("headed", [True, False])
def test_extents_of_a_vma_tell_their_order(headed: bool, tmp_path: Path) -> None:
    """Pieces of the archive in any order: every extent header gets its file offset back, with the header or without."""
    rng = np.random.default_rng(11)
    raw = guest(tmp_path, 5, 24 * MIB)
    vma.MAKERS["vma-one-disk"].make(raw, tmp_path / "disk", 1)
    data = (tmp_path / "disk").read_bytes()
    parts = pieces(data, rng, 3 * MIB, 1 * MIB)
    image = scatter(rng, parts)
    fmt = formats()["vma"]
    assert fmt.gather is not None and fmt.loose is not None
    marks = streams.look(BytesReader(image), np.array([[0, len(image)]]), fmt, 0)
    lay = places(parts, image)
    if headed:
        found = fmt.gather(BytesReader(image), lay[0][1], BytesReader(parts[0]), marks)
    else:
        found = next(iter(fmt.loose(BytesReader(image), marks)))
    assert found is not None
    told = {p: f for f, p, n in found.pins.tolist() if n == 512}
    assert len(told) == len(marks)
    true = {p: next(f + p - at for f, at, n in lay if at <= p < at + n) for p in marks.image_offset.tolist()}
    if headed:
        assert told == true
    else:
        # it begins with the run that lies first in the image: in a ring, everything is where it must be
        assert len({true[p] - told[p] for p in told}) <= 2


def test_chunks_of_an_xva_tell_how_many_are_lost_between_them() -> None:
    """A chunk with its hash takes three sectors more than whole blocks: the next header says what lies between."""
    start, first = 10 * BLOCK, 4 * 512
    at = [first + k * gather.SPAN for k in range(6)]
    numbers = [0, 1, 3, 4, 9, 10]  # 2 was zeros; of 5 to 8 two are lost, then zeros
    shift = [0, 0, 0, 0, 2, 2]
    marks = Marks(np.array([start + f + s * gather.SPAN for f, s in zip(at, shift, strict=True)]),
                  np.array([gather.key_of("Ref:7", n) for n in numbers]), np.full(6, gather.SPAN))
    layout = gather.lay_out(start, first, marks, ["Ref:7"])
    assert layout is not None
    slots = layout.slots["Ref:7"]
    assert [s.number for s in slots] == [0, 1, 3, 4, -1, -1, 9, 10]
    assert [p for p, _ in layout.pins] == [f + s * gather.SPAN for f, s in zip(at, shift, strict=True)]
    guest_map, size = gather.guest_map(slots, 11 * MIB)
    assert size == 11 * MIB
    states = {int(g) // MIB: int(s) for g, s in zip(guest_map.guest_offset, guest_map.state, strict=True)}
    assert states[2] == 1 and states[5] == 3, "zeros where nothing can be lost, lost where something is"


def test_likely_never_refuses_the_first_bytes_of_a_stream() -> None:
    """What zlib and zstd write of any data is likely; most of what is random is not."""
    rng = np.random.default_rng(12)
    for level in (1, 6, 9):
        for n in (1, 100, 4096, 65536):
            for top in (1, 3, 90, 256):
                data = rng.integers(0, top, n, dtype=np.uint8).tobytes()
                raw = zlib.compressobj(level, zlib.DEFLATED, -12)
                made = {DEFLATE: raw.compress(data) + raw.flush(), ZLIB: zlib.compress(data, level),
                        ZSTD: zstd.compress(data)}
                for encoding, packed in made.items():
                    head = np.frombuffer(packed[:16].ljust(16, b"\0"), np.uint8).reshape(1, 16)
                    assert likely(encoding, head)[0], (encoding, level, n, top)
    noise = rng.integers(0, 256, (20_000, 16), dtype=np.uint8)
    assert likely(ZLIB, noise).mean() < 0.01 and likely(ZSTD, noise).mean() < 0.001
    assert likely(DEFLATE, noise).mean() < 0.30


def test_two_breaks_at_which_a_unit_decodes_prove_none() -> None:
    """A stream without checksum whose codes have one length decodes wherever it is cut: a guess, amid what may be."""
    rng = np.random.default_rng(13)
    data = rng.integers(0, 16, 64 << 10, dtype=np.uint8).tobytes()  # codes of four bits, all of them
    packed = zstd.compress(data)
    foreign = zstd.compress(rng.integers(0, 16, 64 << 10, dtype=np.uint8).tobytes())
    n = len(packed)
    mixed = packed[: 2 * BLOCK] + foreign[2 * BLOCK : 3 * BLOCK] + packed[3 * BLOCK :]
    assert decode(mixed, ZSTD, len(data)) is not None
    blocks = -(-n // BLOCK)
    left = packed[: 3 * BLOCK] + foreign[3 * BLOCK : blocks * BLOCK].ljust((blocks - 3) * BLOCK, b"\0")
    right = foreign[: 3 * BLOCK] + packed[3 * BLOCK :]
    image = BytesReader(left + right.ljust(blocks * BLOCK, b"\0"))
    one = np.array([0], np.int64)
    units = Units(one, np.array([n]), np.array([n - 1]), np.array([len(data)]), np.array([ZSTD], np.uint8), one - 1)
    s = streams.Stream(0, formats()["qcow2"], vmcarve.model.Container("qcow2", "", n, []),
                       streams.FileMap.build([(0, n, 0, "guessed", "continuity")]), units)
    s.delta[0] = 0
    s.tail[0] = blocks * BLOCK
    assert not streams._straddle(image, s, 0) and not s.sure[0]
    first, end, before, behind = s.doubt[0]
    assert first < 3 <= end and (before, behind) == (0, blocks * BLOCK)
    laid = streams._laid(s, image.size)
    assert set(laid.grade) == {"guessed"} and s.open and s.proved()[-1][0] == end
    assert streams.without_lost(image, s, laid).rows() == laid.rows(), "it decodes"
    harmed = BytesReader(bytes(512) + left[512:] + right.ljust(blocks * BLOCK, b"\0"))
    assert streams.without_lost(harmed, s, laid).rows() == [(0, n, -1, MISSING, "not-found")]


@pytest.mark.parametrize("name", ["streamOptimized of QEMU", "streamOptimized, tables behind"])
def test_a_stream_without_header_is_tied_by_the_grains_that_breaks_cut(name: str, tmp_path: Path) -> None:
    """The first MiB lost and the rest in pieces: what is written has every grain that is left, each at its place."""
    rng = np.random.default_rng(14)
    raw = guest(tmp_path, 6)
    WRITERS[name][1](raw, tmp_path / "disk")
    data = (tmp_path / "disk").read_bytes()[MIB:]
    found, rows = recovered(tmp_path, scatter(rng, pieces(data, rng, 768 << 10)), "vmdk")
    right = np.frombuffer(raw.read_bytes(), np.uint8).reshape(-1, 64 << 10)
    assert len(found) == 1
    left = np.frombuffer(found[0].ljust(right.size, b"\0")[: right.size], np.uint8).reshape(right.shape)
    assert np.flatnonzero((left != right).any(axis=1)).max() < 90, "only grains of the lost MiB are not there"
    assert any("header is the file's own" in said for said in rows[0]["checks"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["streamOptimized of QEMU", "streamOptimized, tables behind"])
def test_copies_of_one_stream_do_not_take_each_others_grains(name: str, tmp_path: Path) -> None:
    """One guest exported three times, once whole and twice in pieces: every copy comes back."""
    rng = np.random.default_rng(15)
    raw = guest(tmp_path, 7, 6 * MIB)
    WRITERS[name][1](raw, tmp_path / "disk")
    data = (tmp_path / "disk").read_bytes()
    files = [[data], *(pieces(data, rng, 768 << 10, 320 << 10) for _ in range(2))]
    found, _ = recovered(tmp_path, scatter(rng, *files), "vmdk")
    assert [same_data(raw.read_bytes(), f) for f in found] == [True] * 3


def test_tables_that_name_places_behind_the_end_are_told_without_being_read(tmp_path: Path) -> None:
    """What a container's tables name counts as there for finding its units, but behind its end there is nothing."""
    raw, path = guest(tmp_path, 4, MIB), tmp_path / "q"
    WRITERS["qcow2 of zlib"][1](raw, path)
    data, form = bytearray(path.read_bytes()), formats()["qcow2"]
    container = form.open(BytesReader(bytes(data)))
    table = int.from_bytes(data[48:56], "big")
    data[table : table + 8] = (len(data) + (64 << 16) >> 16 << 16).to_bytes(8, "big")
    whole = FileMap.build([(0, len(data), 0, GUESSED, "test")])
    found = streams.stream_of(BytesReader(bytes(data)), form, 0, container, whole, [], 0)
    assert found is not None and len(found.units) == int((container.guests[0].map.encoding != PLAIN).sum()) > 0
