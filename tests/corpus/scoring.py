"""Compares a case with the truth of its scene: found, exact, recall, and wrong bytes by grade."""

from __future__ import annotations

import bisect
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .lay import hardest
from .losses import losses
from .recovered import Case, Row, claimed, load_case, read_guest, written_file
from .sparse import BLOCK, ZERO_HASH, Hashes, block_hashes, sha256
from .truth import ORIGINALS, load_flags, load_hashes, load_truth

SCORE = "score.json"
ARCHIVES = ("vma", "xva", "ova")  # formats of which one file may hold several disks
SAME_DISK = 0.5  # share of a case disk's non-zero blocks in another disk's truth that makes it a duplicate
PIECE = 4 << 20  # bytes compared at once


@dataclass
class State:
    """One guest content that can be recovered: a disk, or an internal snapshot of it."""

    name: str
    disk: Row
    snapshot: str | None
    raw: Path | None
    virtual_size: int
    hashes: Hashes
    wanted: NDArray[np.bool_]  # blocks that count: not zero, still in the image, held by this container itself
    own: NDArray[np.bool_]


@dataclass
class Recovered:
    """One row of the case's disks, read."""

    row: Row
    how: str
    hashes: Hashes
    file_sha256: str | None
    size: int


def score(case_folder: Path, scene_folder: Path) -> dict[str, Any]:
    """Score a case; the result is also written to score.json in the case's folder."""
    truth, case = load_truth(scene_folder), load_case(case_folder)
    states = list(load_states(truth, scene_folder))
    image = scene_folder / truth["image"]
    with tempfile.TemporaryDirectory(prefix="score", dir=case_folder) as work:
        found = [_read(case, row, image, Path(work)) for row in case.disks]
    pairs = match(states, found)
    disks = []
    for number, state in enumerate(states):
        other = pairs.get(number)
        disks.append(_score_one(states, state, None if other is None else found[other], case, image, scene_folder))
    rest = [one for other, one in enumerate(found) if other not in pairs.values()]
    extra = [_describe_extra(one, states, case.extents[one.row["disk_id"]]) for one in rest]
    result = {
        "scene": truth["scene"],
        "seed": truth["seed"],
        "disks": disks,
        "extra": extra,
        "total": _total(disks, extra),
    }
    (case_folder / SCORE).write_text(json.dumps(result, indent=1) + "\n")
    return result


def load_states(truth: dict[str, Any], folder: Path) -> list[State]:
    """All guest contents of a scene: its disks and their snapshots."""
    states = []
    for disk in truth["disks"]:
        for snapshot in (None, *disk["snapshots"]):
            guest = snapshot or disk
            hashes = load_hashes(folder, guest["guest_hashes"])
            own = load_flags(folder, disk["own_blocks"]) if disk["own_blocks"] else np.ones(len(hashes), np.bool_)
            wanted = (hashes != ZERO_HASH) & own
            if disk["recoverable"] and snapshot is None:
                wanted &= load_flags(folder, disk["recoverable"])
            name = f"{disk['name']}@{snapshot['name']}" if snapshot else disk["name"]
            raw = folder / guest["guest_raw"] if guest["guest_raw"] else None
            label = snapshot["name"] if snapshot else None
            states.append(State(name, disk, label, raw, guest["virtual_size"], hashes, wanted, own))
    return states


def _read(case: Case, row: Row, image: Path, work: Path) -> Recovered:
    path = written_file(case, row)
    raw, how = read_guest(case, row, image, work)
    if raw is None:
        return Recovered(row, how, np.zeros(0, np.uint64), sha256(path) if path else None, 0)
    size = raw.stat().st_size
    hashes = block_hashes(raw, size)
    raw.unlink()
    return Recovered(row, how, hashes, sha256(path) if path else None, size)


