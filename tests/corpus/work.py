"""What a machine at work holds: programs, packages, archives, databases, logs, mail, and files nobody can read."""

from __future__ import annotations

import base64
import functools
import gzip
import io
import lzma
import os
import random
import sqlite3
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from . import payload
from .payload import Named

PROGRAMS = (16 << 10, 3 << 20)  # bytes of a program or library that we use, least and most
ROOTS = (Path("/usr/bin"), Path("/usr/sbin"), Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"))
MOST_PROGRAMS = 1500
EPOCH = 1_690_000_000  # Unix seconds: where the logs begin

MIX = (  # kind, share of the bytes of a disk
    ("program", 0.27),
    ("text", 0.18),
    ("package", 0.12),
    ("zip", 0.14),
    ("log", 0.08),
    ("database", 0.08),
    ("secret", 0.05),
    ("gz", 0.04),
    ("picture", 0.04),
)
FEW = (("database", 0.4), ("mail", 0.25), ("video", 0.2), ("log", 0.15))
LARGE = 0.9  # share of a few-files disk that each kind's one file takes of its share


def files(key: str, budget: int, few: bool = False) -> Iterator[Named]:
    """(relative name, content) of about `budget` bytes; `few`: one large file of each kind, little else."""
    rng = random.Random(f"work {key}")
    yield "README.txt", f"This is the disk called {key}.\n{payload.text(rng, 900)}".encode()
    if few:
        for kind, share in FEW:
            yield _made(kind, rng, 0, int(budget * share * LARGE))
        budget = int(budget * (1 - LARGE))
    left = {kind: share * budget for kind, share in MIX}
    number = 0
    while any(left.values()):
        number += 1
        kind = rng.choices(list(left), list(left.values()))[0]
        name, content = _made(kind, rng, number, int(min(2 ** rng.uniform(11, 20.5), max(left[kind], 2048))))
        left[kind] = max(0.0, left[kind] - len(content))
        yield name, content


def _made(kind: str, rng: random.Random, number: int, size: int) -> Named:
    end, make = MAKERS[kind]
    return f"{kind}/{rng.choice(payload.WORDS)}-{number:04d}{end}", make(rng, size)


@functools.cache
def programs() -> tuple[Path, ...]:
    """ELF files of this machine, in a fixed order."""
    found: list[Path] = []
    for root in ROOTS:
        for folder, _, names in os.walk(root):
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and PROGRAMS[0] <= path.stat().st_size <= PROGRAMS[1]:
                    with path.open("rb") as file:
                        if file.read(4) == b"\x7fELF":
                            found.append(path)
    return tuple(found[:: max(1, len(found) // MOST_PROGRAMS)])


def _program(rng: random.Random, size: int) -> bytes:
    return rng.choice(programs()).read_bytes() if programs() else payload.noise(rng, size)


def _text(rng: random.Random, size: int) -> bytes:
    machine = payload.machine_files()
    if machine and rng.random() < 0.6:
        return rng.choice(machine).read_bytes()
    return payload.text(rng, size).encode()


def _zip(rng: random.Random, size: int) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        while packed.tell() < size:
            name = zipfile.ZipInfo(f"{rng.getrandbits(32):08x}.py")
            archive.writestr(name, _text(rng, 60_000), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _package(rng: random.Random, size: int) -> bytes:
    """A Debian package: an ar of a version, control data and an xz-packed tar."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        while tar.tell() < 3 * min(size, 1 << 20):
            content = _program(rng, 100_000) if rng.random() < 0.3 else _text(rng, 60_000)
            entry = tarfile.TarInfo(f"./usr/share/{rng.getrandbits(32):08x}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    control = lzma.compress(payload.text(rng, 2000).encode(), preset=0)
    members = (("debian-binary", b"2.0\n"), ("control.tar.xz", control),
               ("data.tar.xz", lzma.compress(tar.getvalue(), preset=0)))  # fmt: skip
    rows = [
        f"{name:<16}{EPOCH:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
        for name, body in members
    ]
    return b"!<arch>\n" + b"".join(rows)


def _log(rng: random.Random, size: int) -> bytes:
    rows, made, at = list[str](), 0, EPOCH + rng.randrange(10**7)
    while made < size:
        at += rng.randrange(30)
        words = " ".join(rng.choices(payload.WORDS, k=rng.randrange(3, 12)))
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
        rows.append(
            f"{stamp} srv{rng.randrange(4)} app[{rng.randrange(300, 32768)}]: {words}"
            f" id={rng.getrandbits(40):010x} t={at}"
        )
        made += len(rows[-1]) + 1
    return "\n".join(rows).encode()


def _database(rng: random.Random, size: int) -> bytes:
    """An SQLite database: rows inserted, some deleted, an index in random order."""
    with tempfile.TemporaryDirectory(prefix="database") as folder:
        path = Path(folder, "data.sqlite")
        base = sqlite3.connect(path)
        base.execute("pragma synchronous = off")
        base.execute("create table item (id integer primary key, name text, price real, note blob)")
        base.execute("create index by_name on item (name)")
        while path.stat().st_size < size:
            rows = [
                (f"{rng.choice(payload.WORDS)}-{rng.getrandbits(48):012x}", rng.random(),
                 payload.text(rng, rng.randrange(20, 900)).encode())
                for _ in range(400)
            ]  # fmt: skip
            base.executemany("insert into item (name, price, note) values (?, ?, ?)", rows)
            last = base.execute("select max(id) from item").fetchone()[0]
            base.execute("delete from item where id > ? and id % 17 = 0", (last - rng.randrange(1200),))
            base.commit()
        base.close()
        return path.read_bytes()


def _mail(rng: random.Random, size: int) -> bytes:
    """An mbox: text, and attachments in base64."""
    parts, made = list[bytes](), 0
    while made < size:
        body = payload.text(rng, rng.randrange(300, 4000))
        if rng.random() < 0.3:
            body += "\n\n" + base64.encodebytes(payload.noise(rng, rng.randrange(2000, 200_000))).decode()
        parts.append(f"From {rng.choice(payload.WORDS)}@example.org Mon Jul 24 2023\nSubject: {body}\n\n".encode())
        made += len(parts[-1])
    return b"".join(parts)


def _gz(rng: random.Random, size: int) -> bytes:
    return gzip.compress(_log(rng, 6 * size), mtime=EPOCH)


def _picture(rng: random.Random, size: int) -> bytes:
    return payload.png(rng, max(8, int(size**0.5)))


MAKERS: dict[str, tuple[str, Callable[[random.Random, int], bytes]]] = {
    "program": ("", _program),
    "text": (".txt", _text),
    "package": (".deb", _package),
    "zip": (".whl", _zip),
    "log": (".log", _log),
    "database": (".sqlite", _database),
    "mail": (".mbox", _mail),
    "gz": (".log.gz", _gz),
    "picture": (".png", _picture),
    "secret": (".gpg", payload.noise),
    "video": (".mp4", payload.noise),
}
