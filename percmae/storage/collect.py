"""What nobody refers to, listed and, where that is asked for, deleted: the end of every ``gc``."""

from __future__ import annotations

import time
from collections.abc import Sequence

from percmae.errors import UserError
from percmae.storage.path import Entry
from percmae.tables import byte_size


def collect(
    found: Sequence[Entry], delete: bool, force: bool, recent: float, young: str, kept: str
) -> str:
    """The files, a line each, with their sizes and a total.

    Raises UserError, and deletes nothing, where one of them is less than ``recent`` seconds old,
    unless ``force``. young: what is said of that one, behind its name; kept: of files that are only
    listed.
    """
    if delete and not force:
        for entry in found:
            if time.time() - entry.path.stat().modified < recent:
                raise UserError(f"{entry.path} is {young}, or add --force")
    if delete:
        for entry in found:
            entry.path.delete()
    total = f"{len(found):,} files, {byte_size(sum(entry.size for entry in found))}"
    lines = [f"{byte_size(entry.size):>10}  {entry.name}" for entry in found]
    said = "deleted" if delete else f"{kept}; --delete removes them"
    return "\n".join([*lines, f"{total}: {said}" if found else "nothing to collect"])