def match(states: list[State], found: list[Recovered]) -> dict[int, int]:
    """Index of the recovered disk for each state that has one.

    Paired by the file's SHA-256, then by content, then (unreadable ones) by format and size of the container."""
    pairs: dict[int, int] = {}
    active = [number for number, state in enumerate(states) if state.snapshot is None]
    every = [(number, other) for number in range(len(states)) for other in range(len(found))]

    def pair(number: int, other: int) -> None:
        if number not in pairs and other not in pairs.values():
            pairs[number] = other

    for number, other in every:
        sums = container_sums(states[number].disk)
        if number in active and len(sums) == 1 and found[other].file_sha256 in sums:
            pair(number, other)  # of several files one is not the disk
    for number, other in every:
        if number in active and not states[number].own.any() and _of_size(states[number], found[other]):
            pair(number, other)  # it holds nothing itself, so another file's content would be taken for it
    ranked = []
    for number, other in every:
        state, one = states[number], found[other]
        same, wrong = agreement(state, one.hashes)
        if same > wrong:
            alike = one.row["format"] == state.disk["format"], one.row["virtual_size"] == state.virtual_size
            ranked.append(((same - wrong, *alike), number, other))
    for _, number, other in sorted(ranked, key=lambda rank: rank[0], reverse=True):
        pair(number, other)
    for number, other in every:
        if number in active and _of_size(states[number], found[other]):
            pair(number, other)
    return pairs


def _of_size(state: State, one: Recovered) -> bool:
    disk, row = state.disk, one.row
    return (row["format"], row["container_size"]) == (disk["format"], disk["container_size"])


def container_sums(disk: Row) -> set[str]:
    """SHA-256 of the disk's files that hold data."""
    return {file["sha256"] for file in disk["files"] if file["role"] == "container"}


def agreement(state: State, hashes: Hashes) -> tuple[int, int]:
    """(equal non-zero blocks, non-zero blocks that differ) of a recovered guest against a state, own blocks only."""
    length = min(len(state.hashes), len(hashes))
    mine, theirs = hashes[:length], state.hashes[:length]
    used = (mine != ZERO_HASH) & state.own[:length]
    same = int((used & (mine == theirs)).sum())
    beyond = int((hashes[length:] != ZERO_HASH).sum())
    return same, int(used.sum()) - same + beyond


def _score_one(states: list[State], state: State, one: Recovered | None, case: Case, image: Path, folder: Path
               ) -> dict[str, Any]:
    disk = state.disk
    wanted = int(state.wanted.sum())
    result: dict[str, Any] = {
        "name": state.name,
        "format": disk["format"],
        "variant": disk["variant"],
        "deleted": disk["deleted"],
        "intact": disk["intact"],
        "inside": disk["inside"],
        "guest": disk["guest_kind"],
        "lay": disk["lay"] and {**disk["lay"], "shape": hardest(file["lay"] for file in disk["files"])},
        "found": one is not None,
        "wanted_bytes": wanted * BLOCK,
        "harmed_bytes": sum(length for file in disk["files"] for _, length in file["harmed"]),
    }
    if disk["guest_known"]:
        found = np.zeros(0, np.uint64) if one is None else one.hashes
        result.update(losses(state.hashes, state.wanted, found, state.raw))
    if one is None:
        return {**result, "exact": False, "recall": 0.0 if disk["guest_known"] else None, "wrong_by_grade": {}}
    length = min(len(state.hashes), len(one.hashes))
    equal = np.zeros(len(state.hashes), np.bool_)
    equal[:length] = one.hashes[:length] == state.hashes[:length]
    whole = (
        bool(equal[state.own].all())
        and one.row["virtual_size"] == state.virtual_size
        and len(one.hashes) == len(state.hashes)
    )
    sums = container_sums(disk)
    by_bytes = state.snapshot is None and len(sums) == 1 and one.file_sha256 in sums
    several = len(disk["files"]) > 1 or disk["own_blocks"] is not None
    loose = disk["guest_known"] and (several or state.snapshot is not None)
    result.update(
        disk_id=one.row["disk_id"],
        read_by=one.how,
        exact=by_bytes or (loose and whole),
        exact_by="bytes" if by_bytes else "guest" if loose and whole else None,
        guest_equal=whole,
        said_exact=one.row["exact"],
        format_right=one.row["format"] == disk["format"],
        size_right=one.row["virtual_size"] == state.virtual_size,
        deleted_right=disk["deleted"] is None or one.row["deleted"] == disk["deleted"],
        recall=_share(int((equal & state.wanted).sum()), wanted) if disk["guest_known"] else None,
        wrong_output_bytes=agreement(state, one.hashes)[1] * BLOCK,
        wrong_by_grade=wrong_by_grade(state, container_of(states, state, one.row), one.row, case, image, folder),
        wanted_by_grade=wanted_by_grade(state, case.extents[one.row["disk_id"]]),
        harmed_unsaid_bytes=harmed_unsaid(disk, case.extents[one.row["disk_id"]]),
    )
    return result


