"""Where a container's tables are lost, its units are where the format says that they are: on files of QEMU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import run
from tests.host.written import needs
from tests.makers import vhd, vma, xva
from vmcarve.disk import VirtualDisk
from vmcarve.filemap import FileMap, FileView
from vmcarve.model import DATA, GUESSED, HOLE, MISSING, Reader
from vmcarve.registry import formats
from vmcarve.source import BytesReader

pytestmark = needs("qemu-img")

MIB = 1 << 20
DRIVERS = {"qcow1": "qcow"}
SIZE = 24 * MIB
MAKES = [
    ("vdi", ""), ("vdi", "static=on"), ("vmdk", "subformat=monolithicSparse"), ("vhd", ""),
    ("vhd", "subformat=fixed,force_size=on"), ("vhdx", ""), ("vhdx", "block_size=1M"), ("qcow2", ""),
    ("qcow2", "cluster_size=4k"), ("qcow2", "cluster_size=512"), ("qcow1", ""), ("qed", ""), ("parallels", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), MAKES)
def test_every_unit_of_the_guest_is_among_those_that_the_format_tells(name: str, options: str, tmp_path: Path) -> None:
    """Without its first sector the file still shows each 4 KiB of the guest, at the guest's place in its unit."""
    guest = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    guest.reshape(-1, MIB)[5:9] = 0  # what is empty is left out
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.write_bytes(guest.tobytes())
    fmt = formats()[name]
    driver = fmt.qemu_name or name
    run("qemu-img", "convert", "-f", "raw", "-O", driver, *(("-o", options) if options else ()), raw, out)
    content = bytearray(out.read_bytes())
    content[:512] = bytes(512)
    assert fmt.stow is not None
    wanted = {block.tobytes(): n * 4096 for n, block in enumerate(guest.reshape(-1, 4096)) if block.any()}
    assert max(_told(BytesReader(bytes(content)), stowed, wanted)
               for stowed in fmt.stow(BytesReader(bytes(content)))) >= len(wanted) - ("fixed" in options)


