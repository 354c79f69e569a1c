"""OVA writer after DMTF DSP0243: qemu-img makes the streamOptimized VMDK, Python's tarfile the tar."""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

from . import Maker

OVF = """<?xml version="1.0" encoding="UTF-8"?>
<Envelope vmw:buildId="build-1" xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
{files}  </References>
  <DiskSection><Info>disks</Info>
{disks}  </DiskSection>
  <VirtualSystem ovf:id="{name}"><Info>machine</Info></VirtualSystem>
</Envelope>
"""


def write_ova(out: Path, files: dict[str, bytes], *, name: str = "machine 1", manifest: str = "SHA256",
              style: int = tarfile.USTAR_FORMAT) -> None:
    """Description, manifest, then the files in the order given."""
    ovf = OVF.format(
        files="".join(f'    <File ovf:href="{n}" ovf:id="file{i}" ovf:size="{len(d)}"/>\n'
                      for i, (n, d) in enumerate(files.items())),
        disks="".join(f'    <Disk ovf:capacity="1" ovf:diskId="d{i}" ovf:fileRef="file{i}"/>\n'
                      for i in range(len(files))),
        name=name,
    ).encode()
    members = {f"{out.stem}.ovf": ovf}
    if manifest:
        lines = [f"{manifest}({n})= {hashlib.new(manifest, d).hexdigest()}\n" for n, d in {**members, **files}.items()]
        members[f"{out.stem}.mf"] = "".join(lines).encode()
    with tarfile.open(out, "w", format=style) as tar:
        for n, d in {**members, **files}.items():
            info = tarfile.TarInfo(n)
            info.size = len(d)
            tar.addfile(info, io.BytesIO(d))


def _maker(manifest: str) -> Callable[[Path, Path, int], None]:
    def make(raw: Path, out: Path, seed: int) -> None:
        vmdk = out.with_suffix(".vmdk.tmp")
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", str(raw),
                        str(vmdk)], check=True, timeout=300, capture_output=True)
        write_ova(out, {"disk-0.vmdk": vmdk.read_bytes(), "nvram": random.Random(seed).randbytes(8684)},
                  manifest=manifest)
        vmdk.unlink()

    return make


MAKERS = {
    "ova-sha256": Maker("ova", "SHA-256 manifest", "ova", _maker("SHA256")),
    "ova-sha1": Maker("ova", "SHA-1 manifest", "ova", _maker("SHA1")),
}
