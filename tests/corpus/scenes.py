"""The scenes by name: which disks lie on which host, what is deleted, and what happened afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import hard
from .containers import QemuMaker, discover, external
from .disks import Plan
from .hosts import HostSpec
from .scene import DELIVERIES, GUESTS, HEADS, Scene, fit, slug, widened

MIXED = (  # six disks of six formats: the ordinary population of a host
    "vmdk/monolithicSparse",
    "vhd/dynamic",
    "vhdx/dynamic-1m",
    "vdi/dynamic",
    "qcow2/64k",
    "vmdk/streamOptimized",
)
FRAGMENTED = ("vmdk/monolithicSparse", "qcow2/64k", "vhd/dynamic", "vdi/dynamic")
GROUPS = {
    "vmdk": ("vmdk",),
    "microsoft": ("vhd", "vhdx"),
    "qcow2": ("qcow2",),
    "others": ("vdi", "qcow", "qed", "parallels", "raw"),
}
def _plans(keys: Sequence[str], live_every: int = 4, deliveries: Sequence[str] = DELIVERIES) -> tuple[Plan, ...]:
    """One disk per maker; every `live_every`-th (0: none) stays live."""
    plans = []
    for number, key in enumerate(keys):
        guest = widened(key, GUESTS[number % len(GUESTS)])
        delivery = fit(key, guest, deliveries[number % len(deliveries)])
        deleted = not live_every or number % live_every != live_every - 1
        plans.append(Plan(slug(key), key, guest, deleted, delivery))
    return tuple(plans)


def _group(formats: Sequence[str]) -> tuple[Plan, ...]:
    """Every variant of these formats that QEMU writes, with a delta and snapshots where the format has them."""
    makers = discover()
    own = set(makers) - set(external(makers))
    keys = [key for key in makers if key in own and key.split("/")[0] in formats]
    plans = _plans(keys, live_every=6)
    if "vmdk" in formats:
        plans += (Plan("vmdk-chain", "vmdk/monolithicSparse", GUESTS[0], chain="delta"),)
    if "qcow2" in formats:
        plans += (
            Plan("qcow2-chain", "qcow2/64k", GUESTS[1], chain="delta"),
            Plan("qcow2-history", "qcow2/4k", GUESTS[0], chain="snapshots"),
        )
    return plans


def _host_scenes() -> list[Scene]:
    made: list[Scene] = []
    for name, kind, table, remount in (
        ("ext4-contiguous", "ext4", "none", True),
        ("ext4-contiguous-mbr", "ext4", "mbr", False),
        ("ext4-1k-contiguous", "ext4-1k", "none", False),
        ("ext3-contiguous", "ext3", "mbr", True),
        ("xfs-contiguous", "xfs", "none", False),
        ("xfs-contiguous-gpt", "xfs", "gpt", True),
        ("ntfs-contiguous", "ntfs", "mbr", True),
        ("ntfs-contiguous-bare", "ntfs", "none", False),
        ("btrfs-contiguous", "btrfs", "none", True),
        ("btrfs-contiguous-gpt", "btrfs", "gpt", False),
        ("fat32-contiguous", "fat32", "mbr", True),
        ("exfat-contiguous", "exfat", "gpt", True),
    ):
        about = f"six disks of six kinds on {kind}, partition table: {table}; five deleted"
        made.append(Scene(name, about, HostSpec(kind, table), _plans(MIXED, live_every=6), remount=remount))
    for kind in ("ext4", "xfs", "ntfs", "btrfs"):
        for group, formats in GROUPS.items():
            about = f"every {group} variant that QEMU writes, on {kind}"
            table = "gpt" if kind in ("xfs", "ntfs") else "none"
            made.append(Scene(f"all-formats-{kind}-{group}", about, HostSpec(kind, table), _group(formats)))
        about = f"four containers that grew at the same time on {kind}"
        plans = _plans(FRAGMENTED, live_every=0, deliveries=("copy",))
        made.append(Scene(f"fragmented-{kind}", about, HostSpec(kind), plans, together=True))
    for form, names in _foreign().items():
        about = f"{form} files of our own writers on ext4"
        made.append(Scene(f"makers-ext4-{form}", about, HostSpec("ext4"), _plans(names, live_every=0)))
    return made


def _foreign() -> dict[str, list[str]]:
    """Names of the makers of `tests/makers`, by format."""
    makers, grouped = discover(), dict[str, list[str]]()
    for name in external(makers):
        grouped.setdefault(makers[name].format, []).append(name)
    return grouped


def _bare_scenes() -> list[Scene]:
    makers = discover()
    own = set(makers) - set(external(makers))
    small = [key for key in makers if key in own and not (isinstance(maker := makers[key], QemuMaker) and maker.wide)]
    made = [
        Scene(
            f"bare-{group}", f"{group} containers in noise, no host", None, _plans(_only(small, formats), 0, ("copy",))
        )
        for group, formats in GROUPS.items()
    ]
    made += [
        Scene(f"bare-makers-{form}", f"{form} files of our own writers in noise", None, _plans(names, 0, ("copy",)))
        for form, names in _foreign().items()
    ]
    made.append(
        Scene("bare-all-formats", "one container of each format in noise", None, _plans(_firsts(small), 0, ("copy",)))
    )
    return made


def _only(keys: Sequence[str], formats: Sequence[str]) -> list[str]:
    return [key for key in keys if key.split("/")[0] in formats]


def _firsts(keys: Sequence[str]) -> list[str]:
    """The first key of each format."""
    return list({key.split("/")[0]: key for key in reversed(keys)}.values())[::-1]


def _special_scenes() -> list[Scene]:
    demo = _plans(MIXED[:5] + ("vhd/fixed",), live_every=0)
    mixed = _plans(MIXED, live_every=6)
    some = _plans(MIXED[:3], live_every=0, deliveries=("copy", "dense"))
    return [
        Scene("demo", "ext4 with six deleted disks of six kinds", HostSpec("ext4", "gpt"), demo),
        Scene("ext4-reused", "ext4; later files took some of the freed space", HostSpec("ext4"), mixed, reused=True),
        Scene("ext4-no-root", "three disks on ext4, made without mounts", HostSpec("ext4", "mbr"), some, offline=True),
        Scene("decoys", "no disk, but every magic, in wrong places", None, (), decoys=True),
        Scene("decoys-ext4", "the decoys as live and deleted files on ext4", HostSpec("ext4", "gpt"), (), decoys=True),
    ]


def _all() -> dict[str, Scene]:
    scenes = _host_scenes()
    wiped = [
        replace(
            scene,
            name=scene.name.replace("-contiguous", "") + "-wiped",
            about=f"{scene.about}; the host's own metadata zeroed",
            wiped=HEADS,
        )
        for scene in scenes
    ]
    named = {scene.name: scene for scene in (*scenes, *wiped, *_bare_scenes(), *_special_scenes(), *hard.scenes())}
    return dict(sorted(named.items()))


SCENES: dict[str, Scene] = _all()