def container_of(states: list[State], state: State, found: Row) -> Row:
    """The disk whose file the recovered container is: it begins where that file did. Else the one it is paired with.

    Disks are paired by their guests: a container that was given another disk's guest has right tables all the same.
    """
    start = found.get("header_offset")
    for other in states:
        if start is not None and other.disk["format"] == found["format"]:
            for file in other.disk["files"]:
                if any(at == 0 and place == start for at, place, *_ in file["extents"]):
                    return other.disk
    return state.disk


def wrong_by_grade(state: State, disk: Row, found: Row, case: Case, image: Path, folder: Path
                   ) -> dict[str, dict[str, int]]:
    """Per grade: bytes claimed, of these wrong, and of these not checkable (encoded otherwise, or no original kept).

    `wrong_harmed` are those of the wrong ones that were overwritten where they lay: the map may be right there, the
    content is not what it was. Of a disk in several files the container rows are checked against the file of their
    size, if there is one; those of a file inside an archive against nothing. disk: whose file the container is."""
    tally: dict[str, dict[str, int]] = defaultdict(
        lambda: {"claimed": 0, "wrong": 0, "wrong_blocks": 0, "wrong_harmed": 0, "unchecked": 0}
    )
    files = disk["files"]
    harmed = files[0]["harmed"] if len(files) == 1 else []
    alike = [file for file in files if file["size"] == found["container_size"]] if len(files) > 1 else [disk]
    container = folder / ORIGINALS / Path(alike[0]["host_path"]).name if len(alike) == 1 else None
    if disk["format"] in ARCHIVES and found["format"] not in ARCHIVES:
        container = None  # a file inside it, whose offsets are its own
    with image.open("rb") as source:
        for row in case.extents[found["disk_id"]]:
            if row["grade"] in ("missing", "parent"):
                continue
            original = container if row["space"] == "container" else state.raw
            if row["space"] == "guest" and not state.disk["guest_known"]:
                original = None
            sums = tally[row["grade"]]
            sums["claimed"] += row["length"]
            if original is None or not original.exists():
                sums["unchecked"] += row["length"]
                continue
            with original.open("rb") as right:
                at = 0
                while at < row["length"]:
                    length = min(PIECE, row["length"] - at)
                    block = claimed(source, row, at, length)
                    if block is None:
                        sums["unchecked"] += row["length"] - at
                        break
                    right.seek(row["offset"] + at)
                    found_there, wanted = block.ljust(length, b"\0"), right.read(length).ljust(length, b"\0")
                    wrong, blocks = differing(found_there, wanted)
                    sums["wrong"] += wrong
                    sums["wrong_blocks"] += blocks
                    if wrong and (start := _in_container(row)) is not None:
                        for first, last in _parts(harmed, start + at, start + at + length):
                            inside = slice(first - start - at, last - start - at)
                            sums["wrong_harmed"] += differing(found_there[inside], wanted[inside])[0]
                    at += length
    return dict(tally)


def differing(left: bytes, right: bytes) -> tuple[int, int]:
    """How many bytes differ between two stretches of one length, and in how many of their blocks."""
    if left == right:
        return 0, 0
    wrong = np.frombuffer(left, np.uint8) != np.frombuffer(right, np.uint8)
    blocks = np.logical_or.reduceat(wrong, np.arange(0, len(wrong), BLOCK))
    return int(wrong.sum()), int(blocks.sum())


GRADES = ("missing", "guessed", "supported", "proven", "zero", "parent")  # a block counts as the first that touches it


