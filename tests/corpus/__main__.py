"""The corpus as a command."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import SCENES, CorpusError, make, score
from .scoring import print_table


def main(words: list[str]) -> int:
    """Exit status 0 done, 1 a stated failure, 2 wrong use."""
    try:
        return _score(words[1:]) if words[:1] == ["score"] else _make(words)
    except CorpusError as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 1


def _make(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description="Make a scene, or: score CASE DIR")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a scene")
    parser.add_argument("--list", action="store_true", help="name all scenes")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--no-originals", action="store_true", help="keep the hashes only")
    options = parser.parse_args(words)
    if options.list:
        for scene in SCENES.values():
            print(f"{scene.name:36}{scene.about}")
        return 0
    if not options.name or not options.out:
        parser.error("NAME and --out DIR are needed")
    began = time.monotonic()
    image = make(options.name, options.out, options.seed, not options.no_originals)
    status = image.stat()
    print(
        f"{image}: {status.st_size >> 20} MiB, {status.st_blocks >> 11} MiB on disk, {time.monotonic() - began:.1f} s"
    )
    return 0


def _score(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus score", description="Compare a case with the truth")
    parser.add_argument("case", type=Path, metavar="CASE")
    parser.add_argument("scene", type=Path, metavar="DIR")
    options = parser.parse_args(words)
    print_table(score(options.case, options.scene))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
