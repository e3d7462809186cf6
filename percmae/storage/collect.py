"""What nobody refers to, listed and, where that is asked for, deleted: the end of every ``gc``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from percmae.errors import UserError
from percmae.progress import note
from percmae.storage.path import Entry, StorePath
from percmae.tables import byte_size


class Pile(NamedTuple):
    """Files that go together, in the order in which they go, under one name.

    folder: which goes with them if nothing else is in it.
    """

    name: str
    entries: Sequence[Entry]
    folder: StorePath | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(entry.size for entry in self.entries)


def each(found: Iterable[Entry]) -> list[Pile]:
    """Files that go one by one, each under its own name."""
    return [Pile(entry.name, [entry]) for entry in found]


def collect(
    found: Sequence[Pile],
    delete: bool,
    kept: str,
    young: tuple[float, str] | None = None,
    still: Callable[[Pile], bool] = lambda pile: True,
) -> str:
    """The piles, a line each, with their sizes and a total.

    kept: what is said of files that are only listed. young: seconds, and what is said of a file
    that is newer, behind its name: then UserError is raised, and nothing deleted. still: asked
    right before a pile is deleted, which stays where the answer is no.
    """
    if delete and young is not None:
        for entry in (entry for pile in found for entry in pile.entries):
            if time.time() - entry.path.stat().modified < young[0]:
                raise UserError(f"{entry.path} is {young[1]}")
    gone = [pile for pile in found if not delete or _deleted(pile, still)]
    files = sum(len(pile.entries) for pile in gone)
    total = f"{files:,} files, {byte_size(sum(pile.size for pile in gone))}"
    lines = [f"{byte_size(pile.size):>10}  {pile.name}" for pile in gone]
    said = "deleted" if delete else f"{kept}; --delete removes them"
    return "\n".join([*lines, f"{total}: {said}" if gone else "nothing to collect"])


def _deleted(pile: Pile, still: Callable[[Pile], bool]) -> bool:
    if not still(pile):
        note(f"{pile.name}: stays, for it is in use by now")
        return False
    for entry in pile.entries:
        entry.path.delete()
    if pile.folder is not None:
        pile.folder.prune()
    return True
