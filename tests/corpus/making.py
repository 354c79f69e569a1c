"""Makes a scene: guests, containers, the host or the noise around them, and the truth about all of it."""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import bare, decoys, payload
from .containers import discover, qemu_name
from .disks import TEMPLATE, Built, Plan, build
from .harm import harm
from .hosts import Host, HostSpec, lognormal, new_host
from .lay import lay_of
from .partitions import MIB
from .ran import run_guests
from .scene import ALL, DELETED, Scene, host_for, plans_for
from .scenes import SCENES
from .sparse import sha256
from .survival import MOST_INLINE, has_small, matches, recoverable_blocks
from .tools import CorpusError, NeedsRoot, no_mounts_because, run
from .truth import IMAGE, ORIGINALS, Disk, Extent, HostFile, Snapshot, describe_guest, write_truth
from .wipe import Area, between_files, wipe, without

SMALLEST_HOST = 256 * MIB  # bytes
HEADROOM = {"xfs": 1.25, "btrfs": 1.6}  # size of a host over that of its files, where above the usual
OLD_FILE = (16, 19.5)  # size of a file that ages a host, least and most, as powers of two
REUSED = 0.1  # share of the freed bytes that later files take
REUSING_FILE = 256 << 10  # bytes of such a file on average
FULL = 16 * MIB  # bytes left free when a host counts as full
BACKGROUND = 3 * MIB  # bytes of other files before, between and behind the disks


@dataclass
class Placed:
    """A disk on the host: what was built, and its files as they lie there."""

    built: Built
    files: list[HostFile]

    @property
    def deleted(self) -> bool | None:
        """Whether its files are to be deleted; None for a disk inside a guest, of which no host says so."""
        return None if self.built.inside else self.built.plan.deleted


def make(name: str, out: Path, seed: int = 1, originals: bool = True) -> Path:
    """Make scene `name` in the new or empty folder `out`; return the image's path."""
    if name not in SCENES:
        raise CorpusError(f"{name}: no such scene")
    if out.exists() and any(out.iterdir()):
        raise CorpusError(f"{out}: not empty")
    (out / ORIGINALS).mkdir(parents=True)
    work = out / "work"
    work.mkdir()
    try:
        _Making(SCENES[name], out, work, seed, originals).run()
    finally:
        shutil.rmtree(work)
        if not originals:
            shutil.rmtree(out / ORIGINALS)
    return out / IMAGE