def test_extended_tables_say_which_subclusters_are_there(tmp_path: Path) -> None:
    """A qcow2 with extended L2 entries without header and L1: what its L2 names is one unit, with the holes in its
    clusters."""
    guest = np.random.default_rng(1).integers(0, 256, (SIZE // 4096, 4096), np.uint8)
    guest[::5] = 0
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.write_bytes(guest.tobytes())
    options = "extended_l2=on,cluster_size=128k"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-S", "4k", "-o", options, raw, out)
    content = out.read_bytes()
    at = int.from_bytes(content[40:48], "big")
    lost = BytesReader(bytes(at + 4096) + content[at + 4096 :])
    stow = formats()["qcow2"].stow
    assert stow is not None
    stowed = max(stow(lost), key=lambda s: s.unit)
    assert stowed.unit == 256 * (128 << 10)
    disk = VirtualDisk(lost, stowed.map)
    assert disk.read(0, SIZE) == guest.tobytes()
    assert (stowed.map.state == HOLE).sum() > 1000


@pytest.mark.parametrize("silence", [(), (4, 9)])
def test_chunks_of_an_xva_say_which_they_are_though_none_is_whole(silence: tuple[int, ...], tmp_path: Path) -> None:
    """Every third 64 KiB are encrypted: no hash agrees, and a header or the one of its hash is left of most chunks."""
    rng = np.random.default_rng(1)
    guest = rng.integers(0, 256, (24, MIB), np.uint8)
    guest[14:17] = 0
    out = tmp_path / "out"
    xva.write_xva(out, {"Ref:7": guest.tobytes()}, silence=silence)
    content = bytearray(out.read_bytes())
    stow = formats()["xva"].stow
    assert stow is not None
    left = np.ones(len(content), np.bool_)
    for at in range(0, len(content), 3 * 65536):
        content[at : at + 65536] = rng.integers(0, 256, len(content[at : at + 65536]), np.uint8).tobytes()
        left[at : at + 65536] = False
    (stowed,) = stow(BytesReader(bytes(content)))
    assert stowed.in_order
    m = stowed.map
    known = wrong = 0
    for g, n, f, state in zip(m.guest_offset.tolist(), m.length.tolist(), m.file_offset.tolist(), m.state.tolist(),
                              strict=True):
        if state == DATA:
            there = np.frombuffer(bytes(content[f : f + n]), np.uint8)
            same = there == guest.ravel()[g : g + n]
            known += int(same.sum())
            wrong += int((~same & left[f : f + n]).sum())
    assert wrong == 0
    assert known > 0.8 * 21 * MIB * 2 / 3


def test_grains_of_a_stream_say_which_they_are(tmp_path: Path) -> None:
    """Every third 64 KiB of a stream-optimized VMDK are encrypted: whole grains are told, and nothing else."""
    rng = np.random.default_rng(1)
    guest = rng.integers(0, 4, SIZE, np.uint8).tobytes()
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.write_bytes(guest)
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, out)
    content = bytearray(out.read_bytes())
    for at in range(0, len(content), 3 * 65536):
        content[at : at + 65536] = rng.integers(0, 256, len(content[at : at + 65536]), np.uint8).tobytes()
    stow = formats()["vmdk"].stow
    assert stow is not None
    first = next(iter(stow(BytesReader(bytes(content)))))
    assert first.in_order
    units = VirtualDisk(BytesReader(bytes(content)), first.map)
    known = 0
    for at in range(0, units.size, 65536):
        if not units.missing(at, 65536):
            assert units.read(at, 65536) == guest[at : at + 65536]
            known += 65536
    assert known > SIZE // 3


@pytest.mark.parametrize("in_order", [True, False])
def test_extents_of_a_vma_tell_their_blocks_without_the_header(in_order: bool, tmp_path: Path) -> None:
    """The first MiB and the header of an extent are lost: what others name is told, and where clusters run through the
    disk, as a backup writes them, so is what lies between two that are left.
    """
    rng = np.random.default_rng(1)
    guest = rng.integers(0, 256, 24 * MIB, np.uint8).tobytes()
    clusters = [(1, n, guest[n * 65536 : (n + 1) * 65536]) for n in range(len(guest) // 65536)]
    if not in_order:
        clusters = [clusters[n] for n in rng.permutation(len(clusters)).tolist()]
    parts = [vma.extent(bytes(16), clusters[at : at + 59]) for at in range(0, len(clusters), 59)]
    content = bytearray(bytes(12800) + b"".join(parts))
    lost = 12800 + sum(map(len, parts[:3]))
    for at, length in ((0, MIB), (lost, 512)):
        content[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
    stow = formats()["vma"].stow
    assert stow is not None
    (stowed,) = stow(BytesReader(bytes(content)))
    m = stowed.map
    known = 0
    for g, n, f, state in zip(m.guest_offset.tolist(), m.length.tolist(), m.file_offset.tolist(), m.state.tolist(),
                              strict=True):
        skip = max(0, MIB - f)
        if state == DATA and skip < n:
            assert content[f + skip : f + n] == guest[g + skip : g + n]
            known += n - skip
    assert stowed.in_order
    assert known >= len(guest) - (MIB if in_order else 2 * 59 * 65536)


def packed_qcow2(guest: np.ndarray, options: str, folder: Path) -> bytearray:
    raw, out = folder / "raw", folder / "out"
    raw.write_bytes(guest.tobytes())
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, out)
    return bytearray(out.read_bytes())


PACKED = ["compression_type=zlib", "compression_type=zstd", "compression_type=zstd,cluster_size=16k"]


@pytest.mark.parametrize("options", PACKED)
def test_a_table_that_names_streams_covers_its_part_of_the_guest(options: str, tmp_path: Path) -> None:
    """Header and first-level table are lost, and streams amid the file: the others lie where the table has them, and
    what it leaves out is a hole."""
    rng = np.random.default_rng(1)
    guest = rng.integers(0, 4, SIZE, np.uint8).reshape(-1, MIB)
    guest[11] = rng.integers(0, 256, MIB, np.uint8)  # is stored as it is
    guest[5:7] = 0
    content, cluster = packed_qcow2(guest, options, tmp_path), 16384 if "16k" in options else 65536
    for at, length in ((0, 4 * cluster), (2 * MIB, 65536)):
        content[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
    stow = formats()["qcow2"].stow
    assert stow is not None
    first, second, *_ = stow(BytesReader(bytes(content)))
    assert first.unit == 512 * cluster and second.unit == cluster
    disk = VirtualDisk(BytesReader(bytes(content)), first.map)
    data, wanted = np.frombuffer(disk.read(0, SIZE), np.uint8).reshape(-1, cluster), guest.reshape(-1, cluster)
    lost = [at // cluster for at in range(0, SIZE, cluster) if disk.missing(at, cluster)]
    assert np.flatnonzero((data != wanted).any(axis=1)).tolist() == lost
    assert 0 < len(lost) <= (65536 / cluster + 2) * (SIZE - 3 * MIB) / (len(content) - MIB)
    assert first.map.state[np.searchsorted(first.map.guest_offset, 5 * MIB, "right") - 1] == HOLE


@pytest.mark.parametrize("options", PACKED)
def test_streams_and_the_plain_clusters_between_them_are_units_where_the_tables_are_lost(options: str, tmp_path: Path
                                                                                         ) -> None:
    """Compressed clusters follow each other to the byte; behind a part that is encrypted the next ones are found."""
    rng = np.random.default_rng(1)
    guest = rng.integers(0, 4, SIZE, np.uint8).reshape(-1, MIB)
    guest[11] = rng.integers(0, 256, MIB, np.uint8)  # is stored as it is
    content = packed_qcow2(guest, options, tmp_path)
    for at, length in ((0, 8 * 65536), (3 * MIB, 65536)):
        content[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
    stow = formats()["qcow2"].stow
    assert stow is not None
    wanted = {block.tobytes(): n * 4096 for n, block in enumerate(guest.reshape(-1, 4096))}
    first = next(iter(stow(BytesReader(bytes(content)))))
    assert first.unit == (16384 if "16k" in options else 65536)
    lost = (9 * 65536 + 4 * first.unit) * (SIZE - MIB) / (len(content) - MIB)
    assert _told(BytesReader(bytes(content)), first, wanted) >= len(wanted) - lost // 4096


@pytest.mark.parametrize("lost", [4096, 8192])
def test_streams_of_a_qcow_begin_at_sectors(lost: int, tmp_path: Path) -> None:
    """Of qcow 1, whose clusters begin at the sector behind the file's end: one by one, and as the tables have them that
    are left, from the first or the second on."""
    rng = np.random.default_rng(1)
    guest = rng.integers(0, 4, 8 * MIB, np.uint8).reshape(-1, MIB)
    guest[5] = rng.integers(0, 256, MIB, np.uint8)  # is stored as it is
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.write_bytes(guest.tobytes())
    run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow", raw, out, check=False)  # QEMU 7.2 ends with 1
    content = bytearray(out.read_bytes())
    content[:lost] = rng.integers(0, 256, lost, np.uint8).tobytes()
    stow = formats()["qcow1"].stow
    assert stow is not None
    wanted = {block.tobytes(): n * 4096 for n, block in enumerate(guest.reshape(-1, 4096))}
    tables, single, *_ = stow(BytesReader(bytes(content)))
    assert (tables.unit, single.unit) == (2 * MIB, 4096)
    assert _told(BytesReader(bytes(content)), tables, wanted) == (8 * MIB - (lost > 4096) * 2 * MIB) // 4096
    assert _told(BytesReader(bytes(content)), single, wanted) == len(wanted)


@pytest.mark.parametrize("style", [vhd.WINDOWS, vhd.TAPDISK])
@pytest.mark.parametrize("footer", [True, False])
def test_blocks_of_a_vhd_lie_at_pages_whatever_is_before_its_footer(style: vhd.Style, footer: bool, tmp_path: Path
                                                                     ) -> None:
    """Windows ends the footer at a page as well, XenServer does not, and the footer may be lost."""
    guest = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    out = tmp_path / "out"
    vhd.write(out, style, guest.tobytes(), 1, uuid=bytes(16))
    content = bytearray(out.read_bytes())
    content[:4096] = bytes(4096)
    if not footer:
        content[-512:] = np.random.default_rng(3).integers(0, 256, 512, np.uint8).tobytes()
    wanted = {block.tobytes(): n * 4096 for n, block in enumerate(guest.reshape(-1, 4096))}
    stow = formats()["vhd"].stow
    assert stow is not None
    assert max(_told(BytesReader(bytes(content)), stowed, wanted)
               for stowed in stow(BytesReader(bytes(content)))) == len(wanted)


def _told(file: Reader, stowed: object, wanted: dict[bytes, int]) -> int:
    """How many of the guest's blocks the units have, each at its place in its unit."""
    unit, guest_map = stowed.unit, stowed.map  # type: ignore[attr-defined]
    units = VirtualDisk(file, guest_map)
    found = 0
    for at in range(0, units.size // 4096 * 4096, 4096):
        place = wanted.get(units.read(at, 4096))
        found += place is not None and place % unit == at % unit
    return found


@pytest.mark.parametrize("name", sorted(n for n, f in formats().items() if f.stow is not None))
def test_hostile_files_end(name: str) -> None:
    """Empty, short and random files give units inside the file, or none."""
    stow = formats()[name].stow
    assert stow is not None
    noise = np.random.default_rng(2).integers(0, 256, 3 * MIB + 777, np.uint8).tobytes()
    for content in (b"", b"x" * 100, bytes(2 * MIB), noise, b"\xff" * (2 * MIB)):
        for stowed in stow(BytesReader(content)):
            m = stowed.map
            data = m.state == DATA
            assert (m.file_offset[data] + m.stored[data] <= len(content)).all()
            assert stowed.unit % 512 == 0


def interleaved(writes: list[list[int]]) -> tuple[bytes, dict[int, int], dict[int, int]]:
    """A qcow2 of 512-byte clusters without header, as QEMU gives clusters out to writes that go on in turns: the table
    of the next span right behind the clusters of the one before. With file offsets of the tables, and of what they
    name."""
    out = bytearray(8 * 512)
    tables: dict[int, int] = {}
    begins: dict[int, int] = {}
    rng = np.random.default_rng(1)

    def table(span: int) -> None:
        tables[span] = len(out)
        out.extend(bytes(512))

    for turn in range(max(len(w) for w in writes)):
        for write in writes:
            if turn >= len(write):
                continue
            span = write[turn]
            if span not in tables:
                table(span)
            begins[span] = len(out)
            entries = np.arange(begins[span], begins[span] + 64 * 512, 512).astype(np.uint64) | np.uint64(1 << 63)
            out[tables[span] : tables[span] + 512] = entries.astype(">u8").tobytes()
            out.extend(rng.integers(0, 256, 64 * 512, np.uint8).tobytes())
            if turn + 1 < len(write):
                table(write[turn + 1])
    return bytes(out), tables, begins


def units_of(view: Reader) -> tuple[list[int], np.ndarray]:
    """The file offsets of the units of a qcow2 of 512-byte clusters, -1 what is lost, and their links."""
    stow = formats()["qcow2"].stow
    assert stow is not None
    stowed = next(s for s in stow(view) if s.unit == 64 * 512)
    m = stowed.map
    guest = np.arange(int(m.length.sum()) // stowed.unit) * stowed.unit
    row = np.searchsorted(m.guest_offset, guest, "right") - 1
    assert stowed.links is not None
    return np.where(m.state[row] == DATA, m.file_offset[row] + guest - m.guest_offset[row], -1).tolist(), stowed.links


def test_tables_behind_the_clusters_of_others_say_what_follows_what() -> None:
    """Two writes in turns: each unit is linked to the next of its own write, the last shows that nothing follows."""
    content, _, begins = interleaved([list(range(20, 28)), list(range(40, 48))])
    places, links = units_of(BytesReader(content))
    which = [next(n for n, at in begins.items() if at == place) for place in places]
    linked = {(which[i], which[j]) for i, j in enumerate(links[:, 0].tolist()) if j >= 0}
    assert linked == {(n, n + 1) for n in [*range(20, 27), *range(40, 47)]}
    assert [links[which.index(n), 0] for n in (27, 47)] == [-1, -2]  # behind the last one the file ends
    assert links[which.index(21), 1] == which.index(20)


def test_what_a_lost_table_covered_is_a_unit_between_the_others() -> None:
    """A table is overwritten: the clusters that nothing names lie at their place in the order; where those of two such
    lie side by side it is not told which they are, but that there are two."""
    content, tables, begins = interleaved([list(range(20, 28)), list(range(40, 48))])

    def without(*missing: int) -> list[int]:
        rows: list[tuple[int, int, int, str, str]] = []
        at = 0
        for low in [*missing, len(content)]:
            rows += [(at, low - at, at, GUESSED, ""), (low, 512 if low < len(content) else 0, -1, MISSING, "")]
            at = low + 512
        return units_of(FileView(BytesReader(content), FileMap.build(rows)))[0]

    whole = sorted(begins.values())
    assert without() == without(tables[24]) == whole
    beside = {begins[24], begins[44]}
    assert without(tables[24], tables[44], tables[25]) == [-1 if place in beside else place for place in whole]
