"""A small real host image with deleted disks, made by real tools, and its recovery.

Guests are GPT disks with an ext4 file system made by mke2fs, containers are made by qemu-img, the host is ext4. As root
the host is mounted, filled and emptied by the kernel; without root mke2fs fills it and debugfs deletes.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .case import make_folder, open_disk
from .errors import VmcarveError
from .pipeline import Options, recover
from .terminal import Progress, print_disks
from .verify.files import list_files

MIB = 1 << 20
GUEST_MIB = 40
HOST_MIB = 300
LIMIT_SECONDS = 300
# name on the host, qemu-img format, options
DISKS = (
    ("mail-server.vmdk", "vmdk", "subformat=monolithicSparse"),
    ("accounting.vhd", "vpc", "force_size=on"),
    ("domain-controller.vhdx", "vhdx", ""),
    ("web-frontend.qcow2", "qcow2", "compression_type=zstd"),
    ("build-agent.vdi", "vdi", ""),
    ("legacy-erp.hds", "parallels", ""),
)
TOOLS = {"qemu-img": "qemu-utils", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "sfdisk": "fdisk"}
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def run_demo(out: str) -> int:
    """Makes the image in `out`, recovers it, and opens one disk with qemu-img. Returns an exit status."""
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool, path=SEARCH) is None}
    if missing:
        raise VmcarveError(f"the demo needs the packages {', '.join(sorted(missing))} (apt-get install them)")
    folder = make_folder(Path(out))
    (folder / "disks").rmdir()
    image = folder / "host.raw"
    print(f"making {image}: an ext4 host of {HOST_MIB} MiB, six virtual disks on it, all deleted")
    make_image(folder, image)
    started = time.monotonic()
    print(f"$ vmcarve recover {image} --out {folder / 'case'}")
    with Progress() as progress:
        case = recover([image], folder / "case", options=Options(), report=progress)
    print_disks(case)
    print(f"swept, assembled, verified and written in {time.monotonic() - started:.1f} s")
    rows = [r for r in case.disks() if r["path"] and r["format"] == "qcow2"] or [r for r in case.disks() if r["path"]]
    if not rows:
        print("vmcarve: the demo found no disk", file=sys.stderr)
        return 1
    row = rows[0]
    path = case.path / row["path"]
    print(f"$ qemu-img info {path}")
    info = _run("qemu-img", "info", "-f", row["format"], str(path))
    print("\n".join("    " + line for line in info.splitlines()[:4]))
    print(f"first files inside {row['disk_id']}:")
    for name, size in itertools.islice(list_files(open_disk(case, row["disk_id"])), 8):
        print(f"    {name} ({size} bytes)")
    print(f"the case is in {case.path}: recovered disks in {case.path / 'disks'}, tables in *.arrow; "
          f"try: vmcarve show {case.path} {row['disk_id']}")
    return 0


def make_image(folder: Path, image: Path, seed: int = 7) -> None:
    """An ext4 host image whose six virtual disks are deleted. Needs the tools of TOOLS."""
    work = folder / "work"
    tree = work / "host"
    tree.mkdir(parents=True)
    try:
        rng = random.Random(seed)
        (tree / "readme.txt").write_text("This host held six virtual machines.\n")
        for name, fmt, options in DISKS:
            raw = work / "guest.raw"
            _make_guest(work, raw, name, rng)
            _run("qemu-img", "convert", "-f", "raw", "-O", fmt, *(["-c"] if "zstd" in options else []),
                 *(["-o", options] if options else []), str(raw), str(tree / name))
            raw.unlink()
        if os.name == "posix" and os.geteuid() == 0 and _by_kernel(work, image, tree):
            return
        _by_tools(image, tree)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _make_guest(work: Path, raw: Path, name: str, rng: random.Random) -> None:
    stem = name.split(".")[0]
    files = work / "files"
    (files / "srv" / stem).mkdir(parents=True)
    (files / "etc").mkdir()
    (files / "etc" / "hostname").write_text(f"{stem}\n")
    (files / "srv" / stem / "report.txt").write_text("".join(f"{stem}: line {i}\n" for i in range(4000)))
    for i in range(24):
        size = rng.randrange(20_000, 900_000)
        text = rng.random() < 0.5
        data = (f"{stem} record {i:04d} ".encode() * (size // 16))[:size] if text else rng.randbytes(size)
        (files / "srv" / stem / f"data-{i:02d}.{'log' if text else 'bin'}").write_bytes(data)
    with open(raw, "wb") as f:
        f.truncate(GUEST_MIB * MIB)
    _run("sfdisk", "--quiet", str(raw), text="label: gpt\nstart=2048, type=linux\n")
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-L", stem[:16], "-d", str(files), "-E", f"offset={MIB}", str(raw),
         f"{(GUEST_MIB - 2) * 1024}k")
    shutil.rmtree(files)


def _by_kernel(work: Path, image: Path, tree: Path) -> bool:
    """Mounts the host, copies, deletes. False when this machine allows no loop mount."""
    mount = work / "mount"
    mount.mkdir()
    _empty(image)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "vmstore", str(image))
    if subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True).returncode != 0:
        image.unlink()
        return False
    try:
        for path in sorted(tree.iterdir()):
            _run("cp", "--sparse=always", str(path), str(mount))
        _run("sync", "-f", str(mount))
    finally:
        _run("umount", str(mount))
    _run("mount", "-o", "loop", str(image), str(mount))
    try:
        for name, _, _ in DISKS:
            (mount / name).unlink()
    finally:
        _run("umount", str(mount))
    return True


def _by_tools(image: Path, tree: Path) -> None:
    _empty(image)
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "vmstore", "-d", str(tree), str(image))
    for name, _, _ in DISKS:
        _run("debugfs", "-w", "-R", f"rm /{name}", str(image))


def _empty(image: Path) -> None:
    with open(image, "wb") as f:
        f.truncate(HOST_MIB * MIB)


def _run(*argv: str, text: str | None = None) -> str:
    """A tool under a time limit; its own words when it fails."""
    tool = shutil.which(argv[0], path=SEARCH) or argv[0]
    try:
        done = subprocess.run([tool, *argv[1:]], input=text, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise VmcarveError(f"{argv[0]} could not be run: {e}") from e
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise VmcarveError(f"{argv[0]} ended with {done.returncode}: {words[-1] if words else 'no message'}")
    return done.stdout
