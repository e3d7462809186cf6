"""TensorBoard's files of all runs in a store, kept as a local folder: TensorBoard reads no store.

    python -m percmae.storage.follow s3://percmae/runs /logs --every 15

``<run>/train_outputs/tensorboard_logs/<file>`` becomes ``<folder>/<run>/<file>``. Event files only
ever grow (a run puts a longer version of the same file into the store), and TensorBoard keeps them
open: what is new is therefore appended to the local file, never written beside it. What has gone
from the store goes here too.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from percmae.command import exit_code
from percmae.errors import StoreError, UserError
from percmae.progress import note, warn
from percmae.storage.path import StorePath

LOGS = "train_outputs/tensorboard_logs"
# So much before the end of the local file is read again, to see that it is still the same file.
_OVERLAP = 64


class Changes(NamedTuple):
    """What one pass did: files added, grown, replaced (another file of that name) and removed."""

    added: int = 0
    grown: int = 0
    replaced: int = 0
    removed: int = 0


def follow_once(runs: StorePath, folder: Path) -> Changes:
    """Make ``folder`` what TensorBoard should read of the runs below ``runs``.

    Whatever else lies in ``folder`` is removed. Files are told apart by size: one put back with
    other content of the same size is not noticed. Raises StoreError if the store fails on the way;
    what was brought over till then stays, and the next pass goes on from there.
    """
    wanted = {}
    for entry in runs.iter():
        run, found, name = f"/{entry.name}".rpartition(f"/{LOGS}/")
        # A key may say "..", which must not lead out of the folder.
        if found and "/" not in name and ".." not in run.split("/"):
            wanted[folder / run.lstrip("/") / name] = (entry.path, entry.size)
    done = [0, 0, 0]
    for local, (remote, size) in wanted.items():
        had = local.stat().st_size if local.exists() else -1
        if had == size:
            continue
        grown = 0 <= had < size and _append(remote, local, had)
        if not grown:
            _replace(remote, local)
        done[0 if had < 0 else 1 if grown else 2] += 1
    return Changes(done[0], done[1], done[2], removed=_remove_others(folder, wanted.keys()))


def follow(runs: str, folder: str, every: float) -> NoReturn:
    """``follow_once`` every ``every`` seconds, for ever.

    A store that fails is told once, and waited for. Raises UserError for what no waiting mends:
    an address that is none, a folder that cannot be written.
    """
    source, target = StorePath(runs), Path(folder)
    if every <= 0:
        raise UserError(f"--every {every:g}: give the seconds between two looks, more than 0")
    said = None
    while True:
        try:
            changes = follow_once(source, target)
            problem = None
        except StoreError as error:
            changes, problem = Changes(), str(error)
        except OSError as error:
            raise UserError(f"cannot write to {target}: {error.strerror or error}") from error
        if problem != said:
            warn(problem) if problem else note(f"{source}: followed again")
            said = problem
        if any(changes):
            note(f"{source}: " + ", ".join(f"{n} {what}" for what, n in _named(changes)))
        time.sleep(every)


def _named(changes: Changes) -> list[tuple[str, int]]:
    return [(what, number) for what, number in changes._asdict().items() if number]


def _append(remote: StorePath, local: Path, had: int) -> bool:
    """Add what ``remote`` has beyond ``had`` bytes; False if it is not the same file, longer."""
    start = max(0, had - _OVERLAP)
    data = remote.read_bytes(start)
    with local.open("r+b") as file:
        file.seek(start)
        known = file.read(had - start)
        if data[: had - start] != known or len(data) <= had - start:
            return False
        file.seek(had)
        file.write(data[had - start :])
    return True


def _replace(remote: StorePath, local: Path) -> None:
    """Put a file in place all at once, so that a reader never sees half of it."""
    local.parent.mkdir(parents=True, exist_ok=True)
    # A name that TensorBoard takes for no event file, in a place where no run is.
    fresh = local.parent / f".new-{os.getpid()}"
    fresh.write_bytes(remote.read_bytes())
    fresh.replace(local)


def _remove_others(folder: Path, wanted: Collection[Path]) -> int:
    removed = 0
    # From below, so that a folder is empty by the time it is looked at.
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            local = Path(parent, name)
            if local not in wanted:
                local.unlink()
                removed += 1
        if Path(parent) != folder:
            with suppress(OSError):  # not empty
                os.rmdir(parent)
    return removed


def main() -> NoReturn:
    """The command; exit codes as of ``percmae``."""
    parser = argparse.ArgumentParser(prog="python -m percmae.storage.follow", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", metavar="URI", help="folder of the runs")
    parser.add_argument("folder", metavar="DIR", help="for TensorBoard's --logdir")
    parser.add_argument("--every", type=float, default=15.0, metavar="SECONDS")

    def work() -> None:
        args = parser.parse_args()
        follow(args.runs, args.folder, args.every)

    sys.exit(exit_code(work))


if __name__ == "__main__":
    main()
