"""The scenes that are meant to be hard: large empty hosts, files grown together, damage, flat guests, chains."""

from __future__ import annotations

from dataclasses import replace

from .disks import Plan
from .guests import FEW, WORK, GuestSpec
from .harm import KINDS
from .hosts import HostSpec
from .scene import ALL, DELETED, GUESTS, HEADS, LIVE, WORKING, Pool, Scene

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
SMALL = (  # for NTFS: ntfs-3g leaves a gap every 16 MiB or so; larger files, VHDX among them, do not fit between two
    GuestSpec("ext4", "gpt", 8),
    GuestSpec("ntfs", "mbr", 8),
    GuestSpec("ext4", "none", 10),
)
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
SHUFFLED = (
    "vmdk/monolithicSparse",
    "qcow2/64k",
    "vhd/dynamic",
    "vhdx/dynamic-1m",
    "vdi/dynamic",
    "raw/disk",
    "vmdk/streamOptimized",
    "qcow2/4k",
    "parallels/ext",
    "vhd/fixed",
    "qed/plain",
    "sesparse",
)
TURN = (HostSpec("ext4"), HostSpec("ntfs", "mbr"), HostSpec("xfs", "gpt"), HostSpec("btrfs"))
HOSTS = ("ext4", "ext3", "xfs", "ntfs", "btrfs")


def scenes() -> list[Scene]:
    """All of them."""
    return [*_unbroken(), *_braided(), *_bare(), *_harmed(), *_chained(), *_unkind()]


def _unbroken() -> list[Scene]:
    """Containers one after the other on a large empty host, written dense, sparse, and by QEMU onto the host."""
    made = []
    for kind in HOSTS:
        guests = GUESTS if kind != "ntfs" else SMALL
        makers = UNBROKEN if kind != "ntfs" else tuple(k for k in UNBROKEN[:-2] if not k.startswith("vhdx"))
        pool = Pool(makers, 6, 6, guests, ("dense", "copy", "direct"))
        about = f"six disks that no allocator had to break, on {kind}"
        options = "nossd" if kind == "btrfs" else ""
        host = HostSpec(kind, options=options, offline=kind == "ext3")
        made.append(Scene(f"unbroken-{kind}", about, host, pool=pool, roomy=ROOM))
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


def _bare() -> list[Scene]:
    """No host: containers of several formats, and raw disks, in shuffled fragments among other data."""
    made = []
    for name, mean in (("8m", 8 << 20), ("1m", 1 << 20), ("64k", 64 << 10)):
        about = f"five containers with machines at work in shuffled fragments of {name} on average, among other data"
        made.append(Scene(f"shuffled-{name}", about, None, pool=Pool(SHUFFLED, 5, 5, WORKING), cut=mean))
    for kind in ("ext4", "ntfs", "xfs", "btrfs"):
        guests = tuple(GuestSpec(kind, table, 64, life=life) for table, life in (("gpt", WORK), ("mbr", FEW)))
        plans = tuple(Plan(f"flat-{n}", "raw/disk", guest) for n, guest in enumerate((guests[0], guests[0], guests[1])))
        about = f"three raw disks with {kind}, no container, in shuffled"
        made.append(Scene(f"flat-{kind}-1m", f"{about} units of 1 MiB", None, plans, unit=1 << 20))
        about = f"{about} fragments of 1 MiB on average, cut at 4 KiB"
        made.append(Scene(f"flat-{kind}-4k", about, None, plans, cut=1 << 20))
    return made


def _harmed() -> list[Scene]:
    """Fragmented containers that were encrypted in part or overwritten, on each host in turn."""
    made = []
    for kind in KINDS:
        about = f"3 or 4 disks grown together, harmed: {kind}"
        pool = Pool(MAPPED, 3, 4)
        made.append(Scene(f"harmed-{kind}", about, None, pool=pool, hosts=TURN, together=True, harm=kind))
    return made + [wiped(scene) for scene in made]


