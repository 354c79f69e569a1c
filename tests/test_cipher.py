"""Files that begin with ciphertext: where that is seen to end, and what is said of the rest."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import run
from tests.host.written import needs
from tests.test_headless import deleted
from vmcarve.assemble.cipher import Strides, even, lost_end, opening, without_ciphertext
from vmcarve.assemble.host_files import host_files
from vmcarve.assemble.run import _format_rows, _guest_places
from vmcarve.filemap import FileMap, FileView
from vmcarve.model import GUESSED, MISSING, SUPPORTED, ZERO
from vmcarve.source import BytesReader

KIB = 1 << 10
MIB = 1 << 20
WORDS = " ".join(str(n * n) for n in range(400_000)).encode()


def test_random_bytes_are_even_and_guests_are_not() -> None:
    """Of 16384 random blocks none is taken for a guest's, of text, numbers and code-like bytes none for random."""
    noise = np.random.default_rng(1).integers(0, 256, (16384, 4096), np.uint8)
    assert even(noise).all()
    halved = (noise.ravel()[:MIB] & 0x7F).astype(np.uint8)
    for content in (np.frombuffer(WORDS, np.uint8), np.arange(MIB).astype("<u4").view(np.uint8), halved):
        assert not even(content[: len(content) // 4096 * 4096].reshape(-1, 4096)).any()


@pytest.mark.parametrize("length", [64 * KIB, MIB, 3 * MIB, 5 * MIB, MIB + 20 * KIB])
def test_ciphertext_ends_where_something_else_begins(length: int) -> None:
    """What is surely of it is the largest power of two, of an odd length nothing: even bytes of the guest followed.

    A few blocks of it are no sign, and all of a file is no part.
    """
    content = random.Random(1).randbytes(length) + WORDS[:MIB]
    assert opening(BytesReader(content)) == length
    assert opening(BytesReader(content[length - 12 * KIB :])) == 0
    assert opening(BytesReader(WORDS[:MIB])) == opening(BytesReader(b"")) == 0
    whole = FileMap.build([(0, len(content), 0, SUPPORTED, "")])
    found, is_so = without_ciphertext(BytesReader(content), whole)
    sure = 0 if length % (64 * KIB) else 1 << length.bit_length() - 1
    assert is_so
    assert [row[:4] for row in found.rows()] == [*([(0, sure, -1, MISSING)] if sure else []),
                                                 (sure, len(content) - sure, sure, SUPPORTED)]
    assert without_ciphertext(BytesReader(content[:length]), whole.resized(length)) == (whole.resized(length), True)


def test_the_end_of_a_file_is_lost_where_it_is_ciphertext_or_not_there() -> None:
    noise = random.Random(3).randbytes(64 * KIB)
    assert lost_end(BytesReader(WORDS[:MIB] + noise)) and lost_end(BytesReader(noise + noise[:100]))
    assert not lost_end(BytesReader(noise + WORDS[:MIB])) and not lost_end(BytesReader(WORDS[:100]))
    assert not lost_end(BytesReader(WORDS[:MIB] + noise + WORDS[:4 * KIB]))
    size = MIB + 4 * KIB
    for there in (MIB, size):
        view = FileView(BytesReader(WORDS[:size]), FileMap.build([(0, there, 0, "guessed", "x")]).resized(size))
        assert lost_end(view) is (there < size)


def test_parts_that_are_encrypted_amid_a_file_are_missing_too() -> None:
    """Of every 320 KiB the first 64: all of it, in whichever order the file lies; a hole stays what it is."""
    content = bytearray((WORDS * 2)[: 4 * MIB])
    for at in range(0, len(content), 320 * KIB):
        content[at : at + 64 * KIB] = random.Random(at).randbytes(min(64 * KIB, len(content) - at))
    rows = [(0, MIB, 3 * MIB, SUPPORTED, ""), (MIB, 640 * KIB, -1, ZERO, "host.hole"),
            (MIB + 640 * KIB, 2 * MIB, 640 * KIB, SUPPORTED, "")]
    image = bytearray(4 * MIB)
    for f, n, p, _, _ in rows:
        image[p : p + n] = content[f : f + n] if p >= 0 else b""
    found, is_so = without_ciphertext(BytesReader(bytes(image)), FileMap.build(rows))
    assert is_so
    for f in range(0, found.size, 64 * KIB):
        ((_, n, p, grade, rule),) = found.cut(f, 64 * KIB)
        hole = MIB <= f < MIB + 640 * KIB
        assert n == 64 * KIB
        assert (grade, rule) == (ZERO, "host.hole") if hole else (
            (MISSING, "encrypted") if f // KIB % 320 == 0 else (SUPPORTED, ""))
        assert p == (-1 if grade != SUPPORTED else f + 3 * MIB if f < MIB else f - MIB)


@needs("qemu-img")
def test_nothing_is_called_supported_of_a_disk_that_begins_with_ciphertext(tmp_path: Path) -> None:
    """A fixed VHD whose first MiB and another one are encrypted: its footer opens it, its map is whole."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.write_bytes((WORDS * 8)[: 8 * MIB])
    run("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on", raw, out)
    content = bytearray(out.read_bytes())
    for at in (0, 5 * MIB):
        content[at : at + MIB] = random.Random(at).randbytes(MIB)
    state, _, _, evidence = deleted(tmp_path, bytes(content), "a.vhd")
    host_files(state, _format_rows(evidence), _guest_places(evidence), evidence, deleted=True)
    (item,) = state.done
    assert item.container.rebuild
    assert item.map.rows()[0][:5] == (0, MIB, -1, MISSING, "encrypted")
    assert set(item.map.grade) == {MISSING, GUESSED}


def test_a_file_that_is_even_throughout_has_the_period_of_the_others() -> None:
    """Two files of one host, encrypted alike: the text shows the period, what is compressed does not and has it too."""
    rng = random.Random(5)
    text, packed = bytearray((WORDS * 2)[: 4 * MIB]), rng.randbytes(4 * MIB) + WORDS[: 64 * KIB]
    for at in range(0, len(text), 320 * KIB):
        text[at : at + 64 * KIB] = rng.randbytes(min(64 * KIB, len(text) - at))
    image = BytesReader(packed + bytes(text))
    first = FileMap.build([(0, len(packed), 0, SUPPORTED, "")])
    second = FileMap.build([(0, len(text), len(packed), SUPPORTED, "")])
    strides = Strides()
    for file_map in (first, second):
        strides.look(image, file_map)
    alone, is_so = without_ciphertext(image, first)
    assert is_so and sum(n for _, n, p, *_ in alone.rows() if p < 0) == 4 * MIB
    shared, _ = without_ciphertext(image, first, strides)
    assert [(f, n) for f, n, p, *_ in shared.rows() if p < 0] == [
        (f, 64 * KIB) for f in range(0, 4 * MIB, 320 * KIB)]
