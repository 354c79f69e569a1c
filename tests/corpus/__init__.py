"""The test corpus: images with real virtual disks made by real tools, what is true of them, and a scorer.

python -m tests.corpus --list
python -m tests.corpus ext4-contiguous --out DIR --seed 7
python -m tests.corpus score CASE DIR
"""

from __future__ import annotations

from .making import make
from .scenes import SCENES
from .scoring import score
from .tools import CorpusError, MissingTool, NeedsRoot

__all__ = ["SCENES", "CorpusError", "MissingTool", "NeedsRoot", "make", "score"]
