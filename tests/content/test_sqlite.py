"""Pages of databases: the parents that the map has name the leaves that it lacks."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from tests.host.written import needs
from vmcarve._ext.leaf_rows import leaf_rows
from vmcarve.assemble.content import sqlite
from vmcarve.assemble.content.sqlite import Pages

from .guests import BLOCK, MIB, Image, ext4, guest_of, places, right, told

pytestmark = needs("mkfs.ext4")


def database(path: Path, seed: int, rows: int) -> bytes:
    base = sqlite3.connect(path)
    rng = random.Random(seed)
    base.execute("create table t (id integer primary key, a blob)")
    base.executemany("insert into t (a) values (?)", [(rng.randbytes(rng.randrange(20, 900)),) for _ in range(rows)])
    base.execute("delete from t where id % 17 = 0")
    base.commit()
    base.close()
    return path.read_bytes()


@pytest.fixture(scope="module", params=[2_000, 12_000], ids=["one level", "two levels"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """(disk, database) of a guest with two databases of rows that count alike."""
    folder = tmp_path_factory.mktemp("sqlite")
    tree = folder / "tree"
    tree.mkdir()
    content = database(tree / "one", 1, request.param)
    database(tree / "other", 2, request.param)
    return ext4(folder, tree, 32 * MIB), content


LEAF = 13


def leaves(disk: bytes, content: bytes) -> set[int]:
    """File blocks of the table's leaves: pages whose type is 13 and that hold a row."""
    pages = [content[n : n + BLOCK] for n in range(BLOCK, len(content), BLOCK)]
    return {disk.find(page) // BLOCK for page in pages if page[0] == LEAF and page[3:5] != b"\0\0"}


def test_leaves_place_themselves(made: tuple[bytes, bytes]) -> None:
    """Of both databases; the map has all of the guest, the image holds it in pieces."""
    disk, content = made
    image = Image.of(disk, 5)
    found = told(Pages(), image, [guest_of(disk)])
    good = np.array(right(found, image, disk))
    assert good[found.bits == found.bits.max()].mean() > 0.99 and good.mean() > 0.9
    wanted = leaves(disk, content)
    assert len(wanted & set(found.file_block[good].tolist())) > 0.9 * len(wanted)


def test_a_database_is_known_by_the_size_that_its_first_page_states(made: tuple[bytes, bytes]) -> None:
    """The map has nothing of it: its first page is the only one of that size, and what lies behind names the rest."""
    disk, content = made
    first = places(disk, content)
    image = Image.of(disk, 5, largest=40)
    at = image.data.find(content[:BLOCK])
    assert image.data[at : at + 3 * BLOCK] == content[: 3 * BLOCK], "fixture too hard: the root lies elsewhere"
    found = told(Pages(), image, [guest_of(disk, [(first, len(content))])])
    good = np.array(right(found, image, disk))
    wanted = leaves(disk, content)
    # of interior pages two of which could be the one meant (the other database counts alike), neither is followed
    assert len(wanted & set(found.file_block[good].tolist())) > (0.8 if len(wanted) < 500 else 0.25) * len(wanted)
    assert good[found.bits == found.bits.max()].mean() > 0.99


def test_an_interior_page_goes_on_from_its_neighbours_rows() -> None:
    """Two databases count their rows alike. The page that is wanted has its first leaf just behind the rows before, and
    its last just before where its parent says; the other's may lie within some rows of both."""
    spans = np.array([[7, 3030], [6, 3023], [3043, 6064], [3038, 6043]], np.int64)
    own = [(3037, 3043), (6065, 6071), (1, 7), (3031, 3036)]
    others = [(3032, 3038), (6044, 6049), (1, 6), (3024, 3031)]
    rows = np.array([(0, *row) for row in own + others], np.int64)
    rows = rows[np.argsort(rows[:, 2], kind="stable")]
    spanning = sqlite._spanning  # pyright: ignore[reportPrivateUsage]
    assert spanning(spans, rows, -1, 3036) == 0 and spanning(spans, rows, -1, 3031) == 1
    assert spanning(spans, rows, 3036, 6071) == 2 and spanning(spans, rows, 3031, 6049) == 3
    assert spanning(spans, rows, 3036, 0) == 2, "the last child, whose rows have no end"
    alone = spans[3:]
    assert spanning(alone, rows, 3036, 6071) == -1, "the other's is not taken where the own page is lost"


def test_noise_is_no_page() -> None:
    """Random blocks that begin as a leaf or an interior page does."""
    rows = np.frombuffer(random.Random(8).randbytes(400 * BLOCK), np.uint8).reshape(-1, BLOCK).copy()
    rows[:, 0] = LEAF
    out = [np.empty(len(rows), np.int64) for _ in range(3)]
    assert leaf_rows(rows.reshape(-1), 0, rows.size, *out) < 0.05 * len(rows)
    rows[:, 0] = sqlite.INTERIOR
    assert not any(len(sqlite._children(r.tobytes())) for r in rows)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 1 << 31, (1 << 48) + 5])
def test_numbers_of_all_lengths(value: int) -> None:
    """7 bits a byte, the first ones first; a set high bit says that one more follows."""
    parts = [value & 0x7F]
    while value >> 7 * len(parts):
        parts.append(value >> 7 * len(parts) & 0x7F | 0x80)
    data = np.array([[*reversed(parts), *[0xFF] * 9][:9]], np.uint8)
    number, used = sqlite._numbers(data)
    assert (int(number[0]), int(used[0])) == (value, len(parts))
