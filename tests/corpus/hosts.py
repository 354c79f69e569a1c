"""Host file systems on an image: files are put on, located and deleted, through a mount or without one."""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import fiemap, payload
from .fat import Fat
from .loops import loop_device, mounted
from .nbd import random_writes
from .ntfs import Ntfs
from .partitions import seeded_uuid, volume_offset, volume_size, write_table
from .sparse import new_sparse, nonzero_runs, pieces
from .tools import CorpusError, run
from .truth import Extent

APPENDS = (64 << 10, 256 << 10, 1 << 20)  # mean bytes of one append while files grow together: one for a host
SYNC = 0.05  # chance that a random write is made durable at once
SIGMA = 1.0  # of the lognormal sizes of appends


STEADY, STEADY_MOST = 128 << 10, 4 << 20  # bytes; Btrfs has block groups of their own for smaller and larger extents


@dataclass(frozen=True)
class HostSpec:
    """A host: "ext4", "ext4-1k", "ext3", "xfs", "ntfs", "btrfs", "fat32" or "exfat", and its partition table."""

    kind: str
    table: str = "none"
    options: str = ""  # of the mount
    offline: bool = False  # filled by the tools of the file system though mounts are possible

    @property
    def mount_kind(self) -> str:
        """The name that mount knows."""
        return self.kind.removesuffix("-1k")


