"""Swap, LUKS and LVM made by mkswap, cryptsetup and pvcreate; BitLocker by an own writer after libbde's document."""

from __future__ import annotations

import os
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.guest.images import MIB, blkid, evidence, finds_nothing, flip, from_bytes, need, poke, probe, sound, sparse
from tests.helpers import run
from vmcarve.guest import bitlocker, luks, lvm, swap
from vmcarve.model import GuestKind

KINDS = {"swap": swap.GUEST, "luks": luks.GUEST, "lvm": lvm.GUEST, "bitlocker": bitlocker.GUEST}


@pytest.mark.parametrize("guest", KINDS.values(), ids=KINDS)
def test_magic_alone_is_nothing(tmp_path: Path, guest: GuestKind) -> None:
    """The magics in text, zeros, noise or code are neither evidence nor a volume."""
    finds_nothing(guest, tmp_path)


# --- swap ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", (4096, 16384, 65536))
def test_swap(tmp_path: Path, page: int) -> None:
    """Size, label and UUID are those of mkswap, for all page sizes; the header pins the volume's start."""
    need("mkswap")
    path = sparse(tmp_path / "s.img", 4 * MIB)
    run("mkswap", "-p", str(page), "-L", "swap one", path, check=False)
    v = probe(swap.GUEST, path)
    assert v is not None and (v.size, v.label, v.uuid) == (4 * MIB, "swap one", blkid(path, "UUID"))
    assert v.consistent is None
    (row,) = evidence(swap.GUEST, path)
    assert (row.image_offset, row.volume_offset, row.value) == (0, 0, 4 * MIB)
    poke(path, 1300, b"x")
    assert probe(swap.GUEST, path) is None and evidence(swap.GUEST, path) == []


# --- LUKS ----------------------------------------------------------------------------------------------------------
def make_luks(tmp_path: Path, version: int) -> Path:
    need("cryptsetup")
    path = sparse(tmp_path / "l.img", 24 * MIB)
    (tmp_path / "key").write_bytes(b"x" * 16)
    run("cryptsetup", "luksFormat", "--batch-mode", "--type", f"luks{version}", "--pbkdf", "pbkdf2",
        "--pbkdf-force-iterations", "1000", "--label" if version == 2 else "--uuid",
        "secret" if version == 2 else "6b1e9f0c-1f5a-4b52-9a55-111111111111", path, tmp_path / "key")
    return path


def test_luks1(tmp_path: Path) -> None:
    """A LUKS1 header is believed for its words and key slots; nothing can check it, so it is not called consistent."""
    path = make_luks(tmp_path, 1)
    v = probe(luks.GUEST, path)
    assert v is not None and (v.kind, v.uuid, v.consistent) == ("luks1", blkid(path, "UUID"), None)
    assert v.size == 2 * MIB and "aes-xts-plain64" in v.detail
    (row,) = evidence(luks.GUEST, path)
    assert (row.volume_offset, row.identity) == (0, v.uuid)
    for at in (8, 72, 108, 208, 300):
        poke(path, at, b"\xee\xee")
        assert probe(luks.GUEST, path) is None and evidence(luks.GUEST, path) == []


def test_luks2(tmp_path: Path) -> None:
    """Both LUKS2 headers pin themselves under their hash; the volume is found from either."""
    path = make_luks(tmp_path, 2)
    v = sound(luks.GUEST, path)
    assert (v.kind, v.uuid, v.label) == ("luks2", blkid(path, "UUID"), "secret") and "aes-xts-plain64" in v.detail
    dump = run("cryptsetup", "luksDump", path).stdout
    found = re.search(r"offset: (\d+) \[bytes\]", dump)
    assert found is not None and v.size == int(found[1])
    rows = [(e.kind, e.image_offset, e.volume_offset) for e in evidence(luks.GUEST, path)]
    assert rows == [("luks.header", 0, 0), ("luks.second-header", 16384, 16384)]
    flip(path, 5000)
    v = probe(luks.GUEST, path)
    assert v is not None and v.consistent is False and "first header lost" in v.detail
    assert [e.volume_offset for e in evidence(luks.GUEST, path)] == [16384]


# --- LVM -----------------------------------------------------------------------------------------------------------
VOLUMES = """
	logical_volumes {

		root {
			id = "aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg"
			status = ["READ", "WRITE", "VISIBLE"]
			segment_count = 1

			segment1 {
				start_extent = 0
				extent_count = 2
				type = "striped"
				stripe_count = 1
				stripes = ["pv0", 0]
			}
		}

		swap_1 {
			id = "hhhhhh-bbbb-cccc-dddd-eeee-ffff-gggggg"
			status = ["READ", "WRITE", "VISIBLE"]
			segment_count = 1

			segment1 {
				start_extent = 0
				extent_count = 3
				type = "striped"
				stripe_count = 1
				stripes = ["pv0", 2]
			}
		}
	}
}
"""


