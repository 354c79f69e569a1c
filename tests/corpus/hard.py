"""The scenes that are meant to be hard: large empty hosts, files grown together, damage, flat guests, chains."""

from __future__ import annotations

from dataclasses import replace

from .hosts import HostSpec
from .scene import ALL, GUESTS, Pool, Scene

ROOM = 3 << 30  # bytes of a host on which nothing needs to be broken; its image is sparse
UNBROKEN = (  # every format that QEMU writes in one file, in the order in which the seed takes them
    "vmdk/monolithicSparse",
    "vhd/dynamic",
    "vhdx/dynamic-1m",
    "vdi/dynamic",
    "qcow2/64k",
    "vmdk/streamOptimized",
    "vhd/fixed",
    "qcow2/4k",
    "parallels/ext",
    "qed/plain",
    "raw/disk",
    "qcow2/512",
    "vdi/static",
    "vhdx/fixed",
)
NTFS_MIB = 24  # ntfs-3g leaves a gap every 16 MiB or so, and larger files rarely fit between two
HOSTS = ("ext4", "ext3", "xfs", "ntfs", "btrfs")


def scenes() -> list[Scene]:
    """All of them."""
    return [*_unbroken()]


def _unbroken() -> list[Scene]:
    """Containers one after the other on a large empty host, written dense, sparse, and by QEMU onto the host."""
    made = []
    for kind in HOSTS:
        guests = GUESTS if kind != "ntfs" else tuple(guest for guest in GUESTS if guest.volume_mib <= NTFS_MIB)
        pool = Pool(UNBROKEN if kind != "ntfs" else UNBROKEN[:-2], 6, 6, guests, ("dense", "copy", "direct"))
        about = f"six disks that no allocator had to break, on {kind}"
        made.append(Scene(f"unbroken-{kind}", about, HostSpec(kind, options="nossd" if kind == "btrfs" else "", offline=kind == "ext3"), pool=pool, roomy=ROOM))
    return made + [wiped(scene) for scene in made]


def wiped(scene: Scene) -> Scene:
    """The same scene with all that is not the content of a file zeroed."""
    return replace(scene, name=f"{scene.name}-wiped", about=f"{scene.about}; all but contents zeroed", wiped=ALL)