def wanted_by_grade(state: State, rows: list[Row]) -> dict[str, int]:
    """Recoverable bytes by what the case says of their blocks; what no row covers is missing."""
    said = np.full(len(state.hashes), len(GRADES), np.uint8)
    for row in rows:
        if row["space"] == "guest":
            part = said[row["offset"] // BLOCK : -(-(row["offset"] + row["length"]) // BLOCK)]
            np.minimum(part, GRADES.index(row["grade"]), out=part)
    said[said == len(GRADES)] = 0
    counts = np.bincount(said[state.wanted], minlength=len(GRADES)) * BLOCK
    return {grade: int(count) for grade, count in zip(GRADES, counts.tolist(), strict=True) if count}


def harmed_unsaid(disk: Row, rows: list[Row]) -> int:
    """Bytes that were harmed where they lay, which the case gives out as content of the container all the same.

    Of a disk in several files nothing is counted."""
    if len(disk["files"]) > 1:
        return 0
    total = 0
    for row in rows:
        if row["space"] != "container" or row["grade"] in ("missing", "parent") or row["image_offset"] is None:
            continue
        start, end = row["offset"], row["offset"] + row["length"]
        total += sum(last - first for first, last in _parts(disk["files"][0]["harmed"], start, end))
    return total


def _in_container(row: Row) -> int | None:
    """Byte of the container at which a row begins, where it says so."""
    return row["offset"] if row["space"] == "container" else row.get("container_offset")


def _parts(areas: list[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """(first, end) of what `areas`, (offset, length), have of [start, end)."""
    for at, length in areas:
        first, last = max(start, at), min(end, at + length)
        if first < last:
            yield first, last


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 1.0


def _describe_extra(one: Recovered, states: list[State], rows: list[Row]) -> dict[str, Any]:
    """A disk of the case that answers no state: a second copy of one, another one in an archive, or false."""
    used = max(1, int((one.hashes != ZERO_HASH).sum()))
    again = [state.name for state in states if agreement(state, one.hashes)[0] / used > SAME_DISK]
    inside = [state for state in states if not again and overlap(rows, state.disk) > SAME_DISK]
    row = one.row
    return {
        "disk_id": row["disk_id"],
        "format": row["format"],
        "virtual_size": row["virtual_size"],
        "names": row["names"],
        "duplicate_of": again[0] if again else None,
        "inside": inside[0].name if inside else None,
        # a disk inside an archive, or one extent file of a split disk, is a row of its own
        "false": not again and not any(s.disk["format"] in ARCHIVES or len(s.disk["files"]) > 1 for s in inside),
    }


def overlap(rows: list[Row], disk: Row) -> float:
    """Share of the image bytes that `rows` claim which belong to the files of `disk`."""
    places = sorted((at, at + length) for file in disk["files"] for _, at, length, _ in file["extents"])
    total = shared = 0
    for row in rows:
        if row["image_offset"] is None:
            continue
        start, end = row["image_offset"], row["image_offset"] + row["length"]
        total += end - start
        for first, last in places[max(0, bisect.bisect(places, (start, 0)) - 1) :]:
            if first >= end:
                break
            shared += max(0, min(end, last) - max(start, first))
    return shared / total if total else 0.0


def _total(disks: list[dict[str, Any]], extra: list[dict[str, Any]]) -> dict[str, Any]:
    wrong: dict[str, int] = defaultdict(int)
    for disk in disks:
        for grade, sums in disk["wrong_by_grade"].items():
            wrong[grade] += sums["wrong"]
    recalls = [disk["recall"] for disk in disks if disk["recall"] is not None]
    return {
        "disks": len(disks),
        "found": sum(disk["found"] for disk in disks),
        "exact": sum(disk["exact"] for disk in disks),
        "lowest_recall": min(recalls, default=None),
        "wrong_by_grade": dict(wrong),
        "false_disks": sum(one["false"] for one in extra),
    }


def print_table(result: dict[str, Any]) -> None:
    """One line per disk, one per extra disk, one for the whole."""
    print(f"{'disk':34} {'deleted':8} {'found':6} {'exact':6} {'recall':>8}  wrong bytes by grade")
    for disk in result["disks"]:
        wrong = ", ".join(f"{grade} {sums['wrong']}" for grade, sums in sorted(disk["wrong_by_grade"].items()))
        recall = "-" if disk["recall"] is None else f"{disk['recall']:.4f}"
        deleted = {True: "yes", False: "no", None: "-"}[disk["deleted"]]
        exact = disk.get("exact_by") or "no"
        print(f"{disk['name']:34} {deleted:8} {'yes' if disk['found'] else 'NO':6} {exact:6} {recall:>8}  {wrong}")
    for extra in result["extra"]:
        again, inside = extra["duplicate_of"], extra["inside"]
        about = f"again {again}" if again else f"inside {inside}" if inside else "nowhere"
        about += ", FALSE" if extra["false"] else ""
        print(f"extra: {extra['disk_id']} {extra['format']} {extra['virtual_size']} bytes: {about}")
    total = result["total"]
    wrong = ", ".join(f"{grade} {count}" for grade, count in sorted(total["wrong_by_grade"].items())) or "none claimed"
    counts = f"{total['found']} of {total['disks']} found, {total['exact']} exact, {total['false_disks']} false"
    print(f"{counts}; wrong bytes: {wrong}")
