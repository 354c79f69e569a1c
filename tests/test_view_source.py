"""A reader is swept like a file of the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from vmcarve.source import BytesReader, ViewSource, open_image
from vmcarve.sweeper import sweep_image
from vmcarve.tables import EVIDENCE


def test_the_sweep_of_a_view_is_that_of_the_bytes(tmp_path: Path) -> None:
    """Magics at odd places and near the end of a chunk are found alike."""
    content = bytearray(np.random.default_rng(1).integers(0, 256, (5 << 20) + 700, np.uint8).tobytes())
    for at in (0, 512, (2 << 20) - 512, (4 << 20) + 1024):
        content[at : at + 512] = _vhd_footer()
    (tmp_path / "image").write_bytes(content)
    wanted, found = [], []
    with open_image(tmp_path / "image") as source:
        sweep_image(source, 0, wanted.append, threads=1)
    sweep_image(ViewSource(BytesReader(bytes(content))), 0, found.append, threads=1)
    table = pa.Table.from_batches(wanted, EVIDENCE)
    assert table.num_rows == 4
    assert pa.Table.from_batches(found, EVIDENCE).equals(table)


def _vhd_footer() -> bytes:
    raw = bytearray(512)
    raw[:8], raw[11], raw[13] = b"conectix", 2, 1  # features: bit 1 is always set; version 1.0
    raw[16:24] = b"\xff" * 8
    raw[40:56] = (64 << 20).to_bytes(8, "big") * 2
    raw[56:60], raw[63] = bytes((4, 0, 4, 17)), 2
    raw[64:68] = (~sum(raw) & 0xFFFF_FFFF).to_bytes(4, "big")
    return bytes(raw)
