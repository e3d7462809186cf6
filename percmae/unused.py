"""``percmae gc``: runs, datasets and reports that nothing refers to any more.

What there is says itself what it refers to: a run its parent and its dataset, a version of a model
its run, a report its runs, each by an address in its JSON. So whatever address stands in one of
these files, at any place, keeps what lies there. That errs on the side of keeping, and needs no
change when a file gets a further field.

What is kept without being referred to: models; what was written to lately; a run that may be under
way; and what ``--keep`` names, as a pipeline outside of the store would. A report is kept with any
of its runs, and keeps all of them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from percmae.data.addresses import addresses
from percmae.data.shards import MANIFEST
from percmae.errors import DataError, StoreAccessError, UserError
from percmae.progress import note, warn
from percmae.registry.model import MODEL
from percmae.report import FIGURES, PAGE, compare
from percmae.runs.evaluation import EVALUATION
from percmae.runs.record import RECORD
from percmae.storage import Entry, StorePath
from percmae.storage.collect import Pile, collect

UNDER_WAY = 24 * 3600.0
"""Seconds in which a run that is not complete may be under way."""
# What says that a folder is one: its file, and how that file's format begins.
_MARKERS = {
    RECORD: ("run", "percmae-run/"),
    MANIFEST: ("dataset", "percmae-dataset/"),
    FIGURES: ("report", "percmae-report/"),
    compare.FIGURES: ("comparison", "percmae-compare/"),
    MODEL: ("model", "percmae-model/"),
}
# Of these the folder may hold other things too; only these files are theirs.
_FILES = {
    "report": {FIGURES, PAGE},
    "comparison": {compare.FIGURES, compare.MARKDOWN, *compare.PICTURES.values()},
}
_UNITS = {"h": 3600.0, "d": 24 * 3600.0, "w": 7 * 24 * 3600.0}
_AGE = re.compile(r"(\d+)([hdw])")

Place = tuple[str, str]
"""Kind and folder of a thing."""


@dataclass(eq=False)
class Thing:
    """A run, dataset, report, comparison or model: its files, and the addresses it names.

    why: what keeps it; None where nothing does.
    """

    kind: str
    folder: StorePath
    marker: Entry
    files: list[Entry] = field(default_factory=list)
    named: frozenset[str] = frozenset()
    complete: bool = True
    why: str | None = None

    @property
    def place(self) -> Place:
        return self.kind, self.folder.uri

    @property
    def modified(self) -> float:
        """When the newest of its files was written, seconds since 1970."""
        return max(entry.modified for entry in self.files)

    @property
    def name(self) -> str:
        when = time.strftime("%Y-%m-%d", time.gmtime(self.modified))
        return f"{self.kind:10}  {when}  {self.folder}"


def collected(
    uri: str,
    older_than: str,
    also: Sequence[str] = (),
    keep: Sequence[str] = (),
    delete: bool = False,
    as_json: bool = False,
) -> str:
    """What is below ``uri`` that nothing refers to, deleted if so asked; as lines.

    older_than: such as ``30d``, ``12h`` or ``2w``: what was written to later is kept. also: further
    places whose models, runs and reports count; of a store all of the bucket does by itself, unless
    places are given. keep: addresses that something else refers to. as_json: all there is below
    ``uri``, with what keeps it; nothing is deleted.

    Raises UserError for what is no age, DataError where nothing is below ``uri`` and for a file of
    which it cannot be told what it refers to; then nothing is deleted.
    """
    age = _seconds(older_than)
    if as_json and delete:
        raise UserError("--json lists what there is: leave it out, or leave out --delete")
    below = StorePath(uri)
    look = _Look(_places(below, also), below, age, [StorePath(each).uri for each in keep])
    things = look.now()
    inside = [thing for thing in things if look.is_below(thing)]
    if not inside:
        raise DataError(f"no run, dataset, report or model below {below}; check the URI")
    if as_json:
        return json.dumps([_row(thing) for thing in inside])
    unused = _in_order([thing for thing in inside if thing.why is None])
    where = {thing.name: thing.place for thing in unused}
    piles = [
        Pile(thing.name, [*_but_marker(thing), thing.marker], thing.folder) for thing in unused
    ]
    note(_counted(things))
    if not any(thing.kind == "model" for thing in things):
        warn("gc: no model was found; if there are some elsewhere, name their folder with --also")
    return collect(
        piles,
        delete,
        "nothing refers to them",
        still=lambda pile: look.is_unused(where[pile.name]),
    )


class _Look:
    """What there is and what keeps it, looked at again as often as need be."""

    def __init__(
        self, places: Sequence[StorePath], below: StorePath, age: float, keep: Sequence[str]
    ) -> None:
        self._places, self._below, self._age, self._keep = places, below, age, keep
        self._read: dict[tuple[str, str], Any] = {}
        self._unused: set[Place] = set()
        self._until = 0.0  # this counts

    def is_below(self, thing: Thing) -> bool:
        """Whether it is among what is to be looked through."""
        return thing.folder == self._below or _is_above(self._below, thing.folder.uri)

    def is_unused(self, place: Place) -> bool:
        """Whether nothing keeps it now, by a look that is no older than it took: so what is asked
        of many takes at most twice as long as looking does anyway."""
        begun = time.monotonic()
        if begun > self._until:
            self._unused = {thing.place for thing in self.now() if thing.why is None}
            self._until = 2 * time.monotonic() - begun
        return place in self._unused

    def now(self) -> list[Thing]:
        """Everything there is, by address, with what keeps it."""
        try:
            entries = [entry for place in self._places for entry in place.iter()]
        except StoreAccessError as error:
            if self._below in self._places:
                raise
            raise StoreAccessError(
                f"{error}: what refers is looked for in all of the bucket; --also names the places "
                "to look in instead"
            ) from error
        things = self._things(entries)
        _keep(things, self._roots)
        return things

    def _roots(self, thing: Thing) -> str | None:
        """What keeps a thing that nothing refers to."""
        if thing.kind == "model":
            return "is a model"
        if not self.is_below(thing):
            return f"is not below {self._below}"
        silent = time.time() - thing.modified
        if silent < self._age:
            return "is new"
        if not thing.complete and silent < UNDER_WAY:
            return "may be under way"
        for address in self._keep:
            if thing.folder.uri == address or _is_above(thing.folder, address):
                return "--keep"
        return None

    def _things(self, entries: Sequence[Entry]) -> list[Thing]:
        found: dict[str, list[Thing]] = {}
        evaluations = {e.path.parent.uri: e for e in entries if e.path.name == EVALUATION}
        for entry in entries:
            kind, form = _MARKERS.get(entry.path.name, ("", ""))
            if not kind:
                continue
            document = self._document(entry)
            if str(document.get("format")).startswith(form):
                folder = entry.path.parent
                thing = Thing(kind, folder, entry, named=_addresses_in(document))
                thing.complete = document.get("status", "complete") == "complete"
                if kind == "run" and folder.uri in evaluations:
                    thing.named |= _addresses_in(self._document(evaluations[folder.uri]))
                found.setdefault(folder.uri, []).append(thing)
        for entry in entries:
            owner = _owner(entry, found)
            if owner is not None:
                owner.files.append(entry)
        return [thing for things in found.values() for thing in things]

    def _document(self, entry: Entry) -> dict[str, Any]:
        """The JSON of a file, read once for each content it has."""
        known = (entry.path.uri, entry.etag)
        if known not in self._read:
            try:
                document = json.loads(entry.path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{entry.path} is damaged ({error}), so it cannot be told what it refers to: "
                    "restore it or remove it; nothing was deleted"
                ) from None
            self._read[known] = document if isinstance(document, dict) else {}
        found: dict[str, Any] = self._read[known]
        return found


def _keep(things: Sequence[Thing], roots: Callable[[Thing], str | None]) -> None:
    """Say of each thing what keeps it, if something does."""
    at = _by_folder(things)
    refers = {thing.place: list(_referred(thing, at)) for thing in things}
    reports: dict[Place, list[Thing]] = {}
    for thing in things:
        if thing.kind in _FILES:
            for run in refers[thing.place]:
                reports.setdefault(run.place, []).append(thing)
    waiting = []
    for thing in things:
        thing.why = roots(thing)
        if thing.why is not None:
            waiting.append(thing)
    while waiting:
        by = waiting.pop()
        found = [(each, f"{by.kind} {by.folder} refers to it") for each in refers[by.place]]
        found += [(each, f"tells of {by.kind} {by.folder}") for each in reports.get(by.place, ())]
        for kept, why in found:
            if kept.why is None:
                kept.why = why
                waiting.append(kept)


def _by_folder(things: Iterable[Thing]) -> dict[str, list[Thing]]:
    found: dict[str, list[Thing]] = {}
    for thing in things:
        found.setdefault(thing.folder.uri, []).append(thing)
    return found


def _referred(thing: Thing, at: dict[str, list[Thing]]) -> Iterator[Thing]:
    """The things in whose folders the addresses lie that a thing names."""
    for address in thing.named:
        folder = address
        while folder:
            for other in at.get(folder, ()):
                if other is not thing and other.kind != "model":
                    yield other
            folder = folder.rpartition("/")[0]


def _addresses_in(value: Any) -> frozenset[str]:
    """All texts in a JSON value that could be addresses, in their normal form."""
    found = set()
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and value.startswith(("s3://", "/")):
            for address in addresses(value):
                try:
                    found.add(StorePath(address).uri)
                except UserError:
                    continue  # a text that is none
    return frozenset(found)


def _owner(entry: Entry, found: dict[str, list[Thing]]) -> Thing | None:
    """Whose a file is: of the folders that it lies in, the nearest that has it."""
    folder, _, name = entry.path.uri.rpartition("/")
    for thing in found.get(folder, ()):
        if name in _FILES.get(thing.kind, ()):
            return thing
    while folder:
        for thing in found.get(folder, ()):
            if thing.kind not in _FILES:
                return thing
        folder = folder.rpartition("/")[0]
    return None


def _in_order(things: Iterable[Thing]) -> list[Thing]:
    """What refers first, then what it refers to: whatever is left when it ends midway is whole."""
    left = {thing.place: thing for thing in things}
    at = _by_folder(left.values())
    ordered: list[Thing] = []
    while left:
        named = {o.place for t in left.values() for o in _referred(t, at)}
        first = [thing for place, thing in left.items() if place not in named]
        for thing in first or list(left.values()):  # some that name each other
            ordered.append(left.pop(thing.place))
    return ordered


def _but_marker(thing: Thing) -> list[Entry]:
    """A thing's files but for what says that it is one, which goes last: else what is left when
    this ends midway would never be found again."""
    return [entry for entry in thing.files if entry.path != thing.marker.path]


def _places(below: StorePath, also: Sequence[str]) -> list[StorePath]:
    """Where to look for what refers: all of the bucket, unless places are given."""
    if below.is_s3 and not also:
        while below.parent != below:
            below = below.parent
    given = list(dict.fromkeys([below, *(StorePath(each) for each in also)]))
    return [place for place in given if not any(_is_above(o, place.uri) for o in given)]


def _is_above(folder: StorePath, address: str) -> bool:
    return address.startswith(folder.uri.rstrip("/") + "/")


def _seconds(age: str) -> float:
    found = _AGE.fullmatch(age.strip())
    if not found:
        raise UserError(f"--older-than {age}: give hours, days or weeks, such as 12h, 30d or 2w")
    return int(found[1]) * _UNITS[found[2]]


def _counted(things: Sequence[Thing]) -> str:
    kinds = [kind for kind, _ in _MARKERS.values()]
    counts = {kind: sum(thing.kind == kind for thing in things) for kind in kinds}
    kept = sum(thing.why is not None for thing in things)
    told = ", ".join(f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in counts.items())
    return f"gc: looked at {told}; {kept:,} of them are kept (--json says why)"


def _row(thing: Thing) -> dict[str, Any]:
    return {
        "kind": thing.kind,
        "uri": thing.folder.uri,
        "files": len(thing.files),
        "bytes": sum(entry.size for entry in thing.files),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(thing.modified)),
        "kept": thing.why,
    }