@pytest.fixture
def physical(tmp_path: Path) -> Iterator[Path]:
    """A physical volume in a group with two logical volumes; there need be no device mapper."""
    need("pvcreate", "vgcreate", "vgcfgbackup", "vgcfgrestore", "losetup")
    if os.geteuid() != 0:
        pytest.skip("needs root: LVM works on block devices only")
    path = sparse(tmp_path / "pv.img", 64 * MIB)
    device = run("losetup", "-f", "--show", path).stdout.strip()
    config = ("--config", f'devices {{ filter=["a|^{device}$|","r|.*|"] use_devicesfile=0 }} '
                          "backup { backup=0 archive=0 } global { use_lvmpolld=0 }")
    try:
        run("pvcreate", "-y", *config, device)
        run("vgcreate", *config, "vg-debian", device)
        run("vgcfgbackup", *config, "-f", tmp_path / "cfg", "vg-debian")
        text = (tmp_path / "cfg").read_text()
        end = text.rindex("\n}\n", 0, text.rindex("# Generated") if text.rfind("# Generated") > 500 else len(text))
        (tmp_path / "cfg").write_text(text[:end] + VOLUMES + text[end + 3 :])
        run("vgcfgrestore", *config, "-f", tmp_path / "cfg", "vg-debian")
        yield path
    finally:
        run("losetup", "-d", device)


def test_lvm(physical: Path) -> None:
    """Label, UUID, group and logical volumes are read under their CRCs; the label pins the volume's start."""
    v = sound(lvm.GUEST, physical)
    assert (v.kind, v.label, v.uuid, v.size) == ("lvm", "vg-debian", blkid(physical, "UUID"), 64 * MIB)
    assert v.detail == "logical volumes: root, swap_1"
    rows = [(e.kind, e.image_offset, e.volume_offset, e.identity) for e in evidence(lvm.GUEST, physical)]
    assert rows == [("lvm.label", 0, 0, v.uuid)]
    flip(physical, 4096 + 60)
    damaged = probe(lvm.GUEST, physical)
    assert damaged is not None and damaged.consistent is False and damaged.detail == "metadata lost"
    flip(physical, 512 + 100)
    assert probe(lvm.GUEST, physical) is None and evidence(lvm.GUEST, physical) == []


# --- BitLocker -----------------------------------------------------------------------------------------------------
def bitlocker_volume(to_go: bool = False) -> bytes:
    """A Windows 7 volume after libbde's document: boot sector and three metadata blocks, noise elsewhere."""
    places = (0x20000, 0x60000, 0xA0000)
    out = bytearray(random.Random(1).randbytes(1 << 20))
    boot = bytearray(512)
    boot[:11] = b"\xeb\x58\x90" + (b"MSWIN4.1" if to_go else b"-FVE-FS-")
    struct.pack_into("<HB", boot, 11, 512, 8)
    if to_go:
        struct.pack_into("<I", boot, 32, 2048)
    at = 424 if to_go else 160
    boot[at : at + 16] = UUID("4967d63b-2e29-4ad8-8399-f6a339e3d001").bytes_le
    struct.pack_into("<3Q", boot, at + 16, *places)
    boot[510:] = b"\x55\xaa"
    out[:512] = boot
    for p in places:
        block = bytearray(512)
        struct.pack_into("<8sHHIQIIQQQQ", block, 0, b"-FVE-FS-", 512, 2, 0, 1 << 20, 0, 16, *places, 0)
        struct.pack_into("<III", block, 64, 48, 1, 48)
        out[p : p + 512] = block
    return bytes(out)


@pytest.mark.parametrize("to_go", (False, True))
def test_bitlocker(tmp_path: Path, to_go: bool) -> None:
    """A boot sector and metadata blocks that name the same places are a volume; each lost block is told."""
    data = bytearray(bitlocker_volume(to_go))
    v = from_bytes(bitlocker.GUEST, bytes(data))
    assert v is not None and (v.kind, v.size, v.consistent, v.detail) == ("bitlocker", 1 << 20, True, "encrypted")
    (tmp_path / "b.img").write_bytes(data)
    rows = [(e.image_offset, e.volume_offset, e.confidence) for e in evidence(bitlocker.GUEST, tmp_path / "b.img")]
    assert rows == ([] if to_go else [(0, 0, 1.0)])
    data[0x60000] ^= 1
    v = from_bytes(bitlocker.GUEST, bytes(data))
    assert v is not None and v.consistent is False and "1 of 3" in v.detail
    data[0xB0 if not to_go else 424 + 16] ^= 0x55
    v = from_bytes(bitlocker.GUEST, bytes(data))
    assert v is None or v.consistent is False
