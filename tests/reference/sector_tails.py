"""sector_tails in plain Python: see ext/sector_tails.pyx for the contract."""

from __future__ import annotations


def sector_tails(buf: bytes) -> list[int]:
    """Bytes up to the last one that is not zero, of every 512."""
    return [len(buf[at : at + 512].rstrip(b"\0")) for at in range(0, len(buf), 512)]
