"""Snapshot chains of three layers: found by their own links, put in order, read through; whole, split and broken.

One image holds the layers shuffled among noise, as deletion leaves them. Formats that link by identity need no host;
those that only name a file (qcow2, qcow, QED) need the names that a host file system gives.
"""

from __future__ import annotations

import random
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import vmcarve
from tests.helpers import run
from tests.makers import vdi as vdi_maker
from tests.makers import vhd as vhd_maker
from tests.makers import vhdx as vhdx_maker

MIB = 1 << 20
SIZE = 6 * MIB
UNIT = 64 << 10


def guests() -> list[bytes]:
    """Three states of one disk: each later one has other bytes in some 64 KiB blocks, and new ones."""
    rng = np.random.default_rng(5)
    first = bytearray(SIZE)
    for at in range(0, SIZE, 3 * UNIT):
        first[at : at + UNIT] = rng.bytes(UNIT)
    states = [bytes(first)]
    for step in (5, 7):
        now = bytearray(states[-1])
        for at in range(UNIT, SIZE, step * UNIT):
            now[at : at + UNIT] = rng.bytes(UNIT)
        states.append(bytes(now))
    return states


# --- writers of three layers, oldest first --------------------------------------------------------------------------
def by_qemu(folder: Path, states: list[bytes], driver: str, *options: str) -> list[Path]:
    """A base and two overlays, each written through QEMU."""
    raw = folder / "raw"
    raw.write_bytes(states[0])
    paths = [folder / f"layer-{i}.{driver}" for i in range(3)]
    run("qemu-img", "convert", "-q", "-f", "raw", "-O", driver, *options, raw, paths[0])
    for i in (1, 2):
        run("qemu-img", "create", "-q", "-f", driver, *options, "-b", paths[i - 1].name, "-F", driver, paths[i])
        script: list[str] = []
        for at in range(0, SIZE, UNIT):
            part = states[i][at : at + UNIT]
            if part != states[i - 1][at : at + UNIT]:
                piece = folder / f"piece-{at}"
                piece.write_bytes(part)
                script.append(f"write -q -s {piece} {at} {UNIT}")
        done = subprocess.run(["qemu-io", "-f", driver, str(paths[i])], input="\n".join(script), text=True,
                              capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
    return paths


def by_vhd(folder: Path, states: list[bytes]) -> list[Path]:
    style = vhd_maker.Style(b"win ", 0x000A0000, align_data=vhd_maker.PAGE, pad_tail=True, table_at=8192)
    paths = [folder / f"layer-{i}.vhd" for i in range(3)]
    names = [bytes([i + 1]) * 16 for i in range(3)]
    vhd_maker.write(paths[0], style, states[0], 1, uuid=names[0])
    for i in (1, 2):
        vhd_maker.write(paths[i], style, states[i], i, uuid=names[i], parent=states[i - 1],
                        parent_uuid=names[i - 1], parent_path=paths[i - 1])
    return paths


def by_vhdx(folder: Path, states: list[bytes]) -> list[Path]:
    paths = [folder / f"layer-{i}.vhdx" for i in range(3)]
    names = [bytes([i + 1]) * 16 for i in range(3)]
    vhdx_maker.write(paths[0], vhdx_maker.Plan(data_write=names[0]), states[0], 1)
    for i in (1, 2):
        plan = vhdx_maker.Plan(data_write=names[i], parent=(names[i - 1], paths[i - 1]))
        vhdx_maker.write(paths[i], plan, states[i], i, parent=states[i - 1])
    return paths


def by_vdi(folder: Path, states: list[bytes]) -> list[Path]:
    block = vdi_maker.BLOCK
    ids = [vdi_maker.Identity(uuid.UUID(int=10 + i), uuid.UUID(int=20 + i)) for i in range(3)]
    paths = [folder / f"layer-{i}.vdi" for i in range(3)]
    for i, path in enumerate(paths):
        ident = ids[i] if i == 0 else vdi_maker.Identity(ids[i].create, ids[i].modify, ids[i - 1].create,
                                                         ids[i - 1].modify)
        old = states[i - 1] if i else bytes(SIZE)
        content = {k: states[i][k * block : (k + 1) * block] for k in range(SIZE // block)
                   if states[i][k * block : (k + 1) * block] != old[k * block : (k + 1) * block]}
        if i == 2:
            content.pop(max(content))  # one block of the newest state is read through two layers
        kind = vdi_maker.DYNAMIC if i == 0 else vdi_maker.DIFFERENCING
        vdi_maker.write(path, kind, SIZE, ident, content, sorted(content, key=lambda k: -k % 5))
    return paths


LINKED: dict[str, Callable[[Path, list[bytes]], list[Path]]] = {
    "vmdk": lambda folder, states: by_qemu(folder, states, "vmdk"),
    "vhd": by_vhd,
    "vhdx": by_vhdx,
    "vdi": by_vdi,
}
NAMED = ("qcow2", "qcow", "qed")


def expected(name: str, states: list[bytes]) -> bytes:
    """The newest state as the layers have it."""
    if name != "vdi":
        return states[2]
    block = vdi_maker.BLOCK
    changed = [k for k in range(SIZE // block) if states[2][k * block :][:block] != states[1][k * block :][:block]]
    at = max(changed) * block
    return states[2][:at] + states[1][at : at + block] + states[2][at + block :]


def bare_image(path: Path, layers: list[Path], seed: int) -> None:
    """The layers in another order than they were made in, in one piece each, among noise."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as f:
        for layer in layers:
            f.write(rng.bytes(64 << 10))
            f.write(layer.read_bytes())
            f.write(bytes(-f.tell() % 4096))
        f.write(rng.bytes(64 << 10))


def chain(rows: list[dict], newest: dict) -> list[str]:
    """disk_ids from the newest layer down."""
    by_id = {r["disk_id"]: r for r in rows}
    out, at = [], newest
    while at is not None:
        out.append(at["disk_id"])
        at = by_id.get(at["parent_id"])
    return out


def top(rows: list[dict]) -> dict:
    """The layer that is nobody's parent and has one."""
    parents = {r["parent_id"] for r in rows}
    found = [r for r in rows if r["disk_id"] not in parents and r["parent_said"]]
    assert len(found) == 1, [(r["disk_id"], r["parent_id"], r["parent_said"]) for r in rows]
    return found[0]


@pytest.mark.parametrize("split", [False, True], ids=["one image", "base in another image"])
@pytest.mark.parametrize("name", LINKED)
def test_linked_layers_are_ordered_and_read_through(name: str, split: bool, tmp_path: Path) -> None:
    """Identities alone lead from the newest layer to the base, whatever image each lies in."""
    states = guests()
    layers = LINKED[name](tmp_path, states)
    images = [tmp_path / "a.img", tmp_path / "b.img"]
    bare_image(images[0], [layers[2], layers[1]] if split else [layers[1], layers[2], layers[0]], 1)
    bare_image(images[1], [layers[0]] if split else [], 2)
    case = vmcarve.recover(images if split else images[:1], tmp_path / "case")
    rows = [r for r in case.disks() if r["virtual_size"] == SIZE]
    assert len(rows) == 3, [(r["disk_id"], r["format"]) for r in case.disks()]
    newest = top(rows)
    assert len(chain(rows, newest)) == 3
    assert vmcarve.open_disk(case, newest["disk_id"]).read(0, SIZE) == expected(name, states)


@pytest.mark.parametrize("name", LINKED)
def test_a_missing_base_is_said_and_never_zero(name: str, tmp_path: Path) -> None:
    """Without the base, what it held is the parent's, missing and not zeros; the layers' own bytes are there."""
    states = guests()
    layers = LINKED[name](tmp_path, states)
    bare_image(tmp_path / "a.img", [layers[2], layers[1]], 3)
    case = vmcarve.recover([tmp_path / "a.img"], tmp_path / "case")
    rows = [r for r in case.disks() if r["virtual_size"] == SIZE]
    assert len(rows) == 2
    newest = top(rows)
    low = next(r for r in rows if r["disk_id"] == newest["parent_id"])
    assert low["parent_id"] is None and low["parent_said"]
    disk, want = vmcarve.open_disk(case, newest["disk_id"]), expected(name, states)
    there = 0
    for at in range(0, SIZE, UNIT):
        if disk.missing(at, UNIT):
            continue
        assert disk.read(at, UNIT) == want[at : at + UNIT], f"{at:#x}"
        there += 1
    changed = sum(states[0][at : at + UNIT] != want[at : at + UNIT] for at in range(0, SIZE, UNIT))
    assert there >= changed > 0


@pytest.mark.parametrize("driver", NAMED)
def test_named_layers_are_found_by_the_names_that_a_host_gives(driver: str, tmp_path: Path) -> None:
    """qcow2, qcow and QED say only a file name: the host file system has the files of these names."""
    states = guests()
    files = tmp_path / "files"
    files.mkdir()
    layers = by_qemu(tmp_path, states, driver)
    order = list(layers)
    random.Random(1).shuffle(order)
    for layer in order:
        layer.rename(files / layer.name)
    host = tmp_path / "host.img"
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", files, host, "48M")
    case = vmcarve.recover([host], tmp_path / "case", options=vmcarve.Options(live=True))
    rows = [r for r in case.disks() if r["virtual_size"] == SIZE]
    newest = top(rows)
    found = chain(rows, newest)
    names = [next(r for r in rows if r["disk_id"] == i)["names"][0] for i in found]
    assert [Path(n).name for n in names] == [f"layer-{i}.{driver}" for i in (2, 1, 0)]
    assert vmcarve.open_disk(case, newest["disk_id"]).read(0, SIZE) == states[2]
