"""Tables of containers in pieces: what real containers lack when their tables lie elsewhere, and finding it."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import run
from tests.makers.vdi import dynamic as make_vdi
from tests.makers.vmdk import make_cowd, make_sesparse
from vmcarve import open_case, recover
from vmcarve.assemble.headers import _lacks  # pyright: ignore[reportPrivateUsage]
from vmcarve.assemble.tables import STRONG, Search, _Laid  # pyright: ignore[reportPrivateUsage]
from vmcarve.errors import Damaged
from vmcarve.filemap import FileMap, FileView
from vmcarve.model import GUESSED, LOST, MISSING, ZERO, Container, Format, Reader, Want
from vmcarve.registry import formats
from vmcarve.source import BytesReader

BLOCK = 4096
MIB = 1 << 20
SIZE = 900 * MIB
KINDS = {
    "qcow2-64k": ("qcow2", ["-O", "qcow2", "-o", "cluster_size=64k"]),
    "qcow2-4k": ("qcow2", ["-O", "qcow2", "-o", "cluster_size=4k"]),
    "qcow2-extended": ("qcow2", ["-O", "qcow2", "-o", "extended_l2=on,cluster_size=64k"]),
    "qcow2-compressed": ("qcow2", ["-c", "-O", "qcow2", "-o", "cluster_size=64k"]),
    "qcow": ("qcow1", ["-O", "qcow"]),
    "qed": ("qed", ["-O", "qed"]),
    "vhdx": ("vhdx", ["-O", "vhdx", "-o", "subformat=dynamic,block_size=2M"]),
    "vmdk": ("vmdk", ["-O", "vmdk", "-o", "subformat=monolithicSparse"]),
}

# Where the guest has data, when not every 15 MiB. A full L2 table of 64 KiB has blocks that are all alike, and what
# compressed clusters are named by does not tell which table a block is of: for those, each table has one block in use.
PLACES = {
    "qcow2-64k": [*range(0, 30 * MIB, 2 * MIB), *range(512 * MIB, 540 * MIB, 2 * MIB)],
    "qcow2-extended": [*range(0, 14 * MIB, 2 * MIB), *range(512 * MIB, 526 * MIB, 2 * MIB)],
    "qcow2-compressed": list(range(0, 30 * MIB, 2 * MIB)),
}


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Guests of 900 MiB with two blocks of data at some places, written by qemu-img as each kind."""
    folder = tmp_path_factory.mktemp("wanted")
    out: dict[str, bytes] = {}
    for name, (_, options) in KINDS.items():
        guest(folder / "raw", PLACES.get(name, range(0, SIZE, 15 * MIB)))
        run("qemu-img", "convert", "-f", "raw", *options, folder / "raw", folder / name)
        data = (folder / name).read_bytes()
        out[name] = data + bytes(-len(data) % BLOCK)
    return out


def guest(path: Path, places: Iterable[int]) -> None:
    """A guest of 900 MiB with two blocks of data at each place."""
    rng = random.Random(7)
    with path.open("wb") as f:
        f.truncate(SIZE)
        for at in places:
            f.seek(at)
            f.write(rng.randbytes(3000) + b"%d " % at * 500)


