"""Files of this machine into a store: ``percmae put``."""

from __future__ import annotations

from collections.abc import Sequence

from percmae.errors import UserError
from percmae.progress import Progress, note
from percmae.storage.outage import outage
from percmae.storage.path import StorePath, local_path

_PIECE = 2**20


@outage()
def put(files: Sequence[str], to: str, force: bool = False) -> list[str]:
    """Upload files to ``<to>/<name>``; their addresses.

    One that is there with the same size stays, so that the same command goes on behind what it has
    done; with another size it is refused, or with ``force`` replaced. Raises UserError for a file
    that cannot be read, two of one name or a target that is no store, before anything is uploaded;
    StoreError.
    """
    target = StorePath(to)
    if not target.is_s3:
        raise UserError(f"--to {to}: give a folder in a store, s3://bucket/folder")
    paths = [local_path(file, "FILE") for file in files]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
    names = [path.name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two files are called {name}; upload them to different folders")
    there = {path.name: _size(target / path.name) for path in paths}
    for path in paths:
        size = path.stat().st_size
        if there[path.name] not in (None, size) and not force:
            raise UserError(
                f"{target / path.name} is there with {there[path.name]} bytes, {path} has {size}: "
                "--force replaces it"
            )
    for path in paths:
        if there[path.name] == path.stat().st_size and not force:
            note(f"{target / path.name}: there already, with this size")
        else:
            _upload(StorePath(path), target / path.name)
    return [(target / name).uri for name in names]


def _size(path: StorePath) -> int | None:
    return path.stat().size if path.exists() else None


def _upload(source: StorePath, target: StorePath) -> None:
    with (
        Progress(f"put {target.name}", source.stat().size // _PIECE, "MiB") as bar,
        source.open() as file,
        target.create() as copy,
    ):
        while piece := file.read(_PIECE):
            copy.write(piece)
            bar.update()