class Host(ABC):
    """A host volume inside an image that is being filled. Subclasses say how its files are reached."""

    keeps_holes = True

    def __init__(self, spec: HostSpec, image: Path, size: int, key: str) -> None:
        self.spec, self.image = spec, image
        new_sparse(image, size)
        write_table(image, spec.table, spec.mount_kind, f"host {key}")
        self.offset, self.size = volume_offset(spec.table), volume_size(spec.table, size)
        self.key = key

    @property
    def root(self) -> Path | None:
        """The mounted root, while there is one."""
        return None

    @abstractmethod
    def open(self) -> None:
        """Make the files reachable."""

    @abstractmethod
    def close(self) -> None:
        """Write everything to the image and let go of it."""

    @abstractmethod
    def sync(self) -> None:
        """Bring everything into the image while it stays open."""

    def free(self) -> int:
        """Bytes that new files may take, as the file system says."""
        raise CorpusError(f"{self.spec.kind}: nobody says here what is free")

    @abstractmethod
    def put(self, source: Path, path: str, dense: bool) -> None:
        """Copy one file onto the host in one go; `dense` writes zeros where the source has holes."""

    def put_steadily(self, source: Path, path: str, dense: bool) -> None:
        """Copy one file run after run, each brought to its place before the next is written."""
        raise CorpusError(f"{self.spec.kind}: files cannot be written piece by piece here")

    def put_preallocated(self, source: Path, path: str, dense: bool) -> None:
        """Copy one file into space that was asked for in advance; unless `dense`, its holes are made at the end."""
        raise CorpusError(f"{self.spec.kind}: no space can be asked for in advance here")

    def turn_into(self, path: str, new: str, rng: random.Random) -> None:
        """Give a file other content, at the same place where the file system writes in place, and another name."""
        raise CorpusError(f"{self.spec.kind}: files cannot be changed here")

    def grow(self, sources: Sequence[tuple[Path, str]], rng: random.Random) -> None:
        """Copy several files at once by small appends in turn."""
        raise CorpusError(f"{self.spec.kind}: files cannot grow together here")

    def grow_thin(self, sources: Sequence[tuple[Path, str]], rng: random.Random) -> None:
        """Fill several files at once by writes in random order, holes kept."""
        raise CorpusError(f"{self.spec.kind}: files cannot be written in random order here")

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete one file."""

    @abstractmethod
    def locate(self, path: str) -> list[Extent]:
        """Extents of one file in bytes of the image."""

    def contents(self) -> list[tuple[int, int]]:
        """(image_offset, length) of the content of every file that is there now."""
        return []

    @property
    def tool_target(self) -> str:
        """How the tools of the file system name the volume as it is now."""
        return f"{self.image}?offset={self.offset}"


class MountedHost(Host):
    """A host that the kernel, or a FUSE program, mounts."""

    def __init__(self, spec: HostSpec, image: Path, size: int, key: str) -> None:
        super().__init__(spec, image, size, key)
        self._open = contextlib.ExitStack()
        self._root: Path | None = None
        self.device = ""
        with loop_device(image, self.offset, self.size) as device:
            run(*_mkfs(spec, random.Random(f"host {key}")), device)

    @property
    def root(self) -> Path | None:
        """The mounted root, while there is one."""
        return self._root

    def open(self) -> None:
        """Mount."""
        self.device = self._open.enter_context(loop_device(self.image, self.offset, self.size))
        self._root = self._open.enter_context(
            mounted(self.device, self.spec.mount_kind, self.image.with_suffix(".host"), self.spec.options)
        )

    def close(self) -> None:
        """Unmount."""
        self._root = None
        self._open.close()
        _sync_file(self.image)

    def sync(self) -> None:
        """Flush this file system and its loop device."""
        run("sync", "--file-system", self._at("."))
        run("blockdev", "--flushbufs", self.device)
        _sync_file(self.image)

    def free(self) -> int:
        """Bytes that new files may take, as the file system says."""
        status = os.statvfs(self._at("."))
        return status.f_bavail * status.f_frsize

    def _at(self, path: str) -> Path:
        assert self._root is not None, "host is not open"
        return self._root / path

    def put(self, source: Path, path: str, dense: bool) -> None:
        """Copy with cp, holes kept (and more made, where zeros are written) or filled."""
        target = self._at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        run("cp", f"--sparse={'never' if dense else 'always'}", source, target)

    def put_steadily(self, source: Path, path: str, dense: bool) -> None:
        """Copy run after run, each brought to its place before the next is written."""
        size = source.stat().st_size
        with self._at(path).open("xb") as file, source.open("rb") as here:
            for start, end in [(0, size)] if dense else _steady_runs(source, size):
                for at in range(start, end, STEADY_MOST):
                    here.seek(at)
                    file.seek(at)
                    file.write(here.read(min(STEADY_MOST, end - at)))
                    file.flush()
                    os.fdatasync(file.fileno())
            file.truncate(size)

    def put_preallocated(self, source: Path, path: str, dense: bool) -> None:
        """Write into space asked for in advance; its unused parts become holes, where the file system can punch."""
        if self.spec.kind == "ntfs":
            self.put(source, path, dense=True)
            return
        target, end = self._at(path), 0
        with target.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, source.stat().st_size)
            for at, block in pieces(source):
                for start, stop in [(0, len(block))] if dense else nonzero_runs(block):
                    file.seek(at + start)
                    file.write(block[start:stop])
                    if not dense and at + start > end:
                        file.flush()
                        run("fallocate", "--punch-hole", "-o", str(end), "-l", str(at + start - end), target)
                    end = at + stop

    def turn_into(self, path: str, new: str, rng: random.Random) -> None:
        """Write over it, durably, and rename."""
        size = self._at(path).stat().st_size
        with self._at(path).open("r+b") as file:
            for at in range(0, size, STEADY_MOST):
                file.seek(at)
                file.write(payload.stretch(rng, min(STEADY_MOST, size - at)))
            file.flush()
            os.fsync(file.fileno())
        self._at(new).parent.mkdir(exist_ok=True)
        self._at(path).rename(self._at(new))

    def grow(self, sources: Sequence[tuple[Path, str]], rng: random.Random) -> None:
        """Append to a file drawn by lot, and make that durable, until all are whole."""
        mean = rng.choice(APPENDS)
        with contextlib.ExitStack() as stack:
            growing = []
            for source, path in sources:
                self._at(path).parent.mkdir(parents=True, exist_ok=True)
                growing.append((stack.enter_context(source.open("rb")), stack.enter_context(self._at(path).open("wb"))))
            while growing:
                pair = rng.choice(growing)
                block = pair[0].read(lognormal(rng, mean))
                if not block:
                    growing.remove(pair)
                    continue
                pair[1].write(block)
                pair[1].flush()
                os.fsync(pair[1].fileno())

    def grow_thin(self, sources: Sequence[tuple[Path, str]], rng: random.Random) -> None:
        """Files of full size from the start, written where they hold data, in random order and in turn."""
        with contextlib.ExitStack() as stack:
            writes = []
            for source, path in sources:
                self._at(path).parent.mkdir(parents=True, exist_ok=True)
                target = stack.enter_context(self._at(path).open("wb"))
                target.truncate(source.stat().st_size)
                pair = stack.enter_context(source.open("rb")), target
                writes += [(pair, at, length) for at, length in random_writes(source, rng)]
            rng.shuffle(writes)
            for (here, target), at, length in writes:
                here.seek(at)
                target.seek(at)
                target.write(here.read(length))
                target.flush()
                if rng.random() < SYNC:
                    os.fsync(target.fileno())

    def remove(self, path: str) -> None:
        """Unlink."""
        self._at(path).unlink()

    def locate(self, path: str) -> list[Extent]:
        """Extents by the file system's own word: FIEMAP, or what lies on the volume for FUSE ones."""
        if self.spec.kind == "ntfs":
            status = self._at(path).stat()
            return Ntfs(self.image, self.offset).extents(status.st_ino, status.st_size)
        if self.spec.kind == "exfat":
            return Fat(self.image, self.offset).extents(path)
        extents = fiemap.fiemap(self._at(path))
        if self.spec.kind == "btrfs":
            extents = fiemap.through_chunks(extents, fiemap.btrfs_chunks(self.device))
        return [(file_offset, at + self.offset, length, mark) for file_offset, at, length, mark in extents]

    def contents(self) -> list[tuple[int, int]]:
        """(image_offset, length) of the content of every file that is there now."""
        if self.spec.kind == "ntfs":
            return Ntfs(self.image, self.offset).contents()
        found = []
        for folder, _, names in os.walk(self._at(".")):
            for name in names:
                path = str(Path(folder, name).relative_to(self._at(".")))
                found += [(at, length) for _, at, length, mark in self.locate(path) if mark != "inline"]
        return sorted(found)

    @property
    def tool_target(self) -> str:
        """The device, whose cache is newer than the image."""
        return self.device or super().tool_target


