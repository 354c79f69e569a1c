"""Guests that really ran: a small Linux under QEMU that writes to its disk for a while, several at the same time.

Needs qemu-system-x86_64, a Linux kernel with its modules, and a static busybox, installed or unpacked below the folder
that CORPUS_SYSROOT names (Debian: qemu-system-x86, linux-image-cloud-amd64, busybox-static).
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import work
from .tools import CorpusError, MissingTool

SECONDS = 40  # that a guest writes
BOOT = 180  # seconds for it to come up and go down
MEMORY = 192  # MiB of a guest
CARRIED = 10 << 20  # bytes of files that a guest brings and copies about
MODULES = (  # in the order in which they need each other; what a kernel has built in is left out
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
    "libcrc32c", "xfs",
)  # fmt: skip

INIT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt /tmp
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for name in @MODULES@; do [ -f /modules/$name.ko ] && insmod /modules/$name.ko; done
for n in 1 2 3 4 5 6 7 8 9; do [ -b /dev/vda1 ] && break; sleep 0.3; done
mount -t @KIND@ /dev/vda1 /mnt || { echo NO-DISK; poweroff -f; }
end=$(( $(date +%s) + @SECONDS@ ))
going() { [ $(date +%s) -lt $end ]; }
room() { [ $(df /mnt | awk 'END { sub("%", "", $5); print $5 }') -lt 75 ]; }
number() { od -An -N2 -tu2 /dev/urandom | tr -d ' '; }
mkdir -p /mnt/var/log /mnt/srv /mnt/home
(while going; do                      # a log that is made durable now and then
  for n in 1 2 3 4 5 6 7 8; do echo "$(date '+%Y-%m-%dT%H:%M:%S') app[$$]: request $(number) served in $(number) us"
  done >> /mnt/var/log/app.log; [ $(( $(number) % 8 )) = 0 ] && sync; sleep 0.05
done) &
dd if=/dev/urandom of=/mnt/srv/data.db bs=64k count=96 2>/dev/null
(while going; do                      # a database that is overwritten in place
  dd if=/dev/urandom of=/mnt/srv/data.db bs=8k count=1 seek=$(( $(number) % 768 )) conv=notrunc,fsync 2>/dev/null
  sleep 0.02
done) &
(while going; do                      # files that come, are packed, and go
  for file in /files/*; do
    going || break
    if room; then cp $file /mnt/home/$(number)-${file##*/}; else rm -f $(ls /mnt/home/* | head -n 4); fi
    [ $(( $(number) % 4 )) = 0 ] && rm -f $(ls /mnt/home/* | head -n 1)
    [ $(( $(number) % 16 )) = 0 ] && { room && tar czf /mnt/srv/backup-$(( $(number) % 3 )).tar.gz -C /mnt/home .; }
    sleep 0.1
  done
done) &
wait
sync; umount /mnt && echo WENT-DOWN
poweroff -f
"""


@dataclass(frozen=True)
class Machine:
    """What a guest is run with."""

    qemu: Path
    kernel: Path
    modules: Path
    busybox: Path
    root: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment in which an unpacked QEMU finds its libraries."""
        if self.root == Path("/"):
            return dict(os.environ)
        places = [str(self.root / at / "x86_64-linux-gnu") for at in ("usr/lib", "lib")]
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(places)}


def machine() -> Machine:
    """The programs and the kernel; MissingTool where one is not there."""
    root = Path(os.environ.get("CORPUS_SYSROOT", "/"))
    kernels = sorted(root.glob("boot/vmlinuz-*-amd64"))
    if not kernels:
        raise MissingTool("linux kernel: not installed")
    release = kernels[-1].name.removeprefix("vmlinuz-")
    found = Machine(root / "usr/bin/qemu-system-x86_64", kernels[-1], root / "lib/modules" / release,
                    root / "bin/busybox", root)  # fmt: skip
    for path in (found.qemu, found.modules, found.busybox):
        if not path.exists():
            raise MissingTool(f"{path.name}: not installed")
    return found


def run_guests(disks: Sequence[tuple[Path, str, str, str]], work_folder: Path, cache: str) -> None:
    """Boot one guest for each (container, QEMU's format, file system of its first partition, key), all at once."""
    one = machine()
    running = []
    for number, (container, driver, kind, key) in enumerate(disks):
        initrd = work_folder / f"initrd-{number}"
        initrd.write_bytes(_initrd(one, kind, key))
        command = [
            one.qemu, "-L", one.root / "usr/share/qemu", "-L", one.root / "usr/share/seabios",
            "-accel", "tcg", "-m", str(MEMORY), "-nodefaults", "-no-reboot", "-display", "none",
            "-serial", "stdio", "-kernel", one.kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1",
            "-drive", f"file={container},format={driver},if=virtio,cache={cache}",
        ]  # fmt: skip
        running.append(subprocess.Popen([str(word) for word in command], env=one.env, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT))  # fmt: skip
    try:
        for process in running:
            said = process.communicate(timeout=SECONDS + BOOT)[0].decode(errors="replace")
            if "WENT-DOWN" not in said:
                raise CorpusError(f"qemu-system: the guest did not go down: {said.strip()[-200:]}")
    except subprocess.TimeoutExpired:
        raise CorpusError(f"qemu-system: no end after {SECONDS + BOOT} s") from None
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()


def _initrd(one: Machine, kind: str, key: str) -> bytes:
    """A root file system for one guest: busybox, modules, files to copy, and what to do with them."""
    names = [name for name in MODULES if _module(one, name) is not None]
    init = INIT.replace("@MODULES@", " ".join(names)).replace("@KIND@", kind).replace("@SECONDS@", str(SECONDS))
    entries = [("bin", b"", stat.S_IFDIR | 0o755), ("modules", b"", stat.S_IFDIR | 0o755),
               ("files", b"", stat.S_IFDIR | 0o755), ("bin/busybox", one.busybox.read_bytes(), stat.S_IFREG | 0o755),
               ("init", init.encode(), stat.S_IFREG | 0o755)]  # fmt: skip
    for name in names:
        path = _module(one, name)
        assert path is not None
        entries.append((f"modules/{name}.ko", path.read_bytes(), stat.S_IFREG | 0o644))
    for name, content in work.files(f"ran {key}", CARRIED):
        entries.append((f"files/{name.replace('/', '-')}", content, stat.S_IFREG | 0o644))
    return b"".join(_cpio(number, *entry) for number, entry in enumerate([*entries, ("TRAILER!!!", b"", 0)], 1))


def _module(one: Machine, name: str) -> Path | None:
    return next(iter(sorted(one.modules.rglob(f"{name}.ko"))), None)


def _cpio(number: int, name: str, content: bytes, mode: int) -> bytes:
    """One entry of a "newc" archive. Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst."""
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
