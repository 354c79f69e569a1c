"""Reflinks: a run of the image becomes a run of the output that shares its blocks, and takes no space.

Source of the call: ioctl_ficlonerange(2). It wants both offsets, and the length, on blocks of the file system; Btrfs,
XFS, Bcachefs and OCFS2 can. What cannot be shared is left to be copied.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None

FICLONERANGE = 0x4020940D  # _IOW(0x94, 13, struct file_clone_range), the same on x86, ARM and RISC-V
LEAST = 64 << 10  # bytes of a run below which a call costs more than a copy


class Cloner:
    """Shares runs of an image with a file. shared: (offset, end) in the file of what was, rising, merged."""

    def __init__(self, image_fd: int, fd: int, runs: Iterable[tuple[int, int, int | None]]) -> None:
        """runs: (file_offset, length, image_offset), rising; the first refusal ends the attempt."""
        self.shared: list[tuple[int, int]] = []
        if fcntl is None or os.fstat(image_fd).st_dev != os.fstat(fd).st_dev:
            return
        block = os.fstatvfs(fd).f_bsize
        for f, n, p in runs:
            if p is None or (f - p) % block:
                continue
            start, end = -(-f // block) * block, (f + n) // block * block
            if end - start < LEAST:
                continue
            words = struct.pack("=qQQQ", image_fd, start + p - f, end - start, start)
            try:
                fcntl.ioctl(fd, FICLONERANGE, words)
            except OSError:
                return
            if self.shared and self.shared[-1][1] == start:
                self.shared[-1] = (self.shared[-1][0], end)
            else:
                self.shared.append((start, end))
