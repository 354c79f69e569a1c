"""Files that begin with ciphertext: where that is seen to end, and what is said of the rest."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import run
from tests.host.written import needs
from tests.test_headless import deleted
from vmcarve.assemble.cipher import even, opening, without_opening
from vmcarve.assemble.host_files import host_files
from vmcarve.assemble.run import _format_rows, _guest_places
from vmcarve.filemap import FileMap
from vmcarve.model import GUESSED, MISSING, SUPPORTED
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
    found, is_so = without_opening(BytesReader(content), whole)
    sure = 0 if length % (64 * KIB) else 1 << length.bit_length() - 1
    assert is_so
    assert [row[:4] for row in found.rows()] == [*([(0, sure, -1, MISSING)] if sure else []),
                                                 (sure, len(content) - sure, sure, SUPPORTED)]
    assert without_opening(BytesReader(content[:length]), whole.resized(length)) == (whole.resized(length), True)


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