def blocks_with_data(data: bytes) -> list[int]:
    there = np.frombuffer(data, np.uint64).reshape(-1, BLOCK // 8).any(axis=1)
    return np.flatnonzero(there).tolist()


def tables_of(container: Container) -> set[int]:
    """The blocks of a file that hold tables. A log is not read, and of the two headers of a VHDX each may be either."""
    regions = [r for r in container.regions if r.kind not in ("vhdx.log", "vhdx.header")]
    return {b for r in regions for b in range(r.file_offset // BLOCK, -(-(r.file_offset + r.length) // BLOCK))}


def lay(data: bytes, pieces: list[list[int]], seed: int) -> tuple[BytesReader, int, dict[int, int]]:
    """(an image with random blocks between the pieces, image offset of the first byte, file block -> image offset)."""
    rng = random.Random(seed)
    out, place = bytearray(), dict[int, int]()
    for piece in pieces:
        out += rng.randbytes(rng.randrange(8, 60) * BLOCK)
        for b in piece:
            place[b] = len(out)
            out += data[b * BLOCK : (b + 1) * BLOCK]
    out += rng.randbytes(20 * BLOCK)
    return BytesReader(out), place[0], place


def in_pieces(data: bytes, container: Container, seed: int) -> list[list[int]]:
    """The file cut at random blocks, and before and behind each table; in another order. Zeros of the guest's data are
    left out."""
    rng = random.Random(seed)
    tables, pieces = tables_of(container), list[list[int]]()
    begins = {r.file_offset // BLOCK for r in container.regions if not r.kind.endswith("gt")}  # those follow their "gd"
    for b in sorted({*blocks_with_data(data), *tables}):
        last = pieces[-1][-1] if pieces else -2
        whole = b in tables and last in tables and b not in begins
        if last + 1 == b and (whole or (b not in tables and last not in tables and rng.random() < 0.8)):
            pieces[-1].append(b)
        else:
            pieces.append([b])
    rng.shuffle(pieces)
    return pieces


def checked(name: str, data: bytes, pieces: list[list[int]], seed: int) -> None:
    """Completes the container from its header's run and compares with the intact file."""
    fmt = formats()[KINDS[name][0]]
    whole = fmt.open(BytesReader(data))
    image, start, place = lay(data, pieces, seed)
    first = FileMap.build([(0, image.size - start, start, GUESSED, "continuity"),
                           (image.size - start, len(data), -1, MISSING, "image-end")])
    assert maps(fmt, image, first) != maps(fmt, BytesReader(data), None), "there is something to look for"
    found, tables = Search(image, np.array([[0, image.size]], np.int64)).complete(fmt, start, first)
    view = FileView(image, found)
    for b in sorted(tables_of(whole) & set(blocks_with_data(data))):
        block = data[b * BLOCK : (b + 1) * BLOCK]
        assert view.read(b * BLOCK, BLOCK) == block, f"block {b} of {name}"
        assert data.count(block) > 1 or found.cut(b * BLOCK, 1)[0][2] == place[b]
    known = tables_of(whole)
    assert tables and all(image.read(p, BLOCK) == data[f : f + BLOCK] for f, p in tables if f // BLOCK in known)
    assert maps(fmt, image, found) == maps(fmt, BytesReader(data), None)


def maps(fmt: Format, image: Reader, file_map: FileMap | None) -> list[tuple[int, ...]]:
    """The guest map of the container as rows; [] when it does not open."""
    try:
        m = fmt.open(image if file_map is None else FileView(image, file_map)).guests[0].map
    except Damaged:
        return []
    return list(zip(*(a.tolist() for a in (m.guest_offset, m.length, m.state, m.file_offset, m.encoding, m.stored)),
                    strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_tables_that_lie_elsewhere_are_found(name: str, containers: dict[str, bytes]) -> None:
    """Each table whole, but none where the header's run has it, and in another order."""
    data = containers[name]
    for seed in range(3):
        checked(name, data, in_pieces(data, formats()[KINDS[name][0]].open(BytesReader(data)), seed), seed)


@pytest.mark.parametrize("name", [k for k in KINDS if k != "qcow2-4k"])  # that has no zeros to leave out
def test_tables_of_a_packed_file_are_found(name: str, containers: dict[str, bytes]) -> None:
    """As XFS writes sparse files: blocks in the order of the file, each right behind the other, zeros left out."""
    data = containers[name]
    checked(name, data, [blocks_with_data(data)], 1)


@pytest.mark.parametrize("name", ["qcow2-4k", "qcow", "qed"])
def test_a_lost_table_is_not_replaced_by_another_of_the_container(name: str, tmp_path: Path) -> None:
    """The last L2 table is nowhere: each other one of the file is in its place, and names what lies behind it."""
    guest(tmp_path / "raw", range(0, SIZE, 15 * MIB))
    run("qemu-img", "convert", "-m", "1", "-f", "raw", *KINDS[name][1], tmp_path / "raw", tmp_path / "disk")
    fmt, data = formats()[KINDS[name][0]], (tmp_path / "disk").read_bytes()
    data += bytes(-len(data) % BLOCK)
    last, end = max((r.file_offset, r.file_offset + r.length) for r in fmt.open(BytesReader(data)).regions
                    if r.kind.endswith("l2"))
    image = BytesReader(data[:last] + random.Random(3).randbytes(end - last) + data[end:])
    first = FileMap.build([(0, image.size, 0, GUESSED, "continuity")])
    _, tables = Search(image, np.array([[0, image.size]], np.int64)).complete(fmt, 0, first)
    assert last not in dict(tables)


def test_a_data_files_tables_are_in_their_place(tmp_path: Path) -> None:
    """Entries that name clusters of another file are told from damage: nothing is looked for elsewhere."""
    guest(tmp_path / "raw", range(0, 64 * MIB, 5 * MIB))
    options = f"cluster_size=64k,data_file={tmp_path / 'data'},data_file_raw=on"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, tmp_path / "raw", tmp_path / "disk")
    fmt, data = formats()["qcow2"], (tmp_path / "disk").read_bytes()
    assert fmt.wants is not None and fmt.wants(BytesReader(data)) == []
    l2 = next(r.file_offset for r in fmt.open(BytesReader(data)).regions if r.kind == "qcow2.l2")
    lost = BytesReader(data[:l2] + bytes(BLOCK) + data[l2 + BLOCK :])
    assert [w.file_offset for w in fmt.wants(lost)] == [l2]
    want = fmt.wants(lost)[0]
    assert want.fits(data[l2 : l2 + BLOCK]) > 0
    words = np.frombuffer(data[l2 : l2 + BLOCK], ">u8")
    other = np.where(words > 0, words + (1 << 30), 0)
    assert want.fits(other.astype(">u8").tobytes()) == 0, "the table of another part of the disk"


def test_an_empty_table_is_not_replaced_by_another_files(tmp_path: Path) -> None:
    """A VMDK has its tables twice: what is empty in one set is so in the other, where the host has a hole instead."""
    kind = ["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"]
    for name, places in (("a", range(0, 20 * MIB, 3 * MIB)), ("b", range(0, 1000 * MIB, 40 * MIB))):
        guest(tmp_path / name, places)
        run("qemu-img", "convert", "-f", "raw", *kind, tmp_path / name, tmp_path / f"{name}.vmdk")
    fmt = formats()["vmdk"]
    data, other = ((tmp_path / f"{name}-s001.vmdk").read_bytes() for name in ("a", "b"))
    assert fmt.wants is not None and fmt.wants(BytesReader(data)) == []
    tables = [r for r in fmt.open(BytesReader(other)).regions if r.kind.endswith("gt")]
    full = {r.file_offset // BLOCK * BLOCK for r in tables if any(other[r.file_offset : r.file_offset + r.length])}
    lost = min(f for f in full if not any(data[f : f + BLOCK]))
    torn = data[:lost] + random.Random(9).randbytes(BLOCK) + data[lost + BLOCK :]
    want = next(w for w in fmt.wants(BytesReader(torn)) if w.file_offset == lost)
    assert want.empty and all(want.fits(other[f : f + BLOCK]) <= 0 for f in full)


@settings(max_examples=200, deadline=None)
@given(found=st.lists(st.tuples(st.integers(0, 60), st.integers(-1, 40)), max_size=12), low=st.integers(0, 63),
       length=st.integers(1, 64))
def test_blocks_laid_over_a_map(found: list[tuple[int, int]], low: int, length: int) -> None:
    """Block for block: a found one's place, zeros for one taken as such, behind either the run of the last place."""
    first = FileMap.build([(0, 20 * BLOCK, 7 * BLOCK, GUESSED, "a"), (20 * BLOCK, 44 * BLOCK, -1, MISSING, "b")])
    laid = _Laid(first, 50 * BLOCK)
    for f, p in dict(found).items():
        laid.add(f * BLOCK, p * BLOCK if p >= 0 else -1)
    high = min(64, low + length)
    placed = FileMap.build(laid.rows(low * BLOCK, high * BLOCK)).rows()
    want: list[tuple[int, int, int, str, str]] = []
    for f in range(low, high):
        before = [g for g in laid.found if g <= f * BLOCK and laid.found[g] >= 0]
        if laid.found.get(f * BLOCK) == -1:
            want.append((f * BLOCK, BLOCK, -1, ZERO, "tables.empty"))
        elif before:
            p = laid.found[max(before)] + f * BLOCK - max(before)
            inside = p < 50 * BLOCK
            want.append((f * BLOCK, BLOCK, p if inside else -1, GUESSED if inside else MISSING,
                         "tables" if inside else "image-end"))
        else:
            want += first.cut(f * BLOCK, BLOCK)
    assert placed == FileMap.build(want).rows()


def test_tables_before_the_next_header_are_the_first_ones(containers: dict[str, bytes]) -> None:
    """Of a packed file all tables lie behind its header, none farther than in the file; else nothing is used."""
    fmt, data = formats()["qcow2"], containers["qcow2-64k"]
    image, start, place = lay(data, [blocks_with_data(data)], 2)
    first = FileMap.build([(0, image.size - start, start, GUESSED, "continuity"),
                           (image.size - start, len(data), -1, MISSING, "image-end")])
    search = Search(image, np.array([[0, image.size]], np.int64))
    assert search.complete_before(fmt, start, first, start + 2 * BLOCK) is None and not search.used
    found = search.complete_before(fmt, start, first, image.size)
    assert found is not None and all(p == place[f // BLOCK] for f, p in found[1])
    assert {p for _, p in found[1]} <= search.used


def test_a_structure_in_its_place_is_not_taken_for_one_that_is_wanted(tmp_path: Path) -> None:
    """Refcount blocks of clusters that are all in use are alike: those of the header's run have their place already."""
    (tmp_path / "raw").write_bytes(random.Random(5).randbytes(24 * MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", tmp_path / "raw",
        tmp_path / "qcow2")
    data = (tmp_path / "qcow2").read_bytes()
    data += bytes(-len(data) % BLOCK)
    half = len(data) // 2 // BLOCK
    blocks = list(range(len(data) // BLOCK))
    image, start, place = lay(data, [blocks[:half], blocks[half:]], 6)
    first = FileMap.flow(start, 4 * image.size, np.array([[start, image.size - start]], np.int64), "continuity")
    _, found = Search(image, np.array([[0, image.size]], np.int64)).complete(formats()["qcow2"], start, first)
    assert found and all(p == place[f // BLOCK] for f, p in found)


def test_a_run_does_not_go_on_over_a_table_that_belongs_elsewhere(containers: dict[str, bytes]) -> None:
    """A host that packs holes puts the tables right behind the header: they are not in the header's cluster as well."""
    data = containers["qcow2-64k"]
    image, start, place = lay(data, [blocks_with_data(data)], 7)
    first = FileMap.flow(start, len(data), np.array([[start, image.size - start]], np.int64), "continuity")
    current, found = Search(image, np.array([[0, image.size]], np.int64)).complete(formats()["qcow2"], start, first)
    assert len(found) > 2 and all(p == place[f // BLOCK] for f, p in found)
    rows = sorted((p, n) for _, n, p, _, _ in current.rows() if p >= 0)
    assert all(p + n <= q for (p, n), (q, _) in zip(rows, rows[1:], strict=False))


@pytest.mark.parametrize("kind", ["qcow2.l1", "qcow2.l2"])
def test_tables_of_a_qcow2_are_not_taken_for_each_other(kind: str, containers: dict[str, bytes]) -> None:
    """The refcount table names clusters as an L1 does, but none of a copied table; an L2 table names first the cluster
    right behind itself, so one that names what lies behind another is that one."""
    fmt, data = formats()["qcow2"], containers["qcow2-4k"]
    whole = fmt.open(BytesReader(data))
    at = {k: [r.file_offset for r in whole.regions if r.kind == k] for k in ("qcow2.refcount-table", "qcow2.l1",
                                                                            "qcow2.l2")}
    lost = at[kind][-1]
    torn = bytearray(data)
    for p in at[kind]:
        torn[p : p + BLOCK] = b"\xff" * BLOCK
    assert fmt.wants is not None
    want = next(w for w in fmt.wants(BytesReader(torn)) if w.file_offset == lost)
    rivals = at["qcow2.refcount-table"] if kind == "qcow2.l1" else at["qcow2.l2"][:-1]
    assert rivals and all(want.fits(data[p : p + BLOCK]) <= 0 for p in rivals)
    assert want.fits(data[lost : lost + BLOCK]) > 0


SMALL = 40 * MIB
OTHERS = {  # of a guest of 40 MiB: what writes it
    "qcow2-512": ("qcow2", ["-O", "qcow2", "-o", "cluster_size=512"]),
    "qcow2-2k": ("qcow2", ["-O", "qcow2", "-o", "cluster_size=2k"]),
    "cowd": ("cowd", make_cowd),
    "sesparse": ("sesparse", make_sesparse),
    "vdi": ("vdi", make_vdi),
}


def other(name: str, folder: Path) -> tuple[Format, bytes]:
    """A container with data all over its guest, written as OTHERS says."""
    fmt, how = OTHERS[name]
    rng = random.Random(name)
    raw = bytearray(SMALL)
    for at in range(0, SMALL, 48 << 10):
        raw[at : at + 6000] = rng.randbytes(6000)
    (folder / "raw").write_bytes(raw)
    if callable(how):
        how(folder / "raw", folder / name, 5)
    else:
        run("qemu-img", "convert", "-f", "raw", *how, folder / "raw", folder / name)
    data = (folder / name).read_bytes()
    return formats()[fmt], data + bytes(-len(data) % BLOCK)


@pytest.mark.parametrize("name", OTHERS)
def test_a_container_cut_behind_its_head_gets_its_tables_back(name: str, tmp_path: Path) -> None:
    """Its first blocks, then pieces of random length in another order. Tables that lie between sectors of data state
    their place; maps and tables with a region of their own are found by what they may hold."""
    fmt, data = other(name, tmp_path)
    whole = fmt.open(BytesReader(data))
    head = {"qcow2-512": 8, "qcow2-2k": 2, "cowd": 5, "sesparse": 1, "vdi": 1}[name]
    rng, at, pieces = random.Random(2), head, list[list[int]]()
    tables = tables_of(whole)
    while at < len(data) // BLOCK:
        end = at + rng.randrange(20, 600)
        while end in tables and end - 1 in tables:  # no table is cut
            end += 1
        pieces.append(list(range(at, min(end, len(data) // BLOCK))))
        at = end
    rng.shuffle(pieces)
    image, start, place = lay(data, [list(range(head)), *pieces], 4)
    first = FileMap.build([(0, min(image.size - start, len(data)), start, GUESSED, "continuity")]).resized(len(data))
    search = Search(image, np.array([[0, image.size]], np.int64))
    found, tables = search.complete(fmt, start, first)
    assert tables and all(place[f // BLOCK] == p for f, p in tables)
    assert maps(fmt, image, first) != maps(fmt, BytesReader(data), None), "there is something to look for"
    assert maps(fmt, image, found) == maps(fmt, BytesReader(data), None)


def test_a_table_behind_its_place_is_not_taken_for_a_later_block_of_itself(tmp_path: Path) -> None:
    """An L2 of a cluster of 2 MiB has 512 blocks, of which a small disk needs one: what a run that jumped a little has
    behind that may be the table."""
    (tmp_path / "raw").write_bytes(random.Random(2).randbytes(6 * MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=2M", tmp_path / "raw",
        tmp_path / "qcow2")
    fmt, data = formats()["qcow2"], (tmp_path / "qcow2").read_bytes()
    data += bytes(-len(data) % BLOCK)
    (table,) = [r.file_offset // BLOCK for r in fmt.open(BytesReader(data)).regions if r.kind == "qcow2.l2"]
    blocks = list(range(len(data) // BLOCK))
    image, start, place = lay(data, [blocks[:table], blocks[table:]], 6)
    first = FileMap.build([(0, image.size - start, start, GUESSED, "continuity")]).resized(len(data))
    current, found = Search(image, np.array([[0, image.size]], np.int64)).complete(fmt, start, first)
    assert (table * BLOCK, place[table]) in found
    assert maps(fmt, image, current) == maps(fmt, BytesReader(data), None)


def test_zeros_are_no_table_that_a_directory_names(tmp_path: Path) -> None:
    """An SESparse that breaks before its tables, where another file's zeros follow: else its guest would be empty."""
    fmt, data = other("sesparse", tmp_path)
    whole = fmt.open(BytesReader(data))
    begin = min(r.file_offset for r in whole.regions if r.kind == "sesparse.gt") // BLOCK
    blocks, more = list(range(len(data) // BLOCK)), 600
    zeros = [len(blocks) + k for k in range(more)]
    image, start, place = lay(data + bytes(more * BLOCK), [blocks[:begin] + zeros, blocks[begin:]], 4)
    first = FileMap.build([(0, image.size - start, start, GUESSED, "continuity")]).resized(len(data))
    search = Search(image, np.array([[0, image.size]], np.int64))
    assert _lacks(fmt, image, first, search)
    current, found = search.complete(fmt, start, first)
    assert found and all(place[f // BLOCK] == p for f, p in found)
    assert maps(fmt, image, current) == maps(fmt, BytesReader(data), None)


def test_of_a_table_that_is_cut_only_what_says_something_is_placed(tmp_path: Path) -> None:
    """What lies behind the break tells by its lowest entry where the table begins; before it lie zeros."""
    fmt, data = other("cowd", tmp_path)
    whole = fmt.open(BytesReader(data))
    tables = [r.file_offset for r in whole.regions if r.kind == "cowd.gt"]
    at = {t: np.frombuffer(data[t : t + 16384], "<u4") for t in tables}
    table = next(t for t in tables[1:] if int(np.argmin(np.where(at[t] > 0, at[t], 1 << 30))) >= 2048)
    cut = table // BLOCK + 2
    blocks, zeros = list(range(len(data) // BLOCK)), list(range(len(data) // BLOCK, len(data) // BLOCK + 4))
    image, start, place = lay(data + bytes(4 * BLOCK), [blocks[:cut], zeros + blocks[cut:]], 4)
    first = FileMap.build([(0, image.size - start, start, GUESSED, "continuity")]).resized(len(data))
    _, found = Search(image, np.array([[0, image.size]], np.int64)).complete(fmt, start, first)
    assert all(place[f // BLOCK] == p for f, p in found)
    assert {cut, cut + 1} <= {f // BLOCK for f, _ in found}


def test_tables_and_back_map_cut_anywhere_tell_each_others_places(tmp_path: Path) -> None:
    """Grains in random order, so that nothing tells one table from the next but the back map; each third block of both
    begins a piece. Where another extent's tables lie on the image too, what either could be is not taken."""
    fmt, data = other("sesparse", tmp_path)
    whole = fmt.open(BytesReader(data))
    cut = {b for r in whole.regions if r.kind in ("sesparse.gt", "sesparse.back-map")
           for b in range(r.file_offset // BLOCK, -(-(r.file_offset + r.length) // BLOCK), 3)}
    edges = sorted({1, len(data) // BLOCK, *(b for b in cut if b > 1)})
    pieces = [list(range(a, b)) for a, b in zip(edges, edges[1:], strict=False)]
    random.Random(2).shuffle(pieces)
    image, start, place = lay(data, [[0], *pieces], 4)
    first = FileMap.build([(0, min(image.size - start, len(data)), start, GUESSED, "continuity")]).resized(len(data))
    found, tables = Search(image, np.array([[0, image.size]], np.int64)).complete(fmt, start, first)
    assert maps(fmt, image, first) != maps(fmt, BytesReader(data), None), "there is something to look for"
    assert maps(fmt, image, found) == maps(fmt, BytesReader(data), None)
    assert all(place[f // BLOCK] == p for f, p in tables)
    make_sesparse(tmp_path / "raw", tmp_path / "second", 6)
    both = BytesReader(image.read(0, image.size) + (tmp_path / "second").read_bytes()[2 * MIB : 7 * MIB])
    _, tables = Search(both, np.array([[0, both.size]], np.int64)).complete(fmt, start, first)
    assert all(place[f // BLOCK] == p for f, p in tables)


def test_rival_tables_that_state_one_place_are_told_by_the_others(tmp_path: Path) -> None:
    """A stale copy of a table lies elsewhere on the image, where nothing else of the container does."""
    fmt, data = other("qcow2-512", tmp_path)
    whole = fmt.open(BytesReader(data))
    copied = [r.file_offset // BLOCK for r in whole.regions if r.kind == "qcow2.l2"][40]
    blocks = list(range(len(data) // BLOCK))
    image, start, place = lay(data, [blocks[:8], [copied], blocks[8:]], 4)
    assert place[copied] > place[8], "the copy that is laid last is the one in the run"
    first = FileMap.build([(0, image.size - start, start, GUESSED, "continuity")]).resized(len(data))
    found, _ = Search(image, np.array([[0, image.size]], np.int64)).complete(fmt, start, first)
    assert found.cut(copied * BLOCK, 1)[0][2] == place[copied]


def by_turns(data: bytes, writers: int) -> bytes:
    """A qcow2 with clusters of 512 bytes as requests in flight leave it: a table for each, then the data of each."""
    out = bytearray(data)
    entries, l1_at = struct.unpack_from(">IQ", data, 36)
    offset = 0x00FFFFFFFFFFFE00
    l1 = [e & offset for e in struct.unpack_from(f">{entries}Q", data, l1_at)]
    l2 = {i: [e & offset for e in struct.unpack_from(">64Q", data, t)] for i, t in enumerate(l1) if t}
    rising = sorted(l2, key=lambda i: l1[i])
    for group in (rising[k : k + writers] for k in range(0, len(rising), writers)):
        old = [*(l1[i] for i in group), *(e for i in group for e in l2[i] if e)]
        new = dict(zip(old, sorted(old), strict=True))
        for at, to in new.items():
            out[to : to + 512] = data[at : at + 512]
        for i in group:
            struct.pack_into(">Q", out, l1_at + 8 * i, new[l1[i]] | 1 << 63)
            struct.pack_into(">64Q", out, new[l1[i]], *(new[e] | 1 << 63 if e else 0 for e in l2[i]))
    return bytes(out)


def test_tables_that_writes_in_flight_parted_from_what_they_name(tmp_path: Path) -> None:
    """Of several places that such a table may have, that at the distance of the others of its piece is its own."""
    (tmp_path / "raw").write_bytes(random.Random(11).randbytes(4 * MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=512", "-m", "1", tmp_path / "raw",
        tmp_path / "qcow2")
    fmt, data = formats()["qcow2"], by_turns((tmp_path / "qcow2").read_bytes(), 6)
    data += bytes(-len(data) % BLOCK)
    whole = fmt.open(BytesReader(data))
    assert not any((g.map.state == LOST).any() for g in whole.guests)
    blocks = list(range(len(data) // BLOCK))
    pieces = [blocks[:150], blocks[150:400], blocks[400:650], blocks[650:]]
    image, start, place = lay(data, pieces, 5)
    first = FileMap.build([(0, image.size - start, start, GUESSED, "continuity")]).resized(len(data))
    _, tables = Search(image, np.array([[0, image.size]], np.int64)).complete(fmt, start, first)
    wanted = {r.file_offset // BLOCK for r in whole.regions if r.kind == "qcow2.l2"}
    assert all(place[f // BLOCK] == p for f, p in tables)
    assert len({f // BLOCK for f, _ in tables} & wanted) >= 0.9 * len(wanted)


def test_a_tables_later_block_is_not_taken_for_its_first(tmp_path: Path) -> None:
    """Where the guest's end was written first, it is a later block that names what lies right behind the table."""
    at = [40 * MIB, *range(0, 6 * MIB, MIB), *range(41 * MIB, 46 * MIB, MIB)]
    fmt, path = formats()["qed"], tmp_path / "qed"
    run("qemu-img", "create", "-q", "-f", "qed", path, str(60 * MIB))
    run("qemu-io", "-f", "qed", *[word for a in at for word in ("-c", f"write -P 7 {a} 4k")], path)
    data = path.read_bytes()
    data += bytes(-len(data) % BLOCK)
    whole = fmt.open(BytesReader(data))
    first_table = min(r.file_offset for r in whole.regions if r.kind.endswith("l2")) // BLOCK
    blocks = list(range(len(data) // BLOCK))
    image, start, place = lay(data, [blocks[:first_table], blocks[first_table:]], 3)
    first = FileMap.flow(start, 4 * image.size, np.array([[start, image.size - start]], np.int64), "continuity")
    _, found = Search(image, np.array([[0, image.size]], np.int64)).complete(fmt, start, first)
    assert found and all(p == place[f // BLOCK] for f, p in found)


def test_tables_without_a_header_are_left_for_a_header_without_tables(tmp_path: Path) -> None:
    """A VMDK that breaks behind its first block: its tables would make a container of their own."""
    (tmp_path / "raw").write_bytes(random.Random(3).randbytes(6 * MIB) + bytes(28 * MIB) + b"end" * MIB)
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicSparse", tmp_path / "raw",
        tmp_path / "vmdk")
    data = (tmp_path / "vmdk").read_bytes()
    data += bytes(-len(data) % BLOCK)
    image, start, _ = lay(data, [list(range(1, len(data) // BLOCK)), [0]], 9)
    (tmp_path / "image").write_bytes(image.read(0, image.size))
    recover([tmp_path / "image"], tmp_path / "case")
    assert [d["disk_id"] for d in open_case(tmp_path / "case").disks()] == [f"vmdk-{start:x}"]
    disk = next((tmp_path / "case" / "disks").glob("*.vmdk"))
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", tmp_path / "raw", disk)


def test_a_spare_table_pins_nothing(containers: dict[str, bytes]) -> None:
    """Blocks of refcounts look alike, and a qcow2 is read without them: what was found is read, but proves no place."""
    fmt, data = formats()["qcow2"], containers["qcow2-4k"]
    whole = fmt.open(BytesReader(data))
    spare = {r.file_offset for r in whole.regions if r.kind == "qcow2.refcount-block"}
    image, start, place = lay(data, in_pieces(data, whole, 3), 3)
    first = FileMap.build([(0, image.size - start, start, GUESSED, "continuity"),
                           (image.size - start, len(data), -1, MISSING, "image-end")])
    found, tables = Search(image, np.array([[0, image.size]], np.int64)).complete(fmt, start, first)
    moved = {f for f in spare if place[f // BLOCK] - f != start}
    assert moved and not moved & {f for f, _ in tables}
    assert {f for f, _ in tables} & {r.file_offset for r in whole.regions if r.kind == "qcow2.l2"}
    assert all(image.read(found.cut(f, 1)[0][2], BLOCK) == data[f : f + BLOCK] for f in moved)


def test_a_run_that_tells_its_disk_lacks_no_tables_that_state_their_place(tmp_path: Path) -> None:
    """Such tables are looked for over the whole image, and found too often: only where a run does not tell its disk."""
    (tmp_path / "raw").write_bytes(random.Random(8).randbytes(3 * MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=512", tmp_path / "raw",
        tmp_path / "qcow2")
    data = (tmp_path / "qcow2").read_bytes()
    noise = random.Random(9).randbytes(64 * BLOCK)
    half = len(data) // 2 // BLOCK * BLOCK
    fmt = formats()["qcow2"]
    assert fmt.stated is not None

    def lacks(file: bytes) -> bool:
        image = BytesReader(file)
        first = FileMap.build([(0, len(file), 0, GUESSED, "continuity")])
        return _lacks(fmt, image, first, Search(image, np.array([[0, len(file)]], np.int64)))

    assert not lacks(data + noise)
    assert lacks(data[:half] + noise + data[half:])


def test_a_container_is_asked_once_what_it_lacks_through_one_map() -> None:
    """Whether it lacks any, what is its own, and what is before the next header are asked through the same map."""
    asked: list[int] = []

    def wants(reader: Reader) -> list[Want]:
        asked.append(reader.read(0, 1)[0])
        return []

    def none(reader: Reader) -> Container:
        raise Damaged("none")

    fmt = Format("made", "made", (), none, wants=wants)
    image = BytesReader(b"\1" * BLOCK + b"\2" * BLOCK)
    search = Search(image, np.array([[0, 2 * BLOCK]], np.int64))
    maps = [FileMap.build([(0, BLOCK, at, GUESSED, rule)]) for at, rule in ((0, "a"), (0, "b"), (BLOCK, "a"))]
    for m in maps:
        search.complete_before(fmt, 0, m, BLOCK)
        search.complete(fmt, 0, m)
    assert asked == [1, 2]


def test_what_names_the_place_behind_itself_outweighs_any_number_of_words(containers: dict[str, bytes]) -> None:
    """A table of two clusters, which names the one right behind itself, against a full one of the same file: wherever
    they lie on the image, the first is the one that is wanted there."""
    data = containers["qcow2-4k"]
    fmt = formats()["qcow2"]
    l2 = [r.file_offset for r in fmt.open(BytesReader(data)).regions if r.kind == "qcow2.l2"]
    gone = FileMap.build([(0, l2[3], 0, GUESSED, ""), (l2[3], BLOCK, -1, MISSING, ""),
                          (l2[3] + BLOCK, len(data) - l2[3] - BLOCK, l2[3] + BLOCK, GUESSED, "")])
    assert fmt.wants is not None
    want, = (w for w in fmt.wants(FileView(BytesReader(data), gone)) if w.file_offset == l2[3])
    own = data[l2[3] : l2[3] + BLOCK]
    assert np.count_nonzero(np.frombuffer(own, np.uint64)) == 2
    full = np.arange(1, 513, dtype=np.uint64) * np.uint64(BLOCK) + np.uint64(l2[3] + BLOCK) | np.uint64(1 << 63)
    assert want.fits(full.astype(">u8").tobytes()) > 0
    assert want.fits(own) >= want.fits(full.astype(">u8").tobytes()) + STRONG
