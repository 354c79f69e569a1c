"""Names of deleted files that their records have lost, from the change journal and $LogFile.

ntfs-3g made the volume; the two logs, which no driver here writes, are by a writer of this file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import numpy as np
import pytest

from tests.host.written import MIB, blank, content, mounted, needs, run, stamped
from vmcarve.host._ntfs_names import OUR_MAX_BYTES, _parts
from vmcarve.host.ntfs import HOST
from vmcarve.model import HostFile
from vmcarve.source import BytesReader

pytestmark = needs("ntfs-3g", "mkfs.ntfs", "ntfsinfo")

SIZE = 24 * MIB
RECORD, CLUSTER = 1024, 4096
BORN = 133_000_000_000_000_000  # 100 ns since 1601: in 2022
EXTEND, LOG = 11, 2


class Disk:
    """A volume as bytes that can be changed: records, with care for the ends of their sectors."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.mft = struct.unpack_from("<Q", data, 48)[0] * CLUSTER

    def record(self, number: int) -> memoryview:
        return memoryview(self.data)[self.mft + number * RECORD : self.mft + (number + 1) * RECORD]

    def put(self, number: int, at: int, value: bytes) -> None:
        assert not any((at + i) % 512 >= 510 for i in range(len(value))), "would overwrite a fixup"
        self.record(number)[at : at + len(value)] = value

    def number(self, name: str) -> int:
        """The last record that has this name."""
        letters = name.encode("utf-16-le")
        return max(n for n in range(16, 200) if letters in bytes(self.record(n)))

    def reference(self, number: int, back: int = 0) -> int:
        return number | struct.unpack_from("<H", self.record(number), 16)[0] - back << 48

    def lose_name(self, name: str) -> None:
        """Of a record: each of its $FILE_NAMEs claims more letters than it has."""
        number, letters = self.number(name), name.encode("utf-16-le")
        at = bytes(self.record(number)).find(letters)
        while at >= 0:
            self.put(number, at - 2, b"\xff")
            at = bytes(self.record(number)).find(letters, at + 1)

    def found(self) -> dict[str, HostFile]:
        reader = BytesReader(bytes(self.data))
        volume = HOST.open(reader, 0, SIZE)
        assert volume is not None
        files = [f for f in volume.files() if f.deleted and f.size == MIB]
        assert all(content(reader, f)[:8] == stamped(int(content(reader, f)[5]), 0, 8) for f in files)
        return {f.name: f for f in files}


def change(reference: int, parent: int, name: str, ticks: int, reason: int) -> bytes:
    """USN_RECORD_V2."""
    letters = name.encode("utf-16-le")
    length = (60 + len(letters) + 7) // 8 * 8
    head = struct.pack("<IHHQQQQIIIIHH", length, 2, 0, reference, parent, 0, ticks, reason, 0, 0, 32, len(letters), 60)
    return (head + letters).ljust(length, b"\0")


