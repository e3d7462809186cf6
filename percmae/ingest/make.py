"""Ingest: a source of images to a dataset in the store; resumable, all or nothing.

The source is listed, its images are shared out over splits and shards, and the shards are built
side by side; nothing else than the list decides what they hold. The manifest is written last. The
same source again: only what changed is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from percmae.data.decode import Once
from percmae.data.shards import FORMER, MANIFEST, Dataset
from percmae.errors import DataError
from percmae.ingest import manifest
from percmae.ingest.build import BuiltShard, Work
from percmae.ingest.catalogue import Catalogue
from percmae.ingest.checked import smaller
from percmae.ingest.cores import usable_cores
from percmae.ingest.crew import Hear
from percmae.ingest.growth import Change, everything, growth
from percmae.ingest.leftovers import leftovers, used_numbers
from percmae.ingest.passes import Passes
from percmae.ingest.places import read_place
from percmae.ingest.plan import PlannedShard, plan
from percmae.ingest.pods import Pods
from percmae.ingest.scratch import Space
from percmae.ingest.settings import Settings
from percmae.ingest.states import States
from percmae.progress import Progress, note, warn
from percmae.storage import StorePath

_NOTED = 10  # damaged images that are named while ingesting; the manifest lists all


@dataclass(frozen=True)
class IngestResult:
    """A finished dataset; ``reused`` when there was nothing new to ingest."""

    manifest_uri: str
    dataset: Dataset
    reused: bool


@dataclass(frozen=True)
class Making:
    """A dataset to be made of a catalogue, at ``to``.

    workers: processes that build; None for as many as this process may use cores. grow_held_out:
    see :func:`percmae.ingest.growth.growth`. more: what else is to stand in the manifest. space:
    for images of archives in a store on their way.
    """

    catalogue: Catalogue
    to: StorePath
    settings: Settings = field(default_factory=Settings)
    workers: int | None = None
    grow_held_out: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    space: Space = field(default_factory=Space)

    def run(self, pods: Pods | None = None) -> IngestResult | None:
        """Make it, or this pod's share of it; None where another pod writes the manifest.

        Raises DataError for images that cannot make a dataset, and where ``to`` holds another one;
        StoreError as the store has it.
        """
        workers = self.workers or usable_cores()
        self.to.prepare()
        for line in self.catalogue.notes:
            note(f"ingest: {line}")
        before = self._before()
        change = self._change(before)
        if before is not None and change.nothing:
            note(f"ingest: nothing new in {self._source}")
            return IngestResult(before.uri, before, reused=True)
        _say(change, before)
        columns, states = self.catalogue.columns, States(self.to)
        shards = plan(columns, change.labels, change.parts, used_numbers(self.to), self.settings)
        work = Work(self.catalogue, change.labels, self.settings, self.to)
        earlier = pods.begin(states) if pods else {}
        share = pods.share(shards) if pods else shards
        try:
            built = self._build(work, states, share, states.begin(shards), workers)
        except Exception as error:
            if pods:
                pods.fail(states, error)
            raise
        if pods and pods.index:
            note(f"ingest: pod {pods.index} of {pods.of} has built its {len(share):,} shards")
            return None
        if pods:

            def build(missing: PlannedShard) -> BuiltShard:
                return self._build(work, states, [missing], {}, workers)[missing.stem]

            built = pods.wait(states, shards, built, earlier, build)
        in_order = [(planned, built[planned.stem]) for planned in shards]
        content = manifest.compose(
            self.to, self.catalogue, change, in_order, self.settings, before, self.more
        )
        dataset = manifest.write(self.to, content, before)
        for entry in leftovers(self.to):
            entry.path.delete()
        _sum_up(dataset)
        return IngestResult(dataset.uri, dataset, reused=False)

    @property
    def _source(self) -> str:
        return ", ".join(str(source.get("name", "")) for source in self.catalogue.sources)

    def _before(self) -> Dataset | None:
        """The dataset that is there. Raises DataError for one of other settings."""
        path = self.to / MANIFEST
        if not path.exists():
            return None
        dataset = Dataset.open(path.uri)
        sources = (dataset.manifest["sources"], self.catalogue.sources)
        roles = [{source["role"] for source in of} for of in sources]
        if roles[0] != roles[1] or not made_with(dataset, self.settings, self.more.get("labels")):
            raise self._another("made from other archives, or with other settings")
        if not dataset.grows:
            raise self._another(f"of format {FORMER}, which cannot grow")
        return dataset

    def _another(self, what: str) -> DataError:
        return DataError(
            f"{self.to} already holds a dataset {what}; give another destination, or delete "
            f"{self.to / MANIFEST} to start anew"
        )

    def _change(self, before: Dataset | None) -> Change:
        if before is None:
            return everything(self.catalogue)
        change = growth(self.catalogue, before, self._prepared, self.grow_held_out)
        images = sum(
            info.samples - len(info.removed)
            for listed in (before.shards, before.held_back)
            for infos in listed.values()
            for info in infos
        )
        if 2 * (change.removed - change.replaced) > images:
            raise self._another(
                f"of {images:,} images, of which {self._source} lacks "
                f"{change.removed - change.replaced:,}: more than half"
            )
        return change

    def _prepared(self, row: int) -> bytes | None:
        with suppress(DataError):
            data = read_place(self.catalogue.place(row))
            return smaller(data, self.catalogue.name(row), self.settings)
        return None

    def _build(
        self,
        work: Work,
        states: States,
        shards: Sequence[PlannedShard],
        finished: Mapping[str, BuiltShard],
        workers: int,
    ) -> dict[str, BuiltShard]:
        """By stem, these shards, of which some are finished."""
        built = {shard.stem: finished[shard.stem] for shard in shards if shard.stem in finished}
        todo = [shard for shard in shards if shard.stem not in built]
        if not todo:
            return built
        sizes = self.catalogue.columns.sizes
        total = sum(int(sizes[shard.rows].sum()) for shard in todo)
        faults, fetched = 0, 0
        with Progress("ingest", total, unit="B") as bar:

            def image(size: int, fault: str | None) -> None:
                nonlocal faults
                bar.update(size)
                if fault is not None:
                    faults += 1
                    if faults <= _NOTED:
                        warn(f"ingest: left out: {fault}")

            def fetch(size: int) -> None:
                nonlocal fetched
                fetched += size
                bar.update(0, fetched=f"{fetched / total:.0%}")

            def whole(planned: PlannedShard, done: BuiltShard) -> None:
                built[planned.stem] = done

            hear = Hear(image, Once(lambda text: warn(f"ingest: {text}")))
            Passes(work, states, self.space, workers, hear, fetch, whole).run(todo)
        damaged = sum(len(done.corrupt) for done in built.values())
        if damaged:
            warn(f"ingest: left out {damaged:,} damaged image(s) of {self._source} in all")
        return built


def made_with(dataset: Dataset, settings: Settings, labels: str | None = None) -> bool:
    """Whether the dataset was made with these settings, and its labels found in this way."""
    now = settings.to_json() | {"labels": labels}
    names = ("shard_bytes", "formats", "short_side", "quality", "labels")
    before = dataset.manifest | {"formats": dataset.formats}
    return all(before.get(name) == now.get(name) for name in names)


def _say(change: Change, before: Dataset | None) -> None:
    """What is about to be done to a dataset that is there."""
    if before is None:
        return
    fresh = {held: sum(len(p.rows) for p in change.parts if p.held_back == held) for held in (0, 1)}
    more = len(change.classes) - len(before.classes)
    said = [
        f"{fresh[0] - change.replaced:,} new images" + (f", {more:,} new classes" if more else ""),
        f"{change.replaced:,} changed" if change.replaced else "",
        f"{gone:,} gone" if (gone := change.removed - change.replaced) else "",
        f"{change.taken_in:,} of before taken into val and test" if change.taken_in else "",
    ]
    note(f"ingest: {', '.join(text for text in said if text)}")
    if fresh[1]:
        note(
            f"ingest: {fresh[1]:,} further images belong to val or test, which stay as they are: "
            "held back; --grow-held-out takes them in"
        )


def _sum_up(dataset: Dataset) -> None:
    alike = dataset.manifest["near_duplicates"]
    if alike["val"] or alike["test"]:
        note(
            f"ingest: {alike['val']:,} val and {alike['test']:,} test images look nearly like one "
            f"for training (dHash within {alike['distance']} bits); the manifest names the first"
        )