def _chained() -> list[Scene]:
    """Snapshot chains, disks in several files, and disks inside guests of disks."""
    some, other = GuestSpec("ext4", "gpt", 24), GuestSpec("ntfs", "mbr", 24)
    chains = (
        Plan("vmdk-chain", "vmdk/monolithicSparse", some, chain="delta", levels=3),
        Plan("qcow2-chain", "qcow2/64k", other, chain="delta", levels=2),
        Plan("vhdx-chain", "vhdx-differencing", some),
        Plan("vhd-chain", "vhd-windows-differencing", other),
        Plan("vdi-chain", "vdi-differencing", some),
    )
    split = (
        Plan("vmdk-split", "vmdk/split-small", some),
        Plan("vmdk-split-2", "vmdk/split-small", other),
        Plan("vmdk-flat", "vmdk/monolithicFlat", some),
    )
    nest = GuestSpec("ext4", "gpt", 64, life=WORK)
    nested = (
        Plan("qcow2-outer", "qcow2/64k", nest, inner=("vmdk/monolithicSparse",)),
        Plan("raw-outer", "raw/disk", replace(nest, kind="xfs"), inner=("qcow2/64k", "vhd/dynamic")),
        Plan("vmdk-outer", "vmdk/monolithicSparse", replace(nest, kind="ntfs"), inner=("ova-sha256",)),
    )
    made = []
    for name, about, plans in (
        ("chains", "snapshot chains of five formats", chains),
        ("split", "disks in several extent files", split),
        ("nested", "disks and an OVA in the guests of disks", nested),
    ):
        made.append(Scene(name, f"{about}, grown together", None, plans, hosts=TURN, together=True))
    return made + [wiped(scene) for scene in made]


def _unkind() -> list[Scene]:
    """Guests and hosts that do not flatter: machines at work, thin disks, clones, encrypted guests."""
    clone = GuestSpec("ext4", "gpt", 48, life=WORK)
    clones = tuple(
        Plan(f"clone-{number}", key, clone, template="one")
        for number, key in enumerate(("qcow2/64k", "vmdk/monolithicSparse", "raw/disk"))
    )
    luks = GuestSpec("luks", "gpt", 32, life=WORK)
    sealed = (Plan("luks-qcow2", "qcow2/64k", luks), Plan("luks-vmdk", "vmdk/monolithicSparse", luks),
              Plan("open-vdi", "vdi/dynamic", WORKING[0]))  # fmt: skip
    working = Scene("work", "3 or 4 machines at work, grown together", None, pool=Pool(SHUFFLED, 3, 4, WORKING))
    thin = tuple(Plan(f"thin-{number}", "raw/disk", guest) for number, guest in enumerate(WORKING[:3]))
    made = [
        replace(working, hosts=TURN, together=True),
        Scene("thin", "three thin raw disks written in random order", None, thin, hosts=TURN, together=True, thin=True),
        Scene("clones", "three disks of one template, grown together", None, clones, hosts=TURN, together=True),
        Scene("sealed", "two encrypted guests beside an open one", None, sealed, hosts=TURN, together=True),
    ]
    booted = Pool(("qcow2/64k", "vmdk/monolithicSparse", "vdi/dynamic", "vhdx/dynamic-1m", "vhd/dynamic"), 2, 2,
                  (GuestSpec("ext4", "gpt", 64), GuestSpec("xfs", "gpt", 64)), ("copy",))  # fmt: skip
    about = "two guests that ran at the same time and wrote to their disks"
    made.append(Scene("ran", about, None, pool=booted, hosts=(*TURN[:1], *TURN[2:]), ran=True))
    half = replace(made[3], name="sealed-half-wiped", wiped=HEADS)
    return [*made, *(wiped(scene) for scene in made), replace(half, about=f"{half.about}; blocks of extents left")]


def wiped(scene: Scene) -> Scene:
    """The same scene with all that is not the content of a file zeroed."""
    return replace(scene, name=f"{scene.name}-wiped", about=f"{scene.about}; all but contents zeroed", wiped=ALL)
