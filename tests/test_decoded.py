"""Streams are decoded once: who asks again of the same bytes is told; bytes that moved or changed are asked anew."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vmcarve import decoded
from vmcarve.assemble import doubt
from vmcarve.disk import VirtualDisk
from vmcarve.filemap import FileMap, FileView
from vmcarve.model import DATA, GUESSED, PLAIN, ZLIB, Container, GuestDisk, GuestMap
from vmcarve.source import BytesReader

CLUSTER = 4096
COUNT = 40


@pytest.fixture
def stored() -> tuple[bytes, GuestMap]:
    """A file of COUNT streams of which the 8th is broken, behind a plain cluster; and the guest's map."""
    rng = np.random.default_rng(2)
    streams = [zlib.compress(rng.integers(0, 4, CLUSTER, dtype=np.uint8).tobytes()) for _ in range(COUNT)]
    streams[7] = bytes(len(streams[7]))
    at = CLUSTER + np.cumsum([0, *map(len, streams)])
    m = GuestMap.build(np.arange(COUNT + 1) * CLUSTER, np.full(COUNT + 1, CLUSTER), np.full(COUNT + 1, DATA),
                       np.append(at[:-1], 0), np.append(np.full(COUNT, ZLIB), PLAIN),
                       np.append(list(map(len, streams)), CLUSTER))
    return bytes(CLUSTER) + b"".join(streams), m


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the streams that are decoded from now on."""
    seen: list[int] = []
    real = decoded.decode_counted

    def decode(data: bytes, encoding: int, length: int) -> tuple[bytes | None, int]:
        seen.append(len(data))
        return real(data, encoding, length)

    monkeypatch.setattr(decoded, "decode_counted", decode)
    return seen


def test_the_same_bytes_are_decoded_once(stored: tuple[bytes, GuestMap], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a map of other grades, and for a disk that is asked what is missing."""
    data, m = stored
    seen = counted(monkeypatch)
    image = BytesReader(data)
    one = FileMap.build([(0, len(data), 0, GUESSED, "")])
    first = decoded.taken(FileView(image, one), m)
    assert first[7] == -1 and (np.delete(first, 7) == np.delete(m.stored[:-1], 7)).all() and len(seen) == COUNT
    graded = one.graded([(0, CLUSTER, "proven", "x")])
    assert decoded.taken(FileView(image, graded), m).tolist() == first.tolist()
    disk = VirtualDisk(FileView(image, graded), m, sound=decoded.sound(FileView(image, graded), m))
    assert disk.missing(0, disk.size) and not disk.missing(0, 7 * CLUSTER) and not disk.missing(8 * CLUSTER, CLUSTER)
    assert len(seen) == COUNT


def test_bytes_that_are_others_are_decoded_again(stored: tuple[bytes, GuestMap], monkeypatch: pytest.MonkeyPatch
                                                 ) -> None:
    """A stream that is cut, one that lies elsewhere, and one under a patch; the others are not read."""
    data, m = stored
    image = BytesReader(data + data)
    one = FileMap.build([(0, len(data), 0, GUESSED, "")])
    before = decoded.taken(FileView(image, one), m)
    seen = counted(monkeypatch)
    cut, moved, patched = (int(m.file_offset[i]) for i in (3, 10, 20))
    rows = [*one.cut(0, cut + 5), (cut + 5, 3, -1, "missing", "lost"), *one.cut(cut + 8, moved - cut - 8),
            (moved, int(m.stored[10]), moved + len(data), GUESSED, ""),
            *one.cut(moved + int(m.stored[10]), len(data) - moved - int(m.stored[10]))]
    view = FileView(image, FileMap.build(rows), [(patched, b"\xff" * 8)])
    after = decoded.taken(view, m)
    assert sorted(seen) == sorted(int(m.stored[i]) for i in (3, 10, 20))
    assert np.flatnonzero(after != before).tolist() == [3, 20]
    assert after[3] == after[20] == -1


def test_streams_are_decoded_ahead(stored: tuple[bytes, GuestMap], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks a guest whether its bytes are its own finds its streams decoded; where none are, nothing is started."""
    data, m = stored
    seen = counted(monkeypatch)
    image, file_map = BytesReader(data), FileMap.build([(0, len(data), 0, GUESSED, "")])
    container = Container("qcow2", "", len(data), [GuestDisk(len(m) * CLUSTER, m)], extension="qcow2")
    plain = Container("raw", "", CLUSTER, [GuestDisk(CLUSTER, GuestMap.flat(CLUSTER))], extension="raw")
    with ThreadPoolExecutor(1) as pool:
        waiting = doubt.ahead(pool, image, container, file_map)
        assert waiting is not None
        waiting.result()
        assert len(seen) == COUNT
        assert doubt.ahead(pool, image, plain, file_map) is None
    assert not doubt.contradicted(image, container, file_map)
    assert len(seen) == COUNT
