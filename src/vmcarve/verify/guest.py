"""What is on a guest disk: the partition table, then every partition's file system, each with its own checks."""

from __future__ import annotations

from ..model import Reader, Volume
from ..registry import guests

OUR_MAX_PARTITIONS = 256  # that are looked into
OUR_MAX_SHOWN = 12  # in a summary


def describe(reader: Reader) -> list[Volume]:
    """The table first (if there is one), then the volumes of its partitions in disk order; else the bare volume at 0.

    Two believable answers for one place are both kept: a file system and what an older one left in its gaps.
    """
    found = _probe(reader, 0, reader.size)
    table = next((v for v in found if v.partitions), None)
    if table is None:
        return found
    out = [table]
    for offset, size, _ in sorted(table.partitions)[:OUR_MAX_PARTITIONS]:
        out += [v for v in _probe(reader, offset, min(size, reader.size - offset)) if not v.partitions]
    return out


def _probe(reader: Reader, offset: int, limit: int) -> list[Volume]:
    """What the guest kinds say of `offset`: those that agree with themselves, or all when none does. Tables first."""
    if limit <= 0:
        return []
    found = [v for kind in guests().values() if (v := kind.probe(reader, offset, limit)) is not None]
    tables = [v for v in found if v.partitions]
    others = [v for v in found if not v.partitions]
    return sorted(tables, key=lambda v: not v.consistent) + ([v for v in others if v.consistent is not False] or others)


def summary(volumes: list[Volume]) -> str:
    """One line: `GPT: ext4 'root' 30 MiB, ntfs 'Windows' 20 MiB (consistent)`; what fails its checks is damaged."""
    if not volumes:
        return ""
    table = volumes[0] if volumes[0].partitions else None
    words: list[str] = []
    if table is not None:
        at: dict[int, list[Volume]] = {}
        for v in volumes[1:]:
            at.setdefault(v.offset, []).append(v)
        for offset, size, kind in sorted(table.partitions):
            words.append(" or ".join(_word(v, size) for v in at.get(offset, [])) or f"{kind} {_size(size)}")
    else:
        words = [_word(v, v.size) for v in volumes]
    more = len(words) - OUR_MAX_SHOWN
    line = ", ".join(words[:OUR_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
    if table is not None:
        line = f"{table.kind.upper()}{' (damaged)' if table.consistent is False else ''}: {line}"
    told = [v.consistent for v in volumes if v.consistent is not None]
    return f"{line} (consistent)" if told and all(told) else line


def _word(v: Volume, size: int) -> str:
    name = f" '{v.label}'" if v.label else ""
    return f"{v.kind}{name} {_size(size)}{' (damaged)' if v.consistent is False else ''}"


def _size(size: int) -> str:
    """Binary units, three figures at most where they are not whole."""
    value, unit = float(size), "B"
    for following in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, following
    return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
