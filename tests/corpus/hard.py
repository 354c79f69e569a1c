"""The scenes that are meant to be hard: large empty hosts, files grown together, damage, flat guests, chains."""

from __future__ import annotations

from dataclasses import replace

from .hosts import HostSpec
from .scene import ALL, DELETED, GUESTS, LIVE, Pool, Scene

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
BRAIDED = (  # every format, those of our own writers too
    *UNBROKEN[:6],
    "vma-one-disk",
    *UNBROKEN[6:10],
    "qcow2/zlib",
    "sesparse",
    *UNBROKEN[10:],
    "cowd",
    "qcow2/extended-l2",
    "vhdx/dynamic",
    "xva-xxhash",
    "qcow2/v2",
    "vhd-windows",
    "qcow/plain",
    "ova-sha256",
    "vhdx-windows",
    "vdi-virtualbox",
    "qcow2/zstd",
    "parallels-old-63",
    "vhd-xenserver",
    "qcow2/2m",
)
MAPPED = tuple(key for key in BRAIDED if not key.startswith("ova"))  # of which parts can be read
HOSTS = ("ext4", "ext3", "xfs", "ntfs", "btrfs")


def scenes() -> list[Scene]:
    """All of them."""
    return [*_unbroken(), *_braided()]


def _unbroken() -> list[Scene]:
    """Containers one after the other on a large empty host, written dense, sparse, and by QEMU onto the host."""
    made = []
    for kind in HOSTS:
        guests = GUESTS if kind != "ntfs" else tuple(guest for guest in GUESTS if guest.volume_mib <= NTFS_MIB)
        pool = Pool(UNBROKEN if kind != "ntfs" else UNBROKEN[:-2], 6, 6, guests, ("dense", "copy", "direct"))
        about = f"six disks that no allocator had to break, on {kind}"
        made.append(Scene(f"unbroken-{kind}", about, HostSpec(kind, options="nossd" if kind == "btrfs" else "", offline=kind == "ext3"), pool=pool, roomy=ROOM))
    return made + [wiped(scene) for scene in made]


def _braided() -> list[Scene]:
    """Containers that grew at the same time on a host with broken free space."""
    made = []
    for kind in ("ext4", "ntfs", "xfs", "btrfs"):
        plain = Scene(f"braided-{kind}", f"2 to 6 disks that grew at the same time on {kind}", HostSpec(kind))
        plain = replace(plain, pool=Pool(BRAIDED, 2, 6), together=True)
        made.append(plain)
        if kind == "xfs":
            about = f"{plain.about}, deleted before their inodes were written"
            made.append(replace(plain, name="braided-xfs-unflushed", about=about, remount=False))
        for reuse, name in ((LIVE, "reused"), (DELETED, "reused-deleted")):
            about = f"{plain.about}; a tenth of their blocks reused by files that are {reuse}"
            pool = Pool(MAPPED, 2, 6)
            made.append(replace(plain, name=f"{plain.name}-{name}", about=about, pool=pool, reuse=reuse))
    return made + [wiped(scene) for scene in made]


def wiped(scene: Scene) -> Scene:
    """The same scene with all that is not the content of a file zeroed."""
    return replace(scene, name=f"{scene.name}-wiped", about=f"{scene.about}; all but contents zeroed", wiped=ALL)
