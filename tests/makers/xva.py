"""XVA writer after xapi's stream_vdi.ml and export format note; Python's tarfile makes the tar."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import xxhash

from . import Maker

MIB = 1 << 20

OBJECT = (
    "<value><struct><member><name>class</name><value>{kind}</value></member><member><name>id</name><value>{id}</value>"
    "</member><member><name>snapshot</name><value><struct>{fields}</struct></value></member></struct></value>"
)
MEMBER = "<member><name>{name}</name><value>{value}</value></member>"
DOCUMENT = (
    "<value><struct><member><name>version</name><value><struct>{version}</struct></value></member>"
    "<member><name>objects</name><value><array><data>{objects}</data></array></value></member></struct></value>"
)


def ova_xml(disks: dict[str, int], machine: str = "win &amp; co") -> bytes:
    """The parts of ova.xml that place disks: one VM, per disk a VDI with its size and a VBD with its device."""
    def fields(**values: str) -> str:
        return "".join(MEMBER.format(name=k, value=v) for k, v in values.items())

    vm = fields(name_label=machine, is_a_template="<boolean>0</boolean>")
    objects = [OBJECT.format(kind="VM", id="Ref:0", fields=vm)]
    for i, (ref, size) in enumerate(disks.items()):
        vbd = fields(VDI=ref, userdevice=str(i), device=f"xvd{'abcdef'[i]}")
        vdi = fields(name_label=f"disk {ref}", virtual_size=str(size))
        objects.append(OBJECT.format(kind="VBD", id=f"Ref:{1000 + i}", fields=vbd))
        objects.append(OBJECT.format(kind="VDI", id=ref, fields=vdi))
    version = fields(product_brand="XCP-ng", product_version="8.2.1")
    return DOCUMENT.format(version=version, objects="".join(objects)).encode()


def write_xva(out: Path, disks: dict[str, bytes], *, digest: str = "xxhash", silence: Iterable[int] = (),
              xml: bytes | None = None) -> None:
    """Writes the archive. silence: chunk indices before which the exporter was quiet and wrote a member of length 0."""
    quiet = set(silence)
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        def chunk(name: str, data: bytes) -> None:
            add(name, data)
            if digest == "xxhash":
                add(f"{name}.xxhash", xxhash.xxh64(data).hexdigest().upper().encode())
            else:
                add(f"{name}.checksum", hashlib.sha1(data).hexdigest().encode())

        add("ova.xml", ova_xml({ref: len(data) for ref, data in disks.items()}) if xml is None else xml)
        for ref, data in disks.items():
            count = -(-len(data) // MIB)
            number = 0
            for i in range(count):
                part = data[i * MIB : (i + 1) * MIB]
                if 0 < i < count - 1 and not any(part):
                    number += 1
                    continue
                if i in quiet and i > 0:
                    chunk(f"{ref}/{number:08d}", b"")
                    number += 1
                chunk(f"{ref}/{number:08d}", part)
                number += 1


def _maker(digest: str, silent: bool) -> Callable[[Path, Path, int], None]:
    def make(raw: Path, out: Path, seed: int) -> None:
        data = raw.read_bytes()
        rng = random.Random(seed)
        count = len(data) // MIB
        quiet = rng.sample(range(1, count), min(3, count - 1)) if silent and count > 1 else ()
        write_xva(out, {f"Ref:{rng.randrange(1, 99)}": data}, digest=digest, silence=quiet)

    return make


MAKERS = {
    "xva-xxhash": Maker("xva", "xxhash", "xva", _maker("xxhash", False)),
    "xva-checksum": Maker("xva", "checksum", "xva", _maker("checksum", False)),
    "xva-empty-members": Maker("xva", "xxhash", "xva", _maker("xxhash", True)),
}