def page(reference: int, parent: int, name: str) -> bytes:
    """A page of $LogFile in which a folder loses an entry, over the end of a sector."""
    letters = name.encode("utf-16-le")
    key = struct.pack("<Q4Q2QIIBB", parent, BORN, BORN, BORN, BORN, 0, 0, 0x20, 0, len(name), 1) + letters
    length = (16 + len(key) + 7) // 8 * 8
    entry = (struct.pack("<QHHI", reference, length, len(key), 0) + key).ljust(length, b"\0")
    out = bytearray(4096)
    struct.pack_into("<4sHH", out, 0, b"RCRD", 0x28, 9)
    out[1024 - 64 : 1024 - 64 + len(entry)] = entry
    out[0x28:0x2A] = b"\x07\x00"
    for k in range(8):
        end = (k + 1) * 512 - 2
        out[0x2A + 2 * k : 0x2C + 2 * k] = out[end : end + 2]
        out[end : end + 2] = b"\x07\x00"
    return bytes(out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A deleted file in a folder that is deleted too, and a file that can become the change journal."""
    folder = tmp_path_factory.mktemp("names")
    volume = blank(folder / "volume", SIZE)
    run("mkfs.ntfs", "-Q", "-F", "-c", str(CLUSTER), volume)
    for step in range(2):
        with mounted(folder / "mnt", "ntfs-3g", "-o", "streams_interface=windows", volume) as top:
            if step == 0:
                (top / "machines").mkdir()
                (top / "machines" / "win2019.vhdx").write_bytes(stamped(3, 0, MIB))
                (top / "0UsnJrnl").touch()
                (top / "0UsnJrnl:$J").write_bytes(bytes(64 << 10))
            else:
                os.remove(top / "machines" / "win2019.vhdx")
                (top / "machines").rmdir()
    return volume.read_bytes()


def with_journal(disk: Disk) -> None:
    """The change journal tells of the folder and of the file's end. $Reparse, which has as many letters, gives its
    entry in $Extend."""
    own = disk.number("0UsnJrnl")
    file, where = disk.number("win2019.vhdx"), disk.number("machines")
    said = change(disk.reference(where, 1), disk.reference(5), "machines", BORN, 0x100)
    said += change(disk.reference(file, 1), disk.reference(where, 1), "before.vhdx", BORN, 0x1000)
    said += change(disk.reference(file, 1), disk.reference(where, 1), "win2019.vhdx", BORN + 10**7, 0x80000200)
    said += change(disk.reference(file), disk.reference(5), "of another life.txt", BORN + 2 * 10**7, 0x80000200)
    stream = run_of(disk, own)
    disk.data[stream + 8192 : stream + 8192 + len(said)] = said
    name = "0UsnJrnl".encode("utf-16-le")
    at = bytes(disk.record(own)).find(name)
    while at >= 0:
        disk.put(own, at, "$".encode("utf-16-le"))
        disk.put(own, at - 66, struct.pack("<Q", disk.reference(EXTEND)))
        at = bytes(disk.record(own)).find(name)
    at = bytes(disk.record(EXTEND)).index("$Reparse".encode("utf-16-le"))
    disk.put(EXTEND, at, "$UsnJrnl".encode("utf-16-le"))
    disk.put(EXTEND, at - 82, struct.pack("<Q", disk.reference(own)))


def run_of(disk: Disk, number: int) -> int:
    """The byte at which the first run of the record's data begins: of its only attribute that is not resident."""
    record = bytes(disk.record(number))
    at = struct.unpack_from("<H", record, 20)[0]
    while not (record[at] == 0x80 and record[at + 8]):
        at += struct.unpack_from("<I", record, at + 4)[0]
    packed = record[at + struct.unpack_from("<H", record, at + 32)[0] :]
    count, step = packed[0] & 15, packed[0] >> 4
    return int.from_bytes(packed[1 + count : 1 + count + step], "little") * CLUSTER


def with_log(disk: Disk) -> None:
    """$LogFile tells that the folders lost their entries."""
    file, where = disk.number("win2019.vhdx"), disk.number("machines")
    at = run_of(disk, LOG) + 8 * 4096
    disk.data[at : at + 4096] = page(disk.reference(file, 1), disk.reference(where, 1), "win2019.vhdx")
    disk.data[at + 4096 : at + 8192] = page(disk.reference(where, 1), disk.reference(5), "machines")


@pytest.mark.parametrize("log", [with_journal, with_log])
def test_a_file_that_lost_its_name_has_it_from_a_log(log: Callable[[Disk], None], made: bytes) -> None:
    """Its own and its folder's, each of the right life of its record; the journal says when the file went, too."""
    disk = Disk(made)
    log(disk)
    for name in ("win2019.vhdx", "machines"):
        disk.lose_name(name)
    found = disk.found()
    assert list(found) == ["machines/win2019.vhdx"]
    gone = found["machines/win2019.vhdx"].times.get("deleted")
    assert gone == ((BORN + 10**7) / 10**7 - 11644473600 if log is with_journal else None)


def test_without_a_log_it_has_none(made: bytes) -> None:
    """Nor has it one from a page of $LogFile that another write has torn."""
    disk = Disk(made)
    assert list(disk.found()) == ["machines/win2019.vhdx"]
    with_log(disk)
    at = run_of(disk, LOG) + 8 * 4096
    disk.data[at + 1022] ^= 1
    disk.lose_name("win2019.vhdx")
    assert list(disk.found()) == [""]


def test_a_log_is_read_from_its_end_and_no_record_is_cut() -> None:
    """Parts share what a record may need of the next one; of a log larger than we read the begin is left out."""
    rows = np.array([[0, 0, 9 << 20, 0], [9 << 20, 9 << 20, OUR_MAX_BYTES - (4 << 20), 0]])
    reader = BytesReader(bytes(1 << 20))
    parts = [own for _, own in _parts(reader, rows, 512)]
    assert sum(parts) == OUR_MAX_BYTES - (4 << 20)
    rows = np.array([[0, 0, 9 << 20, 0]])
    lengths = [(len(data), own) for data, own in _parts(BytesReader(bytes(9 << 20)), rows, 512)]
    assert lengths == [((4 << 20) + 512, 4 << 20), ((4 << 20) + 512, 4 << 20), (1 << 20, 1 << 20)]
