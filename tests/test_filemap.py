"""FileMap and VirtualDisk: the maps between image, container and guest, against naive byte-by-byte models."""

from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcarve.disk import VirtualDisk
from vmcarve.filemap import FileMap, FileView
from vmcarve.model import DATA, DEFLATE, HOLE, LOST, PLAIN, UNALLOCATED, GuestMap, HostFile
from vmcarve.source import BytesReader

IMAGE = bytes(range(1, 251)) * 40


def naive(file_map: FileMap, patches: list[tuple[int, bytes]] = []) -> bytes:  # noqa: B006
    out = bytearray()
    for _, n, p, _, _ in file_map.rows():
        out += IMAGE[p : p + n] if p >= 0 else bytes(n)
    for at, data in patches:
        out[at : at + len(data)] = data
    return bytes(out)


rows = st.lists(st.tuples(st.integers(1, 90), st.integers(-1, 9000)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(rows, st.lists(st.tuples(st.integers(0, 600), st.integers(0, 400)), min_size=1, max_size=20))
def test_a_view_reads_what_the_map_says(parts: list[tuple[int, int]], reads: list[tuple[int, int]]) -> None:
    """Any read through a map equals the naive concatenation of its rows, whatever was read of the view before."""
    at, build = 0, []
    for n, p in parts:
        build.append((at, n, p, "guessed" if p >= 0 else "zero", "test"))
        at += n
    file_map = FileMap.build(build)
    whole = naive(file_map)
    view = FileView(BytesReader(IMAGE), file_map)
    for offset, length in reads:
        assert view.read(offset, length) == whole[offset : offset + length]
        pieces = file_map.cut(offset, length)
        assert sum(n for _, n, *_ in pieces) == max(0, min(length, file_map.size - offset))


@settings(max_examples=200, deadline=None)
@given(rows, st.lists(st.tuples(st.integers(0, 600), st.integers(0, 400)), min_size=1, max_size=20))
def test_a_view_lacks_what_the_map_does(parts: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    """A range is missing when a byte of it is, or lies behind the end; whatever was asked of the view before."""
    at, build, lacking = 0, [], []
    for number, (n, p) in enumerate(parts):
        lost = p < 0 and number % 2 == 0
        build.append((at, n, p, "guessed" if p >= 0 else "missing" if lost else "zero", "test"))
        lacking += [lost] * n
        at += n
    view = FileView(BytesReader(IMAGE), FileMap.build(build))
    for offset, length in asked:
        assert view.missing(offset, length) == (offset + length > at or any(lacking[offset : offset + length]))


def test_host_file_gaps_are_zero_only_when_the_map_is_complete() -> None:
    """A gap in a complete map is a hole; in a map with lost parts nobody knows what was there."""
    runs = np.array([[0, 100, 50, 0], [80, 300, 20, 0]], np.int64)
    sure = FileMap.from_host_file(HostFile("i", "", 120, True, runs, "t"), 120)
    unsure = FileMap.from_host_file(HostFile("i", "", 120, True, runs, "t", complete=False), 120)
    assert [r[3] for r in sure.rows()] == ["supported", "zero", "supported", "zero"]
    assert [r[3] for r in unsure.rows()] == ["supported", "missing", "supported", "missing"]


def test_overlapping_host_runs_give_no_byte_twice() -> None:
    """Of two rows that claim the same file bytes the first stands."""
    runs = np.array([[0, 100, 50, 0], [30, 300, 40, 0]], np.int64)
    got = FileMap.from_host_file(HostFile("i", "", 70, True, runs, "t"), 70)
    assert [(f, n, p) for f, n, p, _, _ in got.rows()] == [(0, 50, 100), (50, 20, 320)]


def test_flow_goes_around_what_is_in_use() -> None:
    """A container that flows through free space skips the blocks that others hold, in image order."""
    free = np.array([[0, 100], [150, 50], [300, 1000]], np.int64)
    got = FileMap.flow(20, 200, free)
    assert [(f, n, p) for f, n, p, _, _ in got.rows()] == [(0, 80, 20), (80, 50, 150), (130, 70, 300)]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_disk_reads_what_its_map_says(data: st.DataObject) -> None:
    """Plain, compressed, zero, lost and parent runs read as a naive model of them, at every place and length."""
    container = bytearray(IMAGE)
    parent = bytes(range(250, 0, -1)) * 20
    guest, runs, at = bytearray(), [], 0
    for _ in range(data.draw(st.integers(1, 8))):
        n = data.draw(st.integers(1, 120))
        state = data.draw(st.sampled_from([DATA, DATA, HOLE, LOST, UNALLOCATED]))
        f, encoding, stored = -1, PLAIN, n
        if state == DATA and data.draw(st.booleans()):
            plain = bytes([at % 251]) * n
            c = zlib.compressobj(wbits=-15)
            packed = c.compress(plain) + c.flush()
            f, encoding, stored = len(container), DEFLATE, len(packed)
            container += packed
            guest += plain
        elif state == DATA:
            f = data.draw(st.integers(0, len(IMAGE) - n))
            guest += container[f : f + n]
        else:
            guest += parent[at : at + n] if state == UNALLOCATED else bytes(n)
        runs.append((at, n, state, f, encoding, stored))
        at += n
    disk = VirtualDisk(BytesReader(bytes(container)), GuestMap.build(*zip(*runs, strict=True)), BytesReader(parent))
    assert disk.size == len(guest)
    offset = data.draw(st.integers(0, len(guest)))
    length = data.draw(st.integers(0, len(guest)))
    assert disk.read(offset, length) == guest[offset : offset + length]
    stream = disk.stream()
    stream.seek(offset)
    assert stream.read(length) == guest[offset : offset + length]
