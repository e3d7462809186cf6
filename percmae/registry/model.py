"""``model.json``: the versions of a model, the aliases that name some of them, and what moved when.

``<folder>/<name>/model.json`` is the one file that says what there is; files of a version lie below
``<folder>/<name>/versions/`` before it is listed there. Every change is one conditional request, so
of two at once each builds upon the other, or is refused.
"""

from __future__ import annotations

import getpass
import hashlib
import re
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal, NamedTuple, get_args

from pydantic import ConfigDict, Field

from percmae.config.schema import Stage, Variant
from percmae.errors import DataError, UserError
from percmae.runs.files import DatasetIdentity, Figure, Part, parse
from percmae.storage import StorePath

ModelFormat = Literal["percmae-model/1"]
FORMAT: ModelFormat = get_args(ModelFormat)[0]
MODEL, VERSIONS = "model.json", "versions"
CHAMPION, CHALLENGER, LATEST = "champion", "challenger", "latest"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_DAMAGED = "restore it; its versions lie below it"


class File(Part):
    """A file of a version: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str


class Version(Part):
    """One trained network: what it was trained on and how, its test figures, its files.

    run, key: the run it was made of; parent: what that builds upon; data: what it was trained on;
    evaluated_on: whose test images the metrics are of; metrics: shares in 0..1; files: by their
    names below ``folder``, which lies below the model's; mlflow: the server whose registry has the
    version too.
    """

    version: int
    created: str
    run: str
    key: str
    stage: Stage
    variant: Variant
    seed: int
    config_digest: str
    parent: str | None
    data: DatasetIdentity
    evaluated_on: DatasetIdentity
    versions: dict[str, str]
    metrics: dict[str, Figure]
    folder: str
    files: dict[str, File]
    mlflow: str | None = Field(default=None, exclude_if=lambda server: server is None)


class Move(Part):
    """One change of an alias: from which version (None: it was new) to which."""

    model_config = ConfigDict(populate_by_name=True, strict=True, frozen=True)

    when: str
    who: str
    alias: str
    before: int | None = Field(alias="from")
    after: int = Field(alias="to")
    kind: Literal["add", "promote", "rollback"]
    why: str | None = None


class Model(Part):
    """What ``model.json`` holds; versions and history in the order they came."""

    format: ModelFormat = FORMAT
    name: str
    versions: list[Version] = Field(default_factory=list)
    aliases: dict[str, int] = Field(default_factory=dict)
    history: list[Move] = Field(default_factory=list)

    def version(self, number: int) -> Version:
        """Raises UserError for one that there is not."""
        for version in self.versions:
            if version.version == number:
                return version
        raise UserError(f"model {self.name} has no version {number}; {self._has()}")

    def named(self, which: str) -> Version:
        """The version of an alias or of a number. Raises UserError where there is none."""
        if which in self.aliases:
            return self.version(self.aliases[which])
        if which.isdecimal():
            return self.version(int(which))
        raise UserError(f"model {self.name} has no alias {which!r}; {self._has()}")

    def before(self, alias: str) -> int | None:
        """What an alias named before the version it names: what a rollback goes back to."""
        stack: list[int] = []
        for move in self.history:
            if move.alias != alias:
                continue
            if move.kind == "rollback" and stack:
                stack.pop()
            elif move.kind != "rollback":
                stack.append(move.after)
        return stack[-2] if len(stack) > 1 else None

    def moved(self, alias: str, to: int, kind: str, why: str | None) -> Model:
        """The same with an alias at a version, and the move at the end of the history."""
        move = Move.model_validate(
            {
                "when": now(),
                "who": _who(),
                "alias": alias,
                "from": self.aliases.get(alias),
                "to": to,
                "kind": kind,
                "why": why,
            }
        )
        aliases = {**self.aliases, alias: to}
        return self.model_copy(update={"aliases": aliases, "history": [*self.history, move]})

    def _has(self) -> str:
        numbers = ", ".join(str(version.version) for version in self.versions) or "none"
        aliases = ", ".join(f"{k}={v}" for k, v in sorted(self.aliases.items())) or "none"
        return f"versions: {numbers}; aliases: {aliases}"


class Reference(NamedTuple):
    """A model and what of it is meant: ``<folder>/<name>[@<alias or version>]``."""

    folder: StorePath
    name: str
    which: str | None

    @property
    def path(self) -> StorePath:
        """The model's folder."""
        return self.folder / self.name

    def __str__(self) -> str:
        return self.path.uri + (f"@{self.which}" if self.which else "")


def reference(text: str) -> Reference:
    """Raises UserError for a text that names no model."""
    place, _, last = text.rstrip("/").rpartition("/")
    name, at, which = last.partition("@")
    check_name(name, f"model {text}")
    if at:
        check_name(which, f"model {text}: what stands behind @")
    return Reference(StorePath(place or "."), name, which or None)


def check_name(name: str, what: str) -> None:
    """Raise UserError for what cannot be the name of a model or an alias."""
    if not _NAME.fullmatch(name) or len(name) > 63:
        raise UserError(
            f"{what}: {name!r} is no name; up to 63 letters, digits, dots, hyphens and underscores"
        )


def read_model(path: StorePath) -> Model:
    """The model of a folder. Raises DataError where there is none and for a damaged file."""
    if not (path / MODEL).exists():
        raise DataError(
            f"there is no model at {path}: `percmae models add` makes one of a run, and `percmae "
            "models ls` lists those of a folder"
        )
    return _parsed((path / MODEL).read_bytes(), path)


def read_file(path: StorePath, version: Version, name: str) -> bytes:
    """A file of a version of the model at ``path``.

    Raises DataError for one that is gone or is not what it was.
    """
    known, file = version.files[name], path / version.folder / name

    def whole(data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() == known.sha256

    data = file.read_bytes(is_whole=whole)
    if not whole(data):
        raise DataError(
            f"{file}: its SHA-256 is not the one of when it was added; it is damaged or another "
            f"file: add the run again ({version.run})"
        )
    return data


def models(folder: StorePath) -> Iterator[tuple[StorePath, Model]]:
    """Every model below a folder or prefix, by name."""
    for entry in folder.iter():
        if entry.name.endswith(f"/{MODEL}") or entry.name == MODEL:
            yield entry.path.parent, read_model(entry.path.parent)


def change(path: StorePath, by: Callable[[Model], Model]) -> Model:
    """Change a model's file; of several at once each is given what the one before has left.

    by: raises what refuses the change; then nothing has changed. A model that there is not is given
    as one without versions. Returns the model as it is then.
    """
    made: list[Model] = []

    def rewritten(data: bytes | None) -> bytes:
        model = by(Model(name=path.name) if data is None else _parsed(data, path))
        made.append(model)
        return (model.model_dump_json(indent=2, by_alias=True) + "\n").encode()

    (path / MODEL).update(rewritten)
    return made[-1]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parsed(data: bytes, path: StorePath) -> Model:
    return parse(Model, data, (path / MODEL).uri, _DAMAGED)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user that has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
