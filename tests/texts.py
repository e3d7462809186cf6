"""The texts of the project, and the blocks of code in them.

How a block of shell or Python is tried stands behind its language: ``run`` (of shell) is carried
out by tests/documents, ``as: FILE`` says which test does the same where it takes more than this
machine, ``read: WHY`` is read only (tests/test_docs.py: verbs, options and settings are there).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "k8s" / "README.md",
]
RUN, AS, READ = "run", "as: ", "read: "
_BLOCK = re.compile(r"^```(\w*)[ \t]*([^\n]*)\n(.*?)^```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A block between fences. language: "" where none is said; how: what stands behind it."""

    path: Path
    line: int
    language: str
    how: str
    text: str

    def __str__(self) -> str:
        return f"{name(self.path)}:{self.line}"


def name(path: Path) -> str:
    """A text's, as it is spoken of."""
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[Block]:
    """All of a text, in its order."""
    text = path.read_text()
    return [
        Block(path, text.count("\n", 0, found.start()) + 1, *found.groups())
        for found in _BLOCK.finditer(text)
    ]


def prose(text: str) -> str:
    """A text without its blocks."""
    return _BLOCK.sub("", text)
