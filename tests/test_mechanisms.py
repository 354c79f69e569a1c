"""docs/mechanisms.md names a test for each mechanism: they are there, and no mechanism is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "vmcarve"
PAGE = ROOT / "docs" / "mechanisms.md"
LINE = re.compile(r"^\| ([^|]+) \| `([^`]+)` \| `([^`:]+)::(\w+)` \|$", re.M)
# carries the others: the solver's rounds, its state, what is asked and read on behalf of a mechanism
CARRIERS = {
    "assemble": {"asked", "boot_sectors", "candidate", "gather", "run", "solve", "state", "window"},
    "assemble/content": {"files", "followed", "look", "want"},
    "guest": {"_fields"},
    "host": {"_blocks", "_first_look", "_space", "btrfs", "ntfs", "xfs", "_btrfs_batch", "_btrfs_items", "_btrfs_live",
             "_btrfs_scan", "_btrfs_stated"},
}


def rows() -> list[tuple[str, str, str, str]]:
    found = LINE.findall(PAGE.read_text(encoding="utf-8"))
    assert len(found) > 90
    return found


def test_every_line_of_the_page_is_understood() -> None:
    """A row that does not read as one would be held against nothing."""
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ") and "| module |" not in line]
    assert len([line for line in lines if not line.startswith("| ---")]) == len(rows())


def test_modules_and_tests_are_there() -> None:
    """Each named test is a function of its file, and each module a file."""
    functions: dict[str, set[str]] = {}
    for _, module, file, name in rows():
        assert (SOURCE / module).is_file(), module
        if file not in functions:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            functions[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions[file], f"{file}::{name}"


@pytest.mark.parametrize("package", CARRIERS)
def test_no_mechanism_is_left_out(package: str) -> None:
    """Every module that decides something has a line."""
    named = {module for _, module, _, _ in rows()}
    there = {path.stem for path in (SOURCE / package).glob("*.py") if path.stem != "__init__"}
    missing = {stem for stem in there - CARRIERS[package] if f"{package}/{stem}.py" not in named}
    assert not missing
    assert CARRIERS[package] <= there
