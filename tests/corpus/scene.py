"""What a scene is: which disks lie on which host, how they came there, and what happened afterwards. Data only."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace

from .containers import QemuMaker, discover
from .disks import Plan
from .guests import FEW, WORK, GuestSpec
from .hosts import HostSpec

GUESTS = (  # guest file systems in turn; volume sizes that their mkfs accepts
    GuestSpec("ext4", "gpt", 24),
    GuestSpec("ntfs", "mbr", 24),
    GuestSpec("xfs", "gpt", 32),
    GuestSpec("fat32", "mbr", 40),
    GuestSpec("ext4", "none", 20),
    GuestSpec("btrfs", "gpt", 32),
)
WORKING = (  # guests that look like machines at work, and a database server
    GuestSpec("ext4", "gpt", 48, life=WORK),
    GuestSpec("ntfs", "mbr", 48, life=WORK),
    GuestSpec("xfs", "gpt", 48, life=WORK),
    GuestSpec("ext4", "none", 40, life=FEW),
    GuestSpec("btrfs", "gpt", 48, life=WORK),
    GuestSpec("ntfs", "gpt", 40, life=FEW),
)
WIDE_MIB = 2 * 1024 + 96  # a disk that needs two extent files of 2 GiB
DELIVERIES = ("copy", "dense", "copy", "direct")

HEADS = "heads"  # the host's superblocks, tables, journal and btrees are zeroed; what lies between files stays
ALL = "all"  # all that is not the content of a file: directories and blocks of file extents too

LIVE, DELETED = "live", "deleted"


@dataclass(frozen=True)
class Pool:
    """Disks that a seed draws: `least` to `most` of `makers` in turn, so that a few seeds use them all.

    Further fields are those of every plan."""

    makers: tuple[str, ...]
    least: int
    most: int
    guests: tuple[GuestSpec, ...] = GUESTS
    deliveries: tuple[str, ...] = ("copy",)
    inner: tuple[str, ...] = ()
    template: str = ""


@dataclass(frozen=True)
class Scene:
    """How one image is made. `cut` is the mean fragment of a bare image in bytes (0: containers stay whole)."""

    name: str
    about: str
    host: HostSpec | None
    plans: tuple[Plan, ...] = ()
    pool: Pool | None = None  # further disks, drawn by the seed
    together: bool = False  # containers grow at the same time, by appends in turn
    roomy: int = 0  # bytes of an empty host on which no file needs to be broken; 0: as large as the files ask for
    remount: bool = True  # unmounted and mounted again between writing and deleting
    wiped: str = ""  # "", HEADS or ALL
    reused: bool = False  # later files take some of the freed space
    reuse: str = ""  # a tenth of the freed blocks goes to later files, which LIVE or were DELETED in turn
    offline: bool = False  # made without mounts even where they are possible
    harm: str = ""  # a kind of harm.py, done to every container
    hosts: tuple[HostSpec, ...] = ()  # the seed takes one of them, in turn
    thin: bool = False  # files are written in random order where the guest writes, and are holes elsewhere
    ran: bool = False  # guests are booted on the host, all at once, and write to their disks
    cut: int = 0
    unit: int = 0  # bytes of every fragment of a bare image, and of what lies between, instead of `cut`
    decoys: bool = False


def host_for(scene: Scene, seed: int) -> HostSpec | None:
    """The host of a scene for this seed."""
    return scene.hosts[seed % len(scene.hosts)] if scene.hosts else scene.host


def plans_for(scene: Scene, seed: int) -> tuple[Plan, ...]:
    """The disks of a scene for this seed."""
    if scene.pool is None:
        return scene.plans
    pool = scene.pool
    name = scene.name.removesuffix("-wiped")
    rng = random.Random(f"pool {name} {seed}")
    count, first = rng.randint(pool.least, pool.most), seed * pool.most + zlib.crc32(name.encode())
    keys = [pool.makers[(first + number) % len(pool.makers)] for number in range(count)]
    return scene.plans + tuple(_drawn(pool, key, number, rng) for number, key in enumerate(keys))


def _drawn(pool: Pool, key: str, number: int, rng: random.Random) -> Plan:
    guest, delivery = rng.choice(pool.guests), rng.choice(pool.deliveries)
    name = f"{number}-{slug(key)}"
    return Plan(name, key, guest, delivery=fit(key, guest, delivery), inner=pool.inner, template=pool.template)


def slug(key: str) -> str:
    """A maker's key as a file name."""
    return key.replace("/", "-").lower()


def fit(key: str, guest: GuestSpec, delivery: str) -> str:
    """How such a disk can be delivered: too wide to be written out, or not QEMU's to write, is copied."""
    return "copy" if guest.disk_mib or not isinstance(discover()[key], QemuMaker) else delivery


def widened(key: str, guest: GuestSpec) -> GuestSpec:
    """The guest, made wide where the maker is for wide disks."""
    maker = discover()[key]
    return replace(guest, disk_mib=WIDE_MIB, table="gpt") if isinstance(maker, QemuMaker) and maker.wide else guest