class OfflineHost(Host):
    """A host whose tools write to the image themselves: there is nothing to open, to wait for or to let go of."""

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def sync(self) -> None:
        """Nothing to do."""


class OfflineFat(OfflineHost):
    """A FAT32 host, filled by mtools: this needs neither root nor a kernel that knows FAT."""

    keeps_holes = False

    def __init__(self, spec: HostSpec, image: Path, size: int, key: str) -> None:
        super().__init__(spec, image, size, key)
        sectors = self.offset // 512
        serial = f"{random.Random(f'host {key}').getrandbits(32):08x}"
        window = ("--offset", str(sectors), "-h", str(sectors)) if sectors else ()
        run("mkfs.fat", "-F", "32", "-s", "4", "-i", serial, *window, image, str(self.size // 1024))

    def _mtool(self, tool: str, *words: str | Path) -> None:
        run(tool, "-i", f"{self.image}@@{self.offset}", *words, env={"MTOOLS_SKIP_CHECK": "1"})

    def put(self, source: Path, path: str, dense: bool) -> None:
        """Copy with mcopy; FAT has no holes."""
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            with contextlib.suppress(CorpusError):  # it is there already
                self._mtool("mmd", "-D", "s", f"::{folder}")
        self._mtool("mcopy", "-D", "o", source, f"::{path}")

    def remove(self, path: str) -> None:
        """Delete with mdel."""
        self._mtool("mdel", f"::{path}")

    def locate(self, path: str) -> list[Extent]:
        """Extents out of the FAT."""
        return Fat(self.image, self.offset).extents(path)


class OfflineExt(OfflineHost):
    """An ext3 or ext4 host, filled by debugfs: what is left where nobody may mount.

    It takes block after block as they come, with an ext3's indirect blocks among them, as Linux did when ext3 had a
    driver of its own."""

    def __init__(self, spec: HostSpec, image: Path, size: int, key: str) -> None:
        super().__init__(spec, image, size, key)
        kind = _mkfs(spec if spec.kind == "ext3" else HostSpec("ext4", spec.table), random.Random(f"host {key}"))
        run(*kind, "-E", f"offset={self.offset}", image, f"{self.size // 1024}k")
        self._paths: list[str] = []

    def _debugfs(self, *commands: str) -> str:
        return run("debugfs", "-w", "-f", "-", self.tool_target, stdin="".join(command + "\n" for command in commands))

    def put(self, source: Path, path: str, dense: bool) -> None:
        """Copy with debugfs, which makes a hole of every block of zeros."""
        parts = path.split("/")
        folders = ["mkdir " + "/".join(parts[:depth]) for depth in range(1, len(parts))]
        self._debugfs(*folders, f"write {source} {path}")
        self._paths.append(path)

    def remove(self, path: str) -> None:
        """Unlink with debugfs."""
        self._debugfs(f"rm {path}")
        self._paths.remove(path)

    def locate(self, path: str) -> list[Extent]:
        """Extents as debugfs lists them."""
        said = self._debugfs(f"stat {path}")
        size = int(re.search(r"Size: (\d+)", said)[1])  # type: ignore[index]
        found: list[Extent] = []
        listed = re.split(r"\n(?:EXTENTS|BLOCKS):", said, maxsplit=1)[1:]
        for first, last, block in re.findall(r"\((\d+)(?:-(\d+))?\):(\d+)", "".join(listed)):
            start, length = int(first) * 4096, (int(last or first) - int(first) + 1) * 4096
            found.append((start, self.offset + int(block) * 4096, min(length, size - start), ""))
        return found

    def contents(self) -> list[tuple[int, int]]:
        """(image_offset, length) of the content of every file that was put here and is not removed."""
        return sorted((at, length) for path in self._paths for _, at, length, _ in self.locate(path))


def new_host(spec: HostSpec, image: Path, size: int, key: str, mounts: bool) -> Host:
    """An empty host of this kind on the new file `image`; without `mounts`, ext4 stands in where it must."""
    if spec.kind == "fat32":
        return OfflineFat(spec, image, size, key)
    return MountedHost(spec, image, size, key) if mounts and not spec.offline else OfflineExt(spec, image, size, key)


def _mkfs(spec: HostSpec, rng: random.Random) -> list[str]:
    """The words that make this file system; the device follows."""
    identity, fresh = str(seeded_uuid(rng)), str(uuid.uuid4())  # the kernel refuses two volumes of one UUID
    ext = ["-q", "-F", "-U", identity]
    words = {
        "ext4": ["mkfs.ext4", *ext, "-b", "4096"],
        "ext4-1k": ["mkfs.ext4", *ext, "-b", "1024"],
        "ext3": ["mkfs.ext3", *ext, "-b", "4096"],
        "xfs": ["mkfs.xfs", "-q", "-f", "--unsupported", "-m", f"uuid={fresh}"],
        "btrfs": ["mkfs.btrfs", "-q", "-f", "-U", fresh],
        "ntfs": ["mkntfs", "-q", "-Q", "-c", "4096"],
        "exfat": ["mkfs.exfat"],
    }
    return words[spec.kind]


def lognormal(rng: random.Random, mean: float) -> int:
    """A size of whole 4 KiB blocks, lognormal with this mean in bytes."""
    return max(1, round(rng.lognormvariate(math.log(mean / 4096) - SIGMA**2 / 2, SIGMA))) * 4096


def _steady_runs(source: Path, size: int) -> list[tuple[int, int]]:
    """(start, end) of runs that hold all non-zero data of `source`, none shorter than STEADY."""
    runs: list[tuple[int, int]] = []
    for at, block in pieces(source, STEADY):
        for start, end in nonzero_runs(block, STEADY):
            start, end = min(at + start, max(0, size - STEADY)), at + end
            if runs and start <= runs[-1][1]:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
    return runs


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