class _Making:
    """One run of `make`."""

    def __init__(self, scene: Scene, out: Path, work: Path, seed: int, originals: bool) -> None:
        self.scene = replace(scene, host=host_for(scene, seed))
        self.out, self.work, self.originals = out, work, originals
        self.seed, self.key = seed, f"{scene.name}-{seed}"
        self.plans = plans_for(scene, seed)
        self.debris: list[Area] = []
        self.aside = 0
        self.image = out / IMAGE
        self.makers = discover()
        self.guests, self.stage = out / ORIGINALS, work / "stage"
        why = no_mounts_because()
        self.mounts = why is None and not scene.offline
        if why and not scene.offline:
            host = self.scene.host
            if host and not host.kind.startswith(("ext4", "fat32")):
                raise NeedsRoot(f"{scene.name}: needs loop mounts ({why})")
            print(
                f"{scene.name}: {why}, so made with mkfs -d, debugfs and mtools, on ext4 and FAT32 only",
                file=sys.stderr,
            )

    def run(self) -> None:
        """Make everything."""
        head: dict[str, Any] = {
            "scene": self.scene.name,
            "seed": self.seed,
            "about": self.scene.about,
            "mounts": self.mounts,
        }
        if self.scene.host is None:
            disks = self._bare()
            head["host"] = None
        else:
            disks, wiped = self._on_host(self.scene.host)
            head["host"] = {
                "kind": self.scene.host.kind, "table": self.scene.host.table, "wiped_bytes": wiped,
                "wiped": self.scene.wiped,
            }  # fmt: skip
        for pattern in ("*.volume", f"*-{TEMPLATE}-*.raw"):
            for left in self.guests.glob(pattern):
                left.unlink()
        write_truth(self.out, head, disks)

    def _build(self, plan: Plan, out: Path) -> list[Built]:
        return build(plan, self.makers, self.key, self.guests, out, self.mounts)

    # without a host

    def _bare(self) -> list[Disk]:
        rng = random.Random(f"bare {self.key}")
        if self.scene.decoys:
            bare.write_pieces(self.image, decoys.pieces(rng), rng)
            return []
        built = [one for plan in self.plans for one in self._build(plan, self.stage / plan.name)]
        laid = [file for one in built if not one.inside for file in one.files]
        extents = bare.lay_out(self.image, laid, self.scene.cut, rng, self.scene.unit)
        placed = []
        for one in built:
            files = [self._host_file(one, file, None) for file in one.files]
            for file, row in zip(one.files, files, strict=True):
                row.extents = extents.get(file, [])
                row.lay = lay_of(row.extents).to_json()
            placed.append(Placed(one, files))
        return [self._truth(one, None, "bare") for one in placed]

    # on a host

    def _on_host(self, spec: HostSpec) -> tuple[list[Disk], int]:
        direct = self._writes_directly(spec)
        built = {
            plan.name: self._build(plan, self.stage / plan.name)
            for plan in self.plans
            if not (direct and plan.delivery == "direct")
        }
        host = new_host(spec, self.image, self._host_size(spec, built), self.key, self.mounts)
        host.open()
        try:
            doomed = list(self._background(host, "before", 2 * BACKGROUND))
            if self.scene.roomy:
                self._start_volume(host)
            if self.scene.together or self.scene.ran:
                files = sum(file.stat().st_size for _, file in self._on_it(built))
                files += sum(plan.guest.size for plan in self.plans) if self.scene.ran else 0
                self._age(host, files + FULL + len(self.plans) * BACKGROUND)
            if self.scene.decoys:
                doomed += self._put_decoys(host)
            built = self._put_disks(host, built, doomed)
            host.sync()
            contents = host.contents()
            between = between_files(host, contents)
            placed = [self._locate(host, one, contents, between) for group in built.values() for one in group]
            if self.scene.remount:
                host.close()
                host.open()
            if self.scene.reuse:
                self._fill(host)
            for one in placed:
                if one.deleted:
                    for row in one.files:
                        host.remove(row.host_path)
            for path in doomed[::3] if not self.scene.decoys else doomed:
                host.remove(path)
            if self.scene.reused:
                host.sync()
                list(self._background(host, "after", 6 * BACKGROUND))
            if self.scene.reuse:
                between += self._reuse(host, sum(row.size for one in placed for row in one.files))
        finally:
            host.close()
        self._clear(contents + between)
        kept = [extent for one in placed for row in one.files for extent in row.extents if not self.scene.reuse]
        wiped = self._wipe(host, kept, between) if self.scene.wiped else 0
        if self.scene.harm:
            files = [row for one in placed for row in one.files]
            harm(self.image, files, self.scene.harm, random.Random(f"harm {self.key}"))
        return [self._truth(one, one.deleted, self._delivered(one)) for one in placed], wiped

    def _wipe(self, host: Host, kept: list[Extent], between: list[Area]) -> int:
        everything = self.scene.wiped == ALL
        return wipe(self.image, host.spec, host.offset, kept, between if everything else [], everything)

    def _delivered(self, one: Placed) -> str:
        if self.scene.together or self.scene.ran:
            return "grown"
        asked = one.built.plan.delivery
        assert self.scene.host is not None
        return "copy" if asked == "direct" and not self._writes_directly(self.scene.host) else asked

    def _writes_directly(self, spec: HostSpec) -> bool:
        """Whether QEMU can write onto the host; FAT32 is never mounted."""
        return self.mounts and not self.scene.together and spec.kind != "fat32" and not spec.offline

    def _host_size(self, spec: HostSpec, built: dict[str, list[Built]]) -> int:
        """Bytes for the image: the files, room for the file system, and some free space."""
        if self.scene.roomy:
            return self.scene.roomy
        if self.scene.ran:
            return (4 * sum(plan.guest.size for plan in self.plans) + 64 * MIB) // MIB * MIB
        total = 4 * len(self.plans) * BACKGROUND + (decoys.BUDGET if self.scene.decoys else 0)
        for plan in self.plans:
            if plan.name not in built:
                total += plan.guest.volume_mib * MIB
            for one in built.get(plan.name, []):
                holes = plan.delivery != "dense" and spec.kind not in ("fat32", "exfat") and not self.scene.together
                total += sum(file.stat().st_blocks * 512 if holes else file.stat().st_size for file in one.files)
        if self.scene.reused:
            return max(SMALLEST_HOST // 2, int(total * 1.05)) // MIB * MIB
        return max(SMALLEST_HOST, int(total * HEADROOM.get(spec.kind, 1.15)) + 48 * MIB) // MIB * MIB

    def _put_disks(self, host: Host, built: dict[str, list[Built]], doomed: list[str]) -> dict[str, list[Built]]:
        """Bring all disks onto the host; return them in the plans' order, with their files in the stage."""
        rng = random.Random(f"grow {self.key}")
        if self.scene.together:
            (host.grow_thin if self.scene.thin else host.grow)(
                [(file, self._path(one, file)) for one, file in self._on_it(built)], rng
            )
        done: dict[str, list[Built]] = {}
        for plan in self.plans:
            if plan.name in built:
                done[plan.name] = built[plan.name]
                if not self.scene.together:
                    for one, file in self._on_it({plan.name: built[plan.name]}):
                        self._put(host, file, self._path(one, file), plan.delivery == "dense")
            else:
                assert host.root is not None
                done[plan.name] = self._build_there(host, plan)
            doomed += self._background(host, f"beside-{plan.name}", BACKGROUND)
        if self.scene.ran:
            self._run_guests(host, done)
        return done

    def _run_guests(self, host: Host, built: dict[str, list[Built]]) -> None:
        """Boot all guests on their containers, and take over what they became."""
        assert host.root is not None
        on_it = [(one, file, host.root / self._path(one, file)) for one, file in self._on_it(built)]
        cache = "writeback" if host.spec.kind == "ntfs" else "none"
        run_guests(
            [(there, str(one.driver), one.guest.spec.kind, one.guest.key) for one, _, there in on_it], self.work, cache
        )
        for one, file, there in on_it:
            run("cp", "--sparse=always", there, file)
            run("qemu-img", "convert", "-O", "raw", qemu_name(str(one.driver), file), one.guest.raw)
            one.written = "ran"


    def _build_there(self, host: Host, plan: Plan) -> list[Built]:
        """QEMU writes the container onto the host; the stage gets a copy."""
        assert host.root is not None
        there = host.root / "vms" / plan.name
        there.parent.mkdir(exist_ok=True)
        if self.scene.roomy:
            host.sync()
        made = self._build(plan, there)
        run("cp", "-r", "--sparse=always", there, self.stage / plan.name)
        done = [one.moved(there, self.stage / plan.name) for one in made]
        if self.scene.roomy:
            for one in done:
                for file in one.files:
                    if self._is_broken(host, self._path(one, file)):
                        self._put(host, file, self._path(one, file), dense=False)
        return done

    def _start_volume(self, host: Host) -> None:
        """Fill the first small block group of a Btrfs, which would break what comes next."""
        if host.root is not None and host.spec.kind == "btrfs":
            for number in range(10):
                (host.root / f"first-{number}.dat").write_bytes(payload.noise(random.Random(f"{self.key}"), MIB))
                host.sync()

    def _put(self, host: Host, file: Path, path: str, dense: bool) -> None:
        """Copy a file onto the host; on a roomy one until the host does not break it, at last preallocated."""
        if not self.scene.roomy:
            host.put(file, path, dense)
            return
        ways = (host.put, host.put_steadily, host.put_preallocated, *[host.put] * 9) if host.root else (host.put,)
        for put in ways:
            host.sync()  # else the kernel writes several files out in turn, and they break
            put(file, path, dense)
            if not self._is_broken(host, path):
                return
        raise CorpusError(f"{self.scene.name}: the host breaks {path}")

    def _is_broken(self, host: Host, path: str) -> bool:
        """Whether a file lies in fragments. If so it becomes another one, which lives: no trace of a second disk stays.

        Btrfs writes the other content elsewhere, so what lay there before is zeroed at the end."""
        host.sync()
        extents = host.locate(path)
        contents = host.contents()
        lay = lay_of(extents, contents, between_files(host, contents))
        if not lay.jumps and not lay.gaps:
            return False
        self.debris += [(at, length) for _, at, length, mark in extents if mark != "inline"]
        self.aside += 1
        rng = random.Random(f"aside {self.key} {self.aside}")
        host.turn_into(path, f"aside/{self.aside}.dat", rng)
        if host.root is not None:  # the next copy is to begin elsewhere in the host's own grid
            (host.root / f"aside/{self.aside}.gap").write_bytes(payload.stretch(rng, rng.randrange(1, 12) * MIB))
        return True

    def _clear(self, contents: Sequence[Area]) -> None:
        """Zero what broken copies left outside of `contents`, or an image would hold the same disk twice."""
        for at, length in without(self.debris, contents):
            with self.image.open("r+b") as file:
                file.seek(at)
                file.write(bytes(length))

    @staticmethod
    def _on_it(built: dict[str, list[Built]]) -> list[tuple[Built, Path]]:
        """The files that lie on the host itself, with their disks."""
        return [(one, file) for group in built.values() for one in group if not one.inside for file in one.files]

    @staticmethod
    def _path(one: Built, file: Path) -> str:
        return f"vms/{one.plan.name}/{file.name}"

    def _background(self, host: Host, key: str, budget: int) -> Iterator[str]:
        """Put ordinary files onto the host, a few dozen at most; yields their paths."""
        scratch = self.work / "scratch"
        count = 0
        for name, content in payload.files(f"{self.key} host {key}", budget):
            if len(content) < 4096 or count == 30:
                continue
            count += 1
            scratch.write_bytes(content)
            path = f"{key}/{name.rsplit('/', 1)[-1].replace(' ', '_')}"
            host.put(scratch, path, dense=True)
            yield path

    def _age(self, host: Host, needed: int) -> None:
        """Break up the free space: old files fill the host, and go at random until `needed` bytes are free."""
        if host.root is None or host.spec.kind == "btrfs":  # Btrfs scatters what it writes without this
            return
        rng, paths = random.Random(f"age {self.key}"), list[Path]()
        (host.root / "old").mkdir()
        while host.free() > FULL:
            paths.append(host.root / "old" / f"{len(paths):04d}.dat")
            paths[-1].write_bytes(payload.stretch(rng, int(2 ** rng.uniform(*OLD_FILE))))
        host.sync()
        rng.shuffle(paths)
        while host.free() < needed and paths:
            paths.pop().unlink()
            if len(paths) % 16 == 0:
                host.sync()

    def _fill(self, host: Host) -> None:
        """Take the space that is free, so that later files can only go where the deleted ones were."""
        assert host.root is not None
        rng, folder = random.Random(f"fill {self.key}"), host.root / "filler"
        folder.mkdir()
        keep = (FULL if host.spec.kind == "btrfs" else MIB) + 4096
        with contextlib.suppress(OSError):  # full before we thought so
            for number in range(10**4):
                if (size := min(4 * MIB, host.free() - keep)) <= 0:
                    break
                (folder / f"{number}.dat").write_bytes(payload.stretch(rng, size))
        host.sync()

    def _reuse(self, host: Host, freed: int) -> list[Area]:
        """Files that take a share of the freed blocks; what the host holds for itself while they are there."""
        assert host.root is not None
        rng, folder, made = random.Random(f"reuse {self.key}"), host.root / "later", 0
        host.sync()
        folder.mkdir()
        while made < freed * REUSED:
            size = min(lognormal(rng, REUSING_FILE), int(freed * REUSED) - made + 4096)
            (folder / f"{made}.dat").write_bytes(payload.stretch(rng, size))
            made += size
        host.sync()
        areas = between_files(host, host.contents())
        if self.scene.reuse == DELETED:
            shutil.rmtree(folder)
        return areas

    def _put_decoys(self, host: Host) -> list[str]:
        """Put the decoys onto the host as files; every second one is to be deleted."""
        paths = []
        for number, (name, content) in enumerate(decoys.pieces(random.Random(f"decoys {self.key}"))):
            scratch = self.work / "scratch"
            scratch.write_bytes(content)
            path = f"decoys/{number:03d}-{name}"
            host.put(scratch, path, dense=True)
            paths.append(path)
        return paths[::2]

    # the truth

    def _host_file(self, one: Built, file: Path, path: str | None) -> HostFile:
        role = "descriptor" if file == one.opened and file != one.main else "container"
        return HostFile(path or file.name, role, file.stat().st_size, sha256(file))

    def _locate(self, host: Host, one: Built, contents: list[Area], between: list[Area]) -> Placed:
        """Ask the host where the files lie, and read them there to be sure."""
        files = []
        for file in one.files:
            row = self._host_file(one, file, f"{one.inside}/{file.name}" if one.inside else self._path(one, file))
            if one.inside:
                files.append(row)
                continue
            row.extents = host.locate(row.host_path)
            row.lay = lay_of(row.extents, contents, between).to_json()
            resident = not row.extents and row.size <= 4096
            if not resident and not matches(self.image, file, row.extents):
                raise CorpusError(f"{self.scene.name}: {row.host_path} does not lie where the host says")
            files.append(row)
        return Placed(one, files)

    def _truth(self, placed: Placed, deleted: bool | None, delivered: str) -> Disk:
        one = placed.built
        size = one.virtual_size
        guest = describe_guest(self.out, one.name, one.guest.raw, size, self.originals)
        snapshots = []
        for name, older in one.snapshots:
            state = describe_guest(self.out, f"{one.name}.{name}", older.raw, size, self.originals)
            snapshots.append(Snapshot(**vars(state), name=name))
        own = None
        if one.own_blocks is not None:
            own = f"{one.name}.own.npy"
            np.save(self.out / own, one.own_blocks)
        disk = Disk(
            one.name, one.maker.format, one.variant, one.driver, one.written, delivered, deleted, one.encrypted,
            one.guest_known, one.parent, one.inside, one.guest.spec.kind, guest, own, snapshots, placed.files,
            one.files.index(one.main),
        )  # fmt: skip
        self._check_survival(placed, disk)
        for file in one.files:
            shutil.move(file, self.out / ORIGINALS / file.name)
        return disk

    def _check_survival(self, placed: Placed, disk: Disk) -> None:
        """Note whether the final image still has all bytes, and which guest blocks they give where not."""
        rows = [(file, row.extents) for file, row in zip(placed.built.files, placed.files, strict=True) if row.extents]
        small = [file for file, row in zip(placed.built.files, placed.files, strict=True)
                 if not row.extents and 0 < row.size <= MOST_INLINE and disk.inside is None]
        disk.intact = all(matches(self.image, file, extents) for file, extents in rows) and \
            all(has_small(self.image, file) for file in small)
        if not disk.intact:
            blocks = recoverable_blocks(
                self.image, placed.built, dict(rows), self.out / disk.guest.guest_hashes, self.work
            )
            disk.recoverable = f"{disk.name}.recoverable.npy"
            np.save(self.out / disk.recoverable, blocks)
